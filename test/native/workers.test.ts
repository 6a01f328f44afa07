/**
 * Worker threads that end without releasing their runtime, and hundreds of concurrent calls off the JS thread.
 */
import { assert, describe, it } from "@effect/vitest"
import { constants } from "node:buffer"
import { runChild } from "../support/stub/child.ts"
import { openStub } from "../support/stubDriver.ts"

const stub = openStub()
const path = JSON.stringify(stub.path)

/** The beginning of every program. Its worker threads run the same file. */
const prelude = `
  import koffi from "koffi"
  import { setTimeout as sleep } from "node:timers/promises"
  import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
  import * as Effect from "effect/Effect"
  // Each by itself: a thread that imports all modules takes more than twice as long to start.
  import * as CudaEvent from "./CudaEvent.js"
  import * as CudaMemory from "./CudaMemory.js"
  import * as CudaModule from "./CudaModule.js"
  import * as CudaProgram from "./CudaProgram.js"
  import * as CudaStream from "./CudaStream.js"
  import * as NativeRuntime from "./layers/NativeRuntime.js"

  const library = koffi.load(${path})
  const setPending = library.func("stub_set_pending", "void", ["int"])
  const finishAll = library.func("stub_finish_all", "int", [])
  const misuses = library.func("stub_misuses", "int", [])
  const remoteEvent = library.func("stub_remote_event", "int", ["void *"])
  const finishRemote = library.func("stub_remote_finish", "void", ["int"])
  const remote = () => {
    const handle = new Uint8Array(64)
    remoteEvent(handle)
    return handle
  }
  const live = library.func("stub_live", "int", ["int"])
  const registrations = () => live(3)

  const program = CudaProgram.fromBytes(new TextEncoder().encode(
    ".version 8.0\\n.target sm_90\\n.address_size 64\\n.visible .entry k()\\n{\\nret;\\n}\\n"
  ))
  const load = Effect.flatMap(program, (made) => CudaModule.load(made))
  const layer = NativeRuntime.layer({ libraryPath: ${path}, wait: { pollFor: 0 } })
  const run = (program) => Effect.runPromise(Effect.provide(Effect.scoped(program), layer))

  /** Copies pinned memory to the device and back. */
  const roundTrip = Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const [up, down] = [yield* CudaMemory.allocateHost(3_000_000), yield* CudaMemory.allocateHost(3_000_000)]
    const device = yield* CudaMemory.allocate(3_000_000)
    up.bytes.fill(7)
    down.bytes.fill(0)
    yield* CudaMemory.copy(device, up, stream)
    yield* CudaMemory.copy(down, device, stream)
    return { stream, down }
  })

  const checked = Effect.gen(function*() {
    const { stream, down } = yield* roundTrip
    yield* CudaStream.synchronize(stream)
    return down.bytes.every((byte) => byte === 7)
  })

  /** Starts a worker, and ends it once it is ready, unless it ends first. */
  const endWorker = async (task, delay = 0) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: task })
    worker.on("error", () => {})
    const exited = new Promise((resolve) => worker.once("exit", resolve))
    await new Promise((resolve) => worker.once("message", resolve))
    if (delay > 0) await sleep(delay * Math.random())
    if (task !== "exit" && task !== "throw") worker.terminate()
    return exited
  }

  const leave = async () => {
    parentPort.postMessage(0)
    if (workerData === "exit") process.exit(3)
    if (workerData === "throw") setImmediate(() => { throw new Error("on purpose") })
    await sleep(60_000)
  }
`

const run = async (body: string) => {
  const { exit, output } = await runChild(prelude + body)
  return [exit, output.trim()]
}

const ends = ["terminate", "exit", "throw"] as const

describe("a worker that ends without releasing its pinned memory", () => {
  for (const how of ends) {
    it(`by ${how}, while copies run: they corrupt nothing, and others can pin memory`, async () => {
      const result = await run(`
        if (!isMainThread) {
          await run(Effect.andThen(roundTrip, Effect.promise(leave)))
        } else {
          for (let round = 0; round < 4; round++) {
            setPending(1)
            await endWorker("${how}")
            setPending(0)
            console.log(finishAll() > 0, await run(checked), misuses())
          }
        }
      `)
      assert.deepStrictEqual(result, [0, Array(4).fill("true true 0").join("\n")])
    })
  }

  for (const how of ["exit", "throw"] as const) {
    it(`by ${how}, without work: nothing stays pinned`, async () => {
      const result = await run(`
        if (!isMainThread) {
          await run(Effect.andThen(checked, Effect.promise(leave)))
        } else {
          await endWorker("${how}")
          console.log(registrations(), misuses())
        }
      `)
      assert.deepStrictEqual(result, [0, "0 0"])
    })
  }
})

/** What workers repeat while they are terminated. Each reports once that it has begun. */
const loops = {
  "moves managed memory": `
    const stream = yield* CudaStream.make()
    const managed = yield* CudaMemory.allocateManaged(4096)
    for (;;) {
      yield* CudaMemory.prefetch(managed, "host", stream)
      begun()
    }
  `,
  "advises on managed memory": `
    const managed = yield* CudaMemory.allocateManaged(4096)
    for (;;) {
      yield* CudaMemory.advise(managed, { readMostly: true })
      begun()
    }
  `,
  "opens events of other processes": `
    for (;;) {
      yield* Effect.exit(Effect.scoped(CudaEvent.fromIpcHandle(new Uint8Array(64))))
      begun()
    }
  `,
  "uses pinned memory again": `
    for (;;) {
      yield* Effect.scoped(CudaMemory.allocateHost(1000))
      begun()
    }
  `
}

describe("a worker that is terminated", () => {
  it("right after it released its runtime does not crash the process", async () => {
    const result = await run(`
      if (!isMainThread) {
        await run(CudaStream.make())
        parentPort.postMessage(0)
      } else {
        for (let round = 0; round < 12; round++) await endWorker("terminate")
        console.log("alive")
      }
    `)
    assert.deepStrictEqual(result, [0, "alive"])
  })

  for (const [what, loop] of Object.entries(loops)) {
    it(`while it ${what} does not crash the process`, async () => {
      const result = await run(`
        if (!isMainThread) {
          let rounds = 0
          const begun = () => { if (++rounds === 3) parentPort.postMessage(0) }
          await run(Effect.gen(function*() { ${loop} }))
        } else {
          for (let round = 0; round < 12; round++) await endWorker("terminate", 10)
          console.log("alive")
        }
      `)
      assert.deepStrictEqual(result, [0, "alive"])
    })
  }
})

describe("calls with structs by value", () => {
  it("do not use a koffi struct, which crashes the process if the thread is terminated meanwhile", async () => {
    const result = await run(`
      koffi.struct = () => { throw new Error("a struct") }
      await run(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const managed = yield* CudaMemory.allocateManaged(4096)
        yield* CudaMemory.prefetch(managed, "host", stream)
        yield* CudaMemory.advise(managed, { readMostly: true })
        const event = yield* CudaEvent.fromIpcHandle(remote())
        finishRemote(0)
        yield* CudaEvent.synchronize(event)
      }))
      console.log(misuses())
    `)
    assert.deepStrictEqual(result, [0, "0"])
  })
})

describe("pinned memory that the program transferred", () => {
  it("stays valid for running copies, even if it is garbage-collected", async () => {
    const result = await run(`
      import { setFlagsFromString } from "node:v8"
      import { runInNewContext } from "node:vm"
      setFlagsFromString("--expose-gc")
      const collect = runInNewContext("gc")
      await run(Effect.gen(function*() {
        setPending(1)
        const { stream, down } = yield* roundTrip
        let given = new ReadableStream({
          type: "bytes",
          start: (controller) => controller.enqueue(new Uint8Array(down.bytes.buffer))
        })
        given = undefined
        for (let round = 0; round < 5; round++) {
          collect()
          yield* Effect.promise(() => sleep(1))
        }
        setPending(0)
        console.log(down.bytes.byteLength, finishAll())
        yield* CudaStream.synchronize(stream)
      }))
      console.log(registrations(), misuses())
    `)
    assert.deepStrictEqual(result, [0, "0 2\n0 0"])
  })
})

describe("managed memory", () => {
  it("larger than an array can be throws when it is viewed, and remains usable", async () => {
    const byteLength = 2 ** 32 + 1
    const result = await run(`
      library.func("stub_set_memory", "void", ["uint64_t"])(2 ** 34)
      await run(Effect.gen(function*() {
        const managed = yield* CudaMemory.allocateManaged(${byteLength})
        try {
          console.log(managed.bytes.byteLength)
        } catch (error) {
          console.log(error.name)
        }
      }))
    `)
    assert.deepStrictEqual(result, [0, constants.MAX_LENGTH < byteLength ? "RangeError" : String(byteLength)])
  })
})

/** Calls off the JS thread, made many at a time. */
const calls = {
  loads: "load",
  allocations: "CudaMemory.allocateHost(1000)"
}

describe("very many calls off the JS thread", () => {
  for (const [what, call] of Object.entries(calls)) {
    it(`${what}: all of them end, and so does the runtime`, async () => {
      const result = await run(`
        const usleep = koffi.load(null).func("usleep", "int", ["uint32_t"])
        const all = Array.from({ length: 400 }, () => ${call})
        const exits = await run(Effect.gen(function*() {
          yield* CudaStream.make()
          // All pool threads are busy at first.
          for (let count = 0; count < 4; count++) usleep.async(100_000, () => {})
          return yield* Effect.all(all.map(Effect.exit), { concurrency: "unbounded" })
        }))
        console.log(exits.filter(({ _tag }) => _tag === "Success").length, registrations(), live(7), misuses())
      `)
      assert.deepStrictEqual(result, [0, "400 0 0 0"])
    })

    it(`${what}: while the program leaves koffi none, they wait, and so does the end of the runtime`, async () => {
      const result = await run(`
        const usleep = koffi.load(null).func("usleep", "int", ["uint32_t"])
        await run(Effect.gen(function*() {
          yield* CudaStream.make()
          try {
            for (;;) usleep.async(2000, () => {})
          } catch (error) {
            console.log(error.message)
          }
          const all = Array.from({ length: 5 }, () => ${call})
          const exits = yield* Effect.all(all.map(Effect.exit), { concurrency: "unbounded" })
          console.log(exits.every(({ _tag }) => _tag === "Success"))
          try {
            for (;;) usleep.async(2000, () => {})
          } catch {}
        }))
        console.log(registrations(), live(5), live(7), misuses())
      `)
      assert.deepStrictEqual(result, [0, "Too many asynchronous calls are running\ntrue\n0 0 0 0"])
    })
  }

  it("loads that are interrupted before their turn are not made", async () => {
    const result = await run(`
      const hold = library.func("stub_hold_loads", "void", ["int"])
      const calls = library.func("stub_calls", "double", [])
      await run(Effect.gen(function*() {
        yield* CudaStream.make()
        hold(1)
        const all = Array.from({ length: 600 }, () => ${calls.loads})
        yield* Effect.timeoutOption(Effect.all(all, { concurrency: "unbounded" }), 50)
        hold(0)
      }))
      console.log(live(7), misuses(), calls() < 600)
    `)
    assert.deepStrictEqual(result, [0, "0 0 true"])
  })
})
