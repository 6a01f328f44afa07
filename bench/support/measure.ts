/**
 * Measures one of many calls in a loop.
 */
import * as Effect from "effect/Effect"

const nothing = () => {}

/** Nanoseconds per call of a plain loop. The end, for example waiting for the work, counts as part of it. */
export const measureRaw = (raw: () => void, count: number, end: () => void = nothing): number => {
  const start = performance.now()
  for (let index = 0; index < count; index++) raw()
  end()
  return (performance.now() - start) * 1e6 / count
}

/** Nanoseconds per iteration of an Effect loop. The end counts as part of it. */
export const measureEffect = <E, R>(
  effect: () => Effect.Effect<unknown, E, R>,
  count: number,
  end: () => void = nothing
): Effect.Effect<number, E, R> =>
  Effect.suspend(() => {
    let index = 0
    const start = performance.now()
    const loop = Effect.whileLoop({ while: () => index++ < count, body: effect, step: nothing })
    return Effect.map(loop, () => {
      end()
      return (performance.now() - start) * 1e6 / count
    })
  })
