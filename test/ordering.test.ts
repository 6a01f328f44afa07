/**
 * Ordered buffers on random programs: their waits produce exactly the required order of uses, and no wait is implied by others.
 * First the data structure alone, then whole programs in virtual time.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaMemory, CudaStream, SimulatedRuntime } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime, StreamHandle } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import type { Marker } from "../src/layers/shared/accesses.ts"
import { Access, Ordering, Track, Work } from "../src/layers/shared/ordering.ts"
import type { Markers } from "../src/layers/shared/ordering.ts"
import { StreamResource } from "../src/layers/shared/resources.ts"
import { failsWith, refuses } from "./support/assertions.ts"
import { started } from "./support/fibers.ts"
import { graph, schedule } from "./support/reference.ts"
import type { Instruction, Node } from "./support/reference.ts"

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

// The data structure alone

const Bytes = Schema.Struct({
  buffer: between(0, 1),
  from: between(0, 11),
  length: between(1, 6),
  writes: Schema.Boolean
})

const Step = Schema.Struct({
  stream: between(0, 3),
  bytes: Schema.Array(Bytes).check(Schema.isMinLength(1), Schema.isMaxLength(3)),
  /** What happens afterwards: the stream's work ends, or the stream is also released. */
  after: Schema.Literals(["nothing", "nothing", "finish", "release"]),
  fails: Schema.Literals(["nothing", "nothing", "nothing", "record", "wait"])
})

interface Step extends Schema.Schema.Type<typeof Step> {}

/** An operation on a stream, work or a wait for another stream, and everything that comes before it. */
interface Item {
  readonly work: number | undefined
  readonly before: ReadonlySet<Item>
  isDone: boolean
}

class FakeMarker implements Marker {
  readonly deviceIndex = 0
  readonly item: Item | undefined
  isReleased = false
  constructor(item: Item | undefined) {
    this.item = item
  }
}

/** Keeps track of the order of operations, and detects markers that are used after their release. */
class FakeMarkers implements Markers {
  made: FakeMarker | undefined
  readonly all: Array<FakeMarker> = []
  readonly last = new Map<StreamResource, Item>()
  waits: Array<{ readonly target: Item; readonly earlier: ReadonlySet<Item> }> = []
  queries = 0
  failing: Step["fails"] = "nothing"

  enqueue(stream: StreamResource, work: number | undefined, target?: Item): Item {
    const before = new Set<Item>()
    for (const item of [this.last.get(stream), target]) {
      if (item === undefined) continue
      before.add(item)
      for (const earlier of item.before) before.add(earlier)
    }
    const item: Item = { work, before, isDone: false }
    this.last.set(stream, item)
    return item
  }

  record(stream: StreamResource): number {
    if (this.failing === "record") return 1
    this.made = new FakeMarker(this.last.get(stream))
    this.all.push(this.made)
    return 0
  }

  wait(stream: StreamResource, marker: Marker): number {
    const { item, isReleased } = fake(marker)
    assert.isFalse(isReleased, "a wait for a marker that was given back")
    if (this.failing === "wait") return 1
    const own = this.last.get(stream)
    this.waits.push({ target: item!, earlier: new Set(own === undefined ? [] : [own, ...own.before]) })
    this.enqueue(stream, undefined, item)
    return 0
  }

  query(marker: Marker): number {
    assert.isFalse(fake(marker).isReleased, "a question about a marker that was given back")
    this.queries++
    return fake(marker).item?.isDone === false ? 600 : 0
  }

  release(marker: Marker): void {
    assert.isFalse(fake(marker).isReleased, "a marker that was given back twice")
    fake(marker).isReleased = true
  }

  /** Ends the work of a stream, and so everything before it. */
  finish(stream: StreamResource): void {
    const last = this.last.get(stream)
    if (last === undefined) return
    last.isDone = true
    for (const item of last.before) item.isDone = true
  }
}

const fake = (marker: Marker): FakeMarker => marker as FakeMarker

const fakeOwner = { kind: "simulated" } as const
let streamIds = 0
const fakeStream = () => {
  const id = ++streamIds
  const handle = id as StreamHandle
  return new Track(
    new StreamResource(fakeOwner, { handle, id, deviceIndex: 0, priority: 0, nonBlocking: true, origin: "owned" })
  )
}

interface Done {
  readonly step: Step
  readonly track: Track
  readonly item: Item
  /** The work that had already ended when this work was enqueued. */
  readonly finished: ReadonlySet<number>
}

const clash = (one: Step, other: Step): boolean =>
  one.bytes.some((a) =>
    other.bytes.some((b) =>
      a.buffer === b.buffer && (a.writes || b.writes) && a.from < b.from + b.length && b.from < a.from + a.length
    )
  )

/** Asserts that no wait is implied by the stream's own order or by another wait of the same work. */
const assertNeeded = (waits: FakeMarkers["waits"]): void => {
  const [first] = waits
  for (const wait of waits) {
    assert.isFalse(first!.earlier.has(wait.target), "a wait for what the stream came after anyway")
    for (const other of waits) {
      if (other === wait) continue
      assert.isFalse(
        other.target === wait.target || other.target.before.has(wait.target),
        "a wait that another implies"
      )
    }
  }
}

/** Runs steps, and returns the work that could be enqueued. */
const runSteps = (steps: ReadonlyArray<Step>) => {
  const markers = new FakeMarkers()
  const orderings = [new Ordering(), new Ordering()]
  const tracks = Array.from({ length: 4 }, fakeStream)
  const done: Array<Done> = []
  for (const step of steps) {
    const track = tracks[step.stream]!
    const parts = [...step.bytes].sort((a, b) => Number(a.writes) - Number(b.writes)).map((bytes) => ({
      ordering: orderings[bytes.buffer]!,
      from: bytes.from,
      to: bytes.from + bytes.length,
      writes: bytes.writes
    }))
    const work = new Work(track, parts)
    markers.waits = []
    markers.failing = step.fails
    const begun = work.begin(markers)
    assertNeeded(markers.waits)
    if (begun === 0) {
      const finished = new Set(done.flatMap(({ item }, index) => item.isDone ? [index] : []))
      done.push({ step, track, item: markers.enqueue(track.stream, done.length), finished })
      work.end(markers)
    }
    markers.failing = "nothing"
    if (step.after !== "nothing") markers.finish(track.stream)
    if (step.after === "release") {
      track.stream.state = "released"
      tracks[step.stream] = fakeStream()
    }
  }
  return { done, markers, orderings }
}

/** The work that each piece of work must come after: conflicting uses and earlier work on its stream, transitively. */
const required = (done: ReadonlyArray<Done>): ReadonlyArray<ReadonlySet<number>> => {
  const all: Array<Set<number>> = []
  for (const [index, { step, track }] of done.entries()) {
    const before = new Set<number>()
    for (const [earlier, other] of done.slice(0, index).entries()) {
      if (other.track !== track && !clash(other.step, step)) continue
      before.add(earlier)
      for (const further of all[earlier]!) before.add(further)
    }
    all.push(before)
  }
  return all
}

const observed = ({ item }: Done): ReadonlySet<number> => new Set([...item.before].flatMap(({ work }) => work ?? []))

const assertClosed = ({ markers, orderings }: ReturnType<typeof runSteps>): void => {
  for (const ordering of orderings) ordering.close()
  assert.isTrue(markers.all.every(({ isReleased }) => isReleased), "a marker that was not given back")
}

const Steps = Schema.Array(Step).check(Schema.isMaxLength(60))

describe("uses of ordered bytes", () => {
  it.prop("come after exactly the uses that they must, and no wait is implied", [Steps], ([drawn]) => {
    const result = runSteps(drawn.map((step) => ({ ...step, after: "nothing", fails: "nothing" })))
    const { done, markers } = result
    const expected = required(done)
    for (const [index, one] of done.entries()) {
      assert.deepStrictEqual([...observed(one)].sort(), [...expected[index]!].sort(), `order of ${index}`)
    }
    assert.strictEqual(markers.all.length, done.length, "one mark for each")
    assertClosed(result)
  }, { arbitrary: { runs: 500, size: 60 } })

  it.prop("need not come after finished work, while streams come and go", [Steps], ([drawn]) => {
    const result = runSteps(drawn.map((step) => ({ ...step, fails: "nothing" })))
    const expected = required(result.done)
    for (const [index, one] of result.done.entries()) {
      const seen = observed(one)
      for (const before of seen) assert.isTrue(expected[index]!.has(before), `${index} waits for ${before}`)
      for (const before of expected[index]!) {
        assert.isTrue(seen.has(before) || one.finished.has(before), `${index} does not wait for ${before}`)
      }
    }
    assertClosed(result)
  }, { arbitrary: { runs: 500, size: 60 } })

  it.prop("stay in order when marks and waits fail", [Steps], ([drawn]) => {
    const result = runSteps(drawn)
    const expected = required(result.done)
    for (const [index, one] of result.done.entries()) {
      const seen = observed(one)
      for (const before of expected[index]!) {
        assert.isTrue(seen.has(before) || one.finished.has(before), `${index} does not wait for ${before}`)
      }
    }
    assertClosed(result)
  }, { arbitrary: { runs: 500, size: 60 } })

  const single = (from: number, stream: number, writes: boolean): Step => ({
    stream,
    bytes: [{ buffer: 0, from, length: 1, writes }],
    after: "nothing",
    fails: "nothing"
  })

  it("are waited for if a later mark of another stream covers them, and that stream's own use is covered too", () => {
    const step = (stream: number, ...bytes: Step["bytes"]): Step => ({
      stream,
      bytes,
      after: "nothing",
      fails: "nothing"
    })
    const bytes = (from: number, length: number, writes: boolean) => ({ buffer: 0, from, length, writes })
    const { done } = runSteps([
      { ...step(2, bytes(3, 2, false), bytes(7, 2, false)), fails: "record" },
      step(3, bytes(0, 2, false), bytes(6, 1, true)),
      // Marks the second use of the first step, but not the first one.
      step(1, bytes(8, 6, true)),
      step(2, bytes(1, 3, true)),
      // Marks the first use, after the wait for stream 3.
      step(0, bytes(4, 1, true), bytes(6, 6, false))
    ])
    assert.includeMembers([...observed(done[4]!)], [0, 1, 2])
  })

  it("that have finished are forgotten, however many bytes they cover", () => {
    const { markers, orderings } = runSteps(
      Array.from({ length: 1500 }, (_, index) => ({ ...single(index, index % 4, index % 3 === 0), after: "finish" }))
    )
    assert.isAtMost(orderings[0]!.uses.length, 32)
    assert.isBelow(markers.queries, 3 * 1500)
  })

  it("that are unfinished are all kept, and queried less and less often", () => {
    const { markers, orderings } = runSteps(Array.from({ length: 2048 }, (_, index) => single(index, index % 4, true)))
    assert.strictEqual(orderings[0]!.uses.length, 2048)
    assert.isBelow(markers.queries, 4 * 2048)
  })

  it("that a stream repeats are kept once per stream", () => {
    const { markers, orderings } = runSteps(
      Array.from({ length: 1500 }, (_, index) => single(3, index % 4, index % 50 === 0))
    )
    assert.isAtMost(orderings[0]!.uses.length, 8)
    assert.isAtMost(markers.all.filter(({ isReleased }) => !isReleased).length, 8)
  })

  it("do not keep released streams in memory", () => {
    const markers = new FakeMarkers()
    const ordering = new Ordering()
    let track = fakeStream()
    const tracks = [track]
    for (let round = 0; round < 100; round++) {
      const work = new Work(track, [{ ordering, from: 0, to: 1, writes: true }])
      work.begin(markers)
      work.end(markers)
      if (round > 0) tracks[round - 1]!.stream.state = "released"
      tracks.push(track = fakeStream())
    }
    const reached = new Set<Track>()
    const visit = (from: Track): void => {
      if (reached.has(from)) return
      reached.add(from)
      for (const known of from.known.keys()) visit(known)
    }
    for (const use of ordering.uses) visit(use.track)
    assert.isAtMost(reached.size, 4)
  })
})

// Programs in virtual time

/** One byte takes a millisecond on every link, and nothing else takes time. */
const slow = {
  hostBandwidth: 1000,
  deviceBandwidth: 1000,
  peerBandwidth: 1000,
  copyLatency: 0,
  concurrentKernels: 1_000_000
}

const bufferSize = 16
const bufferCount = 3

const streamKinds = [
  { legacy: true, blocking: false },
  { legacy: false, blocking: true },
  { legacy: false, blocking: true },
  { legacy: false, blocking: false },
  { legacy: false, blocking: false },
  { legacy: false, blocking: false }
]

const Operation = Schema.Struct({
  op: Schema.Literals(["copy", "copy", "fill", "work"]),
  stream: between(0, streamKinds.length - 1),
  event: between(0, 0),
  to: between(0, bufferCount - 1),
  from: between(0, bufferCount - 1),
  value: between(1, 20),
  pause: between(0, 9),
  toOffset: between(0, bufferSize - 1),
  fromOffset: between(0, bufferSize - 1),
  length: between(1, bufferSize)
})

type Operation = Schema.Schema.Type<typeof Operation>

const Operations = Schema.Array(Operation).check(Schema.isMaxLength(40))

/** Ranges that are inside their buffers, and copies between two of them. */
const proper = (drawn: ReadonlyArray<Operation>): ReadonlyArray<Operation> =>
  drawn.filter(({ from, op, to }) => op !== "copy" || from !== to).map((operation) => ({
    ...operation,
    length: Math.min(operation.length, bufferSize - operation.toOffset, bufferSize - operation.fromOffset)
  }))

const reads = ({ from, fromOffset, length, op }: Operation) =>
  op === "fill" ? [] : [{ buffer: from, offset: fromOffset, length }]
const writes = ({ length, to, toOffset }: Operation) => [{ buffer: to, offset: toOffset, length }]

const meet = (
  some: ReturnType<typeof reads>,
  others: ReturnType<typeof reads>
) =>
  some.some((a) =>
    others.some((b) => a.buffer === b.buffer && a.offset < b.offset + b.length && b.offset < a.offset + a.length)
  )

/** What must finish before each operation: earlier operations on its stream, and all earlier ones that conflict with it. */
const orderedGraph = (program: ReadonlyArray<Operation>): ReadonlyArray<Node> =>
  graph(program, streamKinds).map((node) => {
    const later = program[node.index]!
    const dependencies = new Set(node.dependencies)
    for (const [index, earlier] of program.slice(0, node.index).entries()) {
      const conflicts = meet(writes(earlier), [...reads(later), ...writes(later)]) ||
        meet(reads(earlier), writes(later))
      if (conflicts) dependencies.add(index)
    }
    return { ...node, dependencies }
  })

const durationOf = (program: ReadonlyArray<Operation>) => (instruction: Instruction): number => {
  const { length, op, value } = program.find((operation) => operation === instruction)!
  return op === "work" ? value : length
}

/** The effect of work: every byte of its target becomes the byte it reads plus one, mixed with its value. */
const mixed = (byte: number, value: number): number => (byte * 3 + value) & 255

/** The contents after running the operations one after another. */
const sequential = (program: ReadonlyArray<Operation>): ReadonlyArray<ReadonlyArray<number>> => {
  const buffers = Array.from({ length: bufferCount }, () => new Uint8Array(bufferSize))
  for (const { from, fromOffset, length, op, to, toOffset, value } of program) {
    const source = buffers[from]!.slice(fromOffset, fromOffset + length)
    const result = op === "fill"
      ? source.fill(value)
      : op === "copy"
      ? source
      : source.map((byte) => mixed(byte, value))
    buffers[to]!.set(result, toOffset)
  }
  return buffers.map((bytes) => [...bytes])
}

type Program<A> = Effect.Effect<A, CudaError, CudaRuntime | SimulatedRuntime.SimulatedControl | Scope.Scope>

const onSlowDevice = <A>(program: Program<A>, options: SimulatedRuntime.SimulatedOptions = {}) =>
  program.pipe(
    Effect.scoped,
    Effect.provide(SimulatedRuntime.layer({ devices: [slow], recordTimeline: true, ...options }))
  )

const makeStreams = Effect.forEach(
  streamKinds,
  ({ blocking, legacy }) => legacy ? CudaStream.defaultStream() : CudaStream.make({ nonBlocking: !blocking })
)

/** Work on a stream that was not enqueued through the library. */
const launch = (
  operation: Operation,
  stream: CudaStream.CudaStream,
  to: CudaMemory.Slice<CudaMemory.DeviceBuffer>,
  from: CudaMemory.Slice<CudaMemory.DeviceBuffer>
) =>
  Effect.gen(function*() {
    const control = yield* SimulatedRuntime.SimulatedControl
    const target = yield* control.bytes(to.buffer)
    const source = yield* control.bytes(from.buffer)
    const run = () => {
      const bytes = source.slice(from.offset, from.offset + from.byteLength)
      target.set(bytes.map((byte) => mixed(byte, operation.value)), to.offset)
    }
    yield* CudaMemory.access(
      control.launch(stream, { duration: operation.value, run }),
      { reads: [from], writes: [to], stream }
    )
  })

const execute = (program: ReadonlyArray<Operation>) =>
  Effect.gen(function*() {
    const control = yield* SimulatedRuntime.SimulatedControl
    const streams = yield* makeStreams
    const buffers = yield* Effect.replicateEffect(CudaMemory.allocate(bufferSize), bufferCount)
    for (const operation of program) {
      const { from, fromOffset, length, op, pause, to, toOffset, value } = operation
      yield* TestClock.adjust(pause)
      const stream = streams[operation.stream]!
      const target = CudaMemory.slice(buffers[to]!, toOffset, length)
      const source = CudaMemory.slice(buffers[from]!, fromOffset, length)
      if (op === "copy") yield* CudaMemory.copy(target, source, stream)
      else if (op === "fill") yield* CudaMemory.fill(target, value, stream)
      else yield* launch(operation, stream, target, source)
    }
    yield* TestClock.adjust("1 hour")
    assert.strictEqual(yield* control.pendingOperations, 0)
    const contents = yield* Effect.forEach(
      buffers,
      (buffer) => Effect.map(control.bytes(buffer), (bytes) => [...bytes])
    )
    return { contents, streams, timeline: yield* control.timeline }
  }).pipe(CudaMemory.withOrdering())

describe("accesses in a queue", () => {
  it("are looked through once for one that an outer access would wait for", () => {
    const queue = new Ordering()
    const partOf = (ordering: Ordering) => [{ ordering, from: 0, to: 1, writes: true }]
    // Each waits for all before it, so that the paths between them are exponentially many.
    for (let length = 0; length < 30; length++) void new Access(fakeStream(), partOf(queue), new Set())
    const outer = new Access(fakeStream(), partOf(new Ordering()), new Set())
    const begun = performance.now()
    assert.isTrue(new Access(fakeStream(), partOf(queue), new Set([outer])).isBlocked)
    assert.isBelow(performance.now() - begun, 1000)
  })
})

describe("random programs on ordered buffers", () => {
  it.effect.prop(
    "start exactly when their conflicts allow, with the same results as in sequence",
    [Operations],
    ([drawn]) =>
      Effect.gen(function*() {
        const program = proper(drawn)
        const { contents, streams, timeline } = yield* onSlowDevice(execute(program))
        const expected = schedule(orderedGraph(program), durationOf(program))
        const begin = timeline.length === 0
          ? 0
          : Math.min(...timeline.map(({ start }) => start)) - program[0]!.pause * 1e6
        const queues = streams.map(({ id }) =>
          timeline.filter(({ kind, streamId }) => streamId === id && kind !== "wait" && kind !== "record")
        )
        for (const [index, { op, stream }] of program.entries()) {
          const { end, start } = queues[stream]!.shift()!
          assert.deepStrictEqual(
            [(start - begin) / 1e6, (end - begin) / 1e6],
            [expected[index]!.start, expected[index]!.end],
            `${op} ${index}`
          )
        }
        assert.deepStrictEqual(contents, sequential(program))
      }),
    { arbitrary: { runs: 150, size: 40 } }
  )
})

// Accesses, and failures

/** Two streams and two ordered buffers of 64 bytes on a device where nothing takes time but work. */
const setting = Effect.gen(function*() {
  const control = yield* SimulatedRuntime.SimulatedControl
  const [first, second, third] = yield* Effect.all([CudaStream.make(), CudaStream.make(), CudaStream.make()])
  const [buffer, other] = yield* Effect.all([
    CudaMemory.allocate(64, { ordered: true }),
    CudaMemory.allocate(64, { ordered: true })
  ])
  /** Enqueues work that takes this many milliseconds. */
  const work = (stream: CudaStream.CudaStream, duration: number) => control.launch(stream, { duration })
  /** When the work on a stream started and ended, in milliseconds. */
  const timesOf = (stream: CudaStream.CudaStream) =>
    Effect.gen(function*() {
      yield* TestClock.adjust("1 hour")
      const timeline = yield* control.timeline
      return timeline.filter(({ kind, streamId }) => streamId === stream.id && kind === "work").map((
        { end, start }
      ) => [
        start / 1e6,
        end / 1e6
      ])
    })
  const countOf = (kind: SimulatedRuntime.TimelineEntry["kind"]) =>
    Effect.map(control.timeline, (timeline) => timeline.filter((entry) => entry.kind === kind).length)
  return { buffer, control, countOf, first, other, second, third, timesOf, work }
})

type Setting = Effect.Success<typeof setting>

/** Runs a test in its own world: time starts at 0. */
const inSetting = <A>(test: (setting: Setting) => Program<A>) =>
  onSlowDevice(Effect.flatMap(setting, (made) =>
    // Releases wait for the work that a test has left.
    Effect.ensuring(test(made), TestClock.adjust("1 hour"))))

/** An access that lasts until it is told to end, and then enqueues work. */
const held = (
  { work }: Setting,
  stream: CudaStream.CudaStream,
  uses: CudaMemory.AccessOptions,
  duration = 10
) =>
  Effect.gen(function*() {
    const begun = yield* Deferred.make<void>()
    const go = yield* Deferred.make<void>()
    const effect = Effect.gen(function*() {
      yield* Deferred.succeed(begun, undefined)
      yield* Deferred.await(go)
      yield* work(stream, duration)
    })
    const fiber = yield* Effect.forkScoped(CudaMemory.access(effect, { ...uses, stream }), { startImmediately: true })
    const end = Effect.andThen(Deferred.succeed(go, undefined), Fiber.join(fiber))
    return { begun: Deferred.isDone(begun), end, fiber }
  })

describe("an access", () => {
  it.effect("orders the work of its effect among the other uses", () =>
    inSetting(({ buffer, first, second, third, timesOf, work }) =>
      Effect.gen(function*() {
        const writes = { writes: [buffer] }
        const reads = { reads: [buffer] }
        yield* CudaMemory.access(work(first, 10), { ...writes, stream: first })
        yield* CudaMemory.access(work(second, 20), { ...reads, stream: second })
        yield* CudaMemory.access(work(third, 30), { ...reads, stream: third })
        yield* CudaMemory.access(work(first, 5), { ...writes, stream: first })
        assert.deepStrictEqual(yield* timesOf(first), [[0, 10], [40, 45]])
        assert.deepStrictEqual(yield* timesOf(second), [[10, 30]])
        assert.deepStrictEqual(yield* timesOf(third), [[10, 40]])
      })
    ))

  it.effect("uses the current stream by default, in both forms", () =>
    inSetting(({ buffer, first, second, timesOf, work }) =>
      Effect.gen(function*() {
        const use = CudaMemory.access({ writes: [buffer] })
        yield* CudaStream.withStream(use(work(first, 10)), first)
        yield* work(second, 1).pipe(CudaMemory.access({ writes: [buffer], stream: second }))
        assert.deepStrictEqual(yield* timesOf(second), [[10, 11]])
      })
    ))

  it.effect("marks the enqueued work, however it ends", () =>
    inSetting(({ buffer, first, other, second, timesOf, work }) =>
      Effect.gen(function*() {
        const failing = Effect.andThen(work(first, 10), Effect.fail("no" as const))
        const failed = yield* Effect.flip(CudaMemory.access(failing, { writes: [buffer], stream: first }))
        assert.strictEqual(failed, "no")
        const hanging = Effect.andThen(work(first, 10), Effect.never)
        yield* Fiber.interrupt(yield* started(CudaMemory.access(hanging, { writes: [other], stream: first })))
        yield* CudaMemory.access(work(second, 1), { reads: [buffer], stream: second })
        yield* CudaMemory.access(work(second, 1), { reads: [other], stream: second })
        assert.deepStrictEqual(yield* timesOf(second), [[10, 11], [20, 21]])
      })
    ))

  it.effect("waits for a conflicting one on another stream to end, and later ones wait in turn", () =>
    inSetting((setting) =>
      Effect.gen(function*() {
        const { buffer, first, second, third, timesOf } = setting
        const writing = yield* held(setting, first, { writes: [buffer] })
        const reading = yield* held(setting, second, { reads: [buffer] })
        const again = yield* held(setting, third, { writes: [buffer] })
        assert.deepStrictEqual([yield* writing.begun, yield* reading.begun, yield* again.begun], [true, false, false])
        yield* writing.end
        yield* Effect.yieldNow
        assert.deepStrictEqual([yield* reading.begun, yield* again.begun], [true, false])
        const late = yield* held(setting, first, { reads: [buffer] })
        assert.isFalse(yield* late.begun)
        yield* reading.end
        yield* Effect.yieldNow
        assert.deepStrictEqual([yield* again.begun, yield* late.begun], [true, false])
        yield* again.end
        yield* late.end
        assert.deepStrictEqual(yield* timesOf(first), [[0, 10], [30, 40]])
        assert.deepStrictEqual(yield* timesOf(second), [[10, 20]])
        assert.deepStrictEqual(yield* timesOf(third), [[20, 30]])
      })
    ))

  it.effect("does not wait for accesses on its own stream, of other bytes, or that only read the same bytes", () =>
    inSetting((setting) =>
      Effect.gen(function*() {
        const { buffer, first, second, third } = setting
        const { slice } = CudaMemory
        const accesses = yield* Effect.all([
          held(setting, first, { writes: [slice(buffer, 0, 32)] }),
          held(setting, first, { writes: [slice(buffer, 0, 32)] }),
          held(setting, second, { reads: [slice(buffer, 32)] }),
          held(setting, third, { reads: [slice(buffer, 32)] })
        ])
        for (const { begun } of accesses) assert.isTrue(yield* begun)
        for (const { end } of accesses) yield* end
      })
    ))

  it.effect("can be interrupted while it waits, which unblocks later ones", () =>
    inSetting((setting) =>
      Effect.gen(function*() {
        const { buffer, first, second, third } = setting
        const reading = yield* held(setting, first, { reads: [buffer] })
        const writing = yield* held(setting, second, { writes: [buffer] })
        const behind = yield* held(setting, third, { reads: [buffer] })
        assert.deepStrictEqual([yield* writing.begun, yield* behind.begun], [false, false])
        yield* Fiber.interrupt(writing.fiber)
        yield* Effect.yieldNow
        assert.isTrue(yield* behind.begun)
        yield* behind.end
        yield* reading.end
        const { waits } = yield* buffer.runtime.liveResources
        assert.strictEqual(waits, 0)
      })
    ))

  it.effect("fails if its buffer was released during the wait", () =>
    inSetting((setting) =>
      Effect.gen(function*() {
        const { first, second } = setting
        const scope = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.allocate(64, { ordered: true }), scope)
        const reading = yield* held(setting, first, { reads: [buffer] })
        const writing = yield* held(setting, second, { writes: [buffer] })
        yield* Scope.close(scope, Exit.void)
        yield* reading.end
        yield* failsWith(writing.end, "ResourceReleased")
      })
    ))

  it.effect("proceeds inside another one, on any stream", () =>
    inSetting((setting) =>
      Effect.gen(function*() {
        const { buffer, first, second, third, timesOf, work } = setting
        const go = yield* Deferred.make<void>()
        const outer = Effect.gen(function*() {
          yield* work(first, 10)
          yield* Deferred.await(go)
          yield* CudaMemory.access(work(second, 20), { writes: [buffer], stream: second })
          yield* work(first, 5)
        })
        const running = yield* Effect.forkChild(CudaMemory.access(outer, { writes: [buffer], stream: first }), {
          startImmediately: true
        })
        const waiting = yield* held(setting, third, { writes: [buffer] })
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.join(running)
        yield* waiting.end
        assert.deepStrictEqual(yield* timesOf(first), [[0, 10], [30, 35]])
        assert.deepStrictEqual(yield* timesOf(second), [[10, 30]])
        assert.deepStrictEqual(yield* timesOf(third), [[35, 45]])
      })
    ))

  it.effect("inside another one may outlast it, and later ones wait for both", () =>
    inSetting((setting) =>
      Effect.gen(function*() {
        const { buffer, first, second, third } = setting
        const go = yield* Deferred.make<void>()
        const outer = Effect.andThen(Deferred.await(go), held(setting, second, { writes: [buffer] }))
        const running = yield* Effect.forkScoped(CudaMemory.access(outer, { writes: [buffer], stream: first }), {
          startImmediately: true
        })
        const waiting = yield* held(setting, third, { writes: [buffer] })
        yield* Deferred.succeed(go, undefined)
        const inner = yield* Fiber.join(running)
        yield* Effect.yieldNow
        assert.deepStrictEqual([yield* inner.begun, yield* waiting.begun], [true, false])
        yield* inner.end
        yield* Effect.yieldNow
        assert.isTrue(yield* waiting.begun)
        yield* waiting.end
      })
    ))

  it.effect("lets copies and fills in between, after the work enqueued so far and before the rest", () =>
    inSetting(({ buffer, control, first, second, timesOf, work }) =>
      Effect.gen(function*() {
        const effect = Effect.gen(function*() {
          yield* work(first, 10)
          yield* CudaMemory.fill(buffer, 1, second)
          yield* work(first, 10)
        })
        yield* CudaMemory.access(effect, { reads: [buffer], stream: first })
        assert.deepStrictEqual(yield* timesOf(first), [[0, 10], [74, 84]])
        const [fill] = (yield* control.timeline).filter(({ kind }) => kind === "fill")
        assert.deepStrictEqual([fill!.start, fill!.end], [10e6, 74e6])
      })
    ))

  it.effect("rejects anything but parts of buffers, by name", () =>
    inSetting(({ buffer, first }) =>
      Effect.gen(function*() {
        const outside = CudaMemory.slice(buffer, 60, 8)
        yield* refuses(
          CudaMemory.access(Effect.void, { writes: [buffer, outside], stream: first }),
          "writes[1].byteLength"
        )
        const before = CudaMemory.slice(buffer, -1, 8)
        yield* refuses(CudaMemory.access(Effect.void, { reads: [before], stream: first }), "reads[0].offset")
      })
    ))

  it.effect("of no buffers, or of unordered ones, orders nothing", () =>
    inSetting(({ buffer, countOf, first, second, timesOf, work }) =>
      Effect.gen(function*() {
        const plain = yield* CudaMemory.allocate(64)
        const uses = { reads: [plain], writes: [plain, CudaMemory.slice(buffer, 64)] }
        yield* CudaMemory.access(work(first, 10), { ...uses, stream: first })
        yield* CudaMemory.access(work(second, 10), { ...uses, stream: second })
        yield* CudaMemory.access(work(second, 10), { stream: second })
        assert.deepStrictEqual(yield* timesOf(second), [[0, 10], [10, 20]])
        assert.deepStrictEqual([yield* countOf("record"), yield* countOf("wait")], [0, 0])
      })
    ))

  it.effect("cannot begin again while it is in progress", () =>
    inSetting(({ buffer, first }) =>
      Effect.gen(function*() {
        const writes = [{ memory: buffer.ref, offset: 0, byteLength: 8 }]
        const access = { stream: first.ref, reads: [], writes, outer: undefined }
        yield* buffer.runtime.memoryBegin(access)
        yield* refuses(buffer.runtime.memoryBegin(access), "access")
        yield* buffer.runtime.memoryEnd(access)
        yield* buffer.runtime.memoryEnd(access)
      })
    ))
})

describe("synchronize", () => {
  it.effect("ends with the uses so far, regardless of other work on their streams", () =>
    inSetting(({ buffer, first, second, work }) =>
      Effect.gen(function*() {
        yield* CudaMemory.access(work(first, 10), { reads: [CudaMemory.slice(buffer, 0, 32)], stream: first })
        yield* CudaMemory.access(work(second, 20), { writes: [CudaMemory.slice(buffer, 32)], stream: second })
        yield* work(first, 1000)
        const left = yield* Effect.forkChild(CudaMemory.synchronize(CudaMemory.slice(buffer, 0, 8)), {
          startImmediately: true
        })
        const all = yield* Effect.forkChild(CudaMemory.synchronize(buffer), { startImmediately: true })
        yield* CudaMemory.access(work(second, 1000), { writes: [buffer], stream: second })
        const ended = () => [left, all].map((fiber) => fiber.pollUnsafe() !== undefined)
        yield* TestClock.adjust("9 millis")
        assert.deepStrictEqual(ended(), [false, false])
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(ended(), [true, false])
        yield* TestClock.adjust("10 millis")
        assert.deepStrictEqual(ended(), [true, true])
        yield* TestClock.adjust("1 hour")
        yield* CudaMemory.synchronize(buffer)
      })
    ))

  it.effect("waits for the work that an access in progress has enqueued", () =>
    inSetting(({ buffer, first, work }) =>
      Effect.gen(function*() {
        const fiber = yield* CudaMemory.access(
          Effect.andThen(work(first, 10), Effect.forkChild(CudaMemory.synchronize(buffer), { startImmediately: true })),
          { writes: [buffer], stream: first }
        )
        assert.isUndefined(fiber.pollUnsafe())
        yield* TestClock.adjust("10 millis")
        assert.isDefined(fiber.pollUnsafe())
      })
    ))

  it.effect("is interruptible", () =>
    inSetting(({ buffer, first, work }) =>
      Effect.gen(function*() {
        yield* CudaMemory.access(work(first, 10), { writes: [buffer], stream: first })
        const fiber = yield* Effect.forkChild(CudaMemory.synchronize(buffer), { startImmediately: true })
        yield* Fiber.interrupt(fiber)
        assert.strictEqual((yield* buffer.runtime.liveResources).waits, 0)
        yield* TestClock.adjust("1 hour")
      })
    ))

  it.effect("rejects unordered buffers, and ranges outside the buffer", () =>
    inSetting(({ buffer }) =>
      Effect.gen(function*() {
        yield* refuses(CudaMemory.synchronize(yield* CudaMemory.allocate(8)), "buffer")
        yield* refuses(CudaMemory.synchronize(yield* CudaMemory.allocateHost(8)), "buffer")
        yield* refuses(CudaMemory.synchronize(CudaMemory.slice(buffer, 65, 0)), "buffer.offset")
      })
    ))
})

describe("which buffers are ordered", () => {
  it.effect("is set by the option, otherwise by the innermost region", () =>
    inSetting(() =>
      Effect.gen(function*() {
        const made = (options?: CudaMemory.BufferOptions) =>
          Effect.gen(function*() {
            const both = [yield* CudaMemory.allocate(8, options), yield* CudaMemory.allocateHost(8, options)]
            assert.strictEqual(both[0]!.isOrdered, both[1]!.isOrdered)
            return both[0]!.isOrdered
          })
        assert.isFalse(yield* made())
        assert.isTrue(yield* made({ ordered: true }))
        assert.isTrue(yield* CudaMemory.withOrdering(made()))
        assert.isFalse(yield* made({ ordered: false }).pipe(CudaMemory.withOrdering()))
        assert.isFalse(yield* made().pipe(CudaMemory.withOrdering(false), CudaMemory.withOrdering()))
        assert.isTrue(yield* made({ ordered: undefined }).pipe(CudaMemory.withOrdering(true)))
      })
    ))

  it.effect("never includes the pinned memory of uploads and downloads", () =>
    inSetting(({ countOf }) =>
      Effect.gen(function*() {
        const plain = yield* CudaMemory.allocate(8, { ordered: false })
        yield* CudaMemory.upload(plain, new Uint8Array(8))
        yield* TestClock.adjust("1 hour")
        assert.deepStrictEqual([yield* countOf("record"), yield* countOf("wait")], [1, 0])
      }).pipe(CudaMemory.withOrdering())
    ))
})

describe("failures", () => {
  it.effect("of operations leave no marks", () =>
    inSetting(({ buffer, control, countOf, first, other, second, timesOf, work }) =>
      Effect.gen(function*() {
        const uses = [
          ["CudaMemory.fill", CudaMemory.fill(buffer, 1, first)],
          ["CudaMemory.copy", CudaMemory.copy(buffer, other, first)],
          ["CudaMemory.access", CudaMemory.access(work(first, 10), { writes: [buffer], stream: first })],
          ["CudaMemory.synchronize", CudaMemory.synchronize(buffer)]
        ] as const
        yield* CudaMemory.access(work(second, 10), { writes: [buffer], stream: second })
        for (const [name, use] of uses) {
          yield* control.failNext(name, "SystemNotReady")
          yield* failsWith(use, "SystemNotReady")
        }
        assert.deepStrictEqual(yield* timesOf(first), [])
        assert.deepStrictEqual([yield* countOf("record"), yield* countOf("wait")], [1, 0])
        yield* refuses(CudaMemory.copy(buffer, CudaMemory.slice(other, 0, 8), first), "source.byteLength")
        yield* CudaMemory.fill(buffer, 1, first)
        yield* TestClock.adjust("1 hour")
        assert.deepStrictEqual([yield* countOf("record"), yield* countOf("wait")], [2, 1])
      })
    ))

  it.effect("of the device fail every use and every wait", () =>
    inSetting(({ buffer, control, first, second, work }) =>
      Effect.gen(function*() {
        yield* CudaMemory.access(work(first, 10), { writes: [buffer], stream: first })
        const waiting = yield* Effect.forkChild(CudaMemory.synchronize(buffer), { startImmediately: true })
        yield* control.lose(0, "IllegalAddress")
        yield* failsWith(Fiber.join(waiting), "IllegalAddress")
        yield* failsWith(CudaMemory.fill(buffer, 1, second), "IllegalAddress")
        yield* failsWith(CudaMemory.access(Effect.void, { reads: [buffer], stream: second }), "IllegalAddress")
        yield* failsWith(CudaMemory.synchronize(buffer), "IllegalAddress")
      })
    ))
})
