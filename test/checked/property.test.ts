/**
 * Random programs, compared with an oracle that looks for a path between each two uses in a graph of everything that happened.
 */
import { assert, describe, it } from "@effect/vitest"
import { nullHandle, offsetBy } from "../../src/cuda/handles.ts"
import type { CUdeviceptr } from "../../src/cuda/handles.ts"
import { Checks } from "../../src/layers/checked/Checks.ts"
import type { Use } from "../../src/layers/checked/Checks.ts"
import type { Point } from "../../src/layers/checked/timelines.ts"
import type { MemoryRef, StreamRef } from "../../src/layers/CudaRuntime.ts"
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
  #nextId = 100

  constructor(kinds: ReadonlyArray<Kind>, ordered: ReadonlyArray<boolean>) {
    this.#kinds = kinds
    this.#streams = kinds.map((kind) => this.#stream(kind))
    this.#buffers = ordered.map((isOrdered, index) => ({
      kind: "device",
      address: offsetBy(nullHandle<CUdeviceptr>(), 0x1000 * (index + 1)),
      byteLength: bufferSize,
      isOrdered,
      isManaged: false,
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
      isRecording: false,
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
    const work = { operation: "use", uses, where: undefined, isVoid: false }
    const known = this.#checks.knownBy(timeline, work)
    if (this.#checks.find(timeline, known, work).length > 0) return true
    this.#checks.commit(timeline, known, work)
    return false
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
  const step = (): Step => {
    const stream = random(streams)
    const event = random(3)
    const choice = random(20)
    if (choice < 9) return { do: "use", stream, uses: Array.from({ length: 1 + random(2) }, part) }
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

describe("random programs", () => {
  it("have the races that an oracle finds, and no others", () => {
    let races = 0
    let uses = 0
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
    }
    // The programs are worth comparing only if both answers are common.
    assert.isAbove(races, uses / 10)
    assert.isBelow(races, uses * 0.9)
  })

  it("need no more memory, however long they run", () => {
    const random = makeRandom(7)
    const driven = new Driven(["nonBlocking", "nonBlocking", "blocking"], [false])
    for (let round = 0; round < 20_000; round++) {
      const from = random(bufferSize)
      driven.use(random(3), [{ buffer: 0, from, to: from + 1, writes: true }])
      if (round % 50 === 0) driven.syncAll()
      if (round % 100 === 0) driven.replace(random(3))
    }
    assert.deepStrictEqual(driven.size, { regions: 1, streams: 3 })
  })
})
