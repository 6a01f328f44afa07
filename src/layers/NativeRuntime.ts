/**
 * The runtime on NVIDIA GPUs: `CudaRuntime` on the CUDA driver API, called through koffi.
 *
 * Importing this module loads nothing native. Building the layer finds and loads the driver library. Each device's
 * primary context is retained on first use, and released with the layer.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import type { CudaRuntimeService, WaitOptions } from "./CudaRuntime.ts"

/**
 * Options for the native runtime. All are optional.
 *
 * @category models
 * @since 0.1.0
 */
export interface NativeOptions {
  /**
   * Path of the driver library. Default: `EFFECT_CUDA_LIBRARY` from the configuration, otherwise the usual locations of
   * the platform.
   */
  readonly libraryPath?: string | undefined
  /**
   * Path of the NVRTC library, which `CudaProgram.compile` loads on first use. Default: `EFFECT_CUDA_NVRTC` from the
   * configuration, otherwise the usual locations of toolkits, Python packages and containers.
   */
  readonly nvrtcPath?: string | undefined
  /** The on-disk cache of compiled programs. */
  readonly programCache?: {
    /** Whether to cache programs that do not specify it in their own options. Default: true. */
    readonly enabled?: boolean | undefined
    /**
     * The folder. It must belong to the user and be writable by no one else; otherwise it is not used at all. It is
     * created with mode 0700. Default: `EFFECT_CUDA_CACHE` from the configuration, where `off` disables the cache;
     * otherwise `effect-cuda` in the user's cache folder (`XDG_CACHE_HOME`, `~/.cache`, `LOCALAPPDATA`).
     */
    readonly folder?: string | undefined
    /**
     * Approximate size limit in bytes. The least recently used programs are removed from time to time. Default: 512 MiB.
     */
    readonly maxBytes?: number | undefined
  } | undefined
  /**
   * How waits detect that the GPU has finished. By default they poll for 200 microseconds, then the GPU wakes the event
   * loop. `CudaRuntime.CurrentWaitOptions` overrides this for a region.
   */
  readonly wait?: WaitOptions | undefined
  /**
   * Whether devices may access the memory of each other from the start: `"all"` gives every device that the program uses access to all
   * others, where the driver offers it, as `CudaDevice.enablePeerAccess` does. Default: `"none"`.
   */
  readonly peers?: "none" | "all" | undefined
  /** Pinned host memory. */
  readonly pinned?: {
    /**
     * Maximum size of pinned memory in bytes. Allocating more fails with `OutOfMemory`. Default: the size of host
     * memory.
     */
    readonly maxBytes?: number | undefined
    /** Maximum size of released memory kept for reuse, in bytes. Default: 1 GiB. */
    readonly keepBytes?: number | undefined
  } | undefined
}

/**
 * Creates the runtime in a scope.
 *
 * **Details**
 *
 * Fails with `KoffiNotLoaded`, `LibraryNotFound` (which lists every location tried), `FunctionMissing`, `DriverTooOld`, `NoDevice`, or
 * the status of a driver call that failed. Calls `cuInit`, off the JS thread.
 *
 * **Example** (A runtime without a layer)
 *
 * ```ts
 * import { NativeRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const version = Effect.map(NativeRuntime.make(), (runtime) => runtime.driverVersion).pipe(Effect.scoped)
 * ```
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
 * @see {@link make} for the failures of building the layer
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: NativeOptions = {}): Layer.Layer<CudaRuntime, CudaError> =>
  Layer.effect(CudaRuntime, make(options))

/**
 * Like `layer`, with options from the program's `ConfigProvider`: one `Config` for all, or one per option. Fails with `ConfigError` as well.
 *
 * **Example** (Options from environment variables)
 *
 * ```ts
 * import { NativeRuntime } from "effect-cuda"
 * import * as Config from "effect/Config"
 *
 * export const layer = NativeRuntime.layerConfig({
 *   wait: { pollFor: Config.Duration("GPU_POLL_FOR").pipe(Config.withDefault("200 micros")) },
 *   pinned: { maxBytes: Config.Int("GPU_PINNED_BYTES") }
 * })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<NativeOptions>
): Layer.Layer<CudaRuntime, CudaError | Config.ConfigError> =>
  Layer.unwrap(
    Effect.flatMap(Effect.promise(() => import("effect/Config")), ({ unwrap }) =>
      Effect.map(unwrap<NativeOptions>(options), layer))
  )
