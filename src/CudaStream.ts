/**
 * Streams: queues of work on a device. Work of one stream runs in order; work of two streams runs side by side unless an
 * event orders it.
 *
 * The current stream is what operations use when none is given: `withStream` sets it for one effect. Depends on the
 * `CudaRuntime` interface and on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import type { Equal as Equatable } from "effect/Equal"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { dual } from "effect/Function"
import * as Hash from "effect/Hash"
import type { Inspectable } from "effect/Inspectable"
import * as Latch from "effect/Latch"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import { eventFlags, streamFlags } from "./cuda/flags.ts"
import type { CudaDevice, DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import { EventImpl } from "./CudaEvent.ts"
import type { CudaEvent } from "./CudaEvent.ts"
import { DeviceHandle, named, oneLine, released, unlessLive } from "./internal/handles.ts"
import { CurrentPlace, deviceIndexOf, onStreamOf, resolveDevice, withCurrent } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import { StreamPools } from "./internal/streamPool.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, Priority, StreamRef } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaStream"

/**
 * A stream of a device (`CUstream`). Two values are equal when they are the same stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaStream extends Pipeable, Inspectable, Equatable {
  readonly "~effect-cuda/CudaStream": "~effect-cuda/CudaStream"
  readonly runtime: CudaRuntimeService
  readonly ref: StreamRef
  /** The driver's id: unique in the process and never reused; 0 for a legacy default stream (`cuStreamGetId`). */
  readonly id: number
  /** The `CUstream`, for other native code. 1 is the legacy default stream and 2 the per-thread one. */
  readonly handle: number
  readonly deviceIndex: number
  readonly device: CudaDevice
  /** Lower numbers go first. */
  readonly priority: number
  /** `CUstream_flags`: 1 for a non-blocking stream. */
  readonly flags: number
  /** False when the stream orders itself against the legacy default stream. */
  readonly isNonBlocking: boolean
  /** `owned` streams are destroyed by their scope or pool, the others never by this library. */
  readonly origin: "owned" | "default" | "foreign"
}

/**
 * Options for choosing a stream by device and priority.
 *
 * @category models
 * @since 0.1.0
 */
export interface PriorityOptions {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
  /** Default: `"low"`, the driver's own default. */
  readonly priority?: Priority | undefined
  /** What a number outside the device's range means: a failure, or the nearest priority there is. */
  readonly outOfRange?: "fail" | "clamp" | undefined
}

/**
 * Options for creating a stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface MakeOptions extends PriorityOptions {
  /** False to order the stream against the legacy default stream (`CU_STREAM_NON_BLOCKING`). Default true. */
  readonly nonBlocking?: boolean | undefined
}

/**
 * True for streams.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaStream = (u: unknown): u is CudaStream => Predicate.hasProperty(u, TypeId)

/** @internal */
export class StreamImpl extends DeviceHandle<StreamRef> implements CudaStream {
  readonly [TypeId] = TypeId
  /** Keeps what made a foreign stream alive. */
  readonly owner: unknown
  constructor(runtime: CudaRuntimeService, ref: StreamRef, owner?: unknown) {
    super(runtime, ref)
    this.owner = owner
  }
  get id(): number {
    return this.ref.id
  }
  get handle(): number {
    return this.ref.handle
  }
  get priority(): number {
    return this.ref.priority
  }
  get flags(): number {
    return this.ref.nonBlocking ? streamFlags.nonBlocking : streamFlags.default
  }
  get isNonBlocking(): boolean {
    return this.ref.nonBlocking
  }
  get origin(): StreamRef["origin"] {
    return this.ref.origin
  }
  [Equal.symbol](that: Equal.Equal): boolean {
    return that instanceof StreamImpl && that.runtime.identity === this.runtime.identity &&
      that.deviceIndex === this.deviceIndex &&
      that.id === this.id
  }
  [Hash.symbol](): number {
    return Hash.combine(Hash.number(this.id), Hash.number(this.deviceIndex))
  }
  toString(): string {
    const { deviceIndex, id, isNonBlocking, origin } = this
    const kind = isNonBlocking ? "non-blocking" : "blocking"
    return oneLine(
      "CudaStream",
      `id ${id}`,
      `device ${deviceIndex}`,
      kind,
      origin !== "owned" && origin,
      unlessLive(this.ref)
    )
  }
  toJSON() {
    const { deviceIndex, handle, id, isNonBlocking, origin, priority } = this
    return { _id: "CudaStream", id, deviceIndex, priority, isNonBlocking, origin, handle, state: this.ref.state }
  }
}

/**
 * The pooled streams of all runtimes.
 *
 * @internal
 */
export const streamPools = new StreamPools((runtime, ref): CudaStream => new StreamImpl(runtime, ref))

/**
 * Makes a stream that lives as long as its scope (`cuStreamCreateWithPriority`).
 *
 * **Details**
 *
 * The release takes no new work, waits for what the stream holds without blocking the event loop, and destroys it
 * (`cuStreamDestroy`). Fails with `InvalidArgument` for a device or priority there is not, unless `outOfRange` is
 * `"clamp"`.
 *
 * **Example** (Two streams, one before the other)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const copy = yield* CudaStream.make()
 *   const compute = yield* CudaStream.make({ priority: "high" })
 *   yield* CudaStream.waitStream(compute, copy)
 *   yield* CudaStream.synchronize(compute)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  options: MakeOptions = {}
): Effect.Effect<CudaStream, CudaError, CudaRuntime | Scope.Scope> =>
  makeScoped(options.device, {
    create: (runtime, device) =>
      runtime.streamCreate({
        device,
        priority: options.priority ?? "low",
        outOfRange: options.outOfRange,
        nonBlocking: options.nonBlocking ?? true
      }),
    destroy: (runtime, ref, context) => Effect.provideContext(runtime.streamDestroy(ref), context),
    wrap: (runtime, ref) => new StreamImpl(runtime, ref)
  })

/**
 * Gets a stream from the runtime's pool: 32 streams per device and priority, made on first use and handed out in turn, so
 * that the 33rd request gets the 1st stream again. They live as long as the runtime.
 *
 * **Details**
 *
 * All are non-blocking. A priority outside the range is clamped, unless `outOfRange` is `"fail"`.
 *
 * **Gotchas**
 *
 * Each request may make a stream, up to all 32: take one once where one is enough.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromPool = (options: PriorityOptions = {}): Effect.Effect<CudaStream, CudaError, CudaRuntime> =>
  Effect.withFiber((fiber) => {
    const runtime = Context.getUnsafe(fiber.context, CudaRuntime)
    const device = deviceIndexOf(options.device) ?? fiber.getRef(CurrentPlace).device
    return streamPools.takeMade(runtime, device, options) ??
      Effect.flatMap(streamPools.resolve(runtime, options), (pool) => pool.take(runtime)).pipe(
        named("CudaStream.fromPool")
      )
  })

/**
 * Gets a device's default stream: the legacy one, or the per-thread one. Both exist always and are never destroyed.
 *
 * @category constructors
 * @since 0.1.0
 */
export const defaultStream = (options: {
  readonly device?: DeviceInput | undefined
  readonly mode?: "legacy" | "perThread" | undefined
} = {}): Effect.Effect<CudaStream, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const device = yield* resolveDevice(options.device)
    return new StreamImpl(runtime, yield* runtime.streamDefault(device, options.mode ?? "legacy"))
  })

/**
 * Wraps a stream that other native code made, by its `CUstream` (the same as a `cudaStream_t`). It is never destroyed here.
 *
 * **Details**
 *
 * The stream must be of the device's primary context; another context is an `InvalidContext` failure. `owner` is kept
 * reachable as long as the returned stream is.
 *
 * **Gotchas**
 *
 * The driver cannot tell a handle from any other number: what is no stream ends the process. The stream must outlive every
 * use of it here, and the release of every buffer that was used on it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromHandle = (handle: number | bigint, options: {
  readonly device?: DeviceInput | undefined
  readonly owner?: unknown
} = {}): Effect.Effect<CudaStream, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const device = yield* resolveDevice(options.device)
    return new StreamImpl(runtime, yield* runtime.streamFromHandle(device, Number(handle)), options.owner)
  })

/**
 * Gets the current stream of a device, by default of the current device: that of the innermost `withStream` region on that
 * device, or its legacy default stream.
 *
 * **Details**
 *
 * A region on a stream of a runtime also holds for layers around that runtime. Fails with `ForeignResource` where the region's
 * stream belongs to another runtime, as every operation without a stream does there.
 *
 * @category current stream
 * @since 0.1.0
 */
export const current = (device?: DeviceInput): Effect.Effect<CudaStream, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const index = yield* resolveDevice(device)
    return yield* withCurrent("CudaStream.current", runtime, yield* CurrentPlace, index, (stream) => {
      if (stream === undefined) return defaultStream({ device: index })
      return Effect.succeed(
        isCudaStream(stream) && stream.runtime === runtime ? stream : new StreamImpl(runtime, stream.ref, stream)
      )
    })
  }).pipe(named("CudaStream.current"))

/**
 * Runs an effect with a stream as the current one of its device, and that device as the current one; restores both on every
 * exit.
 *
 * @category current stream
 * @since 0.1.0
 */
export const withStream: {
  (stream: CudaStream): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, stream: CudaStream): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, stream: CudaStream): Effect.Effect<A, E, R> =>
    Effect.updateService(self, CurrentPlace, (place) => onStreamOf(stream, place))
)

/**
 * Runs an effect with a stream from the pool as the current one, and its device as the current one; restores both on every
 * exit.
 *
 * **Details**
 *
 * Other regions and branches take other streams of the pool meanwhile, as long as there are any. The stream is in no order
 * with the one that was current: `CudaBranch.all` and `CudaBranch.fork` run effects on pooled streams that are.
 *
 * **Gotchas**
 *
 * The stream goes back to the pool when the effect ends, also with work on it that has not. Where an effect runs in the context of
 * another one, as a batch of a `RequestResolver` does in that of its first request, name the device.
 *
 * **Example** (A fill beside everything else)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const cleared = Effect.gen(function*() {
 *   const buffer = yield* CudaMemory.allocate(4096)
 *   yield* CudaMemory.fill(buffer, 0)
 *   yield* CudaStream.synchronize(yield* CudaStream.current())
 * }).pipe(Effect.scoped, CudaStream.withPooledStream({ priority: "high" }))
 * ```
 *
 * @category current stream
 * @since 0.1.0
 */
export const withPooledStream: {
  (
    options?: PriorityOptions
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CudaError, R | CudaRuntime>
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options?: PriorityOptions
  ): Effect.Effect<A, E | CudaError, R | CudaRuntime>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options: PriorityOptions = {}
  ): Effect.Effect<A, E | CudaError, R | CudaRuntime> =>
    Effect.acquireUseRelease(
      Effect.flatMap(CudaRuntime, (runtime) => leaseOne(runtime, options)),
      (lease) => Effect.updateService(self, CurrentPlace, (place) => onStreamOf(lease.streams[0]!, place, lease)),
      (lease) => Effect.sync(() => lease.giveBack())
    )
)

const leaseOne = (runtime: CudaRuntimeService, options: PriorityOptions) =>
  Effect.flatMap(streamPools.resolve(runtime, options), (pool) => pool.lease(runtime, 1)).pipe(
    named("CudaStream.withPooledStream")
  )

/**
 * Asks whether everything enqueued on the stream so far is done (`cuStreamQuery`). Does not wait.
 *
 * @category waiting
 * @since 0.1.0
 */
export const query = (self: CudaStream): Effect.Effect<boolean, CudaError> => self.runtime.streamQuery(self.ref)

/**
 * Waits until the work enqueued before this call is done. Suspends the fiber, not the thread; work enqueued meanwhile is not
 * waited for.
 *
 * **Details**
 *
 * Fails with the reason of a fault of the device, as soon as the driver reports it.
 *
 * @category waiting
 * @since 0.1.0
 */
export const synchronize = (self: CudaStream): Effect.Effect<void, CudaError> =>
  self.runtime.streamSynchronize(self.ref)

/**
 * Makes work enqueued on the stream from now on start after the event's current record (`cuStreamWaitEvent`). Nothing for an
 * event that was never recorded. The two may be on different devices.
 *
 * @category ordering
 * @since 0.1.0
 */
export const waitEvent: {
  (event: CudaEvent): (self: CudaStream) => Effect.Effect<void, CudaError>
  (self: CudaStream, event: CudaEvent): Effect.Effect<void, CudaError>
} = dual(
  2,
  (self: CudaStream, event: CudaEvent): Effect.Effect<void, CudaError> =>
    self.runtime.streamWaitEvent(self.ref, event.ref)
)

/**
 * Makes work enqueued on the stream from now on start after what another stream holds now (`cuEventRecord` of an event of the
 * runtime's own, then `cuStreamWaitEvent`).
 *
 * @category ordering
 * @since 0.1.0
 */
export const waitStream: {
  (other: CudaStream): (self: CudaStream) => Effect.Effect<void, CudaError>
  (self: CudaStream, other: CudaStream): Effect.Effect<void, CudaError>
} = dual(
  2,
  (self: CudaStream, other: CudaStream): Effect.Effect<void, CudaError> =>
    self.runtime.streamWaitStream(self.ref, other.ref)
)

/**
 * Records an event at this point of the stream and returns it (`cuEventRecord`). Without an event, makes a default one (no
 * timing) that lives as long as the scope.
 *
 * @category ordering
 * @since 0.1.0
 */
export function recordEvent(self: CudaStream): Effect.Effect<CudaEvent, CudaError, Scope.Scope>
export function recordEvent<Event extends CudaEvent>(self: CudaStream, event: Event): Effect.Effect<Event, CudaError>
export function recordEvent(
  self: CudaStream,
  event?: CudaEvent
): Effect.Effect<CudaEvent, CudaError, Scope.Scope> {
  if (event !== undefined) return Effect.as(self.runtime.eventRecord(event.ref, self.ref), event)
  return Effect.tap(makeEvent(self), (made) => self.runtime.eventRecord(made.ref, self.ref))
}

/**
 * Runs an effect when the stream reaches this point: after the work it holds now. Returns the fiber that waits for that and then
 * runs the effect.
 *
 * **Details**
 *
 * The effect does what a host function of CUDA does (`cuLaunchHostFunc`), without its restrictions. The stream does not wait for
 * it: an effect may therefore use CUDA, wait for this stream or for others, and take its time, and nothing can deadlock. What is to
 * come after the effect is enqueued after `Fiber.join`.
 *
 * Effects of one stream begin in the order in which they were launched. (A stream that was wrapped with `fromHandle` counts as
 * another one.)
 *
 * The scope's end waits for the effect when it is a success, and interrupts it otherwise. When a fault ends the device's context, the
 * effect does not run, and the fiber fails with the reason.
 *
 * **Gotchas**
 *
 * Work that is enqueued later may run before the effect does, or beside it: memory that the effect reads should not be written
 * by it.
 *
 * **Example** (A result that is looked at as soon as it is there)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Fiber from "effect/Fiber"
 *
 * declare const device: CudaMemory.DeviceBuffer
 *
 * const looked = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   const host = yield* CudaMemory.allocateHost(device.byteLength)
 *   yield* CudaMemory.copy(host, device, stream)
 *   const fiber = yield* CudaStream.launchHostFunction(stream, Effect.sync(() => host.bytes[0]))
 *   // more work for the stream, which does not wait for it
 *   return yield* Fiber.join(fiber)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category host functions
 * @since 0.1.0
 */
export const launchHostFunction: {
  <A, E, R>(
    effect: Effect.Effect<A, E, R>
  ): (self: CudaStream) => Effect.Effect<Fiber.Fiber<A, E | CudaError>, CudaError, R | Scope.Scope>
  <A, E, R>(
    self: CudaStream,
    effect: Effect.Effect<A, E, R>
  ): Effect.Effect<Fiber.Fiber<A, E | CudaError>, CudaError, R | Scope.Scope>
} = dual(
  2,
  <A, E, R>(
    self: CudaStream,
    effect: Effect.Effect<A, E, R>
  ): Effect.Effect<Fiber.Fiber<A, E | CudaError>, CudaError, R | Scope.Scope> =>
    Effect.uninterruptible(Effect.gen(function*() {
      // What the fiber needs goes with it, before the scope does.
      const own = yield* Scope.fork(yield* Effect.scope)
      const event = yield* recordEvent(self).pipe(
        named("CudaStream.launchHostFunction"),
        Scope.provide(own),
        Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
      )
      const reached = named("CudaStream.launchHostFunction")(self.runtime.eventSynchronize(event.ref))
      const inTurn = Effect.andThen(takeTurn(self.ref, reached), effect)
      const fiber = yield* Effect.forkDetach(inTurn, { startImmediately: true })
      yield* Scope.addFinalizerExit(own, (exit) => Exit.isSuccess(exit) ? Fiber.await(fiber) : Fiber.interrupt(fiber))
      // A runtime that wraps another one may take its time for the release.
      fiber.addObserver(() => void Effect.runFork(Scope.close(own, Exit.void)))
      return fiber
    }))
)

/** Opened once the last host function of a stream has begun. */
const begun = new WeakMap<StreamRef, Latch.Latch>()

/** Waits for a point of a stream, and then for the host functions before it to have begun, which other fibers may still have to see to. */
const takeTurn = (stream: StreamRef, reached: Effect.Effect<void, CudaError>): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const before = begun.get(stream)
    const own = Latch.makeUnsafe()
    begun.set(stream, own)
    if (before === undefined) return Effect.ensuring(reached, own.open)
    // One that never begins lets the next ones begin after those before it.
    const afterThose = Effect.forkDetach(Effect.andThen(before.await, own.open))
    return Effect.onExit(
      Effect.andThen(reached, before.await),
      (exit) => Exit.isSuccess(exit) ? own.open : afterThose
    )
  })

const makeEvent = (stream: CudaStream): Effect.Effect<EventImpl, CudaError, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      stream.runtime.eventCreate(stream.deviceIndex, eventFlags.disableTiming),
      (ref) => released(stream.runtime.eventDestroy(ref))
    ),
    (ref) => new EventImpl(stream.runtime, ref)
  )
