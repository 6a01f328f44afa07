/**
 * The order of buffers: which streams did what with which bytes, and what a further use must wait for.
 *
 * Every use is followed by a mark on its stream. Later uses of the same bytes on other streams wait for the mark if one
 * of the two writes. Each stream has a vector clock of the marks it is ordered after, so that no redundant wait is
 * enqueued. Plain functions over the markers of a backend, without Effect.
 */
import { success } from "../../cuda/status.ts"
import type { Marker, MarkerBackend } from "./accesses.ts"
import type { StreamResource } from "./resources.ts"

/** The backend functions that ordering needs. */
export type Markers = Omit<MarkerBackend, "watch">

/** By stream, the last of its marks that something is ordered after. */
type Known = ReadonlyMap<Track, number>

const nothing: Known = new Map()

/** A position in a stream. The mark with this number, and every later one, is behind it. */
interface Place {
  readonly track: Track
  readonly position: number
}

/** A stream's timeline of marks. Resources of the same driver stream share a track. */
export class Track {
  readonly stream: StreamResource
  /** Number of marks made so far. */
  position = 0
  /** The marks that the next work is ordered after. Never mutated, because marks keep a snapshot of it. */
  known: Known = nothing

  constructor(stream: StreamResource) {
    this.stream = stream
  }

  /** True once the stream is released. It was drained before, unless it only records. */
  get isOver(): boolean {
    return this.stream.state === "released" && this.stream.recording === undefined
  }

  isAfter({ position, track }: Place): boolean {
    return track === this || (this.known.get(track) ?? 0) >= position
  }

  /** Makes the stream wait for a mark, and so for everything the mark is ordered after. */
  waitFor(mark: Mark, markers: Markers): number {
    const status = markers.wait(this.stream, mark.marker)
    if (status !== success) return status
    const known = new Map<Track, number>()
    for (const source of [this.known, mark.known]) {
      for (const [track, position] of source) {
        // Drop released streams here, so that short-lived streams do not keep each other in memory.
        if (track.isOver) track.known = nothing
        else if (track !== this) known.set(track, Math.max(position, known.get(track) ?? 0))
      }
    }
    this.known = known.set(mark.track, mark.position)
    return success
  }
}

/** A point in a stream. Reference counted: the last holder to release it returns the marker to the backend. */
export class Mark implements Place {
  readonly track: Track
  readonly position: number
  readonly known: Known
  readonly marker: Marker
  readonly #markers: Markers
  #holders = 1

  constructor(track: Track, marker: Marker, markers: Markers) {
    this.track = track
    this.position = ++track.position
    this.known = track.known
    this.marker = marker
    this.#markers = markers
  }

  hold(): this {
    this.#holders++
    return this
  }

  release(): void {
    if (--this.#holders === 0) this.#markers.release(this.marker)
  }

  /** True if everything ordered after this mark is also ordered after the other place. */
  implies({ position, track }: Place): boolean {
    return (track === this.track ? this.position : this.known.get(track) ?? 0) >= position
  }
}

/** Makes a mark after all work on a track's stream. Returns the status of the call if it fails. */
const makeMark = (track: Track, markers: Markers): Mark | number => {
  const status = markers.record(track.stream)
  return status === success ? new Mark(track, markers.made!, markers) : status
}

/** Bytes of an ordered buffer that work reads or writes. */
export interface Part {
  readonly ordering: Ordering
  readonly from: number
  readonly to: number
  readonly writes: boolean
}

type Bytes = Pick<Part, "from" | "to" | "writes">

const overlap = (one: Bytes, other: Bytes): boolean => one.from < other.to && other.from < one.to
const conflict = (one: Bytes, other: Bytes): boolean => (one.writes || other.writes) && overlap(one, other)

/** A use of a buffer's bytes by a stream, finished or still open. */
export class Use implements Bytes, Place {
  readonly track: Track
  readonly position: number
  readonly from: number
  readonly to: number
  readonly writes: boolean
  /** The end of the use. Undefined while it is open, or if marking failed; a later mark then stands in for it. */
  mark: Mark | undefined

  constructor(track: Track, { from, to, writes }: Bytes, mark: Mark | undefined, position = track.position + 1) {
    this.track = track
    this.position = mark?.position ?? position
    this.from = from
    this.to = to
    this.writes = writes
    this.mark = mark
  }

  /** True while more of it may be enqueued, so that no mark is behind all of it. */
  get isOpen(): boolean {
    return this.position === neverOver
  }

  /**
   * True if waiting for this use covers the earlier one, and every use that conflicts with that also conflicts with
   * this.
   */
  replaces(earlier: Use): boolean {
    if (earlier.isOpen || earlier.from < this.from || earlier.to > this.to) return false
    if (!this.writes && (earlier.writes || earlier.track !== this.track)) return false
    return this.track.isAfter(earlier)
  }
}

const neverOver = Number.POSITIVE_INFINITY

/** The state of a handle is one thing. */
export const all: Bytes = { from: 0, to: 1, writes: true }

/** Number of uses at which finished ones are pruned. */
const fewUses = 32

/** The uses of one buffer that later uses may have to wait for. */
export class Ordering {
  readonly uses: Array<Use> = []
  /** Accesses of the buffer that have not ended, including those waiting to begin. */
  readonly accesses = new Set<Access>()
  #pruneAt = fewUses
  #isOver = false
  /** Whether several streams have used it. */
  #isShared = false

  add(use: Use, markers: Markers): void {
    if (this.#isOver) return use.mark?.release()
    this.#drop((earlier) => use.replaces(earlier))
    this.uses.push(use)
    if (this.uses.length < this.#pruneAt) return
    this.#drop((earlier) => isDone(earlier, markers))
    this.#pruneAt = Math.max(fewUses, 2 * this.uses.length)
  }

  /**
   * Notes a use of all of it by a stream, if no other stream has used it: nothing must wait, and no mark is made. Returns false otherwise.
   * Only for work that is enqueued next. Another stream's first use makes the mark, and waits for all that the stream has then.
   */
  useAlone(track: Track): boolean {
    // A stream of other code may be gone when the mark is needed.
    if (this.#isShared || track.stream.origin === "foreign") return false
    for (const use of this.uses) {
      if (use.track === track || use.track.isOver) continue
      this.#isShared = true
      return false
    }
    const last = this.uses.at(-1)
    if (last !== undefined && last.track === track && last.mark === undefined && last.position > track.position) {
      return true
    }
    this.#drop(() => true)
    this.uses.push(new Use(track, all, undefined))
    return true
  }

  delete(use: Use): void {
    this.#drop((other) => other === use)
  }

  /** Called when the buffer is released: nothing waits for its uses any longer. */
  close(): void {
    this.#isOver = true
    this.#drop(() => true)
  }

  #drop(isDropped: (use: Use) => boolean): void {
    let kept = 0
    for (const use of this.uses) {
      if (isDropped(use)) use.mark?.release()
      else this.uses[kept++] = use
    }
    this.uses.length = kept
  }
}

const isDone = (use: Use, markers: Markers): boolean => {
  if (use.isOpen) return false
  return use.track.isOver || (use.mark !== undefined && markers.query(use.mark.marker) === success)
}

/**
 * The marks to wait for to cover the matching uses of the parts, without those implied by another. The caller releases
 * them. Returns the status of a call that failed.
 */
const marksOf = (
  parts: ReadonlyArray<Part>,
  markers: Markers,
  matters: (use: Use, part: Part) => boolean
): ReadonlyArray<Mark> | number => {
  const uses: Array<Use> = []
  for (const part of parts) {
    for (const use of part.ordering.uses) if (!use.track.isOver && matters(use, part)) uses.push(use)
  }
  if (uses.length === 0) return none
  const latest = new Map<Track, Mark>()
  for (const { mark, track } of uses) {
    if (mark !== undefined && mark.position > positionIn(latest, track)) latest.set(track, mark)
  }
  for (const mark of latest.values()) mark.hold()
  const status = markRest(uses, latest, markers)
  if (status === success && latest.size > 1) dropImplied(uses, latest)
  if (status === success) return [...latest.values()]
  for (const mark of latest.values()) mark.release()
  return status
}

const none: ReadonlyArray<Mark> = []

const positionIn = (latest: ReadonlyMap<Track, Mark>, track: Track): number => latest.get(track)?.position ?? 0

/** Makes a mark on each stream with a use that is not yet behind a mark. */
const markRest = (uses: ReadonlyArray<Use>, latest: Map<Track, Mark>, markers: Markers): number => {
  const made = new Set<Track>()
  for (const use of uses) {
    const { track } = use
    if (use.mark !== undefined || made.has(track) || positionIn(latest, track) >= use.position) continue
    const mark = makeMark(track, markers)
    if (typeof mark === "number") return mark
    latest.get(track)?.release()
    latest.set(track, mark)
    made.add(track)
  }
  for (const use of uses) if (use.mark === undefined && !use.isOpen) use.mark = latest.get(use.track)?.hold()
  return success
}

/**
 * Releases the marks without which the others cover all uses. Of all streams, because a mark that is newer than its stream's uses
 * may be what covers those of another stream.
 */
const dropImplied = (uses: ReadonlyArray<Use>, latest: Map<Track, Mark>): void => {
  for (const mark of latest.values()) {
    const others = Array.from(latest.values()).filter((other) => other !== mark)
    if (!uses.every((use) => others.some((other) => covers(other, use)))) continue
    mark.release()
    latest.delete(mark.track)
  }
}

/** The latest mark of a stream is after all of its uses so far, even open ones. */
const covers = (mark: Mark, use: Use): boolean => mark.track === use.track || mark.implies(use)

/** The marks after all uses of a part so far; see `marksOf`. */
export const marksOfPart = (part: Part, markers: Markers): ReadonlyArray<Mark> | number =>
  marksOf([part], markers, overlap)

/** Work on a stream and the bytes it uses, reads first. */
export class Work {
  readonly track: Track
  readonly parts: ReadonlyArray<Part>

  constructor(track: Track, parts: ReadonlyArray<Part>) {
    this.track = track
    this.parts = parts
  }

  /** Makes the stream wait for all conflicting earlier uses. Returns 0, or the status of the call that failed. */
  begin(markers: Markers): number {
    const { track } = this
    const matters = (use: Use, part: Part) => !track.isAfter(use) && conflict(use, part)
    const marks = marksOf(this.parts, markers, matters)
    if (typeof marks === "number") return marks
    let status = success
    for (const mark of marks) {
      if (status === success) status = track.waitFor(mark, markers)
      mark.release()
    }
    return status
  }

  /** Marks the work that was just enqueued. Returns 0, or the status of the call that failed. */
  end(markers: Markers): number {
    const { track } = this
    if (track.isOver || this.parts.length === 0) return success
    const mark = makeMark(track, markers)
    const isMarked = typeof mark !== "number"
    for (const part of this.parts) {
      part.ordering.add(new Use(track, part, isMarked ? mark.hold() : undefined), markers)
    }
    if (!isMarked) return mark
    const status = this.#holdBack(mark, markers)
    mark.release()
    return status
  }

  /** Orders the rest of conflicting open uses after this work. */
  #holdBack(mark: Mark, markers: Markers): number {
    for (const part of this.parts) {
      for (const use of part.ordering.uses) {
        if (!use.isOpen || use.track.isOver || use.track.isAfter(mark) || !conflict(use, part)) continue
        const status = use.track.waitFor(mark, markers)
        if (status !== success) return status
      }
    }
    return success
  }
}

/**
 * Work that others enqueue over a period of time. If two accesses conflict on different streams, the later one begins
 * after the earlier one ends, because their parts cannot be told apart; an access nested in the other proceeds
 * immediately. Any other work may come in between: it is ordered after the part of the access enqueued before it, and
 * before the rest.
 */
export class Access {
  readonly #work: Work
  readonly #open: ReadonlyArray<readonly [Ordering, Use]>
  /** The accesses that must end before this one begins, and those that wait for this one. */
  readonly #blockers = new Set<Access>()
  readonly #blocked = new Set<Access>()
  #isRunning = false
  /** Called when nothing blocks the access any longer. */
  onTurn: (() => void) | undefined

  constructor(track: Track, parts: ReadonlyArray<Part>, outer: ReadonlySet<Access>) {
    this.#work = new Work(track, parts)
    this.#open = parts.map((part) => [part.ordering, new Use(track, part, undefined, neverOver)] as const)
    for (const { ordering } of parts) {
      for (const other of ordering.accesses) {
        if (outer.has(other) || !this.#conflictsWith(other)) continue
        if (other.#waitsForAny(outer)) this.#block(other)
        else other.#block(this)
      }
    }
    for (const { ordering } of parts) ordering.accesses.add(this)
  }

  get isBlocked(): boolean {
    return this.#blockers.size > 0
  }

  #conflictsWith(other: Access): boolean {
    const { parts, track } = this.#work
    return other !== this && other.#work.track !== track &&
      parts.some((part) =>
        other.#work.parts.some((theirs) => theirs.ordering === part.ordering && conflict(theirs, part))
      )
  }

  /** Visits each blocker once: accesses that wait for all earlier ones have exponentially many paths between them. */
  #waitsForAny(accesses: ReadonlySet<Access>): boolean {
    const waitedFor = new Set(this.#blockers)
    for (const blocker of waitedFor) {
      if (accesses.has(blocker)) return true
      for (const next of blocker.#blockers) waitedFor.add(next)
    }
    return false
  }

  /** Makes the stream wait for conflicting earlier uses. Call once nothing blocks the access. */
  begin(markers: Markers): number {
    const status = this.#work.begin(markers)
    if (status !== success) return status
    this.#isRunning = true
    for (const [ordering, use] of this.#open) ordering.add(use, markers)
    return success
  }

  /** Marks the work enqueued since the access began, if it did, and unblocks the accesses that wait for it. */
  end(markers: Markers): number {
    for (const [ordering, use] of this.#open) {
      ordering.delete(use)
      ordering.accesses.delete(this)
    }
    const status = this.#isRunning ? this.#work.end(markers) : success
    for (const other of this.#blocked) {
      other.#blockers.delete(this)
      if (!other.isBlocked) other.onTurn?.()
    }
    for (const other of this.#blockers) other.#blocked.delete(this)
    return status
  }

  #block(other: Access): void {
    this.#blocked.add(other)
    other.#blockers.add(this)
  }
}
