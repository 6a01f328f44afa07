/**
 * Accesses of ordered buffers, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError, CudaErrorReason } from "../../CudaError.ts"
import type { ForeignSimulation } from "./graphs.ts"
import type { PointerArgument } from "./kernels.ts"
import type { LibraryHandleRef, LibraryRef } from "./libraries.ts"
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
  /** The handles of libraries that the work uses. */
  readonly handles?: ReadonlyArray<LibraryHandleRef> | undefined
}

/**
 * What the codes of other native code mean: their names, a function that returns the name of a code or the reason of the failure, or the
 * library whose codes they are.
 *
 * @category models
 * @since 0.1.0
 */
export type ForeignStatuses =
  | { readonly [code: number]: string }
  | ((code: number) => string | CudaErrorReason | undefined)
  | { readonly ref: LibraryRef }

/**
 * The memory that a call of other native code uses, and what its status means.
 *
 * @category models
 * @since 0.1.0
 */
export interface EnqueuedCall {
  readonly reads?: ReadonlyArray<PointerArgument> | undefined
  readonly writes?: ReadonlyArray<PointerArgument> | undefined
  readonly status?: ForeignStatuses | undefined
  /** Stands in for the call on simulated devices, which cannot run native code. */
  readonly simulate?: ForeignSimulation | undefined
  /** The handles of libraries that the call uses. */
  readonly handles?: ReadonlyArray<LibraryHandleRef> | undefined
  /** What failures name: the operation of the program, and the native function. */
  readonly names?: { readonly operation: string; readonly call: string } | undefined
}

/**
 * The part of a call that is on one stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface PlacedCall extends EnqueuedCall {
  readonly stream: StreamRef
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
  /**
   * Lets other native code enqueue work on a stream, in one synchronous call that is given the `CUstream`, and orders that work. A result
   * other than 0 or `undefined` is a failure. In a recording, the driver captures the work.
   */
  readonly memoryEnqueue: (
    work: EnqueuedCall,
    call: (stream: number) => number | void,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /**
   * Like `memoryEnqueue`, for one call that enqueues work on several streams, each with its own memory. It is given their handles, with the
   * context of the first one's device current. None of them records.
   */
  readonly memoryEnqueueAll: (
    works: ReadonlyArray<PlacedCall>,
    call: (streams: ReadonlyArray<number>) => number | void
  ) => Effect.Effect<void, CudaError>
  /** Waits for all uses so far of bytes of an ordered buffer. */
  readonly memorySynchronize: (range: MemoryRange) => Effect.Effect<void, CudaError>
}
