// Whatever fails, and whenever: a job ends as it would have without failures.
import { assert, describe, it } from "@effect/vitest"
import { CudaJob, JobStore } from "effect-cuda/cluster"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { passing, serving, storage } from "./support.ts"

/** The state of a rank: every step that it has applied. */
const Applied = Schema.Array(Schema.Int)

const job = CudaJob.make("chaos", {
  size: 3,
  payload: Schema.Struct({ steps: Schema.Int, every: Schema.Int }),
  checkpoint: Applied,
  success: Applied,
  restart: Schedule.spaced("500 millis")
})
type Rank = CudaJob.Rank<{ readonly steps: number; readonly every: number }, ReadonlyArray<number>>

const Fault = Schema.Struct({
  kind: Schema.Literals(["fail", "die", "interrupt", "slow", "supersede"]),
  rank: Schema.Literals([0, 1, 2]),
  /** The fault happens when the rank begins its n-th step, counted over all epochs. */
  at: Schema.Literals([1, 2, 3, 4, 5, 7, 9, 12, 15])
})

const Plan = Schema.Struct({
  faults: Schema.Array(Fault).check(Schema.isMaxLength(5)),
  every: Schema.Literals([1, 2, 3]),
  /** When the runner goes away and another comes, in tenths of a second. */
  restarts: Schema.Array(Schema.Literals([3, 8, 14, 25])).check(Schema.isMaxLength(2))
})

const steps = 8

const faulty = (plan: typeof Plan.Type, supersede: Effect.Effect<unknown, unknown>) => {
  const begun = [0, 0, 0]
  const used = new Set<number>()
  const faultOf = (rank: number) => {
    const count = begun[rank] = (begun[rank] ?? 0) + 1
    const index = plan.faults.findIndex((fault, index) => !used.has(index) && fault.rank === rank && fault.at === count)
    used.add(index)
    return plan.faults[index]?.kind
  }
  const cause = (kind: typeof Fault.Type["kind"] | undefined): Effect.Effect<unknown, unknown> => {
    switch (kind) {
      case "fail":
        return Effect.fail("boom")
      case "die":
        return Effect.die("boom")
      case "interrupt":
        return Effect.interrupt
      case "slow":
        return Effect.sleep("5 seconds")
      case "supersede":
        return supersede
      case undefined:
        return Effect.void
    }
  }
  return (rank: Rank) =>
    Effect.gen(function*() {
      const { every, steps } = rank.payload
      const applied: Array<number> = []
      if (Option.isSome(rank.restored)) applied.push(...rank.restored.value.value)
      assert.strictEqual(applied.length, Option.match(rank.restored, { onNone: () => 0, onSome: ({ step }) => step }))
      for (let step = applied.length; step < steps;) {
        yield* cause(faultOf(rank.rank))
        const sum = yield* rank.gather("sum", Schema.Int, step * 10 + rank.rank)
        applied.push(sum.reduce((total, value) => total + value, 0))
        yield* Effect.sleep("100 millis")
        step++
        if (step % every === 0) yield* rank.checkpoint(step, applied)
      }
      return applied
    })
}

describe("random failures", () => {
  it.effect.prop("end as without failures, with each step applied once", [Plan], ([plan]) =>
    Effect.gen(function*() {
      const stored = yield* Layer.build(Layer.fresh(storage))
      const store = yield* Effect.provideContext(JobStore.JobStore, stored)
      // Another coordinator begins an epoch, and is never heard of again.
      const program = faulty(plan, store.begin("chaos/a"))
      const layer = serving(job, program, [0, 1, 2]).pipe(Layer.provide(Layer.succeedContext(stored)))
      const run = CudaJob.run(job, { id: "a", payload: { steps, every: plan.every } })
      for (const tenths of plan.restarts) {
        const scope = yield* Scope.make()
        const context = yield* Layer.buildWithScope(layer, scope)
        yield* Effect.forkChild(Effect.provideContext(run, context))
        yield* TestClock.adjust(`${100 * tenths} millis`)
        yield* passing(Scope.close(scope, Exit.void))
      }
      const result = yield* passing(Effect.provide(run, layer))
      const expected = Array.from({ length: steps }, (_, step) => 30 * step + 3)
      assert.deepStrictEqual(result, [expected, expected, expected])
    }), { arbitrary: { runs: 100, size: 20 }, timeout: 120_000 })
})
