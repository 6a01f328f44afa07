/**
 * Random programs, compared with an oracle that looks for a path between each two uses in a graph of everything that happened.
 */
import { assert, describe, it } from "@effect/vitest"
import { nullHandle, offsetBy } from "../../src/cuda/handles.ts"
import type { CUdeviceptr, HostPointer } from "../../src/cuda/handles.ts"
import { Checks } from "../../src/layers/checked/Checks.ts"
import type { Access, Use } from "../../src/layers/checked/Checks.ts"
import { HostMemory } from "../../src/layers/checked/HostMemory.ts"
import type { Point, Timeline } from "../../src/layers/checked/timelines.ts"
import type { HostMemoryRef, MemoryRef, StreamRef } from "../../src/layers/CudaRuntime.ts"
import { makeRandom } from "../support/random.ts"

type Kind = "blocking" | "nonBlocking" | "legacy"

type Step =
  | { readonly do: "use"; readonly stream: number; readonly uses: ReadonlyArray<Part> }
  | { readonly do: "record" | "wait"; readonly stream: number; readonly event: number }
  | { readonly do: "waitStream"; readonly stream: number; readonly other: number }
  | { readonly do: "syncStream"; readonly stream: number }
  | { readonly do: "syncEvent"; readonly event: number }
  | { readonly do: "syncAll" }
  | { readonly do: "replace"; readonly stream: number }

interface Part {
  readonly buffer: number
  readonly from: number
  readonly to: number
  readonly writes: boolean
}

const bufferSize = 16

/** The graph of everything that happened: nodes, and for each the nodes right before it. */
class Oracle {
  readonly #before: Array<ReadonlyArray<number>> = []
  readonly #last: Array<number>
  readonly #kinds: ReadonlyArray<Kind>
  readonly #events: Array<number | undefined> = []
  readonly #uses: Array<{ readonly node: number; readonly parts: ReadonlyArray<Part> }> = []
  readonly #ordered: ReadonlyArray<boolean>
  #host: number

  constructor(kinds: ReadonlyArray<Kind>, ordered: ReadonlyArray<boolean>) {
    this.#kinds = kinds
    this.#ordered = ordered
    this.#host = this.#add([])
    this.#last = kinds.map(() => this.#host)
  }

  #add(before: ReadonlyArray<number>): number {
    this.#before.push(before)
    return this.#before.length - 1
  }

  /** What the next operation of a stream comes after. */
  #tail(stream: number): ReadonlyArray<number> {
    const kind = this.#kinds[stream]!
    const others = this.#kinds.flatMap((other, index) =>
      (kind === "legacy" && other === "blocking") || (kind === "blocking" && other === "legacy")
        ? [this.#last[index]!]
        : []
    )
    return [this.#last[stream]!, this.#host, ...others]
  }

  #reaches(from: number, to: number): boolean {
    const seen = new Set([to])
    for (const node of seen) {
      if (node === from) return true
      for (const before of this.#before[node]!) if (before >= from) seen.add(before)
    }
    return false
  }

  /** The uses that the host has not waited for. */
  get inFlight(): ReadonlyArray<{ readonly id: number; readonly parts: ReadonlyArray<Part> }> {
    return this.#uses.flatMap(({ node, parts }, id) => this.#reaches(node, this.#host) ? [] : [{ id, parts }])
  }

  /** Enqueues work, unless it races. */
  use(stream: number, parts: ReadonlyArray<Part>): boolean {
    const waits = this.#uses.filter(({ parts: others }) =>
      parts.some((part) => this.#ordered[part.buffer] === true && others.some((other) => conflict(part, other)))
    )
    const node = this.#add([...this.#tail(stream), ...waits.map((use) => use.node)])
    const races = this.#uses.some((other) =>
      parts.some((part) => other.parts.some((theirs) => conflict(part, theirs))) && !this.#reaches(other.node, node)
    )
    if (races) {
      this.#before.pop()
      return true
    }
    this.#last[stream] = node
    this.#uses.push({ node, parts })
    return false
  }

  record(event: number, stream: number): void {
    this.#last[stream] = this.#add(this.#tail(stream))
    this.#events[event] = this.#last[stream]
  }

  wait(stream: number, event: number): void {
    const recorded = this.#events[event]
    if (recorded !== undefined) this.#last[stream] = this.#add([...this.#tail(stream), recorded])
  }

  waitStream(stream: number, other: number): void {
    this.#last[other] = this.#add(this.#tail(other))
    this.#last[stream] = this.#add([...this.#tail(stream), this.#last[other]])
  }

  syncStream(stream: number): void {
    this.#last[stream] = this.#add(this.#tail(stream))
    this.#host = this.#add([this.#host, this.#last[stream]])
  }

  syncEvent(event: number): void {
    const recorded = this.#events[event]
    if (recorded !== undefined) this.#host = this.#add([this.#host, recorded])
  }

  syncAll(): void {
    for (const stream of this.#kinds.keys()) this.syncStream(stream)
  }
}

const conflict = (one: Part, other: Part): boolean =>
  one.buffer === other.buffer && (one.writes || other.writes) && one.from < other.to && other.from < one.to

/** The checks, driven as the layer drives them. */
class Driven {
  readonly #checks = new Checks()
  readonly #streams: Array<StreamRef>
  readonly #buffers: ReadonlyArray<MemoryRef>
  readonly #events: Array<Point | undefined> = []
  readonly #kinds: ReadonlyArray<Kind>
  readonly #host: HostMemory | undefined
  #uses = 0
  #nextId = 100
  /** The number of times that a use repeated an earlier one. */
  repeated = 0

  constructor(
    kinds: ReadonlyArray<Kind>,
    ordered: ReadonlyArray<boolean>,
    buffers?: ReadonlyArray<MemoryRef>,
    host?: HostMemory
  ) {
    this.#kinds = kinds
    this.#host = host
    if (host !== undefined) this.#checks.timelines.onFinish = () => host.finished()
    this.#checks.watchesHost = host !== undefined
    // Clocks are in groups of 16 streams: the program's streams are in two of them.
    const fields = { name: "", deviceIndex: 1, isBlocking: false, isLegacy: false, isForeign: false }
    for (let index = 0; index < 14; index++) this.#checks.timelines.make(fields)
    this.#streams = kinds.map((kind) => this.#stream(kind))
    for (const stream of this.#streams.keys()) this.#timeline(stream)
    this.#buffers = buffers ?? ordered.map((isOrdered, index) => ({
      kind: "device",
      address: offsetBy(nullHandle<CUdeviceptr>(), 0x1000 * (index + 1)),
      byteLength: bufferSize,
      isOrdered,
      isManaged: false,
      isGrowable: false,
      deviceIndex: 0,
      state: "live"
    }))
    for (const buffer of this.#buffers) this.#checks.allocate(buffer)
  }

  #stream(kind: Kind): StreamRef {
    const id = kind === "legacy" ? 0 : this.#nextId++
    return {
      handle: nullHandle(),
      id,
      deviceIndex: 0,
      priority: 0,
      nonBlocking: kind === "nonBlocking",
      origin: "owned",
      name: undefined,
      isRecording: false,
      partition: undefined,
      state: "live"
    }
  }

  #timeline(stream: number) {
    return this.#checks.timelineOf(this.#streams[stream]!)
  }

  use(stream: number, parts: ReadonlyArray<Part>): boolean {
    const timeline = this.#timeline(stream)
    const uses = parts.map((part): Use => ({
      memory: this.#buffers[part.buffer]!,
      offset: part.from,
      byteLength: part.to - part.from,
      kind: part.writes ? "writes" : "reads",
      argument: undefined
    }))
    // As the layer does: what repeats an earlier use is not looked at.
    if (this.#repeats(timeline, uses)) return false
    const operation = this.#host === undefined ? "use" : String(this.#uses++)
    const work = { operation, uses, where: undefined, isVoid: false }
    const known = this.#checks.knownBy(timeline, work)
    if (this.#checks.find(timeline, known, work).length > 0) return true
    this.#host?.before(uses)
    this.#checks.commit(timeline, known, work)
    this.#host?.enqueued(timeline, timeline.epoch, known, work, uses)
    return false
  }

  #repeats(timeline: Timeline, uses: ReadonlyArray<Use>): boolean {
    const checks = this.#checks
    const known = checks.timelines.knownBy(timeline)
    const accesses: Array<Access> = []
    for (const { byteLength, kind, memory, offset } of uses) {
      const writes = kind !== "reads"
      const access = checks.repeated(timeline, known, memory, offset, byteLength, writes, "use", undefined)
      if (access === undefined) return false
      accesses.push(access)
    }
    for (const access of accesses) checks.renew(timeline, known, access)
    this.repeated++
    return true
  }

  record(event: number, stream: number): void {
    this.#events[event] = this.#checks.timelines.pointOf(this.#timeline(stream))
  }

  wait(stream: number, event: number): void {
    const point = this.#events[event]
    if (point !== undefined) this.#checks.timelines.wait(this.#timeline(stream), point)
  }

  waitStream(stream: number, other: number): void {
    const { timelines } = this.#checks
    timelines.wait(this.#timeline(stream), timelines.pointOf(this.#timeline(other)))
  }

  syncStream(stream: number): void {
    const { timelines } = this.#checks
    timelines.finish(timelines.pointOf(this.#timeline(stream)))
  }

  syncEvent(event: number): void {
    const point = this.#events[event]
    if (point !== undefined) this.#checks.timelines.finish(point)
  }

  syncAll(): void {
    for (const stream of this.#streams.keys()) this.syncStream(stream)
  }

  /** Destroys a stream, and makes another in its place. */
  replace(stream: number): void {
    this.#timeline(stream)
    this.syncStream(stream)
    this.#checks.endTimeline(this.#streams[stream]!)
    this.#streams[stream] = this.#stream(this.#kinds[stream]!)
  }

  get size() {
    return this.#checks.size
  }
}

const programOf = (random: ReturnType<typeof makeRandom>) => {
  const streams = random(3) + 2
  const kinds = Array.from({ length: streams }, (_, index): Kind => {
    if (random(2) === 0) return "nonBlocking"
    return index === 0 ? "legacy" : "blocking"
  })
  const ordered = Array.from({ length: random(2) + 1 }, () => random(4) === 0)
  const part = (): Part => {
    const from = random(bufferSize)
    const to = from + 1 + random(bufferSize - from)
    return { buffer: random(ordered.length), from, to, writes: random(2) === 0 }
  }
  let last: Step | undefined
  const step = (): Step => {
    const stream = random(streams)
    const event = random(3)
    const choice = random(22)
    if (choice >= 20 && last !== undefined) return last
    if (choice < 9) return last = { do: "use", stream, uses: Array.from({ length: 1 + random(2) }, part) }
    if (choice < 12) return { do: "record", stream, event }
    if (choice < 15) return { do: "wait", stream, event }
    if (choice < 16) return { do: "waitStream", stream, other: random(streams) }
    if (choice < 17) return { do: "syncStream", stream }
    if (choice < 18) return { do: "syncEvent", event }
    if (choice < 19) return kinds[stream] === "legacy" ? { do: "syncAll" } : { do: "replace", stream }
    return random(3) === 0 ? { do: "syncAll" } : { do: "waitStream", stream, other: random(streams) }
  }
  return { kinds, ordered, steps: Array.from({ length: 5 + random(30) }, step) }
}

const run = (subject: Oracle | Driven, step: Step): boolean => {
  switch (step.do) {
    case "use":
      return subject.use(step.stream, step.uses)
    case "record":
      subject.record(step.event, step.stream)
      return false
    case "wait":
      subject.wait(step.stream, step.event)
      return false
    case "waitStream":
      if (step.other !== step.stream) subject.waitStream(step.stream, step.other)
      return false
    case "syncStream":
      subject.syncStream(step.stream)
      return false
    case "syncEvent":
      subject.syncEvent(step.event)
      return false
    case "syncAll":
      subject.syncAll()
      return false
    case "replace":
      // A stream is drained when it is destroyed. The one in its place begins after the host.
      if (subject instanceof Oracle) subject.syncStream(step.stream)
      else subject.replace(step.stream)
      return false
  }
}

/** A write by the host, and what of it is certain to be found. */
interface HostWrite {
  readonly part: Part
  /** The uses that may still read the bytes. */
  readonly readers: ReadonlySet<number>
  /** Those of them whose bytes are looked at. */
  readonly looked: ReadonlyArray<Part>
}

/** Programs whose host writes to memory that streams read: the host's memory, driven as the layer drives it. */
class HostProgram {
  readonly #oracle: Oracle
  readonly #driven: Driven
  readonly #host = new HostMemory(0)
  readonly #buffers: ReadonlyArray<HostMemoryRef>
  readonly #looked = new Map<number, Part>()
  readonly #random: ReturnType<typeof makeRandom>
  readonly writes: Array<HostWrite> = []
  #value = 0
  #uses = 0

  constructor(kinds: ReadonlyArray<Kind>, count: number, random: ReturnType<typeof makeRandom>) {
    const ordered = Array.from({ length: count }, () => false)
    this.#random = random
    this.#oracle = new Oracle(kinds, ordered)
    this.#buffers = ordered.map((isOrdered, index) => ({
      kind: "host",
      address: offsetBy(nullHandle<HostPointer>(), 0x1000 * (index + 1)),
      byteLength: bufferSize,
      isOrdered,
      state: "live",
      bytes: new Uint8Array(bufferSize)
    }))
    this.#driven = new Driven(kinds, ordered, this.#buffers, this.#host)
  }

  get found() {
    return this.#host.found
  }

  /** All devices write at some time until the host has waited for them. */
  #work(): void {
    for (const { parts } of this.#oracle.inFlight) {
      for (const part of parts) if (part.writes && this.#random(2) === 0) this.#change(part)
    }
  }

  #change({ buffer, from, to }: Part): void {
    for (let at = from; at < to; at++) this.#buffers[buffer]!.bytes[at] = ++this.#value % 251
  }

  step(step: Step): void {
    if (step.do !== "use") {
      this.#work()
      run(this.#oracle, step)
      run(this.#driven, step)
      const inFlight = new Set(this.#oracle.inFlight.map(({ id }) => id))
      for (const id of this.#looked.keys()) if (!inFlight.has(id)) this.#looked.delete(id)
      return
    }
    const before = this.#oracle.inFlight
    if (this.#oracle.use(step.stream, step.uses)) return
    const id = this.#uses++
    // Of several parts of one buffer, the bytes between those that are written count as written.
    const written = step.uses.filter(({ writes }) => writes).map((part) => spanOf(step.uses, part))
    for (const [other, part] of this.#looked) if (written.some((one) => touch(one, part))) this.#looked.delete(other)
    const busy = [
      ...written,
      ...before.flatMap(({ parts }) => parts.filter(({ writes }) => writes).map((part) => spanOf(parts, part)))
    ]
    const read = step.uses.filter(({ writes }) => !writes)
    if (read.length === 1 && !busy.some((part) => touch(part, read[0]!))) this.#looked.set(id, read[0]!)
    this.#driven.use(step.stream, step.uses)
    this.#work()
  }

  write(part: Part): void {
    const readers = this.#oracle.inFlight.filter(({ parts }) => parts.some((one) => !one.writes && touch(one, part)))
    const looked = readers.flatMap(({ id }) => this.#looked.get(id) ?? []).filter((one) => touch(one, part))
    this.writes.push({ part, readers: new Set(readers.map(({ id }) => id)), looked })
    // What is found once is not looked at any longer.
    for (const { id } of readers) this.#looked.delete(id)
    this.#change(part)
  }

  bufferOf(memory: MemoryRef): number {
    return this.#buffers.findIndex((buffer) => buffer === memory)
  }
}

const touch = (one: Part, other: Part): boolean =>
  one.buffer === other.buffer && one.from < other.to && other.from < one.to

const spanOf = (parts: ReadonlyArray<Part>, { buffer }: Part): Part => {
  const written = parts.filter((part) => part.writes && part.buffer === buffer)
  const from = Math.min(...written.map((part) => part.from))
  return { buffer, from, to: Math.max(...written.map((part) => part.to)), writes: true }
}

describe("random writes by the host", () => {
  it("are found if they are to bytes that work may still read, and nothing else is", () => {
    let expected = 0
    let reported = 0
    for (let seed = 1; seed <= 10_000; seed++) {
      const random = makeRandom(seed)
      const { kinds, ordered, steps } = programOf(random)
      const program = new HostProgram(kinds, ordered.length, random)
      for (const step of steps) {
        program.step(step)
        if (random(3) > 0) continue
        const from = random(bufferSize)
        program.write({ buffer: random(ordered.length), from, to: from + 1 + random(bufferSize - from), writes: true })
      }
      program.step({ do: "syncAll" })
      const found = program.found.map(({ byteLength, memory, offset, reader }) => ({
        id: Number(reader.work.operation),
        part: { buffer: program.bufferOf(memory), from: offset, to: offset + byteLength, writes: true }
      }))
      const named = `seed ${seed}`
      for (const { id, part } of found) {
        // The first and the last byte were written while that work could read them.
        for (const at of [part.from, part.to - 1]) {
          const byte = { ...part, from: at, to: at + 1 }
          assert.isTrue(program.writes.some((write) => write.readers.has(id) && touch(write.part, byte)), named)
        }
      }
      for (const { looked, part } of program.writes) {
        for (const read of looked) {
          expected++
          assert.isTrue(found.some((one) => touch(one.part, read) && touch(one.part, part)), named)
        }
      }
      reported += found.length
    }
    assert.isAbove(expected, 1000)
    assert.isAbove(reported, 1000)
  })
})

describe("random programs", () => {
  it("have the races that an oracle finds, and no others", () => {
    let races = 0
    let uses = 0
    let repeated = 0
    for (let seed = 1; seed <= 10_000; seed++) {
      const { kinds, ordered, steps } = programOf(makeRandom(seed))
      const oracle = new Oracle(kinds, ordered)
      const driven = new Driven(kinds, ordered)
      for (const [index, step] of steps.entries()) {
        const expected = run(oracle, step)
        const found = run(driven, step)
        if (step.do === "use") uses++
        if (expected) races++
        if (expected === found) continue
        assert.fail(
          `seed ${seed}, step ${index}: expected ${expected}, found ${found}\n` +
            JSON.stringify({ kinds, ordered, steps: steps.slice(0, index + 1) }, undefined, 1)
        )
      }
      repeated += driven.repeated
    }
    // The programs are worth comparing only if both answers are common.
    assert.isAbove(races, uses / 10)
    assert.isBelow(races, uses * 0.9)
    assert.isAbove(repeated, 1000)
  })

  it("need no more memory, however long they run", () => {
    const random = makeRandom(7)
    const driven = new Driven(["nonBlocking", "nonBlocking", "blocking"], [false])
    for (let round = 0; round < 1_000_000; round++) {
      const from = random(bufferSize)
      driven.use(random(3), [{ buffer: 0, from, to: from + 1, writes: true }])
      if (round % 50 === 0) driven.syncAll()
      if (round % 100 === 0) driven.replace(random(3))
    }
    const { pieces, ...size } = driven.size
    assert.deepStrictEqual(size, { regions: 1, streams: 14 + 3 })
    // One for each byte that was used alone.
    assert.isAtMost(pieces, bufferSize)
  }, 60_000)
})
