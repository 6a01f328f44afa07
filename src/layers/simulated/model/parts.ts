/**
 * The parts of simulated devices: streams, operations, engines, pools, and event records.
 */
import { Heap } from "./Heap.ts"
import type { Move } from "./moves.ts"

/** Thrown by the action of an operation to end it in a fault with this status. */
export class Fault extends Error {
  readonly status: number
  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** The kind of an operation. */
export type OperationKind =
  | "hostToDevice"
  | "deviceToHost"
  | "deviceToDevice"
  | "peerToPeer"
  | "fill"
  | "prefetch"
  | "allocate"
  | "work"
  | "record"
  | "wait"
  | "release"

/** An operation on a stream, from enqueuing to completion. */
export class Operation {
  readonly kind: OperationKind
  readonly stream: Stream
  /** The engine prefers lower numbers. */
  readonly priority: number
  /** Nanoseconds from start to end. */
  readonly duration: number
  /** Nanoseconds of the duration before it really starts. */
  readonly lead: number
  readonly bytes: number
  /** The engine that it runs on; undefined for records, waits and releases. */
  readonly engine: Engine | undefined
  /** The record that it completes, or that it waits for. */
  readonly record: EventRecord | undefined
  /** Called when it ends. */
  readonly act: (() => void) | undefined
  /** What it does to bytes when it ends. */
  readonly move: Move | undefined
  /** The status of the fault that it ends in; 0 for none. */
  readonly fault: number
  /** True for the runtime's bookkeeping, which the timeline omits. */
  readonly internal: boolean
  /** What a schedule calls it. */
  key = ""
  next: Operation | undefined
  group: Group | undefined
  /** The preceding group in the order around the legacy default stream, which must complete first. */
  gate: Group | undefined
  /** The position in the order of enqueuing; once running, in the order of starting. */
  sequence = 0
  /** When it became ready at the head of its stream, when it started, and when it ends. */
  ready = 0
  start = 0
  end = 0
  /** What it waits for after its time, in words; undefined if it ends with it. */
  heldFor: string | undefined
  /** The earliest time at which it may become ready. */
  notBefore = 0
  /** True for a wait that found its record incomplete. */
  hasWaited = false
  /** At its end, a delayed operation at the head of its stream is queued again, and an ending one is complete. */
  state: "queued" | "delayed" | "ready" | "running" | "ending" | "dropped" = "queued"

  constructor(fields: {
    readonly kind: OperationKind
    readonly stream: Stream
    /** Default: that of the stream. */
    readonly priority?: number
    readonly duration?: number
    readonly lead?: number
    readonly bytes?: number
    readonly engine?: Engine
    readonly record?: EventRecord
    readonly act?: () => void
    readonly move?: Move
    readonly fault?: number
    readonly internal?: boolean
  }) {
    this.kind = fields.kind
    this.stream = fields.stream
    this.priority = fields.priority ?? fields.stream.priority
    this.lead = fields.lead ?? 0
    this.duration = (fields.duration ?? 0) + this.lead
    this.bytes = fields.bytes ?? 0
    this.engine = fields.engine
    this.record = fields.record
    this.act = fields.act
    this.move = fields.move
    this.fault = fields.fault ?? 0
    this.internal = fields.internal ?? false
  }
}

/**
 * Consecutive operations in a device's order around its legacy default stream: either on that stream, or on blocking
 * streams. A group starts when the one before it is complete, which is CUDA's guarantee in both directions.
 */
export class Group {
  legacy: boolean
  gate: Group | undefined
  pending = 0
  /** True once a group of the other kind follows: no more operations will join. */
  closed = false
  readonly parked: Array<Stream> = []

  constructor(legacy: boolean, gate: Group | undefined) {
    this.legacy = legacy
    this.gate = gate
  }

  /** True once all of its operations have completed, and therefore all earlier groups. */
  get complete(): boolean {
    return this.closed && this.pending === 0
  }
}

/** One record of an event. Recording the event again makes a new record. */
export class EventRecord {
  /** The stream of the record; dropped on completion. */
  stream: Stream | undefined
  readonly device: Device
  done = false
  /** When it completed, in nanoseconds. */
  time = 0
  /** The engine of the last operation before it. */
  engine: Engine | undefined
  /** Streams whose first operation waits for it. */
  parked: Array<Stream> | undefined
  watchers: Set<Watcher> | undefined

  constructor(stream: Stream) {
    this.stream = stream
    this.device = stream.device
  }
}

/** An event, with its latest record. Shared by all runtimes that have opened it. */
export class EventState {
  current: EventRecord | undefined
}

/** A callback for the end of a record. */
export class Watcher {
  readonly record: EventRecord
  readonly onDone: (status: number, stage?: "clock") => void
  /** True for the runtime's bookkeeping: called within the step that ends the record, not after it. */
  readonly internal: boolean
  readonly home: WatcherHome
  status: number | undefined
  /** True if the wait was cancelled. */
  cancelled = false

  constructor(
    record: EventRecord,
    onDone: (status: number, stage?: "clock") => void,
    home: WatcherHome,
    internal: boolean
  ) {
    this.record = record
    this.onDone = onDone
    this.home = home
    this.internal = internal
  }
}

/** The watchers of one runtime: those that wait, and those whose wait has ended but that were not yet called. */
export interface WatcherHome {
  readonly waiting: Set<Watcher>
  readonly decided: Array<Watcher>
  /** Called when a wait has ended, to schedule the call of its watcher. */
  wake: () => void
}

/** A queue of operations. Each starts after the previous one has completed. */
export class Stream {
  readonly device: Device
  readonly id: number
  readonly handle: number
  readonly priority: number
  readonly nonBlocking: boolean
  readonly legacy: boolean
  /** The stream in whose name it runs work of a graph; undefined for a stream of the program. */
  readonly branchOf: Stream | undefined
  /** The engine of its partition; undefined for that of the device. */
  readonly compute: Engine | undefined
  head: Operation | undefined
  tail: Operation | undefined
  /** True once destroyed: pending work continues, but no more is enqueued. */
  destroyed = false
  /** The engine of its latest operation that needed one. */
  lastEngine: Engine | undefined

  constructor(
    device: Device,
    fields: Pick<Stream, "id" | "handle" | "priority" | "nonBlocking"> & {
      readonly legacy?: boolean
      readonly branchOf?: Stream
      readonly compute?: Engine | undefined
    }
  ) {
    this.device = device
    this.id = fields.id
    this.handle = fields.handle
    this.priority = fields.priority
    this.nonBlocking = fields.nonBlocking
    this.legacy = fields.legacy ?? false
    this.branchOf = fields.branchOf
    this.compute = fields.compute
  }

  /** True while a query returns "not ready". The legacy default stream includes the work of blocking streams. */
  get busy(): boolean {
    return this.legacy ? this.device.group.pending > 0 : this.head !== undefined
  }

  /** True if an operation enqueued now would not have to wait for earlier work. */
  get idle(): boolean {
    if (this.tail !== undefined) return false
    if (this.nonBlocking) return true
    const { group } = this.device
    return group.pending === 0 || (group.legacy === this.legacy && group.gate?.complete !== false)
  }

  toString(): string {
    if (this.branchOf !== undefined) return `a branch of ${this.branchOf}`
    if (this.legacy) return `the legacy default stream of device ${this.device.ordinal}`
    return `stream ${this.id} of device ${this.device.ordinal}`
  }
}

/** An engine, which runs a limited number of operations concurrently. */
export class Engine {
  readonly name: string
  readonly slots: number
  busy = 0
  /** True if it may start operations at the end of the current step. */
  dirty = false
  readonly queue = new Heap<Operation>(goesFirst)

  constructor(name: string, slots: number) {
    this.name = name
    this.slots = slots
  }
}

/** Orders by priority, then by when operations became ready, then by when they were enqueued. */
const goesFirst = (a: Operation, b: Operation): boolean => {
  if (a.priority !== b.priority) return a.priority < b.priority
  return a.ready === b.ready ? a.sequence < b.sequence : a.ready < b.ready
}

/** Bytes released in the order of a stream: how many its later allocations may reuse, and how many they have reused. */
interface Released {
  free: number
  taken: number
}

/** A pool of device memory, with its reserved and used bytes. */
export class Pool {
  readonly most: number
  /** The number of unused bytes that it keeps. */
  threshold: number
  /** Memory counts as used until its release has completed. */
  used = 0
  usedHigh = 0
  reserved = 0
  reservedHigh = 0
  readonly #released = new Map<Stream, Released>()

  constructor(most: number, threshold: number) {
    this.most = most
    this.threshold = threshold
  }

  /** Bytes of an allocation that earlier releases on its stream do not provide. */
  fresh(bytes: number, stream: Stream | undefined): number {
    const released = stream && this.#released.get(stream)
    return bytes - Math.min(bytes, released?.free ?? 0)
  }

  /** Bytes that the pool must reserve in addition for this many fresh bytes. */
  missing(fresh: number): number {
    return Math.max(0, this.used + fresh - this.reserved)
  }

  take(bytes: number, stream: Stream | undefined): void {
    const fresh = this.fresh(bytes, stream)
    const released = stream && this.#released.get(stream)
    if (released !== undefined) {
      released.free -= bytes - fresh
      released.taken += bytes - fresh
    }
    this.used += fresh
    this.reserved = Math.max(this.reserved, this.used)
    this.usedHigh = Math.max(this.usedHigh, this.used)
    this.reservedHigh = Math.max(this.reservedHigh, this.reserved)
  }

  /** Notes a release enqueued on a stream, for later allocations on that stream. */
  releaseOn(stream: Stream, bytes: number): void {
    const released = this.#released.get(stream)
    if (released === undefined) this.#released.set(stream, { free: bytes, taken: 0 })
    else released.free += bytes
  }

  /** Completes a release. Bytes that later allocations on the stream already reuse stay in use. */
  giveBack(bytes: number, stream?: Stream): void {
    const released = stream && this.#released.get(stream)
    const taken = Math.min(bytes, released?.taken ?? 0)
    if (stream !== undefined && released !== undefined) {
      released.taken -= taken
      released.free -= bytes - taken
      if (released.free === 0 && released.taken === 0) this.#released.delete(stream)
    }
    this.used -= bytes - taken
  }

  resetHigh(): void {
    this.usedHigh = this.used
    this.reservedHigh = this.reserved
  }
}

/** A completed operation. Times are in nanoseconds. */
export interface TimelineEntry {
  readonly deviceIndex: number
  readonly streamId: number
  readonly kind: OperationKind
  readonly bytes: number
  readonly start: number
  readonly end: number
}

/** The capabilities of a device. Bandwidths are in bytes per second, times in nanoseconds. */
export interface DeviceTraits {
  readonly memory: number
  readonly copyEngines: number
  readonly concurrentKernels: number
  readonly hostBandwidth: number
  readonly deviceBandwidth: number
  readonly peerBandwidth: number
  readonly copyLatency: number
  /** Default: `hostBandwidth`, which is that of uploads then. */
  readonly downloadBandwidth?: number | undefined
  /** Default: `deviceBandwidth`. */
  readonly fillBandwidth?: number | undefined
  readonly latencies?: Latencies | undefined
}

/** Fixed times of operations, in nanoseconds. */
export interface Latencies {
  /** Default of copies: `copyLatency`. Of the others: 0. */
  readonly upload?: number | undefined
  readonly download?: number | undefined
  readonly copy?: number | undefined
  readonly peerCopy?: number | undefined
  readonly fill?: number | undefined
  readonly kernel?: number | undefined
  /** Default: `kernel`. */
  readonly graphKernel?: number | undefined
  readonly timedRecord?: number | undefined
  readonly wait?: number | undefined
  /** Default: `wait`. */
  readonly waitAcrossEngines?: number | undefined
}

export class Device {
  readonly ordinal: number
  readonly traits: DeviceTraits
  /** False if copies and kernels only take time. */
  hasData = true
  readonly upload: Engine
  readonly download: Engine
  readonly compute: Engine
  readonly legacy: Stream
  readonly perThread: Stream
  /** An internal stream that orders releases of memory after the work that uses it. */
  readonly releases: Stream
  readonly streams = new Set<Stream>()
  readonly watchers = new Set<Watcher>()
  /** The devices of the same runtime, itself included. */
  siblings: ReadonlyArray<Device> = [this]
  group = new Group(false, undefined)
  /** The default pool. Keeps all unused memory. */
  readonly pool = new Pool(Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY)
  /** Managed memory. Keeps no unused memory. */
  readonly managed = new Pool(Number.POSITIVE_INFINITY, 0)
  /** Memory mapped at addresses of growable buffers. */
  readonly mapped = new Pool(Number.POSITIVE_INFINITY, 0)
  /** Memory reserved by all pools, in bytes. */
  usedMemory = 0
  /** Streams with stream-ordered releases since `gatherReleases` was last called. */
  readonly freedOn = new Set<Stream>()
  /** The completed operations, if they are recorded. */
  timeline: Array<TimelineEntry> | undefined
  /** 0, or the status of the fault that destroyed its context. */
  lost = 0

  constructor(ordinal: number, traits: DeviceTraits) {
    this.ordinal = ordinal
    this.traits = traits
    this.upload = new Engine("copy engine 0", 1)
    this.download = traits.copyEngines > 1 ? new Engine("copy engine 1", 1) : this.upload
    this.compute = new Engine("compute", traits.concurrentKernels)
    const priority = 0
    this.legacy = new Stream(this, { id: 0, handle: 1, priority, nonBlocking: false, legacy: true })
    this.perThread = new Stream(this, { id: 15, handle: 2, priority, nonBlocking: false })
    this.releases = new Stream(this, { id: -1, handle: 0, priority, nonBlocking: true })
    for (const stream of [this.legacy, this.perThread, this.releases]) this.streams.add(stream)
  }
}
