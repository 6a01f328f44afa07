/**
 * Races between devices: work on one device with memory of another.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaDevice, CudaKernel, CudaMemory, CudaModule, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import { program, signatures } from "../support/kernels.ts"
import { reportsOf } from "./support.ts"

const launched = (order: (upload: CudaStream.CudaStream, compute: CudaStream.CudaStream) => Effect.Effect<unknown>) =>
  Effect.gen(function*() {
    const module = yield* CudaModule.load(yield* program)
    const add = yield* CudaKernel.get(module, "add", signatures.add)
    yield* CudaDevice.enablePeerAccess(1, 0)
    const [upload, compute] = [yield* CudaStream.make({ device: 0 }), yield* CudaStream.make({ device: 1 })]
    const far = yield* CudaMemory.allocate(1024, { device: 0 })
    const near = yield* CudaMemory.allocate(1024, { device: 1 })
    yield* CudaMemory.fill(near, 0, compute)
    yield* CudaMemory.fill(far, 0, upload)
    yield* order(upload, compute)
    yield* CudaKernel.launch(add, { grid: 1, block: 256 }, [near, far, 256], compute)
    yield* CudaDevice.synchronize(1)
  })

describe("a launch that reads memory of another device", () => {
  it.live("races with writes there that it does not wait for", () =>
    Effect.gen(function*() {
      const reports = yield* reportsOf(launched(() => Effect.void))
      const [race] = reports
      assert.lengthOf(reports, 1)
      assert.include(race?.message, "on device 0")
      assert.match(race?.message ?? "", /CudaKernel\.launch .* on stream \d+ of device 1/)
    }))

  it.live("does not race with those that it waits for", () =>
    Effect.gen(function*() {
      const waiting = launched((upload, compute) => Effect.orDie(CudaStream.waitStream(compute, upload)))
      assert.lengthOf(yield* reportsOf(waiting), 0)
    }))
})
