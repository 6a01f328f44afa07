/**
 * Libraries that a program describes: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import type { ForeignLoadResult, LibraryRequest } from "../../cuda/foreignLibrary.ts"
import type { CudaError } from "../../CudaError.ts"
import type { LibraryDefinition } from "../CudaRuntime.ts"
import type { LibraryOperations } from "../runtime/libraries.ts"
import { readPath } from "./configuration.ts"
import type { Core } from "./Core.ts"
import { fileNames, refuseDefinition } from "./definitions.ts"
import { refuse, refuseArgument } from "./failures.ts"
import { callOperations } from "./libraryCalls.ts"
import { LibraryResource } from "./libraryFunctions.ts"
import { handleOperations } from "./libraryHandles.ts"

export interface LibraryBackend {
  /** Loads a library; undefined where native code cannot run. */
  readonly load: ((request: LibraryRequest) => Promise<ForeignLoadResult>) | undefined
}

export const libraryOperations = (core: Core): LibraryOperations => ({
  ...callOperations(core),
  ...handleOperations(core),
  libraryLoad: (definition, path) => Effect.suspend(() => load(core, definition, path))
})

const loading = "CudaLibrary.load"

const load = (
  core: Core,
  definition: LibraryDefinition,
  path: string | undefined
): Effect.Effect<LibraryResource, CudaError> => {
  const { backend } = core
  if (core.closed) return refuse(loading, { _tag: "ResourceReleased", resource: "the runtime" })
  const refused = refuseDefinition(loading, definition) ?? refusePath(path)
  if (refused !== undefined) return refused
  const { load } = backend.libraries
  if (load === undefined) return Effect.succeed(new LibraryResource(backend, definition, undefined))
  return Effect.flatMap(
    requestOf(core, definition, path),
    (request) =>
      Effect.flatMap(Effect.promise(() => load(request)), (result) => {
        if (result._tag === "Loaded") return Effect.succeed(new LibraryResource(backend, definition, result.library))
        return result._tag === "NotFound" ? refuseSearch(definition, result.searched) : refuse(loading, result)
      })
  )
}

const refusePath = (path: unknown) =>
  path === undefined || (typeof path === "string" && !path.includes("\0"))
    ? undefined
    : refuseArgument(loading, "path", path, "the path of a library")

/** The request for a library and for what it needs. */
const requestOf = (
  core: Core,
  definition: LibraryDefinition,
  path: string | undefined
): Effect.Effect<LibraryRequest, CudaError> =>
  Effect.gen(function*() {
    const { name, needs = [], wheels } = definition
    const files = fileNames(loading, definition, Math.floor(core.backend.driverVersion / 1000))
    if (Effect.isEffect(files)) return yield* files
    return {
      title: name,
      path: yield* readPath(loading, path, variableOf(name)),
      files,
      wheels,
      needs: yield* Effect.forEach(needs, (need) => requestOf(core, need, undefined))
    }
  })

const variableOf = (name: string): string => `EFFECT_CUDA_${name.toUpperCase().replace(/\W+/g, "_")}`

const refuseSearch = (
  { name }: LibraryDefinition,
  searched: ReadonlyArray<{ readonly path: string; readonly problem: string }>
) =>
  refuse(loading, {
    _tag: "LibraryUnavailable",
    library: name,
    searched,
    advice: `Install it with the CUDA toolkit or its Python package, or set its path with the path option or ${
      variableOf(name)
    }.`
  })
