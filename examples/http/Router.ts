/**
 * The routes of a service, and the responses to failures that every service has.
 */
import type { CudaError } from "effect-cuda"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { randomUUID } from "node:crypto"
import type { BodyTooLarge, Call, Reply } from "./Server.ts"

/** No route has this path. */
export class UnknownPath extends Data.TaggedError("UnknownPath")<{ readonly path: string }> {}

/** The route has another method. */
export class WrongMethod extends Data.TaggedError("WrongMethod")<{ readonly allowed: string }> {}

/** The body is invalid. */
export class InvalidBody extends Data.TaggedError("InvalidBody")<{ readonly problem: string }> {}

export interface Route<E, R> {
  readonly method: string
  readonly answer: (call: Call) => Effect.Effect<Reply, E, R>
}

/** By path. */
export type Routes<E, R> = ReadonlyMap<string, Route<E, R>>

/** Makes a handler that responds to every request, including invalid ones. */
export const handler =
  <E, R>(routes: Routes<E, R>, refuse: (failure: E | UnknownPath | WrongMethod) => Effect.Effect<Reply>) =>
  (call: Call): Effect.Effect<Reply, never, R> =>
    routed(routes, call).pipe(Effect.catch(refuse), Effect.catchDefect(fail))

const routed = <E, R>(routes: Routes<E, R>, call: Call): Effect.Effect<Reply, E | UnknownPath | WrongMethod, R> => {
  const route = routes.get(call.path)
  if (route === undefined) return Effect.fail(new UnknownPath({ path: call.path }))
  if (route.method !== call.method) return Effect.fail(new WrongMethod({ allowed: route.method }))
  return route.answer(call)
}

/** Reads a JSON body. */
export const decodeBody = <A, I>(schema: Schema.Codec<A, I>) => {
  const decode = Schema.decodeEffect(Schema.fromJsonString(schema))
  return (call: Call): Effect.Effect<A, BodyTooLarge | InvalidBody> =>
    Effect.flatMap(
      call.body,
      (text) => Effect.mapError(decode(text), ({ message }) => new InvalidBody({ problem: message }))
    )
}

/** Responds to a failure that every service has. */
export const refuseUsual = (
  failure: UnknownPath | WrongMethod | InvalidBody | BodyTooLarge | CudaError.CudaError
): Effect.Effect<Reply> => {
  switch (failure._tag) {
    case "UnknownPath":
      return problem(404, `no route for ${failure.path}`)
    case "WrongMethod":
      return problem(405, `method not allowed; use ${failure.allowed}`, { allow: failure.allowed })
    case "InvalidBody":
      return problem(400, failure.problem)
    case "BodyTooLarge":
      return problem(413, failure.message)
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

export const soon = { "retry-after": "1" }

export const json = (status: number, body: unknown): Reply => ({ status, body })

/** RFC 9457. */
export const problem = (status: number, detail: string, headers: Readonly<Record<string, string>> = {}) =>
  Effect.succeed<Reply>({
    status,
    body: { status, detail },
    headers: { "content-type": "application/problem+json", ...headers }
  })
