/**
 * An HTTP service on a GPU: collects client requests in batches and runs each batch through a kernel. Runs on a
 * simulated GPU if there is no real one.
 *
 * `npm run build && npm run build:examples && node dist-examples/http.js`, with `PORT` and `HOST` in the environment.
 * Then
 *
 *     curl localhost:3000/score -d "{\"features\": [$(seq -s, 256)]}"
 *     curl localhost:3000/health
 *
 * `http/Scorer.ts` contains the batching, `http/Api.ts` the routes and the responses to failures, `http/Server.ts` the
 * server, and `http/Kernel.ts` the kernel.
 */
import { AutoRuntime } from "effect-cuda"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { handle } from "./http/Api.ts"
import * as Kernel from "./http/Kernel.ts"
import { Scorer } from "./http/Scorer.ts"
import type { Model } from "./http/Scorer.ts"
import { serve } from "./http/Server.ts"

/** A real service reads its model from a file. */
const model: Model = {
  weights: Float32Array.from({ length: 256 }, (_, index) => Math.sin(index) / 256),
  bias: 0.25
}

/** 0 for any free port. */
const Port = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 65_535 }))

const options = Config.all({
  port: Config.withDefault(Config.schema(Port, "PORT"), 3000),
  host: Config.withDefault(Config.String("HOST"), "127.0.0.1")
})

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

const service = Effect.fnUntraced(function*(listen: Config.Success<typeof options>) {
  const url = yield* serve(handle, listen)
  yield* Effect.log(`Listening on ${url}`)
  yield* Effect.log(`${yield* stopped}: finishing requests in progress`)
  // The server closes first, so that its last requests can still use the scorer, and the scorer the GPU.
}, Effect.scoped)

const layer = Scorer.layer({ model }).pipe(
  Layer.provide(AutoRuntime.layer({ simulated: { kernels: Kernel.simulated } }))
)

const main = options.pipe(
  Effect.flatMap((listen) => Effect.provide(service(listen), layer)),
  Effect.tapError((error) => Console.error(error.message)),
  Effect.tapDefect((defect) => Console.error(defect)),
  Effect.onError(() =>
    Effect.sync(() => {
      process.exitCode = 1
    })
  )
)

Effect.runFork(main)
