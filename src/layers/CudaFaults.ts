/**
 * Fault exploration: runs a program again and again, with every driver call failing in turn, and with interruption at every
 * call, and reports what it leaves behind, where it hangs, and how it ends.
 *
 * Every run has a fresh runtime, simulated by default, and virtual time, so hundreds of runs take seconds and a hang takes no
 * longer than any other end. Depends on the simulated runtime and on the shared injection of failures.
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
import { statuses } from "../cuda/status.ts"
import type { StatusTag } from "../cuda/status.ts"
import type { CudaError } from "../CudaError.ts"
import type { CudaRuntime, LiveResources } from "./CudaRuntime.ts"
import { choose, choosePairs, comesAfter, faultsOf, isOperation, planFor } from "./exploration/plan.ts"
import type { FaultKinds } from "./exploration/plan.ts"
import { describeFault, describeReport } from "./exploration/report.ts"
import { runOnce } from "./exploration/runs.ts"
import type { Setting } from "./exploration/runs.ts"
import { real, virtual } from "./exploration/VirtualTime.ts"
import type { OperationName } from "./runtime/operations.ts"
import { refuseArgument } from "./shared/failures.ts"
import * as SimulatedRuntime from "./SimulatedRuntime.ts"

/**
 * A call that the undisturbed program makes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Step {
  /** The number among all calls, from 1. */
  readonly index: number
  readonly operation: OperationName
  /** The number among the calls of this operation, from 1. */
  readonly occurrence: number
}

/**
 * A call that fails.
 *
 * @category models
 * @since 0.1.0
 */
export interface FailingCall {
  readonly operation: OperationName
  /** The number among the calls of this operation, from 1. */
  readonly occurrence: number
  readonly status: StatusTag
  /** How many calls of the operation fail, beginning with this one. Default: 1. */
  readonly times?: number | undefined
  /** A second fault in the same run, at a call that comes after this one (see `Options.depth`). */
  readonly followedBy?: SingleFault | undefined
}

/**
 * A call at which the program is interrupted.
 *
 * @category models
 * @since 0.1.0
 */
export interface InterruptedCall {
  readonly operation: OperationName
  /** The number among the calls of this operation, from 1. */
  readonly occurrence: number
  /**
   * `before`: the call is only made if the program cannot be interrupted there. `during`: one turn of the event loop after the call
   * began. `after`: it has succeeded, but the program does not know yet.
   */
  readonly interrupt: "before" | "during" | "after"
  /** A second fault in the same run: a call that fails after this one (see `Options.depth`). */
  readonly followedBy?: SingleFault | undefined
}

/**
 * A fault that no other follows.
 *
 * @category models
 * @since 0.1.0
 */
export type SingleFault = Omit<FailingCall, "followedBy"> | Omit<InterruptedCall, "followedBy">

/**
 * What is injected into a run.
 *
 * @category models
 * @since 0.1.0
 */
export type Fault = FailingCall | InterruptedCall

/**
 * Something that no program should show.
 *
 * **Details**
 *
 * - `Leaked`: the live resources that the program has left, as differences. Pooled streams do not count, because they belong to the
 *   runtime.
 * - `Hung`: the program did not end before the deadline, could not be interrupted then, or the runtime could not be built or
 *   released. A program that makes the same calls again and again has hung as well.
 * - `NeverFinished`: a wait of the program can never end.
 * - `Died`: the program ended in a defect instead of a typed failure.
 * - `Interrupted`: the program ended as interrupted, although nobody interrupted it.
 * - `ReleaseFailed`: a release failed, but not the injected one. The releases that fail after a sticky status are left out.
 * - `UnexpectedFailure`: the program ended in a failure that `mayFail` does not allow, or failed undisturbed.
 *
 * @category models
 * @since 0.1.0
 */
export type Problem<E> =
  | { readonly _tag: "Leaked"; readonly left: Partial<LiveResources> }
  | { readonly _tag: "Hung"; readonly phase: "program" | "interruption" | "runtime" }
  | { readonly _tag: "NeverFinished"; readonly error: CudaError }
  | { readonly _tag: "Died"; readonly defect: unknown }
  | { readonly _tag: "Interrupted" }
  | { readonly _tag: "ReleaseFailed"; readonly error: CudaError }
  | { readonly _tag: "UnexpectedFailure"; readonly failure: E }

/**
 * Something that is allowed, and worth a look.
 *
 * **Details**
 *
 * - `Succeeded`: the program succeeded although a call failed, for example because it tried again. Not noted of releases, whose
 *   failures are only logged.
 * - `Unrelated`: the program failed, but neither with the injected status nor because of it.
 * - `NotReached`: the program did not make the call, or the one of the second fault, because its calls differ from run to run.
 *
 * @category models
 * @since 0.1.0
 */
export type Note<E> =
  | { readonly _tag: "Succeeded" }
  | { readonly _tag: "Unrelated"; readonly failure: E }
  | { readonly _tag: "NotReached" }

/**
 * One run of the program.
 *
 * @category models
 * @since 0.1.0
 */
export interface Run<E> {
  /** Undefined for the undisturbed run. */
  readonly fault: Fault | undefined
  /** How the program ended; undefined if it did not. */
  readonly exit: Exit.Exit<void, E> | undefined
  readonly problems: ReadonlyArray<Problem<E>>
  readonly notes: ReadonlyArray<Note<E>>
  /** The log of the run, which is not printed. */
  readonly log: ReadonlyArray<string>
}

/**
 * The result of an exploration.
 *
 * @see {@link format}
 * @category models
 * @since 0.1.0
 */
export interface Report<E> {
  readonly undisturbed: Run<E>
  /** The calls of the undisturbed run. */
  readonly steps: ReadonlyArray<Step>
  readonly runs: ReadonlyArray<Run<E>>
  /** The faults left out because of `maxRuns`. */
  readonly skipped: ReadonlyArray<Fault>
  /** The number of pairs of faults left out because of `maxPairs`. */
  readonly skippedPairs: number
}

/**
 * Options for an exploration.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<E> {
  /** The operations whose calls fail or are interrupted. Default: all. */
  readonly operations?: ReadonlyArray<OperationName> | undefined
  /**
   * The statuses that calls fail with. Default: `InvalidValue`, `OutOfMemory` and `IllegalAddress`: one that concerns the call only, one
   * that can be retried, and one after which the contexts are lost. `OutOfMemory` is only used for operations that allocate, and a
   * sticky status only for those that need a context.
   */
  readonly statuses?: ReadonlyArray<StatusTag> | undefined
  /** When programs are interrupted, relative to a call. Default: before, during and after. */
  readonly interruptions?: ReadonlyArray<InterruptedCall["interrupt"]> | undefined
  /**
   * 2: every run that shows no problem is followed by runs with a second fault as well, at the calls that the program makes after the
   * first one, such as those that clean up or try again. Default: 1.
   */
  readonly depth?: 1 | 2 | undefined
  /** Limit on the number of runs with two faults. If there are more, some after every first fault. Default: 1000. */
  readonly maxPairs?: number | undefined
  /** Runs the program with this fault only, to replay what a report has found. */
  readonly only?: Fault | undefined
  /** Whether the program may end with a failure; `fault` is undefined for the undisturbed run. Default: with any, if there is a fault. */
  readonly mayFail?: ((failure: E, fault: Fault | undefined) => boolean) | undefined
  /** The number of runs at the same time. Default: 1. */
  readonly concurrency?: number | undefined
  /** Limit on the number of runs with one fault. If there are more, some from all over the program. Default: 1000. */
  readonly maxRuns?: number | undefined
  /** When a program has hung. Default: 1 minute, of virtual time. */
  readonly deadline?: Duration.Input | undefined
  /** The time of the programs. Use `real` with runtimes other than simulated ones. Default: `virtual`. */
  readonly time?: "virtual" | "real" | undefined
}

/**
 * Runs a program with every call failing in turn, and with interruption at every call, and reports what it shows. Fails if a runtime
 * cannot be built, and with `InvalidArgument` if an option is invalid.
 *
 * **Details**
 *
 * The program first runs undisturbed, which tells which calls it makes. Then each call fails with each status that it can return, and
 * the program is interrupted before, during and after each call. A run has a runtime of its own, and a scope of its own for the
 * program. Layers that the program provides are built anew in each run. Services from outside are shared by all runs.
 *
 * A failure is injected as `FaultInjection` does it: the call does not reach the runtime, unless it releases something. Allocations
 * that are out of memory are tried again by the library, so they fail twice: once, and often enough for the program to see it.
 *
 * With `depth: 2`, faults come in pairs as well: each run with one fault tells which calls the disturbed program makes after it, and each
 * of these fails, too, or is where the program is interrupted. After a sticky status all calls fail anyway, so there the second fault is
 * an interruption. After an interruption it is a failure.
 *
 * Time is virtual: when all fibers wait, the clock jumps to the end of the next sleep, unless Node.js is reading a file or the like.
 *
 * **Gotchas**
 *
 * The calls of a program must not depend on chance, or some are not reached. Calls that only a disturbed program makes, for example to
 * try again, fail with `depth: 2` only.
 *
 * Other asynchronous work, such as timers of JavaScript and threads of native code, takes no virtual time, and counts as hanging after
 * 50 ms. Use `time: "real"` for such programs.
 *
 * On a GPU, a run with a sticky status does not destroy the contexts, because injected faults do not reach the driver.
 *
 * **Example** (A copy that leaves nothing behind)
 *
 * ```ts
 * import { CudaFaults, CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const copy = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   const buffer = yield* CudaMemory.allocate(1024)
 *   yield* CudaMemory.upload(buffer, new Uint8Array(1024), stream)
 * })
 *
 * const test = Effect.flatMap(CudaFaults.everyCall(copy), CudaFaults.expectNone)
 * ```
 *
 * **Example** (One run again)
 *
 * ```ts
 * import { CudaFaults, CudaMemory, SimulatedRuntime } from "effect-cuda"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const replay = CudaFaults.everyCall(CudaMemory.allocate(1024), {
 *   runtime: SimulatedRuntime.layer({ devices: [{ memory: 2 ** 20 }] }),
 *   only: { operation: "CudaMemory.allocate", occurrence: 1, status: "OutOfMemory", times: 2 }
 * }).pipe(Effect.tap((report) => Console.log(CudaFaults.format(report))))
 * ```
 *
 * **Example** (Two faults in a run)
 *
 * ```ts
 * import { CudaFaults, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.scoped(CudaMemory.allocateHost(1024))
 *
 * const test = CudaFaults.everyCall(program, { depth: 2, maxPairs: 200 }).pipe(Effect.flatMap(CudaFaults.expectNone))
 * ```
 *
 * @category exploration
 * @since 0.1.0
 */
export function everyCall<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  options: Options<E> & {
    /** Builds the runtime of each run. Default: a simulated one. What else it provides, programs can use. */
    readonly runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn>
  }
): Effect.Effect<Report<E>, ELayer | CudaError, RIn | Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>>
export function everyCall<A, E, R>(
  program: Effect.Effect<A, E, R>,
  options?: Options<E> & { readonly runtime?: undefined }
): Effect.Effect<
  Report<E>,
  CudaError,
  Exclude<Exclude<R, Scope.Scope>, CudaRuntime | SimulatedRuntime.SimulatedControl>
>
export function everyCall<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  options: Options<E> & { readonly runtime?: Layer.Layer<CudaRuntime | ROut, ELayer, RIn> | undefined } = {}
):
  | Effect.Effect<Report<E>, ELayer | CudaError, RIn | Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>>
  | Effect.Effect<
    Report<E>,
    CudaError,
    Exclude<Exclude<R, Scope.Scope>, CudaRuntime | SimulatedRuntime.SimulatedControl>
  >
{
  const { runtime } = options
  return runtime === undefined
    ? explore(program, SimulatedRuntime.layer(), options)
    : explore(program, runtime, options)
}

const explore = Effect.fnUntraced(function*<A, E, R, ROut, ELayer, RIn>(
  program: Effect.Effect<A, E, R>,
  runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn>,
  options: Options<E>
): Effect.fn.Return<Report<E>, ELayer | CudaError, RIn | Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>> {
  yield* refuseOptions(options)
  const { concurrency = 1, depth = 1, maxPairs = 1000, maxRuns = 1000, mayFail } = options
  const setting: Setting<A, E, R, ROut, ELayer, RIn> = {
    program,
    runtime,
    time: options.time === "real" ? real : virtual,
    deadline: Duration.fromInputUnsafe(options.deadline ?? "1 minute"),
    mayFail: mayFail ?? ((_, fault) => fault !== undefined)
  }
  const kinds: FaultKinds = {
    operations: options.operations,
    statuses: options.statuses ?? ordinaryStatuses,
    moments: options.interruptions ?? moments
  }
  const { run: undisturbed, steps } = yield* runOnce(setting, undefined)
  const runAll = (faults: ReadonlyArray<Fault>) =>
    Effect.forEach(faults, (fault) => runOnce(setting, fault, steps.length), { concurrency })
  const { chosen, skipped } = choose(options.only === undefined ? planFor(steps, kinds) : [options.only], maxRuns)
  const single = yield* runAll(chosen)
  const pairs = choosePairs(depth === 2 && options.only === undefined ? single : [], kinds, maxPairs)
  const runs = [...single, ...yield* runAll(pairs.chosen)].map(({ run }) => run)
  return { undisturbed, steps, runs, skipped, skippedPairs: pairs.skipped }
})

const moments = ["before", "during", "after"] as const

const ordinaryStatuses = ["InvalidValue", "OutOfMemory", "IllegalAddress"] as const

const refuseOptions = (options: Options<never>): Effect.Effect<void, CudaError> => {
  const refuse = (argument: string, value: unknown, expected: string) =>
    refuseArgument("CudaFaults.everyCall", argument, value, expected)
  const {
    concurrency = 1,
    deadline = "1 minute",
    depth = 1,
    interruptions = moments,
    maxPairs = 1,
    maxRuns = 1,
    only
  } = options
  const { time = "virtual" } = options
  const faults = only === undefined ? [] : faultsOf(only)
  const operation = [...options.operations ?? [], ...faults.map(({ operation }) => operation)]
    .find((name) => !isOperation(name))
  if (operation !== undefined) return refuse("operations", operation, "names of operations")
  const status = [...options.statuses ?? [], ...faults.flatMap((one) => "status" in one ? [one.status] : [])]
    .find((tag) => !Object.hasOwn(statuses, tag))
  if (status !== undefined) return refuse("statuses", status, "tags of statuses")
  const moment = [...interruptions, ...faults.flatMap((one) => "interrupt" in one ? [one.interrupt] : [])]
    .find((one) => !moments.includes(one))
  if (moment !== undefined) return refuse("interruptions", moment, moments.join(", "))
  for (const one of faults) {
    if (!isCount(one.occurrence)) return refuse("only.occurrence", one.occurrence, "an integer above 0")
    const times = "status" in one ? one.times ?? 1 : 1
    if (!isCount(times)) return refuse("only.times", times, "an integer above 0")
  }
  const [first, second] = faults
  if (first !== undefined && second !== undefined && !comesAfter(second, first)) {
    return refuse("only.followedBy.occurrence", second.occurrence, "a call after the first fault")
  }
  if (depth !== 1 && depth !== 2) return refuse("depth", depth, "1 or 2")
  if (!isCount(maxPairs)) return refuse("maxPairs", maxPairs, "an integer above 0")
  if (!isCount(concurrency)) return refuse("concurrency", concurrency, "an integer above 0")
  if (!isCount(maxRuns)) return refuse("maxRuns", maxRuns, "an integer above 0")
  const limit = Option.filter(
    Duration.fromInput(deadline),
    (limit) => Duration.isFinite(limit) && Duration.isPositive(limit)
  )
  if (Option.isNone(limit)) return refuse("deadline", deadline, "a finite duration above 0")
  if (time !== "virtual" && time !== "real") return refuse("time", time, "virtual or real")
  return Effect.void
}

const isCount = (value: number): boolean => Number.isSafeInteger(value) && value > 0

/**
 * Describes a fault in words.
 *
 * **Example** (A call that fails)
 *
 * ```ts
 * import { CudaFaults } from "effect-cuda"
 *
 * // "CudaMemory.copy, call 2, fails with InvalidValue"
 * const text = CudaFaults.describe({ operation: "CudaMemory.copy", occurrence: 2, status: "InvalidValue" })
 * ```
 *
 * @category formatting
 * @since 0.1.0
 */
export const describe = (fault: Fault | undefined): string => describeFault(fault)

/**
 * Prints a report: a summary, the problems of each run with the option that replays it, and the notes.
 *
 * **Example** (What a program shows)
 *
 * ```ts
 * import { CudaFaults, CudaStream } from "effect-cuda"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const print = Effect.flatMap(CudaFaults.everyCall(CudaStream.make()), (report) =>
 *   Console.log(CudaFaults.format(report)))
 * ```
 *
 * @category formatting
 * @since 0.1.0
 */
export const format = <E>(report: Report<E>): string => describeReport(report).join("\n")

/**
 * A program showed problems.
 *
 * **Example** (The report of a failed exploration)
 *
 * ```ts
 * import { CudaFaults, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const report = CudaFaults.everyCall(CudaMemory.allocateHost(64)).pipe(
 *   Effect.flatMap(CudaFaults.expectNone),
 *   Effect.catchTag("ProblemsFound", ({ report }) => Effect.succeed(report))
 * )
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class ProblemsFound extends Data.TaggedError("ProblemsFound")<{ readonly report: Report<unknown> }> {
  override get message(): string {
    return format(this.report)
  }
}

/**
 * Fails with `ProblemsFound` if a report has problems, with the report as its message; otherwise returns the report. Notes and runs
 * that were left out are no problems.
 *
 * **Example** (A test)
 *
 * ```ts
 * import { CudaFaults, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const test = CudaFaults.everyCall(CudaMemory.allocateHost(64), {
 *   mayFail: (error) => error._tag === "CudaError"
 * }).pipe(Effect.flatMap(CudaFaults.expectNone))
 * ```
 *
 * @category assertions
 * @since 0.1.0
 */
export const expectNone = <E>(report: Report<E>): Effect.Effect<Report<E>, ProblemsFound> => {
  const hasProblems = [report.undisturbed, ...report.runs].some(({ problems }) => problems.length > 0)
  return hasProblems ? Effect.fail(new ProblemsFound({ report })) : Effect.succeed(report)
}
