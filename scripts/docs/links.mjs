// Checks the built site: every link leads to a page or file of it, and to an anchor that exists; no anchor exists twice. `--external` lists
// the links that lead elsewhere.
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs"
import { dirname, join, posix, sep } from "node:path"
import { fileURLToPath } from "node:url"

const site = join(fileURLToPath(new URL("../..", import.meta.url)), "site")
if (!existsSync(site)) {
  console.error("There is no site: npm run docs")
  process.exit(1)
}
const files = readdirSync(site, { recursive: true })
  .map((path) => path.split(sep).join("/"))
  .filter((path) => statSync(join(site, path)).isFile())
const pages = new Map(
  files.filter((path) => path.endsWith(".html")).map((path) => [path, readFileSync(join(site, path), "utf8")])
)
const text = (html) => html.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&quot;/g, "\"").replace(/&amp;/g, "&")
const valuesOf = (html, attribute) =>
  [...html.matchAll(new RegExp(`<[^>]*\\s${attribute}="([^"]*)"`, "g"))].map(([, value]) => text(value))
const ids = new Map([...pages].map(([path, html]) => [path, valuesOf(html, "id")]))

const problems = []
const external = new Set()
let count = 0
for (const [path, html] of pages) {
  const twice = ids.get(path).filter((id, index, all) => all.indexOf(id) !== index)
  for (const id of new Set(twice)) problems.push(`${path}: the anchor #${id} exists twice`)
  for (const href of [...valuesOf(html, "href"), ...valuesOf(html, "src")]) {
    if (/^[a-z]+:/.test(href)) {
      external.add(href)
      continue
    }
    count++
    const [target, hash] = href.split("#")
    const page = target === "" ? path : posix.join(dirname(path), target)
    if (!files.includes(page)) problems.push(`${path}: no page for ${href}`)
    else if (hash !== undefined && !ids.get(page)?.includes(decodeURIComponent(hash))) {
      problems.push(`${path}: no anchor for ${href}`)
    }
  }
}
for (const problem of new Set(problems)) console.error(problem)
if (process.argv.includes("--external")) { for (const href of [...external].sort()) console.log(href) }
if (problems.length > 0) process.exit(1)
console.log(`site: ${count} links of ${pages.size} pages lead somewhere`)
