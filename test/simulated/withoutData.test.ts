/**
 * Devices whose operations only take time.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaProgram,
  CudaStream,
  SimulatedRuntime
} from "effect-cuda"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"

let runs = 0

const count = SimulatedRuntime.kernel({
  parameters: [CudaParameter.pointer],
  cost: "10 micros",
  run: () => {
    runs++
  }
})

const layer = (data: "moved" | "none") =>
  SimulatedRuntime.layer({ devices: [{ memory: 2 ** 40 }], data, kernels: { count }, recordTimeline: true })

const program = Effect.gen(function*() {
  runs = 0
  const control = yield* SimulatedRuntime.SimulatedControl
  const stream = yield* CudaStream.make()
  const [host, back] = [yield* CudaMemory.allocateHost(1000), yield* CudaMemory.allocateHost(1000)]
  const device = yield* CudaMemory.allocate(1000, { stream })
  const module = yield* CudaModule.load(yield* CudaProgram.fromBytes(Buffer.from(".version 7.0\n.target sm_70")))
  const kernel = yield* CudaKernel.get(module, "count", [CudaParameter.pointer])
  host.bytes.fill(7)
  back.bytes.fill(1)
  yield* CudaMemory.copy(device, host, stream)
  yield* CudaStream.withStream(CudaKernel.launch(kernel, { grid: 1, block: 1 }, [device]), stream)
  yield* CudaMemory.enqueue({ stream, writes: [device], simulate: () => void runs++ }, () => {})
  yield* CudaMemory.copy(back, device, stream)
  yield* TestClock.adjust("1 second")
  assert.isTrue(yield* CudaStream.query(stream))
  const entries = (yield* control.timeline).filter(({ streamId }) => streamId === stream.id)
  const timeline = entries.map(({ kind, start, end }) => `${kind} ${start} ${end}`)
  return { timeline, runs, back: back.bytes[999], device: (yield* control.bytes(device))[999] }
}).pipe(Effect.scoped)

describe("devices without data", () => {
  it.effect("take the same time, and leave memory and functions alone", () =>
    Effect.gen(function*() {
      const moved = yield* Effect.provide(program, layer("moved"))
      const none = yield* Effect.provide(program, layer("none"))
      assert.deepStrictEqual([moved.runs, moved.back, moved.device], [2, 7, 7])
      assert.deepStrictEqual([none.runs, none.back, none.device], [0, 1, 0])
      assert.strictEqual(none.timeline.length, moved.timeline.length)
      assert.deepStrictEqual(lengths(none.timeline), lengths(moved.timeline))
    }))

  it.effect("have more memory than the process", () =>
    Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const large = yield* CudaMemory.allocate(2 ** 39, { stream })
      yield* CudaMemory.fill(large, 1, stream)
      yield* TestClock.adjust("2 seconds")
      assert.isTrue(yield* CudaStream.query(stream))
    }).pipe(Effect.scoped, Effect.provide(layer("none"))))

  it.effect("are refused by another name, and so are latencies that are not durations", () =>
    Effect.gen(function*() {
      const wrong = [
        [{ data: "some" as never }, "data"],
        [{ devices: [{ latencies: { kernel: -1 } }] }, "devices[0].latencies.kernel"],
        [{ devices: [{ latencies: { wait: Infinity } }] }, "devices[0].latencies.wait"],
        [{ devices: [{ fillBandwidth: 0 }] }, "devices[0].fillBandwidth"],
        [{ devices: [{ downloadBandwidth: -1 }] }, "devices[0].downloadBandwidth"]
      ] as const
      for (const [options, argument] of wrong) {
        const { reason } = yield* Effect.flip(Effect.scoped(SimulatedRuntime.make(options)))
        assert.deepInclude(reason, { _tag: "InvalidArgument", argument })
      }
    }))
})

/** The kinds and durations of entries; the second program starts later. */
const lengths = (timeline: ReadonlyArray<string>) =>
  timeline.map((entry) => {
    const [kind, start, end] = entry.split(" ")
    return [kind, Number(end) - Number(start)]
  })
