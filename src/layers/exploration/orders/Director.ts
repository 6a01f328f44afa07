/**
 * The schedule of one run: names the work that is enqueued, holds some of it back, and notes what ran when.
 */
import type { StreamRef } from "../../CudaRuntime.ts"
import type { Operation, Stream } from "../../simulated/model/parts.ts"
import type { Schedule } from "../../simulated/model/schedule.ts"
import type { World } from "../../simulated/model/World.ts"
import { chance, hostLane } from "./holds.ts"
import type { Plan } from "./holds.ts"

/** An operation that ran, in nanoseconds of virtual time. */
export interface Ran {
  readonly work: string
  readonly lane: string
  readonly label: string
  readonly start: number
  readonly end: number
}

/** Operations that are enqueued together, by one call. */
export class WorkUnit {
  readonly name: string
  readonly label: string
  enqueued = 0
  ended = 0
  /** True until the call has returned. */
  isOpen = true
  constructor(name: string, label: string) {
    this.name = name
    this.label = label
  }

  get isOver(): boolean {
    return !this.isOpen && this.ended === this.enqueued
  }
}

const nameOfLane = (id: number, deviceIndex: number): string => deviceIndex === 0 ? `${id}` : `${id}@${deviceIndex}`

const laneOfStream = (stream: Stream): string => {
  let root = stream
  while (root.branchOf !== undefined) root = root.branchOf
  return nameOfLane(root.id, root.device.ordinal)
}

export interface Limits {
  /** The present, in nanoseconds. */
  readonly now: () => number
  readonly patience: number
  readonly mostOperations: number
}

export class Director implements Schedule {
  readonly patience: number
  isRestless = false
  /** Interrupts the program. */
  interrupt: () => void = () => {}
  node: number | undefined
  /** The operations that ran, in order of their ends. */
  readonly ran: Array<Ran> = []
  /** Holds that had to be let go, because nothing else could run. */
  readonly letGoes: Array<string> = []
  readonly #world: World
  readonly #now: () => number
  readonly #plan: Plan
  readonly #mostOperations: number
  /** By name of the held work, the works that must end first, and the rank of each hold. */
  readonly #holds = new Map<string, Array<{ readonly until: string; readonly rank: number }>>()
  readonly #given = new Set<string>()
  readonly #counts = new Map<string, number>()
  readonly #open = new Map<string, WorkUnit>()
  readonly #units = new Map<string, WorkUnit>()
  readonly #unitOf = new WeakMap<Operation, WorkUnit>()
  readonly #endOf = new Map<string, number>()
  readonly #children = new Map<string, number>()
  /** For each held operation of a random schedule, how many must have ended before it starts. */
  readonly #drawn = new Map<string, number>()
  #acting: Operation | undefined
  #looks = 0
  #ends = 0

  constructor(world: World, plan: Plan, limits: Limits) {
    this.#world = world
    this.#now = limits.now
    this.#plan = plan
    this.patience = limits.patience
    this.#mostOperations = limits.mostOperations
    if ("seed" in plan) return
    for (const [rank, { until, work }] of plan.holds.entries()) {
      const others = this.#holds.get(work)
      if (others === undefined) this.#holds.set(work, [{ until, rank }])
      else others.push({ until, rank })
    }
  }

  /** Begins a call that enqueues work on a stream. */
  begin(label: string, { deviceIndex, id }: StreamRef): WorkUnit {
    const lane = nameOfLane(id, deviceIndex)
    const unit = this.#makeUnit(lane, label)
    this.#open.set(lane, unit)
    return unit
  }

  end(unit: WorkUnit, { deviceIndex, id }: StreamRef): void {
    unit.isOpen = false
    const lane = nameOfLane(id, deviceIndex)
    if (this.#open.get(lane) === unit) this.#open.delete(lane)
    if (unit.isOver) this.#world.reconsider()
  }

  /** The number of works on a stream so far. */
  countOf({ deviceIndex, id }: StreamRef): number {
    return this.#counts.get(nameOfLane(id, deviceIndex)) ?? 0
  }

  /** The names of the works on a stream after the first `since`. */
  worksSince({ deviceIndex, id }: StreamRef, since: number): ReadonlyArray<string> {
    const lane = nameOfLane(id, deviceIndex)
    const count = (this.#counts.get(lane) ?? 0) - since
    return Array.from({ length: count }, (_, index) => `${lane}:${since + index + 1}`)
  }

  #makeUnit(lane: string, label: string): WorkUnit {
    const number = (this.#counts.get(lane) ?? 0) + 1
    this.#counts.set(lane, number)
    const unit = new WorkUnit(`${lane}:${number}`, label)
    this.#units.set(unit.name, unit)
    return unit
  }

  enqueued(operation: Operation): void {
    const unit = this.#unitFor(operation)
    unit.enqueued++
    this.#unitOf.set(operation, unit)
    operation.key = this.node !== undefined && this.#acting === undefined
      ? `${unit.name}/n${this.node}`
      : `${unit.name}/${this.#numberIn(unit)}`
  }

  #numberIn({ name }: WorkUnit): number {
    const number = (this.#children.get(name) ?? 0) + 1
    this.#children.set(name, number)
    return number
  }

  #unitFor(operation: Operation): WorkUnit {
    // The bodies of conditions are enqueued by the device, not by a call.
    const parent = this.#acting && this.#unitOf.get(this.#acting)
    if (parent !== undefined) return parent
    const lane = laneOfStream(operation.stream)
    const open = this.#open.get(lane)
    if (open !== undefined) return open
    const unit = this.#makeUnit(lane, operation.kind)
    unit.isOpen = false
    return unit
  }

  isHeld(operation: Operation): boolean {
    const { key } = operation
    if (this.#given.has(key)) return false
    if ("seed" in this.#plan) return this.#isDrawn(this.#plan.seed, key)
    return this.#rankOf(operation) !== undefined
  }

  /** The rank of the most important hold on an operation; undefined if there is none. */
  #rankOf(operation: Operation): number | undefined {
    const unit = this.#unitOf.get(operation)
    const own = this.#pendingIn(this.#holds.get(operation.key))
    const whole = unit && this.#pendingIn(this.#holds.get(unit.name))
    if (own === undefined || whole === undefined) return own ?? whole
    return Math.min(own, whole)
  }

  #pendingIn(holds: ReadonlyArray<{ readonly until: string; readonly rank: number }> | undefined): number | undefined {
    return holds?.find(({ until }) => !this.isOver(until))?.rank
  }

  #isDrawn(seed: number, key: string): boolean {
    let ends = this.#drawn.get(key)
    if (ends === undefined) {
      const isHeld = chance(seed, `hold ${key}`) < [0.2, 0.5, 0.8][seed % 3]!
      const more = chance(seed, `count ${key}`)
      ends = !isHeld ? 0 : more > 0.75 ? Infinity : this.#ends + 1 + Math.floor(more * 8)
      this.#drawn.set(key, ends)
    }
    return this.#ends < ends
  }

  /** Whether a work, a node or a look of the host has ended. */
  isOver(name: string): boolean {
    if (name.startsWith("host:")) return this.#looks >= Number(name.slice(5))
    return name.includes("/") ? this.#endOf.has(name) : this.#units.get(name)?.isOver ?? false
  }

  acting(operation: Operation): void {
    this.#acting = operation
  }

  ended(operation: Operation): void {
    this.#acting = undefined
    const unit = this.#unitOf.get(operation)
    if (unit === undefined) return
    unit.ended++
    const ends = ++this.#ends
    this.#endOf.set(operation.key, ends)
    this.#endOf.set(unit.name, ends)
    this.ran.push({
      work: operation.key.includes("/n") ? operation.key : unit.name,
      lane: laneOfStream(operation.stream),
      label: unit.label,
      start: operation.start,
      end: operation.end
    })
    if (ends < this.#mostOperations) return
    this.isRestless = true
    this.interrupt()
  }

  letGo(held: ReadonlySet<Stream>): void {
    let chosen: Operation | undefined
    let rank = -1
    for (const { head } of held) {
      if (head === undefined) continue
      const own = this.#rankOf(head) ?? 0
      if (own <= rank) continue
      chosen = head
      rank = own
    }
    if (chosen === undefined) return
    this.#given.add(chosen.key)
    this.letGoes.push(chosen.key)
  }

  /** Called when the host takes bytes. Returns the name of the look. The work that comes first runs now. */
  look(label: string): string {
    const number = this.#looks + 1
    const name = `${hostLane}:${number}`
    this.#world.advance(this.#now())
    if ("seed" in this.#plan) this.#runSome(this.#plan.seed, name)
    else {
      const holds = this.#holds.get(name) ?? []
      this.#world.runUntil(() => this.#pendingIn(holds) === undefined)
      if (this.#pendingIn(holds) !== undefined) this.letGoes.push(name)
    }
    this.#looks = number
    const { now } = this.#world
    this.#endOf.set(name, ++this.#ends)
    this.ran.push({ work: name, lane: hostLane, label, start: now, end: now })
    this.#world.reconsider()
    return name
  }

  #runSome(seed: number, name: string): void {
    if (chance(seed, name) < 0.5) return
    const until = this.#ends + 1 + Math.floor(chance(seed, `count ${name}`) * 8)
    this.#world.runUntil(() => this.#ends >= until)
  }

  /** The place of the end of a work, a node or a look in the order of all ends; undefined if it has not ended. */
  placeOf(name: string): number | undefined {
    return this.isOver(name) ? this.#endOf.get(name) : undefined
  }

  /** What a work is. */
  labelOf(name: string): string | undefined {
    if (name.startsWith("host:")) return this.ran.find(({ work }) => work === name)?.label
    const [unit = name, node] = name.split("/")
    const label = this.#units.get(unit)?.label
    return node === undefined || label === undefined ? label : `node ${node.slice(1)} of ${label}`
  }
}
