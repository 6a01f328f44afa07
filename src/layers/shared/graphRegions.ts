/**
 * Regions of graphs: marks where they begin and end, and launches that measure them.
 *
 * An event cannot be taken out of an instance, and recording one takes time on the GPU. So launches that measure use instances of their
 * own, made when they are first needed.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { EventRef, GraphExecRef, GraphRegionRef, GraphValue } from "../CudaRuntime.ts"
import type { GraphOperations } from "../runtime/graphs.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import { withScratch } from "./graphInstances.ts"
import {
  bindValues,
  enqueue,
  launchable,
  launchOperation,
  launchPlain,
  noteRecorded,
  refuseOverlaps,
  refuseValues,
  remake,
  setValues
} from "./graphLaunches.ts"
import { GraphExecResource } from "./graphNodes.ts"
import type { GraphInstance } from "./graphNodes.ts"
import { refuseElsewhere } from "./recordings.ts"
import { ownEvent, ownStream, unusable } from "./resources.ts"
import type { EventResource, StreamResource } from "./resources.ts"

export const regionOperations = (core: Core): Pick<GraphOperations, "graphMark" | "graphMeasure"> => ({
  graphMark: (region, end, stream) => Effect.suspend(() => mark(core, region, end, ownStream(stream))),
  graphMeasure: (exec, values, events, stream) =>
    Effect.suspend(() => measure(core, exec, values, events, ownStream(stream)))
})

const markOperation = "CudaTiming.region"

const mark = (
  core: Core,
  region: GraphRegionRef,
  end: "begin" | "end",
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const { recording } = stream
  if (unusable(core.backend, stream)) return refuseResource(markOperation, core.backend, stream)
  const refused = refuseElsewhere(markOperation, stream)
  if (refused !== undefined) return refused
  if (recording === undefined) return refuseArgument(markOperation, "stream", stream, "a stream of a recording")
  recording.mark(stream, region, end)
  return Effect.void
}

const measure = (
  core: Core,
  ref: GraphExecRef,
  values: ReadonlyArray<GraphValue>,
  pairs: ReadonlyArray<readonly [begin: EventRef, end: EventRef]>,
  stream: StreamResource
): Effect.Effect<boolean, CudaError> => {
  const exec = launchable(core, ref, stream)
  if (!(exec instanceof GraphExecResource)) return exec
  const events = pairs.flat().map(ownEvent)
  const index = exec.take()
  const refused = refuseValues(core, exec.graph, values)
  if (refused !== undefined) return refused
  if (!areFor(core, exec, events) || !prepare(core, exec, index, values, events)) {
    return Effect.as(launchPlain(core, exec, index, values, stream), false)
  }
  const status = enqueue(core, exec.graph, exec.measuring[index]!, stream)
  const launched = status === success ? Effect.succeed(true) : core.fail(launchOperation, status, exec)
  takeEvents(core, exec, index)
  if (status !== success) return launched
  exec.all[index]!.follows = stream
  for (const event of events) noteRecorded(event)
  return launched
}

/** Whether events are for the regions of a graph. It may have been updated since they were made, and their timeline may have ended. */
const areFor = ({ backend }: Core, { graph }: GraphExecResource, events: ReadonlyArray<EventResource>): boolean =>
  events.length === 2 * graph.regions.length && !events.some((event) => unusable(backend, event))

/** Prepares an instance for a launch that records events. Returns false if that is impossible. */
const prepare = (
  core: Core,
  exec: GraphExecResource,
  index: number,
  values: ReadonlyArray<GraphValue>,
  events: ReadonlyArray<EventResource>
): boolean => {
  const plain = exec.all[index]!
  const instance = exec.measuring[index] ?? make(core, exec, plain, values)
  if (instance === undefined) return false
  exec.measuring[index] = instance
  instance.follows = plain.follows ?? plain.launchedOn
  const isReady = core.backend.graphs.setEvents(instance, events) === success &&
    bindValues(core, exec, exec.measuring, index, values) === undefined
  if (!isReady) takeEvents(core, exec, index)
  return isReady
}

/** Takes the events of a launch away. An instance that might keep one is destroyed. */
const takeEvents = ({ backend: { graphs } }: Core, { measuring }: GraphExecResource, index: number): void => {
  const instance = measuring[index]!
  if (graphs.setEvents(instance, undefined) === success) return
  delete measuring[index]
  graphs.destroy(instance)
}

/** Makes an instance that measures regions and shares the memory of another. */
const make = (
  core: Core,
  exec: GraphExecResource,
  plain: GraphInstance,
  values: ReadonlyArray<GraphValue>
): GraphInstance | undefined => {
  const { graph } = exec
  const { graphs } = core.backend
  const bindings = withScratch(graph, plain)
  setValues(graph, { bindings, isStale: false }, values)
  if (refuseOverlaps(graph, graph.usersOf.flat(), bindings) !== undefined) return undefined
  if (remake(core, exec, plain, bindings, true) === success) return graphs.made
  graphs.refusal = undefined
  return undefined
}
