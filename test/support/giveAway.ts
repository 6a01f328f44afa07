/**
 * Ways in which a program gives the memory of an `ArrayBuffer` away.
 */
import { isCudaError } from "effect-cuda/CudaError"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import { ReadableStream } from "node:stream/web"

/** Hands the buffer to a stream of bytes, which every version of Node.js lets it have, whatever its mark is. */
export const giveAway = (buffer: ArrayBuffer): void => {
  new ReadableStream({ type: "bytes", start: (controller) => controller.enqueue(new Uint8Array(buffer)) })
}

/** Transfers the buffer; from Node.js 22 on, pinned memory refuses that. True if it is gone. */
export const transferIfAllowed = (buffer: ArrayBuffer): boolean => {
  try {
    structuredClone(buffer, { transfer: [buffer] })
  } catch (error) {
    if (!(error instanceof DOMException)) throw error
  }
  return buffer.byteLength === 0
}

/** `CudaMemory.view` as an effect, since it throws its failures. */
export const viewing = (
  buffer: CudaMemory.HostBuffer | CudaMemory.ManagedBuffer
): Effect.Effect<Uint8Array, CudaError> =>
  Effect.try({
    try: () => CudaMemory.view(buffer, Uint8Array),
    catch: (error) => {
      if (isCudaError(error)) return error
      throw error
    }
  })
