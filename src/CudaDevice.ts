/**
 * Devices: their properties, attributes and free memory, and which one is current.
 *
 * Constructors without an explicit device use the current one. It is not global: `withDevice` sets it for one effect and restores
 * the previous one however the effect ends. Depends only on the `CudaRuntime` interface.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { DeviceAttribute, PeerAttribute } from "./cuda/flags.ts"
import type { CudaError } from "./CudaError.ts"
import { named, refuseArgument } from "./internal/handles.ts"
import { CurrentPlace, resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { DeviceProperties, DeviceUsage, MemoryInfo, PriorityRange } from "./layers/CudaRuntime.ts"

/**
 * A device: its index, name, UUID, compute capability, memory size in bytes and PCI bus ID.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaDevice extends DeviceProperties {}

export type {
  /**
   * The name of a device attribute.
   *
   * @category models
   * @since 0.1.0
   */
  DeviceAttribute,
  /**
   * The name of an attribute of the link between two devices.
   *
   * @category models
   * @since 0.1.0
   */
  PeerAttribute
}

export type {
  /**
   * What this runtime holds and does on a device.
   *
   * @category models
   * @since 0.1.0
   */
  DeviceUsage
}

/**
 * A device as operations accept it: the device itself or its index.
 *
 * @category models
 * @since 0.1.0
 */
export type DeviceInput = number | CudaDevice

/**
 * Options for operations on one device.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceOptions {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
}

/**
 * Lists the devices of the runtime, by index.
 *
 * **Example** (The names of all devices)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const names = Effect.map(CudaDevice.all, (devices) => devices.map((device) => device.name))
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const all: Effect.Effect<ReadonlyArray<CudaDevice>, never, CudaRuntime> = Effect.map(
  CudaRuntime,
  (runtime) => runtime.devices
)

/**
 * Counts the devices of the runtime (`cuDeviceGetCount`).
 *
 * **Example** (Whether there is a second device)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const hasTwo = Effect.map(CudaDevice.count, (count) => count >= 2)
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const count: Effect.Effect<number, never, CudaRuntime> = Effect.map(all, (devices) => devices.length)

/**
 * Gets a device by its index. Fails with `InvalidArgument` if there is no such device.
 *
 * **Example** (The second device)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const second = CudaDevice.get(1).pipe(
 *   Effect.catchReason("CudaError", "InvalidArgument", () => CudaDevice.get(0)) // a machine with one
 * )
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const get = (index: number): Effect.Effect<CudaDevice, CudaError, CudaRuntime> =>
  Effect.flatMap(all, (devices) => {
    const device = Number.isInteger(index) ? devices[index] : undefined
    if (device !== undefined) return Effect.succeed(device)
    return refuseArgument("CudaDevice.get", "device", index, `a device index from 0 to ${devices.length - 1}`)
  })

/**
 * Gets the current device: the one set by the innermost `withDevice` or `CudaStream.withStream` region, or device 0.
 *
 * **Example** (The device of a region)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const name = CudaDevice.current.pipe(Effect.map((device) => device.name), CudaDevice.withDevice(1))
 * ```
 *
 * @category current device
 * @since 0.1.0
 */
export const current: Effect.Effect<CudaDevice, CudaError, CudaRuntime> = Effect.flatMap(
  resolveDevice(undefined),
  get
)

/**
 * Runs an effect with the given device as the current device. Restores the previous one however the effect ends.
 *
 * **Details**
 *
 * Inside, the current stream is the one that an enclosing `CudaStream.withStream` region set on this device, or its default stream.
 * Fails with `InvalidArgument` if there is no such device.
 *
 * **Example** (A stream on the second GPU)
 *
 * ```ts
 * import { CudaDevice, CudaStream } from "effect-cuda"
 *
 * const stream = CudaStream.make().pipe(CudaDevice.withDevice(1))
 * ```
 *
 * @category current device
 * @since 0.1.0
 */
export const withDevice: {
  (device: DeviceInput): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CudaError, R | CudaRuntime>
  <A, E, R>(self: Effect.Effect<A, E, R>, device: DeviceInput): Effect.Effect<A, E | CudaError, R | CudaRuntime>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, device: DeviceInput): Effect.Effect<A, E | CudaError, R | CudaRuntime> =>
    Effect.flatMap(
      Effect.flatMap(resolveDevice(device), get).pipe(named("CudaDevice.withDevice")),
      ({ index }) =>
        Effect.updateService(self, CurrentPlace, (outer) => ({ deviceIndex: index, stream: undefined, outer }))
    )
)

/**
 * Reads the free and total memory of a device in bytes, by default of the current device (`cuMemGetInfo`).
 *
 * **Gotchas**
 *
 * The memory of released buffers stays in the device's pool for reuse and counts as used here.
 *
 * **Example** (How much memory is free)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const freeShare = Effect.map(CudaDevice.memoryInfo(), ({ free, total }) => free / total)
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const memoryInfo = (device?: DeviceInput): Effect.Effect<MemoryInfo, CudaError, CudaRuntime> =>
  onDevice(device, (runtime, index) => runtime.deviceMemoryInfo(index))

/**
 * Reads an attribute of a device by name (`cuDeviceGetAttribute`), by default of the current device. Flags are 0 or 1, sizes are in
 * bytes, and clock rates are in kHz.
 *
 * **Details**
 *
 * Fails with `InvalidArgument` for a name that is not an attribute.
 *
 * **Example** (The number of multiprocessors)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 *
 * const multiprocessors = CudaDevice.attribute("multiprocessorCount")
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const attribute = (
  name: DeviceAttribute,
  device?: DeviceInput
): Effect.Effect<number, CudaError, CudaRuntime> =>
  onDevice(device, (runtime, index) => runtime.deviceAttribute(index, name))

/**
 * Reads the range of stream priorities of a device, by default of the current device (`cuCtxGetStreamPriorityRange`). Lower numbers
 * have higher priority.
 *
 * **Example** (A stream with the highest priority)
 *
 * ```ts
 * import { CudaDevice, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const urgent = Effect.flatMap(CudaDevice.priorityRange(), (range) => CudaStream.make({ priority: range.greatest }))
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const priorityRange = (device?: DeviceInput): Effect.Effect<PriorityRange, CudaError, CudaRuntime> =>
  onDevice(device, (runtime, index) => runtime.devicePriorityRange(index))

/**
 * Returns whether `enablePeerAccess` can let a device access the memory of another one (`cuDeviceCanAccessPeer`). `CudaMemory.copy`
 * works between any two devices regardless.
 *
 * **Example** (Access where the machine offers it)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const connected = Effect.gen(function*() {
 *   if (yield* CudaDevice.canAccessPeer(0, 1)) yield* CudaDevice.enablePeerAccess(0, 1)
 * })
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const canAccessPeer = (
  device: DeviceInput,
  peer: DeviceInput
): Effect.Effect<boolean, CudaError, CudaRuntime> =>
  onDevice(
    device,
    (runtime, index) =>
      Effect.flatMap(resolveDevice(peer), (peerIndex) => runtime.deviceCanAccessPeer(index, peerIndex))
  )

/**
 * Reads an attribute of the link between two devices (`cuDeviceGetP2PAttribute`): `performanceRank`, where 0 is the fastest kind of link
 * in the machine, and whether access, native atomics and access to CUDA arrays are supported (0 or 1).
 *
 * **Details**
 *
 * Fails with `InvalidArgument` if the two are the same device or the attribute does not exist.
 *
 * **Example** (The peer with the fastest link)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const rank = Effect.gen(function*() {
 *   const [first, second] = yield* CudaDevice.all
 *   if (first === undefined || second === undefined) return undefined
 *   return yield* CudaDevice.peerAttribute(first, second, "performanceRank")
 * })
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const peerAttribute = (
  device: DeviceInput,
  peer: DeviceInput,
  name: PeerAttribute
): Effect.Effect<number, CudaError, CudaRuntime> =>
  onDevice(
    device,
    (runtime, index) =>
      Effect.flatMap(resolveDevice(peer), (peerIndex) => runtime.devicePeerAttribute(index, peerIndex, name))
  )

/**
 * The link from a device to another one.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceLink {
  /** The index of the device that accesses. */
  readonly device: number
  /** The index of the device whose memory is accessed. */
  readonly peer: number
  /** Whether `enablePeerAccess` can give access. */
  readonly canAccess: boolean
  /** 0 for the fastest kind of link in the machine. */
  readonly performanceRank: number
  /** Whether atomic operations of kernels on memory of the peer are atomic there. */
  readonly nativeAtomics: boolean
  /** Whether CUDA arrays of the peer are accessible too. */
  readonly arrayAccess: boolean
}

/**
 * Describes the link from a device to another one (`cuDeviceGetP2PAttribute`).
 *
 * **Details**
 *
 * Fails with `InvalidArgument` if the two are the same device. To know how fast a link is, measure a copy: the driver only ranks links.
 *
 * **Example** (Devices with native atomics)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const isDirect = Effect.map(CudaDevice.link(0, 1), ({ canAccess, nativeAtomics }) => canAccess && nativeAtomics)
 * ```
 *
 * @category peer access
 * @since 0.1.0
 */
export const link = (
  device: DeviceInput,
  peer: DeviceInput
): Effect.Effect<DeviceLink, CudaError, CudaRuntime> =>
  onDevice(device, (runtime, index) =>
    Effect.gen(function*() {
      const peerIndex = yield* resolveDevice(peer)
      const read = (name: PeerAttribute) => runtime.devicePeerAttribute(index, peerIndex, name)
      return {
        device: index,
        peer: peerIndex,
        performanceRank: yield* read("performanceRank"),
        canAccess: (yield* read("accessSupported")) !== 0,
        nativeAtomics: (yield* read("nativeAtomicSupported")) !== 0,
        arrayAccess: (yield* read("arrayAccessSupported")) !== 0
      }
    })).pipe(named("CudaDevice.link"))

/**
 * Lets a device access the memory of another one for as long as the runtime lives: kernels, fills and calls of libraries on streams of
 * `device` may then use buffers of `peer`. Access is one way; call it twice for both.
 *
 * **Details**
 *
 * Covers the buffers of the runtime's own pool of `peer`, those of pools made without the option `peers`, before or after, those of pools
 * of other processes, and memory of `cuMemAlloc`, that of `CudaInterprocess.allocate` and of other code (`cuCtxEnablePeerAccess` and
 * `cuMemPoolSetAccess`). Does nothing if the device already has access.
 * Without access, using a buffer of another device fails with `DeviceMismatch`, except in copies, which work between any two devices.
 *
 * Fails with `PeerAccessUnsupported` if the devices have no such link, with `TooManyPeers` if the driver can connect no more devices, and
 * with `InvalidArgument` if the two are the same device.
 *
 * The option `peers` of the runtime's layer does this for all devices.
 *
 * **Gotchas**
 *
 * Growable buffers, allocations of other processes that are in no pool, pools of other code, and the variables of modules stay out of reach.
 *
 * The values of a graph's memory parameters must be memory of the graph's device, with or without access.
 *
 * **Example** (A kernel that reads the memory of another device)
 *
 * ```ts
 * import { CudaDevice, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   yield* CudaDevice.enablePeerAccess(1, 0)
 *   const table = yield* CudaMemory.allocate(4096, { device: 0 })
 *   yield* CudaMemory.fill(table, 1, yield* CudaStream.current(1)) // written by device 1
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category peer access
 * @since 0.1.0
 */
export const enablePeerAccess = (
  device: DeviceInput,
  peer: DeviceInput
): Effect.Effect<void, CudaError, CudaRuntime> =>
  onDevice(
    device,
    (runtime, index) => Effect.flatMap(resolveDevice(peer), (peerIndex) => runtime.deviceEnablePeer(index, peerIndex))
  )

/**
 * Ends the access that `enablePeerAccess` gave (`cuCtxDisablePeerAccess`). Does nothing if there is none.
 *
 * **Details**
 *
 * From now on, using buffers of `peer` on `device` fails with `DeviceMismatch`. Then waits until the work on the streams of both devices
 * so far is done, since it may use the memory, and takes the access away. If that wait is interrupted, the driver's access stays. Pools with
 * the option `peers` are not affected. Cannot be used inside a recording.
 *
 * Memory that a graph with copies between the two devices uses stays accessible to the driver.
 *
 * **Example** (Access for a while)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const shared = Effect.acquireRelease(
 *   CudaDevice.enablePeerAccess(1, 0),
 *   () => Effect.ignore(CudaDevice.disablePeerAccess(1, 0))
 * )
 * ```
 *
 * @category peer access
 * @since 0.1.0
 */
export const disablePeerAccess = (
  device: DeviceInput,
  peer: DeviceInput
): Effect.Effect<void, CudaError, CudaRuntime> =>
  onDevice(
    device,
    (runtime, index) => Effect.flatMap(resolveDevice(peer), (peerIndex) => runtime.deviceDisablePeer(index, peerIndex))
  )

/**
 * Counts what this runtime holds and does on a device, by default the current one: streams, streams with unfinished work (`cuStreamQuery`),
 * and live buffers.
 *
 * **Details**
 *
 * Does not know about other processes, other runtimes and other code. `CudaDevice.memoryInfo` and `CudaHealth.sample` do.
 *
 * **Example** (What the runtime does on a device)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 *
 * const usage = CudaDevice.usage(0)
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const usage = (device?: DeviceInput): Effect.Effect<DeviceUsage, CudaError, CudaRuntime> =>
  onDevice(device, (runtime, index) => runtime.deviceUsage(index))

/**
 * Waits until all work enqueued on the device's streams so far is done, by default on the current device. Suspends the fiber, not the
 * thread.
 *
 * **Details**
 *
 * Waits for each stream as `CudaStream.synchronize` does (`cuStreamQuery`). If the device faults, fails with the reason.
 *
 * **Gotchas**
 *
 * Covers the streams that this library created and the default streams that the program requested, but not the streams of other
 * libraries.
 *
 * **Example** (Before reading a clock)
 *
 * ```ts
 * import { CudaDevice } from "effect-cuda"
 * import * as Clock from "effect/Clock"
 * import * as Effect from "effect/Effect"
 *
 * const finished = Effect.andThen(CudaDevice.synchronize(), Clock.currentTimeMillis)
 * ```
 *
 * @category waiting
 * @since 0.1.0
 */
export const synchronize = (device?: DeviceInput): Effect.Effect<void, CudaError, CudaRuntime> =>
  onDevice(device, (runtime, index) => runtime.deviceSynchronize(index))

const onDevice = <A>(
  device: DeviceInput | undefined,
  operation: (runtime: CudaRuntime["Service"], index: number) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError, CudaRuntime> =>
  Effect.flatMap(
    CudaRuntime,
    (runtime) => Effect.flatMap(resolveDevice(device), (index) => operation(runtime, index))
  )
