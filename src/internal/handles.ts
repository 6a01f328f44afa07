/**
 * What the handles of the modules are made of: shared by the modules, below them all. Their types are the modules' own.
 */
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Hash from "effect/Hash"
import * as Inspectable from "effect/Inspectable"
import * as Pipeable from "effect/Pipeable"
import { eventFlags, streamFlags } from "../cuda/flags.ts"
import type { CudaDevice } from "../CudaDevice.ts"
import { CudaError, invalidArgument, isCudaError } from "../CudaError.ts"
import type { CudaEvent, TimedEvent } from "../CudaEvent.ts"
import type { DeviceBuffer, HostBuffer, ManagedBuffer } from "../CudaMemory.ts"
import type { MemoryPool } from "../CudaMemoryPool.ts"
import type { CudaStream } from "../CudaStream.ts"
import type {
  CudaRuntimeService,
  DeviceMemoryRef,
  EventRef,
  HostMemoryRef,
  ManagedMemoryRef,
  MemoryPoolRef,
  StreamRef
} from "../layers/CudaRuntime.ts"

/**
 * A release that failed: there is nobody to fail to, so it is logged, unless the driver is already gone. What follows from
 * the loss of a device's context is said once.
 */
export const released = (release: Effect.Effect<void, CudaError>): Effect.Effect<void> =>
  Effect.catch(release, logRelease)

export const logRelease = (error: CudaError): Effect.Effect<void> => {
  if (error.reason._tag === "Deinitialized") return Effect.void
  return error.origin === undefined ? Effect.logWarning(error.message) : Effect.logDebug(error.message)
}

/** Has a failure name the operation that the program called, not the one that it is made of. */
export const named = (operation: string) => <A, E, R>(self: Effect.Effect<A, E | CudaError, R>) =>
  Effect.mapError(self, (error) => isCudaError(error) ? new CudaError({ ...error, operation }) : error)

/** Refuses an argument that no runtime sees. */
export const refuseArgument = (
  operation: string,
  argument: string,
  value: unknown,
  expected: string
): Effect.Effect<never, CudaError> => Effect.fail(invalidArgument(operation, argument, value, expected))

/** What every value of the modules is: it can be piped and prints itself. */
export abstract class Handle extends Inspectable.Class implements Pipeable.Pipeable {
  pipe() {
    return Pipeable.pipeArguments(this, arguments)
  }
}

/** What stands for a resource of a runtime. */
export abstract class ResourceHandle<out Ref> extends Handle {
  readonly runtime: CudaRuntimeService
  readonly ref: Ref
  constructor(runtime: CudaRuntimeService, ref: Ref) {
    super()
    this.runtime = runtime
    this.ref = ref
  }
}

/** What stands for a resource on one device. */
export abstract class DeviceHandle<out Ref extends { readonly device: number }> extends ResourceHandle<Ref> {
  get deviceIndex(): number {
    return this.ref.device
  }
  get device(): CudaDevice {
    return this.runtime.devices[this.ref.device]!
  }
}

export const StreamTypeId = "~effect-cuda/CudaStream"
export const EventTypeId = "~effect-cuda/CudaEvent"
export const TimedEventTypeId = "~effect-cuda/CudaEvent/TimedEvent"
export const BufferTypeId = "~effect-cuda/CudaMemory/Buffer"
export const MemoryPoolTypeId = "~effect-cuda/CudaMemoryPool"

export class StreamImpl extends DeviceHandle<StreamRef> implements CudaStream {
  readonly [StreamTypeId] = StreamTypeId
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
    return that instanceof StreamImpl && that.runtime === this.runtime && that.deviceIndex === this.deviceIndex &&
      that.id === this.id
  }
  [Hash.symbol](): number {
    return Hash.combine(Hash.number(this.id), Hash.number(this.deviceIndex))
  }
  toJSON() {
    const { deviceIndex, handle, id, isNonBlocking, origin, priority } = this
    return { _id: "CudaStream", id, deviceIndex, priority, isNonBlocking, origin, handle, state: this.ref.state }
  }
}

export class EventImpl extends DeviceHandle<EventRef> implements CudaEvent {
  readonly [EventTypeId] = EventTypeId
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
  toJSON() {
    const { deviceIndex, handle, hasTiming, isBlocking, isInterprocess } = this
    return { _id: "CudaEvent", deviceIndex, handle, hasTiming, isBlocking, isInterprocess, state: this.ref.state }
  }
}

export class TimedEventImpl extends EventImpl implements TimedEvent {
  readonly [TimedEventTypeId] = TimedEventTypeId
}

export class DeviceBufferImpl extends DeviceHandle<DeviceMemoryRef> implements DeviceBuffer {
  readonly [BufferTypeId] = BufferTypeId
  readonly kind = "device"
  readonly offset = 0
  get buffer(): this {
    return this
  }
  get byteLength(): number {
    return this.ref.byteLength
  }
  get address(): number {
    return this.ref.address
  }
  get isOrdered(): boolean {
    return this.ref.isOrdered
  }
  get isManaged(): boolean {
    return this.ref.isManaged
  }
  toJSON() {
    const { address, byteLength, deviceIndex, isManaged } = this
    return {
      _id: isManaged ? "ManagedBuffer" : "DeviceBuffer",
      byteLength,
      deviceIndex,
      address,
      state: this.ref.state
    }
  }
}

export class ManagedBufferImpl extends DeviceBufferImpl implements ManagedBuffer {
  declare readonly ref: ManagedMemoryRef
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.ref.bytes
  }
}

export class MemoryPoolImpl extends DeviceHandle<MemoryPoolRef> implements MemoryPool {
  readonly [MemoryPoolTypeId] = MemoryPoolTypeId
  get handle(): number {
    return this.ref.handle
  }
  toJSON() {
    const { deviceIndex, handle } = this
    const { origin, state } = this.ref
    return { _id: "MemoryPool", deviceIndex, origin, handle, state }
  }
}

export class HostBufferImpl extends ResourceHandle<HostMemoryRef> implements HostBuffer {
  readonly [BufferTypeId] = BufferTypeId
  readonly kind = "host"
  readonly offset = 0
  get buffer(): this {
    return this
  }
  get byteLength(): number {
    return this.ref.byteLength
  }
  get address(): number {
    return this.ref.address
  }
  get isOrdered(): boolean {
    return this.ref.isOrdered
  }
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.ref.bytes
  }
  toJSON() {
    const { address, byteLength } = this
    return { _id: "HostBuffer", byteLength, address, state: this.ref.state }
  }
}
