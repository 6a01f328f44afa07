/**
 * Pools of device memory on the driver.
 *
 * A driver that destroys a pool before all its memory is free, and before it noticed that, crashes the process in a later call (seen with
 * 580.159.04). So a released pool is destroyed once the last of its memory is free, in the background.
 */
import { poolAttributes } from "../../cuda/flags.ts"
import type { CUmemoryPool } from "../../cuda/handles.ts"
import { success } from "../../cuda/status.ts"
import type { MemoryPoolOptions, MemoryPoolStatistics } from "../CudaRuntime.ts"
import type { PoolBackend } from "../shared/pools.ts"
import { MemoryPoolResource } from "../shared/resources.ts"
import { keepAll, poolProperties } from "./Device.ts"
import type { NativeDevice } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import type { NativeMemory } from "./memory.ts"

export class NativePools implements PoolBackend {
  created: MemoryPoolResource | undefined
  statistics: MemoryPoolStatistics = { reservedBytes: 0, reservedHighWater: 0, usedBytes: 0, usedHighWater: 0 }
  readonly #driver: Driver
  readonly #memory: NativeMemory
  /** Frees what waits for idle devices, unless that would block. */
  readonly #freeIfIdle: () => void
  /** The runtime's pools, by device, if a program asked for them. */
  readonly #own: Array<MemoryPoolResource | undefined> = []
  /** The pools of the program that are not destroyed yet. */
  readonly #ofProgram = new Map<number, MemoryPoolResource>()
  /** Released pools that are destroyed once their memory is free. */
  readonly #leaving = new Set<MemoryPoolResource>()

  constructor(driver: Driver, memory: NativeMemory, freeIfIdle: () => void) {
    this.#driver = driver
    this.#memory = memory
    this.#freeIfIdle = freeIfIdle
  }

  create(index: number, options: MemoryPoolOptions): number {
    const { calls, warn } = this.#driver
    const device = this.#driver.device(index)
    const handle = device.makePool(
      poolProperties(index, bytesOrNoLimit(options.maxBytes), options.shareable)
    )
    if (handle === undefined) return this.#driver.madeBy(device)
    for (const [name, value] of settingsOf(options)) {
      const status = device.setPool(handle, name, value)
      if (status === success) continue
      warn("cuMemPoolDestroy", calls.cuMemPoolDestroy(handle), handle)
      return this.#driver.answer("cuMemPoolSetAttribute", status)
    }
    this.created = new MemoryPoolResource(this.#driver.owner, handle, index, "owned")
    this.#ofProgram.set(handle, this.created)
    return success
  }

  ofDevice(index: number): MemoryPoolResource {
    const { owner } = this.#driver
    return this.#own[index] ??= new MemoryPoolResource(owner, this.#driver.device(index).pool, index, "runtime")
  }

  /** The pool with a handle; undefined for a pool of other code. */
  withHandle(handle: CUmemoryPool): MemoryPoolResource | undefined {
    const device = this.#driver.opened.find((opened) => opened?.pool === handle)
    return device === undefined ? this.#ofProgram.get(handle) : this.ofDevice(device.index)
  }

  /** Destroys a pool at once if all its memory is free, and otherwise later, when only the log tells of a failure. */
  destroy(pool: MemoryPoolResource): number {
    this.#leaving.add(pool)
    return pool.inUse === 0 ? this.#destroyOnceFree(pool) : success
  }

  /** Notes that the driver was told to free memory of a pool. */
  freed(pool: MemoryPoolResource): void {
    pool.inUse--
    if (pool.inUse === 0 && this.#leaving.has(pool)) {
      this.#driver.warn("cuMemPoolDestroy", this.#destroyOnceFree(pool), pool.handle)
    }
  }

  /** After the releases enqueued so far. Without them, as in a lost context, the pool is destroyed with its device. */
  #destroyOnceFree(pool: MemoryPoolResource): number {
    let status: number = success
    let isLater = false
    this.#memory.watchReleases(pool.deviceIndex, (released) => {
      if (released !== success || !this.#leaving.has(pool)) return
      status = this.#destroyNow(pool)
      if (isLater) this.#driver.warn("cuMemPoolDestroy", status, pool.handle)
    })
    isLater = true
    return status
  }

  #destroyNow(pool: MemoryPoolResource): number {
    this.#leaving.delete(pool)
    this.#ofProgram.delete(pool.handle)
    return this.#driver.answer("cuMemPoolDestroy", this.#driver.calls.cuMemPoolDestroy(pool.handle))
  }

  readStatistics({ handle }: MemoryPoolResource): number {
    const value = new BigUint64Array(1)
    const values: Array<number> = []
    for (const name of ["reservedCurrent", "reservedHigh", "usedCurrent", "usedHigh"] as const) {
      const status = this.#driver.calls.cuMemPoolGetAttribute(handle, poolAttributes[name], value)
      if (status !== success) return this.#driver.answer("cuMemPoolGetAttribute", status)
      values.push(Number(value[0]))
    }
    const [reservedBytes = 0, reservedHighWater = 0, usedBytes = 0, usedHighWater = 0] = values
    this.statistics = { reservedBytes, reservedHighWater, usedBytes, usedHighWater }
    return success
  }

  /** The driver only accepts 0, which resets the high-water mark to the current value. */
  resetHighWater({ deviceIndex, handle }: MemoryPoolResource): number {
    const status = this.#driver.device(deviceIndex).setPool(handle, "reservedHigh", 0n) ||
      this.#driver.device(deviceIndex).setPool(handle, "usedHigh", 0n)
    return this.#driver.answer("cuMemPoolSetAttribute", status)
  }

  setReleaseThreshold({ deviceIndex, handle }: MemoryPoolResource, bytes: number): number {
    const status = this.#driver.device(deviceIndex).setPool(handle, "releaseThreshold", bytesOrAll(bytes))
    return this.#driver.answer("cuMemPoolSetAttribute", status)
  }

  /**
   * All releases have finished, so synchronizing returns immediately; the pool does not notice them otherwise. What waits for
   * idle devices is freed together with the runtime's pool, unless that would block.
   */
  trim(pool: MemoryPoolResource, keepBytes: number): number {
    const { calls } = this.#driver
    const { releases } = this.#driver.device(pool.deviceIndex)
    if (this.#driver.answer("cuStreamQuery", calls.cuStreamQuery(releases)) === success) {
      const status = calls.cuStreamSynchronize(releases)
      if (status !== success) return this.#driver.answer("cuStreamSynchronize", status)
      this.#destroyLeaving(pool.deviceIndex)
    }
    const keep = Math.min(keepBytes, Number.MAX_SAFE_INTEGER)
    if (pool.origin === "runtime") this.#freeIfIdle()
    return this.#driver.answer("cuMemPoolTrimTo", calls.cuMemPoolTrimTo(pool.handle, keep))
  }

  /** Destroys what is left of a device, after its last work, except pools whose memory is not known to be free. Says whether the runtime's is one. */
  closeDevice({ inUse, index, releases }: NativeDevice): { readonly keepsPool: boolean } {
    const { calls, warn } = this.#driver
    const status = calls.cuStreamSynchronize(releases)
    warn("cuStreamSynchronize", status, releases)
    if (status === success) this.#destroyLeaving(index)
    return { keepsPool: status !== success || inUse > 0 }
  }

  /** Call after the driver noticed that all releases have finished. */
  #destroyLeaving(index: number): void {
    for (const pool of this.#leaving) {
      if (pool.deviceIndex === index && pool.inUse === 0) {
        this.#driver.warn("cuMemPoolDestroy", this.#destroyNow(pool), pool.handle)
      }
    }
  }

  /** Marks the runtime's pool of a device as released, along with the device. */
  close(index: number): void {
    const pool = this.#own[index]
    if (pool !== undefined) pool.state = "released"
  }
}

const bytesOrNoLimit = (bytes: number): number => bytes === Number.POSITIVE_INFINITY ? 0 : bytes
const bytesOrAll = (bytes: number): bigint => bytes === Number.POSITIVE_INFINITY ? keepAll : BigInt(bytes)

const settingsOf = (options: MemoryPoolOptions) =>
  [
    ["releaseThreshold", bytesOrAll(options.releaseThreshold)],
    ["reuseFollowEventDependencies", BigInt(options.reuseFollowEventDependencies)],
    ["reuseAllowOpportunistic", BigInt(options.reuseAllowOpportunistic)],
    ["reuseAllowInternalDependencies", BigInt(options.reuseAllowInternalDependencies)]
  ] as const
