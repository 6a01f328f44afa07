/**
 * Programs whose fibers yield after every few operations, so that other fibers run at moments that are rare otherwise.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { MaxOpsBeforeYield } from "effect/References"
import type { Rig } from "./Rig.ts"

/** With fewer, a fiber makes no progress. */
const leastOps = 3
const mostOps = 24

/** Runs an effect once for every low number of operations between two yields. */
export const withEveryYield = <A, E, R>(
  body: (operations: number) => Effect.Effect<A, E, R>
): Effect.Effect<void, E, R> =>
  Effect.forEach(
    Array.from({ length: mostOps - leastOps + 1 }, (_, index) => leastOps + index),
    (operations) => Effect.provideService(body(operations), MaxOpsBeforeYield, operations),
    { discard: true }
  )

/** A rig whose programs yield after a number of operations. */
export const yieldingRig = (rig: Rig, operations: number): Rig => ({
  ...rig,
  name: `${rig.name}, yielding every ${operations} operations`,
  layer: Layer.merge(rig.layer, Layer.succeed(MaxOpsBeforeYield, operations))
})
