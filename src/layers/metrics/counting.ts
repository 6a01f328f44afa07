/**
 * A runtime that counts: bytes, launches and failures as they happen, and from time to time what is live.
 */
import type * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"
import { isCudaError } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, LiveResources, MemoryRange, MemoryTransfer, OperationMember } from "../CudaRuntime.ts"
import { around } from "../runtime/operations.ts"
import type { OperationCall } from "../runtime/operations.ts"
import { directionOf, directionsOf, enqueuedOf, streamOf } from "../shared/described.ts"
import { evaluate, operation } from "../shared/operation.ts"

type Services = Context.Context<never>
type Attributes = Readonly<Record<string, string>>

/** The counters of one name, by the values of their attributes. */
const counters = (name: string, unit: string, description: string) => {
  const made = new Map<string, Metric.Counter<number>>()
  return (attributes: Attributes, amount: number, services: Services): void => {
    const key = Object.values(attributes).join("/")
    let counter = made.get(key)
    if (counter === undefined) {
      counter = Metric.counter(name, { description, attributes: { unit, ...attributes }, incremental: true })
      made.set(key, counter)
    }
    counter.updateUnsafe(amount, services)
  }
}

const copied = counters("cuda.copied", "By", "Bytes of copies that were enqueued")
const filled = counters("cuda.filled", "By", "Bytes of fills that were enqueued")
const launched = counters("cuda.launches", "{launch}", "Work that was launched")
const failed = counters("cuda.failures", "{failure}", "Operations that failed")

const gauge = (name: string, unit: string, description: string, attributes: Attributes = {}) =>
  Metric.gauge(name, { description, attributes: { unit, ...attributes } })

const memoryGauge = (kind: string) =>
  gauge("cuda.memory.usage", "By", "Bytes of live buffers", { "cuda.memory.kind": kind })

const resourceKinds = {
  streams: "stream",
  events: "event",
  deviceBuffers: "device_buffer",
  hostBuffers: "host_buffer",
  modules: "module",
  graphs: "graph",
  pools: "pool",
  partitions: "partition",
  handles: "library_handle"
} as const satisfies { readonly [Count in keyof LiveResources]?: string }

const deviceBytes = memoryGauge("device")
const hostBytes = memoryGauge("host")
const resourceGauges = Object.entries(resourceKinds).map(([count, kind]) => ({
  count: count as keyof typeof resourceKinds,
  gauge: gauge("cuda.resources", "{resource}", "Live resources", { "cuda.resource.kind": kind })
}))

const setGauges = (live: LiveResources): Effect.Effect<void> =>
  Effect.contextWith((services: Services) =>
    Effect.sync(() => {
      deviceBytes.updateUnsafe(live.deviceBytes, services)
      hostBytes.updateUnsafe(live.hostBytes, services)
      for (const { count, gauge } of resourceGauges) gauge.updateUnsafe(live[count], services)
    })
  )

type Count = (args: ReadonlyArray<unknown>, services: Services) => void

const countCopy: Count = ([to, from], services) => {
  const [target, source] = [to as MemoryRange, from as MemoryRange]
  copied({ "cuda.copy.direction": directionOf(target.memory, source.memory) }, target.byteLength, services)
}

const countRows: Count = ([to, from, size], services) => {
  const { height, width } = size as { readonly width: number; readonly height: number }
  const direction = directionOf((to as MemoryRange).memory, (from as MemoryRange).memory)
  copied({ "cuda.copy.direction": direction }, width * height, services)
}

const countBatch: Count = ([transfers], services) => {
  for (const [direction, bytes] of directionsOf(transfers as ReadonlyArray<MemoryTransfer>)) {
    copied({ "cuda.copy.direction": direction }, bytes, services)
  }
}

const countLaunch = (kind: string): Count => (_, services) => launched({ "cuda.launch.kind": kind }, 1, services)

/** What to count when an operation has succeeded. */
const counts: { readonly [M in OperationMember]?: Count } = {
  memoryCopy: countCopy,
  memoryCopy2D: countRows,
  memoryCopyBatch: countBatch,
  memoryFill: ([to], services) => filled({}, (to as MemoryRange).byteLength, services),
  kernelLaunch: countLaunch("kernel"),
  graphLaunch: countLaunch("graph"),
  graphMeasure: countLaunch("graph"),
  libraryCall: countLaunch("library"),
  memoryEnqueue: countLaunch("native")
}

const servicesOf = (): Services | undefined => Fiber.getCurrent()?.context

const countFailure = (exit: Exit.Exit<unknown, unknown>, services: Services): void => {
  const error = Exit.findErrorOption(exit)
  if (error._tag === "None" || !isCudaError(error.value)) return
  const { operation, reason } = error.value
  failed({ "cuda.operation": operation, "error.type": reason._tag }, 1, services)
}

/** Counts a call when it has ended. Most end in the same turn, without another step of the fiber. */
const counted = (member: OperationMember, call: OperationCall): OperationCall => {
  const count = counts[member]
  const enqueued = enqueuedOf(member)
  const isCounted = (args: ReadonlyArray<unknown>) =>
    enqueued === undefined || streamOf(enqueued, args)?.isRecording === false
  const note = (exit: Exit.Exit<unknown, unknown>, args: ReadonlyArray<unknown>, services: Services): void => {
    if (Exit.isFailure(exit)) countFailure(exit, services)
    else if (count !== undefined && isCounted(args)) count(args, services)
  }
  return operation((a: unknown, b: unknown, c: unknown, d: unknown) => {
    const run = evaluate(call(a, b, c, d))
    const services = servicesOf()
    if (services === undefined) return run
    if (!Exit.isExit(run)) return slowly(run, [a, b, c, d], note, services)
    if (count !== undefined || Exit.isFailure(run)) note(run, [a, b, c, d], services)
    return run
  })
}

const slowly = (
  run: Effect.Effect<unknown, CudaError>,
  args: ReadonlyArray<unknown>,
  note: (exit: Exit.Exit<unknown, unknown>, args: ReadonlyArray<unknown>, services: Services) => void,
  services: Services
): Effect.Effect<unknown, CudaError> => Effect.onExit(run, (exit) => Effect.sync(() => note(exit, args, services)))

/** Wraps a runtime for counting, and sets the gauges from time to time. */
export const counting = (
  runtime: CudaRuntimeService,
  interval: Duration.Input
): Effect.Effect<CudaRuntimeService, never, Scope.Scope> => {
  const update = Effect.flatMap(runtime.liveResources, setGauges)
  return Effect.gen(function*() {
    yield* Effect.addFinalizer(() => update)
    yield* Effect.forkScoped(Effect.forever(Effect.andThen(update, Effect.sleep(interval))))
    return around(runtime, ({ member }, call) => counted(member, call))
  })
}
