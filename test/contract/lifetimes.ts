/**
 * Lifetimes: releases while work is in flight, handles used after release or with the wrong runtime, and early runtime shutdown.
 */
import { assert, describe, it, layer } from "@effect/vitest"
import { CudaEvent, CudaMemory, CudaRuntime, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

export const lifetimeContract = (rig: Rig): void => {
  layer(rig.layer, { excludeTestServices: true })("lifetimes", (it) => {
    it.effect("a stream's release waits for its work", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const host = yield* CudaMemory.allocateHost(64)
        host.bytes.fill(0)
        yield* Effect.scoped(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const device = yield* CudaMemory.allocate(64)
          yield* busy.enqueue(stream, 30)
          yield* CudaMemory.fill(device, 3, stream)
          yield* CudaMemory.copy(host, device, stream)
        }))
        assert.isTrue(host.bytes.every((byte) => byte === 3))
      })))

    it.effect("a buffer's release returns at once, and its memory lives until its work is done", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const target = yield* CudaMemory.allocateHost(1 << 20)
        yield* Effect.scoped(Effect.gen(function*() {
          const source = yield* CudaMemory.allocateHost(1 << 20)
          const device = yield* CudaMemory.allocate(1 << 20)
          source.bytes.fill(5)
          yield* busy.enqueue(stream, 40)
          yield* CudaMemory.copy(device, source, stream)
          yield* CudaMemory.copy(target, device, stream)
        }))
        assert.isFalse(yield* CudaStream.query(stream))
        yield* Effect.scoped(Effect.gen(function*() {
          for (let round = 0; round < 8; round++) {
            yield* CudaMemory.fill(yield* CudaMemory.allocate(1 << 20), 9)
            const host = yield* CudaMemory.allocateHost(1 << 20)
            host.bytes.fill(9)
          }
        }))
        yield* CudaStream.synchronize(stream)
        assert.isTrue(target.bytes.every((byte) => byte === 5))
      })))

    it.effect("a released resource rejects every use", () =>
      leavesNothing(Effect.gen(function*() {
        const gone = yield* Effect.scoped(everything)
        const live = yield* everything
        yield* Effect.forEach(uses(gone, live), (use) => failsWith(use, "ResourceReleased"))
        yield* Effect.forEach(uses(live, live), (use) => use)
      })))

    it.effect("resources of another runtime are rejected", () =>
      leavesNothing(Effect.gen(function*() {
        const own = yield* everything
        const context = yield* Layer.build(Layer.fresh(rig.layer))
        const foreign = yield* Effect.provideContext(everything, context)
        const mixed = [
          CudaEvent.record(own.event, foreign.stream),
          CudaStream.waitEvent(own.stream, foreign.event),
          CudaStream.waitStream(own.stream, foreign.stream),
          CudaMemory.copy(own.device, foreign.host),
          CudaMemory.copy(foreign.device, own.host, foreign.stream),
          CudaMemory.fill(own.device, 0, foreign.stream),
          CudaEvent.elapsedTime(own.timed, foreign.timed)
        ]
        yield* Effect.forEach(mixed, (use) => failsWith(use, "ForeignResource"))
      })))

    it.effect("interruption at any point leaves nothing behind", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        for (let millis = 0; millis < 12; millis++) {
          const work = Effect.gen(function*() {
            const { device, event, host, stream } = yield* everything
            yield* busy.enqueue(stream, 2)
            yield* CudaMemory.copy(device, host, stream)
            yield* CudaEvent.record(event, stream)
            yield* CudaEvent.synchronize(event)
            yield* CudaMemory.download(new Uint8Array(64), device, stream)
            yield* Effect.sleep(4)
          })
          yield* leavesNothing(Effect.ignore(Effect.timeout(Effect.scoped(work), millis)))
        }
      })))
  })

  describe("the runtime", () => {
    it.live("releases remaining resources, and rejects later calls", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const context = yield* Scope.provide(Layer.build(Layer.fresh(rig.layer)), scope)
        const runtime = Context.get(context, CudaRuntime.CudaRuntime)
        const leaked = yield* Scope.make()
        const left = yield* Scope.provide(Effect.provideContext(everything, context), leaked)
        const wrapped = yield* Effect.provideContext(CudaStream.fromHandle(left.stream.handle), context)
        yield* Context.get(context, Busy).enqueue(left.stream, 30)
        yield* CudaMemory.fill(left.device, 1, left.stream)
        yield* CudaEvent.record(left.event, left.stream)
        const waiting = yield* Effect.forkChild(Effect.exit(CudaEvent.synchronize(left.event)), {
          startImmediately: true
        })
        yield* Scope.close(scope, Exit.void)
        assert.isTrue(Exit.isSuccess(yield* Fiber.join(waiting)))
        const live = yield* runtime.liveResources
        assert.isTrue(Object.values(live).every((count) => count === 0), JSON.stringify(live))
        yield* Effect.forEach(uses(left, left), (use) => failsWith(use, "ResourceReleased"))
        yield* Effect.forEach(uses({ ...left, stream: wrapped }, left), (use) => failsWith(use, "ResourceReleased"))
        yield* failsWith(runtime.eventCreate(0, 2), "ResourceReleased")
        yield* failsWith(runtime.hostAllocate(64), "ResourceReleased")
        yield* Scope.close(leaked, Exit.void)
      }))

    it.live("released while opening a device and pinning memory, finishes those first", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const context = yield* Scope.provide(Layer.build(Layer.fresh(rig.layer)), scope)
        const runtime = Context.get(context, CudaRuntime.CudaRuntime)
        const begun: ReadonlyArray<Effect.Effect<unknown, CudaError>> = [
          runtime.streamCreate({ deviceIndex: 0, priority: "low", nonBlocking: true }),
          runtime.hostAllocate(1 << 26)
        ]
        const fibers = yield* Effect.forEach(
          begun,
          (use) => Effect.forkChild(Effect.exit(use), { startImmediately: true })
        )
        yield* Scope.close(scope, Exit.void)
        const exits = yield* Effect.forEach(fibers, Fiber.join)
        for (const exit of exits) {
          if (Exit.isFailure(exit)) assert.include(Cause.pretty(exit.cause), "was released")
        }
        const live = yield* runtime.liveResources
        assert.isTrue(Object.values(live).every((count) => count === 0), JSON.stringify(live))
      }))

    it.live("can be created and released many times", () =>
      Effect.forEach(
        Array.from({ length: 5 }),
        () =>
          Effect.scoped(Effect.flatMap(Layer.build(Layer.fresh(rig.layer)), (context) =>
            Effect.provideContext(Effect.andThen(everything, Effect.void), context))),
        { discard: true }
      ))
  })
}

interface Everything {
  readonly stream: CudaStream.CudaStream
  readonly event: CudaEvent.CudaEvent
  readonly timed: CudaEvent.TimedEvent
  readonly device: CudaMemory.DeviceBuffer
  readonly host: CudaMemory.HostBuffer
}

/** One of each resource, each used. */
const everything = Effect.gen(function*() {
  const made: Everything = {
    stream: yield* CudaStream.make(),
    event: yield* CudaEvent.make(),
    timed: yield* CudaEvent.make({ timing: true }),
    device: yield* CudaMemory.allocate(64),
    host: yield* CudaMemory.allocateHost(64)
  }
  yield* CudaMemory.copy(made.device, made.host, made.stream)
  yield* CudaEvent.record(made.timed, made.stream)
  yield* CudaStream.synchronize(made.stream)
  return made
})

/** Every operation, mixing resources of `own` and `other`. */
const uses = (own: Everything, other: Everything): ReadonlyArray<Effect.Effect<unknown, CudaError>> => [
  CudaStream.query(own.stream),
  CudaStream.synchronize(own.stream),
  CudaStream.waitEvent(own.stream, other.event),
  CudaStream.waitEvent(other.stream, own.event),
  CudaStream.waitStream(own.stream, other.stream),
  CudaStream.waitStream(other.stream, own.stream),
  CudaStream.recordEvent(own.stream, other.event),
  CudaEvent.record(own.event, other.stream),
  CudaEvent.query(own.event),
  CudaEvent.synchronize(own.event),
  CudaEvent.wait(own.event, other.stream),
  CudaEvent.elapsedTime(own.timed, other.timed),
  CudaEvent.elapsedTime(other.timed, own.timed),
  CudaMemory.copy(own.device, other.host, other.stream),
  CudaMemory.copy(other.device, own.host, other.stream),
  CudaMemory.copy(other.host, own.device, other.stream),
  CudaMemory.copy(other.device, other.host, own.stream),
  CudaMemory.fill(own.device, 1, other.stream),
  CudaMemory.fill(other.device, 1, own.stream),
  CudaMemory.upload(own.device, new Uint8Array(64), other.stream),
  CudaMemory.download(new Uint8Array(64), own.device, other.stream)
]
