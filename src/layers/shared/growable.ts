/**
 * Device memory that grows without moving: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryOptions, MemoryRef } from "../CudaRuntime.ts"
import type { GrowableOperations } from "../runtime/growable.ts"
import { inBytes } from "../runtime/words.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseResource } from "./failures.ts"
import { allocationError, refuseByteLength, withOptions } from "./memory.ts"
import type { Refusal } from "./ranges.ts"
import { refuseInside } from "./recordings.ts"
import { GrowableMemoryResource, ownMemory, unusable } from "./resources.ts"
import { watchUsers } from "./waits.ts"

/** The most bytes that are mapped in one turn of the event loop, and returned at once. */
export const largestPiece = 64 * 2 ** 20

export interface GrowableBackend {
  /** The memory made by `reserve`. */
  readonly reserved: GrowableMemoryResource | undefined
  /** Reserves addresses. The granularity of the memory says in which steps it can grow. */
  readonly reserve: (deviceIndex: number, maxBytes: number) => number
  /** Puts memory behind the next addresses. Every stream can use it when the call returns. */
  readonly map: (memory: GrowableMemoryResource, byteLength: number) => number
  /** Takes away the memory behind the last addresses, which no work uses. The bytes are those of one `map`. */
  readonly unmap: (memory: GrowableMemoryResource, byteLength: number) => number
  /** Ends between pieces, so that mapping a lot of memory does not block the thread. */
  readonly turn: Effect.Effect<void>
}

export const growableOperations = (core: Core): GrowableOperations => ({
  memoryReserve: (device, maxBytes, options = {}) =>
    core.onDevice(reserveOperation, device, () => reserve(core, device, maxBytes, options)),
  memoryGrow: (ref, byteLength) =>
    resizing(core, growOperation, ref, byteLength, (memory) => grow(core, memory, byteLength)),
  memoryShrink: (ref, byteLength) =>
    resizing(core, shrinkOperation, ref, byteLength, (memory) => shrink(core, memory, byteLength))
})

const reserveOperation = "CudaMemory.growable"
const growOperation = "CudaMemory.grow"
const shrinkOperation = "CudaMemory.shrink"

const reserve = (core: Core, deviceIndex: number, maxBytes: number, options: MemoryOptions) => {
  const refused = refuseByteLength(reserveOperation, maxBytes, "maxBytes") ?? (core.recordings === 0
    ? undefined
    : refuseInside(reserveOperation, "growable memory belongs to no graph. Make it outside"))
  if (refused !== undefined) return refused
  const status = core.backend.growable.reserve(deviceIndex, maxBytes)
  if (status !== success) {
    const subject = `${inBytes(maxBytes)} of addresses on device ${deviceIndex}`
    return core.failOn(reserveOperation, status, deviceIndex, subject)
  }
  const memory = withOptions(core.backend.growable.reserved!, options)
  core.deviceMemory.add(memory)
  return Effect.succeed(memory)
}

/**
 * Changes the size of memory. Changes of the same memory take turns, and the runtime is not released meanwhile, because its release would
 * end their waits.
 */
const resizing = (
  core: Core,
  operation: string,
  ref: MemoryRef,
  byteLength: number,
  change: (memory: GrowableMemoryResource) => Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const memory = ownMemory(ref)
    const refused = refuseGone(core, operation, memory)
    if (refused !== undefined) return refused
    if (!(memory instanceof GrowableMemoryResource)) {
      return refuseArgument(operation, "buffer", memory, "a buffer made with CudaMemory.growable")
    }
    const { maxBytes } = memory
    if (!Number.isSafeInteger(byteLength) || byteLength < 0 || byteLength > maxBytes) {
      return refuseArgument(
        operation,
        "byteLength",
        byteLength,
        `an integer from 0 to ${maxBytes}, the buffer's maximum`
      )
    }
    const changed = Effect.suspend(() => refuseGone(core, operation, memory) ?? change(memory))
    return core.acquiring.withPermit(memory.resizing.withPermit(changed))
  })

/** Refuses memory that was released, also while it was changing. */
const refuseGone = (core: Core, operation: string, memory: ReturnType<typeof ownMemory>): Refusal =>
  unusable(core.backend, memory) ? refuseResource(operation, core.backend, memory) : undefined

/** The new bytes count once all of them are there, so nobody has used them if the growth ends early. */
const grow = (core: Core, memory: GrowableMemoryResource, byteLength: number): Effect.Effect<void, CudaError> => {
  if (byteLength <= memory.byteLength) return Effect.void
  const piece = Effect.suspend(() => refuseGone(core, growOperation, memory) ?? mapPiece(core, memory, byteLength))
  const turn = Effect.suspend(() => memory.mappedBytes < byteLength ? core.backend.growable.turn : Effect.void)
  const pieces = Effect.whileLoop({
    while: () => memory.mappedBytes < byteLength,
    body: () => Effect.andThen(piece, turn),
    step: () => {}
  })
  const done = Effect.suspend(() => {
    const refused = refuseGone(core, growOperation, memory)
    if (refused === undefined) memory.byteLength = byteLength
    return refused ?? Effect.void
  })
  return Effect.onError(
    Effect.andThen(pieces, done),
    () => Effect.ignore(cut(core, growOperation, memory))
  )
}

const mapPiece = (core: Core, memory: GrowableMemoryResource, byteLength: number): Effect.Effect<void, CudaError> => {
  const { deviceIndex, granularity, mappedBytes } = memory
  const missing = Math.ceil((byteLength - mappedBytes) / granularity) * granularity
  const piece = Math.min(missing, Math.max(largestPiece, granularity))
  const status = core.backend.growable.map(memory, piece)
  if (status === success) {
    memory.pieces.push(piece)
    return Effect.void
  }
  const requested = byteLength - memory.byteLength
  const subject = `${inBytes(requested)} more for ${memory}`
  return Effect.fail(allocationError(core, growOperation, status, deviceIndex, subject, requested))
}

/** Returns the pieces that hold none of the bytes, the last one first. Work must not use them. A release returns all pieces itself. */
const cut = (core: Core, operation: string, memory: GrowableMemoryResource): Effect.Effect<void, CudaError> => {
  const hasSpare = () => memory.state === "live" && memory.spare !== undefined
  const piece = Effect.suspend((): Effect.Effect<void, CudaError> => {
    const bytes = memory.state === "live" ? memory.spare : undefined
    if (bytes === undefined) return Effect.void
    const status = core.backend.growable.unmap(memory, bytes)
    if (status !== success) return core.fail(operation, status, memory)
    memory.pieces.pop()
    return hasSpare() ? core.backend.growable.turn : Effect.void
  })
  return Effect.whileLoop({ while: hasSpare, body: () => piece, step: () => {} })
}

/** The bytes to return are refused at once, so that no work begins to use them while the rest is waited for. */
const shrink = (core: Core, memory: GrowableMemoryResource, byteLength: number): Effect.Effect<void, CudaError> => {
  const before = memory.byteLength
  if (byteLength >= before) return Effect.void
  memory.byteLength = byteLength
  const restore = Effect.sync(() => {
    memory.byteLength = before
  })
  const unused = memory.spare === undefined
    ? Effect.void
    : Effect.onError(whenUnused(core, memory), () => restore)
  return Effect.andThen(
    unused,
    Effect.suspend(() => refuseGone(core, shrinkOperation, memory) ?? cut(core, shrinkOperation, memory))
  )
}

/** Ends when the work that was enqueued so far no longer uses the memory. */
const whenUnused = (core: Core, memory: GrowableMemoryResource): Effect.Effect<void, CudaError> => {
  const { streams } = core.backend
  for (const user of memory.pendingUsers) {
    const status = streams.query(user)
    if (status === success) continue
    if (status !== notReady) return core.fail(shrinkOperation, status, memory)
    return core.wait(shrinkOperation, memory.deviceIndex, String(memory), watchUsers(streams, memory))
  }
  return Effect.void
}
