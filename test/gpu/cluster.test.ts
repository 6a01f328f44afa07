// A job on two runner processes, each with a GPU, whose ranks exchange data by NCCL; one process is killed in the midst. Needs two
// GPUs, NCCL, and Node.js 22.19.
import { assert, describe, it } from "@effect/vitest"
import { CudaJob } from "effect-cuda/cluster"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { fileURLToPath } from "node:url"
import { load } from "../../src/cuda/foreignLibrary.ts"
import { hasPlatform, inSqlite, kill, says, startRunner, until } from "../cluster/process/processes.ts"
import { gpu } from "../support/gpu.ts"
import { expected, job } from "./cluster/job.ts"

const script = fileURLToPath(new URL("./cluster/runner.ts", import.meta.url))

const hasNccl = gpu !== undefined && gpu.deviceCount > 1 && (await load({
      title: "NCCL",
      path: process.env["EFFECT_CUDA_NCCL"],
      files: ["libnccl.so.2"],
      wheels: ["nccl"],
      needs: []
    }))._tag === "Loaded"

describe.skipIf(!hasPlatform || !hasNccl)("two runner processes with a GPU each", () => {
  it.live("end as without failures when one is killed while NCCL is at work", () =>
    Effect.gen(function*() {
      const payload = { steps: 600, every: 20, numbers: 1 << 18 }
      const cluster = yield* Effect.promise(() => import("../cluster/process/cluster.ts"))
      const database = yield* inSqlite
      const first = yield* startRunner(script, database, 0)
      const second = yield* startRunner(script, database, 1)
      const result = yield* Effect.gen(function*() {
        const run = yield* Effect.forkChild(CudaJob.run(job, { id: "first", payload }))
        yield* until(() => [first, second].every((runner) => says(runner, "step 100")))
        yield* kill(second.child)
        const third = yield* startRunner(script, database, 1)
        const result = yield* Effect.timeout(Fiber.join(run), "100 seconds")
        assert.isTrue(says(third, "device 1"))
        return result
      }).pipe(Effect.provide(cluster.client(database)))
      for (const { epoch, restored, total } of result) {
        assert.strictEqual(total, expected(payload.steps))
        assert.isAbove(epoch, 1)
        assert.isAtLeast(restored, 100)
      }
    }).pipe(Effect.scoped), 180_000)
})
