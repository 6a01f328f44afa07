/**
 * Watches the calls of one run, and puts its faults where they belong.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { Fault, InterruptedCall, Problem, SingleFault, Step } from "../CudaFaults.ts"
import type { CudaRuntimeService, StreamOptions } from "../CudaRuntime.ts"
import { around } from "../runtime/operations.ts"
import type { Operation, OperationName } from "../runtime/operations.ts"
import { inject, Injection } from "../shared/injection.ts"
import { faultsOf } from "./plan.ts"

/** As many calls as any program makes that does not try the same again and again. */
const mostCalls = (undisturbed: number): number => 20 * undisturbed + 1000

export class Probe {
  readonly steps: Array<Step> = []
  /** One after the other. */
  readonly faults: ReadonlyArray<SingleFault>
  /** The faults whose calls were made, with the number of calls by then. */
  readonly #reached = new Map<SingleFault, number>()
  /** Streams that live as long as the runtime. */
  pooledStreams = 0
  /** Interrupts the program. */
  interrupt: () => void = () => {}
  readonly #most: number
  /** Failed calls that release or end something, other than the one that had to fail. */
  readonly #failedReleases: Array<CudaError> = []
  /** Failures of waits that can never end. */
  readonly #stuck: Array<CudaError> = []
  readonly #counts = new Map<OperationName, number>()

  constructor(fault: Fault | undefined, undisturbedCalls: number | undefined) {
    this.faults = fault === undefined ? [] : faultsOf(fault)
    this.#most = undisturbedCalls === undefined ? Infinity : mostCalls(undisturbedCalls)
  }

  isReached(fault: SingleFault): boolean {
    return this.#reached.has(fault)
  }

  /** The calls after the first fault. */
  get stepsAfter(): ReadonlyArray<Step> {
    const at = this.faults[0] === undefined ? undefined : this.#reached.get(this.faults[0])
    return at === undefined ? [] : this.steps.slice(at)
  }

  /** The problems that calls have shown. */
  get problems(): ReadonlyArray<Problem<never>> {
    return [
      ...this.#stuck.slice(0, 1).map((error) => ({ _tag: "NeverFinished", error }) as const),
      ...this.#failedReleases.map((error) => ({ _tag: "ReleaseFailed", error }) as const)
    ]
  }

  /** Whether the program tries the same again and again. */
  get isRestless(): boolean {
    return this.steps.length > this.#most
  }

  /** The runtime that the program gets. */
  wrap(runtime: CudaRuntimeService): CudaRuntimeService {
    return around(this.#failing(runtime), (operation, call) => (...args) =>
      Effect.suspend(() => {
        const fault = this.#enter(operation)
        if (fault !== undefined) this.#reached.set(fault, this.steps.length)
        const isFault = fault !== undefined
        const watched = Effect.tap(
          Effect.tapError(call(...args), (error) => Effect.sync(() => this.#failed(operation, error, isFault))),
          () => Effect.sync(() => this.#succeeded(operation, args))
        )
        return isFault && "interrupt" in fault ? this.#interrupted(fault.interrupt, watched) : watched
      }))
  }

  #failing(runtime: CudaRuntimeService): CudaRuntimeService {
    const injection = new Injection()
    let passed: SingleFault | undefined
    for (const fault of this.faults) {
      if ("interrupt" in fault) continue
      const { occurrence, operation, status, times = 1 } = fault
      // Calls are counted from the last failure of the same operation.
      const before = passed?.operation === operation ? callsUntil(passed) : 0
      injection.add(operation, status, times, occurrence - 1 - before)
      passed = fault
    }
    return passed === undefined ? runtime : inject(runtime, injection)
  }

  /** Counts a call, and returns the fault that it is the call of. */
  #enter({ name }: Operation): SingleFault | undefined {
    const occurrence = (this.#counts.get(name) ?? 0) + 1
    this.#counts.set(name, occurrence)
    this.steps.push({ index: this.steps.length + 1, operation: name, occurrence })
    // Again and again, because the program may have been in a region that cannot be interrupted.
    if (this.isRestless) this.interrupt()
    return this.faults.find((fault) => fault.operation === name && fault.occurrence === occurrence)
  }

  #failed({ kind }: Operation, error: CudaError, isFault: boolean): void {
    if (error.reason._tag === "NeverFinishes") this.#stuck.push(error)
    if (kind === "release" && !isFault && !error.isSticky) this.#failedReleases.push(error)
  }

  #succeeded({ member }: Operation, args: ReadonlyArray<unknown>): void {
    if (member !== "streamCreate") return
    const { partition, pooled } = args[0] as StreamOptions
    // Those of a partition end with it.
    if (pooled === true && partition === undefined) this.pooledStreams++
  }

  #interrupted<A, E>(moment: InterruptedCall["interrupt"], call: Effect.Effect<A, E>): Effect.Effect<A, E> {
    const now = Effect.sync(this.interrupt)
    switch (moment) {
      case "before":
        return Effect.andThen(Effect.andThen(now, Effect.yieldNow), call)
      case "during":
        return Effect.andThen(Effect.sync(() => void setImmediate(this.interrupt)), call)
      case "after":
        return Effect.tap(call, () => Effect.andThen(now, Effect.yieldNow))
    }
  }
}

/** The number of calls of its operation until a fault is over. */
const callsUntil = (fault: SingleFault): number => fault.occurrence - 1 + ("status" in fault ? fault.times ?? 1 : 1)
