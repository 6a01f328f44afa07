/**
 * BENCHMARKS.md, with a part per kind of machine between marker comments. A part is replaced if it was measured, and
 * kept otherwise.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { markdownTable } from "./report.ts"
import type { Figure } from "./results.ts"
import { rounded, times } from "./statistics.ts"
import { bestPython, describeFacts, spreadOf, titles, valueOf, verdictOf } from "./summary.ts"
import type { Part, PartName } from "./summary.ts"

const path = fileURLToPath(new URL("../../BENCHMARKS.md", import.meta.url))

const introduction = `# Benchmarks

Written by \`npm run bench -- --write\`, never by hand. Everything that is compared took turns in one run on one machine, so ratios are
valid even if the machine was shared; do not compare figures of two runs. Each figure is the median of many batches or waits, with the
10th and 90th percentiles. \`bench/\` documents each benchmark, and \`bench/peers/\` contains the programs they are compared with.
`

const order: ReadonlyArray<PartName> = ["gpu", "noGpu"]
const open = (name: PartName): string => `<!-- ${titles[name]} -->`
const close = (name: PartName): string => `<!-- End: ${titles[name]} -->`

/** Replaces the parts that were measured. */
export const writeDocument = (measured: ReadonlyArray<Part>): void => {
  const before = existsSync(path) ? readFileSync(path, "utf8") : ""
  const parts = order.flatMap((name) => {
    const part = measured.find((candidate) => candidate.name === name)
    return part === undefined ? keep(before, name) : [write(part)]
  })
  writeFileSync(path, [introduction, ...parts].join("\n"))
  console.log(`BENCHMARKS.md: ${measured.map(({ name }) => titles[name]).join(", ") || "nothing to write"}`)
}

const keep = (document: string, name: PartName): ReadonlyArray<string> => {
  const start = document.indexOf(open(name))
  const end = document.indexOf(close(name), start)
  return start < 0 || end < 0 ? [] : [`${document.slice(start, end)}${close(name)}\n`]
}

const write = (part: Part): string => {
  const { facts, figures, name, notRun } = part
  const groups = [...new Set(figures.map(({ group }) => group))]
  const date = new Date().toISOString().slice(0, 10)
  return [
    open(name),
    `## ${titles[name]}`,
    "",
    `Measured on ${date} by \`npm run bench -- --write\`.`,
    "",
    ...describeFacts(facts).map((fact) => `- ${fact}`),
    ...notRun.map((reason) => `- Not run: ${reason}`),
    "",
    ...groups.flatMap((group) => [
      `### ${group}`,
      "",
      writeGroup(figures.filter((figure) => figure.group === group), name),
      ""
    ]),
    close(name),
    ""
  ].join("\n")
}

/** A column of a group's table. Omitted if it would be empty. */
interface Column {
  readonly name: string
  readonly cell: (figure: Figure) => string
}

const writeGroup = (figures: ReadonlyArray<Figure>, part: PartName): string => {
  const references = [...new Set(figures.flatMap(({ beside }) => beside.map(({ name }) => name)))]
  const columns: ReadonlyArray<Column> = [
    { name: "", cell: ({ name }) => name },
    { name: "median", cell: (figure) => valueOf(figure, figure.median) },
    { name: "10–90 %", cell: spreadOf },
    ...references.map((name): Column => ({ name, cell: (figure) => rounded(besideNamed(figure, name)) })),
    // The stub's calls take almost no time, so a ratio to them is meaningless.
    ...(part === "gpu" ? [{ name: "× C", cell: (figure: Figure) => ratioTo(figure, besideNamed(figure, "C")) }] : []),
    { name: "× best Python peer", cell: (figure) => ratioTo(figure, bestPython(figure)?.median) },
    { name: "target", cell: verdictOf }
  ]
  const used = columns.filter(({ cell, name }) =>
    name === "" || figures.some((figure) => cell(figure) !== "" && cell(figure) !== "–")
  )
  return markdownTable(used.map(({ name }) => name), figures.map((figure) => used.map(({ cell }) => cell(figure))))
}

const besideNamed = ({ beside }: Figure, name: string): number | undefined =>
  beside.find((reference) => reference.name === name)?.median

const ratioTo = ({ median }: Figure, reference: number | undefined): string => times(median, reference)
