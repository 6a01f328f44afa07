/**
 * Effects that make a single driver call, for frequent operations.
 *
 * Such an effect is an object that holds the arguments of the call. Evaluating it costs about half as much as
 * `Effect.suspend` with a closure.
 */
import type * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type { CudaError } from "../../CudaError.ts"

type Operation<A> = Effect.Effect<A, CudaError>

/**
 * Turns `run` into a function that returns an effect. Evaluating the effect calls `run` with the function's arguments.
 */
export function operation<P1, A>(run: (first: P1) => Operation<A>): (first: P1) => Operation<A>
export function operation<P1, P2, A>(
  run: (first: P1, second: P2) => Operation<A>
): (first: P1, second: P2) => Operation<A>
export function operation<P1, P2, P3, A>(
  run: (first: P1, second: P2, third: P3) => Operation<A>
): (first: P1, second: P2, third: P3) => Operation<A>
export function operation<P1, P2, P3, P4, A>(
  run: (first: P1, second: P2, third: P3, fourth: P4) => Operation<A>
): (first: P1, second: P2, third: P3, fourth: P4) => Operation<A>
export function operation<P1, P2, P3, P4, A>(
  run: (first: P1, second: P2, third: P3, fourth: P4) => Operation<A>
): (first: P1, second: P2, third: P3, fourth: P4) => Operation<A> {
  const call = (first: P1, second: P2, third: P3, fourth: P4) => new DriverCall(run, first, second, third, fourth)
  return Object.assign(call, { run })
}

/** A single class for all operations, so that the fiber's run loop stays monomorphic. */
class DriverCall<P1, P2, P3, P4, A> extends Effectable.Class<A, CudaError> {
  readonly run: (first: P1, second: P2, third: P3, fourth: P4) => Operation<A>
  readonly first: P1
  readonly second: P2
  readonly third: P3
  readonly fourth: P4
  constructor(
    run: (first: P1, second: P2, third: P3, fourth: P4) => Operation<A>,
    first: P1,
    second: P2,
    third: P3,
    fourth: P4
  ) {
    super()
    this.run = run
    this.first = first
    this.second = second
    this.third = third
    this.fourth = fourth
  }
  asEffect(): Operation<A> {
    const { run } = this
    return run(this.first, this.second, this.third, this.fourth)
  }
}

type AnyCall = (...args: ReadonlyArray<never>) => Operation<unknown>

const isMade = <Call extends AnyCall>(call: Call): call is Call & { readonly run: Call } => "run" in call

/** The function inside a function made by `operation`: calling it makes the driver call, without an effect around it. */
export const directly = <Call extends AnyCall>(call: Call): Call => isMade(call) ? call.run : call

/**
 * Evaluates effects made by `operation` right here, instead of in the fiber's run loop. What they return is returned as it is: an exit, or
 * an effect that has more to do.
 */
export const evaluate = <A>(effect: Operation<A>): Operation<A> => {
  let at = effect
  while (at instanceof DriverCall) at = at.asEffect()
  return at
}
