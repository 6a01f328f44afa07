/** Runner processes, and what they say on their output. */
import * as Effect from "effect/Effect"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { freePort } from "./postgres.ts"

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number)

/** Whether this version of Node.js is one that `@effect/platform-node` works with. */
export const hasPlatform = major > 22 || (major === 22 && minor >= 19)

/** A runner process, and what it has said. */
export interface Runner {
  readonly child: ChildProcess
  readonly said: Array<string>
}

/** Starts a runner with one device. It is killed when the scope closes. */
export const startRunner = (script: string, database: string, device: number) =>
  Effect.flatMap(freePort, (port) =>
    Effect.acquireRelease(
      Effect.sync((): Runner => {
        const child = spawn(process.execPath, [script, String(port), database, String(device)], {
          stdio: ["ignore", "pipe", "inherit"]
        })
        const said: Array<string> = []
        createInterface(child.stdout).on("line", (line) => said.push(line))
        return { child, said }
      }),
      ({ child }) => kill(child)
    ))

export const kill = (child: ChildProcess) =>
  Effect.promise(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill("SIGKILL")
    await once(child, "exit")
  })

export const until = (condition: () => boolean) =>
  Effect.gen(function*() {
    while (!condition()) yield* Effect.sleep("20 millis")
  }).pipe(Effect.timeout("40 seconds"))

export const says = ({ said }: Runner, text: string) => said.some((line) => line.includes(text))

/** A database in a file of its own. */
export const inSqlite = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-cuda-cluster-"))),
    (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
  ),
  (folder) => join(folder, "cluster.sqlite")
)
