/**
 * Device memory, managed memory and pinned host memory, with copies and fills as work on streams.
 *
 * A buffer lives as long as its scope, and its memory until the work that uses it is done: releasing a buffer never waits, and never
 * frees memory that the GPU may still access. Depends on the `CudaRuntime` interface and on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { elementConstructors, elementSizeOf, elementTypesOf, elementWords, isElementType } from "./cuda/elements.ts"
import type { ElementArray, ElementType, ElementTypeOf, UsualTypeOf } from "./cuda/elements.ts"
import { eventFlags } from "./cuda/flags.ts"
import type { CudaDevice, DeviceInput } from "./CudaDevice.ts"
import { invalidArgument } from "./CudaError.ts"
import type { CudaError } from "./CudaError.ts"
import type { MemoryPool } from "./CudaMemoryPool.ts"
import { isCudaStream } from "./CudaStream.ts"
import type { CudaStream } from "./CudaStream.ts"
import { bytesOf } from "./internal/bytes.ts"
import { areMixed, cannotHold, refuseMixed } from "./internal/elements.ts"
import { rangeOf, refOfPool, refOfStream, runtimeOfPart, runtimeOfPool } from "./internal/given.ts"
import {
  countOf,
  DeviceHandle,
  hex,
  named,
  oneLine,
  refuseArgument,
  released,
  ResourceHandle,
  unlessLive
} from "./internal/handles.ts"
import { isWhole } from "./internal/numbers.ts"
import { CurrentAccess, CurrentOrdering } from "./internal/ordered.ts"
import { deviceIndexOf, onStream, resolveDevice } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import type { Kind } from "./internal/scoped.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type {
  ArrayWatch,
  CudaRuntimeService,
  DeviceMemoryRef,
  EventRef,
  ForeignSimulation,
  ForeignStatuses,
  GrowableMemoryRef,
  HostMemoryRef,
  ManagedMemoryRef,
  MemoryAccess,
  MemoryLocation,
  MemoryRange,
  MemoryRows,
  PointerAttributes,
  StreamRef
} from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaMemory/Buffer"

export type {
  /**
   * A typed array of JavaScript as it is read from elements of a type: `Float32Array` for `f32`, `BigInt64Array` for `i64`. Those of
   * `f16` and `bf16` are `Uint16Array`s of their bits.
   *
   * @category arrays
   * @since 0.1.0
   */
  ElementArray,
  /**
   * The type of an element in memory, such as `f32`: the number types of `CudaParameter`.
   *
   * @category arrays
   * @since 0.1.0
   */
  ElementType,
  /**
   * The types of elements that a typed array of JavaScript can hold: `f32` for a `Float32Array`; `u16`, `f16` or `bf16` for a
   * `Uint16Array`; any type for a `Uint8Array`, a `Buffer` or a `DataView`, which are bytes.
   *
   * @category arrays
   * @since 0.1.0
   */
  ElementTypeOf,
  /**
   * What calls of other native code return, and what it means.
   *
   * @category models
   * @since 0.1.0
   */
  ForeignStatuses,
  /**
   * What CUDA knows of the memory at an address.
   *
   * @category models
   * @since 0.1.0
   */
  PointerAttributes
}

/**
 * A buffer of device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceBuffer extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaMemory/Buffer": "~effect-cuda/CudaMemory/Buffer"
  readonly kind: "device"
  readonly runtime: CudaRuntimeService
  readonly ref: DeviceMemoryRef
  readonly buffer: DeviceBuffer
  readonly offset: number
  readonly byteLength: number
  /** The `CUdeviceptr`, for other native code and for kernels. */
  readonly address: number
  readonly deviceIndex: number
  readonly device: CudaDevice
  /** Whether uses of the buffer on different streams are ordered automatically (see `withOrdering`). */
  readonly isOrdered: boolean
  /** Whether it is a `ManagedBuffer`. */
  readonly isManaged: boolean
}

/**
 * A buffer of managed memory. Every device of the machine and the host use it at the same address, and the driver migrates its pages to
 * where they are used. Every operation that accepts device memory accepts it too, on the streams of any device.
 *
 * @category models
 * @since 0.1.0
 */
export interface ManagedBuffer extends DeviceBuffer {
  readonly ref: ManagedMemoryRef
  readonly buffer: ManagedBuffer
  /** The device it was allocated on, whose current stream is the default for its operations. */
  readonly deviceIndex: number
  /**
   * The memory itself, as seen by the host; empty after the release. Reading or writing migrates it to the host page by page, on the JS
   * thread, so call `prefetch` first. Do not access bytes while work on a device changes them. Throws a `RangeError` if the memory is
   * larger than a typed array can be, which is 4 GiB in Node.js 20.
   */
  readonly bytes: Uint8Array<ArrayBuffer>
}

/**
 * A buffer of device memory that grows and shrinks at a fixed address. Every operation that accepts device memory accepts it too, and
 * checks against the size at that moment.
 *
 * @category models
 * @since 0.1.0
 */
export interface GrowableBuffer extends DeviceBuffer {
  readonly ref: GrowableMemoryRef
  readonly buffer: GrowableBuffer
  /** The bytes that can be used now. */
  readonly byteLength: number
  /** The bytes of device memory that it holds, which are at least `byteLength`. */
  readonly mappedBytes: number
  /** The bytes that it can grow to. */
  readonly maxBytes: number
}

/**
 * A buffer of pinned host memory, which devices copy from and to at full speed while JavaScript continues.
 *
 * @category models
 * @since 0.1.0
 */
export interface HostBuffer extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaMemory/Buffer": "~effect-cuda/CudaMemory/Buffer"
  readonly kind: "host"
  readonly runtime: CudaRuntimeService
  readonly ref: HostMemoryRef
  readonly buffer: HostBuffer
  readonly offset: number
  readonly byteLength: number
  /** The address on the host, for other native code. */
  readonly address: number
  /** The memory itself. A copy may read or write it at any time until the stream has completed the copy. */
  readonly bytes: Uint8Array<ArrayBuffer>
  /** Whether uses of the buffer by devices on different streams are ordered automatically (see `withOrdering`). */
  readonly isOrdered: boolean
}

/**
 * A contiguous part of a buffer. A buffer is a slice of all its bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Slice<Buffer extends DeviceBuffer | HostBuffer = DeviceBuffer | HostBuffer> {
  readonly buffer: Buffer
  /** Bytes from the buffer's start. */
  readonly offset: number
  readonly byteLength: number
}

/**
 * A contiguous part of a buffer that has elements of the given type, or only bytes.
 *
 * @category arrays
 * @since 0.1.0
 */
export type SliceOf<
  Type extends ElementType,
  Buffer extends DeviceBuffer | HostBuffer = DeviceBuffer | HostBuffer
> = Slice<Buffer> & { readonly element?: Type | undefined }

/**
 * A contiguous part of a buffer with the type of its elements. Every operation on parts of buffers accepts it.
 *
 * @category arrays
 * @since 0.1.0
 */
export interface Elements<
  out Type extends ElementType = ElementType,
  Buffer extends DeviceBuffer | HostBuffer = DeviceBuffer | HostBuffer
> extends Slice<Buffer> {
  readonly element: Type
  /** The number of elements. */
  readonly length: number
}

/**
 * A buffer of device memory with the type of its elements. Every operation that accepts a `DeviceBuffer` accepts it too.
 *
 * @category arrays
 * @since 0.1.0
 */
export interface DeviceArray<out Type extends ElementType = ElementType> extends DeviceBuffer {
  readonly element: Type
  /** The number of elements. */
  readonly length: number
}

/**
 * A buffer of pinned host memory with the type of its elements. Every operation that accepts a `HostBuffer` accepts it too, and `view`
 * returns it as a typed array of JavaScript.
 *
 * @category arrays
 * @since 0.1.0
 */
export interface PinnedArray<out Type extends ElementType = ElementType> extends HostBuffer {
  readonly element: Type
  /** The number of elements. */
  readonly length: number
}

/**
 * A part of a buffer seen as rows.
 *
 * @category models
 * @since 0.1.0
 */
export interface Rows<Buffer extends DeviceBuffer | HostBuffer = DeviceBuffer | HostBuffer> extends Slice<Buffer> {
  /** Bytes from the start of one row to the start of the next. */
  readonly pitch: number
}

/**
 * Ordinary JavaScript memory: any typed array, `DataView` or `Buffer`.
 *
 * @category models
 * @since 0.1.0
 */
export type HostArray = ArrayBufferView

/**
 * The constructor of a typed array, such as `Float32Array`.
 *
 * @category models
 * @since 0.1.0
 */
export interface TypedArrayConstructor<A> {
  readonly BYTES_PER_ELEMENT: number
  new(buffer: ArrayBuffer, byteOffset: number, length: number): A
}

/**
 * Returns `true` if a value is a device buffer, managed buffer or host buffer.
 *
 * @category guards
 * @since 0.1.0
 */
export const isBuffer = (u: unknown): u is DeviceBuffer | HostBuffer => Predicate.hasProperty(u, TypeId)

/**
 * Returns `true` if a value is a managed buffer.
 *
 * @category guards
 * @since 0.1.0
 */
export const isManagedBuffer = (u: unknown): u is ManagedBuffer => isBuffer(u) && u.kind === "device" && u.isManaged

/**
 * Returns `true` if a value is a growable buffer.
 *
 * @category guards
 * @since 0.1.0
 */
export const isGrowableBuffer = (u: unknown): u is GrowableBuffer =>
  isBuffer(u) && u.kind === "device" && u.ref.isGrowable

/**
 * Returns `true` if a value is a typed array of device memory or pinned memory, or elements of one.
 *
 * @category guards
 * @since 0.1.0
 */
export const isElements = (u: unknown): u is Elements =>
  isSlice(u) && Predicate.hasProperty(u, "element") && isElementType(u.element)

/** @internal */
export class DeviceBufferImpl extends DeviceHandle<DeviceMemoryRef> implements DeviceBuffer {
  readonly [TypeId] = TypeId
  readonly kind = "device"
  readonly offset = 0
  get buffer(): this {
    return this
  }
  get byteLength(): number {
    return this.ref.byteLength
  }
  get address(): number {
    this.runtime.hostAccess?.({ memory: this.ref, offset: 0, byteLength: this.byteLength }, "address")
    return this.ref.address
  }
  get isOrdered(): boolean {
    return this.ref.isOrdered
  }
  get isManaged(): boolean {
    return this.ref.isManaged
  }
  toString(): string {
    const { byteLength, deviceIndex, isManaged, isOrdered, ref } = this
    return oneLine(
      isManaged ? "ManagedBuffer" : "DeviceBuffer",
      `${byteLength} bytes`,
      hex(ref.address),
      `device ${deviceIndex}`,
      isOrdered && "ordered",
      unlessLive(this.ref)
    )
  }
  toJSON() {
    const { byteLength, deviceIndex, isManaged, ref } = this
    return {
      _id: isManaged ? "ManagedBuffer" : "DeviceBuffer",
      byteLength,
      deviceIndex,
      address: ref.address,
      state: ref.state
    }
  }
}

class ManagedBufferImpl extends DeviceBufferImpl implements ManagedBuffer {
  declare readonly ref: ManagedMemoryRef
  get bytes(): Uint8Array<ArrayBuffer> {
    this.runtime.hostAccess?.({ memory: this.ref, offset: 0, byteLength: this.byteLength }, "bytes")
    return this.ref.bytes
  }
}

class GrowableBufferImpl extends DeviceBufferImpl implements GrowableBuffer {
  declare readonly ref: GrowableMemoryRef
  get mappedBytes(): number {
    return this.ref.mappedBytes
  }
  get maxBytes(): number {
    return this.ref.maxBytes
  }
  override toString(): string {
    const { address, byteLength, deviceIndex, isOrdered, maxBytes } = this
    return oneLine(
      "GrowableBuffer",
      `${byteLength} of ${maxBytes} bytes`,
      hex(address),
      `device ${deviceIndex}`,
      isOrdered && "ordered",
      unlessLive(this.ref)
    )
  }
  override toJSON() {
    return { ...super.toJSON(), _id: "GrowableBuffer", mappedBytes: this.mappedBytes, maxBytes: this.maxBytes }
  }
}

/** @internal */
export class HostBufferImpl extends ResourceHandle<HostMemoryRef> implements HostBuffer {
  readonly [TypeId] = TypeId
  readonly kind = "host"
  readonly offset = 0
  get buffer(): this {
    return this
  }
  get byteLength(): number {
    return this.ref.byteLength
  }
  get address(): number {
    this.runtime.hostAccess?.({ memory: this.ref, offset: 0, byteLength: this.byteLength }, "address")
    return this.ref.address
  }
  get isOrdered(): boolean {
    return this.ref.isOrdered
  }
  get bytes(): Uint8Array<ArrayBuffer> {
    this.runtime.hostAccess?.({ memory: this.ref, offset: 0, byteLength: this.byteLength }, "bytes")
    return this.ref.bytes
  }
  toString(): string {
    const { byteLength, isOrdered, ref } = this
    return oneLine("HostBuffer", `${byteLength} bytes`, hex(ref.address), isOrdered && "ordered", unlessLive(ref))
  }
  toJSON() {
    const { byteLength, ref } = this
    return { _id: "HostBuffer", byteLength, address: ref.address, state: ref.state }
  }
}

/** @internal */
export class DeviceArrayImpl<Type extends ElementType> extends DeviceBufferImpl implements DeviceArray<Type> {
  readonly element: Type
  constructor(runtime: CudaRuntimeService, ref: DeviceMemoryRef, element: Type) {
    super(runtime, ref)
    this.element = element
  }
  get length(): number {
    return this.byteLength / elementSizeOf(this.element)
  }
  override toString(): string {
    const { deviceIndex, element, isOrdered, length, ref } = this
    return oneLine(
      "DeviceArray",
      element,
      countOf(length, "element"),
      hex(ref.address),
      `device ${deviceIndex}`,
      isOrdered && "ordered",
      unlessLive(ref)
    )
  }
  override toJSON() {
    return { ...super.toJSON(), _id: "DeviceArray", element: this.element, length: this.length }
  }
}

/** @internal */
export class PinnedArrayImpl<Type extends ElementType> extends HostBufferImpl implements PinnedArray<Type> {
  readonly element: Type
  constructor(runtime: CudaRuntimeService, ref: HostMemoryRef, element: Type) {
    super(runtime, ref)
    this.element = element
  }
  get length(): number {
    return this.byteLength / elementSizeOf(this.element)
  }
  override toString(): string {
    const { element, isOrdered, length, ref } = this
    const details = [element, countOf(length, "element"), hex(ref.address), isOrdered && "ordered", unlessLive(ref)]
    return oneLine("PinnedArray", ...details)
  }
  override toJSON() {
    return { ...super.toJSON(), _id: "PinnedArray", element: this.element, length: this.length }
  }
}

/**
 * Options for allocating a buffer.
 *
 * @category models
 * @since 0.1.0
 */
export interface BufferOptions {
  /**
   * Whether uses of the buffer are ordered automatically: a copy, fill, launch or `access` on one stream waits on the GPU for
   * conflicting uses on other streams. Default: as set by an enclosing `withOrdering`, otherwise false.
   */
  readonly ordered?: boolean | undefined
}

/**
 * Options for allocating device memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeviceBufferOptions extends BufferOptions {
  /** Default: the device of the pool or the stream, otherwise the current device. */
  readonly device?: DeviceInput | undefined
  /** The pool to allocate from (see `CudaMemoryPool`). Default: the runtime's own pool of the device. */
  readonly pool?: MemoryPool | undefined
  /** The stream on which to allocate and release the memory in stream order. Default: none; every stream can use it immediately. */
  readonly stream?: CudaStream | undefined
}

/**
 * Allocates device memory that lives as long as its scope (`cuMemAllocFromPoolAsync`). The contents are undefined.
 *
 * **Details**
 *
 * Every stream can use the memory immediately. Releasing the buffer returns at once: the memory is freed on the GPU after the work that
 * uses it (`cuMemFreeAsync`). If the device or the pool is full, waits for pending releases and tries again before failing with
 * `OutOfMemory`; the error's `memory` says how much was requested and how much is free. Fails with `InvalidArgument` if the size is not
 * a positive integer, and with `DeviceMismatch` for a pool or stream of another device.
 *
 * With a `stream`, the memory is allocated in stream order, and also released in stream order if no other stream used it: memory that
 * the stream released serves its next allocation without waiting. Other streams may use the memory too; the first use on each of them
 * waits for the allocation on the GPU.
 *
 * **Gotchas**
 *
 * Released memory stays in a pool of this process until the runtime is released. First use of new memory costs the driver about a
 * millisecond per GiB on the JS thread, and the first allocation on a device about 10 milliseconds; allocating from the pool takes
 * microseconds.
 *
 * **Example** (Clearing a buffer)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const cleared = Effect.tap(CudaMemory.allocate(1 << 20), (buffer) => CudaMemory.fill(buffer, 0))
 * ```
 *
 * **Example** (Allocating scratch memory in stream order)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const twice = (into: CudaMemory.DeviceBuffer, stream: CudaStream.CudaStream) =>
 *   Effect.gen(function*() {
 *     const scratch = yield* CudaMemory.allocate(into.byteLength, { stream })
 *     yield* CudaMemory.copy(scratch, into, stream)
 *     yield* CudaMemory.copy(into, scratch, stream)
 *   }).pipe(Effect.scoped) // enqueues the release without waiting
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const allocate = (
  byteLength: number,
  options: DeviceBufferOptions = {}
): Effect.Effect<DeviceBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  allocating(byteLength, options, (runtime, ref): DeviceBuffer => new DeviceBufferImpl(runtime, ref))

const allocating = <Buffer>(
  byteLength: number,
  { device, ordered, pool, stream }: DeviceBufferOptions,
  wrap: (runtime: CudaRuntimeService, ref: DeviceMemoryRef) => Buffer
): Effect.Effect<Buffer, CudaError, CudaRuntime | Scope.Scope> =>
  reclaiming(
    device === undefined ? pool?.deviceIndex ?? stream?.deviceIndex : device,
    {
      create: (runtime, index, fiber) =>
        runtime.memoryAllocate(index, byteLength, {
          ordered: ordered ?? fiber.getRef(CurrentOrdering),
          pool: pool === undefined ? undefined : refOfPool(pool),
          stream: stream === undefined ? undefined : refOfStream(stream)
        }),
      destroy: (runtime, ref) => runtime.memoryFree(ref),
      wrap
    },
    pool
  )

/**
 * Allocates, and if the device or pool is full, tries again after pending releases. These may take long, so they are waited for between
 * the attempts, which cannot be interrupted. If a pool is given, only its unused memory is returned first, since it may merely have
 * reached its own limit; the second retry makes all pools of the device return theirs.
 *
 * @internal
 */
export const reclaiming = <Ref, Buffer>(
  device: DeviceInput | undefined,
  kind: Kind<Ref, Buffer>,
  pool?: MemoryPool
): Effect.Effect<Buffer, CudaError, CudaRuntime | Scope.Scope> => {
  const acquire = makeScoped(device, kind)
  const gathered = pool === undefined
    ? acquire
    : orAfter(
      acquire,
      Effect.suspend(() =>
        named("CudaMemory.reclaim")(runtimeOfPool(pool).poolTrim(refOfPool(pool), Number.POSITIVE_INFINITY))
      )
    )
  const reclaim = Effect.flatMap(
    CudaRuntime,
    (runtime) => Effect.flatMap(resolveDevice(device), runtime.memoryReclaim)
  )
  return orAfter(gathered, reclaim)
}

/** Tries again after an effect if the first attempt found no memory. */
const orAfter = <A, R, R2>(acquire: Effect.Effect<A, CudaError, R>, before: Effect.Effect<void, CudaError, R2>) =>
  Effect.catchReason(acquire, "CudaError", "OutOfMemory", () => Effect.andThen(before, acquire))

/**
 * Allocates managed memory that lives as long as its scope (`cuMemAllocManaged`). The contents are undefined.
 *
 * **Details**
 *
 * Every stream of every device can use the memory immediately, in kernels, copies and fills, and the host through `bytes` and `view`.
 * Releasing the buffer returns at once. Its memory is reused for allocations of similar size once the work that uses it is done, and
 * returned to the driver when no device has work, because the driver would otherwise block until then. Fails with `NotSupported` if the
 * host cannot access managed memory while a device works (`concurrentManagedAccess`; Windows and WSL), and otherwise like `allocate`.
 *
 * **Gotchas**
 *
 * After `bytes` or `view` was used, JavaScript holds a view of the memory that cannot be revoked. Such memory is returned only after all
 * views are garbage-collected; until then they show its last contents.
 *
 * Allocating more managed memory than a device has is untested.
 *
 * **Example** (Memory that the host and the device use)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   const shared = yield* CudaMemory.allocateManaged(4096)
 *   yield* CudaMemory.fill(shared, 1, stream)
 *   yield* CudaStream.synchronize(stream)
 *   return shared.bytes[0] // 1
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const allocateManaged = (
  byteLength: number,
  options: BufferOptions & {
    /** Default: the current device. */
    readonly device?: DeviceInput | undefined
  } = {}
): Effect.Effect<ManagedBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  reclaiming(options.device, {
    create: (runtime, device, fiber) =>
      runtime.managedAllocate(device, byteLength, { ordered: options.ordered ?? fiber.getRef(CurrentOrdering) }),
    destroy: (runtime, ref) => runtime.memoryFree(ref),
    wrap: (runtime, ref): ManagedBuffer => new ManagedBufferImpl(runtime, ref)
  })

/**
 * Options for making a growable buffer.
 *
 * @category models
 * @since 0.1.0
 */
export interface GrowableOptions extends BufferOptions {
  /** The bytes that the buffer can grow to. Costs addresses, not memory, so it may be more than the device has. */
  readonly maxBytes: number
  /** The bytes to begin with. Default: 0. */
  readonly initial?: number | undefined
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
}

/**
 * Makes a buffer that grows without moving, and lives as long as its scope. Its addresses are reserved at once (`cuMemAddressReserve`), and
 * `grow` and `shrink` change how much memory is behind them. The contents of new memory are undefined.
 *
 * **Details**
 *
 * Slices, recorded graphs and addresses passed to other code stay valid while it grows. `byteLength` is the current size, against which
 * every operation checks. Memory comes in multiples of the device's granularity (2 MiB on an H200), so `mappedBytes` may be more.
 *
 * Closing the scope returns at once. The memory is returned to the device after the work that uses it.
 *
 * If the device has no room for `initial`, waits for pending releases and tries again before failing with `OutOfMemory`. Fails with
 * `NotSupported` if the device or the driver has no virtual memory management, with `OutOfMemory` if so many addresses cannot be
 * reserved (an H200 reserved 16 TiB, but not 1 PiB), and with `InvalidArgument` for sizes that are not integers in range.
 *
 * **Gotchas**
 *
 * The memory does not come from a pool and does not return to one. Kernels and graphs of other devices cannot access it;
 * copies between devices on streams can.
 *
 * **Example** (A cache that grows with the requests)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const bytesPerToken = 128 * 1024
 *
 * const program = Effect.gen(function*() {
 *   const cache = yield* CudaMemory.growable({ maxBytes: 64 * 2 ** 30, initial: 1024 * bytesPerToken })
 *   const first = CudaMemory.slice(cache, 0, bytesPerToken)
 *   yield* CudaMemory.grow(cache, 4096 * bytesPerToken)
 *   yield* CudaMemory.fill(first, 0) // the same memory as before
 *   yield* CudaMemory.shrink(cache, 512 * bytesPerToken)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category growable buffers
 * @since 0.1.0
 */
export const growable = (
  options: GrowableOptions
): Effect.Effect<GrowableBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  Predicate.isObject(options)
    ? makeGrowable(options)
    : refuseArgument("CudaMemory.growable", "options", options, "a size to grow to")

const makeGrowable = (options: GrowableOptions) =>
  reclaiming(options.device, {
    create: (runtime, device, fiber) => {
      const ordered = options.ordered ?? fiber.getRef(CurrentOrdering)
      const { initial = 0 } = options
      return Effect.tap(
        runtime.memoryReserve(device, options.maxBytes, { ordered }),
        (ref) =>
          initial === 0
            ? Effect.void
            : Effect.onError(
              named("CudaMemory.growable")(runtime.memoryGrow(ref, initial)),
              () => Effect.ignore(runtime.memoryFree(ref))
            )
      )
    },
    destroy: (runtime, ref) => runtime.memoryFree(ref),
    wrap: (runtime, ref): GrowableBuffer => new GrowableBufferImpl(runtime, ref)
  })

/**
 * Makes a growable buffer at least this large, in bytes (`cuMemMap`). Every stream can use the new bytes when the effect ends.
 *
 * **Details**
 *
 * Does not wait for work on the GPU, and does not disturb it. Maps 64 MiB at a time, with turns of the event loop in between: a piece
 * takes 0.1 to 0.25 milliseconds on an H200. Does nothing if the buffer is large enough. Changes of one buffer take turns.
 *
 * If the device is full, waits for pending releases and tries again before failing with `OutOfMemory`. If it fails or is interrupted,
 * the buffer keeps its size. Fails with `InvalidArgument` beyond the buffer's `maxBytes`, and for other buffers.
 *
 * **Example** (A buffer that changes its size)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const buffer = yield* CudaMemory.growable({ maxBytes: 2 ** 32, initial: 2 ** 20 })
 *   yield* CudaMemory.grow(buffer, 2 ** 22)
 *   yield* CudaMemory.shrink(buffer, 2 ** 21)
 * })
 * ```
 *
 * @category growable buffers
 * @since 0.1.0
 */
export const grow: {
  (byteLength: number): (buffer: GrowableBuffer) => Effect.Effect<void, CudaError>
  (buffer: GrowableBuffer, byteLength: number): Effect.Effect<void, CudaError>
} = dual(2, (buffer: GrowableBuffer, byteLength: number): Effect.Effect<void, CudaError> => {
  const runtime = runtimeOfPart(buffer)
  const { memory } = rangeOf(buffer)
  const attempt = Effect.suspend(() => runtime.memoryGrow(memory, byteLength))
  const reclaim = Effect.suspend(() => named("CudaMemory.grow")(runtime.memoryReclaim(buffer.deviceIndex)))
  return orAfter(attempt, reclaim)
})

/**
 * Makes a growable buffer at most this large, in bytes, and returns the rest to the device (`cuMemUnmap`).
 *
 * **Details**
 *
 * The bytes beyond are refused at once, also by graphs that were recorded with them. The work that already uses the buffer is waited for:
 * the fiber suspends, not the thread. If waiting fails or is interrupted, the buffer gets its size back. Does nothing if the buffer is
 * small enough.
 *
 * Memory is returned in the pieces in which it was mapped, of 64 MiB at most, so the buffer may hold more than it needs (`mappedBytes`).
 * Growing again uses that first.
 *
 * **Gotchas**
 *
 * Work of other code is known only as far as it was declared, for example with `access`. If it uses memory that is no longer there, it
 * faults, and the contexts are lost.
 *
 * **Example** (A buffer that changes its size)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const buffer = yield* CudaMemory.growable({ maxBytes: 2 ** 32, initial: 2 ** 20 })
 *   yield* CudaMemory.grow(buffer, 2 ** 22)
 *   yield* CudaMemory.shrink(buffer, 2 ** 21)
 * })
 * ```
 *
 * @category growable buffers
 * @since 0.1.0
 */
export const shrink: {
  (byteLength: number): (buffer: GrowableBuffer) => Effect.Effect<void, CudaError>
  (buffer: GrowableBuffer, byteLength: number): Effect.Effect<void, CudaError>
} = dual(
  2,
  (buffer: GrowableBuffer, byteLength: number): Effect.Effect<void, CudaError> =>
    runtimeOfPart(buffer).memoryShrink(rangeOf(buffer).memory, byteLength)
)

/**
 * Allocates pinned host memory that lives as long as its scope (`cuMemHostRegister`). The contents are undefined.
 *
 * **Details**
 *
 * Releasing the buffer detaches all views of its memory (their length becomes 0) and returns at once; the memory is reused after the work
 * that uses it is done. Fails with `OutOfMemory` beyond the runtime's limit, and with `InvalidArgument` if the size is not a positive
 * integer.
 *
 * **Gotchas**
 *
 * Finish file reads into `bytes` before the release, because the operating system would continue to write to memory that may already be
 * in use again. `bytes.buffer` may be larger than the buffer. Do not transfer it: the next operation rejects memory that was transferred
 * away (`InvalidArgument`), and its pages are never freed. From Node.js 22 on, `structuredClone` and `postMessage` refuse to transfer it.
 *
 * Release the runtime before its worker thread ends. The pinned memory of a terminated worker stays pinned until the process ends; so does
 * that of a worker that exits or throws while a device is busy.
 *
 * Pinning new memory takes about half a second per GiB, partly on a pool thread and partly in slices of about a millisecond on the JS
 * thread. Released memory is kept and reused immediately.
 *
 * **Example** (Pinned memory as an array)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const host = yield* CudaMemory.allocateHost(4000)
 *   const device = yield* CudaMemory.allocate(4000)
 *   CudaMemory.view(host, Float32Array).fill(1)
 *   yield* CudaMemory.copy(device, host)
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const allocateHost = (
  byteLength: number,
  options: BufferOptions = {}
): Effect.Effect<HostBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  allocatingHost(byteLength, options, (runtime, ref): HostBuffer => new HostBufferImpl(runtime, ref))

const allocatingHost = <Buffer>(
  byteLength: number,
  { ordered }: BufferOptions,
  wrap: (runtime: CudaRuntimeService, ref: HostMemoryRef) => Buffer
): Effect.Effect<Buffer, CudaError, CudaRuntime | Scope.Scope> =>
  makeScoped(undefined, {
    create: (runtime, _, fiber) =>
      runtime.hostAllocate(byteLength, { ordered: ordered ?? fiber.getRef(CurrentOrdering) }),
    destroy: (runtime, ref) => runtime.memoryFree(ref),
    wrap
  })

/**
 * Allocates device memory for elements of a type, like `allocate`. The size is a number of elements.
 *
 * **Details**
 *
 * The array is a `DeviceBuffer` that knows the type of its elements, so every operation accepts it. Operations that know a type accept no
 * other: a kernel parameter of `CudaParameter.inputOf("f32")` does not take an array of `u8`, and `copy` does not copy between the two.
 *
 * Fails with `InvalidArgument` for an unknown type and for a length that is not a positive integer, and otherwise like `allocate`.
 *
 * **Gotchas**
 *
 * `slice`, `rows` and `fill` count bytes, whatever the type: take parts with `elements`.
 *
 * **Example** (A thousand floats, the first hundred of them cleared)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const values = yield* CudaMemory.array("f32", 1000)
 *   yield* CudaMemory.fill(CudaMemory.elements(values, 0, 100), 0)
 * })
 * ```
 *
 * @category arrays
 * @since 0.1.0
 */
export const array = <const Type extends ElementType>(
  type: Type,
  length: number,
  options: DeviceBufferOptions = {}
): Effect.Effect<DeviceArray<Type>, CudaError, CudaRuntime | Scope.Scope> =>
  makeArray("CudaMemory.array", type, length, options)

const makeArray = <Type extends ElementType>(
  operation: string,
  type: Type,
  length: number,
  options: DeviceBufferOptions
): Effect.Effect<DeviceArray<Type>, CudaError, CudaRuntime | Scope.Scope> =>
  refuseLength(operation, type, length) ??
    allocating(
      length * elementSizeOf(type),
      options,
      (runtime, ref): DeviceArray<Type> => new DeviceArrayImpl(runtime, ref, type)
    ).pipe(named(operation))

const refuseLength = (operation: string, type: ElementType, length: number) => {
  if (!isElementType(type)) return refuseArgument(operation, "type", type, elementWords)
  const most = Math.floor(Number.MAX_SAFE_INTEGER / elementSizeOf(type))
  return isWhole(length, 1, most)
    ? undefined
    : refuseArgument(operation, "length", length, "a positive integer, the number of elements")
}

/**
 * Allocates pinned host memory for elements of a type, like `allocateHost`. The size is a number of elements. `view` returns the memory as
 * a typed array of JavaScript.
 *
 * **Details**
 *
 * Fails like `array` for an unknown type or a wrong length, and otherwise like `allocateHost`.
 *
 * **Example** (Numbers written in place, then copied)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const pinned = yield* CudaMemory.pinnedArray("f64", 256)
 *   CudaMemory.view(pinned).fill(0.5) // a Float64Array
 *   const device = yield* CudaMemory.array("f64", 256)
 *   yield* CudaMemory.copy(device, pinned)
 * })
 * ```
 *
 * @category arrays
 * @since 0.1.0
 */
export const pinnedArray = <const Type extends ElementType>(
  type: Type,
  length: number,
  options: BufferOptions = {}
): Effect.Effect<PinnedArray<Type>, CudaError, CudaRuntime | Scope.Scope> =>
  refuseLength("CudaMemory.pinnedArray", type, length) ??
    allocatingHost(
      length * elementSizeOf(type),
      options,
      (runtime, ref): PinnedArray<Type> => new PinnedArrayImpl(runtime, ref, type)
    ).pipe(named("CudaMemory.pinnedArray"))

/**
 * Allocates device memory for the elements of a typed array of JavaScript, and uploads them. Returns when the array has been read and may
 * be changed; later work on the stream sees the data.
 *
 * **Details**
 *
 * The type follows from the kind of array: `f32` for a `Float32Array`, `i64` for a `BigInt64Array`. A `Uint16Array` is `u16`, unless
 * `type` says that it holds the bits of `f16` or `bf16`. A `Uint8Array` or `Buffer` is `u8`, unless `type` says what its bytes are.
 *
 * Works like `array` followed by `upload`, on the given stream, or on the current one. With a `stream`, the memory is allocated in its
 * order, too. Fails like both.
 *
 * **Gotchas**
 *
 * Other streams must wait for the upload, unless the array is ordered.
 *
 * **Example** (There and back)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const numbers = yield* CudaMemory.fromArray(Float32Array.of(1, 2, 3))
 *   const halves = yield* CudaMemory.fromArray(Uint16Array.of(0x3c00, 0x4000), { type: "f16" })
 *   return [yield* CudaMemory.toArray(numbers), yield* CudaMemory.toArray(halves)]
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category arrays
 * @since 0.1.0
 */
export function fromArray<A extends HostArray, const Type extends ElementTypeOf<A>>(
  values: A,
  options: DeviceBufferOptions & {
    /** What the elements are. */
    readonly type: Type
  }
): Effect.Effect<DeviceArray<Type>, CudaError, CudaRuntime | Scope.Scope>
export function fromArray<A extends NumberArray>(
  values: A,
  options?: DeviceBufferOptions
): Effect.Effect<DeviceArray<UsualTypeOf<A>>, CudaError, CudaRuntime | Scope.Scope>
export function fromArray(
  values: HostArray,
  options: DeviceBufferOptions & { readonly type?: ElementType | undefined } = {}
): Effect.Effect<DeviceArray, CudaError, CudaRuntime | Scope.Scope> {
  return Effect.suspend(() => {
    const operation = "CudaMemory.fromArray"
    const types = elementTypesOf(values)
    if (types === undefined) return refuseArgument(operation, "values", values, "a typed array")
    const { stream, type = types[0] } = options
    if (!types.includes(type)) return refuseArgument(operation, "type", type, types.join(" or "))
    const length = values.byteLength / elementSizeOf(type)
    return Effect.tap(
      makeArray(operation, type, length, options),
      (made) => named(operation)(uploadTo(made, values, stream))
    )
  })
}

/**
 * A typed array of JavaScript.
 *
 * @category arrays
 * @since 0.1.0
 */
export type NumberArray =
  | Int8Array
  | Uint8Array
  | Uint8ClampedArray
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array
  | Float32Array
  | Float64Array

/**
 * Reads elements of device memory as a typed array of JavaScript, on a stream (by default the current stream of the device), and waits for
 * the data. Suspends the fiber, not the thread.
 *
 * **Details**
 *
 * The kind of array follows from the type: a `Float32Array` for `f32`, a `BigInt64Array` for `i64`. `f16` and `bf16` are read as a
 * `Uint16Array` of their bits. Works and fails like `download`, and with `InvalidArgument` for more elements than an array can have.
 *
 * **Example** (Reading part of an array)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const values = yield* CudaMemory.fromArray(Float32Array.of(1, 2, 3, 4))
 *   return yield* CudaMemory.toArray(CudaMemory.elements(values, 2)) // Float32Array [3, 4]
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category arrays
 * @since 0.1.0
 */
export const toArray = <Type extends ElementType>(
  self: Elements<Type, DeviceBuffer>,
  stream?: CudaStream
): Effect.Effect<ElementArray<Type>, CudaError> =>
  Effect.suspend(() => {
    const operation = "CudaMemory.toArray"
    if (!isElements(self)) {
      return refuseArgument(operation, "array", self, "memory with an element type (CudaMemory.typed)")
    }
    const values = emptyArray<Type>(self)
    return values === undefined
      ? refuseArgument(operation, "length", self.length, "as many elements as a typed array can have")
      : Effect.as(named(operation)(downloadTo(values, self, stream)), values)
  })

/** Undefined if there can be no array of that length. */
const emptyArray = <Type extends ElementType>({ element, length }: Elements<Type>): ElementArray<Type> | undefined => {
  try {
    return new elementConstructors[element](length)
  } catch {
    return undefined
  }
}

/**
 * Takes a part of memory with an element type: `length` elements from `offset`, by default up to the end. The part has the same type. The
 * range is checked by the operation that uses it.
 *
 * **Example** (The second row of a matrix)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const matrix: CudaMemory.DeviceArray<"f32">
 * const columns = 1000
 *
 * const row = CudaMemory.elements(matrix, columns, columns)
 * ```
 *
 * @category arrays
 * @since 0.1.0
 */
export function elements<Type extends ElementType, Buffer extends DeviceBuffer | HostBuffer>(
  self: Elements<Type, Buffer>,
  offset: number,
  length?: number
): Elements<Type, Buffer>
export function elements(
  offset: number,
  length?: number
): <Type extends ElementType, Buffer extends DeviceBuffer | HostBuffer>(
  self: Elements<Type, Buffer>
) => Elements<Type, Buffer>
export function elements(first: Elements | number, second?: number, third?: number) {
  return typeof first === "number"
    ? (self: Elements) => elementsFrom(self, first, second)
    : elementsFrom(first, second ?? 0, third)
}

/** A number that is not an integer is kept as it is, so that the operation that uses the part refuses that number. */
const elementsFrom = (self: Elements, offset: number, length = self?.length - offset): Elements => {
  const size = elementSizeOf(self?.element)
  return {
    buffer: self?.buffer ?? self,
    offset: Number.isInteger(offset) ? self?.offset + offset * size : offset,
    byteLength: Number.isInteger(length) ? length * size : length,
    element: self?.element,
    length
  }
}

/**
 * Gives the bytes of a buffer, or of a part of one, an element type: for memory of `allocateManaged`, `growable`, `pin` or `fromAddress`,
 * for global variables, and to read the elements of an array as another type. Moves nothing.
 *
 * **Details**
 *
 * Fails with `InvalidArgument` if the bytes do not begin at a multiple of the element size or are not whole elements, if they are not
 * inside the buffer, and for an unknown type.
 *
 * **Gotchas**
 *
 * Nothing knows what is in memory: the type is only what the program says. The length is that of the bytes now, also if a growable buffer
 * grows later.
 *
 * **Example** (Managed memory as integers)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const counters = CudaMemory.allocateManaged(4096).pipe(Effect.flatMap(CudaMemory.typed("u32")))
 * ```
 *
 * @category arrays
 * @since 0.1.0
 */
export const typed: {
  <const Type extends ElementType>(
    type: Type
  ): <Buffer extends DeviceBuffer | HostBuffer>(self: Slice<Buffer>) => Effect.Effect<Elements<Type, Buffer>, CudaError>
  <Buffer extends DeviceBuffer | HostBuffer, const Type extends ElementType>(
    self: Slice<Buffer>,
    type: Type
  ): Effect.Effect<Elements<Type, Buffer>, CudaError>
} = dual(
  2,
  <Buffer extends DeviceBuffer | HostBuffer, Type extends ElementType>(
    self: Slice<Buffer>,
    type: Type
  ): Effect.Effect<Elements<Type, Buffer>, CudaError> =>
    Effect.suspend(() => {
      const operation = "CudaMemory.typed"
      if (!isSlice(self)) return refuseArgument(operation, "buffer", self, "a buffer or a part of one")
      if (!isElementType(type)) return refuseArgument(operation, "type", type, elementWords)
      const size = elementSizeOf(type)
      const { buffer, byteLength, offset } = self
      const room = buffer.byteLength
      if (!isWhole(offset, 0, room) || (addressOf(buffer) + offset) % size !== 0) {
        const expected = `bytes of the buffer from a multiple of ${size} on, the size of ${type}`
        return refuseArgument(operation, "offset", offset, expected)
      }
      if (!isWhole(byteLength, 0, room - offset) || byteLength % size !== 0) {
        const expected = `a multiple of ${size}, the size of ${type}, and at most ${room - offset}`
        return refuseArgument(operation, "byteLength", byteLength, expected)
      }
      return Effect.succeed({ buffer, offset, byteLength, element: type, length: byteLength / size })
    })
)

/** Memory of a graph has no address before its launch. */
const addressOf = ({ ref }: DeviceBuffer | HostBuffer): number => Number.isSafeInteger(ref.address) ? ref.address : 0

/**
 * Pins host memory that exists, such as an `ArrayBuffer` that other code fills, so that devices copy from and to it at full speed
 * (`cuMemHostRegister`). The buffer is that memory itself, pinned as long as its scope is open.
 *
 * **Details**
 *
 * Takes as long as pinning new memory (see `allocateHost`), without blocking the event loop: memory is pinned in slices of 16 MiB, with
 * turns of the event loop in between. Prefer memory of `allocateHost` where you can choose, because it is pinned once and reused.
 *
 * Closing the scope returns at once. `bytes` of the buffer is then empty, and your array stays usable: work that was enqueued before
 * may still read or write it. The memory is unpinned after that work, once no device has any, and is kept reachable until then. If it is
 * pinned again meanwhile, it stays pinned.
 *
 * Memory may begin and end anywhere: the driver locks the pages around it, and no longer asks for whole pages, as CUDA 4.0 did. A part of
 * memory that is pinned already shares the pin. Fails with `HostMemoryAlreadyRegistered` for memory of which only a part is pinned, or
 * that other code has pinned, with `OutOfMemory` beyond the runtime's limit of pinned memory, and with `InvalidArgument` for memory that
 * is empty, shared (`SharedArrayBuffer`), resizable, or was transferred.
 *
 * **Gotchas**
 *
 * Do not transfer the `ArrayBuffer` while it is pinned: the next operation rejects it (`InvalidArgument`), but work in progress goes on to
 * use its memory, which the new owner may free.
 *
 * Small arrays and `Buffer`s share pages with others. Whether the driver pins two of them that share a page is untested; if not, the second
 * fails with `HostMemoryAlreadyRegistered`. Pin few large arrays, or the whole `ArrayBuffer` that they are in.
 *
 * Release the runtime before its worker thread ends: the memory of a worker that ends first is freed while it may still be in use.
 *
 * **Example** (Copying a file's contents without a copy on the host)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const contents: Uint8Array<ArrayBuffer>
 * declare const device: CudaMemory.DeviceBuffer
 *
 * const copied = CudaMemory.pin(contents).pipe(
 *   Effect.flatMap((host) => CudaMemory.copy(device, host)),
 *   Effect.scoped
 * )
 * ```
 *
 * @category interoperability
 * @since 0.1.0
 */
export const pin = (
  memory: ArrayBuffer | HostArray,
  options: BufferOptions = {}
): Effect.Effect<HostBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  makeScoped(undefined, {
    create: (runtime, _, fiber) =>
      runtime.hostPin(pinnable(memory), { ordered: options.ordered ?? fiber.getRef(CurrentOrdering) }),
    destroy: (runtime, ref) => runtime.memoryFree(ref),
    wrap: (runtime, ref): HostBuffer => new HostBufferImpl(runtime, ref)
  })

/** The bytes of memory. A value without bytes is passed on, and the runtime refuses it. */
const pinnable = (memory: ArrayBuffer | HostArray): Uint8Array => {
  const bytes = ArrayBuffer.isView(memory)
    ? bytesOf(memory)
    : memory instanceof ArrayBuffer
    ? bytesIn(memory)
    : undefined
  return bytes ?? memory as Uint8Array
}

/** Undefined for memory that was transferred. */
const bytesIn = (buffer: ArrayBuffer): Uint8Array | undefined => {
  try {
    return new Uint8Array(buffer)
  } catch {
    return undefined
  }
}

/**
 * Options for `fromAddress`.
 *
 * @category models
 * @since 0.1.0
 */
export interface FromAddressOptions<out R = never> extends BufferOptions {
  /** The device of the memory. Default: the current device. */
  readonly device?: DeviceInput | undefined
  /** Runs when the scope closes, after all work that uses the buffer is done, for example to free the memory. */
  readonly release?: Effect.Effect<unknown, never, R> | undefined
}

/**
 * Makes a buffer of device memory that other code allocated, given its address. Every operation accepts it until the scope closes. The
 * way back is `address`: every buffer has it, and `enqueue` and `access` declare what other code does with it.
 *
 * **Details**
 *
 * When the scope closes, new uses are refused, the work that uses the buffer is waited for (the fiber suspends, not the thread), and
 * then `release` runs, also if waiting failed. The library never frees the memory. If the buffer cannot be made, `release` does not run.
 *
 * The driver is asked about the address (`cuPointerGetAttributes`). Fails with `InvalidArgument` if it is not device memory or managed
 * memory, or if fewer than `byteLength` bytes follow in its allocation, and with `DeviceMismatch` for memory of another device. Managed
 * memory becomes a buffer of the given device, without `bytes`. On simulated devices, only addresses in live buffers of the same runtime
 * are accepted, and the buffer is a second view of their bytes.
 *
 * **Gotchas**
 *
 * The memory must live until the scope has closed, and nothing tells this library if it does not. The driver may not know the extent of
 * memory that comes from a pool; then `byteLength` is not checked.
 *
 * Work that other code has enqueued before is not known: make the stream wait for it, for example with an event (`CudaEvent.fromHandle`).
 * Later work of other code is known if it is declared with `enqueue` or `access`.
 *
 * Two buffers on the same bytes know nothing of each other. `ordered` orders the uses of each buffer, but not those of one after those of
 * the other, copies between the two are not checked for overlaps, and releasing the one does not wait for the uses of the other.
 *
 * **Example** (Memory of another binding)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * interface Tensor {
 *   readonly address: bigint
 *   readonly byteLength: number
 *   readonly free: () => void
 * }
 *
 * const bufferOf = (tensor: Tensor) =>
 *   CudaMemory.fromAddress(tensor.address, tensor.byteLength, { release: Effect.sync(tensor.free) })
 * ```
 *
 * @category interoperability
 * @since 0.1.0
 */
export const fromAddress = <R = never>(
  address: number | bigint,
  byteLength: number,
  options: FromAddressOptions<R> = {}
): Effect.Effect<DeviceBuffer, CudaError, CudaRuntime | Scope.Scope | R> =>
  Effect.flatMap(Effect.context<R>(), (context) => {
    const release = Effect.provideContext(options.release ?? Effect.void, context)
    return makeScoped(options.device, {
      create: (runtime, device, fiber) =>
        runtime.memoryFromAddress(device, numberOf(address), byteLength, {
          ordered: options.ordered ?? fiber.getRef(CurrentOrdering)
        }),
      destroy: (runtime, ref) => Effect.ensuring(runtime.memoryFree(ref), release),
      wrap: (runtime, ref): DeviceBuffer => new DeviceBufferImpl(runtime, ref)
    })
  })

/** An address as other code gives it. Precise, because addresses are below 2^53. */
const numberOf = (address: number | bigint): number => typeof address === "bigint" ? Number(address) : address

/**
 * Reads what CUDA knows about the memory at an address: whether it is memory of a device or pinned memory of the host, and the range of
 * its allocation (`cuPointerGetAttributes`). `undefined` for memory that CUDA does not know, such as ordinary host memory.
 *
 * **Details**
 *
 * Memory of another process or library counts if it was allocated in, or pinned for, a context of this process. The driver pins large
 * buffers of `allocateHost` in several ranges, and answers with the one that contains the address.
 *
 * **Example** (Whose address this is)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const address: number
 *
 * const device = Effect.map(CudaMemory.pointerAttributes(address), (attributes) => attributes?.deviceIndex)
 * ```
 *
 * @category interoperability
 * @since 0.1.0
 */
export const pointerAttributes = (
  address: number | bigint
): Effect.Effect<PointerAttributes | undefined, CudaError, CudaRuntime> =>
  Effect.flatMap(
    CudaRuntime,
    (runtime) =>
      Effect.flatMap(resolveDevice(undefined), (device) => runtime.memoryAttributes(device, numberOf(address)))
  )

/**
 * Turns automatic ordering on or off for buffers allocated inside an effect. The `ordered` option of a buffer takes precedence.
 *
 * **Details**
 *
 * Uses of an ordered buffer on different streams wait for each other on the GPU as required by their reads and writes: a write waits for
 * earlier reads and writes of the same bytes, a read for earlier writes. Reads do not wait for reads, non-overlapping parts are
 * independent, and uses on one stream are in order anyway. The order is the order of enqueueing. Each use costs a `cuEventRecord`, plus a
 * `cuStreamWaitEvent` for each stream it waits for.
 *
 * **Gotchas**
 *
 * An ordered buffer must know all of its uses, so the setting applies to buffers allocated inside the region, wherever they are used, not
 * to buffers used inside it. Declare work that this library does not enqueue with `access`.
 *
 * Accesses to the `bytes` of pinned memory by JavaScript are not tracked: call `synchronize` first.
 *
 * **Example** (Using two streams without events)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const [up, down] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
 *   const buffer = yield* CudaMemory.allocate(4096)
 *   const host = yield* CudaMemory.allocateHost(4096)
 *   yield* CudaMemory.fill(buffer, 1, up)
 *   yield* CudaMemory.copy(host, buffer, down) // after the fill
 *   yield* CudaMemory.fill(buffer, 2, up) // after the copy
 *   yield* CudaMemory.synchronize(host)
 *   return host.bytes[0] // 1
 * }).pipe(CudaMemory.withOrdering(), Effect.scoped)
 * ```
 *
 * @category ordering
 * @since 0.1.0
 */
export function withOrdering(enabled?: boolean): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
export function withOrdering<A, E, R>(self: Effect.Effect<A, E, R>, enabled?: boolean): Effect.Effect<A, E, R>
export function withOrdering(first?: Effect.Effect<unknown, unknown, unknown> | boolean, enabled = true) {
  if (Effect.isEffect(first)) return Effect.provideService(first, CurrentOrdering, enabled)
  return <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.provideService(self, CurrentOrdering, first ?? true)
}

/**
 * Takes a part of a buffer: `byteLength` bytes from `offset`, by default up to the end. The range is checked by the operation that uses
 * it.
 *
 * **Example** (The second half of a buffer)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const cleared = CudaMemory.fill(CudaMemory.slice(buffer, buffer.byteLength / 2), 0)
 * ```
 *
 * @category ranges
 * @since 0.1.0
 */
export function slice<Buffer extends DeviceBuffer | HostBuffer>(
  self: Slice<Buffer>,
  offset: number,
  byteLength?: number
): Slice<Buffer>
export function slice(
  offset: number,
  byteLength?: number
): <Buffer extends DeviceBuffer | HostBuffer>(self: Slice<Buffer>) => Slice<Buffer>
export function slice(first: Slice | number, second?: number, third?: number) {
  if (typeof first === "number" && third === undefined) return (self: Slice) => part(self, first, second)
  // Data first with a number instead of a buffer: the operation that uses the slice refuses it.
  return typeof first === "number"
    ? { buffer: first, offset: second, byteLength: third }
    : part(first, second ?? 0, third)
}

/** If `self` is not a slice, it becomes the buffer, and the operation that uses the slice refuses it. */
const part = (self: Slice, offset: number, byteLength = self?.byteLength - offset): Slice => ({
  buffer: self?.buffer ?? self,
  offset: self?.offset + offset,
  byteLength
})

/**
 * Treats a part of a buffer as rows, with `pitch` bytes from the start of one row to the start of the next. Checked by the operation
 * that uses them.
 *
 * **Example** (The left half of an image)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const image: CudaMemory.DeviceBuffer // 512 rows of 1024 bytes
 * declare const left: CudaMemory.DeviceBuffer // 512 rows of 512 bytes
 *
 * const copied = CudaMemory.copy2D(CudaMemory.rows(left, 512), CudaMemory.rows(image, 1024), { width: 512, height: 512 })
 * ```
 *
 * @category ranges
 * @since 0.1.0
 */
export const rows: {
  (pitch: number): <Buffer extends DeviceBuffer | HostBuffer>(self: Slice<Buffer>) => Rows<Buffer>
  <Buffer extends DeviceBuffer | HostBuffer>(self: Slice<Buffer>, pitch: number): Rows<Buffer>
} = dual(
  2,
  <Buffer extends DeviceBuffer | HostBuffer>(self: Slice<Buffer>, pitch: number): Rows<Buffer> => ({
    buffer: self?.buffer ?? self,
    offset: self?.offset,
    byteLength: self?.byteLength,
    pitch
  })
)

/**
 * Views pinned or managed memory as a typed array, without copying. The array has as many whole elements as fit. Memory with an element
 * type, such as a `PinnedArray`, needs no constructor.
 *
 * **Details**
 *
 * Throws a `RangeError`, as a typed array's constructor does, if the part is not inside the buffer or does not start at a multiple of the
 * element size, and a `CudaError` with `InvalidArgument` for a value that is not pinned or managed memory, or whose
 * `ArrayBuffer` was transferred.
 *
 * **Gotchas**
 *
 * The array is the memory itself: read it only after the copy that fills it is done, and do not write to it before the copy that reads it
 * is done. An array over pinned memory has length 0 after the buffer is released, and so does every array created from a released buffer.
 *
 * **Example** (Pinned memory as numbers)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const host: CudaMemory.HostBuffer
 *
 * const numbers = CudaMemory.view(host, Float32Array) // the same bytes, not a copy
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export function view<Type extends ElementType>(
  self: Elements<Type, HostBuffer> | Elements<Type, ManagedBuffer>
): ElementArray<Type>
export function view<A>(self: Slice<HostBuffer> | Slice<ManagedBuffer>, Type: TypedArrayConstructor<A>): A
export function view(
  self: SliceOf<ElementType, HostBuffer> | SliceOf<ElementType, ManagedBuffer>,
  Type?: TypedArrayConstructor<unknown>
): unknown {
  if (Type !== undefined) return viewAs(self, Type)
  const element = self?.element
  if (element === undefined || !isElementType(element)) {
    throw invalidArgument(
      "CudaMemory.view",
      "Type",
      Type,
      "the constructor of a typed array, for memory without an element type"
    )
  }
  return viewAs<unknown>(self, elementConstructors[element])
}

const viewAs = <A>(self: Slice<HostBuffer> | Slice<ManagedBuffer>, Type: TypedArrayConstructor<A>): A => {
  const bytes = self?.buffer?.ref?.bytes
  if (bytes === undefined) throw invalidArgument("CudaMemory.view", "buffer", self, "pinned or managed memory")
  const { buffer, byteOffset, byteLength } = bytes
  // Live memory has bytes until the program transfers them.
  if (byteLength === 0 && self.buffer.ref.state === "live") {
    throw invalidArgument("CudaMemory.view", "buffer", self.buffer, "a buffer whose ArrayBuffer was not transferred")
  }
  if (byteLength === 0) return new Type(buffer, 0, 0)
  const end = self.offset + self.byteLength
  const isInside = Number.isInteger(self.offset) && self.offset >= 0 && self.byteLength >= 0 && end <= byteLength
  if (!isInside || self.offset % Type.BYTES_PER_ELEMENT !== 0) {
    throw new RangeError(
      `CudaMemory.view: bytes ${self.offset} to ${end} of a buffer of ${byteLength} bytes, as elements of ${Type.BYTES_PER_ELEMENT} bytes`
    )
  }
  self.buffer.runtime.hostAccess?.(rangeOf(self), "CudaMemory.view")
  return new Type(buffer, byteOffset + self.offset, Math.floor(self.byteLength / Type.BYTES_PER_ELEMENT))
}

/**
 * Copies between device and pinned memory, in any direction and between devices, as work on a stream. Default: the current stream of the
 * destination's device, or of the source's device if the destination is host memory. Uses `cuMemcpyHtoDAsync`, `cuMemcpyDtoHAsync`,
 * `cuMemcpyDtoDAsync` or `cuMemcpyPeerAsync`.
 *
 * **Details**
 *
 * Returns when the copy is enqueued. Both ends must have the same length; use `slice` to copy parts. Fails with `InvalidArgument` if a
 * range ends outside its buffer, the ranges overlap, or both ends are host memory, and with `DeviceMismatch` if the stream is on the
 * device of neither end, unless its device has access to one.
 *
 * If both ends have element types, these must be the same: others do not compile, and fail with `InvalidArgument` if forced. `slice` takes
 * the bytes of an array without its type.
 *
 * Copies between devices with a link go over it. The first copy between two pools lets both devices access them (`cuMemPoolSetAccess`), for
 * as long as the pools live; kernels need `CudaDevice.enablePeerAccess` nevertheless.
 *
 * **Gotchas**
 *
 * Between devices without a link, the driver stages the copy through the host, and blocks the event loop meanwhile. It does so as well for
 * memory of other code that is in no pool, until both devices have access to each other.
 *
 * **Example** (To the device and back)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const host: CudaMemory.HostBuffer
 * declare const device: CudaMemory.DeviceBuffer
 *
 * const roundTrip = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   yield* CudaMemory.copy(device, host, stream)
 *   yield* CudaMemory.copy(host, device, stream)
 *   yield* CudaStream.synchronize(stream) // before reading host.bytes
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category copies
 * @since 0.1.0
 */
export function copy<Type extends ElementType>(
  destination: SliceOf<Type>,
  source: SliceOf<NoInfer<Type>>,
  stream?: CudaStream
): Effect.Effect<void, CudaError>
export function copy<Type extends ElementType>(
  source: SliceOf<Type>,
  stream?: CudaStream
): (destination: SliceOf<Type>) => Effect.Effect<void, CudaError>
export function copy(first: Slice, second?: Slice | CudaStream, third?: CudaStream) {
  if (isSlice(second)) return copyTo(first, second, third)
  if (isDataLast(second, third)) return (destination: Slice) => copyTo(destination, first, second)
  return refuseArgument("CudaMemory.copy", "source", second, "a buffer or a part of one")
}

/** Whether the arguments are those of the data-last form, which ends with a stream or with nothing. */
const isDataLast = (stream: unknown, next?: unknown): stream is CudaStream | undefined =>
  next === undefined && (stream === undefined || isCudaStream(stream))

const copyTo = (
  destination: SliceOf<ElementType>,
  source: SliceOf<ElementType>,
  stream: CudaStream | undefined
): Effect.Effect<void, CudaError> => {
  if (areMixed(destination, source)) return refuseMixed("CudaMemory.copy", "source", destination, source)
  const runtime = runtimeOfPart(destination)
  const to = rangeOf(destination)
  const from = rangeOf(source)
  if (stream !== undefined) return runtime.memoryCopy(to, from, refOfStream(stream))
  return onStream(
    "CudaMemory.copy",
    runtime,
    deviceOfCopy(destination, source),
    stream,
    (ref) => runtime.memoryCopy(to, from, ref)
  )
}

/**
 * The size of a copy of rows.
 *
 * @category models
 * @since 0.1.0
 */
export interface Size2D {
  /** Bytes per row. */
  readonly width: number
  /** Number of rows. */
  readonly height: number
}

/**
 * Copies rows, such as a part of an image or a block of a matrix, as work on a stream; the default stream is that of `copy`
 * (`cuMemcpy2DAsync`).
 *
 * **Details**
 *
 * Each end is made with `rows`, or is a slice whose rows follow each other without gaps. Returns when the copy is enqueued. Fails with
 * `InvalidArgument` if the rows do not fit into their part or overlap, or if a pitch is less than the width or greater than 2^31 - 1;
 * otherwise like `copy`. Between devices, each row is a separate copy.
 *
 * **Example** (Copying a block of 64 by 64 floats out of a matrix with 1000 columns)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const matrix: CudaMemory.DeviceBuffer
 * declare const host: CudaMemory.HostBuffer
 *
 * const block = matrix.pipe(CudaMemory.slice((128 * 1000 + 256) * 4), CudaMemory.rows(1000 * 4))
 * const copied = CudaMemory.copy2D(host, block, { width: 64 * 4, height: 64 })
 * ```
 *
 * @category copies
 * @since 0.1.0
 */
export function copy2D(
  destination: Slice | Rows,
  source: Slice | Rows,
  size: Size2D,
  stream?: CudaStream
): Effect.Effect<void, CudaError>
export function copy2D(
  source: Slice | Rows,
  size: Size2D,
  stream?: CudaStream
): (destination: Slice | Rows) => Effect.Effect<void, CudaError>
export function copy2D(
  first: Slice | Rows,
  second: Slice | Rows | Size2D,
  third?: Size2D | CudaStream,
  fourth?: CudaStream
) {
  if (isSize(second) && isDataLast(third, fourth)) {
    return (destination: Slice | Rows) => copyRowsTo(destination, first, second, third)
  }
  return copyRowsTo(first, second, third, fourth)
}

const isSize = (u: unknown): u is Size2D => Predicate.hasProperty(u, "width") && Predicate.hasProperty(u, "height")

const copyRowsTo = (
  destination: SliceOf<ElementType>,
  source: SliceOf<ElementType> | Size2D,
  size: Size2D | CudaStream | undefined,
  stream: CudaStream | undefined
): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.copy2D"
  if (!isSlice(source)) return refuseArgument(operation, "source", source, "a buffer, a part of one, or rows")
  if (areMixed(destination, source)) return refuseMixed(operation, "source", destination, source)
  if (!isSize(size)) return refuseArgument(operation, "size", size, "an object with width and height")
  const runtime = runtimeOfPart(destination)
  const to = rowsOf(destination, size.width)
  const from = rowsOf(source, size.width)
  const device = deviceOfCopy(destination, source)
  return onStream(operation, runtime, device, stream, (ref) => runtime.memoryCopy2D(to, from, size, ref))
}

const rowsOf = (part: Slice | Rows, width: number): MemoryRows => ({
  ...rangeOf(part),
  pitch: Predicate.hasProperty(part, "pitch") ? part.pitch : width
})

/**
 * A copy in a batch.
 *
 * @category models
 * @since 0.1.0
 */
export interface BatchCopy {
  readonly destination: Slice
  readonly source: Slice
}

interface TypedCopy {
  readonly destination: SliceOf<ElementType>
  readonly source: SliceOf<ElementType>
}

/**
 * Copies many ranges with one call, as work on a stream (`cuMemcpyBatchAsync`, CUDA 12.8 and later). Default: the current stream of the
 * device that the first copy is to or from.
 *
 * **Details**
 *
 * The copies are not ordered against each other, so none may write what another one reads or writes; that fails with `InvalidArgument`.
 * Everything else is checked as in `copy`. An older driver receives the copies one after another, and so does every driver for the legacy
 * default stream and for copies between devices.
 *
 * **Example** (Many small copies with one call)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import type { CudaStream } from "effect-cuda"
 *
 * declare const pairs: ReadonlyArray<readonly [CudaMemory.DeviceBuffer, CudaMemory.DeviceBuffer]>
 * declare const stream: CudaStream.CudaStream
 *
 * const copied = CudaMemory.copyBatch(pairs.map(([destination, source]) => ({ destination, source })), stream)
 * ```
 *
 * @category copies
 * @since 0.1.0
 */
export const copyBatch = (copies: ReadonlyArray<BatchCopy>, stream?: CudaStream): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const operation = "CudaMemory.copyBatch"
    if (!Array.isArray(copies)) return refuseArgument(operation, "copies", copies, "an array of copies")
    const list: ReadonlyArray<BatchCopy> = copies
    const [first] = list
    if (list.length === 0) return Effect.void
    const transfers = list.map((copy) => ({ to: rangeOf(copy?.destination), from: rangeOf(copy?.source) }))
    const wrong = transfers.findIndex((_, index) => !isSlice(list[index]?.destination) || !isSlice(list[index]?.source))
    if (wrong >= 0 || first === undefined) {
      return refuseArgument(operation, `copies[${wrong}]`, list[wrong], "an object with a destination and a source")
    }
    const pairs: ReadonlyArray<TypedCopy> = list
    for (const [index, { destination, source }] of pairs.entries()) {
      if (areMixed(destination, source)) return refuseMixed(operation, `copies[${index}].source`, destination, source)
    }
    const { runtime } = first.destination.buffer
    const device = deviceOfCopy(first.destination, first.source)
    return onStream(operation, runtime, device, stream, (ref) => runtime.memoryCopyBatch(transfers, ref))
  })

/**
 * A location for managed memory: the host or a device.
 *
 * @category models
 * @since 0.1.0
 */
export type Location = "host" | DeviceInput

/**
 * Migrates managed memory to where it will be used, as work on a stream, by default the current stream (`cuMemPrefetchAsync`).
 *
 * **Details**
 *
 * Work that uses the memory there afterwards does not have to wait for its pages. Returns when the migration is enqueued. It is enqueued
 * in pieces, with turns of the event loop between them, because a migration to the host takes the driver about a third of a millisecond
 * per MiB on the JS thread, and one to a device about a tenth of that. An interruption leaves the remaining pieces where they are. Fails
 * with `InvalidArgument` for memory that is not managed and for a device that does not exist, and with `NotSupported` on drivers before
 * CUDA 12.2.
 *
 * **Gotchas**
 *
 * Other fibers may enqueue work between the pieces.
 *
 * **Example** (Reading results of a device)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const first = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   const numbers = yield* CudaMemory.allocateManaged(4096)
 *   yield* CudaMemory.fill32(numbers, 1, stream)
 *   yield* CudaMemory.prefetch(numbers, "host", stream)
 *   yield* CudaStream.synchronize(stream)
 *   return CudaMemory.view(numbers, Uint32Array)[0] // 1
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category managed memory
 * @since 0.1.0
 */
export const prefetch: {
  (location: Location, stream?: CudaStream): (self: Slice<ManagedBuffer>) => Effect.Effect<void, CudaError>
  (self: Slice<ManagedBuffer>, location: Location, stream?: CudaStream): Effect.Effect<void, CudaError>
} = dual(
  (args) => isSlice(args[0]) || args.length > 2 || isLocation(args[1]),
  (self: Slice<ManagedBuffer>, location: Location, stream?: CudaStream): Effect.Effect<void, CudaError> => {
    const runtime = runtimeOfPart(self)
    const range = rangeOf(self)
    const place = placeOf(location)
    return onStream(
      "CudaMemory.prefetch",
      runtime,
      undefined,
      stream,
      (ref) => runtime.memoryPrefetch(range, place, ref)
    )
  }
)

const isLocation = (u: unknown): boolean => u === "host" || typeof u === "number" || Predicate.hasProperty(u, "index")

const placeOf = (location: Location): MemoryLocation =>
  location === "host" ? location : deviceIndexOf(location, Number.NaN)

/**
 * Advice to the driver about how managed memory will be used (`CUmem_advise`).
 *
 * @category models
 * @since 0.1.0
 */
export type Advice =
  /** Whether it is mostly read, so that each device that reads it may keep a copy. */
  | { readonly readMostly: boolean }
  /** Where to keep its pages; `"none"` removes the advice. */
  | { readonly preferredLocation: Location | "none" }
  /** Who will access it, so that its pages are mapped there and need not migrate. */
  | { readonly accessedBy: Location }
  /** Removes `accessedBy`. */
  | { readonly notAccessedBy: Location }

/**
 * Advises the driver how managed memory will be used (`cuMemAdvise`). Affects only performance, not results. Fails like `prefetch`.
 *
 * **Example** (A table that is mostly read)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const table: CudaMemory.ManagedBuffer
 *
 * const advised = CudaMemory.advise(table, { readMostly: true })
 * ```
 *
 * @category managed memory
 * @since 0.1.0
 */
export const advise: {
  (advice: Advice): (self: Slice<ManagedBuffer>) => Effect.Effect<void, CudaError>
  (self: Slice<ManagedBuffer>, advice: Advice): Effect.Effect<void, CudaError>
} = dual(2, (self: Slice<ManagedBuffer>, advice: Advice): Effect.Effect<void, CudaError> => {
  const range = rangeOf(self)
  const runtime = runtimeOfPart(self)
  if (typeof advice !== "object" || advice === null) {
    return refuseArgument(
      "CudaMemory.advise",
      "advice",
      advice,
      "an object with one kind of advice, for example { readMostly: true }"
    )
  }
  if ("readMostly" in advice) {
    return runtime.memoryAdvise(range, advice.readMostly ? "setReadMostly" : "unsetReadMostly", "host")
  }
  if ("accessedBy" in advice) return runtime.memoryAdvise(range, "setAccessedBy", placeOf(advice.accessedBy))
  if ("notAccessedBy" in advice) return runtime.memoryAdvise(range, "unsetAccessedBy", placeOf(advice.notAccessedBy))
  const { preferredLocation } = advice
  return preferredLocation === "none"
    ? runtime.memoryAdvise(range, "unsetPreferredLocation", "host")
    : runtime.memoryAdvise(range, "setPreferredLocation", placeOf(preferredLocation))
})

/**
 * Fills device memory with a byte, as work on a stream, by default the current stream of the device (`cuMemsetD8Async`).
 *
 * **Details**
 *
 * Returns when the fill is enqueued. `value` is an integer from 0 to 255. See `fill16` and `fill32` for wider values. Fails with
 * `InvalidArgument` for another value or a range outside the buffer, and with `DeviceMismatch` for a stream of another device.
 *
 * **Example** (Zeros)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const cleared = CudaMemory.fill(buffer, 0)
 * ```
 *
 * @category copies
 * @since 0.1.0
 */
export const fill: FillOperation = fillOperation(8)

/**
 * Fills device memory with a 16-bit value, like `fill` (`cuMemsetD16Async`). `value` is an integer from 0 to 65,535; offset and length
 * must be multiples of 2.
 *
 * **Example** (A pattern of two bytes)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const ones = CudaMemory.fill16(buffer, 0x3c00) // 1 as a 16-bit float
 * ```
 *
 * @category copies
 * @since 0.1.0
 */
export const fill16: FillOperation = fillOperation(16)

/**
 * Fills device memory with a 32-bit value, like `fill` (`cuMemsetD32Async`). `value` is an integer from 0 to 2^32 - 1; offset and
 * length must be multiples of 4.
 *
 * **Example** (Filling a buffer with the float 1)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const floats: CudaMemory.DeviceBuffer
 *
 * const bits = new Uint32Array(Float32Array.of(1).buffer)[0]!
 * const filled = CudaMemory.fill32(floats, bits)
 * ```
 *
 * @category copies
 * @since 0.1.0
 */
export const fill32: FillOperation = fillOperation(32)

/**
 * An operation that fills device memory as work on a stream, by default the current stream of the device.
 *
 * @category models
 * @since 0.1.0
 */
export interface FillOperation {
  (self: Slice<DeviceBuffer>, value: number, stream?: CudaStream): Effect.Effect<void, CudaError>
  (value: number, stream?: CudaStream): (self: Slice<DeviceBuffer>) => Effect.Effect<void, CudaError>
}

function fillOperation(bits: 8 | 16 | 32): FillOperation {
  function fill(self: Slice<DeviceBuffer>, value: number, stream?: CudaStream): Effect.Effect<void, CudaError>
  function fill(value: number, stream?: CudaStream): (self: Slice<DeviceBuffer>) => Effect.Effect<void, CudaError>
  function fill(first: Slice<DeviceBuffer> | number, second?: number | CudaStream, third?: CudaStream) {
    if (typeof first !== "number") return fillWith(first, typeof second === "number" ? second : Number.NaN, bits, third)
    if (isDataLast(second, third)) return (self: Slice<DeviceBuffer>) => fillWith(self, first, bits, second)
    return refuseArgument(fillNames[bits], "buffer", first, "a device buffer")
  }
  return fill
}

const fillNames = { 8: "CudaMemory.fill", 16: "CudaMemory.fill16", 32: "CudaMemory.fill32" } as const

const fillWith = (
  self: Slice<DeviceBuffer>,
  value: number,
  bits: 8 | 16 | 32,
  stream: CudaStream | undefined
): Effect.Effect<void, CudaError> => {
  const runtime = runtimeOfPart(self)
  const range = rangeOf(self)
  const kind: string | undefined = self?.buffer?.kind
  if (kind === "pinned") return refuseArgument(fillNames[bits], "destination", self.buffer, "a device buffer")
  if (stream !== undefined) return runtime.memoryFill(range, value, bits, refOfStream(stream))
  return onStream(
    fillNames[bits],
    runtime,
    self?.buffer?.deviceIndex,
    stream,
    (ref) => runtime.memoryFill(range, value, bits, ref)
  )
}

/**
 * Options for `access`: the memory that the work reads and writes. Memory that is both read and written need only be listed in `writes`.
 *
 * @category models
 * @since 0.1.0
 */
export interface AccessOptions {
  readonly reads?: ReadonlyArray<Slice> | undefined
  readonly writes?: ReadonlyArray<Slice> | undefined
  /** Default: the current stream. */
  readonly stream?: CudaStream | undefined
}

/**
 * Orders work that this library does not enqueue, such as kernels launched by other native code, among the uses of ordered buffers. The
 * stream (by default the current stream) waits for earlier conflicting uses, the effect enqueues its work on it, and later uses on other
 * streams wait for that work, however the effect ends.
 *
 * **Details**
 *
 * Buffers that are not ordered may be listed too: they are not ordered, but their memory lives until the work is done. Fails with
 * `InvalidArgument` for ranges that end outside their buffer. Waits are `cuStreamWaitEvent`, and the end is marked with `cuEventRecord`.
 *
 * While the effect runs, a conflicting copy or fill on another stream is ordered after the work that the effect has enqueued so far and
 * before the rest. Of two conflicting accesses on different streams, the later one suspends its fiber until the earlier one has ended. An
 * access nested in another one does not wait for the outer one, even in a fiber that the outer effect forks.
 *
 * **Gotchas**
 *
 * For a single call, `enqueue` costs a fraction and checks more.
 *
 * Enqueue all work on that one stream, before the effect ends. If a nested access waits for an access of another fiber, and that one waits
 * for the outer access, both wait forever: list all memory in one access instead.
 *
 * **Example** (Launching a kernel from other native code)
 *
 * ```ts
 * import { CudaMemory, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const launchScale: (input: number, output: number, stream: number) => void
 *
 * const scale = (output: CudaMemory.DeviceBuffer, input: CudaMemory.DeviceBuffer, stream: CudaStream.CudaStream) =>
 *   Effect.sync(() => launchScale(input.address, output.address, stream.handle)).pipe(
 *     CudaMemory.access({ reads: [input], writes: [output], stream })
 *   )
 * ```
 *
 * @category ordering
 * @since 0.1.0
 */
export const access: {
  (options: AccessOptions): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CudaError, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, options: AccessOptions): Effect.Effect<A, E | CudaError, R>
} = dual(
  2,
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    { reads = [], stream, writes = [] }: AccessOptions
  ): Effect.Effect<A, E | CudaError, R> => {
    const operation = "CudaMemory.access"
    const refused = refuseSlices(operation, "writes", writes) ?? refuseSlices(operation, "reads", reads)
    if (refused !== undefined) return refused
    const runtime = [...writes, ...reads][0]?.buffer.runtime
    if (runtime === undefined) return self
    return onStream(
      operation,
      runtime,
      undefined,
      stream,
      (ref) =>
        Effect.withFiber((fiber) =>
          within(self, runtime, {
            stream: ref,
            reads: reads.map(rangeOf),
            writes: writes.map(rangeOf),
            outer: fiber.getRef(CurrentAccess)
          })
        )
    )
  }
)

const refuseSlices = (operation: string, name: string, slices: ReadonlyArray<Slice>) => {
  if (!Array.isArray(slices)) return refuseArgument(operation, name, slices, "an array of buffers or parts of buffers")
  const wrong = slices.findIndex((slice) => !isSlice(slice))
  return wrong < 0
    ? undefined
    : refuseArgument(operation, `${name}[${wrong}]`, slices[wrong], "a buffer or a part of one")
}

/** Registers the end before the beginning, which can be interrupted while it waits. */
const within = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  runtime: CudaRuntimeService,
  access: MemoryAccess
): Effect.Effect<A, E | CudaError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.onExit(
      restore(Effect.andThen(runtime.memoryBegin(access), Effect.provideService(self, CurrentAccess, access))),
      () => runtime.memoryEnd(access)
    )
  )

/**
 * Options for `enqueue`.
 *
 * @category models
 * @since 0.1.0
 */
export interface EnqueueOptions extends AccessOptions {
  /**
   * What the codes returned by the call mean: their names, a function that returns the name of a code or the reason of the failure, or the
   * `CudaLibrary` whose codes they are. For functions of the driver and of the CUDA runtime, use `CudaError.reasonFromStatus`.
   */
  readonly status?: ForeignStatuses | undefined
  /**
   * Stands in for the call on simulated devices, which cannot run native code: called when the stream reaches it, with the bytes of
   * `reads` and `writes`.
   */
  readonly simulate?: ForeignSimulation | undefined
}

/**
 * Makes one call of other native code, such as a function bound with koffi or an addon, an operation of this library. The call is given
 * the stream as the address of a `CUstream`, enqueues its work on it, and returns a status number, 0 for success, or nothing.
 *
 * **Details**
 *
 * Does what `access` does, in one step and at about the cost of a kernel launch: checks the memory, orders the work among the uses of
 * ordered buffers, and keeps the memory until the work is done. Use `access` for work that takes several steps to enqueue.
 *
 * Fails with `LibraryFailed` if the call returns another code, or with the reason that `status` returns. Nothing is called if the memory
 * is not usable: fails with `ResourceReleased`, `ForeignResource`, with `DeviceMismatch` for memory of another device than the stream's,
 * and with `InvalidArgument` for ranges outside their buffer. An exception of the call is a defect. Work may have been enqueued in either
 * case, so the uses of the memory count.
 *
 * The primary context of the stream's device is current during the call. Inside a recording, the driver captures the work, and it becomes
 * a node, as by `CudaGraph.capture`, with the same limits. On simulated devices, `simulate` runs instead of the call. Without it, fails
 * with `InvalidArgument`.
 *
 * **Gotchas**
 *
 * Enqueue all work on the given stream, and all of it before the call returns: an asynchronous call (`.async` in koffi) enqueues later. A
 * promise as the result fails with `InvalidArgument`.
 *
 * A code that reports the failure of earlier work (a sticky status of the CUDA runtime) is a failure like others, unless `status` returns
 * the driver's reason for it.
 *
 * **Example** (A function of a library)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const scale: (output: number, input: number, count: number, stream: number) => number
 *
 * const scaled = (output: CudaMemory.DeviceBuffer, input: CudaMemory.DeviceBuffer) =>
 *   CudaMemory.enqueue(
 *     { reads: [input], writes: [output], status: { 1: "SCALE_BAD_COUNT", 2: "SCALE_NO_DEVICE" } },
 *     (stream) => scale(output.address, input.address, input.byteLength / 4, stream)
 *   )
 * ```
 *
 * @category interoperability
 * @since 0.1.0
 */
export const enqueue = (
  options: EnqueueOptions,
  call: (stream: number) => number | void
): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.enqueue"
  if (typeof options !== "object" || options === null) {
    return refuseArgument(operation, "options", options, "an object with reads and writes")
  }
  const { stream } = options
  const runtime = runtimeIn(options)
  if (runtime === undefined) return refuseNothing(operation, options)
  if (stream !== undefined) return runtime.memoryEnqueue(options, call, refOfStream(stream))
  return onStream(operation, runtime, undefined, stream, (ref) => runtime.memoryEnqueue(options, call, ref))
}

/** The runtime of the memory, or of the stream. */
const runtimeIn = ({ reads, stream, writes }: EnqueueOptions): CudaRuntimeService | undefined => {
  const runtime = writes?.[0]?.buffer?.runtime ?? reads?.[0]?.buffer?.runtime ?? stream?.runtime
  return runtime?.identity === undefined ? undefined : runtime
}

const refuseNothing = (operation: string, { reads = [], stream, writes = [] }: EnqueueOptions) =>
  refuseSlices(operation, "writes", writes) ?? refuseSlices(operation, "reads", reads) ??
    refuseArgument(operation, "stream", stream, "a stream, because no memory tells the device")

/**
 * Waits until all uses so far of an ordered buffer, or of a part of it, are done. Suspends the fiber, not the thread.
 *
 * **Details**
 *
 * Waits only for these uses, not for other work on their streams (`cuEventQuery`). Fails with `InvalidArgument` for a buffer that is not
 * ordered.
 *
 * **Gotchas**
 *
 * Does not wait for uses that other fibers enqueue meanwhile.
 *
 * **Example** (Waiting for the uses of one buffer)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const buffer = yield* CudaMemory.allocate(4096, { ordered: true })
 *   yield* CudaMemory.fill(buffer, 0)
 *   yield* CudaMemory.synchronize(buffer)
 * })
 * ```
 *
 * @category ordering
 * @since 0.1.0
 */
export const synchronize = (self: Slice): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => runtimeOfPart(self).memorySynchronize(rangeOf(self)))

/**
 * Copies an ordinary array to device memory of the same length, as work on a stream, by default the current stream of the device. Returns
 * when the array has been read and may be changed; later work on the stream sees the data.
 *
 * **Details**
 *
 * The array is copied through pinned memory in pieces of at most 16 MiB (`cuMemcpyHtoDAsync`). Compared with `copy` from a pinned buffer,
 * this adds a CPU copy on the JS thread at about 10 GB/s. Fails with `InvalidArgument` if the lengths differ or the array is detached
 * meanwhile, and for an array of another kind than the element type of the memory, if it has one. A `Uint8Array`, a `Buffer` and a
 * `DataView` hold bytes of any type.
 *
 * **Example** (Numbers to the device)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 *
 * declare const buffer: CudaMemory.DeviceBuffer // of 12 bytes
 *
 * const uploaded = CudaMemory.upload(buffer, Float32Array.of(1, 2, 3))
 * ```
 *
 * @category copies
 * @since 0.1.0
 */
export function upload<A extends HostArray>(
  destination: SliceOf<ElementTypeOf<A>, DeviceBuffer>,
  source: A,
  stream?: CudaStream
): Effect.Effect<void, CudaError>
export function upload<A extends HostArray>(
  source: A,
  stream?: CudaStream
): (destination: SliceOf<ElementTypeOf<A>, DeviceBuffer>) => Effect.Effect<void, CudaError>
export function upload(
  first: Slice<DeviceBuffer> | HostArray,
  second?: HostArray | CudaStream,
  third?: CudaStream
) {
  if (!isSlice(first) && isDataLast(second, third)) {
    return (destination: Slice<DeviceBuffer>) => uploadTo(destination, first, second)
  }
  return uploadTo(first, second, third)
}

const uploadTo = (destination: unknown, source: unknown, stream: CudaStream | undefined) =>
  withPieces(
    "CudaMemory.upload",
    destination,
    source,
    stream,
    Effect.fnUntraced(function*({ bytesAt, lanes, pieces, runtime, stream, watch }) {
      for (const [index, piece] of pieces.entries()) {
        const lane = lanes[index % 2]!
        if (index >= 2) yield* runtime.eventSynchronize(lane.event)
        lane.host.bytes.set(yield* bytesAt(piece))
        yield* runtime.memoryCopy(piece.device, lane.range(piece), stream)
        yield* runtime.eventRecord(lane.event, stream)
      }
      if (watch !== undefined) yield* watch.end
    })
  )

/**
 * Copies device memory to an ordinary array of the same length, on a stream (by default the current stream of the device), and waits for
 * the data. Suspends the fiber, not the thread.
 *
 * **Details**
 *
 * The data is copied through pinned memory in pieces of at most 16 MiB (`cuMemcpyDtoHAsync`). Compared with `copy` to a pinned buffer,
 * this adds a CPU copy on the JS thread at about 10 GB/s. The array is written while the effect runs, so after an interruption or failure
 * it may be partly written. Fails with `InvalidArgument` like `upload`. For memory with an element type, `toArray` makes the array.
 *
 * **Example** (Numbers from the device)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const downloaded = Effect.gen(function*() {
 *   const numbers = new Float32Array(buffer.byteLength / 4)
 *   yield* CudaMemory.download(numbers, buffer)
 *   return numbers
 * })
 * ```
 *
 * @category copies
 * @since 0.1.0
 */
export function download<A extends HostArray>(
  destination: A,
  source: SliceOf<ElementTypeOf<A>, DeviceBuffer>,
  stream?: CudaStream
): Effect.Effect<void, CudaError>
export function download<Type extends ElementType>(
  source: SliceOf<Type, DeviceBuffer>,
  stream?: CudaStream
): <A extends HostArray>(
  destination: A & (ElementType extends Type ? unknown : [Type] extends [ElementTypeOf<A>] ? unknown : never)
) => Effect.Effect<void, CudaError>
export function download(
  first: HostArray | Slice<DeviceBuffer>,
  second?: Slice<DeviceBuffer> | CudaStream,
  third?: CudaStream
) {
  if (!ArrayBuffer.isView(first) && isDataLast(second, third)) {
    return (destination: HostArray) => downloadTo(destination, first, second)
  }
  return downloadTo(first, second, third)
}

const downloadTo = (destination: unknown, source: unknown, stream: CudaStream | undefined) =>
  withPieces(
    "CudaMemory.download",
    source,
    destination,
    stream,
    Effect.fnUntraced(function*({ bytesAt, lanes, pieces, runtime, stream, watch }) {
      const start = (index: number) => {
        const piece = pieces[index]!
        const lane = lanes[index % 2]!
        return Effect.andThen(
          runtime.memoryCopy(lane.range(piece), piece.device, stream),
          runtime.eventRecord(lane.event, stream)
        )
      }
      yield* start(0)
      for (const [index, piece] of pieces.entries()) {
        if (index + 1 < pieces.length) yield* start(index + 1)
        const lane = lanes[index % 2]!
        yield* runtime.eventSynchronize(lane.event)
        const target = yield* bytesAt(piece)
        watch?.check(target)
        target.set(lane.host.bytes.subarray(0, piece.byteLength))
        watch?.keep(target)
      }
      if (watch !== undefined) yield* watch.end
    })
  )

/** The most bytes copied through pinned memory at a time. */
const pieceSize = 16 * 1024 * 1024

/** A piece of an array, and its place on the device. */
interface Piece {
  readonly offset: number
  readonly byteLength: number
  readonly device: MemoryRange
}

/** Pinned memory for a piece, with an event that is recorded after its copy. */
interface PinnedLane {
  readonly host: HostMemoryRef
  readonly event: EventRef
  readonly range: (piece: Piece) => MemoryRange
}

interface Pieces {
  readonly runtime: CudaRuntimeService
  readonly stream: StreamRef
  /** What a layer looks at the array with. */
  readonly watch: ArrayWatch | undefined
  readonly pieces: ReadonlyArray<Piece>
  /** The array's bytes of a piece; fails if the array has changed its length. */
  readonly bytesAt: (piece: Piece) => Effect.Effect<Uint8Array, CudaError>
  /** Two, so that the CPU copies one piece while the GPU copies another; one for a single piece. */
  readonly lanes: ReadonlyArray<PinnedLane>
}

/** Splits a copy between an array and a device into pieces, with pinned memory and events that live while `use` runs. */
const withPieces = (
  operation: string,
  device: unknown,
  array: unknown,
  stream: CudaStream | undefined,
  use: (pieces: Pieces) => Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    if (!isSlice(device) || device.buffer.kind !== "device") {
      return refuseArgument(operation, "buffer", device, "a device buffer or a part of one")
    }
    const { deviceIndex, runtime } = device.buffer
    const { byteLength, element }: SliceOf<ElementType> = device
    if (cannotHold(array, element)) {
      const expected =
        `an array of the elements of ${element} that the device memory has (CudaMemory.slice takes its bytes)`
      return refuseArgument(operation, "array", array, expected)
    }
    const bytes = ArrayBuffer.isView(array) ? bytesOf(array) : undefined
    if (bytes?.byteLength !== byteLength) {
      const expected = `an array of ${byteLength} bytes, as the device memory has (CudaMemory.slice takes a part of it)`
      return refuseArgument(operation, "array", array, expected)
    }
    const bytesAt = ({ byteLength, offset }: Piece) => {
      const part = bytes.byteLength === device.byteLength ? bytes.subarray(offset, offset + byteLength) : undefined
      return part === undefined
        ? refuseArgument(
          operation,
          "array",
          array,
          `an array that keeps its ${device.byteLength} bytes until the copy is done`
        )
        : Effect.succeed(part)
    }
    return onStream(operation, runtime, deviceIndex, stream, (ref) => {
      if (byteLength === 0) return runtime.memoryFill(rangeOf(device), 0, 8, ref)
      const pieces = piecesOf(device)
      const size = Math.min(byteLength, pieceSize)
      const watch = runtime.watchArray?.(operation, ref)
      if (watch !== undefined) {
        for (const { byteLength, offset } of pieces) watch.keep(bytes.subarray(offset, offset + byteLength))
      }
      return Effect.scoped(Effect.flatMap(
        Effect.forEach(pieces.slice(0, 2), () => makePinnedLane(runtime, ref.deviceIndex, size)),
        (lanes) => use({ runtime, stream: ref, watch, bytesAt, pieces, lanes })
      ))
    })
  }).pipe(named(operation))

const piecesOf = (device: Slice): ReadonlyArray<Piece> =>
  Array.from({ length: Math.ceil(device.byteLength / pieceSize) }, (_, index) => {
    const offset = index * pieceSize
    const byteLength = Math.min(pieceSize, device.byteLength - offset)
    return { offset, byteLength, device: rangeOf(slice(device, offset, byteLength)) }
  })

const makePinnedLane = (
  runtime: CudaRuntimeService,
  deviceIndex: number,
  byteLength: number
): Effect.Effect<PinnedLane, CudaError, Scope.Scope> =>
  Effect.gen(function*() {
    const host = yield* Effect.acquireRelease(
      runtime.hostAllocate(byteLength),
      (memory) => released(runtime.memoryFree(memory))
    )
    const event = yield* Effect.acquireRelease(
      runtime.eventCreate(deviceIndex, eventFlags.disableTiming),
      (made) => released(runtime.eventDestroy(made))
    )
    return { host, event, range: (piece) => ({ memory: host, offset: 0, byteLength: piece.byteLength }) }
  })

const isSlice = (u: unknown): u is Slice => Predicate.hasProperty(u, "buffer") && isBuffer(u.buffer)

const deviceOfCopy = (destination: Slice, source: Slice): number => {
  if (destination?.buffer?.kind === "device") return destination.buffer.deviceIndex
  return source?.buffer?.kind === "device" ? source.buffer.deviceIndex : 0
}
