/**
 * Reports of explorations as text.
 */
import { CudaError } from "../../CudaError.ts"
import type { Fault, Note, Problem, Report, Run, SingleFault } from "../CudaFaults.ts"
import { faultsOf } from "./plan.ts"

const count = (number: number, what: string): string => `${number} ${what}${number === 1 ? "" : "s"}`

/** A fault in words. */
export const describeFault = (fault: Fault | undefined): string =>
  fault === undefined ? "undisturbed" : faultsOf(fault).map(describeSingle).join(", then ")

const describeSingle = (fault: SingleFault): string => {
  const call = `${fault.operation}, call ${fault.occurrence}`
  if ("interrupt" in fault) return `interrupted ${fault.interrupt} ${call}`
  const times = fault.times === undefined || fault.times === 1 ? "" : ` ${fault.times} times`
  return `${call}, fails${times} with ${fault.status}`
}

const describeFailure = (failure: unknown): string => {
  if (failure instanceof CudaError) return failure.message
  if (failure instanceof Error) return `${failure.name}: ${failure.message}`
  return String(failure)
}

const describeProblem = (problem: Problem<unknown>): string => {
  switch (problem._tag) {
    case "Leaked":
      return `left live: ${Object.entries(problem.left).map(([name, left]) => `${name} ${left}`).join(", ")}`
    case "Hung":
      return `hung: ${phases[problem.phase]}`
    case "NeverFinished":
      return `a wait can never end: ${problem.error.message}`
    case "Died":
      return `died: ${describeFailure(problem.defect)}`
    case "Interrupted":
      return "ended as interrupted, although nothing interrupted it"
    case "ReleaseFailed":
      return `another release failed: ${problem.error.message}`
    case "UnexpectedFailure":
      return `failed unexpectedly: ${describeFailure(problem.failure)}`
  }
}

const phases = {
  program: "the program did not end in time",
  interruption: "the program could not be interrupted",
  runtime: "the runtime could not be built or released in time"
}

const describeNote = (note: Note<unknown>): string => {
  switch (note._tag) {
    case "Succeeded":
      return "succeeded, although a call failed"
    case "Unrelated":
      return `failed without naming the fault: ${describeFailure(note.failure)}`
    case "NotReached":
      return "the program did not make this call"
  }
}

const describeRun = ({ fault, notes, problems }: Run<unknown>): ReadonlyArray<string> => [
  describeFault(fault),
  ...problems.map((problem) => `  problem: ${describeProblem(problem)}`),
  ...notes.map((note) => `  note: ${describeNote(note)}`),
  ...(problems.length > 0 && fault !== undefined ? [`  replay: { only: ${JSON.stringify(fault)} }`] : [])
]

const leftOut = (left: number, made: number, what: string, why: string): ReadonlyArray<string> =>
  left === 0 ? [] : [`${count(left, what)} of ${made + left} left out, because of ${why}`]

/** A report in lines: a summary, and every run that shows something. */
export const describeReport = (
  { runs, skipped, skippedPairs, steps, undisturbed }: Report<unknown>
): ReadonlyArray<string> => {
  const all = [undisturbed, ...runs]
  const problems = all.flatMap((run) => run.problems)
  const notes = all.flatMap((run) => run.notes)
  const pairs = runs.filter(({ fault }) => fault?.followedBy !== undefined).length
  const left = [
    ...leftOut(skipped.length, runs.length - pairs, "run", "maxRuns"),
    ...leftOut(skippedPairs, pairs, "pair", "maxPairs")
  ]
  return [
    `${count(runs.length, "run")} of a program with ${count(steps.length, "call")}: ` +
    `${count(problems.length, "problem")}, ${count(notes.length, "note")}`,
    ...left,
    ...all.filter((run) => run.problems.length > 0).flatMap(describeRun),
    ...all.filter((run) => run.problems.length === 0 && run.notes.length > 0).flatMap(describeRun)
  ]
}
