/**
 * The backend: what differs between runtimes. Plain functions that make the driver's calls and return its status codes, in one part per
 * capability; each part is declared beside the shared operations that use it. The shared operations add checks, lifetimes, failures
 * and waiting, so that a program means the same on every runtime.
 *
 * A call that yields a value leaves it in a field of its part, valid while its status is 0 and until the next call.
 */
import type * as Effect from "effect/Effect"
import type { MarkerBackend } from "./accesses.ts"
import type { CopyBackend } from "./copies.ts"
import type { DeviceBackend } from "./devices.ts"
import type { EventBackend } from "./events.ts"
import type { KernelBackend } from "./kernels.ts"
import type { ManagedBackend } from "./managed.ts"
import type { MemoryBackend } from "./memory.ts"
import type { ModuleBackend } from "./modules.ts"
import type { PinnedBackend } from "./pinned.ts"
import type { PoolBackend } from "./pools.ts"
import type { ProgramBackend } from "./programs.ts"
import type { Owner } from "./resources.ts"
import type { StreamBackend } from "./streams.ts"

/** What explains a status: sentences for the failure, and what was thrown. */
export interface Explanation {
  readonly detail: string
  readonly cause?: unknown
}

export interface Backend extends Owner {
  readonly driverVersion: number
  /** The driver call that the last status came from. */
  readonly call: string
  /** The driver's own words for a status that the table lacks, or why a wait can never end. */
  readonly describeStatus: (status: number) => { readonly name: string; readonly description: string } | undefined
  /** What is known beyond the status that was just returned. The driver itself never knows more. */
  readonly explain?: (status: number) => Explanation | undefined

  readonly devices: DeviceBackend
  readonly streams: StreamBackend
  readonly events: EventBackend
  readonly markers: MarkerBackend
  readonly memory: MemoryBackend
  readonly pinned: PinnedBackend
  readonly managed: ManagedBackend
  readonly copies: CopyBackend
  readonly pools: PoolBackend
  readonly modules: ModuleBackend
  readonly kernels: KernelBackend
  readonly programs: ProgramBackend

  /** Ends the waits whose work is done, without waiting for the next turn of the event loop. */
  readonly settle: () => void
  /** Releases everything the driver still holds for this backend. No call follows. */
  readonly close: Effect.Effect<void>
}
