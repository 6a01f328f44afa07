/**
 * Memory of other processes on the driver: the exact calls, structs by value, descriptors, and releases that never block.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaInterprocess from "effect-cuda/CudaInterprocess"
import type { MemoryToken, PoolToken } from "effect-cuda/CudaInterprocess"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaMemoryPool from "effect-cuda/CudaMemoryPool"
import type { MemoryPool } from "effect-cuda/CudaMemoryPool"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { closeSync, fstatSync, openSync } from "node:fs"
import { failsWith, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { onStub, openStub, pause, stubLayer, until } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"

const stub = openStub()
const { callsOf, opened } = tracing(stub)

const size = 4096
const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex")
const isOpen = (descriptor: number): boolean => {
  try {
    fstatSync(descriptor)
    return true
  } catch {
    return false
  }
}

/** Any descriptor stands for a pool of another process. */
const descriptor = Effect.acquireRelease(
  Effect.sync(() => openSync("/dev/null", "r")),
  (descriptor) => Effect.sync(() => closeSync(descriptor))
)

const poolToken: Effect.Effect<PoolToken, never, CudaRuntime> = Effect.map(CudaRuntime, ({ devices }) => ({
  _tag: "effect-cuda/PoolToken",
  id: "theirs",
  device: devices[0]!.uuid
}))

const theirPool = Effect.gen(function*() {
  return yield* CudaInterprocess.openPool(yield* poolToken, yield* descriptor)
})

/** Memory of another process. */
const token = (kind: MemoryToken["kind"], handle: Uint8Array, change: Partial<MemoryToken> = {}): MemoryToken => ({
  _tag: "effect-cuda/MemoryToken",
  kind,
  handle: Buffer.from(handle).toString("base64"),
  offset: 0,
  byteLength: size,
  ...change
})

describe("a shareable pool", () => {
  it.live("is created for descriptors, and exported as one that closes with its scope", () =>
    opened(() =>
      Effect.gen(function*() {
        const { calls, result: pool } = yield* callsOf(CudaMemoryPool.make({ shareable: true, maxBytes: size }))
        const properties = Buffer.from(String(calls.find(({ name }) => name === "cuMemPoolCreate")!.args[1]), "hex")
        assert.deepStrictEqual([properties.readInt32LE(0), properties.readInt32LE(4)], [1, 1])
        assert.strictEqual(properties.readBigUInt64LE(24), BigInt(size))
        const { lines, result } = yield* callsOf(Effect.scoped(Effect.gen(function*() {
          const shared = yield* CudaInterprocess.sharePool(pool)
          assert.isTrue(isOpen(shared.descriptor))
          return shared
        })))
        assert.deepStrictEqual(lines, [["cuMemPoolExportToShareableHandle", result.descriptor, pool.handle, 1]])
        assert.isFalse(isOpen(result.descriptor))
      })
    ))

  it.live("has descriptors that close with the runtime, also if the program has closed them", () =>
    Effect.gen(function*() {
      const descriptors: Array<number> = []
      yield* onStub(
        stub,
        Effect.gen(function*() {
          const runtime = yield* CudaRuntime
          const pool = yield* CudaMemoryPool.make({ shareable: true })
          for (const _ of [1, 2]) descriptors.push((yield* runtime.poolShare(pool.ref)).descriptor)
          closeSync(descriptors[0]!)
        })
      )
      assert.deepStrictEqual(descriptors.map(isOpen), [false, false])
    }))

  it.live("is exported before its memory, which is exported as a whole", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make({ shareable: true })
        const buffer = yield* CudaMemory.allocate(size, { pool })
        const { lines, result } = yield* callsOf(CudaInterprocess.share(CudaMemory.slice(buffer, 64, 8)))
        assert.deepStrictEqual(lines.map(([name]) => name), [
          "cuMemPoolExportToShareableHandle",
          "cuMemPoolExportPointer"
        ])
        assert.isFalse(isOpen(Number(lines[0]![1])))
        assert.deepStrictEqual(lines[1], ["cuMemPoolExportPointer", buffer.address])
        const { lines: again } = yield* callsOf(CudaInterprocess.share(buffer))
        assert.deepStrictEqual(again, [["cuMemPoolExportPointer", buffer.address]])
        const bytes = Buffer.from(result.handle, "base64")
        assert.strictEqual(bytes.readBigUInt64LE(), BigInt(buffer.address))
        assert.strictEqual(bytes[63], (63 * 7 + 3) % 256)
      })
    ))
})

describe("a pool of another process", () => {
  it.live("is opened in the device's context, made accessible, and destroyed with its scope", () =>
    opened(({ context, releases }) =>
      Effect.gen(function*() {
        const fd = yield* descriptor
        const theirs = yield* poolToken
        const { lines, result: pool } = yield* callsOf(Effect.scoped(CudaInterprocess.openPool(theirs, fd)))
        assert.deepStrictEqual(lines, [
          ...within(context, ["cuMemPoolImportFromShareableHandle", pool.handle, fd, 1]),
          ["cuMemPoolSetAccess", pool.handle, 0, 3],
          ["cuStreamQuery", releases],
          ["cuStreamSynchronize", releases],
          ["cuMemPoolDestroy", pool.handle]
        ])
      })
    ))

  it.live("is opened once by the driver, and destroyed with the last of its scopes", () =>
    opened(() =>
      Effect.gen(function*() {
        const fd = yield* descriptor
        const open = CudaInterprocess.openPool(yield* poolToken, fd)
        const scope = yield* Scope.make()
        const [first, second] = [yield* Scope.provide(open, scope), yield* open]
        assert.strictEqual(first.handle, second.handle)
        yield* Scope.close(scope, Exit.void)
        assert.lengthOf(stub.calls("cuMemPoolDestroy"), 0)
        yield* CudaInterprocess.open(token("pool", stub.remoteMemory(size)), { pool: second })
      })
    ))

  it.live("is not kept if it cannot be made accessible", () =>
    opened(() =>
      Effect.gen(function*() {
        stub.fail("cuMemPoolSetAccess", 801)
        yield* failsWith(theirPool, "NotSupported")
        assert.lengthOf(stub.calls("cuMemPoolDestroy"), 1)
      })
    ))

  it.live("cannot be read or set", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* theirPool
        yield* failsWith(CudaMemoryPool.statistics(pool), "InvalidValue")
        yield* failsWith(CudaMemoryPool.setReleaseThreshold(pool, 0), "InvalidValue")
        yield* failsWith(CudaMemoryPool.trim(pool), "InvalidValue")
        yield* failsWith(CudaMemory.allocate(2 ** 50), "OutOfMemory")
      })
    ))

  it.live("is closed at the end of the runtime if its memory is still open", () =>
    opened(() =>
      Effect.gen(function*() {
        const outer = yield* Scope.Scope
        const scope = yield* Scope.make()
        const pool = yield* Scope.provide(theirPool, scope)
        const open = CudaInterprocess.open(token("pool", stub.remoteMemory(size)), { pool })
        const buffer = yield* Scope.provide(open, outer)
        yield* Scope.close(scope, Exit.void)
        assert.lengthOf(stub.calls("cuMemPoolDestroy"), 0)
        yield* CudaMemory.fill(buffer, 1, yield* CudaStream.make())
      })
    ))
})

describe("a pool of another process on a machine with two devices", () => {
  const machine = {
    prepare: () => {
      stub.devices = 2
    }
  }
  const theirMemory = (pool: MemoryPool) => CudaInterprocess.open(token("pool", stub.remoteMemory(size)), { pool })

  it.live("gives the devices access that have access to its device, before and after it is opened", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make({ device: 1 })
        const [theirs, fd] = [yield* poolToken, yield* descriptor]
        const early = yield* CudaInterprocess.openPool(theirs, fd)
        yield* CudaDevice.enablePeerAccess(1, 0)
        const late = yield* CudaInterprocess.openPool(theirs, fd)
        assert.strictEqual(early.handle, late.handle)
        for (const pool of [early, late]) {
          assert.deepStrictEqual(CudaMemoryPool.peers(pool), [1])
          yield* CudaMemory.fill(yield* theirMemory(pool), 0, stream)
        }
        yield* CudaStream.synchronize(stream)
        const { lines } = yield* callsOf(CudaMemoryPool.denyAccess(late, 1))
        assert.deepStrictEqual(lines.slice(-3), within(context, ["cuMemPoolSetAccess", late.handle, 1, 0]))
        yield* failsWith(CudaMemory.fill(yield* theirMemory(early), 0, stream), "DeviceMismatch")
        yield* CudaMemoryPool.allowAccess(early, 1)
        yield* CudaMemory.fill(yield* theirMemory(late), 0, stream)
      }), machine))

  it.live("is closed again if such a device cannot access it", () =>
    opened(() =>
      Effect.gen(function*() {
        yield* CudaDevice.enablePeerAccess(1, 0)
        const fd = yield* descriptor
        const theirs = yield* poolToken
        yield* Effect.scoped(theirPool)
        stub.fail("cuDeviceCanAccessPeer", 1)
        const { lines } = yield* callsOf(failsWith(CudaInterprocess.openPool(theirs, fd), "InvalidValue"))
        assert.strictEqual(lines.at(-1)![0], "cuMemPoolDestroy")
      }), machine))

  it.live("keeps access that copies in graphs need", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* theirPool
        const [from, to] = [yield* theirMemory(pool), yield* CudaMemory.allocate(size, { device: 1 })]
        const work = Effect.flatMap(CudaStream.current(1), (stream) => CudaMemory.copy(to, from, stream))
        const graph = yield* CudaGraph.record(work).pipe(CudaDevice.withDevice(1))
        const { lines } = yield* callsOf(CudaGraph.instantiate(graph))
        assert.deepInclude(lines, ["cuMemPoolSetAccess", pool.handle, 1, 3])
        assert.notInclude(lines.map(([name]) => name), "cuPointerGetAttributes")
        const denied = yield* callsOf(CudaMemoryPool.denyAccess(pool, 1))
        assert.deepStrictEqual(denied.lines, [])
      }), machine))
})

describe("memory of a pool of another process", () => {
  it.live("is imported by its 64 bytes, and freed after the work that uses it", () =>
    opened(({ context, releases }) =>
      Effect.gen(function*() {
        const [pool, stream] = [yield* theirPool, yield* CudaStream.make()]
        const handle = stub.remoteMemory(size)
        const scope = yield* Scope.make()
        const open = CudaInterprocess.open(token("pool", handle, { offset: 256, byteLength: 128 }), { pool })
        const { lines, result: buffer } = yield* callsOf(Scope.provide(open, scope))
        const base = buffer.address - 256
        assert.deepStrictEqual(
          lines.slice(0, 3),
          within(context, ["cuMemPoolImportPointer", base, pool.handle, hexOf(handle)])
        )
        stub.pending = "memory"
        yield* CudaMemory.fill(buffer, 1, stream)
        stub.pending = "nothing"
        const { lines: released } = yield* callsOf(Scope.close(scope, Exit.void))
        const names = released.map(([name]) => name)
        assert.deepStrictEqual(names.slice(-3), ["cuEventRecord", "cuStreamWaitEvent", "cuMemFreeAsync"])
        assert.deepStrictEqual(released.at(-1), ["cuMemFreeAsync", base, releases])
        stub.finishAll()
      })
    ))

  it.live("is imported once, however often it is opened, and freed with the last buffer after the work of all", () =>
    opened(({ releases }) =>
      Effect.gen(function*() {
        const [pool, stream] = [yield* theirPool, yield* CudaStream.make()]
        const handle = stub.remoteMemory(size)
        const scopes = [yield* Scope.make(), yield* Scope.make()] as const
        const open = (offset: number) =>
          CudaInterprocess.open(token("pool", handle, { offset, byteLength: 8 }), { pool })
        const first = yield* Scope.provide(open(0), scopes[0])
        const second = yield* Scope.provide(open(8), scopes[1])
        assert.strictEqual(second.address, first.address + 8)
        assert.lengthOf(stub.calls("cuMemPoolImportPointer"), 1)
        stub.work(stream)
        yield* CudaMemory.fill(first, 1, stream)
        yield* Scope.close(scopes[0], Exit.void)
        assert.lengthOf(stub.calls("cuMemFreeAsync"), 0)
        yield* Scope.close(scopes[1], Exit.void)
        assert.deepStrictEqual(stub.calls("cuMemFreeAsync")[0]!.args, [first.address, releases])
        assert.strictEqual(stub.live.allocations, 1)
        stub.finishAll()
        assert.strictEqual(stub.live.allocations, 0)
      })
    ))

  it.live("is opened again only when its release has finished", () =>
    opened(() =>
      Effect.gen(function*() {
        const [pool, stream] = [yield* theirPool, yield* CudaStream.make()]
        const open = CudaInterprocess.open(token("pool", stub.remoteMemory(size)), { pool })
        yield* Effect.scoped(Effect.flatMap(open, (buffer) =>
          Effect.andThen(Effect.sync(() => stub.work(stream)), CudaMemory.fill(buffer, 1, stream))))
        const fiber = yield* started(open)
        assert.isUndefined(fiber.pollUnsafe())
        assert.lengthOf(stub.calls("cuMemPoolImportPointer"), 1)
        stub.finishAll()
        yield* Fiber.join(fiber)
        assert.lengthOf(stub.calls("cuMemPoolImportPointer"), 2)
      })
    ))

  it.live("records the event of its owner after its release", () =>
    opened(({ releases }) =>
      Effect.gen(function*() {
        const pool = yield* theirPool
        const remote = stub.remoteEvent()
        const returned = Buffer.from(remote.handle).toString("base64")
        const open = CudaInterprocess.open(token("pool", stub.remoteMemory(size), { returned }), { pool })
        const { lines } = yield* callsOf(Effect.scoped(open))
        const [event] = lines.find(([name]) => name === "cuIpcOpenEventHandle")!.slice(1)
        assert.deepStrictEqual(lines.slice(-2), [["cuEventRecord", event!, releases], ["cuEventDestroy_v2", event!]])
        assert.strictEqual(lines.at(-3)![0], "cuMemFreeAsync")
        remote.finish()
      })
    ))

  it.live("is closed again if it has fewer bytes than the token, or its event cannot be opened", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* theirPool
        const handle = stub.remoteMemory(size)
        yield* refuses(CudaInterprocess.open(token("pool", handle, { offset: 1 }), { pool }), "byteLength")
        const returned = Buffer.alloc(64).toString("base64")
        yield* failsWith(CudaInterprocess.open(token("pool", handle, { returned }), { pool }), "InvalidValue")
        assert.strictEqual(stub.live.allocations, 0)
        stub.hidesRanges = true
        yield* CudaInterprocess.open(token("pool", handle, { offset: 1 }), { pool })
      })
    ))

  it.live("waits on the host until its owner has made it ready", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* theirPool
        const remote = stub.remoteEvent()
        const ready = Buffer.from(remote.handle).toString("base64")
        const open = CudaInterprocess.open(token("pool", stub.remoteMemory(size), { ready }), { pool })
        const fiber = yield* started(open)
        yield* pause(5)
        assert.isUndefined(fiber.pollUnsafe())
        assert.lengthOf(stub.calls("cuStreamWaitEvent"), 0)
        remote.finish()
        yield* Fiber.join(fiber)
        const gone = yield* failsWith(
          CudaInterprocess.open(
            token("pool", stub.remoteMemory(2 * size), {
              ready: Buffer.from(stub.remoteEvent().handle).toString("base64")
            }),
            { pool, gone: Effect.sleep(5) }
          ),
          "NeverFinishes"
        )
        assert.match(gone.because, /has ended/)
      })
    ))

  it.live("can be interrupted while it waits, and leaves nothing", () =>
    opened(() =>
      Effect.gen(function*() {
        const pool = yield* theirPool
        const ready = Buffer.from(stub.remoteEvent().handle).toString("base64")
        const open = CudaInterprocess.open(token("pool", stub.remoteMemory(size), { ready }), { pool })
        const fiber = yield* started(open)
        assert.strictEqual(stub.live.allocations, 1)
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual([stub.live.allocations, stub.live.events], [0, 0])
      })
    ))
})

describe("an allocation outside of pools", () => {
  it.live("is made and read in the device's context, and freed only while no device has work", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const scope = yield* Scope.make()
        const { lines, result: buffer } = yield* callsOf(Scope.provide(CudaInterprocess.allocate(size), scope))
        assert.deepStrictEqual(lines, within(context, ["cuMemAlloc_v2", buffer.address, size]))
        const { lines: shared } = yield* callsOf(CudaInterprocess.share(buffer))
        assert.deepStrictEqual(shared, within(context, ["cuIpcGetMemHandle", buffer.address]))
        stub.work(stream)
        yield* CudaMemory.fill(buffer, 1, stream)
        const other = yield* CudaStream.make()
        stub.work(other)
        yield* Scope.close(scope, Exit.void)
        yield* pause(15)
        stub.finish(stream)
        yield* pause(15)
        assert.lengthOf(stub.calls("cuMemFree_v2"), 0)
        stub.finish(other)
        yield* until("the memory is freed", () => stub.calls("cuMemFree_v2").length > 0)
        assert.deepStrictEqual(stub.calls("cuMemFree_v2")[0]!.args, [buffer.address])
        assert.strictEqual(stub.blocked, 0)
      })
    ))

  for (
    const [what, call, allocate] of [
      ["of the same kind", "cuMemAlloc_v2", CudaInterprocess.allocate(size)],
      ["of a pool", "cuMemAllocFromPoolAsync", CudaMemory.allocate(size)]
    ] as const
  ) {
    it.live(`makes room for memory ${what} once it is released`, () =>
      opened(() =>
        Effect.gen(function*() {
          yield* Effect.scoped(CudaInterprocess.allocate(size))
          stub.fail(call, 2)
          const { lines } = yield* callsOf(allocate)
          const names = lines.map(([name]) => name)
          assert.deepStrictEqual(names.filter((name) => name === call || name === "cuMemFree_v2"), [
            call,
            "cuMemFree_v2",
            call
          ])
          assert.strictEqual(stub.blocked, 0)
        })
      ))
  }

  it.live("is freed with the runtime", () => opened(() => Effect.asVoid(CudaInterprocess.allocate(size))))

  it.live("of another process is opened by value, and closed only while no device has work", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const scope = yield* Scope.make()
        const handle = stub.remoteMemory(size)
        const open = CudaInterprocess.open(token("allocation", handle, { offset: 16, byteLength: 16 }))
        const { lines, result: buffer } = yield* callsOf(Scope.provide(open, scope))
        const base = buffer.address - 16
        assert.deepStrictEqual(
          lines.slice(0, 3),
          within(context, ["cuIpcOpenMemHandle_v2", base, hexOf(handle), 1])
        )
        stub.work(stream)
        yield* CudaMemory.fill(buffer, 1, stream)
        const closing = yield* started(Scope.close(scope, Exit.void))
        assert.isUndefined(closing.pollUnsafe())
        yield* failsWith(CudaMemory.fill(buffer, 1, stream), "ResourceReleased")
        const other = yield* CudaStream.make()
        stub.work(other)
        stub.finish(stream)
        yield* Fiber.join(closing)
        yield* pause(15)
        assert.lengthOf(stub.calls("cuIpcCloseMemHandle"), 0)
        stub.finish(other)
        yield* until("the memory is closed", () => stub.calls("cuIpcCloseMemHandle").length > 0)
        assert.deepStrictEqual(stub.calls("cuIpcCloseMemHandle")[0]!.args, [base])
        assert.strictEqual(stub.blocked, 0)
      })
    ))

  it.live("of another process is closed each time that it was opened", () =>
    opened(() =>
      Effect.gen(function*() {
        const remote = stub.remoteEvent()
        const returned = Buffer.from(remote.handle).toString("base64")
        const handle = stub.remoteMemory(size)
        yield* Effect.scoped(Effect.gen(function*() {
          yield* CudaInterprocess.open(token("allocation", handle))
          yield* CudaInterprocess.open(token("allocation", handle, { returned }))
          yield* refuses(CudaInterprocess.open(token("allocation", handle, { byteLength: size + 1 })), "byteLength")
        }))
        yield* until("the memory is closed", () => stub.calls("cuIpcCloseMemHandle").length === 3)
        assert.strictEqual(stub.live.events, 0)
      })
    ))
})

describe("descriptors of other processes", () => {
  it.live("are copied, and close with their scope", () =>
    opened(() =>
      Effect.gen(function*() {
        const fd = yield* descriptor
        const taken = yield* Effect.scoped(Effect.tap(
          CudaInterprocess.takeDescriptor(process.pid, fd),
          (taken) => Effect.sync(() => assert.strictEqual(fstatSync(taken).ino, fstatSync(fd).ino))
        ))
        assert.notStrictEqual(taken, fd)
        assert.isFalse(isOpen(taken))
        const error = yield* Effect.flip(CudaInterprocess.takeDescriptor(process.pid, taken))
        assert.deepStrictEqual([error.call, error.reason._tag], ["pidfd_getfd", "InvalidValue"])
        const nobody = yield* Effect.flip(CudaInterprocess.takeDescriptor(2 ** 31 - 1, 0))
        assert.deepStrictEqual([nobody.call, nobody.reason._tag], ["pidfd_open", "InvalidValue"])
      })
    ))
})

describe("a driver without functions for other processes", () => {
  const names = [
    "cuMemPoolExportToShareableHandle",
    "cuMemPoolImportFromShareableHandle",
    "cuMemPoolExportPointer",
    "cuMemAlloc_v2",
    "cuIpcOpenMemHandle_v2"
  ]
  const old = openStub(names.map((name) => `${name}=hidden_${name}`))

  it.live("fails typed", () =>
    onStub(
      old,
      Effect.gen(function*() {
        const pool = yield* CudaMemoryPool.make({ shareable: true })
        const buffer = yield* CudaMemory.allocate(size, { pool })
        yield* failsWith(CudaInterprocess.sharePool(pool), "NotSupported")
        yield* failsWith(CudaInterprocess.share(buffer), "NotSupported")
        yield* failsWith(CudaInterprocess.allocate(size), "NotSupported")
        yield* failsWith(theirPool, "NotSupported")
        yield* failsWith(CudaInterprocess.open(token("allocation", stub.remoteMemory(size))), "NotSupported")
      })
    ))
})

describe("memory of this process", () => {
  it.live("is refused, also by another runtime", () =>
    opened(() =>
      Effect.gen(function*() {
        const shared = yield* CudaInterprocess.share(yield* CudaInterprocess.allocate(size))
        const other = Effect.provide(Effect.scoped(CudaInterprocess.open(shared)), stubLayer(stub))
        yield* refuses(other, "token")
        // The driver refuses it as well, if the origin is unknown.
        yield* failsWith(CudaInterprocess.open({ ...shared, origin: undefined }), "InvalidContext")
      })
    ))
})
