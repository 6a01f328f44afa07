/**
 * Exploration of orders: runs a program on simulated devices again and again, with work in other orders that CUDA allows, and reports
 * which races change what comes of it.
 *
 * `CheckedRuntime` finds races; this shows what they do. Every run has a fresh simulated runtime and virtual time, so hundreds of
 * runs take seconds. Depends on the simulated runtime, on the checker, and on the runs of `CudaFaults`.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../CudaError.ts"
import type { Race } from "./checked/reports.ts"
import type { CudaRuntime } from "./CudaRuntime.ts"
import type { Provided } from "./exploration/fresh.ts"
import type { Ran } from "./exploration/orders/Director.ts"
import { parsePlan, undisturbed as noPlan } from "./exploration/orders/holds.ts"
import type { Plan } from "./exploration/orders/holds.ts"
import { differenceOf } from "./exploration/orders/outcomes.ts"
import type { Difference } from "./exploration/orders/outcomes.ts"
import { runWith } from "./exploration/orders/run.ts"
import type { Observed, Setting } from "./exploration/orders/run.ts"
import { search } from "./exploration/orders/search.ts"
import type { Finding as Found, Tried } from "./exploration/orders/search.ts"
import { describeComparison, describeReport, pictureOf } from "./exploration/orders/words.ts"
import { refuseArgument } from "./shared/failures.ts"
import * as SimulatedRuntime from "./SimulatedRuntime.ts"

export type {
  /**
   * A difference between what came of two runs.
   *
   * @category models
   * @since 0.1.0
   */
  Difference
}

/**
 * An operation that ran, in nanoseconds of virtual time.
 *
 * @category models
 * @since 0.1.0
 */
export interface RanOperation {
  /** Its name in schedules, for example `16:2`: the second work on stream 16. */
  readonly work: string
  /** What it was, for example `CudaMemory.copy`. */
  readonly label: string
  /** The stream, for example `16`, `0@1` for stream 0 of device 1, or `host`. */
  readonly lane: string
  readonly start: number
  readonly end: number
}

/**
 * One run of the program.
 *
 * @category models
 * @since 0.1.0
 */
export interface Run<A, E> {
  /** How the program ended; undefined if it hung, or went on and on. */
  readonly exit: Exit.Exit<A, E> | undefined
  /** The schedule as text, for `replay`. Empty for the undisturbed run. */
  readonly schedule: string
  /** The operations that ran, in the order of their ends. */
  readonly ran: ReadonlyArray<RanOperation>
  /** Work that had to start before what it was held for, because the program waited for it. */
  readonly letGo: ReadonlyArray<string>
  /** The log of the run, which is not printed. */
  readonly log: ReadonlyArray<string>
}

/**
 * A run under a schedule, compared with the undisturbed one.
 *
 * @category models
 * @since 0.1.0
 */
export interface Comparison<A, E> {
  readonly undisturbed: Run<A, E>
  readonly changed: Run<A, E>
  /** The first difference; undefined if both come to the same. */
  readonly difference: Difference | undefined
}

/**
 * A schedule that changes what comes of the program, with as few holds as possible.
 *
 * @category models
 * @since 0.1.0
 */
export interface Finding<A, E> extends Comparison<A, E> {
  readonly difference: Difference
  /** The races that run in another order than in the undisturbed run. There are none if something other than a race matters. */
  readonly races: ReadonlyArray<Race>
}

/**
 * A race of the undisturbed run, and what its other order shows.
 *
 * **Details**
 *
 * - `changes`: something differs in the other order.
 * - `harmless`: both orders come to the same, while the other races keep their order. Combinations may still be findings.
 * - `notReordered`: it never ran in the other order, because something that the checker does not know orders the two, for example a
 *   host that polls.
 * - `notTried`: there was no run left for it.
 *
 * @category models
 * @since 0.1.0
 */
export interface ExploredRace {
  readonly race: Race
  /** The two works, as in schedules. */
  readonly works: readonly [string, string]
  readonly verdict: "changes" | "harmless" | "notReordered" | "notTried"
  readonly difference: Difference | undefined
}

/**
 * The result of an exploration.
 *
 * @see {@link format}
 * @category models
 * @since 0.1.0
 */
export interface Report<A, E> {
  readonly undisturbed: Run<A, E>
  readonly races: ReadonlyArray<ExploredRace>
  /** One for each outcome that differs from the undisturbed one; the first 20 are kept. */
  readonly findings: ReadonlyArray<Finding<A, E>>
  /** The number of runs. */
  readonly runs: number
  /** True if no order of the races is left that turns around one race of an order that was run. False with more than 400 races. */
  readonly isExhausted: boolean
}

/**
 * Options for running a program under schedules.
 *
 * @category options
 * @since 0.1.0
 */
export interface RunOptions<A> {
  /** What of the result counts, for programs that return durations or other things that differ with the schedule. Default: all. */
  readonly result?: ((value: A) => unknown) | undefined
  /** Whether the last contents of all buffers of the program count. Default: true. */
  readonly bytes?: boolean | undefined
  /**
   * How long work is held while the program waits for it and nothing else runs, in virtual time. A program whose time limits are
   * shorter sees them pass. Default: 10 ms.
   */
  readonly patience?: Duration.Input | undefined
  /** When a program has hung. Default: 1 minute, of virtual time. */
  readonly deadline?: Duration.Input | undefined
}

/**
 * Options for an exploration.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<A> extends RunOptions<A> {
  /** The seed of the random schedules. Default: 1. */
  readonly seed?: number | undefined
  /** Limit on the number of runs in which races are turned around. Finding the smallest schedules takes more. Default: 200. */
  readonly maxRuns?: number | undefined
  /** The number of random schedules after that. Default: 50. */
  readonly schedules?: number | undefined
  /** Limit on the real time of all runs. The result then depends on the machine. Default: no limit. */
  readonly timeLimit?: Duration.Input | undefined
}

/**
 * Runs a program in other orders that CUDA allows, and reports which races change its result, its exit, or the last bytes of its
 * buffers. Fails if a runtime cannot be built, and with `InvalidArgument` if an option is invalid.
 *
 * **Details**
 *
 * The program first runs undisturbed, with a checker that finds its races. Then each race is run in its other order while the others keep
 * theirs, then combinations, up to `maxRuns`. Random schedules follow. Work is only ever held back, as on a device that is slow or busy, so
 * streams, events, host waits and the legacy default stream order it as always. For each new outcome, the smallest set of holds that
 * leads to it is searched for.
 *
 * The result is deterministic for a program and its options, unless `timeLimit` ends the search.
 *
 * A run has a runtime of its own, and a scope of its own for the program. Layers that the program provides are built anew in each run.
 * Services from outside are shared by all runs.
 *
 * **Gotchas**
 *
 * An operation takes effect at once, when it ends. Work that overlaps and mixes its bytes is not explored, nor are the copies of a batch
 * in other orders, or the nodes inside bodies of conditions among themselves.
 *
 * The undisturbed run is not necessarily the right one. A report says that the orders differ, not which one was meant.
 *
 * The calls of a program must not depend on chance. Results such as durations differ with the schedule: leave them out with `result`.
 *
 * Time is virtual, as in `CudaFaults.everyCall`: timers of JavaScript and threads of native code take no virtual time, and a program that waits
 * for them counts as hanging after 50 ms.
 *
 * A simulated kernel is a function that runs to its end, so one that spins until other work writes a flag hangs the process.
 *
 * **Example** (A test)
 *
 * ```ts
 * import { CudaChecker, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const upload = yield* CudaStream.make()
 *   const compute = yield* CudaStream.make()
 *   const buffer = yield* CudaMemory.allocate(1024)
 *   yield* CudaMemory.fill(buffer, 1, upload)
 *   yield* CudaStream.waitStream(compute, upload) // without this line, the test fails
 *   const bytes = new Uint8Array(1024)
 *   yield* CudaMemory.download(bytes, buffer, compute)
 *   return bytes
 * })
 *
 * const test = Effect.flatMap(CudaChecker.explore(program), CudaChecker.expectNone)
 * ```
 *
 * @category exploration
 * @since 0.1.0
 */
export function explore<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  options: Options<A> & {
    /**
     * Builds the simulated runtime of each run. What else it provides, programs can use. Default: one device. It need not be checked: with
     * mode `"fail"`, `CheckedRuntime` refuses races before they run in any order.
     */
    readonly runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn>
  }
): Effect.Effect<Report<A, E>, ELayer | CudaError, RIn | Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>>
export function explore<A, E, R>(
  program: Effect.Effect<A, E, R>,
  options?: Options<A> & { readonly runtime?: undefined }
): Effect.Effect<
  Report<A, E>,
  CudaError,
  Exclude<Exclude<R, Scope.Scope>, CudaRuntime | SimulatedRuntime.SimulatedControl>
>
export function explore<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  options: Options<A> & { readonly runtime?: Layer.Layer<CudaRuntime | ROut, ELayer, RIn> | undefined } = {}
):
  | Effect.Effect<Report<A, E>, ELayer | CudaError, RIn | Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>>
  | Effect.Effect<
    Report<A, E>,
    CudaError,
    Exclude<Exclude<R, Scope.Scope>, CudaRuntime | SimulatedRuntime.SimulatedControl>
  >
{
  const { runtime } = options
  return runtime === undefined
    ? exploreOn(program, SimulatedRuntime.layer(), options)
    : exploreOn(program, runtime, options)
}

const exploreOn = Effect.fnUntraced(function*<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn>,
  options: Options<A>
): Effect.fn.Return<Report<A, E>, ELayer | CudaError, RIn | Provided<R, ROut>> {
  const operation = "CudaChecker.explore"
  yield* refuseOptions(operation, options)
  yield* refuseLimits(operation, options)
  const { maxRuns = 200, schedules = 50, seed = 1, timeLimit } = options
  const { base, findings, isExhausted, runs, tried } = yield* search(settingOf(program, runtime, options), {
    maxRuns,
    schedules,
    seed,
    timeLimit: timeLimit === undefined ? Infinity : Duration.toMillis(Duration.fromInputUnsafe(timeLimit))
  })
  yield* refuseRuntime(operation, base)
  return {
    undisturbed: runOf(base),
    races: tried.map(raceOf),
    findings: findings.map((finding) => findingOf(base, finding)),
    runs,
    isExhausted
  }
})

/**
 * Runs a program undisturbed and under a schedule from a report, and compares the two. Fails with `InvalidArgument` if the text is no
 * schedule.
 *
 * **Details**
 *
 * A schedule has a line for each hold, such as `hold 16:1 until 17:2`: the first work on stream 16 does not start until the second
 * on stream 17 has ended. `16:1/n3` is node 3 of a launch of a graph, `0@1:2` is on stream 0 of device 1, and `host:1` is the first time that
 * the host takes bytes that work may still write. `seed 7` is a random schedule. What follows a `#` is a comment.
 *
 * **Example** (A schedule of a report)
 *
 * ```ts
 * import { CudaChecker, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
 *   const buffer = yield* CudaMemory.allocate(64)
 *   yield* CudaMemory.fill(buffer, 1, one)
 *   yield* CudaMemory.fill(buffer, 2, other)
 * })
 *
 * const replay = CudaChecker.replay(program, "hold 16:1 until 17:1").pipe(
 *   Effect.tap((comparison) => Console.log(CudaChecker.formatComparison(comparison)))
 * )
 * ```
 *
 * @category exploration
 * @since 0.1.0
 */
export function replay<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  schedule: string,
  options: RunOptions<A> & { readonly runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn> }
): Effect.Effect<Comparison<A, E>, ELayer | CudaError, RIn | Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>>
export function replay<A, E, R>(
  program: Effect.Effect<A, E, R>,
  schedule: string,
  options?: RunOptions<A> & { readonly runtime?: undefined }
): Effect.Effect<
  Comparison<A, E>,
  CudaError,
  Exclude<Exclude<R, Scope.Scope>, CudaRuntime | SimulatedRuntime.SimulatedControl>
>
export function replay<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  schedule: string,
  options: RunOptions<A> & { readonly runtime?: Layer.Layer<CudaRuntime | ROut, ELayer, RIn> | undefined } = {}
):
  | Effect.Effect<Comparison<A, E>, ELayer | CudaError, RIn | Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>>
  | Effect.Effect<
    Comparison<A, E>,
    CudaError,
    Exclude<Exclude<R, Scope.Scope>, CudaRuntime | SimulatedRuntime.SimulatedControl>
  >
{
  const { runtime } = options
  return runtime === undefined
    ? replayOn(program, schedule, SimulatedRuntime.layer(), options)
    : replayOn(program, schedule, runtime, options)
}

const replayOn = Effect.fnUntraced(function*<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  schedule: string,
  runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn>,
  options: RunOptions<A>
): Effect.fn.Return<Comparison<A, E>, ELayer | CudaError, RIn | Provided<R, ROut>> {
  const operation = "CudaChecker.replay"
  yield* refuseOptions(operation, options)
  const plan: Plan | { readonly wrong: string } = typeof schedule === "string"
    ? parsePlan(schedule)
    : { wrong: String(schedule) }
  if ("wrong" in plan) {
    return yield* refuseArgument(
      operation,
      "schedule",
      plan.wrong,
      "lines such as \"hold 16:1 until 17:2\" or \"seed 7\""
    )
  }
  const setting = settingOf(program, runtime, options)
  const base = yield* runWith(setting, noPlan, Infinity)
  yield* refuseRuntime(operation, base)
  const changed = yield* runWith(setting, plan, base.operations)
  return {
    undisturbed: runOf(base),
    changed: runOf(changed),
    difference: differenceOf(base.outcome, changed.outcome)
  }
})

const settingOf = <A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn>,
  { bytes = true, deadline = "1 minute", patience = "10 millis", result }: RunOptions<A>
): Setting<A, E, R, ROut, ELayer, RIn> => ({
  program,
  runtime,
  deadline: Duration.fromInputUnsafe(deadline),
  patience: Duration.toMillis(Duration.fromInputUnsafe(patience)) * 1e6,
  project: result ?? ((value) => value),
  comparesBytes: bytes
})

const runOf = <A, E>({ exit, letGo, log, ran, text }: Observed<A, E>): Run<A, E> => ({
  exit,
  schedule: text,
  ran: ran.map((one: Ran): RanOperation => ({ ...one })),
  letGo,
  log
})

const findingOf = <A, E>(base: Observed<A, E>, { difference, run, turned }: Found<A, E>): Finding<A, E> => ({
  undisturbed: runOf(base),
  changed: runOf(run),
  difference,
  races: turned.map(({ race }) => race)
})

const verdicts = { changes: "changes", same: "harmless", fixed: "notReordered", untried: "notTried" } as const

const raceOf = ({ difference, pair, verdict }: Tried): ExploredRace => ({
  race: pair.race,
  works: [pair.first, pair.second],
  verdict: verdicts[verdict],
  difference
})

const refuseRuntime = (
  operation: string,
  { isSimulated }: Observed<unknown, unknown>
): Effect.Effect<void, CudaError> =>
  isSimulated
    ? Effect.void
    : refuseArgument(
      operation,
      "runtime",
      "another runtime",
      "a layer of SimulatedRuntime, whose work can be held back"
    )

const isPositive = (input: Duration.Input): boolean =>
  Option.exists(Duration.fromInput(input), (limit) => Duration.isFinite(limit) && Duration.isPositive(limit))

const refuseOptions = <A>(
  operation: string,
  { deadline = "1 minute", patience = "10 millis" }: RunOptions<A>
): Effect.Effect<void, CudaError> => {
  const expected = "a finite duration above 0"
  if (!isPositive(deadline)) return refuseArgument(operation, "deadline", deadline, expected)
  return isPositive(patience) ? Effect.void : refuseArgument(operation, "patience", patience, expected)
}

const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0

const refuseLimits = <A>(
  operation: string,
  { maxRuns = 1, schedules = 0, seed = 0, timeLimit = "1 second" }: Options<A>
): Effect.Effect<void, CudaError> => {
  const expected = "an integer of at least 0"
  if (!isCount(maxRuns)) return refuseArgument(operation, "maxRuns", maxRuns, expected)
  if (!isCount(schedules)) return refuseArgument(operation, "schedules", schedules, expected)
  if (!isCount(seed)) return refuseArgument(operation, "seed", seed, expected)
  return isPositive(timeLimit)
    ? Effect.void
    : refuseArgument(operation, "timeLimit", timeLimit, "a finite duration above 0")
}

/**
 * Prints a report: a summary; for each other outcome its races, what differs, the schedule that leads to it, and two timelines; and the
 * races that change nothing.
 *
 * **Example** (What a program shows)
 *
 * ```ts
 * import { CudaChecker, CudaStream } from "effect-cuda"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const print = Effect.flatMap(CudaChecker.explore(CudaStream.make()), (report) =>
 *   Console.log(CudaChecker.format(report)))
 * ```
 *
 * @category formatting
 * @since 0.1.0
 */
export const format = <A, E>(report: Report<A, E>): string => describeReport(report).join("\n")

/**
 * Prints a comparison of two runs: what differs, the schedule, and two timelines. A column of a timeline is the end of an operation.
 *
 * **Example** (A schedule, run again)
 *
 * ```ts
 * import { CudaChecker, CudaStream } from "effect-cuda"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const print = CudaChecker.replay(CudaStream.make(), "seed 7").pipe(
 *   Effect.flatMap((comparison) => Console.log(CudaChecker.formatComparison(comparison)))
 * )
 * ```
 *
 * @category formatting
 * @since 0.1.0
 */
export const formatComparison = <A, E>(comparison: Comparison<A, E>): string =>
  describeComparison(comparison).join("\n")

/**
 * Draws the two timelines of a comparison or finding as SVG. The work that the schedule names has another colour.
 *
 * **Example** (A picture of the first finding)
 *
 * ```ts
 * import { CudaChecker } from "effect-cuda"
 *
 * const picture = (report: CudaChecker.Report<unknown, unknown>): string | undefined =>
 *   report.findings[0] && CudaChecker.toSvg(report.findings[0])
 * ```
 *
 * @category formatting
 * @since 0.1.0
 */
export const toSvg = <A, E>(comparison: Comparison<A, E>): string => pictureOf(comparison)

/**
 * An order of a program's work changes what comes of it.
 *
 * **Example** (The picture of a test that fails)
 *
 * ```ts
 * import { CudaChecker, CudaMemory } from "effect-cuda"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const test = CudaChecker.explore(CudaMemory.allocate(64)).pipe(
 *   Effect.flatMap(CudaChecker.expectNone),
 *   Effect.tapErrorTag("OrderMatters", ({ report }) =>
 *     Effect.forEach(report.findings, (finding) => Console.log(CudaChecker.toSvg(finding))))
 * )
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class OrderMatters extends Data.TaggedError("OrderMatters")<{ readonly report: Report<unknown, unknown> }> {
  override get message(): string {
    return format(this.report)
  }
}

/**
 * Fails with `OrderMatters` if a report has findings, with the report as its message; otherwise returns the report. Harmless races and
 * those that were not tried are no findings.
 *
 * **Example** (A test)
 *
 * ```ts
 * import { CudaChecker, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const test = CudaChecker.explore(CudaMemory.allocate(64)).pipe(Effect.flatMap(CudaChecker.expectNone))
 * ```
 *
 * @category assertions
 * @since 0.1.0
 */
export const expectNone = <A, E>(report: Report<A, E>): Effect.Effect<Report<A, E>, OrderMatters> =>
  report.findings.length > 0 ? Effect.fail(new OrderMatters({ report })) : Effect.succeed(report)
