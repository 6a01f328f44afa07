/** A runner process with one GPU. Says on its output what its ranks do. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Layer from "effect/Layer"
import { writeSync } from "node:fs"
import { CudaJob, JobDevices } from "../../../src/cluster.ts"
import * as CudaNccl from "../../../src/CudaNccl.ts"
import * as NativeRuntime from "../../../src/layers/NativeRuntime.ts"
import { runner } from "../../cluster/process/cluster.ts"
import { job, program } from "./job.ts"

const [port, database, device] = process.argv.slice(2)
if (port === undefined || database === undefined || device === undefined) {
  throw new Error("usage: runner PORT DATABASE DEVICE")
}

const log = (event: string) => {
  writeSync(1, `${event}\n`)
}

NodeRuntime.runMain(
  Layer.launch(
    CudaJob.toLayer(job, (rank) => program(rank, log)).pipe(
      Layer.provide(runner({ port: Number(port), database })),
      Layer.provide(JobDevices.layer([Number(device)])),
      Layer.provide(CudaNccl.layer()),
      Layer.provide(NativeRuntime.layer())
    )
  )
)
