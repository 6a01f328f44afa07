/**
 * The number types of matrices: their codes and sizes in cuBLASLt, and how to read and write them.
 */

/** The type of the elements of a matrix. */
export type MatrixType = "f64" | "f32" | "f16" | "bf16" | "f8e4m3" | "f8e5m2" | "i8" | "i32"

/** What is known of a type. `store` rounds to the nearest value. */
export interface NumberType {
  /** The `cudaDataType`. */
  readonly code: number
  readonly size: number
  readonly load: (view: DataView, offset: number) => number
  readonly store: (view: DataView, offset: number, value: number) => void
}

/** A binary floating-point format of up to 16 bits. */
interface Format {
  readonly exponentBits: number
  readonly fractionBits: number
  /** Without infinities, the largest exponent has numbers, and only the largest fraction is NaN. */
  readonly hasInfinity: boolean
}

const formats = {
  f16: { exponentBits: 5, fractionBits: 10, hasInfinity: true },
  bf16: { exponentBits: 8, fractionBits: 7, hasInfinity: true },
  f8e4m3: { exponentBits: 4, fractionBits: 3, hasInfinity: false },
  f8e5m2: { exponentBits: 5, fractionBits: 2, hasInfinity: true }
} as const satisfies Record<string, Format>

const biasOf = ({ exponentBits }: Format): number => 2 ** (exponentBits - 1) - 1

const decode = (format: Format, bits: number): number => {
  const { exponentBits, fractionBits, hasInfinity } = format
  const fraction = bits & (2 ** fractionBits - 1)
  const exponent = (bits >> fractionBits) & (2 ** exponentBits - 1)
  const sign = bits >> (fractionBits + exponentBits) === 0 ? 1 : -1
  const isLast = exponent === 2 ** exponentBits - 1
  if (isLast && hasInfinity) return fraction === 0 ? sign * Infinity : NaN
  if (isLast && fraction === 2 ** fractionBits - 1) return NaN
  if (exponent === 0) return sign * fraction * 2 ** (1 - biasOf(format) - fractionBits)
  return sign * (1 + fraction / 2 ** fractionBits) * 2 ** (exponent - biasOf(format))
}

/** Numbers beyond the largest become infinite, or the largest where there are no infinities, as on the GPU. */
const encode = (format: Format, value: number): number => {
  const { exponentBits, fractionBits, hasInfinity } = format
  const last = (2 ** exponentBits - 1) * 2 ** fractionBits
  if (Number.isNaN(value)) return hasInfinity ? last + 2 ** (fractionBits - 1) : last + 2 ** fractionBits - 1
  const sign = value < 0 || Object.is(value, -0) ? 2 ** (exponentBits + fractionBits) : 0
  const largest = hasInfinity ? last : last + 2 ** fractionBits - 2
  return sign + Math.min(magnitudeOf(format, Math.abs(value)), largest)
}

/** The bits of a positive number, as if exponents had no limit. Bits of neighbours are neighbours, so rounding up may carry. */
const magnitudeOf = (format: Format, value: number): number => {
  const { fractionBits } = format
  const bias = biasOf(format)
  if (value === Infinity) return Infinity
  const exponent = Math.max(exponentOf(value), 1 - bias)
  const steps = roundToEven(value / 2 ** (exponent - fractionBits))
  return (exponent + bias - 1) * 2 ** fractionBits + steps
}

/** The largest exponent whose power of two is not greater. */
const exponentOf = (value: number): number => {
  if (value === 0) return -Infinity
  const guess = Math.floor(Math.log2(value))
  if (2 ** guess > value) return guess - 1
  return 2 ** (guess + 1) <= value ? guess + 1 : guess
}

const roundToEven = (value: number): number => {
  const below = Math.floor(value)
  const rest = value - below
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below
}

const tables = new Map<Format, Float64Array>()

/** Decodes with a table, since a matrix has more elements than its type has values. */
const tableOf = (format: Format): Float64Array => {
  const known = tables.get(format)
  if (known !== undefined) return known
  const count = 2 ** (1 + format.exponentBits + format.fractionBits)
  const made = Float64Array.from({ length: count }, (_, bits) => decode(format, bits))
  tables.set(format, made)
  return made
}

const wide = (code: number, format: Format): NumberType => ({
  code,
  size: 2,
  load: (view, offset) => tableOf(format)[view.getUint16(offset, true)]!,
  store: (view, offset, value) => view.setUint16(offset, encode(format, value), true)
})

const narrow = (code: number, format: Format): NumberType => ({
  code,
  size: 1,
  load: (view, offset) => tableOf(format)[view.getUint8(offset)]!,
  store: (view, offset, value) => view.setUint8(offset, encode(format, value))
})

const clamped = (value: number, most: number): number => Math.min(Math.max(roundToEven(value), -most - 1), most)

export const numberTypes: { readonly [Type in MatrixType]: NumberType } = {
  f64: {
    code: 1,
    size: 8,
    load: (view, offset) => view.getFloat64(offset, true),
    store: (view, offset, value) => view.setFloat64(offset, value, true)
  },
  f32: {
    code: 0,
    size: 4,
    load: (view, offset) => view.getFloat32(offset, true),
    store: (view, offset, value) => view.setFloat32(offset, value, true)
  },
  f16: wide(2, formats.f16),
  bf16: wide(14, formats.bf16),
  f8e4m3: narrow(28, formats.f8e4m3),
  f8e5m2: narrow(29, formats.f8e5m2),
  i8: {
    code: 3,
    size: 1,
    load: (view, offset) => view.getInt8(offset),
    store: (view, offset, value) => view.setInt8(offset, clamped(value, 127))
  },
  i32: {
    code: 10,
    size: 4,
    load: (view, offset) => view.getInt32(offset, true),
    store: (view, offset, value) => view.setInt32(offset, value | 0, true)
  }
}
