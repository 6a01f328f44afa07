/**
 * Assertions on how long the event loop is blocked.
 */
import { assert } from "@effect/vitest"

/** Runs a function, and asserts a limit on its CPU time in milliseconds, which other processes do not affect. */
export const within = (milliseconds: number, run: () => void, what?: string): void => {
  const begun = process.cpuUsage()
  run()
  const { system, user } = process.cpuUsage(begun)
  assert.isBelow((system + user) / 1000, milliseconds, what)
}
