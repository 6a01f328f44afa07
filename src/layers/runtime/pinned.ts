/**
 * Pinned host memory in the runtime service.
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
 * Pinned memory of the host.
 *
 * @category models
 * @since 0.1.0
 */
export interface HostMemoryRef {
  readonly kind: "host"
  readonly address: HostAddress
  readonly byteLength: number
  /** Whether its uses on different streams wait for each other by themselves. */
  readonly isOrdered: boolean
  readonly state: ResourceState
  /** The memory itself. Detached by the release: a view kept longer has length 0. */
  readonly bytes: Uint8Array<ArrayBuffer>
}

/**
 * Operations on pinned host memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface PinnedOperations {
  /** Page-locked memory, for every device (`cuMemHostRegister`). */
  readonly hostAllocate: (byteLength: number, options?: MemoryOptions) => Effect.Effect<HostMemoryRef, CudaError>
}
