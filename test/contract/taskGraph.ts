/**
 * The contract of task graphs: concurrency, ordering, results passed between tasks, and joining all enqueued work however a
 * run ended.
 */
import { assert, layer } from "@effect/vitest"
import { unchecked } from "effect-cuda/CheckedRuntime"
import * as CudaBranch from "effect-cuda/CudaBranch"
import * as CudaDevice from "effect-cuda/CudaDevice"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaStream from "effect-cuda/CudaStream"
import * as CudaTaskGraph from "effect-cuda/CudaTaskGraph"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

/** Keeps the current stream busy, and returns it. */
const busyHere = (millis: number) =>
  Effect.gen(function*() {
    const busy = yield* Busy
    const stream = yield* CudaStream.current()
    yield* busy.enqueue(stream, millis)
    return stream
  })

/** Runs a test on its own stream and asserts that its scope leaves nothing behind. The pooled streams already exist. */
const onStream = <A, E, R>(body: (stream: CudaStream.CudaStream) => Effect.Effect<A, E, R>, device = 0) =>
  Effect.gen(function*() {
    yield* CudaBranch.all(Array.from({ length: 32 }, () => Effect.void), { device })
    return yield* leavesNothing(
      Effect.flatMap(CudaStream.make({ device }), (stream) => CudaStream.withStream(body(stream), stream))
    )
  })

/** Zeroed device buffers and a host buffer to read one back. */
const makeBuffers = Effect.gen(function*() {
  const [a, b, c] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64)]
  for (const buffer of [a, b, c]) yield* CudaMemory.fill(buffer, 0)
  return { a, b, c, host: yield* CudaMemory.allocateHost(64) }
})

/** Copies a buffer to the host on the current stream, waits, and asserts its fill value. */
const holds = (host: CudaMemory.HostBuffer, device: CudaMemory.DeviceBuffer, value: number) =>
  Effect.gen(function*() {
    yield* CudaMemory.copy(host, device)
    yield* CudaStream.synchronize(yield* CudaStream.current())
    assert.isTrue(host.bytes.every((byte) => byte === value), `${host.bytes[0]} instead of ${value}`)
  })

export const taskGraphContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("task graphs", (it) => {
    it.effect("start after the current stream's work and run in order; the stream continues after them; any number of runs", () =>
      onStream(() =>
        Effect.gen(function*() {
          const { a, b, c, host } = yield* makeBuffers
          const half = CudaMemory.slice(c, 0, 32)
          const graph = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("a to b", Effect.andThen(busyHere(20), CudaMemory.copy(b, a))),
            CudaTaskGraph.add(
              "a to half",
              Effect.andThen(busyHere(10), CudaMemory.copy(half, CudaMemory.slice(a, 0, 32)))
            ),
            CudaTaskGraph.add(
              "rest",
              ["a to b", "a to half"],
              CudaMemory.copy(CudaMemory.slice(c, 32), CudaMemory.slice(b, 0, 32))
            ),
            CudaTaskGraph.add("clear a", ["a to b", "a to half"], CudaMemory.fill(a, 0))
          )
          for (const value of [7, 8, 9]) {
            yield* busyHere(10)
            yield* CudaMemory.fill(a, value)
            yield* CudaTaskGraph.run(graph, value === 9 ? { concurrency: "unbounded" } : {})
            yield* holds(host, c, value)
            yield* holds(host, a, 0)
          }
        })
      ))

    it.effect("wait for their dependencies and nothing else", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const graph = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("slow", busyHere(150)),
            CudaTaskGraph.add("quick", busyHere(1)),
            CudaTaskGraph.add("also quick", busyHere(1)),
            CudaTaskGraph.add("after the quick", ["quick", "also quick"], busyHere(1)),
            CudaTaskGraph.add("after all", ["slow", "after the quick"], busyHere(1))
          )
          const ran = yield* CudaTaskGraph.run(graph)
          yield* CudaStream.synchronize(ran["after the quick"])
          assert.isFalse(yield* CudaStream.query(ran.slow))
          assert.isFalse(yield* CudaStream.query(stream))
          yield* CudaStream.synchronize(stream)
          for (const used of Object.values(ran)) {
            assert.isTrue(yield* CudaStream.query(used))
            assert.deepStrictEqual([used.deviceIndex, used.priority], [stream.deviceIndex, stream.priority])
          }
          assert.strictEqual(new Set([ran.slow.id, ran.quick.id, ran["also quick"].id]).size, 3)
        })
      ))

    it.effect("pass results to dependents, and all results to the caller", () =>
      onStream(() =>
        Effect.gen(function*() {
          const graph = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("one", Effect.succeed(1)),
            CudaTaskGraph.add("text", Effect.succeed("two")),
            CudaTaskGraph.add("both", ["one", "text"], ({ one, text }) => Effect.succeed([one, text] as const)),
            CudaTaskGraph.add("names", ["both"], (given) => Effect.succeed(Object.keys(given)))
          )
          const expected: unknown = { one: 1, text: "two", both: [1, "two"], names: ["both"] }
          for (const concurrency of [undefined, 1, 2, "unbounded"] as const) {
            assert.deepStrictEqual(yield* graph.pipe(CudaTaskGraph.run({ concurrency })), expected)
          }
          assert.deepStrictEqual(yield* CudaTaskGraph.run(CudaTaskGraph.empty), {})
        })
      ))

    it.effect("run in order on shared streams", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const { a, host } = yield* makeBuffers
          const tasks = [1, 2, 3, 4, 5].map((value) => ({
            name: `fill ${value}`,
            run: () => Effect.tap(busyHere(value === 1 ? 20 : 1), () => CudaMemory.fill(a, value))
          }))
          const graph = yield* CudaTaskGraph.fromTasks(tasks)
          for (const concurrency of [1, "unbounded"] as const) {
            const used = yield* CudaTaskGraph.run(graph, { streams: 1, concurrency })
            assert.deepStrictEqual(Object.values(used).map(({ id }) => id), tasks.map(() => stream.id))
            yield* holds(host, a, 5)
          }
          const two = yield* unchecked(CudaTaskGraph.run(graph, { streams: 2 }))
          assert.strictEqual(new Set(Object.values(two).map(({ id }) => id)).size, 2)
        })
      ))

    it.effect("run effects concurrently on request, after their dependencies", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [here, there] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const log: Array<string> = []
          const meet = (own: typeof here, other: typeof here) =>
            Effect.andThen(Deferred.succeed(own, undefined), Deferred.await(other))
          const graph = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("here", meet(here, there)),
            CudaTaskGraph.add("after here", ["here"], Effect.sync(() => log.push("after here"))),
            CudaTaskGraph.add("there", Effect.tap(meet(there, here), () => Effect.sync(() => log.push("there"))))
          )
          yield* CudaTaskGraph.run(graph, { concurrency: 2 })
          assert.sameMembers(log, ["after here", "there"])
        })
      ))

    it.effect("are joined when one fails, and fail with its failure", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          for (const concurrency of [1, "unbounded"] as const) {
            const { a, b, host } = yield* makeBuffers
            const graph = CudaTaskGraph.empty.pipe(
              CudaTaskGraph.add("first", CudaMemory.fill(a, 1)),
              CudaTaskGraph.add("beside", Effect.andThen(busyHere(30), CudaMemory.fill(b, 5))),
              CudaTaskGraph.add("second", ["first"], Effect.andThen(busyHere(20), CudaMemory.fill(a, 2))),
              CudaTaskGraph.add("fails", ["second"], Effect.fail("no" as const)),
              CudaTaskGraph.add("never", ["fails"], CudaMemory.fill(a, 3))
            )
            assert.strictEqual(yield* Effect.flip(CudaTaskGraph.run(graph, { concurrency })), "no")
            yield* holds(host, b, 5)
            yield* holds(host, a, 2)
            assert.strictEqual((yield* CudaStream.current()).id, stream.id)
          }
        })
      ))

    it.effect("are joined when they are interrupted", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          for (const concurrency of [1, "unbounded"] as const) {
            const { a, b, host } = yield* makeBuffers
            const [one, another] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
            const enqueue = (buffer: CudaMemory.DeviceBuffer, value: number, done: typeof one) =>
              Effect.gen(function*() {
                yield* busyHere(40)
                yield* CudaMemory.fill(buffer, value)
                yield* Deferred.succeed(done, undefined)
              })
            const graph = CudaTaskGraph.empty.pipe(
              CudaTaskGraph.add("on one", enqueue(a, 4, one)),
              CudaTaskGraph.add("on another", Effect.andThen(enqueue(b, 5, another), Effect.never))
            )
            const run = yield* Effect.forkChild(CudaTaskGraph.run(graph, { concurrency }))
            yield* Deferred.await(one)
            yield* Deferred.await(another)
            yield* Fiber.interrupt(run)
            yield* holds(host, a, 4)
            yield* holds(host, b, 5)
            assert.strictEqual((yield* CudaStream.current()).id, stream.id)
          }
        })
      ))

    it.effect("nest: a task's inner graph runs on the task's stream", () =>
      onStream(() =>
        Effect.gen(function*() {
          const { a, b, c, host } = yield* makeBuffers
          const inner = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("b", CudaMemory.copy(b, a)),
            CudaTaskGraph.add("c", Effect.andThen(busyHere(10), CudaMemory.copy(c, a)))
          )
          const outer = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("a", Effect.andThen(busyHere(20), CudaMemory.fill(a, 6))),
            CudaTaskGraph.add("beside", busyHere(1)),
            CudaTaskGraph.add("inner", ["a", "beside"], CudaTaskGraph.run(inner)),
            CudaTaskGraph.add(
              "back",
              ["inner"],
              CudaMemory.copy(CudaMemory.slice(b, 0, 32), CudaMemory.slice(c, 0, 32))
            )
          )
          yield* CudaTaskGraph.run(outer)
          yield* holds(host, b, 6)
        })
      ))

    it.effect("reject numbers that do not count streams or tasks", () =>
      onStream(() =>
        Effect.gen(function*() {
          const graph = CudaTaskGraph.add(CudaTaskGraph.empty, "a", Effect.void)
          for (const number of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 1e300]) {
            yield* refuses(CudaTaskGraph.run(graph, { streams: number }), "streams")
            yield* refuses(CudaTaskGraph.run(graph, { concurrency: number }), "concurrency")
            yield* refuses(CudaTaskGraph.run(CudaTaskGraph.empty, { streams: number }), "streams")
          }
          const most = Number.MAX_SAFE_INTEGER
          yield* CudaTaskGraph.run(graph, { streams: most, concurrency: most })
        })
      ))

    it.effect.skipIf(rig.deviceCount < 2)(
      "run on the current stream's device",
      () =>
        onStream((stream) =>
          Effect.gen(function*() {
            const place = Effect.all([CudaDevice.current, busyHere(1)])
            const graph = CudaTaskGraph.empty.pipe(
              CudaTaskGraph.add("left", place),
              CudaTaskGraph.add("right", place),
              CudaTaskGraph.add("both", ["left", "right"], place)
            )
            for (const [device, used] of Object.values(yield* CudaTaskGraph.run(graph))) {
              assert.deepStrictEqual([device.index, used.deviceIndex], [1, 1])
            }
            yield* CudaStream.synchronize(stream)
          }), 1)
    )
  })
