/**
 * Devices, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { DeviceAttribute, PeerAttribute } from "../../cuda/flags.ts"
import type { CudaError } from "../../CudaError.ts"

/**
 * Properties of a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceProperties {
  /** The device's index, starting at 0. */
  readonly index: number
  readonly name: string
  /** In the driver's format: `GPU-` and 32 hexadecimal digits in five groups. */
  readonly uuid: string
  readonly computeCapability: { readonly major: number; readonly minor: number }
  /** Bytes of device memory. */
  readonly totalMemory: number
  /** `domain:bus:device.function`, in hexadecimal. */
  readonly pciBusId: string
}

/**
 * Free and total memory of a device, in bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryInfo {
  readonly free: number
  readonly total: number
}

/**
 * The range of stream priorities of a device. Lower numbers mean higher priority.
 *
 * @category models
 * @since 0.1.0
 */
export interface PriorityRange {
  readonly least: number
  readonly greatest: number
}

/**
 * What this runtime holds and does on a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceUsage {
  /** Streams with work that has not finished. */
  readonly busyStreams: number
  /** Live streams, including pooled ones. */
  readonly streams: number
  /** Live buffers. */
  readonly buffers: number
  /** Bytes of live buffers. */
  readonly bytes: number
}

/**
 * Operations on devices.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceOperations {
  /** Reads an attribute (`cuDeviceGetAttribute`). */
  readonly deviceAttribute: (deviceIndex: number, attribute: DeviceAttribute) => Effect.Effect<number, CudaError>
  /** Reads free and total memory (`cuMemGetInfo`). */
  readonly deviceMemoryInfo: (deviceIndex: number) => Effect.Effect<MemoryInfo, CudaError>
  /** Reads the range of stream priorities (`cuCtxGetStreamPriorityRange`). */
  readonly devicePriorityRange: (deviceIndex: number) => Effect.Effect<PriorityRange, CudaError>
  /** Whether a device can access the memory of another (`cuDeviceCanAccessPeer`). */
  readonly deviceCanAccessPeer: (deviceIndex: number, peer: number) => Effect.Effect<boolean, CudaError>
  /** Reads an attribute of the link between two devices (`cuDeviceGetP2PAttribute`). */
  readonly devicePeerAttribute: (
    deviceIndex: number,
    peer: number,
    attribute: PeerAttribute
  ) => Effect.Effect<number, CudaError>
  /** Lets a device access the memory of another (`cuCtxEnablePeerAccess`, and `cuMemPoolSetAccess` for its pools). */
  readonly deviceEnablePeer: (deviceIndex: number, peer: number) => Effect.Effect<void, CudaError>
  /** Ends that access, once the work on the streams of both devices is done (`cuCtxDisablePeerAccess`). */
  readonly deviceDisablePeer: (deviceIndex: number, peer: number) => Effect.Effect<void, CudaError>
  /** Counts what this runtime holds and does on a device. */
  readonly deviceUsage: (deviceIndex: number) => Effect.Effect<DeviceUsage, CudaError>
  /** Waits for the work on the streams of the device that this runtime created, and on the default streams it was asked for. */
  readonly deviceSynchronize: (deviceIndex: number) => Effect.Effect<void, CudaError>
}
