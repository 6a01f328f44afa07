/**
 * Streams: every row of the reference system, and every invalid request.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaEvent, CudaGraph, CudaMemory, CudaRuntime, CudaStream } from "effect-cuda"
import { unchecked } from "effect-cuda/CheckedRuntime"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Hash from "effect/Hash"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

export const streamContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("streams", (it) => {
    it.effect("are non-blocking and lowest priority by default, with unique ids", () =>
      leavesNothing(Effect.gen(function*() {
        const [first, second] = [yield* CudaStream.make(), yield* CudaStream.make()]
        assert.isTrue(first.isNonBlocking)
        assert.strictEqual(first.flags, 1)
        assert.strictEqual(first.priority, (yield* CudaDevice.priorityRange()).least)
        assert.strictEqual(first.origin, "owned")
        assert.strictEqual(first.deviceIndex, 0)
        assert.strictEqual(first.device, yield* CudaDevice.get(0))
        assert.notStrictEqual(first.id, 0)
        assert.notStrictEqual(first.id, second.id)
        const blocking = yield* CudaStream.make({ nonBlocking: false })
        assert.deepStrictEqual([blocking.isNonBlocking, blocking.flags], [false, 0])
      })))

    it.effect("accept a priority by name or number", () =>
      leavesNothing(Effect.gen(function*() {
        const { greatest, least } = yield* CudaDevice.priorityRange()
        assert.strictEqual((yield* CudaStream.make({ priority: "high" })).priority, greatest)
        assert.strictEqual((yield* CudaStream.make({ priority: "low" })).priority, least)
        assert.strictEqual((yield* CudaStream.make({ priority: -1 })).priority, -1)
        assert.strictEqual((yield* CudaStream.make({ priority: -100, outOfRange: "clamp" })).priority, greatest)
      })))

    it.effect("have the name they were made with, which messages show", () =>
      leavesNothing(Effect.gen(function*() {
        const scope = yield* Scope.make()
        const stream = yield* Scope.provide(CudaStream.make({ name: "uploads" }), scope)
        assert.strictEqual(stream.name, "uploads")
        assert.strictEqual(String(stream), `CudaStream("uploads", id ${stream.id}, device 0, non-blocking)`)
        assert.strictEqual((yield* CudaStream.make()).name, undefined)
        assert.strictEqual((yield* CudaStream.make({ name: "" })).name, "")
        yield* Scope.close(scope, Exit.void)
        const error = yield* Effect.flip(CudaStream.query(stream))
        assert.include(error.message, `stream ${stream.id} "uploads" of device 0`)
      })))

    it.effect("reject a name that is no text", () =>
      leavesNothing(Effect.gen(function*() {
        // @ts-expect-error: a name is a string
        const numbered = CudaStream.make({ name: 7 })
        yield* refuses(numbered, "name")
        yield* refuses(CudaGraph.record(Effect.andThen(numbered, Effect.void)), "name")
      })))

    for (const priority of [100, -100, 0.5, Number.NaN]) {
      it.effect(`reject priority ${priority}`, () =>
        leavesNothing(Effect.gen(function*() {
          yield* refuses(CudaStream.make({ priority }), "priority")
          yield* refuses(CudaStream.fromPool({ priority, outOfRange: "fail" }), "priority")
        })))
    }

    it.effect("report whether their work is done", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        assert.isTrue(yield* CudaStream.query(stream))
        yield* busy.enqueue(stream, 30)
        assert.isFalse(yield* CudaStream.query(stream))
        yield* CudaStream.synchronize(stream)
        assert.isTrue(yield* CudaStream.query(stream))
      })))

    it.effect("synchronize covers only the work enqueued before the call", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        yield* busy.enqueue(stream, 20)
        const waiting = yield* Effect.forkChild(CudaStream.synchronize(stream), { startImmediately: true })
        yield* busy.enqueue(stream, 300)
        yield* Fiber.join(waiting)
        assert.isFalse(yield* CudaStream.query(stream))
      })))

    it.effect("wait for an event of another stream", () =>
      leavesNothing(Effect.gen(function*() {
        const { device, host, reader, writer } = yield* twoStreams
        const written = yield* CudaStream.recordEvent(writer)
        assert.strictEqual(written.flags, 2)
        yield* CudaStream.waitEvent(reader, written)
        yield* CudaMemory.copy(host, device, reader)
        yield* CudaStream.synchronize(reader)
        assert.isTrue(host.bytes.every((byte) => byte === 7))
      })))

    it.effect("wait for all work of another stream", () =>
      leavesNothing(Effect.gen(function*() {
        const { device, host, reader, writer } = yield* twoStreams
        yield* reader.pipe(CudaStream.waitStream(writer))
        yield* CudaMemory.copy(host, device, reader)
        yield* CudaStream.synchronize(reader)
        assert.isTrue(host.bytes.every((byte) => byte === 7))
      })))

    it.effect("do not wait for an event never recorded", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const event = yield* CudaEvent.make()
        yield* stream.pipe(CudaStream.waitEvent(event))
        yield* CudaEvent.wait(event, stream)
        assert.isTrue(yield* CudaStream.query(stream))
      })))

    it.effect("wait for the record that was current at the call, not a later one", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [first, second] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const event = yield* CudaEvent.make()
        yield* busy.enqueue(first, 20)
        yield* CudaEvent.record(event, first)
        yield* CudaStream.waitEvent(second, event)
        yield* busy.enqueue(first, 300)
        yield* CudaEvent.record(event, first)
        yield* CudaStream.synchronize(second)
        assert.isFalse(yield* CudaStream.query(first))
        assert.isFalse(yield* CudaEvent.query(event))
      })))

    it.effect("record an event and return it", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const event = yield* CudaEvent.make({ timing: true })
        assert.strictEqual(yield* CudaStream.recordEvent(stream, event), event)
      })))

    it.effect("default streams always exist, the legacy one with id 0", () =>
      leavesNothing(Effect.gen(function*() {
        const legacy = yield* CudaStream.defaultStream()
        const perThread = yield* CudaStream.defaultStream({ mode: "perThread" })
        assert.deepStrictEqual([legacy.id, legacy.handle, perThread.handle], [0, 1, 2])
        assert.notStrictEqual(perThread.id, 0)
        assert.isTrue(Equal.equals(legacy, yield* CudaStream.defaultStream()))
        assert.isFalse(Equal.equals(legacy, perThread))
        for (const stream of [legacy, perThread]) {
          yield* everyOperation(stream)
          yield* stream.runtime.streamDestroy(stream.ref)
          yield* everyOperation(stream)
        }
      })))

    it.effect("wrap a foreign stream without owning it", () =>
      leavesNothing(Effect.gen(function*() {
        const made = yield* CudaStream.make({ priority: "high", nonBlocking: false })
        const wrapped = yield* Effect.scoped(CudaStream.fromHandle(made.handle))
        assert.strictEqual(wrapped.id, made.id)
        assert.strictEqual(wrapped.priority, made.priority)
        assert.strictEqual(wrapped.isNonBlocking, made.isNonBlocking)
        assert.strictEqual(wrapped.origin, "foreign")
        yield* wrapped.runtime.streamDestroy(wrapped.ref)
        yield* everyOperation(wrapped)
        yield* everyOperation(made)
        assert.strictEqual((yield* CudaStream.fromHandle(BigInt(made.handle))).id, made.id)
      })))

    it.effect("end with the stream, for a wrapper of it too", () =>
      leavesNothing(Effect.gen(function*() {
        const { enqueue } = yield* Busy
        const scope = yield* Scope.make()
        const made = yield* Scope.provide(CudaStream.make(), scope)
        const wrapped = yield* CudaStream.fromHandle(made.handle)
        const buffer = yield* CudaMemory.allocate(64)
        yield* enqueue(made, 40)
        yield* CudaMemory.fill(buffer, 1, wrapped)
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
        yield* failsWith(CudaMemory.fill(buffer, 2, wrapped), "ResourceReleased")
        yield* Fiber.join(closing)
        yield* failsWith(CudaStream.query(wrapped), "ResourceReleased")
        yield* failsWith(CudaStream.recordEvent(wrapped), "ResourceReleased")
      })))

    it.effect.skipIf(rig.deviceCount < 2)("refuse to wrap a stream of another device", () =>
      leavesNothing(Effect.gen(function*() {
        const far = yield* CudaStream.make({ device: 1 })
        yield* failsWith(CudaStream.fromHandle(far.handle, { device: 0 }), "InvalidContext")
        assert.strictEqual((yield* CudaStream.fromHandle(far.handle, { device: 1 })).id, far.id)
      })))

    it.effect("the handles of the default streams wrap to them", () =>
      leavesNothing(Effect.gen(function*() {
        const [legacy, perThread] = [
          yield* CudaStream.defaultStream(),
          yield* CudaStream.defaultStream({ mode: "perThread" })
        ]
        for (const [handle, stream] of [[0, legacy], [1, legacy], [2, perThread]] as const) {
          const wrapped = yield* CudaStream.fromHandle(handle)
          assert.isTrue(Equal.equals(wrapped, stream))
          yield* everyOperation(wrapped)
        }
        yield* refuses(CudaStream.defaultStream({ mode: "other" as "legacy" }), "mode")
      })))

    for (const handle of [-1, 0.5, Number.NaN, 2 ** 60]) {
      it.effect(`reject handle ${handle}`, () =>
        refuses(CudaStream.fromHandle(handle), "handle"))
    }

    it.effect("are equal with equal hashes when they are the same stream", () =>
      leavesNothing(Effect.gen(function*() {
        const made = yield* CudaStream.make()
        const wrapped = yield* CudaStream.fromHandle(made.handle)
        assert.isTrue(Equal.equals(made, wrapped))
        assert.strictEqual(Hash.hash(made), Hash.hash(wrapped))
        assert.isFalse(Equal.equals(made, yield* CudaStream.make()))
      })))

    it.effect("withStream sets the current stream per device and restores it on every exit", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const id = Effect.map(CudaStream.current(), (current) =>
          current.id)
        assert.strictEqual(yield* id, 0)
        const nested = Effect.gen(function*() {
          assert.strictEqual(yield* id, stream.id)
          const inner = yield* CudaStream.make()
          assert.strictEqual(yield* CudaStream.withStream(id, inner), inner.id)
          assert.strictEqual(yield* id, stream.id)
        })
        yield* Effect.scoped(CudaStream.withStream(nested, stream))
        yield* Effect.exit(CudaStream.withStream(Effect.die("no"), stream))
        yield* Effect.exit(CudaStream.withStream(Effect.interrupt, stream))
        assert.strictEqual(yield* id, 0)
      })))

    it.effect("operations without a stream use the current one", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(64)
        const host = yield* CudaMemory.allocateHost(64)
        const event = yield* CudaEvent.make()
        yield* Effect.gen(function*() {
          yield* busy.enqueue(stream, 20)
          yield* CudaMemory.fill(device, 9)
          yield* CudaMemory.copy(host, device)
          yield* CudaEvent.record(event)
          assert.isFalse(yield* CudaEvent.query(event))
          yield* CudaEvent.wait(event)
        }).pipe(CudaStream.withStream(stream))
        yield* CudaEvent.synchronize(event)
        assert.isTrue(host.bytes.every((byte) => byte === 9))
      })))

    it.effect.skipIf(rig.deviceCount < 2)("withStream sets stream and device, and each device keeps its own", () =>
      leavesNothing(Effect.gen(function*() {
        const other = yield* CudaStream.make({ device: 1 })
        assert.strictEqual(other.deviceIndex, 1)
        yield* Effect.gen(function*() {
          assert.strictEqual((yield* CudaDevice.current).index, 1)
          assert.strictEqual((yield* CudaStream.make()).deviceIndex, 1)
          assert.strictEqual((yield* CudaStream.current(0)).id, 0)
          const onFirst = CudaDevice.withDevice(CudaStream.current(), 0)
          assert.strictEqual((yield* onFirst).deviceIndex, 0)
          assert.strictEqual((yield* CudaStream.current()).id, other.id)
        }).pipe(CudaStream.withStream(other))
        assert.strictEqual((yield* CudaDevice.current).index, 0)
      })))

    it.effect.skipIf(rig.deviceCount < 2)(
      "the current stream is that of the current device, whatever the event's is",
      () =>
        leavesNothing(Effect.gen(function*() {
          const busy = yield* Busy
          const near = yield* CudaStream.make({ device: 0 })
          const far = yield* CudaStream.make({ device: 1 })
          const event = yield* CudaEvent.make({ device: 0 })
          yield* busy.enqueue(near, 40)
          yield* CudaEvent.record(event, near)
          yield* CudaEvent.wait(event).pipe(CudaStream.withStream(far))
          assert.isFalse(yield* CudaStream.query(far))
          yield* failsWith(CudaEvent.record(event).pipe(CudaStream.withStream(far)), "DeviceMismatch")
          yield* CudaStream.synchronize(far)
          assert.isTrue(yield* CudaStream.query(near))
        }))
    )

    it.effect.skipIf(rig.deviceCount < 2)("wait for events of another device", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const near = yield* CudaStream.make({ device: 0 })
        const far = yield* CudaStream.make({ device: 1 })
        yield* busy.enqueue(near, 30)
        yield* CudaStream.waitStream(far, near)
        assert.isFalse(yield* CudaStream.query(far))
        yield* CudaStream.synchronize(far)
        assert.isTrue(yield* CudaStream.query(near))
      })))

    it.effect("only blocking streams synchronize with the legacy default stream", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const legacy = yield* CudaStream.defaultStream()
        const blocking = yield* CudaStream.make({ nonBlocking: false })
        const free = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(64)
        yield* busy.enqueue(blocking, 40)
        yield* CudaMemory.fill(buffer, 1, legacy)
        yield* unchecked(CudaMemory.fill(buffer, 1, free))
        yield* CudaStream.synchronize(free)
        assert.isFalse(yield* CudaStream.query(legacy))
        yield* CudaStream.synchronize(legacy)
        assert.isTrue(yield* CudaStream.query(blocking))
      })))
  })

/** Pooled streams live as long as the runtime, so these tests do not count remaining resources. */
export const poolContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("pooled streams", (it) => {
    it.effect("are 32 per device and priority, round-robin: the 33rd request gets the 1st again", () =>
      Effect.gen(function*() {
        const request = CudaStream.fromPool({ priority: -2 })
        const streams = yield* Effect.forEach(Array.from({ length: 64 }), () => request)
        assert.strictEqual(new Set(streams.map((stream) => stream.id)).size, 32)
        for (const [index, stream] of streams.slice(0, 32).entries()) {
          assert.strictEqual(streams[index + 32], stream)
          assert.isTrue(stream.isNonBlocking)
          assert.strictEqual(stream.priority, -2)
        }
        const other = yield* CudaStream.fromPool({ priority: -1 })
        assert.isFalse(streams.some((stream) => stream.id === other.id))
      }))

    it.effect("are created once each under concurrent requests", () =>
      Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime.CudaRuntime
        const before = yield* liveResources
        const request = CudaStream.fromPool({ priority: "high" })
        const streams = yield* Effect.forEach(Array.from({ length: 96 }), () => request, { concurrency: "unbounded" })
        assert.strictEqual(new Set(streams.map((stream) => stream.id)).size, 32)
        assert.strictEqual((yield* liveResources).streams - before.streams, 32)
      }))

    it.effect("survive the scope that requested them", () =>
      Effect.gen(function*() {
        const stream = yield* Effect.scoped(CudaStream.fromPool())
        yield* everyOperation(stream).pipe(Effect.scoped)
      }))

    it.effect("clamp a priority outside the range", () =>
      Effect.gen(function*() {
        const { greatest, least } = yield* CudaDevice.priorityRange()
        assert.strictEqual((yield* CudaStream.fromPool({ priority: 100 })).priority, least)
        assert.strictEqual((yield* CudaStream.fromPool({ priority: -100 })).priority, greatest)
      }))
  })

/** A buffer that `writer` fills with 7s after a delay, and a host buffer that `reader` copies it to. */
const twoStreams = Effect.gen(function*() {
  const busy = yield* Busy
  const [writer, reader] = [yield* CudaStream.make(), yield* CudaStream.make()]
  const device = yield* CudaMemory.allocate(4096)
  const host = yield* CudaMemory.allocateHost(4096)
  host.bytes.fill(0)
  yield* busy.enqueue(writer, 30)
  yield* CudaMemory.fill(device, 7, writer)
  return { writer, reader, device, host }
})

/** Every operation that takes a stream, each checked. */
const everyOperation = (stream: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const device = yield* CudaMemory.allocate(64)
    const host = yield* CudaMemory.allocateHost(64)
    const event = yield* CudaStream.recordEvent(stream)
    yield* CudaStream.waitEvent(stream, event)
    yield* CudaStream.waitStream(stream, stream)
    yield* CudaMemory.fill(device, 5, stream)
    yield* CudaMemory.copy(host, device, stream)
    yield* CudaEvent.record(event, stream)
    yield* CudaEvent.synchronize(event)
    yield* CudaStream.synchronize(stream)
    assert.isTrue(yield* CudaStream.query(stream))
    assert.isTrue(host.bytes.every((byte) => byte === 5))
  })
