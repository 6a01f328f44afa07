/**
 * The ways of waiting that benchmarks compare: the library's waits under each policy, on separate streams.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../../src/CudaError.ts"
import * as CudaEvent from "../../src/CudaEvent.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../../src/layers/NativeRuntime.ts"

/** The policies, as options of the native runtime. */
export const policies = {
  "default": {},
  "polling off": { wait: { pollFor: 0 } },
  "wake-up off": { wait: { pollFor: undefined, wakeUp: false } }
} as const

export type Policy = keyof typeof policies

/** A way to wait for the work on a stream. */
export interface Way {
  readonly name: string
  readonly stream: CudaStream.CudaStream
  readonly wait: () => Effect.Effect<void, CudaError>
}

/** The ways of a policy, in a scope: synchronizing a stream, and synchronizing an event recorded on it. */
export const makeWays = (policy: Policy): Effect.Effect<ReadonlyArray<Way>, CudaError, Scope.Scope> =>
  Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const event = yield* CudaEvent.make()
    const throughEvent = Effect.andThen(CudaEvent.record(event, stream), CudaEvent.synchronize(event))
    return [
      { name: `stream, ${policy}`, stream, wait: () => CudaStream.synchronize(stream) },
      { name: `event, ${policy}`, stream, wait: () => throughEvent }
    ]
  }).pipe(Effect.provideServiceEffect(CudaRuntime, NativeRuntime.make(policies[policy])))
