/**
 * Events: points in the work of a stream that other streams and fibers can wait for, and between which time can be measured.
 *
 * Whether an event takes times is in its type: only a `TimedEvent` has an elapsed time. Depends on the `CudaRuntime`
 * interface and on the handles shared by the modules.
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
import { DeviceHandle, hex, oneLine, unlessLive } from "./internal/handles.ts"
import { onStream } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import type { Kind } from "./internal/scoped.ts"
import type { CudaRuntime, CudaRuntimeService, EventRef } from "./layers/CudaRuntime.ts"

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
  /** `CUevent_flags`: 1 blocking sync, 2 timing off, 4 interprocess. */
  readonly flags: number
  readonly hasTiming: boolean
  readonly isBlocking: boolean
  readonly isInterprocess: boolean
}

/**
 * An event that takes times.
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
  /** True for waits that should use no CPU: they skip polling (`CU_EVENT_BLOCKING_SYNC`). Default false. */
  readonly blocking?: boolean | undefined
}

/**
 * Options for creating an event that takes times. Such an event cannot be shared with other processes.
 *
 * @category models
 * @since 0.1.0
 */
export interface TimedOptions extends BaseOptions {
  readonly timing: true
  readonly interprocess?: false | undefined
}

/**
 * Options for creating an event without times.
 *
 * @category models
 * @since 0.1.0
 */
export interface UntimedOptions extends BaseOptions {
  readonly timing?: false | undefined
  /** True to share it with other processes through `ipcHandle` (`CU_EVENT_INTERPROCESS`). Default false. */
  readonly interprocess?: boolean | undefined
}

/**
 * An operation of an event on a stream: the given one, or the current one.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOperation {
  (self: CudaEvent, stream?: CudaStream): Effect.Effect<void, CudaError>
  (stream?: CudaStream): (self: CudaEvent) => Effect.Effect<void, CudaError>
}

/**
 * True for events.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaEvent = (u: unknown): u is CudaEvent => Predicate.hasProperty(u, TypeId)

/**
 * True for events that take times.
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
 * Makes an event that lives as long as its scope (`cuEventCreate`). With `{ timing: true }` it is a `TimedEvent`.
 *
 * **Details**
 *
 * The release waits for nothing: waits that began before it still end with their record. Timing and interprocess together do
 * not compile, and fail with `InvalidArgument` when forced.
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
 * Opens the interprocess event that a handle of another process stands for (`cuIpcOpenEventHandle`). The event of this
 * process lives as long as its scope.
 *
 * **Details**
 *
 * Fails with `InvalidArgument` when the handle is not 64 bytes long, and with the driver's status for a handle that stands
 * for no event, or for one of this very process.
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
 * Gets the 64 bytes with which another process opens an interprocess event (`cuIpcGetEventHandle`).
 *
 * @category interprocess
 * @since 0.1.0
 */
export const ipcHandle = (self: CudaEvent): Effect.Effect<Uint8Array<ArrayBuffer>, CudaError> =>
  self.runtime.eventIpcHandle(self.ref)

/**
 * Records the event at this point of a stream, by default the current one (`cuEventRecord`). A new record replaces the one
 * before; waits that began before keep theirs.
 *
 * **Details**
 *
 * Fails with `DeviceMismatch` when the stream is on another device.
 *
 * @category ordering
 * @since 0.1.0
 */
export const record: StreamOperation = streamOperation((self, stream) =>
  stream === undefined
    ? onStream("CudaEvent.record", self.runtime, undefined, stream, (ref) => self.runtime.eventRecord(self.ref, ref))
    : self.runtime.eventRecord(self.ref, stream.ref)
)

/**
 * Makes work enqueued from now on, on a stream (by default the current one), start after the event's current record
 * (`cuStreamWaitEvent`). The same as `CudaStream.waitEvent`.
 *
 * @category ordering
 * @since 0.1.0
 */
export const wait: StreamOperation = streamOperation((self, stream) =>
  stream === undefined
    ? onStream("CudaEvent.wait", self.runtime, undefined, stream, (ref) => self.runtime.streamWaitEvent(ref, self.ref))
    : self.runtime.streamWaitEvent(stream.ref, self.ref)
)

/**
 * Asks whether the event's current record is done (`cuEventQuery`): true for an event never recorded. Does not wait.
 *
 * @category waiting
 * @since 0.1.0
 */
export const query = (self: CudaEvent): Effect.Effect<boolean, CudaError> => self.runtime.eventQuery(self.ref)

/**
 * Waits for the record that is current at the call; ends at once for an event never recorded. Suspends the fiber, not the
 * thread.
 *
 * **Details**
 *
 * Recording the event again, or releasing it, while it is waited for does not change what the wait ends with. Fails with the
 * reason of a fault of the device, as soon as the driver reports it.
 *
 * @category waiting
 * @since 0.1.0
 */
export const synchronize = (self: CudaEvent): Effect.Effect<void, CudaError> => self.runtime.eventSynchronize(self.ref)

/**
 * Measures the time on the GPU from one event's record to another's (`cuEventElapsedTime`), to about half a microsecond.
 *
 * **Details**
 *
 * Fails, in this order, with `TimingDisabled` (when forced past the types), `NotRecorded`, `NotFinished`, and
 * `DeviceMismatch` when the two are on different devices.
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
    Effect.map(start.runtime.eventElapsedTime(start.ref, end.ref), Duration.millis)
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

/** Data first when the first argument is an event. Without `arguments`, since this is called often. */
function streamOperation(
  body: (self: CudaEvent, stream: CudaStream | undefined) => Effect.Effect<void, CudaError>
): StreamOperation {
  function operation(self: CudaEvent, stream?: CudaStream): Effect.Effect<void, CudaError>
  function operation(stream?: CudaStream): (self: CudaEvent) => Effect.Effect<void, CudaError>
  function operation(first?: CudaEvent | CudaStream, second?: CudaStream) {
    return isCudaEvent(first) ? body(first, second) : (self: CudaEvent) => body(self, first)
  }
  return operation
}
