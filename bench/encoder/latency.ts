/**
 * The encoder of `examples/encoder`, in the shape of BERT-base: the time of the GPU for a batch as a graph, compared with PyTorch, eager and as
 * a CUDA graph, for the same weights and tokens; how far the activations of both are from those in float32; and where the time of the largest
 * batch goes, by a timeline of its regions.
 *
 * The library's graph includes uploading the tokens and pooling, which PyTorch's does not. Batches run one after another; all ways take turns
 * within a round, and figures are medians of rounds.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { configs } from "../../examples/encoder/Config.ts"
import * as Model from "../../examples/encoder/Model.ts"
import * as SafeTensors from "../../examples/encoder/SafeTensors.ts"
import * as Upload from "../../examples/encoder/Upload.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import * as CudaBlas from "../../src/CudaBlas.ts"
import * as CudaEvent from "../../src/CudaEvent.ts"
import * as CudaGraph from "../../src/CudaGraph.ts"
import * as CudaMemory from "../../src/CudaMemory.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import * as CudaTiming from "../../src/CudaTiming.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import { startPythonPeer } from "../support/peer.ts"
import type { Peer } from "../support/peer.ts"
import { printTable } from "../support/report.ts"
import { makeFigure } from "../support/results.ts"
import type { Figure } from "../support/results.ts"
import { runOnGpu } from "../support/run.ts"
import { fixed, median, times } from "../support/statistics.ts"
import { folder } from "./folder.ts"

/** A batch, and how often it runs at a time. */
interface Load {
  readonly batch: number
  readonly length: number
  readonly count: number
}

const loads: ReadonlyArray<Load> = [
  { batch: 1, length: 128, count: 50 },
  { batch: 8, length: 128, count: 50 },
  { batch: 64, length: 128, count: 20 },
  { batch: 32, length: 512, count: 10 },
  { batch: 128, length: 512, count: 3 }
]

const rounds = 7

const { base } = configs

/** The tokens of the Python peer: a linear congruential generator. */
const tokensOf = ({ batch, length }: Load): ReadonlyArray<Int32Array> => {
  let state = 1
  return Array.from({ length: batch }, () =>
    Int32Array.from({ length }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return Math.floor(state * base.vocabulary / 2 ** 32)
    }))
}

/** Milliseconds of the GPU per batch. */
const makeOurs = Effect.fnUntraced(function*(session: Model.Session, load: Load) {
  const stream = yield* CudaStream.make()
  yield* CudaStream.withStream(session.run(load, tokensOf(load)), stream)
  const exec = yield* session.graph(load)
  const [start, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
  return Effect.gen(function*() {
    yield* CudaEvent.record(start, stream)
    for (let index = 0; index < load.count; index++) yield* CudaGraph.launch(exec, stream)
    yield* CudaEvent.record(end, stream)
    yield* CudaEvent.synchronize(end)
    return Duration.toMillis(yield* CudaEvent.elapsedTime(start, end)) / load.count
  })
})

const inPyTorch = (peer: Peer, { batch, count, length }: Load, how: "eager" | "graph") =>
  Effect.map(peer.ask("run", batch, length, how, count), ([nanos]) => (nanos ?? Number.NaN) / count / 1e6)

/** Milliseconds of each round, by way. */
interface Times {
  readonly ours: Array<number>
  readonly graph: Array<number>
  readonly eager: Array<number>
}

const measure = (peer: Peer | undefined, session: Model.Session, load: Load) =>
  Effect.gen(function*() {
    const found: Times = { ours: [], graph: [], eager: [] }
    const ours = yield* makeOurs(session, load)
    for (let round = 0; round < rounds; round++) {
      if (peer !== undefined) {
        found.graph.push(yield* inPyTorch(peer, load, "graph"))
        found.eager.push(yield* inPyTorch(peer, load, "eager"))
      }
      found.ours.push(yield* ours)
    }
    return found
  }).pipe(Effect.scoped)

/** Differences from float32: PyTorch's and ours. */
const compare = Effect.fnUntraced(function*(peer: Peer, session: Model.Session, load: Load, path: string) {
  const { batch, length } = load
  const rows = new Uint8Array(batch * length * base.hidden * 2)
  yield* session.run(load, tokensOf(load))
  yield* CudaMemory.download(rows, CudaMemory.slice(session.rows, 0, rows.byteLength))
  writeFileSync(path, rows)
  return yield* peer.ask("compare", batch, length, path)
})

const operationsOf = ({ batch, length }: Load): number => {
  const { hidden, inner, layers } = base
  const tokens = batch * length
  return layers * (2 * tokens * (4 * hidden * hidden + 2 * hidden * inner) + 4 * tokens * length * hidden)
}

const nameOf = ({ batch, length }: Load): string => `${batch} × ${length}`

const benchmark = Effect.gen(function*() {
  const path = yield* folder
  const weights = join(path, "model.safetensors")
  yield* Weights.write(weights, base)
  const model = yield* Model.make(base, yield* Upload.upload(yield* SafeTensors.open(weights)))
  const most = { batch: 128, length: 512 }
  const session = yield* Model.session(model, most)
  const peer = yield* startPythonPeer("PyTorch", "encoder", "torch")
  yield* peer?.ask("load", weights) ?? Effect.void
  const measured: Array<Times> = []
  for (const load of loads) measured.push(yield* measure(peer, session, load))
  printTable(
    "GPU time per batch, ms",
    ["batch × length", "effect-cuda", "TFLOP/s", "PyTorch, CUDA graph", "×", "PyTorch, eager"],
    loads.map((load, index) => {
      const { eager, graph, ours } = measured[index]!
      const millis = median(ours)
      return [
        nameOf(load),
        fixed(millis, 3),
        fixed(operationsOf(load) / millis / 1e9, 0),
        fixed(median(graph), 3),
        times(millis, median(graph)),
        fixed(median(eager), 3)
      ]
    })
  )
  yield* printParts(session, loads.at(-1)!)
  if (peer !== undefined) yield* printDifferences(peer, session, join(path, "rows"))
  return loads.map((load, index) => {
    const { eager, graph, ours } = measured[index]!
    const subject = { group: "encoder", name: nameOf(load), unit: "ms", target: "encoder" } as const
    return makeFigure(subject, ours, { "PyTorch, CUDA graph": graph, "PyTorch, eager": eager })
  })
})

/** Operations of a layer's parts, in floating-point operations per token. */
const partsOf = ({ length }: Load): Readonly<Record<string, number>> => {
  const { hidden, inner } = base
  const product = (inputs: number, outputs: number) => 2 * inputs * outputs
  return {
    qkv: product(hidden, 3 * hidden),
    attention: 4 * length * hidden,
    output: product(hidden, hidden),
    norm: 0,
    up: product(hidden, inner),
    down: product(inner, hidden)
  }
}

/** Prints where the time of a batch goes. The events between the parts take a few microseconds each. */
const printParts = Effect.fnUntraced(function*(session: Model.Session, load: Load) {
  const exec = yield* session.graph(load)
  const stream = yield* CudaStream.make()
  const launched = Effect.andThen(CudaGraph.launch(exec, stream), CudaStream.synchronize(stream))
  yield* CudaTiming.timeline(launched)
  const [{ regions }] = yield* CudaTiming.timeline(launched)
  const millisOf = (name: string) =>
    regions.filter((region) => region.name === name).reduce((sum, region) => sum + millisIn(region), 0)
  const operations = partsOf(load)
  const sums = Object.keys(operations).map((name) => [name, millisOf(name)] as const)
  const all = sums.reduce((sum, [, millis]) => sum + millis, 0)
  const tokens = base.layers * load.batch * load.length
  printTable(
    `Where the time of ${nameOf(load)} goes`,
    ["", "ms", "%", "TFLOP/s"],
    sums.map(([name, millis]) => [
      name,
      fixed(millis, 2),
      fixed(100 * millis / all, 1),
      operations[name] === 0 ? "–" : fixed(operations[name]! * tokens / millis / 1e9, 0)
    ])
  )
})

const millisIn = ({ duration }: CudaTiming.Region): number => Duration.toMillis(duration)

const printDifferences = Effect.fnUntraced(function*(peer: Peer, session: Model.Session, path: string) {
  const compared = loads.filter(({ batch, length }) => batch * length <= 16_384)
  const found = yield* Effect.forEach(compared, (load) => compare(peer, session, load, path))
  printTable(
    "Differences of the activations from float32, relative to its greatest and its mean; cosine of all, and the least of a token",
    [
      "batch × length",
      "greatest, PyTorch",
      "ours",
      "mean, PyTorch",
      "ours",
      "×",
      "cosine, PyTorch",
      "ours",
      "least, PyTorch",
      "ours"
    ],
    compared.map((load, index) => {
      const [greatest, ourGreatest, mean, ourMean, cosine, ourCosine, least, ourLeast] = found[index]!
      return [
        nameOf(load),
        fixed(greatest, 5),
        fixed(ourGreatest, 5),
        fixed(mean, 6),
        fixed(ourMean, 6),
        times(ourMean!, mean),
        fixed(cosine, 6),
        fixed(ourCosine, 6),
        fixed(least, 6),
        fixed(ourLeast, 6)
      ]
    })
  )
})

await runOnGpu("encoder", (ground) =>
  Effect.gen(function*() {
    const runtime = yield* ground.makeRuntime()
    const figures: ReadonlyArray<Figure> = yield* benchmark.pipe(
      Effect.provide(CudaBlas.layer()),
      Effect.catchTags({ FileProblem: Effect.die, Malformed: Effect.die }),
      Effect.provideService(CudaRuntime, runtime)
    )
    return figures
  }))
