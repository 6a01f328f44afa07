/**
 * Memory of the host that work reads, to find writes by the host meanwhile. While work may read bytes and no work may write them, they must
 * stay as they are: they are copied when the work is enqueued, and compared as soon as the host knows that the work is done, or when
 * other work that writes them is enqueued. Plain data, without Effect.
 */
import type { MemoryRef } from "../CudaRuntime.ts"
import { Access } from "./Checks.ts"
import type { OpenWork, Use, Work } from "./Checks.ts"
import { changeOf, copyOf } from "./Copies.ts"
import type { Copies } from "./Copies.ts"
import type { Known, Timeline } from "./timelines.ts"

/** A write by the host to bytes that work may still read. */
export interface HostWrite {
  /** The work, and what it reads. */
  readonly reader: Access
  readonly memory: MemoryRef
  /** The bytes that have changed, from the first to the last one, from the buffer's start. */
  readonly offset: number
  readonly byteLength: number
}

/** Bytes that work reads, as they are. Positions are in their `ArrayBuffer`, which several buffers can be over. */
interface Watch {
  readonly from: number
  readonly to: number
  readonly bytes: Uint8Array
  readonly copies: Copies
  readonly memory: MemoryRef
  /** The offset in the buffer. */
  readonly offset: number
  /** The work that reads them: the last one of each stream. */
  readonly readers: Array<Access>
}

/** Work that writes bytes, which can change at any time until it is done. */
interface Writer {
  readonly from: number
  readonly to: number
  readonly timeline: Timeline
  epoch: number
}

/** What is known of an `ArrayBuffer`. */
class HostBytes {
  watches: Array<Watch> = []
  writers: Array<Writer> = []
  /** Whether the program has read the address, so that any work may write the bytes. */
  isGivenOut = false
  #pruneAt = 16

  addWriter(writer: Writer): void {
    this.writers.push(writer)
    if (this.writers.length < this.#pruneAt) return
    this.writers = this.writers.filter(isRunning)
    this.#pruneAt = Math.max(16, 2 * this.writers.length)
  }
}

const isRunning = ({ epoch, timeline }: Writer): boolean => timeline.done < epoch

interface Range {
  readonly from: number
  readonly to: number
}

const overlaps = (one: Range, other: Range): boolean => one.from < other.to && other.from < one.to

/** The most bytes that are kept, and the most ranges. */
const mostBytes = 2 ** 28
const mostWatches = 4096

/** The most ranges that are looked at of one operation, for copies of many rows. */
const mostReads = 256

const neverDone = Number.POSITIVE_INFINITY

export class HostMemory {
  readonly #known = new WeakMap<ArrayBufferLike, HostBytes>()
  readonly #watches = new Map<Watch, HostBytes>()
  readonly #open = new WeakMap<OpenWork, ReadonlyArray<Writer>>()
  readonly #wholeUpTo: number
  #kept = 0
  /** The writes that were found and not reported yet. */
  readonly found: Array<HostWrite> = []
  /** Reads that could not be watched. */
  unwatched = 0

  constructor(wholeUpTo: number) {
    this.#wholeUpTo = wholeUpTo
  }

  /** The number of ranges that are watched. */
  get size(): number {
    return this.#watches.size
  }

  #of(buffer: ArrayBufferLike): HostBytes {
    const known = this.#known.get(buffer)
    if (known !== undefined) return known
    const made = new HostBytes()
    this.#known.set(buffer, made)
    return made
  }

  /** Notes that the program has the address of memory. */
  giveOut(memory: MemoryRef): void {
    const bytes = bytesOf(memory)
    if (bytes === undefined) return
    const known = this.#of(bytes.buffer)
    known.isGivenOut = true
    for (const watch of known.watches) this.#drop(watch)
    known.watches = []
  }

  /** Work is about to be enqueued: what it writes may change from now on, so changes up to now are by the host. */
  before(uses: ReadonlyArray<Use>): void {
    for (const [buffer, range] of writtenBy(uses)) this.#end(buffer, range)
  }

  /** Compares bytes for the last time. */
  #end(buffer: ArrayBufferLike, range: Range): void {
    const known = this.#known.get(buffer)
    if (known === undefined || known.watches.length === 0) return
    for (const watch of known.watches) {
      if (!overlaps(watch, range)) continue
      this.#compare(watch)
      this.#drop(watch)
    }
    known.watches = known.watches.filter((watch) => this.#watches.has(watch))
  }

  /** Work was enqueued. */
  enqueued(timeline: Timeline, epoch: number, known: Known, work: Work, uses: ReadonlyArray<Use>): void {
    this.#addWriters(timeline, epoch, uses)
    const reads = work.uses.filter(isHostRead)
    const step = Math.ceil(reads.length / mostReads)
    if (step > 1) this.unwatched += reads.length - Math.ceil(reads.length / step)
    for (let index = 0; index < reads.length; index += step) {
      this.#watch(reads[index]!, new Access(timeline, epoch, known, reads[index]!, work))
    }
  }

  #addWriters(timeline: Timeline, epoch: number, uses: ReadonlyArray<Use>): ReadonlyArray<Writer> {
    const writers: Array<Writer> = []
    for (const [buffer, range] of writtenBy(uses)) {
      const writer = { ...range, timeline, epoch }
      this.#of(buffer).addWriter(writer)
      writers.push(writer)
    }
    return writers
  }

  /** Other code begins to enqueue work, which can write at any time. */
  begin(open: OpenWork): void {
    this.before(open.uses)
    this.#open.set(open, this.#addWriters(open.timeline, neverDone, open.uses))
  }

  /** Other code has enqueued its work. If the host has waited since it began, it may have waited for all that reads. */
  end(open: OpenWork, epoch: number, known: Known): void {
    for (const writer of this.#open.get(open) ?? []) writer.epoch = epoch
    this.enqueued(open.timeline, open.since, known, open, [])
  }

  #watch(use: Use, reader: Access): void {
    const bytes = bytesOf(use.memory)
    if (bytes === undefined || isDone(reader)) return
    const known = this.#of(bytes.buffer)
    const range = rangeIn(bytes, use)
    if (known.isGivenOut || known.writers.some((writer) => overlaps(writer, range) && isRunning(writer))) {
      this.unwatched++
      return
    }
    const same = known.watches.find(({ from, to }) => from === range.from && to === range.to)
    if (same !== undefined && !this.#compare(same)) return addReader(same, reader)
    if (same !== undefined) known.watches = known.watches.filter((watch) => watch !== same)
    this.#add(known, range, bytes.subarray(use.offset, use.offset + use.byteLength), reader)
  }

  #add(known: HostBytes, range: Range, bytes: Uint8Array, reader: Access): void {
    if (this.#watches.size >= mostWatches || this.#kept >= mostBytes) {
      this.unwatched++
      return
    }
    const { memory, offset } = reader.use
    const copies = copyOf(bytes, this.#wholeUpTo)
    const watch = { ...range, bytes, copies, memory, offset, readers: [reader] }
    known.watches.push(watch)
    this.#watches.set(watch, known)
    this.#kept += copies.kept
  }

  /** Compares bytes with what they were. If they have changed, notes that and returns true. */
  #compare(watch: Watch): boolean {
    const { bytes, copies, memory, offset, readers } = watch
    const reader = readers.find(({ work }) => !work.isVoid)
    const changed = reader === undefined ? undefined : changeOf(bytes, copies)
    if (reader === undefined || changed === undefined) return false
    const { from, to } = changed
    this.found.push({ reader, memory, offset: offset + from, byteLength: to - from })
    this.#drop(watch)
    return true
  }

  #drop(watch: Watch): void {
    if (this.#watches.delete(watch)) this.#kept -= watch.copies.kept
  }

  /** The host has learned that work is done. */
  finished(): void {
    for (const [watch, known] of this.#watches) {
      const { readers } = watch
      if (!readers.some(isDone)) continue
      const isOver = this.#compare(watch) || readers.every(isDone)
      if (!isOver) {
        readers.splice(0, readers.length, ...readers.filter((reader) => !isDone(reader)))
        continue
      }
      this.#drop(watch)
      known.watches = known.watches.filter((other) => other !== watch)
    }
  }

  /** Forgets everything: after a fault, nobody knows what is still running. */
  forget(): void {
    for (const [watch, known] of this.#watches) {
      this.#drop(watch)
      known.watches = []
    }
  }

  /** Memory is released: work of others may use it next. */
  released(memory: MemoryRef): void {
    const bytes = bytesOf(memory)
    if (bytes !== undefined) this.#end(bytes.buffer, rangeIn(bytes, { offset: 0, byteLength: memory.byteLength }))
  }
}

const isDone = ({ epoch, timeline }: Access): boolean => timeline.done >= epoch

const addReader = ({ readers }: Watch, reader: Access): void => {
  const at = readers.findIndex(({ timeline }) => timeline === reader.timeline)
  if (at < 0) readers.push(reader)
  else readers[at] = reader
}

const isHostRead = ({ kind, memory }: Use): boolean => kind === "reads" && bytesOf(memory) !== undefined

/** The bytes of the host that work may write. Rows count with the bytes between them: those are not looked at meanwhile. */
const writtenBy = (uses: ReadonlyArray<Use>): ReadonlyMap<ArrayBufferLike, Range> => {
  let written = noRanges
  for (const use of uses) {
    const bytes = use.kind === "reads" ? undefined : bytesOf(use.memory)
    if (bytes === undefined) continue
    const { from, to } = rangeIn(bytes, use)
    const before = written.get(bytes.buffer)
    if (written === noRanges) written = new Map()
    written.set(bytes.buffer, { from: Math.min(from, before?.from ?? from), to: Math.max(to, before?.to ?? to) })
  }
  return written
}

const noRanges = new Map<ArrayBufferLike, Range>()

/** The bytes of memory that the host can see. */
const bytesOf = (memory: MemoryRef): Uint8Array | undefined => {
  const bytes = memory.state === "live" && "bytes" in memory ? memory.bytes : undefined
  return bytes === undefined || bytes.byteLength === 0 ? undefined : bytes
}

const rangeIn = (bytes: Uint8Array, { byteLength, offset }: Pick<Use, "offset" | "byteLength">): Range => {
  const from = bytes.byteOffset + offset
  return { from, to: from + byteLength }
}
