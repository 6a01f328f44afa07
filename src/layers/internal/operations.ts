/**
 * Every operation of the service: what programs call it, the driver's call behind it, and what a failure of it concerns. The one table
 * from which layers around a runtime are made; a member of the service without a row does not compile.
 */
import type { Effect } from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, MemoryRef } from "../CudaRuntime.ts"

/** What a failure of an operation concerns. */
type About = readonly [device: number, subject: unknown]

type AnyOperation = (...args: ReadonlyArray<never>) => Effect<unknown, CudaError>

/** The members of the service that are operations. `memoryEnd` never fails by itself: it ends what `memoryBegin` began. */
export type OperationMember = Exclude<
  { [M in keyof CudaRuntimeService]: CudaRuntimeService[M] extends AnyOperation ? M : never }[keyof CudaRuntimeService],
  "memoryEnd"
>

const deviceOf = (memory: MemoryRef): number => memory.kind === "device" ? memory.device : 0

const onDevice = (device: number): About => [device, `device ${device}`]

export const operations = {
  deviceAttribute: ["CudaDevice.attribute", "cuDeviceGetAttribute", (device, name) => [device, name]],
  deviceMemoryInfo: ["CudaDevice.memoryInfo", "cuMemGetInfo", onDevice],
  devicePriorityRange: ["CudaDevice.priorityRange", "cuCtxGetStreamPriorityRange", onDevice],
  deviceCanAccessPeer: [
    "CudaDevice.canAccessPeer",
    "cuDeviceCanAccessPeer",
    (device, peer) => [device, `devices ${device} and ${peer}`]
  ],
  deviceSynchronize: ["CudaDevice.synchronize", "cuStreamQuery", onDevice],

  streamCreate: ["CudaStream.make", "cuStreamCreateWithPriority", ({ device }) => onDevice(device)],
  streamDefault: ["CudaStream.defaultStream", "cuStreamGetId", onDevice],
  streamFromHandle: [
    "CudaStream.fromHandle",
    "cuStreamGetId",
    (device, handle) => [device, `handle 0x${handle.toString(16)}`]
  ],
  streamDestroy: ["CudaStream.release", "cuStreamDestroy", (stream) => [stream.device, stream]],
  streamQuery: ["CudaStream.query", "cuStreamQuery", (stream) => [stream.device, stream]],
  streamSynchronize: ["CudaStream.synchronize", "cuStreamQuery", (stream) => [stream.device, stream]],
  streamWaitEvent: ["CudaStream.waitEvent", "cuStreamWaitEvent", (stream) => [stream.device, stream]],
  streamWaitStream: ["CudaStream.waitStream", "cuStreamWaitEvent", (stream) => [stream.device, stream]],
  streamFork: ["CudaBranch.fork", "cuStreamWaitEvent", (from) => [from.device, from]],
  streamJoin: ["CudaBranch.join", "cuStreamWaitEvent", (into) => [into.device, into]],

  eventCreate: ["CudaEvent.make", "cuEventCreate", onDevice],
  eventDestroy: ["CudaEvent.release", "cuEventDestroy", (event) => [event.device, event]],
  eventRecord: ["CudaEvent.record", "cuEventRecord", (event) => [event.device, event]],
  eventQuery: ["CudaEvent.query", "cuEventQuery", (event) => [event.device, event]],
  eventSynchronize: ["CudaEvent.synchronize", "cuEventQuery", (event) => [event.device, event]],
  eventElapsedTime: ["CudaEvent.elapsedTime", "cuEventElapsedTime", (_, end) => [end.device, end]],
  eventIpcHandle: ["CudaEvent.ipcHandle", "cuIpcGetEventHandle", (event) => [event.device, event]],
  eventFromIpcHandle: ["CudaEvent.fromIpcHandle", "cuIpcOpenEventHandle", onDevice],

  memoryAllocate: [
    "CudaMemory.allocate",
    "cuMemAllocFromPoolAsync",
    (device, bytes) => [device, `${bytes} bytes on device ${device}`]
  ],
  managedAllocate: [
    "CudaMemory.allocateManaged",
    "cuMemAllocManaged",
    (device, bytes) => [device, `${bytes} bytes of managed memory of device ${device}`]
  ],
  hostAllocate: ["CudaMemory.allocateHost", "cuMemHostRegister", (bytes) => [0, `${bytes} bytes`]],
  memoryReclaim: ["CudaMemory.reclaim", "cuMemPoolTrimTo", onDevice],
  memoryFree: ["CudaMemory.release", "cuMemFreeAsync", (memory) => [deviceOf(memory), memory]],
  memoryCopy: ["CudaMemory.copy", "cuMemcpyAsync", (_, __, stream) => [stream.device, stream]],
  memoryCopy2D: ["CudaMemory.copy2D", "cuMemcpy2DAsync", (_, __, ___, stream) => [stream.device, stream]],
  memoryCopyBatch: ["CudaMemory.copyBatch", "cuMemcpyBatchAsync", (_, stream) => [stream.device, stream]],
  memoryFill: ["CudaMemory.fill", "cuMemsetD8Async", (_, __, ___, stream) => [stream.device, stream]],
  memoryPrefetch: ["CudaMemory.prefetch", "cuMemPrefetchAsync", ({ memory }, _, stream) => [stream.device, memory]],
  memoryAdvise: ["CudaMemory.advise", "cuMemAdvise", ({ memory }) => [deviceOf(memory), memory]],
  memoryBegin: ["CudaMemory.access", "cuStreamWaitEvent", ({ stream }) => [stream.device, stream]],
  memorySynchronize: ["CudaMemory.synchronize", "cuEventQuery", ({ memory }) => [deviceOf(memory), memory]],

  poolCreate: ["CudaMemoryPool.make", "cuMemPoolCreate", (device) => [device, `a pool of device ${device}`]],
  poolOfDevice: ["CudaMemoryPool.ofDevice", "cuMemPoolCreate", onDevice],
  poolDestroy: ["CudaMemoryPool.release", "cuMemPoolDestroy", (pool) => [pool.device, pool]],
  poolStatistics: ["CudaMemoryPool.statistics", "cuMemPoolGetAttribute", (pool) => [pool.device, pool]],
  poolResetHighWater: ["CudaMemoryPool.resetHighWater", "cuMemPoolSetAttribute", (pool) => [pool.device, pool]],
  poolSetReleaseThreshold: [
    "CudaMemoryPool.setReleaseThreshold",
    "cuMemPoolSetAttribute",
    (pool) => [pool.device, pool]
  ],
  poolTrim: ["CudaMemoryPool.trim", "cuMemPoolTrimTo", (pool) => [pool.device, pool]],

  moduleLoad: ["CudaModule.load", "cuLibraryLoadData", (image) => [0, `an image of ${image.byteLength} bytes`]],
  moduleUnload: ["CudaModule.release", "cuLibraryUnload", (module) => [0, module]],
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
    (kernel, _, __, device) => [device, kernel.name]
  ],
  kernelActiveClusters: [
    "CudaKernel.occupancy",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    (kernel, _, device) => [device, kernel.name]
  ],
  kernelMaxCluster: [
    "CudaKernel.occupancy",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    (kernel, _, device) => [device, kernel.name]
  ],
  kernelLaunch: ["CudaKernel.launch", "cuLaunchKernelEx", (_, __, ___, stream) => [stream.device, stream]],

  programCompile: ["CudaProgram.compile", "nvrtcCompileProgram", ({ device, name }) => [device, name]]
} as const satisfies {
  readonly [M in OperationMember]: readonly [
    name: string,
    call: string,
    about: (...args: Parameters<CudaRuntimeService[M]>) => About
  ]
}

/** An operation as a program and its failures name it. */
export type OperationName = (typeof operations)[OperationMember][0]

/** A row of the table, whatever its member. */
export interface Operation {
  readonly member: OperationMember
  readonly name: OperationName
  readonly call: string
  readonly about: (...args: ReadonlyArray<unknown>) => About
}

/** A member of the service, whatever it is given. None is given more than four things. */
export type Call = (a: unknown, b: unknown, c: unknown, d: unknown) => Effect<unknown, CudaError>

/** The service with something around each of its operations: a failure, a check, a record. */
export const around = (
  service: CudaRuntimeService,
  wrap: (operation: Operation, inner: Call) => Call
): CudaRuntimeService => ({
  ...service,
  ...Object.fromEntries(
    Object.entries(operations).map(([key, [name, call, about]]) => {
      const member = key as OperationMember
      return [member, wrap({ member, name, call, about: about as Operation["about"] }, service[member] as Call)]
    })
  )
})
