// Type-checks the examples of the documentation: every ```ts block of README.md, of docs/, and of the JSDoc in src/. Each is
// compiled as a separate module that imports the built package by name. Requires a build. Skips blocks opened with
// ```ts no-check. Errors refer to files and lines of the documentation.
import { spawnSync } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join, sep } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const folder = join(root, ".readme-check")
const filesIn = (path, extension) =>
  existsSync(join(root, path))
    ? readdirSync(join(root, path), { recursive: true })
      .filter((file) => file.endsWith(extension))
      .map((file) => `${path}/${file.split(sep).join("/")}`)
    : []

/** The ts blocks of a file, each with its first line number. In JSDoc, removes the leading ` * `. */
const blocksOf = (text, inJSDoc) => {
  const blocks = []
  let open
  for (const [index, raw] of text.split("\n").entries()) {
    if (inJSDoc && !/^\s*\*/.test(raw)) {
      open = undefined
      continue
    }
    const line = inJSDoc ? raw.replace(/^\s*\* ?/, "") : raw
    if (open === undefined) {
      const fence = /^(\s*)```(ts|typescript)\b(.*)$/.exec(line)
      if (fence) open = { line: index + 2, code: [], checked: !fence[3].includes("no-check") }
      else if (/^\s*```\S/.test(line)) open = { line: index + 2, code: [], checked: false }
    } else if (/^\s*```\s*$/.test(line)) {
      if (open.checked) blocks.push(open)
      open = undefined
    } else open.code.push(line)
  }
  return blocks
}

rmSync(folder, { recursive: true, force: true })
mkdirSync(folder)
const origins = new Map()
for (const file of ["README.md", ...filesIn("docs", ".md"), ...filesIn("src", ".ts")]) {
  if (!existsSync(join(root, file))) continue
  for (const { code, line } of blocksOf(readFileSync(join(root, file), "utf8"), file.endsWith(".ts"))) {
    const name = `${file.replace(/[^A-Za-z0-9]+/g, "-")}-${line}.ts`
    origins.set(name, { file, line })
    // The lines are kept, so that line numbers of errors match the documentation.
    writeFileSync(join(folder, name), `${code.join("\n")}\nexport {}\n`)
  }
}
if (origins.size === 0) {
  console.log("documentation check: no examples found")
  process.exit(0)
}
writeFileSync(
  join(folder, "tsconfig.json"),
  JSON.stringify({
    extends: "../tsconfig.base.json",
    compilerOptions: { rootDir: ".", noEmit: true, noUnusedLocals: false, noUnusedParameters: false },
    include: ["*.ts"]
  })
)
const tsc = join(root, "node_modules", "typescript", "bin", "tsc")
const result = spawnSync(process.execPath, [tsc, "-p", folder, "--pretty", "false"], { cwd: folder, encoding: "utf8" })
const report = `${result.stdout}${result.stderr}`.replace(/^(\S+\.ts)\((\d+),/gm, (match, name, line) => {
  const origin = origins.get(name)
  return origin ? `${origin.file}(${origin.line + Number(line) - 1},` : match
})
process.stdout.write(report)
if (result.status !== 0) process.exit(result.status ?? 1)
console.log(`documentation check: ${origins.size} examples compile`)
rmSync(folder, { recursive: true, force: true })
