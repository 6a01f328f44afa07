/**
 * Launches of kernels: checked against what the device and the kernel allow, packed, ordered and enqueued.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { KernelRef, LaunchConfig, StreamRef } from "../CudaRuntime.ts"
import type { KernelOperations } from "../runtime/kernels.ts"
import { enqueueOrdered } from "./accesses.ts"
import type { PointerSlot } from "./arguments.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import { bring } from "./kernelCode.ts"
import { fits, LaunchShape, refuseConfig, refuseShape } from "./launchShape.ts"
import { isGone, ownKernel } from "./moduleResources.ts"
import type { CodeOnDevice, KernelCode, KernelResource } from "./moduleResources.ts"
import { refuseModule } from "./modules.ts"
import { operation } from "./operation.ts"
import { ownStream, unusable } from "./resources.ts"
import type { AnyMemoryResource, StreamResource } from "./resources.ts"

/** The shape of the launch that is being made: launches are made one at a time, each within one turn. */
export const shape = new LaunchShape()

export const launchOperations = (core: Core): Pick<KernelOperations, "kernelLaunch"> => ({
  kernelLaunch: operation(
    (kernel: KernelRef, config: LaunchConfig, values: ReadonlyArray<unknown>, stream: StreamRef) =>
      launch(core, ownKernel(kernel), config, values, ownStream(stream))
  )
})

const launchOperation = "CudaKernel.launch"

const launch = (
  core: Core,
  kernel: KernelResource,
  config: LaunchConfig,
  values: ReadonlyArray<unknown>,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const { arguments: args, code } = kernel
  const { device } = stream
  const there = code.on[device]
  if (there === undefined) return launchFirst(core, kernel, config, values, stream)
  const unread = refuseConfig(launchOperation, config)
  if (unread !== undefined) return unread
  // Reading can run getters, which can do anything: all of it comes first, and every check after it.
  shape.read(config)
  const own = shape.reads
  const isPacked = args.pack(values, device)
  const refused = own === shape.reads ? refuseTarget(core, kernel, stream) : refuseReentry()
  const unfit = refused ?? (fits(shape, there) ? undefined : allow(core, launchOperation, code, there, device))
  const status = unfit === undefined && isPacked ? enqueue(core, kernel, stream) : notPacked
  args.forget()
  if (status === success) return Effect.void
  if (unfit !== undefined) return unfit
  if (status === notPacked) return args.explain(launchOperation, values)
  return core.failOn(launchOperation, status, device, `${code} on ${stream}, ${shape}`)
}

/** Launches a kernel on a device that does not have its code yet. */
const launchFirst = (
  core: Core,
  kernel: KernelResource,
  config: LaunchConfig,
  values: ReadonlyArray<unknown>,
  stream: StreamResource
): Effect.Effect<void, CudaError> =>
  refuseTarget(core, kernel, stream) ??
    Effect.andThen(
      bring(core, launchOperation, kernel.code, stream.device),
      Effect.suspend(() => launch(core, kernel, config, values, stream))
    )

const refuseTarget = (core: Core, { code }: KernelResource, stream: StreamResource) => {
  const { backend } = core
  if (unusable(backend, stream)) return refuseResource(launchOperation, backend, stream)
  return isGone(backend, code.module) ? refuseModule(core, launchOperation, code.module) : undefined
}

const refuseReentry = () =>
  refuseArgument(launchOperation, "arguments", "values that launch a kernel while they are read", "plain values")

/** Not a status of the driver. */
const notPacked = -1

const enqueue = (core: Core, kernel: KernelResource, stream: StreamResource): number => {
  const { backend } = core
  const { pointers } = kernel.arguments
  let isOrdered = false
  for (const { memory } of pointers) {
    if (memory === undefined) continue
    // Released by an argument that was read after it.
    if (memory.state !== "live") return notPacked
    const used = memory.usedOn(stream)
    if (used !== success) return used
    isOrdered ||= memory.ordering !== undefined
  }
  if (!isOrdered) return backend.kernels.launch(kernel, shape, stream)
  const used = pointers.filter(pointsToMemory)
  const reads = used.filter((slot) => !slot.writes)
  const writes = used.filter((slot) => slot.writes)
  return enqueueOrdered(core, stream, reads, writes, () => backend.kernels.launch(kernel, shape, stream))
}

const pointsToMemory = (slot: PointerSlot): slot is PointerSlot & { memory: AnyMemoryResource } =>
  slot.memory !== undefined

/** The failure of a launch that cannot be made; sees to it that the kernel may have the shared memory of one that can. */
export const allow = (core: Core, operation: string, code: KernelCode, there: CodeOnDevice, device: number) => {
  const refused = refuseShape(operation, shape, there)
  if (refused !== undefined || shape.sharedBytes <= there.dynamicShared) return refused
  const most = there.limits.sharedBytes - there.staticShared
  const status = core.backend.kernels.setAttribute(code, "maxDynamicSharedSizeBytes", most, device)
  if (status !== success) return core.failOn(operation, status, device, `${code} with ${shape}`)
  there.dynamicShared = most
  return undefined
}
