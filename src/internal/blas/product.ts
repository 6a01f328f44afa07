/**
 * The plain product, for simulated devices: sums in float64, rounded once to the type of the result.
 */
import { numberTypes } from "./numbers.ts"
import type { MatrixType } from "./numbers.ts"
import type { Layout, Problem } from "./problem.ts"

/** What a product reads and writes, as bytes, and its factors. */
export interface ProductBytes {
  readonly a: Uint8Array
  readonly b: Uint8Array
  readonly c: Uint8Array | undefined
  readonly d: Uint8Array
  readonly bias: Uint8Array | undefined
  readonly auxiliary: Uint8Array | undefined
  readonly alpha: number
  readonly beta: number
  /** The factor of each matrix; 1 for those without. */
  readonly scales: { readonly a: number; readonly b: number; readonly c: number; readonly d: number }
}

/** Where an element is, in elements. */
const indexOf = ({ leading, order, stride }: Layout, batch: number, row: number, column: number): number =>
  batch * stride + (order === "row" ? row * leading + column : column * leading + row)

const viewOf = ({ buffer, byteLength, byteOffset }: Uint8Array): DataView =>
  new DataView(buffer, byteOffset, byteLength)

/** The elements of one matrix of a batch, in rows, transposed on request. */
const elementsOf = (layout: Layout, bytes: Uint8Array, batch: number, isTransposed: boolean): Float64Array => {
  const { columns, rows, type } = layout
  const { load, size } = numberTypes[type]
  const view = viewOf(bytes)
  const elements = new Float64Array(rows * columns)
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const at = isTransposed ? column * rows + row : row * columns + column
      elements[at] = load(view, indexOf(layout, batch, row, column) * size)
    }
  }
  return elements
}

/** Reads everything before it writes, as `c` may be `d`. */
export const multiply = (problem: Problem, bytes: ProductBytes): void => {
  for (let batch = 0; batch < problem.d.count; batch++) multiplyOne(problem, bytes, batch)
}

const multiplyOne = (problem: Problem, bytes: ProductBytes, batch: number): void => {
  const { a, b, c, columns, d, depth, rows } = problem
  const { alpha, beta, scales } = bytes
  const left = elementsOf(a, bytes.a, batch, problem.transposeA)
  // Transposed, so that both are read in a row.
  const right = elementsOf(b, bytes.b, batch, !problem.transposeB)
  const added = beta === 0 || bytes.c === undefined ? undefined : elementsOf(c, bytes.c, batch, false)
  const bias = biasOf(problem, bytes)
  const finish = finisherOf(problem, bytes)
  const store = storerOf(d.type, bytes.d)
  const factor = alpha * scales.a * scales.b
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      let sum = 0
      for (let at = 0; at < depth; at++) sum += left[row * depth + at]! * right[column * depth + at]!
      const other = added === undefined ? 0 : beta * scales.c * added[row * columns + column]!
      const value = finish(factor * sum + other + bias(row, column), row, column)
      store(indexOf(d, batch, row, column), value * scales.d)
    }
  }
}

const biasOf = ({ bias, d }: Problem, bytes: ProductBytes): (row: number, column: number) => number => {
  if (bias === undefined || bytes.bias === undefined) return () => 0
  const view = viewOf(bytes.bias)
  const { load, size } = numberTypes[bias.type]
  return (row, column) => load(view, (d.order === "row" ? column : row) * size)
}

/** Applies the activation, and stores its input if that is wanted. */
const finisherOf = (problem: Problem, bytes: ProductBytes): (value: number, row: number, column: number) => number => {
  const { activation } = problem
  const keep = keeperOf(problem, bytes)
  if (activation === undefined) return (value) => value
  const activate = activation === "relu" ? relu : gelu
  return (value, row, column) => {
    keep(value, row, column)
    return activate(value)
  }
}

type Keep = (value: number, row: number, column: number) => void

const keeperOf = ({ activation, auxiliary, d }: Problem, bytes: ProductBytes): Keep => {
  const kept = bytes.auxiliary
  if (kept === undefined || auxiliary === undefined) return () => {}
  if (activation === "gelu") {
    const store = storerOf(d.type, kept)
    return (value, row, column) => store(indexOf(d, 0, row, column), value)
  }
  kept.fill(0)
  return (value, row, column) => {
    const [line, at] = d.order === "row" ? [row, column] : [column, row]
    const bit = line * auxiliary.leading + at
    if (value >= 0) kept[bit >> 3]! |= 1 << (bit & 7)
  }
}

const relu = (value: number): number => Math.max(value, 0)

const gelu = (value: number): number =>
  0.5 * value * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (value + 0.044715 * value ** 3)))

const storerOf = (type: MatrixType, bytes: Uint8Array): (index: number, value: number) => void => {
  const view = viewOf(bytes)
  const { size, store } = numberTypes[type]
  return (index, value) => store(view, index * size, value)
}
