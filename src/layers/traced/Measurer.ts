/**
 * Measures work for `TracedRuntime`: an event before and one after it on its stream, read once the GPU has passed them. Nothing waits for
 * that: a fiber looks from time to time, as long as there is work.
 */
import type * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, EventRef, LiveResources, StreamRef } from "../CudaRuntime.ts"
import { Anchors } from "./Anchors.ts"
import type { Anchor } from "./Anchors.ts"

/** Work whose first event is recorded. */
export interface Started {
  readonly stream: StreamRef
  readonly start: EventRef
  readonly end: EventRef
}

/** When work ran on the GPU, in nanoseconds of the host's Unix time. */
export interface Ran {
  readonly start: bigint
  readonly end: bigint
}

/** Called once, when it is known when the work ran, or that it failed. */
export type OnRan = (ran: Exit.Exit<Ran, CudaError>) => void

interface Pending extends Started {
  readonly onRan: OnRan
}

/** The events of a device that are not in use, and the work on its streams that the GPU may not have passed. */
class DeviceWork {
  readonly anchors: Anchors
  readonly free: Array<EventRef> = []
  /** By the id of the stream, in the order in which the GPU passes it. Never empty. */
  readonly lanes = new Map<number, Array<Pending>>()

  constructor(runtime: CudaRuntimeService, deviceIndex: number) {
    this.anchors = new Anchors(runtime, deviceIndex)
  }
}

export interface MeasurerOptions {
  /** How often to look. */
  readonly interval: Duration.Input
  /** The most operations whose times are not known yet. */
  readonly mostPending: number
}

export class Measurer {
  readonly #runtime: CudaRuntimeService
  readonly #clock: Clock.Clock
  readonly #scope: Scope.Scope
  readonly #options: MeasurerOptions
  readonly #devices = new Map<number, DeviceWork>()
  /** Every event in existence, for the release. */
  readonly #events = new Set<EventRef>()
  #pending = 0
  #isLooking = false
  #isClosed = false

  constructor(runtime: CudaRuntimeService, clock: Clock.Clock, scope: Scope.Scope, options: MeasurerOptions) {
    this.#runtime = runtime
    this.#clock = clock
    this.#scope = scope
    this.#options = options
  }

  /** The streams and events that this holds, and its waits. */
  get held(): Pick<LiveResources, "streams" | "events" | "waits"> {
    let [streams, events, waits] = [0, this.#events.size, 0]
    for (const { anchors } of this.#devices.values()) {
      if (anchors.stream !== undefined) streams++
      if (anchors.isWaiting) waits++
      events += anchors.events.length
    }
    return { streams, events, waits }
  }

  /** Records the first event on a stream; undefined if too much is pending. */
  begin(stream: StreamRef): Effect.Effect<Started | undefined, CudaError> {
    if (this.#isClosed || this.#pending >= this.#options.mostPending) return Effect.undefined
    this.#pending++
    const work = this.#device(stream.deviceIndex)
    const begun = Effect.flatMap(
      this.#take(work),
      (start) =>
        Effect.flatMap(Effect.onError(this.#take(work), () => this.#giveBack(work, start)), (end) => {
          const started = Effect.as(this.#runtime.eventRecord(start, stream), { stream, start, end })
          return Effect.onError(started, () => this.#giveBack(work, start, end))
        })
    )
    return Effect.onError(begun, () =>
      Effect.sync(() => {
        this.#pending--
      }))
  }

  /** Forgets work that was not enqueued. */
  abandon({ end, start, stream }: Started): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.#pending--
      return this.#giveBack(this.#device(stream.deviceIndex), start, end)
    })
  }

  /** Records the second event. If that fails, the work has no times. */
  end(started: Started, onRan: OnRan): Effect.Effect<void> {
    return Effect.matchEffect(this.#runtime.eventRecord(started.end, started.stream), {
      onFailure: (error) => {
        onRan(Exit.fail(error))
        return this.abandon(started)
      },
      onSuccess: () => this.#keep({ ...started, onRan })
    })
  }

  #keep(pending: Pending): Effect.Effect<void> {
    const { lanes } = this.#device(pending.stream.deviceIndex)
    const lane = lanes.get(pending.stream.id)
    if (lane === undefined) lanes.set(pending.stream.id, [pending])
    else lane.push(pending)
    if (this.#isLooking || this.#isClosed) return Effect.void
    this.#isLooking = true
    return Effect.asVoid(Effect.forkIn(this.#look, this.#scope))
  }

  #device(index: number): DeviceWork {
    const known = this.#devices.get(index)
    if (known !== undefined) return known
    const made = new DeviceWork(this.#runtime, index)
    this.#devices.set(index, made)
    return made
  }

  #take({ anchors, free }: DeviceWork): Effect.Effect<EventRef, CudaError> {
    const event = free.pop()
    if (event !== undefined) return Effect.succeed(event)
    return Effect.map(this.#runtime.eventCreate(anchors.deviceIndex, 0), (made) => {
      this.#events.add(made)
      return made
    })
  }

  #giveBack({ free }: DeviceWork, ...events: ReadonlyArray<EventRef>): Effect.Effect<void> {
    return Effect.sync(() => {
      for (const event of events) free.push(event)
    })
  }

  readonly #look: Effect.Effect<void> = Effect.suspend(() => {
    const round = Effect.andThen(Effect.sleep(this.#options.interval), Effect.uninterruptible(this.#readAll))
    return Effect.whileLoop({
      while: () => this.#pending > 0 || (this.#isLooking = false),
      body: () => round,
      step: () => {}
    })
  })

  /** Reads the times of all work that the GPU has passed. */
  readonly #readAll: Effect.Effect<void> = Effect.suspend(() =>
    Effect.forEach(this.#devices.values(), (device) => this.#readDevice(device), { discard: true })
  )

  readonly #readDevice = Effect.fnUntraced(function*(this: Measurer, device: DeviceWork) {
    const passed: Array<Pending> = []
    for (const [id, lane] of device.lanes) {
      let count = 0
      while (count < lane.length && (yield* this.#isPassed(lane[count]!))) count++
      for (const pending of lane.splice(0, count)) passed.push(pending)
      if (lane.length === 0) device.lanes.delete(id)
    }
    if (passed.length === 0) return
    // Taken after the work, so that all of it is before the anchor, and soon after it, so that clocks have not drifted apart.
    const anchor = yield* Effect.exit(device.anchors.take(this.#clock))
    for (const pending of passed) {
      const ran = Exit.isSuccess(anchor)
        ? yield* Effect.exit(this.#times(pending, anchor.value))
        : Exit.failCause(anchor.cause)
      pending.onRan(ran)
      device.free.push(pending.start, pending.end)
      this.#pending--
    }
  })

  /** If the query fails, reading the times fails in the same way. */
  #isPassed({ end }: Pending): Effect.Effect<boolean> {
    return Effect.orElseSucceed(this.#runtime.eventQuery(end), () => true)
  }

  #times({ end, start }: Pending, { at, event }: Anchor): Effect.Effect<Ran, CudaError> {
    return Effect.flatMap(
      this.#runtime.eventElapsedTime(start, event),
      (before) =>
        Effect.map(this.#runtime.eventElapsedTime(start, end), (length) => {
          const from = at - nanos(before)
          return { start: from, end: from + nanos(length) }
        })
    )
  }

  /** Waits for the remaining work, and releases everything. Must run uninterruptibly. */
  readonly close: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    this.#isClosed = true
    for (const { lanes } of this.#devices.values()) {
      for (const [id, lane] of lanes) {
        const waited = yield* Effect.exit(this.#runtime.eventSynchronize(lane.at(-1)!.end))
        if (Exit.isSuccess(waited)) continue
        for (const { onRan } of lane) onRan(Exit.failCause(waited.cause))
        lanes.delete(id)
      }
    }
    yield* this.#readAll
    for (const { anchors } of this.#devices.values()) {
      for (const event of anchors.events) yield* Effect.ignore(this.#runtime.eventDestroy(event))
      if (anchors.stream !== undefined) yield* Effect.ignore(this.#runtime.streamDestroy(anchors.stream))
    }
    for (const event of this.#events) yield* Effect.ignore(this.#runtime.eventDestroy(event))
    this.#devices.clear()
    this.#events.clear()
  })
}

const nanos = (millis: number): bigint => BigInt(Math.round(millis * 1e6))
