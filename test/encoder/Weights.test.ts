/**
 * Random weights, and the sizes of a model by its weights.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll } from "vitest"
import * as Bfloat16 from "../../examples/encoder/Bfloat16.ts"
import { configs, ofFile, weightsOf } from "../../examples/encoder/Config.ts"
import type { Config } from "../../examples/encoder/Config.ts"
import * as SafeTensors from "../../examples/encoder/SafeTensors.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import { compile } from "../demo/compiled.ts"
import type { Compiled } from "../demo/compiled.ts"
import { newPath } from "./support.ts"

const statistics = (values: ArrayLike<number>) => {
  const numbers = Array.from(values)
  const mean = numbers.reduce((sum, value) => sum + value, 0) / numbers.length
  const variance = numbers.reduce((sum, value) => sum + (value - mean) ** 2, 0) / numbers.length
  return { mean, deviation: Math.sqrt(variance) }
}

describe("bfloat16", () => {
  it("rounds to the nearest, and to even between two", () => {
    const values = [1, -2.5, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20, 3.4e38, Infinity, 0, -0]
    const expected = [1, -2.5, 1, 1 + 2 ** -6, 1 + 2 ** -7, Infinity, Infinity, 0, -0]
    assert.deepStrictEqual([...Bfloat16.decode(Bfloat16.encode(values))], expected)
    assert.isNaN(Bfloat16.decode(Bfloat16.encode([NaN]))[0])
  })

  it("keeps every value that it has", () => {
    const all = Uint16Array.from({ length: 65_536 }, (_, bits) => bits)
    const back = Bfloat16.encode(Bfloat16.decode(all))
    for (const [bits, found] of back.entries()) {
      const isNaN = (bits & 0x7f80) === 0x7f80 && (bits & 0x7f) !== 0
      if (!isNaN && found !== bits) assert.strictEqual(found, bits)
    }
  })
})

describe("random weights", () => {
  const matrix = { name: "matrix.weight", shape: [300, 400] }

  it("depend on the name and the seed alone", () => {
    const one = Weights.make(matrix, { seed: 5 })
    assert.deepStrictEqual(Weights.make({ ...matrix, shape: [400, 300] }, { seed: 5 }), one)
    assert.notDeepEqual(Weights.make(matrix, { seed: 6 }), one)
    assert.notDeepEqual(Weights.make({ ...matrix, name: "other.weight" }, { seed: 5 }), one)
    assert.deepStrictEqual([...Weights.make({ name: "x", shape: [4] })], [15372, 15281, 15625, 15420])
  })

  it("are spread around 0, factors around 1", () => {
    const values = statistics(Bfloat16.decode(Weights.make(matrix)))
    assert.closeTo(values.mean, 0, 0.0003)
    assert.closeTo(values.deviation, 0.02, 0.0003)
    const wide = statistics(Bfloat16.decode(Weights.make(matrix, { spread: 0.5 })))
    assert.closeTo(wide.deviation, 0.5, 0.01)
    const factors = statistics(Bfloat16.decode(Weights.make({ name: "x.gamma", shape: [10_000] })))
    assert.closeTo(factors.mean, 1, 0.001)
    assert.closeTo(factors.deviation, 0.02, 0.001)
  })

  it("of the base shape are 110 million", () => {
    const sizes = weightsOf(configs.base).map(({ shape }) => shape.reduce((product, size) => product * size, 1))
    assert.closeTo(sizes.reduce((sum, size) => sum + size, 0), 109e6, 1e6)
  })
})

describe("the sizes of a model", () => {
  const written = (config: Config) =>
    Effect.gen(function*() {
      const path = yield* newPath
      yield* Weights.write(path, config)
      return yield* SafeTensors.open(path)
    })

  it.effect("are those of its weights", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* ofFile(yield* written(configs.tiny)), configs.tiny)
      const other = { layers: 1, hidden: 64, heads: 1, inner: 96, positions: 16, vocabulary: 300 }
      assert.deepStrictEqual(yield* ofFile(yield* written(other)), other)
    }))

  type Tensors = Map<string, SafeTensors.Tensor>
  const changed = (change: (tensors: Tensors) => void) =>
    Effect.gen(function*() {
      const file = yield* written(configs.tiny)
      const tensors = new Map(file.tensors)
      change(tensors)
      return yield* Effect.flip(ofFile({ ...file, tensors }))
    })
  const replaced = (name: string, fields: Partial<SafeTensors.Tensor>) => (tensors: Tensors) =>
    void tensors.set(name, { ...tensors.get(name)!, ...fields })

  it.effect.each<[string, (tensors: Tensors) => void, RegExp]>([
    ["nothing", (tensors) => tensors.clear(), /holds no encoder \(layers: 0\)/],
    ["no words", (tensors) => tensors.delete("embeddings.word"), /holds no encoder \(hidden: 0\)/],
    ["a missing tensor", (tensors) => tensors.delete("layers.1.mlp.norm.beta"), /layers.1.mlp.norm.beta is missing/],
    [
      "a missing layer",
      (tensors) => tensors.delete("layers.0.attention.qkv.weight"),
      /layers.0.attention.qkv.weight is missing/
    ],
    ["another tensor", replaced("pooler.weight", { dtype: "BF16", shape: [1] }), /pooler.weight belongs to no encoder/],
    ["another type", replaced("layers.0.mlp.up.bias", { dtype: "F16" }), /is F16 \[256\]; expected BF16 \[256\]/],
    ["another shape", replaced("layers.0.mlp.up.bias", { shape: [255] }), /is BF16 \[255\]; expected BF16 \[256\]/],
    ["a width without heads", replaced("embeddings.word", { shape: [256, 100] }), /100 is not a multiple of 64/]
  ])("are not found in a file with %s", ([, change, problem]) =>
    Effect.gen(function*() {
      const failure = yield* changed(change)
      assert.strictEqual(failure._tag, "WrongModel")
      assert.match(failure.message, problem)
    }))
})

describe("makeWeights", () => {
  let examples: Compiled
  beforeAll(() => {
    examples = compile()
  }, 60_000)
  afterAll(() => examples?.remove())

  it("writes a file", () => {
    const path = join(examples.folder, "tiny.safetensors")
    const other = join(examples.folder, "other.safetensors")
    assert.deepStrictEqual(examples.run("encoder/makeWeights", "tiny", path), { code: 0, out: "", error: "" })
    assert.strictEqual(examples.run("encoder/makeWeights", "tiny", other, "2").code, 0)
    assert.strictEqual(readFileSync(path).byteLength, readFileSync(other).byteLength)
    assert.isFalse(readFileSync(path).equals(readFileSync(other)))
  })

  it.each([[], ["huge", "x"], ["tiny"], ["tiny", "x", "seed"], ["tiny", "x", "1", "2"]].map((args) => [args]))(
    "refuses %j",
    (args) => {
      const { code, error } = examples.run("encoder/makeWeights", ...args)
      assert.strictEqual(code, 1)
      assert.match(error, /^Usage: makeWeights base\|tiny FILE \[SEED\]$/m)
    }
  )

  it("says why it cannot write", () => {
    const { code, error } = examples.run("encoder/makeWeights", "tiny", join(examples.folder, "none", "file"))
    assert.strictEqual(code, 1)
    assert.match(error, /none.file: no such file/)
  })
})
