/**
 * What the compiler's log says, place by place.
 */
import type { Diagnostic } from "../../CudaError.ts"

type Severity = Diagnostic["severity"]

const place = String.raw`(.+?)(?:\((\d+)(?:,(\d+))?\)|:(\d+)(?::(\d+))?)`
const kind = String.raw`((?:catastrophic |fatal |internal )?error|warning|remark)(?: #([\w-]+))?`

/** `kernels.cu(12): error #20: …`, also with a column, or as `kernels.cu:12:5: error: …`. */
const placed = new RegExp(String.raw`^${place}\s*: ${kind}\s*: (.*)$`)

/** `nvrtc: error: …`, `ptxas fatal   : …`: of no place. */
const unplaced = /^(?:nvrtc|ptxas|nvlink|libnvvm)[^:]*?(error|fatal|warning)?\s*: (?:(error|fatal|warning)\s*: )?(.*)$/i

const severityOf = (word: string): Severity =>
  /error|fatal/i.test(word) ? "error" : word.toLowerCase() === "remark" ? "remark" : "warning"

const numberOf = (digits: string | undefined): number | undefined => digits === undefined ? undefined : Number(digits)

/** The diagnostics of a log, with the lines of the sources that are given by the names of their files. */
export const parseLog = (
  log: string,
  sources: Readonly<Record<string, string>>
): ReadonlyArray<Diagnostic> => {
  const diagnostics: Array<Diagnostic> = []
  const lines = log.split(/\r?\n/)
  for (const [index, line] of lines.entries()) {
    const found = parseLine(line)
    if (found !== undefined) diagnostics.push(withText(found, lines.slice(index + 1, index + 3), sources))
  }
  return diagnostics
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
  const [, before, after, message = ""] = unplaced.exec(line) ?? []
  const severity = after ?? before
  if (severity === undefined) return undefined
  const nowhere = { file: undefined, line: undefined, column: undefined, code: undefined, text: undefined }
  return { severity: severityOf(severity), message, ...nowhere }
}

/** The compiler prints the line after its message, indented, and a caret under the column. */
const withText = (
  diagnostic: Diagnostic,
  following: ReadonlyArray<string>,
  sources: Readonly<Record<string, string>>
): Diagnostic => {
  const { file, line } = diagnostic
  if (file === undefined || line === undefined) return diagnostic
  const source = Object.hasOwn(sources, file) ? sources[file]!.split(/\r?\n/)[line - 1] : undefined
  const [printed = "", caret = ""] = following
  const column = /^\s*\^\s*$/.test(caret) ? caret.indexOf("^") - indentOf(printed) : undefined
  const text = source ?? (column === undefined ? undefined : printed.trim())
  const isSame = source !== undefined && source.trim() === printed.trim()
  if (diagnostic.column !== undefined || column === undefined || !isSame) return { ...diagnostic, text }
  return { ...diagnostic, text, column: column + indentOf(source) + 1 }
}

const indentOf = (line: string): number => line.length - line.trimStart().length
