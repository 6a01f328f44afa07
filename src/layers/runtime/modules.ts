/**
 * Modules in the runtime service.
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
 * An image of code that was loaded.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModuleRef {
  /** The `CUlibrary`. */
  readonly handle: CUlibrary
  /** Bytes of the image. */
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
  /** How long loading code into a device waits for the device to be idle, before the driver waits on the JS thread. */
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
  /** `cuLibraryLoadData`, of a copy of the image, off the JS thread. Fails for an image that the driver cannot use. */
  readonly moduleLoad: (image: Uint8Array, options: ModuleOptions) => Effect.Effect<ModuleRef, CudaError>
  /** Refuses new uses, and `cuLibraryUnload` once no device has work; does not wait for that. */
  readonly moduleUnload: (module: ModuleRef) => Effect.Effect<void, CudaError>
  /** `cuLibraryGetGlobal`: a variable's memory on a device. It lives as long as the module and is nobody's to free. */
  readonly moduleGlobal: (module: ModuleRef, name: string, device: number) => Effect.Effect<DeviceMemoryRef, CudaError>
}
