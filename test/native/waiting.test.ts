/**
 * Waiting on pending work: what a wait covers, how it ends and what it costs, and that nothing is freed while the GPU may
 * still use it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaMemory from "effect-cuda/CudaMemory"
import { CudaRuntime, CurrentWaitOptions } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { constants } from "node:buffer"
import { readFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { refuses } from "../support/assertions.ts"
import { settled } from "../support/fibers.ts"
import { giveAway, viewing } from "../support/giveAway.ts"
import { runChild } from "../support/stub/child.ts"
import {
  assertQuiet,
  assertReleased,
  logged,
  nothingLive,
  onStub,
  openStub,
  pause,
  until
} from "../support/stubDriver.ts"
import { begin, failureOf, isPending, succeeds } from "../support/waits.ts"

const stub = openStub()
const segment = 16 * 1024 * 1024

const held = Effect.flatMap(CudaRuntime, (runtime) => runtime.liveResources)

/** A stream with work that stays pending. */
const busyStream = Effect.tap(CudaStream.make(), (stream) => Effect.sync(() => stub.work(stream)))

/** A native runtime whose release is the test's own. */
const openRuntime = (options: NativeRuntime.NativeOptions = {}) =>
  Effect.gen(function*() {
    stub.reset()
    const scope = yield* Scope.make()
    const runtime = yield* Scope.provide(NativeRuntime.make({ libraryPath: stub.path, ...options }), scope)
    return {
      runtime,
      scope,
      close: Scope.close(scope, Exit.void),
      use: <A, E>(effect: Effect.Effect<A, E, CudaRuntime | Scope.Scope>) =>
        Effect.provideService(Scope.provide(effect, scope), CudaRuntime, runtime)
    }
  })

describe("a wait", () => {
  it.live("for an event suspends until its record is done", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const event = yield* CudaStream.recordEvent(stream)
        const fiber = yield* begin(CudaEvent.synchronize(event))
        assert.isTrue(isPending(fiber))
        assert.strictEqual((yield* held).waits, 1)
        stub.finish(stream)
        yield* succeeds(fiber)
        assert.strictEqual((yield* held).waits, 0)
      })
    ))

  it.live("for a never-recorded event ends at once", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const event = yield* CudaEvent.make()
        stub.clear()
        yield* CudaEvent.synchronize(event)
        assert.lengthOf(stub.calls(), 1)
      })
    ))

  it.live("for a stream covers only the work enqueued before it", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const fiber = yield* begin(CudaStream.synchronize(stream))
        stub.work(stream)
        assert.isTrue(isPending(fiber))
        stub.finish(stream, 1)
        yield* succeeds(fiber)
        assert.isFalse(yield* CudaStream.query(stream))
        stub.finishAll()
      })
    ))

  it.live("keeps its record when the event is re-recorded", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const event = yield* CudaStream.recordEvent(stream)
        const old = yield* begin(CudaEvent.synchronize(event))
        stub.work(stream)
        yield* CudaEvent.record(event, stream)
        const fresh = yield* begin(CudaEvent.synchronize(event))
        stub.finish(stream, 1)
        yield* succeeds(old)
        assert.isTrue(isPending(fresh))
        stub.finish(stream, 1)
        yield* succeeds(fresh)
      })
    ))

  it.live("keeps its record when a new one on another stream ends first", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const [slow, quick] = yield* Effect.all([busyStream, CudaStream.make()])
        const event = yield* CudaStream.recordEvent(slow)
        const old = yield* begin(CudaEvent.synchronize(event))
        yield* CudaEvent.record(event, quick)
        yield* CudaEvent.synchronize(event)
        yield* pause(3)
        assert.isTrue(isPending(old))
        stub.finish(slow)
        yield* succeeds(old)
      })
    ))

  it.live("survives a hundred re-records of its event, each awaited", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const event = yield* CudaEvent.make()
        const fibers: Array<Fiber.Fiber<void, CudaError>> = []
        for (let index = 0; index < 100; index++) {
          stub.work(stream)
          yield* CudaEvent.record(event, stream)
          fibers.push(yield* Effect.forkChild(CudaEvent.synchronize(event)))
          yield* Effect.yieldNow
        }
        yield* pause(2)
        assert.strictEqual((yield* held).waits, 100)
        for (let done = 1; done <= 100; done += 33) {
          stub.finish(stream, done === 1 ? 1 : 33)
          yield* until(`${done} have ended`, () => fibers.filter((fiber) => !isPending(fiber)).length >= done)
          assert.strictEqual(fibers.filter((fiber) => !isPending(fiber)).length, done)
        }
        assert.isTrue(fibers.every((fiber) => !isPending(fiber)))
      })
    ))

  it.live("continues when its event is released; the last wait destroys the event", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const { event, fibers } = yield* Effect.scoped(Effect.gen(function*() {
          const event = yield* CudaStream.recordEvent(stream)
          const synchronize = CudaEvent.synchronize(event)
          return { event, fibers: [yield* begin(synchronize), yield* begin(synchronize)] as const }
        }))
        assert.strictEqual((yield* held).events, 0)
        assert.lengthOf(stub.calls("cuEventDestroy_v2"), 0)
        yield* Fiber.interrupt(fibers[0])
        assert.lengthOf(stub.calls("cuEventDestroy_v2"), 0)
        stub.finish(stream)
        yield* succeeds(fibers[1])
        assert.deepStrictEqual(stub.calls("cuEventDestroy_v2").map(({ args }) => args), [[event.handle]])
      })
    ))

  it.live("continues when its event is re-recorded and then released", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const fiber = yield* Effect.scoped(Effect.gen(function*() {
          const event = yield* CudaStream.recordEvent(stream)
          const fiber = yield* begin(CudaEvent.synchronize(event))
          yield* CudaEvent.record(event, stream)
          return fiber
        }))
        assert.lengthOf(stub.calls("cuEventDestroy_v2"), 1)
        assert.isTrue(isPending(fiber))
        stub.finish(stream)
        yield* succeeds(fiber)
      })
    ))

  it.live("for an event of another process ends with it", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const remote = stub.remoteEvent()
        const event = yield* CudaEvent.fromIpcHandle(remote.handle)
        const fiber = yield* begin(CudaEvent.synchronize(event))
        assert.isTrue(isPending(fiber))
        remote.finish()
        yield* succeeds(fiber)
      })
    ))

  it.live("for a device covers its streams, including default ones, and no other device's", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const other = yield* CudaStream.make({ device: 1 })
        stub.work(other)
        const legacy = yield* CudaStream.defaultStream()
        stub.work(legacy)
        const fiber = yield* begin(CudaDevice.synchronize(0))
        stub.finish(stream)
        yield* pause(2)
        assert.isTrue(isPending(fiber))
        stub.finish(legacy)
        yield* succeeds(fiber)
        stub.finish(other)
      }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("after a failed record still covers the previous record", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const [slow, quick] = yield* Effect.all([busyStream, busyStream])
        const event = yield* CudaStream.recordEvent(slow)
        stub.fail("cuEventRecord", 1)
        yield* Effect.flip(CudaEvent.record(event, quick))
        const first = yield* begin(CudaEvent.synchronize(event))
        const second = yield* begin(CudaEvent.synchronize(yield* CudaStream.recordEvent(quick)))
        stub.finish(quick)
        yield* until("the wait for the quick stream ends", () => !isPending(second))
        assert.isTrue(isPending(first))
        stub.finish(slow)
        yield* succeeds(first)
      })
    ))
})

describe("wait options that are no duration", () => {
  for (const pollFor of ["soon", null, [1], true]) {
    it.live(`are refused as ${JSON.stringify(pollFor)}, and nothing is left waiting`, () =>
      onStub(
        stub,
        Effect.gen(function*() {
          const runtime = yield* CudaRuntime
          const stream = yield* CudaStream.make()
          stub.work(stream)
          const wait = Effect.provideService(CudaStream.synchronize(stream), CurrentWaitOptions, {
            pollFor: pollFor as never
          })
          yield* refuses(wait, "pollFor")
          assert.strictEqual((yield* runtime.liveResources).waits, 0)
          stub.finish(stream)
        })
      ))
  }
})

describe("interrupting waits", () => {
  it.live("is immediate, and returns their markers for reuse", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        for (let round = 0; round < 20; round++) {
          const fiber = yield* begin(CudaStream.synchronize(stream))
          const before = performance.now()
          yield* Fiber.interrupt(fiber)
          assert.isBelow(performance.now() - before, 50)
        }
        assert.strictEqual((yield* held).waits, 0)
        assert.lengthOf(stub.calls("cuEventCreate"), 1)
        stub.finish(stream)
      })
    ))

  it.live("later, or all at once, leaves nothing behind", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const event = yield* CudaStream.recordEvent(stream)
        const waits = [CudaEvent.synchronize(event), CudaStream.synchronize(stream), CudaDevice.synchronize()]
        const fibers = yield* Effect.forEach(Array.from({ length: 30 }), (_, index) => begin(waits[index % 3]!))
        yield* pause(5)
        assert.strictEqual((yield* held).waits, 30)
        yield* Fiber.interruptAll(fibers)
        assert.strictEqual((yield* held).waits, 0)
        stub.clear()
        yield* pause(5)
        assert.deepStrictEqual(stub.lines(), [])
        stub.finish(stream)
      })
    ))

  it.live("of one of many waits for a record does not affect the others", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const event = yield* CudaStream.recordEvent(stream)
        const fibers = yield* Effect.forEach(Array.from({ length: 3 }), () => begin(CudaEvent.synchronize(event)))
        yield* Fiber.interrupt(fibers[0]!)
        yield* CudaEvent.record(event, stream)
        yield* Fiber.interrupt(fibers[1]!)
        assert.isTrue(isPending(fibers[2]!))
        stub.finish(stream)
        yield* succeeds(fibers[2]!)
      })
    ))

  it.live("happens to the remaining waits when a wait for many streams fails", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* Effect.all([busyStream, busyStream, busyStream])
        stub.fail("cuEventRecord", 1)
        yield* Effect.flip(CudaDevice.synchronize())
        stub.clear()
        yield* pause(5)
        assert.deepStrictEqual(stub.lines(), [])
        stub.finishAll()
      })
    ))
})

describe("a thousand concurrent waits", () => {
  const count = 1000

  it.live("on several streams end in stream order, with one query per stream and turn", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const streams = yield* Effect.all(Array.from({ length: 5 }, () => CudaStream.make()))
        const order: Array<readonly [number, number]> = []
        const fibers: Array<Fiber.Fiber<void, CudaError>> = []
        for (let index = 0; index < count; index++) {
          const stream = streams[index % 5]!
          stub.work(stream)
          const wait = Effect.tap(
            CudaStream.synchronize(stream),
            () => Effect.sync(() => order.push([index % 5, index]))
          )
          fibers.push(yield* Effect.forkChild(wait))
          yield* Effect.yieldNow
        }
        yield* pause(5)
        assert.strictEqual((yield* held).waits, count)
        stub.clear()
        yield* pause(3)
        const asked = new Set(stub.calls("cuEventQuery").map(({ args }) => args[0]))
        assert.isAtMost(asked.size, 5)
        stub.finish(streams[0]!, 100)
        yield* until("a hundred have ended", () => order.length >= 100)
        assert.deepStrictEqual([order.length, order.every(([stream]) => stream === 0)], [100, true])
        stub.finishAll()
        yield* until("all have ended", () => order.length >= count)
        for (const each of streams.keys()) {
          const indices = order.filter(([stream]) => stream === each).map(([, index]) => index)
          assert.deepStrictEqual(indices, [...indices].sort((a, b) => a - b))
        }
        yield* Fiber.joinAll(fibers)
        assert.strictEqual((yield* held).waits, 0)
      })
    ))

  it.live("hold no pool thread, and leave the event loop running", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const fibers = yield* Effect.forEach(
          Array.from({ length: count }),
          () => Effect.forkChild(CudaStream.synchronize(stream))
        )
        yield* pause(2)
        const before = performance.now()
        const files = Array.from({ length: 8 }, () => readFile(fileURLToPath(import.meta.url)))
        yield* Effect.promise(() => Promise.all(files))
        assert.isBelow(performance.now() - before, 500)
        assert.isTrue(fibers.every(isPending))
        yield* Fiber.interruptAll(fibers)
        stub.finish(stream)
      })
    ))
})

describe("a fault while fibers wait", () => {
  it.live("fails every wait of the device promptly, with the call that reported it", () =>
    logged(onStub(
      stub,
      Effect.gen(function*() {
        const streams = yield* Effect.all([busyStream, busyStream, busyStream])
        const fibers = yield* Effect.forEach(streams, (stream) => begin(CudaStream.synchronize(stream)))
        stub.fault = 700
        const before = performance.now()
        const errors = yield* Effect.forEach(fibers, failureOf)
        assert.isBelow(performance.now() - before, 500)
        for (const error of errors) {
          assert.strictEqual(error.reason._tag, "IllegalAddress")
          assert.strictEqual(error.operation, "CudaStream.synchronize")
          assert.strictEqual(error.call, "cuEventQuery")
        }
        assert.strictEqual(errors.filter((error) => error.origin === undefined).length, 1)
        assert.strictEqual((yield* held).waits, 0)
        stub.finishAll()
      })
    )))

  it.live("does not affect the waits of another device", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const here = yield* busyStream
        const there = yield* CudaStream.make({ device: 1 })
        stub.work(there)
        const failing = yield* begin(CudaStream.synchronize(here))
        const event = yield* CudaStream.recordEvent(here)
        stub.fail("cuEventQuery", 719)
        yield* failureOf(failing)
        const waiting = yield* begin(CudaStream.synchronize(there))
        stub.finish(there)
        yield* succeeds(waiting)
        stub.finish(here)
        yield* CudaEvent.synchronize(event)
      }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("is never reported as not ready", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        yield* CudaStream.make()
        stub.pending = "memory"
        stub.fail("cuEventCreate", 2)
        const error = yield* Effect.flip(runtime.memoryAllocate(0, 64))
        assert.strictEqual(error.reason._tag, "OutOfMemory")
        assert.strictEqual(error.call, "cuEventCreate")
        stub.pending = "nothing"
        stub.finishAll()
      })
    ))
})

describe("the stages of a wait", () => {
  const questions = (): number => stub.calls("cuEventQuery").reduce((sum, { times }) => sum + times, 0)

  it.live("started newest first use few internal streams, and one afterwards", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const events = yield* Effect.forEach(Array.from({ length: 40 }), () => CudaEvent.make({ blocking: true }))
        yield* Effect.forEach(events, (event) => CudaEvent.record(event, stream))
        const before = stub.live.streams
        const fibers = yield* Effect.forEach([...events].reverse(), (event) => begin(CudaEvent.synchronize(event)))
        assert.isAtMost(stub.live.streams - before, 4)
        stub.finishAll()
        yield* Effect.forEach(fibers, succeeds)
        assert.isAtMost(stub.live.streams - before, 1)
      })
    ))

  it.live("without wake-ups: every turn at first, then a timer", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const fiber = yield* begin(CudaStream.synchronize(stream))
        yield* pause(30)
        stub.clear()
        yield* pause(100)
        assert.isAtLeast(questions(), 2)
        assert.isAtMost(questions(), 110)
        assert.lengthOf(stub.calls("cuLaunchHostFunc"), 0)
        stub.finish(stream)
        yield* succeeds(fiber)
      }),
      { wait: { pollFor: "20 millis", wakeUp: false } }
    ))

  it.live("with wake-ups: the GPU is armed once to wake the loop, with few queries afterwards", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const fiber = yield* begin(CudaStream.synchronize(stream))
        yield* until("the wake-up is arranged", () => stub.calls("cuLaunchHostFunc").length > 0)
        const [side] = stub.calls("cuLaunchHostFunc")[0]!.args
        assert.notStrictEqual(side, stream.handle)
        const marker = stub.calls("cuEventRecord")[0]!.args[0]!
        assert.deepStrictEqual(stub.calls("cuStreamWaitEvent").map(({ args }) => args), [[side, marker, 0]])
        stub.clear()
        yield* pause(100)
        assert.isAtMost(questions(), 10)
        const before = performance.now()
        stub.finish(stream)
        yield* succeeds(fiber)
        assert.isBelow(performance.now() - before, 20)
      }),
      { wait: { pollFor: 0 } }
    ))

  const broken = ["cuLaunchHostFunc", "cuStreamWaitEvent", "cuStreamCreateWithPriority"] as const
  for (const name of broken) {
    it.live(`when ${name} fails the wait continues without the wake-up`, () =>
      onStub(
        stub,
        Effect.gen(function*() {
          const stream = yield* busyStream
          stub.fail(name, 1, { times: -1 })
          const fiber = yield* begin(CudaStream.synchronize(stream))
          yield* pause(10)
          assert.isAbove(stub.calls(name).filter(({ status }) => status === 1).length, 0)
          assert.isTrue(isPending(fiber))
          stub.finish(stream)
          yield* succeeds(fiber)
        }),
        { wait: { pollFor: 0 } }
      ))
  }
})

describe("the release of a stream", () => {
  it.live("waits for its work, rejects more, and leaves the event loop running", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const stream = yield* Scope.provide(busyStream, scope)
        const closing = yield* begin(Scope.close(scope, Exit.void))
        assert.isTrue(isPending(closing))
        assert.lengthOf(stub.calls("cuStreamDestroy_v2"), 0)
        const refused = yield* Effect.flip(CudaStream.query(stream))
        assert.strictEqual(refused.reason._tag, "ResourceReleased")
        stub.finish(stream)
        yield* succeeds(closing)
        assert.lengthOf(stub.calls("cuStreamDestroy_v2").filter(({ args }) => args[0] === stream.handle), 1)
      })
    ))

  it.live("is not interruptible", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const made: Array<CudaStream.CudaStream> = []
        const fiber = yield* begin(Effect.scoped(Effect.andThen(
          Effect.tap(busyStream, (stream) => Effect.sync(() => made.push(stream))),
          Effect.never
        )))
        yield* until("the stream is made", () => made.length > 0)
        const interrupting = yield* begin(Fiber.interrupt(fiber))
        assert.isTrue(isPending(interrupting))
        const destroyed = () => stub.calls("cuStreamDestroy_v2").some(({ args }) => args[0] === made[0]!.handle)
        assert.isFalse(destroyed())
        stub.finish(made[0]!)
        yield* succeeds(interrupting)
        assert.isTrue(destroyed())
      })
    ))

  it.live("that cannot drain it frees no buffer that its work uses", () =>
    logged(onStub(
      stub,
      Effect.gen(function*() {
        const { buffer, stream } = yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* Effect.flatMap(CudaRuntime, (runtime) => runtime.memoryAllocate(0, 64))
          const stream = yield* CudaStream.make()
          stub.pending = "copies"
          const range = { memory: buffer, offset: 0, byteLength: 64 }
          yield* stream.runtime.memoryFill(range, 1, 8, stream.ref)
          stub.fail("cuEventCreate", 2)
          yield* Effect.addFinalizer(() => Effect.sync(() => void (stub.pending = "nothing")))
          yield* Effect.sync(() => setTimeout(() => stub.finishAll(), 10))
          return { buffer, stream }
        }))
        yield* stream.runtime.memoryFree(buffer)
      })
    )))
})

describe("the release of a device buffer", () => {
  it.live("happens on the GPU after the work of each stream that used it", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const [one, two] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        stub.pending = "copies"
        yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(64)
          yield* CudaMemory.fill(buffer, 1, one)
          yield* CudaMemory.fill(buffer, 2, two)
        }))
        assert.strictEqual((yield* held).deviceBuffers, 0)
        assert.strictEqual(stub.live.allocations, 1)
        stub.finish(one)
        assert.strictEqual(stub.live.allocations, 1)
        stub.finish(two)
        assert.strictEqual(stub.live.allocations, 0)
      })
    ))

  it.live("covers a default stream, a foreign stream and a stream of another device", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const legacy = yield* CudaStream.defaultStream()
        const foreign = yield* CudaStream.fromHandle(stub.foreignStream(0))
        const there = yield* CudaStream.make({ device: 1 })
        stub.pending = "copies"
        yield* Effect.scoped(Effect.gen(function*() {
          const from = yield* CudaMemory.allocate(64)
          const to = yield* CudaMemory.allocate(64, { device: 1 })
          yield* CudaMemory.fill(from, 1, legacy)
          yield* CudaMemory.fill(from, 2, foreign)
          yield* CudaMemory.copy(to, from, there)
        }))
        for (const stream of [legacy, foreign]) {
          stub.finish(stream)
          assert.strictEqual(stub.live.allocations, 2)
        }
        stub.finish(there)
        assert.strictEqual(stub.live.allocations, 0)
      }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("is awaited by an allocation on a full device", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.pending = "copies"
        yield* Effect.scoped(
          Effect.flatMap(CudaMemory.allocate(600), (buffer) => CudaMemory.fill(buffer, 1, stream))
        )
        const fiber = yield* begin(CudaMemory.allocate(600))
        assert.isTrue(isPending(fiber))
        stub.finish(stream)
        yield* succeeds(fiber)
        assert.lengthOf(stub.calls("cuMemPoolTrimTo"), 1)
      }),
      { prepare: () => void (stub.memory = 1000) }
    ))

  it.live("does not help when all memory is in use: that fails with OutOfMemory, once", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* CudaMemory.allocate(600)
        const error = yield* Effect.flip(CudaMemory.allocate(600))
        assert.strictEqual(error.reason._tag, "OutOfMemory")
        assert.strictEqual(error.call, "cuMemAllocFromPoolAsync")
        assert.lengthOf(stub.calls("cuMemAllocFromPoolAsync"), 3)
        assert.strictEqual((yield* held).deviceBuffers, 1)
      }),
      { prepare: () => void (stub.memory = 1000) }
    ))
})

describe("pinned memory", () => {
  it.live("is pinned in segments, and copies are split at segment boundaries", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const size = 2 * segment + 4096
        const host = yield* CudaMemory.allocateHost(size)
        const buffer = yield* CudaMemory.allocate(size)
        const registered = stub.calls("cuMemHostRegister_v2").map(({ args }) => args)
        assert.deepStrictEqual(registered.slice(0, 2), [
          [host.address, segment, 1],
          [host.address + segment, segment, 1]
        ])
        assert.strictEqual(registered.length, 3)
        stub.clear()
        yield* CudaMemory.copy(
          CudaMemory.slice(buffer, 0, segment + 200),
          CudaMemory.slice(host, segment - 100, segment + 200),
          stream
        )
        assert.deepStrictEqual(stub.calls("cuMemcpyHtoDAsync_v2").map(({ args }) => args), [
          [buffer.address, host.address + segment - 100, 100, stream.handle],
          [buffer.address + 100, host.address + segment, segment, stream.handle],
          [buffer.address + 100 + segment, host.address + 2 * segment, 100, stream.handle]
        ])
      })
    ))

  it.live("leaves the event loop running between segments", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* CudaStream.make()
        let turns = 0
        const counting = setInterval(() => turns++, 0)
        yield* CudaMemory.allocateHost(4 * segment)
        clearInterval(counting)
        assert.isAtLeast(turns, 3)
      })
    ))

  it.live("detaches its views on release, and is reused at once", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const first = yield* Effect.scoped(Effect.gen(function*() {
          const host = yield* CudaMemory.allocateHost(1000)
          const kept = host.bytes
          assert.strictEqual(CudaMemory.view(host, Float32Array).length, 250)
          return { host, kept }
        }))
        assert.strictEqual(first.kept.byteLength, 0)
        assert.strictEqual(first.host.bytes.byteLength, 0)
        assert.strictEqual((yield* held).hostBytes, 0)
        stub.clear()
        const second = yield* CudaMemory.allocateHost(900)
        assert.strictEqual(second.address, first.host.address)
        assert.strictEqual(second.bytes.byteLength, 900)
        assert.deepStrictEqual(stub.lines(), [])
      })
    ))

  it.live("is not reused before the copies that use it are done", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(1000)
        stub.pending = "copies"
        const first = yield* Effect.scoped(Effect.gen(function*() {
          const host = yield* CudaMemory.allocateHost(1000)
          yield* CudaMemory.copy(buffer, host, stream)
          return host.address
        }))
        const second = yield* CudaMemory.allocateHost(1000)
        assert.notStrictEqual(second.address, first)
        stub.clear()
        stub.finish(stream)
        yield* until("the copies are known to be done", () =>
          stub.calls("cuEventQuery").some(({ status }) => status === 0))
        yield* settled
        const third = yield* CudaMemory.allocateHost(1000)
        assert.strictEqual(third.address, first)
      })
    ))

  it.live("is not reused when its users cannot be waited for", () =>
    logged(onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(1000)
        stub.pending = "copies"
        const first = yield* Effect.scoped(Effect.gen(function*() {
          const host = yield* CudaMemory.allocateHost(1000)
          yield* CudaMemory.copy(buffer, host, stream)
          stub.fail("cuEventCreate", 2)
          return host.address
        }))
        const second = yield* CudaMemory.allocateHost(1000)
        assert.notStrictEqual(second.address, first)
        stub.finish(stream)
      })
    )))

  it.live("that the program gave away is refused", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(1000)
        const host = yield* CudaMemory.allocateHost(1000)
        giveAway(host.bytes.buffer)
        for (const copy of [CudaMemory.copy(device, host, stream), CudaMemory.copy(host, device, stream)]) {
          const error = yield* Effect.flip(copy)
          assert.strictEqual(error.reason._tag, "InvalidArgument")
          assert.include(error.message, "whose ArrayBuffer was transferred")
        }
        yield* refuses(viewing(host), "buffer")
      })
    ))

  it.live("that an array cannot show is OutOfMemory before anything is pinned", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const byteLength = Math.min(Number.MAX_SAFE_INTEGER, constants.MAX_LENGTH + 1)
        const error = yield* Effect.flip(CudaMemory.allocateHost(byteLength))
        assert.strictEqual(error.reason._tag, "OutOfMemory")
        assert.lengthOf(stub.calls("cuMemHostRegister_v2"), 0)
      }),
      { pinned: { maxBytes: Number.MAX_SAFE_INTEGER } }
    ))

  it.live("that the program transferred to another thread is unpinned and not reused", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* Effect.scoped(Effect.gen(function*() {
          const { buffer } = (yield* CudaMemory.allocateHost(segment)).bytes
          giveAway(buffer)
        }))
        yield* until("it is unpinned", () => stub.live.registrations === 0)
        yield* CudaMemory.allocateHost(segment)
        assert.strictEqual(stub.calls("cuMemHostRegister_v2").length, 2)
      })
    ))

  it.live("under the limit, a larger kept block serves a smaller request, even while there is work", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* Effect.scoped(CudaMemory.allocateHost(768 * 1024))
        yield* busyStream
        assert.strictEqual((yield* CudaMemory.allocateHost(512 * 1024)).bytes.byteLength, 512 * 1024)
        stub.finishAll()
      }),
      { pinned: { maxBytes: 1024 * 1024 } }
    ))

  it.live("beyond the limit fails with OutOfMemory, and nothing stays pinned", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const error = yield* Effect.flip(CudaMemory.allocateHost(2 * segment))
        assert.strictEqual(error.reason._tag, "OutOfMemory")
        assert.isTrue(error.isRetryable)
        yield* CudaMemory.allocateHost(segment)
      }),
      { pinned: { maxBytes: segment } }
    ))

  it.live("kept for reuse makes room for an allocation of another size", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* Effect.scoped(CudaMemory.allocateHost(segment))
        const host = yield* CudaMemory.allocateHost(2 * segment)
        assert.strictEqual(host.byteLength, 2 * segment)
      }),
      { pinned: { maxBytes: 2 * segment } }
    ))

  it.live("is unpinned when pinning fails partway", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* CudaStream.make()
        stub.fail("cuMemHostRegister_v2", 1, { after: 2 })
        const error = yield* Effect.flip(CudaMemory.allocateHost(4 * segment))
        assert.strictEqual(error.call, "cuMemHostRegister")
        yield* until("the first two segments are unpinned", () => stub.live.registrations === 0)
        assert.lengthOf(stub.calls("cuMemHostUnregister"), 2)
        assert.strictEqual((yield* held).hostBuffers, 0)
        yield* CudaMemory.allocateHost(4 * segment)
      }),
      { pinned: { maxBytes: 4 * segment } }
    ))

  it.live("beyond keepBytes is unpinned, but only while no stream has work", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.work(stream)
        yield* Effect.scoped(CudaMemory.allocateHost(segment))
        yield* pause(120)
        assert.strictEqual(stub.live.registrations, 1)
        stub.finish(stream)
        yield* until("it is unpinned", () => stub.live.registrations === 0)
      }),
      { pinned: { keepBytes: 0 } }
    ))

  it.live("is pinned completely and then released when the allocation is interrupted", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* CudaStream.make()
        const fiber = yield* Effect.forkChild(Effect.scoped(CudaMemory.allocateHost(3 * segment)))
        yield* until("it is being pinned", () => stub.live.registrations > 0)
        yield* Fiber.interrupt(fiber)
        assert.strictEqual((yield* held).hostBuffers, 0)
      })
    ))
})

describe("the release of the runtime", () => {
  it.live("ends waits that nothing else would end, and reports why", () =>
    Effect.gen(function*() {
      const { close, use } = yield* openRuntime()
      const remote = stub.remoteEvent()
      const event = yield* use(CudaEvent.fromIpcHandle(remote.handle))
      const fiber = yield* begin(CudaEvent.synchronize(event))
      yield* close
      const error = yield* failureOf(fiber)
      assert.strictEqual(error.reason._tag, "ResourceReleased")
      remote.finish()
      assertReleased(stub)
      yield* assertQuiet(stub)
    }))

  it.live("during a device's first use and pinning lets both finish, and leaves nothing behind", () =>
    Effect.gen(function*() {
      for (const begun of ["streamCreate", "hostAllocate"] as const) {
        const { close, runtime } = yield* openRuntime()
        const use: Effect.Effect<unknown, CudaError> = begun === "streamCreate"
          ? runtime.streamCreate({ deviceIndex: 0, priority: "low", nonBlocking: true })
          : runtime.hostAllocate(16 * segment)
        if (begun === "hostAllocate") yield* runtime.devicePriorityRange(0)
        const fiber = yield* Effect.forkDetach(Effect.exit(use), { startImmediately: true })
        yield* close
        yield* Fiber.join(fiber)
        assertReleased(stub)
        yield* assertQuiet(stub)
      }
    }))

  it.live("marks a foreign stream as released", () =>
    Effect.gen(function*() {
      const { close, runtime, use } = yield* openRuntime()
      const own = yield* use(CudaStream.make())
      const foreign = yield* use(CudaStream.fromHandle(own.handle))
      assert.strictEqual((yield* use(CudaStream.fromHandle(own.handle))).ref, foreign.ref)
      yield* close
      const late = [runtime.streamQuery(foreign.ref), runtime.streamWaitStream(foreign.ref, foreign.ref)]
      for (const operation of late) {
        assert.strictEqual((yield* Effect.flip(operation)).reason._tag, "ResourceReleased")
      }
      assertReleased(stub)
    }))

  it.live("waits for the work of its streams, and for releases", () =>
    Effect.gen(function*() {
      const { close, runtime, use } = yield* openRuntime()
      const fibers = yield* use(Effect.gen(function*() {
        const pooled = yield* CudaStream.fromPool()
        const legacy = yield* CudaStream.defaultStream()
        const host = yield* CudaMemory.allocateHost(64)
        const buffer = yield* CudaMemory.allocate(64)
        stub.pending = "copies"
        yield* CudaMemory.copy(buffer, host, pooled)
        yield* CudaMemory.fill(buffer, 1, legacy)
        return [yield* begin(CudaStream.synchronize(pooled)), yield* begin(CudaStream.synchronize(legacy))] as const
      }))
      const closing = yield* begin(close)
      assert.isTrue(isPending(closing))
      stub.finishAll()
      yield* succeeds(closing)
      for (const fiber of fibers) yield* succeeds(fiber)
      assertReleased(stub)
      yield* assertQuiet(stub)
      const refused = yield* Effect.flip(runtime.devicePriorityRange(0))
      assert.strictEqual(refused.reason._tag, "ResourceReleased")
    }))

  it.live("frees the side stream of a record that was replaced on a foreign stream", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        yield* CudaDevice.priorityRange()
        const foreign = yield* CudaStream.fromHandle(stub.foreignStream(0))
        const event = yield* CudaEvent.make()
        stub.work(foreign)
        yield* CudaEvent.record(event, foreign)
        const fiber = yield* begin(CudaEvent.synchronize(event))
        yield* CudaEvent.record(event, foreign)
        stub.finish(foreign)
        yield* succeeds(fiber)
      })
    ))

  it.live("frees the side stream of an interprocess event that is re-recorded during a wait", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const remote = stub.remoteEvent()
        const event = yield* CudaEvent.fromIpcHandle(remote.handle)
        const fiber = yield* begin(CudaEvent.synchronize(event))
        yield* CudaEvent.record(event, stream)
        assert.isTrue(isPending(fiber))
        remote.finish()
        yield* succeeds(fiber)
      })
    ))

  it.live("keeps pinned memory pinned while a foreign stream still copies, and queries nothing later", () =>
    Effect.gen(function*() {
      const { close, use } = yield* openRuntime()
      const foreign = yield* use(Effect.gen(function*() {
        yield* CudaDevice.priorityRange()
        const foreign = yield* CudaStream.fromHandle(stub.foreignStream(0))
        const host = yield* CudaMemory.allocateHost(64)
        const buffer = yield* CudaMemory.allocate(64)
        stub.work(foreign)
        yield* CudaMemory.copy(buffer, host, foreign)
        return foreign
      }))
      const closing = yield* begin(close)
      yield* pause(5)
      stub.finish(foreign)
      yield* succeeds(closing)
      yield* assertQuiet(stub)
      assertReleased(stub)
    }))

  it.live("makes no further driver calls when pinned memory was about to be trimmed", () =>
    Effect.gen(function*() {
      const { close, use } = yield* openRuntime({ pinned: { keepBytes: 0 } })
      yield* use(Effect.scoped(CudaMemory.allocateHost(64)))
      yield* close
      const calls = stub.callCount
      yield* pause(80)
      assert.strictEqual(stub.callCount, calls)
      assertReleased(stub)
    }))

  it.live("of one runtime does not affect another on the same driver", () =>
    Effect.gen(function*() {
      const first = yield* openRuntime()
      const second = yield* Scope.make()
      const other = yield* Scope.provide(NativeRuntime.make({ libraryPath: stub.path }), second)
      const stream = yield* other.streamCreate({ deviceIndex: 0, priority: 0, nonBlocking: true })
      yield* first.use(CudaStream.make())
      assert.strictEqual(stub.live.contexts, 2)
      yield* first.close
      assert.isTrue(yield* other.streamQuery(stream))
      yield* Scope.close(second, Exit.void)
      assert.deepStrictEqual(stub.live, nothingLive)
      assertReleased(stub)
    }))
})

describe("a process", () => {
  const script = (body: string): string => `
    import koffi from "koffi"
    import * as Effect from "effect/Effect"
    import { CudaEvent, CudaMemory, CudaStream, NativeRuntime } from "./index.js"
    const stub = koffi.load(${JSON.stringify(stub.path)})
    const work = stub.func("stub_work", "void", ["uint64_t", "int"])
    const finishAll = stub.func("stub_finish_all", "int", [])
    const program = Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      ${body}
    })
    await Effect.runPromise(program.pipe(
      Effect.scoped,
      Effect.provide(NativeRuntime.layer({ libraryPath: ${JSON.stringify(stub.path)} }))
    ))
    console.log("done")
  `

  it("stays alive while a fiber waits, and exits when its program ends", async () => {
    const { exit, milliseconds, output } = await runChild(script(`
      work(stream.handle, 0)
      setTimeout(finishAll, 300).unref()
      yield* CudaStream.synchronize(stream)
    `))
    assert.deepStrictEqual([exit, output.trim()], [0, "done"])
    assert.isAbove(milliseconds, 300)
  })

  it("exits at once when nothing is left, despite kept pinned memory and interrupted waits", async () => {
    const { exit, output } = await runChild(
      script(`
      yield* Effect.scoped(CudaMemory.allocateHost(1 << 20))
      work(stream.handle, 0)
      yield* Effect.timeoutOption(CudaStream.synchronize(stream), 20)
      finishAll()
    `) + `
      const ended = performance.now()
      process.on("exit", () => console.log(performance.now() - ended < 200 ? "at once" : "late"))
    `
    )
    assert.deepStrictEqual([exit, output.trim()], [0, "done\nat once"])
  })
})
