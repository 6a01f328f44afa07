// A job on two runner processes, with the cluster's storage and the job's in PostgreSQL or SQLite. Needs Node.js 22.19, for
// `@effect/platform-node`.
import { assert, describe, it } from "@effect/vitest"
import { CudaJob } from "effect-cuda/cluster"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { fileURLToPath } from "node:url"
import { expected, job } from "./process/job.ts"
import { hasPostgres, postgres } from "./process/postgres.ts"
import { hasPlatform, inSqlite, kill, says, startRunner, until } from "./process/processes.ts"
import type { Runner } from "./process/processes.ts"

const script = fileURLToPath(new URL("./process/runner.ts", import.meta.url))

/** The latest epoch that any of them has seen. */
const epochOf = (runners: ReadonlyArray<Runner>) =>
  Math.max(0, ...runners.flatMap(({ said }) => said.map((line) => Number(/epoch (\d+)/.exec(line)?.[1] ?? 0))))

/** Whether it was the last to begin an epoch. */
const leads = (runner: Runner, _: number, all: ReadonlyArray<Runner>) =>
  says(runner, `coordinator epoch ${epochOf(all)}`)

/** Runs the job on two runners, kills the one that `victim` picks after ten steps, and starts a third. */
const killed = (
  storage: Effect.Effect<string, unknown, Scope.Scope>,
  victim: (runner: Runner, index: number, all: ReadonlyArray<Runner>) => boolean
) =>
  Effect.gen(function*() {
    const steps = 60
    const cluster = yield* Effect.promise(() => import("./process/cluster.ts"))
    const database = yield* storage
    const runners = [yield* startRunner(script, database, 0), yield* startRunner(script, database, 1)]
    const result = yield* Effect.gen(function*() {
      const run = yield* Effect.forkChild(CudaJob.run(job, { id: "first", payload: { steps } }))
      // The first epoch may have ended when the second runner took over shards of the first.
      yield* until(() => runners.every((runner) => says(runner, "step 10")))
      const before = epochOf(runners)
      const dying = runners.find(victim)
      if (dying === undefined) return assert.fail("no runner to kill")
      yield* kill(dying.child)
      runners.push(yield* startRunner(script, database, 2))
      const result = yield* Effect.timeout(Fiber.join(run), "80 seconds")
      assert.deepStrictEqual(yield* CudaJob.run(job, { id: "first", payload: { steps } }), result, "the stored result")
      for (const { epoch } of result) assert.isAbove(epoch, before)
      return result
    }).pipe(Effect.provide(cluster.client(database)))
    for (const { restored, total } of result) {
      assert.strictEqual(total, expected(steps))
      assert.isAtLeast(restored, 10)
    }
    assert.isTrue(runners.some((runner) => says(runner, "device 2")))
  }).pipe(Effect.scoped)

const inPostgres = Effect.map(postgres, String)

/** Stops the coordinator's process for a while, so that it comes back to a cluster that has gone on without it. */
const frozen = (storage: Effect.Effect<string, unknown, Scope.Scope>) =>
  Effect.gen(function*() {
    const steps = 400
    const cluster = yield* Effect.promise(() => import("./process/cluster.ts"))
    const database = yield* storage
    const runners = [yield* startRunner(script, database, 0), yield* startRunner(script, database, 1)]
    const result = yield* Effect.gen(function*() {
      const run = yield* Effect.forkChild(CudaJob.run(job, { id: "first", payload: { steps } }))
      yield* until(() => runners.every((runner) => says(runner, "step 10")))
      const before = epochOf(runners)
      const sleeper = runners.find(leads)
      if (sleeper === undefined) return assert.fail("no coordinator to stop")
      sleeper.child.kill("SIGSTOP")
      const others = [...runners.filter((runner) => runner !== sleeper), yield* startRunner(script, database, 2)]
      yield* until(() =>
        others.every((runner) => says(runner, `epoch ${epochOf(others)} step`) && epochOf(others) > before)
      )
      const said = sleeper.said.length
      sleeper.child.kill("SIGCONT")
      const result = yield* Effect.timeout(Fiber.join(run), "100 seconds")
      const late = sleeper.said.slice(said).filter((line) => line.includes(`epoch ${before} step`))
      assert.deepStrictEqual(late, [], "the old epoch has no further checkpoint")
      return result
    }).pipe(Effect.provide(cluster.client(database)))
    for (const { total } of result) assert.strictEqual(total, expected(steps))
  }).pipe(Effect.scoped)

describe("two runner processes", () => {
  it.live.skipIf(!hasPlatform || !hasPostgres)(
    "the runner without the coordinator is killed, PostgreSQL",
    () => killed(inPostgres, (...runner) => !leads(...runner)),
    180_000
  )

  it.live.skipIf(!hasPlatform || !hasPostgres)(
    "the runner with the coordinator is killed, PostgreSQL",
    () => killed(inPostgres, leads),
    180_000
  )

  it.live.skipIf(!hasPlatform)(
    "the runner with the coordinator is killed, SQLite",
    () => killed(inSqlite, leads),
    180_000
  )

  it.live.skipIf(!hasPlatform || !hasPostgres)(
    "the coordinator's runner stands still and comes back, PostgreSQL",
    () => frozen(inPostgres),
    240_000
  )
})
