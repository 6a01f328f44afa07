/**
 * cuBLASLt as a library: the functions that matrix products need, and what its codes mean.
 */
import type { CudaErrorReason } from "../../CudaError.ts"
import * as CudaLibrary from "../../CudaLibrary.ts"
import * as CudaParameter from "../../CudaParameter.ts"

const { i32, i64, input, output, pointer, u64 } = CudaParameter
const { func, handleOf, hostInput, hostOutput, newHandleOf, nullable, stream } = CudaLibrary

const handle = handleOf("cublasLt")

/** Descriptors are memory of the host, which the library allocates and a call reads: numbers here. */
const descriptor = u64
const ofHost = { context: false, simulate: () => 0 } as const

const codes: { readonly [code: number]: readonly [name: string, description: string, advice?: string] } = {
  1: ["CUBLAS_STATUS_NOT_INITIALIZED", "the library was not initialized"],
  3: ["CUBLAS_STATUS_ALLOC_FAILED", "the library could not allocate memory"],
  7: ["CUBLAS_STATUS_INVALID_VALUE", "the library refused an argument"],
  8: ["CUBLAS_STATUS_ARCH_MISMATCH", "the device cannot multiply these types"],
  11: ["CUBLAS_STATUS_MAPPING_ERROR", "the library could not access memory of the device"],
  13: ["CUBLAS_STATUS_EXECUTION_FAILED", "the GPU failed to run the product"],
  14: ["CUBLAS_STATUS_INTERNAL_ERROR", "an internal operation of the library failed"],
  15: [
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "the library has no algorithm for this product on this device",
    "8-bit types need a in row order, b transposed, and sizes that are multiples of 16."
  ],
  16: ["CUBLAS_STATUS_LICENSE_ERROR", "the library found no license"]
}

/** Stands for a status of a product whose plan was released before the call. */
export const planReleased = -1

/** The reason for a code. */
export const reasonOf = (code: number): CudaErrorReason => {
  if (code === planReleased) return { _tag: "ResourceReleased", resource: "the plan" }
  const [name, description = "", advice = ""] = codes[code] ?? []
  return { _tag: "LibraryFailed", library: "cuBLASLt", code, name, description, advice, isRetryable: code === 3 }
}

export const notSupported = 15

export const definition = CudaLibrary.define({
  name: "cuBLASLt",
  files: (platform, cuda) => [platform === "win32" ? `cublasLt64_${cuda}.dll` : `libcublasLt.so.${cuda}`],
  wheels: ["cublas"],
  statuses: reasonOf,
  faults: [13, 14],
  functions: {
    cublasLtCreate: func([newHandleOf("cublasLt")], { simulate: () => 0 }),
    // Waits for the device.
    cublasLtDestroy: func([handle], { thread: "own", simulate: () => 0 }),
    cublasLtGetVersion: func([], { returns: u64, context: false, simulate: () => 0 }),
    cublasLtMatmulDescCreate: func([hostOutput, i32, i32], ofHost),
    cublasLtMatmulDescSetAttribute: func([descriptor, i32, hostInput, u64], ofHost),
    cublasLtMatmulDescDestroy: func([descriptor], ofHost),
    cublasLtMatrixLayoutCreate: func([hostOutput, i32, u64, u64, i64], ofHost),
    cublasLtMatrixLayoutSetAttribute: func([descriptor, i32, hostInput, u64], ofHost),
    cublasLtMatrixLayoutDestroy: func([descriptor], ofHost),
    cublasLtMatmulPreferenceCreate: func([hostOutput], ofHost),
    cublasLtMatmulPreferenceSetAttribute: func([descriptor, i32, hostInput, u64], ofHost),
    cublasLtMatmulPreferenceDestroy: func([descriptor], ofHost),
    // The first call takes about 0.1 s.
    cublasLtMatmulAlgoGetHeuristic: func([
      handle,
      descriptor,
      descriptor,
      descriptor,
      descriptor,
      descriptor,
      descriptor,
      i32,
      hostOutput,
      hostOutput
    ], {
      thread: "own",
      // One algorithm, which needs no memory.
      simulate: (_, __, ___, ____, _____, ______, _______, ________, _________, found) => {
        found[0] = 1
      }
    }),
    cublasLtMatmul: func([
      handle,
      descriptor,
      hostInput,
      input,
      descriptor,
      input,
      descriptor,
      hostInput,
      input,
      descriptor,
      output,
      descriptor,
      hostInput,
      nullable(pointer),
      u64,
      stream
    ])
  }
})

export type CublasLt = CudaLibrary.CudaLibrary<typeof definition.functions>

/** Attributes of `cublasLtMatmulDesc`. */
export const productAttributes = {
  transposeA: 3,
  transposeB: 4,
  epilogue: 7,
  biasPointer: 8,
  auxiliaryPointer: 11,
  auxiliaryLeading: 12,
  scaleA: 17,
  scaleB: 18,
  scaleC: 19,
  scaleD: 20,
  fastAccumulation: 25,
  biasType: 26
} as const

/** Attributes of `cublasLtMatrixLayout`. */
export const layoutAttributes = { batchCount: 5, batchStride: 6 } as const

/** Attributes of `cublasLtMatmulPreference`. */
export const preferenceAttributes = {
  maxWorkspaceBytes: 1,
  minAlignmentA: 5,
  minAlignmentB: 6,
  minAlignmentC: 7,
  minAlignmentD: 8
} as const

/** A result of the heuristic: the algorithm, the bytes of its workspace, a status, and how full the GPU would be. */
export const result = { bytes: 96, algorithmBytes: 64, workspaceAt: 64, stateAt: 72, wavesAt: 76 } as const
