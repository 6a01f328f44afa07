/**
 * A queue for calls on pool threads. koffi refuses a call if about 257 are running on a thread, so only some run at a
 * time, still more than the pool has threads, and the rest wait in order. No Effect here.
 *
 * @since 0.1.0
 */
import { statuses } from "./status.ts"

/** Maximum number of running calls per thread. Other users of koffi in the program need some as well. */
const mostCalls = 64

/** Delay before the next attempt if koffi refuses a call because of others' calls, in milliseconds. */
const retryDelay = 2

/** Called with the status of a call, or with an error if koffi did not make the call. */
export type OnEnd = (error: unknown, status: number) => void

/** Starts a waiting call. Returns false if koffi refuses calls at the moment. */
type Start = () => boolean

let running = 0
let isBeginning = false
let retry: NodeJS.Timeout | undefined
const waiting = new Set<Start>()

/**
 * Starts a call in its turn. `onEnd` is called exactly once, even if koffi throws, unless the call is cancelled: the
 * returned function cancels a call that has not started yet, and then returns true.
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

/**
 * Starts waiting calls. Not reentrant: a call ends immediately if koffi throws, and that would recurse once per waiting
 * call.
 */
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
