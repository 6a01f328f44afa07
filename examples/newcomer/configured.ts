/** Layers with Config: the environment chooses the device and the size of its memory pool. */
import { AutoRuntime, CudaDevice, CudaMemory, CudaMemoryPool, CudaRuntime } from "effect-cuda"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const settings = Config.all({
  device: Config.Int("GPU_DEVICE").pipe(Config.withDefault(0)),
  poolBytes: Config.Int("GPU_POOL_BYTES").pipe(Config.withDefault(2 ** 28))
})

/** Memory of the configured device, up to the configured size. */
export class Scratch extends Context.Service<Scratch, CudaMemoryPool.MemoryPool>()("examples/newcomer/Scratch") {
  static readonly layer = Layer.effect(
    Scratch,
    Effect.gen(function*() {
      const { device, poolBytes } = yield* settings
      return yield* CudaMemoryPool.make({ device, maxBytes: poolBytes })
    })
  )
}

/** Needs nothing from its user: a GPU, or else simulated devices, as many as `SIMULATED_DEVICES` says. */
export const layer = Scratch.layer.pipe(
  Layer.provideMerge(AutoRuntime.layerConfig({
    simulated: { devices: Config.Int("SIMULATED_DEVICES").pipe(Config.withDefault(1)) }
  }))
)

export const report = Effect.gen(function*() {
  const pool = yield* Scratch
  const runtime = yield* CudaRuntime.CudaRuntime
  const buffer = yield* CudaMemory.allocate(1 << 20, { pool })
  const device = yield* CudaDevice.get(buffer.deviceIndex)
  return { devices: runtime.devices.length, device: device.index, name: device.name }
}).pipe(Effect.scoped)

export const program = report.pipe(Effect.provide(layer))
