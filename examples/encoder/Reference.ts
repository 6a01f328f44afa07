/**
 * The model in plain loops over float64, one sequence at a time: what the GPU's results are compared with.
 *
 * A matrix is an array of its rows, one after another.
 */
import { headSize } from "./Config.ts"
import type { Config } from "./Config.ts"

export interface Model {
  readonly config: Config
  readonly weights: ReadonlyMap<string, Float64Array>
}

/** The embedding of a sequence of ids. */
export const encode = ({ config: { heads, hidden, inner, layers }, weights }: Model, ids: ReadonlyArray<number>) => {
  const weight = (name: string): Float64Array => {
    const found = weights.get(name)
    if (found === undefined) throw new Error(`no tensor ${name}`)
    return found
  }
  const linear = (x: Float64Array, name: string, width: number) =>
    product(x, weight(`${name}.weight`), weight(`${name}.bias`), width)
  const normed = (x: Float64Array, name: string) => norm(x, weight(`${name}.gamma`), weight(`${name}.beta`))

  let x = normed(embed(ids, weight("embeddings.word"), weight("embeddings.position"), hidden), "embeddings.norm")
  for (let layer = 0; layer < layers; layer++) {
    const name = `layers.${layer}`
    const context = attention(linear(x, `${name}.attention.qkv`, hidden), heads)
    x = normed(sum(linear(context, `${name}.attention.output`, hidden), x), `${name}.attention.norm`)
    const up = linear(x, `${name}.mlp.up`, hidden).map(gelu)
    x = normed(sum(linear(up, `${name}.mlp.down`, inner), x), `${name}.mlp.norm`)
  }
  return pool(x, hidden)
}

/** The sums of the rows for tokens and positions. */
export const embed = (
  ids: ReadonlyArray<number>,
  words: Float64Array,
  positions: Float64Array,
  width: number
): Float64Array =>
  Float64Array.from({ length: ids.length * width }, (_, index) => {
    const [row, column] = [Math.floor(index / width), index % width]
    return words[ids[row]! * width + column]! + positions[row * width + column]!
  })

/** Layer normalization of rows. */
export const norm = (x: Float64Array, gamma: Float64Array, beta: Float64Array): Float64Array => {
  const width = gamma.length
  const out = new Float64Array(x.length)
  for (let start = 0; start < x.length; start += width) {
    const row = x.subarray(start, start + width)
    const mean = total(row) / width
    const variance = total(row.map((value) => (value - mean) ** 2)) / width
    out.set(
      row.map((value, column) => (value - mean) / Math.sqrt(variance + 1e-12) * gamma[column]! + beta[column]!),
      start
    )
  }
  return out
}

/** `x · weightᵀ + bias`, with rows of `x` and `weight` that are `width` wide. */
export const product = (x: Float64Array, weight: Float64Array, bias: Float64Array, width: number): Float64Array => {
  const outputs = bias.length
  const out = new Float64Array((x.length / width) * outputs)
  for (let index = 0; index < out.length; index++) {
    const output = index % outputs
    const row = ((index - output) / outputs) * width
    let value = bias[output]!
    for (let column = 0; column < width; column++) value += x[row + column]! * weight[output * width + column]!
    out[index] = value
  }
  return out
}

/** Attention of every row of queries, keys and values to every other. */
export const attention = (qkv: Float64Array, heads: number): Float64Array => {
  const width = heads * headSize
  const rows = qkv.length / (3 * width)
  const part = (row: number, which: number, head: number) => {
    const start = row * 3 * width + which * width + head * headSize
    return qkv.subarray(start, start + headSize)
  }
  const out = new Float64Array(rows * width)
  for (let row = 0; row < rows; row++) {
    for (let head = 0; head < heads; head++) {
      const query = part(row, 0, head)
      const scores = Float64Array.from({ length: rows }, (_, key) => dot(query, part(key, 1, head)) / 8)
      const most = Math.max(...scores)
      const shares = scores.map((score) => Math.exp(score - most))
      const whole = total(shares)
      for (let key = 0; key < rows; key++) {
        const value = part(key, 2, head)
        for (let lane = 0; lane < headSize; lane++) {
          out[row * width + head * headSize + lane]! += (shares[key]! / whole) * value[lane]!
        }
      }
    }
  }
  return out
}

/** The tanh approximation. */
export const gelu = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))

/** The mean row, with length 1. */
export const pool = (x: Float64Array, width: number): Float64Array => {
  const rows = x.length / width
  const mean = new Float64Array(width)
  for (const [index, value] of x.entries()) mean[index % width]! += value / rows
  const length = Math.sqrt(dot(mean, mean))
  return mean.map((value) => value / length)
}

const sum = (one: Float64Array, other: Float64Array) => one.map((value, index) => value + other[index]!)
const dot = (one: Float64Array, other: Float64Array) =>
  one.reduce((sum, value, index) => sum + value * other[index]!, 0)
const total = (values: Float64Array) => values.reduce((sum, value) => sum + value, 0)
