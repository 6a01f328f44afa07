/**
 * The demo's progress line and charts.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import * as Progress from "../../examples/demo/Progress.ts"
import { formatBytes, picture } from "../../examples/demo/Report.ts"

const capture = (isTTY: boolean) => {
  const written: Array<string> = []
  const output: Progress.Output = { isTTY, write: (text) => written.push(text) }
  return { written, output }
}

const steps = Effect.gen(function*() {
  const advance = yield* Progress.make("pipelined", 1000)
  for (let step = 0; step < 8; step++) {
    yield* TestClock.adjust("30 millis")
    yield* advance(100)
  }
}).pipe(Effect.scoped)

describe("Progress", () => {
  it.effect("rewrites one line, at most every 100 ms, and erases it", () =>
    Effect.gen(function*() {
      const { output, written } = capture(true)
      yield* Effect.provideService(steps, Progress.Output, output)
      assert.deepStrictEqual(written, [
        "\r\u001b[Kpipelined: 400 bytes of 1000 bytes, 40 %",
        "\r\u001b[Kpipelined: 800 bytes of 1000 bytes, 80 %",
        "\r\u001b[K"
      ])
    }))

  it.effect("writes nothing without a terminal", () =>
    Effect.gen(function*() {
      const { output, written } = capture(false)
      yield* Effect.provideService(steps, Progress.Output, output)
      assert.deepStrictEqual(written, [])
    }))
})

describe("Report", () => {
  it("draws each stream's work over time", () => {
    const chunk = (chunk: number, from: number) => [
      { name: "upload", chunk, from, to: from + 10 },
      { name: "work", chunk, from: from + 10, to: from + 11 },
      { name: "download", chunk, from: from + 11, to: from + 20 }
    ]
    assert.deepStrictEqual(picture([...chunk(0, 0), ...chunk(1, 10)], 30, 48), [
      "upload    ██████████▓▓▓▓▓▓▓▓▓▓",
      "stage               █         ▓",
      "download             █████████ ▓▓▓▓▓▓▓▓▓",
      "          ┬───────────────────┬─────────",
      "          0                   20 ms"
    ])
  })

  it("formats sizes", () => {
    assert.deepStrictEqual([1, 1023, 1024, 8 * 2 ** 20, 3 * 2 ** 40].map(formatBytes), [
      "1 byte",
      "1023 bytes",
      "1.0 KiB",
      "8.0 MiB",
      "3.0 TiB"
    ])
  })
})
