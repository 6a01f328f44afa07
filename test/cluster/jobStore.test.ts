// What every store of jobs does, in memory, in PostgreSQL and in SQLite.
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import { JobStore } from "effect-cuda/cluster"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { hasPostgres, postgres } from "./process/postgres.ts"

const inPostgres = Layer.unwrap(Effect.map(postgres, (port) =>
  Layer.provide(
    JobStore.layerSql({ prefix: "test" }),
    PgClient.layer({ host: "127.0.0.1", port, username: "effect", database: "postgres" })
  )))

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number)
const hasSqlite = major > 22 || (major === 22 && minor >= 16)

const inSqlite = Layer.unwrap(Effect.gen(function*() {
  const Sqlite = yield* Effect.promise(() => import("./process/sqlite.ts"))
  return Layer.provide(JobStore.layerSql({ prefix: "test" }), Sqlite.layer(":memory:"))
}))

const kinds = [
  { name: "memory", layer: JobStore.layerMemory, skip: false },
  { name: "PostgreSQL", layer: inPostgres, skip: !hasPostgres },
  { name: "SQLite", layer: inSqlite, skip: !hasSqlite }
]

for (const { layer, name, skip } of kinds) {
  describe(`a store in ${name}`, () => {
    it.live.skipIf(skip)(
      "numbers epochs, keeps checkpoints and results, and refuses what is stale",
      () =>
        Effect.gen(function*() {
          const store = yield* JobStore.JobStore
          assert.deepStrictEqual(yield* store.begin("a"), {
            epoch: 1,
            checkpoint: Option.none(),
            result: Option.none()
          })
          assert.strictEqual((yield* store.begin("b")).epoch, 1, "jobs are independent")

          const values = ["{\"text\":\"ä'\\\"€\"}", "2", "x".repeat(100_000)]
          assert.isTrue(yield* store.save("a", 1, { step: 5, values }))
          const second = yield* store.begin("a")
          assert.deepStrictEqual(second, {
            epoch: 2,
            checkpoint: Option.some({ step: 5, values }),
            result: Option.none()
          })

          assert.isFalse(yield* store.save("a", 1, { step: 6, values: ["late"] }))
          assert.isFalse(yield* store.finish("a", 1, ["late"]))
          assert.isFalse(yield* store.save("a", 3, { step: 6, values: ["early"] }))
          assert.isFalse(yield* store.save("none", 1, { step: 6, values: [] }))
          assert.isTrue(yield* store.save("a", 2, { step: 7, values: ["7"] }))
          assert.isTrue(yield* store.finish("a", 2, ["done"]))
          assert.deepStrictEqual(yield* store.begin("a"), {
            epoch: 3,
            checkpoint: Option.some({ step: 7, values: ["7"] }),
            result: Option.some(["done"])
          })
        }).pipe(Effect.provide(layer)),
      60_000
    )

    it.live.skipIf(skip)(
      "gives every coordinator an epoch of its own, and lets only the last one write",
      () =>
        Effect.gen(function*() {
          const store = yield* JobStore.JobStore
          const coordinators = Array.from({ length: 20 }, (_, index) => index)
          const epochs = yield* Effect.forEach(coordinators, () => store.begin("a"), { concurrency: "unbounded" })
          const numbers = epochs.map(({ epoch }) => epoch)
          assert.sameMembers(numbers, coordinators.map((index) => index + 1))
          const saved = yield* Effect.forEach(numbers, (epoch) => store.save("a", epoch, { step: epoch, values: [] }), {
            concurrency: "unbounded"
          })
          assert.deepStrictEqual(saved, numbers.map((epoch) => epoch === 20))
        }).pipe(Effect.provide(layer)),
      60_000
    )
  })
}
