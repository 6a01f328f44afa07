/**
 * The `CudaRuntime` service over a backend. It adds the checks, lifetimes, failures and waits that all runtimes share,
 * so that a program behaves the same on a GPU and on a simulated device.
 *
 * Frequent operations are effects made of a single object (`operation.ts`). Any status other than 0 leaves the fast
 * path.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { annotations } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import { CudaRuntime } from "../CudaRuntime.ts"
import type { CudaRuntimeService, LiveResources } from "../CudaRuntime.ts"
import { accessOperations } from "./accesses.ts"
import type { Backend } from "./Backend.ts"
import { copyOperations } from "./copies.ts"
import { Core } from "./Core.ts"
import { deviceOperations } from "./devices.ts"
import { enqueueOperations } from "./enqueue.ts"
import { eventOperations } from "./events.ts"
import { foreignMemoryOperations } from "./foreignMemory.ts"
import { graphOperations } from "./graphs.ts"
import { growableOperations } from "./growable.ts"
import { interprocessOperations } from "./interprocess.ts"
import { kernelOperations } from "./kernels.ts"
import { libraryOperations } from "./libraries.ts"
import { managedOperations } from "./managed.ts"
import { memoryOperations } from "./memory.ts"
import { moduleOperations } from "./modules.ts"
import { partitionOperations } from "./partitions.ts"
import { peerOperations } from "./peers.ts"
import { pinnedOperations } from "./pinned.ts"
import { poolOperations } from "./pools.ts"
import { profilerOperations } from "./profiler.ts"
import { programOperations } from "./programs.ts"
import { GrowableMemoryResource } from "./resources.ts"
import type { DeviceMemoryResource } from "./resources.ts"
import { streamOperations } from "./streams.ts"

/**
 * Creates the service. When the scope closes, remaining streams are drained and remaining resources released, in order.
 */
export const make = (
  backend: Backend
): Effect.Effect<CudaRuntimeService, never, Scope.Scope> =>
  Effect.suspend(() => {
    const core = new Core(backend)
    const service = serviceOf(core)
    return Effect.acquireRelease(Effect.succeed(service), () => close(core, service))
  })

const serviceOf = (core: Core): CudaRuntimeService =>
  CudaRuntime.of({
    kind: core.backend.kind,
    identity: core.backend,
    recording: undefined,
    hostAccess: undefined,
    watchArray: undefined,
    driverVersion: core.backend.driverVersion,
    devices: core.backend.devices.all,
    ...deviceOperations(core),
    ...streamOperations(core),
    ...partitionOperations(core),
    ...eventOperations(core),
    ...memoryOperations(core),
    ...foreignMemoryOperations(core),
    ...pinnedOperations(core),
    ...managedOperations(core),
    ...growableOperations(core),
    ...copyOperations(core),
    ...accessOperations(core),
    ...enqueueOperations(core),
    ...poolOperations(core),
    ...peerOperations(core),
    ...interprocessOperations(core),
    ...moduleOperations(core),
    ...kernelOperations(core),
    ...graphOperations(core),
    ...libraryOperations(core),
    ...profilerOperations(core),
    ...programOperations(core),
    liveResources: Effect.sync(() => count(core))
  })

const count = (core: Core): LiveResources => ({
  streams: core.streams.size,
  events: core.events.size,
  deviceBuffers: core.deviceMemory.size,
  deviceBytes: sumBytes(core.deviceMemory) + spareBytes(core.deviceMemory),
  hostBuffers: core.hostMemory.size,
  hostBytes: sumBytes(core.hostMemory),
  modules: core.modules.size,
  graphs: core.graphs.size,
  pools: core.pools.size,
  partitions: core.partitions.size,
  handles: core.handles.size,
  waits: core.waits.size
})

const sumBytes = (buffers: Iterable<{ readonly byteLength: number }>): number => {
  let bytes = 0
  for (const buffer of buffers) bytes += buffer.byteLength
  return bytes
}

/** The bytes that growable buffers hold beyond their size. */
const spareBytes = (buffers: Iterable<DeviceMemoryResource>): number => {
  let bytes = 0
  for (const buffer of buffers) {
    if (buffer instanceof GrowableMemoryResource) bytes += buffer.mappedBytes - buffer.byteLength
  }
  return bytes
}

/**
 * Drains and releases streams first, since they may use everything else; then memory, pools, events, modules and the
 * backend.
 */
const close = (core: Core, service: CudaRuntimeService): Effect.Effect<void> =>
  Effect.gen(function*() {
    core.closed = true
    yield* core.whenQuiet
    yield* core.libraryCalls.whenIdle
    const {
      eventDestroy,
      graphDestroy,
      libraryDestroy,
      memoryFree,
      moduleUnload,
      partitionDestroy,
      poolDestroy,
      streamDestroy,
      streamSynchronize
    } = service
    yield* releaseAll("stream", [...core.streams], streamDestroy)
    yield* releaseAll("stream", [...core.defaultStreams.values()], streamSynchronize)
    for (const stream of core.defaultStreams.values()) stream.state = "released"
    yield* releaseAll("executable graph", [...core.graphs], graphDestroy)
    yield* releaseAll("handle", [...core.handles], libraryDestroy)
    yield* core.libraryCalls.whenIdle
    yield* releaseAll("buffer", [...core.deviceMemory, ...core.hostMemory], memoryFree)
    for (const stream of core.foreignStreams.values()) stream.state = "released"
    yield* releaseAll("partition", [...core.partitions], partitionDestroy)
    yield* releaseAll("pool", [...core.pools], poolDestroy)
    for (const descriptor of core.descriptors) core.backend.interprocess.closeDescriptor(descriptor)
    core.descriptors.clear()
    yield* releaseAll("event", [...core.events], eventDestroy)
    for (const event of core.foreignEvents.values()) event.state = "released"
    yield* releaseAll("module", [...core.modules, ...core.ownModules], moduleUnload)
    core.backend.settle()
    core.ended = true
    for (const abandon of core.waits) abandon()
    yield* core.backend.close
  })

const releaseAll = <R extends object>(
  what: string,
  resources: ReadonlyArray<R>,
  release: (resource: R) => Effect.Effect<void, CudaError>
): Effect.Effect<void> =>
  Effect.forEach(
    resources,
    (resource) => Effect.catch(release(resource), (error) => logRelease(what, error)),
    { discard: true, concurrency: what === "stream" ? "unbounded" : 1 }
  )

/** The first failure after a context is lost is a warning; the ones that follow from it are debug messages. */
const logRelease = (what: string, error: CudaError): Effect.Effect<void> => {
  const message = `Releasing a ${what} failed: ${error.message}`
  const log = error.origin === undefined ? Effect.logWarning(message) : Effect.logDebug(message)
  return Effect.annotateLogs(log, annotations(error))
}
