// Counts the public exports whose doc comment has no example. Types, guards and errors do without one. The number of those that lack one
// must not grow: it is in scripts/docs/examples.json, and goes down with `--write`. `--list` names them.
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { readModules } from "./declarations.mjs"

const root = fileURLToPath(new URL("../..", import.meta.url))
const limitFile = join(root, "scripts", "docs", "examples.json")
const { limit } = JSON.parse(readFileSync(limitFile, "utf8"))

const needsExample = ({ doc, kind }) =>
  !/^(interface|type|type, interface)$/.test(kind) && !["guards", "models"].includes(doc?.category)
const names = []
let all = 0
for (const module of await readModules(root)) {
  for (const entry of module.entries.filter(needsExample)) {
    all++
    if (!entry.doc?.body.includes("```ts")) names.push(`${module.name}.${entry.name}`)
  }
}

if (process.argv.includes("--list")) { for (const name of names) console.log(name) }
if (process.argv.includes("--write")) {
  writeFileSync(limitFile, JSON.stringify({ limit: Math.min(limit, names.length) }) + "\n")
}
if (names.length > limit) {
  console.error(
    `${names.length} public exports have no example, ${limit} are allowed: add examples to new exports.\n${
      names.join("\n")
    }`
  )
  process.exit(1)
}
console.log(
  `documentation: ${all - names.length} of ${all} exports have an example, ${names.length} lack one (at most ${limit})`
)
