/**
 * The stub NCCL (`stub/nccl.c`) for tests, and its control.
 */
import { assert } from "@effect/vitest"
import type { definition } from "../../src/internal/nccl/library.ts"
import { linesOf, LoadedStub } from "./stub/loaded.ts"
import type { Bound } from "./stub/loaded.ts"

const functions = (bound: Bound) => ({
  records: bound("stub_records", "str", []),
  live: bound("stub_live", "int", []),
  setQuestions: bound("stub_set_questions", "void", ["int"]),
  setStuck: bound("stub_set_stuck", "void", ["int"]),
  setVersion: bound("stub_set_version", "void", ["int"]),
  setError: bound("stub_set_error", "void", ["uintptr_t", "int"]),
  fail: bound("stub_fail", "void", ["str", "int", "int"])
})

/** What a call was given. */
export interface NcclRecord {
  readonly call: string
  readonly rank: number
  readonly blocking: number
  readonly from: number
  readonly to: number
  readonly count: number
  readonly type: number
  readonly op: number
  readonly other: number
  readonly stream: number
  readonly grouped: number
}

/** One loaded stub, which enqueues through a driver. */
export class StubNccl extends LoadedStub<ReturnType<typeof functions>> {
  constructor(driver: string, macros: ReadonlyArray<string> = []) {
    super(driver, { file: "nccl.c", name: "libnccl", macros }, functions)
  }

  /** What collectives, splits and shrinks were given. */
  get records(): ReadonlyArray<NcclRecord> {
    return linesOf(this.control.records()).map((line): NcclRecord => JSON.parse(line))
  }

  /** The communicators that are not destroyed. */
  get live(): number {
    return this.control.live()
  }

  /** How often a non-blocking communicator is asked before it is ready. */
  set questions(count: number) {
    this.control.setQuestions(count)
  }

  /** Whether non-blocking communicators are never ready, as those whose other ranks do not come. */
  set isStuck(value: boolean) {
    this.control.setStuck(value ? 1 : 0)
  }

  set version(version: number) {
    this.control.setVersion(version)
  }

  /** Makes a communicator fail. */
  failCommunicator(handle: number, status: number): void {
    this.control.setError(handle, status)
  }

  /** Makes the calls of a function return a status, after the next `after`. */
  fail(name: keyof typeof definition.functions, status: number, after = 0): void {
    this.control.fail(name, status, after)
  }

  /** Asserts that the library was used correctly, and that nothing it made is left. */
  assertReleased(): void {
    const misuse: string = this.control.misuse()
    assert.strictEqual(misuse, "")
    assert.strictEqual(this.live, 0, "communicators that were not destroyed")
  }
}
