// Runs the TypeScript compiler of @effect/tsgo: the checks of tsc, plus Effect's diagnostics (warnings fail).
import { execFileSync, spawnSync } from "node:child_process"
import { createRequire } from "node:module"
import { dirname, join } from "node:path"

const manifest = createRequire(import.meta.url).resolve("@effect/tsgo/package.json")
const cli = join(dirname(manifest), "dist", "effect-tsgo.cjs")
const compiler = execFileSync(process.execPath, [cli, "get-exe-path"], { encoding: "utf8" }).trim()
const { error, status } = spawnSync(compiler, process.argv.slice(2), { stdio: "inherit" })
if (error) throw error
process.exitCode = status ?? 1
