/**
 * Progress on one terminal line, rewritten in place. Shows nothing if the output is not a terminal.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { formatBytes } from "./Report.ts"

/** The output for progress. */
export interface Output {
  readonly isTTY?: boolean | undefined
  readonly write: (text: string) => unknown
}

/** Standard error; tests provide another one. */
export const Output = Context.Reference<Output>("demo/Progress/Output", { defaultValue: () => process.stderr })

/** Milliseconds between two updates. */
const interval = 100

/** Counts towards a total. The line is erased when the scope closes. */
export const make = (
  label: string,
  total: number
): Effect.Effect<(bytes: number) => Effect.Effect<void>, never, Scope.Scope> =>
  Effect.gen(function*() {
    const output = yield* Output
    if (output.isTTY !== true) return () => Effect.void
    let done = 0
    let shownAt = yield* Clock.currentTimeMillis
    yield* Effect.addFinalizer(() => Effect.sync(() => output.write(eraseLine)))
    return (bytes: number) =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        done += bytes
        if (now - shownAt < interval) return
        shownAt = now
        const percent = Math.floor((done / total) * 100)
        output.write(`${eraseLine}${label}: ${formatBytes(done)} of ${formatBytes(total)}, ${percent} %`)
      })
  })

const eraseLine = "\r\u001b[K"
