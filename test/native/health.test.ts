/**
 * The health of GPUs on the stub NVML: what is called where, the fields of samples, failures with NVML's names, and the end of everything.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaHealth from "effect-cuda/CudaHealth"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import {
  eventLayout,
  memoryLayout,
  memoryVersion,
  nvmlStatus,
  processLayout,
  throttleReasons,
  utilizationLayout
} from "../../src/cuda/nvml.ts"
import type { NvmlFunctionName } from "../../src/cuda/nvml.ts"
import { nvmlPlaces } from "../../src/cuda/nvmlLibrary.ts"
import { failsWith, refuses } from "../support/assertions.ts"
import { runChild } from "../support/stub/child.ts"
import { logged, onStub, openStub, until } from "../support/stubDriver.ts"
import { StubNvml } from "../support/stubNvml.ts"

const driver = openStub()
const nvml = new StubNvml()
const old = new StubNvml(["STUB_OLD"])

const nothing = { initialized: 0, sets: 0, registered: 0 }

/** Runs a program with health on a stub, and asserts that NVML holds nothing afterwards. */
const onNvml = <A, E>(
  program: Effect.Effect<A, E, CudaHealth.CudaHealth | CudaRuntime | Scope.Scope>,
  { prepare, stub = nvml }: { readonly prepare?: (stub: StubNvml) => void; readonly stub?: StubNvml } = {}
): Effect.Effect<A, E | CudaError> => {
  const provided = program.pipe(Effect.scoped, Effect.provide(CudaHealth.layer({ libraryPath: stub.path })))
  return Effect.suspend(() => {
    stub.reset()
    prepare?.(stub)
    return Effect.tap(onStub(driver, provided, { prepare: (made) => made.devices = 2 }), () =>
      Effect.sync(() => {
        assert.strictEqual(stub.misuse, "")
        assert.deepStrictEqual(stub.live, nothing)
      }))
  })
}

/** Asserts a failure with one of NVML's statuses. */
const failsWithStatus = <R>(effect: Effect.Effect<unknown, CudaError, R>, name: string, call: NvmlFunctionName) =>
  Effect.map(Effect.flip(effect), (error) => {
    assert(typeof error === "object" && error !== null && "reason" in error)
    const { reason } = error as CudaError
    assert(reason._tag === "LibraryFailed", error.message)
    assert.deepStrictEqual([reason.library, reason.name], ["NVML", name])
    assert.include(error.message, call)
    return error
  })

describe("the layouts of NVML's structs", () => {
  it("are those of the C compiler", () => {
    const expected = [utilizationLayout, memoryLayout, processLayout, eventLayout].flatMap((layout) =>
      Object.values(layout)
    )
    assert.deepStrictEqual(nvml.layout(expected.length + 1), [...expected, memoryVersion])
  })
})

describe("a sample", () => {
  it.live("has every field, in the units of the library", () =>
    onNvml(
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* CudaHealth.sample(), {
          deviceIndex: 0,
          utilization: { gpu: 0.37, memory: 0.12 },
          memory: { used: 9 * 2 ** 30, total: 80 * 2 ** 30, free: 70 * 2 ** 30, reserved: 2 ** 30 },
          temperature: 61,
          power: 412.5,
          powerLimit: 700,
          clocks: { sm: 1980, memory: 2619 },
          throttleReasons: ["swPowerCap", "hwThermalSlowdown", "0x200"],
          ecc: { corrected: 3, uncorrected: 2 ** 40 }
        })
      }),
      {
        prepare: (stub) => {
          const given = { gpu: 37, memory: 12, temperature: 61, power: 412_500, powerLimit: 700_000 } as const
          for (const [name, value] of Object.entries(given)) stub.set(0, name as keyof typeof given, value)
          stub.set(0, "smClock", 1980)
          stub.set(0, "memoryClock", 2619)
          stub.setLong(0, "throttle", throttleReasons.swPowerCap | throttleReasons.hwThermalSlowdown | 0x200)
          stub.setLong(0, "corrected", 3)
          stub.setLong(0, "uncorrected", 2 ** 40)
        }
      }
    ))

  it.live("is that of the device with the UUID, of the current device by default", () =>
    onNvml(
      Effect.gen(function*() {
        const [, second] = yield* CudaDevice.all
        const temperature = (health: CudaHealth.HealthSample) => health.temperature
        assert.strictEqual(temperature(yield* CudaHealth.sample(second)), 82)
        assert.strictEqual(temperature(yield* CudaHealth.sample(0)), 41)
        assert.strictEqual(temperature(yield* CudaHealth.sample().pipe(CudaDevice.withDevice(1))), 82)
      }),
      {
        prepare: (stub) => {
          stub.set(0, "temperature", 41)
          stub.set(1, "temperature", 82)
        }
      }
    ))

  it.live("looks each device up once, and makes its calls on the JS thread", () =>
    onNvml(
      Effect.gen(function*() {
        yield* CudaHealth.sample()
        nvml.clear()
        yield* CudaHealth.sample()
        assert.deepStrictEqual(nvml.calls, [
          "nvmlDeviceGetUtilizationRates",
          "nvmlDeviceGetMemoryInfo_v2",
          "nvmlDeviceGetTemperature",
          "nvmlDeviceGetPowerUsage",
          "nvmlDeviceGetEnforcedPowerLimit",
          "nvmlDeviceGetClockInfo",
          "nvmlDeviceGetClockInfo",
          "nvmlDeviceGetCurrentClocksEventReasons",
          "nvmlDeviceGetTotalEccErrors",
          "nvmlDeviceGetTotalEccErrors"
        ])
      })
    ))

  const fields: ReadonlyArray<readonly [NvmlFunctionName, (sample: CudaHealth.HealthSample) => unknown]> = [
    ["nvmlDeviceGetUtilizationRates", (sample) => sample.utilization],
    ["nvmlDeviceGetMemoryInfo_v2", (sample) => sample.memory],
    ["nvmlDeviceGetTemperature", (sample) => sample.temperature],
    ["nvmlDeviceGetPowerUsage", (sample) => sample.power],
    ["nvmlDeviceGetEnforcedPowerLimit", (sample) => sample.powerLimit],
    ["nvmlDeviceGetClockInfo", (sample) => sample.clocks.sm],
    ["nvmlDeviceGetCurrentClocksEventReasons", (sample) => sample.throttleReasons],
    ["nvmlDeviceGetTotalEccErrors", (sample) => sample.ecc]
  ]
  for (const [call, fieldOf] of fields) {
    it.live(`lacks a field if ${call} is not supported or not allowed, and fails with other statuses`, () =>
      onNvml(
        Effect.gen(function*() {
          for (const status of [3, 4]) {
            nvml.fail(call, status)
            const sample = yield* CudaHealth.sample()
            assert.isUndefined(fieldOf(sample))
            assert.strictEqual(fields.filter(([, field]) => field(sample) === undefined).length, 1)
          }
          nvml.fail(call, 15)
          const error = yield* failsWithStatus(CudaHealth.sample(), "NVML_ERROR_GPU_IS_LOST", call)
          assert.include(error.message, "CudaHealth.sample (device 0, GPU-")
          assert.isDefined(fieldOf(yield* CudaHealth.sample()))
        })
      ))
  }

  it.live("of an old library has the clocks' reasons of its first name", () =>
    onNvml(
      Effect.gen(function*() {
        assert.deepStrictEqual((yield* CudaHealth.sample()).throttleReasons, ["gpuIdle"])
        const missing = "NVML_ERROR_FUNCTION_NOT_FOUND"
        yield* failsWithStatus(CudaHealth.energy(), missing, "nvmlDeviceGetTotalEnergyConsumption")
        yield* failsWithStatus(CudaHealth.processes(), missing, "nvmlDeviceGetComputeRunningProcesses_v3")
      }),
      { stub: old, prepare: (stub) => stub.setLong(0, "throttle", 1) }
    ))

  it.live("of what is no device is refused", () =>
    onNvml(
      Effect.gen(function*() {
        nvml.clear()
        for (const wrong of [-1, 2, 0.5, Number.NaN, "0", null, {}]) {
          // @ts-expect-error most are not even numbers
          yield* refuses(CudaHealth.sample(wrong), "device")
        }
        assert.deepStrictEqual(nvml.calls, [])
      })
    ))

  it.live("of a device that NVML does not see fails with NOT_FOUND, and is looked up again", () =>
    onNvml(
      Effect.gen(function*() {
        nvml.fail("nvmlDeviceGetHandleByUUID", 6)
        yield* failsWithStatus(CudaHealth.sample(), "NVML_ERROR_NOT_FOUND", "nvmlDeviceGetHandleByUUID")
        yield* CudaHealth.sample()
      })
    ))
})

describe("processes", () => {
  it.live("are listed with their memory, however many there are", () =>
    onNvml(
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* CudaHealth.processes(), [])
        nvml.processes = 2
        assert.deepStrictEqual(yield* CudaHealth.processes(), [
          { pid: 1000, bytes: 2 ** 33 },
          { pid: 1001, bytes: undefined }
        ])
        nvml.processes = 500
        const many = yield* CudaHealth.processes()
        assert.deepStrictEqual([many.length, many[499]], [500, { pid: 1499, bytes: 2 ** 33 + 499 }])
      })
    ))

  it.live("that cannot be listed are a failure", () =>
    onNvml(
      Effect.gen(function*() {
        const call = "nvmlDeviceGetComputeRunningProcesses_v3"
        nvml.fail(call, 3)
        yield* failsWithStatus(CudaHealth.processes(1), "NVML_ERROR_NOT_SUPPORTED", call)
      })
    ))
})

describe("energy", () => {
  it.live("is read off the JS thread, in joules", () =>
    onNvml(
      Effect.gen(function*() {
        yield* CudaHealth.sample()
        nvml.clear()
        assert.strictEqual(yield* CudaHealth.energy(), 1234.567)
        assert.deepStrictEqual(nvml.calls, ["nvmlDeviceGetTotalEnergyConsumption off"])
        nvml.fail("nvmlDeviceGetTotalEnergyConsumption", 999)
        yield* failsWithStatus(CudaHealth.energy(), "NVML_ERROR_UNKNOWN", "nvmlDeviceGetTotalEnergyConsumption")
      }),
      { prepare: (stub) => stub.setLong(0, "energy", 1_234_567) }
    ))

  it.live("that is interrupted ends before NVML is shut down", () =>
    onNvml(
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(CudaHealth.energy(), { startImmediately: true })
        yield* until("the call began", () => nvml.calls.includes("nvmlDeviceGetTotalEnergyConsumption off"))
        yield* Fiber.interrupt(fiber)
      }),
      { prepare: (stub) => stub.delay = 50 }
    ))
})

const often = Schedule.spaced("1 millis")

describe("Xids", () => {
  it.live("are streamed with their devices, in order, until the stream ends", () =>
    onNvml(
      Effect.gen(function*() {
        const fiber = yield* CudaHealth.xids({ schedule: often }).pipe(
          Stream.take(4),
          Stream.runCollect,
          Effect.forkChild({ startImmediately: true })
        )
        yield* until("the devices are registered", () => nvml.live.registered === 2)
        assert.deepStrictEqual(nvml.live, { initialized: 1, sets: 1, registered: 2 })
        for (const [device, xid] of [[0, 31], [1, 79], [undefined, 48], [0, 13]] as const) nvml.xid(device, xid)
        assert.deepStrictEqual([...yield* Fiber.join(fiber)], [
          { deviceIndex: 0, xid: 31 },
          { deviceIndex: 1, xid: 79 },
          { deviceIndex: undefined, xid: 48 },
          { deviceIndex: 0, xid: 13 }
        ])
        assert.deepStrictEqual(nvml.live, { initialized: 1, sets: 0, registered: 0 })
      })
    ))

  it.live("are registered off the JS thread, and polled on it without waiting", () =>
    onNvml(
      Effect.gen(function*() {
        nvml.clear()
        yield* CudaHealth.xids({ device: 1, schedule: Schedule.recurs(2) }).pipe(Stream.runDrain)
        assert.deepStrictEqual(nvml.calls, [
          "nvmlDeviceGetHandleByUUID off",
          "nvmlEventSetCreate off",
          "nvmlDeviceRegisterEvents off",
          "nvmlEventSetWait_v2",
          "nvmlEventSetWait_v2",
          "nvmlEventSetWait_v2",
          "nvmlEventSetFree off"
        ])
      })
    ))

  it.live("are unregistered when the stream is interrupted", () =>
    onNvml(
      Effect.gen(function*() {
        const fiber = yield* CudaHealth.xids({ schedule: often }).pipe(
          Stream.runDrain,
          Effect.forkChild({ startImmediately: true })
        )
        yield* until("the devices are registered", () => nvml.live.registered === 2)
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(nvml.live, { initialized: 1, sets: 0, registered: 0 })
      })
    ))

  it.live("come in portions when there are many", () =>
    onNvml(
      Effect.gen(function*() {
        const fiber = yield* CudaHealth.xids({ schedule: often }).pipe(
          Stream.take(600),
          Stream.runCount,
          Effect.forkChild({ startImmediately: true })
        )
        yield* until("the devices are registered", () => nvml.live.registered === 2)
        for (let count = 0; count < 600; count++) nvml.xid(0, 13)
        assert.strictEqual(yield* Fiber.join(fiber), 600)
      })
    ))

  it.live("of devices without events are left out, unless no device has any", () =>
    onNvml(
      Effect.gen(function*() {
        const call = "nvmlDeviceRegisterEvents"
        const once = CudaHealth.xids({ schedule: Schedule.recurs(0) }).pipe(Stream.runDrain)
        nvml.fail(call, 3)
        yield* once
        nvml.fail(call, 3, 2)
        yield* failsWithStatus(once, "NVML_ERROR_NOT_SUPPORTED", call)
        nvml.fail(call, 15)
        yield* failsWithStatus(once, "NVML_ERROR_GPU_IS_LOST", call)
        assert.deepStrictEqual(nvml.live, { initialized: 1, sets: 0, registered: 0 })
        nvml.fail("nvmlEventSetCreate", 20)
        yield* failsWithStatus(once, "NVML_ERROR_MEMORY", "nvmlEventSetCreate")
        nvml.fail("nvmlEventSetWait_v2", 15)
        yield* failsWithStatus(once, "NVML_ERROR_GPU_IS_LOST", "nvmlEventSetWait_v2")
        yield* refuses(CudaHealth.xids({ device: 7 }).pipe(Stream.runDrain), "device")
        assert.deepStrictEqual(nvml.live, { initialized: 1, sets: 0, registered: 0 })
      })
    ))
})

describe("Xids of a GPU that is lost", () => {
  it.live("are all reported, and then the stream fails", () =>
    onNvml(Effect.gen(function*() {
      const seen: Array<number> = []
      const watching = CudaHealth.xids({ device: 0, schedule: Schedule.spaced("5 millis") }).pipe(
        Stream.runForEach(({ xid }) => Effect.sync(() => void seen.push(xid)))
      )
      const fiber = yield* Effect.forkChild(Effect.flip(watching), { startImmediately: true })
      yield* until("registered", () => nvml.live.registered === 1)
      nvml.xid(0, 48)
      nvml.xid(0, 79)
      const error = yield* Fiber.join(fiber)
      assert.include(error.message, "NVML_ERROR_GPU_IS_LOST")
      assert.deepStrictEqual(seen, [48, 79])
    })))

  it.live("do not free their set while a device is registered in it", () =>
    onNvml(
      Effect.gen(function*() {
        const watching = Stream.runDrain(CudaHealth.xids({ device: 0 }))
        const fiber = yield* Effect.forkChild(watching, { startImmediately: true })
        yield* until("registering", () => nvml.calls.includes("nvmlDeviceRegisterEvents off"))
        yield* Fiber.interrupt(fiber)
      }),
      { prepare: (stub) => stub.delay = 50 }
    ))
})

describe("NVML", () => {
  it.live("is initialized and shut down off the JS thread", () =>
    Effect.gen(function*() {
      yield* onNvml(Effect.void)
      assert.deepStrictEqual(nvml.calls, ["nvmlInit_v2 off", "nvmlShutdown off"])
    }))

  it.live("that does not initialize is a failure with its status", () =>
    Effect.gen(function*() {
      const built = onNvml(Effect.void, { prepare: (stub) => stub.fail("nvmlInit_v2", 18) })
      const error = yield* failsWithStatus(built, "NVML_ERROR_LIB_RM_VERSION_MISMATCH", "nvmlInit_v2")
      assert.include(error.message, "Restart after the driver update")
      assert.deepStrictEqual(nvml.calls, ["nvmlInit_v2 off"])
    }))

  it.live("that does not shut down is a warning", () =>
    Effect.gen(function*() {
      nvml.reset()
      const program = Effect.void.pipe(Effect.provide(CudaHealth.layer({ libraryPath: nvml.path })))
      const { lines } = yield* logged(onStub(
        driver,
        Effect.andThen(Effect.sync(() => nvml.fail("nvmlShutdown", 999)), program)
      ))
      assert.deepStrictEqual(lines.map((line) => /^Warn.*nvmlShutdown.*NVML_ERROR_UNKNOWN/.test(line)), [true])
    }))

  it.live("is not used after its release", () =>
    Effect.gen(function*() {
      const { health, watch } = yield* Effect.gen(function*() {
        const health = yield* CudaHealth.CudaHealth
        const watch = yield* Effect.scoped(health.watchXids(0))
        yield* failsWith(watch.poll, "ResourceReleased")
        return { health, watch }
      }).pipe(onNvml)
      nvml.clear()
      yield* failsWith(health.sample(0), "ResourceReleased")
      yield* failsWith(health.energy(0), "ResourceReleased")
      yield* failsWith(Effect.scoped(health.watchXids(0)), "ResourceReleased")
      yield* failsWith(watch.poll, "ResourceReleased")
      assert.deepStrictEqual(nvml.calls, [])
    }))

  const missing = (layer: ReturnType<typeof CudaHealth.layer>) =>
    failsWith(onStub(driver, CudaHealth.sample().pipe(Effect.provide(layer))), "LibraryUnavailable")

  it.live("that is missing is a failure with the place", () =>
    Effect.gen(function*() {
      const { advice, library, searched } = yield* missing(
        CudaHealth.layer({ libraryPath: "/nowhere/libnvidia-ml.so.1" })
      )
      assert.strictEqual(library, "NVML")
      assert.deepStrictEqual(searched.map(({ path }) => path), ["/nowhere/libnvidia-ml.so.1"])
      assert.match(searched[0]!.problem, /no such file|cannot open/i)
      assert.include(advice, "EFFECT_CUDA_NVML")
    }))

  it.live("that is another library is a failure that says so", () =>
    Effect.gen(function*() {
      const { searched } = yield* missing(CudaHealth.layer({ libraryPath: "libc.so.6" }))
      assert.match(searched[0]!.problem, /has no nvmlInit_v2, so it is not NVML/)
    }))

  it.live("can be named by EFFECT_CUDA_NVML", () =>
    Effect.gen(function*() {
      const environment = ConfigProvider.fromUnknown({ EFFECT_CUDA_NVML: "/elsewhere/libnvidia-ml.so.1" })
      const { searched } = yield* missing(CudaHealth.layer()).pipe(
        Effect.provideService(ConfigProvider.ConfigProvider, environment)
      )
      assert.deepStrictEqual(searched.map(({ path }) => path), ["/elsewhere/libnvidia-ml.so.1"])
    }))

  it.live("is searched for in every usual place, each listed", (context) =>
    Effect.gen(function*() {
      const outcome = yield* Effect.result(onStub(driver, CudaHealth.sample().pipe(Effect.provide(CudaHealth.layer()))))
      if (outcome._tag === "Success" || outcome.failure.reason._tag !== "LibraryUnavailable") {
        return context.skip("this machine has NVML")
      }
      const { searched } = outcome.failure.reason
      assert.deepStrictEqual(searched.map(({ path }) => path), nvmlPlaces(process.platform, process.env))
    }))

  it("has a name for each of its statuses, and a number for others", () => {
    assert.strictEqual(nvmlStatus(3).name, "NVML_ERROR_NOT_SUPPORTED")
    assert.deepStrictEqual([27, 15].map((code) => nvmlStatus(code).isRetryable), [true, false])
    assert.deepStrictEqual([nvmlStatus(4711).name, nvmlStatus(4711).code], ["nvmlReturn_t 4711", 4711])
  })

  it.live("is not loaded by programs without health, nor by importing it", () =>
    Effect.gen(function*() {
      const { exit, output } = yield* Effect.promise(() =>
        runChild(`
          import * as Effect from "effect/Effect"
          const { CudaHealth, NativeRuntime } = await import("./index.js")
          CudaHealth.layer({ libraryPath: ${JSON.stringify(nvml.path)} })
          await Effect.runPromise(Effect.provide(Effect.void, NativeRuntime.layer({ libraryPath: ${
          JSON.stringify(driver.path)
        } })))
          console.log(process.report.getReport().sharedObjects.filter((path) => /nvidia-ml/.test(path)).length)
        `)
      )
      assert.deepStrictEqual([exit, output.trim()], [0, "0"])
    }))
})
