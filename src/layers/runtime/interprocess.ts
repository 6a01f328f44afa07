/**
 * Memory shared with other processes, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceMemoryRef, MemoryOptions, MemoryRange } from "./memory.ts"
import type { MemoryPoolRef } from "./pools.ts"

/**
 * A pool that other processes can open.
 *
 * @category models
 * @since 0.1.0
 */
export interface SharedPool {
  /** A descriptor of this process. Other processes need their own copy of it. */
  readonly descriptor: number
  /** Identifies the pool among all pools of all processes. */
  readonly id: string
}

/**
 * Device memory that other processes can open.
 *
 * @category models
 * @since 0.1.0
 */
export interface SharedMemory {
  /** Memory of a shared pool, or an allocation of its own. */
  readonly kind: "pool" | "allocation"
  /** The driver's 64 bytes (`CUmemPoolPtrExportData` or `CUipcMemHandle`), which stand for the whole allocation. */
  readonly handle: Uint8Array<ArrayBuffer>
  /** Bytes from the start of the allocation. */
  readonly offset: number
  readonly byteLength: number
  /** Identifies the process; undefined if that is unknown. */
  readonly origin: string | undefined
  /** The `id` of its pool. */
  readonly pool: string | undefined
  /** The handle of an event of its process that is recorded when the memory is released, after all work that uses it. */
  readonly returned: Uint8Array<ArrayBuffer> | undefined
}

/**
 * Options for opening memory of another process.
 *
 * @category models
 * @since 0.1.0
 */
export interface OpenMemoryOptions extends MemoryOptions {
  /** The pool opened in this process. */
  readonly pool?: MemoryPoolRef | undefined
}

/**
 * Operations on memory of other processes.
 *
 * @category models
 * @since 0.1.0
 */
export interface InterprocessOperations {
  /** Exports a shareable pool as a descriptor (`cuMemPoolExportToShareableHandle`). */
  readonly poolShare: (pool: MemoryPoolRef) => Effect.Effect<SharedPool, CudaError>
  /**
   * Opens a pool of another process, given a copy of its descriptor (`cuMemPoolImportFromShareableHandle`, `cuMemPoolSetAccess`).
   * `poolDestroy` closes it.
   */
  readonly poolOpen: (
    deviceIndex: number,
    descriptor: number,
    id?: string
  ) => Effect.Effect<MemoryPoolRef, CudaError>
  /** Copies a descriptor of another process into this one (`pidfd_getfd`). */
  readonly descriptorTake: (pid: number, descriptor: number) => Effect.Effect<number, CudaError>
  /** Closes a descriptor that `poolShare` or `descriptorTake` made. */
  readonly descriptorClose: (descriptor: number) => Effect.Effect<void, CudaError>
  /** Allocates device memory outside of pools (`cuMemAlloc`), which can be shared without a descriptor. */
  readonly memoryAllocateShareable: (
    deviceIndex: number,
    byteLength: number,
    options?: MemoryOptions
  ) => Effect.Effect<DeviceMemoryRef, CudaError>
  /** Reads what another process needs to open memory (`cuMemPoolExportPointer`, `cuIpcGetMemHandle`). */
  readonly memoryShare: (range: MemoryRange) => Effect.Effect<SharedMemory, CudaError>
  /** Opens memory of another process (`cuMemPoolImportPointer`, `cuIpcOpenMemHandle`). `memoryFree` closes it. */
  readonly memoryOpen: (
    deviceIndex: number,
    memory: SharedMemory,
    options?: OpenMemoryOptions
  ) => Effect.Effect<DeviceMemoryRef, CudaError>
}
