/**
 * Streams wrapped by their handles: one resource per stream while a program refers to it, and nothing afterwards.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaMemory, CudaStream, SimulatedRuntime } from "effect-cuda"
import type { CudaRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { WeakValues } from "../src/layers/shared/WeakValues.ts"
import { garbageCollected, untilCollected } from "./support/garbage.ts"
import { assertReleased, openStub, stubLayer } from "./support/stubDriver.ts"

const stub = openStub()

const simulated = Layer.suspend(() => SimulatedRuntime.layer({ devices: 1 }))
const native = Layer.suspend(() => {
  stub.reset()
  return stubLayer(stub)
})

const count = 100

const rigs = [
  // The device must be open before other native code can have streams on it.
  ["the driver", native, Effect.as(CudaStream.make(), Effect.sync(() => stub.foreignStream(0)))],
  ["a simulated device", simulated, Effect.succeed(Effect.map(CudaStream.make(), (stream) => stream.handle))]
] as const

describe.each(rigs)("on %s", (name, runtime, prepare) => {
  const run = <A, E>(
    body: (
      makeHandle: Effect.Effect<number, unknown, CudaRuntime.CudaRuntime | Scope.Scope>
    ) => Effect.Effect<A, E, CudaRuntime.CudaRuntime | Scope.Scope>
  ) =>
    Effect.flatMap(prepare, body).pipe(
      Effect.scoped,
      Effect.provide(runtime),
      Effect.tap(() => name === "the driver" ? Effect.sync(() => assertReleased(stub)) : Effect.void)
    )

  it.live("a stream that is wrapped twice is one resource", () =>
    run((makeHandle) =>
      Effect.gen(function*() {
        const handle = yield* makeHandle
        const [first, second] = [yield* CudaStream.fromHandle(handle), yield* CudaStream.fromHandle(BigInt(handle))]
        const third = yield* CudaStream.fromHandle(yield* makeHandle)
        assert.strictEqual(second.ref, first.ref)
        assert.isTrue(Equal.equals(first, second))
        assert.notStrictEqual(third.ref, first.ref)
      })
    ))

  it.live("wrapped streams are garbage-collected once the program drops them", () =>
    run((makeHandle) =>
      Effect.gen(function*() {
        const handles = yield* Effect.forEach(Array.from({ length: count }), () => makeHandle)
        const wrap = Effect.fnUntraced(function*(handle: number) {
          const stream = yield* CudaStream.fromHandle(handle)
          yield* Effect.scoped(Effect.flatMap(CudaMemory.allocate(64), (to) => CudaMemory.fill(to, 1, stream)))
          yield* CudaStream.synchronize(stream)
          return new WeakRef(stream.ref)
        })
        const wrapped = yield* Effect.forEach(handles, wrap)
        const left = () => wrapped.filter((ref) => ref.deref() !== undefined).length
        // The arguments of the last calls may stay on the stack.
        yield* untilCollected("the wrapped streams are gone", () => left() <= 2)
        const again = yield* Effect.forEach(handles, (handle) => CudaStream.fromHandle(handle))
        assert.strictEqual(new Set(again.map(({ ref }) => ref)).size, count)
      })
    ))
})

describe("a map that holds its values weakly", () => {
  it.live("has no entries once they are collected", () =>
    Effect.gen(function*() {
      const map = new WeakValues<number, { readonly index: number }>()
      const kept = { index: -1 }
      map.set(-1, kept)
      for (let index = 0; index < count; index++) map.set(index, { index })
      yield* untilCollected("the entries are gone", () => map.size === 1)
      assert.deepStrictEqual(Array.from(map.values()), [kept])
      assert.strictEqual(map.get(-1), kept)
      assert.isUndefined(map.get(5))
    }))

  it.live("keeps an entry that was set again after its value was collected", () =>
    Effect.gen(function*() {
      const map = new WeakValues<string, object>()
      const second = {}
      const set = () => {
        map.set("key", {})
      }
      set()
      // In the turn that collects the first value, its finalizer has not run yet.
      yield* untilCollected("the first value is gone", () => {
        if (map.get("key") !== undefined) return false
        map.set("key", second)
        return true
      })
      yield* garbageCollected
      assert.strictEqual(map.get("key"), second)
    }))
})
