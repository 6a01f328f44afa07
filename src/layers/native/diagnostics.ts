/**
 * Parses the compiler's log into diagnostics. Takes time linear in the size of the log and the sources, whatever the log contains.
 */
import type { Diagnostic } from "../../CudaError.ts"

type Severity = Diagnostic["severity"]

const place = String.raw`(.+?)(?:\((\d+)(?:,(\d+))?\)|:(\d+)(?::(\d+))?)`
const kind = String.raw`((?:catastrophic |fatal |internal )?error|warning|remark)(?: #([\w-]+))?`

/** `kernels.cu(12): error #20: …`, possibly with a column, or `kernels.cu:12:5: error: …`. */
const placed = new RegExp(String.raw`^${place}\s*: ${kind}\s*: (.*)$`)

/** `nvrtc: error: …`, `ptxas fatal   : …`: messages without a source location. */
const tool = /^(?:nvrtc|ptxas|nvlink|libnvvm)/i

const severityBefore = /(?:error|fatal|warning)$/i

const severityAfter = /^(error|fatal|warning)\s*: /i

const severityOf = (word: string): Severity =>
  /error|fatal/i.test(word) ? "error" : word.toLowerCase() === "remark" ? "remark" : "warning"

const numberOf = (digits: string | undefined): number | undefined => digits === undefined ? undefined : Number(digits)

type Sources = ReadonlyMap<string, string>

type Lines = ReadonlyArray<string>

/** The diagnostics of a log. Sources, by their file names, provide the text of the lines. */
export const parseLog = (log: string, sources: Sources): ReadonlyArray<Diagnostic> => {
  const diagnostics: Array<Diagnostic> = []
  const lines = linesOf(log)
  const lineIn = lineReader(sources)
  for (const [index, line] of lines.entries()) {
    const found = parseLine(line)
    if (found !== undefined) diagnostics.push(withText(found, lines.slice(index + 1, index + 3), lineIn))
  }
  return diagnostics
}

const linesOf = (text: string): Lines => text.split(/\r?\n/)

type LineReader = (file: string, line: number) => string | undefined

/** Splits each source once, since a log may have a diagnostic for every line. */
const lineReader = (sources: Sources): LineReader => {
  const split = new Map<string, Lines>()
  return (file, line) => {
    const source = sources.get(file)
    if (source === undefined) return undefined
    const lines = split.get(file) ?? linesOf(source)
    split.set(file, lines)
    return lines[line - 1]
  }
}

const parseLine = (line: string): Diagnostic | undefined => {
  const at = placed.exec(line)
  if (at !== null) {
    const [, file, line1, column1, line2, column2, severity = "", code, message = ""] = at
    return {
      severity: severityOf(severity),
      file,
      line: numberOf(line1 ?? line2),
      column: numberOf(column1 ?? column2),
      message,
      code,
      text: undefined
    }
  }
  return tool.test(line) ? parseUnplaced(line) : undefined
}

const parseUnplaced = (line: string): Diagnostic | undefined => {
  const colon = line.indexOf(":")
  if (colon < 0 || line[colon + 1] !== " ") return undefined
  const said = line.slice(colon + 2)
  const [before] = severityBefore.exec(line.slice(0, colon).trimEnd()) ?? []
  const [prefix = "", after] = severityAfter.exec(said) ?? []
  const severity = after ?? before
  if (severity === undefined) return undefined
  const nowhere = { file: undefined, line: undefined, column: undefined, code: undefined, text: undefined }
  return { severity: severityOf(severity), message: said.slice(prefix.length), ...nowhere }
}

/** After the message, the compiler prints the line, indented, and a caret under the column. */
const withText = (diagnostic: Diagnostic, following: Lines, lineIn: LineReader): Diagnostic => {
  const { file, line } = diagnostic
  if (file === undefined || line === undefined) return diagnostic
  const source = lineIn(file, line)
  const [printed = "", caret = ""] = following
  const column = caret.trim() === "^" ? caret.indexOf("^") - indentOf(printed) : undefined
  const text = source ?? (column === undefined ? undefined : printed.trim())
  const isSame = source !== undefined && source.trim() === printed.trim()
  if (diagnostic.column !== undefined || column === undefined || !isSame) return { ...diagnostic, text }
  return { ...diagnostic, text, column: column + indentOf(source) + 1 }
}

const indentOf = (line: string): number => line.length - line.trimStart().length
