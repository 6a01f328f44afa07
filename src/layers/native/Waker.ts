/**
 * Lets the driver's threads wake the event loop, without a thread or polling.
 *
 * The host function given to the driver is the C library's `fflush`, so no JavaScript and no native code of this library
 * runs on the driver's threads. It flushes a C stream over the write end of a pipe, which always has one byte buffered.
 * Node.js reads the other end, and closes it safely when a worker ends. (A raw libuv handle that is still open when a worker
 * ends would abort the process.) The C stream is never freed, so a host function may run at any time, even after the
 * thread that waited has ended. The write descriptor is closed when a worker exits, but not when it is terminated.
 *
 * No wake-up is lost: the byte is replaced before the waits are checked. A host function that finds no byte to send ran
 * before that, so the check sees the work it reports.
 *
 * There is one waker per thread. It does not keep the process alive.
 */
import type Koffi from "koffi"
import { Socket } from "node:net"
import { isMainThread } from "node:worker_threads"
import type { CUhostFn, HostPointer } from "../../cuda/handles.ts"

export interface Waker {
  /** The arguments of `cuLaunchHostFunc`: the address of `fflush`, and the C stream to flush. */
  readonly send: CUhostFn
  readonly handle: HostPointer
  /** Calls a function on every wake-up until the returned function is called. Concurrent wake-ups may be merged into one. */
  readonly subscribe: (onWake: () => void) => () => void
}

/** The waker of this thread; undefined on platforms without one, where waits use timers. */
export const wakerOfThread = (): Promise<Waker | undefined> => opened ??= open()

let opened: Promise<Waker | undefined> | undefined

const open = async (): Promise<Waker | undefined> => {
  try {
    return process.platform === "linux" ? make((await import("koffi")).default) : undefined
  } catch {
    return undefined
  }
}

/** `O_CLOEXEC | O_NONBLOCK` on Linux: not inherited by child processes, and never blocks. */
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
  // Once its byte is sent, later flushes of the stream do nothing, so the descriptor can be closed. The functions are bound in advance,
  // because koffi crashes the process if it binds one while the thread is being terminated.
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
