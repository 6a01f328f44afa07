/**
 * Embeds sequences of tokens with the model. Each caller embeds one sequence; concurrent callers with sequences of
 * similar length share a batch, which is one launch of a graph.
 *
 * Requires only `CudaRuntime` and `CudaBlas`, and is independent of HTTP.
 */
import { CudaDevice, CudaRuntime, CudaStream } from "effect-cuda"
import type { CudaBlas, CudaError } from "effect-cuda"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Pool from "effect/Pool"
import * as Semaphore from "effect/Semaphore"
import type { FileProblem } from "../demo/Source.ts"
import { makeSlots, useAll, watchGpu } from "../http/Gpu.ts"
import * as Batcher from "./Batcher.ts"
import { ofFile } from "./Config.ts"
import type { WrongModel } from "./Config.ts"
import type { Batch } from "./Kernels.ts"
import * as Model from "./Model.ts"
import * as SafeTensors from "./SafeTensors.ts"
import { upload } from "./Upload.ts"

export interface Options {
  /** The file with the weights. */
  readonly path: string
  /** The lengths to which sequences are padded. Default: 32, 64, 128, …, up to the longest of the model. */
  readonly lengths?: ReadonlyArray<number> | undefined
  /** Maximum number of sequences in a batch. */
  readonly maxBatch?: number | undefined
  /** How long the first sequence of a batch waits for more. Default: 0, as sequences collect while all slots are busy. */
  readonly window?: Duration.Input | undefined
  /** Maximum number of batches in flight. Further sequences wait. */
  readonly slots?: number | undefined
  /** Maximum number of callers. Further ones are refused immediately. */
  readonly maxWaiting?: number | undefined
  /** Timeout of a request, from the call to the embedding. */
  readonly timeout?: Duration.Input | undefined
  /** Whether to record all sizes of batches at the start, instead of each when it is first needed. Default: true. */
  readonly warmUp?: boolean | undefined
}

/** The lengths are not possible with the model. */
export class WrongLengths extends Data.TaggedError("WrongLengths")<{
  readonly lengths: ReadonlyArray<number>
  readonly positions: number
}> {
  override get message(): string {
    return `lengths [${this.lengths.join(", ")}]; expected integers from 1 to ${this.positions}`
  }
}

/** The sequence has no tokens. */
export class Empty extends Data.TaggedError("Empty") {
  override readonly message = "the text is empty"
}

/** The sequence is longer than the longest batch. */
export class TooLong extends Data.TaggedError("TooLong")<{ readonly length: number; readonly maxLength: number }> {
  override get message(): string {
    return `the text has ${this.length} tokens; at most ${this.maxLength} are possible`
  }
}

/** The maximum number of callers is already waiting. */
export class Overloaded extends Data.TaggedError("Overloaded")<{ readonly maxWaiting: number }> {
  override get message(): string {
    return `${this.maxWaiting} ${this.maxWaiting === 1 ? "request is" : "requests are"} already waiting`
  }
}

/** There was no embedding in time. */
export class TimedOut extends Data.TaggedError("TimedOut") {
  override readonly message = "the request took too long"
}

/** A batch has been on the GPU for longer than a request may take. */
export class Stuck extends Data.TaggedError("Stuck") {
  override readonly message = "the GPU does not finish a batch"
}

export type EncodeFailure = Empty | TooLong | Overloaded | TimedOut | Batcher.Stopped | CudaError.CudaError

export interface Health {
  readonly runtime: "native" | "simulated"
  readonly device: string
  /** Sequences that wait for a batch. */
  readonly waiting: number
  /** Batches on the GPU. */
  readonly inFlight: number
  readonly batches: number
  readonly requests: number
  readonly meanBatchSize: number
}

export class Encoder extends Context.Service<Encoder, {
  /** The embedding of a sequence of token ids. An id outside the vocabulary counts as the nearest. */
  readonly encode: (ids: ArrayLike<number>) => Effect.Effect<Float32Array, EncodeFailure>
  /** Fails once the GPU is lost, and while it is stuck. */
  readonly health: Effect.Effect<Health, Stuck | CudaError.CudaError>
}>()("examples/encoder/Encoder") {
  /** All resources live as long as the layer. Releasing it waits for batches in flight, and refuses what still waits. */
  static readonly layer = (
    options: Options
  ): Layer.Layer<Encoder, StartFailure, CudaRuntime.CudaRuntime | CudaBlas.CudaBlas> =>
    Layer.effect(Encoder, make(options))
}

type StartFailure = CudaError.CudaError | FileProblem | SafeTensors.Malformed | WrongModel | WrongLengths

const make = Effect.fnUntraced(function*(options: Options) {
  const { maxBatch = 32, maxWaiting = 1024, slots = 3, warmUp = true } = options
  const timeout = Duration.fromInputUnsafe(options.timeout ?? "2 seconds")
  const runtime = yield* CudaRuntime.CudaRuntime
  const device = yield* CudaDevice.current
  const stream = yield* CudaStream.fromPool()
  const model = yield* loadModel(options.path)
  const lengths = yield* lengthsFor(model, options.lengths)
  const maxLength = lengths.at(-1)!
  const sizes = doubling(1, maxBatch)
  const pool = yield* makeSlots(slots, makeSlot(model, { batch: maxBatch, length: maxLength }))
  const batches = lengths.flatMap((length) => sizes.map((batch) => ({ batch, length })))
  if (warmUp) {
    yield* useAll(
      pool,
      slots,
      (slot) => CudaStream.withStream(Effect.forEach(batches, slot.session.graph), slot.stream)
    )
  }
  const gpu = watchGpu()
  const admission = yield* Semaphore.make(maxWaiting)

  const batcher = yield* Batcher.make({
    lengths,
    maxBatch,
    window: Duration.toMillis(Duration.fromInputUnsafe(options.window ?? 0)),
    workers: slots,
    run: (length, sequences) => {
      // A batch runs in the smallest that has room for it.
      const batch = { batch: sizes.find((size) => size >= sequences.length)!, length }
      return gpu.watch(Pool.use(pool, (slot) =>
        slot.session.run(batch, sequences).pipe(
          CudaStream.withStream(slot.stream),
          // The GPU may still be using the memory of a batch that failed. Invalidating the slot gives the next batch
          // new memory, and releases this one once the GPU no longer uses it.
          Effect.onError(() => Pool.invalidate(pool, slot))
        )))
    }
  })

  return Encoder.of({
    encode: Effect.fn("Encoder.encode")(function*(ids) {
      if (ids.length === 0) return yield* new Empty()
      if (ids.length > maxLength) return yield* new TooLong({ length: ids.length, maxLength })
      const embedding = yield* batcher.submit(Int32Array.from(ids)).pipe(
        Effect.timeoutOrElse({ duration: timeout, orElse: () => Effect.fail(new TimedOut()) }),
        gpu.watch,
        admission.withPermitsIfAvailable(1)
      )
      return yield* Option.match(embedding, {
        onNone: () => Effect.fail(new Overloaded({ maxWaiting })),
        onSome: Effect.succeed
      })
    }),
    health: Effect.gen(function*() {
      // Queries the GPU, so that its loss is detected even if there are no requests.
      yield* gpu.watch(CudaStream.query(stream))
      const { oldest, ...state } = batcher.state()
      if (oldest > Duration.toMillis(timeout)) return yield* new Stuck()
      const meanBatchSize = state.batches === 0 ? 0 : state.requests / state.batches
      return { runtime: runtime.kind, device: device.name, ...state, meanBatchSize }
    })
  })
})

const loadModel = Effect.fnUntraced(function*(path: string) {
  const file = yield* SafeTensors.open(path)
  const config = yield* ofFile(file)
  return yield* Model.make(config, yield* upload(file))
})

/** In ascending order. */
const lengthsFor = ({ config: { positions } }: Model.Model, lengths = doubling(32, positions)) => {
  const arePossible = lengths.length > 0 &&
    lengths.every((length) => Number.isInteger(length) && length >= 1 && length <= positions)
  return arePossible
    ? Effect.succeed(lengths.toSorted((one, other) => one - other))
    : Effect.fail(new WrongLengths({ lengths, positions }))
}

/** `first`, twice as much, and so on, and `last`. */
const doubling = (first: number, last: number): ReadonlyArray<number> => {
  const numbers: Array<number> = []
  for (let number = first; number < last; number *= 2) numbers.push(number)
  return [...numbers, last]
}

/** What a batch needs. */
const makeSlot = (model: Model.Model, most: Batch) =>
  Effect.all({ session: Model.session(model, most), stream: CudaStream.make() })
