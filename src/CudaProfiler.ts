/**
 * Profilers: names for what the host does, in the timelines of Nsight Systems and other tools, and the part of a program that they should
 * collect.
 *
 * Ranges and marks are NVTX annotations. Without a profiler that listens, they cost nothing and load nothing. Depends on the `CudaRuntime`
 * interface, and on the loader of NVTX.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Semaphore from "effect/Semaphore"
import type { CudaError } from "./CudaError.ts"
import { released } from "./internal/handles.ts"
import { resolveDevice } from "./internal/place.ts"
import * as Annotations from "./layers/Annotations.ts"
import type { Annotation, AnnotationOptions } from "./layers/Annotations.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"

export type {
  /**
   * How profilers show a range or a mark.
   *
   * @category options
   * @since 0.1.0
   */
  AnnotationOptions
}

/**
 * Whether a profiler listens to ranges and marks: `NVTX_INJECTION64_PATH` is set, which is where NVTX loads its profiler from.
 *
 * **Details**
 *
 * `EFFECT_CUDA_NVTX=off` turns annotations off. `EFFECT_CUDA_NVTX=on` makes them without that variable, for a profiler that gets into the
 * process by other means.
 *
 * Decided once per thread, at the first annotation: a profiler sets the variable before the process starts. These variables are read
 * from the process, as NVTX itself does, not through the `ConfigProvider`.
 *
 * **Example** (Details that only a profiler needs)
 *
 * ```ts
 * import { CudaProfiler } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const described = Effect.gen(function*() {
 *   if (yield* CudaProfiler.isListening) yield* CudaProfiler.mark("details")
 * })
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const isListening: Effect.Effect<boolean> = Effect.sync(Annotations.isListening)

/**
 * Shows an effect as a named range in the timeline of a profiler, from its start to its end, however it ends.
 *
 * **Details**
 *
 * Ranges have a start and an end (`nvtxRangeStartEx`, `nvtxRangeEnd`), so they may overlap and move between threads, as fibers do. Without a
 * profiler that listens, returns the effect itself.
 *
 * The first range loads NVTX, off the JS thread, from the path in `EFFECT_CUDA_NVTX` or from the usual locations of toolkits and Python
 * packages. If there is none, a warning says so, and effects run without ranges. A color that is not an integer from 0 to 0xFFFFFF is left
 * out.
 *
 * **Gotchas**
 *
 * A range covers the time of the effect on the host. Work that it enqueues on a stream may run later; profilers show that work where
 * it runs.
 *
 * **Example** (The steps of a request)
 *
 * ```ts
 * import { CudaMemory, CudaProfiler, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   const device = yield* CudaMemory.allocate(4096).pipe(CudaProfiler.range("allocate"))
 *   yield* CudaMemory.upload(device, new Uint8Array(4096), stream).pipe(
 *     CudaProfiler.range("upload", { color: 0x76b900, category: "copies", domain: "my-service" })
 *   )
 * }).pipe(Effect.scoped, CudaProfiler.range("request"))
 * ```
 *
 * @category annotations
 * @since 0.1.0
 */
export const range: {
  (
    name: string,
    options?: AnnotationOptions
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, name: string, options?: AnnotationOptions): Effect.Effect<A, E, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, name: string, options: AnnotationOptions = {}): Effect.Effect<A, E, R> =>
    Annotations.isListening() ? inRange(self, name, options) : self
)

const inRange = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  name: string,
  options: AnnotationOptions
): Effect.Effect<A, E, R> => {
  const annotation = prepare(name, options)
  return Effect.flatMap(annotation, (made) =>
    made === undefined
      ? self
      : Effect.acquireUseRelease(
        Effect.sync(made.start),
        () => self,
        (id) => Effect.sync(() => made.end(id))
      ))
}

/**
 * Marks a moment in the timeline of a profiler (`nvtxMarkEx`). Does nothing without a profiler that listens.
 *
 * **Example** (A moment to look for)
 *
 * ```ts
 * import { CudaProfiler } from "effect-cuda"
 *
 * const warm = CudaProfiler.mark("warmed up", { color: 0xff8800 })
 * ```
 *
 * @see {@link range} for where NVTX comes from
 * @category annotations
 * @since 0.1.0
 */
export const mark = (message: string, options: AnnotationOptions = {}): Effect.Effect<void> =>
  Annotations.isListening()
    ? Effect.map(prepare(message, options), (made) => made?.mark())
    : Effect.void

/** Prepares an annotation at the first run, for all runs. Undefined without NVTX. */
const prepare = (message: string, options: AnnotationOptions): Effect.Effect<Annotation | undefined> => {
  let made: Annotation | undefined
  return Effect.suspend(() => {
    if (made !== undefined) return Effect.succeed(made)
    return Effect.map(annotator, (found) => made = found?.annotate(message, options))
  })
}

const annotator = Effect.suspend(() => {
  const state = Annotations.loaded()
  return state === undefined
    ? Effect.flatMap(Effect.promise(Annotations.load), use)
    : use(state)
})

let saidProblem = false

const use = (loaded: Annotations.Loaded): Effect.Effect<Annotations.Annotator | undefined> => {
  if ("annotator" in loaded) return Effect.succeed(loaded.annotator)
  if (saidProblem) return Effect.undefined
  saidProblem = true
  const advice = "Profilers show no ranges. Set EFFECT_CUDA_NVTX to its path, or to off."
  return Effect.as(Effect.logWarning(`${loaded.problem}. ${advice}`), undefined)
}

/**
 * Makes a profiler collect while an effect runs (`cuProfilerStart`, `cuProfilerStop`), and not before or after it: for
 * `nsys profile --capture-range=cudaProfilerApi`, and for tools that start without collecting. Without a profiler, only runs the effect.
 *
 * **Details**
 *
 * Captures may nest and overlap: the last one to end stops the profiler. Fails with the driver's status if it cannot start,
 * for example `ProfilerDisabled`. If it cannot stop, a warning says so. The calls are made in the context of the current device.
 *
 * **Gotchas**
 *
 * The profiler collects what runs on the GPU in that time. Synchronize at the end, or the work may run after it. By default, Nsight Systems ends
 * the session at the end of the first capture.
 *
 * **Example** (Profiling the tenth batch)
 *
 * ```ts
 * import { CudaProfiler, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const batch: (stream: CudaStream.CudaStream) => Effect.Effect<void>
 *
 * const program = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   for (let count = 0; count < 100; count++) {
 *     const work = Effect.andThen(batch(stream), CudaStream.synchronize(stream))
 *     yield* count === 10 ? CudaProfiler.capture(work) : work
 *   }
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category capturing
 * @since 0.1.0
 */
export const capture = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | CudaError, R | CudaRuntime> =>
  Effect.flatMap(CudaRuntime, (runtime) =>
    Effect.flatMap(resolveDevice(undefined), (device) => {
      const captures = capturesOf(runtime.identity, device)
      const start = Effect.map(runtime.profilerStart(device), () => {
        captures.count++
      })
      const stop = Effect.suspend(() => --captures.count === 0 ? released(runtime.profilerStop(device)) : Effect.void)
      const { turn } = captures
      return Effect.acquireUseRelease(turn.withPermit(start), () => self, () => turn.withPermit(stop))
    }))

/** The captures of a device that are in progress. */
interface Captures {
  count: number
  /** Held while one starts or ends, so that the profiler is not stopped beneath one that has just started. */
  readonly turn: Semaphore.Semaphore
}

/** By runtime and device. */
const allCaptures = new WeakMap<object, Map<number, Captures>>()

const capturesOf = (identity: object, device: number): Captures => {
  const ofRuntime = allCaptures.get(identity) ?? new Map<number, Captures>()
  allCaptures.set(identity, ofRuntime)
  const known = ofRuntime.get(device)
  if (known !== undefined) return known
  const made: Captures = { count: 0, turn: Semaphore.makeUnsafe(1) }
  ofRuntime.set(device, made)
  return made
}
