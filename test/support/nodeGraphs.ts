/**
 * Graphs made of nodes that a test describes, run on the native backend without the operations around it.
 */
import { assert } from "@effect/vitest"
import type { LaunchConfig } from "effect-cuda/CudaKernel"
import type { DeviceBuffer, HostBuffer } from "effect-cuda/CudaMemory"
import type { KernelRef } from "effect-cuda/CudaRuntime"
import type { CudaStream } from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { success } from "../../src/cuda/status.ts"
import { NativeBackend } from "../../src/layers/native/Backend.ts"
import { Bindings, GraphNode, GraphResource, isMemoryParameter } from "../../src/layers/shared/graphNodes.ts"
import type { GraphInstance, KernelWork, NodeWork, RecordedScalar } from "../../src/layers/shared/graphNodes.ts"
import { regionsOf } from "../../src/layers/shared/graphPlan.ts"
import { LaunchShape } from "../../src/layers/shared/launchShape.ts"
import { ownKernel } from "../../src/layers/shared/moduleResources.ts"
import { ownMemory, ownStream } from "../../src/layers/shared/resources.ts"
import type { DeviceMemoryResource, EventResource, Owner } from "../../src/layers/shared/resources.ts"

/** The backend that a stream belongs to. */
export const nativeBackend = (stream: CudaStream): NativeBackend => {
  const { owner } = ownStream(stream.ref)
  if (owner instanceof NativeBackend) return owner
  throw new Error("the stream is not of the native runtime")
}

/** A node, and the nodes that it depends on. */
export type NodeRow = readonly [work: NodeWork, ...dependencies: ReadonlyArray<number>]

/** All nodes use all parameters. */
export const graphOf = (
  owner: Owner,
  rows: ReadonlyArray<NodeRow>,
  { events = [], parameters = [], slots = 0 }: Partial<Pick<GraphResource, "events" | "parameters" | "slots">> = {}
): GraphResource =>
  new GraphResource(owner, {
    deviceIndex: 0,
    nodes: nodesOf(rows),
    parameters,
    slotOf: slotsOf(parameters),
    usersOf: parameters.map(() => rows.map((_, index) => index)),
    alignmentOf: [],
    slots,
    scratch: [],
    scratchBytes: 0,
    memories: [],
    modules: [],
    partitions: [],
    handles: [],
    events,
    reads: [],
    writes: [],
    ...regionsOf(nodesOf(rows))
  })

const slotsOf = (parameters: GraphResource["parameters"]): GraphResource["slotOf"] => {
  let slots = 0
  return parameters.map(([, kind]) => isMemoryParameter(kind) ? slots++ : undefined)
}

const nodesOf = (rows: ReadonlyArray<NodeRow>): ReadonlyArray<GraphNode> =>
  rows.map(([work, ...dependencies], index) =>
    new GraphNode(index, { work, operation: "", reads: [], writes: [] }, work.kind, dependencies, undefined)
  )

/** Applies all bindings to some nodes. */
export const bind = (
  backend: NativeBackend,
  instance: GraphInstance,
  graph: GraphResource,
  nodes: ReadonlyArray<GraphNode> = graph.nodes
): number =>
  backend.graphs.bind(instance, graph, {
    parameters: graph.parameters.map((_, parameter) => parameter),
    nodes: nodes.map(({ index }) => index)
  })

/** An instance, which is destroyed with the scope. */
export const instanceOf = (
  backend: NativeBackend,
  graph: GraphResource,
  bindings = new Bindings(graph)
): Effect.Effect<GraphInstance, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      assert.strictEqual(backend.graphs.instantiate(graph, bindings), success)
      return backend.graphs.made!
    }),
    (instance) => Effect.sync(() => assert.strictEqual(backend.graphs.destroy(instance), success))
  )

export const deviceMemory = (buffer: DeviceBuffer): DeviceMemoryResource => {
  const memory = ownMemory(buffer.ref)
  if (memory.kind === "device") return memory
  throw new Error("the buffer is not on a device")
}

export const fill = (
  memory: DeviceMemoryResource,
  value: number,
  { bits = 8, count = 1, offset = 0 }: { bits?: 8 | 16 | 32; count?: number; offset?: number } = {}
): NodeWork => ({ kind: "fill", memory, offset, value, bits, count })

export const copy = (
  to: DeviceBuffer | HostBuffer,
  from: DeviceBuffer | HostBuffer,
  byteLength: number,
  { fromOffset = 0, toOffset = 0 } = {}
): NodeWork => ({
  kind: "copy",
  transfer: { to: ownMemory(to.ref), toOffset, from: ownMemory(from.ref), fromOffset, byteLength }
})

export const record = (event: EventResource): NodeWork => ({ kind: "record", event })

/** A launch, as a recording keeps it. */
export const launch = (
  { ref }: { readonly ref: KernelRef },
  config: LaunchConfig,
  values: ReadonlyArray<unknown>,
  fields: Partial<Pick<KernelWork, "priority" | "startsEarly">> & { readonly scalars?: ReadonlyArray<RecordedScalar> } =
    {}
): NodeWork => {
  const kernel = ownKernel(ref)
  const shape = new LaunchShape()
  shape.read(config)
  assert.isTrue(kernel.arguments.pack(values, 0))
  const { buffer, pointers, tableOffset } = kernel.arguments
  return {
    kind: "kernel",
    kernel,
    shape: { ...shape },
    priority: 0,
    partition: undefined,
    bytes: new Uint8Array(buffer.slice(0, tableOffset)),
    pointers: pointers.map(({ at, byteLength, memory, offset }) => ({ at, byteLength, memory, offset })),
    scalars: [],
    startsEarly: false,
    ...fields
  }
}
