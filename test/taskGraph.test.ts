/**
 * Task graphs: their types, rejected arguments, plans compared with every possible layout, runs in virtual time compared with the
 * promised order, and what failures and interruptions leave behind.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaBranch from "effect-cuda/CudaBranch"
import { CudaError, reasonFromStatus } from "effect-cuda/CudaError"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { CudaRuntimeService } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as CudaTaskGraph from "effect-cuda/CudaTaskGraph"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import type { SimulatedControlService } from "effect-cuda/SimulatedRuntime"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { makePlan } from "../src/internal/taskGraph/plan.ts"
import type { Dependencies, Plan } from "../src/internal/taskGraph/plan.ts"
import { failsWith, refuses } from "./support/assertions.ts"
import { within } from "./support/clock.ts"
import { started } from "./support/fibers.ts"

type Same<A, B> = [A, B] extends [B, A] ? true : false

/** Compiles only if both types are the same. */
const same = <A, B>(proof: Same<A, B>): boolean => proof

class NoNumber {
  readonly _tag = "NoNumber"
}

const number: Effect.Effect<number, NoNumber, Scope.Scope> = Effect.succeed(1)
const text = Effect.succeed("two")

const lastForm = CudaTaskGraph.empty.pipe(
  CudaTaskGraph.add("number", number),
  CudaTaskGraph.add("text", [], text),
  CudaTaskGraph.add("both", ["number", "text"], ({ number, text }) => Effect.succeed([number, text] as const)),
  CudaTaskGraph.add("size", ["both"], (given) => Effect.succeed(Object.keys(given).length)),
  CudaTaskGraph.add("end", ["size"], text)
)
const first = CudaTaskGraph.add(CudaTaskGraph.empty, "number", number)
const firstForm = CudaTaskGraph.add(first, "again", ["number"], ({ number }) => Effect.succeed(String(number)))

/** The compiler rejects each of these; forced, each throws. */
const refused = [
  // @ts-expect-error a name that no task has
  () => CudaTaskGraph.empty.pipe(CudaTaskGraph.add("a", text), CudaTaskGraph.add("b", ["x"], text)),
  // @ts-expect-error a task that depends on itself
  () => CudaTaskGraph.empty.pipe(CudaTaskGraph.add("a", ["a"], text)),
  // @ts-expect-error a name that is taken
  () => CudaTaskGraph.empty.pipe(CudaTaskGraph.add("a", text), CudaTaskGraph.add("a", text)),
  // @ts-expect-error a name that is taken
  () => CudaTaskGraph.empty.pipe(CudaTaskGraph.add("a", text), CudaTaskGraph.add("a", ["a"], text)),
  // @ts-expect-error a name that no task has
  () => CudaTaskGraph.add(CudaTaskGraph.empty, "a", ["b"], text),
  // @ts-expect-error a name that is taken
  () => CudaTaskGraph.add(CudaTaskGraph.add(CudaTaskGraph.empty, "a", text), "a", text)
]

export const notGiven = () =>
  CudaTaskGraph.empty.pipe(
    CudaTaskGraph.add("a", text),
    CudaTaskGraph.add("b", text),
    // @ts-expect-error a result of a task that this one does not depend on
    CudaTaskGraph.add("c", ["a"], ({ b }) => Effect.succeed(b))
  )

declare const anyName: string
declare const eitherName: "a" | "b"
declare const someNames: ReadonlyArray<"a" | "b">

/** What the types know about graphs with unknown names. */
export const wide = () => {
  const one = CudaTaskGraph.empty.pipe(CudaTaskGraph.add("a", Effect.succeed(1)), CudaTaskGraph.add("b", text))
  const more = CudaTaskGraph.add(one, anyName, Effect.succeed(true))
  const proofs = [
    same<typeof more, CudaTaskGraph.CudaTaskGraph<Readonly<Record<string, number | string | boolean>>>>(true)
  ]
  return [
    proofs,
    // @ts-expect-error a name that may be either
    CudaTaskGraph.add(CudaTaskGraph.empty, eitherName, text),
    // @ts-expect-error a result that may not be among those that are given
    CudaTaskGraph.add(one, "c", someNames, ({ a }) => Effect.succeed(a.toFixed())),
    CudaTaskGraph.add(one, "c", someNames, ({ a }) => Effect.succeed(a?.toFixed()))
  ]
}

const dynamic = CudaTaskGraph.fromTasks([
  { name: "b", after: ["a"], run: ({ a }) => Effect.succeed(a! + 1) },
  { name: "a", run: () => Effect.succeed(1) },
  { name: "c", after: ["b"], run: ({ b }) => b === undefined ? Effect.fail(new NoNumber()) : Effect.succeed(b * 10) }
])

describe("types", () => {
  interface Results {
    readonly number: number
    readonly text: string
    readonly both: readonly [number, string]
    readonly size: number
    readonly end: string
  }
  type Runs<A> = Effect.Effect<A, NoNumber | CudaError, Scope.Scope | CudaRuntime>
  it("carry the result, the failures and the services of every task", () => {
    assert.isTrue(same<typeof lastForm, CudaTaskGraph.CudaTaskGraph<Results, NoNumber, Scope.Scope>>(true))
    const [run, piped] = [CudaTaskGraph.run(lastForm, { streams: 2 }), lastForm.pipe(CudaTaskGraph.run())]
    assert.isTrue(same<typeof run, Runs<Results>>(true))
    assert.isTrue(same<typeof piped, Runs<Results>>(true))
    const again = CudaTaskGraph.run(firstForm)
    assert.isTrue(same<typeof again, Runs<{ readonly number: number; readonly again: string }>>(true))
    type Dynamic = CudaTaskGraph.CudaTaskGraph<Readonly<Record<string, number>>, NoNumber>
    assert.isTrue(same<Effect.Success<typeof dynamic>, Dynamic>(true))
    assert.deepStrictEqual(lastForm.tasks.map(({ name }) => name), ["number", "text", "both", "size", "end"])
  })
})

describe("invalid tasks", () => {
  it("make add throw, if forced past the types", () => {
    const found = refused.map((make) => {
      try {
        make()
        return "nothing"
      } catch (error) {
        assert.instanceOf(error, CudaError)
        assert.strictEqual(error.operation, "CudaTaskGraph.add")
        return error.reason._tag === "InvalidArgument"
          ? `${error.reason.argument} ${error.reason.value}`
          : error.message
      }
    })
    const after = [`after "x"`, `after "a"`, `after "b"`]
    assert.deepStrictEqual(found, [after[0], after[1], `name "a"`, `name "a"`, after[2], `name "a"`])
  })

  it.effect("make fromTasks fail: a duplicate name, an unknown name, and the path of a cycle", () =>
    Effect.gen(function*() {
      const refusal = (...tasks: ReadonlyArray<readonly [name: string, after?: ReadonlyArray<string>]>) => {
        const made = CudaTaskGraph.fromTasks(tasks.map(([name, after]) => ({ name, after, run: () => Effect.void })))
        return Effect.map(failsWith(made, "InvalidArgument"), ({ argument, value }) => `${argument} ${value}`)
      }
      assert.strictEqual(yield* refusal(["a"], ["b"], ["a"]), `name "a"`)
      assert.strictEqual(yield* refusal(["a"], ["b", ["a", "c"]]), `after "c"`)
      assert.strictEqual(yield* refusal(["a", ["a"]]), `after ["a", "a"]`)
      const cycle = yield* refusal(["e", ["d"]], ["d", ["a", "c"]], ["c", ["b"]], ["b", ["d"]], ["a"])
      assert.strictEqual(cycle, `after ["d", "b", "c", "d"]`)
      const long = Array.from({ length: 20_000 }, (_, i) => [`${i}`, [`${(i + 1) % 20_000}`]] as const)
      assert.include(yield* refusal(...long), `after ["0", "19999", "19998"`)
    }))
})

/** For each task, all tasks before it, directly or through others. */
const closure = (dependencies: Dependencies): ReadonlyArray<ReadonlySet<number>> => {
  const before: Array<Set<number>> = []
  for (const own of dependencies) before.push(new Set(own.flatMap((other) => [other, ...before[other]!])))
  return before
}

/** Puts a graph between two more tasks: the work of the current stream before it, and after it. */
const between = (dependencies: Dependencies): Dependencies => [
  [],
  ...dependencies.map((own) => [0, ...own.map((other) => other + 1)]),
  [0, ...dependencies.map((_, task) => task + 1)]
]

/** The dependencies that are not implied by others, as pairs, found by looking for a task in between. */
const covers = (dependencies: Dependencies): ReadonlyArray<readonly [from: number, to: number]> => {
  const before = closure(dependencies)
  return before.flatMap((own, to) =>
    Array.from(own).filter((from) => !Array.from(own).some((middle) => before[middle]!.has(from))).map((from) =>
      [from, to] as const
    )
  )
}

interface Cost {
  readonly waits: number
  readonly records: number
}

/**
 * The fewest waits, and the fewest records for that many waits, of all ways to assign tasks to streams without adding any order beyond
 * the promised one: tasks of one stream must be ordered anyway. Each pair without a task in between needs a wait, unless one directly
 * follows the other on a stream.
 */
const cheapest = (dependencies: Dependencies): Cost => {
  const whole = between(dependencies)
  const [before, pairs, end] = [closure(whole), covers(whole), whole.length - 1]
  let best: Cost = { waits: Infinity, records: Infinity }
  /** The last task of each stream. The end is on the first stream. */
  const place = (task: number, last: ReadonlyArray<number>, next: ReadonlyMap<number, number>): void => {
    if (task < end) {
      for (let stream = 0; stream <= last.length; stream++) {
        const previous = last[stream]
        if (previous === undefined) place(task + 1, [...last, task], next)
        else if (before[task]!.has(previous)) {
          place(task + 1, last.with(stream, task), new Map(next).set(previous, task))
        }
      }
      return
    }
    const free = new Map(next).set(last[0]!, end)
    const waits = pairs.filter(([from, to]) => free.get(from) !== to)
    const cost = { waits: waits.length, records: new Set(waits.map(([from]) => from)).size }
    if (cost.waits < best.waits || (cost.waits === best.waits && cost.records < best.records)) best = cost
  }
  place(1, [0], new Map())
  return best
}

const costOf = ({ forks, joins, waiters, waits }: Plan): Cost => ({
  waits: waits.flat().length + forks.length + joins.length,
  records: waiters.filter((count) => count > 0).length + Math.min(forks.length, 1) + joins.length
})

/** What a plan puts before each task, and around all tasks: through the order of a stream, or through waits. */
const planned = ({ forks, joins, previous, streamOf, waits }: Plan) => {
  const end = streamOf.length + 1
  const pairs = (to: number, ...from: ReadonlyArray<number>) => from.map((other) => [other, to] as const)
  const firstOf = (stream: number) => pairs(streamOf.indexOf(stream) + 1, 0)
  const lastOf = (stream: number) => pairs(end, streamOf.lastIndexOf(stream) + 1)
  const next = previous.flatMap((before, task) => before === undefined ? [] : pairs(task + 1, before + 1))
  return {
    free: [...firstOf(0), ...next, ...lastOf(0)],
    waits: [
      ...forks.flatMap(firstOf),
      ...waits.flatMap((own, task) => pairs(task + 1, ...own.map((other) => other + 1))),
      ...joins.flatMap(lastOf)
    ]
  }
}

/** All tasks that a plan puts before each task. */
const orderOf = (plan: Plan): Dependencies => {
  const { free, waits } = planned(plan)
  const order = Array.from({ length: plan.streamOf.length + 2 }, (): Array<number> => [])
  for (const [from, to] of [...free, ...waits]) order[to]!.push(from)
  return order
}

/** Every graph with a number of tasks, each depending on any of the tasks before it. */
function* everyGraph(tasks: number): Iterable<Dependencies> {
  const pairs = tasks * (tasks - 1) / 2
  for (let bits = 0; bits < 2 ** pairs; bits++) {
    let pair = 0
    yield Array.from(
      { length: tasks },
      (_, task) => Array.from({ length: task }, (_, other) => other).filter(() => (bits >>> pair++ & 1) === 1)
    )
  }
}

const integer = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

const Tasks = Schema.Array(
  Schema.Struct({
    after: Schema.Array(integer(0, 12)).check(Schema.isMaxLength(4)),
    duration: integer(0, 60),
    /** How long its effect takes on the host. */
    pause: Schema.Literals([0, 0, 0, 1, 30]),
    rank: integer(0, 100)
  })
).check(Schema.isMinLength(1), Schema.isMaxLength(13))

type Tasks = typeof Tasks.Type

/** Drops numbers that do not refer to an earlier task. */
const dependenciesOf = (tasks: Tasks): Dependencies =>
  tasks.map(({ after }, task) => Array.from(new Set(after)).filter((other) => other < task))

const shuffled = <A>(list: ReadonlyArray<A>, ranks: Tasks): ReadonlyArray<A> =>
  list.map((item, index) => ({ item, rank: ranks[index]!.rank })).toSorted((a, b) => a.rank - b.rank).map(({ item }) =>
    item
  )

describe("graphs built task by task", () => {
  const build = (from: CudaTaskGraph.CudaTaskGraph<Readonly<Record<string, void>>>, prefix: string, count: number) => {
    let graph = from
    for (let index = 0; index < count; index++) {
      graph = CudaTaskGraph.add(graph, `${prefix} ${index}`, index === 0 ? [] : [`${prefix} ${index - 1}`], Effect.void)
    }
    return graph
  }
  const none: CudaTaskGraph.CudaTaskGraph<Readonly<Record<string, void>>> = CudaTaskGraph.empty

  it("take time proportional to the number of tasks", () => {
    build(none, "warm", 1000)
    const begun = performance.now()
    const graph = build(none, "task", 30_000)
    const passed = performance.now() - begun
    assert.strictEqual(graph.tasks.length, 30_000)
    // Copying all tasks for each new one takes more than ten seconds.
    assert.isBelow(passed, 2000)
  })

  it("do not see the tasks of other graphs with the same beginning", () => {
    const base = build(none, "base", 3)
    const left = CudaTaskGraph.add(base, "left", ["base 2"], Effect.void)
    const right = CudaTaskGraph.add(base, "right", ["base 0"], Effect.void)
    const leftAndRight = CudaTaskGraph.add(left, "right", Effect.void)
    const both = CudaTaskGraph.add(leftAndRight, "last", ["left", "right"], Effect.void)
    const again = CudaTaskGraph.add(right, "left", ["right"], Effect.void)
    const names = (graph: CudaTaskGraph.CudaTaskGraph<unknown>) => graph.tasks.map(({ name }) => name)
    const three = ["base 0", "base 1", "base 2"]
    assert.deepStrictEqual(names(base), three)
    assert.deepStrictEqual(names(left), [...three, "left"])
    assert.deepStrictEqual(names(right), [...three, "right"])
    assert.deepStrictEqual(names(both), [...three, "left", "right", "last"])
    assert.deepStrictEqual(names(again), [...three, "right", "left"])
    assert.deepStrictEqual(again.tasks.at(-1)?.after, ["right"])
    assert.throws(() => CudaTaskGraph.add(base, "x", ["left"], Effect.void), `expected the name of another task`)
    assert.throws(() => CudaTaskGraph.add(left, "left", Effect.void), `expected a name that no other task has`)
    assert.strictEqual(String(base), "CudaTaskGraph(3 tasks)")
  })

  it.effect("are rejected if planning them would take all memory", () =>
    Effect.gen(function*() {
      const graph = build(none, "task", 65_537)
      assert.throws(() => CudaTaskGraph.toMermaid(graph), "tasks is \"65537 tasks\"; expected at most 65536 tasks")
      const { runtime } = yield* SimulatedRuntime.make()
      yield* refuses(CudaTaskGraph.run(graph), "tasks").pipe(Effect.provideService(CudaRuntime, runtime))
    }).pipe(Effect.scoped))
})

describe("plans", () => {
  it("have the fewest waits and records of all layouts, for every graph of up to five tasks", () => {
    for (const tasks of [1, 2, 3, 4, 5]) {
      for (const graph of everyGraph(tasks)) {
        assert.deepStrictEqual(costOf(makePlan(graph, 32)), cheapest(graph), JSON.stringify(graph))
      }
    }
  })

  it.prop("promise the order of the dependencies, no less and no more", [Tasks], ([tasks]) => {
    const dependencies = dependenciesOf(tasks)
    assert.deepStrictEqual(closure(orderOf(makePlan(dependencies, 32))), closure(between(dependencies)))
  }, { arbitrary: { runs: 1000, size: 30 } })

  it.prop("with few streams promise at least that, with no wait that others imply", [Tasks, integer(1, 4)], (
    [tasks, most]
  ) => {
    const dependencies = dependenciesOf(tasks)
    const plan = makePlan(dependencies, most)
    assert.isAtMost(plan.streams, most)
    const [order, promised] = [orderOf(plan), closure(between(dependencies))]
    for (const [task, before] of closure(order).entries()) {
      for (const other of promised[task]!) assert.isTrue(before.has(other), `${task} after ${other}`)
    }
    assert.includeDeepMembers(covers(order).map(String), planned(plan).waits.map(String))
  }, { arbitrary: { runs: 1000, size: 30 } })

  const grid = (tasks: number): Dependencies =>
    Array.from({ length: tasks }, (_, task) => task === 0 ? [] : [Math.floor(task / 2), Math.max(0, task - 7)])

  it("of thousands of tasks take little time, however deep or wide", () => {
    const shapes = {
      grid: grid(5000),
      chain: Array.from({ length: 20_000 }, (_, task) => task === 0 ? [] : [task - 1]),
      free: Array.from({ length: 5000 }, () => []),
      funnel: Array.from({ length: 2700 }, (_, task) => task < 2000 ? [] : Array.from({ length: 2000 }, (_, i) => i)),
      stages: Array.from({ length: 5000 }, (_, task) => {
        if (task % 50 > 0) return [task - task % 50]
        return Array.from({ length: Math.min(49, task) }, (_, back) => task - 1 - back)
      })
    }
    for (const [name, dependencies] of Object.entries(shapes)) {
      within(1500, () => makePlan(dependencies, 32), name)
    }
  })

  it("distribute tasks evenly if there are few streams", () => {
    const { streamOf } = makePlan(Array.from({ length: 30 }, () => []), 3)
    assert.deepStrictEqual([0, 1, 2].map((stream) => streamOf.filter((other) => other === stream).length), [10, 10, 10])
  })

  it("continue on a stream whose work has ended anyway, rather than on another one", () => {
    const diamonds = Array.from({ length: 1000 }, (_, task) => {
      if (task % 3 === 0) return task === 0 ? [] : [task - 1, task - 2]
      return [task - task % 3]
    })
    assert.strictEqual(makePlan(diamonds, 32).streams, 2)
  })
})

interface Machine {
  readonly runtime: CudaRuntimeService
  readonly control: SimulatedControlService
}

/** Runs a test on a machine with enough engines, with a runtime made from the one of the machine. */
const onMachine = <A, E>(
  body: (machine: Machine) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>,
  change: (runtime: CudaRuntimeService) => CudaRuntimeService = (runtime) => runtime
) =>
  Effect.gen(function*() {
    const options = { devices: [{ concurrentKernels: 1_000_000 }], recordTimeline: true }
    const made = yield* SimulatedRuntime.make(options)
    const runtime = change(made.runtime)
    const stream = yield* Effect.provideService(CudaStream.make(), CudaRuntime, runtime)
    return yield* body({ ...made, runtime }).pipe(
      CudaStream.withStream(stream),
      Effect.provideService(CudaRuntime, runtime)
    )
  }).pipe(Effect.scoped)

/** Work with a distinct duration, which identifies it in the timeline. */
const launch = ({ control }: Machine, nanos: number) =>
  Effect.flatMap(CudaStream.current(), (stream) => control.launch(stream, { duration: `${nanos} nanos` }))

/** The start of all work, by its duration. */
const startsOf = ({ control }: Machine) =>
  Effect.map(
    control.timeline,
    (timeline) => new Map(timeline.filter(({ kind }) => kind === "work").map(({ end, start }) => [end - start, start]))
  )

/** What the timeline says about the work before a run, its tasks, and the work after it. */
const [beforeAll, afterAll] = [5_000_001, 5_000_002]
const workOf = (tasks: Tasks, task: number) => tasks[task]!.duration * 1000 + task + 1

const graphOf = (tasks: Tasks, perform: (task: number) => Effect.Effect<void, CudaError, CudaRuntime>) => {
  const dependencies = dependenciesOf(tasks)
  const list = tasks.map((_, task) => ({
    name: `task ${task}`,
    after: dependencies[task]!.map((other) => `task ${other}`),
    run: (given: Readonly<Record<string, ReadonlyArray<number>>>) =>
      Effect.as(perform(task), [task, ...Object.values(given).flat()])
  }))
  return CudaTaskGraph.fromTasks(shuffled(list, tasks))
}

/** The numbers of the tasks, in the order of a graph. */
const orderIn = ({ tasks }: { readonly tasks: ReadonlyArray<{ readonly name: string }> }) =>
  tasks.map(({ name }) => Number(name.slice(5)))

/** When effects should end and work should start: effects run in turn, or as soon as they may. */
const expectedStarts = (tasks: Tasks, order: ReadonlyArray<number>, turns: Dependencies | undefined) => {
  const dependencies = dependenciesOf(tasks)
  const effectEnds: Array<number> = []
  const [starts, ends]: [Array<number>, Array<number>] = [[], []]
  let turn = 0
  for (const task of order) {
    const pause = tasks[task]!.pause * 1e6
    const ready = turns === undefined ? turn : Math.max(0, ...turns[task]!.map((other) => effectEnds[other]!))
    effectEnds[task] = turn = ready + pause
    starts[task] = Math.max(beforeAll, effectEnds[task]!, ...dependencies[task]!.map((other) => ends[other]!))
    ends[task] = starts[task]! + workOf(tasks, task)
  }
  return { starts, end: Math.max(...ends, ...effectEnds) }
}

/** Counts the event records and waits of a program. */
const counting = () => {
  const count = { records: 0, waits: 0 }
  const add = (records: number, waits: number) => {
    count.records += records
    count.waits += waits
  }
  const change = (runtime: CudaRuntimeService): CudaRuntimeService => ({
    ...runtime,
    eventRecord: (event, stream) => {
      add(1, 0)
      return runtime.eventRecord(event, stream)
    },
    streamWaitEvent: (stream, event) => {
      add(0, 1)
      return runtime.streamWaitEvent(stream, event)
    },
    streamWaitStream: (stream, other) => {
      add(1, 1)
      return runtime.streamWaitStream(stream, other)
    },
    streamFork: (from, branches) => {
      add(1, branches.length)
      return runtime.streamFork(from, branches)
    },
    streamJoin: (into, branches) => {
      add(branches.length, branches.length)
      return runtime.streamJoin(into, branches)
    }
  })
  return { count, change }
}

/** How many streams the pool leases at the same time: all, if every lease was returned. */
const pooled = Effect.map(
  CudaBranch.all(Array.from({ length: 32 }, () => CudaStream.current())),
  (streams) => new Set(streams.map(({ id }) => id)).size
)

/** Asserts that later work on the current stream starts after all launched work, and that a run leaves nothing behind. */
const leftBehind = (machine: Machine) =>
  Effect.gen(function*() {
    const now = yield* machine.control.now
    yield* launch(machine, afterAll)
    yield* TestClock.adjust("10 seconds")
    const works = (yield* machine.control.timeline).filter(({ kind }) => kind === "work")
    const last = works.find(({ end, start }) => end - start === afterAll)!
    const others = works.filter((work) => work !== last)
    assert.strictEqual(last.start, Math.max(now, ...others.map(({ end }) => end)))
    assert.strictEqual(yield* pooled, 32)
    const { events, waits } = yield* machine.runtime.liveResources
    assert.deepStrictEqual([events, waits], [0, 0])
    return others.length
  })

describe("random graphs", () => {
  for (const concurrency of [1, "unbounded"] as const) {
    const name = `start their work exactly when the promise allows, at the least cost (concurrency ${concurrency})`
    it.effect.prop(name, [Tasks], ([tasks]) => {
      const { change, count } = counting()
      return onMachine((machine) =>
        Effect.gen(function*() {
          const graph = yield* graphOf(tasks, (task) =>
            Effect.andThen(Effect.sleep(tasks[task]!.pause), launch(machine, workOf(tasks, task))))
          const order = graph.tasks.map((task) =>
            Number(task.name.slice(5))
          )
          yield* launch(machine, beforeAll)
          const running = yield* started(CudaTaskGraph.run(graph, { concurrency }))
          yield* TestClock.adjust("1 second")
          const results = yield* Fiber.join(running)
          yield* launch(machine, afterAll)
          yield* TestClock.adjust("1 second")
          const dependencies = dependenciesOf(tasks)
          const expected = expectedStarts(tasks, order, concurrency === 1 ? undefined : dependencies)
          const observed = yield* startsOf(machine)
          for (const task of order) {
            assert.strictEqual(observed.get(workOf(tasks, task)), expected.starts[task], `start of task ${task}`)
            const given = dependencies[task]!.flatMap((other) => results[`task ${other}`]!)
            assert.deepStrictEqual(results[`task ${task}`], [task, ...given])
          }
          assert.strictEqual(Object.keys(results).length, tasks.length)
          const numbered = order.map((task) => dependencies[task]!.map((other) => order.indexOf(other)))
          assert.deepStrictEqual({ ...count }, costOf(makePlan(numbered, 32)))
          if (tasks.length <= 6) assert.deepStrictEqual({ ...count }, cheapest(numbered))
          const { events, waits } = yield* machine.runtime.liveResources
          assert.deepStrictEqual([events, waits], [0, 0])
          assert.strictEqual(yield* pooled, 32)
        }), change)
    }, { arbitrary: { runs: 200, size: 30 } })
  }

  it.effect.prop("on few streams keep the promised order, and that of the streams", [Tasks, integer(1, 3)], (
    [tasks, streams]
  ) =>
    Effect.gen(function*() {
      const dependencies = dependenciesOf(tasks)
      for (const concurrency of [1, 2, "unbounded"] as const) {
        const { order, starts } = yield* onMachine((machine) =>
          Effect.gen(function*() {
            const graph = yield* graphOf(tasks, (task) => launch(machine, workOf(tasks, task)))
            yield* CudaTaskGraph.run(graph, { streams, concurrency })
            yield* TestClock.adjust("1 second")
            return { order: orderIn(graph), starts: yield* startsOf(machine) }
          })
        )
        const begin = Math.min(...starts.values())
        const ends: Array<number> = []
        const plan = makePlan(order.map((task) => dependencies[task]!.map((other) => order.indexOf(other))), streams)
        for (const [position, task] of order.entries()) {
          const before = [...plan.waits[position]!, ...[plan.previous[position] ?? []].flat()]
          const start = Math.max(begin, ...before.map((other) => ends[other]!))
          assert.strictEqual(starts.get(workOf(tasks, task)), start, `start of task ${task}`)
          ends[position] = start + workOf(tasks, task)
        }
      }
    }), { arbitrary: { runs: 100, size: 30 } })
})

/** A graph with every kind of wait. `visit` comes after the work of each task. */
const net = (machine: Machine, visit: (name: string) => Effect.Effect<unknown, string>) => {
  const task = (name: string, millis: number) =>
    Effect.andThen(launch(machine, millis * 1e6), Effect.suspend(() => visit(name)))
  return CudaTaskGraph.empty.pipe(
    CudaTaskGraph.add("a", task("a", 3)),
    CudaTaskGraph.add("b", task("b", 5)),
    CudaTaskGraph.add("c", ["a", "b"], task("c", 7)),
    CudaTaskGraph.add("d", ["a", "b"], task("d", 11)),
    CudaTaskGraph.add("e", ["c", "d"], task("e", 13)),
    CudaTaskGraph.add("f", task("f", 17))
  )
}

const names = ["a", "b", "c", "d", "e", "f"]

describe.each([1, 2, "unbounded"] as const)("with concurrency %s, runs", (concurrency) => {
  it.effect("fail with the failure of any task, and join what was enqueued", () =>
    Effect.forEach(names, (name) =>
      onMachine((machine) =>
        Effect.gen(function*() {
          let fails = true
          const graph = net(machine, (at) => at === name && fails ? Effect.fail(`no ${at}`) : Effect.succeed(at))
          assert.strictEqual(yield* Effect.flip(CudaTaskGraph.run(graph, { concurrency })), `no ${name}`)
          assert.isAtLeast(yield* leftBehind(machine), concurrency === 1 ? names.indexOf(name) + 1 : 1)
          fails = false
          const results = yield* CudaTaskGraph.run(graph, { concurrency })
          assert.deepStrictEqual(Object.values(results), names)
          yield* TestClock.adjust("1 second")
        })
      )))

  it.effect("that are interrupted at any task join what was enqueued", () =>
    Effect.forEach(names, (name) =>
      onMachine((machine) =>
        Effect.gen(function*() {
          const graph = net(machine, (at) => at === name ? Effect.never : Effect.void)
          const run = yield* started(CudaTaskGraph.run(graph, { concurrency }))
          assert.isUndefined(run.pollUnsafe())
          yield* Fiber.interrupt(run)
          assert.isAtLeast(yield* leftBehind(machine), concurrency === 1 ? names.indexOf(name) + 1 : 1)
        })
      )))

  it.effect("that meet a defect join what was enqueued", () =>
    Effect.forEach(["died", "thrown"], (how) =>
      onMachine((machine) =>
        Effect.gen(function*() {
          const graph = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("a", launch(machine, 1e6)),
            CudaTaskGraph.add("b", launch(machine, 2e6)),
            CudaTaskGraph.add("c", ["a", "b"], (): Effect.Effect<void> => {
              if (how === "died") return Effect.die(how)
              throw new Error(how)
            })
          )
          const exit = yield* Effect.exit(CudaTaskGraph.run(graph, { concurrency }))
          assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
          assert.strictEqual(yield* leftBehind(machine), 2)
        })
      )))

  it.effect("name the run in the failure of any runtime call, and join what was enqueued", () =>
    Effect.gen(function*() {
      const error = new CudaError({ operation: "elsewhere", reason: reasonFromStatus(2) })
      const steps = yield* atEveryCall(
        { when: "before", what: Effect.fail(error), without: ["streamJoin", "eventDestroy"] },
        (machine, during) =>
          Effect.gen(function*() {
            const run = CudaTaskGraph.run(net(machine, () => Effect.void), { concurrency })
            const exit = yield* Effect.exit(Effect.flip(during(run)))
            if (Exit.isFailure(exit)) return yield* TestClock.adjust("1 second")
            assert.instanceOf(exit.value, CudaError)
            assert.deepStrictEqual([exit.value.operation, exit.value.reason], ["CudaTaskGraph.run", error.reason])
            yield* leftBehind(machine)
          })
      )
      assert.isAbove(steps, 8)
    }))

  it.effect("that are interrupted at any runtime call join what was enqueued", () =>
    Effect.gen(function*() {
      for (const when of ["before", "after"] as const) {
        let interrupt = () => {}
        const what = Effect.andThen(Effect.sync(() => interrupt()), Effect.yieldNow)
        const steps = yield* atEveryCall({ when, what, without: [] }, (machine, during) =>
          Effect.gen(function*() {
            const graph = net(machine, () => Effect.void)
            const run = yield* Effect.forkChild(during(CudaTaskGraph.run(graph, { concurrency })))
            interrupt = () => run.interruptUnsafe()
            yield* Fiber.await(run)
            yield* leftBehind(machine)
          }))
        assert.isAbove(steps, 12)
      }
    }))
})

/** What to do before or after a runtime call. */
interface Act {
  readonly when: "before" | "after"
  readonly what: Effect.Effect<void, CudaError>
  readonly without: ReadonlyArray<keyof CudaRuntimeService>
}

/** Runs a body once for each runtime call that it makes during an effect, and acts at that call. Returns the number of calls. */
const atEveryCall = <E>(
  { what, when, without }: Act,
  body: (
    machine: Machine,
    during: <A, E2, R>(effect: Effect.Effect<A, E2, R>) => Effect.Effect<A, E2, R>
  ) => Effect.Effect<void, E, CudaRuntime | Scope.Scope>
) =>
  Effect.gen(function*() {
    for (let step = 1;; step++) {
      let [isOn, calls] = [false, 0]
      const at = <A>(name: keyof CudaRuntimeService, call: Effect.Effect<A, CudaError>) =>
        Effect.suspend(() => {
          if (!isOn || without.includes(name) || ++calls !== step) return call
          return when === "before" ? Effect.andThen(what, call) : Effect.tap(call, what)
        })
      const set = (value: boolean) => Effect.sync(() => isOn = value)
      const change = (runtime: CudaRuntimeService): CudaRuntimeService => ({
        ...runtime,
        streamCreate: (options) => at("streamCreate", runtime.streamCreate(options)),
        streamFork: (from, branches) => at("streamFork", runtime.streamFork(from, branches)),
        streamJoin: (into, branches) => at("streamJoin", runtime.streamJoin(into, branches)),
        streamWaitEvent: (stream, event) => at("streamWaitEvent", runtime.streamWaitEvent(stream, event)),
        eventCreate: (device, flags) => at("eventCreate", runtime.eventCreate(device, flags)),
        eventRecord: (event, stream) => at("eventRecord", runtime.eventRecord(event, stream)),
        eventDestroy: (event) => at("eventDestroy", runtime.eventDestroy(event))
      })
      const during = <A, E2, R>(effect: Effect.Effect<A, E2, R>) =>
        Effect.andThen(set(true), Effect.ensuring(effect, set(false)))
      yield* onMachine((machine) => body(machine, during), change)
      if (calls < step) return calls
    }
  })

describe("runs", () => {
  it.effect("that cannot be joined fail, unless they already have", () =>
    onMachine((machine) =>
      Effect.gen(function*() {
        yield* machine.control.failNext("CudaBranch.join", "NotPermitted", 2)
        const joined = yield* Effect.flip(CudaTaskGraph.run(net(machine, () => Effect.void)))
        assert.isTrue(joined instanceof CudaError && joined.operation === "CudaTaskGraph.run")
        const failing = net(machine, (at) => at === "f" ? Effect.fail(at) : Effect.void)
        assert.deepStrictEqual(yield* Effect.exit(CudaTaskGraph.run(failing)), Exit.fail("f"))
        yield* TestClock.adjust("1 second")
        assert.strictEqual(yield* pooled, 32)
      })
    ))

  it.effect("limit how many effects run at the same time, and start as many as allowed", () =>
    onMachine(() =>
      Effect.gen(function*() {
        let [running, most] = [0, 0]
        const task = Effect.acquireUseRelease(
          Effect.sync(() => most = Math.max(most, ++running)),
          () => Effect.sleep(10),
          () => Effect.sync(() => running--)
        )
        const graph = CudaTaskGraph.empty.pipe(
          CudaTaskGraph.add("long", Effect.andThen(task, task)),
          CudaTaskGraph.add("after long", ["long"], task),
          CudaTaskGraph.add("one", task),
          CudaTaskGraph.add("two", task),
          CudaTaskGraph.add("three", task)
        )
        for (const [concurrency, millis] of [[undefined, 60], [1, 60], [2, 30], [3, 30], ["unbounded", 30]] as const) {
          most = 0
          const run = yield* started(CudaTaskGraph.run(graph, { concurrency }))
          yield* TestClock.adjust(millis - 1)
          assert.isUndefined(run.pollUnsafe())
          yield* TestClock.adjust(1)
          yield* Fiber.join(run)
          assert.strictEqual(most, concurrency === "unbounded" ? 4 : concurrency ?? 1)
        }
      })
    ))

  it.effect("take only the streams they need, and never more than the pool has", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const one = CudaTaskGraph.empty.pipe(
          CudaTaskGraph.add("a", pooled),
          CudaTaskGraph.add("b", ["a", "a"], pooled)
        )
        assert.deepStrictEqual(one.tasks.map(({ after }) => after), [[], ["a"]])
        assert.deepStrictEqual(yield* CudaTaskGraph.run(one), { a: 32, b: 32 })
        const free = yield* CudaTaskGraph.fromTasks(
          Array.from({ length: 40 }, (_, index) => ({ name: `${index}`, run: () => CudaStream.current() }))
        )
        for (const [streams, expected] of [[undefined, 32], [1000, 32], [31, 31], [2, 2]] as const) {
          const used = yield* CudaTaskGraph.run(free, { streams })
          assert.strictEqual(new Set(Object.values(used).map(({ id }) => id)).size, expected)
        }
      })
    ))

  it.effect("accept any name", () =>
    onMachine(() =>
      Effect.gen(function*() {
        const strange = ["__proto__", "constructor", "", "2", "1", "toString"]
        const graph = yield* CudaTaskGraph.fromTasks([
          ...strange.map((name) => ({ name, run: () => Effect.succeed(name) })),
          {
            name: "all",
            after: strange,
            run: (given: Readonly<Record<string, string>>) => Effect.succeed(Object.keys(given).toSorted().join())
          }
        ])
        const results = yield* CudaTaskGraph.run(graph)
        assert.deepStrictEqual(
          Object.entries(results).toSorted(),
          [
            ...strange.map((name) => [name, name]),
            ["all", strange.toSorted().join()]
          ].toSorted()
        )
      })
    ))

  it.effect("of thousands of sequential tasks end", () =>
    onMachine((machine) =>
      Effect.gen(function*() {
        const tasks = Array.from({ length: 5000 }, (_, index) => ({
          name: `${index}`,
          after: index === 0 ? [] : [`${index - 1}`, `${Math.floor(index / 2)}`],
          run: () => launch(machine, 1)
        }))
        const graph = yield* CudaTaskGraph.fromTasks(tasks.toReversed())
        for (const concurrency of [1, 8, "unbounded"] as const) yield* CudaTaskGraph.run(graph, { concurrency })
        assert.isFalse(yield* CudaStream.query(yield* CudaStream.current()))
        yield* TestClock.adjust("15000 nanos")
        assert.isTrue(yield* CudaStream.query(yield* CudaStream.current()))
      })
    ))
})

describe("pictures", () => {
  const graph = CudaTaskGraph.empty.pipe(
    CudaTaskGraph.add("left", Effect.void),
    CudaTaskGraph.add("right", Effect.void),
    CudaTaskGraph.add("sum", ["left", "right"], Effect.void),
    CudaTaskGraph.add("end", ["left", "sum"], Effect.void)
  )
  const lines = (...list: ReadonlyArray<string>) => list.join("\n")

  it("in Mermaid show streams, successors and waits", () => {
    const parts = lines(
      "flowchart TD",
      `  subgraph s0["current stream"]`,
      `    t0["left"]`,
      `    t2["sum"]`,
      `    t3["end"]`,
      "  end",
      `  subgraph s1["stream 1"]`,
      `    t1["right"]`,
      "  end",
      "  t0 --> t2",
      "  t1 -. wait .-> t2",
      "  t2 --> t3"
    )
    assert.strictEqual(CudaTaskGraph.toMermaid(graph), parts)
    assert.strictEqual(
      graph.pipe(CudaTaskGraph.toMermaid({ includeImplied: true })),
      lines(parts, "  t0 -. implied .-> t3")
    )
    assert.notInclude(CudaTaskGraph.toMermaid(graph, { streams: 1 }), "wait")
  })

  it("in DOT show the same", () => {
    assert.strictEqual(
      graph.pipe(CudaTaskGraph.toDot({ includeImplied: true })),
      lines(
        "digraph tasks {",
        "  node [shape=box]",
        "  subgraph cluster_0 {",
        `    label="current stream"`,
        `    t0 [label="left"]`,
        `    t2 [label="sum"]`,
        `    t3 [label="end"]`,
        "  }",
        "  subgraph cluster_1 {",
        `    label="stream 1"`,
        `    t1 [label="right"]`,
        "  }",
        "  t0 -> t2",
        `  t1 -> t2 [style=dashed, label="wait"]`,
        "  t2 -> t3",
        `  t0 -> t3 [style=dotted, label="implied"]`,
        "}"
      )
    )
    assert.notInclude(CudaTaskGraph.toDot(graph), "implied")
  })

  it("escape special characters in names, and keep the rest readable", () => {
    const name = `load_weights v1.2 "#1" <b> [x] \`y\` a\\b\nend`
    const odd = CudaTaskGraph.add(CudaTaskGraph.empty, name, Effect.void)
    assert.include(
      CudaTaskGraph.toMermaid(odd),
      `t0["load_weights v1.2 #34;#35;1#34; #60;b#62; #91;x#93; #96;y#96; a#92;b<br/>end"]`
    )
    assert.include(CudaTaskGraph.toDot(odd), `t0 [label="load_weights v1.2 \\"#1\\" <b> [x] \`y\` a\\\\b\\nend"]`)
    assert.include(CudaTaskGraph.toMermaid(CudaTaskGraph.add(CudaTaskGraph.empty, "", Effect.void)), `t0[" "]`)
    const listed = CudaTaskGraph.add(CudaTaskGraph.empty, "1. first - _x_", Effect.void)
    assert.include(CudaTaskGraph.toMermaid(listed), `t0["1#46; first #45; #95;x#95;"]`)
  })

  it("are empty without tasks, and rejected without streams", () => {
    assert.strictEqual(CudaTaskGraph.toMermaid(CudaTaskGraph.empty), "flowchart TD")
    assert.strictEqual(CudaTaskGraph.toDot(CudaTaskGraph.empty), "digraph tasks {\n  node [shape=box]\n}")
    for (const streams of [0, 1.5]) {
      assert.throws(() => CudaTaskGraph.toMermaid(graph, { streams }), /CudaTaskGraph.toMermaid: streams is/)
      assert.throws(() => CudaTaskGraph.toDot(graph, { streams }), /CudaTaskGraph.toDot: streams is/)
    }
  })
})

describe("an uninterruptible run", () => {
  it.effect("ends when a task that others wait for fails", () =>
    Effect.gen(function*() {
      const { runtime } = yield* SimulatedRuntime.make()
      const graph = CudaTaskGraph.empty.pipe(
        CudaTaskGraph.add("a", Effect.andThen(Effect.sleep(10), Effect.fail("no"))),
        CudaTaskGraph.add("b", ["a"], Effect.void),
        CudaTaskGraph.add("c", Effect.void)
      )
      for (const concurrency of [2, "unbounded"] as const) {
        const run = Effect.uninterruptible(CudaTaskGraph.run(graph, { concurrency }))
        const fiber = yield* started(Effect.provideService(run, CudaRuntime, runtime))
        yield* TestClock.adjust(20)
        const exit = fiber.pollUnsafe()
        assert.isTrue(exit !== undefined && Exit.isFailure(exit) && Cause.hasFails(exit.cause))
      }
    }).pipe(Effect.scoped))
})

describe("the streams of a graph", () => {
  it.effect("are never the current one while others are available", () =>
    Effect.gen(function*() {
      const { runtime } = yield* SimulatedRuntime.make()
      const graph = CudaTaskGraph.empty.pipe(
        CudaTaskGraph.add("a", CudaStream.current()),
        CudaTaskGraph.add("b", CudaStream.current())
      )
      yield* Effect.gen(function*() {
        const origin = yield* CudaStream.fromPool()
        for (let time = 0; time < 40; time++) {
          const { a, b } = yield* CudaTaskGraph.run(graph).pipe(CudaStream.withStream(origin))
          assert.notStrictEqual(a.id, b.id)
        }
      }).pipe(Effect.provideService(CudaRuntime, runtime))
    }).pipe(Effect.scoped))

  it.effect("are the same for every graph made from a generator", () =>
    Effect.gen(function*() {
      const making = CudaTaskGraph.fromTasks((function*() {
        yield { name: "a", run: () => Effect.succeed(1) }
      })())
      for (const _ of [1, 2]) assert.lengthOf((yield* making).tasks, 1)
    }))
})
