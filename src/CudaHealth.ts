/**
 * The health of devices, read with NVML, the driver's management library: utilization, memory, temperature, power, clocks, throttling, memory
 * errors, processes, and the driver's error reports (Xids).
 *
 * A service of its own, so that programs without it never load NVML. `layer` provides it for the devices of the runtime, and
 * `layerSimulated` with numbers that a test sets. Depends on the interfaces of `CudaHealth` and `CudaRuntime`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import { deviceGauges } from "./internal/health/gauges.ts"
import { deviceIndexOf, resolveDevice } from "./internal/place.ts"
import type { CudaRuntime } from "./layers/CudaRuntime.ts"
import * as Health from "./layers/Health.ts"
import type {
  CudaHealthService,
  DeviceProcess,
  HealthOptions,
  HealthSample,
  SimulatedHealthService,
  SimulatedSample,
  ThrottleReason,
  XidEvent,
  XidWatch
} from "./layers/Health.ts"

export {
  /**
   * The health of the runtime's devices, as a service.
   *
   * **Example** (The temperature of every device)
   *
   * ```ts
   * import { CudaHealth } from "effect-cuda"
   * import * as Effect from "effect/Effect"
   *
   * const temperatures = Effect.gen(function*() {
   *   const { devices, sample } = yield* CudaHealth.CudaHealth
   *   const samples = yield* Effect.forEach(devices, (_, index) => sample(index))
   *   return samples.map(({ temperature }) => temperature)
   * })
   * ```
   *
   * @category services
   * @since 0.1.0
   */
  CudaHealth,
  /**
   * Controls the numbers of `layerSimulated`.
   *
   * **Example** (A device that overheats)
   *
   * ```ts
   * import { CudaHealth } from "effect-cuda"
   * import * as Effect from "effect/Effect"
   *
   * const overheat = Effect.flatMap(CudaHealth.SimulatedHealth, (control) => control.set(0, { temperature: 92 }))
   * ```
   *
   * @category services
   * @since 0.1.0
   */
  SimulatedHealth
} from "./layers/Health.ts"

export type {
  /**
   * The operations of the service.
   *
   * @category models
   * @since 0.1.0
   */
  CudaHealthService,
  /**
   * A process with a CUDA context on a device.
   *
   * @category models
   * @since 0.1.0
   */
  DeviceProcess,
  /**
   * Options for reading the health of GPUs.
   *
   * @category options
   * @since 0.1.0
   */
  HealthOptions,
  /**
   * What NVML measured on a device.
   *
   * @category models
   * @since 0.1.0
   */
  HealthSample,
  /**
   * Controls what `layerSimulated` reports.
   *
   * @category models
   * @since 0.1.0
   */
  SimulatedHealthService,
  /**
   * Fields of a simulated sample.
   *
   * @category models
   * @since 0.1.0
   */
  SimulatedSample,
  /**
   * Why the clocks of a device are below their maximum.
   *
   * @category models
   * @since 0.1.0
   */
  ThrottleReason,
  /**
   * An error report of the driver about a device.
   *
   * @category models
   * @since 0.1.0
   */
  XidEvent,
  /**
   * Reports of devices, collected since the watch began.
   *
   * @category models
   * @since 0.1.0
   */
  XidWatch
}

/**
 * Creates the service in a scope.
 *
 * **Details**
 *
 * Loads NVML and calls `nvmlInit_v2`, off the JS thread. Closing the scope calls `nvmlShutdown`. Fails with `LibraryUnavailable` (which
 * lists every location tried), `KoffiNotLoaded`, or `LibraryFailed`. With a simulated runtime, the service is simulated, too, and loads
 * nothing.
 *
 * **Example** (Health without a layer)
 *
 * ```ts
 * import { CudaHealth } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const sample = Effect.gen(function*() {
 *   const health = yield* CudaHealth.make()
 *   return yield* Effect.provideService(CudaHealth.sample(), CudaHealth.CudaHealth, health)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  options: HealthOptions = {}
): Effect.Effect<CudaHealthService, CudaError, CudaRuntime | Scope.Scope> => Health.make(options)

/**
 * Provides the health of the runtime's devices.
 *
 * **Details**
 *
 * Devices are matched by UUID, so `CUDA_VISIBLE_DEVICES` does not confuse them. With a simulated runtime, the numbers are those of
 * `layerSimulated`.
 *
 * **Gotchas**
 *
 * MIG was not tried. The UUID of a MIG device and that of its GPU differ, and NVML offers few of these numbers for MIG devices.
 *
 * **Example** (A health check)
 *
 * ```ts
 * import { CudaHealth, NativeRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const isCool = Effect.map(CudaHealth.sample(), ({ temperature = 0 }) => temperature < 85)
 *
 * const program = isCool.pipe(
 *   Effect.provide(CudaHealth.layer().pipe(Layer.provideMerge(NativeRuntime.layer())))
 * )
 * ```
 *
 * @see {@link make} for the failures of building the layer
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: HealthOptions = {}): Layer.Layer<Health.CudaHealth, CudaError, CudaRuntime> =>
  Layer.effect(Health.CudaHealth, make(options))

/**
 * Provides simulated health for the devices of any runtime, and `SimulatedHealth` to change it.
 *
 * **Details**
 *
 * A device is idle, without errors and with the memory of the runtime, until a test sets other fields. `energy` is 0. Fails with
 * `InvalidArgument` if there are more samples than devices.
 *
 * **Example** (A device that overheats)
 *
 * ```ts
 * import { CudaHealth, SimulatedRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const program = Effect.gen(function*() {
 *   const control = yield* CudaHealth.SimulatedHealth
 *   yield* control.set(0, { temperature: 92, throttleReasons: ["hwThermalSlowdown"] })
 *   return (yield* CudaHealth.sample()).throttleReasons
 * }).pipe(Effect.provide(CudaHealth.layerSimulated().pipe(Layer.provideMerge(SimulatedRuntime.layer()))))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerSimulated = (
  samples: ReadonlyArray<SimulatedSample> = []
): Layer.Layer<Health.CudaHealth | Health.SimulatedHealth, CudaError, CudaRuntime> =>
  Layer.effectContext(
    Effect.map(Health.simulated(samples), ({ control, health }) =>
      Context.make(Health.CudaHealth, health).pipe(Context.add(Health.SimulatedHealth, control)))
  )

/**
 * Reads the health of a device, by default of the current device.
 *
 * **Details**
 *
 * Fields that the device does not offer are undefined. Any other status fails with `LibraryFailed`, for example `NVML_ERROR_GPU_IS_LOST`.
 * NVML answers even after a fault has destroyed the contexts of the process.
 *
 * The calls run on the JS thread. On an H200 each took about 1 µs, except those for memory (9–29 µs) and utilization (13 µs).
 *
 * **Example** (How busy a device is)
 *
 * ```ts
 * import { CudaHealth } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const utilization = Effect.map(CudaHealth.sample(0), (sample) => sample.utilization)
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const sample = (device?: DeviceInput): Effect.Effect<HealthSample, CudaError, Health.CudaHealth> =>
  onDevice(device, (health, index) => health.sample(index))

/**
 * Lists the processes with a CUDA context on a device, by default on the current device
 * (`nvmlDeviceGetComputeRunningProcesses`), this process included.
 *
 * **Gotchas**
 *
 * In a container, the driver may list other processes or process ids than the container has; this was not tried.
 *
 * **Example** (Who else uses the device)
 *
 * ```ts
 * import { CudaHealth } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const pids = Effect.map(CudaHealth.processes(), (processes) => processes.map((process) => process.pid))
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const processes = (
  device?: DeviceInput
): Effect.Effect<ReadonlyArray<DeviceProcess>, CudaError, Health.CudaHealth> =>
  onDevice(device, (health, index) => health.processes(index))

/**
 * Reads the energy that a device has used since the driver was loaded, in joules, by default of the current device
 * (`nvmlDeviceGetTotalEnergyConsumption`).
 *
 * **Details**
 *
 * The call takes 3–16 ms, so it runs on a pool thread.
 *
 * **Example** (The energy of a piece of work)
 *
 * ```ts
 * import { CudaHealth } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const energyOf = <A, E, R>(work: Effect.Effect<A, E, R>) =>
 *   Effect.gen(function*() {
 *     const before = yield* CudaHealth.energy()
 *     yield* work
 *     return (yield* CudaHealth.energy()) - before
 *   })
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const energy = (device?: DeviceInput): Effect.Effect<number, CudaError, Health.CudaHealth> =>
  onDevice(device, (health, index) => health.energy(index))

/**
 * Options for error reports.
 *
 * @category options
 * @since 0.1.0
 */
export interface XidOptions {
  /** Default: all devices. */
  readonly device?: DeviceInput | undefined
  /** When to look for reports; the stream ends with it. Default: every second. */
  readonly schedule?: Schedule.Schedule<unknown> | undefined
}

/**
 * Streams the driver's error reports (Xid critical errors) about devices, from the moment the stream starts.
 *
 * **Details**
 *
 * Registers for the events (`nvmlDeviceRegisterEvents`), looks for them on a schedule without waiting in the driver, at half a
 * microsecond a look, and frees the registration when the stream ends. Devices without events are left out; if none has any, the stream
 * fails with `NVML_ERROR_NOT_SUPPORTED`.
 *
 * Reports are about the device, whoever caused them: a fault in another process is reported as well. Xids 13, 31 and 43 come from
 * programs, 48, 63, 64 and 79 among others from hardware.
 *
 * **Example** (Ending a service when its GPU breaks)
 *
 * ```ts
 * import { CudaHealth } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Stream from "effect/Stream"
 *
 * const broken = new Set([48, 79, 94, 95])
 *
 * const untilBroken = CudaHealth.xids().pipe(
 *   Stream.tap(({ deviceIndex, xid }) => Effect.logWarning(`Xid ${xid} on device ${deviceIndex}`)),
 *   Stream.filter(({ xid }) => broken.has(xid)),
 *   Stream.runHead
 * )
 * ```
 *
 * @category streams
 * @since 0.1.0
 */
export const xids = (options: XidOptions = {}): Stream.Stream<XidEvent, CudaError, Health.CudaHealth> =>
  Stream.unwrap(
    Effect.map(
      Effect.flatMap(Health.CudaHealth, (health) =>
        health.watchXids(options.device === undefined ? undefined : deviceIndexOf(options.device, 0))),
      ({ poll }) =>
        Stream.flattenIterable(Stream.fromEffectSchedule(poll, options.schedule ?? everySecond))
    )
  )

/**
 * Options for metrics.
 *
 * @category options
 * @since 0.1.0
 */
export interface MetricsOptions {
  /** When to read the devices; the effect ends with it. Default: every 15 seconds. */
  readonly schedule?: Schedule.Schedule<unknown> | undefined
}

/**
 * Keeps gauges of all devices up to date, on a schedule. Fork it for as long as they should exist: they are removed when it ends, so that
 * exporters do not repeat old numbers.
 *
 * **Details**
 *
 * Names, units and the attributes `hw.id` (the UUID), `hw.name` and `hw.type` follow OpenTelemetry's conventions for hardware where these
 * have a name: `hw.gpu.utilization`, `hw.gpu.memory.utilization`, `hw.gpu.memory.usage`, `hw.gpu.memory.limit`, `hw.temperature`,
 * `hw.power`. The others are `hw.gpu.memory.controller.utilization`, `hw.gpu.power.limit`, `hw.gpu.clock.frequency` (by `hw.gpu.clock`),
 * `hw.gpu.ecc.errors` (by `error.type`) and `hw.gpu.throttled` (0 or 1, by `hw.gpu.throttle.reason`).
 *
 * Fails as `sample` does; retry it with a schedule. A field that a device does not offer has no gauge.
 *
 * **Example** (Metrics beside a service)
 *
 * ```ts
 * import { CudaHealth } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Schedule from "effect/Schedule"
 *
 * const metrics = Layer.effectDiscard(
 *   CudaHealth.metrics().pipe(Effect.retry(Schedule.spaced("1 minute")), Effect.forkScoped)
 * )
 * ```
 *
 * @category metrics
 * @since 0.1.0
 */
export const metrics = (options: MetricsOptions = {}): Effect.Effect<void, CudaError, Health.CudaHealth> =>
  Effect.flatMap(Health.CudaHealth, ({ devices, sample }) => {
    const all = devices.map((device) => ({ device, gauges: deviceGauges(device) }))
    const update = Effect.forEach(
      all,
      ({ device, gauges }) =>
        Effect.flatMap(sample(device.index), (read) =>
          Effect.forEach(gauges, ({ gauge, valueOf }) => {
            const value = valueOf(read)
            return value === undefined ? Metric.remove(gauge) : Metric.update(gauge, value)
          }, { discard: true })),
      { discard: true }
    )
    const remove = Effect.forEach(
      all.flatMap(({ gauges }) => gauges),
      ({ gauge }) => Metric.remove(gauge),
      { discard: true }
    )
    return update.pipe(
      Effect.repeat(options.schedule ?? everyQuarterMinute),
      Effect.asVoid,
      Effect.ensuring(remove)
    )
  })

const everySecond = Schedule.spaced("1 second")
const everyQuarterMinute = Schedule.spaced("15 seconds")

const onDevice = <A>(
  device: DeviceInput | undefined,
  use: (health: CudaHealthService, index: number) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError, Health.CudaHealth> =>
  Effect.flatMap(Health.CudaHealth, (health) => Effect.flatMap(resolveDevice(device), (index) => use(health, index)))
