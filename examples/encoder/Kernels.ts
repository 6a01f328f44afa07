/**
 * The kernels between the matrix products, and how they are launched. A GPU runs those in `kernels.cu`, a simulated
 * device the functions in `SimulatedKernels.ts`, with the same names and parameters.
 *
 * Activations are rows of bfloat16, one row per token. A batch has `batch` sequences, all padded to `length` tokens.
 */
import { CudaKernel, CudaModule, CudaParameter, CudaProgram, CudaRuntime } from "effect-cuda"
import type { CudaError, CudaMemory } from "effect-cuda"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { readFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { attempt } from "../demo/Source.ts"
import type { FileProblem } from "../demo/Source.ts"
import type { Config } from "./Config.ts"

const { i32, input, output } = CudaParameter

/** The parameters of the kernels in `kernels.cu`. */
export const parameters = {
  /** ids, words, positions, gamma, beta, out, length, hidden, vocabulary */
  embed: [input, input, input, input, input, output, i32, i32, i32],
  /** x, gamma, beta, out, hidden */
  norm: [input, input, input, output, i32],
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

/** Threads of a block. */
const block = 128

/** The shapes of the launches. */
const shapes = {
  /** A block per token. */
  rows: ({ batch, length }: Batch) => ({ grid: batch * length, block }),
  /** A block per 64 queries of a head of a sequence. */
  attention: ({ batch, length }: Batch, heads: number) => ({
    grid: [Math.ceil(length / 64), heads, batch] as const,
    block,
    sharedBytes: 0
  }),
  /** A block per sequence. */
  pool: ({ batch }: Batch) => ({ grid: batch, block })
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
): Effect.Effect<Kernels, CudaError.CudaError | FileProblem, CudaRuntime.CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const module = yield* CudaModule.load(yield* program)
    const embed = yield* CudaKernel.get(module, "embed", parameters.embed)
    const norm = yield* CudaKernel.get(module, "norm", parameters.norm)
    const attention = yield* CudaKernel.get(module, "attention", parameters.attention)
    const pool = yield* CudaKernel.get(module, "pool", parameters.pool)
    const kernels: Kernels = {
      embed: (batch, { ids, norm: { beta, gamma }, positions, words }, out) => {
        const args = [ids, words, positions, gamma, beta, out, batch.length, hidden, vocabulary] as const
        return CudaKernel.launch(embed, shapes.rows(batch), args)
      },
      norm: (batch, x, { beta, gamma }, out) =>
        CudaKernel.launch(norm, shapes.rows(batch), [x, gamma, beta, out, hidden]),
      attention: (batch, qkv, lengths, out) =>
        CudaKernel.launch(attention, shapes.attention(batch, heads), [qkv, lengths, out, batch.length, heads]),
      pool: (batch, x, lengths, out) =>
        CudaKernel.launch(pool, shapes.pool(batch), [x, lengths, out, batch.length, hidden])
    }
    return kernels
  })

/** Next to this file, for the compiled example in `dist-examples` as well. */
const source = fileURLToPath(new URL("../../examples/encoder/kernels.cu", import.meta.url))

/** A simulated device has no use for the source. */
const program = Effect.flatMap(CudaRuntime.CudaRuntime, ({ kind }) =>
  kind === "simulated"
    ? CudaProgram.compile("// see SimulatedKernels.ts")
    : Effect.flatMap(
      attempt(source, () => readFile(source, "utf8")),
      (text) => CudaProgram.compile(text, { name: "kernels.cu", options: ["--std=c++17"] })
    ))
