/**
 * The health of devices, as a service beside the runtime: its interface, and the layers that provide it. Nothing native is loaded before a
 * layer is built. Programs use the module `CudaHealth`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { throttleReasons } from "../cuda/nvml.ts"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import type { DeviceProperties } from "./CudaRuntime.ts"
import { makeSimulated } from "./simulated/health.ts"

/**
 * Why the clocks of a device are below their maximum. A reason unknown to this version of the library is its bit in hexadecimal.
 *
 * @category models
 * @since 0.1.0
 */
export type ThrottleReason = keyof typeof throttleReasons | `0x${string}`

/**
 * What NVML measured on a device. A field that the device, its driver or the rights of the process do not offer is undefined.
 *
 * @category models
 * @since 0.1.0
 */
export interface HealthSample {
  readonly deviceIndex: number
  /**
   * Fractions of the last sample period (between 1/6 second and 1 second) during which a kernel ran, and during which memory was read or
   * written: 0.37 is 37 %.
   */
  readonly utilization: { readonly gpu: number; readonly memory: number } | undefined
  /** Bytes. `used` is memory of all processes; `reserved` is memory that the driver keeps for itself. */
  readonly memory:
    | { readonly used: number; readonly total: number; readonly free: number; readonly reserved: number }
    | undefined
  /** The temperature of the GPU in degrees Celsius. */
  readonly temperature: number | undefined
  /** The power that the device draws, in watts. */
  readonly power: number | undefined
  /** The power that it may draw, in watts. */
  readonly powerLimit: number | undefined
  /** Current clocks in MHz. */
  readonly clocks: { readonly sm: number | undefined; readonly memory: number | undefined }
  /** Why the clocks are below their maximum. Empty if they are not. `gpuIdle` only says that there is nothing to do. */
  readonly throttleReasons: ReadonlyArray<ThrottleReason> | undefined
  /** Memory errors since the driver was loaded. Undefined if the device has no ECC or it is turned off. */
  readonly ecc: { readonly corrected: number; readonly uncorrected: number } | undefined
}

/**
 * A process with a CUDA context on a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceProcess {
  readonly pid: number
  /** The device memory it uses, in bytes. Undefined if the driver cannot tell. */
  readonly bytes: number | undefined
}

/**
 * An Xid: an error report of the driver about a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface XidEvent {
  /** The index of the device. Undefined if it is a device that the runtime does not have. */
  readonly deviceIndex: number | undefined
  /** The number of the report, as in the kernel log. */
  readonly xid: number
}

/**
 * Reports of devices, collected since the watch began.
 *
 * @category models
 * @since 0.1.0
 */
export interface XidWatch {
  /** The reports since the last poll, in order. */
  readonly poll: Effect.Effect<ReadonlyArray<XidEvent>, CudaError>
}

/**
 * The operations of the service. Devices are those of the runtime, by index.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaHealthService {
  readonly devices: ReadonlyArray<DeviceProperties>
  readonly sample: (deviceIndex: number) => Effect.Effect<HealthSample, CudaError>
  readonly processes: (deviceIndex: number) => Effect.Effect<ReadonlyArray<DeviceProcess>, CudaError>
  /** Joules since the driver was loaded. */
  readonly energy: (deviceIndex: number) => Effect.Effect<number, CudaError>
  /** Watches one device, or all. */
  readonly watchXids: (deviceIndex: number | undefined) => Effect.Effect<XidWatch, CudaError, Scope.Scope>
}

/**
 * The health of the runtime's devices, provided by `CudaHealth.layer` or `CudaHealth.layerSimulated`.
 *
 * @category services
 * @since 0.1.0
 */
export class CudaHealth extends Context.Service<CudaHealth, CudaHealthService>()("effect-cuda/CudaHealth") {}

/**
 * Controls what `CudaHealth.layerSimulated` reports.
 *
 * @category models
 * @since 0.1.0
 */
export interface SimulatedHealthService {
  /** Changes fields of the samples of a device from now on. */
  readonly set: (deviceIndex: number, fields: SimulatedSample) => Effect.Effect<void, CudaError>
  /** Changes the processes of a device. */
  readonly setProcesses: (
    deviceIndex: number,
    processes: ReadonlyArray<DeviceProcess>
  ) => Effect.Effect<void, CudaError>
  /** Reports an Xid to every watch. */
  readonly xid: (deviceIndex: number, xid: number) => Effect.Effect<void, CudaError>
}

/**
 * Fields of a simulated sample. Undefined is a field that the device does not support.
 *
 * @category models
 * @since 0.1.0
 */
export type SimulatedSample = { readonly [Field in Exclude<keyof HealthSample, "deviceIndex">]?: HealthSample[Field] }

/**
 * Controls simulated health, provided by `CudaHealth.layerSimulated`.
 *
 * @category services
 * @since 0.1.0
 */
export class SimulatedHealth extends Context.Service<SimulatedHealth, SimulatedHealthService>()(
  "effect-cuda/CudaHealth/SimulatedHealth"
) {}

/**
 * Options for reading the health of GPUs.
 *
 * @category options
 * @since 0.1.0
 */
export interface HealthOptions {
  /**
   * Path of the NVML library. Default: `EFFECT_CUDA_NVML` from the configuration, otherwise the usual locations of the driver.
   */
  readonly libraryPath?: string | undefined
}

/** The service for the devices of the runtime: NVML for GPUs, made-up numbers for simulated devices. */
export const make = (
  options: HealthOptions
): Effect.Effect<CudaHealthService, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.flatMap(
    CudaRuntime,
    (runtime): Effect.Effect<CudaHealthService, CudaError, CudaRuntime | Scope.Scope> =>
      runtime.kind === "simulated"
        ? Effect.map(simulated(), ({ health }) => health)
        : Effect.flatMap(Effect.promise(() => import("./native/health.ts")), ({ start }) =>
          start(runtime.devices, options))
  )

/** Simulated health for the devices of any runtime. */
export const simulated = (
  samples: ReadonlyArray<SimulatedSample> = []
): Effect.Effect<
  { readonly health: CudaHealthService; readonly control: SimulatedHealthService },
  CudaError,
  CudaRuntime
> => Effect.flatMap(CudaRuntime, (runtime) => makeSimulated(runtime, samples))
