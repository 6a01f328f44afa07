/**
 * Branches: effects whose work runs concurrently on the GPU, each on its own stream. A branch starts after the work that the
 * current stream holds, and joining it makes the current stream wait for its work.
 *
 * Branches are ordered by events and waits between streams: the host waits only where the effect of a branch does. Depends on the
 * `CudaRuntime` interface and on what the modules share.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { Concurrency } from "effect/Types"
import type { DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import { streamPools } from "./CudaStream.ts"
import type { CudaStream } from "./CudaStream.ts"
import { refuseForced } from "./internal/given.ts"
import { Handle, named, oneLine, refuseArgument, released } from "./internal/handles.ts"
import { isWhole, refuseConcurrency, wholeStreams } from "./internal/numbers.ts"
import { atOrigin, CurrentPlace, deviceIndexOf, onStream, onStreamOf, openPlace, streamOf } from "./internal/place.ts"
import type { Origin, Place } from "./internal/place.ts"
import { poolSize } from "./internal/streamPool.ts"
import type { Leased } from "./internal/streamPool.ts"
import type { CudaRuntime, CudaRuntimeService, Priority } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaBranch"

/**
 * A forked branch, to be joined later.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaBranch<out A, out E = never> extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaBranch": "~effect-cuda/CudaBranch"
  /** The stream of the branch. Once the branch is joined, the stream may serve other work. */
  readonly stream: CudaStream
  /** The fiber that enqueues the work. */
  readonly fiber: Fiber.Fiber<A, E>
}

/**
 * Options for the streams that branches run on. They come from the stream pool of a device and priority.
 *
 * @category models
 * @since 0.1.0
 */
export interface BranchOptions {
  /** Default: the device of the current stream. */
  readonly device?: DeviceInput | undefined
  /** Default: the priority of the current stream, or the nearest one that the device supports. */
  readonly priority?: Priority | undefined
  /** How to treat a number outside the device's range: fail, or use the nearest supported priority. Default: `"clamp"`. */
  readonly outOfRange?: "fail" | "clamp" | undefined
}

/**
 * Options for running several branches.
 *
 * @category models
 * @since 0.1.0
 */
export interface AllOptions extends BranchOptions {
  /**
   * The devices on which the branches run in turn: branch `index` runs on `devices[index % devices.length]`. A device that is listed
   * twice gets twice as many. Cannot be given together with `device`.
   */
  readonly devices?: ReadonlyArray<DeviceInput> | undefined
  /**
   * The most streams to use, at least 1, and at least one per entry of `devices`. Branches that share a stream run in order. By default
   * each branch has its own stream, up to the 32 of each pool.
   */
  readonly streams?: number | undefined
  /**
   * How many branches enqueue at the same time, as in `Effect.all`: an integer of at least 1, or `"unbounded"`, but never more
   * than one per stream. By default they enqueue one after the other, since their work runs concurrently on the GPU anyway. Raise
   * it if branches wait for something on the host.
   */
  readonly concurrency?: Concurrency | undefined
  /** True to discard the results. */
  readonly discard?: boolean | undefined
}

/**
 * The effect that `all` returns.
 *
 * @category models
 * @since 0.1.0
 */
export type AllReturn<Result> = Effect.Effect<
  Effect.Success<Result>,
  Effect.Error<Result> | CudaError,
  Effect.Services<Result> | CudaRuntime
>

/**
 * Returns `true` if a value is a forked branch.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaBranch = (u: unknown): u is CudaBranch<unknown, unknown> => Predicate.hasProperty(u, TypeId)

/**
 * Runs effects as branches. Each branch has a pooled stream as its current stream, which starts after the work that the current
 * stream holds now. The current stream continues after all branches. Takes a tuple, a record or an iterable, like `Effect.all`.
 *
 * **Details**
 *
 * The work of the branches runs concurrently on the GPU. The first failure ends them all, as in `Effect.all`. Branches that failed
 * or were interrupted are joined too: later work on the current stream starts after whatever they enqueued.
 *
 * Forking costs one `cuEventRecord`, plus a `cuStreamWaitEvent` per stream. Joining costs one of each per stream.
 *
 * With `devices`, the branches fork from and join into the current stream across devices, by the same events. The current device of a
 * branch is that of its stream, so what it allocates is there. To use memory of another device, copy it, or give access with
 * `CudaDevice.enablePeerAccess`.
 *
 * Fails with `InvalidArgument` if `streams` is not an integer of at least 1 or the number of devices, `concurrency` is neither an integer of
 * at least 1 nor `"unbounded"`, or `devices` is empty.
 *
 * **Gotchas**
 *
 * The pool has 32 streams per device and priority. When more are in use, branches share streams and wait for each other.
 *
 * A fiber that a branch forks and does not await is not part of the branch: work that it enqueues after the branch has ended is
 * not joined.
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
 * }).pipe(Effect.scoped, CudaStream.withPooledStream())
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export function all<
  const Arg extends Iterable<Effect.All.EffectAny> | Record<string, Effect.All.EffectAny>,
  Options extends AllOptions
>(branches: Arg, options?: Options): AllReturn<Effect.All.Return<Arg, Options>>
export function all(
  branches: Iterable<Effect.All.EffectAny> | Record<string, Effect.All.EffectAny>,
  options: AllOptions = {}
): Effect.Effect<unknown, unknown, unknown> {
  if (Predicate.isIterable(branches)) {
    const list = Array.from(branches)
    return branching("CudaBranch.all", list.length, (index) => list[index]!, options)
  }
  const [names, effects] = [Object.keys(branches), Object.values(branches)]
  const results = branching("CudaBranch.all", names.length, (index) => effects[index]!, options)
  if (options.discard === true) return results
  return Effect.map(results, (all) => Object.fromEntries(names.map((name, index) => [name, all?.[index]])))
}

/**
 * Runs an effect for each item as a branch. See `all`.
 *
 * **Example** (Each device works on its part)
 *
 * ```ts
 * import { CudaBranch, CudaDevice, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const cleared = (parts: ReadonlyArray<CudaMemory.DeviceBuffer>) =>
 *   Effect.flatMap(CudaDevice.all, (devices) =>
 *     CudaBranch.forEach(parts, (part) => CudaMemory.fill(part, 0), { devices, discard: true }))
 * ```
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
  ): (items: Iterable<Item>) => ForEachReturn<A, E, R, Options>
  <Item, A, E, R, const Options extends AllOptions = {}>(
    items: Iterable<Item>,
    body: (item: Item, index: number) => Effect.Effect<A, E, R>,
    options?: Options
  ): ForEachReturn<A, E, R, Options>
} = dual(
  (args) => Predicate.isIterable(args[0]),
  <Item, A, E, R>(
    items: Iterable<Item>,
    body: (item: Item, index: number) => Effect.Effect<A, E, R>,
    options: AllOptions = {}
  ) => {
    const list = Array.from(items)
    return branching("CudaBranch.forEach", list.length, (index) => body(list[index]!, index), options)
  }
)

/**
 * The effect that `forEach` returns.
 *
 * @category models
 * @since 0.1.0
 */
export type ForEachReturn<A, E, R, Options> = Effect.Effect<
  Options extends { readonly discard: true } ? void : Array<A>,
  E | CudaError,
  R | CudaRuntime
>

/**
 * Starts an effect as a branch and returns its handle, to be joined later. The stream of the branch starts after the work that the
 * current stream holds now.
 *
 * **Details**
 *
 * The effect starts immediately, in its own fiber. If the scope closes before the branch is joined, the effect is interrupted, and
 * the stream that it was forked from waits for what it enqueued. If that stream belonged to a branch that has ended, the stream of
 * the surrounding region waits instead.
 *
 * The first join returns the stream to the pool and removes the branch from the scope, so a long-lived scope can fork and join any
 * number of branches.
 *
 * **Example** (An upload concurrent with a fill)
 *
 * ```ts
 * import { CudaBranch, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const weights = yield* CudaMemory.allocate(4096)
 *   const sums = yield* CudaMemory.allocate(4096)
 *   const uploading = yield* CudaBranch.fork(CudaMemory.upload(weights, new Float32Array(1024)))
 *   yield* CudaMemory.fill(sums, 0) // concurrent with the upload
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
    Effect.uninterruptible(
      atOrigin(
        "CudaBranch.fork",
        (at) => leasing("CudaBranch.fork", at, options, 1, (leased) => start(self, at, leased))
      )
    )
)

/** The effect of the branch is interruptible, however it is forked. */
const start = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  { context, origin, place, runtime }: Origin,
  leased: Leased<CudaStream>
): Effect.Effect<BranchImpl<A, E>, CudaError, R | Scope.Scope> => {
  const [stream] = leased.streams
  const placed = Effect.provideService(self, CurrentPlace, onStreamOf(stream!, place, leased))
  return runtime.streamFork(origin, leased.refs).pipe(
    Effect.onError(() => Effect.sync(() => leased.giveBack())),
    Effect.andThen(Effect.forkDetach(placed, { startImmediately: true })),
    Effect.flatMap((fiber) => {
      // A separate scope, so that a join can remove the branch from the surrounding scope before that closes.
      const own = Scope.forkUnsafe(Context.getUnsafe(context, Scope.Scope))
      const branch = new BranchImpl(runtime, fiber, leased, place, own)
      const release = Effect.provideContext(branch.release, context)
      return Effect.as(Scope.addFinalizer(own, release), branch)
    })
  )
}

/**
 * Makes a stream, by default the current one, continue after all work that a branch has enqueued, and returns the result of the
 * branch.
 *
 * **Details**
 *
 * Waits on the host for the effect of the branch to end, but not for its work. A branch that failed is joined too; the join then
 * fails with the failure of the branch. May be called any number of times, on any stream, until the scope of the branch closes.
 *
 * **Gotchas**
 *
 * The first join returns the stream of the branch to the pool. A later join also waits for other work that was enqueued on that
 * stream in between.
 *
 * **Example** (Work beside a branch)
 *
 * ```ts
 * import { CudaBranch, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const left: CudaMemory.DeviceBuffer
 * declare const right: CudaMemory.DeviceBuffer
 *
 * const both = Effect.gen(function*() {
 *   const branch = yield* CudaBranch.fork(CudaMemory.fill(left, 1))
 *   yield* CudaMemory.fill(right, 2) // beside the branch
 *   yield* CudaBranch.join(branch)
 *   yield* CudaMemory.copy(left, right) // after both
 * }).pipe(Effect.scoped, CudaStream.withPooledStream())
 * ```
 *
 * @category forks
 * @since 0.1.0
 */
export const join = <A, E>(self: CudaBranch<A, E>, stream?: CudaStream): Effect.Effect<A, E | CudaError> => {
  if (!isCudaBranch(self)) return refuseForced("CudaBranch.join", "branch", self, "a branch")
  return Effect.flatMap(Fiber.await(self.fiber), (exit) => {
    const { runtime } = self.stream
    const wait = onStream(
      "CudaBranch.join",
      runtime,
      undefined,
      stream,
      (ref) => runtime.streamJoin(ref, [self.stream.ref])
    )
    const joined = Effect.uninterruptible(
      Effect.andThen(
        wait.pipe(named("CudaBranch.join")),
        Effect.suspend(() => self instanceof BranchImpl ? self.leave : Effect.void)
      )
    )
    return Effect.andThen(Exit.isSuccess(exit) ? joined : Effect.ignore(joined), exit)
  })
}

class BranchImpl<A, E> extends Handle implements CudaBranch<A, E> {
  readonly [TypeId] = TypeId
  readonly fiber: Fiber.Fiber<A, E>
  joined = false
  readonly #runtime: CudaRuntimeService
  readonly #leased: Leased<CudaStream>
  readonly #from: Place
  readonly #own: Scope.Closeable
  constructor(
    runtime: CudaRuntimeService,
    fiber: Fiber.Fiber<A, E>,
    leased: Leased<CudaStream>,
    from: Place,
    own: Scope.Closeable
  ) {
    super()
    this.#runtime = runtime
    this.fiber = fiber
    this.#leased = leased
    this.#from = from
    this.#own = own
  }
  get stream(): CudaStream {
    return this.#leased.streams[0]!
  }
  /** Removes the joined branch from the surrounding scope, and returns its stream to the pool. */
  get leave(): Effect.Effect<void> {
    this.joined = true
    return Scope.close(this.#own, Exit.void)
  }
  get release(): Effect.Effect<void> {
    return Effect.andThen(Fiber.interrupt(this.fiber), released(Effect.suspend(() => this.#joinBack()))).pipe(
      Effect.ensuring(Effect.sync(() => this.#leased.giveBack()))
    )
  }
  /** Joins the branch into the stream it was forked from, unless that stream was released, which drained it. */
  #joinBack(): Effect.Effect<void, CudaError> {
    if (this.joined) return Effect.void
    return streamOf(
      "CudaBranch.join",
      this.#runtime,
      openPlace(this.#from),
      (origin) => origin.state === "live" ? this.#runtime.streamJoin(origin, [this.stream.ref]) : Effect.void
    )
  }
  toString(): string {
    return oneLine(
      "CudaBranch",
      `stream ${this.stream.id}`,
      `device ${this.stream.deviceIndex}`,
      this.joined && "joined"
    )
  }
  toJSON() {
    return { _id: "CudaBranch", stream: this.stream, fiber: this.fiber.id, joined: this.joined }
  }
}

/** Forks streams from the current one, runs branches on them, and joins the streams of the branches that began. */
const branching = <A, E, R>(
  operation: string,
  branches: number,
  effectOf: (index: number) => Effect.Effect<A, E, R>,
  options: AllOptions
): Effect.Effect<Array<A> | void, E | CudaError, R | CudaRuntime> => {
  const { streams: most = branches } = options
  // Without branches, 0 streams are valid too.
  if (!isWhole(most, Math.min(1, branches))) return refuseArgument(operation, "streams", most, wholeStreams)
  const refused = refuseConcurrency(operation, options.concurrency) ??
    refuseDeviceList(operation, options, most, branches)
  if (refused !== undefined) return refused
  const count = streamCount(most, branches, options.devices?.length ?? 1)
  if (count === 0) return Effect.succeed(options.discard === true ? undefined : [])
  return Effect.uninterruptibleMask((restore) =>
    atOrigin(operation, (at) =>
      leasing(operation, at, options, count, (leased) => {
        const run = new Run(operation, at, leased, options.devices?.length ?? 1)
        const { concurrency, discard } = options
        const all = concurrency === undefined || concurrency === 1
          ? run.inTurn(branches, effectOf, discard === true)
          : run.sideBySide(branches, effectOf, { concurrency, discard })
        const fork = at.runtime.streamFork(at.origin, leased.refs).pipe(named(operation))
        const forked = Effect.flatMap(fork, () => restore(all))
        return Effect.onExit(forked, (exit) => run.end(exit))
      }))
  )
}

/** Refuses a list of devices that branches cannot take turns on. */
const refuseDeviceList = (
  operation: string,
  { device, devices }: AllOptions,
  streams: number,
  branches: number
): Effect.Effect<never, CudaError> | undefined => {
  if (devices === undefined) return undefined
  if (!Array.isArray(devices) || devices.length === 0 || device !== undefined) {
    return refuseArgument(operation, "devices", devices, "at least one device, and no option device")
  }
  return streams < Math.min(devices.length, branches)
    ? refuseArgument(operation, "streams", streams, `at least ${devices.length}, one per device`)
    : undefined
}

/** Branches that share streams share those of their device, so there are equally many of each. */
const streamCount = (most: number, branches: number, devices: number): number => {
  const count = Math.min(most, branches, poolSize * devices)
  return count === branches ? count : count - count % devices
}

/** Branches in progress on leased streams. */
class Run {
  readonly #operation: string
  readonly #at: Origin
  readonly #leased: Leased<CudaStream>
  /** The number of streams used so far. They are used in order. */
  #used = 0
  /** The streams are those of this many devices, in turn. */
  readonly #devices: number
  constructor(operation: string, at: Origin, leased: Leased<CudaStream>, devices: number) {
    this.#devices = devices
    this.#operation = operation
    this.#at = at
    this.#leased = leased
  }

  #begin(slot: number): Place {
    const { streams } = this.#leased
    if (slot >= this.#used) this.#used = slot + 1
    return onStreamOf(streams[slot]!, this.#at.place, this.#leased)
  }

  /** Runs one branch after another in this fiber. For speed, changes the place of a single region instead of nesting regions. */
  inTurn<A, E, R>(
    branches: number,
    effectOf: (index: number) => Effect.Effect<A, E, R>,
    discard: boolean
  ): Effect.Effect<Array<A> | void, E, R> {
    const { context, fiber } = this.#at
    const { length } = this.#leased.streams
    const results: Array<A> = []
    let index = 0
    const loop = Effect.whileLoop({
      while: () => index < branches,
      body: () => {
        fiber.setContext(Context.addUnsafe(context, CurrentPlace.key, this.#begin(index % length)))
        return effectOf(index++)
      },
      step: discard ? noStep : (result) => results.push(result)
    })
    return discard ? loop : Effect.as(loop, results)
  }

  sideBySide<A, E, R>(
    branches: number,
    effectOf: (index: number) => Effect.Effect<A, E, R>,
    options: { readonly concurrency: Concurrency; readonly discard: boolean | undefined }
  ): Effect.Effect<Array<A> | void, E, R> {
    const { length } = this.#leased.streams
    const { concurrency } = options
    if (this.#devices > 1) return this.#sideBySideOver(branches, effectOf, options)
    const free = Array.from({ length }, (_, slot) => slot)
    return Effect.forEach(
      Array.from({ length: branches }, (_, index) => index),
      (index) =>
        Effect.suspend(() => {
          // There are as many slots as branches that run concurrently.
          const slot = free.shift()!
          const placed = Effect.provideService(effectOf(index), CurrentPlace, this.#begin(slot))
          return Effect.ensuring(placed, Effect.sync(() => free.push(slot)))
        }),
      { ...options, concurrency: typeof concurrency === "number" ? Math.min(concurrency, length) : length }
    )
  }

  /** Each branch waits for a stream of its device, so that a slow device holds up no branch of another. */
  #sideBySideOver<A, E, R>(
    branches: number,
    effectOf: (index: number) => Effect.Effect<A, E, R>,
    { concurrency, discard }: { readonly concurrency: Concurrency; readonly discard: boolean | undefined }
  ): Effect.Effect<Array<A> | void, E, R> {
    const { length } = this.#leased.streams
    const count = this.#devices
    const free = Array.from({ length: count }, (): Array<number> => [])
    for (let slot = 0; slot < length; slot++) free[slot % count]!.push(slot)
    const permits = free.map((slots) => Semaphore.makeUnsafe(slots.length))
    const all = Semaphore.makeUnsafe(typeof concurrency === "number" ? concurrency : length)
    return Effect.forEach(
      Array.from({ length: branches }, (_, index) => index),
      (index) => {
        const own = free[index % count]!
        const placed = Effect.suspend(() => {
          const slot = own.shift()!
          const running = Effect.provideService(effectOf(index), CurrentPlace, this.#begin(slot))
          return Effect.ensuring(running, Effect.sync(() => own.push(slot)))
        })
        return permits[index % count]!.withPermit(all.withPermit(placed))
      },
      { concurrency: "unbounded", discard }
    )
  }

  /** Restores the region, and joins the streams of branches that began. A branch's failure takes precedence over that of the join. */
  end(exit: Exit.Exit<unknown, unknown>): Effect.Effect<void, CudaError> {
    const { context, fiber, origin, runtime } = this.#at
    fiber.setContext(context)
    const { refs } = this.#leased
    const used = this.#used === refs.length ? refs : refs.slice(0, this.#used)
    if (used.length === 0) return this.#giveBack()
    const joined = Effect.onExit(runtime.streamJoin(origin, used).pipe(named(this.#operation)), this.#giveBack)
    return Exit.isSuccess(exit) ? joined : Effect.ignore(joined)
  }

  readonly #giveBack = (): Effect.Effect<void> => {
    this.#leased.giveBack()
    return Effect.void
  }
}

const noStep = () => {}

/** Leases streams for `use`, which must give them back. */
const leasing = <A, E, R>(
  operation: string,
  { origin, runtime }: Origin,
  options: BranchOptions & Pick<AllOptions, "devices">,
  count: number,
  use: (leased: Leased<CudaStream>) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | CudaError, R> => {
  const { devices, outOfRange, priority } = options
  if (devices !== undefined) {
    const pools = devices.map((device) => ({ device, priority: priority ?? origin.priority, outOfRange }))
    return Effect.flatMap(streamPools.leaseOver(runtime, pools, count, origin).pipe(named(operation)), use)
  }
  const device = deviceIndexOf(options.device, origin.deviceIndex)
  if (device === origin.deviceIndex && priority === undefined) {
    const pool = streamPools.get(runtime, origin, origin.priority)
    const leased = pool.tryLease(runtime, count, origin)
    return leased === undefined
      ? Effect.flatMap(pool.lease(runtime, count, origin).pipe(named(operation)), use)
      : use(leased)
  }
  const partition = device === origin.deviceIndex && origin.partition !== undefined
    ? { ref: origin.partition }
    : undefined
  const lease = Effect.flatMap(
    streamPools.resolve(runtime, { device, partition, priority: priority ?? origin.priority, outOfRange }),
    (pool) => pool.lease(runtime, count, origin)
  )
  return Effect.flatMap(lease.pipe(named(operation)), use)
}
