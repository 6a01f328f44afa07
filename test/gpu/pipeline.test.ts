/**
 * A pipeline on a GPU, interrupted at 1,000 seeded random points: at a runtime operation, or after a delay. Each time nothing
 * is left behind and the delivered elements are correct.
 */
import { assert, describe, layer } from "@effect/vitest"
import { CudaMemory, CudaPipeline, CudaRuntime, CudaStream } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { wrapEvery } from "../demo/support.ts"
import { gpu, nativeRig } from "../support/gpu.ts"
import { Busy } from "../support/Rig.ts"

const rounds = 1000
const seed = 20_240_229
const mostBytes = 64 * 1024

/** Deterministic integers from 0 to below the bound (mulberry32). */
const makeRandom = (state: number) => (bound: number): number => {
  state = (state + 0x6d2b79f5) | 0
  let mixed = Math.imul(state ^ (state >>> 15), state | 1)
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
  return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * bound)
}

/** The parameters of a round. */
interface Round {
  readonly slots: number
  readonly sizes: ReadonlyArray<number>
  /** Milliseconds of a kernel before the copy on the device. */
  readonly kernelMillis: number
  /** Where it is interrupted: before or after the numbered operation, or this many milliseconds after the start. */
  readonly point:
    | { readonly operation: number; readonly when: "before" | "after" | "a turn after" }
    | { readonly millis: number }
}

const drawRound = (random: (bound: number) => number): Round => ({
  slots: 1 + random(5),
  sizes: Array.from({ length: 7 }, () => random(4) === 0 ? random(3) : 1 + random(mostBytes)),
  kernelMillis: [0, 0.02, 0.2][random(3)]!,
  point: random(2) === 0
    ? { operation: 1 + random(300), when: (["before", "after", "a turn after"] as const)[random(3)]! }
    : { millis: random(4000) / 1000 }
})

/** Bytes that identify an element. */
const byteOf = (index: number, position: number): number => (index * 31 + position * 7 + (position >> 8)) & 255

const fill = (index: number, size: number, into: Uint8Array): void => {
  for (let position = 0; position < size; position++) into[position] = byteOf(index, position)
}

const isRight = (index: number, size: number, bytes: Uint8Array): boolean =>
  bytes.byteLength === size && bytes.every((byte, position) => byte === byteOf(index, position))

/** An endless pipeline. */
const pipeline = ({ kernelMillis, sizes, slots }: Round) => {
  const sizeOf = (index: number) => sizes[index % sizes.length]!
  return Stream.range(0, 1_000_000).pipe(
    Stream.rechunk(3),
    CudaPipeline.through({
      slots,
      inputBytes: mostBytes,
      fill: (index, into) =>
        Effect.map(index % 3 === 0 ? Effect.yieldNow : Effect.void, () => {
          fill(index, sizeOf(index), into)
          return sizeOf(index)
        }),
      work: ({ input, output }) =>
        Effect.gen(function*() {
          const busy = yield* Busy
          if (kernelMillis > 0) yield* busy.enqueue(yield* CudaStream.current(), kernelMillis)
          yield* CudaMemory.copy(output, input)
        }),
      take: CudaPipeline.copyOut
    }),
    Stream.zipWithIndex,
    Stream.map(([bytes, index]) => isRight(index, sizeOf(index), bytes))
  )
}

/** Calls after a number of milliseconds, to within a turn of the event loop: timers have millisecond resolution. */
const after = (millis: number, call: () => void): void => {
  const due = performance.now() + millis
  const look = () => performance.now() < due ? void setImmediate(look) : call()
  look()
}

/** Runs a round until it is interrupted. */
const interrupted = Effect.fnUntraced(function*(round: Round) {
  const runtime = yield* CudaRuntime.CudaRuntime
  const { point } = round
  const running: { fiber?: Fiber.Fiber<unknown, unknown> } = {}
  const interrupt = () => running.fiber?.interruptUnsafe()
  let operations = 0
  const counted = wrapEvery(runtime, (operation) =>
    Effect.suspend(() => {
      if (!("operation" in point) || ++operations !== point.operation) return operation
      if (point.when === "before") return Effect.andThen(Effect.sync(interrupt), operation)
      return Effect.ensuring(
        operation,
        Effect.sync(() => point.when === "after" ? interrupt() : setImmediate(interrupt))
      )
    }))
  const delivered: Array<boolean> = []
  running.fiber = yield* pipeline(round).pipe(
    Stream.runForEach((right) => Effect.sync(() => delivered.push(right))),
    Effect.provideService(CudaRuntime.CudaRuntime, counted),
    Effect.forkChild
  )
  if ("millis" in point) after(point.millis, interrupt)
  const exit = yield* Fiber.await(running.fiber)
  return { exit, delivered, live: yield* runtime.liveResources }
})

describe.skipIf(gpu === undefined)("on a GPU", () => {
  layer(nativeRig.layer, { excludeTestServices: true })("a pipeline", (it) => {
    it.effect(
      "leaves nothing behind and delivers correct elements when interrupted at 1,000 random points",
      () =>
        Effect.gen(function*() {
          const runtime = yield* CudaRuntime.CudaRuntime
          const before = yield* runtime.liveResources
          const random = makeRandom(seed)
          let delivered = 0
          for (let index = 0; index < rounds; index++) {
            const round = drawRound(random)
            const result = yield* interrupted(round)
            const context = `round ${index}: ${JSON.stringify(round)}`
            assert.isTrue(Exit.hasInterrupts(result.exit), context)
            assert.deepStrictEqual(result.live, before, context)
            assert.isTrue(result.delivered.every((right) => right), context)
            delivered += result.delivered.length
          }
          assert.isAbove(delivered, rounds)
        }),
      120_000
    )
  })
})
