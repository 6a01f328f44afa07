/**
 * Many fibers waiting at once, for events of a few or many streams: the cost of starting and ending a wait, and the
 * lateness of the event loop while they start, wait and end.
 *
 * Every stream runs a kernel, and all kernels end at the same moment. Behind each, as many events are recorded as there
 * are fibers, up to 500 per stream (the driver blocks once about a thousand operations are queued). The fibers share
 * the events evenly. They start to wait in the order of the records, except in the cases "out of order", in which they
 * take the events round-robin. Each case has three kinds of runs, because a probe disturbs what it does not measure:
 *
 * - cost, without a probe: "start" is the time until all fibers are forked and waiting, and "end" the time the loop is busy
 * (`performance.eventLoopUtilization`) from 10 ms before the kernels end until all fibers have ended, both per fiber.
 * The line below the table is the cost of fibers that do not wait for a GPU. "busy" is the share of time in between
 * that the loop is busy.
 * - the lateness of a 1 ms timer (`monitorEventLoopDelay`), while the fibers wait and end;
 * - the longest time between two turns of the loop, measured by a chain of immediates, while they start, wait and end.
 *
 * Where probes read them, the phases last 5 ms longer, to include the delays they cause. An asterisk marks a case in
 * which not all waits were outstanding before the kernels ended.
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

// Kernels of 64 streams run concurrently only with the maximum number of connections to the GPU.
process.env["CUDA_DEVICE_MAX_CONNECTIONS"] ??= "32"

const fiberCounts = [1, 100, 1000, 10_000]
const streamCounts = [1, 16, 64]
const eventsPerStream = 500
/** Duration of the kernels in milliseconds: longer than starting all waits takes. */
const workMillis = 200
/** The part of it that counts towards the end phase. */
const marginMillis = 10
/** Time for a phase's remaining turns and delayed timers, in milliseconds. */
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

/** Observes the phases of a run. */
interface Observer<A> {
  /** All fibers are waiting. */
  readonly started: () => void
  /** The work caused by starting them is done, too. */
  readonly settled: () => void
  /** The kernels are about to end. */
  readonly ending: () => void
  /** All fibers have ended. */
  readonly ended: () => void
  /** The work caused by ending them is done, too. */
  readonly result: () => A
}

/** Runs the waits of a case. The observer is created just before they start. */
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

/** Microseconds per fiber, and the busy share of the time in between in percent. */
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

/** The readings of a probe in each phase. */
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

/** The result of a case: its table row, and figures if it has many waits. */
interface Measured {
  readonly row: ReadonlyArray<string>
  readonly figures: ReadonlyArray<Figure>
}

/** The number of waits that has a target. */
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

/** Measures medians of costs, and maxima of delays. */
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

/** The cost of fibers that wait for a Deferred, in microseconds each: start and end. */
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
    // Warms up the code under test.
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
