/**
 * Branches and dependencies on the simulated runtime, in virtual time: random programs compared with a reference of their order, to the
 * nanosecond, and what failing calls leave behind.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaBranch from "effect-cuda/CudaBranch"
import * as CudaDependency from "effect-cuda/CudaDependency"
import type { CudaError } from "effect-cuda/CudaError"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { CudaRuntimeService } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import type { SimulatedControlService } from "effect-cuda/SimulatedRuntime"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { started } from "./support/fibers.ts"

/** A machine with enough engines. */
const machine = { devices: [{ concurrentKernels: 1_000_000 }], recordTimeline: true }

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

/** Programs are drawn as lists of words, and read as trees. */
const Words = Schema.Array(
  Schema.Struct({
    word: Schema.Literals(["work", "work", "work", "all", "next", "end", "end", "fork", "join", "point", "after"]),
    number: between(1, 60)
  })
).check(Schema.isMaxLength(50))

type Word = (typeof Words.Type)[number]

type Step =
  | { readonly op: "work"; readonly id: number; readonly duration: number }
  | { readonly op: "all"; readonly branches: ReadonlyArray<Program>; readonly streams: number | undefined }
  | { readonly op: "fork"; readonly body: Program }
  | { readonly op: "join" | "after"; readonly which: number }
  | { readonly op: "point" }

type Program = ReadonlyArray<Step>

/** How many streams a program may lease without leasing one twice: the pool has 32, and one is the current stream of the program. */
const mostLeases = 30

/** Reads words as a tree. Durations are distinct, so they identify work in the timeline. */
const read = (words: ReadonlyArray<Word>): Program => {
  let position = 0
  let works = 0
  let leases = 0
  const readSteps = (depth: number): { readonly steps: Program; readonly more: boolean } => {
    const steps: Array<Step> = []
    while (position < words.length) {
      const { number, word } = words[position++]!
      if (word === "next" && depth > 0) return { steps, more: true }
      if (word === "end" && depth > 0) return { steps, more: false }
      if (word === "work") steps.push({ op: "work", id: works, duration: number * 1000 + works++ })
      else if (word === "all") {
        const branches: Array<Program> = []
        for (let more = true; more;) {
          const branch = readSteps(depth + 1)
          branches.push(branch.steps)
          more = branch.more && branches.length < 5
        }
        const streams = number % 3 === 0 ? 1 + number % 2 : undefined
        leases += Math.min(streams ?? branches.length, branches.length)
        if (leases <= mostLeases) steps.push({ op: "all", branches, streams })
      } else if (word === "fork") {
        const { steps: body } = readSteps(depth + 1)
        if (++leases <= mostLeases) steps.push({ op: "fork", body })
      } else if (word === "join" || word === "after") steps.push({ op: word, which: number })
      else if (word === "point") steps.push({ op: "point" })
    }
    return { steps, more: false }
  }
  return readSteps(0).steps
}

/** The duration of launched work, and the work that it starts after. */
interface Expected {
  readonly duration: number
  readonly after: ReadonlySet<number>
}

/** A place where work is enqueued, with the work that later work has to wait for. */
interface Line {
  frontier: ReadonlySet<number>
  readonly around: Line | undefined
  isOpen: boolean
}

/** What a program should do: when its work starts, and which fork a step joins, or which point it waits for. */
interface Promised {
  readonly works: ReadonlyArray<Expected>
  readonly targets: ReadonlyMap<Step, Step>
}

/** The promise: what each piece of work comes after, found by walking the tree, without streams. */
const promise = (program: Program): Promised => {
  const works: Array<Expected> = []
  const targets = new Map<Step, Step>()
  const handles: Array<{ readonly step: Step; readonly line: Line; readonly from: Line; isJoined: boolean }> = []
  /** Last in, first out. A fork inside the effect of another was made when that effect began, so before it. */
  const closing: typeof handles = []
  const points: Array<{ readonly step: Step; readonly frontier: ReadonlySet<number> }> = []
  const lineFrom = (line: Line): Line => ({ frontier: line.frontier, around: line, isOpen: true })
  const join = (line: Line, others: Iterable<number>) => {
    line.frontier = new Set([...line.frontier, ...others])
  }
  const run = (steps: Program, line: Line): void => {
    for (const step of steps) {
      if (step.op === "work") {
        works[step.id] = { duration: step.duration, after: line.frontier }
        line.frontier = new Set([step.id])
      } else if (step.op === "all") {
        const { branches } = step
        const lines = Array.from(
          { length: Math.min(step.streams ?? branches.length, branches.length) },
          () => lineFrom(line)
        )
        branches.forEach((branch, index) => run(branch, lines[index % lines.length]!))
        for (const branch of lines) {
          branch.isOpen = false
          join(line, branch.frontier)
        }
      } else if (step.op === "fork") {
        const handle = { step, line: lineFrom(line), from: line, isJoined: false }
        handles.push(handle)
        run(step.body, handle.line)
        closing.unshift(handle)
      } else if (step.op === "point") points.push({ step, frontier: line.frontier })
      else if (step.op === "after" && points.length > 0) {
        const point = points[step.which % points.length]!
        targets.set(step, point.step)
        join(line, point.frontier)
      } else if (step.op === "join") {
        const handle = reachable(handles, step.which, line)
        if (handle === undefined) continue
        targets.set(step, handle.step)
        join(line, handle.line.frontier)
        handle.isJoined = true
      }
    }
  }
  const root: Line = { frontier: new Set(), around: undefined, isOpen: true }
  run(program, root)
  for (const handle of closing) {
    let into = handle.from
    while (!into.isOpen && into.around !== undefined) into = into.around
    if (!handle.isJoined) join(into, handle.line.frontier)
    handle.line.isOpen = false
  }
  works.push({ duration: lastDuration, after: root.frontier })
  return { works, targets }
}

/** A branch cannot join itself or one that it runs in: their effects have not ended. */
const reachable = <Handle extends { readonly line: Line }>(
  handles: ReadonlyArray<Handle>,
  which: number,
  line: Line
): Handle | undefined => {
  const lines = new Set<Line>()
  for (let at: Line | undefined = line; at !== undefined; at = at.around) lines.add(at)
  const others = handles.filter((handle) => !lines.has(handle.line))
  return others.length === 0 ? undefined : others[which % others.length]
}

/** Work that is enqueued after the scope of the program has closed. */
const lastDuration = 999_999

interface Machine {
  readonly runtime: CudaRuntimeService
  readonly control: SimulatedControlService
}

/** Runs the tree as a program. A step waits for its target to be made, since fibers may come to it first. */
const execute = (program: Program, targets: Promised["targets"], { control }: Machine) => {
  const forks = new Latches<CudaBranch.CudaBranch<void, CudaError>>()
  const points = new Latches<CudaDependency.CudaDependency>()
  const launch = (duration: number) =>
    Effect.flatMap(CudaStream.current(), (stream) => control.launch(stream, { duration: `${duration} nanos` }))
  const run = (steps: Program): Effect.Effect<void, CudaError, CudaRuntime | Scope.Scope> =>
    Effect.forEach(steps, perform, { discard: true })
  const perform = (step: Step): Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope> =>
    Effect.gen(function*() {
      if (step.op === "work") return yield* launch(step.duration)
      if (step.op === "all") {
        const { branches, streams } = step
        return yield* CudaBranch.forEach(branches, run, { streams, discard: true })
      }
      if (step.op === "fork") return yield* forks.open(step, yield* CudaBranch.fork(run(step.body)))
      if (step.op === "point") {
        return yield* points.open(step, yield* CudaDependency.make([yield* CudaStream.current()]))
      }
      const target = targets.get(step)
      if (target === undefined) return undefined
      if (step.op === "join") return yield* CudaBranch.join(yield* forks.await(target))
      return yield* CudaDependency.wait(yield* points.await(target))
    })
  const whole = Effect.gen(function*() {
    yield* run(program)
    // Closing the scope interrupts a branch that has not ended.
    for (const fork of forks.all) yield* Fiber.join((yield* Deferred.await(fork)).fiber)
  })
  return Effect.andThen(Effect.scoped(whole), launch(lastDuration))
}

/** What steps make for others. */
class Latches<A> {
  readonly #made = new Map<Step, Deferred.Deferred<A>>()
  /** Those of steps that have begun, and of more while one waits for these. */
  get all(): Iterable<Deferred.Deferred<A>> {
    return this.#made.values()
  }
  #of(step: Step): Deferred.Deferred<A> {
    const made = this.#made.get(step) ?? Deferred.makeUnsafe()
    this.#made.set(step, made)
    return made
  }
  open(step: Step, value: A): Effect.Effect<unknown> {
    return Deferred.succeed(this.#of(step), value)
  }
  await(step: Step): Effect.Effect<A> {
    return Deferred.await(this.#of(step))
  }
}

const onMachine = <A, E>(body: (machine: Machine) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>) =>
  Effect.gen(function*() {
    const made = yield* SimulatedRuntime.make(machine)
    return yield* body(made).pipe(Effect.provideService(CudaRuntime, made.runtime))
  }).pipe(Effect.scoped)

describe("random programs of branches, forks, joins and dependencies", () => {
  it.effect.prop(
    "start everything exactly when the promise allows, neither later nor earlier",
    [Words],
    ([words]) =>
      onMachine((made) =>
        Effect.gen(function*() {
          const program = read(words)
          const before = yield* made.runtime.liveResources
          const stream = yield* CudaStream.make()
          const { targets, works: expected } = promise(program)
          yield* CudaStream.withStream(execute(program, targets, made), stream)
          yield* TestClock.adjust("1 second")
          const timeline = yield* made.control.timeline
          const observed = new Map(
            timeline.filter(({ kind }) => kind === "work").map(({ end, start }) => [end - start, start])
          )
          assert.strictEqual(observed.size, expected.length)
          const ends: Array<number> = []
          // Work is launched after everything it waits for, but the work of a branch may have a lower number.
          const startOf = (index: number): number => Math.max(0, ...Array.from(expected[index]!.after, endOf))
          const endOf = (index: number): number => ends[index] ??= startOf(index) + expected[index]!.duration
          for (const [index, { duration }] of expected.entries()) {
            assert.strictEqual(observed.get(duration), startOf(index), `start of work ${index}`)
          }
          const { events, waits } = yield* made.runtime.liveResources
          assert.deepStrictEqual([events, waits], [before.events, before.waits])
        })
      ),
    { arbitrary: { runs: 400, size: 50 } }
  )
})

describe("calls that fail", () => {
  const streamIds = (count: number) =>
    Effect.map(
      CudaBranch.all(Array.from({ length: count }, () => CudaStream.current())),
      (streams) => new Set(streams.map(({ id }) => id)).size
    )

  it.effect("in the middle of a fork return the streams", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        for (const operation of ["CudaStream.make", "CudaBranch.fork"] as const) {
          for (let time = 0; time < 5; time++) {
            yield* control.failNext(operation, "OutOfMemory")
            const error = yield* Effect.flip(streamIds(20))
            assert.strictEqual(error.reason._tag, "OutOfMemory")
            yield* control.failNext(operation, "OutOfMemory")
            yield* Effect.flip(Effect.scoped(CudaBranch.fork(Effect.void)))
          }
          assert.strictEqual(yield* streamIds(32), 32)
          if (operation === "CudaStream.make") yield* streamIds(32)
        }
      })
    ))

  it.effect("in a join fail branches that succeeded, and do not replace a failure", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        yield* control.failNext("CudaBranch.join", "NotPermitted")
        const error = yield* Effect.flip(CudaBranch.all([Effect.void]))
        assert.deepStrictEqual([error.operation, error.reason._tag], ["CudaBranch.all", "NotPermitted"])
        yield* control.failNext("CudaBranch.join", "NotPermitted")
        assert.strictEqual(yield* Effect.flip(CudaBranch.all([Effect.fail("no")])), "no")
        assert.strictEqual(yield* streamIds(32), 32)
        const branch = yield* CudaBranch.fork(Effect.void)
        yield* control.failNext("CudaBranch.join", "NotPermitted")
        assert.strictEqual((yield* Effect.flip(CudaBranch.join(branch))).operation, "CudaBranch.join")
        yield* CudaBranch.join(branch)
        const failing = yield* CudaBranch.fork(Effect.fail("mine"))
        yield* control.failNext("CudaBranch.join", "NotPermitted")
        assert.strictEqual(yield* Effect.flip(CudaBranch.join(failing)), "mine")
      })
    ))

  it.effect("of one branch do not keep the others from being joined", () =>
    onMachine(({ control, runtime }) =>
      Effect.gen(function*() {
        const [origin, gone, busy] = [yield* CudaStream.make(), yield* CudaStream.make(), yield* CudaStream.make()]
        yield* control.launch(busy, { duration: "1 milli" })
        yield* runtime.streamDestroy(gone.ref)
        const error = yield* Effect.flip(runtime.streamJoin(origin.ref, [gone.ref, busy.ref]))
        assert.strictEqual(error.reason._tag, "ResourceReleased")
        assert.isFalse(yield* CudaStream.query(origin))
        yield* TestClock.adjust("1 milli")
        assert.isTrue(yield* CudaStream.query(origin))
      })
    ))

  it.effect("that are defects of a branch end all branches, as in Effect.all, which are joined", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const launch = Effect.flatMap(
          CudaStream.current(),
          (current) => control.launch(current, { duration: "1 milli" })
        )
        for (const concurrency of [1, 2]) {
          const launched = yield* Deferred.make<void>()
          const bodies = [
            Effect.andThen(launch, Deferred.succeed(launched, undefined)),
            Effect.andThen(Deferred.await(launched), Effect.die("defect"))
          ]
          const exit = yield* CudaBranch.all(bodies, { concurrency }).pipe(CudaStream.withStream(stream), Effect.exit)
          assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
          assert.isFalse(yield* CudaStream.query(stream))
          yield* TestClock.adjust("1 milli")
        }
        const thrown = yield* CudaBranch.forEach([1], (): Effect.Effect<void> => {
          throw new Error("thrown")
        }).pipe(CudaStream.withStream(stream), Effect.exit)
        assert.isTrue(Exit.isFailure(thrown) && Cause.hasDies(thrown.cause))
        assert.strictEqual((yield* CudaStream.current()).id, 0)
      })
    ))
})

describe("the streams of branches", () => {
  const launchHere = (control: SimulatedControlService, millis: number) =>
    Effect.flatMap(CudaStream.current(), (stream) => control.launch(stream, { duration: millis }))

  it.effect("are never the one they fork from while others are available", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const origin = yield* CudaStream.fromPool()
        for (let time = 0; time < 70; time++) {
          const used = yield* CudaBranch.all([CudaStream.current(), CudaStream.current()]).pipe(
            CudaStream.withStream(origin)
          )
          assert.isFalse(used.some(({ id }) => id === origin.id))
          const forked = yield* Effect.scoped(CudaBranch.fork(Effect.void)).pipe(CudaStream.withStream(origin))
          assert.notStrictEqual(forked.stream.id, origin.id)
        }
      })
    ))

  it.effect("are used again once every other had its turn, so that branches do not wait for earlier ones", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const used = new Set<number>()
        for (let time = 0; time < 16; time++) {
          const [first] = yield* CudaBranch.all([CudaStream.current()])
          const forked = yield* CudaBranch.fork(Effect.void)
          yield* CudaBranch.join(forked)
          used.add(first.id).add(forked.stream.id)
        }
        assert.strictEqual(used.size, 32)
      })
    ))

  it.effect("do not affect the turn of requests to the pool", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const first = yield* CudaStream.fromPool()
        yield* CudaBranch.all([Effect.void, Effect.void, Effect.void])
        const others = yield* Effect.replicateEffect(CudaStream.fromPool(), 31)
        assert.strictEqual(new Set([first, ...others].map(({ id }) => id)).size, 32)
        assert.strictEqual(yield* CudaStream.fromPool(), first)
      })
    ))

  it.effect("keep branches that share one in order, even if these enqueue concurrently", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        const order: Array<string> = []
        const launch = (name: string) =>
          Effect.flatMap(CudaStream.current(), (stream) =>
            control.launch(stream, { duration: 1, run: () => void order.push(name) }))
        const two = Effect.gen(function*() {
          yield* launch("0a")
          yield* Effect.sleep(5)
          yield* launch("0b")
        })
        const all = CudaBranch.all([two, launch("1"), launch("2")], { streams: 1, concurrency: "unbounded" })
        const fiber = yield* started(all)
        yield* TestClock.adjust(100)
        yield* Fiber.join(fiber)
        yield* CudaStream.synchronize(yield* CudaStream.current())
        assert.deepStrictEqual(order, ["0a", "0b", "1", "2"])
      })
    ))

  it.effect("are taken by the next branch as they become free", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        const slow = Effect.andThen(launchHere(control, 100), Effect.sleep(50))
        const quick = Effect.andThen(launchHere(control, 1), Effect.sleep(2))
        const all = CudaBranch.all([slow, quick, quick], { streams: 2, concurrency: 2 })
        const fiber = yield* started(all)
        yield* TestClock.adjust(200)
        yield* Fiber.join(fiber)
        const works = (yield* control.timeline).filter(({ kind }) => kind === "work")
        assert.deepStrictEqual(works.map(({ end, start }) => [start / 1e6, end / 1e6]), [[0, 1], [2, 3], [0, 100]])
      })
    ))

  it.effect("have the priority of the current stream, on any device", () =>
    Effect.gen(function*() {
      const { runtime } = yield* SimulatedRuntime.make({ devices: 2 })
      yield* Effect.gen(function*() {
        const origin = yield* CudaStream.make({ priority: "high" })
        for (const device of [undefined, 0, runtime.devices[0], 1]) {
          const [used] = yield* CudaBranch.all([CudaStream.current()], { device }).pipe(CudaStream.withStream(origin))
          assert.strictEqual(used.priority, origin.priority)
        }
      }).pipe(Effect.scoped, Effect.provideService(CudaRuntime, runtime))
    }).pipe(Effect.scoped))

  it.effect("forked from a released stream are joined by the region around it", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        const surrounding = yield* CudaStream.make()
        yield* Effect.gen(function*() {
          const outer = yield* Scope.make()
          yield* Effect.scoped(Effect.gen(function*() {
            const gone = yield* CudaStream.make()
            const forking = CudaBranch.fork(launchHere(control, 1000)).pipe(Scope.provide(outer))
            yield* CudaStream.withStream(forking, gone)
          }))
          yield* Scope.close(outer, Exit.void)
          assert.isFalse(yield* CudaStream.query(surrounding))
        }).pipe(CudaStream.withStream(surrounding))
        yield* TestClock.adjust(1000)
      })
    ))
})

describe("a scope that stays open", () => {
  it.effect("keeps nothing of joined branches", () =>
    Effect.gen(function*() {
      const { runtime } = yield* SimulatedRuntime.make(machine)
      const scope = yield* Scope.make()
      const finalizers = () => scope.state._tag === "Open" ? scope.state.finalizers?.size ?? 0 : 0
      const program = Effect.gen(function*() {
        const kept = yield* Effect.replicateEffect(CudaBranch.fork(Effect.void), 2)
        const before = finalizers()
        for (let index = 0; index < 1000; index++) {
          const branch = yield* CudaBranch.fork(index % 2 === 0 ? Effect.void : Effect.fail("no" as const))
          yield* Effect.exit(CudaBranch.join(branch))
          yield* Effect.exit(CudaBranch.join(branch))
          assert.strictEqual(finalizers(), before)
        }
        // If joined branches kept their streams, these would share some.
        const others = yield* Effect.replicateEffect(CudaBranch.fork(Effect.void), 29)
        assert.strictEqual(new Set([...kept, ...others].map(({ stream }) => stream.id)).size, 31)
        for (const branch of [...kept, ...others]) yield* CudaBranch.join(branch)
        assert.strictEqual(finalizers(), 0)
      })
      yield* program.pipe(Scope.provide(scope), Effect.provideService(CudaRuntime, runtime))
      yield* Scope.close(scope, Exit.void)
    }).pipe(Effect.scoped))
})

describe("failures", () => {
  it.effect("name what the program called", () =>
    onMachine(({ control }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const dependency = yield* CudaDependency.make([stream])
        const attempts = [
          ["CudaBranch.fork", CudaBranch.all([Effect.void]), "CudaBranch.all"],
          ["CudaBranch.fork", CudaBranch.forEach([1], () => Effect.void), "CudaBranch.forEach"],
          ["CudaStream.defaultStream", CudaBranch.all([Effect.void]), "CudaBranch.all"],
          ["CudaStream.defaultStream", CudaBranch.fork(Effect.void), "CudaBranch.fork"],
          ["CudaStream.waitEvent", CudaDependency.wait(dependency, stream), "CudaDependency.wait"],
          ["CudaEvent.synchronize", CudaDependency.synchronize(dependency), "CudaDependency.synchronize"],
          ["CudaEvent.query", CudaDependency.query(dependency), "CudaDependency.query"],
          ["CudaEvent.make", CudaDependency.make([stream]), "CudaDependency.make"]
        ] as const
        for (const [operation, attempt, named] of attempts) {
          yield* control.failNext(operation, "NotPermitted")
          const error = yield* Effect.flip(
            Effect.scoped(Effect.asVoid<unknown, CudaError, CudaRuntime | Scope.Scope>(attempt))
          )
          assert.deepStrictEqual([error.operation, error.reason._tag], [named, "NotPermitted"])
        }
      })
    ))

  it.effect("do not come from exhausted iterators: a generator may provide the sources, and the effect may run twice", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const making = CudaDependency.make((function*() {
          yield stream
        })())
        for (const _ of [1, 2]) assert.lengthOf((yield* making).events, 1)
      })
    ))
})

describe("what a fork and a join ask of the runtime", () => {
  /** Counts the waits between streams of a program. */
  const counting = (runtime: CudaRuntimeService) => {
    const counts = { forked: 0, joined: 0 }
    const counted: CudaRuntimeService = {
      ...runtime,
      streamFork: (from, branches) => {
        counts.forked += branches.length
        return runtime.streamFork(from, branches)
      },
      streamJoin: (into, branches) => {
        counts.joined += branches.length
        return runtime.streamJoin(into, branches)
      }
    }
    return { counts, counted }
  }

  it.effect("is a wait in each direction for every stream, and none for branches that never began", () =>
    onMachine(({ runtime }) =>
      Effect.gen(function*() {
        const { counted, counts } = counting(runtime)
        const run = <A, E>(effect: Effect.Effect<A, E, CudaRuntime>) =>
          Effect.provideService(effect, CudaRuntime, counted)
        const eight = Array.from({ length: 8 }, () => Effect.void)
        yield* run(CudaBranch.all(eight))
        assert.deepStrictEqual(counts, { forked: 8, joined: 8 })
        yield* run(CudaBranch.all(eight, { streams: 3 }))
        assert.deepStrictEqual(counts, { forked: 11, joined: 11 })
        yield* Effect.exit(run(CudaBranch.all([Effect.void, Effect.fail("no"), Effect.void])))
        assert.deepStrictEqual(counts, { forked: 14, joined: 13 })
        yield* run(Effect.scoped(Effect.flatMap(CudaBranch.fork(Effect.void), (branch) => CudaBranch.join(branch))))
        assert.deepStrictEqual(counts, { forked: 15, joined: 14 })
        yield* run(CudaBranch.all([]))
        assert.deepStrictEqual(counts, { forked: 15, joined: 14 })
        yield* run(CudaBranch.all(Array.from({ length: 100 }, () => Effect.void)))
        assert.deepStrictEqual(counts, { forked: 47, joined: 46 })
      })
    ))
})
