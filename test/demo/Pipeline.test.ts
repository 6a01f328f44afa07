/**
 * The demo's pipeline on the simulated runtime: returns the source's bytes, detects wrong ones, and leaves nothing behind
 * wherever it is interrupted.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaRuntime } from "effect-cuda"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { BytesDiffer, pipelined, serial } from "../../examples/demo/Pipeline.ts"
import { FileProblem } from "../../examples/demo/Source.ts"
import type { Source } from "../../examples/demo/Source.ts"
import * as Summary from "../../examples/demo/Summary.ts"
import { nothingHeld } from "../support/assertions.ts"
import { changedRuntime, fastRuntime, makeBytes, memorySource, plainSummary, wrapEvery } from "./support.ts"

/** Of times in milliseconds. */
const rounding = 1e-3

const runs = { pipelined, serial }
const chunkBytes = 256

/** Collects the returned chunks into one array. */
const collect = Effect.fnUntraced(function*(run: typeof pipelined, bytes: Uint8Array, slots: number) {
  const returned = new Uint8Array(bytes.byteLength)
  let total = 0
  const result = yield* run(memorySource(bytes), {
    chunkBytes,
    slots,
    onChunk: (offset, chunk) =>
      Effect.sync(() => {
        returned.set(chunk, offset)
        total += chunk.byteLength
      })
  })
  return { result, returned, total }
})

describe.each(["pipelined", "serial"] as const)("%s", (name) => {
  it.live.each<readonly [string, number]>([
    ["1 byte", 1],
    ["one byte less than a chunk", chunkBytes - 1],
    ["exactly one chunk", chunkBytes],
    ["a chunk and a byte", chunkBytes + 1],
    ["as many chunks as slots", 3 * chunkBytes],
    ["many rounds of the slots, and an odd end", 41 * chunkBytes + 17]
  ])("returns exactly the source's bytes: %s", ([, byteLength]) =>
    Effect.gen(function*() {
      const bytes = makeBytes(byteLength)
      const { result, returned, total } = yield* collect(runs[name], bytes, 3)
      assert.strictEqual(total, byteLength)
      assert.isTrue(Buffer.from(returned).equals(bytes))
      assert.strictEqual(result.timeline.regions.length, 3 * Math.ceil(byteLength / chunkBytes))
      assert.strictEqual(result.timeline.dropped, 0)
      assert.deepStrictEqual(result.summary, plainSummary(bytes))
      assert.deepStrictEqual(yield* liveNow, nothingHeld)
    }).pipe(Effect.provide(fastRuntime)))

  it.live.each([1, 3, 255, 257, 1000])(
    "computes the same summary in chunks of %i bytes",
    (chunkBytes) =>
      Effect.gen(function*() {
        const bytes = makeBytes(1000)
        const { summary } = yield* runs[name](memorySource(bytes), { chunkBytes, slots: 3 })
        assert.deepStrictEqual(summary, plainSummary(bytes))
      }).pipe(Effect.provide(fastRuntime))
  )

  it.live.each(
    [
      ["histogram", 0, "the count of byte"],
      ["histogram", 2, "the count of byte"],
      ["checksum", 0, "the CRC-32"],
      ["checksum", 2, "the CRC-32"]
    ] as const
  )("detects one launch of %s that happens %i times", ([kernel, times, what]) =>
    Effect.gen(function*() {
      const source = memorySource(makeBytes(9 * chunkBytes + 5))
      const { summary } = yield* runs[name](source, { chunkBytes, slots: 3 })
      const expected = yield* Summary.summarize(source, { chunkBytes })
      const failure = yield* Effect.flip(Summary.compare(source.name, summary, expected))
      assert.instanceOf(failure, Summary.SummariesDiffer)
      assert.match(failure.message, new RegExp(`^memory: ${what}.* is [0-9a-f]+ but the device found [0-9a-f]+$`))
      assert.deepStrictEqual(yield* liveNow, nothingHeld)
    }).pipe(Effect.provide(repeatingNode(kernel, times))))

  it.live.each(
    [
      ["upload", () => skippingCopy("device")],
      ["stage", () => repeatingNode("CudaMemory.copy", 0)],
      ["download", () => skippingCopy("host")]
    ] as const
  )("detects a missing %s", ([, machine]) =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(
        runs[name](memorySource(makeBytes(9 * chunkBytes + 5)), { chunkBytes, slots: 3 })
      )
      assert.instanceOf(failure, BytesDiffer)
      assert.match(failure.message, /^memory: byte \d+ is \d+ but came back as \d+$/)
      assert.deepStrictEqual(yield* liveNow, nothingHeld)
    }).pipe(Effect.provide(machine())))

  it.live("detects a single wrong byte and reports its offset", () =>
    Effect.gen(function*() {
      const bytes = makeBytes(5 * chunkBytes)
      const at = 3 * chunkBytes + 99
      const failure = yield* Effect.flip(runs[name](readDifferently(bytes, at), { chunkBytes, slots: 3 }))
      assert.instanceOf(failure, BytesDiffer)
      assert.strictEqual(failure.offset, at)
    }).pipe(Effect.provide(fastRuntime)))

  it.live("fails with the source's failure, and leaves nothing behind", () =>
    Effect.gen(function*() {
      const problem = new FileProblem({ path: "memory", problem: "is gone" })
      const source = memorySource(makeBytes(5 * chunkBytes))
      const failing: Source = {
        ...source,
        read: (into, offset) => offset < 2 * chunkBytes ? source.read(into, offset) : Effect.fail(problem)
      }
      assert.strictEqual(yield* Effect.flip(runs[name](failing, { chunkBytes, slots: 3 })), problem)
      assert.deepStrictEqual(yield* liveNow, nothingHeld)
    }).pipe(Effect.provide(fastRuntime)))

  it.live("leaves nothing behind when interrupted at any step", () =>
    Effect.gen(function*() {
      const steps = yield* interruptedAt(runs[name], Number.POSITIVE_INFINITY, "before")
      assert.isTrue(Exit.isSuccess(steps.exit))
      assert.isAbove(steps.count, 40)
      for (let step = 1; step <= steps.count; step++) {
        for (const when of ["before", "after"] as const) {
          const { count, exit, live } = yield* interruptedAt(runs[name], step, when)
          // How often a timeline reads the clock depends on the time.
          assert.strictEqual(Exit.isFailure(exit), count >= step, `${when} step ${step} is interrupted`)
          assert.deepStrictEqual(live, nothingHeld, `${when} step ${step}`)
        }
      }
    }).pipe(Effect.provide(fastRuntime)))
})

describe("both", () => {
  it.live("times its operations in order", () =>
    Effect.gen(function*() {
      const { result } = yield* collect(pipelined, makeBytes(8 * chunkBytes), 3)
      const spanOf = (chunk: number, step: string) => {
        const { duration, start } = result.timeline.regions.find(({ attributes, name }) =>
          attributes["index"] === chunk && name === step
        )!
        return { from: Duration.toMillis(start), to: Duration.toMillis(Duration.sum(start, duration)) }
      }
      for (let chunk = 0; chunk < 8; chunk++) {
        const [upload, work, download] = [spanOf(chunk, "upload"), spanOf(chunk, "work"), spanOf(chunk, "download")]
        assert.isAtMost(upload.to, work.from + rounding)
        assert.isAtMost(work.to, download.from + rounding)
      }
      assert.isTrue(Duration.isPositive(result.wallTime))
    }).pipe(Effect.provide(fastRuntime)))

  it.live("replays the work on whole chunks, and enqueues that on the rest", () => {
    const calls = { graphLaunch: 0, kernelLaunch: 0 }
    const machine = changedRuntime((runtime) =>
      wrapEvery(runtime, (operation, name) =>
        Effect.suspend(() => {
          if (name === "graphLaunch" || name === "kernelLaunch") calls[name]++
          return operation
        }))
    )
    return Effect.gen(function*() {
      yield* collect(pipelined, makeBytes(8 * chunkBytes + 1), 3)
      // Two kernels are launched while the graph is recorded, and two for the last byte.
      assert.deepStrictEqual(calls, { graphLaunch: 8, kernelLaunch: 4 })
    }).pipe(Effect.provide(machine))
  })
})

const liveNow = Effect.flatMap(CudaRuntime.CudaRuntime, (runtime) => runtime.liveResources)

/** A runtime that skips the eighth upload, or the eighth download. */
const skippingCopy = (to: "device" | "host") =>
  changedRuntime((runtime) => {
    let copies = 0
    return {
      ...runtime,
      memoryCopy: (into, from, stream) =>
        into.memory.kind === to && from.memory.kind !== to && ++copies === 8
          ? Effect.void
          : runtime.memoryCopy(into, from, stream)
    }
  })

/** A runtime on which a node of the eighth launch of a graph does its work a number of times other than once. */
const repeatingNode = (name: string, times: number) =>
  changedRuntime((runtime) => {
    let launches = 0
    return {
      ...runtime,
      graphLaunch: (exec, values, stream) => {
        const launch = runtime.graphLaunch(exec, values, stream)
        if (++launches !== 8) return launch
        const without = (isMeant: (node: string) => boolean) => {
          const meant = exec.graph.nodes.filter((node) => isMeant(node.name))
          const set = (enabled: boolean) =>
            Effect.forEach(meant, ({ index }) => runtime.graphSetEnabled(exec, index, enabled), { discard: true })
          return Effect.andThen(set(false), Effect.andThen(launch, set(true)))
        }
        return times === 0
          ? without((node) => node === name)
          : Effect.andThen(
            launch,
            Effect.replicateEffect(without((node) => node !== name), times - 1, { discard: true })
          )
      }
    }
  })

/** A source that returns a different byte when read again. */
const readDifferently = (bytes: Uint8Array, at: number): Source => {
  const source = memorySource(bytes)
  let asked = false
  return {
    ...source,
    read: (into, offset) =>
      Effect.map(source.read(into, offset), () => {
        if (at < offset || at >= offset + into.byteLength) return
        if (asked) into[at - offset]! ^= 0x40
        asked = true
      })
  }
}

/** Runs until the numbered operation begins or has ended, and interrupts there. */
const interruptedAt = Effect.fnUntraced(function*(run: typeof pipelined, step: number, when: "before" | "after") {
  const runtime = yield* CudaRuntime.CudaRuntime
  let count = 0
  const running: { fiber?: Fiber.Fiber<unknown, unknown> } = {}
  const wrapped = wrapEvery(runtime, (operation, name) =>
    Effect.suspend(() => {
      // Loading is interruptible and releases what it loaded until it ends: there is no point after that.
      if (name === "moduleLoad") return operation
      const here = ++count === step
      const interrupt = Effect.sync(() => {
        if (here) running.fiber?.interruptUnsafe()
      })
      return when === "before" ? Effect.andThen(interrupt, operation) : Effect.ensuring(operation, interrupt)
    }))
  const fiber = yield* Effect.forkChild(
    run(memorySource(makeBytes(3 * chunkBytes + 1)), { chunkBytes, slots: 2 }).pipe(
      Effect.provideService(CudaRuntime.CudaRuntime, wrapped)
    )
  )
  running.fiber = fiber
  const exit = yield* Fiber.await(fiber)
  return { count, exit, live: yield* runtime.liveResources }
})
