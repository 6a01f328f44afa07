/**
 * What a world asks before it starts work, so that a test can run work in another order. Without it, work starts as soon as it can.
 */
import type { Operation, Stream } from "./parts.ts"

/** Decides which work is held back. Holding is always legal, because a device may be slow; it only must not last forever. */
export interface Schedule {
  /** How long held work waits while nothing else runs and the host waits, in nanoseconds. */
  readonly patience: number
  /** Called when work that takes an engine is enqueued. */
  enqueued(operation: Operation): void
  /** Returns true if work that could start must not start yet. Asked again whenever other work has ended. */
  isHeld(operation: Operation): boolean
  /** Called before the action of work that ends. */
  acting(operation: Operation): void
  ended(operation: Operation): void
  /** Chooses among the streams whose first operation is held, and lets that operation start. */
  letGo(held: ReadonlySet<Stream>): void
  /** True once there was more work than the program can mean. */
  readonly isRestless: boolean
  /** The node of a graph whose work is enqueued. */
  node: number | undefined
}
