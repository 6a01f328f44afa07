/**
 * Timing on the simulated runtime, in virtual time: exact times, a bounded number of events, the effect of failing calls on a
 * timeline, and its trace and picture.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import { isCudaError } from "effect-cuda/CudaError"
import type { CudaError } from "effect-cuda/CudaError"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { CudaRuntimeService } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as CudaTiming from "effect-cuda/CudaTiming"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import type { OperationName, SimulatedControlService } from "effect-cuda/SimulatedRuntime"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import { failsWith } from "./support/assertions.ts"
import { started } from "./support/fibers.ts"

interface Machine {
  readonly control: SimulatedControlService
  readonly runtime: CudaRuntimeService
  readonly stream: CudaStream.CudaStream
  /** Enqueues work on the current stream of the current device. */
  readonly work: (millis: number) => Effect.Effect<void, CudaError, CudaRuntime>
}

/** Runs a test on its own machine and a stream of device 0, and asserts that it leaves no events or waits. */
const onMachine = <A, E>(
  body: (machine: Machine) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>,
  options: SimulatedRuntime.SimulatedOptions & {
    readonly wrap?: (runtime: CudaRuntimeService) => CudaRuntimeService
  } = {}
) =>
  Effect.gen(function*() {
    const { control, runtime } = yield* SimulatedRuntime.make(options)
    const test = Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const work = (millis: number) =>
        Effect.flatMap(CudaStream.current(), (current) => control.launch(current, { duration: millis }))
      // The release of a stream drains it, in virtual time.
      return yield* Effect.ensuring(
        CudaStream.withStream(body({ control, runtime, stream, work }), stream),
        TestClock.adjust("1 hour")
      )
    })
    const wrapped = options.wrap?.(runtime) ?? runtime
    const result = yield* Effect.provideService(Effect.scoped(test), CudaRuntime, wrapped)
    const { events, streams, waits } = yield* runtime.liveResources
    assert.deepStrictEqual({ events, streams, waits }, { events: 0, streams: 0, waits: 0 })
    return result
  }).pipe(Effect.scoped)

/** Rounds like `cuEventElapsedTime`, which returns a `float` of milliseconds. */
const inSinglePrecision = (runtime: CudaRuntimeService): CudaRuntimeService => ({
  ...runtime,
  eventElapsedTime: (start, end) => Effect.map(runtime.eventElapsedTime(start, end), Math.fround)
})

/** Runs an effect to its end while the clock advances. */
const during = <A, E, R>(effect: Effect.Effect<A, E, R>, millis: number) =>
  Effect.gen(function*() {
    const fiber = yield* started(effect)
    yield* TestClock.adjust(millis)
    return yield* Fiber.join(fiber)
  })

const { toMillis } = Duration

/** The name, stream, start and length of every region, in milliseconds. */
const summary = ({ regions }: CudaTiming.Timeline) =>
  regions.map(({ duration, name, start, streamId }) => [name, streamId, toMillis(start), toMillis(duration)])

describe("timed", () => {
  it.effect("is the work on the stream, exactly", () =>
    onMachine(({ work }) =>
      Effect.gen(function*() {
        yield* work(5)
        const [duration, result] = yield* during(CudaTiming.timed(Effect.as(work(3.25), 7)), 10)
        assert.deepStrictEqual([toMillis(duration), result], [3.25, 7])
        const [nothing] = yield* CudaTiming.timed(Effect.void)
        assert.strictEqual(toMillis(nothing), 0)
      })
    ))

  const calls: ReadonlyArray<OperationName> = [
    "CudaEvent.make",
    "CudaEvent.record",
    "CudaEvent.synchronize",
    "CudaEvent.elapsedTime"
  ]
  for (const call of calls) {
    it.effect(`fails by its own name when ${call} does`, () =>
      onMachine(({ control }) =>
        Effect.gen(function*() {
          yield* control.failNext(call, "InvalidValue")
          const error = yield* Effect.flip(CudaTiming.timed(Effect.void))
          assert.strictEqual(error.operation, "CudaTiming.timed")
          assert.strictEqual(error.reason._tag, "InvalidValue")
        })
      ))
  }

  it.effect("does not rename the failure of the effect", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(CudaTiming.timed(CudaDevice.get(7)))
        assert.strictEqual(error.operation, "CudaDevice.get")
      })
    ))

  it.effect("does not close the scope that the effect uses", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const [, stream] = yield* CudaTiming.timed(CudaStream.make())
        assert.strictEqual(stream.ref.state, "live")
      })
    ))
})

describe("region", () => {
  it.effect("is just the effect outside a timeline, whatever the driver does", () =>
    onMachine(({ control, runtime }) =>
      Effect.gen(function*() {
        yield* control.failNext("CudaEvent.make", "InvalidValue")
        assert.strictEqual(yield* CudaTiming.region(Effect.succeed(1), "one"), 1)
        assert.strictEqual(yield* Effect.succeed(2).pipe(CudaTiming.region("two", { attributes: { a: 1 } })), 2)
        assert.strictEqual((yield* runtime.liveResources).events, 0)
      })
    ))

  it.effect("begins and ends with the work of its stream, and may nest", () =>
    onMachine(({ stream, work }) =>
      Effect.gen(function*() {
        const program = Effect.gen(function*() {
          yield* work(2)
          yield* work(3).pipe(CudaTiming.region("inner"), Effect.andThen(work(4)), CudaTiming.region("outer"))
          yield* CudaTiming.region(Effect.void, "nothing")
        })
        const [timeline] = yield* during(CudaTiming.timeline(program), 20)
        assert.deepStrictEqual(summary(timeline), [
          ["outer", stream.id, 2, 7],
          ["inner", stream.id, 2, 3],
          ["nothing", stream.id, 9, 0]
        ])
      })
    ))

  it.effect("counts however its effect ends", () =>
    onMachine(({ work }) =>
      Effect.gen(function*() {
        const started = yield* Deferred.make<void>()
        const program = Effect.gen(function*() {
          const failing = CudaTiming.region(Effect.andThen(work(1), Effect.fail("no")), "fails")
          assert.strictEqual(yield* Effect.flip(failing), "no")
          const defect = yield* Effect.exit(CudaTiming.region(Effect.andThen(work(2), Effect.die("no")), "dies"))
          assert.isTrue(Exit.hasDies(defect))
          const hanging = work(3).pipe(
            Effect.andThen(Deferred.succeed(started, undefined)),
            Effect.andThen(Effect.never),
            CudaTiming.region("interrupted")
          )
          const fiber = yield* Effect.forkChild(hanging)
          yield* Deferred.await(started)
          yield* Fiber.interrupt(fiber)
        })
        const [timeline] = yield* during(CudaTiming.timeline(program), 20)
        assert.deepStrictEqual(summary(timeline).map(([name, , , length]) => [name, length]), [
          ["fails", 1],
          ["dies", 2],
          ["interrupted", 3]
        ])
        assert.strictEqual(timeline.dropped, 0)
      })
    ))

  /** Which of three regions remain if a call fails when the second begins and the GPU is still in the first. */
  const left: ReadonlyArray<readonly [OperationName, ReadonlyArray<string>]> = [
    ["CudaEvent.make", ["first", "third"]],
    ["CudaEvent.record", ["first", "third"]],
    ["CudaEvent.query", ["second", "third"]],
    ["CudaEvent.elapsedTime", ["second", "third"]]
  ]
  for (const [call, names] of left) {
    it.effect(`is dropped when ${call} fails, and the program goes on`, () =>
      onMachine(({ control, work }) =>
        Effect.gen(function*() {
          const program = Effect.gen(function*() {
            yield* CudaTiming.region(work(1), "first")
            yield* control.failNext(call, "InvalidValue")
            const value = yield* CudaTiming.region(Effect.succeed(7), "second")
            yield* CudaTiming.region(work(1), "third")
            return value
          })
          const [timeline, value] = yield* during(CudaTiming.timeline(program), 5)
          assert.strictEqual(value, 7)
          assert.sameMembers(timeline.regions.map(({ name }) => name), Array.from(names))
          assert.strictEqual(timeline.dropped, 1)
        })
      ))
  }

  it.effect("is dropped when its end cannot be recorded", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        const failEnd = control.failNext("CudaEvent.record", "InvalidValue")
        const [timeline] = yield* CudaTiming.timeline(Effect.andThen(
          CudaTiming.region(failEnd, "one"),
          CudaTiming.region(Effect.void, "two")
        ))
        assert.deepStrictEqual(timeline.regions.map(({ name }) => name), ["two"])
        assert.strictEqual(timeline.dropped, 1)
      })
    ))

  it.effect("is dropped when its stream cannot be made, was released, or belongs to another machine", () =>
    onMachine(({ control, stream }) =>
      Effect.gen(function*() {
        const gone = yield* Effect.scoped(CudaStream.make())
        const elsewhere = yield* SimulatedRuntime.make({ devices: 3 })
        const foreign = yield* Effect.provideService(CudaStream.make({ device: 2 }), CudaRuntime, elsewhere.runtime)
        const [timeline, values] = yield* CudaTiming.timeline(Effect.gen(function*() {
          yield* control.failNext("CudaStream.defaultStream", "InvalidValue")
          return yield* Effect.all([
            CudaDevice.withDevice(CudaTiming.region(Effect.succeed(1), "default"), 1),
            CudaTiming.region(Effect.succeed(2), "gone", { stream: gone }),
            CudaTiming.region(Effect.succeed(3), "foreign", { stream: foreign }),
            CudaTiming.region(Effect.succeed(4), "good", { stream })
          ])
        }))
        assert.deepStrictEqual(values, [1, 2, 3, 4])
        assert.deepStrictEqual(timeline.regions.map(({ name }) => name), ["good"])
        assert.strictEqual(timeline.dropped, 3)
      }), { devices: 2 }))
})

describe("timeline", () => {
  it.effect("names itself when the device does not respond at the beginning", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        for (const call of ["CudaStream.make", "CudaEvent.make", "CudaEvent.record", "CudaEvent.query"] as const) {
          yield* control.failNext(call, "InvalidValue")
          const error = yield* Effect.flip(CudaTiming.timeline(Effect.die("not to be run")))
          assert.strictEqual(error.operation, "CudaTiming.timeline")
        }
      })
    ))

  it.effect("fails with a fault found at the end", () =>
    Effect.gen(function*() {
      const { control, runtime } = yield* SimulatedRuntime.make()
      const program = Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const faulty = control.launch(stream, { duration: 5, fault: "IllegalAddress" })
        const [timeline] = yield* CudaTiming.timeline(CudaTiming.region(faulty, "faulty", { stream }))
        return timeline
      })
      const failing = Effect.provideService(Effect.scoped(program), CudaRuntime, runtime)
      yield* failsWith(during(failing, 10), "IllegalAddress")
      assert.strictEqual((yield* runtime.liveResources).events, 0)
    }).pipe(Effect.scoped))

  it.effect("has the wall-clock time of its beginning", () =>
    onMachine(() =>
      Effect.gen(function*() {
        yield* TestClock.adjust("3 seconds")
        const [timeline] = yield* CudaTiming.timeline(Effect.void)
        assert.strictEqual(timeline.startTime, 3_000_000_000n)
        assert.deepStrictEqual(timeline.regions, [])
        assert.deepStrictEqual(timeline.devices.map(({ index, uncertainty }) => [index, toMillis(uncertainty)]), [[
          0,
          0
        ]])
      })
    ))

  it.effect("relates the times of all devices, whenever their first region begins", () =>
    onMachine(({ control, runtime, stream }) =>
      Effect.gen(function*() {
        const far = yield* CudaStream.make({ device: 1 })
        yield* control.launch(far, { duration: 9 })
        const work = (on: CudaStream.CudaStream, millis: number) => control.launch(on, { duration: millis })
        const program = Effect.gen(function*() {
          yield* CudaTiming.region(work(stream, 4), "near", { stream })
          yield* Effect.sleep(2)
          yield* CudaTiming.region(work(far, 3), "far", { stream: far })
          yield* CudaTiming.region(work(stream, 1), "near again", { stream })
        })
        const [timeline] = yield* during(CudaTiming.timeline(program), 20)
        assert.deepStrictEqual(summary(timeline), [
          ["near", stream.id, 0, 4],
          ["near again", stream.id, 4, 1],
          ["far", far.id, 9, 3]
        ])
        assert.deepStrictEqual(
          timeline.devices.map(({ index, name }) => [index, name]),
          runtime.devices.map(({ name, index }) => [index, name])
        )
      }), { devices: [{ name: "left" }, { name: "right" }] }))

  it.effect("drops the regions of a device that cannot be related to host time", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        const far = yield* CudaStream.make({ device: 1 })
        const [timeline] = yield* CudaTiming.timeline(Effect.gen(function*() {
          yield* control.failNext("CudaStream.make", "InvalidValue")
          yield* CudaTiming.region(Effect.void, "far", { stream: far })
          yield* CudaTiming.region(Effect.void, "far", { stream: far })
          yield* CudaTiming.region(Effect.void, "near")
        }))
        assert.deepStrictEqual(timeline.devices.map(({ index }) => index), [0])
        assert.deepStrictEqual(timeline.regions.map(({ name }) => name), ["near"])
        assert.strictEqual(timeline.dropped, 2)
      }), { devices: 2 }))

  it.effect("does not wait for an effect that fails or is interrupted", () =>
    onMachine(({ control, stream }) =>
      Effect.gen(function*() {
        const region = CudaTiming.region(control.launch(stream, { duration: 50 }), "long")
        const failing = CudaTiming.timeline(Effect.andThen(region, Effect.fail("no")))
        assert.strictEqual(yield* Effect.flip(failing), "no")
        const fiber = yield* started(CudaTiming.timeline(region))
        const exit = yield* Effect.andThen(Fiber.interrupt(fiber), Fiber.await(fiber))
        assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
        assert.isFalse(yield* CudaStream.query(stream))
      })
    ))

  it.effect("takes no regions after its end, and leaves no events to fibers that continue", () =>
    onMachine(({ runtime }) =>
      Effect.gen(function*() {
        const over = yield* Deferred.make<void>()
        const background = Effect.gen(function*() {
          yield* CudaTiming.region(Deferred.await(over), "still running")
          yield* Effect.replicateEffect(CudaTiming.region(Effect.void, "late"), 10)
        })
        const [timeline, fiber] = yield* CudaTiming.timeline(Effect.forkScoped(background, { startImmediately: true }))
        assert.strictEqual(timeline.dropped, 1)
        yield* Deferred.succeed(over, undefined)
        yield* Fiber.join(fiber)
        assert.strictEqual((yield* runtime.liveResources).events, 0)
        assert.deepStrictEqual(timeline.regions, [])
      })
    ))

  it.effect("inside another one takes the regions for itself", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const inner = CudaTiming.timeline(CudaTiming.region(Effect.void, "inner"))
        const [outer, [timeline]] = yield* CudaTiming.timeline(CudaTiming.region(inner, "outer"))
        assert.deepStrictEqual(timeline.regions.map(({ name }) => name), ["inner"])
        assert.deepStrictEqual(outer.regions.map(({ name }) => name), ["outer"])
      })
    ))

  it.effect(
    "of 100,000 regions needs a bounded number of events",
    () =>
      onMachine(({ control, runtime, stream }) =>
        Effect.gen(function*() {
          const stuck = yield* CudaStream.make()
          let most = 0
          const step = Effect.gen(function*() {
            yield* CudaTiming.region(control.launch(stream, { duration: 0.75 }), "step")
            yield* TestClock.adjust(1)
            const { events } = yield* runtime.liveResources
            most = Math.max(most, events)
          })
          const [timeline] = yield* CudaTiming.timeline(Effect.gen(function*() {
            // A stream that is far behind keeps only its own events.
            yield* CudaTiming.region(control.launch(stuck, { duration: 90_000 }), "stuck", { stream: stuck })
            yield* Effect.repeat(step, { times: 99_999 })
          }))
          assert.deepStrictEqual([timeline.regions.length, timeline.dropped], [100_001, 0])
          assert.isAtMost(most, 10)
          assert.isTrue(
            timeline.regions.slice(1).every(({ duration, start }, index) =>
              toMillis(start) === index && toMillis(duration) === 0.75
            )
          )
        })
      ),
    60_000
  )

  it.effect("needs as many events as regions in progress on the GPU, and reuses those of all streams", () =>
    onMachine(({ control, runtime }) =>
      Effect.gen(function*() {
        const streams = yield* Effect.replicateEffect(CudaStream.make(), 5)
        const regions = (on: ReadonlyArray<CudaStream.CudaStream>, count: number) =>
          Effect.forEach(on, (stream) =>
            Effect.replicateEffect(
              CudaTiming.region(control.launch(stream, { duration: 1 }), "work", { stream }),
              count
            ))
        const [timeline] = yield* CudaTiming.timeline(Effect.gen(function*() {
          yield* regions(streams, 20)
          yield* TestClock.adjust(100)
          const { events } = yield* runtime.liveResources
          // One stream continues, with the events of all streams.
          for (let round = 0; round < 200; round++) {
            yield* regions(streams.slice(0, 1), 1)
            yield* TestClock.adjust(1)
          }
          assert.strictEqual((yield* runtime.liveResources).events, events)
        }))
        assert.deepStrictEqual([timeline.regions.length, timeline.dropped], [300, 0])
      })
    ))

  it.effect(
    "stays exact for hours, with elapsed times of 24 bits",
    () =>
      onMachine(({ control, stream }) =>
        Effect.gen(function*() {
          const [length, count] = [5.000321, 27_000]
          /** Irregular nanoseconds from one step to the next. */
          const period = (index: number) => 400_123_457 + (index * 7_919_317) % 1_000_003
          const starts = [0]
          for (let index = 0; index < count - 1; index++) starts.push(starts[index]! + period(index))
          const step = (index: number) =>
            Effect.andThen(
              CudaTiming.region(control.launch(stream, { duration: Duration.millis(length) }), "step"),
              TestClock.adjust(Duration.nanos(BigInt(period(index))))
            )
          const whole = Effect.forEach(starts, (_, index) => step(index), { discard: true })
          const [timeline] = yield* CudaTiming.timeline(CudaTiming.region(whole, "whole"))
          const [first, ...steps] = timeline.regions
          assert.strictEqual(toMillis(first!.start), 0)
          assert.closeTo(toMillis(first!.duration), (starts.at(-1)! + period(count - 1)) / 1e6, 0.02)
          assert.deepStrictEqual([first?.name, steps.length, timeline.dropped], ["whole", count, 0])
          const errors = steps.map(({ start }, index) => toMillis(start) - starts[index]! / 1e6)
          // Three hours in 24 bits are accurate only to half a millisecond.
          assert.isBelow(Math.max(...errors.map(Math.abs)), 0.02)
          const fromOneToTheNext = errors.slice(1).map((error, index) => Math.abs(error - errors[index]!))
          assert.isBelow(Math.max(...fromOneToTheNext), 3e-4)
          assert.isTrue(steps.every(({ duration }) => Math.abs(toMillis(duration) - length) < 1e-6))
        }), { wrap: inSinglePrecision }),
    60_000
  )
})

describe("withSpan", () => {
  const traced = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.gen(function*() {
      const spans: Array<Tracer.NativeSpan> = []
      const tracer = Tracer.make({
        span(options) {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      const exit = yield* Effect.exit(Effect.provideService(effect, Tracer.Tracer, tracer))
      return { exit, spans }
    })

  it.effect("reports where, when and how long the GPU worked, and ends after it", () =>
    onMachine(({ stream, work }) =>
      Effect.gen(function*() {
        yield* work(2)
        const inner = Effect.withSpan(work(3.5), "inner")
        const outer = CudaTiming.withSpan(inner, "outer", { attributes: { a: 1 }, kind: "producer" })
        const { exit, spans: [span, child] } = yield* during(traced(outer), 10)
        assert.isTrue(Exit.isSuccess(exit))
        assert.deepStrictEqual(Object.fromEntries(span!.attributes), {
          a: 1,
          "cuda.device": 0,
          "cuda.stream": stream.id,
          "cuda.start_ms": 2,
          "cuda.duration_ms": 3.5
        })
        assert.strictEqual(span!.kind, "producer")
        assert.strictEqual(span!.status._tag === "Ended" && span!.status.endTime - span!.status.startTime, 5_500_000n)
        assert.strictEqual(child!.parent._tag === "Some" && child!.parent.value, span)
      })
    ))

  it.effect("uses the given stream", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const other = yield* CudaStream.make()
        const { spans: [span] } = yield* traced(Effect.void.pipe(CudaTiming.withSpan("other", { stream: other })))
        assert.strictEqual(span!.attributes.get("cuda.stream"), other.id)
        assert.isFalse(span!.attributes.has("stream"))
      })
    ))

  it.effect("neither measures nor waits when the span is not sampled", () =>
    onMachine(({ control, stream, work }) =>
      Effect.gen(function*() {
        yield* control.failNext("CudaEvent.make", "InvalidValue")
        const { exit, spans } = yield* traced(CudaTiming.withSpan(work(5), "unseen", { sampled: false }))
        assert.isTrue(Exit.isSuccess(exit))
        assert.deepStrictEqual(Object.fromEntries(spans[0]!.attributes), {})
        yield* Effect.withTracerEnabled(CudaTiming.withSpan(work(5), "unseen"), false)
        assert.isFalse(yield* CudaStream.query(stream))
      })
    ))

  it.effect("does not wait for an effect that fails or is interrupted", () =>
    onMachine(({ stream, work }) =>
      Effect.gen(function*() {
        const failing = CudaTiming.withSpan(Effect.andThen(work(50), Effect.fail("no")), "failing")
        const { exit, spans: [span] } = yield* traced(Effect.flip(failing))
        assert.deepStrictEqual(exit, Exit.succeed("no"))
        assert.deepStrictEqual(Object.fromEntries(span!.attributes), { "cuda.device": 0, "cuda.stream": stream.id })
        const fiber = yield* started(CudaTiming.withSpan(work(50), "waiting"))
        yield* Fiber.interrupt(fiber)
        assert.isFalse(yield* CudaStream.query(stream))
      })
    ))

  const calls: ReadonlyArray<OperationName> = [
    "CudaEvent.make",
    "CudaEvent.record",
    "CudaEvent.elapsedTime",
    "CudaStream.make"
  ]
  for (const call of calls) {
    it.effect(`says why there are no times when ${call} fails, and the program goes on`, () =>
      onMachine(({ control }) =>
        Effect.gen(function*() {
          yield* control.failNext(call, "InvalidValue")
          const { exit, spans: [span] } = yield* traced(CudaTiming.withSpan(Effect.succeed(1), "span"))
          assert.deepStrictEqual(exit, Exit.succeed(1))
          assert.include(String(span!.attributes.get("cuda.error")), "cu")
          assert.isFalse(span!.attributes.has("cuda.duration_ms"))
        })
      ))
  }
})

/** Makes a timeline from regions: a name, device, stream, and start and length in milliseconds. */
const timelineOf = (
  regions: ReadonlyArray<
    readonly [name: string, deviceIndex: number, streamId: number, start: number, length: number]
  >,
  attributes: CudaTiming.Attributes = {}
): CudaTiming.Timeline => ({
  regions: regions.map(([name, deviceIndex, streamId, start, length]) => ({
    name,
    deviceIndex,
    streamId,
    start: Duration.millis(start),
    duration: Duration.millis(length),
    attributes
  })),
  devices: [0, 1].map((index) => ({ index, name: `Model <${index}>`, uncertainty: Duration.zero })),
  dropped: 2,
  startTime: 1_700_000_000_123_456_789n
})

const Trace = Schema.fromJsonString(Schema.Struct({
  displayTimeUnit: Schema.String,
  otherData: Schema.Record(Schema.String, Schema.Unknown),
  traceEvents: Schema.Array(Schema.Struct({
    ph: Schema.Literals(["M", "X"]),
    name: Schema.String,
    pid: Schema.Int,
    tid: Schema.optionalKey(Schema.Int),
    cat: Schema.optionalKey(Schema.String),
    ts: Schema.optionalKey(Schema.Finite),
    dur: Schema.optionalKey(Schema.Finite),
    args: Schema.Record(Schema.String, Schema.Unknown)
  }))
}))

const readTrace = (timeline: CudaTiming.Timeline) => Schema.decodeUnknownSync(Trace)(CudaTiming.toTraceJson(timeline))

/** The regions of a trace. */
const readSlices = (timeline: CudaTiming.Timeline) =>
  readTrace(timeline).traceEvents.flatMap(({ dur, name, ph, tid, ts }) =>
    ph === "X" ? [{ name, tid, start: ts!, end: ts! + dur! }] : []
  )

describe("a trace", () => {
  it("shows devices as processes, streams as threads, and regions in microseconds", () => {
    const args = { bytes: 4, ok: true }
    const regions = [["b", 1, 9, 0.25, 1], ["a", 0, 7, 1.5, 0.125], ["d", 0, 0, 2, 3]] as const
    const { displayTimeUnit, otherData, traceEvents } = readTrace(timelineOf(regions, args))
    assert.strictEqual(displayTimeUnit, "ns")
    assert.deepStrictEqual(otherData, { startTime: "1700000000123456789", dropped: 2 })
    assert.deepStrictEqual(Array.from(traceEvents), [
      { ph: "M", name: "process_name", pid: 1, args: { name: "GPU 0: Model <0>" } },
      { ph: "M", name: "process_sort_index", pid: 1, args: { sort_index: 0 } },
      { ph: "M", name: "thread_name", pid: 1, tid: 1, args: { name: "default stream" } },
      { ph: "M", name: "thread_sort_index", pid: 1, tid: 1, args: { sort_index: 0 } },
      { ph: "X", name: "d", cat: "cuda", pid: 1, tid: 1, ts: 2000, dur: 3000, args },
      { ph: "M", name: "thread_name", pid: 1, tid: 2, args: { name: "stream 7" } },
      { ph: "M", name: "thread_sort_index", pid: 1, tid: 2, args: { sort_index: 1 } },
      { ph: "X", name: "a", cat: "cuda", pid: 1, tid: 2, ts: 1500, dur: 125, args },
      { ph: "M", name: "process_name", pid: 2, args: { name: "GPU 1: Model <1>" } },
      { ph: "M", name: "process_sort_index", pid: 2, args: { sort_index: 1 } },
      { ph: "M", name: "thread_name", pid: 2, tid: 3, args: { name: "stream 9" } },
      { ph: "M", name: "thread_sort_index", pid: 2, tid: 3, args: { sort_index: 2 } },
      { ph: "X", name: "b", cat: "cuda", pid: 2, tid: 3, ts: 250, dur: 1000, args }
    ])
  })

  it("puts interleaved regions on separate threads", () => {
    const timeline = timelineOf([
      ["left", 0, 7, 0, 4],
      ["right", 0, 7, 2, 4],
      ["in left", 0, 7, 1, 2],
      ["in right", 0, 7, 4.5, 1],
      ["after", 0, 7, 6, 1]
    ])
    const threads = readTrace(timeline).traceEvents.filter(({ name }) => name === "thread_name")
    assert.deepStrictEqual(threads.map(({ args }) => args["name"]), ["stream 7", "stream 7 (2)"])
    const tracks = Object.fromEntries(readSlices(timeline).map(({ name, tid }) => [name, tid]))
    assert.deepStrictEqual(tracks, { left: 1, "in left": 1, "in right": 1, after: 1, right: 2 })
  })

  const Drawn = Schema.Array(Schema.Struct({
    start: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 60 })),
    length: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 30 })),
    error: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 400 }))
  })).check(Schema.isMaxLength(30))

  it.prop(
    "has on every thread regions that nest or follow each other, where they were",
    { drawn: Drawn },
    ({ drawn }) => {
      // Ends that differ by less than the precision of the measurement.
      const slices = readSlices(timelineOf(
        drawn.map(({ error, length, start }, index) => [`${index}`, 0, 7, start + error / 1e6, length])
      ))
      assert.strictEqual(new Set(slices.map(({ name }) => name)).size, drawn.length)
      for (const [index, { end, name, start, tid }] of slices.entries()) {
        const drew = drawn[Number(name)]!
        assert.closeTo(start, drew.start * 1000, 2)
        assert.closeTo(end, (drew.start + drew.length) * 1000, 2)
        for (const earlier of slices.slice(0, index).filter((other) => other.tid === tid)) {
          assert.isAtLeast(start, earlier.start)
          assert.isTrue(start >= earlier.end - 1e-9 || end <= earlier.end + 1e-9, `${name} in ${earlier.name}`)
        }
      }
    }
  )
})

interface Element {
  readonly tag: string
  readonly attributes: ReadonlyMap<string, string>
  text: string
}

const unescape = (text: string) =>
  text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&quot;", "\"").replaceAll("&#39;", "'")
    .replaceAll("&amp;", "&")

/** Parses the elements of a well-formed picture with their text. Fails on anything else. */
const readSvg = (svg: string): ReadonlyArray<Element> => {
  const elements: Array<Element> = []
  const open: Array<Element> = []
  let rest = svg.trim()
  while (rest.length > 0) {
    const tag = /^<(\/?)([a-z]+)((?: [a-zA-Z0-9-]+="[^"<&]*")*)(\/?)>/.exec(rest)
    const text = /^(?:[^<&]|&(?:amp|lt|gt|quot|#39);)+/.exec(rest)
    if (tag?.[1] === "/") assert.strictEqual(open.pop()?.tag, tag[2])
    else if (tag !== null) {
      const attributes = Array.from(
        tag[3]!.matchAll(/ ([^=]+)="([^"]*)"/g),
        ([, key, value]) => [key!, value!] as const
      )
      const element = { tag: tag[2]!, attributes: new Map(attributes), text: "" }
      elements.push(element)
      if (tag[4] !== "/") open.push(element)
    } else if (text !== null) open.at(-1)!.text += unescape(text[0])
    else assert.fail(`not well-formed at ${rest.slice(0, 40)}`)
    rest = rest.slice((tag ?? text)![0].length)
  }
  assert.deepStrictEqual(open, [])
  assert.strictEqual(elements[0]!.tag, "svg")
  return elements
}

/** The bars of the regions. */
const readBars = (svg: string) => {
  const elements = readSvg(svg)
  return elements.flatMap(({ tag, text }, index) => {
    if (tag !== "title") return []
    const { attributes } = elements[index + 1]!
    const [x, y, width] = ["x", "y", "width"].map((key) => Number(attributes.get(key)))
    return [{ name: text.split("\n")[0]!, title: text, x: x!, y: y!, width: width!, fill: attributes.get("fill")! }]
  })
}

const barsByName = (svg: string) => Object.fromEntries(readBars(svg).map((bar) => [bar.name, bar]))

describe("a picture", () => {
  it("draws later regions further right, longer ones wider, and nested ones below", () => {
    const { inner, long, other, short } = barsByName(CudaTiming.toSvg(timelineOf([
      ["long", 0, 7, 10, 6],
      ["inner", 0, 7, 11, 2],
      ["short", 0, 7, 16, 1],
      ["other", 1, 9, 10, 3]
    ])))
    assert.isAbove(inner!.x, long!.x)
    assert.isAbove(short!.x, inner!.x)
    assert.closeTo(long!.width / short!.width, 6, 0.01)
    assert.closeTo(short!.x, long!.x + long!.width, 0.02)
    assert.strictEqual(long!.x, other!.x)
    assert.strictEqual(long!.y, short!.y)
    assert.isAbove(inner!.y, long!.y)
    assert.isAbove(other!.y, inner!.y)
    assert.closeTo(short!.x + short!.width, 1000 - 16, 0.02)
  })

  it("has the given width and title, and labels on lanes and ticks", () => {
    const svg = CudaTiming.toSvg(timelineOf([["a", 0, 7, 3, 1.5], ["b", 1, 0, 4, 2]]), { width: 640, title: "A & B" })
    const elements = readSvg(svg)
    assert.strictEqual(elements[0]!.attributes.get("width"), "640")
    const texts = elements.filter(({ tag }) => tag === "text").map(({ text }) => text)
    for (const text of ["A & B", "GPU 0: Model <0>", "stream 7", "GPU 1: Model <1>", "default stream"]) {
      assert.include(texts, text)
    }
    assert.deepStrictEqual(texts.filter((text) => text.endsWith(" ms")), ["3 ms", "4 ms", "5 ms", "6 ms"])
  })

  const axes: ReadonlyArray<readonly [start: number, length: number, first: string, last: string]> = [
    [0, 0.0001, "0 ns", "100 ns"],
    [0, 0.037, "0 µs", "35 µs"],
    [1.2345, 0.002, "1234.5 µs", "1236.5 µs"],
    [0, 25_000, "0 s", "25 s"],
    [3_600_000, 50, "3600.00 s", "3600.05 s"],
    [5, 0, "5000.0000 µs", "5000.0000 µs"]
  ]
  for (const [start, length, first, last] of axes) {
    it(`has ticks from ${first} to ${last} for ${length} ms from ${start} ms on`, () => {
      const ticks = readSvg(CudaTiming.toSvg(timelineOf([["a", 0, 7, start, length]]))).filter(({ attributes }) =>
        attributes.get("text-anchor") === "middle"
      )
      assert.deepStrictEqual([ticks[0]?.text, ticks.at(-1)?.text], [first, last])
      assert.isBelow(ticks.length, 12)
    })
  }

  it("escapes names, and describes regions in tooltips", () => {
    const name = `</title><script>"it's" & \u0000\ud800</script>`
    const [bar] = readBars(CudaTiming.toSvg(timelineOf([[name, 0, 7, 1, 0.25]], { "a<b": "c&d", count: 3 })))
    assert.strictEqual(bar!.name, `</title><script>"it's" & \ufffd\ufffd</script>`)
    assert.strictEqual(bar!.title, `${bar!.name}\n250 µs, from 1 ms\na<b: c&d\ncount: 3`)
  })

  it("uses one color per name, and labels bars with enough room", () => {
    const svg = CudaTiming.toSvg(timelineOf([["a", 0, 7, 0, 9], ["b", 0, 7, 9, 0.01], ["a", 0, 8, 2, 1]]))
    const [first, tiny, again] = readBars(svg)
    assert.strictEqual(first!.fill, again!.fill)
    assert.notStrictEqual(first!.fill, tiny!.fill)
    const labels = readSvg(svg).filter(({ attributes, tag }) => tag === "text" && attributes.has("fill"))
    assert.deepStrictEqual(labels.map(({ text }) => text), ["a", "a"])
  })

  it("draws regions inside the ones around them", () => {
    const svg = CudaTiming.toSvg(timelineOf([["outer", 0, 7, 0, 9], ["middle", 0, 7, 1, 7], ["inner", 0, 7, 2, 1]]))
    const elements = readSvg(svg)
    const rects = ["outer", "middle", "inner"].map((name) => {
      const { attributes } = elements[
        elements.findIndex(({ tag, text }) => tag === "title" && text.startsWith(name)) + 1
      ]!
      const [x, y, width, height] = ["x", "y", "width", "height"].map((key) => Number(attributes.get(key)))
      return { left: x!, top: y!, right: x! + width!, bottom: y! + height! }
    })
    for (const [index, inside] of rects.slice(1).entries()) {
      const around = rects[index]!
      assert.isTrue(around.left <= inside.left && inside.right <= around.right)
      assert.isTrue(around.top < inside.top && inside.bottom < around.bottom)
    }
  })

  it("has a legend, and shortens names that do not fit", () => {
    const name = "a name that is much too long for its bar"
    const svg = CudaTiming.toSvg(
      timelineOf([[name, 0, 7, 0, 1], ["rest", 0, 7, 1, 9], ["x".repeat(30), 0, 7, 10, 0.1]])
    )
    const texts = readSvg(svg).filter(({ tag }) => tag === "text").map(({ text }) => text)
    assert.isDefined(texts.find((text) => /^a name.*…$/.test(text)))
    assert.includeMembers(texts, [name, "rest", "x".repeat(30)])
    const many = Array.from({ length: 40 }, (_, index) => [`name ${index}`, 0, 7, index, 1] as const)
    const more = readSvg(CudaTiming.toSvg(timelineOf(many))).map(({ text }) => text)
    assert.include(more, "and 16 more")
  })

  it("begins at zero, unless the regions come late", () => {
    const ticks = (start: number) =>
      readSvg(CudaTiming.toSvg(timelineOf([["a", 0, 7, start, 10]])))
        .filter(({ attributes }) => attributes.get("text-anchor") === "middle").map(({ text }) => text)
    assert.strictEqual(ticks(0.7)[0], "0 ms")
    assert.strictEqual(ticks(5)[0], "0 ms")
    assert.strictEqual(ticks(20)[0], "20 ms")
  })

  it("is light or dark, as the viewer prefers or as it is told", () => {
    const timeline = timelineOf([["a", 0, 7, 0, 9]])
    const style = (theme?: "auto" | "light" | "dark") =>
      readSvg(CudaTiming.toSvg(timeline, { theme })).find(({ tag }) => tag === "style")!.text
    assert.strictEqual(style(), style("auto"))
    assert.strictEqual(style("auto"), `${style("light")}@media (prefers-color-scheme:dark){${style("dark")}}`)
    assert.notStrictEqual(style("light"), style("dark"))
  })

  it("names streams, as traces do", () => {
    const timeline = timelineOf([["a", 0, 7, 0, 9], ["b", 0, 8, 0, 9]])
    const named = { ...timeline, regions: timeline.regions.map((region) => ({ ...region, streamName: "<uploads>" })) }
    const texts = readSvg(CudaTiming.toSvg(named)).map(({ text }) => text)
    assert.strictEqual(texts.filter((text) => text === "<uploads>").length, 2)
    assert.include(CudaTiming.toTraceJson(named), `"args":{"name":"<uploads>"}`)
  })

  it("stays small with too many regions to see, and says if there are none", () => {
    const many = Array.from({ length: 50_000 }, (_, index) => ["step", 0, 7, index, 0.5] as const)
    assert.isBelow(CudaTiming.toSvg(timelineOf(many)).length, 2_000_000)
    const none = readSvg(CudaTiming.toSvg(timelineOf([])))
    assert.include(none.map(({ text }) => text), "no regions")
  })
})

type Same<A, B> = [A, B] extends [B, A] ? true : false

/** Compiles only if both types are the same. */
const same = <A, B>(proof: Same<A, B>): boolean => proof

type Timed = Effect.Effect<[duration: Duration.Duration, result: number], "no" | CudaError, CudaRuntime>

describe("exports", () => {
  const refusal = (write: () => string) => {
    try {
      write()
    } catch (error) {
      if (isCudaError(error) && error.reason._tag === "InvalidArgument") {
        return `${error.operation} ${error.reason.argument}`
      }
      throw error
    }
    return "nothing"
  }

  it("reject invalid widths", () => {
    const timeline = timelineOf([["a", 0, 7, 0, 9]])
    for (const width of [0, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 100_001, 2 ** 31, 1e300]) {
      assert.strictEqual(refusal(() => CudaTiming.toSvg(timeline, { width })), "CudaTiming.toSvg width", `${width}`)
    }
    // @ts-expect-error a theme that does not exist
    assert.strictEqual(refusal(() => CudaTiming.toSvg(timeline, { theme: "toString" })), "CudaTiming.toSvg theme")
    for (const width of [1, 20, 640.5, 100_000]) readSvg(CudaTiming.toSvg(timeline, { width }))
  })

  it("reject times beyond any axis", () => {
    for (const [start, length] of [[Infinity, 1], [0, Infinity], [-Infinity, 1], [1e15, 1], [0, 1e300]] as const) {
      const timeline = timelineOf([["a", 0, 7, start, length]])
      assert.strictEqual(refusal(() => CudaTiming.toSvg(timeline)), "CudaTiming.toSvg regions")
      assert.strictEqual(refusal(() => CudaTiming.toTraceJson(timeline)), "CudaTiming.toTraceJson regions")
    }
    for (const [start, length] of [[9e14, 0], [-9e14, 1e-6], [0, 9e14], [5, 1e-300]] as const) {
      const timeline = timelineOf([["a", 0, 7, start, length]])
      readSvg(CudaTiming.toSvg(timeline))
      readTrace(timeline)
    }
  })

  it("reject more text than a string can hold", () => {
    const text = "x".repeat(2 ** 28)
    const timeline = timelineOf([["a", 0, 7, 0, 1], ["b", 0, 7, 1, 1]], { text })
    assert.strictEqual(refusal(() => CudaTiming.toTraceJson(timeline)), "CudaTiming.toTraceJson regions")
    assert.throws(() => CudaTiming.toTraceJson(timeline), "regions is 2 regions;")
  })

  const count = 300_000
  const shapes = {
    "one after the other": (index: number) => [index, 1],
    "overlapping without nesting": (index: number) => [index, count]
  }
  for (const [shape, timesOf] of Object.entries(shapes)) {
    it(`support ${count} regions: ${shape}`, () => {
      const { regions: [region], ...rest } = timelineOf([["a", 0, 7, 0, 1]])
      const regions = Array.from({ length: count }, (_, index) => {
        const [start, duration] = timesOf(index)
        return { ...region!, start: Duration.millis(start!), duration: Duration.millis(duration!) }
      })
      const timeline = { ...rest, regions }
      const begun = performance.now()
      assert.isAbove(CudaTiming.toSvg(timeline, { width: 100_000 }).length, 100)
      assert.isAbove(CudaTiming.toTraceJson(timeline).length, 50 * count)
      // Trying each track for each region takes minutes.
      assert.isBelow(performance.now() - begun, 20_000)
    }, 30_000)
  }
})

describe("types", () => {
  it("are the same in both forms, and add the services that measuring needs", () => {
    const failing: Effect.Effect<number, "no"> = Effect.fail("no")
    const timed = [CudaTiming.timed(failing), failing.pipe(CudaTiming.timed())]
    assert.isTrue(same<(typeof timed)[number], Timed>(true))
    const regions = [CudaTiming.region(failing, "a"), failing.pipe(CudaTiming.region("a", { attributes: { a: 1 } }))]
    assert.isTrue(same<(typeof regions)[number], Effect.Effect<number, "no">>(true))
    const inSpan = Effect.as(Tracer.ParentSpan, 1)
    const spans = [CudaTiming.withSpan(inSpan, "a"), inSpan.pipe(CudaTiming.withSpan("a", { root: true }))]
    assert.isTrue(same<(typeof spans)[number], Effect.Effect<number, never, CudaRuntime>>(true))
    const recorded = CudaTiming.timeline(failing)
    type Recorded = Effect.Effect<readonly [CudaTiming.Timeline, number], "no" | CudaError, CudaRuntime>
    assert.isTrue(same<typeof recorded, Recorded>(true))
  })
})
