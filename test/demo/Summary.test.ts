/**
 * The CPU's summary of a file, and the arithmetic of its checksum.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { crc32 } from "node:zlib"
import * as Crc from "../../examples/demo/Crc.ts"
import { compare, countBytes, describeCounts, SummariesDiffer, summarize } from "../../examples/demo/Summary.ts"
import { makeBytes, memorySource, plainSummary } from "./support.ts"

describe("Summary", () => {
  it.effect.each([1, 3, 4, 255, 1000, 2000])(
    "is the same in chunks of %i bytes",
    (chunkBytes) =>
      Effect.gen(function*() {
        const bytes = makeBytes(1003)
        const seen: Array<number> = []
        const onChunk = (offset: number, chunk: Uint8Array) =>
          Effect.sync(() => void seen.push(offset, chunk.byteLength))
        const summary = yield* summarize(memorySource(bytes), { chunkBytes, onChunk })
        assert.deepStrictEqual(summary, plainSummary(bytes))
        const last = seen.slice(-2).reduce((offset, byteLength) => offset + byteLength)
        assert.deepStrictEqual([seen.length, last], [2 * Math.ceil(1003 / chunkBytes), 1003])
      })
  )

  it("counts bytes of every length, adding to existing counts", () => {
    const bytes = makeBytes(40)
    const counts = new BigUint64Array(256).fill(2n ** 40n)
    const expected = counts.slice()
    for (let byteLength = 0; byteLength <= 40; byteLength++) {
      countBytes(counts, bytes.subarray(0, byteLength))
      for (const byte of bytes.subarray(0, byteLength)) expected[byte]! += 1n
      assert.deepStrictEqual(counts, expected)
    }
  })

  it.effect("reports a differing checksum or byte count", () =>
    Effect.gen(function*() {
      const right = plainSummary(makeBytes(1000))
      yield* compare("file", plainSummary(makeBytes(1000)), right)
      const sum = yield* Effect.flip(compare("file", { ...right, checksum: 7 }, { ...right, checksum: 0xabc }))
      assert.instanceOf(sum, SummariesDiffer)
      assert.strictEqual(sum.message, "file: the CRC-32 is 00000abc but the device found 00000007")
      const counts = right.counts.with(200, 9n)
      const count = yield* Effect.flip(compare("file", { ...right, counts }, right))
      assert.strictEqual(count.message, "file: the count of byte 200 is 4 but the device found 9")
    }))

  it("is described by its most frequent byte and its entropy", () => {
    assert.deepStrictEqual(describeCounts(plainSummary(new Uint8Array(10).fill(9)).counts), {
      byte: 9,
      share: 1,
      entropy: 0
    })
    assert.deepStrictEqual(describeCounts(plainSummary(Uint8Array.of(1, 1, 2, 3)).counts), {
      byte: 1,
      share: 0.5,
      entropy: 1.5
    })
    assert.strictEqual(describeCounts(new BigUint64Array(256).fill(2n ** 40n)).entropy, 8)
  })
})

describe("Crc", () => {
  it("computes the checksum of zeros", () => {
    for (const count of [0, 1, 2, 255, 256, 100_003]) {
      assert.strictEqual(Crc.ofZeros(count), crc32(new Uint8Array(count)))
    }
  })

  it("advances over any number of zeros, in one step or several", () => {
    const [first, second] = [5 * 2 ** 32 + 12_345, 2 ** 50 + 2 ** 31 + 1]
    const once = Crc.followedBy(0x1234_5678, first + second)
    assert.strictEqual(Crc.followedBy(Crc.followedBy(0x1234_5678, first), second), once)
    // The order of x, and also of x^8.
    assert.strictEqual(Crc.followedBy(0x1234_5678, 2 ** 32 - 1), 0x1234_5678)
  })
})
