/**
 * The health of a real GPU: plausible numbers, this process among its processes, and energy that grows.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaDevice, CudaHealth, CudaMemory } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { load } from "../../src/cuda/nvmlLibrary.ts"
import { gpu, nativeRig } from "../support/gpu.ts"

const found = gpu === undefined ? undefined : await load(process.env["EFFECT_CUDA_NVML"])

describe.skipIf(found?._tag !== "Loaded")("on a GPU", () => {
  layer(CudaHealth.layer().pipe(Layer.provideMerge(nativeRig.layer)), { excludeTestServices: true })(
    "the health of a GPU",
    (it) => {
      it.effect("is plausible", () =>
        Effect.gen(function*() {
          const device = yield* CudaDevice.current
          const sample = yield* CudaHealth.sample()
          const { memory, power, powerLimit, temperature, utilization } = sample
          assert.isTrue(temperature === undefined || temperature > 10 && temperature < 110, String(temperature))
          assert.isTrue(power === undefined || power > 5 && power < 2000, String(power))
          assert.isTrue(powerLimit === undefined || powerLimit > 30 && powerLimit < 2000, String(powerLimit))
          if (memory !== undefined) {
            assert.approximately(memory.total, device.totalMemory, 0.1 * device.totalMemory)
            assert.isAtMost(memory.used + memory.free, memory.total)
          }
          if (utilization !== undefined) {
            assert.isAtMost(utilization.gpu, 1)
            assert.isAtMost(utilization.memory, 1)
          }
          yield* Effect.logInfo(sample)
        }))

      it.effect("has this process and its memory, where the container shows them", (context) =>
        Effect.gen(function*() {
          yield* CudaMemory.allocate(2 ** 28)
          const mine = (yield* CudaHealth.processes()).find(({ pid }) => pid === process.pid)
          if (mine === undefined) return context.skip("the driver does not list this process")
          if (mine.bytes !== undefined) assert.isAtLeast(mine.bytes, 2 ** 28)
        }))

      it.effect("counts energy", () =>
        Effect.gen(function*() {
          const before = yield* CudaHealth.energy()
          yield* Effect.sleep("300 millis")
          assert.isAbove(yield* CudaHealth.energy(), before)
        }))
    }
  )
})
