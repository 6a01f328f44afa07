/**
 * The contract of matrix products: random shapes and types against sums in float64, the epilogues, batches, orders and factors, and products
 * as operations: streams, ordered buffers, recordings, lifetimes and failures.
 */
import { assert, layer } from "@effect/vitest"
import { CudaBlas, CudaBranch, CudaGraph, CudaMemory, CudaStream } from "effect-cuda"
import type { MatmulPlan, Matrix, MatrixType, PlanOptions } from "effect-cuda/CudaBlas"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { numberTypes } from "../../src/internal/blas/numbers.ts"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { makeRandom } from "../support/random.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

type Random = (below: number) => number

/** A matrix, with its elements in rows, batch after batch. */
interface Filled {
  readonly layout: Matrix
  readonly values: ReadonlyArray<number>
}

const bytesOf = ({ batch = { count: 1, stride: 0 }, columns, leading, order = "row", rows, type }: Matrix): number => {
  const [lines, length] = order === "row" ? [rows, columns] : [columns, rows]
  return numberTypes[type].size * ((batch.count - 1) * batch.stride + (lines - 1) * (leading ?? length) + length)
}

const offsetOf = (layout: Matrix, batch: number, row: number, column: number): number => {
  const { columns, leading, order = "row", rows, type } = layout
  const line = leading ?? (order === "row" ? columns : rows)
  const inside = order === "row" ? row * line + column : column * line + row
  return numberTypes[type].size * (batch * (layout.batch?.stride ?? 0) + inside)
}

const eachElement = (layout: Matrix, use: (index: number, offset: number) => void): void => {
  const { batch, columns, rows } = layout
  for (let index = 0; index < (batch?.count ?? 1) * rows * columns; index++) {
    const row = Math.floor(index / columns) % rows
    use(index, offsetOf(layout, Math.floor(index / (rows * columns)), row, index % columns))
  }
}

const load = (layout: Matrix, bytes: Uint8Array): ReadonlyArray<number> => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const values: Array<number> = []
  eachElement(layout, (index, offset) => {
    values[index] = numberTypes[layout.type].load(view, offset)
  })
  return values
}

const upload = Effect.fnUntraced(function*(matrix: Filled, stream?: CudaStream.CudaStream) {
  const { layout, values } = matrix
  const bytes = new Uint8Array(bytesOf(layout))
  const view = new DataView(bytes.buffer)
  eachElement(layout, (index, offset) => numberTypes[layout.type].store(view, offset, values[index]!))
  const buffer = yield* CudaMemory.allocate(bytes.byteLength)
  yield* CudaMemory.upload(buffer, bytes, stream)
  return buffer
})

const download = Effect.fnUntraced(function*(layout: Matrix, buffer: DeviceBuffer, stream?: CudaStream.CudaStream) {
  const bytes = new Uint8Array(bytesOf(layout))
  yield* CudaMemory.download(bytes, buffer, stream)
  return load(layout, bytes)
})

/** Numbers that every type has, so that rounding the operands is no matter. */
const fill = (random: Random, layout: Matrix): Filled => {
  const count = (layout.batch?.count ?? 1) * layout.rows * layout.columns
  const step = layout.type.startsWith("i") ? 1 : 1 / 4
  return { layout, values: Array.from({ length: count }, () => step * (random(9) - 4)) }
}

const gelu = (x: number) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))

interface Terms {
  readonly a: Filled
  readonly b: Filled
  readonly c?: Filled | undefined
  readonly bias?: ReadonlyArray<number> | undefined
  readonly alpha?: number
  readonly beta?: number
}

/** The product in float64. */
const expectedOf = ({ d, epilogue = {}, transposeA, transposeB }: PlanOptions, terms: Terms): ReadonlyArray<number> => {
  const { a, alpha = 1, b, beta = 0, bias, c } = terms
  const depth = transposeA === true ? a.layout.rows : a.layout.columns
  const at = ({ layout: { columns, rows }, values }: Filled, batch: number, row: number, column: number) =>
    values[batch * rows * columns + row * columns + column]!
  return Array.from({ length: (d.batch?.count ?? 1) * d.rows * d.columns }, (_, index) => {
    const batch = Math.floor(index / (d.rows * d.columns))
    const [row, column] = [Math.floor(index / d.columns) % d.rows, index % d.columns]
    let sum = 0
    for (let k = 0; k < depth; k++) {
      sum += (transposeA === true ? at(a, batch, k, row) : at(a, batch, row, k)) *
        (transposeB === true ? at(b, batch, column, k) : at(b, batch, k, column))
    }
    const added = c === undefined ? 0 : beta * at(c, batch, row, column)
    const value = alpha * sum + added + (bias?.[d.order === "column" ? row : column] ?? 0)
    return epilogue.activation === "relu" ? Math.max(value, 0) : epilogue.activation === "gelu" ? gelu(value) : value
  })
}

/** Half a step of each type, and what approximations of activations add. */
const relative: { readonly [Type in MatrixType]: number } = {
  f64: 1e-14,
  f32: 1e-5,
  f16: 2 ** -10,
  bf16: 2 ** -7,
  f8e4m3: 2 ** -3,
  f8e5m2: 2 ** -2,
  i8: 0,
  i32: 0
}

const agrees = (type: MatrixType, found: ReadonlyArray<number>, expected: ReadonlyArray<number>, what: string) => {
  assert.strictEqual(found.length, expected.length)
  const floor = type.startsWith("i") ? 0 : type.startsWith("f8") ? 0.02 : 2e-3 * (type === "f64" ? 1e-9 : 1)
  for (const [index, value] of expected.entries()) {
    const limit = type === "i8" ? Math.min(Math.max(value, -128), 127) : value
    const allowed = floor + relative[type] * Math.abs(limit)
    if (Math.abs(found[index]! - limit) > allowed) {
      assert.fail(`${what}: element ${index} is ${found[index]}, not ${value}`)
    }
  }
}

const run = Effect.fnUntraced(function*(options: PlanOptions, terms: Terms, what: string) {
  const plan = yield* CudaBlas.plan(options)
  const d = yield* CudaMemory.allocate(bytesOf(options.d))
  const { alpha, beta, bias, c } = terms
  const biasOptions: Matrix = {
    rows: 1,
    columns: bias?.length ?? 1,
    type: options.d.type.startsWith("f8") ? "bf16" : options.d.type
  }
  yield* CudaBlas.matmul(plan, {
    a: yield* upload(terms.a),
    b: yield* upload(terms.b),
    c: c === undefined ? undefined : yield* upload(c),
    d,
    bias: bias === undefined ? undefined : yield* upload({ layout: biasOptions, values: bias }),
    alpha,
    beta
  })
  agrees(options.d.type, yield* download(options.d, d), expectedOf(options, terms), what)
}, Effect.scoped)

const combinations: ReadonlyArray<readonly [MatrixType, MatrixType, MatrixType]> = [
  ["f64", "f64", "f64"],
  ["f32", "f32", "f32"],
  ["f16", "f16", "f16"],
  ["f16", "f16", "f32"],
  ["bf16", "bf16", "bf16"],
  ["bf16", "bf16", "f32"]
]

/** Those that need a row-major `a`, a transposed `b` and multiples of 16. */
const narrow: ReadonlyArray<readonly [MatrixType, MatrixType, MatrixType]> = [
  ["i8", "i8", "i32"],
  ["f8e4m3", "f8e4m3", "bf16"],
  ["f8e4m3", "f8e5m2", "f16"],
  ["f8e5m2", "f8e4m3", "f32"],
  ["f8e4m3", "f8e4m3", "f8e4m3"]
]

const randomMatrix = (random: Random, rows: number, columns: number, type: MatrixType, count: number): Matrix => {
  const order = random(3) === 0 ? "column" : "row"
  const step = 16 / numberTypes[type].size
  const length = order === "row" ? columns : rows
  const leading = random(2) === 0 ? step * Math.ceil(length / step) + step * random(3) : length
  const stride = (order === "row" ? rows : columns) * leading + step * random(2)
  return { rows, columns, type, order, leading, batch: count === 1 ? undefined : { count, stride } }
}

/** With a service of its own, since workspaces live as long as that. */
const cleanly = <A, E>(
  effect: Effect.Effect<A, E, CudaBlas.CudaBlas | CudaRuntime | Busy | Scope.Scope>
): Effect.Effect<A, E | CudaError, CudaRuntime | Busy> =>
  leavesNothing(Effect.scoped(effect).pipe(Effect.provide(CudaBlas.layer())))

export const blasContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("matrix products", (it) => {
    const on = it.effect.skipIf(!rig.hasBlas)

    on("agree with float64 for random shapes, orders, batches and factors", () =>
      cleanly(Effect.gen(function*() {
        for (let seed = 1; seed <= 60; seed++) {
          const random = makeRandom(seed)
          const [typeA, typeB, typeD] = combinations[seed % combinations.length]!
          const [rows, columns, depth] = [1 + random(40), 1 + random(40), 1 + random(40)]
          const count = random(3) === 0 ? 2 + random(3) : 1
          const [transposeA, transposeB] = [random(2) === 0, random(2) === 0]
          const options = {
            a: randomMatrix(random, transposeA ? depth : rows, transposeA ? rows : depth, typeA, count),
            b: randomMatrix(random, transposeB ? columns : depth, transposeB ? depth : columns, typeB, count),
            d: randomMatrix(random, rows, columns, typeD, count),
            transposeA,
            transposeB,
            alignment: count === 1 ? 16 : numberTypes[typeA].size
          }
          const isAdded = random(2) === 0
          yield* run(options, {
            a: fill(random, options.a),
            b: fill(random, options.b),
            c: isAdded ? fill(random, options.d) : undefined,
            alpha: random(2) === 0 ? 0.5 : 1,
            beta: isAdded ? 2 : 0
          }, `seed ${seed}`)
        }
      })), 60_000)

    for (const [typeA, typeB, typeD] of narrow) {
      on(`multiply ${typeA} by ${typeB}, for a result of ${typeD}`, () =>
        cleanly(Effect.gen(function*() {
          const random = makeRandom(7)
          const options: PlanOptions = {
            a: { rows: 32, columns: 64, type: typeA },
            b: { rows: 48, columns: 64, type: typeB },
            d: { rows: 32, columns: 48, type: typeD },
            transposeB: true
          }
          const terms = { a: fill(random, options.a), b: fill(random, options.b) }
          yield* run(options, terms, "the product")
        })))
    }

    on("scale 8-bit floats by numbers in device memory", () =>
      cleanly(Effect.gen(function*() {
        const random = makeRandom(8)
        const options: PlanOptions = {
          a: { rows: 16, columns: 32, type: "f8e4m3" },
          b: { rows: 16, columns: 32, type: "f8e4m3" },
          d: { rows: 16, columns: 16, type: "bf16" },
          transposeB: true
        }
        const [a, b] = [fill(random, options.a), fill(random, options.b)]
        const plan = yield* CudaBlas.plan(options)
        const d = yield* CudaMemory.allocate(bytesOf(options.d))
        const operands = { a: yield* upload(a), b: yield* upload(b), d }
        const scale = (value: number) => upload({ layout: { rows: 1, columns: 1, type: "f32" }, values: [value] })
        yield* CudaBlas.matmul(plan, { ...operands, scales: { a: yield* scale(2), b: yield* scale(0.25) } })
        agrees("bf16", yield* download(options.d, d), expectedOf(options, { a, b, alpha: 0.5 }), "scaled")
        // Scales of one call do not stay for the next.
        yield* CudaBlas.matmul(plan, operands)
        agrees("bf16", yield* download(options.d, d), expectedOf(options, { a, b }), "not scaled")
      })), 60_000)

    on("round the operands of f32 if that is wanted", () =>
      cleanly(Effect.gen(function*() {
        const random = makeRandom(9)
        for (const compute of ["f32", "tf32", "fastF16", "fastBf16"] as const) {
          const options: PlanOptions = {
            a: { rows: 32, columns: 32, type: "f32" },
            b: { rows: 32, columns: 32, type: "f32" },
            d: { rows: 32, columns: 32, type: "f32" },
            compute
          }
          yield* run(options, { a: fill(random, options.a), b: fill(random, options.b) }, compute)
        }
      })))

    on("add a bias and apply an activation, in either order", () =>
      cleanly(Effect.gen(function*() {
        const random = makeRandom(10)
        for (const type of ["f32", "f16", "bf16"] as const) {
          for (const order of ["row", "column"] as const) {
            for (const activation of [undefined, "relu", "gelu"] as const) {
              for (const bias of [false, true]) {
                const options: PlanOptions = {
                  a: { rows: 24, columns: 32, type },
                  b: { rows: 40, columns: 32, type },
                  d: { rows: 24, columns: 40, type, order },
                  transposeB: true,
                  epilogue: { bias, activation }
                }
                const length = order === "row" ? 40 : 24
                const values = Array.from({ length }, () => (random(9) - 4) / 2)
                yield* run(options, {
                  a: fill(random, options.a),
                  b: fill(random, options.b),
                  c: fill(random, options.d),
                  beta: 1,
                  bias: bias ? values : undefined
                }, `${type} ${order} ${activation} ${bias}`)
              }
            }
          }
        }
      })), 60_000)

    on("store the input of the activation", () =>
      cleanly(Effect.gen(function*() {
        const random = makeRandom(11)
        const [a, b]: [Matrix, Matrix] = [{ rows: 16, columns: 32, type: "f16" }, {
          rows: 136,
          columns: 32,
          type: "f16"
        }]
        const d: Matrix = { rows: 16, columns: 136, type: "f16" }
        const base = { a, b, d, transposeB: true }
        const terms = { a: fill(random, a), b: fill(random, b) }
        const inputs = expectedOf(base, terms)
        const [left, right, out] = [
          yield* upload(terms.a),
          yield* upload(terms.b),
          yield* CudaMemory.allocate(bytesOf(d))
        ]

        const gelu = yield* CudaBlas.plan({ ...base, epilogue: { activation: "gelu", auxiliary: true } })
        const matrix = yield* CudaMemory.allocate(bytesOf(d))
        yield* CudaBlas.matmul(gelu, { a: left, b: right, d: out, auxiliary: matrix })
        agrees("f16", yield* download(d, matrix), inputs, "the input of gelu")

        const relu = yield* CudaBlas.plan({ ...base, epilogue: { activation: "relu", auxiliary: true } })
        const bits = yield* CudaMemory.allocate(16 * 256 / 8)
        yield* CudaBlas.matmul(relu, { a: left, b: right, d: out, auxiliary: bits })
        const found = new Uint8Array(bits.byteLength)
        yield* CudaMemory.download(found, bits)
        for (const [index, input] of inputs.entries()) {
          const at = Math.floor(index / 136) * 256 + index % 136
          assert.strictEqual((found[at >> 3]! >> (at & 7)) & 1, input >= 0 ? 1 : 0, `bit ${index}`)
        }
      })))

    on("are in the order of their streams, and keep memory until they are done", () =>
      cleanly(Effect.gen(function*() {
        const { a, b, d, plan } = yield* square(16)
        const stream = yield* CudaStream.make()
        const kept = yield* CudaMemory.allocate(d.byteLength)
        yield* (yield* Busy).enqueue(stream, 20)
        yield* Effect.scoped(Effect.gen(function*() {
          const inner = yield* CudaMemory.allocate(d.byteLength)
          yield* CudaBlas.matmul(plan, { a, b, d: inner }, stream)
          yield* CudaMemory.copy(kept, inner, stream)
        }))
        yield* isProduct(kept, 16, stream)
        yield* CudaStream.withStream(CudaBlas.matmul(plan, { a, b, d }), stream)
        yield* isProduct(d, 16, stream)
      })))

    on("do not see what changes after the call", () =>
      cleanly(Effect.gen(function*() {
        const { a, b, d, plan } = yield* square(16)
        const stream = yield* CudaStream.make()
        const operands = { a, b, d, alpha: 1, beta: 0 }
        yield* (yield* Busy).enqueue(stream, 20)
        yield* CudaBlas.matmul(plan, operands, stream)
        Object.assign(operands, { a: d, alpha: 3, beta: 1 })
        yield* isProduct(d, 16, stream)
      })))

    on("order the uses of ordered buffers", () =>
      cleanly(Effect.gen(function*() {
        const { a, b, plan } = yield* square(16)
        const ordered = yield* CudaMemory.allocate(16 * 16 * 4, { ordered: true })
        const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
        yield* (yield* Busy).enqueue(left, 20)
        yield* CudaBlas.matmul(plan, { a, b, d: ordered }, left)
        yield* isProduct(ordered, 16, right)
      })))

    on("become nodes of a graph", () =>
      cleanly(Effect.gen(function*() {
        const { a, b, d, plan } = yield* square(32)
        const graph = yield* CudaGraph.record(Effect.gen(function*() {
          yield* CudaBlas.matmul(plan, { a, b, d })
          yield* CudaBlas.matmul(plan, { a: d, b, d: a, alpha: 2 }).pipe(CudaGraph.named("again"))
        }))
        assert.deepStrictEqual(graph.nodes.map(({ name }) => name), ["matmul", "again"])
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaGraph.launch(exec)
        yield* isProduct(d, 32)
        const found = yield* download({ rows: 32, columns: 32, type: "f32" }, a)
        // A product of ones: 32, then 2 · 32 · 32.
        assert.deepStrictEqual(found, found.map(() => 2 * 32 * 32))
      })))

    on("share the memory that their algorithm needs", () =>
      Effect.andThen(
        poolStreams,
        cleanly(Effect.gen(function*() {
          // Few results and long sums: split, with partial results in the workspace.
          const options: PlanOptions = {
            a: { rows: 64, columns: 4096, type: "f16" },
            b: { rows: 64, columns: 4096, type: "f16" },
            d: { rows: 64, columns: 64, type: "f32" },
            transposeB: true
          }
          const plan = yield* CudaBlas.plan(options)
          const [a, b] = [
            yield* CudaMemory.allocate(bytesOf(options.a)),
            yield* CudaMemory.allocate(bytesOf(options.b))
          ]
          // f16: 1.0
          yield* CudaMemory.fill16(a, 0x3c00)
          yield* CudaMemory.fill16(b, 0x3c00)
          yield* CudaStream.synchronize(yield* CudaStream.current())
          const results = yield* Effect.forEach([0, 1, 2, 3], () => CudaMemory.allocate(bytesOf(options.d)))
          const all = CudaBranch.forEach(results, (d) => CudaBlas.matmul(plan, { a, b, d }))
          const check = Effect.forEach(results, (d) =>
            Effect.gen(function*() {
              const found = yield* download(options.d, d)
              assert.deepStrictEqual(found, found.map(() => 4096))
              yield* CudaMemory.fill(d, 0)
            }))
          yield* all
          yield* check
          const exec = yield* CudaGraph.instantiate(yield* CudaGraph.record(all))
          yield* CudaGraph.launch(exec)
          yield* all
          yield* check
          yield* CudaGraph.launch(exec)
          yield* CudaGraph.launch(exec)
          yield* check
        }))
      ))

    on("choose among algorithms by timing them", () =>
      cleanly(Effect.gen(function*() {
        const options: PlanOptions = {
          a: { rows: 64, columns: 64, type: "f16" },
          b: { rows: 64, columns: 64, type: "f16" },
          d: { rows: 64, columns: 64, type: "f16" },
          transposeB: true,
          epilogue: { bias: true, activation: "relu" },
          tune: 8
        }
        const random = makeRandom(12)
        const bias = Array.from({ length: 64 }, () => random(5) - 2)
        yield* run(options, { a: fill(random, options.a), b: fill(random, options.b), bias }, "tuned")
      })))

    on("refuse what cannot be planned", () =>
      cleanly(Effect.gen(function*() {
        const good = { rows: 16, columns: 16, type: "f32" } as const
        const wrong: ReadonlyArray<readonly [unknown, string]> = [
          [undefined, "a"],
          [{ a: good, b: good }, "d"],
          [{ a: { ...good, rows: 0 }, b: good, d: good }, "a.rows"],
          [{ a: { ...good, columns: 1.5 }, b: good, d: good }, "a.columns"],
          [{ a: { ...good, type: "f128" }, b: good, d: good }, "a.type"],
          [{ a: { ...good, order: "diagonal" }, b: good, d: good }, "a.order"],
          [{ a: { ...good, leading: 15 }, b: good, d: good }, "a.leading"],
          [{ a: { ...good, batch: { count: 0, stride: 0 } }, b: good, d: good }, "a.batch.count"],
          [{ a: { ...good, batch: { count: 2, stride: -1 } }, b: good, d: good }, "a.batch.stride"],
          [{ a: { ...good, batch: { count: 2, stride: 256 } }, b: good, d: good }, "a.batch.count"],
          [{ a: good, b: { ...good, rows: 17 }, d: good }, "b"],
          [{ a: good, b: good, d: { ...good, rows: 17 } }, "d"],
          [{ a: good, b: { ...good, type: "f16" }, d: good }, "b.type"],
          [{ a: good, b: good, d: { ...good, type: "f16" } }, "d.type"],
          [{ a: good, b: good, d: good, compute: "f16" }, "compute"],
          [{ a: good, b: good, d: good, alignment: 3 }, "alignment"],
          [{ a: good, b: good, d: good, tune: 0 }, "tune"],
          [{ a: good, b: good, d: good, epilogue: { activation: "tanh" } }, "epilogue.activation"],
          [{ a: good, b: good, d: good, epilogue: { bias: 1 } }, "epilogue.bias"],
          [{ a: good, b: good, d: good, epilogue: { auxiliary: true } }, "epilogue.auxiliary"]
        ]
        for (const [options, argument] of wrong) {
          yield* refuses(Effect.scoped(CudaBlas.plan(options as PlanOptions)), argument)
        }
        yield* refuses(Effect.scoped(CudaBlas.plan({ a: good, b: good, d: good, device: 99 })), "device")
      })))

    on("refuse operands that do not fit", () =>
      cleanly(Effect.gen(function*() {
        const { a, b, d, plan } = yield* square(16)
        const wrong: ReadonlyArray<readonly [object | null, string]> = [
          [null, "operands"],
          [{ a, b }, "d"],
          [{ a: null, b, d }, "a"],
          [{ a, b: yield* CudaMemory.allocateHost(16 * 16 * 4), d }, "b"],
          [{ a, b, d: CudaMemory.slice(d, 0, 16 * 16 * 4 - 4) }, "d"],
          [{ a: CudaMemory.slice(yield* CudaMemory.allocate(16 * 16 * 4 + 4), 4), b, d }, "a"],
          [{ a, b, d, c: 3 }, "c"],
          [{ a, b, d, bias: d }, "bias"],
          [{ a, b, d, auxiliary: d }, "auxiliary"],
          [{ a, b, d, alpha: "1" }, "alpha"],
          [{ a, b, d, beta: null }, "beta"],
          [{ a, b, d, scales: { a: d } }, "scales.a"],
          [{ a: yield* CudaMemory.array("f64", 16 * 16), b, d }, "a"],
          [{ a, b, d: yield* CudaMemory.typed(d, "u32") }, "d"]
        ]
        for (const [operands, argument] of wrong) {
          yield* refuses(CudaBlas.matmul(plan, operands as CudaBlas.Operands), argument)
        }
        yield* CudaBlas.matmul(plan, { a: yield* CudaMemory.array("f32", 16 * 16), b, d })
        yield* refuses(CudaBlas.matmul({} as MatmulPlan, { a, b, d }), "plan")
        yield* refuses(CudaBlas.matmul(plan, { a, b, d }, {} as CudaStream.CudaStream), "stream")
        const withBias = yield* CudaBlas.plan({ ...squareOptions(16), epilogue: { bias: true } })
        yield* refuses(CudaBlas.matmul(withBias, { a, b, d }), "bias")
      })))

    on("refuse plans, memory and layers that are released", () =>
      cleanly(Effect.gen(function*() {
        const { a, b, d, plan } = yield* square(16)
        const scope = yield* Scope.make()
        const old = yield* CudaBlas.plan(squareOptions(16)).pipe(Scope.provide(scope))
        const memory = yield* CudaMemory.allocate(d.byteLength).pipe(Scope.provide(scope))
        yield* CudaBlas.matmul(old, { a, b, d: memory })
        yield* Scope.close(scope, Exit.void)
        yield* failsWith(CudaBlas.matmul(old, { a, b, d }), "ResourceReleased")
        yield* failsWith(CudaBlas.matmul(plan, { a, b, d: memory }), "ResourceReleased")
        const other = yield* Scope.make()
        const services = yield* Layer.buildWithScope(CudaBlas.layer(), other)
        const foreign = yield* CudaBlas.plan(squareOptions(16)).pipe(Effect.provide(services))
        yield* CudaBlas.matmul(foreign, { a, b, d })
        yield* Scope.close(other, Exit.void)
        yield* failsWith(CudaBlas.matmul(foreign, { a, b, d }), "ResourceReleased")
      })))

    on("cannot be planned inside a recording, nor use its memory", () =>
      cleanly(Effect.gen(function*() {
        const { a, b, plan } = yield* square(16)
        yield* failsWith(CudaGraph.record(Effect.scoped(CudaBlas.plan(squareOptions(16)))), "CannotRecord")
        const inside = Effect.gen(function*() {
          const d = yield* CudaMemory.allocate(16 * 16 * 4)
          yield* CudaBlas.matmul(plan, { a, b, d })
        })
        yield* failsWith(CudaGraph.record(Effect.scoped(inside)), "CannotRecord")
      })))

    it.effect.skipIf(!rig.hasBlas || rig.deviceCount < 2)(
      "run on the device of their plan",
      () =>
        cleanly(Effect.gen(function*() {
          const here = yield* square(16)
          const there = yield* square(16, 1)
          assert.strictEqual(there.plan.deviceIndex, 1)
          yield* CudaBlas.matmul(there.plan, there)
          yield* CudaBlas.matmul(here.plan, here)
          yield* isProduct(here.d, 16)
          yield* isProduct(there.d, 16, yield* CudaStream.current(1))
          yield* failsWith(CudaBlas.matmul(there.plan, here), "DeviceMismatch")
          yield* failsWith(CudaBlas.matmul(here.plan, here, yield* CudaStream.make({ device: 1 })), "DeviceMismatch")
        }))
    )
  })

/** Makes the pooled streams, which live as long as the runtime. */
const poolStreams = CudaBranch.forEach(Array.from({ length: 32 }), () => Effect.void)

const squareOptions = (size: number): PlanOptions => {
  const matrix = { rows: size, columns: size, type: "f32" } as const
  return { a: matrix, b: matrix, d: matrix }
}

/** A plan and matrices of ones. */
const square = Effect.fnUntraced(function*(size: number, device = 0) {
  const memory = CudaMemory.allocate(size * size * 4, { device })
  const [a, b, d] = [yield* memory, yield* memory, yield* memory]
  const stream = yield* CudaStream.current(device)
  yield* CudaMemory.fill32(a, 0x3f800000, stream)
  yield* CudaMemory.fill32(b, 0x3f800000, stream)
  yield* CudaStream.synchronize(stream)
  return { a, b, d, plan: yield* CudaBlas.plan({ ...squareOptions(size), device }) }
})

/** The product of ones. */
const isProduct = Effect.fnUntraced(function*(buffer: DeviceBuffer, size: number, stream?: CudaStream.CudaStream) {
  const found = yield* download({ rows: size, columns: size, type: "f32" }, buffer, stream)
  assert.deepStrictEqual(found, found.map(() => size))
})
