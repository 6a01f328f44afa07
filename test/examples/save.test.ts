/**
 * How a program's failures are tested: one fault at a time, shortages that pass, a lost GPU, and every fault there is.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaFaults, FaultInjection, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { GpuLost, save } from "../../examples/newcomer/save.ts"
import { started } from "../support/fibers.ts"
import { passing } from "./virtualTime.ts"

// A machine for each test: a lost GPU would be lost for the next one, too.
const machine = Layer.provideMerge(FaultInjection.layer, SimulatedRuntime.layer())
const bytes = Uint8Array.from({ length: 1000 }, (_, index) => index)

describe("save", () => {
  it.effect("returns the bytes", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* passing(save(bytes)), bytes)
    }).pipe(Effect.provide(machine)))

  // An allocation tries once more by itself before it fails with OutOfMemory, so one failure of it takes two of the driver.
  it.effect("waits for memory, and tries again after 100 ms", () =>
    Effect.gen(function*() {
      const faults = yield* FaultInjection.FaultInjection
      yield* faults.failNext("CudaMemory.allocate", "OutOfMemory", 2)
      const fiber = yield* started(save(bytes))
      yield* TestClock.adjust("99 millis")
      assert.isUndefined(fiber.pollUnsafe())
      assert.deepStrictEqual(yield* passing(Fiber.join(fiber)), bytes)
      assert.deepStrictEqual(yield* faults.pending, [])
    }).pipe(Effect.provide(machine)))

  it.effect("gives up after three retries", () =>
    Effect.gen(function*() {
      const faults = yield* FaultInjection.FaultInjection
      yield* faults.failNext("CudaMemory.allocate", "OutOfMemory", 8)
      const error = yield* passing(Effect.flip(save(bytes)))
      assert.strictEqual(error._tag === "CudaError" && error.reason._tag, "OutOfMemory")
      assert.deepStrictEqual(yield* faults.pending, [])
    }).pipe(Effect.provide(machine)))

  it.effect("says that the GPU is lost", () =>
    Effect.gen(function*() {
      const faults = yield* FaultInjection.FaultInjection
      yield* faults.failNext("CudaMemory.copy", "IllegalAddress")
      assert.instanceOf(yield* passing(Effect.flip(save(bytes))), GpuLost)
    }).pipe(Effect.provide(machine)))

  it.live(
    "survives every fault",
    () => CudaFaults.everyCall(save(bytes)).pipe(Effect.flatMap(CudaFaults.expectNone)),
    60_000
  )
})
