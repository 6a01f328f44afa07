/**
 * A faulting kernel on a GPU: every wait of its device fails with the reason, every later call reports the origin, and scopes
 * close. In its own file, because afterwards the process cannot use any device.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaDevice, CudaEvent, CudaMemory, CudaRuntime, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { failsWith } from "../support/assertions.ts"
import { gpu, launchFault, nativeRig } from "../support/gpu.ts"
import { Busy } from "../support/Rig.ts"

describe.skipIf(gpu === undefined)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("a faulting kernel", (it) => {
    it.effect.skipIf(nativeRig.deviceCount < 2)(
      "opens the second device first",
      () => Effect.scoped(CudaStream.make({ device: 1 }))
    )

    it.effect("fails every outstanding wait of its device with the reason, promptly", () =>
      Effect.gen(function*() {
        const busy = yield* Busy
        const runtime = yield* CudaRuntime.CudaRuntime
        const inner = Effect.gen(function*() {
          const [faulty, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
          const event = yield* CudaEvent.make()
          const device = yield* CudaMemory.allocate(64)
          const host = yield* CudaMemory.allocateHost(64)
          yield* busy.enqueue(other, 20)
          yield* busy.enqueue(faulty, 20)
          yield* launchFault(faulty)
          yield* CudaMemory.copy(device, host, faulty)
          yield* CudaEvent.record(event, faulty)
          yield* busy.enqueue(other, 10_000)
          const waits = [
            ...Array.from({ length: 100 }, () => CudaEvent.synchronize(event)),
            CudaStream.synchronize(faulty),
            CudaStream.synchronize(other)
          ]
          const start = performance.now()
          const fibers = yield* Effect.forEach(waits, (wait) =>
            Effect.forkChild(failsWith(wait, "IllegalAddress"), { startImmediately: true }))
          yield* Effect.forEach(fibers, Fiber.join)
          assert.isBelow(performance.now() - start, 1000)
          const late = yield* Effect.flip(CudaStream.query(other))
          assert.isTrue(late.isSticky)
          assert.isFalse(late.isRetryable)
          assert.strictEqual(late.origin?.deviceIndex, 0)
          assert.include(late.message, "contexts of this process were lost earlier")
          yield* failsWith(CudaEvent.record(event, other), "IllegalAddress")
          yield* failsWith(CudaMemory.copy(device, host, other), "IllegalAddress")
          yield* failsWith(CudaMemory.allocate(64), "IllegalAddress")
          yield* failsWith(CudaEvent.make(), "IllegalAddress")
          yield* failsWith(CudaStream.make(), "IllegalAddress")
        })
        yield* Effect.scoped(inner)
        const live = yield* runtime.liveResources
        assert.isTrue(
          Object.values(live).every((count) =>
            count === 0
          ),
          JSON.stringify(live)
        )
      }))

    it.effect.skipIf(nativeRig.deviceCount < 2)("ends the contexts of other devices too", () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(CudaStream.make({ device: 1 }))
        assert.strictEqual(error.reason._tag, "IllegalAddress")
        assert.strictEqual(error.origin?.deviceIndex, 0)
        assert.strictEqual(yield* CudaDevice.attribute("warpSize", 1), 32)
      }))
  })
})
