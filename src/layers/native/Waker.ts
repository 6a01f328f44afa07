/**
 * Lets a thread of the driver wake the event loop, with no thread and no CPU of ours.
 *
 * The driver's host function is the C library's own `fflush`, so no code of ours runs on the driver's thread. Its stream is
 * the writing end of a pipe, with one byte always buffered; Node.js reads the other end, and knows by itself when a thread
 * that is on its way out can be told nothing more. (A libuv handle of ours on the loop aborts the process when a worker
 * thread ends with it open.) The stream lives as long as the process, so a host function may come at any time, also after
 * the thread that waited is gone; of a worker that is terminated its descriptor does too.
 *
 * No wake-up is lost: the byte that was read is replaced before anyone looks what has ended, so a host function either
 * finds a byte to send, or ran early enough to be seen.
 *
 * There is one waker per thread. It keeps no process alive.
 */
import type Koffi from "koffi"
import { Socket } from "node:net"
import { isMainThread } from "node:worker_threads"
import type { CUhostFn, HostPointer } from "../../cuda/handles.ts"

export interface Waker {
  /** The address of `fflush`, and of the stream to flush: what `cuLaunchHostFunc` is given. */
  readonly send: CUhostFn
  readonly handle: HostPointer
  /** Has a function called on every wake-up, until the returned one is. Wake-ups that come together are one. */
  readonly subscribe: (onWake: () => void) => () => void
}

/** The waker of this thread, or undefined on a platform without one: then waits use timers. */
export const wakerOfThread = (): Promise<Waker | undefined> => opened ??= open()

let opened: Promise<Waker | undefined> | undefined

const open = async (): Promise<Waker | undefined> => {
  try {
    return process.platform === "linux" ? make((await import("koffi")).default) : undefined
  } catch {
    return undefined
  }
}

/** `O_CLOEXEC | O_NONBLOCK` of Linux: not inherited by other programs, and never a reason to wait. */
const pipeFlags = 0o2000000 | 0o4000

const make = (koffi: typeof Koffi): Waker | undefined => {
  const c = koffi.load(null)
  const ends = new Int32Array(2)
  if (c.func("pipe2", "int", ["void *", "int"])(ends, pipeFlags) !== 0) return undefined
  const stream: HostPointer = c.func("fdopen", "uintptr_t", ["int", "str"])(ends[1], "w")
  if (stream === 0) return undefined
  const put = c.func("fputc", "int", ["int", "uintptr_t"])
  const flush = c.func("fflush", "int", ["uintptr_t"])
  const close = c.func("close", "int", ["int"])
  put(0, stream)
  // With its byte sent, the stream has nothing left to flush whoever may still ask, so its descriptor can go. What this calls is
  // bound before: koffi ends the process when it binds while the thread is being terminated.
  const retire = () => {
    flush(stream)
    close(ends[1])
  }

  const subscribers = new Set<() => void>()
  const callback = () => {
    put(0, stream)
    for (const onWake of subscribers) onWake()
    return true
  }
  const socket = new Socket({ fd: ends[0]!, writable: false, onread: { buffer: new Uint8Array(64), callback } })
  socket.resume()
  socket.unref()
  if (!isMainThread) process.once("exit", retire)
  return {
    send: Number(c.symbol("fflush")) as CUhostFn,
    handle: stream,
    subscribe: (onWake) => {
      subscribers.add(onWake)
      return () => {
        subscribers.delete(onWake)
      }
    }
  }
}
