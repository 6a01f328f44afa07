/**
 * The plan of an exploration: for the calls that a program makes, the faults to try.
 */
import { statuses } from "../../cuda/status.ts"
import type { StatusTag } from "../../cuda/status.ts"
import type { FailingCall, Fault, InterruptedCall, Step } from "../CudaFaults.ts"
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

/** All faults of these steps, in order. */
export const planFor = (
  steps: ReadonlyArray<Step>,
  tags: ReadonlyArray<StatusTag>,
  moments: ReadonlyArray<InterruptedCall["interrupt"]>
): ReadonlyArray<Fault> => steps.flatMap((step) => [...failures(step, tags), ...interruptions(step, moments)])

/** A number between 0 and 1; those of successive indices are spread evenly. */
const spread = (index: number): number => (index * ((Math.sqrt(5) - 1) / 2)) % 1

/** Gives each fault its place in the order in which faults are chosen: all kinds in turn, and each from all over the program. */
const rank = (faults: ReadonlyArray<Fault>): ReadonlyMap<Fault, number> => {
  const byKind = new Map<string, Array<Fault>>()
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
export const choose = (
  faults: ReadonlyArray<Fault>,
  most: number
): { readonly chosen: ReadonlyArray<Fault>; readonly skipped: ReadonlyArray<Fault> } => {
  if (faults.length <= most) return { chosen: faults, skipped: [] }
  const ranks = rank(faults)
  const chosen = new Set(faults.toSorted((one, other) => ranks.get(one)! - ranks.get(other)!).slice(0, most))
  return {
    chosen: faults.filter((fault) => chosen.has(fault)),
    skipped: faults.filter((fault) => !chosen.has(fault))
  }
}
