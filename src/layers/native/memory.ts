/**
 * Device memory on the driver: allocated from pools, and released in stream order.
 */
import { memoryTypes, pointerAttributes } from "../../cuda/flags.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type { CUdeviceptr, CUmemoryPool, CUstream } from "../../cuda/handles.ts"
import { notReady, success } from "../../cuda/status.ts"
import type { PointerAttributes } from "../CudaRuntime.ts"
import type { MemoryBackend } from "../shared/memory.ts"
import { DeviceMemoryResource, GrowableMemoryResource } from "../shared/resources.ts"
import type { MemoryPoolResource, StreamResource } from "../shared/resources.ts"
import { watchAll } from "../shared/waits.ts"
import type { Cancel, OnDone, Watch } from "../shared/waits.ts"
import { Out } from "./Device.ts"
import type { NativeDevice, NativeStream } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import type { NativeGrowable } from "./growable.ts"
import type { NativeInterprocess } from "./interprocess.ts"
import { Lane } from "./Lane.ts"
import { NativeManagedMemory } from "./ManagedMemory.ts"
import type { ManagedMemory } from "./ManagedMemory.ts"
import type { NativePools } from "./pools.ts"
import type { Releases } from "./Releases.ts"
import { nativeStream } from "./streams.ts"
import type { NativeStreams } from "./streams.ts"

export class NativeMemory implements MemoryBackend {
  allocated: DeviceMemoryResource | undefined
  found: PointerAttributes | undefined
  readonly #driver: Driver
  readonly #streams: NativeStreams
  readonly #releases: Releases
  /** Set by the backend after construction, because `ManagedMemory` depends on idle detection, which depends on this part. */
  managed: ManagedMemory | undefined
  /** Set by the backend after construction, for the pools that found memory belongs to. */
  pools: NativePools | undefined
  #foundPool = nullHandle<CUmemoryPool>()
  /** Set by the backend after construction, too. */
  interprocess: NativeInterprocess | undefined
  /** Set by the backend after construction, like `managed`. */
  growable: NativeGrowable | undefined
  readonly #out = new Out<CUdeviceptr>()
  /** A word per attribute, for the driver to write, and their addresses. */
  readonly #attributes = new Uint32Array(new ArrayBuffer(8 * attributes.length))
  readonly #places: BigUint64Array

  constructor(driver: Driver, streams: NativeStreams, releases: Releases) {
    this.#driver = driver
    this.#streams = streams
    this.#releases = releases
    const start = driver.library.addressOf(this.#attributes.buffer)
    this.#places = BigUint64Array.from(attributes, (_, index) => BigInt(start + 8 * index))
  }

  allocate(
    index: number,
    byteLength: number,
    pool: MemoryPoolResource | undefined,
    resource: StreamResource | undefined
  ): number {
    const device = this.#driver.device(index)
    const from = pool?.handle ?? device.pool
    const stream = resource && nativeStream(resource)
    const on = stream?.handle ?? device.allocations
    const call = () => this.#driver.calls.cuMemAllocFromPoolAsync(this.#out.words, byteLength, from, on)
    const status = stream?.needsContext === true
      ? this.#driver.inContextOf(index, "cuMemAllocFromPoolAsync", call)
      : this.#driver.answer("cuMemAllocFromPoolAsync", call())
    if (status !== success) return status
    this.allocated = new DeviceMemoryResource(this.#driver.owner, this.#out.value, byteLength, index)
    const source = pool ?? device
    source.inUse++
    return success
  }

  /** The driver answers 0 for every attribute of memory that it does not know. */
  attributes(index: number, address: number): number {
    const words = this.#attributes.fill(0)
    const call = () =>
      this.#driver.calls.cuPointerGetAttributes(attributes.length, attributes, this.#places, address as CUdeviceptr)
    const status = this.#driver.inContextOf(index, "cuPointerGetAttributes", call)
    this.found = status === success ? foundIn(words) : undefined
    this.#foundPool = (words[2 * poolWord + 1]! * 2 ** 32 + words[2 * poolWord]!) as CUmemoryPool
    return status
  }

  /** Memory in no pool is accessible to the devices that have access to its device. That of other code's pools is to none. */
  adopt(index: number, address: number, byteLength: number): DeviceMemoryResource {
    const memory = new DeviceMemoryResource(this.#driver.owner, address as CUdeviceptr, byteLength, index)
    const isInPool = this.#foundPool !== nullHandle()
    const pool = isInPool ? this.pools?.withHandle(this.#foundPool) : this.pools?.ofDevice(index)
    if (pool !== undefined) memory.peers = pool.peers
    if (isInPool) memory.pool = pool
    return memory
  }

  free(memory: DeviceMemoryResource): number {
    const device = this.#driver.device(memory.deviceIndex)
    if (memory instanceof NativeManagedMemory) {
      return this.#freeLater(device, memory, () => this.managed?.give(memory))
    }
    if (memory instanceof GrowableMemoryResource) {
      this.growable?.willFree(memory)
      return this.#freeLater(device, memory, () => this.growable?.free(memory))
    }
    if (memory.sharing === "allocation") return this.#freeLater(device, memory, () => this.interprocess?.free(memory))
    const { soleUser } = memory
    if (soleUser !== undefined) return this.#freeOn(device, nativeStream(soleUser), memory)
    const { calls, warn } = this.#driver
    const users = memory.pendingUsers
    const isLast = memory.opened === undefined || this.interprocess?.isLastUser(memory) === true
    const address = memory.opened?.base ?? memory.address
    const free = () => isLast ? this.#freed(device, memory, calls.cuMemFreeAsync(address, device.releases)) : success
    for (const user of users) {
      const status = this.#orderReleases(device, nativeStream(user))
      if (status === success) continue
      this.#releases.whenIdle(users, () => warn("cuMemFreeAsync", free(), memory.address))
      return status
    }
    return this.#driver.answer("cuMemFreeAsync", free())
  }

  /** Counts a buffer whose pool is told to free it. */
  #freed(device: NativeDevice, { pool }: DeviceMemoryResource, status: number): number {
    if (status !== success) return status
    if (pool?.origin === "runtime") device.inUse--
    else if (pool?.origin === "owned") this.pools?.freed(pool)
    return status
  }

  /** Releases memory on the host, once the work of its users has finished. */
  #freeLater(device: NativeDevice, memory: DeviceMemoryResource, free: () => void): number {
    const users = memory.pendingUsers
    device.usersOfReleased.add(users)
    this.#releases.whenIdle(users, () => {
      device.usersOfReleased.delete(users)
      free()
    })
    return success
  }

  /** Releases memory in the order of the stream it was allocated on, if no other stream used it. */
  #freeOn(device: NativeDevice, stream: NativeStream, memory: DeviceMemoryResource): number {
    device.freedOn.add(stream)
    const call = () => this.#freed(device, memory, this.#driver.calls.cuMemFreeAsync(memory.address, stream.handle))
    return stream.needsContext
      ? this.#driver.inContextOf(stream.deviceIndex, "cuMemFreeAsync", call)
      : this.#driver.answer("cuMemFreeAsync", call())
  }

  /** Makes later releases on a device wait for the current work of a stream. */
  #orderReleases(device: NativeDevice, user: NativeStream): number {
    const owner = this.#driver.device(user.deviceIndex)
    const marker = owner.takeMarker()
    if (marker === undefined) return this.#driver.madeBy(owner)
    const recorded = this.#driver.record(marker, user)
    const status = recorded === success
      ? this.#driver.calls.cuStreamWaitEvent(device.releases, marker, 0)
      : recorded
    owner.giveMarker(marker)
    return this.#driver.answer(recorded === success ? "cuStreamWaitEvent" : "cuEventRecord", status)
  }

  allocationQuery(index: number): number {
    const { allocations } = this.#driver.device(index)
    return this.#driver.answer("cuStreamQuery", this.#driver.calls.cuStreamQuery(allocations))
  }

  watchAllocation(index: number, onDone: OnDone): Cancel {
    const device = this.#driver.device(index)
    return this.#watchOwn(device, device.allocations, onDone)
  }

  watchReleases(index: number, onDone: OnDone): Cancel {
    const device = this.#driver.device(index)
    for (const stream of device.freedOn) {
      const status = stream.state === "released" ? success : this.#orderReleases(device, stream)
      if (status !== success) {
        onDone(status)
        return () => {}
      }
      device.freedOn.delete(stream)
    }
    const users = new Set([...device.usersOfReleased].flat())
    const watches: Array<Watch> = [(onDone) => this.#watchOwn(device, device.releases, onDone)]
    if (this.growable !== undefined) watches.push((onDone) => this.growable!.watchFreed(index, onDone))
    for (const user of users) {
      // Reuses an existing wait for the stream.
      if (user.state !== "released") watches.push((onDone) => this.#streams.watch(user, onDone))
    }
    return watchAll(watches)(onDone, {})
  }

  /**
   * Watches one of the device's internal streams. Each wait has a separate lane. The driver is made to notice that releases have finished,
   * because a query of an event does not tell its pools.
   */
  #watchOwn(device: NativeDevice, stream: CUstream, onDone: OnDone): Cancel {
    const { calls } = this.#driver
    const isNoticed = stream === device.releases
    const ended = (status: number): Cancel => {
      onDone(status)
      return () => {}
    }
    const idle = calls.cuStreamQuery(stream)
    if (idle === success && isNoticed) {
      return ended(this.#driver.answer("cuStreamSynchronize", calls.cuStreamSynchronize(stream)))
    }
    if (idle !== notReady) return ended(this.#driver.answer("cuStreamQuery", idle))
    const marker = device.takeMarker()
    if (marker === undefined) return ended(this.#driver.madeBy(device))
    const recorded = calls.cuEventRecord(marker, stream)
    if (recorded === success) {
      // The marker keeps its record until others of this device take it, which is not before `onDone`.
      const notice: OnDone = (status, stage) =>
        onDone(
          status === success ? this.#driver.answer("cuEventSynchronize", calls.cuEventSynchronize(marker)) : status,
          stage
        )
      return this.#streams.watchMarker(
        new Lane(device.index, false),
        0,
        marker,
        { wakeUp: false },
        isNoticed ? notice : onDone
      )
    }
    device.giveMarker(marker)
    return ended(this.#driver.answer("cuEventRecord", recorded))
  }
}

const attributes = Int32Array.of(
  pointerAttributes.memoryType,
  pointerAttributes.isManaged,
  pointerAttributes.deviceOrdinal,
  pointerAttributes.rangeStart,
  pointerAttributes.rangeSize,
  pointerAttributes.pool
)

/** The position of the pool among the attributes. */
const poolWord = 5

const foundIn = (words: Uint32Array): PointerAttributes | undefined => {
  const [type = 0, , managed = 0, , ordinal = 0] = words
  if (type === 0) return undefined
  const wide = (index: number) => words[2 * index + 1]! * 2 ** 32 + words[2 * index]!
  const byteLength = wide(4)
  const isManaged = managed !== 0
  return {
    kind: type === memoryTypes.host && !isManaged ? "host" : "device",
    isManaged,
    deviceIndex: ordinal,
    range: byteLength === 0 ? undefined : { address: wide(3), byteLength }
  }
}
