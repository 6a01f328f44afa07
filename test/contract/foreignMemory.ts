/**
 * The contract of memory by address: a buffer of memory that this runtime did not allocate, and what is known of an address.
 */
import { assert, layer } from "@effect/vitest"
import { CudaEvent, CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
import { unchecked } from "effect-cuda/CheckedRuntime"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const size = 64

const bytesOf = (buffer: DeviceBuffer, stream: CudaStream.CudaStream) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(buffer.byteLength)
    return Effect.as(CudaMemory.download(bytes, buffer, stream), bytes)
  })

/** Memory of an owner, as other code would have it: only its address. */
const withOwner = <A, E, R>(
  body: (owner: DeviceBuffer, stream: CudaStream.CudaStream) => Effect.Effect<A, E, R>
) =>
  leavesNothing(Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const owner = yield* CudaMemory.allocate(size)
    yield* CudaMemory.fill(owner, 1, stream)
    yield* CudaStream.synchronize(stream)
    return yield* Effect.scoped(body(owner, stream))
  }))

class Freed extends Context.Service<Freed, Array<string>>()("effect-cuda/test/Freed") {}

export const foreignMemoryContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("memory by address", (it) => {
    it.effect("is a buffer that every operation takes", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const whole = yield* CudaMemory.fromAddress(owner.address, size)
          const part = yield* CudaMemory.fromAddress(BigInt(owner.address + 16), 8)
          assert.deepStrictEqual(
            [whole.kind, whole.address, whole.byteLength, whole.deviceIndex, whole.isOrdered, whole.isManaged],
            ["device", owner.address, size, 0, false, false]
          )
          const host = yield* CudaMemory.allocateHost(8)
          host.bytes.fill(3)
          yield* CudaMemory.copy(part, host, stream)
          yield* CudaMemory.fill16(CudaMemory.slice(part, 4, 2), 0x0504, stream)
          yield* CudaMemory.fill32(CudaMemory.slice(whole, 60), 0x09080706, stream)
          const expected = new Uint8Array(size).fill(1).fill(3, 16, 24)
          expected.set([4, 5], 20)
          expected.set([6, 7, 8, 9], 60)
          for (const buffer of [owner, whole]) assert.deepStrictEqual(yield* bytesOf(buffer, stream), expected)
          assert.deepStrictEqual(yield* bytesOf(part, stream), expected.subarray(16, 24))
          yield* CudaMemory.upload(part, new Uint8Array(8).fill(2), stream)
          assert.deepStrictEqual(yield* bytesOf(owner, stream), expected.fill(2, 16, 24))
        })
      ))

    it.effect("counts as a buffer until its scope closes, and can then not be used", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const runtime = yield* CudaRuntime
          const before = yield* runtime.liveResources
          const scope = yield* Scope.make()
          const buffer = yield* Scope.provide(CudaMemory.fromAddress(owner.address, size), scope)
          const held = yield* runtime.liveResources
          assert.deepStrictEqual(held, {
            ...before,
            deviceBuffers: before.deviceBuffers + 1,
            deviceBytes: before.deviceBytes + size
          })
          const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaMemory.fill(buffer, 4)))
          yield* CudaGraph.launch(exec, stream)
          yield* Scope.close(scope, Exit.void)
          yield* failsWith(CudaMemory.fill(buffer, 2, stream), "ResourceReleased")
          yield* failsWith(CudaGraph.launch(exec, stream), "ResourceReleased")
          assert.deepStrictEqual(yield* bytesOf(owner, stream), new Uint8Array(size).fill(4))
        })
      ))

    it.effect("is given back once the work that uses it is done", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const [other, done] = [yield* CudaStream.make(), yield* CudaEvent.make()]
          const seen: Array<unknown> = []
          const release = Effect.gen(function*() {
            seen.push(...(yield* Freed), yield* Effect.orDie(CudaEvent.query(done)))
            seen.push(yield* Effect.orDie(CudaStream.query(other)))
          })
          const using = Effect.gen(function*() {
            const buffer = yield* CudaMemory.fromAddress(owner.address, size, { release })
            yield* CudaMemory.fill(buffer, 5, other)
            yield* (yield* Busy).enqueue(stream, 30)
            yield* unchecked(CudaMemory.fill(buffer, 6, stream))
            yield* CudaEvent.record(done, stream)
            assert.isFalse(yield* CudaEvent.query(done))
            assert.lengthOf(seen, 0)
          })
          yield* Effect.scoped(using).pipe(Effect.provideService(Freed, ["context"]))
          assert.deepStrictEqual(seen, ["context", true, true])
          assert.deepStrictEqual(yield* bytesOf(owner, stream), new Uint8Array(size).fill(6))
        })
      ))

    it.effect("is given back however the scope ends, and not if there was no buffer", () =>
      withOwner((owner) =>
        Effect.gen(function*() {
          let released = 0
          const release = Effect.sync(() => void released++)
          const make = CudaMemory.fromAddress(owner.address, size, { release })
          yield* Effect.exit(Effect.scoped(Effect.andThen(make, Effect.fail("no"))))
          assert.strictEqual(released, 1)
          const reached = yield* Deferred.make<void>()
          const endless = Effect.andThen(make, Effect.andThen(Deferred.succeed(reached, undefined), Effect.never))
          const fiber = yield* started(Effect.scoped(endless))
          yield* Deferred.await(reached)
          yield* Fiber.interrupt(fiber)
          assert.strictEqual(released, 2)
          yield* refuses(Effect.scoped(CudaMemory.fromAddress(owner.address, 0, { release })), "byteLength")
          assert.strictEqual(released, 2)
        })
      ))

    it.effect("can be ordered", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const other = yield* CudaStream.make()
          const explicit = yield* CudaMemory.fromAddress(owner.address, size, { ordered: true })
          const region = yield* CudaMemory.fromAddress(owner.address, size).pipe(CudaMemory.withOrdering())
          for (const [value, buffer] of [[7, explicit], [8, region]] as const) {
            assert.isTrue(buffer.isOrdered)
            yield* (yield* Busy).enqueue(stream, 20)
            yield* CudaMemory.fill(buffer, value, stream)
            assert.deepStrictEqual(yield* bytesOf(buffer, other), new Uint8Array(size).fill(value))
          }
        })
      ))

    it.effect("refuses what is no device memory", () =>
      withOwner((owner) =>
        Effect.gen(function*() {
          const host = yield* CudaMemory.allocateHost(size)
          for (const wrong of [0, -1, 0.5, Number.NaN, 2 ** 53, -1n, 2n ** 60n, 4096, host.address]) {
            yield* refuses(CudaMemory.fromAddress(wrong, 8), "address")
          }
          for (const wrong of [0, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
            yield* refuses(CudaMemory.fromAddress(owner.address, wrong), "byteLength")
          }
          const managed = yield* CudaMemory.allocateManaged(size)
          yield* refuses(CudaMemory.fromAddress(managed.address, 2 ** 40), "byteLength")
          yield* refuses(CudaMemory.fromAddress(owner.address, size, { device: 99 }), "device")
        })
      ))

    it.effect("that is managed becomes a buffer of the given device", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const managed = yield* CudaMemory.allocateManaged(size)
        const buffer = yield* CudaMemory.fromAddress(managed.address, size)
        assert.deepStrictEqual([buffer.isManaged, CudaMemory.isManagedBuffer(buffer)], [false, false])
        yield* CudaMemory.fill(buffer, 3, stream)
        yield* CudaStream.synchronize(stream)
        assert.strictEqual(managed.bytes[size - 1], 3)
      })))

    it.effect.skipIf(rig.deviceCount < 2)(
      "refuses memory of another device",
      () =>
        withOwner((owner) => failsWith(CudaMemory.fromAddress(owner.address, size, { device: 1 }), "DeviceMismatch"))
    )

    it.effect("may begin anywhere, but wide fills need aligned addresses", () =>
      withOwner((owner, stream) =>
        Effect.gen(function*() {
          const odd = yield* CudaMemory.fromAddress(owner.address + 1, 8)
          yield* CudaMemory.fill(odd, 2, stream)
          yield* refuses(CudaMemory.fill16(odd, 2, stream), "destination")
          yield* refuses(CudaMemory.fill32(odd, 2, stream), "destination")
          assert.deepStrictEqual(yield* bytesOf(odd, stream), new Uint8Array(8).fill(2))
        })
      ))

    it.effect("is described by what the driver knows of it", () =>
      withOwner((owner) =>
        Effect.gen(function*() {
          const [managed, host] = [yield* CudaMemory.allocateManaged(size), yield* CudaMemory.allocateHost(size)]
          const known = (address: number | bigint) => CudaMemory.pointerAttributes(address)
          for (
            const [buffer, kind, isManaged] of [[owner, "device", false], [managed, "device", true], [
              host,
              "host",
              false
            ]] as const
          ) {
            for (const address of [buffer.address, BigInt(buffer.address + size - 1)]) {
              const found = yield* known(address)
              assert.deepStrictEqual([found?.kind, found?.isManaged, found?.deviceIndex], [kind, isManaged, 0])
              const { range } = found!
              if (range === undefined) continue
              assert.isAtMost(range.address, buffer.address)
              assert.isAtLeast(range.address + range.byteLength, buffer.address + size)
            }
          }
          assert.isDefined((yield* known(managed.address))!.range)
          assert.isUndefined(yield* known(4096))
          yield* refuses(known(0), "address")
          yield* refuses(known(2n ** 60n), "address")
        })
      ))
  })
