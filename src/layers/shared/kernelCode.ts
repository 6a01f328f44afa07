/**
 * Kernel code on devices: loaded on first use, along with the limits that launches are checked against.
 */
import * as Effect from "effect/Effect"
import type { DeviceAttribute, KernelAttribute } from "../../cuda/flags.ts"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { Core } from "./Core.ts"
import { isGone } from "./moduleResources.ts"
import type { CodeOnDevice, DeviceLimits, KernelCode, KernelResource } from "./moduleResources.ts"
import { refuseModule, whenIdle } from "./modules.ts"

/** Loads a kernel's code into a device unless it is already there. */
export const bring = (
  core: Core,
  operation: string,
  code: KernelCode,
  deviceIndex: number
): Effect.Effect<void, CudaError> =>
  core.onDevice(operation, deviceIndex, () => {
    if (isGone(core.backend, code.module)) return refuseModule(core, operation, code.module)
    if (code.on[deviceIndex] !== undefined) return Effect.void
    const subject = `${code} on device ${deviceIndex}`
    const loadOnce = () => code.on[deviceIndex] === undefined ? load(core, code, deviceIndex) : success
    return whenIdle(core, operation, code.module, deviceIndex, subject, loadOnce)
  })

/** Loads a kernel's code into a device, and reads the limits of the kernel and of the device. */
const load = (core: Core, code: KernelCode, deviceIndex: number): number => {
  const { backend } = core
  let status = backend.kernels.load(code, deviceIndex)
  const kernelSays = (attribute: KernelAttribute): number => {
    if (status === success) status = backend.kernels.attribute(code, attribute, deviceIndex)
    return backend.kernels.value
  }
  const deviceSays = (attribute: DeviceAttribute): number => {
    if (status === success) status = backend.devices.attribute(deviceIndex, attribute)
    return backend.devices.value
  }
  const there: CodeOnDevice = {
    maxThreads: kernelSays("maxThreadsPerBlock"),
    staticShared: kernelSays("sharedSizeBytes"),
    dynamicShared: kernelSays("maxDynamicSharedSizeBytes"),
    limits: readLimits(deviceSays)
  }
  if (status === success) code.on[deviceIndex] = there
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

/** Runs a call on a kernel once its code is on the device. */
export const withCode = <A>(
  core: Core,
  operation: string,
  { code }: KernelResource,
  deviceIndex: number,
  call: (there: CodeOnDevice) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> =>
  Effect.flatMap(
    bring(core, operation, code, deviceIndex),
    () => isGone(core.backend, code.module) ? refuseModule(core, operation, code.module) : call(code.on[deviceIndex]!)
  )
