/**
 * Interruption at any step: the scheduler makes fibers yield every few operations, and they are interrupted after any number of turns of
 * the event loop. Everything they acquired is released, and no other fiber waits forever.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaEvent,
  CudaLibrary,
  CudaMemory,
  CudaMemoryPool,
  CudaModule,
  CudaProgram,
  CudaRuntime,
  CudaStream,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { nothingHeld } from "./support/assertions.ts"
import { program, simulatedKernels } from "./support/kernels.ts"
import { assertReleased, openStub, stubLayer, until } from "./support/stubDriver.ts"
import { demo, StubLibrary } from "./support/stubLibrary.ts"
import { OthersYield } from "./support/yielding.ts"

const stub = openStub()
const library = new StubLibrary(stub.path)

/** The handle of an event of another process. */
let remote: Uint8Array = new Uint8Array()

const simulated = Layer.suspend(() => SimulatedRuntime.layer({ devices: 1, kernels: simulatedKernels }))
const native = Layer.suspend(() => {
  stub.reset()
  remote = stub.remoteEvent().handle
  return stubLayer(stub)
})

type Runtime = CudaRuntime.CudaRuntime

/** A layer that yields to other fibers before and after every operation. */
const yielding = Layer.effect(
  CudaRuntime.CudaRuntime,
  Effect.map(
    CudaRuntime.CudaRuntime,
    (runtime) =>
      CudaRuntime.around(runtime, (_, call) => (...args) =>
        Effect.yieldNow.pipe(
          Effect.andThen(Effect.suspend(() => call(...args))),
          Effect.tap(() => Effect.yieldNow)
        ))
  )
)

const turn: Effect.Effect<void> = Effect.callback((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

const turns = (count: number) => Effect.forEach(Array.from({ length: count }), () => turn, { discard: true })

/** Numbers of operations after which a fiber yields. With fewer than 3, a fiber makes no progress. */
const periods = [3, 4, 5, 6, 7, 8, 9, 11, 13, 17, 23]

const loaded = Effect.flatMap(program, (made) => CudaModule.load(made))

type Acquire = readonly [string, Effect.Effect<unknown, CudaError.CudaError, Runtime | Scope.Scope>]

/** Handles that are made and destroyed on the JS thread, and on pool threads. */
const handles = (path?: string): ReadonlyArray<Acquire> => [
  [
    "a handle of a library",
    Effect.flatMap(
      CudaLibrary.load(demo, { path }),
      (library) => CudaLibrary.handle(library, { create: "demoCreate", destroy: "demoDestroy" })
    )
  ],
  [
    "a handle of a library off the JS thread",
    Effect.flatMap(
      CudaLibrary.load(demo, { path }),
      (library) =>
        CudaLibrary.handle(library, { create: "demoCreateSlowly", values: [7], destroy: "demoDestroySlowly" })
    )
  ]
]

const acquires: ReadonlyArray<Acquire> = [
  ["a stream", CudaStream.make()],
  ["an event", CudaEvent.make()],
  ["device memory", CudaMemory.allocate(4096)],
  ["memory of a pool", Effect.flatMap(CudaMemoryPool.make(), (pool) => CudaMemory.allocate(4096, { pool }))],
  ["pinned memory", CudaMemory.allocateHost(4096)],
  ["managed memory", CudaMemory.allocateManaged(4096)],
  ["a module", loaded],
  ["a recorded event", Effect.flatMap(CudaStream.make(), (stream) => CudaStream.recordEvent(stream))],
  [
    "a host function",
    Effect.flatMap(CudaStream.make(), (stream) => CudaStream.launchHostFunction(stream, Effect.void))
  ],
  ["an upload", Effect.flatMap(CudaMemory.allocate(64), (to) => CudaMemory.upload(to, new Uint8Array(64)))]
]

const onDriver: ReadonlyArray<Acquire> = [
  ...acquires,
  ...handles(library.path),
  ["an event of another process", Effect.suspend(() => CudaEvent.fromIpcHandle(remote))]
]

describe.each(
  [
    ["the driver", native, onDriver],
    ["a simulated device", simulated, [...acquires, ...handles()]]
  ] as const
)("on %s", (_, runtime, acquires) => {
  describe.each([
    ["", Layer.empty],
    [" through a layer that yields", yielding]
  ])("interrupting a fiber%s", (_, around) => {
    it.live.each(acquires)("leaves nothing of %s", ([, acquire]) =>
      Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime.CudaRuntime
        yield* Effect.scoped(acquire)
        for (const period of periods) {
          for (let count = 0; count < 16; count++) {
            const fiber = yield* Effect.scoped(acquire).pipe(
              Effect.provide(around),
              Effect.provideService(Scheduler.MaxOpsBeforeYield, period),
              Effect.forkChild({ startImmediately: true })
            )
            yield* turns(count)
            yield* Fiber.interrupt(fiber)
            assert.deepStrictEqual(yield* liveResources, nothingHeld, `every ${period} operations, ${count} turns`)
          }
        }
        yield* until("libraries are unloaded", () => stub.live.libraries === 0)
        assert.deepStrictEqual([library.live, library.misuse], [0, ""])
      }).pipe(Effect.provide(runtime)))
  })

  it.live("an interrupted host function lets later ones on its stream begin", () =>
    Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const self = yield* Effect.withFiber((fiber) => Effect.succeed(fiber.id))
      for (let period = 3; period < 40; period++) {
        const scope = yield* Scope.make()
        yield* CudaStream.launchHostFunction(stream, Effect.void).pipe(
          Scope.provide(scope),
          Effect.provideService(Scheduler.Scheduler, new OthersYield(self, period))
        )
        yield* Scope.close(scope, Exit.fail("no"))
        const next = yield* CudaStream.launchHostFunction(stream, Effect.succeed("ran"))
        const joined = yield* Effect.timeoutOption(Fiber.join(next), 500)
        assert.strictEqual(joined._tag, "Some", `at operation ${period}`)
      }
    }).pipe(Effect.scoped, Effect.provide(runtime)))
})

describe("a module whose fiber is interrupted in the turn that loads it", () => {
  it.live("is unloaded", () =>
    Effect.gen(function*() {
      const runtime = yield* CudaRuntime.CudaRuntime
      const made = yield* program
      const options = { idleTimeout: Duration.zero }
      const loading: Array<Fiber.Fiber<unknown, unknown>> = []
      let count = 0
      const onLoaded = () => {
        count++
        for (const fiber of loading) fiber.interruptUnsafe()
      }
      const fiber = yield* Effect.forkChild(runtime.moduleLoad(made.image, { ...options, onLoaded }))
      loading.push(fiber)
      yield* until("it is loaded", () => count === 1)
      yield* Fiber.await(fiber)
      assert.strictEqual((yield* runtime.liveResources).modules, 0)
      yield* until("its library is unloaded", () => stub.live.libraries === 0)
    }).pipe(Effect.provide(native)))

  it.live("is unloaded at the latest when the runtime is released", () =>
    Effect.gen(function*() {
      const made = yield* CudaProgram.fromBytes(".version 7.0\n.target sm_70\n")
      yield* Effect.forkDetach(Effect.scoped(CudaModule.load(made))).pipe(
        Effect.andThen(turn),
        Effect.provideService(Scheduler.MaxOpsBeforeYield, 3),
        Effect.provide(native)
      )
      assertReleased(stub)
    }))
})
