/**
 * Graphs: recording, instantiating, updating and releasing them. `graphLaunches.ts` launches them.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type {
  DeviceMemoryOptions,
  DeviceMemoryRef,
  GraphExecRef,
  GraphNodeRef,
  GraphParameter,
  GraphRef,
  RecordingRef,
  RecordOptions,
  StreamOptions
} from "../CudaRuntime.ts"
import type { GraphOperations } from "../runtime/graphs.ts"
import { inBytes } from "../runtime/words.ts"
import { captureOperations } from "./captures.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseDescribed } from "./failures.ts"
import { failGraph, ownExec, ownGraph } from "./graphChecks.ts"
import { conditionOperations } from "./graphConditions.ts"
import { embed } from "./graphEmbedding.ts"
import {
  dropExec,
  dropInstances,
  dropMeasuring,
  logged,
  makeInstances,
  returnInstance,
  updateInstance,
  withStandIn
} from "./graphInstances.ts"
import type { StandIn } from "./graphInstances.ts"
import { launchOperations } from "./graphLaunches.ts"
import { GraphExecResource, GraphResource, isMemoryParameter } from "./graphNodes.ts"
import type { GraphNode } from "./graphNodes.ts"
import { graphOf } from "./graphPlan.ts"
import { regionOperations } from "./graphRegions.ts"
import { refuseByteLength, withOptions } from "./memory.ts"
import { operation } from "./operation.ts"
import { refusePartition } from "./partitionChecks.ts"
import type { Refusal } from "./ranges.ts"
import { Recording } from "./Recording.ts"
import { refuseElsewhere, refuseToRecord, refuseUnjoined } from "./recordings.ts"
import { ownPartition, ownStream } from "./resources.ts"
import { priorityOf, refuseName } from "./streams.ts"

export const graphOperations = (core: Core): GraphOperations => ({
  graphRecord: (options) => core.onDevice("CudaGraph.record", options.deviceIndex, () => record(core, options)),
  graphStream: (ref, options) => Effect.suspend(() => makeStream(core, ref, options)),
  graphAllocate: (ref, deviceIndex, byteLength, options) =>
    Effect.suspend(() => allocateScratch(core, ref, deviceIndex, byteLength, options)),
  graphEmbed: (graph, values, stream) => Effect.suspend(() => embed(core, graph, values, ownStream(stream))),
  graphEnd: (ref) => Effect.suspend(() => end(core, ref)),
  graphAbandon: (ref) => Effect.sync(() => close(core, ref)),
  graphInstantiate: (ref, instances) => Effect.suspend(() => instantiate(core, ref, instances)),
  graphDestroy: (ref) => Effect.suspend(() => destroy(core, ref)),
  graphUpdate: (ref, graph) => Effect.suspend(() => update(core, ref, graph)),
  graphReplace: (ref, graph) => Effect.suspend(() => replace(core, ref, graph)),
  graphSetEnabled: operation((ref: GraphExecRef, node: number, enabled: boolean) =>
    setEnabled(core, ref, node, enabled)
  ),
  ...captureOperations(core),
  ...conditionOperations(core, close),
  ...regionOperations(core),
  ...launchOperations(core)
})

const recordOperation = "CudaGraph.record"

const record = (core: Core, options: RecordOptions): Effect.Effect<RecordingRef, CudaError> => {
  for (const [name, parameter] of options.parameters) {
    const refused = refuseParameter(`parameters.${name}`, parameter)
    if (refused !== undefined) return refused
  }
  const partition = options.partition && ownPartition(options.partition)
  const refused = partition &&
    refusePartition(core, recordOperation, partition, { deviceIndex: options.deviceIndex, nonBlocking: true })
  if (refused !== undefined) return refused
  core.recordings++
  return Effect.succeed(new Recording(core.backend, options))
}

const refuseParameter = (name: string, parameter: GraphParameter): Refusal => {
  if (typeof parameter === "object" && parameter !== null) {
    if (isMemoryParameter(parameter)) {
      return refuseByteLength(recordOperation, parameter.byteLength, `${name}.byteLength`)
    }
    if ("kind" in parameter && !["pointer", "struct", "array"].includes(parameter.kind)) return undefined
  }
  const expected = "CudaGraph.buffer, CudaGraph.hostBuffer, or a number or boolean of CudaParameter"
  return refuseArgument(recordOperation, name, parameter, expected)
}

/** The recording behind a reference, if it is in progress on this runtime. */
const withRecording = <A>(
  core: Core,
  operation: string,
  ref: RecordingRef,
  use: (recording: Recording) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> => {
  if (!(ref instanceof Recording)) return refuseArgument(operation, "recording", ref, "a recording")
  if (ref.owner !== core.backend) return refuse(operation, { _tag: "ForeignResource", resource: "the recording" })
  if (ref.state === "recording") return use(ref)
  return refuse(operation, { _tag: "ResourceReleased", resource: "the recording" })
}

const makeStream = (core: Core, ref: RecordingRef, options: StreamOptions) =>
  withRecording(core, "CudaStream.make", ref, (recording) => {
    if (options.deviceIndex !== recording.deviceIndex) return refuseDevice("CudaStream.make", options, recording)
    const priority = priorityOf(core, options)
    if (typeof priority !== "number") return priority
    const unnamed = refuseName(options)
    if (unnamed !== undefined) return unnamed
    const partition = options.partition && ownPartition(options.partition)
    const refused = partition && refusePartition(core, "CudaStream.make", partition, options)
    if (refused !== undefined) return refused
    const stream = recording.makeStream(priority, options.nonBlocking, partition)
    stream.name = options.name
    return Effect.succeed(stream)
  })

const refuseDevice = (operation: string, { deviceIndex }: Pick<StreamOptions, "deviceIndex">, recording: Recording) =>
  refuseToRecord(operation, `the graph is recorded on device ${recording.deviceIndex}, not on device ${deviceIndex}`)

const allocateScratch = (
  core: Core,
  ref: RecordingRef,
  deviceIndex: number,
  byteLength: number,
  options: DeviceMemoryOptions = {}
): Effect.Effect<DeviceMemoryRef, CudaError> => {
  const operation = "CudaMemory.allocate"
  return withRecording(
    core,
    operation,
    ref,
    (recording) =>
      refuseByteLength(operation, byteLength) ?? refuseScratch(operation, recording, deviceIndex, options) ??
        Effect.succeed(withOptions(recording.allocate(byteLength), options))
  )
}

const refuseScratch = (
  operation: string,
  recording: Recording,
  deviceIndex: number,
  { pool, stream }: DeviceMemoryOptions
): Refusal => {
  if (deviceIndex !== recording.deviceIndex) return refuseDevice(operation, { deviceIndex }, recording)
  if (pool !== undefined) return refuseToRecord(operation, "memory of a graph comes from no pool. Allocate it outside")
  return stream === undefined ? undefined : refuseElsewhere(operation, ownStream(stream))
}

const close = (core: Core, ref: RecordingRef): void => {
  if (!(ref instanceof Recording) || ref.owner !== core.backend || ref.state === "ended") return
  ref.end()
  core.recordings--
}

const end = (core: Core, ref: RecordingRef): Effect.Effect<GraphRef, CudaError> =>
  withRecording(core, recordOperation, ref, (recording) => {
    close(core, recording)
    return refuseUnjoined(recordOperation, recording) ?? graphOf(core.backend, recording)
  })

const instantiateOperation = "CudaGraph.instantiate"

const instantiate = (core: Core, ref: GraphRef, instances: number): Effect.Effect<GraphExecRef, CudaError> => {
  const graph = ownGraph(core, instantiateOperation, ref)
  if (!(graph instanceof GraphResource)) return graph
  if (!Number.isSafeInteger(instances) || instances < 1) {
    return refuseArgument(instantiateOperation, "instances", instances, "an integer of at least 1")
  }
  return makeInstances(core, instantiateOperation, graph, instances, (all) => {
    const exec = new GraphExecResource(core.backend, graph, all)
    core.graphs.add(exec)
    return Effect.succeed(exec)
  })
}

const destroy = (core: Core, ref: GraphExecRef): Effect.Effect<void, CudaError> => {
  const operation = "CudaGraph.release"
  const exec = ownExec(core, operation, ref)
  if (!(exec instanceof GraphExecResource)) {
    return ref instanceof GraphExecResource && ref.owner === core.backend ? Effect.void : exec
  }
  const status = dropExec(core, exec)
  return status === success ? Effect.void : core.fail(operation, status, exec)
}

/** Uses an executable graph and a graph with the same parameters. */
const withBoth = (
  core: Core,
  operation: string,
  ref: GraphExecRef,
  graphRef: GraphRef,
  use: (exec: GraphExecResource, graph: GraphResource) => Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> => {
  const exec = ownExec(core, operation, ref)
  if (!(exec instanceof GraphExecResource)) return exec
  const graph = ownGraph(core, operation, graphRef)
  if (!(graph instanceof GraphResource)) return graph
  return sameParameters(exec.graph, graph)
    ? use(exec, graph)
    : refuseDescribed(operation, "graph", "a graph with other parameters", `the parameters of the ${exec.graph}`)
}

const sameParameters = (one: GraphResource, other: GraphResource): boolean =>
  one.parameters.length === other.parameters.length && one.parameters.every(([name, kind], index) => {
    const [otherName, otherKind] = other.parameters[index]!
    return name === otherName && (isMemoryParameter(kind)
      ? isMemoryParameter(otherKind) && kind.parameter === otherKind.parameter
      : !isMemoryParameter(otherKind) && kind.kind === otherKind.kind)
  })

const update = (core: Core, ref: GraphExecRef, graphRef: GraphRef): Effect.Effect<void, CudaError> =>
  withBoth(core, updateOperation, ref, graphRef, (exec, graph) => updateAll(core, exec, graph))

const updateOperation = "CudaGraph.update"

/** Updates all instances. If one is refused, those updated before go back. */
const updateAll = (core: Core, exec: GraphExecResource, graph: GraphResource): Effect.Effect<void, CudaError> => {
  const { graph: before } = exec
  const conditional = [...before.nodes, ...graph.nodes].find(({ kind }) => kind === "conditional")
  if (conditional !== undefined) {
    return refuse(updateOperation, {
      _tag: "GraphRefused",
      resource: String(graph),
      because: "graphs with conditions cannot be updated, only replaced",
      nodeIndex: conditional.index
    })
  }
  const moved = [...graph.nodes, ...before.nodes].find(({ index }) =>
    !isSameMark(before.nodes[index], graph.nodes[index])
  )
  if (moved !== undefined) {
    return refuse(updateOperation, {
      _tag: "GraphRefused",
      resource: String(graph),
      because: "its regions begin or end elsewhere",
      nodeIndex: moved.index
    })
  }
  if (graph.scratchBytes > before.scratchBytes) {
    return refuse(updateOperation, {
      _tag: "GraphRefused",
      resource: String(graph),
      because: `it needs ${inBytes(graph.scratchBytes)} of scratch memory, and its instances have ${
        inBytes(before.scratchBytes)
      }`,
      nodeIndex: undefined
    })
  }
  return withStandIn(core, updateOperation, graph, (standIn) => {
    if (exec.state !== "live") return refuse(updateOperation, { _tag: "ResourceReleased", resource: String(exec) })
    for (const [index, instance] of exec.all.entries()) {
      const status = updateInstance(core, instance, graph, standIn)
      if (status === success) continue
      const failed = failGraph(core, updateOperation, status, graph)
      const ended = goBack(core, exec, index, standIn)
      core.backend.graphs.refusal = undefined
      return Effect.andThen(logged(core, ended, exec), failed)
    }
    exec.graph = graph
    return logged(core, dropMeasuring(core, exec), exec)
  })
}

/** Returns the first instances to the graph of the executable one, which ends if that fails, rather than do something else. */
const goBack = (core: Core, exec: GraphExecResource, count: number, standIn: StandIn): number => {
  for (let index = 0; index < count; index++) {
    const status = returnInstance(core, exec, index, standIn)
    if (status !== success) return dropExec(core, exec) || status
  }
  return success
}

const isSameMark = (one: GraphNode | undefined, other: GraphNode | undefined): boolean =>
  (one?.kind === "mark") === (other?.kind === "mark")

const replaceOperation = "CudaGraph.updateOrReplace"

const replace = (core: Core, ref: GraphExecRef, graphRef: GraphRef): Effect.Effect<void, CudaError> =>
  withBoth(
    core,
    replaceOperation,
    ref,
    graphRef,
    (exec, graph) =>
      makeInstances(core, replaceOperation, graph, exec.instances, (made) => {
        const isLive = exec.state === "live"
        const old = isLive ? exec.all.splice(0, exec.all.length, ...made) : made
        const measuring = dropMeasuring(core, exec)
        if (isLive) {
          exec.graph = graph
          exec.disabled.clear()
        }
        return Effect.andThen(
          logged(core, dropInstances(core, old) || measuring, exec),
          isLive ? Effect.void : refuse(replaceOperation, { _tag: "ResourceReleased", resource: String(exec) })
        )
      })
  )

const canDisable: ReadonlyArray<GraphNodeRef["kind"]> = ["kernel", "copy", "copy2D", "fill"]

const setEnabled = (
  core: Core,
  ref: GraphExecRef,
  index: number,
  enabled: boolean
): Effect.Effect<void, CudaError> => {
  const operation = "CudaGraph.setEnabled"
  const exec = ownExec(core, operation, ref)
  if (!(exec instanceof GraphExecResource)) return exec
  const node = exec.graph.nodes[index]
  if (node === undefined) {
    return refuseArgument(operation, "node", index, `an integer from 0 to ${exec.graph.nodes.length - 1}`)
  }
  if (!canDisable.includes(node.kind)) {
    return refuseDescribed(operation, "node", String(node), "a kernel, a copy or a fill")
  }
  const { graphs } = core.backend
  const wasEnabled = !exec.disabled.has(index)
  const instances = exec.every
  for (const [at, instance] of instances.entries()) {
    const status = graphs.setEnabled(instance, node, enabled)
    if (status === success) continue
    const failed = core.fail(operation, status, exec)
    for (const changed of instances.slice(0, at)) graphs.setEnabled(changed, node, wasEnabled)
    return failed
  }
  if (enabled) exec.disabled.delete(index)
  else exec.disabled.add(index)
  return Effect.void
}
