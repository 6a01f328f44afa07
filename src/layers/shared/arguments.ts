/**
 * Packs kernel arguments in C layout. Each kernel has one block of bytes, which every launch overwrites, and a writer
 * per parameter, built once when the kernel is looked up.
 */
import type * as Effect from "effect/Effect"
import { alignUp, layOut, scalarWords, scalarWriters, setAddress } from "../../cuda/parameters.ts"
import type { ArrayKind, ElementType, ParameterKind, PointerKind, StructKind, Writer } from "../../cuda/parameters.ts"
import type { CudaError } from "../../CudaError.ts"
import type { PointerArgument, RawAddress } from "../CudaRuntime.ts"
import { counted } from "../runtime/words.ts"
import { peerAdvice, refuse, refuseArgument, refuseDescribed, refuseResource } from "./failures.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { ownMemory, unusableMemory } from "./resources.ts"
import type { AnyMemoryResource, Owner } from "./resources.ts"

/** Which memory kernels can access. */
export interface Reach {
  readonly owner: Owner
  /** Whether kernels on a device can access pinned memory by its host address. */
  readonly reachesHost: (deviceIndex: number) => boolean
}

/** The memory behind a pointer argument of the current launch; undefined for null and for raw addresses. */
export class PointerSlot {
  memory: AnyMemoryResource | undefined
  offset = 0
  byteLength = 0
  readonly reads: boolean
  readonly writes: boolean
  /** Where its address is among the bytes of the arguments. */
  readonly at: number
  constructor(access: PointerKind["access"], at: number) {
    this.reads = access !== "write"
    this.writes = access !== "read"
    this.at = at
  }
}

export class Arguments {
  /** The arguments at their C offsets, followed by space for their addresses. */
  readonly buffer: ArrayBuffer
  readonly view: DataView
  readonly offsets: ReadonlyArray<number>
  /** Offset of the addresses. */
  readonly tableOffset: number
  /** All pointers among the arguments, in order. */
  readonly pointers: Array<PointerSlot> = []
  readonly #kinds: ReadonlyArray<ParameterKind>
  readonly #reach: Reach
  readonly #writers: ReadonlyArray<Writer>
  #device = 0

  constructor(kinds: ReadonlyArray<ParameterKind>, reach: Reach) {
    const { offsets, size } = layOut(kinds)
    this.#kinds = kinds
    this.#reach = reach
    this.offsets = offsets
    this.tableOffset = alignUp(size, 8)
    this.buffer = new ArrayBuffer(this.tableOffset + 8 * kinds.length)
    this.view = new DataView(this.buffer)
    this.#writers = kinds.map((kind, index) => this.#writer(kind, offsets[index]!))
  }

  /**
   * Writes the arguments of a launch on a device. Returns false if one does not match its parameter; `explain` says
   * which.
   */
  pack(values: ReadonlyArray<unknown>, deviceIndex: number): boolean {
    const writers = this.#writers
    if (!Array.isArray(values) || values.length !== writers.length) return false
    this.#device = deviceIndex
    for (let index = 0; index < writers.length; index++) {
      if (!writers[index]!(values[index])) return false
    }
    return true
  }

  /** Drops the references to the last launch's memory. */
  forget(): void {
    for (const slot of this.pointers) slot.memory = undefined
  }

  #writer(kind: ParameterKind, offset: number): Writer {
    switch (kind.kind) {
      case "pointer":
        return this.#pointerWriter(kind, offset)
      case "struct":
        return this.#structWriter(kind, offset)
      case "array":
        return this.#arrayWriter(kind, offset)
      default:
        return scalarWriters[kind.kind](this.view, offset)
    }
  }

  #pointerWriter({ access, element, nullable }: PointerKind, offset: number): Writer {
    const { view } = this
    const { owner } = this.#reach
    const slot = new PointerSlot(access, offset)
    this.pointers.push(slot)
    return (value) => {
      slot.memory = undefined
      if (isPart(value)) {
        if (element !== undefined && value.element !== element) return false
        const memory = ownMemory(value.buffer.ref)
        if (unusableMemory(owner, memory) || !this.#reaches(memory)) return false
        const start = value.offset
        const bytes = value.byteLength
        if (!isRange(start, bytes, memory.byteLength)) return false
        slot.memory = memory
        slot.offset = start
        slot.byteLength = bytes
        setAddress(view, offset, memory.address + start)
        return true
      }
      if (value === null ? !nullable : !isRaw(value)) return false
      setAddress(view, offset, isRaw(value) ? value.address : 0)
      return true
    }
  }

  #reaches(memory: AnyMemoryResource): boolean {
    if (memory.kind === "host") return this.#reach.reachesHost(this.#device)
    return memory.isWithinReachOf(this.#device)
  }

  #structWriter({ fields, offsets }: StructKind, offset: number): Writer {
    const names = Object.keys(fields)
    const writers = names.map((name) => this.#writer(fields[name]!, offset + offsets[name]!))
    return (value) => {
      if (!isRecord(value)) return false
      for (let index = 0; index < names.length; index++) {
        if (!writers[index]!(value[names[index]!])) return false
      }
      return true
    }
  }

  #arrayWriter({ element, length }: ArrayKind, offset: number): Writer {
    const writers = Array.from({ length }, (_, index) => this.#writer(element, offset + index * element.size))
    return (value) => {
      if (!isList(value) || value.length !== length) return false
      for (let index = 0; index < length; index++) {
        if (!writers[index]!(value[index])) return false
      }
      return true
    }
  }

  /** The failure for arguments that `pack` did not accept. */
  explain(operation: string, values: unknown): Effect.Effect<never, CudaError> {
    const count = this.#kinds.length
    if (!Array.isArray(values) || values.length !== count) {
      const expected = `${counted(count, "value")}, one per parameter`
      return Array.isArray(values)
        ? refuseDescribed(operation, "arguments", counted(values.length, "value"), expected)
        : refuseArgument(operation, "arguments", values, expected)
    }
    for (const [index, kind] of this.#kinds.entries()) {
      const refused = this.#explain(operation, `arguments[${index}]`, kind, values[index])
      if (refused !== undefined) return refused
    }
    return refuseDescribed(operation, "arguments", "values that change while they are read", "plain values")
  }

  #explain(operation: string, path: string, kind: ParameterKind, value: unknown): Refusal {
    switch (kind.kind) {
      case "pointer":
        return this.#explainPointer(operation, path, kind, value)
      case "struct":
        return this.#explainStruct(operation, path, kind, value)
      case "array":
        return this.#explainArray(operation, path, kind, value)
      default:
        return scalarWriters[kind.kind](new DataView(new ArrayBuffer(8)), 0)(value)
          ? undefined
          : refuseArgument(operation, path, value, `${scalarWords[kind.kind]} (${kind.kind})`)
    }
  }

  #explainPointer(operation: string, path: string, { element, nullable }: PointerKind, value: unknown): Refusal {
    if (!isPart(value)) {
      if (value === null ? nullable : isRaw(value)) return undefined
      return refuseArgument(operation, path, value, `${wordsOf(element)}${nullable ? ", or null" : ""}`)
    }
    const mistyped = refuseElements(operation, path, element, value)
    if (mistyped !== undefined) return mistyped
    const memory = ownMemory(value.buffer.ref)
    const { owner } = this.#reach
    if (unusableMemory(owner, memory)) return refuseResource(operation, owner, memory)
    if (!this.#reaches(memory)) return this.#explainReach(operation, path, memory)
    return refuseRange(operation, path, { memory, offset: value.offset, byteLength: value.byteLength })
  }

  #explainReach(operation: string, path: string, memory: AnyMemoryResource): Refusal {
    if (memory.kind === "host") {
      return refuseArgument(operation, path, memory, "device memory: kernels on this device cannot access host memory")
    }
    const resources = [String(memory), `the kernel on device ${this.#device}`] as const
    const deviceIndices = [memory.deviceIndex, this.#device] as const
    return refuse(operation, {
      _tag: "DeviceMismatch",
      resources,
      deviceIndices,
      advice: peerAdvice(memory, this.#device)
    })
  }

  #explainStruct(operation: string, path: string, { fields }: StructKind, value: unknown): Refusal {
    const names = Object.keys(fields)
    if (!isRecord(value)) {
      return refuseArgument(operation, path, value, `an object with the fields ${names.join(", ")}`)
    }
    for (const name of names) {
      const refused = this.#explain(operation, `${path}.${name}`, fields[name]!, value[name])
      if (refused !== undefined) return refused
    }
    return undefined
  }

  #explainArray(operation: string, path: string, { element, length }: ArrayKind, value: unknown): Refusal {
    if (!isList(value) || value.length !== length) {
      const expected = counted(length, "value")
      return isList(value)
        ? refuseDescribed(operation, path, counted(value.length, "value"), expected)
        : refuseArgument(operation, path, value, expected)
    }
    for (let index = 0; index < length; index++) {
      const refused = this.#explain(operation, `${path}[${index}]`, element, value[index])
      if (refused !== undefined) return refused
    }
    return undefined
  }
}

/** Refuses memory of another element type than the declared one, if there is one. */
export const refuseElements = (
  operation: string,
  path: string,
  element: ElementType | undefined,
  given: PointerArgument
): Refusal => {
  if (element === undefined || given.element === element) return undefined
  const value = given.element === undefined ? "bytes without an element type" : `elements of ${given.element}`
  return refuseDescribed(operation, path, value, `elements of ${element} (CudaMemory.typed gives bytes that type)`)
}

/** What a pointer parameter accepts, in words. */
export const wordsOf = (element: ElementType | undefined): string =>
  element === undefined ? "a buffer or a slice of one" : `an array of ${element} or elements of one`

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null

const isList = (value: unknown): value is ArrayLike<unknown> => isRecord(value) && typeof value["length"] === "number"

export const isPart = (value: unknown): value is PointerArgument =>
  isRecord(value) && isRecord(value["buffer"]) && isRecord(value["buffer"]["ref"])

export const isRaw = (value: unknown): value is RawAddress =>
  isRecord(value) && Number.isSafeInteger(value["address"]) && Number(value["address"]) >= 0

export const isRange = (offset: number, byteLength: number, room: number): boolean =>
  Number.isInteger(offset) && Number.isInteger(byteLength) && offset >= 0 && byteLength >= 0 &&
  offset + byteLength <= room
