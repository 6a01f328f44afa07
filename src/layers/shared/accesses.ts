/**
 * Uses of ordered buffers: work that the runtime enqueues, accesses by work that the runtime cannot see, and waiting
 * for both.
 */
import * as Effect from "effect/Effect"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryAccess, MemoryRange, WaitOptions } from "../CudaRuntime.ts"
import type { AccessOperations } from "../runtime/accesses.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseDescribed, refuseResource } from "./failures.ts"
import { operation } from "./operation.ts"
import { Access, all, marksOfPart, Track, Work } from "./ordering.ts"
import type { Mark, Ordering, Part } from "./ordering.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { refuseElsewhere, refuseWaiting } from "./recordings.ts"
import { handlesOf, ownMemory, ownStream, unusable, unusableMemory, useAll } from "./resources.ts"
import type { AnyMemoryResource, HandleResource, StreamResource } from "./resources.ts"
import { watchAll } from "./waits.ts"
import type { Cancel, OnDone, Watch } from "./waits.ts"

/** A point in a stream, recorded to order buffers. Each backend has its own kind. */
export interface Marker {
  readonly deviceIndex: number
}

export interface MarkerBackend {
  /** The marker made by `record`. */
  readonly made: Marker | undefined
  /** Records a marker after all work currently on a stream. */
  readonly record: (stream: StreamResource) => number
  readonly wait: (stream: StreamResource, marker: Marker) => number
  readonly query: (marker: Marker) => number
  /** Returns a marker for reuse. Streams that already wait for it are not affected. */
  readonly release: (marker: Marker) => void
  /** Reports when the GPU reaches a marker. The marker must not be released before that. */
  readonly watch: (marker: Marker, onDone: OnDone, options?: WaitOptions) => Cancel
}

export const accessOperations = (core: Core): Omit<AccessOperations, "memoryEnqueue" | "memoryEnqueueAll"> => {
  const accesses = new WeakMap<MemoryAccess, Access>()
  return {
    memoryBegin: operation((access: MemoryAccess) => begin(core, accesses, access)),
    memoryEnd: operation((access: MemoryAccess) => end(core, accesses, access)),
    memorySynchronize: (range) => Effect.suspend(() => synchronize(core, range))
  }
}

/**
 * Enqueues work that uses at least one ordered buffer or handle: waits for earlier conflicting uses, then marks the work for
 * later ones. Returns the status of the call, or of the wait or marker that failed.
 */
export const enqueueOrdered = (
  core: Core,
  stream: StreamResource,
  reads: ReadonlyArray<MemoryRange>,
  writes: ReadonlyArray<MemoryRange>,
  call: () => number,
  handles: Handles = none
): number => {
  const { copies, markers } = stream.recording ?? core.backend
  const work = new Work(trackOf(core, stream), partsOf(stream, reads, writes, handles))
  const begun = work.begin(markers)
  if (begun !== success) return begun
  copies.enqueuedPart = false
  const status = call()
  if (status !== success && !copies.enqueuedPart) return status
  const marked = work.end(markers)
  return status === success ? marked : status
}

/** Enqueues work on memory of any kind: notes its uses, and keeps the order of ordered buffers and handles. */
export const enqueueUsing = (
  core: Core,
  stream: StreamResource,
  reads: ReadonlyArray<MemoryRange>,
  writes: ReadonlyArray<MemoryRange>,
  call: () => number,
  handles: Handles = none
): number => {
  const memories = [...reads, ...writes].map(({ memory }) => ownMemory(memory))
  const used = useAll(memories, stream)
  if (used !== success) return used
  return memories.every(({ ordering }) => ordering === undefined) && useAlone(core, handles, stream)
    ? call()
    : enqueueOrdered(core, stream, reads, writes, call, handles)
}

type Handles = ReadonlyArray<HandleResource>

const none: Handles = []

/** Notes the uses of handles before work is enqueued, if none of it has to wait for another stream or to be marked. Returns false otherwise. */
export const useAlone = (core: Core, handles: Handles, stream: StreamResource): boolean => {
  for (let index = 0; index < handles.length; index++) {
    const { ordering } = handles[index]!
    if (ordering === undefined) continue
    if (stream.recording !== undefined || !ordering.useAlone(trackOf(core, stream))) return false
  }
  return true
}

/** A wrapped stream shares the track of the stream that owns the handle. */
export const trackOf = (core: Core, stream: StreamResource): Track => {
  if (stream.track !== undefined) return stream.track
  if (stream.origin !== "foreign") return stream.track = new Track(stream)
  for (const owned of core.streams) {
    if (owned.id === stream.id && owned.deviceIndex === stream.deviceIndex) return stream.track = trackOf(core, owned)
  }
  return stream.track = new Track(stream)
}

/** The ranges in ordered buffers, reads first, and the ordered handles. */
const partsOf = (
  stream: StreamResource,
  reads: ReadonlyArray<MemoryRange>,
  writes: ReadonlyArray<MemoryRange>,
  handles: Handles = none
): ReadonlyArray<Part> => {
  const parts: Array<Part> = []
  for (const range of reads) addPart(parts, stream, range, false)
  for (const range of writes) addPart(parts, stream, range, true)
  for (const handle of handles) {
    const ordering = orderingOf(stream, handle)
    if (ordering !== undefined) parts.push({ ordering, ...all })
  }
  return parts
}

const addPart = (
  parts: Array<Part>,
  stream: StreamResource,
  { byteLength, memory, offset }: MemoryRange,
  writes: boolean
): void => {
  const ordering = orderingOf(stream, ownMemory(memory))
  if (ordering !== undefined && byteLength > 0) parts.push({ ordering, from: offset, to: offset + byteLength, writes })
}

const orderingOf = ({ recording }: StreamResource, used: AnyMemoryResource | HandleResource): Ordering | undefined =>
  recording === undefined ? used.ordering : recording.orderingOf(used)

const accessOperation = "CudaMemory.access"

const begin = (
  core: Core,
  accesses: WeakMap<MemoryAccess, Access>,
  access: MemoryAccess
): Effect.Effect<void, CudaError> => {
  const refused = refuseAccess(core, access)
  if (refused !== undefined) return refused
  if (accesses.has(access)) {
    return refuseDescribed(
      accessOperation,
      "access",
      "an access that has already begun",
      "an access that has not begun"
    )
  }
  const stream = ownStream(access.stream)
  const { markers } = stream.recording ?? core.backend
  const parts = partsOf(stream, access.reads, access.writes)
  const own = new Access(trackOf(core, stream), parts, openOf(accesses, access.outer))
  accesses.set(access, own)
  const start = () => {
    const used = useAll([...access.reads, ...access.writes].map(({ memory }) => ownMemory(memory)), stream)
    for (const handle of handlesOf(access.handles)) handle.usedOn(stream)
    const status = used === success ? own.begin(markers) : used
    return status === success ? Effect.void : core.fail(accessOperation, status, stream)
  }
  if (!own.isBlocked) return start()
  return Effect.andThen(awaitTurn(core, own, stream), Effect.suspend(() => refuseAccess(core, access) ?? start()))
}

/** Suspends until the accesses that must end first have ended. */
const awaitTurn = (core: Core, access: Access, stream: StreamResource): Effect.Effect<void, CudaError> =>
  core.wait(accessOperation, stream.deviceIndex, `earlier accesses, on ${stream}`, (onDone) => {
    if (!access.isBlocked) onDone(success)
    access.onTurn = () => onDone(success)
    return () => {
      access.onTurn = undefined
    }
  })

const openOf = (accesses: WeakMap<MemoryAccess, Access>, innermost: MemoryAccess | undefined): ReadonlySet<Access> => {
  const open = new Set<Access>()
  for (let at = innermost; at !== undefined; at = at.outer) {
    const own = accesses.get(at)
    if (own !== undefined) open.add(own)
  }
  return open
}

const refuseAccess = (core: Core, access: MemoryAccess): Refusal => {
  const { backend } = core
  const stream = ownStream(access.stream)
  const ranges = [...access.reads, ...access.writes]
  const memories = ranges.map(({ memory }) => ownMemory(memory))
  const handles = handlesOf(access.handles)
  if (
    unusable(backend, stream) || memories.some((memory) => unusableMemory(backend, memory)) ||
    handles.some((handle) => unusable(backend, handle))
  ) {
    return refuseResource(accessOperation, backend, stream, ...handles, ...memories)
  }
  const named = (ranges: ReadonlyArray<MemoryRange>, name: string) =>
    ranges.map((range, index) => refuseRange(accessOperation, `${name}[${index}]`, range))
  return [...named(access.reads, "reads"), ...named(access.writes, "writes")].find((refused) =>
    refused !== undefined
  ) ??
    (core.recordings === 0 ? undefined : refuseElsewhere(accessOperation, stream))
}

const end = (
  core: Core,
  accesses: WeakMap<MemoryAccess, Access>,
  access: MemoryAccess
): Effect.Effect<void, CudaError> => {
  const own = accesses.get(access)
  if (own === undefined) return Effect.void
  accesses.delete(access)
  const stream = ownStream(access.stream)
  const status = own.end((stream.recording ?? core.backend).markers)
  return status === success ? Effect.void : core.fail(accessOperation, status, stream)
}

const synchronize = (core: Core, range: MemoryRange): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.synchronize"
  const memory = ownMemory(range.memory)
  if (unusableMemory(core.backend, memory)) return refuseResource(operation, core.backend, memory)
  const { ordering } = memory
  const inside = core.recordings === 0 ? undefined : refuseWaiting(operation)
  if (inside !== undefined) return inside
  if (ordering === undefined) {
    return refuseArgument(operation, "buffer", memory, "an ordered buffer, allocated with { ordered: true }")
  }
  const refused = refuseRange(operation, "buffer", range)
  if (refused !== undefined) return refused
  const part = { ordering, from: range.offset, to: range.offset + range.byteLength, writes: true }
  const deviceIndex = memory.kind === "device" ? memory.deviceIndex : 0
  return core.wait(operation, deviceIndex, String(memory), (onDone, options) => {
    const marks = marksOfPart(part, core.backend.markers)
    if (typeof marks !== "number") return watchMarks(core, marks)(onDone, options)
    onDone(marks)
    return () => {}
  })
}

/** Watches marks, and releases them when the watch ends. */
const watchMarks = (core: Core, marks: ReadonlyArray<Mark>): Watch => (onDone, options) => {
  let isOver = false
  const finish = () => {
    if (!isOver) { for (const mark of marks) mark.release() }
    isOver = true
  }
  const watch = watchAll(marks.map((mark) => watchMark(core, mark)))
  const cancel = watch((status, stage) => {
    finish()
    onDone(status, stage)
  }, options)
  return () => {
    cancel()
    finish()
  }
}

const watchMark = (core: Core, { marker }: Mark): Watch => (onDone, options) => {
  const status = core.backend.markers.query(marker)
  if (status === notReady) return core.backend.markers.watch(marker, onDone, options)
  onDone(status)
  return () => {}
}
