/** A cluster over sockets with its storage in PostgreSQL, with short intervals. */
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { JobStore } from "../../../src/cluster.ts"

const shardingConfig = {
  shardsPerGroup: 30,
  refreshAssignmentsInterval: "200 millis",
  shardLockRefreshInterval: "500 millis",
  shardLockExpiration: "3 seconds",
  runnerHealthCheckInterval: "500 millis",
  entityMessagePollInterval: "300 millis",
  entityTerminationTimeout: "1 second",
  sendRetryInterval: "50 millis"
} as const

const database = (port: number) => PgClient.layer({ host: "127.0.0.1", port, username: "effect", database: "postgres" })

export const runner = (options: { readonly port: number; readonly database: number }) =>
  NodeClusterSocket.layer({
    shardingConfig: {
      ...shardingConfig,
      runnerAddress: Option.some(RunnerAddress.make("127.0.0.1", options.port))
    }
  }).pipe(
    Layer.provideMerge(Layer.orDie(JobStore.layerSql())),
    Layer.provide(database(options.database))
  )

export const client = (port: number) =>
  NodeClusterSocket.layer({ clientOnly: true, shardingConfig: { ...shardingConfig, runnerAddress: Option.none() } })
    .pipe(
      Layer.provide(database(port))
    )
