/**
 * Many fibers waiting at once, for events of few streams or many: what a wait costs to start and to end, and how late
 * the event loop is while they start, wait and end.
 *
 * Every stream runs a kernel that ends at the same moment; behind it as many events are recorded as there are fibers,
 * up to 500 per stream (the driver blocks once about a thousand operations are queued), which the fibers share evenly.
 * Fibers start to wait in the order of the records, except in the cases "out of order", where they take the events in
 * turn again and again. Three kinds of runs of each case measure different things, since a probe disturbs what it does
 * not measure:
 *
 * - costs, without a probe: "start" is the time in which all fibers are forked and wait, "end" the time the loop is
 *   busy (`performance.eventLoopUtilization`) from 10 ms before the kernels end until all fibers are through, both per
 *   fiber. The line below the table says what fibers cost that wait for nothing of a GPU. "busy" is the share of the
 *   time that the loop is busy in between.
 * - the lateness of a 1 ms timer (`monitorEventLoopDelay`), while they wait and while they end;
 * - the longest time between two turns of the loop, by a chain of immediates, while they start, wait and end.
 *
 * Starting, waiting and ending are 5 ms longer or later where probes read them, so that what a phase held up is seen in
 * it. A case whose waits were not all outstanding before the kernels' end is marked with an asterisk.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../../src/CudaError.ts"
import * as CudaEvent from "../../src/CudaEvent.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../../src/layers/NativeRuntime.ts"
import type { Driver } from "../support/driver.ts"
import { countBusy, pause, probeTimers, probeTurns, turn } from "../support/loop.ts"
import type { Lateness, Probe } from "../support/loop.ts"
import { printTable } from "../support/report.ts"
import { makeFigure } from "../support/results.ts"
import type { Figure } from "../support/results.ts"
import { runOnGpu } from "../support/run.ts"
import { fixed, median } from "../support/statistics.ts"

// Kernels of 64 streams run side by side only with as many connections to the GPU as there may be.
process.env["CUDA_DEVICE_MAX_CONNECTIONS"] ??= "32"

const fiberCounts = [1, 100, 1000, 10_000]
const streamCounts = [1, 16, 64]
const eventsPerStream = 500
/** How long the kernels run, in milliseconds: more than it takes to start all waits. */
const workMillis = 200
/** The part of it that belongs to the end. */
const marginMillis = 10
/** What a phase leaves to the turns after it, and the timers it held up, are seen within this time, in milliseconds. */
const settleMillis = 5
const repeats = 3

interface Case {
  readonly fibers: number
  readonly inOrder: boolean
  readonly streams: ReadonlyArray<CudaStream.CudaStream>
  readonly events: ReadonlyArray<CudaEvent.CudaEvent>
}

const makeCase = (
  fibers: number,
  streams: ReadonlyArray<CudaStream.CudaStream>,
  inOrder = true
): Effect.Effect<Case, CudaError, CudaRuntime | Scope.Scope> => {
  const count = Math.min(fibers, eventsPerStream * streams.length)
  return Effect.map(
    Effect.forEach(Array.from({ length: count }), () => CudaEvent.make()),
    (events) => ({ fibers, streams, events, inOrder })
  )
}

/** Sees the phases of a run go by. */
interface Observer<A> {
  /** All fibers wait. */
  readonly started: () => void
  /** What starting them left to do is done too. */
  readonly settled: () => void
  /** The kernels are about to end. */
  readonly ending: () => void
  /** All fibers are through. */
  readonly ended: () => void
  /** What ending them left to do is done too. */
  readonly result: () => A
}

/** Lets all fibers of a case wait, and end; the observer is made just before they start. */
const wait = <A>(driver: Driver, { events, fibers, inOrder, streams }: Case, observe: () => Observer<A>) =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    const end = performance.now() + workMillis
    for (const stream of streams) driver.spin(stream.handle, end - performance.now())
    for (const [index, event] of events.entries()) yield* CudaEvent.record(event, streams[index % streams.length])
    yield* turn
    const observer = observe()
    const waiting: Array<Fiber.Fiber<void, CudaError>> = []
    for (let index = 0; index < fibers; index++) {
      const event = events[inOrder ? Math.floor(index * events.length / fibers) : index % events.length]!
      waiting.push(yield* Effect.forkChild(CudaEvent.synchronize(event), { startImmediately: true }))
    }
    observer.started()
    const all = (yield* runtime.liveResources).waits === fibers
    yield* pause(settleMillis)
    observer.settled()
    yield* pause(Math.max(0, end - marginMillis - performance.now()))
    observer.ending()
    for (const fiber of waiting) yield* Fiber.join(fiber)
    observer.ended()
    yield* pause(settleMillis)
    return { result: observer.result(), all }
  })

/** Microseconds per fiber, and the share of the time between in percent. */
interface Costs {
  readonly start: number
  readonly busy: number
  readonly end: number
}

const costs = (fibers: number): Observer<Costs> => {
  const begun = performance.now()
  let start = 0
  let busy = 0
  let end = 0
  let busySince = countBusy()
  let waitingSince = 0
  return {
    started: () => start = (performance.now() - begun) * 1e3 / fibers,
    settled: () => {
      waitingSince = performance.now()
      busySince = countBusy()
    },
    ending: () => {
      busy = 100 * busySince() / (performance.now() - waitingSince)
      busySince = countBusy()
    },
    ended: () => end = busySince() * 1e3 / fibers,
    result: () => ({ start, busy, end })
  }
}

/** What a probe read in each phase. */
interface Phases<A> {
  readonly starting: A
  readonly waiting: A
  readonly ending: A
}

const phases = <A>(probe: Probe<A>): Observer<Phases<A>> => {
  let starting: A
  let waiting: A
  return {
    started: () => {},
    settled: () => starting = probe.read(),
    ending: () => waiting = probe.read(),
    ended: () => {},
    result: () => {
      const ending = probe.read()
      probe.stop()
      return { starting, waiting, ending }
    }
  }
}

const worst = (values: ReadonlyArray<Lateness>): Lateness => ({
  p50: median(values.map((value) => value.p50)),
  p99: Math.max(...values.map((value) => value.p99)),
  max: Math.max(...values.map((value) => value.max))
})

/** What is told of a case in the end: its row of the table, and figures of many waits. */
interface Measured {
  readonly row: ReadonlyArray<string>
  readonly figures: ReadonlyArray<Figure>
}

/** So many waits have a target. */
const manyFibers = 10_000

const figuresOf = (
  { fibers, inOrder, streams }: Case,
  cost: ReadonlyArray<Costs>,
  timers: ReadonlyArray<Phases<Lateness>>
): ReadonlyArray<Figure> => {
  if (fibers < manyFibers) return []
  const group = `${manyFibers} waits at once`
  const name = `${streams.length} ${streams.length === 1 ? "stream" : "streams"}${inOrder ? "" : ", out of order"}`
  const late = (phase: "waiting" | "ending") =>
    makeFigure(
      { group, name: `${name}: latest timer while ${phase}`, unit: "ms", target: "loopDelay" },
      timers.map((timer) => timer[phase].max)
    )
  return [
    makeFigure({ group, name: `${name}: to start one`, unit: "µs" }, cost.map(({ start }) => start)),
    makeFigure({ group, name: `${name}: to end one`, unit: "µs" }, cost.map(({ end }) => end)),
    makeFigure({ group, name: `${name}: event loop busy meanwhile`, unit: "%" }, cost.map(({ busy }) => busy)),
    late("waiting"),
    late("ending")
  ]
}

/** Medians of costs, the worst of delays. */
const measure = (driver: Driver, one: Case) =>
  Effect.gen(function*() {
    const cost: Array<Costs> = []
    const timers: Array<Phases<Lateness>> = []
    const turns: Array<Phases<number>> = []
    let mark = ""
    for (let repeat = 0; repeat < repeats; repeat++) {
      const costed = yield* wait(driver, one, () => costs(one.fibers))
      const timed = yield* wait(driver, one, () => phases(probeTimers()))
      const turned = yield* wait(driver, one, () => phases(probeTurns()))
      cost.push(costed.result)
      timers.push(timed.result)
      turns.push(turned.result)
      if (!(costed.all && timed.all && turned.all)) mark = " *"
    }
    const waiting = worst(timers.map((timer) => timer.waiting))
    const ending = worst(timers.map((timer) => timer.ending))
    const longest = (phase: keyof Phases<number>) => Math.max(...turns.map((seen) => seen[phase]))
    const row = [
      `${one.fibers}${one.inOrder ? "" : ", out of order"}${mark}`,
      String(one.streams.length),
      ...[median(cost.map(({ start }) => start)), median(cost.map(({ end }) => end))].map((value) => fixed(value, 2)),
      fixed(median(cost.map(({ busy }) => busy)), 2),
      ...[waiting.p50, waiting.p99, waiting.max, ending.p99, ending.max].map((value) => fixed(value, 2)),
      ...[longest("starting"), longest("waiting"), longest("ending")].map((value) => fixed(value, 2))
    ]
    const measured: Measured = { row, figures: figuresOf(one, cost, timers) }
    return measured
  })

/** What fibers cost that wait for a deferred value, in microseconds each: start and end. */
const baseline = Effect.gen(function*() {
  const count = 10_000
  const gate = yield* Deferred.make<void>()
  const waiting: Array<Fiber.Fiber<void>> = []
  const start = performance.now()
  for (let index = 0; index < count; index++) {
    waiting.push(yield* Effect.forkChild(Deferred.await(gate), { startImmediately: true }))
  }
  const started = performance.now()
  yield* Deferred.succeed(gate, undefined)
  for (const fiber of waiting) yield* Fiber.join(fiber)
  return [(started - start) * 1e3 / count, (performance.now() - started) * 1e3 / count] as const
})

const header = [
  "fibers",
  "streams",
  "start µs",
  "end µs",
  "busy %",
  ...["p50", "p99", "max"].map((of) => `waiting ${of}`),
  ...["p99", "max"].map((of) => `ending ${of}`),
  ...["starting", "waiting", "ending"].map((phase) => `turn ${phase}`)
]

await runOnGpu("waiting/many", ({ driver }) =>
  Effect.gen(function*() {
    const all = yield* Effect.forEach(Array.from({ length: Math.max(...streamCounts) }), () => CudaStream.make())
    // Compiles what is measured.
    yield* Effect.scoped(Effect.flatMap(makeCase(1000, all), (one) => measure(driver, one)))
    const cases = fiberCounts.flatMap((fibers) => streamCounts.map((streams) => ({ fibers, streams, inOrder: true })))
    cases.push({ fibers: 10_000, streams: 1, inOrder: false }, { fibers: 10_000, streams: 16, inOrder: false })
    const measured: Array<Measured> = []
    for (const { fibers, inOrder, streams } of cases) {
      const made = makeCase(fibers, all.slice(0, streams), inOrder)
      measured.push(yield* Effect.scoped(Effect.flatMap(made, (one) => measure(driver, one))))
    }
    printTable(
      "Many waits: cost of each (medians); lateness of a 1 ms timer and longest turn of the loop, ms (worst of 3 runs)",
      header,
      measured.map(({ row }) => row)
    )
    const [start, end] = yield* baseline
    console.log(`Fibers that wait for a Deferred: start ${fixed(start, 2)} µs, end ${fixed(end, 2)} µs each.`)
    return measured.flatMap(({ figures }) => figures)
  }).pipe(Effect.provideServiceEffect(CudaRuntime, NativeRuntime.make())))
