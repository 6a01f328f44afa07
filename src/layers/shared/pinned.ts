/**
 * Pinned host memory: the shared operation, and the backend functions it uses.
 */
import * as Effect from "effect/Effect"
import { constants } from "node:buffer"
import { types } from "node:util"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryOptions } from "../CudaRuntime.ts"
import type { PinnedOperations } from "../runtime/pinned.ts"
import { inBytes } from "../runtime/words.ts"
import type { Core } from "./Core.ts"
import { refuseArgument } from "./failures.ts"
import { refuseByteLength, withOptions } from "./memory.ts"
import { refuseInside } from "./recordings.ts"
import type { HostMemoryResource } from "./resources.ts"
import type { DriverFailure } from "./waits.ts"

export interface PinnedBackend {
  readonly allocate: (byteLength: number) => Effect.Effect<HostMemoryResource, DriverFailure>
  /** Pins memory of the program, or shares its pages with other memory for which they are pinned. */
  readonly pin: (bytes: Uint8Array<ArrayBuffer>) => Effect.Effect<HostMemoryResource, DriverFailure>
  /** Detaches the views immediately, except those of memory of the program. The memory is reused once the work of the streams that used it has finished. */
  readonly free: (memory: HostMemoryResource) => number
}

export const pinnedOperations = (core: Core): PinnedOperations => ({
  hostAllocate: (byteLength, options = {}) =>
    Effect.uninterruptible(
      core.onDevice("CudaMemory.allocateHost", 0, () =>
        refuseByteLength("CudaMemory.allocateHost", byteLength) ??
          (core.recordings === 0 ? undefined : refuseInside("CudaMemory.allocateHost", staleHost)) ??
          make(
            core,
            "CudaMemory.allocateHost",
            describePinned(byteLength),
            options,
            core.backend.pinned.allocate(byteLength)
          ))
    ),
  hostPin: (bytes, options = {}) =>
    Effect.uninterruptible(core.onDevice("CudaMemory.pin", 0, () => pin(core, bytes, options)))
})

const pin = (core: Core, bytes: Uint8Array, options: MemoryOptions): Effect.Effect<HostMemoryResource, CudaError> => {
  const operation = "CudaMemory.pin"
  const inside = core.recordings === 0 ? undefined : refuseInside(operation, staleHost)
  if (inside !== undefined) return inside
  if (!isPinnable(bytes)) {
    const expected = "an ArrayBuffer or a typed array, neither empty nor shared, resizable or transferred"
    return refuseArgument(operation, "memory", bytes, expected)
  }
  const subject = `${inBytes(bytes.byteLength)} of the program's memory`
  return make(core, operation, subject, options, core.backend.pinned.pin(bytes))
}

/** Makes pinned memory of the runtime, which is not released meanwhile. */
const make = (
  core: Core,
  operation: string,
  subject: string,
  options: MemoryOptions,
  pinned: Effect.Effect<HostMemoryResource, DriverFailure>
): Effect.Effect<HostMemoryResource, CudaError> => {
  const made = Effect.mapBoth(pinned, {
    onSuccess: (memory) => {
      core.hostMemory.add(memory)
      return withOptions(memory, options)
    },
    onFailure: ({ call, status }) => core.error(operation, status, 0, subject, call)
  })
  return core.acquiring.withPermit(Effect.suspend(() => core.refuseDevice(operation, "device", 0) ?? made))
}

/** Memory that can be resized can also lose pages while they are pinned. */
const isPinnable = (bytes: Uint8Array): bytes is Uint8Array<ArrayBuffer> =>
  bytes instanceof Uint8Array && bytes.byteLength > 0 && types.isArrayBuffer(bytes.buffer) &&
  !("resizable" in bytes.buffer && bytes.buffer.resizable === true)

const staleHost =
  "host memory that a program fills while it is recorded would be stale at the second launch. Allocate " +
  "pinned memory outside, and fill it before each launch"

/** A single array must cover all of the memory, so the maximum size of an array applies. */
const describePinned = (byteLength: number): string => {
  const { MAX_LENGTH: most } = constants
  const limit = byteLength > most ? `; an array has at most ${inBytes(most)}` : ""
  return `${inBytes(byteLength)} of pinned memory${limit}`
}
