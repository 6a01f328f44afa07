/**
 * Kernels in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { KernelAttribute, SettableKernelAttribute } from "../../cuda/flags.ts"
import type { CUkernel } from "../../cuda/handles.ts"
import type {
  ArrayKind,
  ParameterKind,
  PointerKind,
  ScalarKind,
  ScalarName,
  ScalarValues,
  StructKind
} from "../../cuda/parameters.ts"
import type { CudaError } from "../../CudaError.ts"
import type { Address, MemoryRef } from "./memory.ts"
import type { ModuleRef } from "./modules.ts"
import type { HostAddress } from "./pinned.ts"
import type { StreamRef } from "./streams.ts"

/**
 * A kernel of a module, with the parameters that it was said to have. It lives as long as its module.
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
  readonly address: Address | HostAddress
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
 * Options for launching a kernel.
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
 * Operations on kernels.
 *
 * @category models
 * @since 0.1.0
 */
export interface KernelOperations {
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
}
