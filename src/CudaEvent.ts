/**
 * Events: points in the work of a stream that other streams and fibers can wait for, and between which GPU time can be measured.
 *
 * The type says whether an event records times: only a `TimedEvent` has an elapsed time. Depends on the `CudaRuntime` interface and
 * on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { eventFlags } from "./cuda/flags.ts"
import type { CudaDevice, DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import type { CudaStream } from "./CudaStream.ts"
import { eitherForm, isStream, refOfEvent, refOfStream, runtimeOfEvent } from "./internal/given.ts"
import { DeviceHandle, hex, oneLine, refuseArgument, unlessLive } from "./internal/handles.ts"
import { onStream, resolveDevice } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import type { Kind } from "./internal/scoped.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, EventRef } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaEvent"
const TimedEventTypeId = "~effect-cuda/CudaEvent/TimedEvent"

/**
 * An event of a device (`CUevent`).
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaEvent extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaEvent": "~effect-cuda/CudaEvent"
  readonly runtime: CudaRuntimeService
  readonly ref: EventRef
  /** The `CUevent`, for other native code. */
  readonly handle: number
  readonly deviceIndex: number
  readonly device: CudaDevice
  /** `CUevent_flags`: 1 for blocking synchronization, 2 for disabled timing, 4 for interprocess use. */
  readonly flags: number
  /** Whether the event records times. */
  readonly hasTiming: boolean
  /** Whether waits for the event skip polling. */
  readonly isBlocking: boolean
  /** Whether other processes can open the event. */
  readonly isInterprocess: boolean
}

/**
 * An event that records times.
 *
 * @category models
 * @since 0.1.0
 */
export interface TimedEvent extends CudaEvent {
  readonly "~effect-cuda/CudaEvent/TimedEvent": "~effect-cuda/CudaEvent/TimedEvent"
}

/**
 * Options for creating any event.
 *
 * @category models
 * @since 0.1.0
 */
export interface BaseOptions {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
  /** Whether waits for the event skip polling, and so use no CPU (`CU_EVENT_BLOCKING_SYNC`). Default: false. */
  readonly blocking?: boolean | undefined
}

/**
 * Options for creating an event that records times. Such an event cannot be shared with other processes.
 *
 * @category models
 * @since 0.1.0
 */
export interface TimedOptions extends BaseOptions {
  readonly timing: true
  readonly interprocess?: false | undefined
}

/**
 * Options for creating an event that does not record times.
 *
 * @category models
 * @since 0.1.0
 */
export interface UntimedOptions extends BaseOptions {
  readonly timing?: false | undefined
  /** Whether other processes can open the event through `ipcHandle` (`CU_EVENT_INTERPROCESS`). Default: false. */
  readonly interprocess?: boolean | undefined
}

/**
 * An operation on an event and a stream, by default the current stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOperation {
  (self: CudaEvent, stream?: CudaStream): Effect.Effect<void, CudaError>
  (stream?: CudaStream): (self: CudaEvent) => Effect.Effect<void, CudaError>
}

/**
 * Returns `true` if a value is an event.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaEvent = (u: unknown): u is CudaEvent => Predicate.hasProperty(u, TypeId)

/**
 * Returns `true` if a value is an event that records times.
 *
 * @category guards
 * @since 0.1.0
 */
export const isTimedEvent = (u: unknown): u is TimedEvent => Predicate.hasProperty(u, TimedEventTypeId)

/** @internal */
export class EventImpl extends DeviceHandle<EventRef> implements CudaEvent {
  readonly [TypeId] = TypeId
  get handle(): number {
    return this.ref.handle
  }
  get flags(): number {
    return this.ref.flags
  }
  get hasTiming(): boolean {
    return (this.flags & eventFlags.disableTiming) === 0
  }
  get isBlocking(): boolean {
    return (this.flags & eventFlags.blockingSync) !== 0
  }
  get isInterprocess(): boolean {
    return (this.flags & eventFlags.interprocess) !== 0
  }
  toString(): string {
    const { deviceIndex, handle, hasTiming, isBlocking, isInterprocess } = this
    return oneLine(
      "CudaEvent",
      hex(handle),
      `device ${deviceIndex}`,
      hasTiming && "timing",
      isBlocking && "blocking",
      isInterprocess && "interprocess",
      unlessLive(this.ref)
    )
  }
  toJSON() {
    const { deviceIndex, handle, hasTiming, isBlocking, isInterprocess } = this
    return { _id: "CudaEvent", deviceIndex, handle, hasTiming, isBlocking, isInterprocess, state: this.ref.state }
  }
}

class TimedEventImpl extends EventImpl implements TimedEvent {
  readonly [TimedEventTypeId] = TimedEventTypeId
}

/**
 * Creates an event that lives as long as its scope (`cuEventCreate`). With `{ timing: true }` it is a `TimedEvent`.
 *
 * **Details**
 *
 * Releasing the event does not wait, and waits that began before still end with the record they wait for (`cuEventDestroy`). `timing`
 * and `interprocess` exclude each other: the combination does not compile, and fails with `InvalidArgument` if forced.
 *
 * **Example** (Timing work on the GPU)
 *
 * ```ts
 * import { CudaEvent, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const fillTime = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   const buffer = yield* CudaMemory.allocate(1 << 20)
 *   const start = yield* CudaEvent.make({ timing: true })
 *   const end = yield* CudaEvent.make({ timing: true })
 *   yield* CudaEvent.record(start, stream)
 *   yield* CudaMemory.fill(buffer, 0, stream)
 *   yield* CudaEvent.record(end, stream)
 *   yield* CudaEvent.synchronize(end)
 *   return yield* CudaEvent.elapsedTime(start, end)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export function make(options: TimedOptions): Effect.Effect<TimedEvent, CudaError, CudaRuntime | Scope.Scope>
export function make(options?: UntimedOptions): Effect.Effect<CudaEvent, CudaError, CudaRuntime | Scope.Scope>
export function make(
  options: TimedOptions | UntimedOptions = {}
): Effect.Effect<CudaEvent, CudaError, CudaRuntime | Scope.Scope> {
  const flags = flagsOf(options)
  return scoped(
    options.device,
    options.timing === true ? TimedEventImpl : EventImpl,
    (runtime, device) => runtime.eventCreate(device, flags)
  )
}

/**
 * Options for wrapping an event.
 *
 * @category models
 * @since 0.1.0
 */
export interface FromHandleOptions {
  /** The event's device. Default: the current device. */
  readonly device?: DeviceInput | undefined
  /** Whether the event was created with timing, which the driver does not tell. Default: false. */
  readonly timing?: boolean | undefined
  /** Kept reachable as long as the event is used, for example the object that destroys the `CUevent`. */
  readonly owner?: unknown
}

/**
 * Wraps an event that other native code created, given its `CUevent` (the same as a `cudaEvent_t`). This library never destroys it. The
 * way back is `handle`.
 *
 * **Details**
 *
 * Streams and fibers can wait for what the other code recorded, and `record` records it for the other code to wait for. The event counts
 * as recorded, since this library does not know whether it was; waiting for one that was not ends at once. A wait on the host covers the
 * record that is current when it begins, unless the other code records the event again meanwhile: then it may end with the new record.
 *
 * Fails with `InvalidArgument` for a value that cannot be an address, and with the status of `cuEventQuery` for an event that cannot be
 * used. With `{ timing: true }` it is a `TimedEvent`; if the event was in fact created without timing, or was never recorded,
 * `elapsedTime` fails with `InvalidHandle`. On simulated devices, only events of the same runtime can be wrapped.
 *
 * **Gotchas**
 *
 * The driver cannot tell an event handle from any other number: passing a number that is not a `CUevent` crashes the process. The event
 * must outlive every use of the wrapper, waits included. The driver does not tell the event's device either: recording an event on a
 * stream of another device fails with `InvalidHandle`.
 *
 * **Example** (Continuing after work of another binding)
 *
 * ```ts
 * import { CudaEvent } from "effect-cuda"
 * import type { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const after = (theirs: bigint, stream: CudaStream.CudaStream) =>
 *   Effect.flatMap(CudaEvent.fromHandle(theirs), (event) => CudaEvent.wait(event, stream))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export function fromHandle(
  handle: number | bigint,
  options: FromHandleOptions & { readonly timing: true }
): Effect.Effect<TimedEvent, CudaError, CudaRuntime>
export function fromHandle(
  handle: number | bigint,
  options?: FromHandleOptions
): Effect.Effect<CudaEvent, CudaError, CudaRuntime>
export function fromHandle(
  handle: number | bigint,
  { device, owner, timing }: FromHandleOptions = {}
): Effect.Effect<CudaEvent, CudaError, CudaRuntime> {
  const Wrapper = timing === true ? TimedEventImpl : EventImpl
  const flags = timing === true ? eventFlags.default : eventFlags.disableTiming
  return Effect.flatMap(CudaRuntime, (runtime) =>
    Effect.flatMap(resolveDevice(device), (index) =>
      Effect.map(
        runtime.eventFromHandle(index, typeof handle === "bigint" ? Number(handle) : handle, flags, owner),
        (ref) => new Wrapper(runtime, ref)
      )))
}

/**
 * Opens an interprocess event of another process, given its handle (`cuIpcOpenEventHandle`). The event in this process lives as long
 * as its scope.
 *
 * **Details**
 *
 * Fails with `InvalidArgument` if the handle is not 64 bytes long, and with the driver's status if it does not refer to an event or
 * refers to one of this process.
 *
 * **Gotchas**
 *
 * If the process that recorded the event is killed before the record is done, the event does not complete, and a stream that waits for it
 * hangs (observed with driver 580). `synchronize` can be interrupted. See `CudaInterprocess` for memory with an order that survives this.
 *
 * **Example** (Waiting for another process)
 *
 * ```ts
 * import { CudaEvent } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const handle: Uint8Array // from the other process
 *
 * const ordered = Effect.gen(function*() {
 *   const produced = yield* CudaEvent.fromIpcHandle(handle)
 *   yield* CudaEvent.synchronize(produced)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category interprocess
 * @since 0.1.0
 */
export const fromIpcHandle = (handle: Uint8Array, options: {
  /** The device of the event in the other process. Default: the current device. */
  readonly device?: DeviceInput | undefined
} = {}): Effect.Effect<CudaEvent, CudaError, CudaRuntime | Scope.Scope> =>
  scoped(options.device, EventImpl, (runtime, device) => runtime.eventFromIpcHandle(device, handle))

/**
 * Gets the 64-byte handle with which another process opens an interprocess event (`cuIpcGetEventHandle`).
 *
 * **Details**
 *
 * Fails with `InvalidArgument` for an event that was not created with `{ interprocess: true }`.
 *
 * **Example** (A handle for another process)
 *
 * ```ts
 * import { CudaEvent } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const handle = Effect.gen(function*() {
 *   const produced = yield* CudaEvent.make({ interprocess: true })
 *   return yield* CudaEvent.ipcHandle(produced) // valid while the event lives
 * })
 * ```
 *
 * @category interprocess
 * @since 0.1.0
 */
export const ipcHandle = (self: CudaEvent): Effect.Effect<Uint8Array<ArrayBuffer>, CudaError> =>
  runtimeOfEvent(self).eventIpcHandle(refOfEvent(self))

/**
 * Records the event at this point of a stream, by default the current stream (`cuEventRecord`). A new record replaces the previous
 * one; waits that began earlier keep theirs.
 *
 * **Details**
 *
 * Fails with `DeviceMismatch` if the stream is on another device.
 *
 * **Example** (A stream waits for another one)
 *
 * ```ts
 * import { CudaEvent } from "effect-cuda"
 * import type { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const upload: CudaStream.CudaStream
 * declare const compute: CudaStream.CudaStream
 *
 * const ordered = Effect.gen(function*() {
 *   const uploaded = yield* CudaEvent.make()
 *   yield* CudaEvent.record(uploaded, upload)
 *   yield* CudaEvent.wait(uploaded, compute) // on the GPU
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category ordering
 * @since 0.1.0
 */
export const record: StreamOperation = streamOperation("CudaEvent.record", (self, stream) => {
  const runtime = runtimeOfEvent(self)
  const event = refOfEvent(self)
  if (stream !== undefined) return runtime.eventRecord(event, refOfStream(stream))
  return onStream("CudaEvent.record", runtime, undefined, stream, (ref) => runtime.eventRecord(event, ref))
})

/**
 * Makes work enqueued on a stream (by default the current stream) from now on wait for the event's latest record
 * (`cuStreamWaitEvent`). The same as `CudaStream.waitEvent`.
 *
 * **Example** (A stream waits for another one)
 *
 * ```ts
 * import { CudaEvent } from "effect-cuda"
 * import type { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const upload: CudaStream.CudaStream
 * declare const compute: CudaStream.CudaStream
 *
 * const ordered = Effect.gen(function*() {
 *   const uploaded = yield* CudaEvent.make()
 *   yield* CudaEvent.record(uploaded, upload)
 *   yield* CudaEvent.wait(uploaded, compute) // on the GPU
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category ordering
 * @since 0.1.0
 */
export const wait: StreamOperation = streamOperation("CudaEvent.wait", (self, stream) => {
  const runtime = runtimeOfEvent(self)
  const event = refOfEvent(self)
  if (stream !== undefined) return runtime.streamWaitEvent(refOfStream(stream), event)
  return onStream("CudaEvent.wait", runtime, undefined, stream, (ref) => runtime.streamWaitEvent(ref, event))
})

/**
 * Returns whether the event's latest record is done (`cuEventQuery`); true if the event was never recorded. Does not wait.
 *
 * **Example** (Looking without waiting)
 *
 * ```ts
 * import { CudaEvent } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const event: CudaEvent.CudaEvent
 *
 * const state = Effect.map(CudaEvent.query(event), (done) => done ? "done" : "running")
 * ```
 *
 * @category waiting
 * @since 0.1.0
 */
export const query = (self: CudaEvent): Effect.Effect<boolean, CudaError> =>
  runtimeOfEvent(self).eventQuery(refOfEvent(self))

/**
 * Waits until the record that is current at the call is done. Returns at once if the event was never recorded. Suspends the fiber, not
 * the thread.
 *
 * **Details**
 *
 * Recording the event again or releasing it during the wait does not change which record the wait is for. Behind it is `cuEventQuery`.
 * If the device faults, fails with the reason as soon as the driver reports it.
 *
 * **Example** (Waiting for at most a second)
 *
 * ```ts
 * import { CudaEvent } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const event: CudaEvent.CudaEvent
 *
 * const reached = Effect.timeout(CudaEvent.synchronize(event), "1 second")
 * ```
 *
 * @category waiting
 * @since 0.1.0
 */
export const synchronize = (self: CudaEvent): Effect.Effect<void, CudaError> =>
  runtimeOfEvent(self).eventSynchronize(refOfEvent(self))

/**
 * Measures the GPU time from one event's record to another's, with a resolution of about half a microsecond (`cuEventElapsedTime`).
 *
 * **Details**
 *
 * Fails, checked in this order, with `TimingDisabled` (only if forced past the types), `NotRecorded`, `NotFinished`, and
 * `DeviceMismatch` if the events are on different devices.
 *
 * **Example** (Time of a fill)
 *
 * ```ts
 * import { CudaEvent, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const time = Effect.gen(function*() {
 *   const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
 *   yield* CudaEvent.record(start)
 *   yield* CudaMemory.fill(buffer, 0)
 *   yield* CudaEvent.record(end)
 *   yield* CudaEvent.synchronize(end)
 *   return yield* CudaEvent.elapsedTime(start, end)
 * }).pipe(Effect.scoped, CudaStream.withPooledStream())
 * ```
 *
 * @category timing
 * @since 0.1.0
 */
export const elapsedTime: {
  (end: TimedEvent): (start: TimedEvent) => Effect.Effect<Duration.Duration, CudaError>
  (start: TimedEvent, end: TimedEvent): Effect.Effect<Duration.Duration, CudaError>
} = dual(
  2,
  (start: TimedEvent, end: TimedEvent): Effect.Effect<Duration.Duration, CudaError> =>
    Effect.map(runtimeOfEvent(start).eventElapsedTime(refOfEvent(start), refOfEvent(end)), Duration.millis)
)

const flagsOf = (options: TimedOptions | UntimedOptions): number =>
  (options.timing === true ? 0 : eventFlags.disableTiming) |
  (options.blocking === true ? eventFlags.blockingSync : 0) |
  (options.interprocess === true ? eventFlags.interprocess : 0)

const scoped = <Event extends CudaEvent>(
  device: DeviceInput | undefined,
  Wrapper: new(runtime: CudaRuntimeService, ref: EventRef) => Event,
  create: Kind<EventRef, Event>["create"]
): Effect.Effect<Event, CudaError, CudaRuntime | Scope.Scope> =>
  makeScoped(device, {
    create,
    destroy: (runtime, ref) => runtime.eventDestroy(ref),
    wrap: (runtime, ref) => new Wrapper(runtime, ref)
  })

/** Does not use `arguments`, because it is called often. */
function streamOperation(
  name: string,
  body: (self: CudaEvent, stream: CudaStream | undefined) => Effect.Effect<void, CudaError>
): StreamOperation {
  function operation(self: CudaEvent, stream?: CudaStream): Effect.Effect<void, CudaError>
  function operation(stream?: CudaStream): (self: CudaEvent) => Effect.Effect<void, CudaError>
  function operation(first?: CudaEvent | CudaStream, second?: CudaStream) {
    if (isCudaEvent(first)) return body(first, second)
    if (second === undefined && (first === undefined || isStream(first))) {
      return (self: CudaEvent) => body(self, first)
    }
    return eitherForm(refuseArgument(name, "event", first, "an event, or only a stream"))
  }
  return operation
}
