/**
 * What copies and fills of 1 GiB on a simulated device leave of the event loop: how long each takes in real time, and the longest pause
 * between two turns of a program that does nothing else.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaStream from "../src/CudaStream.ts"
import * as SimulatedRuntime from "../src/layers/SimulatedRuntime.ts"
import { longestTurn } from "./support/loop.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import { runAnywhere } from "./support/run.ts"
import { fixed } from "./support/statistics.ts"

const bytes = 2 ** 30
const rounds = 5
const group = "Simulated: 1 GiB in real time"

const measure = (work: Effect.Effect<void, CudaError>, stream: CudaStream.CudaStream) =>
  longestTurn(Effect.andThen(work, CudaStream.synchronize(stream)))

const measureAll = (data: "moved" | "none") =>
  Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const host = yield* CudaMemory.allocateHost(bytes)
    const [device, other] = [yield* CudaMemory.allocate(bytes), yield* CudaMemory.allocate(bytes)]
    const works = {
      upload: CudaMemory.copy(device, host, stream),
      "copy within the device": CudaMemory.copy(other, device, stream),
      fill: CudaMemory.fill(other, 3, stream),
      download: CudaMemory.copy(host, other, stream)
    }
    // The system provides the pages of memory at its first use, which is not what this measures.
    for (const work of Object.values(works)) yield* measure(work, stream)
    const figures = []
    for (const [operation, work] of Object.entries(works)) {
      const values = yield* Effect.replicateEffect(measure(work, stream), rounds)
      const name = data === "none" ? `${operation}, no data` : operation
      figures.push(
        makeFigure({ group, name: `${name}: in all`, unit: "ms" }, values.map(({ elapsed }) => elapsed)),
        makeFigure({ group, name: `${name}: longest pause`, unit: "ms" }, values.map(({ longest }) => longest))
      )
    }
    return figures
  }).pipe(
    Effect.scoped,
    Effect.provide(SimulatedRuntime.layer({ devices: [SimulatedRuntime.profiles.h200], data }))
  )

await runAnywhere("largeCopies", () =>
  Effect.gen(function*() {
    const figures = [...yield* measureAll("moved"), ...yield* measureAll("none")]
    const rows = figures.map(({ high, median, name }) => [name, fixed(median, 1), fixed(high, 1)])
    printTable(group, ["ms", "p50", "p90"], rows)
    return figures
  }))
