/**
 * NVRTC on a machine with a GPU: the driver loads its output, and the library parses its diagnostics.
 */
import "../support/deepStack.ts"
import { assert, describe, it } from "@effect/vitest"
import { CudaProgram, CudaRuntime, NativeRuntime } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import koffi from "koffi"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { failsWith } from "../support/assertions.ts"
import { missing } from "../support/nvrtc.ts"
import { pause } from "../support/stubDriver.ts"

const folder = mkdtempSync(join(tmpdir(), "effect-cuda-programs-"))
process.on("exit", () => rmSync(folder, { recursive: true, force: true }))

const add = `template <typename T>
__global__ void add(T* into, const T* from, unsigned n) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) into[i] += from[i];
}
extern "C" __global__ void scale(float* into, float by) { into[threadIdx.x] *= by; }
`

/** A source with many instantiations, which takes the compiler about a second. */
const large = (seed: number) =>
  `template <int N> __device__ float f(float x) { return f<N - 1>(x * ${seed}.5f + N) + sinf(x) * powf(x, N); }
template <> __device__ float f<0>(float x) { return x; }
${
    Array.from(
      { length: 8 },
      (_, k) => `extern "C" __global__ void k${k}(float* a) { a[threadIdx.x] = f<16>(a[${k}]); }`
    ).join("\n")
  }`

const on = <A, E>(
  program: Effect.Effect<A, E, CudaRuntime.CudaRuntime>,
  options: NativeRuntime.NativeOptions = {}
): Effect.Effect<A, E | CudaError> =>
  Effect.provide(program, NativeRuntime.layer({ programCache: { folder, enabled: false }, ...options }))

/** Looks up kernels of an image by name in the driver. */
const loads = (image: Uint8Array, names: ReadonlyArray<string>): void => {
  const library = koffi.load("libcuda.so.1")
  const call = (name: string, types: ReadonlyArray<string>, ...values: ReadonlyArray<unknown>) => {
    const status: number = library.func(name, "int", [...types])(...values)
    assert.strictEqual(status, 0, `${name}: ${status}`)
  }
  const out = new BigUint64Array(1)
  call("cuDevicePrimaryCtxRetain", ["void *", "int"], out, 0)
  call("cuCtxPushCurrent_v2", ["uintptr_t"], Number(out[0]))
  call("cuModuleLoadData", ["void *", "void *"], out, image)
  const module = Number(out[0])
  for (const name of names) call("cuModuleGetFunction", ["void *", "uintptr_t", "str"], out, module, name)
  call("cuModuleUnload", ["uintptr_t"], module)
  call("cuCtxPopCurrent_v2", ["void *"], out)
  call("cuDevicePrimaryCtxRelease_v2", ["int"], 0)
}

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const begun = performance.now()
    return Effect.map(effect, (result) => ({ result, milliseconds: performance.now() - begun }))
  })

describe.skipIf(missing !== undefined)(`NVRTC${missing === undefined ? "" : ` (${missing})`}`, () => {
  for (const target of ["cubin", "ptx"] as const) {
    it.live(`compiles a template to an image that the driver loads (${target})`, () =>
      on(Effect.gen(function*() {
        const { devices } = yield* CudaRuntime.CudaRuntime
        const { major, minor } = devices[0]!.computeCapability
        const nameExpressions = ["add<float>", "add<double>"]
        const program = yield* CudaProgram.compile(add, { name: "add.cu", target, nameExpressions })
        assert.strictEqual(program.kind, target)
        assert.strictEqual(program.architecture, `${target === "cubin" ? "sm" : "compute"}_${major}${minor}`)
        assert.strictEqual(program.loweredName("add<float>"), "_Z3addIfEvPT_PKS0_j")
        assert.strictEqual(program.log.trim(), "")
        const again = yield* CudaProgram.fromBytes(program.image)
        assert.strictEqual(again.kind, target)
        assert.deepStrictEqual(again.image, program.image)
        loads(program.image, ["scale", ...nameExpressions.map(program.loweredName)])
      })))
  }

  it.live("reports errors with their location", () =>
    on(Effect.gen(function*() {
      const source = `#include "b.cuh"\n__global__ void k(int* a) {\n  int unused;\n  a[0] = x + b();\n}\n`
      const error = yield* Effect.flip(
        CudaProgram.compile(source, { name: "bad.cu", headers: { "b.cuh": "__device__ int b() { return y; }\n" } })
      )
      assert(error.reason._tag === "CompilationFailed", error.message)
      const errors = error.reason.diagnostics.filter(({ severity }) => severity === "error")
      assert.deepStrictEqual(errors.map(({ file, line }) => [file, line]), [["b.cuh", 1], ["bad.cu", 4]])
      assert.include(errors[1]!.message, "\"x\" is undefined")
      assert.strictEqual(errors[1]!.text, "  a[0] = x + b();")
      assert.include(error.message, "bad.cu(4")
    })))

  it.live("rejects unknown options and architectures", () =>
    on(Effect.gen(function*() {
      const refused = yield* failsWith(CudaProgram.compile(add, { options: ["--quick"] }), "InvalidCompileOption")
      assert.include(refused.log, "--quick")
      yield* failsWith(CudaProgram.compile(add, { architecture: "sm_20" }), "InvalidArgument")
    })))

  it.live("returns warnings with the program", () =>
    on(Effect.gen(function*() {
      const program = yield* CudaProgram.compile("__global__ void k() { int unused; }", { name: "w.cu" })
      assert.match(program.log, /w\.cu\(1\): warning #/)
    })))

  it.live("is not called again for a cached program", () =>
    Effect.gen(function*() {
      const kept = timed(on(CudaProgram.compile(large(1), { cache: true })))
      const first = yield* kept
      const second = yield* kept
      assert.deepStrictEqual([first.result.fromCache, second.result.fromCache], [false, true])
      assert.deepStrictEqual(second.result.image, first.result.image)
      assert.isBelow(second.milliseconds, first.milliseconds)
    }), 60_000)

  it.live("has enough stack for deeply nested sources", () =>
    on(Effect.gen(function*() {
      const deep = `template <int N> struct S { static constexpr int v = S<N - 1>::v + 1; };
template <> struct S<0> { static constexpr int v = 0; };
__global__ void k(int* a) { a[0] = S<150>::v + ${"(".repeat(200)}1${")".repeat(200)}; }`
      yield* CudaProgram.compile(deep)
    })))

  it.live("runs off the event loop, and is abandoned when interrupted", () =>
    on(Effect.gen(function*() {
      let longest = 0
      let last = performance.now()
      const timer = setInterval(() => {
        longest = Math.max(longest, performance.now() - last)
        last = performance.now()
      }, 1)
      const both = yield* Effect.forkChild(
        Effect.forEach([3, 4], (seed) => CudaProgram.compile(large(seed)), { concurrency: 2 })
      )
      yield* pause(100)
      const ended = yield* timed(Fiber.interrupt(both))
      yield* CudaProgram.compile(add)
      clearInterval(timer)
      assert.isBelow(ended.milliseconds, 50)
      assert.isBelow(longest, 100)
    })), 60_000)
})
