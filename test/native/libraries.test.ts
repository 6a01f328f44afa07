/**
 * Libraries that a program describes, on the driver: how they are found and loaded, and the calls they get.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaError, CudaGraph, CudaLibrary, CudaMemory, CudaRuntime, CudaStream } from "effect-cuda"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { filesOf, placesOf } from "../../src/cuda/foreignLibrary.ts"
import { statuses } from "../../src/cuda/status.ts"
import { failsWith, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { garbageCollected, untilCollected } from "../support/garbage.ts"
import { logged, onStub, openStub, pause, until } from "../support/stubDriver.ts"
import { demo, StubLibrary } from "../support/stubLibrary.ts"
import { tracing, within } from "../support/tracing.ts"
import type { Opened } from "../support/tracing.ts"
import { OthersYield } from "../support/yielding.ts"

/** How many operations a fiber that calls a library makes, at most. */
const mostOperations = 40

const stub = openStub()
const library = new StubLibrary(stub.path)
const { opened } = tracing(stub)

/** Runs an effect with a variable of the configuration. */
const withVariable = (name: string, value: string) =>
  Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({ [name]: value }))

describe("a described library", () => {
  it.live("is loaded from a path, from its variable, or from where libraries are", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const given = yield* CudaLibrary.load(demo, { path: library.path })
        assert.strictEqual(given.path, library.path)
        assert.strictEqual(String(given), `CudaLibrary(demo, ${library.path})`)
        const variable = yield* CudaLibrary.load(demo).pipe(withVariable("EFFECT_CUDA_DEMO", library.path))
        assert.strictEqual(variable.path, library.path)
        const folder = mkdtempSync(join(tmpdir(), "effect-cuda-library-"))
        const before = process.env["CUDA_HOME"]
        try {
          mkdirSync(join(folder, "lib64"))
          symlinkSync(library.path, join(folder, "lib64", "libeffectcudademo.so.1"))
          process.env["CUDA_HOME"] = folder
          const found = yield* CudaLibrary.load(demo)
          assert.strictEqual(found.path, join(folder, "lib64", "libeffectcudademo.so.1"))
        } finally {
          if (before === undefined) delete process.env["CUDA_HOME"]
          else process.env["CUDA_HOME"] = before
          rmSync(folder, { recursive: true })
        }
      })
    ))

  it.live("that is not found fails with the places, those of what it needs first", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const needed = { ...demo, name: "needed", files: () => ["libneeded.so.9"] }
        const missing = { ...demo, name: "my demo", files: () => ["libmissing.so.7"], needs: [needed] }
        const error = yield* Effect.flip(CudaLibrary.load(missing))
        assert.strictEqual(error.operation, "CudaLibrary.load")
        assert.strictEqual(error.reason._tag, "LibraryUnavailable")
        if (error.reason._tag !== "LibraryUnavailable") return
        const { advice, library, searched } = error.reason
        assert.strictEqual(library, "my demo")
        const paths = searched.map(({ path }) => path)
        assert.strictEqual(paths[0], "libneeded.so.9")
        assert.include(paths, "libmissing.so.7")
        assert.include(paths, "/usr/lib64")
        assert.include(advice, "EFFECT_CUDA_MY_DEMO")
        const named = yield* failsWith(CudaLibrary.load(demo, { path: "/nowhere/libdemo.so" }), "LibraryUnavailable")
        assert.deepStrictEqual(named.searched.map(({ path }) => path), ["/nowhere/libdemo.so"])
      })
    ))

  it.live("is loaded if only what it needs is not found, because the loader may know it", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const needed = { ...demo, name: "needed", files: () => ["libneeded.so.9"] }
        yield* CudaLibrary.load({ ...demo, needs: [needed] }, { path: library.path })
      })
    ))

  it.live("may have a description that is an instance of a class", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        class Demo {
          readonly name = "demo"
          readonly wheels = []
          readonly functions = demo.functions
          readonly file = "libeffectcudademo.so.1"
          files() {
            return [this.file]
          }
          statuses(code: number) {
            return `${this.name} ${code}`
          }
        }
        const loaded = yield* CudaLibrary.load(new Demo(), { path: library.path })
        library.fail("demoNew", 2)
        const error = yield* failsWith(CudaLibrary.call(loaded, "demoNew", []), "LibraryFailed")
        assert.strictEqual(error.name, "demo 2")
        library.reset()
      })
    ))

  it.live("cannot have a description that is wrong", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const load = (fields: object) => CudaLibrary.load({ ...demo, ...fields }, { path: library.path })
        yield* refuses(CudaLibrary.load(null as never), "definition")
        yield* refuses(load({ name: "" }), "definition.name")
        yield* refuses(load({ wheels: "demo" }), "definition.wheels")
        yield* refuses(load({ statuses: 1 }), "definition.statuses")
        yield* refuses(load({ statuses: { 1: null } }), "definition.statuses.1")
        yield* refuses(load({ statuses: { 1: ["BAD"] } }), "definition.statuses.1")
        yield* refuses(load({ faults: ["13"] }), "definition.faults")
        yield* refuses(load({ needs: [{}] }), "definition.needs[0].name")
        yield* refuses(load({ files: () => ["../libdemo.so"] }), "files of demo")
        yield* refuses(load({ functions: { f: {} } }), "definition.functions.f")
        const func = (parameters: ReadonlyArray<unknown>, options: object = {}) =>
          load({ functions: { f: CudaLibrary.func(parameters as never, options) } })
        yield* refuses(func(["int"]), "definition.functions.f.parameters[0]")
        yield* refuses(func([CudaLibrary.bytes(0)]), "definition.functions.f.parameters[0]")
        yield* refuses(func([CudaLibrary.bytes(2 ** 30)]), "definition.functions.f.parameters[0]")
        yield* refuses(func(Array.from({ length: 65 }, () => CudaLibrary.hostInput)), "definition.functions.f")
        yield* refuses(func([], { returns: "int" }), "definition.functions.f.returns")
        yield* refuses(func([CudaLibrary.stream, CudaLibrary.stream]), "definition.functions.f")
        yield* refuses(func([CudaLibrary.stream], { thread: "own" }), "definition.functions.f")
        yield* refuses(func([CudaLibrary.stream], { enqueues: false }), "definition.functions.f")
        yield* refuses(CudaLibrary.load(demo, { path: "libdemo\0.so" }), "path")
        yield* refuses(CudaLibrary.load(demo, null as never), "options")
      })
    ))

  it("is sought by its names, then in the folders of toolkits and of its packages", () => {
    const { folders, names } = placesOf(["libdemo.so.13", "libdemo.so.12"], ["demo"], "linux", { VIRTUAL_ENV: "/env" })
    assert.deepStrictEqual(names, ["libdemo.so.13", "libdemo.so.12"])
    assert.include(folders, "/env/lib/python3*/site-packages/nvidia/demo/lib")
    assert.include(folders, "/env/lib/python3*/site-packages/nvidia/cu1*/lib")
    const { matches, order } = filesOf("demo", names)
    assert.isTrue(matches.test("libdemo.so.13"))
    assert.isFalse(matches.test("libdemoXso.13"))
    assert.isFalse(matches.test("libdemo.so.13.1"))
    assert.deepStrictEqual(["libdemo.so.12", "libdemo.so.13"].sort(order), names)
  })
})

const size = 64
const make = { create: "demoCreate", destroy: "demoDestroy", setStream: "demoSetStream" } as const

/** Runs a program with the library, and asserts that it was used correctly and no handle is left. */
const withDemo = <A, E>(
  program: (
    demo: Effect.Success<typeof load>,
    opened: Opened
  ) => Effect.Effect<A, E, CudaRuntime.CudaRuntime | Scope.Scope>
) =>
  Effect.gen(function*() {
    library.reset()
    const result = yield* opened((device) => Effect.flatMap(load, (demo) => program(demo, device)))
    assert.strictEqual(library.misuse, "")
    assert.strictEqual(library.live, 0)
    return result
  })

const load = CudaLibrary.load(demo, { path: library.path })

/** A function of the program that is wrong. */
const noStatus = (): string => {
  throw new Error("no such code")
}

describe("a call of a library", () => {
  it.live("gets its arguments and the stream, with the context of the device current, and nothing else", () =>
    withDemo((demo, { context }) =>
      Effect.gen(function*() {
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        stub.clear()
        library.clear()
        yield* CudaLibrary.call(demo, "demoFill", [CudaMemory.slice(buffer, 8, 16), Uint8Array.of(3), 16], stream)
        assert.deepStrictEqual(
          stub.lines(),
          within(context, ["cuMemsetD8Async", buffer.address + 8, 3, 16, stream.handle])
        )
        assert.deepStrictEqual(library.calls, ["demoFill context"])
        stub.clear()
        yield* CudaLibrary.call(demo, "demoNew", [])
        assert.deepStrictEqual(stub.lines(), within(context))
        stub.clear()
        library.clear()
        assert.strictEqual(yield* CudaLibrary.call(demo, "demoVersion", []), 9007199254740993n)
        assert.strictEqual(yield* CudaLibrary.call(demo, "demoText", [0]), undefined)
        assert.isUndefined(yield* CudaLibrary.call(demo, "demoNothing", []))
        assert.deepStrictEqual(library.calls, ["demoVersion", "demoText context", "demoNothing context"])
      })
    ))

  it.live("passes and returns every bit of numbers, and parts of arrays", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        assert.strictEqual(yield* CudaLibrary.call(demo, "demoHalf", []), 1.5)
        assert.strictEqual(yield* CudaLibrary.call(demo, "demoLeast", []), -(2n ** 63n))
        const part = new Uint8Array(200).subarray(50, 178).fill(3, 0, 1)
        const outs = new Float64Array(3)
        const most = [0, 0, -(2n ** 63n), 2n ** 64n - 1n, 0, 0, false, "", part, null, outs.subarray(1, 2)] as const
        yield* CudaLibrary.call(demo, "demoSum", most)
        assert.deepStrictEqual([...outs], [0, 2 ** 63 + 3, 0])
      })
    ))

  it.live("fails with the library's name for the code, and the function", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        const fill = CudaLibrary.call(demo, "demoFill", [buffer, Uint8Array.of(3), size], stream)
        library.fail("demoFill", 1)
        const error = yield* Effect.flip(fill)
        assert.deepStrictEqual([error.operation, error.call], ["CudaLibrary.call", "demoFill"])
        assert.deepStrictEqual({ ...error.reason }, {
          _tag: "LibraryFailed",
          library: "demo",
          code: 1,
          name: "DEMO_BAD_VALUE",
          description: "a value is bad",
          advice: "",
          isRetryable: false
        })
        assert.strictEqual(
          error.message,
          `CudaLibrary.call (${stream.ref}): demoFill returned DEMO_BAD_VALUE (1): a value is bad.`
        )
        library.fail("demoFill", 99)
        assert.isUndefined((yield* failsWith(fill, "LibraryFailed")).name)
        library.fail("demoNew", 1)
        const { message } = yield* Effect.flip(CudaLibrary.call(demo, "demoNew", []))
        assert.strictEqual(message, "CudaLibrary.call (device 0): demoNew returned DEMO_BAD_VALUE (1): a value is bad.")
        library.fail("demoWait", 1)
        const off = CudaLibrary.call(demo, "demoWait", [1, new Int32Array(1)])
        assert.strictEqual((yield* Effect.flip(off)).call, "demoWait")
      })
    ))

  it.live("asks the driver about a fault behind the codes that may mean one", () =>
    logged(withDemo((demo) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const fill = CudaLibrary.call(demo, "demoFill", [null, Uint8Array.of(3), size], stream)
        library.fail("demoFill", 13)
        const harmless = yield* Effect.flip(fill)
        assert.deepStrictEqual([harmless.reason._tag, harmless.origin], ["LibraryFailed", undefined])
        stub.fail("cuStreamQuery", statuses.IllegalAddress.code)
        const error = yield* Effect.flip(fill)
        assert.strictEqual(error.reason._tag, "LibraryFailed")
        assert.strictEqual(error.origin?.status.code, statuses.IllegalAddress.code)
        assert.strictEqual(error.origin?.operation, "CudaLibrary.call")
      })
    )))

  it.live("that enqueues nothing asks the driver as well, also if nothing has used the device", () =>
    logged(withDemo((demo) =>
      Effect.gen(function*() {
        library.fail("demoNew", 13)
        stub.fail("cuStreamQuery", statuses.IllegalAddress.code)
        const error = yield* Effect.flip(CudaLibrary.call(demo, "demoNew", []))
        assert.strictEqual(error.origin?.status.code, statuses.IllegalAddress.code)
        assert.strictEqual(error.origin?.operation, "CudaLibrary.call")
      })
    )))

  it.live("may have statuses that throw: the call has ended all the same", () =>
    withDemo(() =>
      Effect.gen(function*() {
        const throwing = yield* CudaLibrary.load({ ...demo, statuses: noStatus }, { path: library.path })
        library.fail("demoWait", 1)
        const exit = yield* Effect.exit(CudaLibrary.call(throwing, "demoWait", [1, new Int32Array(1)]))
        assert.isTrue(Exit.hasDies(exit))
      })
    ))

  it.live("may have statuses that are reasons", () =>
    withDemo(() =>
      Effect.gen(function*() {
        const driver = yield* CudaLibrary.load({ ...demo, statuses: CudaError.reasonFromStatus }, {
          path: library.path
        })
        library.fail("demoNew", statuses.InvalidValue.code)
        yield* failsWith(CudaLibrary.call(driver, "demoNew", []), "InvalidValue")
      })
    ))

  it.live("of a function that this version lacks fails when it is made", () =>
    Effect.gen(function*() {
      const old = new StubLibrary(stub.path, ["STUB_OLD"])
      yield* onStub(
        stub,
        Effect.gen(function*() {
          const demoOld = yield* CudaLibrary.load(demo, { path: old.path })
          yield* CudaLibrary.call(demoOld, "demoText", [1])
          const error = yield* Effect.flip(CudaLibrary.call(demoOld, "demoNew", []))
          assert.strictEqual(
            error.message,
            "CudaLibrary.call: the demo that was loaded has no function demoNew. Install demo 2.0 or later."
          )
        })
      )
    }))

  it.live("with ordered memory is waited for, and marked, whatever it returns", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(size, { ordered: true })
        library.fail("demoFill", 1)
        stub.clear()
        yield* Effect.flip(CudaLibrary.call(demo, "demoFill", [buffer, Uint8Array.of(3), size], one))
        const mark = stub.calls("cuEventRecord")[0]!.args[0]!
        stub.clear()
        yield* CudaMemory.fill(buffer, 1, other)
        assert.deepStrictEqual(stub.lines()[0], ["cuStreamWaitEvent", other.handle, mark, 0])
      })
    ))

  it.live("off the JS thread leaves the event loop free, and goes on when its fiber is interrupted", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 30
        const out = new Int32Array(1)
        let turns = 0
        const ticking = setInterval(() => turns++, 1)
        yield* CudaLibrary.call(demo, "demoWait", [5, out])
        clearInterval(ticking)
        assert.strictEqual(out[0], 6)
        assert.isAbove(turns, 3)
        assert.deepStrictEqual(library.calls, ["demoWait off"])
        const fiber = yield* started(CudaLibrary.call(demo, "demoWait", [7, out]))
        yield* Fiber.interrupt(fiber)
        assert.strictEqual(out[0], 6)
        yield* until("the call has ended", () => out[0] === 8)
      })
    ))

  it.live("off the JS thread does not begin with memory that was transferred before its turn", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 5
        const outs = Array.from({ length: 80 }, () => new Int32Array(1))
        const calls = yield* Effect.forEach(outs, (out) =>
          Effect.forkChild(CudaLibrary.call(demo, "demoWait", [1, out]), { startImmediately: true }))
        const last = outs.at(-1)!
        structuredClone(last, { transfer: [last.buffer] })
        yield* refuses(Fiber.join(calls.at(-1)!), "arguments")
        yield* Effect.forEach(calls, Fiber.await)
      })
    ))

  it.live("off the JS thread is not made if its fiber is interrupted before its turn", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 5
        yield* Effect.scoped(Effect.gen(function*() {
          const handle = yield* CudaLibrary.handle(demo, make)
          const use = CudaLibrary.call(demo, "demoUse", [handle, new Int32Array(1)])
          const fibers = yield* Effect.forEach(
            Array.from({ length: 80 }),
            () => Effect.forkChild(use, { startImmediately: true })
          )
          yield* Effect.forEach([...fibers.slice(0, 10), ...fibers.slice(70)], Fiber.interrupt)
        }))
        assert.lengthOf(library.calls.filter((call) => call.startsWith("demoUse")), 70)
      })
    ))

  it.live("off the JS thread keeps memory of the host until it ends, also without its fiber", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 500
        const begin = () => {
          const out = new Int32Array(1)
          const call = CudaLibrary.call(demo, "demoWait", [5, out])
          return Effect.as(Effect.flatMap(started(call), Fiber.interrupt), new WeakRef(out.buffer))
        }
        const memory = yield* Effect.suspend(begin)
        yield* garbageCollected
        assert.deepStrictEqual(library.calls, [])
        assert.isDefined(memory.deref())
        yield* until("the call has ended", () => library.calls.length > 0)
        yield* untilCollected("the memory is collected", () => memory.deref() === undefined)
      })
    ))

  it.live("off the JS thread ends before its runtime does", () =>
    Effect.gen(function*() {
      const out = new Int32Array(1)
      yield* withDemo((demo) =>
        Effect.gen(function*() {
          library.delay = 30
          yield* Fiber.interrupt(yield* started(CudaLibrary.call(demo, "demoWait", [7, out])))
          assert.strictEqual(out[0], 0)
        })
      )
      assert.strictEqual(out[0], 8)
    }))

  it.live("is refused after the release of its runtime, and on another one", () =>
    Effect.gen(function*() {
      const kept = yield* onStub(stub, load)
      yield* failsWith(CudaLibrary.call(kept, "demoNew", []), "ResourceReleased")
      yield* onStub(
        stub,
        Effect.gen(function*() {
          const { libraryRun } = yield* CudaRuntime.CudaRuntime
          yield* failsWith(libraryRun(kept.ref, "demoNew", [], 0), "ForeignResource")
        })
      )
    }))
})

describe("a handle of a library", () => {
  it.live("is made and destroyed with the context of its device current", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        yield* Effect.scoped(Effect.gen(function*() {
          const handle = yield* CudaLibrary.handle(demo, make)
          assert.include(String(handle), "LibraryHandle(demo, 0x")
          assert.strictEqual((yield* (yield* CudaRuntime.CudaRuntime).liveResources).handles, 1)
        }))
        assert.deepStrictEqual(library.calls, ["demoCreate context", "demoDestroy context"])
        assert.strictEqual((yield* (yield* CudaRuntime.CudaRuntime).liveResources).handles, 0)
      })
    ))

  it.live("is told its stream once per stream", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handle = yield* CudaLibrary.handle(demo, make)
        const buffer = yield* CudaMemory.allocate(size)
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        library.clear()
        stub.clear()
        const streams = [one, one, other, one]
        for (const stream of streams) yield* CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], stream)
        const set = "demoSetStream context"
        const fill = "demoFillOf context"
        assert.deepStrictEqual(library.calls, [set, fill, fill, set, fill, set, fill])
        assert.deepStrictEqual(stub.calls("cuMemsetD8Async").map(({ args }) => args[3]), streams.map((s) => s.handle))
        library.fail("demoSetStream", 1)
        const failing = CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], other)
        assert.strictEqual((yield* Effect.flip(failing)).call, "demoSetStream")
      })
    ))

  it.live("that is ordered costs nothing on one stream, and what an ordered buffer costs on several", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handle = yield* CudaLibrary.handle(demo, { ...make, ordered: true })
        const buffer = yield* CudaMemory.allocate(size)
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const fill = (stream: CudaStream.CudaStream) =>
          CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], stream)
        const order = () =>
          stub.lines().filter(([name]) => name === "cuEventRecord" || name === "cuStreamWaitEvent").map(
            ([name, ...args]) => [name, name === "cuEventRecord" ? args[1] : args[0]]
          )
        stub.clear()
        for (let call = 0; call < 3; call++) yield* fill(one)
        assert.deepStrictEqual(order(), [])
        const record = (stream: CudaStream.CudaStream) => ["cuEventRecord", stream.handle]
        const wait = (stream: CudaStream.CudaStream) => ["cuStreamWaitEvent", stream.handle]
        yield* fill(other)
        assert.deepStrictEqual(order(), [record(one), wait(other), record(other)])
        stub.clear()
        yield* fill(other)
        assert.deepStrictEqual(order(), [record(other)])
        stub.clear()
        yield* fill(one)
        yield* fill(one)
        assert.deepStrictEqual(order(), [wait(one), record(one), record(one)])
        const exec = yield* CudaGraph.instantiate(
          yield* CudaGraph.record(CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size]))
        )
        stub.clear()
        yield* CudaGraph.launch(exec, other)
        assert.deepStrictEqual(order(), [wait(other), record(other)])
      })
    ))

  it.live("that is ordered does not wait for streams that are gone", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handle = yield* CudaLibrary.handle(demo, { ...make, ordered: true })
        const buffer = yield* CudaMemory.allocate(size)
        for (let stream = 0; stream < 3; stream++) {
          stub.clear()
          yield* Effect.scoped(Effect.gen(function*() {
            yield* CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], yield* CudaStream.make())
            assert.deepStrictEqual(stub.calls("cuStreamWaitEvent"), [])
            assert.deepStrictEqual(stub.calls("cuEventRecord"), [])
          }))
        }
      })
    ))

  it.live("that is ordered is waited for on streams of other code with a mark after each call", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handle = yield* CudaLibrary.handle(demo, { ...make, ordered: true })
        const [buffer, own] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
        const foreign = yield* CudaStream.fromHandle(stub.foreignStream(0))
        const fill = (stream: CudaStream.CudaStream) =>
          CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], stream)
        stub.clear()
        yield* fill(foreign)
        assert.strictEqual(stub.calls("cuEventRecord")[0]?.args[1], foreign.handle)
        stub.clear()
        yield* fill(own)
        assert.strictEqual(stub.calls("cuStreamWaitEvent")[0]?.args[0], own.handle)
        assert.notInclude(stub.calls("cuEventRecord").map(({ args }) => args[1]), foreign.handle)
      })
    ))

  it.live("that is ordered is used again after a wait for it has failed", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handle = yield* CudaLibrary.handle(demo, { ...make, ordered: true })
        const buffer = yield* CudaMemory.allocate(size)
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const fill = (stream: CudaStream.CudaStream) =>
          CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], stream)
        yield* fill(one)
        for (const name of ["cuEventRecord", "cuStreamWaitEvent"] as const) {
          stub.fail(name, statuses.InvalidValue.code)
          library.clear()
          yield* failsWith(fill(other), "InvalidValue")
          assert.deepStrictEqual(library.calls, [])
        }
        stub.clear()
        yield* fill(other)
        assert.strictEqual(stub.calls("cuStreamWaitEvent")[0]!.args[0], other.handle)
      })
    ))

  it.live("is set to the captured stream in a recording, and to none after it", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handle = yield* CudaLibrary.handle(demo, make)
        const [buffer, stream] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
        const fill = (on?: CudaStream.CudaStream) => CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], on)
        yield* fill(stream)
        library.clear()
        yield* CudaGraph.record(fill())
        assert.deepStrictEqual(library.calls, [
          "demoSetStream context",
          "demoFillOf context",
          "demoSetStream context"
        ])
        stub.clear()
        yield* fill(stream)
        assert.strictEqual(stub.calls("cuMemsetD8Async")[0]!.args[3], stream.handle)
      })
    ))

  it.live("is not left with the captured stream if the call or the setting fails", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handle = yield* CudaLibrary.handle(demo, make)
        const [buffer, stream] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
        const fill = (on?: CudaStream.CudaStream) => CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], on)
        const failing = ["demoFillOf", "demoSetStream"] as const
        for (const name of failing) {
          library.fail(name, 1)
          yield* failsWith(CudaGraph.record(fill()), "LibraryFailed")
          library.fail(name, 0)
          stub.clear()
          yield* fill(stream)
          assert.strictEqual(stub.calls("cuMemsetD8Async")[0]!.args[3], stream.handle)
        }
      })
    ))

  it.live("is destroyed once the streams that used it have passed their work", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const [buffer, stream] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
        const scope = yield* Scope.make()
        const handle = yield* CudaLibrary.handle(demo, make).pipe(Scope.provide(scope))
        const call = CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], stream)
        yield* call
        stub.work(stream)
        const closing = yield* started(Scope.close(scope, Exit.void))
        yield* pause(5)
        assert.strictEqual(library.live, 1)
        yield* failsWith(call, "ResourceReleased")
        stub.finish(stream)
        yield* Fiber.join(closing)
        assert.strictEqual(library.live, 0)
      })
    ))

  it.live("in a graph is destroyed after the launches in progress, and the driver sees no later one", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const [buffer, stream] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
        const scope = yield* Scope.make()
        const handle = yield* CudaLibrary.handle(demo, make).pipe(Scope.provide(scope))
        const recorded = CudaGraph.record(CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size]))
        const exec = yield* CudaGraph.instantiate(yield* recorded, { instances: 2 })
        const launch = CudaGraph.launch(exec, stream)
        yield* launch
        stub.work(stream)
        const closing = yield* started(Scope.close(scope, Exit.void))
        yield* pause(5)
        assert.strictEqual(library.live, 1)
        stub.clear()
        const { resource } = yield* failsWith(launch, "ResourceReleased")
        assert.strictEqual(resource, String(handle.ref))
        assert.deepStrictEqual(stub.calls("cuGraphLaunch"), [])
        stub.finish(stream)
        yield* Fiber.join(closing)
        assert.strictEqual(library.live, 0)
        yield* failsWith(launch, "ResourceReleased")
        assert.deepStrictEqual(stub.calls("cuGraphLaunch"), [])
      })
    ))

  it.live("is destroyed after the calls off the JS thread that use it", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 30
        const out = new Int32Array(1)
        yield* Effect.scoped(Effect.gen(function*() {
          const handle = yield* CudaLibrary.handle(demo, make)
          yield* Fiber.interrupt(yield* started(CudaLibrary.call(demo, "demoUse", [handle, out])))
          assert.strictEqual(out[0], 0)
        }))
        assert.strictEqual(out[0], 1)
      })
    ))

  it.live("is destroyed after those calls also if its streams cannot be waited for", () =>
    logged(withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 40
        const out = new Int32Array(1)
        const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
        const scope = yield* Scope.make()
        const handle = yield* CudaLibrary.handle(demo, make).pipe(Scope.provide(scope))
        yield* CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], stream)
        const fiber = yield* Effect.forkChild(CudaLibrary.call(demo, "demoUse", [handle, out]), {
          startImmediately: true
        })
        stub.fail("cuEventRecord", statuses.InvalidValue.code)
        stub.fail("cuStreamQuery", statuses.InvalidValue.code, { times: -1 })
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual(out[0], 1)
        yield* Fiber.join(fiber)
      })
    )))

  it.live("that is released before a call begins, in a fiber that yields, is not used by it", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const self = yield* Effect.withFiber((fiber) => Effect.succeed(fiber.id))
        library.delay = 1
        let refused = 0
        for (let period = 3; period < mostOperations; period++) {
          const scope = yield* Scope.make()
          const handle = yield* CudaLibrary.handle(demo, make).pipe(Scope.provide(scope))
          const fiber = yield* CudaLibrary.call(demo, "demoUse", [handle, new Int32Array(1)]).pipe(
            Effect.provideService(Scheduler.Scheduler, new OthersYield(self, period)),
            Effect.forkChild({ startImmediately: true })
          )
          yield* Scope.close(scope, Exit.void)
          const exit = yield* Fiber.await(fiber)
          if (Exit.isFailure(exit)) refused++
          assert.strictEqual(library.misuse, "", `at operation ${period}`)
        }
        assert.isAbove(refused, 0)
      })
    ))

  it.live("does not outlive its runtime, if a fiber that yields is releasing it", () =>
    Effect.gen(function*() {
      const self = yield* Effect.withFiber((fiber) => Effect.succeed(fiber.id))
      const destroys = ["demoDestroy", "demoDestroySlowly"] as const
      const cases = destroys.flatMap((destroy) => [false, true].map((isBusy) => ({ destroy, isBusy })))
      for (const { destroy, isBusy } of cases) {
        for (let period = 3; period < mostOperations; period++) {
          const scope = yield* Scope.make()
          yield* withDemo((demo) =>
            Effect.gen(function*() {
              const handle = yield* CudaLibrary.handle(demo, { ...make, destroy }).pipe(Scope.provide(scope))
              const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(size)]
              yield* CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], stream)
              if (isBusy) stub.work(stream)
              yield* Scope.close(scope, Exit.void).pipe(
                Effect.provideService(Scheduler.Scheduler, new OthersYield(self, period)),
                Effect.forkDetach({ startImmediately: true })
              )
              setTimeout(() => stub.finish(stream), 1)
            })
          )
        }
      }
    }))

  it.live("may be made and destroyed off the JS thread, also if the fiber is interrupted meanwhile", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 20
        const slow = { create: "demoCreateSlowly", destroy: "demoDestroySlowly", values: [7] } as const
        yield* Effect.scoped(CudaLibrary.handle(demo, slow))
        assert.deepStrictEqual(library.calls, ["demoCreateSlowly off", "demoDestroySlowly off"])
        const fiber = yield* started(Effect.scoped(CudaLibrary.handle(demo, slow)))
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(library.calls.slice(2), ["demoCreateSlowly off", "demoDestroySlowly off"])
        assert.strictEqual(library.live, 0)
      })
    ))

  it.live("that cannot be made leaves nothing, and one that cannot be destroyed is logged", () =>
    Effect.gen(function*() {
      const { lines } = yield* logged(withDemo((demo) =>
        Effect.gen(function*() {
          library.fail("demoCreate", 1)
          const error = yield* Effect.flip(CudaLibrary.handle(demo, make))
          assert.deepStrictEqual([error.operation, error.call], ["CudaLibrary.handle", "demoCreate"])
          library.fail("demoDestroy", 1)
          yield* Effect.scoped(CudaLibrary.handle(demo, make))
        })
      ))
      assert.lengthOf(lines, 1)
      assert.include(lines[0], "CudaLibrary.release")
      assert.include(lines[0], "DEMO_BAD_VALUE")
    }))

  it.live("counts as released, and is logged, if the statuses of its library throw", () =>
    Effect.gen(function*() {
      const { lines } = yield* logged(withDemo(() =>
        Effect.gen(function*() {
          const throwing = yield* CudaLibrary.load({ ...demo, statuses: noStatus }, { path: library.path })
          library.fail("demoDestroy", 1)
          yield* Effect.scoped(CudaLibrary.handle(throwing, make))
          assert.strictEqual((yield* (yield* CudaRuntime.CudaRuntime).liveResources).handles, 0)
        })
      ))
      assert.lengthOf(lines, 1)
      assert.include(lines[0], "demoDestroy threw")
    }))

  it.live("that cannot be made because of a fault is the origin of later failures", () =>
    logged(withDemo((demo) =>
      Effect.gen(function*() {
        library.fail("demoCreate", 13)
        stub.fail("cuStreamQuery", statuses.IllegalAddress.code)
        const error = yield* Effect.flip(CudaLibrary.handle(demo, make))
        assert.strictEqual(error.origin?.operation, "CudaLibrary.handle")
      })
    )))

  it.live("is destroyed with its runtime, if its scope is still open", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const slow = { ...make, destroy: "demoDestroySlowly" } as const
        yield* CudaLibrary.handle(demo, make).pipe(Scope.provide(scope))
        yield* CudaLibrary.handle(demo, slow).pipe(Scope.provide(scope))
        assert.strictEqual(library.live, 2)
      })
    ))

  it.live("does not keep a stream that is gone", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(size)
        yield* Effect.scoped(Effect.gen(function*() {
          const handle = yield* CudaLibrary.handle(demo, make)
          yield* Effect.scoped(
            Effect.flatMap(
              CudaStream.make(),
              (stream) => CudaLibrary.call(demo, "demoFillOf", [handle, buffer, 1, size], stream)
            )
          )
        }))
        assert.deepStrictEqual(library.calls.slice(-2), ["demoSetStream context", "demoDestroy context"])
      })
    ))
})

describe("handles of streams", () => {
  const perStream = { ...make, perStream: true } as const
  const slow = {
    ...make,
    create: "demoCreateSlowly",
    values: [7],
    destroy: "demoDestroySlowly",
    perStream: true
  } as const
  type Demo = Effect.Success<typeof load>
  type Handles = CudaLibrary.StreamHandles<"demo">

  const fill = (demo: Demo, handles: Handles, buffer: CudaMemory.DeviceBuffer, stream?: CudaStream.CudaStream) =>
    CudaLibrary.call(demo, "demoFillOf", [handles, buffer, 1, size], stream)

  const passed = (name: string) => library.handles.filter(([called]) => called === name).map(([, handle]) => handle)

  const count = Effect.flatMap(
    CudaRuntime.CudaRuntime,
    ({ liveResources }) => Effect.map(liveResources, ({ handles }) => handles)
  )

  it.live("are made, and told their stream, by the first call on each, and used by the others", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handles = yield* CudaLibrary.handle(demo, perStream)
        const buffer = yield* CudaMemory.allocate(size)
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        assert.deepStrictEqual([library.calls, yield* count], [[], 0])
        stub.clear()
        const streams = [one, other, one, other, other]
        for (const stream of streams) yield* fill(demo, handles, buffer, stream)
        const [create, set, used] = ["demoCreate context", "demoSetStream context", "demoFillOf context"]
        assert.deepStrictEqual(library.calls, [create, set, used, create, set, used, used, used, used])
        const [first, second] = passed("demoCreate")
        assert.deepStrictEqual(passed("demoSetStream"), [first, second])
        assert.deepStrictEqual(passed("demoFillOf"), [first, second, first, second, second])
        assert.deepStrictEqual(stub.calls("cuMemsetD8Async").map(({ args }) => args[3]), streams.map((s) => s.handle))
        assert.deepStrictEqual(stub.calls("cuStreamWaitEvent"), [])
        assert.deepStrictEqual(stub.calls("cuEventRecord"), [])
        assert.strictEqual(yield* count, 2)
        yield* CudaLibrary.call(demo, "demoUse", [handles, new Int32Array(1)], other)
        assert.deepStrictEqual(passed("demoUse"), [second])
      })
    ))

  it.live("are destroyed with the next one if their stream is gone, all at the end, each after its work", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const handles = yield* CudaLibrary.handle(demo, perStream).pipe(Scope.provide(scope))
        const [buffer, stream] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
        yield* fill(demo, handles, buffer, stream)
        const [kept] = passed("demoCreate")
        for (let round = 0; round < 3; round++) {
          library.clear()
          yield* Effect.scoped(Effect.flatMap(CudaStream.make(), (own) => fill(demo, handles, buffer, own)))
          assert.deepStrictEqual(library.calls.includes("demoDestroy context"), round > 0)
          assert.strictEqual(yield* count, 2)
          assert.notInclude(passed("demoDestroy"), kept)
        }
        stub.work(stream)
        const closing = yield* started(Scope.close(scope, Exit.void))
        yield* pause(5)
        assert.include([1, 2], library.live)
        yield* failsWith(fill(demo, handles, buffer, stream), "ResourceReleased")
        stub.finish(stream)
        yield* Fiber.join(closing)
        assert.deepStrictEqual([library.live, yield* count], [0, 0])
      })
    ))

  it.live("that cannot be made fail the call, and are made by a later one", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(size)
        const makings = [
          ["demoCreate", CudaLibrary.handle(demo, perStream)],
          ["demoCreateSlowly", CudaLibrary.handle(demo, slow)]
        ] as const
        for (const [name, making] of makings) {
          yield* Effect.scoped(Effect.gen(function*() {
            const handles = yield* making
            library.fail(name, 1)
            const error = yield* Effect.flip(fill(demo, handles, buffer))
            assert.deepStrictEqual([error.operation, error.call, error.reason._tag], [
              "CudaLibrary.call",
              name,
              "LibraryFailed"
            ])
            assert.strictEqual(yield* count, 0)
            library.fail(name, 0)
            yield* fill(demo, handles, buffer)
            assert.strictEqual(yield* count, 1)
          }))
        }
      })
    ))

  it.live("are told their stream by the call if that failed at first", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handles = yield* CudaLibrary.handle(demo, perStream)
        const [buffer, stream] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
        library.fail("demoSetStream", 1)
        assert.strictEqual((yield* Effect.flip(fill(demo, handles, buffer, stream))).call, "demoSetStream")
        library.fail("demoSetStream", 0)
        stub.clear()
        yield* fill(demo, handles, buffer, stream)
        assert.strictEqual(stub.calls("cuMemsetD8Async")[0]!.args[3], stream.handle)
        assert.lengthOf(passed("demoCreate"), 1)
      })
    ))

  it.live("are made once for concurrent calls, off the JS thread, also if the first is interrupted", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 20
        yield* Effect.scoped(Effect.gen(function*() {
          const handles = yield* CudaLibrary.handle(demo, slow)
          const buffer = yield* CudaMemory.allocate(size)
          const first = yield* started(fill(demo, handles, buffer))
          const others = yield* Effect.forEach([1, 2, 3], () => started(fill(demo, handles, buffer)))
          yield* Fiber.interrupt(first)
          yield* Effect.forEach(others, Fiber.join)
          assert.lengthOf(passed("demoCreateSlowly"), 1)
          assert.lengthOf(passed("demoFillOf"), 3)
          assert.strictEqual(yield* count, 1)
        }))
        assert.strictEqual(library.live, 0)
      })
    ))

  it.live("that are being made when their scope closes are destroyed", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        library.delay = 20
        const scope = yield* Scope.make()
        const handles = yield* CudaLibrary.handle(demo, slow).pipe(Scope.provide(scope))
        const buffer = yield* CudaMemory.allocate(size)
        const calling = yield* started(Effect.exit(fill(demo, handles, buffer)))
        const later = yield* started(Effect.exit(fill(demo, handles, buffer, yield* CudaStream.make())))
        yield* Scope.close(scope, Exit.void)
        assert.deepStrictEqual([library.live, yield* count], [0, 0])
        for (const fiber of [calling, later]) assert.isTrue(Exit.isFailure(yield* Fiber.join(fiber)))
      })
    ))

  it.live(
    "leave nothing, at whatever step the fiber that makes or releases one yields or is interrupted",
    () =>
      Effect.gen(function*() {
        const self = yield* Effect.withFiber((fiber) => Effect.succeed(fiber.id))
        const cases = ["scope", "interrupt", "runtime", "closing"] as const
        for (const isSlow of [false, true]) {
          for (const what of cases) {
            for (let period = 3; period < mostOperations; period += 1) {
              const scope = yield* Scope.make()
              yield* withDemo((demo) =>
                Effect.gen(function*() {
                  const making = isSlow
                    ? CudaLibrary.handle(demo, slow)
                    : CudaLibrary.handle(demo, { ...make, perStream: true })
                  const handles = yield* making.pipe(Scope.provide(scope))
                  const buffer = yield* CudaMemory.allocate(size)
                  yield* Effect.scoped(Effect.flatMap(CudaStream.make(), (own) => fill(demo, handles, buffer, own)))
                  const yields = Effect.provideService(Scheduler.Scheduler, new OthersYield(self, period))
                  if (what === "closing") {
                    yield* fill(demo, handles, buffer)
                    yield* Effect.forkDetach(yields(Scope.close(scope, Exit.void)), { startImmediately: true })
                    return
                  }
                  const fiber = yield* Effect.forkDetach(yields(Effect.exit(fill(demo, handles, buffer))), {
                    startImmediately: true
                  })
                  if (what === "scope") {
                    yield* Scope.close(scope, Exit.void)
                    assert.deepStrictEqual([library.live, yield* count], [0, 0])
                  }
                  if (what === "interrupt") yield* Fiber.interrupt(fiber)
                })
              )
              assert.strictEqual(library.misuse, "", `${what} at operation ${period}`)
              yield* Scope.close(scope, Exit.void)
              assert.deepStrictEqual([library.misuse, library.live], ["", 0], `${what} at operation ${period}`)
            }
          }
        }
      }),
    60_000
  )

  it.live("in a recording are one of the recording, which its launches and those of graphs with it share in order", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handles = yield* CudaLibrary.handle(demo, slow)
        const buffer = yield* CudaMemory.allocate(size)
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        yield* fill(demo, handles, buffer, one)
        const record = CudaGraph.record(Effect.gen(function*() {
          const side = yield* CudaStream.make()
          yield* fill(demo, handles, buffer, side)
          yield* CudaStream.waitStream(yield* CudaStream.current(), side)
          yield* fill(demo, handles, buffer)
        }))
        library.clear()
        const graph = yield* record
        const [own] = passed("demoCreateSlowly")
        assert.deepStrictEqual(passed("demoFillOf"), [own, own])
        assert.strictEqual(yield* count, 2)
        yield* record
        assert.strictEqual(new Set(passed("demoFillOf")).size, 2)
        const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
        const embedding = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaGraph.embed(graph)))
        stub.clear()
        yield* CudaGraph.launch(exec, one)
        assert.deepStrictEqual(stub.calls("cuStreamWaitEvent"), [])
        yield* CudaGraph.launch(exec, other)
        assert.deepStrictEqual(stub.calls("cuStreamWaitEvent").map(({ args }) => args[0]), [other.handle])
        yield* CudaGraph.launch(embedding, one)
        assert.deepStrictEqual(stub.calls("cuStreamWaitEvent").map(({ args }) => args[0]), [other.handle, one.handle])
        stub.clear()
        yield* fill(demo, handles, buffer, one)
        assert.deepStrictEqual(stub.calls("cuStreamWaitEvent"), [])
      })
    ))

  it.live.each([false, true])(
    "of recordings are destroyed after the last launch of their graph, which no call waits for (%s)",
    (isClosing) =>
      withDemo((demo) =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          const handles = yield* CudaLibrary.handle(demo, perStream).pipe(Scope.provide(scope))
          const [buffer, stream] = [yield* CudaMemory.allocate(size), yield* CudaStream.make()]
          yield* Effect.scoped(Effect.gen(function*() {
            const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(fill(demo, handles, buffer)))
            yield* CudaGraph.launch(exec, stream)
          }))
          const [own] = passed("demoCreate")
          stub.work(stream)
          yield* garbageCollected
          yield* fill(demo, handles, buffer)
          assert.strictEqual(yield* count, 2)
          const closing = isClosing ? yield* started(Scope.close(scope, Exit.void)) : undefined
          yield* pause(5)
          assert.notInclude(passed("demoDestroy"), own)
          stub.finish(stream)
          yield* closing === undefined
            ? until("the handle is destroyed", () => passed("demoDestroy").includes(own!))
            : Fiber.join(closing)
          assert.include(passed("demoDestroy"), own)
          yield* Scope.close(scope, Exit.void)
          assert.strictEqual(yield* count, 0)
        })
      )
  )

  it.live("of recordings are destroyed with the next one once no graph has them", () =>
    withDemo((demo) =>
      Effect.gen(function*() {
        const handles = yield* CudaLibrary.handle(demo, perStream)
        const buffer = yield* CudaMemory.allocate(size)
        const kept = yield* CudaGraph.record(
          CudaGraph.embed(yield* CudaGraph.record(fill(demo, handles, buffer)))
        )
        const [own] = passed("demoCreate")
        const record = Effect.asVoid(CudaGraph.record(fill(demo, handles, buffer)))
        for (let round = 0; round < 20 && passed("demoDestroy").length === 0; round++) {
          yield* Effect.andThen(record, garbageCollected)
        }
        assert.isAbove(passed("demoDestroy").length, 0)
        assert.notInclude(passed("demoDestroy"), own)
        yield* CudaGraph.launch(yield* CudaGraph.instantiate(kept))
      })
    ))
})

describe("a handle that was made otherwise", () => {
  const made = Effect.gen(function*() {
    const loaded = yield* CudaLibrary.load(demo, { path: library.path })
    const create = yield* CudaLibrary.native(loaded, "demoCreate")
    const out = new BigUint64Array(1)
    create!(out)
    return { loaded, address: Number(out[0]) }
  })

  it.live("lives as long as the scope that takes it over", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        library.reset()
        const runtime = yield* CudaRuntime.CudaRuntime
        const { address, loaded } = yield* made
        yield* Effect.scoped(Effect.gen(function*() {
          const options = { kind: "demo", handle: address, destroy: "demoDestroy" } as const
          const handle = yield* CudaLibrary.fromHandle(loaded, options)
          assert.deepStrictEqual([handle.kind, handle.handle, handle.deviceIndex], ["demo", address, 0])
          assert.strictEqual((yield* runtime.liveResources).handles, 1)
          const buffer = yield* CudaMemory.allocate(4)
          yield* CudaLibrary.call(loaded, "demoFillOf", [handle, buffer, 1, 4])
        }))
        assert.deepStrictEqual([library.live, (yield* runtime.liveResources).handles], [0, 0])
        assert.strictEqual(library.misuse, "")
      })
    ))

  it.live("is refused with functions that do not destroy it, and stays the program's", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        library.reset()
        const { address, loaded } = yield* made
        const take = (options: object) =>
          Effect.scoped(CudaLibrary.fromHandle(loaded, {
            kind: "demo",
            handle: address,
            destroy: "demoDestroy",
            ...options
          }))
        yield* refuses(take({ destroy: "demoNew" }), "destroy")
        yield* refuses(take({ destroy: "demoVersion" }), "destroy")
        yield* refuses(take({ kind: "other" }), "destroy")
        yield* refuses(take({ handle: 0 }), "handle")
        yield* refuses(take({ device: 7 }), "device")
        assert.strictEqual(library.live, 1)
        yield* take({})
        assert.strictEqual(library.live, 0)
      })
    ))

  it.live("ends at once when it is aborted, also while its release waits", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        library.reset()
        const runtime = yield* CudaRuntime.CudaRuntime
        const { address, loaded } = yield* made
        const adopted = { kind: "demo", handle: address, destroy: "demoDestroy", abort: "demoDestroySlowly" }
        const ref = yield* runtime.libraryAdopt(loaded.ref, adopted, 0)
        const stream = yield* CudaStream.make()
        yield* runtime.memoryEnqueue({ handles: [ref] }, () => {}, stream.ref)
        stub.work(stream)
        const releasing = yield* Effect.forkChild(runtime.libraryDestroy(ref))
        yield* pause(20)
        assert.strictEqual(library.live, 1)
        yield* runtime.libraryDestroy(ref, { abort: true })
        yield* Fiber.join(releasing)
        assert.deepStrictEqual([library.live, ref.state], [0, "released"])
        assert.deepStrictEqual(library.calls.slice(-1), ["demoDestroySlowly off"])
        yield* failsWith(runtime.memoryEnqueue({ handles: [ref] }, () => {}, stream.ref), "ResourceReleased")
        stub.finishAll()
      })
    ))

  it.live("has codes that are no failures", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        library.reset()
        const patient = CudaLibrary.define({ ...demo, name: "patient demo", pending: [7] })
        const loaded = yield* CudaLibrary.load(patient, { path: library.path })
        library.fail("demoNew", 7)
        yield* CudaLibrary.call(loaded, "demoNew", [])
        library.fail("demoNew", 6)
        yield* failsWith(CudaLibrary.call(loaded, "demoNew", []), "LibraryFailed")
        yield* refuses(CudaLibrary.load({ ...patient, pending: ["7"] } as never), "definition.pending")
      })
    ))
})
