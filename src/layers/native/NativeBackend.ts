/**
 * The backend on the driver API, on each device's primary context.
 *
 * Calls that only need a handle are made as they are, since the handle carries its context; the rest are made between
 * `enter` and `leave` of the device, so that what other native code made current stays current.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { inTurn } from "../../cuda/asyncCalls.ts"
import {
  defaultStreamHandles,
  deviceAttributes,
  eventFlags,
  kernelAttributes,
  locationTypes,
  memoryAdvice,
  poolAttributes,
  streamFlags
} from "../../cuda/flags.ts"
import type { DeviceAttribute, KernelAttribute, MemoryAdvice } from "../../cuda/flags.ts"
import { locationOf } from "../../cuda/functions.ts"
import type { DriverFunctions } from "../../cuda/functions.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { notReady, statuses, success } from "../../cuda/status.ts"
import { reasonFromStatus } from "../../CudaError.ts"
import type {
  Address,
  BlockSuggestion,
  DeviceProperties,
  EventHandle,
  MemoryInfo,
  MemoryLocation,
  MemoryPoolOptions,
  MemoryPoolStatistics,
  ModuleOptions,
  PriorityRange,
  StreamHandle,
  WaitOptions
} from "../CudaRuntime.ts"
import type { Arguments } from "../internal/arguments.ts"
import type {
  Backend,
  Cancel,
  DriverFailure,
  Marker,
  OnDone,
  RowsTransfer,
  Transfer,
  WaitStage
} from "../internal/Backend.ts"
import { watchAll } from "../internal/Core.ts"
import type { Watch } from "../internal/Core.ts"
import type { LaunchShape } from "../internal/launches.ts"
import { KernelCode } from "../internal/modules.ts"
import type { KernelResource, ModuleResource, ParameterInfo } from "../internal/modules.ts"
import { DeviceMemoryResource, HostMemoryResource, MemoryPoolResource } from "../internal/resources.ts"
import type { EventResource, ManagedMemoryResource, StreamResource } from "../internal/resources.ts"
import { Completion } from "./Completion.ts"
import type { WaitPolicy } from "./Completion.ts"
import { Copies } from "./Copies.ts"
import { describeStatus, keepAll, NativeDevice, NativeEvent, NativeStream, Out, poolProperties } from "./Device.ts"
import type { Warn } from "./Device.ts"
import { Lane, Point } from "./Lane.ts"
import { LaunchBlock } from "./LaunchBlock.ts"
import { ManagedMemory, NativeManaged } from "./ManagedMemory.ts"
import { Modules } from "./Modules.ts"
import { PinnedMemory } from "./PinnedMemory.ts"
import type { Block, PinnedPolicy } from "./PinnedMemory.ts"
import type { Waker } from "./Waker.ts"

/** What the native runtime was told at its start, complete. */
export interface NativePolicy {
  readonly wait: WaitPolicy
  readonly pinned: PinnedPolicy
}

class PinnedResource extends HostMemoryResource {
  readonly block: Block
  constructor(owner: NativeBackend, block: Block, byteLength: number) {
    super(owner, block.address as Address, new Uint8Array(block.buffer, 0, byteLength))
    this.block = block
  }
}

/** An event of a device's store, recorded on a stream. */
class NativeMarker implements Marker {
  readonly device: number
  readonly stream: NativeStream
  readonly event: number
  /** The place of the record among those of the stream. */
  readonly order: number
  constructor(stream: NativeStream, event: number) {
    this.device = stream.device
    this.stream = stream
    this.event = event
    this.order = stream.records
  }
}

export class NativeBackend implements Backend {
  readonly kind = "native"
  readonly driverVersion: number
  readonly devices: ReadonlyArray<DeviceProperties>
  call = ""
  stream: NativeStream | undefined
  event: NativeEvent | undefined
  memory: DeviceMemoryResource | undefined
  managed: NativeManaged | undefined
  pool: MemoryPoolResource | undefined
  poolStatisticsResult: MemoryPoolStatistics = {
    reservedBytes: 0,
    reservedBytesHigh: 0,
    usedBytes: 0,
    usedBytesHigh: 0
  }
  marker: NativeMarker | undefined
  code: KernelCode | undefined
  enqueuedPart = false
  result = 0
  blockSuggestion: BlockSuggestion = { block: 0, minGrid: 0 }
  memoryInfoResult: MemoryInfo = { free: 0, total: 0 }
  readonly #library: DriverLibrary
  readonly #calls: DriverFunctions
  /** The newer version takes a third of the time. It may not tell of a fault, which the next call then does. */
  readonly #elapsedTime: DriverFunctions["cuEventElapsedTime"]
  readonly #handles: ReadonlyArray<number>
  readonly #opened: Array<NativeDevice | undefined>
  readonly #streams = new Set<NativeStream>()
  readonly #completion: Completion
  readonly #pinned: PinnedMemory
  readonly #modules: Modules
  readonly #block: LaunchBlock
  readonly #copies: Copies
  readonly #managedMemory: ManagedMemory
  /** The runtime's pools of the devices, as far as they were asked for. */
  readonly #pools: Array<MemoryPoolResource | undefined> = []
  readonly #warn: Warn
  /** The contexts are lost: what was kept for reuse would hide that. */
  #isLost = false
  /** Releases that wait for the work of streams. */
  readonly #pendingReleases = new Set<() => void>()
  readonly #out = new Out()
  readonly #integer = new Int32Array(1)
  readonly #second = new Int32Array(1)
  readonly #flags = new Uint32Array(1)
  readonly #float = new Float32Array(1)
  readonly #sizes = new BigUint64Array(2)

  constructor(
    library: DriverLibrary,
    driverVersion: number,
    devices: ReadonlyArray<{ readonly handle: number; readonly properties: DeviceProperties }>,
    policy: NativePolicy,
    waker: Waker | undefined,
    warn: Warn
  ) {
    this.#warn = warn
    this.driverVersion = driverVersion
    this.devices = devices.map((device) => device.properties)
    this.#library = library
    this.#calls = library.calls
    this.#elapsedTime = library.calls.cuEventElapsedTime_v2 ?? library.calls.cuEventElapsedTime
    this.#handles = devices.map((device) => device.handle)
    this.#opened = devices.map(() => undefined)
    this.#completion = new Completion(
      library.calls,
      policy.wait,
      waker,
      (ordinal) => this.#device(ordinal),
      (call, status) => void this.#answer(call, status)
    )
    this.#pinned = new PinnedMemory(
      library,
      policy.pinned,
      (name, call) => this.#inFirstContext(name, call),
      () => this.#isIdle(),
      warn
    )
    this.#modules = new Modules(library, this, () => this.#isIdle(), warn)
    this.#block = new LaunchBlock(library)
    this.#managedMemory = new ManagedMemory(
      library.calls,
      (ordinal, name, call) => this.#inContextOf(ordinal, name, call),
      () => this.#isIdle(),
      warn
    )
    this.#copies = new Copies(
      library.calls,
      this,
      (call, status) => this.#answer(call, status),
      (ordinal) => this.#device(ordinal).context
    )
  }

  /** Notes which call a status came from, for failures, and whether it ends the contexts. */
  #answer(call: string, status: number): number {
    if (status === success) return status
    this.call = call
    if (status !== notReady && reasonFromStatus(status).isSticky) this.#isLost = true
    return status
  }

  /** Only for devices that are open: the shared runtime opens a device before it gives out anything of it. */
  #device(ordinal: number): NativeDevice {
    return this.#opened[ordinal]!
  }

  readonly describeStatus = (status: number) => describeStatus(this.#library, status)

  // Devices

  readonly openDevice = (ordinal: number): Effect.Effect<void, DriverFailure> =>
    Effect.callback((resume) => {
      const handle = this.#handles[ordinal]!
      const context = new Out()
      inTurn((onEnd) => this.#calls.cuDevicePrimaryCtxRetain.async(context.words, handle, onEnd), (_, retained) => {
        if (retained !== success) return resume(Effect.fail({ call: "cuDevicePrimaryCtxRetain", status: retained }))
        const device = new NativeDevice(this.#calls, ordinal, handle, context.value)
        const { call, status } = device.setUp(this.#warn)
        if (status === success) {
          this.#opened[ordinal] = device
          return resume(Effect.void)
        }
        this.#calls.cuDevicePrimaryCtxRelease_v2(handle)
        resume(Effect.fail({ call, status }))
      })
    })

  readonly priorityRange = (device: number): PriorityRange => this.#device(device).priorities

  readonly attribute = (device: number, attribute: DeviceAttribute): number => {
    const status = this.#calls.cuDeviceGetAttribute(this.#integer, deviceAttributes[attribute], this.#handles[device]!)
    this.result = this.#integer[0]!
    return this.#answer("cuDeviceGetAttribute", status)
  }

  readonly memoryInfo = (ordinal: number): number => {
    const device = this.#device(ordinal)
    const entered = device.enter()
    if (entered !== success) return this.#answer("cuCtxPushCurrent", entered)
    const status = this.#calls.cuMemGetInfo_v2(this.#sizes.subarray(0, 1), this.#sizes.subarray(1, 2))
    device.leave()
    this.memoryInfoResult = { free: Number(this.#sizes[0]), total: Number(this.#sizes[1]) }
    return this.#answer("cuMemGetInfo", status)
  }

  readonly canAccessPeer = (device: number, peer: number): number => {
    const status = this.#calls.cuDeviceCanAccessPeer(this.#integer, this.#handles[device]!, this.#handles[peer]!)
    this.result = this.#integer[0]!
    return this.#answer("cuDeviceCanAccessPeer", status)
  }

  // Streams

  readonly streamCreate = (ordinal: number, priority: number, nonBlocking: boolean): number => {
    const device = this.#device(ordinal)
    const entered = device.enter()
    if (entered !== success) return this.#answer("cuCtxPushCurrent", entered)
    const flags = nonBlocking ? streamFlags.nonBlocking : streamFlags.default
    const status = this.#calls.cuStreamCreateWithPriority(this.#out.words, flags, priority)
    device.leave()
    if (status !== success) return this.#answer("cuStreamCreateWithPriority", status)
    const handle = this.#out.value
    const identified = this.#calls.cuStreamGetId(handle, this.#out.words)
    if (identified !== success) {
      this.#calls.cuStreamDestroy_v2(handle)
      return this.#answer("cuStreamGetId", identified)
    }
    this.stream = new NativeStream(this, {
      handle: handle as StreamHandle,
      id: this.#out.value,
      device: ordinal,
      priority,
      nonBlocking,
      origin: "owned"
    })
    this.#streams.add(this.stream)
    return success
  }

  readonly streamDefault = (ordinal: number, mode: "legacy" | "perThread"): number => {
    const handle = defaultStreamHandles[mode]
    const device = this.#device(ordinal)
    const entered = device.enter()
    if (entered !== success) return this.#answer("cuCtxPushCurrent", entered)
    const status = this.#calls.cuStreamGetId(handle, this.#out.words)
    device.leave()
    if (status !== success) return this.#answer("cuStreamGetId", status)
    this.stream = new NativeStream(this, {
      handle: handle as StreamHandle,
      id: mode === "legacy" ? 0 : this.#out.value,
      device: ordinal,
      priority: 0,
      nonBlocking: false,
      origin: "default"
    })
    this.#streams.add(this.stream)
    return success
  }

  readonly streamFromHandle = (ordinal: number, handle: number): number => {
    const device = this.#device(ordinal)
    const status = this.#calls.cuStreamGetCtx(handle, this.#out.words)
    if (status !== success) return this.#answer("cuStreamGetCtx", status)
    if (this.#out.value !== device.context) return this.#answer("cuStreamGetCtx", 201)
    const id = this.#calls.cuStreamGetId(handle, this.#out.words)
    const priority = this.#calls.cuStreamGetPriority(handle, this.#integer)
    const flags = this.#calls.cuStreamGetFlags(handle, this.#flags)
    if (id !== success) return this.#answer("cuStreamGetId", id)
    if (priority !== success) return this.#answer("cuStreamGetPriority", priority)
    if (flags !== success) return this.#answer("cuStreamGetFlags", flags)
    this.stream = new NativeStream(this, {
      handle: handle as StreamHandle,
      id: this.#out.value,
      device: ordinal,
      priority: this.#integer[0]!,
      nonBlocking: (this.#flags[0]! & streamFlags.nonBlocking) !== 0,
      origin: "foreign"
    })
    return success
  }

  readonly streamDestroy = (resource: StreamResource): number => {
    const stream = native(resource)
    this.#streams.delete(stream)
    this.#device(stream.device).freedOn.delete(stream)
    if (stream.lane !== undefined) this.#completion.forget(stream.lane)
    return this.#answer("cuStreamDestroy", this.#calls.cuStreamDestroy_v2(stream.handle))
  }

  readonly streamQuery = (resource: StreamResource): number => {
    const stream = native(resource)
    if (!stream.needsContext) return this.#answer("cuStreamQuery", this.#calls.cuStreamQuery(stream.handle))
    return this.#inContextOf(stream.device, "cuStreamQuery", () => this.#calls.cuStreamQuery(stream.handle))
  }

  readonly streamWaitEvent = (stream: StreamResource, event: EventResource): number =>
    this.#waitFor(native(stream), event.own)

  readonly streamFork = (from: StreamResource, branches: ReadonlyArray<StreamResource>): number => {
    const device = this.#device(from.device)
    const marker = device.takeMarker()
    if (marker === 0) return this.#answer(device.made.call, device.made.status)
    let status = this.#recordOn(marker, native(from))
    for (let index = 0; index < branches.length && status === success; index++) {
      status = this.#waitFor(native(branches[index]!), marker)
    }
    device.giveMarker(marker)
    return status
  }

  #waitFor(stream: NativeStream, event: number): number {
    if (!stream.needsContext) {
      return this.#answer("cuStreamWaitEvent", this.#calls.cuStreamWaitEvent(stream.handle, event, 0))
    }
    return this.#inContextOf(
      stream.device,
      "cuStreamWaitEvent",
      () => this.#calls.cuStreamWaitEvent(stream.handle, event, 0)
    )
  }

  // Events

  readonly eventCreate = (ordinal: number, flags: number): number => {
    const device = this.#device(ordinal)
    const kept = this.#isLost ? 0 : device.takeEvent(flags)
    if (kept !== 0) {
      this.event = new NativeEvent(this, { handle: kept as EventHandle, device: ordinal, flags })
      return success
    }
    const entered = device.enter()
    if (entered !== success) return this.#answer("cuCtxPushCurrent", entered)
    const status = this.#calls.cuEventCreate(this.#out.words, flags)
    device.leave()
    return this.#adoptEvent("cuEventCreate", status, ordinal, flags)
  }

  readonly eventFromIpcHandle = (ordinal: number, handle: Uint8Array): number => {
    const device = this.#device(ordinal)
    const entered = device.enter()
    if (entered !== success) return this.#answer("cuCtxPushCurrent", entered)
    const status = this.#calls.cuIpcOpenEventHandle(this.#out.words, handle)
    device.leave()
    const flags = eventFlags.interprocess | eventFlags.disableTiming
    const adopted = this.#adoptEvent("cuIpcOpenEventHandle", status, ordinal, flags)
    if (adopted === success) this.event!.recorded = true
    return adopted
  }

  #adoptEvent(call: string, status: number, device: number, flags: number): number {
    if (status !== success) return this.#answer(call, status)
    this.event = new NativeEvent(this, { handle: this.#out.value as EventHandle, device, flags })
    return success
  }

  /** An event that is waited for is destroyed by its last wait. */
  /** An event that is waited for is destroyed by its last wait; one that is as good as new is kept, if there is room. */
  readonly eventDestroy = (resource: EventResource): number => {
    const event = nativeEvent(resource)
    if (event.point !== undefined) {
      event.point.release = () => this.#warn("cuEventDestroy", this.#calls.cuEventDestroy_v2(event.own), event.own)
      return success
    }
    const device = this.#device(event.device)
    if (event.isAsNew && device.hasRoomFor(event.flags)) {
      device.keepEvent(event.flags, event.own)
      return success
    }
    return this.#answer("cuEventDestroy", this.#calls.cuEventDestroy_v2(event.own))
  }

  readonly eventRecord = (resource: EventResource, streamResource: StreamResource): number => {
    const event = nativeEvent(resource)
    const stream = native(streamResource)
    if (event.point !== undefined) {
      const kept = this.#keepRecord(event, event.point)
      if (kept !== success) return kept
    }
    const status = this.#recordOn(event.own, stream)
    if (status !== success) return status
    event.recordedOn = stream
    event.recordNumber = stream.records
    event.isKnownDone = false
    return success
  }

  #recordOn(event: number, stream: NativeStream): number {
    stream.records++
    if (!stream.needsContext) {
      return this.#answer("cuEventRecord", this.#calls.cuEventRecord(event, stream.handle))
    }
    return this.#inContextOf(stream.device, "cuEventRecord", () => this.#calls.cuEventRecord(event, stream.handle))
  }

  /** Lets the waits for an event's record go on after it is replaced: they ask about a marker that follows it. */
  #keepRecord(event: NativeEvent, point: Point): number {
    const { lane, order } = point
    const device = this.#device(lane.device)
    const side = this.#completion.sideFor(lane, order)
    if (side === undefined) return this.#answer(device.made.call, device.made.status)
    const marker = device.takeMarker()
    if (marker === 0) return this.#answer(device.made.call, device.made.status)
    const waited = this.#calls.cuStreamWaitEvent(side.stream, event.own, 0)
    const status = waited === success ? this.#calls.cuEventRecord(marker, side.stream) : waited
    if (status !== success) {
      device.giveMarker(marker)
      return this.#answer(waited === success ? "cuEventRecord" : "cuStreamWaitEvent", status)
    }
    side.order = order
    point.event = marker
    point.release = () => device.giveMarker(marker)
    event.point = undefined
    return success
  }

  readonly eventQuery = (resource: EventResource): number => {
    const event = nativeEvent(resource)
    const status = this.#answer("cuEventQuery", this.#calls.cuEventQuery(event.own))
    if (status === success) event.isKnownDone = true
    return status
  }

  readonly eventElapsedTime = (start: EventResource, end: EventResource): number => {
    const status = this.#elapsedTime(this.#float, start.own, end.own)
    this.result = this.#float[0]!
    return this.#answer("cuEventElapsedTime", status)
  }

  readonly eventIpcHandle = (event: EventResource, into: Uint8Array): number => {
    const device = this.#device(event.device)
    const entered = device.enter()
    if (entered !== success) return this.#answer("cuCtxPushCurrent", entered)
    const status = this.#calls.cuIpcGetEventHandle(into, event.own)
    device.leave()
    return this.#answer("cuIpcGetEventHandle", status)
  }

  // Markers

  readonly markerRecord = (resource: StreamResource): number => {
    const stream = native(resource)
    const device = this.#device(stream.device)
    const event = device.takeMarker()
    if (event === 0) return this.#answer(device.made.call, device.made.status)
    const status = this.#recordOn(event, stream)
    if (status === success) this.marker = new NativeMarker(stream, event)
    else device.giveMarker(event)
    return status
  }

  readonly markerWait = (stream: StreamResource, marker: Marker): number =>
    this.#waitFor(native(stream), nativeMarker(marker).event)

  readonly markerQuery = (marker: Marker): number =>
    this.#answer("cuEventQuery", this.#calls.cuEventQuery(nativeMarker(marker).event))

  readonly markerRelease = (marker: Marker): void => this.#device(marker.device).giveMarker(nativeMarker(marker).event)

  readonly watchMarker = (resource: Marker, onDone: OnDone, options: WaitOptions = {}): Cancel => {
    const { event, order, stream } = nativeMarker(resource)
    return this.#completion.watch(new Point(laneOf(stream), order, event, () => {}), policyOf(options, false), onDone)
  }

  // Memory

  readonly memoryAllocate = (
    ordinal: number,
    byteLength: number,
    pool: MemoryPoolResource | undefined,
    resource: StreamResource | undefined
  ): number => {
    const device = this.#device(ordinal)
    const from = pool?.handle ?? device.pool
    const stream = resource && native(resource)
    const call = () =>
      this.#calls.cuMemAllocFromPoolAsync(this.#out.words, byteLength, from, stream?.handle ?? device.allocations)
    const status = stream?.needsContext === true
      ? this.#inContextOf(ordinal, "cuMemAllocFromPoolAsync", call)
      : this.#answer("cuMemAllocFromPoolAsync", call())
    if (status !== success) return status
    this.memory = new DeviceMemoryResource(this, this.#out.value as Address, byteLength, ordinal)
    return success
  }

  readonly managedAllocate = (ordinal: number, byteLength: number): number => {
    if (this.#isLost) this.#managedMemory.reusesNothing = true
    const asked = this.attribute(ordinal, "concurrentManagedAccess")
    if (asked !== success) return asked
    if (this.result === 0) return this.#answer("cuMemAllocManaged", statuses.NotSupported.code)
    const status = this.#managedMemory.take(ordinal, byteLength)
    if (status !== success) return status
    this.managed = new NativeManaged(this, this.#library, this.#managedMemory.taken, byteLength, ordinal)
    return success
  }

  readonly memoryFree = (memory: DeviceMemoryResource): number => {
    const device = this.#device(memory.device)
    if (memory instanceof NativeManaged) {
      const users = memory.pendingUsers
      device.managedUsers.add(users)
      this.#whenIdle(users, () => {
        device.managedUsers.delete(users)
        this.#managedMemory.give(memory)
      })
      return success
    }
    const { soleUser } = memory
    if (soleUser !== undefined) return this.#freeOn(device, native(soleUser), memory)
    const users = memory.pendingUsers
    const free = () => this.#calls.cuMemFreeAsync(memory.address, device.releases)
    for (const user of users) {
      const status = this.#orderReleases(device, native(user))
      if (status === success) continue
      this.#whenIdle(users, () => this.#warn("cuMemFreeAsync", free(), memory.address))
      return status
    }
    return this.#answer("cuMemFreeAsync", free())
  }

  /** Releases memory among the work of the stream that it was allocated on, and that alone used it. */
  #freeOn(device: NativeDevice, stream: NativeStream, memory: DeviceMemoryResource): number {
    device.freedOn.add(stream)
    const call = () => this.#calls.cuMemFreeAsync(memory.address, stream.handle)
    return stream.needsContext
      ? this.#inContextOf(stream.device, "cuMemFreeAsync", call)
      : this.#answer("cuMemFreeAsync", call())
  }

  /** Runs a release when the streams have done what they hold; at the latest when the runtime is released. */
  #whenIdle(users: ReadonlyArray<StreamResource>, release: () => void): void {
    const once = () => {
      if (this.#pendingReleases.delete(once)) release()
    }
    this.#pendingReleases.add(once)
    const watch = watchAll(users.map((user) => (onDone) => this.watchStream(user, onDone)))
    const attempt = () => {
      if (!this.#pendingReleases.has(once)) return
      watch((status) => {
        if (status === success || reasonFromStatus(status).isSticky) return once()
        setTimeout(attempt, retryDelay).unref()
      }, {})
    }
    attempt()
  }

  #orderReleases(device: NativeDevice, user: NativeStream): number {
    const owner = this.#device(user.device)
    const marker = owner.takeMarker()
    if (marker === 0) return this.#answer(owner.made.call, owner.made.status)
    const recorded = this.#recordOn(marker, user)
    const status = recorded === success ? this.#calls.cuStreamWaitEvent(device.releases, marker, 0) : recorded
    owner.giveMarker(marker)
    return this.#answer(recorded === success ? "cuStreamWaitEvent" : "cuEventRecord", status)
  }

  // Pools

  readonly poolCreate = (ordinal: number, options: MemoryPoolOptions): number => {
    const device = this.#device(ordinal)
    const handle = device.makePool(poolProperties(ordinal, bytesOrNoLimit(options.maxBytes)))
    if (handle === 0) return this.#answer(device.made.call, device.made.status)
    for (const [name, value] of poolSettings(options)) {
      const status = device.setPool(handle, name, value)
      if (status === success) continue
      this.#calls.cuMemPoolDestroy(handle)
      return this.#answer("cuMemPoolSetAttribute", status)
    }
    this.pool = new MemoryPoolResource(this, handle, ordinal, "owned")
    return success
  }

  readonly poolOfDevice = (ordinal: number): MemoryPoolResource =>
    this.#pools[ordinal] ??= new MemoryPoolResource(this, this.#device(ordinal).pool, ordinal, "runtime")

  readonly poolDestroy = (pool: MemoryPoolResource): number =>
    this.#answer("cuMemPoolDestroy", this.#calls.cuMemPoolDestroy(pool.handle))

  readonly poolStatistics = ({ handle }: MemoryPoolResource): number => {
    const value = new BigUint64Array(1)
    const values: Array<number> = []
    for (const name of ["reservedCurrent", "reservedHigh", "usedCurrent", "usedHigh"] as const) {
      const status = this.#calls.cuMemPoolGetAttribute(handle, poolAttributes[name], value)
      if (status !== success) return this.#answer("cuMemPoolGetAttribute", status)
      values.push(Number(value[0]))
    }
    const [reservedBytes = 0, reservedBytesHigh = 0, usedBytes = 0, usedBytesHigh = 0] = values
    this.poolStatisticsResult = { reservedBytes, reservedBytesHigh, usedBytes, usedBytesHigh }
    return success
  }

  /** They can be set to 0 only, which stands for what is there now. */
  readonly poolResetHigh = ({ device, handle }: MemoryPoolResource): number => {
    const status = this.#device(device).setPool(handle, "reservedHigh", 0n) ||
      this.#device(device).setPool(handle, "usedHigh", 0n)
    return this.#answer("cuMemPoolSetAttribute", status)
  }

  readonly poolSetReleaseThreshold = ({ device, handle }: MemoryPoolResource, bytes: number): number => {
    const status = this.#device(device).setPool(handle, "releaseThreshold", bytesOrAll(bytes))
    return this.#answer("cuMemPoolSetAttribute", status)
  }

  /**
   * The releases are done, so this returns at once; only such a call makes the pool see them. What is kept of managed memory goes
   * with the runtime's pool, if nothing has to be waited for.
   */
  readonly poolTrim = (pool: MemoryPoolResource, keepBytes: number): number => {
    const device = this.#device(pool.device)
    if (this.#calls.cuStreamQuery(device.releases) === success) {
      const status = this.#calls.cuStreamSynchronize(device.releases)
      if (status !== success) return this.#answer("cuStreamSynchronize", status)
    }
    const keep = Math.min(keepBytes, Number.MAX_SAFE_INTEGER)
    if (pool.origin === "runtime") this.#managedMemory.freeIfIdle()
    return this.#answer("cuMemPoolTrimTo", this.#calls.cuMemPoolTrimTo(pool.handle, keep))
  }

  readonly hostAllocate = (byteLength: number): Effect.Effect<HostMemoryResource, DriverFailure> =>
    Effect.map(this.#pinned.take(byteLength), (block) => new PinnedResource(this, block, byteLength))

  readonly hostFree = (memory: HostMemoryResource): number => {
    const { block } = memory as PinnedResource
    block.detach()
    memory.bytes = new Uint8Array(0)
    this.#whenIdle(memory.pendingUsers, () => this.#pinned.give(block))
    return success
  }

  readonly memoryCopy = (transfer: Transfer, resource: StreamResource): number => {
    const stream = native(resource)
    if (!stream.needsContext) return this.#copies.copy(transfer, stream)
    return this.#inContextOf(stream.device, "", () => this.#copies.copy(transfer, stream))
  }

  readonly memoryCopyRows = (transfer: RowsTransfer, resource: StreamResource): number => {
    const stream = native(resource)
    if (!stream.needsContext) return this.#copies.copyRows(transfer, stream)
    return this.#inContextOf(stream.device, "", () => this.#copies.copyRows(transfer, stream))
  }

  /** A batch is the one kind of copy that needs the context on every stream. */
  readonly memoryCopyBatch = (transfers: ReadonlyArray<Transfer>, stream: StreamResource): number =>
    this.#inContextOf(stream.device, "", () => this.#copies.copyBatch(transfers, native(stream)))

  readonly memoryFill = (
    memory: DeviceMemoryResource,
    offset: number,
    value: number,
    bits: 8 | 16 | 32,
    count: number,
    resource: StreamResource
  ): number => {
    const stream = native(resource)
    const name = fillCalls[bits]
    const call = () => this.#calls[name](memory.address + offset, value, count, stream.handle)
    return stream.needsContext ? this.#inContextOf(stream.device, name, call) : this.#answer(name, call())
  }

  // Managed memory

  readonly prefetchPiece = (location: MemoryLocation): number => prefetchPieces[location === "host" ? "host" : "device"]

  readonly memoryPrefetch = (
    memory: ManagedMemoryResource,
    offset: number,
    byteLength: number,
    location: MemoryLocation,
    resource: StreamResource
  ): number => {
    const stream = native(resource)
    const { cuMemPrefetchAsync_v2: prefetch } = this.#calls
    if (prefetch === undefined) return this.#answer("cuMemPrefetchAsync", statuses.NotSupported.code)
    const place = this.#placeOf(location)
    const call = () => prefetch(memory.address + offset, byteLength, place, 0, stream.handle)
    return stream.needsContext
      ? this.#inContextOf(stream.device, "cuMemPrefetchAsync", call)
      : this.#answer("cuMemPrefetchAsync", call())
  }

  readonly memoryAdvise = (
    memory: ManagedMemoryResource,
    offset: number,
    byteLength: number,
    advice: MemoryAdvice,
    location: MemoryLocation
  ): number => {
    const { cuMemAdvise_v2: advise } = this.#calls
    if (advise === undefined) return this.#answer("cuMemAdvise", statuses.NotSupported.code)
    if (memory instanceof NativeManaged) memory.isAdvised = true
    const place = this.#placeOf(location)
    const call = () => advise(memory.address + offset, byteLength, memoryAdvice[advice], place)
    return this.#inContextOf(memory.device, "cuMemAdvise", call)
  }

  #placeOf(location: MemoryLocation): number {
    return location === "host"
      ? locationOf(locationTypes.host, 0)
      : locationOf(locationTypes.device, location)
  }

  // Modules and kernels

  readonly moduleLoad = (image: Uint8Array, options: ModuleOptions): Effect.Effect<ModuleResource, DriverFailure> =>
    this.#modules.load(image, options)

  readonly moduleUnload = (module: ModuleResource): number =>
    this.#answer("cuLibraryUnload", this.#modules.unload(module.handle))

  readonly globalFind = (module: ModuleResource, name: string, ordinal: number): number => {
    const bytes = this.#sizes.subarray(0, 1)
    const status = this.#inContextOf(
      ordinal,
      "cuLibraryGetGlobal",
      () => this.#calls.cuLibraryGetGlobal(this.#out.words, bytes, module.handle, name)
    )
    if (status === success) {
      this.memory = new DeviceMemoryResource(this, this.#out.value as Address, Number(bytes[0]), ordinal)
    }
    return status
  }

  readonly kernelFind = (module: ModuleResource, name: string): number => {
    const status = this.#calls.cuLibraryGetKernel(this.#out.words, module.handle, name)
    if (status !== success) return this.#answer("cuLibraryGetKernel", status)
    this.code = new KernelCode(module, this.#out.value, name)
    return success
  }

  readonly kernelLoad = (code: KernelCode, ordinal: number): number =>
    this.#inContextOf(ordinal, "", () => {
      const status = this.#calls.cuKernelGetFunction(this.#out.words, code.handle)
      if (status !== success) return this.#answer("cuKernelGetFunction", status)
      return code.parameters === undefined ? this.#readParameters(code) : success
    })

  /** Reads the parameters of a kernel, one after another until there is none; an older driver does not say. */
  #readParameters(code: KernelCode): number {
    const { cuKernelGetParamInfo } = this.#calls
    if (cuKernelGetParamInfo === undefined) return success
    const parameters: Array<ParameterInfo> = []
    const [offset, size] = [this.#sizes.subarray(0, 1), this.#sizes.subarray(1, 2)]
    for (;;) {
      const status = cuKernelGetParamInfo(code.handle, parameters.length, offset, size)
      if (status === statuses.InvalidValue.code) break
      if (status !== success) return this.#answer("cuKernelGetParamInfo", status)
      parameters.push({ offset: Number(offset[0]), size: Number(size[0]) })
    }
    code.parameters = parameters
    return success
  }

  readonly kernelAttribute = (code: KernelCode, attribute: KernelAttribute, device: number): number => {
    const status = this.#calls.cuKernelGetAttribute(
      this.#integer,
      kernelAttributes[attribute],
      code.handle,
      this.#handles[device]!
    )
    this.result = this.#integer[0]!
    return this.#answer("cuKernelGetAttribute", status)
  }

  readonly kernelSetAttribute = (
    code: KernelCode,
    attribute: KernelAttribute,
    value: number,
    device: number
  ): number => {
    const number = kernelAttributes[attribute]
    const status = this.#calls.cuKernelSetAttribute(number, value, code.handle, this.#handles[device]!)
    return this.#answer("cuKernelSetAttribute", status)
  }

  readonly kernelActiveBlocks = (code: KernelCode, threads: number, sharedBytes: number, device: number): number =>
    this.#readInContext(
      device,
      "cuOccupancyMaxActiveBlocksPerMultiprocessor",
      (out) => this.#calls.cuOccupancyMaxActiveBlocksPerMultiprocessor(out, code.handle, threads, sharedBytes)
    )

  readonly kernelBestBlock = (code: KernelCode, sharedBytes: number, maxThreads: number, device: number): number => {
    const grid = this.#second
    const status = this.#readInContext(
      device,
      "cuOccupancyMaxPotentialBlockSize",
      (block) => this.#calls.cuOccupancyMaxPotentialBlockSize(grid, block, code.handle, 0, sharedBytes, maxThreads)
    )
    this.blockSuggestion = { block: this.result, minGrid: grid[0]! }
    return status
  }

  readonly kernelActiveClusters = (code: KernelCode, shape: LaunchShape, device: number): number => {
    this.#block.write(shape, defaultStreamHandles.legacy)
    return this.#readInContext(
      device,
      "cuOccupancyMaxActiveClusters",
      (out) => this.#calls.cuOccupancyMaxActiveClusters(out, code.handle, this.#block.address)
    )
  }

  readonly kernelMaxCluster = (code: KernelCode, shape: LaunchShape, device: number): number => {
    this.#block.write(shape, defaultStreamHandles.legacy)
    return this.#readInContext(
      device,
      "cuOccupancyMaxPotentialClusterSize",
      (out) => this.#calls.cuOccupancyMaxPotentialClusterSize(out, code.handle, this.#block.address)
    )
  }

  /** Asks for a number with a device's context current. */
  #readInContext(ordinal: number, name: string, ask: (out: Int32Array) => number): number {
    const status = this.#inContextOf(ordinal, name, () => ask(this.#integer))
    this.result = this.#integer[0]!
    return status
  }

  /** The driver is given the address of each argument. They stay where they are for as long as their buffer lives. */
  readonly argumentTable = ({ buffer, offsets, tableOffset }: Arguments): number => {
    if (offsets.length === 0) return 0
    const start = this.#library.addressOf(buffer)
    new BigUint64Array(buffer, tableOffset).set(offsets.map((offset) => BigInt(start + offset)))
    return start + tableOffset
  }

  readonly kernelLaunch = ({ handle, table }: KernelResource, shape: LaunchShape, resource: StreamResource): number => {
    const stream = native(resource)
    if (!stream.needsContext) return this.#launch(handle, table, shape, stream.handle)
    return this.#inContextOf(stream.device, "", () => this.#launch(handle, table, shape, stream.handle))
  }

  #launch(kernel: number, table: number, shape: LaunchShape, stream: number): number {
    this.#block.write(shape, stream)
    return this.#answer("cuLaunchKernelEx", this.#calls.cuLaunchKernelEx(this.#block.address, kernel, table, 0))
  }

  /** Makes a call with a device's context current. The name is that of the call, or nothing where it noted it itself. */
  #inContextOf(ordinal: number, name: string, call: () => number): number {
    const device = this.#device(ordinal)
    const entered = device.enter()
    if (entered !== success) return this.#answer("cuCtxPushCurrent", entered)
    const status = call()
    device.leave()
    return name === "" ? status : this.#answer(name, status)
  }

  readonly isIdle = (ordinal: number): boolean => this.#busyOf(ordinal).length === 0

  /** Watches for the streams of a device that hold work. */
  #busyOf(ordinal: number): ReadonlyArray<Watch> {
    const busy: Array<Watch> = []
    for (const stream of this.#streams) {
      if (stream.device !== ordinal || this.streamQuery(stream) !== notReady) continue
      busy.push((onDone, options) => this.watchStream(stream, onDone, options))
    }
    const { releases } = this.#device(ordinal)
    if (this.#calls.cuStreamQuery(releases) === notReady) busy.push((onDone) => this.watchReleases(ordinal, onDone))
    return busy
  }

  readonly watchIdle = (ordinal: number, onDone: OnDone): Cancel => {
    let cancel: Cancel = () => {}
    const look = (stage?: WaitStage): void => {
      const busy = this.#busyOf(ordinal)
      if (busy.length === 0) return onDone(success, stage)
      let isOver = false
      const watch = watchAll(busy)((status, stage) => {
        isOver = true
        if (status === success) look(stage)
        else onDone(status, stage)
      }, {})
      if (!isOver) cancel = watch
    }
    look()
    return () => cancel()
  }

  // Waiting

  readonly watchEvent = (resource: EventResource, onDone: OnDone, options: WaitOptions = {}): Cancel => {
    const event = nativeEvent(resource)
    event.point ??= this.#pointOf(event)
    const { recordNumber, recordedOn } = event
    const policy = policyOf(options, (event.flags & eventFlags.blockingSync) !== 0)
    return this.#completion.watch(event.point, policy, (status, stage) => {
      const isCurrent = event.recordNumber === recordNumber && event.recordedOn === recordedOn
      if (status === success && isCurrent) event.isKnownDone = true
      onDone(status, stage)
    })
  }

  readonly watchStream = (resource: StreamResource, onDone: OnDone, options: WaitOptions = {}): Cancel => {
    const stream = native(resource)
    const device = this.#device(stream.device)
    const marker = device.takeMarker()
    const status = marker === 0
      ? this.#answer(device.made.call, device.made.status)
      : this.#recordOn(marker, stream)
    if (status !== success) {
      if (marker !== 0) device.giveMarker(marker)
      onDone(status)
      return () => {}
    }
    return this.#watchMarker(laneOf(stream), stream.records, marker, policyOf(options, false), onDone)
  }

  #watchMarker(lane: Lane, order: number, marker: number, policy: Partial<WaitPolicy>, onDone: OnDone): Cancel {
    const point = new Point(lane, order, marker, () => this.#device(lane.device).giveMarker(marker))
    return this.#completion.watch(point, policy, onDone)
  }

  /** What waits for an event's record ask. An event that other processes may record has a lane of its own. */
  #pointOf(event: NativeEvent): Point {
    const stream = event.recordedOn
    const isShared = (event.flags & eventFlags.interprocess) !== 0
    const lane = stream === undefined || isShared ? new Lane(event.device, false) : laneOf(stream)
    return new Point(lane, event.recordNumber, event.own, () => {
      event.point = undefined
    })
  }

  readonly allocationQuery = (ordinal: number): number =>
    this.#answer("cuStreamQuery", this.#calls.cuStreamQuery(this.#device(ordinal).allocations))

  readonly watchAllocation = (ordinal: number, onDone: OnDone): Cancel =>
    this.#watchOwn(this.#device(ordinal), this.#device(ordinal).allocations, onDone)

  readonly watchReleases = (ordinal: number, onDone: OnDone): Cancel => {
    const device = this.#device(ordinal)
    for (const stream of device.freedOn) {
      const status = stream.state === "released" ? success : this.#orderReleases(device, stream)
      if (status !== success) {
        onDone(status)
        return () => {}
      }
      device.freedOn.delete(stream)
    }
    const users = new Set([...device.managedUsers].flat())
    const watches: Array<Watch> = [(onDone) => this.#watchOwn(device, device.releases, onDone)]
    for (const user of users) {
      // What waits for a stream already is told first.
      if (user.state !== "released") watches.push((onDone) => this.watchStream(user, onDone))
    }
    return watchAll(watches)(onDone, {})
  }

  /** Watches one of the device's own streams; each wait has a lane of its own. */
  #watchOwn(device: NativeDevice, stream: number, onDone: OnDone): Cancel {
    const ended = (call: string, status: number): Cancel => {
      onDone(this.#answer(call, status))
      return () => {}
    }
    const idle = this.#calls.cuStreamQuery(stream)
    if (idle !== notReady) return ended("cuStreamQuery", idle)
    const marker = device.takeMarker()
    if (marker === 0) return ended(device.made.call, device.made.status)
    const recorded = this.#calls.cuEventRecord(marker, stream)
    if (recorded === success) {
      return this.#watchMarker(new Lane(device.ordinal, false), 0, marker, { wakeUp: false }, onDone)
    }
    device.giveMarker(marker)
    return ended("cuEventRecord", recorded)
  }

  // Contexts and the end

  /** Pinned memory belongs to every context; any of them serves. */
  #inFirstContext(name: string, call: () => number): DriverFailure | undefined {
    const device = this.#opened.find((opened) => opened !== undefined)
    if (device === undefined) return undefined
    const entered = device.enter()
    if (entered !== success) return { call: "cuCtxPushCurrent", status: entered }
    const status = call()
    device.leave()
    return status === success ? undefined : { call: name, status }
  }

  /** Whether no device holds work. */
  #isIdle(): boolean {
    return this.#opened.every((device) => device === undefined || this.isIdle(device.ordinal))
  }

  readonly settle = (): void => this.#completion.settle()

  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    const devices = this.#opened.filter((device) => device !== undefined)
    const released = watchAll(devices.map((device) => (onDone) => this.watchReleases(device.ordinal, onDone)))
    return Effect.callback<void>((resume) => {
      released(() => resume(Effect.void), {})
    }).pipe(
      Effect.andThen(Effect.suspend(() => {
        for (const release of this.#pendingReleases) release()
        return this.#pinned.close
      })),
      Effect.andThen(this.#modules.close),
      Effect.andThen(Effect.sync(() => {
        this.#completion.close()
        this.#managedMemory.stop()
      })),
      Effect.andThen(Effect.forEach(devices, (device) => this.#closeDevice(device), { discard: true }))
    )
  })

  #closeDevice(device: NativeDevice): Effect.Effect<void> {
    return Effect.callback((resume) => {
      if (device.enter() === success) {
        device.tearDown(this.#warn)
        device.leave()
      }
      const pool = this.#pools[device.ordinal]
      if (pool !== undefined) pool.state = "released"
      // What JavaScript still sees of managed memory is there as long as the context.
      const isSeen = this.#managedMemory.close(device.ordinal, () => this.#releaseContext(device, () => {}))
      if (isSeen) return resume(Effect.void)
      this.#releaseContext(device, () => resume(Effect.void))
    })
  }

  #releaseContext({ handle }: NativeDevice, onDone: () => void): void {
    inTurn((onEnd) => this.#calls.cuDevicePrimaryCtxRelease_v2.async(handle, onEnd), (_, status) => {
      this.#warn("cuDevicePrimaryCtxRelease", status, handle)
      onDone()
    })
  }
}

/** How long a release that could not wait lets pass before it tries again, in milliseconds. */
const retryDelay = 10

const fillCalls = { 8: "cuMemsetD8Async", 16: "cuMemsetD16Async", 32: "cuMemsetD32Async" } as const

const laneOf = (stream: NativeStream): Lane => stream.lane ??= new Lane(stream.device, true)

/** The resources of this backend are of its own classes. */
const native = (stream: StreamResource): NativeStream => stream as NativeStream
const nativeEvent = (event: EventResource): NativeEvent => event as NativeEvent
const nativeMarker = (marker: Marker): NativeMarker => marker as NativeMarker

const policyOf = (options: WaitOptions, blocking: boolean): Partial<WaitPolicy> => ({
  ...(options.pollFor === undefined ? undefined : { pollFor: Duration.toMillis(options.pollFor) }),
  ...(blocking ? { pollFor: 0 } : undefined),
  ...(options.wakeUp === undefined ? undefined : { wakeUp: options.wakeUp })
})

/** A megabyte of managed memory takes the driver a third of a millisecond to bring to the host, and a tenth of that to a device. */
const prefetchPieces = { host: 4 * 2 ** 20, device: 32 * 2 ** 20 }

const bytesOrNoLimit = (bytes: number): number => bytes === Number.POSITIVE_INFINITY ? 0 : bytes
const bytesOrAll = (bytes: number): bigint => bytes === Number.POSITIVE_INFINITY ? keepAll : BigInt(bytes)

const poolSettings = (options: MemoryPoolOptions) =>
  [
    ["releaseThreshold", bytesOrAll(options.releaseThreshold)],
    ["reuseFollowEventDependencies", BigInt(options.reuseFollowEventDependencies)],
    ["reuseAllowOpportunistic", BigInt(options.reuseAllowOpportunistic)],
    ["reuseAllowInternalDependencies", BigInt(options.reuseAllowInternalDependencies)]
  ] as const
