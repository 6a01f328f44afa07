/**
 * Profilers, in the runtime service.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"

/**
 * Operations on the profiler that this process runs under. Without one, they do nothing.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProfilerOperations {
  /** Makes the profiler collect from now on (`cuProfilerStart`). Does nothing if it collects already. */
  readonly profilerStart: (deviceIndex: number) => Effect.Effect<void, CudaError>
  /** Makes the profiler stop collecting (`cuProfilerStop`). Does nothing if it does not collect. */
  readonly profilerStop: (deviceIndex: number) => Effect.Effect<void, CudaError>
}
