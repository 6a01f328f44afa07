/**
 * Collectives on the driver with a stub of NCCL: what the library is given, from which thread, and how communicators end.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaGraph, CudaMemory, CudaNccl, CudaStream } from "effect-cuda"
import type { Communicator } from "effect-cuda/CudaNccl"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { CommunicatorImpl } from "../../src/internal/nccl/communicator.ts"
import { failsWith } from "../support/assertions.ts"
import { logged, onStub, openStub, pause, until } from "../support/stubDriver.ts"
import type { StubOptions } from "../support/stubDriver.ts"
import { StubNccl } from "../support/stubNccl.ts"
import { OthersYield } from "../support/yielding.ts"

const stub = openStub()
const nccl = new StubNccl(stub.path)

/** Runs a program with the stub, and asserts that it was used correctly, and that nothing is left. */
const withNccl = <A, E>(
  program: Effect.Effect<A, E, CudaNccl.CudaNccl | CudaRuntime | Scope.Scope>,
  { layer = {}, ...options }: StubOptions & { readonly layer?: CudaNccl.NcclOptions } = {}
) =>
  Effect.gen(function*() {
    nccl.reset()
    const result = yield* onStub(
      stub,
      Effect.scoped(program).pipe(Effect.provide(CudaNccl.layer({ path: nccl.path, ...layer }))),
      options
    )
    nccl.assertReleased()
    return result
  })

const joinOne = (options: Partial<CudaNccl.JoinOptions> = {}) =>
  Effect.flatMap(CudaNccl.uniqueId, (id) => CudaNccl.join({ id, rank: 0, size: 2, ...options }))

const handlesOf = (communicator: Communicator): ReadonlyArray<number> => {
  assert.instanceOf(communicator, CommunicatorImpl)
  return communicator.ref.handles.map(({ handle }) => handle!)
}

const liveHandles = Effect.flatMap(
  CudaRuntime,
  ({ liveResources }) => Effect.map(liveResources, ({ handles }) => handles)
)

describe("a communicator", () => {
  it.live("joins in threads of NCCL, and is destroyed off the JS thread", () =>
    Effect.gen(function*() {
      yield* withNccl(Effect.gen(function*() {
        nccl.questions = 5
        const communicator = yield* joinOne({ rank: 1 })
        assert.deepStrictEqual([communicator.rank, communicator.size, communicator.deviceIndex], [1, 2, 0])
        assert.strictEqual(yield* liveHandles, 2)
        const { isDirect, version } = yield* CudaNccl.CudaNccl
        assert.deepStrictEqual([isDirect, version], [true, "2.28.9"])
      }))
      assert.deepStrictEqual(nccl.calls, [
        "ncclGetVersion",
        "ncclGetUniqueId off",
        "ncclCommInitRankConfig context",
        "ncclCommSplit context",
        "ncclCommDestroy off",
        "ncclCommDestroy off"
      ])
      assert.deepStrictEqual(nccl.records.map(({ blocking, call, rank }) => [call, rank, blocking]), [["split", 1, 1]])
    }))

  it.live("of a token is that of the id", () =>
    withNccl(Effect.gen(function*() {
      const token = CudaNccl.toToken(yield* CudaNccl.uniqueId)
      assert.lengthOf(token, 171)
      yield* CudaNccl.join({ id: token, rank: 0, size: 1 })
    })))

  it.live("that another rank does not join is aborted after its time, off the JS thread", () =>
    Effect.gen(function*() {
      yield* withNccl(Effect.gen(function*() {
        nccl.isStuck = true
        const reason = yield* failsWith(joinOne({ timeout: "50 millis" }), "TimedOut")
        assert.strictEqual(reason.milliseconds, 50)
        assert.strictEqual(yield* liveHandles, 0)
      }))
      assert.deepStrictEqual(nccl.calls.slice(-1), ["ncclCommAbort off"])
    }))

  it.live("is aborted if joining is interrupted, while either of its communicators is made", () =>
    Effect.gen(function*() {
      for (const call of ["ncclCommInitRankConfig context", "ncclCommSplit context"]) {
        yield* withNccl(Effect.gen(function*() {
          nccl.questions = call.startsWith("ncclCommSplit") ? 100 : 1_000_000
          const fiber = yield* Effect.forkChild(joinOne())
          yield* until(call, () => nccl.calls.includes("ncclCommInitRankConfig context"))
          nccl.questions = 1_000_000
          if (call.startsWith("ncclCommSplit")) yield* until(call, () => nccl.calls.includes(call))
          yield* Fiber.interrupt(fiber)
          assert.strictEqual(yield* liveHandles, 0)
        }))
        assert.include(nccl.calls, "ncclCommAbort off")
      }
    }))

  it.live("fails with the status and the last words of NCCL", () =>
    withNccl(Effect.gen(function*() {
      nccl.fail("ncclCommInitRankConfig", 5)
      const refused = yield* failsWith(joinOne(), "LibraryFailed")
      assert.strictEqual(refused.name, "ncclInvalidUsage")
      nccl.reset()
      nccl.fail("ncclCommSplit", 3)
      yield* failsWith(joinOne(), "LibraryFailed")
      nccl.reset()
      nccl.questions = 1_000_000
      const fiber = yield* Effect.forkChild(Effect.flip(joinOne()))
      yield* until("joining", () => nccl.live === 1)
      yield* Fiber.interrupt(fiber)
    })))

  it.live("needs functions that old libraries lack", () =>
    Effect.gen(function*() {
      nccl.reset()
      nccl.version = 21703
      const built = Effect.scoped(Effect.void).pipe(Effect.provide(CudaNccl.layer({ path: nccl.path })))
      const { functionName, since } = yield* failsWith(onStub(stub, built), "FunctionMissing")
      assert.deepStrictEqual([functionName, since], ["ncclCommSplit", "2.18"])
    }))

  it.live("fails those who wait for its failure", () =>
    withNccl(Effect.gen(function*() {
      const communicator = yield* joinOne()
      const fiber = yield* Effect.forkChild(Effect.flip(CudaNccl.failure(communicator, { every: "5 millis" })))
      yield* pause(20)
      assert.isUndefined(fiber.pollUnsafe())
      nccl.failCommunicator(handlesOf(communicator)[1]!, 6)
      const error = yield* Fiber.join(fiber)
      assert.strictEqual(error.reason._tag === "LibraryFailed" && error.reason.name, "ncclRemoteError")
      assert.include(error.message, "the last words")
    })))

  it.live("waits for its work at the end of its scope, and is aborted if that does not end", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.allocate(64)
      const scope = yield* Scope.make()
      const { lines } = yield* logged(Effect.gen(function*() {
        const communicator = yield* Scope.provide(joinOne({ closeTimeout: "50 millis" }), scope)
        yield* CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream))
        stub.work(stream)
        yield* Scope.close(scope, Exit.void)
      }))
      assert.strictEqual(yield* liveHandles, 0)
      assert.deepStrictEqual(nccl.calls.slice(-2), ["ncclCommAbort off", "ncclCommAbort off"])
      stub.finishAll()
      assert.isTrue(lines.some((line) => line.includes("was aborted")), lines.join("\n"))
    })))

  it.live("is aborted if a stream with its work cannot be released", () =>
    withNccl(Effect.gen(function*() {
      const communicator = yield* joinOne({ closeTimeout: "300 millis" })
      const buffer = yield* CudaMemory.allocate(64)
      const closed = Effect.scoped(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream))
        stub.work(stream)
      }))
      const fiber = yield* Effect.forkChild(closed)
      yield* until("aborted", () => nccl.calls.includes("ncclCommAbort off"))
      stub.finishAll()
      yield* Fiber.join(fiber)
    })))

  it.live("ends after the graphs that were recorded with it", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.allocate(64)
      const scope = yield* Scope.make()
      const communicator = yield* Scope.provide(joinOne(), scope)
      const graph = yield* CudaGraph.record(
        CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }))
      )
      const exec = yield* CudaGraph.instantiate(graph)
      yield* CudaGraph.launch(exec, stream)
      assert.isAbove(stub.live.graphs + stub.live.graphExecs, 0)
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual([stub.live.graphs, stub.live.graphExecs], [0, 0])
      const { resource } = yield* failsWith(CudaGraph.launch(exec, stream), "ResourceReleased")
      assert.include(resource, "nccl handle")
      yield* failsWith(CudaGraph.instantiate(graph), "ResourceReleased")
    })))
})

describe("collectives", () => {
  it.live("are enqueued by the blocking communicator, in one call", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const [a, b] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(128)]
      const communicator = yield* joinOne()
      nccl.clear()
      const of = { from: a, type: "bf16" } as const
      yield* CudaNccl.run(CudaNccl.allReduce(communicator, { ...of, op: "max" }, stream))
      yield* CudaNccl.run(CudaNccl.reduce(communicator, { ...of, op: "avg", root: 1 }, stream))
      yield* CudaNccl.run(CudaNccl.broadcast(communicator, { to: a, type: "f64", root: 1 }, stream))
      yield* CudaNccl.run(CudaNccl.allGather(communicator, { from: a, to: b, type: "i32" }, stream))
      yield* CudaNccl.run(CudaNccl.reduceScatter(communicator, { from: b, to: a, type: "u8", op: "prod" }, stream))
      const [from, to] = [a.address, b.address]
      const common = { rank: 0, blocking: 1, stream: stream.handle, grouped: 0, op: -1, other: -1 }
      assert.deepStrictEqual(nccl.records, [
        { ...common, call: "ncclAllReduce", from, to: from, count: 32, type: 9, op: 2 },
        { ...common, call: "ncclReduce", from, to: 0, count: 32, type: 9, op: 4, other: 1 },
        { ...common, call: "ncclBroadcast", from: 0, to: from, count: 8, type: 8, other: 1 },
        { ...common, call: "ncclAllGather", from, to, count: 16, type: 2 },
        { ...common, call: "ncclReduceScatter", from: to, to: from, count: 64, type: 1, op: 1 }
      ])
      assert.isTrue(nccl.calls.every((call) => call.endsWith(" context")), nccl.calls.join())
    })))

  it.live("of several ranks are one group, which ends even if a call fails", () =>
    withNccl(
      Effect.gen(function*() {
        const streams = [yield* CudaStream.make({ device: 0 }), yield* CudaStream.make({ device: 1 })]
        const buffers = [yield* CudaMemory.allocate(64, { device: 0 }), yield* CudaMemory.allocate(64, { device: 1 })]
        const communicators = yield* CudaNccl.local([0, 1])
        const both = CudaNccl.run(
          ...communicators.map((communicator, rank) =>
            CudaNccl.allReduce(communicator, { from: buffers[rank]!, type: "f32" }, streams[rank])
          )
        )
        nccl.clear()
        yield* both
        assert.deepStrictEqual(nccl.calls, [
          "ncclGroupStart context",
          "ncclAllReduce context",
          "ncclAllReduce context",
          "ncclGroupEnd context"
        ])
        assert.deepStrictEqual(nccl.records.map(({ rank, stream }) => [rank, stream]), [
          [0, streams[0]!.handle],
          [1, streams[1]!.handle]
        ])
        nccl.clear()
        nccl.fail("ncclAllReduce", 4, 1)
        const { name } = yield* failsWith(both, "LibraryFailed")
        assert.strictEqual(name, "ncclInvalidArgument")
        assert.deepStrictEqual(nccl.calls.slice(-1), ["ncclGroupEnd context"])
      }),
      { prepare: (stub) => (stub.devices = 2) }
    ))

  it.live("of several streams are one group, whatever is on each", () =>
    withNccl(
      Effect.gen(function*() {
        const streams = [yield* CudaStream.make({ device: 0 }), yield* CudaStream.make({ device: 1 })]
        const buffers = [yield* CudaMemory.allocate(64, { device: 0 }), yield* CudaMemory.allocate(64, { device: 1 })]
        const communicators = yield* CudaNccl.local([0, 1])
        const of = (rank: number, size: number) => {
          const from = { buffer: buffers[rank]!, offset: 0, byteLength: size }
          return CudaNccl.allReduce(communicators[rank]!, { from, type: "f32" }, streams[rank])
        }
        nccl.clear()
        yield* CudaNccl.run(of(0, 8), of(1, 8), of(0, 16), of(1, 16))
        assert.deepStrictEqual(nccl.records.map(({ count, grouped, rank }) => [rank, count, grouped]), [
          [0, 2, 1],
          [0, 4, 1],
          [1, 2, 1],
          [1, 4, 1]
        ])
        nccl.fail("ncclGroupEnd", 3)
        const error = yield* Effect.flip(CudaNccl.run(of(0, 8), of(1, 8)))
        assert.include(error.message, "the last words")
        assert.strictEqual(error.call, "ncclGroupEnd")
      }),
      { prepare: (stub) => (stub.devices = 2) }
    ))

  it.live("run again as values: with what their parts are now, and only while all of it lives", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const scope = yield* Scope.make()
      const buffer = yield* Scope.provide(CudaMemory.growable({ maxBytes: 1 << 24 }), scope)
      yield* CudaMemory.grow(buffer, 64)
      const part = { buffer, offset: 0, byteLength: 16 }
      const communicator = yield* joinOne()
      const whole = CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream))
      const piece = CudaNccl.run(CudaNccl.allReduce(communicator, { from: part, type: "f32" }, stream))
      const both = Effect.andThen(whole, piece)
      nccl.clear()
      yield* both
      yield* CudaMemory.grow(buffer, 128)
      part.offset = 4
      yield* both
      const { address } = buffer
      assert.deepStrictEqual(nccl.records.map(({ count, from, grouped }) => [count, from, grouped]), [
        [16, address, 0],
        [4, address, 0],
        [32, address, 0],
        [4, address + 4, 0]
      ])
      part.byteLength = 6
      const { argument } = yield* failsWith(piece, "InvalidArgument")
      assert.strictEqual(argument, "from.byteLength")
      yield* Scope.close(scope, Exit.void)
      yield* failsWith(whole, "ResourceReleased")
      yield* CudaNccl.abort(communicator)
      yield* failsWith(whole, "ResourceReleased")
    })))

  it.live("that are polled are marked when they are on their stream, and not before", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.allocate(64, { ordered: true })
      const communicator = yield* joinOne()
      nccl.questions = 20
      stub.clear()
      yield* CudaNccl.run(
        CudaNccl.receive(communicator, { to: buffer, type: "f32", peer: 1 }, stream),
        CudaNccl.send(communicator, { from: buffer, type: "f32", peer: 1 }, stream)
      )
      const names = stub.calls().map(({ name }) => name)
      assert.isAbove(names.indexOf("cuMemsetD8Async"), -1)
      const other = yield* CudaStream.make()
      yield* CudaMemory.fill(buffer, 0, other)
      const all = stub.calls().map(({ name }) => name)
      assert.isAbove(all.indexOf("cuEventRecord"), all.indexOf("cuMemsetD8Async"))
      assert.deepStrictEqual(
        nccl.records.filter(({ call }) => call !== "split").map(({ blocking, grouped }) => [blocking, grouped]),
        [
          [0, 1],
          [0, 1]
        ]
      )
    })))

  it.live("of both kinds are two groups", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const [a, b] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64)]
      const communicator = yield* joinOne()
      nccl.questions = 3
      nccl.clear()
      yield* CudaNccl.run(
        CudaNccl.send(communicator, { from: a, type: "f32", peer: 1 }, stream),
        CudaNccl.allReduce(communicator, { from: b, type: "f32" }, stream)
      )
      assert.deepStrictEqual(nccl.calls, [
        "ncclGroupStart context",
        "ncclAllReduce context",
        "ncclGroupEnd context",
        "ncclGroupStart context",
        "ncclSend context",
        "ncclGroupEnd context"
      ])
    })))

  it.live("that are polled wait for each other", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const [a, b] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64)]
      const communicator = yield* joinOne()
      nccl.questions = 5
      const send = (from: CudaMemory.DeviceBuffer) =>
        CudaNccl.run(CudaNccl.send(communicator, { from, type: "f32", peer: 1 }, stream))
      yield* Effect.all([send(a), send(b), send(a)], { concurrency: "unbounded" })
      assert.lengthOf(nccl.records.filter(({ call }) => call === "ncclSend"), 3)
    })))

  it.live("that another rank never answers abort the communicator when they are interrupted", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.allocate(64)
      const communicator = yield* joinOne()
      nccl.isStuck = true
      const send = CudaNccl.run(CudaNccl.send(communicator, { from: buffer, type: "f32", peer: 1 }, stream))
      const fiber = yield* Effect.forkChild(send)
      yield* until("the call", () => nccl.calls.includes("ncclSend context"))
      yield* pause(10)
      assert.isUndefined(fiber.pollUnsafe())
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(nccl.calls.slice(-2), ["ncclCommAbort off", "ncclCommAbort off"])
      assert.strictEqual(yield* liveHandles, 0)
      yield* failsWith(send, "ResourceReleased")
    })))

  it.live("are guarded: the communicator is aborted before the effect is interrupted", () =>
    withNccl(Effect.gen(function*() {
      const buffer = yield* CudaMemory.allocate(64)
      const communicator = yield* joinOne()
      let sawAbort = false
      const waiting = Effect.onInterrupt(
        Effect.never,
        () =>
          Effect.map(until("the abort", () => nccl.calls.includes("ncclCommAbort off")), () => {
            sawAbort = true
          })
      )
      const late = CudaNccl.guard(waiting, [communicator], { timeout: "30 millis" })
      yield* failsWith(late, "TimedOut")
      assert.isTrue(sawAbort)
      yield* failsWith(
        CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" })),
        "ResourceReleased"
      )
      const error = yield* Effect.flip(CudaNccl.failure(communicator))
      assert.strictEqual(error.reason._tag, "TimedOut")
    })))

  it.live("succeed under guard without a trace", () =>
    withNccl(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.allocate(64)
      const communicator = yield* joinOne()
      const step = CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream))
      assert.strictEqual(yield* step.pipe(Effect.as(7), CudaNccl.guard([communicator], { timeout: "5 seconds" })), 7)
      yield* step
    })))

  it.live("are all polled if ranks connect late", () =>
    Effect.gen(function*() {
      yield* withNccl(
        Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const buffer = yield* CudaMemory.allocate(64)
          const communicator = yield* joinOne()
          assert.strictEqual(yield* liveHandles, 1)
          nccl.questions = 3
          yield* CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream))
        }),
        { layer: { connect: "late" } }
      )
      assert.deepStrictEqual(nccl.records.map(({ blocking, grouped }) => [blocking, grouped]), [[0, 1]])
    }))
})

describe("new communicators", () => {
  it.live("are split and shrunk without blocking", () =>
    withNccl(Effect.gen(function*() {
      const communicator = yield* joinOne()
      nccl.questions = 3
      nccl.clear()
      yield* CudaNccl.split(communicator, { color: 2, key: 5 })
      yield* CudaNccl.skipSplit(communicator)
      const shrunk = yield* CudaNccl.shrink(communicator, { without: [1] })
      assert.deepStrictEqual([shrunk.rank, shrunk.size], [0, 1])
      assert.deepStrictEqual(nccl.records.map((record) => ({ ...record })), [
        { call: "split", rank: 0, color: 2, key: 5, blocking: 0 },
        { call: "split", rank: 0, color: 0, key: 0, blocking: 1 },
        { call: "split", rank: 0, color: -1, key: 0, blocking: 0 },
        { call: "shrink", rank: 0, first: 1, count: 1, flags: 0 },
        { call: "split", rank: 0, color: 0, key: 0, blocking: 1 }
      ] as unknown)
    })))

  it.live("replace one with a lost rank, which is aborted", () =>
    withNccl(Effect.gen(function*() {
      const communicator = yield* joinOne()
      nccl.clear()
      yield* CudaNccl.shrink(communicator, { without: [1], abort: true })
      assert.deepStrictEqual(nccl.calls.slice(0, 2), ["ncclCommAbort off", "ncclCommShrink context"])
      assert.strictEqual(Reflect.get(nccl.records[0]!, "flags"), 1)
      yield* failsWith(CudaNccl.split(communicator, { color: 0 }), "ResourceReleased")
    })))
})

describe("whatever happens", () => {
  it.live("nothing is left, at whatever step a fiber yields and is interrupted", () =>
    Effect.gen(function*() {
      const self = yield* Effect.withFiber((fiber) => Effect.succeed(fiber.id))
      for (const questions of [0, 3]) {
        for (let period = 3; period < 60; period++) {
          yield* withNccl(Effect.gen(function*() {
            const stream = yield* CudaStream.make()
            const buffer = yield* CudaMemory.allocate(64)
            nccl.questions = questions
            const program = Effect.scoped(Effect.gen(function*() {
              const communicator = yield* joinOne()
              const to = { type: "f32", peer: 1 } as const
              yield* CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffer, type: "f32" }, stream))
              yield* CudaNccl.run(CudaNccl.send(communicator, { ...to, from: buffer }, stream))
              yield* CudaNccl.split(communicator, { color: 1 })
            }))
            const fiber = yield* Effect.forkDetach(
              Effect.provideService(Effect.exit(program), Scheduler.Scheduler, new OthersYield(self, period)),
              { startImmediately: true }
            )
            yield* pause(period % 5)
            yield* Fiber.interrupt(fiber)
            assert.strictEqual(yield* liveHandles, 0, `period ${period}`)
          }))
        }
      }
    }), 60_000)
})
