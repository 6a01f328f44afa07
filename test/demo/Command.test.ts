/**
 * The demo as a user sees it: a process with arguments, output and an exit code.
 */
import { chmodSync, mkdirSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { crc32 } from "node:zlib"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import { compile } from "./compiled.ts"
import type { Compiled } from "./compiled.ts"
import { makeBytes } from "./support.ts"

const isRoot = process.getuid?.() === 0
const isWindows = process.platform === "win32"

let demo: Compiled
beforeAll(() => {
  demo = compile()
}, 60_000)
afterAll(() => demo?.remove())

const file = (name: string, bytes: Uint8Array): string => {
  const path = join(demo.folder, name)
  writeFileSync(path, bytes)
  return path
}

describe("the demo", () => {
  it("streams a file and reports on it", () => {
    const bytes = makeBytes(20_000_001)
    const path = file("some bytes", bytes)
    const { code, error, out } = demo.run("demo", path)
    assert.strictEqual(error, "")
    assert.strictEqual(code, 0)
    assert.match(out, /^runtime +simulated: Simulated GPU/m)
    assert.include(out, `file       ${path}`)
    assert.match(out, /^pipelined +[\d.]+ ms +[\d.]+ ms +[\d.]+ MB\/s/m)
    assert.match(out, /^serial +[\d.]+ ms +[\d.]+ ms +[\d.]+ MB\/s/m)
    assert.match(out, /^overlap +[\d.]+ ×/m)
    for (const stream of ["upload", "stage", "download"]) assert.match(out, new RegExp(`^${stream} +[█▓▏ ]+$`, "m"))
    assert.include(out, "20,000,001 bytes came back unchanged in both runs.")
    assert.include(out, `\nCRC-32     ${crc32(bytes).toString(16).padStart(8, "0")}\n`)
    assert.match(out, /^bytes +0x[0-9a-f]{2} most often \(0\.4 %\), entropy 7\.97 bits per byte$/m)
    assert.include(out, "the kernels found the same CRC-32 and byte counts as the CPU.")
  })

  it("accepts a file of one byte", () => {
    const { code, out } = demo.run("demo", file("one", Uint8Array.of(7)))
    assert.strictEqual(code, 0)
    assert.include(out, "\n1 byte came back unchanged")
  })

  it("streams the running Node.js when no file is named", () => {
    const { code, out } = demo.run("demo")
    assert.strictEqual(code, 0)
    assert.include(out, `file       ${process.execPath}`)
  })

  it.each([
    ["a file that is missing", "missing", /missing: no such file$/],
    ["a directory", ".", /: is a directory$/],
    ["an empty file", "empty", /empty: is empty$/],
    ["a path through a file", "empty/inside", /inside: no such file$/]
  ])("rejects %s in one line", (_, name, message) => {
    file("empty", new Uint8Array(0))
    expectRefusal(demo.run("demo", join(demo.folder, name)), message)
  })

  it.skipIf(isRoot || isWindows)("rejects an unreadable file in one line", () => {
    const path = file("secret", Uint8Array.of(1))
    chmodSync(path, 0)
    expectRefusal(demo.run("demo", path), /secret: permission denied$/)
  })

  it.skipIf(!isRoot)("rejects a non-regular file in one line", () => {
    expectRefusal(demo.run("demo", "/dev/null"), /^\/dev\/null: is not a regular file$/)
  })

  it("rejects a second argument", () => {
    expectRefusal(demo.run("demo", "one", "two"), /^Usage: npm run demo -- \[FILE\]$/)
  })

  it("prints its usage", () => {
    const { code, out } = demo.run("demo", "--help")
    assert.strictEqual(code, 0)
    assert.strictEqual(out, "Usage: npm run demo -- [FILE]\n")
  })

  it.skipIf(isWindows)("exits at once on Ctrl-C, with exit code 130", async () => {
    mkdirSync(join(demo.folder, "long"), { recursive: true })
    const path = file("long/file", new Uint8Array(0))
    truncateSync(path, 40_000_000_000)
    const running = demo.start("demo", path)
    let error = ""
    running.stderr?.on("data", (text) => error += String(text))
    running.stdout?.on("data", (text) => {
      // The pipeline starts right after this line.
      if (String(text).includes("size ")) setTimeout(() => running.kill("SIGINT"), 300)
    })
    const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
      running.once("exit", (...end) => resolve(end))
    )
    assert.deepStrictEqual([code, signal, error], [130, null, ""])
  })
})

const expectRefusal = (result: ReturnType<Compiled["run"]>, message: RegExp): void => {
  assert.strictEqual(result.code, 1)
  assert.strictEqual(result.out, "")
  assert.match(result.error.trimEnd(), message)
  assert.strictEqual(result.error.trimEnd().split("\n").length, 1)
}
