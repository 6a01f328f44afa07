/**
 * The kernels as functions, for simulated devices. As on a GPU, sums are floats, and results are rounded.
 */
import { SimulatedRuntime } from "effect-cuda"
import * as Bfloat16 from "./Bfloat16.ts"
import { headSize } from "./Config.ts"
import { parameters } from "./Kernels.ts"

const attention = SimulatedRuntime.kernel({
  parameters: parameters.attention,
  run: ({ args: [qkv, lengths, out, length, heads], grid }) => {
    const rows = decoded(qkv, grid.z * length * 3 * heads * headSize)
    const keys = lengths.view(Int32Array)
    const mixed = new Float32Array(rows.length / 3)
    for (let sequence = 0; sequence < grid.z; sequence++) {
      for (let head = 0; head < heads; head++) {
        attend(rows, mixed, { first: sequence * length, queries: length, keys: keys[sequence]!, head, heads })
      }
    }
    store(out, mixed)
  }
})

/** The `kernels` option of a simulated runtime. */
export const kernels = {
  embed: SimulatedRuntime.kernel({
    parameters: parameters.embed,
    run: ({ args: [ids, words, positions, gamma, beta, out, tokens, length, hidden, vocabulary] }) => {
      const given = ids.view(Int32Array)
      const [word, position] = [decoded(words), decoded(positions)]
      const sums = new Float32Array(tokens * hidden)
      for (let token = 0; token < tokens; token++) {
        const id = Math.min(Math.max(given[token]!, 0), vocabulary - 1)
        for (let column = 0; column < hidden; column++) {
          sums[token * hidden + column] = word[id * hidden + column]! + position[(token % length) * hidden + column]!
        }
      }
      store(out, normalized(sums, hidden, decoded(gamma), decoded(beta)))
    }
  }),
  layerNorm: SimulatedRuntime.kernel({
    parameters: parameters.layerNorm,
    run: ({ args: [x, gamma, beta, out, tokens, hidden] }) => {
      const rows = decoded(x, tokens * hidden)
      store(out, normalized(rows, hidden, decoded(gamma), decoded(beta)))
    }
  }),
  attention64: attention,
  attention128: attention,
  pool: SimulatedRuntime.kernel({
    parameters: parameters.pool,
    run: ({ args: [x, lengths, out, length, hidden], grid }) => {
      const rows = decoded(x, grid.x * length * hidden)
      const tokens = lengths.view(Int32Array)
      const means = out.view(Float32Array)
      for (let sequence = 0; sequence < grid.x; sequence++) {
        const from = sequence * length * hidden
        const valid = rows.subarray(from, from + tokens[sequence]! * hidden)
        means.set(meanOf(valid, hidden), sequence * hidden)
      }
    }
  })
}

const decoded = (memory: SimulatedRuntime.SimulatedPointer, length?: number) =>
  Bfloat16.decode(memory.view(Uint16Array, length))

const store = (memory: SimulatedRuntime.SimulatedPointer, values: Float32Array) =>
  memory.view(Uint16Array, values.length).set(Bfloat16.encode(values))

const epsilon = 1e-12

const normalized = (rows: Float32Array, hidden: number, gamma: Float32Array, beta: Float32Array): Float32Array => {
  for (let start = 0; start < rows.length; start += hidden) {
    const row = rows.subarray(start, start + hidden)
    const mean = row.reduce((sum, value) => sum + value, 0) / hidden
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / hidden
    const scale = 1 / Math.sqrt(variance + epsilon)
    for (let column = 0; column < hidden; column++) {
      row[column] = (row[column]! - mean) * scale * gamma[column]! + beta[column]!
    }
  }
  return rows
}

/** A head of a sequence, which begins with a row. */
interface Head {
  readonly first: number
  readonly queries: number
  readonly keys: number
  readonly head: number
  readonly heads: number
}

const attend = (qkv: Float32Array, out: Float32Array, { first, head, heads, keys, queries }: Head): void => {
  const hidden = heads * headSize
  const scores = new Float32Array(keys)
  for (let query = 0; query < queries; query++) {
    const from = (first + query) * 3 * hidden + head * headSize
    for (let key = 0; key < keys; key++) {
      const to = (first + key) * 3 * hidden + hidden + head * headSize
      let product = 0
      for (let lane = 0; lane < headSize; lane++) product += qkv[from + lane]! * qkv[to + lane]!
      scores[key] = product / 8
    }
    const most = scores.reduce((one, other) => Math.max(one, other), -Infinity)
    let total = 0
    for (let key = 0; key < keys; key++) total += scores[key] = Math.exp(scores[key]! - most)
    const into = (first + query) * hidden + head * headSize
    for (let lane = 0; lane < headSize; lane++) {
      let sum = 0
      for (let key = 0; key < keys; key++) {
        sum += scores[key]! * qkv[(first + key) * 3 * hidden + 2 * hidden + head * headSize + lane]!
      }
      out[into + lane] = sum / total
    }
  }
}

/** Divided by its Euclidean norm, for which the number of rows does not matter. */
const meanOf = (rows: Float32Array, hidden: number): Float64Array => {
  const sums = new Float64Array(hidden)
  for (let index = 0; index < rows.length; index++) sums[index % hidden]! += rows[index]!
  const norm = Math.sqrt(sums.reduce((sum, value) => sum + value * value, 0))
  return sums.map((value) => value / norm)
}
