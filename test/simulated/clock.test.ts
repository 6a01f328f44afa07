/**
 * Waits for simulated devices with the clock of the system: short ones end in time, long ones let the event loop sleep, also if they are for
 * many short operations.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaEvent, CudaMemory, CudaStream, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import { performance } from "node:perf_hooks"

/** A copy of this many bytes takes so many nanoseconds. */
const device = { hostBandwidth: 1e9, copyLatency: 0 }

/** Milliseconds that the host waits for uploads of a number of bytes. */
const timeOf = Effect.fnUntraced(function*(byteLength: number, count = 1) {
  const [to, from] = [yield* CudaMemory.allocate(byteLength), yield* CudaMemory.allocateHost(byteLength)]
  const event = yield* CudaEvent.make()
  const start = performance.now()
  for (let copy = 0; copy < count; copy++) yield* CudaMemory.copy(to, from)
  yield* CudaEvent.record(event)
  yield* CudaEvent.synchronize(event)
  return performance.now() - start
}, Effect.scoped)

const onStream = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.scoped(Effect.flatMap(CudaStream.make(), (stream) => CudaStream.withStream(effect, stream)))

const simulated = SimulatedRuntime.layer({ devices: [device], data: "none" })

describe("with the clock of the system", () => {
  layer(simulated, { excludeTestServices: true })("a wait", (it) => {
    it.effect("for 100 µs takes no millisecond", () =>
      onStream(Effect.gen(function*() {
        const times = yield* Effect.replicateEffect(timeOf(100_000), 101)
        const median = times.toSorted((a, b) => a - b)[50]!
        assert.isAtLeast(median, 0.1)
        assert.isBelow(median, 0.9)
      })))

    it.effect("for 100 ms lets the event loop sleep", () =>
      onStream(Effect.gen(function*() {
        const before = performance.eventLoopUtilization()
        assert.isAtLeast(yield* timeOf(100_000_000), 100)
        assert.isAbove(performance.eventLoopUtilization(before).idle, 20)
      })))

    it.effect("for 1000 copies of 100 µs lets the event loop sleep, too", () =>
      onStream(Effect.gen(function*() {
        const before = performance.eventLoopUtilization()
        assert.isAtLeast(yield* timeOf(100_000, 1000), 100)
        assert.isAbove(performance.eventLoopUtilization(before).idle, 20)
      })))
  })
})
