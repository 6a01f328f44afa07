/**
 * What a recording refuses: waiting for the GPU, and streams and events that cross its border. Also the scalar
 * parameters among the arguments of a recorded launch.
 *
 * Callers ask only while a recording is in progress, or about a stream or an event of one.
 */
import type * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import type { ParameterKind } from "../../cuda/parameters.ts"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import { CurrentRecording } from "../CudaRuntime.ts"
import type { RecordingRef } from "../CudaRuntime.ts"
import type { Core } from "./Core.ts"
import { refuse } from "./failures.ts"
import { describeFrame, GraphScalar, isPeer } from "./graphNodes.ts"
import type { RecordedScalar } from "./graphNodes.ts"
import type { KernelResource } from "./moduleResources.ts"
import type { Refusal } from "./ranges.ts"
import type { Recording } from "./Recording.ts"
import { EventResource } from "./resources.ts"
import type { AnyMemoryResource, StreamResource } from "./resources.ts"

/** The failure of an operation that cannot be part of a graph. */
export const refuseToRecord = (operation: string, because: string): Effect.Effect<never, CudaError> =>
  refuse(operation, {
    _tag: "CannotRecord",
    because,
    frame: describeFrame(Fiber.getCurrent()?.getRef(References.CurrentStackFrame))
  })

/** Why a body of a condition cannot record events that measure time. */
export const noRecords =
  "bodies of conditions cannot record events with timing. Record them before or after the condition"

/** The recording that the current fiber is part of. */
const currentRecording = (): RecordingRef | undefined => Fiber.getCurrent()?.getRef(CurrentRecording)

/** Refuses an operation inside a recording. */
export const refuseInside = (operation: string, because: string): Refusal =>
  currentRecording() === undefined ? undefined : refuseToRecord(operation, because)

/**
 * Refuses a stream outside the recording that the fiber is part of, because its work would run once, and not be in the graph. Also refuses
 * a stream that native code is enqueuing work on.
 */
export const refuseElsewhere = (operation: string, stream: StreamResource): Refusal => {
  if (stream.line?.isCapturing === true) {
    return refuseToRecord(
      operation,
      `native code is enqueuing work on ${stream}. Use it before or after CudaGraph.capture`
    )
  }
  const recording = currentRecording()
  if (recording === undefined || stream.recording === recording) return undefined
  return refuseToRecord(operation, `${stream} is not part of the recording. Use streams that were made inside`)
}

/** Refuses copies from or to devices whose memory the graph's device cannot access: within graphs, the driver copies in no stages. */
export const refusePeer = (
  core: Core,
  operation: string,
  to: AnyMemoryResource,
  from: AnyMemoryResource,
  { recording }: StreamResource
): Refusal => {
  if (recording === undefined) return undefined
  const { devices } = core.backend
  const { deviceIndex } = recording
  for (const memory of [to, from]) {
    if (memory.kind !== "device" || !isPeer(memory, deviceIndex)) continue
    if (memory.isGrowable) {
      return refuseToRecord(
        operation,
        `no other device can access the ${memory}, which graphs need. Copy before or after the launch`
      )
    }
    const status = devices.canAccessPeer(deviceIndex, memory.deviceIndex)
    if (status !== success) return core.failOn(operation, status, deviceIndex, String(memory))
    if (devices.value !== 0) continue
    return refuseToRecord(
      operation,
      `device ${deviceIndex} cannot access the ${memory}, which graphs need. Copy before or after the launch`
    )
  }
  return undefined
}

/** Refuses streams of which some are in a recording and others are not. */
export const refuseBorder = (
  operation: string,
  stream: StreamResource,
  ...others: ReadonlyArray<StreamResource>
): Refusal => {
  const other = others.find(({ recording }) => recording !== stream.recording)
  if (other === undefined) return refuseElsewhere(operation, stream)
  const [inside, outside] = stream.recording === undefined ? [other, stream] : [stream, other]
  return refuseToRecord(
    operation,
    `${inside} cannot wait for ${outside}, or the reverse: no order crosses the border of a recording. ` +
      "Order the stream on which the graph is launched"
  )
}

/** Refuses a wait for an event that was recorded on the other side of a recording's border. */
export const refuseEvent = (operation: string, stream: StreamResource, event: EventResource): Refusal => {
  const { inside } = event
  const { recording } = stream
  if (recording === undefined) {
    if (inside === undefined || event.isNode) return refuseElsewhere(operation, stream)
    return refuseToRecord(operation, `${event} was recorded inside a graph, which only orders the work of that graph`)
  }
  if (inside?.recording === recording || (inside === undefined && !event.recorded)) return undefined
  return refuseToRecord(
    operation,
    `${event} was recorded outside the recording. Make the stream on which the graph is launched wait for it`
  )
}

/** Refuses to wait for the GPU, or to ask whether it has finished. */
export const refuseWaiting = (operation: string, subject?: StreamResource | EventResource): Refusal => {
  if (subject instanceof EventResource && subject.inside !== undefined && !subject.isNode) {
    return refuseToRecord(
      operation,
      `${subject} was recorded inside a graph, and has no state of its own. Create it with { timing: true }, or wait ` +
        "for the stream on which the graph is launched"
    )
  }
  const isInside = currentRecording() !== undefined ||
    (subject instanceof EventResource ? false : subject?.recording !== undefined)
  return isInside
    ? refuseToRecord(operation, "nothing runs while a graph is recorded. Wait after the graph was launched")
    : undefined
}

/** Refuses a recording that does not end after all of its work. */
export const refuseUnjoined = (operation: string, { unjoined }: Recording): Refusal =>
  unjoined.length === 0
    ? undefined
    : refuseToRecord(
      operation,
      `${unjoined.join(", ")} ${
        unjoined.length === 1 ? "has" : "have"
      } work that nothing waits for. Join the streams of ` +
        "a recording into the one it began on, with CudaStream.waitStream or CudaBranch"
    )

const none: ReadonlyArray<RecordedScalar> = []

interface Taken {
  /** The values with a number in place of each parameter. */
  readonly values: ReadonlyArray<unknown>
  readonly scalars: ReadonlyArray<RecordedScalar>
}

/**
 * Takes the scalar parameters out of the values of a launch. A parameter of the wrong kind stays, so that the launch
 * refuses it.
 */
export const takeScalars = (
  recording: Recording,
  { arguments: { offsets }, parameters }: KernelResource,
  values: ReadonlyArray<unknown>
): Taken => {
  if (!recording.hasScalars) return { values, scalars: none }
  const scalars: Array<RecordedScalar> = []
  const take = (kind: ParameterKind, at: number, value: unknown): unknown => {
    if (value instanceof GraphScalar) {
      if (value.scalar !== kind.kind || value.recording !== recording.root) return value
      scalars.push({ index: value.index, scalar: value.scalar, at })
      return value.scalar === "bool" ? false : 0
    }
    if (typeof value !== "object" || value === null) return value
    if (kind.kind === "struct") {
      const fields = new Map(Object.entries(value))
      return Object.fromEntries(
        Object.entries(kind.fields).map((
          [name, field]
        ) => [name, take(field, at + kind.offsets[name]!, fields.get(name))])
      )
    }
    if (kind.kind !== "array" || !("length" in value)) return value
    return Array.from(
      value as ArrayLike<unknown>,
      (item, index) => take(kind.element, at + index * kind.element.size, item)
    )
  }
  if (!Array.isArray(values) || values.length !== parameters.length) return { values, scalars }
  return { values: values.map((value, index) => take(parameters[index]!, offsets[index]!, value)), scalars }
}
