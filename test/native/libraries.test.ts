/**
 * Libraries that a program describes, on the driver: how they are found and loaded, and the calls they get.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaLibrary } from "effect-cuda"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { filesOf, placesOf } from "../../src/cuda/foreignLibrary.ts"
import { failsWith, refuses } from "../support/assertions.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { demo, StubLibrary } from "../support/stubLibrary.ts"

const stub = openStub()
const library = new StubLibrary(stub.path)

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

  it.live("cannot have a description that is wrong", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const load = (fields: object) => CudaLibrary.load({ ...demo, ...fields }, { path: library.path })
        yield* refuses(CudaLibrary.load(null as never), "definition")
        yield* refuses(load({ name: "" }), "definition.name")
        yield* refuses(load({ wheels: "demo" }), "definition.wheels")
        yield* refuses(load({ statuses: 1 }), "definition.statuses")
        yield* refuses(load({ faults: ["13"] }), "definition.faults")
        yield* refuses(load({ needs: [{}] }), "definition.needs[0].name")
        yield* refuses(load({ files: () => ["../libdemo.so"] }), "files of demo")
        yield* refuses(load({ functions: { f: {} } }), "definition.functions.f")
        const func = (parameters: ReadonlyArray<unknown>, options: object = {}) =>
          load({ functions: { f: CudaLibrary.func(parameters as never, options) } })
        yield* refuses(func(["int"]), "definition.functions.f.parameters[0]")
        yield* refuses(func([CudaLibrary.bytes(0)]), "definition.functions.f.parameters[0]")
        yield* refuses(func([], { returns: "int" }), "definition.functions.f.returns")
        yield* refuses(func([CudaLibrary.stream, CudaLibrary.stream]), "definition.functions.f")
        yield* refuses(func([CudaLibrary.stream], { thread: "own" }), "definition.functions.f")
        yield* refuses(func([CudaLibrary.stream], { enqueues: false }), "definition.functions.f")
        yield* refuses(CudaLibrary.load(demo, { path: "libdemo\0.so" }), "path")
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
