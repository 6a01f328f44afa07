/**
 * The configuration of the native runtime: a provider that fails is a failure of the runtime, not a defect.
 */
import "../support/deepStack.ts"
import { assert, describe, it } from "@effect/vitest"
import type * as NativeRuntime from "effect-cuda/layers/NativeRuntime"
import * as Cause from "effect/Cause"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { environment } from "../../src/cuda/environment.ts"
import { failsWith, refuses } from "../support/assertions.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { makeFolder } from "../support/stubNvrtc.ts"

const stub = openStub()

const failing = ConfigProvider.make((path) =>
  Effect.fail(
    new ConfigProvider.SourceError({ message: `no ${path.join(".")}`, cause: new Error("the vault is sealed") })
  )
)

const make = (options: NativeRuntime.NativeOptions) =>
  Effect.provideService(onStub(stub, Effect.void, options), ConfigProvider.ConfigProvider, failing)

describe("a ConfigProvider that fails", () => {
  const cases: ReadonlyArray<readonly [string, NativeRuntime.NativeOptions]> = [
    ["EFFECT_CUDA_NVRTC", { programCache: { folder: makeFolder() } }],
    ["EFFECT_CUDA_CACHE", { nvrtcPath: "libnvrtc.so" }],
    ["EFFECT_CUDA_LIBRARY", {
      nvrtcPath: "libnvrtc.so",
      programCache: { folder: makeFolder() },
      libraryPath: undefined
    }]
  ]
  for (const [name, options] of cases) {
    it.live(`is a failure that names ${name} and the cause`, () =>
      Effect.gen(function*() {
        const reason = yield* failsWith(make(options), "InvalidArgument")
        assert.strictEqual(reason.argument, name)
        assert.strictEqual(reason.value, `unreadable (no ${name}: the vault is sealed)`)
      }))
  }

  it.live("is not asked for values that the options set", () =>
    make({ nvrtcPath: "libnvrtc.so", programCache: { folder: makeFolder() } }))
})

describe("the folder of the cache", () => {
  for (const folder of ["", "a\0b", 5 as never, [] as never]) {
    it.live(`is rejected as ${JSON.stringify(folder)}`, () =>
      refuses(onStub(stub, Effect.void, { programCache: { folder } }), "folder"))
  }
})

describe("an environment that Deno does not let the program read", () => {
  const refused = () => {
    throw Object.assign(new Error("Requires env access"), { name: "NotCapable" })
  }

  it.live("counts as not set for the options of the runtime", () =>
    Effect.provideService(
      onStub(stub, Effect.void, {}),
      ConfigProvider.ConfigProvider,
      ConfigProvider.make(() => Effect.sync(refused))
    ))

  it("counts as not set for other variables", () => {
    const own = process.env
    process.env = new Proxy({}, { get: refused })
    try {
      assert.isUndefined(environment["PATH"])
    } finally {
      process.env = own
    }
    assert.strictEqual(environment["PATH"], own["PATH"])
  })

  it.live("does not hide other defects of a ConfigProvider", () =>
    Effect.gen(function*() {
      const provider = ConfigProvider.make(() => Effect.die("a defect"))
      const exit = yield* Effect.exit(
        Effect.provideService(onStub(stub, Effect.void, {}), ConfigProvider.ConfigProvider, provider)
      )
      assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
    }))
})
