/**
 * The demo's kernels on a GPU, compared with the CPU for random and for constant bytes.
 */
import { assert, describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { randomFillSync } from "node:crypto"
import { pipelined, serial } from "../../examples/demo/Pipeline.ts"
import * as Summary from "../../examples/demo/Summary.ts"
import { memorySource, plainSummary } from "../demo/support.ts"
import { gpu, nativeRig } from "../support/gpu.ts"

const random = (byteLength: number) => randomFillSync(new Uint8Array(byteLength))

describe.skipIf(gpu === undefined)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("the demo", (it) => {
    it.effect.each<readonly [string, Uint8Array, number]>([
      ["5 MiB and 77 bytes, in chunks of 1 MiB", random(5 * 2 ** 20 + 77), 2 ** 20],
      ["3,000,017 bytes, in chunks of an odd length", random(3_000_017), 300_007],
      ["one chunk of 8 MiB less a byte", random(2 ** 23 - 1), 2 ** 23],
      ["4 MiB of one byte", new Uint8Array(2 ** 22).fill(170), 2 ** 20],
      ["lengths near a word", random(1000), 17],
      ["lengths near a thread's share", random(5000), 257],
      ["1 byte", random(1), 2 ** 20]
    ])("counts and checks %s", ([, bytes, chunkBytes]) =>
      Effect.gen(function*() {
        const source = memorySource(bytes)
        const expected = plainSummary(bytes)
        assert.deepStrictEqual(yield* Summary.summarize(source, { chunkBytes }), expected)
        for (const run of [pipelined, serial]) {
          const { summary } = yield* run(source, { chunkBytes, slots: 4 })
          assert.deepStrictEqual(summary, expected)
        }
      }))
  })
})
