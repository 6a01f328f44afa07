/**
 * Kernels: found in a module by name, and launched on streams with arguments typed by the kernel's parameters.
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
import { loweredName } from "./CudaModule.ts"
import type { CudaModule } from "./CudaModule.ts"
import type { CudaPartition } from "./CudaPartition.ts"
import type { CudaStream } from "./CudaStream.ts"
import { isNamed, refOfKernel, refOfModule, refOfStream, runtimeOfKernel, runtimeOfModule } from "./internal/given.ts"
import { oneLine, ResourceHandle, unlessLive } from "./internal/handles.ts"
import { placeOfStream } from "./internal/partition.ts"
import { CurrentPlace, onStream, resolveDevice } from "./internal/place.ts"
import type {
  BlockSuggestion,
  CudaRuntimeService,
  Dimensions,
  KernelArguments,
  KernelRef,
  LaunchConfig,
  PartitionRef
} from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaKernel"

export type {
  /**
   * A block size that keeps the most threads of a device busy, with the smallest grid that fills the device.
   *
   * @category models
   * @since 0.1.0
   */
  BlockSuggestion,
  /**
   * A size in up to three dimensions; omitted dimensions are 1.
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
  /** The name that the program uses, as passed to `get`. */
  readonly name: string
  /** The kinds of the kernel's parameters, in order. */
  readonly parameters: Parameters
  /** The `CUkernel`, for other native code. */
  readonly handle: number
}

/**
 * Returns `true` if a value is a kernel.
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
 * Gets a kernel by name, declares its parameters, and loads its code into a device, by default the current one
 * (`cuLibraryGetKernel`, `cuKernelGetFunction`).
 *
 * **Details**
 *
 * The name is one of the program's name expressions, or the kernel's name in the image. List the kernel's parameters in order; with
 * CUDA 12.4 and later, their number and sizes are checked against what the driver reports. Simulated
 * devices know the kinds of their kernels' parameters and check those too: they reject `f32` for an `i32`, or `input` for memory that the
 * kernel writes.
 *
 * Loading waits until no stream of the device has work, for at most the module's `idleTimeout`, because otherwise the driver would block
 * the JS thread until then. So get kernels before enqueueing work. Launching on another device first loads the code there in the same
 * way.
 *
 * Fails with `NotFound` if the image has no such kernel, and with `InvalidArgument` if the parameters do not match.
 *
 * **Gotchas**
 *
 * The driver reports sizes only: a GPU computes with wrong values when a parameter has the right size and the wrong kind.
 *
 * Does not wait for work that other native code enqueued on streams unknown to this library; the driver may block the JS thread for it.
 *
 * **Example** (Getting a kernel with two pointers and a number)
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
      runtimeOfModule(module).kernelGet(refOfModule(module), loweredName(module, name), parameters, device),
      (ref) => new KernelImpl(module, ref, name, parameters)
    ))

/**
 * Launches a kernel on a stream, by default the current stream (`cuLaunchKernelEx`).
 *
 * **Details**
 *
 * Returns when the launch is enqueued. Pass one argument per parameter, in order; a wrong number or kind of arguments does not compile,
 * and fails by name if forced. Launch sizes are checked against the limits of the device and the kernel, for which the driver would
 * only report "invalid value". If a launch needs more than 48 KiB of dynamic shared memory, the kernel is allowed to use it
 * (`cuKernelSetAttribute`).
 *
 * Fails with `InvalidArgument` naming the offending argument (`grid.x`, `block`, `sharedBytes`, `arguments[2].scale`), with
 * `ResourceReleased`, `ForeignResource` or `DeviceMismatch` for a buffer, stream or kernel that cannot be used, and with the driver's
 * status.
 *
 * **Gotchas**
 *
 * Later operations report a fault in a kernel. A fault destroys the contexts of the process.
 *
 * **Example** (Launching clusters of two blocks with 64 KiB of shared memory each)
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
  const runtime = runtimeOfKernel(kernel)
  const ref = refOfKernel(kernel)
  if (stream !== undefined) return runtime.kernelLaunch(ref, config, args, refOfStream(stream))
  return onStream(
    "CudaKernel.launch",
    runtime,
    undefined,
    undefined,
    (current) => runtime.kernelLaunch(ref, config, args, current)
  )
}

/**
 * Reads an attribute of a kernel on a device, by default the current one (`cuKernelGetAttribute`). Names are those of the header
 * (`CU_FUNC_ATTRIBUTE_…`) in camel case; sizes are in bytes.
 *
 * **Details**
 *
 * Loads the kernel's code into the device first, as `get` does. Fails with `InvalidArgument` for a name that is not an attribute.
 *
 * **Example** (Registers per thread)
 *
 * ```ts
 * import { CudaKernel } from "effect-cuda"
 *
 * declare const kernel: CudaKernel.CudaKernel
 *
 * const registers = CudaKernel.attribute(kernel, "numRegs")
 * ```
 *
 * @category attributes
 * @since 0.1.0
 */
export const attribute: {
  (name: KernelAttribute, options?: DeviceOptions): (kernel: CudaKernel) => Effect.Effect<number, CudaError>
  (kernel: CudaKernel, name: KernelAttribute, options?: DeviceOptions): Effect.Effect<number, CudaError>
} = dual(
  (args) => isNamed(args[0], args[1]),
  (kernel: CudaKernel, name: KernelAttribute, options: DeviceOptions = {}): Effect.Effect<number, CudaError> =>
    Effect.flatMap(
      resolveDevice(options.device),
      (device) => runtimeOfKernel(kernel).kernelAttribute(refOfKernel(kernel), name, device)
    )
)

/**
 * Sets an attribute of a kernel on a device, by default the current one, for all later launches there (`cuKernelSetAttribute`).
 *
 * **Details**
 *
 * Loads the kernel's code into the device first, as `get` does. Fails with `InvalidArgument` for an attribute that cannot be set or a
 * value that is not a 32-bit integer, and with the driver's status for a value that it rejects.
 *
 * **Example** (More dynamic shared memory)
 *
 * ```ts
 * import { CudaKernel } from "effect-cuda"
 *
 * declare const kernel: CudaKernel.CudaKernel
 *
 * const allowed = CudaKernel.setAttribute(kernel, "maxDynamicSharedSizeBytes", 100_000)
 * ```
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
  (args) => isNamed(args[0], args[1]),
  (
    kernel: CudaKernel,
    name: SettableKernelAttribute,
    value: number,
    options: DeviceOptions = {}
  ): Effect.Effect<void, CudaError> =>
    Effect.flatMap(
      resolveDevice(options.device),
      (device) => runtimeOfKernel(kernel).kernelSetAttribute(refOfKernel(kernel), name, value, device)
    )
)

/**
 * Computes how many blocks of a given size a multiprocessor can run concurrently (`cuOccupancyMaxActiveBlocksPerMultiprocessor`).
 *
 * **Details**
 *
 * Fails with `InvalidArgument` for a size that the device or the kernel does not allow, as `launch` does.
 *
 * **Example** (How many blocks fit a multiprocessor)
 *
 * ```ts
 * import { CudaKernel } from "effect-cuda"
 *
 * declare const kernel: CudaKernel.CudaKernel
 *
 * const blocks = CudaKernel.activeBlocks(kernel, { block: 256 })
 * ```
 *
 * @category occupancy
 * @since 0.1.0
 */
export const activeBlocks = (
  kernel: CudaKernel,
  options: DeviceOptions & {
    /** Threads per block. */
    readonly block: number
    /** Bytes of dynamic shared memory per block. Default: 0. */
    readonly sharedBytes?: number | undefined
  }
): Effect.Effect<number, CudaError> =>
  Effect.flatMap(
    resolveDevice(options.device),
    (device) =>
      runtimeOfKernel(kernel).kernelActiveBlocks(refOfKernel(kernel), options.block, options.sharedBytes ?? 0, device)
  )

/**
 * Suggests the block size that keeps the most threads of a device busy, and the smallest grid that fills the device
 * (`cuOccupancyMaxPotentialBlockSize`).
 *
 * **Details**
 *
 * Fails with `InvalidArgument` for sizes that are not non-negative integers or that the kernel does not allow.
 *
 * **Example** (Filling the device)
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
    /** Bytes of dynamic shared memory per block. Default: 0. */
    readonly sharedBytes?: number | undefined
    /** The most threads per block. Default: as many as the kernel allows. */
    readonly maxThreads?: number | undefined
    /** The partition to fill instead of the device. Default: that of an enclosing `CudaPartition.within`, otherwise none. */
    readonly partition?: CudaPartition | undefined
  } = {}
): Effect.Effect<BlockSuggestion, CudaError> =>
  inPlace(options, (place) =>
    runtimeOfKernel(kernel).kernelBestBlock(
      refOfKernel(kernel),
      options.sharedBytes ?? 0,
      options.maxThreads ?? 0,
      place
    ))

/** The device, and the partition of it that work of the program runs in. */
const inPlace = <A>(
  options: DeviceOptions & { readonly partition?: CudaPartition | undefined },
  ask: (place: number | PartitionRef) => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> =>
  Effect.withFiber((fiber) => {
    const { deviceIndex, partition } = placeOfStream(fiber, options, fiber.getRef(CurrentPlace).deviceIndex)
    return ask(partition ?? deviceIndex)
  })

/**
 * Computes how many clusters of a launch a device can run concurrently (`cuOccupancyMaxActiveClusters`).
 *
 * **Details**
 *
 * Fails with `InvalidArgument` for a launch that the device or the kernel does not allow, as `launch` does.
 *
 * **Example** (How many clusters fit the device)
 *
 * ```ts
 * import { CudaKernel } from "effect-cuda"
 *
 * declare const kernel: CudaKernel.CudaKernel
 *
 * const clusters = CudaKernel.activeClusters(kernel, { grid: 64, block: 256, cluster: 4 })
 * ```
 *
 * @category occupancy
 * @since 0.1.0
 */
export const activeClusters = (
  kernel: CudaKernel,
  config: LaunchConfig & { readonly cluster: Dimensions },
  options: DeviceOptions & {
    /** The partition that runs them. Default: that of an enclosing `CudaPartition.within`, otherwise none. */
    readonly partition?: CudaPartition | undefined
  } = {}
): Effect.Effect<number, CudaError> =>
  inPlace(options, (place) => runtimeOfKernel(kernel).kernelActiveClusters(refOfKernel(kernel), config, place))

/**
 * Computes how many blocks a cluster of a launch can have on a device (`cuOccupancyMaxPotentialClusterSize`): 8, or more for a kernel
 * with the attribute `nonPortableClusterSizeAllowed`.
 *
 * **Details**
 *
 * Ignores the cluster size of the launch itself. Fails with `InvalidArgument` for a launch that the device or the kernel does not allow,
 * as `launch` does.
 *
 * **Example** (The largest cluster)
 *
 * ```ts
 * import { CudaKernel } from "effect-cuda"
 *
 * declare const kernel: CudaKernel.CudaKernel
 *
 * const size = CudaKernel.maxClusterSize(kernel, { grid: 64, block: 256 })
 * ```
 *
 * @category occupancy
 * @since 0.1.0
 */
export const maxClusterSize = (
  kernel: CudaKernel,
  config: LaunchConfig,
  options: DeviceOptions = {}
): Effect.Effect<number, CudaError> =>
  Effect.flatMap(
    resolveDevice(options.device),
    (device) => runtimeOfKernel(kernel).kernelMaxCluster(refOfKernel(kernel), config, device)
  )
