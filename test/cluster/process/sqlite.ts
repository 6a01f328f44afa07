/** A client of a SQLite file, which several processes of one machine may share, on Node.js's own SQLite. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as SqlClient from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import { classifySqliteError, SqlError } from "effect/sql/SqlError"
import * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import { DatabaseSync } from "node:sqlite"
import type { SQLInputValue } from "node:sqlite"

const isInput = (value: unknown): value is SQLInputValue =>
  value === null || typeof value === "string" || typeof value === "number" || typeof value === "bigint" ||
  value instanceof Uint8Array

const connect = (database: DatabaseSync): Connection => {
  const run = (sql: string, params: ReadonlyArray<unknown>, arrays = false) =>
    Effect.try({
      try: () => {
        const statement = database.prepare(sql)
        statement.setReturnArrays(arrays)
        const values = params.map((value) => typeof value === "boolean" ? Number(value) : value)
        if (!values.every(isInput)) throw new TypeError("a value that SQLite does not have")
        if (statement.columns().length > 0) return statement.all(...values)
        statement.run(...values)
        return []
      },
      catch: (cause) => {
        const errno = typeof cause === "object" && cause !== null && "errcode" in cause ? cause.errcode : undefined
        return new SqlError({ reason: classifySqliteError({ errno, cause }, { message: sql, operation: "execute" }) })
      }
    })
  const rows: Connection["execute"] = (sql, params, transform) =>
    Effect.map(run(sql, params), (found) => transform === undefined ? found : transform(found))
  const values: Connection["executeValues"] = (sql, params) =>
    Effect.map(run(sql, params, true), (found) => found.map((row) => Array.isArray(row) ? row : Object.values(row)))
  return {
    execute: rows,
    executeUnprepared: rows,
    executeRaw: (sql, params) => run(sql, params),
    executeValues: values,
    executeValuesUnprepared: values,
    executeStream: () => Stream.die("not needed here")
  }
}

const make = Effect.fnUntraced(function*(file: string) {
  const database = yield* Effect.acquireRelease(
    Effect.sync(() => new DatabaseSync(file, { timeout: 10_000 })),
    (database) => Effect.sync(() => database.close())
  )
  database.exec("PRAGMA journal_mode = WAL")
  const connection = connect(database)
  const semaphore = Semaphore.makeUnsafe(1)
  return yield* SqlClient.make({
    acquirer: semaphore.withPermits(1)(Effect.succeed(connection)),
    transactionAcquirer: Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const scope = yield* Scope.Scope
        yield* restore(semaphore.take(1))
        yield* Scope.addFinalizer(scope, semaphore.release(1))
        return connection
      })
    ),
    driver: "node:sqlite",
    compiler: Statement.makeCompilerSqlite(),
    // A transaction that reads first could not write when another process has written meanwhile.
    beginTransaction: "BEGIN IMMEDIATE",
    spanAttributes: []
  })
})

export const layer = (file: string): Layer.Layer<SqlClient.SqlClient> =>
  Layer.effect(SqlClient.SqlClient, make(file)).pipe(Layer.provide(Reactivity.layer))
