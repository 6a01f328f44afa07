/**
 * Simulated devices: properties, attributes and links.
 */
import * as Effect from "effect/Effect"
import type { DeviceAttribute, PeerAttribute } from "../../cuda/flags.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { DeviceProperties, MemoryInfo, PriorityRange } from "../CudaRuntime.ts"
import type { DeviceBackend } from "../shared/devices.ts"
import type { Cancel, DriverFailure, OnDone } from "../shared/waits.ts"
import { noCancel } from "./Driver.ts"
import type { SimulatedDriver } from "./Driver.ts"

export class SimulatedDevices implements DeviceBackend {
  readonly all: ReadonlyArray<DeviceProperties>
  value = 0
  memoryInfoResult: MemoryInfo = { free: 0, total: 0 }
  readonly #driver: SimulatedDriver

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
    this.all = driver.options.devices.map(({ properties }) => properties)
  }

  open(deviceIndex: number): Effect.Effect<void, DriverFailure> {
    return Effect.suspend(() => {
      const status = this.#driver.begin("cuDevicePrimaryCtxRetain", this.#driver.device(deviceIndex))
      if (status !== success) return this.#driver.fail(status)
      if (this.#driver.options.devices[deviceIndex]!.attributes.memoryPoolsSupported !== 0) return Effect.void
      // Opening a device creates its pool.
      this.#driver.call = "cuMemPoolCreate"
      return this.#driver.fail(statuses.NotSupported.code)
    })
  }

  priorityRange(deviceIndex: number): PriorityRange {
    return this.#driver.options.devices[deviceIndex]!.priorityRange
  }

  /** Needs no context, so it also works after a fault, as on a GPU. */
  attribute(deviceIndex: number, attribute: DeviceAttribute): number {
    this.#driver.call = "cuDeviceGetAttribute"
    this.value = this.#driver.options.devices[deviceIndex]!.attributes[attribute]
    return success
  }

  memoryInfo(deviceIndex: number): number {
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuMemGetInfo", part)
    this.memoryInfoResult = { free: part.traits.memory - part.usedMemory, total: part.traits.memory }
    return status
  }

  /** Needs no context, as on a GPU. */
  canAccessPeer(deviceIndex: number, peer: number): number {
    this.#driver.call = "cuDeviceCanAccessPeer"
    this.value = deviceIndex !== peer && this.#driver.options.peerAccess(deviceIndex, peer) ? 1 : 0
    return success
  }

  /** Needs no context, as on a GPU. */
  peerAttribute(deviceIndex: number, peer: number, attribute: PeerAttribute): number {
    this.#driver.call = "cuDeviceGetP2PAttribute"
    const isReachable = this.#driver.options.peerAccess(deviceIndex, peer)
    this.value = attribute === "performanceRank" ? this.#rank(deviceIndex, peer) : isReachable ? 1 : 0
    return success
  }

  /** The number of faster kinds of links in the machine. */
  #rank(deviceIndex: number, peer: number): number {
    const { linkBandwidth } = this.#driver.options
    const own = linkBandwidth(deviceIndex, peer)
    const faster = new Set<number>()
    for (const from of this.all.keys()) {
      for (const to of this.all.keys()) {
        if (from !== to && linkBandwidth(from, to) > own) faster.add(linkBandwidth(from, to))
      }
    }
    return faster.size
  }

  /** Always true: here, loading code takes no time and never blocks. */
  isIdle(): boolean {
    return true
  }

  watchIdle(_: number, onDone: OnDone): Cancel {
    onDone(success)
    return noCancel
  }
}
