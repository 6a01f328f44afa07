/**
 * Checks of numbers in options that no runtime sees.
 */
import type * as Effect from "effect/Effect"
import type { Concurrency } from "effect/Types"
import type { CudaError } from "../CudaError.ts"
import { refuseArgument } from "./handles.ts"

/** True for whole numbers within limits. Beyond 2^53 a number no longer counts anything. */
export const isWhole = (value: unknown, least: number, most = Number.MAX_SAFE_INTEGER): value is number =>
  Number.isSafeInteger(value) && Number(value) >= least && Number(value) <= most

/** What `streams` may be. */
export const wholeStreams = "a whole number of streams, at least 1"

/** The failure for a `concurrency` that Effect would take for something else, or wait on forever. */
export const refuseConcurrency = (
  operation: string,
  concurrency: Concurrency | undefined
): Effect.Effect<never, CudaError> | undefined =>
  concurrency === undefined || concurrency === "unbounded" || isWhole(concurrency, 1)
    ? undefined
    : refuseArgument(operation, "concurrency", concurrency, `a whole number, at least 1, or "unbounded"`)
