/**
 * What benchmarks hand on of what they measured, besides printing it: figures, each with its spread and what was measured beside
 * it, and the facts of the machine. A benchmark that is started by another program leaves them in a file for it.
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

/** One thing that was measured: the median of many measurements, and what 10 and 90 % of them stay below. */
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

/** What a figure is about. */
export type Subject = Pick<Figure, "group" | "name" | "unit" | "target">

/** What was measured beside it, by name; what is empty is missing. */
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

/** What a benchmark leaves behind. */
export interface Results {
  /** What it ran on, in order. */
  readonly facts: Readonly<Record<string, string>>
  readonly figures: ReadonlyArray<Figure>
  /** Why it could not run here. */
  readonly notRun?: string | undefined
}

/** The environment variable with the path of the file. */
export const resultsVariable = "EFFECT_CUDA_BENCH_RESULTS"

/** A figure without a measurement is not one. */
export const leaveResults = (results: Results): void => {
  const path = process.env[resultsVariable]
  const figures = results.figures.filter(({ median }) => Number.isFinite(median))
  if (path !== undefined) writeFileSync(path, JSON.stringify({ ...results, figures }))
}

/** Nothing when the benchmark ended before it left any. */
export const takeResults = (path: string): Results | undefined => {
  try {
    return JSON.parse(readFileSync(path, "utf8"))
  } catch {
    return undefined
  }
}
