/**
 * The completion engine: tells waits when the GPU has reached a point, without holding a thread.
 *
 * Waits of one stream form a lane, in the order of the records they wait for, since a stream finishes in order: only the
 * first wait of each lane is asked about. Lanes are asked once per turn of the event loop for a short while after a wait
 * began, then on a timer. A fault found on a device ends all of its waits.
 */
import type { DriverFunctions } from "../../cuda/functions.ts"
import { notReady, success } from "../../cuda/status.ts"
import type { Cancel, OnDone } from "../internal/Backend.ts"
import type { Lane, Point, Watch } from "./Lane.ts"

/** When waits ask the driver, in milliseconds. */
export interface WaitPolicy {
  /** How long after its start a wait is asked about on every turn of the event loop. */
  readonly pollFor: number
  /** How often after that. */
  readonly pollInterval: number
}

export class Completion {
  readonly #calls: DriverFunctions
  readonly #policy: WaitPolicy
  /** The lanes with a pending wait. */
  readonly #lanes = new Set<Lane>()
  #pollUntil = 0
  #immediate: NodeJS.Immediate | undefined
  #timer: NodeJS.Timeout | undefined

  constructor(calls: DriverFunctions, policy: WaitPolicy) {
    this.#calls = calls
    this.#policy = policy
  }

  /** Begins a wait for the `order`-th record of the lane's stream. */
  watch(lane: Lane, order: number, point: Point, onDone: OnDone): Cancel {
    const watch: Watch = { lane, order, point, onDone, previous: undefined, next: undefined, pending: true }
    point.uses++
    lane.insert(watch)
    this.#lanes.add(lane)
    this.#pollUntil = performance.now() + this.#policy.pollFor
    this.#schedule()
    return () => {
      if (watch.pending) this.#retire(watch)
    }
  }

  #retire(watch: Watch): void {
    const { lane, point } = watch
    watch.pending = false
    lane.remove(watch)
    if (lane.head === undefined) this.#lanes.delete(lane)
    point.uses--
    if (point.uses === 0) point.release()
    if (this.#lanes.size === 0) this.#rest()
  }

  #rest(): void {
    clearImmediate(this.#immediate)
    clearTimeout(this.#timer)
    this.#immediate = undefined
    this.#timer = undefined
  }

  #schedule(): void {
    if (this.#immediate !== undefined || this.#lanes.size === 0) return
    if (performance.now() < this.#pollUntil) {
      clearTimeout(this.#timer)
      this.#timer = undefined
      this.#immediate = setImmediate(this.#turn)
      return
    }
    this.#timer ??= setTimeout(this.#turn, this.#policy.pollInterval)
  }

  readonly #turn = (): void => {
    this.#immediate = undefined
    this.#timer = undefined
    for (const lane of this.#lanes) this.#ask(lane)
    this.#schedule()
  }

  #ask(lane: Lane): void {
    while (lane.head !== undefined) {
      const first = lane.head
      const status = this.#calls.cuEventQuery(first.point.event)
      if (status === notReady) return
      if (status === success) this.#finish(lane, first.order)
      else this.#fail(first, status)
    }
  }

  /** Ends every wait of the lane for records up to this one. */
  #finish(lane: Lane, order: number): void {
    while (lane.head !== undefined && lane.head.order <= order) {
      const watch = lane.head
      this.#retire(watch)
      watch.onDone(success)
    }
  }

  /** A fault is the device's: all of its waits end with it. */
  #fail(watch: Watch, status: number): void {
    const { device } = watch.lane
    for (const lane of this.#lanes) {
      while (lane.device === device && lane.head !== undefined) {
        const next = lane.head
        this.#retire(next)
        next.onDone(status)
      }
    }
  }
}
