/**
 * Vector clocks: what the work of each stream is ordered after. Plain data, without Effect.
 *
 * A timeline is a stream. Its operations have epochs, counted up from 1. Operations with nothing in between that others could be ordered
 * after have the same epoch, because everything comes after all of them or after none. What a timeline is ordered after is, for each other timeline, the last
 * epoch that comes before its next operation (`known`). What the host has waited for is the field `done` of each timeline: everything
 * enqueued from then on comes after it, so it is in no clock, and clocks and memory can forget it.
 */

/**
 * By index of the timeline, the last epoch that comes before. In groups of 16, so that clocks can share what is the same in both. Never
 * mutated, because points keep it.
 */
export type Known = ReadonlyArray<Epochs>

type Epochs = ReadonlyArray<number>

export const nothingKnown: Known = []

const noEpochs: Epochs = Array.from({ length: 16 }, () => 0)

/** The last epoch of a timeline that comes before. */
export const epochIn = (known: Known, index: number): number => {
  const epochs = known[index >>> 4]
  return epochs === undefined ? 0 : epochs[index & 15]!
}

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
  /** Whether others can be ordered after the current epoch, so that the next operation begins another one. */
  isObserved = true
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
    this.isObserved = true
    return { timeline: this, epoch: this.epoch, known: this.known }
  }

  /** Makes what comes next ordered after more. */
  learn(known: Known): void {
    if (known === this.known) return
    this.known = known
    this.epoch++
    this.isObserved = false
  }

  /** Whether a point has the epoch of the next operation. */
  isNow({ epoch, timeline }: Pick<Point, "timeline" | "epoch">, known: Known): boolean {
    return timeline === this && epoch === this.epoch && !this.isObserved && known === this.known
  }

  /** The epoch of the next operation, which is enqueued. */
  next(known: Known): number {
    if (this.isObserved || known !== this.known) {
      this.known = known
      this.epoch++
      this.isObserved = false
    }
    return this.epoch
  }
}

/** Whether a point comes before the next operation of a timeline that knows this much. */
export const isBefore = (point: Pick<Point, "timeline" | "epoch">, timeline: Timeline, known: Known): boolean =>
  point.timeline === timeline || point.timeline.done >= point.epoch ||
  epochIn(known, point.timeline.index) >= point.epoch

/** What a timeline knows after it waits for a point. */
export const joined = (timeline: Timeline, known: Known, point: Point): Known => {
  if (isBefore(point, timeline, known)) return known
  const { index } = point.timeline
  if (point.epoch === point.timeline.epoch) point.timeline.isObserved = true
  const length = Math.max(known.length, point.known.length, (index >>> 4) + 1)
  const next: Array<Epochs> = []
  for (let at = 0; at < length; at++) next.push(laterOf(known[at] ?? noEpochs, point.known[at] ?? noEpochs))
  const epochs = next[index >>> 4]!.slice()
  epochs[index & 15] = point.epoch
  next[index >>> 4] = epochs
  return next
}

/** The later of each two epochs: one of the two groups, if all of its epochs are later. */
const laterOf = (one: Epochs, other: Epochs): Epochs => {
  if (one === other) return one
  let isOne = true
  let isOther = true
  for (let at = 0; at < 16; at++) {
    if (one[at]! < other[at]!) isOne = false
    else if (one[at]! > other[at]!) isOther = false
  }
  return isOne ? one : isOther ? other : one.map((epoch, at) => Math.max(epoch, other[at]!))
}

/** The timelines of a runtime. */
export class Timelines {
  readonly #byIndex: Array<Timeline> = []
  readonly #free: Array<number> = []
  readonly #live = new Set<Timeline>()
  readonly #legacy: Array<Timeline | undefined> = []
  /** Called when the host has learned that work is done. */
  onFinish: (() => void) | undefined

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
    if (epoch === timeline.epoch) timeline.isObserved = true
    for (let group = 0; group < known.length; group++) this.#finishGroup(known[group]!, 16 * group)
    this.onFinish?.()
  }

  #finishGroup(epochs: Epochs, first: number): void {
    if (epochs === noEpochs) return
    for (let at = 0; at < 16; at++) {
      const epoch = epochs[at]!
      if (epoch === 0) continue
      const other = this.#byIndex[first + at]!
      if (epoch > other.done) other.done = epoch
    }
  }
}
