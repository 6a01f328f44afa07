/**
 * Graphs: programs recorded once and launched many times, with one driver call per launch.
 *
 * `record` runs an effect whose operations become the nodes of a graph instead of work on a stream. `instantiate` makes the graph
 * executable, and `launch` runs all of it. Depends on the `CudaRuntime` interface and on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { elementSizeOf } from "./cuda/elements.ts"
import type { ElementType, ScalarKind, ScalarName } from "./cuda/parameters.ts"
import type { DeviceInput } from "./CudaDevice.ts"
import { CudaError, isCudaError } from "./CudaError.ts"
import {
  access,
  DeviceArrayImpl,
  DeviceBufferImpl,
  download,
  HostBufferImpl,
  PinnedArrayImpl,
  slice
} from "./CudaMemory.ts"
import type {
  AccessOptions,
  BufferOptions,
  DeviceArray,
  DeviceBuffer,
  Elements,
  HostBuffer,
  PinnedArray,
  Slice,
  SliceOf
} from "./CudaMemory.ts"
import type { CudaStream } from "./CudaStream.ts"
import { isCudaTaskGraph } from "./CudaTaskGraph.ts"
import type { CudaTaskGraph } from "./CudaTaskGraph.ts"
import { refuseElements } from "./internal/elements.ts"
import { isStream, rangeOf } from "./internal/given.ts"
import { dot, mermaid } from "./internal/graph/picture.ts"
import { recording, recordingBodies } from "./internal/graph/recording.ts"
import type { Body } from "./internal/graph/recording.ts"
import { recordTasks } from "./internal/graph/tasks.ts"
import { countOf, Handle, oneLine, refuseArgument, released, unlessLive } from "./internal/handles.ts"
import { placeOfStream } from "./internal/partition.ts"
import { CurrentPlace, onStream } from "./internal/place.ts"
import { CurrentRecorder } from "./internal/timing/current.ts"
import { CudaRuntime, CurrentNodeName, CurrentRecording } from "./layers/CudaRuntime.ts"
import type {
  CudaRuntimeService,
  ForeignSimulation,
  ForeignWork,
  GraphCondition,
  GraphExecRef,
  GraphMemoryParameter,
  GraphNodeRef,
  GraphPlaceholder,
  GraphRef,
  GraphScalarRef,
  GraphValue,
  ScalarArgument,
  StreamRef
} from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaGraph"
const ExecTypeId = "~effect-cuda/CudaGraph/Exec"

/**
 * A parameter of a graph: memory or a number that each launch is given.
 *
 * @category parameters
 * @since 0.1.0
 */
export type GraphParameter = GraphMemoryParameter | ScalarKind

/**
 * The parameters of a graph, by name.
 *
 * @category parameters
 * @since 0.1.0
 */
export type GraphParameters = Readonly<Record<string, GraphParameter>>

/**
 * What stands for the parameters while a graph is recorded: buffers, and numbers that are only known as arguments of launches.
 *
 * @category parameters
 * @since 0.1.0
 */
export type Placeholders<Parameters extends GraphParameters> = {
  readonly [Name in keyof Parameters]: Parameters[Name] extends GraphMemoryParameter<"device", infer Element>
    ? [Element] extends [ElementType] ? DeviceArray<Element> : DeviceBuffer
    : Parameters[Name] extends GraphMemoryParameter<"host", infer Element>
      ? [Element] extends [ElementType] ? PinnedArray<Element> : HostBuffer
    : Parameters[Name] extends ScalarKind<infer Kind> ? GraphScalar<Kind>
    : never
}

/**
 * The values that a launch is given for the parameters.
 *
 * @category parameters
 * @since 0.1.0
 */
export type Values<Parameters extends GraphParameters> = {
  readonly [Name in keyof Parameters]: Parameters[Name] extends GraphMemoryParameter<"device", infer Element>
    ? [Element] extends [ElementType] ? Elements<Element, DeviceBuffer> : Slice<DeviceBuffer>
    : Parameters[Name] extends GraphMemoryParameter<"host", infer Element>
      ? [Element] extends [ElementType] ? Elements<Element, HostBuffer> : Slice<HostBuffer>
    : Parameters[Name] extends ScalarKind<infer Kind> ? ScalarArgument<Kind>
    : never
}

/**
 * The values that `embed` is given: those of a launch, or placeholders of the graph that is being recorded.
 *
 * @category parameters
 * @since 0.1.0
 */
export type EmbeddedValues<Parameters extends GraphParameters> = {
  readonly [Name in keyof Parameters]: Parameters[Name] extends ScalarKind<infer Kind>
    ? ScalarArgument<Kind> | GraphScalar<Kind>
    : Values<Parameters>[Name]
}

/**
 * Stands for a number or a boolean in the arguments of a recorded launch.
 *
 * @category parameters
 * @since 0.1.0
 */
export type GraphScalar<Name extends ScalarName = ScalarName> = GraphScalarRef<Name>

/**
 * A node: one operation of the recorded program, with the bytes that it reads and writes.
 *
 * @category models
 * @since 0.1.0
 */
export type GraphNode = GraphNodeRef

/**
 * A recorded program. It holds nothing in the driver, so it needs no release.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaGraph<in out Parameters extends GraphParameters = {}, out A = unknown>
  extends Pipeable, Inspectable
{
  readonly "~effect-cuda/CudaGraph": (_: Parameters) => Parameters
  readonly runtime: CudaRuntimeService
  readonly ref: GraphRef
  readonly deviceIndex: number
  readonly parameters: Parameters
  /** The nodes, in the order of recording. */
  readonly nodes: ReadonlyArray<GraphNode>
  /** Bytes of memory for the buffers that the program allocated. Each instance has its own. */
  readonly scratchBytes: number
  /** The result of the program. */
  readonly value: A
}

/**
 * A graph that can be launched (`CUgraphExec`, one per instance).
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaGraphExec<in out Parameters extends GraphParameters = {}> extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaGraph/Exec": (_: Parameters) => Parameters
  readonly runtime: CudaRuntimeService
  readonly ref: GraphExecRef
  readonly deviceIndex: number
  /** Launches that can run at the same time. */
  readonly instances: number
  /** The nodes of the graph that it was made from, or last updated to. */
  readonly nodes: ReadonlyArray<GraphNode>
}

/**
 * Options for recording a graph.
 *
 * @category models
 * @since 0.1.0
 */
export interface RecordOptions {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
  /**
   * Whether the graph may write pinned memory that it also reads, so that a launch reads what an earlier one wrote. Default: false,
   * which fails such a recording.
   */
  readonly overwriteInputs?: boolean | undefined
}

/**
 * Options for making a graph executable.
 *
 * @category models
 * @since 0.1.0
 */
export interface InstantiateOptions {
  /**
   * How many launches can run at the same time. An instance runs one launch after another, so launches on different streams only
   * overlap if there are several instances, which are used in turn. Default: 1.
   */
  readonly instances?: number | undefined
}

/**
 * Returns `true` if a value is a recorded graph.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaGraph = (u: unknown): u is CudaGraph<GraphParameters> => Predicate.hasProperty(u, TypeId)

/**
 * Returns `true` if a value is an executable graph.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaGraphExec = (u: unknown): u is CudaGraphExec<GraphParameters> => Predicate.hasProperty(u, ExecTypeId)

class GraphImpl<Parameters extends GraphParameters, A> extends Handle implements CudaGraph<Parameters, A> {
  readonly [TypeId] = (_: Parameters) => _
  readonly runtime: CudaRuntimeService
  readonly ref: GraphRef
  readonly parameters: Parameters
  readonly value: A
  constructor(runtime: CudaRuntimeService, ref: GraphRef, parameters: Parameters, value: A) {
    super()
    this.runtime = runtime
    this.ref = ref
    this.parameters = parameters
    this.value = value
  }
  get deviceIndex(): number {
    return this.ref.deviceIndex
  }
  get nodes(): ReadonlyArray<GraphNode> {
    return this.ref.nodes
  }
  get scratchBytes(): number {
    return this.ref.scratchBytes
  }
  toString(): string {
    return oneLine("CudaGraph", countOf(this.nodes.length, "node"), `device ${this.deviceIndex}`)
  }
  toJSON() {
    const { deviceIndex, nodes, scratchBytes } = this
    const parameters = Object.keys(this.parameters)
    return { _id: "CudaGraph", deviceIndex, nodes: nodes.map(({ name }) => name), parameters, scratchBytes }
  }
}

class ExecImpl<Parameters extends GraphParameters> extends Handle implements CudaGraphExec<Parameters> {
  readonly [ExecTypeId] = (_: Parameters) => _
  readonly runtime: CudaRuntimeService
  readonly ref: GraphExecRef
  constructor(runtime: CudaRuntimeService, ref: GraphExecRef) {
    super()
    this.runtime = runtime
    this.ref = ref
  }
  get deviceIndex(): number {
    return this.ref.deviceIndex
  }
  get instances(): number {
    return this.ref.instances
  }
  get nodes(): ReadonlyArray<GraphNode> {
    return this.ref.graph.nodes
  }
  toString(): string {
    const { instances } = this
    return oneLine(
      "CudaGraphExec",
      countOf(this.nodes.length, "node"),
      `device ${this.deviceIndex}`,
      instances > 1 && `${instances} instances`,
      unlessLive(this.ref)
    )
  }
  toJSON() {
    const { deviceIndex, instances, nodes } = this
    return {
      _id: "CudaGraphExec",
      deviceIndex,
      instances,
      nodes: nodes.map(({ name }) => name),
      state: this.ref.state
    }
  }
}

/** Whether a single argument is the options of a data-last form. Anything else stands for the graph. */
const isOptions = (u: unknown): boolean => u === undefined || (Predicate.isObject(u) && !(u instanceof Handle))

/**
 * Declares device memory as a parameter. Each launch is given a buffer or a part of one, with at least this many bytes.
 *
 * **Example** (Memory given at each launch)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 *
 * declare const result: CudaMemory.DeviceBuffer
 *
 * const graph = CudaGraph.recordWith(
 *   { input: CudaGraph.buffer(4096) },
 *   ({ input }) => CudaMemory.copy(result, input)
 * )
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export const buffer = (byteLength: number, options: BufferOptions = {}): GraphMemoryParameter<"device", undefined> => ({
  parameter: "device",
  element: undefined,
  byteLength,
  ordered: options.ordered
})

/**
 * Declares pinned memory as a parameter. Each launch is given a buffer or a part of one, with at least this many bytes.
 *
 * **Example** (Pinned memory given at each launch)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 *
 * declare const result: CudaMemory.DeviceBuffer
 *
 * const graph = CudaGraph.recordWith(
 *   { request: CudaGraph.hostBuffer(4096) },
 *   ({ request }) => CudaMemory.copy(result, request)
 * )
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export const hostBuffer = (
  byteLength: number,
  options: BufferOptions = {}
): GraphMemoryParameter<"host", undefined> => ({
  parameter: "host",
  element: undefined,
  byteLength,
  ordered: options.ordered
})

/**
 * Declares device memory with elements of a type as a parameter. Each launch is given an array of that type or elements of one, with at
 * least this many elements; in the recorded program, it is a `DeviceArray`.
 *
 * **Details**
 *
 * A wrong type or length fails when the graph is recorded, and memory of another type with `InvalidArgument` when it is launched.
 *
 * **Example** (A graph that clears the floats it is given)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const graph = yield* CudaGraph.recordWith(
 *     { target: CudaGraph.array("f32", 1000) },
 *     ({ target }) => CudaMemory.fill(target, 0)
 *   )
 *   const exec = yield* CudaGraph.instantiate(graph)
 *   yield* CudaGraph.launch(exec, { target: yield* CudaMemory.array("f32", 1000) })
 * })
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export const array = <const Type extends ElementType>(
  type: Type,
  length: number,
  options: BufferOptions = {}
): GraphMemoryParameter<"device", Type> => ({
  parameter: "device",
  element: type,
  byteLength: bytesIn(type, length),
  ordered: options.ordered
})

/** A wrong length is kept as it is, so that the recording refuses that number. */
const bytesIn = (type: ElementType, length: number): number =>
  Number.isInteger(length) ? length * elementSizeOf(type) : length

/**
 * Declares pinned memory with elements of a type as a parameter, like `array`.
 *
 * **Example** (A graph that uploads the floats it is given)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const device = yield* CudaMemory.array("f32", 1000)
 *   const graph = yield* CudaGraph.recordWith(
 *     { source: CudaGraph.pinnedArray("f32", 1000) },
 *     ({ source }) => CudaMemory.copy(device, source)
 *   )
 *   const exec = yield* CudaGraph.instantiate(graph)
 *   yield* CudaGraph.launch(exec, { source: yield* CudaMemory.pinnedArray("f32", 1000) })
 * })
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export const pinnedArray = <const Type extends ElementType>(
  type: Type,
  length: number,
  options: BufferOptions = {}
): GraphMemoryParameter<"host", Type> => ({
  parameter: "host",
  element: type,
  byteLength: bytesIn(type, length),
  ordered: options.ordered
})

/**
 * Records a program as a graph. The program runs once, and its operations become nodes: copies, fills, launches, and records of events
 * with timing. Whatever orders its streams becomes edges: events, waits, forks and joins, branches, task graphs and ordered buffers.
 *
 * **Details**
 *
 * No driver call is made, so nothing that other fibers do can disturb a recording, and the driver sees nothing of a recording that fails.
 * The graph begins with the work on the current stream inside, and ends when that stream does: join all other streams into it.
 *
 * Buffers that the program allocates with `CudaMemory.allocate` belong to the graph. Each instance has memory for them, in which
 * buffers whose uses never overlap in time share bytes. Buffers from outside are borrowed: once one is released, launches fail with
 * `ResourceReleased`. Kernels must stay loaded, too.
 *
 * An event with timing becomes a node that records it: after each launch, it can be queried, waited for and compared as usual. Other
 * events only order the work inside. A `CudaTiming.region` is measured by launches inside a timeline, and costs other launches nothing.
 *
 * Fails with `CannotRecord` for what cannot be part of a graph, which names the operation and the innermost span or `Effect.fn`:
 *
 * - waiting for the GPU, queries, and reading results, because nothing runs while a program is recorded
 * - a stream from outside, and default streams
 * - an event recorded on the other side of the border
 * - `upload`, `download` and pinned memory allocated inside, because host data would be stale at the second launch
 * - `CudaTiming.timed`, host functions, pipelines, managed memory and prefetches
 * - copies from or to a device whose memory the graph's device cannot access
 * - streams that are not joined at the end
 * - a graph that writes pinned memory that it also reads, unless `overwriteInputs` is true
 *
 * **Gotchas**
 *
 * Loops and conditions of the program run while it is recorded, not at each launch. Do not pass addresses of buffers of the graph as
 * plain numbers: they are only known at a launch.
 *
 * **Example** (A copy and a fill, launched a hundred times)
 *
 * ```ts
 * import { CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const input = yield* CudaMemory.allocate(4096)
 *   const output = yield* CudaMemory.allocate(4096)
 *   const graph = yield* CudaGraph.record(Effect.gen(function*() {
 *     yield* CudaMemory.copy(output, input)
 *     yield* CudaMemory.fill(input, 0)
 *   }))
 *   const exec = yield* CudaGraph.instantiate(graph)
 *   const stream = yield* CudaStream.make()
 *   for (let launch = 0; launch < 100; launch++) yield* CudaGraph.launch(exec, stream)
 *   yield* CudaStream.synchronize(stream)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const record: {
  (
    options?: RecordOptions
  ): <A, E, R>(
    program: Effect.Effect<A, E, R>
  ) => Effect.Effect<CudaGraph<{}, A>, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>>
  <A, E, R>(
    program: Effect.Effect<A, E, R>,
    options?: RecordOptions
  ): Effect.Effect<CudaGraph<{}, A>, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(program: Effect.Effect<A, E, R>, options: RecordOptions = {}) => recordBody({}, () => program, options)
)

/**
 * Records a program with parameters. `body` gets what stands for each parameter: a buffer for `buffer` and `hostBuffer`, and an argument
 * of launches for a kind of `CudaParameter`. See `record`.
 *
 * **Details**
 *
 * Each launch is given the values. Only the nodes that use a changed value are changed, at a fraction of a microsecond each.
 *
 * **Gotchas**
 *
 * Two parameters are taken for different memory. If a launch gives both the same bytes, the order between their nodes is the one
 * recorded, which may be none.
 *
 * Changing the buffers of a 2D copy makes the instance anew, because the driver cannot change such a node.
 *
 * **Example** (A graph with an input and a factor)
 *
 * ```ts
 * import { CudaGraph, CudaKernel, CudaMemory, CudaParameter } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const scale: CudaKernel.CudaKernel<
 *   [typeof CudaParameter.output, typeof CudaParameter.input, typeof CudaParameter.f32]
 * >
 *
 * const program = Effect.gen(function*() {
 *   const result = yield* CudaMemory.allocate(4096)
 *   const graph = yield* CudaGraph.recordWith(
 *     { input: CudaGraph.buffer(4096), factor: CudaParameter.f32 },
 *     ({ factor, input }) => CudaKernel.launch(scale, { grid: 4, block: 256 }, [result, input, factor])
 *   )
 *   const exec = yield* CudaGraph.instantiate(graph)
 *   const input = yield* CudaMemory.allocate(4096)
 *   yield* CudaGraph.launch(exec, { input, factor: 2 })
 *   yield* CudaGraph.launch(exec, { input, factor: 3 })
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const recordWith = <const Parameters extends GraphParameters, A, E, R>(
  parameters: Parameters,
  body: (placeholders: Placeholders<Parameters>) => Effect.Effect<A, E, R>,
  options: RecordOptions = {}
): Effect.Effect<CudaGraph<Parameters, A>, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>> =>
  recordBody(parameters, (placeholders, runtime) => {
    const kinds = Object.values(parameters)
    const named = Object.keys(parameters).map((name, index) => [
      name,
      wrap(runtime, placeholders[index]!, kinds[index]!)
    ])
    return body(Object.fromEntries(named))
  }, options)

/** The handle of a placeholder; a number has none. */
const wrap = (runtime: CudaRuntimeService, placeholder: GraphPlaceholder, parameter: GraphParameter) => {
  if ("scalar" in placeholder) return placeholder
  const element = elementOf(parameter)
  if (placeholder.kind === "device") {
    return element === undefined
      ? new DeviceBufferImpl(runtime, placeholder)
      : new DeviceArrayImpl(runtime, placeholder, element)
  }
  return element === undefined
    ? new HostBufferImpl(runtime, placeholder)
    : new PinnedArrayImpl(runtime, placeholder, element)
}

/** The element type of a parameter; undefined for memory without one, and for a number. */
const elementOf = (parameter: GraphParameter): ElementType | undefined =>
  "parameter" in parameter ? parameter.element : undefined

const recordBody = <Parameters extends GraphParameters, A, E, R>(
  parameters: Parameters,
  body: Body<A, E, R>,
  { device, overwriteInputs }: RecordOptions
): Effect.Effect<CudaGraph<Parameters, A>, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>> =>
  Effect.withFiber((fiber) => {
    const runtime = Context.getUnsafe(fiber.context, CudaRuntime)
    const place = fiber.getRef(CurrentPlace)
    const options = {
      ...placeOfStream(fiber, { device }, place.deviceIndex),
      parameters: Object.entries(parameters),
      overwriteInputs
    }
    return Effect.map(
      recording(runtime, place, options, body),
      ({ graph, value }) => new GraphImpl(runtime, graph, parameters, value)
    )
  })

/**
 * Records a task graph. Its dependencies become the edges between the nodes of the tasks, without streams in between. Nodes are named
 * after their tasks, and the result of the recorded graph is that of all tasks.
 *
 * **Example** (Two tasks and one after both)
 *
 * ```ts
 * import { CudaGraph, CudaMemory, CudaTaskGraph } from "effect-cuda"
 *
 * declare const left: CudaMemory.DeviceBuffer
 * declare const right: CudaMemory.DeviceBuffer
 *
 * const graph = CudaTaskGraph.empty.pipe(
 *   CudaTaskGraph.add("left", CudaMemory.fill(left, 1)),
 *   CudaTaskGraph.add("right", CudaMemory.fill(right, 2)),
 *   CudaTaskGraph.add("both", ["left", "right"], CudaMemory.copy(left, right)),
 *   CudaGraph.fromTasks()
 * )
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromTasks: {
  (
    options?: RecordOptions
  ): <Results, E, R>(
    tasks: CudaTaskGraph<Results, E, R>
  ) => Effect.Effect<CudaGraph<{}, Results>, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>>
  <Results, E, R>(
    tasks: CudaTaskGraph<Results, E, R>,
    options?: RecordOptions
  ): Effect.Effect<CudaGraph<{}, Results>, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>>
} = dual(
  (args) => args.length > 1 || !isOptions(args[0]),
  <Results, E, R>(tasks: CudaTaskGraph<Results, E, R>, options: RecordOptions = {}) =>
    isCudaTaskGraph(tasks)
      ? recordBody({}, (_, runtime) => recordTasks(runtime, tasks), options)
      : refuseArgument("CudaGraph.fromTasks", "tasks", tasks, "a task graph")
)

/**
 * Names the nodes that an effect records, for diagrams and for `setEnabled`.
 *
 * **Example** (A node with a name in diagrams)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 *
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const graph = CudaGraph.record(CudaMemory.fill(buffer, 0).pipe(CudaGraph.named("clear")))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const named: {
  (name: string): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, name: string): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, name: string) => Effect.provideService(self, CurrentNodeName, name)
)

/**
 * Records the nodes of another graph, after the work of a stream of the recording so far, by default the current one.
 *
 * **Details**
 *
 * The nodes become part of the graph that is being recorded, with values for the parameters. Fails with `InvalidArgument` outside
 * recordings: launch the graph instead.
 *
 * **Example** (The same steps twice)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const twice = Effect.gen(function*() {
 *   const clear = yield* CudaGraph.recordWith({ target: CudaGraph.buffer(4096) }, ({ target }) => CudaMemory.fill(target, 0))
 *   const [one, other] = [yield* CudaMemory.allocate(4096), yield* CudaMemory.allocate(4096)]
 *   return yield* CudaGraph.record(Effect.gen(function*() {
 *     yield* CudaGraph.embed(clear, { target: one })
 *     yield* CudaGraph.embed(clear, { target: other })
 *   }))
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export function embed<A>(self: CudaGraph<{}, A>, stream?: CudaStream): Effect.Effect<void, CudaError>
export function embed<Parameters extends GraphParameters, A>(
  self: CudaGraph<Parameters, A>,
  values: EmbeddedValues<Parameters>,
  stream?: CudaStream
): Effect.Effect<void, CudaError>
export function embed(self: CudaGraph<GraphParameters>, first?: object, second?: CudaStream) {
  const operation = "CudaGraph.embed"
  if (!isCudaGraph(self)) return refuseArgument(operation, "graph", self, "a recorded graph")
  const { ref, runtime } = self
  const { given, stream } = argumentsOf(first, second)
  if (given !== undefined && !isValues(given)) return refuseGiven(operation, given)
  const mistyped = refuseTypes(operation, ref, given)
  if (mistyped !== undefined) return mistyped
  const values = valuesOf(ref, given)
  return onStream(operation, runtime, self.deviceIndex, stream, (own) => runtime.graphEmbed(ref, values, own))
}

/**
 * Options for `capture`.
 *
 * @category models
 * @since 0.1.0
 */
export interface CaptureOptions extends AccessOptions {
  /**
   * Stands in for the work on simulated devices, which cannot run native code: called when the stream reaches it, with the bytes of
   * `reads` and `writes`.
   */
  readonly simulate?: ForeignSimulation | undefined
}

/**
 * Makes work that other native code enqueues, such as that of a library, part of the program. `use` is given the stream to enqueue it
 * on, as the address of a `CUstream`. For a single call, use `CudaMemory.enqueue`.
 *
 * **Details**
 *
 * Inside a recording, the driver captures the work (`cuStreamBeginCapture` on a stream of its own, in relaxed mode, so that nothing else
 * in the process disturbs it), and the work becomes one node, a graph within the graph. Outside, `use` is given the stream itself. Either
 * way, list the memory that the work uses: its lifetime and the order of ordered buffers are kept as by `CudaMemory.access`.
 *
 * On simulated devices, `simulate` runs instead of `use`. Without it, fails with `InvalidArgument`.
 *
 * Inside a recording, fails with `CannotRecord`
 *
 * - if nothing was enqueued on the stream
 * - if the work allocates memory in stream order, as libraries do that have no workspace of their own
 * - for memory of the recording, which has no address yet
 * - for operations of this library on the same stream inside `use`
 *
 * **Gotchas**
 *
 * Check the status of every native call: one that cannot be captured answers with an error, and is missing in the graph. What the work
 * uses beside the listed memory, such as its code and its workspace, must live as long as graphs with it are launched. The node cannot be
 * disabled, and its addresses do not change.
 *
 * **Example** (A native function as part of a graph)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const scale: (output: number, input: number, stream: number) => void
 * declare const [input, output]: ReadonlyArray<CudaMemory.DeviceBuffer>
 *
 * const program = CudaGraph.record(Effect.gen(function*() {
 *   yield* CudaMemory.fill(input, 1)
 *   yield* CudaGraph.capture(
 *     (stream) => Effect.sync(() => scale(output.address, input.address, stream)),
 *     { reads: [input], writes: [output] }
 *   )
 * }))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const capture = <E, R>(
  use: (stream: number) => Effect.Effect<unknown, E, R>,
  { reads = [], simulate, stream, writes = [] }: CaptureOptions = {}
): Effect.Effect<void, E | CudaError, R | CudaRuntime> =>
  Effect.withFiber((fiber) => {
    const operation = "CudaGraph.capture"
    const runtime = Context.getUnsafe(fiber.context, CudaRuntime)
    return onStream(operation, runtime, undefined, stream, (ref) => {
      const enqueue = Effect.suspend(() =>
        capturing(runtime, { reads: reads.map(rangeOf), writes: writes.map(rangeOf), simulate }, ref, use)
      )
      return access(enqueue, { reads, writes, stream }).pipe(from("CudaMemory.access", operation))
    })
  })

/** Lets an effect enqueue work. What was captured is dropped if it fails. */
const capturing = <E, R>(
  runtime: CudaRuntimeService,
  work: ForeignWork,
  stream: StreamRef,
  use: (stream: number) => Effect.Effect<unknown, E, R>
): Effect.Effect<void, E | CudaError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(runtime.graphCapture(work, stream), (begun) => {
      const { handle } = begun
      const used = handle === undefined ? Effect.void : restore(Effect.suspend(() => use(handle)))
      return Effect.onError(
        Effect.andThen(used, runtime.graphEndCapture(begun).pipe(from("CudaGraph.endCapture", "CudaGraph.capture"))),
        () => Effect.ignore(runtime.graphAbandonCapture(begun))
      )
    })
  )

/**
 * Repeats an effect while a value in device memory, an unsigned integer of 32 bits, is not 0.
 *
 * **Details**
 *
 * Inside a recording, the effect is recorded once, and the device repeats it at each launch without the host: it reads the value
 * before the first repetition, and after each. Outside recordings, the value is read back, and the effect runs for each repetition. The
 * results are the same.
 *
 * The stream waits for all repetitions. On an H200, a repetition takes about 5 µs more than its work.
 *
 * Fails with `FunctionMissing` if the driver is older than CUDA 12.3. Bodies cannot record events with timing, and graphs with
 * conditions can be replaced but not updated.
 *
 * **Example** (Halving until a kernel says that it is enough)
 *
 * ```ts
 * import { CudaGraph, CudaKernel, CudaMemory, CudaParameter } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const halve: CudaKernel.CudaKernel<[typeof CudaParameter.pointer, typeof CudaParameter.output]>
 * declare const values: CudaMemory.DeviceBuffer
 *
 * const program = CudaGraph.record(Effect.gen(function*() {
 *   const isTooLarge = yield* CudaMemory.allocate(4)
 *   yield* CudaMemory.fill32(isTooLarge, 1)
 *   yield* CudaGraph.whileLoop(isTooLarge, CudaKernel.launch(halve, { grid: 1, block: 256 }, [values, isTooLarge]))
 * }))
 * ```
 *
 * @category conditions
 * @since 0.1.0
 */
export const whileLoop = <A, E, R>(
  value: Slice<DeviceBuffer>,
  body: Effect.Effect<A, E, R>
): Effect.Effect<void, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>> =>
  conditional("CudaGraph.whileLoop", "while", value, [body])

/**
 * Runs an effect if a value in device memory, an unsigned integer of 32 bits, is not 0, and otherwise another effect, if one is given.
 * See `whileLoop`.
 *
 * **Details**
 *
 * Inside a recording, both effects are recorded, and the device chooses at each launch.
 *
 * **Example** (Work that depends on a value on the device)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 *
 * declare const flag: CudaMemory.DeviceBuffer
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const graph = CudaGraph.record(CudaGraph.when(flag, CudaMemory.fill(buffer, 1), CudaMemory.fill(buffer, 2)))
 * ```
 *
 * @category conditions
 * @since 0.1.0
 */
export const when = <A, E, R, A2 = never, E2 = never, R2 = never>(
  value: Slice<DeviceBuffer>,
  body: Effect.Effect<A, E, R>,
  otherwise?: Effect.Effect<A2, E2, R2>
): Effect.Effect<void, E | E2 | CudaError, CudaRuntime | Exclude<R | R2, Scope.Scope>> =>
  conditional<E | E2, R | R2>("CudaGraph.when", "when", value, otherwise === undefined ? [body] : [body, otherwise])

/**
 * Runs the effect whose index is a value in device memory, an unsigned integer of 32 bits. Nothing runs if there is no such effect. See
 * `whileLoop`.
 *
 * **Details**
 *
 * Inside a recording, all effects are recorded, and the device chooses at each launch.
 *
 * **Example** (One of three bodies)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 *
 * declare const index: CudaMemory.DeviceBuffer
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const graph = CudaGraph.record(
 *   CudaGraph.match(index, [CudaMemory.fill(buffer, 0), CudaMemory.fill(buffer, 1), CudaMemory.fill(buffer, 2)])
 * )
 * ```
 *
 * @category conditions
 * @since 0.1.0
 */
export const match = <A, E, R>(
  value: Slice<DeviceBuffer>,
  bodies: ReadonlyArray<Effect.Effect<A, E, R>>
): Effect.Effect<void, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>> =>
  conditional("CudaGraph.match", "match", value, bodies)

const conditional = <E, R>(
  operation: string,
  condition: GraphCondition,
  value: Slice<DeviceBuffer>,
  bodies: ReadonlyArray<Effect.Effect<unknown, E, R>>
): Effect.Effect<void, E | CudaError, CudaRuntime | Exclude<R, Scope.Scope>> =>
  Effect.withFiber((fiber) => {
    if (fiber.getRef(CurrentRecording) === undefined) {
      return onHost(condition, value, bodies).pipe(from("CudaGraph.condition", operation))
    }
    const runtime = Context.getUnsafe(fiber.context, CudaRuntime)
    const place = fiber.getRef(CurrentPlace)
    return onStream(operation, runtime, undefined, undefined, (stream) =>
      recordingBodies(
        runtime,
        place,
        stream,
        bodies,
        (refs) => runtime.graphCondition(condition, rangeOf(value), refs, stream)
      )).pipe(from("CudaGraph.condition", operation))
  })

/** Makes failures that name the operation beneath name the public one. */
const from = (beneath: string, operation: string) => <A, E, R>(self: Effect.Effect<A, E | CudaError, R>) =>
  Effect.mapError(
    self,
    (error) => isCudaError(error) && error.operation === beneath ? new CudaError({ ...error, operation }) : error
  )

/** The same without a recording: reads the value back, and runs the body that it asks for. */
const onHost = <E, R>(
  condition: GraphCondition,
  value: Slice<DeviceBuffer>,
  bodies: ReadonlyArray<Effect.Effect<unknown, E, R>>
): Effect.Effect<void, E | CudaError, Exclude<R, Scope.Scope>> => {
  let isOver = false
  const word = new Uint32Array(1)
  const read = Effect.map(download(word, slice(value, 0, word.byteLength)), () => word[0]!)
  const bodyFor = (found: number) => condition === "match" ? bodies[found] : bodies[found === 0 ? 1 : 0]
  const once = Effect.flatMap(read, (found) => {
    const body = condition === "while" && found === 0 ? undefined : bodyFor(found)
    return body === undefined ? Effect.succeed(false) : Effect.as(Effect.scoped(body), true)
  })
  return Effect.whileLoop({
    while: () => !isOver,
    body: () => once,
    step: (ran) => {
      isOver = condition !== "while" || !ran
    }
  })
}

/**
 * Makes a graph executable (`cuGraphInstantiateWithParams`) for as long as the scope is open.
 *
 * **Details**
 *
 * Allocates the graph's memory and makes driver calls that take some 50 µs, and about 3 µs per node: do this ahead of the work that
 * launches the graph. Closing the scope does not wait for launches in progress; the memory of the graph is released after them.
 *
 * If the graph copies from or to other devices, the pools of that memory are made accessible to its device (`cuMemPoolSetAccess`), and
 * stay so.
 *
 * Fails with `GraphRefused` if the driver cannot run the graph, and with `InvalidArgument` if `instances` is not an integer of at least
 * 1.
 *
 * **Example** (Two launches at the same time)
 *
 * ```ts
 * import { CudaGraph, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const graph: CudaGraph.CudaGraph<{}, void>
 *
 * const program = Effect.gen(function*() {
 *   const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
 *   yield* CudaGraph.launch(exec, yield* CudaStream.make())
 *   yield* CudaGraph.launch(exec, yield* CudaStream.make())
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category launching
 * @since 0.1.0
 */
export const instantiate: {
  (
    options?: InstantiateOptions
  ): <Parameters extends GraphParameters, A>(
    self: CudaGraph<Parameters, A>
  ) => Effect.Effect<CudaGraphExec<Parameters>, CudaError, Scope.Scope>
  <Parameters extends GraphParameters, A>(
    self: CudaGraph<Parameters, A>,
    options?: InstantiateOptions
  ): Effect.Effect<CudaGraphExec<Parameters>, CudaError, Scope.Scope>
} = dual(
  (args) => args.length > 1 || !isOptions(args[0]),
  <Parameters extends GraphParameters, A>(
    self: CudaGraph<Parameters, A>,
    { instances = 1 }: InstantiateOptions = {}
  ): Effect.Effect<CudaGraphExec<Parameters>, CudaError, Scope.Scope> => {
    if (!isCudaGraph(self)) return refuseArgument("CudaGraph.instantiate", "graph", self, "a recorded graph")
    const { ref, runtime } = self
    const once = runtime.graphInstantiate(ref, instances)
    const instantiated = Effect.catchReason(
      once,
      "CudaError",
      "OutOfMemory",
      () => Effect.andThen(runtime.memoryReclaim(ref.deviceIndex), once)
    )
    return Effect.map(
      Effect.acquireRelease(
        instantiated,
        (exec) => released(runtime.graphDestroy(exec))
      ),
      (exec) => new ExecImpl<Parameters>(runtime, exec)
    )
  }
)

/**
 * Launches a graph on a stream, by default the current one (`cuGraphLaunch`).
 *
 * **Details**
 *
 * The nodes start after the earlier work of the stream, and later work of the stream starts after all of them. The next launch of the
 * same instance waits for this one, on whatever stream.
 *
 * A graph with parameters is given a value for each. Values are checked like arguments: fails with `InvalidArgument` for memory of the
 * wrong kind or device, memory that is too small, and numbers that do not fit. Fails with `ResourceReleased` if a buffer, an event or a
 * module that the graph uses was released.
 *
 * **Example** (A graph on a stream)
 *
 * ```ts
 * import { CudaGraph, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const exec: CudaGraph.CudaGraphExec<{}>
 *
 * const program = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   yield* CudaGraph.launch(exec, stream)
 *   yield* CudaStream.synchronize(stream)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category launching
 * @since 0.1.0
 */
export function launch(self: CudaGraphExec<{}>, stream?: CudaStream): Effect.Effect<void, CudaError>
export function launch<Parameters extends GraphParameters>(
  self: CudaGraphExec<Parameters>,
  values: Values<Parameters>,
  stream?: CudaStream
): Effect.Effect<void, CudaError>
export function launch(self: CudaGraphExec<GraphParameters>, first?: object, second?: CudaStream) {
  if (!Predicate.isObject(self) || !(ExecTypeId in self)) {
    return refuseArgument("CudaGraph.launch", "exec", self, "an executable graph")
  }
  const { ref, runtime } = self
  const { given, stream } = argumentsOf(first, second)
  if (given !== undefined && !isValues(given)) return refuseGiven("CudaGraph.launch", given)
  const mistyped = refuseTypes("CudaGraph.launch", ref.graph, given)
  if (mistyped !== undefined) return mistyped
  const values = valuesOf(ref.graph, given)
  return stream !== undefined && isCudaStream(stream)
    ? launchOn(runtime, ref, values, stream.ref)
    : launchOnCurrent(self, values, stream)
}

/** Separate, because a function with a closure allocates whenever it is called. */
const launchOnCurrent = (
  { deviceIndex, ref, runtime }: CudaGraphExec<GraphParameters>,
  values: ReadonlyArray<GraphValue>,
  stream: CudaStream | undefined
): Effect.Effect<void, CudaError> =>
  onStream("CudaGraph.launch", runtime, deviceIndex, stream, (own) => launchOn(runtime, ref, values, own))

const launchOn = (
  runtime: CudaRuntimeService,
  ref: GraphExecRef,
  values: ReadonlyArray<GraphValue>,
  stream: StreamRef
): Effect.Effect<void, CudaError> =>
  ref.graph.regions.length + ref.graph.unmeasured === 0
    ? runtime.graphLaunch(ref, values, stream)
    : launchRegions(runtime, ref, values, stream)

/** Launches a graph with regions, which the current timeline measures. */
const launchRegions = (
  runtime: CudaRuntimeService,
  ref: GraphExecRef,
  values: ReadonlyArray<GraphValue>,
  stream: StreamRef
): Effect.Effect<void, CudaError> =>
  Effect.withFiber((fiber) => {
    // Launches inside a recording are refused, before anything is measured.
    const recorder = fiber.getRef(CurrentRecording) === undefined ? fiber.getRef(CurrentRecorder) : undefined
    return recorder?.launch(runtime, ref, values, stream) ?? runtime.graphLaunch(ref, values, stream)
  })

const isCudaStream = (value: unknown): value is CudaStream => isStream(value)

/** Values come before the stream; a graph without parameters needs none. */
const argumentsOf = (first: unknown, second: CudaStream | undefined) =>
  isCudaStream(first) ? { given: undefined, stream: first } : { given: first, stream: second }

const nothing: ReadonlyArray<GraphValue> = []

/** Anything else is probably meant as the stream, and would otherwise be ignored by a graph without parameters. */
const isValues = (given: unknown): boolean => Predicate.isObject(given) && !(given instanceof Handle)

const refuseGiven = (operation: string, given: unknown) =>
  refuseArgument(operation, "values", given, "an object with a value for each parameter, or a stream")

/** Checks of handles on the way of every launch: those of `Predicate.hasProperty` cost 20 ns each. */
const isPart = (value: unknown): value is Slice => Predicate.isObject(value) && "buffer" in value

/** Refuses memory of another element type than its parameter has. Other values are left to the runtime. */
const refuseTypes = (operation: string, { parameters }: GraphRef, given: unknown) => {
  if (!Predicate.isObject(given)) return undefined
  for (const [name, parameter] of parameters) {
    const element = elementOf(parameter)
    if (element === undefined) continue
    const value: SliceOf<ElementType> | undefined = isPart(given[name]) ? given[name] : undefined
    if (value === undefined || value.element === element) continue
    const expected = `elements of ${element} (CudaMemory.typed gives bytes that type)`
    return refuseElements(operation, `values.${name}`, value.element, expected)
  }
  return undefined
}

/** The values in the order of the parameters. A value that is no buffer and no part of one is passed on, and the runtime refuses it. */
const valuesOf = ({ parameters }: GraphRef, given: unknown): ReadonlyArray<GraphValue> => {
  if (parameters.length === 0) return nothing
  const values: Array<GraphValue> = []
  for (const [name] of parameters) {
    const value = Predicate.isObject(given) ? given[name] : undefined
    values.push(isPart(value) ? rangeOf(value) : value as GraphValue)
  }
  return values
}

/**
 * Changes an executable graph to another graph with the same parameters.
 *
 * @category models
 * @since 0.1.0
 */
export interface UpdateOperation {
  <Parameters extends GraphParameters, A>(
    graph: CudaGraph<Parameters, A>
  ): (self: CudaGraphExec<Parameters>) => Effect.Effect<void, CudaError>
  <Parameters extends GraphParameters, A>(
    self: CudaGraphExec<Parameters>,
    graph: CudaGraph<Parameters, A>
  ): Effect.Effect<void, CudaError>
}

/**
 * Makes later launches of an executable graph run another one (`cuGraphExecUpdate`), which costs less than instantiating it. Launches
 * in progress are not affected.
 *
 * **Details**
 *
 * The graphs must have the same parameters, and the same nodes and edges in the same order, marks of regions included: kernels, sizes,
 * addresses and arguments may differ. Otherwise fails with `GraphRefused`, and the executable graph is unchanged. So does a graph that needs
 * more memory of its own. If the driver fails while it changes one of several instances back, the executable graph is released, and later
 * launches fail with `ResourceReleased`.
 *
 * **Example** (The same graph with other values)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const exec: CudaGraph.CudaGraphExec<{}>
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const changed = Effect.gen(function*() {
 *   const graph = yield* CudaGraph.record(CudaMemory.fill(buffer, 2))
 *   yield* CudaGraph.update(exec, graph)
 * })
 * ```
 *
 * @category launching
 * @since 0.1.0
 */
export const update: UpdateOperation = dual(
  2,
  <Parameters extends GraphParameters, A>(
    self: CudaGraphExec<Parameters>,
    graph: CudaGraph<Parameters, A>
  ): Effect.Effect<void, CudaError> => {
    if (!isCudaGraphExec(self)) return refuseArgument("CudaGraph.update", "exec", self, "an executable graph")
    return self.runtime.graphUpdate(self.ref, refOf(graph))
  }
)

/** The reference of a graph. Another value is passed on, and the runtime refuses it. */
const refOf = <Parameters extends GraphParameters>(graph: CudaGraph<Parameters>): GraphRef =>
  Predicate.hasProperty(graph, "ref") ? graph.ref : graph

/**
 * Makes later launches of an executable graph run another one, instantiated anew if the driver cannot update it. See `update`.
 *
 * **Example** (The same graph with other values)
 *
 * ```ts
 * import { CudaGraph, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const exec: CudaGraph.CudaGraphExec<{}>
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const changed = Effect.gen(function*() {
 *   const graph = yield* CudaGraph.record(CudaMemory.fill(buffer, 2))
 *   yield* CudaGraph.updateOrReplace(exec, graph)
 * })
 * ```
 *
 * @category launching
 * @since 0.1.0
 */
export const updateOrReplace: UpdateOperation = dual(
  2,
  <Parameters extends GraphParameters, A>(
    self: CudaGraphExec<Parameters>,
    graph: CudaGraph<Parameters, A>
  ): Effect.Effect<void, CudaError> => {
    if (!isCudaGraphExec(self)) return refuseArgument("CudaGraph.updateOrReplace", "exec", self, "an executable graph")
    const { ref, runtime } = self
    return Effect.catchReason(
      runtime.graphUpdate(ref, refOf(graph)),
      "CudaError",
      "GraphRefused",
      () => runtime.graphReplace(ref, refOf(graph))
    )
  }
)

/**
 * Enables or disables nodes in later launches (`cuGraphNodeSetEnabled`), given by node, by index, or by name. A disabled node does
 * nothing and takes its place in the order. Launches in progress are not affected.
 *
 * **Details**
 *
 * A name stands for all nodes with that name. Fails with `InvalidArgument` if there is none, and for
 * nodes that record events, conditions and captured work.
 *
 * **Example** (A node that is left out)
 *
 * ```ts
 * import { CudaGraph } from "effect-cuda"
 *
 * declare const exec: CudaGraph.CudaGraphExec<{}>
 *
 * const withoutClearing = CudaGraph.setEnabled(exec, "clear", false)
 * ```
 *
 * @category launching
 * @since 0.1.0
 */
export const setEnabled: {
  (
    node: GraphNode | number | string,
    enabled: boolean
  ): <Parameters extends GraphParameters>(self: CudaGraphExec<Parameters>) => Effect.Effect<void, CudaError>
  <Parameters extends GraphParameters>(
    self: CudaGraphExec<Parameters>,
    node: GraphNode | number | string,
    enabled: boolean
  ): Effect.Effect<void, CudaError>
} = dual(
  3,
  <Parameters extends GraphParameters>(
    self: CudaGraphExec<Parameters>,
    node: GraphNode | number | string,
    enabled: boolean
  ): Effect.Effect<void, CudaError> => {
    const operation = "CudaGraph.setEnabled"
    if (!isCudaGraphExec(self)) return refuseArgument(operation, "exec", self, "an executable graph")
    const { ref, runtime } = self
    if (typeof node !== "string") {
      const index = typeof node === "number" ? node : node?.index
      return runtime.graphSetEnabled(ref, index, enabled)
    }
    const meant = ref.graph.nodes.filter(({ name }) => name === node)
    if (meant.length === 0) return refuseArgument(operation, "node", node, "the name of a node")
    return Effect.forEach(meant, ({ index }) => runtime.graphSetEnabled(ref, index, enabled), { discard: true })
  }
)

/**
 * Moves what an executable graph needs to the device (`cuGraphUpload`), so that the first launch takes no longer than others.
 *
 * **Example** (A first launch that is as fast as the others)
 *
 * ```ts
 * import { CudaGraph } from "effect-cuda"
 *
 * declare const exec: CudaGraph.CudaGraphExec<{}>
 *
 * const prepared = CudaGraph.upload(exec)
 * ```
 *
 * @category launching
 * @since 0.1.0
 */
export const upload = <Parameters extends GraphParameters>(
  self: CudaGraphExec<Parameters>,
  stream?: CudaStream
): Effect.Effect<void, CudaError> => {
  const operation = "CudaGraph.upload"
  if (!isCudaGraphExec(self)) return refuseArgument(operation, "exec", self, "an executable graph")
  const { ref, runtime } = self
  return onStream(operation, runtime, self.deviceIndex, stream, (own) => runtime.graphUpload(ref, own))
}

/**
 * Draws a graph as a Mermaid flowchart: boxes are kernels, slanted boxes copies, rounded ones fills, hexagons records of
 * events, diamonds conditions, flags marks of regions, and boxes with double sides captured work.
 *
 * **Example** (A drawing)
 *
 * ```ts
 * import { CudaGraph } from "effect-cuda"
 *
 * declare const graph: CudaGraph.CudaGraph<{}, void>
 *
 * const drawing = CudaGraph.toMermaid(graph)
 * ```
 *
 * @category diagrams
 * @since 0.1.0
 */
export const toMermaid = <Parameters extends GraphParameters, A>(self: CudaGraph<Parameters, A>): string =>
  mermaid(self.nodes)

/**
 * Draws a graph in the DOT language of Graphviz.
 *
 * **Example** (A drawing)
 *
 * ```ts
 * import { CudaGraph } from "effect-cuda"
 *
 * declare const graph: CudaGraph.CudaGraph<{}, void>
 *
 * const drawing = CudaGraph.toDot(graph)
 * ```
 *
 * @category diagrams
 * @since 0.1.0
 */
export const toDot = <Parameters extends GraphParameters, A>(self: CudaGraph<Parameters, A>): string => dot(self.nodes)
