/**
 * Graphs: races inside when they are recorded, and what their launches use.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, EventRef, GraphExecRef, GraphValue, StreamRef } from "../CudaRuntime.ts"
import { GraphResource } from "../shared/graphNodes.ts"
import { mostNodes, ofGraphLaunch, racesIn } from "./graphs.ts"
import type { Point } from "./timelines.ts"
import type { Watched } from "./watch.ts"
import { after, isEnqueued } from "./Watcher.ts"
import type { Watcher } from "./Watcher.ts"
import type { Events } from "./watchEvents.ts"

/** What is known of an executable graph. */
interface ExecState {
  readonly disabled: Set<number>
  /** The points after the last launches, one per instance, and which comes next. */
  readonly launches: Array<Point>
  next: number
}

const racesOf = (watcher: Watcher, graph: Parameters<typeof racesIn>[0]) => {
  if (graph.nodes.length <= mostNodes) return racesIn(graph)
  watcher.unknown.largeGraphs++
  return []
}

export const watchedGraphs = (watcher: Watcher, inner: CudaRuntimeService, events: Events): Watched => {
  const execs = new WeakMap<GraphExecRef, ExecState>()
  const stateOf = (exec: GraphExecRef): ExecState => {
    const known = execs.get(exec)
    if (known !== undefined) return known
    const made: ExecState = { disabled: new Set(), launches: [], next: 0 }
    execs.set(exec, made)
    return made
  }
  const launch = <A>(
    exec: GraphExecRef,
    values: ReadonlyArray<GraphValue>,
    stream: StreamRef,
    run: Effect.Effect<A, CudaError>,
    measured: ReadonlyArray<EventRef>
  ): Effect.Effect<A, CudaError> =>
    Effect.suspend(() =>
      isEnqueued(stream) && exec?.state === "live"
        ? launchOn(watcher, events, stateOf(exec), exec, values, stream, run, measured)
        : run
    )
  return {
    graphEnd: (recording) =>
      Effect.flatMap(inner.graphEnd(recording), (graph) => {
        const raw = watcher.rawOf.get(recording)
        if (raw !== undefined) watcher.rawOf.set(graph, raw)
        const races = racesOf(watcher, graph)
        const ended = Effect.succeed(graph)
        return races.length === 0 ? ended : watcher.meet("CudaGraph.record", graph.deviceIndex, races, ended)
      }),
    graphLaunch: (exec, values, stream) => launch(exec, values, stream, inner.graphLaunch(exec, values, stream), []),
    graphMeasure: (exec, values, measured, stream) =>
      launch(exec, values, stream, inner.graphMeasure(exec, values, measured, stream), read(measured)),
    graphSetEnabled: (exec, nodeIndex, enabled) =>
      Effect.suspend(() =>
        after(inner.graphSetEnabled(exec, nodeIndex, enabled), () => {
          const { disabled } = stateOf(exec)
          if (enabled) disabled.delete(nodeIndex)
          else disabled.add(nodeIndex)
        })
      )
  }
}

const read = (measured: unknown): ReadonlyArray<EventRef> => Array.isArray(measured) ? measured.flat() : []

const launchOn = <A>(
  watcher: Watcher,
  events: Events,
  state: ExecState,
  exec: GraphExecRef,
  values: ReadonlyArray<GraphValue>,
  stream: StreamRef,
  run: Effect.Effect<A, CudaError>,
  measured: ReadonlyArray<EventRef>
): Effect.Effect<A, CudaError> => {
  const { timelines } = watcher.checks
  const timeline = watcher.checks.timelineOf(stream)
  const uses = Array.isArray(values) ? ofGraphLaunch(exec.graph, values, state.disabled) : []
  // An instance runs one launch at a time.
  const before = state.launches[state.next]
  if (before !== undefined) timelines.wait(timeline, before)
  const graph = exec.graph instanceof GraphResource ? exec.graph : undefined
  const handles = graph?.handles.filter(({ ordering }) => ordering !== undefined) ?? []
  watcher.handles.wait(timeline, handles)
  const noted = () => {
    watcher.tracer?.launched(exec.graph)
    const point = timelines.pointOf(timeline)
    state.launches[state.next] = point
    state.next = (state.next + 1) % exec.instances
    watcher.handles.used(timeline, handles)
    for (const event of [...graph?.events ?? [], ...measured]) {
      const own = events.of(event)
      own.point = point
      own.isWaited = true
    }
  }
  const freed = watcher.findFreed(stream, watcher.rawOf.get(exec.graph) ?? [])
  if (freed.length === 0) return watcher.enqueue("CudaGraph.launch", stream, uses, run, noted)
  const goOn = Effect.suspend(() => watcher.enqueue("CudaGraph.launch", stream, uses, run, noted))
  return watcher.meet("CudaGraph.launch", stream.deviceIndex, freed, goOn)
}
