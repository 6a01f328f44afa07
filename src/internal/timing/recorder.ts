/**
 * Measures regions for `CudaTiming`: events around each region, kept until the GPU has passed them, and an anchor per device from which
 * their times count.
 */
import type * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, EventRef, GraphExecRef, GraphValue, StreamRef } from "../../layers/CudaRuntime.ts"
import { released } from "../handles.ts"
import { onStream } from "../place.ts"
import type { AnyStream } from "../place.ts"
import type { Attributes } from "./tracks.ts"

interface RegionOptions {
  readonly stream?: AnyStream | undefined
  readonly attributes?: Attributes | undefined
}

/** Makes an event with timing that lives as long as the scope. */
export const makeTimed = (
  runtime: CudaRuntimeService,
  deviceIndex: number
): Effect.Effect<EventRef, CudaError, Scope.Scope> =>
  Effect.acquireRelease(runtime.eventCreate(deviceIndex, 0), (event) => released(runtime.eventDestroy(event)))

/** When an event happened by the host's monotonic clock, in nanoseconds, and the largest error of that. */
export interface Aligned {
  readonly event: EventRef
  readonly hostTime: bigint
  readonly uncertainty: bigint
}

/** In nanoseconds. An alignment this good is not repeated. */
const goodUncertainty = 10_000n
const mostRounds = 6
/** How often to query before suspending the fiber. An idle stream passes an event within microseconds. */
const mostQueries = 50

/**
 * Records an event on a separate stream and takes the host time before and after: the event happened in between. Returns the event of
 * the best of a few rounds.
 */
export const align = (
  runtime: CudaRuntimeService,
  deviceIndex: number,
  clock: Clock.Clock
): Effect.Effect<Aligned, CudaError, Scope.Scope> =>
  Effect.acquireUseRelease(
    runtime.streamCreate({ deviceIndex, priority: "high", nonBlocking: true }),
    Effect.fnUntraced(function*(stream) {
      let best = yield* alignOnce(runtime, yield* makeTimed(runtime, deviceIndex), stream, clock)
      if (best.uncertainty <= goodUncertainty) return best
      let spare = yield* makeTimed(runtime, deviceIndex)
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

/** A measured region. Times are in milliseconds; the start counts from the beginning of the timeline. */
export interface Measured {
  readonly name: string
  readonly stream: StreamRef
  readonly attributes: Attributes
  readonly start: number
  readonly duration: number
}

/** The two events of a region. */
type Pair = readonly [start: EventRef, end: EventRef]

/** A region that has begun. Once it has ended, it links to the next one on its stream. */
interface Begun {
  readonly device: DeviceRecorder
  readonly name: string
  readonly stream: StreamRef
  readonly attributes: Attributes
  readonly start: EventRef
  readonly end: EventRef
  /** True for a region of a graph. The GPU may pass those of one launch in any order. */
  readonly isInGraph: boolean
  /** Milliseconds since the timeline began, for a region that runs for long. */
  startAt: number | undefined
  next: Begun | undefined
}

/** The regions of a stream that the GPU may not have passed yet, in the order in which it passes them. Never empty. */
interface Lane {
  first: Begun
  last: Begun
}

/** An event whose time since the timeline began is known, in milliseconds. */
interface Anchor {
  readonly event: EventRef
  readonly at: number
}

/** In milliseconds. An elapsed time has 24 bits, so the closer the anchor, the finer the time. */
const anchorReach = 1000
/** The most regions of a stream to resolve when events are needed. */
const mostReclaimed = 4

/** The regions of one device. */
class DeviceRecorder {
  readonly index: number
  readonly #recorder: Recorder
  readonly #anchored = Deferred.makeUnsafe<Aligned, CudaError>()
  readonly #free: Array<EventRef> = []
  /** Regions whose start is recorded and whose effect is running. */
  readonly #open = new Set<Begun>()
  readonly #lanes = new Map<number, Lane>()
  /** Held while regions are resolved, since that takes several calls with the same anchor. */
  readonly #resolving = Semaphore.makeUnsafe(1)
  #anchor: Anchor | undefined
  /** Nanoseconds, once there is an anchor. */
  uncertainty: bigint | undefined

  constructor(recorder: Recorder, index: number) {
    this.#recorder = recorder
    this.index = index
  }

  /** Starts finding the anchor. */
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
    return Effect.flatMap(this.#take(stream), (pair) => {
      const begun = this.#begun({ name, attributes }, stream, pair, false)
      const record = Effect.map(this.#recorder.runtime.eventRecord(begun.start, stream), () => {
        this.#open.add(begun)
        return begun
      })
      return Effect.onError(record, () => this.#giveBack(begun))
    })
  }

  #begun(
    { attributes, name }: Pick<Begun, "attributes" | "name">,
    stream: StreamRef,
    [start, end]: Pair,
    isInGraph: boolean
  ): Begun {
    return { device: this, name, stream, attributes, start, end, isInGraph, startAt: undefined, next: undefined }
  }

  /** Launches a graph with events for its regions, and keeps them until the GPU has passed them. */
  launch(
    exec: GraphExecRef,
    values: ReadonlyArray<GraphValue>,
    stream: StreamRef
  ): Effect.Effect<void, CudaError> {
    const { runtime } = this.#recorder
    const { regions } = exec.graph
    return Effect.matchEffect(this.#takeAll(stream, regions.length), {
      onFailure: () => runtime.graphLaunch(exec, values, stream),
      onSuccess: (pairs) => {
        const begun = regions.map((region, index) => this.#begun(region, stream, pairs[index]!, true))
        const giveBack = () => Effect.forEach(begun, (region) => this.#giveBack(region), { discard: true })
        return runtime.graphMeasure(exec, values, pairs, stream).pipe(
          Effect.onError(giveBack),
          Effect.flatMap((isMeasured) =>
            isMeasured ? Effect.forEach(begun, (region) => this.#keep(region), { discard: true }) : giveBack()
          )
        )
      }
    })
  }

  /** Ends a region and keeps it until the GPU has passed it. */
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

  /** Takes events for some regions of a stream, or none if that fails. */
  #takeAll(stream: StreamRef, count: number): Effect.Effect<ReadonlyArray<Pair>, CudaError> {
    return Effect.suspend(() => {
      const taken: Array<Pair> = []
      const one = Effect.map(this.#take(stream), (pair) => void taken.push(pair))
      const all = Effect.forEach(Array.from({ length: count }), () => one, { discard: true })
      return Effect.onError(Effect.as(all, taken), () => Effect.sync(() => this.#free.push(...taken.flat())))
    })
  }

  /** Takes two events for a region of a stream: those of finished regions, or new ones. */
  #take(stream: StreamRef): Effect.Effect<Pair, CudaError> {
    return Effect.suspend(() =>
      this.#free.length >= 2 ? this.#takeOrMake : Effect.andThen(this.#reclaim(stream.id), this.#takeOrMake)
    )
  }

  readonly #takeOrMake: Effect.Effect<Pair, CudaError> = Effect.suspend(() => {
    if (this.#free.length >= 2) return Effect.succeed([this.#free.pop()!, this.#free.pop()!])
    const { runtime, scope } = this.#recorder
    return Effect.flatMap(Scope.provide(makeTimed(runtime, this.index), scope), (event) => {
      this.#free.push(event)
      return this.#takeOrMake
    })
  })

  /**
   * Resolves a few regions: of this stream, so that a stream that keeps up holds few events, and of the next stream in turn, so that
   * streams without further regions are not forgotten.
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
      // If the query fails, reading the times fails in the same way.
      const isPassed = yield* Effect.orElseSucceed(this.#recorder.runtime.eventQuery(begun.end), () => true)
      if (!isPassed) break
      if (begun.next === undefined) this.#lanes.delete(id)
      else lane.first = begun.next
      yield* this.#resolve(begun)
      if (begun.next === undefined) return
    }
    // Moves the stream to the end of the queue.
    this.#lanes.delete(id)
    this.#lanes.set(id, lane)
  })

  /** Reads the times of a region that the GPU has passed, and returns its events. */
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

  /** Reads the start of a running region while the anchor is still near. */
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

  /** Waits for the remaining regions and resolves them. Regions of a device that could not be aligned have no times. */
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
    for (let begun: Begun | undefined = first; begun !== undefined; begun = begun.next) {
      if (begun.isInGraph) yield* this.#recorder.runtime.eventSynchronize(begun.end)
      yield* this.#resolve(begun)
    }
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

  /** The aligned devices. */
  get devices(): ReadonlyArray<{ readonly index: number; readonly uncertainty: bigint }> {
    return this.#devices.flatMap(({ index, uncertainty }) => uncertainty === undefined ? [] : [{ index, uncertainty }])
  }

  /** How many regions have begun but are not in `regions`. */
  get dropped(): number {
    return this.#begun - this.regions.length
  }

  /** The recorder of a device. The first request starts finding its anchor. */
  device(index: number): Effect.Effect<DeviceRecorder> {
    return Effect.suspend(() => {
      const known = this.#devices.find((device) => device.index === index)
      if (known !== undefined) return Effect.succeed(known)
      const made = new DeviceRecorder(this, index)
      this.#devices.push(made)
      return Effect.as(made.forkAnchor, made)
    })
  }

  /** Runs an effect as a region. If measuring fails, the region is dropped. */
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
      (ref) => Effect.flatMap(this.device(ref.deviceIndex), (device) => device.begin(name, ref, attributes))
    )
    return Effect.orElseSucceed(begin, () => undefined)
  }

  /** Launches a graph with regions, and measures them. Those that cannot be measured are dropped. */
  launch(
    runtime: CudaRuntimeService,
    exec: GraphExecRef,
    values: ReadonlyArray<GraphValue>,
    stream: StreamRef
  ): Effect.Effect<void, CudaError> {
    const { regions, unmeasured } = exec.graph
    if (this.#isClosed) return runtime.graphLaunch(exec, values, stream)
    const count = regions.length + unmeasured
    this.#begun += count
    const canMeasure = regions.length > 0 && runtime.identity === this.runtime.identity
    const launched = canMeasure
      ? Effect.flatMap(this.device(stream.deviceIndex), (device) => device.launch(exec, values, stream))
      : runtime.graphLaunch(exec, values, stream)
    return Effect.uninterruptible(Effect.tapError(launched, () =>
      Effect.sync(() => {
        this.#begun -= count
      })))
  }

  /** Stops taking regions. */
  readonly close: Effect.Effect<void> = Effect.sync(() => {
    this.#isClosed = true
  })

  /** Waits for the regions whose effect has ended, and resolves them. */
  readonly drain: Effect.Effect<void, CudaError> = Effect.suspend(() =>
    Effect.forEach(this.#devices, (device) => device.drain, { discard: true })
  )
}

const noAttributes: Attributes = {}
