/**
 * Taking the memory of an `ArrayBuffer` from every view of it that a program holds, and keeping a program from giving it away.
 */
import { ReadableStream } from "node:stream/web"
import type { ReadableByteStreamController } from "node:stream/web"
import { markAsUntransferable } from "node:worker_threads"

/** There since Node.js 22. It moves memory whatever its mark is; `structuredClone` copies what is marked in Node.js 20. */
const prototype: ArrayBuffer & { readonly transfer?: (this: ArrayBuffer) => ArrayBuffer } = ArrayBuffer.prototype
const { transfer } = prototype

/**
 * Makes `structuredClone` and `postMessage` refuse to give the buffer's memory away, where `moved` needs neither: from Node.js
 * 22 on. Other ways to transfer it remain, so its users look whether it is still there.
 */
export const guarded = (buffer: ArrayBuffer): ArrayBuffer => {
  if (transfer !== undefined) markAsUntransferable(buffer)
  return buffer
}

/** The same memory in a new buffer. The old one and all of its views are empty then. */
export const moved = (buffer: ArrayBuffer): ArrayBuffer =>
  transfer === undefined ? structuredClone(buffer, { transfer: [buffer] }) : guarded(transfer.call(buffer))

/**
 * Makes a buffer over memory that is not JavaScript's one that `moved` can move. Node.js marks it as untransferable and takes
 * no mark back, but what a stream of bytes makes of it has none.
 */
export const movable = (buffer: ArrayBuffer): ArrayBuffer => transfer === undefined ? throughStream(buffer) : buffer

const throughStream = (buffer: ArrayBuffer): ArrayBuffer => {
  const controllers: Array<ReadableByteStreamController> = []
  const stream = new ReadableStream({ type: "bytes", start: (controller) => void controllers.push(controller) })
  stream.getReader({ mode: "byob" }).read(new Uint8Array(buffer)).catch(() => {})
  const result = controllers[0]?.byobRequest?.view?.buffer
  controllers[0]?.error()
  if (!(result instanceof ArrayBuffer)) throw new Error("a stream of bytes did not ask for its buffer to be filled")
  return result
}
