/**
 * The pipeline: chunks are uploaded to the device, copied once there, counted by kernels, and downloaded. The work on a
 * chunk is recorded once, as a graph, and launched for every chunk.
 *
 *     file → pinned memory → device memory → device memory → pinned memory → compared with the file
 *             (read)       (upload)        (work)          (download)
 *                                             └→ counts and checksum of all chunks, downloaded at the end
 */
import { CudaGraph, CudaMemory, CudaParameter, CudaPipeline, CudaTiming } from "effect-cuda"
import type { CudaError, CudaRuntime } from "effect-cuda"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Kernels from "./Kernels.ts"
import type { FileProblem, Source } from "./Source.ts"
import type { Summary } from "./Summary.ts"

export interface Options {
  /** Size of a chunk in bytes. */
  readonly chunkBytes: number
  /** Number of chunks in flight. */
  readonly slots: number
  /** Called with every verified chunk. The bytes belong to the slot, and change after the effect has ended. */
  readonly onChunk?: ((offset: number, bytes: Uint8Array) => Effect.Effect<void>) | undefined
}

export interface Run {
  /** From the first read to the last comparison. */
  readonly wallTime: Duration.Duration
  /** When each chunk's operations ran on the GPU. */
  readonly timeline: CudaTiming.Timeline
  /** The result of the kernels. */
  readonly summary: Summary
}

/** A byte that came back from the device differs from the file. */
export class BytesDiffer extends Data.TaggedError("BytesDiffer")<{
  readonly name: string
  readonly offset: number
  readonly expected: number
  readonly actual: number
}> {
  override get message(): string {
    return `${this.name}: byte ${this.offset} is ${this.expected} but came back as ${this.actual}`
  }
}

type Failure = FileProblem | BytesDiffer | CudaError.CudaError

/** Streams the source through the device and back, a few chunks at a time, and compares every byte. */
export const pipelined = (source: Source, options: Options): Effect.Effect<Run, Failure, CudaRuntime.CudaRuntime> =>
  Effect.gen(function*() {
    const chunkBytes = Math.min(options.chunkBytes, source.byteLength)
    const chunks = Math.ceil(source.byteLength / chunkBytes)
    const slots = Math.min(options.slots, chunks)
    const summary = yield* Kernels.make(source.byteLength)
    const work = yield* makeWork(summary, chunkBytes, slots)
    const stopwatch = makeStopwatch()
    const compare = makeCompare(source, chunkBytes)

    const [timeline] = yield* Stream.range(0, chunks - 1).pipe(
      Stream.map((chunk) => chunk * chunkBytes),
      CudaPipeline.through({
        slots,
        inputBytes: chunkBytes,
        fill: (offset, into) => {
          const chunk = into.subarray(0, source.byteLength - offset)
          return Effect.as(Effect.andThen(stopwatch.look, source.read(chunk, offset)), chunk.byteLength)
        },
        work: ({ element: offset, input, output }) =>
          work({ input, output, bytesAfter: source.byteLength - offset - input.byteLength }),
        take: (bytes, offset) =>
          compare(bytes, offset).pipe(
            Effect.andThen(options.onChunk?.(offset, bytes) ?? Effect.void),
            Effect.andThen(stopwatch.look)
          )
      }),
      Stream.runDrain,
      CudaTiming.timeline
    )
    const run: Run = { wallTime: stopwatch.elapsed(), timeline, summary: yield* summary.download }
    return run
  }).pipe(Effect.scoped)

/** The same, step by step. */
export const serial = (source: Source, options: Options): Effect.Effect<Run, Failure, CudaRuntime.CudaRuntime> =>
  pipelined(source, { ...options, slots: 1 })

/** What differs from chunk to chunk. */
const workParameters = (chunkBytes: number) => ({
  input: CudaGraph.buffer(chunkBytes),
  output: CudaGraph.buffer(chunkBytes),
  bytesAfter: CudaParameter.u64
})

type WorkParameters = ReturnType<typeof workParameters>

/** Records the work on a chunk. The result launches it on the current stream. */
const makeWork = Effect.fnUntraced(function*(summary: Kernels.DeviceSummary, chunkBytes: number, slots: number) {
  const enqueue = ({ bytesAfter, input, output }: CudaGraph.EmbeddedValues<WorkParameters>) =>
    Effect.andThen(CudaMemory.copy(output, input), summary.add(input, bytesAfter))
  const graph = yield* CudaGraph.recordWith(workParameters(chunkBytes), enqueue)
  // An instance per slot: both are used in turn, so an instance keeps the memory of its slot.
  const exec = yield* CudaGraph.instantiate(graph, { instances: slots })
  // A graph has fixed sizes, so the operations of a shorter chunk, the last one, are enqueued one by one.
  return (values: CudaGraph.Values<WorkParameters>) =>
    values.input.byteLength === chunkBytes ? CudaGraph.launch(exec, values) : enqueue(values)
})

/** Measures the time from the first `look` to the last. */
const makeStopwatch = () => {
  let first: bigint | undefined
  let last = 0n
  return {
    look: Effect.map(Clock.monotonicTimeNanos, (now) => {
      first ??= now
      last = now
    }),
    elapsed: () => Duration.nanos(last - (first ?? last))
  }
}

/** Compares with a second read of the file, so that it does not rely on anything that went to the device. */
const makeCompare = (source: Source, chunkBytes: number) => {
  const spare: Array<Uint8Array> = []
  return Effect.fnUntraced(function*(bytes: Uint8Array, offset: number) {
    const memory = spare.pop() ?? new Uint8Array(chunkBytes)
    const expected = memory.subarray(0, bytes.byteLength)
    yield* source.read(expected, offset)
    if (Buffer.compare(expected, bytes) !== 0) {
      const index = expected.findIndex((byte, position) => byte !== bytes[position])
      return yield* new BytesDiffer({
        name: source.name,
        offset: offset + index,
        expected: expected[index]!,
        actual: bytes[index]!
      })
    }
    spare.push(memory)
  })
}
