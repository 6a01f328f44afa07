/**
 * Direct access to the driver, for what the benchmarks need and the library does not provide: a kernel that keeps a
 * stream busy, copies between the benchmark's own memory, and the raw calls that operations are compared with.
 */
import koffi from "koffi"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"

const handle = "uintptr_t"
const memory = "void *"
const uint = "uint32_t"

const functions = {
  cuInit: [uint],
  cuDriverGetVersion: [memory],
  cuDeviceGetCount: [memory],
  cuDeviceGet: [memory, "int"],
  cuDeviceGetName: [memory, "int", "int"],
  cuDevicePrimaryCtxRetain: [memory, "int"],
  cuCtxPushCurrent_v2: [handle],
  cuCtxPopCurrent_v2: [memory],
  cuLibraryLoadData: [memory, memory, memory, memory, uint, memory, memory, uint],
  cuLibraryGetKernel: [memory, handle, "str"],
  cuKernelGetFunction: [memory, handle],
  cuLaunchKernel: [handle, uint, uint, uint, uint, uint, uint, uint, handle, memory, memory],
  cuStreamCreateWithPriority: [memory, uint, "int"],
  cuStreamDestroy_v2: [handle],
  cuStreamSynchronize: [handle],
  cuStreamWaitEvent: [handle, handle, uint],
  cuEventCreate: [memory, uint],
  cuEventDestroy_v2: [handle],
  cuEventRecord: [handle, handle],
  cuEventQuery: [handle],
  cuEventElapsedTime: [memory, handle, handle],
  cuMemPoolCreate: [memory, memory],
  cuMemPoolSetAttribute: [handle, "int", memory],
  cuMemAllocFromPoolAsync: [memory, "size_t", handle, handle],
  cuMemFreeAsync: [handle, handle],
  cuMemAlloc_v2: [memory, "size_t"],
  cuMemHostAlloc: [memory, "size_t", uint],
  cuMemcpyHtoDAsync_v2: [handle, handle, "size_t", handle],
  cuMemsetD8Async: [handle, "uint8_t", "size_t", handle],
  cuGraphCreate: [memory, uint],
  cuGraphAddKernelNode_v2: [memory, handle, memory, "size_t", handle],
  cuGraphInstantiateWithParams: [memory, handle, memory],
  cuGraphExecKernelNodeSetParams_v2: [handle, handle, handle],
  cuGraphLaunch: [handle, handle]
} as const

/** The functions bound by koffi. Each returns a status. */
export type Calls = { readonly [Name in keyof typeof functions]: (...parameters: ReadonlyArray<unknown>) => number }

/** The first GPU with its primary context, which it shares with the library; or the stub. */
export interface Driver {
  /** The path of the library, unless it is the system's driver. */
  readonly libraryPath: string | undefined
  readonly deviceName: string
  /** 13000 is CUDA 13.0. */
  readonly cudaVersion: number
  readonly calls: Calls
  /** Enqueues a kernel that runs for a number of milliseconds. */
  readonly spin: (stream: number, millis: number) => void
  /** A kernel of `kernels.ptx`, as a `CUfunction`. */
  readonly getFunction: (name: string) => number
  /** Runs calls with the context current on this thread. */
  readonly inContext: <A>(body: () => A) => A
  /** Makes a call whose first parameter receives a handle or an address. */
  readonly make: (name: keyof Calls, ...parameters: ReadonlyArray<unknown>) => number
}

/** The source of the kernels, which the peers read as well. */
export const kernelsPath = fileURLToPath(new URL("../peers/kernels.ptx", import.meta.url))

/** Throws if a driver call failed. */
export const check = (name: string, status: number): void => {
  if (status !== 0) throw new Error(`${name} returned ${status}`)
}

/** Opens the first GPU. Returns the reason if there is none. */
export const openDriver = (libraryPath?: string): Driver | string => {
  const calls = bind(libraryPath)
  return typeof calls === "string" ? calls : whyNone(calls) ?? open(calls, libraryPath)
}

/** The reason why there is no GPU; undefined if there is one. */
export const whyNoGpu = (): string | undefined => {
  const calls = bind(undefined)
  return typeof calls === "string" ? calls : whyNone(calls)
}

const whyNone = (calls: Calls): string | undefined => {
  const count = new Int32Array(1)
  const status = calls.cuInit(0) || calls.cuDeviceGetCount(count)
  if (status !== 0) return `cuDeviceGetCount returned ${status}`
  return count[0] === 0 ? "the driver found no device" : undefined
}

const bind = (libraryPath: string | undefined): Calls | string => {
  try {
    const library = koffi.load(libraryPath ?? (process.platform === "win32" ? "nvcuda.dll" : "libcuda.so.1"))
    const bound = Object.entries(functions).map(([name, types]) => [name, library.func(name, "int", [...types])])
    return Object.fromEntries(bound) as Calls
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

const open = (calls: Calls, libraryPath: string | undefined): Driver => {
  const out = new BigUint64Array(1)
  const popped = new BigUint64Array(1)
  const make: Driver["make"] = (name, ...parameters) => {
    check(name, calls[name](out, ...parameters))
    return Number(out[0])
  }
  const device = new Int32Array(1)
  check("cuDeviceGet", calls.cuDeviceGet(device, 0))
  const context = make("cuDevicePrimaryCtxRetain", device[0])
  const inContext: Driver["inContext"] = (body) => {
    check("cuCtxPushCurrent", calls.cuCtxPushCurrent_v2(context))
    try {
      return body()
    } finally {
      calls.cuCtxPopCurrent_v2(popped)
    }
  }
  const source = Buffer.from(`${readFileSync(kernelsPath, "utf8")}\0`)
  const library = inContext(() => make("cuLibraryLoadData", source, null, null, 0, null, null, 0))
  const getFunction: Driver["getFunction"] = (name) =>
    inContext(() => make("cuKernelGetFunction", make("cuLibraryGetKernel", library, name)))
  const spinKernel = getFunction("spin")
  const nanos = new BigUint64Array(1)
  const parameters = new BigUint64Array([koffi.address(nanos)])
  const spin: Driver["spin"] = (stream, millis) => {
    nanos[0] = BigInt(Math.max(0, Math.round(millis * 1e6)))
    check("cuLaunchKernel", calls.cuLaunchKernel(spinKernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters, null))
  }
  return { libraryPath, ...describe(calls, device[0]!), calls, spin, getFunction, inContext, make }
}

const describe = (calls: Calls, device: number): Pick<Driver, "deviceName" | "cudaVersion"> => {
  const version = new Int32Array(1)
  check("cuDriverGetVersion", calls.cuDriverGetVersion(version))
  const name = new Uint8Array(256)
  check("cuDeviceGetName", calls.cuDeviceGetName(name, name.byteLength, device))
  return { deviceName: new TextDecoder().decode(name.subarray(0, name.indexOf(0))), cudaVersion: version[0]! }
}
