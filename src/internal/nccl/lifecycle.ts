/**
 * How communicators end, and how their failures are found.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { CudaError } from "../../CudaError.ts"
import { logRelease } from "../handles.ts"
import { goneError } from "./communicator.ts"
import type { CommunicatorRef } from "./communicator.ts"
import { inProgress } from "./library.ts"
import { abortHandle, errorOf, stateOf } from "./native.ts"

/** Ends a communicator and the work that waits for its other ranks, at once. */
export const abortCommunicator = (ref: CommunicatorRef, failure?: CudaError): Effect.Effect<void> =>
  Effect.uninterruptible(
    Effect.suspend(() => {
      if (ref.state === "released") return Effect.void
      if (ref.state === "live") ref.failure = failure
      ref.state = "released"
      return abortHandles(ref)
    })
  )

/** The blocking communicator first: it was split from the other. */
const abortHandles = (ref: CommunicatorRef): Effect.Effect<void> =>
  Effect.andThen(
    Effect.sync(() => ref.meetings?.leave(ref.rank)),
    ref.ending.withPermit(
      Effect.forEach(ref.handles, (handle) => abortHandle(ref.runtime, handle), { discard: true })
    )
  )

/** How long work may take to end after the scope has failed. */
const graceMillis = 100

/**
 * Closes a communicator: waits for its work, releases the graphs that were captured with it, and destroys it, off the JS thread. Work that does not
 * end in time is aborted.
 */
export const closeCommunicator = (
  ref: CommunicatorRef,
  limit: Duration.Duration,
  exit: Exit.Exit<unknown, unknown>
): Effect.Effect<void> =>
  Effect.suspend(() => {
    // It may be ending in the background.
    if (ref.state !== "live") return ref.ending.withPermit(Effect.void)
    ref.state = "closing"
    const isFailure = Exit.isFailure(exit)
    const patience = isFailure ? Duration.min(limit, Duration.millis(graceMillis)) : limit
    const destroyed = Effect.forEach(
      ref.handles,
      (handle) => Effect.catch(ref.runtime.libraryDestroy(handle), logRelease),
      { discard: true }
    )
    const late = Effect.sleep(patience).pipe(
      Effect.andThen(isFailure ? Effect.void : Effect.logWarning(describeLate(ref, limit))),
      Effect.andThen(Effect.uninterruptible(Effect.suspend(() => abortHandles(ref))))
    )
    return Effect.flatMap(Effect.forkDetach(late), (timer) =>
      Effect.ensuring(
        destroyed,
        Effect.andThen(
          Fiber.interrupt(timer),
          Effect.sync(() => {
            ref.state = "released"
            ref.meetings?.leave(ref.rank)
          })
        )
      ))
  })

const describeLate = (ref: CommunicatorRef, limit: Duration.Duration): string =>
  `CudaNccl.release (${ref}): its work did not end within ${Duration.format(limit)}, and was aborted. ` +
  "Another rank did not come, or is gone."

/** How often a communicator is asked whether its streams are being released. */
const watchMillis = 250

/**
 * Aborts a communicator if a stream cannot be released because work on it waits for other ranks. The stream would otherwise wait for ever, since
 * it is released before the communicator if it was made after it.
 */
export const watchStreams = (ref: CommunicatorRef, limit: Duration.Duration): Effect.Effect<never> => {
  let closing = 0
  const check = Effect.suspend(() => {
    const isClosing = [...ref.streams].some(({ state }) => state === "closing")
    closing = isClosing ? closing + watchMillis : 0
    if (closing <= Duration.toMillis(limit)) return Effect.void
    return Effect.andThen(Effect.logWarning(describeLate(ref, limit)), abortCommunicator(ref))
  })
  return Effect.forever(Effect.andThen(Effect.sleep(watchMillis), check))
}

/** The failure of a communicator, if it has failed. */
export const failureOf = (operation: string, ref: CommunicatorRef): CudaError | undefined => {
  if (ref.state !== "live") return ref.failure ?? goneError(operation, ref)
  const { native } = ref.shared
  if (native === undefined) return undefined
  const code = stateOf(native, ref.handles)
  if (code === 0 || code === inProgress) return undefined
  return errorOf(native, operation, code, ref.deviceIndex)
}

/** Fails when one of several communicators does. */
export const untilFailure = (
  operation: string,
  refs: ReadonlyArray<CommunicatorRef>,
  every: Duration.Input
): Effect.Effect<never, CudaError> => {
  const check = Effect.suspend(() => {
    for (const ref of refs) {
      const failure = failureOf(operation, ref)
      if (failure !== undefined) return Effect.fail(failure)
    }
    return Effect.void
  })
  return Effect.forever(Effect.andThen(check, Effect.sleep(every)))
}

/** The failure of something that took too long. */
export const timedOut = (
  operation: string,
  resource: string,
  duration: Duration.Duration,
  deviceIndex: number
): CudaError =>
  new CudaError({
    operation,
    deviceIndex,
    reason: {
      _tag: "TimedOut",
      resource,
      milliseconds: Duration.toMillis(duration),
      advice: "Look for a rank that failed or was not started. The communicator was aborted."
    }
  })
