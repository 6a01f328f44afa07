/**
 * Types of elements in memory, and the typed arrays that hold them on the host. No Effect here.
 *
 * @since 0.1.0
 */
import { scalarSizes } from "./parameters.ts"
import type { ElementType } from "./parameters.ts"

export type { ElementType }

/** The typed array of each type. Those of 16-bit floats hold their bits. */
export interface ElementArrays {
  readonly i8: Int8Array<ArrayBuffer>
  readonly u8: Uint8Array<ArrayBuffer>
  readonly i16: Int16Array<ArrayBuffer>
  readonly u16: Uint16Array<ArrayBuffer>
  readonly i32: Int32Array<ArrayBuffer>
  readonly u32: Uint32Array<ArrayBuffer>
  readonly i64: BigInt64Array<ArrayBuffer>
  readonly u64: BigUint64Array<ArrayBuffer>
  readonly f16: Uint16Array<ArrayBuffer>
  readonly bf16: Uint16Array<ArrayBuffer>
  readonly f32: Float32Array<ArrayBuffer>
  readonly f64: Float64Array<ArrayBuffer>
}

/** A typed array as it is read from memory with elements of a type. */
export type ElementArray<Type extends ElementType = ElementType> = ElementArrays[Type]

interface ElementConstructor<A> {
  readonly BYTES_PER_ELEMENT: number
  new(length: number): A
  new(buffer: ArrayBuffer, byteOffset: number, length: number): A
}

/** The constructor of each typed array. */
export const elementConstructors: { readonly [Type in ElementType]: ElementConstructor<ElementArrays[Type]> } = {
  i8: Int8Array,
  u8: Uint8Array,
  i16: Int16Array,
  u16: Uint16Array,
  i32: Int32Array,
  u32: Uint32Array,
  i64: BigInt64Array,
  u64: BigUint64Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  f32: Float32Array,
  f64: Float64Array
}

/** Whether a value is the name of a type of elements. */
export const isElementType = (value: unknown): value is ElementType =>
  typeof value === "string" && Object.hasOwn(elementConstructors, value)

/** The accepted names of types, in words. */
export const elementWords = `one of ${Object.keys(elementConstructors).join(", ")}`

/** Size of an element in bytes; NaN for a value that is not a type. */
export const elementSizeOf = (type: ElementType): number => isElementType(type) ? scalarSizes[type] : Number.NaN

/** The type of the same name for each kind of typed array. */
interface UsualTypes {
  readonly Int8Array: "i8"
  readonly Uint8Array: "u8"
  readonly Uint8ClampedArray: "u8"
  readonly Int16Array: "i16"
  readonly Uint16Array: "u16"
  readonly Int32Array: "i32"
  readonly Uint32Array: "u32"
  readonly BigInt64Array: "i64"
  readonly BigUint64Array: "u64"
  readonly Float32Array: "f32"
  readonly Float64Array: "f64"
}

/** What else the elements of a kind of array may be. */
interface OtherTypes {
  readonly Uint8Array: ElementType
  readonly Uint16Array: "f16" | "bf16"
}

type TagOf<A> = A extends { readonly [Symbol.toStringTag]: infer Tag } ? Tag : unknown

/** The types of elements that a typed array can hold. A `Uint8Array` and a `DataView` hold bytes of any type. */
export type ElementTypeOf<A> = TagOf<A> extends infer Tag extends keyof UsualTypes
  ? UsualTypes[Tag] | (Tag extends keyof OtherTypes ? OtherTypes[Tag] : never)
  : ElementType

/** The type that the elements of a typed array have unless it is given: that of the same name. */
export type UsualTypeOf<A> = TagOf<A> extends infer Tag extends keyof UsualTypes ? UsualTypes[Tag] : ElementType

const all = Object.keys(elementConstructors).filter(isElementType)

const typesByTag: { readonly [Tag in keyof UsualTypes]: readonly [UsualTypes[Tag], ...ReadonlyArray<ElementType>] } = {
  Int8Array: ["i8"],
  Uint8Array: ["u8", ...all.filter((type) => type !== "u8")],
  Uint8ClampedArray: ["u8"],
  Int16Array: ["i16"],
  Uint16Array: ["u16", "f16", "bf16"],
  Int32Array: ["i32"],
  Uint32Array: ["u32"],
  BigInt64Array: ["i64"],
  BigUint64Array: ["u64"],
  Float32Array: ["f32"],
  Float64Array: ["f64"]
}

const isTag = (tag: string): tag is keyof UsualTypes => Object.hasOwn(typesByTag, tag)

/** The types of elements that a typed array can hold, the usual one first; undefined for other values. */
export const elementTypesOf = (array: unknown): readonly [ElementType, ...ReadonlyArray<ElementType>] | undefined => {
  const tag = ArrayBuffer.isView(array) && Symbol.toStringTag in array ? String(array[Symbol.toStringTag]) : ""
  return isTag(tag) ? typesByTag[tag] : undefined
}
