/**
 * Images of any size and origin: recognized or refused, without exceptions and without stopping the event loop.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaProgram } from "effect-cuda"
import * as Effect from "effect/Effect"
import { recognize } from "../src/internal/images.ts"
import { resizable } from "./support/arrays.ts"
import { failsWith, refuses } from "./support/assertions.ts"
import { within } from "./support/clock.ts"

const header = ".version 8.0\n.target sm_90a\n.address_size 64\n"

const bytesOf = (text: string) => new TextEncoder().encode(text)

const recognizeText = (text: string) => recognize(bytesOf(text))

const ptx = { _tag: "Image", kind: "ptx", architecture: "compute_90a" }

describe("PTX", () => {
  const accepted: ReadonlyArray<readonly [string, string]> = [
    ["at the start", header],
    ["on one line", ".version 8.0 .target sm_90a, texmode_independent .address_size 64"],
    ["with Windows line ends", header.replaceAll("\n", "\r\n")],
    ["after comments of both kinds", `// one\n\n/* two\n * three **/ /**/\t//\n${header}`],
    ["with comments between the directives", ".version /* of what */ 8.0 // so\n/* for */ .target\n\tsm_90a\n"],
    ["for a virtual architecture", ".version 8.0\n.target compute_90a\n"]
  ]
  for (const [what, text] of accepted) {
    it(`is recognized ${what}`, () => assert.deepStrictEqual<unknown>(recognizeText(text), ptx))
  }

  const refused: ReadonlyArray<readonly [string, string, RegExp]> = [
    ["an unclosed comment", `/* ${header}`, /does not begin with \.version/],
    ["a comment that closes with its own star", `/*/ ${header}`, /does not begin with \.version/],
    ["half a comment", "/", /does not begin with \.version/],
    ["no version number", ".version\n.target sm_90\n", /does not begin with \.version/],
    ["half a version number", ".version 8\n.target sm_90\n", /does not begin with \.version/],
    ["a word that begins with .version", ".versions 8.0\n.target sm_90\n", /does not begin with \.version/],
    ["a target in a comment", ".version 8.0\n// .target sm_90\n", /without a \.target/],
    ["a target without a name", ".version 8.0\n.target", /without a \.target/],
    ["a target further down", ".version 8.0\n.address_size 64\n.target sm_90\n", /without a \.target/],
    ["a byte order mark", `\ufeff${header}`, /begin with ef bb bf/],
    ["other bytes after the NUL character", `${header}\0\0x`, /begin with 2e 76/]
  ]
  for (const [what, text, problem] of refused) {
    it(`with ${what} is refused`, () => {
      const found = recognizeText(text)
      assert(found._tag === "NoImage")
      assert.match(found.problem, problem)
    })
  }

  it("is recognized in linear time", () =>
    within(2000, () => {
      const many = 1_000_000
      for (const filler of ["\n", " ", "/**/", "//\n", "/* ", "\n//", ".", "/"]) {
        recognizeText(filler.repeat(many))
        recognizeText(`.version 8.0${filler.repeat(many)}`)
        recognizeText(`.version 8.0\n.target${filler.repeat(many)}`)
      }
    }))
})

describe("a huge image", () => {
  /** Longer than any string can be. */
  const size = 600 * 1024 ** 2

  it.effect("of blanks is refused", () =>
    Effect.gen(function*() {
      const blanks = Buffer.alloc(size, " ")
      blanks.write(header, size - header.length)
      const reason = yield* failsWith(CudaProgram.fromBytes(blanks), "InvalidArgument")
      assert.include(reason.expected, "does not begin with .version")
      within(2000, () => assert.strictEqual(recognize(blanks)._tag, "NoImage"))
    }))

  it.effect("of code is PTX", () =>
    Effect.gen(function*() {
      const code = Buffer.alloc(size, " ")
      code.write(header)
      assert.strictEqual((yield* CudaProgram.fromBytes(code)).architecture, "compute_90a")
    }))

  it("of zeros is refused in time", () => {
    const zeros = Buffer.alloc(size)
    zeros.write("// no PTX")
    within(3000, () => assert.strictEqual(recognize(zeros)._tag, "NoImage"))
  })

  it("of ten million comments is PTX in time", () => {
    const text = `${"// a comment\n".repeat(10_000_000)}${header}`
    const bytes = bytesOf(text)
    within(3000, () => assert.deepStrictEqual<unknown>(recognize(bytes), ptx))
  })
})

describe("bytes", () => {
  it.effect("of another type are refused by it", () =>
    Effect.gen(function*() {
      const reason = yield* failsWith(CudaProgram.fromBytes(5 as never), "InvalidArgument")
      assert.strictEqual(reason.value, "a value of type number")
    }))

  it.effect("of a detached buffer are refused", () =>
    Effect.gen(function*() {
      const bytes = bytesOf(header)
      const part = bytes.subarray(2)
      structuredClone(bytes.buffer, { transfer: [bytes.buffer] })
      for (const detached of [bytes, part]) {
        const reason = yield* failsWith(CudaProgram.fromBytes(detached), "InvalidArgument")
        assert.strictEqual(reason.argument, "bytes")
        assert.match(reason.value, /^an array that cannot be copied \(.*detached/)
      }
    }))

  it.effect("of a buffer that shrank are refused", () =>
    Effect.gen(function*() {
      const buffer = resizable(100, 200)
      const fixed = new Uint8Array(buffer.buffer, 50, 50)
      buffer.resize(60)
      yield* refuses(CudaProgram.fromBytes(fixed), "bytes")
    }))

  it.effect("of a buffer that grew are its current ones", () =>
    Effect.gen(function*() {
      const buffer = resizable(20, 200)
      const tracking = new Uint8Array(buffer.buffer)
      buffer.resize(header.length)
      tracking.set(bytesOf(header))
      assert.strictEqual((yield* CudaProgram.fromBytes(tracking)).image.byteLength, header.length + 1)
    }))

  it.effect("of shared memory are copied", () =>
    Effect.gen(function*() {
      const shared = new Uint8Array(new SharedArrayBuffer(header.length))
      shared.set(bytesOf(header))
      const program = yield* CudaProgram.fromBytes(shared)
      shared.fill(0)
      assert.deepStrictEqual(program.image, bytesOf(`${header}\0`))
    }))

  const others: ReadonlyArray<unknown> = [undefined, null, 5, 1e12, {}, [46], new ArrayBuffer(8), new Float32Array(8)]
  for (const other of others) {
    it.effect(`that are ${Object.prototype.toString.call(other)} ${String(other)} are refused`, () =>
      Effect.gen(function*() {
        const fromBytes: (bytes: never) => ReturnType<typeof CudaProgram.fromBytes> = CudaProgram.fromBytes
        yield* refuses(fromBytes(other as never), "bytes")
      }))
  }
})
