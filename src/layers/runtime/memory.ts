/**
 * Memory, as the service knows it.
 *
 * @since 0.1.0
 */
import type * as Brand from "effect/Brand"
import type * as Effect from "effect/Effect"
import type { MemoryAdvice } from "../../cuda/flags.ts"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryPoolRef } from "./pools.ts"
import type { ResourceState } from "./resources.ts"
import type { StreamRef } from "./streams.ts"

/**
 * An address of device memory (`CUdeviceptr`) or of pinned host memory.
 *
 * @category models
 * @since 0.1.0
 */
export type Address = Brand.Branded<number, "effect-cuda/Address">

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
 * Managed memory: that of every device and of the host.
 *
 * @category models
 * @since 0.1.0
 */
export interface ManagedMemoryRef extends DeviceMemoryRef {
  readonly isManaged: true
  /** The memory itself, seen by the host; empty once it is released. Reading and writing it moves pages. */
  readonly bytes: Uint8Array<ArrayBuffer>
}

/**
 * Where managed memory is, or is used: on the host, or on the device of a number.
 *
 * @category models
 * @since 0.1.0
 */
export type MemoryLocation = "host" | number

/**
 * Pinned memory of the host.
 *
 * @category models
 * @since 0.1.0
 */
export interface HostMemoryRef {
  readonly kind: "host"
  readonly address: Address
  readonly byteLength: number
  /** Whether its uses on different streams wait for each other by themselves. */
  readonly isOrdered: boolean
  readonly state: ResourceState
  /** The memory itself. Detached by the release: a view kept longer has length 0. */
  readonly bytes: Uint8Array<ArrayBuffer>
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
 * Rows of bytes in a buffer: where the first starts, and how far each is from the one before.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryRows extends MemoryRange {
  /** Bytes from the start of a row to that of the next. */
  readonly pitch: number
}

/**
 * A copy of a batch.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryTransfer {
  readonly to: MemoryRange
  readonly from: MemoryRange
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
 * Work of a stream that the runtime does not know, and the memory that it uses. Each is one time of such work: it is
 * begun and ended once.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryAccess {
  readonly stream: StreamRef
  readonly reads: ReadonlyArray<MemoryRange>
  readonly writes: ReadonlyArray<MemoryRange>
  /** The access that this one is a part of: it may begin while that one goes on, whatever the two use. */
  readonly outer: MemoryAccess | undefined
}

/**
 * The operations of memory.
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
  /** `cuMemAllocManaged`, there for every stream of every device. */
  readonly managedAllocate: (
    device: number,
    byteLength: number,
    options?: MemoryOptions
  ) => Effect.Effect<ManagedMemoryRef, CudaError>
  /**
   * Waits until the releases enqueued so far have happened, then has every pool of the device give back what it does not use
   * (`cuMemPoolTrimTo`).
   */
  readonly memoryReclaim: (device: number) => Effect.Effect<void, CudaError>
  /** Page-locked memory, for every device (`cuMemHostRegister`). */
  readonly hostAllocate: (byteLength: number, options?: MemoryOptions) => Effect.Effect<HostMemoryRef, CudaError>
  /** Refuses new uses, and gives the memory back once the work that uses it is done; does not wait for that. */
  readonly memoryFree: (memory: MemoryRef) => Effect.Effect<void, CudaError>
  /** `cuMemcpy…Async` between two ranges of the same length. */
  readonly memoryCopy: (to: MemoryRange, from: MemoryRange, stream: StreamRef) => Effect.Effect<void, CudaError>
  /** `cuMemsetD8Async`, `…D16…`, `…D32…`. */
  readonly memoryFill: (
    to: MemoryRange,
    value: number,
    bits: 8 | 16 | 32,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** `cuMemcpy2DAsync`: so many rows of so many bytes. */
  readonly memoryCopy2D: (
    to: MemoryRows,
    from: MemoryRows,
    size: { readonly width: number; readonly height: number },
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** `cuMemcpyBatchAsync`, or one copy after the other where the driver or the stream has no batches. */
  readonly memoryCopyBatch: (
    transfers: ReadonlyArray<MemoryTransfer>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** `cuMemPrefetchAsync`, in pieces between turns of the event loop. */
  readonly memoryPrefetch: (
    range: MemoryRange,
    location: MemoryLocation,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** `cuMemAdvise`; the location of an advice that needs none is ignored. */
  readonly memoryAdvise: (
    range: MemoryRange,
    advice: MemoryAdvice,
    location: MemoryLocation
  ) => Effect.Effect<void, CudaError>
  /**
   * Has a stream wait as the uses of an access require (`cuStreamWaitEvent`); what is enqueued from now on is part of
   * the access. Suspends while an access that conflicts with it goes on on another stream. `memoryEnd` must follow,
   * however this ends.
   */
  readonly memoryBegin: (access: MemoryAccess) => Effect.Effect<void, CudaError>
  /**
   * Marks what was enqueued since the access began, for the uses that come after (`cuEventRecord`). Nothing for one
   * that did not begin.
   */
  readonly memoryEnd: (access: MemoryAccess) => Effect.Effect<void, CudaError>
  /** Waits for the uses so far of bytes of an ordered buffer. */
  readonly memorySynchronize: (range: MemoryRange) => Effect.Effect<void, CudaError>
}
