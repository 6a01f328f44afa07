/**
 * What the simulated devices are made of: streams, the operations in them, engines, and the records of events.
 */
import { Heap } from "./Heap.ts"

/** Thrown by what an operation does: ends the operation in a fault of this status. */
export class Fault extends Error {
  readonly status: number
  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** What an operation does. */
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

/** An operation of a stream, from when it is enqueued to when it is done. */
export class Operation {
  readonly kind: OperationKind
  readonly stream: Stream
  /** Nanoseconds it takes once started. */
  readonly duration: number
  readonly bytes: number
  /** What it runs on; nothing for records, waits and releases. */
  readonly engine: Engine | undefined
  /** What a record ends, or what a wait waits for. */
  readonly record: EventRecord | undefined
  /** What it does at its end. */
  readonly act: (() => void) | undefined
  /** The status its end leaves the device with: 0, or a fault. */
  readonly fault: number
  /** Kept out of the timeline: the runtime's own bookkeeping. */
  readonly internal: boolean
  next: Operation | undefined
  group: Group | undefined
  /** The operations on the other side of the legacy default stream that come first. */
  gate: Group | undefined
  /** Order of enqueueing, then of starting. */
  sequence = 0
  /** When it came to the head of its stream with nothing left to wait for; when it started; when it ends. */
  ready = 0
  start = 0
  end = 0
  state: "queued" | "ready" | "running" | "dropped" = "queued"

  constructor(fields: {
    readonly kind: OperationKind
    readonly stream: Stream
    readonly duration?: number
    readonly bytes?: number
    readonly engine?: Engine
    readonly record?: EventRecord
    readonly act?: () => void
    readonly fault?: number
    readonly internal?: boolean
  }) {
    this.kind = fields.kind
    this.stream = fields.stream
    this.duration = fields.duration ?? 0
    this.bytes = fields.bytes ?? 0
    this.engine = fields.engine
    this.record = fields.record
    this.act = fields.act
    this.fault = fields.fault ?? 0
    this.internal = fields.internal ?? false
  }
}

/**
 * Neighbours in a device's order around its legacy default stream: either operations of that stream, or operations of
 * the blocking streams. A group starts when the one before it is complete: what CUDA promises in both directions.
 */
export class Group {
  legacy: boolean
  gate: Group | undefined
  pending = 0
  /** True once an operation of the other side follows: no more will join. */
  closed = false
  readonly parked: Array<Stream> = []

  constructor(legacy: boolean, gate: Group | undefined) {
    this.legacy = legacy
    this.gate = gate
  }

  /** True once all of it is done, and with it all before it. */
  get complete(): boolean {
    return this.closed && this.pending === 0
  }
}

/** One record of an event. Recording the event again makes another one. */
export class EventRecord {
  /** The stream it was made on; forgotten once done. */
  stream: Stream | undefined
  readonly device: Device
  done = false
  /** When it was done, in nanoseconds. */
  time = 0
  /** Streams whose head waits for it. */
  parked: Array<Stream> | undefined
  watchers: Set<Watcher> | undefined

  constructor(stream: Stream) {
    this.stream = stream
    this.device = stream.device
  }
}

/** An event: what it was last recorded as. Shared by everything that opened it. */
export class EventState {
  current: EventRecord | undefined
}

/** Somebody who is told how a record ends. */
export class Watcher {
  readonly record: EventRecord
  readonly onDone: (status: number, stage?: "clock") => void
  /** Takes part in the order of time: told within the step that ends the record, not after it. */
  readonly internal: boolean
  readonly home: WatcherHome
  status: number | undefined
  /** Nobody waits any more. */
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

/** Where the watchers of one runtime are kept: those that wait, and those that were decided but not told yet. */
export interface WatcherHome {
  readonly waiting: Set<Watcher>
  readonly decided: Array<Watcher>
  /** Called when one is decided: somebody should tell it soon, but not within the call. */
  wake: () => void
}

/** A queue of operations, each started after the one before it is done. */
export class Stream {
  readonly device: Device
  readonly id: number
  readonly handle: number
  readonly priority: number
  readonly nonBlocking: boolean
  readonly legacy: boolean
  head: Operation | undefined
  tail: Operation | undefined
  /** Its work goes on, but no more comes. */
  destroyed = false

  constructor(
    device: Device,
    fields: Pick<Stream, "id" | "handle" | "priority" | "nonBlocking"> & { readonly legacy?: boolean }
  ) {
    this.device = device
    this.id = fields.id
    this.handle = fields.handle
    this.priority = fields.priority
    this.nonBlocking = fields.nonBlocking
    this.legacy = fields.legacy ?? false
  }

  /** True while a query of it answers "not ready": the legacy default stream speaks for the blocking streams too. */
  get busy(): boolean {
    return this.legacy ? this.device.group.pending > 0 : this.head !== undefined
  }

  /** True when an operation enqueued now has nothing of this stream's order to wait for. */
  get idle(): boolean {
    if (this.tail !== undefined) return false
    if (this.nonBlocking) return true
    const { group } = this.device
    return group.pending === 0 || (group.legacy === this.legacy && group.gate?.complete !== false)
  }

  toString(): string {
    if (this.legacy) return `the legacy default stream of device ${this.device.ordinal}`
    return `stream ${this.id} of device ${this.device.ordinal}`
  }
}

/** Something that runs a bounded number of operations at once. */
export class Engine {
  readonly name: string
  readonly slots: number
  busy = 0
  /** Asked to start what it can at the end of the present step. */
  dirty = false
  readonly queue = new Heap<Operation>(goesFirst)

  constructor(name: string, slots: number) {
    this.name = name
    this.slots = slots
  }
}

/** The higher priority, then the earlier ready, then the earlier enqueued. */
const goesFirst = (a: Operation, b: Operation): boolean => {
  if (a.stream.priority !== b.stream.priority) return a.stream.priority < b.stream.priority
  return a.ready === b.ready ? a.sequence < b.sequence : a.ready < b.ready
}

/** Bytes that were released among the work of a stream: what that stream may take already, and what it has taken. */
interface Released {
  free: number
  taken: number
}

/** A pool of device memory: what it holds, and how much of that is in use. */
export class Pool {
  readonly most: number
  /** How many unused bytes it keeps. */
  threshold: number
  /** What is released counts as used until the release is done. */
  used = 0
  usedHigh = 0
  reserved = 0
  reservedHigh = 0
  readonly #released = new Map<Stream, Released>()

  constructor(most: number, threshold: number) {
    this.most = most
    this.threshold = threshold
  }

  /** Bytes of an allocation that are not those of an earlier release on its stream. */
  fresh(bytes: number, stream: Stream | undefined): number {
    const released = stream && this.#released.get(stream)
    return bytes - Math.min(bytes, released?.free ?? 0)
  }

  /** Bytes that the pool lacks for so many fresh ones. */
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

  /** Notes a release that was enqueued on a stream, for the allocations that follow there. */
  releaseOn(stream: Stream, bytes: number): void {
    const released = this.#released.get(stream)
    if (released === undefined) this.#released.set(stream, { free: bytes, taken: 0 })
    else released.free += bytes
  }

  /** A release is done. Of one on a stream, what the stream has taken already stays in use. */
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

/** An operation that is done. Times are in nanoseconds. */
export interface TimelineEntry {
  readonly deviceIndex: number
  readonly streamId: number
  readonly kind: OperationKind
  readonly bytes: number
  readonly start: number
  readonly end: number
}

/** What a device can do. Bandwidths are in bytes per second, times in nanoseconds. */
export interface DeviceTraits {
  readonly memory: number
  readonly copyEngines: number
  readonly concurrentKernels: number
  readonly hostBandwidth: number
  readonly deviceBandwidth: number
  readonly peerBandwidth: number
  readonly copyLatency: number
}

export class Device {
  readonly ordinal: number
  readonly traits: DeviceTraits
  readonly upload: Engine
  readonly download: Engine
  readonly compute: Engine
  readonly legacy: Stream
  readonly perThread: Stream
  /** Orders the release of memory after the work that uses it. */
  readonly releases: Stream
  readonly streams = new Set<Stream>()
  readonly watchers = new Set<Watcher>()
  /** The devices of the same runtime, itself included. */
  siblings: ReadonlyArray<Device> = [this]
  group = new Group(false, undefined)
  /** What memory comes from by itself. It keeps what is unused, as long as nothing else needs it. */
  readonly pool = new Pool(Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY)
  /** Managed memory, of which none is kept. */
  readonly managed = new Pool(Number.POSITIVE_INFINITY, 0)
  /** Memory that pools hold. */
  usedMemory = 0
  /** The streams on which memory was released that was allocated there, since the releases were last waited for. */
  readonly freedOn = new Set<Stream>()
  /** What was done when, for those who keep it. */
  timeline: Array<TimelineEntry> | undefined
  /** 0, or the fault that ended its context. */
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
