/**
 * The small examples: the README's first program, and a service with its failures.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaRuntime, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { readFileSync } from "node:fs"
import { afterAll, beforeAll } from "vitest"
import { CacheFailed, CacheFull, DeviceCache, NoValue } from "../../examples/service.ts"
import { nothingHeld } from "../support/assertions.ts"
import { checkedMachine } from "../support/checkedMachine.ts"
import { compile } from "./compiled.ts"
import type { Compiled } from "./compiled.ts"
import { makeBytes } from "./support.ts"

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8")

describe("small examples", () => {
  let examples: Compiled
  beforeAll(() => {
    examples = compile()
  }, 60_000)
  afterAll(() => examples?.remove())

  it("send numbers to a device and back", () => {
    const { code, error, out } = examples.run("hello")
    assert.strictEqual(error, "")
    assert.strictEqual(code, 0)
    assert.match(out, /^Simulated GPU answered 0 0 3 4 5 6$/m)
  })

  it("run a job that goes on from its last checkpoint after a failure", () => {
    const { code, error, out } = examples.run("cluster")
    assert.strictEqual(error, "")
    assert.strictEqual(code, 0)
    for (const rank of [0, 1]) assert.match(out, new RegExp(`epoch 2: rank ${rank} on device [01], from step 200`))
    assert.match(out, /^the mean of the field, says each rank: 5, 5$/m)
  }, 60_000)

  it("include the first program of the README", () => {
    const [, code] = read("examples/hello.ts").split(/^\/\*\*.*\*\/\n/m)
    assert.include(read("README.md"), `\`\`\`ts\n${code}\`\`\``)
  })
})

describe("DeviceCache", () => {
  const memory = 1 << 20
  const machine = SimulatedRuntime.layer({
    devices: [{ memory, hostBandwidth: 1e12, deviceBandwidth: 1e12, copyLatency: 0 }]
  })
  const layer = Layer.provideMerge(DeviceCache.layer, checkedMachine(machine))

  it.live("returns the latest value of each key", () =>
    Effect.gen(function*() {
      const cache = yield* DeviceCache
      yield* cache.put("a", makeBytes(1000))
      yield* cache.put("b", makeBytes(2000))
      yield* cache.put("a", makeBytes(3000))
      assert.deepStrictEqual(yield* cache.get("a"), makeBytes(3000))
      assert.deepStrictEqual(yield* cache.get("b"), makeBytes(2000))
      const runtime = yield* CudaRuntime.CudaRuntime
      assert.strictEqual((yield* runtime.liveResources).deviceBuffers, 2)
    }).pipe(Effect.provide(layer)))

  it.live("distinguishes its failures", () =>
    Effect.gen(function*() {
      const cache = yield* DeviceCache
      assert.instanceOf(yield* Effect.flip(cache.get("a")), NoValue)
      assert.instanceOf(yield* Effect.flip(cache.put("a", new Uint8Array(memory + 1))), CacheFull)
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.lose(0, "IllegalAddress")
      const failure = yield* Effect.flip(cache.put("a", makeBytes(10)))
      assert.instanceOf(failure, CacheFailed)
      assert.match(failure.message, /^the GPU is lost: /)
    }).pipe(Effect.provide(layer)))

  it.live("leaves nothing on the device", () =>
    Effect.gen(function*() {
      yield* Effect.flatMap(DeviceCache, (cache) => cache.put("a", makeBytes(10))).pipe(
        Effect.provide(DeviceCache.layer)
      )
      const runtime = yield* CudaRuntime.CudaRuntime
      assert.deepStrictEqual(yield* runtime.liveResources, nothingHeld)
    }).pipe(Effect.provide(machine)))
})
