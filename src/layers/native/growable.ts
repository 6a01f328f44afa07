/**
 * Growable memory on the driver: a range of addresses, with pieces of memory mapped from its start.
 *
 * A piece is released as soon as it is mapped, because the mapping keeps it. Neither mapping nor unmapping waits for the device, so memory
 * is unmapped after the work of the streams that used it. Both take time: on an H200, 0.1 to 0.25 milliseconds for a piece.
 */
import type * as Effect from "effect/Effect"
import type { OptionalDriverFunctionName } from "../../cuda/functions.ts"
import { nullHandle, offsetBy } from "../../cuda/handles.ts"
import type { CUdeviceptr } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import { accessDescriptor, allocationProperties, recommendedGranularity } from "../../cuda/virtualMemory.ts"
import type { GrowableBackend } from "../shared/growable.ts"
import { GrowableMemoryResource } from "../shared/resources.ts"
import type { Cancel, OnDone } from "../shared/waits.ts"
import { Out } from "./Device.ts"
import type { NativeDevices } from "./devices.ts"
import type { Driver } from "./Driver.ts"
import { nextTurn } from "./PinnedMemory.ts"

const names = [
  "cuMemAddressReserve",
  "cuMemAddressFree",
  "cuMemCreate",
  "cuMemRelease",
  "cuMemMap",
  "cuMemUnmap",
  "cuMemSetAccess",
  "cuMemGetAllocationGranularity"
] as const satisfies ReadonlyArray<OptionalDriverFunctionName>

/** The functions for virtual memory. */
type Calls = { readonly [Name in (typeof names)[number]]: NonNullable<Driver["calls"][Name]> }

export class NativeGrowable implements GrowableBackend {
  reserved: GrowableMemoryResource | undefined
  readonly turn: Effect.Effect<void> = nextTurn
  readonly #driver: Driver
  readonly #devices: NativeDevices
  readonly #address = new Out<CUdeviceptr>()
  /** A `CUmemGenericAllocationHandle`, which may be any 64-bit number. */
  readonly #piece = new BigUint64Array(1)
  readonly #freeing = new Set<GrowableMemoryResource>()
  readonly #watches = new Set<FreedWatch>()

  constructor(driver: Driver, devices: NativeDevices) {
    this.#driver = driver
    this.#devices = devices
  }

  /** The functions, unless the driver lacks one. */
  get #calls(): Calls | undefined {
    const { calls } = this.#driver
    return names.every((name) => calls[name] !== undefined) ? calls as Calls : undefined
  }

  reserve(deviceIndex: number, maxBytes: number): number {
    const calls = this.#calls
    const asked = this.#devices.attribute(deviceIndex, "virtualMemoryManagementSupported")
    if (asked !== success) return asked
    if (calls === undefined || this.#devices.value === 0) {
      return this.#driver.answer("cuMemAddressReserve", statuses.NotSupported.code)
    }
    const step = new Out()
    const properties = allocationProperties(deviceIndex)
    const read = calls.cuMemGetAllocationGranularity(step.words, properties, recommendedGranularity)
    if (read !== success) return this.#driver.answer("cuMemGetAllocationGranularity", read)
    const bytes = Math.ceil(maxBytes / step.value) * step.value
    const status = calls.cuMemAddressReserve(this.#address.words, bytes, 0, nullHandle(), 0)
    if (status !== success) return this.#driver.answer("cuMemAddressReserve", status)
    const limits = { granularity: step.value, maxBytes }
    this.reserved = new GrowableMemoryResource(this.#driver.owner, this.#address.value, deviceIndex, limits)
    return success
  }

  map(memory: GrowableMemoryResource, byteLength: number): number {
    const calls = this.#calls!
    const { deviceIndex } = memory
    const address = offsetBy(memory.address, memory.mappedBytes)
    const created = calls.cuMemCreate(this.#piece, byteLength, allocationProperties(deviceIndex), 0)
    if (created !== success) return this.#driver.answer("cuMemCreate", created)
    const piece = this.#piece[0]!
    const mapped = calls.cuMemMap(address, byteLength, 0, piece, 0)
    this.#driver.warn("cuMemRelease", calls.cuMemRelease(piece), Number(piece))
    if (mapped !== success) return this.#driver.answer("cuMemMap", mapped)
    const allowed = calls.cuMemSetAccess(address, byteLength, accessDescriptor(deviceIndex), 1)
    if (allowed === success) return success
    this.#driver.warn("cuMemUnmap", calls.cuMemUnmap(address, byteLength), address)
    return this.#driver.answer("cuMemSetAccess", allowed)
  }

  unmap(memory: GrowableMemoryResource, byteLength: number): number {
    const address = offsetBy(memory.address, memory.mappedBytes - byteLength)
    return this.#driver.answer("cuMemUnmap", this.#calls!.cuMemUnmap(address, byteLength))
  }

  /** Notes memory that `free` will be called for, so that `watchFreed` waits for that. */
  willFree(memory: GrowableMemoryResource): void {
    this.#freeing.add(memory)
  }

  /** Returns all memory, with a turn of the event loop after each GiB, and then the addresses. No work uses them any longer. */
  free(memory: GrowableMemoryResource): void {
    if (!this.#freeing.has(memory)) return
    if (this.#unmapMany(memory)) {
      setImmediate(() => this.free(memory))
      return
    }
    const { address, reservedBytes } = memory
    // Addresses cannot be returned while memory is behind them.
    if (memory.pieces.length === 0) {
      this.#driver.warn("cuMemAddressFree", this.#calls!.cuMemAddressFree(address, reservedBytes), address)
    }
    this.#freeing.delete(memory)
    for (const watch of this.#watches) if (!this.#isFreeing(watch.deviceIndex)) this.#end(watch)
  }

  /** Unmaps pieces from the end, in one call. Returns whether there are more. */
  #unmapMany(memory: GrowableMemoryResource): boolean {
    const { pieces } = memory
    let first = pieces.length
    let bytes = 0
    while (first > 0 && bytes < freedAtOnce) bytes += pieces[--first]!
    if (bytes === 0) return false
    const address = offsetBy(memory.address, memory.mappedBytes - bytes)
    const status = this.#calls!.cuMemUnmap(address, bytes)
    this.#driver.warn("cuMemUnmap", status, address)
    if (status === success) pieces.length = first
    return status === success && first > 0
  }

  #isFreeing(deviceIndex: number): boolean {
    for (const memory of this.#freeing) if (memory.deviceIndex === deviceIndex) return true
    return false
  }

  /** Reports when no memory of a device is being freed. */
  watchFreed(deviceIndex: number, onDone: OnDone): Cancel {
    const watch = { deviceIndex, onDone }
    this.#watches.add(watch)
    if (!this.#isFreeing(deviceIndex)) this.#end(watch)
    return () => void this.#watches.delete(watch)
  }

  #end(watch: FreedWatch): void {
    if (this.#watches.delete(watch)) watch.onDone(success)
  }
}

/** The wait for memory that is being freed. */
interface FreedWatch {
  readonly deviceIndex: number
  readonly onDone: OnDone
}

/** Returning a GiB takes about half a millisecond. */
const freedAtOnce = 2 ** 30
