/**
 * Metrics of waiting: how many fibers wait for the GPU, how often the GPU woke the event loop, and how long waits took by
 * the stage that found their end.
 *
 * Waits that end at once are not counted.
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"

/**
 * The fibers that wait now.
 *
 * @category metrics
 * @since 0.1.0
 */
export const outstandingWaits = Metric.gauge("effect_cuda_waits_outstanding", {
  description: "Fibers that wait for the GPU now"
})

/**
 * The waits whose end a wake-up by the GPU found.
 *
 * @category metrics
 * @since 0.1.0
 */
export const wakeUps = Metric.counter("effect_cuda_wake_ups", {
  description: "Waits that ended with a wake-up of the event loop by the GPU",
  incremental: true
})

const waitTime = (stage: string) =>
  Metric.timer("effect_cuda_wait_time", { description: "How long waits for the GPU took", attributes: { stage } })

/**
 * How long waits took, by what found their end: polling, a wake-up by the GPU, a timer, or the clock of a simulated device;
 * `interrupted` for those that did not get there.
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
