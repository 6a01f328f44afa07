/**
 * Device memory of simulated devices.
 */
import { statuses, success } from "../../cuda/status.ts"
import type { PointerAttributes } from "../CudaRuntime.ts"
import type { MemoryBackend } from "../shared/memory.ts"
import { GrowableMemoryResource } from "../shared/resources.ts"
import type { DeviceMemoryResource, MemoryPoolResource, StreamResource } from "../shared/resources.ts"
import type { Cancel, OnDone } from "../shared/waits.ts"
import type { AddressSpace } from "./addressSpace.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { noCancel } from "./Driver.ts"
import type { SimulatedInterprocess } from "./interprocess.ts"
import { Storage, StoragePart } from "./model/Storage.ts"
import type { SimulatedPools } from "./pools.ts"
import { memoryPart, poolPart, SimulatedDeviceMemory, streamPart } from "./resources.ts"

export class SimulatedMemory implements MemoryBackend {
  allocated: DeviceMemoryResource | undefined
  found: PointerAttributes | undefined
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace
  readonly #pools: SimulatedPools
  /** Set by the backend. */
  interprocess: SimulatedInterprocess | undefined

  constructor(driver: SimulatedDriver, addresses: AddressSpace, pools: SimulatedPools) {
    this.#driver = driver
    this.#addresses = addresses
    this.#pools = pools
  }

  allocate(
    deviceIndex: number,
    byteLength: number,
    pool: MemoryPoolResource | undefined,
    stream: StreamResource | undefined
  ): number {
    const { model, owner } = this.#driver
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuMemAllocFromPoolAsync", part)
    if (status !== success) return status
    const from = poolPart(pool ?? this.#pools.ofDevice(deviceIndex))
    const among = stream && streamPart(stream)
    if (!model.reserve(part, from, byteLength, among)) return statuses.OutOfMemory.code
    const address = model.makeAddress(byteLength)
    const memory = new SimulatedDeviceMemory(owner, new Storage(part, byteLength, from), address, deviceIndex)
    if (among !== undefined) model.allocation(among, byteLength)
    this.#addresses.add(memory)
    this.allocated = memory
    return success
  }

  attributes(deviceIndex: number, address: number): number {
    const status = this.#driver.begin("cuPointerGetAttributes", this.#driver.device(deviceIndex))
    const memory = this.#addresses.find(address)
    this.found = memory && {
      kind: memory.kind,
      isManaged: memory.kind === "device" && memory.isManaged,
      deviceIndex: memory.kind === "device" ? memory.deviceIndex : 0,
      range: { address: memory.address, byteLength: memory.byteLength }
    }
    return status
  }

  /** A second view of bytes of a live buffer: on simulated devices, there is no memory of other code. */
  adopt(deviceIndex: number, address: number, byteLength: number): DeviceMemoryResource {
    const memory = this.#addresses.find(address)!
    const part = new StoragePart(memoryPart(memory), address - memory.address, byteLength)
    const adopted = new SimulatedDeviceMemory(this.#driver.owner, part, address, deviceIndex)
    if (memory.kind === "device") adopted.peers = memory.peers
    return adopted
  }

  free(memory: DeviceMemoryResource): number {
    const { model } = this.#driver
    const part = this.#driver.device(memory.deviceIndex)
    this.#addresses.forget(memory)
    this.interprocess?.withdraw(memory)
    this.interprocess?.leave(memory)
    const status = this.#driver.begin(memory.isGrowable ? "cuMemUnmap" : "cuMemFreeAsync", part)
    if (status !== success) return status
    if (memory instanceof GrowableMemoryResource) {
      const bytes = memory.mappedBytes
      memory.pieces.length = 0
      model.releaseMapped(part, memoryPart(memory), bytes, memory.pendingUsers.map(streamPart))
      return success
    }
    const { soleUser } = memory
    if (soleUser !== undefined) model.releaseOn(part, memoryPart(memory), streamPart(soleUser))
    else model.release(part, memoryPart(memory), memory.pendingUsers.map(streamPart))
    return success
  }

  allocationQuery(deviceIndex: number): number {
    return this.#driver.begin("cuStreamQuery", this.#driver.device(deviceIndex))
  }

  watchAllocation(deviceIndex: number, onDone: OnDone): Cancel {
    onDone(this.allocationQuery(deviceIndex))
    return noCancel
  }

  watchReleases(deviceIndex: number, onDone: OnDone): Cancel {
    const { model } = this.#driver
    const part = this.#driver.device(deviceIndex)
    return this.#driver.watchAfter("cuStreamQuery", part, onDone, () => {
      model.gatherReleases(part)
      return model.world.record(part.releases, true)
    })
  }
}
