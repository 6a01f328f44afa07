/**
 * Annotations for profilers: whether one listens, and NVTX, which passes them on. Programs use the module `CudaProfiler`.
 *
 * NVTX is a library of the process, like its profiler, so this is no service. Nothing native is loaded before an annotation is made under a
 * profiler.
 *
 * @since 0.1.0
 */
import { environment } from "../cuda/environment.ts"
import { injectionVariable } from "../cuda/nvtx.ts"
import type { RangeId } from "../cuda/nvtx.ts"

/**
 * How profilers show a range or a mark.
 *
 * @category options
 * @since 0.1.0
 */
export interface AnnotationOptions {
  /** A color as `0xRRGGBB`. Default: the profiler's choice. */
  readonly color?: number | undefined
  /** A name by which profilers group annotations. */
  readonly category?: string | undefined
  /** A name space of annotations, which profilers can show or leave out as a whole. Default: the process's own. */
  readonly domain?: string | undefined
}

/** An annotation, prepared for any number of calls. */
export interface Annotation {
  readonly start: () => RangeId
  readonly end: (range: RangeId) => void
  readonly mark: () => void
}

/** Makes annotations. */
export interface Annotator {
  readonly annotate: (message: string, options: AnnotationOptions) => Annotation
  /** Names a stream of the driver. */
  readonly nameStream: (stream: number, name: string) => void
}

/** What came of loading NVTX: a way to annotate, or why there is none. */
export type Loaded = { readonly annotator: Annotator } | { readonly problem: string }

/** The variable that names the library of NVTX, or turns annotations `on` or `off`. */
const libraryVariable = "EFFECT_CUDA_NVTX"

let listening: boolean | undefined

/** Whether a profiler listens to annotations. Decided once per thread: a profiler sets its variable before the process starts. */
export const isListening = (): boolean => listening ??= decide()

const decide = (): boolean => {
  const { [injectionVariable]: tool = "", [libraryVariable]: library } = environment
  return library === "on" || tool !== "" && library !== "off"
}

const libraryPath = (): string | undefined => {
  const { [libraryVariable]: library } = environment
  return library === "on" ? undefined : library || undefined
}

let state: Loaded | undefined

/** What came of loading; undefined before it has ended. */
export const loaded = (): Loaded | undefined => state

let loading: Promise<Loaded> | undefined

/** Loads NVTX, once per thread. Never rejects. */
export const load = (): Promise<Loaded> =>
  loading ??= import("./native/annotations.ts").then(({ open }) => open(libraryPath()))
    .then(
      (result) => state = result
    )
