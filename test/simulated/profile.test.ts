/**
 * The profile of the H200, compared with what was measured on one: single operations, and the regions of the demo's pipeline.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaDevice,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaProgram,
  CudaStream,
  CudaTiming,
  SimulatedRuntime
} from "effect-cuda"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import * as Kernels from "../../examples/demo/Kernels.ts"
import { demoTimeline } from "../support/demoPipeline.ts"

const mebibyte = 2 ** 20

const { h200 } = SimulatedRuntime.profiles

const empty = SimulatedRuntime.kernel({ parameters: [], cost: 0, run: () => {} })

const layer = SimulatedRuntime.layer({
  devices: [h200, h200],
  data: "none",
  kernels: { ...Kernels.simulated(Kernels.h200), empty }
})

/** Runs a program while virtual time passes. The host takes no time. */
const inVirtualTime = <A, E, R>(program: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(program)
    while (fiber.pollUnsafe() === undefined) {
      yield* TestClock.adjust("1 millis")
      // Files are read in real time.
      yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
    }
    return yield* Fiber.join(fiber)
  })

const micros = (duration: Duration.Duration): number => Duration.toMillis(duration) * 1000

/** Asserts that a time in microseconds is near the measured one. `tolerance` is a fraction of it. */
const assertNear = (what: string, actual: number, measured: number, tolerance: number) =>
  assert.isBelow(Math.abs(actual / measured - 1), tolerance, `${what}: ${actual} µs, measured ${measured} µs`)

/** Microseconds between two events around an effect, without the 2.9 µs of an event. */
const timeOf = <E, R>(effect: Effect.Effect<unknown, E, R>, options: CudaTiming.TimedOptions = {}) =>
  Effect.map(inVirtualTime(CudaTiming.timed(effect, options)), ([duration]) => micros(duration) - 2.9)

const repeat = <E, R>(times: number, effect: Effect.Effect<unknown, E, R>): Effect.Effect<void, E, R> =>
  Effect.forEach(Array.from({ length: times }), () => effect, { discard: true })

describe("the profile of the H200", () => {
  it.effect("has the properties of the device", () =>
    Effect.gen(function*() {
      const [device] = yield* CudaDevice.all
      assert.deepInclude(device, { name: "NVIDIA H200", totalMemory: 150_109_880_320 })
      assert.strictEqual(yield* CudaDevice.attribute("globalMemoryBusWidth"), 6016)
      assert.strictEqual(yield* CudaDevice.attribute("asyncEngineCount"), 3)
      assert.strictEqual(yield* CudaDevice.attribute("multiprocessorCount"), 132)
    }).pipe(Effect.provide(layer)))

  it.effect("copies and fills as fast as measured", () =>
    Effect.gen(function*() {
      const bytes = 256 * mebibyte
      const [host, a, b] = [
        yield* CudaMemory.allocateHost(16 * mebibyte),
        yield* CudaMemory.allocate(bytes),
        yield* CudaMemory.allocate(bytes)
      ]
      const other = yield* CudaMemory.allocate(bytes, { device: 1 })
      const part = (memory: CudaMemory.DeviceBuffer, size: number) => CudaMemory.slice(memory, 0, size)
      for (const [size, up, down] of [[1, 25.7, 26.3], [4, 83.1, 83], [8, 161, 158.6], [16, 312.2, 310.2]] as const) {
        const [to, from] = [part(a, size * mebibyte), CudaMemory.slice(host, 0, size * mebibyte)]
        assertNear(`upload of ${size} MiB`, yield* timeOf(CudaMemory.copy(to, from)), up, 0.03)
        assertNear(`download of ${size} MiB`, yield* timeOf(CudaMemory.copy(from, to)), down, 0.03)
      }
      assertNear("copy of 256 MiB", yield* timeOf(CudaMemory.copy(a, b)), 128.9, 0.03)
      assertNear("fill of 256 MiB", yield* timeOf(CudaMemory.fill(a, 0)), 60.7, 0.03)
      assertNear("peer copy of 256 MiB", yield* timeOf(CudaMemory.copy(a, other)), 684.6, 0.03)
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.effect("launches kernels in a stream and in a graph as fast as measured", () =>
    Effect.gen(function*() {
      const module = yield* CudaModule.load(yield* CudaProgram.fromBytes(Buffer.from(".version 7.0\n.target sm_70")))
      const kernel = yield* CudaKernel.get(module, "empty", [])
      const launch = CudaKernel.launch(kernel, { grid: 1, block: 1 }, [])
      assertNear("100 kernels", yield* timeOf(repeat(100, launch)), 136.4, 0.05)
      const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(repeat(100, launch)))
      assertNear("a graph of 100 kernels", yield* timeOf(CudaGraph.launch(exec)), 68.5, 0.05)
      const [one, two] = [yield* CudaStream.make(), yield* CudaStream.make()]
      const turn = (on: CudaStream.CudaStream, next: CudaStream.CudaStream) =>
        CudaStream.withStream(launch, on).pipe(Effect.andThen(CudaStream.waitStream(next, on)))
      const turns = repeat(50, Effect.andThen(turn(one, two), turn(two, one)))
      assertNear("100 kernels on two streams", yield* timeOf(turns, { stream: one }), 166.4, 0.1)
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.effect.each([1, 4])("draws the demo's pipeline with %i slots like the GPU", (slots) =>
    Effect.gen(function*() {
      const { regions } = yield* inVirtualTime(demoTimeline({ chunkBytes: 8 * mebibyte, chunks: 32, slots }))
      const median = (name: string) => {
        const times = regions.filter((region) => region.name === name).map(({ duration }) => micros(duration))
        return times.toSorted((a, b) => a - b)[times.length >> 1]!
      }
      const [upload, work, download] = slots === 1 ? [164.5, 41.6, 156.7] : [177, 40.6, 169.9]
      assertNear("upload", median("upload"), upload, 0.08)
      assertNear("work", median("work"), work, 0.07)
      assertNear("download", median("download"), download, 0.07)
    }).pipe(Effect.scoped, Effect.provide(layer)))
})
