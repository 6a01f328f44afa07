/**
 * Pinned memory that the program brings, on the driver: what is pinned when, and how long.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaMemory, CudaStream } from "effect-cuda"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { MaxOpsBeforeYield } from "effect/References"
import * as Scope from "effect/Scope"
import { statuses } from "../../src/cuda/status.ts"
import { failsWith } from "../support/assertions.ts"
import { garbageCollected } from "../support/garbage.ts"
import { assertReleased, logged, onStub, openStub, pause, until } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"

const stub = openStub()
const { opened } = tracing(stub)

const segment = 16 * 1024 * 1024
const page = 4096

/** Memory that begins at an offset in a page, in a buffer that is large enough to have pages of its own. */
const array = (size: number, lead = 0): Uint8Array<ArrayBuffer> => {
  const whole = new Uint8Array(size + 2 * page)
  const address = stub.addressOf(whole.buffer)
  const first = Math.ceil(address / page) * page - address
  return whole.subarray(first + lead, first + lead + size)
}

const addressOf = ({ buffer, byteOffset }: Uint8Array<ArrayBuffer>) => stub.addressOf(buffer) + byteOffset

const registered = () => stub.calls("cuMemHostRegister_v2").map(({ args }) => args)
const unregistered = () => stub.calls("cuMemHostUnregister").map(({ args }) => Number(args[0]))
const untilUnpinned = until("the memory is unpinned", () => stub.live.registrations === 0)

describe("pinning memory of the program", () => {
  it.live("registers exactly that memory, for all contexts", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const bytes = array(10_000, 24)
        const address = addressOf(bytes)
        const host = yield* CudaMemory.pin(bytes)
        assert.deepStrictEqual(stub.lines(), within(context, ["cuMemHostRegister_v2", address, 10_000, 1]))
        assert.deepStrictEqual([host.address, host.byteLength], [address, 10_000])
      })
    ))

  it.live("registers segments that end where pages do, with turns of the event loop in between", () =>
    opened(() =>
      Effect.gen(function*() {
        const bytes = array(2 * segment, 100)
        const address = addressOf(bytes)
        let turns = 0
        const count = () => {
          turns++
          counting = setImmediate(count)
        }
        let counting = setImmediate(count)
        yield* Effect.scoped(CudaMemory.pin(bytes)).pipe(Effect.ensuring(Effect.sync(() => clearImmediate(counting))))
        assert.isAtLeast(turns, 2)
        assert.deepStrictEqual(registered(), [
          [address, segment - 100, 1],
          [address + segment - 100, segment, 1],
          [address + 2 * segment - 100, 100, 1]
        ])
        yield* untilUnpinned
        assert.deepStrictEqual(unregistered(), [address + 2 * segment - 100, address + segment - 100, address])
      })
    ))

  it.live("splits copies at the segments", () =>
    opened(() =>
      Effect.gen(function*() {
        const bytes = array(segment + page, 100)
        const address = addressOf(bytes)
        const [stream, host] = [yield* CudaStream.make(), yield* CudaMemory.pin(bytes)]
        const device = yield* CudaMemory.allocate(bytes.byteLength)
        stub.clear()
        yield* CudaMemory.copy(device, host, stream)
        assert.deepStrictEqual(stub.lines(), [
          ["cuMemcpyHtoDAsync_v2", device.address, address, segment - 100, stream.handle],
          ["cuMemcpyHtoDAsync_v2", device.address + segment - 100, address + segment - 100, page + 100, stream.handle]
        ])
      })
    ))

  it.live("ends after the uses, once no device has work", () =>
    opened(() =>
      Effect.gen(function*() {
        const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const device = yield* CudaMemory.allocate(page)
        stub.pending = "copies"
        yield* Effect.scoped(Effect.flatMap(CudaMemory.pin(array(page)), (host) => CudaMemory.copy(device, host, one)))
        stub.work(other)
        yield* pause(5)
        assert.strictEqual(stub.live.registrations, 1)
        stub.finish(one)
        yield* pause(5)
        assert.strictEqual(stub.live.registrations, 1)
        stub.finish(other)
        yield* untilUnpinned
        assert.strictEqual(stub.blocked, 0)
      })
    ))

  it.live("again before it has ended makes no call", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const bytes = array(3 * page)
        stub.work(stream)
        for (let round = 0; round < 3; round++) {
          yield* Effect.scoped(CudaMemory.pin(bytes))
          yield* pause(2)
        }
        const scope = yield* Scope.make()
        yield* Scope.provide(CudaMemory.pin(bytes.subarray(page, 2 * page)), scope)
        assert.lengthOf(registered(), 1)
        stub.finishAll()
        yield* pause(10)
        assert.strictEqual(stub.live.registrations, 1)
        yield* Scope.close(scope, Exit.void)
        yield* untilUnpinned
        assert.lengthOf(unregistered(), 1)
      })
    ))

  it.live("of more than is pinned and no longer needed first unpins that, if no device has work", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const bytes = array(4 * page)
        stub.work(stream)
        yield* Effect.scoped(CudaMemory.pin(bytes.subarray(page, 2 * page)))
        const error = yield* failsWith(CudaMemory.pin(bytes), "HostMemoryAlreadyRegistered")
        assert.strictEqual(error.code, statuses.HostMemoryAlreadyRegistered.code)
        stub.finishAll()
        yield* Effect.scoped(CudaMemory.pin(bytes))
        yield* untilUnpinned
        assert.strictEqual(stub.blocked, 0)
      })
    ))

  it.live("that is interrupted or fails between segments unpins the ones before", () =>
    opened(() =>
      Effect.gen(function*() {
        const bytes = array(3 * segment)
        stub.fail("cuMemHostRegister_v2", statuses.OutOfMemory.code, { after: 1 })
        const error = yield* Effect.flip(CudaMemory.pin(bytes))
        assert.deepStrictEqual([error.operation, error.call], ["CudaMemory.pin", "cuMemHostRegister"])
        assert.include(error.message, `${3 * segment} bytes of the program's memory`)
        yield* untilUnpinned
        const fiber = yield* Effect.forkChild(Effect.scoped(CudaMemory.pin(bytes)), { startImmediately: true })
        yield* Fiber.interrupt(fiber)
        yield* untilUnpinned
      })
    ))

  it.live("by two fibers at once pins it once", () =>
    opened(() =>
      Effect.gen(function*() {
        const bytes = array(3 * segment)
        yield* Effect.scoped(Effect.all([CudaMemory.pin(bytes), CudaMemory.pin(bytes.subarray(segment))], {
          concurrency: "unbounded"
        }))
        yield* untilUnpinned
        assert.lengthOf(registered(), 3)
      })
    ))

  it.live("counts towards the limit of pinned memory", () =>
    opened(() =>
      Effect.gen(function*() {
        yield* Effect.scoped(CudaMemory.allocateHost(segment))
        const host = yield* CudaMemory.pin(array(segment))
        assert.strictEqual(host.byteLength, segment)
        yield* failsWith(CudaMemory.pin(array(segment)), "OutOfMemory")
        yield* failsWith(CudaMemory.allocateHost(segment), "OutOfMemory")
      }), { pinned: { maxBytes: segment + page } }))

  it.live("keeps the memory reachable until it is unpinned", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        stub.work(stream)
        const held = yield* Effect.scoped(
          Effect.map(CudaMemory.pin(array(segment)), ({ bytes }) => new WeakRef(bytes.buffer))
        )
        yield* garbageCollected
        assert.isDefined(held.deref())
        stub.finishAll()
        yield* untilUnpinned
      })
    ))

  it.live("ends with the runtime at the latest, whatever scope it is in", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const bytes = array(page)
      yield* opened(() => Scope.provide(CudaMemory.pin(bytes), scope))
      assertReleased(stub)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(bytes.byteLength, page)
    }))

  it.live("that cannot be unpinned is a warning", () =>
    Effect.gen(function*() {
      const { lines } = yield* logged(onStub(
        stub,
        Effect.gen(function*() {
          const bytes = array(page)
          stub.fail("cuMemHostUnregister", statuses.Unknown.code)
          yield* Effect.scoped(CudaMemory.pin(bytes))
          yield* until("unpinning was tried", () => stub.failuresLeft === 0)
        }),
        { left: { registrations: 1 } }
      ))
      assert.lengthOf(lines, 1)
      assert.include(lines[0], "cuMemHostUnregister")
    }))

  it.live("is not shared once the contexts are lost", () =>
    logged(onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const bytes = array(page)
        yield* CudaMemory.pin(bytes)
        stub.fault = statuses.IllegalAddress.code
        yield* failsWith(CudaStream.synchronize(stream), "IllegalAddress")
        yield* failsWith(CudaMemory.allocateHost(page), "IllegalAddress")
        yield* failsWith(CudaMemory.pin(bytes), "IllegalAddress")
      })
    )))

  const operations = Array.from({ length: 9 }, (_, index) => 3 + index)
  it.live.each(operations)(
    "leaves nothing if the runtime closes meanwhile, yielding every %i operations",
    (count) =>
      Effect.gen(function*() {
        for (const make of [() => CudaMemory.pin(array(page)), () => CudaMemory.allocateHost(page)]) {
          for (let turns = 0; turns < 30; turns++) {
            stub.reset()
            const [ofRuntime, ofProgram] = [yield* Scope.make(), yield* Scope.make()]
            const runtime = yield* Scope.provide(NativeRuntime.make({ libraryPath: stub.path }), ofRuntime)
            const made = Effect.exit(Scope.provide(Effect.provideService(make(), CudaRuntime, runtime), ofProgram))
            const fiber = yield* Effect.forkDetach(Effect.provideService(made, MaxOpsBeforeYield, count))
            yield* Effect.repeat(Effect.yieldNow, { times: turns })
            yield* Scope.close(ofRuntime, Exit.void)
            yield* Fiber.join(fiber)
            assertReleased(stub)
            yield* Scope.close(ofProgram, Exit.void)
          }
        }
      })
  )
})
