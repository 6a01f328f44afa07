/**
 * Events: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { eventFlags, ipcHandleSize } from "../../cuda/flags.ts"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { EventRef, StreamRef, WaitOptions } from "../CudaRuntime.ts"
import type { EventOperations } from "../runtime/events.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseDevices, refuseResource } from "./failures.ts"
import { operation } from "./operation.ts"
import { noRecords, refuseElsewhere, refuseInside, refuseToRecord, refuseWaiting } from "./recordings.ts"
import { ownEvent, ownStream, unusable } from "./resources.ts"
import type { EventResource, StreamResource } from "./resources.ts"
import type { Cancel, OnDone } from "./waits.ts"

export interface EventBackend {
  /** The event made by the last call that creates one. */
  readonly created: EventResource | undefined
  /** The value read by `elapsedTime`. */
  readonly milliseconds: number
  readonly create: (deviceIndex: number, flags: number) => number
  readonly destroy: (event: EventResource) => number
  readonly record: (event: EventResource, stream: StreamResource) => number
  readonly query: (event: EventResource) => number
  readonly elapsedTime: (start: EventResource, end: EventResource) => number
  readonly ipcHandle: (event: EventResource, into: Uint8Array) => number
  readonly fromIpcHandle: (deviceIndex: number, handle: Uint8Array) => number
  readonly fromHandle: (deviceIndex: number, handle: number, flags: number) => number
  /** Reports when the event's current record has finished. */
  readonly watch: (event: EventResource, onDone: OnDone, options?: WaitOptions) => Cancel
}

export const eventOperations = (core: Core): EventOperations => {
  const { backend } = core
  const { events } = backend
  return {
    eventCreate: operation((deviceIndex: number, flags: number) => create(core, deviceIndex, flags)),
    eventDestroy: operation((ref: EventRef) => {
      const event = ownEvent(ref)
      if (event.owner !== backend) return refuseResource("CudaEvent.release", backend, event)
      if (event.state !== "live") return Effect.void
      event.state = "released"
      if (event.isForeign) return Effect.void
      core.events.delete(event)
      const status = events.destroy(event)
      return status === success ? Effect.void : core.fail("CudaEvent.release", status, event)
    }),
    eventRecord: operation((ref: EventRef, streamRef: StreamRef) => {
      const event = ownEvent(ref)
      const stream = ownStream(streamRef)
      if (unusable(backend, event) || unusable(backend, stream)) {
        return refuseResource("CudaEvent.record", backend, event, stream)
      }
      if (event.deviceIndex !== stream.deviceIndex) return refuseDevices("CudaEvent.record", event, stream)
      if (core.recordings !== 0) {
        const refused = refuseElsewhere("CudaEvent.record", stream)
        if (refused !== undefined) return refused
        if (stream.recording !== undefined) {
          const isBody = stream.recording.parent !== undefined
          if (isBody && event.isNode) return refuseToRecord("CudaEvent.record", noRecords)
          stream.recording.record(event, stream)
          return Effect.void
        }
      }
      const status = events.record(event, stream)
      if (status !== success) return core.fail("CudaEvent.record", status, event)
      event.recorded = true
      event.inside = undefined
      return Effect.void
    }),
    eventQuery: operation((ref: EventRef) => {
      const event = ownEvent(ref)
      if (unusable(backend, event)) return refuseResource("CudaEvent.query", backend, event)
      if (core.recordings !== 0 || event.inside !== undefined) {
        const waits = refuseWaiting("CudaEvent.query", event)
        if (waits !== undefined) return waits
      }
      return core.answer("CudaEvent.query", events.query(event), event)
    }),
    eventSynchronize: operation((ref: EventRef) => {
      const event = ownEvent(ref)
      if (unusable(backend, event)) return refuseResource("CudaEvent.synchronize", backend, event)
      if (core.recordings !== 0 || event.inside !== undefined) {
        const waits = refuseWaiting("CudaEvent.synchronize", event)
        if (waits !== undefined) return waits
      }
      const status = events.query(event)
      if (status === success) return Effect.void
      if (status !== notReady) return core.fail("CudaEvent.synchronize", status, event)
      return core.wait(
        "CudaEvent.synchronize",
        event.deviceIndex,
        String(event),
        (onDone, options) => events.watch(event, onDone, options),
        () => event.state === "live" ? undefined : refuseResource("CudaEvent.synchronize", backend, event)
      )
    }),
    eventElapsedTime: operation((startRef: EventRef, endRef: EventRef) =>
      elapsedTime(core, ownEvent(startRef), ownEvent(endRef))
    ),
    eventIpcHandle: (ref) =>
      Effect.suspend(() => {
        const event = ownEvent(ref)
        if (unusable(backend, event)) return refuseResource("CudaEvent.ipcHandle", backend, event)
        if ((event.flags & eventFlags.interprocess) === 0) {
          return refuseArgument("CudaEvent.ipcHandle", "event", event, "an event made with { interprocess: true }")
        }
        const bytes = new Uint8Array(ipcHandleSize)
        const status = events.ipcHandle(event, bytes)
        return status === success ? Effect.succeed(bytes) : core.fail("CudaEvent.ipcHandle", status, event)
      }),
    eventFromIpcHandle: (device, handle) => fromIpcHandle(core, device, handle),
    eventFromHandle: (device, handle, flags, keeps) => fromHandle(core, device, handle, flags, keeps)
  }
}

const create = (core: Core, deviceIndex: number, flags: number) =>
  core.whenOpen("CudaEvent.make", deviceIndex, () => {
    const interprocess = (flags & eventFlags.interprocess) !== 0
    if (interprocess && (flags & eventFlags.disableTiming) === 0) {
      return refuseArgument("CudaEvent.make", "timing", true, "false: interprocess events cannot record times")
    }
    return adopt(core, "CudaEvent.make", deviceIndex, core.backend.events.create(deviceIndex, flags))
  })

const fromIpcHandle = (core: Core, deviceIndex: number, handle: Uint8Array) =>
  core.onDevice("CudaEvent.fromIpcHandle", deviceIndex, () => {
    if (!(handle instanceof Uint8Array) || handle.byteLength !== ipcHandleSize) {
      return refuseArgument("CudaEvent.fromIpcHandle", "handle", handle, `a Uint8Array of ${ipcHandleSize} bytes`)
    }
    return adopt(core, "CudaEvent.fromIpcHandle", deviceIndex, core.backend.events.fromIpcHandle(deviceIndex, handle))
  })

/** Not counted as a live event, because the runtime never destroys it. */
const fromHandle = (core: Core, deviceIndex: number, handle: number, flags: number, keeps: unknown) => {
  const operation = "CudaEvent.fromHandle"
  return core.onDevice(operation, deviceIndex, () => {
    if (!Number.isSafeInteger(handle) || handle <= 0) {
      return refuseArgument(operation, "handle", handle, "the address of a CUevent")
    }
    const status = core.backend.events.fromHandle(deviceIndex, handle, flags)
    if (status !== success) return core.failOn(operation, status, deviceIndex, `handle 0x${handle.toString(16)}`)
    const event = core.backend.events.created!
    event.isForeign = true
    event.keeps = keeps
    event.recorded = true
    core.foreignEvents.set(core.wrapped++, event)
    return Effect.succeed(event)
  })
}

const adopt = (core: Core, operation: string, deviceIndex: number, status: number) => {
  if (status !== success) return core.failOn(operation, status, deviceIndex, `device ${deviceIndex}`)
  const event = core.backend.events.created!
  core.events.add(event)
  return Effect.succeed(event)
}

const notYet = "nothing runs while a graph is recorded. Read times after the graph was launched"

/**
 * Calls the driver first, which usually returns a time. Its status does not distinguish the possible failures, so they
 * are told apart afterwards, in this order.
 */
const elapsedTime = (core: Core, start: EventResource, end: EventResource): Effect.Effect<number, CudaError> => {
  const operation = "CudaEvent.elapsedTime"
  if (unusable(core.backend, start) || unusable(core.backend, end)) {
    return refuseResource(operation, core.backend, start, end)
  }
  const waits = core.recordings === 0 ? undefined : refuseInside(operation, notYet)
  if (waits !== undefined) return waits
  const isMeant = start.hasTiming && end.hasTiming && start.recorded && end.recorded &&
    start.deviceIndex === end.deviceIndex
  const status = isMeant ? core.backend.events.elapsedTime(start, end) : notReady
  return status === success
    ? Effect.succeed(core.backend.events.milliseconds)
    : explainElapsed(core, operation, status, start, end)
}

const explainElapsed = (
  core: Core,
  operation: string,
  status: number,
  start: EventResource,
  end: EventResource
): Effect.Effect<number, CudaError> => {
  const both = [start, end]
  const untimed = both.find((event) => !event.hasTiming)
  if (untimed !== undefined) return refuse(operation, { _tag: "TimingDisabled", resource: String(untimed) })
  const blank = both.find((event) => !event.recorded)
  if (blank !== undefined) return refuse(operation, { _tag: "NotRecorded", resource: String(blank) })
  if (status !== notReady) return core.fail(operation, status, end)
  for (const event of both) {
    const queried = core.backend.events.query(event)
    if (queried === notReady) return refuse(operation, { _tag: "NotFinished", resource: String(event) })
    if (queried !== success) return core.fail(operation, queried, event)
  }
  if (start.deviceIndex !== end.deviceIndex) return refuseDevices(operation, start, end)
  // Both have finished since the first call.
  const again = core.backend.events.elapsedTime(start, end)
  return again === success ? Effect.succeed(core.backend.events.milliseconds) : core.fail(operation, again, end)
}
