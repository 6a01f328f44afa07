/**
 * Managed memory on the driver: allocation, reuse and freeing, prefetch and advice, and the lifetime of its JavaScript views.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaMemoryPool from "effect-cuda/CudaMemoryPool"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith } from "../support/assertions.ts"
import { garbageCollected, untilCollected } from "../support/garbage.ts"
import { giveAway, viewing } from "../support/giveAway.ts"
import {
  assertReleased,
  copyStub,
  logged,
  nothingLive,
  onStub,
  openStub,
  pause,
  stubLayer,
  until
} from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"
import { begin, isPending, succeeds } from "../support/waits.ts"

const stub = openStub()
const { callsOf, opened, openDevice } = tracing(stub)

const mebi = 1024 ** 2
const concurrentManagedAccess = 89
const twoDevices = { prepare: () => void (stub.devices = 2) }

const frees = () => stub.calls("cuMemFree_v2").map(({ args }) => args[0])

/** Allocates managed memory, and releases it after some use. */
const used = (
  byteLength: number,
  use: (buffer: CudaMemory.ManagedBuffer) => Effect.Effect<unknown, unknown> = () => Effect.void
) =>
  Effect.orDie(Effect.scoped(
    Effect.map(Effect.tap(CudaMemory.allocateManaged(byteLength), use), ({ address }) => address)
  ))

/** Reads memory, and keeps no reference to it. */
const look = (buffer: CudaMemory.ManagedBuffer) => Effect.sync(() => void buffer.bytes[0])

describe("managed memory", () => {
  it.live("is allocated in the context of its device, for every stream", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const { context } = yield* openDevice(1)
          const { lines, result: buffer } = yield* callsOf(CudaMemory.allocateManaged(5 * 1024 ** 3, { device: 1 }))
          assert.deepStrictEqual(lines, [
            ["cuDeviceGetAttribute", 1000 + concurrentManagedAccess, concurrentManagedAccess, 41],
            ...within(context, ["cuMemAllocManaged", buffer.address, 5 * 1024 ** 3, 1])
          ])
          assert.deepStrictEqual([buffer.deviceIndex, buffer.isManaged], [1, true])
        }),
      twoDevices
    ))

  it.live("is not supported where the host cannot use it while the device works", () =>
    opened(() =>
      Effect.gen(function*() {
        stub.setAttribute(concurrentManagedAccess, 0)
        const error = yield* Effect.flip(CudaMemory.allocateManaged(64))
        assert.deepStrictEqual([error.reason._tag, error.call], ["NotSupported", "cuMemAllocManaged"])
        assert.lengthOf(stub.calls("cuMemAllocManaged"), 0)
      })
    ))

  it.live("is available on the oldest driver", () =>
    onStub(stub, CudaMemory.allocateManaged(64), { prepare: () => void (stub.version = 12000) }))

  it.live("is freed once its device is idle, in its context", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const address = yield* used(64)
        yield* until("it is freed", () => frees().length > 0)
        assert.deepStrictEqual(frees(), [address])
        assert.strictEqual(stub.calls("cuMemFree_v2")[0]!.context, context)
        assert.strictEqual(stub.blocked, 0)
      })
    ))

  it.live("is not freed while any stream of its device works", () =>
    opened(() =>
      Effect.gen(function*() {
        const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        stub.work(other)
        const address = yield* used(64, (buffer) => CudaMemory.fill(buffer, 0, stream))
        yield* pause(40)
        assert.deepStrictEqual(frees(), [])
        stub.finish(other)
        yield* until("it is freed", () => frees().length > 0)
        assert.deepStrictEqual([frees(), stub.blocked], [[address], 0])
      })
    ))

  it.live("is reused at its size once the work of its users is done", () =>
    opened(() =>
      Effect.gen(function*() {
        const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        stub.work(other)
        const first = yield* used(
          64,
          (buffer) => Effect.andThen(Effect.sync(() => stub.work(stream)), CudaMemory.fill(buffer, 0, stream))
        )
        const second = yield* CudaMemory.allocateManaged(64)
        assert.notStrictEqual(second.address, first)
        stub.finish(stream)
        yield* CudaStream.synchronize(stream)
        yield* pause(5)
        const larger = yield* CudaMemory.allocateManaged(65)
        assert.notStrictEqual(larger.address, first)
        const third = yield* CudaMemory.allocateManaged(64)
        assert.strictEqual(third.address, first)
        const fourth = yield* CudaMemory.allocateManaged(64)
        assert.notStrictEqual(fourth.address, first)
        stub.finish(other)
      })
    ))

  it.live("serves requests down to half its size, smallest fit first", () =>
    opened(() =>
      Effect.gen(function*() {
        const other = yield* CudaStream.make()
        stub.work(other)
        const [large, small] = yield* Effect.scoped(Effect.gen(function*() {
          const made = [yield* CudaMemory.allocateManaged(1000), yield* CudaMemory.allocateManaged(600)] as const
          return made.map(({ address }) => address)
        }))
        yield* pause(5)
        const tiny = yield* CudaMemory.allocateManaged(299)
        assert.isFalse([large, small].includes(tiny.address))
        assert.strictEqual((yield* CudaMemory.allocateManaged(500)).address, small)
        assert.strictEqual((yield* CudaMemory.allocateManaged(500)).address, large)
        stub.finish(other)
      })
    ))

  it.live("of many short-lived sizes stays bounded while a stream is busy", () =>
    opened(() =>
      Effect.gen(function*() {
        const other = yield* CudaStream.make()
        stub.work(other)
        for (let size = 1024; size < 2048; size += 16) {
          yield* Effect.scoped(CudaMemory.allocateManaged(size))
          yield* pause()
        }
        assert.isAtMost(stub.live.allocations, 64)
        for (let size = 2032; size > 1024; size -= 17) {
          yield* Effect.scoped(CudaMemory.allocateManaged(size))
          yield* pause()
        }
        assert.lengthOf(stub.calls("cuMemAllocManaged"), 64)
        stub.finish(other)
      })
    ))

  it.live("with advice is not reused", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.work(stream)
        const first = yield* used(64, CudaMemory.advise({ readMostly: true }))
        const next = yield* CudaMemory.allocateManaged(64)
        assert.notStrictEqual(next.address, first)
        stub.finish(stream)
      })
    ))

  it.live("is reused only on the device it was allocated on", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          stub.work(stream)
          const first = yield* used(64)
          const other = yield* CudaMemory.allocateManaged(64, { device: 1 })
          assert.notStrictEqual(other.address, first)
          stub.finish(stream)
        }),
      twoDevices
    ))

  it.live("left over is freed with the runtime", () =>
    Effect.gen(function*() {
      const addresses = yield* onStub(
        stub,
        Effect.gen(function*() {
          const runtime = yield* CudaRuntime
          const left = yield* runtime.managedAllocate(0, 64)
          return [left.address, yield* used(128)].map(Number)
        })
      )
      assert.sameMembers([...frees()], addresses)
    }))

  it.live("kept for reuse is freed when memory runs out, and with the runtime's pool", () =>
    opened(
      () =>
        Effect.gen(function*() {
          yield* used(60 * mebi)
          yield* Effect.scoped(CudaMemory.allocate(60 * mebi))
          const address = yield* used(60 * mebi)
          yield* used(1)
          yield* CudaMemoryPool.trim(yield* CudaMemoryPool.ofDevice())
          assert.include([...frees()], address)
          assert.strictEqual(stub.live.allocations, 0)
        }),
      { prepare: () => void (stub.memory = 64 * mebi) }
    ))

  it.live("with a pending release is awaited when memory runs out", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          yield* used(
            60 * mebi,
            (buffer) => Effect.andThen(Effect.sync(() => stub.work(stream)), CudaMemory.fill(buffer, 0, stream))
          )
          const waiting = yield* begin(CudaMemory.allocate(60 * mebi))
          assert.isTrue(isPending(waiting))
          stub.finish(stream)
          yield* succeeds(waiting)
        }),
      { prepare: () => void (stub.memory = 64 * mebi) }
    ))
})

describe("prefetching", () => {
  /** The prefetch lengths of some memory, with the event-loop turns before each. */
  const pieces = (
    buffer: CudaMemory.Slice<CudaMemory.ManagedBuffer>,
    location: CudaMemory.Location,
    stream: CudaStream.CudaStream
  ) =>
    Effect.gen(function*() {
      let turn = 0
      let isOver = false
      const turns: Array<number> = []
      const tick = () => {
        const known = stub.calls("cuMemPrefetchAsync_v2").reduce((sum, { times }) => sum + times, 0)
        while (turns.length < known) turns.push(turn)
        turn++
        if (!isOver) setImmediate(tick)
      }
      stub.clear()
      setImmediate(tick)
      yield* CudaMemory.prefetch(buffer, location, stream)
      isOver = true
      yield* pause(2)
      return { args: stub.calls("cuMemPrefetchAsync_v2").map(({ args }) => args), turns }
    })

  for (const [location, type, piece] of [["host", 2, 4 * mebi], [0, 1, 32 * mebi], [1, 1, 32 * mebi]] as const) {
    it.live(`to ${location} goes in pieces of ${piece / mebi} MiB, with turns of the event loop between`, () =>
      opened(
        () =>
          Effect.gen(function*() {
            const stream = yield* CudaStream.make()
            const buffer = yield* CudaMemory.allocateManaged(100 * mebi)
            const part = CudaMemory.slice(buffer, 4096, 2 * piece + 5)
            const { args, turns } = yield* pieces(part, location, stream)
            const id = location === "host" ? 0 : location
            const at = buffer.address + 4096
            assert.deepStrictEqual(args, [
              [at, piece, type, id, 0, stream.handle],
              [at + piece, piece, type, id, 0, stream.handle],
              [at + 2 * piece, 5, type, id, 0, stream.handle]
            ])
            assert.strictEqual(new Set(turns).size, 3)
          }),
        twoDevices
      ))
  }

  it.live("on a default stream happens in its context; on any other in none", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocateManaged(4096)
        const [stream, byDefault] = yield* Effect.all([CudaStream.make(), CudaStream.defaultStream()])
        const own = yield* callsOf(CudaMemory.prefetch(buffer, 0, stream))
        assert.deepStrictEqual(own.lines, [["cuMemPrefetchAsync_v2", buffer.address, 4096, 1, 0, 0, stream.handle]])
        const other = yield* callsOf(CudaMemory.prefetch(buffer, "host", byDefault))
        assert.deepStrictEqual(
          other.lines,
          within(context, ["cuMemPrefetchAsync_v2", buffer.address, 4096, 2, 0, 0, 1])
        )
        const none = yield* callsOf(CudaMemory.prefetch(CudaMemory.slice(buffer, 9, 0), 0, stream))
        assert.deepStrictEqual(none.lines, [])
      })
    ))

  it.live("ends between pieces when interrupted", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocateManaged(4096 * mebi)
        const fiber = yield* Effect.forkChild(CudaMemory.prefetch(buffer, "host", stream))
        yield* until("a few pieces are enqueued", () => stub.calls("cuMemPrefetchAsync_v2").length > 2)
        yield* Fiber.interrupt(fiber)
        const count = stub.calls("cuMemPrefetchAsync_v2").length
        assert.isBelow(count, 1024)
        yield* pause(5)
        assert.lengthOf(stub.calls("cuMemPrefetchAsync_v2"), count)
      })
    ))

  const losses = [
    ["memory", (memory: Scope.Closeable) => memory],
    ["stream", (_: Scope.Closeable, stream: Scope.Closeable) => stream]
  ] as const
  for (const [what, which] of losses) {
    it.live(`fails when its ${what} is released between pieces`, () =>
      opened(() =>
        Effect.gen(function*() {
          const [memory, streams] = [yield* Scope.make(), yield* Scope.make()]
          const stream = yield* Scope.provide(CudaStream.make(), streams)
          const buffer = yield* Scope.provide(CudaMemory.allocateManaged(4096 * mebi), memory)
          const fiber = yield* Effect.forkChild(
            failsWith(CudaMemory.prefetch(buffer, "host", stream), "ResourceReleased")
          )
          yield* until("a few pieces are enqueued", () => stub.calls("cuMemPrefetchAsync_v2").length > 2)
          yield* Scope.close(which(memory, streams), Exit.void)
          yield* Fiber.join(fiber)
          yield* Scope.close(memory, Exit.void)
          yield* Scope.close(streams, Exit.void)
        })
      ))
  }

  it.live("is a use of the memory, which is not freed before it is done", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.work(stream)
        yield* used(4096, CudaMemory.prefetch("host", stream))
        yield* pause(20)
        assert.deepStrictEqual(frees(), [])
        stub.finish(stream)
      })
    ))

  it.live("and advice are not supported by a driver without them", () => {
    const older = copyStub(["cuMemPrefetchAsync_v2=stub_hidden", "cuMemAdvise_v2=stub_hidden_too"])
    return tracing(older).opened(() =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocateManaged(64)
        const stream = yield* CudaStream.make()
        const errors = yield* Effect.all([
          Effect.flip(CudaMemory.prefetch(buffer, "host", stream)),
          Effect.flip(CudaMemory.advise(buffer, { readMostly: true }))
        ])
        assert.deepStrictEqual(errors.map(({ call, reason }) => [reason._tag, call]), [
          ["NotSupported", "cuMemPrefetchAsync"],
          ["NotSupported", "cuMemAdvise"]
        ])
      })
    )
  })
})

describe("advice", () => {
  const advices: ReadonlyArray<readonly [CudaMemory.Advice, advice: number, type: number, id: number]> = [
    [{ readMostly: true }, 1, 2, 0],
    [{ readMostly: false }, 2, 2, 0],
    [{ preferredLocation: 1 }, 3, 1, 1],
    [{ preferredLocation: "host" }, 3, 2, 0],
    [{ preferredLocation: "none" }, 4, 2, 0],
    [{ accessedBy: 1 }, 5, 1, 1],
    [{ accessedBy: "host" }, 5, 2, 0],
    [{ notAccessedBy: 0 }, 6, 1, 0],
    [{ notAccessedBy: "host" }, 6, 2, 0]
  ]
  for (const [advice, number, type, id] of advices) {
    it.live(`${JSON.stringify(advice)} is number ${number}, given in the context of the memory`, () =>
      opened(
        ({ context }) =>
          Effect.gen(function*() {
            const buffer = yield* CudaMemory.allocateManaged(4096)
            const part = CudaMemory.slice(buffer, 1024, 2048)
            const { lines } = yield* callsOf(CudaMemory.advise(part, advice))
            assert.deepStrictEqual(
              lines,
              within(context, ["cuMemAdvise_v2", buffer.address + 1024, 2048, number, type, id])
            )
            const none = yield* callsOf(CudaMemory.advise(CudaMemory.slice(buffer, 0, 0), advice))
            assert.deepStrictEqual(none.lines, [])
          }),
        twoDevices
      ))
  }
})

describe("a JavaScript view of managed memory", () => {
  it.live("is the memory itself, and empty once it is released", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocateManaged(64)
          yield* CudaMemory.fill(buffer, 7, stream)
          assert.deepStrictEqual(buffer.bytes, new Uint8Array(64).fill(7))
          CudaMemory.view(CudaMemory.slice(buffer, 8, 8), Uint32Array)[1] = 0x01020304
          const host = yield* CudaMemory.allocateHost(64)
          yield* CudaMemory.copy(host, buffer, stream)
          assert.deepStrictEqual(host.bytes.slice(11, 17), Uint8Array.of(7, 4, 3, 2, 1, 7))
          return buffer
        }))
        assert.strictEqual(buffer.bytes.byteLength, 0)
        assert.strictEqual(CudaMemory.view(buffer, Float32Array).length, 0)
        yield* untilCollected("its views are gone", () => frees().length > 0)
      })
    ))

  it.live("keeps the memory until it is collected, and then frees it", () =>
    opened(() =>
      Effect.gen(function*() {
        const seen: { bytes?: Uint8Array } = {}
        const address = yield* used(64, (buffer) => Effect.sync(() => void (seen.bytes = buffer.bytes.fill(3))))
        yield* garbageCollected
        const next = yield* CudaMemory.allocateManaged(64)
        assert.notStrictEqual(next.address, address)
        assert.deepStrictEqual([seen.bytes, frees()], [new Uint8Array(64).fill(3), []])
        delete seen.bytes
        yield* untilCollected("its view is gone", () => frees().length > 0)
        assert.deepStrictEqual(frees(), [address])
      })
    ))

  it.live("that the program gave away is refused, and never freed", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* Effect.scoped(Effect.gen(function*() {
          const managed = yield* CudaMemory.allocateManaged(1000)
          giveAway(managed.bytes.buffer)
          const refused = yield* failsWith(CudaMemory.prefetch(managed, "host", stream), "InvalidArgument")
          assert.include(refused.value, "was transferred")
          const thrown = yield* failsWith(viewing(managed), "InvalidArgument")
          assert.strictEqual(thrown.argument, "buffer")
        }))
        yield* garbageCollected
        assert.deepStrictEqual(frees(), [])
      }),
      { left: { allocations: 1, contexts: 1 } }
    ))

  it.live("keeps the memory as long as any part of it is reachable", () =>
    opened(() =>
      Effect.gen(function*() {
        const seen: { part?: Uint32Array } = {}
        yield* used(64, (buffer) =>
          Effect.sync(() => {
            seen.part = CudaMemory.view(CudaMemory.slice(buffer, 16, 4), Uint32Array)
            seen.part[0] = 5
          }))
        yield* garbageCollected
        assert.deepStrictEqual([seen.part![0], frees()], [5, []])
        delete seen.part
        yield* untilCollected("its view is gone", () => frees().length > 0)
      })
    ))

  it.live("does not keep the memory once nothing references it", () =>
    opened(() =>
      Effect.gen(function*() {
        const address = yield* used(64, look)
        yield* untilCollected("its view is gone", () => frees().length > 0)
        assert.deepStrictEqual(frees(), [address])
      })
    ))

  it.live("keeps the context, which is released after the last view, whatever happened to the runtime", () =>
    Effect.gen(function*() {
      stub.reset()
      const seen: Array<Uint8Array> = []
      const program = Effect.gen(function*() {
        for (const value of [1, 2]) {
          const buffer = yield* CudaMemory.allocateManaged(64)
          seen.push(buffer.bytes.fill(value))
        }
      })
      yield* Effect.provide(Effect.scoped(program), stubLayer(stub))
      assert.isUndefined(stub.misuse)
      assert.deepStrictEqual(stub.live, { ...nothingLive, allocations: 2, contexts: 1 })
      // By now only its views reference the runtime.
      yield* garbageCollected
      assert.deepStrictEqual(seen.map((bytes) => bytes[63]), [1, 2])
      seen.pop()
      yield* untilCollected("the first is freed", () => stub.live.allocations === 1)
      yield* garbageCollected
      assert.deepStrictEqual([stub.live.contexts, seen[0]![63]], [1, 1])
      stub.clear()
      seen.pop()
      yield* untilCollected("the context is released", () => stub.live.contexts === 0)
      yield* pause(30)
      assert.deepStrictEqual(stub.calls().map(({ main, name }) => [name, main]), [
        ["cuCtxPushCurrent_v2", true],
        ["cuMemFree_v2", true],
        ["cuCtxPopCurrent_v2", true],
        ["cuDevicePrimaryCtxRelease_v2", false]
      ])
      assertReleased(stub)
    }))

  it.live("keeps the context of its own device only", () =>
    Effect.gen(function*() {
      stub.reset()
      stub.devices = 2
      const seen: Array<Uint8Array> = []
      const program = Effect.gen(function*() {
        yield* CudaMemory.allocateManaged(64, { device: 0 })
        const buffer = yield* CudaMemory.allocateManaged(64, { device: 1 })
        seen.push(buffer.bytes)
      })
      yield* Effect.provide(Effect.scoped(program), stubLayer(stub))
      assert.deepStrictEqual(stub.live, { ...nothingLive, allocations: 1, contexts: 1 })
      // A runtime that uses the device meanwhile retains the context itself.
      yield* Effect.provide(Effect.scoped(CudaMemory.allocate(64, { device: 1 })), stubLayer(stub))
      assert.deepStrictEqual(stub.live, { ...nothingLive, allocations: 1, contexts: 1 })
      seen.pop()
      yield* untilCollected("the context is released", () => stub.live.contexts === 0)
      assertReleased(stub)
    }))

  it.live("logs when it cannot be freed after the runtime", () =>
    Effect.gen(function*() {
      const { lines } = yield* logged(Effect.gen(function*() {
        stub.reset()
        const program = Effect.tap(CudaMemory.allocateManaged(64), look)
        yield* Effect.provide(Effect.scoped(program), stubLayer(stub))
        stub.fail("cuMemFree_v2", 999)
        stub.fail("cuDevicePrimaryCtxRelease_v2", 999)
        yield* untilCollected("the context is released", () => stub.calls("cuDevicePrimaryCtxRelease_v2").length > 0)
        yield* pause(5)
      }))
      assert.lengthOf(lines, 2)
      assert.match(lines[0]!, /^Warn .*cuMemFree returned CUDA_ERROR_UNKNOWN/)
      assert.match(lines[1]!, /^Warn .*cuDevicePrimaryCtxRelease returned CUDA_ERROR_UNKNOWN/)
    }))
})
