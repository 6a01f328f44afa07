/**
 * Streams in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CUstream } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { PriorityRange } from "./devices.ts"
import type { EventRef } from "./events.ts"
import type { ResourceState } from "./resources.ts"

/**
 * A `CUstream` as a number. 1 is the legacy default stream and 2 the per-thread one; no handle means "none".
 *
 * @category models
 * @since 0.1.0
 */
export type StreamHandle = CUstream

/**
 * A priority: a number of the device's range (lower goes first), `"high"` for its greatest or `"low"` for its least.
 *
 * @category models
 * @since 0.1.0
 */
export type Priority = number | "high" | "low"

/**
 * Options for creating a stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions {
  readonly device: number
  readonly priority: Priority
  /** What a number outside the device's range means: a failure (the default), or the nearest priority there is. */
  readonly outOfRange?: "fail" | "clamp" | undefined
  readonly nonBlocking: boolean
}

/**
 * The number of a priority on a device. What is no number of the range stays what it is, unless it is to be clamped.
 *
 * @category models
 * @since 0.1.0
 */
export const resolvePriority = (
  range: PriorityRange,
  priority: Priority,
  outOfRange: "fail" | "clamp" = "fail"
): number => {
  if (priority === "high") return range.greatest
  if (priority === "low") return range.least
  return outOfRange === "clamp" && typeof priority === "number"
    ? Math.max(range.greatest, Math.min(range.least, priority))
    : priority
}

/**
 * A stream of a runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamRef {
  readonly handle: StreamHandle
  /** The driver's id of the stream; 0 for a legacy default stream. Handles are reused, ids are not. */
  readonly id: number
  readonly device: number
  readonly priority: number
  /** False for streams that order themselves against the legacy default stream. */
  readonly nonBlocking: boolean
  /** Who destroys it: the runtime (`owned`), or nobody here. */
  readonly origin: "owned" | "default" | "foreign"
  readonly state: ResourceState
}

/**
 * Operations on streams.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOperations {
  /** `cuStreamCreateWithPriority`. */
  readonly streamCreate: (options: StreamOptions) => Effect.Effect<StreamRef, CudaError>
  /** A context's default stream. */
  readonly streamDefault: (
    device: number,
    mode: "legacy" | "perThread"
  ) => Effect.Effect<StreamRef, CudaError>
  /** A stream that something else made and destroys. */
  readonly streamFromHandle: (device: number, handle: number) => Effect.Effect<StreamRef, CudaError>
  /** Refuses new work, waits until the stream is done, then `cuStreamDestroy`. Nothing for streams of others. */
  readonly streamDestroy: (stream: StreamRef) => Effect.Effect<void, CudaError>
  /** `cuStreamQuery`: true when everything enqueued so far is done. */
  readonly streamQuery: (stream: StreamRef) => Effect.Effect<boolean, CudaError>
  /** Waits for the work enqueued before the call. */
  readonly streamSynchronize: (stream: StreamRef) => Effect.Effect<void, CudaError>
  /** `cuStreamWaitEvent`. */
  readonly streamWaitEvent: (stream: StreamRef, event: EventRef) => Effect.Effect<void, CudaError>
  /** `cuEventRecord` of an event of the runtime's own on `other`, and `cuStreamWaitEvent` for it. */
  readonly streamWaitStream: (stream: StreamRef, other: StreamRef) => Effect.Effect<void, CudaError>
  /** One `cuEventRecord` of an event of the runtime's own on `from`, and a `cuStreamWaitEvent` for it on every branch. */
  readonly streamFork: (from: StreamRef, branches: ReadonlyArray<StreamRef>) => Effect.Effect<void, CudaError>
  /**
   * What `streamWaitStream` does, for every branch. One that cannot be waited for does not keep the others from being; its
   * failure is that of the whole.
   */
  readonly streamJoin: (into: StreamRef, branches: ReadonlyArray<StreamRef>) => Effect.Effect<void, CudaError>
}
