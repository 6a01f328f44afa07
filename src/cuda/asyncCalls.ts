/**
 * Turns for calls on threads of the pool. koffi refuses a call when about 257 are running on a thread, so only some are
 * begun at a time, which is more than the pool has threads, and the rest wait in order. No Effect here.
 *
 * @since 0.1.0
 */
import { statuses } from "./status.ts"

/** How many calls of a thread run at a time. What else uses koffi in the program needs some too. */
const mostCalls = 64

/** How long to wait when koffi takes no more calls, because of those that are not ours, in milliseconds. */
const retryDelay = 2

/** Told how a call ended: by its status, or by an error of koffi, which made no call then. */
export type OnEnd = (error: unknown, status: number) => void

/** A call that waits. False when koffi takes none at the moment. */
type Start = () => boolean

let running = 0
let isBeginning = false
let retry: NodeJS.Timeout | undefined
const waiting = new Set<Start>()

/**
 * Begins a call in its turn. `onEnd` is called exactly once, also when koffi throws, unless the returned function took the
 * call back: it does so, and returns true, as long as the call has not begun.
 */
export const inTurn = (begin: (onEnd: OnEnd) => void, onEnd: OnEnd): () => boolean => {
  const end: OnEnd = (error, status) => {
    running--
    beginWaiting()
    onEnd(error, error === null ? status : statuses.Unknown.code)
  }
  const start = () => {
    try {
      begin(end)
    } catch (error) {
      if (isRefusal(error)) return false
      waiting.delete(start)
      onEnd(error, statuses.Unknown.code)
      return true
    }
    running++
    waiting.delete(start)
    return true
  }
  waiting.add(start)
  beginWaiting()
  return () => waiting.delete(start)
}

/** Not from within itself: a call that koffi throws at has ended when it has begun, and any number may be waiting. */
const beginWaiting = (): void => {
  if (isBeginning || retry !== undefined) return
  isBeginning = true
  try {
    for (const start of waiting) {
      if (running >= mostCalls) break
      if (start()) continue
      retry = setTimeout(tryAgain, retryDelay)
      break
    }
  } finally {
    isBeginning = false
  }
}

const tryAgain = (): void => {
  retry = undefined
  beginWaiting()
}

const isRefusal = (error: unknown): boolean =>
  error instanceof Error && error.message.startsWith("Too many asynchronous calls")
