/**
 * Spans, metrics and logs of the layers, through Effect's OTLP exporter to a server that decodes what it receives.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaMetrics from "effect-cuda/CudaMetrics"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaPipeline from "effect-cuda/CudaPipeline"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as CudaTaskGraph from "effect-cuda/CudaTaskGraph"
import * as CudaTiming from "effect-cuda/CudaTiming"
import * as FaultInjection from "effect-cuda/FaultInjection"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as TracedRuntime from "effect-cuda/TracedRuntime"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Otlp from "effect/observability/Otlp"
import type * as OtlpTracer from "effect/observability/OtlpTracer"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { program as compiled, signatures, simulatedKernels } from "./support/kernels.ts"
import { logged, onStub, openStub, stubLayer, until } from "./support/stubDriver.ts"

const stub = openStub()

interface KeyValue {
  readonly key: string
  readonly value: object
}

interface MetricData {
  readonly name: string
  readonly unit: string
  readonly sum?: { readonly dataPoints: ReadonlyArray<Point>; readonly isMonotonic: boolean }
  readonly gauge?: { readonly dataPoints: ReadonlyArray<Point> }
}

interface Point {
  readonly attributes: ReadonlyArray<KeyValue>
  readonly asInt?: number | string
  readonly asDouble?: number
}

interface LogData {
  readonly severityText: string
  readonly body: { readonly stringValue: string }
  readonly attributes: ReadonlyArray<KeyValue>
}

/** Everything that a collector received. */
interface Received {
  readonly spans: Array<OtlpSpan>
  readonly metrics: Array<MetricData>
  readonly logs: Array<LogData>
  readonly services: Set<string>
}

type OtlpSpan = OtlpTracer.TraceData["resourceSpans"][number]["scopeSpans"][number]["spans"][number]

const valueOf = ({ value }: KeyValue): unknown => {
  const [kind, content] = Object.entries(value)[0]!
  if (kind === "intValue") return Number(content)
  if (kind !== "arrayValue") return content
  return (content as { readonly values: ReadonlyArray<KeyValue["value"]> }).values.map((value) =>
    valueOf({ key: "", value })
  )
}

const attributesOf = (entries: ReadonlyArray<KeyValue>) =>
  Object.fromEntries(entries.map((entry) => [entry.key, valueOf(entry)]))

/** A server that takes OTLP over HTTP as JSON, as a collector does, for as long as the scope. */
const collector = Effect.acquireRelease(
  Effect.callback<{ readonly url: string; readonly received: Received; readonly close: () => void }>((resume) => {
    const received: Received = { spans: [], metrics: [], logs: [], services: new Set() }
    const server = createServer((request, response) => {
      const chunks: Array<Buffer> = []
      request.on("data", (chunk: Buffer) => chunks.push(chunk))
      request.on("end", () => {
        take(received, request.url ?? "", JSON.parse(Buffer.concat(chunks).toString()))
        response.setHeader("content-type", "application/json").end("{}")
      })
    })
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo
      resume(Effect.succeed({ url: `http://127.0.0.1:${port}`, received, close: () => server.close() }))
    })
  }),
  ({ close }) => Effect.sync(close)
)

interface Resourced {
  readonly resource: { readonly attributes: ReadonlyArray<KeyValue> }
}

/** The body of a request: one of the three. */
interface Body {
  readonly resourceSpans?: ReadonlyArray<
    Resourced & { readonly scopeSpans: ReadonlyArray<{ readonly spans: ReadonlyArray<OtlpSpan> }> }
  >
  readonly resourceMetrics?: ReadonlyArray<
    Resourced & { readonly scopeMetrics: ReadonlyArray<{ readonly metrics: ReadonlyArray<MetricData> }> }
  >
  readonly resourceLogs?: ReadonlyArray<
    Resourced & { readonly scopeLogs: ReadonlyArray<{ readonly logRecords: ReadonlyArray<LogData> }> }
  >
}

const take = (
  received: Received,
  url: string,
  { resourceLogs = [], resourceMetrics = [], resourceSpans = [] }: Body
): void => {
  for (const { resource } of [...resourceSpans, ...resourceMetrics, ...resourceLogs]) {
    received.services.add(String(attributesOf(resource.attributes)["service.name"]))
  }
  if (url === "/v1/traces") {
    for (const { scopeSpans } of resourceSpans) for (const { spans } of scopeSpans) received.spans.push(...spans)
  } else if (url === "/v1/metrics") {
    received.metrics.length = 0
    for (const { scopeMetrics } of resourceMetrics) {
      for (const { metrics } of scopeMetrics) received.metrics.push(...metrics)
    }
  } else if (url === "/v1/logs") {
    for (const { scopeLogs } of resourceLogs) for (const { logRecords } of scopeLogs) received.logs.push(...logRecords)
  } else throw new Error(`nobody sends to ${url}`)
}

/** Runs a program with a runtime and an exporter, which has sent everything when this ends. */
const exported = <A, E>(
  program: Effect.Effect<A, E, CudaRuntime | FaultInjection.FaultInjection>,
  runtime: Layer.Layer<CudaRuntime, unknown>,
  options: TracedRuntime.TraceOptions = {}
) =>
  Effect.scoped(Effect.gen(function*() {
    const { received, url } = yield* collector
    const layers = CudaMetrics.layer().pipe(
      Layer.provideMerge(TracedRuntime.layer({ interval: 1, ...options })),
      Layer.provideMerge(FaultInjection.layer),
      Layer.provide(runtime)
    )
    const otlp = Otlp.layerJson({ baseUrl: url, resource: { serviceName: "cuda test" } }).pipe(
      Layer.provide(FetchHttpClient.layer)
    )
    yield* program.pipe(
      Effect.provide(layers.pipe(Layer.provideMerge(otlp))),
      Effect.provideService(Metric.MetricRegistry, new Map())
    )
    return received
  }))

const simulated = SimulatedRuntime.layer({ kernels: simulatedKernels, devices: [{ memory: 2 ** 28 }] })

const byName = (spans: ReadonlyArray<OtlpSpan>, name: string): OtlpSpan => {
  const found = spans.filter((span) => span.name === name)
  assert.strictEqual(found.length, 1, `spans named ${name} among ${spans.map((span) => span.name).join(", ")}`)
  return found[0]!
}

/** Copies to a device, launches, copies back and waits, in a span. */
const request = Effect.gen(function*() {
  const stream = yield* CudaStream.make({ name: "requests" })
  const [device, other] = [yield* CudaMemory.allocate(4 << 20), yield* CudaMemory.allocate(4 << 20)]
  const host = yield* CudaMemory.allocateHost(4 << 20)
  const module = yield* CudaModule.load(yield* compiled)
  const add = yield* CudaKernel.get(module, "add", signatures.add)
  yield* CudaMemory.copy(device, host, stream)
  yield* CudaMemory.fill(other, 0, stream)
  yield* CudaKernel.launch(add, { grid: [4, 2], block: 128 }, [device, other, 512], stream)
  yield* CudaMemory.copy(host, device, stream)
  yield* CudaStream.synchronize(stream)
  return stream
}).pipe(Effect.scoped, Effect.withSpan("request"))

describe("spans", () => {
  it.live("reach a collector with the times of the GPU, below the span around them", () =>
    Effect.gen(function*() {
      const before = BigInt(Date.now() - 1) * 1_000_000n
      const { services, spans } = yield* exported(Effect.asVoid(request), simulated)
      const after = BigInt(Date.now() + 1) * 1_000_000n
      assert.deepStrictEqual([...services], ["cuda test"])
      const parent = byName(spans, "request")
      const launch = byName(spans, "CudaKernel.launch add")
      const copies = spans.filter(({ name }) => name === "CudaMemory.copy")
      const fill = byName(spans, "CudaMemory.fill")
      const wait = byName(spans, "CudaStream.synchronize")
      for (const span of [launch, fill, wait, ...copies]) {
        assert.match(span.spanId, /^[0-9a-f]{16}$/)
        assert.match(span.traceId, /^[0-9a-f]{32}$/)
        assert.deepStrictEqual([span.traceId, span.parentSpanId], [parent.traceId, parent.spanId])
        assert.strictEqual(span.status.code, 1)
        const [start, end] = [BigInt(span.startTimeUnixNano), BigInt(span.endTimeUnixNano)]
        assert.isTrue(before <= start && start <= end && end <= after, `${start} to ${end}`)
      }
      assert.strictEqual(new Set(spans.map(({ spanId }) => spanId)).size, spans.length)
      // Work of one stream follows one another.
      const inOrder = [copies[0]!, fill, launch, copies[1]!]
      for (const [index, span] of inOrder.slice(1).entries()) {
        const earlier = inOrder[index]!
        assert.isTrue(BigInt(earlier.endTimeUnixNano) <= BigInt(span.startTimeUnixNano) + 1000n, span.name)
      }
      assert.isTrue(BigInt(wait.endTimeUnixNano) + 100_000n >= BigInt(copies[1]!.endTimeUnixNano))
      const { "cuda.duration_ms": millis, "cuda.queued_ms": queued, ...attributes } = attributesOf(launch.attributes)
      assert.closeTo(
        Number(BigInt(launch.endTimeUnixNano) - BigInt(launch.startTimeUnixNano)) / 1e6,
        millis as number,
        1e-3
      )
      assert.isAtLeast(queued as number, 0)
      assert.containsAllKeys(attributes, ["cuda.stream"])
      delete attributes["cuda.stream"]
      assert.deepStrictEqual(attributes, {
        "cuda.device": 0,
        "cuda.stream.name": "requests",
        "cuda.kernel": "add",
        "cuda.grid": [4, 2],
        "cuda.block": [128],
        "cuda.shared_bytes": 0
      })
      assert.include(attributesOf(copies[0]!.attributes), {
        "cuda.bytes": 4 << 20,
        "cuda.copy.direction": "host_to_device"
      })
      assert.include(attributesOf(copies[1]!.attributes), { "cuda.copy.direction": "device_to_host" })
      // 4 MiB take longer than a launch.
      assert.isAbove(attributesOf(copies[0]!.attributes)["cuda.duration_ms"] as number, 0.05)
    }))

  it.live("fail with their operation", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const faults = yield* FaultInjection.FaultInjection
        yield* faults.failNext("CudaMemory.fill", "InvalidValue")
        const buffer = yield* CudaMemory.allocate(64)
        yield* Effect.flip(CudaMemory.fill(buffer, 0))
      }).pipe(Effect.scoped, Effect.withSpan("parent"))
      const span = byName((yield* exported(program, simulated)).spans, "CudaMemory.fill")
      assert.strictEqual(span.status.code, 2)
      assert.include(span.status.message, "CudaMemory.fill")
      assert.strictEqual(span.events[0]!.name, "exception")
    }))

  it.live("of pending work fail with a fault of the GPU", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const module = yield* CudaModule.load(yield* compiled)
        const add = yield* CudaKernel.get(module, "add", signatures.add)
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(64)
        yield* CudaKernel.launch(add, { grid: 1, block: 64 }, [buffer, buffer, 1 << 20], stream)
        yield* Effect.flip(CudaStream.synchronize(stream))
      }).pipe(Effect.scoped, Effect.withSpan("parent"))
      const { spans } = yield* exported(program, simulated)
      assert.strictEqual(byName(spans, "CudaKernel.launch add").status.code, 2)
      assert.strictEqual(byName(spans, "CudaStream.synchronize").status.code, 2)
    }))

  it.live("are not made outside spans unless roots are, nor while a graph is recorded", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        const graph = yield* CudaGraph.record(CudaMemory.fill(buffer, 1))
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaGraph.launch(exec)
      }).pipe(Effect.scoped)
      assert.deepStrictEqual((yield* exported(program, simulated)).spans, [])
      const { spans } = yield* exported(program, simulated, {
        roots: true,
        filter: (name) => name !== "CudaGraph.instantiate"
      })
      assert.deepStrictEqual(spans.map(({ name, parentSpanId }) => [name, parentSpanId]), [[
        "CudaGraph.launch",
        undefined
      ]])
      assert.strictEqual(attributesOf(spans[0]!.attributes)["cuda.graph.nodes"], 1)
    }))

  it.live("without GPU times are those of the calls", () =>
    Effect.gen(function*() {
      const { spans } = yield* exported(request, simulated, { gpuTimes: false })
      const attributes = attributesOf(byName(spans, "CudaKernel.launch add").attributes)
      assert.doesNotHaveAnyKeys(attributes, ["cuda.duration_ms", "cuda.error"])
    }))

  it.live("that cannot be measured say why", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        yield* CudaMemory.fill(buffer, 0)
      }).pipe(Effect.scoped, Effect.withSpan("parent"))
      const { spans } = yield* exported(program, simulated, { mostPending: 0 })
      assert.include(attributesOf(byName(spans, "CudaMemory.fill").attributes), {
        "cuda.error": "too many operations wait to be measured"
      })
    }))

  it.live("that are not sampled are not measured", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const runtime = yield* TracedRuntime.make(yield* CudaRuntime)
        const buffer = yield* CudaMemory.allocate(64)
        stub.clear()
        yield* runtime.memoryFill(
          { memory: buffer.ref, offset: 0, byteLength: 64 },
          0,
          8,
          yield* runtime.streamDefault(0, "legacy")
        )
          .pipe(Effect.withSpan("unsampled", { sampled: false }))
        assert.deepStrictEqual(stub.calls("cuEventRecord"), [])
      })
    ))
})

/** The value of a metric's point whose attributes include some. */
const pointOf = (
  metrics: ReadonlyArray<MetricData>,
  name: string,
  attributes: Readonly<Record<string, unknown>> = {}
) => {
  const points = metrics.filter((metric) => metric.name === name)
    .flatMap(({ gauge, sum }) => sum?.dataPoints ?? gauge?.dataPoints ?? [])
  const found = points.filter((point) => {
    const own = attributesOf(point.attributes)
    return Object.entries(attributes).every(([key, value]) => own[key] === value)
  })
  assert.strictEqual(found.length, 1, `${name} ${JSON.stringify(attributes)} among ${JSON.stringify(points)}`)
  return Number(found[0]!.asInt ?? found[0]!.asDouble)
}

describe("metrics", () => {
  it.live("reach a collector with units and attributes", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const faults = yield* FaultInjection.FaultInjection
        yield* CudaMemory.allocate(1 << 20)
        yield* request
        yield* request
        yield* faults.failNext("CudaEvent.make", "InvalidValue")
        yield* Effect.ignore(CudaStream.recordEvent(yield* CudaStream.make()))
        const graph = yield* CudaGraph.record(
          Effect.flatMap(CudaMemory.allocate(64), (buffer) => CudaMemory.fill(buffer, 1))
        )
        yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph))
        // Until the gauges are set.
        yield* Effect.sleep(1100)
      }).pipe(Effect.scoped)
      const { metrics } = yield* exported(program, simulated)
      assert.strictEqual(pointOf(metrics, "cuda.copied", { "cuda.copy.direction": "host_to_device" }), 8 << 20)
      assert.strictEqual(pointOf(metrics, "cuda.copied", { "cuda.copy.direction": "device_to_host" }), 8 << 20)
      assert.strictEqual(pointOf(metrics, "cuda.filled"), 8 << 20)
      assert.strictEqual(pointOf(metrics, "cuda.launches", { "cuda.launch.kind": "kernel" }), 2)
      assert.strictEqual(pointOf(metrics, "cuda.launches", { "cuda.launch.kind": "graph" }), 1)
      const failure = { "error.type": "InvalidValue", "cuda.operation": "CudaEvent.make" }
      assert.strictEqual(pointOf(metrics, "cuda.failures", failure), 1)
      for (const name of ["cuda.copied", "cuda.filled", "cuda.memory.usage"]) {
        assert.strictEqual(metrics.find((metric) => metric.name === name)!.unit, "By")
      }
      assert.isTrue(metrics.find(({ name }) => name === "cuda.copied")!.sum!.isMonotonic)
      // At the end, the gauges are set once more, and everything is released.
      assert.strictEqual(pointOf(metrics, "cuda.memory.usage", { "cuda.memory.kind": "device" }), 0)
      assert.strictEqual(pointOf(metrics, "cuda.resources", { "cuda.resource.kind": "graph" }), 0)
    }))

  it.live("count what the driver does", () =>
    Effect.gen(function*() {
      const counted = Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        yield* CudaMemory.fill(buffer, 0)
        const snapshot = yield* Metric.snapshot
        return snapshot.filter(({ id }) => id === "cuda.filled").map(({ state }) =>
          "count" in state ? state.count : undefined
        )
      }).pipe(Effect.scoped, Effect.provide(CudaMetrics.layer().pipe(Layer.provide(stubLayer(stub)))))
      assert.deepStrictEqual(yield* Effect.provideService(counted, Metric.MetricRegistry, new Map()), [64])
    }))
})

describe("logs", () => {
  it.live("of failed releases are annotated with the operation, the device and the stream", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const faults = yield* FaultInjection.FaultInjection
        const stream = yield* CudaStream.make({ name: "uploads" })
        yield* faults.failNext("CudaStream.release", "InvalidValue")
        return stream
      }).pipe(Effect.scoped)
      const { logs } = yield* exported(program, simulated)
      const [warning] = logs.filter(({ severityText }) => /warn/i.test(severityText))
      assert.isDefined(warning)
      const attributes = attributesOf(warning.attributes)
      assert.include(attributes, {
        "cuda.operation": "CudaStream.release",
        "cuda.device": 0,
        "cuda.call": "cuStreamDestroy",
        "error.type": "InvalidValue"
      })
      assert.match(String(attributes["cuda.subject"]), /^stream \d+ "uploads" of device 0$/)
    }))
})

/** A tracer that keeps the spans which have ended. */
const keeping = () => {
  const ended: Array<Tracer.NativeSpan> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      const end = span.end.bind(span)
      span.end = (time, exit) => {
        end(time, exit)
        ended.push(span)
      }
      return span
    }
  })
  return { ended, tracer }
}

describe("on the driver", () => {
  it.live("spans have the times of the driver, are resolved without a wait, and hold few events", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { ended, tracer } = keeping()
        const traced = TracedRuntime.layer({ interval: 1 })
        const inner = yield* CudaRuntime
        const program = Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(64)
          const stream = yield* CudaStream.make()
          stub.clear()
          for (let round = 0; round < 20; round++) {
            yield* Effect.withSpan(CudaMemory.fill(buffer, round, stream), "round")
            yield* until("resolved", () => ended.filter(({ name }) => name === "CudaMemory.fill").length > round)
          }
          assert.isAtMost(stub.calls("cuEventCreate").length, 6)
          // The layer's own events and stream are not the program's.
          const live = yield* (yield* CudaRuntime).liveResources
          assert.deepStrictEqual([live.streams, live.events], [1, 0])
        }).pipe(Effect.scoped, Effect.provide(traced.pipe(Layer.provide(Layer.succeed(CudaRuntime, inner)))))
        yield* Effect.provideService(program, Tracer.Tracer, tracer)
        const { events, streams } = yield* inner.liveResources
        assert.deepStrictEqual([events, streams], [0, 0])
        for (const span of ended.filter(({ name }) => name === "CudaMemory.fill")) {
          assert.strictEqual(Option.getOrThrow(span.parent)._tag, "Span")
          assert.isNumber(span.attributes.get("cuda.duration_ms"))
        }
      })
    ))

  it.live("spans say why they have no times, and the program goes on", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const { ended, tracer } = keeping()
        const inner = yield* CudaRuntime
        const program = Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(64)
          const stream = yield* CudaStream.make()
          for (const call of ["cuEventCreate", "cuEventRecord"] as const) {
            stub.fail(call, 1)
            yield* Effect.withSpan(CudaMemory.fill(buffer, 1, stream), "parent")
          }
          yield* CudaStream.synchronize(stream)
        }).pipe(
          Effect.scoped,
          Effect.provide(TracedRuntime.layer().pipe(Layer.provide(Layer.succeed(CudaRuntime, inner))))
        )
        yield* logged(Effect.provideService(program, Tracer.Tracer, tracer))
        const fills = ended.filter(({ name }) => name === "CudaMemory.fill")
        assert.strictEqual(fills.length, 2)
        for (const span of fills) assert.match(String(span.attributes.get("cuda.error")), /CUDA_ERROR_INVALID_VALUE/)
      })
    ))
})

describe("timelines", () => {
  it.live("have the tasks of task graphs and the stages of pipelines as regions, on named streams", () =>
    Effect.gen(function*() {
      const buffer = yield* CudaMemory.allocate(64)
      const graph = CudaTaskGraph.empty.pipe(
        CudaTaskGraph.add("clear", CudaMemory.fill(buffer, 0)),
        CudaTaskGraph.add("fill", ["clear"], () => CudaMemory.fill(buffer, 1))
      )
      const pipeline = Stream.range(0, 2).pipe(
        CudaPipeline.through({
          slots: 2,
          inputBytes: 4,
          fill: (element, into) => Effect.sync(() => into.fill(element).byteLength),
          work: ({ input, output }) => CudaMemory.copy(output, input),
          take: () => Effect.void
        }),
        Stream.runDrain
      )
      const [timeline] = yield* CudaTiming.timeline(Effect.andThen(CudaTaskGraph.run(graph), pipeline))
      const [clear, fill, ...stages] = timeline.regions
      assert.deepStrictEqual([clear!.name, fill!.name], ["clear", "fill"])
      assert.deepStrictEqual(
        new Set(stages.map(({ name, streamName }) => `${name} on ${streamName}`)),
        new Set(["upload on uploads", "work on work", "download on downloads"])
      )
      // In a recording, tasks add no nodes to the graph.
      const recorded = yield* CudaGraph.record(CudaTaskGraph.run(graph))
      const [{ regions }] = yield* CudaTiming.timeline(CudaGraph.record(CudaTaskGraph.run(graph)))
      assert.deepStrictEqual([recorded.nodes.length, regions.length], [2, 0])
    }).pipe(Effect.scoped, Effect.provide(simulated)))
})
