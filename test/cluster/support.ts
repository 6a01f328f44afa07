/** A cluster in one process and in virtual time. */
import type { CudaJob } from "effect-cuda/cluster"
import * as Cluster from "effect-cuda/cluster"
import * as MessageStorage from "effect/cluster/MessageStorage"
import * as RunnerHealth from "effect/cluster/RunnerHealth"
import * as Runners from "effect/cluster/Runners"
import * as RunnerStorage from "effect/cluster/RunnerStorage"
import * as Sharding from "effect/cluster/Sharding"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"

/** What outlives a runner: messages, and what jobs have stored. */
export const storage = Layer.merge(
  Layer.provide(MessageStorage.layerMemory, ShardingConfig.layerDefaults),
  Cluster.JobStore.layerMemory
)

/** A runner: a new one each time that it is built. */
export const runner = (config?: Partial<ShardingConfig.ShardingConfig["Service"]>) =>
  Layer.fresh(
    Sharding.layer.pipe(
      Layer.provideMerge(Runners.layerNoop),
      Layer.provide([RunnerStorage.layerMemory, RunnerHealth.layerNoop]),
      Layer.provide(ShardingConfig.layer({ entityMessagePollInterval: "1 second", ...config }))
    )
  )

/** A runner that serves a job with the given devices. */
export const serving = <P, C, S, E, R>(
  job: CudaJob.CudaJob<P, C, S>,
  program: (rank: CudaJob.Rank<P, C>) => Effect.Effect<S, E, R>,
  devices: ReadonlyArray<number> = [0, 1]
): Layer.Layer<
  Sharding.Sharding,
  never,
  Exclude<R, Scope.Scope> | Cluster.JobStore.JobStore | MessageStorage.MessageStorage
> =>
  Cluster.CudaJob.toLayer(job, program).pipe(
    Layer.provideMerge(runner()),
    Layer.provide(Layer.fresh(Cluster.JobDevices.layer(devices)))
  )

/** Runs an effect while virtual time passes, for at most an hour of it. */
export const passing = <A, E, R>(effect: Effect.Effect<A, E, R>, step: Duration.Input = "100 millis") =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
    for (let i = 0; i < 36_000 && fiber.pollUnsafe() === undefined; i++) yield* TestClock.adjust(step)
    return yield* Fiber.join(fiber)
  })
