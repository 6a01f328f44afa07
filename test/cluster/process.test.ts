// A job on two runner processes, with the cluster's storage and the job's in PostgreSQL or SQLite. Needs Node.js 22.19, for `@effect/platform-node`.
import { assert, describe, it } from "@effect/vitest"
import { CudaJob } from "effect-cuda/cluster"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { expected, job } from "./process/job.ts"
import { freePort, hasPostgres, postgres } from "./process/postgres.ts"

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number)
const hasPlatform = major > 22 || (major === 22 && minor >= 19)

/** A runner process, and what it has said. */
interface Runner {
  readonly child: ChildProcess
  readonly said: Array<string>
}

const startRunner = (database: string, device: number) =>
  Effect.flatMap(freePort, (port) =>
    Effect.acquireRelease(
      Effect.sync((): Runner => {
        const script = fileURLToPath(new URL("./process/runner.ts", import.meta.url))
        const child = spawn(process.execPath, [script, String(port), database, String(device)], {
          stdio: ["ignore", "pipe", "inherit"]
        })
        const said: Array<string> = []
        createInterface(child.stdout).on("line", (line) => {
          if (process.env["VERBOSE"]) console.log(Date.now() % 100000, device, line)
          said.push(line)
        })
        return { child, said }
      }),
      ({ child }) => kill(child)
    ))

const kill = (child: ChildProcess) =>
  Effect.promise(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill("SIGKILL")
    await once(child, "exit")
  })

const until = (condition: () => boolean) =>
  Effect.gen(function*() {
    while (!condition()) yield* Effect.sleep("20 millis")
  }).pipe(Effect.timeout("40 seconds"))

const says = ({ said }: Runner, text: string) => said.some((line) => line.includes(text))

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
    const runners = [yield* startRunner(database, 0), yield* startRunner(database, 1)]
    const result = yield* Effect.gen(function*() {
      const run = yield* Effect.forkChild(CudaJob.run(job, { id: "first", payload: { steps } }))
      // The first epoch may have ended when the second runner took over shards of the first.
      yield* until(() => runners.every((runner) => says(runner, "step 10")))
      const before = epochOf(runners)
      const dying = runners.find(victim)
      if (dying === undefined) return assert.fail("no runner to kill")
      yield* kill(dying.child)
      runners.push(yield* startRunner(database, 2))
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

const inSqlite = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-cuda-cluster-"))),
    (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
  ),
  (folder) => join(folder, "cluster.sqlite")
)

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
})
