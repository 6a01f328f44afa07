// The pages of the site: what surrounds every page, the pages of guides, modules and files of the repository.
import { escape, highlight } from "./highlight.mjs"
import { render } from "./markdown.mjs"

const link = (href, title, current) => `<a href="${href}"${current ? ` aria-current="page"` : ""}>${escape(title)}</a>`

/** The list of all pages, at the left. */
const navigation = ({ groups, modules }, root, address) => {
  const group = (title, pages) =>
    `<section><h2>${escape(title)}</h2><ul>${
      pages.map((page) => `<li>${link(root + page.address, page.title, page.address === address)}</li>`).join("")
    }</ul></section>`
  return [
    ...groups.slice(0, -1).map(({ pages, title }) => group(title, pages)),
    group("Reference", [
      { address: "api/index.html", title: "All modules" },
      ...modules.map(({ name }) => ({ address: `api/${name}.html`, title: name }))
    ]),
    group("Project", groups.at(-1).pages)
  ].join("\n")
}

const contents = (items) =>
  items.length < 2 ?
    "" :
    `<nav class="contents" aria-label="On this page"><h2>On this page</h2><ul>${
      items.map(({ id, level, title }) => `<li class="level${level}"><a href="#${id}">${escape(title)}</a></li>`).join(
        ""
      )
    }</ul></nav>`

/** A whole page. `site` has what all pages share. */
export const page = (site, { address, body, items = [], title }) => {
  const root = "../".repeat(address.split("/").length - 1)
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title === site.name ? `${site.name}: ${site.description}` : `${title} · ${site.name}`)}</title>
<meta name="description" content="${escape(site.description)}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="${root}assets/icon.svg">
<link rel="stylesheet" href="${root}assets/style.css">
<script>const theme = localStorage.getItem("theme"); if (theme) document.documentElement.dataset.theme = theme</script>
</head>
<body data-root="${root}">
<a class="skip" href="#main">Skip to the text</a>
<header>
<button id="menu" aria-label="Pages" aria-expanded="false" aria-controls="pages">☰</button>
<a class="name" href="${root}index.html">${escape(site.name)}</a>
<div id="search" role="search"><input type="search" placeholder="Search (press /)" aria-label="Search" autocomplete="off" spellcheck="false" role="combobox" aria-expanded="false" aria-controls="results"><div id="results" role="listbox" hidden></div></div>
<span class="version">${escape(site.version)}</span>
<button id="theme" aria-label="Light or dark">◐</button>
</header>
<div class="columns">
<nav id="pages" aria-label="Pages">
${navigation(site, root, address)}
</nav>
<main id="main">
${body}
</main>
${contents(items)}
</div>
<script src="${root}assets/search.js" defer></script>
</body>
</html>
`
}

const anchors = (sections) => sections.filter(({ id, level }) => id !== "" && (level === 2 || level === 3))

/** A page from Markdown. */
export const markdownPage = (site, address, markdown, links) => {
  const { html, sections } = render(markdown, links)
  const title = sections.find(({ level, id }) => level === 1 && id !== "")?.title ?? address
  return {
    address,
    title,
    sections,
    html: page(site, { address, title, body: `<article>${html}</article>`, items: anchors(sections) })
  }
}

/** A file of the repository as a page. */
export const sourcePage = (site, address, path, text, codeLink) =>
  page(site, {
    address,
    title: path,
    body: `<article><h1>${escape(path)}</h1><pre class="code"><code>${
      highlight(text, path.split(".").at(-1), codeLink)
    }</code></pre></article>`
  })

/** Categories in the order of the source. Types, of which there are many, come last, and guards before them. */
const categoriesOf = (entries) => {
  const categories = new Map()
  for (const entry of entries) {
    const category = entry.doc?.category ?? "other"
    categories.set(category, [...(categories.get(category) ?? []), entry])
  }
  const last = (name) => ["guards", "models", "other"].indexOf(name)
  return [...categories].sort(([a], [b]) => last(a) - last(b))
}

const capital = (text) => text[0].toUpperCase() + text.slice(1)
const categoryId = (category) => `category-${category.replaceAll(" ", "-")}`
const inlineLinks = (text) => text.replace(/\{@link ([\w.$]+)\}/g, "`$1`")

const shorten = (signature) =>
  signature
    .replace(/^export (declare )?/gm, "")
    .replace(/^declare const (\w+)_base: /gm, "const $1_base: ")
    .replace(/;$/gm, "")
    .replace(/^( {4})+/gm, (spaces) => " ".repeat(spaces.length / 2))

export const apiPage = (site, module, linksFor) => {
  const address = `api/${module.name}.html`
  const imported = module.name === "CudaSchema"
    ? `import * as ${module.name} from "effect-cuda/${module.name}"`
    : `import { ${module.name} } from "effect-cuda"`
  const items = []
  const sections = []
  const entryHtml = (entry) => {
    const links = linksFor(entry)
    items.push({ id: entry.name, level: 3, title: entry.name })
    const text = inlineLinks(entry.doc?.body ?? "")
    const { html, sections: [{ text: found }] } = render(text, { ...links, headingLevel: 3, prefix: `${entry.name}-` })
    sections.push({ id: entry.name, level: 2, title: `${module.name}.${entry.name}`, text: found })
    const see = entry.doc?.see.length
      ? render(entry.doc.see.map((line) => `- ${inlineLinks(line)}`).join("\n"), links).html
      : ""
    return `<section class="entry">
<h3 id="${entry.name}">${
      escape(entry.name)
    } <span class="kind">${entry.kind}</span> <a class="anchor" href="#${entry.name}" aria-label="Link to ${
      escape(entry.name)
    }">#</a></h3>
<pre class="code signature"><code>${highlight(shorten(entry.signature), "ts", links.signatureLink)}</code></pre>
${html}${see === "" ? "" : `<p class="see">See also</p>${see}`}
</section>`
  }
  const groups = categoriesOf(module.entries).map(([category, entries]) => {
    items.push({ id: categoryId(category), level: 2, title: capital(category) })
    return `<h2 id="${categoryId(category)}">${escape(capital(category))}</h2>\n${entries.map(entryHtml).join("\n")}`
  })
  const intro = render(inlineLinks(module.doc.body), linksFor())
  const index = categoriesOf(module.entries).map(([category, entries]) =>
    `<tr><th>${escape(capital(category))}</th><td>${
      entries.map(({ name }) => `<a href="#${name}"><code>${name}</code></a>`).join(" ")
    }</td></tr>`
  )
  const body = `<article class="api"><h1>${module.name}</h1>
${intro.html}
<pre class="code"><code>${highlight(imported, "ts")}</code></pre>
<div class="table"><table class="index"><tbody>${index.join("\n")}</tbody></table></div>
${groups.join("\n")}</article>`
  return {
    address,
    sections: [{ id: "", level: 1, title: module.name, text: intro.sections[0].text }, ...sections],
    html: page(site, { address, title: module.name, body, items })
  }
}

export const apiIndex = (site, modules, links) => {
  const rows = modules.map((module) =>
    `<tr><td><a href="${module.name}.html"><code>${module.name}</code></a></td><td>${
      render(inlineLinks(module.doc.summary), links).html
    }</td></tr>`
  )
  const body = `<article><h1>All modules</h1>
<p>Import them from <code>"effect-cuda"</code>, or one at a time: <code>import * as CudaStream from "effect-cuda/CudaStream"</code>.</p>
<div class="table"><table><thead><tr><th>Module</th><th>Purpose</th></tr></thead><tbody>${
    rows.join("\n")
  }</tbody></table></div></article>`
  return page(site, { address: "api/index.html", title: "All modules", body })
}
