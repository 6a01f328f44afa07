/**
 * The Xid of a faulting kernel. In its own file, because afterwards the process cannot use any device.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaHealth, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { load } from "../../src/cuda/nvmlLibrary.ts"
import { failsWith } from "../support/assertions.ts"
import { gpu, launchFault, nativeRig } from "../support/gpu.ts"

const found = gpu === undefined ? undefined : await load(process.env["EFFECT_CUDA_NVML"])

describe.skipIf(found?._tag !== "Loaded")("on a GPU", () => {
  layer(CudaHealth.layer().pipe(Layer.provideMerge(nativeRig.layer)), { excludeTestServices: true })(
    "a faulting kernel",
    (it) => {
      it.effect("is reported as an Xid of its device, and health is still read", () =>
        Effect.gen(function*() {
          const first = yield* CudaHealth.xids({ device: 0, schedule: Schedule.spaced("10 millis") }).pipe(
            Stream.runHead,
            Effect.timeout("5 seconds"),
            Effect.forkChild({ startImmediately: true })
          )
          yield* Effect.sleep("100 millis")
          const stream = yield* CudaStream.make()
          yield* launchFault(stream)
          yield* failsWith(CudaStream.synchronize(stream), "IllegalAddress")
          const event = Option.getOrUndefined(yield* Fiber.join(first))
          assert.strictEqual(event?.deviceIndex, 0)
          assert.include([13, 31], event?.xid)
          yield* CudaHealth.sample()
        }))
    }
  )
})
