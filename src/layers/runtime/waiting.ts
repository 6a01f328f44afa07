/**
 * Options for waiting for the GPU.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"

/**
 * Options for waiting: how a wait detects that the GPU has finished.
 *
 * @category models
 * @since 0.1.0
 */
export interface WaitOptions {
  /**
   * How long a wait polls, once per turn of the event loop. A wait that ends within this time does so within
   * microseconds of the GPU, but keeps the event loop from sleeping. After a wait of 20 times this long, the next wait
   * on the same stream does not poll, unless a region sets this option.
   */
  readonly pollFor?: Duration.Input | undefined
  /**
   * Whether the GPU then wakes the event loop, which uses almost no CPU and takes tens to hundreds of microseconds.
   * Otherwise a timer polls once per millisecond. A region cannot enable wake-ups if the layer has none.
   */
  readonly wakeUp?: boolean | undefined
}

/**
 * The wait options of a region, which override those of the layer. The simulated runtime waits in `Clock` time, and
 * ignores them.
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
