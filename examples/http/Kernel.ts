/**
 * The service's kernel, twice: as CUDA C++ for a GPU, and as a function for simulated devices, with the same name and
 * parameters.
 */
import { CudaParameter, SimulatedRuntime } from "effect-cuda"
import * as Duration from "effect/Duration"

export const name = "score"

/** Threads per block: one warp, which sums up one row. */
export const block = 32

export const source = `
extern "C" __global__ void score(float* scores, const float* rows, const float* weights, float bias, int width) {
  const float* row = rows + blockIdx.x * width;
  float sum = 0;
  for (int column = threadIdx.x; column < width; column += 32) sum += row[column] * weights[column];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
  if (threadIdx.x == 0) scores[blockIdx.x] = 1 / (1 + expf(-(sum + bias)));
}`

export const parameters = [
  CudaParameter.outputOf("f32"),
  CudaParameter.inputOf("f32"),
  CudaParameter.inputOf("f32"),
  CudaParameter.f32,
  CudaParameter.i32
] as const

/** The `kernels` option of a simulated runtime. */
export const simulated = {
  [name]: SimulatedRuntime.kernel({
    parameters,
    cost: ({ grid }) => Duration.nanos(BigInt(5000 + 20 * grid.x)),
    run: ({ args: [scores, rows, weights, bias, width], grid }) => {
      const [into, features, factors] = [scores.array, rows.array, weights.array]
      for (let row = 0; row < grid.x; row++) {
        let sum = bias
        for (let column = 0; column < width; column++) sum += features[row * width + column]! * factors[column]!
        into[row] = 1 / (1 + Math.exp(-sum))
      }
    }
  })
}
