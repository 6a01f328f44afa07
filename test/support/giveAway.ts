/**
 * Ways in which a program can transfer the memory of an `ArrayBuffer`.
 */
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
