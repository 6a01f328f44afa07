/**
 * What measures regions: events around each, kept until the GPU has passed them, and an anchor per device that their times
 * count from. Below the functions of `CudaTiming`.
 */
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, EventRef, StreamRef } from "../../layers/CudaRuntime.ts"
import { released } from "../handles.ts"
import { onStream } from "../place.ts"
import type { AnyStream } from "../place.ts"
import type { Attributes } from "./tracks.ts"

interface RegionOptions {
  readonly stream?: AnyStream | undefined
  readonly attributes?: Attributes | undefined
}

/** The recorder of the innermost timeline. */
export const CurrentRecorder = Context.Reference<Recorder | undefined>("effect-cuda/CurrentRecorder", {
  defaultValue: () => undefined
})

/** Makes an event that takes times and lives as long as the scope. */
export const makeTimed = (
  runtime: CudaRuntimeService,
  device: number
): Effect.Effect<EventRef, CudaError, Scope.Scope> =>
  Effect.acquireRelease(runtime.eventCreate(device, 0), (event) => released(runtime.eventDestroy(event)))

/** When an event happened by the host's monotonic clock, in nanoseconds, and how far off that is at most. */
export interface Aligned {
  readonly event: EventRef
  readonly hostTime: bigint
  readonly uncertainty: bigint
}

/** Nanoseconds: an alignment as good as this is not tried again. */
const goodUncertainty = 10_000n
const mostRounds = 6
/** Queries before the fiber is suspended: an idle stream passes an event within microseconds. */
const mostQueries = 50

/**
 * Records an event on a stream of its own and takes the host's time before and after: it happened in between. The event is
 * that of the best of a few rounds.
 */
export const align = (
  runtime: CudaRuntimeService,
  device: number,
  clock: Clock.Clock
): Effect.Effect<Aligned, CudaError, Scope.Scope> =>
  Effect.acquireUseRelease(
    runtime.streamCreate({ device, priority: "high", nonBlocking: true }),
    Effect.fnUntraced(function*(stream) {
      let best = yield* alignOnce(runtime, yield* makeTimed(runtime, device), stream, clock)
      if (best.uncertainty <= goodUncertainty) return best
      let spare = yield* makeTimed(runtime, device)
      for (let round = 1; round < mostRounds && best.uncertainty > goodUncertainty; round++) {
        const next: Aligned = yield* alignOnce(runtime, spare, stream, clock)
        spare = next.event
        if (next.uncertainty >= best.uncertainty) continue
        spare = best.event
        best = next
      }
      return best
    }),
    (stream) => released(runtime.streamDestroy(stream))
  )

const alignOnce = Effect.fnUntraced(function*(
  runtime: CudaRuntimeService,
  event: EventRef,
  stream: StreamRef,
  clock: Clock.Clock
) {
  const before = clock.monotonicTimeNanosUnsafe()
  yield* runtime.eventRecord(event, stream)
  let isReached = false
  for (let queries = 0; queries < mostQueries && !isReached; queries++) isReached = yield* runtime.eventQuery(event)
  if (!isReached) yield* runtime.eventSynchronize(event)
  const uncertainty = (clock.monotonicTimeNanosUnsafe() - before) / 2n
  return { event, hostTime: before + uncertainty, uncertainty }
})

/** A region as it was measured: times in milliseconds, the start since the timeline began. */
export interface Measured {
  readonly name: string
  readonly stream: StreamRef
  readonly attributes: Attributes
  readonly start: number
  readonly duration: number
}

/** A region that has begun, and after its end the one after it on its stream. */
interface Begun {
  readonly device: DeviceRecorder
  readonly name: string
  readonly stream: StreamRef
  readonly attributes: Attributes
  readonly start: EventRef
  readonly end: EventRef
  /** Milliseconds since the timeline began, for one that goes on for long. */
  startAt: number | undefined
  next: Begun | undefined
}

/** The regions of a stream that the GPU may not have passed yet: it passes them in this order. Never empty. */
interface Lane {
  first: Begun
  last: Begun
}

/** An event whose time since the timeline began is known, in milliseconds. */
interface Anchor {
  readonly event: EventRef
  readonly at: number
}

/** Milliseconds. An elapsed time has 24 bits: the closer the anchor, the finer the time. */
const anchorReach = 1000
/** Regions of a stream that are resolved at most when events are needed. */
const mostReclaimed = 4

/** The regions of one device. */
class DeviceRecorder {
  readonly index: number
  readonly #recorder: Recorder
  readonly #anchored = Deferred.makeUnsafe<Aligned, CudaError>()
  readonly #free: Array<EventRef> = []
  /** Regions whose effect runs, with their start recorded. */
  readonly #open = new Set<Begun>()
  readonly #lanes = new Map<number, Lane>()
  /** Held while regions are resolved, which takes several calls, and all with the same anchor. */
  readonly #resolving = Semaphore.makeUnsafe(1)
  #anchor: Anchor | undefined
  /** Nanoseconds, once there is an anchor. */
  uncertainty: bigint | undefined

  constructor(recorder: Recorder, index: number) {
    this.#recorder = recorder
    this.index = index
  }

  /** Finds the anchor, without being waited for. */
  readonly forkAnchor: Effect.Effect<void> = Effect.suspend(() => {
    const { clock, runtime, scope } = this.#recorder
    const aligned = Effect.map(Scope.provide(align(runtime, this.index, clock), scope), (found) => {
      this.#anchor = { event: found.event, at: this.#recorder.sinceBegin(found.hostTime) }
      this.uncertainty = found.uncertainty
      return found
    })
    return Effect.asVoid(Effect.forkIn(Deferred.into(aligned, this.#anchored), scope, { startImmediately: true }))
  })

  get anchored(): Effect.Effect<Aligned, CudaError> {
    return Deferred.await(this.#anchored)
  }

  /** Begins a region on a stream. */
  begin(name: string, stream: StreamRef, attributes: Attributes): Effect.Effect<Begun, CudaError> {
    return Effect.flatMap(this.#take(stream), ([start, end]) => {
      const begun: Begun = { device: this, name, stream, attributes, start, end, startAt: undefined, next: undefined }
      const record = Effect.map(this.#recorder.runtime.eventRecord(start, stream), () => {
        this.#open.add(begun)
        return begun
      })
      return Effect.onError(record, () => this.#giveBack(begun))
    })
  }

  /** Ends a region, and keeps it until the GPU has passed it. */
  end(begun: Begun): Effect.Effect<void> {
    return Effect.matchEffect(this.#recorder.runtime.eventRecord(begun.end, begun.stream), {
      onSuccess: () => this.#keep(begun),
      onFailure: () => this.#giveBack(begun)
    })
  }

  #keep(begun: Begun): Effect.Effect<void> {
    return Effect.sync(() => {
      this.#open.delete(begun)
      const lane = this.#lanes.get(begun.stream.id)
      if (lane === undefined) this.#lanes.set(begun.stream.id, { first: begun, last: begun })
      else lane.last = lane.last.next = begun
    })
  }

  #giveBack(begun: Begun): Effect.Effect<void> {
    return Effect.sync(() => {
      this.#open.delete(begun)
      this.#free.push(begun.start, begun.end)
    })
  }

  /** Two events for a region of a stream: of regions that are over, or new ones. */
  #take(stream: StreamRef): Effect.Effect<readonly [start: EventRef, end: EventRef], CudaError> {
    return Effect.suspend(() =>
      this.#free.length >= 2 ? this.#takeOrMake : Effect.andThen(this.#reclaim(stream.id), this.#takeOrMake)
    )
  }

  readonly #takeOrMake: Effect.Effect<readonly [EventRef, EventRef], CudaError> = Effect.suspend(() => {
    if (this.#free.length >= 2) return Effect.succeed([this.#free.pop()!, this.#free.pop()!])
    const { runtime, scope } = this.#recorder
    return Effect.flatMap(Scope.provide(makeTimed(runtime, this.index), scope), (event) => {
      this.#free.push(event)
      return this.#takeOrMake
    })
  })

  /**
   * Resolves a few regions: of this stream, so that one that keeps up holds few, and of the next one in turn, so that those
   * without further regions are not forgotten.
   */
  #reclaim(id: number): Effect.Effect<unknown> {
    return this.#resolving.withPermitsIfAvailable(1)(Effect.suspend(() => {
      if (this.#anchor === undefined || this.#lanes.size === 0) return Effect.void
      const [other] = this.#lanes.keys()
      if (other === undefined || other === id) return this.#reclaimLane(id)
      return Effect.andThen(this.#reclaimLane(id), this.#reclaimLane(other))
    }))
  }

  readonly #reclaimLane = Effect.fnUntraced(function*(this: DeviceRecorder, id: number) {
    const lane = this.#lanes.get(id)
    if (lane === undefined) return
    for (let reclaimed = 0; reclaimed < mostReclaimed; reclaimed++) {
      const begun = lane.first
      // What the query fails with, the times fail with too.
      const isPassed = yield* Effect.orElseSucceed(this.#recorder.runtime.eventQuery(begun.end), () => true)
      if (!isPassed) break
      if (begun.next === undefined) this.#lanes.delete(id)
      else lane.first = begun.next
      yield* this.#resolve(begun)
      if (begun.next === undefined) return
    }
    // To the end of the turn.
    this.#lanes.delete(id)
    this.#lanes.set(id, lane)
  })

  /** Takes the times of a region that the GPU has passed, and gives its events back. */
  #resolve(begun: Begun): Effect.Effect<void> {
    return Effect.catch(this.#measure(begun), () => this.#giveBack(begun))
  }

  readonly #measure = Effect.fnUntraced(function*(this: DeviceRecorder, begun: Begun) {
    const { regions, runtime } = this.#recorder
    const anchor = this.#anchor!
    const { attributes, end, name, start, stream } = begun
    const millis = yield* runtime.eventElapsedTime(start, end)
    const startAt = begun.startAt ?? anchor.at + (yield* runtime.eventElapsedTime(anchor.event, start))
    const isLong = millis > anchorReach
    const endAt = isLong ? anchor.at + (yield* runtime.eventElapsedTime(anchor.event, end)) : startAt + millis
    regions.push({ name, stream, attributes, start: Math.max(0, startAt), duration: isLong ? endAt - startAt : millis })
    if (endAt <= anchor.at + anchorReach) return yield* this.#giveBack(begun)
    for (const open of this.#open) yield* this.#measureStart(open, anchor)
    for (const { first } of this.#lanes.values()) yield* this.#measureStart(first, anchor)
    this.#anchor = { event: end, at: endAt }
    this.#free.push(start, anchor.event)
  })

  /** Takes the start of a region that goes on, while the anchor is still near. */
  #measureStart(begun: Begun, anchor: Anchor): Effect.Effect<void> {
    if (begun.startAt !== undefined) return Effect.void
    const { runtime } = this.#recorder
    const measure = Effect.map(runtime.eventElapsedTime(anchor.event, begun.start), (millis) => {
      begun.startAt = anchor.at + millis
    })
    return Effect.ignore(
      Effect.flatMap(runtime.eventQuery(begun.start), (isPassed) => isPassed ? measure : Effect.void)
    )
  }

  /** Waits for the regions that are left, and resolves them. Those of a device that cannot be aligned have no times. */
  readonly drain: Effect.Effect<void, CudaError> = Effect.suspend(() => {
    const drainLanes = Effect.suspend(() =>
      Effect.forEach(this.#lanes.values(), (lane) => this.#drainLane(lane), { discard: true })
    )
    return Effect.matchEffect(this.anchored, {
      onFailure: () => Effect.void,
      onSuccess: () => this.#resolving.withPermit(drainLanes)
    })
  })

  readonly #drainLane = Effect.fnUntraced(function*(this: DeviceRecorder, { first, last }: Lane) {
    yield* this.#recorder.runtime.eventSynchronize(last.end)
    for (let begun: Begun | undefined = first; begun !== undefined; begun = begun.next) yield* this.#resolve(begun)
  })
}

/** The regions of one timeline. */
export class Recorder {
  readonly runtime: CudaRuntimeService
  readonly clock: Clock.Clock
  readonly scope: Scope.Scope
  /** In the order in which they were resolved. */
  readonly regions: Array<Measured> = []
  readonly #began: bigint
  readonly #devices: Array<DeviceRecorder> = []
  #begun = 0
  #isClosed = false

  constructor(runtime: CudaRuntimeService, clock: Clock.Clock, scope: Scope.Scope) {
    this.runtime = runtime
    this.clock = clock
    this.scope = scope
    this.#began = clock.monotonicTimeNanosUnsafe()
  }

  /** Milliseconds since the timeline began, of a time of the monotonic clock. */
  sinceBegin(hostTime: bigint): number {
    return Number(hostTime - this.#began) / 1e6
  }

  /** The devices that were aligned. */
  get devices(): ReadonlyArray<{ readonly index: number; readonly uncertainty: bigint }> {
    return this.#devices.flatMap(({ index, uncertainty }) => uncertainty === undefined ? [] : [{ index, uncertainty }])
  }

  /** How many regions have begun and are not among `regions`. */
  get dropped(): number {
    return this.#begun - this.regions.length
  }

  /** The recorder of a device, whose anchor is being found since the first time this was asked for. */
  device(index: number): Effect.Effect<DeviceRecorder> {
    return Effect.suspend(() => {
      const known = this.#devices.find((device) => device.index === index)
      if (known !== undefined) return Effect.succeed(known)
      const made = new DeviceRecorder(this, index)
      this.#devices.push(made)
      return Effect.as(made.forkAnchor, made)
    })
  }

  /** Runs an effect as a region. What fails while measuring makes it none. */
  around<A, E, R>(self: Effect.Effect<A, E, R>, name: string, options: RegionOptions): Effect.Effect<A, E, R> {
    if (this.#isClosed) return self
    return Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        this.#begin(name, options),
        (begun) =>
          begun === undefined
            ? restore(self)
            : Effect.onExit(restore(self), () => this.#isClosed ? Effect.void : begun.device.end(begun))
      )
    )
  }

  #begin(name: string, { attributes = noAttributes, stream }: RegionOptions): Effect.Effect<Begun | undefined> {
    this.#begun++
    const begin = onStream(
      "CudaTiming.region",
      this.runtime,
      undefined,
      stream,
      (ref) => Effect.flatMap(this.device(ref.device), (device) => device.begin(name, ref, attributes))
    )
    return Effect.orElseSucceed(begin, () => undefined)
  }

  /** Takes no more regions. */
  readonly close: Effect.Effect<void> = Effect.sync(() => {
    this.#isClosed = true
  })

  /** Waits for the regions whose effect has ended, and resolves them. */
  readonly drain: Effect.Effect<void, CudaError> = Effect.suspend(() =>
    Effect.forEach(this.#devices, (device) => device.drain, { discard: true })
  )
}

const noAttributes: Attributes = {}
