/**
 * Measures the event loop: the longest time between two turns, the lateness of timers, and the share of time it was
 * busy. Also pauses that do not block it.
 */
import * as Effect from "effect/Effect"
import { monitorEventLoopDelay } from "node:perf_hooks"

/** Pauses without blocking the event loop. */
export const pause = (millis: number): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    const timer = setTimeout(() => resume(Effect.void), millis)
    return Effect.sync(() => clearTimeout(timer))
  })

/** Resumes in the next turn of the event loop. */
export const turn: Effect.Effect<void> = Effect.callback<void>((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

/** Reports what happened since the last reading, and restarts. */
export interface Probe<A> {
  readonly read: () => A
  readonly stop: () => void
}

/**
 * Measures the longest time between two turns of the event loop, in milliseconds, with a tight chain of immediates. The
 * loop never sleeps meanwhile, and the probe's own turns, about a microsecond each, are part of the result.
 */
export const probeTurns = (): Probe<number> => {
  let longest = 0
  let last = performance.now()
  const look = () => {
    const now = performance.now()
    longest = Math.max(longest, now - last)
    last = now
  }
  let immediate = setImmediate(function next() {
    look()
    immediate = setImmediate(next)
  })
  return {
    read: () => {
      look()
      const seen = longest
      longest = 0
      return seen
    },
    stop: () => clearImmediate(immediate)
  }
}

/** The lateness of timers, in milliseconds. */
export interface Lateness {
  readonly p50: number
  readonly p99: number
  readonly max: number
}

/** Monitors a timer of 1 ms (`monitorEventLoopDelay`), between whose calls the loop can sleep. */
export const probeTimers = (): Probe<Lateness> => {
  const interval = 1
  const delays = monitorEventLoopDelay({ resolution: interval })
  delays.enable()
  // The histogram contains the times between calls of the timer, in nanoseconds.
  const late = (nanos: number) => Math.max(0, nanos / 1e6 - interval)
  return {
    read: () => {
      const seen = {
        p50: late(delays.percentile(50)),
        p99: late(delays.percentile(99)),
        max: delays.count === 0 ? 0 : late(delays.max)
      }
      delays.reset()
      return seen
    },
    stop: () => delays.disable()
  }
}

/** Starts to measure how long the loop is busy, neither asleep nor waiting for the system, in milliseconds. */
export const countBusy = (): () => number => {
  const start = performance.eventLoopUtilization()
  return () => performance.eventLoopUtilization(start).active
}

/** The longest turn of the loop while an effect runs, and the duration of the effect, in milliseconds. */
export const longestTurn = <A, E, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<{ readonly result: A; readonly longest: number; readonly elapsed: number }, E, R> =>
  Effect.suspend(() => {
    const probe = probeTurns()
    const start = performance.now()
    // The chain starts before the effect, and covers the turn in which the effect ends.
    const measured = Effect.map(Effect.andThen(turn, effect), (result) => ({
      result,
      longest: probe.read(),
      elapsed: performance.now() - start
    }))
    return Effect.ensuring(measured, Effect.sync(probe.stop))
  })
