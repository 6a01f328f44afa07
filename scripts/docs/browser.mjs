// Opens the built site in a headless Chromium, if the machine has one: pages show their text without errors, and the search finds what it
// should. `--pictures FOLDER` writes screenshots. Says so if there is no browser.
import { spawn, spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { serve } from "./serve.mjs"

const browser = [process.env.CHROMIUM, "chromium", "chromium-browser", "google-chrome"].find((command) =>
  command && spawnSync(command, ["--version"]).status === 0
)
if (browser === undefined) {
  console.log("site: not tried in a browser, because this machine has no Chromium")
  process.exit(0)
}
const profile = mkdtempSync(join(tmpdir(), "effect-cuda-site-"))
const { server, url } = await serve()

const open = (page, ...options) =>
  new Promise((resolve) => {
    const child = spawn(browser, [
      "--headless=new",
      "--no-sandbox",
      "--disable-gpu",
      "--hide-scrollbars",
      "--enable-logging=stderr",
      `--user-data-dir=${profile}`,
      "--virtual-time-budget=8000",
      "--timeout=30000",
      ...options,
      url + page
    ], { timeout: 60_000 })
    let out = ""
    let errors = ""
    child.stdout.on("data", (data) => out += data)
    child.stderr.on("data", (data) => errors += data)
    child.on("close", () =>
      resolve({ out, errors: errors.split("\n").filter((line) => /CONSOLE.*(error|Uncaught|Refused)/i.test(line)) }))
  })

const problems = []
const expected = [
  ["index.html", /<h1[^>]*>effect-cuda<\/h1>/],
  ["guides/testing.html", /aria-current="page">Testing/],
  ["api/CudaStream.html", /<h3 id="waitEvent">/],
  ["index.html?q=waitEvent", /<a id="result-0"[^>]*href="api\/CudaStream\.html#waitEvent"/],
  ["guides/testing.html?q=virtual%20time%20hangs", /<a id="result-0"[^>]*href="\.\.\/guides\/testing\.html/],
  ["api/CudaEvent.html?q=nothingIsCalledThis", /Nothing found/]
]
for (const [page, pattern] of expected) {
  const { errors, out } = await open(page, "--dump-dom")
  if (!pattern.test(out)) problems.push(`${page} does not show ${pattern}`)
  problems.push(...errors.map((line) => `${page}: ${line}`))
}
const at = process.argv.indexOf("--pictures")
if (at > 0) {
  const folder = process.argv[at + 1]
  mkdirSync(folder, { recursive: true })
  const shots = [
    ["home", "index.html", "1400,1200"],
    ["home-narrow", "index.html", "500,1000"],
    ["guide", "guides/streams.html", "1400,1200"],
    ["guide-narrow", "guides/streams.html", "500,1000"],
    ["api", "api/CudaStream.html", "1400,1200"],
    ["api-narrow", "api/CudaStream.html", "500,1000"],
    ["entries", "api/CudaStream.html", "1400,3200"],
    ["index", "api/index.html", "1400,1200"],
    ["search", "index.html?q=waitEvent", "1400,1000"]
  ]
  for (const [name, page, size] of shots) {
    for (const dark of name.includes("narrow") ? [false] : [false, true]) {
      const options = dark ? ["--blink-settings=preferredColorScheme=0"] : ["--blink-settings=preferredColorScheme=1"]
      await open(
        page,
        ...options,
        `--window-size=${size}`,
        `--screenshot=${join(folder, `${name}${dark ? "-dark" : ""}.png`)}`
      )
    }
  }
}
server.close()
rmSync(profile, { recursive: true, force: true, maxRetries: 3 })
for (const problem of problems) console.error(problem)
if (problems.length > 0) process.exit(1)
console.log(`site: ${expected.length} pages and searches work in ${browser}`)
