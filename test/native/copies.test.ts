/**
 * 2D copies and batched copies on the driver: one call where the driver supports it, and the fallback where it does not.
 */
import { assert, describe, it } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import { copyStub, openStub } from "../support/stubDriver.ts"
import type { StubFunctionName } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"
import type { Line } from "../support/tracing.ts"

const stub = openStub()
const { callsOf, opened, openDevice } = tracing(stub)

const mebi = 1024 ** 2
/** Pinned memory is known to the driver in segments of 16 MiB. */
const segment = 16 * mebi
const twoDevices = { prepare: () => void (stub.devices = 2) }
const unlinkedDevices = {
  prepare: () => {
    stub.devices = 2
    stub.unlinked = true
  }
}

/** Gives each row its own byte. */
const paint = (host: CudaMemory.HostBuffer, pitch: number, width: number, rows: number) => {
  for (let row = 0; row < rows; row++) host.bytes.fill(row + 1, row * pitch, row * pitch + width)
}

/** The byte that fills a row; undefined for a row of several bytes. */
const colour = (host: CudaMemory.HostBuffer, offset: number, width: number): number | undefined => {
  const row = Buffer.from(host.bytes.buffer, host.bytes.byteOffset + offset, width)
  return row.equals(Buffer.alloc(width, row[0])) ? row[0] : undefined
}

describe("a 2D copy", () => {
  it.live("is one call per direction, with the kind, address and pitch of each end", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(1024)
        const [one, two] = yield* Effect.all([CudaMemory.allocate(1024), CudaMemory.allocate(1024)])
        const size = { width: 24, height: 3 }
        paint(host, 100, 24, 3)
        const at = (buffer: CudaMemory.Slice, offset: number, pitch: number) =>
          CudaMemory.rows(CudaMemory.slice(buffer, offset), pitch)
        const up = yield* callsOf(CudaMemory.copy2D(at(one, 8, 32), at(host, 0, 100), size, stream))
        assert.deepStrictEqual(up.lines, [
          ["cuMemcpy2DAsync_v2", 2, one.address + 8, 32, 1, host.address, 100, 24, 3, stream.handle]
        ])
        const across = yield* callsOf(CudaMemory.copy2D(at(two, 16, 48), at(one, 8, 32), size, stream))
        assert.deepStrictEqual(across.lines, [
          ["cuMemcpy2DAsync_v2", 2, two.address + 16, 48, 2, one.address + 8, 32, 24, 3, stream.handle]
        ])
        const down = yield* callsOf(CudaMemory.copy2D(at(host, 512, 30), at(two, 16, 48), size, stream))
        assert.deepStrictEqual(down.lines, [
          ["cuMemcpy2DAsync_v2", 1, host.address + 512, 30, 2, two.address + 16, 48, 24, 3, stream.handle]
        ])
        assert.deepStrictEqual([0, 1, 2].map((row) => colour(host, 512 + row * 30, 24)), [1, 2, 3])
        assert.strictEqual(host.bytes[512 + 24], 0)
      })
    ))

  it.live("passes pitches and offsets above 4 GiB untruncated", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const gibi = 1024 ** 3
          const stream = yield* CudaStream.make()
          const buffer = yield* CudaMemory.allocate(12 * gibi)
          const far = CudaMemory.rows(CudaMemory.slice(buffer, 5 * gibi), 2 ** 31 - 1)
          const { lines } = yield* callsOf(CudaMemory.copy2D(buffer, far, { width: 4, height: 2 }, stream))
          assert.deepStrictEqual(lines, [
            ["cuMemcpy2DAsync_v2", 2, buffer.address, 4, 2, buffer.address + 5 * gibi, 2 ** 31 - 1, 4, 2, stream.handle]
          ])
        }),
      { prepare: () => void (stub.memory = 16 * 1024 ** 3) }
    ))

  it.live("happens in the context of a default stream", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.defaultStream()
        const [one, two] = yield* Effect.all([CudaMemory.allocate(64), CudaMemory.allocate(64)])
        const { lines } = yield* callsOf(
          CudaMemory.copy2D(CudaMemory.rows(one, 16), two, { width: 8, height: 4 }, stream)
        )
        assert.deepStrictEqual(
          lines,
          within(context, ["cuMemcpy2DAsync_v2", 2, one.address, 16, 2, two.address, 8, 8, 4, 1])
        )
      })
    ))

  it.live("of contiguous rows on both sides is one plain copy", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(segment + mebi)
        const device = yield* CudaMemory.allocate(segment + mebi)
        const small = yield* callsOf(CudaMemory.copy2D(device, host, { width: 12, height: 5 }, stream))
        assert.deepStrictEqual(small.lines, [
          ["cuMemcpyHtoDAsync_v2", device.address, host.address, 60, stream.handle]
        ])
        const large = yield* callsOf(CudaMemory.copy2D(device, host, { width: 3 * 1024, height: 5600 }, stream))
        assert.deepStrictEqual(large.lines, [
          ["cuMemcpyHtoDAsync_v2", device.address, host.address, segment, stream.handle],
          [
            "cuMemcpyHtoDAsync_v2",
            device.address + segment,
            host.address + segment,
            3 * 1024 * 5600 - segment,
            stream.handle
          ]
        ])
      })
    ))

  it.live("is split at pinned segment boundaries, with a split row copied separately", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const [pitch, width, height] = [5 * mebi, 3 * mebi, 8]
        const host = yield* CudaMemory.allocateHost(40 * mebi)
        const device = yield* CudaMemory.allocate(height * width)
        paint(host, pitch, width, height)
        const rows = CudaMemory.rows(host, pitch)
        // Rows begin at 0, 5, 10, 15, 20, 25, 30 and 35 MiB: that at 15 crosses 16, that at 30 crosses 32.
        const d = (mebibytes: number) => device.address + mebibytes * mebi
        const h = (mebibytes: number) => host.address + mebibytes * mebi
        const up = yield* callsOf(CudaMemory.copy2D(device, rows, { width, height }, stream))
        const rowsUp = (to: number, from: number, count: number): Line => [
          "cuMemcpy2DAsync_v2",
          2,
          d(to),
          width,
          1,
          h(from),
          pitch,
          width,
          count,
          stream.handle
        ]
        assert.deepStrictEqual(up.lines, [
          rowsUp(0, 0, 3),
          ["cuMemcpyHtoDAsync_v2", d(9), h(15), mebi, stream.handle],
          ["cuMemcpyHtoDAsync_v2", d(10), h(16), 2 * mebi, stream.handle],
          rowsUp(12, 20, 2),
          ["cuMemcpyHtoDAsync_v2", d(18), h(30), 2 * mebi, stream.handle],
          ["cuMemcpyHtoDAsync_v2", d(20), h(32), mebi, stream.handle],
          rowsUp(21, 35, 1)
        ])
        host.bytes.fill(0)
        const down = yield* callsOf(CudaMemory.copy2D(rows, device, { width, height }, stream))
        assert.deepStrictEqual(
          down.lines.map(([name]) => name),
          up.lines.map(([name]) => String(name).replace("HtoD", "DtoH"))
        )
        const rowNumbers = Array.from({ length: height }, (_, row) => row)
        assert.deepStrictEqual(
          rowNumbers.map((row) => colour(host, row * pitch, width)),
          rowNumbers.map((row) => row + 1)
        )
        assert.deepStrictEqual(
          rowNumbers.map((row) => colour(host, row * pitch + width, pitch - width)),
          rowNumbers.map(() => 0)
        )
      })
    ))

  it.live("whose rows end and begin exactly at a pinned segment boundary splits no row", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(2 * segment)
        const device = yield* CudaMemory.allocate(16 * mebi)
        const pitch = 4 * mebi
        const end = CudaMemory.rows(CudaMemory.slice(host, 2 * mebi), pitch)
        const { calls } = yield* callsOf(CudaMemory.copy2D(device, end, { width: 2 * mebi, height: 8 }, stream))
        assert.deepStrictEqual(calls.map(({ args, name }) => [name, args[4], args[7]]), [
          ["cuMemcpy2DAsync_v2", host.address + 2 * mebi, 4],
          ["cuMemcpy2DAsync_v2", host.address + 18 * mebi, 4]
        ])
      })
    ))

  it.live("between devices without a link goes row by row, with both contexts", () =>
    opened(
      ({ context }) =>
        Effect.gen(function*() {
          const other = yield* openDevice(1)
          const stream = yield* CudaStream.make({ device: 1 })
          const from = yield* CudaMemory.allocate(64)
          const to = yield* CudaMemory.allocate(64, { device: 1 })
          const copy = CudaMemory.copy2D(
            CudaMemory.rows(to, 20),
            CudaMemory.rows(from, 16),
            { width: 8, height: 3 },
            stream
          )
          const { calls } = yield* callsOf(copy)
          assert.deepStrictEqual(
            calls.filter(({ name }) => name.startsWith("cuMemcpy")).map(({ args, name }) => [name, ...args]),
            [0, 1, 2].map((row) => [
              "cuMemcpyPeerAsync",
              to.address + row * 20,
              other.context,
              from.address + row * 16,
              context,
              8,
              stream.handle
            ])
          )
          const tight = yield* callsOf(CudaMemory.copy2D(to, from, { width: 8, height: 3 }, stream))
          const copied = tight.calls.filter(({ name }) => name.startsWith("cuMemcpy"))
          assert.deepStrictEqual(copied.map(({ args, name }) => [name, args[4]]), [["cuMemcpyPeerAsync", 24]])
        }),
      unlinkedDevices
    ))

  it.live("between devices with a link is a single call", () =>
    opened(
      () =>
        Effect.gen(function*() {
          yield* openDevice(1)
          const stream = yield* CudaStream.make({ device: 1 })
          const from = yield* CudaMemory.allocate(64)
          const to = yield* CudaMemory.allocate(64, { device: 1 })
          const size = { width: 8, height: 3 }
          const copy = CudaMemory.copy2D(CudaMemory.rows(to, 20), CudaMemory.rows(from, 16), size, stream)
          yield* copy
          const again = yield* callsOf(copy)
          assert.deepStrictEqual(again.calls.map(({ name }) => name), ["cuMemcpy2DAsync_v2"])
        }),
      twoDevices
    ))

  it.live("of managed memory works like device memory, on the streams of every device", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make({ device: 1 })
          const managed = yield* CudaMemory.allocateManaged(64)
          const device = yield* CudaMemory.allocate(64, { device: 1 })
          const size = { width: 8, height: 3 }
          const { lines } = yield* callsOf(CudaMemory.copy2D(device, CudaMemory.rows(managed, 16), size, stream))
          assert.deepStrictEqual(lines, [
            ["cuMemcpy2DAsync_v2", 2, device.address, 8, 2, managed.address, 16, 8, 3, stream.handle]
          ])
        }),
      twoDevices
    ))

  it.live("of no bytes makes no driver call", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const [one, two] = yield* Effect.all([CudaMemory.allocate(64), CudaMemory.allocate(64)])
        const { lines } = yield* callsOf(Effect.andThen(
          CudaMemory.copy2D(one, two, { width: 0, height: 4 }, stream),
          CudaMemory.copy2D(one, two, { width: 4, height: 0 }, stream)
        ))
        assert.deepStrictEqual(lines, [])
      })
    ))
})

describe("a batch of copies", () => {
  /** Ranges of 16 bytes of a pinned and of two device buffers. */
  const prepared = Effect.gen(function*() {
    const host = yield* CudaMemory.allocateHost(64)
    const [from, to] = yield* Effect.all([CudaMemory.allocate(64), CudaMemory.allocate(64)])
    const at = (buffer: CudaMemory.Slice, offset: number) => CudaMemory.slice(buffer, offset, 16)
    host.bytes.fill(7)
    const copies: ReadonlyArray<CudaMemory.BatchCopy> = [
      { destination: at(to, 0), source: at(host, 16) },
      { destination: at(to, 16), source: at(from, 32) },
      { destination: at(host, 48), source: at(from, 0) }
    ]
    return { host, from, to, copies }
  })

  /** The same, one by one. */
  const oneByOne = ({ from, host, to }: Effect.Success<typeof prepared>, stream: number): ReadonlyArray<Line> => [
    ["cuMemcpyHtoDAsync_v2", to.address, host.address + 16, 16, stream],
    ["cuMemcpyDtoDAsync_v2", to.address + 16, from.address + 32, 16, stream],
    ["cuMemcpyDtoHAsync_v2", host.address + 48, from.address, 16, stream]
  ]

  /** The batch call for copies of a number of bytes. */
  const together = (
    stream: number,
    ...copies: ReadonlyArray<readonly [to: number, from: number, bytes: number]>
  ): Line => ["cuMemcpyBatchAsync", copies.length, 1, stream, ...copies.flat()]

  it.live("is one call in the context of its stream, with copies of every kind", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const made = yield* prepared
        const { from, host, to } = made
        yield* CudaMemory.fill(from, 9, stream)
        const { lines } = yield* callsOf(CudaMemory.copyBatch(made.copies, stream))
        assert.deepStrictEqual(
          lines,
          within(
            context,
            together(
              stream.handle,
              [to.address, host.address + 16, 16],
              [to.address + 16, from.address + 32, 16],
              [host.address + 48, from.address, 16]
            )
          )
        )
        assert.deepStrictEqual([host.bytes[47], host.bytes[48], host.bytes[63]], [7, 9, 9])
      })
    ))

  it.live("omits empty copies, and is a plain copy when one remains", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const { copies: [first, second], ...made } = yield* prepared
        const empty = { destination: CudaMemory.slice(made.to, 0, 0), source: CudaMemory.slice(made.from, 9, 0) }
        const two = yield* callsOf(CudaMemory.copyBatch([empty, first!, empty, second!], stream))
        assert.deepStrictEqual(two.calls[1]!.args.slice(0, 3), [2, 1, stream.handle])
        const one = yield* callsOf(CudaMemory.copyBatch([empty, second!], stream))
        assert.deepStrictEqual(one.lines, within(context, oneByOne({ ...made, copies: [] }, stream.handle)[1]!))
        const none = yield* callsOf(CudaMemory.copyBatch([empty, empty], stream))
        const nothing = yield* callsOf(CudaMemory.copyBatch([], stream))
        assert.deepStrictEqual([none.lines, nothing.lines], [[], []])
      })
    ))

  it.live("is split at pinned segment boundaries", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(3 * segment)
        const device = yield* CudaMemory.allocate(3 * segment)
        const from = segment - 4096
        const { lines } = yield* callsOf(CudaMemory.copyBatch([
          { destination: CudaMemory.slice(device, 0, 64), source: CudaMemory.slice(host, 0, 64) },
          {
            destination: CudaMemory.slice(device, 64, segment + 8192),
            source: CudaMemory.slice(host, from, segment + 8192)
          }
        ], stream))
        const to = device.address + 64
        assert.deepStrictEqual(
          lines[1],
          together(
            stream.handle,
            [device.address, host.address, 64],
            [to, host.address + from, 4096],
            [to + 4096, host.address + segment, segment],
            [to + 4096 + segment, host.address + 2 * segment, 4096]
          )
        )
      })
    ))

  it.live("of a thousand copies is one call", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const host = yield* CudaMemory.allocateHost(4000)
        const device = yield* CudaMemory.allocate(4000)
        host.bytes.forEach((_, index) => host.bytes[index] = index % 251)
        const parts = Array.from({ length: 1000 }, (_, index) => index * 4)
        const scattered = parts.map((offset) => ({
          destination: CudaMemory.slice(device, 3996 - offset, 4),
          source: CudaMemory.slice(host, offset, 4)
        }))
        const { calls } = yield* callsOf(CudaMemory.copyBatch(scattered, stream))
        assert.deepStrictEqual(calls.map(({ name }) => name), [
          "cuCtxPushCurrent_v2",
          "cuMemcpyBatchAsync",
          "cuCtxPopCurrent_v2"
        ])
        const before = host.bytes.slice()
        yield* CudaMemory.copy(host, device, stream)
        assert.isTrue(parts.every((offset) => host.bytes[3996 - offset] === before[offset]))
      })
    ))

  it.live("falls back to single copies on the legacy default stream", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.defaultStream()
        const made = yield* prepared
        const { lines } = yield* callsOf(CudaMemory.copyBatch(made.copies, stream))
        assert.deepStrictEqual(lines, within(context, ...oneByOne(made, 1)))
      })
    ))

  it.live("is one call on the per-thread default stream", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.defaultStream({ mode: "perThread" })
        const made = yield* prepared
        const { calls } = yield* callsOf(CudaMemory.copyBatch(made.copies, stream))
        assert.deepStrictEqual(calls.map(({ context, name }) => [name, context]).slice(1, 2), [
          ["cuMemcpyBatchAsync", context]
        ])
      })
    ))

  it.live("takes copies between devices with a link", () =>
    opened(
      () =>
        Effect.gen(function*() {
          yield* openDevice(1)
          const stream = yield* CudaStream.make()
          const made = yield* prepared
          const far = yield* CudaMemory.allocate(64, { device: 1 })
          const copies = [...made.copies, { destination: far, source: made.from }]
          const { calls } = yield* callsOf(CudaMemory.copyBatch(copies, stream))
          const names = calls.map(({ name }) => name).filter((name) => name.startsWith("cuMemcpy"))
          assert.deepStrictEqual(names, ["cuMemcpyBatchAsync"])
        }),
      twoDevices
    ))

  it.live("falls back to single copies when one is between devices without a link", () =>
    opened(
      ({ context }) =>
        Effect.gen(function*() {
          const other = yield* openDevice(1)
          const stream = yield* CudaStream.make()
          const made = yield* prepared
          const far = yield* CudaMemory.allocate(64, { device: 1 })
          const copies = [...made.copies, { destination: far, source: made.from }]
          const { calls } = yield* callsOf(CudaMemory.copyBatch(copies, stream))
          assert.deepStrictEqual(
            calls.filter(({ name }) => name.startsWith("cuMemcpy")).map(({ args, name }) => [name, ...args]),
            [
              ...oneByOne(made, stream.handle),
              ["cuMemcpyPeerAsync", far.address, other.context, made.from.address, context, 64, stream.handle]
            ]
          )
          assert.lengthOf(stub.calls("cuMemPoolSetAccess"), 0)
        }),
      unlinkedDevices
    ))

  it.live("runs in the context of its stream when that is on another device than the copies", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const other = yield* openDevice(1)
          const stream = yield* CudaStream.make({ device: 1 })
          const host = yield* CudaMemory.allocateHost(64)
          const managed = yield* CudaMemory.allocateManaged(64)
          const half = (offset: number) => ({
            destination: CudaMemory.slice(managed, offset, 32),
            source: CudaMemory.slice(host, offset, 32)
          })
          const { calls } = yield* callsOf(CudaMemory.copyBatch([half(0), half(32)], stream))
          assert.deepStrictEqual(calls.map(({ context, name }) => [name, context])[1], [
            "cuMemcpyBatchAsync",
            other.context
          ])
        }),
      twoDevices
    ))

  it.live("falls back to single copies on a driver without batches", () => {
    const older = copyStub(["cuMemcpyBatchAsync=stub_hidden"])
    const { callsOf, opened } = tracing(older)
    return opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const made = yield* prepared
        const { lines } = yield* callsOf(CudaMemory.copyBatch(made.copies, stream))
        assert.deepStrictEqual(lines, within(context, ...oneByOne(made, stream.handle)))
      })
    )
  })
})

describe("a failing copy of ordered memory", () => {
  type Prepared = Effect.Success<typeof prepared>

  const prepared = Effect.gen(function*() {
    const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
    const byDefault = yield* CudaStream.defaultStream()
    const host = yield* CudaMemory.allocateHost(40 * mebi, { ordered: true })
    const device = yield* CudaMemory.allocate(20 * mebi, { ordered: true })
    return { stream, other, byDefault, host, device }
  })

  /** Two rows, the two parts of a split row, two rows. */
  const rows = ({ device, host, stream }: Prepared) =>
    CudaMemory.copy2D(device, CudaMemory.rows(host, 7 * mebi), { width: 4 * mebi, height: 5 }, stream)

  const batch = ({ device, host }: Prepared, stream: CudaStream.CudaStream) =>
    CudaMemory.copyBatch([
      { destination: CudaMemory.slice(device, 0, 64), source: CudaMemory.slice(host, 0, 64) },
      { destination: CudaMemory.slice(device, 64, 64), source: CudaMemory.slice(host, 64, 64) }
    ], stream)

  const failures: ReadonlyArray<
    readonly [
      string,
      StubFunctionName,
      after: number,
      (made: Prepared) => Effect.Effect<void, CudaError>,
      waits: number
    ]
  > = [
    ["of rows, at its first call", "cuMemcpy2DAsync_v2", 0, rows, 0],
    ["of rows, at the first part of a row", "cuMemcpyHtoDAsync_v2", 0, rows, 1],
    ["of rows, at the second part of a row", "cuMemcpyHtoDAsync_v2", 1, rows, 1],
    ["of rows, at its last call", "cuMemcpy2DAsync_v2", 1, rows, 1],
    ["of a batch", "cuMemcpyBatchAsync", 0, (made) => batch(made, made.stream), 1],
    ["of a batch, before its call", "cuCtxPushCurrent_v2", 0, (made) => batch(made, made.stream), 0],
    ["of a batch, at the first of its copies", "cuMemcpyHtoDAsync_v2", 0, (made) => batch(made, made.byDefault), 0],
    ["of a batch, at the second of its copies", "cuMemcpyHtoDAsync_v2", 1, (made) => batch(made, made.byDefault), 1]
  ]
  for (const [what, name, after, copy, waits] of failures) {
    it.live(`${what}, ${waits === 0 ? "orders nothing" : "still orders"} later uses`, () =>
      opened(() =>
        Effect.gen(function*() {
          const made = yield* prepared
          stub.fail(name, 1, { after })
          const error = yield* Effect.flip(copy(made))
          assert.strictEqual(error.reason._tag, "InvalidValue")
          const { calls } = yield* callsOf(CudaMemory.fill(made.device, 0, made.other))
          assert.lengthOf(calls.filter(({ name }) => name === "cuStreamWaitEvent"), waits)
        })
      ))
  }
})
