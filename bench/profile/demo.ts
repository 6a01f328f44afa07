/**
 * The demo's pipeline on this machine's GPU and on a simulated H200 (`SimulatedRuntime.profiles.h200`, without data), with the same host and its
 * clock: the regions, the time between them, and the whole. With a folder as argument, writes the timelines of the last runs there, as pictures.
 *
 * The host does nothing with the chunks, since memory that a GPU has written takes a host longer to read. Both runtimes take turns.
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as Kernels from "../../examples/demo/Kernels.ts"
import * as CudaTiming from "../../src/CudaTiming.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import * as SimulatedRuntime from "../../src/layers/SimulatedRuntime.ts"
import { demoTimeline } from "../../test/support/demoPipeline.ts"
import type { DemoPipeline } from "../../test/support/demoPipeline.ts"
import { printTable } from "../support/report.ts"
import { makeFigure } from "../support/results.ts"
import type { Figure } from "../support/results.ts"
import { runOnGpu } from "../support/run.ts"
import { fixed, median } from "../support/statistics.ts"

const rounds = 20
const warmUps = 5
const chunkBytes = 8 * 2 ** 20
const common = { chunkBytes, chunks: 32 }

const programs: ReadonlyArray<DemoPipeline & { readonly name: string }> = [
  { ...common, name: "1 slot", slots: 1 },
  { ...common, name: "4 slots", slots: 4 }
]

/** Microseconds of a run: of its parts in the median, and of the whole. */
type Run = Readonly<Record<(typeof parts)[number], number>>

const parts = [
  "upload",
  "upload to work",
  "work",
  "work to download",
  "download",
  "from one upload to the next",
  "the whole"
] as const

const micros = (duration: Duration.Duration): number => Duration.toMillis(duration) * 1000

const runOf = ({ regions }: CudaTiming.Timeline): Run => {
  const [uploads, works, downloads] = ["upload", "work", "download"].map((name) =>
    regions.filter((region) => region.name === name).map(({ duration, start }) => ({
      start: micros(start),
      end: micros(start) + micros(duration)
    }))
  ) as [Spans, Spans, Spans]
  return {
    upload: median(uploads.map(lengthOf)),
    "upload to work": median(gaps(uploads, works)),
    work: median(works.map(lengthOf)),
    "work to download": median(gaps(works, downloads)),
    download: median(downloads.map(lengthOf)),
    "from one upload to the next": median(gaps(uploads, uploads.slice(1))),
    "the whole": downloads.at(-1)!.end - uploads[0]!.start
  }
}

type Spans = Array<{ readonly start: number; readonly end: number }>

const lengthOf = ({ end, start }: Spans[number]): number => end - start

const gaps = (before: Spans, after: Spans): Array<number> => after.map(({ start }, index) => start - before[index]!.end)

const draw = (name: string, title: string, timeline: CudaTiming.Timeline): void => {
  const folder = process.argv[2]
  if (folder === undefined) return
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, `${name.replaceAll(/\W+/g, "-")}.svg`), CudaTiming.toSvg(timeline, { title, width: 900 }))
}

const simulated = SimulatedRuntime.layer({
  devices: [SimulatedRuntime.profiles.h200],
  data: "none",
  kernels: Kernels.simulated(Kernels.h200)
})

await runOnGpu("profile", (ground) =>
  Effect.gen(function*() {
    const runtimes = {
      GPU: Context.make(CudaRuntime, yield* ground.makeRuntime()),
      simulated: yield* Layer.build(simulated)
    }
    const figures: Array<Figure> = []
    for (const program of programs) {
      const runs: Record<keyof typeof runtimes, Array<Run>> = { GPU: [], simulated: [] }
      for (let round = -warmUps; round < rounds; round++) {
        for (const where of ["GPU", "simulated"] as const) {
          const timeline = yield* Effect.provide(demoTimeline(program), runtimes[where])
          if (round >= 0) runs[where].push(runOf(timeline))
          if (round === rounds - 1) draw(`${program.name}-${where}`, `${program.name}: ${where}`, timeline)
        }
      }
      const group = `The demo on a GPU and on a simulated H200: ${program.name}`
      const own = parts.map((part) =>
        makeFigure({ group, name: part, unit: "µs" }, runs.simulated.map((run) => run[part]), {
          GPU: runs.GPU.map((run) => run[part])
        })
      )
      printTable(
        group,
        ["µs", "GPU", "simulated", "ratio"],
        own.map(({ beside, median, name }) => {
          const [gpu] = beside
          return [name, fixed(gpu!.median, 1), fixed(median, 1), fixed(median / gpu!.median, 2)]
        })
      )
      figures.push(...own)
    }
    return figures
  }))
