/**
 * Lets a thread of the driver wake the event loop, with no thread and no CPU of ours.
 *
 * The driver's host function is libuv's own `uv_async_send`, so no code of ours runs on the driver's thread. Its handle
 * belongs to a libuv loop of the waker's own, which is never run but when its descriptor becomes readable: the event loop
 * watches that descriptor. The handle and its loop live as long as the process, so that a host function may come at any
 * time, also after a worker thread that waited for it was terminated; a handle on the thread's own loop could not.
 *
 * There is one waker per thread. It keeps no process alive.
 */
import type Koffi from "koffi"

export interface Waker {
  /** The address of `uv_async_send`, and of the handle to send: what `cuLaunchHostFunc` is given. */
  readonly send: number
  readonly handle: number
  /** Has a function called on every wake-up, until the returned one is. Wake-ups that come together are one. */
  readonly subscribe: (onWake: () => void) => () => void
}

/** The waker of this thread, or undefined where libuv cannot be reached in this way: then waits use timers. */
export const wakerOfThread = (): Promise<Waker | undefined> => opened ??= open()

let opened: Promise<Waker | undefined> | undefined

const open = async (): Promise<Waker | undefined> => {
  try {
    return make((await import("koffi")).default)
  } catch {
    return undefined
  }
}

const asyncHandleType = 1
const runOnceWithoutWaiting = 2

const make = (koffi: typeof Koffi): Waker | undefined => {
  const node = koffi.load(null)
  const bind = (name: string, result: string, ...parameters: Array<string>) => node.func(name, result, parameters)
  const calloc = bind("calloc", "uintptr_t", "size_t", "size_t")
  const loop: number = calloc(1, bind("uv_loop_size", "size_t")())
  const handle: number = calloc(1, bind("uv_handle_size", "size_t", "int")(asyncHandleType))
  const run = bind("uv_run", "int", "uintptr_t", "int")
  if (bind("uv_loop_init", "int", "uintptr_t")(loop) !== 0) return undefined
  if (bind("uv_async_init", "int", "uintptr_t", "uintptr_t", "uintptr_t")(loop, handle, 0) !== 0) return undefined
  const descriptor: number = bind("uv_backend_fd", "int", "uintptr_t")(loop)
  if (descriptor < 0) return undefined
  run(loop, runOnceWithoutWaiting)

  const subscribers = new Set<() => void>()
  const poll = koffi.node.poll(descriptor, { readable: true }, () => {
    run(loop, runOnceWithoutWaiting)
    for (const onWake of subscribers) onWake()
  })
  poll.unref()
  const subscribe = (onWake: () => void) => {
    subscribers.add(onWake)
    return () => {
      subscribers.delete(onWake)
    }
  }
  held.push(poll)
  return { send: Number(node.symbol("uv_async_send")), handle, subscribe }
}

/** Poll handles close when they are collected, so they are held for the life of the thread. */
const held: Array<object> = []
