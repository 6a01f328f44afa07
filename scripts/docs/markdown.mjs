// Markdown to HTML: anchors for headings as on GitHub, colored code, and links that lead to pages of the site.
import { Marked } from "marked"
import { escape, highlight } from "./highlight.mjs"

/** The anchor of a heading, as GitHub makes it. */
export const slugOf = (text) =>
  text.toLowerCase().replace(/[^\p{Letter}\p{Number}\s_-]/gu, "").trim().replace(/\s/g, "-")

const plain = (html) =>
  html.replace(/<\/(?:td|th|li|p|tr)>/g, " ").replace(/<[^>]*>/g, "").replace(/&lt;/g, "<").replace(/&gt;/g, ">")
    .replace(/&quot;/g, "\"").replace(/&#39;/g, "'").replace(/&amp;/g, "&")

/**
 * Returns the HTML, and its sections for the table of contents and the search.
 *
 * `codeLink` answers the address of a name in code, `link` that of a link in the text, and `image` that of a picture.
 */
export const render = (markdown, { codeLink, headingLevel = 0, image, link, prefix = "" }) => {
  const sections = [{ id: "", level: 1, title: "", text: [] }]
  const used = new Map()
  const marked = new Marked({ gfm: true })
  marked.use({
    renderer: {
      code({ lang, text }) {
        const language = (lang ?? "").split(/\s/)[0]
        return `<pre class="code"><code>${highlight(text, language, codeLink)}</code></pre>\n`
      },
      codespan({ text }) {
        const href = codeLink(text.replace(/\(.*\)$/, ""))
        const code = `<code>${escape(text)}</code>`
        return href === undefined ? code : `<a href="${escape(href)}">${code}</a>`
      },
      heading({ depth, tokens }) {
        const html = this.parser.parseInline(tokens)
        const title = plain(html)
        const slug = prefix + slugOf(title)
        const count = used.get(slug) ?? 0
        used.set(slug, count + 1)
        const id = count === 0 ? slug : `${slug}-${count}`
        const level = depth + headingLevel
        sections.push({ id, level, title, text: [] })
        const text = html.replace(/<\/?a\b[^>]*>/g, "")
        return level === 1
          ? `<h1 id="${id}">${text}</h1>\n`
          : `<h${level} id="${id}">${text} <a class="anchor" href="#${id}" aria-label="Link to this section">#</a></h${level}>\n`
      },
      image({ href, text }) {
        return `<img src="${escape(image(href))}" alt="${escape(text)}">`
      },
      link({ href, tokens }) {
        const inner = this.parser.parseInline(tokens).replace(/<\/?a\b[^>]*>/g, "")
        return `<a href="${escape(link(href))}">${inner}</a>`
      },
      table({ header, rows }) {
        const cell = (tag) => ({ tokens }) => `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`
        const row = (cells, tag) => `<tr>${cells.map(cell(tag)).join("")}</tr>`
        const body = rows.map((cells) => row(cells, "td")).join("\n")
        return `<div class="table"><table><thead>${row(header, "th")}</thead><tbody>\n${body}\n</tbody></table></div>\n`
      }
    },
    walkTokens(token) {
      if (token.type === "html" && !/^<(br|kbd|sub|sup|\/|!--|a |p|img|details|summary)/.test(token.raw.trim())) {
        throw new Error(`HTML in a guide: ${token.raw.trim()}`)
      }
    }
  })
  const html = marked.parse(markdown)
  // The text of each section, for the search.
  const parts = html.split(/<h\d id="[^"]*">[\s\S]*?<\/h\d>/)
  parts.forEach((part, index) =>
    sections[index].text.push(plain(part.replace(/<pre[\s\S]*?<\/pre>/g, " ")).replace(/\s+/g, " ").trim())
  )
  return { html, sections: sections.map((section) => ({ ...section, text: section.text.join(" ") })) }
}
