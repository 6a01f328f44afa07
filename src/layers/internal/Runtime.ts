/**
 * The `CudaRuntime` service over a backend: the checks, lifetimes, failures and waits that every runtime shares, so that
 * a program means the same on a GPU and on a simulated device.
 *
 * Operations that programs call often are one object each (`operation.ts`); a status other than 0 leaves the fast path.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { deviceAttributes } from "../../cuda/flags.ts"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import { CudaRuntime } from "../CudaRuntime.ts"
import type { CudaRuntimeService, LiveResources } from "../CudaRuntime.ts"
import type { DeviceOperations } from "../runtime/devices.ts"
import type { Backend } from "./Backend.ts"
import { copyOperations } from "./copies.ts"
import { Core, watchAll } from "./Core.ts"
import { eventOperations } from "./events.ts"
import { refuseArgument } from "./failures.ts"
import { kernelOperations } from "./kernels.ts"
import { managedOperations } from "./managed.ts"
import { memoryOperations } from "./memory.ts"
import { poolOperations } from "./pools.ts"
import { programOperations } from "./programs.ts"
import type { Compile } from "./programs.ts"
import { streamOperations } from "./streams.ts"

/** The service, released with the scope: what is left is drained, then given back in order. */
export const make = (
  backend: Backend,
  compile: Compile
): Effect.Effect<CudaRuntimeService, never, Scope.Scope> =>
  Effect.suspend(() => {
    const core = new Core(backend)
    const service = serviceOf(core, compile)
    return Effect.acquireRelease(Effect.succeed(service), () => close(core, service))
  })

const serviceOf = (core: Core, compile: Compile): CudaRuntimeService =>
  CudaRuntime.of({
    kind: core.backend.kind,
    identity: core.backend,
    driverVersion: core.backend.driverVersion,
    devices: core.backend.devices,
    ...deviceOperations(core),
    ...streamOperations(core),
    ...eventOperations(core),
    ...memoryOperations(core),
    ...copyOperations(core),
    ...managedOperations(core),
    ...poolOperations(core),
    ...kernelOperations(core),
    ...programOperations(core, compile),
    liveResources: Effect.sync(() => count(core))
  })

const deviceOperations = (core: Core): DeviceOperations => ({
  deviceAttribute: (device, attribute) =>
    core.onDevice("CudaDevice.attribute", device, () => {
      if (!Object.hasOwn(deviceAttributes, attribute)) {
        return refuseArgument("CudaDevice.attribute", "attribute", attribute, "the name of a device attribute")
      }
      const status = core.backend.attribute(device, attribute)
      if (status === success) return Effect.succeed(core.backend.result)
      return core.failOn("CudaDevice.attribute", status, device, attribute)
    }),
  deviceMemoryInfo: (device) =>
    core.onDevice("CudaDevice.memoryInfo", device, () => {
      const status = core.backend.memoryInfo(device)
      if (status === success) return Effect.succeed(core.backend.memoryInfoResult)
      return core.failOn("CudaDevice.memoryInfo", status, device, `device ${device}`)
    }),
  devicePriorityRange: (device) =>
    core.onDevice("CudaDevice.priorityRange", device, () => Effect.succeed(core.backend.priorityRange(device))),
  deviceCanAccessPeer: (device, peer) =>
    core.onDevice("CudaDevice.canAccessPeer", device, () => {
      const refused = core.refuseDevice("CudaDevice.canAccessPeer", "peer", peer)
      if (refused !== undefined) return refused
      const status = core.backend.canAccessPeer(device, peer)
      if (status === success) return Effect.succeed(core.backend.result !== 0)
      return core.failOn("CudaDevice.canAccessPeer", status, device, `devices ${device} and ${peer}`)
    }),
  deviceSynchronize: (device) =>
    core.onDevice("CudaDevice.synchronize", device, () => {
      const streams = [...core.streams, ...core.defaultStreams.values()].filter((stream) => stream.device === device)
      return core.wait(
        "CudaDevice.synchronize",
        device,
        `device ${device}`,
        watchAll(streams.map((stream) => (onDone, options) => core.backend.watchStream(stream, onDone, options)))
      )
    })
})

const count = (core: Core): LiveResources => ({
  streams: core.streams.size,
  events: core.events.size,
  deviceBuffers: core.deviceMemory.size,
  deviceBytes: sumBytes(core.deviceMemory),
  hostBuffers: core.hostMemory.size,
  hostBytes: sumBytes(core.hostMemory),
  modules: core.modules.size,
  pools: core.pools.size,
  waits: core.waits.size
})

const sumBytes = (buffers: Iterable<{ readonly byteLength: number }>): number => {
  let bytes = 0
  for (const buffer of buffers) bytes += buffer.byteLength
  return bytes
}

/** Streams first, each drained, since the rest may be in use on them; then memory, pools, events, modules, and what the driver holds. */
const close = (core: Core, service: CudaRuntimeService): Effect.Effect<void> =>
  Effect.gen(function*() {
    core.closed = true
    yield* core.whenQuiet
    const { eventDestroy, memoryFree, moduleUnload, poolDestroy, streamDestroy, streamSynchronize } = service
    yield* releaseAll("stream", [...core.streams], streamDestroy)
    yield* releaseAll("stream", [...core.defaultStreams.values()], streamSynchronize)
    for (const stream of core.defaultStreams.values()) stream.state = "released"
    yield* releaseAll("buffer", [...core.deviceMemory, ...core.hostMemory], memoryFree)
    for (const stream of core.foreignStreams.values()) stream.state = "released"
    yield* releaseAll("pool", [...core.pools], poolDestroy)
    yield* releaseAll("event", [...core.events], eventDestroy)
    yield* releaseAll("module", [...core.modules], moduleUnload)
    core.backend.settle()
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

/** What follows from the loss of a context is said once, by what met it first. */
const logRelease = (what: string, { message, origin }: CudaError): Effect.Effect<void> =>
  origin === undefined
    ? Effect.logWarning(`Releasing a ${what} failed: ${message}`)
    : Effect.logDebug(`Releasing a ${what} failed: ${message}`)
