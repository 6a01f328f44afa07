/**
 * Launches of executable graphs: checks, the values of parameters, uses of memory, and order.
 */
import * as Effect from "effect/Effect"
import { scalarWords, scalarWriters } from "../../cuda/parameters.ts"
import type { ScalarKind } from "../../cuda/parameters.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { GraphExecRef, GraphMemoryParameter, GraphValue, MemoryRange, StreamRef } from "../CudaRuntime.ts"
import type { GraphOperations } from "../runtime/graphs.ts"
import { counted, inBytes } from "../runtime/words.ts"
import { enqueueOrdered, useAlone } from "./accesses.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseDescribed, refuseResource } from "./failures.ts"
import { failGraph, hasShrunk, ownExec, refuseGraph } from "./graphChecks.ts"
import { GraphExecResource, isMemoryParameter } from "./graphNodes.ts"
import type {
  Bindings,
  GraphChange,
  GraphInstance,
  GraphNode,
  GraphResource,
  Located,
  NodeRange
} from "./graphNodes.ts"
import { isGone } from "./moduleResources.ts"
import { operation } from "./operation.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { refuseElsewhere, refuseToRecord } from "./recordings.ts"
import { ownMemory, ownStream, unusable, unusableMemory } from "./resources.ts"
import type { EventResource, StreamResource } from "./resources.ts"

export const launchOperations = (core: Core): Pick<GraphOperations, "graphLaunch" | "graphUpload"> => ({
  graphLaunch: operation((ref: GraphExecRef, values: ReadonlyArray<GraphValue>, stream: StreamRef) =>
    launch(core, ref, values, ownStream(stream))
  ),
  graphUpload: operation((ref: GraphExecRef, stream: StreamRef) => upload(core, ref, ownStream(stream)))
})

export const launchOperation = "CudaGraph.launch"

const launch = (
  core: Core,
  ref: GraphExecRef,
  values: ReadonlyArray<GraphValue>,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const exec = launchable(core, ref, stream)
  if (!(exec instanceof GraphExecResource)) return exec
  const index = exec.take()
  return refuseValues(core, exec.graph, values) ?? launchPlain(core, exec, index, values, stream)
}

/** Launches an ordinary instance with values that fit. */
export const launchPlain = (
  core: Core,
  exec: GraphExecResource,
  index: number,
  values: ReadonlyArray<GraphValue>,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const unbound = bindValues(core, exec, exec.all, index, values)
  if (unbound !== undefined) return unbound
  const status = enqueue(core, exec.graph, exec.all[index]!, stream)
  return status === success ? Effect.void : core.fail(launchOperation, status, exec)
}

/** The executable graph behind a reference, if it can be launched on a stream. */
export const launchable = (
  core: Core,
  ref: GraphExecRef,
  stream: StreamResource
): GraphExecResource | Effect.Effect<never, CudaError> => {
  const exec = ownExec(core, launchOperation, ref)
  if (!(exec instanceof GraphExecResource)) return exec
  const refused = refuseStream(core, launchOperation, exec, stream)
  if (refused !== undefined) return refused
  const { graph } = exec
  return (hasGone(core, graph) ? refuseGraph(core, launchOperation, graph) : undefined) ?? exec
}

/** Launches an instance whose values are bound. Returns a status. */
export const enqueue = (
  core: Core,
  graph: GraphResource,
  instance: GraphInstance,
  stream: StreamResource
): number => {
  const status = follow(core, instance, stream) || noteUses(graph, instance, stream) ||
    enqueueUses(core, graph, instance, stream)
  if (status !== success) return status
  instance.launchedOn = stream
  instance.follows = undefined
  if (!graph.isPlain) { for (const event of graph.events) noteRecorded(event) }
  return success
}

/** Notes that a graph records an event. */
export const noteRecorded = (event: EventResource): void => {
  event.recorded = true
  event.inside = undefined
}

/** Orders the first launch of an instance after the launches of the one that it replaces, as the driver orders those of one instance. */
const follow = ({ backend }: Core, instance: GraphInstance, stream: StreamResource): number => {
  const { follows } = instance
  if (follows === undefined || follows === stream || follows.state === "released") return success
  const { markers } = backend
  const recorded = markers.record(follows)
  if (recorded !== success) return recorded
  const marker = markers.made!
  const waited = markers.wait(stream, marker)
  markers.release(marker)
  return waited
}

const refuseStream = (core: Core, operation: string, exec: GraphExecResource, stream: StreamResource): Refusal => {
  const { backend } = core
  if (unusable(backend, stream)) return refuseResource(operation, backend, stream)
  if (stream.recording !== undefined) {
    return refuseToRecord(operation, "a graph cannot be launched inside another. Record its nodes with CudaGraph.embed")
  }
  if (core.recordings !== 0) {
    const elsewhere = refuseElsewhere(operation, stream)
    if (elsewhere !== undefined) return elsewhere
  }
  return stream.deviceIndex === exec.deviceIndex
    ? undefined
    : refuseDescribed(operation, "stream", String(stream), `a stream of device ${exec.deviceIndex}, like the graph`)
}

/** True if the graph uses something that was released, or bytes that a buffer no longer has. */
const hasGone = (
  { backend }: Core,
  { events, growable, handles, isPlain, memories, modules, partitions }: GraphResource
): boolean => {
  for (const memory of memories) if (unusableMemory(backend, memory)) return true
  for (const module of modules) if (isGone(backend, module)) return true
  if (isPlain) return false
  for (const event of events) if (unusable(backend, event)) return true
  for (const handle of handles) if (unusable(backend, handle)) return true
  for (const partition of partitions) if (unusable(backend, partition)) return true
  for (const range of growable) if (hasShrunk(range)) return true
  return false
}

/** The failure for values that do not fit the parameters. */
export const refuseValues = (core: Core, graph: GraphResource, values: ReadonlyArray<GraphValue>): Refusal => {
  const { parameters } = graph
  if (parameters.length !== values.length) {
    return refuseDescribed(
      launchOperation,
      "values",
      counted(values.length, "value"),
      `${parameters.length}, one per parameter`
    )
  }
  for (let parameter = 0; parameter < parameters.length; parameter++) {
    const refused = refuseValue(core, launchOperation, graph, parameter, values[parameter]!)
    if (refused !== undefined) return refused
  }
  return undefined
}

/** Applies the values of a launch to one of some instances, changing only the nodes that they touch. */
export const bindValues = (
  core: Core,
  exec: GraphExecResource,
  instances: Array<GraphInstance>,
  index: number,
  values: ReadonlyArray<GraphValue>
): Refusal => {
  const { graph } = exec
  const instance = instances[index]!
  const change = setValues(graph, instance, values)
  if (change === undefined) return undefined
  instance.notedOn = undefined
  const overlap = refuseOverlaps(graph, change.nodes, instance.bindings)
  if (overlap !== undefined) {
    instance.isStale = true
    return overlap
  }
  const status = apply(core, exec, instances, index, change)
  return status === success ? undefined : failGraph(core, launchOperation, status, graph)
}

/** The failure for a value that does not fit its parameter. */
export const refuseValue = (
  core: Core,
  operation: string,
  graph: GraphResource,
  parameter: number,
  value: unknown
): Refusal => {
  const kind = graph.parameters[parameter]![1]
  const name = graph.valueNames[parameter]!
  if (!isMemoryParameter(kind)) return refuseScalar(operation, name, kind, value)
  return refuseMemory(core, operation, graph, name, kind, graph.alignmentOf[parameter]!, value)
}

const scratch = new DataView(new ArrayBuffer(8))

const refuseScalar = (operation: string, name: string, { kind }: ScalarKind, value: unknown): Refusal =>
  scalarWriters[kind](scratch, 0)(value)
    ? undefined
    : refuseArgument(operation, name, value, `${scalarWords[kind]} (${kind})`)

const isRange = (value: unknown): value is MemoryRange =>
  typeof value === "object" && value !== null && "memory" in value

const kindOf = { device: "device memory", host: "pinned memory" } as const

const refuseMemory = (
  core: Core,
  operation: string,
  graph: GraphResource,
  name: string,
  { byteLength, parameter }: GraphMemoryParameter,
  alignment: number,
  value: unknown
): Refusal => {
  const { backend } = core
  if (!isRange(value)) return refuseArgument(operation, name, value, `${kindOf[parameter]}: a buffer or a part of one`)
  const memory = ownMemory(value.memory)
  if (unusableMemory(backend, memory)) return refuseResource(operation, backend, memory)
  if (memory.kind !== parameter) return refuseArgument(operation, name, memory, kindOf[parameter])
  if (memory.kind === "device" && memory.deviceIndex !== graph.deviceIndex && !memory.isManaged) {
    const elsewhere = `device memory of device ${graph.deviceIndex}, like the graph`
    return refuseArgument(operation, name, memory, elsewhere)
  }
  const refused = refuseRange(operation, name, value)
  if (refused !== undefined) return refused
  if (value.byteLength < byteLength) {
    return refuseDescribed(
      operation,
      `${name}.byteLength`,
      inBytes(value.byteLength),
      `at least ${inBytes(byteLength)}`
    )
  }
  const address = memory.address + value.offset
  if (address % alignment === 0) return undefined
  return value.offset % alignment === 0
    ? refuseDescribed(
      operation,
      name,
      `memory at 0x${address.toString(16)}`,
      `an address that is a multiple of ${alignment}`
    )
    : refuseArgument(operation, `${name}.offset`, value.offset, `a multiple of ${alignment}`)
}

const changed: Array<number> = []

/** Stores values that differ from those of the instance. Returns undefined if nothing changed. */
export const setValues = (
  graph: GraphResource,
  instance: Pick<GraphInstance, "bindings" | "isStale">,
  values: ReadonlyArray<GraphValue>
): GraphChange | undefined => {
  const { bindings } = instance
  const { slotOf } = graph
  changed.length = 0
  for (let parameter = 0; parameter < values.length; parameter++) {
    const slot = slotOf[parameter]
    const value = values[parameter]!
    const isChanged = slot === undefined ? setScalar(bindings, parameter, value) : setMemory(bindings, slot, value)
    if (isChanged || instance.isStale) changed.push(parameter)
  }
  return changed.length === 0 ? undefined : graph.changeOf(changed)
}

const setScalar = ({ scalars }: Bindings, parameter: number, value: GraphValue): boolean => {
  if (Object.is(scalars[parameter], value)) return false
  scalars[parameter] = value
  return true
}

const setMemory = (bindings: Bindings, slot: number, value: GraphValue): boolean => {
  if (!isRange(value)) return false
  const memory = ownMemory(value.memory)
  const bound = bindings.get(slot)
  if (bound?.memory === memory && bound.offset === value.offset) return false
  bindings.set(slot, { memory, offset: value.offset })
  return true
}

/** Refuses copies among some nodes whose ends overlap because of the values. */
export const refuseOverlaps = (
  { hasCopies, nodes }: GraphResource,
  indices: ReadonlyArray<number>,
  bindings: Bindings
): Refusal => {
  if (!hasCopies) return undefined
  for (const index of indices) {
    const overlap = refuseOverlap(nodes[index]!, bindings)
    if (overlap !== undefined) return overlap
  }
  return undefined
}

/** Refuses a copy whose ends overlap because of the values. */
const refuseOverlap = ({ work }: GraphNode, bindings: Bindings): Refusal => {
  if (work.kind !== "copy" && work.kind !== "copy2D") return undefined
  const { transfer } = work
  const to = bindings.locate(transfer.to, transfer.toOffset)
  const from = bindings.locate(transfer.from, transfer.fromOffset)
  if (to.memory !== from.memory) return undefined
  const [toBytes, fromBytes] = "byteLength" in transfer
    ? [transfer.byteLength, transfer.byteLength]
    : [spanOf(transfer, transfer.toPitch), spanOf(transfer, transfer.fromPitch)]
  const isApart = to.offset + toBytes <= from.offset || from.offset + fromBytes <= to.offset
  if (isApart) return undefined
  const where = `bytes ${from.offset} to ${from.offset + fromBytes} of the ${to.memory}`
  return refuseDescribed(launchOperation, "values", `a copy of ${where} onto themselves`, "parts that do not overlap")
}

const spanOf = ({ height, width }: { readonly height: number; readonly width: number }, pitch: number): number =>
  (height - 1) * pitch + width

/** Applies bindings. If the driver cannot change a node, makes the instance anew. */
const apply = (
  core: Core,
  exec: GraphExecResource,
  instances: Array<GraphInstance>,
  index: number,
  change: GraphChange
): number => {
  const instance = instances[index]!
  const status = core.backend.graphs.bind(instance, exec.graph, change)
  instance.isStale = status !== success
  if (status === success) return success
  return cannotChange.includes(status) ? renew(core, exec, instances, index) : status
}

/** What the driver answers if a node must be made anew, for example when a copy goes from a pool to managed memory. */
const cannotChange: ReadonlyArray<number> = [statuses.GraphExecUpdateFailure.code, statuses.InvalidValue.code]

/** Makes an instance anew with its bindings and its scratch memory. */
const renew = (core: Core, exec: GraphExecResource, instances: Array<GraphInstance>, index: number): number => {
  const { graphs } = core.backend
  const old = instances[index]!
  const status = remake(core, exec, old, old.bindings, old.measures)
  if (status !== success) return status
  const fresh = graphs.made!
  instances[index] = fresh
  const set = old.measures ? graphs.setEvents(fresh, old.events) : success
  return graphs.destroy(old) || set
}

/** Makes another instance with the scratch memory of one, whose launches come before. Returns a status. */
export const remake = (
  core: Core,
  { disabled, graph }: GraphExecResource,
  old: GraphInstance,
  bindings: Bindings,
  measures: boolean
): number => {
  const { graphs } = core.backend
  const status = graphs.instantiate(graph, bindings, measures)
  if (status !== success) return status
  const fresh = graphs.made!
  fresh.scratch = old.scratch
  fresh.follows = old.follows ?? old.launchedOn
  for (const node of disabled) {
    const changed = graphs.setEnabled(fresh, graph.nodes[node]!, false)
    if (changed === success) continue
    graphs.destroy(fresh)
    return changed
  }
  return success
}

/** Notes the memory and the handles that a launch uses, unless the last launch of the instance was the same. */
const noteUses = (graph: GraphResource, instance: GraphInstance, stream: StreamResource): number => {
  if (instance.notedOn === stream) return success
  for (const memory of graph.memories) {
    const status = memory.usedOn(stream)
    if (status !== success) return status
  }
  for (const slot of graph.slotOf) {
    const status = slot === undefined ? success : instance.bindings.get(slot)!.memory.usedOn(stream)
    if (status !== success) return status
  }
  for (const handle of graph.handles) handle.usedOn(stream)
  for (const partition of graph.partitions) partition.usedOn(stream)
  const status = instance.scratch?.usedOn(stream) ?? success
  if (status === success) instance.notedOn = stream
  return status
}

const enqueueUses = (core: Core, graph: GraphResource, instance: GraphInstance, stream: StreamResource): number =>
  usesOrdered(graph, instance) || !(graph.isPlain || useAlone(core, graph.handles, stream))
    ? enqueueInOrder(core, graph, instance, stream)
    : core.backend.graphs.launch(instance, graph, stream)

/** Separate, because a function with a closure allocates whenever it is called. */
const enqueueInOrder = (
  core: Core,
  graph: GraphResource,
  instance: GraphInstance,
  stream: StreamResource
): number => {
  const rangesOf = (ranges: ReadonlyArray<NodeRange>) => ranges.map((range) => boundRange(range, instance.bindings))
  const call = () => core.backend.graphs.launch(instance, graph, stream)
  return enqueueOrdered(core, stream, rangesOf(graph.reads), rangesOf(graph.writes), call, graph.handles)
}

const usesOrdered = (graph: GraphResource, { bindings }: GraphInstance): boolean => {
  for (const memory of graph.memories) if (memory.ordering !== undefined) return true
  for (const slot of graph.slotOf) {
    if (slot !== undefined && bindings.get(slot)?.memory.ordering !== undefined) return true
  }
  return false
}

const boundRange = ({ byteLength, memory, offset }: NodeRange, bindings: Bindings): Located & MemoryRange => ({
  ...bindings.locate(memory, offset),
  byteLength
})

const upload = (
  core: Core,
  ref: GraphExecRef,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const operation = "CudaGraph.upload"
  const exec = ownExec(core, operation, ref)
  if (!(exec instanceof GraphExecResource)) return exec
  const refused = refuseStream(core, operation, exec, stream)
  if (refused !== undefined) return refused
  for (const instance of exec.all) {
    const status = core.backend.graphs.upload(instance, stream)
    if (status !== success) return core.fail(operation, status, exec)
  }
  return Effect.void
}
