/**
 * Managed memory of simulated devices. The host and all devices share the bytes; prefetching only takes virtual time.
 */
import { statuses, success } from "../../cuda/status.ts"
import type { MemoryLocation } from "../CudaRuntime.ts"
import type { ManagedBackend } from "../shared/managed.ts"
import type { ManagedMemoryResource, StreamResource } from "../shared/resources.ts"
import type { AddressSpace } from "./addressSpace.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { Storage } from "./model/Storage.ts"
import { memoryPart, SimulatedManagedMemory, streamPart } from "./resources.ts"

export class SimulatedManaged implements ManagedBackend {
  allocated: ManagedMemoryResource | undefined
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace

  constructor(driver: SimulatedDriver, addresses: AddressSpace) {
    this.#driver = driver
    this.#addresses = addresses
  }

  allocate(deviceIndex: number, byteLength: number): number {
    const { model, options, owner } = this.#driver
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuMemAllocManaged", part)
    if (status !== success) return status
    if (options.devices[deviceIndex]!.attributes.concurrentManagedAccess === 0) return statuses.NotSupported.code
    if (!model.reserve(part, part.managed, byteLength)) return statuses.OutOfMemory.code
    const storage = new Storage(part, byteLength, part.managed)
    const memory = new SimulatedManagedMemory(owner, storage, model.makeAddress(byteLength), deviceIndex)
    this.#addresses.add(memory)
    this.allocated = memory
    return success
  }

  /** No limit, since prefetching never blocks the thread here. */
  prefetchPiece(): number {
    return Number.POSITIVE_INFINITY
  }

  prefetch(
    memory: ManagedMemoryResource,
    _: number,
    byteLength: number,
    location: MemoryLocation,
    stream: StreamResource
  ): number {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuMemPrefetchAsync", part.device) || memoryPart(memory).lost
    if (status === success) this.#driver.model.prefetch(part, byteLength, location === "host")
    return status
  }

  /** Advice has no observable effect here. */
  advise(memory: ManagedMemoryResource): number {
    return this.#driver.begin("cuMemAdvise", this.#driver.device(memory.deviceIndex))
  }
}
