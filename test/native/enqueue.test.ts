/**
 * Calls of other native code on the driver: the context and the stream they are given, and the driver calls around them.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaError, CudaEvent, CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { statuses } from "../../src/cuda/status.ts"
import { failsWith } from "../support/assertions.ts"
import { logged, onStub, openStub, until } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"

const stub = openStub()
const { opened } = tracing(stub)
const size = 64

const fill = (buffer: DeviceBuffer, value: number, stream?: CudaStream.CudaStream) =>
  CudaMemory.enqueue({ writes: [buffer], stream }, (handle) => stub.nativeFill(handle, buffer, value))

describe("a call of native code", () => {
  it.live("is made with the context of the device current, and nothing else around it", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        stub.clear()
        yield* fill(buffer, 3, stream)
        assert.deepStrictEqual(
          stub.lines(),
          within(context, ["cuMemsetD8Async", buffer.address, 3, size, stream.handle])
        )
        assert.strictEqual(stub.calls("cuMemsetD8Async")[0]!.context, context)
        yield* CudaStream.current()
        stub.clear()
        yield* fill(buffer, 4)
        assert.deepStrictEqual(stub.lines(), within(context, ["cuMemsetD8Async", buffer.address, 4, size, 1]))
      })
    ))

  it.live("leaves the context of other code current, also if it throws", () =>
    opened(() =>
      Effect.gen(function*() {
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        const foreign = stub.pushForeign()
        yield* fill(buffer, 1, stream)
        assert.strictEqual(stub.current, foreign)
        const exit = yield* Effect.exit(CudaMemory.enqueue({ stream }, () => {
          throw new Error("no")
        }))
        assert.isTrue(Exit.hasDies(exit))
        assert.strictEqual(stub.current, foreign)
        stub.popForeign()
      })
    ))

  it.live("is marked and waited for if its memory is ordered, whatever it returns", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(size, { ordered: true })
        for (
          const outcome of [() => 0, () => 9, () => {
            throw new Error("no")
          }]
        ) {
          stub.clear()
          yield* Effect.exit(CudaMemory.enqueue({ writes: [buffer], stream: one }, outcome))
          assert.deepStrictEqual(
            stub.lines().filter(([name]) => String(name).startsWith("cuCtx")).slice(0, 2),
            within(context)
          )
          assert.strictEqual(stub.lines().at(-1)![0], "cuEventRecord")
          const mark = stub.calls("cuEventRecord")[0]!.args[0]!
          stub.clear()
          yield* CudaMemory.fill(buffer, 1, other)
          assert.deepStrictEqual(stub.lines()[0], ["cuStreamWaitEvent", other.handle, mark, 0])
        }
      })
    ))

  it.live("may use this library itself", () =>
    opened(() =>
      Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(size, { ordered: true })
        yield* CudaMemory.enqueue(
          { writes: [buffer], stream: one },
          () => Effect.runSync(CudaMemory.fill(buffer, 7, other))
        )
        const bytes = new Uint8Array(size)
        yield* CudaMemory.download(bytes, buffer, one)
        assert.strictEqual(bytes[0], 7)
      })
    ))

  it.live("that returns a status of the driver can fail with its reason, and explains later failures", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const event = yield* CudaEvent.make()
        const code = statuses.IllegalAddress.code
        const failing = CudaMemory.enqueue({ stream, status: CudaError.reasonFromStatus }, () => code)
        const error = yield* Effect.flip(failing)
        assert.deepStrictEqual([error.reason._tag, error.isSticky, error.origin], ["IllegalAddress", true, undefined])
        stub.fail("cuEventRecord", code)
        const next = yield* Effect.flip(CudaEvent.record(event, stream))
        assert.strictEqual(next.origin?.operation, "CudaMemory.enqueue")
      })
    ))

  it.live("inside a recording leaves no stream and no graph if it fails or throws", () =>
    opened(() =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(size)
        const { graphs, streams } = stub.live
        const enqueue = (stream: number) => stub.nativeFill(stream, buffer, 1)
        const failing = CudaMemory.enqueue({ writes: [buffer] }, (stream) => enqueue(stream) + 5)
        yield* failsWith(CudaGraph.record(failing), "LibraryFailed")
        const throwing = CudaMemory.enqueue({ writes: [buffer] }, (stream) => {
          enqueue(stream)
          throw new Error("no")
        })
        assert.isTrue(Exit.hasDies(yield* Effect.exit(CudaGraph.record(throwing))))
        assert.deepStrictEqual([stub.live.graphs, stub.live.streams], [graphs, streams])
        const graph = yield* CudaGraph.record(fill(buffer, 6))
        assert.strictEqual(stub.live.graphs, graphs + 1)
        yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
      })
    ))

  it.live("on a released stream is refused, without a driver call", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(size)
        const stream = yield* Effect.scoped(CudaStream.make())
        stub.clear()
        yield* failsWith(fill(buffer, 1, stream), "ResourceReleased")
        assert.deepStrictEqual(stub.lines(), [])
      })
    ))

  it.live("that reports a fault keeps what was pinned from being reused", () =>
    logged(onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* Effect.scoped(CudaMemory.allocateHost(4096))
        yield* until("the memory is kept", () => stub.calls("cuMemHostRegister_v2").length === 1)
        const { reasonFromStatus: status } = CudaError
        const fault = statuses.IllegalAddress.code
        yield* failsWith(CudaMemory.enqueue({ stream, status }, () => fault), "IllegalAddress")
        stub.fault = fault
        yield* failsWith(CudaMemory.allocateHost(4096), "IllegalAddress")
      })
    )))

  it.live("that fails has its own failure, also if its uses cannot be marked", () =>
    opened(() =>
      Effect.gen(function*() {
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size, { ordered: true })]
        const failing = CudaMemory.enqueue({ writes: [buffer], stream, status: { 9: "BAD_COUNT" } }, () => {
          stub.fail("cuEventRecord", 2)
          return 9
        })
        const { message } = yield* Effect.flip(failing)
        assert.include(message, "BAD_COUNT (9)")
      })
    ))
})
