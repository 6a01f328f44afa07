/**
 * Interruption between any two steps: a pipeline is interrupted at its k-th operation, for every k, before the operation,
 * while it runs and after it. Whatever the moment, nothing is left and nothing was given back too early.
 */
import { assert, describe, it } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaStream from "effect-cuda/CudaStream"
import { CudaRuntime } from "effect-cuda/layers/CudaRuntime"
import type { CudaRuntimeService } from "effect-cuda/layers/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { assertQuiet, assertReleased, openStub, pause, stubLayer } from "../support/stubDriver.ts"

const stub = openStub()

/** When a fiber is interrupted, seen from the k-th operation. */
const moments = ["before", "during", "after"] as const

/** Makes an operation part of the count. */
type Step = <A, E>(operation: Effect.Effect<A, E>) => Effect.Effect<A, E>

const releases: ReadonlyArray<keyof CudaRuntimeService> = ["streamDestroy", "eventDestroy", "memoryFree"]

/** The runtime with every operation but the releases passed through `step`. */
const instrument = (runtime: CudaRuntimeService, step: Step): CudaRuntimeService => {
  const wrapped: Record<string, unknown> = { ...runtime }
  for (const [name, member] of Object.entries(runtime)) {
    if (typeof member !== "function" || releases.includes(name as keyof CudaRuntimeService)) continue
    wrapped[name] = (...parameters: ReadonlyArray<unknown>) =>
      step(Reflect.apply(member, undefined, parameters) as Effect.Effect<unknown>)
  }
  return wrapped as unknown as CudaRuntimeService
}

/** Counts operations, and opens the door to the interruption at the k-th. */
const interruptionAt = (k: number, moment: (typeof moments)[number], reached: Deferred.Deferred<void>) => {
  let count = 0
  const open = Effect.asVoid(Deferred.succeed(reached, undefined))
  // Gives the interruption time to arrive; where the caller cannot be interrupted, the operation goes on.
  const here = Effect.andThen(open, pause(1))
  const step: Step = (operation) =>
    Effect.suspend(() => {
      if (++count !== k) return operation
      if (moment === "before") return Effect.andThen(here, operation)
      if (moment === "during") return Effect.andThen(open, operation)
      return Effect.tap(operation, () => here)
    })
  return { step, count: () => count }
}

const chunk = 4096

/** Uploads, processes and downloads chunks on three streams, ordered by events; the demo in small. */
const pipeline: Effect.Effect<void, CudaError, CudaRuntime | Scope.Scope> = Effect.gen(function*() {
  const [up, work, down] = yield* Effect.all([
    CudaStream.make(),
    CudaStream.make({ priority: "high" }),
    CudaStream.fromPool()
  ])
  const input = yield* CudaMemory.allocateHost(chunk)
  const output = yield* CudaMemory.allocateHost(chunk)
  const uploaded = yield* CudaEvent.make()
  const processed = yield* CudaEvent.make({ timing: true })
  const downloaded = yield* CudaEvent.make({ blocking: true })
  for (let round = 0; round < 2; round++) {
    yield* Effect.scoped(Effect.gen(function*() {
      const source = yield* CudaMemory.allocate(chunk)
      const target = yield* CudaMemory.allocate(chunk)
      input.bytes.fill(round + 1)
      yield* CudaMemory.copy(source, input, up)
      yield* CudaEvent.record(uploaded, up)
      yield* CudaStream.waitEvent(work, uploaded)
      yield* CudaMemory.copy(target, source, work)
      yield* CudaEvent.record(processed, work)
      yield* CudaStream.waitStream(down, work)
      yield* CudaMemory.copy(output, target, down)
      yield* CudaEvent.record(downloaded, down)
      yield* CudaEvent.synchronize(downloaded)
      assert.isTrue(output.bytes.every((byte) => byte === round + 1))
    }))
  }
  const array = new Uint8Array(chunk)
  const buffer = yield* CudaMemory.allocate(chunk)
  yield* CudaMemory.upload(buffer, array.fill(9), up)
  yield* CudaStream.withStream(CudaMemory.fill(CudaMemory.slice(buffer, 0, 16), 7), up)
  yield* CudaMemory.download(array, buffer, up)
  assert.deepStrictEqual([array[0], array[16]], [7, 9])
  yield* CudaStream.synchronize(down)
})

/** Ends pending work a little after it was enqueued, as a GPU would. */
const gpu = Effect.forever(Effect.andThen(pause(0), Effect.sync(() => stub.finishAll())))

/** Runs the pipeline and interrupts it; returns how many operations it came to. */
const runInterrupted = (k: number, moment: (typeof moments)[number]) =>
  Effect.gen(function*() {
    stub.reset()
    stub.pending = "copies"
    const reached = yield* Deferred.make<void>()
    const { count, step } = interruptionAt(k, moment, reached)
    const program = Effect.gen(function*() {
      const runtime = yield* CudaRuntime
      const instrumented = Layer.succeed(CudaRuntime, instrument(runtime, step))
      const fiber = yield* Effect.forkChild(Effect.scoped(Effect.provide(pipeline, instrumented)))
      yield* Effect.race(Deferred.await(reached), Fiber.await(fiber))
      yield* Fiber.interrupt(fiber)
      const held = yield* runtime.liveResources
      assert.deepStrictEqual(
        { ...held, streams: 0 },
        {
          streams: 0,
          events: 0,
          deviceBuffers: 0,
          deviceBytes: 0,
          hostBuffers: 0,
          hostBytes: 0,
          modules: 0,
          pools: 0,
          waits: 0
        }
      )
      // The pooled stream lives as long as the runtime.
      assert.isAtMost(held.streams, 1)
    })
    const device = yield* Effect.forkChild(gpu)
    yield* Effect.provide(program, stubLayer(stub))
    yield* Fiber.interrupt(device)
    assertReleased(stub)
    return count()
  })

/** The operations of the whole pipeline. */
const countOperations = runInterrupted(Number.POSITIVE_INFINITY, "before")

describe("a pipeline", () => {
  it.live("that is left alone ends well, and leaves nothing", () =>
    Effect.gen(function*() {
      assert.isAbove(yield* countOperations, 40)
      yield* assertQuiet(stub)
    }))

  for (const moment of moments) {
    it.live(`interrupted ${moment} each of its operations leaves nothing`, () =>
      Effect.gen(function*() {
        const operations = yield* countOperations
        for (let k = 1; k <= operations; k++) {
          const reached = yield* Effect.onError(
            runInterrupted(k, moment),
            (cause) => Effect.logError(`interrupted ${moment} operation ${k} of ${operations}`, cause)
          )
          assert.isAtLeast(reached, k, "the operation was never reached")
        }
        yield* assertQuiet(stub)
      }))
  }

  it.live("interrupted after any number of turns of the event loop leaves nothing", () =>
    Effect.gen(function*() {
      for (let turns = 0; turns < 40; turns++) {
        stub.reset()
        stub.pending = "copies"
        const device = yield* Effect.forkChild(gpu)
        const fiber = yield* Effect.forkChild(Effect.provide(Effect.scoped(pipeline), stubLayer(stub)))
        for (let turn = 0; turn < turns; turn++) yield* nextTurn
        yield* Fiber.interrupt(fiber)
        yield* Fiber.interrupt(device)
        assertReleased(stub)
      }
      // What is still in a thread of the pool is a `cuInit` whose caller was interrupted.
      yield* pause(20)
      yield* assertQuiet(stub)
    }))
})

const nextTurn = Effect.callback<void>((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})
