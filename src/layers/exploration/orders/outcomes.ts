/**
 * What came of a run: how the program ended, and the last contents of its buffers; and the first difference of two of them.
 */
import * as Cause from "effect/Cause"
import * as Exit from "effect/Exit"
import { CudaError } from "../../../CudaError.ts"

/** The last contents of a buffer: the bytes, or for a large one, a number for each block. */
export interface Contents {
  readonly byteLength: number
  /** Undefined if nothing has used them. */
  readonly bytes: Uint8Array | undefined
  readonly blocks: Uint32Array | undefined
  /** The line of the program that made the buffer. */
  readonly where: () => string | undefined
}

export interface Outcome {
  /** How the program ended, with plain values. */
  readonly end: Plain
  readonly buffers: ReadonlyMap<string, Contents>
}

/**
 * A difference between two runs.
 *
 * @category models
 * @since 0.1.0
 */
export type Difference =
  | {
    /** The program returned something else. */
    readonly _tag: "Result"
    /** Where in the result, for example `result.sums[3]`. */
    readonly path: string
    readonly expected: string
    readonly found: string
  }
  | {
    /** The program ended in another way: it failed, died, or hung. */
    readonly _tag: "Exit"
    readonly expected: string
    readonly found: string
  }
  | {
    /** The last contents of a buffer differ. */
    readonly _tag: "Bytes"
    /** The buffer, by the call that made it. */
    readonly buffer: string
    /** The first byte that differs. In buffers of more than 1 MiB, the first of its block of 4 KiB. */
    readonly offset: number
    readonly expected: string
    readonly found: string
  }

const largest = 2 ** 20
const blockSize = 4096

/** Copies the contents of a buffer. */
export const contentsOf = (
  bytes: Uint8Array | undefined,
  byteLength: number,
  where: () => string | undefined
): Contents => {
  if (bytes === undefined || byteLength <= largest) {
    return { byteLength, bytes: bytes?.slice(), blocks: undefined, where }
  }
  const blocks = new Uint32Array(Math.ceil(byteLength / blockSize))
  for (let block = 0; block < blocks.length; block++) {
    blocks[block] = hashOf(bytes.subarray(block * blockSize, (block + 1) * blockSize))
  }
  return { byteLength, bytes: undefined, blocks, where }
}

const hashOf = (bytes: Uint8Array): number => {
  let hash = 0x811c9dc5
  for (let index = 0; index < bytes.length; index++) hash = Math.imul(hash ^ bytes[index]!, 0x01000193)
  return hash >>> 0
}

/** A value that can be compared: text, numbers, or parts with names. */
export type Plain = string | PlainNumbers | PlainParts

interface PlainNumbers {
  readonly type: string
  readonly numbers: ArrayLike<number | bigint>
  readonly parts: undefined
}

interface PlainParts {
  readonly type: string
  readonly parts: ReadonlyArray<readonly [string, Plain]>
}

const deepest = 8

const isPlainObject = (value: object): boolean => {
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null
}

/** The plain form of a value. Handles and other instances of classes are their names. */
const plain = (value: unknown, depth = 0): Plain => {
  if (typeof value === "bigint") return `${value}n`
  if (typeof value === "string") return JSON.stringify(value)
  if (typeof value === "function") return "a function"
  if (typeof value === "number") return Object.is(value, -0) ? "-0" : `${value}`
  if (typeof value !== "object" || value === null) return String(value)
  if (depth > deepest) return "..."
  const deeper = (inner: unknown) => plain(inner, depth + 1)
  if (value instanceof CudaError) return `CudaError of ${value.operation}: ${value.reason._tag}`
  if (value instanceof Error) return `${"_tag" in value ? String(value._tag) : value.name}: ${value.message}`
  if (value instanceof ArrayBuffer) return deeper(new Uint8Array(value))
  if (value instanceof DataView) return deeper(new Uint8Array(value.buffer, value.byteOffset, value.byteLength))
  if (ArrayBuffer.isView(value)) {
    return { type: value.constructor.name, numbers: (value as Uint8Array).slice(), parts: undefined }
  }
  if (Array.isArray(value)) return list("array", value.map(deeper))
  if (value instanceof Map) {
    return list("Map", Array.from(value, ([key, inner]) => list("entry", [deeper(key), deeper(inner)])))
  }
  if (value instanceof Set) return list("Set", Array.from(value, deeper))
  if (value instanceof Date) return value.toISOString()
  const isData = isPlainObject(value) || ("_tag" in value && !("runtime" in value))
  if (!isData) return value.constructor.name
  return { type: "object", parts: Object.entries(value).map(([name, inner]) => [`.${name}`, deeper(inner)]) }
}

const list = (type: string, parts: ReadonlyArray<Plain>): Plain => ({
  type,
  parts: parts.map((part, index) => [`[${index}]`, part])
})

const endedWell = (value: unknown): PlainParts => ({ type: "success", parts: [["result", plain(value)]] })

/** How a program ended. `project` says what of its result counts. */
export const endOf = <A, E>(exit: Exit.Exit<A, E> | undefined, project: (value: A) => unknown): Plain => {
  if (exit === undefined) return "the program hangs"
  if (Exit.isSuccess(exit)) return endedWell(project(exit.value))
  const reasons = exit.cause.reasons.map((reason) => {
    if (Cause.isFailReason(reason)) return `fails with ${printed(plain(reason.error))}`
    return Cause.isDieReason(reason) ? `dies with ${printed(plain(reason.defect))}` : "is interrupted"
  })
  return `the program ${Array.from(new Set(reasons)).join(", and ")}`
}

const longest = 120

const printed = (value: Plain): string => {
  const text = typeof value === "string"
    ? value
    : value.parts === undefined
    ? `${value.type} [${Array.from(value.numbers).slice(0, 8).join(", ")}${value.numbers.length > 8 ? ", ..." : ""}]`
    : `${value.type} { ${value.parts.slice(0, 8).map(([name, part]) => `${name}: ${printed(part)}`).join(", ")} }`
  return text.length > longest ? `${text.slice(0, longest)}...` : text
}

/** The first difference of two outcomes; undefined if they are the same. */
export const differenceOf = (expected: Outcome, found: Outcome): Difference | undefined =>
  differenceOfEnds(expected.end, found.end) ?? differenceOfBuffers(expected.buffers, found.buffers)

const differenceOfEnds = (expected: Plain, found: Plain): Difference | undefined => {
  if (typeof expected !== "string" && typeof found !== "string") {
    const place = firstDifference(expected, found, "")
    return place && { _tag: "Result", ...place }
  }
  if (expected === found) return undefined
  return { _tag: "Exit", expected: printedEnd(expected), found: printedEnd(found) }
}

const printedEnd = (end: Plain): string =>
  typeof end === "string" ? end : `the program succeeds with ${printed(end.parts?.[0]?.[1] ?? "nothing")}`

interface Place {
  readonly path: string
  readonly expected: string
  readonly found: string
}

const firstDifference = (expected: Plain, found: Plain, path: string): Place | undefined => {
  if (typeof expected === "string" || typeof found === "string") {
    return expected === found ? undefined : { path, expected: printed(expected), found: printed(found) }
  }
  const whole = { path, expected: printed(expected), found: printed(found) }
  if (expected.type !== found.type) return whole
  if (expected.parts === undefined || found.parts === undefined) {
    return expected.parts === found.parts ? differenceOfNumbers(expected, found, path) : whole
  }
  if (expected.parts.length !== found.parts.length) return whole
  for (const [index, [name, part]] of expected.parts.entries()) {
    const [otherName, other] = found.parts[index]!
    if (name !== otherName) return whole
    const place = firstDifference(part, other, `${path}${name}`)
    if (place !== undefined) return place
  }
  return undefined
}

const differenceOfNumbers = (expected: Plain, found: Plain, path: string): Place | undefined => {
  const [before, after] = [numbersOf(expected), numbersOf(found)]
  if (before.length !== after.length) return { path, expected: printed(expected), found: printed(found) }
  for (let index = 0; index < before.length; index++) {
    if (Object.is(before[index], after[index])) continue
    return { path: `${path}[${index}]`, expected: `${before[index]}`, found: `${after[index]}` }
  }
  return undefined
}

const numbersOf = (value: Plain): ArrayLike<number | bigint> =>
  typeof value === "string" || value.parts !== undefined ? [] : value.numbers

const differenceOfBuffers = (
  expected: ReadonlyMap<string, Contents>,
  found: ReadonlyMap<string, Contents>
): Difference | undefined => {
  for (const [name, contents] of expected) {
    const other = found.get(name)
    if (other === undefined || other.byteLength !== contents.byteLength) {
      const [before, after] = [`${contents.byteLength} bytes`, other ? `${other.byteLength} bytes` : "no such buffer"]
      return { _tag: "Bytes", buffer: named(name, contents), offset: 0, expected: before, found: after }
    }
    const offset = differenceIn(contents, other)
    if (offset === undefined) continue
    const buffer = named(name, contents)
    return { _tag: "Bytes", buffer, offset, expected: byteAt(contents, offset), found: byteAt(other, offset) }
  }
  const more = Array.from(found.keys()).find((buffer) => !expected.has(buffer))
  if (more === undefined) return undefined
  const contents = found.get(more)!
  const { byteLength } = contents
  return {
    _tag: "Bytes",
    buffer: named(more, contents),
    offset: 0,
    expected: "no such buffer",
    found: `${byteLength} bytes`
  }
}

const named = (name: string, { where }: Contents): string => {
  const line = where()
  return `buffer of ${name}${line === undefined ? "" : ` (${line})`}`
}

const differenceIn = (one: Contents, other: Contents): number | undefined => {
  if (one.blocks !== undefined && other.blocks !== undefined) {
    const block = one.blocks.findIndex((hash, index) => hash !== other.blocks![index])
    return block < 0 ? undefined : block * blockSize
  }
  if (one.bytes === undefined && other.bytes === undefined) return one.blocks === other.blocks ? undefined : 0
  for (let index = 0; index < one.byteLength; index++) {
    if ((one.bytes?.[index] ?? 0) !== (other.bytes?.[index] ?? 0)) return index
  }
  return undefined
}

const byteAt = ({ blocks, bytes, byteLength }: Contents, offset: number): string => {
  if (blocks !== undefined) return `a block with the hash ${blocks[offset / blockSize]!.toString(16)}`
  const few = Array.from({ length: Math.min(8, byteLength - offset) }, (_, index) => bytes?.[offset + index] ?? 0)
  return few.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")
}

/** A difference in words. */
export const printDifference = (difference: Difference): string => {
  const { expected, found } = difference
  switch (difference._tag) {
    case "Result":
      return `${difference.path}: ${expected} as it happens, ${found} with this schedule`
    case "Exit":
      return `as it happens, ${expected}; with this schedule, ${found}`
    case "Bytes":
      return `${difference.buffer}, from byte ${difference.offset}: ${expected} as it happens, ${found} with this schedule`
  }
}
