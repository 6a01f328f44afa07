/**
 * Contexts lost to a fault: whichever call reports the fault first, no object kept for reuse is handed out afterwards. Creating a new
 * event calls the driver, which reports that the context is lost.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaDevice, CudaEvent, CudaKernel, CudaMemory, CudaMemoryPool, CudaModule, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import { CudaRuntime, CurrentWaitOptions } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { statuses } from "../../src/cuda/status.ts"
import { program, signatures } from "../support/kernels.ts"
import { logged, openStub, stubLayer, until } from "../support/stubDriver.ts"
import type { StubFunctionName } from "../support/stubDriver.ts"

const stub = openStub()

type Program<A> = Effect.Effect<A, CudaError, CudaRuntime | Scope.Scope>

const module = Effect.flatMap(program, (made) => CudaModule.load(made))
const timed = CudaEvent.make({ timing: true })
const bytes = 256

/** The resources that the operations use, created before the fault. */
const prepare = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const loaded = yield* module
  const [start, end] = yield* Effect.all([timed, timed])
  yield* CudaEvent.record(start, stream)
  yield* CudaEvent.record(end, stream)
  return {
    runtime: yield* CudaRuntime,
    scope: yield* Effect.scope,
    stream,
    other: yield* CudaStream.make(),
    byDefault: yield* CudaStream.defaultStream(),
    host: yield* CudaMemory.allocateHost(bytes),
    device: yield* CudaMemory.allocate(bytes),
    from: yield* CudaMemory.allocate(bytes),
    far: yield* CudaMemory.allocate(bytes, { device: 1 }),
    managed: yield* CudaMemory.allocateManaged(bytes),
    pool: yield* CudaMemoryPool.make(),
    module: loaded,
    kernel: yield* CudaKernel.get(loaded, "put", signatures.put),
    start,
    end,
    shared: yield* CudaEvent.make({ interprocess: true }),
    remote: stub.remoteEvent().handle,
    foreign: stub.foreignStream(0)
  }
})

type Prepared = Effect.Success<typeof prepare>
type Run = (made: Prepared) => Program<unknown>

type Meet = (made: Prepared, arm: Effect.Effect<void>) => Program<unknown>

const one = { grid: 1, block: 1 }

/** Releases a resource after the fault: `arm` is called between its creation and its release. */
const releasing = (make: Run) => (made: Prepared, arm: Effect.Effect<void>) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    yield* Scope.provide(make(made), scope)
    yield* arm
    yield* Scope.close(scope, Exit.void)
  })

/** Waits for pending work, and encounters the fault while waiting. */
const waiting = (wait: Run) => (made: Prepared, arm: Effect.Effect<void>) =>
  Effect.gen(function*() {
    stub.work(made.stream)
    yield* CudaEvent.record(made.end, made.stream)
    stub.clear()
    const fiber = yield* Effect.forkScoped(wait(made))
    yield* until("the fiber waits", () => stub.calls("cuEventQuery").length > 1)
    yield* arm
    const exit = yield* Fiber.await(fiber)
    stub.finishAll()
    yield* exit
  })

/** Makes the GPU wake a wait that does not poll. */
const waking: Meet = (made, arm) =>
  Effect.gen(function*() {
    stub.work(made.stream)
    yield* arm
    yield* Effect.forkScoped(
      Effect.provideService(CudaStream.synchronize(made.stream), CurrentWaitOptions, { pollFor: 0 })
    )
    yield* until("the wake-up fails", () => stub.failuresLeft === 0)
    stub.finishAll()
  })

/** Releases an event while a fiber waits for it, so the end of the wait destroys it. */
const lateRelease: Meet = (made, arm) =>
  Effect.gen(function*() {
    stub.work(made.stream)
    const fiber = yield* Effect.scoped(Effect.gen(function*() {
      const event = yield* CudaStream.recordEvent(made.stream)
      stub.clear()
      const fiber = yield* Effect.forkIn(CudaEvent.synchronize(event), made.scope)
      yield* until("the fiber waits", () => stub.calls("cuEventQuery").length > 0)
      return fiber
    }))
    yield* arm
    stub.finishAll()
    yield* Fiber.join(fiber)
  })

/** Frees released managed memory once the devices are idle. */
const lateManaged: Meet = (_, arm) =>
  Effect.gen(function*() {
    yield* arm
    yield* Effect.scoped(CudaMemory.allocateManaged(bytes))
    yield* until("the memory is freed", () => stub.failuresLeft === 0)
  })

const first = (run: Run) => (made: Prepared, arm: Effect.Effect<void>) => Effect.andThen(arm, run(made))

const meetings: ReadonlyArray<readonly [what: string, fails: StubFunctionName, meet: Meet]> = [
  ["an upload", "cuMemcpyHtoDAsync_v2", first((made) => CudaMemory.copy(made.device, made.host, made.stream))],
  ["a download", "cuMemcpyDtoHAsync_v2", first((made) => CudaMemory.copy(made.host, made.device, made.stream))],
  [
    "a copy on the device",
    "cuMemcpyDtoDAsync_v2",
    first((made) => CudaMemory.copy(made.device, made.from, made.stream))
  ],
  ["a copy between devices", "cuMemcpyPeerAsync", first((made) => CudaMemory.copy(made.far, made.device, made.stream))],
  [
    "a copy of rows",
    "cuMemcpy2DAsync_v2",
    first((made) =>
      CudaMemory.copy2D(
        CudaMemory.rows(made.device, 16),
        CudaMemory.rows(made.host, 32),
        { width: 8, height: 2 },
        made.stream
      )
    )
  ],
  [
    "a batch of copies",
    "cuMemcpyBatchAsync",
    first((made) =>
      CudaMemory.copyBatch([
        { destination: CudaMemory.slice(made.device, 0, 8), source: CudaMemory.slice(made.host, 0, 8) },
        { destination: CudaMemory.slice(made.device, 8, 8), source: CudaMemory.slice(made.from, 0, 8) }
      ], made.stream)
    )
  ],
  ["a fill", "cuMemsetD8Async", first((made) => CudaMemory.fill(made.device, 1, made.stream))],
  ["a fill of 16 bits", "cuMemsetD16Async", first((made) => CudaMemory.fill16(made.device, 1, made.stream))],
  ["a fill of 32 bits", "cuMemsetD32Async", first((made) => CudaMemory.fill32(made.device, 1, made.stream))],
  ["an allocation", "cuMemAllocFromPoolAsync", first((made) => made.runtime.memoryAllocate(0, bytes))],
  ["the wait of an allocation", "cuStreamQuery", first((made) => made.runtime.memoryAllocate(0, bytes))],
  ["the mark of an allocation", "cuEventRecord", first((made) => CudaMemory.allocate(bytes, { stream: made.stream }))],
  ["pinning memory", "cuMemHostRegister_v2", first(() => CudaMemory.allocateHost(1024 ** 2))],
  ["entering a context to pin memory", "cuCtxPushCurrent_v2", first(() => CudaMemory.allocateHost(1024 ** 2))],
  ["an allocation of managed memory", "cuMemAllocManaged", first(() => CudaMemory.allocateManaged(1024 ** 2))],
  ["a prefetch", "cuMemPrefetchAsync_v2", first((made) => CudaMemory.prefetch(made.managed, "host", made.stream))],
  ["advice", "cuMemAdvise_v2", first((made) => CudaMemory.advise(made.managed, { accessedBy: 0 }))],
  ["asking how much memory there is", "cuMemGetInfo_v2", first(() => CudaDevice.memoryInfo())],
  ["making a pool", "cuMemPoolCreate", first(() => CudaMemoryPool.make())],
  ["asking a pool", "cuMemPoolGetAttribute", first((made) => CudaMemoryPool.statistics(made.pool))],
  ["trimming a pool", "cuMemPoolTrimTo", first((made) => CudaMemoryPool.trim(made.pool))],
  ["waiting for a device", "cuEventRecord", first(() => CudaDevice.synchronize())],
  ["a query of a stream", "cuStreamQuery", first((made) => CudaStream.query(made.stream))],
  ["a query of a default stream", "cuCtxPushCurrent_v2", first((made) => CudaStream.query(made.byDefault))],
  ["synchronizing with a stream", "cuStreamQuery", first((made) => CudaStream.synchronize(made.stream))],
  ["waiting for a stream", "cuEventRecord", first((made) => CudaStream.waitStream(made.stream, made.other))],
  [
    "waiting for an event on a stream",
    "cuStreamWaitEvent",
    first((made) => CudaStream.waitEvent(made.other, made.end))
  ],
  ["making a stream", "cuStreamCreateWithPriority", first(() => CudaStream.make())],
  ["wrapping a stream", "cuStreamGetCtx", first((made) => CudaStream.fromHandle(made.foreign))],
  ["recording an event", "cuEventRecord", first((made) => CudaEvent.record(made.end, made.stream))],
  ["a query of an event", "cuEventQuery", first((made) => CudaEvent.query(made.end))],
  ["synchronizing with an event", "cuEventQuery", first((made) => CudaEvent.synchronize(made.end))],
  ["an elapsed time", "cuEventElapsedTime_v2", first((made) => CudaEvent.elapsedTime(made.start, made.end))],
  ["making an event", "cuEventCreate", first(() => CudaEvent.make({ timing: true, blocking: true }))],
  ["exporting an event", "cuIpcGetEventHandle", first((made) => CudaEvent.ipcHandle(made.shared))],
  ["opening an event", "cuIpcOpenEventHandle", first((made) => CudaEvent.fromIpcHandle(made.remote))],
  ["a launch", "cuLaunchKernelEx", first((made) => CudaKernel.launch(made.kernel, one, [made.device, 1], made.stream))],
  ["loading a module", "cuLibraryLoadData", first(() => module)],
  ["looking into a module that was loaded", "cuLibraryGetKernel", first(() => module)],
  ["finding a kernel", "cuLibraryGetKernel", first((made) => CudaKernel.get(made.module, "add", signatures.add))],
  ["loading a kernel", "cuKernelGetFunction", first((made) => CudaKernel.get(made.module, "add", signatures.add))],
  ["finding a variable", "cuLibraryGetGlobal", first((made) => CudaModule.global(made.module, "counter"))],
  ["a kernel's attribute", "cuKernelGetAttribute", first((made) => CudaKernel.attribute(made.kernel, "numRegs"))],
  [
    "setting a kernel's attribute",
    "cuKernelSetAttribute",
    first((made) => CudaKernel.setAttribute(made.kernel, "preferredSharedMemoryCarveout", 1))
  ],
  [
    "a kernel's occupancy",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    first((made) => CudaKernel.activeBlocks(made.kernel, { block: 1 }))
  ],
  ["a fiber that waits for a stream", "cuEventQuery", waiting((made) => CudaStream.synchronize(made.stream))],
  ["a fiber that waits for an event", "cuEventQuery", waiting((made) => CudaEvent.synchronize(made.end))],
  [
    "a fiber that waits for a host function",
    "cuEventQuery",
    waiting((made) => Effect.flatMap(CudaStream.launchHostFunction(made.stream, Effect.void), Fiber.join))
  ],
  ["opening a device", "cuDevicePrimaryCtxRetain", first(() => CudaStream.make({ device: 2 }))],
  ["setting a device up", "cuMemPoolCreate", first(() => CudaStream.make({ device: 2 }))],
  ["looking for an idle device", "cuStreamQuery", first((made) => CudaKernel.get(made.module, "add", signatures.add))],
  [
    "trimming a pool, at the stream of releases",
    "cuStreamSynchronize",
    first((made) => CudaMemoryPool.trim(made.pool))
  ],
  ["the wake-up of a wait", "cuLaunchHostFunc", waking],
  ["the wait of a wake-up", "cuStreamWaitEvent", waking],
  ["the late release of an event", "cuEventDestroy_v2", lateRelease],
  ["the late release of managed memory", "cuMemFree_v2", lateManaged],
  ["the release of memory", "cuMemFreeAsync", releasing(() => CudaMemory.allocate(bytes))],
  [
    "the release of memory in the order of its stream",
    "cuMemFreeAsync",
    releasing((made) => CudaMemory.allocate(bytes, { stream: made.stream }))
  ],
  ["the release of a stream", "cuStreamDestroy_v2", releasing(() => CudaStream.make())],
  ["the release of an event", "cuEventDestroy_v2", releasing(() => CudaEvent.make({ interprocess: true }))],
  ["the release of a pool", "cuMemPoolDestroy", releasing(() => CudaMemoryPool.make())],
  ["the release of a module", "cuLibraryUnload", releasing(() => module)]
]

/** How many events the driver is asked to create after this. */
const eventsMadeAfter = (meet: Meet, arm: Effect.Effect<void>) =>
  Effect.gen(function*() {
    stub.reset()
    stub.devices = 3
    const { result } = yield* logged(
      Effect.gen(function*() {
        const made = yield* prepare
        // An event that is kept for reuse, because it is complete and its handle was not exposed.
        yield* Effect.scoped(CudaEvent.make())
        yield* Effect.exit(meet(made, arm))
        assert.strictEqual(stub.failuresLeft, 0, "the fault was not met")
        stub.clear()
        yield* Effect.scoped(CudaEvent.make())
        return stub.calls("cuEventCreate").length
      }).pipe(
        Effect.onError(() => Effect.sync(() => stub.letGo())),
        Effect.scoped,
        // Waits poll for as long as the test runs, so that no other wait makes the call.
        Effect.provide(stubLayer(stub, { wait: { pollFor: "1 minute" } }))
      )
    )
    return result
  })

describe("a fault", () => {
  it.live("that did not happen lets kept events be reused", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* eventsMadeAfter(first((made) => CudaStream.query(made.stream)), Effect.void), 0)
    }))

  for (const [what, fails, meet] of meetings) {
    it.live(`first reported by ${what} (${fails}) is not hidden by a kept event`, () =>
      Effect.gen(function*() {
        const arm = Effect.sync(() => stub.fail(fails, statuses.IllegalAddress.code))
        assert.strictEqual(yield* eventsMadeAfter(meet, arm), 1)
      }))
  }
})

describe("kept memory", () => {
  const kept: ReadonlyArray<readonly [what: string, allocate: Program<unknown>, makes: StubFunctionName]> = [
    ["pinned", CudaMemory.allocateHost(bytes), "cuMemHostRegister_v2"],
    ["managed", CudaMemory.allocateManaged(bytes), "cuMemAllocManaged"]
  ]
  for (const [what, allocate, makes] of kept) {
    for (const isLost of [false, true]) {
      it.live(`${what}: is ${isLost ? "not " : ""}reused ${isLost ? "after" : "without"} a fault`, () =>
        Effect.gen(function*() {
          stub.reset()
          const used = Effect.gen(function*() {
            const stream = yield* CudaStream.make()
            // Memory is not freed while a stream works.
            stub.work(stream)
            yield* Effect.scoped(allocate)
            if (isLost) {
              stub.fail("cuEventRecord", statuses.IllegalAddress.code)
              yield* Effect.flip(CudaStream.recordEvent(stream))
            }
            stub.clear()
            yield* Effect.scoped(allocate)
            const made = stub.calls(makes).length
            stub.finish(stream)
            return made
          })
          const { result } = yield* logged(Effect.provide(Effect.scoped(used), stubLayer(stub)))
          assert.strictEqual(result, isLost ? 1 : 0)
        }))
    }
  }
})
