/**
 * The arguments of kernels in executable graphs, after random sequences of launches, changes of the graph, and calls that the driver
 * refuses: what the driver holds at each launch is compared with the values of that launch.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaGraph, CudaMemory, CudaStream, CudaTiming } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer, HostBuffer, Slice } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import { statuses } from "../../src/cuda/status.ts"
import {
  expectedArguments,
  loadKernels,
  overlaps,
  programBytes,
  recordProgram,
  variants
} from "../support/argumentPrograms.ts"
import type { Parameters, Part, Program, Shape, Values } from "../support/argumentPrograms.ts"
import { DriverGraphs } from "../support/DriverGraphs.ts"
import type { ArgumentBytes } from "../support/DriverGraphs.ts"
import { makeRandom } from "../support/random.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { tracing } from "../support/tracing.ts"

const stub = openStub()
const { callsOf } = tracing(stub)

type Random = (below: number) => number

/** The memory that launches are given. */
interface Memory {
  readonly device: ReadonlyArray<DeviceBuffer>
  readonly host: ReadonlyArray<HostBuffer>
}

const makeMemory = Effect.gen(function*(): Effect.fn.Return<Memory, CudaError, CudaRuntime | Scope.Scope> {
  const device = yield* Effect.forEach([0, 1, 2], () => CudaMemory.allocate(4 * programBytes))
  const managed = yield* CudaMemory.allocateManaged(4 * programBytes)
  const host = yield* Effect.forEach([0, 1], () => CudaMemory.allocateHost(2 * programBytes))
  return { device: [...device, managed], host }
})

const choose = <A>(random: Random, all: ReadonlyArray<A>): A => all[random(all.length)]!

/** A buffer, or a part of one. */
const choosePart = (random: Random, { device }: Memory): Part => {
  const buffer = choose(random, device)
  return random(4) === 0
    ? buffer
    : CudaMemory.slice(buffer, choose(random, [0, 64, 128, 256]), programBytes + 8 * random(3))
}

const chooseHostPart = (random: Random, { host }: Memory): Slice<HostBuffer> => {
  const buffer = choose(random, host)
  return random(2) === 0 ? buffer : CudaMemory.slice(buffer, 8 * random(8), programBytes)
}

const firstValues = ({ device, host }: Memory): Values => ({
  a: device[0]!,
  b: device[1]!,
  host: host[0]!,
  word: 1,
  real: 1.5,
  wide: 3n,
  half: 0.5,
  flag: true,
  unusedBuffer: device[2]!,
  unusedWord: 0
})

/** Another value of one parameter. */
const chooseValue = (random: Random, memory: Memory): Partial<Values> => {
  switch (random(10)) {
    case 0:
      return { a: choosePart(random, memory) }
    case 1:
      return { b: choosePart(random, memory) }
    case 2:
      return { host: chooseHostPart(random, memory) }
    case 3:
      return { word: random(5) }
    case 4:
      return { real: choose(random, [0, -0, NaN, 1.25]) }
    case 5:
      return { wide: choose(random, [1, 2n, -5, 2n ** 62n]) }
    case 6:
      return { half: choose(random, [0.5, -2]) }
    case 7:
      return { flag: random(2) === 0 }
    case 8:
      return { unusedBuffer: choosePart(random, memory) }
    default:
      return { unusedWord: random(4) }
  }
}

/** Most seeds have several kinds of operations. */
const shapeOf = (seed: number): Shape => ({
  copies: (seed & 1) !== 0,
  embeds: (seed & 2) !== 0,
  usesScratch: (seed & 4) !== 0,
  hasRegion: (seed & 8) !== 0,
  hasCondition: seed % 5 === 0
})

/** An executable graph and what is known of it. */
interface Run {
  readonly random: Random
  readonly shape: Shape
  readonly programs: ReadonlyArray<Program>
  readonly graphs: ReadonlyArray<CudaGraph.CudaGraph<Parameters>>
  readonly exec: CudaGraph.CudaGraphExec<Parameters>
  readonly stream: CudaStream.CudaStream
  readonly memory: Memory
  readonly driver: DriverGraphs
  /** The seed and the step, for messages. */
  where: string
  /** The variant that it launches. */
  variant: number
  /** The values of the last launch. */
  values: Values
}

const makeRun = (seed: number) =>
  Effect.gen(function*(): Effect.fn.Return<Run, CudaError, CudaRuntime | Scope.Scope> {
    const shape = shapeOf(seed)
    const driver = new DriverGraphs()
    const fixed = yield* CudaMemory.allocate(programBytes)
    const memory = yield* makeMemory
    const programs = variants.map((variant): Program => ({ shape, variant, fixed }))
    const kernels = yield* loadKernels
    const graphs = yield* Effect.forEach(programs, (program) => recordProgram(kernels, program))
    const made = yield* callsOf(CudaGraph.instantiate(graphs[0]!, { instances: 1 + seed % 3 }))
    driver.follow(made.calls, `seed ${seed}`)
    return {
      random: makeRandom(seed),
      shape,
      programs,
      graphs,
      exec: made.result,
      stream: yield* CudaStream.make(),
      memory,
      driver,
      where: `seed ${seed}`,
      variant: 0,
      values: firstValues(memory)
    }
  })

/** Runs an effect that may fail. Returns the statuses of the driver, and the launches in it. */
const attempt = <A>({ driver, where }: Run, effect: Effect.Effect<A, CudaError, CudaRuntime>) =>
  Effect.gen(function*() {
    const { calls, result } = yield* callsOf(Effect.result(effect))
    const returned = new Set(calls.map(({ status }) => status))
    return { isDone: Result.isSuccess(result), returned, launches: driver.follow(calls, where) }
  })

const { GraphExecUpdateFailure, InvalidValue, NotSupported, OutOfMemory } = statuses

/** What ends a launch. After other refusals, the instance is made anew. */
const isFinal = (returned: ReadonlySet<number>): boolean =>
  returned.has(OutOfMemory.code) || returned.has(NotSupported.code)

/** Updates to or replaces by a variant. The driver may refuse the update of any instance. */
const changeGraph = (run: Run, change: CudaGraph.UpdateOperation) =>
  Effect.gen(function*() {
    const { exec, graphs, random, shape, where } = run
    const variant = choose(random, variants)
    // A graph with a condition is refused without a call of the driver.
    if (!shape.hasCondition && random(3) === 0) {
      // If the driver says why, a graph is replaced instead.
      stub.refuseGraph(choose(random, [0, 5]))
      stub.fail("cuGraphExecUpdate_v2", GraphExecUpdateFailure.code, { after: random(exec.instances) })
    }
    const { isDone, returned } = yield* attempt(run, change(exec, graphs[variant]!))
    const isRefused = returned.has(GraphExecUpdateFailure.code) || isFinal(returned)
    assert.isTrue(isDone || isRefused || shape.hasCondition, `${where}: fails for no reason`)
    if (isDone) run.variant = variant
  })

const refusals = [InvalidValue.code, GraphExecUpdateFailure.code, OutOfMemory.code, NotSupported.code]

/** Makes some of the driver's next calls fail, now or in later steps. */
const failSome = (random: Random): void => {
  const refusal = choose(random, refusals)
  if (random(4) === 0) stub.fail("cuGraphExecKernelNodeSetParams_v2", refusal, { after: random(6) })
  if (random(12) === 0) stub.fail("cuGraphExecMemsetNodeSetParams", InvalidValue.code)
  if (random(12) === 0) stub.fail("cuGraphInstantiateWithParams", OutOfMemory.code)
}

const changeValues = (run: Run): void => {
  const { memory, random } = run
  for (let count = random(4); count > 0; count--) run.values = { ...run.values, ...chooseValue(random, memory) }
}

/** The arguments that a launch should have. Some are taken from the launch itself, if they can be right. */
const expectedLaunch = ({ driver, programs, values, variant }: Run, launched: ReadonlyArray<ArgumentBytes>) =>
  expectedArguments(programs[variant]!, values).map((args, kernel) =>
    args.map((arg, at) => {
      const own = launched[kernel]?.[at]
      return arg === undefined || (arg === "scratch" && driver.hasAllocated(own)) ? own : arg
    })
  )

/** Launches with the values, also measured, and compares the arguments. */
const launch = (run: Run) =>
  Effect.gen(function*() {
    const { exec, random, shape, stream, values, where } = run
    const isMeasured = random(4) === 0
    const launching = CudaGraph.launch(exec, values, stream)
    const { isDone, launches, returned } = yield* attempt(
      run,
      isMeasured ? Effect.asVoid(CudaTiming.timeline(launching)) : launching
    )
    if (overlaps(shape, values)) assert.isFalse(isDone, `${where}: copies overlapping parts`)
    // A launch that cannot be measured is an ordinary one.
    else if (!isDone || !isMeasured) assert.strictEqual(isDone, !isFinal(returned), `${where}: whether it succeeds`)
    if (!isDone) run.driver.noteRefused()
    assert.lengthOf(launches, isDone ? 1 : 0, where)
    for (const launched of launches) assert.deepStrictEqual(launched, expectedLaunch(run, launched), where)
  })

const step = (run: Run) => {
  const { exec, random } = run
  switch (random(20)) {
    case 0:
      return changeGraph(run, CudaGraph.update)
    case 1:
      return changeGraph(run, CudaGraph.updateOrReplace)
    case 2:
      return CudaGraph.setEnabled(exec, random(4), random(2) === 0)
    default:
      changeValues(run)
      failSome(random)
      return launch(run)
  }
}

/** Launches until every failure that was asked for has happened. */
const finish = (run: Run) =>
  Effect.gen(function*() {
    for (let extra = 0; extra < 200 && stub.failuresLeft > 0; extra++) {
      yield* attempt(run, Effect.scoped(CudaGraph.instantiate(run.graphs[0]!)))
      changeValues(run)
      yield* launch(run)
    }
  })

const check = (seed: number) =>
  Effect.gen(function*() {
    const run = yield* makeRun(seed)
    for (let at = 0; at < 150; at++) {
      run.where = `seed ${seed}, step ${at}`
      yield* step(run)
    }
    run.where = `seed ${seed}, at the end`
    yield* finish(run)
  })

describe("the arguments of kernels in executable graphs", () => {
  const seeds = Array.from({ length: 20 }, (_, seed) => seed)
  it.live.each(seeds)(
    "are those of the launch after any other steps, with seed %i",
    (seed) => onStub(stub, check(seed))
  )
})
