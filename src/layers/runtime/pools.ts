/**
 * Pools of device memory in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CUmemoryPool } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { ResourceState } from "./resources.ts"

/**
 * A pool that device memory is allocated from (`CUmemoryPool`).
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolRef {
  readonly handle: CUmemoryPool
  readonly device: number
  /** Who destroys it: a scope (`owned`), or the runtime at its end. */
  readonly origin: "owned" | "runtime"
  readonly state: ResourceState
}

/**
 * Options for creating a pool.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolOptions {
  /** The most bytes that the pool holds; `Infinity` for as many as there are. */
  readonly maxBytes: number
  /** Bytes that the pool keeps when nobody uses them, rather than give them back to the system. */
  readonly releaseThreshold: number
  /** Whether an allocation may take what another stream has freed, where events order the two. */
  readonly reuseFollowEventDependencies: boolean
  /** Whether an allocation may take what is free already, without any order between the streams. */
  readonly reuseAllowOpportunistic: boolean
  /** Whether an allocation may be made to wait for what another stream is about to free. */
  readonly reuseAllowInternalDependencies: boolean
}

/**
 * What a pool holds, in bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolStatistics {
  /** Memory of the device that the pool holds, in use or not. */
  readonly reservedBytes: number
  /** The most it held since its start or the last reset. */
  readonly reservedHighWater: number
  /** Memory of it that is allocated. */
  readonly usedBytes: number
  /** The most that was allocated since its start or the last reset. */
  readonly usedHighWater: number
}

/**
 * Operations on pools of device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface PoolOperations {
  /** `cuMemPoolCreate`. */
  readonly poolCreate: (device: number, options: MemoryPoolOptions) => Effect.Effect<MemoryPoolRef, CudaError>
  /** The pool that the runtime allocates from by itself. */
  readonly poolOfDevice: (device: number) => Effect.Effect<MemoryPoolRef, CudaError>
  /** Refuses new allocations; `cuMemPoolDestroy`, which lets allocations that are left live on. */
  readonly poolDestroy: (pool: MemoryPoolRef) => Effect.Effect<void, CudaError>
  /** `cuMemPoolGetAttribute`. */
  readonly poolStatistics: (pool: MemoryPoolRef) => Effect.Effect<MemoryPoolStatistics, CudaError>
  /** `cuMemPoolSetAttribute` of the two highest values. */
  readonly poolResetHighWater: (pool: MemoryPoolRef) => Effect.Effect<void, CudaError>
  /** `cuMemPoolSetAttribute`. */
  readonly poolSetReleaseThreshold: (pool: MemoryPoolRef, bytes: number) => Effect.Effect<void, CudaError>
  /** `cuMemPoolTrimTo`, after the releases that are enqueued. */
  readonly poolTrim: (pool: MemoryPoolRef, keepBytes: number) => Effect.Effect<void, CudaError>
}
