/**
 * The program of `examples/hello.ts`, quiet. Importing that file also runs it, here always on a simulated GPU.
 */
import { assert } from "@effect/vitest"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"

process.env["EFFECT_CUDA_RUNTIME"] = "simulated"
const { program } = await import("../../examples/hello.ts")

/** Runs the program, and checks what it prints. */
export const hello = Effect.suspend(() => {
  const lines: Array<string> = []
  const quiet: Console.Console = Object.assign(Object.create(console), { log: (line: string) => void lines.push(line) })
  return Effect.tap(Effect.provideService(program, Console.Console, quiet), () =>
    Effect.sync(() => {
      assert.lengthOf(lines, 1)
      assert.match(lines[0]!, / answered 0 0 3 4 5 6$/)
    }))
})
