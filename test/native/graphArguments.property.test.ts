/**
 * The arguments of kernels in executable graphs, after random sequences of launches, changes of the graph, and calls that the driver
 * refuses: what the driver holds at each launch is compared with the values of that launch.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaGraph, CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaStream, CudaTiming } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer, HostBuffer, Slice } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import { statuses } from "../../src/cuda/status.ts"
import { DriverGraphs } from "../support/DriverGraphs.ts"
import type { ArgumentBytes } from "../support/DriverGraphs.ts"
import { argumentBytes, every, program, signatures } from "../support/kernels.ts"
import { makeRandom } from "../support/random.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { tracing } from "../support/tracing.ts"

const stub = openStub()
const { callsOf } = tracing(stub)

const { bool, f16, f64, i64, u32 } = CudaParameter
const size = 256
const one = { grid: 1, block: 1 }
/** Graphs with the same operations and other offsets and numbers. */
const variants = [0, 1, 2]

const parameters = {
  a: CudaGraph.buffer(size),
  b: CudaGraph.buffer(size),
  host: CudaGraph.hostBuffer(size),
  word: u32,
  real: f64,
  wide: i64,
  half: f16,
  flag: bool,
  unusedBuffer: CudaGraph.buffer(8),
  unusedWord: u32
}
type Parameters = typeof parameters
type Values = CudaGraph.Values<Parameters>

/** Placeholders while a program is recorded, and the values of a launch to find out what its kernels should get. */
type Given = CudaGraph.EmbeddedValues<Parameters>

const innerParameters = { to: CudaGraph.buffer(32), value: u32 }
type InnerGiven = CudaGraph.EmbeddedValues<typeof innerParameters>

type Part = Slice<DeviceBuffer>

/** An operation of a program. */
type Operation =
  | { readonly kind: "put"; readonly args: CudaParameter.KernelArguments<typeof signatures.put> }
  | { readonly kind: "every"; readonly args: CudaParameter.KernelArguments<typeof every> }
  | { readonly kind: "fill"; readonly to: Part; readonly value: number }
  | { readonly kind: "copy"; readonly to: Part; readonly from: Part }
  | { readonly kind: "embed"; readonly given: InnerGiven }
  | { readonly kind: "putScratch"; readonly value: Given["word"] }
  | { readonly kind: "region"; readonly inside: Operation }
  | { readonly kind: "when"; readonly value: Part; readonly inside: Operation }

const put = (to: Part, value: Given["word"]): Operation => ({ kind: "put", args: [to, value] })

/** Which operations a program has besides those that all have. */
interface Shape {
  readonly copies: boolean
  readonly embeds: boolean
  readonly usesScratch: boolean
  readonly hasRegion: boolean
  readonly hasCondition: boolean
}

const shapeOf = (seed: number): Shape => ({
  copies: (seed & 1) !== 0,
  embeds: (seed & 2) !== 0,
  usesScratch: (seed & 4) !== 0,
  hasRegion: (seed & 8) !== 0,
  hasCondition: seed % 5 === 0
})

/** A program with what it needs. */
interface Program {
  readonly shape: Shape
  readonly variant: number
  /** Memory that is not a parameter. */
  readonly fixed: DeviceBuffer
}

const operationsOf = ({ fixed, shape, variant }: Program, given: Given): ReadonlyArray<Operation> => {
  const { a, b, word } = given
  const tail = put(CudaMemory.slice(b, 4, 4), 20 + variant)
  const copy: Operation = { kind: "copy", to: copiedPart(b), from: copiedPart(a) }
  const embed: Operation = { kind: "embed", given: { to: CudaMemory.slice(b, 64, 64), value: word } }
  const inside = put(CudaMemory.slice(a, 4, 4), word)
  const when: Operation = { kind: "when", value: CudaMemory.slice(b, 0, 4), inside }
  return [
    put(a, word),
    put(CudaMemory.slice(b, 8 * variant, 8), word),
    { kind: "fill", to: a, value: variant },
    put(fixed, word),
    put(a, 10 + variant),
    put(fixed, 40 + variant),
    ...shape.copies ? [copy] : [],
    { kind: "every", args: everyArguments(given) },
    ...shape.embeds ? [embed] : [],
    ...shape.usesScratch ? [{ kind: "putScratch", value: word } as const] : [],
    shape.hasRegion ? { kind: "region", inside: tail } : tail,
    ...shape.hasCondition ? [when] : []
  ]
}

const copiedPart = (memory: Part): Part => CudaMemory.slice(memory, 0, 64)

const innerOperations = (variant: number, { to, value }: InnerGiven): ReadonlyArray<Operation> => [
  put(CudaMemory.slice(to, 4, 4), value),
  put(to, 30 + variant)
]

/** Memory and numbers as whole arguments, in structs, and in arrays. */
const everyArguments = ({ a, b, flag, half, host, real, wide, word }: Given) => {
  const record = (x: Given["real"], to: Part | null) => ({ tag: 1, at: { x, y: 2 }, to, last: 3 })
  return [
    a,
    1,
    wide,
    -1,
    2,
    -2,
    half,
    1,
    word,
    flag,
    -3,
    1.5,
    4,
    5n,
    real,
    -1,
    record(real, CudaMemory.slice(b, 16, 16)),
    1,
    { x: 1, y: 2, z: 3, w: 4 },
    5,
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    1,
    [record(1, a), record(real, null)],
    host,
    9,
    [real, 2],
    3.5,
    1,
    [CudaMemory.slice(a, 32, 32), CudaMemory.slice(b, 40, 8)],
    wide,
    flag
  ] as const
}

const kernels = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* program)
  return {
    put: yield* CudaKernel.get(module, "put", signatures.put),
    every: yield* CudaKernel.get(module, "every", every)
  }
})
type Kernels = Effect.Success<typeof kernels>

const recordProgram = (kernels: Kernels, described: Program) =>
  Effect.gen(function*() {
    const record = (inner: InnerGraph | undefined) => recordOperation(kernels, inner)
    const inner = yield* CudaGraph.recordWith(
      innerParameters,
      (given) => Effect.forEach(innerOperations(described.variant, given), record(undefined), { discard: true })
    )
    return yield* CudaGraph.recordWith(
      parameters,
      (given) => Effect.forEach(operationsOf(described, given), record(inner), { discard: true })
    )
  })

type InnerGraph = CudaGraph.CudaGraph<typeof innerParameters>

const recordOperation = (kernels: Kernels, inner: InnerGraph | undefined) => {
  const record = (operation: Operation): Effect.Effect<unknown, CudaError, CudaRuntime | Scope.Scope> => {
    switch (operation.kind) {
      case "put":
        return CudaKernel.launch(kernels.put, one, operation.args)
      case "every":
        return CudaKernel.launch(kernels.every, one, operation.args)
      case "fill":
        return CudaMemory.fill(operation.to, operation.value)
      case "copy":
        return CudaMemory.copy(operation.to, operation.from)
      case "embed":
        return CudaGraph.embed(inner!, operation.given)
      case "putScratch":
        return Effect.flatMap(CudaMemory.allocate(64), (scratch) => record(put(scratch, operation.value)))
      case "region":
        return CudaTiming.region(record(operation.inside), "region")
      case "when":
        return CudaGraph.when(operation.value, record(operation.inside))
    }
  }
  return record
}

/** The arguments that kernels should get: bytes, memory of the graph, or what only the driver knows. */
type Expected = ReadonlyArray<ReadonlyArray<string | "scratch" | undefined>>

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex")

const allBytes = (kinds: ReadonlyArray<CudaParameter.ParameterKind>, values: ReadonlyArray<unknown>): ArgumentBytes =>
  kinds.map((kind, index) => hex(argumentBytes(kind, values[index])))

/** What the kernels of an operation should get, in the order in which the driver's nodes are made. */
const expectedOf = (variant: number, operation: Operation): Expected => {
  switch (operation.kind) {
    case "put":
      return [allBytes(signatures.put, operation.args)]
    case "every":
      return [allBytes(every, operation.args)]
    case "fill":
    case "copy":
      return []
    case "embed":
      return innerOperations(variant, operation.given).flatMap((inside) => expectedOf(variant, inside))
    case "putScratch":
      return [["scratch", ...allBytes([u32], [operation.value])]]
    case "region":
      return expectedOf(variant, operation.inside)
    case "when": {
      // A kernel passes the value to the condition: that the value is not 0.
      const setter = [undefined, ...allBytes([CudaParameter.pointer, u32, u32], [operation.value, 0, 1])]
      return [setter, ...expectedOf(variant, operation.inside)]
    }
  }
}

type Random = (below: number) => number

/** The memory that launches are given. */
interface Memory {
  readonly device: ReadonlyArray<DeviceBuffer>
  readonly host: ReadonlyArray<HostBuffer>
}

const makeMemory = Effect.gen(function*(): Effect.fn.Return<Memory, CudaError, CudaRuntime | Scope.Scope> {
  const device = yield* Effect.forEach([0, 1, 2], () => CudaMemory.allocate(4 * size))
  const managed = yield* CudaMemory.allocateManaged(4 * size)
  const host = yield* Effect.forEach([0, 1], () => CudaMemory.allocateHost(2 * size))
  return { device: [...device, managed], host }
})

const choose = <A>(random: Random, all: ReadonlyArray<A>): A => all[random(all.length)]!

/** A buffer, or a part of one. */
const choosePart = (random: Random, { device }: Memory): Part => {
  const buffer = choose(random, device)
  return random(4) === 0 ? buffer : CudaMemory.slice(buffer, choose(random, [0, 64, 128, 256]), size + 8 * random(3))
}

const chooseHostPart = (random: Random, { host }: Memory): Slice<HostBuffer> => {
  const buffer = choose(random, host)
  return random(2) === 0 ? buffer : CudaMemory.slice(buffer, 8 * random(8), size)
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
    const fixed = yield* CudaMemory.allocate(size)
    const memory = yield* makeMemory
    const programs = variants.map((variant): Program => ({ shape, variant, fixed }))
    const loaded = yield* kernels
    const graphs = yield* Effect.forEach(programs, (described) => recordProgram(loaded, described))
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

/** Whether the ends of the copy overlap. */
const overlaps = ({ shape, values }: Run): boolean => {
  const [to, from] = [copiedPart(values.b), copiedPart(values.a)]
  return shape.copies && to.buffer === from.buffer && Math.abs(to.offset - from.offset) < to.byteLength
}

/** The arguments that a launch should have. Some are taken from the launch itself, if they can be right. */
const expectedLaunch = ({ driver, programs, values, variant }: Run, launched: ReadonlyArray<ArgumentBytes>) => {
  const expected = operationsOf(programs[variant]!, values).flatMap((operation) => expectedOf(variant, operation))
  return expected.map((args, kernel) =>
    args.map((arg, at) => {
      const own = launched[kernel]?.[at]
      return arg === undefined || (arg === "scratch" && driver.hasAllocated(own)) ? own : arg
    })
  )
}

/** Launches with the values, also measured, and compares the arguments. */
const launch = (run: Run) =>
  Effect.gen(function*() {
    const { exec, random, stream, values, where } = run
    const isMeasured = random(4) === 0
    const launching = CudaGraph.launch(exec, values, stream)
    const { isDone, launches, returned } = yield* attempt(
      run,
      isMeasured ? Effect.asVoid(CudaTiming.timeline(launching)) : launching
    )
    if (overlaps(run)) assert.isFalse(isDone, `${where}: copies overlapping parts`)
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
