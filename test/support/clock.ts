/**
 * Assertions on how long the event loop is blocked.
 */
import { assert } from "@effect/vitest"

/** Runs a function and asserts that it took fewer milliseconds. Leave headroom for a busy machine. */
export const within = (milliseconds: number, run: () => void): void => {
  const begun = performance.now()
  run()
  assert.isBelow(performance.now() - begun, milliseconds)
}
