/**
 * Memory of simulated devices as kernels see it, and the faults that end kernels.
 */
import { elementConstructors } from "../../cuda/elements.ts"
import type { ElementArray } from "../../cuda/elements.ts"
import { scalarReaders, scalarSizes, scalarWriters } from "../../cuda/parameters.ts"
import type { ElementType, ScalarName, ScalarValues } from "../../cuda/parameters.ts"
import { statuses } from "../../cuda/status.ts"
import type { StatusTag } from "../../cuda/status.ts"
import type { ScalarArgument } from "../CudaRuntime.ts"
import { Fault } from "./model/parts.ts"
import type { Storage } from "./model/Storage.ts"

/** The constructor of a typed array. */
export interface ArrayConstructor<A> {
  readonly BYTES_PER_ELEMENT: number
  new(buffer: ArrayBuffer, byteOffset: number, length: number): A
}

/** Memory behind a pointer argument, as the kernel function sees it. */
export interface SimulatedPointer {
  readonly address: number
  /** Size in bytes of the buffer or slice that was passed to the launch. */
  readonly byteLength: number
  /**
   * Views the memory as a typed array, by default with as many whole elements as fit in `byteLength`. Faults with
   * `MisalignedAddress` if the address is not a multiple of the element size, and with `IllegalAddress` if the view ends outside
   * the buffer. The array itself is an ordinary one: beyond its end, it returns `undefined`.
   */
  readonly view: <A>(Type: ArrayConstructor<A>, length?: number) => A
  /** Reads an element. The index counts elements from the pointer. Faults with `IllegalAddress` outside the buffer. */
  readonly load: <Name extends ScalarName>(kind: Name, index: number) => ScalarValues[Name]
  /** Writes an element. Faults with `IllegalAddress` outside the buffer. */
  readonly store: <Name extends ScalarName>(kind: Name, index: number, value: ScalarArgument<Name>) => void
}

/** Memory behind a pointer argument whose elements have a declared type. */
export interface SimulatedArray<out Type extends ElementType = ElementType> extends SimulatedPointer {
  readonly element: Type
  /** The number of whole elements in `byteLength`. */
  readonly length: number
  /** The memory as a typed array: `view` with the constructor of the type. `f16` and `bf16` are `Uint16Array`s of their bits. */
  readonly array: ElementArray<Type>
}

/** What a kernel function gets for a pointer: with `array`, if its element type is declared. */
export type SimulatedPointerOf<Element extends ElementType | undefined> = [Element] extends [ElementType]
  ? SimulatedArray<Element>
  : SimulatedPointer

/** Thrown to end a kernel in a fault. The message tells the cause. */
export class KernelFault extends Fault {
  constructor(tag: StatusTag, because?: string) {
    const isFault = Object.hasOwn(statuses, tag) && statuses[tag].isSticky
    const ends = isFault ? tag : "LaunchFailed"
    const why = isFault ? because : `${tag} is not a sticky status`
    super(statuses[ends].code, why === undefined ? ends : `${ends}: ${why}`)
  }
}

/** Simulated memory from an offset on, or an address without memory. */
export class Pointer implements SimulatedPointer {
  readonly address: number
  readonly byteLength: number
  readonly #storage: Storage | undefined
  readonly #offset: number
  /** The source of the pointer, for example `arguments[0]`. */
  readonly #origin: string

  constructor(storage: Storage | undefined, offset: number, byteLength: number, address: number, origin: string) {
    this.#storage = storage
    this.#offset = offset
    this.byteLength = byteLength
    this.address = address
    this.#origin = origin
  }

  /** The same memory, with an element type. */
  of<Type extends ElementType>(element: Type): SimulatedArray<Type> {
    return new ArrayPointer(this.#storage, this.#offset, this.byteLength, this.address, this.#origin, element)
  }

  readonly view = <A>(Type: ArrayConstructor<A>, length = Math.floor(this.byteLength / Type.BYTES_PER_ELEMENT)): A => {
    const bytes = this.#reach("view", 0, length * Type.BYTES_PER_ELEMENT, Type.BYTES_PER_ELEMENT)
    return new Type(bytes.buffer, bytes.byteOffset + this.#offset, length)
  }

  readonly load = <Name extends ScalarName>(kind: Name, index: number): ScalarValues[Name] => {
    const { at, view } = this.#element("load", kind, index)
    return scalarReaders[kind](view, at)
  }

  readonly store = <Name extends ScalarName>(kind: Name, index: number, value: ScalarArgument<Name>): void => {
    const { at, view } = this.#element("store", kind, index)
    if (scalarWriters[kind](view, at)(value)) return
    throw new TypeError(`${String(value)} is not a ${kind}, for element ${index} of ${this.#origin}`)
  }

  #element(access: Access, kind: ScalarName, index: number): { readonly view: DataView; readonly at: number } {
    const size = scalarSizes[kind]
    const bytes = this.#reach(access, index * size, size, size)
    return { view: new DataView(bytes.buffer), at: bytes.byteOffset + this.#offset + index * size }
  }

  /** Checks that a range is inside the buffer and aligned, and returns the whole memory. */
  #reach(access: Access, from: number, byteLength: number, align: number): Uint8Array<ArrayBuffer> {
    const start = this.#offset + from
    const storage = this.#storage
    if (!(storage !== undefined && start >= 0 && start + byteLength <= storage.byteLength)) {
      throw new KernelFault("IllegalAddress", this.#outside(access, from, byteLength))
    }
    if ((this.address + from) % align !== 0) {
      const where = `${access} at byte ${from} of ${this.#origin}, address 0x${(this.address + from).toString(16)}`
      throw new KernelFault("MisalignedAddress", `${where}, is not aligned to ${align} bytes`)
    }
    return storage.touch()
  }

  #outside(access: Access, from: number, byteLength: number): string {
    const where = `${access} of bytes ${from} to ${from + byteLength} of ${this.#origin}`
    const storage = this.#storage
    if (storage === undefined) return `${where}, but no buffer is at 0x${this.address.toString(16)}`
    return `${where}, whose buffer spans bytes ${0 - this.#offset} to ${storage.byteLength - this.#offset}`
  }
}

class ArrayPointer<Type extends ElementType> extends Pointer implements SimulatedArray<Type> {
  readonly element: Type

  constructor(
    storage: Storage | undefined,
    offset: number,
    byteLength: number,
    address: number,
    origin: string,
    element: Type
  ) {
    super(storage, offset, byteLength, address, origin)
    this.element = element
  }

  get length(): number {
    return Math.floor(this.byteLength / scalarSizes[this.element])
  }

  get array(): ElementArray<Type> {
    return this.view(elementConstructors[this.element])
  }
}

/** How a kernel accesses memory. */
type Access = "view" | "load" | "store"
