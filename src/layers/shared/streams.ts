/**
 * Streams: the operations of every runtime, and the part of the backend that they use.
 */
import * as Effect from "effect/Effect"
import { defaultStreamHandles } from "../../cuda/flags.ts"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import { resolvePriority } from "../CudaRuntime.ts"
import type { CudaRuntimeService, EventRef, StreamRef, WaitOptions } from "../CudaRuntime.ts"
import type { StreamOperations } from "../runtime/streams.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import { operation } from "./operation.ts"
import { ownEvent, ownStream, unusable } from "./resources.ts"
import type { EventResource, StreamResource } from "./resources.ts"
import type { Cancel, OnDone } from "./waits.ts"

export interface StreamBackend {
  /** The stream that the last creating call made. */
  readonly created: StreamResource | undefined
  readonly create: (device: number, priority: number, nonBlocking: boolean) => number
  readonly defaultOf: (device: number, mode: "legacy" | "perThread") => number
  readonly fromHandle: (device: number, handle: number) => number
  readonly destroy: (stream: StreamResource) => number
  readonly query: (stream: StreamResource) => number
  readonly waitEvent: (stream: StreamResource, event: EventResource) => number
  /** Makes one record on `from`, which every branch waits for. */
  readonly fork: (from: StreamResource, branches: ReadonlyArray<StreamResource>) => number
  /** Reports when the work that the stream holds now is done. */
  readonly watch: (stream: StreamResource, onDone: OnDone, options?: WaitOptions) => Cancel
}

export const streamOperations = (core: Core): StreamOperations => ({
  streamCreate: (options) => create(core, options),
  streamDefault: (device, mode) => defaultStream(core, "CudaStream.defaultStream", device, mode),
  streamFromHandle: (device, handle) => fromHandle(core, device, handle),
  streamDestroy: (ref) =>
    Effect.uninterruptible(Effect.suspend(() => {
      const stream = ownStream(ref)
      if (stream.owner !== core.backend) return refuseResource("CudaStream.release", core.backend, stream)
      if (stream.origin !== "owned" || stream.state !== "live") return Effect.void
      stream.state = "closing"
      return Effect.onExit(drainForRelease(core, stream), () => destroy(core, stream))
    })),
  streamQuery: operation((ref: StreamRef) => {
    const stream = ownStream(ref)
    if (unusable(core.backend, stream)) return refuseResource("CudaStream.query", core.backend, stream)
    return core.answer("CudaStream.query", core.backend.streams.query(stream), stream)
  }),
  streamSynchronize: operation((ref: StreamRef) => {
    const stream = ownStream(ref)
    if (unusable(core.backend, stream)) return refuseResource("CudaStream.synchronize", core.backend, stream)
    return drain(core, "CudaStream.synchronize", stream)
  }),
  streamWaitEvent: operation((ref: StreamRef, eventRef: EventRef) => {
    const stream = ownStream(ref)
    const event = ownEvent(eventRef)
    if (unusable(core.backend, stream) || unusable(core.backend, event)) {
      return refuseResource("CudaStream.waitEvent", core.backend, stream, event)
    }
    const status = core.backend.streams.waitEvent(stream, event)
    return status === success ? Effect.void : core.fail("CudaStream.waitEvent", status, stream)
  }),
  streamWaitStream: operation((ref: StreamRef, otherRef: StreamRef) => {
    const stream = ownStream(ref)
    const other = ownStream(otherRef)
    if (unusable(core.backend, stream) || unusable(core.backend, other)) {
      return refuseResource("CudaStream.waitStream", core.backend, stream, other)
    }
    const status = core.backend.streams.fork(other, [stream])
    return status === success ? Effect.void : core.fail("CudaStream.waitStream", status, stream)
  }),
  streamFork: operation((from: StreamRef, branches: ReadonlyArray<StreamRef>) =>
    fork(core, ownStream(from), branches.map(ownStream))
  ),
  streamJoin: operation((into: StreamRef, branches: ReadonlyArray<StreamRef>) =>
    join(core, ownStream(into), branches.map(ownStream))
  )
})

const fork = (core: Core, from: StreamResource, branches: ReadonlyArray<StreamResource>) => {
  const operation = "CudaBranch.fork"
  const { backend } = core
  if (unusable(backend, from) || branches.some((branch) => unusable(backend, branch))) {
    return refuseResource(operation, backend, from, ...branches)
  }
  const status = backend.streams.fork(from, branches)
  return status === success ? Effect.void : core.fail(operation, status, from)
}

const join = (core: Core, into: StreamResource, branches: ReadonlyArray<StreamResource>) => {
  const operation = "CudaBranch.join"
  const { backend } = core
  if (unusable(backend, into)) return refuseResource(operation, backend, into)
  const waiting = [into]
  let failed: Effect.Effect<never, CudaError> | undefined
  for (const branch of branches) {
    if (unusable(backend, branch)) {
      failed ??= refuseResource(operation, backend, branch)
      continue
    }
    const status = backend.streams.fork(branch, waiting)
    if (status !== success) failed ??= core.fail(operation, status, branch)
  }
  return failed ?? Effect.void
}

const create = (core: Core, options: Parameters<CudaRuntimeService["streamCreate"]>[0]) =>
  core.onDevice("CudaStream.make", options.device, () => {
    const range = core.backend.devices.priorityRange(options.device)
    const { greatest, least } = range
    const priority = resolvePriority(range, options.priority, options.outOfRange)
    if (!Number.isInteger(priority) || priority > least || priority < greatest) {
      return refuseArgument(
        "CudaStream.make",
        "priority",
        priority,
        `an integer from ${greatest} (highest) to ${least}`
      )
    }
    const status = core.backend.streams.create(options.device, priority, options.nonBlocking)
    if (status !== success) return core.failOn("CudaStream.make", status, options.device, `device ${options.device}`)
    const stream = core.backend.streams.created!
    core.streams.add(stream)
    return Effect.succeed(stream)
  })

const defaultStream = (core: Core, operation: string, device: number, mode: "legacy" | "perThread") =>
  core.onDevice(operation, device, () => {
    if (!Object.hasOwn(defaultStreamHandles, mode)) {
      return refuseArgument(operation, "mode", mode, `"legacy" or "perThread"`)
    }
    const key = `${device} ${mode}`
    const known = core.defaultStreams.get(key)
    if (known !== undefined) return Effect.succeed(known)
    const status = core.backend.streams.defaultOf(device, mode)
    if (status !== success) return core.failOn(operation, status, device, `device ${device}`)
    const stream = core.backend.streams.created!
    core.defaultStreams.set(key, stream)
    return Effect.succeed(stream)
  })

/** The handles that stand for default streams are those; the same stream is the same resource, however often it is wrapped. */
const fromHandle = (core: Core, device: number, handle: number): Effect.Effect<StreamResource, CudaError> => {
  const operation = "CudaStream.fromHandle"
  if (handle === 0 || handle === defaultStreamHandles.legacy) return defaultStream(core, operation, device, "legacy")
  if (handle === defaultStreamHandles.perThread) return defaultStream(core, operation, device, "perThread")
  return core.onDevice(operation, device, () => {
    if (!Number.isSafeInteger(handle) || handle < 0) {
      return refuseArgument(operation, "handle", handle, "the address of a CUstream")
    }
    const status = core.backend.streams.fromHandle(device, handle)
    if (status !== success) return core.failOn(operation, status, device, `handle 0x${handle.toString(16)}`)
    const made = core.backend.streams.created!
    const key = `${device} ${made.id}`
    const known = core.foreignStreams.get(key)
    if (known === undefined) core.foreignStreams.set(key, made)
    return Effect.succeed(known ?? made)
  })
}

/** Waits for the work enqueued before now; a stream that is idle answers at once. */
const drain = (core: Core, operation: string, stream: StreamResource): Effect.Effect<void, CudaError> => {
  const status = core.backend.streams.query(stream)
  if (status === success) return Effect.void
  if (status !== notReady) return core.fail(operation, status, stream)
  return core.wait(
    operation,
    stream.device,
    String(stream),
    (onDone, options) => core.backend.streams.watch(stream, onDone, options),
    // A stream that is being released is drained too.
    () => stream.state === "released" ? refuseResource(operation, core.backend, stream) : undefined
  )
}

/**
 * Drains a stream that is going to be destroyed. When waiting itself fails, but not with a fault, the work may still be
 * running on memory that others hold, so the stream is asked until it is idle.
 */
const drainForRelease = (core: Core, stream: StreamResource): Effect.Effect<void, CudaError> =>
  Effect.catch(drain(core, "CudaStream.release", stream), (error) => {
    const isHung = error.reason._tag === "NeverFinishes"
    const idle = Effect.whileLoop({
      while: () => !isHung && core.backend.streams.query(stream) === notReady,
      body: () => Effect.sleep(1),
      step: () => {}
    })
    return Effect.andThen(idle, Effect.fail(error))
  })

const destroy = (core: Core, stream: StreamResource): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    stream.state = "released"
    core.streams.delete(stream)
    const status = core.backend.streams.destroy(stream)
    return status === success ? Effect.void : core.fail("CudaStream.release", status, stream)
  })
