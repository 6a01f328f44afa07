import { assert, it } from "@effect/vitest"
import { CudaMemory, CudaStream, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"

const turn = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))

/** Runs an effect while the test clock goes on by a millisecond per turn of the event loop. */
const passing = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.raceFirst(effect, Effect.forever(Effect.andThen(turn, TestClock.adjust("1 millis"))))

const machine = SimulatedRuntime.layer({ devices: [{ hostBandwidth: 1e9, copyLatency: 0 }] })

const copied = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const host = yield* CudaMemory.allocateHost(1_000_000)
  const device = yield* CudaMemory.allocate(1_000_000)
  yield* CudaMemory.copy(device, host, stream) // 1 ms
  yield* CudaStream.synchronize(stream)
  return "copied"
}).pipe(Effect.scoped)

it.effect("takes a millisecond", () =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(copied, { startImmediately: true })
    yield* TestClock.adjust("999 micros")
    assert.isUndefined(fiber.pollUnsafe())
    yield* TestClock.adjust("1 micros")
    assert.strictEqual(yield* Fiber.join(fiber), "copied")
  }).pipe(Effect.provide(machine)))

it.effect("copies at some time", () =>
  Effect.gen(function*() {
    assert.strictEqual(yield* passing(Effect.delay(copied, "1 second")), "copied")
  }).pipe(Effect.provide(machine)))
