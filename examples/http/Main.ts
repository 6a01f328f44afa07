/**
 * A service as the program of a process: listens as the environment says, until it is told to stop.
 */
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { serve } from "./Server.ts"
import type { Call, Reply } from "./Server.ts"

/** 0 for any free port. */
const Port = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 65_535 }))

const options = Config.all({
  port: Config.withDefault(Config.schema(Port, "PORT"), 3000),
  host: Config.withDefault(Config.String("HOST"), "127.0.0.1")
})

/** Runs a service until the first signal. A failure is printed, and sets the exit code. */
export const runMain = <R, E extends { readonly message: string }>(
  handle: (call: Call) => Effect.Effect<Reply, never, R>,
  layer: Layer.Layer<R, E>
): void => {
  const main = options.pipe(
    Effect.flatMap((listen) => Effect.provide(service(handle, listen), layer)),
    Effect.tapError((error) => Console.error(error.message)),
    Effect.tapDefect((defect) => Console.error(defect)),
    Effect.onError(() =>
      Effect.sync(() => {
        process.exitCode = 1
      })
    )
  )
  Effect.runFork(main)
}

const service = Effect.fnUntraced(function*<R>(
  handle: (call: Call) => Effect.Effect<Reply, never, R>,
  listen: Config.Success<typeof options>
) {
  const url = yield* serve(handle, listen)
  yield* Effect.log(`Listening on ${url}`)
  yield* Effect.log(`${yield* stopped}: finishing requests in progress`)
  // The server closes first, so that its last requests can still use the service, and the service the GPU.
}, Effect.scoped)

/** Ends at the first signal. A second one terminates the process, because nothing listens for it any longer. */
const stopped = Effect.callback<NodeJS.Signals>((resume) => {
  const stop = (signal: NodeJS.Signals) => {
    forget()
    resume(Effect.succeed(signal))
  }
  const forget = () => process.off("SIGINT", stop).off("SIGTERM", stop)
  process.on("SIGINT", stop).on("SIGTERM", stop)
  return Effect.sync(forget)
})
