/**
 * The results of a benchmark: figures, each with its spread and references, and the facts of the machine. If another
 * program started the benchmark, it writes the results to a file for that program.
 */
import { readFileSync, writeFileSync } from "node:fs"
import { quantile } from "./statistics.ts"
import type { TargetName } from "./targets.ts"

export type Unit = "ns" | "µs" | "ms" | "%" | "bytes" | "GB/s" | "exponent"

/** The same work, done by something else in the same run. */
export interface Reference {
  readonly name: string
  readonly median: number
}

/** A measurement: the median, and the 10th and 90th percentiles. */
export interface Figure {
  readonly group: string
  readonly name: string
  readonly unit: Unit
  readonly median: number
  readonly low: number
  readonly high: number
  readonly beside: ReadonlyArray<Reference>
  readonly target?: TargetName | undefined
}

/** The subject of a figure. */
export type Subject = Pick<Figure, "group" | "name" | "unit" | "target">

/** References for comparison, by name. Empty arrays are omitted. */
export type Beside = Readonly<Record<string, ReadonlyArray<number>>>

export const makeFigure = (subject: Subject, values: ReadonlyArray<number>, beside: Beside = {}): Figure => ({
  ...subject,
  median: quantile(values, 0.5),
  low: quantile(values, 0.1),
  high: quantile(values, 0.9),
  beside: Object.entries(beside).flatMap(([name, others]) =>
    others.length === 0 ? [] : [{ name, median: quantile(others, 0.5) }]
  )
})

/** The results of a benchmark. */
export interface Results {
  /** The facts of the machine, in order. */
  readonly facts: Readonly<Record<string, string>>
  readonly figures: ReadonlyArray<Figure>
  /** The reason if it could not run. */
  readonly notRun?: string | undefined
}

/** The environment variable with the path of the results file. */
export const resultsVariable = "EFFECT_CUDA_BENCH_RESULTS"

/** Writes the results, without figures that have no measurement. */
export const leaveResults = (results: Results): void => {
  const path = process.env[resultsVariable]
  const figures = results.figures.filter(({ median }) => Number.isFinite(median))
  if (path !== undefined) writeFileSync(path, JSON.stringify({ ...results, figures }))
}

/** Reads the results; undefined if the benchmark ended before writing them. */
export const takeResults = (path: string): Results | undefined => {
  try {
    return JSON.parse(readFileSync(path, "utf8"))
  } catch {
    return undefined
  }
}
