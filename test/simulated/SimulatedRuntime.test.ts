import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import type { CudaError } from "../../src/CudaError.ts"
import * as CudaLibrary from "../../src/CudaLibrary.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import type { CompileRequest, CudaRuntimeService, EventRef, StreamRef } from "../../src/layers/CudaRuntime.ts"
import { operations as table } from "../../src/layers/runtime/operations.ts"
import * as SimulatedRuntime from "../../src/layers/SimulatedRuntime.ts"
import type { OperationName, SimulatedOptions } from "../../src/layers/SimulatedRuntime.ts"

const operationCalls = Object.fromEntries(Object.values(table).map(({ call, name }) => [name, call])) as Record<
  OperationName,
  string
>

const nonBlocking = (runtime: CudaRuntimeService, device = 0) =>
  runtime.streamCreate({ deviceIndex: device, priority: 0, nonBlocking: true })

const start = (options?: SimulatedOptions) =>
  Effect.gen(function*() {
    const { control, runtime } = yield* SimulatedRuntime.make(options)
    return { control, runtime, stream: yield* nonBlocking(runtime) }
  })

const reasonOf = <A>(effect: Effect.Effect<A, CudaError>) =>
  Effect.match(effect, { onSuccess: () => "success", onFailure: ({ reason }) => reason._tag as string })

const millisNow = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)

describe("virtual time", () => {
  it.effect("exposes every moment between enqueue and end", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start()
      const event = yield* runtime.eventCreate(0, 2)
      yield* control.launch(stream, { duration: "3 millis" })
      yield* runtime.eventRecord(event, stream)
      yield* control.launch(stream, { duration: "2 millis" })
      const look = Effect.all([runtime.eventQuery(event), runtime.streamQuery(stream), control.pendingOperations])
      assert.deepStrictEqual(yield* look, [false, false, 3])
      yield* TestClock.adjust("2999 micros")
      assert.deepStrictEqual(yield* look, [false, false, 3])
      yield* TestClock.adjust("1 micros")
      assert.deepStrictEqual(yield* look, [true, false, 1])
      yield* TestClock.adjust("2 millis")
      assert.deepStrictEqual(yield* look, [true, true, 0])
    }))

  it.effect("resumes each waiting fiber at its own time, in order, within one adjustment", () =>
    Effect.gen(function*() {
      const { control, runtime } = yield* start()
      const log: Array<readonly [name: string, millis: number]> = []
      const waitFor = Effect.fnUntraced(function*(name: string, millis: number) {
        const stream = yield* nonBlocking(runtime)
        yield* control.launch(stream, { duration: millis })
        yield* runtime.streamSynchronize(stream)
        log.push([name, yield* millisNow])
        yield* control.launch(stream, { duration: 0.5 })
        yield* runtime.streamSynchronize(stream)
        log.push([`${name}, again`, yield* millisNow])
      })
      for (const [name, millis] of [["c", 3], ["a", 1], ["b", 1.25]] as const) {
        yield* Effect.forkChild(waitFor(name, millis))
      }
      yield* TestClock.adjust(10)
      assert.deepStrictEqual(log, [
        ["a", 1],
        ["b", 1.25],
        ["a, again", 1.5],
        ["b, again", 1.75],
        ["c", 3],
        ["c, again", 3.5]
      ])
    }))

  it.effect("measures elapsed times exactly", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start()
      const [first, last] = yield* Effect.all([runtime.eventCreate(0, 0), runtime.eventCreate(0, 0)])
      yield* runtime.eventRecord(first, stream)
      yield* control.launch(stream, { duration: "1500 micros" })
      yield* runtime.eventRecord(last, stream)
      assert.strictEqual(yield* reasonOf(runtime.eventElapsedTime(first, last)), "NotFinished")
      yield* TestClock.adjust(2)
      assert.strictEqual(yield* runtime.eventElapsedTime(first, last), 1.5)
    }))

  it.live("wakes waits under the live clock, many at once", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start()
      const before = performance.now()
      yield* control.launch(stream, { duration: 30 })
      const waits = Array.from({ length: 10_000 }, () => runtime.streamSynchronize(stream))
      yield* Effect.all(waits, { concurrency: "unbounded", discard: true })
      const took = performance.now() - before
      assert.isAtLeast(took, 29)
      assert.isBelow(took, 3000)
      assert.strictEqual((yield* runtime.liveResources).waits, 0)
    }))

  it.effect("cancels a wait when its fiber is interrupted", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start()
      yield* control.launch(stream, { duration: 10 })
      const fiber = yield* Effect.forkChild(runtime.streamSynchronize(stream), { startImmediately: true })
      assert.strictEqual((yield* runtime.liveResources).waits, 1)
      yield* Fiber.interrupt(fiber)
      assert.strictEqual((yield* runtime.liveResources).waits, 0)
      yield* TestClock.adjust(10)
      assert.isTrue(yield* runtime.streamQuery(stream))
    }))
})

describe("waits that never end", () => {
  it.effect("fail once nothing else runs", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { control, runtime, stream } = yield* Scope.provide(start(), scope)
      const other = yield* nonBlocking(runtime)
      yield* control.launch(stream, { duration: "Infinity" })
      yield* control.launch(other, { duration: 5 })
      const fiber = yield* Effect.forkChild(Effect.flip(runtime.streamSynchronize(stream)), { startImmediately: true })
      yield* TestClock.adjust(4)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = yield* Fiber.join(fiber)
      assert.deepStrictEqual([error.operation, error.reason._tag], ["CudaStream.synchronize", "NeverFinishes"])
      // Nothing can drain the hung stream, yet the release completes.
      yield* Scope.close(scope, Exit.void)
    }))
})

describe("streams and events", () => {
  it.effect("have ids like the driver's, and handles that are never reused", () =>
    Effect.gen(function*() {
      const { runtime, stream } = yield* start()
      const second = yield* nonBlocking(runtime)
      const legacy = yield* runtime.streamDefault(0, "legacy")
      const perThread = yield* runtime.streamDefault(0, "perThread")
      assert.deepStrictEqual([legacy.id, perThread.id, stream.id, second.id], [0, 15, 16, 17])
      assert.deepStrictEqual([legacy.handle, perThread.handle] as Array<number>, [1, 2])
      yield* runtime.streamDestroy(second)
      const third = yield* nonBlocking(runtime)
      assert.notStrictEqual(third.handle, second.handle)
      assert.strictEqual(third.id, 18)
      assert.isTrue(stream.handle > 2 ** 16 && stream.handle % 16 === 0)
    }))

  it.effect("can be looked up by handle, and are then the same stream", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start()
      const same = yield* runtime.streamFromHandle(0, stream.handle)
      assert.deepStrictEqual([same.id, same.origin], [stream.id, "foreign"])
      yield* control.launch(same, { duration: 1 })
      assert.isFalse(yield* runtime.streamQuery(stream))
      yield* TestClock.adjust(1)
      yield* runtime.streamDestroy(stream)
      assert.strictEqual(yield* reasonOf(runtime.streamFromHandle(0, stream.handle)), "InvalidHandle")
    }))
})

describe("interprocess events", () => {
  const interprocess = 6

  it.effect("order two runtimes of one clock", () =>
    Effect.gen(function*() {
      const [one, two] = yield* Effect.all([start(), start()])
      const event = yield* one.runtime.eventCreate(0, interprocess)
      const handle = yield* one.runtime.eventIpcHandle(event)
      assert.strictEqual(handle.byteLength, 64)
      const opened = yield* two.runtime.eventFromIpcHandle(0, handle)
      yield* one.control.launch(one.stream, { duration: 4 })
      yield* one.runtime.eventRecord(event, one.stream)
      yield* two.runtime.streamWaitEvent(two.stream, opened)
      const fiber = yield* Effect.forkChild(Effect.andThen(two.runtime.streamSynchronize(two.stream), millisNow), {
        startImmediately: true
      })
      yield* TestClock.adjust(10)
      assert.strictEqual(yield* Fiber.join(fiber), 4)
    }))

  it.effect("are rejected with another clock, once released, and when unknown", () =>
    Effect.gen(function*() {
      const { runtime } = yield* start()
      const event = yield* runtime.eventCreate(0, interprocess)
      const handle = yield* runtime.eventIpcHandle(event)
      const other = yield* TestClock.withLive(Effect.map(start(), (started) => started.runtime))
      assert.strictEqual(yield* reasonOf(other.eventFromIpcHandle(0, handle)), "NotSupported")
      assert.strictEqual(yield* reasonOf(runtime.eventFromIpcHandle(0, new Uint8Array(64))), "InvalidHandle")
      const same = (yield* start()).runtime
      yield* same.eventFromIpcHandle(0, handle)
      yield* runtime.eventDestroy(event)
      assert.strictEqual(yield* reasonOf(same.eventFromIpcHandle(0, handle)), "InvalidHandle")
    }))
})

describe("memory", () => {
  it.effect("moves data in virtual time", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start()
      const [host, back] = yield* Effect.all([runtime.hostAllocate(4), runtime.hostAllocate(4)])
      const memory = yield* runtime.memoryAllocate(0, 4)
      const range = (of: typeof host | typeof memory) => ({ memory: of, offset: 0, byteLength: 4 })
      host.bytes.set([1, 2, 3, 4])
      yield* runtime.memoryCopy(range(memory), range(host), stream)
      const content = yield* control.bytes(memory)
      yield* control.launch(stream, {
        duration: "1 micros",
        run: () => content.forEach((byte, i) => content[i] = 2 * byte)
      })
      yield* runtime.memoryCopy(range(back), range(memory), stream)
      assert.deepStrictEqual([...back.bytes], [0, 0, 0, 0])
      yield* TestClock.adjust(1)
      assert.isTrue(yield* runtime.streamQuery(stream))
      assert.deepStrictEqual([...back.bytes], [2, 4, 6, 8])
    }))

  it.effect("fills up, and has room again once the users of released memory are done", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start({ devices: [{ memory: 1000 }] })
      const memory = yield* runtime.memoryAllocate(0, 900)
      yield* control.launch(stream, { duration: 5 })
      yield* runtime.memoryFill({ memory, offset: 0, byteLength: 900 }, 1, 8, stream)
      yield* runtime.memoryFree(memory)
      assert.deepStrictEqual(yield* runtime.deviceMemoryInfo(0), { free: 100, total: 1000 })
      assert.strictEqual(yield* reasonOf(runtime.memoryAllocate(0, 900)), "OutOfMemory")
      const reclaimed = yield* Effect.forkChild(
        Effect.andThen(runtime.memoryReclaim(0), runtime.memoryAllocate(0, 900)),
        {
          startImmediately: true
        }
      )
      yield* TestClock.adjust(6)
      assert.strictEqual((yield* Fiber.join(reclaimed)).byteLength, 900)
    }))

  it.effect("detaches pinned memory from its views at once, and lets pending copies finish", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start()
      const host = yield* runtime.hostAllocate(4)
      const memory = yield* runtime.memoryAllocate(0, 4)
      const view = host.bytes
      view.set([9, 8, 7, 6])
      yield* runtime.memoryCopy(
        { memory, offset: 0, byteLength: 4 },
        { memory: host, offset: 0, byteLength: 4 },
        stream
      )
      yield* runtime.memoryFree(host)
      assert.deepStrictEqual([view.byteLength, host.bytes.byteLength], [0, 0])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual([...(yield* control.bytes(memory))], [9, 8, 7, 6])
    }))

  it.effect("fails with OutOfMemory for more pinned memory than there is or the process can hold", () =>
    Effect.gen(function*() {
      const { runtime } = yield* start({ hostMemory: 100 })
      const first = yield* runtime.hostAllocate(60)
      assert.strictEqual(yield* reasonOf(runtime.hostAllocate(60)), "OutOfMemory")
      yield* runtime.memoryFree(first)
      assert.strictEqual(yield* reasonOf(runtime.hostAllocate(60)), "success")
      const unlimited = yield* start()
      assert.strictEqual(yield* reasonOf(unlimited.runtime.hostAllocate(2 ** 50)), "OutOfMemory")
    }))
})

describe("faults", () => {
  it.effect("end every context once the work ends", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start({ devices: 2 })
      const other = yield* nonBlocking(runtime, 1)
      yield* control.launch(stream, { duration: 5, fault: "IllegalAddress" })
      yield* control.launch(other, { duration: 8 })
      const waits = yield* Effect.forkChild(
        Effect.all([runtime.streamSynchronize(stream), runtime.streamSynchronize(other)].map(reasonOf), {
          concurrency: "unbounded"
        }),
        { startImmediately: true }
      )
      yield* TestClock.adjust(4)
      assert.isFalse(yield* runtime.streamQuery(stream))
      yield* TestClock.adjust(1)
      const later = [
        runtime.streamQuery(stream),
        nonBlocking(runtime),
        runtime.memoryAllocate(0, 1),
        runtime.deviceMemoryInfo(0),
        control.launch(stream, { duration: 1 })
      ]
      for (const call of later) assert.strictEqual(yield* reasonOf(call), "IllegalAddress")
      assert.strictEqual(yield* reasonOf(runtime.streamQuery(other)), "IllegalAddress")
      assert.deepStrictEqual(yield* Fiber.join(waits), ["IllegalAddress", "IllegalAddress"])
    }))

  it.effect("end waits at once when a context is lost externally", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start()
      yield* control.launch(stream, { duration: "1 hour" })
      const fiber = yield* Effect.forkChild(reasonOf(runtime.streamSynchronize(stream)), { startImmediately: true })
      yield* control.lose(0, "EccUncorrectable")
      assert.strictEqual(yield* Fiber.join(fiber), "EccUncorrectable")
    }))
})

const emptyKernel: CompileRequest = {
  source: "__global__ void empty() {}",
  name: "empty.cu",
  deviceIndex: 0,
  target: undefined,
  architecture: undefined,
  options: [],
  headers: {},
  nameExpressions: [],
  cache: undefined
}

const poolOptions = {
  maxBytes: Number.POSITIVE_INFINITY,
  releaseThreshold: 0,
  reuseFollowEventDependencies: true,
  reuseAllowOpportunistic: true,
  reuseAllowInternalDependencies: false
}

const emptyLibrary = {
  name: "empty",
  files: () => [],
  wheels: [],
  statuses: {},
  functions: {
    nothing: CudaLibrary.func([], { simulate: () => 0 }),
    make: CudaLibrary.func([CudaLibrary.newHandleOf("empty")], { simulate: () => 0 }),
    destroy: CudaLibrary.func([CudaLibrary.handleOf("empty")])
  }
}

const handleOptions = { create: "make", values: [], destroy: "destroy", setStream: undefined }

/** Every operation, on resources created for it. */
const operations = (runtime: CudaRuntimeService, stream: StreamRef, event: EventRef) =>
  Effect.gen(function*() {
    const memory = yield* runtime.memoryAllocate(0, 8)
    const ordered = yield* runtime.memoryAllocate(0, 8, { ordered: true })
    const range = (offset: number) => ({ memory, offset, byteLength: 4 })
    const shared = yield* runtime.eventCreate(0, 6)
    const elsewhere = yield* SimulatedRuntime.make()
    const handle = yield* elsewhere.runtime.eventIpcHandle(yield* elsewhere.runtime.eventCreate(0, 6))
    const theirs = yield* elsewhere.runtime.poolCreate(0, { ...poolOptions, shareable: true })
    const { descriptor } = yield* elsewhere.runtime.poolShare(theirs)
    const lent = { memory: yield* elsewhere.runtime.memoryAllocateShareable(0, 8), offset: 0, byteLength: 8 }
    const token = yield* elsewhere.runtime.memoryShare(lent)
    const shareable = yield* runtime.poolCreate(0, { ...poolOptions, shareable: true })
    const sharing = { memory: yield* runtime.memoryAllocate(0, 8, { pool: shareable }), offset: 0, byteLength: 8 }
    const oldEvent = yield* runtime.eventCreate(0, 2)
    const oldMemory = yield* runtime.memoryAllocate(0, 8)
    const managed = { memory: yield* runtime.managedAllocate(0, 8), offset: 0, byteLength: 8 }
    const growable = yield* runtime.memoryReserve(0, 4 * 2 ** 20)
    const [partition] = yield* runtime.partitionCreate(0, [8])
    const pool = yield* runtime.poolCreate(0, poolOptions)
    const oldPool = yield* runtime.poolCreate(0, poolOptions)
    const rows = (offset: number) => ({ ...range(offset), pitch: 2 })
    const oldStream = yield* nonBlocking(runtime)
    const branch = yield* nonBlocking(runtime)
    const image = new Uint8Array(0)
    const options = { idleTimeout: Duration.zero }
    const [module, oldModule] = [
      yield* runtime.moduleLoad(image, options),
      yield* runtime.moduleLoad(image, options)
    ]
    const kernel = yield* runtime.kernelGet(module, "nothing", [], 0)
    const recording = yield* runtime.graphRecord({ deviceIndex: 0, parameters: [] })
    const empty = yield* runtime.graphRecord({ deviceIndex: 0, parameters: [] })
    const graph = yield* runtime.graphEnd(empty)
    const [exec, oldExec] = [yield* runtime.graphInstantiate(graph, 1), yield* runtime.graphInstantiate(graph, 1)]
    const filling = yield* runtime.graphRecord({ deviceIndex: 0, parameters: [] })
    yield* runtime.memoryFill(range(0), 0, 8, filling.stream)
    const filler = yield* runtime.graphInstantiate(yield* runtime.graphEnd(filling), 1)
    const work = { reads: [], writes: [], simulate: () => {} }
    const capture = yield* runtime.graphCapture(work, stream)
    const access = { stream, reads: [], writes: [], outer: undefined }
    yield* runtime.memoryBegin(access)
    const library = yield* runtime.libraryLoad(emptyLibrary, undefined)
    const libraryHandle = yield* runtime.libraryHandle(library, handleOptions, 0)
    const calls: { readonly [Name in OperationName]: Effect.Effect<unknown, CudaError> } = {
      "CudaBranch.fork": runtime.streamFork(stream, [branch]),
      "CudaBranch.join": runtime.streamJoin(stream, [branch]),
      "CudaDevice.attribute": runtime.deviceAttribute(0, "warpSize"),
      "CudaDevice.canAccessPeer": runtime.deviceCanAccessPeer(0, 0),
      "CudaDevice.disablePeerAccess": runtime.deviceDisablePeer(0, 1),
      "CudaDevice.enablePeerAccess": runtime.deviceEnablePeer(0, 1),
      "CudaDevice.usage": runtime.deviceUsage(0),
      "CudaDevice.memoryInfo": runtime.deviceMemoryInfo(0),
      "CudaDevice.peerAttribute": runtime.devicePeerAttribute(0, 1, "performanceRank"),
      "CudaDevice.priorityRange": runtime.devicePriorityRange(0),
      "CudaDevice.synchronize": runtime.deviceSynchronize(0),
      "CudaEvent.elapsedTime": runtime.eventElapsedTime(event, event),
      "CudaEvent.fromHandle": runtime.eventFromHandle(0, event.handle, 2),
      "CudaEvent.fromIpcHandle": runtime.eventFromIpcHandle(0, handle),
      "CudaEvent.ipcHandle": runtime.eventIpcHandle(shared),
      "CudaEvent.make": runtime.eventCreate(0, 2),
      "CudaEvent.query": runtime.eventQuery(event),
      "CudaEvent.record": runtime.eventRecord(event, stream),
      "CudaEvent.release": runtime.eventDestroy(oldEvent),
      "CudaEvent.synchronize": runtime.eventSynchronize(event),
      "CudaGraph.capture": runtime.graphCapture(work, stream),
      "CudaGraph.condition": runtime.graphBody(recording.stream),
      "CudaGraph.embed": runtime.graphEmbed(graph, [], recording.stream),
      "CudaGraph.endCapture": runtime.graphEndCapture(capture),
      "CudaGraph.instantiate": runtime.graphInstantiate(graph, 1),
      "CudaGraph.launch": runtime.graphLaunch(filler, [], stream),
      "CudaGraph.record": runtime.graphRecord({ deviceIndex: 0, parameters: [] }),
      "CudaGraph.release": runtime.graphDestroy(oldExec),
      "CudaGraph.setEnabled": runtime.graphSetEnabled(filler, 0, true),
      "CudaGraph.update": runtime.graphUpdate(exec, graph),
      "CudaGraph.updateOrReplace": runtime.graphReplace(exec, graph),
      "CudaGraph.upload": runtime.graphUpload(exec, stream),
      "CudaTiming.region": runtime.graphMark({ name: "region", attributes: {} }, "begin", recording.stream),
      "CudaKernel.attribute": runtime.kernelAttribute(kernel, "numRegs", 0),
      "CudaKernel.get": runtime.kernelGet(module, "nothing", [], 0),
      "CudaModule.global": runtime.moduleGlobal(module, "counter", 0),
      "CudaKernel.launch": runtime.kernelLaunch(kernel, { grid: 1, block: 1 }, [], stream),
      "CudaModule.load": runtime.moduleLoad(image, options),
      "CudaKernel.occupancy": runtime.kernelActiveBlocks(kernel, 1, 0, 0),
      "CudaModule.release": runtime.moduleUnload(oldModule),
      "CudaKernel.setAttribute": runtime.kernelSetAttribute(kernel, "preferredSharedMemoryCarveout", 1, 0),
      "CudaMemory.access": runtime.memoryBegin({ stream, reads: [], writes: [], outer: undefined }),
      "CudaMemory.advise": runtime.memoryAdvise(managed, "setReadMostly", "host"),
      "CudaMemory.allocate": runtime.memoryAllocate(0, 8),
      "CudaMemory.allocateHost": runtime.hostAllocate(8),
      "CudaMemory.allocateManaged": runtime.managedAllocate(0, 8),
      "CudaMemory.copy": runtime.memoryCopy(range(0), range(4), stream),
      "CudaMemory.copy2D": runtime.memoryCopy2D(rows(0), rows(4), { width: 1, height: 2 }, stream),
      "CudaMemory.copyBatch": runtime.memoryCopyBatch([{ to: range(0), from: range(4) }], stream),
      "CudaInterprocess.allocate": runtime.memoryAllocateShareable(0, 8),
      "CudaInterprocess.closeDescriptor": runtime.descriptorClose(0),
      "CudaInterprocess.open": runtime.memoryOpen(0, token),
      "CudaInterprocess.openPool": runtime.poolOpen(0, descriptor),
      "CudaInterprocess.share": runtime.memoryShare(sharing),
      "CudaInterprocess.sharePool": runtime.poolShare(shareable),
      "CudaInterprocess.takeDescriptor": runtime.descriptorTake(process.pid, descriptor),
      "CudaLibrary.fromHandle": runtime.libraryAdopt(
        library,
        { kind: "empty", handle: 1, destroy: "destroy" },
        0
      ),
      "CudaLibrary.turn": runtime.libraryTurn(library, () => 0, 0),
      "CudaLibrary.call": runtime.libraryRun(library, "nothing", [], 0),
      "CudaLibrary.handle": runtime.libraryHandle(library, handleOptions, 0),
      "CudaLibrary.release": runtime.libraryDestroy(libraryHandle),
      "CudaLibrary.native": runtime.libraryFunction(library, "nothing"),
      "CudaLibrary.load": runtime.libraryLoad(emptyLibrary, undefined),
      "CudaMemory.enqueueAll": runtime.memoryEnqueueAll([{ stream, simulate: () => {} }], () => {}),
      "CudaMemory.enqueue": runtime.memoryEnqueue({ simulate: () => {} }, () => {}, stream),
      "CudaMemory.endAccess": runtime.memoryEnd(access),
      "CudaMemory.fill": runtime.memoryFill(range(0), 0, 8, stream),
      "CudaMemory.fromAddress": runtime.memoryFromAddress(0, range(0).memory.address, 4),
      "CudaMemory.growable": runtime.memoryReserve(0, 4 * 2 ** 20),
      "CudaMemory.grow": runtime.memoryGrow(growable, 2 * 2 ** 20),
      "CudaMemory.shrink": runtime.memoryShrink(growable, 0),
      "CudaMemory.pin": runtime.hostPin(new Uint8Array(8)),
      "CudaMemory.pointerAttributes": runtime.memoryAttributes(0, range(0).memory.address),
      "CudaMemory.prefetch": runtime.memoryPrefetch(managed, 0, stream),
      "CudaMemory.reclaim": runtime.memoryReclaim(0),
      "CudaMemory.release": runtime.memoryFree(oldMemory),
      "CudaMemory.synchronize": runtime.memorySynchronize({ memory: ordered, offset: 0, byteLength: 8 }),
      "CudaMemoryPool.allowAccess": runtime.poolAllowAccess(pool, 1),
      "CudaMemoryPool.denyAccess": runtime.poolDenyAccess(pool, 1),
      "CudaMemoryPool.make": runtime.poolCreate(0, poolOptions),
      "CudaMemoryPool.ofDevice": runtime.poolOfDevice(0),
      "CudaMemoryPool.release": runtime.poolDestroy(oldPool),
      "CudaMemoryPool.resetHighWater": runtime.poolResetHighWater(pool),
      "CudaMemoryPool.setReleaseThreshold": runtime.poolSetReleaseThreshold(pool, 0),
      "CudaMemoryPool.statistics": runtime.poolStatistics(pool),
      "CudaMemoryPool.trim": runtime.poolTrim(pool, 0),
      "CudaPartition.make": runtime.partitionCreate(0, [8]),
      "CudaPartition.release": runtime.partitionDestroy(partition!),
      "CudaProfiler.capture": runtime.profilerStart(0),
      "CudaProfiler.endCapture": runtime.profilerStop(0),
      "CudaProgram.compile": runtime.programCompile(emptyKernel),
      "CudaStream.defaultStream": runtime.streamDefault(0, "legacy"),
      "CudaStream.fromHandle": runtime.streamFromHandle(0, stream.handle),
      "CudaStream.make": nonBlocking(runtime),
      "CudaStream.query": runtime.streamQuery(stream),
      "CudaStream.release": runtime.streamDestroy(oldStream),
      "CudaStream.synchronize": runtime.streamSynchronize(stream),
      "CudaStream.waitEvent": runtime.streamWaitEvent(stream, event),
      "CudaStream.waitStream": runtime.streamWaitStream(stream, stream)
    }
    return calls
  })

/** Work that keeps a stream busy until time passes, or waits for such work. */
const takesTime = [
  "CudaGraph.launch",
  "CudaMemory.copy",
  "CudaMemory.copy2D",
  "CudaMemory.copyBatch",
  "CudaMemory.fill",
  "CudaMemory.prefetch",
  "CudaMemoryPool.denyAccess"
]

const names = Object.keys(operationCalls) as ReadonlyArray<OperationName>

describe("injected failures", () => {
  const prepare = Effect.gen(function*() {
    const nothing = SimulatedRuntime.kernel({ parameters: [], cost: 0, run: () => {} })
    const { control, runtime, stream } = yield* start({ devices: 2, kernels: { nothing }, globals: { counter: 4 } })
    const event = yield* runtime.eventCreate(0, 0)
    yield* runtime.eventRecord(event, stream)
    return { control, calls: yield* operations(runtime, stream, event), runtime }
  })

  it.effect.each(names)("%s fails the requested number of times, then succeeds", (name) =>
    Effect.gen(function*() {
      const { calls, control } = yield* prepare
      yield* control.failNext(name, "MapFailed", 2)
      for (const other of names) {
        if (other !== name && !takesTime.includes(other)) yield* calls[other]
      }
      for (const _ of [1, 2]) {
        const error = yield* Effect.flip(calls[name])
        assert.deepStrictEqual([error.operation, error.reason._tag, error.call], [
          name,
          "MapFailed",
          operationCalls[name]
        ])
      }
      yield* TestClock.adjust(1)
      yield* calls[name]
      yield* TestClock.adjust(1)
    }))

  it.effect.each(names)("%s ends the context with a sticky status", (name) =>
    Effect.gen(function*() {
      const { calls, control, runtime } = yield* prepare
      yield* control.failNext(name, "LaunchFailed")
      const error = yield* Effect.flip(calls[name])
      assert.deepStrictEqual([error.operation, error.reason._tag], [name, "LaunchFailed"])
      assert.strictEqual(yield* reasonOf(nonBlocking(runtime)), "LaunchFailed")
    }))
})

describe("the timeline", () => {
  it.effect("records every operation with its times", () =>
    Effect.gen(function*() {
      const { control, runtime, stream } = yield* start({ recordTimeline: true })
      const second = yield* nonBlocking(runtime)
      const event = yield* runtime.eventCreate(0, 2)
      yield* control.launch(stream, { duration: "3 micros" })
      yield* runtime.eventRecord(event, stream)
      yield* runtime.streamWaitEvent(second, event)
      const memory = yield* runtime.memoryAllocate(0, 2000)
      yield* runtime.memoryFill({ memory, offset: 0, byteLength: 2000 }, 7, 8, second)
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* control.timeline, [
        { deviceIndex: 0, streamId: stream.id, kind: "work", bytes: 0, start: 0, end: 3000 },
        { deviceIndex: 0, streamId: stream.id, kind: "record", bytes: 0, start: 3000, end: 3000 },
        { deviceIndex: 0, streamId: second.id, kind: "wait", bytes: 0, start: 0, end: 3000 },
        { deviceIndex: 0, streamId: second.id, kind: "fill", bytes: 2000, start: 3000, end: 3001 }
      ])
      assert.strictEqual(yield* control.now, 1e6)
    }))

  it.effect("is empty unless enabled", () =>
    Effect.gen(function*() {
      const { control, stream } = yield* start()
      yield* control.launch(stream, { duration: 0 })
      assert.deepStrictEqual(yield* control.timeline, [])
    }))
})

describe("options", () => {
  const refused = (options: SimulatedOptions) =>
    Effect.map(
      Effect.flip(Effect.scoped(SimulatedRuntime.make(options))),
      ({ reason }) => reason._tag === "InvalidArgument" ? reason.argument : reason._tag
    )

  it.effect("that are invalid are rejected by name", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* refused({ devices: 0 }), "devices")
      assert.strictEqual(yield* refused({ devices: [] }), "devices")
      assert.strictEqual(yield* refused({ devices: 1.5 }), "devices")
      assert.strictEqual(yield* refused({ devices: [{}, { memory: -1 }] }), "devices[1].memory")
      assert.strictEqual(yield* refused({ devices: [{ copyEngines: 0 }] }), "devices[0].copyEngines")
      assert.strictEqual(yield* refused({ devices: [{ hostBandwidth: NaN }] }), "devices[0].hostBandwidth")
      assert.strictEqual(yield* refused({ devices: [{ copyLatency: -1 }] }), "devices[0].copyLatency")
      const priorityRange = { least: -1, greatest: 0 }
      assert.strictEqual(yield* refused({ devices: [{ priorityRange }] }), "devices[0].priorityRange")
      assert.strictEqual(yield* refused({ hostMemory: -1 }), "hostMemory")
      assert.strictEqual(yield* refused({ peers: "some" as never }), "peers")
      assert.strictEqual(yield* refused({ devices: "2" as never }), "devices")
      const computeCapability = { major: NaN, minor: 0 }
      assert.strictEqual(yield* refused({ devices: [{ computeCapability }] }), "devices[0].computeCapability")
      assert.strictEqual(yield* refused({ globals: { large: 2 ** 50 } }), "globals.large")
    }))

  it.effect("with attributes that a device or a kernel cannot have are refused by name", () =>
    Effect.gen(function*() {
      for (const value of [NaN, Infinity, 0.5, -(2 ** 31) - 1, 2 ** 31, 2 ** 53]) {
        const attributes = { multiprocessorCount: value }
        assert.strictEqual(
          yield* refused({ devices: [{ attributes }] }),
          "devices[0].attributes.multiprocessorCount"
        )
        const kernel = SimulatedRuntime.kernel({ parameters: [], attributes: { numRegs: value }, run: () => {} })
        assert.strictEqual(yield* refused({ kernels: { kernel } }), "kernels.kernel.attributes.numRegs")
      }
      // `bestBlock` counts with these.
      for (const warpSize of [-32, 0, 2 ** 31 - 1]) {
        assert.strictEqual(
          yield* refused({ devices: [{ attributes: { warpSize } }] }),
          "devices[0].attributes.warpSize"
        )
      }
      const attributes = { maxThreadsPerBlock: 2 ** 31 - 1 }
      const kernel = SimulatedRuntime.kernel({ parameters: [], attributes, run: () => {} })
      assert.strictEqual(yield* refused({ kernels: { kernel } }), "kernels.kernel.attributes.maxThreadsPerBlock")
    }))

  it.effect("describe the devices", () =>
    Effect.gen(function*() {
      const { runtime } = yield* start({
        devices: [{ name: "Big", memory: 5, copyEngines: 1, attributes: { warpSize: 64 } }, {}],
        peerAccess: (device) => device === 0,
        driverVersion: 12040
      })
      assert.deepStrictEqual(runtime.devices.map(({ name, totalMemory }) => [name, totalMemory]), [
        ["Big", 5],
        ["Simulated GPU", 2 ** 34]
      ])
      assert.strictEqual(runtime.driverVersion, 12040)
      assert.strictEqual(yield* runtime.deviceAttribute(0, "warpSize"), 64)
      assert.strictEqual(yield* runtime.deviceAttribute(0, "asyncEngineCount"), 1)
      assert.deepStrictEqual(
        yield* Effect.all([runtime.deviceCanAccessPeer(0, 1), runtime.deviceCanAccessPeer(1, 0)]),
        [true, false]
      )
      const [near, far] = [yield* runtime.memoryAllocate(0, 4), yield* runtime.memoryAllocate(1, 4)]
      const whole = (memory: typeof near) => ({ memory, offset: 0, byteLength: 4 })
      const recorded = (deviceIndex: number) =>
        Effect.flatMap(
          runtime.graphRecord({ deviceIndex, parameters: [] }),
          ({ stream }) => runtime.memoryCopy(whole(near), whole(far), stream)
        )
      yield* recorded(0)
      const { message } = yield* Effect.flip(recorded(1))
      assert.include(message, "device 1 cannot access the buffer of 4 bytes")
      assert.deepStrictEqual(yield* runtime.devicePriorityRange(0), { least: 0, greatest: -5 })
    }))

  it.effect("have links of their own bandwidth, and copy through the host without one", () =>
    Effect.gen(function*() {
      const { control, runtime } = yield* start({
        devices: Array.from({ length: 4 }, () => ({ copyLatency: 0, hostBandwidth: 1e9, peerBandwidth: 100e9 })),
        peerAccess: (one, other) => one !== 3 && other !== 3,
        linkBandwidth: (from, to) => from + to === 1 ? 10e9 : 5e9,
        recordTimeline: true,
        peers: "all"
      })
      const copied = Effect.fnUntraced(function*(from: number, to: number) {
        const [source, target] = [yield* runtime.memoryAllocate(from, 1000), yield* runtime.memoryAllocate(to, 1000)]
        const stream = yield* runtime.streamCreate({ deviceIndex: from, priority: 0, nonBlocking: true })
        const whole = (memory: typeof source) => ({ memory, offset: 0, byteLength: 1000 })
        yield* runtime.memoryCopy(whole(target), whole(source), stream)
        yield* TestClock.adjust(1)
        yield* runtime.streamSynchronize(stream)
        const { end = 0, start = 0 } = (yield* control.timeline).findLast(({ kind }) => kind === "peerToPeer") ?? {}
        return end - start
      })
      assert.deepStrictEqual(yield* Effect.all([copied(0, 1), copied(1, 2), copied(2, 3)]), [100, 200, 1000])
      const rank = (peer: number) => runtime.devicePeerAttribute(0, peer, "performanceRank")
      assert.deepStrictEqual(yield* Effect.all([rank(1), rank(2), rank(3)]), [0, 1, 2])
      const fill = (device: number, memoryDevice: number) =>
        Effect.gen(function*() {
          const memory = yield* runtime.memoryAllocate(memoryDevice, 8)
          const stream = yield* runtime.streamCreate({ deviceIndex: device, priority: 0, nonBlocking: true })
          yield* runtime.memoryFill({ memory, offset: 0, byteLength: 8 }, 0, 8, stream)
          yield* TestClock.adjust(1)
        })
      yield* fill(2, 1)
      yield* fill(0, 2)
      assert.strictEqual(yield* reasonOf(fill(3, 0)), "DeviceMismatch")
      assert.strictEqual(yield* reasonOf(runtime.deviceEnablePeer(3, 0)), "PeerAccessUnsupported")
    }))

  it.effect("can disable features, and the device then answers like a GPU without them", () =>
    Effect.gen(function*() {
      const unpooled = yield* SimulatedRuntime.make({ devices: [{ attributes: { memoryPoolsSupported: 0 } }] })
      const error = yield* Effect.flip(nonBlocking(unpooled.runtime))
      assert.deepStrictEqual([error.reason._tag, error.call], ["NotSupported", "cuMemPoolCreate"])
      const { runtime, stream } = yield* start({ devices: [{ attributes: { maxPitch: 256 } }] })
      const [from, to] = [yield* runtime.memoryAllocate(0, 1024), yield* runtime.memoryAllocate(0, 1024)]
      const copy = (fromPitch: number, toPitch: number) =>
        reasonOf(runtime.memoryCopy2D(
          { memory: to, offset: 0, byteLength: 1024, pitch: toPitch },
          { memory: from, offset: 0, byteLength: 1024, pitch: fromPitch },
          { width: 8, height: 2 },
          stream
        ))
      assert.deepStrictEqual(
        [yield* copy(256, 256), yield* copy(257, 256), yield* copy(256, 257)],
        ["success", "InvalidValue", "InvalidValue"]
      )
      yield* TestClock.adjust(1)
    }))

  it.effect("work through the layer, which provides the control too", () =>
    Effect.gen(function*() {
      const runtime = yield* CudaRuntime
      const control = yield* SimulatedRuntime.SimulatedControl
      const stream = yield* nonBlocking(runtime)
      yield* control.launch({ ref: stream }, { duration: 1 })
      assert.isFalse(yield* runtime.streamQuery(stream))
      yield* TestClock.adjust(1)
      assert.isTrue(yield* runtime.streamQuery(stream))
    }).pipe(Effect.provide(Layer.fresh(SimulatedRuntime.layer({ devices: 2 })))))
})

describe("arguments of the control", () => {
  it.effect("are checked", () =>
    Effect.gen(function*() {
      const { control, stream } = yield* start()
      const foreign = (yield* start()).stream
      assert.strictEqual(yield* reasonOf(control.launch(foreign, { duration: 1 })), "ForeignResource")
      assert.strictEqual(yield* reasonOf(control.launch(stream, { duration: -1 })), "InvalidArgument")
      assert.strictEqual(
        yield* reasonOf(control.launch(stream, { duration: 1, fault: "OutOfMemory" })),
        "InvalidArgument"
      )
      assert.strictEqual(yield* reasonOf(control.lose(1, "LaunchFailed")), "InvalidArgument")
      for (const device of ["length", "__proto__", 0.5]) {
        assert.strictEqual(yield* reasonOf(control.lose(device as never, "LaunchFailed")), "InvalidArgument")
      }
      for (const given of [5, null, "x", {}]) {
        assert.strictEqual(yield* reasonOf(control.launch(given as never, { duration: 1 })), "InvalidArgument")
        assert.strictEqual(yield* reasonOf(control.bytes(given as never)), "InvalidArgument")
      }
      assert.strictEqual(yield* reasonOf(control.lose(0, "OutOfMemory")), "InvalidArgument")
      assert.strictEqual(yield* reasonOf(control.failNext("CudaEvent.record", "MapFailed", 0)), "InvalidArgument")
    }))
})
