/**
 * Annotations through NVTX, on the stub and on the real library with a stub profiler; and captures of profilers.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import * as CudaProfiler from "effect-cuda/CudaProfiler"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import koffi from "koffi"
import { attributesLayout, nvtxFiles, nvtxPlaces } from "../../src/cuda/nvtx.ts"
import { load } from "../../src/cuda/nvtxLibrary.ts"
import type { Annotator } from "../../src/layers/Annotations.ts"
import { open } from "../../src/layers/native/annotations.ts"
import { failsWith } from "../support/assertions.ts"
import { buildLibrary } from "../support/stub/build.ts"
import { runChild } from "../support/stub/child.ts"
import { copyStub, logged, onStub, openStub, pause } from "../support/stubDriver.ts"
import { withEveryYield } from "../support/yields.ts"

const driver = openStub()
const nvtx = buildLibrary("nvtx.c", "libnvtx")
const stub = koffi.load(nvtx)
const layoutOf: (what: number) => number | bigint = stub.func("stub_layout", "size_t", ["int"])
const logOf: () => string = stub.func("stub_log", "str", [])
const clear: () => void = stub.func("stub_log_clear", "void", [])

/** The calls since the last look. */
const lines = (): ReadonlyArray<string> => {
  const text = logOf()
  clear()
  return text.split("\n").filter((line) => line !== "")
}

const annotator = async (): Promise<Annotator> => {
  const loaded = await open(nvtx)
  assert("annotator" in loaded)
  clear()
  return loaded.annotator
}

describe("the layout of NVTX's attributes", () => {
  it("is that of the C compiler", () => {
    const expected = Object.values(attributesLayout)
    assert.deepStrictEqual(expected.map((_, index) => Number(layoutOf(index))), expected)
  })
})

describe("annotations", () => {
  it("pass their text, and ranges end with the id they started with", async () => {
    const plain = (await annotator()).annotate("größer ⇒ \"1\"", {})
    const [first, second] = [plain.start(), plain.start()]
    plain.end(first)
    plain.mark()
    plain.end(second)
    const [start, restart, end, mark, endLast] = lines()
    assert.match(start!, /^start "größer ⇒ "1"" -> \d+$/)
    const [one, two] = [start, restart].map((line) => line!.split(" -> ")[1])
    assert.deepStrictEqual([end, mark, endLast], [`end ${one}`, "mark \"größer ⇒ \"1\"\"", `end ${two}`])
  })

  it("pass colors, except what is no color", async () => {
    const { annotate } = await annotator().then((made) => ({ annotate: made.annotate.bind(made) }))
    for (const color of [0x76b900, 0, 0xffffff, -1, 0x1000000, 0.5, Number.NaN]) annotate("a", { color }).mark()
    assert.deepStrictEqual(lines(), [
      "mark \"a\" #ff76b900",
      "mark \"a\" #ff000000",
      "mark \"a\" #ffffffff",
      ...Array.from({ length: 4 }, () => "mark \"a\"")
    ])
  })

  it("name each category and domain once", async () => {
    const made = await annotator()
    made.annotate("a", { category: "copies" }).mark()
    made.annotate("b", { category: "copies" }).mark()
    made.annotate("c", { category: "kernels" }).mark()
    const service = made.annotate("d", { category: "copies", domain: "service" })
    service.end(service.start())
    made.annotate("e", { domain: "service" }).mark()
    made.annotate("f", { domain: "other" }).mark()
    const range = /-> (\d+)$/
    const seen = lines()
    const id = range.exec(seen.find((line) => range.test(line))!)![1]
    const domain = Number(/^domain (\d+) "service"$/.exec(seen.find((line) => line.endsWith("\"service\""))!)![1])
    assert.deepStrictEqual(seen, [
      "category 1 \"copies\"",
      "mark \"a\" category 1",
      "mark \"b\" category 1",
      "category 2 \"kernels\"",
      "mark \"c\" category 2",
      `domain ${domain} "service"`,
      `category 1 "copies" domain ${domain}`,
      `start "d" category 1 domain ${domain} -> ${id}`,
      `end ${id} domain ${domain}`,
      `mark "e" domain ${domain}`,
      `domain ${domain + 1} "other"`,
      `mark "f" domain ${domain + 1}`
    ])
  })

  it("say where NVTX was looked for if there is none", async () => {
    const missing = await open("/nowhere/libnvtx3interop.so.1")
    assert("problem" in missing)
    assert.include(missing.problem, "/nowhere/libnvtx3interop.so.1")
    const wrong = await open("libc.so.6")
    assert("problem" in wrong)
    assert.include(wrong.problem, "has no nvtxInitialize, so it is not NVTX")
  })
})

describe("the places of NVTX", () => {
  it("are its names, and the folders of toolkits and wheels", () => {
    const { folders, names } = nvtxPlaces("linux", { CUDA_HOME: "/cuda", VIRTUAL_ENV: "/venv" })
    assert.deepStrictEqual(names, ["libnvtx3interop.so.1", "libnvToolsExt.so.1"])
    assert.includeMembers([...folders], [
      "/cuda/lib64",
      "/venv/lib/python3*/site-packages/nvidia/cu1*/lib",
      "/venv/lib/python3*/site-packages/nvidia/nvtx/lib"
    ])
    assert.deepStrictEqual(nvtxPlaces("darwin", {}), { names: [], folders: [] })
  })

  it("have NVTX 3 before NVTX 2", () => {
    const files = ["libnvToolsExt.so.1", "libnvtx3interop.so.1", "libnvtx3interop.so", "libnvrtc.so.13"]
    assert.deepStrictEqual(files.filter((file) => nvtxFiles.matches.test(file)).sort(nvtxFiles.order), [
      "libnvtx3interop.so",
      "libnvtx3interop.so.1",
      "libnvToolsExt.so.1"
    ])
  })
})

/** Runs a script under a profiler, and returns what it prints: the profiler's log comes last. */
const profiled = (script: string, environment: Readonly<Record<string, string>>) =>
  Effect.map(
    Effect.promise(() =>
      runChild(`
        Object.assign(process.env, ${JSON.stringify(environment)})
        const { CudaProfiler } = await import("./index.js")
        const Effect = await import("effect/Effect")
        const Fiber = await import("effect/Fiber")
        ${script}
        const { default: koffi } = await import("koffi")
        console.log(koffi.load(${JSON.stringify(nvtx)}).func("stub_log", "str", [])())
      `)
    ),
    ({ exit, output }) => {
      assert.strictEqual(exit, 0, output)
      return output.split("\n").filter((line) => line !== "")
    }
  )

const underStub = { NVTX_INJECTION64_PATH: "/a/profiler.so", EFFECT_CUDA_NVTX: nvtx }

/** Removes the numbers of ranges, which depend on the ids before them. */
const withoutIds = (printed: ReadonlyArray<string>) => {
  const first = /-> (\d+)$/.exec(printed.find((line) => / -> \d+$/.test(line)) ?? "")?.[1]
  const base = Number(first ?? 1) - 1
  return printed.map((line) =>
    line.replace(
      /-> (\d+)$|^end (\d+)/,
      (match, start, end) => match.replace(/\d+/, String(Number(start ?? end) - base))
    )
  )
}

/** Fibers whose ranges overlap without nesting, an interruption, a failure and a mark. */
const overlapping = `
  const nap = (millis) => Effect.sleep(millis)
  const range = CudaProfiler.range
  const program = Effect.gen(function*() {
    const outer = yield* Effect.forkChild(range(nap(20), "first"), { startImmediately: true })
    yield* nap(5)
    const inner = yield* Effect.forkChild(nap(40).pipe(range("second", { color: 0x76b900 })), { startImmediately: true })
    yield* Fiber.join(outer)
    yield* Fiber.interrupt(inner)
    yield* Effect.ignore(Effect.fail("no").pipe(range("third", { category: "failures", domain: "service" })))
    yield* CudaProfiler.mark("done")
  })
  await Effect.runPromise(program)
  console.log(await Effect.runPromise(CudaProfiler.isListening))
`

const expected = [
  "true",
  "start \"first\" -> 1",
  "start \"second\" #ff76b900 -> 2",
  "end 1",
  "end 2",
  "domain 1 \"service\"",
  "category 1 \"failures\" domain 1",
  "start \"third\" category 1 domain 1 -> 3",
  "end 3 domain 1",
  "mark \"done\""
]

describe("under a profiler", () => {
  it.live("ranges of fibers overlap, and end however their effects end", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(withoutIds(yield* profiled(overlapping, underStub)), expected)
    }))

  it.live("the first ranges of many fibers all wait for NVTX", () =>
    Effect.gen(function*() {
      const printed = yield* profiled(
        `await Effect.runPromise(Effect.all(
          Array.from({ length: 100 }, (_, at) => CudaProfiler.range(Effect.sleep(1), "range " + at)),
          { concurrency: "unbounded" }
        ))`,
        underStub
      )
      assert.strictEqual(printed.filter((line) => line.startsWith("start")).length, 100)
      assert.strictEqual(printed.filter((line) => line.startsWith("end")).length, 100)
    }))

  it.live("a missing NVTX is one warning, and effects run", () =>
    Effect.gen(function*() {
      const printed = yield* profiled(
        `const value = await Effect.runPromise(CudaProfiler.range(CudaProfiler.range(Effect.succeed(7), "a"), "b"))
        await Effect.runPromise(CudaProfiler.mark("c"))
        console.log(value)`,
        { NVTX_INJECTION64_PATH: "/a/profiler.so", EFFECT_CUDA_NVTX: "/nowhere/libnvtx.so" }
      )
      assert.strictEqual(printed.filter((line) => line.includes("NVTX could not be loaded")).length, 1)
      assert.strictEqual(printed.at(-1), "7")
    }))

  it.live("annotations can be turned off", () =>
    Effect.gen(function*() {
      const environment = { NVTX_INJECTION64_PATH: "/a/profiler.so", EFFECT_CUDA_NVTX: "off" }
      const printed = yield* profiled(
        `const effect = Effect.succeed(7)
        console.log(CudaProfiler.range(effect, "a") === effect, effect.pipe(CudaProfiler.range("a")) === effect)`,
        environment
      )
      assert.deepStrictEqual(printed, ["true true"])
    }))

  it.live("annotations can be turned on for one that sets no variable, but not by a path", () =>
    Effect.gen(function*() {
      const wraps = `const effect = Effect.succeed(7)
        console.log(await Effect.runPromise(CudaProfiler.isListening), CudaProfiler.range(effect, "a") !== effect)`
      assert.deepStrictEqual(yield* profiled(wraps, { NVTX_INJECTION64_PATH: "", EFFECT_CUDA_NVTX: "on" }), [
        "true true"
      ])
      assert.deepStrictEqual(yield* profiled(wraps, { NVTX_INJECTION64_PATH: "", EFFECT_CUDA_NVTX: nvtx }), [
        "false false"
      ])
    }))

  it.live("annotations do not take away the compiler's stack", () =>
    Effect.gen(function*() {
      const printed = yield* profiled(
        `await Effect.runPromise(CudaProfiler.mark("first"))
        const { default: first } = await import("koffi")
        console.log(first.config().async_stack_size)`,
        underStub
      )
      assert.deepStrictEqual(printed, [String(16 * 1024 * 1024), "mark \"first\""])
    }))
})

/** Two named streams and one without a name, on the stub driver. The first name may be passed on after the stream was made. */
const namedStreams = `
  const { CudaStream, NativeRuntime } = await import("./index.js")
  const program = Effect.gen(function*() {
    yield* CudaStream.make({ name: "copies" })
    yield* Effect.sleep(200)
    yield* CudaStream.make()
    yield* CudaStream.make({ name: "größer" })
    yield* Effect.scoped(CudaStream.make({ name: "short" }))
  }).pipe(Effect.scoped, Effect.provide(NativeRuntime.layer({ libraryPath: ${JSON.stringify(driver.path)} })))
  await Effect.runPromise(program)
`
const namesOfStreams = ["stream some \"copies\"", "stream some \"größer\"", "stream some \"short\""]

describe("names of streams", () => {
  it.live("reach a profiler", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* profiled(namedStreams, underStub), namesOfStreams)
    }))

  it.live("are no reason to load NVTX without one", () =>
    Effect.gen(function*() {
      const printed = yield* profiled(namedStreams, { NVTX_INJECTION64_PATH: "", EFFECT_CUDA_NVTX: nvtx })
      assert.deepStrictEqual(printed, [])
    }))
})

const real = await load(undefined)

describe.skipIf(real._tag !== "Loaded")("the real NVTX", () => {
  it.live("passes annotations on to a profiler", () =>
    Effect.gen(function*() {
      const path = real._tag === "Loaded" ? real.library.path : ""
      const printed = yield* profiled(overlapping, { NVTX_INJECTION64_PATH: nvtx, EFFECT_CUDA_NVTX: path })
      assert.deepStrictEqual(withoutIds(printed), [expected[0], "attached", ...expected.slice(1)])
    }))

  it.live("passes names of streams on to a profiler", () =>
    Effect.gen(function*() {
      const path = real._tag === "Loaded" ? real.library.path : ""
      const printed = yield* profiled(namedStreams, { NVTX_INJECTION64_PATH: nvtx, EFFECT_CUDA_NVTX: path })
      assert.deepStrictEqual(printed, ["attached", ...namesOfStreams])
    }))
})

describe.skipIf(process.env["NVTX_INJECTION64_PATH"] !== undefined)("without a profiler", () => {
  it("a range is the effect itself, and a mark is nothing", () => {
    const effect = Effect.succeed(7)
    assert.strictEqual(CudaProfiler.range(effect, "name"), effect)
    assert.strictEqual(effect.pipe(CudaProfiler.range("name", { color: 1 })), effect)
    assert.strictEqual(CudaProfiler.mark("name"), Effect.void)
  })

  it.live("nothing is loaded", () =>
    Effect.gen(function*() {
      const { exit, output } = yield* Effect.promise(() =>
        runChild(`
          import * as Effect from "effect/Effect"
          const { CudaProfiler } = await import("./index.js")
          await Effect.runPromise(CudaProfiler.range(CudaProfiler.mark("a"), "b"))
          console.log(process.report.getReport().sharedObjects.filter((path) => /nvtx|nvToolsExt|koffi/i.test(path)).length)
        `)
      )
      assert.deepStrictEqual([exit, output.trim()], [0, "0"])
    }))
})

describe("captures", () => {
  const calls = () => driver.calls().map(({ name }) => name).filter((name) => name.startsWith("cuProfiler"))
  const [start, stop] = ["cuProfilerStart", "cuProfilerStop"] as const

  it.live("stop after the last of those that overlap", () =>
    onStub(
      driver,
      Effect.gen(function*() {
        const first = yield* Effect.forkChild(CudaProfiler.capture(pause(20)), { startImmediately: true })
        yield* CudaProfiler.capture(CudaProfiler.capture(pause(60)))
        yield* Fiber.join(first)
        assert.deepStrictEqual(calls().filter((name) => name === stop), [stop])
        assert.strictEqual(calls().at(-1), stop)
        driver.clear()
        yield* CudaProfiler.capture(Effect.void)
        assert.deepStrictEqual(calls(), [start, stop])
      })
    ))

  it.live("stop when their effect fails or is interrupted, and count each device apart", () =>
    onStub(
      driver,
      Effect.gen(function*() {
        assert.strictEqual(yield* Effect.flip(CudaProfiler.capture(Effect.fail("no"))), "no")
        const fiber = yield* Effect.forkChild(CudaProfiler.capture(Effect.never), { startImmediately: true })
        yield* CudaProfiler.capture(Effect.void).pipe(CudaDevice.withDevice(1))
        assert.deepStrictEqual(calls(), [start, stop, start, start, stop])
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(calls().at(-1), stop)
      }),
      { prepare: () => void (driver.devices = 2) }
    ))

  it.live("that cannot start do not run, and do not count", () =>
    onStub(
      driver,
      Effect.gen(function*() {
        let ran = false
        const capture = CudaProfiler.capture(Effect.sync(() => void (ran = true)))
        driver.fail("cuProfilerStart", 5)
        yield* failsWith(capture, "ProfilerDisabled")
        assert.isFalse(ran)
        driver.clear()
        yield* capture
        assert.deepStrictEqual(calls(), [start, stop])
      })
    ))

  it.live("that cannot stop are a warning", () =>
    onStub(
      driver,
      Effect.gen(function*() {
        driver.fail("cuProfilerStop", 999)
        const { lines, result } = yield* logged(CudaProfiler.capture(Effect.succeed(7)))
        assert.strictEqual(result, 7)
        assert.deepStrictEqual(lines.map((line) => /^Warn CudaProfiler.endCapture.*cuProfilerStop/.test(line)), [true])
      })
    ))

  it.live("of a driver without the functions are not supported", () =>
    Effect.suspend(() => {
      const old = copyStub(["cuProfilerStart=stub_hidden"])
      return onStub(old, failsWith(CudaProfiler.capture(Effect.void), "NotSupported"))
    }))

  it.live("collect while their effect runs, also when another ends as one starts", () =>
    withEveryYield(() =>
      onStub(
        driver,
        Effect.gen(function*() {
          const started: Array<boolean> = []
          const look = Effect.sync(() => {
            const calls = driver.calls().filter(({ name }) => name.startsWith("cuProfiler"))
            started.push(calls.at(-1)?.name === "cuProfilerStart")
          })
          for (let turns = 0; turns < 12; turns++) {
            driver.clear()
            const later = Effect.repeat(Effect.yieldNow, { times: turns })
            const captures = [
              CudaProfiler.capture(Effect.void),
              Effect.andThen(later, CudaProfiler.capture(look)),
              CudaProfiler.capture(look),
              CudaProfiler.capture(Effect.yieldNow)
            ]
            yield* Effect.all(captures, { concurrency: "unbounded", discard: true })
          }
          assert.notInclude(started, false)
        })
      )
    ))
})
