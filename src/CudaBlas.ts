/**
 * Matrix products with cuBLASLt: planned once, then enqueued like any other work.
 *
 * A service, so that programs without it never load cuBLASLt. Depends on the interface of `CudaRuntime`, and on `CudaLibrary`, `CudaMemory`,
 * `CudaStream` and `CudaEvent`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Inspectable } from "effect/Inspectable"
import * as Layer from "effect/Layer"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { DeviceOptions } from "./CudaDevice.ts"
import { isCudaError } from "./CudaError.ts"
import type { CudaError } from "./CudaError.ts"
import * as CudaLibrary from "./CudaLibrary.ts"
import type { CudaStream } from "./CudaStream.ts"
import { describe, findAlgorithms } from "./internal/blas/descriptors.ts"
import type { Descriptors } from "./internal/blas/descriptors.ts"
import { definition } from "./internal/blas/library.ts"
import type { CublasLt } from "./internal/blas/library.ts"
import type { MatrixType } from "./internal/blas/numbers.ts"
import { multiplying } from "./internal/blas/operands.ts"
import type { Operands, Scales } from "./internal/blas/operands.ts"
import { enqueue, PlanImpl, PlanRef } from "./internal/blas/plan.ts"
import type { Shared } from "./internal/blas/plan.ts"
import { planning, problemOf } from "./internal/blas/problem.ts"
import type { Compute, Epilogue, Matrix, Problem, ProductOptions } from "./internal/blas/problem.ts"
import { tune } from "./internal/blas/tuning.ts"
import { Workspaces } from "./internal/blas/workspaces.ts"
import { isStream } from "./internal/given.ts"
import { named, refuseArgument, refuseForeign } from "./internal/handles.ts"
import { namedNode } from "./internal/node.ts"
import { isWhole } from "./internal/numbers.ts"
import { CurrentPlace, onStream, resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, ResourceState } from "./layers/CudaRuntime.ts"

export type {
  /**
   * How products of `f32` are computed.
   *
   * @category models
   * @since 0.1.0
   */
  Compute,
  /**
   * What is done to a product before it is stored.
   *
   * @category models
   * @since 0.1.0
   */
  Epilogue,
  /**
   * A matrix, as it is stored.
   *
   * @category models
   * @since 0.1.0
   */
  Matrix,
  /**
   * The type of the elements of a matrix.
   *
   * @category models
   * @since 0.1.0
   */
  MatrixType,
  /**
   * The memory and the factors of a product.
   *
   * @category models
   * @since 0.1.0
   */
  Operands,
  /**
   * The factors of matrices of 8-bit floats.
   *
   * @category models
   * @since 0.1.0
   */
  Scales
}

/**
 * The operations of the service.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaBlasService {
  /** The version of cuBLASLt, such as `13.1.0`; undefined on simulated devices, which load nothing. */
  readonly version: string | undefined
  /** The file of the library, or its name for the system's loader; undefined on simulated devices. */
  readonly path: string | undefined
  /** Plans a product. See `CudaBlas.plan`. */
  readonly plan: (options: PlanOptions) => Effect.Effect<MatmulPlan, CudaError, Scope.Scope>
}

/**
 * Matrix products, as a service.
 *
 * **Example** (The version of cuBLASLt)
 *
 * ```ts
 * import { CudaBlas } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const version = Effect.map(CudaBlas.CudaBlas, (blas) => blas.version).pipe(Effect.provide(CudaBlas.layer()))
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class CudaBlas extends Context.Service<CudaBlas, CudaBlasService>()("effect-cuda/CudaBlas") {}

/**
 * Options for `layer`.
 *
 * @category options
 * @since 0.1.0
 */
export interface BlasOptions {
  /** The path of cuBLASLt. Default: `EFFECT_CUDA_CUBLASLT` from the configuration, otherwise the usual locations (see `CudaLibrary.load`). */
  readonly path?: string | undefined
  /** Bytes that an algorithm may work in. Default: 32 MiB since Hopper, 4 MiB before. */
  readonly maxWorkspaceBytes?: number | undefined
}

/**
 * Loads cuBLASLt, and provides matrix products on the devices of the runtime.
 *
 * **Details**
 *
 * Loading takes a moment, off the JS thread. A device's library handle is made when its first product is planned (`cublasLtCreate`), and
 * destroyed with the layer, off the JS thread, once the device has no work. Fails with `LibraryUnavailable` if cuBLASLt is not found.
 *
 * On simulated devices, nothing is loaded, and products are computed plainly: sums in float64, rounded once.
 *
 * **Example** (cuBLASLt on the GPU)
 *
 * ```ts
 * import { CudaBlas, NativeRuntime } from "effect-cuda"
 * import * as Layer from "effect/Layer"
 *
 * const blas = CudaBlas.layer().pipe(Layer.provideMerge(NativeRuntime.layer()))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: BlasOptions = {}): Layer.Layer<CudaBlas, CudaError, CudaRuntime> =>
  Layer.effect(CudaBlas, make(options))

const make = Effect.fnUntraced(function*(options: BlasOptions) {
  const { maxWorkspaceBytes, path } = options
  if (maxWorkspaceBytes !== undefined && !isWhole(maxWorkspaceBytes, 0)) {
    return yield* refuseArgument("CudaBlas.layer", "maxWorkspaceBytes", maxWorkspaceBytes, "an integer of at least 0")
  }
  const runtime = yield* CudaRuntime
  const scope = yield* Effect.scope
  const library = yield* CudaLibrary.load(definition, { path })
  const shared: Shared = { runtime, library, workspaces: new Workspaces(runtime, scope) }
  const handleOf = yield* makeHandles(library, runtime, scope)
  // A call of the library would open the current device.
  const getVersion = yield* CudaLibrary.native(library, "cublasLtGetVersion")
  return CudaBlas.of({
    version: getVersion === undefined ? undefined : versionOf(Number(getVersion())),
    path: library.path,
    plan: (options) =>
      Effect.flatMap(
        resolveDevice(options?.device),
        (deviceIndex) => makePlan(shared, handleOf(deviceIndex), options, maxWorkspaceBytes)
      ).pipe(named(planning), Effect.withSpan(planning))
  })
})

const versionOf = (version: number): string => {
  // Since 12, the minor version has two digits.
  const unit = version >= 100_000 ? 100 : 10
  return [Math.floor(version / (100 * unit)), Math.floor(version / 100) % unit, version % 100].join(".")
}

type Handle = CudaLibrary.LibraryHandle<"cublasLt">

/** Makes the handle of a device when it is first needed. Attempts that fail are repeated by the next plan. */
const makeHandles = Effect.fnUntraced(
  function*(library: CublasLt, runtime: CudaRuntimeService, scope: Scope.Scope) {
    const making = yield* Semaphore.make(1)
    const handles = new Map<number, Handle>()
    const makeOn = Effect.fnUntraced(function*(device: number) {
      const known = handles.get(device)
      if (known !== undefined) return known
      const made = yield* CudaLibrary.handle(library, { create: "cublasLtCreate", destroy: "cublasLtDestroy", device })
      handles.set(device, made)
      return made
    })
    return (device: number) =>
      makeOn(device).pipe(
        Effect.uninterruptible,
        making.withPermits(1),
        Effect.provideService(CudaRuntime, runtime),
        Effect.provideService(Scope.Scope, scope)
      )
  }
)

const makePlan = Effect.fnUntraced(function*(
  shared: Shared,
  getHandle: Effect.Effect<Handle, CudaError>,
  options: PlanOptions,
  mostBytes: number | undefined
) {
  const problem = problemOf(options)
  if (isCudaError(problem)) return yield* problem
  const { tune: count = 1 } = options
  if (!isWhole(count, 1, 100)) return yield* refuseArgument(planning, "tune", count, "an integer from 1 to 100")
  const handle = yield* getHandle
  const plan = planOn(handle, shared, problem, count, mostBytes).pipe(
    Effect.updateService(CurrentPlace, (outer) => ({ deviceIndex: handle.deviceIndex, stream: undefined, outer }))
  )
  return yield* inOwnScope(plan)
})

/** Makes something in a scope of its own, so that nothing of it is released while it is made, even if the outer scope is closed meanwhile. */
const inOwnScope = <A, E, R>(
  self: Effect.Effect<A, E, R>
): Effect.Effect<A, E, Exclude<R, Scope.Scope> | Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const outer = yield* Effect.scope
      const scope = yield* Scope.make()
      const close = Scope.close(scope, Exit.void)
      const made = yield* restore(self).pipe(Scope.provide(scope), Effect.onError(() => close))
      yield* Scope.addFinalizer(outer, close)
      return made
    })
  )

const planOn = Effect.fnUntraced(function*(
  handle: Handle,
  shared: Shared,
  problem: Problem,
  count: number,
  mostBytes: number | undefined
) {
  const maxWorkspaceBytes = mostBytes ??
    (shared.runtime.devices[handle.deviceIndex]!.computeCapability.major >= 9 ? 32 * 2 ** 20 : 4 * 2 ** 20)
  const descriptors = yield* describe(shared.library, problem)
  const algorithms = yield* findAlgorithms(shared.library, handle, problem, descriptors, { count, maxWorkspaceBytes })
  const native = yield* findNative(shared.library, descriptors)
  const scope = yield* Effect.scope
  const plan = new PlanRef(shared, handle, problem, native, algorithms[0]!, scope)
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      plan.state = "released"
    })
  )
  if (native !== undefined && count > 1) yield* tune(plan, algorithms)
  return new PlanImpl(shared.runtime, plan)
})

/** The native functions; undefined on simulated devices. */
const findNative = Effect.fnUntraced(function*(library: CublasLt, descriptors: Descriptors) {
  const matmul = yield* CudaLibrary.native(library, "cublasLtMatmul")
  const setAttribute = yield* CudaLibrary.native(library, "cublasLtMatmulDescSetAttribute")
  return matmul === undefined || setAttribute === undefined ? undefined : { matmul, setAttribute, descriptors }
})

/**
 * Options for planning a product.
 *
 * @category options
 * @since 0.1.0
 */
export interface PlanOptions extends ProductOptions, DeviceOptions {
  /**
   * How many of the proposed algorithms to time on the device, which then has the fastest. Takes memory for the operands and some
   * milliseconds of the device, so do it before there is other work. Default: 1, the first proposal, which is usually good.
   */
  readonly tune?: number | undefined
}

/**
 * A planned product: its descriptors and its algorithm.
 *
 * @category models
 * @since 0.1.0
 */
export interface MatmulPlan extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaBlas/Plan": "~effect-cuda/CudaBlas/Plan"
  readonly runtime: CudaRuntimeService
  readonly ref: { readonly state: ResourceState; readonly deviceIndex: number }
  readonly deviceIndex: number
  /** The rows and columns of the result. */
  readonly rows: number
  readonly columns: number
  /** The length of the sums. */
  readonly depth: number
  /** Bytes that the algorithm works in. */
  readonly workspaceBytes: number
  /** How often the algorithm fills the device, as the library estimates. */
  readonly waves: number
}

/**
 * Returns `true` if a value is a plan.
 *
 * @category guards
 * @since 0.1.0
 */
export const isMatmulPlan = (u: unknown): u is MatmulPlan => Predicate.hasProperty(u, "~effect-cuda/CudaBlas/Plan")

/**
 * Plans a matrix product, `d = activation(alpha · a · b + beta · c + bias)`, on a device, by default the current one. The plan lives as long
 * as its scope.
 *
 * **Details**
 *
 * Makes the descriptors, and asks cuBLASLt for an algorithm, off the JS thread (`cublasLtMatmulAlgoGetHeuristic`). A plan can be used on
 * every stream, any number of times, with any memory.
 *
 * The types of `a`, `b` and `d` are: all `f64`; all `f32`; `f16` or `bf16`, with a result of the same type or `f32`; 8-bit floats, at most
 * one of them `f8e5m2`, with a result of any float but `f64`; or `i8`, with a result of `i32` or `i8`. Sums are at least of `f32`, or of `i32`.
 * Matrices are in row order by default; `column` order mixes freely with it.
 *
 * Fails with `InvalidArgument` for sizes and types that do not fit together, and with `LibraryFailed` if the library has no algorithm.
 *
 * **Gotchas**
 *
 * 8-bit types need an `a` in row order, a transposed `b`, and sizes that are multiples of 16.
 *
 * Plan before a recording: inside one, it fails with `CannotRecord`. If the algorithm needs memory to work in, all graphs with products
 * of one plan share it, and these products run one after another, also on branches. Keep the plan and the layer as long as the graphs
 * are launched.
 *
 * **Example** (A linear layer with a bias and an activation)
 *
 * ```ts
 * import { CudaBlas } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
 *
 * // y = gelu(x · wᵀ + bias)
 * export const linear = (tokens: number, inputs: number, outputs: number) =>
 *   Effect.gen(function*() {
 *     const plan = yield* CudaBlas.plan({
 *       a: { rows: tokens, columns: inputs, type: "bf16" },
 *       b: { rows: outputs, columns: inputs, type: "bf16" },
 *       d: { rows: tokens, columns: outputs, type: "bf16" },
 *       transposeB: true,
 *       epilogue: { bias: true, activation: "gelu" }
 *     })
 *     return (
 *       x: CudaMemory.DeviceBuffer,
 *       w: CudaMemory.DeviceBuffer,
 *       bias: CudaMemory.DeviceBuffer,
 *       y: CudaMemory.DeviceBuffer
 *     ) => CudaBlas.matmul(plan, { a: x, b: w, bias, d: y })
 *   })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const plan = (options: PlanOptions): Effect.Effect<MatmulPlan, CudaError, CudaBlas | Scope.Scope> =>
  Effect.flatMap(CudaBlas, (service) => service.plan(options))

/**
 * Enqueues a planned product on the given stream, or on the current one of the plan's device (`cublasLtMatmul`).
 *
 * **Details**
 *
 * An operation like any other: its memory is checked and lives until the product is done, and uses of ordered buffers wait for each other.
 * Inside `CudaGraph.record` the driver captures it, and it becomes a node. The first product with an algorithm takes some milliseconds,
 * because the library loads its kernel.
 *
 * Fails with `InvalidArgument` for memory that is too small or not aligned, and for a missing or superfluous `bias` or `auxiliary`; with
 * `ResourceReleased` after the scope of the plan, of the layer or of memory; with `DeviceMismatch` for another device; with `OutOfMemory` if
 * there is no memory for the algorithm to work in; and with `LibraryFailed` if cuBLASLt refuses.
 *
 * **Gotchas**
 *
 * As in any captured work, memory that is allocated inside a recording and graph parameters cannot be operands.
 *
 * **Example** (A product)
 *
 * ```ts
 * import { CudaBlas } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * declare const plan: CudaBlas.MatmulPlan
 * declare const a: CudaMemory.DeviceBuffer
 * declare const b: CudaMemory.DeviceBuffer
 * declare const d: CudaMemory.DeviceBuffer
 *
 * const product = CudaBlas.matmul(plan, { a, b, d })
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const matmul = (plan: MatmulPlan, operands: Operands, stream?: CudaStream): Effect.Effect<void, CudaError> => {
  if (!isPlanImpl(plan)) return refuseArgument(multiplying, "plan", plan, "a plan made with CudaBlas.plan")
  if (stream !== undefined && isForeign(stream, plan.runtime)) return refuseForeign(multiplying, stream)
  return onStream(multiplying, plan.runtime, plan.deviceIndex, stream, (on) => {
    const enqueued = enqueue(plan.ref, operands, on)
    return on.isRecording ? namedNode(enqueued, "matmul") : enqueued
  })
}

/** Found before a workspace is made for it. */
const isForeign = (stream: CudaStream, { identity }: CudaRuntimeService): boolean =>
  isStream(stream) && stream.runtime.identity !== identity

const isPlanImpl = (plan: unknown): plan is PlanImpl => plan instanceof PlanImpl
