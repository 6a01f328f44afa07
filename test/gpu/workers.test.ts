/**
 * Worker threads on a GPU that end without releasing their runtimes, and more loads and allocations at once than Node.js has
 * pool threads.
 */
import { assert, describe, it } from "@effect/vitest"
import { gpu } from "../support/gpu.ts"
import { runChild } from "../support/stub/child.ts"

/** What every program begins with; its worker threads run the same file. */
const prelude = `
  import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
  import { setTimeout as sleep } from "node:timers/promises"
  import * as Effect from "effect/Effect"
  import { CudaMemory, CudaModule, CudaProgram, CudaRuntime, CudaStream, NativeRuntime } from "./index.js"

  const run = (program) => Effect.runPromise(Effect.provide(Effect.scoped(program), NativeRuntime.layer()))

  /** Copies a pattern to the device and back through pinned memory, and leaves the copies running. */
  const roundTrip = (value) => Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const [up, down] = [yield* CudaMemory.allocateHost(64e6), yield* CudaMemory.allocateHost(64e6)]
    const device = yield* CudaMemory.allocate(64e6)
    up.bytes.fill(value)
    down.bytes.fill(0)
    for (let turn = 0; turn < 20; turn++) {
      yield* CudaMemory.copy(device, up, stream)
      yield* CudaMemory.copy(down, device, stream)
    }
    return { stream, down }
  })

  const isRight = (value) => Effect.gen(function*() {
    const { stream, down } = yield* roundTrip(value)
    yield* CudaStream.synchronize(stream)
    return down.bytes.every((byte) => byte === value)
  })

  const endWorker = async (how) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: how })
    worker.on("error", () => {})
    const exited = new Promise((resolve) => worker.once("exit", resolve))
    await new Promise((resolve) => worker.once("message", resolve))
    if (how === "terminate") worker.terminate()
    return exited
  }
`

const run = async (body: string) => {
  const { exit, output } = await runChild(prelude + body)
  return [exit, output.trim()]
}

describe.skipIf(gpu === undefined)("a worker thread on a GPU", () => {
  for (const how of ["terminate", "exit", "throw"]) {
    it(`that ends by ${how} while copies run through its pinned memory leaves the data of others alone`, async () => {
      const result = await run(`
        if (!isMainThread) {
          await run(Effect.andThen(roundTrip(1), Effect.promise(async () => {
            parentPort.postMessage(0)
            if (workerData === "exit") process.exit(3)
            if (workerData === "throw") setImmediate(() => { throw new Error("on purpose") })
            await sleep(60_000)
          })))
        } else {
          for (let round = 2; round < 5; round++) {
            await endWorker("${how}")
            console.log(await run(isRight(round)))
          }
        }
      `)
      assert.deepStrictEqual(result, [0, "true\ntrue\ntrue"])
    })
  }

  it("that is terminated right after it released its runtime ends alone", async () => {
    const result = await run(`
      if (!isMainThread) {
        await run(isRight(1))
        parentPort.postMessage(0)
        await sleep(60_000)
      } else {
        for (let round = 0; round < 3; round++) await endWorker("terminate")
        console.log(await run(isRight(2)))
      }
    `)
    assert.deepStrictEqual(result, [0, "true"])
  })
})

describe.skipIf(gpu === undefined)("on a GPU, 300 at once", () => {
  it("of loads and of pinned allocations succeed, and nothing is left", async () => {
    const result = await run(`
      const ptx = new TextEncoder().encode(
        ".version 7.0\\n.target sm_70\\n.address_size 64\\n.visible .entry k()\\n{\\nret;\\n}\\n"
      )
      const all = (one) => Effect.all(Array.from({ length: 300 }, () => one), { concurrency: "unbounded" })
      console.log(await run(Effect.gen(function*() {
        const program = yield* CudaProgram.fromBytes(ptx)
        const [modules, buffers] = yield* Effect.scoped(
          Effect.all([all(CudaModule.load(program)), all(CudaMemory.allocateHost(5_000_000))], { concurrency: 2 })
        )
        const runtime = yield* CudaRuntime.CudaRuntime
        const { hostBytes, modules: modulesLeft } = yield* runtime.liveResources
        return [modules.length, buffers.length, modulesLeft, hostBytes].join(" ")
      })))
    `)
    assert.deepStrictEqual(result, [0, "300 300 0 0"])
  })
})
