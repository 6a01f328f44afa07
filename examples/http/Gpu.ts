/**
 * Memory for batches in flight, and the loss of the GPU.
 */
import { CudaError } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Pool from "effect/Pool"

/** Acquires every slot once, so that lack of memory fails the layer instead of the first callers. */
export const makeSlots = Effect.fnUntraced(function*<A, E, R>(size: number, acquire: Effect.Effect<A, E, R>) {
  const pool = yield* Pool.make({ acquire, size })
  yield* useAll(pool, size, () => Effect.void)
  return pool
})

/** Uses every slot once. */
export const useAll = <A, E, X, E2, R>(
  pool: Pool.Pool<A, E>,
  size: number,
  use: (slot: A) => Effect.Effect<X, E2, R>
): Effect.Effect<void, E | E2, R> =>
  Effect.scoped(
    Effect.flatMap(
      Effect.replicateEffect(Pool.get(pool), size),
      (slots) => Effect.forEach(slots, use, { discard: true })
    )
  )

/**
 * Remembers the loss of the GPU, after which no call in this process can succeed: logs it once, and makes no more
 * calls.
 */
export const watchGpu = () => {
  let loss: CudaError.CudaError | undefined
  const notice = (error: unknown) =>
    Effect.suspend(() => {
      if (loss !== undefined || !CudaError.isCudaError(error) || !error.isSticky) return Effect.void
      loss = error
      return Effect.logFatal("The GPU is lost; this process must be restarted.", error)
    })
  return {
    watch: <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | CudaError.CudaError, R> =>
      Effect.suspend((): Effect.Effect<A, E | CudaError.CudaError, R> =>
        loss === undefined ? Effect.tapError(effect, notice) : Effect.fail(loss)
      )
  }
}
