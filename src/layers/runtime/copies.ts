/**
 * Copies and fills, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryRange } from "./memory.ts"
import type { StreamRef } from "./streams.ts"

/**
 * Rows of bytes in a buffer: the offset of the first row, and the pitch.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryRows extends MemoryRange {
  /** Bytes from the start of one row to the start of the next. */
  readonly pitch: number
}

/**
 * One copy of a batch.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryTransfer {
  readonly to: MemoryRange
  readonly from: MemoryRange
}

/**
 * What a layer around the runtime is told of an array of the program that an operation copies, piece by piece.
 *
 * @category models
 * @since 0.1.0
 */
export interface ArrayWatch {
  /** The program must not change these bytes until the end, or until `check`. */
  readonly keep: (bytes: Uint8Array) => void
  /** The operation is about to change bytes that were kept. */
  readonly check: (bytes: Uint8Array) => void
  /** The operation is done. */
  readonly end: Effect.Effect<void, CudaError>
}

/**
 * Operations that copy and fill memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface CopyOperations {
  /** Copies between two ranges of equal length (`cuMemcpy…Async`). */
  readonly memoryCopy: (to: MemoryRange, from: MemoryRange, stream: StreamRef) => Effect.Effect<void, CudaError>
  /** Fills with a value of 8, 16 or 32 bits (`cuMemsetD8Async`, `cuMemsetD16Async`, `cuMemsetD32Async`). */
  readonly memoryFill: (
    to: MemoryRange,
    value: number,
    bits: 8 | 16 | 32,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** Copies rows (`cuMemcpy2DAsync`). */
  readonly memoryCopy2D: (
    to: MemoryRows,
    from: MemoryRows,
    size: { readonly width: number; readonly height: number },
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** Copies a batch (`cuMemcpyBatchAsync`), one by one if the driver or the stream does not support batches. */
  readonly memoryCopyBatch: (
    transfers: ReadonlyArray<MemoryTransfer>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
}
