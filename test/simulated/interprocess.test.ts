/**
 * Memory shared between simulated runtimes of one clock, each of which stands for a process.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import * as CudaFaults from "effect-cuda/CudaFaults"
import * as CudaInterprocess from "effect-cuda/CudaInterprocess"
import type { MemoryToken } from "effect-cuda/CudaInterprocess"
import * as CudaMemory from "effect-cuda/CudaMemory"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import * as CudaMemoryPool from "effect-cuda/CudaMemoryPool"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { failsWith, nothingHeld, refuses } from "../support/assertions.ts"
import { settled, started } from "../support/fibers.ts"

const size = 64

type Simulated = Effect.Success<ReturnType<typeof SimulatedRuntime.make>>

/** Runs an effect in one of the processes. */
const inProcess = ({ runtime }: Simulated) => Effect.provideService(CudaRuntime, runtime)

/** Two processes, each with a stream. */
const two = Effect.gen(function*() {
  const [owner, user] = [yield* SimulatedRuntime.make(), yield* SimulatedRuntime.make()]
  const ownerStream = yield* inProcess(owner)(CudaStream.make())
  const userStream = yield* inProcess(user)(CudaStream.make())
  return { owner, user, ownerStream, userStream }
})

/** A pool of one process, opened in the other one. */
const pools = (owner: Simulated, user: Simulated) =>
  Effect.gen(function*() {
    const pool = yield* inProcess(owner)(CudaMemoryPool.make({ shareable: true }))
    const { descriptor, token } = yield* CudaInterprocess.sharePool(pool)
    return { pool, opened: yield* inProcess(user)(CudaInterprocess.openPool(token, descriptor)) }
  })

const bytesOf = (buffer: DeviceBuffer, stream: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const bytes = new Uint8Array(buffer.byteLength)
    const fiber = yield* started(CudaMemory.download(bytes, buffer, stream))
    yield* TestClock.adjust(1)
    yield* Fiber.join(fiber)
    return bytes
  })

describe("memory of another process", () => {
  it.effect("of a pool is the same memory, in whole and in parts", () =>
    Effect.gen(function*() {
      const { owner, ownerStream, user, userStream } = yield* two
      const { opened, pool } = yield* pools(owner, user)
      const buffer = yield* inProcess(owner)(CudaMemory.allocate(size, { pool }))
      yield* CudaMemory.fill(buffer, 1, ownerStream)
      yield* TestClock.adjust(1)
      const token = yield* CudaInterprocess.share(CudaMemory.slice(buffer, 16, 8))
      const part = yield* inProcess(user)(CudaInterprocess.open(token, { pool: opened }))
      assert.deepStrictEqual([part.byteLength, part.deviceIndex, part.isOrdered], [8, 0, false])
      assert.deepStrictEqual(yield* bytesOf(part, userStream), new Uint8Array(8).fill(1))
      yield* CudaMemory.fill(CudaMemory.slice(part, 2, 4), 2, userStream)
      yield* TestClock.adjust(1)
      const expected = new Uint8Array(size).fill(1).fill(2, 18, 22)
      assert.deepStrictEqual(yield* bytesOf(buffer, ownerStream), expected)
    }))

  it.effect("outside of pools needs only the token", () =>
    Effect.gen(function*() {
      const { owner, ownerStream, user, userStream } = yield* two
      const buffer = yield* inProcess(owner)(CudaInterprocess.allocate(size))
      const token = yield* CudaInterprocess.share(buffer)
      const theirs = yield* inProcess(user)(CudaInterprocess.open(token, { ordered: true }))
      assert.isTrue(theirs.isOrdered)
      yield* CudaMemory.fill(theirs, 5, userStream)
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* bytesOf(buffer, ownerStream), new Uint8Array(size).fill(5))
    }))

  it.effect("leaves nothing in either process", () =>
    Effect.gen(function*() {
      const [owner, user] = [yield* SimulatedRuntime.make(), yield* SimulatedRuntime.make()]
      yield* Effect.scoped(Effect.gen(function*() {
        const { opened, pool } = yield* pools(owner, user)
        const pooled = yield* inProcess(owner)(CudaMemory.allocate(size, { pool }))
        const single = yield* inProcess(owner)(CudaInterprocess.allocate(size))
        for (const buffer of [pooled, pooled, single]) {
          const token = yield* CudaInterprocess.share(buffer)
          yield* inProcess(user)(CudaInterprocess.open(token, { pool: opened }))
        }
        const { deviceBuffers, deviceBytes, pools: count } = yield* user.runtime.liveResources
        assert.deepStrictEqual([deviceBuffers, deviceBytes, count], [3, 3 * size, 1])
      }))
      for (const { runtime } of [owner, user]) assert.deepStrictEqual(yield* runtime.liveResources, nothingHeld)
      const info = yield* owner.runtime.deviceMemoryInfo(0)
      assert.strictEqual(info.free, info.total)
    }))

  it.effect("is not re-shared, allocated from its pool, or opened beyond its end", () =>
    Effect.gen(function*() {
      const { owner, user } = yield* two
      const { opened, pool } = yield* pools(owner, user)
      assert.match(String(opened), /of another process/)
      yield* refuses(inProcess(user)(CudaMemory.allocate(8, { pool: opened })), "pool")
      yield* refuses(CudaInterprocess.sharePool(opened), "pool")
      const buffer = yield* inProcess(owner)(CudaMemory.allocate(size, { pool }))
      const token = yield* CudaInterprocess.share(buffer)
      const open = (change: Partial<MemoryToken>) =>
        inProcess(user)(CudaInterprocess.open({ ...token, ...change }, { pool: opened }))
      const theirs = yield* open({})
      yield* refuses(CudaInterprocess.share(theirs), "buffer")
      for (const change of [{ offset: 1 }, { byteLength: size + 1 }, { offset: 1000 }]) {
        yield* refuses(open(change), "byteLength")
      }
      const { deviceBuffers } = yield* user.runtime.liveResources
      assert.strictEqual(deviceBuffers, 1)
    }))

  it.effect("is refused with the pool of other memory, with another clock, and once it is released", () =>
    Effect.gen(function*() {
      const { owner, user } = yield* two
      const { opened, pool } = yield* pools(owner, user)
      const { opened: other } = yield* pools(owner, user)
      const scope = yield* Scope.make()
      const buffer = yield* inProcess(owner)(Scope.provide(CudaMemory.allocate(size, { pool }), scope))
      const token = yield* CudaInterprocess.share(buffer)
      const open = (pool: CudaMemoryPool.MemoryPool, change: Partial<MemoryToken> = {}) =>
        inProcess(user)(CudaInterprocess.open({ ...token, ...change }, { pool }))
      yield* refuses(open(other), "pool")
      yield* failsWith(open(other, { pool: undefined }), "InvalidValue")
      const single = yield* inProcess(owner)(CudaInterprocess.allocate(size))
      const elsewhere = yield* TestClock.withLive(SimulatedRuntime.make())
      const plain = yield* CudaInterprocess.share(single)
      yield* failsWith(inProcess(elsewhere)(CudaInterprocess.open(plain)), "NotSupported")
      yield* Scope.close(scope, Exit.void)
      yield* failsWith(open(opened), "InvalidValue")
    }))

  it.effect("stays valid when its owner releases it first, or ends", () =>
    Effect.gen(function*() {
      const user = yield* SimulatedRuntime.make()
      const stream = yield* inProcess(user)(CudaStream.make())
      const scope = yield* Scope.make()
      const owner = yield* Scope.provide(SimulatedRuntime.make(), scope)
      const buffer = yield* inProcess(owner)(Scope.provide(CudaInterprocess.allocate(size), scope))
      yield* inProcess(owner)(
        Effect.flatMap(Scope.provide(CudaStream.make(), scope), (stream) => CudaMemory.fill(buffer, 6, stream))
      )
      yield* TestClock.adjust(1)
      const token = yield* CudaInterprocess.share(buffer)
      const theirs = yield* inProcess(user)(CudaInterprocess.open(token))
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(yield* bytesOf(theirs, stream), new Uint8Array(size).fill(6))
      yield* failsWith(inProcess(user)(CudaInterprocess.open(token)), "InvalidValue")
    }))

  it.effect("of a pool is within reach of the devices that the pool allows", () =>
    Effect.gen(function*() {
      const machine = { devices: 2 }
      const [owner, user] = [yield* SimulatedRuntime.make(machine), yield* SimulatedRuntime.make(machine)]
      const { opened, pool } = yield* pools(owner, user)
      const far = yield* inProcess(user)(CudaStream.make({ device: 1 }))
      const original = yield* inProcess(owner)(CudaMemory.allocate(size, { pool }))
      const token = yield* CudaInterprocess.share(original)
      const buffer = yield* inProcess(user)(CudaInterprocess.open(token, { pool: opened }))
      yield* failsWith(CudaMemory.fill(buffer, 4, far), "DeviceMismatch")
      yield* CudaMemoryPool.allowAccess(opened, 1)
      yield* CudaMemory.fill(buffer, 4, far)
      assert.deepStrictEqual(yield* bytesOf(buffer, far), new Uint8Array(size).fill(4))
      yield* CudaMemoryPool.denyAccess(opened, 1)
      yield* failsWith(CudaMemory.fill(buffer, 4, far), "DeviceMismatch")
      yield* inProcess(user)(CudaDevice.enablePeerAccess(1, 0))
      yield* CudaMemory.fill(buffer, 5, far)
      assert.deepStrictEqual(yield* bytesOf(buffer, far), new Uint8Array(size).fill(5))
      // Memory outside of pools has no such access.
      const single = yield* CudaInterprocess.share(yield* inProcess(owner)(CudaInterprocess.allocate(size)))
      const alone = yield* inProcess(user)(CudaInterprocess.open(single))
      const { advice } = yield* failsWith(CudaMemory.fill(alone, 4, far), "DeviceMismatch")
      assert.include(advice, "no other device can access it")
    }))

  it.effect("stays valid when its pool is closed first", () =>
    Effect.gen(function*() {
      const { owner, ownerStream, user, userStream } = yield* two
      const pool = yield* inProcess(owner)(CudaMemoryPool.make({ shareable: true }))
      const { descriptor, token } = yield* CudaInterprocess.sharePool(pool)
      const buffer = yield* inProcess(owner)(CudaMemory.allocate(size, { pool }))
      yield* CudaMemory.fill(buffer, 7, ownerStream)
      yield* TestClock.adjust(1)
      const memory = yield* CudaInterprocess.share(buffer)
      const theirs = yield* Effect.scoped(Effect.gen(function*() {
        const opened = yield* CudaInterprocess.openPool(token, descriptor)
        const scope = yield* Scope.make()
        return yield* Scope.provide(CudaInterprocess.open(memory, { pool: opened }), scope)
      })).pipe(inProcess(user))
      assert.deepStrictEqual(yield* bytesOf(theirs, userStream), new Uint8Array(size).fill(7))
    }))
})

describe("a loan", () => {
  /** Lends memory to the other process, which does work of some milliseconds on it. */
  const lending = (owner: Simulated, user: Simulated, stream: CudaStream.CudaStream, millis: number) =>
    Effect.gen(function*() {
      const buffer = yield* inProcess(owner)(CudaInterprocess.allocate(size))
      const { opened, pool } = yield* pools(owner, user)
      const pooled = yield* inProcess(owner)(CudaMemory.allocate(size, { pool }))
      const userStream = yield* inProcess(user)(CudaStream.make())
      const borrow = (token: MemoryToken) =>
        Effect.gen(function*() {
          const theirs = yield* CudaInterprocess.open(token, { pool: opened })
          const at = yield* Clock.currentTimeMillis
          yield* user.control.launch(userStream, { duration: millis })
          yield* CudaMemory.fill(theirs, 9, userStream)
          return at
        }).pipe(Effect.scoped, inProcess(user))
      return { allocation: buffer, pooled, borrow, stream }
    })

  for (const kind of ["allocation", "pooled"] as const) {
    it.effect(`begins after the work of the owner and ends after that of the other process (${kind})`, () =>
      Effect.gen(function*() {
        const { owner, ownerStream, user } = yield* two
        const { borrow, ...buffers } = yield* lending(owner, user, ownerStream, 30)
        yield* owner.control.launch(ownerStream, { duration: 40 })
        const lent = Effect.flatMap(
          CudaInterprocess.lend(buffers[kind], borrow, { stream: ownerStream }),
          (openedAt) => Effect.map(Clock.currentTimeMillis, (endedAt) => [openedAt, endedAt])
        )
        const fiber = yield* started(lent)
        for (let time = 0; time < 100; time++) {
          yield* TestClock.adjust(1)
          yield* settled
        }
        const [openedAt, endedAt] = yield* Fiber.join(fiber)
        assert.isAtLeast(openedAt!, 40)
        assert.isBelow(openedAt!, 45)
        assert.isAtLeast(endedAt!, 70)
        assert.isBelow(endedAt!, 80)
        assert.deepStrictEqual(yield* bytesOf(buffers[kind], ownerStream), new Uint8Array(size).fill(9))
        const { deviceBuffers, events } = yield* user.runtime.liveResources
        assert.deepStrictEqual([deviceBuffers, events], [0, 0])
      }))
  }

  it.effect("ends the wait of the other process when the owner has ended", () =>
    Effect.gen(function*() {
      const { owner, ownerStream, user } = yield* two
      const allocation = yield* inProcess(owner)(CudaInterprocess.allocate(size))
      const gone = yield* Deferred.make<void>()
      yield* owner.control.launch(ownerStream, { duration: "1 hour" })
      const failing = (token: MemoryToken) =>
        Effect.flip(Effect.scoped(CudaInterprocess.open(token, { gone: Deferred.await(gone) }))).pipe(inProcess(user))
      const lent = yield* started(CudaInterprocess.lend(allocation, failing, { stream: ownerStream }))
      yield* settled
      yield* Deferred.succeed(gone, undefined)
      const error = yield* Fiber.join(lent)
      assert.deepStrictEqual([error.operation, error.reason._tag], ["CudaInterprocess.open", "NeverFinishes"])
      assert.match(error.message, /the process that shared the memory has ended/)
      assert.strictEqual((yield* user.runtime.liveResources).deviceBuffers, 0)
      yield* TestClock.adjust("2 hours")
    }))

  it.effect("fails when the other process ends with its work undone, and its memory is still there", () =>
    Effect.gen(function*() {
      const { owner, ownerStream } = yield* two
      const scope = yield* Scope.make()
      const user = yield* Scope.provide(SimulatedRuntime.make(), scope)
      const buffer = yield* inProcess(owner)(CudaInterprocess.allocate(size))
      yield* CudaMemory.fill(buffer, 4, ownerStream)
      yield* TestClock.adjust(1)
      const gone = yield* Deferred.make<void>()
      const borrow = (token: MemoryToken) =>
        Effect.gen(function*() {
          const theirs = yield* CudaInterprocess.open(token)
          const stream = yield* CudaStream.make()
          yield* user.control.launch(stream, { duration: "1 hour" })
          yield* CudaMemory.fill(theirs, 1, stream)
        }).pipe(Scope.provide(scope), inProcess(user))
      const lend = CudaInterprocess.lend(
        buffer,
        (token) => Effect.andThen(borrow(token), Effect.never),
        { stream: ownerStream, gone: Deferred.await(gone) }
      )
      const lent = yield* started(Effect.flip(lend))
      yield* TestClock.adjust(10)
      yield* Deferred.succeed(gone, undefined)
      const error = yield* Fiber.join(lent)
      assert.deepStrictEqual([error.operation, error.reason._tag], ["CudaInterprocess.lend", "NeverFinishes"])
      assert.deepStrictEqual(yield* bytesOf(buffer, ownerStream), new Uint8Array(size).fill(4))
    }))
})

describe("a process that shares memory", () => {
  const program = Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const pool = yield* CudaMemoryPool.make({ shareable: true })
    const { descriptor } = yield* CudaInterprocess.sharePool(pool)
    yield* CudaInterprocess.takeDescriptor(process.pid, descriptor)
    const [pooled, single] = [yield* CudaMemory.allocate(size, { pool }), yield* CudaInterprocess.allocate(size)]
    for (const buffer of [pooled, single]) {
      yield* CudaInterprocess.lend(buffer, () => CudaMemory.fill(buffer, 1, stream), { stream })
    }
    yield* CudaStream.synchronize(stream)
  })

  it.effect("leaves nothing, with each call failing and interrupted", () =>
    Effect.gen(function*() {
      const report = yield* Effect.flatMap(CudaFaults.everyCall(Effect.scoped(program)), CudaFaults.expectNone)
      const operations = report.steps.map(({ operation }) => operation)
      for (const name of ["allocate", "share", "sharePool", "takeDescriptor"] as const) {
        assert.include(operations, `CudaInterprocess.${name}`)
      }
    }))
})
