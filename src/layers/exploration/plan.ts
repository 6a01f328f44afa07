/**
 * The plan of an exploration: for the calls that a program makes, the faults to try.
 */
import { statuses } from "../../cuda/status.ts"
import type { StatusTag } from "../../cuda/status.ts"
import type { FailingCall, Fault, InterruptedCall, Run, SingleFault, Step } from "../CudaFaults.ts"
import { operations } from "../runtime/operations.ts"
import type { Operation, OperationName } from "../runtime/operations.ts"

/** How often an allocation is tried, at most, before a program sees that memory has run out. */
const mostAttempts = 4

/** The operations whose driver calls allocate something. */
const allocating: ReadonlySet<OperationName> = new Set<OperationName>([
  "CudaStream.make",
  "CudaEvent.make",
  "CudaMemory.allocate",
  "CudaMemory.allocateManaged",
  "CudaMemory.allocateHost",
  "CudaMemory.pin",
  "CudaMemoryPool.make",
  "CudaMemoryPool.allowAccess",
  "CudaDevice.enablePeerAccess",
  "CudaInterprocess.allocate",
  "CudaModule.load",
  "CudaProgram.compile",
  "CudaKernel.get",
  "CudaKernel.launch",
  "CudaGraph.instantiate",
  "CudaGraph.updateOrReplace",
  "CudaGraph.upload",
  "CudaGraph.launch",
  "CudaLibrary.handle"
])

/** The operations whose modules reclaim memory and try again. */
const retried: ReadonlySet<OperationName> = new Set<OperationName>([
  "CudaMemory.allocate",
  "CudaMemory.allocateManaged"
])

/** By name; several members may share one. */
const byName: ReadonlyMap<OperationName, Operation> = new Map(
  Object.values(operations).map((operation) => [operation.name, operation])
)

export const isOperation = (name: OperationName): boolean => byName.has(name)

export const kindOf = (name: OperationName): Operation["kind"] | undefined => byName.get(name)?.kind

const canReturn = (name: OperationName, status: StatusTag): boolean => {
  if (status === "OutOfMemory") return allocating.has(name)
  return !statuses[status].isSticky || kindOf(name) !== "contextFree"
}

const failures = ({ occurrence, operation }: Step, tags: ReadonlyArray<StatusTag>): ReadonlyArray<FailingCall> =>
  tags.filter((status) => canReturn(operation, status)).flatMap((status) => {
    const once = { operation, occurrence, status }
    return status === "OutOfMemory" && retried.has(operation) ? [once, { ...once, times: mostAttempts }] : [once]
  })

const interruptions = (
  { occurrence, operation }: Step,
  moments: ReadonlyArray<InterruptedCall["interrupt"]>
): ReadonlyArray<InterruptedCall> => moments.map((interrupt) => ({ operation, occurrence, interrupt }))

/** Which faults are tried. */
export interface FaultKinds {
  /** Undefined for all. */
  readonly operations: ReadonlyArray<OperationName> | undefined
  readonly statuses: ReadonlyArray<StatusTag>
  readonly moments: ReadonlyArray<InterruptedCall["interrupt"]>
}

/** All faults of these steps, in order. */
export const planFor = (
  steps: ReadonlyArray<Step>,
  { moments, operations, statuses }: FaultKinds
): ReadonlyArray<SingleFault> =>
  steps
    .filter(({ operation }) => operations?.includes(operation) ?? true)
    .flatMap((step) => [...failures(step, statuses), ...interruptions(step, moments)])

/** The faults of a run, in the order of their calls. */
export const faultsOf = (fault: Fault): ReadonlyArray<SingleFault> =>
  fault.followedBy === undefined ? [fault] : [fault, fault.followedBy]

const timesOf = (fault: SingleFault): number => "status" in fault ? fault.times ?? 1 : 1

/** Whether a second fault is at a later call than the first one, as far as their operations tell. */
export const comesAfter = (second: SingleFault, first: SingleFault): boolean =>
  second.operation !== first.operation || second.occurrence >= first.occurrence + timesOf(first)

const isSticky = (fault: SingleFault): boolean => "status" in fault && statuses[fault.status].isSticky

/** Whether a second fault shows anything after the first one. */
const isWorthTrying = (second: SingleFault, first: SingleFault): boolean => {
  if (!comesAfter(second, first)) return false
  if ("interrupt" in second) return !("interrupt" in first)
  // After a sticky status, every call that needs a context fails anyway.
  return !isSticky(first) || kindOf(second.operation) === "contextFree"
}

/** A run with one fault, and the calls that the program made from then on. */
export interface Disturbed {
  readonly run: Pick<Run<unknown>, "fault" | "problems">
  readonly stepsAfter: ReadonlyArray<Step>
}

const secondsOf = ({ run: { fault }, stepsAfter }: Disturbed, kinds: FaultKinds): ReadonlyArray<SingleFault> =>
  fault === undefined ? [] : planFor(stepsAfter, kinds).filter((second) => isWorthTrying(second, fault))

/** Chooses pairs of faults: some after every first fault, and counts those that are left out. */
export const choosePairs = (
  runs: ReadonlyArray<Disturbed>,
  kinds: FaultKinds,
  most: number
): { readonly chosen: ReadonlyArray<Fault>; readonly skipped: number } => {
  const fine = runs.filter(({ run }) => run.problems.length === 0)
  const shares = share(fine.map((disturbed) => secondsOf(disturbed, kinds).length), most)
  let skipped = 0
  const chosen = fine.flatMap((disturbed, index) => {
    const seconds = choose(secondsOf(disturbed, kinds), shares[index]!)
    skipped += seconds.skipped.length
    return seconds.chosen.map((followedBy) => ({ ...disturbed.run.fault!, followedBy }))
  })
  return { chosen, skipped }
}

/** Shares a number out: equally, but to nobody more than the size. What is left over goes to some from all over the list. */
const share = (sizes: ReadonlyArray<number>, most: number): ReadonlyArray<number> => {
  const given = (level: number) => sizes.reduce((sum, size) => sum + Math.min(size, level), 0)
  let level = 0
  while (level < Math.max(0, ...sizes) && given(level + 1) <= most) level++
  const shares = sizes.map((size) => Math.min(size, level))
  const wanting = sizes.flatMap((size, index) => size > level ? [index] : [])
    .map((index, turn) => ({ index, place: spread(turn) }))
    .toSorted((one, other) => one.place - other.place)
  for (const { index } of wanting.slice(0, most - given(level))) shares[index]!++
  return shares
}

/** A number between 0 and 1; those of successive indices are spread evenly. */
const spread = (index: number): number => (index * ((Math.sqrt(5) - 1) / 2)) % 1

/** Gives each fault its place in the order in which faults are chosen: all kinds in turn, and each from all over the program. */
const rank = <A extends SingleFault>(faults: ReadonlyArray<A>): ReadonlyMap<A, number> => {
  const byKind = new Map<string, Array<A>>()
  for (const fault of faults) {
    const kind = "interrupt" in fault ? fault.interrupt : fault.status
    const alike = byKind.get(kind)
    if (alike === undefined) byKind.set(kind, [fault])
    else alike.push(fault)
  }
  const turns = Array.from(byKind.values(), (alike) =>
    alike
      .map((fault, index) => ({ fault, place: spread(index) }))
      .toSorted((one, other) => one.place - other.place))
  return new Map(turns.flatMap((alike) => alike.map(({ fault }, turn) => [fault, turn])))
}

/** Chooses a number of faults, and says which are left out. */
export const choose = <A extends SingleFault>(
  faults: ReadonlyArray<A>,
  most: number
): { readonly chosen: ReadonlyArray<A>; readonly skipped: ReadonlyArray<A> } => {
  if (faults.length <= most) return { chosen: faults, skipped: [] }
  const ranks = rank(faults)
  const chosen = new Set(faults.toSorted((one, other) => ranks.get(one)! - ranks.get(other)!).slice(0, most))
  return {
    chosen: faults.filter((fault) => chosen.has(fault)),
    skipped: faults.filter((fault) => !chosen.has(fault))
  }
}
