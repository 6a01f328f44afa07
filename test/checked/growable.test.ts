/**
 * What the checker knows of memory that grows and shrinks.
 */
import { assert, it } from "@effect/vitest"
import { CheckedRuntime, CudaMemory, CudaStream, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const mebi = 2 ** 20
const checked = CheckedRuntime.layer({ mode: "collect" }).pipe(Layer.provide(SimulatedRuntime.layer()))

const racesOf = (between: (buffer: CudaMemory.GrowableBuffer) => Effect.Effect<void, unknown>) =>
  Effect.gen(function*() {
    const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
    const buffer = yield* CudaMemory.growable({ maxBytes: 512 * mebi, initial: mebi })
    yield* CudaMemory.grow(buffer, 128 * mebi)
    const end = { buffer, offset: 96 * mebi, byteLength: mebi }
    yield* CudaMemory.fill(end, 1, one)
    yield* between(buffer)
    yield* CudaMemory.fill(end, 2, other)
    const { reports } = yield* CheckedRuntime.Checker
    return (yield* reports).map(({ _tag }) => _tag)
  }).pipe(Effect.scoped, Effect.provide(checked))

it.live("bytes that the buffer has grown by can race", () =>
  Effect.gen(function*() {
    assert.deepStrictEqual(yield* racesOf(() => Effect.void), ["Race"])
    assert.deepStrictEqual(yield* racesOf(CudaMemory.grow(256 * mebi)), ["Race"])
  }))

it.live("bytes that were returned and are back are new", () =>
  Effect.gen(function*() {
    const again = (size: number) => (buffer: CudaMemory.GrowableBuffer) =>
      Effect.andThen(CudaMemory.shrink(buffer, size), CudaMemory.grow(buffer, 128 * mebi))
    assert.deepStrictEqual(yield* racesOf(again(mebi)), [])
    // The memory of these bytes was kept, so nothing waited for the work that uses them.
    assert.deepStrictEqual(yield* racesOf(again(90 * mebi)), ["Race"])
  }))

it.live("another buffer at the same addresses is another one", () =>
  Effect.gen(function*() {
    const use = Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const buffer = yield* CudaMemory.growable({ maxBytes: 4 * mebi, initial: mebi })
      yield* CudaMemory.fill(buffer, 1, stream)
    })
    yield* Effect.scoped(use)
    yield* Effect.scoped(use)
    const { expectNone } = yield* CheckedRuntime.Checker
    yield* expectNone
  }).pipe(Effect.provide(checked)))
