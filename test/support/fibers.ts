/**
 * Letting fibers run: on a busy machine, and with fibers that yield every few operations, one turn of the event loop is not enough.
 */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"

/** Runs enough turns of the event loop for every fiber to wait or end, unless it runs long. */
export const settled: Effect.Effect<void> = Effect.callback((resume) => {
  const turn = (left: number): void => void (left === 0 ? resume(Effect.void) : setImmediate(turn, left - 1))
  turn(1000)
})

/** Forks an effect, and lets it run until it waits or has ended. */
export const started = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Fiber.Fiber<A, E>, never, R> =>
  Effect.tap(Effect.forkChild(effect, { startImmediately: true }), () => settled)
