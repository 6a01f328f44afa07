/**
 * A timeline as trace events, the format of Chrome's tracing that Perfetto opens too.
 */
import { deviceLabel, layTracks } from "./tracks.ts"
import type { Attributes, Bar, DrawnTimeline } from "./tracks.ts"

interface TraceEvent {
  readonly ph: "M" | "X"
  readonly name: string
  readonly pid: number
  readonly tid?: number
  readonly cat?: string
  /** Microseconds, as `dur`. */
  readonly ts?: number
  readonly dur?: number
  readonly args: Attributes
}

/** Processes are devices and threads are tracks, both from 1: viewers take process 0 and thread 0 for the idle ones. */
export const traceEvents = (timeline: DrawnTimeline): ReadonlyArray<TraceEvent> => {
  const events: Array<TraceEvent> = []
  const named = new Set<number>()
  for (const [index, { bars, deviceIndex, name }] of layTracks(timeline).entries()) {
    const [pid, tid] = [deviceIndex + 1, index + 1]
    if (!named.has(deviceIndex)) {
      named.add(deviceIndex)
      events.push(
        { ph: "M", name: "process_name", pid, args: { name: deviceLabel(timeline, deviceIndex) } },
        { ph: "M", name: "process_sort_index", pid, args: { sort_index: deviceIndex } }
      )
    }
    events.push(
      { ph: "M", name: "thread_name", pid, tid, args: { name } },
      { ph: "M", name: "thread_sort_index", pid, tid, args: { sort_index: index } }
    )
    for (const bar of bars) events.push(complete(bar, pid, tid))
  }
  return events
}

/** Both ends are rounded, not the length: so that what lies in another one still does. */
const complete = ({ end, region, start }: Bar, pid: number, tid: number): TraceEvent => {
  const [from, to] = [Math.round(start * 1e6), Math.round(end * 1e6)]
  return {
    ph: "X",
    name: region.name,
    cat: "cuda",
    pid,
    tid,
    ts: from / 1e3,
    dur: (to - from) / 1e3,
    args: region.attributes
  }
}
