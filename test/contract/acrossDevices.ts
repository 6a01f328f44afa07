/**
 * Branches and pipelines over several devices: who runs where, and order across devices.
 */
import { assert, layer } from "@effect/vitest"
import { CudaBranch, CudaDevice, CudaMemory, CudaPipeline, CudaStream, CudaTaskGraph } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Stream from "effect/Stream"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const size = 4096

const busyHere = (millis: number) =>
  Effect.gen(function*() {
    yield* (yield* Busy).enqueue(yield* CudaStream.current(), millis)
  })

const currentIndex = Effect.map(CudaDevice.current, ({ index }) => index)

/** Runs a test on its own stream, with the pooled streams made before. */
const onStream = <A, E, R>(test: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    for (const device of yield* CudaDevice.all) {
      yield* CudaBranch.all(Array.from({ length: 32 }, () => Effect.void), { device })
    }
    return yield* leavesNothing(Effect.flatMap(CudaStream.make(), (stream) => CudaStream.withStream(test, stream)))
  })

const bytesOf = (buffer: CudaMemory.DeviceBuffer) =>
  Effect.suspend(() => {
    const bytes = new Uint8Array(buffer.byteLength)
    return Effect.as(CudaMemory.download(bytes, buffer), bytes)
  })

export const acrossDevicesContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("across devices", (it) => {
    const test = it.effect.skipIf(rig.deviceCount < 2)
    const devices = [0, 1]

    test("branches take turns on the devices, in every concurrency", () =>
      onStream(Effect.gen(function*() {
        const items = [0, 1, 2, 3, 4, 5, 6]
        const body = () => Effect.andThen(busyHere(1), currentIndex)
        for (
          const options of [{}, { streams: 2 }, { streams: 5 }, { concurrency: "unbounded" }, {
            concurrency: 3,
            streams: 4
          }] as const
        ) {
          const where = yield* CudaBranch.forEach(items, body, { ...options, devices })
          assert.deepStrictEqual(where, [0, 1, 0, 1, 0, 1, 0], JSON.stringify(options))
        }
        const weighted = yield* CudaBranch.all(items.map(body), { devices: [1, 1, 0] })
        assert.deepStrictEqual(weighted, [1, 1, 0, 1, 1, 0, 1])
        const few = yield* CudaBranch.all({ one: body() }, { devices })
        assert.deepStrictEqual(few, { one: 0 })
      })))

    test("branches of all devices start after the current stream's work, and it continues after all of them", () =>
      onStream(Effect.gen(function*() {
        const [source, target] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size)]
        const parts = yield* Effect.forEach(devices, (device) => CudaMemory.allocate(size, { device }))
        yield* busyHere(20)
        yield* CudaMemory.fill(source, 7)
        yield* CudaBranch.forEach(parts, (part) => Effect.andThen(busyHere(10), CudaMemory.copy(part, source)), {
          devices
        })
        for (const part of parts) {
          yield* CudaMemory.copy(target, part, yield* CudaStream.current())
          assert.isTrue((yield* bytesOf(target)).every((byte) => byte === 7))
        }
      })))

    test("a slow device holds up no branch of another", () =>
      onStream(Effect.gen(function*() {
        const done: Array<number> = []
        const slow = yield* Latch.make()
        yield* CudaBranch.forEach(Array.from({ length: 8 }, (_, index) => index), (index) =>
          Effect.gen(function*() {
            if (index % 2 === 0) yield* slow.await
            done.push(index)
            if (index === 7) yield* slow.open
          }), { devices, streams: 2, concurrency: "unbounded" })
        assert.deepStrictEqual(done.slice(0, 4), [1, 3, 5, 7])
        assert.lengthOf(done, 8)
      })))

    test("branches that fail or are interrupted are joined too", () =>
      onStream(Effect.gen(function*() {
        const [near, far] = [yield* CudaMemory.allocate(size), yield* CudaMemory.allocate(size, { device: 1 })]
        const writing = Effect.andThen(busyHere(20), CudaMemory.fill(far, 5))
        const failing = CudaBranch.all([Effect.void, Effect.andThen(writing, Effect.fail("no"))], { devices })
        assert.deepStrictEqual(yield* Effect.exit(failing), Exit.fail("no"))
        yield* CudaMemory.copy(near, far, yield* CudaStream.current())
        assert.isTrue((yield* bytesOf(near)).every((byte) => byte === 5))
        const endless = CudaBranch.all([Effect.void, Effect.andThen(writing, Effect.never)], { devices })
        const fiber = yield* Effect.forkChild(endless, { startImmediately: true })
        yield* Fiber.interrupt(fiber)
        yield* CudaMemory.fill(near, 0)
        yield* CudaMemory.copy(near, far, yield* CudaStream.current())
        assert.isTrue((yield* bytesOf(near)).every((byte) => byte === 5))
      })))

    it.effect("a list of devices must be usable", () =>
      onStream(Effect.gen(function*() {
        const two = [Effect.void, Effect.void]
        yield* refuses(CudaBranch.all(two, { devices: [] }), "devices")
        yield* refuses(CudaBranch.all(two, { devices: [0], device: 0 }), "devices")
        yield* refuses(CudaBranch.all(two, { devices: [0, rig.deviceCount] }), "device")
        yield* refuses(CudaBranch.all(two, { devices: [0, 0], streams: 1 }), "streams")
        assert.deepStrictEqual(yield* CudaBranch.all([], { devices: [0] }), [])
        const through = (options: Partial<CudaPipeline.SizeOptions>) =>
          Stream.runCollect(CudaPipeline.through(Stream.make(new Uint8Array(8)), {
            inputBytes: 8,
            fill: CudaPipeline.copyIn,
            work: ({ input, output }) => CudaMemory.copy(output, input),
            take: CudaPipeline.copyOut,
            ...options
          }))
        yield* refuses(through({ devices: [] }), "devices")
        yield* refuses(through({ devices: [0], device: 0 }), "devices")
        yield* refuses(through({ devices: [0, 0, 0], slots: 2 }), "slots")
        yield* failsWith(through({ devices: [rig.deviceCount] }), "InvalidArgument")
      })))

    test("a pipeline sends its elements through the devices in turn, in order", () =>
      onStream(Effect.gen(function*() {
        const chunks = Array.from({ length: 23 }, (_, index) => new Uint8Array(1 + index * 37).fill(index))
        const where: Array<number> = []
        const returned = yield* Stream.fromIterable(chunks).pipe(
          CudaPipeline.through({
            inputBytes: size,
            devices,
            slots: 5,
            fill: CudaPipeline.copyIn,
            work: ({ index, input, output }) =>
              Effect.gen(function*() {
                where.push(yield* currentIndex)
                assert.deepStrictEqual([input, output].map(({ buffer }) => buffer.deviceIndex), [
                  where.at(-1),
                  where.at(-1)
                ])
                yield* busyHere(index % 4 === 1 ? 4 : 0.1)
                yield* CudaMemory.copy(output, input)
              }),
            take: CudaPipeline.copyOut
          }),
          Stream.runCollect
        )
        assert.deepStrictEqual(returned, chunks)
        assert.deepStrictEqual(where, chunks.map((_, index) => index % 5 % 2))
      })))

    test("a pipeline over devices starts after what the current stream holds, on any of them", () =>
      onStream(Effect.gen(function*() {
        const flag = yield* CudaMemory.allocate(size)
        yield* CudaMemory.fill(flag, 1)
        yield* busyHere(20)
        yield* CudaMemory.fill(flag, 2)
        const seen = yield* Stream.make(0, 1, 2, 3).pipe(
          CudaPipeline.through({
            inputBytes: size,
            devices: [1, 0],
            fill: () => Effect.succeed(size),
            work: ({ output }) =>
              Effect.flatMap(CudaStream.current(), (stream) => CudaMemory.copy(output, flag, stream)),
            take: (bytes) => Effect.sync(() => bytes[0])
          }),
          Stream.runCollect
        )
        assert.deepStrictEqual(seen, [2, 2, 2, 2])
      })))

    test("tasks run on their devices, after those that they depend on, in every concurrency", () =>
      onStream(Effect.gen(function*() {
        const origin = yield* CudaStream.current()
        const [a, b, c] = [
          yield* CudaMemory.allocate(size, { device: 0 }),
          yield* CudaMemory.allocate(size, { device: 1 }),
          yield* CudaMemory.allocate(size, { device: 0 })
        ]
        const copied = (to: CudaMemory.DeviceBuffer, from: CudaMemory.DeviceBuffer) =>
          Effect.gen(function*() {
            yield* busyHere(3)
            yield* CudaMemory.copy(to, from, yield* CudaStream.current())
            return yield* currentIndex
          })
        for (const concurrency of [1, "unbounded"] as const) {
          const start = concurrency === 1 ? 11 : 22
          yield* busyHere(5)
          yield* CudaMemory.fill(a, start, origin)
          const graph = CudaTaskGraph.empty.pipe(
            CudaTaskGraph.add("there", copied(b, a)),
            CudaTaskGraph.add("alone", Effect.andThen(busyHere(1), currentIndex)),
            CudaTaskGraph.add("back", ["there"], () => copied(c, b)),
            CudaTaskGraph.add("again", ["back"], () => copied(b, c)),
            CudaTaskGraph.add("end", ["again", "alone"], () => currentIndex)
          )
          const results = yield* CudaTaskGraph.run(graph, { devices: { there: 1, again: 1, alone: 1 }, concurrency })
          assert.deepStrictEqual(results, { there: 1, alone: 1, back: 0, again: 1, end: 0 })
          yield* CudaMemory.copy(a, b, origin)
          yield* CudaStream.synchronize(origin)
          assert.isTrue((yield* bytesOf(a)).every((byte) => byte === start))
        }
      })))

    it.effect("a task graph knows its tasks and the devices", () =>
      onStream(Effect.gen(function*() {
        const graph = CudaTaskGraph.empty.pipe(CudaTaskGraph.add("one", currentIndex))
        yield* refuses(CudaTaskGraph.run(graph, { devices: { two: 0 } }), "devices")
        yield* refuses(CudaTaskGraph.run(graph, { devices: { one: 0 }, streams: 1 }), "devices")
        yield* refuses(CudaTaskGraph.run(graph, { devices: { one: rig.deviceCount } }), "device")
        assert.deepStrictEqual(yield* CudaTaskGraph.run(graph, { devices: {} }), { one: 0 })
      })))
  })
