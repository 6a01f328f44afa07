/**
 * Conditions of graphs: recording their bodies, and the kernel that passes a value in device memory to the driver.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { GraphCondition, MemoryRange, RecordingRef, StreamRef } from "../CudaRuntime.ts"
import type { GraphOperations } from "../runtime/graphs.ts"
import { enqueueUsing } from "./accesses.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseDescribed, refuseResource } from "./failures.ts"
import { handlesOf } from "./graphNodes.ts"
import { bring } from "./kernelCode.ts"
import type { KernelCode, ModuleResource } from "./moduleResources.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { Recording } from "./Recording.ts"
import { refuseElsewhere, refuseUnjoined } from "./recordings.ts"
import { ownMemory, ownStream, unusable, unusableMemory } from "./resources.ts"
import type { StreamResource } from "./resources.ts"

const conditionOperation = "CudaGraph.condition"

/** Ends a recording. */
type Close = (core: Core, ref: RecordingRef) => void

export const conditionOperations = (
  core: Core,
  close: Close
): Pick<GraphOperations, "graphBody" | "graphCondition" | "graphPrepareConditions"> => ({
  graphPrepareConditions: (deviceIndex) =>
    core.onDevice(conditionOperation, deviceIndex, () => Effect.asVoid(prepare(core, deviceIndex))),
  graphBody: (stream) => Effect.suspend(() => beginBody(core, ownStream(stream))),
  graphCondition: (condition, value, bodies, stream) =>
    Effect.suspend(() => addCondition(core, close, condition, value, bodies, stream))
})

const beginBody = (core: Core, stream: StreamResource): Effect.Effect<RecordingRef, CudaError> => {
  const { recording } = stream
  const refused = refusePlace(core, stream)
  if (refused !== undefined || recording === undefined) return refused ?? refuseOutside(stream)
  return Effect.map(prepare(core, stream.deviceIndex), () => {
    core.recordings++
    return new Recording(core.backend, recording.options, recording)
  })
}

/** Makes conditions possible on a device. Returns the kernel that passes values to them, if there is one. */
const prepare = (core: Core, deviceIndex: number): Effect.Effect<KernelCode | undefined, CudaError> => {
  const { missingForConditions } = core.backend.graphs
  return missingForConditions === undefined
    ? setterOf(core, deviceIndex)
    : refuse(conditionOperation, { _tag: "FunctionMissing", functionName: missingForConditions })
}

const refusePlace = (core: Core, stream: StreamResource): Refusal =>
  unusable(core.backend, stream)
    ? refuseResource(conditionOperation, core.backend, stream)
    : refuseElsewhere(conditionOperation, stream)

const refuseOutside = (stream: StreamResource) =>
  refuseDescribed(conditionOperation, "stream", String(stream), "a stream of a recording")

const addCondition = (
  core: Core,
  close: Close,
  condition: GraphCondition,
  value: MemoryRange,
  refs: ReadonlyArray<RecordingRef>,
  streamRef: StreamRef
): Effect.Effect<void, CudaError> => {
  const stream = ownStream(streamRef)
  const { recording } = stream
  const bodies = refs.filter((ref) => ref instanceof Recording)
  for (const body of bodies) close(core, body)
  const refused = refusePlace(core, stream) ?? refuseValue(core, value, stream) ??
    bodies.map((body) => refuseBody(body, recording)).find((found) => found !== undefined)
  if (refused !== undefined || recording === undefined) return refused ?? refuseOutside(stream)
  const range = { ...value, memory: ownMemory(value.memory), byteLength: valueBytes }
  const { nodes } = recording
  const inside = allInside(recording, bodies)
  const reads = [range, ...inside.flatMap((index) => nodes[index]!.reads)]
  const writes = inside.flatMap((index) => nodes[index]!.writes)
  const handles = handlesOf(inside.map((index) => nodes[index]!))
  return Effect.flatMap(setterOf(core, stream.deviceIndex), (setter) => {
    const status = enqueueUsing(core, stream, reads, writes, () => {
      recording.condition(stream, { condition, value: range, setter }, bodies)
      return success
    }, handles)
    return status === success ? Effect.void : core.fail(conditionOperation, status, stream)
  })
}

/** The bytes of the value. */
const valueBytes = 4

const refuseValue = (core: Core, value: MemoryRange, stream: StreamResource): Refusal => {
  const { backend } = core
  const memory = ownMemory(value.memory)
  if (unusableMemory(backend, memory)) return refuseResource(conditionOperation, backend, memory)
  if (memory.kind !== "device" || (memory.deviceIndex !== stream.deviceIndex && !memory.isManaged)) {
    return refuseArgument(conditionOperation, "value", memory, `device memory of device ${stream.deviceIndex}`)
  }
  const refused = refuseRange(conditionOperation, "value", value)
  if (refused !== undefined) return refused
  if (value.byteLength < valueBytes) {
    return refuseArgument(conditionOperation, "value.byteLength", value.byteLength, `at least ${valueBytes}`)
  }
  return (value.memory.address + value.offset) % valueBytes === 0
    ? undefined
    : refuseArgument(conditionOperation, "value.offset", value.offset, `a multiple of ${valueBytes}`)
}

const refuseBody = (body: Recording, recording: Recording | undefined): Refusal =>
  body.parent === recording
    ? refuseUnjoined(conditionOperation, body)
    : refuseDescribed(conditionOperation, "bodies", "a body of another recording", "bodies of this recording")

/** The nodes of bodies and of conditions inside them. */
const allInside = ({ nodes }: Recording, bodies: ReadonlyArray<Recording>): ReadonlyArray<number> => {
  const found = bodies.flatMap((body) => body.own)
  for (let at = 0; at < found.length; at++) {
    const { work } = nodes[found[at]!]!
    if (work.kind === "conditional") found.push(...work.bodies.flat())
  }
  return found
}

const setterName = "effect_cuda_condition"

/** The kernel that passes a value to a condition, on a device. It is loaded once, and lives as long as the runtime. */
const setterOf = (core: Core, deviceIndex: number): Effect.Effect<KernelCode | undefined, CudaError> => {
  const { setterImage } = core.backend.graphs
  if (setterImage === undefined) return Effect.succeed(undefined)
  const loaded = Effect.uninterruptible(core.settingUp.withPermit(Effect.suspend(() => loadSetter(core, setterImage))))
  return Effect.flatMap(loaded, (code) =>
    code.on[deviceIndex] === undefined
      ? Effect.as(bring(core, conditionOperation, code, deviceIndex), code)
      : Effect.succeed(code))
}

const loadSetter = (core: Core, image: Uint8Array): Effect.Effect<KernelCode, CudaError> => {
  const { backend } = core
  if (core.conditionSetter !== undefined) return Effect.succeed(core.conditionSetter)
  const adopt = (module: ModuleResource) => void core.ownModules.add(module)
  const loaded = Effect.mapError(
    backend.modules.load(image, { idleTimeout: Duration.seconds(1) }, adopt),
    ({ call, status }) => core.error(conditionOperation, status, 0, "the kernel that reads conditions", call)
  )
  return Effect.flatMap(loaded, (module) => {
    const status = backend.kernels.find(module, setterName)
    if (status !== success) {
      const failed = core.failOn(conditionOperation, status, 0, setterName)
      core.ownModules.delete(module)
      module.state = "released"
      backend.modules.unload(module)
      return failed
    }
    return Effect.succeed(core.conditionSetter = backend.kernels.code!)
  })
}
