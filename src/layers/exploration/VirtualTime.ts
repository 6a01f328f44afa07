/**
 * Time that passes only when a program has nothing else to do: when all its fibers wait, the clock jumps to the end of the next sleep. So
 * a program that hangs is noticed at once, however long its deadline.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Scheduler from "effect/Scheduler"

/** How a phase of a run ended: it finished, or not before its deadline. */
export type Ending = "over" | "late"

/** The clock and the scheduler of one run, and how to wait for it. */
export interface RunTime {
  readonly context: Context.Context<never>
  /** Lets the run go on until it is over, or for the given time at most. */
  readonly drive: (isOver: () => boolean, limit: Duration.Duration) => Effect.Effect<Ending>
}

/** After as many turns of the event loop without a task, all fibers wait. */
const quietTurns = 3

/** How long promises that are no requests of Node.js may take, in milliseconds, before they count as hanging. */
const grace = 50

/** How long a program may be busy without an end, in milliseconds. */
const patience = 10_000

interface Sleep {
  readonly end: bigint
  readonly wake: () => void
}

/** Work of Node.js outside this thread, such as reading files. */
const isRequest = (resource: string): boolean => /^FSReq|Req(Wrap)?$|REQUEST$|ConnectWrap$/.test(resource)

class VirtualTime implements RunTime {
  readonly context: Context.Context<never>
  #now = 0n
  /** In order of their ends, and those with the same end in order of their beginnings. */
  readonly #sleeps: Array<Sleep> = []
  /** Counts tasks that were scheduled, and that ran. */
  #activity = 0

  constructor(scheduler: Scheduler.Scheduler) {
    this.context = Context.make(Clock.Clock, this.#clock).pipe(
      Context.add(Scheduler.Scheduler, this.#observe(scheduler))
    )
  }

  readonly #clock: Clock.Clock = {
    currentTimeMillisUnsafe: () => Number(this.#now / 1_000_000n),
    currentTimeMillis: Effect.sync(() => Number(this.#now / 1_000_000n)),
    currentTimeNanosUnsafe: () => this.#now,
    currentTimeNanos: Effect.sync(() => this.#now),
    monotonicTimeNanosUnsafe: () => this.#now,
    monotonicTimeNanos: Effect.sync(() => this.#now),
    sleep: (duration) =>
      Effect.callback((resume) => {
        if (!Duration.isFinite(duration)) return undefined
        return this.#sleep(Duration.toNanosUnsafe(duration), () => resume(Effect.void))
      })
  }

  #sleep(nanos: bigint, wake: () => void): Effect.Effect<void> {
    const sleep: Sleep = { end: this.#now + nanos, wake }
    const after = this.#sleeps.findIndex(({ end }) => end > sleep.end)
    this.#sleeps.splice(after === -1 ? this.#sleeps.length : after, 0, sleep)
    return Effect.sync(() => {
      const index = this.#sleeps.indexOf(sleep)
      if (index !== -1) this.#sleeps.splice(index, 1)
    })
  }

  #observe(scheduler: Scheduler.Scheduler): Scheduler.Scheduler {
    return {
      executionMode: scheduler.executionMode,
      shouldYield: (fiber) => scheduler.shouldYield(fiber),
      makeDispatcher: () => {
        const dispatcher = scheduler.makeDispatcher()
        return {
          scheduleTask: (task, priority) => {
            this.#activity++
            dispatcher.scheduleTask(() => {
              this.#activity++
              task()
            }, priority)
          },
          flush: () => dispatcher.flush()
        }
      }
    }
  }

  /** Ends the next sleep, if it ends in time. */
  #advance(deadline: bigint): boolean {
    const next = this.#sleeps[0]
    if (next === undefined || next.end > deadline) return false
    this.#sleeps.shift()
    if (next.end > this.#now) this.#now = next.end
    next.wake()
    return true
  }

  drive(isOver: () => boolean, limit: Duration.Duration): Effect.Effect<Ending> {
    return Effect.callback((resume) => {
      const deadline = this.#now + Duration.toNanosUnsafe(limit)
      const begun = performance.now()
      let seen = this.#activity
      let quiet = 0
      let idleSince: number | undefined
      const turn = () => {
        if (isOver()) return resume(Effect.succeed("over"))
        const now = performance.now()
        if (now - begun > patience) return resume(Effect.succeed("late"))
        quiet = seen === this.#activity ? quiet + 1 : 0
        if (quiet === 0) idleSince = undefined
        seen = this.#activity
        if (quiet >= quietTurns && !process.getActiveResourcesInfo().some(isRequest)) {
          if (this.#advance(deadline)) quiet = 0
          else idleSince ??= now
          if (idleSince !== undefined && now - idleSince > grace) return resume(Effect.succeed("late"))
        }
        setImmediate(turn)
      }
      turn()
    })
  }
}

/** Virtual time, on top of the current scheduler. */
export const virtual: Effect.Effect<RunTime> = Effect.map(
  Effect.service(Scheduler.Scheduler),
  (scheduler) => new VirtualTime(scheduler)
)

/** Real time, for runtimes that do not use the clock. */
export const real: Effect.Effect<RunTime> = Effect.sync(() => ({
  context: Context.make(Clock.Clock, Clock.Clock.defaultValue()),
  drive: (isOver, limit) =>
    Effect.callback((resume) => {
      const deadline = performance.now() + Duration.toMillis(limit)
      const turn = () => {
        if (isOver()) return resume(Effect.succeed("over"))
        if (performance.now() > deadline) return resume(Effect.succeed("late"))
        setImmediate(turn)
      }
      turn()
    })
}))
