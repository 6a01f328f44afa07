/**
 * Finding, loading and rejecting a driver library: failures when it is missing or wrong.
 */
import { assert, describe, it } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import { existsSync, mkdtempSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { candidates } from "../../src/cuda/library.ts"
import { gpu } from "../support/gpu.ts"
import { runChild } from "../support/stub/child.ts"
import { copyStub, logged, openStub, pause } from "../support/stubDriver.ts"
import type { StubDriver } from "../support/stubDriver.ts"

const stub = openStub()
const nowhere = "/nowhere/libcuda.so.1"

const build = (options?: NativeRuntime.NativeOptions) => Effect.scoped(NativeRuntime.make(options))

/** The failure of an effect; dies if it succeeds. */
const refusal = <A, R>(effect: Effect.Effect<A, CudaError, R>): Effect.Effect<CudaError, never, R> =>
  Effect.flip(Effect.andThen(effect, Effect.die(new Error("expected a failure, but it succeeded"))))

/** The failure of building the runtime on a stub. */
const failureOf = (driver: StubDriver): Effect.Effect<CudaError, unknown> =>
  Effect.suspend(() => {
    driver.reset()
    return Effect.flip(build({ libraryPath: driver.path }))
  })

const withLibrary = (path: string) =>
  Effect.provideService(
    ConfigProvider.ConfigProvider,
    ConfigProvider.fromUnknown({ EFFECT_CUDA_LIBRARY: path })
  )

describe("the library", () => {
  it.live("that is missing is a failure with its path and the loader's message", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(build({ libraryPath: nowhere }))
      assert.strictEqual(error.operation, "NativeRuntime.make")
      assert.strictEqual(error.reason._tag, "LibraryNotFound")
      if (error.reason._tag !== "LibraryNotFound") return
      assert.deepStrictEqual(error.reason.searched.map(({ path }) => path), [nowhere])
      assert.match(error.reason.searched[0]!.problem, /no such file|cannot open/i)
      assert.include(error.message, nowhere)
      assert.include(error.message, "EFFECT_CUDA_LIBRARY")
    }))

  it.live("that is not a library is a failure with the loader's message", () =>
    Effect.gen(function*() {
      const path = join(mkdtempSync(join(tmpdir(), "effect-cuda-")), "libcuda.so.1")
      writeFileSync(path, "not a library")
      const error = yield* Effect.flip(build({ libraryPath: path }))
      assert.strictEqual(error.reason._tag, "LibraryNotFound")
      if (error.reason._tag === "LibraryNotFound") assert.isNotEmpty(error.reason.searched[0]!.problem)
    }))

  it.live("is searched in every usual location, each listed", (context) =>
    Effect.gen(function*() {
      const usual = candidates(process.platform, process.env)
      const outcome = yield* Effect.result(build())
      if (outcome._tag === "Success") return context.skip("this machine has a driver")
      const { reason } = outcome.failure
      if (reason._tag !== "LibraryNotFound") return context.skip("this machine has a driver")
      assert.deepStrictEqual(reason.searched.map(({ path }) => path), usual)
      assert.isTrue(reason.searched.every(({ problem }) => problem.length > 0))
    }))

  it.live("can be set by EFFECT_CUDA_LIBRARY in the configuration", () =>
    Effect.gen(function*() {
      stub.reset()
      const runtime = yield* build().pipe(withLibrary(stub.path))
      assert.strictEqual(runtime.devices[0]!.name, "Stub GPU 0")
      const error = yield* Effect.flip(build().pipe(withLibrary(nowhere)))
      assert.include(error.message, nowhere)
    }))

  it.live("can be set by the option, which wins", () =>
    Effect.gen(function*() {
      stub.reset()
      const runtime = yield* build({ libraryPath: stub.path }).pipe(withLibrary(nowhere))
      assert.strictEqual(runtime.kind, "native")
    }))

  it.live("is loaded once, and serves runtimes in sequence and concurrently", () =>
    Effect.gen(function*() {
      stub.reset()
      yield* build({ libraryPath: stub.path })
      const two = yield* Effect.scoped(Effect.all([
        NativeRuntime.make({ libraryPath: stub.path }),
        NativeRuntime.make({ libraryPath: stub.path })
      ], { concurrency: 2 }))
      assert.notStrictEqual(two[0], two[1])
    }))

  it.live("that lacks a function is a failure that names it", () =>
    Effect.gen(function*() {
      const error = yield* failureOf(copyStub(["cuMemPoolTrimTo=stub_hidden"]))
      assert.deepStrictEqual<unknown>(error.reason, { _tag: "FunctionMissing", functionName: "cuMemPoolTrimTo" })
      assert.include(error.message, "has no function cuMemPoolTrimTo")
      assert.notInclude(error.message, "0.0")
    }))
})

describe("the driver", () => {
  it.live("that is too old is a failure with both versions", () =>
    Effect.gen(function*() {
      const error = yield* failureOf(copyStub(["STUB_VERSION=11080"]))
      assert.deepStrictEqual<unknown>(error.reason, { _tag: "DriverTooOld", found: 11080, required: 12000 })
      assert.include(error.message, "11.8")
      assert.include(error.message, "12.0")
    }))

  it.live("so old that it lacks functions is also too old", () =>
    Effect.gen(function*() {
      const error = yield* failureOf(copyStub(["STUB_VERSION=11040", "cuStreamGetId=stub_hidden"]))
      assert.deepStrictEqual<unknown>(error.reason, { _tag: "DriverTooOld", found: 11040, required: 12000 })
    }))

  it.live("of exactly the oldest version works", () =>
    Effect.gen(function*() {
      stub.reset()
      stub.version = 12000
      assert.strictEqual((yield* build({ libraryPath: stub.path })).driverVersion, 12000)
    }))

  it.live("without a device is a NoDevice failure", () =>
    Effect.gen(function*() {
      const error = yield* failureOf(copyStub(["STUB_DEVICES=0"]))
      assert.deepInclude(error.reason, { _tag: "NoDevice", code: 100 })
    }))

  const initializations = [
    ["StubLibrary", 34, "the toolkit's link-time stub"],
    ["NoDevice", 100, "cuInit"],
    ["Unknown", 999, "dmesg"],
    ["SystemDriverMismatch", 803, "cuInit"]
  ] as const
  for (const [tag, code, words] of initializations) {
    it.live(`whose cuInit returns ${code} is a ${tag} failure`, () =>
      Effect.gen(function*() {
        const error = yield* failureOf(copyStub([`STUB_INIT=${code}`]))
        assert.strictEqual(error.reason._tag, tag)
        assert.strictEqual(error.call, "cuInit")
        assert.include(error.message, words)
      }))
  }

  it.live("that failed to initialize can be retried", () =>
    Effect.gen(function*() {
      stub.reset()
      stub.fail("cuInit", 802)
      const error = yield* Effect.flip(build({ libraryPath: stub.path }))
      assert.isTrue(error.isRetryable)
      yield* build({ libraryPath: stub.path })
    }))
})

describe("invalid options are rejected by name", () => {
  const refused: ReadonlyArray<readonly [string, string, NativeRuntime.NativeOptions]> = [
    ["pollFor", "negative", { wait: { pollFor: -1 } }],
    ["pollFor", "NaN", { wait: { pollFor: Number.NaN } }],
    ["pollFor", "not a duration", { wait: { pollFor: "soon" as "1 second" } }],
    ["maxBytes", "negative", { pinned: { maxBytes: -1 } }],
    ["maxBytes", "NaN", { pinned: { maxBytes: Number.NaN } }],
    ["keepBytes", "negative", { pinned: { keepBytes: -4096 } }],
    ["keepBytes", "NaN", { pinned: { keepBytes: Number.NaN } }]
  ]
  for (const [argument, what, options] of refused) {
    it.live(`${argument}: ${what}`, () =>
      Effect.gen(function*() {
        stub.reset()
        const error = yield* refusal(build({ libraryPath: stub.path, ...options }))
        assert.deepInclude(error.reason, { _tag: "InvalidArgument", argument })
        assert.strictEqual(stub.callCount, 0)
      }))
  }

  it.live("valid options are accepted", () =>
    Effect.gen(function*() {
      stub.reset()
      yield* build({
        libraryPath: stub.path,
        wait: { pollFor: "0 millis", wakeUp: false },
        pinned: { maxBytes: 0, keepBytes: 0 }
      })
    }))
})

describe("the usual places", () => {
  it("on Linux begin with the bare name", () => {
    const places = candidates("linux", {})
    assert.strictEqual(places[0], "libcuda.so.1")
    assert.includeMembers([...places], [
      "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
      "/usr/lib64/libcuda.so.1",
      "/usr/lib/libcuda.so.1"
    ])
    assert.strictEqual(new Set(places).size, places.length)
  })

  it("under WSL begin with the driver of Windows", () => {
    const places = candidates("linux", { WSL_DISTRO_NAME: "Ubuntu" })
    assert.deepStrictEqual(places.slice(0, 2), ["/usr/lib/wsl/lib/libcuda.so.1", "libcuda.so.1"])
  })

  it("on Windows are the bare name and the system's folder", () => {
    assert.deepStrictEqual(candidates("win32", { SystemRoot: "D:\\Win" }), [
      "nvcuda.dll",
      "D:\\Win\\System32\\nvcuda.dll"
    ])
    assert.deepStrictEqual(candidates("win32", {})[1], "C:\\Windows\\System32\\nvcuda.dll")
  })

  it("on macOS are none", () => {
    assert.deepStrictEqual(candidates("darwin", {}), [])
  })
})

describe("koffi that cannot be loaded", () => {
  /** Builds both runtimes in a process where importing koffi gives something else. */
  const reasons = (source: string) => {
    const url = `data:text/javascript,${encodeURIComponent(source)}`
    const hook = `export const resolve = (name, context, next) =>
      name === "koffi" ? { url: ${JSON.stringify(url)}, shortCircuit: true } : next(name, context)`
    return runChild(`
      import { register } from "node:module"
      import * as Effect from "effect/Effect"
      process.noDeprecation = true // register, since Node.js 26
      register("data:text/javascript," + encodeURIComponent(${JSON.stringify(hook)}))
      const { AutoRuntime, CudaRuntime, NativeRuntime } = await import("./index.js")
      for (const layer of [NativeRuntime.layer(), AutoRuntime.layer()]) {
        const error = await Effect.runPromise(Effect.flip(Effect.provide(CudaRuntime.CudaRuntime, layer)))
        console.log(error.reason._tag, error.message)
      }
    `)
  }

  const kinds: ReadonlyArray<readonly [string, string, RegExp]> = [
    ["its native part is missing", `throw new Error("no native part here")`, /no native part here/],
    ["a bundle left it empty", "export default {}", /without its functions/],
    ["a bundle left none of its exports", "export const nothing = 0", /./]
  ]
  for (const [why, source, words] of kinds) {
    it(`because ${why} fails with KoffiNotLoaded, also in AutoRuntime`, async () => {
      const { exit, output } = await reasons(source)
      const lines = output.trim().split("\n")
      assert.deepStrictEqual(
        [exit, lines.map((line) => line.split(" ")[0])],
        [0, ["KoffiNotLoaded", "KoffiNotLoaded"]],
        output
      )
      assert.match(lines[0]!, words)
      assert.match(lines[0]!, /external/)
    })
  }
})

describe("importing", () => {
  it("loads nothing native", async () => {
    const { exit, output } = await runChild(`
      await import("./index.js")
      const libraries = process.report.getReport().sharedObjects
      console.log(JSON.stringify(libraries.filter((path) => /koffi|libcuda/.test(path))))
    `)
    assert.deepStrictEqual([exit, output.trim()], [0, "[]"])
  })

  it("lists in the same report what building the layer loads", async () => {
    const { exit, output } = await runChild(`
      import * as Effect from "effect/Effect"
      import { NativeRuntime } from "./index.js"
      await Effect.runPromise(Effect.scoped(NativeRuntime.make({ libraryPath: ${JSON.stringify(stub.path)} })))
      const libraries = process.report.getReport().sharedObjects
      console.log(JSON.stringify(libraries.filter((path) => /koffi|libcuda/.test(path))))
    `)
    assert.strictEqual(exit, 0, output)
    assert.match(output, /"[^"]*koffi[^"]*"/)
    assert.match(output, /libcuda/)
  })
})

describe("AutoRuntime", () => {
  const source = fileURLToPath(new URL("../../src/layers/SimulatedRuntime.ts", import.meta.url))
  const kindOn = (driver: StubDriver | string) =>
    Effect.gen(function*() {
      const AutoRuntime = yield* Effect.promise(() => import("effect-cuda/AutoRuntime"))
      if (typeof driver !== "string") driver.reset()
      const kind = Effect.provide(Effect.map(CudaRuntime, ({ kind }) => kind), AutoRuntime.layer())
      return yield* logged(withLibrary(typeof driver === "string" ? driver : driver.path)(kind))
    })

  describe.runIf(existsSync(source))("chooses", () => {
    it.live("the GPU if there is one, and logs it", () =>
      Effect.gen(function*() {
        const { lines, result } = yield* kindOn(stub)
        assert.strictEqual(result, "native")
        assert.lengthOf(lines, 1)
        assert.match(lines[0]!, /^Info .*1 × Stub GPU 0/)
        yield* pause()
      }))

    const simulated: ReadonlyArray<readonly [string, () => StubDriver | string, RegExp]> = [
      ["a function is missing", () => copyStub(["cuMemPoolTrimTo=stub_hidden"]), /FunctionMissing/],
      ["the driver is too old", () => copyStub(["STUB_VERSION=11080"]), /DriverTooOld/],
      ["there is no device", () => copyStub(["STUB_DEVICES=0"]), /NoDevice/],
      ["the library is the toolkit's stub", () => copyStub(["STUB_INIT=34"]), /StubLibrary/]
    ]
    for (const [why, make, words] of simulated) {
      it.live(`a simulated device when ${why}, and logs why`, () =>
        Effect.gen(function*() {
          const { lines, result } = yield* kindOn(make())
          assert.strictEqual(result, "simulated")
          assert.lengthOf(lines, 1)
          assert.match(lines[0]!, /^Info CUDA runtime: simulated/)
          assert.match(lines[0]!, words)
        }))
    }

    it.live.skipIf(gpu !== undefined)(
      "a simulated device when there is no driver, and says why",
      () =>
        Effect.gen(function*() {
          const { lines, result } = yield* kindOn("")
          assert.strictEqual(result, "simulated")
          assert.match(lines[0]!, /LibraryNotFound/)
        })
    )

    it.live("what EFFECT_CUDA_RUNTIME says", () =>
      Effect.gen(function*() {
        const AutoRuntime = yield* Effect.promise(() => import("effect-cuda/AutoRuntime"))
        const kindWith = (env: Record<string, string>) =>
          Effect.provide(Effect.map(CudaRuntime, ({ kind }) => kind), AutoRuntime.layer()).pipe(
            Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromEnv({ env }))
          )
        stub.reset()
        const both = { EFFECT_CUDA_LIBRARY: stub.path, EFFECT_CUDA_RUNTIME: "simulated" }
        assert.strictEqual(yield* kindWith(both), "simulated")
        const native = { EFFECT_CUDA_LIBRARY: stub.path, EFFECT_CUDA_RUNTIME: "native" }
        assert.strictEqual(yield* kindWith(native), "native")
        const tooOld = { EFFECT_CUDA_LIBRARY: copyStub(["STUB_VERSION=11080"]).path, EFFECT_CUDA_RUNTIME: "native" }
        assert.strictEqual((yield* Effect.flip(kindWith(tooOld))).reason._tag, "DriverTooOld")
        const wrong = yield* Effect.flip(kindWith({ EFFECT_CUDA_RUNTIME: "gpu" }))
        assert.strictEqual(wrong.reason._tag, "InvalidArgument")
        assert.include(wrong.message, "EFFECT_CUDA_RUNTIME")
      }))

    it.live("nothing, and fails, when the configured library is missing", () =>
      Effect.gen(function*() {
        const AutoRuntime = yield* Effect.promise(() => import("effect-cuda/AutoRuntime"))
        const byOption = AutoRuntime.layer({ native: { libraryPath: nowhere } })
        const error = yield* Effect.flip(Effect.provide(CudaRuntime, byOption))
        assert.strictEqual(error.reason._tag, "LibraryNotFound")
        const byVariable = Effect.provide(CudaRuntime, AutoRuntime.layer()).pipe(withLibrary(nowhere))
        assert.strictEqual((yield* Effect.flip(byVariable)).reason._tag, "LibraryNotFound")
      }))

    it.live("nothing, and fails, for a library that is not a driver", () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(build({ libraryPath: "libc.so.6" }))
        assert.strictEqual(error.reason._tag, "LibraryNotFound")
        assert.include(error.message, "libc.so.6 (not a CUDA driver")
      }))

    for (const status of [999, 803, 700]) {
      it.live(`nothing, and fails, when the GPU is present but broken (${status})`, () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(kindOn(copyStub([`STUB_INIT=${status}`])))
          assert.strictEqual(error.call, "cuInit")
        }))
    }
  })
})
