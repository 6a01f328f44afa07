/**
 * Access of a device to memory of others. Copies on streams do without it, because the driver copies in stages then; copies within
 * graphs need it for memory of pools.
 */
import { locationTypes, pointerAttributes, poolAccess } from "../../cuda/flags.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type { CUdeviceptr, CUmemoryPool } from "../../cuda/handles.ts"
import { success } from "../../cuda/status.ts"
import type { DeviceMemoryResource } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"

const poolAttribute = Int32Array.of(pointerAttributes.pool)

export class PeerAccess {
  readonly #driver: Driver
  readonly #pool = new Out<CUmemoryPool>()
  /** The address of `#pool`. */
  readonly #places: BigUint64Array

  constructor(driver: Driver) {
    this.#driver = driver
    this.#places = BigUint64Array.of(BigInt(driver.library.addressOf(this.#pool.words.buffer)))
  }

  /** Lets a device, whose context is current, access the pool that memory comes from, from now on. Returns a status. */
  allow(deviceIndex: number, memory: DeviceMemoryResource): number {
    const { calls } = this.#driver
    this.#pool.words.fill(0)
    const found = calls.cuPointerGetAttributes(1, poolAttribute, this.#places, memory.address as CUdeviceptr)
    if (found !== success) return this.#driver.answer("cuPointerGetAttributes", found)
    const pool = this.#pool.value
    if (pool === nullHandle()) return success
    // A `CUmemAccessDesc`.
    const access = Int32Array.of(locationTypes.device, deviceIndex, poolAccess.readWrite)
    return this.#driver.answer("cuMemPoolSetAccess", calls.cuMemPoolSetAccess(pool, access, 1))
  }
}
