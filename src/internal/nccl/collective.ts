/**
 * Collectives as values, and the checks before they are issued.
 */
import { CudaError, invalidArgument } from "../../CudaError.ts"
import type { CudaErrorReason } from "../../CudaError.ts"
import { isBuffer } from "../../CudaMemory.ts"
import type { DeviceBuffer, Slice } from "../../CudaMemory.ts"
import type { CudaStream } from "../../CudaStream.ts"
import { Handle, oneLine } from "../handles.ts"
import { isWhole } from "../numbers.ts"
import { CommunicatorImpl } from "./communicator.ts"
import type { CommunicatorRef } from "./communicator.ts"
import { elementTypes, operatorCodes } from "./numbers.ts"
import type { NcclOperator, NcclType } from "./numbers.ts"

type Part = Slice<DeviceBuffer>

export type CollectiveKind = "allReduce" | "broadcast" | "reduce" | "allGather" | "reduceScatter" | "send" | "receive"

/** What a collective was given. */
export interface Given {
  readonly from?: Part | undefined
  readonly to?: Part | undefined
  readonly type: NcclType
  readonly op?: NcclOperator | undefined
  readonly root?: number | undefined
  readonly peer?: number | undefined
}

/** A collective of one rank. */
export class CollectiveImpl extends Handle {
  readonly "~effect-cuda/CudaNccl/Collective" = "~effect-cuda/CudaNccl/Collective" as const
  readonly kind: CollectiveKind
  readonly communicator: CommunicatorImpl
  readonly stream: CudaStream | undefined
  readonly given: Given
  constructor(kind: CollectiveKind, communicator: CommunicatorImpl, given: Given, stream: CudaStream | undefined) {
    super()
    this.kind = kind
    this.communicator = communicator
    this.given = given
    this.stream = stream
  }
  toString(): string {
    return oneLine("Collective", this.kind, String(this.communicator))
  }
  toJSON() {
    const { communicator, kind } = this
    return { _id: "Collective", kind, communicator }
  }
}

/** A collective that can be issued. */
export interface Plan {
  readonly kind: CollectiveKind
  readonly communicator: CommunicatorRef
  /** What the rank reads; undefined if it only receives. */
  readonly from: Part | undefined
  /** What the rank writes; undefined if it only sends. */
  readonly to: Part | undefined
  /** Elements, as the function counts them. */
  readonly count: number
  readonly type: NcclType
  readonly operator: NcclOperator
  /** The root, or the peer. */
  readonly other: number
  readonly stream: CudaStream | undefined
}

export const running = "CudaNccl.run"

const no = (argument: string, value: unknown, expected: string) => invalidArgument(running, argument, value, expected)

const refuse = (reason: CudaErrorReason) => new CudaError({ operation: running, reason })

/** What each kind reads and writes on a rank, and which other rank it names. */
interface Shape {
  readonly other?: "root" | "peer"
  readonly operates?: boolean
  /** The larger of its two parts, if that has the elements of all ranks. */
  readonly gathers?: "from" | "to"
  readonly hasFrom: (isRoot: boolean) => boolean
  readonly hasTo: (isRoot: boolean) => boolean
}

const always = () => true
const never = () => false

const shapes: { readonly [Kind in CollectiveKind]: Shape } = {
  allReduce: { operates: true, hasFrom: always, hasTo: always },
  broadcast: { other: "root", hasFrom: (isRoot) => isRoot, hasTo: always },
  reduce: { other: "root", operates: true, hasFrom: always, hasTo: (isRoot) => isRoot },
  allGather: { gathers: "to", hasFrom: always, hasTo: always },
  reduceScatter: { gathers: "from", operates: true, hasFrom: always, hasTo: always },
  send: { other: "peer", hasFrom: always, hasTo: never },
  receive: { other: "peer", hasFrom: never, hasTo: always }
}

/** Checks a collective. Everything is read once, because a getter may return anything. */
export const planOf = (given: unknown, index: number): Plan | CudaError => {
  if (!(given instanceof CollectiveImpl)) return no(`collectives[${index}]`, given, "a collective, such as allReduce")
  const { communicator, kind } = given
  if (!(communicator instanceof CommunicatorImpl)) {
    return no("communicator", communicator, "a communicator that CudaNccl has made")
  }
  const { ref } = communicator
  if (typeof given.given !== "object" || given.given === null) return no("options", given.given, "options with a type")
  const { from, op = "sum", peer, root, to, type } = given.given
  if (!Object.hasOwn(elementTypes, type)) {
    return no("type", type, `one of ${Object.keys(elementTypes).join(", ")}`)
  }
  if (!Object.hasOwn(operatorCodes, op)) return no("op", op, `one of ${Object.keys(operatorCodes).join(", ")}`)
  const { other: name } = shapes[kind]
  const other = name === undefined ? 0 : name === "root" ? root : peer
  if (!isWhole(other, 0, ref.size - 1)) return no(name!, other, `a rank from 0 to ${ref.size - 1}`)
  const parts = partsOf(kind, ref, from, to, ref.rank === other)
  if (parts instanceof CudaError) return parts
  const count = countOf(kind, ref, type, parts)
  if (count instanceof CudaError) return count
  return {
    kind,
    communicator: ref,
    from: parts.from,
    to: parts.to,
    count,
    type,
    operator: op,
    other,
    stream: given.stream
  }
}

interface Parts {
  readonly from: Part | undefined
  readonly to: Part | undefined
}

/** The parts that the rank needs. One that is missing is the other one: in place. */
const partsOf = (
  kind: CollectiveKind,
  ref: CommunicatorRef,
  from: Part | undefined,
  to: Part | undefined,
  isRoot: boolean
): Parts | CudaError => {
  const { gathers, hasFrom, hasTo } = shapes[kind]
  const [reads, writes] = [hasFrom(isRoot), hasTo(isRoot)]
  const inPlace = reads && writes && gathers === undefined
  const parts = {
    from: reads ? from ?? (inPlace ? to : undefined) : undefined,
    to: writes ? to ?? (inPlace ? from : undefined) : undefined
  }
  if (reads) {
    const wrong = refusePart("from", parts.from, ref)
    if (wrong !== undefined) return wrong
  }
  if (writes) {
    const wrong = refusePart("to", parts.to, ref)
    if (wrong !== undefined) return wrong
  }
  return parts
}

const isPart = (value: unknown): value is Part =>
  isBuffer(value) || (typeof value === "object" && value !== null && "buffer" in value && isBuffer(value.buffer))

const refusePart = (name: string, part: Part | undefined, ref: CommunicatorRef): CudaError | undefined => {
  if (!isPart(part) || part.buffer.kind !== "device") return no(name, part, "device memory or a part of it")
  const { buffer } = part
  if (buffer.runtime.identity !== ref.runtime.identity) {
    return refuse({ _tag: "ForeignResource", resource: String(buffer.ref) })
  }
  if (buffer.deviceIndex === ref.deviceIndex || buffer.isManaged) return undefined
  return refuse({
    _tag: "DeviceMismatch",
    resources: [String(ref), String(buffer.ref)],
    deviceIndices: [ref.deviceIndex, buffer.deviceIndex]
  })
}

/** The number of elements, once the sizes fit together. */
const countOf = (
  kind: CollectiveKind,
  ref: CommunicatorRef,
  type: NcclType,
  { from, to }: Parts
): number | CudaError => {
  const { gathers } = shapes[kind]
  const [fromFactor, toFactor] = [gathers === "from" ? ref.size : 1, gathers === "to" ? ref.size : 1]
  const [name, part, factor] = from === undefined ? ["to", to!, toFactor] as const : ["from", from, fromFactor] as const
  const { size } = elementTypes[type]
  const bytes = part.byteLength / factor
  if (!isWhole(bytes / size, 1)) {
    const unit = factor === 1 ? `${size}` : `${size} × ${factor}`
    return no(`${name}.byteLength`, part.byteLength, `a positive multiple of ${unit} bytes`)
  }
  if (from !== undefined && to !== undefined) {
    if (to.byteLength !== bytes * toFactor) {
      return no("to.byteLength", to.byteLength, `${bytes * toFactor} bytes, for ${from.byteLength} bytes in from`)
    }
    const wrong = refuseOverlap(ref, from, to, bytes, gathers)
    if (wrong !== undefined) return wrong
  }
  return bytes / size
}

const addressOf = ({ buffer, offset }: Part): number => buffer.address + offset

/** Parts are the same, apart, or the rank's own piece of the larger one. */
const refuseOverlap = (
  { rank }: CommunicatorRef,
  from: Part,
  to: Part,
  bytes: number,
  gathers: Shape["gathers"]
): CudaError | undefined => {
  // While a graph is recorded, its own memory has no address.
  if (from.buffer.ref !== to.buffer.ref) return undefined
  const [first, second] = [addressOf(from), addressOf(to)]
  if (first + from.byteLength <= second || second + to.byteLength <= first) return undefined
  const shift = gathers === undefined ? 0 : rank * bytes
  if (gathers === "to" ? first === second + shift : second === first + shift) return undefined
  const place = gathers === undefined ? "exactly from" : `piece ${rank} of the larger part`
  return no("to", to, `memory apart from from, or ${place}`)
}
