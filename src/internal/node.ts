/**
 * The names of nodes that modules record.
 */
import * as Effect from "effect/Effect"
import { CurrentNodeName } from "../layers/CudaRuntime.ts"

/** Names the node of a recording unless the program has given it a name. */
export const namedNode = <A, E>(self: Effect.Effect<A, E>, name: string): Effect.Effect<A, E> =>
  Effect.withFiber((fiber) =>
    fiber.getRef(CurrentNodeName) === undefined ? Effect.provideService(self, CurrentNodeName, name) : self
  )
