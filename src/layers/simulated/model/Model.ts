/**
 * The simulated devices of one runtime, as plain functions over a `World`: what is made, enqueued, watched and lost.
 *
 * Nothing here knows Effect. Whoever calls lets time pass first (`world.advance`), and looks at `lost` where a fault
 * must be answered.
 */
import type { RowsTransfer } from "../../shared/copies.ts"
import { neverFinishes } from "../../shared/waits.ts"
import { Device, EventRecord, Operation, Stream } from "./parts.ts"
import type { DeviceTraits, EventState, OperationKind, Pool, TimelineEntry, Watcher, WatcherHome } from "./parts.ts"
import type { Storage } from "./Storage.ts"
import { decide } from "./World.ts"
import type { World } from "./World.ts"

/** Fake addresses of handles start here, those of memory far above. */
const firstHandle = 2 ** 20
const firstAddress = 2 ** 40

/** The first id of a stream that is no default one. */
const firstStreamId = 16

export class Model implements WatcherHome {
  readonly world: World
  readonly devices: ReadonlyArray<Device>
  readonly waiting = new Set<Watcher>()
  readonly decided: Array<Watcher> = []
  readonly timeline: Array<TimelineEntry> | undefined
  wake: () => void = () => {}
  usedHostMemory = 0
  readonly #streams = new Map<number, Stream>()
  #nextHandle = firstHandle
  #nextAddress = firstAddress
  #nextStreamId = firstStreamId
  #telling = false

  constructor(world: World, devices: ReadonlyArray<DeviceTraits>, recordTimeline = false) {
    this.world = world
    this.timeline = recordTimeline ? [] : undefined
    this.devices = devices.map((traits, ordinal) => new Device(ordinal, traits))
    for (const device of this.devices) {
      device.timeline = this.timeline
      device.siblings = this.devices
    }
  }

  /** An address that stands for an object of the driver, of the kind that is asked for. */
  makeHandle<Handle extends number>(): Handle {
    const handle = this.#nextHandle
    this.#nextHandle += 16
    return handle as Handle
  }

  /** An address with room for so many bytes, aligned like an allocation of the driver. */
  makeAddress(byteLength: number): number {
    const address = this.#nextAddress
    this.#nextAddress += Math.ceil(byteLength / 256) * 256
    return address
  }

  createStream(device: Device, priority: number, nonBlocking: boolean): Stream {
    const stream = new Stream(device, { id: this.#nextStreamId++, handle: this.makeHandle(), priority, nonBlocking })
    device.streams.add(stream)
    this.#streams.set(stream.handle, stream)
    return stream
  }

  /** The stream of a handle, on whichever device; 0 means the device's legacy default stream, as in C. */
  findStream(device: Device, handle: number): Stream | undefined {
    if (handle <= device.legacy.handle) return device.legacy
    return handle === device.perThread.handle ? device.perThread : this.#streams.get(handle)
  }

  /** Ends the handle; work that is pending goes on. */
  destroyStream(stream: Stream): void {
    stream.destroyed = true
    this.#streams.delete(stream.handle)
    if (stream.head !== undefined) return
    stream.device.streams.delete(stream)
    stream.device.freedOn.delete(stream)
  }

  record(event: EventState, stream: Stream): void {
    event.current = this.world.record(stream, false)
  }

  waitEvent(stream: Stream, event: EventState): void {
    if (event.current !== undefined) this.world.wait(stream, event.current, false)
  }

  /** What is enqueued on the branches from now on starts after what a stream holds now. */
  fork(from: Stream, branches: ReadonlyArray<Stream>): void {
    const point = this.world.record(from, false)
    for (const branch of branches) this.world.wait(branch, point, false)
  }

  copy(stream: Stream, to: Storage, toOffset: number, from: Storage, fromOffset: number, bytes: number): void {
    this.#move(stream, to, from, bytes, () => {
      to.touch().set(from.touch().subarray(fromOffset, fromOffset + bytes), toOffset)
    })
  }

  copyRows(stream: Stream, to: Storage, from: Storage, rows: Rows): void {
    this.#move(stream, to, from, rows.width * rows.height, () => moveRows(to.touch(), from.touch(), rows))
  }

  /** A copy of so many bytes, which takes memory of the process already when it is enqueued. */
  #move(stream: Stream, to: Storage, from: Storage, bytes: number, act: () => void): void {
    const kind = copyKind(to, from)
    const { traits } = stream.device
    const engine = engineOf(stream.device, kind)
    const duration = traits.copyLatency + transferTime(bytes, bandwidthOf(stream.device, kind))
    to.touch()
    from.touch()
    this.world.enqueue(new Operation({ kind, stream, bytes, engine, duration, act }))
  }

  /** Moves pages: what that takes, since every byte is everywhere anyway. */
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

  /** An allocation among the work of a stream. */
  allocation(stream: Stream, bytes: number): void {
    this.world.enqueue(new Operation({ kind: "allocate", stream, bytes }))
  }

  fill(stream: Stream, to: Storage, offset: number, value: number, bits: 8 | 16 | 32, count: number): void {
    const { compute, traits } = stream.device
    const bytes = count * (bits / 8)
    to.touch()
    this.world.enqueue(
      new Operation({
        kind: "fill",
        stream,
        bytes,
        engine: compute,
        duration: transferTime(bytes, traits.deviceBandwidth),
        act: () => fillBytes(to.touch(), offset, value, bits, count)
      })
    )
  }

  /** Work of a duration in nanoseconds; infinite for work that hangs. */
  work(stream: Stream, work: { readonly duration: number; readonly act?: () => void; readonly fault?: number }): void {
    this.world.enqueue(new Operation({ kind: "work", stream, engine: stream.device.compute, ...work }))
  }

  /** Counts an allocation; false when it does not fit. */
  reserve(device: Device, pool: Pool, byteLength: number, stream?: Stream): boolean {
    const fresh = pool.fresh(byteLength, stream)
    const missing = pool.missing(fresh)
    if (pool.used + fresh > pool.most || device.usedMemory + missing > device.traits.memory) return false
    device.usedMemory += missing
    pool.take(byteLength, stream)
    return true
  }

  /** Gives back what a pool holds and does not use, beyond some bytes. */
  trim(device: Device, pool: Pool, keep: number): void {
    const reserved = Math.max(pool.used, Math.min(pool.reserved, keep))
    device.usedMemory -= pool.reserved - reserved
    pool.reserved = reserved
  }

  /** The pool keeps nothing any more; what is allocated goes back when it is released. */
  dropPool(device: Device, pool: Pool): void {
    pool.threshold = 0
    this.trim(device, pool, 0)
  }

  /** Gives device memory back once the work enqueued on its users is done, and every release before this one. */
  release(device: Device, storage: Storage, users: ReadonlyArray<Stream>): void {
    const { releases } = device
    const unused = new EventRecord(releases)
    this.#afterUsers(users, () => this.world.finishRecord(unused))
    this.world.wait(releases, unused, true)
    const act = () => this.#giveBack(device, storage)
    this.world.enqueue(new Operation({ kind: "release", stream: releases, bytes: storage.byteLength, act }))
  }

  /** Gives device memory back among the work of the stream that it was allocated on. */
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

  /** Has the device's releases come after those that streams hold. */
  gatherReleases(device: Device): void {
    for (const stream of device.freedOn) this.world.wait(device.releases, this.world.record(stream, true), true)
    device.freedOn.clear()
  }

  /** Gives host memory back once the work enqueued on its users is done. */
  releaseHost(storage: Storage, users: ReadonlyArray<Stream>): void {
    this.#afterUsers(users, () => {
      this.usedHostMemory -= storage.byteLength
      storage.drop()
    })
  }

  /** Runs when what the streams hold now is done, or can never run because its device is lost. */
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

  /** Watches what a stream holds now. */
  watchStream(stream: Stream, onDone: (status: number) => void): Watcher | undefined {
    return this.watchRecord(this.world.record(stream, true), onDone)
  }

  /** Tells at once about a record that is decided. */
  watchRecord(record: EventRecord, onDone: (status: number) => void): Watcher | undefined {
    if (!record.done && record.device.lost === 0) return this.world.watch(record, this, false, onDone)
    onDone(record.done ? 0 : record.device.lost)
    return undefined
  }

  /** Decides the waits that can never end: those left when nothing runs that could end. */
  decideHopeless(): void {
    if (this.waiting.size === 0 || this.world.nextTime() !== Infinity) return
    for (const watcher of this.waiting) decide(watcher, neverFinishes)
  }

  /** Tells those who wait, in order; `because` comes first where a wait never ends. */
  tell(because: (text: string) => void): void {
    if (this.#telling) return
    this.#telling = true
    for (let index = 0; index < this.decided.length; index++) {
      const watcher = this.decided[index]!
      if (watcher.cancelled) continue
      if (watcher.status === neverFinishes) because(becauseOf(watcher.record))
      watcher.onDone(watcher.status ?? 0, "clock")
    }
    this.decided.length = 0
    this.#telling = false
  }

  /** Drops everything that is pending. */
  close(status: number): void {
    for (const device of this.devices) this.world.lose(device, status)
    this.waiting.clear()
    this.decided.length = 0
    this.#streams.clear()
  }
}

/** Why a record that is not done will never be. */
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
  if (head.state === "running") {
    if (head.end === Infinity) return `work on ${stream} never ends`
    return `${stream} waits for ${head.engine?.name} of device ${stream.device.ordinal}, held by work that never ends`
  }
  if (head.kind === "wait" && head.state === "ready") return holdOfWait(stream, head.record!, seen)
  const first = [...stream.device.streams].find((other) => other.head !== undefined && other.head.group === head.gate)
  const order = `${stream} comes after earlier work, by the order of the legacy default stream`
  return first === undefined ? order : `${order}, and ${holdOf(first, seen)}`
}

const holdOfWait = (stream: Stream, record: EventRecord, seen: Set<Stream>): string => {
  const waits = `${stream} waits for an event recorded on ${record.stream}`
  if (record.device.lost !== 0) return `${waits}, whose device has lost its context`
  return record.stream === undefined ? waits : `${waits}, and ${holdOf(record.stream, seen)}`
}

const copyKind = (to: Storage, from: Storage): OperationKind => {
  if (from.device === undefined) return "hostToDevice"
  if (to.device === undefined) return "deviceToHost"
  return to.device === from.device ? "deviceToDevice" : "peerToPeer"
}

const engineOf = (device: Device, kind: OperationKind) => {
  if (kind === "deviceToDevice") return device.compute
  return kind === "deviceToHost" ? device.download : device.upload
}

const bandwidthOf = (device: Device, kind: OperationKind): number => {
  const { deviceBandwidth, hostBandwidth, peerBandwidth } = device.traits
  if (kind === "deviceToDevice") return deviceBandwidth
  return kind === "peerToPeer" ? peerBandwidth : hostBandwidth
}

/** Whole nanoseconds, so that times are exact. */
const transferTime = (bytes: number, bandwidth: number): number => Math.ceil((bytes / bandwidth) * 1e9)

type Rows = Pick<RowsTransfer, "toOffset" | "toPitch" | "fromOffset" | "fromPitch" | "width" | "height">

const moveRows = (to: Uint8Array, from: Uint8Array, rows: Rows): void => {
  for (let row = 0; row < rows.height; row++) {
    const start = rows.fromOffset + row * rows.fromPitch
    to.set(from.subarray(start, start + rows.width), rows.toOffset + row * rows.toPitch)
  }
}

const fillBytes = (bytes: Uint8Array, offset: number, value: number, bits: 8 | 16 | 32, count: number): void => {
  if (bits === 8) bytes.fill(value, offset, offset + count)
  else if (bits === 16) new Uint16Array(bytes.buffer, offset, count).fill(value)
  else new Uint32Array(bytes.buffer, offset, count).fill(value)
}
