/**
 * Runs every benchmark, one after the other, each in a process of its own: `node bench/all.ts`, or some of them by
 * name, `node bench/all.ts latency cpu`. Needs a GPU; a C compiler for the comparisons with C.
 */
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"

const programs = [
  "waiting/latency",
  "waiting/cpu",
  "waiting/many",
  "waiting/service",
  "waiting/eventLoop",
  "operations",
  "launch",
  "pipeline",
  "forkJoin"
]
const wanted = process.argv.slice(2)
/** A program that hangs is ended after so many milliseconds. */
const timeout = 180_000

for (const program of programs) {
  if (wanted.length > 0 && !wanted.some((name) => program.endsWith(name))) continue
  const path = fileURLToPath(new URL(`./${program}.ts`, import.meta.url))
  const { signal, status } = spawnSync(process.execPath, [...process.execArgv, path], { stdio: "inherit", timeout })
  if (status !== 0) process.exitCode = 1
  if (signal !== null) console.error(`${program} was ended by ${signal}`)
  console.log()
}
