/** A service: scales vectors on the GPU. Its callers know its two failures, and nothing of CUDA. */
import {
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaProgram,
  CudaRuntime,
  CudaStream,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const source = `extern "C" __global__ void scale(float* values, float factor, int count) {
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < count) values[index] *= factor;
}`

const parameters = [CudaParameter.pointer, CudaParameter.f32, CudaParameter.i32] as const

/** The kernel of simulated devices. */
export const kernels = {
  scale: SimulatedRuntime.kernel({
    parameters,
    cost: "10 micros",
    run: ({ args: [values, factor, count] }) => {
      const array = values.view(Float32Array)
      for (let index = 0; index < count; index++) array[index]! *= factor
    }
  })
}

/** The device has no memory for this at the moment: try again later. */
export class Busy extends Data.TaggedError("Busy")<{}> {}

/** The GPU failed. */
export class ScalerFailed extends Data.TaggedError("ScalerFailed")<{ readonly cause: CudaError.CudaError }> {
  override readonly message = this.cause.message
}

export class Scaler extends Context.Service<Scaler, {
  readonly scale: (values: Float32Array, factor: number) => Effect.Effect<Float32Array, Busy | ScalerFailed>
}>()("examples/newcomer/Scaler") {
  /** The kernel lives as long as the layer, the memory of a call as long as the call. */
  static readonly layer: Layer.Layer<Scaler, CudaError.CudaError, CudaRuntime.CudaRuntime> = Layer.effect(
    Scaler,
    Effect.gen(function*() {
      const runtime = yield* CudaRuntime.CudaRuntime
      const module = yield* CudaModule.load(yield* CudaProgram.compile(source))
      const kernel = yield* CudaKernel.get(module, "scale", parameters)

      const onDevice = Effect.fnUntraced(function*(values: Float32Array, factor: number) {
        const buffer = yield* CudaMemory.allocate(values.byteLength, { stream: yield* CudaStream.current() })
        yield* CudaMemory.upload(buffer, values)
        const grid = Math.ceil(values.length / 256)
        yield* CudaKernel.launch(kernel, { grid, block: 256 }, [buffer, factor, values.length])
        const scaled = new Float32Array(values.length)
        yield* CudaMemory.download(scaled, buffer)
        return scaled
      })

      return Scaler.of({
        scale: (values, factor) =>
          onDevice(values, factor).pipe(
            Effect.scoped,
            CudaStream.withPooledStream(),
            Effect.provideService(CudaRuntime.CudaRuntime, runtime),
            Effect.catchReason("CudaError", "OutOfMemory", () => Effect.fail(new Busy())),
            Effect.catchTag("CudaError", (cause) => Effect.fail(new ScalerFailed({ cause })))
          )
      })
    })
  )
}

export const program = Effect.gen(function*() {
  const scaler = yield* Scaler
  return yield* Effect.forEach([1, 10, 100], (factor) => scaler.scale(Float32Array.of(1, 2, 3), factor), {
    concurrency: "unbounded"
  })
}).pipe(Effect.provide(Scaler.layer))
