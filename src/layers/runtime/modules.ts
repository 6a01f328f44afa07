/**
 * Modules, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { CUlibrary } from "../../cuda/handles.ts"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceMemoryRef } from "./memory.ts"
import type { ResourceState } from "./resources.ts"

/**
 * A reference to a loaded code image.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModuleRef {
  /** The `CUlibrary`. */
  readonly handle: CUlibrary
  /** Size of the image in bytes. */
  readonly byteLength: number
  readonly state: ResourceState
}

/**
 * Options for loading a module.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModuleOptions {
  /** How long to wait for an idle device before loading code into it blocks the JS thread. */
  readonly idleTimeout: Duration.Duration
  /**
   * Called with the loaded module, synchronously, as soon as the runtime keeps it. An interruption can come before the effect returns
   * the module: the caller must then unload it.
   */
  readonly onLoaded?: ((module: ModuleRef) => void) | undefined
}

/**
 * Operations on modules.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModuleOperations {
  /** Loads a copy of an image (`cuLibraryLoadData`), off the JS thread. Fails if the driver cannot use the image. */
  readonly moduleLoad: (image: Uint8Array, options: ModuleOptions) => Effect.Effect<ModuleRef, CudaError>
  /** Refuses new uses, and unloads the module (`cuLibraryUnload`) once no device has work. Does not wait for that. */
  readonly moduleUnload: (module: ModuleRef) => Effect.Effect<void, CudaError>
  /**
   * The device memory of a global variable (`cuLibraryGetGlobal`). It lives as long as the module, and is never
   * released separately.
   */
  readonly moduleGlobal: (
    module: ModuleRef,
    name: string,
    deviceIndex: number
  ) => Effect.Effect<DeviceMemoryRef, CudaError>
}
