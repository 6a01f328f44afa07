/**
 * Finds NVRTC on each platform and loads it with koffi. Importing this module loads nothing native; `prepare` and `load`
 * do. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"
import type { LibraryHandle } from "koffi"
import { readdir, readFile, stat } from "node:fs/promises"
import { isAbsolute, join } from "node:path"
import { inTurn } from "./asyncCalls.ts"
import { importKoffi, keepFlags, koffiPath, messageOf } from "./koffi.ts"
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
export type NvrtcLoadResult =
  | { readonly _tag: "Loaded"; readonly library: NvrtcLibrary }
  | { readonly _tag: "NotFound"; readonly searched: ReadonlyArray<Tried> }

/** The stack size for calls off the JS thread: more than a main thread's usual 8 MiB, since compilers recurse deeply. */
const stackSize = 16 * 1024 * 1024

/** With a smaller stack, a compilation could crash the process. */
const leastStack = 4 * 1024 * 1024

/**
 * Makes koffi give its calls off the JS thread the stack that a compiler needs, instead of 128 KiB. This works only
 * before the first library is loaded with koffi on this thread.
 */
export const prepare = async (): Promise<void> => {
  try {
    const { default: koffi } = await import("koffi")
    if (koffi.config().async_stack_size! < stackSize) koffi.config({ async_stack_size: stackSize })
  } catch {
    // Without koffi, or too late: the first compilation reports it.
  }
}

type Environment = Readonly<Record<string, string | undefined>>

/** Bare names for the system's loader, then folders, in search order. `*` matches any part of one path segment. */
export interface NvrtcPlaces {
  readonly names: ReadonlyArray<string>
  readonly folders: ReadonlyArray<string>
}

/** The places to search. The driver's own version comes first: the driver is certain to run its output. */
export const nvrtcPlaces = (
  platform: NodeJS.Platform,
  environment: Environment,
  driverMajor: number
): NvrtcPlaces => {
  const majors = [...new Set([driverMajor, 13, 12])]
  if (platform === "linux") {
    const names = [...majors.map((major) => `libnvrtc.so.${major}`), "libnvrtc.so", "libnvrtc.so.11.2"]
    return { names, folders: linuxFolders(environment) }
  }
  if (platform === "win32") {
    const names = [...majors.map((major) => `nvrtc64_${major}0_0.dll`), "nvrtc64_112_0.dll"]
    return { names, folders: windowsFolders(environment) }
  }
  return { names: [], folders: [] }
}

/** The folders below each root that is set. */
const below = (roots: ReadonlyArray<string | undefined>, folders: ReadonlyArray<string>): ReadonlyArray<string> =>
  roots.filter((root) => root !== undefined && root !== "").flatMap((root) => folders.map((folder) => root + folder))

const linuxFolders = (environment: Environment): ReadonlyArray<string> => {
  const { CONDA_PREFIX, CUDA_HOME, CUDA_PATH, HOME, VIRTUAL_ENV } = environment
  const toolkit = ["/lib64", "/targets/*-linux/lib"]
  const wheels = (packages: string) =>
    ["cu1*", "cuda_nvrtc"].map((wheel) => `/python3*/${packages}/nvidia/${wheel}/lib`)
  const python = wheels("site-packages").map((wheel) => `/lib${wheel}`)
  const folders = [
    ...below([CUDA_HOME, CUDA_PATH], ["/lib64", "/lib", "/targets/*-linux/lib"]),
    ...below([CONDA_PREFIX], ["/lib", ...python]),
    ...below([VIRTUAL_ENV], python),
    ...below(["/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda"], toolkit),
    "/usr/lib/*-linux-gnu",
    "/usr/lib64",
    "/usr/lib/cuda/lib64",
    "/opt/nvidia/hpc_sdk/Linux_*/*/cuda/lib64",
    ...below(HOME !== undefined && isAbsolute(HOME) ? [`${HOME}/.local/lib`] : [], wheels("site-packages")),
    ...below(["/usr/local/lib"], [...wheels("dist-packages"), ...wheels("site-packages")]),
    ...below(["/usr/lib"], wheels("dist-packages")),
    "/opt/conda/lib",
    ...below(["/opt/*", "/opt/*/.venv"], python)
  ]
  return [...new Set(folders)]
}

const windowsFolders = (environment: Environment): ReadonlyArray<string> => {
  const { CONDA_PREFIX, CUDA_HOME, CUDA_PATH, ProgramFiles = "C:\\Program Files", VIRTUAL_ENV } = environment
  const toolkit = ["\\bin\\x64", "\\bin"]
  const wheels = ["cu1*\\bin\\x86_64", "cu1*\\bin", "cuda_nvrtc\\bin"]
  const folders = [
    ...below([CUDA_HOME, CUDA_PATH], toolkit),
    ...below([CONDA_PREFIX], ["\\Library\\bin"]),
    ...below([VIRTUAL_ENV], wheels.map((wheel) => `\\Lib\\site-packages\\nvidia\\${wheel}`)),
    ...below([`${ProgramFiles}\\NVIDIA GPU Computing Toolkit\\CUDA\\v*`], toolkit)
  ]
  return [...new Set(folders)]
}

const libraryFile = /^(?:libnvrtc\.so(?:\.\d+)*|nvrtc64_\d+_\d+\.dll)$/

/** Expands `*` in folder names and lists their libraries, and the places without any. */
export const findInFolders = async (
  patterns: ReadonlyArray<string>,
  driverMajor: number,
  list: (folder: string) => Promise<ReadonlyArray<string>> = readdir
): Promise<{ readonly found: ReadonlyArray<string>; readonly empty: ReadonlyArray<Tried> }> => {
  const found: Array<string> = []
  const empty: Array<Tried> = []
  const inside = async (folder: string) => {
    try {
      return await list(folder)
    } catch {
      return undefined
    }
  }
  for (const pattern of patterns) {
    const folders = await expand(pattern, async (folder) => await inside(folder) ?? [])
    const filesIn = await Promise.all(folders.map(async (folder) => ({ folder, files: await inside(folder) })))
    const libraries = filesIn.flatMap(({ files = [], folder }) =>
      files.filter((file) => libraryFile.test(file)).sort(byFitness(driverMajor)).map((file) => join(folder, file))
    )
    found.push(...libraries)
    if (libraries.length > 0) continue
    const exists = filesIn.some(({ files }) => files !== undefined)
    empty.push({ path: pattern, problem: exists ? "no NVRTC in it" : "no such folder" })
  }
  return { found: [...new Set(found)], empty }
}

/** The folders that match a pattern, the highest version first. */
const expand = async (
  pattern: string,
  list: (folder: string) => Promise<ReadonlyArray<string>>
): Promise<ReadonlyArray<string>> => {
  const star = pattern.indexOf("*")
  if (star < 0) return [pattern]
  const separator = pattern.includes("\\") ? "\\" : "/"
  const start = pattern.lastIndexOf(separator, star)
  const end = pattern.indexOf(separator, star)
  const name = pattern.slice(start + 1, end < 0 ? undefined : end)
  const rest = end < 0 ? "" : pattern.slice(end)
  const [before = "", after = ""] = name.split("*")
  const folder = pattern.slice(0, start)
  const names = (await list(folder === "" ? separator : folder)).filter((entry) =>
    entry.length >= before.length + after.length && entry.startsWith(before) && entry.endsWith(after)
  )
  const expanded = await Promise.all(
    names.sort(newestFirst).map((entry) => expand(`${folder}${separator}${entry}${rest}`, list))
  )
  return expanded.flat()
}

const newestFirst = (one: string, other: string): number => other.localeCompare(one, "en", { numeric: true })

/** The driver's own version first, since the driver is certain to run its output; then the shortest name of a version. */
const byFitness = (driverMajor: number) => (one: string, other: string): number => {
  const isDrivers = (file: string) => new RegExp(`^(?:libnvrtc\\.so\\.|nvrtc64_)${driverMajor}(?!\\d{2})`).test(file)
  return Number(isDrivers(other)) - Number(isDrivers(one)) || newestFirst(one.slice(0, 14), other.slice(0, 14)) ||
    one.length - other.length
}

/** Libraries stay loaded and bound for the lifetime of the process. */
const loaded = new Map<string, NvrtcLibrary>()

/** Loads the library at a path; without one, the first of the usual places that has a loadable library. */
export const load = async (path: string | undefined, driverMajor: number): Promise<NvrtcLoadResult> => {
  const koffi = await importCompilerKoffi()
  if ("problem" in koffi) return { _tag: "NotFound", searched: [koffi] }
  const searched: Array<Tried> = []
  const places = path === undefined
    ? nvrtcPlaces(process.platform, process.env, driverMajor)
    : { names: [path], folders: [] }
  const first = await loadFirst(koffi, places.names, searched)
  if (first !== undefined) return { _tag: "Loaded", library: first }
  const { empty, found } = await findInFolders(places.folders, driverMajor)
  const second = await loadFirst(koffi, found, searched)
  if (second !== undefined) return { _tag: "Loaded", library: second }
  return { _tag: "NotFound", searched: [...searched, ...empty] }
}

const loadFirst = async (
  koffi: typeof Koffi,
  paths: ReadonlyArray<string>,
  searched: Array<Tried>
): Promise<NvrtcLibrary | undefined> => {
  for (const path of paths) {
    const known = loaded.get(path)
    if (known !== undefined) return known
    try {
      await openForGood(koffi, path)
      const library = await bind(koffi, path, koffi.load(path))
      loaded.set(path, library)
      return library
    } catch (error) {
      searched.push({ path, problem: messageOf(error) })
    }
  }
  return undefined
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

/**
 * Opens the library off the JS thread, since it is large, and keeps it open: a compilation may outlive the worker thread
 * that started it, whose koffi then closes the library. If opening fails, koffi reports why.
 */
const openForGood = (koffi: typeof Koffi, path: string): Promise<void> =>
  new Promise((resolve) => {
    if (process.platform !== "linux") return resolve()
    try {
      const open = koffi.load(null).func("dlopen", "uintptr_t", ["str", "int"])
      inTurn((onEnd) => open.async(path, keepFlags, onEnd), () => resolve())
    } catch {
      resolve()
    }
  })

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
