/**
 * The failure: every status of the table has a reason, and every reason a message a person can act on.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaError } from "effect-cuda"
import type { CudaErrorReason } from "effect-cuda/CudaError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { inspect } from "node:util"
import { statuses } from "../src/cuda/status.ts"
import type { StatusTag } from "../src/cuda/status.ts"

const tags = Object.keys(statuses) as ReadonlyArray<StatusTag>

const fail = (reason: CudaErrorReason) =>
  new CudaError.CudaError({
    operation: "CudaEvent.record",
    call: "cuEventRecord",
    subject: "event 7",
    deviceIndex: 0,
    reason
  })

const unknownName = (line: number): CudaError.Diagnostic => ({
  severity: "error",
  file: "a.cu",
  line,
  column: 5,
  message: `identifier "x${line}" is undefined`,
  code: "20",
  text: `    y = x${line};`
})

const libraryFailed = {
  _tag: "LibraryFailed",
  library: undefined,
  code: 7,
  description: "",
  advice: "",
  isRetryable: false
} as const

const plainStatus = {
  code: 7,
  name: "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
  description: "a built-in operation failed",
  advice: "",
  isSticky: false,
  isRetryable: false
}

/** One of each reason that is no status, with words its message must have. */
const others: ReadonlyArray<readonly [CudaErrorReason, ReadonlyArray<string>]> = [
  [CudaError.unknownStatus(12345), ["12345"]],
  [{ _tag: "InvalidArgument", argument: "priority", value: "100", expected: "an integer" }, ["priority", "100"]],
  [{ _tag: "ResourceReleased", resource: "stream 7" }, ["stream 7", "released"]],
  [{ _tag: "ForeignResource", resource: "stream 7" }, ["stream 7", "another runtime"]],
  [{ _tag: "DeviceMismatch", resources: ["event 1", "stream 7"], deviceIndices: [0, 1] }, ["event 1", "stream 7"]],
  [{ _tag: "TimingDisabled", resource: "event 1" }, ["event 1", "timing: true"]],
  [{ _tag: "NotRecorded", resource: "event 1" }, ["event 1", "never recorded"]],
  [{ _tag: "NotFinished", resource: "event 1" }, ["event 1", "not finished"]],
  [
    { _tag: "LibraryNotFound", isNamed: false, searched: [{ path: "libcuda.so.1", problem: "missing" }] },
    ["libcuda.so.1", "missing"]
  ],
  [{ _tag: "KoffiNotLoaded", problem: "no native part" }, ["no native part", "external"]],
  [{ _tag: "DriverTooOld", found: 11080, required: 12000 }, ["11.8", "12.0"]],
  [{ _tag: "FunctionMissing", functionName: "cuStreamGetId" }, ["cuStreamGetId"]],
  [{ ...libraryFailed, name: "DEMO_BAD_VALUE" }, ["returned DEMO_BAD_VALUE (7)."]],
  [{ ...libraryFailed, name: undefined }, ["returned status 7."]],
  [{ _tag: "NeverFinishes", resource: "stream 7", because: "it hangs" }, ["stream 7", "it hangs"]],
  [
    { _tag: "CompilationFailed", program: "a.cu", log: "", diagnostics: [1, 2, 3, 4].map(unknownName) },
    ["4 errors in a.cu", "a.cu(1,5): identifier \"x1\" is undefined\n    y = x1;", "a.cu(3,5)", "1 more in the log"]
  ],
  [{ _tag: "CompilationFailed", program: "a.cu", log: "ptxas died", diagnostics: [] }, ["a.cu", "ptxas died"]],
  [{ _tag: "InvalidCompileOption", options: ["--quick"], log: "unrecognized option\n" }, ["--quick", "unrecognized"]],
  [
    { _tag: "CompilerFailed", ...plainStatus, log: "cannot open libnvrtc-builtins.so\n" },
    ["NVRTC_ERROR_BUILTIN_OPERATION_FAILURE", "(7)", "cannot open libnvrtc-builtins.so"]
  ],
  [
    { _tag: "CompilerNotFound", searched: [{ path: "libnvrtc.so", problem: "missing" }] },
    ["libnvrtc.so (missing)", "EFFECT_CUDA_NVRTC", "nvrtcPath"]
  ],
  [
    {
      _tag: "LibraryUnavailable",
      library: "NVML",
      searched: [{ path: "libnvidia-ml.so.1", problem: "missing" }],
      advice: "Set EFFECT_CUDA_NVML."
    },
    ["NVML could not be loaded", "libnvidia-ml.so.1 (missing). Set EFFECT_CUDA_NVML."]
  ],
  [
    { ...libraryFailed, library: "NVML", name: "NVML_ERROR_UNKNOWN", description: "something", advice: "Look." },
    ["returned NVML_ERROR_UNKNOWN (7): something. Look."]
  ],
  [{ _tag: "FileUnreadable", path: "a.cubin", code: "ENOENT", problem: "no such file" }, ["a.cubin", "no such file"]]
]

describe("CudaError", () => {
  it("has a reason for every status, found by its number", () => {
    assert.strictEqual(tags.length, 100)
    assert.strictEqual(new Set(tags.map((tag) => statuses[tag].code)).size, tags.length)
    for (const tag of tags) {
      const reason = CudaError.reasonFromStatus(statuses[tag].code)
      assert.strictEqual(reason._tag, tag)
      assert.isTrue(Object.isFrozen(reason))
      assert.strictEqual(reason, CudaError.reasonFromStatus(statuses[tag].code))
      assert.match(reason.name, /^CUDA_ERROR_[A-Z0-9_]+$/)
      assert.isNotEmpty(reason.description)
      assert.isFalse(reason.isSticky && reason.isRetryable, tag)
    }
  })

  it("keeps the number of a status it does not know", () => {
    const reason = CudaError.reasonFromStatus(4711)
    assert.deepStrictEqual([reason._tag, reason.code, reason.isSticky], ["UnknownStatus", 4711, false])
  })

  it("says which statuses lose the context, and which are worth another try", () => {
    for (const code of [214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719]) {
      assert.isTrue(fail(CudaError.reasonFromStatus(code)).isSticky, String(code))
    }
    for (const code of [2, 46, 600, 802]) {
      assert.isTrue(fail(CudaError.reasonFromStatus(code)).isRetryable, String(code))
    }
    for (const code of [1, 201, 400, 801, 999]) {
      const error = fail(CudaError.reasonFromStatus(code))
      assert.isFalse(error.isSticky || error.isRetryable, String(code))
    }
  })

  it("says what was called, with what, and which status", () => {
    for (const tag of tags) {
      const { code, description, name } = statuses[tag]
      const { message } = fail(CudaError.reasonFromStatus(code))
      for (const part of ["CudaEvent.record", "event 7", "cuEventRecord", name, `(${code})`, description]) {
        assert.include(message, part)
      }
    }
    for (const [reason, parts] of others) {
      const { message } = fail(reason)
      for (const part of ["CudaEvent.record", "event 7", ...parts]) assert.include(message, part)
    }
  })

  it("explains what follows from a lost context", () => {
    const lost = CudaError.reasonFromStatus(700)
    assert(lost._tag === "IllegalAddress")
    const origin = { operation: "CudaStream.synchronize", deviceIndex: 1, status: lost, at: 0 }
    const { message } = new CudaError.CudaError({ operation: "CudaEvent.make", reason: lost, origin })
    assert.include(message, "CudaStream.synchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS on device 1 at 1970")
  })

  it.effect("prints its message with String, in causes and in logs", () =>
    Effect.gen(function*() {
      const error = fail(CudaError.reasonFromStatus(2))
      assert.include(String(error), error.message)
      assert.include(inspect(error), error.message)
      assert.include(Cause.pretty(Cause.fail(error)), error.message)
      const lines: Array<string> = []
      const logger = Logger.map(Logger.formatLogFmt, (line) => void lines.push(line))
      yield* Effect.provide(Effect.logError(error), Logger.layer([logger]))
      assert.include(lines.join("\n"), "CUDA_ERROR_OUT_OF_MEMORY")
    }))

  it("is known by its guard", () => {
    assert.isTrue(CudaError.isCudaError(fail(CudaError.reasonFromStatus(2))))
    assert.isFalse(CudaError.isCudaError(new Error("no")))
  })
})

describe("invalidArgument", () => {
  const printed = (value: unknown): string => {
    const { operation, reason } = CudaError.invalidArgument("Some.operation", "argument", value, "something else")
    assert.strictEqual(operation, "Some.operation")
    if (reason._tag !== "InvalidArgument") return assert.fail(reason._tag)
    assert.deepStrictEqual([reason.argument, reason.expected], ["argument", "something else"])
    return reason.value
  }

  it("is one sentence", () => {
    assert.strictEqual(
      CudaError.invalidArgument("CudaMemory.fill", "value", 256, "a byte").message,
      "CudaMemory.fill: value is 256; expected a byte."
    )
  })

  const cyclic: Array<unknown> = [1]
  cyclic.push(cyclic)
  const values: ReadonlyArray<readonly [value: unknown, printed: string]> = [
    ["text", `"text"`],
    [`say "hi"`, JSON.stringify(`say "hi"`)],
    ["", `""`],
    [1.5, "1.5"],
    [Number.NaN, "NaN"],
    [5n, "5n"],
    [true, "true"],
    [undefined, "undefined"],
    [null, "null"],
    [Symbol("mark"), "Symbol(mark)"],
    [new Float32Array(2), "8 bytes"],
    [new DataView(new ArrayBuffer(3)), "3 bytes"],
    [new ArrayBuffer(7), "7 bytes"],
    [new SharedArrayBuffer(5), "5 bytes"],
    [[1, "a", [2, [3]]], `[1, "a", [2, […]]]`],
    [Array.from({ length: 20 }, (_, index) => index), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, …]"],
    [cyclic, "[1, [1, […]]]"],
    [{}, "{}"],
    [{ least: 0, name: "x", inner: { a: { b: 1 } } }, `{ least: 0, name: "x", inner: { a: {…} } }`],
    [Object.assign(Object.create(null), { bare: 1 }), "{ bare: 1 }"],
    [new Map(), "an instance of Map"],
    [new Error("broken"), "Error: broken"],
    [function named() {}, "function named"],
    [(() => () => {})(), "a function"],
    ["x".repeat(300), `"${"x".repeat(199)}…`]
  ]
  for (const [value, expected] of values) {
    it(`prints ${expected}`, () => assert.strictEqual(printed(value), expected))
  }

  class Hostile {
    toString(): string {
      throw new Error("no")
    }
  }
  const noFields = new Proxy({}, {
    ownKeys: () => {
      throw new Error("no")
    }
  })
  const getter = {
    get field(): number {
      throw new Error("no")
    }
  }
  const hostile: ReadonlyArray<readonly [what: string, value: unknown]> = [
    ["a toString that throws", new Hostile()],
    ["a toString that returns no string", Object.create({ toString: () => ({}) })],
    ["a proxy that throws", noFields],
    ["a getter that throws", getter]
  ]
  for (const [what, value] of hostile) {
    it(`prints a value with ${what}`, () => assert.strictEqual(printed(value), "an object"))
  }
})
