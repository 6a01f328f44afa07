/**
 * Libraries that a program describes, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { LibraryParameter, LibraryReturn } from "../../cuda/libraryParameters.ts"
import type { CudaError, CudaErrorReason } from "../../CudaError.ts"
import type { ResourceState } from "./resources.ts"
import type { StreamRef } from "./streams.ts"

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
  /** Codes that are no failures: of work that was accepted and is in progress. */
  readonly pending?: ReadonlyArray<number> | undefined
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
 * A handle of a library on a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface LibraryHandleRef {
  /** The name that its parameters have, such as `cublas`. */
  readonly kind: string
  /** The address, or the number, that the library knows it by; made up on simulated devices. Undefined for handles of streams. */
  readonly handle: number | undefined
  readonly deviceIndex: number
  readonly state: ResourceState
}

/**
 * How a handle is made and destroyed: names of functions.
 *
 * @category models
 * @since 0.1.0
 */
export interface LibraryHandleOptions {
  readonly create: string
  /** The arguments of `create`, without the handle. */
  readonly values: ReadonlyArray<unknown>
  readonly destroy: string
  /** Sets the stream of the handle, for libraries whose functions enqueue on that. */
  readonly setStream: string | undefined
  /** Whether calls with it on different streams wait for each other, as uses of an ordered buffer do. */
  readonly ordered?: boolean | undefined
  /** Whether it stands for one handle per stream, made when it is first used there. */
  readonly perStream?: boolean | undefined
}

/**
 * A handle that was made otherwise, and how it ends.
 *
 * @category models
 * @since 0.1.0
 */
export interface AdoptedHandle {
  /** The name that its parameters have. */
  readonly kind: string
  /** The address, or the number, that the library knows it by. */
  readonly handle: number
  /** The function that destroys it. */
  readonly destroy: string
  /** The function that ends it while work may still use it. Default: `destroy`. */
  readonly abort?: string | undefined
  /** Whether it can only be destroyed after the graphs that were captured with it. They are then released before it. */
  readonly endsGraphs?: boolean | undefined
}

/**
 * A C function: takes what its description says, as numbers, typed arrays and strings, and checks nothing.
 *
 * @category models
 * @since 0.1.0
 */
export type NativeFunction = (...values: ReadonlyArray<unknown>) => unknown

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
  /** Finds a C function; undefined on simulated devices. */
  readonly libraryFunction: (
    library: LibraryRef,
    name: string
  ) => Effect.Effect<NativeFunction | undefined, CudaError>
  /** Calls a function that enqueues work on a stream: one synchronous call, as `memoryEnqueue` makes it. */
  readonly libraryCall: (
    library: LibraryRef,
    name: string,
    values: ReadonlyArray<unknown>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /**
   * Calls a function that enqueues nothing, on the device of its handle, or on the given one. Returns its value. A stream stands for its
   * device, and says which of the handles of streams are meant.
   */
  readonly libraryRun: (
    library: LibraryRef,
    name: string,
    values: ReadonlyArray<unknown>,
    place: number | StreamRef
  ) => Effect.Effect<unknown, CudaError>
  /**
   * Makes several calls of a library in one turn of the event loop, with the context of a device current, as `libraryRun` makes one. They
   * return a status.
   */
  readonly libraryTurn: (
    library: LibraryRef,
    calls: () => number,
    deviceIndex: number
  ) => Effect.Effect<void, CudaError>
  /** Makes a handle. Cannot be interrupted once the call has begun. */
  readonly libraryHandle: (
    library: LibraryRef,
    options: LibraryHandleOptions,
    deviceIndex: number
  ) => Effect.Effect<LibraryHandleRef, CudaError>
  /** Takes over a handle that was made otherwise. Fails without having taken it if it cannot be used. */
  readonly libraryAdopt: (
    library: LibraryRef,
    handle: AdoptedHandle,
    deviceIndex: number
  ) => Effect.Effect<LibraryHandleRef, CudaError>
  /**
   * Destroys a handle once the work and the calls that use it have ended. With `abort`, ends it at once, also while another call waits for
   * them.
   */
  readonly libraryDestroy: (
    handle: LibraryHandleRef,
    options?: { readonly abort: boolean }
  ) => Effect.Effect<void, CudaError>
}
