/**
 * What the model must do, on a GPU and on simulated devices: agree with the reference, whatever shares the batch.
 */
import { assert, it } from "@effect/vitest"
import { CudaBlas, CudaRuntime, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Bfloat16 from "../../examples/encoder/Bfloat16.ts"
import { configs, ofFile, weightsOf } from "../../examples/encoder/Config.ts"
import type { Batch } from "../../examples/encoder/Kernels.ts"
import * as Model from "../../examples/encoder/Model.ts"
import * as Reference from "../../examples/encoder/Reference.ts"
import * as SafeTensors from "../../examples/encoder/SafeTensors.ts"
import { upload } from "../../examples/encoder/Upload.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import { newPath } from "./support.ts"

/** Larger weights than usual, so that attention is not the same to all tokens. */
export const options = { seed: 3, spread: 0.1 }

const config = configs.tiny

/** The same weights as in the file, for the reference. */
export const reference: Reference.Model = {
  config,
  weights: new Map(
    weightsOf(config).map((weight) => [weight.name, Float64Array.from(Bfloat16.decode(Weights.make(weight, options)))])
  )
}

/** The model with the weights of a file. */
const loaded = Effect.gen(function*() {
  const path = yield* newPath
  yield* Weights.write(path, config, options)
  const file = yield* SafeTensors.open(path)
  return yield* Model.make(yield* ofFile(file), yield* upload(file))
})

/** A sequence of ids that differs by its number. */
export const sequence = (length: number, number: number) =>
  Int32Array.from({ length }, (_, index) => (number * 101 + index * index * 7 + index * 3) % config.vocabulary)

const dot = (one: ArrayLike<number>, other: ArrayLike<number>) =>
  Array.from(one).reduce((sum, value, index) => sum + value * other[index]!, 0)

/** Every number is as close as a dozen roundings to bfloat16 on the way allow. */
export const agrees = (embedding: Float32Array, ids: Int32Array): void => {
  const expected = Reference.encode(reference, [...ids])
  assert.strictEqual(embedding.length, config.hidden)
  assert.closeTo(dot(embedding, embedding), 1, 1e-4)
  assert.isAbove(dot(embedding, expected), 0.999)
  for (const [index, value] of expected.entries()) assert.closeTo(embedding[index]!, value, 0.004)
}

export const modelTests = (runtime: Layer.Layer<CudaRuntime.CudaRuntime, CudaError.CudaError>) => {
  const layer = Layer.provideMerge(CudaBlas.layer(), runtime)
  const inSession = <A, E, R>(most: Batch, use: (session: Model.Session) => Effect.Effect<A, E, R>) =>
    Effect.flatMap(loaded, (model) => Effect.flatMap(Model.session(model, most), use)).pipe(
      CudaStream.withPooledStream(),
      Effect.scoped,
      Effect.provide(layer)
    )

  it.live("agrees with the reference, for sequences of mixed length in one batch", () =>
    inSession({ batch: 4, length: 64 }, (session) =>
      Effect.gen(function*() {
        const sequences = [sequence(64, 1), sequence(1, 2), sequence(37, 3), sequence(20, 4)]
        const embeddings = yield* session.run({ batch: 4, length: 64 }, sequences)
        for (const [row, embedding] of embeddings.entries()) agrees(embedding, sequences[row]!)
      })))

  it.live("tells texts apart, also by the order of their tokens", () =>
    inSession({ batch: 4, length: 32 }, (session) =>
      Effect.gen(function*() {
        const ids = sequence(12, 5)
        const sequences = [ids, ids.toReversed(), sequence(12, 6)]
        const [one, reversed, other] = yield* session.run({ batch: 4, length: 32 }, sequences)
        assert.isBelow(dot(one!, reversed!), 0.999)
        assert.isBelow(dot(one!, other!), 0.9)
      })))

  it.live("gives a sequence the same embedding in every batch", () =>
    inSession({ batch: 4, length: 64 }, (session) =>
      Effect.gen(function*() {
        const own = sequence(11, 7)
        const mates = [sequence(32, 8), sequence(2, 9), sequence(64, 10)]
        const embeddings = [
          ...(yield* session.run({ batch: 1, length: 32 }, [own])),
          (yield* session.run({ batch: 4, length: 64 }, [...mates, own]))[3]!,
          (yield* session.run({ batch: 4, length: 32 }, [mates[0]!, own]))[1]!,
          ...(yield* session.run({ batch: 1, length: 64 }, [own]))
        ]
        for (const embedding of embeddings) {
          agrees(embedding, own)
          assert.isAbove(dot(embedding, embeddings[0]!), 0.9999)
        }
        // In batches of the same size, not even the rounding depends on the mates.
        const one = yield* session.run({ batch: 4, length: 64 }, [own, sequence(64, 11), sequence(3, 12)])
        const other = yield* session.run({ batch: 4, length: 64 }, [own, sequence(5, 13)])
        assert.deepStrictEqual(one[0], other[0])
      })))

  it.live("has sessions that run at the same time", () =>
    Effect.gen(function*() {
      const model = yield* loaded
      const batch = { batch: 2, length: 32 }
      const one = Effect.fnUntraced(function*(number: number) {
        const session = yield* Model.session(model, batch)
        const sequences = [sequence(32, number), sequence(9, number + 1)]
        const found = yield* session.run(batch, sequences).pipe(CudaStream.withPooledStream())
        for (const [row, embedding] of found.entries()) agrees(embedding, sequences[row]!)
      })
      yield* Effect.forEach([20, 30, 40], one, { concurrency: "unbounded" })
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.live("leaves nothing", () =>
    Effect.gen(function*() {
      yield* Effect.scoped(
        Effect.gen(function*() {
          const session = yield* Model.session(yield* loaded, { batch: 1, length: 32 })
          yield* session.run({ batch: 1, length: 32 }, [sequence(3, 1)])
        }).pipe(CudaStream.withPooledStream(), Effect.provide(CudaBlas.layer()))
      )
      const { liveResources } = yield* CudaRuntime.CudaRuntime
      const { deviceBuffers, graphs, handles, hostBuffers, modules, waits } = yield* liveResources
      assert.deepStrictEqual([deviceBuffers, graphs, handles, hostBuffers, modules, waits], [0, 0, 0, 0, 0, 0])
    }).pipe(Effect.provide(runtime)))
}
