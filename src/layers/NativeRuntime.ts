/**
 * The runtime on NVIDIA GPUs: `CudaRuntime` on the CUDA driver API, called through koffi.
 *
 * Importing this module loads nothing native; building the layer finds and loads the driver's library. Each device's
 * primary context is retained on its first use and released with the layer.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import type { CudaRuntimeService, WaitOptions } from "./CudaRuntime.ts"

/**
 * Options for the native runtime. Everything has a default.
 *
 * @category models
 * @since 0.1.0
 */
export interface NativeOptions {
  /**
   * The driver's library. Without it `EFFECT_CUDA_LIBRARY` is read from the configuration, and without that the
   * platform's usual places are tried.
   */
  readonly libraryPath?: string | undefined
  /**
   * The NVRTC library, which `CudaProgram.compile` loads on first use. Default: `EFFECT_CUDA_NVRTC` from the
   * configuration, otherwise the usual places of toolkits, Python packages and containers.
   */
  readonly nvrtcPath?: string | undefined
  /** The on-disk cache of compiled programs. */
  readonly programCache?: {
    /** Whether to cache programs whose own options do not say. Default true. */
    readonly enabled?: boolean | undefined
    /**
     * The folder. It must belong to the user and be writable for no one else; programs are neither read from nor written
     * to any other. It is created with mode 0700. Default: `EFFECT_CUDA_CACHE` from the configuration, where `off`
     * disables the cache; otherwise `effect-cuda` in the user's cache folder (`XDG_CACHE_HOME`, `~/.cache`,
     * `LOCALAPPDATA`).
     */
    readonly folder?: string | undefined
    /** The approximate size limit in bytes: the least recently used programs are removed now and then. Default 512 MiB. */
    readonly maxBytes?: number | undefined
  } | undefined
  /**
   * How waits learn that the GPU is done: polled for 200 microseconds, then woken by the GPU, unless it says otherwise. A
   * region can have its own with `CudaRuntime.CurrentWaitOptions`.
   */
  readonly wait?: WaitOptions | undefined
  /** Pinned host memory. */
  readonly pinned?: {
    /** Pinned at most, in bytes; more is an `OutOfMemory` failure. Default: the machine's memory. */
    readonly maxBytes?: number | undefined
    /** Kept at most for reuse after its release, in bytes. Default 1 GiB. */
    readonly keepBytes?: number | undefined
  } | undefined
}

/**
 * Makes the runtime for the life of a scope.
 *
 * **Details**
 *
 * Fails with `KoffiNotLoaded`, `LibraryNotFound` (with every place that was tried), `FunctionMissing`, `DriverTooOld`, `NoDevice`, or the
 * status of the driver call that failed. Calls `cuInit`, off the JS thread.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: NativeOptions = {}): Effect.Effect<CudaRuntimeService, CudaError, Scope.Scope> =>
  Effect.flatMap(Effect.promise(() => import("./native/start.ts")), ({ start }) => start(options))

/**
 * Provides `CudaRuntime` on the GPUs of this machine.
 *
 * **Example** (Running a program on a GPU)
 *
 * ```ts
 * import { CudaStream, NativeRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   yield* CudaStream.synchronize(stream)
 * }).pipe(Effect.scoped, Effect.provide(NativeRuntime.layer()))
 * ```
 *
 * @see {@link make} for what building the layer can fail with
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: NativeOptions = {}): Layer.Layer<CudaRuntime, CudaError> =>
  Layer.effect(CudaRuntime, make(options))
