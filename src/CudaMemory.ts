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
import { onStream, resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type {
  CudaRuntimeService,
  DeviceMemoryRef,
  EventRef,
  HostMemoryRef,
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
export const allocate = (byteLength: number, options: {
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
} = {}): Effect.Effect<DeviceBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const device = yield* resolveDevice(options.device)
    const acquire = Effect.acquireRelease(
      runtime.memoryAllocate(device, byteLength),
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
  byteLength: number
): Effect.Effect<HostBuffer, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.flatMap(CudaRuntime, (runtime) =>
    Effect.map(
      Effect.acquireRelease(runtime.hostAllocate(byteLength), (ref) => released(runtime.memoryFree(ref))),
      (ref) => new HostBufferImpl(runtime, ref)
    ))

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
