/**
 * Described libraries on simulated devices, where functions of the description run in virtual time.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaLibrary, CudaMemory, CudaParameter, CudaRuntime, CudaStream, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { failsWith, refuses } from "../support/assertions.ts"
import { logged, pause } from "../support/stubDriver.ts"

const shown: Array<ReadonlyArray<number>> = []

const noPlan = (): never => {
  throw new Error("no such plan")
}

const definition = CudaLibrary.define({
  name: "demo",
  files: () => [],
  wheels: [],
  statuses: { 1: ["DEMO_BAD_VALUE", "a value is bad"] },
  functions: {
    fail: CudaLibrary.func([CudaParameter.i32, CudaLibrary.stream], { simulate: (code) => code }),
    throw: CudaLibrary.func([CudaLibrary.stream], { simulate: noPlan }),
    make: CudaLibrary.func([CudaLibrary.newHandleOf("plan", { as: "i32" }), CudaParameter.i32], { simulate: () => 0 }),
    destroy: CudaLibrary.func([CudaLibrary.handleOf("plan", { as: "i32" })], { simulate: () => 0 }),
    throwing: CudaLibrary.func([CudaLibrary.handleOf("plan", { as: "i32" })], { simulate: noPlan }),
    show: CudaLibrary.func([CudaLibrary.bytes(4), CudaLibrary.hostInput, CudaLibrary.stream], {
      simulate: (struct, array) => void shown.push([...struct], [...array])
    }),
    fill: CudaLibrary.func([CudaLibrary.handleOf("plan", { as: "i32" }), CudaParameter.pointer], {
      simulate: (plan, bytes) => void bytes.fill(plan)
    })
  }
})

const simulated = Effect.provide(SimulatedRuntime.layer())

describe("a library on simulated devices", () => {
  it.live("that fails when the device reaches its work is a fault", () =>
    Effect.gen(function*() {
      const library = yield* CudaLibrary.load(definition)
      const stream = yield* CudaStream.make()
      yield* CudaLibrary.call(library, "fail", [0], stream)
      yield* CudaStream.synchronize(stream)
      yield* CudaLibrary.call(library, "fail", [1], stream)
      const error = yield* Effect.flip(CudaStream.synchronize(stream))
      assert.strictEqual(error.reason._tag, "LaunchFailed")
      assert.include(error.message, "fail returned 1")
    }).pipe(Effect.scoped, simulated))

  it.live("makes no handle once the contexts are lost, also in the call at which they are lost", () =>
    Effect.gen(function*() {
      const { liveResources } = yield* CudaRuntime.CudaRuntime
      const control = yield* SimulatedRuntime.SimulatedControl
      const library = yield* CudaLibrary.load(definition)
      const make = CudaLibrary.handle(library, { create: "make", values: [7], destroy: "destroy" })
      yield* Effect.scoped(Effect.gen(function*() {
        yield* make
        yield* control.failNext("CudaLibrary.handle", "IllegalAddress")
        yield* failsWith(make, "IllegalAddress")
        yield* failsWith(make, "IllegalAddress")
      }))
      assert.strictEqual((yield* liveResources).handles, 0)
    }).pipe(simulated))

  it.live("that throws is a fault", () =>
    Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      yield* CudaLibrary.call(yield* CudaLibrary.load(definition), "throw", [], stream)
      const error = yield* Effect.flip(CudaStream.synchronize(stream))
      assert.include(error.message, "no such plan")
    }).pipe(Effect.scoped, simulated))

  it.live("sees structs and memory of the host as they were when the call was made", () =>
    Effect.gen(function*() {
      const [struct, array] = [Buffer.of(1, 2, 3, 4), Buffer.of(5)]
      const stream = yield* CudaStream.make()
      yield* CudaLibrary.call(yield* CudaLibrary.load(definition), "show", [struct, array], stream)
      struct.fill(9)
      array.fill(9)
      yield* CudaStream.synchronize(stream)
      assert.deepStrictEqual(shown, [[1, 2, 3, 4], [5]])
    }).pipe(Effect.scoped, simulated))

  it.live("refuses results of the wrong kind, and promises, which nothing would wait for", () =>
    Effect.gen(function*() {
      const late = async () => {
        throw new Error("late")
      }
      const wrong = CudaLibrary.define({
        ...definition,
        functions: {
          number: CudaLibrary.func([], { returns: CudaParameter.u64, simulate: () => -1n }),
          name: CudaLibrary.func([], { returns: CudaLibrary.text, simulate: () => 5 as never }),
          status: CudaLibrary.func([], { simulate: () => "one" as never }),
          late: CudaLibrary.func([], { simulate: late as never }),
          nothing: CudaLibrary.func([], { returns: "void", simulate: late }),
          enqueued: CudaLibrary.func([CudaLibrary.stream], { simulate: late as never })
        }
      })
      const library = yield* CudaLibrary.load(wrong)
      const names = ["number", "name", "status", "late", "nothing"] as const
      for (const name of names) yield* refuses(CudaLibrary.call(library, name, []), "result")
      const stream = yield* CudaStream.make()
      yield* CudaLibrary.call(library, "enqueued", [], stream)
      assert.include((yield* Effect.flip(CudaStream.synchronize(stream))).message, "promise")
      yield* pause(1)
    }).pipe(Effect.scoped, simulated))

  it.live("tells its handles apart by numbers", () =>
    Effect.gen(function*() {
      const library = yield* CudaLibrary.load(definition)
      const make = CudaLibrary.handle(library, { create: "make", values: [3], destroy: "destroy" })
      const [one, other] = [yield* make, yield* make]
      assert.notStrictEqual(one.handle, other.handle)
      const buffer = yield* CudaMemory.allocate(4)
      yield* CudaLibrary.call(library, "fill", [other, buffer])
      const bytes = new Uint8Array(4)
      yield* CudaMemory.download(bytes, buffer)
      assert.strictEqual(bytes[0], other.handle % 256)
      const raw = CudaLibrary.call(library, "fill", [other, CudaParameter.address(buffer.address)])
      yield* failsWith(raw, "InvalidArgument")
    }).pipe(Effect.scoped, simulated))

  it.live("whose function throws while a handle is destroyed logs it", () =>
    Effect.gen(function*() {
      const { lines } = yield* logged(
        Effect.gen(function*() {
          const library = yield* CudaLibrary.load(definition)
          const make = CudaLibrary.handle(library, { create: "make", values: [3], destroy: "throwing" })
          yield* Effect.scoped(make)
          assert.strictEqual((yield* (yield* CudaRuntime.CudaRuntime).liveResources).handles, 0)
          yield* make
        }).pipe(Effect.scoped, simulated)
      )
      assert.lengthOf(lines, 2)
      for (const line of lines) assert.include(line, "throwing threw Error: no such plan")
    }))

  it.live("refuses handles of another runtime, on whatever device", () =>
    Effect.gen(function*() {
      const make = { create: "make", values: [3], destroy: "destroy", device: 1 } as const
      const handle = yield* CudaLibrary.handle(yield* CudaLibrary.load(definition), make)
      const using = Effect.flatMap(
        CudaLibrary.load(definition),
        (library) => CudaLibrary.call(library, "destroy", [handle])
      )
      yield* failsWith(using.pipe(Effect.provide(SimulatedRuntime.layer({ devices: 1 }))), "ForeignResource")
    }).pipe(Effect.scoped, Effect.provide(SimulatedRuntime.layer({ devices: 2 }))))
})

describe("work of other code that waits", () => {
  it.effect("holds its stream until it is resumed, and then takes its time and that of its bytes", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.allocate(4)
      let resume: Parameters<CudaRuntime.ForeignWait["begin"]>[0] = () => {}
      const simulate = () => new CudaRuntime.ForeignWait("a sign", (given) => void (resume = given))
      yield* CudaMemory.enqueue({ writes: [buffer], simulate, stream }, () => {})
      yield* CudaMemory.fill(buffer, 7, stream)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual([...yield* control.bytes(buffer)], [0, 0, 0, 0])
      const begun = yield* control.now
      let seen = -1
      resume({ nanoseconds: 5_000_000, linkBytes: 200e6, act: () => void (seen = 1) })
      resume({ nanoseconds: 0, linkBytes: 0, act: () => void (seen = 2) })
      const fiber = yield* Effect.forkChild(CudaStream.synchronize(stream))
      yield* TestClock.adjust("5999 micros")
      assert.strictEqual(seen, -1)
      yield* TestClock.adjust("10 micros")
      yield* Fiber.join(fiber)
      assert.strictEqual(seen, 1)
      assert.isAtLeast((yield* control.now) - begun, 6_000_000)
      assert.deepStrictEqual([...yield* control.bytes(buffer)], [7, 7, 7, 7])
    }).pipe(Effect.scoped, simulated))

  it.effect("and is never resumed fails those who wait for it, and says what for", () =>
    Effect.gen(function*() {
      const stream = yield* CudaStream.fromHandle(0)
      const simulate = () => new CudaRuntime.ForeignWait("a sign", () => {})
      yield* CudaMemory.enqueue({ simulate, stream }, () => {})
      const fiber = yield* Effect.forkChild(Effect.flip(CudaStream.synchronize(stream)))
      yield* TestClock.adjust("1 second")
      const error = yield* Fiber.join(fiber)
      assert.strictEqual(error.reason._tag, "NeverFinishes")
      assert.include(error.message, "waits for a sign")
    }).pipe(Effect.scoped, simulated))

  it.effect("and fails when it is resumed is a fault", () =>
    Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const act = () => {
        throw new Error("resumed in vain")
      }
      const simulate = () =>
        new CudaRuntime.ForeignWait("nothing", (resume) => resume({ nanoseconds: 1, linkBytes: 0, act }))
      yield* CudaMemory.enqueue({ simulate, stream }, () => {})
      const fiber = yield* Effect.forkChild(Effect.flip(CudaStream.synchronize(stream)))
      yield* TestClock.adjust("1 second")
      const error = yield* Fiber.join(fiber)
      assert.strictEqual(error.reason._tag, "LaunchFailed")
      assert.include(error.message, "resumed in vain")
    }).pipe(Effect.scoped, simulated))
})
