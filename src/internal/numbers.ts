/**
 * Checks of numeric options that are not passed to a runtime.
 */
import type * as Effect from "effect/Effect"
import type { Concurrency } from "effect/Types"
import type { CudaError } from "../CudaError.ts"
import { refuseArgument } from "./handles.ts"

/** True for integers within limits. Beyond 2^53, numbers cannot represent every integer. */
export const isWhole = (value: unknown, least: number, most = Number.MAX_SAFE_INTEGER): value is number =>
  Number.isSafeInteger(value) && Number(value) >= least && Number(value) <= most

/** The accepted values of `streams`, in words. */
export const wholeStreams = "an integer of at least 1"

/** Refuses a `concurrency` that Effect would misinterpret, or with which it would wait forever. */
export const refuseConcurrency = (
  operation: string,
  concurrency: Concurrency | undefined
): Effect.Effect<never, CudaError> | undefined =>
  concurrency === undefined || concurrency === "unbounded" || isWhole(concurrency, 1)
    ? undefined
    : refuseArgument(operation, "concurrency", concurrency, `an integer of at least 1, or "unbounded"`)
