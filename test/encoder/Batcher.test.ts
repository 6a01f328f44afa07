/**
 * Batching by length, in virtual time, with batches that end when the test says so.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as Batcher from "../../examples/encoder/Batcher.ts"
import { settled, started } from "../support/fibers.ts"

interface Run {
  readonly length: number
  /** The first id of each sequence. */
  readonly sequences: ReadonlyArray<number>
  readonly end: Deferred.Deferred<void, string>
}

/** A batcher of strings, whose batches end with the test at the latest. */
const make = Effect.fnUntraced(function*(options: Partial<Batcher.Options<string, string>> = {}, ends = true) {
  const runs: Array<Run> = []
  const batcher = yield* Batcher.make<string, string>({
    lengths: [4, 8],
    maxBatch: 3,
    window: 10,
    workers: 1,
    run: (length, all) => {
      const sequences = all.map((sequence) => sequence[0]!)
      const end = Deferred.makeUnsafe<void, string>()
      runs.push({ length, sequences, end })
      return Effect.as(Deferred.await(end), sequences.map((id) => `${id} in ${sequences.join(" ")}`))
    },
    ...options
  })
  // Runs before the batcher ends, which waits for them.
  if (ends) yield* Effect.addFinalizer(() => Effect.forEach(runs, ({ end }) => Deferred.succeed(end, undefined)))
  const submit = (id: number, length = 2) => started(batcher.submit(Int32Array.from({ length }, () => id)))
  return { batcher, runs, submit }
})

const after = (millis: number) => Effect.andThen(TestClock.adjust(millis), settled)

const end = (run: Run | undefined) => Effect.andThen(Deferred.succeed(run!.end, undefined), settled)

const shapes = (runs: ReadonlyArray<Run>) => runs.map(({ length, sequences }) => [length, ...sequences])

describe("a batch", () => {
  it.effect("begins when its oldest request has waited for the window", () =>
    Effect.gen(function*() {
      const { runs, submit } = yield* make()
      const one = yield* submit(1)
      yield* after(6)
      const two = yield* submit(2)
      yield* after(3)
      assert.deepStrictEqual(shapes(runs), [])
      yield* after(1)
      assert.deepStrictEqual(shapes(runs), [[4, 1, 2]])
      yield* end(runs[0])
      assert.deepStrictEqual([yield* Fiber.join(one), yield* Fiber.join(two)], ["1 in 1 2", "2 in 1 2"])
    }))

  it.effect("begins at once when it is full", () =>
    Effect.gen(function*() {
      const { runs, submit } = yield* make()
      yield* Effect.forEach([1, 2, 3, 4], (id) => submit(id))
      assert.deepStrictEqual(shapes(runs), [[4, 1, 2, 3]])
      yield* end(runs[0])
      assert.strictEqual(runs.length, 1)
      yield* after(10)
      assert.deepStrictEqual(shapes(runs), [[4, 1, 2, 3], [4, 4]])
    }))

  it.effect("holds sequences of similar length", () =>
    Effect.gen(function*() {
      const { batcher, runs, submit } = yield* make()
      yield* submit(1, 5)
      yield* after(1)
      yield* submit(2, 4)
      yield* submit(3, 8)
      yield* submit(4, 1)
      assert.deepStrictEqual(batcher.state(), { waiting: 4, inFlight: 0, oldest: 0, batches: 0, requests: 0 })
      yield* after(9)
      assert.deepStrictEqual(shapes(runs), [[8, 1, 3]])
      assert.deepStrictEqual(batcher.state(), { waiting: 2, inFlight: 1, oldest: 0, batches: 0, requests: 0 })
      yield* after(5)
      assert.strictEqual(batcher.state().oldest, 5)
      yield* end(runs[0])
      assert.deepStrictEqual(shapes(runs), [[8, 1, 3], [4, 2, 4]])
      yield* end(runs[1])
      assert.deepStrictEqual(batcher.state(), { waiting: 0, inFlight: 0, oldest: 0, batches: 2, requests: 4 })
    }))

  it.effect("grows while all workers are busy", () =>
    Effect.gen(function*() {
      const { runs, submit } = yield* make({ workers: 2 })
      for (const id of [1, 2, 3]) {
        yield* submit(id)
        yield* after(10)
      }
      assert.deepStrictEqual(shapes(runs), [[4, 1], [4, 2]])
      yield* submit(4)
      yield* end(runs[1])
      assert.deepStrictEqual(shapes(runs), [[4, 1], [4, 2], [4, 3, 4]])
    }))

  it.effect("is the one that has been due for the longest time", () =>
    Effect.gen(function*() {
      const { runs, submit } = yield* make()
      yield* submit(1)
      yield* after(10)
      yield* submit(2, 8)
      yield* after(1)
      yield* submit(3)
      yield* after(20)
      yield* end(runs[0])
      yield* end(runs[1])
      assert.deepStrictEqual(shapes(runs), [[4, 1], [8, 2], [4, 3]])
    }))

  it.effect("does not wait with a window of 0", () =>
    Effect.gen(function*() {
      const { runs, submit } = yield* make({ window: 0 })
      yield* submit(1)
      assert.deepStrictEqual(shapes(runs), [[4, 1]])
    }))

  it.effect("gives its failure to all in it, and the next one runs", () =>
    Effect.gen(function*() {
      const { batcher, runs, submit } = yield* make()
      const fibers = yield* Effect.forEach([1, 2, 3], (id) => submit(id))
      yield* Deferred.fail(runs[0]!.end, "broken")
      for (const fiber of fibers) assert.strictEqual(yield* Effect.flip(Fiber.join(fiber)), "broken")
      const next = yield* submit(4)
      yield* after(10)
      yield* end(runs[1])
      assert.strictEqual(yield* Fiber.join(next), "4 in 4")
      assert.strictEqual(batcher.state().batches, 1)
    }))

  it.effect("gives its defect to all in it, and the next one runs", () =>
    Effect.gen(function*() {
      let isBroken = true
      const { submit } = yield* make({
        window: 0,
        run: () => Effect.suspend(() => isBroken ? Effect.die("broken") : Effect.succeed(["whole"]))
      })
      const exit = yield* Fiber.await(yield* submit(1))
      assert.deepStrictEqual(exit, Exit.die("broken"))
      isBroken = false
      assert.strictEqual(yield* Fiber.join(yield* submit(2)), "whole")
    }))
})

describe("a caller who leaves", () => {
  it.effect("is not in a batch that has not begun", () =>
    Effect.gen(function*() {
      const { batcher, runs, submit } = yield* make()
      const one = yield* submit(1)
      yield* submit(2)
      yield* Fiber.interrupt(one)
      assert.strictEqual(batcher.state().waiting, 1)
      yield* after(10)
      assert.deepStrictEqual(shapes(runs), [[4, 2]])
    }))

  it.effect("leaves nothing to run if it was alone", () =>
    Effect.gen(function*() {
      const { runs, submit } = yield* make()
      yield* Fiber.interrupt(yield* submit(1))
      yield* after(20)
      assert.deepStrictEqual(runs, [])
      yield* submit(2)
      yield* after(10)
      assert.deepStrictEqual(shapes(runs), [[4, 2]])
    }))

  it.effect("does not disturb a batch that has begun", () =>
    Effect.gen(function*() {
      const { batcher, runs, submit } = yield* make()
      const [one, two] = [yield* submit(1), yield* submit(2)]
      yield* after(10)
      yield* Fiber.interrupt(one)
      yield* end(runs[0])
      assert.strictEqual(yield* Fiber.join(two), "2 in 1 2")
      assert.strictEqual(batcher.state().batches, 1)
    }))
})

describe("the end", () => {
  it.effect("waits for batches in flight, and refuses other requests", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { batcher, runs, submit } = yield* Scope.provide(make({}, false), scope)
      const running = yield* submit(1)
      yield* after(10)
      const waiting = yield* submit(2)
      const closing = yield* started(Scope.close(scope, Exit.void))
      assert.isUndefined(closing.pollUnsafe())
      yield* end(runs[0])
      yield* Fiber.join(closing)
      assert.strictEqual(yield* Fiber.join(running), "1 in 1")
      assert.instanceOf(yield* Effect.flip(Fiber.join(waiting)), Batcher.Stopped)
      assert.instanceOf(yield* Effect.flip(batcher.submit(Int32Array.of(3))), Batcher.Stopped)
      assert.strictEqual(runs.length, 1)
    }))
})
