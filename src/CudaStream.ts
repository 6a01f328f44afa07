/**
 * Streams: queues of work on a device. Work on one stream runs in order; work on different streams runs concurrently unless
 * events order it.
 *
 * Operations without an explicit stream use the current one, which `withStream` sets for one effect. Depends on the `CudaRuntime`
 * interface and on the handles shared by the modules.
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
import { invalidArgument } from "./CudaError.ts"
import type { CudaError } from "./CudaError.ts"
import { EventImpl } from "./CudaEvent.ts"
import type { CudaEvent } from "./CudaEvent.ts"
import type { CudaPartition } from "./CudaPartition.ts"
import { refOfEvent, refOfStream, refuseForced, runtimeOfStream } from "./internal/given.ts"
import {
  DeviceHandle,
  named,
  oneLine,
  refuseArgument,
  refuseToRecord,
  released,
  unlessLive
} from "./internal/handles.ts"
import { placeOfStream, refOfPartition } from "./internal/partition.ts"
import { CurrentPlace, onStreamOf, resolveDevice, withCurrent } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import { StreamPools } from "./internal/streamPool.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, Priority, StreamRef } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaStream"

/**
 * A stream of a device (`CUstream`). Two values are equal if they refer to the same stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaStream extends Pipeable, Inspectable, Equatable {
  readonly "~effect-cuda/CudaStream": "~effect-cuda/CudaStream"
  readonly runtime: CudaRuntimeService
  readonly ref: StreamRef
  /** The driver's id (`cuStreamGetId`): unique in the process and never reused. 0 for a legacy default stream. */
  readonly id: number
  /** The name it was made with. */
  readonly name: string | undefined
  /**
   * The `CUstream`, for other native code: 1 for the legacy default stream, 2 for the per-thread default stream. Throws a
   * `CudaError` for a stream of a recording, which has none.
   */
  readonly handle: number
  readonly deviceIndex: number
  readonly device: CudaDevice
  /** Lower numbers have higher priority. */
  readonly priority: number
  /** `CUstream_flags`: 1 for a non-blocking stream. */
  readonly flags: number
  /** False if the stream synchronizes implicitly with the legacy default stream. */
  readonly isNonBlocking: boolean
  /** Who destroys the stream: its scope or the runtime's pool (`owned`); this library never destroys the others. */
  readonly origin: "owned" | "default" | "foreign"
}

/**
 * Options for choosing a stream by device and priority.
 *
 * @category models
 * @since 0.1.0
 */
export interface PriorityOptions {
  /** Default: the device of the partition, otherwise the current device. */
  readonly device?: DeviceInput | undefined
  /** The partition whose multiprocessors its work runs on. Default: that of an enclosing `CudaPartition.within`, otherwise none. */
  readonly partition?: CudaPartition | undefined
  /** Default: `"low"`, the driver's own default. */
  readonly priority?: Priority | undefined
  /**
   * How to treat a number outside the device's range: fail, or use the nearest supported priority. Default: `"fail"`
   * for `make`, `"clamp"` for pooled streams.
   */
  readonly outOfRange?: "fail" | "clamp" | undefined
}

/**
 * Options for creating a stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface MakeOptions extends PriorityOptions {
  /** Shown in failures, logs, checks, timelines, traces, and under a profiler (`nvtxNameCuStreamA`). Default: none, only the id. */
  readonly name?: string | undefined
  /** Whether the stream skips implicit synchronization with the legacy default stream (`CU_STREAM_NON_BLOCKING`). Default: true. */
  readonly nonBlocking?: boolean | undefined
}

/**
 * Returns `true` if a value is a stream.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaStream = (u: unknown): u is CudaStream => Predicate.hasProperty(u, TypeId)

/** @internal */
export class StreamImpl extends DeviceHandle<StreamRef> implements CudaStream {
  readonly [TypeId] = TypeId
  /** Keeps the owner of a foreign stream reachable. */
  readonly owner: unknown
  constructor(runtime: CudaRuntimeService, ref: StreamRef, owner?: unknown) {
    super(runtime, ref)
    this.owner = owner
  }
  get id(): number {
    return this.ref.id
  }
  get name(): string | undefined {
    return this.ref.name
  }
  get handle(): number {
    if (!this.ref.isRecording) return this.ref.handle
    const expected = "a stream of the driver: streams of a recording have no handle"
    throw invalidArgument("CudaStream.handle", "stream", this, expected)
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
    const { deviceIndex, id, isNonBlocking, name, origin } = this
    const kind = isNonBlocking ? "non-blocking" : "blocking"
    return oneLine(
      "CudaStream",
      name !== undefined && JSON.stringify(name),
      `id ${id}`,
      `device ${deviceIndex}`,
      kind,
      origin !== "owned" && origin,
      unlessLive(this.ref)
    )
  }
  toJSON() {
    const { deviceIndex, id, isNonBlocking, name, origin, priority } = this
    const { handle, state } = this.ref
    return { _id: "CudaStream", id, name, deviceIndex, priority, isNonBlocking, origin, handle, state }
  }
}

/**
 * The pooled streams of all runtimes.
 *
 * @internal
 */
export const streamPools = new StreamPools((runtime, ref): CudaStream => new StreamImpl(runtime, ref))

/**
 * Creates a stream that lives as long as its scope (`cuStreamCreateWithPriority`).
 *
 * **Details**
 *
 * Releasing the stream rejects new work, waits for pending work without blocking the event loop, and destroys the stream
 * (`cuStreamDestroy`). Fails with `InvalidArgument` for a device that does not exist, and for a priority outside the device's range
 * unless `outOfRange` is `"clamp"`, and for a name that is not a string. A stream of a partition ends with the partition at the latest, and cannot be blocking
 * (`InvalidArgument`).
 *
 * **Example** (Ordering one stream after another)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const copy = yield* CudaStream.make({ name: "copies" })
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
  makeScoped(options.device === undefined ? refOfPartition(options.partition)?.deviceIndex : options.device, {
    create: (runtime, device, fiber) =>
      runtime.streamCreate({
        ...placeOfStream(fiber, { ...options, device }, device),
        priority: options.priority ?? "low",
        outOfRange: options.outOfRange,
        name: options.name,
        nonBlocking: options.nonBlocking ?? true
      }),
    destroy: (runtime, ref, context) => Effect.provideContext(runtime.streamDestroy(ref), context),
    wrap: (runtime, ref) => new StreamImpl(runtime, ref)
  })

/**
 * Gets a stream from the runtime's pool. The pool holds 32 streams per device and priority, created on first use and handed out in
 * turn: the 33rd request gets the first stream again. They live as long as the runtime. A partition has pools of its own, which end with it.
 *
 * **Details**
 *
 * Pooled streams are non-blocking. A priority outside the device's range is clamped unless `outOfRange` is `"fail"`. Fails with
 * `InvalidArgument` for a device that does not exist.
 *
 * **Gotchas**
 *
 * Every request may create a stream until all 32 exist. If one stream is enough, get it once and keep it.
 *
 * **Example** (A stream for one request)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const enqueued = (buffer: CudaMemory.DeviceBuffer) =>
 *   Effect.flatMap(CudaStream.fromPool(), (stream) => CudaMemory.fill(buffer, 0, stream))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromPool = (options: PriorityOptions = {}): Effect.Effect<CudaStream, CudaError, CudaRuntime> =>
  Effect.withFiber((fiber) => {
    const runtime = Context.getUnsafe(fiber.context, CudaRuntime)
    const place = placeOfStream(fiber, options, fiber.getRef(CurrentPlace).deviceIndex)
    return streamPools.takeMade(runtime, place, options) ??
      Effect.flatMap(streamPools.resolve(runtime, options), (pool) => pool.take(runtime)).pipe(
        named("CudaStream.fromPool")
      )
  })

/**
 * Gets a device's default stream: the legacy one (`CU_STREAM_LEGACY`) or the per-thread one (`CU_STREAM_PER_THREAD`). Both always
 * exist and are never destroyed.
 *
 * **Example** (The per-thread default stream)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 *
 * const stream = CudaStream.defaultStream({ mode: "perThread" })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const defaultStream = (options: {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
  /** Default: `"legacy"`. */
  readonly mode?: "legacy" | "perThread" | undefined
} = {}): Effect.Effect<CudaStream, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const device = yield* resolveDevice(options.device)
    return new StreamImpl(runtime, yield* runtime.streamDefault(device, options.mode ?? "legacy"))
  })

/**
 * Wraps a stream that other native code created, given its `CUstream` (the same as a `cudaStream_t`). This library never destroys it.
 *
 * **Details**
 *
 * The stream must belong to the device's primary context; otherwise fails with `InvalidContext`. Wrapping a stream again returns a
 * handle equal to the first. 0 and 1 stand for the legacy default stream, 2 for the per-thread one. `owner` stays reachable as long as
 * the returned stream does, and as long as the library may use the stream. Fails with `InvalidArgument` for a value that cannot be an address.
 *
 * **Gotchas**
 *
 * The driver cannot tell a stream handle from any other number: passing a number that is not a `CUstream` crashes the process. The
 * stream must outlive every use of the wrapper, the release of every buffer that was used on it, and the next launch of every executable
 * graph that was last launched on it.
 *
 * **Example** (A stream of another binding)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 *
 * declare const theirs: { readonly handle: bigint }
 *
 * const stream = CudaStream.fromHandle(theirs.handle, { owner: theirs })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromHandle = (handle: number | bigint, options: {
  /** The stream's device. Default: the current device. */
  readonly device?: DeviceInput | undefined
  /** Kept reachable as long as the stream is used, for example the object that destroys the `CUstream`. */
  readonly owner?: unknown
} = {}): Effect.Effect<CudaStream, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const device = yield* resolveDevice(options.device)
    const address = typeof handle === "bigint" ? Number(handle) : handle
    const ref = yield* runtime.streamFromHandle(device, address, options.owner)
    return new StreamImpl(runtime, ref, options.owner)
  })

/**
 * Gets the current stream of a device (by default the current device): the stream of the innermost `withStream` region on that device,
 * or its legacy default stream.
 *
 * **Details**
 *
 * A region set on a stream of a runtime also applies to layers around that runtime. If the region's stream belongs to another runtime,
 * fails with `ForeignResource`, as does every operation there without an explicit stream.
 *
 * **Example** (Waiting for the work of a region)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const finished = Effect.flatMap(CudaStream.current(), CudaStream.synchronize)
 * ```
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
 * Runs an effect with the given stream as the current stream of its device, and that device as the current device. Restores both
 * however the effect ends.
 *
 * **Example** (Operations without a stream argument)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const buffer: CudaMemory.DeviceBuffer
 * declare const stream: CudaStream.CudaStream
 *
 * const cleared = Effect.gen(function*() {
 *   yield* CudaMemory.fill(buffer, 0)
 *   yield* CudaMemory.fill(CudaMemory.slice(buffer, 0, 16), 1)
 * }).pipe(CudaStream.withStream(stream))
 * ```
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
    isCudaStream(stream)
      ? Effect.updateService(self, CurrentPlace, (place) => onStreamOf(stream, place))
      : refuseForced("CudaStream.withStream", "stream", stream, "a stream")
)

/**
 * Runs an effect with a pooled stream as the current stream, and the stream's device as the current device. Restores both however the
 * effect ends.
 *
 * **Details**
 *
 * While the effect runs, other regions and branches take other streams from the pool, as long as any are free. The stream is not
 * ordered against the one that was current. To run effects on pooled streams that are, use `CudaBranch.all` or `CudaBranch.fork`.
 *
 * **Gotchas**
 *
 * The stream returns to the pool when the effect ends, even if work on it is still pending. If an effect runs in the context of
 * another one, as a `RequestResolver` batch does in that of its first request, name the device.
 *
 * **Example** (Filling a buffer independently of other work)
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
 * Returns whether all work enqueued on the stream so far is done (`cuStreamQuery`). Does not wait.
 *
 * **Example** (Looking without waiting)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 *
 * declare const stream: CudaStream.CudaStream
 *
 * const isIdle = CudaStream.query(stream)
 * ```
 *
 * @category waiting
 * @since 0.1.0
 */
export const query = (self: CudaStream): Effect.Effect<boolean, CudaError> =>
  runtimeOfStream(self).streamQuery(refOfStream(self))

/**
 * Waits until all work enqueued before this call is done. Suspends the fiber, not the thread. Does not wait for work enqueued
 * meanwhile.
 *
 * **Details**
 *
 * Queries the stream once (`cuStreamQuery`) and then waits for an event recorded on it (`cuEventRecord`). If the device faults, fails
 * with the reason as soon as the driver reports it.
 *
 * **Example** (Waiting for at most a second)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const stream: CudaStream.CudaStream
 *
 * const finished = Effect.timeout(CudaStream.synchronize(stream), "1 second")
 * ```
 *
 * @category waiting
 * @since 0.1.0
 */
export const synchronize = (self: CudaStream): Effect.Effect<void, CudaError> =>
  runtimeOfStream(self).streamSynchronize(refOfStream(self))

/**
 * Makes work enqueued on the stream from now on wait for the event's latest record (`cuStreamWaitEvent`). Has no effect if the event
 * was never recorded. The two may be on different devices.
 *
 * **Example** (Work after another stream's upload)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const upload: CudaStream.CudaStream
 * declare const compute: CudaStream.CudaStream
 *
 * const ordered = Effect.gen(function*() {
 *   const uploaded = yield* CudaStream.recordEvent(upload)
 *   yield* CudaStream.waitEvent(compute, uploaded)
 * }).pipe(Effect.scoped)
 * ```
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
    runtimeOfStream(self).streamWaitEvent(refOfStream(self), refOfEvent(event))
)

/**
 * Makes work enqueued on the stream from now on wait for all work that another stream holds now (`cuEventRecord` of an internal event,
 * then `cuStreamWaitEvent`). The two may be on different devices.
 *
 * **Example** (Work after another stream's work)
 *
 * ```ts
 * import { CudaStream } from "effect-cuda"
 *
 * declare const upload: CudaStream.CudaStream
 * declare const compute: CudaStream.CudaStream
 *
 * const ordered = CudaStream.waitStream(compute, upload)
 * ```
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
    runtimeOfStream(self).streamWaitStream(refOfStream(self), refOfStream(other))
)

/**
 * Records an event at this point of the stream and returns it (`cuEventRecord`). If no event is given, creates one without timing
 * that lives as long as the scope.
 *
 * **Details**
 *
 * Fails with `DeviceMismatch` if the given event is on another device.
 *
 * **Example** (A point to wait for)
 *
 * ```ts
 * import { CudaEvent, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const stream: CudaStream.CudaStream
 *
 * const reached = Effect.flatMap(CudaStream.recordEvent(stream), CudaEvent.synchronize).pipe(Effect.scoped)
 * ```
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
  const runtime = runtimeOfStream(self)
  if (event !== undefined) return Effect.as(runtime.eventRecord(refOfEvent(event), refOfStream(self)), event)
  if (!isCudaStream(self)) return refuseArgument("CudaStream.recordEvent", "stream", self, "a stream")
  return Effect.tap(makeEvent(self), (made) => runtime.eventRecord(made.ref, refOfStream(self)))
}

/**
 * Runs an effect on the host when the stream reaches this point, after the work it holds now. Returns the fiber that waits for that
 * point and then runs the effect.
 *
 * **Details**
 *
 * Serves the purpose of a CUDA host function (`cuLaunchHostFunc`) without its restrictions. The stream does not wait for the effect,
 * so the effect may use CUDA, wait for this stream or others, and take as long as it needs without causing a deadlock. To enqueue work
 * after the effect, first wait for it with `Fiber.join`. Behind it are `cuEventRecord` and a wait for that event.
 *
 * Effects launched on one stream begin in launch order. Effects launched through a wrapper (`fromHandle`) are ordered separately.
 *
 * If the scope closes with success, it waits for the effect; otherwise it interrupts the effect. If a fault ends the device's context,
 * the effect does not run, and the fiber fails with the reason.
 *
 * **Gotchas**
 *
 * Work enqueued later may run before or during the effect, so it should not write memory that the effect reads.
 *
 * **Example** (Reading a result as soon as it is available)
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
 *   // enqueue more work here: the stream does not wait for the effect
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
    Effect.isEffect(effect)
      ? launchInTurn(self, effect)
      : refuseArgument("CudaStream.launchHostFunction", "effect", effect, "an effect")
)

const launchInTurn = <A, E, R>(
  self: CudaStream,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<Fiber.Fiber<A, E | CudaError>, CudaError, R | Scope.Scope> =>
  Effect.uninterruptible(Effect.gen(function*() {
    if (self?.ref?.isRecording === true) {
      const because =
        "graphs do not run effects. Call it on the stream on which the graph is launched, after the launch"
      return yield* refuseToRecord("CudaStream.launchHostFunction", because)
    }
    // The event and the fiber have a separate scope, which closes when the fiber ends.
    const own = yield* Scope.fork(yield* Effect.scope)
    const event = yield* recordEvent(self).pipe(
      named("CudaStream.launchHostFunction"),
      Scope.provide(own),
      Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
    )
    const turn = takeTurn(self.ref)
    const reached = named("CudaStream.launchHostFunction")(self.runtime.eventSynchronize(event.ref))
    // A fiber that has just yielded does not yield again between passing its turn on and beginning the host function.
    const begin = Effect.suspend(() => {
      turn.pass()
      return effect
    })
    const inTurn = reached.pipe(Effect.andThen(turn.await), Effect.andThen(Effect.yieldNow), Effect.andThen(begin))
    const fiber = yield* Effect.forkDetach(inTurn, { startImmediately: true })
    yield* Scope.addFinalizerExit(own, (exit) => Exit.isSuccess(exit) ? Fiber.await(fiber) : Fiber.interrupt(fiber))
    // An observer is called no matter where the fiber was interrupted. Releasing the event may suspend in a layer around the runtime.
    fiber.addObserver(() => {
      Effect.runFork(Effect.andThen(turn.await, Effect.sync(turn.pass)))
      Effect.runFork(Scope.close(own, Exit.void))
    })
    return fiber
  }))

/** The latch of the last turn taken on each stream. Opens when its host function has begun, or can no longer begin. */
const lastTurns = new WeakMap<StreamRef, Latch.Latch>()

/**
 * Takes the next turn among the host functions of a stream. `await` waits for the earlier ones, and `pass` lets the next one begin.
 * Call `pass` also when the fiber ends, in case its host function never began.
 */
const takeTurn = (stream: StreamRef): { readonly await: Effect.Effect<void>; readonly pass: () => void } => {
  const before = lastTurns.get(stream)
  const own = Latch.makeUnsafe()
  lastTurns.set(stream, own)
  return { await: before === undefined ? Effect.void : before.await, pass: () => void own.openUnsafe() }
}

const makeEvent = (stream: CudaStream): Effect.Effect<EventImpl, CudaError, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      stream.runtime.eventCreate(stream.deviceIndex, eventFlags.disableTiming),
      (ref) => released(stream.runtime.eventDestroy(ref))
    ),
    (ref) => new EventImpl(stream.runtime, ref)
  )
