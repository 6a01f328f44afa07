/**
 * The five programs for newcomers, on simulated devices where a race fails, and as processes.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaRuntime, SimulatedRuntime } from "effect-cuda"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { readFileSync } from "node:fs"
import { afterAll, beforeAll } from "vitest"
import * as configured from "../../examples/newcomer/configured.ts"
import * as etl from "../../examples/newcomer/etl.ts"
import * as forkJoin from "../../examples/newcomer/forkJoin.ts"
import * as scaler from "../../examples/newcomer/scaler.ts"
import { compile } from "../demo/compiled.ts"
import type { Compiled } from "../demo/compiled.ts"
import { nothingHeld } from "../support/assertions.ts"
import { checkedMachine } from "../support/checkedMachine.ts"

const kernels = { ...etl.kernels, ...scaler.kernels }
const machine = checkedMachine(SimulatedRuntime.layer({ devices: [{ memory: 2 ** 28 }], kernels }))

/** Runs an effect, and asserts that only streams of the pool are left. */
const leavesNothing = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const result = yield* effect
    const runtime = yield* CudaRuntime.CudaRuntime
    assert.deepStrictEqual({ ...yield* runtime.liveResources, streams: 0 }, nothingHeld)
    return result
  })

describe("scaler", () => {
  it.live("serves concurrent callers", () =>
    Effect.gen(function*() {
      const vectors = yield* leavesNothing(scaler.program)
      assert.deepStrictEqual(vectors.map((vector) => Array.from(vector)), [[1, 2, 3], [10, 20, 30], [100, 200, 300]])
    }).pipe(Effect.provide(machine)))

  it.live("tells shortage from failure", () =>
    Effect.gen(function*() {
      const { scale } = yield* scaler.Scaler
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.failNext("CudaMemory.allocate", "OutOfMemory", 2)
      assert.instanceOf(yield* Effect.flip(scale(Float32Array.of(1), 2)), scaler.Busy)
      yield* control.lose(0, "LaunchFailed")
      assert.instanceOf(yield* Effect.flip(scale(Float32Array.of(1), 2)), scaler.ScalerFailed)
    }).pipe(Effect.provide(Layer.provideMerge(scaler.Scaler.layer, machine))))
})

describe("etl", () => {
  it.live("converts every line", () =>
    Effect.gen(function*() {
      const { count, highest, lowest } = yield* leavesNothing(etl.program)
      assert.strictEqual(count, 10_000)
      assert.closeTo(lowest, -160 / 9, 1e-5)
      assert.closeTo(highest, 100, 1e-5)
    }).pipe(Effect.provide(machine)))

  it.live("fails with the line that is no number", () =>
    Effect.gen(function*() {
      const failure = yield* leavesNothing(Effect.flip(etl.convert(Stream.make("1", "2", "warm"))))
      assert.strictEqual(failure.message, `not a temperature: "warm"`)
    }).pipe(Effect.provide(machine)))
})

describe("forkJoin", () => {
  it.live("runs branches side by side and draws them", () =>
    Effect.gen(function*() {
      const { bytes, diagram, picture, regions } = yield* leavesNothing(forkJoin.program)
      const half = bytes.byteLength / 2
      assert.isTrue(bytes.subarray(0, half).every((byte) => byte === 1))
      assert.isTrue(bytes.subarray(half).every((byte) => byte === 2))
      const streamOf = (name: string) => regions.find((region) => region.name === name)?.streamId
      assert.notStrictEqual(streamOf("fill left"), streamOf("fill right"))
      assert.match(picture, /^<svg[\s\S]*fill left[\s\S]*<\/svg>\s*$/)
      assert.match(diagram, /^flowchart TD/)
    }).pipe(Effect.provide(machine)))
})

describe("configured", () => {
  const report = (env: Record<string, string>) =>
    configured.report.pipe(
      Effect.provide(configured.layer.pipe(
        Layer.provide(
          ConfigProvider.layer(ConfigProvider.fromEnv({ env: { EFFECT_CUDA_RUNTIME: "simulated", ...env } }))
        )
      ))
    )

  it.live("has defaults", () =>
    Effect.gen(function*() {
      assert.deepInclude(yield* report({}), { devices: 1, device: 0 })
    }))

  it.live("follows the environment", () =>
    Effect.gen(function*() {
      assert.deepInclude(yield* report({ GPU_DEVICE: "1", SIMULATED_DEVICES: "2" }), { devices: 2, device: 1 })
    }))

  it.live("fails typed for what is wrong", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* Effect.flip(report({ GPU_DEVICE: "first" })))._tag, "ConfigError")
      assert.strictEqual((yield* Effect.flip(report({ GPU_DEVICE: "3" })))._tag, "CudaError")
      assert.strictEqual((yield* Effect.flip(report({ GPU_POOL_BYTES: "1000" })))._tag, "CudaError")
    }))
})

describe("the guide to testing", () => {
  it("contains a test that runs", () => {
    const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8")
    assert.include(read("docs/testing.md"), `\`\`\`ts\n${read("test/examples/virtualTime.test.ts")}\`\`\``)
  })
})

describe("as processes", () => {
  let examples: Compiled
  beforeAll(() => {
    examples = compile()
  }, 60_000)
  afterAll(() => examples?.remove())

  it.each([
    ["configured", /devices: 1, device: 0/],
    ["etl", /count: 10000/],
    ["forkJoin", /flowchart TD[\s\S]*<svg/],
    ["save", /\[ 1, 2, 3 \]/],
    ["scaler", /\[ 100, 200, 300 \]/]
  ])("%s prints its result", (name, pattern) => {
    const { code, error, out } = examples.run("newcomer/main", name)
    assert.strictEqual(error, "")
    assert.strictEqual(code, 0)
    assert.match(out, pattern)
  })

  it("reports a failure, with exit code 1", () => {
    const { code, error, out } = examples.run("newcomer/main", "absent")
    assert.strictEqual(code, 1)
    assert.match(out + error, /UnknownProgram: no program "absent"/)
  })

  it("has scopes that close at a signal", async () => {
    const child = examples.start("newcomer/main", "etl")
    const ended = new Promise<number | null>((resolve) => child.on("exit", (code) => resolve(code)))
    child.stdout?.once("data", () => child.kill("SIGINT"))
    assert.include([130, 0], await ended)
  })
})
