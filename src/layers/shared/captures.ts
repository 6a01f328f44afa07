/**
 * Work of other native code. Outside recordings it is enqueued on the stream itself; inside, the driver captures it, and it becomes a
 * node.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { CaptureRef, ForeignWork, MemoryRange } from "../CudaRuntime.ts"
import type { GraphOperations } from "../runtime/graphs.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import type { Refusal } from "./ranges.ts"
import { refuseElsewhere, refuseToRecord } from "./recordings.ts"
import { handlesOf, ownMemory, ownStream, unusable, unusableMemory } from "./resources.ts"
import type { HandleResource, PartitionResource, StreamResource } from "./resources.ts"

/** A capture in progress. Each backend has its own kind. */
export interface DriverCapture {
  /** The stream that the driver captures. */
  readonly handle: number
}

/** What the driver captured. It lives as long as the graphs that hold it, and at most until the runtime is closed. */
export interface CapturedGraph {
  readonly nodes: number
  /** Whether it allocates or frees memory in stream order, which no graph inside another can. */
  readonly allocates: boolean
}

export interface CaptureBackend {
  /** Stands in for native code, where that cannot run: enqueues what the work does. Undefined on the driver. */
  readonly simulate: ((work: ForeignWork, stream: StreamResource) => number) | undefined
  /** The capture begun by `begin`. */
  readonly begun: DriverCapture | undefined
  /** Takes the graph made by `end`. */
  readonly take: () => CapturedGraph
  /** Begins to capture a stream that is used for nothing else. */
  readonly begin: (deviceIndex: number, priority: number, partition: PartitionResource | undefined) => number
  readonly end: (capture: DriverCapture) => number
  /** Destroys what was captured, which nothing uses any more. */
  readonly drop: (captured: CapturedGraph) => void
  /** Ends a capture whose work is not wanted. */
  readonly abandon: (capture: DriverCapture) => void
  /** Makes the context of a device current, for native code. `leave` restores the previous one. */
  readonly enter: (deviceIndex: number) => number
  readonly leave: (deviceIndex: number) => void
}

/** Work of native code, and the handles of libraries that it uses. */
export interface CapturedCall extends ForeignWork {
  readonly handles?: ReadonlyArray<HandleResource> | undefined
}

/** The names of the operations that begin and end a capture, for failures. */
export interface CaptureNames {
  readonly begin: string
  readonly end: string
}

export class Capture implements CaptureRef {
  isOver = false
  readonly names: CaptureNames
  readonly handle: number | undefined
  readonly work: CapturedCall
  readonly stream: StreamResource
  /** Undefined outside recordings. */
  readonly driver: DriverCapture | undefined
  constructor(
    names: CaptureNames,
    work: CapturedCall,
    stream: StreamResource,
    driver: DriverCapture | undefined,
    handle: number | undefined
  ) {
    this.names = names
    this.work = work
    this.stream = stream
    this.driver = driver
    this.handle = handle
  }
}

export const captureOperations = (
  core: Core
): Pick<GraphOperations, "graphCapture" | "graphEndCapture" | "graphAbandonCapture"> => ({
  graphCapture: (work, stream) =>
    Effect.suspend(() => {
      const handles = handlesOf(work.handles)
      const begun = beginCapture(core, names, { ...work, handles }, ownStream(stream))
      return begun instanceof Capture ? Effect.succeed(begun) : begun
    }),
  graphEndCapture: (capture) => Effect.suspend(() => endCapture(core, capture)),
  graphAbandonCapture: (capture) => Effect.sync(() => abandonCapture(core, capture))
})

const names: CaptureNames = { begin: "CudaGraph.capture", end: "CudaGraph.endCapture" }

/** Returns the capture, or the failure. */
export const beginCapture = (
  core: Core,
  names: CaptureNames,
  work: CapturedCall,
  stream: StreamResource
): Capture | Effect.Effect<never, CudaError> => {
  const { captures } = core.backend
  const refused = refuseWork(core, names.begin, work, stream)
  if (refused !== undefined) return refused
  const { recording } = stream
  const runsNative = captures.simulate === undefined
  if (recording === undefined) {
    return new Capture(names, work, stream, undefined, runsNative ? stream.handle : undefined)
  }
  const status = captures.begin(stream.deviceIndex, stream.priority, stream.partition)
  if (status !== success) return core.fail(names.begin, status, stream)
  const begun = captures.begun!
  stream.line!.isCapturing = true
  return new Capture(names, work, stream, begun, runsNative ? begun.handle : undefined)
}

const refuseWork = (core: Core, operation: string, work: CapturedCall, stream: StreamResource): Refusal => {
  const { backend } = core
  if (core.closed) return refuseClosed(operation)
  const { handles = [], reads, simulate, writes } = work
  const ranges = [...reads, ...writes]
  const memories = ranges.map(({ memory }) => ownMemory(memory))
  if (
    unusable(backend, stream) || memories.some((memory) => unusableMemory(backend, memory)) ||
    handles.some((handle) => unusable(backend, handle))
  ) {
    return refuseResource(operation, backend, stream, ...handles, ...memories)
  }
  if (backend.captures.simulate !== undefined && typeof simulate !== "function") {
    return refuseSimulate(operation, simulate)
  }
  return (core.recordings === 0 ? undefined : refuseElsewhere(operation, stream)) ??
    (stream.recording === undefined ? undefined : refusePlaceholders(operation, ranges))
}

export const refuseSimulate = (operation: string, simulate: unknown) =>
  refuseArgument(operation, "simulate", simulate, "a function, because simulated devices cannot run native code")

const refuseClosed = (operation: string) => refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" })

/** Native code needs addresses that stay. */
const refusePlaceholders = (operation: string, ranges: ReadonlyArray<MemoryRange>): Refusal => {
  const unplaced = ranges.map(({ memory }) => ownMemory(memory)).find(({ slot }) => slot !== undefined)
  return unplaced === undefined
    ? undefined
    : refuseToRecord(operation, `the ${unplaced} has no address while a graph is recorded. Use memory from outside`)
}

export const endCapture = (core: Core, ref: CaptureRef): Effect.Effect<void, CudaError> => {
  if (!(ref instanceof Capture)) return refuseArgument(names.begin, "capture", ref, "a capture in progress")
  const { driver, stream, work } = ref
  const operation = ref.names.begin
  const { captures } = core.backend
  // Closing the runtime has ended the capture.
  if (core.closed) return refuseClosed(operation)
  if (unusable(core.backend, stream)) {
    abandonCapture(core, ref)
    return refuseResource(operation, core.backend, stream)
  }
  if (ref.isOver) return refuse(operation, { _tag: "ResourceReleased", resource: "the capture" })
  over(ref)
  const status = driver === undefined ? captures.simulate?.(work, stream) ?? success : captures.end(driver)
  if (status !== success) return core.fail(ref.names.end, status, stream)
  return driver === undefined ? Effect.void : addNode(core, ref)
}

const addNode = (core: Core, { names, stream, work }: Capture): Effect.Effect<void, CudaError> => {
  const operation = names.begin
  const captured = core.backend.captures.take()
  if (captured.nodes === 0) {
    return refuseToRecord(
      operation,
      "nothing was enqueued on the stream that is captured, so it would be missing in the graph"
    )
  }
  if (captured.allocates) {
    const because = "the captured work allocates or frees memory in stream order, which a part of a graph cannot. " +
      "Give it memory that exists"
    return refuseToRecord(operation, because)
  }
  for (const handle of work.handles ?? []) handle.capturedIn(captured)
  stream.recording!.capture(stream, captured, work, operation)
  return Effect.void
}

const over = (capture: Capture): void => {
  capture.isOver = true
  const { line } = capture.stream
  if (line !== undefined) line.isCapturing = false
}

export const abandonCapture = (core: Core, ref: CaptureRef): void => {
  if (!(ref instanceof Capture) || ref.isOver) return
  over(ref)
  if (ref.driver !== undefined) core.backend.captures.abandon(ref.driver)
}
