/**
 * The pending waits of one stream, and the records they wait for.
 */
import type { CUevent, CUstream } from "../../cuda/handles.ts"
import type { OnDone } from "../shared/waits.ts"

/** A pending wait. */
export interface Watch {
  readonly onDone: OnDone
}

/** A recorded event and the waits for it. It stays in its lane while it has waits. */
export class Point {
  readonly lane: Lane
  /** The position of the record among the records of the lane's stream. */
  readonly order: number
  /** The event to query, or a marker after the record if the program has since recorded the event again. */
  event: CUevent
  /** Called when the last wait has ended or was cancelled. */
  release: () => void
  readonly watches = new Set<Watch>()
  /** When the first of the waits began, in milliseconds. */
  begun = 0
  /** Whether a wake-up may end any of the waits. */
  wakeUp = false
  previous: Point | undefined
  next: Point | undefined
  constructor(lane: Lane, order: number, event: CUevent, release: () => void) {
    this.lane = lane
    this.order = order
    this.event = event
    this.release = release
  }
}

/** An internal stream that waits for records of a lane, in order. */
export interface SideStream {
  readonly stream: CUstream
  /** The last record that it waits for. */
  order: number
}

/** The records of one stream that have waits, in order. */
export class Lane {
  readonly deviceIndex: number
  /** True if the lane keeps a side stream between waits. */
  readonly isLasting: boolean
  head: Point | undefined
  tail: Point | undefined
  /** More than one only if a wait for an older record began after the first one was used for a later record. */
  readonly sides: Array<SideStream> = []
  /** When polling ends; 0 if nothing waits. */
  pollUntil = 0
  /** True if the last wait took so long that the next one should not poll. */
  isSlow = false
  /** The record whose completion will wake the event loop. */
  armed = -1
  constructor(deviceIndex: number, isLasting: boolean) {
    this.deviceIndex = deviceIndex
    this.isLasting = isLasting
  }

  /** Inserts a point in order: almost always at the end, because waits mostly follow the order of the records. */
  insert(point: Point): void {
    let before = this.tail
    while (before !== undefined && before.order > point.order) before = before.previous
    const after = before === undefined ? this.head : before.next
    point.previous = before
    point.next = after
    if (before === undefined) this.head = point
    else before.next = point
    if (after === undefined) this.tail = point
    else after.previous = point
  }

  remove(point: Point): void {
    if (point.previous === undefined) this.head = point.next
    else point.previous.next = point.next
    if (point.next === undefined) this.tail = point.previous
    else point.next.previous = point.previous
    point.previous = point.next = undefined
  }
}
