// `npm run docs`: builds the documentation site in `site/` from README.md, the guides in docs/, and the doc comments of the build. Needs
// no network. A guide is a Markdown file in docs/; docs/order.json says where it is listed, and guides that it does not name come last.
import MiniSearch from "minisearch"
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { basename, dirname, join, posix } from "node:path"
import { fileURLToPath } from "node:url"
import { readModules } from "./declarations.mjs"
import { apiIndex, apiPage, markdownPage, sourcePage } from "./pages.mjs"
import { options } from "./searchOptions.mjs"

const root = fileURLToPath(new URL("../..", import.meta.url))
const output = join(root, "site")
const assets = fileURLToPath(new URL("assets", import.meta.url))
const read = (path) => readFileSync(join(root, path), "utf8")
const write = (address, content) => {
  mkdirSync(dirname(join(output, address)), { recursive: true })
  writeFileSync(join(output, address), content)
}

if (!existsSync(join(root, "dist", "index.d.ts"))) throw new Error("The site needs a build: npm run build")
rmSync(output, { recursive: true, force: true })

const manifest = JSON.parse(read("package.json"))
const modules = await readModules(root)

// Guides, in groups.
const titleOf = (path) => /^# (.*)$/m.exec(read(path))?.[1].replaceAll("`", "") ?? basename(path, ".md")
const guide = (name) => ({ path: `docs/${name}.md`, address: `guides/${name}.html`, title: titleOf(`docs/${name}.md`) })
const names = readdirSync(join(root, "docs")).filter((file) => file.endsWith(".md")).map((file) =>
  basename(file, ".md")
)
const order = JSON.parse(read("docs/order.json"))
const listed = order.flatMap(({ guides }) => guides)
const others = names.filter((name) => !listed.includes(name)).sort()
const groups = order
  .map(({ guides, title }) => ({ title, pages: guides.filter((name) => names.includes(name)).map(guide) }))
  .filter((group) => group.pages.length > 0)
  .concat(others.length === 0 ? [] : [{ title: "More", pages: others.map(guide) }])
const project = ["CHANGELOG.md", "BENCHMARKS.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"]
  .map((path) => ({ path, address: `project/${basename(path, ".md").toLowerCase()}.html`, title: titleOf(path) }))
const home = { path: "README.md", address: "index.html", title: "Start" }
groups[0].pages.unshift(home)
const pages = [...groups.flatMap((group) => group.pages), ...project]
groups.push({ title: "Project", pages: project })

const site = { name: manifest.name, description: manifest.description, version: manifest.version, groups, modules }

// Links.
const addresses = new Map(pages.map(({ address, path }) => [path, address]))
const copies = new Map()
const sources = new Map()

/** The address of a file of the repository, which becomes a page if it is none yet. */
const addressOf = (path, isImage) => {
  if (addresses.has(path)) return addresses.get(path)
  if (isImage || /\.(svg|png|jpg)$/.test(path)) {
    copies.set(path, `files/${path}`)
    return copies.get(path)
  }
  sources.set(path, `source/${path}.html`)
  return sources.get(path)
}

/** Names in guides and doc comments that look like exports of modules, but are none. */
const unknown = new Set()
const exported = new Map(modules.map(({ entries, name }) => [name, new Set(entries.map((entry) => entry.name))]))

/** How the page at an address refers to names and files. `path` is the file that its text comes from. */
const linksOf = (address, path) => {
  const from = posix.dirname(address)
  const to = (target) => posix.relative(from, target) || basename(target)
  const codeLink = (name) => {
    const [module, member, ...more] = name.split(".")
    const known = exported.get(module)
    if (known === undefined || more.length > 0) return undefined
    if (member === undefined) return to(`api/${module}.html`)
    if (known.has(member)) return `${to(`api/${module}.html`)}#${member}`
    if (member !== "ts") unknown.add(`${path}: ${module} exports no ${member}`)
    return undefined
  }
  const resolve = (href, isImage) => {
    if (/^[a-z]+:/.test(href) || href.startsWith("#")) return href
    const [target, hash] = href.split("#")
    const file = posix.join(posix.dirname(path), target)
    if (!existsSync(join(root, file)) || statSync(join(root, file)).isDirectory()) {
      throw new Error(`${path}: no such file: ${href}`)
    }
    return to(addressOf(file, isImage)) + (hash === undefined ? "" : `#${hash}`)
  }
  return { codeLink, link: (href) => resolve(href, false), image: (href) => resolve(href, true) }
}

const moduleOfFile = new Map()
for (const { entries, file, name } of modules) {
  for (const entry of entries) {
    if (!moduleOfFile.has(`${entry.file} ${entry.name}`)) moduleOfFile.set(`${entry.file} ${entry.name}`, name)
  }
  moduleOfFile.set(file, name)
}
/** Where the types in a declaration lead: through the imports of its file, or to the same page. */
const signatureLink = (module, entry, codeLink) => {
  const own = new Set(module.entries.map(({ name }) => name))
  const imports = module.imports.get(entry.file) ?? new Map()
  return (written) => {
    const [name, member] = written.split(".")
    const imported = imports.get(name)
    if (imported !== undefined && imported.name === undefined) {
      const target = moduleOfFile.get(imported.file)
      return member === undefined || target === undefined ? undefined : codeLink(`${target}.${member}`)
    }
    if (member !== undefined || written === entry.name) return undefined
    if (imported !== undefined) {
      const target = moduleOfFile.get(`${imported.file} ${imported.name}`) ?? moduleOfFile.get(imported.file)
      return target === undefined ? undefined : codeLink(`${target}.${imported.name}`)
    }
    // Lower-case names are parameters and members more often than exports.
    return /^[A-Z]/.test(name) && own.has(name) ? `#${name}` : undefined
  }
}
const apiLinks = (module) => (entry) => {
  const own = new Set(module.entries.map(({ name }) => name))
  const links = linksOf(`api/${module.name}.html`, `src/${module.file}`)
  const codeLink = (name) =>
    name !== entry?.name && own.has(name) && /^\w{4,}$/.test(name) ? `#${name}` : links.codeLink(name)
  // Examples name other modules; in the text, names of the same module are enough.
  return {
    ...links,
    codeLink,
    signatureLink: entry === undefined ? undefined : signatureLink(module, entry, links.codeLink)
  }
}

// Pages, and what the search knows of them.
const documents = []
const addDocuments = (kind, address, title, sections) => {
  for (const section of sections) {
    if (section.title === "" && section.text === "") continue
    documents.push({
      id: documents.length,
      kind,
      page: title,
      title: section.title || title,
      text: section.text,
      url: section.id === "" ? address : `${address}#${section.id}`
    })
  }
}
for (const { address, path, title } of pages) {
  const made = markdownPage(site, address, read(path), linksOf(address, path))
  write(address, made.html)
  addDocuments(project.some((entry) => entry.path === path) ? "project" : "guide", address, title, made.sections)
}
for (const module of modules) {
  const made = apiPage(site, module, apiLinks(module))
  write(made.address, made.html)
  addDocuments("api", made.address, module.name, made.sections)
}
write("api/index.html", apiIndex(site, modules, linksOf("api/index.html", "README.md")))
for (const [path, address] of sources) {
  write(address, sourcePage(site, address, path, read(path), linksOf(address, path).codeLink))
}
for (const [path, address] of copies) {
  mkdirSync(dirname(join(output, address)), { recursive: true })
  cpSync(join(root, path), join(output, address))
}

// The search: its library, its index as a script (so that the site also works from files), and the rest of the assets.
cpSync(assets, join(output, "assets"), { recursive: true })
const index = new MiniSearch(options)
index.addAll(documents)
const library = join(root, "node_modules", "minisearch", "dist", "umd", "index.js")
const script = read("scripts/docs/searchOptions.mjs").replace(/^export const options/m, "globalThis.searchOptions")
write(
  "assets/searchIndex.js",
  `${readFileSync(library, "utf8").replace(/^\/\/# .*$/m, "")}\n{${script}}\nglobalThis.searchIndex = ${
    JSON.stringify(JSON.stringify(index))
  }\n`
)
for (const name of unknown) console.error(name)
if (unknown.size > 0) process.exit(1)
console.log(
  `site: ${pages.length} guides and documents, ${modules.length} modules with ${
    modules.reduce((sum, { entries }) => sum + entries.length, 0)
  } exports, ${sources.size} source files`
)
