/**
 * Streams: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { defaultStreamHandles } from "../../cuda/flags.ts"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import { resolvePriority } from "../CudaRuntime.ts"
import type { EventRef, ResourceState, StreamOptions, StreamRef, WaitOptions } from "../CudaRuntime.ts"
import type { StreamOperations } from "../runtime/streams.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import { operation } from "./operation.ts"
import { refusePartition } from "./partitionChecks.ts"
import { pointOf } from "./Recording.ts"
import { refuseBorder, refuseEvent, refuseInside, refuseWaiting } from "./recordings.ts"
import { ownEvent, ownPartition, ownStream, unusable } from "./resources.ts"
import type { EventResource, PartitionResource, StreamResource } from "./resources.ts"
import type { Cancel, OnDone } from "./waits.ts"

export interface StreamBackend {
  /** The stream made by the last call that creates one. */
  readonly created: StreamResource | undefined
  readonly create: (
    deviceIndex: number,
    priority: number,
    nonBlocking: boolean,
    partition: PartitionResource | undefined
  ) => number
  /** Tells profilers the name of a stream. */
  readonly announce: (stream: StreamResource, name: string) => void
  readonly defaultOf: (deviceIndex: number, mode: "legacy" | "perThread") => number
  readonly fromHandle: (deviceIndex: number, handle: number) => number
  readonly destroy: (stream: StreamResource) => number
  readonly query: (stream: StreamResource) => number
  readonly waitEvent: (stream: StreamResource, event: EventResource) => number
  /** Records once on `from`, and makes every branch wait for the record. */
  readonly fork: (from: StreamResource, branches: ReadonlyArray<StreamResource>) => number
  /** Reports when all work currently on the stream has finished. */
  readonly watch: (stream: StreamResource, onDone: OnDone, options?: WaitOptions) => Cancel
}

export const streamOperations = (core: Core): StreamOperations => {
  const { backend } = core
  const { streams } = backend
  return {
    streamCreate: (options) => create(core, options),
    streamDefault: (device, mode) => defaultStream(core, "CudaStream.defaultStream", device, mode),
    streamFromHandle: (device, handle, keeps) =>
      Effect.map(fromHandle(core, device, handle), (stream) => {
        if (keeps !== undefined && stream.origin === "foreign") (stream.keeps ??= new Set()).add(keeps)
        return stream
      }),
    streamDestroy: (ref) =>
      Effect.uninterruptible(Effect.suspend(() => {
        const stream = ownStream(ref)
        if (stream.owner !== backend) return refuseResource("CudaStream.release", backend, stream)
        return releaseStream(core, stream)
      })),
    streamQuery: operation((ref: StreamRef) => {
      const stream = ownStream(ref)
      if (unusable(backend, stream)) return refuseResource("CudaStream.query", backend, stream)
      const waits = core.recordings === 0 ? undefined : refuseWaiting("CudaStream.query", stream)
      if (waits !== undefined) return waits
      return core.answer("CudaStream.query", streams.query(stream), stream)
    }),
    streamSynchronize: operation((ref: StreamRef) => {
      const stream = ownStream(ref)
      if (unusable(backend, stream)) return refuseResource("CudaStream.synchronize", backend, stream)
      const waits = core.recordings === 0 ? undefined : refuseWaiting("CudaStream.synchronize", stream)
      if (waits !== undefined) return waits
      return drain(core, "CudaStream.synchronize", stream)
    }),
    streamWaitEvent: operation((ref: StreamRef, eventRef: EventRef) => {
      const stream = ownStream(ref)
      const event = ownEvent(eventRef)
      if (unusable(backend, stream) || unusable(backend, event)) {
        return refuseResource("CudaStream.waitEvent", backend, stream, event)
      }
      if (core.recordings !== 0 || event.inside !== undefined) {
        const refused = refuseEvent("CudaStream.waitEvent", stream, event)
        if (refused !== undefined) return refused
      }
      if (stream.recording !== undefined) {
        if (event.inside !== undefined) stream.recording.waitFor([stream], event.inside)
        return Effect.void
      }
      const status = streams.waitEvent(stream, event)
      return status === success ? Effect.void : core.fail("CudaStream.waitEvent", status, stream)
    }),
    streamWaitStream: operation((ref: StreamRef, otherRef: StreamRef) => {
      const stream = ownStream(ref)
      const other = ownStream(otherRef)
      if (unusable(backend, stream) || unusable(backend, other)) {
        return refuseResource("CudaStream.waitStream", backend, stream, other)
      }
      const refused = core.recordings === 0 ? undefined : refuseBorder("CudaStream.waitStream", stream, other)
      if (refused !== undefined) return refused
      const status = other.recording === undefined ? streams.fork(other, [stream]) : forkFrom(core, other, [stream])
      return status === success ? Effect.void : core.fail("CudaStream.waitStream", status, stream)
    }),
    streamFork: operation((from: StreamRef, branches: ReadonlyArray<StreamRef>) =>
      fork(core, ownStream(from), branches.map(ownStream))
    ),
    streamJoin: operation((into: StreamRef, branches: ReadonlyArray<StreamRef>) =>
      join(core, ownStream(into), branches.map(ownStream))
    )
  }
}

/** Refuses new work on a stream of this runtime, drains it, and destroys it. Must run uninterruptibly. */
export const releaseStream = (core: Core, stream: StreamResource): Effect.Effect<void, CudaError> => {
  if (stream.origin !== "owned" || stream.state !== "live") return Effect.void
  if (stream.recording !== undefined) {
    stream.state = "released"
    return Effect.void
  }
  setState(core, stream, "closing")
  return Effect.onExit(drainForRelease(core, stream), () => destroy(core, stream))
}

const fork = (core: Core, from: StreamResource, branches: ReadonlyArray<StreamResource>) => {
  const operation = "CudaBranch.fork"
  const { backend } = core
  if (unusable(backend, from) || branches.some((branch) => unusable(backend, branch))) {
    return refuseResource(operation, backend, from, ...branches)
  }
  const refused = core.recordings === 0 ? undefined : refuseBorder(operation, from, ...branches)
  if (refused !== undefined) return refused
  const status = forkFrom(core, from, branches)
  return status === success ? Effect.void : core.fail(operation, status, from)
}

/** Makes streams wait for the work of another so far. */
const forkFrom = (core: Core, from: StreamResource, branches: ReadonlyArray<StreamResource>): number => {
  if (from.recording === undefined) return core.backend.streams.fork(from, branches)
  from.recording.waitFor(branches, pointOf(from))
  return success
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
    const refused = core.recordings === 0 ? undefined : refuseBorder(operation, into, branch)
    if (refused !== undefined) {
      failed ??= refused
      continue
    }
    const status = forkFrom(core, branch, waiting)
    if (status !== success) failed ??= core.fail(operation, status, branch)
  }
  return failed ?? Effect.void
}

const create = (core: Core, options: StreamOptions) =>
  core.onDevice("CudaStream.make", options.deviceIndex, () => {
    const priority = priorityOf(core, options)
    if (typeof priority !== "number") return priority
    const unnamed = refuseName(options)
    if (unnamed !== undefined) return unnamed
    const partition = options.partition === undefined ? undefined : ownPartition(options.partition)
    const refused = partition === undefined
      ? undefined
      : refusePartition(core, "CudaStream.make", partition, options)
    if (refused !== undefined) return refused
    const status = core.backend.streams.create(options.deviceIndex, priority, options.nonBlocking, partition)
    if (status !== success) {
      return core.failOn("CudaStream.make", status, options.deviceIndex, `device ${options.deviceIndex}`)
    }
    const stream = core.backend.streams.created!
    core.streams.add(stream)
    stream.name = options.name
    if (stream.name !== undefined) core.backend.streams.announce(stream, stream.name)
    return Effect.succeed(stream)
  })

/** Refuses a name that is no text. */
export const refuseName = ({ name }: StreamOptions): Effect.Effect<never, CudaError> | undefined =>
  name === undefined || typeof name === "string"
    ? undefined
    : refuseArgument("CudaStream.make", "name", name, "a string")

const defaultStream = (core: Core, operation: string, deviceIndex: number, mode: "legacy" | "perThread") =>
  core.onDevice(operation, deviceIndex, () => {
    const inside = core.recordings === 0 ? undefined : refuseInside(operation, notRecorded)
    if (inside !== undefined) return inside
    if (!Object.hasOwn(defaultStreamHandles, mode)) {
      return refuseArgument(operation, "mode", mode, `"legacy" or "perThread"`)
    }
    const stream = findDefault(core, deviceIndex, mode)
    return typeof stream === "number"
      ? core.failOn(operation, stream, deviceIndex, `device ${deviceIndex}`)
      : Effect.succeed(stream)
  })

/** A default stream of a device that is open, or the status of the call that failed. */
export const findDefault = (
  core: Core,
  deviceIndex: number,
  mode: "legacy" | "perThread"
): StreamResource | number => {
  const key = `${deviceIndex} ${mode}`
  const known = core.defaultStreams.get(key)
  if (known !== undefined) return known
  const status = core.backend.streams.defaultOf(deviceIndex, mode)
  if (status !== success) return status
  const stream = core.backend.streams.created!
  core.defaultStreams.set(key, stream)
  return stream
}

/** The priority that options ask for, if the device has it. */
export const priorityOf = (core: Core, options: StreamOptions): number | Effect.Effect<never, CudaError> => {
  const range = core.backend.devices.priorityRange(options.deviceIndex)
  const { greatest, least } = range
  const priority = resolvePriority(range, options.priority, options.outOfRange)
  if (Number.isInteger(priority) && priority <= least && priority >= greatest) return priority
  return refuseArgument("CudaStream.make", "priority", priority, `an integer from ${greatest} (highest) to ${least}`)
}

const notRecorded = "default streams, and streams of other code, do not record. Use the current stream, or make one"

/** Handles of default streams yield those streams. Wrapping a stream again yields the same resource. */
const fromHandle = (core: Core, deviceIndex: number, handle: number): Effect.Effect<StreamResource, CudaError> => {
  const operation = "CudaStream.fromHandle"
  if (handle === 0 || handle === defaultStreamHandles.legacy) {
    return defaultStream(core, operation, deviceIndex, "legacy")
  }
  if (handle === defaultStreamHandles.perThread) return defaultStream(core, operation, deviceIndex, "perThread")
  return core.onDevice(operation, deviceIndex, () => {
    const inside = core.recordings === 0 ? undefined : refuseInside(operation, notRecorded)
    if (inside !== undefined) return inside
    if (!Number.isSafeInteger(handle) || handle < 0) {
      return refuseArgument(operation, "handle", handle, "the address of a CUstream")
    }
    const status = core.backend.streams.fromHandle(deviceIndex, handle)
    if (status !== success) return core.failOn(operation, status, deviceIndex, `handle 0x${handle.toString(16)}`)
    const made = core.backend.streams.created!
    const key = foreignKey(made)
    const known = core.foreignStreams.get(key)
    if (known === undefined) core.foreignStreams.set(key, made)
    return Effect.succeed(known ?? made)
  })
}

/** Waits for the work enqueued so far. Returns immediately if the stream is idle. */
const drain = (core: Core, operation: string, stream: StreamResource): Effect.Effect<void, CudaError> => {
  const status = core.backend.streams.query(stream)
  if (status === success) return Effect.void
  if (status !== notReady) return core.fail(operation, status, stream)
  return core.wait(
    operation,
    stream.deviceIndex,
    String(stream),
    (onDone, options) => core.backend.streams.watch(stream, onDone, options),
    // A stream that is being released is drained too.
    () => stream.state === "released" ? refuseResource(operation, core.backend, stream) : undefined
  )
}

/**
 * Drains a stream before it is destroyed. If waiting fails for a reason other than a fault, the stream's work may still
 * be using memory, so the stream is polled until it is idle.
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

/** Releasing a stream also releases a wrapper of its handle, because no call may use the handle after that. */
const setState = (core: Core, stream: StreamResource, state: ResourceState): void => {
  stream.state = state
  const wrapper = core.foreignStreams.get(foreignKey(stream))
  if (wrapper !== undefined) wrapper.state = state
}

const foreignKey = ({ deviceIndex, id }: StreamResource): string => `${deviceIndex} ${id}`

const destroy = (core: Core, stream: StreamResource): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    setState(core, stream, "released")
    core.streams.delete(stream)
    const status = core.backend.streams.destroy(stream)
    return status === success ? Effect.void : core.fail("CudaStream.release", status, stream)
  })
