/**
 * The job: every rank keeps a part of a field on its GPU, and moves each cell towards the mean of the whole field.
 *
 * What the ranks need to know of each other in a step is one number, so it goes by RPC. A job whose ranks exchange data
 * joins them with NCCL (docs/cluster.md).
 */
import { CudaDevice, CudaKernel, CudaMemory, CudaStream } from "effect-cuda"
import { CudaJob } from "effect-cuda/cluster"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { readFile, rename, writeFile } from "node:fs/promises"
import { join } from "node:path"
import * as Kernel from "./Kernel.ts"

export const relax = CudaJob.make("relax", {
  size: 2,
  payload: Schema.Struct({
    cells: Schema.Int,
    steps: Schema.Int,
    /** Steps between checkpoints. */
    every: Schema.Int,
    /** Where ranks keep the files of their checkpoints: on a disk that all machines see. */
    folder: Schema.String
  }),
  // The field itself is too large for messages. A rank gives the name of the file that it has written.
  checkpoint: Schema.Struct({ file: Schema.String }),
  success: Schema.Number,
  heartbeat: "500 millis",
  timeout: "5 seconds"
})

export type Rank = CudaJob.Rank<typeof relax.payload.Type, typeof relax.checkpoint.Type>

const rate = 0.25
const block = 256

export const program = (rank: Rank) =>
  Effect.gen(function*() {
    const { cells, every, folder, steps } = rank.payload
    yield* Effect.log(`epoch ${rank.epoch}: rank ${rank.rank} on device ${rank.device}, from step ${stepOf(rank)}`)
    const kernel = yield* Kernel.load
    const stream = yield* CudaStream.make()
    const field = yield* CudaMemory.allocate(4 * cells)
    const host = yield* initial(rank)
    yield* CudaMemory.upload(field, host, stream)

    let mean = 0
    for (let step = stepOf(rank); step < steps;) {
      yield* CudaMemory.download(host, field, stream)
      const sums = yield* rank.gather("sum", Schema.Number, host.reduce((sum, cell) => sum + cell, 0))
      mean = sums.reduce((sum, value) => sum + value, 0) / (cells * rank.size)
      yield* CudaKernel.launch(kernel, { grid: Math.ceil(cells / block), block }, [field, mean, rate, cells], stream)
      step++
      if (step % every !== 0) continue
      yield* CudaMemory.download(host, field, stream)
      yield* rank.checkpoint(step, { file: yield* save(folder, `${rank.job}-${rank.rank}-${step}.f32`, host) })
      yield* Effect.log(`epoch ${rank.epoch}: rank ${rank.rank} has step ${step}`)
    }
    return mean
  }).pipe(CudaDevice.withDevice(rank.device))

const stepOf = ({ restored }: Rank) => Option.match(restored, { onNone: () => 0, onSome: ({ step }) => step })

const initial = ({ payload, rank, restored }: Rank) =>
  Effect.promise(async () => {
    if (Option.isNone(restored)) return Float32Array.from({ length: payload.cells }, (_, cell) => rank + (cell % 10))
    const bytes = await readFile(join(payload.folder, restored.value.value.file))
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength))
  })

/** Writes a file under another name first, so that a file with this name is always complete. */
const save = (folder: string, file: string, data: Float32Array) =>
  Effect.promise(async () => {
    const path = join(folder, file)
    await writeFile(`${path}.part`, data)
    await rename(`${path}.part`, path)
    return file
  })
