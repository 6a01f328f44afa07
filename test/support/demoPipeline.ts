/**
 * The demo's pipeline with chunks that only move: nothing is read from a file, and nothing compared.
 */
import { CudaGraph, CudaMemory, CudaParameter, CudaPipeline, CudaTiming } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Kernels from "../../examples/demo/Kernels.ts"

export interface DemoPipeline {
  readonly chunkBytes: number
  readonly chunks: number
  readonly slots: number
}

/** Runs the pipeline and returns its timeline. */
export const demoTimeline = Effect.fnUntraced(function*({ chunkBytes, chunks, slots }: DemoPipeline) {
  const byteLength = chunkBytes * chunks
  const summary = yield* Kernels.make(byteLength)
  const parameters = {
    input: CudaGraph.buffer(chunkBytes),
    output: CudaGraph.buffer(chunkBytes),
    bytesAfter: CudaParameter.u64
  }
  const graph = yield* CudaGraph.recordWith(
    parameters,
    ({ bytesAfter, input, output }) => Effect.andThen(CudaMemory.copy(output, input), summary.add(input, bytesAfter))
  )
  const exec = yield* CudaGraph.instantiate(graph, { instances: slots })
  const [timeline] = yield* Stream.range(0, chunks - 1).pipe(
    CudaPipeline.through({
      slots,
      inputBytes: chunkBytes,
      fill: (_: number, into) => Effect.succeed(into.byteLength),
      work: ({ element, input, output }) =>
        CudaGraph.launch(exec, { input, output, bytesAfter: byteLength - (element + 1) * chunkBytes }),
      take: () => Effect.void
    }),
    Stream.runDrain,
    CudaTiming.timeline
  )
  return timeline
}, Effect.scoped)
