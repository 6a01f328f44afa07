/**
 * Programs, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"

/**
 * The architecture to compile for: a real one (`sm_90`, `sm_90a`), a virtual one (`compute_90`), or the compute
 * capability of a device.
 *
 * @category models
 * @since 0.1.0
 */
export type Architecture =
  | `sm_${string}`
  | `compute_${string}`
  | { readonly major: number; readonly minor: number }

/**
 * A request to compile a program.
 *
 * @category models
 * @since 0.1.0
 */
export interface CompileRequest {
  /** CUDA C++. */
  readonly source: string
  /** The file name of the source, for messages. */
  readonly name: string
  /** The device to compile for, unless an architecture is given. */
  readonly deviceIndex: number
  /** Default: a CUBIN, or PTX if the compiler is older than the device. */
  readonly target: "cubin" | "ptx" | undefined
  readonly architecture: Architecture | undefined
  /** Additional compiler options. */
  readonly options: ReadonlyArray<string>
  /** The headers that the source includes: contents by name. */
  readonly headers: Readonly<Record<string, string>>
  /** C++ names, such as `add<float>`, to look up in the image. */
  readonly nameExpressions: ReadonlyArray<string>
  /** Whether to use the on-disk cache. Default: the runtime's setting. */
  readonly cache: boolean | undefined
}

/**
 * A compiled program.
 *
 * @category models
 * @since 0.1.0
 */
export interface CompiledProgram {
  /** `simulated` if the runtime does not run machine code. */
  readonly kind: "cubin" | "ptx" | "simulated"
  /** The architecture it was compiled for: `sm_90`, or `compute_90` for PTX. */
  readonly architecture: string
  /** The image to load. PTX ends with a NUL character. Empty for a simulated program. */
  readonly image: Uint8Array<ArrayBuffer>
  /** The name in the image, by name expression. */
  readonly loweredNames: ReadonlyMap<string, string>
  /** The compiler's warnings. */
  readonly log: string
  /** Whether it was read from the on-disk cache. */
  readonly fromCache: boolean
}

/**
 * Operations that compile programs.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProgramOperations {
  /** Compiles CUDA C++ off the JS thread (`nvrtcCompileProgram`), or reads the program from the cache. */
  readonly programCompile: (request: CompileRequest) => Effect.Effect<CompiledProgram, CudaError>
}
