/**
 * Access of simulated devices to memory of others.
 */
import { statuses, success } from "../../cuda/status.ts"
import type { PeerBackend } from "../shared/peers.ts"
import type { MemoryPoolResource } from "../shared/resources.ts"
import type { SimulatedDriver } from "./Driver.ts"

export class SimulatedPeers implements PeerBackend {
  readonly connectsAll: boolean
  readonly #driver: SimulatedDriver

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
    this.connectsAll = driver.options.connectsAll
  }

  enable(deviceIndex: number, peer: number): number {
    return this.#begin("cuCtxEnablePeerAccess", deviceIndex, peer)
  }

  disable(deviceIndex: number): number {
    return this.#driver.begin("cuCtxDisablePeerAccess", this.#driver.device(deviceIndex))
  }

  allow(pool: MemoryPoolResource, deviceIndex: number): number {
    return this.#begin("cuMemPoolSetAccess", deviceIndex, pool.deviceIndex)
  }

  deny(pool: MemoryPoolResource): number {
    return this.#driver.begin("cuMemPoolSetAccess", this.#driver.device(pool.deviceIndex))
  }

  #begin(call: string, deviceIndex: number, peer: number): number {
    const status = this.#driver.begin(call, this.#driver.device(deviceIndex))
    if (status !== success) return status
    return this.#driver.options.peerAccess(deviceIndex, peer) ? success : statuses.PeerAccessUnsupported.code
  }
}
