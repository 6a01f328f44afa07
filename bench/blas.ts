/**
 * Matrix products: the time of the GPU per product of bf16 matrices, in TFLOP/s too, and the host's time to enqueue one. Compared with
 * cuBLASLt called from C, with the algorithm that it proposes first in both, and with PyTorch. The sizes are squares and those of an encoder
 * 768 wide.
 *
 * All ways take turns within a round; figures are medians of rounds. The matrices hold one number, which costs less power than random ones.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as CudaBlas from "../src/CudaBlas.ts"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaEvent from "../src/CudaEvent.ts"
import * as CudaMemory from "../src/CudaMemory.ts"
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

/** Sizes of products, and how many are measured at a time. Smaller ones would measure the host. */
interface Size {
  readonly m: number
  readonly n: number
  readonly k: number
  readonly count: number
}

const sizes: ReadonlyArray<Size> = [
  { m: 2048, n: 2048, k: 2048, count: 200 },
  { m: 8192, n: 2304, k: 768, count: 200 },
  { m: 8192, n: 768, k: 3072, count: 200 },
  { m: 65_536, n: 3072, k: 768, count: 10 },
  { m: 8192, n: 8192, k: 8192, count: 10 }
]

/** Few enough that none waits for the GPU's queue. */
const enqueueing: Size = { m: 128, n: 128, k: 128, count: 300 }

const rounds = 9

type How = "host" | "gpu"

/** Measures a way to multiply: nanoseconds per product. */
type Way = (how: How) => Effect.Effect<number, CudaError>

const inPeer = (peer: Peer, { count, k, m, n }: Size): Way => (how) =>
  Effect.map(peer.ask("product", m, n, k, how, count, 1), ([nanos]) => (nanos ?? Number.NaN) / count)

const pattern = 0x3c

const makeOurs = Effect.fnUntraced(function*({ count, k, m, n }: Size) {
  const plan = yield* CudaBlas.plan({
    a: { rows: m, columns: k, type: "bf16" },
    b: { rows: n, columns: k, type: "bf16" },
    d: { rows: m, columns: n, type: "bf16" },
    transposeB: true
  })
  const stream = yield* CudaStream.make()
  const [a, b, d] = [yield* filled(m * k, stream), yield* filled(n * k, stream), yield* filled(m * n, stream)]
  const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
  const operands = { a, b, d }
  const products = measureEffect(() => CudaBlas.matmul(plan, operands, stream), count)
  const way: Way = Effect.fnUntraced(function*(how) {
    yield* CudaStream.synchronize(stream)
    yield* CudaEvent.record(start, stream)
    const nanos = yield* products
    yield* CudaEvent.record(end, stream)
    yield* CudaEvent.synchronize(end)
    if (how === "host") return nanos
    return Number(Duration.toNanosUnsafe(yield* CudaEvent.elapsedTime(start, end))) / count
  })
  yield* way("gpu")
  return way
})

const filled = Effect.fnUntraced(function*(elements: number, stream: CudaStream.CudaStream) {
  const buffer = yield* CudaMemory.allocate(2 * elements)
  yield* CudaMemory.fill(buffer, pattern, stream)
  return buffer
})

/** Nanoseconds per product of each round, by way. */
type Times = Readonly<Record<"effect-cuda" | "C" | "PyTorch", Array<number>>>

const measure = (peers: ReadonlyArray<Peer>, size: Size, how: How) =>
  Effect.gen(function*() {
    const found: Times = { "effect-cuda": [], C: [], PyTorch: [] }
    const ours = yield* makeOurs(size)
    for (let round = 0; round < rounds; round++) {
      for (const peer of peers) found[peer.name as "C" | "PyTorch"].push(yield* inPeer(peer, size)(how))
      found["effect-cuda"].push(yield* ours(how))
    }
    return found
  }).pipe(Effect.scoped)

const nameOf = ({ k, m, n }: Size): string => `${m} × ${n} × ${k}`

const teraflops = ({ k, m, n }: Size, nanos: number): number => 2 * m * n * k / nanos / 1e3

const figureOf = (group: string, target: Figure["target"], size: Size, found: Times): Figure => {
  const micros = (values: ReadonlyArray<number>) => values.map((value) => value / 1e3)
  const subject = { group, name: nameOf(size), unit: "µs", target } as const
  return makeFigure(subject, micros(found["effect-cuda"]), { C: micros(found.C), PyTorch: micros(found.PyTorch) })
}

const benchmark = (ground: Ground): Effect.Effect<ReadonlyArray<Figure>, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const { path } = yield* CudaBlas.CudaBlas
    const c = yield* startPeer("blas", ground)
    yield* c?.ask("library", path ?? "") ?? Effect.void
    const peers = [c, yield* startPythonPeer("PyTorch", "blas", "torch")].filter((peer) => peer !== undefined)
    const onGpu: Array<Times> = []
    for (const size of sizes) onGpu.push(yield* measure(peers, size, "gpu"))
    const enqueued = yield* measure(peers, enqueueing, "host")
    printTable(
      "GPU time per product, µs; TFLOP/s",
      ["", "effect-cuda", "TFLOP/s", "C", "speed ÷ C's", "PyTorch", "speed ÷ PyTorch's"],
      sizes.map((size, index) => {
        const [ours, inC, torch] = Object.values(onGpu[index]!).map(median)
        return [
          nameOf(size),
          fixed(ours! / 1e3),
          fixed(teraflops(size, ours!), 0),
          fixed(inC! / 1e3),
          times(inC!, ours),
          fixed(torch! / 1e3),
          times(torch!, ours)
        ]
      })
    )
    const [ours, inC, torch] = Object.values(enqueued).map(median)
    printTable("Host time per enqueued product, µs", ["", "effect-cuda", "C", "PyTorch"], [
      [nameOf(enqueueing), fixed(ours! / 1e3, 2), fixed(inC! / 1e3, 2), fixed(torch! / 1e3, 2)]
    ])
    return [
      ...sizes.map((size, index) => figureOf("matrix product, GPU", "product", size, onGpu[index]!)),
      figureOf("matrix product, enqueueing", undefined, enqueueing, enqueued)
    ]
  }).pipe(Effect.provide(CudaBlas.layer()))

await runOnGpu(
  "blas",
  (ground) =>
    Effect.flatMap(ground.makeRuntime(), (runtime) => Effect.provideService(benchmark(ground), CudaRuntime, runtime))
)
