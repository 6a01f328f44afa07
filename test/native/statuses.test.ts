/**
 * The driver's statuses: every function the runtime calls fails with a status of every class, at every call site. The
 * failure must say what a person and a program need, and nothing may leak.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaInterprocess from "effect-cuda/CudaInterprocess"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaMemoryPool from "effect-cuda/CudaMemoryPool"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaParameter from "effect-cuda/CudaParameter"
import * as CudaPartition from "effect-cuda/CudaPartition"
import * as CudaProfiler from "effect-cuda/CudaProfiler"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { driverFunctions, optionalDriverFunctions } from "../../src/cuda/functions.ts"
import type { DriverFunctionName } from "../../src/cuda/functions.ts"
import { statuses } from "../../src/cuda/status.ts"
import type { StatusTag } from "../../src/cuda/status.ts"
import { nothingHeld } from "../support/assertions.ts"
import { program, signatures } from "../support/kernels.ts"
import { logged, nothingLive, onStub, openStub, stubLayer, until } from "../support/stubDriver.ts"
import type { DriverLive, StubFunctionName } from "../support/stubDriver.ts"

const stub = openStub()

interface StatusClass {
  readonly what: string
  readonly code: number
  readonly tag: string
  readonly name: string
  readonly isSticky: boolean
  readonly isRetryable: boolean
}

const known = (what: string, tag: StatusTag): StatusClass => ({ what, tag, ...statuses[tag] })

const classes: ReadonlyArray<StatusClass> = [
  known("plain", "InvalidValue"),
  known("out of memory", "OutOfMemory"),
  known("retryable", "SystemNotReady"),
  known("sticky", "IllegalAddress"),
  {
    what: "unknown",
    code: 12345,
    tag: "UnknownStatus",
    name: "CUDA_ERROR_OF_THE_STUB",
    isSticky: false,
    isRetryable: false
  }
]

const ofGraph = /graph of \d+ nodes? on device 0/

/** The name of a driver call in failures. */
const publicName = (name: StubFunctionName): string => name.replace(/(WithParams|_v2)$/, "")

type Program<A> = Effect.Effect<A, CudaError, CudaRuntime | Scope.Scope>

/** A way to reach a failing function. */
interface Scenario {
  readonly fails: StubFunctionName
  /** How many earlier calls of it succeed. */
  readonly after?: number
  readonly where: string
  readonly operation: string
  readonly subject?: RegExp
  /** What becomes of `InvalidValue`: a refusal of the graph, or a success. */
  readonly invalid?: "refused" | "handled" | undefined
  /** Prepares, arms the failure, and returns the operation's failure. */
  readonly program: (arm: Effect.Effect<void>) => Program<CudaError>
}

const checkError = (error: CudaError, scenario: Scenario, status: StatusClass): void => {
  assert.strictEqual(error._tag, "CudaError")
  assert.strictEqual(error.operation, scenario.operation)
  if (scenario.invalid === "refused" && status.tag === "InvalidValue") return checkRefused(error)
  assert.strictEqual(error.call, publicName(scenario.fails))
  assert.strictEqual(error.reason._tag, status.tag)
  assert.isTrue("code" in error.reason && error.reason.code === status.code)
  assert.strictEqual(error.isSticky, status.isSticky)
  assert.strictEqual(error.isRetryable, status.isRetryable)
  assert.include(error.message, `${publicName(scenario.fails)} returned ${status.name} (${status.code}): `)
  assert.match(error.message, scenario.subject ?? /device 0/)
  assert.include(String(error), error.message)
}

const checkRefused = ({ isRetryable, isSticky, message, reason }: CudaError): void => {
  assert.strictEqual(reason._tag, "GraphRefused")
  assert.isTrue("nodeIndex" in reason && reason.nodeIndex !== undefined)
  assert.deepStrictEqual([isSticky, isRetryable], [false, false])
  assert.include(message, "the driver did not accept a node")
  assert.match(message, ofGraph)
}

/** An operation that fails, after its setup. */
const failing = <A>(
  fails: StubFunctionName,
  operation: string,
  prepare: Program<A>,
  run: (prepared: A) => Program<unknown>,
  details: {
    readonly where?: string
    readonly subject?: RegExp
    readonly after?: number
    readonly invalid?: Scenario["invalid"]
  } = {}
): Scenario => ({
  fails,
  operation,
  where: details.where ?? "",
  after: details.after ?? 0,
  invalid: details.invalid,
  ...(details.subject === undefined ? {} : { subject: details.subject }),
  program: (arm) =>
    Effect.gen(function*() {
      const prepared = yield* prepare
      yield* arm
      return yield* failureOf(run(prepared))
    })
})

/** The failure of an effect; dies if it succeeds. */
const failureOf = <A, R>(effect: Effect.Effect<A, CudaError, R>): Effect.Effect<CudaError, never, R> =>
  Effect.flip(Effect.andThen(effect, Effect.die(new Error("expected a failure, but it succeeded"))))

const mebi = 1024 ** 2
const openDevice = Effect.asVoid(CudaDevice.priorityRange())
const runtime = Effect.map(CudaRuntime, (service) => service)
const stream = CudaStream.make()
const event = CudaEvent.make()
const both = Effect.all({ stream, event })
const twoStreams = Effect.all([stream, stream])
const buffers = Effect.all({
  stream,
  host: CudaMemory.allocateHost(256),
  from: CudaMemory.allocate(256),
  to: CudaMemory.allocate(256)
})
const busyStream = Effect.tap(stream, (made) => Effect.sync(() => stub.work(made)))
const onForeignStream = Effect.andThen(openDevice, Effect.sync(() => stub.foreignStream(0)))
const remoteHandle = Effect.sync(() => stub.remoteEvent().handle)

const bothDevices = Effect.all([stream, CudaStream.make({ device: 1 })])

const devices: ReadonlyArray<Scenario> = [
  failing("cuDeviceGetAttribute", "CudaDevice.attribute", openDevice, () => CudaDevice.attribute("warpSize"), {
    subject: /warpSize/
  }),
  failing("cuMemGetInfo_v2", "CudaDevice.memoryInfo", openDevice, () => CudaDevice.memoryInfo()),
  failing("cuCtxPushCurrent_v2", "CudaDevice.memoryInfo", openDevice, () => CudaDevice.memoryInfo()),
  failing("cuProfilerStart", "CudaProfiler.capture", openDevice, () => CudaProfiler.capture(Effect.void), {
    subject: /device 0/
  }),
  failing(
    "cuProfilerStop",
    "CudaProfiler.endCapture",
    openDevice,
    () => Effect.flatMap(runtime, (service) => service.profilerStop(0))
  ),
  failing("cuDeviceCanAccessPeer", "CudaDevice.canAccessPeer", openDevice, () => CudaDevice.canAccessPeer(0, 1), {
    subject: /devices 0 and 1/
  }),
  failing(
    "cuDeviceGetP2PAttribute",
    "CudaDevice.peerAttribute",
    openDevice,
    () => CudaDevice.peerAttribute(0, 1, "performanceRank"),
    { subject: /performanceRank of devices 0 and 1/ }
  ),
  ...(["cuCtxPushCurrent_v2", "cuCtxEnablePeerAccess", "cuDeviceCanAccessPeer", "cuMemPoolSetAccess"] as const).map(
    (name) =>
      failing(name, "CudaDevice.enablePeerAccess", bothDevices, () => CudaDevice.enablePeerAccess(1, 0), {
        subject: /devices 1 and 0/
      })
  ),
  ...(["cuMemPoolSetAccess", "cuCtxDisablePeerAccess"] as const).map((name) =>
    failing(
      name,
      "CudaDevice.disablePeerAccess",
      Effect.andThen(bothDevices, CudaDevice.enablePeerAccess(1, 0)),
      () => CudaDevice.disablePeerAccess(1, 0),
      { subject: /devices 1 and 0/ }
    )
  ),
  failing("cuStreamQuery", "CudaDevice.usage", stream, () => CudaDevice.usage()),
  failing("cuEventRecord", "CudaDevice.synchronize", stream, () => CudaDevice.synchronize()),
  failing("cuEventCreate", "CudaDevice.synchronize", stream, () => CudaDevice.synchronize())
]

const streams: ReadonlyArray<Scenario> = [
  failing("cuCtxPushCurrent_v2", "CudaStream.make", openDevice, () => stream),
  failing("cuStreamCreateWithPriority", "CudaStream.make", openDevice, () => stream),
  failing("cuStreamGetId", "CudaStream.make", openDevice, () => stream),
  failing("cuStreamCreateWithPriority", "CudaStream.fromPool", openDevice, () => CudaStream.fromPool(), {
    where: "of the pool"
  }),
  failing("cuCtxPushCurrent_v2", "CudaStream.defaultStream", openDevice, () => CudaStream.defaultStream()),
  failing("cuStreamGetId", "CudaStream.defaultStream", openDevice, () => CudaStream.defaultStream()),
  ...(["cuStreamGetCtx", "cuStreamGetId", "cuStreamGetPriority", "cuStreamGetFlags"] as const).map((name) =>
    failing(name, "CudaStream.fromHandle", onForeignStream, (handle) => CudaStream.fromHandle(handle), {
      subject: /handle 0x[0-9a-f]+/
    })
  ),
  failing("cuStreamQuery", "CudaStream.query", stream, CudaStream.query, { subject: /stream \d+ of device 0/ }),
  failing("cuCtxPushCurrent_v2", "CudaStream.query", CudaStream.defaultStream(), CudaStream.query, {
    where: "of a default stream"
  }),
  failing("cuStreamQuery", "CudaStream.synchronize", stream, CudaStream.synchronize),
  failing("cuEventCreate", "CudaStream.synchronize", busyStream, CudaStream.synchronize, { where: "of its marker" }),
  failing("cuCtxPushCurrent_v2", "CudaStream.synchronize", busyStream, CudaStream.synchronize, {
    where: "for its marker"
  }),
  failing("cuEventRecord", "CudaStream.synchronize", busyStream, CudaStream.synchronize, { where: "of its marker" }),
  failing("cuEventQuery", "CudaStream.synchronize", busyStream, CudaStream.synchronize, { where: "while it waits" }),
  failing("cuStreamWaitEvent", "CudaStream.waitEvent", both, (made) => CudaStream.waitEvent(made.stream, made.event)),
  failing("cuEventCreate", "CudaStream.waitStream", twoStreams, ([one, two]) => CudaStream.waitStream(one, two)),
  failing("cuEventRecord", "CudaStream.waitStream", twoStreams, ([one, two]) => CudaStream.waitStream(one, two)),
  failing("cuStreamWaitEvent", "CudaStream.waitStream", twoStreams, ([one, two]) => CudaStream.waitStream(one, two))
]

const timed = Effect.gen(function*() {
  const made = yield* stream
  const [start, end] = yield* Effect.all([CudaEvent.make({ timing: true }), CudaEvent.make({ timing: true })])
  yield* CudaEvent.record(start, made)
  yield* CudaEvent.record(end, made)
  return { start, end }
})

const elapsed = ({ end, start }: { readonly start: CudaEvent.TimedEvent; readonly end: CudaEvent.TimedEvent }) =>
  CudaEvent.elapsedTime(start, end)

const unfinished = Effect.gen(function*() {
  const made = yield* busyStream
  const [start, end] = yield* Effect.all([CudaEvent.make({ timing: true }), CudaEvent.make({ timing: true })])
  yield* CudaEvent.record(start, made)
  yield* CudaEvent.record(end, made)
  return { start, end }
})

/** An event with a pending record. */
const pendingEvent = Effect.gen(function*() {
  const made = yield* busyStream
  return { stream: made, event: yield* CudaStream.recordEvent(made) }
})

/** An event whose pending record a fiber waits for. */
const awaitedEvent = Effect.gen(function*() {
  const made = yield* pendingEvent
  yield* Effect.forkScoped(Effect.ignore(CudaEvent.synchronize(made.event)))
  yield* until("the fiber waits", () => stub.calls("cuEventQuery").length > 0)
  return made
})

const recordAgain = (made: Effect.Success<typeof awaitedEvent>) => CudaEvent.record(made.event, made.stream)
const replacing = { where: "that replaces an awaited one" }

const events: ReadonlyArray<Scenario> = [
  failing("cuCtxPushCurrent_v2", "CudaEvent.make", openDevice, () => event),
  failing("cuEventCreate", "CudaEvent.make", openDevice, () => event),
  failing("cuEventRecord", "CudaEvent.record", both, (made) => CudaEvent.record(made.event, made.stream), {
    subject: /event 0x[0-9a-f]+ of device 0/
  }),
  failing("cuStreamCreateWithPriority", "CudaEvent.record", awaitedEvent, recordAgain, replacing),
  failing("cuEventCreate", "CudaEvent.record", awaitedEvent, recordAgain, replacing),
  failing("cuStreamWaitEvent", "CudaEvent.record", awaitedEvent, recordAgain, replacing),
  failing("cuEventRecord", "CudaEvent.record", awaitedEvent, recordAgain, replacing),
  failing("cuEventQuery", "CudaEvent.query", event, CudaEvent.query),
  failing("cuEventQuery", "CudaEvent.synchronize", event, CudaEvent.synchronize),
  failing("cuEventQuery", "CudaEvent.elapsedTime", unfinished, elapsed, { where: "that is not finished" }),
  failing("cuEventElapsedTime_v2", "CudaEvent.elapsedTime", timed, elapsed),
  failing("cuIpcGetEventHandle", "CudaEvent.ipcHandle", CudaEvent.make({ interprocess: true }), CudaEvent.ipcHandle),
  failing(
    "cuIpcOpenEventHandle",
    "CudaEvent.fromIpcHandle",
    Effect.tap(remoteHandle, () => openDevice),
    (handle) => CudaEvent.fromIpcHandle(handle)
  )
]

type Buffers = Effect.Success<typeof buffers>

const copying = (fails: DriverFunctionName, run: (made: Buffers) => Program<unknown>): Scenario =>
  failing(fails, "CudaMemory.copy", buffers, run, { subject: /256 bytes from .* to .* on stream \d+/ })

const filling = (fails: DriverFunctionName, name: "fill" | "fill16" | "fill32"): Scenario =>
  failing(fails, `CudaMemory.${name}`, buffers, (made) => CudaMemory[name](made.to, 1, made.stream))

const peers = Effect.all({
  stream,
  from: CudaMemory.allocate(256),
  to: CudaMemory.allocate(256, { device: 1 })
})

const memory: ReadonlyArray<Scenario> = [
  failing(
    "cuMemAllocFromPoolAsync",
    "CudaMemory.allocate",
    Effect.tap(runtime, () => openDevice),
    (service) => service.memoryAllocate(0, 4096),
    { subject: /4096 bytes on device 0/ }
  ),
  failing(
    "cuStreamQuery",
    "CudaMemory.allocate",
    Effect.tap(runtime, () => openDevice),
    (service) => service.memoryAllocate(0, 4096),
    { where: "of the allocation" }
  ),
  failing("cuMemHostRegister_v2", "CudaMemory.allocateHost", openDevice, () => CudaMemory.allocateHost(100), {
    subject: /100 bytes of pinned memory/
  }),
  failing("cuCtxPushCurrent_v2", "CudaMemory.allocateHost", openDevice, () => CudaMemory.allocateHost(100), {
    subject: /100 bytes of pinned memory/
  }),
  failing("cuStreamQuery", "CudaMemory.reclaim", runtime, (service) => service.memoryReclaim(0)),
  failing("cuMemPoolTrimTo", "CudaMemory.reclaim", runtime, (service) => service.memoryReclaim(0)),
  failing("cuStreamSynchronize", "CudaMemory.reclaim", runtime, (service) => service.memoryReclaim(0)),
  copying("cuMemcpyHtoDAsync_v2", (made) => CudaMemory.copy(made.to, made.host, made.stream)),
  failing(
    "cuMemcpyHtoDAsync_v2",
    "CudaMemory.copy",
    buffers,
    (made) => Effect.flatMap(CudaStream.defaultStream(), (byDefault) => CudaMemory.copy(made.to, made.host, byDefault)),
    { where: "on a default stream" }
  ),
  copying("cuMemcpyDtoHAsync_v2", (made) => CudaMemory.copy(made.host, made.from, made.stream)),
  copying("cuMemcpyDtoDAsync_v2", (made) => CudaMemory.copy(made.to, made.from, made.stream)),
  ...(["cuDeviceCanAccessPeer", "cuMemPoolSetAccess"] as const).map((name) =>
    failing(name, "CudaMemory.copy", peers, (made) => CudaMemory.copy(made.to, made.from, made.stream), {
      where: "between devices"
    })
  ),
  failing("cuMemcpyPeerAsync", "CudaMemory.copy", peers, (made) => CudaMemory.copy(made.to, made.from, made.stream)),
  filling("cuMemsetD8Async", "fill"),
  filling("cuMemsetD16Async", "fill16"),
  filling("cuMemsetD32Async", "fill32")
]

const module = Effect.flatMap(program, (made) => CudaModule.load(made))
const moduleAndDevice = Effect.tap(module, () => openDevice)
const kernel = Effect.flatMap(module, (made) => CudaKernel.get(made, "put", signatures.put))
const launchable = Effect.all({ kernel, stream })
const oneBlock = { grid: 1, block: 1 }

const launching = (fails: DriverFunctionName, config: CudaKernel.LaunchConfig): Scenario =>
  failing(
    fails,
    "CudaKernel.launch",
    launchable,
    (made) => CudaKernel.launch(made.kernel, config, [CudaParameter.address(0), 1], made.stream),
    { subject: /kernel put on stream \d+ of device 0, grid 1×1×1/ }
  )

const asking = (fails: DriverFunctionName, run: (kernel: CudaKernel.CudaKernel) => Program<unknown>): Scenario =>
  failing(fails, "CudaKernel.occupancy", kernel, run, { subject: /kernel put/ })

const kernels: ReadonlyArray<Scenario> = [
  failing("cuLibraryLoadData", "CudaModule.load", openDevice, () => module, { subject: /an image of \d+ bytes/ }),
  failing("cuLibraryGetKernel", "CudaModule.load", openDevice, () => module, { subject: /an image of \d+ bytes/ }),
  failing("cuLibraryGetKernel", "CudaKernel.get", module, (made) => CudaKernel.get(made, "put", signatures.put), {
    subject: /kernel put of module 0x[0-9a-f]+ of \d+ bytes/
  }),
  ...(["cuCtxPushCurrent_v2", "cuKernelGetFunction", "cuKernelGetAttribute"] as const).map((name) =>
    failing(name, "CudaKernel.get", moduleAndDevice, (made) => CudaKernel.get(made, "put", signatures.put), {
      subject: /kernel put on device 0/
    })
  ),
  failing("cuLibraryGetGlobal", "CudaModule.global", module, CudaModule.global("counter"), {
    subject: /variable counter of module .* on device 0/
  }),
  failing("cuKernelGetAttribute", "CudaKernel.attribute", kernel, CudaKernel.attribute("numRegs"), {
    subject: /numRegs of kernel put/
  }),
  failing(
    "cuKernelSetAttribute",
    "CudaKernel.setAttribute",
    kernel,
    CudaKernel.setAttribute("preferredSharedMemoryCarveout", 1),
    { subject: /preferredSharedMemoryCarveout of kernel put/ }
  ),
  asking("cuOccupancyMaxActiveBlocksPerMultiprocessor", (made) => CudaKernel.activeBlocks(made, { block: 1 })),
  asking("cuOccupancyMaxPotentialBlockSize", (made) => CudaKernel.bestBlock(made)),
  asking("cuOccupancyMaxActiveClusters", (made) => CudaKernel.activeClusters(made, { ...oneBlock, cluster: 1 })),
  asking("cuOccupancyMaxPotentialClusterSize", (made) => CudaKernel.maxClusterSize(made, oneBlock)),
  launching("cuLaunchKernelEx", oneBlock),
  launching("cuLaunchKernelEx", { ...oneBlock, cluster: 1 })
]

/** The same failure at each call that an operation makes to one function. */
const eachOf = <A>(
  calls: number,
  fails: StubFunctionName,
  operation: string,
  prepare: Program<A>,
  run: (prepared: A) => Program<unknown>,
  subject?: RegExp
): ReadonlyArray<Scenario> =>
  Array.from({ length: calls }, (_, after) =>
    failing(fails, operation, prepare, run, {
      after,
      where: `(call ${after + 1})`,
      ...(subject === undefined ? {} : { subject })
    }))

const pool = CudaMemoryPool.make()
const ofPool = /pool 0x[0-9a-f]+ of device 0/

const pools: ReadonlyArray<Scenario> = [
  failing("cuCtxPushCurrent_v2", "CudaMemoryPool.make", openDevice, () => pool, { subject: /a pool of device 0/ }),
  failing("cuMemPoolCreate", "CudaMemoryPool.make", openDevice, () => pool, { subject: /a pool of device 0/ }),
  ...eachOf(4, "cuMemPoolSetAttribute", "CudaMemoryPool.make", openDevice, () => pool),
  ...eachOf(4, "cuMemPoolGetAttribute", "CudaMemoryPool.statistics", pool, CudaMemoryPool.statistics, ofPool),
  ...eachOf(2, "cuMemPoolSetAttribute", "CudaMemoryPool.resetHighWater", pool, CudaMemoryPool.resetHighWater, ofPool),
  failing(
    "cuMemPoolSetAttribute",
    "CudaMemoryPool.setReleaseThreshold",
    pool,
    CudaMemoryPool.setReleaseThreshold(0),
    { subject: ofPool }
  ),
  ...(["cuDeviceCanAccessPeer", "cuMemPoolSetAccess"] as const).flatMap((name) => [
    failing(name, "CudaMemoryPool.make", bothDevices, () => CudaMemoryPool.make({ peers: [1] })),
    failing(
      name,
      "CudaMemoryPool.allowAccess",
      Effect.andThen(bothDevices, pool),
      (made) => CudaMemoryPool.allowAccess(made, 1)
    )
  ]),
  failing(
    "cuMemPoolSetAccess",
    "CudaMemoryPool.denyAccess",
    Effect.andThen(bothDevices, CudaMemoryPool.make({ peers: [1] })),
    (made) => CudaMemoryPool.denyAccess(made, 1)
  ),
  ...(["cuStreamQuery", "cuStreamSynchronize", "cuMemPoolTrimTo"] as const).map((name) =>
    failing(name, "CudaMemoryPool.trim", pool, (made) => CudaMemoryPool.trim(made))
  ),
  failing("cuMemPoolTrimTo", "CudaMemory.reclaim", Effect.andThen(pool, runtime), (made) => made.memoryReclaim(0), {
    after: 1,
    where: "of a pool that a program made",
    subject: ofPool
  }),
  failing(
    "cuMemAllocFromPoolAsync",
    "CudaMemory.allocate",
    Effect.all([pool, runtime]),
    ([made, service]) => service.memoryAllocate(0, 4096, { pool: made.ref }),
    { where: "from a pool", subject: /4096 bytes of pool 0x[0-9a-f]+ of device 0/ }
  )
]

const shareable = CudaMemoryPool.make({ shareable: true })
const shareableMemory = Effect.flatMap(shareable, (made) => CudaMemory.allocate(64, { pool: made }))
/** A pool, as if it was of another process. */
const sharedPool = Effect.flatMap(shareable, CudaInterprocess.sharePool)
const openingPool = ({ descriptor, token }: CudaInterprocess.SharedPool) =>
  CudaInterprocess.openPool({ ...token, id: "theirs" }, descriptor)
const openedPool = Effect.flatMap(sharedPool, openingPool)
const theirMemory = (kind: CudaInterprocess.MemoryToken["kind"]): CudaInterprocess.MemoryToken => ({
  _tag: "effect-cuda/MemoryToken",
  kind,
  handle: Buffer.from(stub.remoteMemory(64)).toString("base64"),
  offset: 0,
  byteLength: 64
})
const openingOf = (made: CudaMemoryPool.MemoryPool) => CudaInterprocess.open(theirMemory("pool"), { pool: made })
const openingAllocation = Effect.suspend(() => CudaInterprocess.open(theirMemory("allocation")))
const ofProcess = /64 bytes of another process/
const ofDescriptor = /descriptor \d+/

const interprocess: ReadonlyArray<Scenario> = [
  failing("cuMemPoolExportToShareableHandle", "CudaInterprocess.sharePool", shareable, CudaInterprocess.sharePool, {
    subject: ofPool
  }),
  ...(["cuCtxPushCurrent_v2", "cuMemPoolImportFromShareableHandle", "cuMemPoolSetAccess"] as const).map((name) =>
    failing(name, "CudaInterprocess.openPool", sharedPool, openingPool, { where: "of a pool", subject: ofDescriptor })
  ),
  ...(["cuMemPoolExportToShareableHandle", "cuMemPoolExportPointer"] as const).map((name) =>
    failing(name, "CudaInterprocess.share", shareableMemory, CudaInterprocess.share)
  ),
  ...(["cuCtxPushCurrent_v2", "cuMemPoolImportPointer"] as const).map((name) =>
    failing(name, "CudaInterprocess.open", openedPool, openingOf, { where: "of a pool", subject: ofProcess })
  ),
  ...(["cuCtxPushCurrent_v2", "cuMemAlloc_v2"] as const).map((name) =>
    failing(
      name,
      "CudaInterprocess.allocate",
      Effect.tap(runtime, () => openDevice),
      (service) => service.memoryAllocateShareable(0, 64)
    )
  ),
  ...(["cuCtxPushCurrent_v2", "cuIpcGetMemHandle"] as const).map((name) =>
    failing(name, "CudaInterprocess.share", CudaInterprocess.allocate(64), CudaInterprocess.share, {
      where: "of an allocation"
    })
  ),
  ...(["cuCtxPushCurrent_v2", "cuIpcOpenMemHandle_v2"] as const).map((name) =>
    failing(name, "CudaInterprocess.open", openDevice, () => openingAllocation, {
      where: "of an allocation",
      subject: ofProcess
    })
  )
]

/** Memory allocated on one of two streams. */
const allocatedOnStream = Effect.gen(function*() {
  const made = yield* twoStreams
  return {
    other: made[1],
    buffer: yield* CudaMemory.allocate(256, { stream: made[0] }),
    host: yield* CudaMemory.allocateHost(256),
    kernel: yield* kernel
  }
})

type AllocatedOnStream = Effect.Success<typeof allocatedOnStream>

const allocatingOn = (made: CudaStream.CudaStream) =>
  Effect.flatMap(runtime, (service) => service.memoryAllocate(0, 4096, { stream: made.ref }))

/** Failures of the first use of memory on a stream other than its own. */
const firstUse = (operation: string, use: (made: AllocatedOnStream) => Program<unknown>): Scenario =>
  failing("cuStreamWaitEvent", operation, allocatedOnStream, use, { where: "before the first use on another stream" })

const releasedOnStream = Effect.gen(function*() {
  const made = yield* stream
  yield* Effect.scoped(CudaMemory.allocate(256, { stream: made }))
  return yield* runtime
})

const streamOrdered: ReadonlyArray<Scenario> = [
  failing("cuMemAllocFromPoolAsync", "CudaMemory.allocate", stream, allocatingOn, { where: "on a stream" }),
  ...(["cuCtxPushCurrent_v2", "cuMemAllocFromPoolAsync"] as const).map((name) =>
    failing(name, "CudaMemory.allocate", CudaStream.defaultStream(), allocatingOn, { where: "on a default stream" })
  ),
  ...(["cuCtxPushCurrent_v2", "cuEventCreate", "cuEventRecord"] as const).map((name) =>
    failing(name, "CudaMemory.allocate", stream, allocatingOn, {
      where: "for the mark of the allocation",
      subject: /buffer of 4096 bytes at 0x[0-9a-f]+ on device 0/
    })
  ),
  failing("cuEventRecord", "CudaMemory.allocate", CudaStream.defaultStream(), allocatingOn, {
    where: "for the mark of the allocation on a default stream"
  }),
  firstUse("CudaMemory.fill", (made) => CudaMemory.fill(made.buffer, 1, made.other)),
  firstUse("CudaMemory.copy", (made) => CudaMemory.copy(made.buffer, made.host, made.other)),
  firstUse(
    "CudaMemory.copy2D",
    (made) => CudaMemory.copy2D(made.buffer, CudaMemory.rows(made.host, 32), { width: 8, height: 2 }, made.other)
  ),
  firstUse(
    "CudaMemory.copyBatch",
    (made) => CudaMemory.copyBatch([{ destination: made.buffer, source: made.host }], made.other)
  ),
  firstUse(
    "CudaMemory.access",
    (made) => CudaMemory.access(Effect.void, { writes: [made.buffer], stream: made.other })
  ),
  firstUse("CudaKernel.launch", (made) => CudaKernel.launch(made.kernel, oneBlock, [made.buffer, 1], made.other)),
  ...(["cuEventRecord", "cuStreamWaitEvent"] as const).map((name) =>
    failing(name, "CudaMemory.reclaim", releasedOnStream, (service) => service.memoryReclaim(0), {
      where: "for what was released on a stream"
    })
  )
]

/** Pinned memory of several segments, whose rows are copied in pieces: two rows, two parts of one row, two rows. */
const segmented = Effect.all({
  stream,
  host: CudaMemory.allocateHost(40 * mebi),
  device: CudaMemory.allocate(20 * mebi)
})

const copyingRows = ({ device, host, stream }: Effect.Success<typeof segmented>) =>
  CudaMemory.copy2D(device, CudaMemory.rows(host, 7 * mebi), { width: 4 * mebi, height: 5 }, stream)

const ofRows = /5 rows of 4194304 bytes from pinned buffer of .* to buffer of .* on stream \d+ of device 0/

const batch = ({ from, host, to }: Buffers): ReadonlyArray<CudaMemory.BatchCopy> => [
  { destination: CudaMemory.slice(to, 0, 64), source: CudaMemory.slice(from, 0, 64) },
  { destination: CudaMemory.slice(to, 64, 64), source: CudaMemory.slice(host, 0, 64) },
  { destination: CudaMemory.slice(to, 128, 64), source: CudaMemory.slice(from, 64, 64) }
]

const ofBatch = /3 copies on stream \d+ of device 0/

const copies: ReadonlyArray<Scenario> = [
  ...eachOf(2, "cuMemcpy2DAsync_v2", "CudaMemory.copy2D", segmented, copyingRows, ofRows),
  ...eachOf(2, "cuMemcpyHtoDAsync_v2", "CudaMemory.copy2D", segmented, copyingRows, ofRows),
  failing(
    "cuCtxPushCurrent_v2",
    "CudaMemory.copy2D",
    Effect.all([buffers, CudaStream.defaultStream()]),
    ([made, byDefault]) => CudaMemory.copy2D(made.to, made.from, { width: 8, height: 2 }, byDefault),
    { where: "on a default stream" }
  ),
  ...(["cuCtxPushCurrent_v2", "cuMemcpyBatchAsync"] as const).map((name) =>
    failing(name, "CudaMemory.copyBatch", buffers, (made) => CudaMemory.copyBatch(batch(made), made.stream), {
      subject: ofBatch
    })
  ),
  ...eachOf(
    2,
    "cuMemcpyDtoDAsync_v2",
    "CudaMemory.copyBatch",
    Effect.all([buffers, CudaStream.defaultStream()]),
    ([made, byDefault]) => CudaMemory.copyBatch(batch(made), byDefault),
    ofBatch
  )
]

const partition = CudaPartition.make({ multiprocessors: 16 })

const partitions: ReadonlyArray<Scenario> = [
  ...(["cuDeviceGetDevResource", "cuDevSmResourceSplitByCount"] as const).map((name) =>
    failing(name, "CudaPartition.make", openDevice, () => partition, { subject: /device 0/ })
  ),
  ...(["cuDevResourceGenerateDesc", "cuGreenCtxCreate", "cuCtxFromGreenCtx"] as const).flatMap((name) =>
    eachOf(2, name, "CudaPartition.make", openDevice, () => CudaPartition.split([16, 8]), /2 partitions of device 0/)
  ),
  failing("cuGreenCtxStreamCreate", "CudaStream.make", partition, (made) => CudaStream.make({ partition: made })),
  failing(
    "cuGreenCtxStreamCreate",
    "CudaGraph.capture",
    partition,
    (made) => CudaGraph.record(CudaGraph.capture(() => Effect.void)).pipe(CudaPartition.within(made)),
    {
      after: 1,
      where: "(the stream of a capture)"
    }
  )
]

const managed = CudaMemory.allocateManaged(10 * mebi)
const managedAndStream = Effect.all({ managed, stream })
const managedBuffer = /managed buffer of 10485760 bytes at 0x[0-9a-f]+ on device 0/
const serviceOfDevice = Effect.tap(runtime, () => openDevice)

const growable = CudaMemory.growable({ maxBytes: 1024 * mebi, initial: 8 * mebi })
const growableBuffer = /growable buffer of \d+ bytes at 0x[0-9a-f]+ on device 0/

const usedGrowable = Effect.gen(function*() {
  const [made, on] = [yield* growable, yield* stream]
  yield* CudaMemory.fill(made, 0, on)
  return made
})

const growableMemory: ReadonlyArray<Scenario> = [
  ...(["cuDeviceGetAttribute", "cuMemGetAllocationGranularity", "cuMemAddressReserve"] as const).map((name) =>
    failing(name, "CudaMemory.growable", serviceOfDevice, (service) => service.memoryReserve(0, mebi), {
      subject: /1048576 bytes of addresses on device 0/
    })
  ),
  ...(["cuMemCreate", "cuMemMap", "cuMemSetAccess"] as const).flatMap((name) =>
    eachOf(
      2,
      name,
      "CudaMemory.grow",
      Effect.all([runtime, growable]),
      ([service, made]) => service.memoryGrow(made.ref, 128 * mebi),
      growableBuffer
    )
  ),
  failing("cuMemUnmap", "CudaMemory.shrink", growable, (made) => CudaMemory.shrink(made, 0), {
    subject: growableBuffer
  }),
  failing("cuStreamQuery", "CudaMemory.shrink", usedGrowable, (made) => CudaMemory.shrink(made, 0), {
    subject: growableBuffer
  })
]

const managedMemory: ReadonlyArray<Scenario> = [
  ...(["cuDeviceGetAttribute", "cuCtxPushCurrent_v2", "cuMemAllocManaged"] as const).map((name) =>
    failing(name, "CudaMemory.allocateManaged", serviceOfDevice, (service) => service.managedAllocate(0, 4096), {
      subject: /4096 bytes of managed memory of device 0/
    })
  ),
  ...eachOf(
    3,
    "cuMemPrefetchAsync_v2",
    "CudaMemory.prefetch",
    managedAndStream,
    (made) => CudaMemory.prefetch(made.managed, "host", made.stream),
    managedBuffer
  ),
  ...eachOf(
    2,
    "cuCtxPushCurrent_v2",
    "CudaMemory.prefetch",
    Effect.all([managed, CudaStream.defaultStream()]),
    ([made, byDefault]) => CudaMemory.prefetch(made, "host", byDefault),
    managedBuffer
  ),
  ...(["cuCtxPushCurrent_v2", "cuMemAdvise_v2"] as const).map((name) =>
    failing(name, "CudaMemory.advise", managed, CudaMemory.advise({ accessedBy: 0 }), { subject: managedBuffer })
  )
]

const launchingHost = (made: CudaStream.CudaStream) =>
  Effect.flatMap(CudaStream.launchHostFunction(made, Effect.void), Fiber.join)

const hostFunctions: ReadonlyArray<Scenario> =
  (["cuCtxPushCurrent_v2", "cuEventCreate", "cuEventRecord", "cuEventQuery"] as const).map((name) =>
    failing(name, "CudaStream.launchHostFunction", stream, launchingHost)
  )

/** A failure at the first call that an operation makes to a function, or at a later one. */
type Call = readonly [fails: StubFunctionName, after?: number, details?: CallDetails | undefined]

interface CallDetails {
  readonly invalid?: Scenario["invalid"]
  readonly where?: string
  readonly subject?: RegExp
}

const callsOf = <A>(
  operation: string,
  prepare: Program<A>,
  run: (prepared: A) => Program<unknown>,
  calls: ReadonlyArray<Call>,
  subject = ofGraph
): ReadonlyArray<Scenario> =>
  calls.map(([fails, after = 0, { invalid, subject: own = subject, where = "" } = {}]) =>
    failing(fails, operation, prepare, run, {
      after,
      where: [where, after > 0 && `(call ${after + 1})`].filter(Boolean).join(" "),
      subject: own,
      invalid
    })
  )

/** A recorded graph with a node of each kind. */
const everyNode = Effect.gen(function*() {
  const nothing = yield* CudaKernel.get(yield* module, "nothing", signatures.nothing)
  const { host, to } = yield* buffers
  const recorded = yield* CudaEvent.make({ timing: true })
  return yield* CudaGraph.record(Effect.gen(function*() {
    yield* CudaKernel.launch(nothing, { ...oneBlock, cooperative: true }, [])
    yield* CudaKernel.launch(nothing, { ...oneBlock, programmatic: true }, [])
    yield* CudaMemory.fill(to, 1)
    yield* CudaMemory.copy(to, host)
    yield* CudaEvent.record(recorded, yield* CudaStream.current())
    yield* CudaGraph.whileLoop(to, CudaMemory.fill(to, 0))
  }))
})

/** A graph with a copy of so many segments that an empty node joins them. */
const manyPieces = Effect.gen(function*() {
  const [device, host] = yield* Effect.all([CudaMemory.allocate(65 * mebi), CudaMemory.allocateHost(65 * mebi)])
  return yield* CudaGraph.record(CudaMemory.copy(device, host))
})

/** A graph with work of native code. */
const captured = Effect.flatMap(CudaMemory.allocate(64), (buffer) => CudaGraph.record(capturing(buffer)))

const capturing = (buffer: CudaMemory.DeviceBuffer) =>
  CudaGraph.capture((handle) => Effect.sync(() => stub.nativeFill(handle, buffer, 1)), { writes: [buffer] })

/** A call of native code in one step. */
const enqueuing = (buffer: CudaMemory.DeviceBuffer, on?: CudaStream.CudaStream) =>
  CudaMemory.enqueue({ writes: [buffer], stream: on }, (handle) => stub.nativeFill(handle, buffer, 1))

const orderedOnTwo = Effect.all({ streams: twoStreams, buffer: CudaMemory.allocate(64, { ordered: true }) })

const ofAddress = /address 0x[0-9a-f]+/

const enqueuingInOrder = ({ buffer, streams: [one, other] }: Effect.Success<typeof orderedOnTwo>) =>
  Effect.andThen(enqueuing(buffer, one), enqueuing(buffer, other))

/** Memory of two devices, one of which a graph is recorded on. */
const twoDevices = Effect.all({ stream, here: CudaMemory.allocate(64), there: CudaMemory.allocate(64, { device: 1 }) })

const copyingBetween = ({ here, there }: Effect.Success<typeof twoDevices>) =>
  CudaGraph.record(Effect.flatMap(CudaStream.current(), (current) => CudaMemory.copy(here, there, current)))

const refused = { invalid: "refused" } as const
const threeInstances = { instances: 3 }

/** The calls of an instance, and how many it makes to each function. */
const instanceCalls: ReadonlyArray<readonly [StubFunctionName, number, Pick<Scenario, "invalid">?]> = [
  ["cuCtxPushCurrent_v2", 1],
  ["cuGraphCreate", 1, refused],
  ["cuGraphAddKernelNode_v2", 4, refused],
  ["cuGraphKernelNodeSetAttribute", 1, refused],
  ["cuGraphAddDependencies_v2", 1, refused],
  ["cuGraphAddMemsetNode", 2, refused],
  ["cuGraphAddMemcpyNode", 1, refused],
  ["cuGraphAddEventRecordNode", 1, refused],
  ["cuGraphConditionalHandleCreate", 1, refused],
  ["cuGraphAddNode_v2", 1, refused],
  ["cuGraphInstantiateWithParams", 1]
]

/** A graph that uses each of its parameters in one node. */
const withParameters = Effect.gen(function*() {
  const put = yield* kernel
  const [value, host] = yield* Effect.all([CudaMemory.allocate(256), CudaMemory.allocateHost(256)])
  const parameters = { put: CudaGraph.buffer(64), fill: CudaGraph.buffer(64), copy: CudaGraph.buffer(64) }
  return yield* CudaGraph.recordWith(parameters, (given) =>
    Effect.gen(function*() {
      yield* CudaKernel.launch(put, oneBlock, [given.put, 1])
      yield* CudaMemory.fill(given.fill, 1)
      yield* CudaMemory.copy(given.copy, CudaMemory.slice(host, 0, 64))
      yield* CudaMemory.fill(value, 1)
    }))
})

/** An executable graph with parameters, and a stream and memory to launch it with. */
const executable = Effect.gen(function*() {
  const graph = yield* withParameters
  const exec = yield* CudaGraph.instantiate(graph, threeInstances)
  const memory = yield* CudaMemory.allocate(256)
  return { graph, exec, memory, stream: yield* stream, byDefault: yield* CudaStream.defaultStream() }
})

type Executable = Effect.Success<typeof executable>

const launchingGraph = ({ exec, memory, stream }: Executable) =>
  CudaGraph.launch(exec, { put: memory, fill: memory, copy: memory }, stream)

/** An executable graph that records an event for whose earlier record a fiber waits. */
const recordsAwaited = Effect.gen(function*() {
  const recorded = yield* CudaEvent.make({ timing: true })
  const graph = yield* CudaGraph.record(
    Effect.flatMap(CudaStream.current(), (current) => CudaEvent.record(recorded, current))
  )
  const exec = yield* CudaGraph.instantiate(graph)
  const made = yield* busyStream
  yield* CudaEvent.record(recorded, made)
  yield* Effect.forkScoped(Effect.ignore(CudaEvent.synchronize(recorded)))
  yield* until("the fiber waits", () => stub.calls("cuEventQuery").length > 0)
  return { exec, stream: made }
})

/** Executable graphs whose first launch uses memory of another stream. */
const usesOther = Effect.gen(function*() {
  const made = yield* allocatedOnStream
  const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(CudaMemory.fill(made.buffer, 1)))
  return { exec, stream: made.other }
})

/** An executable graph with a condition on a parameter. */
const conditional = Effect.gen(function*() {
  const graph = yield* CudaGraph.recordWith(
    { value: CudaGraph.buffer(4) },
    ({ value }) => CudaGraph.whileLoop(value, CudaMemory.fill(value, 0))
  )
  return { exec: yield* CudaGraph.instantiate(graph), value: yield* CudaMemory.allocate(4), stream: yield* stream }
})

const launchOf = (
  { exec, stream }: { readonly exec: CudaGraph.CudaGraphExec; readonly stream: CudaStream.CudaStream }
) => CudaGraph.launch(exec, stream)

const updating = ({ exec, graph }: Executable) => CudaGraph.update(exec, graph)

const recordLoop = (value: CudaMemory.DeviceBuffer) => CudaGraph.record(CudaGraph.whileLoop(value, Effect.void))

const graphs: ReadonlyArray<Scenario> = [
  ...callsOf(
    "CudaGraph.instantiate",
    everyNode,
    (graph) => graph.runtime.graphInstantiate(graph.ref, 3),
    instanceCalls.flatMap(([name, times, details]): ReadonlyArray<Call> =>
      name === "cuGraphCreate" ? [[name], [name, times]] : [[name, 0, details], [name, times, details]]
    )
  ),
  ...callsOf("CudaGraph.instantiate", manyPieces, (graph) => graph.runtime.graphInstantiate(graph.ref, 1), [
    ["cuGraphAddEmptyNode", 0, refused]
  ]),
  ...callsOf("CudaGraph.instantiate", captured, (graph) => graph.runtime.graphInstantiate(graph.ref, 1), [
    ["cuGraphAddChildGraphNode", 0, { ...refused, where: "of captured work" }]
  ]),
  ...callsOf("CudaGraph.capture", CudaMemory.allocate(64), (buffer) => CudaGraph.record(capturing(buffer)), [
    ["cuCtxPushCurrent_v2"],
    ["cuStreamCreateWithPriority"],
    ["cuStreamBeginCapture_v2"],
    ["cuStreamEndCapture"],
    ["cuGraphGetNodes"],
    ["cuGraphNodeGetType"]
  ], /recording stream/),
  ...callsOf("CudaEvent.fromHandle", event, ({ handle }) => CudaEvent.fromHandle(handle), [
    ["cuEventQuery"]
  ], /handle 0x[0-9a-f]+/),
  ...callsOf("CudaMemory.pin", openDevice, () => CudaMemory.pin(new Uint8Array(64)), [
    ["cuCtxPushCurrent_v2"],
    ["cuMemHostRegister_v2"]
  ], /64 bytes of the program's memory/),
  ...callsOf("CudaMemory.fromAddress", CudaMemory.allocate(64), ({ address }) => CudaMemory.fromAddress(address, 64), [
    ["cuCtxPushCurrent_v2"],
    ["cuPointerGetAttributes"]
  ], ofAddress),
  ...callsOf("CudaMemory.pointerAttributes", openDevice, () => CudaMemory.pointerAttributes(4096), [
    ["cuPointerGetAttributes"]
  ], ofAddress),
  ...callsOf("CudaMemory.enqueue", CudaMemory.allocate(64), (buffer) => CudaGraph.record(enqueuing(buffer)), [
    ["cuStreamBeginCapture_v2"],
    ["cuCtxPushCurrent_v2", 1],
    ["cuStreamEndCapture"],
    ["cuGraphGetNodes"]
  ], /recording stream/),
  ...callsOf(
    "CudaMemory.enqueue",
    Effect.all([CudaMemory.allocate(64), stream]),
    ([buffer, on]) => enqueuing(buffer, on),
    [["cuCtxPushCurrent_v2"]],
    /stream \d+ of device 0/
  ),
  ...callsOf("CudaMemory.enqueue", orderedOnTwo, enqueuingInOrder, [
    ["cuEventRecord"],
    ["cuStreamWaitEvent"],
    ["cuEventRecord", 1]
  ], /stream \d+ of device 0/),
  ...callsOf("CudaMemory.copy", twoDevices, copyingBetween, [
    ["cuDeviceCanAccessPeer", 0, { where: "in a recording", subject: /64 bytes .* on device 1/ }]
  ], /device 1/),
  ...callsOf(
    "CudaGraph.instantiate",
    Effect.flatMap(twoDevices, copyingBetween),
    (graph) => graph.runtime.graphInstantiate(graph.ref, 2),
    [
      ["cuPointerGetAttributes", 0, { where: "of memory of another device" }],
      ["cuMemPoolSetAccess"],
      ["cuMemPoolSetAccess", 1]
    ]
  ),
  ...callsOf("CudaGraph.instantiate", withParameters, (graph) => graph.runtime.graphInstantiate(graph.ref, 3), [
    ["cuMemAllocFromPoolAsync", 0, { where: "of memory in place of parameters", subject: /64 bytes on device 0/ }]
  ]),
  ...callsOf("CudaGraph.launch", executable, launchingGraph, [
    ["cuGraphExecKernelNodeSetParams_v2", 0, { invalid: "handled" }],
    ["cuGraphExecMemsetNodeSetParams", 0, { invalid: "handled" }],
    ["cuGraphExecMemcpyNodeSetParams", 0, { invalid: "handled" }],
    ["cuGraphLaunch"]
  ]),
  ...callsOf(
    "CudaGraph.launch",
    Effect.tap(executable, launchingGraph),
    (made) => launchingGraph({ ...made, stream: made.byDefault }),
    [["cuCtxPushCurrent_v2", 0, { where: "on a default stream" }], ["cuGraphLaunch", 0, {
      where: "on a default stream"
    }]]
  ),
  ...callsOf("CudaGraph.launch", recordsAwaited, launchOf, [
    ["cuStreamCreateWithPriority", 0, replacing],
    ["cuEventCreate", 0, replacing],
    ["cuStreamWaitEvent", 0, replacing],
    ["cuEventRecord", 0, replacing]
  ]),
  ...callsOf("CudaGraph.launch", usesOther, launchOf, [
    ["cuStreamWaitEvent", 0, { where: "before the first use on another stream" }]
  ]),
  ...callsOf(
    "CudaGraph.launch",
    conditional,
    ({ exec, stream, value }) => CudaGraph.launch(exec, { value }, stream),
    [0, 1].map((
      after
    ): Call => ["cuGraphExecKernelNodeSetParams_v2", after, { invalid: "handled", where: "of a condition" }])
  ),
  ...callsOf("CudaGraph.update", executable, updating, [
    ["cuCtxPushCurrent_v2"],
    ["cuMemAllocFromPoolAsync", 0, { subject: /64 bytes on device 0/ }],
    ["cuGraphCreate"],
    ["cuGraphAddMemsetNode", 2, refused],
    ["cuGraphExecUpdate_v2"],
    ["cuGraphExecUpdate_v2", 2]
  ]),
  ...callsOf(
    "CudaGraph.upload",
    executable,
    (made) => CudaGraph.upload(made.exec, made.stream),
    [["cuGraphUpload"], ["cuGraphUpload", 2]]
  ),
  ...callsOf(
    "CudaGraph.upload",
    executable,
    (made) => CudaGraph.upload(made.exec, made.byDefault),
    [["cuCtxPushCurrent_v2", 0, { where: "on a default stream" }]]
  ),
  ...callsOf(
    "CudaGraph.setEnabled",
    executable,
    (made) => CudaGraph.setEnabled(made.exec, 0, false),
    [["cuGraphNodeSetEnabled"], ["cuGraphNodeSetEnabled", 2]]
  ),
  ...callsOf(
    "CudaGraph.whileLoop",
    CudaMemory.allocate(4),
    recordLoop,
    [["cuLibraryLoadData"], ["cuLibraryGetKernel"], ["cuLibraryGetKernel", 1], ["cuKernelGetFunction"], [
      "cuKernelGetAttribute"
    ]],
    /condition/
  )
]

const operations = [
  ...devices,
  ...streams,
  ...events,
  ...memory,
  ...kernels,
  ...pools,
  ...interprocess,
  ...streamOrdered,
  ...copies,
  ...managedMemory,
  ...growableMemory,
  ...partitions,
  ...hostFunctions,
  ...graphs
]

const handles = ({ invalid }: Scenario, { tag }: StatusClass) => invalid === "handled" && tag === "InvalidValue"

describe("an operation fails with the status of its call", () => {
  // memoryReclaim queries the device's own stream first, so the device is opened before a failure is armed.
  const opened = (scenario: Scenario) => scenario.operation === "CudaMemory.reclaim" ? openDevice : Effect.void
  for (const scenario of operations) {
    const { after = 0, fails, operation, program, where } = scenario
    describe(`${fails} ${where} in ${operation}`, () => {
      for (const status of classes.filter((status) => !handles(scenario, status))) {
        it.live(`${status.what} (${status.code})`, () =>
          onStub(
            stub,
            Effect.gen(function*() {
              yield* opened(scenario)
              const arm = Effect.sync(() => stub.fail(fails, status.code, { after }))
              const error = yield* Effect.scoped(Effect.ensuring(program(arm), Effect.sync(() => stub.finishAll())))
              checkError(error, scenario, status)
              const held = yield* (yield* CudaRuntime).liveResources
              const pooled = where === "of the pool" ? { streams: held.streams } : {}
              assert.deepStrictEqual(held, { ...nothingHeld, ...pooled })
              // What was captured lives as long as the recorded graph.
              const graphs = where === "of captured work" ? 1 : 0
              assert.deepStrictEqual({ ...stub.live, graphs, graphExecs: 0 }, stub.live)
            }),
            // Waits poll for as long as the test runs, so that they make no calls except those that must fail.
            { prepare: () => void (stub.devices = 2), wait: { pollFor: "1 minute" } }
          ))
      }
    })
  }
})

describe("opening a device fails with the status of its call, and can be retried", () => {
  const opening: ReadonlyArray<readonly [DriverFunctionName, after: number]> = [
    ["cuDevicePrimaryCtxRetain", 0],
    ["cuCtxPushCurrent_v2", 0],
    ["cuCtxGetStreamPriorityRange", 0],
    ["cuStreamCreateWithPriority", 0],
    ["cuStreamCreateWithPriority", 1],
    ["cuMemPoolCreate", 0],
    ["cuMemPoolSetAttribute", 0],
    ["cuMemPoolSetAttribute", 1]
  ]
  for (const [fails, after] of opening) {
    for (const status of classes) {
      it.live(`${fails}, call ${after + 1}: ${status.what} (${status.code})`, () =>
        onStub(
          stub,
          Effect.gen(function*() {
            stub.fail(fails, status.code, { after })
            const error = yield* failureOf(CudaDevice.memoryInfo())
            checkError(error, { fails, operation: "CudaDevice.memoryInfo", where: "", program: Effect.die }, status)
            assert.deepStrictEqual(stub.live, { ...stub.live, streams: 0, events: 0, pools: 0, contexts: 0 })
            yield* CudaStream.make()
          })
        ))
    }
  }
})

describe("building the layer fails with the status of its call", () => {
  const building: ReadonlyArray<DriverFunctionName> = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDeviceGetPCIBusId",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute"
  ]
  for (const fails of building) {
    for (const status of classes) {
      it.live(`${fails}: ${status.what} (${status.code})`, () =>
        Effect.gen(function*() {
          stub.reset()
          stub.fail(fails, status.code)
          const error = yield* failureOf(Effect.scoped(NativeRuntime.make({ libraryPath: stub.path })))
          const scenario = { fails, operation: "NativeRuntime.make", where: "", subject: /./, program: Effect.die }
          checkError(error, scenario, status)
          assert.strictEqual(stub.failuresLeft, 0)
        }))
    }
  }
})

/** A failing release, and what it leaves in the driver: with memory also its pool, which must not be destroyed before. */
interface Release {
  readonly fails: StubFunctionName
  readonly what: string
  readonly left: Partial<DriverLive>
  /** Creates the resource and arms the failure of its release. */
  readonly program: (arm: Effect.Effect<void>) => Program<unknown>
  /** Whether the failure is that of the runtime's release, rather than of a scope in it. */
  readonly atEnd?: boolean
  readonly says?: RegExp
}

const releases: ReadonlyArray<Release> = [
  {
    fails: "cuStreamDestroy_v2",
    what: "a stream",
    left: { streams: 1 },
    program: (arm) => Effect.andThen(stream, arm),
    says: /CudaStream\.release \(stream \d+ of device 0\)/
  },
  {
    fails: "cuEventDestroy_v2",
    what: "an event",
    left: { events: 1 },
    program: (arm) => Effect.andThen(CudaEvent.make({ interprocess: true }), arm),
    says: /CudaEvent\.release \(event 0x[0-9a-f]+ of device 0\)/
  },
  {
    fails: "cuEventDestroy_v2",
    what: "an event that is waited for",
    left: { events: 1 },
    program: (arm) =>
      Effect.gen(function*() {
        const made = yield* busyStream
        const waiting = yield* Effect.scoped(Effect.gen(function*() {
          const awaited = yield* CudaStream.recordEvent(made)
          const fiber = yield* Effect.forkChild(CudaEvent.synchronize(awaited))
          yield* until("the fiber waits", () => stub.calls("cuEventQuery").length > 0)
          return fiber
        }))
        yield* arm
        stub.finishAll()
        yield* Fiber.join(waiting)
      })
  },
  {
    fails: "cuMemFreeAsync",
    what: "a device buffer",
    left: { allocations: 1, pools: 1 },
    program: (arm) => Effect.andThen(CudaMemory.allocate(64), arm),
    says: /CudaMemory\.release \(buffer of 64 bytes at 0x[0-9a-f]+ on device 0\)/
  },
  {
    fails: "cuLibraryUnload",
    what: "a module",
    left: { libraries: 1 },
    program: (arm) => Effect.andThen(module, arm),
    says: /CudaModule\.release \(module 0x[0-9a-f]+ of \d+ bytes\)/
  },
  ...(["cuEventCreate", "cuEventRecord", "cuStreamWaitEvent"] as const).map((fails): Release => ({
    fails,
    what: "a device buffer, ordered after its users",
    left: {},
    program: (arm) =>
      Effect.gen(function*() {
        const made = yield* stream
        const buffer = yield* CudaMemory.allocate(64)
        yield* CudaMemory.fill(buffer, 0, made)
        yield* arm
      }),
    says: /CudaMemory\.release \(buffer of 64 bytes/
  })),
  {
    fails: "cuMemPoolDestroy",
    what: "a pool",
    left: { pools: 1 },
    program: (arm) => Effect.andThen(pool, arm),
    says: /CudaMemoryPool\.release \(pool 0x[0-9a-f]+ of device 0\)/
  },
  {
    fails: "cuMemPoolDestroy",
    what: "a pool of another process",
    left: { pools: 1 },
    program: (arm) => Effect.andThen(openedPool, arm),
    says: /CudaMemoryPool\.release \(pool 0x[0-9a-f]+ of device 0\)/
  },
  {
    fails: "cuIpcCloseMemHandle",
    what: "an allocation of another process",
    left: { allocations: 1 },
    program: (arm) => Effect.andThen(openingAllocation, arm),
    atEnd: true
  },
  {
    fails: "cuMemFree_v2",
    what: "an allocation outside of pools",
    left: { allocations: 1 },
    program: (arm) => Effect.andThen(CudaInterprocess.allocate(64), arm),
    atEnd: true
  },
  {
    fails: "cuMemRelease",
    what: "the memory of a growable buffer",
    left: { allocations: 1 },
    program: (arm) => Effect.andThen(openDevice, Effect.andThen(arm, growable)),
    says: /cuMemRelease/
  },
  ...(["cuMemUnmap", "cuMemAddressFree"] as const).map((fails): Release => ({
    fails,
    what: "a growable buffer",
    left: { allocations: fails === "cuMemUnmap" ? 2 : 1 },
    program: (arm) => Effect.andThen(growable, arm),
    says: /cuMem(Unmap|AddressFree)/
  })),
  {
    fails: "cuMemFreeAsync",
    what: "a device buffer, on the stream that it was allocated on",
    left: { allocations: 1, pools: 1 },
    program: (arm) => Effect.andThen(Effect.flatMap(stream, (made) => CudaMemory.allocate(64, { stream: made })), arm),
    says: /CudaMemory\.release \(buffer of 64 bytes at 0x[0-9a-f]+ on device 0\)/
  },
  {
    fails: "cuCtxPushCurrent_v2",
    what: "a device buffer, on the default stream that it was allocated on",
    left: { allocations: 1, pools: 1 },
    program: (arm) =>
      Effect.andThen(
        Effect.flatMap(CudaStream.defaultStream(), (made) => CudaMemory.allocate(64, { stream: made })),
        arm
      ),
    says: /CudaMemory\.release \(buffer of 64 bytes/
  },
  ...([
    ["cuGraphExecDestroy", "an executable graph", { graphExecs: 1 }],
    ["cuGraphDestroy", "the graph of an executable graph", { graphs: 1 }],
    ["cuMemFreeAsync", "the memory of an executable graph", { allocations: 1, pools: 1 }]
  ] as const).map(([fails, what, left]): Release => ({
    fails,
    what,
    left,
    program: (arm) =>
      Effect.gen(function*() {
        const fill = Effect.flatMap(CudaMemory.allocate(64), (scratch) => CudaMemory.fill(scratch, 1))
        yield* CudaGraph.instantiate(yield* CudaGraph.record(fill), { instances: 2 })
        yield* arm
      }),
    says: /CudaGraph\.release \(executable graph of 1 node on device 0\)/
  })),
  {
    fails: "cuLibraryUnload",
    what: "the kernel that reads conditions",
    left: { libraries: 1 },
    program: (arm) => Effect.scoped(Effect.andThen(Effect.flatMap(CudaMemory.allocate(4), recordLoop), arm)),
    atEnd: true
  },
  {
    fails: "cuMemFree_v2",
    what: "managed memory",
    left: { allocations: 1 },
    // Before the release, since the memory is freed in the turn after it.
    program: (arm) => Effect.scoped(Effect.andThen(managed, arm)),
    atEnd: true
  },
  {
    fails: "cuMemHostUnregister",
    what: "pinned memory",
    left: { registrations: 1 },
    program: (arm) => Effect.scoped(Effect.andThen(CudaMemory.allocateHost(64), arm)),
    atEnd: true
  },
  {
    fails: "cuGreenCtxDestroy",
    what: "a partition",
    left: { greenContexts: 1 },
    program: (arm) => Effect.andThen(partition, arm),
    atEnd: true
  },
  {
    fails: "cuMemPoolDestroy",
    what: "the pool",
    left: { pools: 1 },
    program: (arm) => Effect.andThen(openDevice, arm),
    atEnd: true
  },
  {
    fails: "cuStreamDestroy_v2",
    what: "the runtime's own streams",
    left: { streams: 1 },
    program: (arm) => Effect.andThen(openDevice, arm),
    atEnd: true
  },
  {
    fails: "cuEventDestroy_v2",
    what: "the runtime's own events",
    left: { events: 1 },
    program: (arm) =>
      Effect.andThen(
        Effect.scoped(Effect.flatMap(twoStreams, ([one, two]) => CudaStream.waitStream(one, two))),
        arm
      ),
    atEnd: true
  },
  {
    fails: "cuDevicePrimaryCtxRelease_v2",
    what: "the context",
    left: { contexts: 1 },
    program: (arm) => Effect.andThen(openDevice, arm),
    atEnd: true
  }
]

describe("a failing release is a logged warning, never a failure", () => {
  for (const { atEnd, fails, left, program, says, what } of releases) {
    for (const status of classes) {
      it.live(`${fails} of ${what}: ${status.what} (${status.code})`, () =>
        Effect.gen(function*() {
          const arm = Effect.sync(() => stub.fail(fails, status.code))
          const inScope = Effect.gen(function*() {
            yield* Effect.scoped(program(arm))
            const held = yield* (yield* CudaRuntime).liveResources
            assert.deepStrictEqual(held, nothingHeld)
          })
          const { lines } = yield* logged(onStub(stub, atEnd === true ? program(arm) : inScope, { left }))
          assert.lengthOf(lines, 1, lines.join("\n"))
          assert.match(lines[0]!, /^Warn /)
          assert.include(lines[0]!, publicName(fails))
          assert.include(lines[0]!, `${status.name} (${status.code})`)
          if (says !== undefined) assert.match(lines[0]!, says)
        }))
    }
  }

  const ownReleases = releases.filter((release) => release.atEnd !== true && Object.keys(release.left).length > 0)
  for (const { fails, left, program, what } of ownReleases) {
    it.live(`${fails} of ${what} logs nothing when the driver has shut down`, () =>
      Effect.gen(function*() {
        const arm = Effect.sync(() => stub.fail(fails, statuses.Deinitialized.code))
        const { lines } = yield* logged(onStub(stub, Effect.scoped(program(arm)), { left }))
        assert.deepStrictEqual(lines, [])
      }))
  }

  const warned: ReadonlyArray<
    readonly [
      string,
      Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope>,
      DriverFunctionName,
      Partial<DriverLive>
    ]
  > = [
    ["a stream", CudaStream.make(), "cuStreamDestroy_v2", { streams: 1 }],
    ["an event", CudaEvent.make({ interprocess: true }), "cuEventDestroy_v2", { events: 1 }]
  ]
  for (const [what, make, fails, left] of warned) {
    it.live(`${fails} of ${what} is logged in its creator's context, whoever closes its scope`, () =>
      Effect.gen(function*() {
        const closed = yield* logged(onStub(
          stub,
          Effect.gen(function*() {
            const scope = yield* Scope.make()
            const made = yield* logged(Scope.provide(make, scope))
            stub.fail(fails, 999)
            yield* Scope.close(scope, Exit.void)
            return made.lines
          }),
          { left }
        ))
        assert.lengthOf(closed.result, 1)
        assert.include(closed.result[0], publicName(fails))
        assert.deepStrictEqual(closed.lines, [])
      }))
  }

  it.live("a stream whose draining fails is still destroyed", () =>
    Effect.gen(function*() {
      const { lines } = yield* logged(onStub(
        stub,
        Effect.scoped(Effect.andThen(stream, Effect.sync(() => stub.fail("cuStreamQuery", 999))))
      ))
      assert.lengthOf(lines, 1)
      assert.match(lines[0]!, /^Warn CudaStream\.release .*cuStreamQuery returned CUDA_ERROR_UNKNOWN \(999\)/)
    }))
})

describe("every status of the table", () => {
  const rows = Object.entries(statuses) as ReadonlyArray<readonly [StatusTag, (typeof statuses)[StatusTag]]>

  it("has about a hundred rows, each code once", () => {
    assert.isAbove(rows.length, 90)
    assert.strictEqual(new Set(rows.map(([, { code }]) => code)).size, rows.length)
  })

  it.live("maps to the reason of the same name", () =>
    Effect.forEach(rows, ([tag, info]) =>
      onStub(
        stub,
        Effect.gen(function*() {
          const made = yield* both
          stub.fail("cuEventRecord", info.code)
          const error = yield* failureOf(CudaEvent.record(made.event, made.stream))
          assert.deepStrictEqual<unknown>(error.reason, { _tag: tag, ...info })
          assert.include(error.message, `cuEventRecord returned ${info.name} (${info.code}): ${info.description}`)
          assert.include(error.message, info.advice)
        })
      )))

  it.live("a status unknown to both the table and the driver keeps its number", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const made = yield* both
        stub.fail("cuEventRecord", 54321)
        const error = yield* failureOf(CudaEvent.record(made.event, made.stream))
        assert.deepInclude(error.reason, { _tag: "UnknownStatus", code: 54321 })
        assert.include(error.message, "54321")
      })
    ))

  it.live("a driver that cannot name a status is harmless", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const made = yield* both
        stub.fail("cuEventRecord", 12345, { times: 2 })
        stub.fail("cuGetErrorName", 1)
        const nameless = yield* failureOf(CudaEvent.record(made.event, made.stream))
        assert.include(nameless.message, "12345")
        stub.fail("cuGetErrorString", 1)
        const wordless = yield* failureOf(CudaEvent.record(made.event, made.stream))
        assert.include(wordless.message, "CUDA_ERROR_OF_THE_STUB (12345)")
      })
    ))
})

describe("a sticky fault", () => {
  it.live("is the origin of every later failure", () =>
    logged(onStub(
      stub,
      Effect.gen(function*() {
        const made = yield* both
        stub.fault = 700
        const first = yield* failureOf(CudaEvent.record(made.event, made.stream))
        assert.isTrue(first.isSticky)
        assert.isUndefined(first.origin)
        for (
          const operation of [CudaStream.query(made.stream), CudaStream.synchronize(made.stream), CudaEvent.make()]
        ) {
          const later = yield* failureOf(operation)
          assert.strictEqual(later.reason._tag, "IllegalAddress")
          assert.strictEqual(later.origin?.operation, "CudaEvent.record")
          assert.strictEqual(later.origin?.status.name, "CUDA_ERROR_ILLEGAL_ADDRESS")
          assert.include(
            later.message,
            "The contexts of this process were lost earlier: CudaEvent.record failed with CUDA_ERROR_ILLEGAL_ADDRESS on device 0"
          )
        }
      }),
      { left: { pools: 1 } }
    )))

  it.live("is the origin of failures on other devices too", () =>
    logged(onStub(
      stub,
      Effect.gen(function*() {
        const here = yield* CudaStream.make({ device: 0 })
        const there = yield* CudaStream.make({ device: 1 })
        stub.fail("cuStreamQuery", 700)
        yield* failureOf(CudaStream.query(here))
        stub.fail("cuStreamQuery", 719)
        const other = yield* failureOf(CudaStream.query(there))
        assert.strictEqual(other.deviceIndex, 1)
        assert.deepStrictEqual([other.origin?.deviceIndex, other.origin?.status.code], [0, 700])
      }),
      { prepare: () => void (stub.devices = 2) }
    )))

  it.live("lets everything be released, with at most two warnings", () =>
    Effect.gen(function*() {
      stub.reset()
      const program = Effect.gen(function*() {
        const made = yield* buffers
        const recorded = yield* CudaStream.recordEvent(made.stream)
        yield* CudaMemory.copy(made.to, made.host, made.stream)
        yield* CudaEvent.synchronize(recorded)
        stub.fault = 719
      })
      const { lines } = yield* logged(Effect.provide(Effect.scoped(program), stubLayer(stub)))
      assert.isNotEmpty(lines)
      assert.isAtMost(lines.length, 2)
      assert.isTrue(lines.every((line) => line.startsWith("Warn ")))
      assert.isUndefined(stub.misuse)
      // Device memory is freed with its context, and its pool must not be destroyed before.
      assert.deepStrictEqual({ ...stub.live, allocations: 0 }, { ...nothingLive, pools: 1 })
    }))
})

describe("the scenarios", () => {
  /**
   * Descriptions of other failures, the pop of a context that was just pushed, wake-ups, without which waits still work, and the
   * query of a kernel's next parameter, which fails after the last one.
   */
  const exempt = [
    "cuGetErrorName",
    "cuGetErrorString",
    "cuCtxPopCurrent_v2",
    "cuLaunchHostFunc",
    "cuKernelGetParamInfo",
    "cuEventElapsedTime",
    "cuGraphExecEventRecordNodeSetEvent"
  ]
  const functions = Object.keys({ ...driverFunctions, ...optionalDriverFunctions })

  it.live("cover every function that can fail", () =>
    Effect.sync(() => {
      const opening = [
        "cuDevicePrimaryCtxRetain",
        "cuCtxGetStreamPriorityRange",
        "cuMemPoolCreate",
        "cuMemPoolSetAttribute"
      ]
      // Leaves a pool to the runtime's release, and is no operation's failure.
      const inBackground = ["cuEventSynchronize"]
      const building = Object.keys(driverFunctions).filter((name) =>
        /^cu(Init|DriverGet|DeviceGet|DeviceTotal)/.test(name)
      )
      const failed = new Set<string>([...operations, ...releases].map(({ fails }) => fails).concat())
      for (const name of [...opening, ...inBackground, ...building, ...exempt]) failed.add(name)
      assert.deepStrictEqual(functions.filter((name) => !failed.has(name)), [])
    }))
})
