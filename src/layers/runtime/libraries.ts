/**
 * Libraries that a program describes, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { LibraryParameter, LibraryReturn } from "../../cuda/libraryParameters.ts"
import type { CudaError, CudaErrorReason } from "../../CudaError.ts"

/**
 * A function of a library: its parameters, its result, where it may run, and what stands in for it on simulated devices.
 *
 * @category models
 * @since 0.1.0
 */
export interface LibraryFunction<
  out Parameters extends ReadonlyArray<LibraryParameter> = ReadonlyArray<LibraryParameter>,
  out Returns extends LibraryReturn = LibraryReturn
> {
  readonly parameters: Parameters
  readonly returns: Returns
  readonly thread: "js" | "own"
  readonly context: boolean
  readonly enqueues: boolean
  readonly since: string | undefined
  readonly simulate: ((...values: ReadonlyArray<never>) => unknown) | undefined
}

/**
 * The functions of a library, by name.
 *
 * @category models
 * @since 0.1.0
 */
export type LibraryFunctions = Readonly<Record<string, LibraryFunction>>

/**
 * What the codes of a library mean: the name and the meaning of each, or a function that returns the name of a code, or the reason of
 * the failure.
 *
 * @category models
 * @since 0.1.0
 */
export type LibraryStatuses =
  | { readonly [code: number]: readonly [name: string, meaning: string] }
  | ((code: number) => string | CudaErrorReason | undefined)

/**
 * The description of a library.
 *
 * @category models
 * @since 0.1.0
 */
export interface LibraryDefinition<out Functions extends LibraryFunctions = LibraryFunctions> {
  /** The name in failures. In capitals, it is also the end of the variable `EFFECT_CUDA_…` that holds the path of the library. */
  readonly name: string
  /** The names of the file for a platform and a CUDA version, the best first. */
  readonly files: (platform: NodeJS.Platform, cudaMajor: number) => ReadonlyArray<string>
  /** The folders of its Python packages for CUDA 12, below `nvidia`. Those for CUDA 13 share one, which is always searched. */
  readonly wheels: ReadonlyArray<string>
  /** Libraries that are loaded before this one. */
  readonly needs?: ReadonlyArray<LibraryDefinition> | undefined
  readonly statuses: LibraryStatuses
  /** Codes behind which there may be a fault of the GPU. The driver is then asked whether the contexts are lost. */
  readonly faults?: ReadonlyArray<number> | undefined
  readonly functions: Functions
}

/**
 * A library, loaded for a runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface LibraryRef {
  readonly definition: LibraryDefinition
  /** The file, or its name for the system's loader; undefined on simulated devices, which load nothing. */
  readonly path: string | undefined
}

/**
 * Operations on libraries that a program describes.
 *
 * @category models
 * @since 0.1.0
 */
export interface LibraryOperations {
  /** Loads a library for the lifetime of the process (`dlopen`), from a path or from where it is found. */
  readonly libraryLoad: (
    definition: LibraryDefinition,
    path: string | undefined
  ) => Effect.Effect<LibraryRef, CudaError>
}
