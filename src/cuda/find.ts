/**
 * Finds shared libraries: those that come with the driver, and those of CUDA toolkits, Python packages and conda
 * environments. One search serves all of them, and reports every place without a usable library. No Effect here, and no
 * koffi: the caller opens what is found.
 *
 * @since 0.1.0
 */
import { readdir } from "node:fs/promises"
import { isAbsolute, join } from "node:path"
import { messageOf } from "./koffi.ts"
import type { Tried } from "./koffi.ts"

/** Variables of the environment. */
export type Environment = Readonly<Record<string, string | undefined>>

/** Names and paths for the system's loader, then folders, in search order. `*` matches any part of one path segment. */
export interface Places {
  readonly names: ReadonlyArray<string>
  readonly folders: ReadonlyArray<string>
}

/** Which files of a folder are the library. */
export interface Files {
  /** How problems refer to the library. */
  readonly title: string
  readonly matches: RegExp
  /** Orders the files of one folder, the best first. */
  readonly order: (one: string, other: string) => number
}

/** The result of a search. */
export type Found<Library> =
  | { readonly _tag: "Loaded"; readonly library: Library }
  | { readonly _tag: "NotFound"; readonly searched: ReadonlyArray<Tried> }

/** A library that comes with the driver: its file name on Linux and on Windows. */
export interface DriverFile {
  readonly linux: string
  readonly win32: string
  /** Further folders on Windows. */
  readonly windowsFolders?: ReadonlyArray<string>
}

/**
 * The paths of a library that comes with the driver, in search order. The bare name comes first, except under WSL, where the
 * distribution may contain a driver that does not work there.
 */
export const driverPlaces = (
  file: DriverFile,
  platform: NodeJS.Platform,
  environment: Environment
): ReadonlyArray<string> => {
  if (platform === "win32") {
    const system = `${environment["SystemRoot"] ?? "C:\\Windows"}\\System32`
    return [file.win32, ...[system, ...file.windowsFolders ?? []].map((folder) => `${folder}\\${file.win32}`)]
  }
  if (platform !== "linux") return []
  const wsl = `/usr/lib/wsl/lib/${file.linux}`
  const isWsl = environment["WSL_DISTRO_NAME"] !== undefined
  return [
    ...(isWsl ? [wsl, file.linux] : [file.linux, wsl]),
    ...driverFolders.map((folder) => `${folder}/${file.linux}`)
  ]
}

/** Where distributions and containers put the driver's libraries. */
const driverFolders = [
  "/usr/lib/x86_64-linux-gnu",
  "/usr/lib/aarch64-linux-gnu",
  "/usr/lib/aarch64-linux-gnu/tegra",
  "/usr/lib64",
  "/usr/lib",
  "/usr/local/nvidia/lib64",
  "/usr/local/nvidia/lib",
  "/run/opengl-driver/lib"
]

/**
 * The folders of a toolkit's library, in search order. `wheels` are the folders of its Python packages for CUDA 12; those for CUDA 13
 * share one folder.
 */
export const toolkitFolders = (
  wheels: ReadonlyArray<string>,
  platform: NodeJS.Platform,
  environment: Environment
): ReadonlyArray<string> => {
  if (platform === "linux") return [...new Set(linuxFolders(wheels, environment))]
  if (platform === "win32") return [...new Set(windowsFolders(wheels, environment))]
  return []
}

/** The folders below each root that is set. */
const below = (roots: ReadonlyArray<string | undefined>, folders: ReadonlyArray<string>): ReadonlyArray<string> =>
  roots.filter((root) => root !== undefined && root !== "").flatMap((root) => folders.map((folder) => root + folder))

const linuxFolders = (wheels: ReadonlyArray<string>, environment: Environment): ReadonlyArray<string> => {
  const { CONDA_PREFIX, CUDA_HOME, CUDA_PATH, HOME, VIRTUAL_ENV } = environment
  const toolkit = ["/lib64", "/targets/*-linux/lib"]
  const inPackages = (packages: string) =>
    ["cu1*", ...wheels].map((wheel) => `/python3*/${packages}/nvidia/${wheel}/lib`)
  const python = inPackages("site-packages").map((wheel) => `/lib${wheel}`)
  return [
    ...below([CUDA_HOME, CUDA_PATH], ["/lib64", "/lib", "/targets/*-linux/lib"]),
    ...below([CONDA_PREFIX], ["/lib", ...python]),
    ...below([VIRTUAL_ENV], python),
    ...below(["/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda"], toolkit),
    "/usr/lib/*-linux-gnu",
    "/usr/lib64",
    "/usr/lib/cuda/lib64",
    "/opt/nvidia/hpc_sdk/Linux_*/*/cuda/lib64",
    ...below(HOME !== undefined && isAbsolute(HOME) ? [`${HOME}/.local/lib`] : [], inPackages("site-packages")),
    ...below(["/usr/local/lib"], [...inPackages("dist-packages"), ...inPackages("site-packages")]),
    ...below(["/usr/lib"], inPackages("dist-packages")),
    "/opt/conda/lib",
    ...below(["/opt/*", "/opt/*/.venv"], python)
  ]
}

const windowsFolders = (wheels: ReadonlyArray<string>, environment: Environment): ReadonlyArray<string> => {
  const { CONDA_PREFIX, CUDA_HOME, CUDA_PATH, ProgramFiles = "C:\\Program Files", VIRTUAL_ENV } = environment
  const toolkit = ["\\bin\\x64", "\\bin"]
  const packages = ["cu1*\\bin\\x86_64", "cu1*\\bin", ...wheels.map((wheel) => `${wheel}\\bin`)]
  return [
    ...below([CUDA_HOME, CUDA_PATH], toolkit),
    ...below([CONDA_PREFIX], ["\\Library\\bin"]),
    ...below([VIRTUAL_ENV], packages.map((wheel) => `\\Lib\\site-packages\\nvidia\\${wheel}`)),
    ...below([`${ProgramFiles}\\NVIDIA GPU Computing Toolkit\\CUDA\\v*`], toolkit)
  ]
}

/** Lists the entries of a folder. Rejects if there is no such folder. */
type List = (folder: string) => Promise<ReadonlyArray<string>>

/** Expands `*` in folder names and lists their libraries, and the places without any. */
export const findInFolders = async (
  patterns: ReadonlyArray<string>,
  files: Files,
  list: List = readdir
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
    const entries = await Promise.all(folders.map(async (folder) => ({ folder, names: await inside(folder) })))
    const libraries = entries.flatMap(({ folder, names = [] }) =>
      names.filter((name) => files.matches.test(name)).sort(files.order).map((name) => join(folder, name))
    )
    found.push(...libraries)
    if (libraries.length > 0) continue
    const exists = entries.some(({ names }) => names !== undefined)
    empty.push({ path: pattern, problem: exists ? `no ${files.title} in it` : "no such folder" })
  }
  return { found: [...new Set(found)], empty }
}

/** The folders that match a pattern, the highest version first. */
const expand = async (pattern: string, list: List): Promise<ReadonlyArray<string>> => {
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
    [...names].sort(newestFirst).map((entry) => expand(`${folder}${separator}${entry}${rest}`, list))
  )
  return expanded.flat()
}

/** Orders names by the versions in them, the highest first. */
export const newestFirst = (one: string, other: string): number => other.localeCompare(one, "en", { numeric: true })

/**
 * Opens the first library that can be opened: names for the loader first, then the files of the folders. `open` throws an error that
 * says what is wrong with a library.
 */
export const search = async <Library>(
  places: Places,
  files: Files,
  open: (path: string) => Library | Promise<Library>,
  list?: List
): Promise<Found<Library>> => {
  const byName = await openFirst(places.names, open)
  if (byName._tag === "Loaded" || places.folders.length === 0) return byName
  const { empty, found } = await findInFolders(places.folders, files, list)
  const inFolder = await openFirst(found, open)
  if (inFolder._tag === "Loaded") return inFolder
  return { _tag: "NotFound", searched: [...byName.searched, ...inFolder.searched, ...empty] }
}

/** Opens the first library of a list that can be opened. */
export const openFirst = async <Library>(
  paths: ReadonlyArray<string>,
  open: (path: string) => Library | Promise<Library>
): Promise<Found<Library>> => {
  const searched: Array<Tried> = []
  for (const path of paths) {
    try {
      return { _tag: "Loaded", library: await open(path) }
    } catch (error) {
      searched.push({ path, problem: messageOf(error) })
    }
  }
  return { _tag: "NotFound", searched }
}
