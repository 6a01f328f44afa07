/**
 * The service's responses: its routes, and the response to every failure, in one place.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { decodeBody, handler, json, problem, refuseUsual, soon } from "../http/Router.ts"
import type { Routes } from "../http/Router.ts"
import type { Call } from "../http/Server.ts"
import { Encoder } from "./Encoder.ts"

const embedBody = decodeBody(Schema.Struct({ text: Schema.String }))

/** The tokens of this model are bytes. Another model has a tokenizer here. */
const tokenize = (text: string): Uint8Array => new TextEncoder().encode(text)

const embed = Effect.fnUntraced(function*(call: Call) {
  const encoder = yield* Encoder
  const { text } = yield* embedBody(call)
  return json(200, { embedding: Array.from(yield* encoder.encode(tokenize(text))) })
})

const health = Effect.flatMap(Encoder, (encoder) => encoder.health).pipe(
  Effect.map((found) => json(200, { status: "healthy", ...found })),
  Effect.catch((error) => {
    const problem = error._tag === "CudaError" ? error.reason._tag : error._tag
    return Effect.succeed(json(503, { status: "unhealthy", problem }))
  })
)

type Failure = Effect.Error<ReturnType<typeof embed>>

const routes: Routes<Failure, Encoder> = new Map([
  ["/embed", { method: "POST", answer: embed }],
  ["/health", { method: "GET", answer: () => health }]
])

/** Responds to every request, including invalid ones. */
export const handle = handler(routes, (failure) => {
  switch (failure._tag) {
    case "Empty":
    case "TooLong":
      return problem(400, failure.message)
    case "Overloaded":
    case "Stopped":
      return problem(503, failure.message, soon)
    case "TimedOut":
      return problem(504, failure.message)
    default:
      return refuseUsual(failure)
  }
})
