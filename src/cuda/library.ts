/**
 * Loads the driver library of each platform with koffi. Nothing native is loaded before `load` is called.
 * No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"
import type { LibraryHandle } from "koffi"
import { constants } from "node:buffer"
import type { OnEnd } from "./asyncCalls.ts"
import { findTakeDescriptor } from "./descriptors.ts"
import type { TakeDescriptor } from "./descriptors.ts"
import { driverPlaces, openFirst } from "./find.ts"
import type { Environment } from "./find.ts"
import { ipcHandleSize } from "./flags.ts"
import { driverFunctions, koffiType, optionalDriverFunctions } from "./functions.ts"
import type { DriverFunctionName, DriverFunctions } from "./functions.ts"
import type { HostPointer } from "./handles.ts"
import { importKoffi, keepLoaded } from "./koffi.ts"
import type { Tried } from "./koffi.ts"

/** Maximum size of an `ArrayBuffer` over memory, and of a typed array on it, in bytes: 4 GiB in Node.js 20. */
export const mostViewBytes = constants.MAX_LENGTH

/** Maps pages outside every heap. They outlive the thread that mapped them. */
export interface Pages {
  /** The address of zeroed memory; undefined if the system is out of memory. */
  readonly map: (byteLength: number) => HostPointer | undefined
  readonly unmap: (address: HostPointer, byteLength: number) => void
}

/** Fills memory on a pool thread, which also touches its pages. */
export type Memset = (
  address: number,
  value: number,
  byteLength: number,
  onEnd: OnEnd
) => void

/** A loaded driver library. */
export interface DriverLibrary {
  readonly path: string
  readonly calls: DriverFunctions
  /** The C string at an address. */
  readonly readText: (address: number) => string
  /** Copies a descriptor of another process into this one; undefined where that is not supported. */
  readonly takeDescriptor: TakeDescriptor | undefined
  /** The address stored at an address. */
  readonly readAddress: (address: number) => number
  /** The address of a buffer's memory. */
  readonly addressOf: (buffer: ArrayBuffer) => HostPointer
  /**
   * Memory at an address as a buffer, which must be unreachable before the memory is freed. Throws a `RangeError` beyond
   * `mostViewBytes`, where koffi would crash the process.
   */
  readonly viewOf: (address: number, byteLength: number) => ArrayBuffer
  /** The C library's `memset` on a pool thread; undefined if it was not found on this platform. */
  readonly memset: Memset | undefined
  /** Undefined on platforms where mapping pages is not supported. */
  readonly pages: Pages | undefined
  /**
   * Asks Linux to back a range with large pages (`madvise`). Discards its contents: the range is zeroed. The system may ignore the
   * request.
   */
  readonly wantLargePages: ((address: number, byteLength: number) => void) | undefined
}

/** The result of loading. */
export type LoadResult =
  | { readonly _tag: "Loaded"; readonly library: DriverLibrary }
  | { readonly _tag: "NotFound"; readonly searched: ReadonlyArray<Tried> }
  | { readonly _tag: "KoffiNotLoaded"; readonly problem: string }
  | {
    readonly _tag: "FunctionMissing"
    readonly functionName: DriverFunctionName
    /** CUDA version of the driver, if known. The function may be missing because the driver is too old. */
    readonly driverVersion: number | undefined
  }

/** The locations of the driver library to try, in order. */
export const candidates = (platform: NodeJS.Platform, environment: Environment): ReadonlyArray<string> =>
  driverPlaces({ linux: "libcuda.so.1", win32: "nvcuda.dll" }, platform, environment)

/** Libraries stay loaded and bound for the lifetime of the process. */
const loaded = new Map<string, DriverLibrary>()

/** Loads the first driver library in the list that can be loaded, and binds every function of the table. */
export const load = async (paths: ReadonlyArray<string>): Promise<LoadResult> => {
  const koffi = await importKoffi()
  if ("problem" in koffi) return { _tag: "KoffiNotLoaded", problem: koffi.problem }
  const found = await openFirst(paths, (path) => open(koffi, path))
  return found._tag === "Loaded" ? found.library : found
}

const open = (koffi: typeof Koffi, path: string): LoadResult => {
  const known = loaded.get(path)
  if (known !== undefined) return { _tag: "Loaded", library: known }
  const library = koffi.load(path)
  if (!isDriver(library)) throw new Error("not a CUDA driver: it has no cuInit")
  return bind(koffi, path, library)
}

const isDriver = (library: LibraryHandle): boolean => {
  try {
    library.func("cuInit", "int", [...driverFunctions.cuInit])
    return true
  } catch {
    return false
  }
}

const bind = (koffi: typeof Koffi, path: string, library: LibraryHandle): LoadResult => {
  const typesOf = (types: ReadonlyArray<string>) => types.map(koffiType)
  const calls: Record<string, unknown> = {}
  for (const functionName of Object.keys(driverFunctions) as ReadonlyArray<DriverFunctionName>) {
    try {
      calls[functionName] = functionName === openIpc
        ? bindByValue(library, openIpc)
        : library.func(functionName, "int", typesOf(driverFunctions[functionName]))
    } catch {
      return { _tag: "FunctionMissing", functionName, driverVersion: readVersion(library) }
    }
  }
  for (const [functionName, types] of Object.entries(optionalDriverFunctions)) {
    calls[functionName] = bindOptional(() =>
      functionName === openMemory
        ? bindByValue(library, openMemory, ["uint32_t"])
        : library.func(functionName, "int", typesOf(types))
    )
  }
  const bound: DriverLibrary = {
    path,
    // A spread copy has fast properties in V8. An object that grew property by property does not.
    calls: { ...calls } as DriverFunctions,
    readText: (address) => koffi.decode.string(BigInt(address)),
    readAddress: (address) => Number(koffi.decode(BigInt(address), "uint64_t")),
    addressOf: (buffer) => Number(koffi.address(buffer)) as HostPointer,
    viewOf: (address, byteLength) => {
      if (byteLength > mostViewBytes) throw new RangeError(`a view of ${byteLength} bytes; at most ${mostViewBytes}`)
      return koffi.view(BigInt(address), byteLength)
    },
    takeDescriptor: findTakeDescriptor(koffi),
    memset: findMemset(koffi),
    pages: findPages(koffi),
    wantLargePages: findAdvise(koffi)
  }
  loaded.set(path, bound)
  keepLoaded(koffi, path)
  return { _tag: "Loaded", library: bound }
}

/** Undefined for a function that this driver lacks. */
const bindOptional = (bind: () => unknown): unknown => {
  try {
    return bind()
  } catch {
    return undefined
  }
}

const readVersion = (library: LibraryHandle): number | undefined => {
  try {
    const version = new Int32Array(1)
    const status = library.func("cuDriverGetVersion", "int", [...driverFunctions.cuDriverGetVersion])(version)
    return status === 0 ? version[0] : undefined
  } catch {
    return undefined
  }
}

const openIpc = "cuIpcOpenEventHandle"
const openMemory = "cuIpcOpenMemHandle_v2"

/**
 * Binds a function that takes an address, a struct of 64 bytes by value, and numbers. Passes the struct in the form that the calling convention gives it. Does not use a koffi
 * struct, because koffi would read it property by property and crash the process if the thread is terminated meanwhile. The System V
 * ABI of x86-64 copies the bytes to the stack, where arguments go once all six registers are used; other ABIs pass the address of a copy.
 */
const bindByValue = (library: LibraryHandle, functionName: string, numbers: ReadonlyArray<string> = []) => {
  if (process.arch !== "x64" || process.platform === "win32") {
    return library.func(functionName, "int", ["void *", "void *", ...numbers])
  }
  const unused = Array<number>(5 - numbers.length).fill(0)
  const types = Array<string>(unused.length + ipcHandleSize / 8).fill("uint64_t")
  const call = library.func(functionName, "int", ["void *", ...numbers, ...types])
  return (out: ArrayBufferView, handle: Uint8Array, ...rest: ReadonlyArray<number>): number =>
    call(out, ...rest, ...unused, ...new BigUint64Array(handle.slice().buffer))
}

const findMemset = (koffi: typeof Koffi): Memset | undefined => {
  try {
    const c = koffi.load(process.platform === "win32" ? "ucrtbase.dll" : null)
    return c.func("memset", "uintptr_t", ["uintptr_t", "int", "size_t"]).async
  } catch {
    return undefined
  }
}

/** `PROT_READ | PROT_WRITE`, and `MAP_PRIVATE | MAP_ANONYMOUS` on Linux. */
const mapFlags = { access: 0x1 | 0x2, kind: 0x2 | 0x20 }
/** `MEM_COMMIT | MEM_RESERVE`, `PAGE_READWRITE`, and `MEM_RELEASE` on Windows. */
const allocationFlags = { kind: 0x1000 | 0x2000, access: 0x4, release: 0x8000 }

const findPages = (koffi: typeof Koffi): Pages | undefined => {
  try {
    return process.platform === "win32" ? windowsPages(koffi) : unixPages(koffi)
  } catch {
    return undefined
  }
}

const unixPages = (koffi: typeof Koffi): Pages => {
  const c = koffi.load(null)
  const mmap = c.func("mmap", "uintptr_t", ["uintptr_t", "size_t", "int", "int", "int", "int64_t"])
  const munmap = c.func("munmap", "int", ["uintptr_t", "size_t"])
  return {
    map: (byteLength) => {
      const address: unknown = mmap(0, byteLength, mapFlags.access, mapFlags.kind, -1, 0)
      // MAP_FAILED is the highest address, which koffi returns as a bigint because it exceeds the safe integers.
      return typeof address === "number" ? address as HostPointer : undefined
    },
    unmap: munmap
  }
}

const windowsPages = (koffi: typeof Koffi): Pages => {
  const kernel = koffi.load("kernel32.dll")
  const allocate = kernel.func("VirtualAlloc", "uintptr_t", ["uintptr_t", "size_t", "uint32_t", "uint32_t"])
  const free = kernel.func("VirtualFree", "int", ["uintptr_t", "size_t", "uint32_t"])
  return {
    map: (byteLength) => {
      const address: unknown = allocate(0, byteLength, allocationFlags.kind, allocationFlags.access)
      return typeof address === "number" && address > 0 ? address as HostPointer : undefined
    },
    unmap: (address) => free(address, 0, allocationFlags.release)
  }
}

/** `MADV_DONTNEED` and `MADV_HUGEPAGE` on Linux. */
const advice = { drop: 4, largePages: 14 }

const findAdvise = (koffi: typeof Koffi): DriverLibrary["wantLargePages"] => {
  if (process.platform !== "linux") return undefined
  try {
    const madvise = koffi.load(null).func("madvise", "int", ["uintptr_t", "size_t", "int"])
    return (address, byteLength) => {
      madvise(address, byteLength, advice.drop)
      madvise(address, byteLength, advice.largePages)
    }
  } catch {
    return undefined
  }
}
