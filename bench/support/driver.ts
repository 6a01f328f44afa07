/**
 * The driver past the library, for what benchmarks need and the library does not have yet: a kernel that keeps a stream
 * busy, copies between memory of the benchmark's own, and the raw calls that operations are compared with.
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
  cuDeviceGetName: [memory, "int", "int"],
  cuDevicePrimaryCtxRetain: [memory, "int"],
  cuCtxPushCurrent_v2: [handle],
  cuCtxPopCurrent_v2: [memory],
  cuModuleLoadData: [memory, memory],
  cuModuleGetFunction: [memory, handle, "str"],
  cuLaunchKernel: [handle, uint, uint, uint, uint, uint, uint, uint, handle, memory, memory],
  cuStreamCreateWithPriority: [memory, uint, "int"],
  cuStreamSynchronize: [handle],
  cuStreamWaitEvent: [handle, handle, uint],
  cuEventCreate: [memory, uint],
  cuEventDestroy_v2: [handle],
  cuEventRecord: [handle, handle],
  cuEventQuery: [handle],
  cuEventElapsedTime: [memory, handle, handle],
  cuMemAlloc_v2: [memory, "size_t"],
  cuMemHostAlloc: [memory, "size_t", uint],
  cuMemcpyHtoDAsync_v2: [handle, handle, "size_t", handle],
  cuMemsetD8Async: [handle, "uint8_t", "size_t", handle]
} as const

/** The functions as koffi calls them: each returns its status. */
export type Calls = { readonly [Name in keyof typeof functions]: (...parameters: ReadonlyArray<unknown>) => number }

/** The first GPU, with its primary context, which is the library's too. */
export interface Driver {
  readonly deviceName: string
  /** 13000 is CUDA 13.0. */
  readonly cudaVersion: number
  readonly calls: Calls
  /** Enqueues a kernel that runs for so long. */
  readonly spin: (stream: number, millis: number) => void
  /** Runs calls that need the context on this thread. */
  readonly inContext: <A>(body: () => A) => A
  /** A call whose first parameter is where it writes a handle or an address. */
  readonly make: (name: keyof Calls, ...parameters: ReadonlyArray<unknown>) => number
}

/** The kernel's source, which the C peers read too. */
export const spinPath = fileURLToPath(new URL("../peers/spin.ptx", import.meta.url))

/** Throws when a driver call failed. */
export const check = (name: string, status: number): void => {
  if (status !== 0) throw new Error(`${name} answered ${status}`)
}

/** Opens the first GPU; a text says why there is none. */
export const openDriver = (): Driver | string => {
  const calls = bind()
  if (typeof calls === "string") return calls
  const count = new Int32Array(1)
  const status = calls.cuInit(0) || calls.cuDeviceGetCount(count)
  if (status !== 0) return `the driver answered ${status}`
  return count[0] === 0 ? "the driver knows no device" : open(calls)
}

const bind = (): Calls | string => {
  try {
    const library = koffi.load(process.platform === "win32" ? "nvcuda.dll" : "libcuda.so.1")
    const bound = Object.entries(functions).map(([name, types]) => [name, library.func(name, "int", [...types])])
    return Object.fromEntries(bound) as Calls
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

const open = (calls: Calls): Driver => {
  const out = new BigUint64Array(1)
  const popped = new BigUint64Array(1)
  const make: Driver["make"] = (name, ...parameters) => {
    check(name, calls[name](out, ...parameters))
    return Number(out[0])
  }
  const context = make("cuDevicePrimaryCtxRetain", 0)
  const inContext: Driver["inContext"] = (body) => {
    check("cuCtxPushCurrent", calls.cuCtxPushCurrent_v2(context))
    try {
      return body()
    } finally {
      calls.cuCtxPopCurrent_v2(popped)
    }
  }
  const kernel = inContext(() =>
    make("cuModuleGetFunction", make("cuModuleLoadData", Buffer.from(`${readFileSync(spinPath, "utf8")}\0`)), "spin")
  )
  const nanos = new BigUint64Array(1)
  const parameters = new BigUint64Array([koffi.address(nanos)])
  const spin: Driver["spin"] = (stream, millis) => {
    nanos[0] = BigInt(Math.max(0, Math.round(millis * 1e6)))
    check("cuLaunchKernel", calls.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters, null))
  }
  return { ...describe(calls), calls, spin, inContext, make }
}

const describe = (calls: Calls): Pick<Driver, "deviceName" | "cudaVersion"> => {
  const version = new Int32Array(1)
  check("cuDriverGetVersion", calls.cuDriverGetVersion(version))
  const name = new Uint8Array(256)
  check("cuDeviceGetName", calls.cuDeviceGetName(name, name.byteLength, 0))
  return { deviceName: new TextDecoder().decode(name.subarray(0, name.indexOf(0))), cudaVersion: version[0]! }
}
