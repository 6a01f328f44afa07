/**
 * Branches: effects that enqueue their work side by side, each on a stream of its own that starts after what the current
 * stream holds, and whose end the current stream waits for.
 *
 * Everything here is events and waits between streams: the host waits only where an effect of a branch does. Depends on the
 * `CudaRuntime` interface and on what the modules share.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { Concurrency } from "effect/Types"
import type { CudaError } from "./CudaError.ts"
import type { CudaStream, PriorityOptions } from "./CudaStream.ts"
import { Handle, named, refuseArgument, released } from "./internal/handles.ts"
import { CurrentPlace, onStream, onStreamOf, regionStream } from "./internal/place.ts"
import type { Place } from "./internal/place.ts"
import { resolvePool, streamPool } from "./internal/streamPool.ts"
import type { Leased } from "./internal/streamPool.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, StreamRef } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaBranch"

/**
 * A branch that was forked, to be joined later.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaBranch<out A, out E = never> extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaBranch": "~effect-cuda/CudaBranch"
  /** The stream that the branch's work is on. */
  readonly stream: CudaStream
  /** The fiber that enqueues it. */
  readonly fiber: Fiber.Fiber<A, E>
}

/**
 * Which streams branches run on: those of the pool of a device and a priority, by default those of the current stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface BranchOptions extends PriorityOptions {}

/**
 * How several branches run.
 *
 * @category models
 * @since 0.1.0
 */
export interface AllOptions extends BranchOptions {
  /**
   * The streams to use at most: branches share them in turn, and those of one stream are in order. By default each branch
   * has its own.
   */
  readonly streams?: number | undefined
  /**
   * How many branches enqueue at the same time, as in `Effect.all`: by default one after the other, since their work runs
   * side by side anyway. Needed where branches wait for something on the host.
   */
  readonly concurrency?: Concurrency | undefined
  /** True to drop the results. */
  readonly discard?: boolean | undefined
}

/**
 * An effect with what branches add to it.
 *
 * @category models
 * @since 0.1.0
 */
export type Branched<Result> = Effect.Effect<
  Effect.Success<Result>,
  Effect.Error<Result> | CudaError,
  Effect.Services<Result> | CudaRuntime
>

/**
 * True for forked branches.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaBranch = (u: unknown): u is CudaBranch<unknown, unknown> => Predicate.hasProperty(u, TypeId)

/**
 * Runs effects as branches: each with a pooled stream as the current one, which starts after what the current stream holds
 * now; the current stream goes on after all of them. Takes a tuple, a record or an iterable, as `Effect.all`.
 *
 * **Details**
 *
 * The branches' work runs side by side on the GPU. The first failure ends the whole, as in `Effect.all`. Branches that failed
 * or were interrupted are joined all the same: what follows on the current stream starts after what they enqueued.
 *
 * Forking is one `cuEventRecord` and a `cuStreamWaitEvent` for each stream, joining one of both for each stream.
 *
 * **Gotchas**
 *
 * The pool has 32 streams for each device and priority. When more are in use, branches share them, and wait for each other.
 *
 * **Example** (Two fills side by side)
 *
 * ```ts
 * import { CudaBranch, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const cleared = Effect.gen(function*() {
 *   const left = yield* CudaMemory.allocate(4096)
 *   const right = yield* CudaMemory.allocate(4096)
 *   yield* CudaBranch.all([CudaMemory.fill(left, 0), CudaMemory.fill(right, 0)])
 *   yield* CudaMemory.copy(left, right) // after both fills
 *   yield* CudaStream.synchronize(yield* CudaStream.current())
 * }).pipe(Effect.scoped, CudaStream.withPooledStream)
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export function all<
  const Arg extends Iterable<Effect.All.EffectAny> | Record<string, Effect.All.EffectAny>,
  Options extends AllOptions
>(branches: Arg, options?: Options): Branched<Effect.All.Return<Arg, Options>>
export function all(
  branches: Iterable<Effect.All.EffectAny> | Record<string, Effect.All.EffectAny>,
  options: AllOptions = {}
): Effect.Effect<unknown, unknown, unknown> {
  if (Predicate.isIterable(branches)) {
    const list = Array.from(branches)
    return branching("CudaBranch.all", list.length, options, (onBranch) =>
      Effect.all(
        list.map((branch, index) => onBranch(index, branch)),
        options
      ))
  }
  const entries = Object.entries(branches)
  return branching("CudaBranch.all", entries.length, options, (onBranch) =>
    Effect.all(
      Object.fromEntries(entries.map(([name, branch], index) => [name, onBranch(index, branch)])),
      options
    ))
}

/**
 * Runs an effect for each item as a branch: see `all`.
 *
 * **Example** (Chunks on four streams)
 *
 * ```ts
 * import { CudaBranch, CudaMemory } from "effect-cuda"
 *
 * declare const chunks: ReadonlyArray<CudaMemory.Slice<CudaMemory.DeviceBuffer>>
 *
 * const cleared = CudaBranch.forEach(chunks, (chunk) => CudaMemory.fill(chunk, 0), { streams: 4, discard: true })
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const forEach: {
  <Item, A, E, R, const Options extends AllOptions = {}>(
    body: (item: Item, index: number) => Effect.Effect<A, E, R>,
    options?: Options
  ): (items: Iterable<Item>) => ForEach<A, E, R, Options>
  <Item, A, E, R, const Options extends AllOptions = {}>(
    items: Iterable<Item>,
    body: (item: Item, index: number) => Effect.Effect<A, E, R>,
    options?: Options
  ): ForEach<A, E, R, Options>
} = dual(
  (args) => Predicate.isIterable(args[0]),
  <Item, A, E, R>(
    items: Iterable<Item>,
    body: (item: Item, index: number) => Effect.Effect<A, E, R>,
    options: AllOptions = {}
  ) => {
    const list = Array.from(items)
    return branching(
      "CudaBranch.forEach",
      list.length,
      options,
      (onBranch) => Effect.forEach(list, (item, index) => onBranch(index, body(item, index)), options)
    )
  }
)

/**
 * What `forEach` returns.
 *
 * @category models
 * @since 0.1.0
 */
export type ForEach<A, E, R, Options> = Effect.Effect<
  Options extends { readonly discard: true } ? void : Array<A>,
  E | CudaError,
  R | CudaRuntime
>

/**
 * Starts an effect as a branch and returns its handle, to be joined later. The branch's stream starts after what the current
 * stream holds now.
 *
 * **Details**
 *
 * The effect runs in a fiber of its own, at once. When the scope closes before the branch was joined, the effect is
 * interrupted, and the stream it was forked from waits for what it enqueued.
 *
 * **Example** (An upload beside a fill)
 *
 * ```ts
 * import { CudaBranch, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const weights = yield* CudaMemory.allocate(4096)
 *   const sums = yield* CudaMemory.allocate(4096)
 *   const uploading = yield* CudaBranch.fork(CudaMemory.upload(weights, new Float32Array(1024)))
 *   yield* CudaMemory.fill(sums, 0) // beside the upload
 *   yield* CudaBranch.join(uploading)
 *   yield* CudaMemory.copy(sums, weights) // after both
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category forks
 * @since 0.1.0
 */
export const fork: {
  (
    options?: BranchOptions
  ): <A, E, R>(
    self: Effect.Effect<A, E, R>
  ) => Effect.Effect<CudaBranch<A, E>, CudaError, R | CudaRuntime | Scope.Scope>
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options?: BranchOptions
  ): Effect.Effect<CudaBranch<A, E>, CudaError, R | CudaRuntime | Scope.Scope>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options: BranchOptions = {}
  ): Effect.Effect<CudaBranch<A, E>, CudaError, R | CudaRuntime | Scope.Scope> =>
    Effect.acquireRelease(
      atOrigin((runtime, origin, place) =>
        forking(
          "CudaBranch.fork",
          { runtime, origin, options, count: 1 },
          (leased) =>
            Effect.map(
              Effect.forkDetach(Effect.provideService(self, CurrentPlace, onStreamOf(leased.streams[0]!, place)), {
                startImmediately: true
              }),
              (fiber) => new BranchImpl(runtime, fiber, leased, origin)
            )
        )
      ),
      (branch) => branch.release
    )
)

/**
 * Makes a stream, by default the current one, go on after all that a branch has enqueued, and returns the branch's result.
 *
 * **Details**
 *
 * Waits on the host for the branch's effect to end, not for its work. A branch that failed is joined too, and then fails with
 * its own failure. May be called any number of times, on any stream, until the scope of the branch closes.
 *
 * @category forks
 * @since 0.1.0
 */
export const join = <A, E>(self: CudaBranch<A, E>, stream?: CudaStream): Effect.Effect<A, E | CudaError> =>
  Effect.flatMap(Fiber.await(self.fiber), (exit) => {
    const { runtime } = self.stream
    const joining = onStream(runtime, undefined, stream, (ref) => runtime.streamJoin(ref, [self.stream.ref]))
    return Effect.flatMap(joining, () => {
      if (self instanceof BranchImpl) self.joined = true
      return exit
    })
  })

class BranchImpl<A, E> extends Handle implements CudaBranch<A, E> {
  readonly [TypeId] = TypeId
  readonly fiber: Fiber.Fiber<A, E>
  joined = false
  readonly #runtime: CudaRuntimeService
  readonly #leased: Leased
  readonly #origin: StreamRef
  constructor(runtime: CudaRuntimeService, fiber: Fiber.Fiber<A, E>, leased: Leased, origin: StreamRef) {
    super()
    this.#runtime = runtime
    this.fiber = fiber
    this.#leased = leased
    this.#origin = origin
  }
  get stream(): CudaStream {
    return this.#leased.streams[0]!
  }
  /** A stream that is gone waits for nothing: its release drained it. */
  get release(): Effect.Effect<void> {
    const joinOrigin = Effect.suspend(() =>
      this.joined || this.#origin.state !== "live"
        ? Effect.void
        : this.#runtime.streamJoin(this.#origin, [this.stream.ref])
    )
    return Effect.andThen(Fiber.interrupt(this.fiber), released(joinOrigin)).pipe(
      Effect.ensuring(Effect.sync(() => this.#leased.giveBack()))
    )
  }
  toJSON() {
    return { _id: "CudaBranch", stream: this.stream, fiber: this.fiber.id, joined: this.joined }
  }
}

/** Runs an effect as the branch of an index. */
type OnBranch = <A, E, R>(index: number, effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Forks streams from the current one for so many branches, runs them, and joins the streams of those that began. */
const branching = <A, E, R>(
  operation: string,
  branches: number,
  options: AllOptions,
  run: (onBranch: OnBranch) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R | CudaRuntime> => {
  const { streams: most = branches } = options
  if (!Number.isInteger(most) || most < 1 && branches > 0) {
    return refuseArgument(operation, "streams", most, "a whole number of streams, at least 1")
  }
  const count = Math.min(most, branches)
  if (count === 0) return run((_, effect) => effect)
  return Effect.uninterruptibleMask((restore) =>
    atOrigin((runtime, origin, place) =>
      forking(operation, { runtime, origin, options, count }, ({ giveBack, streams }) => {
        const places = streams.map((stream) => onStreamOf(stream, place))
        const begun = new Set<StreamRef>()
        const onBranch: OnBranch = (index, effect) =>
          Effect.suspend(() => {
            const slot = index % count
            begun.add(streams[slot]!.ref)
            return Effect.provideService(effect, CurrentPlace, places[slot]!)
          })
        return Effect.onExit(restore(run(onBranch)), (exit) => {
          giveBack()
          const joined = runtime.streamJoin(origin, Array.from(begun))
          return Exit.isSuccess(exit) ? joined : Effect.ignore(joined)
        })
      })
    )
  )
}

/** Finds the current stream, which branches are forked from. */
const atOrigin = <A, E, R>(
  body: (runtime: CudaRuntimeService, origin: StreamRef, place: Place) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R | CudaRuntime> =>
  Effect.flatMap(CudaRuntime, (runtime) =>
    Effect.withFiber((fiber): Effect.Effect<A, E | CudaError, R> => {
      const place = fiber.getRef(CurrentPlace)
      const current = regionStream(place, runtime, place.device)
      if (current !== undefined) return body(runtime, current.ref, place)
      return Effect.flatMap(runtime.streamDefault(place.device, "legacy"), (ref) => body(runtime, ref, place))
    }))

interface Forking {
  readonly runtime: CudaRuntimeService
  readonly origin: StreamRef
  readonly options: BranchOptions
  /** Streams. */
  readonly count: number
}

/** Leases streams and has them wait for the origin. Who uses them gives them back. */
const forking = <A, E, R>(
  operation: string,
  { count, options, origin, runtime }: Forking,
  use: (leased: Leased) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R> =>
  Effect.flatMap(lease(operation, runtime, origin, options, count), (leased) => {
    const forked = runtime.streamFork(origin, leased.streams.map((stream) => stream.ref))
    return Effect.flatMap(Effect.onError(forked, () => Effect.sync(leased.giveBack)), () => use(leased))
  })

const lease = (
  operation: string,
  runtime: CudaRuntimeService,
  origin: StreamRef,
  options: BranchOptions,
  count: number
): Effect.Effect<Leased, CudaError> => {
  if (options.device === undefined && options.priority === undefined) {
    return streamPool(runtime, origin.device, origin.priority).lease(count)
  }
  const { device = origin.device, priority = "low" } = options
  const pool = resolvePool(runtime, { ...options, device, priority })
  return Effect.flatMap(pool, (found) => found.lease(count)).pipe(named(operation))
}
