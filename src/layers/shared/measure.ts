/**
 * Metrics of waits.
 */
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import { outstandingWaits, waitTimes, wakeUps } from "../CudaMetrics.ts"
import type { WaitStage } from "./waits.ts"

/** Ends a measurement, with the stage that found the wait finished, or because it was interrupted. */
export type MeasuredWait = (end: WaitStage | "interrupted" | undefined) => void

/** Starts to measure a wait. */
export const measureWait = (context: Context.Context<never>, clock: Clock.Clock): MeasuredWait => {
  const start = clock.monotonicTimeNanosUnsafe()
  outstandingWaits.modifyUnsafe(1, context)
  return (end) => {
    outstandingWaits.modifyUnsafe(-1, context)
    if (end === undefined) return
    waitTimes[end].updateUnsafe(Duration.nanos(clock.monotonicTimeNanosUnsafe() - start), context)
    if (end === "wake") wakeUps.updateUnsafe(1, context)
  }
}
