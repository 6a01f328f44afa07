/**
 * Managed memory, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { MemoryAdvice } from "../../cuda/flags.ts"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceMemoryRef, MemoryOptions, MemoryRange } from "./memory.ts"
import type { StreamRef } from "./streams.ts"

/**
 * Managed memory, which the host and every device can access.
 *
 * @category models
 * @since 0.1.0
 */
export interface ManagedMemoryRef extends DeviceMemoryRef {
  readonly isManaged: true
  /** The host's view of the memory. Empty after the release. Access from the host migrates pages. */
  readonly bytes: Uint8Array<ArrayBuffer>
}

/**
 * A location of managed memory: the host, or a device by index.
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
  /** Allocates managed memory, which every stream of every device can use immediately (`cuMemAllocManaged`). */
  readonly managedAllocate: (
    deviceIndex: number,
    byteLength: number,
    options?: MemoryOptions
  ) => Effect.Effect<ManagedMemoryRef, CudaError>
  /** Prefetches a range (`cuMemPrefetchAsync`), in pieces between turns of the event loop. */
  readonly memoryPrefetch: (
    range: MemoryRange,
    location: MemoryLocation,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** Advises the driver about a range (`cuMemAdvise`). Ignores the location if the advice does not need one. */
  readonly memoryAdvise: (
    range: MemoryRange,
    advice: MemoryAdvice,
    location: MemoryLocation
  ) => Effect.Effect<void, CudaError>
}
