/**
 * The stub cuBLASLt (`stub/cublasLt.c`) for tests, and its control.
 */
import { assert } from "@effect/vitest"
import type { definition } from "../../src/internal/blas/library.ts"
import { linesOf, LoadedStub } from "./stub/loaded.ts"
import type { Bound } from "./stub/loaded.ts"

const functions = (bound: Bound) => ({
  records: bound("stub_records", "str", []),
  live: bound("stub_live", "int", ["int"]),
  fail: bound("stub_fail", "void", ["str", "int", "int", "int"]),
  failuresLeft: bound("stub_failures_left", "int", []),
  setResults: bound("stub_set_results", "void", ["int"]),
  setResult: bound("stub_set_result", "void", ["int", "uint64_t", "int"])
})

/** Attributes of a descriptor, by number. */
export type Attributes = { readonly [attribute: string]: number }

/** The type, rows, columns and leading distance of a layout, and the count and distance of its batch. */
export type LayoutRecord = ReadonlyArray<number>

interface ProductRecord {
  /** How sums are computed, and the type of the factors. */
  readonly types: readonly [compute: number, scale: number]
  readonly product: Attributes
  readonly aLayout: LayoutRecord
  readonly bLayout: LayoutRecord
  readonly cLayout: LayoutRecord
  readonly dLayout: LayoutRecord
}

/** What the heuristic was given. */
export interface HeuristicRecord extends ProductRecord {
  readonly call: "heuristic"
  readonly most: number
  readonly preference: Attributes
}

/** What a product was given. */
export interface MatmulRecord extends ProductRecord {
  readonly call: "matmul"
  readonly alpha: number
  readonly beta: number
  readonly a: number
  readonly b: number
  readonly c: number
  readonly d: number
  readonly algorithm: number
  readonly workspace: number
  readonly workspaceSize: number
  readonly stream: number
}

const kinds = ["handles", "products", "layouts", "preferences"] as const

/** One loaded stub, which enqueues through a driver. */
export class StubCublasLt extends LoadedStub<ReturnType<typeof functions>> {
  constructor(driver: string, macros: ReadonlyArray<string> = []) {
    super(driver, { file: "cublasLt.c", name: "libcublasLt", macros }, functions)
  }

  /** What the heuristic and products were given. */
  get records(): ReadonlyArray<HeuristicRecord | MatmulRecord> {
    return linesOf(this.control.records()).map((line): HeuristicRecord | MatmulRecord => JSON.parse(line))
  }

  get heuristics(): ReadonlyArray<HeuristicRecord> {
    return this.records.filter((record) => record.call === "heuristic")
  }

  get products(): ReadonlyArray<MatmulRecord> {
    return this.records.filter((record) => record.call === "matmul")
  }

  get live(): Record<(typeof kinds)[number], number> {
    const [handles = 0, products = 0, layouts = 0, preferences = 0] = kinds.map((_, kind): number =>
      this.control.live(kind)
    )
    return { handles, products, layouts, preferences }
  }

  /** Makes a function return a status: `times` calls (-1: all) after the next `after` calls. */
  fail(name: keyof typeof definition.functions, status: number, { after = 0, times = 1 } = {}): void {
    this.control.fail(name, status, after, times)
  }

  /** The algorithms that the heuristic finds: the bytes of their workspaces, and their states. Their bytes are their number, from 1. */
  set results(results: ReadonlyArray<{ readonly workspace?: number; readonly state?: number }>) {
    this.control.setResults(results.length)
    for (const [index, { state = 0, workspace = 0 }] of results.entries()) {
      this.control.setResult(index, workspace, state)
    }
  }

  /** Asserts that the library was used correctly, and that nothing it made is left. */
  assertReleased(): void {
    const misuse: string = this.control.misuse()
    assert.strictEqual(misuse, "")
    assert.deepStrictEqual(this.live, { handles: 0, products: 0, layouts: 0, preferences: 0 })
    assert.strictEqual(this.control.failuresLeft(), 0, "failures that were asked for and never happened")
  }
}
