/**
 * Options for waiting: how a wait learns that the GPU is done.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"

/**
 * Options for waiting: how a wait learns that the GPU is done.
 *
 * @category models
 * @since 0.1.0
 */
export interface WaitOptions {
  /**
   * How long after its start a wait is asked about on every turn of the event loop. Waits that end in that time end within
   * microseconds of the GPU; until then the loop does not sleep. A stream whose last wait took 20 times as long is not
   * polled for the next time, unless a region asks for it.
   */
  readonly pollFor?: Duration.Input | undefined
  /**
   * Whether the GPU wakes the event loop after that, which uses hardly any CPU and costs tens to hundreds of microseconds.
   * Otherwise a timer asks once per millisecond. A layer without wake-ups has none for a region either.
   */
  readonly wakeUp?: boolean | undefined
}

/**
 * The waiting policy of a region, over that of the runtime's layer. The simulated runtime waits in `Clock` time, without
 * any of this.
 *
 * **Example** (A wait that uses no CPU)
 *
 * ```ts
 * import { CudaRuntime, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const stream: CudaStream.CudaStream
 *
 * const quiet = CudaStream.synchronize(stream).pipe(
 *   Effect.provideService(CudaRuntime.CurrentWaitOptions, { pollFor: 0 })
 * )
 * ```
 *
 * @category references
 * @since 0.1.0
 */
export const CurrentWaitOptions = Context.Reference<WaitOptions>("effect-cuda/CurrentWaitOptions", {
  defaultValue: () => ({})
})
