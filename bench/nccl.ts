/**
 * All-reduces of floats between two GPUs: the bandwidth of large ones, and the time of small ones, enqueued in a row, and with a wait after
 * each. Compared with NCCL called from C, one thread for both devices as here, and with PyTorch, one process per device.
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
import { measureEffect } from "./support/measure.ts"
import { startPeer, startPythonPeer } from "./support/peer.ts"
import type { Peer } from "./support/peer.ts"
import { printTable } from "./support/report.ts"
import { makeFigure } from "./support/results.ts"
import type { Figure } from "./support/results.ts"
import { runOnGpu } from "./support/run.ts"
import type { Ground } from "./support/run.ts"
import { fixed, median, times } from "./support/statistics.ts"

type How = "reduce" | "wait"

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
  { name: "8 bytes, waiting for each", how: "wait", bytes: 8, count: 400 }
]

const rounds = 5

/** Measures a way to reduce: nanoseconds per all-reduce. */
type Way = (size: Size) => Effect.Effect<number, CudaError>

const inPeer = (peer: Peer): Way => ({ bytes, count, how }) =>
  Effect.map(peer.ask(how, bytes, count, 1), ([nanos]) => (nanos ?? Number.NaN) / count)

const makeOurs = Effect.gen(function*() {
  const streams = [yield* CudaStream.make({ device: 0 }), yield* CudaStream.make({ device: 1 })] as const
  const buffers = [
    yield* CudaMemory.allocate(2 ** 30, { device: 0 }),
    yield* CudaMemory.allocate(2 ** 30, { device: 1 })
  ] as const
  for (const device of [0, 1] as const) yield* CudaMemory.fill(buffers[device], 0, streams[device])
  const communicators = yield* CudaNccl.local([0, 1])
  const both = Effect.all(streams.map((stream) => CudaStream.synchronize(stream)), {
    concurrency: "unbounded",
    discard: true
  })
  const way: Way = ({ bytes, count, how }) => {
    const part = (device: 0 | 1) => ({ buffer: buffers[device], offset: 0, byteLength: bytes })
    const reduced = () =>
      CudaNccl.run(
        CudaNccl.allReduce(communicators[0]!, { from: part(0), type: "f32" }, streams[0]),
        CudaNccl.allReduce(communicators[1]!, { from: part(1), type: "f32" }, streams[1])
      )
    const step = how === "wait" ? () => Effect.andThen(reduced(), both) : reduced
    return Effect.suspend(() => {
      const begun = performance.now()
      return Effect.map(
        Effect.andThen(measureEffect(step, count), both),
        () => (performance.now() - begun) * 1e6 / count
      )
    })
  }
  for (const size of sizes) yield* way(size)
  return way
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

const benchmark = (ground: Ground): Effect.Effect<ReadonlyArray<Figure>, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const { path } = yield* CudaNccl.CudaNccl
    const c = yield* startPeer("nccl", ground)
    yield* c?.ask("library", path ?? "") ?? Effect.void
    const peers = [c, yield* startPythonPeer("PyTorch", "nccl", "torch")].filter((peer) => peer !== undefined)
    const ours = yield* makeOurs
    const all: Array<Times> = []
    for (const size of sizes) all.push(yield* measure(ours, peers, size))
    printTable(
      "All-reduce between two GPUs, µs; GB/s of a link",
      ["", "effect-cuda", "GB/s", "C", "time ÷ C's", "PyTorch", "time ÷ PyTorch's"],
      sizes.map(({ bytes, name }, index) => {
        const [ours, inC, torch] = Object.values(all[index]!).map(median)
        return [
          name,
          fixed(ours! / 1e3),
          bytes < 2 ** 20 ? "" : fixed(bytes / ours!, 0),
          fixed(inC! / 1e3),
          times(ours!, inC),
          fixed(torch! / 1e3),
          times(ours!, torch)
        ]
      })
    )
    return sizes.map((size, index) => figureOf(size, all[index]!))
  }).pipe(Effect.provide(CudaNccl.layer()))

await runOnGpu("nccl", (ground) =>
  Effect.flatMap(ground.makeRuntime(), (runtime) =>
    runtime.devices.length < 2
      ? Effect.as(Effect.sync(() => console.log("skipped: collectives need two GPUs")), [])
      : Effect.provideService(benchmark(ground), CudaRuntime, runtime)))
