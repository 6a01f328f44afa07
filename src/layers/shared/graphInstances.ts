/**
 * The instances of executable graphs: made with their memory, updated, and destroyed.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import { annotations } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import type { Core } from "./Core.ts"
import { failGraph } from "./graphChecks.ts"
import { remake } from "./graphLaunches.ts"
import { Bindings, isMemoryParameter } from "./graphNodes.ts"
import type { GraphExecResource, GraphInstance, GraphResource } from "./graphNodes.ts"
import { allocate, free } from "./memory.ts"
import type { DeviceMemoryResource } from "./resources.ts"

/**
 * Makes instances and passes them on, or makes none if one fails. The runtime is not released meanwhile, so `use` can hand them
 * over to it.
 */
export const makeInstances = <A>(
  core: Core,
  operation: string,
  graph: GraphResource,
  count: number,
  use: (instances: Array<GraphInstance>) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> => {
  const all = withStandIn(core, operation, graph, (standIn) =>
    Effect.suspend(() => {
      const made: Array<GraphInstance> = []
      const one = Effect.suspend(() =>
        Effect.map(makeInstance(core, operation, graph, standIn), (instance) => void made.push(instance))
      )
      const each = Effect.forEach(Array.from({ length: count }), () => one, { discard: true })
      return Effect.onError(Effect.as(each, made), () => Effect.sync(() => dropInstances(core, made)))
    }))
  return Effect.uninterruptible(core.acquiring.withPermit(Effect.flatMap(all, use)))
}

const makeInstance = (
  core: Core,
  operation: string,
  graph: GraphResource,
  standIn: StandIn
): Effect.Effect<GraphInstance, CudaError> =>
  Effect.flatMap(bindScratch(core, operation, graph), ([bindings, scratch]) => {
    standIn.bind(bindings)
    const status = core.backend.graphs.instantiate(graph, bindings)
    standIn.unbind(bindings)
    if (status !== success) {
      if (scratch !== undefined) dropMemory(core, scratch)
      return failGraph(core, operation, status, graph)
    }
    const instance = core.backend.graphs.made!
    instance.scratch = scratch
    return Effect.succeed(instance)
  })

type BoundScratch = readonly [bindings: Bindings, scratch: GraphInstance["scratch"]]

/** Allocates scratch memory for an instance. */
const bindScratch = (core: Core, operation: string, graph: GraphResource): Effect.Effect<BoundScratch, CudaError> => {
  const bindings = new Bindings(graph)
  if (graph.scratchBytes === 0) return Effect.succeed([bindings, undefined])
  return Effect.map(allocate(core, graph.deviceIndex, graph.scratchBytes, {}, operation), (memory) => {
    for (const { offset, slot } of graph.scratch) bindings.set(slot, { memory, offset })
    return [bindings, memory]
  })
}

/** What stands in for parameters of device memory until they are given: the driver checks the addresses of copies and fills. */
export class StandIn {
  readonly #slots: ReadonlyArray<number>
  readonly #memory: DeviceMemoryResource | undefined
  constructor(slots: ReadonlyArray<number>, memory: DeviceMemoryResource | undefined) {
    this.#slots = slots
    this.#memory = memory
  }
  bind(bindings: Bindings): void {
    if (this.#memory === undefined) return
    for (const slot of this.#slots) bindings.set(slot, { memory: this.#memory, offset: 0 })
  }
  unbind(bindings: Bindings): void {
    for (const slot of this.#slots) bindings.set(slot, undefined)
  }
}

/** Provides a stand-in for parameters that copies or fills use, and releases it. */
export const withStandIn = <A>(
  core: Core,
  operation: string,
  graph: GraphResource,
  use: (standIn: StandIn) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> => {
  const used = graph.parameters.flatMap(([, parameter], index) => {
    const isUsed = isMemoryParameter(parameter) && parameter.parameter === "device" &&
      graph.usersOf[index]!.some((node) => graph.nodes[node]!.kind !== "kernel")
    return isUsed ? [{ slot: graph.slotOf[index]!, byteLength: parameter.byteLength }] : []
  })
  if (used.length === 0) return use(new StandIn([], undefined))
  const byteLength = Math.max(...used.map((parameter) => parameter.byteLength))
  return Effect.acquireUseRelease(
    allocate(core, graph.deviceIndex, byteLength, {}, operation),
    (memory) => use(new StandIn(used.map(({ slot }) => slot), memory)),
    (memory) => Effect.catch(free(core, memory), logWarning)
  )
}

/** Updates an instance to another graph. It keeps its scratch memory. Returns a status. */
export const updateInstance = (
  core: Core,
  instance: GraphInstance,
  graph: GraphResource,
  standIn: StandIn
): number => {
  const bindings = withScratch(graph, instance)
  standIn.bind(bindings)
  const status = core.backend.graphs.update(instance, graph, bindings)
  standIn.unbind(bindings)
  if (status !== success) return status
  instance.bindings = bindings
  instance.notedOn = undefined
  return success
}

/** Bindings that have only the scratch memory of an instance. */
export const withScratch = (graph: GraphResource, { scratch }: GraphInstance): Bindings => {
  const bindings = new Bindings(graph)
  if (scratch !== undefined) {
    for (const { offset, slot } of graph.scratch) bindings.set(slot, { memory: scratch, offset })
  }
  return bindings
}

/** Updates an instance back to the graph of the executable one, or makes it anew. Returns a status. */
export const returnInstance = (core: Core, exec: GraphExecResource, index: number, standIn: StandIn): number => {
  const { all, graph } = exec
  const instance = all[index]!
  if (updateInstance(core, instance, graph, standIn) === success) return success
  const bindings = withScratch(graph, instance)
  standIn.bind(bindings)
  const status = remake(core, exec, instance, bindings, false)
  standIn.unbind(bindings)
  if (status !== success) return status
  all[index] = core.backend.graphs.made!
  return core.backend.graphs.destroy(instance)
}

/** Destroys the instances that measure regions. Returns the first status other than 0. */
export const dropMeasuring = (core: Core, { measuring }: GraphExecResource): number => {
  let first = success
  for (const instance of measuring) {
    const status = instance === undefined ? success : core.backend.graphs.destroy(instance)
    first ||= status
  }
  measuring.length = 0
  return first
}

const dropMemory = (core: Core, memory: DeviceMemoryResource): number => {
  memory.state = "released"
  core.deviceMemory.delete(memory)
  return core.backend.memory.free(memory)
}

/** Destroys instances, and frees their scratch memory after the launches that use it. Returns the first status other than 0. */
export const dropInstances = (core: Core, instances: ReadonlyArray<GraphInstance>): number => {
  let first = success
  for (const instance of instances) {
    const destroyed = core.backend.graphs.destroy(instance)
    const freed = instance.scratch === undefined ? success : dropMemory(core, instance.scratch)
    first ||= destroyed || freed
  }
  return first
}

/** Releases an executable graph. Returns the first status other than 0. */
export const dropExec = (core: Core, exec: GraphExecResource): number => {
  exec.state = "released"
  core.graphs.delete(exec)
  const measuring = dropMeasuring(core, exec)
  return dropInstances(core, exec.all) || measuring
}

/** Logs the status of a release that has no caller to fail to. */
export const logged = (core: Core, status: number, exec: GraphExecResource): Effect.Effect<void> => {
  if (status === success) return Effect.void
  const { deviceIndex } = exec
  return logWarning(core.error("CudaGraph.release", status, deviceIndex, String(exec)))
}

const logWarning = (error: CudaError): Effect.Effect<void> =>
  Effect.annotateLogs(Effect.logWarning(error.message), annotations(error))
