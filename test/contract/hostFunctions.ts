/**
 * Host functions: effects that run when a stream reaches a point.
 */
import { assert, layer } from "@effect/vitest"
import { CudaMemory, CudaStream } from "effect-cuda"
import { unchecked } from "effect-cuda/CheckedRuntime"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

export const hostFunctionContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("host functions", (it) => {
    const busy = Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const { enqueue } = yield* Busy
      return { stream, work: (millis: number) => enqueue(stream, millis) }
    })

    it.effect("run after the work enqueued before them, and return their result", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        const device = yield* CudaMemory.allocate(64)
        const host = yield* CudaMemory.allocateHost(64)
        host.bytes.fill(0)
        yield* work(100)
        yield* CudaMemory.fill(device, 8, stream)
        yield* CudaMemory.copy(host, device, stream)
        const fiber = yield* CudaStream.launchHostFunction(stream, Effect.sync(() => host.bytes[63]))
        assert.strictEqual(yield* unchecked(Effect.sync(() => host.bytes[63])), 0)
        assert.strictEqual(yield* Fiber.join(fiber), 8)
      })))

    it.effect("block neither the stream nor the launching fiber", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        yield* work(5)
        const fiber = yield* stream.pipe(CudaStream.launchHostFunction(Effect.never))
        yield* CudaStream.synchronize(stream)
        yield* Fiber.interrupt(fiber)
      })))

    it.effect("may use and wait for the stream they were launched on", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        const device = yield* CudaMemory.allocate(64)
        yield* work(5)
        const bytes = new Uint8Array(64)
        const again = Effect.gen(function*() {
          yield* CudaMemory.fill(device, 3, stream)
          yield* CudaMemory.download(bytes, device, stream)
          yield* CudaStream.synchronize(stream)
        })
        yield* Effect.flatMap(CudaStream.launchHostFunction(stream, again), Fiber.join)
        assert.strictEqual(bytes[63], 3)
      })))

    it.effect("of one stream start in order", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        const order: Array<number> = []
        const fibers: Array<Fiber.Fiber<unknown, unknown>> = []
        for (let index = 0; index < 50; index++) {
          yield* work(0.1)
          fibers.push(yield* CudaStream.launchHostFunction(stream, Effect.sync(() => order.push(index))))
        }
        for (const fiber of fibers) yield* Fiber.join(fiber)
        assert.deepStrictEqual(order, Array.from({ length: 50 }, (_, index) => index))
      })))

    it.effect("are awaited by a scope that succeeds, and interrupted by one that fails", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        const ended: Array<string> = []
        const launch = (name: string) =>
          Effect.andThen(
            work(50),
            CudaStream.launchHostFunction(stream, Effect.sync(() => ended.push(name)))
          )
        yield* Effect.scoped(launch("success"))
        assert.deepStrictEqual(ended, ["success"])
        yield* Effect.exit(Effect.scoped(Effect.andThen(launch("failure"), Effect.fail("no"))))
        yield* Effect.exit(Effect.scoped(Effect.andThen(launch("interruption"), Effect.interrupt)))
        yield* CudaStream.synchronize(stream)
        assert.deepStrictEqual(ended, ["success"])
      })))

    it.effect("leave nothing behind in a scope that stays open", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream } = yield* busy
        const { liveResources } = yield* CudaRuntime
        const before = yield* liveResources
        for (let index = 0; index < 200; index++) {
          yield* Effect.flatMap(CudaStream.launchHostFunction(stream, Effect.void), Fiber.join)
        }
        // What belongs to the last one is given back beside this fiber.
        yield* Effect.sleep(5)
        assert.deepStrictEqual(yield* liveResources, before)
      })))

    it.effect("propagate failures, and use the provided services", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream } = yield* busy
        const failing = yield* CudaStream.launchHostFunction(stream, Effect.fail("no" as const))
        assert.deepStrictEqual(yield* Effect.exit(Fiber.join(failing)), Exit.fail("no" as const))
        const asking = yield* CudaStream.launchHostFunction(stream, Effect.map(CudaRuntime, ({ kind }) => kind))
        assert.strictEqual(yield* Fiber.join(asking), (yield* CudaRuntime).kind)
      })))

    it.effect("are rejected on a released stream", () =>
      leavesNothing(Effect.gen(function*() {
        const own = yield* Scope.make()
        const stream = yield* Scope.provide(CudaStream.make(), own)
        yield* Scope.close(own, Exit.void)
        yield* failsWith(CudaStream.launchHostFunction(stream, Effect.void), "ResourceReleased")
      })))

    it.effect("run a hundred launched behind the same work", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        const all = yield* Deferred.make<void>()
        let count = 0
        yield* work(5)
        const one = Effect.suspend(() => ++count === 100 ? Deferred.succeed(all, undefined) : Effect.void)
        for (let index = 0; index < 100; index++) yield* CudaStream.launchHostFunction(stream, one)
        yield* Deferred.await(all)
      })))
  })
