/**
 * The pending waits of one stream, and the records they wait for.
 */
import type { CUevent, CUstream } from "../../cuda/handles.ts"
import type { OnDone } from "../shared/waits.ts"

/** A pending wait. */
export interface Watch {
  readonly onDone: OnDone
}

/** A recorded event of the driver, and the waits for it. It is in its lane while there are any. */
export class Point {
  readonly lane: Lane
  /** The place of the record among those of the lane's stream. */
  readonly order: number
  /** What is asked about: the event, or a marker behind the record once the program has replaced it. */
  event: CUevent
  /** Runs when nothing waits any more. */
  release: () => void
  readonly watches = new Set<Watch>()
  /** When the first of them began, in milliseconds. */
  begun = 0
  /** Whether any of them may be ended by a wake-up. */
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

/** A stream of the runtime's own beside the lane's, which waits for records of it in order. */
export interface SideStream {
  readonly stream: CUstream
  /** The last record it was made to wait for. */
  order: number
}

/** The records of one stream that are waited for, first to finish first. */
export class Lane {
  readonly device: number
  /** True for the lane of a stream, which lasts as long; others are for one wait. */
  readonly isLasting: boolean
  head: Point | undefined
  tail: Point | undefined
  /** One, unless a wait for an older record came after it had been used for a later one. */
  readonly sides: Array<SideStream> = []
  /** Until when it is asked about on every turn of the event loop; 0 while nothing waits. */
  pollUntil = 0
  /** Whether its last wait took so long that polling for the next one is hardly worth the CPU. */
  isSlow = false
  /** The record whose end will wake the loop. */
  armed = -1
  constructor(device: number, isLasting: boolean) {
    this.device = device
    this.isLasting = isLasting
  }

  /** Almost always at the end, since waits mostly follow the order of the records. */
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
