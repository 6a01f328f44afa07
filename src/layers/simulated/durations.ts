/**
 * Durations of virtual time.
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"

/** Whole nanoseconds, or infinity; undefined for anything but a non-negative duration. */
export const nanoseconds = (input: Duration.Input): number | undefined => {
  const duration = Option.getOrUndefined(Duration.fromInput(input))
  if (duration === undefined || Duration.isNegative(duration)) return undefined
  return Duration.isFinite(duration) ? Number(Duration.toNanosUnsafe(duration)) : Infinity
}
