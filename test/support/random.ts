/**
 * Deterministic pseudo-random numbers.
 */

/** Returns a function that gives an integer from 0 to below a limit. */
export const makeRandom = (seed: number) => {
  let state = seed
  return (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor(state / 2 ** 32 * below)
  }
}
