/**
 * Partitions of a device's multiprocessors, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CUcontext } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { ResourceState } from "./resources.ts"

/**
 * A reference to a partition: a share of a device's multiprocessors that no other partition of the runtime has.
 *
 * @category models
 * @since 0.1.0
 */
export interface PartitionRef {
  /** The `CUcontext` of the partition's green context. */
  readonly handle: CUcontext
  readonly deviceIndex: number
  readonly multiprocessors: number
  readonly state: ResourceState
}

/**
 * The size of a partition: at least this many multiprocessors, or all that are left.
 *
 * @category models
 * @since 0.1.0
 */
export type PartitionSize = number | "rest"

/**
 * Options for making partitions.
 *
 * @category models
 * @since 0.1.0
 */
export interface PartitionOptions {
  /**
   * Called with the partitions, synchronously, as soon as the runtime keeps them. An interruption can come before the effect returns
   * them: the caller must then destroy them.
   */
  readonly onMade?: ((partitions: ReadonlyArray<PartitionRef>) => void) | undefined
}

/**
 * Operations on partitions.
 *
 * @category models
 * @since 0.1.0
 */
export interface PartitionOperations {
  /** Makes partitions, all or none (`cuGreenCtxCreate`). Waits until the device is idle, because the driver would block until then. */
  readonly partitionCreate: (
    deviceIndex: number,
    sizes: ReadonlyArray<PartitionSize>,
    options?: PartitionOptions
  ) => Effect.Effect<ReadonlyArray<PartitionRef>, CudaError>
  /** Refuses new streams, drains and destroys the partition's streams, and gives its multiprocessors back. */
  readonly partitionDestroy: (partition: PartitionRef) => Effect.Effect<void, CudaError>
}
