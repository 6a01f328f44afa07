/**
 * Fault injection: makes operations of a runtime fail on demand, to test what a program does about it.
 *
 * Works around any runtime: on a GPU, on a simulated device, and around other layers. Depends on the runtime interface and the
 * shared wrapping.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { StatusTag } from "../cuda/status.ts"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import type { CudaRuntimeService } from "./CudaRuntime.ts"
import type { OperationName } from "./runtime/operations.ts"
import { inject, Injection, injectionService } from "./shared/injection.ts"

/**
 * An injected failure that no operation has met yet.
 *
 * @category models
 * @since 0.1.0
 */
export interface PendingFailure {
  readonly operation: OperationName
  readonly status: StatusTag
  /** How many calls are still to fail; `Infinity` for a failure without end. */
  readonly times: number
}

/**
 * Injects failures into the operations of a runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface FaultInjectionService {
  /**
   * Makes the next calls of an operation fail: one by default, or `times` of them, or with `Infinity` all until `clear`. Failures of
   * one operation are met in the order in which they were injected. Fails with `InvalidArgument` for a name, a status or a
   * number that does not exist.
   *
   * **Details**
   *
   * The failure has the reason, the call and the subject that a failure of the driver has. The operation does not reach the runtime,
   * except for those that release or end something (the releases, and the end of `CudaMemory.access`), which reach it first, so
   * that nothing is left behind.
   *
   * A sticky status, for example `IllegalAddress`, loses the contexts, like a fault: every later operation fails with the same
   * reason, and its `origin` names the operation that failed first. Operations that need no context still work: attributes of
   * devices, their priority range and peer access, and compiling. A simulated runtime ends its contexts and drops pending work.
   *
   * **Gotchas**
   *
   * `CudaMemory.allocate` and `allocateManaged` call the runtime again after an `OutOfMemory` failure, once memory was reclaimed:
   * twice in all, four times for memory of a pool. One failure is therefore not seen by the program. Use `Infinity`, and `clear`
   * after it.
   *
   * On a GPU, work that is enqueued goes on after an injected fault, and a wait that began before it ends with that work.
   */
  readonly failNext: (operation: OperationName, status: StatusTag, times?: number) => Effect.Effect<void, CudaError>
  /** Drops the failures that are still to come, of one operation or of all. Lost contexts stay lost. */
  readonly clear: (operation?: OperationName) => Effect.Effect<void>
  /**
   * The failures that no operation has met yet, in the order in which they were injected. One without end is met after its first
   * call. Empty at the end of a test that met all it injected.
   */
  readonly pending: Effect.Effect<ReadonlyArray<PendingFailure>>
}

/**
 * Injects failures into the runtime that it is provided with.
 *
 * **Example** (A full device)
 *
 * ```ts
 * import { CudaMemory, FaultInjection, SimulatedRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const test = Effect.gen(function*() {
 *   const faults = yield* FaultInjection.FaultInjection
 *   yield* faults.failNext("CudaMemory.allocate", "OutOfMemory", Infinity)
 *   const error = yield* Effect.flip(CudaMemory.allocate(1024))
 *   yield* faults.clear("CudaMemory.allocate")
 *   const buffer = yield* CudaMemory.allocate(1024)
 *   return [error.reason._tag, buffer.byteLength] // ["OutOfMemory", 1024]
 * }).pipe(
 *   Effect.scoped,
 *   Effect.provide(FaultInjection.layer.pipe(Layer.provide(SimulatedRuntime.layer())))
 * )
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class FaultInjection extends Context.Service<FaultInjection, FaultInjectionService>()(
  "effect-cuda/layers/FaultInjection"
) {}

/**
 * Wraps a runtime for fault injection. The result has the identity of the runtime inside; failures are met only by what uses
 * the result.
 *
 * **Example** (A runtime whose next copy fails)
 *
 * ```ts
 * import { FaultInjection, NativeRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const failing = Effect.gen(function*() {
 *   const { injection, runtime } = yield* FaultInjection.make(yield* NativeRuntime.make())
 *   yield* injection.failNext("CudaMemory.copy", "InvalidValue")
 *   return runtime
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  runtime: CudaRuntimeService
): Effect.Effect<{ readonly runtime: CudaRuntimeService; readonly injection: FaultInjectionService }> =>
  Effect.sync(() => {
    const injection = new Injection()
    return { runtime: inject(runtime, injection), injection: injectionService(injection, "FaultInjection") }
  })

/**
 * Wraps the runtime of a layer, and provides `FaultInjection` to inject failures into it.
 *
 * **Example** (Failures of a GPU that programs handle)
 *
 * ```ts
 * import { CudaStream, FaultInjection, NativeRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const program = Effect.gen(function*() {
 *   const faults = yield* FaultInjection.FaultInjection
 *   yield* faults.failNext("CudaStream.make", "IllegalAddress")
 *   const error = yield* Effect.flip(CudaStream.make())
 *   const later = yield* Effect.flip(CudaStream.make())
 *   return [error.isSticky, later.origin?.operation] // [true, "CudaStream.make"]
 * }).pipe(Effect.scoped, Effect.provide(FaultInjection.layer.pipe(Layer.provide(NativeRuntime.layer()))))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<CudaRuntime | FaultInjection, never, CudaRuntime> = Layer.effectContext(
  Effect.map(
    Effect.flatMap(CudaRuntime, make),
    ({ injection, runtime }) => Context.make(CudaRuntime, runtime).pipe(Context.add(FaultInjection, injection))
  )
)
