/**
 * Accesses that wait for each other: whether fibers are in a deadlock, or begin accesses in orders that can end in one.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { CudaError } from "../../CudaError.ts"
import type { MemoryAccess } from "../CudaRuntime.ts"
import { evaluate } from "../shared/operation.ts"
import type { Use } from "./Checks.ts"
import { explainDeadlock, explainOrders } from "./explain.ts"
import type { Deadlock } from "./reports.ts"
import { Turn } from "./Turns.ts"
import { ofRanges } from "./uses.ts"
import { after, isEnqueued } from "./Watcher.ts"
import type { Watcher } from "./Watcher.ts"

type Run = Effect.Effect<void, CudaError>

const operation = "CudaMemory.access"

const nothing: ReadonlyArray<Use> = []

/** What an access uses. The runtime refuses arguments of the wrong kind, and reading them must not throw before that. */
export const usesOf = ({ reads, writes }: MemoryAccess): ReadonlyArray<Use> => {
  try {
    return ofRanges(reads, writes)
  } catch {
    return nothing
  }
}

export class AccessTurns {
  readonly #watcher: Watcher
  readonly #turns = new WeakMap<MemoryAccess, Turn>()

  constructor(watcher: Watcher) {
    this.#watcher = watcher
  }

  /** Begins an access, unless that would be a deadlock that fails. The runtime decides about its turn in the same step. */
  begin(access: MemoryAccess, inner: Run, next: () => void): Run {
    const turn = this.#add(access)
    const result = evaluate(inner)
    if (Exit.isExit(result) && Exit.isFailure(result)) return result
    const run = after(result, () => {
      if (turn !== undefined) this.#watcher.turns.begun(turn)
      next()
    })
    return turn === undefined ? run : this.#checked(turn, run)
  }

  /** Notes that an access, which may not have begun, has ended. */
  end(access: MemoryAccess): void {
    const turn = this.#turns.get(access)
    if (turn !== undefined) this.#watcher.turns.end(turn)
    this.#turns.delete(access)
  }

  #add(access: MemoryAccess): Turn | undefined {
    const { checks, turns, where } = this.#watcher
    const fiber = Fiber.getCurrent()
    if (fiber === undefined || !isEnqueued(access.stream) || this.#turns.has(access)) return undefined
    const uses = usesOf(access).filter(({ memory }) => memory.isOrdered)
    const turn = new Turn(fiber.id, checks.timelineOf(access.stream), uses, this.#around(access), where)
    this.#turns.set(access, turn)
    turns.add(turn)
    return turn
  }

  #around({ outer }: MemoryAccess): ReadonlySet<Turn> {
    const around = new Set<Turn>()
    for (let at = outer; at !== undefined; at = at.outer) {
      const turn = this.#turns.get(at)
      if (turn !== undefined) around.add(turn)
    }
    return around
  }

  #checked(turn: Turn, run: Run): Run {
    const { options, turns } = this.#watcher
    const waits = turn.blockers.size === 0 ? undefined : turns.deadlockOf(turn)
    if (waits !== undefined) return this.#meet(turn, explainDeadlock(waits), run)
    const orders = options.accessOrder && turn.outer.size > 0 && turn.uses.length > 0
      ? turns.orders.add(turn)
      : undefined
    return orders === undefined
      ? run
      : this.#watcher.meet(operation, turn.timeline.deviceIndex, [explainOrders(orders)], run)
  }

  #meet(turn: Turn, report: Deadlock, run: Run): Run {
    const { isUnchecked, options } = this.#watcher
    const fails = options.mode === "fail" && !isUnchecked && options.ignore?.(report) !== true
    if (!fails) return this.#watcher.meet(operation, turn.timeline.deviceIndex, [report], run)
    this.#watcher.keep(report)
    return Effect.fail(neverBegins(turn, report))
  }
}

/** The failure of the access that would complete a deadlock. */
const neverBegins = ({ timeline }: Turn, { message }: Deadlock): CudaError =>
  new CudaError({
    operation,
    deviceIndex: timeline.deviceIndex,
    reason: { _tag: "NeverFinishes", resource: `an access on ${timeline.name}`, because: message }
  })
