/**
 * How buffers order themselves: which streams did what with which bytes, and what a further use has to wait for.
 *
 * Every use is followed on its stream by a mark, which later uses of the same bytes on other streams wait for, where
 * one of the two writes. What each stream is known to come after is a vector clock, so that no wait is issued that
 * others imply. Plain functions over the marks of a backend, which know no Effect.
 */
import { success } from "../../cuda/status.ts"
import type { Marker, MarkerBackend } from "./accesses.ts"
import type { StreamResource } from "./resources.ts"

/** What ordering needs of a backend. */
export type Markers = Omit<MarkerBackend, "watch">

/** For streams, the last of their marks that something comes after. */
type Known = ReadonlyMap<Track, number>

const nothing: Known = new Map()

/** A place in a stream: what the mark of this number, and every later one, is behind. */
interface Place {
  readonly track: Track
  readonly position: number
}

/** A stream, as far as marks tell its order. Two resources for one stream of the driver share a track. */
export class Track {
  readonly stream: StreamResource
  /** How many marks were made on it. */
  position = 0
  /** What its next work comes after. Never changed in place, since marks keep what it was. */
  known: Known = nothing

  constructor(stream: StreamResource) {
    this.stream = stream
  }

  /** A stream is drained before it is released. */
  get isOver(): boolean {
    return this.stream.state === "released"
  }

  isAfter({ position, track }: Place): boolean {
    return track === this || (this.known.get(track) ?? 0) >= position
  }

  /** Has the stream wait for a mark, and for all that the mark comes after. */
  waitFor(mark: Mark, markers: Markers): number {
    const status = markers.wait(this.stream, mark.marker)
    if (status !== success) return status
    const known = new Map<Track, number>()
    for (const source of [this.known, mark.known]) {
      for (const [track, position] of source) {
        // What is over is forgotten here, so that streams that come and go do not keep each other in memory.
        if (track.isOver) track.known = nothing
        else if (track !== this) known.set(track, Math.max(position, known.get(track) ?? 0))
      }
    }
    this.known = known.set(mark.track, mark.position)
    return success
  }
}

/** A point in a stream. Its marker goes back to the backend when the last who holds the mark releases it. */
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

  /** True when who comes after this mark comes after the other too. */
  implies({ position, track }: Place): boolean {
    return (track === this.track ? this.position : this.known.get(track) ?? 0) >= position
  }
}

/** Makes a mark behind all that a track's stream holds now; the status of the call that failed, otherwise. */
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

/** What a stream did, or is doing, with bytes of a buffer. */
export class Use implements Bytes, Place {
  readonly track: Track
  readonly position: number
  readonly from: number
  readonly to: number
  readonly writes: boolean
  /** The end of it. None while it goes on, and where making one failed: a mark that is made later stands for it. */
  mark: Mark | undefined

  constructor(track: Track, { from, to, writes }: Bytes, mark: Mark | undefined, position = track.position + 1) {
    this.track = track
    this.position = mark?.position ?? position
    this.from = from
    this.to = to
    this.writes = writes
    this.mark = mark
  }

  /** Still going on: more of it may be enqueued at any moment, so no mark is behind it for good. */
  get isOpen(): boolean {
    return this.position === neverOver
  }

  /** True when who waits for this use comes after the earlier one, and whoever has to wait for that waits for this. */
  replaces(earlier: Use): boolean {
    if (earlier.isOpen || earlier.from < this.from || earlier.to > this.to) return false
    if (!this.writes && (earlier.writes || earlier.track !== this.track)) return false
    return this.track.isAfter(earlier)
  }
}

const neverOver = Number.POSITIVE_INFINITY

/** As many uses are kept before those whose work is done are looked for. */
const fewUses = 32

/** The uses of one buffer that later uses may have to wait for. */
export class Ordering {
  readonly uses: Array<Use> = []
  /** Accesses of the buffer that have not ended, those that wait for their turn included. */
  readonly accesses = new Set<Access>()
  #pruneAt = fewUses
  #isOver = false

  add(use: Use, markers: Markers): void {
    if (this.#isOver) return use.mark?.release()
    this.#drop((earlier) => use.replaces(earlier))
    this.uses.push(use)
    if (this.uses.length < this.#pruneAt) return
    this.#drop((earlier) => isDone(earlier, markers))
    this.#pruneAt = Math.max(fewUses, 2 * this.uses.length)
  }

  delete(use: Use): void {
    this.#drop((other) => other === use)
  }

  /** For the release of the buffer: nobody waits for its uses any more. */
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
 * The marks that stand for uses of the parts, of those that matter: only those that no other of them implies. Whoever
 * calls releases them. Or the status of a call that failed.
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

/** Makes a mark on the streams of the uses that no mark is behind. */
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

/** Releases the marks of streams all of whose uses come before another of the marks. */
const dropImplied = (uses: ReadonlyArray<Use>, latest: Map<Track, Mark>): void => {
  for (const mark of latest.values()) {
    const own = uses.filter((use) => use.track === mark.track)
    const others = Array.from(latest.values()).filter((other) => other !== mark)
    if (!others.some((other) => own.every((use) => other.implies(use)))) continue
    mark.release()
    latest.delete(mark.track)
  }
}

/** The marks behind all uses of a part so far; see `marksOf`. */
export const marksOfPart = (part: Part, markers: Markers): ReadonlyArray<Mark> | number =>
  marksOf([part], markers, overlap)

/** A piece of work on a stream and the bytes it uses, what it reads first. */
export class Work {
  readonly track: Track
  readonly parts: ReadonlyArray<Part>

  constructor(track: Track, parts: ReadonlyArray<Part>) {
    this.track = track
    this.parts = parts
  }

  /** Has the stream wait for what the work must come after. 0, or the status of the call that failed. */
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

  /** Marks the work, which was just enqueued. 0, or the status of the call that failed. */
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

  /** Has what is enqueued from now on for uses that are still open come after this work. */
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
 * Work that is enqueued in the course of time, by somebody else. Of two such that conflict on different streams the
 * later one begins when the earlier one has ended, since their parts could not be told apart; one that is part of the
 * other goes on within it. All other work may come in between: it is ordered after what was enqueued before it, and
 * before the rest.
 */
export class Access {
  readonly #work: Work
  readonly #open: ReadonlyArray<readonly [Ordering, Use]>
  /** Those that have to end first, and those that this one has to end for. */
  readonly #blockers = new Set<Access>()
  readonly #blocked = new Set<Access>()
  #isRunning = false
  /** Called when nothing blocks it any more. */
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

  #waitsForAny(accesses: ReadonlySet<Access>): boolean {
    for (const blocker of this.#blockers) if (accesses.has(blocker) || blocker.#waitsForAny(accesses)) return true
    return false
  }

  /** Has the stream wait for what the access must come after; once nothing blocks it. */
  begin(markers: Markers): number {
    const status = this.#work.begin(markers)
    if (status !== success) return status
    this.#isRunning = true
    for (const [ordering, use] of this.#open) ordering.add(use, markers)
    return success
  }

  /** Marks what was enqueued since it began, if it did, and lets the next ones begin. */
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
