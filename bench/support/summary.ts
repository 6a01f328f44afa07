/**
 * The summary of a run in one table: every figure with its spread, compared with C and the best Python peer, and
 * whether it meets its target.
 */
import { printTable } from "./report.ts"
import type { Figure } from "./results.ts"
import { rounded, times } from "./statistics.ts"
import { targets } from "./targets.ts"

export type PartName = "gpu" | "noGpu"

/** The results with a GPU, or without one. */
export interface Part {
  readonly name: PartName
  readonly facts: Readonly<Record<string, string>>
  readonly figures: ReadonlyArray<Figure>
  /** The benchmarks that did not run, with the reasons. */
  readonly notRun: ReadonlyArray<string>
}

export const titles: Readonly<Record<PartName, string>> = { gpu: "With a GPU", noGpu: "Without a GPU" }

/** The names of the Python peers in tables. */
const pythonPeers = ["cuda.core", "CuPy", "PyTorch"]

/** The fastest Python peer of a figure. */
export const bestPython = ({ beside }: Figure): Figure["beside"][number] | undefined =>
  beside.filter(({ name }) => pythonPeers.includes(name.split(",")[0]!)).toSorted((left, right) =>
    left.median - right.median
  )[0]

export const valueOf = ({ unit }: Figure, value: number): string =>
  unit === "exponent" ? value.toFixed(2) : `${rounded(value)} ${unit}`

export const spreadOf = ({ high, low, unit }: Figure): string =>
  unit === "exponent" ? "" : `${rounded(low)}–${rounded(high)}`

/** The target of a figure, and whether it is met; empty if it has none. */
export const verdictOf = (figure: Figure): string => {
  if (figure.target === undefined) return ""
  const { isMet, text } = targets[figure.target]
  const met = isMet(figure)
  return met === undefined ? `${text}: not compared` : `${text}: ${met ? "met" : "not met"}`
}

/** The cost in C, in all variants, and the ratio to each. The stub's calls take almost no time, so it has no ratios. */
const besideC = (figure: Figure, part: PartName): ReadonlyArray<string> => {
  const references = figure.beside.filter(({ name }) => name === "C" || name.startsWith("C, "))
  const ratios = part === "gpu" ? references.map(({ median }) => times(figure.median, median)) : []
  return [references.map(({ median }) => rounded(median)).join(" / ") || "–", ratios.join(" / ") || "–"]
}

const besideRaw = ({ beside }: Figure): string => rounded(beside.find(({ name }) => name === "koffi")?.median)

const besidePython = (figure: Figure): ReadonlyArray<string> => {
  const best = bestPython(figure)
  return best === undefined
    ? ["–", "–"]
    : [`${best.name} ${rounded(best.median)}`, times(figure.median, best.median)]
}

export const describeFacts = (facts: Part["facts"]): ReadonlyArray<string> =>
  Object.entries(facts).map(([name, value]) => `${name}: ${value}`)

export const printSummary = (part: Part): void => {
  const { facts, figures, name, notRun } = part
  if (figures.length > 0) {
    console.log(`==== ${titles[name]}\n${describeFacts(facts).join("; ")}`)
    printTable(
      "Medians with 10th and 90th percentiles; × is the median divided by the column before it",
      ["", "median", "10–90 %", "raw koffi", "C", "×", "best Python peer", "×", "target"],
      figures.map((figure) => [
        `${figure.group}: ${figure.name}`,
        valueOf(figure, figure.median),
        spreadOf(figure),
        besideRaw(figure),
        ...besideC(figure, name),
        ...besidePython(figure),
        verdictOf(figure)
      ])
    )
  }
  for (const reason of notRun) console.log(`Not run: ${reason}`)
  console.log()
}
