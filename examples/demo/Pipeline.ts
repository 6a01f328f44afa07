/**
 * The pipeline: bytes go up to the device, are copied once on it, and come back down, in chunks.
 *
 *     file → pinned memory → device memory → device memory → pinned memory → compared with the file
 *             (read)       (upload)        (stage)         (download)
 *
 * A few slots, each with memory for one chunk, work at the same time. What orders a chunk's three operations is events on
 * the GPU; the host waits only at the end of a chunk, for the slot whose bytes it is about to compare.
 */
import { CudaEvent, CudaMemory, CudaStream } from "effect-cuda"
import type { CudaError, CudaRuntime } from "effect-cuda"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { FileProblem, Source } from "./Source.ts"

export interface Options {
  /** Bytes that move at a time. */
  readonly chunkBytes: number
  /** Chunks under way at the same time. */
  readonly slots: number
  /** Given every chunk that came back and was found right. The bytes are the slot's: they change after this has ended. */
  readonly onChunk?: ((offset: number, bytes: Uint8Array) => Effect.Effect<void>) | undefined
}

/** When an operation ran on the GPU, in milliseconds since the run began there. */
export interface Span {
  readonly from: number
  readonly to: number
}

/** When the three operations of one chunk ran. */
export interface ChunkTimes {
  readonly upload: Span
  readonly stage: Span
  readonly download: Span
}

export interface Run {
  /** From the first read to the last comparison. */
  readonly wallTime: Duration.Duration
  /** From the start of the first operation on the GPU to the end of the last. */
  readonly gpuTime: Duration.Duration
  /** Of the first chunks, for a picture. */
  readonly firstChunks: ReadonlyArray<ChunkTimes>
}

/** A byte came back from the device that is not the file's. */
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

/** Streams the source through the device on three streams, a few chunks at a time. */
export const pipelined = (source: Source, options: Options): Effect.Effect<Run, Failure, CudaRuntime.CudaRuntime> =>
  Effect.gen(function*() {
    const upload = yield* CudaStream.make()
    const stage = yield* CudaStream.make()
    const download = yield* CudaStream.make()
    return yield* run(source, { upload, stage, download }, options)
  }).pipe(Effect.scoped)

/** The same work, one operation after the other: one stream, one slot. */
export const serial = (source: Source, options: Options): Effect.Effect<Run, Failure, CudaRuntime.CudaRuntime> =>
  Effect.gen(function*() {
    const only = yield* CudaStream.make()
    return yield* run(source, { upload: only, stage: only, download: only }, { ...options, slots: 1 })
  }).pipe(Effect.scoped)

interface Streams {
  readonly upload: CudaStream.CudaStream
  readonly stage: CudaStream.CudaStream
  readonly download: CudaStream.CudaStream
}

/** How many chunks' times are kept. */
const keptChunks = 12

const run = Effect.fnUntraced(function*(source: Source, streams: Streams, options: Options) {
  const chunkBytes = Math.min(options.chunkBytes, source.byteLength)
  const chunkCount = Math.ceil(source.byteLength / chunkBytes)
  const start = yield* CudaEvent.make({ timing: true })
  const slots = yield* Effect.replicateEffect(makeSlot(chunkBytes), Math.min(options.slots, chunkCount))
  const kept: Array<ChunkTimes> = []
  let nextChunk = 0
  let began = Number.POSITIVE_INFINITY
  let ended = 0

  /** Takes chunk after chunk until there are none left. */
  const work = Effect.fnUntraced(function*(slot: Slot) {
    while (nextChunk < chunkCount) {
      const chunk = nextChunk++
      const offset = chunk * chunkBytes
      const byteLength = Math.min(chunkBytes, source.byteLength - offset)

      yield* source.read(slot.outgoing.bytes.subarray(0, byteLength), offset)
      yield* enqueue(slot, streams, byteLength)
      yield* CudaEvent.synchronize(slot.downloaded.end)
      yield* compare(source, slot, offset, byteLength)
      if (options.onChunk !== undefined) yield* options.onChunk(offset, slot.returned.bytes.subarray(0, byteLength))

      const times = yield* readTimes(start, slot)
      began = Math.min(began, times.upload.from)
      ended = Math.max(ended, times.download.to)
      if (chunk < keptChunks) kept[chunk] = times
    }
  })

  yield* CudaEvent.record(start, streams.upload)
  const [wallTime] = yield* Effect.timed(Effect.forEach(slots, work, { concurrency: "unbounded", discard: true }))
  const result: Run = { wallTime, gpuTime: Duration.millis(ended - began), firstChunks: kept }
  return result
})

/** The memory of one chunk under way, and the events that order and time its operations. */
interface Slot {
  /** Pinned: what is read from the file. */
  readonly outgoing: CudaMemory.HostBuffer
  readonly arrived: CudaMemory.DeviceBuffer
  readonly staged: CudaMemory.DeviceBuffer
  /** Pinned: what comes back. */
  readonly returned: CudaMemory.HostBuffer
  /** Ordinary memory: what the file holds, to compare with. */
  readonly expected: Uint8Array
  readonly uploaded: Bracket
  readonly copied: Bracket
  readonly downloaded: Bracket
}

/** The events before and after an operation. */
interface Bracket {
  readonly begin: CudaEvent.TimedEvent
  readonly end: CudaEvent.TimedEvent
}

const makeSlot = (
  byteLength: number
): Effect.Effect<Slot, CudaError.CudaError, CudaRuntime.CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    return {
      outgoing: yield* CudaMemory.allocateHost(byteLength),
      arrived: yield* CudaMemory.allocate(byteLength),
      staged: yield* CudaMemory.allocate(byteLength),
      returned: yield* CudaMemory.allocateHost(byteLength),
      expected: new Uint8Array(byteLength),
      uploaded: yield* makeBracket,
      copied: yield* makeBracket,
      downloaded: yield* makeBracket
    }
  })

const makeBracket = Effect.gen(function*() {
  const bracket: Bracket = {
    begin: yield* CudaEvent.make({ timing: true }),
    end: yield* CudaEvent.make({ timing: true })
  }
  return bracket
})

/** Puts the three operations of a chunk on their streams, each after the one before. Nothing here waits for the GPU. */
const enqueue = Effect.fnUntraced(function*(slot: Slot, { download, stage, upload }: Streams, byteLength: number) {
  const part = (buffer: CudaMemory.Slice) => CudaMemory.slice(buffer, 0, byteLength)

  yield* between(slot.uploaded, upload, CudaMemory.copy(part(slot.arrived), part(slot.outgoing), upload))

  yield* CudaStream.waitEvent(stage, slot.uploaded.end)
  yield* between(slot.copied, stage, CudaMemory.copy(part(slot.staged), part(slot.arrived), stage))

  yield* CudaStream.waitEvent(download, slot.copied.end)
  yield* between(slot.downloaded, download, CudaMemory.copy(part(slot.returned), part(slot.staged), download))
})

const between = (
  { begin, end }: Bracket,
  stream: CudaStream.CudaStream,
  operation: Effect.Effect<void, CudaError.CudaError>
): Effect.Effect<void, CudaError.CudaError> =>
  CudaEvent.record(begin, stream).pipe(
    Effect.andThen(operation),
    Effect.andThen(CudaEvent.record(end, stream))
  )

/** Compares with a second reading of the file, so that nothing that went to the device is trusted. */
const compare = Effect.fnUntraced(function*(source: Source, slot: Slot, offset: number, byteLength: number) {
  const expected = slot.expected.subarray(0, byteLength)
  const returned = slot.returned.bytes.subarray(0, byteLength)
  yield* source.read(expected, offset)
  if (Buffer.compare(expected, returned) === 0) return
  const index = expected.findIndex((byte, position) => byte !== returned[position])
  return yield* new BytesDiffer({
    name: source.name,
    offset: offset + index,
    expected: expected[index]!,
    actual: returned[index]!
  })
})

const readTimes = Effect.fnUntraced(function*(start: CudaEvent.TimedEvent, slot: Slot) {
  const times: ChunkTimes = {
    upload: yield* readSpan(start, slot.uploaded),
    stage: yield* readSpan(start, slot.copied),
    download: yield* readSpan(start, slot.downloaded)
  }
  return times
})

const readSpan = Effect.fnUntraced(function*(start: CudaEvent.TimedEvent, { begin, end }: Bracket) {
  const span: Span = {
    from: Duration.toMillis(yield* CudaEvent.elapsedTime(start, begin)),
    to: Duration.toMillis(yield* CudaEvent.elapsedTime(start, end))
  }
  return span
})
