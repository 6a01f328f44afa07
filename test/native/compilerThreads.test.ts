/**
 * Compiling on worker threads, which share libuv's pool while each has its own limit.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { runChild } from "../support/stub/child.ts"
import { buildStub } from "../support/stubDriver.ts"
import { buildNvrtc } from "../support/stubNvrtc.ts"

const script = `
  import { Worker, isMainThread, parentPort, workerData } from "node:worker_threads"
  import { readFile } from "node:fs/promises"

  const compile = async () => {
    const Effect = await import("effect/Effect")
    const { CudaProgram, NativeRuntime } = await import("./index.js")
    const sources = [1, 2, 3, 4, 5, 6].map((n) => "// STUB_DELAY(100) " + workerData + n + "\\n__global__ void k() {}")
    const compiled = Effect.forEach(sources, (source) => CudaProgram.compile(source), { concurrency: "unbounded" })
    const options = {
      libraryPath: ${JSON.stringify(buildStub())},
      nvrtcPath: ${JSON.stringify(buildNvrtc())},
      programCache: { enabled: false }
    }
    const layer = NativeRuntime.layer(options)
    const ready = Effect.sync(() => parentPort.postMessage("compiling"))
    const programs = await Effect.runPromise(Effect.provide(Effect.andThen(ready, compiled), layer))
    parentPort.postMessage(programs.length)
  }

  const watch = async () => {
    const counts = { compiling: 0, programs: 0, reads: 0, ended: 0 }
    for (const name of ["a", "b"]) {
      const worker = new Worker(new URL(import.meta.url), { workerData: name })
      worker.on("message", (said) => said === "compiling" ? counts.compiling++ : counts.programs += said)
      worker.on("exit", (code) => counts.ended += code === 0 ? 1 : NaN)
    }
    while (counts.ended < 2) {
      await readFile(new URL(import.meta.url))
      if (counts.compiling === 2 && counts.programs === 0) counts.reads++
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    console.log(JSON.stringify(counts))
  }

  await (isMainThread ? watch() : compile())
`

describe("two workers that compile concurrently", () => {
  it.live("finish while the main thread keeps reading files", () =>
    Effect.gen(function*() {
      const { exit, output } = yield* Effect.promise(() => runChild(script))
      assert.strictEqual(exit, 0, output)
      const { reads, ...counts } = JSON.parse(output)
      assert.deepStrictEqual(counts, { compiling: 2, programs: 12, ended: 2 })
      assert.isAtLeast(reads, 2, output)
    }))
})
