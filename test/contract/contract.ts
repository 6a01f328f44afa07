/**
 * The contract of every runtime. Each suite below runs on the simulated runtime, and on the native one if there is a GPU.
 */
import { describe } from "@effect/vitest"
import type { Rig } from "../support/Rig.ts"
import { acrossDevicesContract } from "./acrossDevices.ts"
import { arrayContract } from "./arrays.ts"
import { blasContract } from "./blas.ts"
import { branchContract, dependencyContract, forkContract } from "./branches.ts"
import { combinationContract } from "./combinations.ts"
import { copyContract } from "./copies.ts"
import { deviceContract } from "./devices.ts"
import { enqueueContract } from "./enqueue.ts"
import { eventContract } from "./events.ts"
import { foreignEventContract } from "./foreignEvents.ts"
import { foreignMemoryContract } from "./foreignMemory.ts"
import { captureContract } from "./graphCaptures.ts"
import { conditionContract } from "./graphConditions.ts"
import { graphProgramContract } from "./graphPrograms.ts"
import { graphRegionContract } from "./graphRegions.ts"
import { graphContract } from "./graphs.ts"
import { growableContract } from "./growable.ts"
import { hostFunctionContract } from "./hostFunctions.ts"
import { interprocessContract } from "./interprocess.ts"
import { kernelContract } from "./kernels.ts"
import { libraryContract } from "./libraries.ts"
import { lifetimeContract } from "./lifetimes.ts"
import { managedContract } from "./managed.ts"
import { memoryContract } from "./memory.ts"
import { memoryPoolContract, streamOrderedContract } from "./memoryPools.ts"
import { ncclContract } from "./nccl.ts"
import { orderingContract } from "./ordering.ts"
import { partitionContract } from "./partitions.ts"
import { peerContract } from "./peers.ts"
import { pinContract } from "./pin.ts"
import { pipelineContract } from "./pipeline.ts"
import { placementContract } from "./placement.ts"
import { profilerContract } from "./profiler.ts"
import { poolContract, streamContract } from "./streams.ts"
import { taskGraphContract } from "./taskGraph.ts"
import { timingContract } from "./timing.ts"

export const contract = (rig: Rig): void => {
  describe(rig.name, () => {
    deviceContract(rig)
    streamContract(rig)
    poolContract(rig)
    partitionContract(rig)
    eventContract(rig)
    branchContract(rig)
    forkContract(rig)
    dependencyContract(rig)
    memoryContract(rig)
    arrayContract(rig)
    copyContract(rig)
    memoryPoolContract(rig)
    peerContract(rig)
    streamOrderedContract(rig)
    interprocessContract(rig)
    managedContract(rig)
    growableContract(rig)
    hostFunctionContract(rig)
    orderingContract(rig)
    kernelContract(rig)
    graphContract(rig)
    graphProgramContract(rig)
    conditionContract(rig)
    captureContract(rig)
    graphRegionContract(rig)
    enqueueContract(rig)
    libraryContract(rig)
    blasContract(rig)
    ncclContract(rig)
    foreignMemoryContract(rig)
    pinContract(rig)
    foreignEventContract(rig)
    taskGraphContract(rig)
    timingContract(rig)
    lifetimeContract(rig)
    profilerContract(rig)
    pipelineContract(rig)
    acrossDevicesContract(rig)
    placementContract(rig)
    combinationContract(rig)
  })
}
