/**
 * The completion engine: detects that the GPU has reached a point, without blocking a thread.
 *
 * The waits of one stream form a lane, in the order of the records they wait for. A stream finishes in order, so only
 * the first wait of each lane is queried. There are three stages. Lanes are polled once per turn of the event loop for
 * a short while after a wait begins. Then the GPU wakes the loop when the first wait of a lane has finished.
 * A slow timer queries as well, because a GPU that has failed does not wake the loop. A fault found on a device ends all of
 * the device's waits.
 */
import type { DriverFunctions } from "../../cuda/functions.ts"
import { notReady, success } from "../../cuda/status.ts"
import { reasonFromStatus } from "../../CudaError.ts"
import type { Cancel, OnDone, WaitStage } from "../shared/waits.ts"
import type { NativeDevice, Warn } from "./Device.ts"
import type { Lane, Point, SideStream, Watch } from "./Lane.ts"
import type { Waker } from "./Waker.ts"

/** How waits detect that the GPU has finished. Times are in milliseconds. */
export interface WaitPolicy {
  /** How long a wait polls, once per turn of the event loop. */
  readonly pollFor: number
  /** Whether the GPU wakes the event loop after that. */
  readonly wakeUp: boolean
  /** Interval of the timer in addition to wake-ups. */
  readonly safetyInterval: number
  /** Interval of the timer without wake-ups. */
  readonly timerInterval: number
}

/** Maximum number of waits that end per turn of the event loop, about a millisecond of work. */
const endsPerTurn = 128

/** Maximum number of side streams that a lane uses for wake-ups. Beyond that, the timer polls. */
const mostSides = 4

/** A wait this many times as long as the polling time marks its stream as slow: the next wait does not poll. */
const slowAfter = 20

export class Completion {
  readonly #calls: DriverFunctions
  readonly #policy: WaitPolicy
  readonly #waker: Waker | undefined
  readonly #deviceOf: (ordinal: number) => NativeDevice
  readonly #onFailure: (call: string, status: number) => void
  readonly #warn: Warn
  readonly #unsubscribe: () => void
  /** The lanes with pending waits. */
  readonly #lanes = new Set<Lane>()
  /** The lanes with side streams. */
  readonly #sided = new Set<Lane>()
  /** By device, how many callers currently forbid event queries. */
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
    onFailure: (call: string, status: number) => void,
    warn: Warn
  ) {
    this.#calls = calls
    this.#policy = policy
    this.#waker = waker
    this.#deviceOf = deviceOf
    this.#onFailure = onFailure
    this.#warn = warn
    this.#unsubscribe = waker?.subscribe(this.#onWake) ?? (() => {})
  }

  /** Starts to wait for a point. */
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

  /** An internal stream that can wait for a record of the lane; undefined if none could be created. */
  sideFor(lane: Lane, order: number, most = Number.POSITIVE_INFINITY): SideStream | undefined {
    const free = lane.sides.find((side) => side.order <= order)
    if (free !== undefined) return free
    if (lane.sides.length >= most) return undefined
    const stream = this.#deviceOf(lane.deviceIndex).makeStream()
    if (stream === undefined) return undefined
    const side = { stream, order }
    lane.sides.push(side)
    this.#sided.add(lane)
    return side
  }

  /** Destroys the side streams of a lane, except for `keep` of them. */
  forget(lane: Lane, keep = 0): void {
    if (lane.sides.length <= keep) return
    for (const { stream } of lane.sides.splice(keep)) {
      this.#warn("cuStreamDestroy", this.#calls.cuStreamDestroy_v2(stream), stream)
    }
    if (keep === 0) this.#sided.delete(lane)
  }

  /**
   * Stops querying the events of a device until the returned function is called. Required during stream capture, which
   * a query would invalidate.
   */
  pause(deviceIndex: number): () => void {
    let isOver = false
    this.#paused.set(deviceIndex, this.#pauses(deviceIndex) + 1)
    return () => {
      if (isOver) return
      isOver = true
      this.#paused.set(deviceIndex, this.#pauses(deviceIndex) - 1)
      if (this.#pauses(deviceIndex) === 0) this.#onWake()
    }
  }

  /** Ends the waits whose work has finished. */
  settle(): void {
    this.#ask("wake", Number.POSITIVE_INFINITY)
  }

  #pauses(deviceIndex: number): number {
    return this.#paused.get(deviceIndex) ?? 0
  }

  /** No wait may begin after this. */
  close(): void {
    this.#unsubscribe()
    this.#rest()
    for (const lane of this.#sided) this.forget(lane)
  }

  /** Cleans up after a wait has ended. */
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

  /** Ensures that the end of a lane's first wait is detected: by polling at first, later by a wake-up or a timer. */
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

  /** Queries the first wait of every lane; when polling, only of the lanes that poll. */
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

  /** A fault ends every context of the process, so all lanes are queried in the next turn. */
  #afterFault(): void {
    this.#sawFault = false
    clearImmediate(this.#immediate)
    this.#immediate = this.#lanes.size > 0 ? setImmediate(this.#onWake) : undefined
  }

  /** Continues after a turn of the event loop. The lane that used up this turn comes last. */
  #goOnLater(lane: Lane): void {
    if (this.#lanes.delete(lane)) this.#lanes.add(lane)
    clearImmediate(this.#immediate)
    this.#immediate = this.#lanes.size > 0 ? setImmediate(this.#onWake) : undefined
  }

  #askLane(lane: Lane): void {
    if (this.#pauses(lane.deviceIndex) > 0) return
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

  /** Ends the lane's waits for records up to `order`, within the limit of this turn. */
  #finish(lane: Lane, order: number): void {
    while (lane.head !== undefined && lane.head.order <= order && this.#endsLeft > 0) this.#end(lane.head, success)
  }

  /** Ends the waits of a point, within the limit of this turn. */
  #end(point: Point, status: number): void {
    for (const watch of point.watches) {
      if (this.#endsLeft-- <= 0) return
      point.watches.delete(watch)
      this.#leave(point)
      watch.onDone(status, this.#stage)
    }
  }

  /** A fault ends all waits of the device. Any other status ends the waits of this point only. */
  #fail(point: Point, status: number): void {
    if (!reasonFromStatus(status).isSticky) return this.#end(point, status)
    const { deviceIndex } = point.lane
    this.#sawFault = true
    for (const lane of this.#lanes) {
      while (lane.deviceIndex === deviceIndex && lane.head !== undefined && this.#endsLeft > 0) {
        this.#end(lane.head, status)
      }
    }
  }

  /** Asks the GPU to wake the event loop when the lane's first wait has finished. Returns false if it cannot. */
  #arm(lane: Lane): boolean {
    const first = lane.head
    if (this.#waker === undefined || first?.wakeUp !== true || this.#pauses(lane.deviceIndex) > 0) return false
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

  /** Falls back to the timer for a wait. */
  #cannotArm(call: string, status: number): false {
    this.#onFailure(call, status)
    return false
  }
}
