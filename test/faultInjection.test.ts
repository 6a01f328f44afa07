/**
 * Fault injection: the same on every runtime (the native one on the stub driver), and the additional effects on a simulated one.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaMemoryPool from "effect-cuda/CudaMemoryPool"
import * as CudaModule from "effect-cuda/CudaModule"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as FaultInjection from "effect-cuda/FaultInjection"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { failsWith, leavesNothing, nothingHeld, refuses } from "./support/assertions.ts"
import { program as kernels } from "./support/kernels.ts"
import { logged, onStub, openStub } from "./support/stubDriver.ts"

type Faults = FaultInjection.FaultInjectionService
type Body<R = CudaRuntime> = (faults: Faults) => Effect.Effect<void, CudaError, R | Scope.Scope>
type Run = (program: Effect.Effect<void, CudaError, CudaRuntime | Scope.Scope>) => Effect.Effect<void, CudaError>

/** Runs a body on the current runtime, with failures injected into it. */
const injecting = (body: Body) =>
  Effect.flatMap(FaultInjection.FaultInjection, body).pipe(Effect.provide(FaultInjection.layer))

/** The failure of an effect that fails. */
const failureOf = <A, R>(effect: Effect.Effect<A, CudaError, R>): Effect.Effect<CudaError, never, R> =>
  Effect.flip(Effect.andThen(effect, Effect.die(new Error("expected a failure"))))

const reasonOf = ({ operation, reason }: CudaError) => [operation, reason._tag]

/** Acquires one resource of every kind that has a release. */
const makeAll = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const event = yield* CudaEvent.make()
  const buffer = yield* CudaMemory.allocate(16)
  const host = yield* CudaMemory.allocateHost(16)
  const pool = yield* CudaMemoryPool.make()
  const module = yield* CudaModule.load(yield* kernels)
  return { stream, event, buffer, host, pool, module }
})

const releases = [
  "CudaStream.release",
  "CudaEvent.release",
  "CudaMemory.release",
  "CudaMemoryPool.release",
  "CudaModule.release"
] as const

const suite = (name: string, run: Run) => {
  const test = (what: string, body: Body) => it.live(what, () => run(injecting(body)))

  describe(`failures on ${name}`, () => {
    test("occur as often as requested, in order, and then the operation works", (faults) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* faults.failNext("CudaStream.query", "MapFailed", 2)
        yield* faults.failNext("CudaStream.query", "NotPermitted")
        assert.deepStrictEqual(yield* faults.pending, [
          { operation: "CudaStream.query", status: "MapFailed", times: 2 },
          { operation: "CudaStream.query", status: "NotPermitted", times: 1 }
        ])
        const error = yield* failureOf(CudaStream.query(stream))
        assert.deepStrictEqual(
          [error.operation, error.reason._tag, error.call, error.subject, error.deviceIndex, error.origin],
          ["CudaStream.query", "MapFailed", "cuStreamQuery", String(stream.ref), 0, undefined]
        )
        yield* CudaStream.synchronize(stream)
        yield* failsWith(CudaStream.query(stream), "MapFailed")
        assert.deepStrictEqual((yield* faults.pending).map(({ status }) => status), ["NotPermitted"])
        yield* failsWith(CudaStream.query(stream), "NotPermitted")
        assert.isTrue(yield* CudaStream.query(stream))
        assert.deepStrictEqual(yield* faults.pending, [])
      }))

    test("affect evaluations, even of effects created before the injection", (faults) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const query = CudaStream.query(stream)
        yield* faults.failNext("CudaStream.query", "MapFailed")
        yield* failsWith(query, "MapFailed")
        assert.isTrue(yield* query)
      }))

    test("do not affect the runtime inside, whose handles are the same", (faults) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const { injection, runtime } = yield* FaultInjection.make(yield* CudaRuntime)
        yield* injection.failNext("CudaStream.query", "MapFailed")
        assert.isTrue(yield* CudaStream.query(stream))
        yield* failsWith(runtime.streamQuery(stream.ref), "MapFailed")
        assert.deepStrictEqual([yield* injection.pending, yield* faults.pending], [[], []])
      }))

    test("without a limit last until they are cleared, and are pending until the first", (faults) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* faults.failNext("CudaStream.query", "MapFailed", Infinity)
        yield* faults.failNext("CudaEvent.make", "NotPermitted")
        const pending = Effect.map(faults.pending, (failures) => failures.map(({ times }) => times))
        assert.deepStrictEqual(yield* pending, [Infinity, 1])
        for (let time = 0; time < 5; time++) yield* failsWith(CudaStream.query(stream), "MapFailed")
        assert.deepStrictEqual(yield* pending, [1])
        yield* faults.clear("CudaStream.query")
        assert.isTrue(yield* CudaStream.query(stream))
        assert.deepStrictEqual(yield* pending, [1])
        yield* faults.clear()
        assert.deepStrictEqual(yield* pending, [])
        yield* CudaEvent.make()
      }))

    test("of allocations reach the program after the module's retries", (faults) =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        const allocations = [
          ["CudaMemory.allocate", 2, CudaMemory.allocate(64)],
          ["CudaMemory.allocateManaged", 2, CudaMemory.allocateManaged(64)],
          ["CudaMemory.allocate", 4, CudaMemory.allocate(64, { pool })]
        ] as const
        for (const [name, attempts, allocation] of allocations) {
          const allocate = Effect.asVoid(allocation)
          yield* faults.failNext(name, "OutOfMemory", attempts - 1)
          yield* allocate
          assert.deepStrictEqual(yield* faults.pending, [], "as many attempts as documented")
          for (const times of [attempts, Infinity]) {
            yield* faults.failNext(name, "OutOfMemory", times)
            yield* failsWith(allocate, "OutOfMemory")
            assert.deepStrictEqual(yield* faults.pending, [])
            yield* faults.clear(name)
            yield* allocate
          }
        }
      }))

    test("with invalid arguments are rejected by name", (faults) =>
      Effect.gen(function*() {
        const name: string = "CudaStream.nothing"
        const status: string = "NoSuchStatus"
        yield* refuses(faults.failNext(name as "CudaStream.query", "MapFailed"), "operation")
        yield* refuses(faults.failNext("CudaStream.query", status as "MapFailed"), "status")
        for (const times of [0, -1, 1.5, Number.NaN]) {
          yield* refuses(faults.failNext("CudaStream.query", "MapFailed", times), "times")
        }
        assert.deepStrictEqual(yield* faults.pending, [])
        const error = yield* failureOf(faults.failNext("CudaStream.query", "MapFailed", 0))
        assert.strictEqual(error.operation, "FaultInjection.failNext")
      }))

    test("of releases leave nothing behind", (faults) =>
      Effect.gen(function*() {
        for (const release of releases) {
          yield* faults.failNext(release, "InvalidValue")
          const { lines } = yield* logged(leavesNothing(makeAll))
          assert.deepStrictEqual(yield* faults.pending, [])
          assert.deepStrictEqual([lines.length, lines[0]?.split(" ").slice(0, 2)], [1, ["Warn", release]])
        }
      }))

    test("of graphs leave them usable", (faults) =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(16)
        const record = CudaGraph.record(CudaMemory.fill(buffer, 1))
        yield* faults.failNext("CudaGraph.record", "OutOfMemory")
        yield* failsWith(record, "OutOfMemory")
        const graph = yield* record
        yield* faults.failNext("CudaGraph.instantiate", "OutOfMemory", 2)
        const instantiate = CudaGraph.instantiate(graph, { instances: 2 })
        const refused = yield* failureOf(instantiate)
        assert.deepStrictEqual(
          [refused.operation, refused.call, refused.subject, refused.reason._tag],
          ["CudaGraph.instantiate", "cuGraphInstantiateWithParams", String(graph.ref), "OutOfMemory"]
        )
        const exec = yield* instantiate
        yield* faults.failNext("CudaGraph.launch", "LaunchOutOfResources")
        const error = yield* failureOf(CudaGraph.launch(exec, stream))
        assert.deepStrictEqual(
          [error.operation, error.call, error.reason._tag],
          ["CudaGraph.launch", "cuGraphLaunch", "LaunchOutOfResources"]
        )
        yield* CudaGraph.launch(exec, stream)
        yield* CudaStream.synchronize(stream)
        yield* faults.failNext("CudaGraph.condition", "NotSupported")
        yield* failsWith(CudaGraph.record(CudaGraph.when(buffer, Effect.void)), "NotSupported")
        yield* faults.failNext("CudaGraph.release", "InvalidValue")
        const { lines } = yield* logged(Effect.scoped(instantiate))
        assert.deepStrictEqual([lines.length, lines[0]?.split(" ").slice(0, 2)], [1, ["Warn", "CudaGraph.release"]])
        assert.deepStrictEqual(yield* faults.pending, [])
      })))

    test("of the end of an access do not block the next one", (faults) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(16, { ordered: true })
        const [first, second] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const use = (stream: CudaStream.CudaStream) => CudaMemory.access(Effect.void, { writes: [buffer], stream })
        yield* faults.failNext("CudaMemory.endAccess", "InvalidValue")
        yield* failsWith(use(first), "InvalidValue")
        yield* use(second)
        yield* CudaStream.synchronize(second)
      }))
  })

  describe(`faults on ${name}`, () => {
    test("fail every later operation for the same reason, and name the operation that failed first", (faults) =>
      Effect.gen(function*() {
        const { buffer, event, host, module, stream } = yield* makeAll
        const warpSize = yield* CudaDevice.attribute("warpSize")
        yield* faults.failNext("CudaEvent.record", "IllegalAddress")
        const first = yield* failureOf(CudaEvent.record(event, stream))
        assert.deepStrictEqual([...reasonOf(first), first.isSticky, first.origin], [
          "CudaEvent.record",
          "IllegalAddress",
          true,
          undefined
        ])
        const later = [
          ["CudaEvent.record", CudaEvent.record(event, stream)],
          ["CudaStream.query", CudaStream.query(stream)],
          ["CudaStream.make", CudaStream.make()],
          ["CudaMemory.allocate", CudaMemory.allocate(16)],
          ["CudaMemory.allocateHost", CudaMemory.allocateHost(16)],
          ["CudaMemory.copy", CudaMemory.copy(buffer, host, stream)],
          ["CudaKernel.get", Effect.flatMap(CudaRuntime, (runtime) => runtime.kernelGet(module.ref, "add", [], 0))]
        ] as const
        for (const [operation, use] of later) {
          const error = yield* failureOf(Effect.asVoid<unknown, CudaError, CudaRuntime | Scope.Scope>(use))
          assert.deepStrictEqual([...reasonOf(error), error.origin?.operation, error.origin?.status.name], [
            operation,
            "IllegalAddress",
            "CudaEvent.record",
            "CUDA_ERROR_ILLEGAL_ADDRESS"
          ])
        }
        assert.strictEqual(yield* CudaDevice.attribute("warpSize"), warpSize)
      }))

    test("do not prevent releases", (faults) =>
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        yield* Effect.scoped(
          Effect.gen(function*() {
            const { stream } = yield* makeAll
            yield* CudaMemory.allocate(16, { stream })
            yield* faults.failNext("CudaStream.query", "LaunchFailed")
            yield* failsWith(CudaStream.query(stream), "LaunchFailed")
          })
        )
        assert.deepStrictEqual(yield* runtime.liveResources, nothingHeld)
      }))

    for (const release of releases) {
      test(`of ${release} still release, and fail later operations`, (faults) =>
        Effect.gen(function*() {
          const runtime = yield* CudaRuntime
          yield* faults.failNext(release, "EccUncorrectable")
          yield* logged(Effect.scoped(makeAll))
          assert.deepStrictEqual(yield* runtime.liveResources, nothingHeld)
          const error = yield* failureOf(runtime.deviceMemoryInfo(0))
          assert.deepStrictEqual([error.reason._tag, error.origin?.operation], ["EccUncorrectable", release])
        }))
    }
  })
}

const simulated = SimulatedRuntime.layer()
const onSimulated: Run = (program) => program.pipe(Effect.scoped, Effect.provide(Layer.fresh(simulated)))

/** A runtime whose contexts injected faults cannot destroy, like one on a GPU. */
const onAnother: Run = (program) =>
  Effect.flatMap(CudaRuntime, (runtime) => Effect.provideService(program, CudaRuntime, { ...runtime, identity: {} }))
    .pipe(onSimulated)

suite("the simulated runtime", onSimulated)
suite("a runtime of any other kind", onAnother)

const stub = openStub()
suite("the native runtime", (program) => onStub(stub, program))

describe("faults on a simulated runtime", () => {
  it.live("destroy its contexts: pending work is dropped, and waits fail", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      const faults = yield* FaultInjection.FaultInjection
      const stream = yield* CudaStream.make()
      yield* control.launch(stream, { duration: "1 hour" })
      const waiting = yield* Effect.forkChild(failureOf(CudaStream.synchronize(stream)), { startImmediately: true })
      yield* faults.failNext("CudaEvent.make", "LaunchFailed")
      yield* failsWith(CudaEvent.make(), "LaunchFailed")
      assert.strictEqual((yield* Fiber.join(waiting)).reason._tag, "LaunchFailed")
      assert.strictEqual(yield* control.pendingOperations, 0)
      yield* failsWith(control.launch(stream, { duration: 0 }), "LaunchFailed")
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.provideMerge(FaultInjection.layer, Layer.fresh(simulated)))
    ))

  it.live("and failures can also be injected through its control", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* control.failNext("CudaMemory.allocate", "OutOfMemory", Infinity)
      assert.deepStrictEqual(yield* control.pending, [
        { operation: "CudaMemory.allocate", status: "OutOfMemory", times: Infinity }
      ])
      yield* failsWith(CudaMemory.allocate(16), "OutOfMemory")
      assert.deepStrictEqual(yield* control.pending, [])
      yield* control.clear()
      yield* CudaMemory.allocate(16)
      yield* refuses(control.failNext("CudaEvent.make", "MapFailed", 0), "times")
      yield* control.failNext("CudaEvent.make", "LaunchFailed")
      yield* failsWith(CudaEvent.make(), "LaunchFailed")
      yield* failsWith(CudaStream.make(), "LaunchFailed")
    }).pipe(Effect.scoped, Effect.provide(Layer.fresh(simulated))))
})
