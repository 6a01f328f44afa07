/**
 * `CUlaunchConfig` with its attributes, as bytes: what `cuLaunchKernelEx` and the occupancy of clusters are asked with.
 */
import { launchAttributes } from "../../cuda/flags.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { setAddress } from "../../cuda/parameters.ts"
import type { LaunchShape } from "../internal/launches.ts"

/** Bytes of a `CUlaunchConfig`, and of a `CUlaunchAttribute`, whose value comes after 8 of them. */
const configSize = 56
const attributeSize = 72
const mostAttributes = 3

export class LaunchBlock {
  /** Where the driver finds it. */
  readonly address: number
  readonly #buffer = new ArrayBuffer(configSize + mostAttributes * attributeSize)
  readonly #view = new DataView(this.#buffer)
  #count = 0

  constructor(library: DriverLibrary) {
    this.address = library.addressOf(this.#buffer)
    setAddress(this.#view, 40, this.address + configSize)
  }

  /** Says a launch; a stream of 0 is the legacy default stream of the current context. */
  write(shape: LaunchShape, stream: number): void {
    const view = this.#view
    const { blockX, blockY, blockZ, gridX, gridY, gridZ, sharedBytes } = shape
    for (const [index, size] of [gridX, gridY, gridZ, blockX, blockY, blockZ, sharedBytes].entries()) {
      view.setUint32(4 * index, size, true)
    }
    setAddress(view, 32, stream)
    this.#count = 0
    if (shape.cooperative) this.#attribute(launchAttributes.cooperative, 1)
    if (shape.programmatic) this.#attribute(launchAttributes.programmaticStreamSerialization, 1)
    if (shape.clustered) {
      this.#attribute(launchAttributes.clusterDimension, shape.clusterX, shape.clusterY, shape.clusterZ)
    }
    view.setUint32(48, this.#count, true)
  }

  #attribute(id: number, ...values: ReadonlyArray<number>): void {
    const start = configSize + this.#count++ * attributeSize
    this.#view.setUint32(start, id, true)
    for (const [index, value] of values.entries()) this.#view.setUint32(start + 8 + 4 * index, value, true)
  }
}
