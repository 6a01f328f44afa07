/** A cluster over sockets with its storage in a database, with short intervals. */
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as SqlClient from "effect/sql/SqlClient"
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

/** The port of a PostgreSQL server, or a SQLite file. */
const database = (place: string): Layer.Layer<SqlClient.SqlClient> =>
  /^\d+$/.test(place)
    ? Layer.orDie(PgClient.layer({ host: "127.0.0.1", port: Number(place), username: "effect", database: "postgres" }))
    : Layer.unwrap(Effect.map(Effect.promise(() => import("./sqlite.ts")), (sqlite) => sqlite.layer(place)))

export const runner = (options: { readonly port: number; readonly database: string }) =>
  NodeClusterSocket.layer({
    shardingConfig: {
      ...shardingConfig,
      runnerAddress: Option.some(RunnerAddress.make("127.0.0.1", options.port))
    }
  }).pipe(
    Layer.provideMerge(Layer.orDie(JobStore.layerSql())),
    Layer.provide(database(options.database))
  )

export const client = (place: string) =>
  NodeClusterSocket.layer({ clientOnly: true, shardingConfig: { ...shardingConfig, runnerAddress: Option.none() } })
    .pipe(
      Layer.provide(database(place))
    )
