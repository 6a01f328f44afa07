/**
 * Matrix products on the driver with a stub of cuBLASLt: what the library is given, and the lifetimes of what it needs.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaBlas, CudaGraph, CudaLibrary, CudaMemory, CudaMemoryPool, CudaStream, SimulatedRuntime } from "effect-cuda"
import type { Matrix, MatrixType, PlanOptions } from "effect-cuda/CudaBlas"
import type { CudaError } from "effect-cuda/CudaError"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { CudaRuntimeService } from "effect-cuda/CudaRuntime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { MaxOpsBeforeYield } from "effect/References"
import * as Scope from "effect/Scope"
import { statuses } from "../../src/cuda/status.ts"
import { definition } from "../../src/internal/blas/library.ts"
import { failsWith, refuses } from "../support/assertions.ts"
import { started } from "../support/fibers.ts"
import { StubCublasLt } from "../support/stubCublasLt.ts"
import type { HeuristicRecord, LayoutRecord } from "../support/stubCublasLt.ts"
import { logged, onStub, openStub, pause, until } from "../support/stubDriver.ts"
import type { StubOptions } from "../support/stubDriver.ts"
import { openRuntime } from "../support/waits.ts"
import { withEveryYield } from "../support/yields.ts"

const stub = openStub()
const blas = new StubCublasLt(stub.path)

/** Runs a program with the stub, and asserts that it was used correctly, and that nothing is left. */
const withBlas = <A, E>(
  program: Effect.Effect<A, E, CudaBlas.CudaBlas | CudaRuntime | Scope.Scope>,
  { layer = {}, prepare, ...options }: StubOptions & { readonly layer?: CudaBlas.BlasOptions } = {}
) =>
  Effect.gen(function*() {
    blas.reset()
    const result = yield* onStub(
      stub,
      Effect.scoped(program).pipe(Effect.provide(CudaBlas.layer({ path: blas.path, ...layer }))),
      { prepare, ...options }
    )
    blas.assertReleased()
    return result
  })

/** Like `withBlas`, with a layer around the runtime. */
const withAround = <A, E>(
  around: (runtime: CudaRuntimeService) => CudaRuntimeService,
  program: Effect.Effect<A, E, CudaBlas.CudaBlas | CudaRuntime | Scope.Scope>
) =>
  Effect.gen(function*() {
    blas.reset()
    yield* onStub(
      stub,
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const wrapped = Layer.succeed(CudaRuntime, around(runtime))
        yield* Effect.scoped(program).pipe(
          Effect.provide(CudaBlas.layer({ path: blas.path }).pipe(Layer.provideMerge(wrapped)))
        )
      })
    )
    blas.assertReleased()
  })

const square = (type: MatrixType = "f32", size = 16): PlanOptions => {
  const matrix: Matrix = { rows: size, columns: size, type }
  return { a: matrix, b: matrix, d: matrix }
}

/** Memory for the operands of a square product. */
const memory = (byteLength = 1024) =>
  Effect.all({
    a: CudaMemory.allocate(byteLength),
    b: CudaMemory.allocate(byteLength),
    d: CudaMemory.allocate(byteLength)
  })

const mebi = 2 ** 20

const elementsOf = ({ batch = { count: 1, stride: 0 }, columns, leading, order = "row", rows }: Matrix): number => {
  const [lines, length] = order === "row" ? [rows, columns] : [columns, rows]
  return (batch.count - 1) * batch.stride + (lines - 1) * (leading ?? length) + length
}

const valuesOf = (count: number, factor: number) => Array.from({ length: count }, (_, index) => index * factor % 13 - 6)

/** What cuBLASLt computes by its documentation: layouts are in column order, and operands are transposed by attributes 3 and 4. */
const computed = (record: HeuristicRecord, a: ReadonlyArray<number>, b: ReadonlyArray<number>) => {
  const { aLayout, bLayout, dLayout, product } = record
  const element = (values: ReadonlyArray<number>, layout: LayoutRecord, batch: number, row: number, column: number) =>
    values[batch * (layout[5] ?? 0) + column * layout[3]! + row]!
  const [rows, columns] = [dLayout[1]!, dLayout[2]!]
  const depth = product["3"] === 1 ? aLayout[1]! : aLayout[2]!
  const results = new Map<number, number>()
  for (let batch = 0; batch < (dLayout[4] ?? 1); batch++) {
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        let sum = 0
        for (let k = 0; k < depth; k++) {
          const left = product["3"] === 1
            ? element(a, aLayout, batch, k, row)
            : element(a, aLayout, batch, row, k)
          const right = product["4"] === 1
            ? element(b, bLayout, batch, column, k)
            : element(b, bLayout, batch, k, column)
          sum += left * right
        }
        results.set(batch * (dLayout[5] ?? 0) + column * dLayout[3]! + row, sum)
      }
    }
  }
  return results
}

/** The product by the options of the plan. */
const expected = (options: PlanOptions, a: ReadonlyArray<number>, b: ReadonlyArray<number>) => {
  const { d, transposeA = false, transposeB = false } = options
  const at = (layout: Matrix, batch: number, row: number, column: number) => {
    const { columns, leading, order = "row", rows } = layout
    const line = leading ?? (order === "row" ? columns : rows)
    return batch * (layout.batch?.stride ?? 0) + (order === "row" ? row * line + column : column * line + row)
  }
  const depth = transposeA ? options.a.rows : options.a.columns
  const results = new Map<number, number>()
  for (let batch = 0; batch < (d.batch?.count ?? 1); batch++) {
    for (let row = 0; row < d.rows; row++) {
      for (let column = 0; column < d.columns; column++) {
        let sum = 0
        for (let k = 0; k < depth; k++) {
          const left = transposeA ? at(options.a, batch, k, row) : at(options.a, batch, row, k)
          const right = transposeB ? at(options.b, batch, column, k) : at(options.b, batch, k, column)
          sum += a[left]! * b[right]!
        }
        results.set(at(d, batch, row, column), sum)
      }
    }
  }
  return results
}

const sorted = (results: ReadonlyMap<number, number>) => [...results].sort(([one], [other]) => one - other)

/** What comes between the check of a product and its call. `gate` holds back the next call of a member of the runtime. */
const withGate = (
  name: "memoryEnqueue" | "memoryAllocate",
  program: (gates: {
    readonly gate: <A, E, R>(
      effect: Effect.Effect<A, E, R>
    ) => Effect.Effect<Effect.Effect<A, E>, never, R>
  }) => Effect.Effect<void, CudaError, CudaBlas.CudaBlas | CudaRuntime | Scope.Scope>
) => {
  let next: { readonly reached: Deferred.Deferred<void>; readonly open: Deferred.Deferred<void> } | undefined
  const hold = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
    Effect.suspend(() => {
      if (next === undefined) return effect
      const { open, reached } = next
      next = undefined
      return Deferred.succeed(reached, undefined).pipe(Effect.andThen(Deferred.await(open)), Effect.andThen(effect))
    })
  const gate = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.gen(function*() {
      const gates = { reached: yield* Deferred.make<void>(), open: yield* Deferred.make<void>() }
      next = gates
      const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
      yield* Deferred.await(gates.reached)
      return Effect.andThen(Deferred.succeed(gates.open, undefined), Fiber.join(fiber))
    })
  return withAround((runtime) => ({
    ...runtime,
    memoryEnqueue: (work, call, stream) =>
      name === "memoryEnqueue"
        ? hold(runtime.memoryEnqueue(work, call, stream))
        : runtime.memoryEnqueue(work, call, stream),
    memoryAllocate: (device, byteLength, options) =>
      name === "memoryAllocate"
        ? hold(runtime.memoryAllocate(device, byteLength, options))
        : runtime.memoryAllocate(device, byteLength, options)
  }), program({ gate }))
}

describe("a plan describes", () => {
  it.live("matrices of every order, transposed, with gaps and in batches, as what cuBLASLt computes", () =>
    withBlas(Effect.gen(function*() {
      const orders = ["row", "column"] as const
      let number = 0
      for (
        const [first, second, result] of orders.flatMap((x) => orders.flatMap((y) => orders.map((z) => [x, y, z])))
      ) {
        for (const [transposeA, transposeB] of [[false, false], [false, true], [true, false], [true, true]] as const) {
          const gap = number++ % 3
          const count = 1 + number % 3
          const matrix = (rows: number, columns: number, order = first, broadcast = false): Matrix => {
            const [length, lines] = order === "row" ? [columns, rows] : [rows, columns]
            const leading = length + gap
            const stride = broadcast ? 0 : lines * leading + gap
            return { rows, columns, type: "f32", order, leading, batch: count === 1 ? undefined : { count, stride } }
          }
          const options: PlanOptions = {
            a: transposeA ? matrix(3, 2, first) : matrix(2, 3, first),
            b: transposeB ? matrix(4, 3, second, gap === 1) : matrix(3, 4, second, gap === 1),
            d: matrix(2, 4, result),
            transposeA,
            transposeB
          }
          blas.clear()
          yield* Effect.scoped(CudaBlas.plan(options))
          const record = blas.heuristics[0]!
          const [a, b] = [valuesOf(elementsOf(options.a), 5), valuesOf(elementsOf(options.b), 7)]
          const found = result === "row" ? computed(record, b, a) : computed(record, a, b)
          const what = `${first} ${second} ${result} ${transposeA} ${transposeB}`
          assert.deepStrictEqual(sorted(found), sorted(expected(options, a, b)), what)
          assert.deepStrictEqual(record.cLayout, record.dLayout)
        }
      }
    })))

  it.live("a result in rows with the operands swapped, and one in columns as it is", () =>
    withBlas(Effect.gen(function*() {
      const sizes = {
        a: { rows: 2, columns: 3, type: "f32" },
        b: { rows: 3, columns: 4, type: "f32" },
        d: { rows: 2, columns: 4, type: "f32" }
      } as const
      yield* CudaBlas.plan(sizes)
      const { d } = sizes
      yield* CudaBlas.plan({ ...sizes, d: { ...d, order: "column" } })
      const [rows, columns] = blas.heuristics
      assert.deepStrictEqual([rows!.aLayout, rows!.bLayout, rows!.dLayout], [[0, 4, 3, 4], [0, 3, 2, 3], [0, 4, 2, 4]])
      assert.deepStrictEqual(rows!.product, { 7: 1 })
      assert.deepStrictEqual(
        [columns!.aLayout, columns!.bLayout, columns!.dLayout],
        [[0, 3, 2, 3], [0, 4, 3, 4], [0, 2, 4, 2]]
      )
      assert.deepStrictEqual(columns!.product, { 3: 1, 4: 1, 7: 1 })
    })))

  it.live("the types of numbers, of sums and of factors", () =>
    withBlas(Effect.gen(function*() {
      const typesOf = (a: MatrixType, b: MatrixType, d: MatrixType, compute?: CudaBlas.Compute) =>
        Effect.scoped(Effect.gen(function*() {
          blas.clear()
          const matrix = { rows: 16, columns: 16 }
          yield* CudaBlas.plan({
            a: { ...matrix, type: a },
            b: { ...matrix, type: b },
            d: { ...matrix, type: d },
            compute
          })
          const { aLayout, bLayout, cLayout, dLayout, types } = blas.heuristics[0]!
          // The operands are swapped.
          return [...types, bLayout[0], aLayout[0], cLayout[0], dLayout[0]]
        }))
      assert.deepStrictEqual(yield* typesOf("f64", "f64", "f64"), [70, 1, 1, 1, 1, 1])
      assert.deepStrictEqual(yield* typesOf("f32", "f32", "f32"), [68, 0, 0, 0, 0, 0])
      assert.deepStrictEqual(yield* typesOf("f32", "f32", "f32", "tf32"), [77, 0, 0, 0, 0, 0])
      assert.deepStrictEqual(yield* typesOf("f32", "f32", "f32", "fastF16"), [74, 0, 0, 0, 0, 0])
      assert.deepStrictEqual(yield* typesOf("f32", "f32", "f32", "fastBf16"), [75, 0, 0, 0, 0, 0])
      assert.deepStrictEqual(yield* typesOf("f16", "f16", "f32"), [68, 0, 2, 2, 0, 0])
      assert.deepStrictEqual(yield* typesOf("bf16", "bf16", "bf16"), [68, 0, 14, 14, 14, 14])
      assert.deepStrictEqual(yield* typesOf("i8", "i8", "i32"), [72, 10, 3, 3, 10, 10])
      assert.deepStrictEqual(yield* typesOf("i8", "i8", "i8"), [72, 0, 3, 3, 3, 3])
      assert.deepStrictEqual(yield* typesOf("f8e4m3", "f8e5m2", "f16"), [68, 0, 28, 29, 2, 2])
      assert.deepStrictEqual(yield* typesOf("f8e4m3", "f8e4m3", "f8e4m3"), [68, 0, 28, 28, 14, 28])
    })))

  it.live("the epilogue by its code, and where the auxiliary matrix has its columns", () =>
    withBlas(Effect.gen(function*() {
      const attributesOf = (epilogue: CudaBlas.Epilogue, type: MatrixType = "f16") =>
        Effect.scoped(Effect.gen(function*() {
          blas.clear()
          yield* CudaBlas.plan({ ...square(type, 24), epilogue })
          return blas.heuristics[0]!.product
        }))
      assert.deepStrictEqual(yield* attributesOf({}), { 7: 1 })
      assert.deepStrictEqual(yield* attributesOf({ bias: true }), { 7: 4 })
      assert.deepStrictEqual(yield* attributesOf({ activation: "relu" }), { 7: 2 })
      assert.deepStrictEqual(yield* attributesOf({ activation: "relu", bias: true }), { 7: 6 })
      assert.deepStrictEqual(yield* attributesOf({ activation: "relu", auxiliary: true }), { 7: 130, 12: 128 })
      assert.deepStrictEqual(yield* attributesOf({ activation: "relu", auxiliary: true, bias: true }), {
        7: 134,
        12: 128
      })
      assert.deepStrictEqual(yield* attributesOf({ activation: "gelu" }), { 7: 32 })
      assert.deepStrictEqual(yield* attributesOf({ activation: "gelu", bias: true }), { 7: 36 })
      assert.deepStrictEqual(yield* attributesOf({ activation: "gelu", auxiliary: true }), { 7: 160, 12: 24 })
      assert.deepStrictEqual(yield* attributesOf({ activation: "gelu", auxiliary: true, bias: true }), {
        7: 164,
        12: 24
      })
      assert.deepStrictEqual(yield* attributesOf({ bias: true }, "f8e4m3"), { 7: 4, 26: 14 })
      blas.clear()
      yield* CudaBlas.plan({ ...square("f8e4m3"), fastAccumulation: true })
      assert.deepStrictEqual(blas.heuristics[0]!.product, { 7: 1, 25: 1 })
    })))

  it.live("what algorithms may use: memory by the device, or as the layer says, and the alignment", () =>
    Effect.gen(function*() {
      const preferenceOf = (options: PlanOptions) =>
        Effect.map(CudaBlas.plan(options), () => blas.heuristics.at(-1)!.preference)
      const capability = (major: number): StubOptions => ({ prepare: () => stub.setAttribute(75, major) })
      const usual = { 5: 16, 6: 16, 7: 16, 8: 16 }
      assert.deepStrictEqual(yield* withBlas(preferenceOf(square()), capability(9)), { 1: 32 * mebi, ...usual })
      assert.deepStrictEqual(yield* withBlas(preferenceOf(square()), capability(8)), { 1: 4 * mebi, ...usual })
      const layer = { maxWorkspaceBytes: 5 }
      const given = yield* withBlas(preferenceOf({ ...square(), alignment: 4 }), { layer })
      assert.deepStrictEqual(given, { 1: 5, 5: 4, 6: 4, 7: 4, 8: 4 })
      yield* refuses(withBlas(Effect.void, { layer: { maxWorkspaceBytes: -1 } }), "maxWorkspaceBytes")
    }))
})

describe("a product", () => {
  it.live("is one call with its addresses, factors, algorithm and stream, and the context current", () =>
    withBlas(Effect.gen(function*() {
      const plan = yield* CudaBlas.plan(square())
      const { a, b, d } = yield* memory()
      const [c, stream] = [yield* CudaMemory.allocate(1024), yield* CudaStream.make()]
      blas.clear()
      stub.clear()
      yield* CudaBlas.matmul(plan, { a, b, c, d, alpha: 0.1, beta: 2 }, stream)
      assert.deepStrictEqual(blas.calls, ["cublasLtMatmul context"])
      assert.deepStrictEqual(stub.calls().map(({ name }) => name), [
        "cuCtxPushCurrent_v2",
        "cuMemsetD8Async",
        "cuCtxPopCurrent_v2"
      ])
      const [product] = blas.products
      assert.deepInclude(product, {
        alpha: Math.fround(0.1),
        beta: 2,
        // The result is in rows.
        a: b.address,
        b: a.address,
        c: c.address,
        d: d.address,
        algorithm: 1,
        workspace: 0,
        workspaceSize: 0,
        stream: stream.handle
      })
      const columns = yield* CudaBlas.plan({ ...square(), d: { rows: 16, columns: 16, type: "f32", order: "column" } })
      blas.clear()
      yield* CudaBlas.matmul(columns, { a, b, d, beta: 1 })
      assert.deepInclude(blas.products[0]!, { alpha: 1, beta: 1, a: a.address, b: b.address, c: d.address, stream: 1 })
    })))

  it.live("has factors of the type of its sums", () =>
    withBlas(Effect.gen(function*() {
      const operands = yield* memory(2048)
      const factorsOf = (options: PlanOptions, alpha: number, beta: number) =>
        Effect.gen(function*() {
          const plan = yield* CudaBlas.plan(options)
          yield* CudaBlas.matmul(plan, { ...operands, alpha, beta })
          const { alpha: first, beta: second } = blas.products.at(-1)!
          return [first, second]
        })
      const matrix = { rows: 16, columns: 16 }
      const bytes = { a: { ...matrix, type: "i8" }, b: { ...matrix, type: "i8" } } as const
      assert.deepStrictEqual(yield* factorsOf(square("f64"), 0.1, 0.2), [0.1, 0.2])
      assert.deepStrictEqual(yield* factorsOf(square("f16"), 0.1, 0.2), [Math.fround(0.1), Math.fround(0.2)])
      const whole = { ...bytes, d: { ...matrix, type: "i32" } } as const
      assert.deepStrictEqual(yield* factorsOf(whole, 2 ** 31 - 1, -(2 ** 31)), [2 ** 31 - 1, -(2 ** 31)])
      assert.deepStrictEqual(yield* factorsOf({ ...bytes, d: { ...matrix, type: "i8" } }, 0.5, 0), [0.5, 0])
      yield* refuses(factorsOf(whole, 0.5, 0), "alpha")
      yield* refuses(factorsOf(whole, 1, 2 ** 31), "beta")
    })))

  it.live("without an addend passes the result's address, and none if its type differs", () =>
    withBlas(Effect.gen(function*() {
      const { a, b, d } = yield* memory()
      const c = yield* CudaMemory.allocate(1024)
      const same = yield* CudaBlas.plan(square())
      yield* CudaBlas.matmul(same, { a, b, d })
      yield* CudaBlas.matmul(same, { a, b, c, d })
      assert.deepStrictEqual(blas.products.map((product) => product.c), [d.address, d.address])
      blas.clear()
      const other = yield* CudaBlas.plan(square("f8e4m3"))
      yield* CudaBlas.matmul(other, { a, b, d })
      yield* CudaBlas.matmul(other, { a, b, c, d, beta: 1 })
      assert.deepStrictEqual(blas.products.map((product) => product.c), [0, c.address])
      yield* refuses(CudaBlas.matmul(other, { a, b, d, beta: 1 }), "c")
    })))

  it.live("sets the addresses in its descriptor in the turn of the call, and only if they change", () =>
    withBlas(Effect.gen(function*() {
      const epilogue = { activation: "relu", auxiliary: true, bias: true } as const
      const plan = yield* CudaBlas.plan({ ...square("f16"), epilogue })
      const { a, b, d } = yield* memory()
      const [bias, auxiliary, other] = [
        yield* CudaMemory.allocate(64),
        yield* CudaMemory.allocate(256),
        yield* CudaMemory.allocate(64)
      ]
      const set = "cublasLtMatmulDescSetAttribute context"
      const callsOf = (operands: CudaBlas.Operands) =>
        Effect.gen(function*() {
          blas.clear()
          yield* CudaBlas.matmul(plan, operands)
          return blas.calls.filter((call) => call === set).length
        })
      const operands = { a, b, d, bias, auxiliary }
      assert.strictEqual(yield* callsOf(operands), 2)
      assert.deepInclude(blas.products[0]!.product, { 8: bias.address, 11: auxiliary.address })
      assert.strictEqual(yield* callsOf(operands), 0)
      assert.strictEqual(yield* callsOf({ ...operands, bias: CudaMemory.slice(other, 32) }), 1)
      assert.deepInclude(blas.products[0]!.product, { 8: other.address + 32, 11: auxiliary.address })
      // An address that could not be set is set by the next product.
      blas.fail("cublasLtMatmulDescSetAttribute", 7)
      yield* failsWith(CudaBlas.matmul(plan, operands), "LibraryFailed")
      assert.strictEqual(yield* callsOf(operands), 1)
      assert.deepInclude(blas.products[0]!.product, { 8: bias.address })
    })))

  it.live("swaps the factors of 8-bit floats with the operands, and takes back those that are not given", () =>
    withBlas(Effect.gen(function*() {
      const { a, b, d } = yield* memory()
      const factors = yield* CudaMemory.allocate(64)
      const factor = (index: number) => CudaMemory.slice(factors, 4 * index, 4)
      const scales = { a: factor(0), b: factor(1), c: undefined, d: factor(3) }
      const rows = yield* CudaBlas.plan(square("f8e4m3"))
      yield* CudaBlas.matmul(rows, { a, b, d, scales })
      const { address } = factors
      assert.deepInclude(blas.products[0]!.product, { 17: address + 4, 18: address, 20: address + 12 })
      yield* CudaBlas.matmul(rows, { a, b, d, scales: { b: factor(2) } })
      assert.deepInclude(blas.products[1]!.product, { 17: address + 8, 18: 0, 20: 0 })
      const d8 = { rows: 16, columns: 16, type: "f8e4m3", order: "column" } as const
      const columns = yield* CudaBlas.plan({ ...square("f8e4m3"), d: d8 })
      yield* CudaBlas.matmul(columns, { a, b, d, scales })
      assert.deepInclude(blas.products[2]!.product, { 17: address, 18: address + 4, 20: address + 12 })
      yield* refuses(CudaBlas.matmul(rows, { a, b, d, scales: { c: factor(0) } }), "scales.c")
    })))

  it.live("keeps its memory until its work is done", () =>
    withBlas(Effect.gen(function*() {
      const plan = yield* CudaBlas.plan(square())
      const { a, b } = yield* memory()
      const stream = yield* CudaStream.make()
      stub.work(stream)
      yield* Effect.scoped(Effect.gen(function*() {
        const d = yield* CudaMemory.allocate(1024)
        yield* CudaBlas.matmul(plan, { a, b, d }, stream)
      }))
      stub.finish(stream)
    })))
})

describe("a workspace", () => {
  const needing = (...workspaces: ReadonlyArray<number>) => {
    blas.results = workspaces.map((workspace) => ({ workspace }))
  }
  const buffers = Effect.flatMap(
    CudaRuntime,
    ({ liveResources }) => Effect.map(liveResources, ({ deviceBytes }) => deviceBytes)
  )

  it.live("is made per stream by the first product, and shared by plans", () =>
    withBlas(Effect.gen(function*() {
      needing(mebi)
      const [plan, other] = [yield* CudaBlas.plan(square()), yield* CudaBlas.plan(square())]
      assert.deepStrictEqual([plan.workspaceBytes, plan.waves], [mebi, 0.5])
      const operands = yield* memory()
      const [one, two] = [yield* CudaStream.make(), yield* CudaStream.make()]
      const before = yield* buffers
      for (const stream of [one, one, two]) yield* CudaBlas.matmul(plan, operands, stream)
      yield* CudaBlas.matmul(other, operands, one)
      const used = blas.products.map(({ workspace }) => workspace)
      assert.deepStrictEqual(used, [used[0], used[0], used[2], used[0]])
      assert.notStrictEqual(used[0], used[2])
      assert.strictEqual(yield* buffers, before + 2 * mebi)
    })))

  it.live("grows, and the smaller one is released in the order of its stream", () =>
    withBlas(Effect.gen(function*() {
      const operands = yield* memory()
      const stream = yield* CudaStream.make()
      needing(mebi)
      const small = yield* CudaBlas.plan(square())
      const before = yield* buffers
      stub.work(stream)
      yield* CudaBlas.matmul(small, operands, stream)
      needing(3 * mebi)
      const large = yield* CudaBlas.plan(square())
      yield* CudaBlas.matmul(large, operands, stream)
      assert.strictEqual(yield* buffers, before + 3 * mebi)
      stub.finish(stream)
      needing(mebi)
      yield* CudaBlas.matmul(small, operands, stream)
      const [, second, third] = blas.products
      assert.strictEqual(third!.workspace, second!.workspace)
      assert.deepStrictEqual([third!.workspaceSize, yield* buffers], [mebi, before + 3 * mebi])
    })))

  it.live("of a stream that is gone is released by the next one", () =>
    withBlas(Effect.gen(function*() {
      needing(mebi)
      const plan = yield* CudaBlas.plan(square())
      const operands = yield* memory()
      const before = yield* buffers
      for (let round = 0; round < 5; round++) {
        yield* Effect.scoped(Effect.flatMap(CudaStream.make(), (stream) => CudaBlas.matmul(plan, operands, stream)))
        assert.strictEqual(yield* buffers, before + mebi)
      }
    })))

  it.live("of a stream of other code is released by those of many others, since nobody says that it is gone", () =>
    withBlas(Effect.gen(function*() {
      needing(mebi)
      const plan = yield* CudaBlas.plan(square())
      const operands = yield* memory()
      const own = yield* CudaStream.make()
      yield* CudaBlas.matmul(plan, operands, own)
      const before = yield* buffers
      for (let round = 0; round < 40; round++) {
        const stream = yield* CudaStream.fromHandle(stub.foreignStream(0))
        yield* CudaBlas.matmul(plan, operands, stream)
        yield* CudaBlas.matmul(plan, operands, stream)
      }
      assert.strictEqual(yield* buffers, before + 16 * mebi)
      yield* CudaBlas.matmul(plan, operands, own)
      const used = blas.products.map(({ workspace }) => workspace)
      assert.strictEqual(used.at(-1), used[0])
      assert.strictEqual(used.at(-2), used.at(-3))
    })))

  it.live("is not made for a stream of another runtime", () =>
    withBlas(Effect.gen(function*() {
      needing(mebi)
      const plan = yield* CudaBlas.plan(square())
      const operands = yield* memory()
      const before = yield* buffers
      const stream = yield* CudaStream.make().pipe(Effect.provide(SimulatedRuntime.layer()))
      yield* failsWith(CudaBlas.matmul(plan, operands, stream), "ForeignResource")
      assert.strictEqual(yield* buffers, before)
    })))

  it.live("is memory of the device's pool, and is released with the layer", () =>
    Effect.gen(function*() {
      blas.reset()
      yield* onStub(
        stub,
        Effect.gen(function*() {
          needing(mebi)
          const operands = yield* memory()
          const [stream, before] = [yield* CudaStream.make(), yield* buffers]
          const pool = yield* CudaMemoryPool.ofDevice()
          stub.clear()
          const product = Effect.gen(function*() {
            yield* CudaBlas.matmul(yield* CudaBlas.plan(square()), operands, stream)
            assert.strictEqual(yield* buffers, before + mebi)
          })
          yield* Effect.scoped(product).pipe(Effect.provide(CudaBlas.layer({ path: blas.path })))
          const [allocation] = stub.calls("cuMemAllocFromPoolAsync")
          assert.deepStrictEqual(allocation!.args.slice(1, 3), [mebi, pool.handle])
          assert.strictEqual(yield* buffers, before)
        })
      )
      blas.assertReleased()
    }))

  it.live("is not made for a stream that is gone", () =>
    withBlas(Effect.gen(function*() {
      needing(mebi)
      const plan = yield* CudaBlas.plan(square())
      const operands = yield* memory()
      const stream = yield* Effect.scoped(CudaStream.make())
      const before = yield* buffers
      yield* failsWith(CudaBlas.matmul(plan, operands, stream), "ResourceReleased")
      assert.strictEqual(yield* buffers, before)
    })))

  it.live("that does not fit fails with OutOfMemory, in the name of the product", () =>
    withBlas(
      Effect.gen(function*() {
        needing(64 * mebi)
        const plan = yield* CudaBlas.plan(square())
        const error = yield* Effect.flip(CudaBlas.matmul(plan, yield* memory()))
        assert.deepStrictEqual([error.reason._tag, error.operation], ["OutOfMemory", "CudaBlas.matmul"])
      }),
      { prepare: () => void (stub.memory = 16 * mebi) }
    ))

  it.live("of recorded products belongs to the plan, and orders the launches", () =>
    withBlas(Effect.gen(function*() {
      needing(mebi)
      const operands = yield* memory()
      const other = yield* memory()
      const before = yield* buffers
      const scope = yield* Scope.make()
      const plan = yield* CudaBlas.plan(square()).pipe(Scope.provide(scope))
      const stream = yield* CudaStream.make()
      yield* CudaBlas.matmul(plan, operands, stream)
      const record = (given: typeof operands) => CudaGraph.record(CudaBlas.matmul(plan, given))
      const graphs = [yield* record(operands), yield* record(other)]
      const [direct, first, second] = blas.products
      assert.strictEqual(first!.workspace, second!.workspace)
      assert.notStrictEqual(direct!.workspace, first!.workspace)
      const captures = stub.calls("cuStreamBeginCapture_v2").map(({ args }) => args[0])
      assert.deepStrictEqual(captures, [first!.stream, second!.stream])
      assert.strictEqual(yield* buffers, before + 2 * mebi)
      const [one, two] = [
        yield* CudaGraph.instantiate(graphs[0]!),
        yield* CudaGraph.instantiate(graphs[1]!)
      ]
      yield* CudaGraph.launch(one, stream)
      stub.clear()
      yield* CudaGraph.launch(two, yield* CudaStream.make())
      assert.lengthOf(stub.calls("cuStreamWaitEvent"), 1)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(yield* buffers, before + mebi)
      yield* failsWith(CudaGraph.launch(one, stream), "ResourceReleased")
    })))

  it.live("is one for two products that begin at once", () =>
    withBlas(withEveryYield((operations) =>
      Effect.gen(function*() {
        needing(mebi)
        const plan = yield* CudaBlas.plan(square())
        const operands = yield* memory()
        const before = yield* buffers
        const stream = yield* CudaStream.make()
        const product = CudaBlas.matmul(plan, operands, stream).pipe(
          Effect.provideService(MaxOpsBeforeYield, operations)
        )
        yield* Effect.all([product, product, product], { concurrency: "unbounded" })
        assert.isAtMost(yield* buffers, before + 2 * mebi)
      }).pipe(Effect.scoped)
    )))

  it.live("that another product replaces meanwhile is not needed by a product that was prepared with it", () =>
    withGate("memoryEnqueue", ({ gate }) =>
      Effect.gen(function*() {
        needing(mebi)
        const small = yield* CudaBlas.plan(square())
        const operands = yield* memory()
        const stream = yield* CudaStream.make()
        yield* CudaBlas.matmul(small, operands, stream)
        const waiting = yield* gate(CudaBlas.matmul(small, operands, stream))
        blas.results = [{ workspace: 3 * mebi }]
        const large = yield* CudaBlas.plan(square())
        yield* CudaBlas.matmul(large, operands, stream)
        needing(mebi)
        yield* waiting
      })))
})

describe("algorithms", () => {
  it.live("are asked for once, off the JS thread, and the first that is good is taken", () =>
    withBlas(Effect.gen(function*() {
      blas.results = [{ workspace: 64, state: 15 }, { workspace: 128, state: 7 }, { workspace: 256 }, {
        workspace: 512
      }]
      const plan = yield* CudaBlas.plan({ ...square(), tune: 4 })
      assert.strictEqual(blas.heuristics[0]!.most, 4)
      assert.include(blas.calls, "cublasLtMatmulAlgoGetHeuristic off")
      assert.oneOf(plan.workspaceBytes, [256, 512])
      blas.clear()
      blas.results = [{ state: 15 }, {}]
      const error = yield* Effect.flip(CudaBlas.plan(square()))
      assert.strictEqual(blas.heuristics[0]!.most, 1)
      assert.deepStrictEqual([error.operation, error.call], ["CudaBlas.plan", "cublasLtMatmulAlgoGetHeuristic"])
      assert.include(error.message, "CUBLAS_STATUS_NOT_SUPPORTED (15)")
    })))

  it.live("that are not found, with a status or without, leave nothing", () =>
    withBlas(Effect.gen(function*() {
      blas.results = []
      const none = yield* failsWith(Effect.scoped(CudaBlas.plan(square())), "LibraryFailed")
      assert.deepInclude(none, { library: "cuBLASLt", code: 15, name: "CUBLAS_STATUS_NOT_SUPPORTED" })
      assert.deepStrictEqual(blas.live, { handles: 1, products: 0, layouts: 0, preferences: 0 })
    })))

  it.live("are timed as graphs, and their memory is released, also if some fail", () =>
    withBlas(Effect.gen(function*() {
      const { liveResources } = yield* CudaRuntime
      const before = yield* liveResources
      blas.results = [{ workspace: mebi }, { workspace: 2 * mebi }, {}]
      const epilogue = { activation: "relu", auxiliary: true, bias: true } as const
      yield* CudaBlas.plan({ ...square("f16"), epilogue, tune: 3 })
      const recorded = blas.products.map(({ algorithm }) => algorithm)
      assert.deepStrictEqual([...new Set(recorded)], [1, 2, 3])
      assert.lengthOf(recorded, 3 * 10)
      assert.deepStrictEqual({ ...(yield* liveResources), handles: 0 }, before)
      blas.clear()
      blas.fail("cublasLtMatmul", 13, { times: 3 })
      const plan = yield* CudaBlas.plan({ ...square(), tune: 3 })
      assert.oneOf(plan.workspaceBytes, [0, mebi, 2 * mebi])
      blas.fail("cublasLtMatmul", 15, { times: -1 })
      assert.strictEqual((yield* CudaBlas.plan({ ...square(), tune: 3 })).workspaceBytes, mebi)
      blas.fail("cublasLtMatmul", 0, { times: 0 })
      assert.deepStrictEqual({ ...(yield* liveResources), handles: 0 }, before)
    })))

  it.live("whose workspace does not fit are left out by tuning", () =>
    withBlas(
      Effect.gen(function*() {
        blas.results = [{ workspace: 64 * mebi }, {}]
        const plan = yield* CudaBlas.plan({ ...square(), tune: 2 })
        assert.strictEqual(plan.workspaceBytes, 0)
      }),
      { prepare: () => void (stub.memory = 16 * mebi) }
    ))
})

const planFunctions = [
  ["cublasLtCreate", 1],
  ["cublasLtMatmulDescCreate", 1],
  ["cublasLtMatmulDescSetAttribute", 3],
  ["cublasLtMatrixLayoutCreate", 4],
  ["cublasLtMatrixLayoutSetAttribute", 8],
  ["cublasLtMatmulPreferenceCreate", 1],
  ["cublasLtMatmulPreferenceSetAttribute", 5],
  ["cublasLtMatmulAlgoGetHeuristic", 1]
] as const

const batched = (): PlanOptions => {
  const matrix: Matrix = { rows: 16, columns: 16, type: "f32", batch: { count: 2, stride: 256 } }
  return { a: matrix, b: { ...matrix, order: "column" }, d: matrix, transposeA: true, epilogue: { bias: true } }
}

describe("a failure", () => {
  for (const [name, count] of planFunctions) {
    it.live(`of ${name} fails the plan, and leaves nothing`, () =>
      withBlas(Effect.gen(function*() {
        const { liveResources } = yield* CudaRuntime
        for (let after = 0; after < count; after++) {
          const before = blas.live
          blas.fail(name, 3, { after })
          const error = yield* Effect.flip(Effect.scoped(CudaBlas.plan(batched())))
          assert.deepStrictEqual([error.operation, error.call, error.isRetryable], ["CudaBlas.plan", name, true])
          assert.deepInclude(error.reason, { library: "cuBLASLt", code: 3, name: "CUBLAS_STATUS_ALLOC_FAILED" })
          assert.deepStrictEqual({ ...blas.live, handles: before.handles }, before)
        }
        // Each call was made to fail, and the next plan succeeds.
        yield* CudaBlas.plan(batched())
        assert.strictEqual((yield* liveResources).handles, 1)
      })))
  }

  it.live("of a destruction is logged", () =>
    Effect.gen(function*() {
      for (
        const name of [
          "cublasLtMatmulDescDestroy",
          "cublasLtMatrixLayoutDestroy",
          "cublasLtMatmulPreferenceDestroy"
        ] as const
      ) {
        blas.reset()
        const { lines } = yield* logged(onStub(
          stub,
          Effect.gen(function*() {
            blas.fail(name, 7)
            yield* Effect.scoped(CudaBlas.plan(square()))
          }).pipe(Effect.provide(CudaBlas.layer({ path: blas.path })))
        ))
        assert.lengthOf(lines, 1)
        assert.include(lines[0], `${name} returned CUBLAS_STATUS_INVALID_VALUE (7)`)
      }
    }))

  it.live("of a product fails it with the library's name, and its uses are known", () =>
    withBlas(Effect.gen(function*() {
      const plan = yield* CudaBlas.plan(square())
      const { a, b } = yield* memory()
      const d = yield* CudaMemory.allocate(1024, { ordered: true })
      const [one, other] = [yield* CudaStream.make(), yield* CudaStream.make()]
      blas.fail("cublasLtMatmul", 14)
      stub.clear()
      const error = yield* Effect.flip(CudaBlas.matmul(plan, { a, b, d }, one))
      assert.strictEqual(
        error.message,
        `CudaBlas.matmul (${one.ref}): cublasLtMatmul returned CUBLAS_STATUS_INTERNAL_ERROR (14): ` +
          "an internal operation of the library failed."
      )
      const mark = stub.calls("cuEventRecord")[0]!.args[0]!
      stub.clear()
      yield* CudaMemory.fill(d, 1, other)
      assert.deepStrictEqual(stub.lines()[0], ["cuStreamWaitEvent", other.handle, mark, 0])
    })))

  it.live("of a product in a recording leaves no graph and no stream", () =>
    withBlas(Effect.gen(function*() {
      const plan = yield* CudaBlas.plan(square())
      const operands = yield* memory()
      const { graphs, streams } = stub.live
      blas.fail("cublasLtMatmul", 14)
      stub.clear()
      yield* failsWith(CudaGraph.record(CudaBlas.matmul(plan, operands)), "LibraryFailed")
      // Asking the captured stream about a fault would end the capture with another failure.
      assert.deepStrictEqual(stub.calls("cuStreamQuery"), [])
      assert.deepStrictEqual([stub.live.graphs, stub.live.streams], [graphs, streams])
      const graph = yield* CudaGraph.record(CudaBlas.matmul(plan, operands))
      assert.deepStrictEqual(graph.nodes.map((node) => node.name), ["matmul"])
    })))

  it.live("behind which a context was lost has its origin", () =>
    logged(withBlas(Effect.gen(function*() {
      const plan = yield* CudaBlas.plan(square())
      const operands = yield* memory()
      const stream = yield* CudaStream.make()
      for (const code of [13, 14]) {
        blas.fail("cublasLtMatmul", code)
        const harmless = yield* Effect.flip(CudaBlas.matmul(plan, operands, stream))
        assert.deepStrictEqual([harmless.reason._tag, harmless.origin], ["LibraryFailed", undefined])
      }
      blas.fail("cublasLtMatmul", 13)
      stub.fail("cuStreamQuery", statuses.IllegalAddress.code)
      const error = yield* Effect.flip(CudaBlas.matmul(plan, operands, stream))
      assert.strictEqual(error.reason._tag, "LibraryFailed")
      assert.strictEqual(error.origin?.status.code, statuses.IllegalAddress.code)
      assert.strictEqual(error.origin?.operation, "CudaBlas.matmul")
    }))))
})

describe("the library", () => {
  it.live("is loaded with the layer, and opens no device", () =>
    withBlas(
      Effect.gen(function*() {
        const service = yield* CudaBlas.CudaBlas
        assert.deepStrictEqual([service.path, service.version], [blas.path, "13.1.2"])
        assert.deepStrictEqual(blas.calls, ["cublasLtGetVersion"])
        assert.deepStrictEqual(stub.calls("cuDevicePrimaryCtxRetain"), [])
        yield* CudaBlas.plan({ ...square(), device: 1 })
        assert.lengthOf(stub.calls("cuDevicePrimaryCtxRetain"), 1)
      }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("that is not found fails the layer, and one without a function the plan", () =>
    Effect.gen(function*() {
      const missing = withBlas(Effect.void, { layer: { path: "/nowhere/libcublasLt.so" } })
      assert.strictEqual((yield* failsWith(missing, "LibraryUnavailable")).library, "cuBLASLt")
      const old = new StubCublasLt(stub.path, ["STUB_OLD"])
      const reason = yield* failsWith(
        withBlas(CudaBlas.plan(square()), { layer: { path: old.path } }),
        "FunctionMissing"
      )
      assert.strictEqual(reason.functionName, "cublasLtMatmulAlgoGetHeuristic")
      old.assertReleased()
    }))

  it.live("makes one handle per device, however many fibers plan at once", () =>
    withBlas(
      withEveryYield((operations) =>
        Effect.gen(function*() {
          const plans = Array.from({ length: 6 }, (_, index) => CudaBlas.plan({ ...square(), device: index % 2 }))
          yield* Effect.all(plans, { concurrency: "unbounded" }).pipe(
            Effect.provideService(MaxOpsBeforeYield, operations)
          )
          assert.strictEqual(blas.live.handles, 2)
        }).pipe(Effect.scoped)
      ),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("makes a handle for the next plan if making the first has failed", () =>
    withBlas(Effect.gen(function*() {
      blas.fail("cublasLtCreate", 1)
      const exits = yield* Effect.all([1, 2, 3].map(() => Effect.exit(CudaBlas.plan(square()))), {
        concurrency: "unbounded"
      })
      assert.lengthOf(exits.filter(Exit.isFailure), 1)
      assert.strictEqual(blas.live.handles, 1)
    })))

  it.live("finds functions that are called as a program likes", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        blas.reset()
        const library = yield* CudaLibrary.load(definition, { path: blas.path })
        const version = yield* CudaLibrary.native(library, "cublasLtGetVersion")
        assert.strictEqual(Number(version?.()), 130102)
        const stream = yield* CudaStream.make()
        const call = (code: number) => CudaMemory.enqueue({ stream, status: library }, () => code)
        yield* call(0)
        const error = yield* Effect.flip(call(7))
        assert.deepInclude(error.reason, { library: "cuBLASLt", code: 7, name: "CUBLAS_STATUS_INVALID_VALUE" })
        stub.fail("cuStreamQuery", statuses.IllegalAddress.code)
        const lost = yield* Effect.flip(call(13))
        assert.strictEqual(lost.origin?.operation, "CudaMemory.enqueue")
        yield* refuses(CudaLibrary.native(library, "cublasLtNothing" as "cublasLtMatmul"), "name")
        yield* refuses(CudaLibrary.native({} as typeof library, "cublasLtMatmul"), "library")
        const old = new StubCublasLt(stub.path, ["STUB_OLD"])
        const oldLibrary = yield* CudaLibrary.load(definition, { path: old.path })
        yield* failsWith(CudaLibrary.native(oldLibrary, "cublasLtMatmulAlgoGetHeuristic"), "FunctionMissing")
      })
    ).pipe(logged))
})

describe("releasing", () => {
  /** A plan, a graph of it, and what closes each of their scopes. */
  const opened = Effect.gen(function*() {
    blas.results = [{ workspace: mebi }]
    const scopes = { layer: yield* Scope.make(), plan: yield* Scope.make(), graph: yield* Scope.make() }
    const services = yield* Layer.buildWithScope(CudaBlas.layer({ path: blas.path }), scopes.layer)
    const plan = yield* CudaBlas.plan(square()).pipe(Effect.provide(services), Scope.provide(scopes.plan))
    const operands = yield* memory()
    const stream = yield* CudaStream.make()
    yield* CudaBlas.matmul(plan, operands, stream)
    const exec = yield* CudaGraph.record(CudaBlas.matmul(plan, operands)).pipe(
      Effect.flatMap((graph) => CudaGraph.instantiate(graph)),
      Scope.provide(scopes.graph)
    )
    yield* CudaGraph.launch(exec, stream)
    return {
      exec,
      operands,
      plan,
      services,
      stream,
      close: (name: keyof typeof scopes) => Scope.close(scopes[name], Exit.void)
    }
  })

  const orders = [
    ["layer", "plan", "graph"],
    ["layer", "graph", "plan"],
    ["plan", "layer", "graph"],
    ["plan", "graph", "layer"],
    ["graph", "layer", "plan"],
    ["graph", "plan", "layer"]
  ] as const

  for (const order of orders) {
    it.live(`the ${order.join(", then the ")} leaves nothing, and later uses fail`, () =>
      Effect.gen(function*() {
        blas.reset()
        yield* onStub(
          stub,
          Effect.gen(function*() {
            const { close, exec, operands, plan, services, stream } = yield* opened
            stub.work(stream)
            for (const name of order) {
              const closing = yield* started(close(name))
              stub.finish(stream)
              yield* Fiber.join(closing)
              if (name === "graph") continue
              const reason = yield* failsWith(CudaBlas.matmul(plan, operands, stream), "ResourceReleased")
              assert.include(
                reason.resource,
                plan.ref.state === "released" ? "a plan for 16 × 16 × 16" : "LibraryHandle"
              )
              if (name === "plan" && order[2] !== "graph") continue
              if (name === "plan") yield* failsWith(CudaGraph.launch(exec, stream), "ResourceReleased")
              else {yield* failsWith(
                  Effect.scoped(CudaBlas.plan(square())).pipe(Effect.provide(services)),
                  "ResourceReleased"
                )}
            }
            blas.assertReleased()
            stub.finishAll()
          })
        )
      }))
  }

  it.live("the runtime first leaves no descriptor", () =>
    Effect.gen(function*() {
      blas.reset()
      stub.reset()
      const { close, use } = yield* openRuntime(stub)
      const scope = yield* Scope.make()
      const outer = yield* Scope.make()
      const plan = yield* use(Effect.gen(function*() {
        const services = yield* Layer.buildWithScope(CudaBlas.layer({ path: blas.path }), outer)
        return yield* CudaBlas.plan(square()).pipe(Effect.provide(services), Scope.provide(scope))
      }))
      const operands = yield* use(memory())
      yield* close
      yield* failsWith(CudaBlas.matmul(plan, operands), "ResourceReleased")
      yield* Scope.close(scope, Exit.void)
      yield* Scope.close(outer, Exit.void)
      blas.assertReleased()
    }))

  it.live("the plan between its check and the call fails the product, and no descriptor is used", () =>
    withGate("memoryEnqueue", ({ gate }) =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const plan = yield* CudaBlas.plan(square()).pipe(Scope.provide(scope))
        const operands = yield* memory()
        const waiting = yield* gate(CudaBlas.matmul(plan, operands))
        yield* Scope.close(scope, Exit.void)
        yield* failsWith(waiting, "ResourceReleased")
        assert.deepStrictEqual(blas.products, [])
      })))

  it.live("the plan while its workspace is made fails the product, and keeps the workspace for others", () =>
    withGate("memoryAllocate", ({ gate }) =>
      Effect.gen(function*() {
        blas.results = [{ workspace: mebi }]
        const operands = yield* memory()
        for (const record of [false, true]) {
          const scope = yield* Scope.make()
          const plan = yield* CudaBlas.plan(square()).pipe(Scope.provide(scope))
          const product = CudaBlas.matmul(plan, operands)
          const waiting = yield* gate(record ? Effect.scoped(CudaGraph.record(product)) : product)
          yield* Scope.close(scope, Exit.void)
          const reason = yield* failsWith(waiting, "ResourceReleased")
          assert.include(reason.resource, "a plan for")
        }
        assert.deepStrictEqual(blas.products, [])
      })))

  it.live("the layer while a workspace is made fails the product", () =>
    withGate("memoryAllocate", ({ gate }) =>
      Effect.gen(function*() {
        blas.results = [{ workspace: mebi }]
        const operands = yield* memory()
        const scope = yield* Scope.make()
        const services = yield* Layer.buildWithScope(CudaBlas.layer({ path: blas.path }), scope)
        const plan = yield* CudaBlas.plan(square()).pipe(Effect.provide(services))
        const waiting = yield* gate(CudaBlas.matmul(plan, operands))
        const closing = yield* started(Scope.close(scope, Exit.void))
        yield* failsWith(waiting, "ResourceReleased")
        yield* Fiber.join(closing)
      })))

  it.live("the plan at any moment of a product is safe", () =>
    withBlas(withEveryYield((operations) =>
      Effect.gen(function*() {
        blas.results = [{ workspace: mebi }]
        const scope = yield* Scope.make()
        const plan = yield* CudaBlas.plan(square()).pipe(Scope.provide(scope))
        const given = yield* memory()
        const stream = yield* CudaStream.make()
        const fiber = yield* Effect.forkChild(Effect.forever(CudaBlas.matmul(plan, given, stream)), {
          startImmediately: true
        }).pipe(Effect.provideService(MaxOpsBeforeYield, operations))
        yield* pause(1)
        yield* Scope.close(scope, Exit.void)
        const error = yield* Effect.flip(Fiber.join(fiber))
        assert.strictEqual(error.reason._tag, "ResourceReleased", error.message)
      }).pipe(Effect.scoped)
    )))
})

describe("what changes", () => {
  it.live("after a product was called is not seen, and getters are read once", () =>
    withGate("memoryAllocate", ({ gate }) =>
      Effect.gen(function*() {
        blas.results = [{ workspace: mebi }]
        const plan = yield* CudaBlas.plan(square())
        const { a, b, d } = yield* memory()
        const small = yield* CudaMemory.allocate(16)
        const operands = { a, b, d, alpha: 2 }
        const waiting = yield* gate(CudaBlas.matmul(plan, operands))
        Object.assign(operands, { a: small, d: small, alpha: "no" })
        yield* waiting
        assert.deepInclude(blas.products[0]!, { b: a.address, a: b.address, d: d.address, alpha: 2 })
        const reads: Array<string> = []
        const read = <A>(name: string, first: A, later: unknown): A => {
          reads.push(name)
          return reads.filter((other) => other === name).length === 1 ? first : later as A
        }
        const part = {
          get buffer() {
            return read("buffer", a, small)
          },
          get offset() {
            return read("offset", 0, 2 ** 40)
          },
          get byteLength() {
            return read("byteLength", 1024, 4)
          }
        }
        yield* CudaBlas.matmul(plan, {
          a: part,
          get b() {
            return read("b", b, small)
          },
          get d() {
            return read("d", d, small)
          },
          get beta() {
            return read("beta", 0, 1)
          }
        })
        assert.deepStrictEqual([...reads].sort(), ["b", "beta", "buffer", "byteLength", "d", "offset"])
        assert.deepInclude(blas.products[1]!, { b: a.address, a: b.address, d: d.address, beta: 0 })
      })))
})

describe("planning", () => {
  it.live("refuses options whose types are bypassed", () =>
    withBlas(Effect.gen(function*() {
      const wrong: ReadonlyArray<readonly [object, string]> = [
        [{ epilogue: null }, "epilogue"],
        [{ epilogue: "relu" }, "epilogue"],
        [{ transposeA: 1 }, "transposeA"],
        [{ transposeB: "no" }, "transposeB"],
        [{ transposeA: null }, "transposeA"],
        [{ fastAccumulation: 1 }, "fastAccumulation"],
        [{ alignment: null }, "alignment"],
        [{ compute: null }, "compute"],
        [{ tune: null }, "tune"],
        [{ a: { ...square().a, batch: null } }, "a.batch"],
        [{ a: { ...square().a, batch: 3 } }, "a.batch"],
        [{ a: { ...square().a, type: ["f32"] } }, "a.type"],
        [{ a: { ...square().a, leading: null } }, "a.leading"],
        [{ a: { ...square().a, rows: 2 ** 31 } }, "a.rows"]
      ]
      for (const [options, argument] of wrong) {
        yield* refuses(Effect.scoped(CudaBlas.plan({ ...square(), ...options })), argument)
      }
      assert.notInclude(blas.calls.join(), "cublasLtCreate")
    })))

  it.live("refuses matrices of more than 2^53 bytes", () =>
    withBlas(Effect.gen(function*() {
      const huge = (fields: Partial<Matrix>) => ({ ...square().a, ...fields })
      const most = Number.MAX_SAFE_INTEGER
      for (
        const a of [
          huge({ leading: most }),
          huge({ batch: { count: 3, stride: most } }),
          huge({ rows: 2 ** 31 - 1, columns: 2 ** 31 - 1 })
        ]
      ) {
        yield* refuses(Effect.scoped(CudaBlas.plan({ ...square(), a })), "a")
      }
    })))

  it.live("promises no alignment that the matrices of a batch do not have, and elements their own", () =>
    withBlas(Effect.gen(function*() {
      const preferenceOf = (options: PlanOptions) =>
        Effect.map(CudaBlas.plan(options), () => blas.heuristics.at(-1)!.preference)
      const batch = (stride: number) => ({ ...square("f32").a, batch: { count: 2, stride } })
      // The result is in rows, so b is first.
      assert.deepInclude(yield* preferenceOf({ a: batch(257), b: batch(0), d: batch(258) }), {
        5: 16,
        6: 4,
        7: 8,
        8: 8
      })
      assert.deepInclude(yield* preferenceOf({ a: batch(2 ** 50 + 2), b: batch(256), d: batch(256) }), { 5: 16, 6: 8 })
      assert.deepInclude(yield* preferenceOf({ ...square("f64"), alignment: 1 }), { 5: 8, 6: 8, 7: 8, 8: 8 })
      const plan = yield* CudaBlas.plan({ ...square("f16"), alignment: 1 })
      const buffer = yield* CudaMemory.allocate(1024)
      const [a, b, d] = [2, 34, 66].map((offset) => CudaMemory.slice(buffer, offset, 512))
      yield* CudaBlas.matmul(plan, { a: a!, b: b!, d: d! })
      // A fault of the GPU would end all contexts.
      yield* refuses(CudaBlas.matmul(plan, { a: CudaMemory.slice(buffer, 1, 512), b: b!, d: d! }), "a")
      yield* refuses(CudaBlas.matmul(plan, { a: a!, b: b!, d: CudaMemory.slice(buffer, 3, 512) }), "d")
    })))

  it.live("cannot be recorded, and leaves nothing", () =>
    withBlas(Effect.gen(function*() {
      yield* failsWith(CudaGraph.record(Effect.scoped(CudaBlas.plan(square()))), "CannotRecord")
      assert.deepStrictEqual({ ...blas.live, handles: 0 }, { handles: 0, products: 0, layouts: 0, preferences: 0 })
    })))

  it.live("that is interrupted while it asks for algorithms keeps the descriptors until the answer", () =>
    withBlas(Effect.gen(function*() {
      blas.delay = 20
      const fiber = yield* started(Effect.scoped(CudaBlas.plan(square())))
      yield* until("the descriptors are made", () => blas.live.preferences === 1)
      yield* pause(2)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(blas.live, { handles: 1, products: 0, layouts: 0, preferences: 0 })
      yield* until("the call has ended", () => blas.calls.includes("cublasLtMatmulAlgoGetHeuristic off"))
    })))

  it.live("in a scope that is closed meanwhile keeps the descriptors until the answer, and makes a released plan", () =>
    withBlas(Effect.gen(function*() {
      blas.delay = 20
      const scope = yield* Scope.make()
      const fiber = yield* started(CudaBlas.plan(square()).pipe(Scope.provide(scope)))
      yield* until("the descriptors are made", () => blas.live.preferences === 1)
      yield* pause(2)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(blas.live.products, 1)
      const plan = yield* Fiber.join(fiber)
      assert.strictEqual(plan.ref.state, "released")
      assert.strictEqual(blas.live.products, 0)
      yield* failsWith(CudaBlas.matmul(plan, yield* memory()), "ResourceReleased")
    })))

  for (const moment of ["before", "during", "after"] as const) {
    it.live(`that is interrupted ${moment} each step leaves nothing`, () =>
      Effect.gen(function*() {
        let reached = true
        for (let step = 1; reached; step++) reached = yield* interruptedAt(step, moment)
      }))
  }
})

/** Plans, tunes and multiplies, and is interrupted at a call of the runtime. Returns whether the call was reached. */
const interruptedAt = (step: number, moment: "before" | "during" | "after") =>
  Effect.gen(function*() {
    blas.reset()
    blas.results = [{ workspace: mebi }, {}]
    const reached = yield* Deferred.make<void>()
    let count = 0
    let enqueued = 0
    const open = Deferred.succeed(reached, undefined)
    const wait = Effect.andThen(open, pause(1))
    const at = <A, E>(call: Effect.Effect<A, E>): Effect.Effect<A, E> =>
      Effect.suspend(() => {
        if (++count !== step) return call
        if (moment === "before") return Effect.andThen(wait, call)
        return moment === "during" ? Effect.andThen(open, call) : Effect.tap(call, () => wait)
      })
    yield* onStub(
      stub,
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const around: CudaRuntimeService = {
          ...runtime,
          libraryLoad: (...parameters) => at(runtime.libraryLoad(...parameters)),
          libraryFunction: (...parameters) => at(runtime.libraryFunction(...parameters)),
          libraryHandle: (...parameters) => at(runtime.libraryHandle(...parameters)),
          libraryRun: (...parameters) => at(runtime.libraryRun(...parameters)),
          memoryAllocate: (...parameters) => at(runtime.memoryAllocate(...parameters)),
          memoryEnqueue: (...parameters) => {
            const call = runtime.memoryEnqueue(...parameters)
            return enqueued++ < 2 ? at(call) : call
          }
        }
        const program = Effect.gen(function*() {
          const plan = yield* CudaBlas.plan({ ...square(), tune: 2 })
          yield* CudaBlas.matmul(plan, yield* memory())
        })
        const services = CudaBlas.layer({ path: blas.path }).pipe(
          Layer.provideMerge(Layer.succeed(CudaRuntime, around))
        )
        const fiber = yield* Effect.forkChild(Effect.scoped(program).pipe(Effect.provide(services)))
        yield* Effect.race(Deferred.await(reached), Fiber.await(fiber))
        yield* Fiber.interrupt(fiber)
        const { deviceBytes, events, handles } = yield* runtime.liveResources
        assert.deepStrictEqual({ deviceBytes, events, handles }, { deviceBytes: 0, events: 0, handles: 0 })
      })
    )
    blas.assertReleased()
    return count >= step
  })
