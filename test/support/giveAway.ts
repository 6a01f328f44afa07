/**
 * Ways in which a program can transfer the memory of an `ArrayBuffer`.
 */
import { isCudaError } from "effect-cuda/CudaError"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as Effect from "effect/Effect"
import { ReadableStream } from "node:stream/web"

/** Passes the buffer to a byte stream, which transfers it in every version of Node.js, even if it is marked as untransferable. */
export const giveAway = (buffer: ArrayBuffer): void => {
  new ReadableStream({ type: "bytes", start: (controller) => controller.enqueue(new Uint8Array(buffer)) })
}

/** Transfers the buffer with `structuredClone`, which pinned memory prevents from Node.js 22 on. Returns true if it was transferred. */
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
