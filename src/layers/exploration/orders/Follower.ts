/**
 * Follows the checker in one run: finds every pair of works that race, with the names that the director gave them.
 */
import { Access, isOrdered, overlaps } from "../../checked/Checks.ts"
import type { OpenWork, Use, Where, Work } from "../../checked/Checks.ts"
import { explainHost, explainRace } from "../../checked/explain.ts"
import { mostNodes, nodeRacesIn } from "../../checked/graphs.ts"
import type { NodeRace } from "../../checked/graphs.ts"
import type { Race } from "../../checked/reports.ts"
import type { Known, Timeline } from "../../checked/timelines.ts"
import type { Tracer } from "../../checked/Tracer.ts"
import type { GraphRef, StreamRef } from "../../CudaRuntime.ts"
import type { Director, WorkUnit } from "./Director.ts"

/** Two works that may run in either order, by the names of the director. `first` was enqueued first. */
export class Pair {
  readonly first: string
  readonly second: string
  readonly #explain: () => Race
  #race: Race | undefined
  constructor(first: string, second: string, explain: () => Race) {
    this.first = first
    this.second = second
    this.#explain = explain
  }

  /** The report. Finding out the lines of the program takes much longer than a run, so it is made only if somebody asks for it. */
  get race(): Race {
    return this.#race ??= this.#explain()
  }
}

/** Work that the host has not waited for. */
interface Active {
  readonly names: ReadonlyArray<string>
  readonly work: Work
  readonly timeline: Timeline
  readonly epoch: number
  readonly known: Known
}

/** As many pairs as are kept. */
const mostPairs = 5000

/** Once so many works are active, those that the host has waited for are dropped. */
const fewActive = 32

export class Follower implements Tracer {
  readonly pairs: Array<Pair> = []
  readonly #director: Director
  readonly #units = new WeakMap<Work, WorkUnit>()
  readonly #names = new WeakMap<Work, ReadonlyArray<string>>()
  readonly #opened = new WeakMap<Work, number>()
  readonly #nodeRaces = new WeakMap<GraphRef, ReadonlyArray<NodeRace>>()
  #active: Array<Active> = []
  #dropAt = fewActive
  #last: ReadonlyArray<string> = []

  constructor(director: Director) {
    this.#director = director
  }

  begin(work: Work, stream: StreamRef): void {
    const unit = this.#director.begin(work.operation, stream)
    this.#units.set(work, unit)
    this.#names.set(work, [unit.name])
  }

  end(work: Work, stream: StreamRef): void {
    const unit = this.#units.get(work)
    if (unit !== undefined) this.#director.end(unit, stream)
  }

  opened(open: OpenWork, stream: StreamRef): void {
    this.#opened.set(open, this.#director.countOf(stream))
  }

  closing(open: OpenWork, stream: StreamRef): void {
    this.#names.set(open, this.#director.worksSince(stream, this.#opened.get(open) ?? 0))
  }

  committed(work: Work, timeline: Timeline, known: Known, since: number | undefined): void {
    const names = this.#names.get(work) ?? []
    this.#last = names
    if (work.uses.length === 0 || names.length === 0) return
    this.#drop()
    for (const earlier of this.#active) {
      if (isOrdered(pointOf(earlier), timeline, known, since)) continue
      const race = raceBetween(earlier, work, timeline, known)
      if (race !== undefined) this.#addAll(earlier.names, names, race)
    }
    this.#active.push({ names, work, timeline, epoch: since ?? timeline.epoch, known })
  }

  looks(use: Use, operation: string, where: Where | undefined): void {
    const writes = this.#active.flatMap((active) => {
      const { epoch, timeline, work } = active
      if (work.isVoid || timeline.done >= epoch) return []
      const write = work.uses.find((other) => other.kind !== "reads" && overlaps(other, use))
      return write === undefined ? [] : [{ active, write }]
    })
    // Who looks at nothing that is in flight has waited, so nothing can come before.
    if (writes.length === 0) return
    const look = this.#director.look(operation)
    if (!covers(writes.map(({ write }) => write), use)) return
    for (const { active, write } of writes) {
      this.#addAll(active.names, [look], () => explainHost(accessOf(active, write), use, operation, where))
    }
  }

  launched(graph: GraphRef): void {
    const races = this.#racesOf(graph)
    for (const name of this.#last) {
      for (const { first, race, second } of races) {
        this.#addAll([`${name}/n${first.index}`], [`${name}/n${second.index}`], () => race)
      }
    }
  }

  #racesOf(graph: GraphRef): ReadonlyArray<NodeRace> {
    const known = this.#nodeRaces.get(graph)
    if (known !== undefined) return known
    // Nodes in bodies run as often as their condition says, so they have no names.
    const races = graph.nodes.length > mostNodes
      ? []
      : nodeRacesIn(graph).filter(({ first, second }) => first.inside === undefined && second.inside === undefined)
    this.#nodeRaces.set(graph, races)
    return races
  }

  #addAll(firsts: ReadonlyArray<string>, seconds: ReadonlyArray<string>, explain: () => Race): void {
    for (const first of firsts) {
      for (const second of seconds) {
        if (this.pairs.length < mostPairs) this.pairs.push(new Pair(first, second, explain))
      }
    }
  }

  #drop(): void {
    if (this.#active.length < this.#dropAt) return
    this.#active = this.#active.filter(({ epoch, timeline, work }) => !work.isVoid && timeline.done < epoch)
    this.#dropAt = Math.max(fewActive, 2 * this.#active.length)
  }
}

const accessOf = ({ epoch, known, timeline, work }: Active, use: Use): Access =>
  new Access(timeline, epoch, known, use, work)

const pointOf = (active: Active): Access => accessOf(active, active.work.uses[0]!)

const raceBetween = (earlier: Active, work: Work, timeline: Timeline, known: Known): (() => Race) | undefined => {
  for (const use of work.uses) {
    const other = earlier.work.uses.find((other) =>
      (other.kind !== "reads" || use.kind !== "reads") && overlaps(other, use)
    )
    if (other === undefined) continue
    const from = other.memory.address + other.offset
    const bytes = { from, to: from + other.byteLength }
    return () => explainRace(accessOf(earlier, other), { timeline, known, work, use }, bytes)
  }
  return undefined
}

/** Whether uses cover all bytes of another. */
const covers = (uses: ReadonlyArray<Use>, { byteLength, memory, offset }: Use): boolean => {
  const start = memory.address + offset
  let covered = start
  const ranges = uses.map((use) => [use.memory.address + use.offset, use.byteLength] as const)
  for (const [from, length] of ranges.toSorted(([a], [b]) => a - b)) {
    if (from > covered) return false
    covered = Math.max(covered, from + length)
  }
  return covered >= start + byteLength
}
