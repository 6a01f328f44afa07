/**
 * The types and the operators of collectives, and what operators do on simulated devices: exact for integers, in float64 otherwise, rounded
 * once.
 */
import { numberTypes } from "../blas/numbers.ts"

/** The type of the elements of a collective. */
export type NcclType = "i8" | "u8" | "i32" | "u32" | "i64" | "u64" | "f16" | "f32" | "f64" | "bf16"

/** How elements of several ranks become one. */
export type NcclOperator = "sum" | "prod" | "max" | "min" | "avg"

interface ElementType {
  readonly code: number
  readonly size: number
  readonly combine: Combine
}

/** Stores the combination of the elements at an offset of several views. */
type Combine = (operator: NcclOperator, sources: ReadonlyArray<DataView>, to: DataView, offset: number) => void

interface Arithmetic<A> {
  readonly add: (one: A, other: A) => A
  readonly multiply: (one: A, other: A) => A
  readonly divide: (sum: A, count: number) => A
}

const numbers: Arithmetic<number> = {
  add: (one, other) => one + other,
  multiply: (one, other) => one * other,
  divide: (sum, count) => sum / count
}

/** Integers wrap around, and averages are cut off. */
const integers: Arithmetic<bigint> = {
  add: (one, other) => one + other,
  multiply: (one, other) => one * other,
  divide: (sum, count) => sum / BigInt(count)
}

const combineAll = <A extends number | bigint>(
  { add, divide, multiply }: Arithmetic<A>,
  operator: NcclOperator,
  values: ReadonlyArray<A>
): A => {
  switch (operator) {
    case "sum":
      return values.reduce(add)
    case "prod":
      return values.reduce(multiply)
    case "max":
      return values.reduce((one, other) => other > one ? other : one)
    case "min":
      return values.reduce((one, other) => other < one ? other : one)
    case "avg":
      return divide(values.reduce(add), values.length)
  }
}

const float = (code: number, type: "f16" | "bf16" | "f32" | "f64"): ElementType => {
  const { load, size, store } = numberTypes[type]
  const combine: Combine = (operator, sources, to, offset) =>
    store(to, offset, combineAll(numbers, operator, sources.map((source) => load(source, offset))))
  return { code, size, combine }
}

const integer = (
  code: number,
  size: number,
  load: (view: DataView, offset: number) => number | bigint,
  store: (view: DataView, offset: number, value: bigint) => void
): ElementType => ({
  code,
  size,
  combine: (operator, sources, to, offset) =>
    store(to, offset, combineAll(integers, operator, sources.map((source) => BigInt(load(source, offset)))))
})

export const elementTypes: { readonly [Type in NcclType]: ElementType } = {
  i8: integer(0, 1, (view, at) => view.getInt8(at), (view, at, value) => view.setInt8(at, small(value, 8))),
  u8: integer(1, 1, (view, at) => view.getUint8(at), (view, at, value) => view.setUint8(at, small(value, 8))),
  i32: integer(
    2,
    4,
    (view, at) => view.getInt32(at, true),
    (view, at, value) => view.setInt32(at, small(value, 32), true)
  ),
  u32: integer(
    3,
    4,
    (view, at) => view.getUint32(at, true),
    (view, at, value) => view.setUint32(at, small(value, 32), true)
  ),
  i64: integer(
    4,
    8,
    (view, at) => view.getBigInt64(at, true),
    (view, at, value) => view.setBigInt64(at, BigInt.asIntN(64, value), true)
  ),
  u64: integer(
    5,
    8,
    (view, at) => view.getBigUint64(at, true),
    (view, at, value) => view.setBigUint64(at, BigInt.asUintN(64, value), true)
  ),
  f16: float(6, "f16"),
  f32: float(7, "f32"),
  f64: float(8, "f64"),
  bf16: float(9, "bf16")
}

const small = (value: bigint, bits: number): number => Number(BigInt.asUintN(bits, value))

export const operatorCodes: { readonly [Operator in NcclOperator]: number } = {
  sum: 0,
  prod: 1,
  max: 2,
  min: 3,
  avg: 4
}

const viewOf = ({ buffer, byteLength, byteOffset }: Uint8Array): DataView =>
  new DataView(buffer, byteOffset, byteLength)

/** Combines the bytes of all ranks. The results are new bytes, because results may be stored where they come from. */
export const combine = (
  type: NcclType,
  operator: NcclOperator,
  sources: ReadonlyArray<Uint8Array>
): Uint8Array => {
  const { combine, size } = elementTypes[type]
  const result = new Uint8Array(sources[0]!.byteLength)
  const to = viewOf(result)
  const from = sources.map(viewOf)
  for (let offset = 0; offset < result.byteLength; offset += size) combine(operator, from, to, offset)
  return result
}
