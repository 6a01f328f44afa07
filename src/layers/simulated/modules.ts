/**
 * Modules of a simulated runtime. Every image is accepted, and contains the kernels and global variables in the runtime's options.
 */
import * as Effect from "effect/Effect"
import { statuses, success } from "../../cuda/status.ts"
import type { ModuleOptions } from "../CudaRuntime.ts"
import { ModuleResource } from "../shared/moduleResources.ts"
import type { ModuleBackend } from "../shared/modules.ts"
import type { DeviceMemoryResource } from "../shared/resources.ts"
import type { DriverFailure } from "../shared/waits.ts"
import type { AddressSpace } from "./addressSpace.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { Storage } from "./model/Storage.ts"
import { SimulatedDeviceMemory } from "./resources.ts"

export class SimulatedModules implements ModuleBackend {
  global: DeviceMemoryResource | undefined
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace
  /** The variables created so far for each module, by device and name. */
  readonly #variables = new Map<ModuleResource, Map<string, SimulatedDeviceMemory>>()

  constructor(driver: SimulatedDriver, addresses: AddressSpace) {
    this.#driver = driver
    this.#addresses = addresses
  }

  load(
    image: Uint8Array,
    options: ModuleOptions,
    adopt: (module: ModuleResource) => void
  ): Effect.Effect<ModuleResource, DriverFailure> {
    return Effect.suspend(() => {
      const { model, owner } = this.#driver
      const status = this.#driver.begin("cuLibraryLoadData", this.#driver.device(0))
      if (status !== success) return this.#driver.fail(status)
      const module = new ModuleResource(owner, model.makeHandle(), image.byteLength, options)
      this.#variables.set(module, new Map())
      adopt(module)
      return Effect.succeed(module)
    })
  }

  unload(module: ModuleResource): number {
    const status = this.#driver.begin("cuLibraryUnload", this.#driver.device(0))
    for (const memory of this.#variables.get(module)?.values() ?? []) this.#addresses.forget(memory)
    this.#variables.delete(module)
    return status
  }

  findGlobal(module: ModuleResource, name: string, deviceIndex: number): number {
    const status = this.#driver.begin("cuLibraryGetGlobal", this.#driver.device(deviceIndex))
    if (status !== success) return status
    const memory = this.variable(module, name, deviceIndex)
    if (memory === undefined) {
      this.#driver.missing = this.describeGlobals()
      return statuses.NotFound.code
    }
    this.global = memory
    return success
  }

  /** Lists the global variables, for messages. */
  describeGlobals(): string {
    return describeSymbols("globals", [...this.#driver.options.globals.keys()])
  }

  /** A module's variable on a device, created on first use; undefined if the options have no variable of that name. */
  variable(module: ModuleResource, name: string, deviceIndex: number): SimulatedDeviceMemory | undefined {
    const { model, options, owner } = this.#driver
    const key = `${deviceIndex} ${name}`
    const made = this.#variables.get(module)
    const initial = options.globals.get(name)
    if (made === undefined || initial === undefined || made.has(key)) return made?.get(key)
    const storage = new Storage(this.#driver.device(deviceIndex), initial.byteLength)
    storage.touch().set(initial)
    const memory = new SimulatedDeviceMemory(owner, storage, model.makeAddress(initial.byteLength), deviceIndex)
    made.set(key, memory)
    this.#addresses.add(memory)
    return memory
  }
}

/** Maximum number of names in a message. */
const mostNames = 20

/** Lists the symbols of simulated modules, for the failure of a lookup. */
export const describeSymbols = (option: "kernels" | "globals", names: ReadonlyArray<string>): string => {
  const what = option === "kernels" ? "kernels" : "global variables"
  const more = names.length > mostNames ? ` and ${names.length - mostNames} more` : ""
  const known = names.length === 0 ? `no ${what}` : `the ${what} ${names.slice(0, mostNames).join(", ")}${more}`
  return `The device is simulated: its modules have ${known}. Add others with the option ${option} of SimulatedRuntime.`
}
