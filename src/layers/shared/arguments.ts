/**
 * The arguments of a kernel, packed as C lays them out: one block of bytes per kernel that every launch writes anew, with
 * writers that are put together once, for the parameters that the kernel has.
 */
import type * as Effect from "effect/Effect"
import { alignUp, layOut, scalarWords, scalarWriters, setAddress } from "../../cuda/parameters.ts"
import type { ArrayKind, ParameterKind, PointerKind, StructKind, Writer } from "../../cuda/parameters.ts"
import type { CudaError } from "../../CudaError.ts"
import type { PointerArgument, RawAddress } from "../CudaRuntime.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { ownMemory, unusableMemory } from "./resources.ts"
import type { AnyMemoryResource, Owner } from "./resources.ts"

/** What kernels can reach. */
export interface Reach {
  readonly owner: Owner
  /** Whether kernels of a device reach pinned memory by its address on the host. */
  readonly reachesHost: (device: number) => boolean
}

/** The memory that a pointer among the arguments of the present launch points to; none for null and raw addresses. */
export class PointerSlot {
  memory: AnyMemoryResource | undefined
  offset = 0
  byteLength = 0
  readonly writes: boolean
  constructor(writes: boolean) {
    this.writes = writes
  }
}

export class Arguments {
  /** The arguments, each where C puts it, and behind them room for their addresses. */
  readonly buffer: ArrayBuffer
  readonly view: DataView
  readonly offsets: ReadonlyArray<number>
  /** Where the addresses go. */
  readonly tableOffset: number
  /** The pointers of all arguments, in their order. */
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

  /** Writes the arguments of a launch on a device. False when one is not what its parameter asks for; `explain` says which. */
  pack(values: ReadonlyArray<unknown>, device: number): boolean {
    const writers = this.#writers
    if (!Array.isArray(values) || values.length !== writers.length) return false
    this.#device = device
    for (let index = 0; index < writers.length; index++) {
      if (!writers[index]!(values[index])) return false
    }
    return true
  }

  /** Lets go of the memory of the last launch. */
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

  #pointerWriter({ access, nullable }: PointerKind, offset: number): Writer {
    const { view } = this
    const { owner } = this.#reach
    const slot = new PointerSlot(access !== "read")
    this.pointers.push(slot)
    return (value) => {
      slot.memory = undefined
      if (isPart(value)) {
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
    return memory.device === this.#device || memory.isManaged
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

  /** The failure of arguments that could not be packed for a launch on this device. */
  explain(operation: string, values: unknown): Effect.Effect<never, CudaError> {
    const count = this.#kinds.length
    if (!Array.isArray(values) || values.length !== count) {
      const given = Array.isArray(values) ? `${values.length} values` : show(values)
      return refuseArgument(operation, "arguments", given, `${count} values, one for each parameter`)
    }
    for (const [index, kind] of this.#kinds.entries()) {
      const refused = this.#explain(operation, `arguments[${index}]`, kind, values[index])
      if (refused !== undefined) return refused
    }
    return refuseArgument(operation, "arguments", "values that change", "values that stay as they are")
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
          : refuseArgument(operation, path, show(value), `${scalarWords[kind.kind]} (${kind.kind})`)
    }
  }

  #explainPointer(operation: string, path: string, { nullable }: PointerKind, value: unknown): Refusal {
    if (!isPart(value)) {
      if (value === null ? nullable : isRaw(value)) return undefined
      return refuseArgument(operation, path, show(value), `a buffer or a part of one${nullable ? ", or null" : ""}`)
    }
    const memory = ownMemory(value.buffer.ref)
    const { owner } = this.#reach
    if (unusableMemory(owner, memory)) return refuseResource(operation, owner, memory)
    if (!this.#reaches(memory)) return this.#explainReach(operation, path, memory)
    return refuseRange(operation, path, { memory, offset: value.offset, byteLength: value.byteLength })
  }

  #explainReach(operation: string, path: string, memory: AnyMemoryResource): Refusal {
    if (memory.kind === "host") {
      return refuseArgument(operation, path, memory, "device memory: kernels of this device do not reach the host's")
    }
    const resources = [String(memory), `the kernel on device ${this.#device}`] as const
    return refuse(operation, { _tag: "DeviceMismatch", resources, devices: [memory.device, this.#device] })
  }

  #explainStruct(operation: string, path: string, { fields }: StructKind, value: unknown): Refusal {
    const names = Object.keys(fields)
    if (!isRecord(value)) {
      return refuseArgument(operation, path, show(value), `an object with the fields ${names.join(", ")}`)
    }
    for (const name of names) {
      const refused = this.#explain(operation, `${path}.${name}`, fields[name]!, value[name])
      if (refused !== undefined) return refused
    }
    return undefined
  }

  #explainArray(operation: string, path: string, { element, length }: ArrayKind, value: unknown): Refusal {
    if (!isList(value) || value.length !== length) {
      const given = isList(value) ? `${value.length} values` : show(value)
      return refuseArgument(operation, path, given, `${length} values`)
    }
    for (let index = 0; index < length; index++) {
      const refused = this.#explain(operation, `${path}[${index}]`, element, value[index])
      if (refused !== undefined) return refused
    }
    return undefined
  }
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null

const isList = (value: unknown): value is ArrayLike<unknown> => isRecord(value) && typeof value["length"] === "number"

const isPart = (value: unknown): value is PointerArgument =>
  isRecord(value) && isRecord(value["buffer"]) && isRecord(value["buffer"]["ref"])

const isRaw = (value: unknown): value is RawAddress =>
  isRecord(value) && Number.isSafeInteger(value["address"]) && Number(value["address"]) >= 0

const isRange = (offset: number, byteLength: number, room: number): boolean =>
  Number.isInteger(offset) && Number.isInteger(byteLength) && offset >= 0 && byteLength >= 0 &&
  offset + byteLength <= room

/** A value of any kind in a few words. */
const show = (value: unknown): string => {
  if (typeof value === "object" && value !== null) {
    return Array.isArray(value)
      ? `an array of ${value.length}`
      : "an object"
  }
  return typeof value === "function" ? "a function" : String(value)
}
