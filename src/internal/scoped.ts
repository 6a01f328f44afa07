/**
 * Creates resources that live as long as a scope, in as few steps as possible.
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

/** How a kind of resource is created, destroyed, and wrapped as a handle. */
export interface Kind<Ref, Handle> {
  readonly create: (runtime: CudaRuntimeService, deviceIndex: number, fiber: AnyFiber) => Effect.Effect<Ref, CudaError>
  /** A release that waits does so in the context in which the resource was created. */
  readonly destroy: (
    runtime: CudaRuntimeService,
    ref: Ref,
    context: Context.Context<never>
  ) => Effect.Effect<void, CudaError>
  readonly wrap: (runtime: CudaRuntimeService, ref: Ref) => Handle
}

type AnyFiber = Fiber.Fiber<unknown, unknown>

/**
 * Creates a resource on a device (by default the current one) that lives as long as the scope. Like `Effect.acquireRelease`, cannot be
 * interrupted between creating it and adding its finalizer. A failed release is logged in the context in which the resource was
 * created; a release that succeeds is spared the change of context.
 */
export const makeScoped = <Ref, Handle>(
  device: DeviceLike | undefined,
  { create, destroy, wrap }: Kind<Ref, Handle>
): Effect.Effect<Handle, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.withFiber((fiber: AnyFiber): Effect.Effect<Handle, CudaError> => {
    const { context } = fiber
    const runtime = Context.getUnsafe(context, CudaRuntime)
    const scope = Context.getUnsafe(context, Scope.Scope)
    const index = deviceIndexOf(device, fiber.getRef(CurrentPlace).deviceIndex)
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
