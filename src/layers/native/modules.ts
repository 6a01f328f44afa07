/**
 * Modules on the driver. `ModuleLoader` loads and unloads them.
 */
import * as Effect from "effect/Effect"
import type { CUdeviceptr } from "../../cuda/handles.ts"
import { success } from "../../cuda/status.ts"
import type { ModuleOptions } from "../CudaRuntime.ts"
import type { ModuleResource } from "../shared/moduleResources.ts"
import type { ModuleBackend } from "../shared/modules.ts"
import { DeviceMemoryResource } from "../shared/resources.ts"
import type { DriverFailure } from "../shared/waits.ts"
import { Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import type { ModuleLoader } from "./ModuleLoader.ts"

export class NativeModules implements ModuleBackend {
  global: DeviceMemoryResource | undefined
  readonly #driver: Driver
  readonly #loader: ModuleLoader
  readonly #address = new Out<CUdeviceptr>()
  readonly #bytes = new Out()

  constructor(driver: Driver, loader: ModuleLoader) {
    this.#driver = driver
    this.#loader = loader
  }

  load(
    image: Uint8Array,
    options: ModuleOptions,
    adopt: (module: ModuleResource) => void
  ): Effect.Effect<ModuleResource, DriverFailure> {
    return Effect.tapError(
      this.#loader.load(image, options, adopt),
      ({ status }) => Effect.sync(() => this.#driver.note(status))
    )
  }

  unload(module: ModuleResource): number {
    return this.#driver.answer("cuLibraryUnload", this.#loader.unload(module.handle))
  }

  findGlobal(module: ModuleResource, name: string, deviceIndex: number): number {
    const { calls, owner } = this.#driver
    const call = () => calls.cuLibraryGetGlobal(this.#address.words, this.#bytes.words, module.handle, name)
    const status = this.#driver.inContextOf(deviceIndex, "cuLibraryGetGlobal", call)
    if (status === success) {
      this.global = new DeviceMemoryResource(owner, this.#address.value, this.#bytes.value, deviceIndex)
    }
    return status
  }
}
