/**
 * Fault injection: makes operations of a runtime fail on demand, to test how a program handles failures.
 *
 * Works around any runtime: on a GPU, on a simulated device, and around other layers. Depends on the runtime interface
 * and the shared wrapping.
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
 * An injected failure that has not occurred yet.
 *
 * @category models
 * @since 0.1.0
 */
export interface PendingFailure {
  readonly operation: OperationName
  readonly status: StatusTag
  /** How many more calls will fail; `Infinity` if all will. */
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
   * Makes the next call of an operation fail, or the next `times` calls; with `Infinity`, all calls until `clear`.
   * Failures of one operation occur in the order in which they were injected. Fails with `InvalidArgument` if the
   * operation, the status or the number is invalid.
   *
   * **Details**
   *
   * The failure has the reason, the call and the subject of a driver failure. The operation does not reach the runtime,
   * except if it releases or ends something (the releases, and the end of `CudaMemory.access`): then the runtime runs
   * it first, so that nothing leaks.
   *
   * After a sticky status, for example `IllegalAddress`, the contexts are lost, as after a fault: every later operation
   * fails with the same reason, and its `origin` names the operation that failed first. Operations that need no context
   * still work: device attributes, priority ranges, peer access, and compiling. A simulated runtime destroys its
   * contexts and drops pending work.
   *
   * **Gotchas**
   *
   * `CudaMemory.allocate` and `allocateManaged` reclaim memory and retry after an `OutOfMemory` failure: two calls in
   * total, four for memory of a pool. The program therefore does not see a single failure. Use `Infinity`, then
   * `clear`.
   *
   * On a GPU, enqueued work continues after an injected fault, and a wait that began earlier ends with that work.
   */
  readonly failNext: (operation: OperationName, status: StatusTag, times?: number) => Effect.Effect<void, CudaError>
  /** Drops the pending failures of one operation, or of all. Lost contexts stay lost. */
  readonly clear: (operation?: OperationName) => Effect.Effect<void>
  /**
   * The failures that have not occurred yet, in the order in which they were injected. An infinite one is no longer
   * listed after its first call. Empty at the end of a test in which all injected failures occurred.
   */
  readonly pending: Effect.Effect<ReadonlyArray<PendingFailure>>
}

/**
 * The service that injects failures into a runtime.
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
 * Wraps a runtime for fault injection. The result has the identity of the inner runtime. Failures only occur in
 * programs that use the result.
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
