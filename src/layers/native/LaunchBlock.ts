/**
 * The bytes of a `CUlaunchConfig` and its attributes, for `cuLaunchKernelEx` and for the occupancy of clusters. A call
 * with the address of this block costs less than one with eleven parameters.
 */
import { launchAttributes } from "../../cuda/flags.ts"
import type { CUstream, HostPointer } from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { twoTo32 } from "../../cuda/parameters.ts"
import type { LaunchShape } from "../shared/launchShape.ts"

/** Word offsets in a `CUlaunchConfig` (stream, attributes, number of attributes) and in a `CUlaunchAttribute`. */
const streamAt = 8
const attributesAt = 10
const countAt = 12
const configWords = 14
const attributeWords = 18
const mostAttributes = 3

export class LaunchBlock {
  /** The address of the block. */
  readonly address: HostPointer
  readonly #words = new Uint32Array(configWords + mostAttributes * attributeWords)

  constructor(library: DriverLibrary) {
    this.address = library.addressOf(this.#words.buffer)
    this.#setAddress(attributesAt, this.address + 4 * configWords)
  }

  /** Writes a launch. Stream 0 is the legacy default stream of the current context. */
  write(shape: LaunchShape, stream: CUstream): void {
    const words = this.#words
    words[0] = shape.gridX
    words[1] = shape.gridY
    words[2] = shape.gridZ
    words[3] = shape.blockX
    words[4] = shape.blockY
    words[5] = shape.blockZ
    words[6] = shape.sharedBytes
    this.#setAddress(streamAt, stream)
    words[countAt] = 0
    if (shape.cooperative) this.#add(launchAttributes.cooperative, 1)
    if (shape.programmatic) this.#add(launchAttributes.programmaticStreamSerialization, 1)
    if (shape.clustered) this.#add(launchAttributes.clusterDimension, shape.clusterX, shape.clusterY, shape.clusterZ)
  }

  #setAddress(at: number, address: number): void {
    this.#words[at] = address
    this.#words[at + 1] = address / twoTo32
  }

  /** Adds an attribute: its id, and its value two words later. */
  #add(id: number, ...values: ReadonlyArray<number>): void {
    const at = configWords + this.#words[countAt]!++ * attributeWords
    this.#words[at] = id
    this.#words.set(values, at + 2)
  }
}
