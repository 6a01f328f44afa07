/**
 * What one of many calls in a row takes.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../src/CudaError.ts"

/** The nanoseconds of each call of a plain loop. */
export const measureRaw = (raw: () => void, count: number): number => {
  const start = performance.now()
  for (let index = 0; index < count; index++) raw()
  return (performance.now() - start) * 1e6 / count
}

const nothing = () => {}

/** The nanoseconds of each turn of an Effect loop. */
export const measureEffect = (effect: () => Effect.Effect<unknown, CudaError>, count: number): number => {
  let index = 0
  const loop = Effect.whileLoop({ while: () => index++ < count, body: effect, step: nothing })
  const start = performance.now()
  Effect.runSync(loop)
  return (performance.now() - start) * 1e6 / count
}
