/**
 * Counts what is running, and waits until nothing is.
 */
import * as Effect from "effect/Effect"

export class Running {
  #count = 0
  readonly #waiting = new Set<() => void>()

  begin(): void {
    this.#count++
  }

  end(): void {
    if (--this.#count > 0) return
    for (const resume of this.#waiting) resume()
    this.#waiting.clear()
  }

  readonly whenIdle: Effect.Effect<void> = Effect.callback((resume) => {
    if (this.#count === 0) return resume(Effect.void)
    const end = () => resume(Effect.void)
    this.#waiting.add(end)
    return Effect.sync(() => this.#waiting.delete(end))
  })
}
