/**
 * The checks of one runtime: which streams used which bytes, and what is ordered after what. Plain functions over references, without
 * Effect.
 */
import type { MemoryRef, StreamRef } from "../CudaRuntime.ts"
import { explainRace, printed, printWhere } from "./explain.ts"
import type { Piece, Pieces, Users } from "./Pieces.ts"
import { Regions } from "./Regions.ts"
import type { Region } from "./Regions.ts"
import { usedAfterRelease } from "./reports.ts"
import type { AccessKind, Report } from "./reports.ts"
import { epochIn, isBefore, joined, Timelines } from "./timelines.ts"
import type { Known, Point, Timeline } from "./timelines.ts"

/** Where in the program something happened: a span, a named function, or the line of a call. Printed only for a report. */
export interface Where {
  readonly name: string
  readonly stack: () => string | undefined
}

/** Bytes that an operation uses. */
export interface Use {
  readonly memory: MemoryRef
  readonly offset: number
  readonly byteLength: number
  readonly kind: AccessKind
  readonly argument: string | undefined
}

/** An operation on a stream. */
export interface Work {
  readonly operation: string
  readonly uses: ReadonlyArray<Use>
  readonly where: Where | undefined
  /** True if it turned out to have failed, so that its uses did not happen. */
  isVoid: boolean
}

/** A use that happened, or the last of several in the same way. It is also the point after it. */
export class Access implements Point {
  readonly timeline: Timeline
  epoch: number
  known: Known
  readonly use: Use
  readonly work: Work
  constructor(timeline: Timeline, epoch: number, known: Known, use: Use, work: Work) {
    this.timeline = timeline
    this.epoch = epoch
    this.known = known
    this.use = use
    this.work = work
  }
}

/** Work of other code that has begun and not ended. */
export interface OpenWork extends Work {
  readonly timeline: Timeline
  /** The epoch of its beginning. */
  readonly since: number
}

/** A stream with a field for what is known of it. */
type CheckedStream = StreamRef & { checked?: unknown }

/** The timeline of a stream. */
class StreamPlace {
  readonly checks: Checks
  readonly timeline: Timeline
  constructor(checks: Checks, timeline: Timeline) {
    this.checks = checks
    this.timeline = timeline
  }
}

const isNeeded = ({ epoch, timeline, work }: Access): boolean => !work.isVoid && timeline.done < epoch

const nothing: ReadonlyArray<Report> = []

export class Checks {
  readonly timelines = new Timelines()
  readonly #byRef = new WeakMap<StreamRef, Timeline>()
  readonly #byId = new Map<string, Timeline>()
  readonly #regions = new Regions<Access>(isNeeded)
  readonly #open = new Set<OpenWork>()
  /** The number of uses seen. */
  accesses = 0
  /** Whether memory of the host is looked at each time that work reads it. */
  watchesHost = false

  /** The timeline of a stream. Wrappers of a stream share its timeline. */
  timelineOf(ref: StreamRef): Timeline {
    return this.knownTimeline(ref) ?? this.#byRef.get(ref) ?? this.#makeTimeline(ref)
  }

  /** The timeline of a stream, if it is kept with the stream. */
  knownTimeline({ checked }: CheckedStream): Timeline | undefined {
    return checked instanceof StreamPlace && checked.checks === this ? checked.timeline : undefined
  }

  #makeTimeline(ref: CheckedStream): Timeline {
    const key = `${ref.deviceIndex} ${ref.id}`
    let timeline = this.#byId.get(key)
    if (timeline === undefined) {
      timeline = this.timelines.make({
        name: String(ref),
        deviceIndex: ref.deviceIndex,
        isBlocking: !ref.nonBlocking,
        isLegacy: ref.id === 0,
        isForeign: ref.origin === "foreign"
      })
      this.#byId.set(key, timeline)
    }
    this.#byRef.set(ref, timeline)
    // Only one of several checkers around a runtime can keep it there.
    ref.checked ??= new StreamPlace(this, timeline)
    return timeline
  }

  /** Ends the timeline of a stream that was drained and destroyed. */
  endTimeline(ref: CheckedStream): void {
    const timeline = this.#byRef.get(ref)
    if (timeline === undefined) return
    if (this.knownTimeline(ref) !== undefined) ref.checked = undefined
    this.#byId.delete(`${ref.deviceIndex} ${ref.id}`)
    this.#byRef.delete(ref)
    this.timelines.end(timeline)
  }

  allocate(memory: MemoryRef): void {
    this.#regions.allocate(memory)
  }

  /** Notes that bytes of a buffer are new memory. */
  renewMemory(memory: MemoryRef, from: number, to: number): void {
    this.#regions.renew(memory, from, to)
  }

  /** Notes memory of other code, or of a module, which may be part of a buffer. */
  adopt(memory: MemoryRef): void {
    this.#regions.of(memory)
  }

  release(memory: MemoryRef, isOwner: boolean, where: Where | undefined): void {
    this.#regions.release(memory, isOwner, where)
  }

  /** What comes before work: what its stream knows, and for ordered buffers, the conflicting uses that it waits for. */
  knownBy(timeline: Timeline, { uses }: Work): Known {
    let known = this.timelines.knownBy(timeline)
    for (let index = 0; index < uses.length; index++) {
      const use = uses[index]!
      if (this.#isAllocatedIn) {
        const allocated = this.#allocatedIn.get(use.memory)
        if (allocated !== undefined) known = joined(timeline, known, allocated)
      }
      if (use.memory.isOrdered) known = this.#knownByUse(timeline, known, use)
    }
    return known
  }

  /** The points of allocations in stream order, which other streams wait for before their first use. */
  readonly #allocatedIn = new WeakMap<MemoryRef, Point>()
  /** Whether there were any. */
  #isAllocatedIn = false

  allocateIn(memory: MemoryRef, stream: StreamRef): void {
    this.allocate(memory)
    this.#isAllocatedIn = true
    this.#allocatedIn.set(memory, this.timelines.pointOf(this.timelineOf(stream)))
  }

  #knownByUse(timeline: Timeline, before: Known, use: Use): Known {
    let known = before
    const join = (point: Point) => {
      known = joined(timeline, known, point)
    }
    this.#visit(use, ({ reads, write }) => {
      if (write !== undefined) join(write)
      if (use.kind !== "reads") reads.forEach(join)
    })
    for (const open of this.#open) if (conflictsWith(open, use)) join(open.timeline.point)
    return known
  }

  /** Reports what is wrong with work that is about to be enqueued. `since` is for work that began earlier, at that epoch. */
  find(timeline: Timeline, known: Known, work: Work, since?: number): ReadonlyArray<Report> {
    const { uses } = work
    let reports = nothing
    for (let index = 0; index < uses.length; index++) {
      const use = uses[index]!
      const region = this.#regions.of(use.memory)
      const from = use.memory.address + use.offset
      const piece = region.pieces.exactly(from, from + use.byteLength)
      // Most uses are of the same bytes as the last ones, and of memory that nobody else owns.
      if (piece === undefined || region.released.length > 0) {
        reports = this.#findIn(region, reports, timeline, known, work, use, since)
      } else if (conflictIn(piece, timeline, known, use, since) !== undefined) {
        reports = addRace(reports, piece, timeline, known, work, use, since)
      }
    }
    return reports
  }

  #findIn(
    region: Region<Access>,
    before: ReadonlyArray<Report>,
    timeline: Timeline,
    known: Known,
    work: Work,
    use: Use,
    since: number | undefined
  ): ReadonlyArray<Report> {
    let reports = region.released.length > 0 ? addReleased(before, region, timeline, work, use) : before
    this.#visitIn(region, use, (piece) => {
      reports = addRace(reports, piece, timeline, known, work, use, since)
    })
    return reports
  }

  /** Whether operations can repeat earlier ones: not while other code enqueues work, whose order depends on theirs. */
  get canRepeat(): boolean {
    return this.#open.size === 0
  }

  /**
   * The access that a use repeats: of the same bytes by the same operation on the same stream, so that it races with nothing new, and renewing
   * the access notes all there is to note. Most uses do. Undefined if the use must be looked at.
   */
  repeated(
    timeline: Timeline,
    known: Known,
    memory: MemoryRef | undefined,
    offset: number,
    byteLength: number,
    writes: boolean,
    operation: string,
    where: Where | undefined
  ): Access | undefined {
    const region = this.#regions.known(memory)
    if (region === undefined || memory === undefined || region.released.length > 0 || memory.isOrdered) return undefined
    if (this.watchesHost && isOfHost(memory)) return undefined
    const from = memory.address + offset
    const piece = region.pieces.exactly(from, from + byteLength)
    if (piece === undefined) return undefined
    const { reads, write } = piece
    if (writes) {
      return write !== undefined && isSameUse(write, timeline, operation, where, from, byteLength) &&
          areOf(reads, timeline)
        ? write
        : undefined
    }
    // What reads the bytes that its own epoch has written is behind that write in every respect.
    if (write !== undefined && timeline.isNow(write, known) && !write.work.isVoid) return write
    if (reads.length !== 1 || !isSameUse(reads[0]!, timeline, operation, where, from, byteLength)) return undefined
    return write === undefined || isOrdered(write, timeline, known, undefined) ? reads[0]! : undefined
  }

  /** Notes that work has repeated an access. */
  renew(timeline: Timeline, known: Known, access: Access): void {
    access.epoch = timeline.next(known)
    access.known = known
    this.accesses++
  }

  /** Notes work that was enqueued. */
  commit(timeline: Timeline, known: Known, work: Work, since?: number): void {
    const { uses } = work
    const now = timeline.next(known)
    for (let index = 0; index < uses.length; index++) {
      this.#note(new Access(timeline, since ?? now, known, uses[index]!, work))
    }
    this.accesses += uses.length
    // Later work waits for this one, and not for what its stream does next.
    if (uses.some(isOrderedUse)) timeline.isObserved = true
    if (this.#open.size > 0) this.#holdBack(timeline, uses)
  }

  #note(access: Access): void {
    const { byteLength, kind, memory, offset } = access.use
    if (byteLength === 0) return
    const from = memory.address + offset
    const { pieces } = this.#regions.of(memory)
    const piece = pieces.exactly(from, from + byteLength)
    if (piece === undefined) return noteIn(pieces, access, from)
    if (kind !== "reads") {
      piece.write = access
      piece.reads = noReads
    } else if (piece.reads.length === 1 && piece.reads[0]!.timeline === access.timeline) {
      if (piece.reads[0]!.epoch <= access.epoch) piece.reads = [access]
    } else {
      piece.reads = withRead(piece, access).reads
    }
    pieces.settle()
  }

  /** Orders the rest of open work on ordered buffers after work that came in between. */
  #holdBack(timeline: Timeline, uses: ReadonlyArray<Use>): void {
    for (const open of this.#open) {
      if (open.timeline === timeline) continue
      if (uses.some((use) => use.memory.isOrdered && conflictsWith(open, use))) {
        this.timelines.wait(open.timeline, timeline.point)
      }
    }
  }

  /** Notes that other code begins to enqueue work on a stream. */
  begin(timeline: Timeline, work: Work): OpenWork {
    const known = this.knownBy(timeline, work)
    timeline.isObserved = true
    const open = { ...work, timeline, since: timeline.next(known) }
    this.#open.add(open)
    return open
  }

  end(open: OpenWork): void {
    this.#open.delete(open)
  }

  /**
   * What writes bytes that the host looks at. The host need not look at all of them, so it is only known to look at bytes in flight if all
   * of them are.
   */
  findHost(use: Use): { readonly write: Access; readonly isCertain: boolean } | undefined {
    let inFlight = 0
    let found: Access | undefined
    const start = use.memory.address + use.offset
    this.#visit(use, ({ from, to, write }) => {
      if (write === undefined || !isNeeded(write)) return
      found ??= write
      inFlight += Math.min(to, start + use.byteLength) - Math.max(from, start)
    })
    return found === undefined ? undefined : { write: found, isCertain: inFlight === use.byteLength }
  }

  /** The points that the host waits for with the uses of a range of an ordered buffer. */
  pointsOf(use: Use): ReadonlyArray<Point> {
    const points: Array<Point> = []
    this.#visit(use, ({ reads, write }) => {
      if (write !== undefined) points.push(write)
      points.push(...reads)
    })
    for (const open of this.#open) if (conflictsWith(open, use)) points.push(open.timeline.point)
    return points
  }

  #visit(use: Use, look: (piece: Piece<Access>) => void): void {
    this.#visitIn(this.#regions.of(use.memory), use, look)
  }

  #visitIn(region: Region<Access>, { byteLength, memory, offset }: Use, look: (piece: Piece<Access>) => void): void {
    const from = memory.address + offset
    if (byteLength > 0) region.pieces.visit(from, from + byteLength, look)
  }

  /** The number of regions, pieces and streams that are kept. */
  get size(): { readonly regions: number; readonly pieces: number; readonly streams: number } {
    return { regions: this.#regions.size, pieces: this.#regions.pieces, streams: this.timelines.live.size }
  }
}

/** Whether the host can see memory. */
const isOfHost = (memory: MemoryRef): boolean => memory.kind === "host" || memory.isManaged

const isOrderedUse = ({ memory }: Use): boolean => memory.isOrdered

/** Whether an access is of one operation and of these bytes, all of them: then no other piece has it. */
const isSameUse = (
  access: Access,
  timeline: Timeline,
  operation: string,
  where: Where | undefined,
  from: number,
  byteLength: number
): boolean => {
  const { use, work } = access
  return access.timeline === timeline && work.operation === operation && work.where === where && !work.isVoid &&
    use.byteLength === byteLength && use.memory.address + use.offset === from
}

const areOf = (reads: ReadonlyArray<Access>, timeline: Timeline): boolean => {
  for (let index = 0; index < reads.length; index++) if (reads[index]!.timeline !== timeline) return false
  return true
}

const noReads: ReadonlyArray<Access> = []

const noteIn = (pieces: Pieces<Access>, access: Access, from: number): void => {
  const { byteLength, kind } = access.use
  const change = kind === "reads"
    ? (users: Users<Access>) => withRead(users, access)
    : () => ({ write: access, reads: noReads })
  pieces.update(from, from + byteLength, change)
}

/** Adds a race to reports, if there is one. */
const addRace = (
  reports: ReadonlyArray<Report>,
  piece: Piece<Access>,
  timeline: Timeline,
  known: Known,
  work: Work,
  use: Use,
  since: number | undefined
): ReadonlyArray<Report> => {
  const earlier = conflictIn(piece, timeline, known, use, since)
  if (earlier === undefined || hasReported(reports, earlier, use)) return reports
  return [...reports, explainRace(earlier, { timeline, known, work, use }, piece)]
}

/** Adds a read: one per stream, the last. */
const withRead = ({ reads, write }: Users<Access>, access: Access): Users<Access> => {
  if (reads.length === 0) return { write, reads: [access] }
  const at = reads.findIndex(({ timeline }) => timeline === access.timeline)
  if (at < 0) return { write, reads: [...reads.filter(isNeeded), access] }
  return reads[at]!.epoch > access.epoch ? { write, reads } : { write, reads: reads.with(at, access) }
}

/** The use of a piece that conflicts with a later one and is not ordered before it. */
const conflictIn = (
  { reads, write }: Piece<Access>,
  timeline: Timeline,
  known: Known,
  use: Use,
  since: number | undefined
): Access | undefined => {
  if (write !== undefined && !isOrdered(write, timeline, known, since)) return write
  if (use.kind === "reads") return undefined
  for (const read of reads) if (!isOrdered(read, timeline, known, since)) return read
  return undefined
}

/**
 * Whether an earlier use comes before a later one. Work that began earlier may also come before it, in part: then it counts as ordered if
 * any point since the beginning does.
 */
export const isOrdered = (earlier: Access, timeline: Timeline, known: Known, since: number | undefined): boolean => {
  if (earlier.work.isVoid || isBefore(earlier, timeline, known)) return true
  if (since === undefined) return false
  return timeline.done >= since || epochIn(earlier.known, timeline.index) >= since
}

export const overlaps = (one: Use, other: Use): boolean => {
  if (one.memory.kind !== other.memory.kind) return false
  const from = one.memory.address + one.offset
  const otherFrom = other.memory.address + other.offset
  return from < otherFrom + other.byteLength && otherFrom < from + one.byteLength
}

const conflictsWith = (open: OpenWork, use: Use): boolean =>
  open.uses.some((other) =>
    other.memory.isOrdered && (other.kind !== "reads" || use.kind !== "reads") && overlaps(other, use)
  )

const hasReported = (reports: ReadonlyArray<Report>, earlier: Access, use: Use): boolean =>
  reports.some((report) =>
    report._tag === "Race" && report.first.operation === earlier.work.operation &&
    report.first.argument === earlier.use.argument && report.second.argument === use.argument &&
    report.first.stream === earlier.timeline.name && report.bytes.memory === String(use.memory)
  )

const addReleased = (
  reports: ReadonlyArray<Report>,
  { released }: Region<Access>,
  timeline: Timeline,
  work: Work,
  use: Use
): ReadonlyArray<Report> => {
  const from = use.memory.address + use.offset
  const gone = released.find((range) => range.from < from + use.byteLength && from < range.to)
  if (gone === undefined) return reports
  const access = printed(timeline.name, work.operation, use, work.where)
  const bytes = { memory: String(use.memory), offset: use.offset, byteLength: use.byteLength }
  return [...reports, usedAfterRelease({ access, bytes, released: printWhere(gone.where) })]
}
