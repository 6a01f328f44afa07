/**
 * The facts behind the figures: the machine, and the versions of everything involved. Benchmarks note what they use.
 */
import koffi from "koffi"
import { readFileSync } from "node:fs"
import { createRequire } from "node:module"
import { availableParallelism, cpus, release, totalmem, type } from "node:os"
import type { Driver } from "./driver.ts"

const effectVersion: string = createRequire(import.meta.url)("effect/package.json").version

const noted = new Map<string, string>()

export const note = (name: string, value: string): void => void noted.set(name, value)

export const noteGpu = (driver: Driver): void => {
  note("GPU", driver.deviceName)
  note("Driver", driverVersion())
  note("CUDA", `${Math.floor(driver.cudaVersion / 1000)}.${driver.cudaVersion % 1000 / 10}`)
}

/** The facts noted so far, most relevant first. */
export const facts = (): Readonly<Record<string, string>> => ({
  ...Object.fromEntries(noted),
  Processor: `${availableParallelism()} cores of ${cpus()[0]?.model.trim() ?? "an unknown processor"}`,
  Memory: `${Math.round(totalmem() / 1024 ** 3)} GiB`,
  System: `${type()} ${release()}`,
  "Node.js": process.version,
  Effect: effectVersion,
  koffi: koffi.version
})

/**
 * The driver version that users know (for example 580.159). The kernel module reports it; the driver library does not.
 */
const driverVersion = (): string => {
  try {
    return / (\d+\.\d+[\d.]*) /.exec(readFileSync("/proc/driver/nvidia/version", "utf8"))?.[1] ?? "unknown"
  } catch {
    return "unknown"
  }
}
