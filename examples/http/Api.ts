/**
 * The service's responses: its routes, and the response to every failure, in one place.
 */
import type { CudaError } from "effect-cuda"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { randomUUID } from "node:crypto"
import { Scorer } from "./Scorer.ts"
import type { ScoreFailure } from "./Scorer.ts"
import type { BodyTooLarge, Call, Reply } from "./Server.ts"

/** No route has this path. */
class UnknownPath extends Data.TaggedError("UnknownPath")<{ readonly path: string }> {}

/** The route has another method. */
class WrongMethod extends Data.TaggedError("WrongMethod")<{ readonly allowed: string }> {}

/** The body is invalid. */
class InvalidBody extends Data.TaggedError("InvalidBody")<{ readonly problem: string }> {}

type Failure = UnknownPath | WrongMethod | InvalidBody | BodyTooLarge | ScoreFailure

interface Route {
  readonly method: string
  readonly answer: (call: Call) => Effect.Effect<Reply, Failure, Scorer>
}

/** Responds to every request, including invalid ones. */
export const handle = (call: Call): Effect.Effect<Reply, never, Scorer> =>
  routed(call).pipe(Effect.catch(refuse), Effect.catchDefect(fail))

const routed = (call: Call): Effect.Effect<Reply, Failure, Scorer> => {
  const route = routes.get(call.path)
  if (route === undefined) return Effect.fail(new UnknownPath({ path: call.path }))
  if (route.method !== call.method) return Effect.fail(new WrongMethod({ allowed: route.method }))
  return route.answer(call)
}

const score = Effect.fnUntraced(function*(call: Call) {
  const scorer = yield* Scorer
  const { features } = yield* decodeBody(yield* call.body)
  return json(200, { score: yield* scorer.score(features) })
})

const health = Effect.flatMap(Scorer, (scorer) => scorer.health).pipe(
  Effect.map((found) => json(200, { status: "healthy", ...found })),
  Effect.catch((error) => Effect.succeed(json(503, { status: "unhealthy", problem: error.reason._tag })))
)

const routes: ReadonlyMap<string, Route> = new Map([
  ["/score", { method: "POST", answer: score }],
  ["/health", { method: "GET", answer: () => health }]
])

/** Numbers small enough that their products with the weights fit in a float. */
const Feature = Schema.Number.check(Schema.isBetween({ minimum: -1e6, maximum: 1e6 }))

const ScoreBody = Schema.fromJsonString(Schema.Struct({ features: Schema.Array(Feature) }))

const decodeBody = (text: string) =>
  Effect.mapError(
    Schema.decodeEffect(ScoreBody)(text),
    ({ message }) => new InvalidBody({ problem: message })
  )

const refuse = (failure: Failure): Effect.Effect<Reply> => {
  switch (failure._tag) {
    case "UnknownPath":
      return problem(404, `no route for ${failure.path}`)
    case "WrongMethod":
      return problem(405, `method not allowed; use ${failure.allowed}`, { allow: failure.allowed })
    case "InvalidBody":
      return problem(400, failure.problem)
    case "WrongWidth":
      return problem(400, failure.message)
    case "BodyTooLarge":
      return problem(413, failure.message)
    case "Overloaded":
      return problem(503, failure.message, soon)
    case "TimedOut":
      return problem(504, failure.message)
    case "CudaError":
      return refuseCuda(failure)
  }
}

/**
 * Clients can retry after a shortage. Other failures are internal: clients can neither act on them nor should see them.
 */
const refuseCuda = (error: CudaError.CudaError): Effect.Effect<Reply> => {
  if (error.isSticky) return problem(503, "the GPU is lost", soon)
  if (error.isRetryable) return problem(503, "the GPU is short of resources", soon)
  return fail(error)
}

/** Logs the cause. The client only gets an id to find it by. */
const fail = (cause: unknown): Effect.Effect<Reply> =>
  Effect.suspend(() => {
    const id = randomUUID()
    return Effect.logError("A request failed.", cause).pipe(
      Effect.annotateLogs({ id }),
      Effect.andThen(problem(500, `internal error ${id}`))
    )
  })

const soon = { "retry-after": "1" }

const json = (status: number, body: unknown): Reply => ({ status, body })

/** RFC 9457. */
const problem = (status: number, detail: string, headers: Readonly<Record<string, string>> = {}) =>
  Effect.succeed<Reply>({
    status,
    body: { status, detail },
    headers: { "content-type": "application/problem+json", ...headers }
  })
