/**
 * The model on a device: token and position embeddings, then layers of attention and a feed-forward part, each added to
 * its input and normalized, as in BERT. A batch of a given size is recorded once, as a graph of all its kernels, matrix
 * products and copies, and then runs with one launch.
 */
import { CudaBlas, CudaGraph, CudaMemory, CudaRuntime, CudaStream, CudaTiming } from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import type { Config } from "./Config.ts"
import * as Kernels from "./Kernels.ts"
import type { Batch } from "./Kernels.ts"
import type { DeviceTensors } from "./Upload.ts"

export interface Model {
  readonly config: Config
  readonly weights: Weights
  readonly kernels: Kernels.Kernels
}

/** Loads the kernels. The weights must stay on the device as long as the model is used. */
export const make = (
  config: Config,
  tensors: DeviceTensors
): Effect.Effect<Model, CudaError.CudaError, CudaRuntime.CudaRuntime | Scope.Scope> =>
  Effect.map(Kernels.load(config), (kernels) => ({ config, kernels, weights: group(config, tensors) }))

type Memory = CudaMemory.Slice<CudaMemory.DeviceBuffer>

/** A matrix with a row per output, and an offset per output. */
interface Linear {
  readonly weight: Memory
  readonly bias: Memory
}

interface Layer {
  readonly qkv: Linear
  readonly output: Linear
  readonly attentionNorm: Kernels.Norm
  readonly up: Linear
  readonly down: Linear
  readonly mlpNorm: Kernels.Norm
}

interface Weights {
  readonly words: Memory
  readonly positions: Memory
  readonly norm: Kernels.Norm
  readonly layers: ReadonlyArray<Layer>
}

const group = (config: Config, tensors: DeviceTensors): Weights => {
  const tensor = (name: string): Memory => tensors.get(name)!
  const linear = (name: string) => ({ weight: tensor(`${name}.weight`), bias: tensor(`${name}.bias`) })
  const norm = (name: string) => ({ gamma: tensor(`${name}.gamma`), beta: tensor(`${name}.beta`) })
  return {
    words: tensor("embeddings.word"),
    positions: tensor("embeddings.position"),
    norm: norm("embeddings.norm"),
    layers: Array.from({ length: config.layers }, (_, layer) => ({
      qkv: linear(`layers.${layer}.attention.qkv`),
      output: linear(`layers.${layer}.attention.output`),
      attentionNorm: norm(`layers.${layer}.attention.norm`),
      up: linear(`layers.${layer}.mlp.up`),
      down: linear(`layers.${layer}.mlp.down`),
      mlpNorm: norm(`layers.${layer}.mlp.norm`)
    }))
  }
}

/** What one batch at a time needs: memory, and the graphs that use it. Sessions run independently of each other. */
export interface Session {
  /**
   * Runs a batch on the current stream, and returns an embedding per sequence. There may be fewer sequences than the
   * batch has room for, and they may be shorter, but not empty.
   */
  readonly run: (
    batch: Batch,
    sequences: ReadonlyArray<Int32Array>
  ) => Effect.Effect<ReadonlyArray<Float32Array>, CudaError.CudaError>
  /** A row of each token of the last batch, before pooling. */
  readonly rows: CudaMemory.DeviceBuffer
  /** Records a batch of a size, unless it was recorded before. `run` does so, too. */
  readonly graph: (batch: Batch) => Effect.Effect<CudaGraph.CudaGraphExec, CudaError.CudaError>
}

/** Makes a session for batches of at most this size. */
export const session = Effect.fnUntraced(function*(model: Model, most: Batch) {
  const { hidden } = model.config
  const memory = yield* allocate(model.config, most)
  const graph = yield* makeGraphs(model, memory)

  const run = Effect.fnUntraced(function*(batch: Batch, sequences: ReadonlyArray<Int32Array>) {
    // Views are taken when they are used, so that a race checker sees when that is.
    const ids = CudaMemory.view(memory.hostIds, Int32Array)
    const lengths = CudaMemory.view(memory.hostLengths, Int32Array)
    // Room that is left over holds sequences of one token, whose embeddings nobody reads.
    ids.fill(0, 0, batch.batch * batch.length)
    lengths.fill(1, 0, batch.batch)
    for (const [row, sequence] of sequences.entries()) {
      ids.set(sequence, row * batch.length)
      lengths[row] = sequence.length
    }
    yield* CudaGraph.launch(yield* graph(batch))
    yield* CudaStream.synchronize(yield* CudaStream.current())
    const embeddings = CudaMemory.view(startOf(memory.hostEmbeddings, 4 * batch.batch * hidden), Float32Array)
    // Copies, because the next batch reuses the memory.
    return sequences.map((_, row) => embeddings.slice(row * hidden, (row + 1) * hidden))
  })

  const runtime = yield* CudaRuntime.CudaRuntime
  const session: Session = {
    run: (batch, sequences) => Effect.provideService(run(batch, sequences), CudaRuntime.CudaRuntime, runtime),
    rows: memory.x,
    graph
  }
  return session
})

/** Activations have a row per token. */
const allocate = ({ hidden, inner }: Config, { batch, length }: Batch) => {
  const activations = (width: number) => CudaMemory.allocate(batch * length * width * bfloat16Bytes)
  const [idBytes, lengthBytes, embeddingBytes] = [4 * batch * length, 4 * batch, 4 * batch * hidden]
  return Effect.all({
    hostIds: CudaMemory.allocateHost(idBytes),
    hostLengths: CudaMemory.allocateHost(lengthBytes),
    hostEmbeddings: CudaMemory.allocateHost(embeddingBytes),
    ids: CudaMemory.allocate(idBytes),
    lengths: CudaMemory.allocate(lengthBytes),
    embeddings: CudaMemory.allocate(embeddingBytes),
    x: activations(hidden),
    qkv: activations(3 * hidden),
    context: activations(hidden),
    sum: activations(hidden),
    inner: activations(inner)
  })
}

const bfloat16Bytes = 2

type SessionMemory = Effect.Success<ReturnType<typeof allocate>>

/** Records graphs one by one, when they are first needed, and keeps them. */
const makeGraphs = Effect.fnUntraced(function*(model: Model, memory: SessionMemory) {
  const runtime = yield* CudaRuntime.CudaRuntime
  const blas = yield* CudaBlas.CudaBlas
  const scope = yield* Effect.scope
  const graphs = new Map<string, CudaGraph.CudaGraphExec>()
  const plans = new Map<number, Plans>()

  const plansFor = Effect.fnUntraced(function*(rows: number) {
    const made = plans.get(rows) ?? (yield* makePlans(model.config, rows))
    plans.set(rows, made)
    return made
  })

  return Effect.fnUntraced(function*(batch: Batch) {
    const key = `${batch.batch} × ${batch.length}`
    const kept = graphs.get(key)
    if (kept !== undefined) return kept
    const products = yield* plansFor(batch.batch * batch.length)
    const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(encode(model, products, memory, batch)))
    yield* CudaGraph.upload(exec)
    graphs.set(key, exec)
    return exec
  }, (record) =>
    record.pipe(
      Effect.provideService(CudaRuntime.CudaRuntime, runtime),
      Effect.provideService(CudaBlas.CudaBlas, blas),
      Scope.provide(scope)
    ))
})

/** The matrix products of a layer, for a number of rows. Those of all layers have the same sizes. */
interface Plans {
  readonly qkv: CudaBlas.MatmulPlan
  readonly output: CudaBlas.MatmulPlan
  readonly up: CudaBlas.MatmulPlan
  readonly down: CudaBlas.MatmulPlan
}

/**
 * A session has its own plans: all graphs with products of one plan share its workspace, and would wait for each other.
 */
const makePlans = ({ hidden, inner }: Config, rows: number) =>
  Effect.all({
    qkv: plan(rows, hidden, 3 * hidden),
    output: plan(rows, hidden, hidden),
    up: plan(rows, hidden, inner, "gelu"),
    down: plan(rows, inner, hidden)
  })

const plan = (rows: number, inputs: number, outputs: number, activation?: "gelu") =>
  CudaBlas.plan({
    a: { rows, columns: inputs, type: "bf16" },
    b: { rows: outputs, columns: inputs, type: "bf16" },
    d: { rows, columns: outputs, type: "bf16" },
    transposeB: true,
    epilogue: { bias: true, activation }
  })

/** Enqueues all work of a batch, from the input in pinned memory to the output in pinned memory. */
const encode = ({ config, kernels, weights }: Model, plans: Plans, memory: SessionMemory, batch: Batch) =>
  Effect.gen(function*() {
    const { embeddings, hostEmbeddings, hostIds, hostLengths, ids, lengths, x } = memory
    const { norm, positions, words } = weights
    yield* copyStart(ids, hostIds, 4 * batch.batch * batch.length)
    yield* copyStart(lengths, hostLengths, 4 * batch.batch)
    yield* kernels.embed(batch, { ids, words, positions, norm }, x)
    for (const layer of weights.layers) yield* encodeLayer(kernels, layer, plans, memory, batch)
    yield* kernels.pool(batch, x, lengths, embeddings)
    yield* copyStart(hostEmbeddings, embeddings, 4 * batch.batch * config.hidden)
  })

/** Replaces `x` by the output of a layer. Its parts are regions, which cost nothing unless a timeline measures them. */
const encodeLayer = Effect.fnUntraced(function*(
  kernels: Kernels.Kernels,
  layer: Layer,
  plans: Plans,
  { context, inner, lengths, qkv, sum, x }: SessionMemory,
  batch: Batch
) {
  yield* multiply(plans.qkv, layer.qkv, x, qkv).pipe(CudaTiming.region("qkv"))
  yield* kernels.attention(batch, qkv, lengths, context).pipe(CudaTiming.region("attention"))
  yield* multiply(plans.output, layer.output, context, sum, x).pipe(CudaTiming.region("output"))
  yield* kernels.norm(batch, sum, layer.attentionNorm, x).pipe(CudaTiming.region("norm"))
  yield* multiply(plans.up, layer.up, x, inner).pipe(CudaTiming.region("up"))
  yield* multiply(plans.down, layer.down, inner, sum, x).pipe(CudaTiming.region("down"))
  yield* kernels.norm(batch, sum, layer.mlpNorm, x).pipe(CudaTiming.region("norm"))
})

/** `to = from · weightᵀ + bias`, plus `added` if there is one. */
const multiply = (plan: CudaBlas.MatmulPlan, { bias, weight }: Linear, from: Memory, to: Memory, added?: Memory) =>
  CudaBlas.matmul(plan, { a: from, b: weight, bias, d: to, c: added, beta: added === undefined ? 0 : 1 })

const copyStart = (to: CudaMemory.Slice, from: CudaMemory.Slice, byteLength: number) =>
  CudaMemory.copy(startOf(to, byteLength), startOf(from, byteLength))

/** The memory of a session has room for larger batches. */
const startOf = <Buffer extends CudaMemory.DeviceBuffer | CudaMemory.HostBuffer>(
  memory: CudaMemory.Slice<Buffer>,
  byteLength: number
) => CudaMemory.slice(memory, 0, byteLength)
