/**
 * Arguments of the wrong kind, forced past the types: every operation fails with an `InvalidArgument` that names the argument. Nothing
 * throws, no default is used instead, and the driver never receives a foreign handle.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaBranch,
  CudaDependency,
  CudaDevice,
  CudaError,
  CudaEvent,
  CudaGraph,
  CudaInterprocess,
  CudaKernel,
  CudaMemory,
  CudaMemoryPool,
  CudaModule,
  CudaNccl,
  CudaPartition,
  CudaPipeline,
  CudaPlacement,
  CudaProgram,
  CudaRuntime,
  CudaStream,
  CudaTaskGraph,
  CudaTiming,
  FaultInjection,
  SimulatedRuntime
} from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { inspect } from "node:util"
import { failsWith, refuses } from "./support/assertions.ts"
import { program, signatures, simulatedKernels } from "./support/kernels.ts"
import { assertReleased, openStub, stubLayer } from "./support/stubDriver.ts"

const stub = openStub()

type Runtime = CudaRuntime.CudaRuntime

/** One of everything. */
const makeGiven = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const event = yield* CudaEvent.make()
  const [start, end] = yield* Effect.all([CudaEvent.make({ timing: true }), CudaEvent.make({ timing: true })])
  const [device, other] = yield* Effect.all([CudaMemory.allocate(64), CudaMemory.allocate(64)])
  const host = yield* CudaMemory.allocateHost(64)
  const managed = yield* CudaMemory.allocateManaged(64)
  const pool = yield* CudaMemoryPool.make()
  const growable = yield* CudaMemory.growable({ maxBytes: 64, initial: 64 })
  const partition = yield* CudaPartition.make({ multiprocessors: 8 })
  const module = yield* CudaModule.load(yield* program)
  const kernel = yield* CudaKernel.get(module, "put", signatures.put)
  const dependency = yield* CudaDependency.make([event])
  const branch = yield* CudaBranch.fork(Effect.void)
  const graph = CudaTaskGraph.add(CudaTaskGraph.empty, "nothing", Effect.void)
  const recorded = yield* CudaGraph.record(CudaMemory.fill(device, 1))
  const exec = yield* CudaGraph.instantiate(recorded)
  const of = yield* CudaDevice.current
  // The driver is asked for the default stream once.
  yield* CudaStream.current()
  const memory = { device, other, host, managed, growable, pool }
  return {
    stream,
    partition,
    event,
    start,
    end,
    ...memory,
    module,
    kernel,
    dependency,
    branch,
    graph,
    recorded,
    exec,
    of
  }
})

type Given = Effect.Success<typeof makeGiven>

/** A value that the types would reject. */
type Forced = never

interface Call {
  readonly name: string
  /** The name of the argument in the failure. */
  readonly argument: string
  readonly call: (wrong: Forced, given: Given) => Effect.Effect<unknown, CudaError.CudaError, Runtime | Scope.Scope>
}

const primitives: ReadonlyArray<unknown> = [null, 0, 1, -1, Number.NaN, 10n, "", "x", true, false, Symbol("no")]
const objects: ReadonlyArray<unknown> = [[], {}, () => {}, { ref: 1 }, { runtime: {} }, { buffer: {} }, new Map()]
const neither: ReadonlyArray<unknown> = [...primitives, ...objects]

const one = { grid: 1, block: 1 }
const size = { width: 8, height: 1 }

const streams: ReadonlyArray<Call> = [
  { name: "CudaStream.query", argument: "stream", call: (wrong) => CudaStream.query(wrong) },
  { name: "CudaStream.synchronize", argument: "stream", call: (wrong) => CudaStream.synchronize(wrong) },
  { name: "CudaStream.waitEvent", argument: "stream", call: (wrong, { event }) => CudaStream.waitEvent(wrong, event) },
  {
    name: "CudaStream.waitStream",
    argument: "stream",
    call: (wrong, { stream }) => CudaStream.waitStream(wrong, stream)
  },
  {
    name: "CudaStream.waitStream, the other",
    argument: "stream",
    call: (wrong, { stream }) => CudaStream.waitStream(stream, wrong)
  },
  { name: "CudaStream.recordEvent", argument: "stream", call: (wrong) => CudaStream.recordEvent(wrong) },
  {
    name: "CudaStream.recordEvent of an event",
    argument: "stream",
    call: (wrong, { event }) => CudaStream.recordEvent(wrong, event)
  },
  {
    name: "CudaStream.launchHostFunction",
    argument: "stream",
    call: (wrong) => CudaStream.launchHostFunction(wrong, Effect.void)
  },
  { name: "CudaStream.withStream", argument: "stream", call: (wrong) => CudaStream.withStream(Effect.void, wrong) },
  {
    name: "CudaStream.withStream, data last",
    argument: "stream",
    call: (wrong) => Effect.void.pipe(CudaStream.withStream(wrong))
  }
]

/** Where a stream is optional. */
const optionalStreams: ReadonlyArray<Call> = [
  { name: "CudaEvent.record", argument: "stream", call: (wrong, { event }) => CudaEvent.record(event, wrong) },
  { name: "CudaGraph.launch", argument: "stream", call: (wrong, { exec }) => CudaGraph.launch(exec, {}, wrong) },
  { name: "CudaGraph.upload", argument: "stream", call: (wrong, { exec }) => CudaGraph.upload(exec, wrong) },
  { name: "CudaEvent.wait", argument: "stream", call: (wrong, { event }) => CudaEvent.wait(event, wrong) },
  { name: "CudaMemory.allocate", argument: "stream", call: (wrong) => CudaMemory.allocate(64, { stream: wrong }) },
  {
    name: "CudaMemory.copy",
    argument: "stream",
    call: (wrong, { device, host }) => CudaMemory.copy(device, host, wrong)
  },
  {
    name: "CudaMemory.copy2D",
    argument: "stream",
    call: (wrong, { device, host }) => CudaMemory.copy2D(device, host, size, wrong)
  },
  {
    name: "CudaMemory.copyBatch",
    argument: "stream",
    call: (wrong, { device, host }) => CudaMemory.copyBatch([{ destination: device, source: host }], wrong)
  },
  { name: "CudaMemory.fill", argument: "stream", call: (wrong, { device }) => CudaMemory.fill(device, 1, wrong) },
  { name: "CudaMemory.fill16", argument: "stream", call: (wrong, { device }) => CudaMemory.fill16(device, 1, wrong) },
  { name: "CudaMemory.fill32", argument: "stream", call: (wrong, { device }) => CudaMemory.fill32(device, 1, wrong) },
  {
    name: "CudaMemory.prefetch",
    argument: "stream",
    call: (wrong, { managed }) => CudaMemory.prefetch(managed, "host", wrong)
  },
  {
    name: "CudaMemory.access",
    argument: "stream",
    call: (wrong, { device }) => CudaMemory.access(Effect.void, { reads: [device], stream: wrong })
  },
  {
    name: "CudaMemory.enqueue",
    argument: "stream",
    call: (wrong, { device }) => CudaMemory.enqueue({ reads: [device], stream: wrong }, () => {})
  },
  {
    name: "CudaMemory.upload",
    argument: "stream",

    call: (wrong, { device }) => CudaMemory.upload(device, new Uint8Array(64), wrong)
  },
  {
    name: "CudaMemory.download",
    argument: "stream",

    call: (wrong, { device }) => CudaMemory.download(new Uint8Array(64), device, wrong)
  },
  {
    name: "CudaKernel.launch",
    argument: "stream",
    call: (wrong, { device, kernel }) => CudaKernel.launch(kernel, one, [device, 1], wrong)
  },
  {
    name: "CudaDependency.wait",
    argument: "stream",
    call: (wrong, { dependency }) => CudaDependency.wait(dependency, wrong)
  },
  {
    name: "CudaTiming.timed",
    argument: "stream",

    call: (wrong) => CudaTiming.timed(Effect.void, { stream: wrong })
  },
  { name: "CudaBranch.join", argument: "stream", call: (wrong, { branch }) => CudaBranch.join(branch, wrong) }
]

const events: ReadonlyArray<Call> = [
  { name: "CudaStream.waitEvent", argument: "event", call: (wrong, { stream }) => CudaStream.waitEvent(stream, wrong) },
  { name: "CudaEvent.record", argument: "event", call: (wrong) => CudaEvent.record(wrong) },
  {
    name: "CudaEvent.record on a stream",
    argument: "event",
    call: (wrong, { stream }) => CudaEvent.record(wrong, stream)
  },
  { name: "CudaEvent.wait", argument: "event", call: (wrong) => CudaEvent.wait(wrong) },
  { name: "CudaEvent.wait on a stream", argument: "event", call: (wrong, { stream }) => CudaEvent.wait(wrong, stream) },
  { name: "CudaEvent.query", argument: "event", call: (wrong) => CudaEvent.query(wrong) },
  { name: "CudaEvent.synchronize", argument: "event", call: (wrong) => CudaEvent.synchronize(wrong) },
  {
    name: "CudaEvent.elapsedTime, start",
    argument: "event",
    call: (wrong, { end }) => CudaEvent.elapsedTime(wrong, end)
  },
  {
    name: "CudaEvent.elapsedTime, end",
    argument: "event",
    call: (wrong, { start }) => CudaEvent.elapsedTime(start, wrong)
  },
  { name: "CudaEvent.ipcHandle", argument: "event", call: (wrong) => CudaEvent.ipcHandle(wrong) }
]

const eventsLast: ReadonlyArray<Call> = [
  {
    name: "CudaEvent.record, data last",
    argument: "event",
    call: (wrong, { stream }) => CudaEvent.record(stream)(wrong)
  },
  {
    name: "CudaEvent.wait on the current stream, data last",
    argument: "event",
    call: (wrong) => CudaEvent.wait()(wrong)
  }
]

const pools: ReadonlyArray<Call> = [
  { name: "CudaMemoryPool.statistics", argument: "pool", call: (wrong) => CudaMemoryPool.statistics(wrong) },
  { name: "CudaMemoryPool.resetHighWater", argument: "pool", call: (wrong) => CudaMemoryPool.resetHighWater(wrong) },
  {
    name: "CudaMemoryPool.setReleaseThreshold",
    argument: "pool",
    call: (wrong) => CudaMemoryPool.setReleaseThreshold(wrong, 1)
  },
  { name: "CudaMemoryPool.trim", argument: "pool", call: (wrong) => CudaMemoryPool.trim(wrong) },
  { name: "CudaMemoryPool.allowAccess", argument: "pool", call: (wrong) => CudaMemoryPool.allowAccess(wrong, 0) },
  { name: "CudaMemoryPool.denyAccess", argument: "pool", call: (wrong) => CudaMemoryPool.denyAccess(wrong, 0) },
  { name: "CudaInterprocess.sharePool", argument: "pool", call: (wrong) => CudaInterprocess.sharePool(wrong) }
]

const tokens: ReadonlyArray<Call> = [
  { name: "CudaInterprocess.openPool", argument: "token", call: (wrong) => CudaInterprocess.openPool(wrong, 0) },
  { name: "CudaInterprocess.open", argument: "token", call: (wrong) => CudaInterprocess.open(wrong) }
]

const partitions: ReadonlyArray<Call> = [
  {
    name: "CudaPartition.within",
    argument: "partition",
    call: (wrong) => CudaPartition.within(Effect.void, wrong)
  },
  {
    name: "CudaPartition.within, data last",
    argument: "partition",
    call: (wrong) => Effect.void.pipe(CudaPartition.within(wrong))
  }
]

const optionalPartitions: ReadonlyArray<Call> = [
  { name: "CudaStream.make", argument: "partition", call: (wrong) => CudaStream.make({ partition: wrong }) },
  { name: "CudaStream.fromPool", argument: "partition", call: (wrong) => CudaStream.fromPool({ partition: wrong }) },
  {
    name: "CudaStream.withPooledStream",
    argument: "partition",
    call: (wrong) => CudaStream.withPooledStream(Effect.void, { partition: wrong })
  }
]

const communicators: ReadonlyArray<Call> = [
  { name: "CudaNccl.split", argument: "communicator", call: (wrong) => CudaNccl.split(wrong, { color: 0 }) },
  { name: "CudaNccl.skipSplit", argument: "communicator", call: (wrong) => CudaNccl.skipSplit(wrong) },
  { name: "CudaNccl.shrink", argument: "communicator", call: (wrong) => CudaNccl.shrink(wrong, { without: [1] }) },
  { name: "CudaNccl.abort", argument: "communicator", call: (wrong) => CudaNccl.abort(wrong) },
  { name: "CudaNccl.failure", argument: "communicator", call: (wrong) => CudaNccl.failure(wrong) },
  { name: "CudaNccl.guard", argument: "communicator", call: (wrong) => CudaNccl.guard(Effect.void, [wrong]) },
  {
    name: "CudaNccl.allReduce",
    argument: "communicator",
    call: (wrong, { device }) => CudaNccl.run(CudaNccl.allReduce(wrong, { from: device, type: "u8" }))
  }
]

/** Options that must be given. */
const requiredOptions: ReadonlyArray<Call> = [
  { name: "CudaPartition.make", argument: "options", call: (wrong) => CudaPartition.make(wrong) },
  { name: "CudaMemory.growable", argument: "options", call: (wrong) => CudaMemory.growable(wrong) },
  { name: "CudaInterprocess.fromTorch", argument: "storage", call: (wrong) => CudaInterprocess.fromTorch(wrong) }
]

const dependencies: ReadonlyArray<Call> = [
  { name: "CudaDependency.query", argument: "dependency", call: (wrong) => CudaDependency.query(wrong) },
  { name: "CudaDependency.synchronize", argument: "dependency", call: (wrong) => CudaDependency.synchronize(wrong) },
  {
    name: "CudaDependency.wait on a stream",
    argument: "dependency",
    call: (wrong, { stream }) => CudaDependency.wait(wrong, stream)
  },
  {
    name: "CudaDependency.wait on the current stream, data last",
    argument: "dependency",
    call: (wrong) => CudaDependency.wait()(wrong)
  },
  {
    name: "CudaDependency.wait, data last",
    argument: "dependency",
    call: (wrong, { stream }) => CudaDependency.wait(stream)(wrong)
  }
]

const graphs: ReadonlyArray<Call> = [
  {
    name: "CudaTaskGraph.run with options",
    argument: "graph",
    call: (wrong) => CudaTaskGraph.run(wrong as CudaTaskGraph.CudaTaskGraph<unknown>, {})
  },
  {
    name: "CudaTaskGraph.run, data last",
    argument: "graph",
    call: (wrong) => CudaTaskGraph.run()(wrong as CudaTaskGraph.CudaTaskGraph<unknown>)
  }
]

const modules: ReadonlyArray<Call> = [
  { name: "CudaModule.global", argument: "module", call: (wrong) => CudaModule.global(wrong, "counter") },
  { name: "CudaKernel.get", argument: "module", call: (wrong) => CudaKernel.get(wrong, "put", signatures.put) }
]

const kernels: ReadonlyArray<Call> = [
  { name: "CudaKernel.launch", argument: "kernel", call: (wrong) => CudaKernel.launch(wrong, one, []) },
  {
    name: "CudaKernel.launch on a stream",
    argument: "kernel",
    call: (wrong, { stream }) => CudaKernel.launch(wrong, one, [], stream)
  },
  { name: "CudaKernel.attribute", argument: "kernel", call: (wrong) => CudaKernel.attribute(wrong, "numRegs") },
  {
    name: "CudaKernel.setAttribute",
    argument: "kernel",
    call: (wrong) => CudaKernel.setAttribute(wrong, "maxDynamicSharedSizeBytes", 0)
  },
  {
    name: "CudaKernel.activeBlocks",
    argument: "kernel",
    call: (wrong) => CudaKernel.activeBlocks(wrong, { block: 1 })
  },
  { name: "CudaKernel.bestBlock", argument: "kernel", call: (wrong) => CudaKernel.bestBlock(wrong) },
  {
    name: "CudaKernel.activeClusters",
    argument: "kernel",
    call: (wrong) => CudaKernel.activeClusters(wrong, { ...one, cluster: 1 })
  },
  { name: "CudaKernel.maxClusterSize", argument: "kernel", call: (wrong) => CudaKernel.maxClusterSize(wrong, one) }
]

const buffers: ReadonlyArray<Call> = [
  { name: "CudaMemory.copy, destination", argument: "buffer", call: (wrong, { host }) => CudaMemory.copy(wrong, host) },
  {
    name: "CudaMemory.copy on a stream, destination",
    argument: "buffer",
    call: (wrong, { host, stream }) => CudaMemory.copy(wrong, host, stream)
  },
  {
    name: "CudaMemory.copy, a slice",
    argument: "buffer",
    call: (wrong, { host }) => CudaMemory.copy(CudaMemory.slice(wrong, 0, 64), host)
  },
  {
    name: "CudaMemory.copy on a stream, source",
    argument: "source",
    call: (wrong, { device, stream }) => CudaMemory.copy(device, { buffer: wrong, offset: 0, byteLength: 64 }, stream)
  },
  {
    name: "CudaMemory.copy2D, destination",
    argument: "buffer",
    call: (wrong, { host }) => CudaMemory.copy2D(wrong, host, size)
  },
  {
    name: "CudaMemory.copy2D, rows",
    argument: "buffer",
    call: (wrong, { host }) => CudaMemory.copy2D(CudaMemory.rows(wrong, 8), host, size)
  },
  {
    name: "CudaMemory.copy2D, source",
    argument: "source",
    call: (wrong, { host }) => CudaMemory.copy2D(host, wrong, size)
  },
  {
    name: "CudaMemory.copyBatch, destination",
    argument: "copies[0]",
    call: (wrong, { host }) => CudaMemory.copyBatch([{ destination: wrong, source: host }])
  },
  {
    name: "CudaMemory.copyBatch, source",
    argument: "copies[1]",
    call: (wrong, { device, host, other }) =>
      CudaMemory.copyBatch([{ destination: device, source: host }, { destination: other, source: wrong }])
  },
  {
    name: "CudaMemory.fill on a stream",
    argument: "buffer",
    call: (wrong, { stream }) => CudaMemory.fill(CudaMemory.slice(wrong, 0, 64), 1, stream)
  },
  { name: "CudaMemory.prefetch", argument: "buffer", call: (wrong) => CudaMemory.prefetch(wrong, "host") },
  { name: "CudaMemory.advise", argument: "buffer", call: (wrong) => CudaMemory.advise(wrong, { readMostly: true }) },
  {
    name: "CudaMemory.access, reads",
    argument: "reads[0]",
    call: (wrong) => CudaMemory.access(Effect.void, { reads: [wrong] })
  },
  {
    name: "CudaMemory.access, writes",
    argument: "writes[1]",
    call: (wrong, { device }) => CudaMemory.access(Effect.void, { writes: [device, wrong] })
  },
  {
    name: "CudaMemory.enqueue, reads",
    argument: "reads[0]",
    call: (wrong) => CudaMemory.enqueue({ reads: [wrong] }, () => {})
  },
  {
    name: "CudaMemory.enqueue, writes",
    argument: "writes[1]",
    call: (wrong, { device }) => CudaMemory.enqueue({ writes: [device, wrong] }, () => {})
  },
  { name: "CudaMemory.synchronize", argument: "buffer", call: (wrong) => CudaMemory.synchronize(wrong) },
  { name: "CudaMemory.upload", argument: "buffer", call: (wrong) => CudaMemory.upload(wrong, new Uint8Array(64)) },
  { name: "CudaMemory.download", argument: "buffer", call: (wrong) => CudaMemory.download(new Uint8Array(64), wrong) },
  {
    name: "CudaKernel.launch, an argument",
    argument: "arguments[0]",
    call: (wrong, { kernel }) => CudaKernel.launch(kernel, one, [wrong, 1])
  }
]

/** A handle of another kind in the place of a buffer; its reference reaches the runtime. */
const slicesOf: ReadonlyArray<Call> = [
  {
    name: "CudaMemory.copy",
    argument: "source",
    call: (wrong, { device, stream }) => CudaMemory.copy(device, { buffer: wrong, offset: 0, byteLength: 64 }, stream)
  },
  {
    name: "CudaKernel.launch",
    argument: "buffer",
    call: (wrong, { kernel }) => CudaKernel.launch(kernel, one, [{ buffer: wrong, offset: 0, byteLength: 64 }, 1])
  }
]

const devices: ReadonlyArray<Call> = [
  { name: "CudaDevice.get", argument: "device", call: (wrong) => CudaDevice.get(wrong) },
  { name: "CudaDevice.withDevice", argument: "device", call: (wrong) => CudaDevice.withDevice(Effect.void, wrong) },
  { name: "CudaDevice.memoryInfo", argument: "device", call: (wrong) => CudaDevice.memoryInfo(wrong) },
  { name: "CudaDevice.attribute", argument: "device", call: (wrong) => CudaDevice.attribute("warpSize", wrong) },
  { name: "CudaDevice.priorityRange", argument: "device", call: (wrong) => CudaDevice.priorityRange(wrong) },
  { name: "CudaDevice.canAccessPeer", argument: "device", call: (wrong) => CudaDevice.canAccessPeer(wrong, 0) },
  { name: "CudaDevice.canAccessPeer, peer", argument: "peer", call: (wrong) => CudaDevice.canAccessPeer(0, wrong) },
  { name: "CudaDevice.synchronize", argument: "device", call: (wrong) => CudaDevice.synchronize(wrong) },
  { name: "CudaStream.make", argument: "device", call: (wrong) => CudaStream.make({ device: wrong }) },
  { name: "CudaStream.fromPool", argument: "device", call: (wrong) => CudaStream.fromPool({ device: wrong }) },
  {
    name: "CudaStream.withPooledStream",
    argument: "device",
    call: (wrong) => CudaStream.withPooledStream(Effect.void, { device: wrong })
  },
  {
    name: "CudaStream.defaultStream",
    argument: "device",
    call: (wrong) => CudaStream.defaultStream({ device: wrong })
  },
  {
    name: "CudaStream.fromHandle",
    argument: "device",
    call: (wrong) => CudaStream.fromHandle(4096, { device: wrong })
  },
  { name: "CudaStream.current", argument: "device", call: (wrong) => CudaStream.current(wrong) },
  { name: "CudaEvent.make", argument: "device", call: (wrong) => CudaEvent.make({ device: wrong }) },
  {
    name: "CudaEvent.fromIpcHandle",
    argument: "device",
    call: (wrong) => CudaEvent.fromIpcHandle(new Uint8Array(64), { device: wrong })
  },
  { name: "CudaMemory.allocate", argument: "device", call: (wrong) => CudaMemory.allocate(64, { device: wrong }) },
  {
    name: "CudaMemory.allocateManaged",
    argument: "device",
    call: (wrong) => CudaMemory.allocateManaged(64, { device: wrong })
  },
  {
    name: "CudaMemory.prefetch",
    argument: "location",
    call: (wrong, { managed, stream }) => CudaMemory.prefetch(managed, wrong, stream)
  },
  {
    name: "CudaMemory.advise",
    argument: "location",
    call: (wrong, { managed }) => CudaMemory.advise(managed, { accessedBy: wrong })
  },
  { name: "CudaMemoryPool.make", argument: "device", call: (wrong) => CudaMemoryPool.make({ device: wrong }) },
  { name: "CudaMemoryPool.ofDevice", argument: "device", call: (wrong) => CudaMemoryPool.ofDevice(wrong) },
  {
    name: "CudaModule.global",
    argument: "device",
    call: (wrong, { module }) => CudaModule.global(module, "counter", { device: wrong })
  },
  {
    name: "CudaKernel.get",
    argument: "device",
    call: (wrong, { module }) => CudaKernel.get(module, "put", signatures.put, { device: wrong })
  },
  {
    name: "CudaKernel.attribute",
    argument: "device",
    call: (wrong, { kernel }) => CudaKernel.attribute(kernel, "numRegs", { device: wrong })
  },
  {
    name: "CudaKernel.bestBlock",
    argument: "device",
    call: (wrong, { kernel }) => CudaKernel.bestBlock(kernel, { device: wrong })
  },
  {
    name: "CudaProgram.compile",
    argument: "device",
    call: (wrong) => CudaProgram.compile("__global__ void f() {}", { device: wrong })
  },
  { name: "CudaBranch.all", argument: "device", call: (wrong) => CudaBranch.all([Effect.void], { device: wrong }) },
  {
    name: "CudaBranch.forEach",
    argument: "device",
    call: (wrong) => CudaBranch.forEach([1], () => Effect.void, { device: wrong })
  },
  { name: "CudaBranch.fork", argument: "device", call: (wrong) => CudaBranch.fork(Effect.void, { device: wrong }) },
  {
    name: "CudaPipeline.through",
    argument: "device",
    call: (wrong) =>
      Stream.runDrain(CudaPipeline.through(Stream.make(new Uint8Array(8)), {
        inputBytes: 8,
        fill: CudaPipeline.copyIn,
        work: () => Effect.void,
        take: CudaPipeline.copyOut,
        device: wrong
      }))
  }
]

/** Values that are not handles, and handles of every other kind. */
const wrongValues = (given: Given, ...right: ReadonlyArray<keyof Given>): ReadonlyArray<unknown> => {
  const kept = new Set<unknown>(right.map((key) => given[key]))
  return [...neither, ...Object.values(given).filter((handle) => !kept.has(handle))]
}

/** Where a graph or an executable graph is expected. */
const recordedGraphs: ReadonlyArray<Call> = [
  { name: "CudaGraph.instantiate", argument: "graph", call: (wrong) => CudaGraph.instantiate(wrong, { instances: 1 }) },
  { name: "CudaGraph.embed", argument: "graph", call: (wrong) => CudaGraph.embed(wrong) },
  { name: "CudaGraph.update", argument: "graph", call: (wrong, { exec }) => CudaGraph.update(exec, wrong) },
  {
    name: "CudaGraph.updateOrReplace",
    argument: "graph",
    call: (wrong, { exec }) => CudaGraph.updateOrReplace(exec, wrong)
  }
]

const executableGraphs: ReadonlyArray<Call> = [
  { name: "CudaGraph.launch", argument: "exec", call: (wrong) => CudaGraph.launch(wrong) },
  { name: "CudaGraph.upload", argument: "exec", call: (wrong) => CudaGraph.upload(wrong) },
  { name: "CudaGraph.setEnabled", argument: "exec", call: (wrong) => CudaGraph.setEnabled(wrong, 0, true) },
  { name: "CudaGraph.update", argument: "exec", call: (wrong, { recorded }) => CudaGraph.update(wrong, recorded) },
  {
    name: "CudaGraph.updateOrReplace",
    argument: "exec",
    call: (wrong, { recorded }) => CudaGraph.updateOrReplace(wrong, recorded)
  }
]

const valuesOfGraphs: ReadonlyArray<Call> = [
  { name: "CudaGraph.launch", argument: "values", call: (wrong, { exec }) => CudaGraph.launch(exec, wrong) },
  { name: "CudaGraph.embed", argument: "values", call: (wrong, { recorded }) => CudaGraph.embed(recorded, wrong) }
]

const tables: ReadonlyArray<{
  readonly what: string
  readonly calls: ReadonlyArray<Call>
  readonly wrong: (given: Given) => ReadonlyArray<unknown>
}> = [
  { what: "a stream", calls: streams, wrong: (given) => [undefined, ...wrongValues(given, "stream")] },
  { what: "an optional stream", calls: optionalStreams, wrong: (given) => wrongValues(given, "stream") },
  {
    what: "an event",
    calls: events,
    wrong: (given) => wrongValues(given, "event", "start", "end", "stream")
  },
  {
    what: "the event of a data-last form",
    calls: eventsLast,
    wrong: (given) => [undefined, ...wrongValues(given, "event", "start", "end")]
  },
  { what: "a graph", calls: recordedGraphs, wrong: (given) => [undefined, ...wrongValues(given, "recorded")] },
  {
    what: "an executable graph",
    calls: executableGraphs,
    wrong: (given) => [undefined, ...wrongValues(given, "exec")]
  },
  {
    what: "values or a stream of a graph",
    calls: valuesOfGraphs,
    // Any object may hold values, of which a graph without parameters needs none.
    wrong: ({ device, event, exec, host, module, pool }) => [...primitives, [], device, event, exec, host, module, pool]
  },
  { what: "a pool", calls: pools, wrong: (given) => [undefined, ...wrongValues(given, "pool")] },
  {
    what: "an optional pool",
    calls: [{
      name: "CudaMemory.allocate",
      argument: "pool",
      call: (wrong) => CudaMemory.allocate(64, { pool: wrong })
    }],
    wrong: (given) => wrongValues(given, "pool")
  },
  { what: "a partition", calls: partitions, wrong: (given) => [undefined, ...wrongValues(given, "partition")] },
  { what: "a partition, if any", calls: optionalPartitions, wrong: (given) => wrongValues(given, "partition") },
  { what: "a token", calls: tokens, wrong: (given) => [undefined, ...wrongValues(given)] },
  { what: "a communicator", calls: communicators, wrong: (given) => [undefined, ...wrongValues(given)] },
  { what: "required options", calls: requiredOptions, wrong: () => [undefined, ...primitives] },
  {
    what: "what is done with shared memory",
    calls: [{
      name: "CudaInterprocess.lend",
      argument: "use",
      call: (wrong, { device }) => CudaInterprocess.lend(device, wrong)
    }],
    wrong: (given) => [undefined, ...wrongValues(given)].filter((u) => typeof u !== "function")
  },
  {
    what: "the event of a shared storage",
    calls: [{
      name: "CudaInterprocess.fromTorch",
      argument: "event",
      call: (wrong) => CudaInterprocess.fromTorch({ handle: new Uint8Array(64), size: 8, offset: 0, event: wrong })
    }],
    wrong: (given) => wrongValues(given).filter((u) => typeof u !== "string")
  },
  {
    what: "a growable buffer",
    calls: [
      { name: "CudaMemory.grow", argument: "buffer", call: (wrong) => CudaMemory.grow(wrong, 64) },
      { name: "CudaMemory.shrink", argument: "buffer", call: (wrong) => CudaMemory.shrink(wrong, 0) }
    ],
    wrong: (given) => [undefined, ...wrongValues(given, "growable")]
  },
  {
    what: "memory that other processes can open",
    calls: [
      { name: "CudaInterprocess.share", argument: "buffer", call: (wrong) => CudaInterprocess.share(wrong) },
      {
        name: "CudaInterprocess.lend",
        argument: "buffer",
        call: (wrong) => CudaInterprocess.lend(wrong, () => Effect.void)
      }
    ],
    wrong: (given) => [undefined, ...wrongValues(given)].filter((u) => typeof u !== "function")
  },
  {
    what: "lists of devices",
    calls: [
      { name: "CudaMemoryPool.make", argument: "peers", call: (wrong) => CudaMemoryPool.make({ peers: wrong }) },
      { name: "CudaPlacement.pick", argument: "devices", call: (wrong) => CudaPlacement.pick({ devices: wrong }) },
      { name: "CudaPlacement.lease", argument: "devices", call: (wrong) => CudaPlacement.lease({ devices: wrong }) },
      {
        name: "CudaBranch.all",
        argument: "devices",
        call: (wrong) => CudaBranch.all([Effect.void], { devices: wrong })
      }
    ],
    wrong: (given) => wrongValues(given).filter((u) => !Array.isArray(u))
  },
  {
    what: "a dependency",
    calls: dependencies,
    wrong: (given) => [undefined, ...wrongValues(given, "dependency")]
  },
  {
    what: "the sources of a dependency",
    calls: [{ name: "CudaDependency.make", argument: "sources", call: (wrong) => CudaDependency.make(wrong) }],
    wrong: (given) => [
      undefined,
      ...wrongValues(given).filter((u) => !Predicate.isIterable(u))
    ]
  },
  {
    what: "a source of a dependency",
    calls: [{
      name: "CudaDependency.make",
      argument: "sources[1]",
      call: (wrong, { event }) => CudaDependency.make([event, wrong])
    }],
    wrong: (given) => [undefined, ...wrongValues(given, "stream", "event", "start", "end", "dependency")]
  },
  {
    what: "a branch",
    calls: [{ name: "CudaBranch.join", argument: "branch", call: (wrong) => CudaBranch.join(wrong) }],
    wrong: (given) => [undefined, ...wrongValues(given, "branch")]
  },
  { what: "a task graph", calls: graphs, wrong: (given) => [undefined, ...wrongValues(given, "graph")] },
  { what: "a module", calls: modules, wrong: (given) => [undefined, ...wrongValues(given, "module")] },
  { what: "a kernel", calls: kernels, wrong: (given) => [undefined, ...wrongValues(given, "kernel")] },
  {
    what: "a program",
    calls: [{ name: "CudaModule.load", argument: "program", call: (wrong) => CudaModule.load(wrong) }],
    wrong: (given) => [undefined, ...wrongValues(given)]
  },
  {
    what: "a buffer",
    calls: buffers,
    wrong: (given) =>
      [undefined, ...wrongValues(given, "device", "other", "host", "managed", "growable")].filter((u) =>
        typeof u !== "number"
      )
  },
  {
    what: "the buffer of a slice",
    calls: slicesOf,
    wrong: (given) => [given.stream, given.event, given.pool, given.module, given.kernel]
  },
  {
    what: "a device",
    calls: devices,
    wrong: (given) => [
      ...wrongValues(given, "of").filter((u) => u !== 0),
      99,
      0.5,
      "0",
      "length",
      "__proto__",
      { index: 7 },
      { index: "0" }
    ]
  },
  {
    what: "the handle of a stream",
    calls: [{ name: "CudaStream.fromHandle", argument: "handle", call: (wrong) => CudaStream.fromHandle(wrong) }],
    wrong: (given) => [undefined, ...wrongValues(given), 0.5, 2n ** 64n].filter((u) => u !== 0 && u !== 1 && u !== 10n)
  },
  {
    what: "the handle of an event of another process",
    calls: [{ name: "CudaEvent.fromIpcHandle", argument: "handle", call: (wrong) => CudaEvent.fromIpcHandle(wrong) }],
    wrong: (given) => [undefined, ...wrongValues(given), new Uint8Array(63)]
  },
  {
    what: "a launch",
    calls: [
      {
        name: "CudaKernel.launch",
        argument: "config",
        call: (wrong, { kernel }) => CudaKernel.launch(kernel, wrong, [null, 1] as Forced)
      },
      {
        name: "CudaKernel.maxClusterSize",
        argument: "config",
        call: (wrong, { kernel }) => CudaKernel.maxClusterSize(kernel, wrong)
      },
      {
        name: "CudaKernel.activeClusters",
        argument: "config",
        call: (wrong, { kernel }) => CudaKernel.activeClusters(kernel, wrong)
      }
    ],
    wrong: () => [undefined, ...primitives]
  },
  {
    what: "the arguments of a launch",
    calls: [{
      name: "CudaKernel.launch",
      argument: "arguments",
      call: (wrong, { kernel }) => CudaKernel.launch(kernel, one, wrong)
    }],
    wrong: (given) => [undefined, ...wrongValues(given)]
  },
  {
    what: "the parameters of a kernel",
    calls: [{
      name: "CudaKernel.get",
      argument: "parameters",
      call: (wrong, { module }) => CudaKernel.get(module, "put", wrong)
    }],
    wrong: (given) => [undefined, ...wrongValues(given), [null], [1], [{ kind: "no" }]]
  },
  {
    what: "the lists of buffers",
    calls: [
      { name: "CudaMemory.copyBatch", argument: "copies", call: (wrong) => CudaMemory.copyBatch(wrong) },
      {
        name: "CudaMemory.access",
        argument: "reads",
        call: (wrong) => CudaMemory.access(Effect.void, { reads: wrong })
      },
      {
        name: "CudaMemory.access",
        argument: "writes",
        call: (wrong) => CudaMemory.access(Effect.void, { writes: wrong })
      },
      {
        name: "CudaMemory.enqueue",
        argument: "writes",
        call: (wrong, { device }) => CudaMemory.enqueue({ reads: [device], writes: wrong }, () => {})
      }
    ],
    wrong: (given) => wrongValues(given).filter((u) => !Array.isArray(u))
  },
  {
    what: "memory",
    calls: [{ name: "CudaMemory.pin", argument: "memory", call: (wrong) => CudaMemory.pin(wrong) }],
    wrong: (given) => wrongValues(given)
  },
  {
    what: "the handle of an event",
    calls: [{ name: "CudaEvent.fromHandle", argument: "handle", call: (wrong) => CudaEvent.fromHandle(wrong) }],
    wrong: (given) => wrongValues(given).filter((u) => u !== 1 && u !== 10n)
  },
  {
    what: "an address",
    calls: [
      { name: "CudaMemory.fromAddress", argument: "address", call: (wrong) => CudaMemory.fromAddress(wrong, 8) },
      {
        name: "CudaMemory.pointerAttributes",
        argument: "address",
        call: (wrong) => CudaMemory.pointerAttributes(wrong)
      }
    ],
    wrong: (given) => wrongValues(given).filter((u) => u !== 1 && u !== 10n)
  },
  {
    what: "a call",
    calls: [{
      name: "CudaMemory.enqueue",
      argument: "call",
      call: (wrong, { stream }) => CudaMemory.enqueue({ stream, simulate: () => {} }, wrong)
    }],
    wrong: (given) => wrongValues(given).filter((u) => typeof u !== "function")
  },
  {
    what: "options of a call",
    calls: [{
      name: "CudaMemory.enqueue",
      argument: "options",
      call: (wrong) => CudaMemory.enqueue(wrong, () => {})
    }],
    wrong: () => primitives
  },
  {
    what: "advice",
    calls: [{
      name: "CudaMemory.advise",
      argument: "advice",
      call: (wrong, { managed }) => CudaMemory.advise(managed, wrong)
    }],
    wrong: () => [undefined, ...primitives]
  },
  {
    what: "the effect of a host function",
    calls: [{
      name: "CudaStream.launchHostFunction",
      argument: "effect",
      call: (wrong, { stream }) => CudaStream.launchHostFunction(stream, wrong)
    }],
    wrong: (given) => [undefined, ...wrongValues(given)]
  },
  {
    what: "swapped arguments",
    calls: [
      {
        name: "CudaMemory.copy(stream, to, from)",
        argument: "buffer",
        call: (_, { device, host, stream }) => CudaMemory.copy(stream as Forced, device, host as Forced)
      },
      {
        name: "CudaMemory.copy(to, stream, from)",
        argument: "source",
        call: (_, { device, host, stream }) => CudaMemory.copy(device, stream as Forced, host as Forced)
      },
      {
        name: "CudaMemory.copy(to, null)",
        argument: "source",
        call: (_, { device }) => CudaMemory.copy(device, null as Forced)
      },
      {
        name: "CudaMemory.fill(stream, 1)",
        argument: "buffer",
        call: (_, { stream }) => CudaMemory.fill(stream as Forced, 1)
      },
      {
        name: "CudaMemory.fill(1, buffer)",
        argument: "buffer",
        call: (_, { device }) => CudaMemory.fill(1, device as Forced) as Forced
      },
      {
        name: "CudaMemory.upload(array, buffer)",
        argument: "buffer",
        call: (_, { device }) => CudaMemory.upload(new Uint8Array(64), device as Forced) as Forced
      },
      {
        name: "CudaMemory.download(buffer, array)",
        argument: "buffer",
        call: (_, { device }) => CudaMemory.download(device, new Uint8Array(64) as Forced) as Forced
      },
      {
        name: "CudaStream.waitEvent(event, stream)",
        argument: "stream",
        call: (_, { event, stream }) => CudaStream.waitEvent(event as Forced, stream as Forced)
      },
      {
        name: "CudaEvent.record(stream, event)",
        argument: "event",
        call: (_, { event, stream }) => CudaEvent.record(stream as Forced, event as Forced)
      },
      {
        name: "CudaStream.withStream(stream, effect)",
        argument: "stream",
        call: (_, { stream }) => CudaStream.withStream(stream as Forced, Effect.void as Forced)
      }
    ],
    wrong: () => ["swapped"]
  }
]

const simulated = Layer.suspend(() =>
  SimulatedRuntime.layer({
    devices: 1,
    kernels: simulatedKernels,
    globals: { counter: Uint8Array.of(5, 0, 0, 0) }
  })
)
const native = Layer.suspend(() => {
  stub.reset()
  return stubLayer(stub)
})

/** A layer around the runtime, which describes the arguments of operations in its failures. */
const observed = FaultInjection.layer

describe.each([["the driver", native], ["a simulated device", simulated]] as const)("on %s", (name, runtime) => {
  const withGiven = <A, E>(body: (given: Given) => Effect.Effect<A, E, Runtime | Scope.Scope>) =>
    Effect.flatMap(makeGiven, body).pipe(
      Effect.scoped,
      Effect.provide(runtime),
      Effect.tap(() => name === "the driver" ? Effect.sync(() => assertReleased(stub)) : Effect.void)
    )

  for (const { calls, what, wrong: wrongOf } of tables) {
    describe(what, () => {
      it.live.each(calls)("$name refuses what is not one", (call) =>
        withGiven((given) =>
          Effect.gen(function*() {
            for (const wrong of wrongOf(given)) {
              stub.clear()
              const effect = call.call(wrong as Forced, given)
              const subject = `given ${inspect(wrong)}`
              assert.isTrue(Effect.isEffect(effect), subject)
              yield* Effect.onError(
                refuses(Effect.scoped(effect), call.argument),
                () => Effect.logError(subject)
              )
              assert.deepStrictEqual(stub.lines(), [], subject)
            }
          })
        ))
    })
  }

  it.live("a region of a value that is not a stream does not use the default stream", () =>
    withGiven((given) =>
      Effect.gen(function*() {
        for (const wrong of wrongValues(given, "stream")) {
          const region = CudaStream.withStream(CudaMemory.fill(given.device, 1), wrong as Forced)
          yield* refuses(region, "stream")
        }
      })
    ))

  it.live("a region of another stream does not hide what is wrong", () =>
    withGiven((given) =>
      Effect.gen(function*() {
        yield* refuses(CudaMemory.fill(null as Forced, 1), "buffer")
        yield* refuses(CudaEvent.record(1 as Forced), "event")
        yield* refuses(CudaKernel.launch(null as Forced, one, []), "kernel")
      }).pipe(CudaStream.withStream(given.stream))
    ))

  it.live("an argument that fits neither form of an operation is refused by both", () =>
    withGiven(({ dependency, event }) =>
      Effect.gen(function*() {
        for (const wrong of neither) {
          yield* refuses(CudaEvent.record(wrong as Forced), "event")
          yield* refuses(event.pipe(CudaEvent.record(wrong as CudaStream.CudaStream)), "event")
          yield* refuses(event.pipe(CudaEvent.wait(wrong as CudaStream.CudaStream)), "event")
          yield* refuses(CudaDependency.wait(wrong as Forced), "dependency")
          yield* refuses(dependency.pipe(CudaDependency.wait(wrong as CudaStream.CudaStream)), "dependency")
        }
        for (const wrong of [...primitives, event, dependency]) {
          yield* refuses(CudaTaskGraph.run(wrong as CudaTaskGraph.CudaTaskGraph<unknown>), "graph")
        }
      })
    ))

  it.live("view throws the failure, because it does not return an effect", () =>
    withGiven((given) =>
      Effect.sync(() => {
        for (const wrong of [undefined, ...wrongValues(given, "host", "managed")]) {
          assert.throws(
            () => CudaMemory.view(wrong as CudaMemory.HostBuffer, Uint8Array),
            CudaError.CudaError,
            /^CudaMemory.view: buffer is .*; expected pinned or managed memory/
          )
        }
      })
    ))

  it.live("a layer around the runtime can describe any arguments", () =>
    withGiven(() =>
      Effect.gen(function*() {
        const faults = yield* FaultInjection.FaultInjection
        const runtime = yield* CudaRuntime.CudaRuntime
        yield* faults.failNext("CudaStream.query", "InvalidValue", Infinity)
        yield* faults.failNext("CudaMemory.copy", "InvalidValue", Infinity)
        for (const wrong of [undefined, ...neither]) {
          yield* failsWith(runtime.streamQuery(wrong as Forced), "InvalidValue")
          yield* failsWith(runtime.memoryCopy(wrong as Forced, wrong as Forced, wrong as Forced), "InvalidValue")
        }
      }).pipe(Effect.provide(observed))
    ))
})
