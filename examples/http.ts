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
 * server, and `http/Kernel.ts` the kernel. `encoder.ts` is a larger service of the same kind.
 */
import { AutoRuntime } from "effect-cuda"
import * as Layer from "effect/Layer"
import { handle } from "./http/Api.ts"
import * as Kernel from "./http/Kernel.ts"
import { runMain } from "./http/Main.ts"
import { Scorer } from "./http/Scorer.ts"
import type { Model } from "./http/Scorer.ts"

/** A real service reads its model from a file. */
const model: Model = {
  weights: Float32Array.from({ length: 256 }, (_, index) => Math.sin(index) / 256),
  bias: 0.25
}

const layer = Scorer.layer({ model }).pipe(
  Layer.provide(AutoRuntime.layer({ simulated: { kernels: Kernel.simulated } }))
)

runMain(handle, layer)
