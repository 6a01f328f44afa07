/**
 * Where jobs keep what must outlive a coordinator: the number of the current epoch, the last complete checkpoint, and the result.
 *
 * Every write names its epoch, and a write of an older epoch than the stored one changes nothing. This is what makes a coordinator harmless that
 * does not know yet that another one has taken its place.
 *
 * @since 0.1.0
 */
import { PersistenceError } from "effect/cluster/ClusterError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as SqlClient from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"

/**
 * A checkpoint: its step, and the encoded value of each rank.
 *
 * @category models
 * @since 0.1.0
 */
export interface StoredCheckpoint {
  readonly step: number
  readonly values: ReadonlyArray<string>
}

/**
 * What a coordinator knows when it begins an epoch.
 *
 * @category models
 * @since 0.1.0
 */
export interface Begun {
  /** The number of the new epoch, larger than every earlier one of this job. */
  readonly epoch: number
  readonly checkpoint: Option.Option<StoredCheckpoint>
  /** The encoded result of each rank, if the job has finished. */
  readonly result: Option.Option<ReadonlyArray<string>>
}

/**
 * The storage of jobs. Keys are unique to a job's name and id.
 *
 * @category services
 * @since 0.1.0
 */
export class JobStore extends Context.Service<JobStore, {
  /** Begins a new epoch. From here on, writes of older epochs are refused. */
  readonly begin: (key: string) => Effect.Effect<Begun, PersistenceError>
  /** Stores a checkpoint. `false` if the epoch is no longer the current one; nothing has changed then. */
  readonly save: (
    key: string,
    epoch: number,
    checkpoint: StoredCheckpoint
  ) => Effect.Effect<boolean, PersistenceError>
  /** Stores the result. `false` if the epoch is no longer the current one; nothing has changed then. */
  readonly finish: (
    key: string,
    epoch: number,
    result: ReadonlyArray<string>
  ) => Effect.Effect<boolean, PersistenceError>
}>()("effect-cuda/cluster/JobStore") {}

interface Row {
  epoch: number
  checkpoint: Option.Option<StoredCheckpoint>
  result: Option.Option<ReadonlyArray<string>>
}

/**
 * Makes a store in this process's memory.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeMemory = (): JobStore["Service"] => {
  const rows = new Map<string, Row>()
  const rowOf = (key: string) => {
    let row = rows.get(key)
    if (row === undefined) rows.set(key, row = { epoch: 0, checkpoint: Option.none(), result: Option.none() })
    return row
  }
  const change = (key: string, epoch: number, f: (row: Row) => void) =>
    Effect.sync(() => {
      const row = rowOf(key)
      if (row.epoch !== epoch) return false
      f(row)
      return true
    })
  return JobStore.of({
    begin: (key) =>
      Effect.sync(() => {
        const row = rowOf(key)
        row.epoch++
        return { ...row }
      }),
    save: (key, epoch, checkpoint) =>
      change(key, epoch, (row) => {
        row.checkpoint = Option.some(checkpoint)
      }),
    finish: (key, epoch, result) =>
      change(key, epoch, (row) => {
        row.result = Option.some(result)
      })
  })
}

/**
 * Keeps jobs in this process's memory: for tests, and for a single runner whose jobs may be lost with it.
 *
 * **Gotchas**
 *
 * The memory is not shared with other runners. A coordinator that moves to another runner starts its job from the beginning, with epoch numbers
 * that ranks may have seen. Use `layerSql` with more than one runner.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemory: Layer.Layer<JobStore> = Layer.sync(JobStore, makeMemory)

/**
 * Makes a store of the table `{prefix}_jobs`, and creates the table if it does not exist.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeSql = Effect.fnUntraced(
  function*(options?: { readonly prefix?: string | undefined }) {
    const sql = (yield* SqlClient.SqlClient).withoutTransforms()
    const table = sql(`${options?.prefix ?? "cuda"}_jobs`)
    yield* createTable(sql, table)

    const insert = sql.onDialectOrElse({
      mysql: () => (key: string) => sql`INSERT IGNORE INTO ${table} (id, epoch) VALUES (${key}, 0)`,
      orElse: () => (key: string) =>
        sql`INSERT INTO ${table} (id, epoch) VALUES (${key}, 0) ON CONFLICT (id) DO NOTHING`
    })
    const read = (key: string) =>
      Effect.map(
        sql<StoredRow>`SELECT epoch, step, checkpoint, result FROM ${table} WHERE id = ${key}`,
        ([row]) => row
      )
    // The update locks the row until the transaction ends, so the read sees the epoch that the update has set or has failed to match.
    const begin = Effect.fnUntraced(function*(key: string) {
      yield* insert(key)
      yield* sql`UPDATE ${table} SET epoch = epoch + 1 WHERE id = ${key}`
      return begunOf(yield* read(key))
    })
    const isCurrent = (key: string, epoch: number) =>
      Effect.map(read(key), (row) => row !== undefined && Number(row.epoch) === epoch)

    return JobStore.of({
      begin: (key) => persisted(sql.withTransaction(begin(key))),
      save: (key, epoch, { step, values }) =>
        persisted(sql.withTransaction(Effect.andThen(
          sql`UPDATE ${table} SET step = ${step}, checkpoint = ${
            JSON.stringify(values)
          } WHERE id = ${key} AND epoch = ${epoch}`,
          isCurrent(key, epoch)
        ))),
      finish: (key, epoch, result) =>
        persisted(sql.withTransaction(Effect.andThen(
          sql`UPDATE ${table} SET result = ${JSON.stringify(result)} WHERE id = ${key} AND epoch = ${epoch}`,
          isCurrent(key, epoch)
        )))
    })
  }
)

interface StoredRow {
  readonly epoch: number | string
  readonly step: number | string | null
  readonly checkpoint: string | null
  readonly result: string | null
}

const createTable = (sql: SqlClient.SqlClient, table: ReturnType<SqlClient.SqlClient>) => {
  const text = sql.onDialectOrElse({ mysql: () => sql.literal("LONGTEXT"), orElse: () => sql.literal("TEXT") })
  return sql`CREATE TABLE IF NOT EXISTS ${table} (
    id VARCHAR(255) PRIMARY KEY,
    epoch INTEGER NOT NULL,
    step BIGINT,
    checkpoint ${text},
    result ${text}
  )`
}

const begunOf = (row: StoredRow | undefined): Begun => ({
  epoch: Number(row?.epoch ?? 0),
  checkpoint: row?.checkpoint
    ? Option.some({ step: Number(row.step), values: JSON.parse(row.checkpoint) })
    : Option.none(),
  result: row?.result ? Option.some(JSON.parse(row.result)) : Option.none()
})

const persisted = <A>(effect: Effect.Effect<A, SqlError>) =>
  Effect.mapError(effect, (cause) => new PersistenceError({ cause }))

/**
 * Keeps jobs in the database of the `SqlClient`, in a table that it creates if necessary.
 *
 * **Details**
 *
 * Tested with PostgreSQL and SQLite. It uses no more than transactions, `ON CONFLICT DO NOTHING` (MySQL: `INSERT IGNORE`) and row locks by `UPDATE`. The cluster's
 * own storage can be in the same database.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerSql = (
  options?: { readonly prefix?: string | undefined }
): Layer.Layer<JobStore, SqlError, SqlClient.SqlClient> => Layer.effect(JobStore, makeSql(options))
