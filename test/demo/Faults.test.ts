/**
 * Fault exploration of the examples: whatever call fails, and wherever they are interrupted, they leave nothing, never hang, and end
 * in a typed failure.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaBlas, CudaFaults, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll } from "vitest"
import { pipelined } from "../../examples/demo/Pipeline.ts"
import { configs } from "../../examples/encoder/Config.ts"
import { Encoder } from "../../examples/encoder/Encoder.ts"
import { kernels } from "../../examples/encoder/SimulatedKernels.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import * as Kernel from "../../examples/http/Kernel.ts"
import { Scorer } from "../../examples/http/Scorer.ts"
import { DeviceCache } from "../../examples/service.ts"
import { hello } from "./hello.ts"
import { fastRuntime, makeBytes, memorySource } from "./support.ts"

const maxRuns = 300

/** Few runs with two faults. EFFECT_CUDA_PAIRS sets how many, for longer explorations by hand. */
const pairs = { depth: 2, maxPairs: Number(process.env["EFFECT_CUDA_PAIRS"] ?? 150) } as const

/** Asserts that there are no problems, and returns the report. */
const explored = <E, ELayer, R>(exploration: Effect.Effect<CudaFaults.Report<E>, ELayer, R>) =>
  Effect.tap(
    Effect.flatMap(exploration, CudaFaults.expectNone),
    ({ steps }) => Effect.sync(() => assert.isAbove(steps.length, 5))
  )

const isCudaError = (failure: { readonly _tag: string }, fault: CudaFaults.Fault | undefined) =>
  fault !== undefined && failure._tag === "CudaError"

describe("with any fault, nothing is left of", () => {
  it.effect("hello", () => explored(CudaFaults.everyCall(hello, { ...pairs, mayFail: isCudaError })))

  it.effect("the demo", () =>
    explored(CudaFaults.everyCall(pipelined(memorySource(makeBytes(3 * 256 + 1)), { chunkBytes: 256, slots: 2 }), {
      runtime: fastRuntime,
      maxRuns,
      ...pairs,
      mayFail: isCudaError
    })))

  it.effect("the cache", () =>
    explored(CudaFaults.everyCall(
      Effect.gen(function*() {
        const cache = yield* DeviceCache
        yield* cache.put("a", makeBytes(100))
        yield* cache.put("a", makeBytes(50))
        assert.deepStrictEqual(yield* cache.get("a"), makeBytes(50))
      }).pipe(Effect.provide(DeviceCache.layer)),
      { ...pairs, mayFail: (failure, fault) => fault !== undefined && failure._tag !== "NoValue" }
    )))

  it.effect("the scorer", () => {
    const options = { model: { weights: Float32Array.of(1, 2), bias: 0 }, maxBatch: 2, slots: 2 }
    const program = Effect.gen(function*() {
      const scorer = yield* Scorer
      yield* Effect.forEach([[1, 2], [3, 4], [5, 6]], scorer.score, { concurrency: "unbounded" })
      yield* scorer.score([0, 0])
      yield* scorer.health
    })
    return explored(CudaFaults.everyCall(Effect.provide(program, Scorer.layer(options)), {
      runtime: SimulatedRuntime.layer({ kernels: Kernel.simulated }),
      maxRuns,
      ...pairs,
      mayFail: isCudaError
    }))
  })

  describe("the encoder", () => {
    const home = mkdtempSync(join(tmpdir(), "effect-cuda-faults-"))
    const path = join(home, "model.safetensors")
    beforeAll(() => Effect.runPromise(Weights.write(path, configs.tiny, { seed: 1, spread: 0.1 })))
    afterAll(() => rmSync(home, { recursive: true, force: true }))

    it.effect("with the tiny model", () => {
      const program = Effect.gen(function*() {
        const encoder = yield* Encoder
        yield* Effect.forEach([[1, 2, 3], [4], [5, 6]], encoder.encode, { concurrency: "unbounded" })
        yield* encoder.encode([7])
        yield* encoder.health
      })
      const encoder = { path, lengths: [4], maxBatch: 2, slots: 2 }
      const layer = Encoder.layer(encoder).pipe(Layer.provide(CudaBlas.layer()))
      const encoding = Effect.provide(program, layer)
      const options = {
        runtime: SimulatedRuntime.layer({ devices: [{ memory: 2 ** 30 }], kernels }),
        mayFail: isCudaError
      }
      return Effect.andThen(
        explored(
          CudaFaults.everyCall(encoding, {
            ...options,
            maxRuns: 100,
            ...pairs,
            maxPairs: Math.ceil(pairs.maxPairs / 3)
          })
        ),
        // All faults of the handle of cuBLASLt, of which there is only one.
        explored(CudaFaults.everyCall(encoding, {
          ...options,
          operations: ["CudaLibrary.load", "CudaLibrary.handle", "CudaLibrary.release"]
        }))
      )
    })
  })
})
