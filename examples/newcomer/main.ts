/**
 * Runs one of the five programs: `node dist-examples/newcomer/main.js scaler`. A failure is reported, and the exit code is 1; Ctrl-C closes
 * all scopes first. On a GPU if there is one.
 */
import { AutoRuntime } from "effect-cuda"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as configured from "./configured.ts"
import * as etl from "./etl.ts"
import * as forkJoin from "./forkJoin.ts"
import { runMain } from "./runMain.ts"
import * as save from "./save.ts"
import * as scaler from "./scaler.ts"

class UnknownProgram extends Data.TaggedError("UnknownProgram")<{ readonly message: string }> {}

const print = <A, E, R>(program: Effect.Effect<A, E, R>) => Effect.flatMap(program, Console.log)

const programs = {
  configured: print(configured.program),
  etl: print(etl.program),
  forkJoin: print(Effect.map(forkJoin.program, ({ diagram, picture }) => `${diagram}\n${picture}`)),
  save: print(save.program),
  scaler: print(scaler.program)
}

const isKnown = (name: string): name is keyof typeof programs => Object.hasOwn(programs, name)

const main = Effect.gen(function*() {
  const name = process.argv[2] ?? ""
  if (!isKnown(name)) {
    return yield* new UnknownProgram({ message: `no program "${name}", but ${Object.keys(programs).join(", ")}` })
  }
  yield* programs[name]
})

runMain(Effect.provide(main, AutoRuntime.layer({ simulated: { kernels: { ...etl.kernels, ...scaler.kernels } } })))
