/**
 * Occupancy: how many blocks and clusters of a kernel a device runs at once.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { BlockSuggestion, LaunchConfig, PartitionRef } from "../CudaRuntime.ts"
import type { KernelOperations } from "../runtime/kernels.ts"
import type { Core } from "./Core.ts"
import { refuseArgument } from "./failures.ts"
import { withCode } from "./kernelCode.ts"
import { allow, shape } from "./launches.ts"
import { refuseConfig } from "./launchShape.ts"
import { isGone, ownKernel } from "./moduleResources.ts"
import type { KernelResource } from "./moduleResources.ts"
import { refuseModule } from "./modules.ts"
import { refusePartition } from "./partitionChecks.ts"
import type { Refusal } from "./ranges.ts"
import { ownPartition, wrongOf } from "./resources.ts"
import type { PartitionResource } from "./resources.ts"

type OccupancyOperations = Pick<
  KernelOperations,
  "kernelActiveBlocks" | "kernelBestBlock" | "kernelActiveClusters" | "kernelMaxCluster"
>

const occupancyOperation = "CudaKernel.occupancy"

export const occupancyOperations = (core: Core): OccupancyOperations => {
  const { backend } = core
  const answer = (status: number, { code }: KernelResource, deviceIndex: number): Effect.Effect<number, CudaError> =>
    status === success
      ? Effect.succeed(backend.kernels.value)
      : core.failOn(occupancyOperation, status, deviceIndex, String(code))
  return {
    kernelActiveBlocks: (ref, threads, sharedBytes, device) => {
      const kernel = ownKernel(ref)
      return ofShape(
        core,
        kernel,
        { grid: 1, block: threads, sharedBytes },
        device,
        () => answer(backend.kernels.activeBlocks(kernel.code, threads, sharedBytes, device), kernel, device)
      )
    },
    kernelBestBlock: (ref, sharedBytes, maxThreads, place) => {
      const { device, partition } = placeOf(place)
      const kernel = ownKernel(ref)
      return ofShape(
        core,
        kernel,
        { grid: 1, block: 1, sharedBytes },
        device,
        () =>
          refuseElsewhere(core, partition, device) ??
            bestBlock(core, kernel, sharedBytes, maxThreads, device, partition)
      )
    },
    kernelActiveClusters: (ref, config, place) => {
      const { device, partition } = placeOf(place)
      const kernel = ownKernel(ref)
      return ofShape(
        core,
        kernel,
        config,
        device,
        () =>
          refuseElsewhere(core, partition, device) ??
            answer(backend.kernels.activeClusters(kernel.code, shape, device, partition), kernel, device)
      )
    },
    kernelMaxCluster: (ref, config, device) => {
      const kernel = ownKernel(ref)
      return ofShape(
        core,
        kernel,
        config,
        device,
        () => {
          // The driver rejects a cluster that is larger than the answer.
          shape.clustered = false
          return answer(backend.kernels.maxCluster(kernel.code, shape, device), kernel, device)
        }
      )
    }
  }
}

const isPartition = (place: number | PartitionRef): place is PartitionRef =>
  typeof place === "object" && place !== null && wrongOf(ownPartition(place)) === undefined

/** A device, and the partition of it. A value that is neither is passed on as the device, which is refused. */
const placeOf = (place: number | PartitionRef) => {
  if (!isPartition(place)) return { device: place, partition: undefined }
  return { device: place.deviceIndex, partition: ownPartition(place) }
}

const refuseElsewhere = (core: Core, partition: PartitionResource | undefined, deviceIndex: number): Refusal =>
  partition && refusePartition(core, occupancyOperation, partition, { deviceIndex, nonBlocking: true })

/** Runs an occupancy query. The shape is checked like that of a launch. */
const ofShape = <A>(
  core: Core,
  kernel: KernelResource,
  config: LaunchConfig,
  deviceIndex: number,
  ask: () => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> =>
  withCode(core, occupancyOperation, kernel, deviceIndex, (there) => {
    const unread = refuseConfig(occupancyOperation, config)
    if (unread !== undefined) return unread
    shape.read(config)
    // Reading runs user code (getters), which may have unloaded the module.
    const { module } = kernel.code
    if (isGone(core.backend, module)) return refuseModule(core, occupancyOperation, module)
    return allow(core, occupancyOperation, kernel.code, there, deviceIndex) ?? ask()
  })

const bestBlock = (
  core: Core,
  { code }: KernelResource,
  sharedBytes: number,
  maxThreads: number,
  deviceIndex: number,
  partition: PartitionResource | undefined
): Effect.Effect<BlockSuggestion, CudaError> => {
  if (!Number.isInteger(maxThreads) || maxThreads < 0 || maxThreads > 0x7fff_ffff) {
    return refuseArgument(
      occupancyOperation,
      "maxThreads",
      maxThreads,
      "a non-negative integer, where 0 means no limit"
    )
  }
  const status = core.backend.kernels.bestBlock(code, sharedBytes, maxThreads, deviceIndex, partition)
  if (status === success) return Effect.succeed(core.backend.kernels.blockSuggestion)
  return core.failOn(occupancyOperation, status, deviceIndex, String(code))
}
