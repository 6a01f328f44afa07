#!/usr/bin/env node
/**
 * `npx effect-cuda`: the command line of the package. Needs no platform package: the commands read no input and start no processes.
 */
import * as Command from "effect/cli/Command"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Runtime from "effect/Runtime"
import * as Sink from "effect/Sink"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Terminal from "effect/Terminal"
import { readFile } from "node:fs/promises"
import { command } from "./commands.ts"

const columns = Effect.sync(() => process.stdout.columns || 80)
const rows = Effect.sync(() => process.stdout.rows || 24)
const notInteractive = Effect.die(new Error("The commands of effect-cuda ask nothing"))

/** What `effect/cli` needs for commands without prompts. */
const platform = Layer.mergeAll(
  FileSystem.layerNoop({}),
  Path.layer,
  Layer.succeed(
    Stdio.Stdio,
    Stdio.make({
      args: Effect.sync(() => process.argv.slice(2)),
      stdoutIsTerminal: Effect.sync(() => process.stdout.isTTY === true),
      stderrIsTerminal: Effect.sync(() => process.stderr.isTTY === true),
      stdin: Stream.empty,
      stdout: () => Sink.drain,
      stderr: () => Sink.drain
    })
  ),
  Layer.succeed(
    Terminal.Terminal,
    Terminal.make({
      columns,
      rows,
      size: notInteractive,
      readInput: notInteractive,
      readLine: notInteractive,
      display: (text) => Effect.sync(() => void process.stdout.write(text))
    })
  ),
  Layer.succeed(ChildProcessSpawner.ChildProcessSpawner, ChildProcessSpawner.make(() => notInteractive))
)

const readVersion = Effect.promise(async () => {
  const manifest: { readonly version: string } = JSON.parse(
    await readFile(new URL("../../package.json", import.meta.url), "utf8")
  )
  return manifest.version
})

const main = Effect.flatMap(readVersion, (version) => Command.run(command, { version })).pipe(Effect.provide(platform))

/** Ctrl-C interrupts the command and closes its scopes; the result sets the exit code. */
const runMain = Runtime.makeRunMain(({ fiber, teardown }) => {
  const interrupt = () => fiber.interruptUnsafe()
  process.on("SIGINT", interrupt).on("SIGTERM", interrupt)
  fiber.addObserver((exit) => {
    process.off("SIGINT", interrupt).off("SIGTERM", interrupt)
    teardown(exit, (code) => {
      process.exitCode = code
    })
  })
})

runMain(main, { disableErrorReporting: true })
