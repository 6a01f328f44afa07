/**
 * Collecting garbage in tests of what happens once nothing is seen any more.
 */
import * as Effect from "effect/Effect"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { pause, until } from "./stubDriver.ts"

setFlagsFromString("--expose-gc")

/** Has everything collected that nothing refers to; what is to happen then happens in a later turn of the event loop. */
export const collectGarbage: () => void = runInNewContext("gc")

/** Collects garbage until something holds that follows from it; dies when it does not within two seconds. */
export const untilCollected = (what: string, holds: () => boolean): Effect.Effect<void> =>
  until(what, () => {
    collectGarbage()
    return holds()
  })

/** Collects garbage, and lets what follows from it happen. */
export const garbageCollected: Effect.Effect<void> = Effect.forEach(
  [1, 2, 3, 4, 5],
  () => Effect.andThen(Effect.sync(collectGarbage), pause(1)),
  { discard: true }
)
