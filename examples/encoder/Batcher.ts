/**
 * Puts concurrent requests into batches: each of a few workers takes a batch that is due, runs it, and gives every
 * caller its result.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import { WaitingRequests } from "./Waiting.ts"
import type { Batch, Options as WaitingOptions } from "./Waiting.ts"

export interface Options<A, E> extends WaitingOptions {
  /** Maximum number of batches in flight. */
  readonly workers: number
  /** Returns a result per sequence. Is not interrupted. */
  readonly run: (length: number, sequences: ReadonlyArray<Int32Array>) => Effect.Effect<ReadonlyArray<A>, E>
}

/** The batcher has ended. */
export class Stopped extends Data.TaggedError("Stopped") {
  override readonly message = "the service is shutting down"
}

export interface Batcher<A, E> {
  /**
   * Waits for the result of a sequence, which must not be longer than the longest batch. If the caller leaves, the
   * sequence is not part of a batch that has not begun.
   */
  readonly submit: (ids: Int32Array) => Effect.Effect<A, E | Stopped>
  readonly state: () => State
}

export interface State {
  /** Sequences that wait for a batch. */
  readonly waiting: number
  /** Batches that have begun and not ended. */
  readonly inFlight: number
  /** How long the oldest of them has been running, in milliseconds; 0 if there is none. */
  readonly oldest: number
  /** Batches that have succeeded, and the sequences in them. */
  readonly batches: number
  readonly requests: number
}

/** A request, and the caller that waits for it. */
interface Pending<A, E> {
  readonly ids: Int32Array
  readonly since: number
  readonly resume: (result: Exit.Exit<A, E | Stopped>) => void
}

/** Closing the scope waits for batches in flight, and refuses the requests that still wait. */
export const make = Effect.fnUntraced(function*<A, E>({ run, workers, ...options }: Options<A, E>) {
  const clock = yield* Clock.clockWith(Effect.succeed)
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const waiting = new WaitingRequests<Pending<A, E>>(options)
  const arrivals = Latch.makeUnsafe()
  const begun = new Set<{ readonly at: number }>()
  const counts = { batches: 0, requests: 0 }
  let isStopped = false

  /** Ends when a batch is due. */
  const due = Effect.gen(function*() {
    for (let wait = waiting.dueIn(now()); wait > 0; wait = waiting.dueIn(now())) {
      arrivals.closeUnsafe()
      yield* wait === Infinity ? arrivals.await : Effect.timeoutOption(arrivals.await, wait)
    }
  })

  const serve = Effect.fnUntraced(function*({ length, requests }: Batch<Pending<A, E>>) {
    const batch = { at: now() }
    begun.add(batch)
    const results = yield* Effect.exit(run(length, requests.map(({ ids }) => ids)))
    begun.delete(batch)
    if (Exit.isSuccess(results)) {
      counts.batches++
      counts.requests += requests.length
    }
    for (const [index, { resume }] of requests.entries()) resume(Exit.map(results, (all) => all[index]!))
  })

  /** Interruption ends the wait for a batch, but no batch. */
  const work = Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      yield* restore(due)
      // Undefined if another worker has taken it.
      const batch = waiting.take(now())
      if (batch !== undefined) yield* serve(batch)
    })
  )

  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      isStopped = true
      for (const { resume } of waiting.takeAll()) resume(Exit.fail(new Stopped()))
    })
  )
  yield* Effect.replicateEffect(Effect.forkScoped(Effect.forever(work)), workers)

  const batcher: Batcher<A, E> = {
    submit: (ids) =>
      Effect.callback((resume) => {
        if (isStopped) return resume(new Stopped())
        const request = { ids, since: now(), resume }
        if (waiting.add(request)) arrivals.openUnsafe()
        return Effect.sync(() => waiting.remove(request))
      }),
    state: () => ({
      waiting: waiting.size,
      inFlight: begun.size,
      oldest: now() - Math.min(now(), ...Array.from(begun, ({ at }) => at)),
      ...counts
    })
  }
  return batcher
})
