/**
 * The performance targets of the library: a description of each, and whether a figure meets it. A comparison with a
 * peer is undecided if the peer is missing.
 */
import type { Figure } from "./results.ts"

interface Target {
  readonly text: string
  readonly isMet: (figure: Figure) => boolean | undefined
}

/** Compares a figure with one of its references. */
const beside = (figure: Figure, name: string, holds: (other: number) => boolean): boolean | undefined => {
  const other = figure.beside.find((reference) => reference.name === name)?.median
  return other === undefined ? undefined : holds(other)
}

/** False if any part is false, undefined if all are unknown. */
const all = (...parts: ReadonlyArray<boolean | undefined>): boolean | undefined =>
  parts.includes(false) ? false : parts.includes(true) ? true : undefined

const known = {
  operation: {
    text: "≤ cuda.core, < 2.2 × C",
    isMet: (figure) =>
      all(
        beside(figure, "cuda.core", (core) => figure.median <= core),
        beside(figure, "C", (c) => figure.median < 2.2 * c)
      )
  },
  launch: {
    text: "≤ 1.25 × C",
    isMet: (figure) => beside(figure, "C", (c) => figure.median <= 1.25 * c)
  },
  graphLaunch: {
    text: "≤ 1.3 × C",
    isMet: (figure) => beside(figure, "C", (c) => figure.median <= 1.3 * c)
  },
  collective: {
    text: "≥ 97 % of PyTorch's speed",
    isMet: (figure) => beside(figure, "PyTorch", (torch) => figure.median <= torch / 0.97)
  },
  latency: {
    text: "≤ 1.3 × C",
    isMet: (figure) => beside(figure, "C", (c) => figure.median <= 1.3 * c)
  },
  product: {
    text: "≥ 97 % of C's speed",
    isMet: (figure) => beside(figure, "C", (c) => c >= 0.97 * figure.median)
  },
  link: {
    text: "≥ 95 % of C's bandwidth",
    isMet: (figure) => beside(figure, "C", (c) => c >= 0.95 * figure.median)
  },
  encoder: {
    text: "< PyTorch's CUDA graph",
    isMet: (figure) => beside(figure, "PyTorch, CUDA graph", (torch) => figure.median < torch)
  },
  rebinding: {
    text: "≤ C + 0.3 µs",
    isMet: (figure) => beside(figure, "C", (c) => figure.median <= c + 300)
  },
  recording: { text: "≤ 2 µs", isMet: ({ median }) => median <= 2000 },
  simulated: { text: "< 2 µs", isMet: ({ median }) => median < 2000 },
  growth: { text: "linear: ≤ 1.1", isMet: ({ median }) => median <= 1.1 },
  loopDelay: { text: "< 5 ms at worst", isMet: ({ high }) => high < 5 },
  shortWait: {
    text: "≤ C, spinning + 10 µs",
    isMet: (figure) => beside(figure, "C, spinning", (c) => figure.median <= c + 10)
  },
  longWait: {
    text: "≤ 1.5 × C, blocking-sync",
    isMet: (figure) => beside(figure, "C, blocking-sync", (c) => figure.median <= 1.5 * c)
  },
  waitingCpu: { text: "< 1 %", isMet: ({ median }) => median < 1 }
} satisfies Record<string, Target>

export type TargetName = keyof typeof known

export const targets: Readonly<Record<TargetName, Target>> = known
