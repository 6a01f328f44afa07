/**
 * What the kernels must do, on a GPU and on simulated devices: agree with the reference.
 */
import { assert, it } from "@effect/vitest"
import { CudaMemory } from "effect-cuda"
import type { CudaError, CudaRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Bfloat16 from "../../examples/encoder/Bfloat16.ts"
import { configs } from "../../examples/encoder/Config.ts"
import * as Kernels from "../../examples/encoder/Kernels.ts"
import * as Reference from "../../examples/encoder/Reference.ts"
import * as Weights from "../../examples/encoder/Weights.ts"

/** A length that is not a multiple of the attention's block, and sequences of one token to all of them. */
const batch = { batch: 3, length: 70 }
const tokens = batch.batch * batch.length
const sequences = [70, 1, 33]

const config = { ...configs.tiny, positions: 80, vocabulary: 300 }
const { heads, hidden } = config

/** Random numbers that bfloat16 can represent. */
const random = (name: string, length: number, spread = 1): Float64Array =>
  Float64Array.from(Bfloat16.decode(Weights.make({ name, shape: [length] }, { spread })))

const uploaded = (values: CudaMemory.HostArray) =>
  Effect.tap(CudaMemory.allocate(values.byteLength), (buffer) => CudaMemory.upload(buffer, values))

const rows = (values: Float64Array) => uploaded(Bfloat16.encode(values))

const downloaded = (buffer: CudaMemory.DeviceBuffer) =>
  Effect.suspend(() => {
    const values = new Uint16Array(buffer.byteLength / 2)
    return Effect.map(CudaMemory.download(values, buffer), () => Bfloat16.decode(values))
  })

/** Close enough for a sum that was rounded to bfloat16 once on the way and once in the end. */
const agree = (actual: ArrayLike<number>, expected: ArrayLike<number>): void => {
  assert.strictEqual(actual.length, expected.length)
  for (let index = 0; index < expected.length; index++) {
    const [found, wanted] = [actual[index]!, expected[index]!]
    if (!(Math.abs(found - wanted) <= 0.01 + Math.abs(wanted) / 128)) {
      assert.fail(`${found} at ${index} instead of ${wanted}`)
    }
  }
}

const part = (values: Float64Array, row: number, count: number, width: number) =>
  values.subarray(row * width, (row + count) * width)

export const kernelTests = (runtime: Layer.Layer<CudaRuntime.CudaRuntime, CudaError.CudaError>) => {
  const gamma = random("x.gamma", hidden, 0.2)
  const beta = random("x.beta", hidden, 0.2)
  const norm = Effect.all({ gamma: rows(gamma), beta: rows(beta) })

  it.live("embed looks up tokens and positions", () =>
    Effect.gen(function*() {
      const kernels = yield* Kernels.load(config)
      const [words, positions] = [random("words", 300 * hidden), random("positions", 80 * hidden)]
      const ids = Int32Array.from({ length: tokens }, (_, token) => (token * 37) % 300)
      ids[3] = -5
      ids[4] = 2 ** 31 - 1
      const out = yield* CudaMemory.allocate(tokens * hidden * 2)
      const from = {
        ids: yield* uploaded(ids),
        words: yield* rows(words),
        positions: yield* rows(positions),
        norm: yield* norm
      }
      yield* kernels.embed(batch, from, out)
      ids[3] = 0
      ids[4] = 299
      const expected = sequences.flatMap((_, sequence) => {
        const own = ids.subarray(sequence * batch.length, (sequence + 1) * batch.length)
        return [...Reference.norm(Reference.embed([...own], words, positions, hidden), gamma, beta)]
      })
      agree(yield* downloaded(out), expected)
    }).pipe(Effect.scoped, Effect.provide(runtime)))

  it.live("norm normalizes rows", () =>
    Effect.gen(function*() {
      const kernels = yield* Kernels.load(config)
      const x = random("x", tokens * hidden, 3).map((value, index) => value + (index % 7))
      const out = yield* CudaMemory.allocate(tokens * hidden * 2)
      yield* kernels.norm(batch, yield* rows(x), yield* norm, out)
      const rounded = Float64Array.from(Bfloat16.decode(Bfloat16.encode(x)))
      agree(yield* downloaded(out), Reference.norm(rounded, gamma, beta))
    }).pipe(Effect.scoped, Effect.provide(runtime)))

  // On a GPU, small and large batches have different kernels.
  it.live.each([
    { length: 70, sequences: [70, 1, 33] },
    { length: 260, sequences: [260, 1, 63, 64, 65, 128, 129, 250] }
  ])("attention ignores the padding, up to length $length", ({ length, sequences }) =>
    Effect.gen(function*() {
      const kernels = yield* Kernels.load(config)
      const rowCount = sequences.length * length
      const qkv = random("qkv", rowCount * 3 * hidden)
      const out = yield* CudaMemory.allocate(rowCount * hidden * 2)
      const sizes = { batch: sequences.length, length }
      yield* kernels.attention(sizes, yield* rows(qkv), yield* uploaded(Int32Array.from(sequences)), out)
      const found = Float64Array.from(yield* downloaded(out))
      for (const [sequence, own] of sequences.entries()) {
        const first = sequence * length
        const expected = Reference.attention(part(qkv, first, own, 3 * hidden), heads)
        agree(part(found, first, own, hidden), expected)
      }
      // Rows of padding are used by later matrix products, so they must be numbers.
      assert.isTrue(found.every(Number.isFinite))
    }).pipe(Effect.scoped, Effect.provide(runtime)))

  it.live("pool ignores the padding", () =>
    Effect.gen(function*() {
      const kernels = yield* Kernels.load(config)
      const x = random("x", tokens * hidden)
      const out = yield* CudaMemory.allocate(batch.batch * hidden * 4)
      yield* kernels.pool(batch, yield* rows(x), yield* uploaded(Int32Array.from(sequences)), out)
      const found = new Float32Array(batch.batch * hidden)
      yield* CudaMemory.download(found, out)
      for (const [sequence, length] of sequences.entries()) {
        const expected = Reference.pool(part(x, sequence * batch.length, length, hidden), hidden)
        const own = found.subarray(sequence * hidden, (sequence + 1) * hidden)
        for (const [column, value] of expected.entries()) assert.closeTo(own[column]!, value, 1e-5)
      }
    }).pipe(Effect.scoped, Effect.provide(runtime)))
}
