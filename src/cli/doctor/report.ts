/**
 * What the doctor found: a list of findings, as text and as JSON.
 */

/** `note`: works without it. `warning`: works, but not well. `problem`: programs cannot use the GPU. */
export type Verdict = "ok" | "note" | "warning" | "problem"

export interface Finding {
  readonly section: string
  readonly subject: string
  readonly verdict: Verdict
  /** What was found, or what is wrong. */
  readonly found: string
  /** What to do about it. */
  readonly advice?: string | undefined
  /** The same for programs: versions, paths, sizes in bytes, rates in bytes per second, times in seconds. */
  readonly details?: Readonly<Record<string, string | number | boolean>> | undefined
}

export interface Report {
  /** Whether programs can use a GPU of this machine. */
  readonly ok: boolean
  readonly findings: ReadonlyArray<Finding>
}

export const reportOf = (findings: ReadonlyArray<Finding>): Report => ({
  ok: findings.every(({ verdict }) => verdict !== "problem"),
  findings
})

export const finding = (
  section: string,
  subject: string,
  verdict: Verdict,
  found: string,
  more: Pick<Finding, "advice" | "details"> = {}
): Finding => ({ section, subject, verdict, found, ...more })

const signs: { readonly [V in Verdict]: string } = { ok: "✓", note: "–", warning: "!", problem: "✗" }

export const toJson = (report: Report): string => JSON.stringify(report, undefined, 2)

/** Sections with a line per finding; longer texts and advice go below, indented. */
export const toText = ({ findings, ok }: Report): string => {
  const width = Math.max(...findings.map(({ subject }) => subject.length))
  const lines: Array<string> = []
  let current = ""
  for (const { advice, found, section, subject, verdict } of findings) {
    if (section !== current) lines.push(...lines.length === 0 ? [] : [""], section)
    current = section
    const [first = "", ...rest] = found.split("\n")
    lines.push(`  ${signs[verdict]} ${subject.padEnd(width)}  ${first}`)
    const indent = " ".repeat(width + 6)
    lines.push(...rest.map((line) => indent + line))
    if (advice !== undefined) lines.push(`${indent}→ ${advice}`)
  }
  lines.push("", summary(findings, ok))
  return lines.join("\n")
}

const summary = (findings: ReadonlyArray<Finding>, ok: boolean): string => {
  const problems = findings.filter(({ verdict }) => verdict === "problem").length
  const warnings = findings.filter(({ verdict }) => verdict === "warning").length
  const counted = (count: number, word: string) => `${count} ${word}${count === 1 ? "" : "s"}`
  const said = [
    ...problems > 0 ? [counted(problems, "problem")] : [],
    ...warnings > 0 ? [counted(warnings, "warning")] : []
  ]
  const end = said.length === 0 ? "" : ` (${said.join(", ")})`
  return ok ? `Programs can use the GPU${end}.` : `Programs cannot use a GPU${end}. They can run on simulated devices.`
}
