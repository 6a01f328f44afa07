/**
 * Loads NVRTC with koffi, from the places where each platform has it. Importing this module loads nothing native; `load`
 * does. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"
import type { LibraryHandle } from "koffi"
import { readFile, stat } from "node:fs/promises"
import { isAbsolute } from "node:path"
import { inTurn } from "./asyncCalls.ts"
import { environment } from "./environment.ts"
import { newestFirst, search, toolkitFolders } from "./find.ts"
import type { Environment, Files, Found, Places } from "./find.ts"
import { importKoffi, koffiPath, openForGood, stackSize } from "./koffi.ts"
import type { Tried } from "./koffi.ts"
import { nvrtcFunctions, nvrtcSuccess, setFlowCallback } from "./nvrtc.ts"
import type { NvrtcFunctionName, NvrtcFunctions } from "./nvrtc.ts"

/** A request to stop a compilation. Must live as long as the compilation. */
export interface Stop {
  /** Read by the compiler's threads. */
  readonly flag: Uint8Array<ArrayBuffer>
  readonly request: () => void
}

/** A loaded NVRTC. */
export interface NvrtcLibrary {
  readonly path: string
  readonly version: { readonly major: number; readonly minor: number }
  /** The supported architectures, ascending: 90 is `sm_90`. */
  readonly architectures: ReadonlyArray<number>
  /** Distinguishes releases of the same version by their file, where the system tells which file was loaded. */
  readonly identity: string
  readonly calls: NvrtcFunctions
  /** Lets a program's compilation be stopped early, where NVRTC supports it (12.8 and later). */
  readonly allowStop: (program: number, stop: Stop) => Promise<void>
  /** The C string at an address. */
  readonly readText: (address: number) => string
}

/** The result of loading. */
export type NvrtcLoadResult = Found<NvrtcLibrary>

/** With a smaller stack, a compilation could crash the process. */
const leastStack = 4 * 1024 * 1024

/** The places to search. The driver's own version comes first: the driver is certain to run its output. */
export const nvrtcPlaces = (platform: NodeJS.Platform, environment: Environment, driverMajor: number): Places => {
  const majors = [...new Set([driverMajor, 13, 12])]
  const folders = toolkitFolders(["cuda_nvrtc"], platform, environment)
  if (platform === "linux") {
    return { names: [...majors.map((major) => `libnvrtc.so.${major}`), "libnvrtc.so", "libnvrtc.so.11.2"], folders }
  }
  if (platform === "win32") {
    return { names: [...majors.map((major) => `nvrtc64_${major}0_0.dll`), "nvrtc64_112_0.dll"], folders }
  }
  return { names: [], folders }
}

/** The files of NVRTC: the driver's own version first, then the shortest name of a version. */
export const nvrtcFiles = (driverMajor: number): Files => {
  const isDrivers = (file: string) => new RegExp(`^(?:libnvrtc\\.so\\.|nvrtc64_)${driverMajor}(?!\\d{2})`).test(file)
  return {
    title: "NVRTC",
    matches: /^(?:libnvrtc\.so(?:\.\d+)*|nvrtc64_\d+_\d+\.dll)$/,
    order: (one, other) =>
      Number(isDrivers(other)) - Number(isDrivers(one)) || newestFirst(one.slice(0, 14), other.slice(0, 14)) ||
      one.length - other.length
  }
}

/** Libraries stay loaded and bound for the lifetime of the process. */
const loaded = new Map<string, NvrtcLibrary>()

/** Loads the library at a path; without one, the first of the usual places that has a loadable library. */
export const load = async (path: string | undefined, driverMajor: number): Promise<NvrtcLoadResult> => {
  const koffi = await importCompilerKoffi()
  if ("problem" in koffi) return { _tag: "NotFound", searched: [koffi] }
  const places = path === undefined
    ? nvrtcPlaces(process.platform, environment, driverMajor)
    : { names: [path], folders: [] }
  return search(places, nvrtcFiles(driverMajor), (found) => open(koffi, found))
}

const open = async (koffi: typeof Koffi, path: string): Promise<NvrtcLibrary> => {
  const known = loaded.get(path)
  if (known !== undefined) return known
  await openForGood(koffi, path)
  const library = await bind(koffi, path, koffi.load(path))
  loaded.set(path, library)
  return library
}

/** koffi with a stack large enough for a compiler, or the problem with it. */
const importCompilerKoffi = async (): Promise<typeof Koffi | Tried> => {
  const koffi = await importKoffi()
  if ("problem" in koffi) return koffi
  const stack = koffi.config().async_stack_size!
  if (stack >= leastStack) return koffi
  const size = `${stack / 1024} KiB`
  const problem =
    `its calls off the JS thread have a stack of ${size}, too small for a compiler, because a library was loaded with ` +
    "koffi before the runtime was built; build the runtime first, or call " +
    `koffi.config({ async_stack_size: ${stackSize} }) before loading that library`
  return { path: koffiPath, problem }
}

const bind = async (koffi: typeof Koffi, path: string, library: LibraryHandle): Promise<NvrtcLibrary> => {
  const bound: Record<string, unknown> = {}
  for (const name of Object.keys(nvrtcFunctions) as ReadonlyArray<NvrtcFunctionName>) {
    bound[name] = offThread(library, name, nvrtcFunctions[name])
  }
  const calls = bound as NvrtcFunctions
  return {
    path,
    version: await readVersion(calls),
    architectures: await readArchitectures(calls),
    identity: await identify(path),
    calls,
    allowStop: findAllowStop(koffi, library),
    readText: (address) => koffi.decode.string(BigInt(address))
  }
}

const offThread = (library: LibraryHandle, name: string, parameters: ReadonlyArray<string>) => {
  const bound = find(library, name, parameters)
  return (...values: ReadonlyArray<unknown>): Promise<number> =>
    new Promise((resolve, reject) => {
      inTurn(
        (onEnd) => bound.async(...values, onEnd),
        (error, status) => error === null ? resolve(status) : reject(error)
      )
    })
}

const find = (library: LibraryHandle, name: string, parameters: ReadonlyArray<string>) => {
  try {
    return library.func(name, "int", [...parameters])
  } catch {
    throw new Error(`it has no ${name}, so it is not NVRTC 11.2 or later`)
  }
}

const readVersion = async (calls: NvrtcFunctions) => {
  const [major, minor] = [new Int32Array(1), new Int32Array(1)]
  const status = await calls.nvrtcVersion(major, minor)
  if (status !== nvrtcSuccess) throw new Error(`its nvrtcVersion returned ${status}`)
  return { major: major[0]!, minor: minor[0]! }
}

const readArchitectures = async (calls: NvrtcFunctions) => {
  const count = new Int32Array(1)
  const counted = await calls.nvrtcGetNumSupportedArchs(count)
  const architectures = new Int32Array(Math.max(1, count[0]!))
  const status = counted === nvrtcSuccess ? await calls.nvrtcGetSupportedArchs(architectures) : counted
  if (status !== nvrtcSuccess) throw new Error(`its nvrtcGetSupportedArchs returned ${status}`)
  return [...architectures.subarray(0, count[0])]
}

/**
 * The callback is the C library's `strlen`, so that no JavaScript runs on the compiler's threads. For the empty string
 * in the flag it returns 0, which means continue; once the flag's first byte is set it returns 1, which means stop.
 */
const findAllowStop = (koffi: typeof Koffi, library: LibraryHandle): NvrtcLibrary["allowStop"] => {
  try {
    const c = koffi.load(process.platform === "win32" ? "ucrtbase.dll" : null)
    const strlen = Number(c.symbol("strlen"))
    const set = offThread(library, setFlowCallback.name, setFlowCallback.parameters)
    return async (program, stop) => {
      await set(program, strlen, stop.flag)
    }
  } catch {
    return () => Promise.resolve()
  }
}

/** Uses a separate `ArrayBuffer`, whose memory does not move while the compiler's threads read it. */
export const makeStop = (): Stop => {
  const flag = new Uint8Array(new ArrayBuffer(64))
  return {
    flag,
    request: () => {
      flag[0] = 1
    }
  }
}

const identify = async (path: string): Promise<string> => {
  try {
    const file = isAbsolute(path) ? path : await mappedFile(path)
    if (file === undefined) return ""
    const { mtimeMs, size } = await stat(file)
    return `${size} ${mtimeMs}`
  } catch {
    return ""
  }
}

/** The file that the system's loader found for a bare name. */
const mappedFile = async (name: string): Promise<string | undefined> => {
  const maps = await readFile("/proc/self/maps", "utf8")
  const paths = maps.split("\n").filter((line) => line.includes("/")).map((line) => line.slice(line.indexOf("/")))
  const files = [...new Set(paths)].filter((path) => path.includes("/libnvrtc.so"))
  return files.find((file) => file.includes(`/${name}`)) ?? files[0]
}
