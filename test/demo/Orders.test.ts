/**
 * Exploration of orders of the examples: whatever order CUDA may choose, they come to the same.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaBlas,
  CudaChecker,
  CudaDevice,
  CudaMemory,
  CudaPipeline,
  CudaRuntime,
  CudaStream,
  CudaTaskGraph,
  SimulatedRuntime
} from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
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
import { fastMachine, makeBytes, memorySource } from "./support.ts"

const limits = { maxRuns: 60, schedules: 60 }

/** Asserts that nothing differs, after enough work of several streams. Returns the report. */
const same = <A, E, ELayer, R>(exploration: Effect.Effect<CudaChecker.Report<A, E>, ELayer, R>, works: number) =>
  Effect.tap(exploration, (report) =>
    Effect.sync(() => {
      const { exit, ran } = report.undisturbed
      assert.isTrue(exit !== undefined && Exit.isSuccess(exit), String(exit))
      assert.isAtLeast(ran.length, works)
      assert.deepStrictEqual([report.races, report.findings], [[], []], CudaChecker.format(report))
      assert.isTrue(report.isExhausted)
    }))

describe("in every order that was tried, the same comes of", () => {
  it.effect("hello", () =>
    same(
      CudaChecker.explore(
        Effect.gen(function*() {
          const device = yield* CudaDevice.current
          const stream = yield* CudaStream.make()
          const numbers = Float32Array.of(1, 2, 3, 4, 5, 6)
          const buffer = yield* CudaMemory.allocate(numbers.byteLength)
          yield* CudaMemory.upload(buffer, numbers, stream)
          yield* CudaMemory.fill(CudaMemory.slice(buffer, 0, 8), 0, stream)
          const answer = new Float32Array(numbers.length)
          yield* CudaMemory.download(answer, buffer, stream)
          return [device.name, ...answer]
        }),
        limits
      ),
      3
    ))

  it.effect("the demo", () =>
    same(
      CudaChecker.explore(pipelined(memorySource(makeBytes(5 * 256 + 1)), { chunkBytes: 256, slots: 3 }), {
        ...limits,
        result: ({ summary }) => summary,
        runtime: fastMachine
      }),
      20
    ))

  it.effect("not of the demo without its waits between streams", () =>
    Effect.gen(function*() {
      const careless = Effect.map(CudaRuntime.CudaRuntime, (runtime) => ({
        ...runtime,
        streamWaitEvent: () => Effect.void,
        streamWaitStream: () => Effect.void
      }))
      const report = yield* CudaChecker.explore(
        pipelined(memorySource(makeBytes(2 * 256)), { chunkBytes: 256, slots: 2 }).pipe(
          Effect.provideServiceEffect(CudaRuntime.CudaRuntime, careless)
        ),
        { maxRuns: 15, schedules: 0, result: ({ summary }) => summary, runtime: fastMachine }
      )
      assert.isAbove(report.races.filter(({ verdict }) => verdict === "changes").length, 0)
      const failed = report.findings.map(({ difference }) => difference.found)
      assert.isTrue(failed.some((found) => found.includes("BytesDiffer")), CudaChecker.format(report))
    }))

  it.effect("the cache", () =>
    same(
      CudaChecker.explore(
        Effect.gen(function*() {
          const cache = yield* DeviceCache
          yield* cache.put("a", makeBytes(100))
          yield* Effect.all([cache.put("a", makeBytes(50)), cache.put("b", makeBytes(70))], { concurrency: 2 })
          return yield* Effect.all([cache.get("a"), cache.get("b")], { concurrency: 2 })
        }).pipe(Effect.provide(DeviceCache.layer)),
        limits
      ),
      5
    ))

  it.effect("the scorer", () => {
    const options = { model: { weights: Float32Array.of(1, 2), bias: 0 }, maxBatch: 2, slots: 2 }
    const program = Effect.gen(function*() {
      const scorer = yield* Scorer
      return yield* Effect.forEach([[1, 2], [3, 4], [5, 6]], scorer.score, { concurrency: "unbounded" })
    })
    return same(
      CudaChecker.explore(Effect.provide(program, Scorer.layer(options)), {
        ...limits,
        // Which slot a request gets depends on which one is free first, so only the answers are the same.
        bytes: false,
        runtime: SimulatedRuntime.layer({ kernels: Kernel.simulated })
      }),
      6
    )
  })

  it.effect("a task graph", () =>
    same(
      CudaChecker.explore(
        Effect.gen(function*() {
          const buffers = yield* Effect.forEach([0, 1, 2, 3], () => CudaMemory.allocate(64))
          const [a, b, c, d] = buffers
          const graph = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("a", CudaMemory.fill(a!, 1)),
            CudaTaskGraph.add("b", ["a"], CudaMemory.copy(b!, a!)),
            CudaTaskGraph.add("c", ["a"], CudaMemory.copy(c!, a!)),
            CudaTaskGraph.add(
              "d",
              ["b", "c"],
              CudaMemory.copy(CudaMemory.slice(d!, 0, 32), CudaMemory.slice(c!, 0, 32))
            ),
            CudaTaskGraph.add("e", ["b"], CudaMemory.copy(CudaMemory.slice(d!, 32), CudaMemory.slice(b!, 32)))
          )
          yield* CudaTaskGraph.run(graph)
        }),
        limits
      ),
      4
    ))

  it.effect("a pipeline", () =>
    same(
      CudaChecker.explore(
        CudaPipeline.through(Stream.fromIterable([[1, 2], [3], [4, 5], [6], [7]]), {
          slots: 2,
          inputBytes: 2,
          fill: (element, into) => CudaPipeline.copyIn(Uint8Array.from(element), into),
          work: ({ input, output }) => CudaMemory.copy(CudaMemory.slice(output.buffer, 0, input.byteLength), input),
          take: CudaPipeline.copyOut
        }).pipe(Stream.map((bytes) => [...bytes]), Stream.runCollect),
        limits
      ),
      15
    ))

  describe("the encoder", () => {
    const home = mkdtempSync(join(tmpdir(), "effect-cuda-orders-"))
    const path = join(home, "model.safetensors")
    beforeAll(() => Effect.runPromise(Weights.write(path, configs.tiny, { seed: 1, spread: 0.1 })))
    afterAll(() => rmSync(home, { recursive: true, force: true }))

    it.effect("with the tiny model", () => {
      const program = Effect.gen(function*() {
        const encoder = yield* Encoder
        return yield* Effect.forEach([[1, 2, 3], [4], [5, 6]], encoder.encode, { concurrency: "unbounded" })
      })
      const layer = Encoder.layer({ path, lengths: [4], maxBatch: 2, slots: 2 }).pipe(Layer.provide(CudaBlas.layer()))
      return same(
        CudaChecker.explore(Effect.provide(program, layer), {
          maxRuns: 20,
          schedules: 20,
          runtime: SimulatedRuntime.layer({ devices: [{ memory: 2 ** 30 }], kernels })
        }),
        20
      )
    }, 60_000)
  })
})
