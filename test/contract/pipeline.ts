/**
 * The contract of pipelines: elements come back in order, at most one per slot in flight, and nothing is left behind
 * however the stream ends.
 */
import { assert, layer } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaPipeline from "effect-cuda/CudaPipeline"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const chunkBytes = 4096

/** Bytes that identify an element. */
const makeChunk = (index: number, byteLength: number): Uint8Array =>
  Uint8Array.from({ length: byteLength }, (_, position) => (position * 7 + index * 13 + (position >> 8)) % 251)

const makeChunks = (sizes: ReadonlyArray<number>): ReadonlyArray<Uint8Array> =>
  sizes.map((size, index) => makeChunk(index, size))

const chunks = makeChunks(Array.from({ length: 20 }, (_, index) => chunkBytes - index))

/** Copies each element once on the device. */
const copied = {
  inputBytes: chunkBytes,
  fill: (element: Uint8Array, into: Uint8Array) => CudaPipeline.copyIn(element, into),
  work: ({ input, output }: CudaPipeline.UploadedElement<Uint8Array>) => CudaMemory.copy(output, input),
  take: CudaPipeline.copyOut
}

const assertSame = (actual: ReadonlyArray<Uint8Array>, expected: ReadonlyArray<Uint8Array>): void => {
  assert.deepStrictEqual(actual.map(({ byteLength }) => byteLength), expected.map(({ byteLength }) => byteLength))
  for (const [index, bytes] of actual.entries()) {
    assert.isTrue(Buffer.from(bytes).equals(expected[index]!), `element ${index}`)
  }
}

/** Runs a stream to its end and collects what it delivered. */
const deliveredBy = <A, E, R>(stream: Stream.Stream<A, E, R>) =>
  Effect.gen(function*() {
    const delivered: Array<A> = []
    const exit = yield* Effect.exit(Stream.runForEach(stream, (value) => Effect.sync(() => delivered.push(value))))
    return { delivered, exit }
  })

/** Keeps the current stream busy. */
const busyHere = (millis: number) =>
  Effect.gen(function*() {
    const busy = yield* Busy
    yield* busy.enqueue(yield* CudaStream.current(), millis)
  })

export const pipelineContract = (rig: Rig): void => {
  layer(rig.layer, { excludeTestServices: true })("pipelines: data", (it) => {
    for (const slots of [1, 2, 3, 7]) {
      it.effect(`return elements of any size unchanged: ${slots} at a time`, () =>
        leavesNothing(Effect.gen(function*() {
          const elements = makeChunks([1, 3, chunkBytes, 0, 255, chunkBytes - 1, 17, 0, 0, chunkBytes, 2, 1000])
          const returned = Stream.fromIterable(elements).pipe(CudaPipeline.through({ ...copied, slots }))
          assertSame(yield* Stream.runCollect(returned), elements)
          assertSame(yield* Stream.runCollect(returned), elements)
        })))
    }

    it.effect("work with as many slots as elements, more slots, or no elements", () =>
      leavesNothing(Effect.gen(function*() {
        for (const count of [0, 1, 4, 5]) {
          const elements = chunks.slice(0, count)
          const returned = CudaPipeline.through(Stream.fromIterable(elements), { ...copied, slots: 5 })
          assertSame(yield* Stream.runCollect(returned), elements)
        }
      })))

    it.effect("return the number of bytes that work returns", () =>
      leavesNothing(Effect.gen(function*() {
        const through = (work: typeof copied.work | (() => Effect.Effect<number>), outputBytes?: number) =>
          Stream.fromIterable(chunks.slice(0, 4)).pipe(
            CudaPipeline.through({ ...copied, outputBytes, work }),
            Stream.runCollect
          )
        const sum = yield* through(({ output }) => CudaMemory.fill(output, 7), 5)
        assertSame(sum, Array.from({ length: 4 }, () => new Uint8Array(5).fill(7)))
        const larger = yield* through(({ output }) => CudaMemory.fill(output, 9), 2 * chunkBytes)
        assertSame(larger, Array.from({ length: 4 }, () => new Uint8Array(2 * chunkBytes).fill(9)))
        const first = yield* through((arrived) => Effect.as(copied.work(arrived), arrived.index * 10))
        assertSame(first, chunks.slice(0, 4).map((chunk, index) => chunk.subarray(0, index * 10)))
        assertSame(yield* through(() => Effect.succeed(0)), makeChunks([0, 0, 0, 0]))
      })))

    it.effect("pass the element to work, with the work stream as the current one", () =>
      leavesNothing(Effect.gen(function*() {
        const outside = yield* CudaStream.current()
        const seen: Array<readonly [index: number, element: Uint8Array, bytes: number, stream: number]> = []
        yield* Stream.fromIterable(chunks).pipe(
          CudaPipeline.through({
            ...copied,
            work: (arrived) =>
              Effect.flatMap(CudaStream.current(), ({ id }) => {
                seen.push([arrived.index, arrived.element, arrived.input.byteLength, id])
                return copied.work(arrived)
              })
          }),
          Stream.runForEach(() =>
            Effect.map(CudaStream.current(), (stream) => assert.strictEqual(stream.id, outside.id))
          )
        )
        assert.deepStrictEqual(
          seen.map(([index, element, bytes]) => [index, element, bytes]),
          chunks.map((chunk, index) => [index, chunk, chunk.byteLength])
        )
        assert.strictEqual(new Set(seen.map(([, , , id]) => id)).size, 1)
        assert.notStrictEqual(seen[0]![3], outside.id)
      })))

    it.effect("start after what the current stream holds", () =>
      leavesNothing(Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const weights = yield* CudaMemory.allocate(chunkBytes)
        const program = Effect.gen(function*() {
          yield* CudaMemory.fill(weights, 1)
          yield* busyHere(30)
          yield* CudaMemory.fill(weights, 2)
          return yield* Stream.fromIterable(chunks.slice(0, 3)).pipe(
            CudaPipeline.through({
              ...copied,
              work: ({ output }) => CudaMemory.copy(output, CudaMemory.slice(weights, 0, output.byteLength))
            }),
            Stream.runCollect
          )
        })
        const returned = yield* CudaStream.withStream(program, stream)
        assertSame(returned, chunks.slice(0, 3).map((chunk) => new Uint8Array(chunk.byteLength).fill(2)))
      })))

    it.effect.skipIf(rig.deviceCount < 2)(
      "run on the device that is asked for",
      () =>
        leavesNothing(Effect.gen(function*() {
          const devices = new Set<number>()
          const returned = yield* Stream.fromIterable(chunks).pipe(
            CudaPipeline.through({
              ...copied,
              device: 1,
              work: (arrived) => {
                devices.add(arrived.input.buffer.deviceIndex).add(arrived.output.buffer.deviceIndex)
                return Effect.flatMap(CudaStream.current(), ({ deviceIndex }) => {
                  devices.add(deviceIndex)
                  return copied.work(arrived)
                })
              }
            }),
            Stream.runCollect
          )
          assertSame(returned, chunks)
          assert.deepStrictEqual(Array.from(devices), [1])
        }))
    )
  })

  layer(rig.layer, { excludeTestServices: true })("pipelines: order and backpressure", (it) => {
    it.effect("keep order with uneven fills, work and takes", () =>
      leavesNothing(Effect.gen(function*() {
        const enqueued: Array<number> = []
        const uneven = (element: Uint8Array) => Effect.sleep(chunks.indexOf(element) % 3 === 0 ? 6 : 0)
        const returned = yield* Stream.fromIterable(chunks).pipe(
          CudaPipeline.through({
            ...copied,
            slots: 4,
            fill: (element, into) => Effect.andThen(uneven(element), copied.fill(element, into)),
            work: (arrived) =>
              Effect.gen(function*() {
                enqueued.push(arrived.index)
                yield* busyHere(arrived.index % 4 === 1 ? 4 : 0.1)
                yield* copied.work(arrived)
              }),
            take: (bytes, element) => Effect.andThen(uneven(element), copied.take(bytes))
          }),
          Stream.runCollect
        )
        assertSame(returned, chunks)
        assert.deepStrictEqual(enqueued, chunks.map((_, index) => index))
      })))

    for (const slots of [1, 2, 3, 5]) {
      it.effect(`pull exactly ${slots} ahead of a slow consumer`, () =>
        leavesNothing(Effect.gen(function*() {
          let pulled = 0
          let delivered = 0
          let most = 0
          const source = Stream.fromIterable(chunks).pipe(
            Stream.rechunk(1),
            Stream.tap(() => Effect.sync(() => pulled++))
          )
          yield* CudaPipeline.through(source, { ...copied, slots }).pipe(
            Stream.runForEach(() => {
              delivered++
              return Effect.map(Effect.sleep(5), () => {
                most = Math.max(most, pulled - delivered)
              })
            })
          )
          assert.deepStrictEqual([pulled, delivered, most], [chunks.length, chunks.length, slots])
        })))
    }

    it.effect("run one step after another with one slot", () =>
      leavesNothing(Effect.gen(function*() {
        const steps: Array<string> = []
        const step = (name: string) => Effect.sync(() => steps.push(name))
        yield* Stream.fromIterable(chunks.slice(0, 2)).pipe(
          Stream.tap(() => step("pull")),
          Stream.rechunk(1),
          CudaPipeline.through({
            inputBytes: chunkBytes,
            slots: 1,
            fill: () => Effect.as(step("fill"), 10),
            work: () => Effect.asVoid(step("work")),
            take: () => step("take")
          }),
          Stream.runForEach(() => step("deliver"))
        )
        const fromFill = steps.filter((name) => name !== "pull")
        assert.deepStrictEqual(fromFill, [1, 2].flatMap(() => ["fill", "work", "take", "deliver"]))
      })))
  })

  layer(rig.layer, { excludeTestServices: true })("pipelines: ends", (it) => {
    it.effect("end when the consumer stops", () =>
      leavesNothing(Effect.gen(function*() {
        const some = Stream.forever(Stream.fromIterable(chunks)).pipe(
          CudaPipeline.through({ ...copied, slots: 4 }),
          Stream.take(7)
        )
        assertSame(yield* Stream.runCollect(some), chunks.slice(0, 7))
      })))

    it.effect("release everything before the next stream begins", () =>
      leavesNothing(Effect.gen(function*() {
        const { runtime } = yield* CudaStream.current()
        const before = yield* runtime.liveResources
        const both = Stream.concat(
          CudaPipeline.through(Stream.fromIterable(chunks), copied),
          Stream.fromEffect(Effect.map(runtime.liveResources, (live) => assert.deepStrictEqual(live, before)))
        )
        yield* Stream.runDrain(both)
      })))

    for (const failing of ["source", "fill", "work", "take"] as const) {
      for (const slots of [1, 4]) {
        it.effect(`deliver the elements before a failure of ${failing}: ${slots} at a time`, () =>
          leavesNothing(Effect.gen(function*() {
            const at = 6
            const failure = <A, E, R>(
              step: string,
              element: Uint8Array,
              otherwise: Effect.Effect<A, E, R>
            ): Effect.Effect<A, E | "failed", R> =>
              step === failing && element === chunks[at] ? Effect.fail("failed" as const) : otherwise
            const { delivered, exit } = yield* Stream.fromIterable(chunks).pipe(
              Stream.rechunk(1),
              Stream.mapEffect((element) => failure("source", element, Effect.succeed(element))),
              CudaPipeline.through({
                ...copied,
                slots,
                fill: (element, into) => failure("fill", element, copied.fill(element, into)),
                work: (arrived) => failure("work", arrived.element, Effect.andThen(busyHere(1), copied.work(arrived))),
                take: (bytes, element) => failure("take", element, copied.take(bytes))
              }),
              deliveredBy
            )
            assertSame(delivered, chunks.slice(0, at))
            assert.deepStrictEqual(exit, Exit.fail("failed"))
          })))
      }
    }

    it.effect("leave nothing behind when interrupted at any point", () =>
      leavesNothing(Effect.gen(function*() {
        for (let moment = 0; moment < 30; moment++) {
          const delivered: Array<Uint8Array> = []
          const running = Stream.forever(Stream.fromIterable(chunks)).pipe(
            CudaPipeline.through({
              ...copied,
              slots: 1 + moment % 4,
              work: (arrived) => Effect.andThen(busyHere(0.2), copied.work(arrived))
            }),
            Stream.runForEach((chunk) => Effect.sync(() => delivered.push(chunk)))
          )
          yield* leavesNothing(Effect.timeoutOption(running, moment / 3))
          assertSame(delivered, delivered.map((_, index) => chunks[index % chunks.length]!))
        }
      })))

    for (const end of ["interruption", "failure"] as const) {
      it.effect(`keep the memory of an uninterruptible fill until it ends: ${end}`, () =>
        leavesNothing(Effect.gen(function*() {
          const lengths: Array<number> = []
          const fiber = yield* Stream.fromIterable(chunks).pipe(
            CudaPipeline.through({
              ...copied,
              slots: 3,
              fill: (element, into): Effect.Effect<number, CudaError | "failed"> => {
                const isFailing = end === "failure" && element === chunks[0]
                if (isFailing) return Effect.andThen(Effect.sleep(10), Effect.fail("failed" as const))
                return Effect.sleep(30).pipe(
                  Effect.andThen(Effect.sync(() => lengths.push(into.byteLength))),
                  Effect.andThen(copied.fill(element, into)),
                  Effect.uninterruptible
                )
              }
            }),
            Stream.runDrain,
            Effect.forkChild({ startImmediately: true })
          )
          yield* Effect.sleep(5)
          if (end === "interruption") yield* Fiber.interrupt(fiber)
          assert.isTrue(Exit.isFailure(yield* Fiber.await(fiber)))
          assert.deepStrictEqual(lengths, Array.from({ length: end === "failure" ? 2 : 3 }, () => chunkBytes))
        })))
    }
  })

  layer(rig.layer, { excludeTestServices: true })("pipelines: arguments", (it) => {
    it.effect("are rejected by name", () =>
      leavesNothing(Effect.gen(function*() {
        const run = (options: Partial<CudaPipeline.SizeOptions>) =>
          Stream.runDrain(CudaPipeline.through(Stream.fromIterable(chunks), { ...copied, ...options }))
        for (const slots of [0, -1, 1.5, Number.NaN]) yield* refuses(run({ slots }), "slots")
        for (const inputBytes of [0, 0.5, -1]) yield* refuses(run({ inputBytes }), "inputBytes")
        for (const outputBytes of [0, 0.5, Number.POSITIVE_INFINITY]) {
          yield* refuses(run({ outputBytes }), "outputBytes")
        }
        yield* refuses(run({ device: 99 }), "device")
        yield* refuses(run({ priority: 99 }), "priority")
        yield* refuses(run({ pollFor: "soon" as never }), "pollFor")
        yield* refuses(run({ inputBytes: chunkBytes - 1 }), "element")
      })))

    it.effect("include the return values of fill and work", () =>
      leavesNothing(Effect.gen(function*() {
        const run = (filled: number, worked: number, outputBytes?: number) =>
          Stream.fromIterable(chunks).pipe(
            CudaPipeline.through({
              ...copied,
              outputBytes,
              fill: () => Effect.succeed(filled),
              work: () => Effect.succeed(worked)
            }),
            Stream.runDrain
          )
        for (const filled of [-1, 0.5, Number.NaN, chunkBytes + 1]) yield* refuses(run(filled, 0), "the answer of fill")
        for (const worked of [-1, 0.5, Number.NaN, 11]) yield* refuses(run(10, worked), "the answer of work")
        yield* refuses(run(chunkBytes, 6, 5), "the answer of work")
        yield* run(10, 11, 11)
      })))
  })
}
