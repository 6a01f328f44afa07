/**
 * Virtual time that passes by itself.
 */
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"

const turn = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))

/** Runs an effect under a `TestClock` that goes on by a millisecond on every turn of the event loop, until the effect ends. */
export const passing = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.raceFirst(effect, Effect.forever(Effect.andThen(turn, TestClock.adjust("1 millis"))))
