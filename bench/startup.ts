/**
 * The startup cost of a process: importing the package or single modules, compared with Effect alone and koffi; and the
 * first calls on a runtime. Every measurement runs in a new process. Uses the compiled package if `dist` exists,
 * otherwise the sources, whose types Node.js strips.
 *
 * With the argument "stub", the first calls run on a driver whose calls return immediately, and on the simulated
 * runtime.
 */
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { turn } from "./support/loop.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import type { Figure } from "./support/results.ts"
import { runOnDriver } from "./support/run.ts"
import type { Ground } from "./support/run.ts"
import { fixed } from "./support/statistics.ts"

const rounds = 5
const compiled = new URL("../dist/index.js", import.meta.url)
const isCompiled = existsSync(compiled)
const folder = isCompiled ? "dist" : "src"
const extension = isCompiled ? "js" : "ts"

const ours = (module: string): string => new URL(`../${folder}/${module}.${extension}`, import.meta.url).href

/** The modules to import, by name. */
const imports = {
  "effect-cuda": ours("index"),
  "effect-cuda/CudaStream": ours("CudaStream"),
  "effect-cuda/CudaKernel": ours("CudaKernel"),
  "effect-cuda/NativeRuntime": ours("layers/NativeRuntime"),
  "effect-cuda/SimulatedRuntime": ours("layers/SimulatedRuntime"),
  "effect/Effect alone": "effect/Effect",
  koffi: "koffi"
}

/** Runs a process, and reads the numbers it prints. */
const readProcess = (...parameters: ReadonlyArray<string>): ReadonlyArray<number> =>
  execFileSync(process.execPath, [...process.execArgv, ...parameters], { encoding: "utf8" }).trim().split(" ").map(
    Number
  )

const importIn = (specifier: string): number => {
  const program = `const start = performance.now()
await import(${JSON.stringify(specifier)})
console.log(performance.now() - start)`
  return readProcess("--input-type=module", "--eval", program)[0]!
}

const firstCalls = fileURLToPath(new URL("./support/firstCalls.ts", import.meta.url))
const steps = ["the layer", "the first stream", "the first event", "the first record"]

/** Milliseconds of each round, by name. */
type Times = Map<string, Array<number>>

/** Repeats measurements in turn. The first round fills the system's caches, and is not counted. */
const repeat = (measure: (keep: (name: string, millis: number) => void) => void) =>
  Effect.gen(function*() {
    const times: Times = new Map()
    for (let round = -1; round < rounds; round++) {
      measure((name, millis) => {
        const kept = times.get(name) ?? []
        times.set(name, kept)
        if (round >= 0) kept.push(millis)
      })
      yield* turn
    }
    return times
  })

const runtimesOf = ({ driver, isGpu }: Ground): Readonly<Record<string, ReadonlyArray<string>>> =>
  isGpu
    ? { "on the GPU": ["native"] }
    : {
      "on the stub driver": ["native", ...(driver.libraryPath === undefined ? [] : [driver.libraryPath])],
      simulated: ["simulated"]
    }

const report = (group: string, times: Times): ReadonlyArray<Figure> => {
  const figures = [...times].map(([name, values]) => makeFigure({ group, name, unit: "ms" }, values))
  printTable(
    `${group}, ms`,
    ["", "p50", "p10", "p90"],
    figures.map(({ high, low, median, name }) => [name, ...[median, low, high].map((millis) => fixed(millis, 2))])
  )
  return figures
}

await runOnDriver("startup", (ground) =>
  Effect.gen(function*() {
    const imported = yield* repeat((keep) => {
      for (const [name, specifier] of Object.entries(imports)) keep(name, importIn(specifier))
    })
    const called = yield* repeat((keep) => {
      for (const [name, parameters] of Object.entries(runtimesOf(ground))) {
        for (const [index, millis] of readProcess(firstCalls, ...parameters).entries()) {
          keep(`${steps[index]!}, ${name}`, millis)
        }
      }
    })
    const what = isCompiled ? "compiled (dist)" : "sources (src), types stripped"
    return [...report(`Importing, ${what}`, imported), ...report("First calls of a process", called)]
  }))
