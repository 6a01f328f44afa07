/**
 * Device memory in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CUdeviceptr } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { HostMemoryRef } from "./pinned.ts"
import type { MemoryPoolRef } from "./pools.ts"
import type { ResourceState } from "./resources.ts"
import type { StreamRef } from "./streams.ts"

/**
 * An address of device or managed memory (`CUdeviceptr`).
 *
 * @category models
 * @since 0.1.0
 */
export type Address = CUdeviceptr

/**
 * Memory of a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceMemoryRef {
  readonly kind: "device"
  readonly address: Address
  readonly byteLength: number
  /** Whether its uses on different streams wait for each other by themselves. */
  readonly isOrdered: boolean
  /** Whether its pages move between the devices and the host, all of which can use it. */
  readonly isManaged: boolean
  /** Where it was allocated. */
  readonly device: number
  readonly state: ResourceState
}

/**
 * Memory that copies read and write.
 *
 * @category models
 * @since 0.1.0
 */
export type MemoryRef = DeviceMemoryRef | HostMemoryRef

/**
 * Bytes of a buffer: where they start and how many.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryRange {
  readonly memory: MemoryRef
  readonly offset: number
  readonly byteLength: number
}

/**
 * Options for allocating memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryOptions {
  /** Whether its uses on different streams wait for each other by themselves; false by default. */
  readonly ordered?: boolean | undefined
}

/**
 * Options for allocating device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceMemoryOptions extends MemoryOptions {
  /** Default: the runtime's own pool of the device. */
  readonly pool?: MemoryPoolRef | undefined
  /**
   * The stream whose work it is allocated and released among. Other streams that use it wait for the allocation by
   * themselves. Without one, the memory is there for every stream when the allocation ends.
   */
  readonly stream?: StreamRef | undefined
}

/**
 * Operations on device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryOperations {
  /** `cuMemAllocFromPoolAsync`, ready for use on every stream when the effect ends. */
  readonly memoryAllocate: (
    device: number,
    byteLength: number,
    options?: DeviceMemoryOptions
  ) => Effect.Effect<DeviceMemoryRef, CudaError>
  /**
   * Waits until the releases enqueued so far have happened, then has every pool of the device give back what it does not use
   * (`cuMemPoolTrimTo`).
   */
  readonly memoryReclaim: (device: number) => Effect.Effect<void, CudaError>
  /** Refuses new uses, and gives the memory back once the work that uses it is done; does not wait for that. */
  readonly memoryFree: (memory: MemoryRef) => Effect.Effect<void, CudaError>
}
