/**
 * Growable memory of simulated devices. Growing takes no virtual time.
 */
import * as Effect from "effect/Effect"
import { statuses, success } from "../../cuda/status.ts"
import type { GrowableBackend } from "../shared/growable.ts"
import type { GrowableMemoryResource } from "../shared/resources.ts"
import type { AddressSpace } from "./addressSpace.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { GrowableStorage } from "./model/Storage.ts"
import { SimulatedGrowableMemory } from "./resources.ts"

/** As on a GPU, memory grows in steps of 2 MiB. */
const granularity = 2 * 2 ** 20

/** The most addresses that can be reserved: 128 TiB. */
const mostAddresses = 2 ** 47

export class SimulatedGrowable implements GrowableBackend {
  reserved: GrowableMemoryResource | undefined
  readonly turn = Effect.void
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace

  constructor(driver: SimulatedDriver, addresses: AddressSpace) {
    this.#driver = driver
    this.#addresses = addresses
  }

  reserve(deviceIndex: number, maxBytes: number): number {
    const { model, options, owner } = this.#driver
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuMemAddressReserve", part)
    if (status !== success) return status
    const { virtualMemoryManagementSupported } = options.devices[deviceIndex]!.attributes
    if (virtualMemoryManagementSupported === 0) return statuses.NotSupported.code
    if (maxBytes > mostAddresses) return statuses.OutOfMemory.code
    const limits = { granularity, maxBytes }
    const storage = new GrowableStorage(part)
    const address = model.makeAddress(Math.ceil(maxBytes / granularity) * granularity)
    const memory = new SimulatedGrowableMemory(owner, storage, address, deviceIndex, limits)
    this.#addresses.add(memory)
    this.reserved = memory
    return success
  }

  map(memory: GrowableMemoryResource, byteLength: number): number {
    const part = this.#driver.device(memory.deviceIndex)
    const status = this.#driver.begin("cuMemCreate", part)
    if (status !== success) return status
    if (!this.#driver.model.reserve(part, part.mapped, byteLength)) return statuses.OutOfMemory.code
    partOf(memory).resize(memory.mappedBytes + byteLength)
    return success
  }

  unmap(memory: GrowableMemoryResource, byteLength: number): number {
    const part = this.#driver.device(memory.deviceIndex)
    const status = this.#driver.begin("cuMemUnmap", part)
    if (status !== success) return status
    partOf(memory).resize(memory.mappedBytes - byteLength)
    this.#driver.model.returnMapped(part, byteLength)
    return success
  }
}

const partOf = (memory: GrowableMemoryResource): GrowableStorage => (memory as SimulatedGrowableMemory).part
