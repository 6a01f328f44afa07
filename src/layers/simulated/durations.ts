/**
 * Durations of virtual time, as programs give them.
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"

/** Whole nanoseconds, or infinite; nothing for what is not a duration from 0. */
export const nanoseconds = (input: Duration.Input): number | undefined => {
  const duration = Option.getOrUndefined(Duration.fromInput(input))
  if (duration === undefined || Duration.isNegative(duration)) return undefined
  return Duration.isFinite(duration) ? Number(Duration.toNanosUnsafe(duration)) : Infinity
}
