/**
 * Timing: what regions of a program cost on the GPU, as a duration, as attributes of a span, and as a timeline of a whole
 * program that can be looked at.
 *
 * Regions are measured by the GPU itself, with an event before and one after. Depends on the `CudaRuntime` interface and on
 * what the modules share.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Scope from "effect/Scope"
import type { ParentSpan, Span, SpanOptions as TracerSpanOptions } from "effect/Tracer"
import type { CudaError } from "./CudaError.ts"
import type { CudaStream } from "./CudaStream.ts"
import { named } from "./internal/handles.ts"
import { CurrentPlace, onStream } from "./internal/place.ts"
import { align, CurrentRecorder, makeTimed, Recorder } from "./internal/timing/recorder.ts"
import { renderSvg } from "./internal/timing/svg.ts"
import { traceEvents } from "./internal/timing/trace.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, EventRef, StreamRef } from "./layers/CudaRuntime.ts"

/**
 * What a program says about a region.
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
  /** Default: the stream that is current where the region begins. */
  readonly stream?: CudaStream | undefined
  readonly attributes?: Attributes | undefined
}

/**
 * A region as the GPU did it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Region {
  readonly name: string
  readonly deviceIndex: number
  /** The driver's id of the stream; 0 for the legacy default stream. */
  readonly streamId: number
  /** From the beginning of the timeline. */
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
  /** How far the device's times were off the host's, at most, when the device was first seen. */
  readonly uncertainty: Duration.Duration
}

/**
 * The regions of a program. Plain data: filter the regions, and look at those that are left.
 *
 * @category models
 * @since 0.1.0
 */
export interface Timeline {
  /** By their start; of those that start together, the longest first. */
  readonly regions: ReadonlyArray<Region>
  /** The devices of the regions, and the one that was current when the timeline began. */
  readonly devices: ReadonlyArray<TimelineDevice>
  /** Regions that could not be measured, or whose effect was still running when the timeline ended. */
  readonly dropped: number
  /** When the timeline began, in nanoseconds of Unix time, like the times of a span. */
  readonly startTime: bigint
}

/**
 * Options for drawing a timeline.
 *
 * @category models
 * @since 0.1.0
 */
export interface SvgOptions {
  /** Pixels; 1000 by default. */
  readonly width?: number | undefined
  /** A heading; none by default. */
  readonly title?: string | undefined
}

/**
 * Options for a span that is measured on the GPU.
 *
 * @category models
 * @since 0.1.0
 */
export interface SpanOptions extends TracerSpanOptions {
  /** Default: the stream that is current where the span begins. */
  readonly stream?: CudaStream | undefined
}

/**
 * Options for measuring an effect.
 *
 * @category models
 * @since 0.1.0
 */
export interface TimedOptions {
  /** Default: the stream that is current where the effect begins. */
  readonly stream?: CudaStream | undefined
}

/**
 * Runs an effect between two events of a stream, by default the current one, and waits until the second is reached: returns
 * the time on the GPU between the two, with the result. Like `Effect.timed`, which has the time of the host.
 *
 * **Details**
 *
 * The time is that of everything on the stream between the events, to about half a microsecond (`cuEventElapsedTime`); work
 * that the effect does on other streams counts as far as the stream waits for it. What the stream held before is not part of
 * it. An effect that fails is not waited for.
 *
 * **Gotchas**
 *
 * Suspends the fiber until the GPU is there, so that what follows is enqueued late: `region` measures without waiting.
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
 * Makes an effect a named region of the timeline that is being recorded. Without one it is the effect itself.
 *
 * **Details**
 *
 * An event is recorded on the stream before the effect and another one after it, however it ends (two `cuEventRecord`). Both
 * are on the stream that was current when the region began, or the one of the options. Regions may nest, and may be in forked
 * fibers: every fiber that is forked inside `timeline` records into it.
 *
 * Waits for nothing, and never fails by itself: a region that could not be measured is counted in `Timeline.dropped`.
 *
 * **Gotchas**
 *
 * While a timeline is recorded, a region takes some 20 µs of the host, and one or two of the GPU, which an empty region has as
 * its length.
 *
 * **Example** (Two regions, one in the other)
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
    Effect.withFiber((fiber) => fiber.getRef(CurrentRecorder)?.around(self, name, options) ?? self)
)

/**
 * Runs an effect and returns the timeline of the regions in it, with its result.
 *
 * **Details**
 *
 * Waits on the host twice: at the beginning, for an event on the current device, which ties the times of the GPU to those of
 * the host; and at the end, for the regions that the GPU is still in. Another device is tied to the host beside the program,
 * when its first region begins. An effect that fails has no timeline, and is not waited for.
 *
 * Fails when the current device does not answer at the beginning, and with a fault that is found while waiting at the end.
 * Regions whose effect is still running then, in a fiber of its own, are dropped. In a timeline within another one, regions
 * are those of the inner one only.
 *
 * Events are used again once the GPU has passed them, so that a long program needs no more of them than it has regions under
 * way.
 *
 * **Gotchas**
 *
 * Lengths are exact to about half a microsecond, and so are distances within a device, but for a tenth of a microsecond per
 * second. Between the host and a device, and between devices, times are off by about ten microseconds at first
 * (`TimelineDevice.uncertainty` says how many at most), and by some more each second: their clocks drift apart.
 *
 * A region begins and ends when the stream gets there, which may be long after the host did.
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
    const { device } = yield* CurrentPlace
    const first = yield* recorder.device(device)
    yield* first.anchored.pipe(named("CudaTiming.timeline"))
    const result = yield* Effect.ensuring(Effect.provideService(self, CurrentRecorder, recorder), recorder.close)
    yield* recorder.drain.pipe(named("CudaTiming.timeline"))
    return [toTimeline(recorder, startTime), result]
  }))

/**
 * Runs an effect in a span of the Effect tracer, as `Effect.withSpan`, and says in the span's attributes what it did on the
 * GPU. Waits until the GPU is done with it before the span ends.
 *
 * **Details**
 *
 * - `cuda.device`: the device's number
 * - `cuda.stream`: the driver's id of the stream
 * - `cuda.start_ms`: when the GPU began, in milliseconds since the span began, to about ten microseconds
 * - `cuda.duration_ms`: how long the GPU took, in milliseconds, to about half a microsecond
 * - `cuda.error`: instead of the last two, why they are missing
 *
 * Never fails by itself. An effect that fails or is interrupted is not waited for, and its span has only the first two. A span
 * that is not sampled is neither measured nor waited for.
 *
 * **Gotchas**
 *
 * Besides waiting, each span costs about 100 µs of the host, for events and for a stream that finds the GPU's place in the
 * host's time: it is for what takes milliseconds. In stack traces the span has its name, and its place in the source only
 * where `captureStackTrace` gives one.
 *
 * **Example** (A span with what the GPU did)
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
 * Writes a timeline as JSON in the trace event format, for https://ui.perfetto.dev or `chrome://tracing`.
 *
 * **Details**
 *
 * A process is a device and a thread is a stream, both with their names; times are microseconds since the timeline began. A
 * stream whose regions overlap without one being in the other has several threads.
 *
 * @category timelines
 * @since 0.1.0
 */
export const toTraceJson = (self: Timeline): string =>
  JSON.stringify({
    displayTimeUnit: "ns",
    otherData: { startTime: String(self.startTime), dropped: self.dropped },
    traceEvents: traceEvents(self)
  })

/**
 * Draws a timeline as an SVG picture that needs nothing else: a lane for each device and stream, and a time axis that begins
 * with the first region. Regions of one name have one colour, and say in their tooltip what they are.
 *
 * **Details**
 *
 * Regions that are too short to be told apart in the picture are left out: filter `regions` to look closer.
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
export const toSvg = (self: Timeline, options: SvgOptions = {}): string => renderSvg(self, options)

/** A stream on which an event was recorded, and one that will be. */
interface Bracket {
  readonly runtime: CudaRuntimeService
  readonly stream: StreamRef
  readonly start: EventRef
  readonly end: EventRef
}

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
        const start = yield* Scope.provide(makeTimed(runtime, ref.device), scope)
        const end = yield* Scope.provide(makeTimed(runtime, ref.device), scope)
        yield* runtime.eventRecord(start, ref)
        return { runtime, stream: ref, start, end }
      })
    ))

/** Records the second event and waits for it: the milliseconds between the two. */
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
    const { runtime, start, stream: { device, id } } = bracket
    span.attribute("cuda.device", device)
    span.attribute("cuda.stream", id)
    const result = yield* self
    const measure = Effect.gen(function*() {
      const millis = yield* reach(bracket)
      const { event, hostTime } = yield* Scope.provide(align(runtime, device, clock), scope)
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
      deviceIndex: stream.device,
      streamId: stream.id,
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
