/**
 * Failures that are asked for: operations of a service made to fail a number of times.
 */
import * as Effect from "effect/Effect"
import { statuses } from "../../cuda/status.ts"
import type { StatusTag } from "../../cuda/status.ts"
import { CudaError, reasonFromStatus } from "../../CudaError.ts"
import type { CudaRuntimeService, MemoryRef } from "../CudaRuntime.ts"
import type { SimulatedBackend } from "./backend.ts"

/** Every operation as a program names it, and the driver's call that is said to have failed. */
export const operationCalls = {
  "CudaBranch.fork": "cuStreamWaitEvent",
  "CudaBranch.join": "cuStreamWaitEvent",
  "CudaDevice.attribute": "cuDeviceGetAttribute",
  "CudaDevice.canAccessPeer": "cuDeviceCanAccessPeer",
  "CudaDevice.memoryInfo": "cuMemGetInfo",
  "CudaDevice.priorityRange": "cuCtxGetStreamPriorityRange",
  "CudaDevice.synchronize": "cuStreamQuery",
  "CudaEvent.elapsedTime": "cuEventElapsedTime",
  "CudaEvent.fromIpcHandle": "cuIpcOpenEventHandle",
  "CudaEvent.ipcHandle": "cuIpcGetEventHandle",
  "CudaEvent.make": "cuEventCreate",
  "CudaEvent.query": "cuEventQuery",
  "CudaEvent.record": "cuEventRecord",
  "CudaEvent.release": "cuEventDestroy",
  "CudaEvent.synchronize": "cuEventQuery",
  "CudaKernel.attribute": "cuKernelGetAttribute",
  "CudaKernel.get": "cuLibraryGetKernel",
  "CudaKernel.global": "cuLibraryGetGlobal",
  "CudaKernel.launch": "cuLaunchKernelEx",
  "CudaKernel.load": "cuLibraryLoadData",
  "CudaKernel.occupancy": "cuOccupancyMaxActiveBlocksPerMultiprocessor",
  "CudaKernel.release": "cuLibraryUnload",
  "CudaKernel.setAttribute": "cuKernelSetAttribute",
  "CudaMemory.access": "cuStreamWaitEvent",
  "CudaMemory.advise": "cuMemAdvise",
  "CudaMemory.allocate": "cuMemAllocFromPoolAsync",
  "CudaMemory.allocateHost": "cuMemHostRegister",
  "CudaMemory.allocateManaged": "cuMemAllocManaged",
  "CudaMemory.copy": "cuMemcpyAsync",
  "CudaMemory.copy2D": "cuMemcpy2DAsync",
  "CudaMemory.copyBatch": "cuMemcpyBatchAsync",
  "CudaMemory.fill": "cuMemsetD8Async",
  "CudaMemory.prefetch": "cuMemPrefetchAsync",
  "CudaMemory.reclaim": "cuMemPoolTrimTo",
  "CudaMemory.release": "cuMemFreeAsync",
  "CudaMemory.settled": "cuEventQuery",
  "CudaMemoryPool.make": "cuMemPoolCreate",
  "CudaMemoryPool.ofDevice": "cuMemPoolCreate",
  "CudaMemoryPool.release": "cuMemPoolDestroy",
  "CudaMemoryPool.resetHigh": "cuMemPoolSetAttribute",
  "CudaMemoryPool.setReleaseThreshold": "cuMemPoolSetAttribute",
  "CudaMemoryPool.statistics": "cuMemPoolGetAttribute",
  "CudaMemoryPool.trim": "cuMemPoolTrimTo",
  "CudaProgram.compile": "nvrtcCompileProgram",
  "CudaStream.defaultStream": "cuStreamGetId",
  "CudaStream.fromHandle": "cuStreamGetId",
  "CudaStream.make": "cuStreamCreateWithPriority",
  "CudaStream.query": "cuStreamQuery",
  "CudaStream.release": "cuStreamDestroy",
  "CudaStream.synchronize": "cuStreamQuery",
  "CudaStream.waitEvent": "cuStreamWaitEvent",
  "CudaStream.waitStream": "cuStreamWaitEvent"
} as const

export type OperationName = keyof typeof operationCalls

/** The failures still to come, by operation. */
export class Plan {
  readonly #failures = new Map<OperationName, Array<{ readonly status: StatusTag; times: number }>>()

  get isEmpty(): boolean {
    return this.#failures.size === 0
  }

  add(operation: OperationName, status: StatusTag, times: number): void {
    const failures = this.#failures.get(operation)
    if (failures === undefined) this.#failures.set(operation, [{ status, times }])
    else failures.push({ status, times })
  }

  /** Uses one failure up. */
  take(operation: OperationName): StatusTag | undefined {
    const failures = this.#failures.get(operation)
    const next = failures?.[0]
    if (failures === undefined || next === undefined) return undefined
    if (--next.times <= 0) failures.shift()
    if (failures.length === 0) this.#failures.delete(operation)
    return next.status
  }
}

/** The service, with the failures of a plan in it. */
export const inject = (service: CudaRuntimeService, backend: SimulatedBackend, plan: Plan): CudaRuntimeService => {
  const guard = <A>(
    operation: OperationName,
    device: number,
    subject: unknown,
    run: () => Effect.Effect<A, CudaError>
  ) =>
    Effect.suspend(() => {
      const status = plan.isEmpty ? undefined : plan.take(operation)
      return status === undefined
        ? run()
        : failWith(backend, { operation, device, subject: String(subject), status }, run)
    })
  return {
    ...service,
    ...injectDevices(service, guard),
    ...injectStreams(service, guard),
    ...injectEvents(service, guard),
    ...injectMemory(service, guard),
    ...injectPools(service, guard),
    ...injectPrograms(service, guard),
    ...injectKernels(service, guard)
  }
}

type Guard = <A>(
  operation: OperationName,
  device: number,
  subject: unknown,
  run: () => Effect.Effect<A, CudaError>
) => Effect.Effect<A, CudaError>

/** A sticky failure ends the context first, and the operation finds that out by itself. */
const failWith = <A>(
  backend: SimulatedBackend,
  failure: {
    readonly operation: OperationName
    readonly device: number
    readonly subject: string
    readonly status: StatusTag
  },
  run: () => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> => {
  const { code, isSticky } = statuses[failure.status]
  const { device, operation, subject } = failure
  const reason = reasonFromStatus(code)
  const fail = Effect.suspend(() =>
    Effect.fail(new CudaError({ operation, reason, call: operationCalls[operation], subject, device }))
  )
  if (!isSticky || backend.devices[device] === undefined) return fail
  backend.lose(device, code)
  return Effect.andThen(run(), fail)
}

const injectDevices = (service: CudaRuntimeService, guard: Guard) => ({
  deviceAttribute: (device, attribute) =>
    guard("CudaDevice.attribute", device, attribute, () => service.deviceAttribute(device, attribute)),
  deviceMemoryInfo: (device) =>
    guard("CudaDevice.memoryInfo", device, `device ${device}`, () => service.deviceMemoryInfo(device)),
  devicePriorityRange: (device) =>
    guard("CudaDevice.priorityRange", device, `device ${device}`, () => service.devicePriorityRange(device)),
  deviceCanAccessPeer: (device, peer) =>
    guard(
      "CudaDevice.canAccessPeer",
      device,
      `devices ${device} and ${peer}`,
      () => service.deviceCanAccessPeer(device, peer)
    ),
  deviceSynchronize: (device) =>
    guard("CudaDevice.synchronize", device, `device ${device}`, () => service.deviceSynchronize(device))
} satisfies Partial<CudaRuntimeService>)

const injectStreams = (service: CudaRuntimeService, guard: Guard) => ({
  streamCreate: (options) =>
    guard("CudaStream.make", options.device, `device ${options.device}`, () => service.streamCreate(options)),
  streamDefault: (device, mode) =>
    guard("CudaStream.defaultStream", device, `device ${device}`, () => service.streamDefault(device, mode)),
  streamFromHandle: (device, handle) =>
    guard(
      "CudaStream.fromHandle",
      device,
      `handle 0x${handle.toString(16)}`,
      () => service.streamFromHandle(device, handle)
    ),
  streamDestroy: (stream) => guard("CudaStream.release", stream.device, stream, () => service.streamDestroy(stream)),
  streamQuery: (stream) => guard("CudaStream.query", stream.device, stream, () => service.streamQuery(stream)),
  streamSynchronize: (stream) =>
    guard("CudaStream.synchronize", stream.device, stream, () => service.streamSynchronize(stream)),
  streamWaitEvent: (stream, event) =>
    guard("CudaStream.waitEvent", stream.device, stream, () => service.streamWaitEvent(stream, event)),
  streamWaitStream: (stream, other) =>
    guard("CudaStream.waitStream", stream.device, stream, () => service.streamWaitStream(stream, other)),
  streamFork: (from, branches) => guard("CudaBranch.fork", from.device, from, () => service.streamFork(from, branches)),
  streamJoin: (into, branches) => guard("CudaBranch.join", into.device, into, () => service.streamJoin(into, branches))
} satisfies Partial<CudaRuntimeService>)

const injectEvents = (service: CudaRuntimeService, guard: Guard) => ({
  eventCreate: (device, flags) =>
    guard("CudaEvent.make", device, `device ${device}`, () => service.eventCreate(device, flags)),
  eventDestroy: (event) => guard("CudaEvent.release", event.device, event, () => service.eventDestroy(event)),
  eventRecord: (event, stream) =>
    guard("CudaEvent.record", event.device, event, () => service.eventRecord(event, stream)),
  eventQuery: (event) => guard("CudaEvent.query", event.device, event, () => service.eventQuery(event)),
  eventSynchronize: (event) =>
    guard("CudaEvent.synchronize", event.device, event, () => service.eventSynchronize(event)),
  eventElapsedTime: (start, end) =>
    guard("CudaEvent.elapsedTime", end.device, end, () => service.eventElapsedTime(start, end)),
  eventIpcHandle: (event) => guard("CudaEvent.ipcHandle", event.device, event, () => service.eventIpcHandle(event)),
  eventFromIpcHandle: (device, handle) =>
    guard("CudaEvent.fromIpcHandle", device, `device ${device}`, () => service.eventFromIpcHandle(device, handle))
} satisfies Partial<CudaRuntimeService>)

const injectMemory = (service: CudaRuntimeService, guard: Guard) => ({
  memoryAllocate: (device, byteLength, options) =>
    guard(
      "CudaMemory.allocate",
      device,
      `${byteLength} bytes on device ${device}`,
      () => service.memoryAllocate(device, byteLength, options)
    ),
  memoryReclaim: (device) =>
    guard("CudaMemory.reclaim", device, `device ${device}`, () => service.memoryReclaim(device)),
  hostAllocate: (byteLength, options) =>
    guard("CudaMemory.allocateHost", 0, `${byteLength} bytes`, () => service.hostAllocate(byteLength, options)),
  memoryFree: (memory) => guard("CudaMemory.release", deviceOf(memory), memory, () => service.memoryFree(memory)),
  memoryCopy: (to, from, stream) =>
    guard("CudaMemory.copy", stream.device, stream, () => service.memoryCopy(to, from, stream)),
  memoryFill: (to, value, bits, stream) =>
    guard("CudaMemory.fill", stream.device, stream, () => service.memoryFill(to, value, bits, stream)),
  managedAllocate: (device, byteLength, options) =>
    guard(
      "CudaMemory.allocateManaged",
      device,
      `${byteLength} bytes of managed memory of device ${device}`,
      () => service.managedAllocate(device, byteLength, options)
    ),
  memoryCopy2D: (to, from, size, stream) =>
    guard("CudaMemory.copy2D", stream.device, stream, () => service.memoryCopy2D(to, from, size, stream)),
  memoryCopyBatch: (transfers, stream) =>
    guard("CudaMemory.copyBatch", stream.device, stream, () => service.memoryCopyBatch(transfers, stream)),
  memoryPrefetch: (range, location, stream) =>
    guard("CudaMemory.prefetch", stream.device, range.memory, () => service.memoryPrefetch(range, location, stream)),
  memoryAdvise: (range, advice, location) =>
    guard(
      "CudaMemory.advise",
      deviceOf(range.memory),
      range.memory,
      () => service.memoryAdvise(range, advice, location)
    ),
  memoryBegin: (access) =>
    guard("CudaMemory.access", access.stream.device, access.stream, () => service.memoryBegin(access)),
  memorySettled: (range) =>
    guard("CudaMemory.settled", deviceOf(range.memory), range.memory, () => service.memorySettled(range))
} satisfies Partial<CudaRuntimeService>)

const injectPools = (service: CudaRuntimeService, guard: Guard) => ({
  poolCreate: (device, options) =>
    guard("CudaMemoryPool.make", device, `a pool of device ${device}`, () => service.poolCreate(device, options)),
  poolOfDevice: (device) =>
    guard("CudaMemoryPool.ofDevice", device, `device ${device}`, () => service.poolOfDevice(device)),
  poolDestroy: (pool) => guard("CudaMemoryPool.release", pool.device, pool, () => service.poolDestroy(pool)),
  poolStatistics: (pool) => guard("CudaMemoryPool.statistics", pool.device, pool, () => service.poolStatistics(pool)),
  poolResetHigh: (pool) => guard("CudaMemoryPool.resetHigh", pool.device, pool, () => service.poolResetHigh(pool)),
  poolSetReleaseThreshold: (pool, bytes) =>
    guard(
      "CudaMemoryPool.setReleaseThreshold",
      pool.device,
      pool,
      () => service.poolSetReleaseThreshold(pool, bytes)
    ),
  poolTrim: (pool, keepBytes) =>
    guard("CudaMemoryPool.trim", pool.device, pool, () => service.poolTrim(pool, keepBytes))
} satisfies Partial<CudaRuntimeService>)

const injectPrograms = (service: CudaRuntimeService, guard: Guard) => ({
  programCompile: (request) =>
    guard("CudaProgram.compile", request.device, request.name, () => service.programCompile(request))
} satisfies Partial<CudaRuntimeService>)

const injectKernels = (service: CudaRuntimeService, guard: Guard) => ({
  moduleLoad: (image, options) =>
    guard("CudaKernel.load", 0, `an image of ${image.byteLength} bytes`, () => service.moduleLoad(image, options)),
  moduleUnload: (module) => guard("CudaKernel.release", 0, module, () => service.moduleUnload(module)),
  moduleGlobal: (module, name, device) =>
    guard("CudaKernel.global", device, `variable ${name}`, () => service.moduleGlobal(module, name, device)),
  kernelGet: (module, name, parameters, device) =>
    guard("CudaKernel.get", device, `kernel ${name}`, () => service.kernelGet(module, name, parameters, device)),
  kernelAttribute: (kernel, attribute, device) =>
    guard("CudaKernel.attribute", device, attribute, () => service.kernelAttribute(kernel, attribute, device)),
  kernelSetAttribute: (kernel, attribute, value, device) =>
    guard(
      "CudaKernel.setAttribute",
      device,
      attribute,
      () => service.kernelSetAttribute(kernel, attribute, value, device)
    ),
  kernelActiveBlocks: (kernel, threads, sharedBytes, device) =>
    guard(
      "CudaKernel.occupancy",
      device,
      kernel.name,
      () => service.kernelActiveBlocks(kernel, threads, sharedBytes, device)
    ),
  kernelBestBlock: (kernel, sharedBytes, maxThreads, device) =>
    guard(
      "CudaKernel.occupancy",
      device,
      kernel.name,
      () => service.kernelBestBlock(kernel, sharedBytes, maxThreads, device)
    ),
  kernelActiveClusters: (kernel, config, device) =>
    guard(
      "CudaKernel.occupancy",
      device,
      kernel.name,
      () => service.kernelActiveClusters(kernel, config, device)
    ),
  kernelMaxCluster: (kernel, config, device) =>
    guard(
      "CudaKernel.occupancy",
      device,
      kernel.name,
      () => service.kernelMaxCluster(kernel, config, device)
    ),
  kernelLaunch: (kernel, config, values, stream) =>
    guard(
      "CudaKernel.launch",
      stream.device,
      stream,
      () => service.kernelLaunch(kernel, config, values, stream)
    )
} satisfies Partial<CudaRuntimeService>)

const deviceOf = (memory: MemoryRef): number => memory.kind === "device" ? memory.device : 0
