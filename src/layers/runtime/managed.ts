/**
 * Managed memory in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { MemoryAdvice } from "../../cuda/flags.ts"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceMemoryRef, MemoryOptions, MemoryRange } from "./memory.ts"
import type { StreamRef } from "./streams.ts"

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
 * Operations on managed memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface ManagedOperations {
  /** `cuMemAllocManaged`, there for every stream of every device. */
  readonly managedAllocate: (
    device: number,
    byteLength: number,
    options?: MemoryOptions
  ) => Effect.Effect<ManagedMemoryRef, CudaError>
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
}
