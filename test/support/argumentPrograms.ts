/**
 * Programs whose kernels get their arguments from the parameters of a graph in many ways, and the bytes that the kernels should get.
 */
import { CudaGraph, CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaTiming } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer, Slice } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { ArgumentBytes } from "./DriverGraphs.ts"
import { argumentBytes, every, program, signatures } from "./kernels.ts"

const { bool, f16, f64, i64, u32 } = CudaParameter

/** The bytes of memory that programs need at each place. */
export const programBytes = 256

const one = { grid: 1, block: 1 }

/** Graphs with the same operations and other offsets and numbers. */
export const variants = [0, 1, 2]

const parameters = {
  a: CudaGraph.buffer(programBytes),
  b: CudaGraph.buffer(programBytes),
  host: CudaGraph.hostBuffer(programBytes),
  word: u32,
  real: f64,
  wide: i64,
  half: f16,
  flag: bool,
  unusedBuffer: CudaGraph.buffer(8),
  unusedWord: u32
}

export type Parameters = typeof parameters
export type Values = CudaGraph.Values<Parameters>

/** Placeholders while a program is recorded, and the values of a launch to find out what its kernels should get. */
type Given = CudaGraph.EmbeddedValues<Parameters>

const innerParameters = { to: CudaGraph.buffer(32), value: u32 }
type InnerGiven = CudaGraph.EmbeddedValues<typeof innerParameters>

export type Part = Slice<DeviceBuffer>

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
export interface Shape {
  readonly copies: boolean
  readonly embeds: boolean
  readonly usesScratch: boolean
  readonly hasRegion: boolean
  readonly hasCondition: boolean
}

/** A program with what it needs. */
export interface Program {
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

/** The part that a program copies from `a` to `b`. */
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

/** The kernels that programs launch. */
export const loadKernels = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* program)
  return {
    put: yield* CudaKernel.get(module, "put", signatures.put),
    every: yield* CudaKernel.get(module, "every", every)
  }
})
type Kernels = Effect.Success<typeof loadKernels>

type InnerGraph = CudaGraph.CudaGraph<typeof innerParameters>

export const recordProgram = (kernels: Kernels, self: Program) =>
  Effect.gen(function*() {
    const inner = yield* CudaGraph.recordWith(
      innerParameters,
      (given) => Effect.forEach(innerOperations(self.variant, given), recordOperation(kernels), { discard: true })
    )
    return yield* CudaGraph.recordWith(
      parameters,
      (given) => Effect.forEach(operationsOf(self, given), recordOperation(kernels, inner), { discard: true })
    )
  })

const recordOperation = (kernels: Kernels, inner?: InnerGraph) => {
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
export type Expected = ReadonlyArray<ReadonlyArray<string | "scratch" | undefined>>

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

/** What the kernels of a launch with these values should get. */
export const expectedArguments = (self: Program, values: Values): Expected =>
  operationsOf(self, values).flatMap((operation) => expectedOf(self.variant, operation))

/** Whether the ends of a copy overlap in a launch with these values. */
export const overlaps = ({ copies }: Shape, { a, b }: Values): boolean => {
  const [to, from] = [copiedPart(b), copiedPart(a)]
  return copies && to.buffer === from.buffer && Math.abs(to.offset - from.offset) < to.byteLength
}
