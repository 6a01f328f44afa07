/**
 * Relates the times of a device to those of the host: an event on a stream that has no other work, recorded between two looks at the clock.
 */
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, EventRef, StreamRef } from "../CudaRuntime.ts"

/** When an event happened by the host's clock, in nanoseconds of Unix time, and the largest error of that. */
export interface Anchor {
  readonly event: EventRef
  readonly at: bigint
  readonly uncertainty: bigint
}

/** In nanoseconds. An anchor this good is not taken again. */
const goodUncertainty = 10_000n
const mostRounds = 4
/** How often to query before suspending the fiber. An idle stream passes an event within microseconds. */
const mostQueries = 50

/** The anchors of one device: a stream and two events, made at the first one. */
export class Anchors {
  readonly #runtime: CudaRuntimeService
  readonly deviceIndex: number
  stream: StreamRef | undefined
  readonly events: Array<EventRef> = []
  /** Whether it waits for an event. */
  isWaiting = false

  constructor(runtime: CudaRuntimeService, deviceIndex: number) {
    this.#runtime = runtime
    this.deviceIndex = deviceIndex
  }

  /** The best anchor of a few. It is valid until the next one is taken. */
  readonly take = Effect.fnUntraced(function*(this: Anchors, clock: Clock.Clock): Effect.fn.Return<Anchor, CudaError> {
    const stream = this.stream ??= yield* this.#runtime.streamCreate({
      deviceIndex: this.deviceIndex,
      priority: "high",
      nonBlocking: true,
      name: "effect-cuda times"
    })
    while (this.events.length < 2) this.events.push(yield* this.#runtime.eventCreate(this.deviceIndex, 0))
    const [first, second] = this.events
    let best = yield* this.#once(first!, stream, clock)
    for (let round = 1; round < mostRounds && best.uncertainty > goodUncertainty; round++) {
      const next: Anchor = yield* this.#once(best.event === first ? second! : first!, stream, clock)
      if (next.uncertainty < best.uncertainty) best = next
    }
    return best
  })

  readonly #once = Effect.fnUntraced(function*(this: Anchors, event: EventRef, stream: StreamRef, clock: Clock.Clock) {
    const before = clock.currentTimeNanosUnsafe()
    yield* this.#runtime.eventRecord(event, stream)
    let isReached = false
    for (let queries = 0; queries < mostQueries && !isReached; queries++) {
      isReached = yield* this.#runtime.eventQuery(event)
    }
    if (!isReached) {
      this.isWaiting = true
      yield* Effect.ensuring(this.#runtime.eventSynchronize(event), Effect.sync(() => void (this.isWaiting = false)))
    }
    const uncertainty = (clock.currentTimeNanosUnsafe() - before) / 2n
    return { event, at: before + uncertainty, uncertainty }
  })
}
