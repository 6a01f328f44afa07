/**
 * Programs in their own process: the sources compiled to JavaScript (Node 20 does not run TypeScript), and a script next to
 * them.
 */
import { afterAll } from "@effect/vitest"
import { execFile, execFileSync } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../../", import.meta.url))

let compiled: string | undefined

afterAll(() => {
  if (compiled !== undefined) rmSync(compiled, { recursive: true, force: true })
})

/** The folder of the compiled sources, removed after the tests of a file. Inside node_modules, so that their imports resolve. */
const compile = (): string => {
  if (compiled !== undefined) return compiled
  const folder = mkdtempSync(join(root, "node_modules", ".effect-cuda-"))
  const options = ["--noCheck", "--declaration", "false", "--declarationMap", "false", "--sourceMap", "false"]
  execFileSync(
    join(root, "node_modules", ".bin", "tsc"),
    ["-p", "tsconfig.build.json", "--outDir", folder, ...options],
    {
      cwd: root
    }
  )
  return compiled = folder
}

/** How a process ended. */
export interface ChildResult {
  /** The exit code, or the signal that ended it. */
  readonly exit: number | string
  readonly output: string
  readonly milliseconds: number
}

/** Runs a module script, which imports the sources by relative paths such as `./index.js`, and ends it after fifteen seconds: each import of them takes a busy machine half a second. */
export const runChild = async (script: string): Promise<ChildResult> => {
  const file = join(compile(), `script-${Math.random().toString(36).slice(2)}.mjs`)
  writeFileSync(file, script)
  const started = performance.now()
  return new Promise((resolve) => {
    execFile(process.execPath, [file], { timeout: 15_000 }, (error, stdout, stderr) =>
      resolve({
        exit: error === null ? 0 : error.code ?? error.signal ?? "unknown",
        output: stdout + stderr,
        milliseconds: performance.now() - started
      }))
  })
}
