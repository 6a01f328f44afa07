// The public API as text, so that a change to it shows in a diff: the declarations of every public module, and of the slices of the
// runtime service that they re-export, without comments. `npm run api` writes the report, `npm run check:api` compares with it.
import { spawnSync } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { join, sep } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const report = join(root, "api")
const declarations = mkdtempSync(join(tmpdir(), "effect-cuda-api-"))
process.on("exit", () => rmSync(declarations, { recursive: true, force: true }))

const tsc = createRequire(import.meta.url).resolve("typescript/package.json").replace(/package\.json$/, "bin/tsc")
const options = ["--emitDeclarationOnly", "--removeComments", "--declarationMap", "false", "--sourceMap", "false"]
const { status } = spawnSync(
  process.execPath,
  [tsc, "-p", "tsconfig.build.json", ...options, "--outDir", declarations],
  {
    cwd: root,
    stdio: "inherit"
  }
)
if (status !== 0) process.exit(1)

const { exports } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
const hidden = Object.entries(exports).flatMap(([path, to]) => to === null ? [path.slice(2, -1)] : [])
const named = Object.values(exports).flatMap((to) => to?.types ? [to.types.replace("./dist/", "")] : [])
const isPublic = (file) =>
  named.includes(file) || file.startsWith("layers/runtime/") || !hidden.some((folder) => file.startsWith(folder))

const now = new Map(
  readdirSync(declarations, { recursive: true })
    .map((path) => path.split(sep).join("/"))
    .filter((path) => path.endsWith(".d.ts") && isPublic(path))
    .map((
      path
    ) => [
      path.replace(/\.d\.ts$/, ".txt").replaceAll("/", "."),
      readFileSync(join(declarations, path), "utf8").trim() + "\n"
    ])
)
const before = new Map(
  (existsSync(report) ? readdirSync(report) : []).map((file) => [file, readFileSync(join(report, file), "utf8")])
)

if (process.argv.includes("--check")) {
  const changed = [...new Set([...now.keys(), ...before.keys()])].filter((file) => now.get(file) !== before.get(file))
  for (const file of changed) console.error(`api/${file} is out of date`)
  if (changed.length > 0) {
    console.error("The public API has changed. Run `npm run api`, and commit the report with the change.")
  }
  process.exit(changed.length === 0 ? 0 : 1)
}
mkdirSync(report, { recursive: true })
for (const file of before.keys()) if (!now.has(file)) rmSync(join(report, file))
for (const [file, text] of now) writeFileSync(join(report, file), text)
