/**
 * Simulated health: its numbers and control, Xids and metrics in virtual time, and the same service for GPUs and simulated devices.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import * as CudaHealth from "effect-cuda/CudaHealth"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { failsWith, refuses } from "../support/assertions.ts"
import { settled } from "../support/fibers.ts"

const gibibyte = 2 ** 30
const runtime = SimulatedRuntime.layer({ devices: [{ memory: 4 * gibibyte }, { memory: 8 * gibibyte }] })
const simulated = CudaHealth.layerSimulated().pipe(Layer.provideMerge(runtime))

describe("a simulated sample", () => {
  it.effect("is that of an idle device, with the memory of the runtime", () =>
    Effect.gen(function*() {
      yield* CudaMemory.allocate(gibibyte)
      const sample = yield* CudaHealth.sample()
      assert.deepStrictEqual(sample.memory, {
        used: gibibyte,
        total: 4 * gibibyte,
        free: 3 * gibibyte,
        reserved: 0
      })
      assert.deepStrictEqual(sample.utilization, { gpu: 0, memory: 0 })
      assert.deepStrictEqual(sample.throttleReasons, ["gpuIdle"])
      assert.strictEqual((yield* CudaHealth.sample(1)).memory?.total, 8 * gibibyte)
      assert.deepStrictEqual(yield* CudaHealth.processes(), [])
      assert.strictEqual(yield* CudaHealth.energy(), 0)
    }).pipe(Effect.scoped, Effect.provide(simulated)))

  it.effect("has the fields that a test sets, on one device", () =>
    Effect.gen(function*() {
      const control = yield* CudaHealth.SimulatedHealth
      yield* control.set(1, { temperature: 92 })
      yield* control.set(1, { ecc: undefined, memory: undefined })
      yield* control.setProcesses(1, [{ pid: 7, bytes: 100 }])
      const [first, second] = [yield* CudaHealth.sample(), yield* CudaHealth.sample().pipe(CudaDevice.withDevice(1))]
      assert.deepStrictEqual([first.temperature, second.temperature], [35, 92])
      assert.isDefined(first.ecc)
      assert.deepStrictEqual([second.deviceIndex, second.ecc, second.memory], [1, undefined, undefined])
      assert.deepStrictEqual(yield* CudaHealth.processes(1), [{ pid: 7, bytes: 100 }])
    }).pipe(Effect.provide(simulated)))

  it.effect("can be given to the layer, for at most as many devices as there are", () =>
    Effect.gen(function*() {
      const layer = CudaHealth.layerSimulated([{}, { power: 650 }])
      const sample = yield* CudaHealth.sample(1).pipe(Effect.provide(layer))
      assert.strictEqual(sample.power, 650)
      const tooMany = CudaHealth.layerSimulated([{}, {}, {}])
      yield* refuses(CudaHealth.sample().pipe(Effect.provide(tooMany)), "samples")
    }).pipe(Effect.provide(runtime)))

  it.effect("is there after a fault, without memory", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.lose(0, "EccUncorrectable")
      yield* failsWith(CudaDevice.memoryInfo(), "EccUncorrectable")
      const sample = yield* CudaHealth.sample()
      assert.deepStrictEqual([sample.memory, sample.temperature], [undefined, 35])
    }).pipe(Effect.provide(simulated)))

  it.effect("of what is no device is refused, and so is its control", () =>
    Effect.gen(function*() {
      const control = yield* CudaHealth.SimulatedHealth
      yield* refuses(CudaHealth.sample(2), "device")
      yield* refuses(CudaHealth.processes(-1), "device")
      yield* refuses(CudaHealth.energy(0.5), "device")
      yield* refuses(CudaHealth.xids({ device: 2 }).pipe(Stream.runDrain), "device")
      yield* refuses(control.set(2, {}), "device")
      yield* refuses(control.setProcesses(2, []), "device")
      yield* refuses(control.xid(2, 31), "device")
    }).pipe(Effect.provide(simulated)))

  it.effect("comes from the ordinary layer on a simulated runtime", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* CudaHealth.sample()).temperature, 35)
    }).pipe(Effect.provide(CudaHealth.layer({ libraryPath: "/nowhere" }).pipe(Layer.provideMerge(runtime)))))
})

describe("simulated Xids", () => {
  it.effect("reach the streams of their device at the next look", () =>
    Effect.gen(function*() {
      const control = yield* CudaHealth.SimulatedHealth
      const seen: Array<CudaHealth.XidEvent> = []
      const watch = CudaHealth.xids().pipe(Stream.runForEach((event) => Effect.sync(() => void seen.push(event))))
      const only = CudaHealth.xids({ device: 1, schedule: Schedule.spaced("1 minute") })
      const first = yield* Effect.forkChild(Stream.runHead(only), { startImmediately: true })
      const all = yield* Effect.forkChild(watch, { startImmediately: true })
      yield* settled
      yield* control.xid(0, 31)
      yield* control.xid(1, 79)
      assert.deepStrictEqual(seen, [])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(seen, [{ deviceIndex: 0, xid: 31 }, { deviceIndex: 1, xid: 79 }])
      assert.isUndefined(first.pollUnsafe())
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(Option.getOrUndefined(yield* Fiber.join(first)), { deviceIndex: 1, xid: 79 })
      yield* Fiber.interrupt(all)
      yield* control.xid(0, 13)
      assert.strictEqual(seen.length, 2)
    }).pipe(Effect.provide(simulated)))
})

describe("metrics", () => {
  /** The gauges of a device, as `name` or `name/attribute`. */
  const gauges = Effect.map(
    Metric.snapshot,
    (metrics) =>
      Object.fromEntries(metrics.flatMap(({ attributes = {}, id, state }) => {
        const { "hw.id": uuid, "hw.name": name, "hw.type": type, unit, ...more } = attributes
        if (uuid === undefined || name === undefined || type !== "gpu" || unit === undefined) return []
        if (!("value" in state)) return []
        return [[`${uuid.slice(-1)} ${[id, ...Object.values(more)].join("/")}`, state.value]]
      }))
  )

  const onMetrics = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.provideService(effect, Metric.MetricRegistry, new Map())

  it.effect("are gauges of every device, kept up to date, and removed at the end", () =>
    Effect.gen(function*() {
      const control = yield* CudaHealth.SimulatedHealth
      const [first, second] = (yield* CudaDevice.all).map(({ uuid }) => uuid.slice(-1))
      yield* control.set(0, {
        utilization: { gpu: 0.5, memory: 0.25 },
        memory: { used: 1, total: 4, free: 3, reserved: 0 },
        ecc: { corrected: 2, uncorrected: 1 },
        throttleReasons: ["hwSlowdown", "gpuIdle"]
      })
      yield* control.set(1, { power: undefined })
      const fiber = yield* Effect.forkChild(CudaHealth.metrics(), { startImmediately: true })
      yield* settled
      const read = yield* gauges
      const mine = Object.fromEntries(
        Object.entries(read).flatMap(([key, value]) => key.startsWith(`${first} `) ? [[key.slice(2), value]] : [])
      )
      assert.deepStrictEqual<unknown>(mine, {
        "hw.gpu.utilization": 0.5,
        "hw.gpu.memory.controller.utilization": 0.25,
        "hw.gpu.memory.utilization": 0.25,
        "hw.gpu.memory.usage": 1,
        "hw.gpu.memory.limit": 4,
        "hw.temperature": 35,
        "hw.power": 75,
        "hw.gpu.power.limit": 700,
        "hw.gpu.clock.frequency/sm": 345e6,
        "hw.gpu.clock.frequency/memory": 2619e6,
        "hw.gpu.ecc.errors/corrected": 2,
        "hw.gpu.ecc.errors/uncorrected": 1,
        "hw.gpu.throttled/swPowerCap": 0,
        "hw.gpu.throttled/hwSlowdown": 1,
        "hw.gpu.throttled/swThermalSlowdown": 0,
        "hw.gpu.throttled/hwThermalSlowdown": 0,
        "hw.gpu.throttled/hwPowerBrakeSlowdown": 0
      })
      assert.isUndefined(read[`${second} hw.power`])
      assert.strictEqual(read[`${second} hw.temperature`], 35)
      yield* control.set(0, { temperature: 60, power: undefined })
      yield* TestClock.adjust("14 seconds")
      assert.strictEqual((yield* gauges)[`${first} hw.temperature`], 35)
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* gauges)[`${first} hw.temperature`], 60)
      assert.isUndefined((yield* gauges)[`${first} hw.power`])
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(yield* gauges, {})
    }).pipe(Effect.provide(simulated), onMetrics))

  it.effect("end with their schedule", () =>
    Effect.gen(function*() {
      yield* CudaHealth.metrics({ schedule: Schedule.recurs(2) })
      assert.deepStrictEqual(yield* gauges, {})
    }).pipe(Effect.provide(simulated), onMetrics))
})
