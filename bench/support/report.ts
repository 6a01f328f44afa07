/**
 * What benchmarks print: on what they ran, and tables. And how they start: with a GPU, or saying that there is none.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import koffi from "koffi"
import { readFileSync } from "node:fs"
import { createRequire } from "node:module"
import { availableParallelism, cpus } from "node:os"
import type { CudaError } from "../../src/CudaError.ts"
import { openDriver } from "./driver.ts"
import type { Driver } from "./driver.ts"

/** Prints rows under a header, the first column to the left and the others to the right. */
export const printTable = (
  title: string,
  header: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string>>
): void => {
  const widths = header.map((_, column) => Math.max(...[header, ...rows].map((row) => (row[column] ?? "").length)))
  const line = (row: ReadonlyArray<string>) =>
    widths.map((width, column) => {
      const cell = row[column] ?? ""
      return column === 0 ? cell.padEnd(width) : cell.padStart(width)
    }).join("  ").trimEnd()
  console.log(`\n${title}\n${line(header)}\n${widths.map((width) => "-".repeat(width)).join("  ")}`)
  for (const row of rows) console.log(line(row))
}

/**
 * Runs a benchmark on the first GPU and prints what it ran on and how long it took; without a GPU says so and fails.
 * What the benchmark acquires is released at its end, whatever that is.
 */
export const run = (
  name: string,
  body: (driver: Driver) => Effect.Effect<void, CudaError, Scope.Scope>
): Promise<void> => {
  const driver = openDriver()
  if (typeof driver === "string") {
    console.error(`${name}: no GPU here, so nothing was measured (${driver})`)
    process.exitCode = 1
    return Promise.resolve()
  }
  const started = performance.now()
  console.log(`== ${name}\n${describe(driver)}`)
  return Effect.runPromise(Effect.scoped(Effect.suspend(() => body(driver)))).then(
    () => console.log(`\n${name} took ${((performance.now() - started) / 1e3).toFixed(1)} s`),
    (error: unknown) => {
      console.error(`${name} failed:`, error)
      process.exitCode = 1
    }
  )
}

const describe = (driver: Driver): string => {
  const cuda = `CUDA ${Math.floor(driver.cudaVersion / 1000)}.${(driver.cudaVersion % 1000) / 10}`
  const effect: string = createRequire(import.meta.url)("effect/package.json").version
  const processor = `${availableParallelism()} cores of ${cpus()[0]?.model.trim() ?? "an unknown processor"}`
  const libraries = `Effect ${effect}, koffi ${koffi.version}`
  const gpu = `${driver.deviceName}, driver ${driverVersion()} (${cuda})`
  return `${gpu}; Node.js ${process.version}, ${libraries}; ${processor}`
}

/** The kernel module knows the version that people call the driver by; the driver's library does not. */
const driverVersion = (): string => {
  try {
    return / (\d+\.\d+[\d.]*) /.exec(readFileSync("/proc/driver/nvidia/version", "utf8"))?.[1] ??
      "of an unknown version"
  } catch {
    return "of an unknown version"
  }
}
