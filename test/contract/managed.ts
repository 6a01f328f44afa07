/**
 * Managed memory, used by devices and the host.
 */
import { assert, layer } from "@effect/vitest"
import { CudaKernel, CudaMemory, CudaModule, CudaStream } from "effect-cuda"
import type { DeviceBuffer, ManagedBuffer } from "effect-cuda/CudaMemory"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { program, signatures } from "../support/kernels.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const mebi = 2 ** 20

export const managedContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("managed memory", (it) => {
    it.effect("is shared by device and host, in both directions", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const managed = yield* CudaMemory.allocateManaged(3 * mebi)
        assert.isTrue(CudaMemory.isManagedBuffer(managed))
        yield* CudaMemory.fill32(managed, 0x01020304, stream)
        yield* CudaStream.synchronize(stream)
        assert.isTrue(CudaMemory.view(managed, Uint32Array).every((word) => word === 0x01020304))
        managed.bytes.fill(7)
        managed.bytes[3 * mebi - 1] = 9
        const bytes = new Uint8Array(3 * mebi)
        yield* CudaMemory.download(bytes, managed, stream)
        assert.deepStrictEqual([bytes[0], bytes[3 * mebi - 2], bytes[3 * mebi - 1]], [7, 7, 9])
      })))

    it.effect("copies like device memory", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const [one, other] = [yield* CudaMemory.allocateManaged(4096), yield* CudaMemory.allocateManaged(4096)]
        const device = yield* CudaMemory.allocate(4096)
        const host = yield* CudaMemory.allocateHost(4096)
        one.bytes.forEach((_, index, bytes) => bytes[index] = index & 255)
        yield* CudaMemory.copy(device, one, stream)
        yield* CudaMemory.copy(other, device, stream)
        yield* CudaMemory.copy(host, other, stream)
        yield* CudaStream.synchronize(stream)
        assert.deepStrictEqual(host.bytes, one.bytes)
      })))

    it.effect("prefetches to the host and back, whatever the advice", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const managed = yield* CudaMemory.allocateManaged(9 * mebi)
        yield* CudaMemory.advise(managed, { preferredLocation: 0 })
        yield* managed.pipe(CudaMemory.advise({ readMostly: true }))
        yield* CudaMemory.advise(managed, { accessedBy: "host" })
        managed.bytes.fill(1)
        yield* CudaMemory.prefetch(managed, 0, stream)
        yield* CudaMemory.fill(CudaMemory.slice(managed, mebi, mebi), 2, stream)
        yield* managed.pipe(CudaMemory.prefetch("host", stream))
        yield* CudaStream.synchronize(stream)
        assert.deepStrictEqual([mebi - 1, mebi, 2 * mebi - 1, 2 * mebi].map((at) => managed.bytes[at]), [1, 2, 2, 1])
        yield* CudaMemory.advise(managed, { preferredLocation: "none" })
        yield* CudaMemory.advise(CudaMemory.slice(managed, 0, mebi), { readMostly: false })
        yield* CudaMemory.advise(managed, { notAccessedBy: "host" })
        yield* CudaMemory.prefetch(CudaMemory.slice(managed, 0, 0), "host", stream)
      })))

    it.effect("can be a kernel argument", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const module = yield* CudaModule.load(yield* program)
        const put = yield* CudaKernel.get(module, "put", signatures.put)
        const managed = yield* CudaMemory.allocateManaged(4)
        yield* CudaKernel.launch(put, { grid: 1, block: 1 }, [managed, 77], stream)
        yield* CudaStream.synchronize(stream)
        assert.strictEqual(CudaMemory.view(managed, Uint32Array)[0], 77)
      })))

    it.effect("is readable by the host while the device works on other memory", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const managed = yield* CudaMemory.allocateManaged(4096)
        managed.bytes.fill(5)
        yield* (yield* Busy).enqueue(stream, 100)
        assert.isTrue(managed.bytes.every((byte) => byte === 5))
        assert.isFalse(yield* CudaStream.query(stream))
      })))

    it.effect("can be ordered", () =>
      leavesNothing(Effect.gen(function*() {
        const [first, second] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        const managed = yield* CudaMemory.allocateManaged(4096, { ordered: true })
        const host = yield* CudaMemory.allocateHost(4096)
        yield* (yield* Busy).enqueue(first, 10)
        yield* CudaMemory.fill(managed, 3, first)
        yield* CudaMemory.prefetch(managed, "host", second)
        yield* CudaMemory.copy(host, managed, second)
        yield* CudaStream.synchronize(second)
        assert.strictEqual(host.bytes[4095], 3)
        yield* CudaMemory.synchronize(managed)
      })))

    it.effect("is empty after release, and earlier views stay readable", () =>
      leavesNothing(Effect.gen(function*() {
        const [managed, bytes] = yield* Effect.scoped(Effect.gen(function*() {
          const managed = yield* CudaMemory.allocateManaged(4096)
          managed.bytes.fill(4)
          return [managed, managed.bytes] as const
        }))
        assert.strictEqual(managed.bytes.length, 0)
        assert.strictEqual(CudaMemory.view(managed, Float32Array).length, 0)
        assert.isTrue(bytes.every((byte) => byte === 4))
        yield* failsWith(CudaMemory.prefetch(managed, "host"), "ResourceReleased")
        yield* failsWith(CudaMemory.advise(managed, { readMostly: true }), "ResourceReleased")
      })))

    it.effect("counts as memory of its device", () =>
      leavesNothing(Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime
        const before = yield* liveResources
        yield* CudaMemory.allocateManaged(4096)
        const live = yield* liveResources
        assert.strictEqual(live.deviceBytes - before.deviceBytes, 4096)
        assert.strictEqual(live.deviceBuffers - before.deviceBuffers, 1)
      })))

    it.effect("rejects invalid arguments by name", () =>
      leavesNothing(Effect.gen(function*() {
        const managed = yield* CudaMemory.allocateManaged(64)
        const device: DeviceBuffer = yield* CudaMemory.allocate(64)
        const forced = device as ManagedBuffer
        yield* refuses(CudaMemory.allocateManaged(0), "byteLength")
        yield* refuses(CudaMemory.allocateManaged(8, { device: 99 }), "device")
        yield* refuses(CudaMemory.prefetch(managed, 99), "location")
        yield* refuses(CudaMemory.prefetch(forced, 0), "buffer")
        yield* refuses(CudaMemory.prefetch(CudaMemory.slice(managed, 0, 65), 0), "buffer.byteLength")
        yield* refuses(CudaMemory.advise(forced, { readMostly: true }), "buffer")
        yield* refuses(CudaMemory.advise(managed, { preferredLocation: -1 }), "location")
        yield* refuses(CudaMemory.advise(CudaMemory.slice(managed, 65), { readMostly: true }), "buffer.offset")
        assert.isFalse(CudaMemory.isManagedBuffer(device))
      })))

    it.effect.skipIf(rig.deviceCount < 2)(
      "is used on the streams of every device",
      () =>
        leavesNothing(Effect.gen(function*() {
          const managed = yield* CudaMemory.allocateManaged(mebi, { device: 0 })
          const far = yield* CudaMemory.allocate(mebi, { device: 1 })
          const stream = yield* CudaStream.make({ device: 1 })
          yield* CudaMemory.fill(managed, 6, stream)
          yield* CudaMemory.copy(far, managed, stream)
          yield* CudaMemory.fill(managed, 0, stream)
          yield* CudaMemory.prefetch(managed, 1, stream)
          yield* CudaMemory.copy(managed, far, stream)
          yield* CudaStream.synchronize(stream)
          assert.isTrue(managed.bytes.every((byte) => byte === 6))
        }))
    )
  })
