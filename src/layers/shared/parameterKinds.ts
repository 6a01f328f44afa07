/**
 * Compares declared parameters with those of a kernel whose kinds are known. The driver only checks sizes, so a wrong
 * kind of the same size would go unnoticed, and the kernel would compute with wrong values.
 */
import * as Predicate from "effect/Predicate"
import { isElementType } from "../../cuda/elements.ts"
import { alignUp, layOut, pointerSize, scalarSizes } from "../../cuda/parameters.ts"
import type { ArrayKind, ParameterKind, PointerKind, ScalarName, StructKind } from "../../cuda/parameters.ts"
import { counted, inBytes } from "../runtime/words.ts"

/** Whether a value is a kind as `CudaParameter` makes it: what it says about its layout is right. */
export const isKind = (value: unknown): value is ParameterKind => {
  if (!Predicate.hasProperty(value, "kind")) return false
  const { kind } = value
  if (kind === "pointer") return hasLayout(value, pointerSize, pointerSize) && hasElement(value)
  if (kind === "struct") return isStruct(value)
  if (kind === "array") return isArray(value)
  return Predicate.isString(kind) && isScalarName(kind) && hasLayout(value, scalarSizes[kind], scalarSizes[kind])
}

const isScalarName = (name: string): name is ScalarName => Object.hasOwn(scalarSizes, name)

const hasLayout = (value: object, size: number, align: number): boolean =>
  Predicate.hasProperty(value, "size") && value.size === size && Predicate.hasProperty(value, "align") &&
  value.align === align

const hasElement = (value: object): boolean =>
  !Predicate.hasProperty(value, "element") || value.element === undefined || isElementType(value.element)

/** A struct may be aligned to more than its fields. */
const isStruct = (value: object): boolean => {
  if (!Predicate.hasProperty(value, "fields") || !Predicate.isObject(value.fields)) return false
  const fields: ReadonlyArray<readonly [string, unknown]> = Object.entries(value.fields)
  const kinds = fields.map(([, field]) => field)
  if (kinds.length === 0 || !kinds.every(isKind)) return false
  const { align, offsets, size } = layOut(kinds)
  const own = Predicate.hasProperty(value, "align") ? Number(value.align) : Number.NaN
  return own >= align && Number.isInteger(Math.log2(own)) && hasLayout(value, alignUp(size, own), own) &&
    fields.every(([name], at) => offsetOf(value, name) === offsets[at])
}

const offsetOf = (value: object, name: string): unknown =>
  Predicate.hasProperty(value, "offsets") && Predicate.hasProperty(value.offsets, name)
    ? value.offsets[name]
    : undefined

const isArray = (value: object): boolean => {
  if (!Predicate.hasProperty(value, "element") || !isKind(value.element)) return false
  const { align, size } = value.element
  const length = Predicate.hasProperty(value, "length") ? Number(value.length) : Number.NaN
  return Number.isSafeInteger(length) && length >= 1 && hasLayout(value, size * length, align)
}

/** Where two kinds differ, and how. */
export interface KindDifference {
  readonly path: string
  readonly given: string
  readonly expected: string
}

/**
 * The first difference between a declared kind and the kernel's. Field names do not matter to a kernel. A pointer may
 * be declared with more access than the kernel uses, which at worst orders more than necessary, and without its element type.
 */
export const differenceOf = (given: ParameterKind, own: ParameterKind, path: string): KindDifference | undefined => {
  if (given.kind === "pointer" && own.kind === "pointer") {
    const isOther = given.element !== undefined && own.element !== undefined && given.element !== own.element
    return isOther || (given.access === "read" && own.access !== "read") ? difference(given, own, path) : undefined
  }
  if (given.kind === "struct" && own.kind === "struct") return differenceOfStructs(given, own, path)
  if (given.kind === "array" && own.kind === "array") return differenceOfArrays(given, own, path)
  return given.kind === own.kind ? undefined : difference(given, own, path)
}

const differenceOfStructs = (given: StructKind, own: StructKind, path: string): KindDifference | undefined => {
  const names = Object.keys(given.fields)
  const ownNames = Object.keys(own.fields)
  const isLaidOutAlike = given.size === own.size && names.length === ownNames.length &&
    names.every((name, index) => given.offsets[name] === own.offsets[ownNames[index]!])
  if (!isLaidOutAlike) return difference(given, own, path)
  for (const [index, name] of names.entries()) {
    const found = differenceOf(given.fields[name]!, own.fields[ownNames[index]!]!, `${path}.${name}`)
    if (found !== undefined) return found
  }
  return undefined
}

const differenceOfArrays = (given: ArrayKind, own: ArrayKind, path: string): KindDifference | undefined =>
  given.length === own.length ? differenceOf(given.element, own.element, `${path}[]`) : difference(given, own, path)

const difference = (given: ParameterKind, own: ParameterKind, path: string): KindDifference => ({
  path,
  given: describeKind(given),
  expected: describeKind(own)
})

const pointerNames: { readonly [Access in PointerKind["access"]]: string } = {
  read: "input",
  write: "output",
  readWrite: "pointer"
}

const describeKind = (kind: ParameterKind): string => {
  switch (kind.kind) {
    case "pointer":
      return kind.element === undefined ? pointerNames[kind.access] : `${pointerNames[kind.access]} of ${kind.element}`
    case "struct":
      return `struct of ${inBytes(kind.size)} with ${counted(Object.keys(kind.fields).length, "field")}`
    case "array":
      return `array of ${kind.length} × ${describeKind(kind.element)}`
    default:
      return kind.kind
  }
}
