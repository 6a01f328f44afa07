/**
 * The cost of the simulated runtime: single operations as Effects, on an idle device in real time (see
 * `support/compare.ts`); and the growth of the model, from 1,000 to 1,000,000 operations that are all enqueued before
 * any time passes.
 *
 * The growth is given as exponents of the time to enqueue and to run everything, and of the memory held while
 * everything is pending: 1 is linear. The operations are records, waits for them on the next of 8 streams, fills and
 * copies.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaEvent from "../src/CudaEvent.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaStream from "../src/CudaStream.ts"
import type { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import * as SimulatedRuntime from "../src/layers/SimulatedRuntime.ts"
import { compare, comparedFigures, printCompared } from "./support/compare.ts"
import type { Operation } from "./support/compare.ts"
import { heldSince, readHeld } from "./support/garbage.ts"
import { makeLaunches, simulatedKernels } from "./support/launches.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import type { Figure } from "./support/results.ts"
import { runAnywhere } from "./support/run.ts"
import { fixed, growthExponent, median } from "./support/statistics.ts"
import { makeOperations, makeSequences, makeSubjects } from "./support/subjects.ts"

/** Few, because work on a simulated device takes time. */
const repeats = { warmUps: 3, rounds: 5, batches: 5 }
const busyMillis = 10
/** Two operations in one. They have no target. */
const pairs = ["(service)", "(scoped)"]

const measureOperations = Effect.gen(function*() {
  const subjects = yield* makeSubjects
  const { event, other, stream } = subjects
  const control = yield* SimulatedRuntime.SimulatedControl
  const { launches, stream: launching } = yield* makeLaunches
  const prepare = (busy: boolean): Effect.Effect<void, CudaError> =>
    Effect.gen(function*() {
      for (const used of [stream, other, launching]) yield* CudaStream.synchronize(used)
      if (busy) yield* control.launch(stream, { duration: busyMillis })
      yield* CudaEvent.record(event, stream)
    })
  const targeted = (operation: Operation): Operation =>
    pairs.some((pair) => operation.name.includes(pair)) ? operation : { ...operation, target: "simulated" }
  const named = launches.map((launch) => ({ ...launch, name: `launch, ${launch.name}` }))
  const operations = [...makeOperations(subjects), ...named].map(targeted)
  const single = yield* compare({ operations, peers: [], prepare, ...repeats })
  printCompared("Simulated operations, ns each (medians of batches)", single)
  const sequences = yield* compare({
    operations: makeSequences(subjects),
    peers: [],
    prepare,
    ...repeats
  })
  printCompared("Simulated: record, wait and fill 4 KiB in a row, ns (medians of batches)", sequences)
  return [
    ...comparedFigures("Simulated operations", single),
    ...comparedFigures("Simulated: record, wait and fill in a row", sequences)
  ]
})

const sizes = [
  { count: 1000, times: 9 },
  { count: 10_000, times: 5 },
  { count: 100_000, times: 3 },
  { count: 1_000_000, times: 1 }
]
const streamCount = 8

/** The cost of a number of operations, in nanoseconds and bytes per operation. */
interface Growth {
  readonly enqueue: number
  readonly run: number
  readonly held: number
}

const makeField = Effect.gen(function*() {
  return {
    streams: yield* Effect.replicateEffect(CudaStream.make(), streamCount),
    events: yield* Effect.replicateEffect(CudaEvent.make(), streamCount),
    buffers: yield* Effect.replicateEffect(CudaMemory.allocate(64), streamCount)
  }
})

type Field = Effect.Success<typeof makeField>

/** The operation at an index, spread over the streams. */
const nth = ({ buffers, events, streams }: Field, index: number): Effect.Effect<void, CudaError> => {
  const at = (index >> 2) % streamCount
  const next = (at + 1) % streamCount
  if (index % 4 === 0) return CudaMemory.fill(buffers[at]!, 1, streams[at]!)
  if (index % 4 === 1) return CudaEvent.record(events[at]!, streams[at])
  if (index % 4 === 2) return CudaStream.waitEvent(streams[next]!, events[at]!)
  return CudaMemory.copy(buffers[next]!, buffers[at]!, streams[next])
}

const measureGrowth = (count: number): Effect.Effect<Growth, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const field = yield* makeField
    const before = readHeld()
    let index = 0
    const begun = performance.now()
    yield* Effect.whileLoop({ while: () => index < count, body: () => nth(field, index++), step: () => {} })
    const enqueued = performance.now()
    const { external, heap } = heldSince(before)
    yield* TestClock.adjust("1 day")
    const resumed = performance.now()
    for (const stream of field.streams) yield* CudaStream.synchronize(stream)
    const ended = performance.now()
    return {
      enqueue: (enqueued - begun) * 1e6 / count,
      run: (ended - resumed) * 1e6 / count,
      held: (heap + external) / count
    }
  })

/** Runs in virtual time, on a new device. */
const onFreshDevice = (count: number) =>
  Effect.scoped(measureGrowth(count)).pipe(
    Effect.provide(Layer.provideMerge(SimulatedRuntime.layer(), TestClock.layer()))
  )

const growthGroup = "Growth of the simulated model"

const measureAllGrowth = Effect.gen(function*() {
  // Warms up the code under test.
  yield* onFreshDevice(100_000)
  const measured: Array<{ readonly count: number; readonly values: ReadonlyArray<Growth> }> = []
  for (const { count, times } of sizes) {
    const values: Array<Growth> = []
    for (let repeat = 0; repeat < times; repeat++) values.push(yield* onFreshDevice(count))
    measured.push({ count, values })
  }
  return measured
})

/** A figure per size, and the exponent over all sizes. */
const growthFigures = (
  measured: Effect.Success<typeof measureAllGrowth>,
  name: string,
  unit: "ns" | "bytes",
  read: (growth: Growth) => number
): ReadonlyArray<Figure> => {
  const points = measured.map(({ count, values }) => [count, count * median(values.map(read))] as const)
  return [
    ...measured.map(({ count, values }) =>
      makeFigure({ group: growthGroup, name: `${name} each of ${count}`, unit }, values.map(read))
    ),
    makeFigure(
      { group: growthGroup, name: `${name}: exponent`, unit: "exponent", target: "growth" },
      [growthExponent(points)]
    )
  ]
}

await runAnywhere("simulated", () =>
  Effect.gen(function*() {
    const operations = yield* Effect.scoped(measureOperations).pipe(
      Effect.provide(SimulatedRuntime.layer({ kernels: simulatedKernels }))
    )
    const measured = yield* measureAllGrowth
    const growth = [
      ...growthFigures(measured, "enqueue", "ns", ({ enqueue }) => enqueue),
      ...growthFigures(measured, "run", "ns", ({ run }) => run),
      ...growthFigures(measured, "held", "bytes", ({ held }) => held)
    ]
    printTable(
      growthGroup,
      ["", "p50"],
      growth.map(({ median: value, name, unit }) => [`${name}, ${unit}`, fixed(value, unit === "exponent" ? 3 : 0)])
    )
    return [...operations, ...growth]
  }))
