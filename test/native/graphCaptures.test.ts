/**
 * Captured work on the driver: the calls that are made, the node that it becomes, and when the captured graph is destroyed.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaGraph, CudaMemory, CudaMemoryPool, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { statuses } from "../../src/cuda/status.ts"
import { failsWith } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { untilCollected } from "../support/garbage.ts"
import { assertReleased, nothingLive, onStub, openStub } from "../support/stubDriver.ts"
import { tracing } from "../support/tracing.ts"

const stub = openStub()
const size = 64

const fill = (buffer: DeviceBuffer, value: number) =>
  CudaGraph.capture((stream) => Effect.sync(() => assert.strictEqual(stub.nativeFill(stream, buffer, value), 0)), {
    writes: [buffer]
  })

const withBuffer = <A, E>(
  run: (
    buffer: DeviceBuffer,
    stream: CudaStream.CudaStream,
    context: number
  ) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>
) =>
  onStub(
    stub,
    Effect.gen(function*() {
      const { context } = yield* tracing(stub).openDevice()
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.allocate(size)
      return yield* CudaStream.withStream(run(buffer, stream, context), stream)
    })
  )

const firstByte = (buffer: DeviceBuffer) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(size)
    return Effect.map(CudaMemory.download(bytes, buffer), () => bytes[0])
  })

/** The driver's graphs that are live. */
const liveGraphs = () => stub.live.graphs

describe("captured work", () => {
  it.live("is captured in relaxed mode, on a stream that is destroyed", () =>
    withBuffer((buffer, _, context) =>
      Effect.gen(function*() {
        stub.clear()
        const graph = yield* CudaGraph.record(fill(buffer, 3))
        const made = Number(stub.calls("cuStreamCreateWithPriority")[0]!.args[0])
        const captured = Number(stub.calls("cuStreamEndCapture")[0]!.args[1])
        assert.deepStrictEqual(stub.lines().map(([name, ...args]) => [name, ...args.slice(0, 2)]), [
          ["cuCtxPushCurrent_v2", context],
          ["cuStreamCreateWithPriority", made, 1],
          ["cuCtxPopCurrent_v2", context],
          ["cuStreamBeginCapture_v2", made, 2],
          ["cuMemsetD8Async", buffer.address, 3],
          ["cuStreamEndCapture", made, captured],
          ["cuStreamDestroy_v2", made],
          ["cuGraphGetNodes", captured, 1],
          ["cuGraphNodeGetType", stub.calls("cuGraphNodeGetType")[0]!.args[0], 2]
        ])
        assert.strictEqual(liveGraphs(), 1)
        stub.clear()
        const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
        assert.deepStrictEqual(
          stub.calls("cuGraphAddChildGraphNode").map(({ args }) => args[0]),
          [captured, captured]
        )
        yield* CudaGraph.launch(exec)
        assert.strictEqual(yield* firstByte(buffer), 3)
      })
    ))

  it.live("has the priority of its stream, and its graph uses priorities", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        stub.clear()
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          const [origin, high] = [yield* CudaStream.current(), yield* CudaStream.make({ priority: "high" })]
          yield* CudaStream.withStream(fill(buffer, 1), high)
          yield* CudaStream.waitStream(origin, high)
        }))
        assert.strictEqual(stub.calls("cuStreamCreateWithPriority")[0]!.args[2], -5)
        yield* CudaGraph.instantiate(graph)
        assert.strictEqual(stub.calls("cuGraphInstantiateWithParams")[0]!.args[1], 8)
      })
    ))

  it.live("outside recordings is enqueued on the stream itself", () =>
    withBuffer((buffer, stream) =>
      Effect.gen(function*() {
        stub.clear()
        yield* fill(buffer, 4)
        assert.deepStrictEqual(stub.lines(), [["cuMemsetD8Async", buffer.address, 4, size, stream.handle]])
      })
    ))

  it.live("that allocates or frees is refused, and its graph destroyed", () =>
    withBuffer(() =>
      Effect.gen(function*() {
        const { ref } = yield* CudaMemoryPool.ofDevice()
        const allocating = CudaGraph.capture((stream) =>
          Effect.sync(() => assert.strictEqual(stub.nativeAllocate(stream, ref.handle, size), 0))
        )
        assert.include((yield* failsWith(CudaGraph.record(allocating), "CannotRecord")).because, "allocates")
        yield* untilCollected("the captured graph is destroyed", () => liveGraphs() === 0)
      })
    ))

  it.live("with many nodes is counted to the end", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const many = CudaGraph.capture((stream) =>
          Effect.sync(() => {
            for (let value = 0; value < 300; value++) stub.nativeFill(stream, buffer, value & 0xff)
          }), { writes: [buffer] })
        yield* CudaGraph.record(many)
        assert.strictEqual(stub.calls("cuGraphNodeGetType").reduce((sum, { times }) => sum + times, 0), 300)
      })
    ))

  it.live("is destroyed when no graph holds it", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        yield* Effect.asVoid(CudaGraph.record(fill(buffer, 1)))
        assert.strictEqual(liveGraphs(), 1)
        yield* untilCollected("the captured graph is destroyed", () => liveGraphs() === 0)
      })
    ))

  it.live("is destroyed with the runtime, also while it is captured", () =>
    Effect.gen(function*() {
      let fiber: Fiber.Fiber<unknown, unknown> | undefined
      yield* withBuffer((buffer) =>
        Effect.gen(function*() {
          const reached = yield* Deferred.make<void>()
          const endless = CudaGraph.capture((stream) =>
            Effect.gen(function*() {
              stub.nativeFill(stream, buffer, 1)
              yield* Deferred.succeed(reached, undefined)
              return yield* Effect.never
            })
          )
          fiber = yield* Effect.forkDetach(CudaGraph.record(endless), { startImmediately: true })
          yield* Deferred.await(reached)
        })
      )
      assert.deepStrictEqual(stub.live, nothingLive)
      yield* Fiber.interrupt(fiber!)
      assertReleased(stub)
    }))

  it.live("that ends after the runtime was closed fails, and calls nothing", () =>
    Effect.gen(function*() {
      const reached = yield* Deferred.make<void>()
      const goOn = yield* Deferred.make<void>()
      const fiber = yield* withBuffer(() =>
        Effect.gen(function*() {
          const late = CudaGraph.capture(() =>
            Effect.andThen(Deferred.succeed(reached, undefined), Deferred.await(goOn))
          )
          const forked = yield* Effect.forkDetach(CudaGraph.record(late), { startImmediately: true })
          yield* Deferred.await(reached)
          return forked
        })
      )
      const { callCount } = stub
      yield* Deferred.succeed(goOn, undefined)
      yield* failsWith(Fiber.join(fiber), "ResourceReleased")
      assert.strictEqual(stub.callCount, callCount)
    }))

  it.live("that is interrupted or fails leaves no graph, no stream and no node", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const streams = stub.live.streams
        const enqueue = (stream: number) => Effect.sync(() => stub.nativeFill(stream, buffer, 1))
        const failing = CudaGraph.capture((stream) => Effect.andThen(enqueue(stream), Effect.fail("no")))
        const graph = yield* CudaGraph.record(Effect.ignore(failing))
        assert.deepStrictEqual([graph.nodes.length, liveGraphs(), stub.live.streams], [0, 0, streams])
        const endless = CudaGraph.capture((stream) => Effect.andThen(enqueue(stream), Effect.never))
        const fiber = yield* started(CudaGraph.record(endless))
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual([liveGraphs(), stub.live.streams], [0, streams])
      })
    ))

  it.live("that the driver invalidated fails with its status", () =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const streams = stub.live.streams
        stub.fail("cuStreamEndCapture", statuses.StreamCaptureInvalidated.code)
        yield* failsWith(CudaGraph.record(fill(buffer, 1)), "StreamCaptureInvalidated")
        assert.deepStrictEqual([liveGraphs(), stub.live.streams], [0, streams])
      })
    ))
})

describe("a failing call", () => {
  const calls = [
    ["cuCtxPushCurrent_v2", 0],
    ["cuStreamCreateWithPriority", 0],
    ["cuStreamBeginCapture_v2", 0],
    ["cuStreamEndCapture", 0],
    ["cuGraphGetNodes", 0],
    ["cuGraphNodeGetType", 0]
  ] as const
  it.live.each(calls)("%s leaves nothing behind", ([name]) =>
    withBuffer((buffer) =>
      Effect.gen(function*() {
        const streams = stub.live.streams
        stub.fail(name, statuses.OutOfMemory.code)
        const error: CudaError = yield* Effect.flip(CudaGraph.record(fill(buffer, 1)))
        assert.deepStrictEqual([error.operation, error.reason._tag], ["CudaGraph.capture", "OutOfMemory"])
        assert.deepStrictEqual([liveGraphs(), stub.live.streams], [0, streams])
        const graph = yield* CudaGraph.record(fill(buffer, 1))
        assert.lengthOf(graph.nodes, 1)
      })
    ))
})
