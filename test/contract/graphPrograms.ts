/**
 * Random programs: run directly, and recorded and launched, with the same results as a sequential model.
 */
import { assert, layer } from "@effect/vitest"
import {
  CudaBranch,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaStream,
  CudaTiming
} from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer, Slice } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { leavesNothing } from "../support/assertions.ts"
import { program, signatures } from "../support/kernels.ts"
import { makeRandom } from "../support/random.ts"
import type { Rig } from "../support/Rig.ts"

const size = 64
const bufferCount = 5
const streamCount = 3

/** A part of a buffer. */
interface Part {
  readonly buffer: number
  readonly offset: number
  readonly length: number
}

/** A step of a program. Streams are numbered; 0 is the current one. */
type Step =
  | { readonly kind: "fill"; readonly to: Part; readonly value: number; readonly stream: number }
  | { readonly kind: "copy"; readonly to: Part; readonly from: Part; readonly stream: number }
  | { readonly kind: "put"; readonly buffer: number; readonly value: number | "given"; readonly stream: number }
  | { readonly kind: "branches"; readonly fills: ReadonlyArray<{ readonly to: Part; readonly value: number }> }
  | { readonly kind: "through"; readonly to: Part; readonly from: Part; readonly stream: number }

type Random = (below: number) => number

const makePart = (random: Random, length = 4 * (1 + random(size / 4))): Part => ({
  buffer: random(bufferCount),
  offset: 4 * random((size - length) / 4 + 1),
  length
})

/** A part of another buffer with the same length. */
const otherPart = (random: Random, { buffer, length }: Part): Part => ({
  ...makePart(random, length),
  buffer: (buffer + 1 + random(bufferCount - 1)) % bufferCount
})

const makeStep = (random: Random): Step => {
  const stream = random(streamCount + 1)
  const to = makePart(random)
  switch (random(5)) {
    case 0:
      return { kind: "fill", to, value: random(256), stream }
    case 1:
      return { kind: "copy", to, from: otherPart(random, to), stream }
    case 2:
      return { kind: "put", buffer: to.buffer, value: random(2) === 0 ? "given" : random(2 ** 31), stream }
    case 3:
      return {
        kind: "branches",
        fills: Array.from({ length: 3 }, (_, buffer) => ({
          to: { ...makePart(random), buffer },
          value: random(256)
        }))
      }
    default:
      return { kind: "through", to, from: otherPart(random, to), stream }
  }
}

/** A step, which may be a region of a timeline. */
interface Measurable {
  readonly step: Step
  readonly isRegion: boolean
}

const makeSteps = (random: Random): ReadonlyArray<Measurable> =>
  Array.from({ length: 1 + random(25) }, () => ({ step: makeStep(random), isRegion: random(3) === 0 }))

/** Runs a program on arrays, one step after another. */
const runModel = (steps: ReadonlyArray<Measurable>, memory: ReadonlyArray<Uint8Array>, given: number): void => {
  const fill = ({ buffer, length, offset }: Part, value: number) => memory[buffer]!.fill(value, offset, offset + length)
  for (const { step } of steps) {
    switch (step.kind) {
      case "fill":
        fill(step.to, step.value)
        break
      case "put":
        new DataView(memory[step.buffer]!.buffer).setUint32(0, step.value === "given" ? given : step.value, true)
        break
      case "branches":
        for (const { to, value } of step.fills) fill(to, value)
        break
      default: {
        const { buffer, length, offset } = step.from
        memory[step.to.buffer]!.set(memory[buffer]!.slice(offset, offset + length), step.to.offset)
      }
    }
  }
}

type Put = CudaKernel.CudaKernel<(typeof signatures)["put"]>

/** Runs a program on ordered buffers, on the current stream and on others, which are joined at the end. */
const runSteps = (
  steps: ReadonlyArray<Measurable>,
  buffers: ReadonlyArray<DeviceBuffer>,
  put: Put,
  given: number | CudaGraph.GraphScalar<"u32">
): Effect.Effect<void, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const streams = [yield* CudaStream.current()]
    for (let made = 0; made < streamCount; made++) streams.push(yield* CudaStream.make())
    const part = ({ buffer, length, offset }: Part): Slice<DeviceBuffer> =>
      CudaMemory.slice(buffers[buffer]!, offset, length)
    const run = Effect.fnUntraced(function*(step: Step) {
      if (step.kind === "branches") {
        return yield* CudaBranch.all(step.fills.map(({ to, value }) => CudaMemory.fill(part(to), value)), {
          discard: true
        })
      }
      const stream = streams[step.stream]
      if (step.kind === "fill") yield* CudaMemory.fill(part(step.to), step.value, stream)
      else if (step.kind === "copy") yield* CudaMemory.copy(part(step.to), part(step.from), stream)
      else if (step.kind === "put") {
        const value = step.value === "given" ? given : step.value
        yield* CudaKernel.launch(put, { grid: 1, block: 1 }, [buffers[step.buffer]!, value], stream)
      } else {
        const scratch = yield* CudaMemory.allocate(step.to.length, { ordered: true })
        yield* CudaMemory.copy(scratch, part(step.from), stream)
        yield* CudaMemory.copy(part(step.to), scratch, streams[(step.stream + 1) % streams.length])
      }
    })
    for (const { isRegion, step } of steps) {
      yield* isRegion ? CudaTiming.region(run(step), step.kind) : run(step)
    }
    for (const stream of streams.slice(1)) yield* CudaStream.waitStream(streams[0]!, stream)
  })

const makeBuffers = (random: Random) =>
  Effect.gen(function*() {
    const arrays = Array.from({ length: bufferCount }, () => Uint8Array.from({ length: size }, () => random(256)))
    const buffers: Array<DeviceBuffer> = []
    for (const array of arrays) {
      const buffer = yield* CudaMemory.allocate(size, { ordered: true })
      yield* CudaMemory.upload(buffer, array)
      buffers.push(buffer)
    }
    return { arrays, buffers }
  })

const compare = (buffers: ReadonlyArray<DeviceBuffer>, arrays: ReadonlyArray<Uint8Array>, what: string) =>
  Effect.gen(function*() {
    for (const [index, buffer] of buffers.entries()) {
      const bytes = new Uint8Array(size)
      yield* CudaMemory.download(bytes, buffer)
      assert.deepStrictEqual(bytes, arrays[index], `${what}, buffer ${index}`)
    }
  })

/** Runs a program directly, as a graph, and as a graph whose first buffers are parameters, also measured. */
const check = (seed: number, put: Put) =>
  Effect.gen(function*() {
    const random = makeRandom(seed)
    const steps = makeSteps(random)
    const { arrays, buffers } = yield* makeBuffers(random)
    yield* Effect.scoped(runSteps(steps, buffers, put, 1))
    runModel(steps, arrays, 1)
    yield* compare(buffers, arrays, `seed ${seed}, run directly`)
    const graph = yield* CudaGraph.recordWith(
      {
        first: CudaGraph.buffer(size, { ordered: true }),
        second: CudaGraph.buffer(size, { ordered: true }),
        given: CudaParameter.u32
      },
      ({ first, given, second }) => runSteps(steps, [first, second, ...buffers.slice(2)], put, given)
    )
    const exec = yield* CudaGraph.instantiate(graph, { instances: 1 + seed % 2 })
    const other = yield* makeBuffers(random)
    for (let launch = 0; launch < 4; launch++) {
      const [own, model] = launch % 2 === 0 ? [buffers, arrays] : [other.buffers, other.arrays]
      const launched = CudaGraph.launch(exec, { first: own[0]!, second: own[1]!, given: launch })
      if (launch < 2) yield* launched
      else {
        const [{ dropped, regions }] = yield* CudaTiming.timeline(launched)
        assert.deepStrictEqual([regions.length, dropped], [steps.filter(({ isRegion }) => isRegion).length, 0])
      }
      runModel(steps, [model[0]!, model[1]!, ...arrays.slice(2)], launch)
    }
    yield* compare(buffers, arrays, `seed ${seed}, launched`)
    yield* compare(other.buffers.slice(0, 2), other.arrays.slice(0, 2), `seed ${seed}, launched with other buffers`)
  })

/** Creates all pooled streams, which live as long as the runtime. */
const pooledStreams = CudaBranch.all(Array.from({ length: 32 }, () => Effect.void), { discard: true })

export const graphProgramContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("random programs", (it) => {
    it.effect("give the same bytes run directly, launched as graphs, and with other buffers", () =>
      Effect.andThen(
        pooledStreams,
        leavesNothing(Effect.gen(function*() {
          const module = yield* CudaModule.load(yield* program)
          const put = yield* CudaKernel.get(module, "put", signatures.put)
          for (let seed = 1; seed <= 60; seed++) {
            const stream = yield* CudaStream.make()
            yield* Effect.scoped(CudaStream.withStream(check(seed, put), stream))
          }
        }))
      ))
  })
