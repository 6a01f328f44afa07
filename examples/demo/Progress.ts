/**
 * Progress on one line of a terminal, rewritten in place. Where the output is no terminal, nothing is shown.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { formatBytes } from "./Report.ts"

/** Where progress is shown. */
export interface Output {
  readonly isTTY?: boolean | undefined
  readonly write: (text: string) => unknown
}

/** The output of the program that runs; tests give another one. */
export const Output = Context.Reference<Output>("demo/Progress/Output", { defaultValue: () => process.stderr })

/** Milliseconds between two updates. */
const interval = 100

/** Counts towards a total. The line is erased with the scope. */
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
