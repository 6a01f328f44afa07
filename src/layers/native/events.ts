/**
 * Events on the driver.
 */
import { eventFlags } from "../../cuda/flags.ts"
import type { DriverFunctions } from "../../cuda/functions.ts"
import type { CUevent } from "../../cuda/handles.ts"
import { notReady, success } from "../../cuda/status.ts"
import type { WaitOptions } from "../CudaRuntime.ts"
import type { EventBackend } from "../shared/events.ts"
import type { EventResource, StreamResource } from "../shared/resources.ts"
import type { Cancel, OnDone } from "../shared/waits.ts"
import type { Completion } from "./Completion.ts"
import { NativeEvent, Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import { Lane, Point } from "./Lane.ts"
import { laneOf, nativeStream, policyOf } from "./streams.ts"

/** Narrows an event. All events of the native runtime are native. */
const nativeEvent = (event: EventResource): NativeEvent => event as NativeEvent

export class NativeEvents implements EventBackend {
  created: NativeEvent | undefined
  milliseconds = 0
  readonly #driver: Driver
  readonly #completion: Completion
  /** The newer version takes a third of the time. It may miss a fault, which the next call then reports. */
  readonly #elapsedTime: DriverFunctions["cuEventElapsedTime"]
  readonly #out = new Out<CUevent>()
  readonly #float = new Float32Array(1)
  /** Counts the records that are in no lane. */
  #unordered = 0

  constructor(driver: Driver, completion: Completion) {
    this.#driver = driver
    this.#completion = completion
    this.#elapsedTime = driver.calls.cuEventElapsedTime_v2 ?? driver.calls.cuEventElapsedTime
  }

  create(deviceIndex: number, flags: number): number {
    const kept = this.#driver.isLost ? undefined : this.#driver.device(deviceIndex).takeEvent(flags)
    if (kept !== undefined) {
      this.created = new NativeEvent(this.#driver.owner, { handle: kept, deviceIndex, flags })
      return success
    }
    const call = () => this.#driver.calls.cuEventCreate(this.#out.words, flags)
    return this.#adopt(this.#driver.inContextOf(deviceIndex, "cuEventCreate", call), deviceIndex, flags)
  }

  fromIpcHandle(deviceIndex: number, handle: Uint8Array): number {
    const call = () => this.#driver.calls.cuIpcOpenEventHandle(this.#out.words, handle)
    const status = this.#driver.inContextOf(deviceIndex, "cuIpcOpenEventHandle", call)
    const adopted = this.#adopt(status, deviceIndex, eventFlags.interprocess | eventFlags.disableTiming)
    if (adopted === success) this.created!.recorded = true
    return adopted
  }

  /** The driver cannot tell which device the event is of, nor its flags, but it can tell that the event can be used. */
  fromHandle(deviceIndex: number, number: number, flags: number): number {
    const handle = number as CUevent
    const status = this.#driver.answer("cuEventQuery", this.#driver.calls.cuEventQuery(handle))
    if (status !== success && status !== notReady) return status
    this.created = new NativeEvent(this.#driver.owner, { handle, deviceIndex, flags })
    this.created.isKnownDone = false
    return success
  }

  #adopt(status: number, deviceIndex: number, flags: number): number {
    if (status === success) {
      this.created = new NativeEvent(this.#driver.owner, { handle: this.#out.value, deviceIndex, flags })
    }
    return status
  }

  /**
   * If executable graphs record the event, the last of them destroys it, and if something waits for it, the last wait. An event that
   * is as good as new is kept, if there is room.
   */
  destroy(resource: EventResource): number {
    const event = nativeEvent(resource)
    if (event.holders > 0) return success
    if (event.point !== undefined) {
      const { calls, warn } = this.#driver
      event.point.release = () => warn("cuEventDestroy", calls.cuEventDestroy_v2(event.own), event.own)
      return success
    }
    const device = this.#driver.device(event.deviceIndex)
    if (event.isAsNew && device.hasRoomFor(event.flags)) {
      device.keepEvent(event.flags, event.own)
      return success
    }
    return this.#driver.answer("cuEventDestroy", this.#driver.calls.cuEventDestroy_v2(event.own))
  }

  /** Keeps events for an executable graph that records them, because a call for the graph may otherwise crash. */
  hold(events: ReadonlyArray<EventResource>): void {
    for (const event of events) nativeEvent(event).holders++
  }

  /** Destroys the events that were released meanwhile, unless other graphs record them. */
  letGo(events: ReadonlyArray<EventResource>): void {
    for (const event of events) {
      nativeEvent(event).holders--
      if (event.state === "released" && !event.isForeign) {
        this.#driver.warn("cuEventDestroy", this.destroy(event), event.own)
      }
    }
  }

  record(resource: EventResource, streamResource: StreamResource): number {
    const event = nativeEvent(resource)
    const stream = nativeStream(streamResource)
    const kept = this.beforeRecord(event)
    if (kept !== success) return kept
    const status = this.#driver.record(event.own, stream)
    if (status !== success) return status
    event.recordedOn = stream
    event.recordNumber = stream.records
    event.isKnownDone = false
    return success
  }

  /** To be called before an event is recorded again. */
  beforeRecord(resource: EventResource): number {
    const event = nativeEvent(resource)
    return event.point === undefined ? success : this.#keepRecord(event, event.point)
  }

  /**
   * Notes that a graph launched on a stream records an event. Graphs finish events in any order, so waits for them belong to the
   * stream's lane only if the event is the only one of its graph.
   */
  noteRecord(resource: EventResource, streamResource: StreamResource, isOnly: boolean): void {
    const event = nativeEvent(resource)
    const stream = nativeStream(streamResource)
    stream.records++
    event.recordedOn = isOnly ? stream : undefined
    event.recordNumber = isOnly ? stream.records : ++this.#unordered
    event.isKnownDone = false
  }

  /**
   * Keeps the waits for the current record alive when the event is recorded again: they wait for a marker after the
   * record.
   */
  #keepRecord(event: NativeEvent, point: Point): number {
    const { lane, order } = point
    const { calls } = this.#driver
    const device = this.#driver.device(lane.deviceIndex)
    const side = this.#completion.sideFor(lane, order)
    if (side === undefined) return this.#driver.madeBy(device)
    const marker = device.takeMarker()
    if (marker === undefined) return this.#driver.madeBy(device)
    const waited = calls.cuStreamWaitEvent(side.stream, event.own, 0)
    const status = waited === success ? calls.cuEventRecord(marker, side.stream) : waited
    if (status !== success) {
      device.giveMarker(marker)
      return this.#driver.answer(waited === success ? "cuEventRecord" : "cuStreamWaitEvent", status)
    }
    side.order = order
    point.event = marker
    point.release = () => device.giveMarker(marker)
    event.point = undefined
    return success
  }

  query(resource: EventResource): number {
    const event = nativeEvent(resource)
    const status = this.#driver.answer("cuEventQuery", this.#driver.calls.cuEventQuery(event.own))
    if (status === success) event.isKnownDone = true
    return status
  }

  elapsedTime(start: EventResource, end: EventResource): number {
    const status = this.#elapsedTime(this.#float, start.own, end.own)
    this.milliseconds = this.#float[0]!
    return this.#driver.answer("cuEventElapsedTime", status)
  }

  ipcHandle(event: EventResource, into: Uint8Array): number {
    const call = () => this.#driver.calls.cuIpcGetEventHandle(into, event.own)
    return this.#driver.inContextOf(event.deviceIndex, "cuIpcGetEventHandle", call)
  }

  watch(resource: EventResource, onDone: OnDone, options: WaitOptions = {}): Cancel {
    const event = nativeEvent(resource)
    event.point ??= pointOf(event)
    const { recordNumber, recordedOn } = event
    const policy = policyOf(options, (event.flags & eventFlags.blockingSync) !== 0)
    return this.#completion.watch(event.point, policy, (status, stage) => {
      const isCurrent = event.recordNumber === recordNumber && event.recordedOn === recordedOn
      if (status === success && isCurrent) event.isKnownDone = true
      onDone(status, stage)
    })
  }
}

/** The point of the waits for an event's record. An event that others may record has a separate lane. */
const pointOf = (event: NativeEvent): Point => {
  const stream = event.recordedOn
  const isShared = event.isForeign || (event.flags & eventFlags.interprocess) !== 0
  const lane = stream === undefined || isShared ? new Lane(event.deviceIndex, false) : laneOf(stream)
  return new Point(lane, event.recordNumber, event.own, () => {
    event.point = undefined
  })
}
