/**
 * The effect of waiting on the rest of a service: the latency of an HTTP server in this process, idle and with 100
 * waits always outstanding; and of file reads and name lookups, which need libuv's thread pool, with 1,000 waits.
 *
 * The client is a separate process with 8 keep-alive connections. Each of the 100 fibers launches a kernel of 5 to 20
 * ms on its own stream, waits for it, and repeats, so the server also bears several thousand launches per second. Idle
 * and busy rounds take turns. For files and names, 64 reads of a 4 KiB file and 16 lookups of "localhost" start
 * together, and the time until all have finished is measured.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { lookup } from "node:dns/promises"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { readFile } from "node:fs/promises"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import type { CudaError } from "../../src/CudaError.ts"
import * as CudaEvent from "../../src/CudaEvent.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../../src/layers/NativeRuntime.ts"
import type { Driver } from "../support/driver.ts"
import { pause } from "../support/loop.ts"
import { printTable } from "../support/report.ts"
import { makeFigure } from "../support/results.ts"
import { runOnGpu } from "../support/run.ts"
import { fixed, median, quantile } from "../support/statistics.ts"

// Kernels of 100 streams run concurrently only with the maximum number of connections to the GPU.
process.env["CUDA_DEVICE_MAX_CONNECTIONS"] ??= "32"

const rounds = 5
const requests = 5000
const fibers = 100
const poolRounds = 10
const poolWaits = 1000

/** Runs one round of requests, and returns their latencies in microseconds. */
type Client = Effect.Effect<ReadonlyArray<number>>

const server = Effect.acquireRelease(
  Effect.promise(() =>
    new Promise<ReturnType<typeof createServer>>((resolve) => {
      const made = createServer((_, response) => response.end("done"))
      made.listen(0, "127.0.0.1", () => resolve(made))
    })
  ),
  (made) =>
    Effect.sync(() => {
      made.closeAllConnections()
      made.close()
    })
)

const startClient: Effect.Effect<Client, never, Scope.Scope> = Effect.gen(function*() {
  const { port } = (yield* server).address() as AddressInfo
  const program = fileURLToPath(new URL("../support/client.ts", import.meta.url))
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [...process.execArgv, program, String(port), String(requests)], {
        stdio: ["pipe", "pipe", "inherit"]
      })
    ),
    (started) => Effect.sync(() => started.kill())
  )
  const lines = createInterface({ input: child.stdout })
  return Effect.callback<ReadonlyArray<number>>((resume) => {
    const ended = () => resume(Effect.die(new Error("The HTTP client has exited")))
    child.once("exit", ended)
    lines.once("line", (line) => {
      child.off("exit", ended)
      resume(Effect.succeed(line.split(" ").map(Number)))
    })
    child.stdin.write("go\n")
  })
})

/** Statistics of the waits themselves. */
interface Waits {
  readonly millis: Array<number>
  readonly perSecond: Array<number>
}

/** Keeps waits outstanding while an effect runs. */
const besideWaits = <A, E>(
  driver: Driver,
  streams: ReadonlyArray<CudaStream.CudaStream>,
  waits: Waits,
  effect: Effect.Effect<A, E>
) =>
  Effect.gen(function*() {
    const before = waits.millis.length
    const start = performance.now()
    const outstanding = yield* Effect.forEach(
      streams,
      (stream) => Effect.forkChild(Effect.forever(workAndWait(driver, stream, waits)))
    )
    yield* pause(50)
    const result = yield* effect
    waits.perSecond.push((waits.millis.length - before) * 1e3 / (performance.now() - start))
    yield* Fiber.interruptAll(outstanding)
    for (const stream of streams) yield* CudaStream.synchronize(stream)
    return result
  })

const workAndWait = (driver: Driver, stream: CudaStream.CudaStream, waits: Waits): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const start = performance.now()
    driver.spin(stream.handle, 5 + 15 * Math.random())
    return Effect.map(CudaStream.synchronize(stream), () => void waits.millis.push(performance.now() - start))
  })

const http = (driver: Driver) =>
  Effect.gen(function*() {
    const client = yield* startClient
    const streams = yield* Effect.forEach(Array.from({ length: fibers }), () => CudaStream.make())
    const idle: Array<ReadonlyArray<number>> = []
    const busy: Array<ReadonlyArray<number>> = []
    const waits: Waits = { millis: [], perSecond: [] }
    yield* client
    for (let round = 0; round < rounds; round++) {
      idle.push(yield* client)
      busy.push(yield* besideWaits(driver, streams, waits, client))
    }
    const row = (name: string, latencies: ReadonlyArray<ReadonlyArray<number>>) => {
      const all = latencies.flat().map((micros) => micros / 1e3)
      const each = latencies.map((round) => quantile(round, 0.99) / 1e3)
      return [
        name,
        fixed(median(all), 3),
        fixed(quantile(all, 0.99), 3),
        fixed(median(each), 3),
        fixed(Math.max(...all))
      ]
    }
    printTable(
      `Latency of an HTTP server in this process, ms (${rounds} rounds of ${requests} requests on 8 connections)`,
      ["", "p50", "p99", "p99 of the median round", "max"],
      [row("idle", idle), row(`${fibers} waits outstanding`, busy)]
    )
    const { millis, perSecond } = waits
    console.log(
      `The waits: ${fixed(median(perSecond), 0)} a second, p50 ${fixed(median(millis))} ms, p99 ${
        fixed(quantile(millis, 0.99))
      } ms`
    )
    const figure = (name: string, read: (micros: ReadonlyArray<number>) => number) =>
      makeFigure(
        { group: `Latency of an HTTP server beside ${fibers} waits`, name, unit: "ms" },
        busy.map((round) => read(round) / 1e3),
        { idle: idle.map((round) => read(round) / 1e3) }
      )
    return [figure("p50 of a round", median), figure("p99 of a round", (micros) => quantile(micros, 0.99))]
  })

/** A file to read, in a scope. */
const smallFile = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-cuda-bench-"))),
    (folder) => Effect.sync(() => rmSync(folder, { recursive: true }))
  ),
  (folder) => {
    const path = join(folder, "small")
    writeFileSync(path, new Uint8Array(4096))
    return path
  }
)

const timed = (body: () => Promise<unknown>): Effect.Effect<number> =>
  Effect.promise(async () => {
    const start = performance.now()
    await body()
    return performance.now() - start
  })

/** Runs an effect while many fibers wait for 150 ms of work. Also returns how many still wait when it ends. */
const besideManyWaits = <A, E>(
  driver: Driver,
  streams: ReadonlyArray<CudaStream.CudaStream>,
  events: ReadonlyArray<CudaEvent.CudaEvent>,
  effect: Effect.Effect<A, E>
) =>
  Effect.gen(function*() {
    const runtime = yield* CudaRuntime
    for (const stream of streams) driver.spin(stream.handle, 150)
    for (const [index, event] of events.entries()) yield* CudaEvent.record(event, streams[index % streams.length])
    const waiting = yield* Effect.forEach(events, (event) => Effect.forkChild(CudaEvent.synchronize(event)))
    yield* pause(10)
    const result = yield* effect
    const { waits } = yield* runtime.liveResources
    for (const fiber of waiting) yield* Fiber.join(fiber)
    return { result, waits }
  })

const pool = (driver: Driver) =>
  Effect.gen(function*() {
    const path = yield* smallFile
    const streams = yield* Effect.forEach(Array.from({ length: 16 }), () => CudaStream.make())
    const events = yield* Effect.forEach(Array.from({ length: poolWaits }), () => CudaEvent.make())
    const works = [
      ["64 × readFile of 4 KiB", timed(() => Promise.all(Array.from({ length: 64 }, () => readFile(path))))],
      ["16 × dns.lookup", timed(() => Promise.all(Array.from({ length: 16 }, () => lookup("localhost"))))]
    ] as const
    const rows: Array<ReadonlyArray<string>> = []
    const figures: Array<ReturnType<typeof makeFigure>> = []
    for (const [name, work] of works) {
      const idle: Array<number> = []
      const busy: Array<number> = []
      let least = Number.POSITIVE_INFINITY
      yield* work
      for (let round = 0; round < poolRounds; round++) {
        idle.push(yield* work)
        const { result, waits } = yield* besideManyWaits(driver, streams, events, work)
        busy.push(result)
        least = Math.min(least, waits)
      }
      const cells = [idle, busy].flatMap((values) => [fixed(median(values), 2), fixed(Math.max(...values), 2)])
      rows.push([name, ...cells, String(least)])
      figures.push(
        makeFigure({ group: `Work of libuv's pool beside ${poolWaits} waits`, name, unit: "ms" }, busy, { idle })
      )
    }
    printTable(
      `Work of libuv's thread pool, ms until all has finished (${poolRounds} rounds)`,
      ["", "idle: p50", "max", `${poolWaits} waits: p50`, "max", "still waiting after it, at least"],
      rows
    )
    return figures
  })

await runOnGpu(
  "waiting/service",
  ({ driver }) =>
    Effect.map(Effect.all([http(driver), pool(driver)]), (figures) => figures.flat()).pipe(
      Effect.provideServiceEffect(CudaRuntime, NativeRuntime.make())
    )
)
