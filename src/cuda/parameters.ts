/**
 * Kernel parameters in C layout: their kinds, sizes and alignments, and the conversion of numbers to bytes.
 * Little-endian, like every machine with an NVIDIA driver. No Effect here.
 *
 * @since 0.1.0
 */

/** The number types of C, and `bool`. */
export type ScalarName =
  | "i8"
  | "u8"
  | "i16"
  | "u16"
  | "i32"
  | "u32"
  | "i64"
  | "u64"
  | "f16"
  | "bf16"
  | "f32"
  | "f64"
  | "bool"

/** Size and alignment of each type, in bytes. */
export const scalarSizes: { readonly [Name in ScalarName]: number } = {
  i8: 1,
  u8: 1,
  i16: 2,
  u16: 2,
  i32: 4,
  u32: 4,
  i64: 8,
  u64: 8,
  f16: 2,
  bf16: 2,
  f32: 4,
  f64: 8,
  bool: 1
}

/** Size of a pointer in bytes. */
export const pointerSize = 8

/** A number or a boolean. */
export interface ScalarKind<out Name extends ScalarName = ScalarName> {
  readonly kind: Name
  readonly size: number
  readonly align: number
}

/** The type of an element in memory. */
export type ElementType = Exclude<ScalarName, "bool">

/** A pointer to memory, how the kernel accesses it, and what its elements are, if that was declared. */
export interface PointerKind<
  out Nullable extends boolean = boolean,
  out Element extends ElementType | undefined = ElementType | undefined
> {
  readonly kind: "pointer"
  readonly size: number
  readonly align: number
  readonly access: "read" | "write" | "readWrite"
  readonly nullable: Nullable
  readonly element: Element
}

/** A struct by value. */
export interface StructKind<out Fields extends StructFields = StructFields> {
  readonly kind: "struct"
  readonly size: number
  readonly align: number
  readonly fields: Fields
  /** Offset of each field. */
  readonly offsets: Readonly<Record<string, number>>
}

/** The fields of a struct, in order. */
export type StructFields = Readonly<Record<string, ParameterKind>>

/** An array by value: a struct with that array as its only field. */
export interface ArrayKind<out Element extends ParameterKind = ParameterKind> {
  readonly kind: "array"
  readonly size: number
  readonly align: number
  readonly element: Element
  readonly length: number
}

/** A kind of kernel parameter. */
export type ParameterKind = ScalarKind | PointerKind | StructKind | ArrayKind

/** Rounds up to a multiple of an alignment. */
export const alignUp = (offset: number, align: number): number => Math.ceil(offset / align) * align

/** Offsets of consecutive parts, each aligned, with the total size and alignment. */
export const layOut = (
  parts: ReadonlyArray<Pick<ParameterKind, "size" | "align">>
): { readonly offsets: ReadonlyArray<number>; readonly size: number; readonly align: number } => {
  const offsets: Array<number> = []
  let end = 0
  let align = 1
  for (const part of parts) {
    const offset = alignUp(end, part.align)
    offsets.push(offset)
    end = offset + part.size
    align = Math.max(align, part.align)
  }
  return { offsets, size: alignUp(end, align), align }
}

/** Writes a value. Returns false if the value is not valid for the kind, in which case part of it may be written. */
export type Writer = (value: unknown) => boolean

/** Makes the writer for an offset. Each kind has its own function, so that each is optimized separately. */
export type MakeWriter = (view: DataView, offset: number) => Writer

const isWhole = (value: unknown, least: number, most: number): value is number =>
  typeof value === "number" && Number.isInteger(value) && value >= least && value <= most

/** The weight of the upper half of an address. */
export const twoTo32 = 0x1_0000_0000

/** Writes a 64-bit integer: the low half, then the rest, which keeps the sign. */
const setWhole64 = (view: DataView, offset: number, value: number): void => {
  view.setUint32(offset, value, true)
  view.setInt32(offset + 4, Math.floor(value / twoTo32), true)
}

/** Writes an address of at most 53 bits. */
export const setAddress = (view: DataView, offset: number, address: number): void => {
  view.setUint32(offset, address, true)
  view.setUint32(offset + 4, address / twoTo32, true)
}

/** The writers of numbers and booleans. */
export const scalarWriters: { readonly [Name in ScalarName]: MakeWriter } = {
  i8: (view, offset) => (value) => {
    if (!isWhole(value, -0x80, 0x7f)) return false
    view.setInt8(offset, value)
    return true
  },
  u8: (view, offset) => (value) => {
    if (!isWhole(value, 0, 0xff)) return false
    view.setUint8(offset, value)
    return true
  },
  i16: (view, offset) => (value) => {
    if (!isWhole(value, -0x8000, 0x7fff)) return false
    view.setInt16(offset, value, true)
    return true
  },
  u16: (view, offset) => (value) => {
    if (!isWhole(value, 0, 0xffff)) return false
    view.setUint16(offset, value, true)
    return true
  },
  i32: (view, offset) => (value) => {
    if (!isWhole(value, -0x8000_0000, 0x7fff_ffff)) return false
    view.setInt32(offset, value, true)
    return true
  },
  u32: (view, offset) => (value) => {
    if (!isWhole(value, 0, 0xffff_ffff)) return false
    view.setUint32(offset, value, true)
    return true
  },
  i64: (view, offset) => (value) => {
    if (typeof value === "bigint") {
      if (BigInt.asIntN(64, value) !== value) return false
      view.setBigInt64(offset, value, true)
      return true
    }
    if (!isWhole(value, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)) return false
    setWhole64(view, offset, value)
    return true
  },
  u64: (view, offset) => (value) => {
    if (typeof value === "bigint") {
      if (BigInt.asUintN(64, value) !== value) return false
      view.setBigUint64(offset, value, true)
      return true
    }
    if (!isWhole(value, 0, Number.MAX_SAFE_INTEGER)) return false
    setWhole64(view, offset, value)
    return true
  },
  f16: (view, offset) => (value) => {
    if (typeof value !== "number") return false
    view.setUint16(offset, encodeFloat(value, half), true)
    return true
  },
  bf16: (view, offset) => (value) => {
    if (typeof value !== "number") return false
    view.setUint16(offset, encodeFloat(value, brain), true)
    return true
  },
  f32: (view, offset) => (value) => {
    if (typeof value !== "number") return false
    view.setFloat32(offset, value, true)
    return true
  },
  f64: (view, offset) => (value) => {
    if (typeof value !== "number") return false
    view.setFloat64(offset, value, true)
    return true
  },
  bool: (view, offset) => (value) => {
    if (typeof value !== "boolean") return false
    view.setUint8(offset, value ? 1 : 0)
    return true
  }
}

/** The accepted values of each type, in words. */
export const scalarWords: { readonly [Name in ScalarName]: string } = {
  i8: "an integer from -128 to 127",
  u8: "an integer from 0 to 255",
  i16: "an integer from -32768 to 32767",
  u16: "an integer from 0 to 65535",
  i32: "an integer from -2147483648 to 2147483647",
  u32: "an integer from 0 to 4294967295",
  i64: "a 64-bit bigint, or a safe integer",
  u64: "an unsigned 64-bit bigint, or a safe integer of at least 0",
  f16: "a number",
  bf16: "a number",
  f32: "a number",
  f64: "a number",
  bool: "true or false"
}

/** The JavaScript type of each value as a kernel reads it. */
export interface ScalarValues {
  readonly i8: number
  readonly u8: number
  readonly i16: number
  readonly u16: number
  readonly i32: number
  readonly u32: number
  readonly i64: bigint
  readonly u64: bigint
  readonly f16: number
  readonly bf16: number
  readonly f32: number
  readonly f64: number
  readonly bool: boolean
}

/** The inverse of the writers. */
export const scalarReaders: {
  readonly [Name in ScalarName]: (view: DataView, offset: number) => ScalarValues[Name]
} = {
  i8: (view, offset) => view.getInt8(offset),
  u8: (view, offset) => view.getUint8(offset),
  i16: (view, offset) => view.getInt16(offset, true),
  u16: (view, offset) => view.getUint16(offset, true),
  i32: (view, offset) => view.getInt32(offset, true),
  u32: (view, offset) => view.getUint32(offset, true),
  i64: (view, offset) => view.getBigInt64(offset, true),
  u64: (view, offset) => view.getBigUint64(offset, true),
  f16: (view, offset) => decodeFloat(view.getUint16(offset, true), half),
  bf16: (view, offset) => decodeFloat(view.getUint16(offset, true), brain),
  f32: (view, offset) => view.getFloat32(offset, true),
  f64: (view, offset) => view.getFloat64(offset, true),
  bool: (view, offset) => view.getUint8(offset) !== 0
}

/** A 16-bit binary floating-point format. */
interface FloatFormat {
  /** Bits of the fraction. */
  readonly fraction: number
  /** The encoded exponent of 1, which is also the largest exponent. */
  readonly bias: number
}

/** `__half`. */
const half: FloatFormat = { fraction: 10, bias: 15 }

/** `__nv_bfloat16`. */
const brain: FloatFormat = { fraction: 7, bias: 127 }

const scratch = new DataView(new ArrayBuffer(8))

/** The exponent of a positive number. */
const exponentOf = (value: number): number => {
  scratch.setFloat64(0, value)
  return ((scratch.getUint32(0) >>> 20) & 0x7ff) - 1023
}

/** Rounds to nearest, ties to even, directly from 64 bits: rounding to 32 bits first would round twice. */
const encodeFloat = (value: number, { bias, fraction }: FloatFormat): number => {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  const infinite = (2 * bias + 1) * 2 ** fraction
  if (Number.isNaN(value)) return infinite + 2 ** (fraction - 1)
  const size = Math.abs(value)
  if (size === Infinity) return sign + infinite
  const exponent = Math.max(exponentOf(size), 1 - bias)
  const steps = roundEven(size / 2 ** (exponent - fraction))
  // The leading 1 of `steps` carries into the exponent field. Subnormal numbers have none.
  return sign + Math.min(steps + (exponent + bias - 1) * 2 ** fraction, infinite)
}

const roundEven = (value: number): number => {
  const below = Math.floor(value)
  const rest = value - below
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below
}

const decodeFloat = (bits: number, { bias, fraction }: FloatFormat): number => {
  const sign = (bits & 0x8000) === 0 ? 1 : -1
  const field = (bits & 0x7fff) >> fraction
  const rest = bits & (2 ** fraction - 1)
  if (field === 2 * bias + 1) return rest === 0 ? sign * Infinity : NaN
  if (field === 0) return sign * rest * 2 ** (1 - bias - fraction)
  return sign * (2 ** fraction + rest) * 2 ** (field - bias - fraction)
}
