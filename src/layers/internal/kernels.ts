/**
 * The module and kernel operations of every runtime.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { kernelAttributes, settableKernelAttributes } from "../../cuda/flags.ts"
import type { DeviceAttribute, KernelAttribute, SettableKernelAttribute } from "../../cuda/flags.ts"
import type { ParameterKind } from "../../cuda/parameters.ts"
import { success } from "../../cuda/status.ts"
import { CudaError } from "../../CudaError.ts"
import type {
  BlockSuggestion,
  CudaRuntimeService,
  KernelRef,
  LaunchConfig,
  ModuleOptions,
  StreamRef
} from "../CudaRuntime.ts"
import type { KernelOperations } from "../runtime/kernels.ts"
import { enqueueOrdered } from "./accesses.ts"
import { Arguments } from "./arguments.ts"
import type { PointerSlot, Reach } from "./arguments.ts"
import type { DriverFailure } from "./Backend.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import { fits, LaunchShape, refuseShape } from "./launches.ts"
import { isGone, KernelResource, ownKernel, ownModule } from "./modules.ts"
import type { CodeOnDevice, DeviceLimits, KernelCode, ModuleResource } from "./modules.ts"
import { operation } from "./operation.ts"
import { ownStream, unusable } from "./resources.ts"
import type { AnyMemoryResource, DeviceMemoryResource, StreamResource } from "./resources.ts"

export const kernelOperations = (core: Core): KernelOperations => {
  const reach = makeReach(core)
  return {
    moduleLoad: (image, options) => Effect.suspend(() => loadModule(core, image, options)),
    moduleUnload: (module) => Effect.suspend(() => unloadModule(core, ownModule(module))),
    moduleGlobal: (module, name, device) => variable(core, ownModule(module), name, device),
    kernelGet: (module, name, parameters, device) => get(core, reach, ownModule(module), name, parameters, device),
    kernelAttribute: (kernel, attribute, device) => readAttribute(core, ownKernel(kernel), attribute, device),
    kernelSetAttribute: (kernel, attribute, value, device) =>
      setAttribute(core, ownKernel(kernel), attribute, value, device),
    ...occupancyOperations(core),
    kernelLaunch: operation(
      (kernel: KernelRef, config: LaunchConfig, values: ReadonlyArray<unknown>, stream: StreamRef) =>
        launch(core, ownKernel(kernel), config, values, ownStream(stream))
    )
  }
}

// Modules

const loadModule = (
  core: Core,
  image: Uint8Array,
  options: ModuleOptions
): Effect.Effect<ModuleResource, CudaError> => {
  const operation = "CudaModule.load"
  const { backend } = core
  const refused = refuseClosed(core, operation) ?? refuseImage(core, operation, image)
  if (refused !== undefined) return refused
  const failed = (failure: DriverFailure) =>
    refuseClosed(core, operation) ?? Effect.fail(imageError(core, operation, image.byteLength, failure))
  return Effect.matchEffect(backend.moduleLoad(image, options), {
    onFailure: failed,
    onSuccess: (module) => {
      if (core.closed) backend.moduleUnload(module)
      else core.modules.add(module)
      return refuseClosed(core, operation) ?? Effect.succeed(module)
    }
  })
}

const refuseClosed = (core: Core, operation: string): Effect.Effect<never, CudaError> | undefined =>
  core.closed ? refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" }) : undefined

const refuseImage = (core: Core, operation: string, image: Uint8Array) => {
  const expected = "PTX, a cubin or a fatbin, as bytes"
  if (!(image instanceof Uint8Array)) return refuseArgument(operation, "image", typeof image, expected)
  return image.byteLength === 0 && core.backend.kind === "native"
    ? refuseArgument(operation, "image", image, `${expected}: only programs of simulated devices have none`)
    : undefined
}

const imageError = (core: Core, operation: string, byteLength: number, { call, log, status }: DriverFailure) => {
  const error = core.error(operation, status, 0, `an image of ${byteLength} bytes`, call)
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
  const status = backend.moduleUnload(module)
  return status === success ? Effect.void : core.failOn(operation, status, 0, String(module))
}

const refuseModule = (core: Core, operation: string, module: ModuleResource): Effect.Effect<never, CudaError> =>
  refuse(operation, {
    _tag: module.owner === core.backend ? "ResourceReleased" : "ForeignResource",
    resource: String(module)
  })

const refuseName = (operation: string, name: string) =>
  typeof name === "string" && name !== "" && !name.includes("\0")
    ? undefined
    : refuseArgument(operation, "name", name, "the name of a symbol")

const variable = (core: Core, module: ModuleResource, name: string, device: number) => {
  const operation = "CudaModule.global"
  return core.onDevice(operation, device, (): Effect.Effect<DeviceMemoryResource, CudaError> => {
    if (isGone(core.backend, module)) return refuseModule(core, operation, module)
    const refused = refuseName(operation, name)
    if (refused !== undefined) return refused
    const key = `${device} ${name}`
    const known = module.globals.get(key)
    if (known !== undefined) return Effect.succeed(known)
    const subject = `variable ${name} of ${module} on device ${device}`
    const find = (): number => {
      const status = core.backend.globalFind(module, name, device)
      if (status === success) module.globals.set(key, core.backend.memory!)
      return status
    }
    return Effect.map(
      whenIdle(core, operation, module, device, subject, find),
      () => module.globals.get(key)!
    )
  })
}

// Kernels

const get = (
  core: Core,
  reach: Reach,
  module: ModuleResource,
  name: string,
  parameters: ReadonlyArray<ParameterKind>,
  device: number
) => {
  const operation = "CudaKernel.get"
  return core.onDevice(operation, device, (): Effect.Effect<KernelResource, CudaError> => {
    const { backend } = core
    if (isGone(backend, module)) return refuseModule(core, operation, module)
    const refused = refuseName(operation, name)
    if (refused !== undefined) return refused
    const code = module.codes.get(name) ?? find(core, module, name)
    if (typeof code === "number") return core.failOn(operation, code, device, `kernel ${name} of ${module}`)
    return Effect.flatMap(bring(core, operation, code, device), () => {
      const mismatch = refuseParameters(operation, code, parameters)
      if (mismatch !== undefined) return mismatch
      const args = new Arguments(parameters, reach)
      return Effect.succeed(new KernelResource(code, parameters, args, backend.argumentTable(args)))
    })
  })
}

/** Asks for a kernel by its name; the status when there is none. */
const find = (core: Core, module: ModuleResource, name: string): KernelCode | number => {
  const status = core.backend.kernelFind(module, name)
  if (status !== success) return status
  const code = core.backend.code!
  module.codes.set(name, code)
  return code
}

/** The parameters as the program declares them have the sizes that the driver reports, where it does. */
const refuseParameters = (operation: string, code: KernelCode, parameters: ReadonlyArray<ParameterKind>) => {
  const known = code.parameters
  if (known === undefined) return undefined
  if (known.length !== parameters.length) {
    return refuseArgument(operation, "parameters", `${parameters.length} kinds`, `the ${known.length} of ${code}`)
  }
  for (const [index, { kind, size }] of parameters.entries()) {
    const expected = known[index]!.size
    if (size === expected) continue
    return refuseArgument(
      operation,
      `parameters[${index}]`,
      `${kind} of ${size} bytes`,
      `${expected} bytes, as ${code} has there`
    )
  }
  return undefined
}

/** Sees to it that a kernel's code is on a device. */
const bring = (core: Core, operation: string, code: KernelCode, device: number): Effect.Effect<void, CudaError> =>
  core.onDevice(operation, device, () => {
    if (isGone(core.backend, code.module)) return refuseModule(core, operation, code.module)
    if (code.on[device] !== undefined) return Effect.void
    const subject = `${code} on device ${device}`
    const loadOnce = () => code.on[device] === undefined ? load(core, code, device) : success
    return whenIdle(core, operation, code.module, device, subject, loadOnce)
  })

/** Loads a kernel's code into a device, and reads what the kernel and the device allow. */
const load = (core: Core, code: KernelCode, device: number): number => {
  const { backend } = core
  let status = backend.kernelLoad(code, device)
  const kernelSays = (attribute: KernelAttribute): number => {
    if (status === success) status = backend.kernelAttribute(code, attribute, device)
    return backend.result
  }
  const deviceSays = (attribute: DeviceAttribute): number => {
    if (status === success) status = backend.attribute(device, attribute)
    return backend.result
  }
  const there: CodeOnDevice = {
    maxThreads: kernelSays("maxThreadsPerBlock"),
    staticShared: kernelSays("sharedSizeBytes"),
    dynamicShared: kernelSays("maxDynamicSharedSizeBytes"),
    limits: readLimits(deviceSays)
  }
  if (status === success) code.on[device] = there
  return status
}

const readLimits = (deviceSays: (attribute: DeviceAttribute) => number): DeviceLimits => ({
  grid: [deviceSays("maxGridDimX"), deviceSays("maxGridDimY"), deviceSays("maxGridDimZ")],
  block: [deviceSays("maxBlockDimX"), deviceSays("maxBlockDimY"), deviceSays("maxBlockDimZ")],
  sharedBytes: deviceSays("maxSharedMemoryPerBlockOptin"),
  clusters: deviceSays("clusterLaunch") !== 0,
  cooperative: deviceSays("cooperativeLaunch") !== 0,
  programmatic: deviceSays("computeCapabilityMajor") >= 9
})

/**
 * Makes a call for which the driver waits until a device has no work: at a moment when it has none, so that this thread does
 * not wait with it. When the module's idle timeout ends first, at once.
 */
const whenIdle = (
  core: Core,
  operation: string,
  module: ModuleResource,
  device: number,
  subject: string,
  call: () => number
): Effect.Effect<void, CudaError> => {
  const { backend } = core
  const { idleTimeout } = module.options
  const refuseGone = () => isGone(backend, module) ? refuseModule(core, operation, module) : undefined
  const now = Effect.suspend((): Effect.Effect<void, CudaError> => {
    const refused = refuseGone()
    if (refused !== undefined) return refused
    const status = call()
    return status === success ? Effect.void : core.failOn(operation, status, device, subject)
  })
  if (backend.isIdle(device) || Duration.isZero(idleTimeout)) return now
  // The call is made in the turn that finds the device idle: a fiber that goes on later may find it busy again.
  const atIdle = core.wait(operation, device, subject, (onDone) =>
    backend.watchIdle(device, (status, stage) => {
      onDone(status === success && refuseGone() === undefined ? call() : status, stage)
    }))
  const checked = Effect.andThen(atIdle, Effect.suspend(() => refuseGone() ?? Effect.void))
  if (!Duration.isFinite(idleTimeout)) return checked
  return Effect.flatMap(
    Effect.timeoutOption(checked, idleTimeout),
    Option.match({ onNone: () => now, onSome: () => Effect.void })
  )
}

/** Runs a call about a kernel whose code is on the device. */
const withCode = <A>(
  core: Core,
  operation: string,
  { code }: KernelResource,
  device: number,
  call: (there: CodeOnDevice) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> =>
  Effect.flatMap(
    bring(core, operation, code, device),
    () => isGone(core.backend, code.module) ? refuseModule(core, operation, code.module) : call(code.on[device]!)
  )

const readAttribute = (core: Core, kernel: KernelResource, attribute: KernelAttribute, device: number) => {
  const operation = "CudaKernel.attribute"
  return withCode(core, operation, kernel, device, () => {
    if (!Object.hasOwn(kernelAttributes, attribute)) {
      return refuseArgument(operation, "attribute", attribute, "the name of a kernel's attribute")
    }
    const status = core.backend.kernelAttribute(kernel.code, attribute, device)
    if (status === success) return Effect.succeed(core.backend.result)
    return core.failOn(operation, status, device, `${attribute} of ${kernel.code}`)
  })
}

const setAttribute = (
  core: Core,
  kernel: KernelResource,
  attribute: SettableKernelAttribute,
  value: number,
  device: number
) => {
  const operation = "CudaKernel.setAttribute"
  return withCode(core, operation, kernel, device, (there): Effect.Effect<void, CudaError> => {
    if (!settableKernelAttributes.includes(attribute)) {
      return refuseArgument(operation, "attribute", attribute, "the name of an attribute that can be set")
    }
    if (!Number.isInteger(value) || Math.abs(value) > 0x7fff_ffff) {
      return refuseArgument(operation, "value", value, "a whole number of 32 bits")
    }
    const status = core.backend.kernelSetAttribute(kernel.code, attribute, value, device)
    if (status !== success) return core.failOn(operation, status, device, `${attribute} of ${kernel.code}`)
    if (attribute === "maxDynamicSharedSizeBytes") there.dynamicShared = value
    return Effect.void
  })
}

// Occupancy

type OccupancyOperations = Pick<
  CudaRuntimeService,
  "kernelActiveBlocks" | "kernelBestBlock" | "kernelActiveClusters" | "kernelMaxCluster"
>

const occupancyOperation = "CudaKernel.occupancy"

const occupancyOperations = (core: Core): OccupancyOperations => {
  const { backend } = core
  const answer = (status: number, { code }: KernelResource, device: number): Effect.Effect<number, CudaError> =>
    status === success ? Effect.succeed(backend.result) : core.failOn(occupancyOperation, status, device, String(code))
  return {
    kernelActiveBlocks: (ref, threads, sharedBytes, device) => {
      const kernel = ownKernel(ref)
      return ofShape(
        core,
        kernel,
        { grid: 1, block: threads, sharedBytes },
        device,
        () => answer(backend.kernelActiveBlocks(kernel.code, threads, sharedBytes, device), kernel, device)
      )
    },
    kernelBestBlock: (ref, sharedBytes, maxThreads, device) => {
      const kernel = ownKernel(ref)
      return ofShape(
        core,
        kernel,
        { grid: 1, block: 1, sharedBytes },
        device,
        () => bestBlock(core, kernel, sharedBytes, maxThreads, device)
      )
    },
    kernelActiveClusters: (ref, config, device) => {
      const kernel = ownKernel(ref)
      return ofShape(
        core,
        kernel,
        config,
        device,
        () => answer(backend.kernelActiveClusters(kernel.code, shape, device), kernel, device)
      )
    },
    kernelMaxCluster: (ref, config, device) => {
      const kernel = ownKernel(ref)
      return ofShape(
        core,
        kernel,
        config,
        device,
        () => answer(backend.kernelMaxCluster(kernel.code, shape, device), kernel, device)
      )
    }
  }
}

/** Runs a question about launches of a shape, which is checked as a launch's is. */
const ofShape = <A>(
  core: Core,
  kernel: KernelResource,
  config: LaunchConfig,
  device: number,
  ask: () => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> =>
  withCode(core, occupancyOperation, kernel, device, (there) => {
    shape.read(config)
    return allow(core, occupancyOperation, kernel.code, there, device) ?? ask()
  })

const bestBlock = (
  core: Core,
  { code }: KernelResource,
  sharedBytes: number,
  maxThreads: number,
  device: number
): Effect.Effect<BlockSuggestion, CudaError> => {
  if (!Number.isInteger(maxThreads) || maxThreads < 0) {
    return refuseArgument(
      occupancyOperation,
      "maxThreads",
      maxThreads,
      "a whole number, or 0 for as many as there can be"
    )
  }
  const status = core.backend.kernelBestBlock(code, sharedBytes, maxThreads, device)
  if (status === success) return Effect.succeed(core.backend.blockSuggestion)
  return core.failOn(occupancyOperation, status, device, String(code))
}

// Launches

const launchOperation = "CudaKernel.launch"

/** That of the launch that is being made: they are made one at a time, each within one turn. */
const shape = new LaunchShape()

const launch = (
  core: Core,
  kernel: KernelResource,
  config: LaunchConfig,
  values: ReadonlyArray<unknown>,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const { backend } = core
  const { code } = kernel
  const { device } = stream
  if (unusable(backend, stream)) return refuseResource(launchOperation, backend, stream)
  if (isGone(backend, code.module)) return refuseModule(core, launchOperation, code.module)
  const there = code.on[device]
  if (there === undefined) {
    const again = Effect.suspend(() => launch(core, kernel, config, values, stream))
    return Effect.andThen(bring(core, launchOperation, code, device), again)
  }
  shape.read(config)
  const refused = fits(shape, there) ? undefined : allow(core, launchOperation, code, there, device)
  if (refused !== undefined) return refused
  const { arguments: args } = kernel
  const status = args.pack(values, device) ? enqueue(core, kernel, stream) : notPacked
  args.forget()
  if (status === success) return Effect.void
  if (status === notPacked) return args.explain(launchOperation, values)
  return core.failOn(launchOperation, status, device, `${code} on ${stream}, ${shape}`)
}

/** Where no status of the driver is. */
const notPacked = -1

const enqueue = (core: Core, kernel: KernelResource, stream: StreamResource): number => {
  const { backend } = core
  const { pointers } = kernel.arguments
  let isOrdered = false
  for (const { memory } of pointers) {
    if (memory === undefined) continue
    const used = memory.usedOn(stream)
    if (used !== success) return used
    isOrdered ||= memory.ordering !== undefined
  }
  if (!isOrdered) return backend.kernelLaunch(kernel, shape, stream)
  const used = pointers.filter(pointsToMemory)
  const reads = used.filter((slot) => !slot.writes)
  const writes = used.filter((slot) => slot.writes)
  return enqueueOrdered(core, stream, reads, writes, () => backend.kernelLaunch(kernel, shape, stream))
}

const pointsToMemory = (slot: PointerSlot): slot is PointerSlot & { memory: AnyMemoryResource } =>
  slot.memory !== undefined

/** The failure of a launch that cannot be made; sees to it that the kernel may have the shared memory of one that can. */
const allow = (core: Core, operation: string, code: KernelCode, there: CodeOnDevice, device: number) => {
  const refused = refuseShape(operation, shape, there)
  if (refused !== undefined || shape.sharedBytes <= there.dynamicShared) return refused
  const most = there.limits.sharedBytes - there.staticShared
  const status = core.backend.kernelSetAttribute(code, "maxDynamicSharedSizeBytes", most, device)
  if (status !== success) return core.failOn(operation, status, device, `${code} with ${shape}`)
  there.dynamicShared = most
  return undefined
}

/** What kernels reach on this runtime; devices are asked once whether they reach pinned memory. */
const makeReach = ({ backend }: Core): Reach => {
  const known: Array<boolean | undefined> = []
  return {
    owner: backend,
    reachesHost: (device) =>
      known[device] ??= backend.attribute(device, "canUseHostPointerForRegisteredMem") === success &&
        backend.result !== 0
  }
}
