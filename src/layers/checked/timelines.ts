/**
 * Vector clocks: what the work of each stream is ordered after. Plain data, without Effect.
 *
 * A timeline is a stream. Its operations have epochs, counted up from 1. What it is ordered after is, for each other timeline, the last
 * epoch that comes before its next operation (`known`). What the host has waited for is the field `done` of each timeline: everything
 * enqueued from then on comes after it, so it is in no clock, and clocks and memory can forget it.
 */

/** By index of the timeline, the last epoch that comes before. Never mutated, because points keep it. */
export type Known = ReadonlyArray<number>

export const nothingKnown: Known = []

/** A point in a timeline: after the operation with this epoch, and so after everything that is known there. */
export interface Point {
  readonly timeline: Timeline
  readonly epoch: number
  readonly known: Known
}

/** What a timeline is made of. */
export interface TimelineFields {
  readonly name: string
  readonly deviceIndex: number
  /** Whether it is ordered with the legacy default stream. */
  readonly isBlocking: boolean
  readonly isLegacy: boolean
  /** Whether other code made the stream. */
  readonly isForeign: boolean
}

export class Timeline implements TimelineFields {
  readonly index: number
  readonly name: string
  readonly deviceIndex: number
  readonly isBlocking: boolean
  readonly isLegacy: boolean
  readonly isForeign: boolean
  /** The epoch of the last operation. It also counts up whenever more is known, so that an epoch stands for what is known at it. */
  epoch: number
  /** The last epoch that the host has waited for. */
  done: number
  known: Known = nothingKnown
  /** The event that was recorded last, and the epoch that the record follows. */
  recordedEvent: object | undefined
  recordedEpoch = 0

  constructor(index: number, epoch: number, fields: TimelineFields) {
    this.index = index
    this.epoch = epoch
    this.done = epoch
    this.name = fields.name
    this.deviceIndex = fields.deviceIndex
    this.isBlocking = fields.isBlocking
    this.isLegacy = fields.isLegacy
    this.isForeign = fields.isForeign
  }

  /** The point after everything enqueued so far. */
  get point(): Point {
    return { timeline: this, epoch: this.epoch, known: this.known }
  }

  /** Makes what comes next ordered after more. */
  learn(known: Known): void {
    if (known === this.known) return
    this.known = known
    this.epoch++
  }
}

/** Whether a point comes before the next operation of a timeline that knows this much. */
export const isBefore = (point: Pick<Point, "timeline" | "epoch">, timeline: Timeline, known: Known): boolean =>
  point.timeline === timeline || point.timeline.done >= point.epoch ||
  (known[point.timeline.index] ?? 0) >= point.epoch

/** What a timeline knows after it waits for a point. */
export const joined = (timeline: Timeline, known: Known, point: Point): Known => {
  if (isBefore(point, timeline, known)) return known
  const { index } = point.timeline
  const length = Math.max(known.length, point.known.length, index + 1)
  const next: Array<number> = []
  for (let at = 0; at < length; at++) next.push(Math.max(known[at] ?? 0, point.known[at] ?? 0))
  next[index] = point.epoch
  return next
}

/** The timelines of a runtime. */
export class Timelines {
  readonly #byIndex: Array<Timeline> = []
  readonly #free: Array<number> = []
  readonly #live = new Set<Timeline>()
  readonly #legacy: Array<Timeline | undefined> = []

  get live(): ReadonlySet<Timeline> {
    return this.#live
  }

  /** Makes a timeline. The index of one that has ended is used again, with later epochs, so that old clocks say nothing about it. */
  make(fields: TimelineFields): Timeline {
    const free = this.#free.pop()
    const index = free ?? this.#byIndex.length
    const timeline = new Timeline(index, free === undefined ? 0 : this.#byIndex[index]!.epoch, fields)
    this.#byIndex[index] = timeline
    this.#live.add(timeline)
    if (fields.isLegacy) this.#legacy[fields.deviceIndex] = timeline
    return timeline
  }

  /** Ends a timeline whose work is done. */
  end(timeline: Timeline): void {
    if (!this.#live.delete(timeline)) return
    this.finish(timeline.point)
    this.#free.push(timeline.index)
  }

  /** What comes before the next operation of a timeline, with the order of the legacy default stream. */
  knownBy(timeline: Timeline): Known {
    if (!timeline.isBlocking) return timeline.known
    if (timeline.isLegacy) return this.#knownByLegacy(timeline)
    const legacy = this.#legacy[timeline.deviceIndex]
    return legacy === undefined ? timeline.known : joined(timeline, timeline.known, legacy.point)
  }

  #knownByLegacy(timeline: Timeline): Known {
    let { known } = timeline
    for (const other of this.#live) {
      if (other.isBlocking && other.deviceIndex === timeline.deviceIndex) known = joined(timeline, known, other.point)
    }
    return known
  }

  /** The point that a record on a timeline, or a wait of the host for it, stands for. */
  pointOf(timeline: Timeline): Point {
    timeline.learn(this.knownBy(timeline))
    return timeline.point
  }

  /** Makes a timeline wait for a point. */
  wait(timeline: Timeline, point: Point): void {
    timeline.learn(joined(timeline, this.knownBy(timeline), point))
  }

  /** Makes a timeline wait for everything enqueued so far: for what cannot be known. */
  waitForAll(timeline: Timeline): void {
    for (const other of this.#live) this.wait(timeline, other.point)
  }

  /** Notes that the host has waited for a point. Everything enqueued from now on comes after it. */
  finish({ epoch, known, timeline }: Point): void {
    if (timeline.done >= epoch) return
    timeline.done = epoch
    for (let index = 0; index < known.length; index++) {
      const other = this.#byIndex[index]!
      if (known[index]! > other.done) other.done = known[index]!
    }
  }
}
