/**
 * Device memory that grows without moving.
 */
import { assert, layer } from "@effect/vitest"
import { CudaGraph, CudaKernel, CudaMemory, CudaModule, CudaStream } from "effect-cuda"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { settled } from "../support/fibers.ts"
import { program, signatures } from "../support/kernels.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const mebi = 2 ** 20
const gibi = 2 ** 30

const bytesOf = (buffer: CudaMemory.Slice<CudaMemory.DeviceBuffer>, stream: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const bytes = new Uint8Array(buffer.byteLength)
    yield* CudaMemory.download(bytes, buffer, stream)
    return bytes
  })

export const growableContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("growable buffers", (it) => {
    it.effect("keep their address, contents and slices while they grow", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: 64 * gibi, initial: 3 * mebi })
        const { address } = buffer
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes, buffer.maxBytes], [
          3 * mebi,
          4 * mebi,
          64 * gibi
        ])
        const slice = CudaMemory.slice(buffer, mebi, mebi)
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* CudaMemory.fill(slice, 2, stream)
        yield* buffer.pipe(CudaMemory.grow(150 * mebi))
        assert.deepStrictEqual([buffer.address, buffer.byteLength], [address, 150 * mebi])
        yield* CudaMemory.fill(CudaMemory.slice(buffer, 3 * mebi, 147 * mebi), 3, stream)
        const bytes = yield* bytesOf(buffer, stream)
        assert.deepStrictEqual(
          [0, mebi - 1, mebi, 2 * mebi - 1, 2 * mebi, 3 * mebi - 1, 3 * mebi, 150 * mebi - 1].map((at) => bytes[at]),
          [1, 1, 2, 2, 1, 1, 3, 3]
        )
        assert.isTrue((yield* bytesOf(slice, stream)).every((byte) => byte === 2))
      })))

    it.effect("are device memory for copies, fills and kernels", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
        const add = yield* CudaKernel.get(module, "add", signatures.add)
        const numbers = Float32Array.from({ length: 256 }, (_, index) => index)
        const one = yield* CudaMemory.growable({ maxBytes: 8 * mebi, initial: 1024 })
        const other = yield* CudaMemory.allocate(1024)
        yield* CudaMemory.upload(one, numbers, stream)
        yield* CudaMemory.copy(other, one, stream)
        yield* CudaKernel.launch(add, { grid: 1, block: 256 }, [one, other, 256], stream)
        const bytes = yield* bytesOf(one, stream)
        assert.deepStrictEqual(new Float32Array(bytes.buffer), numbers.map((number) => 2 * number))
        assert.isTrue(CudaMemory.isGrowableBuffer(one))
        assert.isFalse(CudaMemory.isGrowableBuffer(other))
        assert.isTrue(CudaMemory.isBuffer(one))
      })))

    it.effect("are checked against their size at that moment", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: 64 * mebi })
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [0, 0])
        const part = { buffer, offset: 0, byteLength: 4 * mebi }
        yield* refuses(CudaMemory.fill(part, 0, stream), "destination.byteLength")
        yield* CudaMemory.grow(buffer, 4 * mebi)
        yield* CudaMemory.fill(part, 0, stream)
        yield* CudaMemory.grow(buffer, mebi)
        assert.strictEqual(buffer.byteLength, 4 * mebi)
        yield* CudaMemory.shrink(buffer, 5 * mebi)
        assert.strictEqual(buffer.byteLength, 4 * mebi)
        yield* buffer.pipe(CudaMemory.shrink(mebi))
        yield* refuses(CudaMemory.fill(part, 0, stream), "destination.byteLength")
        yield* CudaMemory.grow(buffer, 64 * mebi)
        yield* CudaMemory.fill(buffer, 0, stream)
      })))

    it.effect("shrink after the work that uses them", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: gibi, initial: 64 * mebi })
        yield* CudaMemory.grow(buffer, 256 * mebi)
        yield* busy.enqueue(stream, 20)
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* CudaMemory.shrink(buffer, 10 * mebi)
        assert.isTrue(yield* CudaStream.query(stream))
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [10 * mebi, 64 * mebi])
        yield* CudaMemory.shrink(buffer, 0)
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [0, 0])
      })))

    it.effect("refuse the bytes that they are about to lose", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: 64 * mebi, initial: 4 * mebi })
        yield* busy.enqueue(stream, 20)
        yield* CudaMemory.fill(buffer, 1, stream)
        const shrinking = yield* Effect.forkChild(CudaMemory.shrink(buffer, 0))
        yield* settled
        assert.strictEqual(buffer.byteLength, 0)
        yield* refuses(
          CudaMemory.fill({ buffer, offset: 0, byteLength: 1 }, 0, stream),
          "destination.byteLength"
        )
        yield* Fiber.join(shrinking)
      })))

    it.effect("get their size back if shrinking is interrupted", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: 64 * mebi, initial: 4 * mebi })
        yield* busy.enqueue(stream, 200)
        yield* CudaMemory.fill(buffer, 7, stream)
        const shrinking = yield* Effect.forkChild(CudaMemory.shrink(buffer, 0))
        yield* settled
        yield* Fiber.interrupt(shrinking)
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [4 * mebi, 4 * mebi])
        assert.isTrue((yield* bytesOf(buffer, stream)).every((byte) => byte === 7))
      })))

    it.effect("keep their size if there is no memory", () =>
      leavesNothing(Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime
        const buffer = yield* CudaMemory.growable({ maxBytes: 2 ** 41, initial: 2 * mebi })
        const { deviceBytes } = yield* liveResources
        const error = yield* Effect.flip(CudaMemory.grow(buffer, 2 ** 41))
        assert.strictEqual(error.reason._tag, "OutOfMemory")
        assert.strictEqual(error.operation, "CudaMemory.grow")
        assert.isAbove(error.memory?.requested ?? 0, 2 ** 40)
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [2 * mebi, 2 * mebi])
        assert.strictEqual((yield* liveResources).deviceBytes, deviceBytes)
        yield* CudaMemory.grow(buffer, 4 * mebi)
      })), 60_000)

    it.effect("count their memory as live", () =>
      Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime
        const before = yield* liveResources
        yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.growable({ maxBytes: gibi, initial: 3 * mebi })
          assert.strictEqual((yield* liveResources).deviceBytes - before.deviceBytes, 4 * mebi)
          yield* CudaMemory.grow(buffer, 6 * mebi)
          assert.strictEqual((yield* liveResources).deviceBytes - before.deviceBytes, 6 * mebi)
        }))
        assert.deepStrictEqual(yield* liveResources, before)
      }))

    it.effect("are released while work uses them, and not used later", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const own = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.growable({ maxBytes: gibi, initial: 4 * mebi }), own)
        yield* busy.enqueue(stream, 20)
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* Scope.close(own, Exit.void)
        for (
          const used of [CudaMemory.fill(buffer, 1, stream), CudaMemory.grow(buffer, 1), CudaMemory.shrink(buffer, 0)]
        ) {
          yield* failsWith(used, "ResourceReleased")
        }
      })))

    it.effect("may be released while they grow", () =>
      leavesNothing(Effect.gen(function*() {
        const own = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.growable({ maxBytes: 2 * gibi }), own)
        const begun = yield* Deferred.make<void>()
        const growing = yield* Effect.forkChild(
          Effect.exit(Effect.andThen(Deferred.succeed(begun, undefined), CudaMemory.grow(buffer, gibi)))
        )
        yield* Deferred.await(begun)
        yield* Scope.close(own, Exit.void)
        yield* Fiber.join(growing)
        yield* failsWith(CudaMemory.grow(buffer, 2 * gibi), "ResourceReleased")
      })))

    it.effect("may be released while they shrink", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const stream = yield* CudaStream.make()
        const own = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.growable({ maxBytes: gibi, initial: 2 * mebi }), own)
        yield* busy.enqueue(stream, 300)
        yield* CudaMemory.fill(buffer, 1, stream)
        const shrinking = yield* Effect.forkChild(failsWith(CudaMemory.shrink(buffer, 0), "ResourceReleased"))
        yield* settled
        yield* Scope.close(own, Exit.void)
        yield* Fiber.join(shrinking)
      })))

    it.effect("grow from several fibers to the largest size", () =>
      leavesNothing(Effect.gen(function*() {
        const buffer = yield* CudaMemory.growable({ maxBytes: gibi })
        const sizes = [10, 200, 30, 130, 4].map((size) => size * mebi)
        yield* Effect.forEach(sizes, (size) => CudaMemory.grow(buffer, size), { concurrency: "unbounded" })
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [200 * mebi, 200 * mebi])
      })))

    it.effect("order their uses", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.growable({ maxBytes: gibi, initial: mebi, ordered: true })
        yield* CudaMemory.grow(buffer, 4 * mebi)
        yield* busy.enqueue(one, 20)
        yield* CudaMemory.fill(buffer, 5, one)
        assert.isTrue((yield* bytesOf(buffer, other)).every((byte) => byte === 5))
      })))

    it.effect("are used by graphs until they are too small", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: gibi, initial: 4 * mebi })
        const graph = yield* CudaGraph.record(
          Effect.flatMap(CudaStream.current(), (current) => CudaMemory.fill(buffer, 9, current))
        )
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaMemory.grow(buffer, 8 * mebi)
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* CudaGraph.launch(exec, stream)
        const bytes = yield* bytesOf(buffer, stream)
        assert.deepStrictEqual([bytes[4 * mebi - 1], bytes[4 * mebi]], [9, 1])
        yield* CudaMemory.shrink(buffer, 2 * mebi)
        yield* refuses(CudaGraph.launch(exec, stream), "graph.byteLength")
        yield* CudaMemory.grow(buffer, 4 * mebi)
        yield* CudaGraph.launch(exec, stream)
        yield* CudaStream.synchronize(stream)
      })))

    for (const maxBytes of [0, -1, 0.5, Number.NaN, 2 ** 53]) {
      it.effect(`of at most ${maxBytes} bytes are rejected by name`, () =>
        leavesNothing(refuses(CudaMemory.growable({ maxBytes }), "maxBytes")))
    }

    for (const size of [-1, 0.5, Number.NaN, 2 * mebi + 1]) {
      it.effect(`do not change to ${size} bytes`, () =>
        leavesNothing(Effect.gen(function*() {
          const buffer = yield* CudaMemory.growable({ maxBytes: 2 * mebi })
          yield* refuses(CudaMemory.grow(buffer, size), "byteLength")
          yield* refuses(CudaMemory.shrink(buffer, size), "byteLength")
          yield* refuses(CudaMemory.growable({ maxBytes: 2 * mebi, initial: size }), "byteLength")
        })))
    }

    it.effect("are the only buffers that grow", () =>
      leavesNothing(Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(8)
        yield* refuses(CudaMemory.grow(buffer as CudaMemory.GrowableBuffer, 8), "buffer")
        yield* refuses(CudaMemory.shrink(null as never, 8), "buffer")
      })))

    it.effect("belong to no graph", () =>
      leavesNothing(failsWith(CudaGraph.record(CudaMemory.growable({ maxBytes: mebi })), "CannotRecord")))
  })
