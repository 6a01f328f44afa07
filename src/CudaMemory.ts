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
import { isCudaStream } from "./CudaStream.ts"
import type { CudaStream } from "./CudaStream.ts"
import { BufferTypeId, DeviceBufferImpl, HostBufferImpl, named, refuseArgument, released } from "./internal/handles.ts"
import { CurrentAccess, CurrentOrdering } from "./internal/ordered.ts"
import { onStream, resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type {
  CudaRuntimeService,
  DeviceMemoryRef,
  EventRef,
  HostMemoryRef,
  MemoryAccess,
  MemoryOptions,
  MemoryRange,
  StreamRef
} from "./layers/CudaRuntime.ts"

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
export const isBuffer = (u: unknown): u is DeviceBuffer | HostBuffer => Predicate.hasProperty(u, BufferTypeId)

/**
 * How a buffer is to be.
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
 * Allocates memory of a device that lives as long as its scope (`cuMemAllocFromPoolAsync`). Its contents are undefined.
 *
 * **Details**
 *
 * The memory can be used on every stream at once. Its release is ordered on the GPU after the work of the streams that used
 * it (`cuMemFreeAsync`), and returns at once. When the device is full, waits for the releases that are still pending before it
 * fails with `OutOfMemory`. Fails with `InvalidArgument` for a size that is not a positive whole number.
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
 * @category constructors
 * @since 0.1.0
 */
export const allocate = (
  byteLength: number,
  options: BufferOptions & {
    /** Default: the current device. */
    readonly device?: DeviceInput | undefined
  } = {}
): Effect.Effect<DeviceBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const device = yield* resolveDevice(options.device)
    const memoryOptions = yield* resolveOptions(options)
    const acquire = Effect.acquireRelease(
      runtime.memoryAllocate(device, byteLength, memoryOptions),
      (ref) => released(runtime.memoryFree(ref))
    )
    const ref = yield* Effect.catchReason(
      acquire,
      "CudaError",
      "OutOfMemory",
      () => Effect.andThen(runtime.memoryReclaim(device), acquire)
    )
    return new DeviceBufferImpl(runtime, ref)
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
 * `bytes.buffer` is larger than the buffer and `bytes` starts inside it. Do not transfer it to another thread.
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
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const memoryOptions = yield* resolveOptions(options)
    const ref = yield* Effect.acquireRelease(
      runtime.hostAllocate(byteLength, memoryOptions),
      (made) => released(runtime.memoryFree(made))
    )
    return new HostBufferImpl(runtime, ref)
  })

const resolveOptions = ({ ordered }: BufferOptions): Effect.Effect<MemoryOptions> =>
  Effect.withFiber((fiber) => Effect.succeed({ ordered: ordered ?? fiber.getRef(CurrentOrdering) }))

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
 * What JavaScript does with the `bytes` of pinned memory is not seen: wait with `settled` before.
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
 *   yield* CudaMemory.fill(buffer, 1, { stream: up })
 *   yield* CudaMemory.copy(host, buffer, down) // after the fill
 *   yield* CudaMemory.fill(buffer, 2, { stream: up }) // after the copy
 *   yield* CudaMemory.settled(host)
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
 * Sees pinned memory as a typed array, without a copy: as many whole elements as fit.
 *
 * **Gotchas**
 *
 * The array is the memory: read it after the copy that fills it is done, and leave it alone until the copy that reads it is.
 * It has length 0 once the buffer is released. Like a typed array's own constructor this throws a `RangeError`, for a part that
 * is not inside the buffer or does not start at a multiple of the element's size.
 *
 * @category accessors
 * @since 0.1.0
 */
export const view = <A>(self: Slice<HostBuffer>, Type: TypedArrayConstructor<A>): A => {
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
  if (isSlice(second)) return copyTo(first, second, third)
  return (destination: Slice) => copyTo(destination, first, second)
}

const copyTo = (destination: Slice, source: Slice, stream: CudaStream | undefined): Effect.Effect<void, CudaError> => {
  const { runtime } = destination.buffer
  const to = rangeOf(destination)
  const from = rangeOf(source)
  if (stream !== undefined) return runtime.memoryCopy(to, from, stream.ref)
  return onStream(runtime, deviceOfCopy(destination, source), stream, (ref) => runtime.memoryCopy(to, from, ref))
}

/**
 * Fills device memory with an 8-, 16- or 32-bit value, as work of a stream, by default the current one of the device
 * (`cuMemsetD8Async`, `cuMemsetD16Async`, `cuMemsetD32Async`).
 *
 * **Details**
 *
 * Returns when the fill is enqueued. `value` is a whole number that fits `bits` without a sign (default 8 bits); offset and
 * length are multiples of the value's size.
 *
 * @category copies
 * @since 0.1.0
 */
export function fill(
  self: Slice<DeviceBuffer>,
  value: number,
  options?: FillOptions
): Effect.Effect<void, CudaError>
export function fill(
  value: number,
  options?: FillOptions
): (self: Slice<DeviceBuffer>) => Effect.Effect<void, CudaError>
export function fill(
  first: Slice<DeviceBuffer> | number,
  second?: number | FillOptions,
  third: FillOptions = {}
) {
  if (typeof first === "number") {
    const options = typeof second === "object" ? second : {}
    return (self: Slice<DeviceBuffer>) => fillWith(self, first, options)
  }
  return fillWith(first, typeof second === "number" ? second : Number.NaN, third)
}

const fillWith = (
  self: Slice<DeviceBuffer>,
  value: number,
  options: FillOptions
): Effect.Effect<void, CudaError> => {
  const { deviceIndex, kind, runtime } = self.buffer
  if (kind !== "device") return refuseArgument("CudaMemory.fill", "destination", self.buffer, "a device buffer")
  const range = rangeOf(self)
  const bits = options.bits ?? 8
  return onStream(runtime, deviceIndex, options.stream, (ref) => runtime.memoryFill(range, value, bits, ref))
}

/**
 * How a fill is to be.
 *
 * @category models
 * @since 0.1.0
 */
export interface FillOptions {
  /** The width of the value. Default 8. */
  readonly bits?: 8 | 16 | 32 | undefined
  readonly stream?: CudaStream | undefined
}

/**
 * The memory that work reads and writes. What it both reads and writes need only be among the writes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Accesses {
  readonly reads?: ReadonlyArray<Slice> | undefined
  readonly writes?: ReadonlyArray<Slice> | undefined
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
 *     CudaMemory.access({ reads: [input], writes: [output] }, stream)
 *   )
 * ```
 *
 * @category ordering
 * @since 0.1.0
 */
export const access: {
  (
    uses: Accesses,
    stream?: CudaStream
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CudaError, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, uses: Accesses, stream?: CudaStream): Effect.Effect<A, E | CudaError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    { reads = [], writes = [] }: Accesses,
    stream?: CudaStream
  ): Effect.Effect<A, E | CudaError, R> => {
    const runtime = [...writes, ...reads][0]?.buffer.runtime
    if (runtime === undefined) return self
    return onStream(runtime, undefined, stream, (ref) =>
      Effect.withFiber((fiber) =>
        within(self, runtime, {
          stream: ref,
          reads: reads.map(rangeOf),
          writes: writes.map(rangeOf),
          outer: fiber.getRef(CurrentAccess)
        })
      ))
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
export const settled = (self: Slice): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => self.buffer.runtime.memorySettled(rangeOf(self)))

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
      const given = bytes === undefined ? "no array, or detached" : `of ${bytes.byteLength} bytes`
      return refuseArgument(operation, "array", given, `an array of the device memory's ${byteLength} bytes`)
    }
    const bytesOf = ({ byteLength, offset }: Piece) => {
      const part = bytes.byteLength === device.byteLength ? bytes.subarray(offset, offset + byteLength) : undefined
      return part === undefined
        ? refuseArgument(
          operation,
          "array",
          "detached or resized",
          "an array that stays as it is until the copy is done"
        )
        : Effect.succeed(part)
    }
    return onStream(runtime, deviceIndex, stream, (ref) => {
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
