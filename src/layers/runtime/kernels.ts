/**
 * Modules and kernels, as the service knows them.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { KernelAttribute, SettableKernelAttribute } from "../../cuda/flags.ts"
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
import type { Address, DeviceMemoryRef, MemoryRef } from "./memory.ts"
import type { ResourceState } from "./resources.ts"
import type { StreamRef } from "./streams.ts"

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
 * Options for loading a module.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModuleOptions {
  /** How long loading code into a device waits for the device to be idle, before the driver waits on the JS thread. */
  readonly idleTimeout: Duration.Duration
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
 * The operations of modules and kernels.
 *
 * @category models
 * @since 0.1.0
 */
export interface KernelOperations {
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
}
