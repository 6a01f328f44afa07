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
  /** The memory. Detached by the release: views of it then have length 0. */
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
}
