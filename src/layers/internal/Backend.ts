/**
 * What differs between runtimes: the driver's calls, as plain functions that answer with the driver's status codes. The
 * shared `Runtime` puts checks, lifetimes, failures and waiting around them, so that every runtime means the same.
 *
 * A call that yields a value leaves it in `result` (or in the field its comment names) when its status is 0.
 */
import type * as Effect from "effect/Effect"
import type { DeviceAttribute, KernelAttribute, MemoryAdvice } from "../../cuda/flags.ts"
import type {
  BlockSuggestion,
  DeviceProperties,
  MemoryInfo,
  MemoryLocation,
  MemoryPoolOptions,
  MemoryPoolStatistics,
  ModuleOptions,
  PriorityRange,
  WaitOptions
} from "../CudaRuntime.ts"
import type { Arguments } from "./arguments.ts"
import type { LaunchShape } from "./launches.ts"
import type { KernelCode, KernelResource, ModuleResource } from "./modules.ts"
import type {
  AnyMemoryResource,
  DeviceMemoryResource,
  EventResource,
  HostMemoryResource,
  ManagedMemoryResource,
  MemoryPoolResource,
  Owner,
  StreamResource
} from "./resources.ts"

/** The status of a watch that can never end, which no driver returns. */
export const neverFinishes = -1

/** What found the end of a wait: polling, a wake-up by the GPU, a timer, or the clock of a simulated device. */
export type WaitStage = "poll" | "wake" | "timer" | "clock"

/** Told once how a wait ended: with 0, the status of a fault, or `neverFinishes`. No stage means at once. */
export type OnDone = (status: number, stage?: WaitStage) => void

/** How a call that takes its time failed. */
export interface DriverFailure {
  readonly call: string
  readonly status: number
  /** What the driver's compiler said. */
  readonly log?: string | undefined
}

/** Gives up a wait. Harmless after its end. */
export type Cancel = () => void

/** How a copy's two ends look to the driver. */
export interface Transfer {
  readonly to: AnyMemoryResource
  readonly toOffset: number
  readonly from: AnyMemoryResource
  readonly fromOffset: number
  readonly byteLength: number
}

/** A copy of rows. */
export interface RowsTransfer extends Omit<Transfer, "byteLength"> {
  readonly toPitch: number
  readonly fromPitch: number
  /** Bytes of a row. */
  readonly width: number
  /** How many rows. */
  readonly height: number
}

/** A point in the work of a stream, for the ordering of buffers; each backend has its own kind. */
export interface Marker {
  readonly device: number
}

export interface Backend extends Owner {
  readonly driverVersion: number
  readonly devices: ReadonlyArray<DeviceProperties>
  /** The driver's call that the last status came from. */
  call: string
  /** What the last creating call made. */
  stream: StreamResource | undefined
  event: EventResource | undefined
  memory: DeviceMemoryResource | undefined
  managed: ManagedMemoryResource | undefined
  pool: MemoryPoolResource | undefined
  marker: Marker | undefined
  code: KernelCode | undefined
  /** Set when work fails of which a part has been enqueued already. */
  enqueuedPart: boolean
  /** What the last reading call read. */
  result: number

  /** The driver's own words for a status that the table lacks, or what keeps a wait from ever ending. */
  readonly describeStatus: (status: number) => { readonly name: string; readonly description: string } | undefined

  /** Makes a device usable. Runs once per device, off the JS thread where that can take long. */
  readonly openDevice: (device: number) => Effect.Effect<void, DriverFailure>
  readonly priorityRange: (device: number) => PriorityRange
  readonly attribute: (device: number, attribute: DeviceAttribute) => number
  readonly memoryInfo: (device: number) => number
  /** After `memoryInfo`. */
  readonly memoryInfoResult: MemoryInfo
  readonly canAccessPeer: (device: number, peer: number) => number

  readonly streamCreate: (device: number, priority: number, nonBlocking: boolean) => number
  readonly streamDefault: (device: number, mode: "legacy" | "perThread") => number
  readonly streamFromHandle: (device: number, handle: number) => number
  readonly streamDestroy: (stream: StreamResource) => number
  readonly streamQuery: (stream: StreamResource) => number
  readonly streamWaitEvent: (stream: StreamResource, event: EventResource) => number
  /** One record on `from`, which every branch waits for. */
  readonly streamFork: (from: StreamResource, branches: ReadonlyArray<StreamResource>) => number

  readonly eventCreate: (device: number, flags: number) => number
  readonly eventDestroy: (event: EventResource) => number
  readonly eventRecord: (event: EventResource, stream: StreamResource) => number
  readonly eventQuery: (event: EventResource) => number
  readonly eventElapsedTime: (start: EventResource, end: EventResource) => number
  readonly eventIpcHandle: (event: EventResource, into: Uint8Array) => number
  readonly eventFromIpcHandle: (device: number, handle: Uint8Array) => number

  /** From a pool, or the device's own; among the work of a stream, or to be ready for all after `watchAllocation`. */
  readonly memoryAllocate: (
    device: number,
    byteLength: number,
    pool: MemoryPoolResource | undefined,
    stream: StreamResource | undefined
  ) => number
  /** In `managed`. */
  readonly managedAllocate: (device: number, byteLength: number) => number
  /** Enqueues the release behind the work of the buffer's users. */
  readonly memoryFree: (memory: DeviceMemoryResource) => number
  readonly hostAllocate: (byteLength: number) => Effect.Effect<HostMemoryResource, DriverFailure>
  /** Takes the memory from its views at once, and back into use once the work of its users is done. */
  readonly hostFree: (memory: HostMemoryResource) => number
  readonly memoryCopy: (transfer: Transfer, stream: StreamResource) => number
  readonly memoryFill: (
    memory: DeviceMemoryResource,
    offset: number,
    value: number,
    bits: 8 | 16 | 32,
    count: number,
    stream: StreamResource
  ) => number

  readonly memoryCopyRows: (transfer: RowsTransfer, stream: StreamResource) => number
  /** Copies in no order among each other. */
  readonly memoryCopyBatch: (transfers: ReadonlyArray<Transfer>, stream: StreamResource) => number
  /** How many bytes a call of `memoryPrefetch` may be about, so that it holds its thread for about a millisecond. */
  readonly prefetchPiece: (location: MemoryLocation) => number
  readonly memoryPrefetch: (
    memory: ManagedMemoryResource,
    offset: number,
    byteLength: number,
    location: MemoryLocation,
    stream: StreamResource
  ) => number
  readonly memoryAdvise: (
    memory: ManagedMemoryResource,
    offset: number,
    byteLength: number,
    advice: MemoryAdvice,
    location: MemoryLocation
  ) => number

  readonly poolCreate: (device: number, options: MemoryPoolOptions) => number
  /** The pool that the device's memory is allocated from by default; always the same. */
  readonly poolOfDevice: (device: number) => MemoryPoolResource
  readonly poolDestroy: (pool: MemoryPoolResource) => number
  readonly poolStatistics: (pool: MemoryPoolResource) => number
  /** After `poolStatistics`. */
  readonly poolStatisticsResult: MemoryPoolStatistics
  readonly poolResetHighWater: (pool: MemoryPoolResource) => number
  readonly poolSetReleaseThreshold: (pool: MemoryPoolResource, bytes: number) => number
  /** Gives back what is free beyond some bytes; after `watchReleases`. */
  readonly poolTrim: (pool: MemoryPoolResource, keepBytes: number) => number

  /** Makes a marker behind what a stream holds now. */
  readonly markerRecord: (stream: StreamResource) => number
  readonly markerWait: (stream: StreamResource, marker: Marker) => number
  readonly markerQuery: (marker: Marker) => number
  /** Takes a marker back for another use. Streams that were made to wait for it still do. */
  readonly markerRelease: (marker: Marker) => void

  /** Loads an image, off the JS thread. Given up, what comes of it is unloaded. */
  readonly moduleLoad: (image: Uint8Array, options: ModuleOptions) => Effect.Effect<ModuleResource, DriverFailure>
  /** Unloads a module: at once, or when that waits for nothing any more. */
  readonly moduleUnload: (module: ModuleResource) => number
  /** Finds a global variable; in `memory`. */
  readonly globalFind: (module: ModuleResource, name: string, device: number) => number
  /** Finds a kernel; in `code`. */
  readonly kernelFind: (module: ModuleResource, name: string) => number
  /** Loads a kernel's code into a device, after whatever runs there. */
  readonly kernelLoad: (code: KernelCode, device: number) => number
  readonly kernelAttribute: (code: KernelCode, attribute: KernelAttribute, device: number) => number
  readonly kernelSetAttribute: (
    code: KernelCode,
    attribute: KernelAttribute,
    value: number,
    device: number
  ) => number
  readonly kernelActiveBlocks: (code: KernelCode, threads: number, sharedBytes: number, device: number) => number
  readonly kernelBestBlock: (code: KernelCode, sharedBytes: number, maxThreads: number, device: number) => number
  /** After `kernelBestBlock`. */
  readonly blockSuggestion: BlockSuggestion
  readonly kernelActiveClusters: (code: KernelCode, shape: LaunchShape, device: number) => number
  readonly kernelMaxCluster: (code: KernelCode, shape: LaunchShape, device: number) => number
  /** Where `kernelLaunch` will find arguments, for as long as they live. */
  readonly argumentTable: (args: Arguments) => number
  /** With the arguments that are packed now. */
  readonly kernelLaunch: (kernel: KernelResource, shape: LaunchShape, stream: StreamResource) => number
  /** Whether no stream of a device holds work, so that loading code waits for nothing. */
  readonly isIdle: (device: number) => boolean
  /** Tells when a device is idle, in the turn in which that is found. */
  readonly watchIdle: (device: number, onDone: OnDone) => Cancel

  /** Tells when a marker is reached; it is not released before that. */
  readonly watchMarker: (marker: Marker, onDone: OnDone, options?: WaitOptions) => Cancel
  /** Tells when the event's current record is done. */
  readonly watchEvent: (event: EventResource, onDone: OnDone, options?: WaitOptions) => Cancel
  /** Tells when what the stream holds now is done. */
  readonly watchStream: (stream: StreamResource, onDone: OnDone, options?: WaitOptions) => Cancel
  /** Whether a device's fresh allocations can be used on every stream. */
  readonly allocationQuery: (device: number) => number
  /** Tells when a device's fresh allocations can be used on every stream. */
  readonly watchAllocation: (device: number, onDone: OnDone) => Cancel
  /** Tells when every release enqueued so far on a device has happened. */
  readonly watchReleases: (device: number, onDone: OnDone) => Cancel
  /** Ends the waits whose work is done, without waiting for a turn of theirs. */
  readonly settle: () => void

  /** Gives back everything the driver still holds for this backend; no other call follows. */
  readonly close: Effect.Effect<void>
}
