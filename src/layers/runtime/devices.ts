/**
 * Devices in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { DeviceAttribute, PeerAttribute } from "../../cuda/flags.ts"
import type { CudaError } from "../../CudaError.ts"

/**
 * A device as the driver describes it.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceProperties {
  /** The device's index, from 0. */
  readonly index: number
  readonly name: string
  /** The driver's form: `GPU-` and 32 hexadecimal digits in five groups. */
  readonly uuid: string
  readonly computeCapability: { readonly major: number; readonly minor: number }
  /** Memory of the device in bytes. */
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
 * The priorities of a device's streams; a lower number is a higher priority.
 *
 * @category models
 * @since 0.1.0
 */
export interface PriorityRange {
  readonly least: number
  readonly greatest: number
}

/**
 * Operations on devices.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceOperations {
  /** `cuDeviceGetAttribute`. */
  readonly deviceAttribute: (device: number, attribute: DeviceAttribute) => Effect.Effect<number, CudaError>
  /** `cuMemGetInfo`. */
  readonly deviceMemoryInfo: (device: number) => Effect.Effect<MemoryInfo, CudaError>
  /** `cuCtxGetStreamPriorityRange`. */
  readonly devicePriorityRange: (device: number) => Effect.Effect<PriorityRange, CudaError>
  /** `cuDeviceCanAccessPeer`. */
  readonly deviceCanAccessPeer: (device: number, peer: number) => Effect.Effect<boolean, CudaError>
  /** `cuDeviceGetP2PAttribute`. */
  readonly devicePeerAttribute: (
    device: number,
    peer: number,
    attribute: PeerAttribute
  ) => Effect.Effect<number, CudaError>
  /** Waits for the work that is on every stream of the device, as far as this runtime made or was given them. */
  readonly deviceSynchronize: (device: number) => Effect.Effect<void, CudaError>
}
