/**
 * Memory pools of simulated devices.
 */
import { nullHandle } from "../../cuda/handles.ts"
import { success } from "../../cuda/status.ts"
import type { MemoryPoolOptions, MemoryPoolStatistics } from "../CudaRuntime.ts"
import type { PoolBackend } from "../shared/pools.ts"
import type { MemoryPoolResource } from "../shared/resources.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { Pool } from "./model/parts.ts"
import { poolPart, SimulatedPool } from "./resources.ts"

export class SimulatedPools implements PoolBackend {
  created: MemoryPoolResource | undefined
  statistics: MemoryPoolStatistics = { reservedBytes: 0, reservedHighWater: 0, usedBytes: 0, usedHighWater: 0 }
  readonly #driver: SimulatedDriver
  /** The runtime's pools, by device, if a program asked for them. */
  readonly #ofDevices: Array<SimulatedPool | undefined> = []

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  create(deviceIndex: number, options: MemoryPoolOptions): number {
    const { model, owner } = this.#driver
    const status = this.#driver.begin("cuMemPoolCreate", this.#driver.device(deviceIndex))
    if (status !== success) return status
    const part = new Pool(options.maxBytes, options.releaseThreshold)
    this.created = new SimulatedPool(owner, part, model.makeHandle(), deviceIndex, "owned")
    return success
  }

  ofDevice(deviceIndex: number): MemoryPoolResource {
    return this.#ofDevices[deviceIndex] ??= new SimulatedPool(
      this.#driver.owner,
      this.#driver.device(deviceIndex).pool,
      nullHandle(),
      deviceIndex,
      "runtime"
    )
  }

  destroy(pool: MemoryPoolResource): number {
    const device = this.#driver.device(pool.deviceIndex)
    const status = this.#driver.begin("cuMemPoolDestroy", device)
    if (status === success) this.#driver.model.dropPool(device, poolPart(pool))
    return status
  }

  readStatistics(pool: MemoryPoolResource): number {
    const status = this.#driver.begin("cuMemPoolGetAttribute", this.#driver.device(pool.deviceIndex))
    const { reserved, reservedHigh, used, usedHigh } = poolPart(pool)
    this.statistics = {
      reservedBytes: reserved,
      reservedHighWater: reservedHigh,
      usedBytes: used,
      usedHighWater: usedHigh
    }
    return status
  }

  resetHighWater(pool: MemoryPoolResource): number {
    const status = this.#driver.begin("cuMemPoolSetAttribute", this.#driver.device(pool.deviceIndex))
    if (status === success) poolPart(pool).resetHigh()
    return status
  }

  setReleaseThreshold(pool: MemoryPoolResource, bytes: number): number {
    const status = this.#driver.begin("cuMemPoolSetAttribute", this.#driver.device(pool.deviceIndex))
    if (status === success) poolPart(pool).threshold = bytes
    return status
  }

  trim(pool: MemoryPoolResource, keepBytes: number): number {
    const device = this.#driver.device(pool.deviceIndex)
    const status = this.#driver.begin("cuMemPoolTrimTo", device)
    if (status === success) this.#driver.model.trim(device, poolPart(pool), keepBytes)
    return status
  }

  /** The runtime's pools are released with the runtime. */
  close(): void {
    for (const pool of this.#ofDevices) if (pool !== undefined) pool.state = "released"
  }
}
