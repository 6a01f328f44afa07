/**
 * Explains a race: the edge that is missing, and the call that would add it.
 */
import type { Access, Use, Where, Work } from "./Checks.ts"
import type { Changed } from "./Copies.ts"
import type { Freed } from "./FreedMemory.ts"
import type { HostWrite } from "./HostMemory.ts"
import type { Piece } from "./Pieces.ts"
import { deadlock, invertedOrder, raceOf, usedAfterRelease } from "./reports.ts"
import type { AccessOfFiber, CheckedAccess, Deadlock, InvertedOrder, Race, UsedAfterRelease } from "./reports.ts"
import { epochIn } from "./timelines.ts"
import type { Known, Timeline } from "./timelines.ts"
import type { Order, Turn, Waiting } from "./Turns.ts"
import type { RawUse } from "./uses.ts"

/** The name of a place in the program, and where it is in the source. */
export const printWhere = (where: Where | undefined): string | undefined => {
  if (where === undefined) return undefined
  const at = where.stack()?.trim().split("\n")[0]?.replace(/^at /, "")
  if (at === undefined || at === "") return where.name === "" ? undefined : where.name
  return where.name === "" ? at : `${where.name} (${at})`
}

/** An access as it is reported. */
export const printed = (
  stream: string,
  operation: string,
  { argument, kind }: Pick<Use, "argument" | "kind">,
  where: Where | undefined
): CheckedAccess => ({ operation, kind, argument, stream, frame: printWhere(where) })

interface Later {
  readonly timeline: Timeline
  readonly known: Known
  readonly work: Work
  readonly use: Use
}

/** The report of a race with an earlier access. */
export const explainRace = (first: Access, later: Later, piece: Pick<Piece<Access>, "from" | "to">): Race => {
  const { memory, offset, byteLength } = later.use
  const from = Math.max(piece.from, memory.address + offset)
  const to = Math.min(piece.to, memory.address + offset + byteLength)
  return raceOf({
    first: printed(first.timeline.name, first.work.operation, first.use, first.work.where),
    second: printed(later.timeline.name, later.work.operation, later.use, later.work.where),
    bytes: { memory: String(memory), offset: from - memory.address, byteLength: to - from },
    ...missingEdge(first, later)
  })
}

/** The report of the host looking at bytes that work may still write. */
export const explainHost = (write: Access, use: Use, operation: string, where: Where | undefined): Race => {
  const { name } = write.timeline
  return raceOf({
    first: printed(name, write.work.operation, write.use, write.work.where),
    second: printed("the host", operation, use, where),
    bytes: { memory: String(use.memory), offset: use.offset, byteLength: use.byteLength },
    missing: `The host has not waited for ${write.work.operation}.`,
    fix: `Before ${operation}, call CudaStream.synchronize(${name}).`
  })
}

/** The report of a raw address in memory that was released. */
export const explainFreed = (
  { memory, from, to, where }: Freed,
  use: RawUse,
  work: { readonly operation: string; readonly where: Where | undefined },
  stream: string
): UsedAfterRelease =>
  usedAfterRelease({
    access: printed(stream, work.operation, use, work.where),
    bytes: { memory, offset: use.address - from, byteLength: to - use.address },
    released: printWhere(where)
  })

const ofFiber = ({ fiber, timeline, where }: Turn, use: Use): AccessOfFiber => ({
  fiber: `fiber ${fiber}`,
  access: printed(timeline.name, "CudaMemory.access", use, where),
  bytes: { memory: String(use.memory), offset: use.offset, byteLength: use.byteLength }
})

/** What an access uses that conflicts with another one. */
const inConflict = (turn: Turn, other: Turn): Use => turn.conflictWith(other) ?? turn.uses[0]!

/** The report of fibers that wait for each other. */
export const explainDeadlock = (waits: ReadonlyArray<Waiting>): Deadlock =>
  deadlock(waits.map(({ blocker, turn }) => ({
    waiting: ofFiber(turn, inConflict(turn, blocker)),
    blocker: ofFiber(blocker, inConflict(blocker, turn))
  })))

/** The report of accesses that are begun in inverted orders. */
export const explainOrders = (orders: ReadonlyArray<Order>): InvertedOrder =>
  invertedOrder(orders.map(({ holding, next }, index) => ({
    holding: ofFiber(holding, inConflict(holding, orders.at(index - 1)!.next)),
    next: ofFiber(next, inConflict(next, orders[(index + 1) % orders.length]!.holding))
  })))

const program = (kind: CheckedAccess["kind"]): CheckedAccess => ({
  operation: "the program",
  kind,
  argument: undefined,
  stream: "the host",
  frame: undefined
})

const noticed = (operation: string, where: Where | undefined): string => {
  const at = printWhere(where)
  return at === undefined ? operation : `${operation}, in ${at}`
}

/** The report of the host writing to bytes that work may still read. */
export const explainHostWrite = (
  { byteLength, memory, offset, reader }: HostWrite,
  operation: string,
  where: Where | undefined
): Race => {
  const { timeline: { name }, use, work } = reader
  return raceOf({
    first: printed(name, work.operation, use, work.where),
    second: program("writes"),
    bytes: { memory: String(memory), offset, byteLength },
    missing: `The bytes changed before the host had waited for ${work.operation}; seen in ${
      noticed(operation, where)
    }.`,
    fix: `Before writing to them, call CudaStream.synchronize(${name}).`
  })
}

/** The report of the program changing an array while an operation copies it. */
export const explainArrayWrite = (
  { from, to }: Changed,
  operation: string,
  stream: string,
  where: Where | undefined
): Race => {
  const [kind, argument] = operation === "CudaMemory.upload"
    ? ["reads", "source"] as const
    : ["writes", "destination"] as const
  return raceOf({
    first: printed(stream, operation, { kind, argument }, where),
    second: program("writes"),
    bytes: { memory: "the program's array", offset: from, byteLength: to - from },
    missing: `The array changed before ${operation} returned.`,
    fix: `Change it only after ${operation} has returned.`
  })
}

const missingEdge = (first: Access, { known, timeline, work }: Later): Pick<Race, "missing" | "fix"> => {
  const from = first.timeline
  const { operation } = work
  const { recordedEpoch, recordedEvent } = from
  if (recordedEvent !== undefined && recordedEpoch >= first.epoch) {
    return {
      missing:
        `${
          String(recordedEvent)
        } was recorded on ${from.name} after ${first.work.operation}, but ${timeline.name} does ` +
        "not wait for it.",
      fix: `Before ${operation}, call CudaStream.waitEvent(${timeline.name}, ${String(recordedEvent)}).`
    }
  }
  const isEarlier = epochIn(known, from.index) > 0
  return {
    missing: isEarlier
      ? `${timeline.name} waits only for earlier work of ${from.name}.`
      : `Nothing makes ${timeline.name} wait for ${from.name}.`,
    fix: `Before ${operation}, call CudaStream.waitStream(${timeline.name}, ${from.name}).`
  }
}
