/**
 * The functions of the driver library (`libcuda`) that the native runtime calls, by the names the library exports, with
 * the types koffi needs. The suffixes are part of the ABI: a name without one can be an older version of the call.
 *
 * Pointers are given as numbers (`uintptr_t`) where they are handles or addresses, and as typed arrays (`void *`) where the
 * driver reads or writes through them. Every function returns a `CUresult`. No Effect here.
 *
 * @since 0.1.0
 */

const handle = "uintptr_t"
const memory = "void *"
const int = "int"
const uint = "uint32_t"
const size = "size_t"
const text = "str"

/** `CUipcEventHandle`, which is passed by value; no type of koffi's (`bindOpenIpc` in `library.ts`). */
const ipcHandle = "CUipcEventHandle"

/** `CUmemLocation`, two `int` that are passed by value: in one register, by every calling convention. */
const location = "uint64_t"

/** A location as it is passed: its type in the lower half, its id in the upper one. */
export const locationOf = (type: number, id: number): number => type + id * 2 ** 32

/** Every function, with its parameters. All are in CUDA 12.0. */
export const driverFunctions = {
  cuInit: [uint],
  cuDriverGetVersion: [memory],
  cuGetErrorName: [int, memory],
  cuGetErrorString: [int, memory],
  cuDeviceGetCount: [memory],
  cuDeviceGet: [memory, int],
  cuDeviceGetName: [memory, int, int],
  cuDeviceGetUuid_v2: [memory, int],
  cuDeviceTotalMem_v2: [memory, int],
  cuDeviceGetAttribute: [memory, int, int],
  cuDeviceGetPCIBusId: [memory, int, int],
  cuDeviceCanAccessPeer: [memory, int, int],
  cuDevicePrimaryCtxRetain: [memory, int],
  cuDevicePrimaryCtxRelease_v2: [int],
  cuCtxPushCurrent_v2: [handle],
  cuCtxPopCurrent_v2: [memory],
  cuCtxGetStreamPriorityRange: [memory, memory],
  cuMemGetInfo_v2: [memory, memory],
  cuStreamCreateWithPriority: [memory, uint, int],
  cuStreamDestroy_v2: [handle],
  cuStreamQuery: [handle],
  cuStreamSynchronize: [handle],
  cuStreamWaitEvent: [handle, handle, uint],
  cuStreamGetId: [handle, memory],
  cuStreamGetPriority: [handle, memory],
  cuStreamGetFlags: [handle, memory],
  cuStreamGetCtx: [handle, memory],
  cuEventCreate: [memory, uint],
  cuEventDestroy_v2: [handle],
  cuEventRecord: [handle, handle],
  cuEventQuery: [handle],
  cuEventElapsedTime: [memory, handle, handle],
  cuIpcGetEventHandle: [memory, handle],
  cuIpcOpenEventHandle: [memory, ipcHandle],
  cuMemPoolCreate: [memory, memory],
  cuMemPoolDestroy: [handle],
  cuMemPoolSetAttribute: [handle, int, memory],
  cuMemPoolGetAttribute: [handle, int, memory],
  cuMemPoolTrimTo: [handle, size],
  cuMemAllocFromPoolAsync: [memory, size, handle, handle],
  cuMemFreeAsync: [handle, handle],
  cuMemAllocManaged: [memory, size, uint],
  cuMemFree_v2: [handle],
  cuMemHostRegister_v2: [handle, size, uint],
  cuMemHostUnregister: [handle],
  cuMemcpyHtoDAsync_v2: [handle, handle, size, handle],
  cuMemcpyDtoHAsync_v2: [handle, handle, size, handle],
  cuMemcpyDtoDAsync_v2: [handle, handle, size, handle],
  cuMemcpyPeerAsync: [handle, handle, handle, handle, size, handle],
  cuMemcpy2DAsync_v2: [memory, handle],
  cuLaunchHostFunc: [handle, handle, handle],
  cuMemsetD8Async: [handle, "uint8_t", size, handle],
  cuMemsetD16Async: [handle, "uint16_t", size, handle],
  cuMemsetD32Async: [handle, uint, size, handle],
  cuLibraryLoadData: [memory, memory, memory, memory, uint, handle, handle, uint],
  cuLibraryUnload: [handle],
  cuLibraryGetKernel: [memory, handle, text],
  cuLibraryGetGlobal: [memory, memory, handle, text],
  cuKernelGetFunction: [memory, handle],
  cuKernelGetAttribute: [memory, int, handle, int],
  cuKernelSetAttribute: [int, int, handle, int],
  cuLaunchKernelEx: [handle, handle, handle, handle],
  cuOccupancyMaxActiveBlocksPerMultiprocessor: [memory, handle, int, size],
  cuOccupancyMaxPotentialBlockSize: [memory, memory, handle, handle, size, int],
  cuOccupancyMaxActiveClusters: [memory, handle, handle],
  cuOccupancyMaxPotentialClusterSize: [memory, handle, handle]
} as const

/** Functions that drivers older than the one named lack; what needs them says so, or does without. */
export const optionalDriverFunctions = {
  /** CUDA 12.2. */
  cuMemPrefetchAsync_v2: [handle, size, location, uint, handle],
  cuMemAdvise_v2: [handle, size, int, location],
  /** CUDA 12.4. */
  cuKernelGetParamInfo: [handle, size, memory, memory],
  /** CUDA 12.8. */
  cuEventElapsedTime_v2: [memory, handle, handle],
  cuMemcpyBatchAsync: [memory, memory, memory, size, memory, memory, size, memory, handle]
} as const

/** The name of a function of the table. */
export type DriverFunctionName = keyof typeof driverFunctions

/** The name of a function that a driver may lack. */
export type OptionalDriverFunctionName = keyof typeof optionalDriverFunctions

/** What a parameter of a type is given as. */
interface ParameterTypes {
  readonly [handle]: number
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

/** A bound function: called on this thread, or on a thread of the pool (`inTurn`) that then tells how it ended. */
export interface DriverFunction<Parameters extends ReadonlyArray<unknown>> {
  (...parameters: Parameters): number
  readonly async: (...parameters: [...Parameters, (error: unknown, status: number) => void]) => void
}

/** The functions, bound to a library. */
export type DriverFunctions =
  & {
    readonly [Name in Exclude<DriverFunctionName, "cuIpcOpenEventHandle">]: DriverFunction<
      Arguments<(typeof driverFunctions)[Name]>
    >
  }
  & { readonly cuIpcOpenEventHandle: (out: ArrayBufferView, handle: Uint8Array) => number }
  & {
    readonly [Name in OptionalDriverFunctionName]:
      | DriverFunction<Arguments<(typeof optionalDriverFunctions)[Name]>>
      | undefined
  }
