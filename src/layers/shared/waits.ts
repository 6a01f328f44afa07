/**
 * Waits, as shared by the backend and the shared operations. A watch can be cancelled, and reports its end exactly once unless it is.
 */
import { success } from "../../cuda/status.ts"
import type { WaitOptions } from "../CudaRuntime.ts"
import type { StreamResource } from "./resources.ts"

/** The status of a watch that can never end. The driver never returns it. */
export const neverFinishes = -1

/** What found a wait finished: polling, a wake-up by the GPU, a timer, or the clock of a simulated device. */
export type WaitStage = "poll" | "wake" | "timer" | "clock"

/**
 * Called once with the result of a wait: 0, the status of a fault, or `neverFinishes`. The stage is undefined if it
 * ended immediately.
 */
export type OnDone = (status: number, stage?: WaitStage) => void

/** Cancels a wait. Has no effect after the wait has ended. */
export type Cancel = () => void

/** Starts a wait, and returns a function that cancels it. */
export type Watch = (onDone: OnDone, options: WaitOptions) => Cancel

/** The failure of an asynchronous driver call. */
export interface DriverFailure {
  readonly call: string
  readonly status: number
  /** The log of the driver's JIT compiler. */
  readonly log?: string | undefined
}

/** Watches the streams that still use a resource when the watch begins: some may be destroyed before that. */
export const watchUsers = (
  streams: { readonly watch: (stream: StreamResource, onDone: OnDone, options?: WaitOptions) => Cancel },
  resource: { readonly pendingUsers: ReadonlyArray<StreamResource> }
): Watch =>
(onDone, options) =>
  watchAll(resource.pendingUsers.map((user): Watch => (...rest) => streams.watch(user, ...rest)))(onDone, options)

/** Combines watches: ends when all have ended, or at the first fault. */
export const watchAll = (watches: ReadonlyArray<Watch>): Watch => (onDone, options) => {
  if (watches.length === 0) {
    onDone(success)
    return () => {}
  }
  const cancels: Array<Cancel> = []
  let pending = watches.length
  const cancelAll = () => cancels.forEach((cancel) => cancel())
  for (const watch of watches) {
    if (pending <= 0) break
    const onOneDone: OnDone = (status, stage) => {
      if (pending <= 0) return
      pending = status === success ? pending - 1 : 0
      if (pending > 0) return
      cancelAll()
      onDone(status, stage)
    }
    cancels.push(watch(onOneDone, options))
  }
  if (pending <= 0) cancelAll()
  return cancelAll
}
