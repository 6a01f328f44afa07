/**
 * A service that embeds texts with a BERT-shaped encoder on a GPU. Runs on a simulated GPU if there is no real one.
 *
 * `npm run build && npm run build:examples && node dist-examples/encoder.js`, with `PORT` and `HOST` in the environment,
 * and in `MODEL` a file of weights, made by `dist-examples/encoder/makeWeights.js`. Without one, the weights are random:
 * of the shape of BERT-base on a GPU, and of a tiny one on a simulated device. Then
 *
 *     curl localhost:3000/embed -d '{"text": "hello"}'
 *     curl localhost:3000/health
 *
 * `encoder/Encoder.ts` contains the service, `encoder/Batcher.ts` the batching, `encoder/Model.ts` the model, and
 * `encoder/Api.ts` the routes and the responses to failures. `docs/serving.md` explains them.
 */
import { AutoRuntime, CudaBlas, CudaRuntime } from "effect-cuda"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { attempt } from "./demo/Source.ts"
import { handle } from "./encoder/Api.ts"
import { configs } from "./encoder/Config.ts"
import { Encoder } from "./encoder/Encoder.ts"
import { kernels } from "./encoder/SimulatedKernels.ts"
import * as Weights from "./encoder/Weights.ts"
import { runMain } from "./http/Main.ts"

/** A folder that is removed with the scope. */
const folder = Effect.acquireRelease(
  attempt(tmpdir(), () => mkdtemp(join(tmpdir(), "effect-cuda-encoder-"))),
  (path) => Effect.ignore(attempt(path, () => rm(path, { recursive: true, force: true })))
)

/** Makes random weights, of a size that suits the device. */
const randomWeights = Effect.gen(function*() {
  const { kind } = yield* CudaRuntime.CudaRuntime
  const size = kind === "native" ? "base" : "tiny"
  yield* Effect.log(`No MODEL in the environment: random weights of the ${size} shape`)
  const path = join(yield* folder, "model.safetensors")
  yield* Weights.write(path, configs[size])
  return path
})

const encoder = Layer.unwrap(Effect.gen(function*() {
  const given = yield* Config.option(Config.String("MODEL"))
  const path = Option.isSome(given) ? given.value : yield* randomWeights
  return Encoder.layer({ path })
}))

const gpu = CudaBlas.layer().pipe(Layer.provideMerge(AutoRuntime.layer({ simulated: { kernels } })))

runMain(handle, Layer.provide(encoder, gpu))
