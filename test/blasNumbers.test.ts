/**
 * The number types of matrices: every value survives, and others round to the nearest, ties to even.
 */
import { assert, describe, it } from "@effect/vitest"
import { numberTypes } from "../src/internal/blas/numbers.ts"
import { finiteNumbers } from "./support/floats.ts"

const view = new DataView(new ArrayBuffer(8))

describe.each(["f16", "bf16", "f8e4m3", "f8e5m2"] as const)("%s", (type) => {
  const { load, size, store } = numberTypes[type]
  const numbers = finiteNumbers(type)
  const read = (bits: number) => {
    if (size === 1) view.setUint8(0, bits)
    else view.setUint16(0, bits, true)
    return load(view, 0)
  }
  const rounded = (value: number) => {
    store(view, 0, value)
    return size === 1 ? view.getUint8(0) : view.getUint16(0, true)
  }

  it("reads and writes every value", () => {
    for (const [value, bits] of numbers) {
      assert.strictEqual(read(bits), value)
      if (value !== 0) assert.strictEqual(rounded(value), bits)
    }
    assert.strictEqual(read(rounded(0)), 0)
    assert.isTrue(Object.is(read(rounded(-0)), -0))
  })

  it("rounds to the nearest, and ties to even", () => {
    const positive = numbers.filter(([value, bits]) => value > 0 || bits === 0)
    for (let index = 1; index < positive.length; index++) {
      const [[low, lowBits], [high, highBits]] = [positive[index - 1]!, positive[index]!]
      const even = lowBits % 2 === 0 ? low : high
      assert.strictEqual(read(rounded((low + high) / 2)), even, `between ${low} and ${high}`)
      assert.strictEqual(read(rounded(-(low + high) / 2)), even === 0 ? -0 : -even)
      const quarter = (high - low) / 4
      assert.strictEqual(rounded(low + quarter), lowBits)
      assert.strictEqual(rounded(high - quarter), highBits)
    }
  })

  it("has infinities and NaN, or the largest number in their place", () => {
    const largest = numbers.at(-1)![0]
    const beyond = type === "f8e4m3" ? largest : Infinity
    assert.strictEqual(read(rounded(2 * largest)), beyond)
    assert.strictEqual(read(rounded(-Infinity)), -beyond)
    assert.isNaN(read(rounded(NaN)))
  })
})

describe("integers", () => {
  it("are rounded and clamped", () => {
    const { load, store } = numberTypes.i8
    for (const [value, expected] of [[1.5, 2], [2.5, 2], [-1.5, -2], [127.6, 127], [-400, -128]] as const) {
      store(view, 0, value)
      assert.strictEqual(load(view, 0), expected)
    }
  })
})
