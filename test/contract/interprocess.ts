/**
 * The contract of memory shared with other processes, as far as one process shows it: what is exported, what is refused, and the end of
 * a loan. Two processes are tested in `test/gpu`, and two simulated runtimes in `test/simulated`.
 */
import { assert, layer } from "@effect/vitest"
import { CudaGraph, CudaInterprocess, CudaMemory, CudaMemoryPool, CudaStream } from "effect-cuda"
import type { MemoryToken, PoolToken } from "effect-cuda/CudaInterprocess"
import type { DeviceBuffer, Slice } from "effect-cuda/CudaMemory"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const size = 4096
const shareable = CudaMemoryPool.make({ shareable: true })

/** Memory of a shareable pool, and memory outside of pools. */
const sources: ReadonlyArray<readonly [MemoryToken["kind"], ReturnType<typeof CudaMemory.allocate>]> = [
  ["pool", Effect.flatMap(shareable, (pool) => CudaMemory.allocate(size, { pool }))],
  ["allocation", CudaInterprocess.allocate(size)]
]

/** A token as if from another process, which never existed. */
const unknown: MemoryToken = {
  _tag: "effect-cuda/MemoryToken",
  kind: "allocation",
  handle: Buffer.alloc(64, 1).toString("base64"),
  offset: 0,
  byteLength: 8
}

/** Values past the types. */
const wrong = (value: unknown): never => value as never

export const interprocessContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("memory for other processes", (it) => {
    for (const [kind, source] of sources) {
      it.effect(`is described by a plain token (${kind})`, () =>
        leavesNothing(Effect.gen(function*() {
          const buffer = yield* source
          const token = yield* CudaInterprocess.share(buffer)
          const part = yield* CudaInterprocess.share(CudaMemory.slice(buffer, 100, 10))
          assert.deepStrictEqual(JSON.parse(JSON.stringify(token)), token)
          assert.deepStrictEqual([token.kind, token.offset, token.byteLength], [kind, 0, size])
          assert.deepStrictEqual(part, { ...token, offset: 100, byteLength: 10 })
          assert.strictEqual(token.device, buffer.device.uuid)
          assert.strictEqual(Buffer.from(token.handle, "base64").byteLength, 64)
          assert.strictEqual(token.pool === undefined, kind === "allocation")
        })))

      it.effect(`is a buffer that operations take (${kind})`, () =>
        leavesNothing(Effect.gen(function*() {
          const [stream, buffer] = [yield* CudaStream.make(), yield* source]
          yield* CudaMemory.fill(buffer, 3, stream)
          const bytes = new Uint8Array(size)
          yield* CudaMemory.download(bytes, buffer, stream)
          assert.deepStrictEqual(bytes, new Uint8Array(size).fill(3))
          assert.isFalse(buffer.isManaged)
        })))

      it.effect(`may be released while work uses it (${kind})`, () =>
        leavesNothing(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          yield* Effect.scoped(Effect.gen(function*() {
            const buffer = yield* source
            yield* (yield* Busy).enqueue(stream, 20)
            yield* CudaMemory.fill(buffer, 1, stream)
          }))
          yield* CudaStream.synchronize(stream)
        })))

      it.effect(`cannot be opened by the process that shared it (${kind})`, () =>
        leavesNothing(Effect.gen(function*() {
          const token = yield* CudaInterprocess.share(yield* source)
          yield* refuses(CudaInterprocess.open(token), "token")
          yield* refuses(CudaInterprocess.open({ ...token, kind: "allocation" }), "token")
        })))
    }

    it.effect("is only memory that is meant to be shared, inside its bounds", () =>
      leavesNothing(Effect.gen(function*() {
        const plain = yield* CudaMemory.allocate(size)
        const unshared = yield* CudaMemory.allocate(size, { pool: yield* CudaMemoryPool.make() })
        const host = yield* CudaMemory.allocateHost(size)
        const managed = yield* CudaMemory.allocateManaged(size)
        for (const other of [plain, unshared, host, managed, undefined, {}, 5]) {
          yield* refuses(CudaInterprocess.share(wrong(other)), "buffer")
        }
        const buffer = yield* CudaInterprocess.allocate(size)
        const range = (offset: number, byteLength?: number): Slice<DeviceBuffer> =>
          CudaMemory.slice(buffer, offset, byteLength)
        yield* refuses(CudaInterprocess.share(range(1, size)), "buffer.byteLength")
        yield* refuses(CudaInterprocess.share(range(0, 0)), "buffer.byteLength")
        yield* refuses(CudaInterprocess.share(range(-1, 4)), "buffer.offset")
        for (const bytes of [0, -1, 0.5, Number.NaN]) yield* refuses(CudaInterprocess.allocate(bytes), "byteLength")
        yield* refuses(CudaInterprocess.allocate(8, { device: 99 }), "device")
        const scope = yield* Scope.make()
        const released = yield* Scope.provide(CudaInterprocess.allocate(size), scope)
        yield* Scope.close(scope, Exit.void)
        yield* failsWith(CudaInterprocess.share(released), "ResourceReleased")
        yield* failsWith(CudaInterprocess.lend(released, () => Effect.void), "ResourceReleased")
      })))

    it.effect("is not a placeholder of a graph", () =>
      leavesNothing(Effect.gen(function*() {
        const recording = CudaGraph.recordWith(
          { input: CudaGraph.buffer(size) },
          ({ input }) => CudaInterprocess.share(input)
        )
        yield* failsWith(recording, "CannotRecord")
      })))

    it.effect("cannot be more than there is", () =>
      leavesNothing(Effect.gen(function*() {
        const error = yield* Effect.flip(CudaInterprocess.allocate(2 ** 50))
        assert.deepStrictEqual([error.operation, error.reason._tag], ["CudaInterprocess.allocate", "OutOfMemory"])
        assert.strictEqual(error.memory?.requested, 2 ** 50)
      })))

    it.effect("is not opened from what is no token", () =>
      leavesNothing(Effect.gen(function*() {
        const token = yield* CudaInterprocess.share(yield* CudaInterprocess.allocate(8))
        for (const other of [undefined, null, 5, {}, { ...token, _tag: "other" }, { ...token, handle: 5 }]) {
          yield* refuses(CudaInterprocess.open(wrong(other)), "token")
        }
        const open = (change: object) => CudaInterprocess.open({ ...unknown, ...change })
        yield* refuses(open({ handle: "" }), "handle")
        yield* refuses(open({ handle: Buffer.alloc(65).toString("base64") }), "handle")
        yield* refuses(open({ kind: "other" }), "kind")
        yield* refuses(open({ returned: "" }), "returned")
        for (const offset of [-1, 0.5, "0", undefined]) yield* refuses(open({ offset }), "offset")
        for (const byteLength of [0, -1, 0.5, "8", undefined]) yield* refuses(open({ byteLength }), "byteLength")
        yield* refuses(open({ device: "GPU-no-such-device" }), "device")
        yield* refuses(CudaInterprocess.open(unknown, { device: 99 }), "device")
        yield* failsWith(open({}), "InvalidValue")
      })))

    it.effect("needs the pool it is of", () =>
      leavesNothing(Effect.gen(function*() {
        const own = yield* shareable
        const token: MemoryToken = { ...unknown, kind: "pool" }
        yield* refuses(CudaInterprocess.open(token), "pool")
        yield* refuses(CudaInterprocess.open(token, { pool: own }), "pool")
        yield* refuses(CudaInterprocess.open(token, { pool: wrong({}) }), "pool")
      })))

    it.effect("has a pool that is exported as a descriptor", () =>
      leavesNothing(Effect.gen(function*() {
        const pool = yield* shareable
        const [first, second] = [yield* CudaInterprocess.sharePool(pool), yield* CudaInterprocess.sharePool(pool)]
        assert.isTrue(Number.isInteger(first.descriptor) && first.descriptor >= 0)
        assert.notStrictEqual(first.descriptor, second.descriptor)
        assert.deepStrictEqual(first.token, second.token)
        assert.strictEqual(first.token.device, pool.device.uuid)
        const buffer = yield* CudaMemory.allocate(8, { pool })
        assert.strictEqual((yield* CudaInterprocess.share(buffer)).pool, first.token.id)
        yield* refuses(CudaInterprocess.openPool(first.token, first.descriptor), "token")
        yield* refuses(CudaInterprocess.sharePool(yield* CudaMemoryPool.make()), "pool")
        yield* refuses(CudaInterprocess.sharePool(yield* CudaMemoryPool.ofDevice()), "pool")
        yield* refuses(CudaInterprocess.sharePool(wrong({})), "pool")
        yield* refuses(CudaMemoryPool.make({ shareable: wrong(1) }), "shareable")
      })))

    it.effect("has no pool without an open descriptor", () =>
      leavesNothing(Effect.gen(function*() {
        const { token } = yield* CudaInterprocess.sharePool(yield* shareable)
        const theirs: PoolToken = { ...token, id: "another" }
        const closed = yield* Effect.scoped(CudaInterprocess.sharePool(yield* shareable))
        for (const descriptor of [-1, 0.5, 2 ** 31, closed.descriptor, wrong("4")]) {
          yield* refuses(CudaInterprocess.openPool(theirs, descriptor), "descriptor")
        }
        yield* refuses(CudaInterprocess.openPool(wrong({}), 0), "token")
        yield* refuses(CudaInterprocess.openPool({ ...theirs, device: "GPU-no-such-device" }, 0), "device")
      })))

    it.effect("has descriptors that are copied from a process", () =>
      leavesNothing(Effect.gen(function*() {
        const { descriptor } = yield* CudaInterprocess.sharePool(yield* shareable)
        const taken = yield* CudaInterprocess.takeDescriptor(process.pid, descriptor)
        assert.notStrictEqual(taken, descriptor)
        for (const pid of [0, -1, 0.5, 2 ** 31]) yield* refuses(CudaInterprocess.takeDescriptor(pid, 0), "pid")
        for (const wrong of [-1, 0.5, 2 ** 31]) {
          yield* refuses(CudaInterprocess.takeDescriptor(process.pid, wrong), "descriptor")
        }
        yield* failsWith(CudaInterprocess.takeDescriptor(process.pid, 2 ** 31 - 1), "InvalidValue")
        yield* failsWith(CudaInterprocess.takeDescriptor(2 ** 31 - 1, 0), "InvalidValue")
      })))

    it.effect("is lent while an effect runs, with two events in the token", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaInterprocess.allocate(8)
        const runtime = yield* CudaRuntime
        const before = yield* runtime.liveResources
        const token = yield* CudaInterprocess.lend(
          buffer,
          (token) => Effect.map(runtime.liveResources, ({ events }) => ({ ...token, events })),
          { stream }
        )
        assert.strictEqual(token.events, before.events + 2)
        for (const event of [token.ready, token.returned]) {
          assert.strictEqual(Buffer.from(event!, "base64").byteLength, 64)
        }
        assert.notStrictEqual(token.ready, token.returned)
        const piped = yield* buffer.pipe(CudaInterprocess.lend(({ offset }) => Effect.succeed(offset), { stream }))
        assert.strictEqual(piped, 0)
        assert.deepStrictEqual(yield* runtime.liveResources, before)
      })))

    it.effect("comes back when the effect fails or is interrupted, and when the other process has ended", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaInterprocess.allocate(8)
        const failed = yield* Effect.flip(CudaInterprocess.lend(buffer, () => Effect.fail("theirs"), { stream }))
        assert.strictEqual(failed, "theirs")
        const begun = yield* Deferred.make<void>()
        const forever = CudaInterprocess.lend(
          buffer,
          () => Effect.andThen(Deferred.succeed(begun, undefined), Effect.never),
          { stream }
        )
        const fiber = yield* started(forever)
        yield* Deferred.await(begun)
        yield* Fiber.interrupt(fiber)
        for (const gone of [Effect.void, Effect.fail("killed"), Effect.sleep(5)]) {
          const error = yield* failsWith(
            CudaInterprocess.lend(buffer, () => Effect.never, { stream, gone }),
            "NeverFinishes"
          )
          assert.match(error.because, /has ended/)
        }
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* CudaStream.synchronize(stream)
      })))
  })
