/**
 * The demo's kernel files: the source, the PTX compiled from it, and the parameters that the program declares.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaProgram } from "effect-cuda"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import { parameters, simulated } from "../../examples/demo/Kernels.ts"

const file = (name: string) => new URL(`../../examples/demo/${name}`, import.meta.url)
const read = (name: string) => readFileSync(file(name), "utf8")

/** The name and parameter list of each kernel. */
const entries = (text: string, start: RegExp) =>
  new Map(Array.from(text.matchAll(start), ([, name, list]) => [name!, list!.split(",").map((part) => part.trim())]))

const names = Object.keys(parameters).sort()
const ptx = entries(read("kernels.ptx"), /\.visible \.entry (\w+)\(([^)]*)\)/g)
const source = entries(read("kernels.cu"), /extern "C" __global__ void (\w+)\(([^)]*)\)/g)

describe("the kernels", () => {
  it("are the same in the source, in the PTX and on a simulated device", () => {
    assert.deepStrictEqual([...source.keys()].sort(), names)
    assert.deepStrictEqual([...ptx.keys()].sort(), names)
    assert.deepStrictEqual(Object.keys(simulated(1)).sort(), names)
  })

  it.each(["histogram", "checksum"] as const)("%s declares the parameters that it is launched with", (name) => {
    const sizes = parameters[name].map(({ size }) => size)
    assert.deepStrictEqual(
      ptx.get(name)?.map((parameter) => Number(/^\.param \.u(\d+) /.exec(parameter)?.[1]) / 8),
      sizes
    )
    assert.strictEqual(source.get(name)?.length, sizes.length)
  })

  it.effect("target drivers and GPUs that the library supports", () =>
    Effect.gen(function*() {
      const program = yield* CudaProgram.fromFile(file("kernels.ptx"))
      assert.deepStrictEqual([program.kind, program.architecture], ["ptx", "compute_70"])
      // PTX 8.0 belongs to CUDA 12.0.
      assert.isAtMost(Number(/^\.version ([\d.]+)$/m.exec(read("kernels.ptx"))?.[1]), 8)
    }))
})
