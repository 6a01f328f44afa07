/**
 * The throughput of a pipeline that moves chunks through the GPU and back: `CudaPipeline.through`, compared with a loop
 * in C with the same chunks, slots and work, which is one copy of the chunk on the device. For reference, C measures
 * the link to the GPU in the same run: back-to-back copies of 16 MiB from and to pinned memory, one way at a time and
 * both ways at once.
 *
 * In the first table the data is already in pinned memory, so that it shows the pipeline without copies by the CPU. In
 * the second, the CPU copies every chunk in and out on the single thread. Times are from the delivery of the last
 * warm-up to the delivery of the last chunk. All ways take turns within a round; figures are medians of rounds.
 * "Polled" is the library with waits that poll until they end; by default they poll for a while, then the GPU wakes the
 * event loop.
 */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaPipeline from "../src/CudaPipeline.ts"
import { CudaRuntime, CurrentWaitOptions } from "../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../src/layers/NativeRuntime.ts"
import { turn } from "./support/loop.ts"
import { startPeer } from "./support/peer.ts"
import type { Peer } from "./support/peer.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import type { Figure } from "./support/results.ts"
import { runOnGpu } from "./support/run.ts"
import { fixed, median } from "./support/statistics.ts"

const mebibyte = 1024 * 1024
const warmUps = 16
const largest = { chunk: 16 * mebibyte, slots: 4 }

/** The parameters of one measurement. */
interface Load {
  /** Chunk size in MiB. */
  readonly chunk: number
  readonly slots: number
  readonly isCopying: boolean
  readonly count: number
}

const makeLoads = (
  chunks: ReadonlyArray<number>,
  slots: ReadonlyArray<number>,
  options: { readonly total: number; readonly isCopying: boolean }
): ReadonlyArray<Load> =>
  chunks.flatMap((chunk) =>
    slots.map((count) => ({ chunk, slots: count, isCopying: options.isCopying, count: options.total / chunk }))
  )

const plain = { loads: makeLoads([1, 4, 8, 16], [2, 3, 4], { total: 1024, isCopying: false }), rounds: 9 }
const copying = { loads: makeLoads([4, 16], [3], { total: 512, isCopying: true }), rounds: 5 }

/** Copies chunks into and out of pinned memory, or does nothing. */
const makeTransfers = ({ chunk, isCopying }: Load) => {
  const bytes = chunk * mebibyte
  if (!isCopying) return { fill: () => Effect.succeed(bytes), take: () => Effect.void }
  const source = new Uint8Array(4 * largest.chunk).fill(2)
  const target = new Uint8Array(4 * largest.chunk).fill(3)
  const place = (index: number) => index % (source.byteLength / bytes) * bytes
  return {
    fill: (index: number, into: Uint8Array) =>
      Effect.sync(() => {
        into.set(source.subarray(place(index), place(index) + bytes))
        return bytes
      }),
    take: (result: Uint8Array, index: number) => Effect.sync(() => target.set(result, place(index)))
  }
}

/** Sends chunks through the pipeline, and returns the time in nanoseconds. */
const measureOurs = (load: Load, transfers: ReturnType<typeof makeTransfers>) =>
  Effect.suspend(() => {
    let delivered = 0
    let start = 0
    let end = 0
    const deliver = Effect.sync(() => {
      end = performance.now()
      if (++delivered === warmUps) start = end
    })
    return Stream.range(0, warmUps + load.count - 1).pipe(
      CudaPipeline.through({
        slots: load.slots,
        inputBytes: load.chunk * mebibyte,
        work: ({ input, output }) => CudaMemory.copy(output, input),
        ...transfers
      }),
      Stream.runForEach(() => deliver),
      Effect.map(() => (end - start) * 1e6)
    )
  })

const measureInC = (peer: Peer, { chunk, count, isCopying, slots }: Load) =>
  Effect.map(
    peer.ask(isCopying ? "copying" : "run", chunk * mebibyte, slots, count, warmUps),
    ([nanos]) => nanos ?? Number.NaN
  )

/** Nanoseconds of each round, by way. */
interface Times {
  readonly c: Array<number>
  readonly ours: Array<number>
  readonly polled: Array<number>
}

const polling = Effect.provideService(CurrentWaitOptions, { pollFor: "1 second" })

const measure = (
  peer: Peer | undefined,
  load: Load,
  rounds: number
): Effect.Effect<Times, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const measured: Times = { c: [], ours: [], polled: [] }
    const transfers = makeTransfers(load)
    for (let round = -1; round < rounds; round++) {
      // The first round pins memory and compiles. It is not counted.
      const kept: Times = round < 0 ? { c: [], ours: [], polled: [] } : measured
      if (peer !== undefined) kept.c.push(yield* measureInC(peer, load))
      kept.ours.push(yield* measureOurs(load, transfers))
      kept.polled.push(yield* polling(measureOurs(load, transfers)))
      yield* turn
    }
    return measured
  })

/** Gigabytes per second, each way. */
const bandwidth = (bytes: number, nanos: number): number => bytes / nanos

const ways = ["up", "down", "both"] as const

/** The bandwidth of the link, each way, in gigabytes per second. */
type Link = Record<(typeof ways)[number], Array<number>>

const measureLink = (peer: Peer, link: Link) =>
  Effect.gen(function*() {
    const count = 64
    for (const way of ways) {
      const [nanos] = yield* peer.ask("link", way, largest.chunk, count)
      link[way].push(bandwidth(largest.chunk * count, nanos ?? Number.NaN))
    }
  })

const figuresOf = (
  group: string,
  loads: ReadonlyArray<Load>,
  results: ReadonlyArray<Times>
): ReadonlyArray<Figure> =>
  loads.map(({ chunk, count, slots }, index) => {
    const { c, ours, polled } = results[index]!
    const perChunk = (values: ReadonlyArray<number>) => values.map((nanos) => nanos / count / 1e3)
    return makeFigure(
      { group, name: `${chunk} MiB, ${slots} slots`, unit: "µs" },
      perChunk(ours),
      { C: perChunk(c), polled: perChunk(polled) }
    )
  })

const printLoads = (title: string, loads: ReadonlyArray<Load>, results: ReadonlyArray<Times>, link: Link): void => {
  const limit = median(link.both)
  const rows = loads.map(({ chunk, count, slots }, index) => {
    const [c, ours, polled] = [results[index]!.c, results[index]!.ours, results[index]!.polled].map(median)
    const rates = [c, ours, polled].map((nanos) => bandwidth(chunk * mebibyte * count, nanos!))
    return [
      `${chunk} MiB, ${slots} slots`,
      ...rates.map((rate) => fixed(rate)),
      `${fixed(rates[1]! / limit * 100, 0)} %`,
      fixed(c! / count / 1e3),
      fixed(ours! / count / 1e3),
      fixed(ours! / c!, 3),
      fixed(polled! / c!, 3)
    ]
  })
  printTable(
    title,
    ["", "C GB/s", "ours", "polled", "of the link", "C µs/chunk", "ours", "ours / C", "polled / C"],
    rows
  )
}

await runOnGpu("pipeline", (ground) =>
  Effect.gen(function*() {
    const peer = yield* startPeer("pipeline", ground)
    if (peer !== undefined) yield* peer.ask("memory", largest.chunk, largest.slots)
    const link: Link = { up: [], down: [], both: [] }
    const measureAll = Effect.fnUntraced(function*({ loads, rounds }: typeof plain) {
      const results: Array<Times> = []
      for (const load of loads) {
        if (peer !== undefined) yield* measureLink(peer, link)
        results.push(yield* measure(peer, load, rounds))
      }
      return results
    })
    const results = { plain: yield* measureAll(plain), copying: yield* measureAll(copying) }
    printTable(
      "The link, GB/s each way (medians)",
      ["", ...ways],
      [["C, 16 MiB copies", ...ways.map((way) => fixed(median(link[way])))]]
    )
    printLoads("Chunks in pinned memory, GB/s each way", plain.loads, results.plain, link)
    printLoads("Chunks copied in and out by the CPU, GB/s each way", copying.loads, results.copying, link)
    return [
      ...figuresOf("Pipeline, each chunk in pinned memory", plain.loads, results.plain),
      ...figuresOf("Pipeline, each chunk copied by the CPU", copying.loads, results.copying)
    ]
  }).pipe(Effect.provideServiceEffect(CudaRuntime, NativeRuntime.make())))
