/**
 * Releases when a driver call fails once, as it may while a system starts: a release that waits for streams tries again, uses no
 * destroyed handle, and releases everything.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaEvent, CudaMemory, CudaMemoryPool, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { statuses } from "../../src/cuda/status.ts"
import { failsWith } from "../support/assertions.ts"
import { logged, onStub, openStub, pause, stubLayer, until } from "../support/stubDriver.ts"
import type { DriverLive, StubFunctionName } from "../support/stubDriver.ts"
import { begin } from "../support/waits.ts"

const stub = openStub()

const transient = statuses.SystemNotReady.code
const mebi = 1024 ** 2

/** Memory whose release waits for streams on the host, and how to tell that it was released. */
const memories: ReadonlyArray<{
  readonly what: string
  readonly allocate: Effect.Effect<
    CudaMemory.HostBuffer | CudaMemory.ManagedBuffer,
    CudaError,
    CudaRuntime | Scope.Scope
  >
  readonly isBack: Effect.Effect<boolean, CudaError, CudaRuntime | Scope.Scope>
}> = [
  {
    what: "pinned memory",
    allocate: CudaMemory.allocateHost(mebi),
    // It is kept for the next allocation of its size.
    isBack: Effect.map(
      Effect.andThen(CudaMemory.allocateHost(mebi), Effect.sync(() => stub.calls("cuMemHostRegister_v2"))),
      (calls) => calls.length === 0
    )
  },
  {
    what: "managed memory",
    allocate: CudaMemory.allocateManaged(mebi),
    // It is freed once its device is idle.
    isBack: Effect.sync(() => stub.calls("cuMemFree_v2").length === 1)
  }
]

describe("a release that waits for streams", () => {
  for (const { allocate, isBack, what } of memories) {
    it.live(`of ${what} tries again without the streams destroyed meanwhile`, () =>
      onStub(
        stub,
        Effect.gen(function*() {
          const [ofStream, ofMemory] = [yield* Scope.make(), yield* Scope.make()]
          const stream = yield* Scope.provide(CudaStream.make(), ofStream)
          const memory = yield* Scope.provide(allocate, ofMemory)
          yield* CudaMemory.copy(memory, yield* CudaMemory.allocate(mebi), stream)
          stub.fail("cuEventRecord", transient)
          yield* Scope.close(ofMemory, Exit.void)
          assert.strictEqual(stub.failuresLeft, 0)
          stub.finishAll()
          yield* Scope.close(ofStream, Exit.void)
          stub.clear()
          yield* pause(30)
          assert.deepStrictEqual(stub.calls().filter(({ args }) => args.includes(stream.handle)), [])
          assert.isTrue(yield* isBack)
        }),
        { prepare: () => void (stub.pending = "copies") }
      ))

    it.live(`of ${what} tries again until the remaining streams are done`, () =>
      onStub(
        stub,
        Effect.gen(function*() {
          const ofMemory = yield* Scope.make()
          const stream = yield* CudaStream.make()
          const memory = yield* Scope.provide(allocate, ofMemory)
          yield* CudaMemory.copy(memory, yield* CudaMemory.allocate(mebi), stream)
          stub.fail("cuEventRecord", transient, { times: 2 })
          yield* Scope.close(ofMemory, Exit.void)
          yield* until("the release tried again", () => stub.failuresLeft === 0)
          yield* pause(30)
          stub.clear()
          stub.finishAll()
          yield* until("the release's wait ended", () => stub.calls("cuEventQuery").some(({ status }) => status === 0))
          yield* pause(30)
          assert.isTrue(yield* isBack)
        }),
        { prepare: () => void (stub.pending = "copies") }
      ))
  }
})

/** Operations that release what the runtime made for them, or what they made before a later step failed. */
const cleanUps: ReadonlyArray<{
  readonly what: string
  readonly program: Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>
  readonly releasedBy: StubFunctionName
  readonly left: Partial<DriverLive>
}> = [
  {
    what: "the stream of a wake-up",
    program: Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      stub.work(stream)
      const waiting = yield* begin(CudaStream.synchronize(stream))
      yield* until("the wake-up is enqueued", () => stub.calls("cuLaunchHostFunc").length > 0)
      stub.finishAll()
      yield* Fiber.join(waiting)
      stub.fail("cuStreamDestroy_v2", transient)
    }),
    releasedBy: "cuStreamDestroy_v2",
    left: { streams: 1 }
  },
  {
    what: "a stream without an id",
    program: Effect.gen(function*() {
      yield* CudaStream.make()
      stub.fail("cuStreamGetId", transient)
      stub.fail("cuStreamDestroy_v2", transient)
      yield* failsWith(CudaStream.make(), "SystemNotReady")
    }),
    releasedBy: "cuStreamDestroy_v2",
    left: { streams: 1 }
  },
  {
    what: "a pool that cannot be set up",
    program: Effect.gen(function*() {
      yield* CudaStream.make()
      stub.fail("cuMemPoolSetAttribute", transient)
      stub.fail("cuMemPoolDestroy", transient)
      yield* failsWith(CudaMemoryPool.make({ releaseThreshold: 1 }), "SystemNotReady")
    }),
    releasedBy: "cuMemPoolDestroy",
    left: { pools: 1 }
  },
  {
    what: "the context of a device that cannot be set up",
    program: Effect.gen(function*() {
      stub.fail("cuCtxGetStreamPriorityRange", transient)
      stub.fail("cuDevicePrimaryCtxRelease_v2", transient)
      yield* failsWith(CudaStream.make(), "SystemNotReady")
    }),
    releasedBy: "cuDevicePrimaryCtxRelease_v2",
    left: { contexts: 1 }
  }
]

describe("a failed clean-up is logged", () => {
  for (const { left, program, releasedBy, what } of cleanUps) {
    it.live(what, () =>
      Effect.gen(function*() {
        const { lines } = yield* logged(onStub(stub, program, { left }))
        const call = releasedBy.replace(/_v2$/, "")
        assert.isTrue(lines.some((line) => line.includes(call) && line.includes(`(${transient})`)), lines.join("\n"))
      }))
  }
})

/** The call that releases each kind of resource, and what remains if it fails: with memory also its pool. */
const givingBack: Readonly<Partial<Record<StubFunctionName, ReadonlyArray<keyof DriverLive>>>> = {
  cuStreamDestroy_v2: ["streams"],
  cuEventDestroy_v2: ["events"],
  cuMemFreeAsync: ["pools", "allocations"],
  cuMemFree_v2: ["allocations"],
  cuMemHostUnregister: ["registrations"],
  cuMemPoolDestroy: ["pools"],
  cuDevicePrimaryCtxRelease_v2: ["contexts"]
}

/** Allocates, copies on two streams, and releases out of order: memory and an event while work uses them, one stream before the other. */
const program = Effect.gen(function*() {
  const scope = yield* Effect.scope
  const [ofFirst, ofHost, ofManaged, ofDevice, ofEvent] = yield* Effect.all([
    Scope.fork(scope),
    Scope.fork(scope),
    Scope.fork(scope),
    Scope.fork(scope),
    Scope.fork(scope)
  ])
  const first = yield* Scope.provide(CudaStream.make(), ofFirst)
  const second = yield* CudaStream.make()
  const host = yield* Scope.provide(CudaMemory.allocateHost(mebi), ofHost)
  const managed = yield* Scope.provide(CudaMemory.allocateManaged(mebi), ofManaged)
  const device = yield* Scope.provide(CudaMemory.allocate(mebi), ofDevice)
  const among = yield* CudaMemory.allocate(mebi, { stream: first })
  const event = yield* Scope.provide(CudaEvent.make(), ofEvent)
  yield* CudaMemory.copy(device, host, first)
  yield* CudaEvent.record(event, first)
  yield* CudaStream.waitEvent(second, event)
  yield* CudaMemory.copy(among, device, second)
  yield* CudaMemory.copy(managed, among, second)
  for (const released of [ofHost, ofEvent, ofManaged, ofDevice]) yield* Scope.close(released, Exit.void)
  stub.finishAll()
  yield* Scope.close(ofFirst, Exit.void)
  yield* pause(15)
  yield* CudaStream.synchronize(second)
})

/** Runs the program on a fresh stub, and returns what was logged. */
const ran = (prepare: () => void) =>
  Effect.gen(function*() {
    stub.reset()
    stub.pending = "copies"
    prepare()
    const letGo = Effect.onError(program, () => Effect.sync(() => stub.letGo()))
    return (yield* logged(Effect.exit(letGo.pipe(Effect.scoped, Effect.provide(stubLayer(stub)))))).lines
  })

/** Asserts that a failed call left only what it would have released, and that this was logged. */
const assertLeft = (name: StubFunctionName, what: string, lines: ReadonlyArray<string>): void => {
  assert.isUndefined(stub.misuse, `${what}: ${stub.misuse}`)
  const left = Object.entries(stub.live).filter(([, count]) => count > 0)
  const expected = givingBack[name]
  if (expected !== undefined) assert.deepStrictEqual(left, expected.map((kind) => [kind, 1]), what)
  else if (name !== "cuCtxPushCurrent_v2" && name !== "cuStreamSynchronize") assert.deepStrictEqual(left, [], what)
  // If a context cannot be entered, what would have been released in it remains; and a pool whose memory is not known to be free.
  else assert.isAtMost(left.reduce((sum, [, count]) => sum + count, 0), 1, what)
  if (left.length > 0) assert.include(lines.join("\n"), `(${transient})`, `${what}: nothing says what is left`)
  // A context that was just pushed can always be popped, on a real driver.
  if (name !== "cuCtxPopCurrent_v2") assert.strictEqual(stub.depth, 0, what)
}

describe("a program of which one call fails once", () => {
  it.live("uses no destroyed handle, and leaves nothing behind, whichever call it is", () =>
    Effect.gen(function*() {
      yield* ran(() => {})
      const failures: Partial<Record<StubFunctionName, number>> = {}
      for (const name of new Set(stub.calls().map((call) => call.name))) {
        for (let after = 0;; after++) {
          const lines = yield* ran(() => stub.fail(name, transient, { after }))
          if (stub.failuresLeft > 0) break
          failures[name] = after + 1
          assertLeft(name, `call ${after + 1} of ${name}`, lines)
        }
      }
      for (const name of ["cuEventRecord", "cuStreamQuery", "cuMemcpyHtoDAsync_v2", ...Object.keys(givingBack)]) {
        assert.property(failures, name)
      }
    }), 60_000)
})
