/**
 * `CheckedRuntime.check`, and what is ignored: rules, functions and their counts.
 */
import { assert, describe, it as effectIt } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import * as CudaBranch from "effect-cuda/CudaBranch"
import { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaMemory from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { failsWith } from "../support/assertions.ts"
import { reportsOf, simulated } from "./support.ts"

type Needs = CudaRuntime | CheckedRuntime.Checker | Scope.Scope

/** As in the guide. */
const checked = <A, E>(name: string, program: () => Effect.Effect<A, E, Needs>) =>
  effectIt.live(name, () => CheckedRuntime.check(program()).pipe(Effect.provide(simulated)))

const it = Object.assign(effectIt, { checked })

const size = 64

const make = Effect.gen(function*() {
  return {
    a: yield* CudaMemory.allocate(size),
    b: yield* CudaMemory.allocate(size),
    host: yield* CudaMemory.allocateHost(size),
    one: yield* CudaStream.make(),
    two: yield* CudaStream.make()
  }
})

const { copy, fill } = CudaMemory

/** Two races: of `consume` with `produce`, and of `again` with `consume`. */
const racing = Effect.gen(function*() {
  const { a, b, one, two } = yield* make
  yield* Effect.withSpan(fill(a, 1, one), "produce")
  yield* Effect.withSpan(copy(b, a, two), "consume")
  yield* Effect.withSpan(fill(b, 2, one), "again")
  return "done"
})

const messageOf = (error: CudaError) => error.reason._tag === "RaceDetected" ? error.reason.report : error.message

describe("check", () => {
  it.checked("returns what a program without races returns", () =>
    Effect.gen(function*() {
      const { a, one, two } = yield* make
      yield* fill(a, 1, one)
      yield* CudaStream.waitStream(two, one)
      yield* fill(a, 2, two)
      const { reports, summary } = yield* CheckedRuntime.Checker
      assert.deepStrictEqual(yield* reports, [])
      assert.strictEqual((yield* summary).accesses, 2)
    }))

  it.live("fails at the end with every race", () =>
    Effect.gen(function*() {
      let isAtEnd = false
      const program = Effect.tap(racing, () => Effect.sync(() => void (isAtEnd = true)))
      const error = yield* Effect.flip(CheckedRuntime.check(program))
      assert.isTrue(isAtEnd)
      assert.strictEqual(error.operation, "CheckedRuntime.check")
      assert.lengthOf(messageOf(error).match(/^Race on /gm) ?? [], 2)
    }).pipe(Effect.provide(simulated)))

  it.live("fails with what is left when the scope of the program has closed", () =>
    Effect.gen(function*() {
      const outer = yield* Scope.make()
      const leaving = Effect.gen(function*() {
        yield* CudaMemory.allocate(size)
        yield* CudaStream.make().pipe(Scope.provide(outer), Effect.withSpan("forgotten"))
      })
      const error = yield* Effect.flip(CheckedRuntime.check(leaving))
      assert.match(messageOf(error), /^stream \d+ of device 0 is left.*CudaStream\.make made it, in forgotten/)
      yield* Scope.close(outer, Exit.void)
    }).pipe(Effect.provide(simulated)))

  it.live("fails with the failure of the program first, and with the reports", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(CheckedRuntime.check(Effect.andThen(racing, Effect.fail("no" as const))))
      assert(Exit.isFailure(exit))
      const [first, second] = exit.cause.reasons
      assert(first !== undefined && Cause.isFailReason(first) && second !== undefined && Cause.isFailReason(second))
      assert.strictEqual(first.error, "no")
      assert(second.error instanceof CudaError)
      assert.match(messageOf(second.error), /^Race on /)
    }).pipe(Effect.provide(simulated)))

  it.live("ends as the program does when it dies or is interrupted", () =>
    Effect.gen(function*() {
      const died = yield* Effect.exit(CheckedRuntime.check(Effect.die("defect")))
      assert(Exit.isFailure(died))
      assert.isTrue(Cause.hasDies(died.cause))
      let isReleased = false
      const waiting = Effect.acquireRelease(Effect.void, () => Effect.sync(() => void (isReleased = true)))
      const fiber = yield* Effect.forkChild(CheckedRuntime.check(Effect.andThen(waiting, Effect.never)))
      yield* Effect.yieldNow
      yield* Fiber.interrupt(fiber)
      const interrupted = yield* Fiber.await(fiber)
      assert(Exit.isFailure(interrupted))
      assert.isTrue(Cause.hasInterruptsOnly(interrupted.cause))
      assert.isTrue(isReleased)
    }).pipe(Effect.provide(simulated)))

  it.live("calls onReport, and ignores as it is told", () =>
    Effect.gen(function*() {
      const reports: Array<CheckedRuntime.Report> = []
      yield* CheckedRuntime.check(racing, {
        ignore: { reason: "on purpose", report: "Race", source: "consume" },
        onReport: (report) => reports.push(report)
      })
      assert.deepStrictEqual(reports, [])
      yield* failsWith(CheckedRuntime.check(racing, { onReport: (report) => reports.push(report) }), "RaceDetected")
      assert.lengthOf(reports, 2)
    }).pipe(Effect.provide(simulated)))
})

const reason = "on purpose"

/** The operations of the races that a rule leaves. */
const left = (ignore: CheckedRuntime.CheckOptions["ignore"]) =>
  Effect.map(
    reportsOf(racing, { ignore }),
    (reports) => reports.map((report) => report._tag === "Race" ? report.second.operation : report._tag)
  )

const first = "CudaMemory.copy"
const second = "CudaMemory.fill"

describe("rules", () => {
  const rules: ReadonlyArray<readonly [string, Omit<CheckedRuntime.IgnoreRule, "reason">, ReadonlyArray<string>]> = [
    ["nothing", {}, [first, second]],
    ["a kind", { report: "Race" }, []],
    ["another kind", { report: "Leftover" }, [first, second]],
    ["one of several kinds", { report: ["Leftover", "Race"] }, []],
    ["an operation of both races", { operation: "CudaMemory.copy" }, []],
    ["another operation", { operation: "CudaMemory.cop" }, [first, second]],
    ["a pattern of operations", { operation: /^CudaMemory\.c/g }, []],
    ["a pair of operations", { operation: ["CudaMemory.fill", "CudaMemory.copy"] }, []],
    ["a pair that is not there", { operation: ["CudaMemory.fill", "CudaMemory.fill"] }, [first, second]],
    ["a span", { source: "produce" }, [second]],
    ["a file", { source: "check.test.ts" }, []],
    ["another file", { source: "other.test.ts" }, [first, second]],
    ["a pair of spans in the other order", { source: ["again", /^consume/] }, [first]],
    ["a stream", { stream: /^stream \d+ of device 0$/ }, []],
    ["the host", { stream: "the host" }, [first, second]],
    ["memory by its text", { memory: /^buffer of 64 bytes/ }, []],
    ["bytes", { bytes: { from: 0, to: size } }, []],
    ["fewer bytes", { bytes: { from: 0, to: size - 1 } }, [first, second]],
    ["all of several criteria", { operation: "CudaMemory.copy", source: "again", report: "Race" }, [first]],
    ["one criterion that does not match", { operation: "CudaMemory.copy", source: "nowhere" }, [first, second]]
  ]

  it.live.each(rules)("with %s", ([, rule, expected]) =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* left({ reason, ...rule }), expected)
    }))

  it.live("together with functions, all of them counted", () =>
    Effect.gen(function*() {
      const used: CheckedRuntime.IgnoreRule = { reason, source: "produce" }
      const old: CheckedRuntime.IgnoreRule = { reason: "was fixed", source: "nowhere" }
      const isRace = (report: CheckedRuntime.Report) => report._tag === "Race"
      const program = Effect.gen(function*() {
        yield* racing
        const { summary } = yield* CheckedRuntime.Checker
        const { ignored, reports, unused } = yield* summary
        assert.strictEqual(reports, 0)
        assert.deepStrictEqual(ignored, [
          { ignore: used, ignored: 1 },
          { ignore: old, ignored: 0 },
          { ignore: isRace, ignored: 1 }
        ])
        assert.deepStrictEqual(unused, [old])
      })
      assert.deepStrictEqual(yield* reportsOf(program, { ignore: [used, old, isRace], mode: "fail" }), [])
    }))

  it.live("for streams and buffers of the program, until a scope closes", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const { a, b, one, two } = yield* make
        const { ignore, reports, summary } = yield* CheckedRuntime.Checker
        const race = (part: CudaMemory.Slice<CudaMemory.DeviceBuffer>) =>
          Effect.andThen(fill(part, 1, one), fill(part, 2, two))
        yield* Effect.scoped(Effect.gen(function*() {
          yield* ignore({ reason, memory: CudaMemory.slice(a, 16, 16), stream: [two, one] })
          yield* race(CudaMemory.slice(a, 16, 8))
          assert.lengthOf(yield* reports, 0)
          yield* race(CudaMemory.slice(a, 32, 8))
          yield* race(CudaMemory.slice(b, 16, 8))
          assert.lengthOf(yield* reports, 2)
        }))
        yield* race(CudaMemory.slice(a, 24, 8))
        assert.lengthOf(yield* reports, 3)
        assert.deepStrictEqual((yield* summary).ignored.map(({ ignored }) => ignored), [1])
      })
      yield* reportsOf(program)
    }))

  it.live("for what the host looks at, misused events, graphs, and what is left", () =>
    Effect.gen(function*() {
      const outer = yield* Scope.make()
      const program = Effect.gen(function*() {
        const { a, host, one, two } = yield* make
        yield* copy(host, a, one)
        yield* Effect.sync(() => host.bytes)
        yield* fill(a, 1, one)
        yield* CudaStream.waitEvent(two, yield* CudaEvent.make())
        yield* CudaGraph.record(CudaBranch.all([fill(a, 1), fill(a, 2)]))
        yield* CudaStream.make().pipe(Scope.provide(outer))
      })
      const ignore: ReadonlyArray<CheckedRuntime.IgnoreRule> = [
        { reason, stream: "the host", operation: ["CudaMemory.copy", "bytes"] },
        { reason, report: "Race", stream: /node/ },
        { reason, report: "MisusedEvent", operation: "CudaStream.waitEvent" },
        { reason, report: "Leftover", operation: "CudaStream.make" }
      ]
      const reports = yield* reportsOf(program, { ignore })
      assert.deepStrictEqual(
        reports.map(({ message }) => message),
        []
      )
      assert.lengthOf(yield* reportsOf(program), 4)
      yield* Scope.close(outer, Exit.void)
    }))

  it.live("keep what they ignore from failing", () =>
    Effect.provide(
      Effect.scoped(racing),
      CheckedRuntime.layer({ mode: "fail", ignore: { reason, report: "Race" } }).pipe(Layer.provide(simulated))
    ))
})
