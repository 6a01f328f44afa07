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
  /** The runtime's pools of the devices, as far as they were asked for. */
  readonly #ofDevices: Array<SimulatedPool | undefined> = []

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  create(device: number, options: MemoryPoolOptions): number {
    const { model, owner } = this.#driver
    const status = this.#driver.begin("cuMemPoolCreate", this.#driver.device(device))
    if (status !== success) return status
    const part = new Pool(options.maxBytes, options.releaseThreshold)
    this.created = new SimulatedPool(owner, part, model.makeHandle(), device, "owned")
    return success
  }

  ofDevice(device: number): MemoryPoolResource {
    return this.#ofDevices[device] ??= new SimulatedPool(
      this.#driver.owner,
      this.#driver.device(device).pool,
      nullHandle(),
      device,
      "runtime"
    )
  }

  destroy(pool: MemoryPoolResource): number {
    const device = this.#driver.device(pool.device)
    const status = this.#driver.begin("cuMemPoolDestroy", device)
    if (status === success) this.#driver.model.dropPool(device, poolPart(pool))
    return status
  }

  readStatistics(pool: MemoryPoolResource): number {
    const status = this.#driver.begin("cuMemPoolGetAttribute", this.#driver.device(pool.device))
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
    const status = this.#driver.begin("cuMemPoolSetAttribute", this.#driver.device(pool.device))
    if (status === success) poolPart(pool).resetHigh()
    return status
  }

  setReleaseThreshold(pool: MemoryPoolResource, bytes: number): number {
    const status = this.#driver.begin("cuMemPoolSetAttribute", this.#driver.device(pool.device))
    if (status === success) poolPart(pool).threshold = bytes
    return status
  }

  trim(pool: MemoryPoolResource, keepBytes: number): number {
    const device = this.#driver.device(pool.device)
    const status = this.#driver.begin("cuMemPoolTrimTo", device)
    if (status === success) this.#driver.model.trim(device, poolPart(pool), keepBytes)
    return status
  }

  /** The pools of the devices end with the runtime. */
  close(): void {
    for (const pool of this.#ofDevices) if (pool !== undefined) pool.state = "released"
  }
}
