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
import type * as Scope from "effect/Scope"
import type { ElementArray } from "./cuda/elements.ts"
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
import type { ElementType, PointerKind, ScalarKind, ScalarValues } from "./cuda/parameters.ts"
import type { DeviceOptions } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import type { HostArray } from "./CudaMemory.ts"
import type { CudaStream } from "./CudaStream.ts"
import { isStream } from "./internal/given.ts"
import { DeviceHandle, hex, oneLine, refuseArgument, ResourceHandle, unlessLive } from "./internal/handles.ts"
import { namedNode } from "./internal/node.ts"
import { onStream, resolveDevice } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type {
  CudaRuntimeService,
  LibraryDefinition,
  LibraryFunction,
  LibraryFunctions,
  LibraryHandleRef,
  LibraryRef,
  LibraryStatuses,
  NativeFunction,
  PointerArgumentOf,
  RawAddress,
  ScalarArgument,
  StreamRef
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
   * A C function: takes what its description says, as numbers, typed arrays and strings, and checks nothing.
   *
   * @category models
   * @since 0.1.0
   */
  NativeFunction,
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
 * **Example** (A function that works on a stream)
 *
 * ```ts
 * import { CudaLibrary, CudaParameter } from "effect-cuda"
 *
 * const sort = CudaLibrary.func([CudaParameter.pointer, CudaParameter.i32, CudaLibrary.stream])
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export const stream: StreamKind = Object.freeze({ kind: "stream" })

/**
 * Memory of the host that the function reads before it returns (`const void*`): a factor, an algorithm, a descriptor. The argument is a
 * typed array that is not empty, and not of a `SharedArrayBuffer`.
 *
 * **Example** (A scalar that the function reads from host memory)
 *
 * ```ts
 * import { CudaLibrary, CudaParameter } from "effect-cuda"
 *
 * const scale = CudaLibrary.func([CudaLibrary.hostInput, CudaParameter.pointer, CudaLibrary.stream])
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export const hostInput: HostKind<false> = Object.freeze({ kind: "host", access: "read", nullable: false })

/**
 * Memory of the host that the function writes, and may read, before it returns (`int*`, `size_t*`).
 *
 * **Example** (A version that the function writes)
 *
 * ```ts
 * import { CudaLibrary } from "effect-cuda"
 *
 * const getVersion = CudaLibrary.func([CudaLibrary.hostOutput])
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export const hostOutput: HostKind<false> = Object.freeze({ kind: "host", access: "write", nullable: false })

/**
 * A string (`const char*`).
 *
 * **Example** (A function with a name as argument)
 *
 * ```ts
 * import { CudaLibrary } from "effect-cuda"
 *
 * const setName = CudaLibrary.func([CudaLibrary.handleOf("solver"), CudaLibrary.text])
 * ```
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
 * C passes structs of up to 16 bytes that contain floating-point numbers in other registers, on Arm also larger ones of up to four equal
 * floating-point numbers. They are not supported.
 *
 * **Example** (A struct of 128 bytes, by value)
 *
 * ```ts
 * import { CudaLibrary, CudaParameter } from "effect-cuda"
 *
 * const init = CudaLibrary.func([CudaParameter.i32, CudaLibrary.bytes(128)])
 * ```
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
 * **Example** (Functions that make and destroy a handle)
 *
 * ```ts
 * import { CudaLibrary } from "effect-cuda"
 *
 * const functions = {
 *   solverCreate: CudaLibrary.func([CudaLibrary.newHandleOf("solver")]),
 *   solverDestroy: CudaLibrary.func([CudaLibrary.handleOf("solver")], { thread: "own" })
 * }
 * ```
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
 * **Example** (Functions that make and destroy a handle)
 *
 * ```ts
 * import { CudaLibrary } from "effect-cuda"
 *
 * const functions = {
 *   solverCreate: CudaLibrary.func([CudaLibrary.newHandleOf("solver")]),
 *   solverDestroy: CudaLibrary.func([CudaLibrary.handleOf("solver")], { thread: "own" })
 * }
 * ```
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
 * **Example** (Optional memory)
 *
 * ```ts
 * import { CudaLibrary, CudaParameter } from "effect-cuda"
 *
 * const run = CudaLibrary.func([CudaParameter.pointer, CudaLibrary.nullable(CudaParameter.input), CudaLibrary.stream])
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export function nullable<Element extends ElementType | undefined>(
  kind: PointerKind<boolean, Element>
): PointerKind<true, Element>
export function nullable<Name extends string>(kind: HandleKind<Name>): HandleKind<Name, true>
export function nullable(kind: HostKind): HostKind<true>
export function nullable(kind: TextKind): TextKind<true>
export function nullable(kind: PointerKind | HandleKind | HostKind | TextKind): LibraryParameter {
  return Object.freeze({ ...kind, nullable: true })
}

/**
 * The values that stand for the arguments in the `simulate` of a function: memory as its bytes, or as the typed array of a declared element
 * type, handles as numbers, everything else as it was given.
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
  : Kind extends PointerKind<infer Nullable, infer Element>
    ? ([Element] extends [ElementType] ? ElementArray<Element> : Uint8Array) | OrNull<Nullable>
  : Kind extends HostKind<infer Nullable> ? Uint8Array | OrNull<Nullable>
  : Kind extends TextKind<infer Nullable> ? string | OrNull<Nullable>
  : Kind extends BytesKind ? Uint8Array
  : Kind extends HandleKind<string, infer Nullable> ? number | OrNull<Nullable>
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
  /**
   * Whether the context of the device is current during the call. Default: true on the JS thread. On pool threads it never is, and for
   * functions that enqueue work it always is.
   */
  readonly context?: boolean | undefined
  /** Whether it enqueues work on the GPU. Default: true if it takes a stream or device memory. */
  readonly enqueues?: boolean | undefined
  /** The version of the library that introduced it, for failures. */
  readonly since?: string | undefined
  /**
   * What it does on simulated devices. That of a function that enqueues work runs in stream order, when the device reaches the work: an
   * exception, or a status other than 0, is then a fault of the device, and memory of the host that it writes is written only then.
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
 * **Example** (A function, and what it does on simulated devices)
 *
 * ```ts
 * import { CudaLibrary, CudaParameter } from "effect-cuda"
 *
 * const setTolerance = CudaLibrary.func([CudaParameter.f64], { simulate: () => 0 })
 * ```
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
 * const { i32, pointer } = CudaParameter
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
 * **Example** (A library, loaded at the start)
 *
 * ```ts
 * import { CudaLibrary, CudaParameter } from "effect-cuda"
 *
 * const solver = CudaLibrary.define({
 *   name: "solver",
 *   files: () => ["libsolver.so.1"],
 *   wheels: [],
 *   statuses: { 1: ["SOLVER_BAD_VALUE", "a value is bad"] },
 *   functions: { solverSetTolerance: CudaLibrary.func([CudaParameter.f64]) }
 * })
 *
 * const loaded = CudaLibrary.load(solver)
 * ```
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
    if (typeof options !== "object" || options === null) {
      return yield* refuseArgument(loading, "options", options, "options for loading")
    }
    const ref = yield* runtime.libraryLoad(definition, options.path)
    return new LibraryImpl(runtime, ref, definition)
  }).pipe(Effect.withSpan(loading, { attributes: { "cuda.library": definition?.name } }))

const loading = "CudaLibrary.load"

/**
 * A handle of a library on a device: a context, a plan, a generator, a communicator.
 *
 * @category models
 * @since 0.1.0
 */
export interface LibraryHandle<out Kind extends string = string> extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaLibrary/Handle": "~effect-cuda/CudaLibrary/Handle"
  readonly runtime: CudaRuntimeService
  readonly ref: LibraryHandleRef
  readonly kind: Kind
  /** What the library knows it by, for other native code. */
  readonly handle: number
  readonly deviceIndex: number
}

const HandleTypeId = "~effect-cuda/CudaLibrary/Handle"

/**
 * Returns `true` if a value is a handle of a library.
 *
 * @category guards
 * @since 0.1.0
 */
export const isLibraryHandle = (u: unknown): u is LibraryHandle => Predicate.hasProperty(u, HandleTypeId)

class LibraryHandleImpl<Kind extends string> extends DeviceHandle<LibraryHandleRef> implements LibraryHandle<Kind> {
  readonly [HandleTypeId] = HandleTypeId
  readonly kind: Kind
  readonly handle: number
  constructor(runtime: CudaRuntimeService, ref: LibraryHandleRef, handle: number, kind: Kind) {
    super(runtime, ref)
    this.handle = handle
    this.kind = kind
  }
  toString(): string {
    return oneLine("LibraryHandle", this.kind, hex(this.handle), `device ${this.deviceIndex}`, unlessLive(this.ref))
  }
  toJSON() {
    const { deviceIndex, handle, kind } = this
    return { _id: "LibraryHandle", kind, handle, deviceIndex, state: this.ref.state }
  }
}

/**
 * Handles of a library on a device, one per stream. As an argument, it is the handle of the stream of the call.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamHandles<out Kind extends string = string> extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaLibrary/StreamHandles": "~effect-cuda/CudaLibrary/StreamHandles"
  readonly runtime: CudaRuntimeService
  readonly ref: LibraryHandleRef
  readonly kind: Kind
  readonly deviceIndex: number
}

const StreamHandlesTypeId = "~effect-cuda/CudaLibrary/StreamHandles"

/**
 * Returns `true` if a value is handles of a library, one per stream.
 *
 * @category guards
 * @since 0.1.0
 */
export const isStreamHandles = (u: unknown): u is StreamHandles => Predicate.hasProperty(u, StreamHandlesTypeId)

class StreamHandlesImpl<Kind extends string> extends DeviceHandle<LibraryHandleRef> implements StreamHandles<Kind> {
  readonly [StreamHandlesTypeId] = StreamHandlesTypeId
  readonly kind: Kind
  constructor(runtime: CudaRuntimeService, ref: LibraryHandleRef, kind: Kind) {
    super(runtime, ref)
    this.kind = kind
  }
  toString(): string {
    return oneLine("StreamHandles", this.kind, `device ${this.deviceIndex}`, unlessLive(this.ref))
  }
  toJSON() {
    const { deviceIndex, kind } = this
    return { _id: "StreamHandles", kind, deviceIndex, state: this.ref.state }
  }
}

/**
 * The arguments of a function, in order, without the stream.
 *
 * @category models
 * @since 0.1.0
 */
export type LibraryArguments<Parameters extends ReadonlyArray<LibraryParameter>> = Parameters extends
  readonly [infer Kind, ...infer Rest extends ReadonlyArray<LibraryParameter>]
  ? Kind extends StreamKind | NewHandleKind ? LibraryArguments<Rest>
  : readonly [LibraryArgument<Kind>, ...LibraryArguments<Rest>]
  : readonly []

/**
 * The argument of a kind of parameter.
 *
 * @category models
 * @since 0.1.0
 */
export type LibraryArgument<Kind> = Kind extends ScalarKind<infer Name> ? ScalarArgument<Name>
  : Kind extends PointerKind<infer Nullable, infer Element> ? PointerArgumentOf<Element> | RawAddress | OrNull<Nullable>
  : Kind extends HandleKind<infer Name, infer Nullable> ? LibraryHandle<Name> | StreamHandles<Name> | OrNull<Nullable>
  : Kind extends HostKind<infer Nullable> ? HostArray | OrNull<Nullable>
  : Kind extends TextKind<infer Nullable> ? string | OrNull<Nullable>
  : Kind extends BytesKind ? Uint8Array
  : never

/**
 * What a call results in: nothing for a function that returns a status, otherwise its value.
 *
 * @category models
 * @since 0.1.0
 */
export type LibraryResult<Returns extends LibraryReturn> = Returns extends ScalarKind<infer Name> ? ScalarValues[Name]
  : Returns extends TextKind ? string | undefined
  : void

/**
 * The names of the functions that make a handle.
 *
 * @category models
 * @since 0.1.0
 */
export type MakerName<Functions extends LibraryFunctions> = {
  [Name in keyof Functions]: [Extract<Functions[Name]["parameters"][number], NewHandleKind>] extends [never] ? never
    : Name
}[keyof Functions]

/**
 * The names of the functions that `call` accepts: those that make no handle.
 *
 * @category models
 * @since 0.1.0
 */
export type CallableName<Functions extends LibraryFunctions> = Exclude<keyof Functions, MakerName<Functions>>

/**
 * Calls a function of a library.
 *
 * **Details**
 *
 * A function that takes a stream or device memory enqueues work: on the given stream, or on the current one. It is then an operation like
 * any other, as with `CudaMemory.enqueue`: its memory is checked and lives until the work is done, uses of ordered buffers wait for each other,
 * and inside `CudaGraph.record` the driver captures it and it becomes a node. Other functions run on the device of their handle, or of the
 * given stream, or on the current one, and depend on no stream.
 *
 * Every argument is checked before the call: numbers against their range, memory against its buffer, device and lifetime, handles against
 * their kind, device and lifetime. Arguments that are wrong fail with `InvalidArgument`, `ResourceReleased`, `ForeignResource` or
 * `DeviceMismatch`. A status other than 0 fails with `LibraryFailed`, with the library's name for it, and the function in `call`; or with
 * the reason that the `statuses` of the description return. A function that the library lacks fails with `FunctionMissing`. After one of
 * the codes in `faults`, the driver is asked whether the contexts are lost, and the failure has its `origin`.
 *
 * Functions with `thread: "own"` run on a thread of libuv's pool. Interruption ends the fiber at once; the call goes on, and handles and
 * the runtime live until it ends. They cannot be recorded.
 *
 * On simulated devices, the function's `simulate` runs. Without one, the call fails with `InvalidArgument`.
 *
 * **Gotchas**
 *
 * A function that enqueues work, but has neither a stream nor a handle with `setStream`, enqueues it where the library does, usually on the
 * default stream. Call it on that one: otherwise the order and the lifetimes of its memory are those of the wrong stream.
 *
 * Memory of the host is read and written during the call. A function that reads it later, on the stream, needs memory that stays as it
 * is until then. Do not transfer an array while a call on a pool thread uses it.
 *
 * On pool threads no context is current, so a library that asks for the current device finds device 0. libuv's pool has 4 threads, unless
 * `UV_THREADPOOL_SIZE` says otherwise: calls that wait for each other, such as one per rank of a communicator, never end if there are more of
 * them than threads.
 *
 * **Example** (Scaling a vector with cuBLAS)
 *
 * ```ts
 * import { CudaLibrary, CudaMemory, CudaParameter } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const cublas = CudaLibrary.define({
 *   name: "cuBLAS",
 *   files: (platform, cuda) => [platform === "win32" ? `cublas64_${cuda}.dll` : `libcublas.so.${cuda}`],
 *   wheels: ["cublas"],
 *   statuses: { 7: ["CUBLAS_STATUS_INVALID_VALUE", "an argument is invalid"] },
 *   functions: {
 *     cublasCreate_v2: CudaLibrary.func([CudaLibrary.newHandleOf("cublas")]),
 *     cublasDestroy_v2: CudaLibrary.func([CudaLibrary.handleOf("cublas")], { thread: "own" }),
 *     cublasSetStream_v2: CudaLibrary.func([CudaLibrary.handleOf("cublas"), CudaLibrary.stream]),
 *     cublasSscal_v2: CudaLibrary.func([
 *       CudaLibrary.handleOf("cublas"),
 *       CudaParameter.i32,
 *       CudaLibrary.hostInput,
 *       CudaParameter.pointer,
 *       CudaParameter.i32
 *     ])
 *   }
 * })
 *
 * export const doubled = (vector: CudaMemory.DeviceBuffer) =>
 *   Effect.gen(function*() {
 *     const library = yield* CudaLibrary.load(cublas)
 *     const handle = yield* CudaLibrary.handle(library, {
 *       create: "cublasCreate_v2",
 *       destroy: "cublasDestroy_v2",
 *       setStream: "cublasSetStream_v2"
 *     })
 *     const count = vector.byteLength / 4
 *     yield* CudaLibrary.call(library, "cublasSscal_v2", [handle, count, Float32Array.of(2), vector, 1])
 *   }).pipe(Effect.scoped)
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const call = <Functions extends LibraryFunctions, const Name extends CallableName<Functions> & string>(
  library: CudaLibrary<Functions>,
  name: Name,
  values: LibraryArguments<Functions[Name]["parameters"]>,
  stream?: CudaStream
): Effect.Effect<LibraryResult<Functions[Name]["returns"]>, CudaError> =>
  callAny(library, name, values, stream) as Effect.Effect<LibraryResult<Functions[Name]["returns"]>, CudaError>

const calling = "CudaLibrary.call"

const callAny = (
  library: CudaLibrary,
  name: string,
  values: ReadonlyArray<unknown>,
  stream: CudaStream | undefined
): Effect.Effect<unknown, CudaError> => {
  if (!isCudaLibrary(library)) return refuseLibrary(calling, library)
  const { definition, ref, runtime } = library
  if (definition.functions[name]?.enqueues === true) {
    return onStream(calling, runtime, undefined, stream, (on) =>
      on.isRecording
        ? namedNode(runtime.libraryCall(ref, name, values, on), name)
        : runtime.libraryCall(ref, name, values, on))
  }
  const run = (place: number | StreamRef) => runtime.libraryRun(ref, name, values, place)
  if (stream === undefined) return Effect.flatMap(resolveDevice(undefined), run)
  return isStream(stream) ? run(stream.ref) : refuseArgument(calling, "stream", stream, "a stream")
}

/**
 * Finds a C function of a library, to make several calls in one `CudaMemory.enqueue`, as one operation. Undefined on simulated devices.
 *
 * **Details**
 *
 * The function takes pointers, streams and handles as numbers (`address`, `handle`), memory of the host as typed arrays, and structs as
 * `{ bytes }`, and returns what C returns. With the library as the `status` of `enqueue`, codes fail as those of `call` do. Fails with
 * `FunctionMissing` if the library lacks the function.
 *
 * **Gotchas**
 *
 * Nothing is checked: released memory, wrong numbers and wrong types crash the process or corrupt its memory. Prefer `call`.
 *
 * **Example** (Setting an attribute and enqueueing, as one operation)
 *
 * ```ts
 * import { CudaLibrary, CudaMemory, CudaParameter } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const solver = CudaLibrary.define({
 *   name: "solver",
 *   files: () => ["libsolver.so.1"],
 *   wheels: [],
 *   statuses: { 1: ["SOLVER_BAD_VALUE", "a value is bad"] },
 *   functions: {
 *     solverSetTolerance: CudaLibrary.func([CudaParameter.f64]),
 *     solverRun: CudaLibrary.func([CudaParameter.pointer, CudaLibrary.stream])
 *   }
 * })
 *
 * export const solve = (matrix: CudaMemory.DeviceBuffer) =>
 *   Effect.gen(function*() {
 *     const library = yield* CudaLibrary.load(solver)
 *     const setTolerance = yield* CudaLibrary.native(library, "solverSetTolerance")
 *     const run = yield* CudaLibrary.native(library, "solverRun")
 *     yield* CudaMemory.enqueue(
 *       { writes: [matrix], status: library, simulate: () => {} },
 *       (stream) => Number(setTolerance?.(1e-6)) || Number(run?.(matrix.address, stream))
 *     )
 *   })
 * ```
 *
 * @category operations
 * @since 0.1.0
 */
export const native = <Functions extends LibraryFunctions>(
  library: CudaLibrary<Functions>,
  name: keyof Functions & string
): Effect.Effect<NativeFunction | undefined, CudaError> =>
  isCudaLibrary(library)
    ? library.runtime.libraryFunction(library.ref, name)
    : refuseLibrary("CudaLibrary.native", library)

const refuseLibrary = (operation: string, library: unknown) =>
  refuseArgument(operation, "library", library, "a library loaded with CudaLibrary.load")

/** The name of the handle that a function makes. */
type MadeBy<Function extends LibraryFunction> = Function["parameters"][number] extends infer Kind
  ? Kind extends NewHandleKind<infer Name> ? Name : never
  : never

/**
 * Options for making a handle.
 *
 * @category models
 * @since 0.1.0
 */
export interface HandleOptions<Functions extends LibraryFunctions, Create extends keyof Functions>
  extends DeviceOptions
{
  /** The function that makes it. */
  readonly create: Create
  /** The arguments of `create`, without the handle. Default: none. */
  readonly values?: LibraryArguments<Functions[Create]["parameters"]> | undefined
  /** The function that destroys it. The handle is its only parameter. */
  readonly destroy: CallableName<Functions> & string
  /**
   * The function that sets the stream of the handle, for libraries whose functions do not take the stream. It is called before a call on
   * another stream than the last one.
   */
  readonly setStream?: (CallableName<Functions> & string) | undefined
  /**
   * Whether calls with the handle wait, on the GPU, for earlier calls with it on other streams. For handles with state, such as a workspace,
   * that several streams use. Default: false. Not together with `perStream`.
   */
  readonly ordered?: boolean | undefined
  /**
   * Whether to make a handle per stream, when it is first used there. For handles with state whose streams should not wait for each other.
   * Default: false.
   */
  readonly perStream?: boolean | undefined
}

/** Arguments that `create` has must be given. */
type NeedsValues<Function extends LibraryFunction> = LibraryArguments<Function["parameters"]> extends readonly []
  ? unknown
  : { readonly values: LibraryArguments<Function["parameters"]> }

/**
 * Makes a handle of a library on a device, by default the current one, that lives as long as its scope.
 *
 * **Details**
 *
 * Closing the scope refuses new calls, waits until the streams that used the handle have passed their work and calls on pool threads have
 * ended, and then destroys it. Making and destroying a handle runs on the JS thread, or with `thread: "own"` on a pool thread; neither can be
 * interrupted.
 *
 * With `ordered`, the state of the handle is ordered like an ordered buffer that every call writes: a call waits for earlier ones on other
 * streams, recorded calls depend on each other, and a launch of a graph counts as one call. While one stream alone uses the handle, this costs
 * nothing on the GPU; the first call on a second stream waits for all work of the first one so far. Calls of functions that enqueue nothing do
 * not wait.
 *
 * With `perStream`, calls use the handle of their stream. The first call on a stream makes it, with the same `create`, `values` and
 * `setStream`, and fails if that fails; concurrent calls wait for it. `liveResources` counts each. The handles of streams that are gone are
 * destroyed when another one is made, and all at the end of the scope.
 *
 * A function that enqueues nothing is called with the handle of the stream that `call` is given. Without one it is refused: what it sets would be
 * missing in the handles of other streams.
 *
 * A recording has a handle of its own, because its graph may be launched on any stream, several times at once. That one is `ordered`: the nodes that
 * use it, the launches of the graph, and those of graphs that embed it wait for each other. It is destroyed like those of streams, once
 * the graph is garbage and its launches are done.
 *
 * A graph holds the handles that `call` was given while it was recorded. Destroying one waits for launches in progress, and later launches fail
 * with `ResourceReleased`, which names it.
 *
 * On simulated devices, handles are numbers. `create` needs a `simulate`; that of `destroy` is called if there is one, and `setStream` is not.
 *
 * **Gotchas**
 *
 * A handle belongs to the file whose function made it. Its name alone is checked, so do not pass it to another file of the same library.
 *
 * Only work that `call` enqueues or records is known. Keep the handle until other work that uses it is done.
 *
 * A handle whose functions do not take the stream has state, such as a workspace, that two streams would share at the same time. Unless the
 * library says otherwise, make it `ordered` or `perStream`. The same holds for launches of graphs that were recorded with it.
 *
 * With `perStream`, `values` are kept, and memory of the host among them is read whenever a handle is made. There is no number for other native code.
 * The end of a stream of other code (`CudaStream.fromHandle`) is not known, so its handle lives until the end of the scope.
 *
 * **Example** (cuBLAS on several streams)
 *
 * ```ts
 * import { CudaBranch, CudaLibrary, CudaMemory, CudaParameter } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const cublas = CudaLibrary.define({
 *   name: "cuBLAS",
 *   files: (platform, cuda) => [platform === "win32" ? `cublas64_${cuda}.dll` : `libcublas.so.${cuda}`],
 *   wheels: ["cublas"],
 *   statuses: { 7: ["CUBLAS_STATUS_INVALID_VALUE", "an argument is invalid"] },
 *   functions: {
 *     cublasCreate_v2: CudaLibrary.func([CudaLibrary.newHandleOf("cublas")]),
 *     cublasDestroy_v2: CudaLibrary.func([CudaLibrary.handleOf("cublas")], { thread: "own" }),
 *     cublasSetStream_v2: CudaLibrary.func([CudaLibrary.handleOf("cublas"), CudaLibrary.stream]),
 *     cublasSscal_v2: CudaLibrary.func([
 *       CudaLibrary.handleOf("cublas"),
 *       CudaParameter.i32,
 *       CudaLibrary.hostInput,
 *       CudaParameter.pointer,
 *       CudaParameter.i32
 *     ])
 *   }
 * })
 *
 * export const doubled = (vectors: ReadonlyArray<CudaMemory.DeviceBuffer>) =>
 *   Effect.gen(function*() {
 *     const library = yield* CudaLibrary.load(cublas)
 *     const handles = yield* CudaLibrary.handle(library, {
 *       create: "cublasCreate_v2",
 *       destroy: "cublasDestroy_v2",
 *       setStream: "cublasSetStream_v2",
 *       perStream: true
 *     })
 *     const scale = (vector: CudaMemory.DeviceBuffer) =>
 *       CudaLibrary.call(library, "cublasSscal_v2", [handles, vector.byteLength / 4, Float32Array.of(2), vector, 1])
 *     yield* CudaBranch.all(vectors.map(scale))
 *   }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export function handle<Functions extends LibraryFunctions, const Create extends MakerName<Functions> & string>(
  library: CudaLibrary<Functions>,
  options:
    & HandleOptions<Functions, Create>
    & NeedsValues<Functions[Create]>
    & { readonly perStream?: false | undefined }
): Effect.Effect<LibraryHandle<MadeBy<Functions[Create]>>, CudaError, CudaRuntime | Scope.Scope>
export function handle<Functions extends LibraryFunctions, const Create extends MakerName<Functions> & string>(
  library: CudaLibrary<Functions>,
  options:
    & HandleOptions<Functions, Create>
    & NeedsValues<Functions[Create]>
    & { readonly perStream: true; readonly ordered?: false | undefined }
): Effect.Effect<StreamHandles<MadeBy<Functions[Create]>>, CudaError, CudaRuntime | Scope.Scope>
export function handle<Functions extends LibraryFunctions, const Create extends MakerName<Functions> & string>(
  library: CudaLibrary<Functions>,
  options: HandleOptions<Functions, Create>
): Effect.Effect<AnyHandle<MadeBy<Functions[Create]>>, CudaError, CudaRuntime | Scope.Scope> {
  if (!isCudaLibrary(library)) return refuseLibrary(making, library)
  if (!Predicate.isObject(options)) return refuseArgument(making, "options", options, "the names of functions")
  const { create, destroy, device, ordered, perStream, setStream, values = [] } = options
  return makeScoped(device, {
    create: (runtime, deviceIndex) =>
      runtime.libraryHandle(library.ref, { create, values, destroy, setStream, ordered, perStream }, deviceIndex),
    destroy: (runtime, ref) => runtime.libraryDestroy(ref),
    wrap: (runtime, ref): AnyHandle<MadeBy<Functions[Create]>> => {
      const kind = ref.kind as MadeBy<Functions[Create]>
      return ref.handle === undefined
        ? new StreamHandlesImpl(runtime, ref, kind)
        : new LibraryHandleImpl(runtime, ref, ref.handle, kind)
    }
  })
}

/**
 * Options for taking over a handle.
 *
 * @category models
 * @since 0.1.0
 */
export interface AdoptOptions<Functions extends LibraryFunctions, Kind extends string> extends DeviceOptions {
  /** The name that its parameters have. */
  readonly kind: Kind
  /** The address, or the number, that the library knows it by. */
  readonly handle: number
  /** The function that destroys it. The handle is its only parameter. */
  readonly destroy: CallableName<Functions> & string
  /**
   * Whether it can only be destroyed after the graphs that were captured with it, as the communicators of NCCL. They are then released before
   * it, and their launches fail with `ResourceReleased`. Default: false.
   */
  readonly endsGraphs?: boolean | undefined
}

/**
 * Takes over a handle that was made otherwise, such as by a function that makes several. It then lives as long as the scope, like one that
 * `handle` makes.
 *
 * **Gotchas**
 *
 * The number is not checked: a wrong one crashes the process. If this fails, the handle was not taken over, and nothing destroys it.
 *
 * **Example** (A plan that other code has made)
 *
 * ```ts
 * import { CudaLibrary } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const solver = CudaLibrary.define({
 *   name: "solver",
 *   files: () => ["libsolver.so.1"],
 *   wheels: [],
 *   statuses: { 1: ["SOLVER_BAD_VALUE", "a value is bad"] },
 *   functions: { solverDestroyPlan: CudaLibrary.func([CudaLibrary.handleOf("plan")], { thread: "own" }) }
 * })
 *
 * const planOf = (handle: number) =>
 *   Effect.flatMap(CudaLibrary.load(solver), (library) =>
 *     CudaLibrary.fromHandle(library, { kind: "plan", handle, destroy: "solverDestroyPlan" }))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromHandle = <Functions extends LibraryFunctions, const Kind extends string>(
  library: CudaLibrary<Functions>,
  options: AdoptOptions<Functions, Kind>
): Effect.Effect<LibraryHandle<Kind>, CudaError, CudaRuntime | Scope.Scope> => {
  const operation = "CudaLibrary.fromHandle"
  if (!isCudaLibrary(library)) return refuseLibrary(operation, library)
  if (!Predicate.isObject(options)) return refuseArgument(operation, "options", options, "a handle and how it ends")
  const { destroy, device, endsGraphs, handle, kind } = options
  return makeScoped(device, {
    create: (runtime, deviceIndex) =>
      runtime.libraryAdopt(library.ref, { kind, handle, destroy, endsGraphs }, deviceIndex),
    destroy: (runtime, ref) => runtime.libraryDestroy(ref),
    wrap: (runtime, ref) => new LibraryHandleImpl(runtime, ref, handle, kind)
  })
}

type AnyHandle<Kind extends string> = LibraryHandle<Kind> | StreamHandles<Kind>

const making = "CudaLibrary.handle"
