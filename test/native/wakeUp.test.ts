/**
 * The stages of a wait after polling: GPU wake-ups and timers, wait policies, metrics, and wake-ups that come late, at once,
 * for nobody, or never.
 */
import { assert, beforeEach, describe, it, vi } from "@effect/vitest"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaMetrics from "effect-cuda/CudaMetrics"
import { CudaRuntime, CurrentWaitOptions } from "effect-cuda/CudaRuntime"
import type { WaitOptions } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as TestClock from "effect/testing/TestClock"
import koffi from "koffi"
import { lookup } from "node:dns/promises"
import { readFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import type { CUcontext, CUdevice } from "../../src/cuda/handles.ts"
import { load } from "../../src/cuda/library.ts"
import { Completion } from "../../src/layers/native/Completion.ts"
import type { WaitPolicy } from "../../src/layers/native/Completion.ts"
import { NativeDevice, Out } from "../../src/layers/native/Device.ts"
import { Lane, Point } from "../../src/layers/native/Lane.ts"
import { wakerOfThread } from "../../src/layers/native/Waker.ts"
import { assertReleased, logged, onStub, openStub, pause, until } from "../support/stubDriver.ts"
import {
  begin,
  counted,
  ended,
  failureOf,
  figures,
  isPending,
  noFigures,
  openRuntime,
  questions,
  succeeds
} from "../support/waits.ts"

const stub = openStub()

/** No polling: a wait is handed to the GPU at once. */
const woken = { wait: { pollFor: 0 } } as const
/** Polling that outlasts every test. */
const polled = { wait: { pollFor: "1 minute" } } as const

/** A stream with work that stays pending. */
const busyStream = Effect.tap(CudaStream.make(), (stream) => Effect.sync(() => stub.work(stream)))

const busyStreams = (count: number) => Effect.all(Array.from({ length: count }, () => busyStream))

const armed = (count: number) =>
  until(`${count} wake-ups are arranged`, () => stub.calls("cuLaunchHostFunc").length >= count)

/** Starts waiting for a stream, and continues once the wake-up is armed. */
const beginArmed = (stream: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const before = stub.calls("cuLaunchHostFunc").length
    const fiber = yield* Effect.forkChild(CudaStream.synchronize(stream))
    yield* armed(before + 1)
    return fiber
  })

/** Blocks the event loop. */
const starve = (milliseconds: number): void => {
  const end = performance.now() + milliseconds
  while (performance.now() < end);
}

describe("the metrics of waiting", () => {
  it.live("count waits that the GPU woke, which make few queries", () =>
    onStub(
      stub,
      counted(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const rounds = 10
        for (let round = 1; round <= rounds; round++) {
          stub.work(stream)
          const fiber = yield* beginArmed(stream)
          yield* pause(2)
          stub.clear()
          assert.strictEqual((yield* figures).outstanding, 1)
          stub.finish(stream)
          yield* succeeds(fiber)
          assert.isAtMost(questions(stub), 3)
          assert.strictEqual((yield* figures).outstanding, 0)
        }
        const { timer, wake, wakeUps, ...others } = yield* figures
        // On a busy machine the timer may occasionally win over the wake-up.
        assert.isAtLeast(wake, rounds - 2)
        assert.strictEqual(wake + timer, rounds)
        assert.strictEqual(wakeUps, wake)
        assert.deepStrictEqual(others, { outstanding: 0, poll: 0, clock: 0, interrupted: 0 })
        assert.isAbove((yield* Metric.value(CudaMetrics.waitTimes.wake)).min, 1)
        assert.deepStrictEqual(stub.hostCalls, { all: rounds, onMain: 0 })
      })),
      { wait: { pollFor: "1 millis" } }
    ))

  it.live("count waits that end while they are polled", () =>
    onStub(
      stub,
      counted(Effect.gen(function*() {
        const stream = yield* busyStream
        const fibers = [yield* begin(CudaStream.synchronize(stream)), yield* begin(CudaStream.synchronize(stream))]
        assert.deepStrictEqual(yield* figures, { ...noFigures, outstanding: 2 })
        stub.finish(stream)
        yield* Effect.forEach(fibers, succeeds)
        assert.deepStrictEqual(yield* figures, { ...noFigures, poll: 2 })
        assert.lengthOf(stub.calls("cuLaunchHostFunc"), 0)
      })),
      polled
    ))

  it.live("count waits that a timer found", () =>
    onStub(
      stub,
      counted(Effect.gen(function*() {
        const stream = yield* busyStream
        const fiber = yield* begin(CudaStream.synchronize(stream))
        stub.finish(stream)
        yield* succeeds(fiber)
        assert.deepStrictEqual(yield* figures, { ...noFigures, timer: 1 })
      })),
      { wait: { pollFor: 0, wakeUp: false } }
    ))

  it.live("do not count waits that end at once", () =>
    onStub(
      stub,
      counted(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* CudaStream.synchronize(stream)
        yield* CudaEvent.synchronize(yield* CudaStream.recordEvent(stream))
        assert.deepStrictEqual(yield* figures, noFigures)
      }))
    ))

  it.live("count interrupted waits, at every stage", () =>
    onStub(
      stub,
      counted(Effect.gen(function*() {
        const stream = yield* busyStream
        const fibers = [yield* beginArmed(stream)]
        const polling = CudaStream.synchronize(stream).pipe(Effect.provideService(CurrentWaitOptions, polled.wait))
        for (let index = 0; index < 4; index++) fibers.push(yield* begin(polling))
        assert.deepStrictEqual(yield* figures, { ...noFigures, outstanding: 5 })
        yield* Fiber.interrupt(fibers[0]!)
        assert.deepStrictEqual(yield* figures, { ...noFigures, outstanding: 4, interrupted: 1 })
        yield* Fiber.interruptAll(fibers)
        assert.deepStrictEqual(yield* figures, { ...noFigures, interrupted: 5 })
        stub.finish(stream)
      })),
      woken
    ))

  it.live("stop counting failed waits, and waits ended by the runtime's release, as outstanding", () =>
    counted(Effect.gen(function*() {
      stub.reset()
      const { close, use } = yield* openRuntime(stub, woken)
      const failing = yield* use(Effect.flatMap(busyStream, beginArmed))
      stub.fail("cuEventQuery", 1)
      stub.finishAll()
      yield* failureOf(failing)
      const remote = stub.remoteEvent()
      const left = yield* use(
        Effect.flatMap(CudaEvent.fromIpcHandle(remote.handle), (event) => begin(CudaEvent.synchronize(event)))
      )
      assert.strictEqual((yield* figures).outstanding, 1)
      yield* close
      yield* failureOf(left)
      const { outstanding, timer, wake } = yield* figures
      assert.deepStrictEqual([outstanding, wake + timer], [0, 1])
      remote.finish()
      assertReleased(stub)
    })))

  it.effect("count the simulated runtime's waits in its clock's time", () =>
    counted(Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      const stream = yield* CudaStream.make()
      yield* control.launch(stream, { duration: "3 millis" })
      const fiber = yield* Effect.forkChild(CudaStream.synchronize(stream))
      yield* TestClock.adjust("2 millis")
      assert.deepStrictEqual(yield* figures, { ...noFigures, outstanding: 1 })
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(yield* figures, { ...noFigures, clock: 1 })
      assert.strictEqual((yield* Metric.value(CudaMetrics.waitTimes.clock)).max, 3)
    })).pipe(Effect.provide(SimulatedRuntime.layer())))
})

describe("a region's wait policy", () => {
  const within = (options: WaitOptions) => Effect.provideService(CurrentWaitOptions, options)

  /** The driver calls of a wait's first 10 ms. */
  const conduct = (policy?: WaitOptions) =>
    Effect.gen(function*() {
      const stream = yield* busyStream
      stub.clear()
      const wait = CudaStream.synchronize(stream)
      const fiber = yield* begin(policy === undefined ? wait : within(policy)(wait))
      yield* pause(8)
      assert.isTrue(isPending(fiber))
      const seen = { asked: questions(stub), armed: stub.calls("cuLaunchHostFunc").length }
      stub.finish(stream)
      yield* succeeds(fiber)
      return seen
    })

  it.live("can disable polling, for the region only", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* conduct({ pollFor: 0 }), { asked: 0, armed: 1 })
        const outside = yield* conduct()
        assert.isAbove(outside.asked, 10)
        assert.strictEqual(outside.armed, 0)
      }),
      polled
    ))

  it.live("can poll longer, for the region only", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const inside = yield* conduct({ pollFor: "1 minute" })
        assert.isAbove(inside.asked, 10)
        assert.strictEqual(inside.armed, 0)
        assert.deepStrictEqual(yield* conduct(), { asked: 0, armed: 1 })
      }),
      woken
    ))

  it.live("can disable wake-ups, for the region only", () =>
    onStub(
      stub,
      counted(Effect.gen(function*() {
        const inside = yield* conduct({ wakeUp: false })
        assert.isAbove(inside.asked, 1)
        assert.isAtMost(inside.asked, 12)
        assert.strictEqual(inside.armed, 0)
        assert.strictEqual((yield* figures).timer, 1)
        assert.deepStrictEqual(yield* conduct(), { asked: 0, armed: 1 })
      })),
      woken
    ))

  it.live("inherits unset options from the layer", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const inside = yield* conduct({ wakeUp: false })
        assert.isAbove(inside.asked, 20)
        assert.deepStrictEqual(yield* conduct({ wakeUp: true, pollFor: 0 }), { asked: 0, armed: 1 })
      }),
      polled
    ))

  it.live("without wake-ups queries every millisecond even while other waits use wake-ups", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const [slow, quick] = yield* Effect.all([busyStream, busyStream])
        const other = yield* beginArmed(slow)
        stub.clear()
        const fiber = yield* begin(within({ wakeUp: false })(CudaStream.synchronize(quick)))
        yield* pause(20)
        assert.isAbove(questions(stub), 3)
        stub.finish(quick)
        yield* succeeds(fiber)
        stub.finish(slow)
        yield* succeeds(other)
      }),
      woken
    ))

  it.live("with long polling stops polling with its waits, even while others wait", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const [slow, quick] = yield* Effect.all([busyStream, busyStream])
        const other = yield* beginArmed(slow)
        const fiber = yield* begin(within(polled.wait)(CudaStream.synchronize(quick)))
        stub.finish(quick)
        yield* succeeds(fiber)
        yield* pause(2)
        stub.clear()
        yield* pause(20)
        assert.isBelow(questions(stub), 10)
        stub.finish(slow)
        yield* succeeds(other)
      }),
      woken
    ))

  it.live("for blocking events: queried once, then handed to the GPU", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const event = yield* CudaEvent.make({ blocking: true })
        yield* CudaEvent.record(event, stream)
        stub.clear()
        const fiber = yield* Effect.forkChild(CudaEvent.synchronize(event))
        yield* armed(1)
        yield* pause(8)
        assert.strictEqual(questions(stub), 1)
        stub.finish(stream)
        yield* succeeds(fiber)
        assert.isAtMost(questions(stub), 3)
      }),
      polled
    ))
})

describe("a starved event loop", () => {
  const count = 1000

  for (const [name, options] of Object.entries({ polled, woken, "by default": {} })) {
    it.live(`ends all waits afterwards: ${name}`, () =>
      onStub(
        stub,
        counted(Effect.gen(function*() {
          const streams = yield* busyStreams(10)
          const fibers = yield* Effect.forEach(
            Array.from({ length: count }),
            (_, index) => Effect.forkChild(CudaStream.synchronize(streams[index % 10]!))
          )
          yield* pause(5)
          assert.strictEqual((yield* figures).outstanding, count)
          starve(250)
          stub.finishAll()
          starve(250)
          const before = performance.now()
          yield* until("all have ended", () => !fibers.some(isPending))
          assert.isBelow(performance.now() - before, 200)
          yield* Effect.forEach(fibers, succeeds)
          assert.strictEqual((yield* figures).outstanding, 0)
          assert.strictEqual(stub.hostCalls.onMain, 0)
        })),
        options
      ))
  }

  it.live("ends waits that it has not polled yet", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const streams = yield* busyStreams(10)
        const fibers = yield* Effect.forEach(
          Array.from({ length: count }),
          (_, index) => Effect.forkChild(CudaStream.synchronize(streams[index % 10]!))
        )
        yield* Effect.yieldNow
        stub.finishAll()
        starve(500)
        yield* until("all have ended", () => !fibers.some(isPending))
      })
    ))
})

describe("wake-ups", () => {
  it.live("of many streams at once end all their waits", () =>
    onStub(
      stub,
      counted(Effect.gen(function*() {
        const here = yield* busyStreams(16)
        const there = yield* Effect.all(Array.from({ length: 16 }, () => CudaStream.make({ device: 1 })))
        for (const stream of there) stub.work(stream)
        const streams = [...here, ...there]
        const fibers = yield* Effect.forEach(streams, (stream) => Effect.forkChild(CudaStream.synchronize(stream)))
        yield* armed(32)
        stub.holdsHostFunctions = true
        stub.finishAll()
        stub.holdsHostFunctions = false
        yield* Effect.forEach(fibers, succeeds)
        assert.deepStrictEqual(stub.hostCalls, { all: 32, onMain: 0 })
        const { timer, wake } = yield* figures
        assert.strictEqual(wake + timer, 32)
      })),
      { ...woken, prepare: () => void (stub.devices = 2) }
    ))

  it.live("are re-armed one after another, each for the stream's next record", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const order: Array<number> = []
        for (let index = 0; index < 20; index++) {
          stub.work(stream)
          const wait = Effect.andThen(CudaStream.synchronize(stream), Effect.sync(() => order.push(index)))
          yield* Effect.forkChild(wait)
          yield* Effect.yieldNow
        }
        yield* pause(2)
        assert.lengthOf(stub.calls("cuLaunchHostFunc"), 1)
        for (let done = 1; done <= 20; done++) {
          stub.finish(stream, 1)
          yield* until(`${done} have ended`, () => order.length >= done)
          yield* pause(1)
          assert.strictEqual(order.length, done)
        }
        assert.deepStrictEqual(order, Array.from({ length: 20 }, (_, index) => index))
        const sides = new Set(stub.calls("cuLaunchHostFunc").map(({ args }) => args[0]))
        assert.strictEqual(sides.size, 1)
        assert.lengthOf(stub.calls("cuLaunchHostFunc"), 20)
      }),
      woken
    ))

  it.live("that come when nothing waits make no call", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const streams = yield* busyStreams(8)
        const fibers = yield* Effect.forEach(streams, beginArmed)
        yield* Fiber.interruptAll(fibers)
        const calls = stub.callCount
        stub.finishAll()
        yield* pause(10)
        assert.strictEqual(stub.hostCalls.all, 8)
        assert.strictEqual(stub.callCount, calls)
        stub.work(streams[0]!)
        const fiber = yield* beginArmed(streams[0]!)
        stub.finishAll()
        yield* succeeds(fiber)
      }),
      woken
    ))

  it.live("that come late, for a finished wait, end no other wait", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const [early, late] = yield* Effect.all([busyStream, busyStream])
        const first = yield* beginArmed(early)
        stub.holdsHostFunctions = true
        stub.finish(early)
        // The timer finds it.
        yield* succeeds(first)
        const second = yield* beginArmed(late)
        stub.holdsHostFunctions = false
        yield* pause(10)
        assert.isTrue(isPending(second))
        stub.finish(late)
        yield* succeeds(second)
      }),
      woken
    ))

  it.live("armed for an interrupted wait serve the next one", () =>
    onStub(
      stub,
      counted(Effect.gen(function*() {
        const stream = yield* busyStream
        const first = yield* beginArmed(stream)
        stub.work(stream)
        const second = yield* begin(CudaStream.synchronize(stream))
        yield* Fiber.interrupt(first)
        // Its marker is returned while the GPU still waits for it, and serves another record.
        const other = yield* busyStream
        const third = yield* begin(CudaStream.synchronize(other))
        stub.finish(stream, 1)
        yield* pause(5)
        assert.isTrue(isPending(second))
        assert.isTrue(isPending(third))
        stub.finish(stream, 1)
        yield* succeeds(second)
        assert.isTrue(isPending(third))
        stub.finish(other)
        yield* succeeds(third)
        const { timer, wake } = yield* figures
        assert.strictEqual(wake + timer, 2)
        assert.isAbove(wake, 0)
      })),
      woken
    ))

  it.live("that come after the release of the runtime do nothing, and the next runtime works", () =>
    Effect.gen(function*() {
      stub.reset()
      const { close, use } = yield* openRuntime(stub, woken)
      const stream = yield* use(busyStream)
      const fiber = yield* beginArmed(stream)
      stub.holdsHostFunctions = true
      stub.finish(stream)
      yield* succeeds(fiber)
      yield* close
      // The side stream is destroyed with its host function still pending.
      assertReleased(stub, { busyStreams: 1 })
      const calls = stub.callCount
      stub.holdsHostFunctions = false
      assert.strictEqual(stub.hostCalls.all, 1)
      yield* pause(10)
      assert.strictEqual(stub.callCount, calls)
      assertReleased(stub)
      const next = yield* openRuntime(stub, woken)
      const again = yield* next.use(Effect.flatMap(busyStream, beginArmed))
      stub.finishAll()
      yield* succeeds(again)
      yield* next.close
      assertReleased(stub)
    }))

  it.live("for foreign work that outlives the runtime do nothing", () =>
    Effect.gen(function*() {
      stub.reset()
      const { close, use } = yield* openRuntime(stub, woken)
      const foreign = yield* use(Effect.gen(function*() {
        yield* CudaStream.make()
        const foreign = yield* CudaStream.fromHandle(stub.foreignStream(0))
        stub.work(foreign)
        yield* Fiber.interrupt(yield* beginArmed(foreign))
        return foreign
      }))
      yield* close
      const calls = stub.callCount
      stub.finish(foreign)
      assert.strictEqual(stub.hostCalls.all, 1)
      yield* pause(10)
      assert.strictEqual(stub.callCount, calls)
      assertReleased(stub)
    }))

  it.live("of one runtime do not affect another's waits on the same thread", () =>
    Effect.gen(function*() {
      stub.reset()
      const [one, two] = [yield* openRuntime(stub, woken), yield* openRuntime(stub, woken)]
      const first = yield* one.use(Effect.flatMap(busyStream, beginArmed))
      const quick = yield* two.use(busyStream)
      const second = yield* beginArmed(quick)
      stub.finish(quick)
      yield* succeeds(second)
      yield* two.close
      assert.isTrue(isPending(first))
      stub.finishAll()
      yield* succeeds(first)
      yield* one.close
      assertReleased(stub)
    }))
})

describe("a wait for an older record", () => {
  it.live("that starts after a later one was armed has its own side stream, and ends first", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* busyStream
        const older = yield* CudaStream.recordEvent(stream)
        stub.work(stream)
        const later = yield* CudaStream.recordEvent(stream)
        stub.clear()
        const second = yield* begin(CudaEvent.synchronize(later))
        yield* armed(1)
        const first = yield* begin(CudaEvent.synchronize(older))
        yield* armed(2)
        const sides = stub.calls("cuLaunchHostFunc").map(({ args }) => args[0])
        assert.notStrictEqual(sides[0], sides[1])
        stub.finish(stream, 1)
        yield* succeeds(first)
        assert.isTrue(isPending(second))
        stub.finish(stream, 1)
        yield* succeeds(second)
      }),
      woken
    ))

  for (const order of ["backwards", "mixed"] as const) {
    it.live(`ends in stream order when many started ${order}`, () =>
      onStub(
        stub,
        Effect.gen(function*() {
          const count = 12
          const stream = yield* CudaStream.make()
          const events: Array<CudaEvent.CudaEvent> = []
          for (let index = 0; index < count; index++) {
            stub.work(stream)
            events.push(yield* CudaStream.recordEvent(stream))
          }
          const ends: Array<number> = []
          for (let index = 0; index < count; index++) {
            const which = order === "mixed" ? index * 5 % count : count - 1 - index
            const wait = CudaEvent.synchronize(events[which]!)
            yield* begin(Effect.andThen(wait, Effect.sync(() => ends.push(which))))
          }
          for (let done = 1; done <= count; done++) {
            stub.finish(stream, 1)
            yield* until(`${done} have ended`, () => ends.length >= done)
            assert.strictEqual(ends.length, done)
          }
          assert.deepStrictEqual(ends, Array.from({ length: count }, (_, index) => index))
        }),
        woken
      ))
  }
})

describe("a fault while wake-ups are awaited", () => {
  it.live("fails all waits at the next safety check, because the GPU no longer wakes the loop", () =>
    logged(onStub(
      stub,
      counted(Effect.gen(function*() {
        const streams = yield* busyStreams(20)
        const fibers = yield* Effect.forEach(
          [...streams, ...streams],
          (stream) => Effect.forkChild(CudaStream.synchronize(stream))
        )
        yield* armed(20)
        stub.fault = 700
        const before = performance.now()
        stub.finishAll()
        const errors = yield* Effect.forEach(fibers, failureOf)
        assert.isBelow(performance.now() - before, 300)
        assert.isTrue(errors.every(({ reason }) => reason._tag === "IllegalAddress"))
        assert.strictEqual(stub.hostCalls.all, 0)
        const { outstanding, timer } = yield* figures
        assert.deepStrictEqual([outstanding, timer], [0, 40])
      })),
      woken
    )))
})

describe("pausing a device's queries", () => {
  const policy: WaitPolicy = { pollFor: 0, wakeUp: true, safetyInterval: 100, timerInterval: 1 }

  /** A completion engine on two stub devices. */
  const engine = (options: Partial<WaitPolicy>) =>
    Effect.gen(function*() {
      stub.reset()
      stub.devices = 2
      const loaded = yield* Effect.promise(() => load([stub.path]))
      if (loaded._tag !== "Loaded") return yield* Effect.die(new Error("the stub cannot be loaded"))
      const { calls } = loaded.library
      const waker = yield* Effect.promise(wakerOfThread)
      calls.cuInit(0)
      const devices = [0, 1].map((ordinal) => {
        const out = new Out<CUcontext>()
        const number = new Int32Array(1)
        calls.cuDeviceGet(number, ordinal)
        const handle = number[0]! as CUdevice
        calls.cuDevicePrimaryCtxRetain(out.words, handle)
        const device = new NativeDevice(calls, ordinal, handle, out.value)
        device.setUp(() => {})
        return device
      })
      const completion = new Completion(
        calls,
        { ...policy, ...options },
        waker,
        (ordinal) => devices[ordinal]!,
        () => {},
        () => {}
      )
      /** Starts a wait for pending work on a device; returns how often it ended, and how to finish the work. */
      const wait = (ordinal: number) => {
        const device = devices[ordinal]!
        const handle = device.makeStream()!
        const event = device.takeMarker()!
        const stream = { handle, deviceIndex: ordinal }
        stub.work(stream)
        calls.cuEventRecord(event, handle)
        const ends: Array<number> = []
        const point = new Point(new Lane(ordinal, true), 1, event, () => {})
        completion.watch(point, {}, (status) => ends.push(status))
        return { event, ends, finish: () => void stub.finish(stream) }
      }
      yield* Effect.addFinalizer(() => Effect.sync(() => completion.close()))
      stub.clear()
      return { completion, wait }
    })

  /** The queries and wake-ups of an event. */
  const concerning = (event: number) =>
    stub.calls().filter(({ args, name }) =>
      (name === "cuEventQuery" && args[0] === event) || (name === "cuStreamWaitEvent" && args[1] === event)
    )

  for (const [name, options] of Object.entries({ polled: { pollFor: 60_000 }, woken: {}, timed: { wakeUp: false } })) {
    it.live(`makes no query until resumed, then its waits end: ${name}`, () =>
      Effect.scoped(Effect.gen(function*() {
        const { completion, wait } = yield* engine(options)
        const resume = completion.pause(0)
        const [here, there] = [wait(0), wait(1)]
        yield* pause(20)
        assert.deepStrictEqual(concerning(here.event), [])
        assert.isNotEmpty(concerning(there.event))
        here.finish()
        there.finish()
        yield* until("the wait of the other device ends", () => there.ends.length > 0)
        completion.settle()
        yield* pause(120)
        assert.deepStrictEqual(concerning(here.event), [])
        assert.deepStrictEqual(here.ends, [])
        resume()
        yield* until("the wait ends", () => here.ends.length > 0)
        assert.deepStrictEqual([here.ends, there.ends], [[0], [0]])
      })))

    it.live(`stops the queries of running waits: ${name}`, () =>
      Effect.scoped(Effect.gen(function*() {
        const { completion, wait } = yield* engine(options)
        const { ends, event, finish } = wait(0)
        yield* pause(10)
        assert.isNotEmpty(concerning(event))
        const resume = completion.pause(0)
        stub.clear()
        // The wake-up comes while queries are paused.
        finish()
        yield* pause(120)
        assert.deepStrictEqual([concerning(event), ends], [[], []])
        resume()
        const before = performance.now()
        yield* until("the wait ends", () => ends.length > 0)
        assert.isBelow(performance.now() - before, 50)
      })))
  }

  it.live("ends a wait at once when its wake-up came during a short pause", () =>
    Effect.scoped(Effect.gen(function*() {
      const { completion, wait } = yield* engine({ safetyInterval: 1000 })
      const { ends, finish } = wait(0)
      yield* pause(5)
      const resume = completion.pause(0)
      finish()
      assert.strictEqual(stub.hostCalls.all, 1)
      yield* pause(10)
      resume()
      yield* pause(50)
      assert.deepStrictEqual(ends, [0])
    })))

  it.live("lasts until the last of several pauses ends", () =>
    Effect.scoped(Effect.gen(function*() {
      const { completion, wait } = yield* engine({ wakeUp: false })
      const { ends, event, finish } = wait(0)
      const [resumeOne, resumeTwo] = [completion.pause(0), completion.pause(0)]
      stub.clear()
      finish()
      resumeOne()
      resumeOne()
      yield* pause(10)
      assert.deepStrictEqual([concerning(event), ends], [[], []])
      resumeTwo()
      yield* until("the wait ends", () => ends.length > 0)
    })))
})

describe("a thousand waits with pending wake-ups", () => {
  it.live("do not block file access or name lookups", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const streams = yield* busyStreams(10)
        const fibers = yield* Effect.forEach(
          Array.from({ length: 1000 }),
          (_, index) => Effect.forkChild(CudaStream.synchronize(streams[index % 10]!))
        )
        yield* armed(10)
        const before = performance.now()
        const work = Array.from({ length: 16 }, (_, index) =>
          index % 2 === 0 ? readFile(fileURLToPath(import.meta.url)) : lookup("localhost"))
        yield* Effect.promise(() =>
          Promise.all(work)
        )
        assert.isBelow(performance.now() - before, 500)
        assert.isTrue(fibers.every(isPending))
        stub.finishAll()
        yield* Effect.forEach(fibers, ended)
        yield* Effect.forEach(fibers, succeeds)
      }),
      woken
    ))
})

// Last, because it resets modules: every later test would import them anew.
describe("without a way to wake the event loop", () => {
  beforeEach(() => {
    vi.resetModules()
    return () => {
      vi.restoreAllMocks()
    }
  })

  /** Fresh modules, in a process whose own symbols cannot be found, and the symbols that were looked up. */
  const fresh = Effect.gen(function*() {
    stub.reset()
    const { load } = koffi
    const missed: Array<string> = []
    vi.spyOn(koffi, "load").mockImplementation((path) => {
      if (path !== null) return load(path)
      return new Proxy(load(path), {
        get: (library, key) => {
          if (key !== "func") return Reflect.get(library, key)
          return (name: string, ...types: ReadonlyArray<unknown>): unknown => {
            if (["memset", "madvise", "mmap", "munmap"].includes(name)) {
              return Reflect.apply(library.func, library, [name, ...types])
            }
            missed.push(name)
            throw new Error("no such symbol")
          }
        }
      })
    })
    return { missed, module: yield* Effect.promise(() => import("effect-cuda/NativeRuntime")) }
  })

  it.live("waits end by timer, and two layers log one warning", () =>
    Effect.gen(function*() {
      const { missed, module } = yield* fresh
      const build = module.make({ libraryPath: stub.path })
      const program = counted(Effect.gen(function*() {
        const runtimes = [yield* build, ...yield* Effect.all([build, build], { concurrency: 2 })]
        for (const runtime of runtimes) {
          const stream = yield* Effect.provideService(busyStream, CudaRuntime, runtime)
          const fiber = yield* begin(CudaStream.synchronize(stream))
          stub.finish(stream)
          yield* succeeds(fiber)
        }
        assert.lengthOf(stub.calls("cuLaunchHostFunc"), 0)
        return yield* figures
      }))
      const { lines, result } = yield* logged(Effect.scoped(program))
      assert.strictEqual(result.poll + result.timer, 3)
      assert.isAbove(result.timer, 0)
      assert.lengthOf(lines, 1)
      assert.match(lines[0]!, /^Warn .*cannot wake/)
      assert.lengthOf(missed.filter((name) => name !== "dlopen"), 1)
      assertReleased(stub)
    }))

  it.live("a layer without wake-ups neither looks nor warns", () =>
    Effect.gen(function*() {
      const { missed, module } = yield* fresh
      const { lines } = yield* logged(Effect.scoped(module.make({ libraryPath: stub.path, wait: { wakeUp: false } })))
      assert.deepStrictEqual([lines, missed], [[], ["dlopen"]])
      const { lines: later } = yield* logged(Effect.scoped(module.make({ libraryPath: stub.path })))
      assert.lengthOf(later, 1)
    }))
})
