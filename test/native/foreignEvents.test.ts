/**
 * Events of other native code on the driver: what is called for them, and that they are never destroyed.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaEvent, CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { statuses } from "../../src/cuda/status.ts"
import { failsWith } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { garbageCollected } from "../support/garbage.ts"
import { openStub } from "../support/stubDriver.ts"
import { tracing } from "../support/tracing.ts"

const stub = openStub()
const { opened } = tracing(stub)

describe("an event of other native code", () => {
  it.live("is queried once, and recorded and waited for by its handle", () =>
    opened(() =>
      Effect.gen(function*() {
        const [owner, stream] = [yield* CudaEvent.make(), yield* CudaStream.make()]
        stub.clear()
        const event = yield* CudaEvent.fromHandle(owner.handle)
        assert.deepStrictEqual(stub.lines(), [["cuEventQuery", owner.handle]])
        stub.clear()
        yield* CudaEvent.wait(event, stream)
        yield* CudaEvent.record(event, stream)
        assert.deepStrictEqual(stub.lines(), [
          ["cuStreamWaitEvent", stream.handle, owner.handle, 0],
          ["cuEventRecord", owner.handle, stream.handle]
        ])
      })
    ))

  it.live("is never destroyed, and cannot be used after the runtime", () =>
    Effect.gen(function*() {
      const event = yield* opened(() =>
        Effect.gen(function*() {
          const owner = yield* CudaEvent.make()
          const event = yield* CudaEvent.fromHandle(owner.handle)
          yield* event.runtime.eventDestroy((yield* CudaEvent.fromHandle(owner.handle)).ref)
          assert.lengthOf(stub.calls("cuEventDestroy_v2"), 0)
          return event
        })
      )
      yield* failsWith(CudaEvent.query(event), "ResourceReleased")
    }))

  it.live("has waits of its own, because other code may record it anywhere", () =>
    opened(() =>
      Effect.gen(function*() {
        const [busy, idle] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const [first, owner] = [yield* CudaEvent.make(), yield* CudaEvent.make()]
        const event = yield* CudaEvent.fromHandle(owner.handle)
        stub.work(busy)
        yield* CudaEvent.record(first, busy)
        yield* CudaEvent.record(event, busy)
        const [held, waiting] = [
          yield* started(CudaEvent.synchronize(first)),
          yield* started(CudaEvent.synchronize(event))
        ]
        yield* CudaEvent.record(owner, idle)
        yield* Fiber.join(waiting)
        stub.finish(busy)
        yield* Fiber.join(held)
      })
    ))

  it.live("whose record fails is refused with the status", () =>
    opened(() =>
      Effect.gen(function*() {
        const { handle } = yield* CudaEvent.make()
        stub.fail("cuEventQuery", statuses.CapturedEvent.code)
        const error = yield* Effect.flip(CudaEvent.fromHandle(handle))
        assert.deepStrictEqual([error.reason._tag, error.call], ["CapturedEvent", "cuEventQuery"])
        assert.include(error.message, `handle 0x${handle.toString(16)}`)
      })
    ))

  it.live("recorded in a graph is recorded by each launch, and usable outside", () =>
    opened(() =>
      Effect.gen(function*() {
        const [owner, stream] = [yield* CudaEvent.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(64)
        const event = yield* CudaEvent.fromHandle(owner.handle)
        const graph = yield* CudaGraph.record(Effect.andThen(CudaMemory.fill(buffer, 1), CudaEvent.record(event)))
        assert.deepStrictEqual(graph.nodes.map(({ kind }) => kind), ["fill", "record"])
        yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), stream)
        assert.strictEqual(stub.calls("cuGraphAddEventRecordNode")[0]!.args[0], owner.handle)
        assert.isTrue(yield* CudaEvent.query(event))
        yield* CudaEvent.wait(event, stream)
      })
    ))

  it.live("keeps its owner, and a stream keeps its owners, while the library uses them", () =>
    opened(() =>
      Effect.gen(function*() {
        const [real, stream] = [yield* CudaEvent.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(64)
        stub.work(stream)
        yield* CudaEvent.record(real, stream)
        let collected = 0
        const registry = new FinalizationRegistry(() => collected++)
        const makeOwner = () => {
          const owner = {}
          registry.register(owner, undefined)
          return owner
        }
        const event = Effect.suspend(() => CudaEvent.fromHandle(real.handle, { owner: makeOwner() }))
        const waiting = yield* started(Effect.flatMap(event, CudaEvent.synchronize))
        const handle = stub.foreignStream(0)
        const wrapped = Effect.suspend(() => CudaStream.fromHandle(handle, { owner: makeOwner() }))
        yield* Effect.flatMap(wrapped, (foreign) => CudaMemory.fill(buffer, 1, foreign))
        for (let round = 0; round < 5; round++) yield* garbageCollected
        assert.strictEqual(collected, 0)
        stub.finishAll()
        yield* Fiber.join(waiting)
      })
    ))
})
