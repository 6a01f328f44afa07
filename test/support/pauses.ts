/**
 * How long the event loop is blocked.
 */
import * as Effect from "effect/Effect"

/** Runs an effect and returns the longest time the event loop was blocked meanwhile, in milliseconds. */
export const longestPause = <E, R>(effect: Effect.Effect<unknown, E, R>): Effect.Effect<number, E, R> =>
  Effect.suspend(() => {
    let longest = 0
    let last = performance.now()
    const look = () => {
      const now = performance.now()
      longest = Math.max(longest, now - last)
      last = now
    }
    const timer = setInterval(look, 1)
    const stop = Effect.sync(() => {
      look()
      clearInterval(timer)
    })
    return Effect.map(Effect.ensuring(effect, stop), () => longest)
  })
