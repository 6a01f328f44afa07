/**
 * Pinned host memory: the shared operation, and the backend functions it uses.
 */
import * as Effect from "effect/Effect"
import { constants } from "node:buffer"
import type { PinnedOperations } from "../runtime/pinned.ts"
import { inBytes } from "../runtime/words.ts"
import type { Core } from "./Core.ts"
import { refuseByteLength, withOptions } from "./memory.ts"
import { refuseInside } from "./recordings.ts"
import type { HostMemoryResource } from "./resources.ts"
import type { DriverFailure } from "./waits.ts"

export interface PinnedBackend {
  readonly allocate: (byteLength: number) => Effect.Effect<HostMemoryResource, DriverFailure>
  /** Detaches the views immediately. The memory is reused once the work of the streams that used it has finished. */
  readonly free: (memory: HostMemoryResource) => number
}

export const pinnedOperations = (core: Core): PinnedOperations => ({
  hostAllocate: (byteLength, options = {}) =>
    Effect.uninterruptible(
      core.onDevice("CudaMemory.allocateHost", 0, () =>
        refuseByteLength("CudaMemory.allocateHost", byteLength) ??
          (core.recordings === 0 ? undefined : refuseInside("CudaMemory.allocateHost", staleHost)) ??
          Effect.mapBoth(core.acquiring.withPermit(core.backend.pinned.allocate(byteLength)), {
            onSuccess: (memory) => {
              core.hostMemory.add(memory)
              return withOptions(memory, options)
            },
            onFailure: ({ call, status }) =>
              core.error("CudaMemory.allocateHost", status, 0, describePinned(byteLength), call)
          }))
    )
})

const staleHost =
  "host memory that a program fills while it is recorded would be stale at the second launch. Allocate " +
  "pinned memory outside, and fill it before each launch"

/** A single array must cover all of the memory, so the maximum size of an array applies. */
const describePinned = (byteLength: number): string => {
  const { MAX_LENGTH: most } = constants
  const limit = byteLength > most ? `; an array has at most ${inBytes(most)}` : ""
  return `${inBytes(byteLength)} of pinned memory${limit}`
}
