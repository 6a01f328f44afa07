/**
 * The pending waits of one stream, and the records they wait for.
 */
import type { OnDone } from "../internal/Backend.ts"

/** A recorded event of the driver that waits ask about, shared by all waits for the same record. */
export interface Point {
  event: number
  uses: number
  /** Runs when no wait asks any more. */
  release: () => void
}

/** A pending wait. */
export interface Watch {
  readonly lane: Lane
  /** The place of its record among those of the lane's stream. */
  readonly order: number
  readonly point: Point
  readonly onDone: OnDone
  /** Whether the GPU may be asked to wake the loop for it. */
  readonly wakeUp: boolean
  previous: Watch | undefined
  next: Watch | undefined
  pending: boolean
}

/** A stream of the runtime's own beside the lane's, which waits for records of it in order. */
export interface SideStream {
  readonly stream: number
  /** The last record it was made to wait for. */
  order: number
}

/** The waits of one stream, first to finish first. */
export class Lane {
  readonly device: number
  head: Watch | undefined
  tail: Watch | undefined
  /** One, unless a wait for an older record came after it had been used for a later one. */
  readonly sides: Array<SideStream> = []
  /** The record whose end will wake the loop. */
  armed = -1
  constructor(device: number) {
    this.device = device
  }

  /** Almost always at the end, since waits mostly follow the order of the records. */
  insert(watch: Watch): void {
    let before = this.tail
    while (before !== undefined && before.order > watch.order) before = before.previous
    const after = before === undefined ? this.head : before.next
    watch.previous = before
    watch.next = after
    if (before === undefined) this.head = watch
    else before.next = watch
    if (after === undefined) this.tail = watch
    else after.previous = watch
  }

  remove(watch: Watch): void {
    if (watch.previous === undefined) this.head = watch.next
    else watch.previous.next = watch.next
    if (watch.next === undefined) this.tail = watch.previous
    else watch.next.previous = watch.previous
    watch.previous = watch.next = undefined
  }
}
