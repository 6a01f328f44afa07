/**
 * Managed memory on the driver: allocation, prefetching and advice. `ManagedMemory` keeps it for reuse.
 */
import { locationTypes, memoryAdvice } from "../../cuda/flags.ts"
import type { MemoryAdvice } from "../../cuda/flags.ts"
import { locationOf } from "../../cuda/functions.ts"
import { offsetBy } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { MemoryLocation } from "../CudaRuntime.ts"
import type { ManagedBackend } from "../shared/managed.ts"
import type { ManagedMemoryResource, StreamResource } from "../shared/resources.ts"
import type { NativeDevices } from "./devices.ts"
import type { Driver } from "./Driver.ts"
import { NativeManagedMemory } from "./ManagedMemory.ts"
import type { ManagedMemory } from "./ManagedMemory.ts"
import { nativeStream } from "./streams.ts"

/** Prefetching a megabyte takes a third of a millisecond to the host, and a tenth of that to a device. */
const prefetchPieces = { host: 4 * 2 ** 20, device: 32 * 2 ** 20 }

const placeOf = (location: MemoryLocation): number =>
  location === "host" ? locationOf(locationTypes.host, 0) : locationOf(locationTypes.device, location)

export class NativeManaged implements ManagedBackend {
  allocated: NativeManagedMemory | undefined
  readonly #driver: Driver
  readonly #devices: NativeDevices
  readonly #memory: ManagedMemory

  constructor(driver: Driver, devices: NativeDevices, memory: ManagedMemory) {
    this.#driver = driver
    this.#devices = devices
    this.#memory = memory
  }

  allocate(deviceIndex: number, byteLength: number): number {
    const asked = this.#devices.attribute(deviceIndex, "concurrentManagedAccess")
    if (asked !== success) return asked
    if (this.#devices.value === 0) return this.#driver.answer("cuMemAllocManaged", statuses.NotSupported.code)
    const status = this.#memory.take(deviceIndex, byteLength)
    if (status !== success) return status
    const { library, owner } = this.#driver
    this.allocated = new NativeManagedMemory(owner, library, this.#memory.taken, byteLength, deviceIndex)
    return success
  }

  prefetchPiece(location: MemoryLocation): number {
    return prefetchPieces[location === "host" ? "host" : "device"]
  }

  prefetch(
    memory: ManagedMemoryResource,
    offset: number,
    byteLength: number,
    location: MemoryLocation,
    resource: StreamResource
  ): number {
    const stream = nativeStream(resource)
    const { cuMemPrefetchAsync_v2: prefetch } = this.#driver.calls
    if (prefetch === undefined) return this.#driver.answer("cuMemPrefetchAsync", statuses.NotSupported.code)
    const place = placeOf(location)
    const call = () => prefetch(offsetBy(memory.address, offset), byteLength, place, 0, stream.handle)
    return stream.needsContext
      ? this.#driver.inContextOf(stream.deviceIndex, "cuMemPrefetchAsync", call)
      : this.#driver.answer("cuMemPrefetchAsync", call())
  }

  advise(
    memory: ManagedMemoryResource,
    offset: number,
    byteLength: number,
    advice: MemoryAdvice,
    location: MemoryLocation
  ): number {
    const { cuMemAdvise_v2: advise } = this.#driver.calls
    if (advise === undefined) return this.#driver.answer("cuMemAdvise", statuses.NotSupported.code)
    if (memory instanceof NativeManagedMemory) memory.isAdvised = true
    const place = placeOf(location)
    const call = () => advise(offsetBy(memory.address, offset), byteLength, memoryAdvice[advice], place)
    return this.#driver.inContextOf(memory.deviceIndex, "cuMemAdvise", call)
  }
}
