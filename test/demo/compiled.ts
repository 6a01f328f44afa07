/**
 * The examples as standalone programs: compiled once per test file, outside `dist`, and run as processes.
 */
import { spawn, spawnSync } from "node:child_process"
import type { ChildProcess } from "node:child_process"
import { copyFileSync, mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../..", import.meta.url))

export interface Compiled {
  /** A folder for the test's files. */
  readonly folder: string
  readonly start: (example: string, ...args: ReadonlyArray<string>) => ChildProcess
  readonly run: (example: string, ...args: ReadonlyArray<string>) => {
    readonly code: number | null
    readonly out: string
    readonly error: string
  }
  readonly remove: () => void
}

/** Compiles src and examples as the package would be installed. Other checks report compile errors. */
export const compile = (): Compiled => {
  const home = realpathSync(mkdtempSync(join(tmpdir(), "effect-cuda-demo-")))
  const folder = join(home, "files")
  mkdirSync(folder)
  symlinkSync(join(root, "node_modules"), join(home, "node_modules"), "junction")
  const manifest = {
    name: "effect-cuda",
    type: "module",
    exports: { ".": { types: "./src/index.d.ts", default: "./src/index.js" }, "./cluster": "./src/cluster.js" }
  }
  writeFileSync(join(home, "package.json"), JSON.stringify(manifest))
  const compilerOptions = {
    rootDir: root,
    outDir: home,
    noCheck: true,
    declaration: false,
    declarationMap: false,
    sourceMap: false,
    types: ["node"],
    typeRoots: [join(root, "node_modules/@types")],
    paths: { "effect-cuda": [join(root, "src/index.ts")], "effect-cuda/cluster": [join(root, "src/cluster.ts")] }
  }
  const include = [join(root, "src"), join(root, "examples")]
  writeFileSync(
    join(home, "tsconfig.json"),
    JSON.stringify({ extends: join(root, "tsconfig.base.json"), compilerOptions, include })
  )
  const tsc = join(root, "node_modules", "typescript", "bin", "tsc")
  const compiled = spawnSync(process.execPath, [tsc, "-p", home], { encoding: "utf8" })
  if (compiled.status !== 0) throw new Error(`The examples do not compile:\n${compiled.stdout}${compiled.stderr}`)
  for (const file of ["examples/demo/kernels.ptx", "examples/encoder/kernels.ptx"]) {
    copyFileSync(join(root, file), join(home, file))
  }
  // No GPU, even if there is one: the tests must be the same everywhere.
  const env = { ...process.env, EFFECT_CUDA_RUNTIME: "simulated", NO_COLOR: "1" }
  const program = (example: string) => join(home, "examples", `${example}.js`)
  return {
    folder,
    start: (example, ...args) =>
      spawn(process.execPath, [program(example), ...args], { env, stdio: ["ignore", "pipe", "pipe"] }),
    run: (example, ...args) => {
      const { status, stderr, stdout } = spawnSync(process.execPath, [program(example), ...args], {
        env,
        encoding: "utf8"
      })
      return { code: status, out: stdout, error: stderr }
    },
    remove: () => rmSync(home, { recursive: true, force: true })
  }
}
