/**
 * Things of a runtime that live as long as a scope, made with as few steps as that takes.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "../layers/CudaRuntime.ts"
import type { CudaRuntimeService } from "../layers/CudaRuntime.ts"
import { logRelease } from "./handles.ts"
import { CurrentPlace, deviceIndexOf } from "./place.ts"
import type { DeviceLike } from "./place.ts"

/** How a thing is made, given back, and shown to programs. */
export interface Kind<Ref, Handle> {
  readonly create: (runtime: CudaRuntimeService, device: number, fiber: AnyFiber) => Effect.Effect<Ref, CudaError>
  /** Where it waits, it does so in the context that the thing was made in. */
  readonly destroy: (
    runtime: CudaRuntimeService,
    ref: Ref,
    context: Context.Context<never>
  ) => Effect.Effect<void, CudaError>
  readonly wrap: (runtime: CudaRuntimeService, ref: Ref) => Handle
}

type AnyFiber = Fiber.Fiber<unknown, unknown>

/**
 * Makes a thing on a device, by default the current one, for the life of the scope. Not interrupted between making it and telling
 * the scope, as with `Effect.acquireRelease`. What a release has to say is said in the context that the thing was made in, too; a
 * release that says nothing is spared the change of context.
 */
export const makeScoped = <Ref, Handle>(
  device: DeviceLike | undefined,
  { create, destroy, wrap }: Kind<Ref, Handle>
): Effect.Effect<Handle, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.withFiber((fiber: AnyFiber): Effect.Effect<Handle, CudaError> => {
    const { context } = fiber
    const runtime = Context.getUnsafe(context, CudaRuntime)
    const scope = Context.getUnsafe(context, Scope.Scope)
    const index = deviceIndexOf(device) ?? fiber.getRef(CurrentPlace).device
    return Effect.uninterruptible(
      Effect.flatMap(
        create(runtime, index, fiber),
        (ref) => {
          const release = Effect.catch(
            destroy(runtime, ref, context),
            (error) => Effect.provideContext(logRelease(error), context)
          )
          return Effect.as(Scope.addFinalizer(scope, release), wrap(runtime, ref))
        }
      )
    )
  })
