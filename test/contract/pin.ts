/**
 * The contract of pinned memory that the program brings.
 */
import { assert, layer } from "@effect/vitest"
import { CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { giveAway } from "../support/giveAway.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const segment = 16 * 1024 * 1024

const patternOf = (bytes: Uint8Array, from = 0) => {
  for (let index = 0; index < bytes.length; index++) bytes[index] = (index * 7 + (index >> 12) + from) & 0xff
  return bytes
}

const same = (one: Uint8Array, other: Uint8Array) => Buffer.compare(one, other) === 0

export const pinContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("pinned memory of the program", (it) => {
    it.effect("is the memory itself, for an array, a part of one and a whole buffer", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const numbers = new Float32Array(64 * 1024)
        const part = new Uint8Array(new ArrayBuffer(100_000), 1001, 5003)
        const whole = new ArrayBuffer(40_000)
        const view = new DataView(new ArrayBuffer(20_000), 8)
        for (const memory of [numbers, part, whole, view]) {
          const bytes = ArrayBuffer.isView(memory)
            ? new Uint8Array(memory.buffer, memory.byteOffset, memory.byteLength)
            : new Uint8Array(memory)
          patternOf(bytes, 3)
          const expected = bytes.slice()
          const host = yield* CudaMemory.pin(memory)
          assert.deepStrictEqual([host.kind, host.byteLength, host.isOrdered], ["host", bytes.byteLength, false])
          assert.strictEqual(host.bytes.buffer, bytes.buffer)
          const device = yield* CudaMemory.allocate(bytes.byteLength)
          yield* CudaMemory.copy(device, host, stream)
          yield* CudaStream.synchronize(stream)
          bytes.fill(0)
          yield* CudaMemory.copy(host, device, stream)
          yield* CudaStream.synchronize(stream)
          assert.isTrue(same(bytes, expected))
        }
      })))

    it.effect(
      "may begin and end anywhere, and copies cross what is pinned at once",
      () =>
        leavesNothing(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const bytes = patternOf(new Uint8Array(new ArrayBuffer(2 * segment + 9000), 4097, 2 * segment + 4000))
          const host = yield* CudaMemory.pin(bytes)
          const device = yield* CudaMemory.allocate(bytes.byteLength)
          const back = new Uint8Array(bytes.byteLength)
          yield* CudaMemory.copy(device, host, stream)
          yield* CudaMemory.download(back, device, stream)
          assert.isTrue(same(back, bytes))
          for (const offset of [segment - 5000, segment - 1, 2 * segment - 4098]) {
            yield* CudaMemory.fill(device, 1, stream)
            yield* CudaMemory.copy(
              CudaMemory.slice(device, offset, 6000),
              CudaMemory.slice(host, offset, 6000),
              stream
            )
            yield* CudaMemory.download(back, device, stream)
            assert.isTrue(same(back.subarray(offset, offset + 6000), bytes.subarray(offset, offset + 6000)))
            assert.deepStrictEqual([back[offset - 1], back[offset + 6000]], [1, 1])
          }
          const width = 3 * 1024 * 1024
          yield* CudaMemory.copy2D(device, CudaMemory.rows(host, 4 * 1024 * 1024), { width, height: 8 }, stream)
          yield* CudaMemory.download(back, device, stream)
          for (let row = 0; row < 8; row++) {
            const [to, from] = [row * width, row * 4 * 1024 * 1024]
            assert.isTrue(same(back.subarray(to, to + width), bytes.subarray(from, from + width)), `row ${row}`)
          }
          const graph = yield* CudaGraph.record(CudaMemory.copy(device, host))
          yield* CudaMemory.fill(device, 1, stream)
          yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), stream)
          yield* CudaMemory.download(back, device, stream)
          assert.isTrue(same(back, bytes))
        })),
      60_000
    )

    it.effect("is a buffer until its scope closes, and the array goes on", () =>
      leavesNothing(Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(4096)
        const array = patternOf(new Uint8Array(4096))
        const before = yield* runtime.liveResources
        const host = yield* Effect.scoped(Effect.gen(function*() {
          const host = yield* CudaMemory.pin(array)
          const { hostBuffers, hostBytes } = yield* runtime.liveResources
          assert.deepStrictEqual([hostBuffers, hostBytes], [before.hostBuffers + 1, before.hostBytes + 4096])
          yield* (yield* Busy).enqueue(stream, 20)
          yield* CudaMemory.fill(device, 9, stream)
          yield* CudaMemory.copy(host, device, stream)
          return host
        }))
        assert.deepStrictEqual([host.bytes.byteLength, array.byteLength], [0, 4096])
        yield* failsWith(CudaMemory.copy(device, host, stream), "ResourceReleased")
        yield* CudaStream.synchronize(stream)
        assert.deepStrictEqual(array, new Uint8Array(4096).fill(9))
      })))

    it.effect("can be pinned again at once, in part, and while it is pinned", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(64)
        const array = patternOf(new Uint8Array(100_000))
        const back = new Uint8Array(64)
        const through = (memory: Uint8Array) =>
          Effect.gen(function*() {
            const host = yield* CudaMemory.pin(memory)
            yield* CudaMemory.copy(device, CudaMemory.slice(host, 1000, 64), stream)
            yield* CudaMemory.download(back, device, stream)
            assert.isTrue(same(back, memory.subarray(1000, 1064)))
          })
        yield* (yield* Busy).enqueue(stream, 20)
        for (let round = 0; round < 3; round++) yield* Effect.scoped(through(array))
        yield* Effect.scoped(through(array.subarray(5000, 9000)))
        yield* Effect.scoped(Effect.gen(function*() {
          yield* through(array)
          yield* Effect.scoped(through(array))
          yield* through(array.subarray(20_000))
        }))
      })))

    it.effect("can be ordered", () =>
      leavesNothing(Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const array = new Uint8Array(64 * 1024)
        const [host, device] = [
          yield* CudaMemory.pin(array, { ordered: true }),
          yield* CudaMemory.allocate(array.byteLength)
        ]
        yield* CudaMemory.fill(device, 6, one)
        yield* (yield* Busy).enqueue(one, 20)
        yield* CudaMemory.copy(host, device, one)
        yield* CudaMemory.copy(device, host, other)
        yield* CudaMemory.synchronize(host)
        assert.strictEqual(array.at(-1), 6)
      })))

    it.effect("is released however the scope ends", () =>
      leavesNothing(Effect.gen(function*() {
        const array = new Uint8Array(64 * 1024)
        yield* Effect.exit(Effect.scoped(Effect.andThen(CudaMemory.pin(array), Effect.fail("no"))))
        const reached = yield* Deferred.make<void>()
        const endless = Effect.andThen(
          CudaMemory.pin(array),
          Effect.andThen(Deferred.succeed(reached, undefined), Effect.never)
        )
        const fiber = yield* started(Effect.scoped(endless))
        yield* Deferred.await(reached)
        yield* Fiber.interrupt(fiber)
        const large = yield* Effect.forkChild(Effect.scoped(CudaMemory.pin(new Uint8Array(3 * segment))), {
          startImmediately: true
        })
        yield* Fiber.interrupt(large)
      })))

    it.effect("that was transferred is refused, before it is pinned and after", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(4096)
        const gone = new ArrayBuffer(4096)
        const view = new Float32Array(gone)
        giveAway(gone)
        yield* refuses(CudaMemory.pin(gone), "memory")
        yield* refuses(CudaMemory.pin(view), "memory")
        const array = new Uint8Array(4096)
        const host = yield* CudaMemory.pin(array)
        giveAway(array.buffer)
        yield* refuses(CudaMemory.copy(device, host, stream), "buffer")
      })))

    it.effect("must be memory that stays as it is", () =>
      leavesNothing(Effect.gen(function*() {
        const resizable: ArrayBuffer = Reflect.construct(ArrayBuffer, [4096, { maxByteLength: 8192 }])
        const wrong = [
          resizable,
          new Uint8Array(resizable),
          new SharedArrayBuffer(4096) as never,
          new Uint8Array(new SharedArrayBuffer(4096)),
          new ArrayBuffer(0),
          new Uint8Array(0)
        ]
        for (const memory of wrong) yield* refuses(CudaMemory.pin(memory), "memory")
      })))

    it.effect("that was pinned for an overlapping part only is refused", () =>
      leavesNothing(Effect.gen(function*() {
        const array = new Uint8Array(100_000)
        yield* CudaMemory.pin(array.subarray(0, 50_000))
        yield* failsWith(CudaMemory.pin(array), "HostMemoryAlreadyRegistered")
      })))

    it.effect("that the runtime allocated is refused", () =>
      leavesNothing(Effect.gen(function*() {
        const host = yield* CudaMemory.allocateHost(100_000)
        yield* failsWith(CudaMemory.pin(host.bytes), "HostMemoryAlreadyRegistered")
        yield* failsWith(CudaMemory.pin(host.bytes.subarray(4096, 8192)), "HostMemoryAlreadyRegistered")
      })))

    it.effect("may share pages with other pinned memory", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const array = patternOf(new Uint8Array(12_000))
        const device = yield* CudaMemory.allocate(12_000)
        for (const [from, to] of [[0, 5000], [5000, 5100], [5100, 12_000]] as const) {
          const host = yield* CudaMemory.pin(array.subarray(from, to))
          yield* CudaMemory.copy(CudaMemory.slice(device, from, to - from), host, stream)
        }
        const back = new Uint8Array(12_000)
        yield* CudaMemory.download(back, device, stream)
        assert.isTrue(same(back, array))
      })))

    it.effect("cannot be part of a recording", () =>
      leavesNothing(Effect.gen(function*() {
        const array = new Uint8Array(64 * 1024)
        yield* failsWith(CudaGraph.record(CudaMemory.pin(array)), "CannotRecord")
      })))

    it.effect("is known to the driver as memory of the host", () =>
      leavesNothing(Effect.gen(function*() {
        const host = yield* CudaMemory.pin(new Uint8Array(64 * 1024))
        assert.strictEqual((yield* CudaMemory.pointerAttributes(host.address))?.kind, "host")
      })))
  })
