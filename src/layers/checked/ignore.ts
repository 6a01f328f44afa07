/**
 * Which reports are ignored: rules, and functions of the program, with the number of reports that each has ignored.
 *
 * @since 0.1.0
 */
import type { MemoryRef, PointerArgument, StreamRef } from "../CudaRuntime.ts"
import { accessesIn } from "./reports.ts"
import type { Report } from "./reports.ts"

/**
 * What a text of a report must be: the text itself, a pattern in it, or for `source`, a part of it.
 *
 * @category models
 * @since 0.1.0
 */
export type TextMatch = string | RegExp

/**
 * What one of the accesses of a report must match, or, as a pair, what its two accesses must match, in either order.
 *
 * @category models
 * @since 0.1.0
 */
export type AccessMatch<A> = A | readonly [one: A, other: A]

/**
 * Reports to ignore: those that match everything that the rule names. A rule that names nothing ignores nothing.
 *
 * @category models
 * @since 0.1.0
 */
export interface IgnoreRule {
  /** Why these reports are ignored, for readers and for `Checker.summary`. */
  readonly reason: string
  /** The kinds of reports. */
  readonly report?: Report["_tag"] | ReadonlyArray<Report["_tag"]> | undefined
  /**
   * The operations, by name, for example `CudaMemory.copy`. `CudaKernel.launch` is every launch, and `CudaKernel.launch of add` one of
   * this kernel.
   */
  readonly operation?: AccessMatch<TextMatch> | undefined
  /** A part of where the operations are: the name of a span, or a file (see `CheckedAccess.frame`). */
  readonly source?: AccessMatch<TextMatch> | undefined
  /** The streams, or `the host`. */
  readonly stream?: AccessMatch<TextMatch | { readonly ref: StreamRef }> | undefined
  /** A buffer or a slice of one that has all bytes of the report, or the buffer as it is printed. */
  readonly memory?: PointerArgument | TextMatch | undefined
  /** The bytes, from the start of their buffer, that have all bytes of the report. */
  readonly bytes?: { readonly from: number; readonly to: number } | undefined
}

/**
 * Reports to ignore: a rule, or a function that returns true for them.
 *
 * @category models
 * @since 0.1.0
 */
export type Ignore = IgnoreRule | ((report: Report) => boolean)

/**
 * A rule or function, and how many reports it has ignored.
 *
 * @category models
 * @since 0.1.0
 */
export interface IgnoreCount {
  readonly ignore: Ignore
  /** The number of reports that it ignored. Those that several match count for the first. */
  readonly ignored: number
}

interface Entry {
  readonly ignore: Ignore
  ignored: number
}

/** What is ignored by one checker. */
export class IgnoreList {
  readonly #entries: Array<Entry> = []
  readonly #active = new Set<Entry>()

  constructor(ignore: Ignore | ReadonlyArray<Ignore> = []) {
    for (const one of isList(ignore) ? ignore : [ignore]) this.add(one)
  }

  get counts(): ReadonlyArray<IgnoreCount> {
    return this.#entries.map((entry) => ({ ...entry }))
  }

  /** Returns a function that removes it again. It is counted nevertheless. */
  add(ignore: Ignore): () => void {
    const entry = { ignore, ignored: 0 }
    this.#entries.push(entry)
    this.#active.add(entry)
    return () => void this.#active.delete(entry)
  }

  /** Whether a report is ignored. Counts it. */
  readonly ignores = (report: Report): boolean => {
    for (const entry of this.#active) {
      if (!matches(entry.ignore, report)) continue
      entry.ignored++
      return true
    }
    return false
  }
}

const isList = (ignore: Ignore | ReadonlyArray<Ignore>): ignore is ReadonlyArray<Ignore> => Array.isArray(ignore)

const matches = (ignore: Ignore, report: Report): boolean =>
  typeof ignore === "function" ? ignore(report) === true : criteria.some((has) => has(ignore)) && fits(ignore, report)

const criteria: ReadonlyArray<(rule: IgnoreRule) => boolean> = [
  ({ report }) => report !== undefined,
  ({ operation }) => operation !== undefined,
  ({ source }) => source !== undefined,
  ({ stream }) => stream !== undefined,
  ({ memory }) => memory !== undefined,
  ({ bytes }) => bytes !== undefined
]

const fits = (rule: IgnoreRule, report: Report): boolean => {
  const accesses = accessesIn(report)
  return isKind(rule.report, report) &&
    areMatched(rule.operation, accesses.map(({ operation }) => operation), isOperation) &&
    areMatched(rule.source, accesses.map(({ frame }) => frame), isSource) &&
    areMatched(rule.stream, accesses.map(({ stream }) => stream), isStream) &&
    isMemory(rule.memory, report) &&
    isInside(rule.bytes, report)
}

const isKind = (kinds: IgnoreRule["report"], { _tag }: Report): boolean =>
  kinds === undefined || kinds === _tag || (Array.isArray(kinds) && kinds.includes(_tag))

/** Whether any text matches, or for a pair, both do in either order. */
const areMatched = <A>(
  match: AccessMatch<A> | undefined,
  texts: ReadonlyArray<string | undefined>,
  test: (match: A, text: string) => boolean
): boolean => {
  if (match === undefined) return true
  const is = (one: A, text: string | undefined) => text !== undefined && test(one, text)
  if (!isPair(match)) return texts.some((text) => is(match, text))
  const [one, other] = match
  const [first, second] = texts
  return (is(one, first) && is(other, second)) || (is(one, second) && is(other, first))
}

const isPair = <A>(match: AccessMatch<A>): match is readonly [A, A] => Array.isArray(match)

const isOperation = (match: TextMatch, text: string): boolean =>
  typeof match === "string" ? text === match || text.startsWith(`${match} of `) : found(match, text)

const isSource = (match: TextMatch, text: string): boolean =>
  typeof match === "string" ? text.includes(match) : found(match, text)

const isStream = (match: TextMatch | { readonly ref: StreamRef }, text: string): boolean => {
  if (match instanceof RegExp) return found(match, text)
  return text === (typeof match === "string" ? match : String(match.ref))
}

/** Patterns may be sticky or global, which keep where they last matched. */
const found = (pattern: RegExp, text: string): boolean => text.search(pattern) >= 0

const isMemory = (match: IgnoreRule["memory"], report: Report): boolean => {
  if (match === undefined) return true
  if (!("bytes" in report)) return false
  const { memory } = report.bytes
  if (match instanceof RegExp) return found(match, memory)
  if (typeof match === "string") return memory === match
  const { buffer, byteLength, offset } = match
  return memory === printed(buffer.ref) && isInside({ from: offset, to: offset + byteLength }, report)
}

const printed = (memory: MemoryRef): string => String(memory)

const isInside = (bytes: IgnoreRule["bytes"], report: Report): boolean => {
  if (bytes === undefined) return true
  if (!("bytes" in report)) return false
  const { byteLength, offset } = report.bytes
  return offset >= bytes.from && offset + byteLength <= bytes.to
}
