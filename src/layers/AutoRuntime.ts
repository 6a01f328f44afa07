/**
 * The GPU if there is one, otherwise a simulated device: for programs, examples and services that should run anywhere.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { formatVersion, invalidArgument } from "../CudaError.ts"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import * as NativeRuntime from "./NativeRuntime.ts"
import { readVariable } from "./shared/configuration.ts"
import * as SimulatedRuntime from "./SimulatedRuntime.ts"

/**
 * Options for both runtimes.
 *
 * @category models
 * @since 0.1.0
 */
export interface AutoOptions {
  readonly native?: NativeRuntime.NativeOptions | undefined
  readonly simulated?: SimulatedRuntime.SimulatedOptions | undefined
}

/**
 * Provides `CudaRuntime` on the GPUs of this machine, or on a simulated device if the machine has no driver, no GPU, or
 * a driver that is too old. Logs which one it provides, and why.
 *
 * **Details**
 *
 * `EFFECT_CUDA_RUNTIME` in the configuration overrides the choice: `native` never simulates, and `simulated` never
 * looks for a GPU. Any other value fails with `InvalidArgument`.
 *
 * Any other failure of the native runtime is a failure of this layer, so it does not hide a broken GPU, a wrong library
 * path (`libraryPath`, `EFFECT_CUDA_LIBRARY`), or a missing koffi.
 *
 * **Example** (A program that runs anywhere)
 *
 * ```ts
 * import { AutoRuntime, CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = CudaDevice.current.pipe(
 *   Effect.map((device) => device.name),
 *   Effect.provide(AutoRuntime.layer({ simulated: { devices: 2 } }))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: AutoOptions = {}): Layer.Layer<CudaRuntime, CudaError> =>
  Layer.effect(
    CudaRuntime,
    Effect.flatMap(readVariable(operation, variable), (choice) => {
      switch (choice || undefined) {
        case undefined:
          return nativeOrSimulated(options)
        case "native":
          return native(options)
        case "simulated":
          return simulated(options, `as set by ${variable}`)
        default:
          return Effect.fail(invalidArgument(operation, variable, choice, `"native", "simulated", or no value`))
      }
    })
  )

/**
 * Like `layer`, with options from the program's `ConfigProvider`: one `Config` for all, or one per option. Fails with `ConfigError` as well.
 *
 * **Example** (Options from environment variables)
 *
 * ```ts
 * import { AutoRuntime } from "effect-cuda"
 * import * as Config from "effect/Config"
 *
 * export const layer = AutoRuntime.layerConfig({
 *   simulated: { devices: Config.Int("SIMULATED_DEVICES") }
 * })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<AutoOptions>
): Layer.Layer<CudaRuntime, CudaError | Config.ConfigError> =>
  Layer.unwrap(
    Effect.flatMap(Effect.promise(() => import("effect/Config")), ({ unwrap }) =>
      Effect.map(unwrap<AutoOptions>(options), layer))
  )

const operation = "AutoRuntime.layer"
const variable = "EFFECT_CUDA_RUNTIME"

const native = (options: AutoOptions) =>
  Effect.tap(
    NativeRuntime.make(options.native),
    ({ devices, driverVersion }) =>
      Effect.logInfo(`CUDA runtime: ${devices.length} × ${devices[0]!.name}, CUDA ${formatVersion(driverVersion)}`)
  )

const nativeOrSimulated = (options: AutoOptions) => {
  const instead = (error: CudaError) =>
    Effect.andThen(
      Effect.logDebug(error.message),
      simulated(options, `because the native runtime fails with ${error.reason._tag}`)
    )
  return Effect.catchReasons(native(options), "CudaError", {
    LibraryNotFound: ({ isNamed }, error) => isNamed ? Effect.fail(error) : instead(error),
    FunctionMissing: (_, error) => instead(error),
    DriverTooOld: (_, error) => instead(error),
    NoDevice: (_, error) => instead(error),
    StubLibrary: (_, error) => instead(error)
  })
}

const simulated = (options: AutoOptions, why: string) =>
  Effect.gen(function*() {
    yield* Effect.logInfo(`CUDA runtime: simulated, ${why}`)
    return Context.get(yield* Layer.build(SimulatedRuntime.layer(options.simulated)), CudaRuntime)
  })
