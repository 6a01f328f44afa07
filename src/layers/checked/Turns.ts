/**
 * Accesses that wait for each other: who holds what, who waits for whom, and in which order fibers begin accesses inside others. It follows
 * the rules of `shared/ordering.ts`. Plain data, without Effect.
 */
import type { MemoryRef } from "../CudaRuntime.ts"
import type { Use, Where } from "./Checks.ts"
import type { Timeline } from "./timelines.ts"

/** An access that has not ended. */
export class Turn {
  readonly fiber: number
  readonly timeline: Timeline
  /** What it uses of ordered buffers. */
  readonly uses: ReadonlyArray<Use>
  /** The accesses around it. */
  readonly outer: ReadonlySet<Turn>
  readonly where: Where | undefined
  /** The accesses that must end before it begins. */
  readonly blockers = new Set<Turn>()
  hasBegun = false

  constructor(
    fiber: number,
    timeline: Timeline,
    uses: ReadonlyArray<Use>,
    outer: ReadonlySet<Turn>,
    where: Where | undefined
  ) {
    this.fiber = fiber
    this.timeline = timeline
    this.uses = uses
    this.outer = outer
    this.where = where
  }

  /** What it uses that conflicts with another access on another stream: only one of the two can be open. */
  conflictWith(other: Turn): Use | undefined {
    if (other === this || other.timeline === this.timeline) return undefined
    return this.uses.find((use) => other.uses.some((theirs) => conflict(use, theirs)))
  }

  /** Whether it waits for any of some accesses, directly or through others. */
  waitsForAny(turns: ReadonlySet<Turn>): boolean {
    const waitedFor = new Set(this.blockers)
    for (const blocker of waitedFor) {
      if (turns.has(blocker)) return true
      for (const next of blocker.blockers) waitedFor.add(next)
    }
    return false
  }
}

const conflict = (one: Use, other: Use): boolean =>
  one.memory === other.memory && (one.kind !== "reads" || other.kind !== "reads") &&
  one.offset < other.offset + other.byteLength && other.offset < one.offset + one.byteLength

/** A fiber that waits to begin an access, and the access that it waits for. */
export interface Waiting {
  readonly turn: Turn
  readonly blocker: Turn
}

/** An access that was begun inside another one. */
export interface Order {
  readonly holding: Turn
  readonly next: Turn
}

export class Turns {
  readonly #open = new Set<Turn>()
  /** By fiber, the access that it waits to begin. */
  readonly #pending = new Map<number, Turn>()
  readonly orders = new Orders()

  get size(): number {
    return this.#open.size
  }

  /** Notes an access that is about to begin, and what it has to wait for. */
  add(turn: Turn): void {
    const { outer } = turn
    for (const use of turn.uses) {
      for (const other of this.#open) {
        if (!other.uses.some(({ memory }) => memory === use.memory)) continue
        if (outer.has(other) || turn.conflictWith(other) === undefined) continue
        if (other.waitsForAny(outer)) other.blockers.add(turn)
        else turn.blockers.add(other)
      }
    }
    this.#open.add(turn)
    if (turn.blockers.size > 0) this.#pending.set(turn.fiber, turn)
  }

  begun(turn: Turn): void {
    turn.hasBegun = true
    this.#settle(turn)
  }

  end(turn: Turn): void {
    this.#settle(turn)
    this.#open.delete(turn)
    for (const other of this.#open) other.blockers.delete(turn)
  }

  #settle(turn: Turn): void {
    if (this.#pending.get(turn.fiber) === turn) this.#pending.delete(turn.fiber)
  }

  /** The fibers that wait for each other, starting with that of an access that was just added. */
  deadlockOf(turn: Turn): ReadonlyArray<Waiting> | undefined {
    return this.#search(turn, turn, new Set())
  }

  #search(start: Turn, turn: Turn, seen: Set<Turn>): ReadonlyArray<Waiting> | undefined {
    seen.add(turn)
    for (const blocker of turn.blockers) {
      const waiting = { turn, blocker }
      if (blocker.fiber === start.fiber) return [waiting]
      // An access ends when its fiber goes on, which may itself wait to begin one.
      const next = blocker.hasBegun ? this.#pending.get(blocker.fiber) : blocker
      const rest = next === undefined || seen.has(next) ? undefined : this.#search(start, next, seen)
      if (rest !== undefined) return [waiting, ...rest]
    }
    return undefined
  }
}

/** An order, with the fibers that have used it: a few are enough to know whether several do. */
interface KnownOrder extends Order {
  readonly key: string
  readonly fibers: Set<number>
}

/** The most orders that are kept, and the most that a report has. */
const mostOrders = 1000
const mostInReport = 4

/** The orders in which accesses were begun inside others. */
export class Orders {
  readonly #known = new Map<string, KnownOrder>()
  readonly #ids = new WeakMap<MemoryRef, number>()
  readonly #reported = new Set<string>()
  #nextId = 0

  get size(): number {
    return this.#known.size
  }

  /** Notes that an access begins inside others. Returns orders that are inverted by it, so that fibers can wait for each other. */
  add(next: Turn): ReadonlyArray<Order> | undefined {
    let found: ReadonlyArray<Order> | undefined
    for (const holding of next.outer) {
      if (holding.uses.length === 0) continue
      const order = this.#note(holding, next)
      if (order !== undefined) found ??= this.#inverted(order)
    }
    return found
  }

  /** Notes an order. Returns it if it is new, or new for its fiber. */
  #note(holding: Turn, next: Turn): KnownOrder | undefined {
    const key = `${this.#print(holding)} > ${this.#print(next)} in ${
      Array.from(next.outer, (turn) => this.#print(turn))
    }`
    const known = this.#known.get(key)
    if (known === undefined) {
      if (this.#known.size >= mostOrders) return undefined
      const made = { holding, next, key, fibers: new Set([next.fiber]) }
      this.#known.set(key, made)
      return made
    }
    if (known.fibers.size >= mostInReport || known.fibers.has(next.fiber)) return undefined
    known.fibers.add(next.fiber)
    return known
  }

  #print({ timeline, uses }: Turn): string {
    const parts = uses.map(({ byteLength, kind, memory, offset }) =>
      `${this.#idOf(memory)}:${offset}+${byteLength}${kind === "reads" ? "r" : "w"}`
    )
    return `${timeline.deviceIndex}.${timeline.index} ${parts.join()}`
  }

  #idOf(memory: MemoryRef): number {
    const known = this.#ids.get(memory)
    if (known !== undefined) return known
    this.#ids.set(memory, ++this.#nextId)
    return this.#nextId
  }

  #inverted(order: KnownOrder): ReadonlyArray<Order> | undefined {
    const cycle = this.#cycle([order])
    if (cycle === undefined) return undefined
    const key = cycle.map((one) => one.key).toSorted().join()
    if (this.#reported.has(key)) return undefined
    this.#reported.add(key)
    return cycle
  }

  /** Orders of which each holds what the one before begins, and the first what the last one begins. */
  #cycle(path: ReadonlyArray<KnownOrder>): ReadonlyArray<KnownOrder> | undefined {
    const last = path.at(-1)!
    if (path.length > 1 && last.next.conflictWith(path[0]!.holding) !== undefined) return path
    if (path.length === mostInReport) return undefined
    for (const order of this.#known.values()) {
      if (path.includes(order) || last.next.conflictWith(order.holding) === undefined) continue
      if (!path.every((other) => canOverlap(other, order))) continue
      const longer = [...path, order]
      const found = haveOwnFibers(longer) ? this.#cycle(longer) : undefined
      if (found !== undefined) return found
    }
    return undefined
  }

  /** Forgets the orders with memory that is released. */
  releaseMemory(memory: MemoryRef): void {
    for (const order of this.#known.values()) {
      if ([order.holding, order.next].some(({ uses }) => uses.some((use) => use.memory === memory))) this.#forget(order)
    }
  }

  /** Forgets the orders with a stream that is destroyed. */
  endTimeline(timeline: Timeline): void {
    for (const order of this.#known.values()) {
      if (order.holding.timeline === timeline || order.next.timeline === timeline) this.#forget(order)
    }
  }

  #forget({ key }: KnownOrder): void {
    this.#known.delete(key)
    for (const reported of this.#reported) if (reported.includes(key)) this.#reported.delete(reported)
  }
}

/** Whether two fibers can be at these points at the same time: not if what one holds keeps the other out. */
const canOverlap = (one: Order, other: Order): boolean =>
  Array.from(one.next.outer).every((held) =>
    Array.from(other.next.outer).every((theirs) => held !== theirs && held.conflictWith(theirs) === undefined)
  )

/** Whether each order can be that of another fiber. */
const haveOwnFibers = (
  [first, ...rest]: ReadonlyArray<KnownOrder>,
  taken: ReadonlySet<number> = new Set()
): boolean =>
  first === undefined ||
  Array.from(first.fibers).some((fiber) => !taken.has(fiber) && haveOwnFibers(rest, new Set([...taken, fiber])))
