/**
 * Placement: choose a device by its free memory and its load, and spread the work of many fibers over devices with leases.
 *
 * What is known of a device is its free memory, the work and the leases of this runtime, and, if the context has `CudaHealth`, how busy
 * NVML says it is, also with work of other processes. Depends on the `CudaRuntime` interface and on `CudaHealth`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { withDevice } from "./CudaDevice.ts"
import type { CudaDevice, DeviceInput } from "./CudaDevice.ts"
import { CudaError, reasonFromStatus } from "./CudaError.ts"
import { CudaHealth } from "./CudaHealth.ts"
import type { CudaHealthService } from "./CudaHealth.ts"
import { named, refuseArgument } from "./internal/handles.ts"
import { leasesOf } from "./internal/leases.ts"
import type { Leases } from "./internal/leases.ts"
import { isWhole } from "./internal/numbers.ts"
import { deviceIndexOf } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService } from "./layers/CudaRuntime.ts"

/**
 * What is known of a device when one is chosen.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceLoad {
  readonly device: CudaDevice
  /**
   * Bytes that a new allocation can use: free memory of the device, and what the runtime's pool keeps for reuse, less what leases have
   * reserved and not allocated yet.
   */
  readonly availableMemory: number
  /** Leases that have not ended. */
  readonly leases: number
  /** Bytes that those leases have asked for. */
  readonly reservedMemory: number
  /** Streams of this runtime with work that has not finished. */
  readonly busyStreams: number
  /** The fraction of the last sample period during which a kernel of any process ran. Undefined without `CudaHealth`. */
  readonly utilization: number | undefined
}

/**
 * Options for choosing a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface PickOptions {
  /** Bytes that must be available. Default: 0. */
  readonly memory?: number | undefined
  /**
   * What to prefer among the devices with enough memory. `"load"`: the fewest leases, then the fewest busy streams, then the lowest
   * utilization (in steps of 10 %), then the most available memory. `"memory"`: the most available memory, then the fewest leases, then the
   * fewest busy streams. Devices that are equal in all of that are taken by index. Default: `"load"`.
   */
  readonly by?: "load" | "memory" | undefined
  /** The devices to choose from. Default: all. */
  readonly devices?: ReadonlyArray<DeviceInput> | undefined
}

/**
 * Options for leasing a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface LeaseOptions extends PickOptions {
  /** The most leases that a device may have, this one included, at least 1. Default: no limit. */
  readonly perDevice?: number | undefined
}

/**
 * Reads the load of all devices, by index.
 *
 * **Details**
 *
 * Opens every device, which creates its primary context, and asks it about its memory (`cuMemGetInfo`, `cuMemPoolGetAttribute`) and its
 * streams (`cuStreamQuery`). A device whose health cannot be read has no utilization.
 *
 * **Gotchas**
 *
 * A context takes a few hundred MB of each device's memory and a good part of a second on first use. Pass `devices` to `pick` and `lease`
 * to leave the others alone.
 *
 * **Example** (The load of every device)
 *
 * ```ts
 * import { CudaPlacement } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const leases = Effect.map(CudaPlacement.loads, (loads) => loads.map((load) => load.leases))
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const loads: Effect.Effect<ReadonlyArray<DeviceLoad>, CudaError, CudaRuntime> = Effect.flatMap(
  CudaRuntime,
  (runtime) =>
    Effect.map(
      measureAll(runtime, runtime.devices.map(({ index }) => index)),
      (measured) => measured.map(({ load }) => load)
    )
).pipe(named("CudaPlacement.loads"))

/**
 * Chooses the device with the least load, or with the most memory, among those with enough available memory.
 *
 * **Details**
 *
 * If no device has enough, waits for the releases that the GPUs have not reached yet, returns unused memory of the runtime's pools to the
 * system, and looks once more. Then fails with `OutOfMemory`, with the free memory of the device that has the most. Fails with
 * `InvalidArgument` for other values of the options, and for devices that do not exist.
 *
 * Only reads: fibers that pick at the same moment get the same device. Use `lease` to spread them.
 *
 * **Example** (A device with room for 20 GiB)
 *
 * ```ts
 * import { CudaDevice, CudaMemory, CudaPlacement } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const bytes = 20 * 2 ** 30
 * const weights = Effect.flatMap(
 *   CudaPlacement.pick({ memory: bytes, by: "memory" }),
 *   (device) => CudaMemory.allocate(bytes, { device })
 * )
 * ```
 *
 * @category placement
 * @since 0.1.0
 */
export const pick = (options: PickOptions = {}): Effect.Effect<CudaDevice, CudaError, CudaRuntime> =>
  Effect.flatMap(CudaRuntime, (runtime) => {
    const operation = "CudaPlacement.pick"
    const request = resolve(operation, runtime, options)
    if (Effect.isEffect(request)) return request
    const found = Effect.flatMap(
      choose(runtime, request),
      ({ best, most }) => best === undefined ? refuseMemory(operation, request, most) : Effect.succeed(best.load.device)
    )
    return found.pipe(named(operation))
  })

/**
 * Chooses a device as `pick` does, and counts as its user until the scope closes: later leases and picks see it, and go to other devices.
 *
 * **Details**
 *
 * The lease reserves `memory`: what its holder has not allocated yet is not available to others. Waits while every device with enough
 * memory has `perDevice` leases, or while the memory that is missing is reserved by leases. Waiting suspends the fiber and is interruptible;
 * leases are given in the order they were asked for. Fails with `OutOfMemory` if no device has enough even without leases.
 *
 * Allocate in a scope inside that of the lease, so that the memory is released before the lease ends.
 *
 * **Gotchas**
 *
 * A lease is a promise among the fibers of this runtime. It reserves nothing in the driver, and binds no other process.
 *
 * Memory in use that no lease accounts for is what was in use when the device had no lease; more of it makes the estimate too high.
 *
 * A large request at the head of the queue holds up smaller ones behind it.
 *
 * **Example** (One request per device at a time)
 *
 * ```ts
 * import { CudaDevice, CudaMemory, CudaPlacement, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const request = Effect.gen(function*() {
 *   const device = yield* CudaPlacement.lease({ memory: 2 ** 30, perDevice: 1 })
 *   const buffer = yield* CudaMemory.allocate(2 ** 30, { device })
 *   yield* CudaMemory.fill(buffer, 0)
 *   yield* CudaStream.synchronize(yield* CudaStream.current(device))
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category placement
 * @since 0.1.0
 */
export const lease = (
  options: LeaseOptions = {}
): Effect.Effect<CudaDevice, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.flatMap(CudaRuntime, (runtime) => {
    const operation = "CudaPlacement.lease"
    const request = resolve(operation, runtime, options)
    if (Effect.isEffect(request)) return request
    const leases = leasesOf(runtime)
    return Effect.uninterruptibleMask((restore) => {
      let end: (() => void) | undefined
      const take = Effect.map(taking(operation, runtime, leases, request), (taken) => {
        end = leases.begin(taken.load.device.index, request.memory, taken.used)
        return taken.load.device
      })
      const giveBack = Effect.sync(() => end?.())
      return restore(leases.turn.withPermit(take)).pipe(
        // Also if the interruption comes when the lease has begun.
        Effect.onError(() => giveBack),
        Effect.tap(() => Effect.addFinalizer(() => giveBack))
      )
    }).pipe(named(operation))
  })

/**
 * Runs an effect with a leased device as the current device, and ends the lease when the effect ends.
 *
 * **Details**
 *
 * See `lease`. What the effect allocates in a scope of its own is released before the lease ends.
 *
 * **Example** (Requests spread over all devices)
 *
 * ```ts
 * import { CudaMemory, CudaPlacement, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const work = Effect.gen(function*() {
 *   const buffer = yield* CudaMemory.allocate(4096) // on the leased device
 *   yield* CudaMemory.fill(buffer, 0)
 *   yield* CudaStream.synchronize(yield* CudaStream.current())
 * }).pipe(Effect.scoped, CudaStream.withPooledStream(), CudaPlacement.withLease({ perDevice: 8 }))
 *
 * const all = Effect.all(Array.from({ length: 100 }, () => work), { concurrency: "unbounded" })
 * ```
 *
 * @category placement
 * @since 0.1.0
 */
export const withLease: {
  (options?: LeaseOptions): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CudaError, R | CudaRuntime>
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: LeaseOptions): Effect.Effect<A, E | CudaError, R | CudaRuntime>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options: LeaseOptions = {}
  ): Effect.Effect<A, E | CudaError, R | CudaRuntime> =>
    Effect.scopedWith((scope) =>
      Effect.flatMap(Scope.provide(lease(options), scope), (device) => withDevice(self, device))
    )
)

/** Valid options. */
interface Request {
  readonly memory: number
  readonly by: "load" | "memory"
  readonly devices: ReadonlyArray<number>
  readonly perDevice: number
}

const resolve = (
  operation: string,
  runtime: CudaRuntimeService,
  { by = "load", devices, memory = 0, perDevice }: LeaseOptions
): Request | Effect.Effect<never, CudaError> => {
  if (!isWhole(memory, 0)) return refuseArgument(operation, "memory", memory, "a non-negative number of bytes")
  if (by !== "load" && by !== "memory") return refuseArgument(operation, "by", by, `"load" or "memory"`)
  if (perDevice !== undefined && perDevice !== Number.POSITIVE_INFINITY && !isWhole(perDevice, 1)) {
    return refuseArgument(operation, "perDevice", perDevice, "an integer of at least 1")
  }
  const common = { memory, by, perDevice: perDevice ?? Number.POSITIVE_INFINITY }
  if (devices === undefined) return { ...common, devices: runtime.devices.map(({ index }) => index) }
  if (!Array.isArray(devices) || devices.length === 0) {
    return refuseArgument(operation, "devices", devices, "at least one device")
  }
  const indices = devices.map((device) => deviceIndexOf(device, Number.NaN))
  for (const [at, index] of indices.entries()) {
    if (runtime.devices[index] !== undefined) continue
    const expected = `a device index from 0 to ${runtime.devices.length - 1}`
    return refuseArgument(operation, `devices[${at}]`, devices[at], expected)
  }
  return { ...common, devices: Array.from(new Set(indices)) }
}

/** The load of a device, and what leases need to know of its memory. */
interface Measured {
  readonly load: DeviceLoad
  /** Bytes that the runtime's pool has given out. */
  readonly used: number
  /** Bytes that would be available without leases. */
  readonly withoutLeases: number
}

const measureAll = (
  runtime: CudaRuntimeService,
  devices: ReadonlyArray<number>
): Effect.Effect<ReadonlyArray<Measured>, CudaError> =>
  Effect.flatMap(
    Effect.serviceOption(CudaHealth),
    (health) => Effect.forEach(devices, (device) => measure(runtime, Option.getOrUndefined(health), device))
  )

const measure = Effect.fnUntraced(function*(
  runtime: CudaRuntimeService,
  health: CudaHealthService | undefined,
  deviceIndex: number
) {
  const { free } = yield* runtime.deviceMemoryInfo(deviceIndex)
  const { reservedBytes, usedBytes: used } = yield* runtime.poolStatistics(yield* runtime.poolOfDevice(deviceIndex))
  const { busyStreams } = yield* runtime.deviceUsage(deviceIndex)
  const utilization = health === undefined ? undefined : yield* utilizationOf(health, deviceIndex)
  const { base, count, reserved } = leasesOf(runtime).of(deviceIndex)
  const whole = free + reservedBytes
  const taken = count === 0 ? used : Math.max(used, base + reserved)
  const load: DeviceLoad = {
    device: runtime.devices[deviceIndex]!,
    availableMemory: Math.max(0, whole - taken),
    leases: count,
    reservedMemory: reserved,
    busyStreams,
    utilization
  }
  return { load, used, withoutLeases: count === 0 ? load.availableMemory : Math.max(0, whole - base) }
})

const utilizationOf = (health: CudaHealthService, deviceIndex: number): Effect.Effect<number | undefined> =>
  Effect.match(health.sample(deviceIndex), {
    onSuccess: ({ utilization }) => utilization?.gpu,
    onFailure: () => undefined
  })

/** The best device that fits, and the one with the most memory. */
interface Choice {
  readonly best: Measured | undefined
  readonly most: Measured
  readonly all: ReadonlyArray<Measured>
}

/** Measures the devices, and chooses one. Reclaims memory and measures again before it concludes that there is too little. */
const choose = (runtime: CudaRuntimeService, request: Request): Effect.Effect<Choice, CudaError> =>
  Effect.flatMap(chooseOnce(runtime, request), (choice) => {
    if (choice.best !== undefined || choice.most.load.availableMemory >= request.memory) return Effect.succeed(choice)
    const reclaim = Effect.forEach(request.devices, (device) => runtime.memoryReclaim(device), { discard: true })
    return Effect.andThen(reclaim, chooseOnce(runtime, request))
  })

const chooseOnce = (runtime: CudaRuntimeService, request: Request): Effect.Effect<Choice, CudaError> =>
  Effect.map(measureAll(runtime, request.devices), (all) => {
    const fitting = all.filter(({ load }) => load.availableMemory >= request.memory && load.leases < request.perDevice)
    const [best] = fitting.toSorted(orders[request.by])
    const most = all.reduce((one, other) => other.load.availableMemory > one.load.availableMemory ? other : one)
    return { best, most, all }
  })

type Compare = (one: Measured, other: Measured) => number

const by = (value: (load: DeviceLoad) => number): Compare => (one, other) => value(one.load) - value(other.load)

const inOrder = (...compares: ReadonlyArray<Compare>): Compare => (one, other) => {
  for (const compare of compares) {
    const order = compare(one, other)
    if (order !== 0) return order
  }
  return 0
}

const leasesFirst = by(({ leases }) => leases)
const busyFirst = by(({ busyStreams }) => busyStreams)
const memoryFirst = by(({ availableMemory }) => -availableMemory)
const utilizationFirst = by(({ utilization = 0 }) => Math.round(utilization * 10))
const indexFirst = by(({ device }) => device.index)

const orders = {
  load: inOrder(leasesFirst, busyFirst, utilizationFirst, memoryFirst, indexFirst),
  memory: inOrder(memoryFirst, leasesFirst, busyFirst, indexFirst)
} as const

/** Finds a device for a lease. Waits for leases to end if that can make room. */
const taking = (
  operation: string,
  runtime: CudaRuntimeService,
  leases: Leases,
  request: Request
): Effect.Effect<Measured, CudaError> =>
  Effect.suspend(() => {
    const { ended } = leases
    return Effect.flatMap(choose(runtime, request), ({ all, best, most }) => {
      if (best !== undefined) return Effect.succeed(best)
      if (!all.some((one) => one.load.leases > 0 && one.withoutLeases >= request.memory)) {
        return refuseMemory(operation, request, most)
      }
      return Effect.andThen(leases.whenEnded(ended), taking(operation, runtime, leases, request))
    })
  })

const refuseMemory = (operation: string, { devices, memory }: Request, { load }: Measured) => {
  const { availableMemory: free, device } = load
  const subject = `${memory} bytes on ${devices.length === 1 ? "device" : "any of devices"} ${devices.join(", ")}`
  const shortage = { requested: memory, free, total: device.totalMemory }
  return Effect.fail(
    new CudaError({ operation, deviceIndex: device.index, subject, reason: reasonFromStatus(2), memory: shortage })
  )
}
