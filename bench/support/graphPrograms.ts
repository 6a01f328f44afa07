/**
 * The graphs that benchmarks record, launch and change, and the programs behind them.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../src/CudaError.ts"
import * as CudaGraph from "../../src/CudaGraph.ts"
import * as CudaKernel from "../../src/CudaKernel.ts"
import * as CudaMemory from "../../src/CudaMemory.ts"
import * as CudaModule from "../../src/CudaModule.ts"
import * as CudaParameter from "../../src/CudaParameter.ts"
import * as CudaProgram from "../../src/CudaProgram.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { kernelsPath } from "./driver.ts"

const { input, pointer, u32 } = CudaParameter
const one = { grid: 1, block: 1 }
const bytes = 4096
/** The last argument of the kernels. */
const words = bytes / 8

/** The resources that graphs and programs use. */
export const makeGraphSubjects = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* CudaProgram.fromFile(kernelsPath))
  return {
    none: yield* CudaKernel.get(module, "none", []),
    three: yield* CudaKernel.get(module, "three", [pointer, input, u32]),
    stream: yield* CudaStream.make(),
    target: yield* CudaMemory.allocate(bytes),
    /** Launches take them in turn. */
    buffers: [yield* CudaMemory.allocate(bytes), yield* CudaMemory.allocate(bytes)] as const
  }
})

export type GraphSubjects = Effect.Success<typeof makeGraphSubjects>

/** Makes a small operation on a stream, or on the current one. */
type Step = (subjects: GraphSubjects, stream?: CudaStream.CudaStream) => Effect.Effect<void, CudaError>

const launch: Step = ({ none }, stream) => CudaKernel.launch(none, one, [], stream)
const fill: Step = ({ buffers }, stream) => CudaMemory.fill(buffers[0], 0, stream)
const copy: Step = ({ buffers, target }, stream) => CudaMemory.copy(target, buffers[0], stream)

/** The steps of programs, which repeat in turn. */
export const programs = {
  launches: [launch],
  fills: [fill],
  copies: [copy],
  mixed: [launch, fill, copy]
} satisfies Readonly<Record<string, ReadonlyArray<Step>>>

export type ProgramName = keyof typeof programs

/** A program of a number of steps on the current stream, as it is written to be recorded. */
export const makeProgram = (
  subjects: GraphSubjects,
  name: ProgramName,
  count: number
): Effect.Effect<void, CudaError> => {
  const steps: ReadonlyArray<Step> = programs[name]
  return Effect.gen(function*() {
    for (let index = 0; index < count; index++) yield* steps[index % steps.length]!(subjects)
  })
}

const nothing = () => {}

/** The steps of a program as Effects on the stream, one after the other. */
export const oneByOne = (subjects: GraphSubjects, name: ProgramName, count: number): Effect.Effect<void, CudaError> => {
  const steps: ReadonlyArray<Step> = programs[name]
  return Effect.suspend(() => {
    let index = 0
    return Effect.whileLoop({
      while: () => index < count,
      body: () => steps[index++ % steps.length]!(subjects, subjects.stream),
      step: nothing
    })
  })
}

/** An executable graph of empty kernels in a row. */
export const makeEmptyGraph = ({ none }: GraphSubjects, count: number) =>
  Effect.flatMap(
    CudaGraph.record(Effect.replicateEffect(CudaKernel.launch(none, one, []), count, { discard: true })),
    (graph) => CudaGraph.instantiate(graph)
  )

/** A graph of kernels in a row that read a buffer. */
export const recordReaders = (subjects: GraphSubjects, count: number, from: CudaMemory.DeviceBuffer) =>
  CudaGraph.record(readers(subjects, count, from))

/** The same as an executable graph with the buffer as its parameter. */
export const makeReaders = (subjects: GraphSubjects, count: number) =>
  Effect.flatMap(
    CudaGraph.recordWith({ from: CudaGraph.buffer(bytes) }, ({ from }) => readers(subjects, count, from)),
    (graph) => CudaGraph.instantiate(graph)
  )

const readers = ({ target, three }: GraphSubjects, count: number, from: CudaMemory.DeviceBuffer) =>
  Effect.replicateEffect(CudaKernel.launch(three, one, [target, from, words]), count, { discard: true })

/** The arguments of a kernel that reads a buffer, one word each. */
export const readerWords = ({ target }: GraphSubjects, from: CudaMemory.DeviceBuffer): ReadonlyArray<bigint> =>
  [target.address, from.address, words].map(BigInt)
