/**
 * The compiler's log takes linear time to parse, whatever it contains.
 */
import { assert, describe, it } from "@effect/vitest"
import { parseLog } from "../../src/layers/native/diagnostics.ts"
import { within } from "../support/clock.ts"

const parse = (log: string) => parseLog(log, new Map())

describe("a log", () => {
  it("without a place is read with the severity before or after the colon", () => {
    const lines: ReadonlyArray<readonly [string, string]> = [
      ["nvrtc: error: invalid value for --std", "error invalid value for --std"],
      ["nvrtc: warning : a: b", "warning a: b"],
      ["NVRTC fatal: no", "error no"],
      ["ptxas warning : x", "warning x"],
      ["ptxas info    : 0 bytes", ""],
      ["nvrtc:error", ""],
      ["nvrtc error", ""]
    ]
    for (const [line, expected] of lines) {
      const found = parse(line).map(({ message, severity }) => `${severity} ${message}`).join()
      assert.strictEqual(found, expected, line)
    }
  })

  it("of long and odd lines is parsed in linear time", () =>
    within(3000, () => {
      const many = 200_000
      const odd = [" ", "(1)", "(1", ":1", ":1:1", "1", "error", "error ", ": error #", ": error ", ":", "a(1)  "]
      for (const part of odd) {
        for (const start of ["", "nvrtc", "ptxas", "a.cu(1", "a.cu:", "a.cu(1): error #", "a.cu(1): error"]) {
          parse(start + part.repeat(many))
        }
      }
    }))

  it("with a diagnostic for every line of a large source is parsed in linear time", () => {
    const lines = 30_000
    const source = "int x;\n".repeat(lines)
    const log = Array.from({ length: lines }, (_, line) => `k.cu(${line + 1}): error: no`).join("\n")
    within(3000, () => {
      const diagnostics = parseLog(log, new Map([["k.cu", source]]))
      assert.strictEqual(diagnostics.length, lines)
      assert.isTrue(diagnostics.every(({ text }) => text === "int x;"))
    })
  })

  it("of files with the names of object properties has no text for them", () => {
    for (const name of ["__proto__", "constructor"]) {
      assert.strictEqual(parse(`${name}(1): error: no`)[0]?.text, undefined)
      assert.strictEqual(parseLog(`${name}(1): error: no`, new Map([[name, "x"]]))[0]?.text, "x")
    }
  })
})
