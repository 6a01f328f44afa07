/**
 * A layer around any runtime that turns operations into spans of Effect's tracer: copies, fills, launches, graphs and calls of libraries
 * with the time that they took on the GPU, and waits with the time that they took on the host.
 *
 * Spans go wherever the tracer of the program sends them, for example to a collector over OTLP. It costs nothing where it is not provided.
 * Depends on the runtime's interface and on its shared foundation.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import type { CudaRuntimeService, StreamRef } from "./CudaRuntime.ts"
import { around } from "./runtime/operations.ts"
import type { Operation, OperationCall, OperationName } from "./runtime/operations.ts"
import { attributesOf, enqueuedOf, isLengthy, streamAttributes, streamOf, subjectOf } from "./shared/described.ts"
import type { AttributeEntries, Enqueued } from "./shared/described.ts"
import { Measurer } from "./traced/Measurer.ts"
import type { OnRan } from "./traced/Measurer.ts"

/**
 * Options for tracing.
 *
 * @category models
 * @since 0.1.0
 */
export interface TraceOptions {
  /** Which operations become spans. Default: all that enqueue work, and those that take time on the host (see `layer`). */
  readonly filter?: ((operation: OperationName) => boolean) | undefined
  /** Whether operations outside any span become root spans. Default: false; they are not traced. */
  readonly roots?: boolean | undefined
  /** Whether to measure when work runs on the GPU. If not, spans are the calls that enqueue it. Default: true. */
  readonly gpuTimes?: boolean | undefined
  /** How often to look for work that has finished, which is when its span ends. Default: 10 milliseconds. */
  readonly interval?: Duration.Input | undefined
  /** How many operations may wait to be measured. Further ones get spans of the call that enqueues them. Default: 4096. */
  readonly mostPending?: number | undefined
}

/**
 * Wraps a runtime for tracing. The result has the identity of the inner runtime. Its `liveResources` leave out the events, streams and
 * waits that measuring needs.
 *
 * **Example** (A layer that traces if told to)
 *
 * ```ts
 * import { CudaRuntime, NativeRuntime, TracedRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const runtime = Layer.effect(
 *   CudaRuntime.CudaRuntime,
 *   Effect.flatMap(NativeRuntime.make(), (gpu) =>
 *     process.env["GPU_TRACE"] === undefined ? Effect.succeed(gpu) : TracedRuntime.make(gpu, { roots: true }))
 * )
 * ```
 *
 * @see {@link layer} for what becomes a span
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  runtime: CudaRuntimeService,
  options: TraceOptions = {}
): Effect.Effect<CudaRuntimeService, never, Scope.Scope> =>
  Effect.gen(function*() {
    const { gpuTimes = true, interval = "10 millis", mostPending = 4096 } = options
    const measurer = new Measurer(runtime, yield* Clock.Clock, yield* Effect.scope, { interval, mostPending })
    yield* Effect.addFinalizer(() => measurer.close)
    const traced = around(runtime, (operation, call) => {
      if (options.filter?.(operation.name) === false) return call
      const enqueued = enqueuedOf(operation.member)
      if (enqueued !== undefined) {
        return traceEnqueued(
          { operation, enqueued, roots: options.roots ?? false, call },
          gpuTimes ? measurer : undefined
        )
      }
      return isLengthy(operation.member) ? traceCall(operation, options.roots ?? false, call) : call
    })
    const liveResources = Effect.map(runtime.liveResources, (live) => {
      const held = measurer.held
      const { events, streams, waits } = live
      return { ...live, streams: streams - held.streams, events: events - held.events, waits: waits - held.waits }
    })
    return { ...traced, liveResources }
  })

/**
 * Wraps the runtime of a layer for tracing. Operations become spans below the span of the fiber that runs them.
 *
 * **Details**
 *
 * Operations that enqueue work become spans from the time at which the GPU began them to the time at which it ended them:
 * `CudaMemory.copy`, `copy2D`, `copyBatch`, `fill` and `prefetch`, `CudaKernel.launch` with the name of the kernel, `CudaGraph.launch` and
 * `upload`, `CudaLibrary.call` with the name of the function, and `CudaMemory.enqueue`. An event is recorded before and one after each; a
 * fiber of the layer reads them when the GPU has passed them, and then the span is made and ended. Nothing waits for that, except the end
 * of the layer. Spans of work can therefore begin and end after their parent did.
 *
 * Waits become spans of the host's time (`CudaStream.synchronize`, `CudaEvent.synchronize`, …), and so do compiling, loading, instantiating
 * graphs, pinning, managed and growable memory, reclaiming memory, and calls of libraries that enqueue nothing.
 *
 * A span fails with the failure of its operation. After a fault of the GPU, the spans of the work that was pending fail with it.
 *
 * | attribute | |
 * | --- | --- |
 * | `cuda.device`, `cuda.stream`, `cuda.stream.name` | index, the driver's id, and the name if it has one |
 * | `cuda.duration_ms` | the time on the GPU, to about half a microsecond |
 * | `cuda.queued_ms` | from the call to the beginning on the GPU, to about ten microseconds |
 * | `cuda.error` | why the last two are missing; the span is then that of the call |
 * | `cuda.bytes`, `cuda.copy.direction`, `cuda.copy.count` | of copies and fills |
 * | `cuda.kernel`, `cuda.grid`, `cuda.block`, `cuda.shared_bytes` | of launches |
 * | `cuda.graph.nodes` | of graphs |
 * | `cuda.library`, `cuda.function` | of calls of libraries |
 *
 * A span that is not sampled is not measured, and neither are operations outside any span, unless `roots` is set. While a graph is
 * recorded, nothing is traced.
 *
 * **Gotchas**
 *
 * The events are two more calls per operation, and the times three to read: docs/monitoring.md has measurements. Work that other fibers
 * enqueue on the same stream in between counts as part of the operation. A CUDA event costs the GPU about a microsecond.
 *
 * **Example** (Spans to a collector)
 *
 * ```ts
 * import { NativeRuntime, TracedRuntime } from "effect-cuda"
 * import * as FetchHttpClient from "effect/http/FetchHttpClient"
 * import * as Layer from "effect/Layer"
 * import * as Otlp from "effect/observability/Otlp"
 *
 * const traced = TracedRuntime.layer().pipe(Layer.provideMerge(NativeRuntime.layer()))
 *
 * const exporter = Otlp.layerJson({ baseUrl: "http://localhost:4318", resource: { serviceName: "inference" } }).pipe(
 *   Layer.provide(FetchHttpClient.layer)
 * )
 *
 * // The exporter outlives the runtime, whose last spans end with it.
 * const live = traced.pipe(Layer.provideMerge(exporter))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: TraceOptions = {}): Layer.Layer<CudaRuntime, never, CudaRuntime> =>
  Layer.effect(CudaRuntime, Effect.flatMap(CudaRuntime, (runtime) => make(runtime, options)))

/** A span that has not been made yet: it begins when the GPU begins the work. */
interface Planned {
  readonly tracer: Tracer.Tracer
  readonly clock: Clock.Clock
  readonly parent: Option.Option<Tracer.AnySpan>
  readonly name: string
  readonly attributes: AttributeEntries
  readonly calledAt: bigint
}

type AnyFiber = Fiber.Fiber<unknown, unknown>

/** What a fiber's next span would be; undefined if it would not be sampled. */
const plan = (
  fiber: AnyFiber,
  roots: boolean,
  name: () => string,
  attributes: () => AttributeEntries
): Planned | undefined => {
  const parent = Context.getOption(fiber.context, Tracer.ParentSpan)
  if (Option.isSome(parent) ? !parent.value.sampled : !roots) return undefined
  if (!fiber.getRef(References.TracerEnabled)) return undefined
  const clock = fiber.getRef(Clock.Clock)
  return {
    tracer: fiber.getRef(Tracer.Tracer),
    clock,
    parent,
    name: name(),
    attributes: attributes(),
    calledAt: clock.currentTimeNanosUnsafe()
  }
}

/** Makes a span and ends it. */
const record = (
  { attributes, name, parent, tracer }: Planned,
  start: bigint,
  end: bigint,
  exit: Exit.Exit<unknown, unknown>,
  more: AttributeEntries
): void => {
  const span = tracer.span({
    name,
    parent,
    annotations: Context.empty(),
    links: [],
    startTime: start,
    kind: "internal",
    root: false,
    sampled: true
  })
  for (const [key, value] of Object.entries(attributes)) span.attribute(key, value)
  for (const [key, value] of Object.entries(more)) span.attribute(key, value)
  span.end(end, exit)
}

/** Makes the span of a call on the host. */
const recordCall = (planned: Planned, exit: Exit.Exit<unknown, unknown>, more: AttributeEntries = {}): void =>
  record(planned, planned.calledAt, planned.clock.currentTimeNanosUnsafe(), exit, more)

/** Makes the span of work when it is known when it ran. */
const whenRan = (planned: Planned): OnRan => (ran) => {
  const { calledAt, clock } = planned
  if (Exit.isFailure(ran)) return record(planned, calledAt, clock.currentTimeNanosUnsafe(), ran, {})
  const { end, start } = ran.value
  // Clocks are related to about ten microseconds, and work does not begin before it is enqueued.
  const from = start < calledAt ? calledAt : start
  const length = end - start
  record(planned, from, from + length, Exit.void, {
    "cuda.duration_ms": Number(length) / 1e6,
    "cuda.queued_ms": Number(from - calledAt) / 1e6
  })
}

interface Tracing {
  readonly operation: Operation
  readonly enqueued: Enqueued
  readonly roots: boolean
  readonly call: OperationCall
}

const traceEnqueued =
  ({ call, enqueued, operation, roots }: Tracing, measurer: Measurer | undefined): OperationCall => (...args) =>
    Effect.withFiber((fiber) => {
      const stream = streamOf(enqueued, args)
      if (stream === undefined || stream.isRecording) return call(...args)
      const subject = () => subjectOf(enqueued, args)
      const planned = plan(
        fiber,
        roots,
        () => nameOf(operation, subject()),
        () => ({ ...streamAttributes(stream), ...attributesOf(enqueued, args) })
      )
      if (planned === undefined) return call(...args)
      const run = call(...args)
      return measurer === undefined
        ? Effect.onExit(run, (exit) => Effect.sync(() => recordCall(planned, exit)))
        : measured(measurer, planned, stream, run)
    })

const nameOf = ({ name }: Operation, subject: string | undefined): string =>
  subject === undefined ? name : `${name} ${subject}`

const tooMuchPending = "too many operations wait to be measured"

const measured = (
  measurer: Measurer,
  planned: Planned,
  stream: StreamRef,
  run: Effect.Effect<unknown, CudaError>
): Effect.Effect<unknown, CudaError> =>
  Effect.uninterruptibleMask((restore) => {
    const unmeasured = (why: string) =>
      Effect.onExit(restore(run), (exit) => Effect.sync(() => recordCall(planned, exit, { "cuda.error": why })))
    return Effect.matchEffect(measurer.begin(stream), {
      onFailure: ({ message }) => unmeasured(message),
      onSuccess: (started) => {
        if (started === undefined) return unmeasured(tooMuchPending)
        return Effect.onExit(restore(run), (exit) => {
          if (Exit.isSuccess(exit)) return measurer.end(started, whenRan(planned))
          recordCall(planned, exit)
          return measurer.abandon(started)
        })
      }
    })
  })

/** Traces an operation whose time is that of the host. */
const traceCall = (operation: Operation, roots: boolean, call: OperationCall): OperationCall => (...args) =>
  Effect.withFiber((fiber) => {
    const planned = plan(fiber, roots, () => operation.name, () => ({
      "cuda.device": operation.deviceOf(args),
      "cuda.subject": operation.describe(args)
    }))
    const run = call(...args)
    return planned === undefined ? run : Effect.onExit(run, (exit) => Effect.sync(() => recordCall(planned, exit)))
  })
