/**
 * Memory: copies and fills of every kind and range, and every invalid request.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaMemory, CudaStream } from "effect-cuda"
import { unchecked } from "effect-cuda/CheckedRuntime"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import { constants } from "node:buffer"
import { cutOff, detached } from "../support/arrays.ts"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { giveAway, transferIfAllowed } from "../support/giveAway.ts"
import type { Rig } from "../support/Rig.ts"

const mebi = 1024 * 1024

/** Bytes that differ between neighbouring positions, to detect misplaced copies. */
const pattern = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, index) => (index * 31 + (index >> 8)) & 255)

const same = (actual: Uint8Array, expected: Uint8Array) =>
  assert.strictEqual(Buffer.compare(Buffer.from(actual.buffer, actual.byteOffset, actual.byteLength), expected), 0)

export const memoryContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("memory", (it) => {
    for (const length of [1, 4095, 4096, 65_537, 16 * mebi, 16 * mebi + 1, 40 * mebi + 3]) {
      it.effect(`${length} bytes copy to the device, within it, and back`, () =>
        leavesNothing(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const [up, down] = [yield* CudaMemory.allocateHost(length), yield* CudaMemory.allocateHost(length)]
          const [first, second] = [yield* CudaMemory.allocate(length), yield* CudaMemory.allocate(length)]
          const bytes = pattern(length)
          up.bytes.set(bytes)
          down.bytes.fill(0)
          yield* CudaMemory.copy(first, up, stream)
          yield* second.pipe(CudaMemory.copy(first, stream))
          yield* CudaMemory.copy(down, second, stream)
          yield* CudaStream.synchronize(stream)
          same(down.bytes, bytes)
        })))

      it.effect(`${length} bytes of an ordinary array upload and download`, () =>
        leavesNothing(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const device = yield* CudaMemory.allocate(length)
          const bytes = pattern(length)
          const source = bytes.slice()
          yield* CudaMemory.upload(device, source, stream)
          source.fill(0)
          const target = new Uint8Array(length)
          yield* CudaMemory.download(target, device, stream)
          same(target, bytes)
        })))
    }

    it.effect("pinned memory whose buffer was transferred is refused, and what was enqueued ends", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(4 * mebi)
        const host = yield* CudaMemory.allocateHost(4 * mebi)
        const other = yield* CudaMemory.allocateHost(4 * mebi)
        yield* CudaMemory.copy(device, host, stream)
        yield* CudaMemory.copy(host, device, stream)
        yield* unchecked(Effect.sync(() => giveAway(host.bytes.buffer)))
        assert.strictEqual(host.ref.bytes.byteLength, 0)
        const refused = yield* failsWith(CudaMemory.copy(device, host, stream), "InvalidArgument")
        assert.include(refused.value, "was transferred")
        yield* refuses(CudaMemory.copy(host, device, stream), "buffer")
        yield* refuses(CudaMemory.copyBatch([{ source: device, destination: host }], stream), "buffer")
        const [toRows, fromRows] = [CudaMemory.rows(device, 16), CudaMemory.rows(host, 16)]
        yield* refuses(CudaMemory.copy2D(toRows, fromRows, { width: 8, height: 2 }, stream), "buffer")
        yield* CudaStream.synchronize(stream)
        other.bytes.fill(3)
        yield* CudaMemory.copy(device, other, stream)
        yield* CudaStream.synchronize(stream)
      })))

    it.effect("pinned memory is refused or there after structuredClone was to transfer it", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(1000)
        const host = yield* CudaMemory.allocateHost(1000)
        const copy = CudaMemory.copy(device, host, stream)
        if (transferIfAllowed(host.bytes.buffer)) yield* refuses(copy, "buffer")
        else {
          assert.strictEqual(host.bytes.byteLength, 1000)
          yield* copy
        }
        yield* CudaStream.synchronize(stream)
      })))

    it.effect("more pinned memory than an array can show is OutOfMemory, and the failure names the limit", () =>
      leavesNothing(Effect.gen(function*() {
        const byteLength = Math.min(Number.MAX_SAFE_INTEGER, constants.MAX_LENGTH + 1)
        const error = yield* Effect.flip(CudaMemory.allocateHost(byteLength))
        assert.strictEqual(error.reason._tag, "OutOfMemory")
        if (byteLength > constants.MAX_LENGTH) assert.include(error.subject ?? "", String(constants.MAX_LENGTH))
      })))

    it.effect("slices copy to slices", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(33 * mebi)
        const device = yield* CudaMemory.allocate(33 * mebi)
        const bytes = pattern(33 * mebi)
        host.bytes.set(bytes)
        yield* CudaMemory.fill(device, 0, stream)
        const middle = CudaMemory.slice(CudaMemory.slice(device, mebi), 5, 31 * mebi)
        yield* CudaMemory.copy(middle, CudaMemory.slice(host, 3, 31 * mebi), stream)
        yield* CudaMemory.copy(CudaMemory.slice(device, 0, 100), CudaMemory.slice(device, mebi + 5, 100), stream)
        const target = new Uint8Array(33 * mebi)
        yield* CudaMemory.download(target, device, stream)
        const expected = new Uint8Array(33 * mebi)
        expected.set(bytes.subarray(3, 3 + 31 * mebi), mebi + 5)
        expected.copyWithin(0, mebi + 5, mebi + 105)
        same(target, expected)
      })))

    it.effect("fills write an 8-, 16- or 32-bit value over a range", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(64)
        yield* CudaMemory.fill(device, 0, stream)
        yield* device.pipe(CudaMemory.fill(0xab, stream))
        yield* CudaMemory.fill16(CudaMemory.slice(device, 2, 6), 0x1234, stream)
        yield* CudaMemory.fill32(CudaMemory.slice(device, 8, 16), 0xdeadbeef, stream)
        const bytes = new Uint8Array(64)
        yield* CudaMemory.download(bytes, device, stream)
        const expected = new Uint8Array(64).fill(0xab)
        new Uint16Array(expected.buffer, 2, 3).fill(0x1234)
        new Uint32Array(expected.buffer, 8, 4).fill(0xdeadbeef)
        same(bytes, expected)
      })))

    it.effect("empty copies and fills do nothing", () =>
      leavesNothing(Effect.gen(function*() {
        const [device, host] = [yield* CudaMemory.allocate(8), yield* CudaMemory.allocateHost(8)]
        yield* CudaMemory.copy(CudaMemory.slice(device, 8), CudaMemory.slice(host, 0, 0))
        yield* CudaMemory.fill(CudaMemory.slice(device, 4, 0), 1)
        yield* CudaMemory.upload(CudaMemory.slice(device, 0, 0), new Uint8Array(0))
        yield* CudaMemory.download(new Uint8Array(0), CudaMemory.slice(device, 0, 0))
      })))

    it.effect("pinned memory is viewed as any typed array, without a copy", () =>
      leavesNothing(Effect.gen(function*() {
        const host = yield* CudaMemory.allocateHost(37)
        const words = CudaMemory.view(host, Uint32Array)
        assert.strictEqual(words.length, 9)
        words.fill(0x01020304)
        assert.strictEqual(host.bytes[4], 4)
        assert.strictEqual(CudaMemory.view(CudaMemory.slice(host, 8, 16), Float64Array).length, 2)
      })))

    it.effect("an array whose memory is gone is not taken for an empty one", () =>
      leavesNothing(Effect.gen(function*() {
        const nothing = CudaMemory.slice(yield* CudaMemory.allocate(64), 0, 0)
        for (const array of [detached(new Uint8Array(8)), cutOff(Uint8Array), cutOff(Float32Array), cutOff(DataView)]) {
          yield* refuses(CudaMemory.upload(nothing, array), "array")
          yield* refuses(CudaMemory.download(array, nothing), "array")
        }
        yield* CudaMemory.upload(nothing, new Uint8Array(0))
      })))

    it.effect("a detached array is rejected", () =>
      leavesNothing(Effect.gen(function*() {
        const device = yield* CudaMemory.allocate(64)
        const array = new Uint8Array(64)
        const upload = CudaMemory.upload(device, array)
        const download = device.pipe((buffer) => CudaMemory.download(array, buffer))
        structuredClone(array.buffer, { transfer: [array.buffer] })
        yield* refuses(upload, "array")
        yield* refuses(download, "array")
      })))

    it.effect("data-first and data-last upload and download agree", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(8)
        yield* device.pipe(CudaMemory.slice(4), CudaMemory.upload(Uint8Array.of(1, 2, 3, 4), stream))
        yield* device.pipe(CudaMemory.slice(0, 4), CudaMemory.upload(Uint8Array.of(5, 6, 7, 8)))
        yield* CudaStream.synchronize(yield* CudaStream.current())
        const target = new Uint8Array(8)
        yield* CudaMemory.download(device, stream)(target)
        assert.deepStrictEqual([...target], [5, 6, 7, 8, 1, 2, 3, 4])
      })))

    it.effect("views alias the buffer's bytes, at multiples of the element size", () =>
      leavesNothing(Effect.gen(function*() {
        const host = yield* CudaMemory.allocateHost(64)
        for (const [offset, byteLength] of [[1, 8], [-4, 8], [60, 8], [0.5, 4], [0, -4]] as const) {
          const part = CudaMemory.slice(host, offset, byteLength)
          assert.throws(() => CudaMemory.view(part, Float32Array), RangeError)
        }
      })))

    it.effect("views of pinned memory are empty after its release", () =>
      leavesNothing(Effect.gen(function*() {
        const [host, view] = yield* Effect.scoped(Effect.gen(function*() {
          const host = yield* CudaMemory.allocateHost(64)
          return [host, CudaMemory.view(host, Float32Array)] as const
        }))
        assert.deepStrictEqual([view.length, host.bytes.length], [0, 0])
        assert.strictEqual(CudaMemory.view(host, Float32Array).length, 0)
      })))

    it.effect("every kind of ordinary array is accepted", () =>
      leavesNothing(Effect.gen(function*() {
        const device = yield* CudaMemory.allocate(24)
        yield* CudaMemory.upload(device, Float64Array.of(1, 2, 3))
        const back = new Float64Array(4).subarray(1)
        yield* CudaMemory.download(back, device)
        assert.deepStrictEqual([...back], [1, 2, 3])
        yield* CudaMemory.upload(device, new DataView(new ArrayBuffer(24)))
        yield* CudaMemory.download(back, device)
        assert.deepStrictEqual([...back], [0, 0, 0])
      })))

    for (const byteLength of [0, -1, 0.5, Number.NaN, 2 ** 53, Number.POSITIVE_INFINITY]) {
      it.effect(`${byteLength} bytes cannot be allocated`, () =>
        leavesNothing(Effect.gen(function*() {
          yield* refuses(CudaMemory.allocate(byteLength), "byteLength")
          yield* refuses(CudaMemory.allocateHost(byteLength), "byteLength")
        })))
    }

    it.effect("allocating more memory than exists fails and leaves everything usable", () =>
      leavesNothing(Effect.gen(function*() {
        const { totalMemory } = yield* CudaDevice.get(0)
        const reason = yield* failsWith(CudaMemory.allocate(totalMemory * 2), "OutOfMemory")
        assert.isTrue(reason.isRetryable)
        yield* failsWith(CudaMemory.allocateHost(2 ** 50), "OutOfMemory")
        yield* CudaMemory.fill(yield* CudaMemory.allocate(mebi), 1)
      })))

    it.effect("an allocation waits for pending releases before it fails", () =>
      leavesNothing(Effect.gen(function*() {
        const { free } = yield* CudaDevice.memoryInfo()
        const most = Math.floor(free * 0.6)
        for (let round = 0; round < 3; round++) {
          yield* Effect.scoped(
            Effect.flatMap(CudaMemory.allocate(most), (buffer) => CudaMemory.fill(CudaMemory.slice(buffer, 0, 64), 1))
          )
        }
      })))

    it.effect("ranges outside their buffer are rejected by name", () =>
      leavesNothing(Effect.gen(function*() {
        const [device, host] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocateHost(64)]
        const { slice } = CudaMemory
        yield* refuses(CudaMemory.copy(slice(device, 1, 64), slice(host, 0, 64)), "destination.byteLength")
        yield* refuses(CudaMemory.copy(slice(device, 0, 64), slice(host, 1, 64)), "source.byteLength")
        yield* refuses(CudaMemory.copy(slice(device, -1, 8), slice(host, 0, 8)), "destination.offset")
        yield* refuses(CudaMemory.copy(slice(device, 65, 0), slice(host, 0, 0)), "destination.offset")
        yield* refuses(CudaMemory.copy(slice(device, 0, 8), slice(host, 0.5, 8)), "source.offset")
        yield* refuses(CudaMemory.copy(slice(device, Number.NaN, 8), slice(host, 0, 8)), "destination.offset")
        yield* refuses(CudaMemory.copy(slice(device, 0, -8), slice(host, 0, -8)), "destination.byteLength")
        yield* refuses(CudaMemory.copy(slice(device, 0, 2 ** 60), slice(host, 0, 8)), "destination.byteLength")
        yield* refuses(CudaMemory.copy(slice(device, 0, 8), slice(host, 0, 9)), "source.byteLength")
        yield* refuses(CudaMemory.copy(slice(device, 0, 8), slice(device, 7, 8)), "source.offset")
        yield* refuses(CudaMemory.copy(slice(host, 0, 8), slice(host, 8, 8)), "destination")
        yield* refuses(CudaMemory.upload(device, new Uint8Array(65)), "array")
        yield* refuses(CudaMemory.download(new Uint8Array(63), device), "array")
        yield* refuses(CudaMemory.upload(slice(device, 65, 0), new Uint8Array(0)), "destination.offset")
        yield* refuses(CudaMemory.fill(host as unknown as DeviceBuffer, 0), "destination")
      })))

    it.effect("fills that the driver would misread are rejected by name", () =>
      leavesNothing(Effect.gen(function*() {
        const [device, host] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocateHost(64)]
        const { slice } = CudaMemory
        yield* refuses(CudaMemory.fill(device, 256), "value")
        yield* refuses(CudaMemory.fill(device, -1), "value")
        yield* refuses(CudaMemory.fill(device, 0.5), "value")
        yield* refuses(CudaMemory.fill16(device, 65_536), "value")
        yield* refuses(CudaMemory.fill32(device, 2 ** 32), "value")
        const { runtime } = device
        const whole = { memory: device.ref, offset: 0, byteLength: 64 }
        yield* refuses(runtime.memoryFill(whole, 0, 64 as 32, yield* runtime.streamDefault(0, "legacy")), "bits")
        yield* refuses(CudaMemory.fill16(slice(device, 1, 4), 0), "destination.offset")
        yield* refuses(CudaMemory.fill32(slice(device, 0, 6), 0), "destination.byteLength")
        yield* refuses(CudaMemory.fill(slice(device, 0, 65), 0), "destination.byteLength")
        const forced = host.runtime.memoryFill(
          { memory: host.ref, offset: 0, byteLength: 8 },
          0,
          8,
          (yield* CudaStream.defaultStream()).ref
        )
        yield* refuses(forced, "destination")
      })))

    it.effect.skipIf(rig.deviceCount < 2)("copies between devices run on a stream of either", () =>
      leavesNothing(Effect.gen(function*() {
        const bytes = pattern(3 * mebi)
        const near = yield* CudaMemory.allocate(bytes.length, { device: 0 })
        for (const device of [0, 1]) {
          const far: DeviceBuffer = yield* CudaMemory.allocate(bytes.length, { device: 1 })
          const stream = yield* CudaStream.make({ device })
          yield* CudaMemory.upload(near, bytes)
          yield* CudaStream.waitStream(stream, yield* CudaStream.current(0))
          yield* CudaMemory.copy(far, near, stream)
          yield* CudaStream.synchronize(stream)
          const target = new Uint8Array(bytes.length)
          yield* CudaMemory.download(target, far)
          same(target, bytes)
        }
      })))

    it.effect.skipIf(rig.deviceCount < 2)("a stream of another device is rejected, naming both", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make({ device: 1 })
        const [device, host] = [yield* CudaMemory.allocate(64, { device: 0 }), yield* CudaMemory.allocateHost(64)]
        yield* failsWith(CudaMemory.copy(device, host, stream), "DeviceMismatch")
        yield* failsWith(CudaMemory.fill(device, 0, stream), "DeviceMismatch")
      })))
  })
