/**
 * Occupancy of simulated devices: how many blocks and clusters of a kernel run concurrently.
 */
import type { DeviceAttribute } from "../../cuda/flags.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { LaunchShape } from "../shared/launchShape.ts"
import type { SimulatedCode } from "./kernelCode.ts"

/** The resources of a multiprocessor. */
export interface Multiprocessor {
  readonly count: number
  readonly threads: number
  readonly blocks: number
  readonly registers: number
  readonly sharedBytes: number
  readonly warp: number
}

/** Shared memory that the system reserves per block, in bytes. */
const reservedShared = 1024

/** How many blocks of a kernel a multiprocessor runs concurrently. */
export const activeBlocks = (
  multiprocessor: Multiprocessor,
  code: SimulatedCode,
  deviceIndex: number,
  threads: number,
  sharedBytes: number
): number => {
  const warps = Math.ceil(threads / multiprocessor.warp) * multiprocessor.warp
  const registers = Math.max(1, code.attribute("numRegs", deviceIndex)) * warps
  const shared = sharedBytes + code.attribute("sharedSizeBytes", deviceIndex) + reservedShared
  return Math.floor(Math.min(
    multiprocessor.blocks,
    multiprocessor.threads / warps,
    multiprocessor.registers / registers,
    multiprocessor.sharedBytes / shared
  ))
}

/** The largest of the block sizes that keep the most threads busy. */
export const bestBlock = (
  multiprocessor: Multiprocessor,
  code: SimulatedCode,
  deviceIndex: number,
  sharedBytes: number,
  maxThreads: number
): { readonly block: number; readonly minGrid: number } => {
  const own = code.attribute("maxThreadsPerBlock", deviceIndex)
  const most = maxThreads === 0 ? own : Math.min(own, maxThreads)
  let best = { block: most, blocks: activeBlocks(multiprocessor, code, deviceIndex, most, sharedBytes) }
  for (let block = most - most % multiprocessor.warp; block > 0; block -= multiprocessor.warp) {
    const blocks = activeBlocks(multiprocessor, code, deviceIndex, block, sharedBytes)
    if (blocks * block > best.blocks * best.block) best = { block, blocks }
  }
  return { block: best.block, minGrid: Math.max(1, best.blocks * multiprocessor.count) }
}

/** How many clusters of a launch a device runs concurrently. */
export const activeClusters = (
  multiprocessor: Multiprocessor,
  code: SimulatedCode,
  deviceIndex: number,
  shape: LaunchShape
): number => {
  const blocks = activeBlocks(multiprocessor, code, deviceIndex, shape.threads, shape.sharedBytes)
  return Math.floor(blocks * multiprocessor.count / shape.clusterBlocks)
}

/** The portable cluster size: the maximum that every device with clusters supports, in blocks. */
const portableCluster = 8

/** The maximum cluster size of a kernel, in blocks. */
export const largestCluster = (code: SimulatedCode, deviceIndex: number): number =>
  code.attribute("nonPortableClusterSizeAllowed", deviceIndex) === 0 ? portableCluster : 2 * portableCluster

/** The status of a launch whose sizes are valid but exceed the resources of the device; 0 for a launch that fits. */
export const refuseLaunch = (
  multiprocessor: Multiprocessor,
  code: SimulatedCode,
  deviceIndex: number,
  shape: LaunchShape
): number => {
  const atOnce = activeBlocks(multiprocessor, code, deviceIndex, shape.threads, shape.sharedBytes)
  if (atOnce === 0) return statuses.LaunchOutOfResources.code
  if (shape.isPlain) return success
  const clusters = Math.floor(atOnce * multiprocessor.count / shape.clusterBlocks)
  if (shape.clusterBlocks > largestCluster(code, deviceIndex) || clusters === 0) return statuses.InvalidClusterSize.code
  const fits = !shape.cooperative || shape.blocks <= clusters * shape.clusterBlocks
  return fits ? success : statuses.CooperativeLaunchTooLarge.code
}

/** The resources of a device's multiprocessors, from its attributes. */
export const multiprocessorOf = (attributes: { readonly [A in DeviceAttribute]: number }): Multiprocessor => ({
  count: attributes.multiprocessorCount,
  threads: attributes.maxThreadsPerMultiprocessor,
  blocks: attributes.maxBlocksPerMultiprocessor,
  registers: attributes.maxRegistersPerMultiprocessor,
  sharedBytes: attributes.maxSharedMemoryPerMultiprocessor,
  warp: attributes.warpSize
})
