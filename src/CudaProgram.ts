/**
 * Programs: CUDA C++ compiled at run time with NVRTC, and images that were compiled before (PTX, CUBIN, fatbin).
 *
 * A program is a value that no device knows yet: nothing has to be released. Depends on the `CudaRuntime` interface,
 * and on the file system for images in files.
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
   * What code is compiled for: a real architecture (`sm_90`, `sm_90a`), a virtual one (`compute_90`), or the compute
   * capability of a device.
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
  /** The file name of its source or of its image, for messages. */
  readonly name: string
  /**
   * What the image is: machine code for one architecture (`cubin`), code that the driver compiles (`ptx`), or several
   * of both (`fatbin`). A program of the simulated runtime is `simulated` and has no image.
   */
  readonly kind: "cubin" | "ptx" | "fatbin" | "simulated"
  /** As the driver loads it: PTX ends with a NUL character. Not to be changed. */
  readonly image: Uint8Array<ArrayBuffer>
  /** What it is for, as far as that is known: `sm_90`, or `compute_90` for PTX. */
  readonly architecture: string | undefined
  /** What it was compiled from. */
  readonly source: string | undefined
  /** What the compiler wrote, which is its warnings; empty if it had none. */
  readonly log: string
  /** Whether the image was compiled earlier and kept on disk. */
  readonly fromCache: boolean
  /** The names in the image of the C++ names that the compiler was asked for. */
  readonly loweredNames: ReadonlyMap<string, string>
  /**
   * The name in the image of a kernel: that of a name expression, or else the name itself, as `extern "C"` kernels and
   * mangled names are called in the image too.
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
  /** The source's file name, in messages and for the debugger. Default `program.cu`. */
  readonly name?: string | undefined
  /**
   * What is made: machine code, or PTX, which the driver compiles when it is loaded. Default: a CUBIN, or PTX for a
   * virtual architecture, and for a device that is newer than the compiler.
   */
  readonly target?: "cubin" | "ptx" | undefined
  /** Default: that of the device. PTX is made for the virtual one: `compute_90` for `sm_90`. */
  readonly architecture?: Architecture | undefined
  /** The device to compile for without an architecture. Default: the current device. */
  readonly device?: DeviceInput | undefined
  /** NVRTC's own options, such as `--std=c++17`, `--use_fast_math`, `--define-macro=N=4`, `--include-path=…`. */
  readonly options?: ReadonlyArray<string> | undefined
  /** What the source includes: contents by the names it includes them by. */
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** C++ names of kernels and variables, such as `add<float>`: instantiated, and found by `loweredName`. */
  readonly nameExpressions?: ReadonlyArray<string> | undefined
  /** Whether it is kept on disk, and taken from there. Default: as the runtime's layer was told, which is to do so. */
  readonly cache?: boolean | undefined
}

/**
 * Options for programs made from images.
 *
 * @category models
 * @since 0.1.0
 */
export interface ImageOptions {
  /** For messages. Default: `image`, or the name of the file. */
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
 * True for programs.
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
 * NVRTC is loaded by the first program: see `NativeRuntime.NativeOptions` for where it is looked for. It needs no other
 * part of the toolkit, but brings no headers either: what the source includes is given as `headers`, or found with
 * `--include-path`.
 *
 * What was compiled is kept on disk, and taken from there when source, name, options, headers, name expressions,
 * architecture and compiler are the same. Programs that include files of the disk are never kept, since those may
 * change: everything that is included must be in `headers`, and options that name files (`--include-path`,
 * `--pre-include`, …) must be absent.
 *
 * Compilations hold threads of libuv's pool, which files and name look-ups use too, so only half as many as it has
 * threads run at once (2 by default, see `UV_THREADPOOL_SIZE`); others wait. The same program compiled twice at the
 * same time is compiled once. Interruption ends the fiber at once; NVRTC 12.8 and later then stops early, an older one
 * goes on and its result is dropped.
 *
 * Fails with `CompilationFailed` (with the compiler's log, and its errors with their places), `InvalidCompileOption`,
 * `CompilerFailed`, `CompilerNotFound` (with every place that was tried), or `InvalidArgument`, for example for an
 * architecture that this NVRTC does not know.
 *
 * The simulated runtime compiles nothing: its program is `simulated` and keeps the source and the names.
 *
 * **Gotchas**
 *
 * NVRTC needs more stack than koffi gives to calls off the JS thread. Making the native runtime arranges that, unless
 * something else in the process loaded a library with koffi before.
 *
 * **Example** (A template, for the current device)
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
 * **Example** (Saying what is wrong with a source)
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
        device,
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
 * Takes an image that was compiled before: PTX text, a CUBIN or a fatbin. The bytes are copied.
 *
 * **Details**
 *
 * Fails with `InvalidArgument` for anything else, and for an image that is cut off, which the driver may load without a
 * word.
 *
 * **Example** (PTX written by hand)
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
      : refuseArgument(operation, "bytes", copy.problem, "PTX, a CUBIN or a fatbin")
  })

/** A copy that no one else can change or detach, or why there is none. */
const copyOf = (bytes: Uint8Array | string): Uint8Array<ArrayBuffer> | { readonly problem: string } => {
  try {
    if (typeof bytes === "string") return new TextEncoder().encode(bytes)
    if (!isUint8Array(bytes)) return { problem: bytes === null ? "null" : `of type ${typeof bytes}` }
    return new Uint8Array(bytes)
  } catch (cause) {
    return { problem: `an array that cannot be copied (${problemOf(cause).problem})` }
  }
}

/**
 * Takes an image from a file, read off the JS thread: PTX, a CUBIN or a fatbin, whatever the file is called.
 *
 * **Details**
 *
 * Fails with `FileUnreadable`, or with `InvalidArgument` for a file that is no image.
 *
 * **Example** (What a build made)
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

/** The driver finds the end of PTX by a NUL character. */
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
