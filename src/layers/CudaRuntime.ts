/**
 * The only door to a GPU: a service with one member per CUDA operation, which every module of this library depends on.
 *
 * Programs use the modules (`CudaStream`, `CudaEvent`, `CudaMemory`, …); this interface is for those who write another
 * runtime, or a layer around one that watches, checks or changes what programs do. Depends on nothing but the failures
 * and the names of `cuda/`.
 *
 * @since 0.1.0
 */
import type * as Brand from "effect/Brand"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { DeviceAttribute, KernelAttribute, MemoryAdvice, SettableKernelAttribute } from "../cuda/flags.ts"
import type {
  ArrayKind,
  ParameterKind,
  PointerKind,
  ScalarKind,
  ScalarName,
  ScalarValues,
  StructKind
} from "../cuda/parameters.ts"
import type { CudaError } from "../CudaError.ts"

/**
 * A `CUstream` as a number. 1 is the legacy default stream and 2 the per-thread one; no handle means "none".
 *
 * @category models
 * @since 0.1.0
 */
export type StreamHandle = Brand.Branded<number, "effect-cuda/StreamHandle">

/**
 * A `CUevent` as a number.
 *
 * @category models
 * @since 0.1.0
 */
export type EventHandle = Brand.Branded<number, "effect-cuda/EventHandle">

/**
 * An address of device memory (`CUdeviceptr`) or of pinned host memory.
 *
 * @category models
 * @since 0.1.0
 */
export type Address = Brand.Branded<number, "effect-cuda/Address">

/**
 * Whether a resource can be used: `closing` while its release waits for the work that uses it.
 *
 * @category models
 * @since 0.1.0
 */
export type ResourceState = "live" | "closing" | "released"

/**
 * A device as the driver describes it.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceProperties {
  /** The device's number, from 0. */
  readonly ordinal: number
  readonly name: string
  /** The driver's form: `GPU-` and 32 hexadecimal digits in five groups. */
  readonly uuid: string
  readonly computeCapability: { readonly major: number; readonly minor: number }
  /** Memory of the device in bytes. */
  readonly totalMemory: number
  /** `domain:bus:device.function`, in hexadecimal. */
  readonly pciBusId: string
}

/**
 * Free and total memory of a device, in bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryInfo {
  readonly free: number
  readonly total: number
}

/**
 * The priorities of a device's streams; a lower number is a higher priority.
 *
 * @category models
 * @since 0.1.0
 */
export interface PriorityRange {
  readonly least: number
  readonly greatest: number
}

/**
 * A priority: a number of the device's range (lower goes first), `"high"` for its greatest or `"low"` for its least.
 *
 * @category models
 * @since 0.1.0
 */
export type Priority = number | "high" | "low"

/**
 * What a stream is to be.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions {
  readonly device: number
  readonly priority: Priority
  /** What a number outside the device's range means: a failure (the default), or the nearest priority there is. */
  readonly outOfRange?: "fail" | "clamp" | undefined
  readonly nonBlocking: boolean
}

/**
 * The number of a priority on a device. What is no number of the range stays what it is, unless it is to be clamped.
 *
 * @category models
 * @since 0.1.0
 */
export const resolvePriority = (
  range: PriorityRange,
  priority: Priority,
  outOfRange: "fail" | "clamp" = "fail"
): number => {
  if (priority === "high") return range.greatest
  if (priority === "low") return range.least
  return outOfRange === "clamp" ? Math.max(range.greatest, Math.min(range.least, priority)) : priority
}

/**
 * A stream of a runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamRef {
  readonly handle: StreamHandle
  /** The driver's id of the stream; 0 for a legacy default stream. Handles are reused, ids are not. */
  readonly id: number
  readonly device: number
  readonly priority: number
  /** False for streams that order themselves against the legacy default stream. */
  readonly nonBlocking: boolean
  /** Who destroys it: the runtime (`owned`), or nobody here. */
  readonly origin: "owned" | "default" | "foreign"
  readonly state: ResourceState
}

/**
 * An event of a runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface EventRef {
  readonly handle: EventHandle
  readonly device: number
  /** `CUevent_flags`: 1 blocking sync, 2 timing off, 4 interprocess. */
  readonly flags: number
  readonly state: ResourceState
}

/**
 * Memory of a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceMemoryRef {
  readonly kind: "device"
  readonly address: Address
  readonly byteLength: number
  /** Whether its uses on different streams wait for each other by themselves. */
  readonly isOrdered: boolean
  /** Whether its pages move between the devices and the host, all of which can use it. */
  readonly isManaged: boolean
  /** Where it was allocated. */
  readonly device: number
  readonly state: ResourceState
}

/**
 * Managed memory: that of every device and of the host.
 *
 * @category models
 * @since 0.1.0
 */
export interface ManagedMemoryRef extends DeviceMemoryRef {
  readonly isManaged: true
  /** The memory itself, seen by the host; empty once it is released. Reading and writing it moves pages. */
  readonly bytes: Uint8Array<ArrayBuffer>
}

/**
 * A pool that device memory is allocated from (`CUmemoryPool`).
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolRef {
  readonly handle: number
  readonly device: number
  /** Who destroys it: a scope (`owned`), or the runtime at its end. */
  readonly origin: "owned" | "runtime"
  readonly state: ResourceState
}

/**
 * How a pool is to be.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolOptions {
  /** The most bytes that the pool holds; `Infinity` for as many as there are. */
  readonly maxBytes: number
  /** Bytes that the pool keeps when nobody uses them, rather than give them back to the system. */
  readonly releaseThreshold: number
  /** Whether an allocation may take what another stream has freed, where events order the two. */
  readonly reuseFollowEventDependencies: boolean
  /** Whether an allocation may take what is free already, without any order between the streams. */
  readonly reuseAllowOpportunistic: boolean
  /** Whether an allocation may be made to wait for what another stream is about to free. */
  readonly reuseAllowInternalDependencies: boolean
}

/**
 * What a pool holds, in bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryPoolStatistics {
  /** Memory of the device that the pool holds, in use or not. */
  readonly reservedBytes: number
  /** The most it held since its start or the last reset. */
  readonly reservedBytesHigh: number
  /** Memory of it that is allocated. */
  readonly usedBytes: number
  /** The most that was allocated since its start or the last reset. */
  readonly usedBytesHigh: number
}

/**
 * Where managed memory is, or is used: on the host, or on the device of a number.
 *
 * @category models
 * @since 0.1.0
 */
export type MemoryLocation = "host" | number

/**
 * Pinned memory of the host.
 *
 * @category models
 * @since 0.1.0
 */
export interface HostMemoryRef {
  readonly kind: "host"
  readonly address: Address
  readonly byteLength: number
  /** Whether its uses on different streams wait for each other by themselves. */
  readonly isOrdered: boolean
  readonly state: ResourceState
  /** The memory itself. Detached by the release: a view kept longer has length 0. */
  readonly bytes: Uint8Array<ArrayBuffer>
}

/**
 * Memory that copies read and write.
 *
 * @category models
 * @since 0.1.0
 */
export type MemoryRef = DeviceMemoryRef | HostMemoryRef

/**
 * Bytes of a buffer: where they start and how many.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryRange {
  readonly memory: MemoryRef
  readonly offset: number
  readonly byteLength: number
}

/**
 * Rows of bytes in a buffer: where the first starts, and how far each is from the one before.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryRows extends MemoryRange {
  /** Bytes from the start of a row to that of the next. */
  readonly pitch: number
}

/**
 * A copy of a batch.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryTransfer {
  readonly to: MemoryRange
  readonly from: MemoryRange
}

/**
 * What memory is to be.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryOptions {
  /** Whether its uses on different streams wait for each other by themselves; false by default. */
  readonly ordered?: boolean | undefined
}

/**
 * What memory of a device is to be.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceMemoryOptions extends MemoryOptions {
  /** Default: the runtime's own pool of the device. */
  readonly pool?: MemoryPoolRef | undefined
  /**
   * The stream whose work it is allocated and released among. Other streams that use it wait for the allocation by
   * themselves. Without one, the memory is there for every stream when the allocation ends.
   */
  readonly stream?: StreamRef | undefined
}

/**
 * Work of a stream that the runtime does not know, and the memory that it uses. Each is one time of such work: it is
 * begun and ended once.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryAccess {
  readonly stream: StreamRef
  readonly reads: ReadonlyArray<MemoryRange>
  readonly writes: ReadonlyArray<MemoryRange>
  /** The access that this one is a part of: it may begin while that one goes on, whatever the two use. */
  readonly outer: MemoryAccess | undefined
}

/**
 * An image of code that was loaded.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModuleRef {
  /** The `CUlibrary`. */
  readonly handle: number
  /** Bytes of the image. */
  readonly byteLength: number
  readonly state: ResourceState
}

/**
 * A kernel of a module, with the parameters that it was said to have. It lives as long as its module.
 *
 * @category models
 * @since 0.1.0
 */
export interface KernelRef {
  readonly module: ModuleRef
  /** The `CUkernel`. */
  readonly handle: number
  readonly name: string
  readonly parameters: ReadonlyArray<ParameterKind>
}

/**
 * How a module is loaded.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModuleOptions {
  /** How long the loading of code into a device waits for the device to have no work, before the driver does, on this thread. */
  readonly patience: Duration.Duration
}

/**
 * What a pointer to a kernel's memory is given as: a buffer or a part of one.
 *
 * @category models
 * @since 0.1.0
 */
export interface PointerArgument {
  readonly buffer: { readonly ref: MemoryRef }
  readonly offset: number
  readonly byteLength: number
}

/**
 * An address that the runtime knows nothing of: not whether the device can use it, nor for how long.
 *
 * @category models
 * @since 0.1.0
 */
export interface RawAddress {
  readonly address: Address
}

/**
 * What an argument of a kind of parameter is given as.
 *
 * @category models
 * @since 0.1.0
 */
export type KernelArgument<Kind extends ParameterKind = ParameterKind> = Kind extends ScalarKind<infer Name>
  ? ScalarArgument<Name>
  : Kind extends PointerKind<infer Nullable> ? PointerArgument | RawAddress | (Nullable extends false ? never : null)
  : Kind extends StructKind<infer Fields> ? { readonly [Name in keyof Fields]: KernelArgument<Fields[Name]> }
  : Kind extends ArrayKind<infer Element> ? ArrayLike<KernelArgument<Element>>
  : never

/**
 * What a number or a truth value is given as: numbers of 64 bits as a `bigint` or a whole number.
 *
 * @category models
 * @since 0.1.0
 */
export type ScalarArgument<Name extends ScalarName> = Name extends "i64" | "u64" ? bigint | number : ScalarValues[Name]

/**
 * The arguments of a kernel with these parameters, in their order.
 *
 * @category models
 * @since 0.1.0
 */
export type KernelArguments<Parameters extends ReadonlyArray<ParameterKind>> = {
  readonly [Index in keyof Parameters]: KernelArgument<Parameters[Index]>
}

/**
 * A size in up to three dimensions; what is left out is 1.
 *
 * @category models
 * @since 0.1.0
 */
export type Dimensions = number | readonly [x: number, y?: number, z?: number]

/**
 * How a kernel is launched.
 *
 * @category models
 * @since 0.1.0
 */
export interface LaunchConfig {
  /** Blocks. */
  readonly grid: Dimensions
  /** Threads of each block. */
  readonly block: Dimensions
  /** Bytes of dynamic shared memory of each block; 0 by default. */
  readonly sharedBytes?: number | undefined
  /** Blocks of each cluster; none by default. */
  readonly cluster?: Dimensions | undefined
  /** Whether all blocks run at once, so that they can wait for each other; false by default. */
  readonly cooperative?: boolean | undefined
  /**
   * Whether the kernel may begin before the one before it on its stream has ended (programmatic dependent launch); false by
   * default. It then waits for that one itself.
   */
  readonly programmatic?: boolean | undefined
}

/**
 * What keeps the most threads of a device busy.
 *
 * @category models
 * @since 0.1.0
 */
export interface BlockSuggestion {
  /** Threads of each block. */
  readonly block: number
  /** The fewest blocks that fill the device. */
  readonly minGrid: number
}

/**
 * What code is compiled for: a real architecture (`sm_90`, `sm_90a`), a virtual one (`compute_90`), or the compute
 * capability of a device.
 *
 * @category models
 * @since 0.1.0
 */
export type Architecture =
  | `sm_${string}`
  | `compute_${string}`
  | { readonly major: number; readonly minor: number }

/**
 * A program to be compiled.
 *
 * @category models
 * @since 0.1.0
 */
export interface CompileRequest {
  /** CUDA C++. */
  readonly source: string
  /** The source's file name, for messages. */
  readonly name: string
  /** The device to compile for, where no architecture is given. */
  readonly device: number
  /** Default: a CUBIN, or PTX where the compiler is older than the device. */
  readonly target: "cubin" | "ptx" | undefined
  readonly architecture: Architecture | undefined
  /** The compiler's own options. */
  readonly options: ReadonlyArray<string>
  /** What the source includes: contents by name. */
  readonly headers: Readonly<Record<string, string>>
  /** C++ names, such as `add<float>`, whose names in the image are asked for. */
  readonly nameExpressions: ReadonlyArray<string>
  /** Default: as the runtime was told. */
  readonly cache: boolean | undefined
}

/**
 * A program that was compiled.
 *
 * @category models
 * @since 0.1.0
 */
export interface CompiledProgram {
  /** `simulated` for a program of a runtime that runs no machine code. */
  readonly kind: "cubin" | "ptx" | "simulated"
  /** What it was compiled for: `sm_90`, or `compute_90` for PTX. */
  readonly architecture: string
  /** As the driver loads it: PTX ends with a NUL character. Empty for a simulated one. */
  readonly image: Uint8Array<ArrayBuffer>
  /** The name in the image of each name expression. */
  readonly loweredNames: ReadonlyMap<string, string>
  /** What the compiler wrote: warnings. */
  readonly log: string
  /** Whether it was compiled before, and kept on disk. */
  readonly fromCache: boolean
}

/**
 * How waits learn that the GPU is done.
 *
 * @category models
 * @since 0.1.0
 */
export interface WaitOptions {
  /**
   * How long after its start a wait is asked about on every turn of the event loop. Waits that end in that time end within
   * microseconds of the GPU; until then the loop does not sleep. A stream whose last wait took 20 times as long is not
   * polled for the next time, unless a region asks for it.
   */
  readonly pollFor?: Duration.Input | undefined
  /**
   * Whether the GPU wakes the event loop after that, which uses hardly any CPU and costs tens to hundreds of microseconds.
   * Otherwise a timer asks once per millisecond. A layer without wake-ups has none for a region either.
   */
  readonly wakeUp?: boolean | undefined
}

/**
 * The waiting policy of a region, over that of the runtime's layer. The simulated runtime waits in `Clock` time, without
 * any of this.
 *
 * **Example** (A wait that uses no CPU)
 *
 * ```ts
 * import { CudaRuntime, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const stream: CudaStream.CudaStream
 *
 * const quiet = CudaStream.synchronize(stream).pipe(
 *   Effect.provideService(CudaRuntime.CurrentWaitOptions, { pollFor: 0 })
 * )
 * ```
 *
 * @category references
 * @since 0.1.0
 */
export const CurrentWaitOptions = Context.Reference<WaitOptions>("effect-cuda/CurrentWaitOptions", {
  defaultValue: () => ({})
})

/**
 * What a runtime holds at this moment. All zero once every scope has closed.
 *
 * @category models
 * @since 0.1.0
 */
export interface LiveResources {
  /** Owned streams, pooled ones included. */
  readonly streams: number
  readonly events: number
  readonly deviceBuffers: number
  readonly deviceBytes: number
  readonly hostBuffers: number
  readonly hostBytes: number
  readonly modules: number
  /** Pools that programs made. */
  readonly pools: number
  /** Fibers that wait for the GPU. */
  readonly waits: number
}

/**
 * The operations. All are lazy, may run any number of times, and check what they are given: a released resource or one
 * of another runtime is a failure.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaRuntimeService {
  readonly kind: "native" | "simulated"
  /** CUDA version of the driver: 13000 is 13.0. */
  readonly driverVersion: number
  readonly devices: ReadonlyArray<DeviceProperties>

  /** `cuDeviceGetAttribute`. */
  readonly deviceAttribute: (device: number, attribute: DeviceAttribute) => Effect.Effect<number, CudaError>
  /** `cuMemGetInfo`. */
  readonly deviceMemoryInfo: (device: number) => Effect.Effect<MemoryInfo, CudaError>
  /** `cuCtxGetStreamPriorityRange`. */
  readonly devicePriorityRange: (device: number) => Effect.Effect<PriorityRange, CudaError>
  /** `cuDeviceCanAccessPeer`. */
  readonly deviceCanAccessPeer: (device: number, peer: number) => Effect.Effect<boolean, CudaError>
  /** Waits for the work that is on every stream of the device, as far as this runtime made or was given them. */
  readonly deviceSynchronize: (device: number) => Effect.Effect<void, CudaError>

  /** `cuStreamCreateWithPriority`. */
  readonly streamCreate: (options: StreamOptions) => Effect.Effect<StreamRef, CudaError>
  /** A context's default stream. */
  readonly streamDefault: (
    device: number,
    mode: "legacy" | "perThread"
  ) => Effect.Effect<StreamRef, CudaError>
  /** A stream that something else made and destroys. */
  readonly streamFromHandle: (device: number, handle: number) => Effect.Effect<StreamRef, CudaError>
  /** Refuses new work, waits until the stream is done, then `cuStreamDestroy`. Nothing for streams of others. */
  readonly streamDestroy: (stream: StreamRef) => Effect.Effect<void, CudaError>
  /** `cuStreamQuery`: true when everything enqueued so far is done. */
  readonly streamQuery: (stream: StreamRef) => Effect.Effect<boolean, CudaError>
  /** Waits for the work enqueued before the call. */
  readonly streamSynchronize: (stream: StreamRef) => Effect.Effect<void, CudaError>
  /** `cuStreamWaitEvent`. */
  readonly streamWaitEvent: (stream: StreamRef, event: EventRef) => Effect.Effect<void, CudaError>
  /** `cuEventRecord` of an event of the runtime's own on `other`, and `cuStreamWaitEvent` for it. */
  readonly streamWaitStream: (stream: StreamRef, other: StreamRef) => Effect.Effect<void, CudaError>
  /** One `cuEventRecord` of an event of the runtime's own on `from`, and a `cuStreamWaitEvent` for it on every branch. */
  readonly streamFork: (from: StreamRef, branches: ReadonlyArray<StreamRef>) => Effect.Effect<void, CudaError>
  /**
   * What `streamWaitStream` does, for every branch. One that cannot be waited for does not keep the others from being; its
   * failure is that of the whole.
   */
  readonly streamJoin: (into: StreamRef, branches: ReadonlyArray<StreamRef>) => Effect.Effect<void, CudaError>

  /** `cuEventCreate`. */
  readonly eventCreate: (device: number, flags: number) => Effect.Effect<EventRef, CudaError>
  /** `cuEventDestroy`, once nothing waits for the event any more. */
  readonly eventDestroy: (event: EventRef) => Effect.Effect<void, CudaError>
  /** `cuEventRecord`. */
  readonly eventRecord: (event: EventRef, stream: StreamRef) => Effect.Effect<void, CudaError>
  /** `cuEventQuery`. */
  readonly eventQuery: (event: EventRef) => Effect.Effect<boolean, CudaError>
  /** Waits for the record that is current at the call. */
  readonly eventSynchronize: (event: EventRef) => Effect.Effect<void, CudaError>
  /** `cuEventElapsedTime`, in milliseconds. */
  readonly eventElapsedTime: (start: EventRef, end: EventRef) => Effect.Effect<number, CudaError>
  /** `cuIpcGetEventHandle`: 64 bytes. */
  readonly eventIpcHandle: (event: EventRef) => Effect.Effect<Uint8Array<ArrayBuffer>, CudaError>
  /** `cuIpcOpenEventHandle`. */
  readonly eventFromIpcHandle: (device: number, handle: Uint8Array) => Effect.Effect<EventRef, CudaError>

  /** `cuMemAllocFromPoolAsync`, ready for use on every stream when the effect ends. */
  readonly memoryAllocate: (
    device: number,
    byteLength: number,
    options?: DeviceMemoryOptions
  ) => Effect.Effect<DeviceMemoryRef, CudaError>
  /** `cuMemAllocManaged`, there for every stream of every device. */
  readonly managedAllocate: (
    device: number,
    byteLength: number,
    options?: MemoryOptions
  ) => Effect.Effect<ManagedMemoryRef, CudaError>
  /**
   * Waits until the releases enqueued so far have happened, then has every pool of the device give back what it does not use
   * (`cuMemPoolTrimTo`).
   */
  readonly memoryReclaim: (device: number) => Effect.Effect<void, CudaError>
  /** Page-locked memory, for every device (`cuMemHostRegister`). */
  readonly hostAllocate: (byteLength: number, options?: MemoryOptions) => Effect.Effect<HostMemoryRef, CudaError>
  /** Refuses new uses, and gives the memory back once the work that uses it is done; does not wait for that. */
  readonly memoryFree: (memory: MemoryRef) => Effect.Effect<void, CudaError>
  /** `cuMemcpy…Async` between two ranges of the same length. */
  readonly memoryCopy: (to: MemoryRange, from: MemoryRange, stream: StreamRef) => Effect.Effect<void, CudaError>
  /** `cuMemsetD8Async`, `…D16…`, `…D32…`. */
  readonly memoryFill: (
    to: MemoryRange,
    value: number,
    bits: 8 | 16 | 32,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** `cuMemcpy2DAsync`: so many rows of so many bytes. */
  readonly memoryCopy2D: (
    to: MemoryRows,
    from: MemoryRows,
    size: { readonly width: number; readonly height: number },
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** `cuMemcpyBatchAsync`, or one copy after the other where the driver or the stream has no batches. */
  readonly memoryCopyBatch: (
    transfers: ReadonlyArray<MemoryTransfer>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** `cuMemPrefetchAsync`, in pieces between turns of the event loop. */
  readonly memoryPrefetch: (
    range: MemoryRange,
    location: MemoryLocation,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** `cuMemAdvise`; the location of an advice that needs none is ignored. */
  readonly memoryAdvise: (
    range: MemoryRange,
    advice: MemoryAdvice,
    location: MemoryLocation
  ) => Effect.Effect<void, CudaError>

  /** `cuMemPoolCreate`. */
  readonly poolCreate: (device: number, options: MemoryPoolOptions) => Effect.Effect<MemoryPoolRef, CudaError>
  /** The pool that the runtime allocates from by itself. */
  readonly poolOfDevice: (device: number) => Effect.Effect<MemoryPoolRef, CudaError>
  /** Refuses new allocations; `cuMemPoolDestroy`, which lets allocations that are left live on. */
  readonly poolDestroy: (pool: MemoryPoolRef) => Effect.Effect<void, CudaError>
  /** `cuMemPoolGetAttribute`. */
  readonly poolStatistics: (pool: MemoryPoolRef) => Effect.Effect<MemoryPoolStatistics, CudaError>
  /** `cuMemPoolSetAttribute` of the two highest values. */
  readonly poolResetHigh: (pool: MemoryPoolRef) => Effect.Effect<void, CudaError>
  /** `cuMemPoolSetAttribute`. */
  readonly poolSetReleaseThreshold: (pool: MemoryPoolRef, bytes: number) => Effect.Effect<void, CudaError>
  /** `cuMemPoolTrimTo`, after the releases that are enqueued. */
  readonly poolTrim: (pool: MemoryPoolRef, keepBytes: number) => Effect.Effect<void, CudaError>

  /**
   * Has a stream wait as the uses of an access require (`cuStreamWaitEvent`); what is enqueued from now on is part of
   * the access. Suspends while an access that conflicts with it goes on on another stream. `memoryEnd` must follow,
   * however this ends.
   */
  readonly memoryBegin: (access: MemoryAccess) => Effect.Effect<void, CudaError>
  /**
   * Marks what was enqueued since the access began, for the uses that come after (`cuEventRecord`). Nothing for one
   * that did not begin.
   */
  readonly memoryEnd: (access: MemoryAccess) => Effect.Effect<void, CudaError>
  /** Waits for the uses so far of bytes of an ordered buffer. */
  readonly memorySettled: (range: MemoryRange) => Effect.Effect<void, CudaError>

  /** `cuLibraryLoadData`, of a copy of the image, off the JS thread. Fails for an image that the driver cannot use. */
  readonly moduleLoad: (image: Uint8Array, options: ModuleOptions) => Effect.Effect<ModuleRef, CudaError>
  /** Refuses new uses, and `cuLibraryUnload` once no device has work; does not wait for that. */
  readonly moduleUnload: (module: ModuleRef) => Effect.Effect<void, CudaError>
  /** `cuLibraryGetGlobal`: a variable's memory on a device. It lives as long as the module and is nobody's to free. */
  readonly moduleGlobal: (module: ModuleRef, name: string, device: number) => Effect.Effect<DeviceMemoryRef, CudaError>
  /**
   * `cuLibraryGetKernel`, and `cuKernelGetFunction`, which loads its code into a device: when that has no work, as the
   * driver waits for this otherwise. Fails when the parameters are not those that the driver reports.
   */
  readonly kernelGet: (
    module: ModuleRef,
    name: string,
    parameters: ReadonlyArray<ParameterKind>,
    device: number
  ) => Effect.Effect<KernelRef, CudaError>
  /** `cuKernelGetAttribute`. */
  readonly kernelAttribute: (
    kernel: KernelRef,
    attribute: KernelAttribute,
    device: number
  ) => Effect.Effect<number, CudaError>
  /** `cuKernelSetAttribute`. */
  readonly kernelSetAttribute: (
    kernel: KernelRef,
    attribute: SettableKernelAttribute,
    value: number,
    device: number
  ) => Effect.Effect<void, CudaError>
  /** `cuOccupancyMaxActiveBlocksPerMultiprocessor`. */
  readonly kernelActiveBlocks: (
    kernel: KernelRef,
    threads: number,
    sharedBytes: number,
    device: number
  ) => Effect.Effect<number, CudaError>
  /** `cuOccupancyMaxPotentialBlockSize`, of at most so many threads. */
  readonly kernelBestBlock: (
    kernel: KernelRef,
    sharedBytes: number,
    maxThreads: number,
    device: number
  ) => Effect.Effect<BlockSuggestion, CudaError>
  /** `cuOccupancyMaxActiveClusters`. */
  readonly kernelActiveClusters: (
    kernel: KernelRef,
    config: LaunchConfig,
    device: number
  ) => Effect.Effect<number, CudaError>
  /** `cuOccupancyMaxPotentialClusterSize`. */
  readonly kernelMaxCluster: (
    kernel: KernelRef,
    config: LaunchConfig,
    device: number
  ) => Effect.Effect<number, CudaError>
  /**
   * `cuLaunchKernelEx`, on the stream's device. The first launch on a device
   * that the kernel was not got for loads its code there first, as `kernelGet` does.
   */
  readonly kernelLaunch: (
    kernel: KernelRef,
    config: LaunchConfig,
    values: ReadonlyArray<unknown>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>

  /** Compiles CUDA C++ off the JS thread (`nvrtcCompileProgram`), or takes what it compiled before from its cache. */
  readonly programCompile: (request: CompileRequest) => Effect.Effect<CompiledProgram, CudaError>

  /** What the runtime holds now. */
  readonly liveResources: Effect.Effect<LiveResources>
}

/**
 * The runtime that programs are given by a layer: `NativeRuntime.layer`, `SimulatedRuntime.layer`, `AutoRuntime.layer`.
 *
 * @category services
 * @since 0.1.0
 */
export class CudaRuntime extends Context.Service<CudaRuntime, CudaRuntimeService>()(
  "effect-cuda/layers/CudaRuntime"
) {}
