/**
 * Collectives as values, and the checks before they are issued.
 */
import { CudaError, invalidArgument } from "../../CudaError.ts"
import type { CudaErrorReason } from "../../CudaError.ts"
import { isBuffer } from "../../CudaMemory.ts"
import type { DeviceBuffer, Slice } from "../../CudaMemory.ts"
import type { CudaStream } from "../../CudaStream.ts"
import type { LibraryHandleRef, PlacedCall, StreamRef } from "../../layers/CudaRuntime.ts"
import { isStream } from "../given.ts"
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
  /** Its plan, once it was checked. */
  plan: Plan | undefined
  constructor(kind: CollectiveKind, communicator: CommunicatorImpl, given: Given, stream: CudaStream | undefined) {
    super()
    this.kind = kind
    this.communicator = communicator
    this.given = given
    this.stream = stream
    this.plan = undefined
  }
  toString(): string {
    return oneLine("Collective", this.kind, String(this.communicator))
  }
  toJSON() {
    const { communicator, kind } = this
    return { _id: "Collective", kind, communicator }
  }
}

/** The bytes of a part, as they were when its collective was checked. */
interface PlannedPart {
  readonly buffer: DeviceBuffer
  readonly offset: number
  readonly byteLength: number
}

const nothing: ReadonlyArray<PlannedPart> = []

/** Collectives on one stream, as the part of a call of the runtime. */
export interface Job extends PlacedCall {
  readonly plans: ReadonlyArray<Plan>
  readonly reads: ReadonlyArray<PlannedPart>
  readonly writes: ReadonlyArray<PlannedPart>
}

/** A collective that can be issued, with all that its calls need, so that issuing it again costs little. */
export class Plan {
  readonly kind: CollectiveKind
  readonly communicator: CommunicatorRef
  readonly stream: CudaStream | undefined
  /** Its stream, if it was given one on which it can be. */
  readonly place: StreamRef | undefined
  /** What the rank reads; undefined if it only receives. */
  readonly from: PlannedPart | undefined
  /** What the rank writes; undefined if it only sends. */
  readonly to: PlannedPart | undefined
  readonly reads: ReadonlyArray<PlannedPart>
  readonly writes: ReadonlyArray<PlannedPart>
  /** Elements, as the function counts them. */
  readonly count: number
  readonly type: NcclType
  readonly operator: NcclOperator
  /** The root, or the peer. */
  readonly other: number
  /** Whether it is issued by a non-blocking communicator, and is on its stream only once that is ready. */
  readonly isPolled: boolean
  /** The communicator of NCCL that issues it. */
  readonly handles: ReadonlyArray<LibraryHandleRef>
  /** The arguments of its function. */
  readonly fromAddress: number
  readonly toAddress: number
  readonly typeCode: number
  readonly operatorCode: number
  /** The last job of this collective alone. */
  job: Job | undefined
  readonly #given: Parts
  constructor(
    { kind, stream }: CollectiveImpl,
    communicator: CommunicatorRef,
    given: Parts,
    reads: ReadonlyArray<PlannedPart>,
    writes: ReadonlyArray<PlannedPart>,
    count: number,
    type: NcclType,
    operator: NcclOperator,
    other: number
  ) {
    const { direct, handlesOfDirect, handlesOfJoint, shared } = communicator
    this.kind = kind
    this.communicator = communicator
    this.stream = stream
    this.place = placeOf(communicator, stream)
    this.from = reads[0]
    this.to = writes[0]
    this.reads = reads
    this.writes = writes
    this.count = count
    this.type = type
    this.operator = operator
    this.other = other
    this.isPolled = shared.native !== undefined && (direct === undefined || kind === "send" || kind === "receive")
    this.handles = this.isPolled ? handlesOfJoint : handlesOfDirect
    this.fromAddress = this.from === undefined ? 0 : addressOf(this.from)
    this.toAddress = this.to === undefined ? 0 : addressOf(this.to)
    this.typeCode = elementTypes[type].code
    this.operatorCode = operatorCodes[operator]
    this.job = undefined
    this.#given = given
  }
  /** Whether its parts are what they were: the size of growable memory changes. */
  get isCurrent(): boolean {
    return isAsBefore(this.from, this.#given.from) && isAsBefore(this.to, this.#given.to)
  }
}

const placeOf = ({ deviceIndex, shared }: CommunicatorRef, stream: CudaStream | undefined): StreamRef | undefined =>
  stream !== undefined && isStream(stream) && stream.runtime.identity === shared.runtime.identity &&
    stream.ref.deviceIndex === deviceIndex
    ? stream.ref
    : undefined

const isAsBefore = (planned: PlannedPart | undefined, given: Part | undefined): boolean =>
  planned === undefined || given === undefined ||
  (planned.byteLength === given.byteLength && planned.offset === given.offset && planned.buffer === given.buffer)

const planned = ({ buffer, byteLength, offset }: Part): PlannedPart => ({ buffer, offset, byteLength })

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

/** Checks a collective, unless that was done before and nothing has changed. */
export const planOf = (given: unknown, index: number): Plan | CudaError => {
  if (!(given instanceof CollectiveImpl)) return no(`collectives[${index}]`, given, "a collective, such as allReduce")
  const known = given.plan
  if (known !== undefined && known.isCurrent) return known
  const plan = check(given)
  if (plan instanceof Plan) given.plan = plan
  return plan
}

/** Everything is read once, because a getter may return anything. */
const check = (given: CollectiveImpl): Plan | CudaError => {
  const { communicator, kind } = given
  if (!(communicator instanceof CommunicatorImpl)) {
    return no("communicator", communicator, "a communicator that CudaNccl has made")
  }
  const { ref } = communicator
  if (typeof given.given !== "object" || given.given === null) return no("options", given.given, "options with a type")
  const { from, op = "sum", peer, root, to, type } = given.given
  if (!typeNames.has(type)) return no("type", type, `one of ${[...typeNames].join(", ")}`)
  if (!operatorNames.has(op)) return no("op", op, `one of ${[...operatorNames].join(", ")}`)
  const shape = shapes[kind]
  const { other: name } = shape
  const other = name === undefined ? 0 : name === "root" ? root : peer
  if (!isWhole(other, 0, ref.size - 1)) return no(name!, other, `a rank from 0 to ${ref.size - 1}`)
  const parts = partsOf(shape, ref, from, to, ref.rank === other)
  if (parts instanceof CudaError) return parts
  const reads = parts.from === undefined ? nothing : [planned(parts.from)]
  const writes = parts.to === parts.from ? reads : parts.to === undefined ? nothing : [planned(parts.to)]
  const count = countOf(shape, ref, type, reads[0], writes[0])
  return count instanceof CudaError ? count : new Plan(given, ref, parts, reads, writes, count, type, op, other)
}

/** A set finds a name sooner than an object says whether it has it. */
const typeNames: ReadonlySet<unknown> = new Set(Object.keys(elementTypes))
const operatorNames: ReadonlySet<unknown> = new Set(Object.keys(operatorCodes))

interface Parts {
  readonly from: Part | undefined
  readonly to: Part | undefined
}

/** The parts that the rank needs. One that is missing is the other one: in place. */
const partsOf = (
  { gathers, hasFrom, hasTo }: Shape,
  ref: CommunicatorRef,
  from: Part | undefined,
  to: Part | undefined,
  isRoot: boolean
): Parts | CudaError => {
  const reads = hasFrom(isRoot)
  const writes = hasTo(isRoot)
  const inPlace = reads && writes && gathers === undefined
  const parts = {
    from: reads ? from ?? (inPlace ? to : undefined) : undefined,
    to: writes ? to ?? (inPlace ? from : undefined) : undefined
  }
  if (reads) {
    const wrong = refusePart("from", parts.from, ref)
    if (wrong !== undefined) return wrong
  }
  if (writes && parts.to !== parts.from) {
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
  { gathers }: Shape,
  ref: CommunicatorRef,
  type: NcclType,
  from: PlannedPart | undefined,
  to: PlannedPart | undefined
): number | CudaError => {
  const fromFactor = gathers === "from" ? ref.size : 1
  const toFactor = gathers === "to" ? ref.size : 1
  const part = from ?? to!
  const factor = from === undefined ? toFactor : fromFactor
  const { size } = elementTypes[type]
  const bytes = part.byteLength / factor
  if (!isWhole(bytes / size, 1)) {
    const unit = factor === 1 ? `${size}` : `${size} × ${factor}`
    const name = from === undefined ? "to" : "from"
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

/** Not the address that programs are given, which the runtime is told about. */
const addressOf = ({ buffer, offset }: Part): number => buffer.ref.address + offset

/** Parts are the same, apart, or the rank's own piece of the larger one. */
const refuseOverlap = (
  { rank }: CommunicatorRef,
  from: Part,
  to: Part,
  bytes: number,
  gathers: Shape["gathers"]
): CudaError | undefined => {
  // While a graph is recorded, its own memory has no address.
  if (from === to || from.buffer.ref !== to.buffer.ref) return undefined
  const first = addressOf(from)
  const second = addressOf(to)
  if (first + from.byteLength <= second || second + to.byteLength <= first) return undefined
  const shift = gathers === undefined ? 0 : rank * bytes
  if (gathers === "to" ? first === second + shift : second === first + shift) return undefined
  const place = gathers === undefined ? "exactly from" : `piece ${rank} of the larger part`
  return no("to", to, `memory apart from from, or ${place}`)
}
