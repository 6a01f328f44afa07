/**
 * Fibers that yield at any step.
 */
import type * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"

/** Makes every fiber but one yield at its n-th operation. */
export class OthersYield extends Scheduler.MixedScheduler {
  readonly #fiber: number
  readonly #at: number
  constructor(fiber: number, at: number) {
    super()
    this.#fiber = fiber
    this.#at = at
  }
  override shouldYield(fiber: Fiber.Fiber<unknown, unknown>): boolean {
    return fiber.id !== this.#fiber && fiber.currentOpCount === this.#at
  }
}
