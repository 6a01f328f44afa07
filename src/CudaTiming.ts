/**
 * Timing: how long regions of a program take on the GPU, as a duration, as attributes of a span, and as a timeline of a whole program
 * that can be exported and drawn.
 *
 * The GPU measures regions itself, with an event before and one after. Depends on the `CudaRuntime` interface and on what the
 * modules share.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Scope from "effect/Scope"
import type { ParentSpan, Span, SpanOptions as TracerSpanOptions } from "effect/Tracer"
import { CudaError } from "./CudaError.ts"
import type { CudaStream } from "./CudaStream.ts"
import { countOf, named, refuseToRecord } from "./internal/handles.ts"
import { CurrentPlace, onStream } from "./internal/place.ts"
import { CurrentRecorder } from "./internal/timing/current.ts"
import { align, makeTimed, Recorder } from "./internal/timing/recorder.ts"
import { renderSvg } from "./internal/timing/svg.ts"
import { traceEvents } from "./internal/timing/trace.ts"
import { CudaRuntime, CurrentRecording } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, EventRef, StreamRef } from "./layers/CudaRuntime.ts"

/**
 * Attributes that a program gives to a region.
 *
 * @category models
 * @since 0.1.0
 */
export type Attributes = Readonly<Record<string, string | number | boolean>>

/**
 * Options for a region.
 *
 * @category models
 * @since 0.1.0
 */
export interface RegionOptions {
  /** Default: the current stream where the region begins. */
  readonly stream?: CudaStream | undefined
  readonly attributes?: Attributes | undefined
}

/**
 * A region as it ran on the GPU.
 *
 * @category models
 * @since 0.1.0
 */
export interface Region {
  readonly name: string
  readonly deviceIndex: number
  /** The driver's ID of the stream; 0 for the legacy default stream. */
  readonly streamId: number
  /** The name that the stream was made with. */
  readonly streamName?: string | undefined
  /** Time since the beginning of the timeline. */
  readonly start: Duration.Duration
  readonly duration: Duration.Duration
  readonly attributes: Attributes
}

/**
 * A device of a timeline.
 *
 * @category models
 * @since 0.1.0
 */
export interface TimelineDevice {
  readonly index: number
  readonly name: string
  /** The largest offset between the times of the device and the host when the device was first used. */
  readonly uncertainty: Duration.Duration
}

/**
 * The regions of a program. Plain data: filter the regions to look at some of them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Timeline {
  /** In order of their start. If some start together, the longest comes first. */
  readonly regions: ReadonlyArray<Region>
  /** The devices of the regions, and the one that was current when the timeline began. */
  readonly devices: ReadonlyArray<TimelineDevice>
  /** The number of regions that could not be measured, or whose effect was still running when the timeline ended. */
  readonly dropped: number
  /** When the timeline began, in nanoseconds of Unix time, like the times of spans. */
  readonly startTime: bigint
}

/**
 * Options for drawing a timeline.
 *
 * @category models
 * @since 0.1.0
 */
export interface SvgOptions {
  /** The width in pixels, from 1 to 100,000. Default: 1000. */
  readonly width?: number | undefined
  /** A heading. Default: none. */
  readonly title?: string | undefined
  /** The colors: those that the viewer's system prefers (`auto`), light, or dark. Default: `auto`. */
  readonly theme?: "auto" | "light" | "dark" | undefined
}

/**
 * Options for a span that is measured on the GPU.
 *
 * @category models
 * @since 0.1.0
 */
export interface SpanOptions extends TracerSpanOptions {
  /** Default: the current stream where the span begins. */
  readonly stream?: CudaStream | undefined
}

/**
 * Options for measuring an effect.
 *
 * @category models
 * @since 0.1.0
 */
export interface TimedOptions {
  /** Default: the current stream where the effect begins. */
  readonly stream?: CudaStream | undefined
}

/**
 * Runs an effect between two events on a stream, by default the current one, waits until the second event is reached, and returns the
 * GPU time between the two with the result. Like `Effect.timed`, which measures host time.
 *
 * **Details**
 *
 * The time covers everything on the stream between the events, to about half a microsecond (`cuEventElapsedTime`). Work that the
 * effect enqueues on other streams counts only as far as the stream waits for it. Work that the stream held before is not included.
 * An effect that fails is not waited for.
 *
 * **Gotchas**
 *
 * Suspends the fiber until the GPU reaches the second event, which delays later work. `region` measures without waiting.
 *
 * **Example** (How long a fill takes)
 *
 * ```ts
 * import { CudaMemory, CudaTiming } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const buffer = yield* CudaMemory.allocate(1 << 20)
 *   const [duration] = yield* CudaTiming.timed(CudaMemory.fill(buffer, 0))
 *   return duration
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category measuring
 * @since 0.1.0
 */
export const timed: {
  (
    options?: TimedOptions
  ): <A, E, R>(
    self: Effect.Effect<A, E, R>
  ) => Effect.Effect<[duration: Duration.Duration, result: A], E | CudaError, R | CudaRuntime>
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options?: TimedOptions
  ): Effect.Effect<[duration: Duration.Duration, result: A], E | CudaError, R | CudaRuntime>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    { stream }: TimedOptions = {}
  ): Effect.Effect<[duration: Duration.Duration, result: A], E | CudaError, R | CudaRuntime> =>
    Effect.scopedWith(Effect.fnUntraced(function*(scope) {
      const begun = yield* begin("CudaTiming.timed", stream, scope).pipe(named("CudaTiming.timed"))
      const result = yield* self
      const millis = yield* reach(begun).pipe(named("CudaTiming.timed"))
      return [Duration.millis(millis), result]
    }))
)

/**
 * Makes an effect a named region of the timeline that is being recorded. Outside a timeline, this is the effect itself.
 *
 * **Details**
 *
 * An event is recorded on the stream before the effect and another one after it, however it ends (two `cuEventRecord`). Both are on
 * the stream that was current when the region began, or on the stream in the options. Regions may nest, and may be in forked fibers:
 * every fiber that is forked inside `timeline` records into it.
 *
 * Waits for nothing and adds no failures: a region that could not be measured is counted in `Timeline.dropped`.
 *
 * While a graph is recorded, the region becomes part of the graph, and every launch of it inside a timeline measures it, on the stream of
 * the launch. Launches outside timelines do not pay for it. The first measured launch makes a second executable graph, which takes as
 * long as `CudaGraph.instantiate`. Regions in bodies of conditions cannot be measured, and regions on streams outside the recording
 * are ignored.
 *
 * **Gotchas**
 *
 * While a timeline is recorded, a region costs about 20 µs of host time and 1 to 2 µs of GPU time, which is also the measured length
 * of an empty region.
 *
 * **Example** (Nested regions)
 *
 * ```ts
 * import { CudaMemory, CudaTiming } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const reset = CudaMemory.fill(buffer, 0).pipe(
 *   CudaTiming.region("fill", { attributes: { bytes: buffer.byteLength } })
 * )
 * const twice = Effect.andThen(reset, reset).pipe(CudaTiming.region("reset"))
 * ```
 *
 * @category timelines
 * @since 0.1.0
 */
export const region: {
  (name: string, options?: RegionOptions): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, name: string, options?: RegionOptions): Effect.Effect<A, E, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, name: string, options: RegionOptions = {}): Effect.Effect<A, E, R> =>
    Effect.withFiber((fiber) => {
      if (fiber.getRef(CurrentRecording) !== undefined) return marked(self, name, options, fiber.context)
      return fiber.getRef(CurrentRecorder)?.around(self, name, options) ?? self
    })
)

/** Marks a region of a recorded program. If that fails, it is not measured. */
const marked = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  name: string,
  { attributes = {}, stream }: RegionOptions,
  context: Context.Context<never>
): Effect.Effect<A, E, R> => {
  const runtime = Context.getUnsafe(context, CudaRuntime)
  const region = { name, attributes }
  const begin = onStream(
    "CudaTiming.region",
    runtime,
    undefined,
    stream,
    (ref) => Effect.as(runtime.graphMark(region, "begin", ref), ref)
  )
  return Effect.uninterruptibleMask((restore) =>
    Effect.matchEffect(begin, {
      onFailure: () => restore(self),
      onSuccess: (ref) => Effect.onExit(restore(self), () => Effect.ignore(runtime.graphMark(region, "end", ref)))
    })
  )
}

/**
 * Runs an effect and returns the timeline of its regions, with its result.
 *
 * **Details**
 *
 * Waits on the host twice: at the beginning, for an event on the current device that relates GPU times to host times; and at the end,
 * for the regions that the GPU has not finished. Another device is related to the host concurrently with the program, when its first
 * region begins. An effect that fails has no timeline and is not waited for.
 *
 * Fails if the current device does not respond at the beginning, or if a fault is found while waiting at the end. Regions whose
 * effect is still running then, in another fiber, are dropped. If timelines nest, the inner one records the regions inside it, and the
 * outer one does not.
 *
 * Events are reused once the GPU has passed them, so even a long program needs only as many as it has regions in progress.
 *
 * **Gotchas**
 *
 * Lengths are accurate to about half a microsecond. So are distances within a device, plus a tenth of a microsecond per second.
 * Between the host and a device, and between devices, times are initially off by about ten microseconds (`TimelineDevice.uncertainty`
 * is the upper limit), and by more with every second, because their clocks drift apart.
 *
 * A region begins and ends when the stream reaches its events, which may be long after the host enqueued them.
 *
 * **Example** (A program's timeline as a file for Perfetto)
 *
 * ```ts
 * import { CudaTiming } from "effect-cuda"
 * import type { CudaError, CudaRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import { writeFileSync } from "node:fs"
 *
 * declare const program: Effect.Effect<void, CudaError.CudaError, CudaRuntime.CudaRuntime>
 *
 * const recorded = Effect.gen(function*() {
 *   const [timeline] = yield* CudaTiming.timeline(program)
 *   yield* Effect.sync(() => writeFileSync("trace.json", CudaTiming.toTraceJson(timeline)))
 * })
 * ```
 *
 * @category timelines
 * @since 0.1.0
 */
export const timeline = <A, E, R>(
  self: Effect.Effect<A, E, R>
): Effect.Effect<readonly [timeline: Timeline, result: A], E | CudaError, R | CudaRuntime> =>
  Effect.scopedWith(Effect.fnUntraced(function*(scope) {
    const clock = yield* Clock.Clock
    const startTime = clock.currentTimeNanosUnsafe()
    const recorder = new Recorder(yield* CudaRuntime, clock, scope)
    const { deviceIndex } = yield* CurrentPlace
    const first = yield* recorder.device(deviceIndex)
    yield* first.anchored.pipe(named("CudaTiming.timeline"))
    const result = yield* Effect.ensuring(Effect.provideService(self, CurrentRecorder, recorder), recorder.close)
    yield* recorder.drain.pipe(named("CudaTiming.timeline"))
    return [toTimeline(recorder, startTime), result]
  }))

/**
 * Runs an effect in a span of the Effect tracer, like `Effect.withSpan`, and reports what it did on the GPU in the attributes of the
 * span. Waits for the GPU to finish before the span ends.
 *
 * **Details**
 *
 * - `cuda.device`: the index of the device
 * - `cuda.stream`: the driver's ID of the stream
 * - `cuda.start_ms`: when the GPU began, in milliseconds since the span began, to about ten microseconds
 * - `cuda.duration_ms`: how long the GPU took, in milliseconds, to about half a microsecond
 * - `cuda.error`: why the last two are missing, in place of them
 *
 * Adds no failures. An effect that fails or is interrupted is not waited for, and its span has only the first two attributes. A span
 * that is not sampled is neither measured nor waited for.
 *
 * **Gotchas**
 *
 * Besides the wait, each span costs about 100 µs of host time, for events and for a stream that relates GPU times to host times. Use
 * it for work that takes milliseconds. Stack traces show the name of the span, and its source location only if `captureStackTrace`
 * provides one.
 *
 * **Example** (A span with GPU times)
 *
 * ```ts
 * import { CudaMemory, CudaTiming } from "effect-cuda"
 *
 * declare const batch: CudaMemory.DeviceBuffer
 *
 * const cleared = CudaMemory.fill(batch, 0).pipe(
 *   CudaTiming.withSpan("clear", { attributes: { bytes: batch.byteLength } })
 * )
 * ```
 *
 * @category measuring
 * @since 0.1.0
 */
export const withSpan: {
  (
    name: string,
    options?: SpanOptions
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, Exclude<R, ParentSpan> | CudaRuntime>
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    name: string,
    options?: SpanOptions
  ): Effect.Effect<A, E, Exclude<R, ParentSpan> | CudaRuntime>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    name: string,
    { stream, ...options }: SpanOptions = {}
  ): Effect.Effect<A, E, Exclude<R, ParentSpan> | CudaRuntime> => {
    const { captureStackTrace = false } = options
    return Effect.useSpan(
      name,
      options,
      (span) => Effect.withParentSpan(span.sampled ? measured(self, span, stream) : self, span, { captureStackTrace })
    )
  }
)

/**
 * Exports a timeline as JSON in the trace event format, for https://ui.perfetto.dev or `chrome://tracing`.
 *
 * **Details**
 *
 * Each device is a process and each stream is a thread, both with their names. Times are microseconds since the timeline began. A
 * stream whose regions overlap without nesting has several threads.
 *
 * Throws a `CudaError` with the reason `InvalidArgument` if the time of a region is 10^12 seconds or more, or if the JSON would be
 * longer than the longest string.
 *
 * **Example** (A file for Perfetto)
 *
 * ```ts
 * import { CudaTiming } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import { writeFile } from "node:fs/promises"
 *
 * declare const timeline: CudaTiming.Timeline
 *
 * const written = Effect.promise(() => writeFile("trace.json", CudaTiming.toTraceJson(timeline)))
 * ```
 *
 * @category timelines
 * @since 0.1.0
 */
export const toTraceJson = (self: Timeline): string =>
  inOneString("CudaTiming.toTraceJson", self, (operation) =>
    JSON.stringify({
      displayTimeUnit: "ns",
      otherData: { startTime: String(self.startTime), dropped: self.dropped },
      traceEvents: traceEvents(operation, self)
    }))

/**
 * Draws a timeline as a self-contained SVG picture: a lane for each stream of each device, with its name, a time axis, and a legend.
 * Regions with the same name have the same color, contain the regions inside them, and show their details in a tooltip.
 *
 * **Details**
 *
 * The axis begins at zero, or with the first region if that comes late compared with the length of the rest. Names that do not fit into
 * their bars are shortened. Regions that are too short to be distinguished in the picture are omitted: filter `regions` to look closer.
 *
 * Throws a `CudaError` with the reason `InvalidArgument` if `width` is not a number from 1 to 100,000, for another `theme`, if the time of a region is 10^12
 * seconds or more, or if the picture would be longer than the longest string.
 *
 * **Example** (A picture of what happened in the first second)
 *
 * ```ts
 * import { CudaTiming } from "effect-cuda"
 * import * as Duration from "effect/Duration"
 *
 * declare const timeline: CudaTiming.Timeline
 *
 * const svg = CudaTiming.toSvg({
 *   ...timeline,
 *   regions: timeline.regions.filter(({ start }) => Duration.isLessThan(start, Duration.seconds(1)))
 * })
 * ```
 *
 * @category timelines
 * @since 0.1.0
 */
export const toSvg = (self: Timeline, options: SvgOptions = {}): string =>
  inOneString("CudaTiming.toSvg", self, (operation) => renderSvg(operation, self, options))

/** Throws a `CudaError` where text is too long for a string: half a gigabyte in V8. */
const inOneString = (operation: string, { regions }: Timeline, write: (operation: string) => string): string => {
  try {
    return write(operation)
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    const expected = "regions whose text fits into one string"
    const value = countOf(regions.length, "region")
    throw new CudaError({ operation, reason: { _tag: "InvalidArgument", argument: "regions", value, expected } })
  }
}

/** A stream on which the start event was recorded, and where the end event will be. */
interface Bracket {
  readonly runtime: CudaRuntimeService
  readonly stream: StreamRef
  readonly start: EventRef
  readonly end: EventRef
}

const notWhileRecording = "it waits for work that runs only when the graph is launched. Use CudaTiming.region instead"

const begin = (
  operation: string,
  stream: CudaStream | undefined,
  scope: Scope.Scope
): Effect.Effect<Bracket, CudaError, CudaRuntime> =>
  Effect.flatMap(CudaRuntime, (runtime) =>
    onStream(
      operation,
      runtime,
      undefined,
      stream,
      Effect.fnUntraced(function*(ref) {
        if (ref.isRecording) return yield* refuseToRecord(operation, notWhileRecording)
        const start = yield* Scope.provide(makeTimed(runtime, ref.deviceIndex), scope)
        const end = yield* Scope.provide(makeTimed(runtime, ref.deviceIndex), scope)
        yield* runtime.eventRecord(start, ref)
        return { runtime, stream: ref, start, end }
      })
    ))

/** Records the second event, waits for it, and returns the milliseconds between the two. */
const reach = ({ end, runtime, start, stream }: Bracket): Effect.Effect<number, CudaError> =>
  runtime.eventRecord(end, stream).pipe(
    Effect.andThen(runtime.eventSynchronize(end)),
    Effect.andThen(runtime.eventElapsedTime(start, end))
  )

const measured = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  span: Span,
  stream: CudaStream | undefined
): Effect.Effect<A, E, R | CudaRuntime> =>
  Effect.scopedWith(Effect.fnUntraced(function*(scope) {
    const clock = yield* Clock.Clock
    const began = clock.monotonicTimeNanosUnsafe()
    const missing = (error: CudaError) => Effect.sync(() => span.attribute("cuda.error", error.message))
    const bracket = yield* Effect.catch(begin("CudaTiming.withSpan", stream, scope), missing)
    if (bracket === undefined) return yield* self
    const { runtime, start, stream: { deviceIndex, id } } = bracket
    span.attribute("cuda.device", deviceIndex)
    span.attribute("cuda.stream", id)
    const result = yield* self
    const measure = Effect.gen(function*() {
      const millis = yield* reach(bracket)
      const { event, hostTime } = yield* Scope.provide(align(runtime, deviceIndex, clock), scope)
      const sinceStart = yield* runtime.eventElapsedTime(start, event)
      span.attribute("cuda.start_ms", Number(hostTime - began) / 1e6 - sinceStart)
      span.attribute("cuda.duration_ms", millis)
    })
    yield* Effect.catch(measure, missing)
    return result
  }))

const toTimeline = (recorder: Recorder, startTime: bigint): Timeline => ({
  regions: recorder.regions
    .toSorted((a, b) => a.start - b.start || b.duration - a.duration)
    .map(({ attributes, duration, name, start, stream }) => ({
      name,
      deviceIndex: stream.deviceIndex,
      streamId: stream.id,
      ...(stream.name === undefined ? undefined : { streamName: stream.name }),
      start: Duration.millis(start),
      duration: Duration.millis(duration),
      attributes
    })),
  devices: recorder.devices.map(({ index, uncertainty }) => ({
    index,
    name: recorder.runtime.devices[index]?.name ?? "",
    uncertainty: Duration.nanos(uncertainty)
  })),
  dropped: recorder.dropped,
  startTime
})
