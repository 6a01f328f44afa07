/**
 * Task graphs: named effects that enqueue work, with what each depends on, as a value. It is checked when it is made, run any
 * number of times on as many streams as are worth it, and can be looked at as a picture.
 *
 * Order is events and waits between streams: the host waits only where a task's effect does. Depends on the `CudaRuntime`
 * interface and on what the modules share.
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
import { invalidArgument } from "./CudaError.ts"
import type { CudaError } from "./CudaError.ts"
import { streamPools } from "./CudaStream.ts"
import { countOf, Handle, named, oneLine, refuseArgument, released } from "./internal/handles.ts"
import { atOrigin, CurrentPlace, onStreamOf } from "./internal/place.ts"
import type { AnyStream, Place } from "./internal/place.ts"
import { poolSize } from "./internal/streamPool.ts"
import type { Leased } from "./internal/streamPool.ts"
import { dot, mermaid } from "./internal/taskGraph/picture.ts"
import type { Picture } from "./internal/taskGraph/picture.ts"
import { makePlan, sortTasks } from "./internal/taskGraph/plan.ts"
import type { Dependencies, Plan } from "./internal/taskGraph/plan.ts"
import type { CudaRuntime, CudaRuntimeService, EventRef, StreamRef } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaTaskGraph"

/**
 * Tasks and what each depends on. `Results` has a field for every task: what its effect gives.
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
  /** The tasks, each after those it depends on. */
  readonly tasks: ReadonlyArray<Task<unknown, E, R>>
}

/**
 * A task: an effect that enqueues work on its current stream, made of the results of the tasks it depends on.
 *
 * @category models
 * @since 0.1.0
 */
export interface Task<A, E = never, R = never> {
  readonly name: string
  /** The names of the tasks it depends on. */
  readonly after?: ReadonlyArray<string> | undefined
  /** Called in every run, with the results of the tasks in `after`, by name. */
  run(results: Readonly<Record<string, A>>): Effect.Effect<A, E, R>
}

/**
 * Options for laying a graph out on streams.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions {
  /**
   * The streams to use at most, the current one included; never more than 32. By default as many as keep the tasks free of
   * each other. With fewer, tasks that share a stream are in order there, and so are their effects.
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
   * How many tasks' effects run at the same time, each as soon as those it depends on have ended. By default one after the
   * other, since the work runs side by side anyway. Needed where they wait for something on the host.
   */
  readonly concurrency?: Concurrency | undefined
}

/**
 * Options for drawing a graph.
 *
 * @category models
 * @since 0.1.0
 */
export interface DiagramOptions extends StreamOptions {
  /** True to show the dependencies that others imply too. Default false. */
  readonly includeImplied?: boolean | undefined
}

/**
 * A name that no task has yet: `never` for a name that is taken, and for a union of names.
 *
 * @category models
 * @since 0.1.0
 */
export type UnusedName<Name extends string, Results> = IsUnion<Name> extends true ? never
  : string extends keyof Results ? Name
  : Exclude<Name, keyof Results>

/**
 * The results of a graph with one more task. Where the names are not known, any of them may be any result.
 *
 * @category models
 * @since 0.1.0
 */
export type WithResult<Results, Name extends string, A> = string extends Name | keyof Results
  ? Readonly<Record<string, Results[keyof Results] | A>>
  : { readonly [Key in keyof Results | Name]: Key extends keyof Results ? Results[Key] : A }

/**
 * The results of the tasks that a task depends on. They are optional where the names are an array rather than a tuple.
 *
 * @category models
 * @since 0.1.0
 */
export type ResultsOf<Results, After extends ReadonlyArray<keyof Results>> = number extends After["length"]
  ? { readonly [Name in After[number]]?: Results[Name] }
  : { readonly [Name in After[number]]: Results[Name] }

/**
 * True for task graphs.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaTaskGraph = (u: unknown): u is CudaTaskGraph<unknown, unknown, unknown> =>
  Predicate.hasProperty(u, TypeId)

class GraphImpl<E, R> extends Handle implements CudaTaskGraph<never, E, R> {
  readonly [TypeId] = variance
  readonly tasks: ReadonlyArray<Task<unknown, E, R>>
  constructor(tasks: ReadonlyArray<Task<unknown, E, R>>) {
    super()
    this.tasks = tasks
  }
  toString(): string {
    return oneLine("CudaTaskGraph", countOf(this.tasks.length, "task"))
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
 * A graph without tasks, to add some to.
 *
 * @category constructors
 * @since 0.1.0
 */
export const empty: CudaTaskGraph<{}> = new GraphImpl<never, never>([])

/**
 * Adds a task: its name, the tasks it depends on if there are any, and its effect or a function that makes it of their results.
 *
 * **Details**
 *
 * What is depended on has to be there already, so that there can be no circle. A name that is unknown, or taken, does not
 * compile; forced past the types, it throws the `CudaError` that `fromTasks` fails with.
 *
 * **Example** (Two uploads side by side, and a copy after both)
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
  const known = new Set(self.tasks.map((other) => other.name))
  const refused = known.has(name)
    ? taken("CudaTaskGraph.add", name)
    : unknownName("CudaTaskGraph.add", name, after, known)
  if (refused !== undefined) throw refused
  const run = Effect.isEffect(task) ? () => task : task
  return new GraphImpl([...self.tasks, { name, after: Array.from(new Set(after)), run }])
}

/**
 * Makes a graph of tasks that are known only when the program runs, in any order.
 *
 * **Details**
 *
 * Fails with `InvalidArgument` for a name that two tasks have, for one that no task has, and for tasks that depend on
 * themselves: the value is then the circle, each task before the one that depends on it.
 *
 * **Example** (A row of layers)
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
      const refused = unknownName(operation, name, after, names)
      if (refused !== undefined) return Effect.fail(refused)
    }
    const { circle, order } = sortTasks(dependenciesOf(list))
    if (circle.length === 0) return Effect.succeed(new GraphImpl(order.map((index) => list[index]!)))
    const path = [...circle, circle[0]!].map((index) => list[index]!.name)
    return refuseArgument(operation, "after", path, "tasks that do not depend on each other in a circle")
  })
}

/** A task that nobody else changes. */
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
  known: ReadonlySet<string>
): CudaError | undefined => {
  for (const other of after) {
    if (!known.has(other)) {
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
 * Runs the tasks, and gives the results of all of them by name.
 *
 * **Details**
 *
 * All work starts after what the current stream holds now, and that stream goes on after all of it. The work of a task starts
 * after that of the tasks it depends on, and waits for nothing else, as far as the pool's 32 streams go.
 *
 * The streams are those of the pool of the current stream's device and priority, and the current one itself. A dependency
 * that others imply costs nothing, and neither does one where the dependent is what its stream does next; the tasks are laid
 * out so that as many as possible are. Each other one is a `cuStreamWaitEvent`, with one `cuEventRecord` for a task however
 * many wait for it. How that is, is found out once for a graph, whatever number of times it runs.
 *
 * The first failure ends the run, as in `Effect.all`. Whatever was enqueued is joined all the same: what follows on the current
 * stream starts after it. Fails with `InvalidArgument` when `streams` is no whole number from 1.
 *
 * **Gotchas**
 *
 * The pool has 32 streams for each device and priority. When more are in use, runs share them, and wait for each other.
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
 *   CudaTaskGraph.add("right", makeRight), // beside `left`
 *   CudaTaskGraph.add("sum", ["left", "right"], ({ left, right }) => addUp(left, right)) // after both
 * )
 *
 * const program = Effect.gen(function*() {
 *   const { sum } = yield* CudaTaskGraph.run(graph)
 *   yield* CudaTaskGraph.run(graph, { streams: 1 }) // all of it on the current stream
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
} = dual((args) => isCudaTaskGraph(args[0]), runGraph)

/**
 * Draws a graph as a Mermaid flowchart: the tasks of each stream in a box, an arrow where one goes on after another, and a
 * dotted one where a stream waits for another. Dependencies that others imply are left out, unless `includeImplied` is true.
 *
 * Throws the `CudaError` that `run` fails with, when `streams` is no whole number from 1.
 *
 * **Example** (A picture for a README)
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
 * Draws a graph in the DOT language of Graphviz: see `toMermaid`.
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
  const most = mostStreams(options)
  if (most === undefined) throw invalidArgument(operation, "streams", options.streams, wholeStreams)
  const { dependencies, plan } = layoutOf(graph, most)
  return { names: graph.tasks.map(({ name }) => name), dependencies, plan, all: options.includeImplied === true }
}

const wholeStreams = "a whole number of streams, at least 1"

/** The bound that options ask for: what the pool has at most, so that no two of them are the same; nothing if it is none. */
const mostStreams = ({ streams = poolSize }: StreamOptions): number | undefined =>
  Number.isInteger(streams) && streams >= 1 ? Math.min(streams, poolSize) : undefined

interface Layout {
  readonly dependencies: Dependencies
  readonly plan: Plan
}

interface Layouts {
  readonly dependencies: Dependencies
  /** By the bound of streams. */
  readonly plans: Map<number, Plan>
}

const layouts = new WeakMap<AnyGraph, Layouts>()

/** A graph never changes, so it is laid out once for each bound. */
const layoutOf = (graph: AnyGraph, most: number): Layout => {
  let known = layouts.get(graph)
  if (known === undefined) {
    layouts.set(graph, known = { dependencies: dependenciesOf(graph.tasks), plans: new Map() })
  }
  const { dependencies, plans } = known
  let plan = plans.get(most)
  if (plan === undefined) plans.set(most, plan = makePlan(dependencies, most))
  return { dependencies, plan }
}

function runGraph<E, R>(
  self: CudaTaskGraph<unknown, E, R>,
  options: RunOptions = {}
): Effect.Effect<Readonly<Record<string, unknown>>, E | CudaError, R | CudaRuntime> {
  return Effect.suspend(() => {
    const { concurrency = 1, streams } = options
    const most = mostStreams(options)
    if (most === undefined) return refuseArgument(operation, "streams", streams, wholeStreams)
    if (self.tasks.length === 0) return Effect.succeed({})
    const layout = layoutOf(self, most)
    return Effect.uninterruptibleMask((restore) =>
      atOrigin(operation, ({ origin, place, runtime }) => {
        const pool = streamPools.get(runtime, origin.device, origin.priority)
        return Effect.flatMap(ours(pool.lease(runtime, layout.plan.streams - 1, origin)), (leased) => {
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

/** Has a failure of what the run itself asks of the runtime say so. */
const ours = named(operation)

interface Surroundings {
  readonly runtime: CudaRuntimeService
  readonly origin: StreamRef
  readonly place: Place
  readonly leased: Leased<AnyStream>
}

/** One run of a graph. Its parts run without interruption, but for the effects of tasks. */
class Run<E, R> {
  readonly #tasks: ReadonlyArray<Task<unknown, E, R>>
  readonly #dependencies: Dependencies
  readonly #plan: Plan
  readonly #around: Surroundings
  /** By the numbers of the plan. */
  readonly #streams: ReadonlyArray<StreamRef>
  readonly #places: ReadonlyArray<Place>
  readonly #isBegun: Array<boolean>
  readonly #results: Array<unknown> = []
  /** What stands for the end of a task's work, as long as tasks are to wait for it. */
  readonly #records: Array<EventRef> = []
  readonly #waiters: Array<number>
  readonly #events: Array<EventRef> = []
  /** Events that nothing is to wait for any more. A wait that is enqueued stays with the record it was made for. */
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
    const permits = Semaphore.makeUnsafe(typeof concurrency === "number" ? Math.max(1, concurrency) : Infinity)
    const { previous, waits } = this.#plan
    return Effect.forEach(this.#tasks, (_, task) => {
      const before = previous[task]
      const needed = before === undefined ? waits[task]! : [before, ...waits[task]!]
      const ready = Effect.forEach(needed, (other) => ended[other]!.await, { discard: true })
      const performed = Effect.andThen(this.#perform(task), ended[task]!.open)
      // Also where the run is not to be interrupted: after a failure, what is waited for may never end.
      return Effect.andThen(Effect.interruptible(ready), permits.withPermit(performed))
    }, { concurrency: "unbounded", discard: true })
  }

  /** What of a run that failed was enqueued is joined as well. */
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
        const own = Effect.suspend(() => this.#tasks[task]!.run(this.#given(task)))
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
    return ours(Effect.flatMap(this.#takeEvent(), (event) => {
      this.#records[task] = event
      return runtime.eventRecord(event, this.#streamOf(task))
    }))
  }

  #takeEvent(): Effect.Effect<EventRef, CudaError> {
    const spare = this.#spare.pop()
    if (spare !== undefined) return Effect.succeed(spare)
    const { origin, runtime } = this.#around
    return Effect.map(runtime.eventCreate(origin.device, eventFlags.disableTiming), (event) => {
      this.#events.push(event)
      return event
    })
  }
}
