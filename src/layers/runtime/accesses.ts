/**
 * Accesses of ordered buffers, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryRange } from "./memory.ts"
import type { StreamRef } from "./streams.ts"

/**
 * An access: work on a stream that the runtime cannot see, and the memory it uses. Begin and end each access once.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryAccess {
  readonly stream: StreamRef
  readonly reads: ReadonlyArray<MemoryRange>
  readonly writes: ReadonlyArray<MemoryRange>
  /** The enclosing access, if any. This access may begin while that one is open, whatever memory the two use. */
  readonly outer: MemoryAccess | undefined
}

/**
 * Operations that order accesses of buffers.
 *
 * @category models
 * @since 0.1.0
 */
export interface AccessOperations {
  /**
   * Begins an access: makes its stream wait for conflicting earlier uses (`cuStreamWaitEvent`). Work enqueued from now
   * on belongs to the access. Suspends while a conflicting access is open on another stream. `memoryEnd` must follow,
   * however this effect ends.
   */
  readonly memoryBegin: (access: MemoryAccess) => Effect.Effect<void, CudaError>
  /**
   * Ends an access: marks the work enqueued since it began, for later uses to wait for (`cuEventRecord`). Does nothing
   * if the access did not begin.
   */
  readonly memoryEnd: (access: MemoryAccess) => Effect.Effect<void, CudaError>
  /** Waits for all uses so far of bytes of an ordered buffer. */
  readonly memorySynchronize: (range: MemoryRange) => Effect.Effect<void, CudaError>
}
