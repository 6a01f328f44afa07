/**
 * Kernels, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { KernelAttribute, SettableKernelAttribute } from "../../cuda/flags.ts"
import type { CUkernel } from "../../cuda/handles.ts"
import type {
  ArrayKind,
  ElementType,
  ParameterKind,
  PointerKind,
  ScalarKind,
  ScalarName,
  ScalarValues,
  StructKind
} from "../../cuda/parameters.ts"
import type { CudaError } from "../../CudaError.ts"
import type { GraphScalarRef } from "./graphs.ts"
import type { Address, MemoryRef } from "./memory.ts"
import type { ModuleRef } from "./modules.ts"
import type { PartitionRef } from "./partitions.ts"
import type { HostAddress } from "./pinned.ts"
import type { StreamRef } from "./streams.ts"

/**
 * A kernel of a module, with its declared parameters. It lives as long as its module.
 *
 * @category models
 * @since 0.1.0
 */
export interface KernelRef {
  readonly module: ModuleRef
  /** The `CUkernel`. */
  readonly handle: CUkernel
  readonly name: string
  readonly parameters: ReadonlyArray<ParameterKind>
}

/**
 * The argument for a pointer parameter: a buffer or a slice of one.
 *
 * @category models
 * @since 0.1.0
 */
export interface PointerArgument {
  readonly buffer: { readonly ref: MemoryRef }
  readonly offset: number
  readonly byteLength: number
  /** The type of its elements, if it has one. */
  readonly element?: ElementType | undefined
}

/**
 * The argument for a pointer parameter with an element type: a typed array, or elements of one.
 *
 * @category models
 * @since 0.1.0
 */
export interface ElementsArgument<out Type extends ElementType> extends PointerArgument {
  readonly element: Type
}

/**
 * The argument for a pointer parameter: memory with that element type, or any memory if none was declared.
 *
 * @category models
 * @since 0.1.0
 */
export type PointerArgumentOf<Element extends ElementType | undefined> = [Element] extends [ElementType]
  ? ElementsArgument<Element>
  : PointerArgument

/**
 * A raw address. The runtime knows neither whether the device can access it nor how long it stays valid.
 *
 * @category models
 * @since 0.1.0
 */
export interface RawAddress {
  readonly address: Address | HostAddress
}

/**
 * The argument type of a kind of parameter.
 *
 * @category models
 * @since 0.1.0
 */
export type KernelArgument<Kind extends ParameterKind = ParameterKind> = Kind extends ScalarKind<infer Name>
  ? ScalarArgument<Name> | GraphScalarRef<Name>
  : Kind extends PointerKind<infer Nullable, infer Element>
    ? PointerArgumentOf<Element> | RawAddress | (Nullable extends false ? never : null)
  : Kind extends StructKind<infer Fields> ? { readonly [Name in keyof Fields]: KernelArgument<Fields[Name]> }
  : Kind extends ArrayKind<infer Element> ? ArrayLike<KernelArgument<Element>>
  : never

/**
 * The argument type of a number or boolean. For a 64-bit integer: a `bigint`, or an integer `number`.
 *
 * @category models
 * @since 0.1.0
 */
export type ScalarArgument<Name extends ScalarName> = Name extends "i64" | "u64" ? bigint | number : ScalarValues[Name]

/**
 * The argument types of a list of parameters, in order.
 *
 * @category models
 * @since 0.1.0
 */
export type KernelArguments<Parameters extends ReadonlyArray<ParameterKind>> = {
  readonly [Index in keyof Parameters]: KernelArgument<Parameters[Index]>
}

/**
 * A size in up to three dimensions. Omitted dimensions are 1.
 *
 * @category models
 * @since 0.1.0
 */
export type Dimensions = number | readonly [x: number, y?: number, z?: number]

/**
 * Options for launching a kernel.
 *
 * @category models
 * @since 0.1.0
 */
export interface LaunchConfig {
  /** Size of the grid, in blocks. */
  readonly grid: Dimensions
  /** Size of each block, in threads. */
  readonly block: Dimensions
  /** Bytes of dynamic shared memory per block. Default: 0. */
  readonly sharedBytes?: number | undefined
  /** Size of each cluster, in blocks. Default: no clusters. */
  readonly cluster?: Dimensions | undefined
  /** Whether all blocks run at the same time, so that they can synchronize with each other. Default: false. */
  readonly cooperative?: boolean | undefined
  /**
   * Whether the kernel may begin before the preceding kernel on its stream has ended (programmatic dependent launch).
   * The kernel then synchronizes with it in device code. Default: false.
   */
  readonly programmatic?: boolean | undefined
}

/**
 * The block size with the highest occupancy.
 *
 * @category models
 * @since 0.1.0
 */
export interface BlockSuggestion {
  /** Threads per block. */
  readonly block: number
  /** The smallest number of blocks that fills the device. */
  readonly minGrid: number
}

/**
 * Operations on kernels.
 *
 * @category models
 * @since 0.1.0
 */
export interface KernelOperations {
  /**
   * Looks up a kernel (`cuLibraryGetKernel`) and loads its code into a device (`cuKernelGetFunction`). Waits until the
   * device is idle, because otherwise the call blocks. Fails if the parameters differ from those the driver reports.
   */
  readonly kernelGet: (
    module: ModuleRef,
    name: string,
    parameters: ReadonlyArray<ParameterKind>,
    deviceIndex: number
  ) => Effect.Effect<KernelRef, CudaError>
  /** Reads an attribute (`cuKernelGetAttribute`). */
  readonly kernelAttribute: (
    kernel: KernelRef,
    attribute: KernelAttribute,
    deviceIndex: number
  ) => Effect.Effect<number, CudaError>
  /** Sets an attribute (`cuKernelSetAttribute`). */
  readonly kernelSetAttribute: (
    kernel: KernelRef,
    attribute: SettableKernelAttribute,
    value: number,
    deviceIndex: number
  ) => Effect.Effect<void, CudaError>
  /** The most blocks that one multiprocessor runs at once (`cuOccupancyMaxActiveBlocksPerMultiprocessor`). */
  readonly kernelActiveBlocks: (
    kernel: KernelRef,
    threads: number,
    sharedBytes: number,
    deviceIndex: number
  ) => Effect.Effect<number, CudaError>
  /** Suggests a block size of at most `maxThreads`, for a device or a partition of it (`cuOccupancyMaxPotentialBlockSize`). */
  readonly kernelBestBlock: (
    kernel: KernelRef,
    sharedBytes: number,
    maxThreads: number,
    place: number | PartitionRef
  ) => Effect.Effect<BlockSuggestion, CudaError>
  /** The most clusters that the device, or a partition of it, runs at once (`cuOccupancyMaxActiveClusters`). */
  readonly kernelActiveClusters: (
    kernel: KernelRef,
    config: LaunchConfig,
    place: number | PartitionRef
  ) => Effect.Effect<number, CudaError>
  /** The largest cluster that the device can run (`cuOccupancyMaxPotentialClusterSize`). */
  readonly kernelMaxCluster: (
    kernel: KernelRef,
    config: LaunchConfig,
    deviceIndex: number
  ) => Effect.Effect<number, CudaError>
  /**
   * Launches a kernel on a stream, and so on the stream's device (`cuLaunchKernelEx`). The first launch on a device
   * other than the one given to `kernelGet` loads the kernel's code there first, as `kernelGet` does.
   */
  readonly kernelLaunch: (
    kernel: KernelRef,
    config: LaunchConfig,
    values: ReadonlyArray<unknown>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
}
