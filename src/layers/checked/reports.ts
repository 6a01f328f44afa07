/**
 * What a checker reports: values, and their text.
 *
 * @since 0.1.0
 */
import { inBytes } from "../runtime/words.ts"

/**
 * How an operation uses bytes.
 *
 * @category models
 * @since 0.1.0
 */
export type AccessKind = "reads" | "writes" | "reads and writes"

/**
 * A use of memory by an operation.
 *
 * @category models
 * @since 0.1.0
 */
export interface CheckedAccess {
  /** The operation, for example `CudaMemory.copy`; for a launch, with the name of the kernel. */
  readonly operation: string
  readonly kind: AccessKind
  /** The argument, for example `destination` or `arguments[1]`. */
  readonly argument: string | undefined
  /** The stream, for example `stream 13 of device 0`, or `the host`. */
  readonly stream: string
  /** The innermost span or named function around the operation and where it is in the source, or the line of the call (see `stacks`). */
  readonly frame: string | undefined
}

/**
 * Bytes of a buffer.
 *
 * @category models
 * @since 0.1.0
 */
export interface CheckedBytes {
  /** The buffer, printed. */
  readonly memory: string
  /** The first byte, from the buffer's start. */
  readonly offset: number
  readonly byteLength: number
}

/**
 * Two uses of the same bytes, of which one writes, without an order between them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Race {
  readonly _tag: "Race"
  /** The use that was enqueued first. */
  readonly first: CheckedAccess
  readonly second: CheckedAccess
  readonly bytes: CheckedBytes
  /** What is missing. */
  readonly missing: string
  /** The call that would order the two. */
  readonly fix: string
  /** The report as text. */
  readonly message: string
}

/**
 * Use of memory that its owner has released, through another buffer over it.
 *
 * @category models
 * @since 0.1.0
 */
export interface UsedAfterRelease {
  readonly _tag: "UsedAfterRelease"
  readonly access: CheckedAccess
  readonly bytes: CheckedBytes
  /** Where it was released. */
  readonly released: string | undefined
  readonly message: string
}

/**
 * A wait for an event that orders nothing the program meant.
 *
 * @category models
 * @since 0.1.0
 */
export interface MisusedEvent {
  readonly _tag: "MisusedEvent"
  /** `neverRecorded`: it was waited for before any record. `lostRecord`: it was recorded elsewhere before anybody waited for it. */
  readonly problem: "neverRecorded" | "lostRecord"
  readonly operation: string
  /** The event, printed. */
  readonly event: string
  readonly stream: string
  readonly frame: string | undefined
  /** Where the event was recorded before. */
  readonly before: string | undefined
  readonly message: string
}

/**
 * A resource that is left when the runtime ends.
 *
 * @category models
 * @since 0.1.0
 */
export interface Leftover {
  readonly _tag: "Leftover"
  /** The operation that made it. */
  readonly operation: string
  /** The resource, printed. */
  readonly resource: string
  readonly frame: string | undefined
  readonly message: string
}

/**
 * An access (`CudaMemory.access`) that a fiber has begun, or waits to begin.
 *
 * @category models
 * @since 0.1.0
 */
export interface AccessOfFiber {
  /** The fiber, for example `fiber 12`. */
  readonly fiber: string
  readonly access: CheckedAccess
  readonly bytes: CheckedBytes
}

/**
 * Fibers that wait for each other's accesses to end, so that none of them ever goes on.
 *
 * @category models
 * @since 0.1.0
 */
export interface Deadlock {
  readonly _tag: "Deadlock"
  /** The access that each fiber waits to begin, and the one that the next fiber holds. The last one waits for the first. */
  readonly waits: ReadonlyArray<{ readonly waiting: AccessOfFiber; readonly blocker: AccessOfFiber }>
  readonly message: string
}

/**
 * Accesses that fibers begin inside each other in orders that can end in a deadlock: in one, what the other begins last.
 *
 * @category models
 * @since 0.1.0
 */
export interface InvertedOrder {
  readonly _tag: "InvertedOrder"
  /** The access that a fiber holds, and the one that it begins inside. */
  readonly orders: ReadonlyArray<{ readonly holding: AccessOfFiber; readonly next: AccessOfFiber }>
  readonly message: string
}

/**
 * A report of a checker.
 *
 * @category models
 * @since 0.1.0
 */
export type Report = Race | UsedAfterRelease | MisusedEvent | Leftover | Deadlock | InvertedOrder

const inFrame = (frame: string | undefined): string => frame === undefined ? "" : `, in ${frame}`

const printAccess = ({ argument, frame, kind, operation, stream }: CheckedAccess): string =>
  `${operation} ${kind}${argument === undefined ? "" : ` ${argument}`} on ${stream}${inFrame(frame)}`

const printBytes = ({ byteLength, memory, offset }: CheckedBytes): string =>
  `${byteLength === 1 ? `byte ${offset}` : `bytes ${offset} to ${offset + byteLength - 1}`} of ${memory}`

/** Reports a race. */
export const raceOf = (fields: Omit<Race, "_tag" | "message">): Race => {
  const { bytes, first, fix, missing, second } = fields
  const message = `Race on ${printBytes(bytes)}:\n  1. ${printAccess(first)}\n  2. ${printAccess(second)}\n` +
    `${missing} ${fix}`
  return { _tag: "Race", ...fields, message }
}

/** Reports a use after the release. */
export const usedAfterRelease = (fields: Omit<UsedAfterRelease, "_tag" | "message">): UsedAfterRelease => {
  const { access, bytes, released } = fields
  const message = `Use of released memory, ${printBytes(bytes)}:\n  ${printAccess(access)}\n` +
    `Another buffer owned these bytes and was released${inFrame(released)}. Keep its scope open while they are in use.`
  return { _tag: "UsedAfterRelease", ...fields, message }
}

/** Reports a wait for an event that was never recorded. */
export const neverRecorded = (
  fields: Pick<MisusedEvent, "operation" | "event" | "stream" | "frame">
): MisusedEvent => ({
  _tag: "MisusedEvent",
  problem: "neverRecorded",
  ...fields,
  before: undefined,
  message: `A wait that orders nothing:\n  ${fields.operation} on ${fields.stream}${inFrame(fields.frame)}\n` +
    `${fields.event} was never recorded. Record it before the wait, with CudaEvent.record.`
})

/** Reports a record that replaces one that nobody waited for. */
export const lostRecord = (
  fields: Omit<MisusedEvent, "_tag" | "problem" | "message"> & { readonly recordedOn: string }
): MisusedEvent => {
  const { recordedOn, ...rest } = fields
  return {
    _tag: "MisusedEvent",
    problem: "lostRecord",
    ...rest,
    message: `A record that nobody waited for:\n  ${fields.operation} on ${fields.stream}${inFrame(fields.frame)}\n` +
      `${fields.event} was recorded on ${recordedOn} before${
        inFrame(fields.before)
      }. Later waits do not wait for that ` +
      "stream. Use an event for each stream."
  }
}

const printOfFiber = ({ access: { frame, kind, stream }, bytes }: AccessOfFiber): string =>
  `an access that ${kind} ${printBytes(bytes)} on ${stream}${inFrame(frame)}`

/** Reports fibers that wait for each other. */
export const deadlock = (waits: Deadlock["waits"]): Deadlock => ({
  _tag: "Deadlock",
  waits,
  message: `Deadlock of ${waits.length === 1 ? "a fiber" : `${waits.length} fibers`}:\n` +
    waits.map(({ blocker, waiting }, index) =>
      `  ${index + 1}. ${waiting.fiber} waits to begin ${printOfFiber(waiting)},\n     until ${blocker.fiber} ends ` +
      printOfFiber(blocker)
    ).join("\n") + "\nList all memory in one access, or begin the accesses in the same order everywhere."
})

/** Reports accesses that are begun in inverted orders. */
export const invertedOrder = (orders: InvertedOrder["orders"]): InvertedOrder => ({
  _tag: "InvertedOrder",
  orders,
  message: "Accesses in inverted orders, which can end in a deadlock:\n" +
    orders.map(({ holding, next }, index) =>
      `  ${index + 1}. ${next.fiber} holds ${printOfFiber(holding)},\n     and begins ${printOfFiber(next)}`
    ).join("\n") + "\nList all memory in one access, or begin the accesses in the same order everywhere."
})

/** Reports a resource that is left. */
export const leftover = (fields: Omit<Leftover, "_tag" | "message">): Leftover => ({
  _tag: "Leftover",
  ...fields,
  message: `${fields.resource} is left when the runtime ends. ${fields.operation} made it${inFrame(fields.frame)}. ` +
    "Close its scope before the runtime is released."
})

/** The two accesses of a report in words, the earlier one first; a single one if it is about one. */
export const accessesOf = (report: Race | UsedAfterRelease): ReadonlyArray<string> =>
  report._tag === "Race" ? [printAccess(report.first), printAccess(report.second)] : [printAccess(report.access)]

/** Prints a number of bytes of a buffer, for subjects. */
export const describeBytes = ({ byteLength, memory }: CheckedBytes): string => `${inBytes(byteLength)} of ${memory}`

/** The operations of a report, as rules compare them. */
export const accessesIn = (report: Report): ReadonlyArray<Partial<CheckedAccess>> => {
  switch (report._tag) {
    case "Race":
      return [report.first, report.second]
    case "UsedAfterRelease":
      return [report.access]
    case "Deadlock":
      return report.waits.map(({ waiting }) => waiting.access)
    case "InvertedOrder":
      return report.orders.map(({ next }) => next.access)
    case "MisusedEvent":
    case "Leftover":
      return [report]
  }
}
