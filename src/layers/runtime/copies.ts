/**
 * Copies and fills in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryRange } from "./memory.ts"
import type { StreamRef } from "./streams.ts"

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
 * Operations that copy and fill memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface CopyOperations {
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
}
