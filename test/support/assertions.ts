/**
 * Assertions on failures and on live resources.
 */
import { assert } from "@effect/vitest"
import type { CudaError, CudaErrorReason } from "effect-cuda/CudaError"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { LiveResources } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

type ReasonOf<Tag extends CudaErrorReason["_tag"]> = Extract<CudaErrorReason, { readonly _tag: Tag }>

/** Returns the reason an effect fails with, and asserts its tag. */
export const failsWith = <Tag extends CudaErrorReason["_tag"], R>(
  effect: Effect.Effect<unknown, CudaError, R>,
  tag: Tag
): Effect.Effect<ReasonOf<Tag>, never, R> =>
  Effect.map(
    Effect.flip(Effect.andThen(effect, Effect.die(new Error(`expected ${tag}, but it succeeded`)))),
    (error) => {
      assert.strictEqual(error.reason._tag, tag, error.message)
      assert.include(error.message, error.operation)
      return error.reason as ReasonOf<Tag>
    }
  )

/** Asserts that an effect rejects an argument by name. */
export const refuses = <R>(
  effect: Effect.Effect<unknown, CudaError, R>,
  argument: string
): Effect.Effect<void, never, R> =>
  Effect.map(failsWith(effect, "InvalidArgument"), (reason) => assert.strictEqual(reason.argument, argument))

/** The live resources of an empty runtime. */
export const nothingHeld: LiveResources = {
  streams: 0,
  events: 0,
  deviceBuffers: 0,
  deviceBytes: 0,
  hostBuffers: 0,
  hostBytes: 0,
  modules: 0,
  graphs: 0,
  pools: 0,
  partitions: 0,
  handles: 0,
  waits: 0
}

/** Runs an effect in its own scope and asserts that it leaves no live resources. */
export const leavesNothing = <A, E, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E, Exclude<R, Scope.Scope> | CudaRuntime> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const before = yield* runtime.liveResources
    const result = yield* Effect.scoped(effect)
    assert.deepStrictEqual(yield* runtime.liveResources, before)
    return result
  })
