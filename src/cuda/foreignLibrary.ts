/**
 * Loads libraries that a program describes, with koffi, and declares their functions. Importing this module loads nothing native; `load`
 * does. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"
import type { LibraryHandle, TypeObject } from "koffi"
import { dirname, isAbsolute, join } from "node:path"
import { environment } from "./environment.ts"
import { openFirst, search, toolkitFolders } from "./find.ts"
import type { Environment, Files, Found, Places } from "./find.ts"
import { importKoffi, openForGood } from "./koffi.ts"
import type { Tried } from "./koffi.ts"
import { scalarTypes } from "./libraryParameters.ts"
import type { LibraryParameter, LibraryReturn } from "./libraryParameters.ts"

/** What a function takes and returns. */
export interface Signature {
  readonly parameters: ReadonlyArray<LibraryParameter>
  readonly returns: LibraryReturn
}

/** A library to load. */
export interface LibraryRequest {
  readonly title: string
  /** The file that the program has set; undefined to search for the library. */
  readonly path: string | undefined
  /** Names of the file, the best first. */
  readonly files: ReadonlyArray<string>
  /** Folders of its Python packages for CUDA 12. */
  readonly wheels: ReadonlyArray<string>
  /** Libraries that must be loaded before this one. */
  readonly needs: ReadonlyArray<LibraryRequest>
}

/** A declared function: called on this thread, or on a pool thread (`inTurn`) that passes the result to a callback. */
export interface ForeignFunction {
  (...values: ReadonlyArray<unknown>): unknown
  readonly async: (...values: ReadonlyArray<unknown>) => void
}

/** A loaded library. */
export interface ForeignLibrary {
  readonly path: string
  /** Declares a function; undefined if the library has none of that name. */
  readonly bind: (name: string, signature: Signature) => ForeignFunction | undefined
}

/** The result of loading. */
export type ForeignLoadResult = Found<ForeignLibrary> | { readonly _tag: "KoffiNotLoaded"; readonly problem: string }

/** Libraries stay loaded for the lifetime of the process: their threads, and work on the GPU, may outlive every use of them. */
const loaded = new Map<string, ForeignLibrary>()

/** Loads a library and what it needs. */
export const load = async (request: LibraryRequest): Promise<ForeignLoadResult> => {
  const koffi = await importKoffi()
  if ("problem" in koffi) return { _tag: "KoffiNotLoaded", problem: koffi.problem }
  return find(koffi, request, [])
}

/**
 * Names come before folders, so that a library that the process has loaded already is found, and not a second copy of it. A library
 * that is needed and not found is no failure by itself, since the loader may know where it is.
 */
const find = async (
  koffi: typeof Koffi,
  request: LibraryRequest,
  nearby: ReadonlyArray<string>
): Promise<Found<ForeignLibrary>> => {
  const { files, needs, path, wheels } = request
  const beside = path !== undefined && isAbsolute(path) ? [dirname(path)] : nearby
  const missing: Array<Tried> = []
  for (const need of needs) {
    const found = await find(koffi, need, beside)
    if (found._tag === "NotFound") missing.push(...found.searched)
  }
  const open = (candidate: string) => openLibrary(koffi, candidate)
  const found = path === undefined
    ? await searchFor(request, beside, placesOf(files, wheels, process.platform, environment), open)
    : await openFirst([path], open)
  return found._tag === "Loaded" ? found : { _tag: "NotFound", searched: [...missing, ...found.searched] }
}

const searchFor = async (
  { files, title }: LibraryRequest,
  beside: ReadonlyArray<string>,
  places: Places,
  open: (path: string) => Promise<ForeignLibrary>
): Promise<Found<ForeignLibrary>> => {
  const near = await openFirst(beside.flatMap((folder) => files.map((file) => join(folder, file))), open)
  if (near._tag === "Loaded") return near
  const found = await search(places, filesOf(title, files), open)
  return found._tag === "Loaded" ? found : { _tag: "NotFound", searched: [...near.searched, ...found.searched] }
}

/** The places to search, in order. */
export const placesOf = (
  files: ReadonlyArray<string>,
  wheels: ReadonlyArray<string>,
  platform: NodeJS.Platform,
  environment: Environment
): Places => ({ names: files, folders: toolkitFolders(wheels, platform, environment) })

/** The files of a library: those with one of its names, in their order. */
export const filesOf = (title: string, files: ReadonlyArray<string>): Files => ({
  title,
  matches: new RegExp(`^(?:${files.map((file) => file.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})$`),
  order: (one, other) => files.indexOf(one) - files.indexOf(other)
})

const openLibrary = async (koffi: typeof Koffi, path: string): Promise<ForeignLibrary> => {
  const known = loaded.get(path)
  if (known !== undefined) return known
  await openForGood(koffi, path)
  const library = libraryOf(koffi, path, koffi.load(path))
  loaded.set(path, library)
  return library
}

/** Each function is declared once per signature. */
const libraryOf = (koffi: typeof Koffi, path: string, library: LibraryHandle): ForeignLibrary => {
  const declared = new Map<string, ForeignFunction | undefined>()
  const declare = (name: string, { parameters, returns }: Signature) => {
    try {
      return library.func(name, returnType(returns), parameters.map((kind) => parameterType(koffi, kind)))
    } catch {
      return undefined
    }
  }
  return {
    path,
    bind: (name, signature) => {
      const key = JSON.stringify([name, signature.parameters, signature.returns])
      if (!declared.has(key)) declared.set(key, declare(name, signature))
      return declared.get(key)
    }
  }
}

const returnType = (returns: LibraryReturn): string => {
  if (returns === "status") return "int"
  if (returns === "void") return "void"
  return returns.kind === "text" ? "str" : scalarTypes[returns.kind]
}

const parameterType = (koffi: typeof Koffi, kind: LibraryParameter): string | TypeObject => {
  switch (kind.kind) {
    case "pointer":
    case "stream":
      return "uintptr_t"
    case "handle":
      return kind.as === "i32" ? "int" : "uintptr_t"
    case "newHandle":
    case "host":
      return "void *"
    case "text":
      return "str"
    case "bytes":
      return structOf(koffi, kind.size)
    default:
      return scalarTypes[kind.kind]
  }
}

const structs = new Map<number, TypeObject>()

/** A struct of bytes: its name would be taken at the second declaration, so it has none, and is kept. */
const structOf = (koffi: typeof Koffi, size: number): TypeObject => {
  const known = structs.get(size)
  if (known !== undefined) return known
  const made = koffi.struct({ bytes: koffi.array("uint8_t", size) })
  structs.set(size, made)
  return made
}
