// Installs the packed package the way strangers do, and runs a program with it: package managers, a git checkout, bundlers, and versions of
// Node.js and other runtimes. `npm run check:installs [-- NAME...]`: needs the registry, and a few minutes. Prints a table; fails if
// a row does not give the expected result. Nothing here needs a GPU.
import { spawnSync } from "node:child_process"
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
const effectVersion = manifest.devDependencies.effect
const work = mkdtempSync(join(tmpdir(), "effect-cuda-installs-"))
process.on("exit", () => rmSync(work, { recursive: true, force: true }))

/** Runs a command in a folder. Returns its output, or throws with the end of it. */
const run = (cwd, command, args, env = {}) => {
  const options = { cwd, encoding: "utf8", env: { ...process.env, CI: "true", ...env }, timeout: 240_000 }
  const { error, status, stderr, stdout } = spawnSync(command, args, options)
  if (error || status !== 0) {
    const said = `${stdout ?? ""}${stderr ?? ""}`.trim().split("\n").slice(-12).join("\n")
    throw new Error(`${command} ${args.join(" ")}: ${error?.message ?? `exit code ${status}`}\n${said}`)
  }
  return stdout
}

/** A tool from the registry, at a version: `npx -p PACKAGE COMMAND`. */
const tool = (cwd, packages, command, args, env) =>
  run(cwd, "npx", ["--yes", ...[packages].flat().flatMap((name) => ["-p", name]), "--", command, ...args], env)

const newFolder = (name, files = {}) => {
  const folder = join(work, name.replace(/\W+/g, "-"))
  mkdirSync(folder, { recursive: true })
  for (const [file, text] of Object.entries({ "package.json": `{ "type": "module", "private": true }`, ...files })) {
    writeFileSync(join(folder, file), text)
  }
  return folder
}

// The program: runs on a simulated device, then says how the native runtime fails. koffi works if that failure is another than KoffiNotLoaded.
const program = `import { CudaMemory, CudaStream, NativeRuntime, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
const copied = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const buffer = yield* CudaMemory.allocate(12)
  const answer = new Float32Array(3)
  yield* CudaMemory.upload(buffer, Float32Array.of(1, 2, 3), stream)
  yield* CudaMemory.download(answer, buffer, stream)
  return answer.join(" ")
}).pipe(Effect.scoped)
const native = Effect.match(Effect.provide(copied, NativeRuntime.layer()), {
  onFailure: (error) => error.reason._tag,
  onSuccess: (answer) => answer
})
const simulated = Effect.provide(copied, SimulatedRuntime.layer())
Effect.runPromise(Effect.all([simulated, native])).then(([a, b]) => console.log("simulated " + a + ", native " + b))
`
const withoutGpu = "LibraryNotFound"
const works = new Set([`simulated 1 2 3, native ${withoutGpu}`, "simulated 1 2 3, native 1 2 3"])
const withoutKoffi = new Set(["simulated 1 2 3, native KoffiNotLoaded"])

const expect = (output, expected = works) => {
  const line = output.trim().split("\n").at(-1)
  if (!expected.has(line)) throw new Error(`unexpected output: ${output}`)
  return line
}

/** pnpm ends with a failure when it skips a build script that it was told nothing about, but everything is installed. */
const refusal = (install) => {
  try {
    install()
  } catch (error) {
    const [code] = /ERR_PNPM_\w+/.exec(error.message) ?? []
    if (code === "ERR_PNPM_IGNORED_BUILDS") return code
    throw error
  }
  return "no refusal"
}

const tarball = join(work, `${manifest.name}-${manifest.version}.tgz`)
const dependencies = [tarball, `effect@${effectVersion}`]

/** An installation with npm, shared by the rows that need no installation of their own. */
let shared
const installed = () => {
  if (shared !== undefined) return shared
  const folder = newFolder("npm", { "main.js": program })
  run(folder, "npm", ["install", "--no-audit", "--no-fund", ...dependencies])
  return shared = folder
}

const bundler = (name, packages, command, args, { external }) => {
  const folder = installed()
  const out = `${name === "rollup" ? "folder" : "out"}-${name.replace(" ", "-")}${external ? "-external" : ""}`
  const file = name === "rollup" ? join(out, "main.js") : `${out}.js`
  tool(folder, packages, command, args(name === "rollup" ? out : file, external))
  // Away from node_modules, unless koffi is to be found there.
  if (external) return expect(run(folder, "node", [file]))
  const away = newFolder(`bundle ${name}`)
  const built = name === "rollup" ? out : file
  cpSync(join(folder, built), join(away, built), { recursive: true })
  return expect(run(away, "node", [file]), new Set([...works, ...withoutKoffi]))
}

const esbuild = (out, external) => [
  "main.js",
  "--bundle",
  "--platform=node",
  "--format=esm",
  `--outfile=${out}`,
  "--banner:js=import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);",
  ...external ? ["--external:koffi"] : ["--loader:.node=empty"]
]
const rollup = (out, external) => [
  "main.js",
  "-f",
  "esm",
  "-d",
  out,
  "-p",
  "@rollup/plugin-node-resolve={preferBuiltins:true}",
  "-p",
  "@rollup/plugin-commonjs={ignoreDynamicRequires:true}",
  "--silent",
  ...external ? ["--external", "koffi"] : []
]
const webpack = (out, external) => {
  const config =
    `export default { mode: "production", target: "node20", entry: "./main.js", experiments: { outputModule: true },
    output: { path: import.meta.dirname, filename: "${out}", module: true, chunkFormat: "module", asyncChunks: false },
    externalsType: "import", externals: ${external ? `{ koffi: "koffi" }` : "{}"}, optimization: { minimize: false },
    module: { rules: [{ test: /\\.node$/, type: "asset/inline" }] }, ignoreWarnings: [() => true] }`
  writeFileSync(join(installed(), "webpack.config.js"), config)
  return ["--config", "webpack.config.js"]
}
const vite = (out, external) => {
  const config = `export default { build: { ssr: "main.js", outDir: ".", emptyOutDir: false, minify: false,
    rollupOptions: { output: { entryFileNames: "${out}", codeSplitting: false } } },
    ssr: { noExternal: true${external ? `, external: ["koffi"]` : ""} }, logLevel: "error" }`
  writeFileSync(join(installed(), "vite.config.js"), config)
  return ["build", "--config", "vite.config.js"]
}
const bun = (out, external) => [
  "build",
  "main.js",
  "--target=node",
  `--outfile=${out}`,
  ...external ? ["--external", "koffi"] : []
]

const bundlers = {
  esbuild: ["esbuild@0.28", "esbuild", esbuild],
  rollup: [["rollup@4", "@rollup/plugin-node-resolve@16", "@rollup/plugin-commonjs@29"], "rollup", rollup],
  webpack: [["webpack@5", "webpack-cli@7"], "webpack", webpack],
  vite: ["vite@8", "vite", vite],
  "bun build": ["bun@1", "bun", bun]
}

const deno = (file, permissions, expected) => {
  const args = ["run", "--node-modules-dir=manual", "--no-prompt", ...permissions, file]
  return expect(tool(installed(), "deno@2", "deno", args), expected)
}

const rows = {
  "npm": () => expect(run(installed(), "node", ["main.js"])),
  "npm, its commands": () => {
    const { ok } = JSON.parse(
      spawnSync("npx", ["effect-cuda", "doctor", "--json"], { cwd: installed(), encoding: "utf8" }).stdout
    )
    run(installed(), "npx", ["effect-cuda", "demo", "main.js"])
    return `doctor (${ok ? "GPU" : "no GPU"}) and demo run`
  },
  "npm without scripts": () => {
    const folder = newFolder("npm without scripts", { "main.js": program })
    run(folder, "npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", ...dependencies])
    return expect(run(folder, "node", ["main.js"]))
  },
  "npm, from git": () => {
    const folder = newFolder("git", { "main.js": program })
    run(folder, "npm", ["install", "--no-audit", "--no-fund", `git+file://${root}`, `effect@${effectVersion}`])
    return expect(run(folder, "node", ["main.js"]))
  },
  "pnpm": () => {
    const folder = newFolder("pnpm", { "main.js": program, "pnpm-workspace.yaml": "allowBuilds:\n  koffi: false\n" })
    tool(folder, "pnpm@12", "pnpm", ["add", ...dependencies])
    return expect(run(folder, "node", ["main.js"]))
  },
  "pnpm without an answer": () => {
    const folder = newFolder("pnpm without an answer", { "main.js": program })
    const refused = refusal(() => tool(folder, "pnpm@12", "pnpm", ["add", ...dependencies]))
    return `${refused}; ${expect(run(folder, "node", ["main.js"]))}`
  },
  "yarn 1": () => {
    const folder = newFolder("yarn 1", { "main.js": program })
    tool(folder, "yarn@1", "yarn", ["add", "--silent", ...dependencies.map((name) => name.replace(/^\//, "file:/"))])
    return expect(run(folder, "node", ["main.js"]))
  },
  ...Object.fromEntries(["node-modules", "pnp"].map((linker) => [`yarn 4, ${linker}`, () => {
    const folder = newFolder(`yarn 4 ${linker}`, {
      "main.js": program,
      "yarn.lock": "",
      ".yarnrc.yml": `nodeLinker: ${linker}\nenableTelemetry: false\nenableGlobalCache: false\n`
    })
    const yarn = (...args) =>
      tool(folder, "@yarnpkg/cli-dist@4", "yarn", args, { YARN_ENABLE_IMMUTABLE_INSTALLS: "false" })
    yarn("add", `effect-cuda@file:${tarball}`, `effect@${effectVersion}`)
    return expect(yarn("node", "main.js"))
  }])),
  ...Object.fromEntries(
    Object.entries(bundlers).flatMap(([name, [packages, command, args]]) => [
      [`${name}, koffi external`, () => bundler(name, packages, command, args, { external: true })],
      [`${name}, koffi bundled`, () => bundler(name, packages, command, args, { external: false })]
    ])
  ),
  ...Object.fromEntries(
    ["20.19", "22", "24", "26"].map((
      version
    ) => [`Node.js ${version}`, () => expect(tool(installed(), `node@${version}`, "node", ["main.js"]))])
  ),
  "Bun": () => expect(tool(installed(), "bun@1", "bun", ["main.js"])),
  "Deno, with --allow-ffi": () => deno("main.js", ["--allow-ffi"]),
  "Deno, without permissions": () => deno("main.js", [], withoutKoffi)
}

run(root, "npm", ["pack", "--silent", "--pack-destination", work])
const wanted = process.argv.slice(2)
const chosen = Object.entries(rows).filter(([name]) =>
  wanted.length === 0 || wanted.some((part) => name.includes(part))
)
const results = []
for (const [name, attempt] of chosen) {
  const start = Date.now()
  let result
  try {
    result = { name, ok: true, text: attempt() }
  } catch (error) {
    result = { name, ok: false, text: error.message }
  }
  console.error(
    `${result.ok ? "ok  " : "FAIL"} ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)${
      result.ok ? "" : `\n${result.text}`
    }`
  )
  results.push(result)
}
console.log("\n| installed with | result |\n| --- | --- |")
for (const { name, ok, text } of results) console.log(`| ${name} | ${ok ? text : "fails"} |`)
process.exitCode = results.every(({ ok }) => ok) ? 0 : 1
