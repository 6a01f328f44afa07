/**
 * Fault exploration: it finds what is wrong with a program, finds nothing wrong with one that is right, and replays what it has found.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaBranch,
  CudaEvent,
  CudaFaults,
  CudaGraph,
  CudaMemory,
  CudaMemoryPool,
  CudaModule,
  CudaPartition,
  CudaRuntime,
  CudaStream,
  FaultInjection,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { readFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { refuses } from "./support/assertions.ts"
import { program as kernels, simulatedKernels } from "./support/kernels.ts"
import { assertReleased, openStub, stubLayer } from "./support/stubDriver.ts"

/** A program in which nothing can go wrong. */
const copy = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const buffer = yield* CudaMemory.allocate(64)
  const host = yield* CudaMemory.allocateHost(64)
  yield* CudaMemory.copy(buffer, host, stream)
  yield* CudaStream.synchronize(stream)
})

const tagsOf = <E>({ problems }: CudaFaults.Run<E>) => problems.map(({ _tag }) => _tag)

/** The runs that show a problem, with its tags. */
const problemsOf = <E>({ runs, undisturbed }: CudaFaults.Report<E>) =>
  [undisturbed, ...runs].flatMap((run) => run.problems.length === 0 ? [] : [[run.fault, tagsOf(run)]])

const fails = (operation: CudaRuntime.OperationName, status: "InvalidValue" | "OutOfMemory" | "IllegalAddress") => ({
  operation,
  occurrence: 1,
  status
})

describe("a program that releases everything", () => {
  it.effect("shows no problems with partitions and growable buffers", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const [one, rest] = yield* CudaPartition.split([16, "rest"])
        const buffer = yield* CudaMemory.growable({ maxBytes: 2 ** 30, initial: 2 ** 21 })
        const fill = Effect.andThen(CudaMemory.grow(buffer, 2 ** 22), CudaMemory.fill(buffer, 1))
        yield* fill.pipe(CudaPartition.within(one))
        const stream = yield* CudaStream.make({ partition: rest })
        yield* CudaMemory.fill(buffer, 2, stream)
        yield* CudaMemory.shrink(buffer, 2 ** 20)
      })
      yield* Effect.flatMap(CudaFaults.everyCall(program), CudaFaults.expectNone)
    }))

  it.effect("shows no problems, with each call failing and interrupted", () =>
    Effect.gen(function*() {
      const report = yield* Effect.flatMap(CudaFaults.everyCall(copy), CudaFaults.expectNone)
      assert.deepStrictEqual(report.steps.map(({ operation }) => operation), [
        "CudaStream.make",
        "CudaMemory.allocate",
        "CudaMemory.allocateHost",
        "CudaMemory.copy",
        "CudaStream.synchronize",
        "CudaMemory.release",
        "CudaMemory.release",
        "CudaStream.release"
      ])
      assert.deepStrictEqual(report.skipped, [])
      const first = report.runs.filter(({ fault }) => fault?.operation === "CudaMemory.allocate")
      assert.deepStrictEqual(first.map(({ exit, fault }) => [CudaFaults.describe(fault), exit?._tag]), [
        ["CudaMemory.allocate, call 1, fails with InvalidValue", "Failure"],
        ["CudaMemory.allocate, call 1, fails with OutOfMemory", "Success"],
        ["CudaMemory.allocate, call 1, fails 4 times with OutOfMemory", "Failure"],
        ["CudaMemory.allocate, call 1, fails with IllegalAddress", "Failure"],
        ["interrupted before CudaMemory.allocate, call 1", "Failure"],
        ["interrupted during CudaMemory.allocate, call 1", "Failure"],
        ["interrupted after CudaMemory.allocate, call 1", "Failure"]
      ])
      const retried = report.runs.filter(({ notes }) => notes.length > 0)
      assert.deepStrictEqual(retried.map(({ fault, notes }) => [fault, notes]), [
        [fails("CudaMemory.allocate", "OutOfMemory"), [{ _tag: "Succeeded" }]]
      ])
    }))

  it.effect("may use everything that waits, records and branches", () => {
    const program = Effect.gen(function*() {
      const stream = yield* CudaStream.fromPool()
      const pool = yield* CudaMemoryPool.make()
      const event = yield* CudaEvent.make({ timing: true })
      const buffer = yield* CudaMemory.allocate(256, { pool, ordered: true })
      yield* CudaModule.load(yield* kernels)
      const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaMemory.fill(buffer, 1)))
      yield* CudaGraph.launch(exec, stream)
      yield* CudaBranch.all([CudaMemory.fill(buffer, 2), CudaMemory.fill(buffer, 3)]).pipe(
        CudaStream.withStream(stream)
      )
      yield* CudaEvent.record(event, stream)
      yield* CudaEvent.synchronize(event)
      yield* Effect.sleep("1 hour")
      yield* CudaMemory.download(new Uint8Array(256), buffer, stream)
    })
    return CudaFaults.everyCall(program, {
      runtime: SimulatedRuntime.layer({ kernels: simulatedKernels }),
      deadline: "2 hours",
      concurrency: 4,
      mayFail: (error, fault) => fault !== undefined && error._tag === "CudaError"
    }).pipe(Effect.flatMap(CudaFaults.expectNone))
  })
})

describe("a program that is wrong", () => {
  it.effect("by what it leaves is found, and can be replayed", () =>
    Effect.gen(function*() {
      const leaky = Effect.gen(function*() {
        const runtime = yield* CudaRuntime.CudaRuntime
        const event = yield* runtime.eventCreate(0, 0)
        yield* CudaMemory.allocate(64)
        yield* runtime.eventDestroy(event)
      })
      const report = yield* CudaFaults.everyCall(leaky)
      const left = report.runs.filter((run) => tagsOf(run).includes("Leaked"))
      assert.deepStrictEqual(left.map(({ fault }) => fault), [
        { operation: "CudaEvent.make", occurrence: 1, interrupt: "after" },
        fails("CudaMemory.allocate", "InvalidValue"),
        { ...fails("CudaMemory.allocate", "OutOfMemory"), times: 4 },
        fails("CudaMemory.allocate", "IllegalAddress"),
        ...(["before", "after"] as const).map((interrupt) => ({
          operation: "CudaMemory.allocate" as const,
          occurrence: 1,
          interrupt
        })),
        { operation: "CudaEvent.release", occurrence: 1, interrupt: "before" }
      ])
      for (const { problems } of left) assert.deepStrictEqual(problems, [{ _tag: "Leaked", left: { events: 1 } }])
      const again = yield* CudaFaults.everyCall(leaky, { only: left[1]!.fault })
      assert.deepStrictEqual(again.runs.map(({ fault, problems }) => ({ fault, problems })), [
        { fault: left[1]!.fault, problems: left[1]!.problems }
      ])
      const error = yield* Effect.flip(CudaFaults.expectNone(again))
      assert.deepStrictEqual(error.message.split("\n"), [
        "1 run of a program with 4 calls: 1 problem, 0 notes",
        "CudaMemory.allocate, call 1, fails with InvalidValue",
        "  problem: left live: events 1",
        "  replay: { only: {\"operation\":\"CudaMemory.allocate\",\"occurrence\":1,\"status\":\"InvalidValue\"} }"
      ])
    }))

  it.effect("by hanging is found at once, however long the deadline is", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(
        Effect.catch(copy, () => Effect.never),
        { deadline: "30 days", operations: ["CudaMemory.copy"], interruptions: [] }
      )
      assert.deepStrictEqual(problemsOf(report), [
        [fails("CudaMemory.copy", "InvalidValue"), ["Hung"]],
        [fails("CudaMemory.copy", "IllegalAddress"), ["Hung"]]
      ])
    }))

  it.effect("by hanging at its interruption is found", () =>
    Effect.gen(function*() {
      const stubborn = Effect.ensuring(copy, Effect.never)
      const { runs, undisturbed } = yield* CudaFaults.everyCall(stubborn, {
        only: fails("CudaMemory.copy", "InvalidValue")
      })
      for (const run of [undisturbed, ...runs]) {
        assert.isUndefined(run.exit)
        assert.deepStrictEqual(run.problems, [
          { _tag: "Hung", phase: "program" },
          { _tag: "Hung", phase: "interruption" }
        ])
      }
    }))

  it.effect("by sleeping longer than the deadline is found, and by sleeping less is not", () =>
    Effect.gen(function*() {
      const slow = Effect.tap(copy, () => Effect.sleep("1 hour"))
      const options = { operations: [] }
      assert.deepStrictEqual(problemsOf(yield* CudaFaults.everyCall(slow, options)), [[undefined, ["Hung"]]])
      assert.deepStrictEqual(problemsOf(yield* CudaFaults.everyCall(slow, { ...options, deadline: "2 hours" })), [])
    }))

  it.effect("by trying the same forever is found", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(Effect.retry(copy, Schedule.forever), {
        only: fails("CudaMemory.copy", "IllegalAddress")
      })
      assert.deepStrictEqual(tagsOf(report.runs[0]!), ["Hung"])
    }))

  it.effect("by waiting for work that never ends is found", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const control = yield* SimulatedRuntime.SimulatedControl
        const stream = yield* CudaStream.make()
        yield* control.launch(stream, { duration: Infinity })
        yield* Effect.ignore(CudaStream.synchronize(stream))
      })
      const { undisturbed } = yield* CudaFaults.everyCall(program, { operations: [] })
      assert.include(tagsOf(undisturbed), "NeverFinished")
    }))

  it.effect("by dying is found", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(Effect.orDie(copy), { statuses: ["MapFailed"], interruptions: [] })
      assert.strictEqual(report.runs.length, 8)
      const died = report.runs.filter((run) => tagsOf(run).includes("Died"))
      assert.strictEqual(died.length, 5, "releases do not fail a program")
    }))

  it.effect("by interrupting itself is found", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(Effect.catch(copy, () => Effect.interrupt), {
        only: fails("CudaMemory.copy", "InvalidValue")
      })
      assert.deepStrictEqual(tagsOf(report.runs[0]!), ["Interrupted"])
    }))

  it.effect("by other releases that fail is found", () =>
    Effect.gen(function*() {
      const other = Effect.gen(function*() {
        const faults = yield* FaultInjection.FaultInjection
        yield* CudaEvent.make()
        yield* Effect.tapError(
          CudaMemory.allocate(64),
          () => Effect.orDie(faults.failNext("CudaEvent.release", "InvalidHandle"))
        )
      })
      const report = yield* CudaFaults.everyCall(other, {
        runtime: Layer.provideMerge(FaultInjection.layer, SimulatedRuntime.layer()),
        only: fails("CudaMemory.allocate", "InvalidValue")
      })
      assert.deepStrictEqual(tagsOf(report.runs[0]!), ["ReleaseFailed"])
    }))

  it.effect("by a failure that is not allowed is found", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(copy, {
        operations: ["CudaMemory.copy"],
        interruptions: [],
        mayFail: (error) => error.isSticky
      })
      assert.deepStrictEqual(problemsOf(report), [[fails("CudaMemory.copy", "InvalidValue"), ["UnexpectedFailure"]]])
    }))

  it.effect("even undisturbed is found", () =>
    Effect.gen(function*() {
      const { undisturbed } = yield* CudaFaults.everyCall(Effect.andThen(copy, Effect.fail("no")))
      assert.deepStrictEqual(undisturbed.problems, [{ _tag: "UnexpectedFailure", failure: "no" }])
    }))
})

class Refused extends Data.TaggedError("Refused")<{ readonly cause: unknown }> {}

describe("what is allowed is noted", () => {
  const only = fails("CudaMemory.copy", "InvalidValue")

  it.effect("if a program succeeds in spite of a failure", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(Effect.ignore(copy), { only })
      assert.deepStrictEqual([report.runs[0]!.problems, report.runs[0]!.notes], [[], [{ _tag: "Succeeded" }]])
      assert.include(CudaFaults.format(report), "  note: succeeded, although a call failed")
    }))

  it.effect("if a failure does not name the injected one", () =>
    Effect.gen(function*() {
      const notesOf = <E>(convert: (error: CudaError.CudaError) => E) =>
        Effect.map(CudaFaults.everyCall(Effect.mapError(copy, convert), { only }), ({ runs }) => runs[0]!.notes)
      assert.deepStrictEqual(yield* notesOf((cause) => new Refused({ cause })), [])
      assert.deepStrictEqual(yield* notesOf((error) => new Error("no", { cause: error })), [])
      assert.deepStrictEqual(yield* notesOf(() => "no"), [{ _tag: "Unrelated", failure: "no" }])
    }))

  it.effect("if a call is not made", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(copy, { only: { ...only, occurrence: 2 } })
      assert.deepStrictEqual(report.runs[0]!.notes, [{ _tag: "NotReached" }])
    }))
})

describe("an exploration", () => {
  it.effect("keeps the log of its runs", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(copy, { only: fails("CudaStream.release", "InvalidValue") })
      const { log, notes, problems } = report.runs[0]!
      assert.deepStrictEqual([problems, notes], [[], []])
      assert.strictEqual(log.length, 1)
      assert.match(log[0]!, /^Warn CudaStream\.release/)
    }))

  it.effect("is bounded, says what is left out, and covers every kind of fault", () =>
    Effect.gen(function*() {
      const { runs: all } = yield* CudaFaults.everyCall(copy)
      const report = yield* CudaFaults.everyCall(copy, { maxRuns: 12 })
      assert.strictEqual(report.runs.length, 12)
      assert.strictEqual(report.skipped.length, all.length - 12)
      assert.match(CudaFaults.format(report), new RegExp(`^${all.length - 12} runs of ${all.length} left out`, "m"))
      const kinds = new Set(report.runs.map(({ fault }) => "interrupt" in fault! ? fault.interrupt : fault!.status))
      assert.strictEqual(kinds.size, 6)
    }))

  it.effect("gives each run its own time, runtime and layers", () =>
    Effect.gen(function*() {
      class Built extends Data.Class<{ readonly at: number }> {}
      const built: Array<Built> = []
      const layer = Layer.effectDiscard(
        Effect.flatMap(Clock.currentTimeMillis, (at) => Effect.sync(() => built.push(new Built({ at }))))
      )
      const program = Effect.andThen(Effect.sleep("1 second"), copy).pipe(Effect.provide(layer))
      const { runs } = yield* CudaFaults.everyCall(program, { concurrency: 8 })
      assert.deepStrictEqual(built, [...runs, runs].map(() => new Built({ at: 0 })))
    }))

  it.effect("waits for files", () =>
    Effect.gen(function*() {
      const path = fileURLToPath(import.meta.url)
      const reading = Effect.tryPromise(async () => {
        for (let times = 0; times < 20; times++) await readFile(path)
      }).pipe(Effect.timeout("1 second"), Effect.andThen(copy))
      yield* Effect.flatMap(CudaFaults.everyCall(reading, { maxRuns: 10, concurrency: 3 }), CudaFaults.expectNone)
    }))

  it.effect("fails with the failure of the runtime", () =>
    Effect.gen(function*() {
      const failing = Layer.effect(CudaRuntime.CudaRuntime, Effect.fail(new Refused({ cause: 1 })))
      const exit = yield* Effect.exit(CudaFaults.everyCall(copy, { runtime: failing }))
      assert.isTrue(Exit.isFailure(exit) && Cause.squash(exit.cause) instanceof Refused)
    }))

  it.effect("works on layers around a runtime", () => {
    const runtime = Layer.provideMerge(FaultInjection.layer, SimulatedRuntime.layer())
    return Effect.flatMap(CudaFaults.everyCall(copy, { runtime }), CudaFaults.expectNone)
  })

  it.effect("refuses invalid options", () =>
    Effect.gen(function*() {
      const wrong: string = "wrong"
      const only = fails("CudaMemory.copy", "InvalidValue")
      yield* refuses(CudaFaults.everyCall(copy, { operations: [wrong as "CudaMemory.copy"] }), "operations")
      yield* refuses(CudaFaults.everyCall(copy, { statuses: [wrong as "MapFailed"] }), "statuses")
      yield* refuses(CudaFaults.everyCall(copy, { interruptions: [wrong as "after"] }), "interruptions")
      yield* refuses(CudaFaults.everyCall(copy, { only: { ...only, occurrence: 0 } }), "only.occurrence")
      yield* refuses(CudaFaults.everyCall(copy, { only: { ...only, status: wrong as "MapFailed" } }), "statuses")
      yield* refuses(CudaFaults.everyCall(copy, { only: { ...only, times: 0.5 } }), "only.times")
      yield* refuses(CudaFaults.everyCall(copy, { concurrency: 0 }), "concurrency")
      yield* refuses(CudaFaults.everyCall(copy, { maxRuns: Number.NaN }), "maxRuns")
      yield* refuses(CudaFaults.everyCall(copy, { deadline: Infinity }), "deadline")
      yield* refuses(CudaFaults.everyCall(copy, { time: wrong as "real" }), "time")
    }))
})

describe("pairs of faults", () => {
  /** Cleans up after a failure with two releases, the second of which depends on the first. */
  const careless = Effect.gen(function*() {
    const runtime = yield* CudaRuntime.CudaRuntime
    const make = Effect.all([runtime.eventCreate(0, 0), runtime.eventCreate(0, 0)])
    yield* Effect.acquireUseRelease(
      make,
      () => CudaMemory.allocate(64),
      ([one, other], exit) =>
        Exit.isFailure(exit)
          ? Effect.andThen(runtime.eventDestroy(one), runtime.eventDestroy(other))
          : Effect.ensuring(Effect.ignore(runtime.eventDestroy(one)), Effect.ignore(runtime.eventDestroy(other)))
    )
  })
  const options = {
    operations: ["CudaMemory.allocate", "CudaEvent.release"],
    statuses: ["InvalidValue"],
    interruptions: []
  } as const

  it.effect("find what goes wrong only in the cleanup of a failure", () =>
    Effect.gen(function*() {
      yield* Effect.flatMap(CudaFaults.everyCall(careless, options), CudaFaults.expectNone)
      const report = yield* CudaFaults.everyCall(careless, { ...options, depth: 2 })
      const left = report.runs.filter((run) => tagsOf(run).includes("Leaked"))
      const fault = {
        ...fails("CudaMemory.allocate", "InvalidValue"),
        followedBy: fails("CudaEvent.release", "InvalidValue")
      }
      assert.deepStrictEqual(left.map((run) => run.fault), [fault])
      assert.include(
        CudaFaults.format(report),
        "CudaMemory.allocate, call 1, fails with InvalidValue, then CudaEvent.release, call 1, fails with InvalidValue\n" +
          "  problem: left live: events 1\n" +
          `  replay: { only: ${JSON.stringify(fault)} }`
      )
      const again = yield* CudaFaults.everyCall(careless, { only: fault })
      assert.deepStrictEqual(again.runs.map(({ problems }) => problems), [left[0]!.problems])
    }))

  it.effect("fail the calls of a second attempt", () =>
    Effect.gen(function*() {
      const twice = Effect.retry(CudaMemory.allocateHost(64), { times: 1 })
      const only = { operations: ["CudaMemory.allocateHost"], statuses: ["InvalidValue"], interruptions: [] } as const
      const { runs } = yield* CudaFaults.everyCall(twice, { ...only, depth: 2 })
      assert.deepStrictEqual(runs.map(({ exit, fault }) => [CudaFaults.describe(fault), exit?._tag]), [
        ["CudaMemory.allocateHost, call 1, fails with InvalidValue", "Success"],
        [
          "CudaMemory.allocateHost, call 1, fails with InvalidValue, " +
          "then CudaMemory.allocateHost, call 2, fails with InvalidValue",
          "Failure"
        ]
      ])
    }))

  it.effect("interrupt a cleanup, and fail the cleanup of an interruption", () =>
    Effect.gen(function*() {
      const report = yield* Effect.flatMap(CudaFaults.everyCall(copy, { depth: 2 }), CudaFaults.expectNone)
      const pairs = report.runs.flatMap(({ fault }) =>
        fault?.followedBy === undefined ? [] : [[fault, fault.followedBy] as const]
      )
      assert.strictEqual(report.skippedPairs, 0)
      assert.isTrue(pairs.some(([first, second]) => "interrupt" in first && "status" in second))
      assert.isTrue(pairs.some(([first, second]) => "status" in first && "interrupt" in second))
      for (const [first, second] of pairs) {
        assert.isFalse("interrupt" in first && "interrupt" in second)
        const isLost = "status" in first && first.status === "IllegalAddress"
        assert.isFalse(isLost && "status" in second, "every call fails anyway")
      }
      assert.deepStrictEqual(report.runs.filter(({ notes }) => notes.some(({ _tag }) => _tag === "NotReached")), [])
    }))

  it.effect("are bounded, come after faults from all over the program, and are counted", () =>
    Effect.gen(function*() {
      const all = yield* CudaFaults.everyCall(copy, { depth: 2 })
      const single = all.runs.filter(({ fault }) => fault?.followedBy === undefined)
      const total = all.runs.length - single.length
      for (const maxPairs of [1, 7, 40]) {
        const report = yield* CudaFaults.everyCall(copy, { depth: 2, maxPairs })
        assert.strictEqual(report.runs.length, single.length + maxPairs)
        assert.strictEqual(report.skippedPairs, total - maxPairs)
        assert.match(
          CudaFaults.format(report),
          new RegExp(`^${total - maxPairs} pairs of ${total} left out, because of maxPairs$`, "m")
        )
      }
      const few = yield* CudaFaults.everyCall(copy, { depth: 2, maxPairs: 7 })
      const first = few.runs.filter(({ fault }) => fault?.followedBy !== undefined).map(({ fault }) => fault!.operation)
      assert.isAbove(new Set(first).size, 3)
    }))

  it.effect("that cannot be are refused", () =>
    Effect.gen(function*() {
      const only = { ...fails("CudaMemory.copy", "InvalidValue"), times: 2 }
      const second = { ...fails("CudaMemory.copy", "InvalidValue"), occurrence: 2 }
      yield* refuses(
        CudaFaults.everyCall(copy, { only: { ...only, followedBy: second } }),
        "only.followedBy.occurrence"
      )
      yield* refuses(
        CudaFaults.everyCall(copy, { only: { ...only, followedBy: { ...second, times: 0 } } }),
        "only.times"
      )
      const three: number = 3
      yield* refuses(CudaFaults.everyCall(copy, { depth: three as 2 }), "depth")
      yield* refuses(CudaFaults.everyCall(copy, { maxPairs: 0 }), "maxPairs")
    }))

  it.effect("whose second call is not made are noted", () =>
    Effect.gen(function*() {
      const only = {
        ...fails("CudaMemory.copy", "InvalidValue"),
        followedBy: fails("CudaStream.synchronize", "InvalidValue")
      }
      const { runs } = yield* CudaFaults.everyCall(copy, { only })
      assert.deepStrictEqual(runs[0]!.notes, [{ _tag: "NotReached" }])
    }))
})

describe("on the driver", () => {
  const stub = openStub()
  const native = Layer.suspend(() => {
    stub.reset()
    return stubLayer(stub)
  })

  it.live("programs run in real time, and leave nothing either", () =>
    Effect.gen(function*() {
      const options = { runtime: native, time: "real", deadline: "5 seconds" } as const
      yield* Effect.flatMap(CudaFaults.everyCall(copy, options), CudaFaults.expectNone)
      assertReleased(stub)
    }))

  it.live("a program that hangs is found", () =>
    Effect.gen(function*() {
      const report = yield* CudaFaults.everyCall(Effect.catch(copy, () => Effect.never), {
        runtime: native,
        time: "real",
        deadline: "100 millis",
        only: fails("CudaMemory.copy", "InvalidValue")
      })
      assert.deepStrictEqual(tagsOf(report.runs[0]!), ["Hung"])
    }))
})
