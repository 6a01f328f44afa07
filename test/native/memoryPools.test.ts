/**
 * Memory pools and stream-ordered memory on the driver: the exact calls, the pool settings, and the order that a buffer
 * maintains.
 */
import { assert, describe, it } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaMemoryPool from "effect-cuda/CudaMemoryPool"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import { failsWith, refuses } from "../support/assertions.ts"
import { untilCollected } from "../support/garbage.ts"
import { logged, onStub, openStub, pause, stubLayer, until } from "../support/stubDriver.ts"
import { poolProperties, tracing, within } from "../support/tracing.ts"
import { begin, isPending, succeeds } from "../support/waits.ts"

const stub = openStub()
const { callsOf, opened, openDevice } = tracing(stub)

const mebi = 1024 ** 2
const everything = "18446744073709551615"
const twoDevices = { prepare: () => void (stub.devices = 2) }

/** Creates something in its own scope, and returns the calls of its release. */
const releaseOf = <A, E, R>(made: Effect.Effect<A, E, R>) =>
  Effect.map(
    callsOf(Effect.scoped(Effect.tap(made, () => Effect.sync(() => stub.clear())))),
    ({ lines, result }) => ({ lines, made: result })
  )

describe("a pool", () => {
  const settings: ReadonlyArray<
    readonly [string, CudaMemoryPool.MakeOptions, maxBytes: number, values: ReadonlyArray<number | string>]
  > = [
    ["has no limit and keeps everything by default", {}, 0, [everything, 1, 1, 0]],
    [
      "takes a limit and a threshold",
      { maxBytes: 64 * mebi, releaseThreshold: 5 * 1024 ** 3 },
      64 * mebi,
      [5 * 1024 ** 3, 1, 1, 0]
    ],
    [
      "may keep nothing",
      { maxBytes: Number.POSITIVE_INFINITY, releaseThreshold: 0 },
      0,
      [0, 1, 1, 0]
    ],
    [
      "takes reuse settings",
      { reuseFollowEventDependencies: false, reuseAllowOpportunistic: false, reuseAllowInternalDependencies: true },
      0,
      [everything, 0, 0, 1]
    ]
  ]
  for (const [what, options, maxBytes, [threshold, follow, opportunistic, internal]] of settings) {
    it.live(what, () =>
      opened(({ context }) =>
        Effect.gen(function*() {
          const { lines, result: pool } = yield* callsOf(CudaMemoryPool.make(options))
          assert.deepStrictEqual(lines, [
            ...within(context, ["cuMemPoolCreate", pool.handle, poolProperties({ maxBytes })]),
            ["cuMemPoolSetAttribute", pool.handle, 4, threshold!],
            ["cuMemPoolSetAttribute", pool.handle, 1, follow!],
            ["cuMemPoolSetAttribute", pool.handle, 2, opportunistic!],
            ["cuMemPoolSetAttribute", pool.handle, 3, internal!]
          ])
        })
      ))
  }

  it.live("refuses reuse settings that are not true or false before it makes a pool", () =>
    opened(() =>
      Effect.gen(function*() {
        for (
          const name of ["reuseFollowEventDependencies", "reuseAllowOpportunistic", "reuseAllowInternalDependencies"]
        ) {
          for (const value of [Number.NaN, 0.5, 1, "yes", {}]) {
            const { lines } = yield* callsOf(refuses(CudaMemoryPool.make({ [name]: value }), name))
            assert.deepStrictEqual(lines, [])
          }
        }
      })
    ))

  it.live("belongs to its device, and is destroyed with its scope", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const other = yield* openDevice(1)
          const { lines, result: made } = yield* callsOf(Effect.scoped(CudaMemoryPool.make({ device: 1 })))
          assert.deepStrictEqual(lines.slice(0, 3), [
            ...within(other.context, ["cuMemPoolCreate", made.handle, poolProperties({ device: 1 })])
          ])
          assert.deepStrictEqual(lines.at(-1), ["cuMemPoolDestroy", made.handle])
          assert.strictEqual(made.deviceIndex, 1)
        }),
      twoDevices
    ))

  it.live("of the runtime is the default source of memory", () =>
    opened(({ pool }) =>
      Effect.gen(function*() {
        const { lines, result } = yield* callsOf(CudaMemoryPool.ofDevice())
        assert.deepStrictEqual(lines, [])
        assert.strictEqual(result.handle, pool)
        assert.strictEqual((yield* CudaMemoryPool.ofDevice(0)).ref, result.ref)
      })
    ))

  it.live("of the runtime is released with it", () =>
    Effect.gen(function*() {
      stub.reset()
      const pool = yield* Effect.provide(CudaMemoryPool.ofDevice(), stubLayer(stub))
      const before = stub.callCount
      const operations = [
        CudaMemoryPool.statistics(pool),
        CudaMemoryPool.resetHighWater(pool),
        CudaMemoryPool.setReleaseThreshold(pool, 0),
        CudaMemoryPool.trim(pool)
      ]
      for (const operation of operations) yield* failsWith<"ResourceReleased", never>(operation, "ResourceReleased")
      assert.strictEqual(stub.callCount, before)
    }))

  it.live("reports its statistics, read by attribute number", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        yield* Effect.scoped(CudaMemory.allocate(3 * mebi, { pool }))
        yield* CudaMemory.allocate(mebi, { pool })
        const { lines, result } = yield* callsOf(CudaMemoryPool.statistics(pool))
        assert.deepStrictEqual(lines, [
          ["cuMemPoolGetAttribute", pool.handle, 5, 4 * mebi],
          ["cuMemPoolGetAttribute", pool.handle, 6, 4 * mebi],
          ["cuMemPoolGetAttribute", pool.handle, 7, mebi],
          ["cuMemPoolGetAttribute", pool.handle, 8, 3 * mebi]
        ])
        assert.deepStrictEqual(result, {
          reservedBytes: 4 * mebi,
          reservedHighWater: 4 * mebi,
          usedBytes: mebi,
          usedHighWater: 3 * mebi
        })
      })
    ))

  it.live("reports correct statistics to interleaved fibers", () =>
    opened(() =>
      Effect.gen(function*() {
        const sizes = [1, 2, 3, 4]
        const pools = yield* Effect.forEach(sizes, () => CudaMemoryPool.make())
        yield* Effect.forEach(pools, (pool, index) => CudaMemory.allocate(sizes[index]! * mebi, { pool }))
        for (let most = 4; most < 16; most++) {
          const asked = yield* Effect.forEach(pools, CudaMemoryPool.statistics, { concurrency: "unbounded" }).pipe(
            Effect.provideService(References.MaxOpsBeforeYield, most)
          )
          assert.deepStrictEqual(asked.map(({ usedBytes }) => usedBytes / mebi), sizes)
        }
      })
    ))

  it.live("resets its high-water marks", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        yield* Effect.scoped(CudaMemory.allocate(3 * mebi, { pool }))
        const { lines } = yield* callsOf(CudaMemoryPool.resetHighWater(pool))
        assert.deepStrictEqual(lines, [
          ["cuMemPoolSetAttribute", pool.handle, 6, 0],
          ["cuMemPoolSetAttribute", pool.handle, 8, 0]
        ])
        assert.strictEqual((yield* CudaMemoryPool.statistics(pool)).usedHighWater, 0)
      })
    ))

  it.live("takes a new threshold", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        const some = yield* callsOf(CudaMemoryPool.setReleaseThreshold(pool, 7 * mebi))
        assert.deepStrictEqual(some.lines, [["cuMemPoolSetAttribute", pool.handle, 4, 7 * mebi]])
        const all = yield* callsOf(CudaMemoryPool.setReleaseThreshold(pool, Number.POSITIVE_INFINITY))
        assert.deepStrictEqual(all.lines, [["cuMemPoolSetAttribute", pool.handle, 4, everything]])
      })
    ))

  it.live("is trimmed after the releases before it", () =>
    opened(({ releases }) =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        const stream = yield* CudaStream.make()
        yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(3 * mebi, { pool })
          yield* CudaMemory.fill(buffer, 0, stream)
          stub.work(stream)
        }))
        stub.clear()
        const trimming = yield* begin(CudaMemoryPool.trim(pool, { keepBytes: mebi }))
        assert.isTrue(isPending(trimming))
        assert.lengthOf(stub.calls("cuMemPoolTrimTo"), 0)
        stub.finish(stream)
        yield* succeeds(trimming)
        assert.deepStrictEqual(stub.lines().slice(-3), [
          ["cuStreamQuery", releases],
          ["cuStreamSynchronize", releases],
          ["cuMemPoolTrimTo", pool.handle, mebi]
        ])
        assert.strictEqual((yield* CudaMemoryPool.statistics(pool)).reservedBytes, mebi)
      })
    ))

  it.live("is trimmed after stream-ordered releases", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        const stream = yield* CudaStream.make()
        yield* Effect.scoped(Effect.gen(function*() {
          yield* CudaMemory.allocate(3 * mebi, { pool, stream })
          stub.work(stream)
        }))
        const trimming = yield* begin(CudaMemoryPool.trim(pool))
        assert.isTrue(isPending(trimming))
        stub.finish(stream)
        yield* succeeds(trimming)
        assert.deepStrictEqual(yield* CudaMemoryPool.statistics(pool), {
          reservedBytes: 0,
          reservedHighWater: 3 * mebi,
          usedBytes: 0,
          usedHighWater: 3 * mebi
        })
      })
    ))

  it.live("is trimmed to the largest safe integer for keepBytes of Infinity", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        yield* CudaMemoryPool.trim(pool, { keepBytes: Number.POSITIVE_INFINITY })
        assert.deepStrictEqual(stub.calls("cuMemPoolTrimTo")[0]!.args, [pool.handle, Number.MAX_SAFE_INTEGER])
      })
    ))

  it.live("released while waiting for a trim fails", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* Effect.scoped(Effect.gen(function*() {
          yield* CudaMemory.fill(yield* CudaMemory.allocate(64), 0, stream)
          stub.work(stream)
        }))
        const trimming = yield* Effect.scoped(Effect.flatMap(
          CudaMemoryPool.make(),
          (pool) => begin(failsWith(CudaMemoryPool.trim(pool), "ResourceReleased"))
        ))
        stub.finish(stream)
        yield* Fiber.join(trimming)
        assert.lengthOf(stub.calls("cuMemPoolTrimTo"), 0)
      })
    ))

  it.live("may be destroyed before its buffers", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* Effect.scoped(Effect.gen(function*() {
          const pool = yield* CudaMemoryPool.make()
          const runtime = yield* CudaRuntime
          return yield* runtime.memoryAllocate(0, 64, { pool: pool.ref })
        }))
        const runtime = yield* CudaRuntime
        yield* runtime.memoryFill({ memory: buffer, offset: 0, byteLength: 64 }, 1, 8, stream.ref)
        assert.lengthOf(stub.calls("cuMemPoolDestroy"), 0)
        yield* runtime.memoryFree(buffer)
        assert.lengthOf(stub.calls("cuMemPoolDestroy"), 1)
      })
    ))

  it.live("is destroyed in the background, once its memory is free", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.pending = "copies"
        yield* filledAndReleased(stream)
        assert.lengthOf(stub.calls("cuMemFreeAsync"), 1)
        assert.lengthOf(stub.calls("cuMemPoolDestroy"), 0)
        stub.finish(stream)
        yield* until("the pool is destroyed", () => stub.calls("cuMemPoolDestroy").length === 1)
      })
    ))

  it.live("is destroyed when the runtime closes, at the latest", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.pending = "copies"
        // The wait for the release fails.
        stub.fail("cuStreamQuery", 1, { after: 1 })
        yield* filledAndReleased(stream)
        stub.finish(stream)
        yield* pause(10)
        assert.lengthOf(stub.calls("cuMemPoolDestroy"), 0)
      })
    ))

  it.live("is destroyed when the runtime closes if the driver does not notice the release", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.pending = "copies"
        stub.fail("cuEventSynchronize", 1)
        yield* filledAndReleased(stream)
        stub.finish(stream)
        yield* until("the release is noticed", () => stub.calls("cuEventSynchronize").length > 0)
        assert.lengthOf(stub.calls("cuMemPoolDestroy"), 0)
      })
    ))

  it.live("logs that destroying it in the background failed", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.pending = "copies"
        stub.fail("cuMemPoolDestroy", 1)
        yield* filledAndReleased(stream)
        stub.finish(stream)
        yield* until("the pool is destroyed", () => stub.calls("cuMemPoolDestroy").length === 1)
      })
      const { lines } = yield* logged(onStub(stub, program, { left: { pools: 1 } }))
      assert.match(lines.join("\n"), /cuMemPoolDestroy/)
    }))
})

/** A pool, and memory of it that a stream fills, both released at once. */
const filledAndReleased = (stream: CudaStream.CudaStream) =>
  Effect.scoped(Effect.gen(function*() {
    const pool = yield* CudaMemoryPool.make()
    yield* CudaMemory.fill(yield* CudaMemory.allocate(64, { pool }), 1, stream)
  }))

describe("an allocation", () => {
  it.live("from a pool uses the runtime's own stream, like any other", () =>
    opened(({ allocations, releases }) =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make()
        const { lines, result: buffer } = yield* callsOf(CudaMemory.allocate(5 * 1024 ** 3, { pool }))
        assert.deepStrictEqual(lines, [
          ["cuMemAllocFromPoolAsync", buffer.address, 5 * 1024 ** 3, pool.handle, allocations],
          ["cuStreamQuery", allocations]
        ])
        const released = yield* releaseOf(CudaMemory.allocate(64, { pool }))
        assert.deepStrictEqual(released.lines, [["cuMemFreeAsync", released.made.address, releases]])
      })
    ))

  it.live("is on the device of its pool or stream", () =>
    opened(
      () =>
        Effect.gen(function*() {
          const pool = yield* CudaMemoryPool.make({ device: 1 })
          const stream = yield* CudaStream.make({ device: 1 })
          assert.strictEqual((yield* CudaMemory.allocate(64, { pool })).deviceIndex, 1)
          assert.strictEqual((yield* CudaMemory.allocate(64, { stream })).deviceIndex, 1)
          const here = yield* CudaStream.make()
          yield* failsWith(CudaMemory.allocate(64, { pool, stream: here }), "DeviceMismatch")
          yield* failsWith(CudaMemory.allocate(64, { pool, device: 0 }), "DeviceMismatch")
        }),
      twoDevices
    ))

  it.live("from a released pool or on a released stream makes no driver call", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* Effect.scoped(CudaMemoryPool.make())
        const stream = yield* Effect.scoped(CudaStream.make())
        const { lines } = yield* callsOf(Effect.andThen(
          failsWith(CudaMemory.allocate(64, { pool }), "ResourceReleased"),
          failsWith(CudaMemory.allocate(64, { stream }), "ResourceReleased")
        ))
        assert.deepStrictEqual(lines, [])
      })
    ))
})

describe("an allocation on a stream", () => {
  it.live("is enqueued there with a marker, and waits for nothing", () =>
    opened(({ context, pool }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.work(stream)
        const { lines, result: buffer } = yield* callsOf(CudaMemory.allocate(64, { stream }))
        const marker = Number(lines[2]![1])
        assert.deepStrictEqual(lines, [
          ["cuMemAllocFromPoolAsync", buffer.address, 64, pool, stream.handle],
          ...within(context, ["cuEventCreate", marker, 2]),
          ["cuEventRecord", marker, stream.handle]
        ])
        const own = yield* callsOf(CudaMemory.fill(buffer, 1, stream))
        assert.deepStrictEqual(own.lines, [["cuMemsetD8Async", buffer.address, 1, 64, stream.handle]])
        stub.finishAll()
      })
    ))

  /** The driver calls of a first and a second use of memory on another stream. */
  const uses = (
    use: (
      buffer: CudaMemory.DeviceBuffer,
      stream: CudaStream.CudaStream
    ) => Effect.Effect<unknown, CudaError, Scope.Scope | CudaRuntime>
  ) =>
    opened(() =>
      Effect.gen(function*() {
        const [stream, other, third] = yield* Effect.all([CudaStream.make(), CudaStream.make(), CudaStream.make()])
        stub.work(stream)
        const made = yield* callsOf(CudaMemory.allocate(64, { stream }))
        const marker = Number(made.calls.find(({ name }) => name === "cuEventRecord")!.args[0])
        for (const user of [other, third]) {
          const first = yield* callsOf(use(made.result, user))
          assert.deepStrictEqual(first.lines[0], ["cuStreamWaitEvent", user.handle, marker, 0])
          assert.lengthOf(first.calls.filter(({ name }) => name === "cuStreamWaitEvent"), 1)
          const second = yield* callsOf(use(made.result, user))
          assert.lengthOf(second.calls.filter(({ name }) => name === "cuStreamWaitEvent"), 0)
        }
        // Alternating streams makes no difference.
        const again = yield* callsOf(Effect.andThen(use(made.result, other), use(made.result, third)))
        assert.lengthOf(again.calls.filter(({ name }) => name === "cuStreamWaitEvent"), 0)
        stub.finishAll()
      })
    )

  it.live("is awaited by the first fill on each other stream only", () =>
    uses((buffer, stream) => CudaMemory.fill(buffer, 1, stream)))

  it.live("is awaited by the first 2D copy", () =>
    uses((buffer, stream) =>
      CudaMemory.copy2D(
        CudaMemory.rows(CudaMemory.slice(buffer, 0, 32), 16),
        CudaMemory.rows(CudaMemory.slice(buffer, 32), 12),
        { width: 8, height: 2 },
        stream
      )
    ))

  it.live("is awaited by the first batch", () =>
    uses((buffer, stream) =>
      CudaMemory.copyBatch([
        { destination: CudaMemory.slice(buffer, 0, 16), source: CudaMemory.slice(buffer, 16, 16) },
        { destination: CudaMemory.slice(buffer, 32, 16), source: CudaMemory.slice(buffer, 48, 16) }
      ], stream)
    ))

  it.live("keeps a marker until its release returns it", () =>
    opened(({ releases }) =>
      Effect.gen(function*() {
        const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        for (let round = 0; round < 3; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const buffer = yield* CudaMemory.allocate(64, { stream })
            yield* CudaMemory.fill(buffer, round, other)
            stub.clear()
          }))
          assert.strictEqual(stub.calls("cuMemFreeAsync")[0]!.args[1], releases)
        }
        // One for the allocation and one to order the release: created once, then reused.
        assert.strictEqual(stub.live.events, 2)
      })
    ))

  it.live("is released in stream order when only its stream used it", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const unused = yield* releaseOf(CudaMemory.allocate(64, { stream }))
        assert.deepStrictEqual(unused.lines, [["cuMemFreeAsync", unused.made.address, stream.handle]])
        const used = yield* releaseOf(
          Effect.tap(CudaMemory.allocate(64, { stream }), (buffer) => CudaMemory.fill(buffer, 1, stream))
        )
        assert.deepStrictEqual(used.lines, [["cuMemFreeAsync", used.made.address, stream.handle]])
      })
    ))

  it.live("is released after all its users otherwise", () =>
    opened(({ releases }) =>
      Effect.gen(function*() {
        const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
        const { lines, made } = yield* releaseOf(
          Effect.tap(CudaMemory.allocate(64, { stream }), (buffer) => CudaMemory.fill(buffer, 1, other))
        )
        const marker = lines.find(([name]) => name === "cuEventRecord")![1]!
        assert.deepStrictEqual(lines.filter(([name]) => !/Ctx|EventCreate/.test(String(name))), [
          ["cuEventRecord", marker, stream.handle],
          ["cuStreamWaitEvent", releases, marker, 0],
          ["cuEventRecord", marker, other.handle],
          ["cuStreamWaitEvent", releases, marker, 0],
          ["cuMemFreeAsync", made.address, releases]
        ])
      })
    ))

  it.live("outlives its stream", () =>
    opened(({ releases }) =>
      Effect.gen(function*() {
        const other = yield* CudaStream.make()
        const { lines, result } = yield* callsOf(Effect.scoped(Effect.gen(function*() {
          const runtime = yield* CudaRuntime
          const ref = yield* Effect.scoped(Effect.flatMap(
            CudaStream.make(),
            (stream) => runtime.memoryAllocate(0, 64, { stream: stream.ref })
          ))
          yield* runtime.memoryFill({ memory: ref, offset: 0, byteLength: 64 }, 1, 8, other.ref)
          stub.clear()
          yield* runtime.memoryFree(ref)
          return ref
        })))
        const marker = Number(
          stub.calls("cuEventRecord")[0]?.args[0] ?? lines.find(([name]) => name === "cuEventRecord")![1]
        )
        assert.deepStrictEqual(lines.filter(([name]) => !/Ctx|EventCreate/.test(String(name))), [
          ["cuEventRecord", marker, other.handle],
          ["cuStreamWaitEvent", releases, marker, 0],
          ["cuMemFreeAsync", result.address, releases]
        ])
        const unused = yield* callsOf(Effect.gen(function*() {
          const runtime = yield* CudaRuntime
          const ref = yield* Effect.scoped(Effect.flatMap(
            CudaStream.make(),
            (stream) => runtime.memoryAllocate(0, 64, { stream: stream.ref })
          ))
          stub.clear()
          yield* runtime.memoryFree(ref)
          return ref
        }))
        assert.deepStrictEqual(unused.lines, [["cuMemFreeAsync", unused.result.address, releases]])
      })
    ))

  for (const [mode, handle] of [["legacy", 1], ["perThread", 2]] as const) {
    it.live(`that is the ${mode} default stream runs in its context`, () =>
      opened(({ context, pool }) =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.defaultStream({ mode })
          const other = yield* CudaStream.make()
          const made = yield* callsOf(Effect.scoped(Effect.gen(function*() {
            const { lines, result } = yield* callsOf(CudaMemory.allocate(64, { stream }))
            const marker = Number(lines[4]![1])
            assert.deepStrictEqual(lines, [
              ...within(context, ["cuMemAllocFromPoolAsync", result.address, 64, pool, handle]),
              ...within(context, ["cuEventCreate", marker, 2]),
              ...within(context, ["cuEventRecord", marker, handle])
            ])
            return result.address
          })))
          assert.deepStrictEqual(made.lines, [...within(context, ["cuMemFreeAsync", made.result, handle])])
          const buffer = yield* CudaMemory.allocate(64, { stream: other })
          const { lines } = yield* callsOf(CudaMemory.fill(buffer, 1, stream))
          assert.deepStrictEqual(lines.slice(0, 3).map(([name]) => name), [
            "cuCtxPushCurrent_v2",
            "cuStreamWaitEvent",
            "cuCtxPopCurrent_v2"
          ])
        })
      ))
  }

  it.live("of foreign code is awaited like any other, including its releases", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.fromHandle(stub.foreignStream(0))
        yield* Effect.scoped(CudaMemory.allocate(64, { stream }))
        assert.strictEqual(stub.calls("cuMemFreeAsync")[0]!.args[1], stream.handle)
        const runtime = yield* CudaRuntime
        yield* runtime.memoryReclaim(0)
      })
    ))

  it.live("keeps no reference to short-lived streams", () =>
    opened(() =>
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const streams: Array<WeakRef<object>> = []
        for (let round = 0; round < 5; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const stream = yield* CudaStream.make()
            streams.push(new WeakRef(stream.ref))
            yield* Effect.scoped(CudaMemory.allocate(64, { stream }))
          }))
        }
        // The backend keeps a reference to its last result.
        yield* CudaMemory.allocate(64, { stream: yield* CudaStream.make() })
        yield* untilCollected("the streams", () => streams.every((stream) => stream.deref() === undefined))
        const { calls } = yield* callsOf(runtime.memoryReclaim(0))
        assert.deepStrictEqual(calls.filter(({ name }) => name === "cuEventRecord"), [])
      })
    ))
})

describe("an allocation that runs out of memory", () => {
  /** A program on a device of 64 MiB, and the calls it makes for a second allocation. */
  const crowded = <A>(
    program: Effect.Effect<A, CudaError, CudaRuntime | Scope.Scope>
  ) => opened(() => program, { prepare: () => void (stub.memory = 64 * mebi) })

  it.live("trims the runtime's pool and the device's pools, and retries once", () =>
    opened(
      ({ pool: own }) =>
        Effect.gen(function*() {
          const pools = yield* Effect.all([
            CudaMemoryPool.make(),
            CudaMemoryPool.make(),
            CudaMemoryPool.make({ device: 1 })
          ])
          for (const pool of pools) yield* Effect.scoped(CudaMemory.allocate(20 * mebi, { pool }))
          yield* Effect.scoped(CudaMemory.allocate(20 * mebi))
          const { calls } = yield* callsOf(CudaMemory.allocate(50 * mebi))
          assert.deepStrictEqual(calls.filter(({ name }) => name === "cuMemPoolTrimTo").map(({ args }) => args), [
            [own, 0],
            [pools[0].handle, 0],
            [pools[1].handle, 0]
          ])
          assert.deepStrictEqual(
            calls.filter(({ name }) => name === "cuMemAllocFromPoolAsync").map(({ status }) => status),
            [2, 0]
          )
          assert.strictEqual((yield* CudaMemoryPool.statistics(pools[2])).reservedBytes, 20 * mebi)
        }),
      {
        prepare: () => {
          stub.devices = 2
          stub.memory = 64 * mebi
        }
      }
    ))

  it.live("waits for stream-ordered releases", () =>
    crowded(Effect.gen(function*() {
      const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
      yield* Effect.scoped(Effect.gen(function*() {
        yield* CudaMemory.allocate(30 * mebi, { stream })
        yield* CudaMemory.allocate(30 * mebi, { stream: other })
        stub.work(stream)
        stub.work(other)
      }))
      const waiting = yield* begin(CudaMemory.allocate(60 * mebi))
      assert.isTrue(isPending(waiting))
      stub.finish(stream)
      yield* until("the first is released", () => stub.live.allocations === 1)
      assert.isTrue(isPending(waiting))
      stub.finish(other)
      yield* succeeds(waiting)
    })))

  const made = [
    ["device", CudaMemory.allocate(60 * mebi)],
    ["managed", CudaMemory.allocateManaged(60 * mebi)]
  ] as const
  for (const [kind, allocation] of made) {
    it.live(`of ${kind} memory is interruptible while it waits`, () =>
      crowded(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* Effect.scoped(Effect.andThen(
          CudaMemory.allocate(60 * mebi, { stream }),
          Effect.sync(() => stub.work(stream))
        ))
        const waiting = yield* begin(allocation)
        assert.isTrue(isPending(waiting))
        yield* Fiber.interrupt(waiting)
        assert.isFalse(yield* CudaStream.query(stream))
        stub.finish(stream)
      })))
  }

  it.live("waits for releases on a stream that is being released", () =>
    crowded(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const closing = yield* Effect.forkChild(Effect.scoped(Effect.gen(function*() {
        const own = yield* CudaStream.make()
        yield* Effect.scoped(
          CudaMemory.allocate(60 * mebi, { stream: own }).pipe(
            Effect.tap(() => Effect.sync(() => stub.work(own)))
          )
        )
      })))
      yield* until("its stream is being released", () => stub.calls("cuMemFreeAsync").length === 1)
      const waiting = yield* begin(CudaMemory.allocate(60 * mebi, { stream }))
      assert.isTrue(isPending(waiting))
      stub.finishAll()
      yield* succeeds(waiting)
      yield* Fiber.join(closing)
    })))

  it.live("waits for releases that it could not wait for at first", () =>
    crowded(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      yield* Effect.scoped(CudaMemory.allocate(60 * mebi, { stream }))
      yield* Effect.scoped(Effect.tap(CudaMemory.allocate(1, { stream }), () => Effect.sync(() => stub.work(stream))))
      stub.fail("cuStreamWaitEvent", 999)
      yield* failsWith(CudaMemory.allocate(60 * mebi), "Unknown")
      const waiting = yield* begin(CudaMemory.allocate(64 * mebi))
      assert.isTrue(isPending(waiting))
      stub.finish(stream)
      yield* succeeds(waiting)
    })))

  it.live("fails if the retry fails", () =>
    crowded(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      yield* CudaMemory.allocate(60 * mebi)
      yield* failsWith(CudaMemory.allocate(60 * mebi, { stream }), "OutOfMemory")
      assert.lengthOf(stub.calls("cuMemPoolTrimTo"), 1)
    })))

  it.live("reuses memory released to a pool at its limit, without trimming the device's pools", () =>
    opened(({ pool: own }) =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make({ maxBytes: 8 * mebi })
        yield* Effect.scoped(CudaMemory.allocate(8 * mebi, { pool }))
        stub.clear()
        yield* CudaMemory.allocate(8 * mebi, { pool })
        const trims = stub.lines().filter(([name]) => name === "cuMemPoolTrimTo")
        assert.deepStrictEqual(trims, [["cuMemPoolTrimTo", pool.handle, Number.MAX_SAFE_INTEGER]])
        assert.isFalse(trims.some(([, handle]) => handle === own))
      })
    ))

  it.live("fails at its pool's limit, and leaves other pools alone", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make({ maxBytes: 8 * mebi })
        yield* CudaMemory.allocate(8 * mebi, { pool })
        yield* failsWith(CudaMemory.allocate(1, { pool }), "OutOfMemory")
        yield* CudaMemory.allocate(1)
      })
    ))
})
