/**
 * Letting fibers run: on a busy machine, and with fibers that yield every few operations, one turn of the event loop is not enough.
 */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"

/** Runs the event loop so many times that every fiber waits or has ended, unless it runs long. */
export const settled: Effect.Effect<void> = Effect.callback((resume) => {
  const turn = (left: number): void => void (left === 0 ? resume(Effect.void) : setImmediate(turn, left - 1))
  turn(200)
})

/** Forks an effect, and lets it run until it waits or has ended. */
export const started = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Fiber.Fiber<A, E>, never, R> =>
  Effect.tap(Effect.forkChild(effect, { startImmediately: true }), () => settled)

/** Advances the test clock a millisecond at a time, and lets fibers run in between. */
export const elapsed = (milliseconds: number): Effect.Effect<void> =>
  Effect.gen(function*() {
    yield* settled
    for (let at = 0; at < milliseconds; at++) yield* Effect.andThen(TestClock.adjust(1), settled)
  })
