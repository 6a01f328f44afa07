/**
 * Follows what a checker sees, for code that runs programs in other orders.
 */
import type { GraphRef, StreamRef } from "../CudaRuntime.ts"
import type { OpenWork, Use, Where, Work } from "./Checks.ts"
import type { Known, Timeline } from "./timelines.ts"

export interface Tracer {
  /** An operation is about to enqueue its work on a stream. */
  begin(work: Work, stream: StreamRef): void
  /** The operation has returned, or has failed. */
  end(work: Work, stream: StreamRef): void
  /** Work was enqueued, and counts as ordered after what is known. `since` is for work that began earlier, at that epoch. */
  committed(work: Work, timeline: Timeline, known: Known, since: number | undefined): void
  /** Other code begins to enqueue work over a period of time. */
  opened(open: OpenWork, stream: StreamRef): void
  /** Other code has ended: what it enqueued is about to be noted as one work. */
  closing(open: OpenWork, stream: StreamRef): void
  /** The host is about to take bytes. */
  looks(use: Use, operation: string, where: Where | undefined): void
  /** A launch of a graph was enqueued. */
  launched(graph: GraphRef): void
}
