// The search, the list of pages on narrow screens, and the choice of light or dark.
const rootPath = document.body.dataset.root
const box = document.querySelector("#search input")
const results = document.querySelector("#results")
let loading
let selected = -1

/** Loads the index when somebody begins to search. */
const load = () =>
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script")
    script.src = `${rootPath}assets/searchIndex.js`
    script.onload = () => resolve(MiniSearch.loadJSON(globalThis.searchIndex, globalThis.searchOptions))
    script.onerror = reject
    document.head.append(script)
  })

const excerpt = (text, terms) => {
  const lower = text.toLowerCase()
  const found = terms.map((term) => lower.indexOf(term)).filter((index) => index >= 0)
  const begin = Math.max(0, Math.min(...found, text.length) - 40)
  const start = found.length === 0 ? 0 : begin
  const end = text.length <= start + 140 ? text.length : Math.max(text.lastIndexOf(" ", start + 140), start + 100)
  return (start > 0 ? "… " : "") + text.slice(start, end) + (end < text.length ? " …" : "")
}

/** Writes text with terms marked, without parsing any of it as HTML. */
const marked = (element, text, terms) => {
  const pattern = terms.length === 0
    ? undefined
    : new RegExp(`(${terms.map((term) => term.replace(/[^\p{L}\p{N}_]/gu, "\\$&")).join("|")})`, "giu")
  const parts = pattern === undefined ? [text] : text.split(pattern)
  parts.forEach((part, index) => {
    if (index % 2 === 0) return element.append(part)
    const mark = document.createElement("mark")
    mark.textContent = part
    element.append(mark)
  })
  return element
}

const close = () => {
  results.hidden = true
  selected = -1
  box.setAttribute("aria-expanded", "false")
  box.removeAttribute("aria-activedescendant")
}
const select = (index) => {
  const items = [...results.querySelectorAll("a")]
  if (items.length === 0) return
  selected = (index + items.length) % items.length
  items.forEach((item, position) => item.setAttribute("aria-selected", String(position === selected)))
  items[selected].scrollIntoView({ block: "nearest" })
  box.setAttribute("aria-activedescendant", items[selected].id)
}

const show = async () => {
  const query = box.value.trim()
  if (query === "") return close()
  const index = await load()
  if (query !== box.value.trim()) return
  const found = index.search(query).slice(0, 12)
  results.replaceChildren(...found.map((hit, position) => {
    const item = document.createElement("a")
    item.id = `result-${position}`
    item.href = rootPath + hit.url
    item.setAttribute("role", "option")
    const title = marked(document.createElement("strong"), hit.title, hit.terms)
    const where = document.createElement("span")
    where.className = "where"
    where.textContent = hit.kind === "api" ? "reference" : hit.page
    const text = marked(document.createElement("span"), excerpt(hit.text, hit.terms), hit.terms)
    text.className = "text"
    item.append(title, where, text)
    return item
  }))
  if (found.length === 0) results.textContent = "Nothing found"
  results.hidden = false
  box.setAttribute("aria-expanded", "true")
  select(0)
}

box.addEventListener("focus", () => void load())
box.addEventListener("input", () => void show())
box.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault()
    select(selected + (event.key === "ArrowDown" ? 1 : -1))
  } else if (event.key === "Enter") results.querySelectorAll("a")[selected]?.click()
  else if (event.key === "Escape") {
    close()
    box.blur()
  }
})
document.addEventListener("keydown", (event) => {
  if (
    event.key !== "/" || event.ctrlKey || event.metaKey || /^(input|textarea)$/i.test(document.activeElement.tagName)
  ) return
  event.preventDefault()
  box.focus()
  box.select()
})
document.addEventListener("click", (event) => {
  if (!event.target.closest("#search") || event.target.closest("#results a")) close()
})

// `?q=waitEvent` searches at once.
const asked = new URLSearchParams(location.search).get("q")
if (asked !== null) {
  box.value = asked
  void show()
}

const menu = document.querySelector("#menu")
menu.addEventListener("click", () => {
  const open = document.body.classList.toggle("menu")
  menu.setAttribute("aria-expanded", String(open))
})
const pages = document.querySelector("#pages")
const current = pages.querySelector("[aria-current]")
if (current) pages.scrollTop = current.offsetTop - pages.clientHeight / 2

document.querySelector("#theme").addEventListener("click", () => {
  const page = document.documentElement
  const dark =
    (page.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark"
  page.dataset.theme = dark ? "light" : "dark"
  localStorage.setItem("theme", page.dataset.theme)
})
