/**
 * The shape of a launch: read from the program's options into one object that every launch reuses, and checked against
 * the limits of the device and of the kernel, for which the driver would only return "invalid value".
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { Dimensions, LaunchConfig } from "../CudaRuntime.ts"
import { counted, inBytes } from "../runtime/words.ts"
import { refuseArgument, refuseDescribed } from "./failures.ts"
import type { RecordedShape } from "./graphNodes.ts"
import type { CodeOnDevice } from "./moduleResources.ts"

/** The largest cluster size of any device, in blocks. */
const largestCluster = 16

/** The dimensions of a launch, as numbers. */
export class LaunchShape {
  gridX = 1
  gridY = 1
  gridZ = 1
  blockX = 1
  blockY = 1
  blockZ = 1
  sharedBytes = 0
  clustered = false
  clusterX = 1
  clusterY = 1
  clusterZ = 1
  cooperative = false
  programmatic = false
  /** Counts reads, so that a launch detects if a getter among its arguments has overwritten its shape. */
  reads = 0

  /**
   * Reads everything before it changes anything, because getters may run. A size that is not a number becomes NaN,
   * which the checks refuse.
   */
  read(config: LaunchConfig): void {
    const { block, cluster, cooperative, grid, programmatic, sharedBytes = 0 } = config
    const gridX = axisOf(grid, 0)
    const gridY = axisOf(grid, 1)
    const gridZ = axisOf(grid, 2)
    const blockX = axisOf(block, 0)
    const blockY = axisOf(block, 1)
    const blockZ = axisOf(block, 2)
    const clusterX = cluster === undefined ? 1 : axisOf(cluster, 0)
    const clusterY = cluster === undefined ? 1 : axisOf(cluster, 1)
    const clusterZ = cluster === undefined ? 1 : axisOf(cluster, 2)
    this.gridX = gridX
    this.gridY = gridY
    this.gridZ = gridZ
    this.blockX = blockX
    this.blockY = blockY
    this.blockZ = blockZ
    this.sharedBytes = sharedBytes
    this.clustered = cluster !== undefined
    this.clusterX = clusterX
    this.clusterY = clusterY
    this.clusterZ = clusterZ
    this.cooperative = cooperative === true
    this.programmatic = programmatic === true
    this.reads++
  }

  /** The shape as it is now. Written out, because a spread costs half a microsecond. */
  snapshot(): RecordedShape {
    return {
      gridX: this.gridX,
      gridY: this.gridY,
      gridZ: this.gridZ,
      blockX: this.blockX,
      blockY: this.blockY,
      blockZ: this.blockZ,
      sharedBytes: this.sharedBytes,
      clustered: this.clustered,
      clusterX: this.clusterX,
      clusterY: this.clusterY,
      clusterZ: this.clusterZ,
      cooperative: this.cooperative,
      programmatic: this.programmatic
    }
  }

  /** True if the launch has dimensions only. */
  get isPlain(): boolean {
    return !this.clustered && !this.cooperative && !this.programmatic
  }

  /** Blocks in the grid. */
  get blocks(): number {
    return this.gridX * this.gridY * this.gridZ
  }

  /** Blocks per cluster; 1 without clusters. */
  get clusterBlocks(): number {
    return this.clusterX * this.clusterY * this.clusterZ
  }

  /** Threads per block. */
  get threads(): number {
    return this.blockX * this.blockY * this.blockZ
  }

  toString(): string {
    const cluster = this.clustered ? `, clusters of ${this.clusterX}×${this.clusterY}×${this.clusterZ}` : ""
    return `grid ${this.gridX}×${this.gridY}×${this.gridZ}, block ${this.blockX}×${this.blockY}×${this.blockZ}, ` +
      `${inBytes(this.sharedBytes)} of shared memory${cluster}${this.cooperative ? ", cooperative" : ""}`
  }
}

const axisOf = (size: Dimensions, axis: 0 | 1 | 2): number => {
  if (typeof size === "number") return axis === 0 ? size : 1
  if (!Array.isArray(size) || size.length > 3) return Number.NaN
  return size[axis] ?? (axis === 0 ? Number.NaN : 1)
}

const isSize = (value: number, most: number): boolean => Number.isInteger(value) && value >= 1 && value <= most

/** True if a launch needs no further check, which is the usual case. */
export const fits = (shape: LaunchShape, { dynamicShared, limits, maxThreads }: CodeOnDevice): boolean => {
  const { block, grid } = limits
  return isSize(shape.gridX, grid[0]) && isSize(shape.gridY, grid[1]) && isSize(shape.gridZ, grid[2]) &&
    isSize(shape.blockX, block[0]) && isSize(shape.blockY, block[1]) && isSize(shape.blockZ, block[2]) &&
    shape.threads <= maxThreads && Number.isInteger(shape.sharedBytes) && shape.sharedBytes >= 0 &&
    shape.sharedBytes <= dynamicShared && shape.isPlain
}

/** Refuses a configuration that cannot be read. */
export const refuseConfig = (operation: string, config: LaunchConfig): Effect.Effect<never, CudaError> | undefined =>
  typeof config === "object" && config !== null
    ? undefined
    : refuseArgument(operation, "config", config, "an object with grid and block")

/** The failure for a launch beyond the limits; undefined for a valid one. */
export const refuseShape = (
  operation: string,
  shape: LaunchShape,
  there: CodeOnDevice
): Effect.Effect<never, CudaError> | undefined =>
  refuseSizes(operation, "grid", [shape.gridX, shape.gridY, shape.gridZ], there.limits.grid) ??
    refuseSizes(operation, "block", [shape.blockX, shape.blockY, shape.blockZ], there.limits.block) ??
    refuseThreads(operation, shape, there) ?? refuseShared(operation, shape, there) ??
    refuseCluster(operation, shape, there) ?? refuseFeatures(operation, shape, there)

const axes = ["x", "y", "z"] as const

const refuseSizes = (
  operation: string,
  name: string,
  sizes: ReadonlyArray<number>,
  limits: ReadonlyArray<number>
) => {
  for (const [index, axis] of axes.entries()) {
    const size = sizes[index]!
    const most = limits[index]!
    if (!isSize(size, most)) {
      return refuseArgument(operation, `${name}.${axis}`, size, `an integer from 1 to ${most}`)
    }
  }
  return undefined
}

const refuseThreads = (operation: string, { threads }: LaunchShape, { maxThreads }: CodeOnDevice) =>
  threads <= maxThreads
    ? undefined
    : refuseDescribed(operation, "block", counted(threads, "thread"), `at most ${maxThreads} threads for this kernel`)

const refuseShared = (operation: string, { sharedBytes }: LaunchShape, { limits, staticShared }: CodeOnDevice) => {
  const most = limits.sharedBytes - staticShared
  if (Number.isInteger(sharedBytes) && sharedBytes >= 0 && sharedBytes <= most) return undefined
  const own = staticShared === 0 ? "" : ` in addition to the kernel's ${inBytes(staticShared)} of static shared memory`
  return refuseArgument(operation, "sharedBytes", sharedBytes, `an integer from 0 to ${most}${own}`)
}

const refuseCluster = (operation: string, shape: LaunchShape, { limits }: CodeOnDevice) => {
  const { clusterX, clusterY, clusterZ } = shape
  if (!shape.clustered) return undefined
  const sizes = [clusterX, clusterY, clusterZ]
  if (!limits.clusters) {
    return refuseDescribed(operation, "cluster", sizes.join("×"), "none: this device does not support clusters")
  }
  const refused = refuseSizes(operation, "cluster", sizes, [largestCluster, largestCluster, largestCluster])
  if (refused !== undefined) return refused
  const blocks = clusterX * clusterY * clusterZ
  if (blocks > largestCluster) {
    return refuseDescribed(operation, "cluster", counted(blocks, "block"), `at most ${largestCluster} blocks`)
  }
  const grid = [shape.gridX, shape.gridY, shape.gridZ]
  const uneven = axes.find((_, index) => grid[index]! % sizes[index]! !== 0)
  if (uneven === undefined) return undefined
  const index = axes.indexOf(uneven)
  return refuseArgument(operation, `grid.${uneven}`, grid[index], `a multiple of ${sizes[index]}, the cluster size`)
}

const refuseFeatures = (operation: string, shape: LaunchShape, { limits }: CodeOnDevice) => {
  if (shape.cooperative && !limits.cooperative) {
    return refuseArgument(operation, "cooperative", true, "false: this device does not support cooperative launches")
  }
  if (shape.programmatic && !limits.programmatic) {
    return refuseArgument(operation, "programmatic", true, "false: it requires compute capability 9.0 or higher")
  }
  return undefined
}
