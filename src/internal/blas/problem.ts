/**
 * What a matrix product computes: the checked options of a plan, and the same product as cuBLASLt sees it, which knows matrices in column
 * order only.
 *
 * A matrix in row order is its transpose in column order. If the result is in row order, the transposed product is computed, with the
 * operands swapped: `dᵀ = bᵀ · aᵀ`.
 */
import { invalidArgument, isCudaError } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import { isWhole } from "../numbers.ts"
import { numberTypes } from "./numbers.ts"
import type { MatrixType } from "./numbers.ts"

/** A matrix, as it is stored. */
export interface Matrix {
  /** The number of rows, before it is transposed. */
  readonly rows: number
  readonly columns: number
  readonly type: MatrixType
  /** Whether the elements of a row, or those of a column, are next to each other. Default: `row`. */
  readonly order?: "row" | "column" | undefined
  /** The distance between rows (or columns, in column order), in elements. Default: no gaps. */
  readonly leading?: number | undefined
  /** A batch: several matrices, and the distance between them in elements. A distance of 0 uses one matrix for all. */
  readonly batch?: { readonly count: number; readonly stride: number } | undefined
}

/** What is done to the product before it is stored: adding the bias, then the activation. */
export interface Epilogue {
  /** Adds a vector: an element per column of a result in row order, or per row of one in column order. */
  readonly bias?: boolean | undefined
  /** `relu`, or `gelu` in its approximation with `tanh`. */
  readonly activation?: "relu" | "gelu" | undefined
  /**
   * Also stores the input of the activation, for its derivative: for `gelu` a matrix like the result, and for `relu` a bit per element, set
   * where the input was not negative.
   */
  readonly auxiliary?: boolean | undefined
}

/** How the products are accumulated. */
export type Compute = "f32" | "tf32" | "fastF16" | "fastBf16"

/** Options for planning a product. */
export interface ProductOptions {
  readonly a: Matrix
  readonly b: Matrix
  /** The result. */
  readonly d: Matrix
  readonly transposeA?: boolean | undefined
  readonly transposeB?: boolean | undefined
  /** What is done to the product before it is stored. Default: nothing. */
  readonly epilogue?: Epilogue | undefined
  /** For matrices of `f32`: `tf32`, `fastF16` and `fastBf16` round the operands for tensor cores. Default: `f32`, which does not. */
  readonly compute?: Compute | undefined
  /** For 8-bit floats: accumulates faster, with fewer bits. Default: false. */
  readonly fastAccumulation?: boolean | undefined
  /**
   * Bytes to whose multiples the addresses of the matrices are aligned, a power of 2. Less may need slower algorithms. Default: 16. Elements
   * are always aligned to their own size.
   */
  readonly alignment?: number | undefined
}

/** A checked matrix. */
export interface Layout {
  readonly type: MatrixType
  readonly order: "row" | "column"
  readonly rows: number
  readonly columns: number
  readonly leading: number
  readonly count: number
  readonly stride: number
  /** From the first element to the last. */
  readonly byteLength: number
}

/** Where the input of the activation is stored: with this distance between columns (rows of a result in row order), in elements. */
export interface Auxiliary {
  readonly leading: number
  readonly byteLength: number
}

/** A checked product. */
export interface Problem {
  readonly a: Layout
  readonly b: Layout
  readonly d: Layout
  /** The matrix that is added has the layout of the result, in a type of its own for 8-bit floats. */
  readonly c: Layout
  readonly transposeA: boolean
  readonly transposeB: boolean
  /** The rows and columns of the result, and the length of the sums. */
  readonly rows: number
  readonly columns: number
  readonly depth: number
  readonly bias: { readonly type: MatrixType; readonly byteLength: number } | undefined
  readonly activation: "relu" | "gelu" | undefined
  readonly auxiliary: Auxiliary | undefined
  readonly compute: Compute | "f64" | "i32"
  readonly scale: "f64" | "f32" | "i32"
  readonly fastAccumulation: boolean
  readonly alignment: number
}

export const planning = "CudaBlas.plan"

const types = Object.keys(numberTypes).join(", ")

/** Checks the options of a plan. */
export const problemOf = (options: ProductOptions): Problem | CudaError => {
  const [a, b, d] = [layoutOf("a", options?.a), layoutOf("b", options?.b), layoutOf("d", options?.d)]
  if (isCudaError(a)) return a
  if (isCudaError(b)) return b
  if (isCudaError(d)) return d
  const { alignment = 16, compute = "f32", fastAccumulation = false, transposeA = false, transposeB = false } = options
  const epilogue = epilogueOf(options.epilogue)
  if (isCudaError(epilogue)) return epilogue
  const [rows, depth] = transposeA ? [a.columns, a.rows] : [a.rows, a.columns]
  const [height, columns] = transposeB ? [b.columns, b.rows] : [b.rows, b.columns]
  const refused = refuseFlags({ transposeA, transposeB, fastAccumulation }) ??
    refuseSizes(rows, depth, height, columns, d) ?? refuseBatches(a, b, d) ?? refuseTypes(a, b, d) ??
    refuseEpilogue(epilogue, d) ?? refuseCompute(compute, a) ?? refuseAlignment(alignment)
  if (refused !== undefined) return refused
  const biasType = isEighth(d.type) ? "bf16" : d.type
  const biasBytes = numberTypes[biasType].size * (d.order === "row" ? columns : rows)
  const scale = a.type === "f64" ? "f64" : d.type === "i32" ? "i32" : "f32"
  return {
    a,
    b,
    d,
    c: isEighth(d.type) ? { ...d, type: "bf16", byteLength: 2 * d.byteLength } : d,
    transposeA,
    transposeB,
    rows,
    columns,
    depth,
    bias: epilogue.bias === true ? { type: biasType, byteLength: biasBytes } : undefined,
    activation: epilogue.activation,
    auxiliary: epilogue.auxiliary === true ? auxiliaryOf(epilogue, d) : undefined,
    compute: a.type === "f64" ? "f64" : a.type === "i8" ? "i32" : compute,
    scale,
    fastAccumulation,
    alignment
  }
}

const no = (argument: string, value: unknown, expected: string) => invalidArgument(planning, argument, value, expected)

const layoutOf = (name: string, matrix: Matrix): Layout | CudaError => {
  if (typeof matrix !== "object" || matrix === null) return no(name, matrix, "a matrix with rows, columns and a type")
  const { batch = { count: 1, stride: 0 }, columns, order = "row", rows, type } = matrix
  if (typeof type !== "string" || !Object.hasOwn(numberTypes, type)) return no(`${name}.type`, type, `one of ${types}`)
  if (order !== "row" && order !== "column") return no(`${name}.order`, order, `"row" or "column"`)
  const most = 2 ** 31 - 1
  if (!isWhole(rows, 1, most)) return no(`${name}.rows`, rows, `an integer from 1 to ${most}`)
  if (!isWhole(columns, 1, most)) return no(`${name}.columns`, columns, `an integer from 1 to ${most}`)
  const [lines, length] = order === "row" ? [rows, columns] : [columns, rows]
  const { leading = length } = matrix
  if (!isWhole(leading, length)) {
    return no(`${name}.leading`, leading, `at least ${length}, the length of a ${order === "row" ? "row" : "column"}`)
  }
  if (typeof batch !== "object" || batch === null) return no(`${name}.batch`, batch, "an object with count and stride")
  const { count, stride } = batch
  if (!isWhole(count, 1, most)) return no(`${name}.batch.count`, count, `an integer from 1 to ${most}`)
  if (!isWhole(stride, 0)) return no(`${name}.batch.stride`, stride, "an integer of at least 0, in elements")
  const byteLength = ((count - 1) * stride + (lines - 1) * leading + length) * numberTypes[type].size
  // Beyond this, not even the library's own numbers would be right.
  if (!isWhole(byteLength, 1)) return no(name, `of ${byteLength} bytes`, "a matrix of at most 2^53 bytes")
  return { type, order, rows, columns, leading, count, stride, byteLength }
}

/** Reads each option once, since a getter may return anything. */
const epilogueOf = (epilogue: Epilogue = {}): Epilogue | CudaError => {
  if (typeof epilogue !== "object" || epilogue === null) {
    return no("epilogue", epilogue, "an object with bias, activation and auxiliary")
  }
  const { activation, auxiliary, bias } = epilogue
  return { activation, auxiliary, bias }
}

const refuseFlags = (flags: { readonly [name: string]: unknown }): CudaError | undefined => {
  for (const [name, flag] of Object.entries(flags)) {
    if (typeof flag !== "boolean") return no(name, flag, "true or false")
  }
  return undefined
}

const refuseSizes = (rows: number, depth: number, height: number, columns: number, d: Layout) => {
  if (height !== depth) {
    return no("b", `${height} × ${columns} after transposing`, `${depth} rows, as many as a has columns`)
  }
  if (d.rows === rows && d.columns === columns) return undefined
  return no("d", `${d.rows} × ${d.columns}`, `${rows} × ${columns}, the size of the product`)
}

const refuseBatches = (a: Layout, b: Layout, d: Layout) => {
  for (const [name, { count }] of [["a", a], ["b", b]] as const) {
    if (count !== d.count) return no(`${name}.batch.count`, count, `${d.count}, as in d`)
  }
  const size = d.order === "row" ? d.rows * d.leading : d.columns * d.leading
  // Matrices may interleave, but not be the same.
  return d.count > 1 && d.stride === 0 ? no("d.batch.stride", d.stride, `not 0, for example ${size}`) : undefined
}

const isEighth = (type: MatrixType): boolean => type === "f8e4m3" || type === "f8e5m2"

/** The types of the result for those of the operands. */
const resultTypes = (a: MatrixType, b: MatrixType): ReadonlyArray<MatrixType> => {
  if (isEighth(a) && isEighth(b) && !(a === "f8e5m2" && b === "f8e5m2")) {
    return ["f32", "f16", "bf16", "f8e4m3", "f8e5m2"]
  }
  if (a !== b) return []
  switch (a) {
    case "f64":
    case "f32":
      return [a]
    case "f16":
    case "bf16":
      return [a, "f32"]
    case "i8":
      return ["i32", "i8"]
    default:
      return []
  }
}

const refuseTypes = (a: Layout, b: Layout, d: Layout) => {
  const found = resultTypes(a.type, b.type)
  if (found.includes(d.type)) return undefined
  return found.length === 0
    ? no("b.type", b.type, `a type that can be multiplied by ${a.type}`)
    : no("d.type", d.type, `${found.join(" or ")} for a product of ${a.type} and ${b.type}`)
}

/** cuBLASLt pads columns of bits to multiples of 128. */
const auxiliaryOf = ({ activation }: Epilogue, d: Layout): Auxiliary => {
  if (activation === "gelu") return { leading: d.leading, byteLength: d.byteLength }
  const [length, lines] = d.order === "row" ? [d.columns, d.rows] : [d.rows, d.columns]
  const leading = 128 * Math.ceil(length / 128)
  return { leading, byteLength: lines * leading / 8 }
}

const refuseEpilogue = ({ activation, auxiliary = false, bias }: Epilogue, d: Layout) => {
  if (activation !== undefined && activation !== "relu" && activation !== "gelu") {
    return no("epilogue.activation", activation, `"relu" or "gelu"`)
  }
  if (bias !== undefined && typeof bias !== "boolean") return no("epilogue.bias", bias, "true or false")
  if (typeof auxiliary !== "boolean") return no("epilogue.auxiliary", auxiliary, "true or false")
  if (auxiliary && activation === undefined) return no("epilogue.auxiliary", auxiliary, "false without an activation")
  if (auxiliary && d.count > 1) return no("epilogue.auxiliary", auxiliary, "false for batches")
  if (auxiliary && activation === "gelu" && d.leading % 8 !== 0) {
    return no("d.leading", d.leading, "a multiple of 8 for the auxiliary matrix")
  }
  const isPlain = activation === undefined && bias !== true
  return d.type === "i32" && !isPlain ? no("epilogue", `of ${d.type}`, "none for results of i32") : undefined
}

const refuseCompute = (compute: Compute, a: Layout) => {
  if (compute === "f32") return undefined
  if (compute !== "tf32" && compute !== "fastF16" && compute !== "fastBf16") {
    return no("compute", compute, "one of f32, tf32, fastF16, fastBf16")
  }
  return a.type === "f32" ? undefined : no("compute", compute, `f32 for matrices of ${a.type}`)
}

const refuseAlignment = (alignment: number) =>
  isWhole(alignment, 1, 256) && Number.isInteger(Math.log2(alignment))
    ? undefined
    : no("alignment", alignment, "a power of 2 up to 256")

/** The alignment of the addresses of a matrix. The GPU cannot read elements that are not aligned, and that would be a fault. */
export const alignmentOf = ({ alignment }: Problem, { type }: Layout): number =>
  Math.max(alignment, numberTypes[type].size)

/** The alignment of every matrix of a batch. */
export const commonAlignment = (problem: Problem, layout: Layout): number => {
  let common = alignmentOf(problem, layout)
  const distance = layout.count > 1 ? layout.stride * numberTypes[layout.type].size : 0
  while (distance % common !== 0) common /= 2
  return common
}

/** A product of matrices in column order. */
export interface ColumnProduct {
  readonly isSwapped: boolean
  readonly first: Layout
  readonly second: Layout
  readonly transposeFirst: boolean
  readonly transposeSecond: boolean
}

export const inColumns = ({ a, b, d, transposeA, transposeB }: Problem): ColumnProduct => {
  const [isTransposedA, isTransposedB] = [transposeA !== (a.order !== d.order), transposeB !== (b.order !== d.order)]
  return d.order === "row"
    ? { isSwapped: true, first: b, second: a, transposeFirst: isTransposedB, transposeSecond: isTransposedA }
    : { isSwapped: false, first: a, second: b, transposeFirst: isTransposedA, transposeSecond: isTransposedB }
}
