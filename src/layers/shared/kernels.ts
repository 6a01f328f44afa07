/**
 * Kernels: lookup, code loading and attributes, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { kernelAttributes, settableKernelAttributes } from "../../cuda/flags.ts"
import type { KernelAttribute, SettableKernelAttribute } from "../../cuda/flags.ts"
import type { HostPointer } from "../../cuda/handles.ts"
import { layOut } from "../../cuda/parameters.ts"
import type { ParameterKind } from "../../cuda/parameters.ts"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { BlockSuggestion } from "../CudaRuntime.ts"
import type { KernelOperations } from "../runtime/kernels.ts"
import { counted, inBytes } from "../runtime/words.ts"
import { Arguments } from "./arguments.ts"
import type { Reach } from "./arguments.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseDescribed } from "./failures.ts"
import { bring, withCode } from "./kernelCode.ts"
import { launchOperations } from "./launches.ts"
import type { LaunchShape } from "./launchShape.ts"
import { isGone, KernelResource, ownKernel, ownModule } from "./moduleResources.ts"
import type { CodeOnDevice, KernelCode, ModuleResource, ParameterInfo } from "./moduleResources.ts"
import { refuseModule, refuseName } from "./modules.ts"
import { occupancyOperations } from "./occupancy.ts"
import { differenceOf, isKind } from "./parameterKinds.ts"
import type { PartitionResource, StreamResource } from "./resources.ts"

export interface KernelBackend {
  /** The kernel found by `find`. */
  readonly code: KernelCode | undefined
  /** The value read by the last call that reads a number. */
  readonly value: number
  /** The result of `bestBlock`. */
  readonly blockSuggestion: BlockSuggestion
  readonly find: (module: ModuleResource, name: string) => number
  /** Loads a kernel's code into a device, after all work running there. */
  readonly load: (code: KernelCode, deviceIndex: number) => number
  readonly attribute: (code: KernelCode, attribute: KernelAttribute, deviceIndex: number) => number
  readonly setAttribute: (code: KernelCode, attribute: KernelAttribute, value: number, deviceIndex: number) => number
  readonly activeBlocks: (code: KernelCode, threads: number, sharedBytes: number, deviceIndex: number) => number
  readonly bestBlock: (
    code: KernelCode,
    sharedBytes: number,
    maxThreads: number,
    deviceIndex: number,
    partition: PartitionResource | undefined
  ) => number
  readonly activeClusters: (
    code: KernelCode,
    shape: LaunchShape,
    deviceIndex: number,
    partition: PartitionResource | undefined
  ) => number
  readonly maxCluster: (code: KernelCode, shape: LaunchShape, deviceIndex: number) => number
  /** Where `launch` reads the arguments from. Valid as long as they live. */
  readonly argumentTable: (args: Arguments) => HostPointer
  /** Launches with the arguments packed last. */
  readonly launch: (kernel: KernelResource, shape: LaunchShape, stream: StreamResource) => number
}

export const kernelOperations = (core: Core): KernelOperations => {
  const reach = makeReach(core)
  return {
    kernelGet: (module, name, parameters, device) => get(core, reach, ownModule(module), name, parameters, device),
    kernelAttribute: (kernel, attribute, device) => readAttribute(core, ownKernel(kernel), attribute, device),
    kernelSetAttribute: (kernel, attribute, value, device) =>
      setAttribute(core, ownKernel(kernel), attribute, value, device),
    ...occupancyOperations(core),
    ...launchOperations(core)
  }
}

const get = (
  core: Core,
  reach: Reach,
  module: ModuleResource,
  name: string,
  parameters: ReadonlyArray<ParameterKind>,
  deviceIndex: number
) => {
  const operation = "CudaKernel.get"
  return core.onDevice(operation, deviceIndex, (): Effect.Effect<KernelResource, CudaError> => {
    const { backend } = core
    if (isGone(backend, module)) return refuseModule(core, operation, module)
    const refused = refuseName(operation, name)
    if (refused !== undefined) return refused
    const code = module.codes.get(name) ?? find(core, module, name)
    if (typeof code === "number") return core.failOn(operation, code, deviceIndex, `kernel ${name} of ${module}`)
    return Effect.flatMap(bring(core, operation, code, deviceIndex), () => {
      const mismatch = refuseParameters(operation, code, parameters)
      if (mismatch !== undefined) return mismatch
      const args = new Arguments(parameters, reach)
      return Effect.succeed(new KernelResource(code, parameters, args, backend.kernels.argumentTable(args)))
    })
  })
}

/** Looks up a kernel by name. Returns the status if there is none. */
const find = (core: Core, module: ModuleResource, name: string): KernelCode | number => {
  const status = core.backend.kernels.find(module, name)
  if (status !== success) return status
  const code = core.backend.kernels.code!
  module.codes.set(name, code)
  return code
}

/** The maximum that a kernel accepts on any device. */
const mostParameterBytes = 32_764

/** Checks the size and the kind of each declared parameter, as far as they are known. */
const refuseParameters = (operation: string, code: KernelCode, parameters: ReadonlyArray<ParameterKind>) => {
  // Unlike `every`, a spread also visits the holes of an array.
  if (!Array.isArray(parameters) || ![...parameters].every(isKind)) {
    return refuseArgument(operation, "parameters", parameters, "an array of parameter kinds (CudaParameter)")
  }
  const { size } = layOut(parameters)
  if (size > mostParameterBytes) {
    return refuseDescribed(operation, "parameters", inBytes(size), `at most ${inBytes(mostParameterBytes)}`)
  }
  const known = code.parameters
  if (known === undefined) return undefined
  if (known.length !== parameters.length) {
    const given = counted(parameters.length, "kind")
    return refuseDescribed(operation, "parameters", given, `${counted(known.length, "kind")}, as ${code} declares`)
  }
  for (const [index, given] of parameters.entries()) {
    const refused = refuseParameter(operation, code, `parameters[${index}]`, given, known[index]!)
    if (refused !== undefined) return refused
  }
  return undefined
}

const refuseParameter = (
  operation: string,
  code: KernelCode,
  name: string,
  given: ParameterKind,
  known: ParameterInfo
) => {
  if (given.size !== known.size) {
    const value = `${given.kind} of ${inBytes(given.size)}`
    return refuseDescribed(operation, name, value, `${inBytes(known.size)}, as ${code} declares`)
  }
  const found = known.kind && differenceOf(given, known.kind, name)
  return found && refuseDescribed(operation, found.path, found.given, `${found.expected}, as ${code} declares`)
}

const readAttribute = (core: Core, kernel: KernelResource, attribute: KernelAttribute, deviceIndex: number) => {
  const operation = "CudaKernel.attribute"
  return withCode(core, operation, kernel, deviceIndex, () => {
    if (!Object.hasOwn(kernelAttributes, attribute)) {
      return refuseArgument(operation, "attribute", attribute, "the name of a kernel attribute")
    }
    const status = core.backend.kernels.attribute(kernel.code, attribute, deviceIndex)
    if (status === success) return Effect.succeed(core.backend.kernels.value)
    return core.failOn(operation, status, deviceIndex, `${attribute} of ${kernel.code}`)
  })
}

const setAttribute = (
  core: Core,
  kernel: KernelResource,
  attribute: SettableKernelAttribute,
  value: number,
  deviceIndex: number
) => {
  const operation = "CudaKernel.setAttribute"
  return withCode(core, operation, kernel, deviceIndex, (there): Effect.Effect<void, CudaError> => {
    if (!settableKernelAttributes.includes(attribute)) {
      return refuseArgument(operation, "attribute", attribute, "the name of a settable kernel attribute")
    }
    const refused = refuseValue(operation, attribute, value, there)
    if (refused !== undefined) return refused
    const status = core.backend.kernels.setAttribute(kernel.code, attribute, value, deviceIndex)
    if (status !== success) return core.failOn(operation, status, deviceIndex, `${attribute} of ${kernel.code}`)
    if (attribute === "maxDynamicSharedSizeBytes") there.dynamicShared = value
    return Effect.void
  })
}

const refuseValue = (
  operation: string,
  attribute: SettableKernelAttribute,
  value: number,
  { limits, staticShared }: CodeOnDevice
) => {
  if (!Number.isInteger(value) || Math.abs(value) > 0x7fff_ffff) {
    return refuseArgument(operation, "value", value, "an integer that fits in 32 bits")
  }
  if (attribute !== "maxDynamicSharedSizeBytes") return undefined
  const most = limits.sharedBytes - staticShared
  return value >= 0 && value <= most
    ? undefined
    : refuseArgument(operation, "value", value, `an integer from 0 to ${most}`)
}

/** Which memory kernels can access on this runtime. Queries each device once. */
const makeReach = ({ backend }: Core): Reach => {
  const known: Array<boolean | undefined> = []
  return {
    owner: backend,
    reachesHost: (device) =>
      known[device] ??= backend.devices.attribute(device, "canUseHostPointerForRegisteredMem") === success &&
        backend.devices.value !== 0
  }
}
