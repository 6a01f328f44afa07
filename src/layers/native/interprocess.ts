/**
 * Memory of other processes on the driver.
 *
 * The driver frees and closes allocations outside of pools only while the device is idle, and blocks the thread until then, so that
 * happens at an idle moment. An allocation of a pool is opened once, however often a program opens it, because the driver gives it the
 * same address each time. It answers nothing useful to questions about an opened pool, and does not close one that has memory in use.
 */
import { closeSync, fstatSync, readFileSync, readlinkSync } from "node:fs"
import { hostname } from "node:os"
import {
  allocationHandleTypes,
  ipcLazyPeerAccess,
  locationTypes,
  memoryHandleSize,
  poolAccess
} from "../../cuda/flags.ts"
import { offsetBy } from "../../cuda/handles.ts"
import type { CUdeviceptr, CUmemoryPool } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { PointerAttributes, SharedMemory } from "../CudaRuntime.ts"
import type { InterprocessBackend } from "../shared/interprocess.ts"
import { DeviceMemoryResource, MemoryPoolResource } from "../shared/resources.ts"
import type { EventResource } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import { IdleMoments } from "./IdleMoments.ts"
import type { NativeMemory } from "./memory.ts"

/** An allocation of a pool of another process, opened in this one. */
interface Mapping {
  readonly pool: CUmemoryPool
  readonly base: CUdeviceptr
  /** How many buffers use it. 0 once its release is enqueued. */
  users: number
}

/** A release that must wait for an idle device. */
interface Pending {
  readonly deviceIndex: number
  readonly call: "cuMemFree" | "cuIpcCloseMemHandle"
  readonly address: CUdeviceptr
}

export class NativeInterprocess implements InterprocessBackend {
  readonly origin = originOf()
  descriptor = -1
  pool: MemoryPoolResource | undefined
  memory: DeviceMemoryResource | undefined
  readonly handle = new Uint8Array(memoryHandleSize)
  readonly #driver: Driver
  readonly #memory: NativeMemory
  readonly #idle: IdleMoments
  readonly #mappings = new Map<string, Mapping>()
  /** Each opened pool, and how often it was opened. The driver opens a pool once, too. */
  readonly #pools = new Map<CUmemoryPool, { readonly first: MemoryPoolResource; opened: number }>()
  /** The pools of this process that were exported. */
  readonly #exported = new Set<CUmemoryPool>()
  /** Closed pools whose memory was still in use. */
  readonly #left: Array<MemoryPoolResource> = []
  readonly #pending: Array<Pending> = []
  readonly #pointer = new Out<CUdeviceptr>()
  readonly #pool = new Out<CUmemoryPool>()
  readonly #integer = new Int32Array(1)

  constructor(driver: Driver, memory: NativeMemory, isIdle: () => boolean) {
    this.#driver = driver
    this.#memory = memory
    this.#idle = new IdleMoments(isIdle, () => this.#runAll(() => true), () => this.#pending.length > 0)
  }

  sharePool({ handle }: MemoryPoolResource): number {
    const name = "cuMemPoolExportToShareableHandle"
    const call = this.#driver.calls[name]
    const status = call?.(this.#integer, handle, allocationHandleTypes.posixFileDescriptor, 0) ?? missing
    this.descriptor = this.#integer[0]!
    if (status === success) this.#exported.add(handle)
    return this.#driver.answer(name, status)
  }

  /** The driver exports memory of a pool only once it has exported the pool. */
  #exportOnce(pool: MemoryPoolResource): number {
    if (this.#exported.has(pool.handle)) return success
    const status = this.sharePool(pool)
    if (status === success) this.closeDescriptor(this.descriptor)
    return status
  }

  /** Notes that a pool of this process is destroyed, whose handle the driver may use again. */
  forgetPool({ handle }: MemoryPoolResource): void {
    this.#exported.delete(handle)
  }

  openPool(deviceIndex: number, descriptor: number): number {
    const name = "cuMemPoolImportFromShareableHandle"
    const { calls, owner } = this.#driver
    const open = calls[name]
    const call = () => open?.(this.#pool.words, descriptor, allocationHandleTypes.posixFileDescriptor, 0) ?? missing
    const status = this.#driver.inContextOf(deviceIndex, name, call)
    if (status !== success) return status
    const handle = this.#pool.value
    const access = Int32Array.of(locationTypes.device, deviceIndex, poolAccess.readWrite)
    const set = calls.cuMemPoolSetAccess(handle, access, 1)
    if (set !== success) {
      if (!this.#pools.has(handle)) this.#driver.warn("cuMemPoolDestroy", calls.cuMemPoolDestroy(handle), handle)
      return this.#driver.answer("cuMemPoolSetAccess", set)
    }
    const pool = new MemoryPoolResource(owner, handle, deviceIndex, "opened")
    const known = this.#pools.get(handle)
    if (known === undefined) this.#pools.set(handle, { first: pool, opened: 1 })
    else {
      known.opened++
      pool.peers = known.first.peers
      pool.held = known.first.held
    }
    this.pool = pool
    return success
  }

  isPoolUsed({ handle }: MemoryPoolResource): boolean {
    return Array.from(this.#mappings.values()).some(({ pool, users }) => pool === handle && users > 0)
  }

  /** A pool whose memory is still in use is closed with its device. */
  closePool(pool: MemoryPoolResource): number {
    const { handle } = pool
    const known = this.#pools.get(handle)
    if (known !== undefined && known.opened > 1) {
      known.opened--
      return success
    }
    if (this.isPoolUsed(pool)) {
      this.#left.push(pool)
      return success
    }
    this.#pools.delete(handle)
    for (const [key, { pool }] of this.#mappings) if (pool === handle) this.#mappings.delete(key)
    return this.#driver.answer("cuMemPoolDestroy", this.#driver.calls.cuMemPoolDestroy(handle))
  }

  isDescriptor(descriptor: number): boolean {
    try {
      fstatSync(descriptor)
      return true
    } catch {
      return false
    }
  }

  takeDescriptor(pid: number, descriptor: number): number {
    const taken = this.#driver.library.takeDescriptor?.(pid, descriptor)
    if (taken === undefined) return this.#driver.answer("pidfd_getfd", statuses.NotSupported.code)
    if ("error" in taken) return this.#driver.answer(taken.call, statusOfError(taken.error))
    this.descriptor = taken.descriptor
    return success
  }

  closeDescriptor(descriptor: number): void {
    try {
      closeSync(descriptor)
    } catch {
      // The program has closed it itself.
    }
  }

  allocate(deviceIndex: number, byteLength: number): number {
    const call = () => this.#driver.calls.cuMemAlloc_v2?.(this.#pointer.words, byteLength) ?? missing
    const status = this.#driver.inContextOf(deviceIndex, "cuMemAlloc", call)
    if (status === success) {
      this.memory = new DeviceMemoryResource(this.#driver.owner, this.#pointer.value, byteLength, deviceIndex)
    }
    return status
  }

  share({ address, deviceIndex, sharing }: DeviceMemoryResource): number {
    const { cuIpcGetMemHandle, cuMemPoolExportPointer } = this.#driver.calls
    if (sharing instanceof MemoryPoolResource) {
      const exported = this.#exportOnce(sharing)
      if (exported !== success) return exported
      const status = cuMemPoolExportPointer?.(this.handle, address) ?? missing
      return this.#driver.answer("cuMemPoolExportPointer", status)
    }
    const call = () => cuIpcGetMemHandle?.(this.handle, address) ?? missing
    return this.#driver.inContextOf(deviceIndex, "cuIpcGetMemHandle", call)
  }

  isReopening(shared: SharedMemory, pool: MemoryPoolResource | undefined): boolean {
    return pool !== undefined && this.#mappings.get(keyOf(shared, pool))?.users === 0
  }

  openMemory(deviceIndex: number, shared: SharedMemory, pool: MemoryPoolResource | undefined): number {
    return pool === undefined
      ? this.#openAllocation(deviceIndex, shared)
      : this.#openOfPool(deviceIndex, shared, pool)
  }

  #openOfPool(deviceIndex: number, shared: SharedMemory, pool: MemoryPoolResource): number {
    const key = keyOf(shared, pool)
    const known = this.#mappings.get(key)
    if (known !== undefined && known.users > 0) {
      known.users++
      return this.#adopt(deviceIndex, known.base, shared)
    }
    const status = this.#driver.inContextOf(
      deviceIndex,
      "cuMemPoolImportPointer",
      () => this.#driver.calls.cuMemPoolImportPointer?.(this.#pointer.words, pool.handle, shared.handle) ?? missing
    )
    if (status !== success) return status
    const base = this.#pointer.value
    this.#mappings.set(key, { pool: pool.handle, base, users: 1 })
    return this.#adopt(deviceIndex, base, shared)
  }

  #openAllocation(deviceIndex: number, shared: SharedMemory): number {
    const status = this.#driver.inContextOf(
      deviceIndex,
      "cuIpcOpenMemHandle",
      () => this.#driver.calls.cuIpcOpenMemHandle_v2?.(this.#pointer.words, shared.handle, ipcLazyPeerAccess) ?? missing
    )
    return status === success ? this.#adopt(deviceIndex, this.#pointer.value, shared) : status
  }

  #adopt(deviceIndex: number, base: CUdeviceptr, { byteLength, offset }: SharedMemory): number {
    const memory = new DeviceMemoryResource(this.#driver.owner, offsetBy(base, offset), byteLength, deviceIndex)
    memory.opened = { base, returned: undefined }
    this.memory = memory
    return success
  }

  /** The range that the driver knows at the start of opened memory. */
  rangeOf({ deviceIndex, opened }: DeviceMemoryResource): PointerAttributes["range"] {
    const status = this.#memory.attributes(deviceIndex, opened!.base)
    return status === success ? this.#memory.found?.range : undefined
  }

  /** True if the last buffer over an allocation of a pool ends, so that it is released now. */
  isLastUser({ opened }: DeviceMemoryResource): boolean {
    for (const mapping of this.#mappings.values()) {
      if (mapping.base === opened!.base && mapping.users > 0) return --mapping.users === 0
    }
    return true
  }

  close({ deviceIndex, opened }: DeviceMemoryResource): void {
    this.#whenIdle({ deviceIndex, call: "cuIpcCloseMemHandle", address: opened!.base })
  }

  /** Frees an allocation outside of pools, which no work uses. */
  free({ address, deviceIndex }: DeviceMemoryResource): void {
    this.#whenIdle({ deviceIndex, call: "cuMemFree", address })
  }

  recordRelease(deviceIndex: number, event: EventResource): number {
    const { releases } = this.#driver.device(deviceIndex)
    return this.#driver.answer("cuEventRecord", this.#driver.calls.cuEventRecord(event.own, releases))
  }

  #whenIdle(pending: Pending): void {
    this.#pending.push(pending)
    this.#idle.request()
  }

  /** Frees and closes what waits for idle devices, unless that would block. */
  freeIfIdle(): void {
    this.#idle.runIfIdle()
  }

  #runAll(isMeant: (pending: Pending) => boolean): void {
    const { calls } = this.#driver
    for (const pending of this.#pending.splice(0)) {
      if (!isMeant(pending)) {
        this.#pending.push(pending)
        continue
      }
      const { address, call, deviceIndex } = pending
      const run = () =>
        call === "cuMemFree" ? calls.cuMemFree_v2(address) : calls.cuIpcCloseMemHandle?.(address) ?? missing
      this.#driver.warn(call, this.#driver.inContextOf(deviceIndex, call, run), address)
    }
  }

  /** Stops checking for idle devices. Called before the devices are closed, one after the other. */
  stop(): void {
    this.#idle.stop()
  }

  /** Frees and closes what is left of a device, after its last work. */
  closeDevice(index: number): void {
    this.#runAll(({ deviceIndex }) => deviceIndex === index)
    for (const pool of this.#left.filter(({ deviceIndex }) => deviceIndex === index)) {
      this.#driver.warn("cuMemPoolDestroy", this.closePool(pool), pool.handle)
    }
  }
}

/** The status of a function that the driver lacks. */
const missing = statuses.NotSupported.code

const keyOf = ({ handle }: SharedMemory, pool: MemoryPoolResource): string =>
  `${pool.handle}/${Buffer.from(handle).toString("hex")}`

/** `errno` of Linux: the process may not be looked into, or the system is too old. Everything else is a wrong argument. */
const statusOfError = (error: number): number => {
  if (error === 1 || error === 13) return statuses.NotPermitted.code
  return error === 38 ? statuses.NotSupported.code : statuses.InvalidValue.code
}

/** Deno refuses it without a permission. */
const hostName = (): string => {
  try {
    return hostname()
  } catch {
    return ""
  }
}

/** The same on every thread of a process, and different for every process, also in containers. */
const originOf = (): string => {
  try {
    // The name of the process, in parentheses, may contain anything; the 20th field after it is when the process started.
    const started = readFileSync("/proc/self/stat", "latin1").split(") ").at(-1)!.split(" ")[19]
    return `${process.pid}/${started}/${readlinkSync("/proc/self/ns/pid")}/${hostname()}`
  } catch {
    return `${process.pid}/${hostName()}`
  }
}
