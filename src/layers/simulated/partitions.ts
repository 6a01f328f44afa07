/**
 * Partitions of simulated devices: each has a compute engine of its own, which runs as many kernels at once as its share allows.
 */
import type { CUcontext } from "../../cuda/handles.ts"
import { success } from "../../cuda/status.ts"
import type { PartitionBackend, Share, Split } from "../shared/partitions.ts"
import { PartitionResource } from "../shared/resources.ts"
import type { Owner } from "../shared/resources.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { Engine } from "./model/parts.ts"

export class SimulatedPartition extends PartitionResource {
  readonly engine: Engine
  constructor(owner: Owner, handle: CUcontext, deviceIndex: number, share: Share, engine: Engine) {
    super(owner, handle, deviceIndex, share)
    this.engine = engine
  }
}

/** Narrows a partition. All partitions of a simulated runtime are simulated. */
export const engineOf = (partition: PartitionResource | undefined): Engine | undefined =>
  partition && (partition as SimulatedPartition).engine

export class SimulatedPartitions implements PartitionBackend {
  split: Split = { groups: 0, groupSize: 1, rest: 0 }
  created: SimulatedPartition | undefined
  readonly #driver: SimulatedDriver

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  readSplit(deviceIndex: number): number {
    const status = this.#driver.begin("cuDevSmResourceSplitByCount", this.#driver.device(deviceIndex))
    if (status === success) this.split = splitOf(this.#multiprocessors(deviceIndex))
    return status
  }

  #multiprocessors(deviceIndex: number): number {
    return this.#driver.options.devices[deviceIndex]!.attributes.multiprocessorCount
  }

  isKept(): boolean {
    return false
  }

  create(deviceIndex: number, share: Share): number {
    const { model, owner } = this.#driver
    const device = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuGreenCtxCreate", device)
    if (status !== success) return status
    const { multiprocessors } = share
    const slots = device.traits.concurrentKernels * multiprocessors / this.#multiprocessors(deviceIndex)
    const engine = new Engine(`compute of a partition of ${multiprocessors}`, Math.max(1, Math.floor(slots)))
    this.created = new SimulatedPartition(owner, model.makeHandle(), deviceIndex, share, engine)
    return success
  }

  destroy(partition: PartitionResource): number {
    return this.#driver.begin("cuGreenCtxDestroy", this.#driver.device(partition.deviceIndex))
  }
}

/** As on an H200: 132 multiprocessors are 15 groups of 8, and 12 in none, because its clusters of multiprocessors differ in size. */
const splitOf = (multiprocessors: number): Split => {
  const groupSize = multiprocessors < 16 ? 1 : 8
  const whole = Math.floor(multiprocessors / groupSize)
  const groups = multiprocessors % groupSize === 0 ? whole : whole - 1
  return { groups, groupSize, rest: multiprocessors - groups * groupSize }
}
