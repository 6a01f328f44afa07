/**
 * Detaches an `ArrayBuffer` from every view that a program holds, and prevents programs from transferring it.
 */
import { ReadableStream } from "node:stream/web"
import type { ReadableByteStreamController } from "node:stream/web"
import { markAsUntransferable } from "node:worker_threads"

/** Available since Node.js 22. In Node.js 20, `structuredClone` copies marked memory. */
const prototype: ArrayBuffer & { readonly transfer?: (this: ArrayBuffer) => ArrayBuffer } = ArrayBuffer.prototype
const { transfer } = prototype

/** Since Node.js 24, and in Deno, marked memory cannot be moved at all. */
const movesMarked = (): boolean => {
  if (transfer === undefined) return false
  const buffer = new ArrayBuffer(1)
  markAsUntransferable(buffer)
  try {
    transfer.call(buffer)
    return true
  } catch {
    return false
  }
}

const marks = movesMarked()

/**
 * Marks a buffer so that `structuredClone` and `postMessage` refuse to transfer it, where `moved` still can (Node.js 22). Programs can
 * still transfer the buffer in other ways, so operations check whether it was.
 */
export const guarded = (buffer: ArrayBuffer): ArrayBuffer => {
  if (marks) markAsUntransferable(buffer)
  return buffer
}

/** Moves the memory to a new buffer. The old one and all of its views are then empty. */
export const moved = (buffer: ArrayBuffer): ArrayBuffer =>
  transfer === undefined ? structuredClone(buffer, { transfer: [buffer] }) : guarded(transfer.call(buffer))

/**
 * Makes a buffer over external memory movable by `moved`. Node.js marks such a buffer as untransferable and cannot
 * remove the mark, but the buffer that a byte stream makes of it is unmarked.
 */
export const movable = (buffer: ArrayBuffer): ArrayBuffer => transfer === undefined ? throughStream(buffer) : buffer

const throughStream = (buffer: ArrayBuffer): ArrayBuffer => {
  const controllers: Array<ReadableByteStreamController> = []
  const stream = new ReadableStream({ type: "bytes", start: (controller) => void controllers.push(controller) })
  stream.getReader({ mode: "byob" }).read(new Uint8Array(buffer)).catch(() => {})
  const result = controllers[0]?.byobRequest?.view?.buffer
  controllers[0]?.error()
  if (!(result instanceof ArrayBuffer)) throw new Error("the byte stream did not request to fill its buffer")
  return result
}
