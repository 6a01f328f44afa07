/**
 * Managed memory: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { memoryAdvice } from "../../cuda/flags.ts"
import type { MemoryAdvice } from "../../cuda/flags.ts"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryLocation, MemoryOptions, MemoryRange } from "../CudaRuntime.ts"
import type { ManagedOperations } from "../runtime/managed.ts"
import { inBytes } from "../runtime/words.ts"
import { enqueueUsing } from "./accesses.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import { allocationError, refuseByteLength, withOptions } from "./memory.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { refuseElsewhere, refuseInside, refuseToRecord } from "./recordings.ts"
import { ManagedMemoryResource, ownMemory, ownStream, unusable, unusableMemory } from "./resources.ts"
import type { AnyMemoryResource, StreamResource } from "./resources.ts"

export interface ManagedBackend {
  /** The memory made by `allocate`. */
  readonly allocated: ManagedMemoryResource | undefined
  readonly allocate: (deviceIndex: number, byteLength: number) => number
  /** The most bytes that one `prefetch` call should move, so that it blocks its thread for about a millisecond. */
  readonly prefetchPiece: (location: MemoryLocation) => number
  readonly prefetch: (
    memory: ManagedMemoryResource,
    offset: number,
    byteLength: number,
    location: MemoryLocation,
    stream: StreamResource
  ) => number
  readonly advise: (
    memory: ManagedMemoryResource,
    offset: number,
    byteLength: number,
    advice: MemoryAdvice,
    location: MemoryLocation
  ) => number
}

export const managedOperations = (core: Core): ManagedOperations => ({
  managedAllocate: (device, byteLength, options = {}) =>
    Effect.uninterruptible(
      core.onDevice("CudaMemory.allocateManaged", device, () => allocateManaged(core, device, byteLength, options))
    ),
  memoryPrefetch: (range, location, stream) => Effect.suspend(() => prefetch(core, range, location, ownStream(stream))),
  memoryAdvise: (range, advice, location) => Effect.suspend(() => advise(core, range, advice, location))
})

const allocateManaged = (core: Core, deviceIndex: number, byteLength: number, options: MemoryOptions) => {
  const operation = "CudaMemory.allocateManaged"
  const refused = refuseByteLength(operation, byteLength) ?? (core.recordings === 0
    ? undefined
    : refuseInside(operation, "managed memory belongs to no graph. Allocate it outside"))
  if (refused !== undefined) return refused
  const status = core.backend.managed.allocate(deviceIndex, byteLength)
  if (status !== success) {
    const subject = `${inBytes(byteLength)} of managed memory of device ${deviceIndex}`
    return Effect.fail(allocationError(core, operation, status, deviceIndex, subject, byteLength))
  }
  const memory = withOptions(core.backend.managed.allocated!, options)
  core.deviceMemory.add(memory)
  return Effect.succeed(memory)
}

/** Refuses unusable memory, a range outside it, and a location that does not exist. */
const refuse = (core: Core, operation: string, range: MemoryRange, location: MemoryLocation): Refusal => {
  const memory = ownMemory(range.memory)
  if (unusableMemory(core.backend, memory)) return refuseResource(operation, core.backend, memory)
  return refuseRange(operation, "buffer", range) ??
    (location === "host" ? undefined : core.refuseDevice(operation, "location", location))
}

const refuseKind = (operation: string, memory: AnyMemoryResource) =>
  refuseArgument(operation, "buffer", memory, "managed memory, allocated with CudaMemory.allocateManaged")

/**
 * Prefetches a range in pieces. Each call blocks the calling thread, so the event loop gets a turn between two pieces.
 */
const prefetch = (
  core: Core,
  range: MemoryRange,
  location: MemoryLocation,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.prefetch"
  const refused = refuse(core, operation, range, location)
  if (refused !== undefined) return refused
  const most = core.backend.managed.prefetchPiece(location)
  let done = 0
  const piece = Effect.suspend(() => {
    const next = { ...range, offset: range.offset + done, byteLength: Math.min(most, range.byteLength - done) }
    done += next.byteLength
    return prefetchPiece(core, operation, next, location, stream)
  })
  const rest = Effect.whileLoop({
    while: () => done < range.byteLength,
    body: () => Effect.andThen(nextTurn, piece),
    step: () => {}
  })
  return Effect.andThen(piece, rest)
}

const nextTurn: Effect.Effect<void> = Effect.callback((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

const prefetchPiece = (
  core: Core,
  operation: string,
  range: MemoryRange,
  location: MemoryLocation,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const { backend } = core
  const refused = refuse(core, operation, range, location) ??
    (unusable(backend, stream) ? refuseResource(operation, backend, stream) : undefined) ??
    (core.recordings === 0 ? undefined : refusePrefetch(operation, stream))
  if (refused !== undefined) return refused
  const memory = ownMemory(range.memory)
  if (!(memory instanceof ManagedMemoryResource)) return refuseKind(operation, memory)
  if (range.byteLength === 0) return Effect.void
  const { byteLength, offset } = range
  const call = () => backend.managed.prefetch(memory, offset, byteLength, location, stream)
  const status = enqueueUsing(core, stream, [range], [], call)
  return status === success ? Effect.void : core.fail(operation, status, memory)
}

/** The driver has no node for it. */
const refusePrefetch = (operation: string, stream: StreamResource) =>
  stream.recording === undefined
    ? refuseElsewhere(operation, stream)
    : refuseToRecord(operation, "graphs cannot prefetch. Prefetch on the stream before the graph is launched")

const advise = (
  core: Core,
  range: MemoryRange,
  advice: MemoryAdvice,
  location: MemoryLocation
): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.advise"
  if (!Object.hasOwn(memoryAdvice, advice)) {
    return refuseArgument(operation, "advice", advice, "the name of a kind of advice")
  }
  const refused = refuse(core, operation, range, location)
  if (refused !== undefined) return refused
  const memory = ownMemory(range.memory)
  if (!(memory instanceof ManagedMemoryResource)) return refuseKind(operation, memory)
  if (range.byteLength === 0) return Effect.void
  const status = core.backend.managed.advise(memory, range.offset, range.byteLength, advice, location)
  return status === success ? Effect.void : core.fail(operation, status, memory)
}
