/**
 * Memory pools and stream-ordered memory.
 */
import { assert, layer } from "@effect/vitest"
import { CudaBranch, CudaDevice, CudaMemory, CudaMemoryPool, CudaStream } from "effect-cuda"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const mebi = 2 ** 20

export const memoryPoolContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("memory pools", (it) => {
    it.effect("report reserved and used bytes", () =>
      leavesNothing(Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        const nothing = { reservedBytes: 0, reservedHighWater: 0, usedBytes: 0, usedHighWater: 0 }
        assert.deepStrictEqual(yield* CudaMemoryPool.statistics(pool), nothing)
        yield* Effect.scoped(CudaMemory.allocate(32 * mebi, { pool }))
        yield* CudaMemoryPool.trim(pool, { keepBytes: 64 * mebi })
        const after = yield* CudaMemoryPool.statistics(pool)
        assert.strictEqual(after.usedBytes, 0)
        assert.strictEqual(after.usedHighWater, 32 * mebi)
        assert.isAtLeast(after.reservedBytes, 32 * mebi)
        yield* CudaMemoryPool.trim(pool)
        assert.strictEqual((yield* CudaMemoryPool.statistics(pool)).reservedBytes, 0)
        yield* CudaMemoryPool.resetHighWater(pool)
        assert.deepStrictEqual(yield* CudaMemoryPool.statistics(pool), nothing)
      })))

    it.effect("limit allocations until memory is released", () =>
      leavesNothing(Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make({ maxBytes: 64 * mebi })
        const allocate = CudaMemory.allocate(48 * mebi, { pool })
        yield* Effect.scoped(Effect.andThen(allocate, failsWith(allocate, "OutOfMemory")))
        for (let round = 0; round < 3; round++) yield* Effect.scoped(allocate)
        yield* CudaMemory.allocate(48 * mebi)
      })))

    it.effect("return unused memory beyond the release threshold", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const pool = yield* CudaMemoryPool.make()
        yield* pool.pipe(CudaMemoryPool.setReleaseThreshold(0))
        yield* Effect.scoped(Effect.flatMap(
          CudaMemory.allocate(32 * mebi, { pool }),
          (buffer) => CudaMemory.fill(buffer, 1, stream)
        ))
        yield* CudaStream.synchronize(stream)
        yield* CudaMemoryPool.trim(pool, { keepBytes: 0 })
        assert.strictEqual((yield* CudaMemoryPool.statistics(pool)).reservedBytes, 0)
      })))

    it.effect("may be released before their buffers", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const own = yield* Scope.make()
        const pool = yield* Scope.provide(CudaMemoryPool.make(), own)
        const buffer = yield* CudaMemory.allocate(mebi, { pool })
        yield* Scope.close(own, Exit.void)
        yield* CudaMemory.fill(buffer, 7, stream)
        const bytes = new Uint8Array(mebi)
        yield* CudaMemory.download(bytes, buffer, stream)
        assert.isTrue(bytes.every((byte) => byte === 7))
        yield* failsWith(CudaMemory.allocate(8, { pool }), "ResourceReleased")
        yield* failsWith(CudaMemoryPool.statistics(pool), "ResourceReleased")
        yield* failsWith(CudaMemoryPool.trim(pool), "ResourceReleased")
        yield* failsWith(CudaMemoryPool.resetHighWater(pool), "ResourceReleased")
        yield* failsWith(CudaMemoryPool.setReleaseThreshold(pool, 0), "ResourceReleased")
      })))

    it.effect("may be released while work uses their memory, again and again", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const busy = yield* Busy
        for (let round = 0; round < 12; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const pool = yield* CudaMemoryPool.make({ shareable: round % 2 === 1 })
            const buffer = yield* CudaMemory.allocate(4096, { pool })
            yield* busy.enqueue(stream, 2)
            yield* CudaMemory.fill(buffer, round, stream)
          }))
          yield* Effect.scoped(CudaMemoryPool.make())
          if (round % 4 === 3) yield* CudaStream.synchronize(stream)
        }
      })))

    it.effect("give their memory back when the device is full", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const busy = yield* Busy
        const { free } = yield* CudaDevice.memoryInfo()
        const most = Math.floor(free * 0.6)
        for (let round = 0; round < 3; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const pool = yield* CudaMemoryPool.make()
            const buffer = yield* CudaMemory.allocate(most, { pool })
            yield* busy.enqueue(stream, 20)
            yield* CudaMemory.fill(CudaMemory.slice(buffer, 0, 64), 1, stream)
          }))
          yield* Effect.scoped(CudaMemory.allocate(most))
        }
      })))

    it.effect("of the runtime are one per device, never released", () =>
      leavesNothing(Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const pool = yield* CudaMemoryPool.ofDevice()
        assert.strictEqual(pool.ref, (yield* CudaMemoryPool.ofDevice(0)).ref)
        yield* runtime.poolDestroy(pool.ref)
        const { usedBytes } = yield* CudaMemoryPool.statistics(pool)
        const buffer = yield* CudaMemory.allocate(2 * mebi, { pool })
        assert.isAtLeast((yield* CudaMemoryPool.statistics(pool)).usedBytes - usedBytes, buffer.byteLength)
        assert.isTrue(CudaMemoryPool.isMemoryPool(pool))
        assert.isFalse(CudaMemoryPool.isMemoryPool(buffer))
      })))

    it.effect("count as live resources", () =>
      Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime
        const { pools } = yield* liveResources
        yield* Effect.scoped(Effect.gen(function*() {
          yield* CudaMemoryPool.make()
          assert.strictEqual((yield* liveResources).pools, pools + 1)
        }))
        assert.strictEqual((yield* liveResources).pools, pools)
      }))

    for (const bytes of [-1, 0.5, Number.NaN, 2 ** 53]) {
      it.effect(`${bytes} bytes are rejected by name`, () =>
        leavesNothing(Effect.gen(function*() {
          const pool = yield* CudaMemoryPool.make()
          yield* refuses(CudaMemoryPool.make({ maxBytes: bytes }), "maxBytes")
          yield* refuses(CudaMemoryPool.make({ releaseThreshold: bytes }), "releaseThreshold")
          yield* refuses(CudaMemoryPool.setReleaseThreshold(pool, bytes), "bytes")
          yield* refuses(CudaMemoryPool.trim(pool, { keepBytes: bytes }), "keepBytes")
        })))
    }

    it.effect("a pool with a zero limit is rejected", () =>
      leavesNothing(refuses(CudaMemoryPool.make({ maxBytes: 0 }), "maxBytes")))

    it.effect("an unknown device is rejected", () =>
      Effect.all([
        refuses(CudaMemoryPool.make({ device: 99 }), "device"),
        refuses(CudaMemoryPool.ofDevice(-1), "device")
      ]).pipe(leavesNothing))

    it.effect.skipIf(rig.deviceCount < 2)("belong to their device", () =>
      leavesNothing(Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make({ device: 1 })
        const stream = yield* CudaStream.make({ device: 1 })
        assert.strictEqual((yield* CudaMemory.allocate(8, { pool })).deviceIndex, 1)
        assert.strictEqual((yield* CudaMemory.allocate(8, { stream })).deviceIndex, 1)
        yield* failsWith(CudaMemory.allocate(8, { pool, device: 0 }), "DeviceMismatch")
        yield* failsWith(CudaMemory.allocate(8, { stream, device: 0 }), "DeviceMismatch")
      })))
  })

export const streamOrderedContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("stream-ordered memory", (it) => {
    const busy = Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const { enqueue } = yield* Busy
      return { stream, work: (millis: number) => enqueue(stream, millis) }
    })

    it.effect("is allocated, used and released without waiting", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        const target = yield* CudaMemory.allocateHost(mebi)
        yield* work(100)
        for (let round = 0; round < 10; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const scratch = yield* CudaMemory.allocate(mebi, { stream })
            yield* CudaMemory.fill(scratch, round, stream)
            yield* CudaMemory.copy(target, scratch, stream)
          }))
        }
        assert.isFalse(yield* CudaStream.query(stream))
        yield* CudaStream.synchronize(stream)
        assert.isTrue(target.bytes.every((byte) => byte === 9))
      })))

    it.effect("is reused by the stream's next allocation", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        const pool = yield* CudaMemoryPool.make({ maxBytes: 64 * mebi })
        yield* work(100)
        for (let round = 0; round < 5; round++) {
          yield* Effect.scoped(Effect.flatMap(
            CudaMemory.allocate(48 * mebi, { pool, stream }),
            (scratch) => CudaMemory.fill(scratch, round, stream)
          ))
        }
        assert.isFalse(yield* CudaStream.query(stream))
        yield* CudaStream.synchronize(stream)
      })))

    it.effect("is ordered on every other stream that uses it, and released after all of them", () =>
      leavesNothing(Effect.gen(function*() {
        const { stream, work } = yield* busy
        const others = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        const targets = yield* Effect.all([CudaMemory.allocateHost(64), CudaMemory.allocateHost(64)])
        yield* work(100)
        yield* Effect.scoped(Effect.gen(function*() {
          const buffers = [
            yield* CudaMemory.allocate(64, { stream }),
            yield* CudaMemory.allocate(64, { stream })
          ]
          for (const [index, other] of others.entries()) {
            yield* CudaMemory.fill(buffers[index]!, index + 1, other)
            yield* CudaMemory.copy(targets[index]!, buffers[index]!, other)
            assert.isFalse(yield* CudaStream.query(other))
          }
        }))
        for (const other of others) yield* CudaStream.synchronize(other)
        assert.deepStrictEqual(targets.map(({ bytes }) => bytes[63]), [1, 2])
      })))

    it.effect("outlives its stream", () =>
      leavesNothing(Effect.gen(function*() {
        const own = yield* Scope.make()
        const stream = yield* Scope.provide(CudaStream.make(), own)
        const buffer = yield* CudaMemory.allocate(64, { stream })
        yield* CudaMemory.fill(buffer, 3, stream)
        yield* Scope.close(own, Exit.void)
        const bytes = new Uint8Array(64)
        yield* CudaMemory.download(bytes, buffer)
        assert.strictEqual(bytes[0], 3)
        yield* failsWith(CudaMemory.allocate(64, { stream }), "ResourceReleased")
      })))

    it.effect("works on a default stream, and can be ordered", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.defaultStream()
        const other = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(64, { stream, ordered: true })
        yield* CudaMemory.fill(buffer, 5, stream)
        const host = yield* CudaMemory.allocateHost(64)
        yield* CudaMemory.copy(host, buffer, other)
        yield* CudaStream.synchronize(other)
        assert.strictEqual(host.bytes[63], 5)
      })))

    it.effect("is reclaimed when the device is full", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const { free } = yield* CudaDevice.memoryInfo()
        const most = Math.floor(free * 0.6)
        const touch = (buffer: CudaMemory.DeviceBuffer) => CudaMemory.fill(CudaMemory.slice(buffer, 0, 64), 1, stream)
        for (let round = 0; round < 3; round++) {
          yield* Effect.scoped(Effect.flatMap(CudaMemory.allocate(most, { stream }), touch))
          yield* Effect.scoped(Effect.flatMap(CudaMemory.allocate(most), touch))
        }
      })))

    it.effect("of branches is correct in any order", () =>
      Effect.gen(function*() {
        const results = yield* Effect.all(Array.from({ length: 8 }, () => CudaMemory.allocateHost(4096)))
        for (let round = 0; round < 20; round++) {
          yield* CudaBranch.forEach(results, (host) =>
            Effect.scoped(Effect.gen(function*() {
              const stream = yield* CudaStream.current()
              const scratch = yield* CudaMemory.allocate(4096, { stream })
              yield* CudaMemory.fill(scratch, round, stream)
              yield* CudaMemory.copy(host, scratch, stream)
            })))
          yield* CudaStream.synchronize(yield* CudaStream.current())
          assert.isTrue(results.every(({ bytes }) => bytes.every((byte) => byte === round)))
        }
      }).pipe(CudaStream.withPooledStream(), Effect.scoped))
  })
