/**
 * The GPU if there is one, otherwise a simulated device: for programs, examples and services that should run anywhere.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { formatVersion } from "../CudaError.ts"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import * as NativeRuntime from "./NativeRuntime.ts"
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
 * Any other failure of the native runtime is a failure of this layer: it hides neither a GPU that does not work nor a
 * `libraryPath` that does not exist.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: AutoOptions = {}): Layer.Layer<CudaRuntime, CudaError> =>
  Layer.effect(
    CudaRuntime,
    NativeRuntime.make(options.native).pipe(
      Effect.tap(({ devices, driverVersion }) =>
        Effect.logInfo(`CUDA runtime: ${devices.length} × ${devices[0]!.name}, CUDA ${formatVersion(driverVersion)}`)
      ),
      Effect.catchReasons("CudaError", {
        LibraryNotFound: (_, error) =>
          options.native?.libraryPath === undefined ? simulated(options, error) : Effect.fail(error),
        FunctionMissing: (_, error) => simulated(options, error),
        DriverTooOld: (_, error) => simulated(options, error),
        NoDevice: (_, error) => simulated(options, error),
        StubLibrary: (_, error) => simulated(options, error)
      })
    )
  )

const simulated = (options: AutoOptions, error: CudaError) =>
  Effect.gen(function*() {
    yield* Effect.logInfo(`CUDA runtime: simulated, because the native runtime fails with ${error.reason._tag}`)
    yield* Effect.logDebug(error.message)
    return Context.get(yield* Layer.build(SimulatedRuntime.layer(options.simulated)), CudaRuntime)
  })
