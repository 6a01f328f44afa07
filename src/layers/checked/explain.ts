/**
 * Explains a race: the edge that is missing, and the call that would add it.
 */
import type { Access, Use, Where, Work } from "./Checks.ts"
import type { Piece } from "./Pieces.ts"
import { raceOf } from "./reports.ts"
import type { CheckedAccess, Race } from "./reports.ts"
import type { Known, Timeline } from "./timelines.ts"

/** The name of a place in the program, and where it is in the source. */
export const printWhere = (where: Where | undefined): string | undefined => {
  if (where === undefined) return undefined
  const at = where.stack()?.trim().split("\n")[0]?.replace(/^at /, "")
  if (at === undefined || at === "") return where.name
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
  const isEarlier = (known[from.index] ?? 0) > 0
  return {
    missing: isEarlier
      ? `${timeline.name} waits only for earlier work of ${from.name}.`
      : `Nothing makes ${timeline.name} wait for ${from.name}.`,
    fix: `Before ${operation}, call CudaStream.waitStream(${timeline.name}, ${from.name}).`
  }
}
