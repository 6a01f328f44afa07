/**
 * The completion engine: tells waits when the GPU has reached a point, without holding a thread.
 *
 * Waits of one stream form a lane, in the order of the records they wait for, since a stream finishes in order: only the
 * first wait of each lane is asked about. In stages: lanes are asked once per turn of the event loop for a short while
 * after a wait began; then the GPU is asked to wake the loop when the first wait of a lane is done; and a slow timer asks
 * now and then all the same, since a GPU that has failed wakes nobody. A fault found on a device ends all of its waits.
 */
import type { DriverFunctions } from "../../cuda/functions.ts"
import { notReady, success } from "../../cuda/status.ts"
import { reasonFromStatus } from "../../CudaError.ts"
import type { Cancel, OnDone, WaitStage } from "../internal/Backend.ts"
import type { NativeDevice } from "./Device.ts"
import type { Lane, Point, SideStream, Watch } from "./Lane.ts"
import type { Waker } from "./Waker.ts"

/** How waits learn that the GPU is done. Times in milliseconds. */
export interface WaitPolicy {
  /** How long after its start a wait is asked about on every turn of the event loop. */
  readonly pollFor: number
  /** Whether the GPU wakes the loop after that. */
  readonly wakeUp: boolean
  /** How often a timer asks beside the wake-up. */
  readonly safetyInterval: number
  /** How often a timer asks without it. */
  readonly timerInterval: number
}

export class Completion {
  readonly #calls: DriverFunctions
  readonly #policy: WaitPolicy
  readonly #waker: Waker | undefined
  readonly #deviceOf: (ordinal: number) => NativeDevice
  readonly #onFailure: (call: string) => void
  readonly #unsubscribe: () => void
  /** The lanes with a pending wait. */
  readonly #lanes = new Set<Lane>()
  /** The lanes with side streams. */
  readonly #sided = new Set<Lane>()
  /** Devices whose events must not be asked about. */
  readonly #paused = new Set<number>()
  #pollUntil = 0
  #stage: WaitStage = "poll"
  #immediate: NodeJS.Immediate | undefined
  #timer: NodeJS.Timeout | undefined

  constructor(
    calls: DriverFunctions,
    policy: WaitPolicy,
    waker: Waker | undefined,
    deviceOf: (ordinal: number) => NativeDevice,
    onFailure: (call: string) => void
  ) {
    this.#calls = calls
    this.#policy = policy
    this.#waker = waker
    this.#deviceOf = deviceOf
    this.#onFailure = onFailure
    this.#unsubscribe = waker?.subscribe(() => this.#onWake()) ?? (() => {})
  }

  /** Begins a wait for the `order`-th record of the lane's stream. */
  watch(lane: Lane, order: number, point: Point, options: Partial<WaitPolicy>, onDone: OnDone): Cancel {
    const watch: Watch = {
      lane,
      order,
      point,
      onDone,
      wakeUp: options.wakeUp ?? this.#policy.wakeUp,
      previous: undefined,
      next: undefined,
      pending: true
    }
    point.uses++
    lane.insert(watch)
    this.#lanes.add(lane)
    const pollFor = options.pollFor ?? this.#policy.pollFor
    if (pollFor > 0) this.#pollUntil = Math.max(this.#pollUntil, performance.now() + pollFor)
    this.#schedule()
    return () => {
      if (watch.pending) this.#retire(watch)
    }
  }

  /** A stream of the runtime's own that can be made to wait for a record of the lane's; none when that fails. */
  sideFor(lane: Lane, order: number): SideStream | undefined {
    const free = lane.sides.find((side) => side.order <= order)
    if (free !== undefined) return free
    const stream = this.#deviceOf(lane.device).makeStream()
    if (stream === 0) return undefined
    const side = { stream, order }
    lane.sides.push(side)
    this.#sided.add(lane)
    return side
  }

  /** Gives back what the waits of a lane needed; with its stream. */
  forget(lane: Lane): void {
    for (const side of lane.sides.splice(0)) this.#calls.cuStreamDestroy_v2(side.stream)
    this.#sided.delete(lane)
  }

  /**
   * Leaves the events of a device alone until the returned function is called: what a stream capture needs, since asking
   * would end it.
   */
  pause(device: number): () => void {
    this.#paused.add(device)
    return () => {
      this.#paused.delete(device)
      this.#schedule()
    }
  }

  /** Ends the waits whose work is done. */
  settle(): void {
    this.#askAll("poll")
  }

  /** No wait comes after this. */
  close(): void {
    this.#unsubscribe()
    this.#rest()
    for (const lane of this.#sided) this.forget(lane)
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
    this.#pollUntil = 0
  }

  /** Polls while any wait is young; then has the GPU wake the loop, and a timer beside it that keeps the process alive. */
  #schedule(): void {
    if (this.#immediate !== undefined || this.#lanes.size === 0) return
    if (performance.now() < this.#pollUntil) {
      this.#immediate = setImmediate(this.#onTurn)
      return
    }
    let interval = this.#policy.safetyInterval
    for (const lane of this.#lanes) {
      if (!this.#arm(lane)) interval = this.#policy.timerInterval
    }
    this.#timer ??= setTimeout(this.#onTimer, interval)
  }

  readonly #onTurn = (): void => {
    this.#immediate = undefined
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#askAll("poll")
  }

  readonly #onTimer = (): void => {
    this.#timer = undefined
    this.#askAll("timer")
  }

  /** Fibers go on from a turn of the loop, as they do after polling: the wake-up itself is outside of any. */
  #onWake(): void {
    if (this.#lanes.size > 0 && this.#immediate === undefined) this.#immediate = setImmediate(this.#onWoken)
  }

  readonly #onWoken = (): void => {
    this.#immediate = undefined
    this.#askAll("wake")
  }

  #askAll(stage: WaitStage): void {
    this.#stage = stage
    for (const lane of this.#lanes) this.#ask(lane)
    this.#schedule()
  }

  #ask(lane: Lane): void {
    if (this.#paused.has(lane.device)) return
    while (lane.head !== undefined) {
      const first = lane.head
      const status = this.#calls.cuEventQuery(first.point.event)
      if (status === notReady) return
      if (status !== success) {
        this.#onFailure("cuEventQuery")
        this.#fail(first, status)
        continue
      }
      this.#finish(lane, first.order)
      if (lane.tail !== lane.head && this.#calls.cuEventQuery(lane.tail!.point.event) === success) {
        this.#finish(lane, lane.tail!.order)
      }
    }
  }

  /** Ends every wait of the lane for records up to this one. */
  #finish(lane: Lane, order: number): void {
    while (lane.head !== undefined && lane.head.order <= order) {
      const watch = lane.head
      this.#retire(watch)
      watch.onDone(success, this.#stage)
    }
  }

  /** A fault is the device's: all of its waits end with it. Any other status is this wait's alone. */
  #fail(watch: Watch, status: number): void {
    const { device } = watch.lane
    if (!reasonFromStatus(status).isSticky) {
      this.#retire(watch)
      return watch.onDone(status, this.#stage)
    }
    for (const lane of this.#lanes) {
      while (lane.device === device && lane.head !== undefined) {
        const next = lane.head
        this.#retire(next)
        next.onDone(status, this.#stage)
      }
    }
  }

  /** Has the GPU wake the loop when the lane's first wait is done. False when it will not. */
  #arm(lane: Lane): boolean {
    const first = lane.head
    if (this.#waker === undefined || first === undefined || !first.wakeUp || this.#paused.has(lane.device)) return false
    if (lane.armed === first.order) return true
    const side = this.sideFor(lane, first.order)
    if (side === undefined) return false
    if (this.#calls.cuStreamWaitEvent(side.stream, first.point.event, 0) !== success) return false
    side.order = first.order
    if (this.#calls.cuLaunchHostFunc(side.stream, this.#waker.send, this.#waker.handle) !== success) return false
    lane.armed = first.order
    return true
  }
}
