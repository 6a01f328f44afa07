/**
 * Bytes of arrays whose memory may be gone: moved to another thread, or cut off when its buffer was resized.
 */
import type { HostArray } from "../CudaMemory.ts"

/** The bytes of an array, or `undefined` if its memory is gone. */
export const bytesOf = (array: HostArray): Uint8Array | undefined => {
  try {
    // Without memory, a typed array looks like an empty one, but `at` throws. A `DataView` throws when asked for its length.
    if ("at" in array) atOf.call(array, 0)
    return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
  } catch {
    return undefined
  }
}

const atOf: (this: HostArray, index: number) => unknown = Uint8Array.prototype.at
