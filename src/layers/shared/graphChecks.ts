/**
 * Checks of graphs and executable graphs that are passed to operations, and the failure of a graph that the driver refuses.
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { GraphExecRef, GraphRef, MemoryRange } from "../CudaRuntime.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import { GraphExecResource, GraphResource } from "./graphNodes.ts"
import { isGone } from "./moduleResources.ts"
import { refuseModule } from "./modules.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { unusable, unusableMemory } from "./resources.ts"

/** True if a buffer no longer has these bytes. */
export const hasShrunk = ({ byteLength, memory, offset }: MemoryRange): boolean =>
  offset + byteLength > memory.byteLength

/** Refuses a graph of another runtime, and one whose memory, modules or handles are gone. */
export const refuseGraph = (core: Core, operation: string, graph: GraphResource): Refusal => {
  const { backend } = core
  if (core.closed) return refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" })
  if (graph.owner !== backend) return refuse(operation, { _tag: "ForeignResource", resource: String(graph) })
  for (const memory of graph.memories) {
    if (unusableMemory(backend, memory)) return refuseResource(operation, backend, memory)
  }
  for (const range of graph.growable) {
    if (hasShrunk(range)) return refuseRange(operation, "graph", range)
  }
  for (const handle of graph.handles) if (unusable(backend, handle)) return refuseResource(operation, backend, handle)
  for (const partition of graph.partitions) {
    if (unusable(backend, partition)) return refuseResource(operation, backend, partition)
  }
  for (const event of graph.events) if (unusable(backend, event)) return refuseResource(operation, backend, event)
  for (const module of graph.modules) if (isGone(backend, module)) return refuseModule(core, operation, module)
  return undefined
}

export const ownGraph = (
  core: Core,
  operation: string,
  ref: GraphRef
): GraphResource | Effect.Effect<never, CudaError> => {
  if (!(ref instanceof GraphResource)) return refuseArgument(operation, "graph", ref, "a recorded graph")
  return refuseGraph(core, operation, ref) ?? ref
}

/** The executable graph behind a reference, if it can be used. */
export const ownExec = (
  core: Core,
  operation: string,
  ref: GraphExecRef
): GraphExecResource | Effect.Effect<never, CudaError> => {
  if (!(ref instanceof GraphExecResource)) return refuseArgument(operation, "exec", ref, "an executable graph")
  if (ref.owner !== core.backend) return refuse(operation, { _tag: "ForeignResource", resource: String(ref) })
  if (ref.state === "live") return ref
  return refuse(operation, { _tag: "ResourceReleased", resource: String(ref.endedBy ?? ref) })
}

/** The failure of a graph that the driver does not accept. */
export const failGraph = (
  core: Core,
  operation: string,
  status: number,
  graph: GraphResource
): Effect.Effect<never, CudaError> => {
  const { refusal } = core.backend.graphs
  core.backend.graphs.refusal = undefined
  if (refusal === undefined) return core.fail(operation, status, graph)
  return refuse(operation, {
    _tag: "GraphRefused",
    resource: String(graph),
    because: refusal.why,
    nodeIndex: refusal.node
  })
}
