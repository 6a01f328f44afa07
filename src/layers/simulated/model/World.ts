/**
 * Virtual time: starts and ends the operations of devices in order. All runtimes with the same clock share a world, so
 * they can wait for each other's events.
 *
 * A step handles one moment: first the operations that end, then the streams that continue because of that, and then the
 * engines, so that they choose among all operations that are ready. An operation costs O(log n).
 *
 * If moving data takes too long for a turn of the event loop, the world stands still and goes on in the next turn. Operations that are
 * enqueued meanwhile start no earlier than they were enqueued, so the times are the same as if the data had moved at once. Only unordered
 * operations that end in the same nanosecond may end in another order.
 */
import { Heap } from "./Heap.ts"
import type { Move } from "./moves.ts"
import { EventRecord, Fault, Group, Operation, Watcher } from "./parts.ts"
import type { Device, Engine, Stream, TimelineEntry, WatcherHome } from "./parts.ts"
import type { Schedule } from "./schedule.ts"
import type { Turns } from "./Turns.ts"

/** `LaunchFailed`, the status of work whose code threw. */
const launchFailed = 719

/** `LaunchTimeout`, the status of work that a schedule ends because it goes on and on. */
const launchTimeout = 702

/** As many queries of unfinished work as nobody makes who does not wait for held work. */
const mostPolls = 64

/** How much longer held work waits while other work runs, or the host does not wait for it. */
const longer = 100

export class World {
  /** Nanoseconds since the world began. */
  now = 0
  /** The number of operations enqueued and not yet complete. */
  pending = 0
  readonly #ends = new Heap<Operation>(endsFirst)
  #goOn: Array<Stream> = []
  #dirty: Array<Engine> = []
  #sequence = 0
  #stepping = false
  /** Holds work back, if there is one. */
  schedule: Schedule | undefined
  /** Streams whose first operation is held, and since when. */
  readonly #held = new Map<Stream, number>()
  readonly #heldStreams = new Set<Stream>()
  /** When work last ended or was held. */
  #lastChange = 0
  #polls = 0
  readonly #clock: (() => number) | undefined
  readonly #turns: Turns | undefined
  /** The operation that is due, and whose data moves in later turns of the event loop. */
  #moving: Operation | undefined

  /**
   * Data moves at once without a clock and turns, and also if there is a schedule. The clock says when something is enqueued while the
   * world stands still.
   */
  constructor(clock?: () => number, turns?: Turns) {
    this.#clock = clock
    this.#turns = turns
    if (turns !== undefined) turns.onNext = () => this.#goOnMoving(false)
  }

  /** Advances time, and handles everything that happens until then, or until data would take too long for this turn. */
  advance(to: number): void {
    if (this.#stepping) return
    while (this.#moving === undefined) {
      const next = this.#nextEnd()
      const latest = this.#latestStart
      if (Math.min(next, latest) > to) break
      this.now = Math.max(this.now, Math.min(next, latest))
      if (next <= latest) this.#step()
      else this.#letGo()
    }
    if (to > this.now && this.#moving === undefined) this.now = to
  }

  /** Moves the data that is due at once, however long it takes. */
  catchUp(): void {
    while (this.#moving !== undefined) this.#goOnMoving(true)
  }

  /** When the next running operation ends; infinite if none will. */
  nextTime(): number {
    return this.#moving === undefined ? this.#nextEnd() : this.now
  }

  #nextEnd(): number {
    for (;;) {
      const next = this.#ends.peek()
      if (next === undefined) return Infinity
      if (next.state !== "dropped") return next.end
      this.#ends.pop()
    }
  }

  enqueue(operation: Operation): void {
    const { stream } = operation
    operation.sequence = this.#sequence++
    if (this.#moving !== undefined && this.#clock !== undefined) operation.notBefore = this.#clock()
    this.pending++
    if (!stream.nonBlocking) join(operation)
    if (operation.engine !== undefined) this.schedule?.enqueued(operation)
    if (stream.tail === undefined) {
      stream.head = stream.tail = operation
      this.#goOn.push(stream)
      this.#step()
    } else {
      stream.tail.next = operation
      stream.tail = operation
    }
  }

  /** Records the stream's work so far. */
  record(stream: Stream, internal: boolean, duration = 0): EventRecord {
    const record = new EventRecord(stream)
    const isPassed = this.#moving === undefined && duration === 0 && stream.idle
    if (isPassed && (internal || stream.device.timeline === undefined)) this.finishRecord(record)
    else this.enqueue(new Operation({ kind: "record", stream, record, internal, duration }))
    return record
  }

  /** Makes the stream's later work wait for a record. */
  wait(stream: Stream, record: EventRecord, internal: boolean): void {
    if (record.done && stream.idle && (internal || stream.device.timeline === undefined)) return
    this.enqueue(new Operation({ kind: "wait", stream, record, internal }))
  }

  watch(record: EventRecord, home: WatcherHome, internal: boolean, onDone: (status: number) => void): Watcher {
    const watcher = new Watcher(record, onDone, home, internal)
    if (record.done) decide(watcher, 0)
    else if (record.device.lost !== 0) decide(watcher, record.device.lost)
    else {
      record.watchers ??= new Set()
      record.watchers.add(watcher)
      record.device.watchers.add(watcher)
      if (!internal) home.waiting.add(watcher)
    }
    return watcher
  }

  unwatch(watcher: Watcher): void {
    watcher.cancelled = true
    watcher.status ??= 0
    forget(watcher)
    watcher.record.watchers?.delete(watcher)
  }

  /** Destroys the contexts of a device and of all its siblings, as on a GPU. Pending work never runs. */
  lose(device: Device, status: number): void {
    if (device.lost !== 0) return
    for (const sibling of device.siblings) this.#end(sibling, status)
    this.#step()
  }

  /** Drops a device's pending work, and ends the waits for it. */
  #end(device: Device, status: number): void {
    device.lost = status
    for (const stream of device.streams) this.#drop(stream)
    device.group = new Group(false, undefined)
    for (const watcher of device.watchers) decide(watcher, status)
    device.watchers.clear()
  }

  #drop(stream: Stream): void {
    for (let operation = stream.head; operation !== undefined; operation = operation.next) {
      operation.state = "dropped"
      this.pending--
    }
    stream.head = stream.tail = undefined
    this.#held.delete(stream)
    this.#heldStreams.delete(stream)
  }

  /** Handles the current moment until nothing more happens in it. */
  #step(): void {
    if (this.#stepping || this.#moving !== undefined) return
    this.#stepping = true
    do {
      this.#finishDue()
      if (this.#moving !== undefined) break
      this.#driveStreams()
      this.#startEngines()
    } while (this.#goOn.length > 0 || this.#nextEnd() <= this.now)
    this.#stepping = false
  }

  #finishDue(): void {
    while (this.#moving === undefined && this.#nextEnd() <= this.now) {
      const operation = this.#ends.pop()!
      if (operation.state === "delayed") {
        operation.state = operation.hasWaited ? "ready" : "queued"
        this.#goOn.push(operation.stream)
      } else if (operation.state === "ending") this.#conclude(operation, this.#noteEnd(operation))
      else if (operation.record !== undefined) this.#finishSlowRecord(operation, operation.record)
      else this.#finishOrMove(operation)
    }
  }

  #finishOrMove(operation: Operation, isHurried = false): void {
    this.schedule?.acting(operation)
    const fault = perform(operation, isHurried || this.schedule !== undefined ? undefined : this.#turns)
    if (fault !== undefined) return this.#finish(operation, fault)
    this.#moving = operation
    this.#turns?.hold()
  }

  /** Goes on with an operation that is due. */
  #goOnMoving(isHurried: boolean): void {
    const operation = this.#moving
    if (operation === undefined || this.#stepping) return
    this.#moving = undefined
    this.#stepping = true
    if (operation.state !== "dropped") this.#finishOrMove(operation, isHurried)
    this.#stepping = false
    this.#step()
    if (this.#clock !== undefined) this.advance(this.#clock())
  }

  #driveStreams(): void {
    while (this.#goOn.length > 0) {
      const streams = this.#goOn
      this.#goOn = []
      for (const stream of streams) this.#drive(stream)
    }
  }

  /** Completes the operations at the head that take no time. Stops at one that must wait or needs an engine. */
  #drive(stream: Stream): void {
    for (let operation = stream.head; operation !== undefined; operation = stream.head) {
      if (operation.state !== "queued" && operation.state !== "ready") return
      if (operation.state === "queued" && this.#mustWait(operation)) return
      if (operation.engine !== undefined) {
        if (this.schedule?.isHeld(operation) === true) {
          this.#hold(stream)
          return
        }
        this.#submit(operation, operation.engine)
        return
      }
      if (operation.kind === "wait") {
        const record = operation.record!
        if (!record.done) {
          record.parked ??= []
          record.parked.push(stream)
          operation.hasWaited = true
          return
        }
        const goesOn = operation.hasWaited ? record.time + latencyOf(operation, record) : 0
        if (goesOn > this.now) return this.#delay(operation, goesOn)
      } else if (operation.kind === "record") {
        if (operation.duration > 0) return this.#runWithoutEngine(operation)
        this.finishRecord(operation.record!)
      } else {
        operation.act?.()
      }
      this.#complete(operation)
    }
  }

  /** Returns true if the order around the legacy default stream holds the operation back. Its stream is driven again afterwards. */
  #mustWait(operation: Operation): boolean {
    const { gate } = operation
    if (gate !== undefined && !gate.complete) {
      gate.parked.push(operation.stream)
      return true
    }
    operation.gate = undefined
    if (operation.notBefore > this.now) {
      this.#delay(operation, operation.notBefore)
      return true
    }
    operation.state = "ready"
    operation.ready = this.now
    operation.start = this.now
    return false
  }

  /** Keeps an operation at the head of its stream until some time. */
  #delay(operation: Operation, until: number): void {
    operation.state = "delayed"
    operation.end = until
    this.#ends.push(operation)
  }

  /** Holds up the stream and nothing else. */
  #runWithoutEngine(operation: Operation): void {
    operation.state = "running"
    operation.end = this.now + operation.duration
    this.#ends.push(operation)
  }

  #submit(operation: Operation, engine: Engine): void {
    operation.state = "running"
    operation.stream.lastEngine = engine
    engine.queue.push(operation)
    if (engine.dirty) return
    engine.dirty = true
    this.#dirty.push(engine)
  }

  #startEngines(): void {
    if (this.#dirty.length === 0) return
    const engines = this.#dirty
    this.#dirty = []
    for (const engine of engines) {
      engine.dirty = false
      while (engine.busy < engine.slots) {
        const operation = engine.queue.pop()
        if (operation === undefined) break
        if (operation.state !== "dropped") this.#start(operation, engine)
      }
    }
  }

  #start(operation: Operation, engine: Engine): void {
    engine.busy++
    operation.start = this.now + operation.lead
    operation.end = this.now + operation.duration
    operation.sequence = this.#sequence++
    if (operation.end !== Infinity) this.#ends.push(operation)
  }

  #finish(operation: Operation, fault: number): void {
    this.#leave(operation.engine!)
    if (operation.stream.device.lost !== 0 || (fault === 0 && operation.heldFor !== undefined)) return
    this.#conclude(operation, fault || this.#noteEnd(operation))
  }

  #conclude(operation: Operation, fault: number): void {
    const { stream } = operation
    this.#complete(operation)
    if (fault === 0) this.#goOn.push(stream)
    else this.lose(stream.device, fault)
  }

  /** Completes a record that has held up its stream. */
  #finishSlowRecord(operation: Operation, record: EventRecord): void {
    this.finishRecord(record)
    this.#conclude(operation, 0)
  }

  /** Ends an operation that goes on after its time. */
  end(operation: Operation): void {
    if (operation.heldFor === undefined || operation.state === "dropped") return
    operation.heldFor = undefined
    if (this.#moving !== undefined && this.#clock !== undefined) return this.#endLater(operation, this.#clock())
    this.#conclude(operation, this.#noteEnd(operation))
    this.#step()
  }

  /** Ends an operation while the world stands still, at a time that it has not reached. */
  #endLater(operation: Operation, time: number): void {
    operation.state = "ending"
    operation.end = time
    this.#ends.push(operation)
  }

  /** Tells the schedule that work has ended. Returns the fault that ends work that goes on and on. */
  #noteEnd(operation: Operation): number {
    const { schedule } = this
    if (schedule === undefined) return 0
    schedule.ended(operation)
    this.#lastChange = this.now
    this.#polls = 0
    this.#reconsider()
    return schedule.isRestless ? launchTimeout : 0
  }

  #hold(stream: Stream): void {
    if (this.#held.has(stream)) return
    this.#held.set(stream, this.now)
    this.#heldStreams.add(stream)
    this.#lastChange = this.now
  }

  /** Drives the streams whose first operation is held no longer. */
  #reconsider(): void {
    for (const stream of this.#heldStreams) {
      if (stream.head !== undefined && this.schedule?.isHeld(stream.head) === true) continue
      this.#held.delete(stream)
      this.#heldStreams.delete(stream)
      this.#goOn.push(stream)
    }
  }

  /** Whether work is held back. */
  get isHolding(): boolean {
    return this.#heldStreams.size > 0
  }

  /** When held work starts after all, if the host waits until then. */
  get letGoTime(): number {
    if (this.schedule === undefined || !this.isHolding) return Infinity
    return this.nextTime() === Infinity ? this.#lastChange + this.schedule.patience : this.#latestStart
  }

  /** When held work starts, whatever the host does: work does not wait forever. */
  get #latestStart(): number {
    if (this.schedule === undefined || !this.isHolding) return Infinity
    return Math.min(...this.#held.values()) + longer * this.schedule.patience
  }

  /** Lets the held work go that the host has waited for long enough. */
  letGoDue(): void {
    while (this.letGoTime <= this.now) this.#letGo()
  }

  #letGo(): void {
    this.schedule?.letGo(this.#heldStreams)
    this.#lastChange = this.now
    this.#polls = 0
    this.reconsider()
  }

  /** Starts held work whose time has come outside a step. */
  reconsider(): void {
    this.#reconsider()
    this.#step()
  }

  /** Notes a query of unfinished work. Who queries again and again waits, so held work must start at some time. */
  polled(): void {
    if (!this.isHolding || ++this.#polls < mostPolls) return
    this.#letGo()
  }

  /** Runs work ahead of the clock until a condition holds, or until there is none: the device is faster than the host. */
  runUntil(isOver: () => boolean): void {
    while (!this.#stepping && !isOver()) {
      const next = this.nextTime()
      if (this.#moving !== undefined) this.catchUp()
      else if (next !== Infinity) this.advance(next)
      else if (this.isHolding) this.#letGo()
      else return
    }
  }

  #leave(engine: Engine): void {
    engine.busy--
    if (engine.dirty || engine.queue.size === 0) return
    engine.dirty = true
    this.#dirty.push(engine)
  }

  #complete(operation: Operation): void {
    const { group, stream } = operation
    stream.head = operation.next
    operation.next = undefined
    if (stream.head === undefined) {
      stream.tail = undefined
      if (stream.destroyed) stream.device.streams.delete(stream)
    }
    this.pending--
    if (group !== undefined && --group.pending === 0 && group.closed) this.#completeGroup(group)
    if (stream.device.timeline !== undefined && !operation.internal) {
      stream.device.timeline.push(entry(operation, this.now))
    }
  }

  #completeGroup(group: Group): void {
    group.gate = undefined
    for (const stream of group.parked) this.#goOn.push(stream)
    group.parked.length = 0
  }

  /** Completes a record now. Outside a step, streams that wait for it continue in the next one. */
  finishRecord(record: EventRecord): void {
    record.done = true
    record.time = this.now
    record.engine = record.stream?.lastEngine
    if (record.parked !== undefined) {
      for (const stream of record.parked) this.#goOn.push(stream)
      record.parked = undefined
    }
    if (record.watchers !== undefined) {
      for (const watcher of record.watchers) decide(watcher, 0)
      record.watchers = undefined
    }
    record.stream = undefined
  }
}

/** How long a stream that waited for a record takes to go on. */
const latencyOf = ({ internal, stream }: Operation, record: EventRecord): number => {
  const { latencies } = stream.device.traits
  if (internal || latencies === undefined) return 0
  const { wait = 0, waitAcrossEngines = wait } = latencies
  return stream.lastEngine === record.engine ? wait : waitAcrossEngines
}

const endsFirst = (a: Operation, b: Operation): boolean => a.end === b.end ? a.sequence < b.sequence : a.end < b.end

const entry = (operation: Operation, end: number): TimelineEntry => ({
  deviceIndex: operation.stream.device.ordinal,
  streamId: operation.stream.id,
  kind: operation.kind,
  bytes: operation.bytes,
  start: operation.start,
  end
})

/**
 * Runs what the operation does. Returns the status of the fault that it ends in, or 0; undefined if the rest must wait for the next
 * turn of the event loop.
 */
const perform = (operation: Operation, turns: Turns | undefined): number | undefined => {
  const { act, move } = operation
  try {
    if (turns === undefined || (act === undefined && (move === undefined || move.isSmall))) runAtOnce(operation)
    else if (turns.isOver) return undefined
    else if (move === undefined) turns.charge(() => act?.())
    else if (!moveWithin(turns, move)) return undefined
    return operation.fault
  } catch (error) {
    return error instanceof Fault ? error.status : launchFailed
  }
}

const runAtOnce = ({ act, move }: Operation): void => {
  act?.()
  while (move?.step() === false);
}

/** Moves pieces. Returns false if the turn is over before the last one. */
const moveWithin = (turns: Turns, move: Move): boolean => {
  while (!turns.charge(() => move.step())) if (turns.isOver) return false
  return true
}

/** Adds an operation to its device's order around the legacy default stream. */
const join = (operation: Operation): void => {
  const { device, legacy } = operation.stream
  let { group } = device
  if (group.legacy !== legacy) {
    if (group.pending === 0) {
      group.legacy = legacy
      group.gate = undefined
    } else {
      group.closed = true
      group = device.group = new Group(legacy, group)
    }
  }
  group.pending++
  operation.group = group
  if (group.gate?.complete === true) group.gate = undefined
  operation.gate = group.gate
}

/** Ends a wait with a status. Calls internal watchers now, and leaves the others to be called after the step. */
export const decide = (watcher: Watcher, status: number): void => {
  if (watcher.status !== undefined) return
  watcher.status = status
  forget(watcher)
  if (watcher.internal) watcher.onDone(status)
  else {
    watcher.home.decided.push(watcher)
    watcher.home.wake()
  }
}

const forget = (watcher: Watcher): void => {
  watcher.home.waiting.delete(watcher)
  watcher.record.device.watchers.delete(watcher)
}
