/**
 * Builds the stub libraries of the tests with the system's C compiler.
 */
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

/** Compiles a source of this folder with these macros, once per content, and returns the library's path. */
export const buildLibrary = (file: string, name: string, macros: ReadonlyArray<string> = []): string => {
  const source = fileURLToPath(new URL(`./${file}`, import.meta.url))
  const key = createHash("sha256").update(readFileSync(source)).update(macros.join(" ")).digest("hex").slice(0, 16)
  const folder = join(tmpdir(), "effect-cuda-stub")
  const path = join(folder, `${name}-${key}.so`)
  if (existsSync(path)) return path
  mkdirSync(folder, { recursive: true })
  // Test workers may build concurrently: each uses its own name, and the last rename wins.
  const building = `${path}.${process.pid}`
  compile(["-shared", "-fPIC", "-O1", "-pthread", ...macros.map((macro) => `-D${macro}`), source, "-o", building])
  renameSync(building, path)
  return path
}

const compile = (parameters: ReadonlyArray<string>): void => {
  try {
    execFileSync("cc", parameters, { stdio: ["ignore", "inherit", "pipe"] })
  } catch (error) {
    const problem = error instanceof Error && "stderr" in error ? String(error.stderr) || error.message : String(error)
    throw new Error(`The native tests need a C compiler ("cc") for the stub libraries: ${problem}`, { cause: error })
  }
}
