/**
 * A runner: serves the job with the GPUs of this process. Simulated ones if there are no others; `EFFECT_CUDA_RUNTIME`
 * decides otherwise.
 *
 *     npm run build && npm run build:examples
 *     export DATABASE_URL=postgres://localhost/postgres
 *     PORT=4001 DEVICES=0 node dist-examples/cluster/runner.js
 *     PORT=4002 DEVICES=1 node dist-examples/cluster/runner.js
 *     node dist-examples/cluster/client.js
 *
 * Kill one of them while the job runs, and start another one: the job goes on from its last checkpoint.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { AutoRuntime } from "effect-cuda"
import { CudaJob, JobDevices } from "effect-cuda/cluster"
import * as Config from "effect/Config"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { runner } from "./Cluster.ts"
import { program, relax } from "./Job.ts"
import * as Kernel from "./Kernel.ts"

/** Indices of the GPUs to lend, such as `0,1`. Runners on one machine need different ones. */
const devices = Config.withDefault(Config.Array(Schema.NumberFromString, "DEVICES"), [0])

const gpus = AutoRuntime.layer({ simulated: { devices: 8, kernels: Kernel.simulated } })

const layer = CudaJob.toLayer(relax, program).pipe(
  Layer.provide(runner),
  Layer.provide(JobDevices.layer(devices)),
  Layer.provide(gpus)
)

NodeRuntime.runMain(Layer.launch(layer))
