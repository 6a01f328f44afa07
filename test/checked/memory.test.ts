/**
 * Every kind of memory: globals of modules, slices and views, and memory of other code.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { program as kernels, signatures } from "../support/kernels.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { expectReports, raceOf, reportsOf } from "./support.ts"

const size = 64

const { copy, fill, slice } = CudaMemory

const pair = Effect.all([CudaStream.make(), CudaStream.make()])

const writesTwice = raceOf("CudaMemory.fill", "writes", "CudaMemory.fill", "writes")

type Part = CudaMemory.Slice<CudaMemory.DeviceBuffer>

/** Writes of two parts on two streams, which may be ordered. */
const writes = (one: Part, other: Part, ordered = false) =>
  Effect.gen(function*() {
    const [first, second] = yield* pair
    yield* fill(one, 1, first)
    if (ordered) yield* CudaStream.waitStream(second, first)
    yield* fill(other, 2, second)
  })

const parts: Record<string, Effect.Effect<readonly [Part, Part], CudaError, CudaRuntime | Scope.Scope>> = {
  "a global of a module": Effect.gen(function*() {
    const module = yield* CudaModule.load(yield* kernels)
    return [yield* CudaModule.global(module, "counter"), yield* CudaModule.global(module, "counter")]
  }),
  "slices that overlap": Effect.map(CudaMemory.allocate(size), (buffer) => [slice(buffer, 0, 40), slice(buffer, 32)]),
  "a slice of a slice": Effect.map(
    CudaMemory.allocate(size),
    (buffer) => [slice(buffer, 16, 8), slice(slice(buffer, 8, 32), 8, 4)]
  ),
  "memory of other code, twice": Effect.gen(function*() {
    const { address } = yield* CudaMemory.allocate(size)
    return [yield* CudaMemory.fromAddress(address, size), yield* CudaMemory.fromAddress(address + 32, 32)]
  }),
  "memory of other code, and its owner": Effect.gen(function*() {
    const owner = yield* CudaMemory.allocate(size)
    return [owner, yield* CudaMemory.fromAddress(owner.address + 32, 32)]
  }),
  "a global, and memory of other code over it": Effect.gen(function*() {
    const counter = yield* CudaModule.global(yield* CudaModule.load(yield* kernels), "counter")
    return [counter, yield* CudaMemory.fromAddress(counter.address, counter.byteLength)]
  }),
  "managed memory": Effect.map(CudaMemory.allocateManaged(size), (buffer) => [buffer, slice(buffer, 8, 8)])
}

const apart: typeof parts = {
  "globals of two modules": Effect.gen(function*() {
    const image = yield* kernels
    const [one, other] = [yield* CudaModule.load(image), yield* CudaModule.load(image)]
    return [yield* CudaModule.global(one, "counter"), yield* CudaModule.global(other, "counter")]
  }),
  "slices that touch": Effect.map(CudaMemory.allocate(size), (buffer) => [slice(buffer, 0, 32), slice(buffer, 32)]),
  "memory of other code that touches": Effect.gen(function*() {
    const { address } = yield* CudaMemory.allocate(size)
    return [yield* CudaMemory.fromAddress(address, 32), yield* CudaMemory.fromAddress(address + 32, 32)]
  })
}

describe("writes on two streams", () => {
  it.live.each(Object.keys(parts))("of %s race, unless they are ordered", (name) =>
    Effect.gen(function*() {
      const made = parts[name]!
      yield* expectReports(Effect.flatMap(made, ([one, other]) => writes(one, other)), [writesTwice])
      yield* expectReports(Effect.flatMap(made, ([one, other]) => writes(other, one)), [writesTwice])
      yield* expectReports(Effect.flatMap(made, ([one, other]) => writes(one, other, true)), [])
    }))

  it.live.each(Object.keys(apart))(
    "of %s do not race",
    (name) => expectReports(Effect.flatMap(apart[name]!, ([one, other]) => writes(one, other)), [])
  )
})

describe("globals of modules", () => {
  it.live("are named in reports, with their bytes", () =>
    Effect.gen(function*() {
      const [report] = yield* reportsOf(Effect.gen(function*() {
        const [one, other] = yield* pair
        const counter = yield* CudaModule.global(yield* CudaModule.load(yield* kernels), "counter")
        yield* CudaMemory.upload(counter, Uint32Array.of(1), one)
        yield* fill(counter, 1, one)
        yield* fill(slice(counter, 2, 2), 0, other)
      }))
      assert(report?._tag === "Race")
      assert.deepStrictEqual([report.bytes.offset, report.bytes.byteLength], [2, 2])
    }))

  it.live("that kernels are given race with copies of them", () =>
    expectReports(
      Effect.gen(function*() {
        const [one, other] = yield* pair
        const module = yield* CudaModule.load(yield* kernels)
        const counter = yield* CudaModule.global(module, "counter")
        const put = yield* CudaKernel.get(module, "put", signatures.put)
        yield* CudaKernel.launch(put, { grid: 1, block: 1 }, [counter, 1], one)
        yield* copy(yield* CudaMemory.allocate(4), counter, other)
      }),
      [raceOf("CudaKernel.launch of put", "writes", "CudaMemory.copy", "reads")]
    ))

  it.live("that kernels use by themselves are not seen", () =>
    expectReports(
      Effect.gen(function*() {
        const [one, other] = yield* pair
        const module = yield* CudaModule.load(yield* kernels)
        const counter = yield* CudaModule.global(module, "counter")
        const bump = yield* CudaKernel.get(module, "bump", signatures.bump)
        yield* CudaKernel.launch(bump, { grid: 1, block: 1 }, [yield* CudaMemory.allocate(4)], one)
        yield* fill(counter, 1, other)
      }),
      []
    ))

  it.live("are released with their module", () =>
    expectReports(
      Effect.gen(function*() {
        const [one] = yield* pair
        const part = yield* Effect.scoped(Effect.gen(function*() {
          const { address } = yield* CudaModule.global(yield* CudaModule.load(yield* kernels), "counter")
          const part = yield* CudaMemory.fromAddress(address, 4).pipe(Scope.provide(yield* Scope.make()))
          yield* fill(part, 1, one)
          return part
        }))
        yield* fill(part, 2, one)
      }),
      ["UsedAfterRelease", "Leftover"]
    ))
})

describe("on the driver", () => {
  const stub = openStub()

  it.live("a global at the address of one that was unloaded is new memory", () =>
    onStub(
      stub,
      Effect.scoped(Effect.gen(function*() {
        const [one, other] = yield* pair
        const image = yield* kernels
        const use = (stream: CudaStream.CudaStream) =>
          Effect.scoped(Effect.gen(function*() {
            const counter = yield* CudaModule.global(yield* CudaModule.load(image), "counter")
            yield* fill(counter, 1, stream)
            return counter.address
          }))
        assert.strictEqual(yield* use(one), yield* use(other))
        yield* (yield* CheckedRuntime.Checker).expectNone
      })).pipe(Effect.provide(CheckedRuntime.layer({ mode: "collect" })))
    ))
})

describe("views of the host", () => {
  const looking = (from: number, byteLength: number) =>
    Effect.gen(function*() {
      const [one] = yield* pair
      const host = yield* CudaMemory.allocateHost(size)
      yield* copy(slice(host, 16, 16), slice(yield* CudaMemory.allocate(size), 0, 16), one)
      yield* Effect.sync(() => CudaMemory.view(slice(host, from, byteLength), Uint8Array))
    })

  it.live("race with copies of their bytes only", () =>
    Effect.gen(function*() {
      yield* expectReports(looking(16, 16), [raceOf("CudaMemory.copy", "writes", "CudaMemory.view", "reads")])
      yield* expectReports(looking(20, 4), [raceOf("CudaMemory.copy", "writes", "CudaMemory.view", "reads")])
      yield* expectReports(looking(0, 16), [])
      yield* expectReports(looking(32, 32), [])
    }))

  it.live("of pinned memory of the program race as well", () =>
    expectReports(
      Effect.gen(function*() {
        const [one] = yield* pair
        const pinned = yield* CudaMemory.pin(new Uint8Array(size))
        yield* copy(pinned, yield* CudaMemory.allocate(size), one)
        yield* Effect.sync(() => CudaMemory.view(pinned, Uint8Array))
      }),
      [raceOf("CudaMemory.copy", "writes", "CudaMemory.view", "reads")]
    ))
})
