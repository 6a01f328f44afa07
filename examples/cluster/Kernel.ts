/** The job's kernel, twice: as CUDA C++ for a GPU, and as a function for simulated devices. */
import { CudaKernel, CudaModule, CudaParameter, CudaProgram, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"

const name = "relax"

const source = `
extern "C" __global__ void relax(float* cells, float mean, float rate, int count) {
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < count) cells[index] += rate * (mean - cells[index]);
}`

const parameters = [CudaParameter.pointer, CudaParameter.f32, CudaParameter.f32, CudaParameter.i32] as const

export const load = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* CudaProgram.compile(source, { name: "relax.cu" }))
  return yield* CudaKernel.get(module, name, parameters)
})

/** The `kernels` option of a simulated runtime. */
export const simulated = {
  [name]: SimulatedRuntime.kernel({
    parameters,
    cost: "20 micros",
    run: ({ args: [pointer, mean, rate, count] }) => {
      const cells = pointer.view(Float32Array)
      for (let index = 0; index < count; index++) cells[index]! += rate * (mean - cells[index]!)
    }
  })
}
