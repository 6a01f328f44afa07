/**
 * Interruption between any two steps: a pipeline is interrupted before, during and after its k-th operation, for every k. At
 * every point nothing is left behind and nothing is freed too early.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaBranch from "effect-cuda/CudaBranch"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaInterprocess from "effect-cuda/CudaInterprocess"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaLibrary from "effect-cuda/CudaLibrary"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaMemoryPool from "effect-cuda/CudaMemoryPool"
import * as CudaModule from "effect-cuda/CudaModule"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { CudaRuntimeService } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as CudaTiming from "effect-cuda/CudaTiming"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { nothingHeld } from "../support/assertions.ts"
import { program as kernels, signatures } from "../support/kernels.ts"
import { assertQuiet, assertReleased, openStub, pause, stubLayer } from "../support/stubDriver.ts"
import { demo, StubLibrary } from "../support/stubLibrary.ts"

const stub = openStub()
const library = new StubLibrary(stub.path)

/** When a fiber is interrupted, relative to the k-th operation. */
const moments = ["before", "during", "after"] as const

/** Counts an operation. */
type Step = <A, E>(operation: Effect.Effect<A, E>) => Effect.Effect<A, E>

const releases: ReadonlyArray<keyof CudaRuntimeService> = [
  "streamDestroy",
  "eventDestroy",
  "memoryFree",
  "poolDestroy",
  "descriptorClose",
  "moduleUnload",
  "graphDestroy",
  "graphAbandon",
  "graphAbandonCapture",
  "libraryDestroy"
]

/** The runtime with every operation except releases passed through `step`. */
const instrument = (runtime: CudaRuntimeService, step: Step): CudaRuntimeService => {
  const wrapped: Record<string, unknown> = { ...runtime }
  for (const [name, member] of Object.entries(runtime)) {
    if (typeof member !== "function" || releases.includes(name as keyof CudaRuntimeService)) continue
    wrapped[name] = (...parameters: ReadonlyArray<unknown>) =>
      step(Reflect.apply(member, undefined, parameters) as Effect.Effect<unknown>)
  }
  return wrapped as unknown as CudaRuntimeService
}

/** Counts operations, and triggers the interruption at the k-th. */
const interruptionAt = (k: number, moment: (typeof moments)[number], reached: Deferred.Deferred<void>) => {
  let count = 0
  const open = Effect.asVoid(Deferred.succeed(reached, undefined))
  // Gives the interruption time to arrive. In an uninterruptible region the operation continues.
  const here = Effect.andThen(open, pause(1))
  const step: Step = (operation) =>
    Effect.suspend(() => {
      if (++count !== k) return operation
      if (moment === "before") return Effect.andThen(here, operation)
      if (moment === "during") return Effect.andThen(open, operation)
      return Effect.tap(operation, () => here)
    })
  return { step, count: () => count }
}

const chunk = 4096

type Program = Effect.Effect<void, CudaError, CudaRuntime | Scope.Scope>

/** Uploads, processes and downloads chunks on three streams, ordered by events: a small version of the demo. */
const pipeline: Program = Effect.gen(function*() {
  const [up, work, down] = yield* Effect.all([
    CudaStream.make(),
    CudaStream.make({ priority: "high" }),
    CudaStream.fromPool()
  ])
  const input = yield* CudaMemory.allocateHost(chunk)
  const output = yield* CudaMemory.allocateHost(chunk)
  const uploaded = yield* CudaEvent.make()
  const processed = yield* CudaEvent.make({ timing: true })
  const downloaded = yield* CudaEvent.make({ blocking: true })
  for (let round = 0; round < 2; round++) {
    yield* Effect.scoped(Effect.gen(function*() {
      const source = yield* CudaMemory.allocate(chunk)
      const target = yield* CudaMemory.allocate(chunk)
      input.bytes.fill(round + 1)
      yield* CudaMemory.copy(source, input, up)
      yield* CudaEvent.record(uploaded, up)
      yield* CudaStream.waitEvent(work, uploaded)
      yield* CudaMemory.copy(target, source, work)
      yield* CudaEvent.record(processed, work)
      yield* CudaStream.waitStream(down, work)
      yield* CudaMemory.copy(output, target, down)
      yield* CudaEvent.record(downloaded, down)
      yield* CudaEvent.synchronize(downloaded)
      assert.isTrue(output.bytes.every((byte) => byte === round + 1))
    }))
  }
  const array = new Uint8Array(chunk)
  const buffer = yield* CudaMemory.allocate(chunk)
  yield* CudaMemory.upload(buffer, array.fill(9), up)
  yield* CudaStream.withStream(CudaMemory.fill(CudaMemory.slice(buffer, 0, 16), 7), up)
  yield* CudaMemory.download(array, buffer, up)
  assert.deepStrictEqual([array[0], array[16]], [7, 9])
  yield* CudaStream.synchronize(down)
})

/** Pool, stream-ordered and managed memory, prefetches, and host functions that do the rest. */
const memories: Program = Effect.gen(function*() {
  const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
  const host = yield* CudaMemory.allocateHost(2 * chunk)
  const seen: Array<number | undefined> = []
  for (let round = 0; round < 2; round++) {
    yield* Effect.scoped(Effect.gen(function*() {
      const pool = yield* CudaMemoryPool.make()
      const source = yield* CudaMemory.allocate(2 * chunk, { pool, stream })
      const target = yield* CudaMemory.allocate(chunk, { stream: other })
      const managed = yield* CudaMemory.allocateManaged(9 * 1024 ** 2)
      yield* CudaMemory.advise(managed, { preferredLocation: 0 })
      host.bytes.fill(round + 1)
      yield* CudaMemory.copyBatch([
        { destination: CudaMemory.slice(source, 0, chunk), source: CudaMemory.slice(host, 0, chunk) },
        { destination: CudaMemory.slice(managed, 0, chunk), source: CudaMemory.slice(host, chunk) }
      ], stream)
      yield* CudaStream.waitStream(other, stream)
      yield* CudaMemory.copy2D(target, CudaMemory.rows(source, chunk / 2), { width: 64, height: 2 }, other)
      yield* CudaMemory.prefetch(managed, "host", other)
      yield* CudaMemory.copy(CudaMemory.slice(host, 0, 64), CudaMemory.slice(target, 0, 64), other)
      const looking = Effect.andThen(CudaStream.synchronize(other), Effect.sync(() => seen.push(host.bytes[0])))
      yield* Effect.flatMap(CudaStream.launchHostFunction(other, looking), Fiber.join)
      yield* CudaStream.launchHostFunction(other, Effect.sync(() => host.bytes.fill(0)))
    }))
  }
  assert.deepStrictEqual(seen, [1, 2])
  yield* CudaMemoryPool.trim(yield* CudaMemoryPool.ofDevice())
})

/** Recorded, embedded, updated and replaced graphs, with branches, memory, events and conditions, launched on two streams. */
const graphs: Program = Effect.gen(function*() {
  const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
  const module = yield* CudaModule.load(yield* kernels)
  const put = yield* CudaKernel.get(module, "put", signatures.put)
  const [input, output] = yield* Effect.all([CudaMemory.allocateHost(chunk), CudaMemory.allocateHost(chunk)])
  const [flag, kept] = yield* Effect.all([CudaMemory.allocate(chunk), CudaMemory.allocate(chunk)])
  const done = yield* CudaEvent.make({ timing: true })
  const step = CudaGraph.recordWith({ to: CudaGraph.buffer(chunk) }, ({ to }) =>
    Effect.gen(function*() {
      const scratch = yield* CudaMemory.allocate(chunk)
      yield* CudaTiming.region(CudaMemory.copy(scratch, input), "input")
      yield* CudaBranch.all([CudaMemory.copy(to, scratch), CudaKernel.launch(put, { grid: 1, block: 1 }, [kept, 1])])
      yield* CudaGraph.capture((stream) => Effect.sync(() => stub.nativeFill(stream, kept, 1)), { writes: [kept] })
      yield* CudaGraph.whileLoop(flag, CudaMemory.fill(flag, 0))
    }))
  const inner = yield* step
  const whole = CudaGraph.recordWith({ to: CudaGraph.buffer(chunk) }, ({ to }) =>
    Effect.gen(function*() {
      yield* CudaMemory.fill(flag, 1)
      yield* CudaGraph.embed(inner, { to })
      yield* CudaGraph.when(flag, CudaMemory.fill(to, 0), CudaMemory.copy(output, to))
      yield* CudaEvent.record(done, yield* CudaStream.current())
    }))
  const graph = yield* whole
  const exec = yield* CudaGraph.instantiate(graph, { instances: 2 })
  yield* CudaGraph.upload(exec, stream)
  for (const [round, on] of [stream, other, stream].entries()) {
    const to = yield* CudaMemory.allocate(chunk)
    input.bytes.fill(round + 1)
    yield* CudaGraph.launch(exec, { to }, on)
    yield* CudaEvent.synchronize(done)
    assert.isTrue(output.bytes.every((byte) => byte === round + 1))
  }
  yield* CudaGraph.updateOrReplace(exec, yield* whole)
  const fill = (value: number) => CudaGraph.record(CudaMemory.fill(kept, value))
  const filling = yield* CudaGraph.instantiate(yield* fill(1), { instances: 2 })
  yield* CudaGraph.update(filling, yield* fill(2))
  yield* CudaGraph.setEnabled(filling, 0, true)
  yield* CudaGraph.launch(filling, other)
  const to = yield* CudaMemory.allocate(chunk)
  const [begin, end] = [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make({ timing: true })]
  const range = { memory: to.ref, offset: 0, byteLength: chunk }
  assert.isTrue(yield* exec.runtime.graphMeasure(exec.ref, [range], [[begin.ref, end.ref]], other.ref))
  yield* CudaStream.synchronize(other)
})

/** Finishes pending work shortly after it is enqueued, like a GPU. */
const gpu = Effect.forever(Effect.andThen(pause(0), Effect.sync(() => stub.finishAll())))

/** Runs a program and interrupts it; returns the number of operations it reached. */
const runInterrupted = (interrupted: Program, k: number, moment: (typeof moments)[number]) =>
  Effect.gen(function*() {
    stub.reset()
    stub.pending = "copies"
    const reached = yield* Deferred.make<void>()
    const { count, step } = interruptionAt(k, moment, reached)
    const program = Effect.gen(function*() {
      const runtime = yield* CudaRuntime
      const instrumented = Layer.succeed(CudaRuntime, instrument(runtime, step))
      const fiber = yield* Effect.forkChild(Effect.scoped(Effect.provide(interrupted, instrumented)))
      yield* Effect.race(Deferred.await(reached), Fiber.await(fiber))
      yield* Fiber.interrupt(fiber)
      const held = yield* runtime.liveResources
      assert.deepStrictEqual({ ...held, streams: 0 }, nothingHeld)
      // The pooled stream lives as long as the runtime.
      assert.isAtMost(held.streams, 1)
    })
    const device = yield* Effect.forkChild(gpu)
    yield* Effect.provide(program, stubLayer(stub))
    yield* Fiber.interrupt(device)
    assertReleased(stub)
    return count()
  })

/** The operations of the whole program. */
const countOperations = (program: Program) => runInterrupted(program, Number.POSITIVE_INFINITY, "before")

/** Calls, memory and events of other code, and memory of the program. */
const others: Program = Effect.gen(function*() {
  const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
  const array = new Uint8Array(chunk)
  const [owner, event] = [yield* CudaMemory.allocate(chunk), yield* CudaEvent.make()]
  const theirs = yield* CudaEvent.fromHandle(event.handle)
  let held = 0
  yield* Effect.addFinalizer(() => Effect.sync(() => assert.strictEqual(held, 0)))
  const release = Effect.sync(() => void held--)
  const buffer = yield* Effect.uninterruptible(
    Effect.tap(
      CudaMemory.fromAddress(owner.address, chunk, { ordered: true, release }),
      () => Effect.sync(() => held++)
    )
  )
  const host = yield* CudaMemory.pin(array)
  for (const on of [stream, other, stream]) {
    const call = (handle: number) => stub.nativeFill(handle, buffer, 7)
    yield* CudaMemory.enqueue({ writes: [buffer], stream: on }, call)
    yield* CudaMemory.copy(host, buffer, on)
    yield* CudaEvent.record(theirs, on)
    yield* CudaEvent.synchronize(theirs)
    assert.isTrue(array.every((byte) => byte === 7))
  }
  const graph = yield* CudaGraph.record(
    CudaMemory.enqueue({ writes: [owner] }, (handle) => stub.nativeFill(handle, owner, 8))
  )
  yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), stream)
  yield* Effect.scoped(CudaMemory.pin(array))
  assert.strictEqual(held, 1)
})

/** Calls of a library on both threads, with a handle, in the order of streams, and through its C functions. */
const libraries: Program = Effect.gen(function*() {
  const loaded = yield* CudaLibrary.load(demo, { path: library.path })
  const [stream, buffer] = [yield* CudaStream.make(), yield* CudaMemory.allocate(chunk, { ordered: true })]
  const make = { create: "demoCreate", destroy: "demoDestroySlowly", setStream: "demoSetStream" } as const
  for (let round = 0; round < 2; round++) {
    yield* Effect.scoped(Effect.gen(function*() {
      const handle = yield* CudaLibrary.handle(loaded, make)
      yield* CudaLibrary.call(loaded, "demoFillOf", [handle, buffer, round + 1, chunk], stream)
      const out = new Int32Array(1)
      yield* CudaLibrary.call(loaded, "demoUse", [handle, out])
      assert.strictEqual(out[0], 1)
    }))
    const fill = yield* CudaLibrary.native(loaded, "demoFill")
    yield* CudaMemory.enqueue(
      { writes: [buffer], stream, status: loaded },
      (handle) => Number(fill?.(buffer.address, Uint8Array.of(round + 3), chunk, handle))
    )
    const bytes = new Uint8Array(chunk)
    yield* CudaMemory.download(bytes, buffer, stream)
    assert.isTrue(bytes.every((byte) => byte === round + 3))
  }
}).pipe(Effect.ensuring(Effect.sync(() => assert.strictEqual(library.misuse, ""))))

/** Memory that is shared with other processes, lent to them, and of them. */
const interprocess: Program = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const pool = yield* CudaMemoryPool.make({ shareable: true })
  const { descriptor, token } = yield* CudaInterprocess.sharePool(pool)
  const pooled = yield* CudaMemory.allocate(chunk, { pool })
  const single = yield* CudaInterprocess.allocate(chunk)
  for (const buffer of [pooled, single]) {
    yield* CudaInterprocess.lend(buffer, () => CudaMemory.fill(buffer, 1, stream), { stream })
  }
  const taken = yield* CudaInterprocess.takeDescriptor(process.pid, descriptor)
  const theirs = yield* CudaInterprocess.openPool({ ...token, id: "theirs" }, taken)
  const remote = stub.remoteEvent()
  const event = Buffer.from(remote.handle).toString("base64")
  const handle = Buffer.from(stub.remoteMemory(chunk)).toString("base64")
  remote.finish()
  for (const kind of ["pool", "allocation", "pool"] as const) {
    const memory = { _tag: "effect-cuda/MemoryToken", kind, handle, offset: 0, byteLength: chunk } as const
    yield* Effect.scoped(Effect.gen(function*() {
      const [first, second] = [
        yield* CudaInterprocess.open({ ...memory, ready: event, returned: event }, { pool: theirs }),
        yield* CudaInterprocess.open({ ...memory, byteLength: 8 }, { pool: theirs, ordered: true })
      ]
      yield* CudaMemory.fill(first, 1, stream)
      yield* CudaMemory.copy(CudaMemory.slice(pooled, 0, 8), second, stream)
    }))
  }
})

const programs: ReadonlyArray<readonly [string, Program, operations: number]> = [
  ["a pipeline", pipeline, 40],
  ["a program that uses memory of every kind", memories, 30],
  ["a program that records and launches graphs", graphs, 60],
  ["a program that shares memory and events with other code", others, 20],
  ["a program that shares memory with other processes", interprocess, 35],
  ["a program that calls a library", libraries, 15]
]

describe.each(programs)("%s", (_, program, least) => {
  it.live("that is not interrupted succeeds, and leaves nothing behind", () =>
    Effect.gen(function*() {
      assert.isAbove(yield* countOperations(program), least)
      yield* assertQuiet(stub)
    }))

  for (const moment of moments) {
    it.live(`interrupted ${moment} each of its operations leaves nothing behind`, () =>
      Effect.gen(function*() {
        const operations = yield* countOperations(program)
        for (let k = 1; k <= operations; k++) {
          const reached = yield* Effect.onError(
            runInterrupted(program, k, moment),
            (cause) => Effect.logError(`interrupted ${moment} operation ${k} of ${operations}`, cause)
          )
          assert.isAtLeast(reached, k, "the operation was never reached")
        }
        yield* assertQuiet(stub)
      }))
  }

  it.live("interrupted after any number of event-loop turns leaves nothing behind", () =>
    Effect.gen(function*() {
      for (let turns = 0; turns < 40; turns++) {
        stub.reset()
        stub.pending = "copies"
        const device = yield* Effect.forkChild(gpu)
        const fiber = yield* Effect.forkChild(Effect.provide(Effect.scoped(program), stubLayer(stub)))
        for (let turn = 0; turn < turns; turn++) yield* nextTurn
        yield* Fiber.interrupt(fiber)
        yield* Fiber.interrupt(device)
        assertReleased(stub)
      }
      // A `cuInit` whose caller was interrupted may still run on a pool thread.
      yield* pause(20)
      yield* assertQuiet(stub)
    }))
})

const nextTurn = Effect.callback<void>((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})
