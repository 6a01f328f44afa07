/**
 * Pools of device memory, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CUmemoryPool } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { ResourceState } from "./resources.ts"

/**
 * A reference to a pool of device memory (`CUmemoryPool`).
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolRef {
  readonly handle: CUmemoryPool
  readonly deviceIndex: number
  /** Where the pool comes from: a scope made it (`owned`), the runtime did, or it was opened and is of another process. */
  readonly origin: "owned" | "runtime" | "opened"
  /** The indices of the other devices that may access its memory. */
  readonly peers: ReadonlySet<number>
  readonly state: ResourceState
}

/**
 * Options for creating a pool.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolOptions {
  /** The maximum size of the pool in bytes. `Infinity` is no limit. */
  readonly maxBytes: number
  /** Bytes of unused memory that the pool keeps instead of returning it to the system. */
  readonly releaseThreshold: number
  /** Whether an allocation may reuse memory freed on another stream if events order the two. */
  readonly reuseFollowEventDependencies: boolean
  /**
   * Whether an allocation may reuse memory whose release has already finished, without a dependency between the
   * streams.
   */
  readonly reuseAllowOpportunistic: boolean
  /** Whether the driver may insert a dependency so that an allocation reuses memory being freed on another stream. */
  readonly reuseAllowInternalDependencies: boolean
  /** The other devices that may access its memory. Undefined for those that have access to its device, now or later. */
  readonly peers?: ReadonlyArray<number> | undefined
  /** Whether other processes can open the pool. Default: false. */
  readonly shareable?: boolean | undefined
}

/**
 * Statistics of a pool, in bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolStatistics {
  /** Device memory reserved by the pool, used or not. */
  readonly reservedBytes: number
  /** High-water mark of `reservedBytes` since the pool's creation or the last reset. */
  readonly reservedHighWater: number
  /** Memory currently allocated from the pool. */
  readonly usedBytes: number
  /** High-water mark of `usedBytes` since the pool's creation or the last reset. */
  readonly usedHighWater: number
}

/**
 * Operations on pools of device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface PoolOperations {
  /** Creates a pool (`cuMemPoolCreate`). */
  readonly poolCreate: (deviceIndex: number, options: MemoryPoolOptions) => Effect.Effect<MemoryPoolRef, CudaError>
  /** The pool that the runtime allocates from by default. */
  readonly poolOfDevice: (deviceIndex: number) => Effect.Effect<MemoryPoolRef, CudaError>
  /**
   * Refuses new allocations, and destroys the pool once its memory is free (`cuMemPoolDestroy`). Existing allocations remain valid. If the
   * pool is destroyed later, only the log tells of a failure.
   */
  readonly poolDestroy: (pool: MemoryPoolRef) => Effect.Effect<void, CudaError>
  /** Reads the statistics (`cuMemPoolGetAttribute`). */
  readonly poolStatistics: (pool: MemoryPoolRef) => Effect.Effect<MemoryPoolStatistics, CudaError>
  /** Resets both high-water marks (`cuMemPoolSetAttribute`). */
  readonly poolResetHighWater: (pool: MemoryPoolRef) => Effect.Effect<void, CudaError>
  /** Sets how much unused memory the pool keeps (`cuMemPoolSetAttribute`). */
  readonly poolSetReleaseThreshold: (pool: MemoryPoolRef, bytes: number) => Effect.Effect<void, CudaError>
  /** Lets a device access the memory of the pool (`cuMemPoolSetAccess`). */
  readonly poolAllowAccess: (pool: MemoryPoolRef, deviceIndex: number) => Effect.Effect<void, CudaError>
  /** Ends that access, once the work on the streams of both devices is done (`cuMemPoolSetAccess`). */
  readonly poolDenyAccess: (pool: MemoryPoolRef, deviceIndex: number) => Effect.Effect<void, CudaError>
  /** Trims the pool (`cuMemPoolTrimTo`) after the releases enqueued so far. */
  readonly poolTrim: (pool: MemoryPoolRef, keepBytes: number) => Effect.Effect<void, CudaError>
}
