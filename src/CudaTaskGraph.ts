/**
 * Task graphs: named effects that enqueue work, and their dependencies, as a value. A graph is checked when it is made, runs any
 * number of times on as many streams as help, and can be drawn as a diagram.
 *
 * Tasks are ordered by events and waits between streams: the host waits only where the effect of a task does. Depends on the
 * `CudaRuntime` interface and on what the modules share.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import * as Latch from "effect/Latch"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import * as Semaphore from "effect/Semaphore"
import type { Concurrency, Covariant, IsUnion } from "effect/Types"
import { eventFlags } from "./cuda/flags.ts"
import type { DeviceInput } from "./CudaDevice.ts"
import { invalidArgument } from "./CudaError.ts"
import type { CudaError } from "./CudaError.ts"
import { streamPools } from "./CudaStream.ts"
import type { CudaStream } from "./CudaStream.ts"
import { refuseForced } from "./internal/given.ts"
import { countOf, Handle, named, oneLine, refuseArgument, released } from "./internal/handles.ts"
import { isWhole, refuseConcurrency, wholeStreams } from "./internal/numbers.ts"
import { atOrigin, CurrentPlace, deviceIndexOf, onStreamOf } from "./internal/place.ts"
import type { AnyStream, Place } from "./internal/place.ts"
import { poolSize } from "./internal/streamPool.ts"
import type { Leased } from "./internal/streamPool.ts"
import { dot, mermaid } from "./internal/taskGraph/picture.ts"
import type { Picture } from "./internal/taskGraph/picture.ts"
import { makePlan, makePlanOver, sortTasks } from "./internal/taskGraph/plan.ts"
import type { Dependencies, Plan } from "./internal/taskGraph/plan.ts"
import { CurrentRecorder } from "./internal/timing/current.ts"
import { CurrentRecording } from "./layers/CudaRuntime.ts"
import type { CudaRuntime, CudaRuntimeService, EventRef, StreamRef } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaTaskGraph"

/**
 * Tasks and their dependencies. `Results` has a field for every task: the result of its effect.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaTaskGraph<out Results, out E = never, out R = never> extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaTaskGraph": {
    readonly _Results: Covariant<Results>
    readonly _E: Covariant<E>
    readonly _R: Covariant<R>
  }
  /** The tasks, each after the tasks it depends on. */
  readonly tasks: ReadonlyArray<Task<unknown, E, R>>
}

/**
 * A task: an effect that enqueues work on its current stream, made from the results of the tasks it depends on.
 *
 * @category models
 * @since 0.1.0
 */
export interface Task<A, E = never, R = never> {
  readonly name: string
  /** The names of the tasks it depends on. */
  readonly after?: ReadonlyArray<string> | undefined
  /** Called once per run with the results of the tasks in `after`, by name. */
  run(results: Readonly<Record<string, A>>): Effect.Effect<A, E, R>
}

/**
 * Options for assigning the tasks of a graph to streams.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions {
  /**
   * The most streams to use, including the current one; at least 1, and never more than 32. By default as many as it takes to run
   * independent tasks concurrently. With fewer, tasks that share a stream run in order there, and so do their effects.
   */
  readonly streams?: number | undefined
}

/**
 * Options for running a graph.
 *
 * @category models
 * @since 0.1.0
 */
export interface RunOptions extends StreamOptions {
  /**
   * How many effects of tasks run at the same time, each as soon as its dependencies have ended: an integer of at least 1, or
   * `"unbounded"`. By default they run one after the other, since the work runs concurrently on the GPU anyway. Raise it if tasks
   * wait for something on the host.
   */
  readonly concurrency?: Concurrency | undefined
  /**
   * The devices of tasks, by their names; others run on the current device. The current stream then only forks and joins, and each device
   * has streams of its own. Cannot be given together with `streams`.
   */
  readonly devices?: Readonly<Record<string, DeviceInput>> | undefined
}

/**
 * Options for drawing a graph.
 *
 * @category models
 * @since 0.1.0
 */
export interface DiagramOptions extends StreamOptions {
  /** True to also show dependencies that are implied by others. Default: false. */
  readonly includeImplied?: boolean | undefined
}

/**
 * A name that no task has yet. `never` for a name that is taken, and for a union of names.
 *
 * @category models
 * @since 0.1.0
 */
export type UnusedName<Name extends string, Results> = IsUnion<Name> extends true ? never
  : string extends keyof Results ? Name
  : Exclude<Name, keyof Results>

/**
 * The results of a graph with one more task. If the names are not known, each of them may be any of the results.
 *
 * @category models
 * @since 0.1.0
 */
export type WithResult<Results, Name extends string, A> = string extends Name | keyof Results
  ? Readonly<Record<string, Results[keyof Results] | A>>
  : { readonly [Key in keyof Results | Name]: Key extends keyof Results ? Results[Key] : A }

/**
 * The results of the tasks that a task depends on. They are optional if the names are an array rather than a tuple.
 *
 * @category models
 * @since 0.1.0
 */
export type ResultsOf<Results, After extends ReadonlyArray<keyof Results>> = number extends After["length"]
  ? { readonly [Name in After[number]]?: Results[Name] }
  : { readonly [Name in After[number]]: Results[Name] }

/**
 * Returns `true` if a value is a task graph.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaTaskGraph = (u: unknown): u is CudaTaskGraph<unknown, unknown, unknown> =>
  Predicate.hasProperty(u, TypeId)

/** A list of tasks, shared by graphs that extend each other. Each graph consists of a prefix of the list. */
interface TaskList<E, R> {
  readonly tasks: Array<Task<unknown, E, R>>
  /** The index of each task by name. */
  readonly numbers: Map<string, number>
}

const listOf = <E, R>(tasks: Array<Task<unknown, E, R>>): TaskList<E, R> => ({
  tasks,
  numbers: new Map(tasks.map(({ name }, index) => [name, index]))
})

class GraphImpl<E, R> extends Handle implements CudaTaskGraph<never, E, R> {
  readonly [TypeId] = variance
  readonly #list: TaskList<E, R>
  readonly #count: number
  #tasks: ReadonlyArray<Task<unknown, E, R>> | undefined
  constructor(list: TaskList<E, R>) {
    super()
    this.#list = list
    this.#count = list.tasks.length
  }
  get tasks(): ReadonlyArray<Task<unknown, E, R>> {
    return this.#tasks ??= this.#list.tasks.slice(0, this.#count)
  }
  has(name: string): boolean {
    const number = this.#list.numbers.get(name)
    return number !== undefined && number < this.#count
  }
  /** Extends the shared list, or a copy if another graph already has. So adding tasks one after another copies nothing. */
  with(task: Task<unknown, E, R>): GraphImpl<E, R> {
    const isLatest = this.#list.tasks.length === this.#count
    const list = isLatest ? this.#list : listOf(this.#list.tasks.slice(0, this.#count))
    list.numbers.set(task.name, list.tasks.push(task) - 1)
    return new GraphImpl(list)
  }
  toString(): string {
    return oneLine("CudaTaskGraph", countOf(this.#count, "task"))
  }
  toJSON() {
    return { _id: "CudaTaskGraph", tasks: this.tasks.map(({ after = [], name }) => ({ name, after })) }
  }
}

const variance = {
  _Results: (_: never) => _,
  _E: (_: never) => _,
  _R: (_: never) => _
}

/**
 * A graph without tasks, to which tasks can be added.
 *
 * **Example** (Two tasks as a diagram)
 *
 * ```ts
 * import { CudaMemory, CudaTaskGraph } from "effect-cuda"
 *
 * declare const a: CudaMemory.DeviceBuffer
 * declare const b: CudaMemory.DeviceBuffer
 *
 * const tasks = CudaTaskGraph.empty.pipe(
 *   CudaTaskGraph.add("fill", CudaMemory.fill(a, 1)),
 *   CudaTaskGraph.add("copy", ["fill"], CudaMemory.copy(b, a))
 * )
 * const diagram = CudaTaskGraph.toDot(tasks)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const empty: CudaTaskGraph<{}> = new GraphImpl<never, never>(listOf([]))

/**
 * Adds a task: its name, the names of the tasks it depends on if there are any, and its effect or a function that makes the effect
 * from their results.
 *
 * **Details**
 *
 * A task can only depend on tasks that were added before it, so there are no cycles. A name that is unknown or taken does not
 * compile. If forced past the types, it throws the `CudaError` that `fromTasks` fails with.
 *
 * **Example** (An upload concurrent with a fill, and a copy after both)
 *
 * ```ts
 * import { CudaMemory, CudaTaskGraph } from "effect-cuda"
 *
 * declare const weights: CudaMemory.DeviceBuffer
 * declare const sums: CudaMemory.DeviceBuffer
 * declare const numbers: Float32Array<ArrayBuffer>
 *
 * const graph = CudaTaskGraph.empty.pipe(
 *   CudaTaskGraph.add("weights", CudaMemory.upload(weights, numbers)),
 *   CudaTaskGraph.add("sums", CudaMemory.fill(sums, 0)),
 *   CudaTaskGraph.add("start", ["weights", "sums"], CudaMemory.copy(sums, weights))
 * )
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const add: {
  <Name extends string, Results, A, E2, R2>(
    name: UnusedName<Name, Results>,
    task: Effect.Effect<A, E2, R2>
  ): <E, R>(self: CudaTaskGraph<Results, E, R>) => CudaTaskGraph<WithResult<Results, Name, A>, E | E2, R | R2>
  <Name extends string, Results, const After extends ReadonlyArray<keyof Results & string>, A, E2, R2>(
    name: UnusedName<Name, Results>,
    after: After,
    task: Effect.Effect<A, E2, R2> | ((results: ResultsOf<Results, After>) => Effect.Effect<A, E2, R2>)
  ): <E, R>(self: CudaTaskGraph<Results, E, R>) => CudaTaskGraph<WithResult<Results, Name, A>, E | E2, R | R2>
  <Name extends string, Results, E, R, A, E2, R2>(
    self: CudaTaskGraph<Results, E, R>,
    name: UnusedName<Name, Results>,
    task: Effect.Effect<A, E2, R2>
  ): CudaTaskGraph<WithResult<Results, Name, A>, E | E2, R | R2>
  <Name extends string, Results, E, R, const After extends ReadonlyArray<keyof Results & string>, A, E2, R2>(
    self: CudaTaskGraph<Results, E, R>,
    name: UnusedName<Name, Results>,
    after: After,
    task: Effect.Effect<A, E2, R2> | ((results: ResultsOf<Results, After>) => Effect.Effect<A, E2, R2>)
  ): CudaTaskGraph<WithResult<Results, Name, A>, E | E2, R | R2>
} = dual((args) => isCudaTaskGraph(args[0]), addTask)

type AnyEffect = Effect.Effect<unknown, unknown, unknown>
type AnyTask = AnyEffect | ((results: Readonly<Record<string, unknown>>) => AnyEffect)

function addTask(
  self: CudaTaskGraph<unknown, unknown, unknown>,
  name: string,
  ...rest: [task: AnyTask] | [after: ReadonlyArray<string>, task: AnyTask]
): CudaTaskGraph<never, unknown, unknown> {
  const [after, task] = rest.length === 1 ? [[], rest[0]] : rest
  const graph = self instanceof GraphImpl ? self : new GraphImpl(listOf(self.tasks.slice()))
  const isKnown = (other: string) => graph.has(other)
  const refused = isKnown(name)
    ? taken("CudaTaskGraph.add", name)
    : unknownName("CudaTaskGraph.add", name, after, isKnown)
  if (refused !== undefined) throw refused
  const run = Effect.isEffect(task) ? () => task : task
  return graph.with({ name, after: Array.from(new Set(after)), run })
}

/**
 * Makes a graph from tasks that are known only at run time, in any order.
 *
 * **Details**
 *
 * Fails with `InvalidArgument` if two tasks have the same name, if a task depends on a name that no task has, and if tasks depend on
 * each other in a cycle. The value is then the cycle, each task before the one that depends on it.
 *
 * **Example** (A sequence of layers)
 *
 * ```ts
 * import { CudaTaskGraph } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const runLayer: (index: number) => Effect.Effect<void>
 *
 * const program = Effect.gen(function*() {
 *   const graph = yield* CudaTaskGraph.fromTasks(
 *     Array.from({ length: 12 }, (_, index) => ({
 *       name: `layer ${index}`,
 *       after: index === 0 ? [] : [`layer ${index - 1}`],
 *       run: () => runLayer(index)
 *     }))
 *   )
 *   yield* CudaTaskGraph.run(graph)
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromTasks = <A, E, R>(
  tasks: Iterable<Task<A, E, R>>
): Effect.Effect<CudaTaskGraph<Readonly<Record<string, A>>, E, R>, CudaError> => {
  const list = Array.from(tasks, (task) => copyOf(task))
  return Effect.suspend(() => {
    const operation = "CudaTaskGraph.fromTasks"
    const names = new Set<string>()
    for (const { name } of list) {
      if (names.has(name)) return Effect.fail(taken(operation, name))
      names.add(name)
    }
    for (const { after, name } of list) {
      const refused = unknownName(operation, name, after, (other) => names.has(other))
      if (refused !== undefined) return Effect.fail(refused)
    }
    const { cycle, order } = sortTasks(dependenciesOf(list))
    if (cycle.length === 0) return Effect.succeed(new GraphImpl(listOf(order.map((index) => list[index]!))))
    const path = [...cycle, cycle[0]!].map((index) => list[index]!.name)
    return refuseArgument(operation, "after", path, "tasks that do not depend on each other in a cycle")
  })
}

/** A copy that later changes to the task do not affect. */
const copyOf = <A, E, R>(task: Task<A, E, R>) => ({
  name: task.name,
  after: Array.from(new Set(task.after)),
  run: (results: Readonly<Record<string, A>>) => task.run(results)
})

const taken = (operation: string, name: string): CudaError =>
  invalidArgument(operation, "name", name, "a name that no other task has")

const unknownName = (
  operation: string,
  name: string,
  after: Iterable<string>,
  isKnown: (name: string) => boolean
): CudaError | undefined => {
  for (const other of after) {
    if (!isKnown(other)) {
      return invalidArgument(
        operation,
        "after",
        other,
        `the name of another task for ${JSON.stringify(name)} to depend on`
      )
    }
  }
  return undefined
}

const dependenciesOf = (
  tasks: ReadonlyArray<{ readonly name: string; readonly after?: ReadonlyArray<string> | undefined }>
): Dependencies => {
  const indexOf = new Map(tasks.map(({ name }, index) => [name, index]))
  return tasks.map(({ after = [] }) => after.map((name) => indexOf.get(name)!))
}

/**
 * Runs the tasks and returns the results of all of them by name.
 *
 * **Details**
 *
 * All work starts after the work that the current stream holds now, and the current stream continues after all of it. The work of a
 * task starts after the work of the tasks it depends on and waits for nothing else, as far as the 32 streams of the pool allow.
 *
 * The streams are the current one and pooled streams of its device and priority. A dependency that is implied by others costs
 * nothing, nor does one whose dependent is the next task on the same stream. Tasks are assigned to streams so that this is the case
 * for as many dependencies as possible. Each remaining dependency is a `cuStreamWaitEvent`, and each task that others wait for
 * needs one `cuEventRecord`. The plan is computed once per graph and reused by later runs.
 *
 * With `devices`, dependencies between tasks of different devices are waits as well, and the current device of a task's effect is that of
 * the task. To use the memory of another device, copy it, or give access with `CudaDevice.enablePeerAccess`. Fails with `InvalidArgument`
 * for names that no task has and for devices that do not exist.
 *
 * Inside `CudaTiming.timeline`, every task is a region with its name, on its stream. In recordings it is not; use `CudaTiming.region` there.
 *
 * The first failure ends the run, as in `Effect.all`. All work that was enqueued is joined nevertheless: later work on the current
 * stream starts after it. Fails with `InvalidArgument` if `streams` is not an integer of at least 1, if `concurrency` is neither
 * that nor `"unbounded"`, and if the graph has more than 65,536 tasks.
 *
 * **Gotchas**
 *
 * The pool has 32 streams per device and priority. When more are in use, runs share streams and wait for each other.
 *
 * **Example** (The same graph twice)
 *
 * ```ts
 * import { CudaMemory, CudaStream, CudaTaskGraph } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const makeLeft: Effect.Effect<CudaMemory.DeviceBuffer>
 * declare const makeRight: Effect.Effect<CudaMemory.DeviceBuffer>
 * declare const addUp: (a: CudaMemory.DeviceBuffer, b: CudaMemory.DeviceBuffer) => Effect.Effect<CudaMemory.DeviceBuffer>
 *
 * const graph = CudaTaskGraph.empty.pipe(
 *   CudaTaskGraph.add("left", makeLeft),
 *   CudaTaskGraph.add("right", makeRight), // concurrent with `left`
 *   CudaTaskGraph.add("sum", ["left", "right"], ({ left, right }) => addUp(left, right)) // after both
 * )
 *
 * const program = Effect.gen(function*() {
 *   const { sum } = yield* CudaTaskGraph.run(graph)
 *   yield* CudaTaskGraph.run(graph, { streams: 1 }) // everything on the current stream
 *   yield* CudaStream.synchronize(yield* CudaStream.current())
 *   return sum
 * })
 * ```
 *
 * @category running
 * @since 0.1.0
 */
export const run: {
  (
    options?: RunOptions
  ): <Results, E, R>(
    self: CudaTaskGraph<Results, E, R>
  ) => Effect.Effect<Results, E | CudaError, R | CudaRuntime>
  <Results, E, R>(
    self: CudaTaskGraph<Results, E, R>,
    options?: RunOptions
  ): Effect.Effect<Results, E | CudaError, R | CudaRuntime>
} = dual((args) => args.length > 1 || !isRunOptions(args[0]), runGraph)

/** Whether a single argument is the options of the data-last form. Anything else stands for the graph. */
const isRunOptions = (u: unknown): boolean => u === undefined || (Predicate.isObject(u) && !(u instanceof Handle))

/**
 * Draws a graph as a Mermaid flowchart: a box with the tasks of each stream, an arrow where a task follows another on the same
 * stream, and a dotted arrow where a stream waits for another. Dependencies that are implied by others are omitted unless
 * `includeImplied` is true.
 *
 * Throws the `CudaError` that `run` fails with if `streams` is not an integer of at least 1, or the graph has more than 65,536
 * tasks.
 *
 * **Example** (A diagram for a README)
 *
 * ```ts
 * import { CudaTaskGraph } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const graph = CudaTaskGraph.empty.pipe(
 *   CudaTaskGraph.add("left", Effect.void),
 *   CudaTaskGraph.add("right", Effect.void),
 *   CudaTaskGraph.add("sum", ["left", "right"], Effect.void)
 * )
 *
 * console.log(CudaTaskGraph.toMermaid(graph))
 * ```
 *
 * @category pictures
 * @since 0.1.0
 */
export const toMermaid: {
  (options?: DiagramOptions): <Results, E, R>(self: CudaTaskGraph<Results, E, R>) => string
  <Results, E, R>(self: CudaTaskGraph<Results, E, R>, options?: DiagramOptions): string
} = dual(
  (args) => isCudaTaskGraph(args[0]),
  <Results, E, R>(self: CudaTaskGraph<Results, E, R>, options?: DiagramOptions): string =>
    mermaid(pictureOf("CudaTaskGraph.toMermaid", self, options))
)

/**
 * Draws a graph in the DOT language of Graphviz. See `toMermaid`.
 *
 * **Example** (Two tasks as a diagram)
 *
 * ```ts
 * import { CudaMemory, CudaTaskGraph } from "effect-cuda"
 *
 * declare const a: CudaMemory.DeviceBuffer
 * declare const b: CudaMemory.DeviceBuffer
 *
 * const tasks = CudaTaskGraph.empty.pipe(
 *   CudaTaskGraph.add("fill", CudaMemory.fill(a, 1)),
 *   CudaTaskGraph.add("copy", ["fill"], CudaMemory.copy(b, a))
 * )
 * const diagram = CudaTaskGraph.toDot(tasks)
 * ```
 *
 * @category pictures
 * @since 0.1.0
 */
export const toDot: {
  (options?: DiagramOptions): <Results, E, R>(self: CudaTaskGraph<Results, E, R>) => string
  <Results, E, R>(self: CudaTaskGraph<Results, E, R>, options?: DiagramOptions): string
} = dual(
  (args) => isCudaTaskGraph(args[0]),
  <Results, E, R>(self: CudaTaskGraph<Results, E, R>, options?: DiagramOptions): string =>
    dot(pictureOf("CudaTaskGraph.toDot", self, options))
)

type AnyGraph = CudaTaskGraph<unknown, unknown, unknown>

const pictureOf = (operation: string, graph: AnyGraph, options: DiagramOptions = {}): Picture => {
  const refused = refuseLayout(operation, graph, options)
  if (refused !== undefined) throw refused
  const { dependencies, plan } = layoutOf(graph, mostStreams(options))
  return { names: graph.tasks.map(({ name }) => name), dependencies, plan, all: options.includeImplied === true }
}

/** Planning keeps a bit for each pair of tasks: 512 MiB for this many. */
const mostTasks = 65_536

const refuseLayout = (
  operation: string,
  { tasks }: AnyGraph,
  { streams = 1 }: StreamOptions
): CudaError | undefined => {
  if (!isWhole(streams, 1)) return invalidArgument(operation, "streams", streams, wholeStreams)
  if (tasks.length <= mostTasks) return undefined
  return invalidArgument(operation, "tasks", countOf(tasks.length, "task"), `at most ${mostTasks} tasks`)
}

/** The limit that options set, but at most the size of the pool, so that equal layouts share a key. */
const mostStreams = ({ streams = poolSize }: StreamOptions): number => Math.min(streams, poolSize)

interface Layout {
  readonly dependencies: Dependencies
  readonly plan: Plan
}

interface Layouts {
  readonly dependencies: Dependencies
  /** By the limit of streams, or by the devices of the tasks. */
  readonly plans: Map<number | string, Plan>
}

const layouts = new WeakMap<AnyGraph, Layouts>()

/** A graph never changes, so it is laid out once for each limit. */
const layoutOf = (graph: AnyGraph, most: number, devices?: ReadonlyArray<number>): Layout => {
  let known = layouts.get(graph)
  if (known === undefined) {
    layouts.set(graph, known = { dependencies: dependenciesOf(graph.tasks), plans: new Map() })
  }
  const { dependencies, plans } = known
  const key = devices === undefined ? most : devices.join()
  let plan = plans.get(key)
  if (plan === undefined) {
    plan = devices === undefined ? makePlan(dependencies, most) : makePlanOver(dependencies, devices)
    plans.set(key, plan)
  }
  return { dependencies, plan }
}

function runGraph<E, R>(
  self: CudaTaskGraph<unknown, E, R>,
  options: RunOptions = {}
): Effect.Effect<Readonly<Record<string, unknown>>, E | CudaError, R | CudaRuntime> {
  return Effect.suspend(() => {
    if (!isCudaTaskGraph(self)) return refuseForced(operation, "graph", self, "a task graph")
    const { concurrency = 1 } = options
    const refused = refuseLayout(operation, self, options)
    if (refused !== undefined) return Effect.fail(refused)
    const refusedConcurrency = refuseConcurrency(operation, concurrency)
    if (refusedConcurrency !== undefined) return refusedConcurrency
    if (self.tasks.length === 0) return Effect.succeed({})
    const refusedDevices = refuseDevices(self, options)
    if (refusedDevices !== undefined) return refusedDevices
    return Effect.uninterruptibleMask((restore) =>
      atOrigin(operation, ({ origin, place, runtime }) => {
        const devices = devicesOf(self, options, origin)
        const layout = layoutOf(self, mostStreams(options), devices)
        return Effect.flatMap(ours(leaseFor(runtime, layout.plan, devices, origin)), (leased) => {
          const begun = new Run(self, layout, { runtime, origin, place, leased })
          const all = concurrency === 1 ? begun.inTurn : begun.sideBySide(concurrency)
          const whole = Effect.andThen(begun.fork, restore(all))
          return Effect.map(Effect.onExit(whole, (exit) => begun.end(Exit.isSuccess(exit))), () => begun.results)
        })
      })
    )
  })
}

const operation = "CudaTaskGraph.run"

const refuseDevices = ({ tasks }: AnyGraph, { devices, streams }: RunOptions) => {
  if (devices === undefined) return undefined
  if (!Predicate.isObject(devices) || streams !== undefined) {
    return refuseArgument(operation, "devices", devices, "devices by the names of tasks, and no option streams")
  }
  const names = new Set(tasks.map(({ name }) => name))
  const unknown = Object.keys(devices).find((name) => !names.has(name))
  return unknown === undefined ? undefined : refuseArgument(operation, "devices", unknown, "the names of tasks")
}

/** The device of each task, if any has one. */
const devicesOf = ({ tasks }: AnyGraph, { devices }: RunOptions, { deviceIndex }: StreamRef) =>
  devices &&
  tasks.map(({ name }) => deviceIndexOf(Object.hasOwn(devices, name) ? devices[name] : undefined, deviceIndex))

/** Leases the streams of a plan, from the second one on: the first is the current stream. */
const leaseFor = (
  runtime: CudaRuntimeService,
  { streamOf, streams }: Plan,
  devices: ReadonlyArray<number> | undefined,
  origin: StreamRef
): Effect.Effect<Leased<CudaStream>, CudaError> => {
  const { priority } = origin
  if (devices === undefined) {
    return streamPools.get(runtime, origin, priority).lease(runtime, streams - 1, origin)
  }
  const pools = Array.from({ length: streams - 1 }, (_, index) => ({
    device: devices[streamOf.indexOf(index + 1)],
    priority
  }))
  return streamPools.leaseOver(runtime, pools, pools.length, origin)
}

/** Makes the failures of the run's driver calls name `run`. */
const ours = named(operation)

interface Surroundings {
  readonly runtime: CudaRuntimeService
  readonly origin: StreamRef
  readonly place: Place
  readonly leased: Leased<AnyStream>
}

/** Makes a task a region of the timeline that is being recorded. In a recording, it would add nodes to the graph. */
const inTimeline = <A, E, R>(name: string, self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withFiber((fiber) => {
    if (fiber.getRef(CurrentRecording) !== undefined) return self
    return fiber.getRef(CurrentRecorder)?.around(self, name, {}) ?? self
  })

/** One run of a graph. Everything but the effects of tasks is uninterruptible. */
class Run<E, R> {
  readonly #tasks: ReadonlyArray<Task<unknown, E, R>>
  readonly #dependencies: Dependencies
  readonly #plan: Plan
  readonly #around: Surroundings
  /** By stream number in the plan. */
  readonly #streams: ReadonlyArray<StreamRef>
  readonly #places: ReadonlyArray<Place>
  readonly #isBegun: Array<boolean>
  readonly #results: Array<unknown> = []
  /** The event recorded after each task's work, as long as other tasks still have to wait for it. */
  readonly #records: Array<EventRef> = []
  readonly #waiters: Array<number>
  readonly #events: Array<EventRef> = []
  /** Events that no task will wait for again and that can be recorded again. Waits already enqueued keep their record. */
  readonly #spare: Array<EventRef> = []

  constructor(graph: CudaTaskGraph<unknown, E, R>, { dependencies, plan }: Layout, around: Surroundings) {
    const { leased, origin, place } = around
    this.#tasks = graph.tasks
    this.#dependencies = dependencies
    this.#plan = plan
    this.#around = around
    this.#streams = [origin, ...leased.refs]
    this.#places = [place, ...leased.streams.map((stream) => onStreamOf(stream, place, leased))]
    this.#isBegun = this.#streams.map(() => false)
    this.#waiters = plan.waiters.slice()
  }

  get results(): Readonly<Record<string, unknown>> {
    return Object.fromEntries(this.#tasks.map(({ name }, task) => [name, this.#results[task]]))
  }

  get fork(): Effect.Effect<void, CudaError> {
    const { forks } = this.#plan
    if (forks.length === 0) return Effect.void
    const { origin, runtime } = this.#around
    return ours(runtime.streamFork(origin, forks.map((stream) => this.#streams[stream]!)))
  }

  get inTurn(): Effect.Effect<void, E | CudaError, R> {
    return Effect.forEach(this.#tasks, (_, task) => this.#perform(task), { discard: true })
  }

  sideBySide(concurrency: Concurrency): Effect.Effect<void, E | CudaError, R> {
    const ended = this.#tasks.map(() => Latch.makeUnsafe(false))
    const permits = Semaphore.makeUnsafe(typeof concurrency === "number" ? concurrency : Infinity)
    const { previous, waits } = this.#plan
    return Effect.forEach(this.#tasks, (_, task) => {
      const before = previous[task]
      const needed = before === undefined ? waits[task]! : [before, ...waits[task]!]
      const ready = Effect.forEach(needed, (other) => ended[other]!.await, { discard: true })
      const performed = Effect.andThen(this.#perform(task), ended[task]!.open)
      // Interruptible even in an uninterruptible run: after a failure, the tasks that this one waits for may never end.
      return Effect.andThen(Effect.interruptible(ready), permits.withPermit(performed))
    }, { concurrency: "unbounded", discard: true })
  }

  /** Joins the work that was enqueued, even if the run failed. */
  end(isWhole: boolean): Effect.Effect<void, CudaError> {
    const { leased, origin, runtime } = this.#around
    const { joins } = this.#plan
    const streams = isWhole
      ? joins.map((stream) => this.#streams[stream]!)
      : this.#streams.filter((_, stream) => stream !== 0 && this.#isBegun[stream])
    const joined = streams.length === 0 ? Effect.void : ours(runtime.streamJoin(origin, streams))
    const freed = Effect.forEach(this.#events, (event) => released(runtime.eventDestroy(event)), { discard: true })
    const givenBack = Effect.sync(() => leased.giveBack())
    return Effect.ensuring(isWhole ? joined : Effect.ignore(joined), Effect.andThen(freed, givenBack))
  }

  #perform(task: number): Effect.Effect<void, E | CudaError, R> {
    const stream = this.#plan.streamOf[task]!
    return Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(this.#waitBefore(task), () => {
        this.#isBegun[stream] = true
        const { name } = this.#tasks[task]!
        const own = inTimeline(name, Effect.suspend(() => this.#tasks[task]!.run(this.#given(task))))
        return Effect.flatMap(restore(Effect.provideService(own, CurrentPlace, this.#places[stream]!)), (result) => {
          this.#results[task] = result
          return this.#recordAfter(task)
        })
      })
    )
  }

  #streamOf(task: number): StreamRef {
    return this.#streams[this.#plan.streamOf[task]!]!
  }

  #given(task: number): Readonly<Record<string, unknown>> {
    const given = this.#dependencies[task]!.map((other) => [this.#tasks[other]!.name, this.#results[other]] as const)
    return Object.fromEntries(given)
  }

  #waitBefore(task: number): Effect.Effect<void, CudaError> {
    const waits = this.#plan.waits[task]!
    if (waits.length === 0) return Effect.void
    const { runtime } = this.#around
    const stream = this.#streamOf(task)
    const wait = (other: number) =>
      Effect.map(runtime.streamWaitEvent(stream, this.#records[other]!), () => {
        if (--this.#waiters[other]! === 0) this.#spare.push(this.#records[other]!)
      })
    return ours(Effect.forEach(waits, wait, { discard: true }))
  }

  #recordAfter(task: number): Effect.Effect<void, CudaError> {
    if (this.#waiters[task] === 0) return Effect.void
    const { runtime } = this.#around
    return ours(Effect.flatMap(this.#takeEvent(this.#streamOf(task).deviceIndex), (event) => {
      this.#records[task] = event
      return runtime.eventRecord(event, this.#streamOf(task))
    }))
  }

  /** An event can only be recorded on streams of its device. */
  #takeEvent(deviceIndex: number): Effect.Effect<EventRef, CudaError> {
    const index = this.#spare.findLastIndex((event) => event.deviceIndex === deviceIndex)
    if (index >= 0) return Effect.succeed(this.#spare.splice(index, 1)[0]!)
    const { runtime } = this.#around
    return Effect.map(runtime.eventCreate(deviceIndex, eventFlags.disableTiming), (event) => {
      this.#events.push(event)
      return event
    })
  }
}
