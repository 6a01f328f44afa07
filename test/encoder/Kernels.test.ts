/**
 * The kernels of simulated devices, and the reference itself.
 */
import { assert, describe, it } from "@effect/vitest"
import { SimulatedRuntime } from "effect-cuda"
import { configs, weightsOf } from "../../examples/encoder/Config.ts"
import * as Reference from "../../examples/encoder/Reference.ts"
import { kernels } from "../../examples/encoder/SimulatedKernels.ts"
import { checkedMachine } from "../support/checkedMachine.ts"
import { kernelTests } from "./kernels.ts"

describe("the kernels on a simulated device", () => kernelTests(checkedMachine(SimulatedRuntime.layer({ kernels }))))

describe("the reference", () => {
  const close = (actual: ArrayLike<number>, expected: ReadonlyArray<number>) => {
    assert.strictEqual(actual.length, expected.length)
    for (const [index, value] of expected.entries()) assert.closeTo(actual[index]!, value, 1e-4)
  }

  it("normalizes rows", () => {
    const x = Float64Array.of(1, 3, -5, 5)
    close(Reference.norm(x, Float64Array.of(1, 2), Float64Array.of(0, 10)), [-1, 12, -1, 12])
  })

  it("multiplies by a transposed matrix", () => {
    const x = Float64Array.of(1, 2, 3, 4)
    const weight = Float64Array.of(1, 0, 0, 1, 1, 1)
    close(Reference.product(x, weight, Float64Array.of(0, 10, 20), 2), [1, 12, 23, 3, 14, 27])
  })

  it("has known values of gelu", () => {
    close([-3, -1, 0, 1, 3].map(Reference.gelu), [-0.0036, -0.1588, 0, 0.8412, 2.9964])
  })

  it("mixes values by how well keys match the query", () => {
    const head = (value: number) => Array<number>(64).fill(value)
    // Two rows. The first query matches the second key best; the second query matches all keys equally.
    const qkv = Float64Array.from([...head(1), ...head(0), ...head(1), ...head(0), ...head(0.125), ...head(4)])
    const share = Math.exp(1) / (1 + Math.exp(1))
    close(Reference.attention(qkv, 1), [...head(1 + 3 * share), ...head(2.5)])
  })

  it("pools to length 1", () => {
    close(Reference.pool(Float64Array.of(1, 0, 5, 8), 2), [0.6, 0.8])
  })

  it("leaves the sum of both embeddings if nothing else adds to it", () => {
    const { hidden } = configs.tiny
    const weights = new Map(
      weightsOf(configs.tiny).map(({ name, shape }) => {
        const values = new Float64Array(shape.reduce((product, size) => product * size, 1))
        return [name, name.endsWith(".gamma") ? values.fill(1) : values]
      })
    )
    weights.get("embeddings.word")!.set(Float64Array.from({ length: hidden }, (_, column) => column % 2), 7 * hidden)
    const found = Reference.encode({ config: configs.tiny, weights }, [7, 7])
    close(found, Array.from({ length: hidden }, (_, column) => (column % 2 === 0 ? -1 : 1) / Math.sqrt(hidden)))
  })
})
