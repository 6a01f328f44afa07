/**
 * Runs all benchmarks that this machine supports, one by one, each in a separate process, and prints a table of the
 * results: `npm run bench`. To run some by name: `npm run bench -- latency operations`. `--gpu` skips the benchmarks
 * that do not need a GPU, `--no-gpu` those that do.
 *
 * `--write` updates BENCHMARKS.md: the part with a GPU, the part without, or both, whichever was measured. Parts are
 * always replaced as a whole, so each comes from a single run.
 */
import { spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { availableParallelism, tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { writeDocument } from "./support/document.ts"
import { whyNoGpu } from "./support/driver.ts"
import { resultsVariable, takeResults } from "./support/results.ts"
import type { Results } from "./support/results.ts"
import { printSummary } from "./support/summary.ts"
import type { Part, PartName } from "./support/summary.ts"

/** A benchmark and its arguments. */
interface Benchmark {
  readonly name: string
  readonly part: PartName
  readonly parameters?: ReadonlyArray<string>
}

const stub = ["stub"]
const benchmarks: ReadonlyArray<Benchmark> = [
  { name: "operations", part: "gpu" },
  { name: "launch", part: "gpu" },
  { name: "checked", part: "gpu" },
  { name: "forkJoin", part: "gpu" },
  { name: "graphs", part: "gpu" },
  { name: "blas", part: "gpu" },
  { name: "nccl", part: "gpu" },
  { name: "encoder", part: "gpu" },
  { name: "encoderService", part: "gpu" },
  { name: "pipeline", part: "gpu" },
  { name: "profile", part: "gpu" },
  { name: "devices", part: "gpu" },
  { name: "waiting/latency", part: "gpu" },
  { name: "waiting/cpu", part: "gpu" },
  { name: "waiting/many", part: "gpu" },
  { name: "waiting/service", part: "gpu" },
  { name: "waiting/eventLoop", part: "gpu" },
  { name: "handles", part: "gpu" },
  { name: "startup", part: "gpu" },
  { name: "operations", part: "noGpu", parameters: stub },
  { name: "launch", part: "noGpu", parameters: stub },
  { name: "checked", part: "noGpu", parameters: stub },
  { name: "forkJoin", part: "noGpu", parameters: stub },
  { name: "graphs", part: "noGpu", parameters: stub },
  { name: "simulated", part: "noGpu" },
  { name: "largeCopies", part: "noGpu" },
  { name: "collectives", part: "noGpu" },
  { name: "handles", part: "noGpu", parameters: stub },
  { name: "startup", part: "noGpu", parameters: stub }
]

/** Timeout of a benchmark in milliseconds. */
const timeout = 180_000

const words = process.argv.slice(2)
const flags = words.filter((word) => word.startsWith("--"))
const names = words.filter((word) => !word.startsWith("--"))
const isWriting = flags.includes("--write")

const isWanted = ({ name, part }: Benchmark): boolean =>
  !flags.includes(part === "gpu" ? "--no-gpu" : "--gpu") &&
  (names.length === 0 || names.some((wanted) => name.endsWith(wanted)))

/**
 * On large machines, benchmarks and their peers share some cores, which are all the same distance from each other and from memory. Otherwise,
 * ratios depend on where the system puts each process.
 */
const cores = "2-9"
const isPinned = availableParallelism() >= 16 && spawnSync("taskset", ["--version"]).status === 0
const command = isPinned ? ["taskset", "-c", cores, process.execPath] : [process.execPath]

const run = ({ name, parameters = [] }: Benchmark, folder: string): Results | undefined => {
  const path = fileURLToPath(new URL(`./${name}.ts`, import.meta.url))
  const resultsPath = join(folder, "results.json")
  rmSync(resultsPath, { force: true })
  const [program, ...before] = command
  const { signal } = spawnSync(program!, [...before, ...process.execArgv, path, ...parameters], {
    stdio: "inherit",
    timeout,
    env: { ...process.env, [resultsVariable]: resultsPath }
  })
  if (signal !== null) console.error(`${name} was terminated by ${signal}`)
  console.log()
  return takeResults(resultsPath)
}

/** Runs the selected benchmarks of a part. A failed one is reported, and makes the command fail. */
const runPart = (part: PartName, why: string | undefined): Part => {
  const folder = mkdtempSync(join(tmpdir(), "effect-cuda-bench-"))
  const notRun: Array<string> = []
  const all: Array<Results> = []
  for (const benchmark of benchmarks.filter((candidate) => candidate.part === part && isWanted(candidate))) {
    const results = why === undefined ? run(benchmark, folder) : { facts: {}, figures: [], notRun: why }
    if (results?.notRun === undefined && results !== undefined) all.push(results)
    else notRun.push(`${benchmark.name}: ${results?.notRun ?? "failed"}`)
    if (results === undefined) process.exitCode = 1
  }
  rmSync(folder, { recursive: true, force: true })
  return {
    name: part,
    facts: Object.assign({}, ...all.map(({ facts }) => facts)),
    figures: all.flatMap(({ figures }) => figures),
    notRun
  }
}

const main = (): void => {
  if (isWriting && names.length > 0) {
    console.error("--write needs a complete run: remove the names of benchmarks")
    process.exitCode = 1
    return
  }
  const noGpu = whyNoGpu()
  const reason = noGpu === undefined ? undefined : `there is no GPU here (${noGpu})`
  const parts = [runPart("gpu", reason), runPart("noGpu", undefined)]
  for (const part of parts) printSummary(part)
  const measured = parts.filter(({ figures }) => figures.length > 0)
  if (measured.length === 0) process.exitCode = 1
  if (isWriting) writeDocument(measured)
}

main()
