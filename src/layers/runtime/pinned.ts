/**
 * Pinned host memory, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { HostPointer } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryOptions } from "./memory.ts"
import type { ResourceState } from "./resources.ts"

/**
 * An address of host memory.
 *
 * @category models
 * @since 0.1.0
 */
export type HostAddress = HostPointer

/**
 * A reference to pinned host memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface HostMemoryRef {
  readonly kind: "host"
  readonly address: HostAddress
  readonly byteLength: number
  /** Whether uses on different streams are ordered automatically. */
  readonly isOrdered: boolean
  readonly state: ResourceState
  /** The memory. Empty after the release, which also detaches other views of it, except those of memory that the program brought. */
  readonly bytes: Uint8Array<ArrayBuffer>
}

/**
 * Operations on pinned host memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface PinnedOperations {
  /** Allocates page-locked memory, portable across devices (`cuMemHostRegister`). */
  readonly hostAllocate: (byteLength: number, options?: MemoryOptions) => Effect.Effect<HostMemoryRef, CudaError>
  /** Page-locks memory of the program, portable across devices (`cuMemHostRegister`). `memoryFree` unlocks it after its uses. */
  readonly hostPin: (bytes: Uint8Array, options?: MemoryOptions) => Effect.Effect<HostMemoryRef, CudaError>
}
