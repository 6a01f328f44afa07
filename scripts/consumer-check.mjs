// Checks the package as a consumer would see it: packs it, unpacks it next to its declared dependencies only, compiles the
// examples and an import of every exported module (type-checking the library as well), then runs that import and makes sure
// that it loads nothing native. Requires a build, but no network and no GPU.
import { spawnSync } from "node:child_process"
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join, sep } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
const consumer = mkdtempSync(join(tmpdir(), "effect-cuda-consumer-"))
const npm = process.env.npm_execpath // set when npm runs this script
const run = (command, args, options) => {
  const { error, status } = spawnSync(command, args, { cwd: consumer, stdio: "inherit", ...options })
  if (error || status !== 0) fail(error?.message ?? `${[command, ...args].join(" ")} failed`)
}
const fail = (message) => {
  console.error(`consumer check: ${message}`)
  process.exit(1)
}
process.on("exit", () => rmSync(consumer, { recursive: true, force: true }))

// The package, as a registry would deliver it.
const packArgs = ["pack", "--silent", "--ignore-scripts", "--pack-destination", consumer]
const quiet = { cwd: root, stdio: ["ignore", "ignore", "inherit"] }
if (npm) run(process.execPath, [npm, ...packArgs], quiet)
else run("npm", packArgs, { ...quiet, shell: process.platform === "win32" })
const installed = join(consumer, "node_modules", manifest.name)
mkdirSync(installed, { recursive: true })
run("tar", ["-xzf", `${manifest.name}-${manifest.version}.tgz`, "-C", installed, "--strip-components=1"])

// Its declared dependencies, and what a consumer provides: the Node.js types, and what the examples of a cluster use.
const declared = Object.keys({ ...manifest.dependencies, ...manifest.peerDependencies })
for (const name of [...declared, "@types/node", "@effect/platform-node", "@effect/sql-pg"]) {
  const link = join(consumer, "node_modules", name)
  mkdirSync(dirname(link), { recursive: true })
  symlinkSync(join(root, "node_modules", name), link, "junction")
}

// Every exported module: those listed by name, and those that match the pattern and are not in a hidden folder.
const hidden = Object.entries(manifest.exports).flatMap(([path, to]) => (to === null ? [path.slice(2, -1)] : []))
const named = Object.keys(manifest.exports).filter((path) => /^\.\/\w+$/.test(path)).map((path) => path.slice(2))
const files = readdirSync(join(installed, "dist"), { recursive: true })
  .map((path) => path.split(sep).join("/"))
  .filter((path) => path.endsWith(".js") && !hidden.some((folder) => path.startsWith(folder)))
  .map((path) => path.slice(0, -3))
const modules = [...files, ...named]
  .map((name) => (name === "index" ? manifest.name : `${manifest.name}/${name}`))
  .sort()
if (!modules.includes(manifest.name)) fail("dist/index.js is missing: run `npm run build` first")

writeFileSync(join(consumer, "package.json"), JSON.stringify({ type: "module", private: true }))
writeFileSync(
  join(consumer, "consumer.ts"),
  [
    ...modules.map((name, i) => `import * as M${i} from "${name}"`),
    `const modules: Record<string, object> = { ${modules.map((name, i) => `"${name}": M${i}`).join(", ")} }`,
    `for (const [name, module] of Object.entries(modules)) console.log(name, Object.keys(module).length)`
  ].join("\n")
)
if (existsSync(join(root, "examples"))) {
  cpSync(join(root, "examples"), join(consumer, "examples"), { recursive: true })
}
const compilerOptions = {
  target: "ES2022",
  lib: ["ES2023", "DOM"],
  types: ["node"],
  module: "NodeNext",
  strict: true,
  exactOptionalPropertyTypes: true,
  noUncheckedIndexedAccess: true,
  skipLibCheck: false,
  verbatimModuleSyntax: true,
  rewriteRelativeImportExtensions: true,
  outDir: "out",
  rootDir: "."
}
const include = ["consumer.ts", "examples"]
writeFileSync(join(consumer, "tsconfig.json"), JSON.stringify({ compilerOptions, include }))
run(process.execPath, [join(root, "node_modules", "typescript", "bin", "tsc"), "-p", "tsconfig.json"])

// Importing the modules must neither resolve koffi nor map a shared object of koffi or CUDA.
writeFileSync(
  join(consumer, "hooks.mjs"),
  `export const resolve = (specifier, context, next) => {
    const isNative = /^(koffi|@koromix)(\\/|$)/.test(specifier)
    if (isNative) throw new Error(context.parentURL + " imports " + specifier + " when loaded")
    return next(specifier, context)
  }`
)
writeFileSync(
  join(consumer, "run.mjs"),
  `import { createRequire, register } from "node:module"
  register("./hooks.mjs", import.meta.url)
  await import("./out/consumer.js")
  process.report.excludeNetwork = true
  const files = [...Object.keys(createRequire(import.meta.url).cache), ...process.report.getReport().sharedObjects]
  const loaded = files.filter((path) => /koffi|koromix|libcuda|nvcuda/.test(path))
  if (loaded.length > 0) throw new Error("importing the package loaded " + loaded.join(", "))
  for (const path of ${
    JSON.stringify([...hidden.map((folder) => `${folder}x`), ...named.map((name) => `layers/${name}`)])
  }) {
    const code = await import("${manifest.name}/" + path).then(() => "none", (error) => error.code)
    if (code !== "ERR_PACKAGE_PATH_NOT_EXPORTED") throw new Error(path + " is reachable: " + code)
  }`
)
run(process.execPath, ["run.mjs"])
console.log(`consumer check: ${modules.length} modules compile, import and load nothing native`)
