/**
 * Measures one of many calls in a loop.
 */
import * as Effect from "effect/Effect"

/** Nanoseconds per call of a plain loop. */
export const measureRaw = (raw: () => void, count: number): number => {
  const start = performance.now()
  for (let index = 0; index < count; index++) raw()
  return (performance.now() - start) * 1e6 / count
}

const nothing = () => {}

/** Nanoseconds per iteration of an Effect loop. */
export const measureEffect = <E, R>(
  effect: () => Effect.Effect<unknown, E, R>,
  count: number
): Effect.Effect<number, E, R> =>
  Effect.suspend(() => {
    let index = 0
    const start = performance.now()
    const loop = Effect.whileLoop({ while: () => index++ < count, body: effect, step: nothing })
    return Effect.map(loop, () => (performance.now() - start) * 1e6 / count)
  })
