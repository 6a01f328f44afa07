/**
 * One run of a program on a fresh runtime, with a fault, and what it shows.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import type { StatusTag } from "../../cuda/status.ts"
import { CudaError } from "../../CudaError.ts"
import type { Fault, Note, Problem, Run, SingleFault, Step } from "../CudaFaults.ts"
import { CudaRuntime } from "../CudaRuntime.ts"
import type { LiveResources } from "../CudaRuntime.ts"
import { kindOf } from "./plan.ts"
import { Probe } from "./Probe.ts"
import type { RunTime } from "./VirtualTime.ts"

/** What all runs of an exploration have in common. */
export interface Setting<A, E, R, ROut, ELayer, RIn> {
  readonly program: Effect.Effect<A, E, R>
  readonly runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn>
  readonly time: Effect.Effect<RunTime>
  readonly deadline: Duration.Duration
  readonly mayFail: (failure: E, fault: Fault | undefined) => boolean
}

/** What a program still needs on a runtime, with a scope of its own. */
export type Provided<R, ROut> = Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>

/** The result of a run, and the calls of its program. */
export interface Ran<E> {
  readonly run: Run<E>
  readonly steps: ReadonlyArray<Step>
  /** Those after its first fault. */
  readonly stepsAfter: ReadonlyArray<Step>
}

/** Runs a program once, with a fault or, if it is undefined, undisturbed. Fails if there is no runtime. */
export const runOnce = <A, E, R, ROut, ELayer, RIn>(
  setting: Setting<A, E, R, ROut, ELayer, RIn>,
  fault: Fault | undefined,
  undisturbedCalls?: number
): Effect.Effect<Ran<E>, ELayer, RIn | Provided<R, ROut>> =>
  Effect.uninterruptible(Effect.gen(function*() {
    const time = yield* setting.time
    const log: Array<string> = []
    const fork = forkIn(time, log)
    const probe = new Probe(fault, undisturbedCalls)
    const found: Found<E> = { problems: [], notes: [] }
    const run = (exit?: Exit.Exit<A, E>): Run<E> => ({ fault, exit: exit && Exit.asVoid(exit), ...found, log })

    /** Waits for a fiber. If it does not end in time, that is a problem of a phase. */
    const ended = Effect.fnUntraced(function*<A, E>(fiber: Fiber.Fiber<A, E>, phase: Phase) {
      yield* time.drive(() => fiber.pollUnsafe() !== undefined, setting.deadline)
      const exit = fiber.pollUnsafe()
      if (exit === undefined) found.problems.push({ _tag: "Hung", phase })
      return exit
    })

    const scope = yield* Scope.make()
    const close = Effect.flatMap(fork(Scope.close(scope, Exit.void)), (fiber) => ended(fiber, "runtime"))
    const build = Layer.buildWithMemoMap(setting.runtime, Layer.makeMemoMapUnsafe(), scope)
    const built = yield* ended(yield* fork(build), "runtime")
    if (built === undefined) return { run: run(), steps: [], stepsAfter: [] }
    if (Exit.isFailure(built)) return yield* Effect.andThen(close, Effect.failCause(built.cause))

    const runtime = Context.get(built.value, CudaRuntime)
    const before = yield* runtime.liveResources
    const services = Context.add(built.value, CudaRuntime, probe.wrap(runtime))
    const program = yield* fork(Effect.provideContext(Effect.scoped(setting.program), services))
    probe.interrupt = () => program.interruptUnsafe()
    const exit = (yield* ended(program, "program")) ?? (yield* ended(interrupted(program), "interruption"))
    if (exit !== undefined) {
      findLeaks({ ...before, streams: before.streams + probe.pooledStreams }, yield* runtime.liveResources, found)
    }
    yield* close
    if (probe.isRestless && exit !== undefined) found.problems.push({ _tag: "Hung", phase: "program" })
    found.problems.push(...probe.problems)
    if (exit !== undefined) judge(setting, probe, fault, exit, found)
    return { run: run(exit), steps: probe.steps, stepsAfter: probe.stepsAfter }
  }))

type Phase = Extract<Problem<never>, { readonly _tag: "Hung" }>["phase"]

interface Found<E> {
  readonly problems: Array<Problem<E>>
  readonly notes: Array<Note<E>>
}

const interrupted = <A, E>(fiber: Fiber.Fiber<A, E>): Fiber.Fiber<A, E> => {
  fiber.interruptUnsafe()
  return fiber
}

/** Starts fibers in the time of a run. Its log is kept instead of printed. */
const forkIn = (time: RunTime, log: Array<string>) => {
  const logger = Logger.make(({ logLevel, message }) => {
    log.push(`${logLevel} ${[message].flat().map(String).join(" ")}`)
  })
  const context = Context.add(time.context, Logger.CurrentLoggers, new Set([logger]))
  return <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Fiber.Fiber<A, E>, never, R> =>
    // A run does not share the layers of its surroundings, nor those of other runs.
    effect.pipe(
      Effect.provideService(Layer.CurrentMemoMap, Layer.makeMemoMapUnsafe()),
      Effect.provideContext(context),
      Effect.forkDetach
    )
}

const findLeaks = <E>(before: LiveResources, after: LiveResources, { problems }: Found<E>): void => {
  const left = Object.fromEntries(
    Object.entries(after).flatMap(([name, count]: [string, number]) => {
      const more = count - before[name as keyof LiveResources]
      return more === 0 ? [] : [[name, more]]
    })
  )
  if (Object.keys(left).length > 0) problems.push({ _tag: "Leaked", left })
}

/** What the end of the program shows. */
const judge = <A, E>(
  { mayFail }: Pick<Setting<A, E, never, never, never, never>, "mayFail">,
  probe: Probe,
  fault: Fault | undefined,
  exit: Exit.Exit<A, E>,
  { notes, problems }: Found<E>
): void => {
  const { faults } = probe
  if (faults.some((one) => !probe.isReached(one))) notes.push({ _tag: "NotReached" })
  if (Exit.isSuccess(exit)) {
    const hasFailed = faults.some((one) =>
      "status" in one && probe.isReached(one) && kindOf(one.operation) !== "release"
    )
    if (hasFailed) notes.push({ _tag: "Succeeded" })
    return
  }
  const wasInterrupted = faults.some((one) => "interrupt" in one) || problems.some(({ _tag }) => _tag === "Hung")
  for (const reason of exit.cause.reasons) {
    if (Cause.isDieReason(reason)) problems.push({ _tag: "Died", defect: reason.defect })
    if (Cause.isInterruptReason(reason) && !wasInterrupted) problems.push({ _tag: "Interrupted" })
    if (!Cause.isFailReason(reason)) continue
    const failure = reason.error
    if (!mayFail(failure, fault)) problems.push({ _tag: "UnexpectedFailure", failure })
    else if (fault !== undefined && !faults.some((one) => mentions(failure, one))) {
      notes.push({ _tag: "Unrelated", failure })
    }
  }
}

/** Whether an injected failure is a failure, or among its causes. */
const mentions = (failure: unknown, fault: SingleFault): boolean =>
  "status" in fault && causes(failure).some((cause) => isOf(cause, fault.status))

const isOf = (cause: unknown, status: StatusTag): boolean => cause instanceof CudaError && cause.reason._tag === status

/** A failure, and what it says about its causes: errors that it holds, alone or in lists. */
const causes = (failure: unknown, depth = 8): ReadonlyArray<unknown> => {
  if (typeof failure !== "object" || failure === null || depth === 0) return []
  const held = [...Object.values(failure), Reflect.get(failure, "cause")]
  const errors = held.flatMap((value) => Array.isArray(value) ? value : [value]).filter((value) =>
    value instanceof Error
  )
  return [failure, ...errors.flatMap((cause) => causes(cause, depth - 1))]
}
