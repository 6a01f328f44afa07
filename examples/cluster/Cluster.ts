/**
 * The cluster: runners that find each other, and keep their messages and the jobs' state, in PostgreSQL, and talk over
 * sockets. Needs Node.js 22.19, for `@effect/platform-node`.
 */
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import * as PgClient from "@effect/sql-pg/PgClient"
import { JobStore } from "effect-cuda/cluster"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"

const database = PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") })

/** Shorter than the defaults: a runner that dies is noticed within seconds. */
const intervals = {
  refreshAssignmentsInterval: "1 second",
  shardLockRefreshInterval: "3 seconds",
  shardLockExpiration: "10 seconds",
  runnerHealthCheckInterval: "2 seconds",
  entityMessagePollInterval: "1 second"
} as const

/** A process that serves jobs, at `HOST` and `PORT`. */
export const runner = Layer.unwrap(Effect.gen(function*() {
  const host = yield* Config.withDefault(Config.String("HOST"), "127.0.0.1")
  const port = yield* Config.Int("PORT")
  return NodeClusterSocket.layer({
    shardingConfig: { ...intervals, runnerAddress: Option.some(RunnerAddress.make(host, port)) }
  })
})).pipe(Layer.provideMerge(JobStore.layerSql()), Layer.provide(database))

/** A process that only asks. */
export const client = NodeClusterSocket.layer({
  clientOnly: true,
  shardingConfig: { ...intervals, runnerAddress: Option.none() }
}).pipe(Layer.provide(database))
