/**
 * A client: runs the job on the runners (runner.ts) and prints its result. Started again with the same `ID`, it joins
 * the run or prints the stored result.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { CudaJob } from "effect-cuda/cluster"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { tmpdir } from "node:os"
import { client } from "./Cluster.ts"
import { relax } from "./Job.ts"

const main = Effect.gen(function*() {
  const id = yield* Config.withDefault(Config.String("ID"), "first")
  const steps = yield* Config.withDefault(Config.Int("STEPS"), 2_000)
  const payload = { cells: 10_000, steps, every: 100, folder: tmpdir() }
  const means = yield* CudaJob.run(relax, { id, payload })
  yield* Console.log(`the mean of the field, says each rank: ${means.join(", ")}`)
})

NodeRuntime.runMain(Effect.provide(main, client))
