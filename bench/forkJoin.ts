/**
 * The host cost of forking 8 branches and joining them: with `CudaBranch.all`, with the record and wait calls behind it
 * (25 Effects, one by one), and with the same calls raw and in C. See `support/compare.ts` for the method.
 *
 * The branches do nothing, or enqueue a fill of 4 KiB each (also in C and one by one). Everything runs in one region on
 * the forked stream, so that only the fork and the join are measured. With the argument "stub", the driver's calls
 * return immediately.
 */
import * as Effect from "effect/Effect"
import * as CudaBranch from "../src/CudaBranch.ts"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaEvent from "../src/CudaEvent.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaStream from "../src/CudaStream.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import { compare, comparedFigures, printCompared } from "./support/compare.ts"
import type { Operation } from "./support/compare.ts"
import { check } from "./support/driver.ts"
import type { Driver } from "./support/driver.ts"
import { startPeers } from "./support/peer.ts"
import { runOnDriver } from "./support/run.ts"

const branchCount = 8
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

/** The calls of a fork and a join, each as an Effect. */
const callsOf = (
  { buffers, events, forked, origin, streams }: Subjects,
  isFilling: boolean
): ReadonlyArray<() => Effect.Effect<void, CudaError>> => [
  () => CudaEvent.record(forked, origin),
  ...streams.map((stream) => () => CudaStream.waitEvent(stream, forked)),
  ...(isFilling ? streams.map((stream, index) => () => CudaMemory.fill(buffers[index]!, 0, stream)) : []),
  ...streams.flatMap((stream, index) => [
    () => CudaEvent.record(events[index]!, stream),
    () => CudaStream.waitEvent(origin, events[index]!)
  ])
]

const nothing = () => {}

const oneByOne = (operations: ReturnType<typeof callsOf>): Effect.Effect<void, CudaError> => {
  let index = 0
  return Effect.whileLoop({ while: () => index < operations.length, body: () => operations[index++]!(), step: nothing })
}

const rawCalls = (
  { calls }: Driver,
  { buffers, events, forked, origin, streams }: Subjects,
  isFilling: boolean
) =>
() => {
  check("cuEventRecord", calls.cuEventRecord(forked.handle, origin.handle))
  for (const { handle } of streams) check("cuStreamWaitEvent", calls.cuStreamWaitEvent(handle, forked.handle, 0))
  for (let index = 0; isFilling && index < branchCount; index++) {
    const status = calls.cuMemsetD8Async(buffers[index]!.address, 0, fillBytes, streams[index]!.handle)
    check("cuMemsetD8Async", status)
  }
  for (let index = 0; index < branchCount; index++) {
    check("cuEventRecord", calls.cuEventRecord(events[index]!.handle, streams[index]!.handle))
    check("cuStreamWaitEvent", calls.cuStreamWaitEvent(origin.handle, events[index]!.handle, 0))
  }
}

const makeOperations = (driver: Driver, subjects: Subjects): ReadonlyArray<Operation<CudaRuntime>> => {
  const { buffers, streams } = subjects
  const kinds = [
    { name: "empty branches", peer: "forkJoin", branches: streams.map(() => Effect.void), isFilling: false },
    {
      name: "a fill in each",
      peer: "forkFillJoin",
      branches: buffers.map((buffer) => CudaMemory.fill(buffer, 0)),
      isFilling: true
    }
  ]
  return kinds.flatMap(({ branches, isFilling, name, peer }) => {
    const single = callsOf(subjects, isFilling)
    const common = { peer, count, raw: rawCalls(driver, subjects, isFilling) }
    return [
      { ...common, name: `CudaBranch.all, ${name}`, effect: () => CudaBranch.all(branches, { discard: true }) },
      { ...common, name: `calls as Effects, ${name}`, effect: () => oneByOne(single) }
    ]
  })
}

await runOnDriver("forkJoin", (ground) =>
  Effect.gen(function*() {
    const peers = yield* startPeers({ ...ground, isGpu: false })
    const subjects = yield* makeSubjects
    const { origin, streams } = subjects
    const drain = Effect.sync(() => {
      for (const { handle } of [origin, ...streams]) {
        check("cuStreamSynchronize", ground.driver.calls.cuStreamSynchronize(handle))
      }
    })
    const operations = makeOperations(ground.driver, subjects)
    const compared = yield* CudaStream.withStream(
      compare({ operations, peers, prepare: () => drain, warmUps: 10, rounds: 12 }),
      origin
    )
    printCompared(`Fork and join of ${branchCount} branches, ns (medians of batches)`, compared)
    return comparedFigures(`Fork and join of ${branchCount} branches`, compared)
  }).pipe(Effect.provideServiceEffect(CudaRuntime, ground.makeRuntime())))
