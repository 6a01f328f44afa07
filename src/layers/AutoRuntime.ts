/**
 * The GPU if there is one, else a simulated device: for programs, examples and services that are to run anywhere.
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
 * Options for either runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface AutoOptions {
  readonly native?: NativeRuntime.NativeOptions | undefined
  readonly simulated?: SimulatedRuntime.SimulatedOptions | undefined
}

/**
 * Provides `CudaRuntime` on the machine's GPUs, or on a simulated device when the machine has no driver, no GPU, or a driver
 * that is too old. Says in the log which one it is, and why.
 *
 * **Details**
 *
 * Every other failure of the native runtime is one of this layer too: a GPU that is there but does not work is not hidden,
 * nor is a library that the program named (`libraryPath`, `EFFECT_CUDA_LIBRARY`) and that is not there, nor koffi that cannot be loaded.
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
        LibraryNotFound: ({ isNamed }, error) => isNamed ? Effect.fail(error) : simulated(options, error),
        FunctionMissing: (_, error) => simulated(options, error),
        DriverTooOld: (_, error) => simulated(options, error),
        NoDevice: (_, error) => simulated(options, error),
        StubLibrary: (_, error) => simulated(options, error)
      })
    )
  )

const simulated = (options: AutoOptions, error: CudaError) =>
  Effect.gen(function*() {
    yield* Effect.logInfo(`CUDA runtime: simulated, since the native one fails with ${error.reason._tag}`)
    yield* Effect.logDebug(error.message)
    return Context.get(yield* Layer.build(SimulatedRuntime.layer(options.simulated)), CudaRuntime)
  })
