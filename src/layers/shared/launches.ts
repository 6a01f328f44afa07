/**
 * Kernel launches: checks against the limits of the device and of the kernel, packing, ordering and enqueuing.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { KernelRef, LaunchConfig, StreamRef } from "../CudaRuntime.ts"
import type { KernelOperations } from "../runtime/kernels.ts"
import { enqueueOrdered } from "./accesses.ts"
import type { PointerSlot } from "./arguments.ts"
import type { Core } from "./Core.ts"
import { refuseDescribed, refuseResource } from "./failures.ts"
import type { RecordedScalar } from "./graphNodes.ts"
import { bring } from "./kernelCode.ts"
import { fits, LaunchShape, refuseConfig, refuseShape } from "./launchShape.ts"
import { isGone, ownKernel } from "./moduleResources.ts"
import type { CodeOnDevice, KernelCode, KernelResource } from "./moduleResources.ts"
import { refuseModule } from "./modules.ts"
import { operation } from "./operation.ts"
import { refuseElsewhere, takeScalars } from "./recordings.ts"
import { ownStream, unusable, unusableMemory } from "./resources.ts"
import type { AnyMemoryResource, StreamResource } from "./resources.ts"

/** The shape of the current launch. Launches never interleave, since each runs within one turn of the event loop. */
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
  const { deviceIndex } = stream
  const there = code.on[deviceIndex]
  if (there === undefined) return launchFirst(core, kernel, config, values, stream)
  const unread = refuseConfig(launchOperation, config)
  if (unread !== undefined) return unread
  // Reading runs user code (getters). Read everything first, then check what that code may have changed.
  shape.read(config)
  const own = shape.reads
  const taken = stream.recording === undefined ? undefined : takeScalars(stream.recording, kernel, values)
  const given = taken === undefined ? values : taken.values
  const isPacked = args.pack(given, deviceIndex)
  const refused = own === shape.reads ? refuseTarget(core, kernel, stream) : refuseReentry()
  const unfit = refused ?? (fits(shape, there) ? undefined : allow(core, launchOperation, code, there, deviceIndex))
  const status = unfit === undefined && isPacked
    ? enqueue(core, kernel, stream, taken === undefined ? noScalars : taken.scalars)
    : notPacked
  args.forget()
  if (status === success) return Effect.void
  if (unfit !== undefined) return unfit
  if (status === notPacked) return args.explain(launchOperation, given)
  return core.failOn(launchOperation, status, deviceIndex, `${code} on ${stream}, ${shape}`)
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
      bring(core, launchOperation, kernel.code, stream.deviceIndex),
      Effect.suspend(() => launch(core, kernel, config, values, stream))
    )

const refuseTarget = (core: Core, { code }: KernelResource, stream: StreamResource) => {
  const { backend } = core
  if (unusable(backend, stream)) return refuseResource(launchOperation, backend, stream)
  if (isGone(backend, code.module)) return refuseModule(core, launchOperation, code.module)
  return core.recordings === 0 ? undefined : refuseElsewhere(launchOperation, stream)
}

const refuseReentry = () =>
  refuseDescribed(launchOperation, "arguments", "values that launch a kernel while they are read", "plain values")

/** Not a driver status. */
const notPacked = -1

const enqueue = (
  core: Core,
  kernel: KernelResource,
  stream: StreamResource,
  scalars: ReadonlyArray<RecordedScalar>
): number => {
  const { backend } = core
  let isOrdered = false
  for (const { memory } of kernel.arguments.pointers) {
    if (memory === undefined) continue
    // A getter of a later argument has released it, or given it away.
    if (unusableMemory(backend, memory)) return notPacked
    const used = memory.usedOn(stream)
    if (used !== success) return used
    isOrdered ||= memory.ordering !== undefined
  }
  if (isOrdered) return enqueueInOrder(core, kernel, stream, scalars)
  return stream.recording === undefined
    ? backend.kernels.launch(kernel, shape, stream)
    : stream.recording.launch(kernel, shape, scalars, stream)
}

/** Separate, because a function with a closure allocates whenever it is called. */
const enqueueInOrder = (
  core: Core,
  kernel: KernelResource,
  stream: StreamResource,
  scalars: ReadonlyArray<RecordedScalar>
): number => {
  const used = kernel.arguments.pointers.filter(pointsToMemory)
  const reads = used.filter((slot) => !slot.writes)
  const writes = used.filter((slot) => slot.writes)
  return enqueueOrdered(core, stream, reads, writes, () =>
    stream.recording === undefined
      ? core.backend.kernels.launch(kernel, shape, stream)
      : stream.recording.launch(kernel, shape, scalars, stream))
}

const noScalars: ReadonlyArray<RecordedScalar> = []

const pointsToMemory = (slot: PointerSlot): slot is PointerSlot & { memory: AnyMemoryResource } =>
  slot.memory !== undefined

/** Refuses an invalid launch; for a valid one, raises the kernel's dynamic shared memory limit if needed. */
export const allow = (core: Core, operation: string, code: KernelCode, there: CodeOnDevice, deviceIndex: number) => {
  const refused = refuseShape(operation, shape, there)
  if (refused !== undefined || shape.sharedBytes <= there.dynamicShared) return refused
  const most = there.limits.sharedBytes - there.staticShared
  const status = core.backend.kernels.setAttribute(code, "maxDynamicSharedSizeBytes", most, deviceIndex)
  if (status !== success) return core.failOn(operation, status, deviceIndex, `${code} with ${shape}`)
  there.dynamicShared = most
  return undefined
}
