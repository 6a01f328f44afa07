/**
 * All-reduces of floats between two GPUs: the bandwidth of large ones, and the time of small ones, enqueued in a row, and with a wait after
 * each. In one process, compared with NCCL called from C, one thread for both devices as here; and with a process per device, compared with C.
 * PyTorch always has a process per device.
 *
 * All ways take turns within a round; figures are medians of rounds. The bandwidth is that of a link: with two ranks, each sends and receives
 * as many bytes as are reduced.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
import * as CudaNccl from "../src/CudaNccl.ts"
import * as CudaStream from "../src/CudaStream.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import { startNodePeer, startPeer, startPythonPeer } from "./support/peer.ts"
import type { Peer } from "./support/peer.ts"
import { reduceOn } from "./support/reduce.ts"
import type { How } from "./support/reduce.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import type { Figure } from "./support/results.ts"
import { runOnGpu } from "./support/run.ts"
import type { Ground } from "./support/run.ts"
import { fixed, median, times } from "./support/statistics.ts"

interface Size {
  readonly name: string
  readonly how: How
  readonly bytes: number
  readonly count: number
}

/** So many that the wait at the end, which takes up to a millisecond after a long one, does not count. */
const sizes: ReadonlyArray<Size> = [
  { name: "1 GiB", how: "reduce", bytes: 2 ** 30, count: 30 },
  { name: "64 MiB", how: "reduce", bytes: 2 ** 26, count: 400 },
  { name: "8 bytes, in a row", how: "reduce", bytes: 8, count: 4000 },
  { name: "8 bytes, waiting for each", how: "wait", bytes: 8, count: 2000 }
]

const apart: ReadonlyArray<Size> = [
  { name: "8 bytes, in a row, a process per rank", how: "reduce", bytes: 8, count: 4000 },
  { name: "8 bytes, waiting for each, a process per rank", how: "wait", bytes: 8, count: 2000 }
]

const rounds = 5

/** Measures a way to reduce: nanoseconds per all-reduce. */
type Way = (size: Size) => Effect.Effect<number, CudaError>

const inPeer = (peer: Peer): Way => ({ bytes, count, how }) =>
  Effect.map(peer.ask(how, bytes, count, 1), ([nanos]) => (nanos ?? Number.NaN) / count)

const makeRank = Effect.fnUntraced(function*(device: number, bytes: number) {
  const stream = yield* CudaStream.make({ device })
  const buffer = yield* CudaMemory.allocate(bytes, { device })
  yield* CudaMemory.fill(buffer, 0, stream)
  return { stream, buffer }
})

const warm = Effect.fnUntraced(function*(way: Way, sizes: ReadonlyArray<Size>) {
  for (const size of sizes) yield* way(size)
  return way
})

/** Both ranks in this process. */
const makeOurs = Effect.gen(function*() {
  const [first, second] = [yield* makeRank(0, 2 ** 30), yield* makeRank(1, 2 ** 30)]
  const communicators = yield* CudaNccl.local([0, 1])
  const reduce = reduceOn([
    { ...first, communicator: communicators[0]! },
    { ...second, communicator: communicators[1]! }
  ])
  return yield* warm(({ bytes, count, how }) => reduce(how, bytes, count), sizes)
})

/** The second rank in another process. */
const makeApart = Effect.gen(function*() {
  const other = yield* startNodePeer("ncclRank")
  const own = yield* makeRank(0, 8)
  const token = CudaNccl.toToken(yield* CudaNccl.uniqueId)
  const joined = CudaNccl.join({ id: token, rank: 0, size: 2, device: 0 })
  const [communicator] = yield* Effect.all([joined, other.ask("join", token)], { concurrency: "unbounded" })
  // Ranks leave together: NCCL waits for the others.
  yield* Effect.addFinalizer(() => other.ask("end"))
  const reduce = reduceOn([{ ...own, communicator }])
  const way: Way = ({ bytes, count, how }) =>
    Effect.map(
      // This process does nothing else until its fiber waits.
      Effect.all([other.ask(how, bytes, count), reduce(how, bytes, count)], { concurrency: "unbounded" }),
      ([, nanos]) => nanos
    )
  return yield* warm(way, apart)
})

/** Nanoseconds per all-reduce of each round, by way. */
type Times = Readonly<Record<"effect-cuda" | "C" | "PyTorch", Array<number>>>

const measure = Effect.fnUntraced(function*(ours: Way, peers: ReadonlyArray<Peer>, size: Size) {
  const found: Times = { "effect-cuda": [], C: [], PyTorch: [] }
  for (let round = 0; round < rounds; round++) {
    for (const peer of peers) found[peer.name as "C" | "PyTorch"].push(yield* inPeer(peer)(size))
    found["effect-cuda"].push(yield* ours(size))
  }
  return found
})

const figureOf = ({ bytes, name }: Size, found: Times): Figure => {
  const micros = (values: ReadonlyArray<number>) => values.map((value) => value / 1e3)
  const target = bytes >= 2 ** 20 ? "collective" : "latency"
  const subject = { group: "all-reduce between two GPUs", name, unit: "µs", target } as const
  return makeFigure(subject, micros(found["effect-cuda"]), { C: micros(found.C), PyTorch: micros(found.PyTorch) })
}

/** Starts a C peer, which loads the same NCCL. */
const startC = Effect.fnUntraced(function*(name: string, ground: Ground) {
  const { path } = yield* CudaNccl.CudaNccl
  const peer = yield* startPeer(name, ground)
  yield* peer?.ask("library", path ?? "") ?? Effect.void
  return peer
})

const measureAll = (ours: Way, given: ReadonlyArray<Peer | undefined>, sizes: ReadonlyArray<Size>) => {
  const peers = given.filter((peer) => peer !== undefined)
  return Effect.forEach(sizes, (size) => Effect.map(measure(ours, peers, size), (found) => [size, found] as const))
}

const rowOf = ({ bytes, name }: Size, found: Times): ReadonlyArray<string> => {
  const [ours, inC, torch] = Object.values(found).map(median)
  return [
    name,
    fixed(ours! / 1e3),
    bytes < 2 ** 20 ? "" : fixed(bytes / ours!, 0),
    fixed(inC! / 1e3),
    times(ours!, inC),
    fixed(torch! / 1e3),
    times(ours!, torch)
  ]
}

const benchmark = (ground: Ground): Effect.Effect<ReadonlyArray<Figure>, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const inC = yield* startC("nccl", ground)
    const inTwo = yield* startC("ncclRanks", ground)
    const torch = yield* startPythonPeer("PyTorch", "nccl", "torch")
    const all = yield* Effect.all([
      measureAll(yield* makeOurs, [inC, torch], sizes),
      measureAll(yield* makeApart, [inTwo, torch], apart)
    ])
    const found = all.flat()
    printTable(
      "All-reduce between two GPUs, µs; GB/s of a link",
      ["", "effect-cuda", "GB/s", "C", "time ÷ C's", "PyTorch", "time ÷ PyTorch's"],
      found.map(([size, times]) => rowOf(size, times))
    )
    return found.map(([size, times]) => figureOf(size, times))
  }).pipe(Effect.provide(CudaNccl.layer()))

await runOnGpu("nccl", (ground) =>
  Effect.flatMap(ground.makeRuntime(), (runtime) =>
    runtime.devices.length < 2
      ? Effect.as(Effect.sync(() => console.log("skipped: collectives need two GPUs")), [])
      : Effect.provideService(benchmark(ground), CudaRuntime, runtime)))
