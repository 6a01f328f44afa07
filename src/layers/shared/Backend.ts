/**
 * The backend: the part of a runtime that differs between a GPU and a simulated device. It consists of plain functions
 * that make driver calls and return their status codes, grouped by capability. Each group is declared next to the
 * shared operations that use it. The shared operations add argument checks, lifetimes, failures and waiting, so that a
 * program behaves the same on every runtime.
 *
 * A call that produces a value stores it in a field of its group. The field is valid if the status is 0, and until the
 * next call.
 */
import type * as Effect from "effect/Effect"
import type { MarkerBackend } from "./accesses.ts"
import type { CaptureBackend } from "./captures.ts"
import type { CopyBackend } from "./copies.ts"
import type { DeviceBackend } from "./devices.ts"
import type { EventBackend } from "./events.ts"
import type { GraphBackend } from "./graphNodes.ts"
import type { GrowableBackend } from "./growable.ts"
import type { InterprocessBackend } from "./interprocess.ts"
import type { KernelBackend } from "./kernels.ts"
import type { LibraryBackend } from "./libraries.ts"
import type { ManagedBackend } from "./managed.ts"
import type { MemoryBackend } from "./memory.ts"
import type { ModuleBackend } from "./modules.ts"
import type { PartitionBackend } from "./partitions.ts"
import type { PeerBackend } from "./peers.ts"
import type { PinnedBackend } from "./pinned.ts"
import type { PoolBackend } from "./pools.ts"
import type { ProfilerBackend } from "./profiler.ts"
import type { ProgramBackend } from "./programs.ts"
import type { Owner } from "./resources.ts"
import type { StreamBackend } from "./streams.ts"

/** An explanation of a status: sentences for the failure's message, and the exception behind it. */
export interface Explanation {
  readonly detail: string
  readonly cause?: unknown
}

export interface Backend extends Owner {
  readonly driverVersion: number
  /** The driver call that returned the last status. */
  readonly call: string
  /** Name and description of a status that the table lacks, from the driver; or the reason why a wait can never end. */
  readonly describeStatus: (status: number) => { readonly name: string; readonly description: string } | undefined
  /** Additional information on the last status. The real driver never has any. */
  readonly explain?: (status: number) => Explanation | undefined
  /** Notes that other native code has reported a fault. */
  readonly noteLost?: () => void

  readonly devices: DeviceBackend
  readonly streams: StreamBackend
  readonly events: EventBackend
  readonly markers: MarkerBackend
  readonly memory: MemoryBackend
  readonly pinned: PinnedBackend
  readonly managed: ManagedBackend
  readonly growable: GrowableBackend
  readonly copies: CopyBackend
  readonly pools: PoolBackend
  readonly peers: PeerBackend
  readonly interprocess: InterprocessBackend
  readonly modules: ModuleBackend
  readonly kernels: KernelBackend
  readonly graphs: GraphBackend
  readonly captures: CaptureBackend
  readonly libraries: LibraryBackend
  readonly partitions: PartitionBackend
  readonly profiler: ProfilerBackend
  readonly programs: ProgramBackend

  /** Ends the waits whose work has finished, without waiting for the next turn of the event loop. */
  readonly settle: () => void
  /** Releases everything that this backend still holds in the driver. No call may follow. */
  readonly close: Effect.Effect<void>
}
