/**
 * Device memory that grows without moving, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceMemoryRef, MemoryOptions, MemoryRef } from "./memory.ts"

/**
 * Device memory that grows and shrinks at a fixed address.
 *
 * @category models
 * @since 0.1.0
 */
export interface GrowableMemoryRef extends DeviceMemoryRef {
  readonly isGrowable: true
  /** The bytes that can be used now. */
  readonly byteLength: number
  /** The bytes of memory behind the address, which are at least `byteLength`. */
  readonly mappedBytes: number
  /** The bytes of address space, beyond which it cannot grow. */
  readonly maxBytes: number
}

/**
 * Operations on growable memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface GrowableOperations {
  /** Reserves addresses for up to `maxBytes` of memory (`cuMemAddressReserve`), of which no byte can be used yet. */
  readonly memoryReserve: (
    deviceIndex: number,
    maxBytes: number,
    options?: MemoryOptions
  ) => Effect.Effect<GrowableMemoryRef, CudaError>
  /**
   * Makes memory at least this large (`cuMemMap`), in pieces between turns of the event loop. Every stream can use the new bytes when the
   * effect ends. If it fails or is interrupted, the memory keeps its size.
   */
  readonly memoryGrow: (memory: MemoryRef, byteLength: number) => Effect.Effect<void, CudaError>
  /**
   * Makes memory at most this large, and returns the rest to the device (`cuMemUnmap`) once the work that uses the memory has finished.
   * If waiting for that fails or is interrupted, the memory keeps its size.
   */
  readonly memoryShrink: (memory: MemoryRef, byteLength: number) => Effect.Effect<void, CudaError>
}
