/** ETL: lines of text become batches of numbers, a kernel converts them on the GPU, and the results become statistics. */
import { CudaKernel, CudaModule, CudaParameter, CudaPipeline, CudaProgram, SimulatedRuntime } from "effect-cuda"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"

const source = `extern "C" __global__ void celsius(float* to, const float* from, int count) {
  int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < count) to[index] = (from[index] - 32.0f) / 1.8f;
}`

const parameters = [CudaParameter.output, CudaParameter.input, CudaParameter.i32] as const

/** The kernel of simulated devices. */
export const kernels = {
  celsius: SimulatedRuntime.kernel({
    parameters,
    cost: "20 micros",
    run: ({ args: [to, from, count] }) => {
      const [output, input] = [to.view(Float32Array), from.view(Float32Array)]
      for (let index = 0; index < count; index++) output[index] = (input[index]! - 32) / 1.8
    }
  })
}

/** A line is not a number. */
export class BadLine extends Data.TaggedError("BadLine")<{ readonly line: string }> {
  override readonly message = `not a temperature: "${this.line}"`
}

const parse = (line: string): Effect.Effect<number, BadLine> =>
  line.trim() === "" || Number.isNaN(Number(line)) ? Effect.fail(new BadLine({ line })) : Effect.succeed(Number(line))

const batchSize = 1024

/** Converts temperatures in °F, one a line, and returns their number and the extremes in °C. */
export const convert = Effect.fn("convert")(function*<E>(lines: Stream.Stream<string, E>) {
  const module = yield* CudaModule.load(yield* CudaProgram.compile(source))
  const celsius = yield* CudaKernel.get(module, "celsius", parameters)
  const batches = lines.pipe(
    Stream.mapEffect(parse),
    Stream.grouped(batchSize),
    Stream.map((batch) => Float32Array.from(batch))
  )
  return yield* batches.pipe(
    // Uploads, kernels and downloads of different batches overlap; results come in order.
    CudaPipeline.through({
      slots: 3,
      inputBytes: batchSize * 4,
      fill: CudaPipeline.copyIn,
      work: ({ input, output }) => {
        const count = input.byteLength / 4
        return CudaKernel.launch(celsius, { grid: Math.ceil(count / 256), block: 256 }, [output, input, count])
      },
      take: CudaPipeline.copyOut
    }),
    Stream.map((bytes) => new Float32Array(bytes.buffer)),
    Stream.runFold(() => ({ count: 0, lowest: Infinity, highest: -Infinity }), (sum, batch) => ({
      count: sum.count + batch.length,
      lowest: Math.min(sum.lowest, ...batch),
      highest: Math.max(sum.highest, ...batch)
    }))
  )
}, Effect.scoped)

export const program = convert(Stream.range(0, 9999).pipe(Stream.map((index) => String(index % 213))))
