/**
 * Tensors from a file to the device: chunks of the file are read into pinned memory and copied from there, several at a
 * time, so that reads and copies overlap.
 */
import { CudaMemory, CudaStream } from "effect-cuda"
import type { CudaError, CudaRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { FileProblem } from "../demo/Source.ts"
import type { Tensor, TensorFile } from "./SafeTensors.ts"

export interface Options {
  /** Bytes read at a time. */
  readonly chunkBytes?: number | undefined
  /** Chunks in flight, each with its own pinned memory. */
  readonly slots?: number | undefined
}

/** Tensors on the device, by name. */
export type DeviceTensors = ReadonlyMap<string, CudaMemory.Slice<CudaMemory.DeviceBuffer>>

/** Uploads all tensors of a file to one buffer, each at a multiple of 256 bytes. Ends when they are there. */
export const upload = (
  file: TensorFile,
  { chunkBytes = 8 * 1024 * 1024, slots = 3 }: Options = {}
): Effect.Effect<DeviceTensors, FileProblem | CudaError.CudaError, CudaRuntime.CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const { byteLength, offsets } = layOut(file.tensors)
    const buffer = yield* CudaMemory.allocate(Math.max(byteLength, alignment))
    const places = [...file.tensors].map(([name, tensor]): Place => ({
      name,
      tensor,
      slice: CudaMemory.slice(buffer, offsets.get(name)!, tensor.byteLength)
    }))
    const chunks = chunksOf(places, chunkBytes)
    yield* Effect.scoped(send(file, chunks, Math.min(slots, chunks.length), chunkBytes))
    return new Map(places.map(({ name, slice }) => [name, slice]))
  })

/** As memory of its own would have, for kernels that read many bytes at once. */
const alignment = 256

/** A tensor and its place on the device. */
interface Place {
  readonly name: string
  readonly tensor: Tensor
  readonly slice: CudaMemory.Slice<CudaMemory.DeviceBuffer>
}

const layOut = (tensors: ReadonlyMap<string, Tensor>) => {
  const offsets = new Map<string, number>()
  let byteLength = 0
  for (const [name, tensor] of tensors) {
    offsets.set(name, byteLength)
    byteLength += Math.ceil(tensor.byteLength / alignment) * alignment
  }
  return { offsets, byteLength }
}

/** Bytes of the file, and the parts of tensors in them. */
interface Chunk {
  readonly offset: number
  readonly byteLength: number
  readonly parts: ReadonlyArray<Part>
}

/** Bytes of a tensor, and how far from the start of the chunk they are. */
interface Part {
  readonly to: CudaMemory.Slice<CudaMemory.DeviceBuffer>
  readonly from: number
}

/** The tensors have no gaps between them in the file, so a chunk holds all small ones in it. */
const chunksOf = (places: ReadonlyArray<Place>, chunkBytes: number): ReadonlyArray<Chunk> => {
  const [first, last] = [places[0]?.tensor, places.at(-1)?.tensor]
  if (first === undefined || last === undefined) return []
  const end = last.offset + last.byteLength
  return Array.from({ length: Math.ceil((end - first.offset) / chunkBytes) }, (_, index) => {
    const offset = first.offset + index * chunkBytes
    const byteLength = Math.min(chunkBytes, end - offset)
    return { offset, byteLength, parts: places.flatMap((place) => partIn(place, offset, offset + byteLength)) }
  })
}

const partIn = ({ slice, tensor }: Place, begin: number, end: number): ReadonlyArray<Part> => {
  const from = Math.max(begin, tensor.offset)
  const to = Math.min(end, tensor.offset + tensor.byteLength)
  return from < to ? [{ to: CudaMemory.slice(slice, from - tensor.offset, to - from), from: from - begin }] : []
}

/** Each slot takes the next chunk when it has sent one. */
const send = (file: TensorFile, chunks: ReadonlyArray<Chunk>, slots: number, chunkBytes: number) => {
  const rest = chunks.values()
  const slot = Effect.gen(function*() {
    const host = yield* CudaMemory.allocateHost(chunkBytes)
    const stream = yield* CudaStream.make()
    for (const { byteLength, offset, parts } of rest) {
      yield* file.read(host.bytes.subarray(0, byteLength), offset)
      for (const { from, to } of parts) {
        yield* CudaMemory.copy(to, CudaMemory.slice(host, from, to.byteLength), stream)
      }
      yield* CudaStream.synchronize(stream)
    }
  })
  return Effect.replicateEffect(slot, slots, { concurrency: "unbounded", discard: true })
}
