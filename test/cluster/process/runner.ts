/** A runner process with one device. Says on its output what its ranks and coordinators do. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { writeSync } from "node:fs"
import { CudaJob, JobDevices, JobStore } from "../../../src/cluster.ts"
import { runner } from "./cluster.ts"
import { job, program } from "./job.ts"

const [port, database, device] = process.argv.slice(2)
if (port === undefined || database === undefined || device === undefined) {
  throw new Error("usage: runner PORT DATABASE DEVICE")
}

const log = (event: string) => {
  writeSync(1, `${event}\n`)
}

/** Tells which process the coordinator is in. */
const observed = Layer.effect(
  JobStore.JobStore,
  Effect.map(JobStore.JobStore, (store) => ({
    ...store,
    begin: (key: string) =>
      Effect.tap(store.begin(key), ({ epoch }) => Effect.sync(() => log(`coordinator epoch ${epoch}`)))
  }))
)

NodeRuntime.runMain(
  Layer.launch(
    CudaJob.toLayer(job, (rank) => program(rank, log)).pipe(
      Layer.provide(observed),
      Layer.provide(runner({ port: Number(port), database })),
      Layer.provide(JobDevices.layer([Number(device)]))
    )
  )
)
