/**
 * The contract of collectives, between two devices of one process.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaEvent, CudaGraph, CudaMemory, CudaNccl, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { Communicator, NcclOperator, NcclType } from "effect-cuda/CudaNccl"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { elementTypes } from "../../src/internal/nccl/numbers.ts"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

/** A rank, with a stream of its device. */
interface Rank {
  readonly communicator: Communicator
  readonly stream: CudaStream.CudaStream
  readonly device: number
}

type Requirements = CudaNccl.CudaNccl | CudaRuntime | Busy | Scope.Scope

/** With streams that end after the communicator. */
const cleanly = <A, E>(
  body: (ranks: readonly [Rank, Rank]) => Effect.Effect<A, E, Requirements>,
  options: CudaNccl.NcclOptions = {}
): Effect.Effect<A, E | CudaError, CudaRuntime | Busy> =>
  leavesNothing(
    Effect.gen(function*() {
      const ranks = yield* ranksOf
      return yield* body(ranks)
    }).pipe(Effect.scoped, Effect.provide(CudaNccl.layer(options)))
  )

const ranksOf = Effect.gen(function*() {
  const streams = [yield* CudaStream.make({ device: 0 }), yield* CudaStream.make({ device: 1 })]
  const communicators = yield* CudaNccl.local([0, 1])
  const rank = (device: number): Rank => ({
    communicator: communicators[device]!,
    stream: streams[device]!,
    device
  })
  return [rank(0), rank(1)] as const
})

const bytesFor = (values: Float32Array, rank: Rank) =>
  Effect.gen(function*() {
    const buffer = yield* CudaMemory.allocate(values.byteLength, { device: rank.device })
    yield* CudaMemory.upload(buffer, values, rank.stream)
    return buffer
  })

const floats = (buffer: DeviceBuffer, { stream }: Rank) =>
  Effect.gen(function*() {
    const values = new Float32Array(buffer.byteLength / 4)
    yield* CudaMemory.download(values, buffer, stream)
    return Array.from(values)
  })

const holds = (buffer: DeviceBuffer, rank: Rank, expected: ReadonlyArray<number>) =>
  Effect.map(floats(buffer, rank), (found) => assert.deepStrictEqual(found, [...expected]))

const part = (buffer: DeviceBuffer, offset: number, byteLength: number) => ({ buffer, offset, byteLength })

/** Bits of small numbers, which every type has exactly. */
const encodings: { readonly [Type in NcclType]: (values: ReadonlyArray<number>) => ArrayBufferView<ArrayBuffer> } = {
  i8: (values) => Int8Array.from(values),
  u8: (values) => Uint8Array.from(values),
  i32: (values) => Int32Array.from(values),
  u32: (values) => Uint32Array.from(values),
  i64: (values) => BigInt64Array.from(values, BigInt),
  u64: (values) => BigUint64Array.from(values, BigInt),
  f32: (values) => Float32Array.from(values),
  f64: (values) => Float64Array.from(values),
  // The upper half of a float32.
  bf16: (values) => Uint16Array.from(new Uint32Array(Float32Array.from(values).buffer), (bits) => bits >>> 16),
  f16: (values) => Uint16Array.from(values, (value) => value === 0 ? 0 : halfOf(value))
}

/** The bits of a small positive integer or half of one as a float16. */
const halfOf = (value: number): number => {
  const exponent = Math.floor(Math.log2(value))
  return ((exponent + 15) << 10) | ((value / 2 ** exponent - 1) * 1024)
}

const operators: { readonly [Operator in NcclOperator]: (one: number, other: number) => number } = {
  sum: (one, other) => one + other,
  prod: (one, other) => one * other,
  max: Math.max,
  min: Math.min,
  avg: (one, other) => (one + other) / 2
}

const types: ReadonlyArray<NcclType> = ["i8", "u8", "i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64"]

/** Reduces on both devices, and compares the bits. */
const reduceAll = Effect.fnUntraced(function*(ranks: readonly [Rank, Rank], type: NcclType, op: NcclOperator) {
  const given = [[2, 5, 6, 4], [4, 1, 2, 8]] as const
  const expected = encodings[type](given[0].map((value, index) => operators[op](value, given[1][index]!)))
  const { size } = elementTypes[type]
  const results = yield* Effect.forEach(ranks, (rank, index) =>
    Effect.gen(function*() {
      const from = yield* CudaMemory.allocate(4 * size, { device: rank.device })
      yield* CudaMemory.upload(from, encodings[type](given[index]!) as Uint8Array<ArrayBuffer>, rank.stream)
      return { from, to: yield* CudaMemory.allocate(4 * size, { device: rank.device }) }
    }))
  yield* CudaNccl.run(
    ...ranks.map(({ communicator, stream }, index) =>
      CudaNccl.allReduce(communicator, { ...results[index]!, type, op }, stream)
    )
  )
  for (const [index, { to }] of results.entries()) {
    const bytes = new Uint8Array(4 * size)
    yield* CudaMemory.download(bytes, to, ranks[index]!.stream)
    assert.deepStrictEqual(bytes, new Uint8Array(expected.buffer), `${op} of ${type} on rank ${index}`)
  }
}, Effect.scoped)

export const ncclContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("collectives", (it) => {
    const on = it.effect.skipIf(!rig.hasNccl || rig.deviceCount < 2)

    on("reduce every type with every operator", () =>
      cleanly((ranks) =>
        Effect.gen(function*() {
          for (const type of types) {
            for (const op of ["sum", "prod", "max", "min", "avg"] as const) yield* reduceAll(ranks, type, op)
          }
        })
      ))

    on("reduce in place, also when everything is polled", () =>
      cleanly((ranks) =>
        Effect.gen(function*() {
          const [zero, one] = ranks
          const [a, b] = [yield* bytesFor(Float32Array.of(1, 2), zero), yield* bytesFor(Float32Array.of(10, 20), one)]
          for (let round = 1; round <= 3; round++) {
            yield* CudaNccl.run(
              CudaNccl.allReduce(zero.communicator, { from: a, type: "f32" }, zero.stream),
              CudaNccl.allReduce(one.communicator, { from: b, type: "f32" }, one.stream)
            )
          }
          yield* holds(a, zero, [44, 88])
          yield* holds(b, one, [44, 88])
        }), { connect: "late" }))

    on("move what they say", () =>
      cleanly(([zero, one]) =>
        Effect.gen(function*() {
          const [a, b] = [yield* bytesFor(Float32Array.of(1, 2), zero), yield* bytesFor(Float32Array.of(3, 4), one)]
          const [c, d] = [yield* bytesFor(new Float32Array(4), zero), yield* bytesFor(new Float32Array(4), one)]
          const both = (of: (rank: Rank, from: DeviceBuffer, to: DeviceBuffer) => CudaNccl.Collective) =>
            CudaNccl.run(of(zero, a, c), of(one, b, d))
          const type = "f32"

          yield* both(({ communicator, stream }, from, to) =>
            CudaNccl.allGather(communicator, { from, to, type }, stream)
          )
          yield* holds(c, zero, [1, 2, 3, 4])
          yield* holds(d, one, [1, 2, 3, 4])

          yield* both(({ communicator, stream }, to, from) =>
            CudaNccl.reduceScatter(communicator, { from, to, type, op: "sum" }, stream)
          )
          yield* holds(a, zero, [2, 4])
          yield* holds(b, one, [6, 8])

          yield* both(({ communicator, stream }, to) => CudaNccl.broadcast(communicator, { to, type, root: 1 }, stream))
          yield* holds(a, zero, [6, 8])
          yield* holds(b, one, [6, 8])

          const only = part(c, 8, 8)
          yield* CudaNccl.run(
            CudaNccl.reduce(zero.communicator, { from: a, to: only, type, root: 0, op: "prod" }, zero.stream),
            CudaNccl.reduce(one.communicator, { from: b, type, root: 0, op: "prod" }, one.stream)
          )
          yield* holds(c, zero, [1, 2, 36, 64])
          yield* holds(b, one, [6, 8])
        })
      ))

    on("gather and scatter in place", () =>
      cleanly(([zero, one]) =>
        Effect.gen(function*() {
          const a = yield* bytesFor(Float32Array.of(1, 0), zero)
          const b = yield* bytesFor(Float32Array.of(0, 2), one)
          yield* CudaNccl.run(
            CudaNccl.allGather(zero.communicator, { from: part(a, 0, 4), to: a, type: "f32" }, zero.stream),
            CudaNccl.allGather(one.communicator, { from: part(b, 4, 4), to: b, type: "f32" }, one.stream)
          )
          yield* holds(a, zero, [1, 2])
          yield* holds(b, one, [1, 2])
          yield* CudaNccl.run(
            CudaNccl.reduceScatter(zero.communicator, { from: a, to: part(a, 0, 4), type: "f32" }, zero.stream),
            CudaNccl.reduceScatter(one.communicator, { from: b, to: part(b, 4, 4), type: "f32" }, one.stream)
          )
          yield* holds(a, zero, [2, 2])
          yield* holds(b, one, [1, 4])
        })
      ))

    on("send and receive, beside other collectives of the same run", () =>
      cleanly(([zero, one]) =>
        Effect.gen(function*() {
          const [a, b] = [yield* bytesFor(Float32Array.of(1, 2), zero), yield* bytesFor(Float32Array.of(3, 4), one)]
          const [c, d] = [yield* bytesFor(new Float32Array(2), zero), yield* bytesFor(new Float32Array(2), one)]
          const [e, f] = [yield* bytesFor(Float32Array.of(5), zero), yield* bytesFor(Float32Array.of(6), one)]
          const exchange = ({ communicator, device, stream }: Rank, from: DeviceBuffer, to: DeviceBuffer) => [
            CudaNccl.send(communicator, { from, type: "f32", peer: 1 - device }, stream),
            CudaNccl.receive(communicator, { to, type: "f32", peer: 1 - device }, stream)
          ]
          yield* CudaNccl.run(
            ...exchange(zero, a, c),
            ...exchange(one, b, d),
            CudaNccl.allReduce(zero.communicator, { from: e, type: "f32" }, zero.stream),
            CudaNccl.allReduce(one.communicator, { from: f, type: "f32" }, one.stream)
          )
          yield* holds(c, zero, [3, 4])
          yield* holds(d, one, [1, 2])
          yield* holds(e, zero, [11])
          yield* holds(f, one, [11])
        })
      ))

    on("are issued by fibers of their own, one per rank", () =>
      cleanly((ranks) =>
        Effect.gen(function*() {
          const sums = yield* Effect.forEach(ranks, (rank) =>
            Effect.gen(function*() {
              const own = yield* bytesFor(Float32Array.of(rank.device + 1), rank)
              for (let step = 0; step < 5; step++) {
                yield* CudaNccl.run(CudaNccl.allReduce(rank.communicator, { from: own, type: "f32" }, rank.stream))
              }
              return yield* floats(own, rank)
            }), { concurrency: "unbounded" })
          assert.deepStrictEqual(sums, [[48], [48]])
        })
      ))

    for (const connect of ["early", "late"] as const) {
      on(`come before what is recorded after them, if ranks connect ${connect}`, () =>
        cleanly(([zero, one]) =>
          Effect.gen(function*() {
            const [a, b] = [yield* bytesFor(Float32Array.of(1), zero), yield* bytesFor(Float32Array.of(2), one)]
            const both = CudaNccl.run(
              CudaNccl.allReduce(zero.communicator, { from: a, type: "f32" }, zero.stream),
              CudaNccl.allReduce(one.communicator, { from: b, type: "f32" }, one.stream)
            )
            yield* both
            yield* CudaStream.synchronize(zero.stream)
            yield* CudaStream.synchronize(one.stream)
            const busy = yield* Busy
            yield* busy.enqueue(one.stream, 200)
            yield* both
            const after = yield* CudaStream.recordEvent(zero.stream)
            assert.isFalse(yield* CudaEvent.query(after), "the other rank is busy")
            yield* CudaEvent.synchronize(after)
            yield* holds(a, zero, [6])
          }), { connect }))
    }

    on("order the uses of ordered buffers", () =>
      cleanly(([zero, one]) =>
        Effect.gen(function*() {
          const a = yield* CudaMemory.allocate(4, { device: 0, ordered: true })
          const b = yield* CudaMemory.allocate(4, { device: 1, ordered: true })
          const [otherA, otherB] = [yield* CudaStream.make({ device: 0 }), yield* CudaStream.make({ device: 1 })]
          const busy = yield* Busy
          yield* busy.enqueue(otherB, 100)
          yield* CudaMemory.upload(a, Float32Array.of(1), otherA)
          yield* CudaMemory.upload(b, Float32Array.of(2), otherB)
          yield* CudaNccl.run(
            CudaNccl.allReduce(zero.communicator, { from: a, type: "f32" }, zero.stream),
            CudaNccl.allReduce(one.communicator, { from: b, type: "f32" }, one.stream)
          )
          yield* holds(a, { ...zero, stream: otherA }, [3])
          yield* holds(b, { ...one, stream: otherB }, [3])
        })
      ))

    on("are nodes of graphs, which end with their communicator", () =>
      leavesNothing(
        Effect.gen(function*() {
          const streams = [yield* CudaStream.make({ device: 0 }), yield* CudaStream.make({ device: 1 })]
          const scope = yield* Scope.make()
          const communicators = yield* Scope.provide(CudaNccl.local([0, 1]), scope)
          const ranks = communicators.map((communicator, device): Rank => ({
            communicator,
            stream: streams[device]!,
            device
          }))
          const buffers = yield* Effect.forEach(ranks, (rank) =>
            bytesFor(Float32Array.of(rank.device + 1), rank))
          yield* CudaNccl.run(
            ...ranks.map(({ communicator, stream }, rank) =>
              CudaNccl.allReduce(communicator, { from: buffers[rank]!, type: "f32" }, stream)
            )
          )
          const execs = yield* Effect.forEach(ranks, ({ communicator, device }) =>
            CudaGraph.record(CudaNccl.run(CudaNccl.allReduce(communicator, { from: buffers[device]!, type: "f32" })))
              .pipe(
                Effect.tap((graph) =>
                  Effect.sync(() =>
                    assert.deepStrictEqual(
                      graph.nodes.map(({ name }) =>
                        name
                      ),
                      ["allReduce"]
                    )
                  )
                ),
                Effect.flatMap((graph) =>
                  CudaGraph.instantiate(graph)
                ),
                CudaDevice.withDevice(device)
              ))
          for (let round = 0; round < 3; round++) {
            for (const [rank, exec] of execs.entries()) {
              yield* CudaGraph.launch(exec, streams[rank])
            }
          }
          for (const rank of ranks) {
            yield* holds(buffers[rank.device]!, rank, [24])
          }
          yield* Scope.close(scope, Exit.void)
          const { resource } = yield* failsWith(CudaGraph.launch(execs[0]!, streams[0]), "ResourceReleased")
          assert.include(resource, "nccl handle")
        }).pipe(Effect.provide(CudaNccl.layer()))
      ))

    on("send and receive in graphs", () =>
      cleanly(([zero, one]) =>
        Effect.gen(function*() {
          const [a, b] = [yield* bytesFor(Float32Array.of(1, 2), zero), yield* bytesFor(new Float32Array(2), one)]
          const record = (rank: Rank, collective: CudaNccl.Collective) =>
            CudaGraph.record(CudaNccl.run(collective)).pipe(
              Effect.flatMap((graph) =>
                CudaGraph.instantiate(graph)
              ),
              CudaDevice.withDevice(rank.device)
            )
          const [sending, receiving] = yield* Effect.all([
            record(zero, CudaNccl.send(zero.communicator, { from: a, type: "f32", peer: 1 })),
            record(one, CudaNccl.receive(one.communicator, { to: b, type: "f32", peer: 0 }))
          ], { concurrency: "unbounded" })
          for (const value of [3, 4]) {
            yield* CudaMemory.upload(a, Float32Array.of(value, value), zero.stream)
            yield* CudaGraph.launch(sending, zero.stream)
            yield* CudaGraph.launch(receiving, one.stream)
            yield* holds(b, one, [value, value])
          }
        })
      ))

    on("run in communicators that are split and shrunk from others", () =>
      cleanly((ranks) =>
        Effect.gen(function*() {
          const both = <A, E, R>(of: (rank: Rank) => Effect.Effect<A, E, R>) =>
            Effect.forEach(ranks, of, { concurrency: "unbounded" })
          const turned = yield* both(({ communicator }) =>
            CudaNccl.split(communicator, { color: 3, key: -communicator.rank })
          )
          assert.deepStrictEqual(turned.map(({ rank, size }) => [rank, size]), [[1, 2], [0, 2]])
          const [a, b] = [yield* bytesFor(Float32Array.of(1), ranks[0]), yield* bytesFor(Float32Array.of(2), ranks[1])]
          yield* CudaNccl.run(
            CudaNccl.broadcast(turned[0]!, { to: a, type: "f32", root: 0 }, ranks[0].stream),
            CudaNccl.broadcast(turned[1]!, { to: b, type: "f32", root: 0 }, ranks[1].stream)
          )
          yield* holds(a, ranks[0], [2])
          const [alone] = yield* Effect.all([
            CudaNccl.split(ranks[0].communicator, { color: 0 }),
            CudaNccl.skipSplit(ranks[1].communicator)
          ], { concurrency: "unbounded" })
          assert.deepStrictEqual([alone.rank, alone.size], [0, 1])
          yield* CudaNccl.run(CudaNccl.allReduce(alone, { from: a, type: "f32" }, ranks[0].stream))
          yield* holds(a, ranks[0], [2])
        })
      ))

    on("go on without a rank that is gone, in a communicator shrunk from theirs", () =>
      cleanly(([zero]) =>
        Effect.gen(function*() {
          const a = yield* bytesFor(Float32Array.of(7), zero)
          const options = { from: a, type: "f32" } as const
          yield* CudaNccl.run(CudaNccl.allReduce(zero.communicator, options, zero.stream))
          const rest = yield* CudaNccl.shrink(zero.communicator, { without: [1], abort: true })
          assert.deepStrictEqual([rest.rank, rest.size], [0, 1])
          yield* CudaStream.synchronize(zero.stream)
          yield* CudaMemory.upload(a, Float32Array.of(7), zero.stream)
          yield* CudaNccl.run(CudaNccl.allReduce(rest, options, zero.stream))
          yield* holds(a, zero, [7])
          yield* failsWith(
            CudaNccl.run(CudaNccl.allReduce(zero.communicator, options, zero.stream)),
            "ResourceReleased"
          )
        })
      ))

    on("fail typed for a rank that never joins, and leave nothing", () =>
      leavesNothing(
        Effect.gen(function*() {
          const id = yield* CudaNccl.uniqueId
          const options = { id: CudaNccl.toToken(id), rank: 0, size: 2, device: 0 }
          const { milliseconds } = yield* failsWith(CudaNccl.join({ ...options, timeout: "300 millis" }), "TimedOut")
          assert.strictEqual(milliseconds, 300)
          const other = { ...options, id: yield* CudaNccl.uniqueId }
          const fiber = yield* Effect.forkChild(CudaNccl.join(other))
          yield* Effect.sleep("100 millis")
          yield* Fiber.interrupt(fiber)
        }).pipe(Effect.scoped, Effect.provide(CudaNccl.layer()))
      ))

    on("end if the other rank never issues its own", () =>
      cleanly(([zero]) =>
        Effect.gen(function*() {
          const a = yield* bytesFor(Float32Array.of(1), zero)
          const alone = CudaNccl.run(CudaNccl.allReduce(zero.communicator, { from: a, type: "f32" }, zero.stream))
          const failing = yield* Effect.forkChild(Effect.flip(CudaNccl.failure(zero.communicator)))
          const step = Effect.andThen(alone, CudaStream.synchronize(zero.stream))
          const guarded = CudaNccl.guard(step, [zero.communicator], { timeout: "300 millis" })
          const error = yield* Effect.flip(guarded)
          // Simulated devices find that nothing can happen any more.
          assert.include(["TimedOut", "NeverFinishes"], error.reason._tag)
          yield* CudaStream.synchronize(zero.stream)
          yield* failsWith(alone, "ResourceReleased")
          yield* Fiber.join(failing)
        })
      ))

    on("end with their scope if the other rank never issues its own", () =>
      Effect.gen(function*() {
        const [took] = yield* Effect.timed(Effect.exit(cleanly(([zero]) =>
          Effect.gen(function*() {
            const a = yield* bytesFor(Float32Array.of(1), zero)
            yield* CudaNccl.run(CudaNccl.allReduce(zero.communicator, { from: a, type: "f32" }, zero.stream))
            return yield* Effect.interrupt
          })
        )))
        assert.isBelow(Duration.toMillis(took), 15_000)
      }))

    on("end if sending finds nobody who receives", () =>
      cleanly(([zero]) =>
        Effect.gen(function*() {
          const a = yield* bytesFor(Float32Array.of(1), zero)
          const alone = CudaNccl.run(CudaNccl.send(zero.communicator, { from: a, type: "f32", peer: 1 }, zero.stream))
          const step = Effect.andThen(alone, CudaStream.synchronize(zero.stream))
          const error = yield* Effect.flip(CudaNccl.guard(step, [zero.communicator], { timeout: "300 millis" }))
          assert.include(["TimedOut", "NeverFinishes"], error.reason._tag)
          yield* CudaStream.synchronize(zero.stream)
        })
      ))

    on("refuse what cannot be right", () =>
      cleanly(([zero, one]) =>
        Effect.gen(function*() {
          const { communicator, stream } = zero
          const a = yield* CudaMemory.allocate(16, { device: 0 })
          const there = yield* CudaMemory.allocate(16, { device: 1 })
          const run = (collective: CudaNccl.Collective) =>
            CudaNccl.run(collective)
          const reduced = (options: object, on = stream) =>
            run(CudaNccl.allReduce(communicator, { from: a, type: "f32", ...options }, on))
          yield* refuses(reduced({ type: "f8" }), "type")
          yield* refuses(reduced({ op: "mean" }), "op")
          yield* refuses(reduced({ from: part(a, 0, 6) }), "from.byteLength")
          yield* refuses(reduced({ from: part(a, 0, 0) }), "from.byteLength")
          yield* refuses(reduced({ to: part(a, 0, 8) }), "to.byteLength")
          yield* refuses(reduced({ from: part(a, 0, 8), to: part(a, 4, 8) }), "to")
          yield* refuses(reduced({ from: new Float32Array(4) }), "from")
          yield* failsWith(reduced({ from: there }), "DeviceMismatch")
          yield* failsWith(reduced({}, one.stream), "DeviceMismatch")
          yield* refuses(run(CudaNccl.broadcast(communicator, { to: a, type: "f32", root: 2 })), "root")
          yield* refuses(run(CudaNccl.send(communicator, { from: a, type: "f32", peer: -1 })), "peer")
          yield* refuses(run(CudaNccl.allGather(communicator, { from: a, to: a, type: "f32" })), "to.byteLength")
          const scatter = { from: part(a, 0, 12), to: part(a, 12, 4), type: "f32" } as const
          yield* refuses(run(CudaNccl.reduceScatter(communicator, scatter)), "from.byteLength")
          yield* refuses(CudaNccl.run(reduced({}) as never), "collectives[0]")
          yield* refuses(CudaNccl.split(communicator, { color: -1 }), "color")
          yield* refuses(CudaNccl.shrink(communicator, { without: [0] }), "without")
          yield* refuses(CudaNccl.abort({} as never), "communicator")
          yield* refuses(CudaNccl.local([0, 0]), "devices")
          yield* refuses(CudaNccl.join({ id: "short", rank: 0, size: 1 }), "id")
          const id = yield* CudaNccl.uniqueId
          yield* refuses(CudaNccl.join({ id, rank: 1, size: 1 }), "rank")
          yield* refuses(CudaNccl.join({ id, rank: 0, size: 0 }), "size")
          yield* refuses(CudaNccl.join({ id, rank: 0, size: 1, timeout: "soon" as never }), "timeout")
          yield* failsWith(
            Effect.scoped(Effect.map(CudaMemory.allocate(16, { device: 0 }), (gone) =>
              reduced({ from: gone }))).pipe(
                Effect.flatten
              ),
            "ResourceReleased"
          )
          yield* CudaNccl.abort(communicator)
          yield* failsWith(reduced({}), "ResourceReleased")
          yield* failsWith(CudaNccl.failure(communicator), "ResourceReleased")
        })
      ))

    on("print as what they are", () =>
      cleanly(([zero]) =>
        Effect.gen(function*() {
          const a = yield* CudaMemory.allocate(16, { device: 0 })
          assert.strictEqual(String(zero.communicator), "Communicator(rank 0 of 2, device 0)")
          const collective = CudaNccl.allReduce(zero.communicator, { from: a, type: "f32" })
          assert.isTrue(CudaNccl.isCollective(collective) && CudaNccl.isCommunicator(zero.communicator))
          assert.strictEqual(String(collective), "Collective(allReduce, Communicator(rank 0 of 2, device 0))")
        })
      ))
  })
