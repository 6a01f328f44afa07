/**
 * The sizes of a model, and the weights that they imply.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Tensor, TensorFile } from "./SafeTensors.ts"

export interface Config {
  readonly layers: number
  /** Width of the activations. */
  readonly hidden: number
  /** Attention heads, each `headSize` wide. */
  readonly heads: number
  /** Width between the two matrices of the feed-forward part. */
  readonly inner: number
  /** The longest sequence. */
  readonly positions: number
  readonly vocabulary: number
}

/** The kernel for attention is written for this size. */
export const headSize = 64

export const configs = {
  /** The shape of BERT-base. */
  base: { layers: 12, hidden: 768, heads: 12, inner: 3072, positions: 512, vocabulary: 30_522 },
  /** For tests and simulated devices. */
  tiny: { layers: 2, hidden: 128, heads: 2, inner: 256, positions: 64, vocabulary: 256 }
} satisfies Record<string, Config>

/** A tensor of the weights, in bfloat16. */
export interface Weight {
  readonly name: string
  readonly shape: ReadonlyArray<number>
}

/** All weights of a model. Matrices have a row per output. */
export const weightsOf = ({ hidden, inner, layers, positions, vocabulary }: Config): ReadonlyArray<Weight> => [
  { name: "embeddings.word", shape: [vocabulary, hidden] },
  { name: "embeddings.position", shape: [positions, hidden] },
  ...norm("embeddings.norm", hidden),
  ...Array.from({ length: layers }, (_, layer) => [
    ...linear(`layers.${layer}.attention.qkv`, hidden, 3 * hidden),
    ...linear(`layers.${layer}.attention.output`, hidden, hidden),
    ...norm(`layers.${layer}.attention.norm`, hidden),
    ...linear(`layers.${layer}.mlp.up`, hidden, inner),
    ...linear(`layers.${layer}.mlp.down`, inner, hidden),
    ...norm(`layers.${layer}.mlp.norm`, hidden)
  ]).flat()
]

const linear = (name: string, inputs: number, outputs: number): ReadonlyArray<Weight> => [
  { name: `${name}.weight`, shape: [outputs, inputs] },
  { name: `${name}.bias`, shape: [outputs] }
]

const norm = (name: string, width: number): ReadonlyArray<Weight> => [
  { name: `${name}.gamma`, shape: [width] },
  { name: `${name}.beta`, shape: [width] }
]

/** The tensors of a file are not the weights of a model of this kind. */
export class WrongModel extends Data.TaggedError("WrongModel")<{ readonly path: string; readonly problem: string }> {
  override get message(): string {
    return `${this.path}: ${this.problem}`
  }
}

/** Finds out the sizes of the model in a file. Fails unless the file has exactly its weights. */
export const ofFile = ({ path, tensors }: TensorFile): Effect.Effect<Config, WrongModel> =>
  Effect.suspend(() => {
    const config = guess(tensors)
    const problem = sizeProblem(config) ?? weightsProblem(config, tensors)
    return problem === undefined ? Effect.succeed(config) : Effect.fail(new WrongModel({ path, problem }))
  })

type Tensors = ReadonlyMap<string, Tensor>

/** The sizes by the shapes of some tensors; 0 where one is missing. */
const guess = (tensors: Tensors): Config => {
  const size = (name: string, dimension: number) => tensors.get(name)?.shape[dimension] ?? 0
  const hidden = size("embeddings.word", 1)
  return {
    layers: [...tensors.keys()].filter((name) => /^layers\.\d+\.attention\.qkv\.weight$/.test(name)).length,
    hidden,
    heads: hidden / headSize,
    inner: size("layers.0.mlp.up.weight", 0),
    positions: size("embeddings.position", 0),
    vocabulary: size("embeddings.word", 0)
  }
}

const sizeProblem = (config: Config): string | undefined => {
  const missing = Object.entries(config).find(([, value]) => value === 0)
  if (missing !== undefined) return `holds no encoder (${missing[0]}: 0)`
  return Number.isInteger(config.heads) ? undefined : `a width of ${config.hidden} is not a multiple of ${headSize}`
}

const weightsProblem = (config: Config, tensors: Tensors): string | undefined => {
  const weights = weightsOf(config)
  for (const { name, shape } of weights) {
    const found = tensors.get(name)
    if (found === undefined) return `the tensor ${name} is missing`
    const [is, expected] = [describe(found), describe({ dtype: "BF16", shape })]
    if (is !== expected) return `the tensor ${name} is ${is}; expected ${expected}`
  }
  const names = new Set(weights.map(({ name }) => name))
  const other = [...tensors.keys()].find((name) => !names.has(name))
  return other === undefined ? undefined : `the tensor ${other} belongs to no encoder`
}

const describe = ({ dtype, shape }: Pick<Tensor, "dtype" | "shape">): string => `${dtype} [${shape.join(", ")}]`
