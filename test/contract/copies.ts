/**
 * 2D copies and batched copies, compared with a byte-by-byte reference.
 */
import { assert, layer } from "@effect/vitest"
import { CudaMemory, CudaStream } from "effect-cuda"
import type { DeviceBuffer, HostBuffer, Slice } from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { makeRandom } from "../support/random.ts"
import type { Rig } from "../support/Rig.ts"

const mebi = 2 ** 20

/** Copies the rows of one array into another. */
const moveRows = (
  to: Uint8Array,
  from: Uint8Array,
  at: { readonly to: number; readonly toPitch: number; readonly from: number; readonly fromPitch: number },
  size: CudaMemory.Size2D
): void => {
  for (let row = 0; row < size.height; row++) {
    const start = at.from + row * at.fromPitch
    to.set(from.subarray(start, start + size.width), at.to + row * at.toPitch)
  }
}

const makeBytes = (length: number, seed: number): Uint8Array =>
  Uint8Array.from({ length }, (_, index) => (index * 31 + seed) & 255)

export const copyContract = (rig: Rig): void => {
  const allocateAny = (kind: number, length: number): Effect.Effect<
    DeviceBuffer | HostBuffer,
    Effect.Error<ReturnType<typeof CudaMemory.allocate>>,
    Effect.Services<ReturnType<typeof CudaMemory.allocate>>
  > => kind === 0 ? CudaMemory.allocateHost(length) : CudaMemory.allocate(length)

  const put = Effect.fnUntraced(
    function*(buffer: DeviceBuffer | HostBuffer, bytes: Uint8Array, stream: CudaStream.CudaStream) {
      if (buffer.kind === "host") buffer.bytes.set(bytes)
      else yield* CudaMemory.upload(buffer, bytes, stream)
    }
  )

  const get = Effect.fnUntraced(function*(buffer: DeviceBuffer | HostBuffer, stream: CudaStream.CudaStream) {
    yield* CudaStream.synchronize(stream)
    if (buffer.kind === "host") return buffer.bytes.slice()
    const bytes = new Uint8Array(buffer.byteLength)
    yield* CudaMemory.download(bytes, buffer, stream)
    return bytes
  })

  layer(rig.layer, { excludeTestServices: true })("2D copies", (it) => {
    it.effect("copy any rows in any direction, as copying them one by one would", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const random = makeRandom(7)
        for (let round = 0; round < 60; round++) {
          const [toKind, fromKind] = [[0, 1], [1, 0], [1, 1]][round % 3]!
          const size = { width: 1 + random(200), height: 1 + random(50) }
          const [toPitch, fromPitch] = [size.width + random(3) * random(100), size.width + random(3) * random(100)]
          const [to, from] = [random(20), random(20)]
          const length = (pitch: number, offset: number) => offset + (size.height - 1) * pitch + size.width + random(9)
          const target = yield* allocateAny(toKind!, length(toPitch, to))
          const source = yield* allocateAny(fromKind!, length(fromPitch, from))
          const [before, bytes] = [makeBytes(target.byteLength, 1), makeBytes(source.byteLength, round)]
          yield* put(target, before, stream)
          yield* put(source, bytes, stream)
          yield* CudaMemory.copy2D(
            CudaMemory.rows(CudaMemory.slice(target as Slice, to), toPitch),
            CudaMemory.rows(CudaMemory.slice(source as Slice, from), fromPitch),
            size,
            stream
          )
          moveRows(before, bytes, { to, toPitch, from, fromPitch }, size)
          assert.deepStrictEqual(yield* get(target, stream), before)
        }
      })))

    it.effect("cross the segments of pinned memory", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(34 * mebi)
        const device = yield* CudaMemory.allocate(34 * mebi)
        host.bytes.set(makeBytes(34 * mebi, 3))
        const size = { width: 999, height: 34_000 }
        const at = { to: 5, toPitch: 1000, from: 0, fromPitch: 1048 }
        yield* CudaMemory.fill(device, 0, stream)
        yield* CudaMemory.copy2D(
          device.pipe(CudaMemory.slice(at.to), CudaMemory.rows(at.toPitch)),
          host.pipe(CudaMemory.rows(at.fromPitch)),
          size,
          stream
        )
        const expected = new Uint8Array(34 * mebi)
        moveRows(expected, host.bytes, at, size)
        const bytes = yield* get(device, stream)
        assert.strictEqual(Buffer.compare(bytes, expected), 0)
      })))

    it.effect("without a pitch copy contiguous rows", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const [device, host] = [yield* CudaMemory.allocate(12), yield* CudaMemory.allocateHost(20)]
        yield* put(host, Uint8Array.from({ length: 20 }, (_, index) => index), stream)
        yield* device.pipe(CudaMemory.copy2D(CudaMemory.rows(host, 5), { width: 3, height: 4 }, stream))
        assert.deepStrictEqual([...(yield* get(device, stream))], [0, 1, 2, 5, 6, 7, 10, 11, 12, 15, 16, 17])
        yield* CudaMemory.copy2D(host, device, { width: 3, height: 4 })
        yield* CudaMemory.copy2D(host, device, { width: 0, height: 4 })
        yield* CudaMemory.copy2D(host, device, { width: 4, height: 0 })
        yield* CudaStream.synchronize(yield* CudaStream.current())
        assert.deepStrictEqual([...host.bytes.subarray(0, 13)], [0, 1, 2, 5, 6, 7, 10, 11, 12, 15, 16, 17, 12])
      })))

    it.effect("within one buffer may interleave", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const device = yield* CudaMemory.allocate(40)
        yield* put(device, Uint8Array.from({ length: 40 }, (_, index) => index), stream)
        const right = device.pipe(CudaMemory.slice(5), CudaMemory.rows(10))
        yield* CudaMemory.copy2D(right, CudaMemory.rows(device, 10), { width: 5, height: 4 }, stream)
        const bytes = yield* get(device, stream)
        for (let row = 0; row < 4; row++) {
          assert.deepStrictEqual(bytes.slice(10 * row + 5, 10 * row + 10), bytes.slice(10 * row, 10 * row + 5))
        }
      })))

    it.effect("reject invalid arguments by name", () =>
      leavesNothing(Effect.gen(function*() {
        const [device, host] = [yield* CudaMemory.allocate(100), yield* CudaMemory.allocateHost(100)]
        const { copy2D, rows, slice } = CudaMemory
        const size = { width: 10, height: 5 }
        yield* refuses(copy2D(rows(device, 9), host, size), "destination.pitch")
        yield* refuses(copy2D(device, rows(host, 2 ** 31), size), "source.pitch")
        yield* refuses(copy2D(device, rows(host, 10.5), size), "source.pitch")
        yield* refuses(copy2D(rows(device, 23), host, size), "destination.byteLength")
        yield* refuses(copy2D(device, rows(slice(host, 60), 10), size), "source.byteLength")
        yield* refuses(copy2D(slice(device, 101, 0), host, size), "destination.offset")
        yield* refuses(copy2D(device, host, { width: -1, height: 5 }), "size.width")
        yield* refuses(copy2D(device, host, { width: 1, height: 0.5 }), "size.height")
        yield* refuses(copy2D(rows(slice(device, 9), 20), rows(device, 20), { width: 10, height: 4 }), "source.offset")
        yield* refuses(copy2D(rows(slice(device, 15), 20), rows(device, 20), { width: 10, height: 2 }), "source.offset")
        yield* refuses(copy2D(rows(slice(device, 20), 11), rows(device, 20), { width: 10, height: 3 }), "source.offset")
        yield* refuses(copy2D(host, host, size), "destination")
      })))

    it.effect.skipIf(rig.deviceCount < 2)("work between devices", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make({ device: 0 })
        const far = yield* CudaMemory.allocate(100, { device: 1 })
        const near = yield* CudaMemory.allocate(100, { device: 0 })
        yield* put(near, makeBytes(100, 0), stream)
        yield* CudaMemory.copy2D(CudaMemory.rows(far, 10), CudaMemory.rows(near, 20), { width: 10, height: 5 }, stream)
        yield* CudaMemory.copyBatch([{
          destination: CudaMemory.slice(far, 50, 50),
          source: CudaMemory.slice(near, 0, 50)
        }], stream)
        yield* CudaStream.synchronize(stream)
        const bytes = yield* get(far, yield* CudaStream.make({ device: 1 }))
        const expected = new Uint8Array(100)
        moveRows(expected, makeBytes(100, 0), { to: 0, toPitch: 10, from: 0, fromPitch: 20 }, { width: 10, height: 5 })
        expected.set(makeBytes(50, 0), 50)
        assert.deepStrictEqual(bytes, expected)
        yield* failsWith(
          CudaMemory.copy2D(far, yield* CudaMemory.allocateHost(100), { width: 1, height: 1 }, stream),
          "DeviceMismatch"
        )
      })))
  })

  layer(rig.layer, { excludeTestServices: true })("batched copies", (it) => {
    it.effect("copy any ranges in any direction, as copying them one by one would", () =>
      leavesNothing(Effect.gen(function*() {
        const own = yield* CudaStream.make()
        const random = makeRandom(11)
        const [device, other] = [yield* CudaMemory.allocate(mebi), yield* CudaMemory.allocate(mebi)]
        const [host, target] = [yield* CudaMemory.allocateHost(mebi), yield* CudaMemory.allocateHost(mebi)]
        const streams = [own, yield* CudaStream.defaultStream(), yield* CudaStream.defaultStream({ mode: "perThread" })]
        const pairs: ReadonlyArray<readonly [Slice, Slice]> = [[other, device], [device, host], [target, other]]
        for (const [round, stream] of streams.entries()) {
          const kept = new Map<DeviceBuffer | HostBuffer, Uint8Array>()
          for (const [index, buffer] of [device, other, host, target].entries()) {
            kept.set(buffer, makeBytes(mebi, index + round))
            yield* put(buffer, kept.get(buffer)!, stream)
          }
          const copies = Array.from({ length: 64 }, (_, index) => {
            const [to, from] = pairs[index % 3]!
            const byteLength = random(8192)
            return {
              destination: CudaMemory.slice(to, index * 8192 + 512 * 1024, byteLength),
              source: CudaMemory.slice(from, index * 8192, byteLength)
            }
          })
          yield* CudaStream.synchronize(stream)
          yield* CudaMemory.copyBatch(copies, stream)
          for (const { destination, source } of copies) {
            const bytes = kept.get(source.buffer)!.subarray(source.offset, source.offset + source.byteLength)
            kept.get(destination.buffer)!.set(bytes, destination.offset)
          }
          for (const [buffer, expected] of kept) {
            assert.strictEqual(Buffer.compare(yield* get(buffer, stream), expected), 0)
          }
        }
      })))

    it.effect("are ordered with other uses of ordered buffers", () =>
      leavesNothing(Effect.gen(function*() {
        const [first, second] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        const device = yield* CudaMemory.allocate(64, { ordered: true })
        const host = yield* CudaMemory.allocateHost(64, { ordered: true })
        yield* CudaMemory.fill(device, 4, first)
        const [low, high] = [0, 32].map((offset) => ({
          destination: CudaMemory.slice(host, offset, 32),
          source: CudaMemory.slice(device, offset, 32)
        }))
        yield* CudaMemory.copyBatch([low!, high!], second)
        yield* CudaMemory.fill(device, 5, first)
        yield* CudaMemory.synchronize(host)
        assert.isTrue(host.bytes.every((byte) => byte === 4))
      })))

    it.effect("with no copies do nothing", () =>
      leavesNothing(Effect.gen(function*() {
        const [device, host] = [yield* CudaMemory.allocate(8), yield* CudaMemory.allocateHost(8)]
        yield* CudaMemory.copyBatch([])
        yield* CudaMemory.copyBatch([{ destination: CudaMemory.slice(device, 8), source: CudaMemory.slice(host, 8) }])
      })))

    it.effect("reject overlapping or invalid copies by name", () =>
      leavesNothing(Effect.gen(function*() {
        const [device, host] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocateHost(64)]
        const { copyBatch, slice } = CudaMemory
        const copy = (to: number, from: number, length = 8) => ({
          destination: slice(device, to, length),
          source: slice(host, from, length)
        })
        const back = { destination: slice(host, 40, 8), source: slice(device, 4, 8) }
        yield* refuses(copyBatch([copy(0, 0), copy(7, 8)]), "copies[1].destination")
        yield* refuses(copyBatch([copy(0, 0), copy(16, 8), back]), "copies[2].destination")
        yield* refuses(copyBatch([copy(0, 0), copy(60, 8)]), "copies[1].destination.byteLength")
        yield* refuses(copyBatch([copy(0, 65, 0)]), "copies[0].source.offset")
        yield* refuses(
          copyBatch([{ destination: slice(device, 0, 8), source: slice(host, 0, 9) }]),
          "copies[0].source.byteLength"
        )
        yield* refuses(copyBatch([{ destination: host, source: host }]), "copies[0].destination")
        yield* copyBatch([copy(0, 0), copy(8, 0), copy(16, 4)])
      })))
  })
}
