/**
 * Arguments of `CudaProgram.compile` that types rule out but JavaScript does not. NVRTC crashes on some, so each is rejected
 * by name before the call. Also covers input cleanup.
 */
import "../support/deepStack.ts"
import { assert, describe, it } from "@effect/vitest"
import * as CudaProgram from "effect-cuda/CudaProgram"
import * as Effect from "effect/Effect"
import { failsWith } from "../support/assertions.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { makeFolder, openNvrtc } from "../support/stubNvrtc.ts"

const stub = openStub()
const nvrtc = openNvrtc()

const kernel = "__global__ void empty() {}"

const compile = (source: string, options: Readonly<Record<string, unknown>>) => {
  const untyped: (source: string, options: never) => ReturnType<typeof CudaProgram.compile> = CudaProgram.compile
  const compiled = untyped(source, options as never)
  return Effect.suspend(() => {
    nvrtc.reset()
    return onStub(stub, compiled, { nvrtcPath: nvrtc.path, programCache: { folder: makeFolder() } })
  })
}

/** An array whose element is a string only when it is read for the first time. */
const changing = (first: string): ReadonlyArray<unknown> => {
  let reads = 0
  return Object.defineProperty([""], 0, { get: () => reads++ === 0 ? first : undefined })
}

const throwing = { get: () => assert.fail("no value"), enumerable: true }

/** An array that ends in holes. */
const holes = (length: number, ...texts: Array<string>): ReadonlyArray<string> => {
  texts.length = length
  return texts
}

describe("an argument of another type is rejected by name", () => {
  const refused: ReadonlyArray<readonly [string, string, Readonly<Record<string, unknown>>, RegExp]> = [
    ["a hole", "options[0]", { options: holes(1) }, /^undefined$/],
    ["a hole after an option", "options[1]", { options: holes(2, "-G") }, /^undefined$/],
    ["undefined", "options[1]", { options: ["-G", undefined, "-lineinfo"] }, /^undefined$/],
    ["null", "options[0]", { options: [null] }, /^null$/],
    ["a number", "options[0]", { options: [20] }, /^20$/],
    ["an array of four billion holes", "options[0]", { options: holes(2 ** 32 - 1) }, /^undefined$/],
    ["text", "options", { options: "-G" }, /^"-G"$/],
    ["a Set", "options", { options: new Set(["-G"]) }, /Set/],
    ["an object", "options", { options: { length: 1, 0: "-G" } }, /length: 1/],
    [
      "a getter that throws",
      "options",
      { options: Object.defineProperty([""], 0, throwing) },
      /^unreadable \(no value/
    ],
    ["the option for link-time code", "options[0]", { options: ["--dlink-time-opt"] }, /dlink-time-opt/],
    ["an architecture after a blank", "options[0]", { options: [" --gpu-architecture=sm_80"] }, /sm_80/],
    ["a hole", "nameExpressions[0]", { nameExpressions: holes(1) }, /^undefined$/],
    ["undefined", "nameExpressions[1]", { nameExpressions: ["a", undefined] }, /^undefined$/],
    ["text", "nameExpressions", { nameExpressions: "add" }, /^"add"$/],
    ["a Map", "headers", { headers: new Map([["a.h", ""]]) }, /Map/],
    ["an array", "headers", { headers: [["a.h", ""]] }, /a\.h/],
    ["a promise", "headers", { headers: Promise.resolve({}) }, /Promise/],
    ["text", "headers", { headers: "a.h" }, /^"a\.h"$/],
    ["undefined content", "headers[\"a.h\"]", { headers: { "a.h": undefined } }, /^undefined$/],
    ["bytes", "headers[\"a.h\"]", { headers: { "a.h": new Uint8Array(1) } }, /Uint8Array/],
    ["a getter that throws", "headers", { headers: Object.defineProperty({}, "a.h", throwing) }, /^unreadable/],
    ["null", "architecture", { architecture: null }, /^null$/],
    [
      "a getter that throws",
      "architecture",
      { architecture: Object.defineProperty({}, "major", throwing) },
      /^unreadable/
    ],
    ["a bigint", "architecture", { architecture: { major: 9n, minor: 0n } }, /major: 9n/],
    ["a function", "target", { target: () => "ptx" }, /Function/],
    ["a symbol", "name", { name: Symbol("a") }, /Symbol\(a\)/]
  ]
  for (const [what, argument, options, value] of refused) {
    it.live(`${argument}: ${what}`, () =>
      Effect.gen(function*() {
        const reason = yield* failsWith(compile(kernel, options), "InvalidArgument")
        assert.strictEqual(reason.argument, argument)
        assert.match(reason.value, value)
        assert.isBelow(reason.value.length, 60)
        assert.strictEqual(nvrtc.compilations, 0)
      }))
  }
})

describe("arguments are read once", () => {
  it.live("so that getters cannot change them after the check", () =>
    Effect.gen(function*() {
      let reads = 0
      const headers = Object.defineProperty({}, "a.h", {
        get: () => reads++ === 0 ? "int a;" : undefined,
        enumerable: true
      })
      yield* compile(kernel, { options: changing("-G"), nameExpressions: changing("empty"), headers })
      assert.deepInclude(nvrtc.given, {
        option: ["--gpu-architecture=sm_90", "-G"],
        expression: ["empty"],
        header: ["a.h"],
        content: ["int a;"]
      })
    }))

  it.live("from records without a prototype and of other realms", () =>
    Effect.gen(function*() {
      const { runInNewContext } = yield* Effect.promise(() => import("node:vm"))
      const record: unknown = runInNewContext(`({ "a.h": "int a;" })`)
      const bare: unknown = Object.assign(Object.create(null), { "a.h": "int a;" })
      for (const headers of [record, bare]) {
        yield* compile(kernel, { headers, options: runInNewContext(`["-G"]`), cache: false })
        assert.deepInclude(nvrtc.given, { header: ["a.h"], content: ["int a;"] })
      }
    }))
})

describe("a byte order mark", () => {
  it.live("at the start of the source and of headers does not reach the compiler", () =>
    Effect.gen(function*() {
      const program = yield* compile(`\ufeff${kernel}`, {
        headers: { "a.h": "\ufeffint a;", "b.h": "int b; // \ufeff" }
      })
      assert.deepInclude(nvrtc.given, { source: [kernel], content: ["int a;", "int b; // \ufeff"] })
      assert.strictEqual(program.source, `\ufeff${kernel}`)
    }))
})
