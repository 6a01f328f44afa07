/**
 * Calls of other native code as operations: checked, ordered, and captured inside recordings.
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { success } from "../../cuda/status.ts"
import { CudaError } from "../../CudaError.ts"
import type { CudaErrorReason, LibraryFailed } from "../../CudaError.ts"
import type {
  EnqueuedCall,
  LibraryHandleRef,
  LibraryRef,
  MemoryRange,
  PlacedCall,
  PointerArgument,
  StreamRef
} from "../CudaRuntime.ts"
import type { AccessOperations } from "../runtime/accesses.ts"
import { enqueueUsing, useAlone } from "./accesses.ts"
import { isPart, isRange } from "./arguments.ts"
import { abandonCapture, beginCapture, Capture, endCapture, refuseSimulate } from "./captures.ts"
import type { CapturedCall, CaptureNames } from "./captures.ts"
import { isOn } from "./copies.ts"
import type { Core } from "./Core.ts"
import { fromReason, refuseArgument, refuseDevices, refuseReach, refuseResource } from "./failures.ts"
import { reasonOf } from "./libraryFailures.ts"
import { LibraryResource } from "./libraryFunctions.ts"
import { operation as driverCall } from "./operation.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { refuseElsewhere, refuseToRecord } from "./recordings.ts"
import { handlesOf, ownHandleAlone, ownMemory, ownStream, unusable, unusableMemory } from "./resources.ts"
import type { HandleResource, StreamResource } from "./resources.ts"

type Call = (stream: number) => unknown
type Parts = ReadonlyArray<PointerArgument>

/** What a call is named in failures. */
export interface CallNames extends CaptureNames {
  /** The function; undefined if only the program knows it. */
  readonly call: string | undefined
}

export const enqueueOperations = (core: Core): Pick<AccessOperations, "memoryEnqueue" | "memoryEnqueueAll"> => ({
  memoryEnqueueAll: driverCall((works: ReadonlyArray<PlacedCall>, call: CallOnAll) => enqueueAll(core, works, call)),
  memoryEnqueue: driverCall((work: EnqueuedCall, call: Call, stream: StreamRef) => {
    const names = work.names === undefined ? ofMemory : namesOf(work.names)
    return work.handles === undefined
      ? enqueueCall(core, names, work as CallWithHandles, call, ownStream(stream))
      : enqueueWithHandles(core, names, work, work.handles, call, ownStream(stream))
  })
})

type CallOnAll = (streams: ReadonlyArray<number>) => unknown

/** The uses of each stream are around the call, so that they are marked when all of it is enqueued. */
const enqueueAll = (core: Core, works: ReadonlyArray<PlacedCall>, call: CallOnAll): Effect.Effect<void, CudaError> => {
  const first = works[0]
  if (first === undefined) return Effect.void
  const names = first.names === undefined ? ofAll : namesOf(first.names)
  const streams: Array<StreamResource> = []
  let isOrdered = core.backend.captures.simulate !== undefined
  for (let index = 0; index < works.length; index++) {
    const work = works[index]!
    const stream = ownStream(work.stream)
    const refused = refusePlaced(core, names, work, call, stream)
    if (refused !== undefined) return refused
    isOrdered ||= areUsesOrdered(work)
    streams.push(stream)
  }
  return isOrdered
    ? enqueueAllInOrder(core, names, works, call, streams)
    : enqueueUnordered(core, names, works, call, streams)
}

const areUsesOrdered = ({ handles = noRefs, reads = none, writes = none }: PlacedCall): boolean => {
  if (areOrdered(reads) || areOrdered(writes)) return true
  for (let index = 0; index < handles.length; index++) {
    if (ownHandleAlone(handles[index]!).ordering !== undefined) return true
  }
  return false
}

const enqueueUnordered = (
  core: Core,
  names: CallNames,
  works: ReadonlyArray<PlacedCall>,
  call: CallOnAll,
  streams: ReadonlyArray<StreamResource>
): Effect.Effect<void, CudaError> => {
  for (let index = 0; index < works.length; index++) {
    const { handles = noRefs, reads = none, writes = none } = works[index]!
    const stream = streams[index]!
    for (let at = 0; at < handles.length; at++) ownHandleAlone(handles[at]!).usedOn(stream)
    const used = use(reads, stream) || use(writes, stream)
    if (used !== success) return core.fail(names.begin, used, stream)
  }
  return callOnAll(core, names, works, call, streams) ?? Effect.void
}

const callOnAll = (
  core: Core,
  names: CallNames,
  works: ReadonlyArray<PlacedCall>,
  call: CallOnAll,
  streams: ReadonlyArray<StreamResource>
): Refusal => {
  const handles: Array<number> = []
  for (let index = 0; index < streams.length; index++) handles.push(streams[index]!.handle)
  return callNative(core, names, works[0]!, call, streams[0]!, handles)
}

const enqueueAllInOrder = (
  core: Core,
  names: CallNames,
  works: ReadonlyArray<PlacedCall>,
  call: CallOnAll,
  streams: ReadonlyArray<StreamResource>
): Effect.Effect<void, CudaError> => {
  const { simulate } = core.backend.captures
  let failed: Refusal
  const enter = (index: number): number => {
    const work = works[index]
    if (work === undefined) {
      if (simulate !== undefined) return success
      failed = callOnAll(core, names, works, call, streams)
      return success
    }
    const { reads = none, writes = none } = work
    const handles = handlesOf(work.handles)
    for (const handle of handles) handle.usedOn(streams[index]!)
    const foreign = { reads: rangesOf(reads), writes: rangesOf(writes), simulate: work.simulate, handles }
    const inside = () => (simulate === undefined ? success : simulate(foreign, streams[index]!)) || enter(index + 1)
    return enqueueUsing(core, streams[index]!, foreign.reads, foreign.writes, inside, handles)
  }
  const status = enter(0)
  return failed ?? (status === success ? Effect.void : core.fail(names.begin, status, streams[0]!))
}

const ofAll: CallNames = { begin: "CudaMemory.enqueueAll", end: "CudaMemory.enqueueAll", call: undefined }

const refusePlaced = (
  core: Core,
  names: CallNames,
  { handles = noRefs, reads = none, simulate, writes = none }: PlacedCall,
  call: unknown,
  stream: StreamResource
): Refusal => {
  if (
    unusable(core.backend, stream) || typeof call !== "function" || !areUsable(core, reads, stream) ||
    !areUsable(core, writes, stream)
  ) {
    return explain(core, names, reads, writes, call, stream)
  }
  if (stream.recording !== undefined) {
    return refuseToRecord(names.begin, "the work is on several streams. Record that of each by itself")
  }
  const elsewhere = core.recordings === 0 ? undefined : refuseElsewhere(names.begin, stream)
  if (elsewhere !== undefined) return elsewhere
  for (let index = 0; index < handles.length; index++) {
    const handle = ownHandleAlone(handles[index]!)
    if (unusable(core.backend, handle)) return refuseResource(names.begin, core.backend, handle)
    if (handle.deviceIndex !== stream.deviceIndex) return refuseDevices(names.begin, handle, stream)
  }
  return core.backend.captures.simulate !== undefined && typeof simulate !== "function"
    ? refuseSimulate(names.begin, simulate)
    : undefined
}

/** Separate, because most calls use no handle. */
const enqueueWithHandles = (
  core: Core,
  names: CallNames,
  work: EnqueuedCall,
  refs: ReadonlyArray<LibraryHandleRef>,
  call: Call,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const handles = handlesOf(refs)
  for (const handle of handles) {
    if (unusable(core.backend, handle)) return refuseResource(names.begin, core.backend, handle)
    if (handle.deviceIndex !== stream.deviceIndex && !unusable(core.backend, stream)) {
      return refuseDevices(names.begin, handle, stream)
    }
  }
  for (const handle of handles) handle.usedOn(stream)
  const { names: named, reads, simulate, status, writes } = work
  return enqueueCall(core, names, { reads, writes, status, simulate, names: named, handles }, call, stream)
}

const operation = "CudaMemory.enqueue"
const ofMemory: CallNames = { begin: operation, end: operation, call: undefined }
const namesOf = ({ call, operation }: NonNullable<EnqueuedCall["names"]>): CallNames => ({
  begin: operation,
  end: operation,
  call
})
const none: Parts = []
const noHandles: ReadonlyArray<HandleResource> = []
const noRefs: ReadonlyArray<LibraryHandleRef> = []

/** A call with the handles of libraries that it uses. */
interface CallWithHandles extends EnqueuedCall {
  readonly handles?: ReadonlyArray<HandleResource> | undefined
}

/** Makes a call that enqueues work: checked, ordered, and captured in a recording. */
export const enqueueCall = (
  core: Core,
  names: CallNames,
  work: CallWithHandles,
  call: Call,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const { backend } = core
  const { reads = none, writes = none } = work
  if (
    unusable(backend, stream) || typeof call !== "function" || !areUsable(core, reads, stream) ||
    !areUsable(core, writes, stream)
  ) {
    return explain(core, names, reads, writes, call, stream)
  }
  const elsewhere = core.recordings === 0 ? undefined : refuseElsewhere(names.begin, stream)
  if (elsewhere !== undefined) return elsewhere
  const runsNative = backend.captures.simulate === undefined
  if (
    stream.recording !== undefined || !runsNative || areOrdered(reads) || areOrdered(writes) ||
    !useAlone(core, work.handles ?? noHandles, stream)
  ) {
    return enqueueInOrder(core, names, work, reads, writes, call, stream)
  }
  const used = use(reads, stream) || use(writes, stream)
  if (used !== success) return core.fail(names.begin, used, stream)
  return callNative(core, names, work, call, stream, stream.handle) ?? Effect.void
}

const areUsable = ({ backend }: Core, parts: Parts, stream: StreamResource): boolean => {
  if (!Array.isArray(parts)) return false
  for (let index = 0; index < parts.length; index++) {
    const part: unknown = parts[index]
    if (!isPart(part)) return false
    const memory = ownMemory(part.buffer.ref)
    if (unusableMemory(backend, memory) || !isRange(part.offset, part.byteLength, memory.byteLength)) return false
    if (memory.kind === "device" && !isOn(memory, stream)) return false
  }
  return true
}

const areOrdered = (parts: Parts): boolean => {
  for (let index = 0; index < parts.length; index++) {
    if (ownMemory(parts[index]!.buffer.ref).ordering !== undefined) return true
  }
  return false
}

/** Notes the uses before the call, whatever the call does. Returns a status. */
const use = (parts: Parts, stream: StreamResource): number => {
  for (let index = 0; index < parts.length; index++) {
    const status = ownMemory(parts[index]!.buffer.ref).usedOn(stream)
    if (status !== success) return status
  }
  return success
}

/** Makes the call, with the context of the stream's device current. Returns its failure. */
const callNative = <Given>(
  core: Core,
  names: CallNames,
  work: EnqueuedCall,
  call: (given: Given) => unknown,
  stream: StreamResource,
  given: Given
): Refusal => {
  const { captures } = core.backend
  const { deviceIndex } = stream
  const entered = captures.enter(deviceIndex)
  if (entered !== success) return core.fail(names.begin, entered, stream)
  let result: unknown
  try {
    result = call(given)
  } finally {
    captures.leave(deviceIndex)
  }
  return result === undefined || result === success ? undefined : refuseResult(core, names, work, stream, result)
}

/** Work may have been enqueued even if the call failed, so its uses are marked however it ends. */
const enqueueInOrder = (
  core: Core,
  names: CallNames,
  work: CallWithHandles,
  reads: Parts,
  writes: Parts,
  call: Call,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const { handles, simulate } = work
  const foreign = { reads: rangesOf(reads), writes: rangesOf(writes), simulate, handles }
  if (core.backend.captures.simulate !== undefined && typeof foreign.simulate !== "function") {
    return refuseSimulate(names.begin, foreign.simulate)
  }
  let failed: Effect.Effect<void, CudaError> | undefined
  let thrown: Effect.Effect<never> | undefined
  const status = enqueueUsing(core, stream, foreign.reads, foreign.writes, () => {
    try {
      failed = run(core, names, work, foreign, call, stream)
    } catch (error) {
      thrown = Effect.die(error)
    }
    return success
  }, handles)
  if (status !== success) failed ??= core.fail(names.begin, status, stream)
  return thrown ?? failed ?? Effect.void
}

const run = (
  core: Core,
  names: CallNames,
  work: EnqueuedCall,
  foreign: CapturedCall,
  call: Call,
  stream: StreamResource
) => {
  if (stream.recording !== undefined) return record(core, names, work, foreign, call, stream)
  const { simulate } = core.backend.captures
  if (simulate === undefined) return callNative(core, names, work, call, stream, stream.handle)
  const status = simulate(foreign, stream)
  return status === success ? undefined : core.fail(names.begin, status, stream)
}

/** Makes the call while the driver captures a stream of its own, and the captured work a node. */
const record = (
  core: Core,
  names: CallNames,
  work: EnqueuedCall,
  foreign: CapturedCall,
  call: Call,
  stream: StreamResource
) => {
  const capture = beginCapture(core, names, foreign, stream)
  if (!(capture instanceof Capture)) return capture
  try {
    const failed = capture.handle === undefined
      ? undefined
      : callNative(core, names, work, call, stream, capture.handle)
    return failed ?? endCapture(core, capture)
  } finally {
    // Does nothing to a capture that has ended.
    abandonCapture(core, capture)
  }
}

const rangesOf = (parts: Parts): ReadonlyArray<MemoryRange> =>
  parts.map(({ buffer, byteLength, offset }) => ({ memory: buffer.ref, offset, byteLength }))

/** The failure of a call that returned something other than success. */
const refuseResult = (
  core: Core,
  names: CallNames,
  { status }: EnqueuedCall,
  stream: StreamResource,
  result: unknown
): Effect.Effect<never, CudaError> => {
  if (typeof result !== "number" || !Number.isInteger(result)) return refuseKind(names, result)
  const reason = reasonFor(core, names, status, stream, result)
  if ("isSticky" in reason && reason.isSticky) core.backend.noteLost?.()
  return Effect.fail(foreignError(core, names, reason, stream.deviceIndex, String(stream)))
}

const reasonFor = (
  core: Core,
  { begin }: CallNames,
  status: EnqueuedCall["status"],
  stream: StreamResource,
  result: number
): CudaErrorReason => {
  if (isOfLibrary(status)) return reasonOf(core, begin, status.ref, result, stream)
  const meaning = typeof status === "function" ? status(result) : status?.[result]
  return typeof meaning === "object" ? meaning : failed(result, meaning)
}

const isOfLibrary = (status: EnqueuedCall["status"]): status is { readonly ref: LibraryRef } =>
  Predicate.hasProperty(status, "ref") && status.ref instanceof LibraryResource

/** The failure of other native code. A library's own codes do not say whether the contexts were lost before. */
export const foreignError = (
  core: Core,
  { begin: operation, call }: CallNames,
  reason: CudaErrorReason,
  deviceIndex: number,
  subject: string
): CudaError => {
  const context = { operation, deviceIndex, subject, call }
  if (reason._tag !== "LibraryFailed") return fromReason(core.origins, reason, context)
  return new CudaError({ ...context, reason, origin: core.origins.first })
}

const failed = (code: number, name: string | undefined): LibraryFailed => ({
  _tag: "LibraryFailed",
  library: undefined,
  code,
  name,
  description: "",
  advice: "",
  isRetryable: false
})

const refuseKind = (names: CallNames, result: unknown) => {
  // Its later failure would otherwise end the process.
  if (Predicate.isPromiseLike(result)) result.then(undefined, () => {})
  return refuseArgument(names.begin, "result", result, "a status number or nothing: the call must be synchronous")
}

const explain = (
  core: Core,
  names: CallNames,
  reads: Parts,
  writes: Parts,
  call: unknown,
  stream: StreamResource
): Refusal & object => {
  if (unusable(core.backend, stream)) return refuseResource(names.begin, core.backend, stream)
  return refuseParts(core, names, "writes", writes, stream) ?? refuseParts(core, names, "reads", reads, stream) ??
    refuseArgument(names.begin, "call", call, "a function that enqueues work on a stream")
}

const refuseParts = (
  { backend }: Core,
  names: CallNames,
  name: string,
  parts: unknown,
  stream: StreamResource
): Refusal => {
  if (!Array.isArray(parts)) return refuseArgument(names.begin, name, parts, "an array of buffers or parts of buffers")
  for (const [index, part] of parts.entries()) {
    const at = `${name}[${index}]`
    if (!isPart(part)) return refuseArgument(names.begin, at, part, "a buffer or a part of one")
    const memory = ownMemory(part.buffer.ref)
    if (unusableMemory(backend, memory)) return refuseResource(names.begin, backend, memory)
    if (memory.kind === "device" && !isOn(memory, stream)) return refuseReach(names.begin, memory, stream)
    const refused = refuseRange(names.begin, at, { memory, offset: part.offset, byteLength: part.byteLength })
    if (refused !== undefined) return refused
  }
  return undefined
}
