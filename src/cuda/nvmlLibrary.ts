/**
 * Loads NVML with koffi. It comes with the driver, also in containers that have no toolkit. Importing this module loads nothing
 * native; `load` does. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"
import type { LibraryHandle } from "koffi"
import { environment } from "./environment.ts"
import { driverPlaces, openFirst } from "./find.ts"
import type { Environment, Found } from "./find.ts"
import { importKoffi, openForGood } from "./koffi.ts"
import { nvmlFunctions, optionalNvmlFunctions } from "./nvml.ts"
import type { NvmlFunctions } from "./nvml.ts"

/** A loaded NVML. */
export interface NvmlLibrary {
  readonly path: string
  readonly calls: NvmlFunctions
}

/** The result of loading. */
export type NvmlLoadResult = Found<NvmlLibrary> | { readonly _tag: "KoffiNotLoaded"; readonly problem: string }

/** The places to search, in order. */
export const nvmlPlaces = (platform: NodeJS.Platform, environment: Environment): ReadonlyArray<string> => {
  const { ProgramFiles = "C:\\Program Files" } = environment
  const windowsFolders = [`${ProgramFiles}\\NVIDIA Corporation\\NVSMI`]
  return driverPlaces({ linux: "libnvidia-ml.so.1", win32: "nvml.dll", windowsFolders }, platform, environment)
}

/** Libraries stay loaded and bound for the lifetime of the process. */
const loaded = new Map<string, NvmlLibrary>()

/** Loads the library at a path; without one, the first of the usual places that has a loadable library. */
export const load = async (path: string | undefined): Promise<NvmlLoadResult> => {
  const koffi = await importKoffi()
  if ("problem" in koffi) return { _tag: "KoffiNotLoaded", problem: koffi.problem }
  const paths = path === undefined ? nvmlPlaces(process.platform, environment) : [path]
  return openFirst(paths, (found) => open(koffi, found))
}

const open = async (koffi: typeof Koffi, path: string): Promise<NvmlLibrary> => {
  const known = loaded.get(path)
  if (known !== undefined) return known
  await openForGood(koffi, path)
  const library = { path, calls: bind(koffi.load(path)) }
  loaded.set(path, library)
  return library
}

const bind = (library: LibraryHandle): NvmlFunctions => {
  const calls: Record<string, unknown> = {}
  for (const [name, types] of Object.entries(nvmlFunctions)) {
    calls[name] = find(library, name, types)
    if (calls[name] === undefined) throw new Error(`it has no ${name}, so it is not NVML`)
  }
  for (const [name, types] of Object.entries(optionalNvmlFunctions)) calls[name] = find(library, name, types)
  return { ...calls } as NvmlFunctions
}

const find = (library: LibraryHandle, name: string, types: ReadonlyArray<string>) => {
  try {
    return library.func(name, "int", [...types])
  } catch {
    return undefined
  }
}
