/**
 * One run of a program on a fresh runtime, with a fault, and what it shows.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { StatusTag } from "../../cuda/status.ts"
import { CudaError } from "../../CudaError.ts"
import type { Fault, Note, Problem, Run, SingleFault, Step } from "../CudaFaults.ts"
import type { LiveResources } from "../CudaRuntime.ts"
import { runFresh } from "./fresh.ts"
import type { Fresh, Provided } from "./fresh.ts"
import { kindOf } from "./plan.ts"
import { Probe } from "./Probe.ts"
import type { RunTime } from "./VirtualTime.ts"

/** What all runs of an exploration have in common. */
export interface Setting<A, E, R, ROut, ELayer, RIn> extends Fresh<A, E, R, ROut, ELayer, RIn> {
  readonly time: Effect.Effect<RunTime>
  readonly mayFail: (failure: E, fault: Fault | undefined) => boolean
}

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
  Effect.gen(function*() {
    const time = yield* setting.time
    const probe = new Probe(fault, undisturbedCalls)
    const found: Found<E> = { problems: [], notes: [] }
    let before: LiveResources | undefined
    const { exit, hung, log } = yield* runFresh(setting, time, {
      before: (runtime) =>
        Effect.map(runtime.liveResources, (live) => {
          before = live
          return probe.wrap(runtime)
        }),
      started: (interrupt) => {
        probe.interrupt = interrupt
      },
      after: (runtime, exit) =>
        Effect.map(runtime.liveResources, (after) => {
          if (exit === undefined || before === undefined) return
          findLeaks({ ...before, streams: before.streams + probe.pooledStreams }, after, found)
        })
    })
    found.problems.unshift(...hung.map((phase) => ({ _tag: "Hung", phase }) as const))
    if (probe.isRestless && exit !== undefined) found.problems.push({ _tag: "Hung", phase: "program" })
    found.problems.push(...probe.problems)
    if (exit !== undefined) judge(setting, probe, fault, exit, found)
    const run = { fault, exit: exit && Exit.asVoid(exit), ...found, log }
    return { run, steps: probe.steps, stepsAfter: probe.stepsAfter }
  })

interface Found<E> {
  readonly problems: Array<Problem<E>>
  readonly notes: Array<Note<E>>
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
