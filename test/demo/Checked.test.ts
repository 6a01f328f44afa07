/**
 * The examples under the race checker: each program, and the services with concurrent callers. On a simulated GPU, and on a real one
 * where there is one.
 */
import { assert, describe, it } from "@effect/vitest"
import { CheckedRuntime, CudaBlas, CudaRuntime, NativeRuntime, SimulatedRuntime } from "effect-cuda"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll } from "vitest"
import * as Demo from "../../examples/demo/Kernels.ts"
import { pipelined, serial } from "../../examples/demo/Pipeline.ts"
import { configs } from "../../examples/encoder/Config.ts"
import { Encoder } from "../../examples/encoder/Encoder.ts"
import { kernels as encoderKernels } from "../../examples/encoder/SimulatedKernels.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import { handle } from "../../examples/http/Api.ts"
import * as Kernel from "../../examples/http/Kernel.ts"
import { Scorer } from "../../examples/http/Scorer.ts"
import { serve } from "../../examples/http/Server.ts"
import { DeviceCache } from "../../examples/service.ts"
import { gpu, nativeRig } from "../support/gpu.ts"
import { missing } from "../support/nvrtc.ts"
import { hello } from "./hello.ts"
import { makeBytes, memorySource, plainSummary } from "./support.ts"

type Service = CudaRuntime.CudaRuntimeService

const home = mkdtempSync(join(tmpdir(), "effect-cuda-checked-"))
const path = join(home, "model.safetensors")
beforeAll(() => Effect.runPromise(Weights.write(path, configs.tiny, { seed: 1, spread: 0.1 })))
afterAll(() => rmSync(home, { recursive: true, force: true }))

const bytes = makeBytes(20 * 256 + 17)

const streaming = (run: typeof pipelined) =>
  Effect.gen(function*() {
    const { summary } = yield* run(memorySource(bytes), { chunkBytes: 256, slots: 3 })
    assert.deepStrictEqual(summary, plainSummary(bytes))
  })

const caching = Effect.gen(function*() {
  const cache = yield* DeviceCache
  const keys = ["a", "b", "c"]
  const put = (key: string, index: number) => cache.put(key, makeBytes(100 + index))
  yield* Effect.forEach([...keys, ...keys], put, { concurrency: "unbounded" })
  const values = yield* Effect.forEach(keys, cache.get, { concurrency: "unbounded" })
  assert.deepStrictEqual(values, [103, 104, 105].map(makeBytes))
}).pipe(Effect.provide(DeviceCache.layer))

const model = { weights: Float32Array.of(1, 2), bias: 0 }
const scorer = Scorer.layer({ model, maxBatch: 4, slots: 2, window: "1 millis", timeout: "10 seconds" })

const scoring = Effect.gen(function*() {
  const { health, score } = yield* Scorer
  const rows = Array.from({ length: 30 }, (_, index) => [index, -index])
  yield* Effect.forEach(rows, score, { concurrency: "unbounded" })
  assert.strictEqual((yield* health).requests, 30)
}).pipe(Effect.provide(scorer))

/** Requests over HTTP. */
const serving = Effect.gen(function*() {
  const url = yield* serve(handle, { port: 0 })
  const body = JSON.stringify({ features: [1, 2] })
  const request = Effect.promise(() => fetch(`${url}/score`, { method: "POST", body }))
  const answers = yield* Effect.replicateEffect(request, 20, { concurrency: "unbounded" })
  assert.deepStrictEqual(answers.map(({ status }) => status), Array<number>(20).fill(200))
}).pipe(Effect.provide(scorer))

const encoding = Effect.gen(function*() {
  const options = { path, lengths: [4, 8], maxBatch: 3, slots: 2, timeout: "1 minute" } as const
  const services = yield* Layer.build(Encoder.layer(options).pipe(Layer.provide(CudaBlas.layer())))
  const { encode } = Context.get(services, Encoder)
  const sequences = Array.from({ length: 12 }, (_, index) => Array.from({ length: 1 + index % 8 }, (_, at) => at))
  yield* Effect.forEach(sequences, encode, { concurrency: "unbounded" })
  yield* encode([7])
})

const programs: Record<string, Effect.Effect<void, unknown, CudaRuntime.CudaRuntime | Scope.Scope>> = {
  hello,
  "the demo": streaming(pipelined),
  "the demo, step by step": streaming(serial),
  "the cache": caching,
  "the scorer": scoring,
  "the scorer over HTTP": serving,
  "the encoder": encoding
}

const simulated = SimulatedRuntime.layer({
  devices: [{ memory: 2 ** 30, hostBandwidth: 1e12, deviceBandwidth: 1e12, copyLatency: 0 }],
  kernels: { ...Demo.simulated(1e12), ...Kernel.simulated, ...encoderKernels }
})

describe("on a simulated GPU, the checker reports nothing of", () => {
  it.live.each(Object.keys(programs))("%s", (name) =>
    Effect.gen(function*() {
      // With lines, reports say where in the examples they are.
      yield* CheckedRuntime.check(programs[name]!, { stacks: true, hostWrites: true })
    }).pipe(Effect.provide(simulated)))
})

/** The same runtime without some of its operations. */
const without = (runtime: Service, members: ReadonlyArray<CudaRuntime.OperationMember>): Service =>
  CudaRuntime.around(
    runtime,
    ({ member }, call) => members.includes(member) ? () => Effect.void : call
  )

/** The races of a program without some of its operations. It may fail, or find wrong results. */
const racesWithout = (name: string, members: ReadonlyArray<CudaRuntime.OperationMember>) =>
  Effect.gen(function*() {
    const reports: Array<CheckedRuntime.Report> = []
    const broken = Effect.gen(function*() {
      const runtime = without(yield* CudaRuntime.CudaRuntime, members)
      yield* Effect.exit(Effect.scoped(Effect.provideService(programs[name]!, CudaRuntime.CudaRuntime, runtime)))
    })
    yield* Effect.exit(CheckedRuntime.check(broken, { onReport: (report) => reports.push(report) }))
    return reports.filter(({ _tag }) => _tag === "Race")
  }).pipe(Effect.provide(simulated))

describe("on a simulated GPU, the checker reports races of", () => {
  it.live.each(["the demo", "the demo, step by step"])(
    "%s without the waits between its streams",
    (name) =>
      Effect.gen(function*() {
        assert.isNotEmpty(yield* racesWithout(name, ["streamWaitStream"]))
      })
  )

  it.live.each(["the demo", "the demo, step by step", "the scorer", "the scorer over HTTP", "the encoder"])(
    "%s without the waits of the host",
    (name) =>
      Effect.gen(function*() {
        assert.isNotEmpty(yield* racesWithout(name, ["streamSynchronize", "eventSynchronize"]))
      })
  )
})

describe("on a GPU, the checker reports nothing of", () => {
  /** What programs need besides a GPU: a compiler, or cuBLASLt. */
  const has = (name: string) =>
    name.startsWith("the scorer") ? missing === undefined : name !== "the encoder" || nativeRig.hasBlas
  for (const name of Object.keys(programs)) {
    it.live.skipIf(gpu === undefined || !has(name))(
      name,
      () =>
        CheckedRuntime.check(programs[name]!, { stacks: true, hostWrites: true }).pipe(
          Effect.provide(NativeRuntime.layer())
        ),
      60_000
    )
  }
})
