/**
 * Worker threads with a runtime each, threads that end with pending wake-ups, and when a process stays alive.
 */
import { assert, describe, it } from "@effect/vitest"
import { runChild } from "../support/stub/child.ts"
import { openStub } from "../support/stubDriver.ts"

const stub = openStub()
const path = JSON.stringify(stub.path)

/** The prelude of every program; worker threads run the same file. */
const prelude = `
  import koffi from "koffi"
  import { once } from "node:events"
  import { setTimeout as sleep } from "node:timers/promises"
  import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
  import * as Effect from "effect/Effect"
  import * as Exit from "effect/Exit"
  import * as Fiber from "effect/Fiber"
  import * as Metric from "effect/Metric"
  import * as Scope from "effect/Scope"
  import { CudaMetrics, CudaRuntime, CudaStream, NativeRuntime } from "./index.js"

  const library = koffi.load(${path})
  const work = library.func("stub_work", "void", ["uint64_t", "int"])
  const finish = library.func("stub_finish", "int", ["uint64_t", "int", "int"])
  const finishAll = library.func("stub_finish_all", "int", [])
  const misuses = library.func("stub_misuses", "int", [])
  const live = library.func("stub_live", "int", ["int"])
  const hostCalls = library.func("stub_host_calls", "int", ["int"])

  const layer = NativeRuntime.layer({ libraryPath: ${path}, wait: { pollFor: 0 } })
  const run = (program) => Effect.runPromise(Effect.provide(Effect.scoped(program), layer))

  /** Sequential waits, each for work that ends shortly after the wait began; returns how many were woken. */
  const rounds = (count) => Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    for (let round = 0; round < count; round++) {
      work(stream.handle, 0)
      setTimeout(() => finish(stream.handle, 0, -1), 1)
      yield* CudaStream.synchronize(stream)
    }
    return (yield* Metric.value(CudaMetrics.waitTimes.wake)).count
  })

  /** Starts waits with wake-ups, on streams with work that stays pending. */
  const beginWaits = (count) => Effect.gen(function*() {
    for (let index = 0; index < count; index++) {
      const stream = yield* CudaStream.make()
      work(stream.handle, 0)
      yield* Effect.forkChild(CudaStream.synchronize(stream))
    }
    yield* Effect.promise(() => sleep(20))
  })

  const startWorker = (task) => new Worker(new URL(import.meta.url), { workerData: task })
`

const run = async (body: string) => {
  const { exit, milliseconds, output } = await runChild(prelude + body)
  return { exit, milliseconds, output: output.trim() }
}

describe("threads with a runtime each", () => {
  it("wait concurrently, and each is woken by its own work", async () => {
    const { exit, output } = await run(`
      const workers = isMainThread ? [startWorker(), startWorker()] : []
      const messages = Promise.all(workers.map((worker) => once(worker, "message")))
      const exits = Promise.all(workers.map((worker) => once(worker, "exit")))
      const woken = await run(rounds(50))
      if (isMainThread) {
        const all = [woken, ...(await messages).flat()]
        console.log(all.length, all.every((count) => count >= 45 && count <= 50))
        console.log(await exits, misuses(), live(0), live(1), live(5))
      } else {
        parentPort.postMessage(woken)
      }
    `)
    assert.deepStrictEqual([exit, output], [0, "3 true\n[ [ 0 ], [ 0 ] ] 0 0 0 0"])
  })

  it("each warn once that the GPU cannot wake them", async () => {
    const { exit, output } = await run(`
      const worker = isMainThread ? startWorker() : undefined
      const exited = worker === undefined ? undefined : once(worker, "exit")
      const { load } = koffi
      const without = (own) => new Proxy(own, {
        get: (target, key) => key !== "func" ? target[key] : (name, ...types) => {
          if (name === "memset") return target.func(name, ...types)
          throw new Error("no such symbol")
        }
      })
      koffi.load = (path) => path === null ? without(load(path)) : load(path)
      await run(rounds(3))
      await run(rounds(3))
      await exited
    `)
    assert.strictEqual(exit, 0)
    assert.strictEqual(output.split("cannot wake").length - 1, 2, output)
  })
})

/** How a worker ends: what its thread does, and what the main thread does to it. */
const ends = {
  "ends with process.exit": { inside: "process.exit(3)", outside: "", code: 3 },
  "is terminated": { inside: "parentPort.postMessage(0); await sleep(60_000)", outside: "worker.terminate()", code: 1 },
  "throws": {
    inside: "setImmediate(() => { throw new Error('on purpose') }); await sleep(60_000)",
    outside: "",
    code: 1
  }
} as const

describe("a worker with pending wake-ups", () => {
  for (const [name, { code, inside, outside }] of Object.entries(ends)) {
    for (const moment of ["after", "before"] as const) {
      it(`${name}: work that ends ${moment} it is harmless`, async () => {
        const { exit, output } = await run(`
          if (!isMainThread) {
            await run(Effect.andThen(beginWaits(20), Effect.promise(async () => {
              ${moment === "before" ? "finishAll()" : ""}
              ${inside}
            })))
          } else {
            await run(Effect.gen(function*() {
              yield* rounds(3)
              const stream = yield* CudaStream.make()
              work(stream.handle, 0)
              const waiting = yield* Effect.forkChild(CudaStream.synchronize(stream))
              for (let round = 0; round < 2; round++) {
                const worker = startWorker()
                worker.on("error", () => {})
                const exited = new Promise((resolve) => worker.once("exit", resolve))
                ${outside === "" ? "" : `yield* Effect.promise(() => once(worker, "message")); ${outside}`}
                console.log("exit", yield* Effect.promise(() => exited))
                const called = hostCalls(0)
                finishAll()
                console.log(hostCalls(0) - called ${moment === "before" ? ">= 0" : ">= 20"})
                work(stream.handle, 0)
                yield* Effect.promise(() => sleep(5))
                yield* rounds(10)
              }
              finishAll()
              yield* Fiber.join(waiting)
              return yield* rounds(10)
            }))
            console.log("done", hostCalls(1), misuses())
          }
        `)
        const round = `exit ${code}\ntrue\n`
        assert.deepStrictEqual([exit, output], [0, `${round}${round}done 0 0`])
      })
    }
  }
})

describe("short-lived workers", () => {
  it("leak no descriptor", async () => {
    const { exit, output } = await run(`
      import { readdirSync } from "node:fs"
      if (!isMainThread) await run(rounds(1))
      else {
        const live = () => readdirSync("/proc/self/fd").length
        const one = () => new Promise((resolve) => startWorker().once("exit", resolve))
        await one()
        const before = live()
        for (let count = 0; count < 5; count++) await one()
        console.log(live() - before)
      }
    `)
    assert.deepStrictEqual([exit, output], [0, "0"])
  })
})

describe("a process", () => {
  it("whose only pending work is a wait with a wake-up stays alive, and then exits", async () => {
    const { exit, milliseconds, output } = await run(`
      await run(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        work(stream.handle, 0)
        setTimeout(finishAll, 500).unref()
        yield* CudaStream.synchronize(stream)
      }))
      console.log("done")
      const ended = performance.now()
      process.on("exit", () => console.log(performance.now() - ended < 200 ? "at once" : "late"))
    `)
    assert.deepStrictEqual([exit, output], [0, "done\nat once"])
    assert.isAbove(milliseconds, 500)
  })

  it("with a runtime that is never released and no wait exits at once", async () => {
    const { exit, output } = await run(`
      const scope = await Effect.runPromise(Scope.make())
      const program = NativeRuntime.make({ libraryPath: ${path}, wait: { pollFor: 0 } }).pipe(
        Effect.flatMap((runtime) => Effect.provideService(rounds(3), CudaRuntime.CudaRuntime, runtime)),
        Scope.provide(scope)
      )
      await Effect.runPromise(program)
      const ended = performance.now()
      process.on("exit", () => console.log(performance.now() - ended < 200 ? "at once" : "late"))
    `)
    assert.deepStrictEqual([exit, output], [0, "at once"])
  })

  it("with an interrupted wait and a pending wake-up exits at once", async () => {
    const { exit, output } = await run(`
      const scope = await Effect.runPromise(Scope.make())
      const program = NativeRuntime.make({ libraryPath: ${path}, wait: { pollFor: 0 } }).pipe(
        Effect.flatMap((runtime) => Effect.provideService(beginWaits(3), CudaRuntime.CudaRuntime, runtime)),
        Scope.provide(scope)
      )
      await Effect.runPromise(program)
      const ended = performance.now()
      process.on("exit", () => console.log(performance.now() - ended < 200 ? "at once" : "late"))
    `)
    assert.deepStrictEqual([exit, output], [0, "at once"])
  })

  it("that calls process.exit with waits outstanding on every thread exits with that code", async () => {
    const { exit, output } = await run(`
      if (isMainThread) {
        const workers = [startWorker(), startWorker()]
        await Promise.all(workers.map((worker) => once(worker, "message")))
      }
      await run(Effect.andThen(beginWaits(20), Effect.promise(async () => {
        if (!isMainThread) {
          parentPort.postMessage(0)
          await sleep(60_000)
        }
        finishAll()
        process.exit(7)
      })))
    `)
    assert.deepStrictEqual([exit, output], [7, ""])
  })
})
