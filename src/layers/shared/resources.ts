/**
 * The resources of a runtime, with the state its operations need: the implementation of the public references of
 * `CudaRuntime`. Runtimes use these classes, or subclasses with more state.
 */
import type * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import { eventFlags } from "../../cuda/flags.ts"
import type { CUcontext, CUmemoryPool } from "../../cuda/handles.ts"
import type { HandleType } from "../../cuda/libraryParameters.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type {
  Address,
  DeviceMemoryRef,
  EventHandle,
  EventRef,
  GrowableMemoryRef,
  HostAddress,
  HostMemoryRef,
  LibraryHandleRef,
  ManagedMemoryRef,
  MemoryPoolRef,
  MemoryRef,
  PartitionRef,
  ResourceState,
  StreamHandle,
  StreamRef
} from "../CudaRuntime.ts"
import { inBytes } from "../runtime/words.ts"
import type { CapturedGraph } from "./captures.ts"
import type { Slot } from "./graphNodes.ts"
import type { Ordering, Track } from "./ordering.ts"
import type { Share } from "./partitions.ts"
import type { Line, RecordedPoint, Recording } from "./Recording.ts"
import { Running } from "./Running.ts"

/** Identifies the runtime that a resource belongs to. */
export interface Owner {
  readonly kind: "native" | "simulated"
}

/** The type of a resource. On hot paths, checking a property is cheaper than `instanceof`. */
const streamTag = Symbol("stream")
const eventTag = Symbol("event")
const memoryTag = Symbol("memory")
const poolTag = Symbol("pool")
const handleTag = Symbol("handle")
const streamHandlesTag = Symbol("streamHandles")
const partitionTag = Symbol("partition")

export class StreamResource implements StreamRef {
  readonly tag = streamTag
  state: ResourceState = "live"
  name: string | undefined
  /** Its uses of ordered buffers; undefined before the first. */
  track: Track | undefined
  /** The recording that its work becomes part of; undefined for a stream of the driver. */
  recording: Recording | undefined
  /** Its work in the recording. */
  line: Line | undefined
  /** What a stream of other code needs to live. */
  keeps: Set<unknown> | undefined
  /** What the checker around the runtime knows of it. */
  checked: unknown
  readonly owner: Owner
  readonly handle: StreamHandle
  readonly id: number
  readonly deviceIndex: number
  readonly priority: number
  readonly nonBlocking: boolean
  readonly origin: "owned" | "default" | "foreign"
  readonly partition: PartitionResource | undefined
  constructor(
    owner: Owner,
    fields: Pick<StreamRef, "handle" | "id" | "deviceIndex" | "priority" | "nonBlocking" | "origin">,
    partition?: PartitionResource
  ) {
    this.owner = owner
    this.handle = fields.handle
    this.id = fields.id
    this.deviceIndex = fields.deviceIndex
    this.priority = fields.priority
    this.nonBlocking = fields.nonBlocking
    this.origin = fields.origin
    this.partition = partition
  }
  get isRecording(): boolean {
    return this.recording !== undefined
  }
  toString(): string {
    const name = this.name === undefined ? "" : ` ${JSON.stringify(this.name)}`
    if (this.isRecording) return `recording stream ${-this.id}${name} of device ${this.deviceIndex}`
    return `stream ${this.id}${name} of device ${this.deviceIndex}`
  }
}

/** A share of the multiprocessors of a device. */
export class PartitionResource implements PartitionRef {
  readonly tag = partitionTag
  state: ResourceState = "live"
  readonly owner: Owner
  readonly handle: CUcontext
  readonly deviceIndex: number
  readonly share: Share
  /** The streams of other partitions, or of none, on which graphs with nodes in it were launched. */
  readonly #users = new Set<StreamResource>()
  constructor(owner: Owner, handle: CUcontext, deviceIndex: number, share: Share) {
    this.owner = owner
    this.handle = handle
    this.deviceIndex = deviceIndex
    this.share = share
  }
  get multiprocessors(): number {
    return this.share.multiprocessors
  }
  /** Notes that work of the partition is about to be enqueued on a stream. */
  usedOn(stream: StreamResource): void {
    if (stream.partition === this || this.#users.has(stream)) return
    for (const user of this.#users) if (user.state === "released") this.#users.delete(user)
    this.#users.add(stream)
  }
  get pendingUsers(): ReadonlyArray<StreamResource> {
    return Array.from(this.#users).filter((stream) => stream.state !== "released")
  }
  toString(): string {
    return `partition of ${this.multiprocessors} multiprocessors of device ${this.deviceIndex}`
  }
}

export class EventResource implements EventRef {
  readonly tag = eventTag
  state: ResourceState = "live"
  /** True once a record was enqueued. Events of other processes and of other code count as recorded. */
  recorded = false
  /** True if the program has read the handle, so that other code may use the event without the runtime knowing. */
  isGivenOut = false
  /** True for an event of other code, which may record it, and destroys it. */
  isForeign = false
  /** What an event of other code needs to live. */
  keeps: unknown
  /** Where it was last recorded in a graph; undefined if a stream of the driver has recorded it since. */
  inside: RecordedPoint | undefined
  readonly owner: Owner
  /** The handle, for use inside the runtime. */
  readonly own: EventHandle
  readonly deviceIndex: number
  readonly flags: number
  constructor(owner: Owner, fields: Pick<EventRef, "handle" | "deviceIndex" | "flags">) {
    this.owner = owner
    this.own = fields.handle
    this.deviceIndex = fields.deviceIndex
    this.flags = fields.flags
  }
  get handle(): EventHandle {
    this.isGivenOut = true
    return this.own
  }
  get hasTiming(): boolean {
    return (this.flags & eventFlags.disableTiming) === 0
  }
  /** True if its records in a graph are nodes: it measures time, or other code waits for it. Other events only order the graph's work. */
  get isNode(): boolean {
    return this.hasTiming || this.isForeign
  }
  toString(): string {
    return `event 0x${this.own.toString(16)} of device ${this.deviceIndex}`
  }
}

/** A buffer tracks the streams that used it, so that its release can be ordered after their work. */
class MemoryResource<Pointer extends Address | HostAddress> {
  readonly tag = memoryTag
  state: ResourceState = "live"
  /** The uses of an ordered buffer. */
  ordering: Ordering | undefined
  /** Called before a stream's first use, and returns a status; undefined if all streams can use the memory. */
  beforeFirstUse: ((stream: StreamResource) => number) | undefined
  /** Called once the release is enqueued. */
  onRelease: (() => void) | undefined
  /** Set for a placeholder in a recorded graph. */
  slot: Slot | undefined
  /** What the checker around the runtime knows of it. */
  checked: unknown
  readonly owner: Owner
  readonly address: Pointer
  /** Changes only for growable memory. */
  byteLength: number
  readonly #users = new Set<StreamResource>()
  #lastUser: StreamResource | undefined
  #pruneAt = 16
  constructor(owner: Owner, address: Pointer, byteLength: number) {
    this.owner = owner
    this.address = address
    this.byteLength = byteLength
  }
  get isOrdered(): boolean {
    return this.ordering !== undefined
  }
  /** True if the program has transferred the `ArrayBuffer` of the memory. */
  get isGivenAway(): boolean {
    return false
  }
  /** Notes a use that is about to be enqueued. Returns the status of what must be enqueued before it. */
  usedOn(stream: StreamResource): number {
    if (this.#lastUser === stream) return success
    if (stream.recording !== undefined) return stream.recording.accept(this.slot)
    if (this.slot !== undefined) return statuses.InvalidValue.code
    if (this.beforeFirstUse !== undefined && !this.#users.has(stream)) {
      const status = this.beforeFirstUse(stream)
      if (status !== success) return status
    }
    this.#lastUser = stream
    this.#users.add(stream)
    if (this.#users.size >= this.#pruneAt) this.#prune()
    return success
  }
  /** Forgets released streams, so that a long-lived buffer does not accumulate them. */
  #prune(): void {
    for (const user of this.#users) if (user.state === "released") this.#users.delete(user)
    this.#pruneAt = Math.max(16, this.#users.size * 2)
  }
  /** The streams whose work may still use the memory. */
  get pendingUsers(): Array<StreamResource> {
    return Array.from(this.#users).filter((stream) => stream.state !== "released")
  }
}

const noPeers: ReadonlySet<number> = new Set()

export class DeviceMemoryResource extends MemoryResource<Address> implements DeviceMemoryRef {
  readonly kind = "device"
  readonly deviceIndex: number
  readonly isManaged: boolean = false
  readonly isGrowable: boolean = false
  /** True for memory that other code allocated and frees. */
  isForeign = false
  /** How other processes can open it: through its shareable pool, or by itself; undefined if they cannot. */
  sharing: MemoryPoolResource | "allocation" | undefined
  /** Set for memory of another process. */
  opened: OpenedMemory | undefined
  /** The stream whose order the allocation follows; undefined if the memory was ready for every stream. */
  allocatedOn: StreamResource | undefined
  /** The pool that it comes from; undefined for memory of other code. */
  pool: MemoryPoolResource | undefined
  /** The other devices that may access it. Shared with its pool, so that it changes with it. */
  peers: ReadonlySet<number> = noPeers
  constructor(owner: Owner, address: Address, byteLength: number, deviceIndex: number) {
    super(owner, address, byteLength)
    this.deviceIndex = deviceIndex
  }
  /** True if kernels, fills and calls of libraries on a device may use it. Managed memory is accessible from every device. */
  isWithinReachOf(deviceIndex: number): boolean {
    return this.deviceIndex === deviceIndex || this.isManaged || this.peers.has(deviceIndex)
  }
  /** The stream it was allocated on, if that is live and no other stream's work may still use the memory. */
  get soleUser(): StreamResource | undefined {
    const stream = this.allocatedOn
    if (stream === undefined || stream.state !== "live") return undefined
    return this.pendingUsers.every((user) => user === stream) ? stream : undefined
  }
  override toString(): string {
    if (this.slot !== undefined) return `${this.slot.name} of ${inBytes(this.byteLength)}`
    return `buffer of ${inBytes(this.byteLength)} at 0x${this.address.toString(16)} on device ${this.deviceIndex}`
  }
}

/** How this process has opened memory of another one. */
export interface OpenedMemory {
  /** The address of the whole allocation. */
  readonly base: Address
  /** Recorded when the memory is released, after all work that uses it. */
  returned: EventResource | undefined
}

/** Managed memory. The backend provides the host's view of it. */
export abstract class ManagedMemoryResource extends DeviceMemoryResource implements ManagedMemoryRef {
  override readonly isManaged = true
  abstract readonly bytes: Uint8Array<ArrayBuffer>
  override toString(): string {
    return `managed ${super.toString()}`
  }
}

/** Memory that grows at a fixed address. */
export class GrowableMemoryResource extends DeviceMemoryResource implements GrowableMemoryRef {
  override readonly isGrowable = true
  readonly maxBytes: number
  /** The memory behind the addresses grows in multiples of this. */
  readonly granularity: number
  /** The sizes of the pieces of memory behind the addresses, in order. */
  readonly pieces: Array<number> = []
  /** Held while the size changes. */
  readonly resizing = Semaphore.makeUnsafe(1)
  constructor(
    owner: Owner,
    address: Address,
    deviceIndex: number,
    { granularity, maxBytes }: Pick<GrowableMemoryResource, "granularity" | "maxBytes">
  ) {
    super(owner, address, 0, deviceIndex)
    this.maxBytes = maxBytes
    this.granularity = granularity
  }
  get mappedBytes(): number {
    let bytes = 0
    for (const piece of this.pieces) bytes += piece
    return bytes
  }
  /** The bytes of addresses that the driver reserves for it. */
  get reservedBytes(): number {
    return Math.ceil(this.maxBytes / this.granularity) * this.granularity
  }
  /** The last piece, if none of the bytes are in it. */
  get spare(): number | undefined {
    const last = this.pieces.at(-1)
    return last !== undefined && this.mappedBytes - last >= this.byteLength ? last : undefined
  }
  override toString(): string {
    return `growable ${super.toString()}`
  }
}

export class MemoryPoolResource implements MemoryPoolRef {
  readonly tag = poolTag
  state: ResourceState = "live"
  /** True if other processes can open it. */
  isShareable = false
  /** Identifies a shared pool among those of all processes. */
  sharedAs: string | undefined
  readonly owner: Owner
  readonly handle: CUmemoryPool
  readonly deviceIndex: number
  readonly origin: MemoryPoolRef["origin"]
  /** The other devices that may access its memory. Shared by pools of other processes that are one pool for the driver. */
  peers = new Set<number>()
  /** The devices that copies and graphs need access for, which keep the driver's access as long as the pool lives. */
  held = new Set<number>()
  /** True if it is accessible to whatever device has access to its own. */
  followsDevice = true
  /** How many of its buffers the driver has not been told to free. */
  inUse = 0
  constructor(owner: Owner, handle: CUmemoryPool, deviceIndex: number, origin: MemoryPoolRef["origin"]) {
    this.owner = owner
    this.handle = handle
    this.deviceIndex = deviceIndex
    this.origin = origin
  }
  toString(): string {
    const whose = this.origin === "runtime" ? "the runtime's pool" : `pool 0x${this.handle.toString(16)}`
    return `${whose} of device ${this.deviceIndex}`
  }
}

export class HostMemoryResource extends MemoryResource<HostAddress> implements HostMemoryRef {
  readonly kind = "host"
  /** Private, since assertions print properties: all elements of large arrays, too. */
  #bytes: Uint8Array<ArrayBuffer>
  /** The bytes before the memory in the pages that were pinned for it. */
  pinOffset = 0
  constructor(
    owner: Owner,
    address: HostAddress,
    bytes: Uint8Array<ArrayBuffer>,
    byteLength: number = bytes.byteLength
  ) {
    super(owner, address, byteLength)
    this.#bytes = bytes
  }
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes
  }
  set bytes(bytes: Uint8Array<ArrayBuffer>) {
    this.#bytes = bytes
  }
  override get isGivenAway(): boolean {
    return this.state === "live" && this.bytes.byteLength === 0 && this.slot === undefined
  }
  override toString(): string {
    if (this.slot !== undefined) return `${this.slot.name} of ${inBytes(this.byteLength)}`
    return `pinned buffer of ${inBytes(this.byteLength)} at 0x${this.address.toString(16)}`
  }
}

/** A handle of a library, which must not be destroyed while calls or work use it. */
export class HandleResource implements LibraryHandleRef {
  readonly tag = handleTag
  state: ResourceState = "live"
  /** Calls on pool threads that use it. */
  readonly calls = new Running()
  /** The stream that the library was last told to use. */
  stream: StreamResource | undefined
  /** Tells the library which stream to use, by the handle of the stream. Undefined if its functions take the stream. */
  setStream: ((handle: number, stream: StreamResource | undefined) => number) | undefined
  /** The uses of its state, if they are ordered. */
  ordering: Ordering | undefined
  /** The only stream that uses it; undefined if others may. */
  of: StreamResource | undefined
  /** What nodes of graphs hold, if only graphs use it. */
  keeper: WeakRef<object> | undefined
  /** What was captured with it, if that must end before it. */
  captured: Set<WeakRef<CapturedGraph>> | undefined
  /** Whether it ends while work may use it. */
  isAborted = false
  /** Called when it is aborted while its release waits. */
  onAbort: (() => void) | undefined
  readonly owner: Owner
  readonly kind: string
  readonly as: HandleType
  readonly handle: number
  readonly deviceIndex: number
  readonly #users = new Set<StreamResource>()
  #lastUser: StreamResource | undefined
  constructor(owner: Owner, fields: Pick<HandleResource, "kind" | "as" | "handle" | "deviceIndex">) {
    this.owner = owner
    this.kind = fields.kind
    this.as = fields.as
    this.handle = fields.handle
    this.deviceIndex = fields.deviceIndex
  }
  /** Notes that work on a stream is about to use it. */
  usedOn(stream: StreamResource): void {
    if (stream === this.#lastUser || stream.recording !== undefined) return
    this.#lastUser = stream
    if (this.#users.has(stream)) return
    for (const user of this.#users) if (user.state === "released") this.#users.delete(user)
    this.#users.add(stream)
  }
  /** Notes what was captured with it, and forgets what is garbage. */
  capturedIn(graph: CapturedGraph): void {
    const { captured } = this
    if (captured === undefined) return
    for (const ref of captured) if (ref.deref() === undefined) captured.delete(ref)
    captured.add(new WeakRef(graph))
  }
  get pendingUsers(): ReadonlyArray<StreamResource> {
    return Array.from(this.#users).filter((stream) => stream.state !== "released")
  }
  /** True if its stream is gone, or all graphs that could use it. */
  get isUnneeded(): boolean {
    return this.of?.state === "released" || (this.keeper !== undefined && this.keeper.deref() === undefined)
  }
  toString(): string {
    return `${this.kind} handle 0x${this.handle.toString(16)} of device ${this.deviceIndex}`
  }
}

/** Makes the handle of a stream, for an operation, unless there is one. */
export type MakeHandle = (operation: string, stream: StreamResource) => Effect.Effect<void, CudaError>

/** Handles of a library, one per stream and one per recording, made when they are first used. */
export class StreamHandles implements LibraryHandleRef {
  readonly tag = streamHandlesTag
  state: ResourceState = "live"
  readonly handle = undefined
  readonly all = new Set<HandleResource>()
  /** Releases in progress that no fiber of the program waits for. */
  readonly releases = new Running()
  readonly make: MakeHandle
  readonly owner: Owner
  readonly kind: string
  readonly as: HandleType
  readonly deviceIndex: number
  /** A recording keeps the keeper of its handle until its nodes do. */
  readonly #of = new WeakMap<HandlePlace, { readonly handle: HandleResource; readonly keeper: object | undefined }>()
  constructor(
    owner: Owner,
    fields: Pick<StreamHandles, "kind" | "as" | "deviceIndex">,
    make: (handles: StreamHandles, ...rest: Parameters<MakeHandle>) => ReturnType<MakeHandle>
  ) {
    this.make = (...rest) => make(this, ...rest)
    this.owner = owner
    this.kind = fields.kind
    this.as = fields.as
    this.deviceIndex = fields.deviceIndex
  }
  find(place: HandlePlace): HandleResource | undefined {
    return this.#of.get(place)?.handle
  }
  add(place: HandlePlace, handle: HandleResource): void {
    const isStream = place instanceof StreamResource
    const keeper = isStream ? undefined : {}
    handle.of = isStream ? place : undefined
    handle.keeper = keeper && new WeakRef(keeper)
    this.#of.set(place, { handle, keeper })
    this.all.add(handle)
  }
  toString(): string {
    return `${this.kind} handles of streams of device ${this.deviceIndex}`
  }
}

/** What has a handle of its own. */
export type HandlePlace = StreamResource | Recording

export type AnyMemoryResource = DeviceMemoryResource | HostMemoryResource
export type Resource =
  | StreamResource
  | EventResource
  | AnyMemoryResource
  | MemoryPoolResource
  | HandleResource
  | StreamHandles
  | PartitionResource

/** A value of the wrong kind that was passed as a handle, past the types. */
export interface WrongHandle {
  readonly given: unknown
  /** The usual name of the argument, and the expected value in words. */
  readonly argument: string
  readonly expected: string
}

/** Owns the stand-ins. No runtime has this identity. */
const nobody: Owner = { kind: "simulated" }

/** Makes a stand-in for a handle of the wrong kind. It is unusable everywhere, and refused with the original value. */
export const wrongHandle = <Kind extends object>(prototype: Kind, wrong: WrongHandle): Kind =>
  Object.assign(Object.create(prototype), { owner: nobody, state: "released", wrong })

/** Defined for stand-ins only. */
export const wrongOf = (resource: object): WrongHandle | undefined =>
  "wrong" in resource ? resource.wrong as WrongHandle : undefined

/**
 * The resource behind a reference. Every operation asks `unusable` first, which finds released references and those of
 * other runtimes. Any other value becomes a stand-in, which `unusable` finds as well, so the driver never receives a foreign
 * pointer.
 */
export const ownStream = (ref: StreamRef): StreamResource => {
  const own = ref as StreamResource | undefined
  if (own?.tag === streamTag) return own
  return wrongHandle(StreamResource.prototype, { given: ref, argument: "stream", expected: "a stream" })
}
export const ownEvent = (ref: EventRef): EventResource => {
  const own = ref as EventResource | undefined
  if (own?.tag === eventTag) return own
  return wrongHandle(EventResource.prototype, { given: ref, argument: "event", expected: "an event" })
}
export const ownMemory = (ref: MemoryRef): AnyMemoryResource => {
  const own = ref as AnyMemoryResource | undefined
  if (own?.tag === memoryTag) return own
  return wrongHandle(DeviceMemoryResource.prototype, { given: ref, argument: "buffer", expected: "a buffer" })
}
export const ownPool = (ref: MemoryPoolRef): MemoryPoolResource => {
  const own = ref as MemoryPoolResource | undefined
  if (own?.tag === poolTag) return own
  return wrongHandle(MemoryPoolResource.prototype, { given: ref, argument: "pool", expected: "a memory pool" })
}

export const ownPartition = (ref: PartitionRef): PartitionResource => {
  const own = ref as PartitionResource | undefined
  if (own?.tag === partitionTag) return own
  return wrongHandle(PartitionResource.prototype, { given: ref, argument: "partition", expected: "a partition" })
}

export const ownHandle = (ref: LibraryHandleRef): HandleResource | StreamHandles => {
  const own = ref as HandleResource | StreamHandles | undefined
  if (own?.tag === handleTag || own?.tag === streamHandlesTag) return own
  const expected = "a handle made with CudaLibrary.handle"
  return wrongHandle(HandleResource.prototype, { given: ref, argument: "handle", expected })
}

/** The handles that work uses, without those of streams: only calls of functions know which is meant. */
export const handlesOf = (refs: ReadonlyArray<LibraryHandleRef> | undefined): ReadonlyArray<HandleResource> =>
  refs === undefined || refs.length === 0 ? noHandles : refs.map(ownHandleAlone)

const noHandles: ReadonlyArray<HandleResource> = []

export const ownHandleAlone = (ref: LibraryHandleRef): HandleResource => {
  const own = ownHandle(ref)
  if (own instanceof HandleResource) return own
  const expected = "a handle that is not per stream"
  return wrongHandle(HandleResource.prototype, { given: ref, argument: "handle", expected })
}

/** Notes uses that are about to be enqueued, like `usedOn`. */
export const useAll = (memories: ReadonlyArray<AnyMemoryResource>, stream: StreamResource): number => {
  for (const memory of memories) {
    const status = memory.usedOn(stream)
    if (status !== success) return status
  }
  return success
}

/** True for a resource of another runtime and for a released one. */
export const unusable = (owner: Owner, resource: Resource): boolean =>
  resource.owner !== owner || resource.state !== "live"

/** Like `unusable`, for memory. Also true if the program has transferred it. */
export const unusableMemory = (owner: Owner, memory: AnyMemoryResource): boolean =>
  memory.owner !== owner || memory.state !== "live" || memory.isGivenAway
