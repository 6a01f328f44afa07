/**
 * Kernels: found in a module by name, and launched on streams with arguments that are typed by the kernel's parameters.
 *
 * Depends on the `CudaRuntime` interface, on modules, and on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type { KernelAttribute, SettableKernelAttribute } from "./cuda/flags.ts"
import type { ParameterKind } from "./cuda/parameters.ts"
import type { DeviceOptions } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import type { CudaModule } from "./CudaModule.ts"
import type { CudaStream } from "./CudaStream.ts"
import { oneLine, ResourceHandle, unlessLive } from "./internal/handles.ts"
import { onStream, resolveDevice } from "./internal/place.ts"
import type {
  BlockSuggestion,
  CudaRuntimeService,
  Dimensions,
  KernelArguments,
  KernelRef,
  LaunchConfig
} from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaKernel"

export type {
  /**
   * A block size that fills a device with threads.
   *
   * @category models
   * @since 0.1.0
   */
  BlockSuggestion,
  /**
   * A size in up to three dimensions; omitted ones are 1.
   *
   * @category models
   * @since 0.1.0
   */
  Dimensions,
  /**
   * The name of a kernel attribute.
   *
   * @category attributes
   * @since 0.1.0
   */
  KernelAttribute,
  /**
   * Options for launching a kernel.
   *
   * @category models
   * @since 0.1.0
   */
  LaunchConfig,
  /**
   * The name of a kernel attribute that can be set.
   *
   * @category attributes
   * @since 0.1.0
   */
  SettableKernelAttribute
}

/**
 * A kernel of a module (`CUkernel`). It lives as long as the module.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaKernel<out Parameters extends ReadonlyArray<ParameterKind> = ReadonlyArray<ParameterKind>>
  extends Pipeable, Inspectable
{
  readonly "~effect-cuda/CudaKernel": "~effect-cuda/CudaKernel"
  readonly runtime: CudaRuntimeService
  readonly ref: KernelRef
  readonly module: CudaModule
  /** As the program names it. */
  readonly name: string
  readonly parameters: Parameters
  /** The `CUkernel`, for other native code. */
  readonly handle: number
}

/**
 * True for kernels.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaKernel = (u: unknown): u is CudaKernel => Predicate.hasProperty(u, TypeId)

class KernelImpl<Parameters extends ReadonlyArray<ParameterKind>> extends ResourceHandle<KernelRef>
  implements CudaKernel<Parameters>
{
  readonly [TypeId] = TypeId
  readonly module: CudaModule
  readonly name: string
  readonly parameters: Parameters
  constructor(module: CudaModule, ref: KernelRef, name: string, parameters: Parameters) {
    super(module.runtime, ref)
    this.module = module
    this.name = name
    this.parameters = parameters
  }
  get handle(): number {
    return this.ref.handle
  }
  toString(): string {
    return oneLine("CudaKernel", this.name, ...this.parameters.map(({ kind }) => kind), unlessLive(this.module.ref))
  }
  toJSON() {
    const { handle, name, parameters } = this
    return { _id: "CudaKernel", name, parameters: parameters.map(({ kind }) => kind), handle }
  }
}

/**
 * Finds a kernel by its name, with the parameters it is launched with, and loads its code into a device
 * (`cuLibraryGetKernel`, `cuKernelGetFunction`).
 *
 * **Details**
 *
 * The name is a name expression of the program, or the kernel's name in the image. The parameters are those of the kernel, in
 * their order. Their number and sizes are compared with what the driver reports (CUDA 12.4 and later). Simulated devices know
 * the kinds of their kernels' parameters and compare those too: `f32` for an `i32`, or `input` for memory that the kernel writes.
 *
 * Loading waits for a moment when no stream of the device holds work, at most for the module's `idleTimeout`: the driver would
 * hold up the JS thread until there is one. So it is best done before there is work. A launch on another device loads the
 * code there first, in the same way.
 *
 * Fails with `NotFound` for a kernel that is not in the image, and with `InvalidArgument` for other parameters.
 *
 * **Gotchas**
 *
 * A GPU computes with the wrong values when a parameter has the right size and the wrong kind: the driver reports sizes only.
 *
 * Work that only other native code knows of is not waited for.
 *
 * **Example** (A kernel of two pointers and a number)
 *
 * ```ts
 * import { CudaKernel, CudaModule, CudaParameter } from "effect-cuda"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const scale = CudaKernel.get(module, "scale", [CudaParameter.output, CudaParameter.input, CudaParameter.f32])
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const get = <const Parameters extends ReadonlyArray<ParameterKind>>(
  module: CudaModule,
  name: string,
  parameters: Parameters,
  options: DeviceOptions = {}
): Effect.Effect<CudaKernel<Parameters>, CudaError> =>
  Effect.flatMap(resolveDevice(options.device), (device) =>
    Effect.map(
      module.runtime.kernelGet(module.ref, module.program.loweredName(name), parameters, device),
      (ref) => new KernelImpl(module, ref, name, parameters)
    ))

/**
 * Launches a kernel on a stream, by default the current one (`cuLaunchKernelEx`).
 *
 * **Details**
 *
 * Returns when the launch is enqueued. The arguments are what the kernel's parameters ask for, in their order: a wrong number
 * or kind does not compile, and is refused by name where it was forced. Sizes are checked against what the device and the
 * kernel allow, of which the driver says "invalid value" only. More than 48 KiB of dynamic shared memory is asked for when it
 * is needed (`cuKernelSetAttribute`).
 *
 * Fails with `InvalidArgument` naming what is wrong (`grid.x`, `block`, `sharedBytes`, `arguments[2].scale`), with
 * `ResourceReleased`, `ForeignResource` and `DeviceMismatch` for buffers, and with the driver's status.
 *
 * **Gotchas**
 *
 * A kernel that faults is found out by later operations, and ends the contexts of the process.
 *
 * **Example** (Clusters of two blocks, with 64 KiB of shared memory each)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * declare const reduce: CudaKernel.CudaKernel<[typeof CudaParameter.output, typeof CudaParameter.input, typeof CudaParameter.u64]>
 * declare const sums: CudaMemory.DeviceBuffer
 * declare const values: CudaMemory.DeviceBuffer
 *
 * const launched = CudaKernel.launch(
 *   reduce,
 *   { grid: 128, block: 256, cluster: 2, sharedBytes: 64 * 1024 },
 *   [sums, values, 1_000_000]
 * )
 * ```
 *
 * @category launches
 * @since 0.1.0
 */
export const launch = <Parameters extends ReadonlyArray<ParameterKind>>(
  kernel: CudaKernel<Parameters>,
  config: LaunchConfig,
  args: KernelArguments<NoInfer<Parameters>>,
  stream?: CudaStream
): Effect.Effect<void, CudaError> => {
  const { ref, runtime } = kernel
  if (stream !== undefined) return runtime.kernelLaunch(ref, config, args, stream.ref)
  return onStream(
    "CudaKernel.launch",
    runtime,
    undefined,
    undefined,
    (current) => runtime.kernelLaunch(ref, config, args, current)
  )
}

/**
 * Reads an attribute of a kernel on a device (`cuKernelGetAttribute`), by its name in the header in camel case.
 *
 * @category attributes
 * @since 0.1.0
 */
export const attribute: {
  (name: KernelAttribute, options?: DeviceOptions): (kernel: CudaKernel) => Effect.Effect<number, CudaError>
  (kernel: CudaKernel, name: KernelAttribute, options?: DeviceOptions): Effect.Effect<number, CudaError>
} = dual(
  (args) => isCudaKernel(args[0]),
  (kernel: CudaKernel, name: KernelAttribute, options: DeviceOptions = {}): Effect.Effect<number, CudaError> =>
    Effect.flatMap(resolveDevice(options.device), (device) => kernel.runtime.kernelAttribute(kernel.ref, name, device))
)

/**
 * Sets an attribute of a kernel on a device (`cuKernelSetAttribute`), for everyone who launches it there.
 *
 * @category attributes
 * @since 0.1.0
 */
export const setAttribute: {
  (
    name: SettableKernelAttribute,
    value: number,
    options?: DeviceOptions
  ): (kernel: CudaKernel) => Effect.Effect<void, CudaError>
  (
    kernel: CudaKernel,
    name: SettableKernelAttribute,
    value: number,
    options?: DeviceOptions
  ): Effect.Effect<void, CudaError>
} = dual(
  (args) => isCudaKernel(args[0]),
  (
    kernel: CudaKernel,
    name: SettableKernelAttribute,
    value: number,
    options: DeviceOptions = {}
  ): Effect.Effect<void, CudaError> =>
    Effect.flatMap(
      resolveDevice(options.device),
      (device) => kernel.runtime.kernelSetAttribute(kernel.ref, name, value, device)
    )
)

/**
 * The most blocks of a size that a multiprocessor runs at once (`cuOccupancyMaxActiveBlocksPerMultiprocessor`).
 *
 * @category occupancy
 * @since 0.1.0
 */
export const activeBlocks = (
  kernel: CudaKernel,
  options: DeviceOptions & {
    /** Threads of a block. */
    readonly block: number
    /** Bytes of dynamic shared memory of a block; 0 by default. */
    readonly sharedBytes?: number | undefined
  }
): Effect.Effect<number, CudaError> =>
  Effect.flatMap(
    resolveDevice(options.device),
    (device) => kernel.runtime.kernelActiveBlocks(kernel.ref, options.block, options.sharedBytes ?? 0, device)
  )

/**
 * The size of blocks that keeps the most threads of a device busy, and the fewest blocks that fill it
 * (`cuOccupancyMaxPotentialBlockSize`).
 *
 * **Example** (A launch that fills the device)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const clear: CudaKernel.CudaKernel<[typeof CudaParameter.u64]>
 *
 * const filling = Effect.flatMap(
 *   CudaKernel.bestBlock(clear),
 *   ({ block, minGrid }) => CudaKernel.launch(clear, { grid: minGrid, block }, [1_000_000])
 * )
 * ```
 *
 * @category occupancy
 * @since 0.1.0
 */
export const bestBlock = (
  kernel: CudaKernel,
  options: DeviceOptions & {
    /** Bytes of dynamic shared memory of a block; 0 by default. */
    readonly sharedBytes?: number | undefined
    /** Threads of a block at most; by default as many as the kernel can have. */
    readonly maxThreads?: number | undefined
  } = {}
): Effect.Effect<BlockSuggestion, CudaError> =>
  Effect.flatMap(
    resolveDevice(options.device),
    (device) => kernel.runtime.kernelBestBlock(kernel.ref, options.sharedBytes ?? 0, options.maxThreads ?? 0, device)
  )

/**
 * How many clusters of a launch a device runs at once (`cuOccupancyMaxActiveClusters`).
 *
 * @category occupancy
 * @since 0.1.0
 */
export const activeClusters = (
  kernel: CudaKernel,
  config: LaunchConfig & { readonly cluster: Dimensions },
  options: DeviceOptions = {}
): Effect.Effect<number, CudaError> =>
  Effect.flatMap(
    resolveDevice(options.device),
    (device) => kernel.runtime.kernelActiveClusters(kernel.ref, config, device)
  )

/**
 * How many blocks a cluster of a launch can have on a device (`cuOccupancyMaxPotentialClusterSize`): 8, or more for a kernel
 * with the attribute `nonPortableClusterSizeAllowed`.
 *
 * @category occupancy
 * @since 0.1.0
 */
export const maxClusterSize = (
  kernel: CudaKernel,
  config: LaunchConfig,
  options: DeviceOptions = {}
): Effect.Effect<number, CudaError> =>
  Effect.flatMap(resolveDevice(options.device), (device) => kernel.runtime.kernelMaxCluster(kernel.ref, config, device))
