/**
 * Streams, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CUstream } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { PriorityRange } from "./devices.ts"
import type { EventRef } from "./events.ts"
import type { PartitionRef } from "./partitions.ts"
import type { ResourceState } from "./resources.ts"

/**
 * A `CUstream` as a number. 1 is the legacy default stream, and 2 the per-thread default stream. No value
 * stands for the absence of a stream.
 *
 * @category models
 * @since 0.1.0
 */
export type StreamHandle = CUstream

/**
 * A stream priority: a number in the device's range, where lower means higher priority, or `"high"` or `"low"` for
 * either end of the range.
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
  readonly deviceIndex: number
  readonly priority: Priority
  /** How to treat a number outside the device's range: fail (the default), or clamp it to the range. */
  readonly outOfRange?: "fail" | "clamp" | undefined
  readonly nonBlocking: boolean
  /** What the program calls it, in messages, timelines and profilers. */
  readonly name?: string | undefined
  /** Whether it will live as long as the runtime, or as its partition. Changes nothing: a layer that looks for leaks can leave it out. */
  readonly pooled?: boolean | undefined
  /** The partition whose multiprocessors its work runs on. Default: none; its work runs on all of the device's. */
  readonly partition?: PartitionRef | undefined
}

/**
 * Resolves a priority to a number. A number outside the range is returned unchanged unless it should be clamped.
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
 * A reference to a stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamRef {
  readonly handle: StreamHandle
  /** The driver's stream id; 0 for a legacy default stream. Unlike handles, ids are never reused. */
  readonly id: number
  /** What the program calls it; undefined if it gave no name. */
  readonly name: string | undefined
  readonly deviceIndex: number
  readonly priority: number
  /** False if the stream synchronizes with the legacy default stream. */
  readonly nonBlocking: boolean
  /** Who created the stream. The runtime destroys only `owned` streams. */
  readonly origin: "owned" | "default" | "foreign"
  /** Whether it belongs to a recording, and has no handle in the driver. */
  readonly isRecording: boolean
  /** The partition whose multiprocessors its work runs on; undefined for all of the device's. */
  readonly partition: PartitionRef | undefined
  readonly state: ResourceState
}

/**
 * Operations on streams.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOperations {
  /** Creates a stream (`cuStreamCreateWithPriority`). */
  readonly streamCreate: (options: StreamOptions) => Effect.Effect<StreamRef, CudaError>
  /** The default stream of a device's primary context. */
  readonly streamDefault: (
    deviceIndex: number,
    mode: "legacy" | "perThread"
  ) => Effect.Effect<StreamRef, CudaError>
  /** Wraps a stream that other code creates and destroys. */
  readonly streamFromHandle: (
    deviceIndex: number,
    handle: number,
    keeps?: unknown
  ) => Effect.Effect<StreamRef, CudaError>
  /**
   * Refuses new work, drains the stream, then destroys it (`cuStreamDestroy`). Does nothing for a stream that is not
   * owned.
   */
  readonly streamDestroy: (stream: StreamRef) => Effect.Effect<void, CudaError>
  /** Whether all work enqueued so far has finished (`cuStreamQuery`). */
  readonly streamQuery: (stream: StreamRef) => Effect.Effect<boolean, CudaError>
  /** Waits for the work enqueued so far. */
  readonly streamSynchronize: (stream: StreamRef) => Effect.Effect<void, CudaError>
  /** Makes a stream wait for an event (`cuStreamWaitEvent`). */
  readonly streamWaitEvent: (stream: StreamRef, event: EventRef) => Effect.Effect<void, CudaError>
  /**
   * Makes a stream wait for another: records an internal event on `other` (`cuEventRecord`), and waits for it
   * (`cuStreamWaitEvent`).
   */
  readonly streamWaitStream: (stream: StreamRef, other: StreamRef) => Effect.Effect<void, CudaError>
  /**
   * Makes every branch wait for `from`: records one internal event (`cuEventRecord`), with a `cuStreamWaitEvent` per
   * branch.
   */
  readonly streamFork: (from: StreamRef, branches: ReadonlyArray<StreamRef>) => Effect.Effect<void, CudaError>
  /**
   * Makes `into` wait for every branch, like `streamWaitStream`. If one branch fails, the others are still joined, and
   * the effect fails with the first failure.
   */
  readonly streamJoin: (into: StreamRef, branches: ReadonlyArray<StreamRef>) => Effect.Effect<void, CudaError>
}
