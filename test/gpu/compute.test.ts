/**
 * Typical service kernels, compiled from source and compared with float64 on the CPU for random inputs: vector addition, a
 * reduction, and matrix products, tiled and on tensor cores.
 */
import "../support/deepStack.ts"
import { assert, describe, it } from "@effect/vitest"
import { CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaProgram, CudaStream, NativeRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { existsSync } from "node:fs"
import { missing } from "../support/nvrtc.ts"

const source = `
template <typename T> __global__ void add(T* to, const T* a, const T* b, int count) {
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < count) to[index] = a[index] + b[index];
}

__global__ void reduce(float* sum, const float* values, int count) {
  extern __shared__ float parts[];
  float own = 0;
  for (int index = blockIdx.x * blockDim.x + threadIdx.x; index < count; index += gridDim.x * blockDim.x) own += values[index];
  parts[threadIdx.x] = own;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  if (threadIdx.x == 0) atomicAdd(sum, parts[0]);
}

template <int TILE> __global__ void multiply(float* to, const float* a, const float* b, int size) {
  __shared__ float left[TILE][TILE], right[TILE][TILE];
  int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
  float sum = 0;
  for (int tile = 0; tile < size; tile += TILE) {
    left[threadIdx.y][threadIdx.x] = a[row * size + tile + threadIdx.x];
    right[threadIdx.y][threadIdx.x] = b[(tile + threadIdx.y) * size + column];
    __syncthreads();
    for (int k = 0; k < TILE; k++) sum += left[threadIdx.y][k] * right[k][threadIdx.x];
    __syncthreads();
  }
  to[row * size + column] = sum;
}
`

/** One warp per 16 × 16 tile of the product. */
const tensorSource = `
#include <mma.h>
using namespace nvcuda;
__global__ void multiply(float* to, const float* a, const float* b, int size) {
  __shared__ half left[16 * 16], right[16 * 16];
  wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 0.0f);
  for (int tile = 0; tile < size; tile += 16) {
    for (int i = threadIdx.x; i < 256; i += 32) {
      left[i] = __float2half(a[(blockIdx.y * 16 + i / 16) * size + tile + i % 16]);
      right[i] = __float2half(b[(tile + i / 16) * size + blockIdx.x * 16 + i % 16]);
    }
    __syncthreads();
    wmma::load_matrix_sync(fa, left, 16);
    wmma::load_matrix_sync(fb, right, 16);
    wmma::mma_sync(sum, fa, fb, sum);
    __syncthreads();
  }
  wmma::store_matrix_sync(to + blockIdx.y * 16 * size + blockIdx.x * 16, sum, size, wmma::mem_row_major);
}
`

const include = "/usr/local/cuda/include"
const { i32, input, output, pointer } = CudaParameter

const on = <A, E>(program: Effect.Effect<A, E, NativeServices>) =>
  Effect.scoped(program).pipe(Effect.provide(NativeRuntime.layer()))

type NativeServices = Effect.Services<ReturnType<typeof load>>

const load = (text: string, nameExpressions: ReadonlyArray<string>, options: ReadonlyArray<string> = []) =>
  Effect.flatMap(CudaProgram.compile(text, { nameExpressions, options }), (program) => CudaModule.load(program))

/** Numbers from -2 to 2 that half precision holds exactly. */
const randomValues = (count: number) =>
  Effect.map(
    Effect.replicateEffect(Random.nextIntBetween(-32, 33), count),
    (values) => Float32Array.from(values, (value) => value / 16)
  )

const onDevice = (values: Float32Array<ArrayBuffer>) =>
  Effect.tap(CudaMemory.allocate(values.byteLength), (buffer) => CudaMemory.upload(buffer, values))

const download = (buffer: CudaMemory.DeviceBuffer) =>
  Effect.suspend(() => {
    const values = new Float32Array(buffer.byteLength / 4)
    return Effect.as(CudaMemory.download(values, buffer), values)
  })

/** The product in float64, and the error bound of single precision. */
const assertProduct = (actual: Float32Array, a: Float32Array, b: Float32Array, size: number) => {
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      let expected = 0
      for (let k = 0; k < size; k++) expected += a[row * size + k]! * b[k * size + column]!
      assert.closeTo(actual[row * size + column]!, expected, 1e-3, `row ${row}, column ${column}`)
    }
  }
}

describe.skipIf(missing !== undefined)(
  `kernels compared with the CPU${missing === undefined ? "" : ` (${missing})`}`,
  () => {
    it.live.each([1, 31, 1000, 100_003])("vector addition of %i", (count) =>
      on(
        Effect.gen(function*() {
          const module = yield* load(source, ["add<float>"])
          const add = yield* CudaKernel.get(module, "add<float>", [output, input, input, i32])
          const [a, b] = [yield* randomValues(count), yield* randomValues(count)]
          const to = yield* CudaMemory.allocate(count * 4)
          const args = [to, yield* onDevice(a), yield* onDevice(b), count] as const
          yield* CudaKernel.launch(add, { grid: Math.ceil(count / 256), block: 256 }, args)
          assert.deepStrictEqual(yield* download(to), a.map((value, index) => value + b[index]!))
        }).pipe(CudaStream.withPooledStream())
      ))

    it.live.each([1, 255, 65_537, 1_000_003])("a reduction of %i", (count) =>
      on(
        Effect.gen(function*() {
          const module = yield* load(source, ["reduce"])
          const reduce = yield* CudaKernel.get(module, "reduce", [pointer, input, i32])
          const values = yield* randomValues(count)
          const sum = yield* onDevice(new Float32Array(1))
          yield* CudaKernel.launch(reduce, { grid: 64, block: 256, sharedBytes: 1024 }, [
            sum,
            yield* onDevice(values),
            count
          ])
          // Sums of sixteenths below 2^20 are exact in single precision too.
          assert.strictEqual((yield* download(sum))[0], values.reduce((total, value) => total + value, 0))
        }).pipe(CudaStream.withPooledStream())
      ))

    const size = 256

    it.live("a tiled matrix product", () =>
      on(
        Effect.gen(function*() {
          const module = yield* load(source, ["multiply<16>"])
          const multiply = yield* CudaKernel.get(module, "multiply<16>", [output, input, input, i32])
          const [a, b] = [yield* randomValues(size * size), yield* randomValues(size * size)]
          const to = yield* CudaMemory.allocate(size * size * 4)
          const config = { grid: [size / 16, size / 16], block: [16, 16] } as const
          yield* CudaKernel.launch(multiply, config, [to, yield* onDevice(a), yield* onDevice(b), size])
          assertProduct(yield* download(to), a, b, size)
        }).pipe(CudaStream.withPooledStream())
      ))

    it.live.skipIf(!existsSync(`${include}/mma.h`))("a matrix product on tensor cores", () =>
      on(
        Effect.gen(function*() {
          const module = yield* load(tensorSource, ["multiply"], [`--include-path=${include}`])
          const multiply = yield* CudaKernel.get(module, "multiply", [output, input, input, i32])
          const [a, b] = [yield* randomValues(size * size), yield* randomValues(size * size)]
          const to = yield* CudaMemory.allocate(size * size * 4)
          const config = { grid: [size / 16, size / 16], block: 32 } as const
          yield* CudaKernel.launch(multiply, config, [to, yield* onDevice(a), yield* onDevice(b), size])
          assertProduct(yield* download(to), a, b, size)
        }).pipe(CudaStream.withPooledStream())
      ))
  }
)
