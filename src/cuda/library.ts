/**
 * Where the driver's library is on each platform, and loading it with koffi. Nothing native is loaded before `load` is
 * called. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"
import type { LibraryHandle, TypeObject } from "koffi"
import { ipcHandleSize } from "./flags.ts"
import { driverFunctions, ipcHandleType, koffiType, locationType, optionalDriverFunctions } from "./functions.ts"
import type { DriverFunctionName, DriverFunctions } from "./functions.ts"
import type { HostPointer } from "./handles.ts"
import { importKoffi, keepFlags, messageOf } from "./koffi.ts"
import type { Tried } from "./koffi.ts"

/** Fills memory; lets pages be touched off the JS thread. */
export type Memset = (
  address: number,
  value: number,
  byteLength: number,
  done: (error: unknown) => void
) => void

/** A loaded driver library. */
export interface DriverLibrary {
  readonly path: string
  readonly calls: DriverFunctions
  /** The C string at an address. */
  readonly readText: (address: number) => string
  /** The address of the memory of a buffer. */
  readonly addressOf: (buffer: ArrayBuffer) => HostPointer
  /** Memory at an address, as a buffer that must not be reachable any more when the memory goes. It cannot be detached. */
  readonly viewOf: (address: number, byteLength: number) => ArrayBuffer
  /** The C library's `memset` on a thread of the pool, where the platform has one under a name known here. */
  readonly memset: Memset | undefined
  /**
   * Asks the system for large pages behind an address instead of those that are there, on Linux (`madvise`). What was in them
   * is 0 then. Only a wish: what becomes of it is not said.
   */
  readonly wantLargePages: ((address: number, byteLength: number) => void) | undefined
}

/** How loading ended. */
export type LoadResult =
  | { readonly _tag: "Loaded"; readonly library: DriverLibrary }
  | { readonly _tag: "NotFound"; readonly searched: ReadonlyArray<Tried> }
  | { readonly _tag: "KoffiNotLoaded"; readonly problem: string }
  | {
    readonly _tag: "FunctionMissing"
    readonly functionName: DriverFunctionName
    /** CUDA version of the driver, as far as it says; it may lack the function because it is too old. */
    readonly driverVersion: number | undefined
  }

/**
 * The places to look for the driver's library, in order. The bare name comes first, except under WSL, where the
 * distribution may hold a driver of its own that cannot work there.
 */
export const candidates = (
  platform: NodeJS.Platform,
  environment: Readonly<Record<string, string | undefined>>
): ReadonlyArray<string> => {
  if (platform === "win32") {
    return ["nvcuda.dll", `${environment["SystemRoot"] ?? "C:\\Windows"}\\System32\\nvcuda.dll`]
  }
  if (platform !== "linux") return []
  const wsl = "/usr/lib/wsl/lib/libcuda.so.1"
  const bare = "libcuda.so.1"
  const isWsl = environment["WSL_DISTRO_NAME"] !== undefined
  return [
    ...(isWsl ? [wsl, bare] : [bare, wsl]),
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
    "/usr/lib64/libcuda.so.1",
    "/usr/lib/libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
    "/run/opengl-driver/lib/libcuda.so.1"
  ]
}

/** Libraries stay loaded and bound for the life of the process. */
const loaded = new Map<string, DriverLibrary>()

/** Loads the first library of the list that the system accepts, and binds every function of the table. */
export const load = async (paths: ReadonlyArray<string>): Promise<LoadResult> => {
  const koffi = await importKoffi()
  if ("problem" in koffi) return { _tag: "KoffiNotLoaded", problem: koffi.problem }
  const searched: Array<Tried> = []
  for (const path of paths) {
    const known = loaded.get(path)
    if (known !== undefined) return { _tag: "Loaded", library: known }
    try {
      const library = koffi.load(path)
      if (isDriver(library)) return bind(koffi, path, library)
      searched.push({ path, problem: "not a CUDA driver: it has no cuInit" })
    } catch (error) {
      searched.push({ path, problem: messageOf(error) })
    }
  }
  return { _tag: "NotFound", searched }
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
  const structs = { [ipcHandleType]: ipcHandleStruct(koffi), [locationType]: koffi.struct({ type: "int", id: "int" }) }
  const typesOf = (types: ReadonlyArray<string>) =>
    types.map((type) => type === ipcHandleType || type === locationType ? structs[type] : koffiType(type))
  const calls: Record<string, unknown> = {}
  for (const functionName of Object.keys(driverFunctions) as ReadonlyArray<DriverFunctionName>) {
    try {
      calls[functionName] = library.func(functionName, "int", typesOf(driverFunctions[functionName]))
    } catch {
      return { _tag: "FunctionMissing", functionName, driverVersion: readVersion(library) }
    }
  }
  for (const [functionName, types] of Object.entries(optionalDriverFunctions)) {
    calls[functionName] = bindOptional(library, functionName, typesOf(types))
  }
  const bound: DriverLibrary = {
    path,
    // A copy is laid out for quick access, which what was added to one by one is not.
    calls: { ...calls } as DriverFunctions,
    readText: (address) => koffi.decode.string(BigInt(address)),
    addressOf: (buffer) => Number(koffi.address(buffer)) as HostPointer,
    viewOf: (address, byteLength) => koffi.view(BigInt(address), byteLength),
    memset: findMemset(koffi),
    wantLargePages: findAdvise(koffi)
  }
  loaded.set(path, bound)
  keepLoaded(koffi, path)
  return { _tag: "Loaded", library: bound }
}

/** Nothing for a function that this driver lacks. */
const bindOptional = (library: LibraryHandle, functionName: string, parameters: Array<string | TypeObject>) => {
  try {
    return library.func(functionName, "int", parameters)
  } catch {
    return undefined
  }
}

/** The driver's own threads go on when the thread that loaded it ends and koffi lets go of the library. */
const keepLoaded = (koffi: typeof Koffi, path: string): void => {
  if (process.platform !== "linux") return
  try {
    koffi.load(null).func("dlopen", "uintptr_t", ["str", "int"])(path, keepFlags)
  } catch {
    // Without dlopen there is nothing to hold on to; the library is loaded all the same.
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

const ipcHandleStruct = (koffi: typeof Koffi) =>
  koffi.struct({ reserved: koffi.array("uint8_t", ipcHandleSize, "Typed") })

const findMemset = (koffi: typeof Koffi): Memset | undefined => {
  try {
    const c = koffi.load(process.platform === "win32" ? "ucrtbase.dll" : null)
    return c.func("memset", "uintptr_t", ["uintptr_t", "int", "size_t"]).async
  } catch {
    return undefined
  }
}

/** `MADV_DONTNEED` and `MADV_HUGEPAGE` of Linux. */
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
