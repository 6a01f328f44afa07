/**
 * The health of GPUs, read with NVML. Devices are matched by UUID, since NVML numbers them without regard to `CUDA_VISIBLE_DEVICES`.
 *
 * Reads take microseconds and run on the JS thread. Initialization, the first look-up of a device, energy and the set-up of events take
 * longer, or were not measured, and run on pool threads. NVML needs no context and is safe to call from several threads.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { inTurn } from "../../cuda/asyncCalls.ts"
import {
  eccErrors,
  eventLayout,
  gpuTemperature,
  memoryLayout,
  memoryVersion,
  nvmlAbsent,
  nvmlClocks,
  nvmlFunctionNotFound,
  nvmlInsufficientSize,
  nvmlNotAvailable,
  nvmlStatus,
  nvmlSuccess,
  nvmlTimeout,
  processLayout,
  throttleReasons,
  utilizationLayout,
  xidEvents
} from "../../cuda/nvml.ts"
import type { NvmlArgument, NvmlFunctionName, NvmlFunctions } from "../../cuda/nvml.ts"
import { load } from "../../cuda/nvmlLibrary.ts"
import type { NvmlLibrary } from "../../cuda/nvmlLibrary.ts"
import { CudaError } from "../../CudaError.ts"
import type { DeviceProperties } from "../CudaRuntime.ts"
import type {
  CudaHealthService,
  DeviceProcess,
  HealthOptions,
  HealthSample,
  ThrottleReason,
  XidEvent,
  XidWatch
} from "../Health.ts"
import { readPath } from "../shared/configuration.ts"
import { refuse } from "../shared/failures.ts"
import { refuseDevice } from "../shared/health.ts"

/** Loads and initializes NVML for as long as the scope is open. */
export const start = (
  devices: ReadonlyArray<DeviceProperties>,
  options: HealthOptions
): Effect.Effect<CudaHealthService, CudaError, Scope.Scope> =>
  Effect.gen(function*() {
    const nvml = new Nvml(devices, yield* loadLibrary(options.libraryPath))
    yield* Effect.acquireRelease(nvml.offThread(make, "nvmlInit_v2"), () => nvml.close)
    return serviceOf(nvml)
  })

const make = "CudaHealth.make"

const loadLibrary = Effect.fnUntraced(function*(libraryPath: string | undefined) {
  const path = yield* readPath(make, libraryPath, "EFFECT_CUDA_NVML")
  const result = yield* Effect.promise(() => load(path))
  switch (result._tag) {
    case "Loaded":
      return result.library
    case "KoffiNotLoaded":
      return yield* refuse(make, result)
    case "NotFound":
      return yield* refuse(make, {
        _tag: "LibraryUnavailable",
        library: "NVML",
        searched: result.searched,
        advice:
          "It comes with the NVIDIA driver; containers need the driver capability \"utility\". Set its path with the " +
          "libraryPath option or EFFECT_CUDA_NVML."
      })
  }
})

const serviceOf = (nvml: Nvml): CudaHealthService => ({
  devices: nvml.devices,
  sample: (index) => nvml.on("CudaHealth.sample", index, (handle) => nvml.sample(index, handle)),
  processes: (index) => nvml.on("CudaHealth.processes", index, (handle) => nvml.processes(index, handle)),
  energy: (index) => nvml.on("CudaHealth.energy", index, (handle) => nvml.energy(index, handle)),
  watchXids: (index) => watchXids(nvml, index)
})

/** How many processes are expected before the first call says how many there are. */
const expectedProcesses = 32

/** Maximum number of reports that a poll collects, so that a flood does not hold the event loop. */
const mostReports = 256

class Nvml {
  readonly devices: ReadonlyArray<DeviceProperties>
  readonly #calls: NvmlFunctions
  readonly #handles: Array<number | undefined> = []
  /** Calls on pool threads. NVML must not be shut down beneath them. */
  #running = 0
  #onIdle: (() => void) | undefined
  isClosed = false
  /** The sets of events that are not freed. */
  readonly sets = new Set<EventSet>()
  /** The first call of a sample that failed. */
  #failed: { readonly call: NvmlFunctionName; readonly status: number } | undefined
  readonly #word = new Uint32Array(1)
  readonly #long = new BigUint64Array(1)
  readonly #block = new DataView(new ArrayBuffer(64))

  constructor(devices: ReadonlyArray<DeviceProperties>, { calls }: NvmlLibrary) {
    this.devices = devices
    this.#calls = calls
  }

  /** Runs an operation with NVML's handle of a device. */
  on<A>(
    operation: string,
    index: number,
    use: (handle: number) => Effect.Effect<A, CudaError>
  ): Effect.Effect<A, CudaError> {
    return Effect.suspend(() => {
      const refused = refuseDevice(operation, this.devices, index) ?? this.refuseClosed(operation)
      if (refused !== undefined) return refused
      const handle = this.#handles[index]
      if (handle !== undefined) return use(handle)
      return Effect.flatMap(this.#findHandle(operation, index), (found) => this.refuseClosed(operation) ?? use(found))
    })
  }

  /** Off the JS thread, because NVML may initialize devices while it looks for this one. */
  #findHandle(operation: string, index: number): Effect.Effect<number, CudaError> {
    const found = new BigUint64Array(1)
    const { uuid } = this.devices[index]!
    return Effect.map(
      this.offThread(operation, "nvmlDeviceGetHandleByUUID", [uuid, found], index),
      () => this.#handles[index] = Number(found[0])
    )
  }

  refuseClosed(operation: string): Effect.Effect<never, CudaError> | undefined {
    return this.isClosed
      ? refuse(operation, { _tag: "ResourceReleased", resource: "the CudaHealth layer" })
      : undefined
  }

  fail(
    operation: string,
    call: NvmlFunctionName,
    status: number,
    deviceIndex?: number
  ): Effect.Effect<never, CudaError> {
    const device = deviceIndex === undefined ? undefined : this.devices[deviceIndex]
    return Effect.fail(
      new CudaError({
        operation,
        call,
        deviceIndex,
        subject: device && `device ${deviceIndex}, ${device.uuid}`,
        reason: { _tag: "LibraryFailed", library: "NVML", ...nvmlStatus(status) }
      })
    )
  }

  /** Calls NVML on this thread. */
  call(name: NvmlFunctionName, ...values: ReadonlyArray<NvmlArgument>): number {
    return this.#calls[name]?.(...values) ?? nvmlFunctionNotFound
  }

  /**
   * Calls NVML on a pool thread. A call that has begun ends before NVML is shut down, even if its fiber is interrupted. `values` stay
   * reachable until then.
   */
  offThread(
    operation: string,
    name: NvmlFunctionName,
    values: ReadonlyArray<NvmlArgument> = [],
    deviceIndex?: number
  ): Effect.Effect<void, CudaError> {
    return Effect.callback((resume) => {
      const bound = this.#calls[name]
      if (bound === undefined) return resume(this.fail(operation, name, nvmlFunctionNotFound, deviceIndex))
      this.#running++
      inTurn((onEnd) => bound.async(...values, onEnd), (_, status) => {
        this.#running--
        resume(status === nvmlSuccess ? Effect.void : this.fail(operation, name, status, deviceIndex))
        if (this.#running === 0) this.#onIdle?.()
      })
    })
  }

  /** Shuts NVML down, once no call runs. A failure is logged. */
  get close(): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.isClosed = true
      const idle = Effect.callback<void>((resume) => {
        if (this.#running === 0) return resume(Effect.void)
        this.#onIdle = () => {
          this.#onIdle = undefined
          resume(Effect.void)
        }
      })
      // Other users of NVML in this process would keep the sets.
      const free = Effect.suspend(() => Effect.forEach(this.sets, (set) => freeSet(this, set), { discard: true }))
      const shutdown = warnOf(this.offThread("CudaHealth.release", "nvmlShutdown"))
      return idle.pipe(Effect.andThen(free), Effect.andThen(idle), Effect.andThen(shutdown))
    })
  }

  sample(deviceIndex: number, handle: number): Effect.Effect<HealthSample, CudaError> {
    this.#failed = undefined
    const sample: HealthSample = {
      deviceIndex,
      utilization: this.#utilization(handle),
      memory: this.#memory(handle),
      temperature: this.#readWord("nvmlDeviceGetTemperature", handle, gpuTemperature),
      power: inWatts(this.#readWord("nvmlDeviceGetPowerUsage", handle)),
      powerLimit: inWatts(this.#readWord("nvmlDeviceGetEnforcedPowerLimit", handle)),
      clocks: {
        sm: this.#readWord("nvmlDeviceGetClockInfo", handle, nvmlClocks.sm),
        memory: this.#readWord("nvmlDeviceGetClockInfo", handle, nvmlClocks.memory)
      },
      throttleReasons: this.#throttleReasons(handle),
      ecc: this.#ecc(handle)
    }
    const failed = this.#failure()
    return failed === undefined
      ? Effect.succeed(sample)
      : this.fail("CudaHealth.sample", failed.call, failed.status, deviceIndex)
  }

  #failure() {
    return this.#failed
  }

  /** Reads a field. False if the device does not offer it, or if a call of the sample has failed. */
  #reads(call: NvmlFunctionName, ...values: ReadonlyArray<NvmlArgument>): boolean {
    if (this.#failed !== undefined) return false
    const status = this.call(call, ...values)
    if (status === nvmlSuccess) return true
    if (!nvmlAbsent.has(status)) this.#failed = { call, status }
    return false
  }

  #readWord(call: NvmlFunctionName, ...values: ReadonlyArray<NvmlArgument>): number | undefined {
    return this.#reads(call, ...values, this.#word) ? this.#word[0] : undefined
  }

  #readLong(call: NvmlFunctionName, ...values: ReadonlyArray<NvmlArgument>): number | undefined {
    return this.#reads(call, ...values, this.#long) ? Number(this.#long[0]) : undefined
  }

  #utilization(handle: number): HealthSample["utilization"] {
    if (!this.#reads("nvmlDeviceGetUtilizationRates", handle, this.#block)) return undefined
    return {
      gpu: this.#block.getUint32(utilizationLayout.gpu, true) / 100,
      memory: this.#block.getUint32(utilizationLayout.memory, true) / 100
    }
  }

  #memory(handle: number): HealthSample["memory"] {
    this.#block.setUint32(memoryLayout.version, memoryVersion, true)
    if (!this.#reads("nvmlDeviceGetMemoryInfo_v2", handle, this.#block)) return undefined
    const at = (offset: number) => Number(this.#block.getBigUint64(offset, true))
    return {
      used: at(memoryLayout.used),
      total: at(memoryLayout.total),
      free: at(memoryLayout.free),
      reserved: at(memoryLayout.reserved)
    }
  }

  #throttleReasons(handle: number): HealthSample["throttleReasons"] {
    const call = this.#calls.nvmlDeviceGetCurrentClocksEventReasons === undefined
      ? "nvmlDeviceGetCurrentClocksThrottleReasons"
      : "nvmlDeviceGetCurrentClocksEventReasons"
    return this.#reads(call, handle, this.#long) ? namesOf(this.#long[0]!) : undefined
  }

  #ecc(handle: number): HealthSample["ecc"] {
    const { corrected, uncorrected, volatile } = eccErrors
    const counts = [corrected, uncorrected].map((kind) =>
      this.#readLong("nvmlDeviceGetTotalEccErrors", handle, kind, volatile)
    )
    const [first, second] = counts
    return first === undefined || second === undefined ? undefined : { corrected: first, uncorrected: second }
  }

  processes(deviceIndex: number, handle: number): Effect.Effect<ReadonlyArray<DeviceProcess>, CudaError> {
    const call = "nvmlDeviceGetComputeRunningProcesses_v3"
    for (let capacity = expectedProcesses;; capacity = Math.max(capacity, this.#word[0]!) * 2) {
      const block = new DataView(new ArrayBuffer(capacity * processLayout.size))
      this.#word[0] = capacity
      const status = this.call(call, handle, this.#word, block)
      if (status === nvmlInsufficientSize && capacity < 2 ** 20) continue
      if (status !== nvmlSuccess) return this.fail("CudaHealth.processes", call, status, deviceIndex)
      return Effect.succeed(Array.from({ length: this.#word[0] }, (_, index) => processAt(block, index)))
    }
  }

  energy(deviceIndex: number, handle: number): Effect.Effect<number, CudaError> {
    const millijoules = new BigUint64Array(1)
    const call = "nvmlDeviceGetTotalEnergyConsumption"
    return Effect.map(
      this.offThread("CudaHealth.energy", call, [handle, millijoules], deviceIndex),
      () => Number(millijoules[0]) / 1000
    )
  }

  /** The device with a handle, for reports. */
  indexOf(handle: number): number | undefined {
    const index = this.#handles.indexOf(handle)
    return index < 0 ? undefined : index
  }
}

const inWatts = (milliwatts: number | undefined): number | undefined =>
  milliwatts === undefined ? undefined : milliwatts / 1000

const namesOf = (bits: bigint): ReadonlyArray<ThrottleReason> => {
  const names: Array<ThrottleReason> = []
  let unknown = bits
  for (const [name, bit] of Object.entries(throttleReasons)) {
    if ((bits & BigInt(bit)) === 0n) continue
    names.push(name as keyof typeof throttleReasons)
    unknown &= ~BigInt(bit)
  }
  for (let bit = 1n; bit <= unknown; bit <<= 1n) {
    if ((unknown & bit) !== 0n) names.push(`0x${bit.toString(16)}`)
  }
  return names
}

const processAt = (block: DataView, index: number): DeviceProcess => {
  const at = index * processLayout.size
  const bytes = block.getBigUint64(at + processLayout.memory, true)
  return {
    pid: block.getUint32(at + processLayout.pid, true),
    bytes: bytes === nvmlNotAvailable ? undefined : Number(bytes)
  }
}

const warnOf = (release: Effect.Effect<void, CudaError>): Effect.Effect<void> =>
  Effect.catch(release, (error) => Effect.logWarning(error.message))

const operation = "CudaHealth.xids"

/** Registers for the reports of one device, or of every device that has them. */
const watchXids = (nvml: Nvml, index: number | undefined): Effect.Effect<XidWatch, CudaError, Scope.Scope> =>
  Effect.gen(function*() {
    const indices = index === undefined ? nvml.devices.map((device) => device.index) : [index]
    const handles = yield* Effect.forEach(indices, (device) => nvml.on(operation, device, Effect.succeed))
    const set = yield* Effect.acquireRelease(createSet(nvml), (made) => freeSet(nvml, made))
    const register = (handle: number, at: number) =>
      // The set must not be freed meanwhile.
      Effect.uninterruptible(
        nvml.offThread(operation, "nvmlDeviceRegisterEvents", [handle, xidEvents, set.handle], indices[at])
      )
    const outcomes = yield* Effect.forEach(handles, (handle, at) => Effect.result(register(handle, at)))
    const failures = outcomes.flatMap((outcome) => outcome._tag === "Failure" ? [outcome.failure] : [])
    const failure = failures.find((error) => !isUnsupported(error)) ??
      (failures.length === handles.length ? failures[0] : undefined)
    if (failure !== undefined) return yield* failure
    return { poll: Effect.suspend(() => poll(nvml, set)) }
  })

/** A set of events, and where the driver writes the next one. */
interface EventSet {
  readonly handle: number
  readonly data: DataView
  isFreed: boolean
}

const createSet = (nvml: Nvml): Effect.Effect<EventSet, CudaError> =>
  Effect.suspend(() => {
    const made = new BigUint64Array(1)
    const created = nvml.refuseClosed(operation) ?? nvml.offThread(operation, "nvmlEventSetCreate", [made])
    return Effect.map(created, () => {
      const set: EventSet = { handle: Number(made[0]), data: new DataView(new ArrayBuffer(64)), isFreed: false }
      nvml.sets.add(set)
      return set
    })
  })

/** Frees a set, which ends its registrations. */
const freeSet = (nvml: Nvml, set: EventSet): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (set.isFreed) return Effect.void
    set.isFreed = true
    nvml.sets.delete(set)
    return warnOf(nvml.offThread("CudaHealth.release", "nvmlEventSetFree", [set.handle]))
  })

const isUnsupported = ({ reason }: CudaError): boolean => reason._tag === "LibraryFailed" && nvmlAbsent.has(reason.code)

/** Takes the reports that are there. Does not wait for any. */
const poll = (nvml: Nvml, set: EventSet): Effect.Effect<ReadonlyArray<XidEvent>, CudaError> => {
  const refused = nvml.refuseClosed(operation)
  if (refused !== undefined) return refused
  if (set.isFreed) return refuse(operation, { _tag: "ResourceReleased", resource: "the watch of Xids" })
  const events: Array<XidEvent> = []
  while (events.length < mostReports) {
    const status = nvml.call("nvmlEventSetWait_v2", set.handle, set.data, 0)
    if (status === nvmlTimeout) break
    // The next poll fails, once these reports are taken.
    if (status !== nvmlSuccess && events.length > 0) break
    if (status !== nvmlSuccess) return nvml.fail(operation, "nvmlEventSetWait_v2", status)
    const handle = Number(set.data.getBigUint64(eventLayout.device, true))
    const xid = Number(set.data.getBigUint64(eventLayout.data, true))
    events.push({ deviceIndex: nvml.indexOf(handle), xid })
  }
  return Effect.succeed(events)
}
