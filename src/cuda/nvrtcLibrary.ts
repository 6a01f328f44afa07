/**
 * Where NVRTC is on each platform, and loading it with koffi. Nothing native is loaded before `prepare` or `load` is
 * called. No Effect here.
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

/** Asks a compilation to stop. Lives as long as the compilation. */
export interface Stop {
  /** Called by the compiler's threads, which see the memory. */
  readonly flag: Uint8Array<ArrayBuffer>
  readonly request: () => void
}

/** A loaded NVRTC. */
export interface NvrtcLibrary {
  readonly path: string
  readonly version: { readonly major: number; readonly minor: number }
  /** The architectures it compiles for, ascending: 90 is `sm_90`. */
  readonly architectures: ReadonlyArray<number>
  /** Tells its file from that of another release of the same version, where the system says which file it is. */
  readonly identity: string
  readonly calls: NvrtcFunctions
  /** Has a program's compilation end early when it is asked to, where this NVRTC can (12.8 and later). */
  readonly allowStop: (program: number, stop: Stop) => Promise<void>
  /** The C string at an address. */
  readonly readText: (address: number) => string
}

/** How loading ended. */
export type NvrtcLoadResult =
  | { readonly _tag: "Loaded"; readonly library: NvrtcLibrary }
  | { readonly _tag: "NotFound"; readonly searched: ReadonlyArray<Tried> }

/** The stack that calls off the JS thread get: that of a main thread and more, since a compiler nests deeply. */
const stackSize = 16 * 1024 * 1024

/** With less, a compilation could end the process. */
const leastStack = 4 * 1024 * 1024

/**
 * Has koffi give its calls off the JS thread the stack that a compiler needs, instead of 128 KiB. Only possible before
 * anything on this thread loads a library with koffi.
 */
export const prepare = async (): Promise<void> => {
  try {
    const { default: koffi } = await import("koffi")
    if (koffi.config().async_stack_size! < stackSize) koffi.config({ async_stack_size: stackSize })
  } catch {
    // Without koffi, or after a library was loaded: whoever compiles is told.
  }
}

type Environment = Readonly<Record<string, string | undefined>>

/** Bare names for the system's loader, and folders, in which `*` stands for any part of one name. In order. */
export interface NvrtcPlaces {
  readonly names: ReadonlyArray<string>
  readonly folders: ReadonlyArray<string>
}

/** The places to look for NVRTC. The driver's own version comes first, since the driver surely runs what that makes. */
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

/** The folders below each root that there is. */
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
    ...below(HOME ? [`${HOME}/.local/lib`] : [], wheels("site-packages")),
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

/** The libraries in folders whose names hold `*`; what is not there, or holds none, is a place that was tried. */
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

/** The folders that a pattern stands for, those of the highest version first. */
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

/** The driver's own version first, since the driver surely runs what that makes; of one version, the shortest name. */
const byFitness = (driverMajor: number) => (one: string, other: string): number => {
  const isDrivers = (file: string) => new RegExp(`^(?:libnvrtc\\.so\\.|nvrtc64_)${driverMajor}(?!\\d{2})`).test(file)
  return Number(isDrivers(other)) - Number(isDrivers(one)) || newestFirst(one.slice(0, 14), other.slice(0, 14)) ||
    one.length - other.length
}

/** Libraries stay loaded and bound for the life of the process. */
const loaded = new Map<string, NvrtcLibrary>()

/** Loads the library at a path, or else the first of the usual places that the system accepts. */
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

/** koffi with a stack that a compiler fits on, or what is wrong with it. */
const importCompilerKoffi = async (): Promise<typeof Koffi | Tried> => {
  const koffi = await importKoffi()
  if ("problem" in koffi) return koffi
  const stack = koffi.config().async_stack_size!
  if (stack >= leastStack) return koffi
  const size = `${stack / 1024} KiB`
  const problem =
    `its calls off the JS thread have a stack of ${size}, which a compiler overflows, because something loaded a library ` +
    "with it before the runtime was made; make the runtime before that, or have that call " +
    `koffi.config({ async_stack_size: ${stackSize} }) first`
  return { path: koffiPath, problem }
}

/**
 * Opens the library off the JS thread, since it is large, and keeps it open: a compilation goes on when the thread that
 * began it ends and koffi lets go of the library. A library that cannot be opened is left to koffi to explain.
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
    throw new Error(`it has no ${name}, so it is no NVRTC of version 11.2 or later`)
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
 * What the compiler asks is the C library's `strlen`, so that no code of ours runs on its threads: of an empty string
 * it is 0, which means to go on, and of one that has become longer by one byte it is 1, which means to stop.
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

/** Memory that stays where it is while threads look at it, and is theirs to see changed. */
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

/** The file that a bare name led the system's loader to. */
const mappedFile = async (name: string): Promise<string | undefined> => {
  const maps = await readFile("/proc/self/maps", "utf8")
  const files = new Set([...maps.matchAll(/(\/\S*\/libnvrtc\.so\S*)$/gm)].map((match) => match[1]!))
  return [...files].find((file) => file.includes(`/${name}`)) ?? [...files][0]
}
