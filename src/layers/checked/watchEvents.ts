/**
 * Order: records, waits, synchronization and queries.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { CudaRuntimeService, EventRef, StreamRef } from "../CudaRuntime.ts"
import { evaluate, operation } from "../shared/operation.ts"
import { ownEvent } from "../shared/resources.ts"
import type { Where } from "./Checks.ts"
import { printWhere } from "./explain.ts"
import { lostRecord, neverRecorded } from "./reports.ts"
import { isBefore } from "./timelines.ts"
import type { Point, Timeline } from "./timelines.ts"
import type { Watched } from "./watch.ts"
import { after, isEnqueued } from "./Watcher.ts"
import type { Watcher } from "./Watcher.ts"

/** What is known of an event. */
interface EventState {
  /** The last record. */
  point: Point | undefined
  /** Whether anybody has waited for it. */
  isWaited: boolean
  where: Where | undefined
}

/** The events of a runtime. */
export class Events {
  readonly #states = new WeakMap<EventRef, EventState>()

  of(event: EventRef): EventState {
    const known = this.#states.get(event)
    if (known !== undefined) return known
    const made: EventState = { point: undefined, isWaited: false, where: undefined }
    this.#states.set(event, made)
    return made
  }
}

/** Events that other code may record, so that nobody knows what a wait for one is a wait for. */
const isRecordedByOthers = (event: EventRef, { point }: EventState): boolean => {
  const own = ownEvent(event)
  return own.isGivenOut || own.isForeign || (own.flags & interprocess) !== 0 ||
    (point === undefined && (own.recorded || own.inside !== undefined))
}

const interprocess = 4

const noPoints: ReadonlyArray<Point> = []

export const watchedEvents = (watcher: Watcher, inner: CudaRuntimeService, events: Events): Watched => {
  const { timelines } = watcher.checks
  const record = (event: EventRef, stream: StreamRef) => {
    const run = inner.eventRecord(event, stream)
    return isEnqueued(stream) && event?.state === "live" ? recordOn(watcher, events, event, stream, run) : run
  }
  const wait = (stream: StreamRef, event: EventRef) => {
    const run = inner.streamWaitEvent(stream, event)
    return isEnqueued(stream) && event?.state === "live" ? waitOn(watcher, events, stream, event, run) : run
  }
  /** What the host waits for with an event. Nobody knows what others recorded, so that counts as everything. */
  const known = (event: EventRef): ReadonlyArray<Point> => {
    const state = events.of(event)
    state.isWaited = true
    if (isRecordedByOthers(event, state)) return Array.from(timelines.live, (timeline) => timelines.pointOf(timeline))
    return state.point === undefined ? noPoints : [state.point]
  }
  const finish = (points: ReadonlyArray<Point>) => points.forEach((point) => timelines.finish(point))
  return {
    eventRecord: operation(record),
    streamWaitEvent: operation(wait),
    eventQuery: operation((event: EventRef) => {
      const points = event?.state === "live" ? known(event) : noPoints
      return after(inner.eventQuery(event), (isDone) => finish(isDone ? points : noPoints))
    }),
    eventSynchronize: (event) =>
      Effect.suspend(() => {
        const points = event?.state === "live" ? known(event) : noPoints
        const run = after(inner.eventSynchronize(event), () => finish(points))
        return event?.state === "live" && isNeverRecorded(events, event)
          ? refuseNever(watcher, "CudaEvent.synchronize", event, "the host", run)
          : run
      }),
    eventElapsedTime: (start, end) =>
      Effect.suspend(() => {
        const points = [start, end].flatMap((event) => event?.state === "live" ? known(event) : noPoints)
        return after(inner.eventElapsedTime(start, end), () => finish(points))
      }),
    ...watchedStreams(watcher, inner)
  }
}

const recordOn = (
  watcher: Watcher,
  events: Events,
  event: EventRef,
  stream: StreamRef,
  run: ReturnType<CudaRuntimeService["eventRecord"]>
): ReturnType<CudaRuntimeService["eventRecord"]> => {
  const { checks, options } = watcher
  const state = events.of(event)
  const timeline = checks.timelineOf(stream)
  const point = checks.timelines.pointOf(timeline)
  const { isWaited, point: before, where } = state
  state.point = point
  state.isWaited = false
  state.where = watcher.where
  timeline.recordedEvent = event
  timeline.recordedEpoch = point.epoch
  if (before === undefined || isWaited || !options.events || isBefore(before, timeline, point.known)) return run
  const report = lostRecord({
    operation: "CudaEvent.record",
    event: String(event),
    stream: timeline.name,
    frame: printWhere(state.where),
    before: printWhere(where),
    recordedOn: before.timeline.name
  })
  return ownEvent(event).isGivenOut ? run : watcher.meet("CudaEvent.record", stream.deviceIndex, [report], run)
}

const isNeverRecorded = (events: Events, event: EventRef): boolean => {
  const state = events.of(event)
  return state.point === undefined && !isRecordedByOthers(event, state)
}

const waitOn = (
  watcher: Watcher,
  events: Events,
  stream: StreamRef,
  event: EventRef,
  run: ReturnType<CudaRuntimeService["streamWaitEvent"]>
): ReturnType<CudaRuntimeService["streamWaitEvent"]> => {
  const { checks } = watcher
  const state = events.of(event)
  const timeline = checks.timelineOf(stream)
  state.isWaited = true
  if (isRecordedByOthers(event, state)) {
    watcher.unknown.foreignEvents++
    checks.timelines.waitForAll(timeline)
    return run
  }
  if (state.point === undefined) return refuseNever(watcher, "CudaStream.waitEvent", event, timeline.name, run)
  checks.timelines.wait(timeline, state.point)
  return run
}

const refuseNever = (
  watcher: Watcher,
  operation: string,
  event: EventRef,
  stream: string,
  run: ReturnType<CudaRuntimeService["streamWaitEvent"]>
) => {
  if (!watcher.options.events) return run
  const result = evaluate(run)
  if (Exit.isExit(result) && Exit.isFailure(result)) return result
  const report = neverRecorded({ operation, event: String(event), stream, frame: printWhere(watcher.where) })
  return watcher.meet(operation, event.deviceIndex, [report], result)
}

const watchedStreams = (watcher: Watcher, inner: CudaRuntimeService): Watched => {
  const { checks } = watcher
  const { timelines } = checks
  const waitFor = (stream: StreamRef, others: ReadonlyArray<StreamRef>) => {
    if (!isEnqueued(stream)) return
    const timeline = checks.timelineOf(stream)
    for (const other of others) {
      if (isEnqueued(other)) timelines.wait(timeline, timelines.pointOf(checks.timelineOf(other)))
    }
  }
  const pointOf = (stream: StreamRef): Point | undefined =>
    isEnqueued(stream) ? timelines.pointOf(checks.timelineOf(stream)) : undefined
  return {
    streamWaitStream: operation((stream: StreamRef, other: StreamRef) => {
      waitFor(stream, [other])
      return inner.streamWaitStream(stream, other)
    }),
    streamFork: operation((from: StreamRef, branches: ReadonlyArray<StreamRef>) => {
      for (const branch of branches) waitFor(branch, [from])
      return inner.streamFork(from, branches)
    }),
    streamJoin: operation((into: StreamRef, branches: ReadonlyArray<StreamRef>) => {
      waitFor(into, branches)
      return inner.streamJoin(into, branches)
    }),
    streamQuery: operation((stream: StreamRef) => {
      const point = pointOf(stream)
      return after(inner.streamQuery(stream), (isDone) => {
        if (isDone && point !== undefined) timelines.finish(point)
      })
    }),
    streamSynchronize: operation((stream: StreamRef) => {
      const point = pointOf(stream)
      return after(inner.streamSynchronize(stream), () => {
        if (point !== undefined) timelines.finish(point)
      })
    }),
    deviceSynchronize: (device) =>
      Effect.suspend(() => {
        const isOn = ({ deviceIndex, isForeign }: Timeline) => deviceIndex === device && !isForeign
        const points = Array.from(timelines.live).filter(isOn).map((timeline) => timelines.pointOf(timeline))
        return after(inner.deviceSynchronize(device), () => points.forEach((point) => timelines.finish(point)))
      })
  }
}
