/**
 * The functions of the driver library (`libcuda`) that the native runtime calls, by exported name, with their koffi
 * types. The suffixes are part of the ABI: the name without a suffix may be an older version of the call.
 *
 * Handles and addresses are distinct number types (`handles.ts`). Where the driver reads or writes through a pointer,
 * pass a typed array (`void *`), or the address of a block that is written often (`HostPointer`). Every function returns a `CUresult`. No Effect here.
 *
 * @since 0.1.0
 */

import { handleTypes } from "./handles.ts"
import type {
  CUcontext,
  CUdevice,
  CUdeviceptr,
  CUdevResourceDesc,
  CUevent,
  CUgraph,
  CUgraphExec,
  CUgraphNode,
  CUgreenCtx,
  CUhostFn,
  CUkernel,
  CUlibrary,
  CUmemHandle,
  CUmemoryPool,
  CUstream,
  HostPointer
} from "./handles.ts"

const memory = "void *"
const int = "int"
const uint = "uint32_t"
const size = "size_t"
const text = "str"
const device = "CUdevice"
const context = "CUcontext"
const stream = "CUstream"
const event = "CUevent"
const pool = "CUmemoryPool"
const library = "CUlibrary"
const kernel = "CUkernel"
const graph = "CUgraph"
const graphNode = "CUgraphNode"
const graphExec = "CUgraphExec"
const pointer = "CUdeviceptr"
const host = "HostPointer"
const memHandle = "CUmemHandle"
const hostFunction = "CUhostFn"

/** `CUipcEventHandle` or `CUipcMemHandle`, which are passed by value. Not a koffi type (see `bindByValue` in `library.ts`). */
const ipcHandle = "CUipcHandle"

/** `CUmemLocation`: two `int`s passed by value, in one register in every calling convention. */
const location = "uint64_t"

/** 64 flags, or a descriptor in place of a pointer. */
const word = "uint64_t"

/** Encodes a location for the call: the type in the lower half, the id in the upper half. */
export const locationOf = (type: number, id: number): number => type + id * 2 ** 32

/** The required functions with their parameters, all present since CUDA 12.0. */
export const driverFunctions = {
  cuInit: [uint],
  cuDriverGetVersion: [memory],
  cuGetErrorName: [int, memory],
  cuGetErrorString: [int, memory],
  cuDeviceGetCount: [memory],
  cuDeviceGet: [memory, int],
  cuDeviceGetName: [memory, int, device],
  cuDeviceGetUuid_v2: [memory, device],
  cuDeviceTotalMem_v2: [memory, device],
  cuDeviceGetAttribute: [memory, int, device],
  cuDeviceGetPCIBusId: [memory, int, device],
  cuDeviceCanAccessPeer: [memory, device, device],
  cuDeviceGetP2PAttribute: [memory, int, device, device],
  cuDevicePrimaryCtxRetain: [memory, device],
  cuDevicePrimaryCtxRelease_v2: [device],
  cuCtxPushCurrent_v2: [context],
  cuCtxPopCurrent_v2: [memory],
  cuCtxGetStreamPriorityRange: [memory, memory],
  cuCtxEnablePeerAccess: [context, uint],
  cuCtxDisablePeerAccess: [context],
  cuMemGetInfo_v2: [memory, memory],
  cuStreamCreateWithPriority: [memory, uint, int],
  cuStreamDestroy_v2: [stream],
  cuStreamQuery: [stream],
  cuStreamSynchronize: [stream],
  cuStreamWaitEvent: [stream, event, uint],
  cuStreamGetId: [stream, memory],
  cuStreamGetPriority: [stream, memory],
  cuStreamGetFlags: [stream, memory],
  cuStreamGetCtx: [stream, memory],
  cuStreamBeginCapture_v2: [stream, int],
  cuStreamEndCapture: [stream, memory],
  cuEventCreate: [memory, uint],
  cuEventDestroy_v2: [event],
  cuEventRecord: [event, stream],
  cuEventQuery: [event],
  cuEventSynchronize: [event],
  cuEventElapsedTime: [memory, event, event],
  cuIpcGetEventHandle: [memory, event],
  cuIpcOpenEventHandle: [memory, ipcHandle],
  cuMemPoolCreate: [memory, memory],
  cuMemPoolDestroy: [pool],
  cuMemPoolSetAttribute: [pool, int, memory],
  cuMemPoolGetAttribute: [pool, int, memory],
  cuMemPoolTrimTo: [pool, size],
  cuMemPoolSetAccess: [pool, memory, size],
  cuMemAllocFromPoolAsync: [memory, size, pool, stream],
  cuMemFreeAsync: [pointer, stream],
  cuMemAllocManaged: [memory, size, uint],
  cuMemFree_v2: [pointer],
  cuPointerGetAttributes: [uint, memory, memory, pointer],
  cuMemHostRegister_v2: [host, size, uint],
  cuMemHostUnregister: [host],
  cuMemcpyHtoDAsync_v2: [pointer, host, size, stream],
  cuMemcpyDtoHAsync_v2: [host, pointer, size, stream],
  cuMemcpyDtoDAsync_v2: [pointer, pointer, size, stream],
  cuMemcpyPeerAsync: [pointer, context, pointer, context, size, stream],
  cuMemcpy2DAsync_v2: [memory, stream],
  cuLaunchHostFunc: [stream, hostFunction, host],
  cuMemsetD8Async: [pointer, "uint8_t", size, stream],
  cuMemsetD16Async: [pointer, "uint16_t", size, stream],
  cuMemsetD32Async: [pointer, uint, size, stream],
  cuLibraryLoadData: [memory, memory, memory, memory, uint, host, host, uint],
  cuLibraryUnload: [library],
  cuLibraryGetKernel: [memory, library, text],
  cuLibraryGetGlobal: [memory, memory, library, text],
  cuKernelGetFunction: [memory, kernel],
  cuKernelGetAttribute: [memory, int, kernel, device],
  cuKernelSetAttribute: [int, int, kernel, device],
  cuLaunchKernelEx: [host, kernel, host, host],
  cuOccupancyMaxActiveBlocksPerMultiprocessor: [memory, kernel, int, size],
  cuOccupancyMaxPotentialBlockSize: [memory, memory, kernel, host, size, int],
  cuOccupancyMaxActiveClusters: [memory, kernel, host],
  cuOccupancyMaxPotentialClusterSize: [memory, kernel, host],
  cuGraphCreate: [memory, uint],
  cuGraphDestroy: [graph],
  cuGraphAddKernelNode_v2: [host, graph, host, size, host],
  cuGraphAddMemcpyNode: [host, graph, host, size, host, context],
  cuGraphAddMemsetNode: [host, graph, host, size, host, context],
  cuGraphAddEventRecordNode: [host, graph, host, size, event],
  cuGraphAddEmptyNode: [host, graph, host, size],
  cuGraphAddChildGraphNode: [host, graph, host, size, graph],
  cuGraphGetNodes: [graph, memory, memory],
  cuGraphNodeGetType: [graphNode, memory],
  cuGraphKernelNodeSetAttribute: [graphNode, int, host],
  cuGraphInstantiateWithParams: [memory, graph, memory],
  cuGraphExecDestroy: [graphExec],
  cuGraphExecKernelNodeSetParams_v2: [graphExec, graphNode, host],
  cuGraphExecMemcpyNodeSetParams: [graphExec, graphNode, host, context],
  cuGraphExecMemsetNodeSetParams: [graphExec, graphNode, host, context],
  cuGraphExecEventRecordNodeSetEvent: [graphExec, graphNode, event],
  cuGraphNodeSetEnabled: [graphExec, graphNode, uint],
  cuGraphExecUpdate_v2: [graphExec, graph, memory],
  cuGraphUpload: [graphExec, stream],
  cuGraphLaunch: [graphExec, stream]
} as const

/** Functions that older drivers lack. Their callers fail or do without them. */
export const optionalDriverFunctions = {
  /** In every driver so far, and needed only for profilers. */
  cuProfilerStart: [],
  cuProfilerStop: [],
  /** In every driver for Linux so far, and needed only to share memory with other processes. */
  cuMemPoolExportToShareableHandle: [memory, pool, int, word],
  cuMemPoolImportFromShareableHandle: [memory, word, int, word],
  cuMemPoolExportPointer: [memory, pointer],
  cuMemPoolImportPointer: [memory, pool, memory],
  cuMemAlloc_v2: [memory, size],
  cuIpcGetMemHandle: [memory, pointer],
  cuIpcOpenMemHandle_v2: [memory, ipcHandle, uint],
  cuIpcCloseMemHandle: [pointer],
  /** In every driver so far, but not for every device. */
  cuMemGetAllocationGranularity: [memory, memory, int],
  cuMemAddressReserve: [memory, size, size, pointer, "uint64_t"],
  cuMemAddressFree: [pointer, size],
  cuMemCreate: [memory, size, memory, "uint64_t"],
  cuMemRelease: [memHandle],
  cuMemMap: [pointer, size, size, memHandle, "uint64_t"],
  cuMemUnmap: [pointer, size],
  cuMemSetAccess: [pointer, size, memory, size],
  /** CUDA 12.2. */
  cuMemPrefetchAsync_v2: [pointer, size, location, uint, stream],
  cuMemAdvise_v2: [pointer, size, int, location],
  /** CUDA 12.3. */
  cuGraphConditionalHandleCreate: [host, graph, context, uint, uint],
  cuGraphAddNode_v2: [host, graph, host, host, size, host],
  cuGraphAddDependencies_v2: [graph, host, host, host, size],
  /** CUDA 12.4. */
  cuKernelGetParamInfo: [kernel, size, memory, memory],
  cuDeviceGetDevResource: [device, memory, int],
  cuDevSmResourceSplitByCount: [memory, memory, memory, memory, uint, uint],
  cuDevResourceGenerateDesc: [memory, memory, uint],
  cuGreenCtxCreate: [memory, "CUdevResourceDesc", device, uint],
  cuGreenCtxDestroy: ["CUgreenCtx"],
  cuCtxFromGreenCtx: [memory, "CUgreenCtx"],
  /** CUDA 12.5. */
  cuGreenCtxStreamCreate: [memory, "CUgreenCtx", uint, int],
  /** CUDA 12.8. */
  cuEventElapsedTime_v2: [memory, event, event],
  cuMemcpyBatchAsync: [memory, memory, memory, size, memory, memory, size, memory, stream]
} as const

/** The koffi type of a parameter type. Handles are numbers of their size. */
export const koffiType = (type: string): string =>
  Object.hasOwn(handleTypes, type) ? handleTypes[type as keyof typeof handleTypes] : type

/** The name of a function in the table. */
export type DriverFunctionName = keyof typeof driverFunctions

/** The name of a function that a driver may lack. */
export type OptionalDriverFunctionName = keyof typeof optionalDriverFunctions

/** The JavaScript type of each parameter type. */
interface ParameterTypes {
  readonly CUdevice: CUdevice
  readonly CUcontext: CUcontext
  readonly CUgreenCtx: CUgreenCtx
  readonly CUdevResourceDesc: CUdevResourceDesc
  readonly CUstream: CUstream
  readonly CUevent: CUevent
  readonly CUmemoryPool: CUmemoryPool
  readonly CUlibrary: CUlibrary
  readonly CUkernel: CUkernel
  readonly CUgraph: CUgraph
  readonly CUgraphNode: CUgraphNode
  readonly CUgraphExec: CUgraphExec
  readonly CUdeviceptr: CUdeviceptr
  readonly CUmemHandle: CUmemHandle
  readonly HostPointer: HostPointer
  readonly CUhostFn: CUhostFn
  readonly [memory]: ArrayBufferView
  readonly [int]: number
  readonly [uint]: number
  readonly [size]: number
  readonly [text]: string
  readonly uint8_t: number
  readonly uint16_t: number
  readonly [ipcHandle]: Uint8Array
  readonly [location]: number
}

type Arguments<Types extends ReadonlyArray<keyof ParameterTypes>> = {
  readonly [Index in keyof Types]: ParameterTypes[Types[Index]]
}

/** A bound function: called on this thread, or on a pool thread (`inTurn`) that passes the result to a callback. */
export interface DriverFunction<Parameters extends ReadonlyArray<unknown>> {
  (...parameters: Parameters): number
  readonly async: (...parameters: [...Parameters, (error: unknown, status: number) => void]) => void
}

/** The functions bound to a library. */
export type DriverFunctions =
  & {
    readonly [Name in Exclude<DriverFunctionName, "cuIpcOpenEventHandle">]: DriverFunction<
      Arguments<(typeof driverFunctions)[Name]>
    >
  }
  & {
    readonly cuIpcOpenEventHandle: (out: ArrayBufferView, handle: Uint8Array) => number
    readonly cuIpcOpenMemHandle_v2:
      | ((out: ArrayBufferView, handle: Uint8Array, flags: number) => number)
      | undefined
  }
  & {
    readonly [Name in Exclude<OptionalDriverFunctionName, "cuIpcOpenMemHandle_v2">]:
      | DriverFunction<Arguments<(typeof optionalDriverFunctions)[Name]>>
      | undefined
  }
