/**
 * Modules: the shared operations, and the backend functions they use.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { success } from "../../cuda/status.ts"
import { CudaError } from "../../CudaError.ts"
import type { ModuleOptions } from "../CudaRuntime.ts"
import type { ModuleOperations } from "../runtime/modules.ts"
import { inBytes } from "../runtime/words.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument } from "./failures.ts"
import { isGone, ownModule } from "./moduleResources.ts"
import type { ModuleResource } from "./moduleResources.ts"
import { wrongOf } from "./resources.ts"
import type { DeviceMemoryResource } from "./resources.ts"
import type { DriverFailure } from "./waits.ts"

export interface ModuleBackend {
  /** The variable found by `findGlobal`. */
  readonly global: DeviceMemoryResource | undefined
  /**
   * Loads an image off the JS thread. Calls `adopt` in the turn in which loading ends, so that no interruption loses the module. A module
   * whose load was interrupted before that is unloaded.
   */
  readonly load: (
    image: Uint8Array,
    options: ModuleOptions,
    adopt: (module: ModuleResource) => void
  ) => Effect.Effect<ModuleResource, DriverFailure>
  /** Unloads a module, immediately or once the driver would not block. */
  readonly unload: (module: ModuleResource) => number
  readonly findGlobal: (module: ModuleResource, name: string, deviceIndex: number) => number
}

export const moduleOperations = (core: Core): ModuleOperations => ({
  moduleLoad: (image, options) => Effect.suspend(() => loadModule(core, image, options)),
  moduleUnload: (module) => Effect.suspend(() => unloadModule(core, ownModule(module))),
  moduleGlobal: (module, name, device) => variable(core, ownModule(module), name, device)
})

const loadModule = (
  core: Core,
  image: Uint8Array,
  options: ModuleOptions
): Effect.Effect<ModuleResource, CudaError> => {
  const operation = "CudaModule.load"
  const { backend } = core
  const refused = refuseClosed(core, operation) ?? refuseImage(core, operation, image)
  if (refused !== undefined) return refused
  const { idleTimeout, onLoaded } = options
  let adopted: ModuleResource | undefined
  const adopt = (module: ModuleResource) => {
    adopted = module
    if (core.closed) {
      module.state = "released"
      backend.modules.unload(module)
      return
    }
    core.modules.add(module)
    onLoaded?.(module)
  }
  const failed = (failure: DriverFailure) =>
    refuseClosed(core, operation) ?? Effect.fail(imageError(core, operation, image.byteLength, failure))
  const loaded = Effect.matchEffect(backend.modules.load(image, { idleTimeout }, adopt), {
    onFailure: failed,
    onSuccess: (module) => refuseClosed(core, operation) ?? Effect.succeed(module)
  })
  return Effect.onError(loaded, () => adopted === undefined ? Effect.void : Effect.ignore(unloadModule(core, adopted)))
}

const refuseClosed = (core: Core, operation: string): Effect.Effect<never, CudaError> | undefined =>
  core.closed ? refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" }) : undefined

const refuseImage = (core: Core, operation: string, image: Uint8Array) => {
  const expected = "the bytes of PTX, a cubin or a fatbin"
  if (!(image instanceof Uint8Array)) return refuseArgument(operation, "image", typeof image, expected)
  return image.byteLength === 0 && core.backend.kind === "native"
    ? refuseArgument(operation, "image", image, `${expected}; only the simulated runtime accepts an empty image`)
    : undefined
}

const imageError = (core: Core, operation: string, byteLength: number, { call, log, status }: DriverFailure) => {
  const error = core.error(operation, status, 0, `an image of ${inBytes(byteLength)}`, call)
  return log === undefined ? error : new CudaError({ ...error, log })
}

const unloadModule = (core: Core, module: ModuleResource): Effect.Effect<void, CudaError> => {
  const operation = "CudaModule.release"
  const { backend } = core
  if (module.owner !== backend) return refuseModule(core, operation, module)
  if (module.state !== "live") return Effect.void
  module.state = "released"
  core.modules.delete(module)
  for (const memory of module.globals.values()) memory.state = "released"
  const status = backend.modules.unload(module)
  return status === success ? Effect.void : core.failOn(operation, status, 0, String(module))
}

export const refuseModule = (
  core: Core,
  operation: string,
  module: ModuleResource
): Effect.Effect<never, CudaError> => {
  const wrong = wrongOf(module)
  if (wrong !== undefined) return refuseArgument(operation, wrong.argument, wrong.given, wrong.expected)
  return refuse(operation, {
    _tag: module.owner === core.backend ? "ResourceReleased" : "ForeignResource",
    resource: String(module)
  })
}

export const refuseName = (operation: string, name: string) =>
  typeof name === "string" && name !== "" && !name.includes("\0")
    ? undefined
    : refuseArgument(operation, "name", name, "a symbol name, without NUL characters")

const variable = (core: Core, module: ModuleResource, name: string, deviceIndex: number) => {
  const operation = "CudaModule.global"
  return core.onDevice(operation, deviceIndex, (): Effect.Effect<DeviceMemoryResource, CudaError> => {
    if (isGone(core.backend, module)) return refuseModule(core, operation, module)
    const refused = refuseName(operation, name)
    if (refused !== undefined) return refused
    const key = `${deviceIndex} ${name}`
    const known = module.globals.get(key)
    if (known !== undefined) return Effect.succeed(known)
    const subject = `variable ${name} of ${module} on device ${deviceIndex}`
    const find = (): number => {
      const status = core.backend.modules.findGlobal(module, name, deviceIndex)
      if (status === success) module.globals.set(key, core.backend.modules.global!)
      return status
    }
    return Effect.map(
      whenIdle(core, operation, module, deviceIndex, subject, find),
      () => module.globals.get(key)!
    )
  })
}

/**
 * Makes a call that blocks in the driver until the device is idle. Waits for an idle device first, so that the call
 * does not block the JS thread; once the module's idle timeout expires, makes the call anyway.
 */
export const whenIdle = (
  core: Core,
  operation: string,
  module: ModuleResource,
  deviceIndex: number,
  subject: string,
  call: () => number
): Effect.Effect<void, CudaError> => {
  const { backend } = core
  const { idleTimeout } = module.options
  const refuseGone = () => isGone(backend, module) ? refuseModule(core, operation, module) : undefined
  const now = (): Effect.Effect<void, CudaError> => {
    const refused = refuseGone()
    if (refused !== undefined) return refused
    const status = call()
    return status === success ? Effect.void : core.failOn(operation, status, deviceIndex, subject)
  }
  // Called, not returned as an effect: a fiber may yield before an effect begins, and other fibers make the device busy.
  if (backend.devices.isIdle(deviceIndex) || Duration.isZero(idleTimeout)) return now()
  // The call is made in the turn that finds the device idle. A fiber that resumes later may find it busy again.
  const atIdle = core.wait(
    operation,
    deviceIndex,
    subject,
    (onDone) =>
      backend.devices.watchIdle(deviceIndex, (status, stage) => {
        onDone(status === success && refuseGone() === undefined ? call() : status, stage)
      })
  )
  const checked = Effect.andThen(atIdle, Effect.suspend(() => refuseGone() ?? Effect.void))
  if (!Duration.isFinite(idleTimeout)) return checked
  return Effect.flatMap(
    Effect.timeoutOption(checked, idleTimeout),
    Option.match({ onNone: now, onSome: () => Effect.void })
  )
}
