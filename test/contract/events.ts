/**
 * Events: every row of the reference system, the four failures of an elapsed time, and sharing with other processes.
 */
import { assert, layer } from "@effect/vitest"
import { CudaEvent, CudaStream } from "effect-cuda"
import type { TimedOptions, UntimedOptions } from "effect-cuda/CudaEvent"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

/** Options and the `CUevent_flags` they map to in the reference system. */
const flags: ReadonlyArray<readonly [number, TimedOptions | UntimedOptions]> = [
  [2, {}],
  [0, { timing: true }],
  [3, { blocking: true }],
  [1, { timing: true, blocking: true }],
  [6, { interprocess: true }],
  [7, { interprocess: true, blocking: true }]
]

const make = (options: TimedOptions | UntimedOptions) =>
  options.timing === true ? CudaEvent.make(options) : CudaEvent.make(options)

const timed = CudaEvent.make({ timing: true })

export const eventContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("events", (it) => {
    for (const [number, options] of flags) {
      it.effect(`have flags ${number} with ${JSON.stringify(options)}`, () =>
        leavesNothing(Effect.gen(function*() {
          const event = yield* make(options)
          assert.strictEqual(event.flags, number)
          assert.strictEqual(event.hasTiming, options.timing === true)
          assert.strictEqual(CudaEvent.isTimedEvent(event), options.timing === true)
          assert.strictEqual(event.isBlocking, options.blocking === true)
          assert.strictEqual(event.isInterprocess, options.interprocess === true)
          assert.strictEqual(event.deviceIndex, 0)
          const stream = yield* CudaStream.make()
          yield* CudaEvent.record(event, stream)
          yield* CudaEvent.synchronize(event)
          assert.isTrue(yield* CudaEvent.query(event))
        })))
    }

    it.effect("reject timing with interprocess when forced past the types", () => {
      const forced = { timing: true, interprocess: true }
      return leavesNothing(refuses(CudaEvent.make(forced as unknown as TimedOptions), "timing"))
    })

    it.effect("never recorded report done", () =>
      leavesNothing(Effect.gen(function*() {
        const event = yield* CudaEvent.make()
        assert.isTrue(yield* CudaEvent.query(event))
        yield* CudaEvent.synchronize(event)
      })))

    it.effect("report done once the work before their record is done", () =>
      leavesNothing(Effect.gen(function*() {
        const { event, stream } = yield* recorded(30)
        assert.isFalse(yield* CudaEvent.query(event))
        yield* CudaEvent.synchronize(event)
        assert.isTrue(yield* CudaEvent.query(event))
        assert.isTrue(yield* CudaStream.query(stream))
      })))

    it.effect("synchronize waits for the record that was current at the call", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const { event, stream } = yield* recorded(20)
        const waiting = yield* Effect.forkChild(CudaEvent.synchronize(event), { startImmediately: true })
        yield* busy.enqueue(stream, 300)
        yield* CudaEvent.record(event, stream)
        yield* Fiber.join(waiting)
        assert.isFalse(yield* CudaEvent.query(event))
      })))

    it.effect("synchronize keeps waiting when the event is re-recorded on an idle stream", () =>
      leavesNothing(Effect.gen(function*() {
        const { event, stream } = yield* recorded(60)
        const waiting = yield* Effect.forkChild(CudaEvent.synchronize(event), { startImmediately: true })
        yield* CudaEvent.record(event, yield* CudaStream.make())
        yield* CudaEvent.synchronize(event)
        assert.isFalse(yield* CudaStream.query(stream))
        yield* Fiber.join(waiting)
        assert.isTrue(yield* CudaStream.query(stream))
      })))

    it.effect("synchronize completes with its record when the event is released meanwhile", () =>
      leavesNothing(Effect.gen(function*() {
        const outer = yield* CudaStream.make()
        const scope = yield* Scope.make()
        const event = yield* Scope.provide(CudaEvent.make(), scope)
        yield* (yield* Busy).enqueue(outer, 30)
        yield* CudaEvent.record(event, outer)
        const waiting = yield* Effect.forkChild(CudaEvent.synchronize(event), { startImmediately: true })
        yield* Scope.close(scope, Exit.void)
        yield* Fiber.join(waiting)
        assert.isTrue(yield* CudaStream.query(outer))
      })))

    it.effect("measure the time between two records", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const [start, end] = [yield* timed, yield* timed]
        yield* CudaEvent.record(start, stream)
        yield* busy.enqueue(stream, 20)
        yield* CudaEvent.record(end, stream)
        yield* CudaEvent.synchronize(end)
        const millis = Duration.toMillis(yield* CudaEvent.elapsedTime(start, end))
        assert.isAtLeast(millis, 19)
        assert.isBelow(millis, 120)
        assert.closeTo(Duration.toMillis(yield* start.pipe(CudaEvent.elapsedTime(end))), millis, 1e-6)
      })))

    it.effect("distinguish the failures of an elapsed time, in order", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const untimed = (yield* CudaEvent.make()) as CudaEvent.TimedEvent
        const [start, end] = [yield* timed, yield* timed]
        yield* failsWith(CudaEvent.elapsedTime(start, untimed), "TimingDisabled")
        yield* failsWith(CudaEvent.elapsedTime(untimed, end), "TimingDisabled")
        yield* failsWith(CudaEvent.elapsedTime(start, end), "NotRecorded")
        yield* CudaEvent.record(start, stream)
        yield* failsWith(CudaEvent.elapsedTime(start, end), "NotRecorded")
        yield* CudaEvent.synchronize(start)
        yield* busy.enqueue(stream, 20)
        yield* CudaEvent.record(end, stream)
        const reason = yield* failsWith(CudaEvent.elapsedTime(start, end), "NotFinished")
        assert.strictEqual(reason.resource, String(end.ref))
        yield* CudaEvent.synchronize(end)
        yield* CudaEvent.elapsedTime(start, end)
      })))

    it.effect.skipIf(rig.deviceCount < 2)("reject a stream or event of another device, naming both", () =>
      leavesNothing(Effect.gen(function*() {
        const [near, far] = [yield* CudaStream.make({ device: 0 }), yield* CudaStream.make({ device: 1 })]
        const event = yield* CudaEvent.make({ device: 1 })
        const reason = yield* failsWith(CudaEvent.record(event, near), "DeviceMismatch")
        assert.deepStrictEqual(reason.deviceIndices, [1, 0])
        const [start, end] = [yield* timed, yield* CudaEvent.make({ timing: true, device: 1 })]
        yield* CudaEvent.record(start, near)
        yield* CudaEvent.record(end, far)
        yield* CudaEvent.synchronize(start)
        yield* CudaEvent.synchronize(end)
        yield* failsWith(CudaEvent.elapsedTime(start, end), "DeviceMismatch")
      })))

    it.effect("have an IPC handle when created with interprocess", () =>
      leavesNothing(Effect.gen(function*() {
        const event = yield* CudaEvent.make({ interprocess: true })
        const handle = yield* CudaEvent.ipcHandle(event)
        assert.strictEqual(handle.byteLength, 64)
        assert.isTrue(handle.some((byte) =>
          byte !== 0
        ))
        yield* refuses(CudaEvent.ipcHandle(yield* CudaEvent.make()), "event")
      })))

    it.effect("cannot be opened by the process that made them", () =>
      leavesNothing(Effect.gen(function*() {
        const handle = yield* CudaEvent.ipcHandle(yield* CudaEvent.make({ interprocess: true }))
        yield* failsWith(CudaEvent.fromIpcHandle(handle), "InvalidContext")
      })))

    for (const length of [0, 63, 65]) {
      it.effect(`reject an IPC handle of ${length} bytes`, () =>
        leavesNothing(refuses(CudaEvent.fromIpcHandle(new Uint8Array(length)), "handle")))
    }

    it.effect("fail with a typed error for an invalid IPC handle", () =>
      leavesNothing(Effect.gen(function*() {
        const error = yield* Effect.flip(CudaEvent.fromIpcHandle(new Uint8Array(64).fill(1)))
        assert.strictEqual(error.operation, "CudaEvent.fromIpcHandle")
        assert.isFalse(error.isSticky)
      })))

    it.effect("10,000 concurrent waits all complete", () =>
      leavesNothing(Effect.gen(function*() {
        const { event } = yield* recorded(50)
        const waits = Array.from({ length: 10_000 }, () => CudaEvent.synchronize(event))
        yield* Effect.all(waits, { concurrency: "unbounded", discard: true })
        assert.isTrue(yield* CudaEvent.query(event))
      })))

    it.effect("waits are interruptible immediately, and the event is unaffected", () =>
      leavesNothing(Effect.gen(function*() {
        const { event, stream } = yield* recorded(60)
        const waits = [CudaEvent.synchronize(event), CudaStream.synchronize(stream)]
        for (const wait of waits) {
          const exit = yield* Effect.exit(Effect.timeout(wait, "5 millis"))
          assert.isTrue(Exit.isFailure(exit))
        }
        assert.isFalse(yield* CudaEvent.query(event))
        yield* CudaEvent.synchronize(event)
      })))
  })

/** An event recorded behind the given amount of work. */
const recorded = (millis: number) =>
  Effect.gen(function*() {
    const busy = yield* Busy
    const stream = yield* CudaStream.make()
    const event = yield* CudaEvent.make()
    if (millis > 0) yield* busy.enqueue(stream, millis)
    yield* CudaEvent.record(event, stream)
    return { event, stream }
  })
