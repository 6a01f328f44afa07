/**
 * Ways in which a program gives the memory of an `ArrayBuffer` away.
 */
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
