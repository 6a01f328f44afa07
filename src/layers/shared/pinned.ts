/**
 * Pinned host memory: the operation of every runtime, and the part of the backend that it uses.
 */
import * as Effect from "effect/Effect"
import { constants } from "node:buffer"
import type { PinnedOperations } from "../runtime/pinned.ts"
import type { Core } from "./Core.ts"
import { refuseByteLength, withOptions } from "./memory.ts"
import type { HostMemoryResource } from "./resources.ts"
import type { DriverFailure } from "./waits.ts"

export interface PinnedBackend {
  readonly allocate: (byteLength: number) => Effect.Effect<HostMemoryResource, DriverFailure>
  /** Detaches the memory from its views immediately, and reuses it once the work of the streams that used it is done. */
  readonly free: (memory: HostMemoryResource) => number
}

export const pinnedOperations = (core: Core): PinnedOperations => ({
  hostAllocate: (byteLength, options = {}) =>
    Effect.uninterruptible(
      core.onDevice("CudaMemory.allocateHost", 0, () =>
        refuseByteLength("CudaMemory.allocateHost", byteLength) ??
          Effect.mapBoth(core.pinning.withPermit(core.backend.pinned.allocate(byteLength)), {
            onSuccess: (memory) => {
              core.hostMemory.add(memory)
              return withOptions(memory, options)
            },
            onFailure: ({ call, status }) =>
              core.error("CudaMemory.allocateHost", status, 0, describePinned(byteLength), call)
          }))
    )
})

/** JavaScript has to see all of the memory through one array, so the array's limit is the memory's. */
const describePinned = (byteLength: number): string => {
  const { MAX_LENGTH: most } = constants
  const limit = byteLength > most ? `; an array has at most ${most} bytes` : ""
  return `${byteLength} bytes of pinned memory${limit}`
}
