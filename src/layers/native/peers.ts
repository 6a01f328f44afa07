/**
 * Access of devices to memory of others, on the driver.
 *
 * Kernels need it, and so do copies within graphs for memory of pools. Copies on streams work without it, but then the driver stages them
 * through the host, at a tenth of the speed, and blocks the thread for most of the time. So both get it here, when they first need it.
 */
import { locationTypes, pointerAttributes, poolAccess } from "../../cuda/flags.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type { CUdeviceptr, CUmemoryPool } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { PeerBackend } from "../shared/peers.ts"
import type { DeviceMemoryResource, MemoryPoolResource } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { NativeDevices } from "./devices.ts"
import type { Driver } from "./Driver.ts"
import type { NativePools } from "./pools.ts"

const poolAttribute = Int32Array.of(pointerAttributes.pool)

export class NativePeers implements PeerBackend {
  readonly connectsAll: boolean
  /** Whether the last copy that `join` was asked about needs no staging. */
  isDirect = false
  readonly #driver: Driver
  readonly #devices: NativeDevices
  readonly #pools: NativePools
  /** The pairs of devices, the accessing one first, that graphs may need access for to memory in no pool. */
  readonly #heldContexts = new Set<string>()
  readonly #pool = new Out<CUmemoryPool>()
  /** The address of `#pool`. */
  readonly #places: BigUint64Array

  constructor(driver: Driver, devices: NativeDevices, pools: NativePools, connectsAll: boolean) {
    this.connectsAll = connectsAll
    this.#driver = driver
    this.#devices = devices
    this.#pools = pools
    this.#places = BigUint64Array.of(BigInt(driver.library.addressOf(this.#pool.words.buffer)))
  }

  enable(deviceIndex: number, peer: number): number {
    const { context } = this.#driver.device(peer)
    const call = () => {
      const status = this.#driver.calls.cuCtxEnablePeerAccess(context, 0)
      return status === statuses.PeerAccessAlreadyEnabled.code ? success : status
    }
    return this.#driver.inContextOf(deviceIndex, "cuCtxEnablePeerAccess", call)
  }

  disable(deviceIndex: number, peer: number): number {
    if (this.#heldContexts.has(pair(deviceIndex, peer))) return success
    const { context } = this.#driver.device(peer)
    const call = () => {
      const status = this.#driver.calls.cuCtxDisablePeerAccess(context)
      return status === statuses.PeerAccessNotEnabled.code ? success : status
    }
    return this.#driver.inContextOf(deviceIndex, "cuCtxDisablePeerAccess", call)
  }

  /** Asks first, because the driver says no more than that a value is invalid. */
  allow(pool: MemoryPoolResource, deviceIndex: number): number {
    const status = this.#devices.canAccessPeer(deviceIndex, pool.deviceIndex)
    if (status !== success) return status
    if (this.#devices.value === 0) {
      return this.#driver.answer("cuMemPoolSetAccess", statuses.PeerAccessUnsupported.code)
    }
    return this.#setAccess(pool.handle, pool.deviceIndex, deviceIndex, poolAccess.readWrite)
  }

  deny(pool: MemoryPoolResource, deviceIndex: number): number {
    if (pool.held.has(deviceIndex)) return success
    return this.#setAccess(pool.handle, pool.deviceIndex, deviceIndex, poolAccess.none)
  }

  /** Gives the devices of a copy access to each other's pools, if there is a link. Returns a status. */
  join(to: DeviceMemoryResource, from: DeviceMemoryResource): number {
    this.isDirect = false
    const status = this.#join(to.pool, from.deviceIndex) || this.#join(from.pool, to.deviceIndex)
    if (status !== success) return status
    this.isDirect = isJoined(to.pool, from.deviceIndex) && isJoined(from.pool, to.deviceIndex)
    return success
  }

  #join(pool: MemoryPoolResource | undefined, deviceIndex: number): number {
    if (pool?.state !== "live" || pool.held.has(deviceIndex)) return success
    const asked = this.#devices.canAccessPeer(deviceIndex, pool.deviceIndex)
    if (asked !== success || this.#devices.value === 0) return asked
    const status = pool.peers.has(deviceIndex)
      ? success
      : this.#setAccess(pool.handle, pool.deviceIndex, deviceIndex, poolAccess.readWrite)
    if (status === success) pool.held.add(deviceIndex)
    return status
  }

  /** Lets a device access memory of another one for as long as its pool, for graphs. Its context must be current. Returns a status. */
  hold(deviceIndex: number, memory: DeviceMemoryResource): number {
    const { calls } = this.#driver
    // The driver does not say which opened pool memory is of.
    if (memory.opened !== undefined && memory.pool !== undefined) return this.#holdPool(memory.pool, deviceIndex)
    this.#pool.words.fill(0)
    const found = calls.cuPointerGetAttributes(1, poolAttribute, this.#places, memory.address as CUdeviceptr)
    if (found !== success) return this.#driver.answer("cuPointerGetAttributes", found)
    const pool = this.#pool.value
    if (pool === nullHandle()) {
      this.#heldContexts.add(pair(deviceIndex, memory.deviceIndex))
      // It may have been taken away since the graph was recorded.
      return this.enable(deviceIndex, memory.deviceIndex)
    }
    this.#pools.withHandle(pool)?.held.add(deviceIndex)
    return this.#setAccess(pool, memory.deviceIndex, deviceIndex, poolAccess.readWrite)
  }

  #holdPool({ deviceIndex: owner, handle, held }: MemoryPoolResource, deviceIndex: number): number {
    held.add(deviceIndex)
    return this.#setAccess(handle, owner, deviceIndex, poolAccess.readWrite)
  }

  #setAccess(pool: CUmemoryPool, owner: number, deviceIndex: number, flags: number): number {
    // A `CUmemAccessDesc`.
    const access = Int32Array.of(locationTypes.device, deviceIndex, flags)
    const call = () => this.#driver.calls.cuMemPoolSetAccess(pool, access, 1)
    return this.#driver.inContextOf(owner, "cuMemPoolSetAccess", call)
  }
}

const pair = (deviceIndex: number, peer: number): string => `${deviceIndex} ${peer}`

const isJoined = (pool: MemoryPoolResource | undefined, deviceIndex: number): boolean =>
  pool?.held.has(deviceIndex) === true
