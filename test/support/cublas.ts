/**
 * cuBLAS as a described library, for tests on a GPU: a library whose handles have a stream and a workspace.
 */
import { CudaLibrary, CudaMemory, CudaParameter } from "effect-cuda"
import * as Effect from "effect/Effect"

const { i32, input, pointer } = CudaParameter
const { func, handleOf, hostInput, newHandleOf, stream } = CudaLibrary

const handle = handleOf("cublas")

export const cublas = CudaLibrary.define({
  name: "cuBLAS",
  files: (platform, cuda) => [platform === "win32" ? `cublas64_${cuda}.dll` : `libcublas.so.${cuda}`],
  wheels: ["cublas"],
  statuses: {
    7: ["CUBLAS_STATUS_INVALID_VALUE", "an argument is invalid"],
    13: ["CUBLAS_STATUS_EXECUTION_FAILED", "the GPU failed to run the work"],
    14: ["CUBLAS_STATUS_INTERNAL_ERROR", "an internal operation failed"]
  },
  faults: [13, 14],
  functions: {
    cublasCreate_v2: func([newHandleOf("cublas")]),
    cublasDestroy_v2: func([handle], { thread: "own" }),
    cublasSetStream_v2: func([handle, stream]),
    cublasSscal_v2: func([handle, i32, hostInput, pointer, i32]),
    cublasSgemm_v2: func([handle, i32, i32, i32, i32, i32, hostInput, input, i32, input, i32, hostInput, pointer, i32])
  }
})

export const made = { create: "cublasCreate_v2", destroy: "cublasDestroy_v2", setStream: "cublasSetStream_v2" } as const

/** Square matrices of ones, and memory for their product. */
export const matrices = Effect.fnUntraced(function*(size: number, device = 0) {
  const memory = CudaMemory.allocate(4 * size * size, { device })
  const [a, b, c] = [yield* memory, yield* memory, yield* memory]
  const ones = new Float32Array(size * size).fill(1)
  yield* CudaMemory.upload(a, ones)
  yield* CudaMemory.upload(b, ones)
  return { a, b, c }
})
