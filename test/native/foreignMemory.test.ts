/**
 * Device memory of other native code on the driver: what is asked about its address, and when it is given back.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaMemory, CudaStream } from "effect-cuda"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { statuses } from "../../src/cuda/status.ts"
import { failsWith, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { logged, onStub, openStub, pause } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"
import { OthersYield } from "../support/yielding.ts"

const stub = openStub()
const { opened } = tracing(stub)
const size = 256

/** Memory that native code allocates, with the number of times it was freed. */
const allocated = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const pool = yield* Effect.flatMap(CudaRuntime, (runtime) => runtime.poolOfDevice(0))
  const memory = stub.nativeMemory(stream.handle, pool.handle, size)
  const freed = { times: 0 }
  const release = Effect.sync(() => {
    freed.times++
    memory.free()
  })
  return { stream, address: memory.address, freed, release }
})

describe("memory of other native code", () => {
  it.live("is asked about once, in the context of the device, and freed by its owner alone", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const { address, freed, release, stream } = yield* allocated
        stub.clear()
        yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.fromAddress(address, size, { release })
          assert.deepStrictEqual(stub.lines(), within(context, ["cuPointerGetAttributes", 6, address]))
          yield* CudaMemory.fill(buffer, 1, stream)
        }))
        assert.strictEqual(freed.times, 1)
        assert.deepStrictEqual(stub.calls("cuMemFreeAsync").map(({ args }) => args), [[address, stream.handle]])
      })
    ))

  it.live("is checked against its allocation, if the driver knows that", () =>
    opened(() =>
      Effect.gen(function*() {
        const { address, release } = yield* allocated
        yield* refuses(CudaMemory.fromAddress(address, size + 1), "byteLength")
        yield* refuses(CudaMemory.fromAddress(address + size - 1, 2), "byteLength")
        yield* CudaMemory.fromAddress(address + size - 1, 1)
        assert.deepStrictEqual(yield* CudaMemory.pointerAttributes(address + 8), {
          kind: "device",
          isManaged: false,
          deviceIndex: 0,
          range: { address, byteLength: size }
        })
        stub.hidesRanges = true
        yield* CudaMemory.fromAddress(address, size + 1)
        assert.isUndefined((yield* CudaMemory.pointerAttributes(address))!.range)
        yield* Effect.addFinalizer(() => release)
      })
    ))

  it.live("of another device is refused", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const far = yield* CudaMemory.allocate(size, { device: 1 })
        const { deviceIndices } = yield* failsWith(CudaMemory.fromAddress(far.address, size), "DeviceMismatch")
        assert.deepStrictEqual(deviceIndices, [1, 0])
        assert.strictEqual((yield* CudaMemory.fromAddress(far.address, size, { device: 1 })).deviceIndex, 1)
      }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("is unknown if it is ordinary memory, and of the host if it is pinned", () =>
    opened(() =>
      Effect.gen(function*() {
        const host = yield* CudaMemory.allocateHost(size)
        assert.isUndefined(yield* CudaMemory.pointerAttributes(4096))
        assert.strictEqual((yield* CudaMemory.pointerAttributes(host.address))!.kind, "host")
        const error = yield* Effect.flip(CudaMemory.fromAddress(host.address, size))
        assert.include(error.message, "which is memory of the host; expected the address of memory of device 0")
        assert.include(
          (yield* Effect.flip(CudaMemory.fromAddress(4096, 1))).message,
          "0x1000, which CUDA does not know"
        )
      })
    ))

  it.live("is freed only after the work that uses it, while the event loop goes on", () =>
    opened(() =>
      Effect.gen(function*() {
        const { address, freed, release, stream } = yield* allocated
        const other = yield* CudaStream.make()
        const scope = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.fromAddress(address, size, { release }), scope)
        stub.pending = "copies"
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* CudaMemory.fill(buffer, 2, other)
        const closing = yield* started(Scope.close(scope, Exit.void))
        yield* pause(5)
        stub.finish(stream)
        yield* pause(5)
        assert.deepStrictEqual([freed.times, buffer.ref.state], [0, "released"])
        stub.finish(other)
        yield* Fiber.join(closing)
        assert.strictEqual(freed.times, 1)
      })
    ))

  it.live("is freed also if waiting fails, once the streams are idle", () =>
    opened(() =>
      Effect.gen(function*() {
        const { address, freed, release, stream } = yield* allocated
        const scope = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.fromAddress(address, size, { release }), scope)
        stub.pending = "copies"
        yield* CudaMemory.fill(buffer, 1, stream)
        stub.fail("cuEventRecord", statuses.OutOfMemory.code)
        const { lines } = yield* logged(Effect.gen(function*() {
          const closing = yield* started(Scope.close(scope, Exit.void))
          yield* pause(5)
          assert.strictEqual(freed.times, 0)
          stub.finishAll()
          yield* Fiber.join(closing)
        }))
        assert.strictEqual(freed.times, 1)
        assert.lengthOf(lines, 1)
        assert.include(lines[0], "CudaMemory.release")
      })
    ))

  it.live("is given back after a fault, too", () =>
    Effect.gen(function*() {
      let freed = 0
      yield* logged(onStub(
        stub,
        Effect.gen(function*() {
          const { address, release, stream } = yield* allocated
          const counted = Effect.sync(() => void freed++)
          const scope = yield* Scope.make()
          const buffer = yield* Scope.provide(CudaMemory.fromAddress(address, size, { release: counted }), scope)
          yield* CudaMemory.fill(buffer, 1, stream)
          yield* release
          stub.fault = statuses.IllegalAddress.code
          yield* Scope.close(scope, Exit.void)
          assert.strictEqual(freed, 1)
        })
      ))
    }))

  it.live("whose scope outlives the runtime is given back then, without a driver call", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      let freed = 0
      yield* opened(() =>
        Effect.gen(function*() {
          const { address, release, stream } = yield* allocated
          const counted = Effect.sync(() => void freed++)
          const buffer = yield* Scope.provide(CudaMemory.fromAddress(address, size, { release: counted }), scope)
          yield* CudaMemory.fill(buffer, 1, stream)
          yield* Effect.addFinalizer(() => release)
        })
      )
      assert.strictEqual(freed, 0)
      const { callCount } = stub
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual([freed, stub.callCount], [1, callCount])
    }))

  it.live("does not wait for a stream that was destroyed before its fiber went on", () =>
    Effect.gen(function*() {
      const self = yield* Effect.withFiber((fiber) => Effect.succeed(fiber.id))
      for (let period = 3; period < 40; period++) {
        yield* opened(() =>
          Effect.gen(function*() {
            const scope = yield* Scope.make()
            const { address, release } = yield* allocated
            const buffer = yield* Scope.provide(CudaMemory.fromAddress(address, size), scope)
            yield* Effect.scoped(Effect.gen(function*() {
              yield* CudaMemory.fill(buffer, 1, yield* CudaStream.make())
              yield* Scope.close(scope, Exit.void).pipe(
                Effect.provideService(Scheduler.Scheduler, new OthersYield(self, period)),
                Effect.forkDetach({ startImmediately: true })
              )
            }))
            yield* pause(1)
            yield* release
          })
        )
      }
    }))

  it.live("is not given back while a foreign stream uses it, also if the runtime closes meanwhile", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      let isBusy = true
      const givenBack: Array<boolean> = []
      yield* opened(() =>
        Effect.gen(function*() {
          const foreign = yield* CudaStream.fromHandle(stub.foreignStream(0))
          const pool = yield* Effect.flatMap(CudaRuntime, (runtime) => runtime.poolOfDevice(0))
          const memory = stub.nativeMemory(foreign.handle, pool.handle, size)
          const release = Effect.sync(() => {
            givenBack.push(isBusy)
            memory.free()
          })
          const buffer = yield* Scope.provide(CudaMemory.fromAddress(memory.address, size, { release }), scope)
          stub.pending = "copies"
          yield* CudaMemory.fill(buffer, 1, foreign)
          yield* Effect.forkDetach(Scope.close(scope, Exit.void), { startImmediately: true })
          yield* pause(5)
          setTimeout(() => {
            isBusy = false
            stub.finishAll()
          }, 50)
        })
      )
      assert.deepStrictEqual(givenBack, [false])
    }))
})
