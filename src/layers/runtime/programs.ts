/**
 * Programs in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"

/**
 * What code is compiled for: a real architecture (`sm_90`, `sm_90a`), a virtual one (`compute_90`), or the compute
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
 * A program to be compiled.
 *
 * @category models
 * @since 0.1.0
 */
export interface CompileRequest {
  /** CUDA C++. */
  readonly source: string
  /** The source's file name, for messages. */
  readonly name: string
  /** The device to compile for, where no architecture is given. */
  readonly device: number
  /** Default: a CUBIN, or PTX where the compiler is older than the device. */
  readonly target: "cubin" | "ptx" | undefined
  readonly architecture: Architecture | undefined
  /** The compiler's own options. */
  readonly options: ReadonlyArray<string>
  /** What the source includes: contents by name. */
  readonly headers: Readonly<Record<string, string>>
  /** C++ names, such as `add<float>`, whose names in the image are asked for. */
  readonly nameExpressions: ReadonlyArray<string>
  /** Default: as the runtime was told. */
  readonly cache: boolean | undefined
}

/**
 * A program that was compiled.
 *
 * @category models
 * @since 0.1.0
 */
export interface CompiledProgram {
  /** `simulated` for a program of a runtime that runs no machine code. */
  readonly kind: "cubin" | "ptx" | "simulated"
  /** What it was compiled for: `sm_90`, or `compute_90` for PTX. */
  readonly architecture: string
  /** As the driver loads it: PTX ends with a NUL character. Empty for a simulated one. */
  readonly image: Uint8Array<ArrayBuffer>
  /** The name in the image of each name expression. */
  readonly loweredNames: ReadonlyMap<string, string>
  /** What the compiler wrote: warnings. */
  readonly log: string
  /** Whether it was compiled before, and kept on disk. */
  readonly fromCache: boolean
}

/**
 * Operations that compile programs.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProgramOperations {
  /** Compiles CUDA C++ off the JS thread (`nvrtcCompileProgram`), or takes what it compiled before from its cache. */
  readonly programCompile: (request: CompileRequest) => Effect.Effect<CompiledProgram, CudaError>
}
