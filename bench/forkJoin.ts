/**
 * What forking 8 branches and joining them costs on the host: as `CudaBranch.all`, as the record and wait calls it is made of
 * (25 Effects, one by one), and as those calls in C. All take turns within a round; figures are medians of batches, with
 * the streams drained after each batch, outside the measurement.
 *
 * The branches do nothing, or enqueue a fill of 4 KiB each (in C and one by one too).
 */
import * as Effect from "effect/Effect"
import * as CudaBranch from "../src/CudaBranch.ts"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaEvent from "../src/CudaEvent.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaStream from "../src/CudaStream.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../src/layers/NativeRuntime.ts"
import { check } from "./support/driver.ts"
import { turn } from "./support/loop.ts"
import { startPeer } from "./support/peer.ts"
import { printTable, run } from "./support/report.ts"
import { fixed, median, times } from "./support/statistics.ts"

const branchCount = 8
const rounds = 20
/** Rounds that compile and are not kept. */
const warmUp = 20
const batches = 10
/** Forks and joins per batch: few enough not to fill the driver's queues. */
const count = 40
const fillBytes = 4096

const makeSubjects = Effect.gen(function*() {
  const origin = yield* CudaStream.make()
  return {
    origin,
    streams: yield* Effect.replicateEffect(CudaStream.make(), branchCount),
    events: yield* Effect.replicateEffect(CudaEvent.make(), branchCount),
    forked: yield* CudaEvent.make(),
    buffers: yield* Effect.replicateEffect(CudaMemory.allocate(fillBytes), branchCount)
  }
})

type Subjects = Effect.Success<typeof makeSubjects>
type Operation = () => Effect.Effect<unknown, CudaError>

/** The calls of a fork and a join, each an Effect. */
const calls = (subjects: Subjects, isFilling: boolean): ReadonlyArray<Operation> => {
  const { buffers, events, forked, origin, streams } = subjects
  return [
    () => CudaEvent.record(forked, origin),
    ...streams.map((stream) => () => CudaStream.waitEvent(stream, forked)),
    ...(isFilling ? streams.map((stream, index) => () => CudaMemory.fill(buffers[index]!, 0, { stream })) : []),
    ...streams.flatMap((stream, index) => [
      () => CudaEvent.record(events[index]!, stream),
      () => CudaStream.waitEvent(origin, events[index]!)
    ])
  ]
}

const nothing = () => {}

/** The nanoseconds of each run of an effect, or of all of several effects. */
const measure = (repeats: number, operations: ReadonlyArray<Operation>): number => {
  let index = 0
  const total = repeats * operations.length
  const loop = Effect.whileLoop({
    while: () => index < total,
    body: () => operations[index++ % operations.length]!(),
    step: nothing
  })
  const start = performance.now()
  Effect.runSync(loop)
  return (performance.now() - start) * 1e6 / repeats
}

await run("forkJoin", (driver) =>
  Effect.gen(function*() {
    const peer = yield* startPeer("operations")
    const runtime = yield* CudaRuntime
    const subjects = yield* makeSubjects
    const { buffers, origin, streams } = subjects
    const fills = buffers.map((buffer) => CudaMemory.fill(buffer, 0))
    const context = <A, E>(self: Effect.Effect<A, E, CudaRuntime>) =>
      Effect.provideService(CudaStream.withStream(self, origin), CudaRuntime, runtime)
    /** Many in one region, so that what is measured is the fork and join alone. */
    const branches = (each: ReadonlyArray<Effect.Effect<void, CudaError>>) => {
      let index = 0
      const body = () => CudaBranch.all(each, { discard: true })
      const loop = context(Effect.whileLoop({ while: () => index++ < count, body, step: nothing }))
      const start = performance.now()
      Effect.runSync(loop)
      return (performance.now() - start) * 1e6 / count
    }
    const drain = () => {
      for (const { handle } of [origin, ...streams]) {
        check("cuStreamSynchronize", driver.calls.cuStreamSynchronize(handle))
      }
    }
    const empty = {
      name: "empty branches",
      peer: "forkJoin",
      branches: streams.map(() => Effect.void),
      isFilling: false
    }
    const filling = { name: "a fill in each", peer: "forkFillJoin", branches: fills, isFilling: true }
    const rows: Array<ReadonlyArray<string>> = []
    for (const kind of [empty, filling]) {
      const single = calls(subjects, kind.isFilling)
      const costs: Record<"c" | "single" | "all", Array<number>> = { c: [], single: [], all: [] }
      for (let round = -warmUp; round < rounds; round++) {
        const c = peer === undefined ? [] : yield* peer.ask(kind.peer, count, batches)
        const taken: typeof costs = { c: c.map((nanos) => nanos / count), single: [], all: [] }
        for (let batch = 0; batch < batches; batch++) {
          drain()
          taken.single.push(measure(count, single))
          drain()
          taken.all.push(branches(kind.branches))
          yield* turn
        }
        if (round < 0) continue
        for (const way of ["c", "single", "all"] as const) costs[way].push(...taken[way])
      }
      const [c, one, all] = [median(costs.c), median(costs.single), median(costs.all)]
      rows.push([kind.name, fixed(c, 0), fixed(one, 0), fixed(all, 0), times(all, one), times(one, c), times(all, c)])
    }
    drain()
    printTable(
      `Fork and join of ${branchCount} branches, ns (medians of ${rounds * batches} batches)`,
      ["", "C", "calls as Effects", "CudaBranch.all", "all / calls", "calls / C", "all / C"],
      rows
    )
  }).pipe(Effect.provideServiceEffect(CudaRuntime, NativeRuntime.make())))
