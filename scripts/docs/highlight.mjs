// Colors code, and links the names in it: `CudaStream.make` in an example leads to its place in the API pages.
const keywords = {
  ts:
    "abstract as async await break case catch class const continue declare default delete do else enum export extends false finally for from function if implements import in infer instanceof interface is keyof let namespace new null of readonly return satisfies static super switch this throw true try type typeof undefined unique var void while yield",
  cpp:
    "auto bool break case char class const constexpr continue do double else extern float for if inline int long namespace return short signed sizeof static struct switch template true false typedef typename unsigned using void volatile while __global__ __device__ __shared__ __restrict__ __syncthreads",
  python:
    "and as assert async await break class continue def del elif else except False finally for from global if import in is lambda None nonlocal not or pass raise return True try while with yield",
  sh: "if then else fi for do done while case esac export"
}
const languages = {
  ts: "ts",
  typescript: "ts",
  js: "ts",
  mjs: "ts",
  json: "ts",
  cpp: "cpp",
  c: "cpp",
  cu: "cpp",
  cuda: "cpp",
  python: "python",
  py: "python",
  sh: "sh",
  bash: "sh",
  dockerfile: "sh",
  yaml: "sh"
}

const words = Object.fromEntries(
  Object.entries(keywords).map(([language, list]) => [language, new Set(list.split(" "))])
)
const slashes = String.raw`\/\/[^\n]*|\/\*[\s\S]*?\*\/`
const hash = String.raw`#[^\n]*`
const quoted = String.raw`"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'`
const template = "`(?:\\\\.|[^`\\\\])*`"
const rest = String.raw`\b\d[\w.]*\b|[A-Za-z_$][\w$]*(?:\.[A-Za-z_$][\w$]*)?`
const patterns = {
  ts: new RegExp(`(?<comment>${slashes})|(?<string>${quoted}|${template})|${rest}`, "g"),
  cpp: new RegExp(`(?<comment>${slashes})|(?<string>${quoted})|${rest}`, "g"),
  python: new RegExp(`(?<comment>${hash})|(?<string>${quoted})|${rest}`, "g"),
  sh: new RegExp(`(?<comment>(?<=^|\\s)${hash})|(?<string>${quoted})|${rest}`, "g")
}

export const escape = (text) =>
  text.replace(/[&<>"]/g, (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", "\"": "&quot;" })[char])
const span = (kind, text) => `<span class="${kind}">${escape(text)}</span>`

/** `linkOf` returns the address of a name such as `CudaStream.make`, or undefined. */
export const highlight = (code, language, linkOf = () => undefined) => {
  const known = languages[language]
  if (known === undefined) return escape(code)
  const word = (name) => {
    const href = linkOf(name)
    if (href !== undefined) return `<a href="${escape(href)}">${escape(name)}</a>`
    const dot = name.indexOf(".")
    if (dot > 0) return `${word(name.slice(0, dot))}.${escape(name.slice(dot + 1))}`
    return words[known].has(name) ? span("k", name) : escape(name)
  }
  let html = ""
  let end = 0
  for (const match of code.matchAll(patterns[known])) {
    html += escape(code.slice(end, match.index))
    end = match.index + match[0].length
    const { comment, string } = match.groups
    if (comment !== undefined) html += span("c", comment)
    else if (string !== undefined) html += span("s", string)
    else html += /^\d/.test(match[0]) ? span("n", match[0]) : word(match[0])
  }
  return html + escape(code.slice(end))
}
