/**
 * The simulated devices as a `Backend`: every call lets virtual time pass up to now, answers like the driver, and
 * leaves the waiting to the pacer.
 */
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { eventFlags } from "../../cuda/flags.ts"
import type { DeviceAttribute, KernelAttribute } from "../../cuda/flags.ts"
import { notReady, statuses, success } from "../../cuda/status.ts"
import type {
  BlockSuggestion,
  DeviceProperties,
  MemoryInfo,
  MemoryLocation,
  MemoryPoolOptions,
  MemoryPoolStatistics,
  ModuleOptions,
  PriorityRange
} from "../CudaRuntime.ts"
import type { Backend, Cancel, DriverFailure, Marker, OnDone, RowsTransfer, Transfer } from "../shared/Backend.ts"
import type { LaunchShape } from "../shared/launches.ts"
import { ModuleResource } from "../shared/modules.ts"
import type { KernelCode, KernelResource } from "../shared/modules.ts"
import type {
  AnyMemoryResource,
  DeviceMemoryResource,
  EventResource,
  HostMemoryResource,
  ManagedMemoryResource,
  MemoryPoolResource,
  StreamResource
} from "../shared/resources.ts"
import {
  activeBlocks,
  bestBlock,
  costOf,
  decodeAll,
  KernelFault,
  launchOf,
  Pointer,
  portableCluster,
  SimulatedCode
} from "./kernels.ts"
import type { Multiprocessor, SimulatedKernel } from "./kernels.ts"
import { Model, neverFinishes } from "./Model.ts"
import type { ResolvedDevice } from "./options.ts"
import { Pacer } from "./Pacer.ts"
import { EventState, Pool } from "./parts.ts"
import type { Device, EventRecord } from "./parts.ts"
import {
  memoryPart,
  SimulatedDeviceMemory,
  SimulatedEvent,
  simulatedEvent,
  SimulatedHostMemory,
  SimulatedManagedMemory,
  SimulatedPool,
  SimulatedStream,
  streamPart
} from "./resources.ts"
import { exportEvent, openEvent, withdrawEvent } from "./shared.ts"
import { Storage } from "./Storage.ts"
import { worldOf } from "./worlds.ts"
import type { ClockedWorld } from "./worlds.ts"

export interface BackendOptions {
  readonly devices: ReadonlyArray<ResolvedDevice>
  readonly driverVersion: number
  readonly peerAccess: (device: number, peer: number) => boolean
  /** Bytes of pinned memory there are. */
  readonly hostMemory: number
  readonly recordTimeline: boolean
  readonly kernels: ReadonlyMap<string, SimulatedKernel>
  /** The global variables of every module: how they begin. */
  readonly globals: ReadonlyMap<string, Uint8Array>
}

const invalidHandle = statuses.InvalidHandle.code
const outOfMemory = statuses.OutOfMemory.code
const notFound = statuses.NotFound.code

class SimulatedMarker implements Marker {
  readonly device: number
  readonly record: EventRecord
  constructor(record: EventRecord) {
    this.device = record.device.ordinal
    this.record = record
  }
}

export class SimulatedBackend implements Backend {
  readonly kind = "simulated"
  readonly driverVersion: number
  readonly devices: ReadonlyArray<DeviceProperties>
  readonly model: Model
  call = ""
  stream: StreamResource | undefined
  event: EventResource | undefined
  memory: DeviceMemoryResource | undefined
  managed: SimulatedManagedMemory | undefined
  pool: MemoryPoolResource | undefined
  poolStatisticsResult: MemoryPoolStatistics = {
    reservedBytes: 0,
    reservedHighWater: 0,
    usedBytes: 0,
    usedHighWater: 0
  }
  marker: SimulatedMarker | undefined
  code: SimulatedCode | undefined
  blockSuggestion: BlockSuggestion = { block: 0, minGrid: 0 }
  enqueuedPart = false
  result = 0
  memoryInfoResult: MemoryInfo = { free: 0, total: 0 }
  readonly #options: BackendOptions
  readonly #world: ClockedWorld
  readonly #pacer: Pacer
  readonly #shared = new Set<string>()
  /** Every buffer, for addresses that a program computes itself. */
  readonly #memories = new Set<SimulatedDeviceMemory | SimulatedHostMemory | SimulatedManagedMemory>()
  /** The runtime's pools of the devices, as far as they were asked for. */
  readonly #pools: Array<SimulatedPool | undefined> = []
  readonly #globals = new Map<ModuleResource, Map<string, SimulatedDeviceMemory>>()
  #because = ""

  constructor(options: BackendOptions, clock: Clock.Clock, context: Context.Context<never>) {
    this.#options = options
    this.#world = worldOf(clock)
    this.driverVersion = options.driverVersion
    this.devices = options.devices.map((device) => device.properties)
    this.model = new Model(this.#world.world, options.devices.map((device) => device.traits), options.recordTimeline)
    this.#pacer = new Pacer(this.model, clock, this.#world, context, (text) => {
      this.#because = text
    })
  }

  /** Lets virtual time pass up to now, and says what now is, in nanoseconds. */
  now(): number {
    const { world } = this.#world
    world.advance(this.#world.now())
    return world.now
  }

  /** Begins a call of the driver that touches a device: 0, or the fault that ended the device's context. */
  #begin(call: string, device: Device): number {
    this.call = call
    this.#world.world.advance(this.#world.now())
    return device.lost
  }

  #device(ordinal: number): Device {
    return this.model.devices[ordinal]!
  }

  describeStatus(status: number): { readonly name: string; readonly description: string } | undefined {
    return status === neverFinishes ? { name: "NeverFinishes", description: this.#because } : undefined
  }

  openDevice(device: number): Effect.Effect<void, DriverFailure> {
    return Effect.suspend(() => {
      const status = this.#begin("cuDevicePrimaryCtxRetain", this.#device(device))
      return status === success ? Effect.void : this.#fail(status)
    })
  }

  priorityRange(device: number): PriorityRange {
    return this.#options.devices[device]!.priorityRange
  }

  /** Answered without a context, so a fault does not matter; as on a GPU. */
  attribute(device: number, attribute: DeviceAttribute): number {
    this.call = "cuDeviceGetAttribute"
    this.result = this.#options.devices[device]!.attributes[attribute]
    return success
  }

  memoryInfo(device: number): number {
    const { lost, traits, usedMemory } = this.#settled("cuMemGetInfo", device)
    this.memoryInfoResult = { free: traits.memory - usedMemory, total: traits.memory }
    return lost
  }

  #settled(call: string, device: number): Device {
    this.#begin(call, this.#device(device))
    return this.#device(device)
  }

  /** Answered without a context, as on a GPU. */
  canAccessPeer(device: number, peer: number): number {
    this.call = "cuDeviceCanAccessPeer"
    this.result = device !== peer && this.#options.peerAccess(device, peer) ? 1 : 0
    return success
  }

  streamCreate(device: number, priority: number, nonBlocking: boolean): number {
    const status = this.#begin("cuStreamCreateWithPriority", this.#device(device))
    if (status !== success) return status
    this.stream = new SimulatedStream(
      this,
      this.model.createStream(this.#device(device), priority, nonBlocking),
      "owned"
    )
    return success
  }

  streamDefault(device: number, mode: "legacy" | "perThread"): number {
    const part = this.#device(device)
    const status = this.#begin("cuStreamGetId", part)
    if (status === success) this.stream = new SimulatedStream(this, part[mode], "default")
    return status
  }

  streamFromHandle(device: number, handle: number): number {
    const status = this.#begin("cuStreamGetId", this.#device(device))
    if (status !== success) return status
    const part = this.model.findStream(this.#device(device), handle)
    if (part === undefined) return invalidHandle
    this.stream = new SimulatedStream(this, part, "foreign")
    return success
  }

  streamDestroy(stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#begin("cuStreamDestroy", part.device)
    this.model.destroyStream(part)
    return status
  }

  streamQuery(stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#begin("cuStreamQuery", part.device)
    if (status !== success) return status
    return part.busy ? notReady : success
  }

  streamWaitEvent(stream: StreamResource, event: EventResource): number {
    const part = streamPart(stream)
    const status = this.#begin("cuStreamWaitEvent", part.device) || this.#device(event.device).lost
    if (status === success) this.model.waitEvent(part, simulatedEvent(event).part)
    return status
  }

  streamFork(from: StreamResource, branches: ReadonlyArray<StreamResource>): number {
    const part = streamPart(from)
    let status = this.#begin("cuStreamWaitEvent", part.device)
    for (const branch of branches) status ||= streamPart(branch).device.lost
    if (status === success) this.model.fork(part, branches.map(streamPart))
    return status
  }

  eventCreate(device: number, flags: number): number {
    const status = this.#begin("cuEventCreate", this.#device(device))
    if (status !== success) return status
    this.event = new SimulatedEvent(this, new EventState(), this.model.makeHandle(), device, flags)
    return success
  }

  eventDestroy(event: EventResource): number {
    const { sharedAs } = simulatedEvent(event)
    if (sharedAs !== undefined) this.#withdraw(sharedAs.key)
    return this.#begin("cuEventDestroy", this.#device(event.device))
  }

  eventRecord(event: EventResource, stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#begin("cuEventRecord", part.device)
    if (status === success) this.model.record(simulatedEvent(event).part, part)
    return status
  }

  eventQuery(event: EventResource): number {
    const status = this.#begin("cuEventQuery", this.#device(event.device))
    if (status !== success) return status
    const record = simulatedEvent(event).part.current
    if (record === undefined || record.done) return success
    return record.device.lost === 0 ? notReady : record.device.lost
  }

  eventElapsedTime(start: EventResource, end: EventResource): number {
    const status = this.#begin("cuEventElapsedTime", this.#device(end.device)) || this.#device(start.device).lost
    if (status !== success) return status
    const [first, last] = [simulatedEvent(start).part.current, simulatedEvent(end).part.current]
    if (first === undefined || last === undefined || !start.hasTiming || !end.hasTiming) return invalidHandle
    if (!first.done || !last.done) return notReady
    this.result = (last.time - first.time) / 1e6
    return success
  }

  eventIpcHandle(event: EventResource, into: Uint8Array): number {
    const status = this.#begin("cuIpcGetEventHandle", this.#device(event.device))
    if (status !== success) return status
    if ((event.flags & eventFlags.interprocess) === 0) return invalidHandle
    const own = simulatedEvent(event)
    if (own.sharedAs === undefined) {
      const handle = new Uint8Array(into.length)
      own.sharedAs = { key: exportEvent({ event: own.part, world: this.#world.world }, handle), handle }
      this.#shared.add(own.sharedAs.key)
    }
    into.set(own.sharedAs.handle)
    return success
  }

  /** Opens handles of every simulated runtime of this process that has the same clock. */
  eventFromIpcHandle(device: number, handle: Uint8Array): number {
    const status = this.#begin("cuIpcOpenEventHandle", this.#device(device))
    if (status !== success) return status
    const shared = openEvent(handle)
    if (shared === undefined) return invalidHandle
    if (shared.world !== this.#world.world) return statuses.NotSupported.code
    const flags = eventFlags.disableTiming | eventFlags.interprocess
    const event = new SimulatedEvent(this, shared.event, this.model.makeHandle(), device, flags)
    event.recorded = true
    this.event = event
    return success
  }

  #withdraw(key: string): void {
    withdrawEvent(key)
    this.#shared.delete(key)
  }

  markerRecord(stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#begin("cuEventRecord", part.device)
    if (status === success) this.marker = new SimulatedMarker(this.model.world.record(part, false))
    return status
  }

  markerWait(stream: StreamResource, marker: Marker): number {
    const part = streamPart(stream)
    const { record } = simulatedMarker(marker)
    const status = this.#begin("cuStreamWaitEvent", part.device) || record.device.lost
    if (status === success) this.model.world.wait(part, record, false)
    return status
  }

  markerQuery(marker: Marker): number {
    const { record } = simulatedMarker(marker)
    const status = this.#begin("cuEventQuery", record.device)
    if (status !== success) return status
    return record.done ? success : notReady
  }

  /** A record is nobody's to give back. */
  markerRelease(): void {}

  watchMarker(marker: Marker, onDone: OnDone): Cancel {
    const { record } = simulatedMarker(marker)
    const status = this.#begin("cuEventQuery", record.device)
    if (status === success) return this.#watch(record, onDone)
    onDone(status)
    return noCancel
  }

  memoryAllocate(
    device: number,
    byteLength: number,
    pool: MemoryPoolResource | undefined,
    stream: StreamResource | undefined
  ): number {
    const part = this.#device(device)
    const status = this.#begin("cuMemAllocFromPoolAsync", part)
    if (status !== success) return status
    const from = this.#poolPart(pool ?? this.poolOfDevice(device))
    const among = stream && streamPart(stream)
    if (!this.model.reserve(part, from, byteLength, among)) return outOfMemory
    const address = this.model.makeAddress(byteLength)
    const memory = new SimulatedDeviceMemory(this, new Storage(part, byteLength, from), address, device)
    if (among !== undefined) this.model.allocation(among, byteLength)
    this.#memories.add(memory)
    this.memory = memory
    return success
  }

  managedAllocate(device: number, byteLength: number): number {
    const part = this.#device(device)
    const status = this.#begin("cuMemAllocManaged", part)
    if (status !== success) return status
    if (this.#attributes(device).concurrentManagedAccess === 0) return statuses.NotSupported.code
    const storage = new Storage(part, byteLength, part.managed)
    if (!this.model.reserve(part, part.managed, byteLength)) return outOfMemory
    const memory = new SimulatedManagedMemory(this, storage, this.model.makeAddress(byteLength), device)
    this.#memories.add(memory)
    this.managed = memory
    return success
  }

  memoryFree(memory: DeviceMemoryResource): number {
    const part = this.#device(memory.device)
    this.#forget(memory)
    const status = this.#begin("cuMemFreeAsync", part)
    if (status !== success) return status
    const { soleUser } = memory
    if (soleUser !== undefined) this.model.releaseOn(part, memoryPart(memory), streamPart(soleUser))
    else this.model.release(part, memoryPart(memory), memory.pendingUsers.map(streamPart))
    return success
  }

  prefetchPiece(): number {
    return Number.POSITIVE_INFINITY
  }

  memoryPrefetch(
    memory: ManagedMemoryResource,
    _: number,
    byteLength: number,
    location: MemoryLocation,
    stream: StreamResource
  ): number {
    const part = streamPart(stream)
    const status = this.#begin("cuMemPrefetchAsync", part.device) || lostOf(memoryPart(memory))
    if (status === success) this.model.prefetch(part, byteLength, location === "host")
    return status
  }

  /** Nothing that a program could see depends on it here. */
  memoryAdvise(memory: ManagedMemoryResource): number {
    return this.#begin("cuMemAdvise", this.#device(memory.device))
  }

  poolCreate(device: number, options: MemoryPoolOptions): number {
    const part = this.#device(device)
    const status = this.#begin("cuMemPoolCreate", part)
    if (status !== success) return status
    this.pool = new SimulatedPool(
      this,
      new Pool(options.maxBytes, options.releaseThreshold),
      this.model.makeHandle(),
      device,
      "owned"
    )
    return success
  }

  poolOfDevice(device: number): MemoryPoolResource {
    return this.#pools[device] ??= new SimulatedPool(this, this.#device(device).pool, 0, device, "runtime")
  }

  #poolPart(pool: MemoryPoolResource): Pool {
    return (pool as SimulatedPool).part
  }

  poolDestroy(pool: MemoryPoolResource): number {
    const part = this.#device(pool.device)
    const status = this.#begin("cuMemPoolDestroy", part)
    if (status === success) this.model.dropPool(part, this.#poolPart(pool))
    return status
  }

  poolStatistics(pool: MemoryPoolResource): number {
    const status = this.#begin("cuMemPoolGetAttribute", this.#device(pool.device))
    const { reserved, reservedHigh, used, usedHigh } = this.#poolPart(pool)
    this.poolStatisticsResult = {
      reservedBytes: reserved,
      reservedHighWater: reservedHigh,
      usedBytes: used,
      usedHighWater: usedHigh
    }
    return status
  }

  poolResetHighWater(pool: MemoryPoolResource): number {
    const status = this.#begin("cuMemPoolSetAttribute", this.#device(pool.device))
    if (status === success) this.#poolPart(pool).resetHigh()
    return status
  }

  poolSetReleaseThreshold(pool: MemoryPoolResource, bytes: number): number {
    const status = this.#begin("cuMemPoolSetAttribute", this.#device(pool.device))
    if (status === success) this.#poolPart(pool).threshold = bytes
    return status
  }

  poolTrim(pool: MemoryPoolResource, keepBytes: number): number {
    const part = this.#device(pool.device)
    const status = this.#begin("cuMemPoolTrimTo", part)
    if (status === success) this.model.trim(part, this.#poolPart(pool), keepBytes)
    return status
  }

  hostAllocate(byteLength: number): Effect.Effect<HostMemoryResource, DriverFailure> {
    return Effect.suspend(() => {
      const status = this.#begin("cuMemHostRegister", this.#device(0))
      const memory = status === success ? this.#takeHostMemory(byteLength) : status
      return typeof memory === "number" ? this.#fail(memory) : Effect.succeed(memory)
    })
  }

  #takeHostMemory(byteLength: number): SimulatedHostMemory | number {
    if (this.model.usedHostMemory + byteLength > this.#options.hostMemory) return outOfMemory
    const part = new Storage(undefined, byteLength)
    if (!touch(part)) return outOfMemory
    this.model.usedHostMemory += byteLength
    const memory = new SimulatedHostMemory(this, part, this.model.makeAddress(byteLength))
    this.#memories.add(memory)
    return memory
  }

  #forget(memory: AnyMemoryResource): void {
    this.#memories.delete(memory as SimulatedDeviceMemory | SimulatedHostMemory | SimulatedManagedMemory)
  }

  hostFree(memory: HostMemoryResource): number {
    this.call = "cuMemHostUnregister"
    this.now()
    this.#forget(memory)
    const part = memoryPart(memory)
    part.detach()
    memory.bytes = new Uint8Array(0)
    this.model.releaseHost(part, memory.pendingUsers.map(streamPart))
    return success
  }

  memoryCopy(transfer: Transfer, stream: StreamResource): number {
    const part = streamPart(stream)
    const to = memoryPart(transfer.to)
    const from = memoryPart(transfer.from)
    const status = this.#begin("cuMemcpyAsync", part.device) || lostOf(to) || lostOf(from)
    if (status !== success) return status
    if (!touch(to) || !touch(from)) return outOfMemory
    this.model.copy(part, to, transfer.toOffset, from, transfer.fromOffset, transfer.byteLength)
    return success
  }

  memoryCopyRows(transfer: RowsTransfer, stream: StreamResource): number {
    const part = streamPart(stream)
    const to = memoryPart(transfer.to)
    const from = memoryPart(transfer.from)
    const status = this.#begin("cuMemcpy2DAsync", part.device) || lostOf(to) || lostOf(from)
    if (status !== success) return status
    if (!touch(to) || !touch(from)) return outOfMemory
    this.model.copyRows(part, to, from, transfer)
    return success
  }

  /** One after the other, which is one of the orders that the driver may choose. */
  memoryCopyBatch(transfers: ReadonlyArray<Transfer>, stream: StreamResource): number {
    for (const transfer of transfers) {
      const status = this.memoryCopy(transfer, stream)
      if (status !== success) return status
      this.enqueuedPart = true
    }
    return success
  }

  memoryFill(
    memory: DeviceMemoryResource,
    offset: number,
    value: number,
    bits: 8 | 16 | 32,
    count: number,
    stream: StreamResource
  ): number {
    const part = streamPart(stream)
    const to = memoryPart(memory)
    const status = this.#begin(`cuMemsetD${bits}Async`, part.device) || lostOf(to)
    if (status !== success) return status
    if (!touch(to)) return outOfMemory
    this.model.fill(part, to, offset, value, bits, count)
    return success
  }

  /** Enqueues work that takes a number of nanoseconds. */
  launch(
    stream: StreamResource,
    work: { readonly duration: number; readonly act?: () => void; readonly fault?: number }
  ): number {
    const part = streamPart(stream)
    const status = this.#begin("cuLaunchKernelEx", part.device)
    if (status === success) this.model.work(part, work)
    return status
  }

  /** Every image is accepted: what runs are the functions that the runtime was told of. */
  moduleLoad(image: Uint8Array, options: ModuleOptions): Effect.Effect<ModuleResource, DriverFailure> {
    return Effect.suspend(() => {
      const status = this.#begin("cuLibraryLoadData", this.#device(0))
      if (status !== success) return this.#fail(status)
      const module = new ModuleResource(this, this.model.makeHandle(), image.byteLength, options)
      this.#globals.set(module, new Map())
      return Effect.succeed(module)
    })
  }

  moduleUnload(module: ModuleResource): number {
    const status = this.#begin("cuLibraryUnload", this.#device(0))
    for (const memory of this.#globals.get(module)?.values() ?? []) this.#forget(memory)
    this.#globals.delete(module)
    return status
  }

  globalFind(module: ModuleResource, name: string, device: number): number {
    const status = this.#begin("cuLibraryGetGlobal", this.#device(device))
    if (status !== success) return status
    const memory = this.#global(module, name, device)
    if (memory === undefined) return notFound
    this.memory = memory
    return success
  }

  /** A module's variable on a device, made when it is first asked for. */
  #global(module: ModuleResource, name: string, device: number): SimulatedDeviceMemory | undefined {
    const key = `${device} ${name}`
    const made = this.#globals.get(module)
    const initial = this.#options.globals.get(name)
    if (made === undefined || initial === undefined || made.has(key)) return made?.get(key)
    const storage = new Storage(this.#device(device), initial.byteLength)
    storage.touch().set(initial)
    const memory = new SimulatedDeviceMemory(this, storage, this.model.makeAddress(initial.byteLength), device)
    made.set(key, memory)
    this.#memories.add(memory)
    return memory
  }

  kernelFind(module: ModuleResource, name: string): number {
    const status = this.#begin("cuLibraryGetKernel", this.#device(0))
    if (status !== success) return status
    const kernel = this.#options.kernels.get(name)
    if (kernel === undefined) return notFound
    this.code = new SimulatedCode(module, this.model.makeHandle(), name, kernel)
    return success
  }

  kernelLoad(_: KernelCode, device: number): number {
    return this.#begin("cuKernelGetFunction", this.#device(device))
  }

  kernelAttribute(code: KernelCode, attribute: KernelAttribute, device: number): number {
    this.call = "cuKernelGetAttribute"
    this.result = simulatedCode(code).attribute(attribute, device)
    return success
  }

  kernelSetAttribute(code: KernelCode, attribute: KernelAttribute, value: number, device: number): number {
    this.call = "cuKernelSetAttribute"
    simulatedCode(code).setAttribute(attribute, value, device)
    return success
  }

  kernelActiveBlocks(code: KernelCode, threads: number, sharedBytes: number, device: number): number {
    const status = this.#begin("cuOccupancyMaxActiveBlocksPerMultiprocessor", this.#device(device))
    this.result = activeBlocks(this.#multiprocessor(device), simulatedCode(code), device, threads, sharedBytes)
    return status
  }

  kernelBestBlock(code: KernelCode, sharedBytes: number, maxThreads: number, device: number): number {
    const status = this.#begin("cuOccupancyMaxPotentialBlockSize", this.#device(device))
    const multiprocessor = this.#multiprocessor(device)
    this.blockSuggestion = bestBlock(multiprocessor, simulatedCode(code), device, sharedBytes, maxThreads)
    return status
  }

  kernelActiveClusters(code: KernelCode, shape: LaunchShape, device: number): number {
    const status = this.#begin("cuOccupancyMaxActiveClusters", this.#device(device))
    const multiprocessor = this.#multiprocessor(device)
    const blocks = activeBlocks(multiprocessor, simulatedCode(code), device, shape.threads, shape.sharedBytes)
    const cluster = shape.clusterX * shape.clusterY * shape.clusterZ
    this.result = Math.floor(blocks * multiprocessor.count / cluster)
    return status
  }

  kernelMaxCluster(code: KernelCode, _: LaunchShape, device: number): number {
    this.result = simulatedCode(code).attribute("nonPortableClusterSizeAllowed", device) === 0
      ? portableCluster
      : 2 * portableCluster
    return this.#begin("cuOccupancyMaxPotentialClusterSize", this.#device(device))
  }

  #attributes(device: number): ResolvedDevice["attributes"] {
    return this.#options.devices[device]!.attributes
  }

  #multiprocessor(device: number): Multiprocessor {
    const attributes = this.#attributes(device)
    return {
      count: attributes.multiprocessorCount,
      threads: attributes.maxThreadsPerMultiprocessor,
      blocks: attributes.maxBlocksPerMultiprocessor,
      registers: attributes.maxRegistersPerMultiprocessor,
      sharedBytes: attributes.maxSharedMemoryPerMultiprocessor,
      warp: attributes.warpSize
    }
  }

  /** Kernels find their arguments through the launch itself. */
  argumentTable(): number {
    return 0
  }

  kernelLaunch(kernel: KernelResource, shape: LaunchShape, stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#begin("cuLaunchKernelEx", part.device)
    if (status !== success) return status
    const { arguments: packed, module, parameters } = kernel
    if (!packed.pointers.every(({ memory }) => memory === undefined || touch(memoryPart(memory)))) return outOfMemory
    const { kernel: simulated } = simulatedCode(kernel.code)
    const args = decodeAll(parameters, packed, (address) => this.#pointerAt(address))
    const launch = launchOf(args, shape, stream.device, (name) => this.#globalPointer(module, name, stream.device))
    this.model.work(part, {
      duration: costOf(simulated, launch),
      act: () => {
        try {
          simulated.run(launch)
        } catch (error) {
          if (!(error instanceof KernelFault)) throw error
          this.model.world.lose(part.device, error.status)
        }
      }
    })
    return success
  }

  /** An address that a program computed itself, up to the end of the buffer that it is in. */
  #pointerAt(address: number): Pointer {
    for (const memory of this.#memories) {
      const offset = address - memory.address
      if (offset < 0 || offset >= memory.byteLength) continue
      return new Pointer(memory.part, offset, memory.byteLength - offset, address)
    }
    return new Pointer(undefined, 0, 0, address)
  }

  #globalPointer(module: ModuleResource, name: string, device: number): Pointer {
    const memory = this.#global(module, name, device)
    if (memory === undefined) throw new KernelFault("LaunchFailed")
    return new Pointer(memory.part, 0, memory.byteLength, memory.address)
  }

  /** Loading code takes no time here, and waits for nothing. */
  isIdle(): boolean {
    return true
  }

  watchIdle(_: number, onDone: OnDone): Cancel {
    onDone(success)
    return noCancel
  }

  /** Ends a device's context. */
  lose(device: number, status: number): void {
    this.now()
    this.model.world.lose(this.#device(device), status)
    this.#pacer.arm()
  }

  /** The content of a device buffer. */
  bytesOf(memory: AnyMemoryResource): Uint8Array<ArrayBuffer> | undefined {
    this.now()
    const part = memoryPart(memory)
    return touch(part) ? part.touch() : undefined
  }

  watchEvent(event: EventResource, onDone: OnDone): Cancel {
    const status = this.#begin("cuEventQuery", this.#device(event.device))
    const record = simulatedEvent(event).part.current
    if (status === success && record !== undefined) return this.#watch(record, onDone)
    onDone(status)
    return noCancel
  }

  watchStream(stream: StreamResource, onDone: OnDone): Cancel {
    const part = streamPart(stream)
    const status = this.#begin("cuStreamQuery", part.device)
    if (status === success) return this.#watch(this.model.world.record(part, true), onDone)
    onDone(status)
    return noCancel
  }

  allocationQuery(device: number): number {
    return this.#begin("cuStreamQuery", this.#device(device))
  }

  watchAllocation(device: number, onDone: OnDone): Cancel {
    onDone(this.#begin("cuStreamQuery", this.#device(device)))
    return noCancel
  }

  watchReleases(device: number, onDone: OnDone): Cancel {
    const part = this.#device(device)
    const status = this.#begin("cuStreamQuery", part)
    if (status === success) {
      this.model.gatherReleases(part)
      return this.#watch(this.model.world.record(part.releases, true), onDone)
    }
    onDone(status)
    return noCancel
  }

  #watch(record: EventRecord, onDone: OnDone): Cancel {
    const watcher = this.model.watchRecord(record, onDone)
    if (watcher === undefined) return noCancel
    this.#pacer.arm()
    return () => {
      this.model.world.unwatch(watcher)
      this.#pacer.relax()
    }
  }

  settle(): void {
    this.now()
    this.model.tell((text) => {
      this.#because = text
    })
  }

  readonly close: Effect.Effect<void> = Effect.sync(() => {
    this.#pacer.stop()
    for (const pool of this.#pools) if (pool !== undefined) pool.state = "released"
    this.model.close(statuses.Deinitialized.code)
    for (const key of this.#shared) withdrawEvent(key)
    this.#shared.clear()
  })

  #fail(status: number): Effect.Effect<never, DriverFailure> {
    return Effect.fail({ call: this.call, status })
  }
}

const noCancel = (): void => {}

/** Every kernel of a simulated runtime is one of these. */
const simulatedCode = (code: KernelCode): SimulatedCode => code as SimulatedCode

/** Every marker of a simulated runtime is one of these. */
const simulatedMarker = (marker: Marker): SimulatedMarker => marker as SimulatedMarker

const lostOf = (storage: Storage): number => storage.device === undefined ? success : storage.device.lost

/** Makes sure that the bytes are there; false when the process cannot hold them. */
const touch = (storage: Storage): boolean => {
  try {
    storage.touch()
    return true
  } catch {
    return false
  }
}
