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
import type { Cancel, OnDone, WaitStage } from "../shared/waits.ts"
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

/** Waits that end in one turn of the event loop at most, so that many at once do not hold it: about a millisecond of work. */
const endsPerTurn = 128

/** The side streams a lane has for wake-ups at most; the rest is left to the timer. */
const mostSides = 4

/** A wait of this many times the polling time makes its stream a slow one, whose next wait is not polled for. */
const slowAfter = 20

export class Completion {
  readonly #calls: DriverFunctions
  readonly #policy: WaitPolicy
  readonly #waker: Waker | undefined
  readonly #deviceOf: (ordinal: number) => NativeDevice
  readonly #onFailure: (call: string, status: number) => void
  readonly #unsubscribe: () => void
  /** The lanes with a pending wait. */
  readonly #lanes = new Set<Lane>()
  /** The lanes with side streams. */
  readonly #sided = new Set<Lane>()
  /** How often the events of a device must not be asked about. */
  readonly #paused = new Map<number, number>()
  /** How many more waits may end in this turn. */
  #endsLeft = 0
  #sawFault = false
  #stage: WaitStage = "poll"
  #immediate: NodeJS.Immediate | undefined
  #timer: NodeJS.Timeout | undefined
  #interval = 0

  constructor(
    calls: DriverFunctions,
    policy: WaitPolicy,
    waker: Waker | undefined,
    deviceOf: (ordinal: number) => NativeDevice,
    onFailure: (call: string, status: number) => void
  ) {
    this.#calls = calls
    this.#policy = policy
    this.#waker = waker
    this.#deviceOf = deviceOf
    this.#onFailure = onFailure
    this.#unsubscribe = waker?.subscribe(this.#onWake) ?? (() => {})
  }

  /** Begins a wait for a point. */
  watch(point: Point, options: Partial<WaitPolicy>, onDone: OnDone): Cancel {
    const watch: Watch = { onDone }
    const { lane } = point
    const now = performance.now()
    if (point.watches.size === 0) {
      point.begun = now
      lane.insert(point)
    }
    point.watches.add(watch)
    point.wakeUp ||= options.wakeUp ?? this.#policy.wakeUp
    this.#lanes.add(lane)
    const pollFor = options.pollFor ?? (lane.isSlow ? 0 : this.#policy.pollFor)
    if (pollFor > 0) lane.pollUntil = Math.max(lane.pollUntil, now + pollFor)
    this.#expect(lane, now)
    return () => {
      if (point.watches.delete(watch)) this.#leave(point)
    }
  }

  /** A stream of the runtime's own that can be made to wait for a record of the lane's; none when that fails. */
  sideFor(lane: Lane, order: number, most = Number.POSITIVE_INFINITY): SideStream | undefined {
    const free = lane.sides.find((side) => side.order <= order)
    if (free !== undefined) return free
    if (lane.sides.length >= most) return undefined
    const stream = this.#deviceOf(lane.device).makeStream()
    if (stream === undefined) return undefined
    const side = { stream, order }
    lane.sides.push(side)
    this.#sided.add(lane)
    return side
  }

  /** Gives back the side streams of a lane, but for this many. */
  forget(lane: Lane, keep = 0): void {
    if (lane.sides.length <= keep) return
    for (const side of lane.sides.splice(keep)) this.#calls.cuStreamDestroy_v2(side.stream)
    if (keep === 0) this.#sided.delete(lane)
  }

  /**
   * Leaves the events of a device alone until the returned function is called: what a stream capture needs, since asking
   * would end it.
   */
  pause(device: number): () => void {
    let isOver = false
    this.#paused.set(device, this.#pauses(device) + 1)
    return () => {
      if (isOver) return
      isOver = true
      this.#paused.set(device, this.#pauses(device) - 1)
      if (this.#pauses(device) === 0) this.#onWake()
    }
  }

  /** Ends the waits whose work is done. */
  settle(): void {
    this.#ask("wake", Number.POSITIVE_INFINITY)
  }

  #pauses(device: number): number {
    return this.#paused.get(device) ?? 0
  }

  /** No wait comes after this. */
  close(): void {
    this.#unsubscribe()
    this.#rest()
    for (const lane of this.#sided) this.forget(lane)
  }

  /** After a wait has ended. */
  #leave(point: Point): void {
    if (point.watches.size > 0) return
    point.lane.remove(point)
    if (point.lane.head === undefined) {
      point.lane.pollUntil = 0
      this.#lanes.delete(point.lane)
      this.forget(point.lane, point.lane.isLasting ? 1 : 0)
    }
    point.release()
    if (this.#lanes.size === 0) this.#rest()
  }

  #rest(): void {
    clearImmediate(this.#immediate)
    clearTimeout(this.#timer)
    this.#immediate = undefined
    this.#timer = undefined
  }

  /** Sees to it that the end of a lane's first wait is found: by polling while a wait is young, else by a wake-up or a timer. */
  #expect(lane: Lane, now: number): void {
    if (lane.pollUntil > now) {
      this.#immediate ??= setImmediate(this.#onTurn)
      return
    }
    lane.pollUntil = 0
    const interval = this.#arm(lane) ? this.#policy.safetyInterval : this.#policy.timerInterval
    if (this.#timer !== undefined && this.#interval <= interval) return
    clearTimeout(this.#timer)
    this.#interval = interval
    this.#timer = setTimeout(this.#onTimer, interval)
  }

  readonly #onTurn = (): void => {
    this.#immediate = undefined
    this.#ask("poll", endsPerTurn)
  }

  readonly #onTimer = (): void => {
    this.#timer = undefined
    this.#ask("timer", endsPerTurn)
  }

  readonly #onWake = (): void => {
    clearImmediate(this.#immediate)
    this.#immediate = undefined
    this.#ask("wake", endsPerTurn)
  }

  /** Asks about the first wait of every lane; of those only that are polled, where polling is why. */
  #ask(stage: WaitStage, most: number): void {
    this.#stage = stage
    this.#endsLeft = most
    for (const lane of this.#lanes) {
      if (stage !== "poll" || lane.pollUntil > 0) this.#askLane(lane)
      if (this.#endsLeft <= 0) return this.#goOnLater(lane)
    }
    if (this.#sawFault) return this.#afterFault()
    const now = performance.now()
    for (const lane of this.#lanes) this.#expect(lane, now)
  }

  /** A fault ends every context of the process, so every lane is asked, without waiting for its turn. */
  #afterFault(): void {
    this.#sawFault = false
    clearImmediate(this.#immediate)
    this.#immediate = this.#lanes.size > 0 ? setImmediate(this.#onWake) : undefined
  }

  /** The rest has its turn after the event loop has had one; the lane that took this one comes last then. */
  #goOnLater(lane: Lane): void {
    if (this.#lanes.delete(lane)) this.#lanes.add(lane)
    clearImmediate(this.#immediate)
    this.#immediate = this.#lanes.size > 0 ? setImmediate(this.#onWake) : undefined
  }

  #askLane(lane: Lane): void {
    if (this.#pauses(lane.device) > 0) return
    while (lane.head !== undefined && this.#endsLeft > 0) {
      const first = lane.head
      const status = this.#calls.cuEventQuery(first.event)
      if (status === notReady) return
      if (status !== success) {
        this.#onFailure("cuEventQuery", status)
        this.#fail(first, status)
        continue
      }
      lane.isSlow = performance.now() - first.begun > slowAfter * this.#policy.pollFor
      this.#finish(lane, first.order)
      if (lane.tail !== lane.head && this.#calls.cuEventQuery(lane.tail!.event) === success) {
        this.#finish(lane, lane.tail!.order)
      }
    }
  }

  /** Ends every wait of the lane for records up to this one, as far as this turn may. */
  #finish(lane: Lane, order: number): void {
    while (lane.head !== undefined && lane.head.order <= order && this.#endsLeft > 0) this.#end(lane.head, success)
  }

  /** Ends waits of a point, as many as this turn may. */
  #end(point: Point, status: number): void {
    for (const watch of point.watches) {
      if (this.#endsLeft-- <= 0) return
      point.watches.delete(watch)
      this.#leave(point)
      watch.onDone(status, this.#stage)
    }
  }

  /** A fault is the device's: all of its waits end with it. Any other status concerns this point alone. */
  #fail(point: Point, status: number): void {
    if (!reasonFromStatus(status).isSticky) return this.#end(point, status)
    const { device } = point.lane
    this.#sawFault = true
    for (const lane of this.#lanes) {
      while (lane.device === device && lane.head !== undefined && this.#endsLeft > 0) this.#end(lane.head, status)
    }
  }

  /** Has the GPU wake the loop when the lane's first wait is done. False when it will not. */
  #arm(lane: Lane): boolean {
    const first = lane.head
    if (this.#waker === undefined || first?.wakeUp !== true || this.#pauses(lane.device) > 0) return false
    if (lane.armed === first.order) return true
    const side = this.sideFor(lane, first.order, mostSides)
    if (side === undefined) return false
    const waited = this.#calls.cuStreamWaitEvent(side.stream, first.event, 0)
    if (waited !== success) return this.#cannotArm("cuStreamWaitEvent", waited)
    side.order = first.order
    const launched = this.#calls.cuLaunchHostFunc(side.stream, this.#waker.send, this.#waker.handle)
    if (launched !== success) return this.#cannotArm("cuLaunchHostFunc", launched)
    lane.armed = first.order
    return true
  }

  /** Leaves a wait to the timer. */
  #cannotArm(call: string, status: number): false {
    this.#onFailure(call, status)
    return false
  }
}
