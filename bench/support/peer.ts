/**
 * A C program of `peers/`, compiled in a temporary folder, or a Python program, asked over its standard input, so that its
 * rounds and the library's take turns in one run. Without a C compiler, or what the Python program needs, the benchmarks go on
 * without it.
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
import { spinPath } from "./driver.ts"

/** A running peer: answers a line of words with numbers. */
export interface Peer {
  readonly ask: (...words: ReadonlyArray<string | number>) => Effect.Effect<ReadonlyArray<number>>
}

/** Starts a peer for the life of the scope, or says why there is none. */
export const startPeer = (name: string): Effect.Effect<Peer | undefined, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(Effect.sync(() => launch(name)), (started) => Effect.sync(() => started?.stop())),
    (started) => started && { ask: (...words) => Effect.promise(() => started.ask(words.join(" "))) }
  )

/** Starts a Python program with these words for the life of the scope, or says why there is none. */
export const startPythonPeer = (
  name: string,
  ...words: ReadonlyArray<string>
): Effect.Effect<Peer | undefined, never, Scope.Scope> =>
  Effect.gen(function*() {
    const started = yield* Effect.acquireRelease(
      Effect.sync(() => launchPython(name, words)),
      ({ stop }) => Effect.sync(stop)
    )
    const problem = yield* Effect.promise(() =>
      started.ask("ready 0 0").then(() => undefined, (error: unknown) => String(error))
    )
    if (problem === undefined) return { ask: (...asked) => Effect.promise(() => started.ask(asked.join(" "))) }
    console.log(`without ${words.join(" ")}: ${problem}`)
    return undefined
  })

const launchPython = (name: string, words: ReadonlyArray<string>): Launched => {
  const script = fileURLToPath(new URL(`../peers/${name}.py`, import.meta.url))
  const child = spawn("python3", [script, spinPath, ...words], { stdio: ["pipe", "pipe", "inherit"] })
  return { ask: converse(child, `The Python peer "${name}"`), stop: () => child.kill() }
}

interface Launched {
  readonly ask: (line: string) => Promise<ReadonlyArray<number>>
  readonly stop: () => void
}

const launch = (name: string): Launched | undefined => {
  const folder = mkdtempSync(join(tmpdir(), "effect-cuda-bench-"))
  const program = join(folder, name)
  const problem = compile(fileURLToPath(new URL(`../peers/${name}.c`, import.meta.url)), program)
  if (problem !== undefined) {
    rmSync(folder, { recursive: true })
    console.log(`without the C peer: ${problem}`)
    return undefined
  }
  const child = spawn(program, [spinPath], { stdio: ["pipe", "pipe", "inherit"] })
  const ask = converse(child, `The C peer "${name}"`)
  const stop = () => {
    child.kill()
    rmSync(folder, { recursive: true, force: true })
  }
  return { ask, stop }
}

const compilers = ["cc", "gcc", "nvcc"]

const compile = (source: string, program: string): string | undefined => {
  const problems: Array<string> = []
  for (const compiler of compilers) {
    const { error, status, stderr } = spawnSync(compiler, ["-O2", "-o", program, source, "-ldl"], { encoding: "utf8" })
    if (status === 0) return undefined
    problems.push(`${compiler}: ${error?.message ?? stderr}`)
  }
  return problems.join("; ")
}

/** No question takes a peer longer, in milliseconds. */
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
        if (typeof result === "string") resolve(result.trim().split(" ").filter(Boolean).map(Number))
        else reject(result)
      }
      child.stdin.write(`${line}\n`)
    })
}
