/**
 * Device memory, in the runtime service.
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
 * A reference to device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceMemoryRef {
  readonly kind: "device"
  readonly address: Address
  readonly byteLength: number
  /** Whether uses on different streams are ordered automatically. */
  readonly isOrdered: boolean
  /** Whether it is managed memory, whose pages migrate between the host and the devices. */
  readonly isManaged: boolean
  /** Whether it is memory that can grow and shrink. */
  readonly isGrowable: boolean
  /** The device it was allocated on. */
  readonly deviceIndex: number
  readonly state: ResourceState
}

/**
 * Memory that can be copied.
 *
 * @category models
 * @since 0.1.0
 */
export type MemoryRef = DeviceMemoryRef | HostMemoryRef

/**
 * A range of bytes in a buffer.
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
  /** Whether uses on different streams are ordered automatically. Default: false. */
  readonly ordered?: boolean | undefined
}

/**
 * Options for allocating device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceMemoryOptions extends MemoryOptions {
  /** The pool to allocate from. Default: the runtime's pool of the device. */
  readonly pool?: MemoryPoolRef | undefined
  /**
   * The stream in whose order the memory is allocated and released. Other streams wait for the allocation
   * automatically. Without a stream, every stream can use the memory as soon as the allocation returns.
   */
  readonly stream?: StreamRef | undefined
}

/**
 * What the driver knows of the memory at an address.
 *
 * @category models
 * @since 0.1.0
 */
export interface PointerAttributes {
  /** Whether it is memory of a device, managed memory included, or pinned memory of the host. */
  readonly kind: "device" | "host"
  readonly isManaged: boolean
  /** The device that it was allocated on; for pinned memory, the one in whose context it was pinned. */
  readonly deviceIndex: number
  /** The allocation, or the pinned range, that contains the address; undefined if the driver does not know it. */
  readonly range: { readonly address: number; readonly byteLength: number } | undefined
}

/**
 * Operations on device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryOperations {
  /** Allocates device memory (`cuMemAllocFromPoolAsync`). Every stream can use it when the effect ends. */
  readonly memoryAllocate: (
    deviceIndex: number,
    byteLength: number,
    options?: DeviceMemoryOptions
  ) => Effect.Effect<DeviceMemoryRef, CudaError>
  /**
   * Waits for the releases enqueued so far, then makes every pool of the device return its unused memory
   * (`cuMemPoolTrimTo`).
   */
  readonly memoryReclaim: (deviceIndex: number) => Effect.Effect<void, CudaError>
  /**
   * Makes a reference to device memory of other code, which stays its owner. Checks the address (`cuPointerGetAttributes`). `memoryFree`
   * ends its use, and waits until all work that uses it has finished.
   */
  readonly memoryFromAddress: (
    deviceIndex: number,
    address: number,
    byteLength: number,
    options?: MemoryOptions
  ) => Effect.Effect<DeviceMemoryRef, CudaError>
  /** Reads what the driver knows of an address (`cuPointerGetAttributes`); undefined if CUDA does not know the memory. */
  readonly memoryAttributes: (
    deviceIndex: number,
    address: number
  ) => Effect.Effect<PointerAttributes | undefined, CudaError>
  /**
   * Refuses new uses, and releases the memory once all work that uses it has finished. Waits for that only if the memory is of other
   * code.
   */
  readonly memoryFree: (memory: MemoryRef) => Effect.Effect<void, CudaError>
}
