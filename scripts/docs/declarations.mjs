// Reads the public API from the declarations of the build: every export of every public module, with its doc comment and its
// declaration. The compiler writes one statement after the other, each of which begins a line, so no parser is needed. What it reads is
// compared with what the built modules really export.
import { readdirSync, readFileSync } from "node:fs"
import { dirname, join, relative, sep } from "node:path"
import { pathToFileURL } from "node:url"

/**
 * @typedef {{ summary: string, body: string, category: string, see: Array<string> }} Doc
 * @typedef {{ name: string, kind: string, signature: string, file: string, doc: Doc | undefined }} Entry
 * @typedef {{ name: string, file: string, doc: Doc, entries: Array<Entry>, imports: Map<string, Map<string, Import>> }} Module
 * @typedef {{ file: string, name: string | undefined }} Import `name` is undefined for a namespace
 */

const statementStart = /^(export|declare|import|type|interface|namespace|abstract)\b/

/** The top-level statements of a file, each with the doc comment before it. */
const statementsOf = (text) => {
  const lines = text.split("\n")
  const statements = []
  let comment
  for (let index = 0; index < lines.length; index++) {
    if (lines[index].startsWith("/**")) {
      const begin = index
      while (!lines[index].includes("*/")) index++
      // The first comment of most files is about the module.
      comment = statements.length === 0 ? undefined : lines.slice(begin, index + 1).join("\n")
    } else if (statementStart.test(lines[index])) {
      const begin = index
      const inBraces = /^export (type )?\{\s*$/.test(lines[index].trimEnd())
      // Comments inside of `export { … }` begin a line, too.
      const ends = (line) =>
        inBraces ? /^[\w ,]*\}(?: from "[^"]*")?;$/.test(line) : statementStart.test(line) || line.startsWith("/**")
      while (index + 1 < lines.length && !ends(lines[index + 1])) index++
      if (inBraces) index++
      const code = lines.slice(begin, index + 1).filter((line) => !line.startsWith("//# ")).join("\n").trim()
      statements.push({ comment, code })
      comment = undefined
    }
  }
  return statements
}

/** @returns {Doc} */
export const parseComment = (comment = "/** */") => {
  const lines = comment.replace(/^\/\*\*/, "").replace(/\*\/\s*$/, "").split("\n").map((line) =>
    line.replace(/^\s*\* ?/, "")
  )
  const text = []
  const see = []
  let category = "other"
  let fenced = false
  for (const line of lines) {
    if (line.startsWith("```")) fenced = !fenced
    const tag = fenced ? null : /^@(\w+)\s*(.*)$/.exec(line)
    if (tag === null) text.push(line)
    else if (tag[1] === "category") category = tag[2]
    else if (tag[1] === "see") see.push(tag[2])
  }
  const body = text.join("\n").trim()
  return { body, category, see, summary: body.split(/\n\s*\n/)[0] ?? "" }
}

const importsOf = (statements, folder) => {
  const imports = new Map()
  for (const { code } of statements) {
    const match = /^import (?:type )?(?:\* as (\w+)|\{([^}]*)\}) from "(\.[^"]*)"/.exec(code)
    if (match === null) continue
    const file = join(folder, match[3]).split(sep).join("/")
    if (match[1] !== undefined) imports.set(match[1], { file, name: undefined })
    for (const part of match[2]?.split(",") ?? []) {
      const [name, local = name] = part.trim().replace(/^type /, "").split(" as ")
      imports.set(local, { file, name })
    }
  }
  return imports
}

const declared = /^(?:export )?(?:declare )?(?:abstract )?(const|function|class|interface|type|namespace) ([\w$]+)/
const kinds = {
  const: "value",
  function: "function",
  class: "class",
  interface: "interface",
  type: "type",
  namespace: "namespace"
}

/** Reads `export` lists with comments: `export { /** … *\/ Name } from "./file.ts"`. */
const listedIn = (code) => {
  const match = /^export (?:type )?\{([\s\S]*)\}(?: from "([^"]*)")?;?$/.exec(code)
  if (match === null) return []
  const items = [...match[1].matchAll(/(\/\*\*[\s\S]*?\*\/)?\s*(?:type )?([\w$]+)(?: as ([\w$]+))?\s*,?/g)]
  return items.map(([, comment, from, name = from]) => ({ comment, from, name, file: match[2] }))
}

/** @returns {(file: string) => { entries: Map<string, Entry>, imports: Map<string, Import>, all: Map<string, string> }} */
const reader = (dist) => {
  const known = new Map()
  const read = (file) => {
    const before = known.get(file)
    if (before !== undefined) return before
    const statements = statementsOf(readFileSync(join(dist, file.replace(/\.ts$/, ".d.ts")), "utf8"))
    const folder = dirname(file)
    const entries = new Map()
    const all = new Map()
    const result = { entries, imports: importsOf(statements, folder), all }
    known.set(file, result)
    const add = (name, kind, signature, from, comment) => {
      const entry = entries.get(name)
      const doc = comment === undefined ? undefined : parseComment(comment)
      if (entry === undefined) entries.set(name, { name, kind, signature, file: from, doc })
      else {
        // Overloads, and types that have the name of a value.
        entry.signature += `\n${signature}`
        if (entry.kind !== kind) entry.kind = `${entry.kind}, ${kind}`
        if (entry.doc === undefined) entry.doc = doc
        else if (doc !== undefined && doc.body !== entry.doc.body) entry.doc.body += `\n\n${doc.body}`
      }
    }
    for (const { code, comment } of statements) {
      const target = (path) => join(folder, path).split(sep).join("/")
      const star = /^export (?:type )?\* from "([^"]*)"/.exec(code)
      const match = declared.exec(code)
      if (star !== null) { for (const entry of read(target(star[1])).entries.values()) entries.set(entry.name, entry) }
      else if (match !== null) {
        all.set(match[2], `${all.has(match[2]) ? `${all.get(match[2])}\n` : ""}${code}`)
        if (!code.startsWith("export")) continue
        const base = /^export declare (?:abstract )?class \w+ extends (\w+_base)\b/.exec(code)
        const signature = base === null || !all.has(base[1]) ? code : `${all.get(base[1])}\n${code}`
        add(match[2], kinds[match[1]], signature, file, comment)
      } else {
        for (const listed of listedIn(code)) {
          const imported = result.imports.get(listed.from)
          const from = listed.file === undefined ? imported?.file ?? file : target(listed.file)
          const name = listed.file === undefined ? imported?.name ?? listed.from : listed.from
          const entry = from === file ? undefined : read(from).entries.get(name)
          const signature = entry?.signature ?? read(from).all.get(name)
          if (signature === undefined) throw new Error(`${file} exports ${listed.name}, which is not in ${from}`)
          const kind = entry?.kind ?? kinds[declared.exec(signature)?.[1] ?? "const"]
          add(listed.name, kind, signature, entry?.file ?? from, listed.comment)
          entries.get(listed.name).doc ??= entry?.doc
        }
      }
    }
    return result
  }
  return read
}

/** The names that the build exports, but that are left out of the declarations. */
const internalNames = (src) =>
  new Set(
    readdirSync(src, { recursive: true }).filter((path) => path.endsWith(".ts")).flatMap((path) =>
      [...readFileSync(join(src, path), "utf8").matchAll(/@internal[^*]*\*\/\s*export (?:abstract )?\w+ ([\w$]+)/g)]
        .map(([, name]) => name)
    )
  )

/** The public modules, in alphabetical order. @returns {Promise<Array<Module>>} */
export const readModules = async (root) => {
  const dist = join(root, "dist")
  const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
  const read = reader(dist)
  const internal = internalNames(join(root, "src"))
  const named = Object.entries(manifest.exports).flatMap(([path, to]) =>
    path !== "." && typeof to?.types === "string" && !to.types.includes("*")
      ? [[path.slice(2), relative("dist", to.types).split(sep).join("/")]]
      : []
  )
  const layers = new Map(named.map(([name, file]) => [name, file.replace(/\.d\.ts$/, ".ts")]))
  const index = readFileSync(join(dist, "index.d.ts"), "utf8")
  const inBarrel = [...index.matchAll(/export \* as (\w+) from "\.\/([^"]*)"/g)].map(([, name, file]) => [name, file])
  const files = new Map([...inBarrel, ...layers, ["CudaSchema", "CudaSchema.ts"]])
  const modules = []
  for (const [name, file] of [...files].sort(([a], [b]) => a < b ? -1 : 1)) {
    const { entries, imports } = read(file)
    const built = await import(pathToFileURL(join(dist, file.replace(/\.ts$/, ".js"))).href)
    const missing = Object.keys(built).filter((key) => !entries.has(key) && !internal.has(key))
    if (missing.length > 0) throw new Error(`The declarations of ${name} lack ${missing.join(", ")}`)
    const importsByFile = new Map([[file, imports]])
    for (const entry of entries.values()) importsByFile.set(entry.file, read(entry.file).imports)
    // The compiler drops the comment of some modules.
    const moduleDoc = /^\/\*\*[\s\S]*?\*\//.exec(readFileSync(join(root, "src", file), "utf8"))?.[0]
    for (const entry of entries.values()) {
      if (entry.kind === "value" && /^export declare const \w+: (?:\{\s*)?[(<]/.test(entry.signature)) {
        entry.kind = "function"
      }
    }
    modules.push({ name, file, doc: parseComment(moduleDoc), entries: [...entries.values()], imports: importsByFile })
  }
  return modules
}
