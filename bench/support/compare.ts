/**
 * Compares operations across peers, calls in C in this process, raw koffi calls and Effects of the library.
 *
 * The Effects run in one fiber, in an `Effect.whileLoop` whose body creates and yields the operation each time, as
 * programs do. The cost of the same loop around `Effect.void` is subtracted. Raw calls run in a plain loop. Before
 * every batch the streams are drained outside the measurement, so that no queue of the driver fills up. All ways take
 * turns within a round, so ratios are valid on a shared machine. Figures are over batches.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../src/CudaError.ts"
import type { Driver } from "./driver.ts"
import { turn } from "./loop.ts"
import { measureEffect, measureRaw } from "./measure.ts"
import type { Peer } from "./peer.ts"
import { printTable } from "./report.ts"
import { makeFigure } from "./results.ts"
import type { Figure } from "./results.ts"
import { fixed, median, times } from "./statistics.ts"
import type { TargetName } from "./targets.ts"

/** An operation to measure in every way. */
export interface Operation<R = never> {
  readonly name: string
  /** The peers' name for it. A peer that does not have the operation returns nothing. */
  readonly peer: string
  /** Repetitions per batch: few enough not to fill the driver's queues. */
  readonly count: number
  /** Whether the stream is busy during the measurement. */
  readonly busy?: true
  /** Waits for the work of a batch as part of the measurement. Peers do so depending on the name. */
  readonly end?: (() => void) | undefined
  readonly raw?: () => void
  /** Repeats the calls in C in this process. Returns nanoseconds per repetition. */
  readonly here?: ((count: number) => number) | undefined
  readonly effect: () => Effect.Effect<unknown, CudaError, R>
  readonly target?: TargetName | undefined
}

export interface Comparison<R = never> {
  readonly operations: ReadonlyArray<Operation<R>>
  readonly peers: ReadonlyArray<Peer>
  /** Drains the streams, or makes them busy, before a batch. */
  readonly prepare: (busy: boolean) => Effect.Effect<void, CudaError>
  /** Makes the context current around raw calls. */
  readonly inContext?: Driver["inContext"] | undefined
  /** Warm-up rounds, which are not counted. Default 1. */
  readonly warmUps?: number | undefined
  readonly rounds?: number | undefined
  readonly batches?: number | undefined
}

/** Nanoseconds per operation in every batch, by way. */
export type Costs = ReadonlyMap<string, Array<number>>

/** The cost of an operation as an Effect, and in the other ways. */
export interface Compared<R = never> {
  readonly operation: Operation<R>
  readonly effect: ReadonlyArray<number>
  readonly loop: ReadonlyArray<number>
  readonly beside: Readonly<Record<string, ReadonlyArray<number>>>
}

const ways = { here: "C here", raw: "koffi", effect: "Effect", loop: "empty loop" }

export const compare = <R = never>(
  comparison: Comparison<R>
): Effect.Effect<ReadonlyArray<Compared<R>>, CudaError, R> =>
  Effect.gen(function*() {
    const { operations, peers, rounds = 8, warmUps = 1 } = comparison
    const names = [...peers.map(({ name }) => name), ...Object.values(ways)]
    const makeCosts = (): Costs => new Map(names.map((name) => [name, []]))
    const costs = operations.map(makeCosts)
    for (let round = -warmUps; round < rounds; round++) {
      for (const [index, operation] of operations.entries()) {
        yield* measureOnce(comparison, operation, round < 0 ? makeCosts() : costs[index]!)
        yield* turn
      }
    }
    return operations.map((operation, index) => summarize(operation, costs[index]!))
  })

const measureOnce = <R>(comparison: Comparison<R>, operation: Operation<R>, costs: Costs) =>
  Effect.gen(function*() {
    const { batches = 10, inContext = (body) => body(), peers, prepare } = comparison
    const { busy = false, count, effect, end, here, peer, raw } = operation
    for (const { ask, name } of peers) {
      costs.get(name)!.push(...(yield* ask(peer, count, batches)).map((nanos) => nanos / count))
    }
    for (let batch = 0; batch < batches; batch++) {
      if (here !== undefined && end === undefined) {
        yield* prepare(busy)
        costs.get(ways.here)!.push(inContext(() => here(count)))
      }
      if (raw !== undefined) {
        yield* prepare(busy)
        costs.get(ways.raw)!.push(inContext(() => measureRaw(raw, count, end)))
      }
      yield* prepare(busy)
      costs.get(ways.effect)!.push(yield* measureEffect(effect, count, end))
      costs.get(ways.loop)!.push(yield* measureEffect(() => Effect.void, count))
    }
    yield* prepare(false)
  })

const summarize = <R>(operation: Operation<R>, costs: Costs): Compared<R> => {
  const { [ways.effect]: effect = [], [ways.loop]: loop = [], ...beside } = Object.fromEntries(costs)
  const empty = median(loop)
  return { operation, effect: effect.map((nanos) => nanos - empty), loop, beside }
}

const nanosOf = { ns: 1, µs: 1e3, ms: 1e6 }

/** Prints a table with a row per operation and a column per way. */
export const printCompared = <R>(
  title: string,
  compared: ReadonlyArray<Compared<R>>,
  unit: keyof typeof nanosOf = "ns"
): void => {
  const cell = (nanos: number) => fixed(nanos / nanosOf[unit], unit === "ns" ? 0 : 2)
  const others = [...new Set(compared.flatMap(({ beside }) => Object.keys(beside)))]
    .filter((name) => compared.some(({ beside }) => (beside[name] ?? []).length > 0))
  const ratios = others.filter((name) => name !== "C")
  const rows = compared.map(({ beside, effect, loop, operation }) => {
    const [ours, c] = [median(effect), median(beside["C"] ?? [])]
    return [
      operation.name,
      cell(ours),
      ...others.map((name) => cell(median(beside[name] ?? []))),
      cell(median(loop)),
      ...(others.includes("C") ? [times(ours, c), ...ratios.map((name) => times(median(beside[name] ?? []), c))] : [])
    ]
  })
  const overC = others.includes("C") ? ["Effect / C", ...ratios.map((name) => `${name} / C`)] : []
  printTable(title, ["", "Effect", ...others, "empty loop", ...overC], rows)
}

export const comparedFigures = <R>(
  group: string,
  compared: ReadonlyArray<Compared<R>>,
  unit: keyof typeof nanosOf = "ns"
): ReadonlyArray<Figure> => {
  const inUnit = (values: ReadonlyArray<number>) => values.map((nanos) => nanos / nanosOf[unit])
  return compared.map(({ beside, effect, operation: { name, target } }) =>
    makeFigure(
      { group, name, unit, target },
      inUnit(effect),
      Object.fromEntries(Object.entries(beside).map(([way, values]) => [way, inUnit(values)]))
    )
  )
}
