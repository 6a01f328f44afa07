/**
 * Schedules as text: which work is held until which other work has ended, or the seed of a random schedule.
 *
 * Work is named by its stream and its number among the works of the stream: `16:2` is the second on stream 16, `0@1:2` the second on
 * stream 0 of device 1, and `16:2/n5` its node 5 if it is a launch of a graph. `host:3` is the third time that the host takes bytes.
 */

/** Work that does not start before other work has ended. */
export interface Hold {
  readonly work: string
  readonly until: string
}

/** A schedule: holds, with the most important first, or chance. */
export type Plan = { readonly holds: ReadonlyArray<Hold> } | { readonly seed: number }

export const undisturbed: Plan = { holds: [] }

export const hostLane = "host"

const name = String.raw`(?:host:\d+|-?\d+(?:@\d+)?:\d+(?:/n\d+)?)`
const holdLine = new RegExp(`^hold (${name}) until (${name})$`)
const seedLine = /^seed (\d+)$/

const nothing = /^\s*(?:#.*)?$/

/** Reads a schedule. Returns the line that is wrong, if there is one. */
export const parsePlan = (text: string): Plan | { readonly wrong: string } => {
  const holds: Array<Hold> = []
  let seed: number | undefined
  for (const line of text.split("\n")) {
    if (nothing.test(line)) continue
    const statement = line.replace(/\s+#.*$/, "").trim().replace(/\s+/g, " ")
    const hold = holdLine.exec(statement)
    const seeded = seedLine.exec(statement)
    if (hold !== null) holds.push({ work: hold[1]!, until: hold[2]! })
    else if (seeded !== null) seed = Number(seeded[1])
    else return { wrong: line }
  }
  if (seed === undefined) return { holds }
  return holds.length === 0 ? { seed } : { wrong: `seed ${seed}` }
}

/** Prints a schedule, with what the works are as comments. */
export const printPlan = (plan: Plan, labelOf: (work: string) => string | undefined): string =>
  "seed" in plan ? `seed ${plan.seed}` : plan.holds.map((hold) => printHold(hold, labelOf)).join("\n")

const printHold = ({ until, work }: Hold, labelOf: (work: string) => string | undefined): string => {
  const [held, first] = [labelOf(work), labelOf(until)]
  const comment = held === undefined || first === undefined ? "" : ` # ${held} after ${first}`
  return `hold ${work} until ${until}${comment.replaceAll("\n", " ")}`
}

/** The stream that work is on, as in its name. */
export const laneOf = (work: string): string => work.slice(0, work.indexOf(":"))

/** The place of work on its stream. */
const numberOf = (work: string): number => parseInt(work.slice(work.indexOf(":") + 1))

/** Returns false if holds contradict each other, or the order of streams: then some of them cannot be kept. */
export const areConsistent = (holds: ReadonlyArray<Hold>): boolean => {
  const after = new Map<string, Set<string>>()
  for (const { until, work } of holds) {
    const known = after.get(until)
    if (known === undefined) after.set(until, new Set([work]))
    else known.add(work)
    if (!after.has(work)) after.set(work, new Set())
  }
  addStreams(after)
  return isAcyclic(after)
}

/** Adds the order of the works on each stream. */
const addStreams = (after: Map<string, Set<string>>): void => {
  const lanes = new Map<string, Array<string>>()
  for (const work of after.keys()) {
    const lane = lanes.get(laneOf(work))
    if (lane === undefined) lanes.set(laneOf(work), [work])
    else lane.push(work)
  }
  for (const works of lanes.values()) {
    const sorted = works.toSorted((one, other) => numberOf(one) - numberOf(other))
    for (const [index, work] of sorted.entries()) {
      const next = sorted.slice(index + 1).find((other) => numberOf(other) > numberOf(work))
      for (const other of sorted) {
        if (next !== undefined && numberOf(other) === numberOf(next)) after.get(work)!.add(other)
      }
    }
  }
}

const isAcyclic = (after: ReadonlyMap<string, ReadonlySet<string>>): boolean => {
  const before = new Map(Array.from(after.keys(), (work) => [work, 0]))
  for (const works of after.values()) for (const work of works) before.set(work, before.get(work)! + 1)
  const free = Array.from(before.keys()).filter((work) => before.get(work) === 0)
  for (const work of free) {
    for (const other of after.get(work)!) {
      const left = before.get(other)! - 1
      before.set(other, left)
      if (left === 0) free.push(other)
    }
  }
  return free.length === before.size
}

/** A number from 0 to below 1, from a seed and a name. It does not depend on what else happens. */
export const chance = (seed: number, name: string): number => {
  let hash = (0x811c9dc5 ^ Math.imul(seed + 1, 0x9e3779b1)) >>> 0
  for (let index = 0; index < name.length; index++) hash = Math.imul(hash ^ name.charCodeAt(index), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return ((hash ^ (hash >>> 16)) >>> 0) / 2 ** 32
}
