/**
 * The search for orders that change what comes of a program.
 *
 * Every run shows which pairs of works race, and in which order they ran. From each run whose orders are new, each race is turned around,
 * with the others held in the order of that run. So from the undisturbed run, first each race alone is tried in its other order, then
 * combinations. Random schedules come last.
 */
import * as Effect from "effect/Effect"
import type { Provided } from "../fresh.ts"
import type { Pair } from "./Follower.ts"
import { areConsistent, undisturbed } from "./holds.ts"
import type { Hold, Plan } from "./holds.ts"
import { differenceOf } from "./outcomes.ts"
import type { Difference } from "./outcomes.ts"
import { runWith } from "./run.ts"
import type { Observed, Setting } from "./run.ts"
import { shrink } from "./shrink.ts"

export interface Limits {
  readonly seed: number
  /** The number of runs with races turned around. */
  readonly maxRuns: number
  /** The number of random schedules. */
  readonly schedules: number
  /** Milliseconds. */
  readonly timeLimit: number
}

/** A race, and what its orders show. */
export interface Tried {
  readonly pair: Pair
  verdict: "changes" | "same" | "fixed" | "untried"
  difference: Difference | undefined
}

/** A run that ended differently. */
export interface Finding<A, E> {
  readonly difference: Difference
  readonly run: Observed<A, E>
  /** The races whose order in the run is not that of the undisturbed one. */
  readonly turned: ReadonlyArray<Pair>
}

export interface Searched<A, E> {
  readonly base: Observed<A, E>
  readonly tried: ReadonlyArray<Tried>
  readonly findings: ReadonlyArray<Finding<A, E>>
  readonly runs: number
  readonly isExhausted: boolean
}

/** The most findings that are kept, and the most runs to make the holds of one fewer. */
const mostFindings = 20
const mostShrinking = 60

/** With more races, only the one that is turned around is held, and combinations are not tried. */
const mostHeld = 400

const keyOf = ({ first, second }: Pick<Pair, "first" | "second">): string => `${first} ${second}`

/** Whether the work that was enqueued first also ended first; undefined if one of them did not run. */
const isInOrder = (run: Observed<unknown, unknown>, { first, second }: Pair): boolean | undefined => {
  const [one, other] = [run.placeOf(first), run.placeOf(second)]
  return one === undefined || other === undefined ? undefined : one < other
}

const holdFor = ({ first, second }: Pair, isFirst: boolean): Hold =>
  isFirst ? { work: second, until: first } : { work: first, until: second }

/** Pairs of works once, however many bytes they share. */
const distinct = (pairs: ReadonlyArray<Pair>): ReadonlyArray<Pair> =>
  Array.from(new Map(pairs.toReversed().map((pair) => [keyOf(pair), pair])).values()).toReversed()

/** The orders of the races of a run, or those that turning one of them around is meant to lead to. */
const signatureOf = (run: Observed<unknown, unknown>, turned?: Pair): string => {
  const orders = distinct(run.pairs).map((pair) => {
    const isFirst = isInOrder(run, pair)
    return `${keyOf(pair)} ${pair === turned ? isFirst === false : isFirst}`
  })
  return orders.toSorted().join("\n")
}

/** The holds that turn a race around, and those that keep the others as they were in a run. */
const turning = (run: Observed<unknown, unknown>, pair: Pair): ReadonlyArray<Hold> => {
  const turned = holdFor(pair, isInOrder(run, pair) === false)
  const others = distinct(run.pairs)
  if (others.length > mostHeld) return [turned]
  const kept = others.flatMap((other) => {
    const isFirst = isInOrder(run, other)
    return isFirst === undefined || keyOf(other) === keyOf(pair) ? [] : [holdFor(other, isFirst)]
  })
  return [turned, ...kept]
}

/** Where the two uses of a race are in the program. */
const siteOf = ({ race: { first, second } }: Pair): string =>
  [first, second].map(({ argument, frame, operation }) => `${operation} ${argument} ${frame}`).join("\n")

/** One race of each place first, then the second ones, and so on. */
const spreadOut = (pairs: ReadonlyArray<Pair>): ReadonlyArray<Pair> => {
  const counts = new Map<string, number>()
  const ranked = pairs.map((pair) => {
    const site = siteOf(pair)
    const rank = counts.get(site) ?? 0
    counts.set(site, rank + 1)
    return { pair, rank }
  })
  return ranked.toSorted((one, other) => one.rank - other.rank).map(({ pair }) => pair)
}

export const search = Effect.fnUntraced(function*<A, E, R, ROut, ELayer, RIn>(
  setting: Setting<A, E, R, ROut, ELayer, RIn>,
  { maxRuns, schedules, seed, timeLimit }: Limits
): Effect.fn.Return<Searched<A, E>, ELayer, RIn | Provided<R, ROut>> {
  const begun = performance.now()
  const base = yield* runWith(setting, undisturbed, Infinity)
  const tried = new Map(
    spreadOut(distinct(base.pairs)).map((pair): [string, Tried] => [
      keyOf(pair),
      { pair, verdict: "untried", difference: undefined }
    ])
  )
  const findings: Array<Finding<A, E>> = []
  /** The orders that runs have had, and those that were tried. */
  const seen = new Set([signatureOf(base)])
  const meantOrders = new Set<string>()
  const queue: Array<Observed<A, E>> = []
  let runs = 1
  if (!base.isSimulated) return { base, tried: [...tried.values()], findings, runs, isExhausted: false }
  const isLate = () => performance.now() - begun > timeLimit
  const isOver = (limit: number) => runs > limit || isLate()

  /** Runs a schedule, and keeps what is new about it. */
  const runNew = Effect.fnUntraced(function*(plan: Plan) {
    runs++
    const run = yield* runWith(setting, plan, base.operations)
    const signature = signatureOf(run)
    if (!seen.has(signature)) {
      seen.add(signature)
      queue.push(run)
    }
    const difference = differenceOf(base.outcome, run.outcome)
    if (difference !== undefined) noteFinding(findings, base, run, difference)
    return { run, difference }
  })

  /** Turns a race of the undisturbed run around: with all others as they were, or if that cannot be, alone. */
  const turnAround = Effect.fnUntraced(function*(race: Tried) {
    const { pair } = race
    const natural = isInOrder(base, pair)
    if (natural === undefined) return
    const holds = turning(base, pair)
    meantOrders.add(signatureOf(base, pair))
    const alone = holds.slice(0, 1)
    for (const plan of holds.length > 1 && areConsistent(holds) ? [holds, alone] : [alone]) {
      const { difference, run } = yield* runNew({ holds: plan })
      const order = isInOrder(run, pair)
      if (difference !== undefined && order !== natural) {
        race.verdict = "changes"
        race.difference = difference
        return
      }
      race.verdict = order === !natural ? "same" : "fixed"
      if (race.verdict === "same") return
    }
  })

  let isExhausted = base.pairs.length <= mostHeld
  for (const race of tried.values()) {
    if (isOver(maxRuns)) isExhausted = false
    else yield* turnAround(race)
  }
  for (const run of queue) {
    if (run.pairs.length > mostHeld) {
      isExhausted = false
      continue
    }
    for (const pair of distinct(run.pairs)) {
      if (isInOrder(run, pair) === undefined) continue
      const meant = signatureOf(run, pair)
      const holds = turning(run, pair)
      if (seen.has(meant) || meantOrders.has(meant) || !areConsistent(holds)) continue
      if (isOver(maxRuns)) {
        isExhausted = false
        break
      }
      meantOrders.add(meant)
      yield* runNew({ holds })
    }
  }
  const last = runs + schedules
  for (let index = 0; index < schedules && !isOver(last); index++) yield* runNew({ seed: seed + index })

  const small: Array<Finding<A, E>> = []
  for (const finding of findings) {
    const { run, runs: more } = yield* shrinkFinding(setting, base, finding, isLate)
    runs += more
    small.push({ ...finding, run, turned: heldIn(run, turnedIn(base, run)) })
  }
  return { base, tried: [...tried.values()], findings: small, runs, isExhausted }
})

/** Keeps a run that came to something new. */
const noteFinding = <A, E>(
  findings: Array<Finding<A, E>>,
  base: Observed<A, E>,
  run: Observed<A, E>,
  difference: Difference
): void => {
  const isKnown = findings.some((other) => differenceOf(other.run.outcome, run.outcome) === undefined)
  if (isKnown || findings.length >= mostFindings) return
  findings.push({ difference, run, turned: turnedIn(base, run) })
}

/** The races that ran in another order than in the undisturbed run. */
const turnedIn = (base: Observed<unknown, unknown>, run: Observed<unknown, unknown>): ReadonlyArray<Pair> =>
  distinct([...base.pairs, ...run.pairs]).filter((pair) => {
    const [before, now] = [isInOrder(base, pair), isInOrder(run, pair)]
    return before !== undefined && now !== undefined && before !== now
  })

/** The races that the holds of a run are about, rather than those that run in another order because of them. */
const heldIn = ({ plan }: Observed<unknown, unknown>, turned: ReadonlyArray<Pair>): ReadonlyArray<Pair> => {
  if ("seed" in plan) return turned
  const held = turned.filter(({ first, second }) =>
    plan.holds.some(({ until, work }) => (work === first && until === second) || (work === second && until === first))
  )
  return held.length === 0 ? turned : held
}

/** Finds the smallest set of holds with the same outcome. What needs chance stays with its seed. */
const shrinkFinding = Effect.fnUntraced(function*<A, E, R, ROut, ELayer, RIn>(
  setting: Setting<A, E, R, ROut, ELayer, RIn>,
  base: Observed<A, E>,
  finding: Finding<A, E>,
  isLate: () => boolean
): Effect.fn.Return<
  { readonly run: Observed<A, E>; readonly runs: number },
  ELayer,
  RIn | Provided<R, ROut>
> {
  let { run } = finding
  let runs = 0
  const shows = Effect.fnUntraced(function*(holds: ReadonlyArray<Hold>) {
    if (runs >= mostShrinking || isLate() || holds.length === 0) return false
    runs++
    const other = yield* runWith(setting, { holds }, base.operations)
    if (differenceOf(finding.run.outcome, other.outcome) !== undefined) return false
    run = other
    return true
  })
  const { plan } = finding.run
  const turned = finding.turned.map((pair) => holdFor(pair, isInOrder(finding.run, pair) === true))
  for (const candidates of [turned, "holds" in plan ? plan.holds : []]) {
    if (!(yield* shows(candidates))) continue
    yield* shrink(candidates, shows)
    break
  }
  return { run, runs }
})
