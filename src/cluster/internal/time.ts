/** Time for leases. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

/** Milliseconds of the clock that never jumps. */
export const now: Effect.Effect<number> = Effect.map(Clock.currentTimeNanos, (nanos) => Number(nanos / 1_000n) / 1_000)
