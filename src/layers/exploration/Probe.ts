/**
 * Watches the calls of one run, and puts its fault where it belongs.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { Fault, InterruptedCall, Problem, Step } from "../CudaFaults.ts"
import type { CudaRuntimeService, StreamOptions } from "../CudaRuntime.ts"
import { around } from "../runtime/operations.ts"
import type { Operation, OperationName } from "../runtime/operations.ts"
import { inject, Injection } from "../shared/injection.ts"

/** As many calls as any program makes that does not try the same again and again. */
const mostCalls = (undisturbed: number): number => 20 * undisturbed + 1000

export class Probe {
  readonly steps: Array<Step> = []
  readonly fault: Fault | undefined
  isReached = false
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
    this.fault = fault
    this.#most = undisturbedCalls === undefined ? Infinity : mostCalls(undisturbedCalls)
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
        const isFault = this.#enter(operation)
        if (isFault) this.isReached = true
        const watched = Effect.tap(
          Effect.tapError(call(...args), (error) => Effect.sync(() => this.#failed(operation, error, isFault))),
          () => Effect.sync(() => this.#succeeded(operation, args))
        )
        return isFault && this.fault !== undefined && "interrupt" in this.fault
          ? this.#interrupted(this.fault.interrupt, watched)
          : watched
      }))
  }

  #failing(runtime: CudaRuntimeService): CudaRuntimeService {
    if (this.fault === undefined || "interrupt" in this.fault) return runtime
    const injection = new Injection()
    const { occurrence, operation, status, times = 1 } = this.fault
    injection.add(operation, status, times, occurrence - 1)
    return inject(runtime, injection)
  }

  /** Counts a call, and tells whether it is the one of the fault. */
  #enter({ name }: Operation): boolean {
    const occurrence = (this.#counts.get(name) ?? 0) + 1
    this.#counts.set(name, occurrence)
    this.steps.push({ index: this.steps.length + 1, operation: name, occurrence })
    // Again and again, because the program may have been in a region that cannot be interrupted.
    if (this.isRestless) this.interrupt()
    return this.fault?.operation === name && this.fault.occurrence === occurrence
  }

  #failed({ kind }: Operation, error: CudaError, isFault: boolean): void {
    if (error.reason._tag === "NeverFinishes") this.#stuck.push(error)
    if (kind === "release" && !isFault && !error.isSticky) this.#failedReleases.push(error)
  }

  #succeeded({ member }: Operation, args: ReadonlyArray<unknown>): void {
    if (member === "streamCreate" && (args[0] as StreamOptions).pooled) this.pooledStreams++
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
