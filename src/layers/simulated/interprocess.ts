/**
 * Memory of other processes on simulated devices: that of other simulated runtimes in this process with the same clock.
 */
import { memoryHandleSize } from "../../cuda/flags.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { Address, PointerAttributes, SharedMemory } from "../CudaRuntime.ts"
import type { InterprocessBackend } from "../shared/interprocess.ts"
import type { DeviceMemoryResource, EventResource, MemoryPoolResource } from "../shared/resources.ts"
import type { AddressSpace } from "./addressSpace.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { Pool } from "./model/parts.ts"
import {
  describePool,
  exportMemory,
  forgetDescriptor,
  OpenedStorage,
  poolOf,
  sharedMemory,
  withdrawMemory
} from "./model/sharedMemory.ts"
import { Storage } from "./model/Storage.ts"
import { memoryPart, poolPart, SimulatedDeviceMemory, simulatedEvent, SimulatedPool } from "./resources.ts"

const { InvalidContext, InvalidValue, NotSupported, OutOfMemory } = statuses

/** A pool of another runtime. */
class OpenedPool extends SimulatedPool {
  source: object | undefined
  /** How many buffers of it are in use. */
  users = 0
}

/** Memory of another runtime. */
class OpenedDeviceMemory extends SimulatedDeviceMemory {
  from: OpenedPool | undefined
  /** The end of the allocation that it is in. */
  end = 0
}

export class SimulatedInterprocess implements InterprocessBackend {
  readonly origin: string = crypto.randomUUID()
  descriptor = -1
  pool: MemoryPoolResource | undefined
  memory: DeviceMemoryResource | undefined
  readonly handle = new Uint8Array(memoryHandleSize)
  readonly #driver: SimulatedDriver
  readonly #addresses: AddressSpace
  /** The handles of shared memory. */
  readonly #shared = new Map<DeviceMemoryResource, { readonly key: string; readonly handle: Uint8Array }>()

  constructor(driver: SimulatedDriver, addresses: AddressSpace) {
    this.#driver = driver
    this.#addresses = addresses
  }

  sharePool(pool: MemoryPoolResource): number {
    const { model: { world }, owner } = this.#driver
    const device = this.#driver.device(pool.deviceIndex)
    const status = this.#driver.begin("cuMemPoolExportToShareableHandle", device)
    if (status === success) this.descriptor = describePool({ world, owner, pool: poolPart(pool) })
    return status
  }

  /** Its descriptors stand for it as long as they are open. */
  forgetPool(): void {}

  openPool(deviceIndex: number, descriptor: number): number {
    const { model, owner } = this.#driver
    const status = this.#driver.begin("cuMemPoolImportFromShareableHandle", this.#driver.device(deviceIndex))
    if (status !== success) return status
    const shared = poolOf(descriptor)
    if (shared === undefined) return InvalidValue.code
    if (shared.owner === owner) return InvalidContext.code
    if (shared.world !== model.world) return NotSupported.code
    const pool = new OpenedPool(owner, new Pool(0, 0), model.makeHandle(), deviceIndex, "opened")
    pool.source = shared.pool
    this.pool = pool
    return success
  }

  isPoolUsed(pool: MemoryPoolResource): boolean {
    return pool instanceof OpenedPool && pool.users > 0
  }

  closePool(pool: MemoryPoolResource): number {
    return this.#driver.begin("cuMemPoolDestroy", this.#driver.device(pool.deviceIndex))
  }

  isDescriptor(descriptor: number): boolean {
    return poolOf(descriptor) !== undefined
  }

  takeDescriptor(pid: number, descriptor: number): number {
    this.#driver.call = "pidfd_getfd"
    const shared = pid === process.pid ? poolOf(descriptor) : undefined
    if (shared === undefined) return InvalidValue.code
    this.descriptor = describePool(shared)
    return success
  }

  closeDescriptor(descriptor: number): void {
    forgetDescriptor(descriptor)
  }

  allocate(deviceIndex: number, byteLength: number): number {
    const { model, owner } = this.#driver
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuMemAlloc", part)
    if (status !== success) return status
    if (!model.reserve(part, part.managed, byteLength)) return OutOfMemory.code
    const storage = new Storage(part, byteLength, part.managed)
    const memory = new SimulatedDeviceMemory(owner, storage, model.makeAddress(byteLength), deviceIndex)
    this.#addresses.add(memory)
    this.memory = memory
    return success
  }

  share(memory: DeviceMemoryResource): number {
    const { model: { world }, owner } = this.#driver
    const { sharing } = memory
    const call = sharing === "allocation" ? "cuIpcGetMemHandle" : "cuMemPoolExportPointer"
    const status = this.#driver.begin(call, this.#driver.device(memory.deviceIndex))
    if (status !== success) return status
    const known = this.#shared.get(memory)
    if (known !== undefined) {
      this.handle.set(known.handle)
      return success
    }
    const pool = sharing === "allocation" || sharing === undefined ? undefined : poolPart(sharing)
    const isLive = () => memory.state === "live"
    const key = exportMemory({ world, owner, pool, storage: memoryPart(memory), isLive }, this.handle)
    this.#shared.set(memory, { key, handle: this.handle.slice() })
    return success
  }

  /** A handle of memory that was shared and is released now leads nowhere. */
  withdraw(memory: DeviceMemoryResource): void {
    const known = this.#shared.get(memory)
    if (known === undefined) return
    withdrawMemory(known.key)
    this.#shared.delete(memory)
  }

  isReopening(): boolean {
    return false
  }

  openMemory(deviceIndex: number, shared: SharedMemory, pool: MemoryPoolResource | undefined): number {
    const { model, owner } = this.#driver
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin(pool === undefined ? "cuIpcOpenMemHandle" : "cuMemPoolImportPointer", part)
    if (status !== success) return status
    const found = sharedMemory(shared.handle)
    const from = pool instanceof OpenedPool ? pool : undefined
    if (found === undefined || found.pool !== from?.source) return InvalidValue.code
    if (found.owner === owner) return InvalidContext.code
    if (found.world !== model.world) return NotSupported.code
    const whole = found.storage
    const address = model.makeAddress(whole.byteLength)
    const storage = new OpenedStorage(part, whole, shared.offset, shared.byteLength)
    const memory = new OpenedDeviceMemory(owner, storage, address + shared.offset, deviceIndex)
    memory.from = from
    memory.end = address + whole.byteLength
    memory.opened = { base: address as Address, returned: undefined }
    if (from !== undefined) from.users++
    this.#addresses.add(memory)
    this.memory = memory
    return success
  }

  rangeOf(memory: DeviceMemoryResource): PointerAttributes["range"] {
    const { base } = memory.opened!
    return memory instanceof OpenedDeviceMemory ? { address: base, byteLength: memory.end - base } : undefined
  }

  /** Notes that memory of a pool of another runtime is released. */
  leave(memory: DeviceMemoryResource): void {
    if (memory instanceof OpenedDeviceMemory && memory.from !== undefined) memory.from.users--
  }

  close(memory: DeviceMemoryResource): void {
    this.#addresses.forget(memory)
    this.#driver.begin("cuIpcCloseMemHandle", this.#driver.device(memory.deviceIndex))
  }

  recordRelease(deviceIndex: number, event: EventResource): number {
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuEventRecord", part)
    if (status === success) this.#driver.model.record(simulatedEvent(event).part, part.releases)
    return status
  }
}
