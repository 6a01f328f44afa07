/**
 * Explorations of orders as text.
 */
import type { Comparison, ExploredRace, Finding, Report } from "../../CudaChecker.ts"
import { drawSvg, drawText } from "./drawings.ts"
import { parsePlan } from "./holds.ts"
import { printDifference } from "./outcomes.ts"

const count = (number: number, what: string): string => `${number} ${what}${number === 1 ? "" : "s"}`

const indent = (text: string, by = "  "): ReadonlyArray<string> => text.split("\n").map((line) => `${by}${line}`)

/** The works that a schedule names. */
const worksIn = (schedule: string): ReadonlySet<string> => {
  const plan = parsePlan(schedule)
  return new Set("holds" in plan ? plan.holds.flatMap(({ until, work }) => [work, until]) : [])
}

const runsOf = ({ changed, undisturbed }: Comparison<unknown, unknown>) => [
  { title: "As it happens", ran: undisturbed.ran },
  { title: "With this schedule", ran: changed.ran }
]

export const timelinesOf = (comparison: Comparison<unknown, unknown>): ReadonlyArray<string> =>
  drawText(runsOf(comparison), worksIn(comparison.changed.schedule))

export const pictureOf = (comparison: Comparison<unknown, unknown>): string =>
  drawSvg(runsOf(comparison), worksIn(comparison.changed.schedule))

export const describeComparison = (comparison: Comparison<unknown, unknown>): ReadonlyArray<string> => {
  const { changed, difference } = comparison
  const letGo = changed.letGo.length === 0 || changed.schedule.startsWith("seed")
    ? []
    : [`Started before what it was held for, because the program waited for it: ${few(changed.letGo)}`]
  return [
    difference === undefined ? "Nothing differs." : `Differs: ${printDifference(difference)}`,
    "Schedule, for CudaChecker.replay:",
    ...indent(changed.schedule),
    ...letGo,
    ...timelinesOf(comparison)
  ]
}

const few = (names: ReadonlyArray<string>): string =>
  names.length <= 5 ? names.join(", ") : `${names.slice(0, 5).join(", ")} and ${names.length - 5} more`

const withoutRace = "An order that changes what comes of the program, without a race. " +
  "The program looks at times, at what is done so far, or at memory that the checker does not know."

const headOf = ({ races }: Finding<unknown, unknown>): string => {
  if (races.length === 0) return withoutRace
  return races.length === 1
    ? "A race that changes what comes of the program:"
    : `${races.length} races that together change what comes of the program:`
}

const describeFinding = (finding: Finding<unknown, unknown>, index: number): ReadonlyArray<string> => [
  `${index + 1}. ${headOf(finding)}`,
  ...[...finding.races.flatMap(({ message }) => message.split("\n")), ...describeComparison(finding)]
    .map((line) => `   ${line}`)
]

const verdicts: { readonly [V in ExploredRace["verdict"]]: string } = {
  changes: "changes what comes of the program",
  harmless: "harmless: both orders come to the same",
  notReordered: "never ran in the other order: something else orders the two, such as what the host does",
  notTried: "not tried, because of maxRuns or timeLimit"
}

/** Races with the same two operations at the same places are described once. */
const groupsOf = (races: ReadonlyArray<ExploredRace>): ReadonlyArray<ReadonlyArray<ExploredRace>> => {
  const groups = new Map<string, Array<ExploredRace>>()
  for (const race of races) {
    const { first, second } = race.race
    const key = [race.verdict, ...[first, second].map((one) => `${one.operation} ${one.argument} ${one.frame}`)].join(
      " "
    )
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [race])
    else group.push(race)
  }
  return [...groups.values()]
}

const describeRaces = (races: ReadonlyArray<ExploredRace>): ReadonlyArray<string> =>
  groupsOf(races).flatMap(([race, ...others]) => [
    `${race!.race.message.split("\n").slice(0, 3).join("\n")}`,
    `  ${verdicts[race!.verdict]}${others.length === 0 ? "" : ` (and ${others.length} more like it)`}`
  ])

/** A report in lines: a summary, the findings, and the races that change nothing. */
export const describeReport = (
  { findings, isExhausted, races, runs }: Report<unknown, unknown>
): ReadonlyArray<string> => {
  const others = races.filter(({ verdict }) => verdict !== "changes")
  return [
    `${count(runs, "run")}: ${count(races.length, "race")}, ${count(findings.length, "other outcome")}`,
    ...(isExhausted ? [] : ["Not all orders of the races were tried, because of maxRuns or timeLimit."]),
    ...findings.flatMap(describeFinding),
    ...describeRaces(others)
  ]
}
