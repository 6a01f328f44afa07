/**
 * The simulated devices of one runtime: creates objects, enqueues operations, and watches records, as plain functions over a
 * `World`.
 *
 * Does not depend on Effect. Callers first advance time (`world.advance`), and check `lost` where a fault must be reported.
 */
import { neverFinishes } from "../../shared/waits.ts"
import { CopyMove, FillMove, RowsMove } from "./moves.ts"
import type { Move, Rows } from "./moves.ts"
import { Device, EventRecord, Operation, Stream } from "./parts.ts"
import type {
  DeviceTraits,
  Engine,
  EventState,
  OperationKind,
  Pool,
  TimelineEntry,
  Watcher,
  WatcherHome
} from "./parts.ts"
import type { Storage } from "./Storage.ts"
import { decide } from "./World.ts"
import type { World } from "./World.ts"

/** Handles are fake addresses from here on. Memory has addresses far above. */
const firstHandle = 2 ** 20
const firstAddress = 2 ** 40

/** The first id of a stream other than the default streams. */
const firstStreamId = 16

/** Work that is not a copy. The duration is in nanoseconds; infinite for work that hangs. */
export interface ModelWork {
  readonly duration: number
  /** Nanoseconds before it starts, in addition to the duration. */
  readonly lead?: number
  readonly act?: () => void
  readonly fault?: number
  readonly priority?: number
  /** Where it runs. Default: where the stream's work runs. */
  readonly engine?: Engine
}

export class Model implements WatcherHome {
  readonly world: World
  readonly devices: ReadonlyArray<Device>
  readonly waiting = new Set<Watcher>()
  readonly decided: Array<Watcher> = []
  readonly timeline: Array<TimelineEntry> | undefined
  wake: () => void = () => {}
  /** Bytes per second of copies between two devices. */
  linkBandwidth: ((from: number, to: number) => number) | undefined
  usedHostMemory = 0
  /** False if copies and kernels only take time. */
  readonly hasData: boolean
  readonly #streams = new Map<number, Stream>()
  #nextHandle = firstHandle
  #nextAddress = firstAddress
  #nextStreamId = firstStreamId
  #telling = false
  /** How many of the decided waits have been told. */
  #told = 0

  constructor(world: World, devices: ReadonlyArray<DeviceTraits>, recordTimeline = false, hasData = true) {
    this.world = world
    this.hasData = hasData
    this.timeline = recordTimeline ? [] : undefined
    this.devices = devices.map((traits, ordinal) => new Device(ordinal, traits))
    for (const device of this.devices) {
      device.timeline = this.timeline
      device.siblings = this.devices
      device.hasData = hasData
    }
  }

  /** A fake address as the handle of a driver object. */
  makeHandle<Handle extends number>(): Handle {
    const handle = this.#nextHandle
    this.#nextHandle += 16
    return handle as Handle
  }

  /** A fake address for an allocation, aligned as the driver aligns them. */
  makeAddress(byteLength: number): number {
    const address = this.#nextAddress
    this.#nextAddress += Math.ceil(byteLength / 256) * 256
    return address
  }

  createStream(device: Device, priority: number, nonBlocking: boolean, compute?: Engine): Stream {
    const fields = { id: this.#nextStreamId++, handle: this.makeHandle<number>(), priority, nonBlocking, compute }
    const stream = new Stream(device, fields)
    device.streams.add(stream)
    this.#streams.set(stream.handle, stream)
    return stream
  }

  /** Creates a stream without a handle, whose work counts as work of another stream. Ended with `destroyStream`. */
  createBranch(of: Stream): Stream {
    const { compute, device, id, priority } = of
    const branch = new Stream(device, { id, handle: 0, priority, nonBlocking: true, branchOf: of, compute })
    device.streams.add(branch)
    return branch
  }

  /** Finds a stream by its handle, on any device. 0 and 1 are the given device's legacy default stream, as in C. */
  findStream(device: Device, handle: number): Stream | undefined {
    if (handle <= device.legacy.handle) return device.legacy
    return handle === device.perThread.handle ? device.perThread : this.#streams.get(handle)
  }

  /** Destroys the handle. Pending work continues. */
  destroyStream(stream: Stream): void {
    stream.destroyed = true
    this.#streams.delete(stream.handle)
    if (stream.head !== undefined) return
    stream.device.streams.delete(stream)
    stream.device.freedOn.delete(stream)
  }

  record(event: EventState, stream: Stream, hasTiming = false): void {
    const { latencies } = stream.device.traits
    event.current = this.world.record(stream, false, hasTiming ? latencies?.timedRecord : 0)
  }

  waitEvent(stream: Stream, event: EventState): void {
    if (event.current !== undefined) this.world.wait(stream, event.current, false)
  }

  /** Makes later work on the branches start after the work that a stream holds now. */
  fork(from: Stream, branches: ReadonlyArray<Stream>): void {
    const point = this.world.record(from, false)
    for (const branch of branches) this.world.wait(branch, point, false)
  }

  copy(stream: Stream, to: Storage, toOffset: number, from: Storage, fromOffset: number, bytes: number): void {
    this.#move(stream, to, from, bytes, new CopyMove(to, toOffset, from, fromOffset, bytes))
  }

  copyRows(stream: Stream, to: Storage, from: Storage, rows: Rows): void {
    this.#move(stream, to, from, rows.width * rows.height, new RowsMove(to, from, rows))
  }

  /** Enqueues a copy. Allocates the memory of the process immediately, so that running the copy cannot fail. */
  #move(stream: Stream, to: Storage, from: Storage, bytes: number, move: Move): void {
    const kind = copyKind(to, from)
    const engine = engineOf(stream, kind)
    const bandwidth = kind === "peerToPeer"
      ? this.linkBandwidth?.(from.device!.ordinal, to.device!.ordinal)
      : undefined
    const duration = copyLatency(stream.device, kind) +
      transferTime(bytes, bandwidth ?? bandwidthOf(stream.device, kind))
    const data = this.#prepare(move, to, from)
    this.world.enqueue(new Operation({ kind, stream, bytes, engine, duration, ...data }))
  }

  /** Allocates the memory of the process, unless the devices have no data. */
  #prepare(move: Move, ...memory: ReadonlyArray<Storage>): { readonly move?: Move } {
    if (!this.hasData) return {}
    for (const storage of memory) storage.touch()
    return { move }
  }

  /** Enqueues a prefetch, which only takes time, because the host and all devices share the bytes. */
  prefetch(stream: Stream, bytes: number, toHost: boolean): void {
    const { device } = stream
    this.world.enqueue(
      new Operation({
        kind: "prefetch",
        stream,
        bytes,
        engine: toHost ? device.download : device.upload,
        duration: device.traits.copyLatency + transferTime(bytes, device.traits.hostBandwidth)
      })
    )
  }

  /** Enqueues a stream-ordered allocation. */
  allocation(stream: Stream, bytes: number): void {
    this.world.enqueue(new Operation({ kind: "allocate", stream, bytes }))
  }

  fill(stream: Stream, to: Storage, offset: number, value: number, bits: 8 | 16 | 32, count: number): void {
    const { traits } = stream.device
    const bytes = count * (bits / 8)
    const bandwidth = traits.fillBandwidth ?? traits.deviceBandwidth
    this.world.enqueue(
      new Operation({
        kind: "fill",
        stream,
        bytes,
        engine: stream.compute ?? stream.device.compute,
        duration: (traits.latencies?.fill ?? 0) + transferTime(bytes, bandwidth),
        ...this.#prepare(new FillMove(to, offset, value, bits, count), to)
      })
    )
  }

  /** Enqueues work. */
  work(stream: Stream, work: ModelWork): void {
    this.world.enqueue(
      new Operation({ kind: "work", stream, engine: stream.compute ?? stream.device.compute, ...work })
    )
  }

  /**
   * Enqueues work that may go on after its time: `act` returns what it then waits for, and is given the function that ends it, to be
   * called later.
   */
  workUntil(stream: Stream, duration: number, act: (end: () => void) => string | undefined): void {
    const operation = new Operation({
      kind: "work",
      stream,
      engine: stream.device.compute,
      duration,
      act: () => {
        operation.heldFor = act(() => this.world.end(operation))
      }
    })
    this.world.enqueue(operation)
  }

  /** Reserves memory for an allocation. Returns false if it does not fit. */
  reserve(device: Device, pool: Pool, byteLength: number, stream?: Stream): boolean {
    const fresh = pool.fresh(byteLength, stream)
    const missing = pool.missing(fresh)
    if (pool.used + fresh > pool.most || device.usedMemory + missing > device.traits.memory) return false
    device.usedMemory += missing
    pool.take(byteLength, stream)
    return true
  }

  /** Returns mapped memory to the device at once. */
  returnMapped(device: Device, byteLength: number): void {
    device.mapped.giveBack(byteLength)
    this.trim(device, device.mapped, 0)
  }

  /** Returns a pool's unused memory to the device, until it holds at most `keep` bytes. */
  trim(device: Device, pool: Pool, keep: number): void {
    const reserved = Math.max(pool.used, Math.min(pool.reserved, keep))
    device.usedMemory -= pool.reserved - reserved
    pool.reserved = reserved
  }

  /** Destroys a pool: returns its unused memory now, and allocated memory when it is released. */
  dropPool(device: Device, pool: Pool): void {
    pool.threshold = 0
    this.trim(device, pool, 0)
  }

  /** Frees device memory after the work enqueued on its users, and after all earlier releases. */
  release(device: Device, storage: Storage, users: ReadonlyArray<Stream>): void {
    const { releases } = device
    const unused = new EventRecord(releases)
    this.#afterUsers(users, () => this.world.finishRecord(unused))
    this.world.wait(releases, unused, true)
    const act = () => this.#giveBack(device, storage)
    this.world.enqueue(new Operation({ kind: "release", stream: releases, bytes: storage.byteLength, act }))
  }

  /** Returns mapped memory after the work enqueued on its users. */
  releaseMapped(device: Device, storage: Storage, byteLength: number, users: ReadonlyArray<Stream>): void {
    const { releases } = device
    const unused = new EventRecord(releases)
    this.#afterUsers(users, () => this.world.finishRecord(unused))
    this.world.wait(releases, unused, true)
    const act = () => {
      this.returnMapped(device, byteLength)
      storage.drop()
    }
    this.world.enqueue(new Operation({ kind: "release", stream: releases, bytes: byteLength, act }))
  }

  /** Frees device memory in the order of the stream that it was allocated on. */
  releaseOn(device: Device, storage: Storage, stream: Stream): void {
    device.freedOn.add(stream)
    storage.pool?.releaseOn(stream, storage.byteLength)
    const act = () => this.#giveBack(device, storage, stream)
    this.world.enqueue(new Operation({ kind: "release", stream, bytes: storage.byteLength, act }))
  }

  #giveBack(device: Device, storage: Storage, stream?: Stream): void {
    const { pool } = storage
    pool?.giveBack(storage.byteLength, stream)
    if (pool !== undefined && pool.reserved > pool.threshold) this.trim(device, pool, pool.threshold)
    storage.drop()
  }

  /** Makes later releases of the device wait for the stream-ordered releases so far. */
  gatherReleases(device: Device): void {
    for (const stream of device.freedOn) this.world.wait(device.releases, this.world.record(stream, true), true)
    device.freedOn.clear()
  }

  /** Frees host memory after the work enqueued on its users. */
  releaseHost(storage: Storage, users: ReadonlyArray<Stream>): void {
    this.#afterUsers(users, () => {
      this.usedHostMemory -= storage.byteLength
      storage.drop()
    })
  }

  /** Calls `run` when the current work of the streams has ended, or can never run because its device is lost. */
  #afterUsers(users: ReadonlyArray<Stream>, run: () => void): void {
    const busy = users.filter((stream) => stream.device.lost === 0 && !stream.idle)
    let remaining = busy.length
    if (remaining === 0) return run()
    for (const stream of busy) {
      this.world.watch(this.world.record(stream, true), this, true, () => {
        if (--remaining === 0) run()
      })
    }
  }

  /** Watches the current work of a stream. */
  watchStream(stream: Stream, onDone: (status: number) => void): Watcher | undefined {
    return this.watchRecord(this.world.record(stream, true), onDone)
  }

  /** Watches a record. Reports immediately if it is complete or its device is lost. */
  watchRecord(record: EventRecord, onDone: (status: number) => void): Watcher | undefined {
    if (!record.done && record.device.lost === 0) return this.world.watch(record, this, false, onDone)
    onDone(record.done ? 0 : record.device.lost)
    return undefined
  }

  /** Ends the waits that can never finish: those pending while no running operation will end. */
  decideHopeless(): void {
    if (this.waiting.size === 0 || this.world.nextTime() !== Infinity || this.world.isHolding) return
    for (const watcher of this.waiting) decide(watcher, neverFinishes)
  }

  /**
   * Calls the watchers of decided waits, in order. Calls `because` first for a wait that can never end. A watcher can run code that ends
   * the runtime, which then tells the others before it goes on (`settling`).
   */
  tell(because: (text: string) => void, settling = false): void {
    if (this.#telling && !settling) return
    this.#telling = true
    while (this.#told < this.decided.length) {
      const watcher = this.decided[this.#told++]!
      if (watcher.cancelled) continue
      if (watcher.status === neverFinishes) because(becauseOf(watcher.record))
      watcher.onDone(watcher.status ?? 0, "clock")
    }
    this.decided.length = 0
    this.#told = 0
    this.#telling = false
  }

  /** Drops all pending work. */
  close(status: number): void {
    for (const device of this.devices) this.world.lose(device, status)
    this.waiting.clear()
    this.decided.length = 0
    this.#streams.clear()
  }
}

/** Explains why an incomplete record will never complete. */
export const becauseOf = (record: EventRecord): string => {
  const { stream } = record
  if (record.done || stream === undefined) return "nothing holds it back"
  if (record.device.lost !== 0) return `device ${record.device.ordinal} has lost its context`
  return holdOf(stream, new Set())
}

const holdOf = (stream: Stream, seen: Set<Stream>): string => {
  const { head } = stream
  if (head === undefined || seen.has(stream)) return `${stream} waits for itself`
  seen.add(stream)
  if (head.heldFor !== undefined) return `${stream} waits for ${head.heldFor}`
  if (head.state === "running") {
    if (head.end === Infinity) return `work on ${stream} never ends`
    return `${stream} waits for ${head.engine?.name} of device ${stream.device.ordinal}, held by work that never ends`
  }
  if (head.kind === "wait" && head.state === "ready") return holdOfWait(head, head.record!, seen)
  const first = [...stream.device.streams].find((other) => other.head !== undefined && other.head.group === head.gate)
  const order = `${stream} comes after earlier work, by the order of the legacy default stream`
  return first === undefined ? order : `${order}, and ${holdOf(first, seen)}`
}

const holdOfWait = ({ internal, stream }: Operation, record: EventRecord, seen: Set<Stream>): string => {
  const waits = `${stream} waits for ${internal ? "" : "an event recorded on "}${record.stream}`
  if (record.device.lost !== 0) return `${waits}, whose device has lost its context`
  return record.stream === undefined ? waits : `${waits}, and ${holdOf(record.stream, seen)}`
}

const copyKind = (to: Storage, from: Storage): OperationKind => {
  if (from.device === undefined) return "hostToDevice"
  if (to.device === undefined) return "deviceToHost"
  return to.device === from.device ? "deviceToDevice" : "peerToPeer"
}

const engineOf = ({ compute, device }: Stream, kind: OperationKind) => {
  if (kind === "deviceToDevice") return compute ?? device.compute
  return kind === "deviceToHost" ? device.download : device.upload
}

const bandwidthOf = (device: Device, kind: OperationKind): number => {
  const { deviceBandwidth, downloadBandwidth, hostBandwidth, peerBandwidth } = device.traits
  if (kind === "deviceToDevice") return deviceBandwidth
  if (kind === "deviceToHost") return downloadBandwidth ?? hostBandwidth
  return kind === "peerToPeer" ? peerBandwidth : hostBandwidth
}

const copyLatency = ({ traits }: Device, kind: OperationKind): number => {
  const { copy, download, peerCopy, upload } = traits.latencies ?? {}
  const own = kind === "hostToDevice"
    ? upload
    : kind === "deviceToHost"
    ? download
    : kind === "peerToPeer"
    ? peerCopy
    : copy
  return own ?? traits.copyLatency
}

/** Whole nanoseconds, so that times are exact. */
export const transferTime = (bytes: number, bandwidth: number): number => Math.ceil((bytes / bandwidth) * 1e9)
