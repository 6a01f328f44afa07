/**
 * Scores rows of numbers with a small model on a GPU. Each caller scores one row; concurrent callers share a batch,
 * which is one launch of a graph.
 *
 * Requires only `CudaRuntime`, and is independent of HTTP.
 */
import {
  CudaDevice,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaProgram,
  CudaRuntime,
  CudaStream
} from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Pool from "effect/Pool"
import * as Request from "effect/Request"
import * as RequestResolver from "effect/RequestResolver"
import * as Semaphore from "effect/Semaphore"
import { makeSlots, watchGpu } from "./Gpu.ts"
import * as Kernel from "./Kernel.ts"

/** A dense layer with one output: `sigmoid(weights · features + bias)`. */
export interface Model {
  readonly weights: Float32Array
  readonly bias: number
}

export interface Options {
  readonly model: Model
  /** Maximum number of rows in a batch. */
  readonly maxBatch?: number | undefined
  /** How long the first row of a batch waits for more rows. */
  readonly window?: Duration.Input | undefined
  /** Maximum number of batches in flight. Further batches wait. */
  readonly slots?: number | undefined
  /** Maximum number of waiting callers. Further ones are refused immediately. */
  readonly maxWaiting?: number | undefined
  /** Timeout of a batch, including its wait for a slot. */
  readonly timeout?: Duration.Input | undefined
}

/** The length of a row differs from the number of weights. */
export class WrongWidth extends Data.TaggedError("WrongWidth")<{ readonly width: number; readonly expected: number }> {
  override get message(): string {
    return `${this.width} ${this.width === 1 ? "feature" : "features"}; expected ${this.expected}`
  }
}

/** The maximum number of callers is already waiting. */
export class Overloaded extends Data.TaggedError("Overloaded")<{ readonly maxWaiting: number }> {
  override get message(): string {
    return `${this.maxWaiting} ${this.maxWaiting === 1 ? "request is" : "requests are"} already waiting`
  }
}

/** A batch did not finish in time. */
export class TimedOut extends Data.TaggedError("TimedOut") {
  override readonly message = "the batch took too long"
}

export type ScoreFailure = WrongWidth | Overloaded | TimedOut | CudaError.CudaError

export interface Health {
  readonly runtime: "native" | "simulated"
  readonly device: string
  readonly batches: number
  readonly requests: number
  readonly meanBatchSize: number
}

export class Scorer extends Context.Service<Scorer, {
  readonly score: (features: ReadonlyArray<number>) => Effect.Effect<number, ScoreFailure>
  /** Fails once the GPU is lost. */
  readonly health: Effect.Effect<Health, CudaError.CudaError>
}>()("examples/http/Scorer") {
  /** All resources live as long as the layer. Releasing it waits for batches in flight. */
  static readonly layer = (options: Options): Layer.Layer<Scorer, CudaError.CudaError, CudaRuntime.CudaRuntime> =>
    Layer.effect(Scorer, make(options))
}

const make = Effect.fnUntraced(function*(options: Options) {
  const { maxBatch = 64, maxWaiting = 1024, slots = 3, timeout = "2 seconds", window = "1 millis" } = options
  const runtime = yield* CudaRuntime.CudaRuntime
  const device = yield* CudaDevice.current
  const stream = yield* CudaStream.fromPool()
  const network = yield* loadNetwork(options.model)
  const batches = yield* recordBatches(network, maxBatch)
  const pool = yield* makeSlots(slots, makeSlot(batches, maxBatch, network.width))
  const admission = yield* Semaphore.make(maxWaiting)
  const gpu = watchGpu()
  const counts = { batches: 0, requests: 0 }

  const scoreOn = (slot: Slot, rows: Rows) =>
    runBatch(network.width, slot, rows).pipe(
      // A batch runs in the context of the caller who started it, which may use another device.
      CudaStream.withPooledStream({ device }),
      // The GPU may still be using the memory of a batch that failed or timed out. Invalidating the slot gives the next
      // batch
      // new memory, and releases this one once the GPU no longer uses it.
      Effect.onError(() => Pool.invalidate(pool, slot)),
      Effect.provideService(CudaRuntime.CudaRuntime, runtime)
    )

  const scoreAll = (rows: Rows): Effect.Effect<Float32Array, TimedOut | CudaError.CudaError> =>
    Pool.use(pool, (slot) => scoreOn(slot, rows)).pipe(
      Effect.timeoutOrElse({ duration: timeout, orElse: () => Effect.fail(new TimedOut()) }),
      gpu.watch
    )

  const resolver = RequestResolver.make<ScoreRow>((entries) =>
    Effect.map(scoreAll(entries.map(({ request }) => request.features)), (scores) => {
      counts.batches++
      counts.requests += entries.length
      for (const [row, entry] of entries.entries()) entry.completeUnsafe(Exit.succeed(scores[row]!))
    })
  ).pipe(RequestResolver.setDelay(window), RequestResolver.batchN(maxBatch))

  return Scorer.of({
    score: Effect.fn("Scorer.score")(function*(features) {
      if (features.length !== network.width) {
        return yield* new WrongWidth({ width: features.length, expected: network.width })
      }
      const score = yield* admission.withPermitsIfAvailable(1)(Effect.request(new ScoreRow({ features }), resolver))
      return yield* Option.match(score, {
        onNone: () => Effect.fail(new Overloaded({ maxWaiting })),
        onSome: Effect.succeed
      })
    }),
    // Queries the GPU, so that its loss is detected even if there are no requests.
    health: CudaStream.query(stream).pipe(
      gpu.watch,
      Effect.map(() => ({
        runtime: runtime.kind,
        device: device.name,
        ...counts,
        meanBatchSize: counts.batches === 0 ? 0 : counts.requests / counts.batches
      }))
    )
  })
})

type Rows = ReadonlyArray<ReadonlyArray<number>>

/** The row of one caller. Effect collects rows into batches. */
class ScoreRow extends Request.Class<
  { readonly features: ReadonlyArray<number> },
  number,
  TimedOut | CudaError.CudaError
> {}

/** The model on the device, and its kernel. */
interface Network {
  readonly width: number
  readonly bias: number
  readonly weights: CudaMemory.DeviceArray<"f32">
  readonly kernel: CudaKernel.CudaKernel<typeof Kernel.parameters>
}

const loadNetwork = Effect.fnUntraced(function*({ bias, weights }: Model) {
  const program = yield* CudaProgram.compile(Kernel.source, { name: "score.cu" })
  const module = yield* CudaModule.load(program)
  const kernel = yield* CudaKernel.get(module, Kernel.name, Kernel.parameters)
  const factors = yield* CudaMemory.fromArray(weights)
  // Batches run on streams that are not ordered after this one.
  yield* CudaStream.synchronize(yield* CudaStream.current())
  const network: Network = { width: weights.length, bias, weights: factors, kernel }
  return network
}, CudaStream.withPooledStream())

/** The memory that a batch of a fixed size uses. */
const batchParameters = (size: number, width: number) => ({
  hostRows: CudaGraph.pinnedArray("f32", size * width),
  rows: CudaGraph.array("f32", size * width),
  scores: CudaGraph.array("f32", size),
  hostScores: CudaGraph.pinnedArray("f32", size)
})

/** Records a batch of a fixed size. */
const recordBatch = ({ bias, kernel, weights, width }: Network, size: number) =>
  CudaGraph.recordWith(
    batchParameters(size, width),
    ({ hostRows, hostScores, rows, scores }) =>
      Effect.gen(function*() {
        yield* CudaMemory.copy(rows, hostRows)
        yield* CudaKernel.launch(kernel, { grid: size, block: Kernel.block }, [scores, rows, weights, bias, width])
        yield* CudaMemory.copy(hostScores, scores)
      })
  )

/** Records batches of 1, 2, 4, … rows, up to the maximum. A batch runs in the smallest that has room for it. */
const recordBatches = (network: Network, maxBatch: number) => {
  const powers = Array.from({ length: Math.ceil(Math.log2(maxBatch)) }, (_, power) => 2 ** power)
  return Effect.forEach(
    [...powers, maxBatch],
    (size) => Effect.map(recordBatch(network, size), (graph) => ({ size, graph }))
  )
}

type Batches = Effect.Success<ReturnType<typeof recordBatches>>

/** Memory for one batch at a time, and the graphs that use it. */
type Slot = Effect.Success<ReturnType<typeof makeSlot>>

const makeSlot = (batches: Batches, maxBatch: number, width: number) =>
  Effect.all({
    rows: CudaMemory.array("f32", maxBatch * width),
    scores: CudaMemory.array("f32", maxBatch),
    hostRows: CudaMemory.pinnedArray("f32", maxBatch * width),
    hostScores: CudaMemory.pinnedArray("f32", maxBatch),
    // An instance runs one launch at a time. A slot has its own, so that it waits for no batch of another slot.
    batches: Effect.forEach(
      batches,
      ({ graph, size }) => Effect.map(CudaGraph.instantiate(graph), (exec) => ({ size, exec }))
    )
  })

/** Scores a batch on the current stream. */
const runBatch = Effect.fnUntraced(function*(width: number, slot: Slot, rows: Rows) {
  const floats = CudaMemory.view(slot.hostRows)
  for (const [row, features] of rows.entries()) floats.set(features, row * width)
  // The remaining rows of the graph are those of earlier batches. Nobody reads their scores.
  const { exec } = slot.batches.find(({ size }) => size >= rows.length)!
  yield* CudaGraph.launch(exec, slot)
  yield* CudaStream.synchronize(yield* CudaStream.current())
  // A copy, because the next batch reuses the memory.
  return CudaMemory.view(slot.hostScores).slice(0, rows.length)
})
