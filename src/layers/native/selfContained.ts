/**
 * Decides whether a compilation depends only on its request. Only such programs are cached: the content of files, and
 * the time, may differ in the next run.
 *
 * The answer errs on the side of "no". Source text is not preprocessed here: comments, string literals and inactive
 * branches are searched too. Only a name that a macro pastes together (`__TI ## ME__`) stays hidden.
 */
import { isFileOption } from "../../cuda/nvrtc.ts"
import type { Job } from "./nvrtcProgram.ts"

/** Macros and directives whose result depends on files or on the time, anywhere in the source. */
const volatile = /\b(?:__has_include|__has_include_next|__has_embed|__TIME__|__DATE__|__TIMESTAMP__)\b/

/** Text after which compilers disagree on whether the next line continues the current one. */
const ambiguousSplice = /\?\?\/|\\[^\S\n]+\n/

const directive = /include_next\b|include\b|import\b|embed\b/g

const includedName = /[ \t]*(?:"([^"\n]*)"|<([^>\n]*)>)/y

export const isSelfContained = ({ headers, nameExpressions, options, source }: Job): boolean => {
  if (options.some((option) => isFileOption(option) || volatile.test(option))) return false
  if (nameExpressions.some((expression) => volatile.test(expression))) return false
  const known = new Set(headers.map(([name]) => name))
  return includesOnly(source, known) && headers.every(([, content]) => includesOnly(content, known))
}

const includesOnly = (raw: string, known: ReadonlySet<string>): boolean => {
  const lines = raw.replace(/\r\n?/g, "\n")
  if (ambiguousSplice.test(lines)) return false
  const text = lines.replaceAll("\\\n", "")
  if (volatile.test(text)) return false
  for (const { 0: word, index } of text.matchAll(directive)) {
    if (!isDirective(text, index)) continue
    if (word !== "include") return false
    includedName.lastIndex = index + word.length
    const [, quoted, bracketed] = includedName.exec(text) ?? []
    const name = quoted ?? bracketed
    if (name === undefined || !known.has(name)) return false
  }
  return true
}

/** Whether a word may follow the `#` of a directive, or its digraph or trigraph, with comments in between. */
const isDirective = (text: string, at: number): boolean => {
  const before = skipBlanksBack(text, at)
  if (text.endsWith("*/", before)) return true
  const mark = ["#", "%:", "??="].find((one) => text.endsWith(one, before))
  return mark !== undefined && isLineStart(text, skipBlanksBack(text, before - mark.length))
}

/** A comment may begin on an earlier line, so one that ends here may stand at the start of the line. */
const isLineStart = (text: string, at: number): boolean => at === 0 || text[at - 1] === "\n" || text.endsWith("*/", at)

const skipBlanksBack = (text: string, from: number): number => {
  let at = from
  while (at > 0 && isBlank(text[at - 1]!)) at--
  return at
}

const isBlank = (character: string): boolean => character !== "\n" && character.trim() === ""
