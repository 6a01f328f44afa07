/**
 * Options of runtimes from a `ConfigProvider`.
 */
import { assert, describe, it } from "@effect/vitest"
import { AutoRuntime, CudaDevice, CudaRuntime, NativeRuntime } from "effect-cuda"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const providing = (values: { readonly [name: string]: string }) =>
  ConfigProvider.layer(ConfigProvider.fromEnv({ env: { EFFECT_CUDA_RUNTIME: "simulated", ...values } }))

describe("options of a runtime as Config", () => {
  const devices = AutoRuntime.layerConfig({ simulated: { devices: Config.Int("DEVICES") } })

  it.effect("come from the program's ConfigProvider", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* CudaDevice.count, 3)
    }).pipe(Effect.provide(Layer.provide(devices, providing({ DEVICES: "3" })))))

  it.effect("can be one Config", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* CudaDevice.count, 2)
    }).pipe(
      Effect.provide(Layer.provide(
        AutoRuntime.layerConfig(Config.map(Config.Int("DEVICES"), (count) => ({ simulated: { devices: count } }))),
        providing({ DEVICES: "2" })
      ))
    ))

  it.effect("fail with ConfigError if they are missing or malformed", () =>
    Effect.gen(function*() {
      for (const values of [{}, { DEVICES: "many" }]) {
        const error = yield* Effect.flip(
          Effect.provide(CudaRuntime.CudaRuntime, Layer.provide(devices, providing(values)))
        )
        assert.strictEqual(error._tag, "ConfigError")
      }
    }))

  it.effect("fail with CudaError if the runtime does not accept them", () =>
    Effect.gen(function*() {
      const layer = NativeRuntime.layerConfig({ pinned: { maxBytes: Config.Int("BYTES") } })
      const error = yield* Effect.flip(
        Effect.provide(CudaRuntime.CudaRuntime, Layer.provide(layer, providing({ BYTES: "-1" })))
      )
      assert(error._tag === "CudaError")
      assert.strictEqual(error.reason._tag, "InvalidArgument")
    }))
})
