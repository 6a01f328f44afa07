/**
 * The contract of events that other code owns.
 */
import { assert, layer } from "@effect/vitest"
import { CudaEvent, CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

/** An event of an owner, as other code would have it: only its handle. */
const withOwner = <A, E, R>(
  body: (owner: CudaEvent.TimedEvent, stream: CudaStream.CudaStream) => Effect.Effect<A, E, R>
) =>
  leavesNothing(Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    return yield* body(yield* CudaEvent.make({ timing: true }), stream)
  }))

export const foreignEventContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("events by handle", (it) => {
    it.effect("are the same event, in both directions", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const event = yield* CudaEvent.fromHandle(owner.handle)
          assert.deepStrictEqual(
            [event.handle, event.deviceIndex, event.hasTiming, event.isBlocking, CudaEvent.isTimedEvent(event)],
            [owner.handle, 0, false, false, false]
          )
          assert.isTrue(yield* CudaEvent.query(event))
          yield* (yield* Busy).enqueue(stream, 30)
          yield* CudaEvent.record(owner, stream)
          assert.isFalse(yield* CudaEvent.query(event))
          yield* CudaEvent.synchronize(event)
          assert.isTrue(yield* CudaEvent.query(owner))
          yield* (yield* Busy).enqueue(stream, 30)
          yield* CudaEvent.record(event, stream)
          assert.isFalse(yield* CudaEvent.query(owner))
          yield* CudaEvent.synchronize(owner)
          assert.isTrue(yield* CudaEvent.query(event))
        })
      ))

    it.effect("order streams", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const other = yield* CudaStream.make()
          const buffer = yield* CudaMemory.allocate(64)
          const event = yield* CudaEvent.fromHandle(BigInt(owner.handle))
          yield* (yield* Busy).enqueue(stream, 20)
          yield* CudaMemory.fill(buffer, 5, stream)
          yield* CudaEvent.record(owner, stream)
          yield* CudaEvent.wait(event, other)
          const bytes = new Uint8Array(64)
          yield* CudaMemory.download(bytes, buffer, other)
          assert.strictEqual(bytes[63], 5)
        })
      ))

    it.effect("that were never recorded hold nothing up", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const event = yield* CudaEvent.fromHandle(owner.handle)
          yield* CudaEvent.wait(event, stream)
          yield* CudaEvent.synchronize(event)
          yield* CudaStream.synchronize(stream)
        })
      ))

    it.effect("are not destroyed, and not counted", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const runtime = yield* CudaRuntime
          const before = yield* runtime.liveResources
          const event = yield* CudaEvent.fromHandle(owner.handle)
          assert.deepStrictEqual(yield* runtime.liveResources, before)
          yield* runtime.eventDestroy(event.ref)
          yield* failsWith(CudaEvent.query(event), "ResourceReleased")
          yield* CudaEvent.record(owner, stream)
          yield* CudaEvent.synchronize(owner)
        })
      ))

    it.effect("are waited for while others record them, and waits can be interrupted", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const event = yield* CudaEvent.fromHandle(owner.handle)
          yield* (yield* Busy).enqueue(stream, 100)
          yield* CudaEvent.record(owner, stream)
          const fiber = yield* started(CudaEvent.synchronize(event))
          yield* Fiber.interrupt(fiber)
          const waiting = yield* started(CudaEvent.synchronize(event))
          yield* CudaEvent.record(event, stream)
          yield* Fiber.join(waiting)
          yield* CudaStream.synchronize(stream)
        })
      ))

    it.effect("measure time if they do in fact", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const end = yield* CudaEvent.make({ timing: true })
          const [first, last] = [
            yield* CudaEvent.fromHandle(owner.handle, { timing: true }),
            yield* CudaEvent.fromHandle(end.handle, { timing: true })
          ]
          assert.isTrue(CudaEvent.isTimedEvent(first))
          yield* failsWith(CudaEvent.elapsedTime(first, last), "InvalidHandle")
          yield* CudaEvent.record(owner, stream)
          yield* (yield* Busy).enqueue(stream, 10)
          yield* CudaEvent.record(last, stream)
          yield* failsWith(CudaEvent.elapsedTime(first, last), "NotFinished")
          yield* CudaEvent.synchronize(last)
          assert.isAtLeast(Duration.toMillis(yield* CudaEvent.elapsedTime(first, last)), 5)
          const untimed = yield* CudaEvent.make()
          yield* CudaEvent.record(untimed, stream)
          yield* CudaStream.synchronize(stream)
          const forced = yield* CudaEvent.fromHandle(untimed.handle, { timing: true })
          yield* failsWith(CudaEvent.elapsedTime(first, forced), "InvalidHandle")
        })
      ))

    it.effect("are outside of recordings, unless they are recorded inside", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const event = yield* CudaEvent.fromHandle(owner.handle)
          const outside = CudaGraph.record(CudaEvent.wait(event))
          assert.include((yield* failsWith(outside, "CannotRecord")).because, "recorded outside")
          const buffer = yield* CudaMemory.allocate(64)
          const timed = yield* CudaEvent.fromHandle(owner.handle, { timing: true })
          const graph = yield* CudaGraph.record(Effect.andThen(CudaMemory.fill(buffer, 1), CudaEvent.record(timed)))
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), stream)
          yield* CudaEvent.synchronize(owner)
          yield* CudaEvent.synchronize(timed)
        })
      ))

    it.effect("must be handles", () =>
      withOwner((owner) =>
        Effect.gen(function*() {
          for (const wrong of [0, -1, 0.5, Number.NaN, 2 ** 53, 0n, -1n, 2n ** 60n]) {
            yield* refuses(CudaEvent.fromHandle(wrong), "handle")
          }
          yield* refuses(CudaEvent.fromHandle(owner.handle, { device: 99 }), "device")
        })
      ))
  })
