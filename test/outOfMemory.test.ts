/**
 * Failed allocations: how much was requested, how much memory there is, and whether a retry can succeed.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaError, CudaMemory, CudaMemoryPool, SimulatedRuntime } from "effect-cuda"
import type { CudaRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { assertReleased, openStub, stubLayer } from "./support/stubDriver.ts"

const stub = openStub()

const gibi = 2 ** 30

const native = Layer.suspend(() => {
  stub.reset()
  stub.memory = 8 * gibi
  return stubLayer(stub)
})

const simulated = Layer.suspend(() => SimulatedRuntime.layer({ devices: [{ memory: 8 * gibi }] }))

describe.each([["the driver", native], ["a simulated device", simulated]] as const)("on %s", (name, runtime) => {
  const run = <A, E>(body: Effect.Effect<A, E, CudaRuntime.CudaRuntime | Scope.Scope>) =>
    body.pipe(
      Effect.scoped,
      Effect.provide(runtime),
      Effect.tap(() => name === "the driver" ? Effect.sync(() => assertReleased(stub)) : Effect.void)
    )

  const failure = <R>(allocation: Effect.Effect<unknown, CudaError.CudaError, R>) =>
    Effect.map(Effect.flip(allocation), (error) => {
      assert.strictEqual(error.reason._tag, "OutOfMemory")
      return error
    })

  it.live("an allocation that does not fit reports the free memory, and can be retried", () =>
    run(Effect.gen(function*() {
      yield* CudaMemory.allocate(6 * gibi)
      const error = yield* failure(CudaMemory.allocate(3 * gibi))
      const { free, requested, total } = error.memory!
      assert.deepStrictEqual([requested, total], [3 * gibi, 8 * gibi])
      assert.isAtMost(free, 2 * gibi)
      assert.include(error.message, `3 GiB were requested; ${CudaError.formatBytes(free)} of 8 GiB are free.`)
      assert.isTrue(error.isRetryable)
    })))

  it.live("an allocation larger than the device says so, and cannot be retried", () =>
    run(Effect.gen(function*() {
      const error = yield* failure(CudaMemory.allocate(12 * gibi))
      assert.deepStrictEqual([error.memory!.requested, error.memory!.total], [12 * gibi, 8 * gibi])
      assert.include(error.message, "12 GiB were requested, more than the 8 GiB of the device.")
      assert.isFalse(error.isRetryable)
      assert.isTrue("isRetryable" in error.reason && error.reason.isRetryable, "the status itself can be retried")
    })))

  it.live("managed memory reports the same", () =>
    run(Effect.gen(function*() {
      const error = yield* failure(CudaMemory.allocateManaged(12 * gibi))
      assert.deepStrictEqual([error.memory!.requested, error.memory!.total], [12 * gibi, 8 * gibi])
      assert.isFalse(error.isRetryable)
    })))

  it.live("a full pool reports the memory of the device", () =>
    run(Effect.gen(function*() {
      const pool = yield* CudaMemoryPool.make({ maxBytes: gibi })
      const error = yield* failure(CudaMemory.allocate(2 * gibi, { pool }))
      assert.deepStrictEqual([error.memory!.requested, error.memory!.total], [2 * gibi, 8 * gibi])
      assert.isTrue(error.isRetryable)
    })))
})

describe("a failure of memory", () => {
  const of = (requested: number, free: number, total: number) =>
    new CudaError.CudaError({
      operation: "CudaMemory.allocate",
      reason: CudaError.reasonFromStatus(2),
      memory: { requested, free, total }
    })

  it("can be retried up to the size of the device", () => {
    assert.isTrue(of(gibi, 0, gibi).isRetryable)
    assert.isFalse(of(gibi + 1, 0, gibi).isRetryable)
  })

  it("prints sizes in readable units", () => {
    assert.include(of(1, 0, 80 * gibi).message, "1 byte was requested; 0 bytes of 80 GiB are free.")
    assert.include(of(1536, 512, gibi).message, "1.5 KiB were requested; 512 bytes of 1 GiB are free.")
  })
})
