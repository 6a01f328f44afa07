/**
 * Garbage collection, for tests of what happens when objects become unreachable.
 */
import * as Effect from "effect/Effect"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { pause, until } from "./stubDriver.ts"

setFlagsFromString("--expose-gc")

/** Collects all unreachable objects. Finalizers run in a later turn of the event loop. */
export const collectGarbage: () => void = runInNewContext("gc")

/** Collects garbage until a condition that depends on it holds; dies if it does not within two seconds. */
export const untilCollected = (what: string, holds: () => boolean): Effect.Effect<void> =>
  until(what, () => {
    collectGarbage()
    return holds()
  })

/** Collects garbage and lets finalizers run. */
export const garbageCollected: Effect.Effect<void> = Effect.forEach(
  [1, 2, 3, 4, 5],
  () => Effect.andThen(Effect.sync(collectGarbage), pause(1)),
  { discard: true }
)
