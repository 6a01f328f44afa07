/**
 * Uses of ordered buffers in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryRange } from "./memory.ts"
import type { StreamRef } from "./streams.ts"

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
 * Operations that order the uses of buffers.
 *
 * @category models
 * @since 0.1.0
 */
export interface AccessOperations {
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
