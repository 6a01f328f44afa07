/**
 * Effects that are one call of the driver, for what programs call often.
 *
 * Such an effect is an object that holds what the call is given. Evaluating it costs about half of what `Effect.suspend` with a
 * closure does.
 */
import type * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type { CudaError } from "../../CudaError.ts"

type Operation<A> = Effect.Effect<A, CudaError>

/** Makes a function that returns effects: evaluated, each runs `run` with what the function was given. */
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
  // A class of its own for each operation, so that what it runs is known where it is evaluated.
  class DriverCall extends Effectable.Class<A, CudaError> {
    readonly first: P1
    readonly second: P2
    readonly third: P3
    readonly fourth: P4
    constructor(first: P1, second: P2, third: P3, fourth: P4) {
      super()
      this.first = first
      this.second = second
      this.third = third
      this.fourth = fourth
    }
    asEffect(): Operation<A> {
      return run(this.first, this.second, this.third, this.fourth)
    }
  }
  return (first: P1, second: P2, third: P3, fourth: P4) => new DriverCall(first, second, third, fourth)
}
