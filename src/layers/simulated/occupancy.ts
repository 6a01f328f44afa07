/**
 * How many blocks of a kernel a simulated device runs at once.
 */
import type { DeviceAttribute } from "../../cuda/flags.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { LaunchShape } from "../shared/launchShape.ts"
import type { SimulatedCode } from "./kernelCode.ts"

/** What a multiprocessor has for blocks. */
export interface Multiprocessor {
  readonly count: number
  readonly threads: number
  readonly blocks: number
  readonly registers: number
  readonly sharedBytes: number
  readonly warp: number
}

/** Shared memory that a block takes besides its own. */
const reservedShared = 1024

/** How many blocks of a kernel run on a multiprocessor at once. */
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

/** The largest block of those that keep the most threads busy. */
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

/** How many clusters of a launch run on a device at once. */
export const activeClusters = (
  multiprocessor: Multiprocessor,
  code: SimulatedCode,
  deviceIndex: number,
  shape: LaunchShape
): number => {
  const blocks = activeBlocks(multiprocessor, code, deviceIndex, shape.threads, shape.sharedBytes)
  return Math.floor(blocks * multiprocessor.count / shape.clusterBlocks)
}

/** The most blocks of a cluster that every device with clusters promises. */
const portableCluster = 8

/** The most blocks of a cluster of a kernel. */
export const largestCluster = (code: SimulatedCode, deviceIndex: number): number =>
  code.attribute("nonPortableClusterSizeAllowed", deviceIndex) === 0 ? portableCluster : 2 * portableCluster

/** The status of a launch for which a device has too little, though each of its sizes is allowed; 0 for one that it can make. */
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

/** What a device says of its multiprocessors. */
export const multiprocessorOf = (attributes: { readonly [A in DeviceAttribute]: number }): Multiprocessor => ({
  count: attributes.multiprocessorCount,
  threads: attributes.maxThreadsPerMultiprocessor,
  blocks: attributes.maxBlocksPerMultiprocessor,
  registers: attributes.maxRegistersPerMultiprocessor,
  sharedBytes: attributes.maxSharedMemoryPerMultiprocessor,
  warp: attributes.warpSize
})
