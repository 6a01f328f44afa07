/**
 * Memory pools: bound how much device memory is allocated, keep unused memory for reuse, and report usage.
 *
 * By default, `CudaMemory.allocate` allocates from the runtime's own pool of the device (`ofDevice`), which keeps all the memory it
 * ever reserved. Create a pool to bound and measure what one part of a program uses. Depends on the `CudaRuntime` interface and on the
 * handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { CudaDevice, DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import { refOfPool, runtimeOfPool } from "./internal/given.ts"
import { DeviceHandle, hex, oneLine, unlessLive } from "./internal/handles.ts"
import { deviceIndexOf, resolveDevice } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, MemoryPoolRef, MemoryPoolStatistics } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaMemoryPool"

/**
 * A pool of device memory (`CUmemoryPool`).
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPool extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaMemoryPool": "~effect-cuda/CudaMemoryPool"
  readonly runtime: CudaRuntimeService
  readonly ref: MemoryPoolRef
  /** The `CUmemoryPool`, for other native code. */
  readonly handle: number
  readonly deviceIndex: number
  readonly device: CudaDevice
}

/**
 * Options for creating a pool. Sizes are in bytes; `Infinity` means no limit.
 *
 * @category models
 * @since 0.1.0
 */
export interface MakeOptions {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
  /**
   * The most memory that the pool can reserve; an allocation beyond it fails with `OutOfMemory`. The driver rounds it up to tens of
   * MiB. Default: no limit.
   */
  readonly maxBytes?: number | undefined
  /** How much unused memory the pool keeps instead of returning it to the system. Default: all. */
  readonly releaseThreshold?: number | undefined
  /**
   * Whether an allocation on a stream may reuse memory released on another one, if events order the allocation after the release.
   * Default: true.
   */
  readonly reuseFollowEventDependencies?: boolean | undefined
  /** Whether an allocation may reuse memory that is already free, without any order between the streams. Default: true. */
  readonly reuseAllowOpportunistic?: boolean | undefined
  /**
   * Whether the driver may make an allocation wait on the GPU for memory that another stream is about to release. Default: false, so
   * that work on one stream never delays another.
   */
  readonly reuseAllowInternalDependencies?: boolean | undefined
  /**
   * The other devices that may access the pool's memory. Default: those that have access to its device, now or later
   * (`CudaDevice.enablePeerAccess`).
   */
  readonly peers?: ReadonlyArray<DeviceInput> | undefined
  /** Whether other processes can open the pool (see `CudaInterprocess`). Needs Linux. Default: false. */
  readonly shareable?: boolean | undefined
}

export type {
  /**
   * What a pool holds, in bytes.
   *
   * @category models
   * @since 0.1.0
   */
  MemoryPoolStatistics as Statistics
}

/**
 * Returns `true` if a value is a memory pool.
 *
 * @category guards
 * @since 0.1.0
 */
export const isMemoryPool = (u: unknown): u is MemoryPool => Predicate.hasProperty(u, TypeId)

/** @internal */
export class MemoryPoolImpl extends DeviceHandle<MemoryPoolRef> implements MemoryPool {
  readonly [TypeId] = TypeId
  get handle(): number {
    return this.ref.handle
  }
  toString(): string {
    const { deviceIndex, handle } = this
    const whose = this.ref.origin === "runtime"
      ? "of the runtime"
      : this.ref.origin === "opened" && "of another process"
    return oneLine("MemoryPool", hex(handle), `device ${deviceIndex}`, whose, unlessLive(this.ref))
  }
  toJSON() {
    const { deviceIndex, handle } = this
    const { origin, state } = this.ref
    return { _id: "MemoryPool", deviceIndex, origin, handle, state }
  }
}

/**
 * Creates a pool that lives as long as its scope (`cuMemPoolCreate`).
 *
 * **Details**
 *
 * Releasing the pool rejects further allocations. Buffers allocated from it may outlive it: they remain valid, and their memory returns to
 * the system with the pool, once the last of it is free (`cuMemPoolDestroy`, in the background: the driver crashes if it is called earlier).
 * Fails with `InvalidArgument` if `maxBytes` is 0 or a size is neither a non-negative integer nor `Infinity`.
 *
 * **Example** (Limiting scratch memory to 256 MiB)
 *
 * ```ts
 * import { CudaMemory, CudaMemoryPool } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const bounded = Effect.gen(function*() {
 *   const pool = yield* CudaMemoryPool.make({ maxBytes: 256 * 2 ** 20, releaseThreshold: 0 })
 *   yield* CudaMemory.allocate(2 ** 20, { pool })
 *   const { usedBytes } = yield* CudaMemoryPool.statistics(pool) // 2^20
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: MakeOptions = {}): Effect.Effect<MemoryPool, CudaError, CudaRuntime | Scope.Scope> =>
  makeScoped(options.device, {
    create: (runtime, device) =>
      runtime.poolCreate(device, {
        maxBytes: options.maxBytes ?? Number.POSITIVE_INFINITY,
        releaseThreshold: options.releaseThreshold ?? Number.POSITIVE_INFINITY,
        reuseFollowEventDependencies: options.reuseFollowEventDependencies ?? true,
        reuseAllowOpportunistic: options.reuseAllowOpportunistic ?? true,
        reuseAllowInternalDependencies: options.reuseAllowInternalDependencies ?? false,
        peers: indicesOf(options.peers),
        shareable: options.shareable ?? false
      }),
    destroy: (runtime, ref) => runtime.poolDestroy(ref),
    wrap: (runtime, ref) => new MemoryPoolImpl(runtime, ref)
  })

/** The indices of devices. A value that is not an array is passed on unchanged, and the runtime refuses it. */
function indicesOf(devices: ReadonlyArray<DeviceInput> | undefined): ReadonlyArray<number> | undefined
function indicesOf(devices: unknown): unknown {
  return Array.isArray(devices) ? devices.map((device: DeviceInput) => deviceIndexOf(device, Number.NaN)) : devices
}

/**
 * Gets the runtime's own pool of a device, by default of the current device. `CudaMemory.allocate` allocates from it unless another
 * pool is given. It lives as long as the runtime.
 *
 * **Example** (What the pool of the device holds)
 *
 * ```ts
 * import { CudaMemoryPool } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const held = Effect.flatMap(CudaMemoryPool.ofDevice(), CudaMemoryPool.statistics)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const ofDevice = (device?: DeviceInput): Effect.Effect<MemoryPool, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const index = yield* resolveDevice(device)
    return new MemoryPoolImpl(runtime, yield* runtime.poolOfDevice(index))
  })

/**
 * Reads how much memory a pool reserves and uses (`cuMemPoolGetAttribute`), in bytes. Memory counts as used until the GPU reaches its
 * release.
 *
 * **Example** (What a pool holds)
 *
 * ```ts
 * import { CudaMemoryPool } from "effect-cuda"
 *
 * declare const pool: CudaMemoryPool.MemoryPool
 *
 * const held = CudaMemoryPool.statistics(pool)
 * ```
 *
 * @category statistics
 * @since 0.1.0
 */
export const statistics = (self: MemoryPool): Effect.Effect<MemoryPoolStatistics, CudaError> =>
  runtimeOfPool(self).poolStatistics(refOfPool(self))

/**
 * Resets the high-water marks of the statistics to the current values (`cuMemPoolSetAttribute`).
 *
 * **Example** (The highest use during a phase)
 *
 * ```ts
 * import { CudaMemoryPool } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const pool: CudaMemoryPool.MemoryPool
 *
 * const measured = <A, E, R>(phase: Effect.Effect<A, E, R>) =>
 *   CudaMemoryPool.resetHighWater(pool).pipe(Effect.andThen(phase), Effect.andThen(CudaMemoryPool.statistics(pool)))
 * ```
 *
 * @category statistics
 * @since 0.1.0
 */
export const resetHighWater = (self: MemoryPool): Effect.Effect<void, CudaError> =>
  runtimeOfPool(self).poolResetHighWater(refOfPool(self))

/**
 * Sets how many unused bytes a pool keeps (`cuMemPoolSetAttribute`).
 *
 * **Details**
 *
 * Unused memory beyond that returns to the system at the driver's next opportunity; call `trim` to return it immediately. Fails with
 * `InvalidArgument` for a value that is neither a non-negative integer nor `Infinity`.
 *
 * **Example** (A pool that keeps up to 1 GiB)
 *
 * ```ts
 * import { CudaMemoryPool } from "effect-cuda"
 *
 * declare const pool: CudaMemoryPool.MemoryPool
 *
 * const kept = CudaMemoryPool.setReleaseThreshold(pool, 2 ** 30)
 * ```
 *
 * @category settings
 * @since 0.1.0
 */
export const setReleaseThreshold: {
  (bytes: number): (self: MemoryPool) => Effect.Effect<void, CudaError>
  (self: MemoryPool, bytes: number): Effect.Effect<void, CudaError>
} = dual(
  2,
  (self: MemoryPool, bytes: number): Effect.Effect<void, CudaError> =>
    runtimeOfPool(self).poolSetReleaseThreshold(refOfPool(self), bytes)
)

/**
 * Lets another device access the memory of a pool (`cuMemPoolSetAccess`), that of existing buffers too. Does nothing if it already can.
 *
 * **Details**
 *
 * Kernels, fills and calls of libraries on streams of that device may then use the pool's buffers. For the runtime's own pool, does the
 * same as `CudaDevice.enablePeerAccess`. Fails with `PeerAccessUnsupported` if the devices have no such link, and with `InvalidArgument`
 * for the pool's own device.
 *
 * **Example** (One pool that another device may use)
 *
 * ```ts
 * import { CudaMemory, CudaMemoryPool } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const shared = Effect.gen(function*() {
 *   const pool = yield* CudaMemoryPool.make({ device: 0, peers: [] })
 *   yield* CudaMemoryPool.allowAccess(pool, 1)
 *   return yield* CudaMemory.allocate(4096, { pool })
 * })
 * ```
 *
 * @category peer access
 * @since 0.1.0
 */
export const allowAccess: {
  (device: DeviceInput): (self: MemoryPool) => Effect.Effect<void, CudaError>
  (self: MemoryPool, device: DeviceInput): Effect.Effect<void, CudaError>
} = dual(
  2,
  (self: MemoryPool, device: DeviceInput): Effect.Effect<void, CudaError> =>
    runtimeOfPool(self).poolAllowAccess(refOfPool(self), deviceIndexOf(device, Number.NaN))
)

/**
 * Ends the access of another device to the memory of a pool (`cuMemPoolSetAccess`). Does nothing if there is none.
 *
 * **Details**
 *
 * From now on, using the pool's buffers on that device fails with `DeviceMismatch`. Then waits until the work on the streams of both devices
 * so far is done, and takes the access away, unless a graph copies the memory. For the runtime's own pool, does the same as
 * `CudaDevice.disablePeerAccess`. Cannot be used inside a recording.
 *
 * **Example** (Access for a while)
 *
 * ```ts
 * import { CudaMemoryPool } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const pool: CudaMemoryPool.MemoryPool
 *
 * const shared = Effect.acquireRelease(
 *   CudaMemoryPool.allowAccess(pool, 1),
 *   () => Effect.ignore(CudaMemoryPool.denyAccess(pool, 1))
 * )
 * ```
 *
 * @category peer access
 * @since 0.1.0
 */
export const denyAccess: {
  (device: DeviceInput): (self: MemoryPool) => Effect.Effect<void, CudaError>
  (self: MemoryPool, device: DeviceInput): Effect.Effect<void, CudaError>
} = dual(
  2,
  (self: MemoryPool, device: DeviceInput): Effect.Effect<void, CudaError> =>
    runtimeOfPool(self).poolDenyAccess(refOfPool(self), deviceIndexOf(device, Number.NaN))
)

/**
 * Lists the indices of the other devices that may access the memory of a pool, in ascending order.
 *
 * **Example** (Which devices may use a pool)
 *
 * ```ts
 * import { CudaMemoryPool } from "effect-cuda"
 *
 * declare const pool: CudaMemoryPool.MemoryPool
 *
 * const devices = CudaMemoryPool.peers(pool)
 * ```
 *
 * @category peer access
 * @since 0.1.0
 */
export const peers = (self: MemoryPool): ReadonlyArray<number> =>
  Array.from(self.ref.peers).toSorted((one, other) => one - other)

/**
 * Returns unused memory of a pool to the system, except for `keepBytes` (`cuMemPoolTrimTo`).
 *
 * **Details**
 *
 * First waits for the releases already enqueued on the device, without blocking the event loop. Fails with `InvalidArgument` if
 * `keepBytes` is neither a non-negative integer nor `Infinity`, and with `ResourceReleased` if the pool is released meanwhile.
 *
 * **Example** (Returning unused memory to the system)
 *
 * ```ts
 * import { CudaMemoryPool } from "effect-cuda"
 *
 * declare const pool: CudaMemoryPool.MemoryPool
 *
 * const returned = CudaMemoryPool.trim(pool)
 * ```
 *
 * @category settings
 * @since 0.1.0
 */
export const trim = (
  self: MemoryPool,
  options: {
    /** How many bytes the pool keeps. Default: 0. */
    readonly keepBytes?: number | undefined
  } = {}
): Effect.Effect<void, CudaError> => runtimeOfPool(self).poolTrim(refOfPool(self), options.keepBytes ?? 0)
