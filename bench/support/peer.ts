/**
 * The peers: a C program of `peers/`, compiled in a temporary folder, or a Python program. They run commands from
 * standard input, so that their rounds and the library's take turns in one run. Benchmarks run without a peer if the C
 * compiler or the Python package is missing.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawn, spawnSync } from "node:child_process"
import type { ChildProcessByStdio } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import type { Readable, Writable } from "node:stream"
import { fileURLToPath } from "node:url"
import { kernelsPath } from "./driver.ts"
import { note } from "./facts.ts"
import type { Ground } from "./run.ts"

/** A running peer. Answers a line of words with numbers. */
export interface Peer {
  /** The name in tables. */
  readonly name: string
  readonly ask: (...words: ReadonlyArray<string | number>) => Effect.Effect<ReadonlyArray<number>>
}

/** The Python libraries: their names in tables, and in Python. */
const pythonLibraries = { "cuda.core": "cuda.core", CuPy: "cupy", PyTorch: "torch" } as const

/** Starts a C program in a scope. Logs the reason if it cannot. */
export const startPeer = (
  name: string,
  { driver }: Pick<Ground, "driver">
): Effect.Effect<Peer | undefined, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => launch(name, driver.libraryPath)),
      (started) => Effect.sync(() => started?.stop())
    ),
    (started) => started && makePeer("C", started)
  )

/** Starts every available peer of a benchmark in a scope, by default for operations. Logs the ones that are missing. */
export const startPeers = (
  ground: Ground,
  program = "operations"
): Effect.Effect<ReadonlyArray<Peer>, never, Scope.Scope> => {
  const python = Object.entries(pythonLibraries).map(([name, library]) => startPythonPeer(name, program, library))
  return Effect.map(
    Effect.all([startPeer(program, ground), ...(ground.isGpu ? python : [])], { concurrency: "unbounded" }),
    (peers) => peers.filter((peer) => peer !== undefined)
  )
}

/** Starts a Python program in a scope. Logs the reason if it cannot. */
export const startPythonPeer = (
  name: string,
  program: string,
  library: string
): Effect.Effect<Peer | undefined, never, Scope.Scope> =>
  Effect.gen(function*() {
    const started = yield* Effect.acquireRelease(
      Effect.sync(() => launchPython(program, library)),
      ({ stop }) => Effect.sync(stop)
    )
    // It answers once its library is imported and its operations are ready.
    const { problem, version } = yield* Effect.promise(() =>
      started.ask("version").then(
        (answer) => ({ version: answer, problem: undefined }),
        (error: unknown) => ({ version: "", problem: String(error) })
      )
    )
    if (problem === undefined) {
      note(name, version)
      return makePeer(name, started)
    }
    console.log(`running without ${name}: ${problem}`)
    return undefined
  })

/** Starts a second process of Node.js with the library in a scope, which runs a program of `peers/`. */
export const startNodePeer = (program: string): Effect.Effect<Peer, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(Effect.sync(() => launchNode(program)), ({ stop }) => Effect.sync(stop)),
    (started) => makePeer("the second process", started)
  )

const launchNode = (program: string): Launched => {
  const script = fileURLToPath(new URL(`../peers/${program}.ts`, import.meta.url))
  const child = spawn(process.execPath, [...process.execArgv, script], { stdio: ["pipe", "pipe", "inherit"] })
  return { ask: converse(child, `The second process "${program}"`), stop: () => child.kill() }
}

/** A peer that fails is reported once, and returns nothing from then on. */
const makePeer = (name: string, { ask }: Launched): Peer => {
  let isGone = false
  const lost = (error: unknown) => {
    if (!isGone) console.log(`continuing without ${name}: ${error}`)
    isGone = true
    return ""
  }
  return {
    name,
    ask: (...words) =>
      Effect.promise(() =>
        ask(words.join(" ")).catch(lost).then((line) => line.split(" ").filter((word) => word !== "").map(Number))
      )
  }
}

const launchPython = (program: string, library: string): Launched => {
  const script = fileURLToPath(new URL(`../peers/${program}.py`, import.meta.url))
  // -B writes no bytecode next to the program.
  const child = spawn("python3", ["-B", script, kernelsPath, library], { stdio: ["pipe", "pipe", "inherit"] })
  return { ask: converse(child, `The Python peer "${library}"`), stop: () => child.kill() }
}

interface Launched {
  readonly ask: (line: string) => Promise<string>
  readonly stop: () => void
}

const launch = (name: string, libraryPath: string | undefined): Launched | undefined => {
  const folder = mkdtempSync(join(tmpdir(), "effect-cuda-bench-"))
  const program = join(folder, name)
  const problem = compile(fileURLToPath(new URL(`../peers/${name}.c`, import.meta.url)), program)
  if (problem !== undefined) {
    rmSync(folder, { recursive: true })
    console.log(`running without the C peer: ${problem}`)
    return undefined
  }
  const parameters = libraryPath === undefined ? [kernelsPath] : [kernelsPath, libraryPath]
  const child = spawn(program, parameters, { stdio: ["pipe", "pipe", "inherit"] })
  const ask = converse(child, `The C peer "${name}"`)
  const stop = () => {
    child.kill()
    rmSync(folder, { recursive: true, force: true })
  }
  return { ask, stop }
}

const compilers = ["cc", "gcc", "nvcc"]

/** Compiles a C program. Returns the reason if that is impossible. */
export const compile = (source: string, program: string, options: ReadonlyArray<string> = []): string | undefined => {
  const problems: Array<string> = []
  for (const compiler of compilers) {
    const { error, status, stderr } = spawnSync(compiler, ["-O2", ...options, "-o", program, source, "-ldl"], {
      encoding: "utf8"
    })
    if (status === 0) {
      note("C compiler", versionOf(compiler))
      return undefined
    }
    problems.push(`${compiler}: ${error?.message ?? stderr}`)
  }
  return problems.join("; ")
}

const versionOf = (compiler: string): string =>
  spawnSync(compiler, ["--version"], { encoding: "utf8" }).stdout.split("\n")[0]?.trim() ?? compiler

/** Timeout of an answer, in milliseconds. */
const patience = 60_000

const converse = (child: ChildProcessByStdio<Writable, Readable, null>, who: string): Launched["ask"] => {
  let answer: ((line: string | Error) => void) | undefined
  let ended: Error | undefined
  const end = (error: Error) => {
    ended ??= error
    answer?.(ended)
  }
  createInterface({ input: child.stdout }).on("line", (line) => {
    if (line.startsWith("error")) end(new Error(`${who}: ${line}`))
    else answer?.(line)
  })
  child.on("error", end)
  child.stdin.on("error", end)
  child.on("close", (code, signal) => end(new Error(`${who} ended with ${code ?? signal}`)))
  return (line) =>
    new Promise((resolve, reject) => {
      if (ended !== undefined) return reject(ended)
      const timer = setTimeout(() => end(new Error(`${who} did not answer: ${line}`)), patience)
      answer = (result) => {
        clearTimeout(timer)
        answer = undefined
        if (typeof result === "string") resolve(result.trim())
        else reject(result)
      }
      child.stdin.write(`${line}\n`)
    })
}
