/**
 * BENCHMARKS.md: a part for each kind of machine, between comments that say which it is. A part is replaced when it was measured,
 * and stays as it is otherwise.
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

Written by \`npm run bench -- --write\`, never by hand. What is compared took turns in one run on one machine, so its ratios hold also
where the machine was busy with other things; figures of two runs cannot be compared. Each is the median of many batches or waits,
with what 10 and 90 % of them stay below. \`bench/\` says what each benchmark does, and \`bench/peers/\` is what it is compared with.
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

/** A column of a group's table; it is left out when it would be empty. */
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
    // A call of the stub takes next to no time, so a ratio to it says nothing.
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
