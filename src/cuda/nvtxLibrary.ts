/**
 * Loads NVTX with koffi. Importing this module loads nothing native; `load` does. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"
import type { LibraryHandle } from "koffi"
import { inTurn } from "./asyncCalls.ts"
import { environment } from "./environment.ts"
import { search } from "./find.ts"
import type { Found } from "./find.ts"
import { importKoffi, openForGood, prepareStack } from "./koffi.ts"
import { nvtxFiles, nvtxFunctions, nvtxPlaces, optionalNvtxFunctions } from "./nvtx.ts"
import type { NvtxFunctionName, NvtxFunctions } from "./nvtx.ts"

/** A loaded NVTX. */
export interface NvtxLibrary {
  readonly path: string
  readonly calls: NvtxFunctions
  /** The address of a buffer's memory. */
  readonly addressOf: (buffer: ArrayBuffer) => number
}

/** Libraries stay loaded and bound for the lifetime of the process. */
const loaded = new Map<string, NvtxLibrary>()

/** Loads the library at a path; without one, the first of the usual places that has a loadable library. The profiler is loaded with it. */
export const load = async (path: string | undefined): Promise<Found<NvtxLibrary>> => {
  // This may be the first library of the program.
  await prepareStack()
  const koffi = await importKoffi()
  if ("problem" in koffi) return { _tag: "NotFound", searched: [koffi] }
  const places = path === undefined ? nvtxPlaces(process.platform, environment) : { names: [path], folders: [] }
  return search(places, nvtxFiles, (found) => open(koffi, found))
}

const open = async (koffi: typeof Koffi, path: string): Promise<NvtxLibrary> => {
  const known = loaded.get(path)
  if (known !== undefined) return known
  await openForGood(koffi, path)
  const calls = bind(koffi.load(path))
  await initialize(calls)
  const library = { path, calls, addressOf: (buffer: ArrayBuffer) => Number(koffi.address(buffer)) }
  loaded.set(path, library)
  return library
}

const bind = (library: LibraryHandle): NvtxFunctions => {
  const calls: Record<string, unknown> = {}
  for (const name of Object.keys(nvtxFunctions) as ReadonlyArray<NvtxFunctionName>) {
    const [result, ...parameters] = nvtxFunctions[name]
    try {
      calls[name] = library.func(name, result, parameters)
    } catch {
      throw new Error(`it has no ${name}, so it is not NVTX`)
    }
  }
  for (const [name, [result, ...parameters]] of Object.entries(optionalNvtxFunctions)) {
    try {
      calls[name] = library.func(name, result, parameters)
    } catch {
      // Profilers then show no names of streams.
    }
  }
  return { ...calls } as unknown as NvtxFunctions
}

/** Loads the profiler, off the JS thread. The first annotation would load it otherwise. */
const initialize = ({ nvtxInitialize }: NvtxFunctions): Promise<void> =>
  new Promise((resolve) => {
    inTurn((onEnd) => nvtxInitialize.async(0, onEnd), () => resolve())
  })
