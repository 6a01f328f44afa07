/**
 * The descriptors of a product in cuBLASLt, and the algorithms that it proposes.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { CudaError } from "../../CudaError.ts"
import * as CudaLibrary from "../../CudaLibrary.ts"
import type { NativeFunction } from "../../layers/CudaRuntime.ts"
import { released } from "../handles.ts"
import { layoutAttributes, notSupported, preferenceAttributes, productAttributes, reasonOf, result } from "./library.ts"
import type { CublasLt } from "./library.ts"
import { numberTypes } from "./numbers.ts"
import { commonAlignment, inColumns, planning } from "./problem.ts"
import type { Layout, Problem } from "./problem.ts"

/** The addresses of the descriptors of a product. */
export interface Descriptors {
  readonly product: number
  readonly first: number
  readonly second: number
  readonly c: number
  readonly d: number
}

/** An algorithm for a product. */
export interface Algorithm {
  readonly bytes: Uint8Array
  readonly workspaceBytes: number
  readonly waves: number
}

const computes = { f64: 70, f32: 68, tf32: 77, fastF16: 74, fastBf16: 75, i32: 72 } as const

const epilogueOf = ({ activation, auxiliary, bias }: Problem): number => {
  const plain = activation === "relu" ? 2 : activation === "gelu" ? 32 : 0
  const code = plain + (bias === undefined ? 0 : 4) + (auxiliary === undefined ? 0 : 128)
  return code === 0 ? 1 : code
}

/** Makes the descriptors, which live as long as the scope. */
export const describe = (
  library: CublasLt,
  problem: Problem
): Effect.Effect<Descriptors, CudaError, Scope.Scope> =>
  Effect.gen(function*() {
    const { first, second } = inColumns(problem)
    return {
      product: yield* describeProduct(library, problem),
      first: yield* describeLayout(library, first),
      second: yield* describeLayout(library, second),
      c: yield* describeLayout(library, problem.c),
      d: yield* describeLayout(library, problem.d)
    }
  })

const describeProduct = Effect.fnUntraced(function*(library: CublasLt, problem: Problem) {
  const { transposeFirst, transposeSecond } = inColumns(problem)
  const { auxiliary, bias, compute, scale } = problem
  const descriptor = yield* make(
    library,
    "cublasLtMatmulDescDestroy",
    (out) => CudaLibrary.call(library, "cublasLtMatmulDescCreate", [out, computes[compute], numberTypes[scale].code])
  )
  const set = (attribute: number, value: Uint8Array | Int32Array | BigInt64Array) =>
    CudaLibrary.call(library, "cublasLtMatmulDescSetAttribute", [descriptor, attribute, value, value.byteLength])
  if (transposeFirst) yield* set(productAttributes.transposeA, Int32Array.of(1))
  if (transposeSecond) yield* set(productAttributes.transposeB, Int32Array.of(1))
  yield* set(productAttributes.epilogue, Int32Array.of(epilogueOf(problem)))
  if (bias !== undefined && bias.type !== problem.d.type) {
    yield* set(productAttributes.biasType, Int32Array.of(numberTypes[bias.type].code))
  }
  if (auxiliary !== undefined) {
    yield* set(productAttributes.auxiliaryLeading, BigInt64Array.of(BigInt(auxiliary.leading)))
  }
  if (problem.fastAccumulation) yield* set(productAttributes.fastAccumulation, Uint8Array.of(1))
  return descriptor
})

const describeLayout = Effect.fnUntraced(function*(library: CublasLt, layout: Layout) {
  const { columns, count, leading, order, rows, stride, type } = layout
  const [height, width] = order === "row" ? [columns, rows] : [rows, columns]
  const descriptor = yield* make(
    library,
    "cublasLtMatrixLayoutDestroy",
    (out) =>
      CudaLibrary.call(library, "cublasLtMatrixLayoutCreate", [out, numberTypes[type].code, height, width, leading])
  )
  const set = (attribute: number, value: Int32Array | BigInt64Array) =>
    CudaLibrary.call(library, "cublasLtMatrixLayoutSetAttribute", [descriptor, attribute, value, value.byteLength])
  if (count > 1) {
    yield* set(layoutAttributes.batchCount, Int32Array.of(count))
    yield* set(layoutAttributes.batchStride, BigInt64Array.of(BigInt(stride)))
  }
  return descriptor
})

const describePreference = Effect.fnUntraced(function*(
  library: CublasLt,
  problem: Problem,
  maxWorkspaceBytes: number
) {
  const descriptor = yield* make(
    library,
    "cublasLtMatmulPreferenceDestroy",
    (out) => CudaLibrary.call(library, "cublasLtMatmulPreferenceCreate", [out])
  )
  const set = (attribute: number, value: Uint32Array | BigUint64Array) =>
    CudaLibrary.call(library, "cublasLtMatmulPreferenceSetAttribute", [descriptor, attribute, value, value.byteLength])
  const { maxWorkspaceBytes: most, minAlignmentA, minAlignmentB, minAlignmentC, minAlignmentD } = preferenceAttributes
  yield* set(most, BigUint64Array.of(BigInt(maxWorkspaceBytes)))
  const { first, second } = inColumns(problem)
  const align = (attribute: number, layout: Layout) => set(attribute, Uint32Array.of(commonAlignment(problem, layout)))
  yield* align(minAlignmentA, first)
  yield* align(minAlignmentB, second)
  yield* align(minAlignmentC, problem.c)
  yield* align(minAlignmentD, problem.d)
  return descriptor
})

/** A descriptor that lives as long as the scope. It may be destroyed after the runtime, because the library stays loaded. */
const make = Effect.fnUntraced(function*(
  library: CublasLt,
  destroy: keyof CublasLt["definition"]["functions"],
  create: (out: BigUint64Array) => Effect.Effect<void, CudaError>
) {
  const destroyer = yield* CudaLibrary.native(library, destroy)
  const out = new BigUint64Array(1)
  return yield* Effect.acquireRelease(
    Effect.map(create(out), () => Number(out[0])),
    (address) => destroyer === undefined ? Effect.void : released(call(destroy, destroyer, address))
  )
})

const call = (name: string, destroyer: NativeFunction, address: number): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const code = Number(destroyer(address))
    if (code === 0) return Effect.void
    return Effect.fail(new CudaError({ operation: "CudaBlas.release", call: name, reason: reasonOf(code) }))
  })

/** Asks for algorithms, the best first, off the JS thread: the first question takes 0.1 s. */
export const findAlgorithms = (
  library: CublasLt,
  handle: CudaLibrary.LibraryHandle<"cublasLt">,
  problem: Problem,
  { c, d, first, product, second }: Descriptors,
  options: { readonly count: number; readonly maxWorkspaceBytes: number }
): Effect.Effect<ReadonlyArray<Algorithm>, CudaError> =>
  Effect.gen(function*() {
    const preference = yield* describePreference(library, problem, options.maxWorkspaceBytes)
    const results = new Uint8Array(options.count * result.bytes)
    const found = new Int32Array(1)
    const asked = CudaLibrary.call(library, "cublasLtMatmulAlgoGetHeuristic", [
      handle,
      product,
      first,
      second,
      c,
      d,
      preference,
      options.count,
      results,
      found
    ])
    // The call goes on after an interruption, and uses the descriptors.
    yield* Effect.uninterruptible(asked)
    const algorithms = algorithmsOf(results, found[0]!)
    if (algorithms.length > 0) return algorithms
    return yield* new CudaError({
      operation: planning,
      call: "cublasLtMatmulAlgoGetHeuristic",
      reason: reasonOf(notSupported)
    })
  }).pipe(Effect.scoped)

const algorithmsOf = (results: Uint8Array, count: number): ReadonlyArray<Algorithm> => {
  const algorithms: Array<Algorithm> = []
  for (let index = 0; index < count; index++) {
    const view = new DataView(results.buffer, index * result.bytes, result.bytes)
    if (view.getInt32(result.stateAt, true) !== 0) continue
    algorithms.push({
      bytes: results.slice(index * result.bytes, index * result.bytes + result.algorithmBytes),
      workspaceBytes: Number(view.getBigUint64(result.workspaceAt, true)),
      waves: view.getFloat32(result.wavesAt, true)
    })
  }
  return algorithms
}
