/**
 * Growable buffers on the stub driver: the calls, and what happens when one of them fails or the buffer is released meanwhile.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaMemory from "effect-cuda/CudaMemory"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, nothingHeld } from "../support/assertions.ts"
import { settled } from "../support/fibers.ts"
import { copyStub, nothingLive, onStub, openStub, until } from "../support/stubDriver.ts"
import { tracing } from "../support/tracing.ts"
import type { Line } from "../support/tracing.ts"

const stub = openStub()
const { callsOf, opened } = tracing(stub)

const mebi = 2 ** 20
const gibi = 2 ** 30

/** `CUmemAllocationProp`, as logged. */
const properties = "01000000000000000100000000000000" + "00".repeat(16)
/** `CUmemAccessDesc`, as logged. */
const access = "010000000000000003000000"

const stubHandles = (lines: ReadonlyArray<Line>) =>
  lines.filter(([name]) => name === "cuMemCreate").map((line) => line[3]!)

describe("growable buffers", () => {
  it.live("reserve addresses, map pieces of at most 64 MiB, and unmap them in the reverse order", () =>
    opened(() =>
      Effect.gen(function*() {
        const { lines, result: buffer } = yield* callsOf(CudaMemory.growable({ maxBytes: 200 * mebi - 1 }))
        const { address } = buffer
        assert.deepStrictEqual(lines, [
          ["cuDeviceGetAttribute", 1102, 102, 40],
          ["cuMemGetAllocationGranularity", properties, 1],
          ["cuMemAddressReserve", address, 200 * mebi]
        ])
        const growing = yield* callsOf(CudaMemory.grow(buffer, 70 * mebi - 1))
        const piece = (handle: string | number, from: number, bytes: number) => [
          ["cuMemCreate", bytes, properties, handle],
          ["cuMemMap", address + from, bytes, handle],
          ["cuMemRelease", handle],
          ["cuMemSetAccess", address + from, bytes, access]
        ]
        const [first, second] = stubHandles(growing.lines)
        assert.deepStrictEqual(growing.lines, [
          ...piece(first!, 0, 64 * mebi),
          ...piece(second!, 64 * mebi, 6 * mebi)
        ])
        assert.strictEqual(buffer.mappedBytes, 70 * mebi)
        const inside = yield* callsOf(CudaMemory.grow(buffer, 70 * mebi))
        assert.deepStrictEqual(inside.lines, [])
        const shrinking = yield* callsOf(CudaMemory.shrink(buffer, 0))
        assert.deepStrictEqual(shrinking.lines, [
          ["cuMemUnmap", address + 64 * mebi, 6 * mebi],
          ["cuMemUnmap", address, 64 * mebi]
        ])
      })
    ))

  it.live("are copied piece by piece", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: gibi, initial: 4 * mebi })
        yield* CudaMemory.grow(buffer, 70 * mebi)
        const other = yield* CudaMemory.allocate(70 * mebi)
        const { calls } = yield* callsOf(CudaMemory.copy(other, buffer, stream))
        assert.deepStrictEqual(calls.map(({ args, name }) => [name, args[2]]), [
          ["cuMemcpyDtoDAsync_v2", 4 * mebi],
          ["cuMemcpyDtoDAsync_v2", 64 * mebi],
          ["cuMemcpyDtoDAsync_v2", 2 * mebi]
        ])
        const rows = (of: CudaMemory.DeviceBuffer) => CudaMemory.rows(of, mebi)
        yield* CudaMemory.copy2D(rows(other), rows(buffer), { width: 1024, height: 70 }, stream)
        yield* CudaMemory.fill(buffer, 1, stream)
      })
    ))

  it.live("let the event loop turn between pieces", () =>
    opened(() =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.growable({ maxBytes: 2 * gibi })
        let turns = 0
        let on = true
        const count = () => {
          turns++
          if (on) setImmediate(count)
        }
        setImmediate(count)
        yield* CudaMemory.grow(buffer, gibi)
        on = false
        assert.isAtLeast(turns, 10)
      })
    ))

  it.live("undo a growth that is interrupted", () =>
    opened(() =>
      Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime
        const buffer = yield* CudaMemory.growable({ maxBytes: 4 * gibi, initial: 2 * mebi })
        const growing = yield* Effect.forkChild(CudaMemory.grow(buffer, 4 * gibi))
        yield* until("the buffer grows", () => buffer.mappedBytes > 2 * mebi)
        assert.isBelow(buffer.mappedBytes, 4 * gibi)
        yield* Fiber.interrupt(growing)
        assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [2 * mebi, 2 * mebi])
        assert.strictEqual((yield* liveResources).deviceBytes, 2 * mebi)
      })
    ))

  it.live("undo a growth that fails, also in the middle of a piece", () =>
    opened(() =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.growable({ maxBytes: 4 * gibi, initial: 2 * mebi })
        for (const name of ["cuMemCreate", "cuMemMap", "cuMemSetAccess"] as const) {
          stub.fail(name, 1, { after: 2 })
          yield* failsWith(CudaMemory.grow(buffer, gibi), "InvalidValue")
          assert.deepStrictEqual([buffer.byteLength, buffer.mappedBytes], [2 * mebi, 2 * mebi])
          assert.strictEqual(stub.live.allocations, 2)
        }
        yield* CudaMemory.grow(buffer, gibi)
      })
    ))

  it.live("try again after pending releases if the device is full", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.growable({ maxBytes: 8 * gibi })
        yield* Effect.scoped(Effect.flatMap(
          CudaMemory.allocate(7 * gibi),
          (other) => CudaMemory.fill(CudaMemory.slice(other, 0, 64), 0, stream)
        ))
        yield* CudaMemory.grow(buffer, 6 * gibi)
        yield* failsWith(CudaMemory.grow(buffer, 8 * gibi), "OutOfMemory")
      }), { prepare: () => void (stub.memory = 8 * gibi - 4 * mebi) }))

  it.live("make room for other memory once they are released", () =>
    opened(() =>
      Effect.gen(function*() {
        const own = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.growable({ maxBytes: 8 * gibi, initial: 6 * gibi }), own)
        assert.strictEqual(buffer.mappedBytes, 6 * gibi)
        yield* Scope.close(own, Exit.void)
        yield* CudaMemory.allocate(7 * gibi)
      }), { prepare: () => void (stub.memory = 8 * gibi) }))

  it.live("are unmapped after the work that uses them", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const own = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.growable({ maxBytes: gibi, initial: 2 * mebi }), own)
        stub.work(stream)
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* Scope.close(own, Exit.void)
        assert.lengthOf(stub.calls("cuMemUnmap"), 0)
        stub.finish(stream)
        yield* CudaStream.synchronize(stream)
        yield* settled
        assert.deepStrictEqual([stub.calls("cuMemUnmap").length, stub.calls("cuMemAddressFree").length], [1, 1])
      })
    ))

  it.live("that are still there when the runtime ends are returned", () =>
    Effect.gen(function*() {
      const leaked = yield* Scope.make()
      yield* onStub(
        stub,
        Scope.provide(CudaMemory.growable({ maxBytes: 8 * gibi, initial: 3 * gibi }), leaked)
      )
      assert.deepStrictEqual(stub.live, nothingLive)
      yield* Scope.close(leaked, Exit.void)
    }))

  it.live("are not supported by a driver without the functions, or by a device without them", () =>
    Effect.gen(function*() {
      const refused = Effect.gen(function*() {
        yield* failsWith(CudaMemory.growable({ maxBytes: mebi }), "NotSupported")
        assert.deepStrictEqual(yield* (yield* CudaRuntime).liveResources, nothingHeld)
      })
      yield* onStub(copyStub(["cuMemSetAccess=stub_hidden"]), refused)
      yield* onStub(stub, refused, { prepare: () => stub.setAttribute(102, 0) })
    }))
})
