/**
 * Pools that device memory is allocated from: how much of a device they may hold, how much they keep when nobody uses it, and
 * what they hold now.
 *
 * Without one, `CudaMemory.allocate` takes memory from the runtime's own pool of the device (`ofDevice`), which keeps all it ever
 * held. A pool of one's own bounds what a part of a program takes, and tells what it takes. Depends on the `CudaRuntime` interface
 * and on the handles shared by the modules.
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
import { DeviceHandle, hex, oneLine, unlessLive } from "./internal/handles.ts"
import { resolveDevice } from "./internal/place.ts"
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
   * The most that the pool holds: an allocation beyond it fails with `OutOfMemory`. The driver rounds it up, to tens of MiB. Default:
   * no limit.
   */
  readonly maxBytes?: number | undefined
  /** How much the pool keeps when nobody uses it, rather than give it back to the system. Default: all. */
  readonly releaseThreshold?: number | undefined
  /**
   * Whether an allocation on a stream may take what was released on another one, where events order it after the release. Default
   * true.
   */
  readonly reuseFollowEventDependencies?: boolean | undefined
  /** Whether an allocation may take what is free by the time it is made, without any order between the streams. Default true. */
  readonly reuseAllowOpportunistic?: boolean | undefined
  /**
   * Whether an allocation may be made to wait on the GPU for what another stream is about to release. Default false: what needs no
   * waiting is then never held up by work of others.
   */
  readonly reuseAllowInternalDependencies?: boolean | undefined
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
 * True for pools.
 *
 * @category guards
 * @since 0.1.0
 */
export const isMemoryPool = (u: unknown): u is MemoryPool => Predicate.hasProperty(u, TypeId)

class MemoryPoolImpl extends DeviceHandle<MemoryPoolRef> implements MemoryPool {
  readonly [TypeId] = TypeId
  get handle(): number {
    return this.ref.handle
  }
  toString(): string {
    const { deviceIndex, handle } = this
    const whose = this.ref.origin === "runtime" && "of the runtime"
    return oneLine("MemoryPool", hex(handle), `device ${deviceIndex}`, whose, unlessLive(this.ref))
  }
  toJSON() {
    const { deviceIndex, handle } = this
    const { origin, state } = this.ref
    return { _id: "MemoryPool", deviceIndex, origin, handle, state }
  }
}

/**
 * Makes a pool that lives as long as its scope (`cuMemPoolCreate`).
 *
 * **Details**
 *
 * The release takes no further allocations (`cuMemPoolDestroy`). Buffers that came from the pool may outlive it: they stay what they
 * are, and their memory goes back to the system when they are released. Fails with `InvalidArgument` for sizes that are no whole
 * numbers of bytes.
 *
 * **Example** (At most 256 MiB for scratch memory)
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
        reuseAllowInternalDependencies: options.reuseAllowInternalDependencies ?? false
      }),
    destroy: (runtime, ref) => runtime.poolDestroy(ref),
    wrap: (runtime, ref) => new MemoryPoolImpl(runtime, ref)
  })

/**
 * Gets the runtime's own pool of a device, by default of the current one: what `CudaMemory.allocate` takes memory from. It lives
 * as long as the runtime.
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
 * Asks what a pool holds now (`cuMemPoolGetAttribute`). Memory whose release the GPU has not reached counts as used.
 *
 * @category statistics
 * @since 0.1.0
 */
export const statistics = (self: MemoryPool): Effect.Effect<MemoryPoolStatistics, CudaError> =>
  self.runtime.poolStatistics(self.ref)

/**
 * Resets the high-water marks of the statistics to the current values (`cuMemPoolSetAttribute`).
 *
 * @category statistics
 * @since 0.1.0
 */
export const resetHighWater = (self: MemoryPool): Effect.Effect<void, CudaError> =>
  self.runtime.poolResetHighWater(self.ref)

/**
 * Sets how much a pool keeps when nobody uses it, in bytes (`cuMemPoolSetAttribute`). What it holds beyond that goes back to the
 * system when the driver next gets to it; `trim` has it go at once. Fails with `InvalidArgument` for what is neither a whole number
 * from 0 nor `Infinity`.
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
    self.runtime.poolSetReleaseThreshold(self.ref, bytes)
)

/**
 * Gives what a pool holds and nobody uses back to the system, but for some bytes (`cuMemPoolTrimTo`). Waits for the releases of the
 * device that are enqueued, without blocking the event loop. Fails with `InvalidArgument` for what is neither a whole number from 0
 * nor `Infinity`, and with `ResourceReleased` for a pool that is released meanwhile.
 *
 * @category settings
 * @since 0.1.0
 */
export const trim = (
  self: MemoryPool,
  options: {
    /** Bytes. Default 0. */
    readonly keepBytes?: number | undefined
  } = {}
): Effect.Effect<void, CudaError> => self.runtime.poolTrim(self.ref, options.keepBytes ?? 0)
