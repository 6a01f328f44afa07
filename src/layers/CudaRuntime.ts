/**
 * The service behind every module of this library, with one member per CUDA operation. There is no other access to a GPU.
 *
 * Programs use the modules (`CudaStream`, `CudaEvent`, `CudaMemory`, …). Use this interface to implement another
 * runtime, or a layer around one that observes, checks or changes what programs do. Depends only on the failures and on
 * the names in `cuda/`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { AccessOperations } from "./runtime/accesses.ts"
import type { ArrayWatch, CopyOperations } from "./runtime/copies.ts"
import type { DeviceOperations, DeviceProperties } from "./runtime/devices.ts"
import type { EventOperations } from "./runtime/events.ts"
import type { GraphOperations, RecordingRef } from "./runtime/graphs.ts"
import type { GrowableOperations } from "./runtime/growable.ts"
import type { InterprocessOperations } from "./runtime/interprocess.ts"
import type { KernelOperations } from "./runtime/kernels.ts"
import type { LibraryOperations } from "./runtime/libraries.ts"
import type { ManagedOperations } from "./runtime/managed.ts"
import type { MemoryOperations, MemoryRange } from "./runtime/memory.ts"
import type { ModuleOperations } from "./runtime/modules.ts"
import type { PartitionOperations } from "./runtime/partitions.ts"
import type { PinnedOperations } from "./runtime/pinned.ts"
import type { PoolOperations } from "./runtime/pools.ts"
import type { ProfilerOperations } from "./runtime/profiler.ts"
import type { ProgramOperations } from "./runtime/programs.ts"
import type { StreamOperations, StreamRef } from "./runtime/streams.ts"

export type * from "./runtime/accesses.ts"
export type * from "./runtime/copies.ts"
export type * from "./runtime/devices.ts"
export type * from "./runtime/events.ts"
export * from "./runtime/graphs.ts"
export type * from "./runtime/growable.ts"
export type * from "./runtime/interprocess.ts"
export type * from "./runtime/kernels.ts"
export type * from "./runtime/libraries.ts"
export type * from "./runtime/managed.ts"
export type * from "./runtime/memory.ts"
export type * from "./runtime/modules.ts"
export * from "./runtime/operations.ts"
export type * from "./runtime/partitions.ts"
export type * from "./runtime/pinned.ts"
export type * from "./runtime/pools.ts"
export type * from "./runtime/profiler.ts"
export type * from "./runtime/programs.ts"
export type * from "./runtime/resources.ts"
export * from "./runtime/streams.ts"
export * from "./runtime/waiting.ts"

/**
 * The resources that a runtime currently holds. All counts are zero once every scope has closed.
 *
 * @category models
 * @since 0.1.0
 */
export interface LiveResources {
  /** Owned streams, including pooled ones. */
  readonly streams: number
  readonly events: number
  readonly deviceBuffers: number
  readonly deviceBytes: number
  readonly hostBuffers: number
  readonly hostBytes: number
  readonly modules: number
  /** Executable graphs. */
  readonly graphs: number
  /** Pools created by programs. */
  readonly pools: number
  /** Partitions of multiprocessors. */
  readonly partitions: number
  /** Handles of libraries. */
  readonly handles: number
  /** Fibers waiting for the GPU. */
  readonly waits: number
}

/**
 * The operations. All are lazy, can run any number of times, and check their arguments: a released resource or one of
 * another runtime is a failure.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaRuntimeService
  extends
    DeviceOperations,
    StreamOperations,
    PartitionOperations,
    EventOperations,
    MemoryOperations,
    PinnedOperations,
    ManagedOperations,
    GrowableOperations,
    CopyOperations,
    AccessOperations,
    PoolOperations,
    InterprocessOperations,
    ModuleOperations,
    KernelOperations,
    GraphOperations,
    LibraryOperations,
    ProfilerOperations,
    ProgramOperations
{
  readonly kind: "native" | "simulated"
  /** Identifies the runtime that a handle belongs to. A layer around a runtime keeps it. */
  readonly identity: object
  /** The recording whose streams and memory this runtime makes; undefined outside recordings. */
  readonly recording: RecordingRef | undefined
  /**
   * Called when the program takes the bytes of pinned or managed memory, or with the operation `address`, the address of any memory;
   * undefined if no layer looks at that.
   */
  readonly hostAccess: ((range: MemoryRange, operation: string) => void) | undefined
  /** Called when an operation begins to copy an array of the program, piece by piece; undefined if no layer looks at that. */
  readonly watchArray: ((operation: string, stream: StreamRef) => ArrayWatch) | undefined
  readonly driverVersion: number
  readonly devices: ReadonlyArray<DeviceProperties>
  /** The resources that the runtime currently holds. */
  readonly liveResources: Effect.Effect<LiveResources>
}

/**
 * The runtime, provided by a layer: `NativeRuntime.layer`, `SimulatedRuntime.layer` or `AutoRuntime.layer`.
 *
 * **Example** (What the runtime holds)
 *
 * ```ts
 * import { CudaRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const live = Effect.flatMap(CudaRuntime.CudaRuntime, (runtime) => runtime.liveResources)
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class CudaRuntime extends Context.Service<CudaRuntime, CudaRuntimeService>()(
  "effect-cuda/CudaRuntime"
) {}
