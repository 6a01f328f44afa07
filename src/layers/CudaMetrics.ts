/**
 * Metrics of waits: how many fibers wait for the GPU, how often the GPU woke the event loop, and how long waits took,
 * by the stage that found them finished.
 *
 * Waits that end immediately are not counted. `layer` also counts bytes, launches and failures, and what is live.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import { CudaRuntime } from "./CudaRuntime.ts"
import { counting } from "./metrics/counting.ts"

/**
 * The number of fibers currently waiting.
 *
 * **Example** (Reading a metric)
 *
 * ```ts
 * import { CudaMetrics } from "effect-cuda"
 * import * as Metric from "effect/Metric"
 *
 * const value = Metric.value(CudaMetrics.outstandingWaits)
 * ```
 *
 * @category metrics
 * @since 0.1.0
 */
export const outstandingWaits = Metric.gauge("effect_cuda_waits_outstanding", {
  description: "Fibers currently waiting for the GPU"
})

/**
 * The number of waits ended by a wake-up from the GPU.
 *
 * **Example** (Reading a metric)
 *
 * ```ts
 * import { CudaMetrics } from "effect-cuda"
 * import * as Metric from "effect/Metric"
 *
 * const value = Metric.value(CudaMetrics.wakeUps)
 * ```
 *
 * @category metrics
 * @since 0.1.0
 */
export const wakeUps = Metric.counter("effect_cuda_wake_ups", {
  description: "Waits ended by a wake-up of the event loop from the GPU",
  incremental: true
})

const waitTime = (stage: string) =>
  Metric.timer("effect_cuda_wait_time", { description: "Duration of waits for the GPU", attributes: { stage } })

/**
 * The duration of waits, by what found them finished: polling, a wake-up by the GPU, a timer, or the clock of a
 * simulated device. `interrupted` is for waits that were interrupted.
 *
 * **Example** (Waits that were polled)
 *
 * ```ts
 * import { CudaMetrics } from "effect-cuda"
 * import * as Metric from "effect/Metric"
 *
 * const times = Metric.value(CudaMetrics.waitTimes.poll)
 * ```
 *
 * @category metrics
 * @since 0.1.0
 */
export const waitTimes = {
  poll: waitTime("poll"),
  wake: waitTime("wake"),
  timer: waitTime("timer"),
  clock: waitTime("clock"),
  interrupted: waitTime("interrupted")
}

/**
 * Options for counting.
 *
 * @category models
 * @since 0.1.0
 */
export interface MetricsOptions {
  /** How often to set the gauges. Default: 1 second. */
  readonly interval?: Duration.Input | undefined
}

/**
 * Wraps the runtime of a layer, and counts what programs do with it in metrics of Effect's `Metric` module.
 *
 * **Details**
 *
 * | metric | unit | attributes |
 * | --- | --- | --- |
 * | `cuda.copied`, a counter | By | `cuda.copy.direction`: `host_to_device`, `device_to_host`, `device_to_device`, `peer_to_peer`, `host_to_host` |
 * | `cuda.filled`, a counter | By | |
 * | `cuda.launches`, a counter | {launch} | `cuda.launch.kind`: `kernel`, `graph`, `library`, `native` |
 * | `cuda.failures`, a counter | {failure} | `error.type`: the tag of the reason; `cuda.operation` |
 * | `cuda.memory.usage`, a gauge | By | `cuda.memory.kind`: `device`, `host` (pinned) |
 * | `cuda.resources`, a gauge | {resource} | `cuda.resource.kind`: `stream`, `event`, `device_buffer`, `host_buffer`, `module`, `graph`, … |
 *
 * OpenTelemetry has no conventions for CUDA; `error.type` and the units are its own. Work is counted when it has been enqueued. What a graph
 * does counts as one launch, and recording it not at all. Every failure of an operation counts, handled or not: an allocation that is tried
 * again after `OutOfMemory` counts its first failure too. The gauges are set at the given interval and when the layer ends.
 *
 * **Gotchas**
 *
 * A counted operation costs a fraction of a microsecond more. Setting the gauges takes time in proportion to the number of live buffers.
 *
 * **Example** (Counting what a GPU does)
 *
 * ```ts
 * import { CudaMetrics, NativeRuntime } from "effect-cuda"
 * import * as Layer from "effect/Layer"
 *
 * const counted = CudaMetrics.layer({ interval: "10 seconds" }).pipe(Layer.provide(NativeRuntime.layer()))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = ({ interval = "1 second" }: MetricsOptions = {}): Layer.Layer<CudaRuntime, never, CudaRuntime> =>
  Layer.effect(CudaRuntime, Effect.flatMap(CudaRuntime, (runtime) => counting(runtime, interval)))
