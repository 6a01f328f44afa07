/**
 * Kernels: images of code loaded as modules, the kernels and global variables in them, and launches on streams, with arguments
 * that are typed by the parameters that a kernel is said to have.
 *
 * Depends on the `CudaRuntime` interface, on programs, and on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import * as Option from "effect/Option"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { KernelAttribute, SettableKernelAttribute } from "./cuda/flags.ts"
import { alignUp, layOut, pointerSize, scalarSizes } from "./cuda/parameters.ts"
import type {
  ArrayKind,
  ParameterKind,
  PointerKind,
  ScalarKind,
  ScalarName,
  StructFields,
  StructKind
} from "./cuda/parameters.ts"
import type { DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import type { DeviceBuffer } from "./CudaMemory.ts"
import type { CudaProgram } from "./CudaProgram.ts"
import type { CudaStream } from "./CudaStream.ts"
import { DeviceBufferImpl, refuseArgument, released } from "./internal/handles.ts"
import { KernelImpl, KernelTypeId, ModuleImpl, ModuleTypeId } from "./internal/kernel.ts"
import { onStream, resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type {
  Address,
  BlockSuggestion,
  CudaRuntimeService,
  Dimensions,
  KernelArgument,
  KernelArguments,
  KernelRef,
  LaunchConfig,
  ModuleRef,
  RawAddress
} from "./layers/CudaRuntime.ts"

export type {
  /**
   * An array by value.
   *
   * @category parameters
   * @since 0.1.0
   */
  ArrayKind,
  /**
   * What keeps the most threads of a device busy.
   *
   * @category models
   * @since 0.1.0
   */
  BlockSuggestion,
  /**
   * A size in up to three dimensions; what is left out is 1.
   *
   * @category models
   * @since 0.1.0
   */
  Dimensions,
  /**
   * What an argument of a kind of parameter is given as.
   *
   * @category parameters
   * @since 0.1.0
   */
  KernelArgument,
  /**
   * The arguments of a kernel with these parameters, in their order.
   *
   * @category parameters
   * @since 0.1.0
   */
  KernelArguments,
  /**
   * The name of a kernel's attribute.
   *
   * @category attributes
   * @since 0.1.0
   */
  KernelAttribute,
  /**
   * How a kernel is launched.
   *
   * @category models
   * @since 0.1.0
   */
  LaunchConfig,
  /**
   * What a parameter can be.
   *
   * @category parameters
   * @since 0.1.0
   */
  ParameterKind,
  /**
   * A pointer to memory.
   *
   * @category parameters
   * @since 0.1.0
   */
  PointerKind,
  /**
   * An address that the runtime knows nothing of.
   *
   * @category parameters
   * @since 0.1.0
   */
  RawAddress,
  /**
   * A number or a truth value.
   *
   * @category parameters
   * @since 0.1.0
   */
  ScalarKind,
  /**
   * The name of a kernel's attribute that can be set.
   *
   * @category attributes
   * @since 0.1.0
   */
  SettableKernelAttribute,
  /**
   * A struct by value.
   *
   * @category parameters
   * @since 0.1.0
   */
  StructKind
}

/**
 * An image that was loaded, for every device.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaModule extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaKernel/Module": "~effect-cuda/CudaKernel/Module"
  readonly runtime: CudaRuntimeService
  readonly ref: ModuleRef
  readonly program: CudaProgram
  /** The `CUlibrary`, for other native code. */
  readonly handle: number
}

/**
 * A kernel of a module, which it lives as long as.
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
export const isCudaKernel = (u: unknown): u is CudaKernel => Predicate.hasProperty(u, KernelTypeId)

/**
 * True for modules.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaModule = (u: unknown): u is CudaModule => Predicate.hasProperty(u, ModuleTypeId)

const scalar = <Name extends ScalarName>(kind: Name): ScalarKind<Name> =>
  Object.freeze({ kind, size: scalarSizes[kind], align: scalarSizes[kind] })

/**
 * `int8_t`, `signed char`.
 *
 * @category parameters
 * @since 0.1.0
 */
export const i8: ScalarKind<"i8"> = scalar("i8")

/**
 * `uint8_t`, `unsigned char`.
 *
 * @category parameters
 * @since 0.1.0
 */
export const u8: ScalarKind<"u8"> = scalar("u8")

/**
 * `int16_t`, `short`.
 *
 * @category parameters
 * @since 0.1.0
 */
export const i16: ScalarKind<"i16"> = scalar("i16")

/**
 * `uint16_t`, `unsigned short`; also a `__half` or `__nv_bfloat16` that is given by its bits.
 *
 * @category parameters
 * @since 0.1.0
 */
export const u16: ScalarKind<"u16"> = scalar("u16")

/**
 * `int32_t`, `int`.
 *
 * @category parameters
 * @since 0.1.0
 */
export const i32: ScalarKind<"i32"> = scalar("i32")

/**
 * `uint32_t`, `unsigned`.
 *
 * @category parameters
 * @since 0.1.0
 */
export const u32: ScalarKind<"u32"> = scalar("u32")

/**
 * `int64_t`, `long long`: a `bigint`, or a whole number up to 2^53.
 *
 * @category parameters
 * @since 0.1.0
 */
export const i64: ScalarKind<"i64"> = scalar("i64")

/**
 * `uint64_t`, `size_t`: a `bigint`, or a whole number up to 2^53.
 *
 * @category parameters
 * @since 0.1.0
 */
export const u64: ScalarKind<"u64"> = scalar("u64")

/**
 * `__half`: a number, rounded to the nearest of 16 bits.
 *
 * @category parameters
 * @since 0.1.0
 */
export const f16: ScalarKind<"f16"> = scalar("f16")

/**
 * `__nv_bfloat16`: a number, rounded to the nearest of 16 bits.
 *
 * @category parameters
 * @since 0.1.0
 */
export const bf16: ScalarKind<"bf16"> = scalar("bf16")

/**
 * `float`: a number, rounded to the nearest of 32 bits.
 *
 * @category parameters
 * @since 0.1.0
 */
export const f32: ScalarKind<"f32"> = scalar("f32")

/**
 * `double`.
 *
 * @category parameters
 * @since 0.1.0
 */
export const f64: ScalarKind<"f64"> = scalar("f64")

/**
 * `bool`.
 *
 * @category parameters
 * @since 0.1.0
 */
export const bool: ScalarKind<"bool"> = scalar("bool")

const pointerKind = <Nullable extends boolean>(
  access: PointerKind["access"],
  nullable: Nullable
): PointerKind<Nullable> => Object.freeze({ kind: "pointer", size: pointerSize, align: pointerSize, access, nullable })

/**
 * A pointer to memory that the kernel reads and writes: a buffer or a part of one.
 *
 * **Details**
 *
 * The memory lives until the kernel is done, also when its buffer is released before. A buffer that orders itself is ordered
 * by the part that is given: the launch waits for the uses on other streams that it conflicts with, as a copy does.
 *
 * Device memory is that of the stream's device. Pinned memory is given to kernels too, where they reach it by its address on
 * the host (`CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM`).
 *
 * **Gotchas**
 *
 * A part says where the pointer points to and what is ordered; nothing keeps the kernel from leaving it.
 *
 * @category parameters
 * @since 0.1.0
 */
export const pointer: PointerKind<false> = pointerKind("readWrite", false)

/**
 * A pointer to memory that the kernel only reads (`const T*`): launches that read a buffer that orders itself do not wait
 * for each other.
 *
 * @category parameters
 * @since 0.1.0
 */
export const input: PointerKind<false> = pointerKind("read", false)

/**
 * A pointer to memory that the kernel only writes.
 *
 * @category parameters
 * @since 0.1.0
 */
export const output: PointerKind<false> = pointerKind("write", false)

/**
 * A pointer that may be `null`.
 *
 * @category parameters
 * @since 0.1.0
 */
export const nullable = (kind: PointerKind): PointerKind<true> => pointerKind(kind.access, true)

/**
 * An address for a pointer that no buffer stands for, such as memory of other native code.
 *
 * **Gotchas**
 *
 * Nothing is known of it: whether the device can use it, how long it lives, what else uses it.
 *
 * @category parameters
 * @since 0.1.0
 */
export const address = (value: number): RawAddress => ({ address: value as Address })

/**
 * A struct by value, its fields in this order and aligned as C does it.
 *
 * **Details**
 *
 * `align` is for types with an alignment of their own, such as `float4` (16). Like a typed array's constructor this throws a
 * `RangeError`, for no fields, for names that are numbers, which JavaScript would put first, and for an alignment that is no
 * power of two.
 *
 * **Example** (`struct Range { unsigned first; double scale; }`)
 *
 * ```ts
 * import { CudaKernel } from "effect-cuda"
 *
 * const range = CudaKernel.struct({ first: CudaKernel.u32, scale: CudaKernel.f64 })
 * // 16 bytes; an argument is { first: 1, scale: 0.5 }
 * ```
 *
 * @category parameters
 * @since 0.1.0
 */
export const struct = <const Fields extends StructFields>(
  fields: Fields,
  options: { readonly align?: number | undefined } = {}
): StructKind<Fields> => {
  const names = Object.keys(fields)
  const { align = 1 } = options
  if (names.length === 0 || names.some((name) => /^\d+$/.test(name))) {
    throw new RangeError("CudaKernel.struct: a struct has fields, whose names are no numbers")
  }
  if (!Number.isInteger(Math.log2(align)) || align < 1) {
    throw new RangeError(`CudaKernel.struct: an alignment of ${align} is no power of two`)
  }
  const layout = layOut(Object.values(fields))
  const aligned = Math.max(align, layout.align)
  return Object.freeze({
    kind: "struct",
    fields,
    offsets: Object.fromEntries(names.map((name, index) => [name, layout.offsets[index]!])),
    size: alignUp(layout.size, aligned),
    align: aligned
  })
}

/**
 * An array by value, as the only field of a struct: arguments are arrays or typed arrays of that length. Throws a
 * `RangeError` for a length that is not a whole number above 0.
 *
 * @category parameters
 * @since 0.1.0
 */
export const array = <Element extends ParameterKind>(element: Element, length: number): ArrayKind<Element> => {
  if (!Number.isSafeInteger(length) || length < 1) {
    throw new RangeError(`CudaKernel.array: a length of ${length}; expected a whole number above 0`)
  }
  return Object.freeze({ kind: "array", element, length, size: element.size * length, align: element.align })
}

/**
 * How a program is loaded.
 *
 * @category models
 * @since 0.1.0
 */
export interface LoadOptions {
  /**
   * How long the loading of code into a device waits until no stream of the device holds work. After that it is done all
   * the same: the driver then holds up the JS thread until the work enqueued so far is done. Default: 1 second; `Infinity`
   * waits until there is such a moment.
   */
  readonly patience?: Duration.Input | undefined
}

/**
 * Loads a program for as long as its scope lives (`cuLibraryLoadData`).
 *
 * **Details**
 *
 * The driver compiles PTX here, on a thread of libuv's pool, and keeps what it compiled on disk. Interruption ends the fiber
 * at once; the load goes on and comes to nothing.
 *
 * Fails with `InvalidImage`, `InvalidPtx` (`log` has what the driver's compiler said, with line numbers), `NoBinaryForGpu`,
 * or `InvalidArgument` for a program of the simulated runtime.
 *
 * The release waits for nothing: a module is unloaded when no device has work, since the driver would hold up the JS thread
 * for it otherwise, at the latest when the runtime is released.
 *
 * **Gotchas**
 *
 * With `CUDA_MODULE_LOADING=EAGER` in the environment the driver loads all code here, and while it waits for a busy device
 * nothing can be enqueued.
 *
 * **Example** (Adding two buffers)
 *
 * ```ts
 * import { CudaKernel, CudaMemory, CudaProgram } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const source: string // __global__ void add(float* to, const float* from, int count)
 *
 * const program = Effect.gen(function*() {
 *   const module = yield* CudaKernel.load(yield* CudaProgram.compile(source, { nameExpressions: ["add"] }))
 *   const add = yield* CudaKernel.get(module, "add", [CudaKernel.pointer, CudaKernel.input, CudaKernel.i32])
 *   const [to, from] = yield* Effect.all([CudaMemory.allocate(4000), CudaMemory.allocate(4000)])
 *   yield* CudaKernel.launch(add, { grid: 4, block: 256 }, [to, from, 1000])
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const load = (
  program: CudaProgram,
  options: LoadOptions = {}
): Effect.Effect<CudaModule, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const patience = Option.getOrUndefined(Duration.fromInput(options.patience ?? "1 second"))
    if (patience === undefined || Duration.isNegative(patience)) {
      return yield* refuseArgument("CudaKernel.load", "patience", options.patience, "a duration from 0")
    }
    const ref = yield* Effect.acquireRelease(
      runtime.moduleLoad(program.image, { patience }),
      (made) => released(runtime.moduleUnload(made)),
      { interruptible: true }
    )
    return new ModuleImpl(runtime, ref, program)
  }).pipe(Effect.withSpan("CudaKernel.load", { attributes: { "cuda.program": program.name } }))

/**
 * Where something of a module is asked about or made ready.
 *
 * @category models
 * @since 0.1.0
 */
export interface OnDevice {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
}

/**
 * Finds a kernel by its name, with the parameters it is launched with, and loads its code into a device
 * (`cuLibraryGetKernel`, `cuKernelGetFunction`).
 *
 * **Details**
 *
 * The name is a name expression of the program, or the kernel's name in the image. The parameters are those of the kernel, in
 * their order; their number and sizes are compared with what the driver reports (CUDA 12.4 and later).
 *
 * Loading waits for a moment when no stream of the device holds work, at most for the module's `patience`: the driver would
 * hold up the JS thread until there is one. So it is best done before there is work. A launch on another device loads the
 * code there first, in the same way.
 *
 * Fails with `NotFound` for a kernel that is not in the image, and with `InvalidArgument` for other parameters.
 *
 * **Gotchas**
 *
 * Work that only other native code knows of is not waited for.
 *
 * **Example** (A kernel of two pointers and a number)
 *
 * ```ts
 * import { CudaKernel } from "effect-cuda"
 *
 * declare const module: CudaKernel.CudaModule
 *
 * const scale = CudaKernel.get(module, "scale", [CudaKernel.output, CudaKernel.input, CudaKernel.f32])
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const get = <const Parameters extends ReadonlyArray<ParameterKind>>(
  module: CudaModule,
  name: string,
  parameters: Parameters,
  options: OnDevice = {}
): Effect.Effect<CudaKernel<Parameters>, CudaError> =>
  Effect.flatMap(resolveDevice(options.device), (device) =>
    Effect.map(
      module.runtime.kernelGet(module.ref, module.program.loweredName(name), parameters, device),
      (ref) => new KernelImpl(module, ref, name, parameters)
    ))

/**
 * Finds a global variable of a module by its name (`cuLibraryGetGlobal`): its memory on a device, as a buffer to copy to and
 * from. It lives as long as the module.
 *
 * **Details**
 *
 * The first time on a device waits as `get` does. Fails with `NotFound` for a variable that is not in the image.
 *
 * **Example** (Setting a constant)
 *
 * ```ts
 * import { CudaKernel, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaKernel.CudaModule
 *
 * const set = Effect.flatMap(
 *   CudaKernel.global(module, "factor"),
 *   (factor) => CudaMemory.upload(factor, Float32Array.of(0.5))
 * )
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const global: {
  (name: string, options?: OnDevice): (module: CudaModule) => Effect.Effect<DeviceBuffer, CudaError>
  (module: CudaModule, name: string, options?: OnDevice): Effect.Effect<DeviceBuffer, CudaError>
} = dual(
  (args) => isCudaModule(args[0]),
  (module: CudaModule, name: string, options: OnDevice = {}): Effect.Effect<DeviceBuffer, CudaError> =>
    Effect.flatMap(resolveDevice(options.device), (device) =>
      Effect.map(
        module.runtime.moduleGlobal(module.ref, module.program.loweredName(name), device),
        (ref) => new DeviceBufferImpl(module.runtime, ref)
      ))
)

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
 * import { CudaKernel } from "effect-cuda"
 * import type { CudaMemory } from "effect-cuda"
 *
 * declare const reduce: CudaKernel.CudaKernel<[typeof CudaKernel.output, typeof CudaKernel.input, typeof CudaKernel.u64]>
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
  return onStream(runtime, undefined, undefined, (current) => runtime.kernelLaunch(ref, config, args, current))
}

/**
 * Reads an attribute of a kernel on a device (`cuKernelGetAttribute`), by its name in the header in camel case.
 *
 * @category attributes
 * @since 0.1.0
 */
export const attribute: {
  (name: KernelAttribute, options?: OnDevice): (kernel: CudaKernel) => Effect.Effect<number, CudaError>
  (kernel: CudaKernel, name: KernelAttribute, options?: OnDevice): Effect.Effect<number, CudaError>
} = dual(
  (args) => isCudaKernel(args[0]),
  (kernel: CudaKernel, name: KernelAttribute, options: OnDevice = {}): Effect.Effect<number, CudaError> =>
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
    options?: OnDevice
  ): (kernel: CudaKernel) => Effect.Effect<void, CudaError>
  (
    kernel: CudaKernel,
    name: SettableKernelAttribute,
    value: number,
    options?: OnDevice
  ): Effect.Effect<void, CudaError>
} = dual(
  (args) => isCudaKernel(args[0]),
  (
    kernel: CudaKernel,
    name: SettableKernelAttribute,
    value: number,
    options: OnDevice = {}
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
  options: OnDevice & {
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
 * import { CudaKernel } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const clear: CudaKernel.CudaKernel<[typeof CudaKernel.u64]>
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
  options: OnDevice & {
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
  options: OnDevice = {}
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
  options: OnDevice = {}
): Effect.Effect<number, CudaError> =>
  Effect.flatMap(resolveDevice(options.device), (device) => kernel.runtime.kernelMaxCluster(kernel.ref, config, device))
