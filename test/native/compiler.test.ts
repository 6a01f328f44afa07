/**
 * Compiling on the native runtime with a stub of NVRTC: arguments, failures, interruption, the cache, and the search for
 * the library.
 */
import "../support/deepStack.ts"
import { assert, describe, it } from "@effect/vitest"
import * as CudaProgram from "effect-cuda/CudaProgram"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import type * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { MaxOpsBeforeYield } from "effect/References"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync
} from "node:fs"
import { join } from "node:path"
import { nvrtcResult } from "../../src/cuda/nvrtc.ts"
import { nvrtcPlaces } from "../../src/cuda/nvrtcLibrary.ts"
import { parseLog } from "../../src/layers/native/diagnostics.ts"
import { cacheFolder } from "../../src/layers/native/ProgramCache.ts"
import { failsWith, refuses } from "../support/assertions.ts"
import { runChild } from "../support/stub/child.ts"
import { logged, onStub, openStub, pause, until } from "../support/stubDriver.ts"
import { buildNvrtc, makeFolder, openNvrtc, putNvrtc, StubNvrtc } from "../support/stubNvrtc.ts"

const stub = openStub()
const nvrtc = openNvrtc()

type Program<A, E> = Effect.Effect<A, E, CudaRuntime>

/** Runs a program on the stubs with an empty cache, and asserts that it leaks no NVRTC program. */
const onNvrtc = <A, E>(program: Program<A, E>, options: NativeRuntime.NativeOptions = {}, library = nvrtc) =>
  Effect.gen(function*() {
    library.reset()
    const result = yield* onStub(stub, program, {
      nvrtcPath: library.path,
      programCache: { folder: makeFolder() },
      ...options
    })
    assert.strictEqual(library.live, 0, "programs that were not destroyed")
    assert.strictEqual(library.onMain, 0, "calls on the JS thread")
    return result
  })

const kernel = "__global__ void empty() {}"

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes)

/** A source with this result and log. */
const logs = (result: number, ...lines: ReadonlyArray<string>): string =>
  `${kernel}\n// STUB_RESULT(${result})\n/* STUB_LOG(${lines.join("|")}END_LOG */`

describe("a compilation", () => {
  it.live("passes the arguments to the compiler", () =>
    onNvrtc(Effect.gen(function*() {
      const program = yield* CudaProgram.compile(kernel, {
        name: "empty.cu",
        options: ["--std=c++17", "--use_fast_math"],
        headers: { "a.cuh": "int a;", "sub/b.cuh": "int b;" },
        nameExpressions: ["add<float>", "add<double>", "add<float>"]
      })
      assert.deepStrictEqual(nvrtc.given, {
        name: ["empty.cu"],
        source: [kernel],
        header: ["a.cuh", "sub/b.cuh"],
        content: ["int a;", "int b;"],
        expression: ["add<float>", "add<double>"],
        option: ["--gpu-architecture=sm_90", "--std=c++17", "--use_fast_math"]
      })
      assert.isTrue(CudaProgram.isCudaProgram(program))
      assert.deepInclude(program, { name: "empty.cu", kind: "cubin", architecture: "sm_90", source: kernel, log: "" })
      assert.strictEqual(text(program.image), `\x7fELF stub ${kernel}`)
      assert.strictEqual(program.loweredName("add<float>"), "_Z_add<float>")
      assert.strictEqual(program.loweredName("plain"), "plain")
      assert.deepStrictEqual([...program.loweredNames.keys()], ["add<float>", "add<double>"])
      assert.deepInclude(program.toJSON(), { _id: "CudaProgram", kind: "cubin", architecture: "sm_90" })
    })))

  it.live("has a name, no options and no headers by default", () =>
    onNvrtc(Effect.gen(function*() {
      const program = yield* CudaProgram.compile(kernel)
      assert.deepStrictEqual(nvrtc.given, {
        name: ["program.cu"],
        source: [kernel],
        option: ["--gpu-architecture=sm_90"]
      })
      assert.strictEqual(program.name, "program.cu")
    })))

  it.live("to PTX ends the text with one NUL character", () =>
    onNvrtc(Effect.gen(function*() {
      const program = yield* CudaProgram.compile(kernel, { target: "ptx" })
      assert.deepInclude(program, { kind: "ptx", architecture: "compute_90" })
      assert.strictEqual(program.image.indexOf(0), program.image.byteLength - 1)
      const again = yield* CudaProgram.fromBytes(program.image)
      assert.deepInclude(again, { kind: "ptx", architecture: "compute_90" })
      assert.deepStrictEqual(again.image, program.image)
    })))

  it.live("of a large source with many large headers", () =>
    onNvrtc(Effect.gen(function*() {
      const large = `${kernel}\n// ${"é".repeat(2_000_000)}`
      const headers = Object.fromEntries(
        Array.from({ length: 100 }, (_, i) => [`h${i}`, `// ${"x".repeat(50_000)}${i}`])
      )
      const program = yield* CudaProgram.compile(large, { headers })
      assert.strictEqual(text(program.image), `\x7fELF stub ${large}`)
      assert.strictEqual(nvrtc.given["content"]?.[99], headers["h99"])
    })))

  it.live("that warns keeps what the compiler wrote", () =>
    onNvrtc(Effect.gen(function*() {
      const warning = "program.cu(1): warning #177-D: variable \"u\" was declared but never referenced"
      const program = yield* CudaProgram.compile(logs(0, warning))
      assert.strictEqual(program.log, warning)
    })))

  it.live("leaves the event loop alone", () =>
    onNvrtc(Effect.gen(function*() {
      let turns = 0
      const timer = setInterval(() => turns++, 5)
      yield* CudaProgram.compile(`${kernel} // STUB_DELAY(150)`)
      clearInterval(timer)
      assert.isAbove(turns, 3)
    })))

  it.live("has a span with attributes for its output", () =>
    onNvrtc(Effect.gen(function*() {
      const spans: Array<Tracer.NativeSpan> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      yield* Effect.provideService(CudaProgram.compile(kernel, { name: "empty.cu" }), Tracer.Tracer, tracer)
      assert.deepStrictEqual(spans.map(({ name }) => name), ["CudaProgram.compile"])
      assert.deepStrictEqual(Object.fromEntries(spans[0]!.attributes), {
        "cuda.program": "empty.cu",
        "cuda.architecture": "sm_90",
        "cuda.image": "cubin",
        "cuda.cached": false
      })
    })))
})

describe("the architecture", () => {
  const cases: ReadonlyArray<readonly [string, CudaProgram.CompileOptions, string, "cubin" | "ptx"]> = [
    ["of a real name", { architecture: "sm_80" }, "sm_80", "cubin"],
    ["with its own features", { architecture: "sm_90a" }, "sm_90a", "cubin"],
    ["as a compute capability", { architecture: { major: 8, minor: 6 } }, "sm_86", "cubin"],
    ["with two digits before the dot", { architecture: { major: 10, minor: 0 } }, "sm_100", "cubin"],
    ["of a virtual name", { architecture: "compute_80" }, "compute_80", "ptx"],
    ["of a real name, as PTX", { architecture: "sm_80", target: "ptx" }, "compute_80", "ptx"],
    ["of the device, as PTX", { target: "ptx" }, "compute_90", "ptx"],
    ["of the device", {}, "sm_90", "cubin"]
  ]
  for (const [what, options, architecture, kind] of cases) {
    it.live(`${what} is that of the image`, () =>
      onNvrtc(Effect.gen(function*() {
        const program = yield* CudaProgram.compile(kernel, options)
        assert.deepInclude(program, { architecture, kind })
        assert.deepStrictEqual(nvrtc.given["option"], [`--gpu-architecture=${architecture}`])
      })))
  }

  const refused: ReadonlyArray<readonly [string, CudaProgram.CompileOptions]> = [
    ["sm_70", { architecture: "sm_70" }],
    ["compute_120", { architecture: "compute_120" }],
    ["sm_89", { architecture: { major: 8, minor: 9 } }]
  ]
  for (const [name, options] of refused) {
    it.live(`${name}, which this NVRTC does not support, is rejected with a list of those it does`, () =>
      onNvrtc(Effect.gen(function*() {
        const reason = yield* failsWith(CudaProgram.compile(kernel, options), "InvalidArgument")
        assert.deepStrictEqual(reason, {
          _tag: "InvalidArgument",
          argument: "architecture",
          value: reason.value,
          expected: "one that NVRTC 13.0 supports: 75, 80, 86, 90, 100"
        })
        assert.include(reason.value, name)
        assert.strictEqual(nvrtc.compilations, 0)
      })))
  }

  describe("of a device that is newer than NVRTC", () => {
    const old = openNvrtc(["STUB_ARCHS=75,80,86"])
    it.live("becomes PTX for the newest architecture that NVRTC supports", () =>
      onNvrtc(
        Effect.gen(function*() {
          assert.deepInclude(yield* CudaProgram.compile(kernel), { kind: "ptx", architecture: "compute_86" })
          const ptx = yield* CudaProgram.compile(kernel, { target: "ptx" })
          assert.deepInclude(ptx, { kind: "ptx", architecture: "compute_86" })
        }),
        {},
        old
      ))

    it.live("is rejected as a CUBIN", () =>
      onNvrtc(
        Effect.gen(function*() {
          const reason = yield* failsWith(CudaProgram.compile(kernel, { target: "cubin" }), "InvalidArgument")
          assert.strictEqual(reason.value, "that of device 0 (sm_90)")
        }),
        {},
        old
      ))
  })

  it.live("of a device older than any that NVRTC supports is rejected", () =>
    onNvrtc(refuses(CudaProgram.compile(kernel), "architecture"), {}, openNvrtc(["STUB_ARCHS=100,120"])))
})

describe("an invalid argument is rejected by name before the compiler runs", () => {
  const refused: ReadonlyArray<readonly [string, string, string, CudaProgram.CompileOptions]> = [
    ["source", "empty", " \n", {}],
    ["source", "with a NUL character", "a\0b", {}],
    ["name", "empty", kernel, { name: "" }],
    ["name", "of two lines", kernel, { name: "a\nb" }],
    ["target", "of another kind", kernel, { target: "spirv" as "ptx" }],
    ["architecture", "of another kind", kernel, { architecture: "gfx90a" as "sm_90" }],
    ["architecture", "without a number", kernel, { architecture: "sm_" }],
    ["architecture", "of half a version", kernel, { architecture: { major: 9, minor: 10 } }],
    ["architecture", "that is virtual, for a CUBIN", kernel, { architecture: "compute_90", target: "cubin" }],
    ["options[0]", "with an architecture", kernel, { options: ["--gpu-architecture=sm_80"] }],
    ["options[0]", "with an architecture, in short", kernel, { options: ["-arch=sm_80"] }],
    ["options[0]", "for another kind of image", kernel, { options: ["-dlto"] }],
    ["options[0]", "with a NUL character", kernel, { options: ["-D\0"] }],
    ["headers[\"\"]", "without a name", kernel, { headers: { "": "" } }],
    ["headers[\"a.h\"]", "with a NUL character", kernel, { headers: { "a.h": "\0" } }],
    ["nameExpressions[0]", "empty", kernel, { nameExpressions: [""] }],
    ["device", "that is not there", kernel, { device: 1 }]
  ]
  for (const [argument, what, source, options] of refused) {
    it.live(`${argument}: ${what}`, () =>
      onNvrtc(Effect.gen(function*() {
        yield* refuses(CudaProgram.compile(source, options), argument)
        assert.strictEqual(nvrtc.compilations, 0)
      })))
  }
})

describe("a failure", () => {
  it.live("of the source carries the errors with their lines, and the log", () =>
    onNvrtc(Effect.gen(function*() {
      const lines = ["kernels.cu(1): error: identifier \"x\" is undefined", "", "1 error detected."]
      const error = yield* Effect.flip(CudaProgram.compile(logs(6, ...lines), { name: "kernels.cu" }))
      assert(error.reason._tag === "CompilationFailed", error.message)
      assert.strictEqual(error.operation, "CudaProgram.compile")
      assert.isFalse(error.isSticky || error.isRetryable)
      assert.strictEqual(error.reason.log, lines.join("\n"))
      assert.deepStrictEqual(error.reason.diagnostics, [{
        severity: "error",
        file: "kernels.cu",
        line: 1,
        column: undefined,
        message: "identifier \"x\" is undefined",
        code: undefined,
        text: kernel
      }])
      assert.strictEqual(
        error.message,
        `CudaProgram.compile (kernels.cu): 1 error in kernels.cu.\nkernels.cu(1): identifier "x" is undefined\n    ${kernel}`
      )
    })))

  it.live("of the options carries the options and the log", () =>
    onNvrtc(Effect.gen(function*() {
      const said = "nvrtc: error: unrecognized option --quick found"
      const options = ["--quick"]
      const reason = yield* failsWith(CudaProgram.compile(logs(5, said), { options }), "InvalidCompileOption")
      assert.deepStrictEqual(reason.options, ["--gpu-architecture=sm_90", "--quick"])
      assert.strictEqual(reason.log, said)
    })))

  it.live("of options that generate no image says so", () =>
    onNvrtc(Effect.gen(function*() {
      const reason = yield* failsWith(CudaProgram.compile(`${kernel} // STUB_EMPTY`), "InvalidCompileOption")
      assert.include(reason.log, "generates no CUBIN")
      const options = { target: "ptx", options: ["--some-option"] } as const
      const ptx = yield* failsWith(CudaProgram.compile(`${kernel} // STUB_EMPTY`, options), "InvalidCompileOption")
      assert.include(ptx.log, "generates no PTX")
      assert.deepStrictEqual(ptx.options, ["--gpu-architecture=compute_90", "--some-option"])
    })))

  for (const code of [1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 99]) {
    it.live(`of the compiler itself (${code}) carries its name and number`, () =>
      onNvrtc(Effect.gen(function*() {
        const error = yield* Effect.flip(CudaProgram.compile(logs(code, "what it says")))
        assert(error.reason._tag === "CompilerFailed", error.message)
        assert.deepInclude(error.reason, { ...nvrtcResult(code), log: "what it says" })
        assert.strictEqual(error.call, "nvrtcCompileProgram")
        assert.include(error.message, `nvrtcCompileProgram returned ${error.reason.name} (${code})`)
        assert.include(error.message, "what it says")
        assert.strictEqual(error.isRetryable, code === 1 || code === 16)
        assert.isFalse(error.isSticky)
      })))
  }

  it.live("for missing builtins says where they belong", () =>
    onNvrtc(Effect.gen(function*() {
      const error = yield* Effect.flip(CudaProgram.compile(logs(7, "")))
      assert.include(error.message, "libnvrtc-builtins")
    })))

  it.live("to create the program or to look up a name names the call", () =>
    onNvrtc(Effect.gen(function*() {
      nvrtc.failCreate(2)
      const made = yield* Effect.flip(CudaProgram.compile(kernel))
      nvrtc.failCreate(0)
      assert.deepStrictEqual([made.call, made.reason._tag], ["nvrtcCreateProgram", "CompilerFailed"])
      nvrtc.failName(10)
      const named = yield* Effect.flip(CudaProgram.compile(kernel, { nameExpressions: ["add"] }))
      nvrtc.failName(0)
      assert.deepStrictEqual([named.call, named.reason._tag], ["nvrtcGetLoweredName", "CompilerFailed"])
    })))

  it.live("is not cached: the same program is compiled again", () =>
    onNvrtc(Effect.gen(function*() {
      yield* failsWith(CudaProgram.compile(logs(6, "no")), "CompilationFailed")
      yield* failsWith(CudaProgram.compile(logs(6, "no")), "CompilationFailed")
      assert.strictEqual(nvrtc.compilations, 2)
    })))
})

describe("the log", () => {
  const sources = new Map([["kernels.cu", "one\n  int y = x;\nthree"], ["a.cuh", "\tint b = c;"]])

  it("is parsed into diagnostics with lines of the source", () => {
    const log = [
      "kernels.cu(2): error: identifier \"x\" is undefined",
      "    int y = x;",
      "            ^",
      "",
      "a.cuh(1): warning #177-D: variable \"b\" was declared but never referenced",
      "  \tint b = c;",
      "  \t    ^",
      "",
      "Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"",
      "",
      "kernels.cu(9): catastrophic error: cannot open source file \"c.h\"",
      "1 catastrophic error detected in the compilation of \"kernels.cu\".",
      "Compilation terminated."
    ].join("\n")
    assert.deepStrictEqual(parseLog(log, sources), [
      {
        severity: "error",
        file: "kernels.cu",
        line: 2,
        column: 11,
        message: "identifier \"x\" is undefined",
        code: undefined,
        text: "  int y = x;"
      },
      {
        severity: "warning",
        file: "a.cuh",
        line: 1,
        column: 6,
        message: "variable \"b\" was declared but never referenced",
        code: "177-D",
        text: "\tint b = c;"
      },
      {
        severity: "error",
        file: "kernels.cu",
        line: 9,
        column: undefined,
        message: "cannot open source file \"c.h\"",
        code: undefined,
        text: undefined
      }
    ])
  })

  const single: ReadonlyArray<readonly [string, ReturnType<typeof parseLog>[number]["severity"] | undefined, string]> =
    [
      ["k.cu(3,7): error #20: no", "error", "k.cu|3|7|20|no"],
      ["k.cu:3:7: error: no", "error", "k.cu|3|7||no"],
      ["/a b/k (1).cu(3): remark: so", "remark", "/a b/k (1).cu|3|||so"],
      ["C:\\a\\k.cu(3): warning #1-D: so: it is", "warning", "C:\\a\\k.cu|3||1-D|so: it is"],
      ["nvrtc: error: unrecognized option --quick found", "error", "||||unrecognized option --quick found"],
      [
        "ptxas error   : Entry function 'k' uses too much shared data",
        "error",
        "||||Entry function 'k' uses too much shared data"
      ],
      ["ptxas fatal   : Ptx assembly aborted due to errors", "error", "||||Ptx assembly aborted due to errors"],
      ["          detected during instantiation of \"void f(T)\" at line 4", undefined, ""],
      ["", undefined, ""]
    ]
  for (const [line, severity, parts] of single) {
    it(`of ${JSON.stringify(line)}`, () => {
      const [found] = parseLog(line, new Map())
      assert.strictEqual(found?.severity, severity)
      if (found === undefined) return
      assert.strictEqual([found.file, found.line, found.column, found.code, found.message].join("|"), parts)
    })
  }
})

describe("interruption", () => {
  const slow = `${kernel} // STUB_DELAY(400)`
  const started = (library = nvrtc, count = 1) => until("compiling", () => library.compiling === count)

  it.live("ends the fiber at once, and the compiler soon after", () =>
    onNvrtc(Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(CudaProgram.compile(`${kernel} // STUB_DELAY(10000)`))
      yield* started()
      const begun = performance.now()
      yield* Fiber.interrupt(fiber)
      yield* until("the compiler stops", () => nvrtc.live === 0)
      assert.isBelow(performance.now() - begun, 2000)
      assert.strictEqual(nvrtc.cancelled, 1)
      assert.isFalse((yield* CudaProgram.compile(kernel)).fromCache)
    })))

  it.live("ends the fiber at once even if the compiler cannot be stopped", () => {
    const old = openNvrtc(["STUB_NO_FLOW"])
    return onNvrtc(
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(CudaProgram.compile(`${kernel} // STUB_DELAY(800)`))
        yield* started(old)
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual([old.live, old.compiling], [1, 1])
        yield* until("the compiler ends", () => old.live === 0)
        assert.strictEqual(old.cancelled, 0)
      }),
      {},
      old
    )
  })

  it.live("of one of two identical compilations does not affect the other", () =>
    onNvrtc(Effect.gen(function*() {
      const one = yield* Effect.forkChild(CudaProgram.compile(slow))
      yield* started()
      const other = yield* Effect.forkChild(CudaProgram.compile(slow))
      yield* pause(20)
      yield* Fiber.interrupt(one)
      const program = yield* Fiber.join(other)
      assert.strictEqual(text(program.image), `\x7fELF stub ${slow}`)
      assert.deepStrictEqual([nvrtc.compilations, nvrtc.cancelled], [1, 0])
    })))

  it.live("of the last waiter stops the compilation, and the next request starts a new one", () =>
    onNvrtc(Effect.gen(function*() {
      const one = yield* Effect.forkChild(CudaProgram.compile(slow))
      yield* started()
      yield* Fiber.interrupt(one)
      const program = yield* CudaProgram.compile(slow)
      assert.strictEqual(text(program.image), `\x7fELF stub ${slow}`)
      assert.deepStrictEqual([nvrtc.compilations, nvrtc.cancelled], [2, 1])
    })))

  it.live("of a queued compilation never starts it", () =>
    onNvrtc(Effect.gen(function*() {
      const running = yield* Effect.forkChild(
        Effect.forEach([1, 2], (n) => CudaProgram.compile(`${slow}${n}`), { concurrency: 2 })
      )
      yield* started(nvrtc, 2)
      const waiting = yield* Effect.forkChild(CudaProgram.compile(`${slow}3`))
      yield* pause(10)
      yield* Fiber.interrupt(waiting)
      yield* Fiber.join(running)
      yield* pause(20)
      assert.strictEqual(nvrtc.compilations, 2)
    })))

  it.live("at any moment leaks nothing", () =>
    onNvrtc(Effect.gen(function*() {
      for (let after = 0; after < 20; after++) {
        const fiber = yield* Effect.forkChild(CudaProgram.compile(`${kernel} // STUB_DELAY(6) ${after}`))
        yield* pause(after / 2)
        yield* Fiber.interrupt(fiber)
      }
      yield* until("all is given back", () => nvrtc.live === 0)
      yield* CudaProgram.compile(kernel)
    })))
})

describe("many at once", () => {
  it.live("run two at a time by default, while files can be read", () =>
    onNvrtc(Effect.gen(function*() {
      const compile = (n: number) => CudaProgram.compile(`${kernel} // STUB_DELAY(200) ${n}`, { cache: false })
      const all = yield* Effect.forkChild(Effect.forEach([1, 2, 3, 4, 5, 6], compile, { concurrency: "unbounded" }))
      yield* until("two compile", () => nvrtc.compiling === 2)
      yield* Effect.flip(CudaProgram.fromFile(import.meta.filename))
      assert.isBelow(nvrtc.compilations, 5)
      const programs = yield* Fiber.join(all)
      assert.strictEqual(new Set(programs.map(({ image }) => text(image))).size, 6)
      assert.deepStrictEqual([nvrtc.compilations, nvrtc.mostAtOnce], [6, 2])
    })))

  it.live("identical ones share one compilation and its failure", () =>
    onNvrtc(Effect.gen(function*() {
      const ten = Array.from({ length: 10 }, () => `${kernel} // STUB_DELAY(30)`)
      const programs = yield* Effect.forEach(ten, (source) => CudaProgram.compile(source), { concurrency: "unbounded" })
      assert.strictEqual(new Set(programs.map(({ image }) => text(image))).size, 1)
      assert.strictEqual(nvrtc.compilations, 1)
      const bad = `${logs(6, "no")} // STUB_DELAY(30)`
      const failing = Array.from({ length: 5 }, () => failsWith(CudaProgram.compile(bad), "CompilationFailed"))
      yield* Effect.all(failing, { concurrency: "unbounded" })
      assert.strictEqual(nvrtc.compilations, 2)
    })))

  for (const operations of [3, 5, 8]) {
    it.live(`identical ones share one compilation when fibers yield every ${operations} operations`, () =>
      onNvrtc(Effect.gen(function*() {
        const ten = Array.from({ length: 10 }, () => `${kernel} // STUB_DELAY(30)`)
        yield* Effect.forEach(ten, (source) => CudaProgram.compile(source), { concurrency: "unbounded" })
        assert.strictEqual(nvrtc.compilations, 1)
      })).pipe(Effect.provideService(MaxOpsBeforeYield, operations)))
  }
})

describe("the cache", () => {
  const options = { name: "k.cu", headers: { "a.h": "1" }, options: ["-DN=1"], nameExpressions: ["add<float>"] }
  const filesIn = (folder: string) =>
    existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith(".program")) : []
  const only = (folder: string) => join(folder, filesIn(folder)[0]!)
  const inFolder = (folder: string) => ({ programCache: { folder } })

  it.live("returns what another runtime compiled", () => {
    const folder = makeFolder()
    const source = logs(0, "k.cu(1): warning #1-D: hm")
    const compiled = CudaProgram.compile(source, options)
    return Effect.gen(function*() {
      const first = yield* onNvrtc(compiled, inFolder(folder))
      assert.isFalse(first.fromCache)
      const second = yield* onNvrtc(compiled, inFolder(folder))
      assert.strictEqual(nvrtc.compilations, 0)
      assert.isTrue(second.fromCache)
      for (const field of ["name", "kind", "architecture", "image", "log", "source", "loweredNames"] as const) {
        assert.deepStrictEqual<unknown>(second[field], first[field], field)
      }
      assert.strictEqual(second.loweredName("add<float>"), "_Z_add<float>")
      assert.strictEqual(statSync(only(folder)).mode & 0o777, 0o600)
      assert.deepStrictEqual(readdirSync(folder).length, 1)
    })
  })

  it.live("distinguishes programs by everything that determines their output", () => {
    const folder = makeFolder()
    const variants: ReadonlyArray<Program<CudaProgram.CudaProgram, unknown>> = [
      CudaProgram.compile(kernel, options),
      CudaProgram.compile(`${kernel} `, options),
      CudaProgram.compile(kernel, { ...options, name: "l.cu" }),
      CudaProgram.compile(kernel, { ...options, headers: { "a.h": "2" } }),
      CudaProgram.compile(kernel, { ...options, headers: { "b.h": "1" } }),
      CudaProgram.compile(kernel, { ...options, options: ["-DN=2"] }),
      CudaProgram.compile(kernel, { ...options, options: ["-DN=1", "-G"] }),
      CudaProgram.compile(kernel, { ...options, nameExpressions: [] }),
      CudaProgram.compile(kernel, { ...options, target: "ptx" }),
      CudaProgram.compile(kernel, { ...options, architecture: "sm_80" })
    ]
    return onNvrtc(
      Effect.gen(function*() {
        for (const [done, compiled] of variants.entries()) {
          yield* compiled
          assert.strictEqual(nvrtc.compilations, done + 1)
        }
        for (const compiled of variants) assert.isTrue((yield* compiled).fromCache)
        assert.strictEqual(nvrtc.compilations, variants.length)
      }),
      inFolder(folder)
    )
  })

  it.live("ignores the order of headers, and distinguishes versions of NVRTC", () => {
    const folder = makeFolder()
    const newer = openNvrtc(["STUB_MINOR=1"])
    const compiled = (headers: Record<string, string>) => CudaProgram.compile(kernel, { headers })
    return Effect.gen(function*() {
      yield* onNvrtc(compiled({ a: "1", b: "2" }), inFolder(folder))
      assert.isTrue((yield* onNvrtc(compiled({ b: "2", a: "1" }), inFolder(folder))).fromCache)
      assert.isFalse((yield* onNvrtc(compiled({ a: "1", b: "2" }), inFolder(folder), newer)).fromCache)
      const other = new StubNvrtc(putNvrtc(join(makeFolder(), "libnvrtc.so.13")))
      assert.isFalse((yield* onNvrtc(compiled({ a: "1", b: "2" }), inFolder(folder), other)).fromCache)
    })
  })

  const broken: ReadonlyArray<readonly [string, (path: string) => void]> = [
    ["is cut off", (path) => writeFileSync(path, readFileSync(path).subarray(0, -1))],
    ["is longer", (path) => appendFileSync(path, "x")],
    ["is empty", (path) => writeFileSync(path, "")],
    ["is something else", (path) => writeFileSync(path, "{}\n")],
    ["has another byte in its image", (path) => {
      const bytes = readFileSync(path)
      bytes[bytes.length - 2]! ^= 1
      writeFileSync(path, bytes)
    }]
  ]
  for (const [what, damage] of broken) {
    it.live(`ignores a file that ${what}, and replaces it`, () => {
      const folder = makeFolder()
      return onNvrtc(
        Effect.gen(function*() {
          const first = yield* CudaProgram.compile(kernel)
          damage(only(folder))
          const second = yield* CudaProgram.compile(kernel)
          assert.deepStrictEqual([second.fromCache, nvrtc.compilations], [false, 2])
          assert.deepStrictEqual(second.image, first.image)
          assert.isTrue((yield* CudaProgram.compile(kernel)).fromCache)
        }),
        inFolder(folder)
      )
    })
  }

  it.live("ignores a file of another program", () => {
    const folder = makeFolder()
    return onNvrtc(
      Effect.gen(function*() {
        yield* CudaProgram.compile(kernel)
        const bytes = readFileSync(only(folder))
        const own = `${kernel} // its own`
        yield* CudaProgram.compile(own)
        for (const file of filesIn(folder)) writeFileSync(join(folder, file), bytes)
        const program = yield* CudaProgram.compile(own)
        assert.strictEqual(text(program.image), `\x7fELF stub ${own}`)
      }),
      inFolder(folder)
    )
  })

  const useless: ReadonlyArray<readonly [string, (folder: string) => void, string]> = [
    ["cannot be made", (folder) => {
      rmSync(folder, { recursive: true })
      writeFileSync(folder, "")
    }, "could not be kept"],
    ["holds a folder where the file should be", (folder) => {
      const path = only(folder)
      rmSync(path)
      mkdirSync(join(path, "deeper"), { recursive: true })
    }, "could be read"]
  ]
  for (const [what, spoil, words] of useless) {
    it.live(`in a folder that ${what} is ignored, and logged at debug level only`, () =>
      Effect.gen(function*() {
        const folder = makeFolder()
        const run = onNvrtc(CudaProgram.compile(kernel), inFolder(folder))
        yield* run
        spoil(folder)
        const quiet = yield* logged(run)
        assert.deepStrictEqual(quiet.lines, [])
        assert.strictEqual(text(quiet.result.image), `\x7fELF stub ${kernel}`)
        const loud = yield* logged(Effect.provideService(run, References.MinimumLogLevel, "Debug"))
        assert.isTrue(
          loud.lines.some((line) => line.startsWith("Debug") && line.includes(words)),
          loud.lines.join("\n")
        )
      }))
  }

  it.live("can be disabled for the runtime, and disabled or enabled for a program", () => {
    const folder = makeFolder()
    return Effect.gen(function*() {
      const off = { programCache: { folder, enabled: false } }
      yield* onNvrtc(CudaProgram.compile(kernel), off)
      yield* onNvrtc(CudaProgram.compile(kernel, { cache: false }), inFolder(folder))
      assert.deepStrictEqual(filesIn(folder), [])
      yield* onNvrtc(CudaProgram.compile(kernel, { cache: true }), off)
      assert.lengthOf(filesIn(folder), 1)
      yield* onNvrtc(CudaProgram.compile(kernel, { cache: false }), inFolder(folder))
      assert.strictEqual(nvrtc.compilations, 1)
    })
  })

  it.live("is in the folder of EFFECT_CUDA_CACHE, or off", () => {
    const folder = join(makeFolder(), "deep", "er")
    const configured = (value: string) =>
      onNvrtc(CudaProgram.compile(kernel), { programCache: undefined }).pipe(
        Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({ EFFECT_CUDA_CACHE: value }))
      )
    return Effect.gen(function*() {
      yield* configured(folder)
      assert.lengthOf(filesIn(folder), 1)
      assert.isTrue((yield* configured(folder)).fromCache)
      yield* configured("off")
      assert.isFalse((yield* configured("off")).fromCache)
      assert.isFalse(existsSync("off"))
      assert.isFalse(existsSync("effect-cuda"))
    })
  })

  const unsafe: ReadonlyArray<readonly [string, string, CudaProgram.CompileOptions]> = [
    ["an include path", kernel, { options: ["-I/usr/include"] }],
    ["an include path in full", kernel, { options: ["--include-path=/usr/include"] }],
    ["a file before the source", kernel, { options: ["--pre-include=a.h"] }],
    ["precompiled headers", kernel, { options: ["--pch"] }],
    ["an #include of something else", `#include <cuda_fp16.h>\n${kernel}`, { headers: { "a.h": "" } }],
    ["an #include with a macro", `#define A "a.h"\n  #  include A\n${kernel}`, { headers: { "a.h": "" } }],
    ["an #include in a header", `#include "a.h"\n${kernel}`, { headers: { "a.h": "int a;\n#include \"b.h\"" } }],
    ["an #include after a comment", `/* a */ # /* b */ include "b.h"\n${kernel}`, {}],
    ["an #include after a comment of two lines", `/* a\n b */ #include "b.h"\n${kernel}`, {}],
    ["an #include_next", `#include_next "b.h"\n${kernel}`, {}],
    ["a look for a header", `#if __has_include("b.h")\n#endif\n${kernel}`, {}]
  ]
  for (const [what, source, options] of unsafe) {
    it.live(`does not store a program with ${what}`, () => {
      const folder = makeFolder()
      return Effect.gen(function*() {
        yield* onNvrtc(CudaProgram.compile(source, { ...options, cache: true }), inFolder(folder))
        assert.deepStrictEqual(filesIn(folder), [])
      })
    })
  }

  it.live("stores a program that includes only the given headers", () => {
    const folder = makeFolder()
    const source = `#include "a.h"\n#include <sub/b.h>\n// #include as a word\n${kernel}`
    return Effect.gen(function*() {
      yield* onNvrtc(
        CudaProgram.compile(source, { headers: { "a.h": "#include <sub/b.h>", "sub/b.h": "" } }),
        inFolder(folder)
      )
      assert.lengthOf(filesIn(folder), 1)
    })
  })

  it.live("removes the oldest files beyond its size, and abandoned ones", () => {
    const folder = makeFolder()
    const before = (name: string, bytes: number, hours: number) => {
      const path = join(folder, name)
      writeFileSync(path, new Uint8Array(bytes))
      const at = new Date(Date.now() - hours * 3_600_000)
      utimesSync(path, at, at)
    }
    before("old.program", 3000, 3)
    before("older.program", 3000, 4)
    before("newer.program", 3000, 2)
    before("abandoned.writing", 10, 5)
    before("begun.writing", 10, 0)
    before("of-somebody-else.txt", 9000, 100)
    return Effect.gen(function*() {
      yield* onNvrtc(CudaProgram.compile(kernel), { programCache: { folder, maxBytes: 7000 } })
      const left = readdirSync(folder).filter((name) => !/^[0-9a-f]{64}\.program$/.test(name)).sort()
      assert.deepStrictEqual(left, ["begun.writing", "newer.program", "of-somebody-else.txt", "old.program"])
      assert.lengthOf(filesIn(folder), 3)
    })
  })

  it.live("marks files that are read as the newest", () => {
    const folder = makeFolder()
    return onNvrtc(
      Effect.gen(function*() {
        yield* CudaProgram.compile(kernel)
        utimesSync(only(folder), 1, 1)
        yield* CudaProgram.compile(kernel)
        assert.isAbove(statSync(only(folder)).mtimeMs, Date.now() - 10_000)
      }),
      inFolder(folder)
    )
  })

  it.live("rejects a negative size", () =>
    refuses(onNvrtc(CudaProgram.compile(kernel), { programCache: { maxBytes: -1 } }), "maxBytes"))

  it("is in the platform's cache folder", () => {
    assert.strictEqual(cacheFolder({ XDG_CACHE_HOME: "/tmp/x" }, "linux"), "/tmp/x/effect-cuda")
    assert.match(cacheFolder({}, "linux")!, /\/\.cache\/effect-cuda$/)
    assert.match(cacheFolder({ XDG_CACHE_HOME: "relative" }, "linux")!, /\/\.cache\/effect-cuda$/)
    assert.match(cacheFolder({ LOCALAPPDATA: "/local" }, "win32")!, /local.effect-cuda$/)
  })
})

describe("the library", () => {
  const nowhere = "/nowhere/libnvrtc.so"

  it.live("is loaded once, by the first program instead of the runtime", () => {
    const own = new StubNvrtc(putNvrtc(join(makeFolder(), "libnvrtc.so.13")))
    return onNvrtc(
      Effect.gen(function*() {
        yield* pause(5)
        assert.strictEqual(own.bound, 0)
        const sources = [1, 2, 3].map((n) => `${kernel} // ${n}`)
        yield* Effect.forEach(sources, (source) => CudaProgram.compile(source), { concurrency: 3 })
        assert.strictEqual(own.bound, 1)
      }),
      {},
      own
    )
  })

  it.live("that is missing is a failure with its path, and is searched for again", () => {
    const path = join(makeFolder(), "libnvrtc.so.13")
    return onStub(
      stub,
      Effect.gen(function*() {
        const error = yield* Effect.flip(CudaProgram.compile(kernel))
        assert(error.reason._tag === "CompilerNotFound", error.message)
        assert.deepStrictEqual(error.reason.searched.map((place) => place.path), [path])
        assert.match(error.reason.searched[0]!.problem, /no such file|cannot open/i)
        assert.include(error.message, "nvrtcPath")
        putNvrtc(path)
        yield* CudaProgram.compile(kernel)
      }),
      { nvrtcPath: path, programCache: { enabled: false } }
    )
  })

  it.live("is named by EFFECT_CUDA_NVRTC in the configuration, unless by the option", () => {
    const configured = (value: string, options: NativeRuntime.NativeOptions) =>
      onNvrtc(CudaProgram.compile(kernel), options).pipe(
        Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({ EFFECT_CUDA_NVRTC: value }))
      )
    return Effect.gen(function*() {
      yield* configured(nvrtc.path, { nvrtcPath: undefined })
      yield* configured(nowhere, { nvrtcPath: nvrtc.path })
      const reason = yield* failsWith(configured(nowhere, { nvrtcPath: undefined }), "CompilerNotFound")
      assert.deepStrictEqual(reason.searched.map(({ path }) => path), [nowhere])
    })
  })

  it.live("is searched for in every usual place, each listed", (context) =>
    onStub(
      stub,
      Effect.gen(function*() {
        const outcome = yield* Effect.result(CudaProgram.compile(kernel, { cache: false }))
        if (outcome._tag === "Success") return context.skip("this machine has NVRTC")
        const { reason } = outcome.failure
        assert(reason._tag === "CompilerNotFound", outcome.failure.message)
        const { folders, names } = nvrtcPlaces(process.platform, process.env, 13)
        assert.deepStrictEqual(reason.searched.map(({ path }) => path), [...names, ...folders])
        assert.isTrue(reason.searched.every(({ problem }) => problem.length > 0))
      })
    ))

  const unusable: ReadonlyArray<readonly [string, () => string, RegExp]> = [
    ["is no library", () => {
      const path = join(makeFolder(), "libnvrtc.so.13")
      writeFileSync(path, "not a library")
      return path
    }, /invalid ELF header|too short/],
    ["is another library", () => "libc.so.6", /has no nvrtcVersion, so it is not NVRTC/],
    [
      "is too old",
      () => buildNvrtc(["STUB_HIDE_CUBIN"]),
      /has no nvrtcGetCUBINSize, so it is not NVRTC 11\.2/
    ]
  ]
  for (const [what, path, words] of unusable) {
    it.live(`that ${what} is a failure that says so`, () =>
      onStub(
        stub,
        Effect.gen(function*() {
          const reason = yield* failsWith(CudaProgram.compile(kernel), "CompilerNotFound")
          assert.match(reason.searched[0]!.problem, words)
        }),
        { nvrtcPath: path(), programCache: { enabled: false } }
      ))
  }
})

describe("the usual places", () => {
  it("on Linux begin with the version of the driver, as a bare name", () => {
    assert.deepStrictEqual(nvrtcPlaces("linux", {}, 12).names, [
      "libnvrtc.so.12",
      "libnvrtc.so.13",
      "libnvrtc.so",
      "libnvrtc.so.11.2"
    ])
    assert.strictEqual(nvrtcPlaces("linux", {}, 14).names[0], "libnvrtc.so.14")
  })

  it("on Linux are those of toolkits, wheels, environments and containers", () => {
    const environment = { CUDA_HOME: "/cuda", CONDA_PREFIX: "/conda", VIRTUAL_ENV: "/venv", HOME: "/home/me" }
    const { folders } = nvrtcPlaces("linux", environment, 13)
    assert.includeMembers([...folders], [
      "/cuda/lib64",
      "/conda/lib",
      "/venv/lib/python3*/site-packages/nvidia/cu1*/lib",
      "/venv/lib/python3*/site-packages/nvidia/cuda_nvrtc/lib",
      "/home/me/.local/lib/python3*/site-packages/nvidia/cu1*/lib",
      "/usr/local/cuda/lib64",
      "/usr/local/cuda-*/lib64",
      "/usr/lib/*-linux-gnu",
      "/usr/lib64",
      "/usr/lib/python3*/dist-packages/nvidia/cu1*/lib",
      "/usr/local/lib/python3*/dist-packages/nvidia/cuda_nvrtc/lib",
      "/opt/conda/lib",
      "/opt/*/.venv/lib/python3*/site-packages/nvidia/cu1*/lib"
    ])
    assert.strictEqual(folders[0], "/cuda/lib64")
    assert.strictEqual(new Set(folders).size, folders.length)
    for (const HOME of ["", "relative"]) {
      assert.deepStrictEqual(nvrtcPlaces("linux", { HOME }, 13), nvrtcPlaces("linux", {}, 13))
    }
    assert.isFalse(nvrtcPlaces("linux", {}, 13).folders.some((folder) => /undefined|^\/lib|^\/\./.test(folder)))
  })

  it("on Windows are the toolkit's and the wheels'", () => {
    const { folders, names } = nvrtcPlaces("win32", { CUDA_PATH: "D:\\cuda" }, 13)
    assert.deepStrictEqual(names, ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"])
    assert.includeMembers([...folders], [
      "D:\\cuda\\bin\\x64",
      "D:\\cuda\\bin",
      "C:\\Program Files\\NVIDIA GPU Computing Toolkit\\CUDA\\v*\\bin"
    ])
  })

  it("on macOS are none", () => {
    assert.deepStrictEqual(nvrtcPlaces("darwin", {}, 13), { names: [], folders: [] })
  })
})

describe("a standalone program", () => {
  const script = (before: string, then: string) => `
    ${before}
    import * as Effect from "effect/Effect"
    const { CudaProgram, NativeRuntime } = await import("./index.js")
    const options = {
      libraryPath: ${JSON.stringify(stub.path)},
      nvrtcPath: ${JSON.stringify(nvrtc.path)},
      programCache: { enabled: false }
    }
    const on = (program) => program.pipe(Effect.provide(NativeRuntime.layer(options)), Effect.runPromise)
    const kernel = ${JSON.stringify(kernel)}
    ${then}
  `

  it.live("has a large enough stack for the compiler without any setup, and ends", () =>
    Effect.gen(function*() {
      const { exit, output } = yield* Effect.promise(() =>
        runChild(script("", `console.log((await on(CudaProgram.compile(kernel))).kind)`))
      )
      assert.deepStrictEqual([exit, output.trim()], [0, "cubin"])
    }))

  it.live("that loaded a library with koffi first gets advice instead of a crash", () =>
    Effect.gen(function*() {
      const before = `import koffi from "koffi"\nkoffi.load(null)`
      const { exit, output } = yield* Effect.promise(() =>
        runChild(script(before, `console.log((await on(Effect.flip(CudaProgram.compile(kernel)))).message)`))
      )
      assert.strictEqual(exit, 0, output)
      assert.include(output, "a stack of 128 KiB")
      assert.include(output, "async_stack_size")
    }))

  it.live("loads no NVRTC by importing the modules or making the runtime", () =>
    Effect.gen(function*() {
      const { exit, output } = yield* Effect.promise(() =>
        runChild(script(
          "",
          `
          await on(Effect.void)
          const libraries = process.report.getReport().sharedObjects
          console.log(JSON.stringify(libraries.filter((path) => /nvrtc/.test(path))))
        `
        ))
      )
      assert.deepStrictEqual([exit, output.trim()], [0, "[]"])
    }))

  it.live("that exits while it compiles exits", () =>
    Effect.gen(function*() {
      const { exit, milliseconds } = yield* Effect.promise(() =>
        runChild(script(
          "",
          `
          const slow = CudaProgram.compile(kernel + "// STUB_DELAY(200)")
          Effect.runFork(Effect.provide(slow, NativeRuntime.layer(options)))
          setTimeout(() => process.exit(3), 100)
        `
        ))
      )
      assert.strictEqual(exit, 3)
      assert.isBelow(milliseconds, 4000)
    }))
})

describe("a runtime that was released", () => {
  it.live("compiles nothing more", () =>
    Effect.gen(function*() {
      const { CudaRuntime } = yield* Effect.promise(() => import("effect-cuda/CudaRuntime"))
      const context = yield* onNvrtc(Effect.context<CudaRuntime>())
      assert.isDefined(context.mapUnsafe.get(CudaRuntime.key))
      const compiled = Effect.provide(CudaProgram.compile(kernel), Layer.succeedContext(context))
      yield* failsWith(compiled, "ResourceReleased")
    }))
})
