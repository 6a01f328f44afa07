/**
 * The service's responses: its routes, and the response to every failure, in one place.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { decodeBody, handler, json, problem, refuseUsual, soon } from "./Router.ts"
import type { Routes } from "./Router.ts"
import { Scorer } from "./Scorer.ts"
import type { Call } from "./Server.ts"

/** Numbers small enough that their products with the weights fit in a float. */
const Feature = Schema.Number.check(Schema.isBetween({ minimum: -1e6, maximum: 1e6 }))

const scoreBody = decodeBody(Schema.Struct({ features: Schema.Array(Feature) }))

const score = Effect.fnUntraced(function*(call: Call) {
  const scorer = yield* Scorer
  const { features } = yield* scoreBody(call)
  return json(200, { score: yield* scorer.score(features) })
})

const health = Effect.flatMap(Scorer, (scorer) => scorer.health).pipe(
  Effect.map((found) => json(200, { status: "healthy", ...found })),
  Effect.catch((error) => Effect.succeed(json(503, { status: "unhealthy", problem: error.reason._tag })))
)

type Failure = Effect.Error<ReturnType<typeof score>>

const routes: Routes<Failure, Scorer> = new Map([
  ["/score", { method: "POST", answer: score }],
  ["/health", { method: "GET", answer: () => health }]
])

/** Responds to every request, including invalid ones. */
export const handle = handler(routes, (failure) => {
  switch (failure._tag) {
    case "WrongWidth":
      return problem(400, failure.message)
    case "Overloaded":
      return problem(503, failure.message, soon)
    case "TimedOut":
      return problem(504, failure.message)
    default:
      return refuseUsual(failure)
  }
})
