/**
 * Collectives between more simulated devices than machines of tests have GPUs: what they move, how long they take, and what is found.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaMemory, CudaNccl, CudaStream, SimulatedRuntime } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { failsWith } from "../support/assertions.ts"
import { makeRandom } from "../support/random.ts"

const count = 4
const device = { memory: 2 ** 26, peerBandwidth: 100e9 }

/** In virtual time, which passes while the program waits. */
const onDevices = <A, E>(
  program: Effect.Effect<A, E, CudaNccl.CudaNccl | CudaRuntime | SimulatedRuntime.SimulatedControl | Scope.Scope>
): Effect.Effect<A, E | CudaError> =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(program.pipe(
      Effect.scoped,
      Effect.provide(
        CudaNccl.layer().pipe(
          Layer.provideMerge(SimulatedRuntime.layer({ devices: Array.from({ length: count }, () => device) }))
        )
      )
    ))
    while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust("1 millis")
    return yield* Fiber.join(fiber)
  })

/** A rank, with what it sends and where it receives: integers, whose sums are exact. */
const makeRanks = Effect.fnUntraced(function*(elements: number) {
  const streams = yield* Effect.forEach(Array.from({ length: count }), (_, index) => CudaStream.make({ device: index }))
  const communicators = yield* CudaNccl.local(streams.map(({ deviceIndex }) => deviceIndex))
  return yield* Effect.forEach(streams, (stream, rank) =>
    Effect.gen(function*() {
      const random = makeRandom(rank + 1)
      const values = Int32Array.from({ length: elements }, () => random(1000) - 500)
      const from = yield* CudaMemory.allocate(4 * elements, { device: rank })
      const all = yield* CudaMemory.allocate(4 * elements * count, { device: rank })
      yield* CudaMemory.upload(from, values, stream)
      return { communicator: communicators[rank]!, stream, values: [...values], from, all }
    }))
})

type Rank = Effect.Success<ReturnType<typeof makeRanks>>[number]

const download = (rank: Rank, buffer: CudaMemory.DeviceBuffer) =>
  Effect.suspend(() => {
    const found = new Int32Array(buffer.byteLength / 4)
    return Effect.map(CudaMemory.download(found, buffer, rank.stream), () => [...found])
  })

const type = "i32"

describe("collectives of four ranks", () => {
  it.effect("move what they say", () =>
    onDevices(Effect.gen(function*() {
      const ranks = yield* makeRanks(count * 3)
      const each = (of: (rank: Rank) => CudaNccl.Collective) => CudaNccl.run(...ranks.map(of))
      const given = ranks.map(({ values }) => values)
      yield* each(({ all, communicator, from, stream }) =>
        CudaNccl.allGather(communicator, { from, to: all, type }, stream)
      )
      for (const rank of ranks) assert.deepStrictEqual(yield* download(rank, rank.all), given.flat())

      const sums = given[0]!.map((_, at) => given.reduce((sum, values) => sum + values[at]!, 0))
      yield* each(({ all, communicator, from, stream }) =>
        CudaNccl.reduceScatter(communicator, { from, to: { buffer: all, offset: 0, byteLength: 12 }, type }, stream)
      )
      for (const [index, rank] of ranks.entries()) {
        const found = yield* download(rank, rank.all)
        assert.deepStrictEqual(found.slice(0, 3), sums.slice(3 * index, 3 * index + 3))
      }

      const largest = given[0]!.map((_, at) => Math.max(...given.map((values) => values[at]!)))
      yield* each(({ communicator, from, stream }) =>
        CudaNccl.reduce(communicator, { from, type, root: 2, op: "max" }, stream)
      )
      for (const [index, rank] of ranks.entries()) {
        assert.deepStrictEqual(yield* download(rank, rank.from), index === 2 ? largest : given[index])
      }
      yield* each(({ communicator, from, stream }) =>
        CudaNccl.broadcast(communicator, { to: from, type, root: 2 }, stream)
      )
      for (const rank of ranks) assert.deepStrictEqual(yield* download(rank, rank.from), largest)
    })))

  it.effect("exchange between all, in one run", () =>
    onDevices(Effect.gen(function*() {
      const ranks = yield* makeRanks(count)
      const piece = (buffer: CudaMemory.DeviceBuffer, index: number) => ({ buffer, offset: 4 * index, byteLength: 4 })
      yield* CudaNccl.run(...ranks.flatMap(({ all, communicator, from, stream }) =>
        ranks.flatMap((_, peer) => [
          CudaNccl.send(communicator, { from: piece(from, peer), type, peer }, stream),
          CudaNccl.receive(communicator, { to: piece(all, peer), type, peer }, stream)
        ])
      ))
      for (const [index, rank] of ranks.entries()) {
        const found = yield* download(rank, rank.all)
        assert.deepStrictEqual(found.slice(0, count), ranks.map(({ values }) => values[index]))
      }
    })))

  it.effect("are independent in communicators split by color, in the order of their keys", () =>
    onDevices(Effect.gen(function*() {
      const ranks = yield* makeRanks(2)
      const halves = yield* Effect.forEach(
        ranks,
        ({ communicator }, rank) => CudaNccl.split(communicator, { color: rank % 2, key: -rank }),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(halves.map(({ rank, size }) => [rank, size]), [[1, 2], [1, 2], [0, 2], [0, 2]])
      yield* CudaNccl.run(
        ...ranks.map(({ from, stream }, index) => CudaNccl.allReduce(halves[index]!, { from, type }, stream))
      )
      for (const [index, rank] of ranks.entries()) {
        const other = ranks[(index + 2) % count]!
        assert.deepStrictEqual(
          yield* download(rank, rank.from),
          rank.values.map((value, at) => value + other.values[at]!)
        )
      }
      const rest = yield* Effect.forEach(
        [ranks[0]!, ranks[2]!, ranks[3]!],
        ({ communicator }) => CudaNccl.shrink(communicator, { without: [1] }),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(rest.map(({ rank, size }) => [rank, size]), [[0, 3], [1, 3], [2, 3]])
    })))

  it.effect("begin when the last rank comes, and take the time of its link", () =>
    onDevices(Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      const bytes = 2 ** 22
      const ranks = yield* makeRanks(bytes / 4)
      for (const { stream } of ranks) yield* CudaStream.synchronize(stream)
      yield* control.launch(ranks[3]!.stream, { duration: "7 millis" })
      const begun = yield* control.now
      yield* CudaNccl.run(
        ...ranks.map(({ communicator, from, stream }) => CudaNccl.allReduce(communicator, { from, type }, stream))
      )
      yield* CudaStream.synchronize(ranks[0]!.stream)
      const expected = 7e6 + 19_000 + 2 * bytes * (count - 1) / count / device.peerBandwidth * 1e9
      assert.closeTo((yield* control.now) - begun, expected, 1.1e6)
    })))

  it.effect("that ranks do not agree on are a fault, which names them", () =>
    onDevices(Effect.gen(function*() {
      const ranks = yield* makeRanks(4)
      yield* CudaNccl.run(
        ...ranks.map(({ communicator, from, stream }, rank) =>
          rank === 2
            ? CudaNccl.broadcast(communicator, { to: from, type, root: 0 }, stream)
            : CudaNccl.allReduce(communicator, { from, type }, stream)
        )
      )
      const error = yield* Effect.flip(CudaStream.synchronize(ranks[0]!.stream))
      assert.strictEqual(error.reason._tag, "LaunchFailed")
      assert.include(error.message, "rank 0 has allReduce of 4 i32 (sum, root 0), rank 2 has broadcast of 4 i32")
    })))

  it.effect("that a rank does not come to can never end, and say so", () =>
    onDevices(Effect.gen(function*() {
      const [first] = yield* makeRanks(4)
      const { communicator, from, stream } = first!
      yield* CudaNccl.run(CudaNccl.allReduce(communicator, { from, type }, stream))
      const { because } = yield* failsWith(CudaStream.synchronize(stream), "NeverFinishes")
      assert.include(because, "waits for the other ranks of a collective of the communicator of rank 0 of 4")
      yield* CudaNccl.abort(communicator)
      yield* CudaStream.synchronize(stream)
    })))

  it.effect("refuse ranks that join twice, and other sizes", () =>
    onDevices(Effect.gen(function*() {
      const id = yield* CudaNccl.uniqueId
      const first = yield* Effect.forkChild(CudaNccl.join({ id, rank: 0, size: 2, device: 0 }))
      yield* Effect.sleep("1 millis")
      yield* failsWith(CudaNccl.join({ id, rank: 0, size: 2, device: 1 }), "InvalidArgument")
      yield* failsWith(CudaNccl.join({ id, rank: 1, size: 3, device: 1 }), "InvalidArgument")
      yield* CudaNccl.join({ id, rank: 1, size: 2, device: 1 })
      yield* Fiber.join(first)
    })))
})
