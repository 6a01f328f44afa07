/**
 * The kernels between the matrix products, and how they are launched. A GPU runs those in `kernels.cu`, a simulated
 * device the functions in `SimulatedKernels.ts`, with the same names and parameters.
 *
 * Activations are rows of bfloat16, one row per token. A batch has `batch` sequences, all padded to `length` tokens.
 */
import { CudaKernel, CudaModule, CudaParameter, CudaProgram } from "effect-cuda"
import type { CudaError, CudaMemory, CudaRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Config } from "./Config.ts"

const { i32, input, output } = CudaParameter

/** The parameters of the kernels in `kernels.cu`. */
export const parameters = {
  /** ids, words, positions, gamma, beta, out, tokens, length, hidden, vocabulary */
  embed: [input, input, input, input, input, output, i32, i32, i32, i32],
  /** x, gamma, beta, out, tokens, hidden */
  layerNorm: [input, input, input, output, i32, i32],
  /** qkv, lengths, out, length, heads */
  attention: [input, input, output, i32, i32],
  /** x, lengths, out, length, hidden */
  pool: [input, input, output, i32, i32]
} as const

/** The size of a batch. */
export interface Batch {
  /** Number of sequences. */
  readonly batch: number
  /** Tokens of each, including padding. */
  readonly length: number
}

/** The shapes of the launches. */
const shapes = {
  /** A warp per token. */
  rows: (tokens: number) => ({ grid: Math.ceil(tokens / 4), block: 128 }),
  /** A block per some queries of a head of a sequence. */
  attention: ({ batch, length }: Batch, heads: number, queries: number) => ({
    grid: [Math.ceil(length / queries), heads, batch] as const,
    block: 128
  }),
  /** A block per sequence. */
  pool: ({ batch }: Batch) => ({ grid: batch, block: 256 })
}

type Memory = CudaMemory.Slice<CudaMemory.DeviceBuffer>

/** The scale and the offset of a normalization. */
export interface Norm {
  readonly gamma: Memory
  readonly beta: Memory
}

/** Each enqueues its kernel on the current stream. */
export interface Kernels {
  /** Looks up tokens and positions, and normalizes their sum. An id outside the vocabulary counts as the nearest. */
  readonly embed: (
    batch: Batch,
    from: { readonly ids: Memory; readonly words: Memory; readonly positions: Memory; readonly norm: Norm },
    out: Memory
  ) => Effect.Effect<void, CudaError.CudaError>
  /** Normalizes rows. */
  readonly norm: (batch: Batch, x: Memory, norm: Norm, out: Memory) => Effect.Effect<void, CudaError.CudaError>
  /** Attention over the queries, keys and values of each row. Keys beyond a sequence's length are ignored. */
  readonly attention: (
    batch: Batch,
    qkv: Memory,
    lengths: Memory,
    out: Memory
  ) => Effect.Effect<void, CudaError.CudaError>
  /** The mean row of each sequence without padding, as floats of length 1. */
  readonly pool: (batch: Batch, x: Memory, lengths: Memory, out: Memory) => Effect.Effect<void, CudaError.CudaError>
}

/** Loads the kernels for a model. */
export const load = (
  { heads, hidden, vocabulary }: Config
): Effect.Effect<Kernels, CudaError.CudaError, CudaRuntime.CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const module = yield* CudaModule.load(yield* program)
    const embed = yield* CudaKernel.get(module, "embed", parameters.embed)
    const layerNorm = yield* CudaKernel.get(module, "layerNorm", parameters.layerNorm)
    const attention = {
      64: yield* CudaKernel.get(module, "attention64", parameters.attention),
      128: yield* CudaKernel.get(module, "attention128", parameters.attention)
    }
    const pool = yield* CudaKernel.get(module, "pool", parameters.pool)
    const kernels: Kernels = {
      embed: ({ batch, length }, { ids, norm: { beta, gamma }, positions, words }, out) => {
        const tokens = batch * length
        const args = [ids, words, positions, gamma, beta, out, tokens, length, hidden, vocabulary] as const
        return CudaKernel.launch(embed, shapes.rows(tokens), args)
      },
      norm: ({ batch, length }, x, { beta, gamma }, out) => {
        const tokens = batch * length
        return CudaKernel.launch(layerNorm, shapes.rows(tokens), [x, gamma, beta, out, tokens, hidden])
      },
      attention: (batch, qkv, lengths, out) => {
        const queries = queriesOf(batch)
        const shape = shapes.attention(batch, heads, queries)
        return CudaKernel.launch(attention[queries], shape, [qkv, lengths, out, batch.length, heads])
      },
      pool: (batch, x, lengths, out) =>
        CudaKernel.launch(pool, shapes.pool(batch), [x, lengths, out, batch.length, hidden])
    }
    return kernels
  })

/** Large batches fill the GPU with blocks of more queries, which read each key less often. */
const queriesOf = ({ batch, length }: Batch): 64 | 128 => batch * length >= 2048 ? 128 : 64

/** Next to its source, for the compiled example in `dist-examples` as well. */
const program = CudaProgram.fromFile(new URL("../../examples/encoder/kernels.ptx", import.meta.url))
