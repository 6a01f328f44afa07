/**
 * The configuration of the native runtime: a provider that fails is a failure of the runtime, not a defect.
 */
import "../support/deepStack.ts"
import { assert, describe, it } from "@effect/vitest"
import type * as NativeRuntime from "effect-cuda/layers/NativeRuntime"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
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
