/** A PostgreSQL server of its own, in a temporary folder. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { execFileSync, spawn } from "node:child_process"
import { chownSync, mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"

const runs = (command: string) => {
  try {
    execFileSync(command, ["--version"], { stdio: "ignore" })
    return true
  } catch {
    return false
  }
}

/** Whether the server's programs are in the path. */
export const hasPostgres = process.platform === "linux" && runs("initdb") && runs("postgres")

/** PostgreSQL refuses to run as root: it gets the user nobody then. */
const user = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : undefined

export const freePort = Effect.callback<number>((resume) => {
  const server = createServer()
  server.listen(0, "127.0.0.1", () => {
    const address = server.address()
    const port = typeof address === "object" ? address?.port : undefined
    server.close(() => resume(port === undefined ? Effect.die("no port") : Effect.succeed(port)))
  })
})

/** Starts a server with the superuser `effect`, and returns its port. */
export const postgres = Effect.gen(function*() {
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-cuda-pg-"))),
    (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
  )
  const port = yield* freePort
  yield* Effect.sync(() => {
    if (user !== undefined) chownSync(folder, user.uid, user.gid)
    const options = ["-D", join(folder, "data"), "-U", "effect", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    execFileSync("initdb", options, { stdio: "ignore", cwd: folder, ...user })
  })
  yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(
        "postgres",
        ["-D", join(folder, "data"), "-k", folder, "-h", "127.0.0.1", "-p", String(port), "-c", "fsync=off"],
        { stdio: "ignore", cwd: folder, ...user }
      )
    ),
    (server) =>
      Effect.callback<void>((resume) => {
        if (server.exitCode !== null) return resume(Effect.void)
        server.once("exit", () => resume(Effect.void))
        server.kill("SIGQUIT")
      })
  )
  const ready = Effect.try(() =>
    execFileSync("pg_isready", ["-h", "127.0.0.1", "-p", String(port)], { stdio: "ignore" })
  )
  yield* Effect.retry(ready, Schedule.spaced("100 millis").pipe(Schedule.upTo({ times: 100 })))
  return port
})
