/**
 * A job of two ranks in one process, with simulated GPUs and the cluster in memory. One rank fails once, and both go on
 * from the last checkpoint.
 *
 * `npm run build && npm run build:examples && node dist-examples/cluster.js`
 *
 * `cluster/Job.ts` contains the job. `cluster/runner.ts` and `cluster/client.ts` run it on several processes or
 * machines.
 */
import { SimulatedRuntime } from "effect-cuda"
import { CudaJob, JobDevices, JobStore } from "effect-cuda/cluster"
import * as TestRunner from "effect/cluster/TestRunner"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { program, relax } from "./cluster/Job.ts"
import type { Rank } from "./cluster/Job.ts"
import * as Kernel from "./cluster/Kernel.ts"

/** Fails in the middle of the first epoch. */
const failing = (rank: Rank) =>
  program({
    ...rank,
    checkpoint: (step, value) =>
      Effect.andThen(
        rank.checkpoint(step, value),
        step === 200 && rank.epoch === 1 && rank.rank === 1 ? Effect.die("a fault on purpose") : Effect.void
      )
  })

const layer = CudaJob.toLayer(relax, failing).pipe(
  Layer.provideMerge(TestRunner.layer),
  Layer.provide([JobDevices.layer([0, 1]), JobStore.layerMemory]),
  Layer.provide(SimulatedRuntime.layer({ devices: 2, kernels: Kernel.simulated }))
)

const folder = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "relax-"))),
  (folder) => Effect.promise(() => rm(folder, { recursive: true }))
)

const main = Effect.gen(function*() {
  const payload = { cells: 10_000, steps: 400, every: 50, folder: yield* folder }
  const means = yield* CudaJob.run(relax, { id: "first", payload })
  yield* Console.log(`the mean of the field, says each rank: ${means.join(", ")}`)
}).pipe(Effect.scoped, Effect.provide(layer))

Effect.runFork(main)
