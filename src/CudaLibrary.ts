/**
 * Any CUDA library: described once, with its files, its status codes and its functions, which are then Effects.
 *
 * Depends on the `CudaRuntime` interface, on parameters, and on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type {
  BytesKind,
  HandleKind,
  HostKind,
  LibraryParameter,
  LibraryReturn,
  NewHandleKind,
  StreamKind,
  TextKind
} from "./cuda/libraryParameters.ts"
import type { PointerKind, ScalarKind } from "./cuda/parameters.ts"
import type { CudaError } from "./CudaError.ts"
import { oneLine, ResourceHandle } from "./internal/handles.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type {
  CudaRuntimeService,
  LibraryDefinition,
  LibraryFunction,
  LibraryFunctions,
  LibraryRef,
  LibraryStatuses,
  ScalarArgument
} from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaLibrary"

export type {
  /**
   * A struct by value.
   *
   * @category models
   * @since 0.1.0
   */
  BytesKind,
  /**
   * A handle of the library.
   *
   * @category models
   * @since 0.1.0
   */
  HandleKind,
  /**
   * Memory of the host.
   *
   * @category models
   * @since 0.1.0
   */
  HostKind,
  /**
   * The description of a library.
   *
   * @category models
   * @since 0.1.0
   */
  LibraryDefinition,
  /**
   * A function of a library.
   *
   * @category models
   * @since 0.1.0
   */
  LibraryFunction,
  /**
   * The functions of a library, by name.
   *
   * @category models
   * @since 0.1.0
   */
  LibraryFunctions,
  /**
   * A kind of parameter.
   *
   * @category models
   * @since 0.1.0
   */
  LibraryParameter,
  /**
   * What a function returns.
   *
   * @category models
   * @since 0.1.0
   */
  LibraryReturn,
  /**
   * What the codes of a library mean.
   *
   * @category models
   * @since 0.1.0
   */
  LibraryStatuses,
  /**
   * Where a function stores the handle that it creates.
   *
   * @category models
   * @since 0.1.0
   */
  NewHandleKind,
  /**
   * The stream on which a function enqueues work.
   *
   * @category models
   * @since 0.1.0
   */
  StreamKind,
  /**
   * A string.
   *
   * @category models
   * @since 0.1.0
   */
  TextKind
}

/**
 * A loaded library.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaLibrary<out Functions extends LibraryFunctions = LibraryFunctions> extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaLibrary": "~effect-cuda/CudaLibrary"
  readonly runtime: CudaRuntimeService
  readonly ref: LibraryRef
  readonly definition: LibraryDefinition<Functions>
  /** The file, or its name for the system's loader; undefined on simulated devices, which load nothing. */
  readonly path: string | undefined
}

/**
 * Returns `true` if a value is a library.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaLibrary = (u: unknown): u is CudaLibrary => Predicate.hasProperty(u, TypeId)

class LibraryImpl<Functions extends LibraryFunctions> extends ResourceHandle<LibraryRef>
  implements CudaLibrary<Functions>
{
  readonly [TypeId] = TypeId
  readonly definition: LibraryDefinition<Functions>
  constructor(runtime: CudaRuntimeService, ref: LibraryRef, definition: LibraryDefinition<Functions>) {
    super(runtime, ref)
    this.definition = definition
  }
  get path(): string | undefined {
    return this.ref.path
  }
  toString(): string {
    return oneLine("CudaLibrary", this.definition.name, this.path)
  }
  toJSON() {
    return { _id: "CudaLibrary", name: this.definition.name, path: this.path }
  }
}

/**
 * The stream on which a function enqueues work. It is not among the arguments, since `call` passes it.
 *
 * @category parameters
 * @since 0.1.0
 */
export const stream: StreamKind = Object.freeze({ kind: "stream" })

/**
 * Memory of the host that the function reads before it returns (`const void*`): a factor, an algorithm, a descriptor. The argument is a
 * typed array that is not empty.
 *
 * @category parameters
 * @since 0.1.0
 */
export const hostInput: HostKind<false> = Object.freeze({ kind: "host", access: "read", nullable: false })

/**
 * Memory of the host that the function writes, and may read, before it returns (`int*`, `size_t*`).
 *
 * @category parameters
 * @since 0.1.0
 */
export const hostOutput: HostKind<false> = Object.freeze({ kind: "host", access: "write", nullable: false })

/**
 * A string (`const char*`).
 *
 * @category parameters
 * @since 0.1.0
 */
export const text: TextKind<false> = Object.freeze({ kind: "text", nullable: false })

/**
 * A struct by value, such as `ncclUniqueId`. The argument is a `Uint8Array` of that size.
 *
 * **Gotchas**
 *
 * C passes structs of up to 16 bytes that contain floating-point numbers in other registers. They are not supported.
 *
 * @category parameters
 * @since 0.1.0
 */
export const bytes = (size: number): BytesKind => Object.freeze({ kind: "bytes", size })

/**
 * A handle that `handle` has made. Handles of different names are different types.
 *
 * **Details**
 *
 * C passes most handles as pointers, and some, such as a `cufftHandle`, as an `int`: the option `as` says so.
 *
 * @category parameters
 * @since 0.1.0
 */
export const handleOf = <const Name extends string>(
  of: Name,
  options: { readonly as?: HandleKind["as"] | undefined } = {}
): HandleKind<Name, false> => Object.freeze({ kind: "handle", of, as: options.as ?? "pointer", nullable: false })

/**
 * Where a function stores the handle that it creates (`cublasHandle_t*`). Only `handle` calls such functions.
 *
 * @category parameters
 * @since 0.1.0
 */
export const newHandleOf = <const Name extends string>(
  of: Name,
  options: { readonly as?: HandleKind["as"] | undefined } = {}
): NewHandleKind<Name> => Object.freeze({ kind: "newHandle", of, as: options.as ?? "pointer" })

/**
 * Makes a kind of pointer, handle, host memory or text that also accepts `null`.
 *
 * @category parameters
 * @since 0.1.0
 */
export function nullable(kind: PointerKind): PointerKind<true>
export function nullable<Name extends string>(kind: HandleKind<Name>): HandleKind<Name, true>
export function nullable(kind: HostKind): HostKind<true>
export function nullable(kind: TextKind): TextKind<true>
export function nullable(kind: PointerKind | HandleKind | HostKind | TextKind): LibraryParameter {
  return Object.freeze({ ...kind, nullable: true })
}

/**
 * The values that stand for the arguments in the `simulate` of a function: memory as its bytes, everything else as it was given.
 *
 * @category models
 * @since 0.1.0
 */
export type SimulatedArguments<Parameters extends ReadonlyArray<LibraryParameter>> = Parameters extends
  readonly [infer Kind, ...infer Rest extends ReadonlyArray<LibraryParameter>]
  ? Kind extends StreamKind | NewHandleKind ? SimulatedArguments<Rest>
  : [SimulatedArgument<Kind>, ...SimulatedArguments<Rest>]
  : []

type SimulatedArgument<Kind> = Kind extends ScalarKind<infer Name> ? ScalarArgument<Name>
  : Kind extends PointerKind<infer Nullable> | HostKind<infer Nullable> ? Uint8Array | OrNull<Nullable>
  : Kind extends TextKind<infer Nullable> ? string | OrNull<Nullable>
  : Kind extends BytesKind ? Uint8Array
  : never

type OrNull<Nullable extends boolean> = Nullable extends false ? never : null

/**
 * What the `simulate` of a function returns: a status code (nothing is success), or the value of a function that returns one.
 *
 * @category models
 * @since 0.1.0
 */
export type SimulatedResult<Returns extends LibraryReturn> = Returns extends "status" ? number | void
  : Returns extends ScalarKind<infer Name> ? ScalarArgument<Name>
  : Returns extends TextKind ? string
  : void

/**
 * Options for describing a function.
 *
 * @category models
 * @since 0.1.0
 */
export interface FunctionOptions<
  Parameters extends ReadonlyArray<LibraryParameter>,
  Returns extends LibraryReturn = "status"
> {
  /** What it returns: an `int` status (the default), nothing, a number, or a string. */
  readonly returns?: Returns | undefined
  /**
   * Where it runs: `js`, on the JS thread (the default), for calls that take microseconds; or `own`, on a pool thread, for calls that
   * block. Functions that enqueue work run on the JS thread, because their place in the order would be unknown.
   */
  readonly thread?: "js" | "own" | undefined
  /** Whether the context of the device is current during the call. Default: true on the JS thread. On pool threads it never is. */
  readonly context?: boolean | undefined
  /** Whether it enqueues work on the GPU. Default: true if it takes a stream or device memory. */
  readonly enqueues?: boolean | undefined
  /** The version of the library that introduced it, for failures. */
  readonly since?: string | undefined
  /**
   * What it does on simulated devices. That of a function that enqueues work runs in stream order, when the device reaches the work: an
   * exception, or a status other than 0, is then a fault of the device.
   */
  readonly simulate?: ((...values: SimulatedArguments<Parameters>) => SimulatedResult<Returns>) | undefined
}

/**
 * Describes a C function of a library by its parameters, in order.
 *
 * **Details**
 *
 * Numbers and pointers to device memory are the kinds of `CudaParameter`; 16-bit floats are passed as their bits.
 *
 * **Gotchas**
 *
 * The description must be right. C cannot check it, and a wrong one crashes the process or corrupts its memory.
 *
 * @category descriptions
 * @since 0.1.0
 */
export function func<const Parameters extends ReadonlyArray<LibraryParameter>>(
  parameters: Parameters,
  options?: FunctionOptions<Parameters>
): LibraryFunction<Parameters, "status">
export function func<
  const Parameters extends ReadonlyArray<LibraryParameter>,
  const Returns extends LibraryReturn
>(
  parameters: Parameters,
  options: FunctionOptions<Parameters, Returns> & { readonly returns: Returns }
): LibraryFunction<Parameters, Returns>
export function func(
  parameters: ReadonlyArray<LibraryParameter>,
  options: AnyFunctionOptions = {}
): LibraryFunction {
  const { returns = "status", since, simulate, thread = "js" } = options
  const { context = thread === "js", enqueues = parameters.some(isOfDevice) } = options
  return Object.freeze({ parameters, returns, thread, context, enqueues, since, simulate })
}

type AnyFunctionOptions = { readonly [Field in keyof LibraryFunction]?: LibraryFunction[Field] | undefined }

const isOfDevice = (parameter: LibraryParameter): boolean =>
  parameter?.kind === "stream" || parameter?.kind === "pointer"

/**
 * Describes a library: where it is, what its codes mean, and its functions.
 *
 * **Details**
 *
 * `load` checks the description, and fails with `InvalidArgument` if it cannot be right.
 *
 * **Example** (cuBLAS)
 *
 * ```ts
 * import { CudaLibrary, CudaParameter } from "effect-cuda"
 *
 * const { f32, i32, input, pointer } = CudaParameter
 *
 * export const cublas = CudaLibrary.define({
 *   name: "cuBLAS",
 *   files: (platform, cuda) => [platform === "win32" ? `cublas64_${cuda}.dll` : `libcublas.so.${cuda}`],
 *   wheels: ["cublas"],
 *   statuses: {
 *     1: ["CUBLAS_STATUS_NOT_INITIALIZED", "the library was not initialized"],
 *     7: ["CUBLAS_STATUS_INVALID_VALUE", "an argument is invalid"],
 *     13: ["CUBLAS_STATUS_EXECUTION_FAILED", "the GPU failed to run the work"]
 *   },
 *   faults: [13],
 *   functions: {
 *     cublasCreate_v2: CudaLibrary.func([CudaLibrary.newHandleOf("cublas")], { simulate: () => 0 }),
 *     cublasDestroy_v2: CudaLibrary.func([CudaLibrary.handleOf("cublas")], { thread: "own" }),
 *     cublasSetStream_v2: CudaLibrary.func([CudaLibrary.handleOf("cublas"), CudaLibrary.stream]),
 *     cublasSscal_v2: CudaLibrary.func(
 *       [CudaLibrary.handleOf("cublas"), i32, CudaLibrary.hostInput, pointer, i32],
 *       {
 *         simulate: (_, count, alpha, x) => {
 *           const values = new Float32Array(x.buffer, x.byteOffset, count)
 *           const [factor = 1] = new Float32Array(alpha.buffer, alpha.byteOffset, 1)
 *           for (const [index, value] of values.entries()) values[index] = factor * value
 *         }
 *       }
 *     )
 *   }
 * })
 * ```
 *
 * @category descriptions
 * @since 0.1.0
 */
export const define = <const Functions extends LibraryFunctions>(
  definition: LibraryDefinition<Functions>
): LibraryDefinition<Functions> => definition

/**
 * Options for loading a library.
 *
 * @category models
 * @since 0.1.0
 */
export interface LoadOptions {
  /** The path of the library. Default: `EFFECT_CUDA_` and its name in capitals from the configuration, otherwise the usual locations. */
  readonly path?: string | undefined
}

/**
 * Loads a library off the JS thread (`dlopen`), together with those it needs.
 *
 * **Details**
 *
 * The library is loaded once, and stays loaded until the process ends: it has threads, and work on the GPU, that know nothing of scopes.
 * Its functions are looked up when they are first called, so that a library without one of them can be used; that call fails with
 * `FunctionMissing`.
 *
 * The system's loader is asked first, because it knows the libraries that the process has loaded already; then toolkits, Python packages and
 * conda environments are searched. Fails with `LibraryUnavailable`, which lists every place and what is wrong with it, and with
 * `InvalidArgument` for a description that cannot be right. Simulated devices load nothing.
 *
 * @category constructors
 * @since 0.1.0
 */
export const load = <Functions extends LibraryFunctions>(
  definition: LibraryDefinition<Functions>,
  options: LoadOptions = {}
): Effect.Effect<CudaLibrary<Functions>, CudaError, CudaRuntime> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const ref = yield* runtime.libraryLoad(definition, options.path)
    return new LibraryImpl(runtime, ref, definition)
  }).pipe(Effect.withSpan("CudaLibrary.load", { attributes: { "cuda.library": definition?.name } }))
