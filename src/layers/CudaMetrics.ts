/**
 * Metrics of waits: how many fibers wait for the GPU, how often the GPU woke the event loop, and how long waits took,
 * by the stage that found them finished.
 *
 * Waits that end immediately are not counted.
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"

/**
 * The number of fibers currently waiting.
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
