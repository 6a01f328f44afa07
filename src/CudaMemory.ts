/**
 * Memory of devices and pinned memory of the host, and the copies and fills between them, each ordered on a stream.
 *
 * Buffers live as long as their scope, and their memory until the work that uses them is done: releasing one never waits
 * and never frees what the GPU may still touch. Depends on the `CudaRuntime` interface and on the handles shared by the
 * modules.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { eventFlags } from "./cuda/flags.ts"
import type { CudaDevice, DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import type { MemoryPool } from "./CudaMemoryPool.ts"
import { isCudaStream } from "./CudaStream.ts"
import type { CudaStream } from "./CudaStream.ts"
import {
  DeviceHandle,
  hex,
  named,
  oneLine,
  refuseArgument,
  released,
  ResourceHandle,
  unlessLive
} from "./internal/handles.ts"
import { CurrentAccess, CurrentOrdering } from "./internal/ordered.ts"
import { deviceIndexOf, onStream, resolveDevice } from "./internal/place.ts"
import { makeScoped } from "./internal/scoped.ts"
import type { Kind } from "./internal/scoped.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type {
  CudaRuntimeService,
  DeviceMemoryRef,
  EventRef,
  HostMemoryRef,
  ManagedMemoryRef,
  MemoryAccess,
  MemoryLocation,
  MemoryRange,
  MemoryRows,
  StreamRef
} from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaMemory/Buffer"

/**
 * Memory of a device.
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
  /** Whether its uses on different streams wait for each other by themselves. */
  readonly isOrdered: boolean
  /** Whether it is a `ManagedBuffer`. */
  readonly isManaged: boolean
}

/**
 * Managed memory: every device of the machine and the host use it at one address, and the driver moves its pages to where they
 * are used. Everything that takes device memory takes it too, on the streams of every device.
 *
 * @category models
 * @since 0.1.0
 */
export interface ManagedBuffer extends DeviceBuffer {
  readonly ref: ManagedMemoryRef
  readonly buffer: ManagedBuffer
  /** Where it was allocated, whose current stream it uses by default. */
  readonly deviceIndex: number
  /**
   * The memory itself, seen by the host; empty once it is released. What is read or written here is moved to the host page by
   * page, on the JS thread: `prefetch` it before. The host must not use bytes while work of a device changes them. Throws a
   * `RangeError` for more bytes than a typed array can have, which are 4 GiB in Node.js 20.
   */
  readonly bytes: Uint8Array<ArrayBuffer>
}

/**
 * Pinned memory of the host: what devices copy from and to at full speed and while JavaScript goes on.
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
  readonly address: number
  /** The memory itself. Copies of the device read and write it at any time until their stream has reached their end. */
  readonly bytes: Uint8Array<ArrayBuffer>
  /** Whether the device's uses of it on different streams wait for each other by themselves. */
  readonly isOrdered: boolean
}

/**
 * A part of a buffer; a buffer is its own whole part.
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
 * Rows of a buffer: a part of it with the number of bytes from the start of one row to that of the next.
 *
 * @category models
 * @since 0.1.0
 */
export interface Rows<Buffer extends DeviceBuffer | HostBuffer = DeviceBuffer | HostBuffer> extends Slice<Buffer> {
  readonly pitch: number
}

/**
 * Memory of JavaScript's own: any typed array, a `DataView`, a `Buffer`.
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
 * True for device buffers and host buffers.
 *
 * @category guards
 * @since 0.1.0
 */
export const isBuffer = (u: unknown): u is DeviceBuffer | HostBuffer => Predicate.hasProperty(u, TypeId)

/**
 * True for managed buffers.
 *
 * @category guards
 * @since 0.1.0
 */
export const isManagedBuffer = (u: unknown): u is ManagedBuffer => isBuffer(u) && u.kind === "device" && u.isManaged

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
    return this.ref.address
  }
  get isOrdered(): boolean {
    return this.ref.isOrdered
  }
  get isManaged(): boolean {
    return this.ref.isManaged
  }
  toString(): string {
    const { address, byteLength, deviceIndex, isManaged, isOrdered } = this
    return oneLine(
      isManaged ? "ManagedBuffer" : "DeviceBuffer",
      `${byteLength} bytes`,
      hex(address),
      `device ${deviceIndex}`,
      isOrdered && "ordered",
      unlessLive(this.ref)
    )
  }
  toJSON() {
    const { address, byteLength, deviceIndex, isManaged } = this
    return {
      _id: isManaged ? "ManagedBuffer" : "DeviceBuffer",
      byteLength,
      deviceIndex,
      address,
      state: this.ref.state
    }
  }
}

class ManagedBufferImpl extends DeviceBufferImpl implements ManagedBuffer {
  declare readonly ref: ManagedMemoryRef
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.ref.bytes
  }
}

class HostBufferImpl extends ResourceHandle<HostMemoryRef> implements HostBuffer {
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
    return this.ref.address
  }
  get isOrdered(): boolean {
    return this.ref.isOrdered
  }
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.ref.bytes
  }
  toString(): string {
    const { address, byteLength, isOrdered } = this
    return oneLine("HostBuffer", `${byteLength} bytes`, hex(address), isOrdered && "ordered", unlessLive(this.ref))
  }
  toJSON() {
    const { address, byteLength } = this
    return { _id: "HostBuffer", byteLength, address, state: this.ref.state }
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
   * Whether the buffer orders its uses by itself: a copy, fill or `access` on one stream waits on the GPU for those on
   * other streams that it conflicts with. Default: what `withOrdering` says around the allocation, else false.
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
  /** Default: that of the pool or the stream, else the current device. */
  readonly device?: DeviceInput | undefined
  /** Where it comes from (see `CudaMemoryPool`). Default: the runtime's own pool of the device. */
  readonly pool?: MemoryPool | undefined
  /** The stream whose work the memory is allocated and released among. Default: it is there for all streams at once. */
  readonly stream?: CudaStream | undefined
}

/**
 * Allocates memory of a device that lives as long as its scope (`cuMemAllocFromPoolAsync`). Its contents are undefined.
 *
 * **Details**
 *
 * The memory can be used on every stream at once. Its release is ordered on the GPU after the work of the streams that used
 * it (`cuMemFreeAsync`), and returns at once. When the device or the pool is full, waits for the releases that are still pending
 * before it fails with `OutOfMemory`. Fails with `InvalidArgument` for a size that is not a positive whole number, and with
 * `DeviceMismatch` for a pool or a stream of another device.
 *
 * With a `stream`, the allocation is work of that stream, and so is the release if no other stream used the memory: what the
 * stream released before serves its next allocation, without anyone waiting. Other streams may use the memory too: the first use
 * on each of them waits for the allocation on the GPU.
 *
 * **Gotchas**
 *
 * What is released stays in a pool of this process until the runtime is released. The first use of new memory takes the
 * driver about a millisecond per GiB on the JS thread, and the first allocation on a device about 10 milliseconds; memory that comes from the pool takes microseconds.
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
 * **Example** (Scratch memory among the work of a stream)
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
 *   }).pipe(Effect.scoped) // enqueues the release; waits for nothing
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const allocate = (
  byteLength: number,
  options: DeviceBufferOptions = {}
): Effect.Effect<DeviceBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  reclaiming(
    options.device ?? options.pool?.deviceIndex ?? options.stream?.deviceIndex,
    {
      create: (runtime, device, fiber) => {
        const ordered = options.ordered ?? fiber.getRef(CurrentOrdering)
        const { pool, stream } = options
        return runtime.memoryAllocate(device, byteLength, { ordered, pool: pool?.ref, stream: stream?.ref })
      },
      destroy: (runtime, ref) => runtime.memoryFree(ref),
      wrap: (runtime, ref): DeviceBuffer => new DeviceBufferImpl(runtime, ref)
    },
    options.pool
  )

/**
 * Makes memory of a device, and tries again when that was full, after the releases that are pending. These may take long, so
 * they are waited for between the attempts, which cannot be interrupted. A pool that may only have reached its own limit is asked
 * first for what was released to it: everything that the device's pools keep is given up after that.
 */
const reclaiming = <Ref, Buffer>(
  device: DeviceInput | undefined,
  kind: Kind<Ref, Buffer>,
  pool?: MemoryPool
): Effect.Effect<Buffer, CudaError, CudaRuntime | Scope.Scope> => {
  const acquire = makeScoped(device, kind)
  const gather = pool && named("CudaMemory.reclaim")(pool.runtime.poolTrim(pool.ref, Number.POSITIVE_INFINITY))
  const gathered = gather === undefined ? acquire : orAfter(acquire, gather)
  const reclaim = Effect.flatMap(
    CudaRuntime,
    (runtime) => Effect.flatMap(resolveDevice(device), runtime.memoryReclaim)
  )
  return orAfter(gathered, reclaim)
}

/** Another attempt after something, where the first found no memory. */
const orAfter = <A, R, R2>(acquire: Effect.Effect<A, CudaError, R>, before: Effect.Effect<void, CudaError, R2>) =>
  Effect.catchReason(acquire, "CudaError", "OutOfMemory", () => Effect.andThen(before, acquire))

/**
 * Allocates managed memory that lives as long as its scope (`cuMemAllocManaged`). Its contents are undefined.
 *
 * **Details**
 *
 * The memory can be used on every stream of every device at once, in kernels, copies and fills, and by the host through `bytes`
 * and `view`. The release returns at once. The memory serves other allocations of about its size when the work that used it is done,
 * and goes back to the driver at a moment when no device has work, since the driver would wait for one. Fails with `NotSupported`
 * where the host cannot use managed memory while a device works (`concurrentManagedAccess`: Windows and WSL), and otherwise like
 * `allocate`.
 *
 * **Gotchas**
 *
 * JavaScript holds a view of the memory once `bytes` or `view` were asked for, which nothing can take back: such memory is given
 * back when the views have been collected, and shows its last contents until then.
 *
 * More managed memory than a device has was not tried.
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
 * Allocates pinned host memory that lives as long as its scope (`cuMemHostRegister`). Its contents are undefined.
 *
 * **Details**
 *
 * The release detaches every view of the memory at once (they have length 0 from then on) and returns at once; the memory is
 * used again when the work that uses it is done. Fails with `OutOfMemory` beyond the runtime's limit, and with
 * `InvalidArgument` for a size that is not a positive whole number.
 *
 * **Gotchas**
 *
 * Let reads of files into `bytes` end before the release: the system would go on writing to memory that may be in use again.
 * `bytes.buffer` may be larger than the buffer. Do not transfer it: memory that was given away is refused by the next operation
 * (`InvalidArgument`), and its pages are never freed. From Node.js 22 on, `structuredClone` and `postMessage` refuse to transfer it.
 *
 * Release the runtime before its worker thread ends. The pinned memory of a worker that is terminated stays pinned until the
 * process ends; that of one that exits or throws does if a device is busy then.
 *
 * Memory that is pinned for the first time takes about half a second per GiB, spent on a pool thread and in slices of about a
 * millisecond on the JS thread; released memory is kept and given out again at once.
 *
 * @category constructors
 * @since 0.1.0
 */
export const allocateHost = (
  byteLength: number,
  options: BufferOptions = {}
): Effect.Effect<HostBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  makeScoped(undefined, {
    create: (runtime, _, fiber) =>
      runtime.hostAllocate(byteLength, { ordered: options.ordered ?? fiber.getRef(CurrentOrdering) }),
    destroy: (runtime, ref) => runtime.memoryFree(ref),
    wrap: (runtime, ref): HostBuffer => new HostBufferImpl(runtime, ref)
  })

/**
 * Runs an effect in which buffers are made to order themselves, or not to. What the options of a buffer say goes
 * before.
 *
 * **Details**
 *
 * Uses of such a buffer on different streams wait for each other on the GPU, as their reads and writes of the same
 * bytes require: a write waits for the reads and writes before it, a read for the writes. Reads do not wait for reads,
 * parts that do not overlap not for each other, and uses on one stream are in order anyway. The order is that in which
 * the uses were enqueued. Each use is a `cuEventRecord` more, and a `cuStreamWaitEvent` for each stream it has to wait
 * for.
 *
 * **Gotchas**
 *
 * A buffer has to know all of its uses, so this is about the buffers that are allocated in the region, wherever they
 * are used, and not about those that are used in it. Work that the library does not enqueue itself is told to it with
 * `access`.
 *
 * What JavaScript does with the `bytes` of pinned memory is not seen: wait with `synchronize` first.
 *
 * **Example** (Two streams without an event)
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
 * Takes a part of a buffer, by default up to its end. The range is checked where it is used.
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
  if (typeof first === "number") return (self: Slice) => part(self, first, second)
  return part(first, second ?? 0, third)
}

const part = (self: Slice, offset: number, byteLength = self.byteLength - offset): Slice => ({
  buffer: self.buffer,
  offset: self.offset + offset,
  byteLength
})

/**
 * Takes a part of a buffer as rows: `pitch` bytes from the start of one to that of the next. Checked where it is used.
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
    buffer: self.buffer,
    offset: self.offset,
    byteLength: self.byteLength,
    pitch
  })
)

/**
 * Sees pinned or managed memory as a typed array, without a copy: as many whole elements as fit.
 *
 * **Gotchas**
 *
 * The array is the memory: read it after the copy that fills it is done, and leave it alone until the copy that reads it is.
 * That of pinned memory has length 0 once the buffer is released; one that is made of a released buffer always has. Like a typed array's own constructor this throws a `RangeError`, for a part that
 * is not inside the buffer or does not start at a multiple of the element's size.
 *
 * @category accessors
 * @since 0.1.0
 */
export const view = <A>(self: Slice<HostBuffer> | Slice<ManagedBuffer>, Type: TypedArrayConstructor<A>): A => {
  const { buffer, byteOffset, byteLength } = self.buffer.bytes
  if (byteLength === 0) return new Type(buffer, 0, 0)
  const end = self.offset + self.byteLength
  const isInside = Number.isInteger(self.offset) && self.offset >= 0 && self.byteLength >= 0 && end <= byteLength
  if (!isInside || self.offset % Type.BYTES_PER_ELEMENT !== 0) {
    throw new RangeError(
      `CudaMemory.view: bytes ${self.offset} to ${end} of a buffer of ${byteLength}, in elements of ${Type.BYTES_PER_ELEMENT}`
    )
  }
  return new Type(buffer, byteOffset + self.offset, Math.floor(self.byteLength / Type.BYTES_PER_ELEMENT))
}

/**
 * Copies between device and pinned memory, in any direction and between devices, as work of a stream: by default the current
 * one of the destination's device, or of the source's when the destination is on the host (`cuMemcpyHtoDAsync`,
 * `…DtoHAsync`, `…DtoDAsync`, `cuMemcpyPeerAsync`).
 *
 * **Details**
 *
 * Returns when the copy is enqueued. Both ends have the same length; use `slice` for parts. Fails with `InvalidArgument` for
 * ranges that end outside their buffer, overlap, or are both on the host, and with `DeviceMismatch` when the stream is on the
 * device of neither end.
 *
 * @category copies
 * @since 0.1.0
 */
export function copy(destination: Slice, source: Slice, stream?: CudaStream): Effect.Effect<void, CudaError>
export function copy(source: Slice, stream?: CudaStream): (destination: Slice) => Effect.Effect<void, CudaError>
export function copy(first: Slice, second?: Slice | CudaStream, third?: CudaStream) {
  if (!isSlice(second)) return (destination: Slice) => copyTo(destination, first, second)
  return copyTo(first, second, third)
}

const copyTo = (destination: Slice, source: Slice, stream: CudaStream | undefined): Effect.Effect<void, CudaError> => {
  const { runtime } = destination.buffer
  const to = rangeOf(destination)
  const from = rangeOf(source)
  if (stream !== undefined) return runtime.memoryCopy(to, from, stream.ref)
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
  /** Bytes of each row. */
  readonly width: number
  /** How many rows. */
  readonly height: number
}

/**
 * Copies rows, such as a part of an image or a block of a matrix, as work of a stream, by default that of `copy`
 * (`cuMemcpy2DAsync`).
 *
 * **Details**
 *
 * Each end is made with `rows`, or is a slice whose rows follow each other without a gap. Returns when the copy is enqueued. Fails
 * with `InvalidArgument` for rows that do not fit into their part, a pitch that is smaller than the width or above 2^31 - 1, and
 * rows that overlap; otherwise like `copy`. Between devices, each row is a copy of its own.
 *
 * **Example** (A block of 64 by 64 floats out of a matrix with 1000 columns)
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
  if (isSlice(second)) return copyRowsTo(first, second, isCudaStream(third) ? undefined : third, fourth)
  const stream = isCudaStream(third) ? third : undefined
  return (destination: Slice | Rows) => copyRowsTo(destination, first, second, stream)
}

const copyRowsTo = (
  destination: Slice | Rows,
  source: Slice | Rows,
  size: Size2D = { width: Number.NaN, height: Number.NaN },
  stream: CudaStream | undefined
): Effect.Effect<void, CudaError> => {
  const { runtime } = destination.buffer
  const to = rowsOf(destination, size.width)
  const from = rowsOf(source, size.width)
  return onStream(
    "CudaMemory.copy2D",
    runtime,
    deviceOfCopy(destination, source),
    stream,
    (ref) => runtime.memoryCopy2D(to, from, size, ref)
  )
}

const rowsOf = (part: Slice | Rows, width: number): MemoryRows => ({
  ...rangeOf(part),
  pitch: "pitch" in part ? part.pitch : width
})

/**
 * One copy of a batch.
 *
 * @category models
 * @since 0.1.0
 */
export interface BatchCopy {
  readonly destination: Slice
  readonly source: Slice
}

/**
 * Copies many ranges at once, as work of a stream, by default the current one of the device that the first copy is to or from
 * (`cuMemcpyBatchAsync`, of CUDA 12.8 and later).
 *
 * **Details**
 *
 * The copies are in no order among each other, so none may write what another one reads or writes: that is an `InvalidArgument`
 * failure, and the rest is checked as by `copy`. An older driver is given one copy after the other, and so is every driver for the
 * legacy default stream and for copies between devices.
 *
 * @category copies
 * @since 0.1.0
 */
export const copyBatch = (copies: ReadonlyArray<BatchCopy>, stream?: CudaStream): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const [first] = copies
    if (first === undefined) return Effect.void
    const { runtime } = first.destination.buffer
    const transfers = copies.map(({ destination, source }) => ({ to: rangeOf(destination), from: rangeOf(source) }))
    const device = deviceOfCopy(first.destination, first.source)
    return onStream("CudaMemory.copyBatch", runtime, device, stream, (ref) => runtime.memoryCopyBatch(transfers, ref))
  })

/**
 * Where managed memory is to be: on the host, or on a device.
 *
 * @category models
 * @since 0.1.0
 */
export type Location = "host" | DeviceInput

/**
 * Moves managed memory to where it will be used, as work of a stream, by default the current one (`cuMemPrefetchAsync`).
 *
 * **Details**
 *
 * What uses the memory there afterwards does not have to wait for its pages. Returns when the move is enqueued: in pieces, between
 * turns of the event loop, since the driver takes about a third of a millisecond per MiB on the JS thread for a move to the host, and
 * a tenth of that for one to a device. An interruption leaves the rest where it is. Fails with `InvalidArgument` for memory that is
 * not managed and for a device there is not, and with `NotSupported` for a driver before CUDA 12.2.
 *
 * **Gotchas**
 *
 * Other fibers may enqueue work between the pieces.
 *
 * **Example** (Reading what a device wrote)
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
  (args) => isSlice(args[0]),
  (self: Slice<ManagedBuffer>, location: Location, stream?: CudaStream): Effect.Effect<void, CudaError> => {
    const { runtime } = self.buffer
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

const placeOf = (location: Location): MemoryLocation =>
  location === "host" ? location : deviceIndexOf(location) ?? Number.NaN

/**
 * What the driver is told of how managed memory will be used (`CUmem_advise`).
 *
 * @category models
 * @since 0.1.0
 */
export type Advice =
  /** It is mostly read: each device that reads it may have a copy. */
  | { readonly readMostly: boolean }
  /** Where its pages are best kept, or that this no longer holds. */
  | { readonly preferredLocation: Location | "none" }
  /** Who will use it, so that its pages are mapped there and need not move. */
  | { readonly accessedBy: Location }
  /** Takes that back. */
  | { readonly notAccessedBy: Location }

/**
 * Tells the driver how managed memory will be used (`cuMemAdvise`). It changes how fast things go, and nothing that a program
 * could see. Fails like `prefetch`.
 *
 * @category managed memory
 * @since 0.1.0
 */
export const advise: {
  (advice: Advice): (self: Slice<ManagedBuffer>) => Effect.Effect<void, CudaError>
  (self: Slice<ManagedBuffer>, advice: Advice): Effect.Effect<void, CudaError>
} = dual(2, (self: Slice<ManagedBuffer>, advice: Advice): Effect.Effect<void, CudaError> => {
  const range = rangeOf(self)
  const { runtime } = self.buffer
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
 * Fills device memory with a byte, as work of a stream, by default the current one of the device (`cuMemsetD8Async`).
 *
 * **Details**
 *
 * Returns when the fill is enqueued. `value` is a whole number from 0 to 255. See `fill16` and `fill32` for wider values.
 *
 * @category copies
 * @since 0.1.0
 */
export const fill: FillOperation = fillOperation(8)

/**
 * Fills device memory with a 16-bit value, like `fill` (`cuMemsetD16Async`). `value` is a whole number from 0 to 65,535;
 * offset and length are multiples of 2.
 *
 * @category copies
 * @since 0.1.0
 */
export const fill16: FillOperation = fillOperation(16)

/**
 * Fills device memory with a 32-bit value, like `fill` (`cuMemsetD32Async`). `value` is a whole number from 0 to 2^32 - 1;
 * offset and length are multiples of 4.
 *
 * **Example** (A buffer of ones)
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
 * An operation that fills device memory on a stream: the given one, or the current one.
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
    return (self: Slice<DeviceBuffer>) => fillWith(self, first, bits, typeof second === "number" ? undefined : second)
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
  const { deviceIndex, kind, runtime } = self.buffer
  if (kind !== "device") return refuseArgument(fillNames[bits], "destination", self.buffer, "a device buffer")
  const range = rangeOf(self)
  if (stream !== undefined) return runtime.memoryFill(range, value, bits, stream.ref)
  return onStream(
    fillNames[bits],
    runtime,
    deviceIndex,
    stream,
    (ref) => runtime.memoryFill(range, value, bits, ref)
  )
}

/**
 * Options for `access`: the memory that work reads and writes. Memory that is both read and written need only be listed in
 * `writes`.
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
 * Orders work that the library does not know, such as kernels that other native code launches, among the uses of
 * buffers that order themselves: the stream, by default the current one, waits as these uses require, the effect
 * enqueues its work on it, and later uses on other streams wait for that in turn, however the effect ends.
 *
 * **Details**
 *
 * Buffers that do not order themselves may be named too: they are not ordered, but their memory lives until the work is
 * done. Fails with `InvalidArgument` for ranges that end outside their buffer.
 *
 * While the effect runs, a copy or fill on another stream that conflicts with it comes after what it has enqueued so
 * far and before the rest. Of two accesses that conflict on different streams the later one begins when the earlier one
 * has ended, which suspends the fiber; but one inside the other goes on, also in a fiber that the outer effect forks.
 *
 * **Gotchas**
 *
 * All of the work must be enqueued on that one stream, and before the effect ends. An access within an access that
 * waits for one of another fiber, while that waits for the outer one, waits for ever: name all that is used in one
 * access instead.
 *
 * **Example** (A kernel of other native code)
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
    const runtime = [...writes, ...reads][0]?.buffer.runtime
    if (runtime === undefined) return self
    return onStream(
      "CudaMemory.access",
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

/** The end is registered before the begin, which can be interrupted while it waits. */
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
 * Waits until the uses so far of a buffer that orders itself, or of a part of it, are done. Suspends the fiber, not the
 * thread.
 *
 * **Details**
 *
 * Waits for these uses alone, not for what else is on their streams. Fails with `InvalidArgument` for a buffer that
 * does not order itself.
 *
 * **Gotchas**
 *
 * Other fibers may enqueue further uses meanwhile, which this does not wait for.
 *
 * @category ordering
 * @since 0.1.0
 */
export const synchronize = (self: Slice): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => self.buffer.runtime.memorySynchronize(rangeOf(self)))

/**
 * Copies an ordinary array to device memory of the same length, as work of a stream. Returns once the array has been read and
 * can be changed again; what follows on the stream finds the data in place.
 *
 * **Details**
 *
 * The array goes through pinned memory in pieces of 16 MiB at most: a copy by the CPU on the JS thread, at about 10 GB/s, is
 * what it costs over `copy` from a pinned buffer.
 *
 * @category copies
 * @since 0.1.0
 */
export function upload(
  destination: Slice<DeviceBuffer>,
  source: HostArray,
  stream?: CudaStream
): Effect.Effect<void, CudaError>
export function upload(
  source: HostArray,
  stream?: CudaStream
): (destination: Slice<DeviceBuffer>) => Effect.Effect<void, CudaError>
export function upload(
  first: Slice<DeviceBuffer> | HostArray,
  second?: HostArray | CudaStream,
  third?: CudaStream
) {
  if (isSlice(first)) return uploadTo(first, second, third)
  return (destination: Slice<DeviceBuffer>) => uploadTo(destination, first, isCudaStream(second) ? second : undefined)
}

const uploadTo = (destination: Slice<DeviceBuffer>, source: unknown, stream: CudaStream | undefined) =>
  withPieces(
    "CudaMemory.upload",
    destination,
    source,
    stream,
    Effect.fnUntraced(function*({ bytesOf, lanes, pieces, runtime, stream }) {
      for (const [index, piece] of pieces.entries()) {
        const lane = lanes[index % 2]!
        if (index >= 2) yield* runtime.eventSynchronize(lane.event)
        lane.host.bytes.set(yield* bytesOf(piece))
        yield* runtime.memoryCopy(piece.device, lane.range(piece), stream)
        yield* runtime.eventRecord(lane.event, stream)
      }
    })
  )

/**
 * Copies device memory to an ordinary array of the same length, and waits until the data is there. Suspends the fiber, not the
 * thread.
 *
 * **Details**
 *
 * The data goes through pinned memory in pieces of 16 MiB at most: a copy by the CPU on the JS thread, at about 10 GB/s, is
 * what it costs over `copy` to a pinned buffer. The array is written while the effect runs; after an interruption or a failure
 * part of it may have been.
 *
 * @category copies
 * @since 0.1.0
 */
export function download(
  destination: HostArray,
  source: Slice<DeviceBuffer>,
  stream?: CudaStream
): Effect.Effect<void, CudaError>
export function download(
  source: Slice<DeviceBuffer>,
  stream?: CudaStream
): (destination: HostArray) => Effect.Effect<void, CudaError>
export function download(
  first: HostArray | Slice<DeviceBuffer>,
  second?: Slice<DeviceBuffer> | CudaStream,
  third?: CudaStream
) {
  if (isSlice(second)) return downloadTo(first, second, third)
  return (destination: HostArray) => downloadTo(destination, first, isCudaStream(second) ? second : undefined)
}

const downloadTo = (destination: unknown, source: unknown, stream: CudaStream | undefined) =>
  withPieces(
    "CudaMemory.download",
    source,
    destination,
    stream,
    Effect.fnUntraced(function*({ bytesOf, lanes, pieces, runtime, stream }) {
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
        const target = yield* bytesOf(piece)
        target.set(lane.host.bytes.subarray(0, piece.byteLength))
      }
    })
  )

/** The most that goes through pinned memory at a time. */
const pieceSize = 16 * 1024 * 1024

/** A piece of an array, and where it is on the device. */
interface Piece {
  readonly offset: number
  readonly byteLength: number
  readonly device: MemoryRange
}

/** Pinned memory for a piece, with the event that tells when its copy is done. */
interface PinnedLane {
  readonly host: HostMemoryRef
  readonly event: EventRef
  readonly range: (piece: Piece) => MemoryRange
}

interface Pieces {
  readonly runtime: CudaRuntimeService
  readonly stream: StreamRef
  readonly pieces: ReadonlyArray<Piece>
  /** The array's bytes of a piece; a failure once the array is no longer what it was. */
  readonly bytesOf: (piece: Piece) => Effect.Effect<Uint8Array, CudaError>
  /** Two, so that the CPU copies one piece while the GPU copies the other; one for a single piece. */
  readonly lanes: ReadonlyArray<PinnedLane>
}

/** Splits the way of an array to or from a device into pieces, and gives them what they need for as long as `use` runs. */
const withPieces = (
  operation: string,
  device: unknown,
  array: unknown,
  stream: CudaStream | undefined,
  use: (pieces: Pieces) => Effect.Effect<void, CudaError>
): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    if (!isSlice(device) || device.buffer.kind !== "device") {
      return refuseArgument(operation, "device memory", device, "a device buffer or a part of one")
    }
    const { deviceIndex, runtime } = device.buffer
    const { byteLength } = device
    const bytes = bytesOfArray(array)
    if (bytes?.byteLength !== byteLength) {
      return refuseArgument(operation, "array", array, `an array of the device memory's ${byteLength} bytes`)
    }
    const bytesOf = ({ byteLength, offset }: Piece) => {
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
      return Effect.scoped(Effect.flatMap(
        Effect.forEach(pieces.slice(0, 2), () => makePinnedLane(runtime, deviceIndex, size)),
        (lanes) => use({ runtime, stream: ref, bytesOf, pieces, lanes })
      ))
    })
  }).pipe(named(operation))

const piecesOf = (device: Slice): ReadonlyArray<Piece> =>
  Array.from({ length: Math.ceil(device.byteLength / pieceSize) }, (_, index) => {
    const offset = index * pieceSize
    const byteLength = Math.min(pieceSize, device.byteLength - offset)
    return { offset, byteLength, device: rangeOf(slice(device, offset, byteLength)) }
  })

/** Nothing for what is no array, or one whose memory is gone. */
const bytesOfArray = (array: unknown): Uint8Array | undefined => {
  if (!ArrayBuffer.isView(array)) return undefined
  try {
    return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
  } catch {
    return undefined
  }
}

const makePinnedLane = (
  runtime: CudaRuntimeService,
  device: number,
  byteLength: number
): Effect.Effect<PinnedLane, CudaError, Scope.Scope> =>
  Effect.gen(function*() {
    const host = yield* Effect.acquireRelease(
      runtime.hostAllocate(byteLength),
      (memory) => released(runtime.memoryFree(memory))
    )
    const event = yield* Effect.acquireRelease(
      runtime.eventCreate(device, eventFlags.disableTiming),
      (made) => released(runtime.eventDestroy(made))
    )
    return { host, event, range: (piece) => ({ memory: host, offset: 0, byteLength: piece.byteLength }) }
  })

const rangeOf = (part: Slice): MemoryRange => ({
  memory: part.buffer.ref,
  offset: part.offset,
  byteLength: part.byteLength
})

const isSlice = (u: unknown): u is Slice => Predicate.hasProperty(u, "buffer") && isBuffer(u.buffer)

const deviceOfCopy = (destination: Slice, source: Slice): number => {
  if (destination.buffer.kind === "device") return destination.buffer.deviceIndex
  return source.buffer.kind === "device" ? source.buffer.deviceIndex : 0
}
