/**
 * The programs of the workers test, in their own process: the main thread starts worker threads that run this file too, ends them in
 * the way the test names, and prints what it then finds.
 */
import { CudaMemory, CudaModule, CudaProgram, CudaRuntime, CudaStream, NativeRuntime } from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { setTimeout as sleep } from "node:timers/promises"
import { inspect } from "node:util"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"

/** Runs a program, again while other tests on the same GPU leave no memory for it. */
const run = <A>(
  program: Effect.Effect<A, CudaError.CudaError, Scope.Scope | CudaRuntime.CudaRuntime>
): Promise<A> => {
  const once = Effect.provide(Effect.scoped(program), NativeRuntime.layer())
  const isFull = ({ reason }: CudaError.CudaError) => reason._tag === "OutOfMemory"
  return Effect.runPromise(Effect.retry(once, { while: isFull, schedule: Schedule.spaced("200 millis"), times: 100 }))
}

const byteLength = 64_000_000

/** Copies a pattern to the device and back through pinned memory twenty times, and leaves the copies running. */
const roundTrip = (value: number) =>
  Effect.gen(function*() {
    const stream = yield* CudaStream.make()
    const [up, down] = [yield* CudaMemory.allocateHost(byteLength), yield* CudaMemory.allocateHost(byteLength)]
    const device = yield* CudaMemory.allocate(byteLength)
    up.bytes.fill(value)
    down.bytes.fill(0)
    for (let turn = 0; turn < 20; turn++) {
      yield* CudaMemory.copy(device, up, stream)
      yield* CudaMemory.copy(down, device, stream)
    }
    return { stream, down }
  })

const isRight = (value: number) =>
  Effect.gen(function*() {
    const { down, stream } = yield* roundTrip(value)
    yield* CudaStream.synchronize(stream)
    return down.bytes.every((byte) => byte === value)
  })

const begun = () => parentPort!.postMessage(0)

const inWorker = async (how: string): Promise<void> => {
  if (how === "released") {
    await run(isRight(1))
    begun()
    await sleep(60_000)
  }
  await run(Effect.andThen(
    roundTrip(1),
    Effect.promise(async () => {
      begun()
      if (how === "exit") process.exit(3)
      if (how === "throw") {
        setImmediate(() => {
          throw new Error("on purpose")
        })
      }
      await sleep(60_000)
    })
  ))
}

const endWorker = async (how: string): Promise<void> => {
  const worker = new Worker(new URL(import.meta.url), { workerData: how })
  let failure: unknown
  worker.on("error", (error) => {
    failure = error
  })
  const exited = new Promise<number>((resolve) => worker.once("exit", resolve))
  const ready = new Promise<void>((resolve) => worker.once("message", () => resolve()))
  const early = await Promise.race([ready, exited])
  if (early !== undefined) throw new Error(`The worker ended early with ${early}: ${inspect(failure)}`)
  if (how === "terminate" || how === "released") void worker.terminate()
  await exited
}

const ptx = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k()\n{\nret;\n}\n"

const all = <A, E, R>(one: Effect.Effect<A, E, R>) =>
  Effect.all(Array.from({ length: 300 }, () => one), { concurrency: "unbounded" })

const many = Effect.gen(function*() {
  const program = yield* CudaProgram.fromBytes(new TextEncoder().encode(ptx))
  const [modules, buffers] = yield* Effect.scoped(Effect.all(
    [all(CudaModule.load(program)), all(CudaMemory.allocateHost(5_000_000))],
    { concurrency: "unbounded" }
  ))
  const live = yield* (yield* CudaRuntime.CudaRuntime).liveResources
  return [modules.length, buffers.length, live.modules, live.hostBytes]
})

const inMainThread = async (how: string): Promise<unknown> => {
  if (how === "many") return run(many)
  const right: Array<boolean> = []
  for (let round = 2; round < 5; round++) {
    await endWorker(how)
    right.push(await run(isRight(round)))
  }
  return right
}

if (isMainThread) process.stdout.write(JSON.stringify(await inMainThread(process.argv[2]!)))
else await inWorker(String(workerData))
