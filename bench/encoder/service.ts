/**
 * The service of `examples/encoder` under load, in the shape of BERT-base: the latency of requests over HTTP, from a client in another process
 * that posts texts of 1 to 256 tokens at a rate, and the lateness of timers in the server's event loop meanwhile.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { spawn } from "node:child_process"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { handle } from "../../examples/encoder/Api.ts"
import { configs } from "../../examples/encoder/Config.ts"
import { Encoder } from "../../examples/encoder/Encoder.ts"
import * as Weights from "../../examples/encoder/Weights.ts"
import { serve } from "../../examples/http/Server.ts"
import * as CudaBlas from "../../src/CudaBlas.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import { probeTimers } from "../support/loop.ts"
import { printTable } from "../support/report.ts"
import { makeFigure } from "../support/results.ts"
import { runOnGpu } from "../support/run.ts"
import { fixed, quantile } from "../support/statistics.ts"
import { folder } from "./folder.ts"

const rates = [100, 500, 1000, 2000]

/** How long the first request of a batch waits for others, in milliseconds. */
const windows = [0, 2]
const seconds = 3
const longest = 256

/** Posts at a rate, and returns the number of failures and the latencies in milliseconds. */
type Client = (rate: number) => Effect.Effect<readonly [failures: number, ...latencies: ReadonlyArray<number>]>

const startClient = Effect.fnUntraced(function*(url: string) {
  const program = fileURLToPath(new URL("../support/posts.ts", import.meta.url))
  const child = yield* Effect.acquireRelease(
    Effect.sync(() => spawn(process.execPath, [program, `${url}/embed`], { stdio: ["pipe", "pipe", "inherit"] })),
    (started) => Effect.sync(() => started.kill())
  )
  const lines = createInterface({ input: child.stdout })
  const client: Client = (rate) =>
    Effect.callback((resume) => {
      const ended = () => resume(Effect.die(new Error("The HTTP client has exited")))
      child.once("exit", ended)
      lines.once("line", (line) => {
        child.off("exit", ended)
        const [failures = 0, ...latencies] = line.split(" ").map(Number)
        resume(Effect.succeed([failures, ...latencies]))
      })
      child.stdin.write(`${rate} ${seconds} ${longest}\n`)
    })
  return client
})

const benchmark = Effect.fnUntraced(function*(window: number) {
  const url = yield* serve(handle, { port: 0 })
  const client = yield* startClient(url)
  const encoder = yield* Encoder
  const counts = Effect.orDie(encoder.health)
  yield* client(rates[0]!)
  const rows: Array<ReadonlyArray<string>> = []
  const figures = []
  for (const rate of rates) {
    const before = yield* counts
    const probe = probeTimers()
    const [failures, ...latencies] = yield* client(rate)
    const late = probe.read()
    probe.stop()
    const after = yield* counts
    const size = (after.requests - before.requests) / (after.batches - before.batches)
    const [p50, p99] = [quantile(latencies, 0.5), quantile(latencies, 0.99)]
    rows.push([
      String(rate),
      String(latencies.length),
      String(failures),
      fixed(p50, 2),
      fixed(p99, 2),
      fixed(Math.max(...latencies), 1),
      fixed(size),
      fixed(late.p99, 2),
      fixed(late.max)
    ])
    const name = `${rate} requests/s, a window of ${window} ms`
    figures.push(makeFigure({ group: "encoder service, latency", name, unit: "ms" }, latencies))
  }
  printTable(
    `Requests over HTTP, a window of ${window} ms: latency in ms; event loop: lateness of timers in ms`,
    ["requests/s", "answers", "failures", "p50", "p99", "max", "batch", "loop p99", "loop max"],
    rows
  )
  return figures
})

await runOnGpu("encoder service", (ground) =>
  Effect.gen(function*() {
    const runtime = yield* ground.makeRuntime()
    const path = join(yield* folder, "model.safetensors")
    yield* Effect.orDie(Weights.write(path, configs.base))
    const measure = (window: number) => {
      const encoder = Layer.provideMerge(Encoder.layer({ path, window }), CudaBlas.layer())
      return benchmark(window).pipe(
        Effect.scoped,
        Effect.provide(encoder),
        Effect.provideService(CudaRuntime, runtime),
        Effect.orDie
      )
    }
    const figures = yield* Effect.forEach(windows, measure)
    return figures.flat()
  }))
