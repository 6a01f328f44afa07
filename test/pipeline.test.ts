/**
 * Pipelines on the simulated runtime, in virtual time: what overlaps, to the nanosecond; interruption and failure at every single
 * operation; and their types.
 */
import { assert, describe, it } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaPipeline from "effect-cuda/CudaPipeline"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as CudaTiming from "effect-cuda/CudaTiming"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { makeBytes, wrapEvery } from "./demo/support.ts"
import { cutOff, detached, resizable } from "./support/arrays.ts"
import { nothingHeld, refuses } from "./support/assertions.ts"
import { started } from "./support/fibers.ts"
import { withEveryYield } from "./support/yields.ts"

/** Copying a byte between host and device takes one nanosecond, in each direction. */
const hostBandwidth = 1e9
const device = { hostBandwidth, copyLatency: 0 }

/** In nanoseconds, rounded like in the model. */
const copyTime = (byteLength: number): number => Math.ceil((byteLength / hostBandwidth) * 1e9)

type Machine = Effect.Success<ReturnType<typeof SimulatedRuntime.make>>

const onMachine = <A, E>(body: (machine: Machine) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>) =>
  Effect.gen(function*() {
    const machine = yield* SimulatedRuntime.make({ devices: [device], recordTimeline: true })
    return yield* body(machine).pipe(Effect.provideService(CudaRuntime, machine.runtime))
  }).pipe(Effect.scoped)

/** Runs an effect to its end in virtual time. */
const passTime = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* started(effect)
    yield* TestClock.adjust("1 second")
    return yield* Fiber.join(fiber)
  })

/** An element: its bytes, and how long its work takes in nanoseconds. */
interface Item {
  readonly bytes: Uint8Array
  readonly work: number
}

const makeItems = (sizes: ReadonlyArray<number>, work: (index: number) => number): ReadonlyArray<Item> => {
  const all = makeBytes(sizes.reduce((sum, size) => sum + size, 0))
  let offset = 0
  return sizes.map((size, index) => ({ bytes: all.subarray(offset, offset += size), work: work(index) }))
}

const through = ({ control }: Machine, items: ReadonlyArray<Item>, slots: number) =>
  CudaPipeline.through(Stream.fromIterable(items), {
    slots,
    inputBytes: Math.max(1, ...items.map(({ bytes }) => bytes.byteLength)),
    fill: ({ bytes }, into) => CudaPipeline.copyIn(bytes, into),
    // A copy that is part of the kernel, so it takes no additional time.
    work: ({ element, input, output }) =>
      Effect.gen(function*() {
        const from = (yield* control.bytes(input.buffer)).subarray(0, input.byteLength)
        const to = yield* control.bytes(output.buffer)
        const duration = Duration.nanos(BigInt(element.work))
        yield* control.launch(yield* CudaStream.current(), { duration, run: () => to.set(from) })
      }),
    take: CudaPipeline.copyOut
  })

interface Times {
  readonly start: number
  readonly end: number
}

/** When every step starts and ends if each starts as soon as its stream and its element allow. */
const schedule = (items: ReadonlyArray<Item>, slots: number) => {
  const uploads: Array<Times> = []
  const works: Array<Times> = []
  const downloads: Array<Times> = []
  const add = (times: Array<Times>, after: number, duration: number): number => {
    const start = Math.max(after, times.at(-1)?.end ?? 0)
    times.push({ start, end: start + duration })
    return start + duration
  }
  for (const [index, { bytes, work }] of items.entries()) {
    // The slot is free, and the element is pulled, once the previous element of the slot and all before it are delivered.
    const uploaded = add(uploads, downloads[index - slots]?.end ?? 0, copyTime(bytes.byteLength))
    const worked = add(works, uploaded, work)
    add(downloads, worked, copyTime(bytes.byteLength))
  }
  return { uploads, works, downloads }
}

describe("overlap", () => {
  const timesOf = (machine: Machine, kind: SimulatedRuntime.TimelineEntry["kind"]) =>
    Effect.map(
      machine.control.timeline,
      (entries) => entries.filter((entry) => entry.kind === kind).map(({ end, start }) => ({ start, end }))
    )

  it.effect("fills all three streams: n elements of three equal steps take n + 2 steps", () =>
    onMachine((machine) =>
      Effect.gen(function*() {
        for (const [slots, steps] of [[1, 3 * 40], [2, 1.5 * 40 + 1], [3, 42], [4, 42]] as const) {
          const begun = yield* machine.control.now
          const items = makeItems(Array.from({ length: 40 }, () => 1000), () => 1000)
          yield* passTime(Stream.runDrain(through(machine, items, slots)))
          const downloads = yield* timesOf(machine, "deviceToHost")
          assert.approximately((downloads.at(-1)!.end - begun) / 1000, steps, 0.01, `${slots} slots`)
        }
      })
    ))

  it.effect.prop(
    "is as much as slots and streams allow, for any sizes, and returns the input unchanged",
    [
      Schema.Array(Schema.Struct({
        size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 3000 })),
        work: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 3000 }))
      })).check(Schema.isMaxLength(20)),
      Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 6 }))
    ],
    ([drawn, slots]) =>
      onMachine((machine) =>
        Effect.gen(function*() {
          const items = makeItems(drawn.map(({ size }) => size), (index) => drawn[index]!.work)
          const begun = yield* machine.control.now
          const returned = yield* passTime(Stream.runCollect(through(machine, items, slots)))
          for (const [index, bytes] of returned.entries()) assert.deepStrictEqual(bytes, items[index]!.bytes)
          assert.strictEqual(returned.length, items.length)
          const expected = schedule(items, slots)
          const shifted = (times: ReadonlyArray<Times>) =>
            times.map(({ end, start }) => ({ start: start - begun, end: end - begun }))
          assert.deepStrictEqual(shifted(yield* timesOf(machine, "hostToDevice")), expected.uploads)
          assert.deepStrictEqual(shifted(yield* timesOf(machine, "work")), expected.works)
          assert.deepStrictEqual(shifted(yield* timesOf(machine, "deviceToHost")), expected.downloads)
        })
      ),
    { arbitrary: { runs: 200 } }
  )

  it.effect("is visible in a timeline", () =>
    onMachine((machine) =>
      Effect.gen(function*() {
        const items = makeItems([1000, 1000, 1000, 1000], () => 1000)
        const [timeline] = yield* passTime(CudaTiming.timeline(Stream.runDrain(through(machine, items, 3))))
        const steps = timeline.regions.map(({ attributes, name }) => `${name} ${attributes["index"]}`)
        const named = (name: string) => [0, 1, 2, 3].map((index) => `${name} ${index}`)
        assert.deepStrictEqual(steps.toSorted(), [...named("download"), ...named("upload"), ...named("work")])
        const [first] = timeline.regions
        const last = timeline.regions.at(-1)!
        const whole = Duration.subtract(Duration.sum(last.start, last.duration), first!.start)
        assert.approximately(Duration.toMillis(whole), 6e-3, 1e-4)
        assert.strictEqual(new Set(timeline.regions.map(({ streamId }) => streamId)).size, 3)
      })
    ))
})

describe("lifetimes", () => {
  /** A machine on which nothing takes long in real time. */
  const fast = { devices: [{ hostBandwidth: 1e12, deviceBandwidth: 1e12, copyLatency: 0 }] }

  const items = makeItems([100, 1, 256, 0, 255, 17, 100], () => 0)

  /** Runs a pipeline and acts at its n-th operation. */
  const runWith = Effect.fnUntraced(function*(
    slots: number,
    step: number,
    around: (
      operation: Effect.Effect<unknown, CudaError>,
      interrupt: () => void
    ) => Effect.Effect<unknown, CudaError>
  ) {
    const { runtime } = yield* SimulatedRuntime.make(fast)
    const running: { fiber?: Fiber.Fiber<void, CudaError> } = {}
    const delivered: Array<Uint8Array> = []
    const calls: Array<string> = []
    const changed = wrapEvery(runtime, (operation, name) =>
      Effect.suspend(() => {
        if (calls.push(name) !== step) return operation
        return around(operation, () => running.fiber?.interruptUnsafe())
      }))
    running.fiber = yield* Stream.fromIterable(items).pipe(
      Stream.rechunk(2),
      CudaPipeline.through({
        slots,
        inputBytes: 256,
        fill: ({ bytes }, into) => Effect.andThen(Effect.yieldNow, CudaPipeline.copyIn(bytes, into)),
        work: ({ input, output }) => CudaMemory.copy(output, input),
        take: (bytes) => Effect.andThen(Effect.yieldNow, CudaPipeline.copyOut(bytes))
      }),
      Stream.runForEach((bytes) => Effect.sync(() => delivered.push(bytes))),
      Effect.provideService(CudaRuntime, changed),
      Effect.forkChild
    )
    const exit = yield* Fiber.await(running.fiber)
    assert.deepStrictEqual(yield* runtime.liveResources, nothingHeld, `step ${step}, ${calls[step - 1]}`)
    for (const [index, bytes] of delivered.entries()) assert.deepStrictEqual(bytes, items[index]!.bytes)
    return { calls, delivered, exit }
  }, Effect.scoped)

  const moments = {
    before: (operation: Effect.Effect<unknown, CudaError>, interrupt: () => void) =>
      Effect.andThen(Effect.sync(interrupt), operation),
    after: (operation: Effect.Effect<unknown, CudaError>, interrupt: () => void) =>
      Effect.ensuring(operation, Effect.sync(interrupt)),
    "a turn after": (operation: Effect.Effect<unknown, CudaError>, interrupt: () => void) =>
      Effect.ensuring(operation, Effect.sync(() => setImmediate(interrupt)))
  }

  for (const slots of [1, 2, 4]) {
    for (const [moment, around] of Object.entries(moments)) {
      it.live(`leave nothing when interrupted ${moment} any operation: ${slots} slots`, () =>
        Effect.gen(function*() {
          const { calls, delivered, exit } = yield* runWith(slots, Number.POSITIVE_INFINITY, around)
          assert.deepStrictEqual([exit, delivered.length], [Exit.void, items.length])
          assert.isAbove(calls.length, 60)
          for (let step = 1; step <= calls.length; step++) yield* runWith(slots, step, around)
        }))
    }

    it.live(`leave nothing when any operation fails, and fail: ${slots} slots`, () =>
      Effect.gen(function*() {
        const failure = yield* Effect.flip(CudaPipeline.copyIn(new Uint8Array(2), new Uint8Array(1)))
        const { calls } = yield* runWith(slots, Number.POSITIVE_INFINITY, Effect.succeed)
        for (const [index, name] of calls.entries()) {
          // A failed release leaves its resource behind.
          if (/Destroy|Free/.test(name)) continue
          const { exit } = yield* runWith(slots, index + 1, () => Effect.fail(failure))
          assert.isTrue(Exit.isFailure(exit), `${name}, operation ${index + 1}`)
        }
      }))
  }

  it.effect("do not begin for a source without elements", () =>
    Effect.gen(function*() {
      const { runtime } = yield* SimulatedRuntime.make(fast)
      const calls: Array<string> = []
      const changed = wrapEvery(runtime, (operation, name) => {
        calls.push(name)
        return operation
      })
      const returned = yield* Stream.empty.pipe(
        CudaPipeline.through({
          inputBytes: 256,
          fill: CudaPipeline.copyIn,
          work: () => Effect.void,
          take: CudaPipeline.copyOut
        }),
        Stream.runCollect,
        Effect.provideService(CudaRuntime, changed)
      )
      assert.deepStrictEqual([returned, calls], [[], []])
    }))

  it.effect("end after all running fills, which keep their memory", () =>
    Effect.gen(function*() {
      const { runtime } = yield* SimulatedRuntime.make(fast)
      const begun: Array<number> = []
      const ended: Array<readonly [element: number, room: number]> = []
      const later = Stream.fromEffect(Effect.as(Effect.sleep(20), 2))
      const fiber = yield* Stream.make(0, 1).pipe(
        Stream.concat(later),
        CudaPipeline.through({
          inputBytes: 256,
          fill: (element, into) => {
            begun.push(element)
            return Effect.sleep(50 + 20 * element).pipe(
              Effect.map(() => ended.push([element, into.byteLength])),
              Effect.uninterruptible
            )
          },
          work: () => Effect.void,
          take: () => Effect.void
        }),
        Stream.runDrain,
        Effect.provideService(CudaRuntime, runtime),
        started
      )
      yield* TestClock.adjust(10)
      fiber.interruptUnsafe()
      yield* TestClock.adjust(200)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      // The third element arrived during the wait for the others.
      assert.sameMembers(begun, [0, 1])
      assert.deepStrictEqual(ended, [[0, 256], [1, 256]])
      assert.deepStrictEqual(yield* runtime.liveResources, nothingHeld)
    }))

  it.live("end when the device fails, with a failure that names the pipeline and the reason", () =>
    Effect.gen(function*() {
      const { control, runtime } = yield* SimulatedRuntime.make(fast)
      const run = (work: Effect.Effect<void, CudaError>) =>
        Stream.fromIterable(items).pipe(
          CudaPipeline.through({
            inputBytes: 256,
            fill: ({ bytes }, into) => CudaPipeline.copyIn(bytes, into),
            work: ({ index }) => index === 3 ? work : Effect.void,
            take: CudaPipeline.copyOut
          }),
          Stream.runDrain,
          Effect.provideService(CudaRuntime, runtime),
          Effect.flip
        )
      yield* control.failNext("CudaMemory.allocate", "OutOfMemory", 2)
      const full = yield* run(Effect.void)
      assert.deepStrictEqual([full.operation, full.reason._tag], ["CudaPipeline.through", "OutOfMemory"])
      const lost = yield* run(control.lose(0, "IllegalAddress"))
      assert.deepStrictEqual([lost.operation, lost.reason._tag], ["CudaPipeline.through", "IllegalAddress"])
      assert.deepStrictEqual(yield* runtime.liveResources, nothingHeld)
    }))
})

describe("schedulers", () => {
  /** Trivial operations of a fiber, which may yield before each of them. */
  const operations = (count: number) => {
    let left = count
    return Effect.whileLoop({ while: () => left-- > 0, body: () => Effect.void, step: () => {} })
  }

  it.live("may make fibers yield at any moment", () =>
    Effect.gen(function*() {
      const { runtime } = yield* SimulatedRuntime.make({
        devices: [{ hostBandwidth: 1e12, deviceBandwidth: 1e12, copyLatency: 0 }]
      })
      yield* withEveryYield((most) =>
        Effect.gen(function*() {
          for (const slots of [1, 2, 3, 5]) {
            const returned = yield* Stream.range(0, 99).pipe(
              CudaPipeline.through({
                slots,
                inputBytes: 1,
                fill: (index) => Effect.as(operations((index * 7) % 5), 1),
                work: ({ index }) => operations((index * 3) % 4),
                take: (_, index) => Effect.as(operations((index * 37) % (2 * most)), index)
              }),
              Stream.runCollect,
              Effect.timeout(5000)
            )
            assert.deepStrictEqual(returned, Array.from({ length: 100 }, (_, index) => index))
          }
        })
      ).pipe(Effect.provideService(CudaRuntime, runtime))
    }).pipe(Effect.scoped), 60_000)
})

describe("copies", () => {
  const gone = () => [
    detached(new Uint8Array(8)),
    detached(new Float64Array(8)),
    detached(new DataView(new ArrayBuffer(8))),
    cutOff(Uint8Array),
    cutOff(Float32Array),
    cutOff(DataView)
  ]

  it.effect("reject arrays whose memory is gone", () =>
    Effect.gen(function*() {
      for (const array of gone()) yield* refuses(CudaPipeline.copyIn(array, new Uint8Array(8)), "element")
      for (const array of [detached(new Uint8Array(8)), cutOff(Uint8Array)]) {
        yield* refuses(CudaPipeline.copyIn(new Uint8Array(0), array), "into")
        yield* refuses(CudaPipeline.copyOut(array), "bytes")
      }
    }))

  it.effect("accept any array, and share no memory with it", () =>
    Effect.gen(function*() {
      const into = new Uint8Array(8)
      const { buffer: ends, resize } = resizable(8)
      new Uint8Array(ends).set([1, 2, 3, 4, 5, 6, 7, 8])
      resize(6)
      assert.strictEqual(yield* CudaPipeline.copyIn(new Uint8Array(ends), into), 6)
      assert.strictEqual(yield* CudaPipeline.copyIn(new DataView(ends, 4), into), 2)
      assert.deepStrictEqual(Array.from(into), [5, 6, 3, 4, 5, 6, 0, 0])
      assert.strictEqual(yield* CudaPipeline.copyIn(new Float32Array(0), into), 0)
      const shared = new Uint8Array(new SharedArrayBuffer(2)).fill(9)
      assert.strictEqual(yield* CudaPipeline.copyIn(shared, into), 2)
      const bytes = Buffer.from([1, 2, 3])
      const copy = yield* CudaPipeline.copyOut(bytes)
      bytes.fill(0)
      assert.deepStrictEqual(copy, Uint8Array.of(1, 2, 3))
    }))

  it.effect("say in failures how much would fit", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(CudaPipeline.copyIn(new Uint8Array(2), new Uint8Array(1)))
      assert.include(failure.message, "expected an array of at most 1 byte.")
    }))
})

class Input extends Context.Service<Input, number>()("test/pipeline/Input") {}
class Filling extends Context.Service<Filling, number>()("test/pipeline/Filling") {}
class Working extends Context.Service<Working, number>()("test/pipeline/Working") {}
class Taking extends Context.Service<Taking, number>()("test/pipeline/Taking") {}

type Same<A, B> = [A, B] extends [B, A] ? true : false

/** Compiles only if both types are the same. */
const same = <A, B>(proof: Same<A, B>): boolean => proof

describe("types", () => {
  const step = <A, E, R>(result: A, failure: E, service: Effect.Effect<number, never, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(service, () => result === undefined ? Effect.fail(failure) : Effect.succeed(result))

  const source = Stream.fromEffect(step("element", "source" as const, Input))

  type Expected = Stream.Stream<
    Date,
    "source" | "fill" | "work" | "take" | CudaError,
    Input | Filling | Working | Taking | CudaRuntime
  >

  it("are unions of the services and failures of the source and the steps, in both forms", () => {
    const first = CudaPipeline.through(source, {
      inputBytes: 1,
      fill: (element) => step(element.length, "fill" as const, Filling),
      work: ({ element }) => step(CudaPipeline.outputBytes(element.length), "work" as const, Working),
      take: (bytes, element) => step(new Date(bytes.byteLength + element.length), "take" as const, Taking)
    })
    const last = source.pipe(
      CudaPipeline.through({
        inputBytes: 1,
        fill: (element) => step(element.length, "fill" as const, Filling),
        work: ({ element }) => step(CudaPipeline.outputBytes(element.length), "work" as const, Working),
        take: (bytes, element) => step(new Date(bytes.byteLength + element.length), "take" as const, Taking)
      })
    )
    assert.isTrue(same<typeof first, Expected>(true))
    assert.isTrue(same<typeof last, Expected>(true))
  })

  it("of the transfers fit arrays", () => {
    const returned = Stream.make(new Float32Array(1)).pipe(
      CudaPipeline.through({
        inputBytes: 4,
        fill: CudaPipeline.copyIn,
        work: () => Effect.void,
        take: CudaPipeline.copyOut
      })
    )
    assert.isTrue(same<typeof returned, Stream.Stream<Uint8Array<ArrayBuffer>, CudaError, CudaRuntime>>(true))
  })
})
