/**
 * The encoder on a GPU: its kernels and the model agree with the reference, and the service with itself.
 */
import "../support/deepStack.ts"
import { assert, describe, it } from "@effect/vitest"
import { CudaBlas, CudaRuntime, NativeRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { configs } from "../../examples/encoder/Config.ts"
import { Encoder } from "../../examples/encoder/Encoder.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import { kernelTests } from "../encoder/kernels.ts"
import { agrees, modelTests, options as weights, sequence } from "../encoder/model.ts"
import { newPath } from "../encoder/support.ts"
import { gpu, nativeRig } from "../support/gpu.ts"

const runtime = NativeRuntime.layer()

const served = Effect.gen(function*() {
  const path = yield* newPath
  yield* Weights.write(path, configs.tiny, weights)
  const services = yield* Layer.build(
    Encoder.layer({ path, lengths: [16, 32, 64] }).pipe(
      Layer.provide(CudaBlas.layer())
    )
  )
  yield* Effect.gen(function*() {
    const encoder = yield* Encoder
    const sequences = Array.from({ length: 400 }, (_, index) => sequence(1 + (index * 29) % 64, index))
    const embeddings = yield* Effect.forEach(sequences, encoder.encode, { concurrency: "unbounded" })
    // The reference takes long.
    for (let index = 0; index < sequences.length; index += 10) agrees(embeddings[index]!, sequences[index]!)
    const { batches, inFlight, requests, waiting } = yield* encoder.health
    assert.deepStrictEqual([requests, inFlight, waiting], [400, 0, 0])
    assert.isBelow(batches, 100)
  }).pipe(Effect.provideContext(services))
}).pipe(Effect.scoped)

describe.skipIf(gpu === undefined || !nativeRig.hasBlas)("the encoder on a GPU", () => {
  describe("its kernels", () => kernelTests(runtime))
  describe("the model", () => modelTests(runtime))

  it.live("embeds a few hundred concurrent sequences like the reference, and leaves nothing behind", () =>
    Effect.gen(function*() {
      yield* served
      const { liveResources } = yield* CudaRuntime.CudaRuntime
      const { deviceBuffers, graphs, handles, hostBuffers, modules, waits } = yield* liveResources
      assert.deepStrictEqual([deviceBuffers, graphs, handles, hostBuffers, modules, waits], [0, 0, 0, 0, 0, 0])
    }).pipe(Effect.provide(runtime)))
})
