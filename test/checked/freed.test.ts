/**
 * Raw addresses in memory that was released: in launches and in graphs.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaParameter from "effect-cuda/CudaParameter"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { failsWith } from "../support/assertions.ts"
import { program as kernels } from "../support/kernels.ts"

const size = 64

type Program<A = unknown> = Effect.Effect<A, CudaError, CudaRuntime | CheckedRuntime.Checker | Scope.Scope>

const { address: raw, array, input, output } = CudaParameter
const parameters = [input, array(output, 2)] as const

const inner = SimulatedRuntime.layer({
  devices: [{ memory: 2 ** 26 }],
  kernels: { nothing: SimulatedRuntime.kernel({ parameters, cost: 1, run: () => {} }) }
})

const run = <A>(program: Program<A>, mode: "collect" | "fail" = "collect") =>
  Effect.scoped(program).pipe(Effect.provide(CheckedRuntime.layer({ mode }).pipe(Layer.provide(inner))))

const one = { grid: 1, block: 1 }

/** A stream, a kernel, two buffers that live, and the address of one that was released. */
const make = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const kernel = yield* CudaKernel.get(yield* CudaModule.load(yield* kernels), "nothing", parameters)
  const [a, b] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
  const address = yield* Effect.scoped(Effect.gen(function*() {
    const buffer = yield* CudaMemory.allocate(size, { stream })
    const launched = CudaKernel.launch(kernel, one, [raw(buffer.address), [a, b]], stream)
    yield* launched
    return buffer.address
  })).pipe(Effect.withSpan("short"))
  return { stream, kernel, a, b, address }
})

const found = Effect.gen(function*() {
  const reports = yield* (yield* CheckedRuntime.Checker).reports
  assert.lengthOf(reports, 1, reports.map(({ message }) => message).join("\n"))
  const [report] = reports
  assert(report?._tag === "UsedAfterRelease", report?.message)
  return report
})

describe("raw addresses in memory that was released", () => {
  it.live("are found in arguments", () =>
    run(Effect.gen(function*() {
      const { a, address, b, kernel, stream } = yield* make
      yield* CudaKernel.launch(kernel, one, [raw(address + 16), [a, b]], stream)
      const { access, bytes, released } = yield* found
      assert.strictEqual(access.kind, "reads")
      assert.strictEqual(access.argument, "arguments[0]")
      assert.deepStrictEqual([bytes.offset, bytes.byteLength], [16, size - 16])
      assert.match(released ?? "", /^short/)
    })))

  it.live("are found in arrays, and fail the launch on request", () =>
    run(
      Effect.gen(function*() {
        const { a, address, kernel, stream } = yield* make
        yield* failsWith(CudaKernel.launch(kernel, one, [a, [a, raw(address)]], stream), "RaceDetected")
        assert.strictEqual((yield* found).access.argument, "arguments[1][1]")
      }),
      "fail"
    ))

  it.live("are found in graphs that were recorded before the release", () =>
    run(Effect.gen(function*() {
      const { a, b, kernel, stream } = yield* make
      const exec = yield* Effect.scoped(Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(size)
        const { address } = buffer
        return yield* CudaGraph.record(CudaKernel.launch(kernel, one, [raw(address), [a, b]]))
      })).pipe(Effect.flatMap(CudaGraph.instantiate))
      yield* CudaGraph.launch(exec, stream)
      assert.strictEqual((yield* found).access.operation, "CudaKernel.launch of nothing")
    })))

  it.live("are not found in memory that lives, or was never released", () =>
    run(Effect.gen(function*() {
      const { a, address, b, kernel, stream } = yield* make
      yield* CudaKernel.launch(kernel, one, [raw(a.address), [b, raw(b.address)]], stream)
      yield* CudaKernel.launch(kernel, one, [raw(address + 2 ** 20), [a, b]], stream)
      assert.deepStrictEqual(yield* (yield* CheckedRuntime.Checker).reports, [])
    })))
})
