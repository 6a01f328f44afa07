/**
 * Programs: CUDA C++ compiled at run time with NVRTC, and precompiled images (PTX, CUBIN, fatbin).
 *
 * A program is a plain value that is not loaded on any device, so it need not be released. Depends on the `CudaRuntime` interface, and
 * on the file system for images in files.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import { readFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { isUint8Array } from "node:util/types"
import type { DeviceInput } from "./CudaDevice.ts"
import { CudaError } from "./CudaError.ts"
import { Handle, oneLine, refuseArgument } from "./internal/handles.ts"
import { recognize } from "./internal/images.ts"
import { resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { Architecture } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaProgram"

export type {
  /**
   * The target of a compilation: a real architecture (`sm_90`, `sm_90a`), a virtual one (`compute_90`), or a compute capability.
   *
   * @category models
   * @since 0.1.0
   */
  Architecture
}

/**
 * Code for GPUs, as an image that the driver can load.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaProgram extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaProgram": "~effect-cuda/CudaProgram"
  /** The file name of the source or the image, for messages. */
  readonly name: string
  /**
   * The kind of image: machine code for one architecture (`cubin`), code that the driver compiles (`ptx`), or several of both (`fatbin`).
   * A program of the simulated runtime is `simulated` and has no image.
   */
  readonly kind: "cubin" | "ptx" | "fatbin" | "simulated"
  /** The bytes that the driver loads; PTX ends with a NUL character. Do not modify them. */
  readonly image: Uint8Array<ArrayBuffer>
  /** The target architecture if known: `sm_90`, or `compute_90` for PTX. */
  readonly architecture: string | undefined
  /** The source it was compiled from; undefined for a precompiled image. */
  readonly source: string | undefined
  /** The compiler's warnings; empty if there were none. */
  readonly log: string
  /** Whether the image came from the cache on disk. */
  readonly fromCache: boolean
  /** The name in the image for each name expression. */
  readonly loweredNames: ReadonlyMap<string, string>
  /**
   * Returns the name of a kernel or variable in the image: the lowered name of a name expression, otherwise the name itself, as for
   * `extern "C"` kernels and mangled names.
   */
  readonly loweredName: (name: string) => string
}

/**
 * Options for compiling a program.
 *
 * @category models
 * @since 0.1.0
 */
export interface CompileOptions {
  /** The source's file name, for messages and the debugger. Default: `program.cu`. */
  readonly name?: string | undefined
  /**
   * Whether to produce machine code, or PTX, which the driver compiles when it loads it. Default: a CUBIN; PTX for a virtual architecture
   * or for a device newer than the compiler.
   */
  readonly target?: "cubin" | "ptx" | undefined
  /** Default: the architecture of the device. PTX targets the corresponding virtual architecture: `compute_90` for `sm_90`. */
  readonly architecture?: Architecture | undefined
  /** The device to compile for if no architecture is given. Default: the current device. */
  readonly device?: DeviceInput | undefined
  /** Options for NVRTC, such as `--std=c++17`, `--use_fast_math`, `--define-macro=N=4` or `--include-path=…`. */
  readonly options?: ReadonlyArray<string> | undefined
  /** The headers that the source includes: their contents by name. */
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** C++ names of kernels and variables to instantiate, such as `add<float>`; see `loweredName`. */
  readonly nameExpressions?: ReadonlyArray<string> | undefined
  /** Whether to use the cache on disk. Default: the setting of the runtime's layer, which enables it unless configured otherwise. */
  readonly cache?: boolean | undefined
}

/**
 * Options for programs made from images.
 *
 * @category models
 * @since 0.1.0
 */
export interface ImageOptions {
  /** The program's name, for messages. Default: `image`, or the path of the file. */
  readonly name?: string | undefined
}

class ProgramImpl extends Handle implements CudaProgram {
  readonly [TypeId] = TypeId
  readonly name: string
  readonly kind: CudaProgram["kind"]
  readonly image: Uint8Array<ArrayBuffer>
  readonly architecture: string | undefined
  readonly source: string | undefined
  readonly log: string
  readonly fromCache: boolean
  readonly loweredNames: ReadonlyMap<string, string>
  constructor(
    fields:
      & Pick<CudaProgram, "name" | "kind" | "image" | "architecture">
      & Partial<Pick<CudaProgram, "source" | "log" | "fromCache" | "loweredNames">>
  ) {
    super()
    this.name = fields.name
    this.kind = fields.kind
    this.image = fields.image
    this.architecture = fields.architecture
    this.source = fields.source
    this.log = fields.log ?? ""
    this.fromCache = fields.fromCache ?? false
    this.loweredNames = fields.loweredNames ?? new Map()
  }
  readonly loweredName = (name: string): string => this.loweredNames.get(name) ?? name
  toString(): string {
    return oneLine("CudaProgram", this.name, this.kind, this.architecture)
  }
  toJSON() {
    const { architecture, fromCache, image, kind, loweredNames, name } = this
    const names = Object.fromEntries(loweredNames)
    return {
      _id: "CudaProgram",
      name,
      kind,
      architecture,
      byteLength: image.byteLength,
      loweredNames: names,
      fromCache
    }
  }
}

/**
 * Returns `true` if a value is a program.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaProgram = (u: unknown): u is CudaProgram => Predicate.hasProperty(u, TypeId)

/**
 * Compiles CUDA C++ with NVRTC (`nvrtcCompileProgram`), off the JS thread.
 *
 * **Details**
 *
 * The first compilation loads NVRTC; see `NativeRuntime.NativeOptions` for where it is searched for. NVRTC needs no other part of the
 * CUDA toolkit, but comes without headers: pass included headers as `headers`, or name their folder with `--include-path`.
 *
 * Results are cached on disk, and reused if the source, name, options, headers, name expressions, architecture and compiler are the same.
 * Programs that include files from the disk are never cached, because those files may change: to be cached, a program must pass all
 * headers in `headers`, and must not use options that name files (`--include-path`, `--pre-include`, …). The cache folder must be private
 * to the user, because its images run on the GPU with the program's data; files that another user could have written are ignored.
 *
 * Compilations occupy threads of libuv's pool, which file access and name look-ups use too. So at most half of its threads compile at the
 * same time (2 by default; see `UV_THREADPOOL_SIZE`), and further compilations wait. This bound holds per JS thread: worker threads count
 * separately. Compiling the same program twice at the same time compiles it once. Interruption ends the fiber immediately; NVRTC 12.8 and
 * later then stops early, while an older one finishes and its result is discarded.
 *
 * Fails with `CompilationFailed` (with the compiler's log, and its errors with their positions), `InvalidCompileOption`,
 * `CompilerFailed`, `CompilerNotFound` (with every place that was searched), or `InvalidArgument`, for example for an architecture that
 * this NVRTC does not support.
 *
 * The simulated runtime does not compile: its program is `simulated` and keeps the source and the names.
 *
 * **Gotchas**
 *
 * NVRTC needs a larger stack than koffi provides for calls off the JS thread. Creating the native runtime configures that, unless other
 * code in the process has loaded a library with koffi before.
 *
 * **Example** (Compiling a template for the current device)
 *
 * ```ts
 * import { CudaProgram } from "effect-cuda"
 *
 * const program = CudaProgram.compile(
 *   `template <typename T>
 *    __global__ void add(T* into, const T* from, unsigned n) {
 *      unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
 *      if (i < n) into[i] += from[i];
 *    }`,
 *   { name: "add.cu", options: ["--std=c++17"], nameExpressions: ["add<float>", "add<double>"] }
 * )
 * ```
 *
 * **Example** (Reporting the errors in a source)
 *
 * ```ts
 * import { CudaProgram } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const checked = (source: string) =>
 *   CudaProgram.compile(source).pipe(
 *     Effect.as("compiles"),
 *     Effect.catchReason("CudaError", "CompilationFailed", ({ diagnostics }) =>
 *       Effect.succeed(diagnostics.map(({ line, message }) => `${line}: ${message}`).join("\n")))
 *   )
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const compile = (
  source: string,
  options: CompileOptions = {}
): Effect.Effect<CudaProgram, CudaError, CudaRuntime> =>
  Effect.flatMap(CudaRuntime, (runtime) =>
    Effect.flatMap(resolveDevice(options.device), (device) => {
      const { name = "program.cu" } = options
      const compiled = runtime.programCompile({
        source,
        name,
        deviceIndex: device,
        target: options.target,
        architecture: options.architecture,
        options: options.options ?? [],
        headers: options.headers ?? {},
        nameExpressions: options.nameExpressions ?? [],
        cache: options.cache
      })
      return compiled.pipe(
        Effect.tap(({ architecture, fromCache, kind }) =>
          Effect.annotateCurrentSpan({
            "cuda.architecture": architecture,
            "cuda.image": kind,
            "cuda.cached": fromCache
          })
        ),
        Effect.withSpan("CudaProgram.compile", { attributes: { "cuda.program": name } }),
        Effect.map((program) => new ProgramImpl({ ...program, name, source }))
      )
    }))

/**
 * Makes a program from a precompiled image: PTX text, a CUBIN or a fatbin. The bytes are copied.
 *
 * **Details**
 *
 * Fails with `InvalidArgument` for anything else, and for a truncated image, which the driver may load without an error. Loads nothing:
 * see `CudaModule.load`.
 *
 * **Example** (Using handwritten PTX)
 *
 * ```ts
 * import { CudaProgram } from "effect-cuda"
 *
 * const nothing = CudaProgram.fromBytes(
 *   ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry nothing() { ret; }\n",
 *   { name: "nothing.ptx" }
 * )
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromBytes = (
  bytes: Uint8Array | string,
  { name = "image" }: ImageOptions = {}
): Effect.Effect<CudaProgram, CudaError> =>
  Effect.suspend(() => {
    const operation = "CudaProgram.fromBytes"
    const copy = copyOf(bytes)
    return copy instanceof Uint8Array
      ? fromImage(operation, "bytes", name, copy)
      : Effect.fail(
        new CudaError({
          operation,
          reason: {
            _tag: "InvalidArgument",
            argument: "bytes",
            value: copy.problem,
            expected: "PTX, a CUBIN or a fatbin"
          }
        })
      )
  })

/** Copies the bytes, so that later changes have no effect, or describes why they cannot be copied. */
const copyOf = (bytes: Uint8Array | string): Uint8Array<ArrayBuffer> | { readonly problem: string } => {
  try {
    if (typeof bytes === "string") return new TextEncoder().encode(bytes)
    if (!isUint8Array(bytes)) return { problem: bytes === null ? "null" : `a value of type ${typeof bytes}` }
    return new Uint8Array(bytes)
  } catch (cause) {
    return { problem: `an array that cannot be copied (${problemOf(cause).problem})` }
  }
}

/**
 * Makes a program from an image in a file: PTX, a CUBIN or a fatbin, whatever the file's extension. Reads the file off the JS thread.
 *
 * **Details**
 *
 * Fails with `FileUnreadable` if the file cannot be read, and with `InvalidArgument` if it is not an image.
 *
 * **Example** (Using an image from a build)
 *
 * ```ts
 * import { CudaProgram } from "effect-cuda"
 *
 * const kernels = CudaProgram.fromFile(new URL("./kernels.fatbin", import.meta.url))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromFile = (path: string | URL, options: ImageOptions = {}): Effect.Effect<CudaProgram, CudaError> =>
  Effect.suspend(() => {
    const operation = "CudaProgram.fromFile"
    const file = pathOf(path)
    if (file === undefined) return refuseArgument(operation, "path", path, "a path, or the URL of a file")
    return Effect.flatMap(
      Effect.mapError(
        Effect.tryPromise((signal) => readFile(file, { signal })),
        ({ cause }) => new CudaError({ operation, reason: { _tag: "FileUnreadable", path: file, ...problemOf(cause) } })
      ),
      (bytes) => fromImage(operation, "path", options.name ?? file, new Uint8Array(bytes), file)
    )
  })

const fromImage = (
  operation: string,
  argument: string,
  name: string,
  bytes: Uint8Array<ArrayBuffer>,
  subject?: string
): Effect.Effect<CudaProgram, CudaError> => {
  const recognized = recognize(bytes)
  if (recognized._tag === "NoImage") {
    const expected = `PTX, a CUBIN or a fatbin, not ${recognized.problem}`
    return subject === undefined
      ? refuseArgument(operation, argument, bytes, expected)
      : refuseArgument(operation, argument, subject, `a file of ${expected}`)
  }
  const { architecture, kind } = recognized
  return Effect.succeed(
    new ProgramImpl({ name, kind, architecture, image: kind === "ptx" ? terminated(bytes) : bytes })
  )
}

/** The driver finds the end of PTX by its NUL character. */
const terminated = (text: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> => {
  if (text.at(-1) === 0) return text
  const longer = new Uint8Array(text.byteLength + 1)
  longer.set(text)
  return longer
}

const pathOf = (path: string | URL): string | undefined => {
  try {
    const file = typeof path === "string" ? path : fileURLToPath(path)
    return file === "" || file.includes("\0") ? undefined : file
  } catch {
    return undefined
  }
}

const problemOf = (cause: unknown): { readonly code: string; readonly problem: string } => ({
  code: Predicate.hasProperty(cause, "code") && typeof cause.code === "string" ? cause.code : "UNKNOWN",
  problem: cause instanceof Error ? cause.message : String(cause)
})
