/**
 * The table of all operations of the runtime service: an operation's name in programs, the driver call behind it, and
 * the subject of its failures. Layers around a runtime are made from this table. A member of the service without a row
 * does not compile.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { invalidArgument } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, LiveResources } from "../CudaRuntime.ts"
import type { MemoryRef } from "./memory.ts"
import type { PartitionRef } from "./partitions.ts"
import { inBytes } from "./words.ts"

/** The device that an operation concerns, and the subject on it. */
type About = readonly [deviceIndex: number, subject: unknown]

type AnyOperation = (...args: ReadonlyArray<never>) => Effect.Effect<unknown, CudaError>

/**
 * A member of the runtime service that is an operation, such as `eventRecord`.
 *
 * @category operations
 * @since 0.1.0
 */
export type OperationMember = {
  [M in keyof CudaRuntimeService]: CudaRuntimeService[M] extends AnyOperation ? M : never
}[keyof CudaRuntimeService]

const deviceOf = (memory: MemoryRef): number => memory.kind === "device" ? memory.deviceIndex : 0

const onDevice = (deviceIndex: number): About => [deviceIndex, `device ${deviceIndex}`]

/** The device of a place: an index, or a partition. */
const indexOf = (place: number | PartitionRef): number => typeof place === "number" ? place : place.deviceIndex

const rows = {
  deviceAttribute: ["CudaDevice.attribute", "cuDeviceGetAttribute", (device, name) => [device, name], "contextFree"],
  deviceMemoryInfo: ["CudaDevice.memoryInfo", "cuMemGetInfo", onDevice],
  devicePriorityRange: ["CudaDevice.priorityRange", "cuCtxGetStreamPriorityRange", onDevice, "contextFree"],
  deviceCanAccessPeer: [
    "CudaDevice.canAccessPeer",
    "cuDeviceCanAccessPeer",
    (device, peer) => [device, `devices ${device} and ${peer}`],
    "contextFree"
  ],
  devicePeerAttribute: [
    "CudaDevice.peerAttribute",
    "cuDeviceGetP2PAttribute",
    (device, peer, name) => [device, `${name} of devices ${device} and ${peer}`],
    "contextFree"
  ],
  deviceEnablePeer: [
    "CudaDevice.enablePeerAccess",
    "cuCtxEnablePeerAccess",
    (device, peer) => [device, `devices ${device} and ${peer}`]
  ],
  deviceDisablePeer: [
    "CudaDevice.disablePeerAccess",
    "cuCtxDisablePeerAccess",
    (device, peer) => [device, `devices ${device} and ${peer}`]
  ],
  deviceUsage: ["CudaDevice.usage", "cuStreamQuery", onDevice],
  deviceSynchronize: ["CudaDevice.synchronize", "cuStreamQuery", onDevice],

  streamCreate: ["CudaStream.make", "cuStreamCreateWithPriority", ({ deviceIndex }) => onDevice(deviceIndex)],
  streamDefault: ["CudaStream.defaultStream", "cuStreamGetId", onDevice],
  streamFromHandle: [
    "CudaStream.fromHandle",
    "cuStreamGetId",
    (device, handle) => [device, `handle 0x${handle.toString(16)}`]
  ],
  streamDestroy: ["CudaStream.release", "cuStreamDestroy", (stream) => [stream.deviceIndex, stream], "release"],
  streamQuery: ["CudaStream.query", "cuStreamQuery", (stream) => [stream.deviceIndex, stream]],
  streamSynchronize: ["CudaStream.synchronize", "cuStreamQuery", (stream) => [stream.deviceIndex, stream]],
  streamWaitEvent: ["CudaStream.waitEvent", "cuStreamWaitEvent", (stream) => [stream.deviceIndex, stream]],
  streamWaitStream: ["CudaStream.waitStream", "cuStreamWaitEvent", (stream) => [stream.deviceIndex, stream]],
  streamFork: ["CudaBranch.fork", "cuStreamWaitEvent", (from) => [from.deviceIndex, from]],
  streamJoin: ["CudaBranch.join", "cuStreamWaitEvent", (into) => [into.deviceIndex, into]],

  partitionCreate: ["CudaPartition.make", "cuGreenCtxCreate", onDevice],
  partitionDestroy: [
    "CudaPartition.release",
    "cuGreenCtxDestroy",
    (partition) => [partition.deviceIndex, partition],
    "release"
  ],

  eventCreate: ["CudaEvent.make", "cuEventCreate", onDevice],
  eventDestroy: ["CudaEvent.release", "cuEventDestroy", (event) => [event.deviceIndex, event], "release"],
  eventRecord: ["CudaEvent.record", "cuEventRecord", (event) => [event.deviceIndex, event]],
  eventQuery: ["CudaEvent.query", "cuEventQuery", (event) => [event.deviceIndex, event]],
  eventSynchronize: ["CudaEvent.synchronize", "cuEventQuery", (event) => [event.deviceIndex, event]],
  eventElapsedTime: ["CudaEvent.elapsedTime", "cuEventElapsedTime", (_, end) => [end.deviceIndex, end]],
  eventIpcHandle: ["CudaEvent.ipcHandle", "cuIpcGetEventHandle", (event) => [event.deviceIndex, event]],
  eventFromIpcHandle: ["CudaEvent.fromIpcHandle", "cuIpcOpenEventHandle", onDevice],
  eventFromHandle: [
    "CudaEvent.fromHandle",
    "cuEventQuery",
    (device, handle) => [device, `handle 0x${handle.toString(16)}`]
  ],

  memoryAllocate: [
    "CudaMemory.allocate",
    "cuMemAllocFromPoolAsync",
    (device, bytes) => [device, `${inBytes(bytes)} on device ${device}`]
  ],
  managedAllocate: [
    "CudaMemory.allocateManaged",
    "cuMemAllocManaged",
    (device, bytes) => [device, `${inBytes(bytes)} of managed memory of device ${device}`]
  ],
  memoryReserve: [
    "CudaMemory.growable",
    "cuMemAddressReserve",
    (device, bytes) => [device, `${inBytes(bytes)} of addresses on device ${device}`]
  ],
  memoryGrow: ["CudaMemory.grow", "cuMemCreate", (memory) => [deviceOf(memory), memory]],
  memoryShrink: ["CudaMemory.shrink", "cuMemUnmap", (memory) => [deviceOf(memory), memory]],
  hostAllocate: ["CudaMemory.allocateHost", "cuMemHostRegister", (bytes) => [0, inBytes(bytes)]],
  hostPin: ["CudaMemory.pin", "cuMemHostRegister", ({ byteLength }) => [0, inBytes(byteLength)]],
  memoryFromAddress: [
    "CudaMemory.fromAddress",
    "cuPointerGetAttributes",
    (device, address) => [device, `address 0x${address.toString(16)}`]
  ],
  memoryAttributes: [
    "CudaMemory.pointerAttributes",
    "cuPointerGetAttributes",
    (device, address) => [device, `address 0x${address.toString(16)}`]
  ],
  memoryReclaim: ["CudaMemory.reclaim", "cuMemPoolTrimTo", onDevice],
  memoryFree: ["CudaMemory.release", "cuMemFreeAsync", (memory) => [deviceOf(memory), memory], "release"],
  memoryCopy: ["CudaMemory.copy", "cuMemcpyAsync", (_, __, stream) => [stream.deviceIndex, stream]],
  memoryCopy2D: ["CudaMemory.copy2D", "cuMemcpy2DAsync", (_, __, ___, stream) => [stream.deviceIndex, stream]],
  memoryCopyBatch: ["CudaMemory.copyBatch", "cuMemcpyBatchAsync", (_, stream) => [stream.deviceIndex, stream]],
  memoryFill: ["CudaMemory.fill", "cuMemsetD8Async", (_, __, ___, stream) => [stream.deviceIndex, stream]],
  memoryPrefetch: [
    "CudaMemory.prefetch",
    "cuMemPrefetchAsync",
    ({ memory }, _, stream) => [stream.deviceIndex, memory]
  ],
  memoryAdvise: ["CudaMemory.advise", "cuMemAdvise", ({ memory }) => [deviceOf(memory), memory]],
  memoryBegin: ["CudaMemory.access", "cuStreamWaitEvent", ({ stream }) => [stream.deviceIndex, stream]],
  memoryEnd: ["CudaMemory.endAccess", "cuEventRecord", ({ stream }) => [stream.deviceIndex, stream], "release"],
  memoryEnqueue: ["CudaMemory.enqueue", "cuStreamWaitEvent", (_, __, stream) => [stream.deviceIndex, stream]],
  memoryEnqueueAll: [
    "CudaMemory.enqueueAll",
    "cuStreamWaitEvent",
    ([first]) => [first!.stream.deviceIndex, first!.stream]
  ],
  memorySynchronize: ["CudaMemory.synchronize", "cuEventQuery", ({ memory }) => [deviceOf(memory), memory]],

  poolCreate: ["CudaMemoryPool.make", "cuMemPoolCreate", (device) => [device, `a pool of device ${device}`]],
  poolOfDevice: ["CudaMemoryPool.ofDevice", "cuMemPoolCreate", onDevice],
  poolDestroy: ["CudaMemoryPool.release", "cuMemPoolDestroy", (pool) => [pool.deviceIndex, pool], "release"],
  poolStatistics: ["CudaMemoryPool.statistics", "cuMemPoolGetAttribute", (pool) => [pool.deviceIndex, pool]],
  poolResetHighWater: ["CudaMemoryPool.resetHighWater", "cuMemPoolSetAttribute", (pool) => [pool.deviceIndex, pool]],
  poolSetReleaseThreshold: [
    "CudaMemoryPool.setReleaseThreshold",
    "cuMemPoolSetAttribute",
    (pool) => [pool.deviceIndex, pool]
  ],
  poolAllowAccess: ["CudaMemoryPool.allowAccess", "cuMemPoolSetAccess", (pool) => [pool.deviceIndex, pool]],
  poolDenyAccess: ["CudaMemoryPool.denyAccess", "cuMemPoolSetAccess", (pool) => [pool.deviceIndex, pool]],
  poolTrim: ["CudaMemoryPool.trim", "cuMemPoolTrimTo", (pool) => [pool.deviceIndex, pool]],

  poolShare: [
    "CudaInterprocess.sharePool",
    "cuMemPoolExportToShareableHandle",
    (pool) => [pool.deviceIndex, pool],
    "contextFree"
  ],
  poolOpen: [
    "CudaInterprocess.openPool",
    "cuMemPoolImportFromShareableHandle",
    (device, descriptor) => [device, `descriptor ${descriptor}`]
  ],
  descriptorTake: [
    "CudaInterprocess.takeDescriptor",
    "pidfd_getfd",
    (pid, descriptor) => [0, `descriptor ${descriptor} of process ${pid}`],
    "contextFree"
  ],
  descriptorClose: [
    "CudaInterprocess.closeDescriptor",
    "close",
    (descriptor) => [0, `descriptor ${descriptor}`],
    "release"
  ],
  memoryAllocateShareable: [
    "CudaInterprocess.allocate",
    "cuMemAlloc",
    (device, bytes) => [device, `${inBytes(bytes)} on device ${device}`]
  ],
  memoryShare: ["CudaInterprocess.share", "cuMemPoolExportPointer", ({ memory }) => [deviceOf(memory), memory]],
  memoryOpen: [
    "CudaInterprocess.open",
    "cuMemPoolImportPointer",
    (device, { byteLength }) => [device, `${inBytes(byteLength)} of another process`]
  ],

  libraryCall: ["CudaLibrary.call", "cuStreamWaitEvent", (_, __, ___, stream) => [stream.deviceIndex, stream]],
  libraryRun: ["CudaLibrary.call", "cuCtxPushCurrent", (_, name, __, place) => [
    typeof place === "number" ? place : place.deviceIndex,
    name
  ]],
  libraryTurn: ["CudaLibrary.turn", "cuCtxPushCurrent", ({ definition }, _, device) => [device, definition.name]],
  libraryHandle: ["CudaLibrary.handle", "cuCtxPushCurrent", ({ definition }, _, device) => [device, definition.name]],
  libraryAdopt: [
    "CudaLibrary.fromHandle",
    "cuCtxPushCurrent",
    ({ definition }, _, device) => [device, definition.name]
  ],
  libraryDestroy: ["CudaLibrary.release", "cuCtxPushCurrent", (handle) => [handle.deviceIndex, handle], "release"],
  libraryFunction: ["CudaLibrary.native", "dlsym", (_, name) => [0, name], "contextFree"],
  libraryLoad: ["CudaLibrary.load", "dlopen", ({ name }) => [0, name], "contextFree"],

  profilerStart: ["CudaProfiler.capture", "cuProfilerStart", onDevice],
  profilerStop: ["CudaProfiler.endCapture", "cuProfilerStop", onDevice, "release"],

  moduleLoad: ["CudaModule.load", "cuLibraryLoadData", (image) => [0, `an image of ${inBytes(image.byteLength)}`]],
  moduleUnload: ["CudaModule.release", "cuLibraryUnload", (module) => [0, module], "release"],
  moduleGlobal: ["CudaModule.global", "cuLibraryGetGlobal", (_, name, device) => [device, `variable ${name}`]],
  kernelGet: ["CudaKernel.get", "cuLibraryGetKernel", (_, name, __, device) => [device, `kernel ${name}`]],
  kernelAttribute: ["CudaKernel.attribute", "cuKernelGetAttribute", (_, name, device) => [device, name]],
  kernelSetAttribute: ["CudaKernel.setAttribute", "cuKernelSetAttribute", (_, name, __, device) => [device, name]],
  kernelActiveBlocks: [
    "CudaKernel.occupancy",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    (kernel, _, __, device) => [device, kernel.name]
  ],
  kernelBestBlock: [
    "CudaKernel.occupancy",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    (kernel, _, __, place) => [indexOf(place), kernel.name]
  ],
  kernelActiveClusters: [
    "CudaKernel.occupancy",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    (kernel, _, place) => [indexOf(place), kernel.name]
  ],
  kernelMaxCluster: [
    "CudaKernel.occupancy",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    (kernel, _, device) => [device, kernel.name]
  ],
  kernelLaunch: ["CudaKernel.launch", "cuLaunchKernelEx", (_, __, ___, stream) => [stream.deviceIndex, stream]],

  graphRecord: ["CudaGraph.record", "cuGraphCreate", ({ deviceIndex }) => onDevice(deviceIndex)],
  graphStream: ["CudaStream.make", "cuStreamCreateWithPriority", (_, { deviceIndex }) => onDevice(deviceIndex)],
  graphAllocate: [
    "CudaMemory.allocate",
    "cuMemAllocFromPoolAsync",
    (_, device, bytes) => [device, `${inBytes(bytes)} of a graph`]
  ],
  graphEmbed: ["CudaGraph.embed", "cuGraphAddChildGraphNode", (graph) => [graph.deviceIndex, graph]],
  graphPrepareConditions: ["CudaGraph.condition", "cuGraphConditionalHandleCreate", onDevice],
  graphBody: ["CudaGraph.condition", "cuGraphConditionalHandleCreate", (stream) => [stream.deviceIndex, stream]],
  graphCondition: [
    "CudaGraph.condition",
    "cuGraphConditionalHandleCreate",
    (_, __, ___, stream) => [stream.deviceIndex, stream]
  ],
  graphCapture: ["CudaGraph.capture", "cuStreamBeginCapture", (_, stream) => [stream.deviceIndex, stream]],
  graphEndCapture: ["CudaGraph.endCapture", "cuStreamEndCapture", ({ stream }) => [stream.deviceIndex, stream]],
  graphAbandonCapture: [
    "CudaGraph.endCapture",
    "cuStreamEndCapture",
    ({ stream }) => [stream.deviceIndex, stream],
    "release"
  ],
  graphMark: ["CudaTiming.region", "cuGraphAddEventRecordNode", (_, __, stream) => [stream.deviceIndex, stream]],
  graphEnd: ["CudaGraph.record", "cuGraphCreate", ({ deviceIndex }) => [deviceIndex, "a recording"]],
  graphAbandon: ["CudaGraph.record", "cuGraphCreate", ({ deviceIndex }) => [deviceIndex, "a recording"], "release"],
  graphInstantiate: ["CudaGraph.instantiate", "cuGraphInstantiateWithParams", (graph) => [graph.deviceIndex, graph]],
  graphDestroy: ["CudaGraph.release", "cuGraphExecDestroy", (exec) => [exec.deviceIndex, exec], "release"],
  graphUpload: ["CudaGraph.upload", "cuGraphUpload", (_, stream) => [stream.deviceIndex, stream]],
  graphLaunch: ["CudaGraph.launch", "cuGraphLaunch", (_, __, stream) => [stream.deviceIndex, stream]],
  graphMeasure: ["CudaGraph.launch", "cuGraphLaunch", (_, __, ___, stream) => [stream.deviceIndex, stream]],
  graphUpdate: ["CudaGraph.update", "cuGraphExecUpdate", (exec) => [exec.deviceIndex, exec]],
  graphReplace: ["CudaGraph.updateOrReplace", "cuGraphInstantiateWithParams", (exec) => [exec.deviceIndex, exec]],
  graphSetEnabled: ["CudaGraph.setEnabled", "cuGraphNodeSetEnabled", (exec) => [exec.deviceIndex, exec]],

  programCompile: [
    "CudaProgram.compile",
    "nvrtcCompileProgram",
    ({ deviceIndex, name }) => [deviceIndex, name],
    "contextFree"
  ]
} as const satisfies {
  readonly [M in OperationMember]: readonly [
    name: string,
    call: string,
    about: (...args: Parameters<CudaRuntimeService[M]>) => About,
    kind?: Operation["kind"]
  ]
}

/**
 * The name of an operation in programs and failures, such as `CudaEvent.record`.
 *
 * @category operations
 * @since 0.1.0
 */
export type OperationName = (typeof rows)[OperationMember][0]

/**
 * An operation of the runtime service.
 *
 * @category operations
 * @since 0.1.0
 */
export interface Operation {
  readonly member: OperationMember
  /**
   * The name in programs and failures. Several members may share one, such as the four behind `CudaKernel.occupancy`.
   */
  readonly name: OperationName
  /** The driver call behind the operation; the main one if there are several. */
  readonly call: string
  /**
   * `release` operations release or end something: a layer must pass them on to the runtime to prevent leaks.
   * `contextFree` operations need no context, and also work after a fault.
   */
  readonly kind: "ordinary" | "contextFree" | "release"
  /** The index of the device that a call with these arguments concerns; 0 if it concerns none. */
  readonly deviceOf: (args: ReadonlyArray<unknown>) => number
  /** The subject of a call with these arguments, in words. */
  readonly describe: (args: ReadonlyArray<unknown>) => string
}

/**
 * An operation as a function, with any arguments and result.
 *
 * @category operations
 * @since 0.1.0
 */
export type OperationCall = (...args: ReadonlyArray<unknown>) => Effect.Effect<unknown, CudaError>

const operationOf = (member: OperationMember): Operation => {
  const [name, call, , kind = "ordinary"]: readonly [OperationName, string, unknown, Operation["kind"]?] = rows[member]
  const about = rows[member][2] as (...args: ReadonlyArray<unknown>) => About
  // Untyped callers can pass anything.
  const read = <A>(reading: () => A, otherwise: A): A => {
    try {
      return reading()
    } catch {
      return otherwise
    }
  }
  return {
    member,
    name,
    call,
    kind,
    deviceOf: (args) => read(() => about(...args)[0], undefined) ?? 0,
    describe: (args) => read(() => String(about(...args)[1]), "arguments of the wrong kind")
  }
}

/**
 * All operations of the runtime service, by member.
 *
 * **Example** (The driver call behind an operation)
 *
 * ```ts
 * import { CudaRuntime } from "effect-cuda"
 *
 * const { call } = CudaRuntime.operations.eventRecord
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const operations: { readonly [M in OperationMember]: Operation } = Object.fromEntries(
  Object.keys(rows).map((member) => [member, operationOf(member as OperationMember)])
) as { readonly [M in OperationMember]: Operation }

/**
 * Wraps the operations of a runtime. `wrap` is called once per operation, and returns the function that programs call
 * instead. Returning the original function leaves an operation unchanged, at no cost.
 *
 * **Details**
 *
 * The result has the identity of the inner runtime, so handles, regions and pooled streams of both work together. A
 * layer sees everything that a program does, because modules have no other access to a device.
 *
 * **Example** (A layer that logs, and one that counts)
 *
 * ```ts
 * import { CudaRuntime, NativeRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const logging = Layer.effect(
 *   CudaRuntime.CudaRuntime,
 *   Effect.map(CudaRuntime.CudaRuntime, (runtime) =>
 *     CudaRuntime.around(runtime, (operation, call) => (...args) =>
 *       Effect.tap(call(...args), () => Effect.logDebug(`${operation.name}: ${operation.describe(args)}`))))
 * )
 *
 * const counts = new Map<CudaRuntime.OperationName, number>()
 * const counting = Layer.effect(
 *   CudaRuntime.CudaRuntime,
 *   Effect.map(CudaRuntime.CudaRuntime, (runtime) =>
 *     CudaRuntime.around(runtime, ({ name }, call) => (...args) =>
 *       Effect.suspend(() => {
 *         counts.set(name, (counts.get(name) ?? 0) + 1)
 *         return call(...args)
 *       })))
 * )
 *
 * const observed = logging.pipe(Layer.provide(counting), Layer.provide(NativeRuntime.layer()))
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const around = (
  runtime: CudaRuntimeService,
  wrap: (operation: Operation, call: OperationCall) => OperationCall
): CudaRuntimeService => ({
  ...runtime,
  ...Object.fromEntries(
    Object.values(operations).map((operation) => [
      operation.member,
      wrap(operation, runtime[operation.member] as OperationCall)
    ])
  )
})

/**
 * A value of the wrong kind that was passed as a handle.
 *
 * @internal
 */
export class WrongHandle {
  readonly argument: string
  readonly given: unknown
  readonly expected: string
  constructor(argument: string, given: unknown, expected: string) {
    this.argument = argument
    this.given = given
    this.expected = expected
  }
  /** The failure of an operation that received this value. */
  refuse(operation: string): Effect.Effect<never, CudaError> {
    return Effect.fail(invalidArgument(operation, this.argument, this.given, this.expected))
  }
}

/**
 * Makes a runtime that refuses every operation, as a stand-in for the runtime of a value that is not a handle. Its
 * identity is that value, as a `WrongHandle`.
 *
 * @internal
 */
export const refusing = (wrong: WrongHandle): CudaRuntimeService => {
  const members = Object.fromEntries(
    Object.values(operations).map(({ member, name }) => [member, () => wrong.refuse(name)])
  ) as { readonly [M in OperationMember]: () => Effect.Effect<never, CudaError> }
  return {
    ...members,
    kind: "simulated",
    identity: wrong,
    recording: undefined,
    hostAccess: undefined,
    watchArray: undefined,
    driverVersion: 0,
    devices: [],
    liveResources: Effect.succeed(nothingLive)
  }
}

const nothingLive: LiveResources = {
  streams: 0,
  events: 0,
  deviceBuffers: 0,
  deviceBytes: 0,
  hostBuffers: 0,
  hostBytes: 0,
  modules: 0,
  graphs: 0,
  pools: 0,
  partitions: 0,
  handles: 0,
  waits: 0
}
