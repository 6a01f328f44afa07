/**
 * Devices: what they are, how much memory they have left, and which one is current.
 *
 * The current device is what constructors use when none is given. It is a region's, not a global: `withDevice` sets it for
 * one effect and restores it on every exit. Depends on the `CudaRuntime` interface alone.
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
import type { DeviceProperties, MemoryInfo, PriorityRange } from "./layers/CudaRuntime.ts"

/**
 * A device: its index, name, UUID, compute capability, memory size in bytes and PCI id.
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

/**
 * A device as operations take it: its index, or the device itself.
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
 * @category accessors
 * @since 0.1.0
 */
export const count: Effect.Effect<number, never, CudaRuntime> = Effect.map(all, (devices) => devices.length)

/**
 * Gets a device by its index. Fails with `InvalidArgument` when there is none.
 *
 * @category accessors
 * @since 0.1.0
 */
export const get = (index: number): Effect.Effect<CudaDevice, CudaError, CudaRuntime> =>
  Effect.flatMap(all, (devices) => {
    const device = devices[index]
    if (device !== undefined) return Effect.succeed(device)
    return refuseArgument("CudaDevice.get", "device", index, `a device index from 0 to ${devices.length - 1}`)
  })

/**
 * Gets the current device: that of the innermost `withDevice` or `CudaStream.withStream` region, or device 0.
 *
 * @category current device
 * @since 0.1.0
 */
export const current: Effect.Effect<CudaDevice, CudaError, CudaRuntime> = Effect.flatMap(
  resolveDevice(undefined),
  get
)

/**
 * Runs an effect with a device as the current one, and restores the one before on every exit.
 *
 * **Details**
 *
 * The current stream inside is that device's: the stream of an enclosing `CudaStream.withStream` on the device, or its
 * default stream. Fails with `InvalidArgument` when there is no such device.
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
      ({ index }) => Effect.updateService(self, CurrentPlace, (outer) => ({ device: index, stream: undefined, outer }))
    )
)

/**
 * Reads the free and total memory of a device, in bytes (`cuMemGetInfo`).
 *
 * **Gotchas**
 *
 * Memory that released buffers gave back stays in the device's pool for reuse, and counts as used here.
 *
 * @category accessors
 * @since 0.1.0
 */
export const memoryInfo = (device?: DeviceInput): Effect.Effect<MemoryInfo, CudaError, CudaRuntime> =>
  onDevice(device, (runtime, index) => runtime.deviceMemoryInfo(index))

/**
 * Reads an attribute of a device by name (`cuDeviceGetAttribute`). Flags are 0 or 1, sizes in bytes, rates in kHz.
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
 * Reads the priorities that streams of a device can have; lower numbers go first (`cuCtxGetStreamPriorityRange`).
 *
 * @category accessors
 * @since 0.1.0
 */
export const priorityRange = (device?: DeviceInput): Effect.Effect<PriorityRange, CudaError, CudaRuntime> =>
  onDevice(device, (runtime, index) => runtime.devicePriorityRange(index))

/**
 * Asks whether kernels of a device could reach the memory of another one directly (`cuDeviceCanAccessPeer`).
 * `CudaMemory.copy` works between any two devices.
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
 * Waits until the work that is on the device's streams now is done. Suspends the fiber, not the thread.
 *
 * **Gotchas**
 *
 * Covers the streams this library made and the default streams it was asked for, not streams of other libraries.
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
