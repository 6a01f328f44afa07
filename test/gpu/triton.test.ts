/**
 * Kernels that Triton compiled ahead, launched like any other. Skipped where Python has no Triton.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaDevice, CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaProgram } from "effect-cuda"
import * as Effect from "effect/Effect"
import { spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { gpu, nativeRig } from "../support/gpu.ts"

const { f32, i32, input, nullable, output, pointer } = CudaParameter

const hasTriton = gpu !== undefined && spawnSync("python3", ["-c", "import triton"]).status === 0
const script = fileURLToPath(new URL("../support/compileTriton.py", import.meta.url))

/** Triton adds two pointers to scratch memory, which is null unless the metadata asks for some. */
const scratch = nullable(pointer)

/** What a launch needs to know, as Triton's metadata have it. */
interface Metadata {
  readonly name: string
  readonly shared: number
  readonly warps: number
  readonly scratch: ReadonlyArray<number | null>
}

const compiled = Effect.gen(function*() {
  const { computeCapability: { major, minor } } = yield* CudaDevice.current
  return yield* Effect.acquireRelease(
    Effect.sync(() => {
      const folder = mkdtempSync(join(tmpdir(), "effect-cuda-triton-"))
      const { status, stderr } = spawnSync("python3", ["-B", script, folder, String(major), String(minor)], {
        encoding: "utf8",
        env: { ...process.env, TRITON_CACHE_DIR: folder }
      })
      assert.strictEqual(status, 0, stderr)
      return folder
    }),
    (folder) => Effect.sync(() => rmSync(folder, { recursive: true }))
  )
})

const loadKernel = Effect.fnUntraced(function*(folder: string, name: string) {
  const metadata: Metadata = JSON.parse(readFileSync(join(folder, `${name}.json`), "utf8"))
  assert.deepStrictEqual(metadata.scratch.filter((bytes) => bytes !== 0 && bytes !== null), [])
  const module = yield* CudaModule.load(yield* CudaProgram.fromFile(join(folder, `${name}.cubin`)))
  return { module, name: metadata.name, shape: { block: 32 * metadata.warps, sharedBytes: metadata.shared } }
})

describe.skipIf(!hasTriton)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("a kernel compiled by Triton", (it) => {
    it.effect("runs with its arguments and Triton's two", () =>
      Effect.gen(function*() {
        const folder = yield* compiled
        const { module, name, shape } = yield* loadKernel(folder, "scaled_sum")
        const kernel = yield* CudaKernel.get(module, name, [input, input, output, i32, f32, scratch, scratch])
        const count = 1000
        const [x, y, out] = [
          yield* ofFloats(count, (at) => at),
          yield* ofFloats(count, () => 1),
          yield* ofFloats(count, () => 0)
        ]
        yield* CudaKernel.launch(kernel, { grid: Math.ceil(count / 256), ...shape }, [
          x,
          y,
          out,
          count,
          0.5,
          null,
          null
        ])
        const found = new Float32Array(count)
        yield* CudaMemory.download(found, out)
        assert.deepStrictEqual(found, Float32Array.from({ length: count }, (_, at) => 0.5 * at + 1))
      }), 60_000)

    it.effect("uses shared memory and tensor cores", () =>
      Effect.gen(function*() {
        const folder = yield* compiled
        const { module, name, shape } = yield* loadKernel(folder, "product")
        const kernel = yield* CudaKernel.get(module, name, [input, input, output, i32, scratch, scratch])
        const size = 256
        const [a, b] = [yield* CudaMemory.allocate(2 * size * size), yield* CudaMemory.allocate(2 * size * size)]
        const out = yield* CudaMemory.allocate(4 * size * size)
        // 1 and 2 in float16.
        yield* CudaMemory.fill16(a, 0x3c00)
        yield* CudaMemory.fill16(b, 0x4000)
        yield* CudaKernel.launch(kernel, { grid: [size / 64, size / 64], ...shape }, [a, b, out, size, null, null])
        const found = new Float32Array(size * size)
        yield* CudaMemory.download(found, out)
        assert.deepStrictEqual(found, new Float32Array(size * size).fill(2 * size))
      }), 60_000)
  })
})

const ofFloats = Effect.fnUntraced(function*(length: number, valueOf: (at: number) => number) {
  const buffer = yield* CudaMemory.allocate(4 * length)
  yield* CudaMemory.upload(buffer, Float32Array.from({ length }, (_, at) => valueOf(at)))
  return buffer
})
