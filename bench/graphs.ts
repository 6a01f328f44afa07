/**
 * The cost of graphs: of launching them, with the same buffers or with others each time; of recording programs,
 * instantiating them and updating executable graphs; and of programs of small operations as graphs and as single calls.
 * Compared with C in its own process and in this one ("C here"), with raw koffi calls, and with the graphs of cuda.core, CuPy and PyTorch if they are installed. See
 * `support/compare.ts` for the method.
 *
 * Host times are those of the calls. Times to the end include the work of the GPU: a batch ends when its stream is
 * drained. All graphs are of nodes in a row. Those of PyTorch contain kernels that add to a number, since it cannot
 * launch others. Instantiating includes making the driver's graph, and destroying both; updating includes making the
 * graph to update to. The cost of rebinding a node is what a launch with another buffer costs more than one with the
 * same, divided by the number of nodes. With the argument "stub", the driver's calls return immediately.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../src/CudaError.ts"
import * as CudaGraph from "../src/CudaGraph.ts"
import { CudaRuntime } from "../src/layers/CudaRuntime.ts"
import * as SimulatedRuntime from "../src/layers/SimulatedRuntime.ts"
import { compare, comparedFigures, printCompared } from "./support/compare.ts"
import type { Compared, Comparison, Operation } from "./support/compare.ts"
import { check } from "./support/driver.ts"
import {
  makeEmptyGraph,
  makeGraphSubjects,
  makeProgram,
  makeReaders,
  oneByOne,
  programs,
  readerWords,
  recordReaders
} from "./support/graphPrograms.ts"
import type { GraphSubjects, ProgramName } from "./support/graphPrograms.ts"
import { openHere } from "./support/here.ts"
import type { Here } from "./support/here.ts"
import { simulatedKernels } from "./support/launches.ts"
import { startPeers } from "./support/peer.ts"
import type { Peer } from "./support/peer.ts"
import { makeBlock, makeRawGraph } from "./support/rawGraphs.ts"
import type { Figure } from "./support/results.ts"
import { runOnDriver } from "./support/run.ts"
import type { Ground } from "./support/run.ts"
import { median } from "./support/statistics.ts"

/** What all parts of the benchmark use. */
interface Bench {
  readonly ground: Ground
  readonly peers: ReadonlyArray<Peer>
  readonly subjects: GraphSubjects
  readonly here: Here | undefined
  /** Waits until the stream has no work. */
  readonly drain: () => void
}

type Part = (bench: Bench) => Effect.Effect<ReadonlyArray<Figure>, CudaError, CudaRuntime | Scope.Scope>

/** An operation on a number of nodes. */
interface Sized extends Operation<CudaRuntime> {
  readonly size: number
}

/** Batches end when the calls have returned, or when the work has ended. The names are the peers'. */
const hows = [
  { how: "host", title: "host time" },
  { how: "end", title: "time to the end" }
] as const

type How = (typeof hows)[number]["how"]

const endOf = ({ drain }: Bench, how: How) => how === "end" ? drain : undefined

const compareAll = (
  { drain, ground, peers }: Bench,
  operations: ReadonlyArray<Operation<CudaRuntime>>,
  repeats: Pick<Comparison, "batches" | "rounds" | "warmUps"> = {}
) =>
  compare({
    operations,
    peers,
    prepare: () => Effect.sync(drain),
    inContext: ground.driver.inContext,
    warmUps: 3,
    batches: 5,
    ...repeats
  })

const plural = (count: number, word: string): string => `${count} ${word}${count === 1 ? "" : "s"}`

/** Many launches per batch, because the first ones find the caches cold. */
const launchSizes = [{ size: 1, count: 400 }, { size: 10, count: 200 }, { size: 100, count: 50 }, {
  size: 1000,
  count: 20
}]

const measureLaunches: Part = (bench) =>
  Effect.gen(function*() {
    const { ground: { driver, isGpu }, here, subjects } = bench
    const stream = subjects.stream.handle
    const launches = yield* Effect.forEach(launchSizes, ({ count, size }) =>
      Effect.map(makeEmptyGraph(subjects, size), (graph) => {
        const { exec, launch } = makeRawGraph(driver, { stream, kernel: "none", count: size, words: [] })
        return {
          name: plural(size, "kernel"),
          count,
          size,
          here: here && ((count: number) =>
            here.launch(exec, stream, count)),
          raw: launch,
          effect: () => CudaGraph.launch(graph, subjects.stream),
          target: isGpu ? "graphLaunch" as const : undefined
        }
      }))
    const figures: Array<Figure> = []
    for (const { how, title } of hows) {
      const end = endOf(bench, how)
      const operations = launches.map((launch) => ({ ...launch, peer: `launch ${launch.size} ${how}`, end }))
      // The library's code is new here, so it takes longer to be compiled.
      const compared = yield* compareAll(bench, operations, { warmUps: 10 })
      const group = `Launches of a graph of empty kernels, ${title}`
      printCompared(`${group}, µs each (medians of batches)`, compared, "µs")
      figures.push(...comparedFigures(group, compared, "µs"))
    }
    return figures
  })

const rebindSizes = [{ size: 1, count: 200 }, { size: 10, count: 50 }, { size: 100, count: 20 }]

/** A launch with the same buffer as the last time, and one with the other buffer. */
const makeRebinds = (
  { ground: { driver, isGpu }, here, subjects }: Bench,
  { count, size }: (typeof rebindSizes)[number]
) =>
  Effect.map(makeReaders(subjects, size), (exec): ReadonlyArray<Sized> => {
    const { buffers, stream } = subjects
    const words = buffers.map((buffer) => readerWords(subjects, buffer))
    const raw = makeRawGraph(driver, { stream: stream.handle, kernel: "three", count: size, words: words[0]! })
    const [one, other] = words.map((own) => makeBlock(driver.getFunction("three"), own))
    let turn = 0
    const next = () => turn ^= 1
    const name = plural(size, "kernel")
    const common = { count, size }
    return [
      {
        ...common,
        name: `${name}, the same buffer`,
        peer: `same ${size} host`,
        here: here && ((count) => here.launch(raw.exec, stream.handle, count)),
        raw: raw.launch,
        effect: () => CudaGraph.launch(exec, { from: buffers[0] }, stream)
      },
      {
        ...common,
        name: `${name}, another buffer`,
        peer: `rebind ${size} host`,
        here: here &&
          ((count) => here.rebind(raw.exec, stream.handle, raw.nodes, size, one!.address, other!.address, count)),
        raw: () => {
          raw.rebind(words[next()]!)
          raw.launch()
        },
        effect: () => CudaGraph.launch(exec, { from: buffers[next()]! }, stream),
        target: isGpu ? "rebinding" : undefined
      }
    ]
  })

const measureRebinding: Part = (bench) =>
  Effect.gen(function*() {
    const operations = (yield* Effect.forEach(rebindSizes, (sizes) => makeRebinds(bench, sizes))).flat()
    // The library's code is new here, too.
    const compared = yield* compareAll(bench, operations, { warmUps: 10 })
    const group = "Launches of a graph with a buffer as parameter"
    printCompared(`${group}, µs each (medians of batches)`, compared, "µs")
    const isSame = (_: unknown, index: number) => index % 2 === 0
    const same = compared.filter(isSame)
    const perNode = compared.filter((_, index) => !isSame(_, index)).map((changed, index) =>
      eachOf(changed, rebindSizes[index]!.size, same[index])
    )
    const perNodeGroup = "Rebinding a node"
    printCompared(`${perNodeGroup}, ns (launches with another buffer less those with the same)`, perNode)
    const withoutTarget = compared.map((one) => ({ ...one, operation: { ...one.operation, target: undefined } }))
    return [...comparedFigures(group, withoutTarget, "µs"), ...comparedFigures(perNodeGroup, perNode)]
  })

/** The cost per node, after subtracting the medians of another operation. */
const eachOf = <R>(compared: Compared<R>, size: number, base?: Compared<R>): Compared<R> => {
  const each = (values: ReadonlyArray<number>, less: ReadonlyArray<number> | undefined) => {
    const start = less === undefined || less.length === 0 ? 0 : median(less)
    return values.map((nanos) => (nanos - start) / size)
  }
  const beside = Object.entries(compared.beside).map(([name, values]) => [name, each(values, base?.beside[name])])
  return {
    operation: compared.operation,
    effect: each(compared.effect, base?.effect),
    loop: each(compared.loop, undefined),
    beside: Object.fromEntries(beside)
  }
}

const programNames = Object.keys(programs) as ReadonlyArray<ProgramName>

/** Needs no driver. */
const measureRecording = (where: string, subjects: GraphSubjects) =>
  Effect.gen(function*() {
    const operations = [{ size: 100, count: 10 }, { size: 1000, count: 2 }].flatMap(({ count, size }) =>
      programNames.map((name): Sized => {
        const program = makeProgram(subjects, name, size)
        const title = name === "mixed" ? "launches, fills and copies" : name
        return {
          name: `${size} ${title}`,
          peer: "",
          count,
          size,
          effect: () => CudaGraph.record(program),
          target: "recording"
        }
      })
    )
    // The code of recordings is new here, too.
    const compared = yield* compare({ operations, peers: [], prepare: () => Effect.void, warmUps: 10, batches: 5 })
    const perNode = compared.map((one, index) => eachOf(one, operations[index]!.size))
    const group = `Recording, per node, ${where}`
    printCompared(`${group}, ns (medians of batches)`, perNode)
    return comparedFigures(group, perNode)
  })

const recordOnDriver: Part = ({ ground: { isGpu }, subjects }) =>
  measureRecording(isGpu ? "on the GPU's driver" : "on the stub driver", subjects)

const recordSimulated = Effect.flatMap(makeGraphSubjects, (subjects) => measureRecording("simulated", subjects)).pipe(
  Effect.scoped,
  Effect.provide(SimulatedRuntime.layer({ kernels: simulatedKernels }))
)

const makingSizes = [{ size: 10, count: 10 }, { size: 100, count: 2 }, { size: 1000, count: 1 }]

const measureMaking: Part = (bench) =>
  Effect.gen(function*() {
    const { subjects } = bench
    const operations: Array<Operation<CudaRuntime>> = []
    for (const { count, size } of makingSizes) {
      const graphs = yield* Effect.forEach(subjects.buffers, (buffer) => recordReaders(subjects, size, buffer))
      const exec = yield* CudaGraph.instantiate(graphs[0]!)
      let turn = 0
      operations.push(
        {
          name: `instantiate and destroy, ${plural(size, "node")}`,
          peer: `instantiate ${size} host`,
          count,
          effect: () => Effect.scoped(CudaGraph.instantiate(graphs[0]!))
        },
        {
          name: `update, ${plural(size, "node")}`,
          peer: `update ${size} host`,
          count,
          effect: () => CudaGraph.update(exec, graphs[turn ^= 1]!)
        }
      )
    }
    const compared = yield* compareAll(bench, operations, { rounds: 6, batches: 4 })
    const group = "Instantiating and updating graphs"
    printCompared(`${group}, µs (medians of batches)`, compared, "µs")
    return comparedFigures(group, compared, "µs")
  })

const programSizes = [1, 2, 3, 5, 10, 20, 50, 100]
/** Operations per batch: few enough not to fill the driver's queues. */
const programOperations = 200

const measurePrograms: Part = (bench) =>
  Effect.gen(function*() {
    const { ground, subjects } = bench
    const { stream } = subjects
    const execs = yield* Effect.forEach(programSizes, (size) =>
      Effect.flatMap(CudaGraph.record(makeProgram(subjects, "mixed", size)), (graph) =>
        CudaGraph.instantiate(graph)))
    const figures: Array<Figure> = []
    for (const { how, title } of hows) {
      const common = (size: number) => ({
        peer: `calls ${size} ${how}`,
        count: Math.ceil(programOperations / size),
        end: endOf(bench, how)
      })
      const name = (size: number, way: string) =>
        `${plural(size, "operation")}, ${way}`
      const asGraphs = programSizes.map((size, index): Operation => ({
        ...common(size),
        name: name(size, "as a graph"),
        effect: () => CudaGraph.launch(execs[index]!, stream)
      }))
      const asEffects = programSizes.map((size): Operation => {
        const program = oneByOne(subjects, "mixed", size)
        return { ...common(size), name: name(size, "as Effects"), effect: () => program }
      })
      const operations = programSizes.flatMap((_, index) => [asGraphs[index]!, asEffects[index]!])
      const compared = yield* compareAll(bench, operations)
      const group = `Programs of launches, fills and copies, ${title}`
      printCompared(`${group}, µs (medians of batches; C makes the calls one by one)`, compared, "µs")
      // The stub's calls take almost no time, so nothing beats them.
      if (ground.isGpu) printCrossing(title, compared.filter((_, index) => index % 2 === 0))
      figures.push(...comparedFigures(group, compared, "µs"))
    }
    return figures
  })

/** Prints from which size on graphs are faster than the calls in C. */
const printCrossing = <R>(title: string, asGraphs: ReadonlyArray<Compared<R>>): void => {
  if (asGraphs.some(({ beside }) => (beside["C"] ?? []).length === 0)) return
  const isFaster = ({ beside, effect }: Compared<R>) => median(effect) < median(beside["C"] ?? [])
  const lastSlower = asGraphs.findLastIndex((compared) => !isFaster(compared))
  const first = programSizes[lastSlower + 1]
  const from = first === undefined ? "at no size measured" : `from ${plural(first, "operation")} on`
  console.log(`By ${title}, a graph beats the calls in C ${from}`)
}

const parts: ReadonlyArray<Part> = [measureLaunches, measureRebinding, recordOnDriver, measureMaking, measurePrograms]

await runOnDriver("graphs", (ground) =>
  Effect.gen(function*() {
    const onDriver = Effect.gen(function*() {
      const peers = yield* startPeers(ground, "graphs")
      const subjects = yield* makeGraphSubjects
      const stream = subjects.stream.handle
      const drain = () => check("cuStreamSynchronize", ground.driver.calls.cuStreamSynchronize(stream))
      const figures: Array<Figure> = []
      const bench = { ground, here: openHere(ground.driver), peers, subjects, drain }
      for (const part of parts) figures.push(...(yield* part(bench)))
      return figures
    }).pipe(Effect.provideServiceEffect(CudaRuntime, ground.makeRuntime()))
    return [...yield* onDriver, ...(ground.isGpu ? [] : yield* recordSimulated)]
  }))
