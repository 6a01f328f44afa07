/**
 * Captures of profilers: they change nothing about the work, and nothing remains of them.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaGraph, CudaMemory, CudaProfiler, CudaRuntime, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import type { Rig } from "../support/Rig.ts"

export const profilerContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("profilers", (it) => {
    /** Fills memory and reads it back. */
    const work = Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const device = yield* CudaMemory.allocate(64)
      yield* CudaMemory.fill(device, 7, stream)
      const bytes = new Uint8Array(64)
      yield* CudaMemory.download(bytes, device, stream)
      return bytes[63]
    })

    it.effect("collect while an effect runs, on any device", () =>
      Effect.gen(function*() {
        for (const device of yield* CudaDevice.all) {
          const captured = CudaProfiler.capture(Effect.scoped(work)).pipe(CudaDevice.withDevice(device))
          assert.strictEqual(yield* captured, 7)
        }
      }).pipe(leavesNothing))

    it.effect("collect in captures that nest, overlap, fail and are interrupted", () =>
      Effect.gen(function*() {
        assert.strictEqual(yield* CudaProfiler.capture(CudaProfiler.capture(work)), 7)
        const fiber = yield* Effect.forkChild(CudaProfiler.capture(Effect.never), { startImmediately: true })
        assert.strictEqual(yield* Effect.flip(CudaProfiler.capture(Effect.fail("no"))), "no")
        yield* Fiber.interrupt(fiber)
        assert.strictEqual(yield* CudaProfiler.capture(work), 7)
      }).pipe(leavesNothing))

    it.effect("may be started and stopped twice", () =>
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime.CudaRuntime
        for (const call of [runtime.profilerStart, runtime.profilerStart, runtime.profilerStop, runtime.profilerStop]) {
          yield* call(0)
        }
      }))

    it.effect("do not become part of a recording", () =>
      Effect.gen(function*() {
        const device = yield* CudaMemory.allocate(64)
        const graph = yield* CudaGraph.record(CudaProfiler.capture(CudaMemory.fill(device, 7)))
        assert.strictEqual(graph.nodes.length, 1)
      }).pipe(leavesNothing))

    it.effect("are refused for what is no device", () =>
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime.CudaRuntime
        for (const wrong of [-1, rig.deviceCount, 0.5, Number.NaN]) {
          yield* refuses(runtime.profilerStart(wrong), "device")
          yield* refuses(runtime.profilerStop(wrong), "device")
        }
        yield* failsWith(CudaProfiler.capture(Effect.void).pipe(CudaDevice.withDevice(-1)), "InvalidArgument")
      }))
  })
