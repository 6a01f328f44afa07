/**
 * Ordered buffers: uses on different streams wait for each other where required, and nowhere else.
 */
import { assert, layer } from "@effect/vitest"
import { CudaMemory, CudaStream } from "effect-cuda"
import { unchecked } from "effect-cuda/CheckedRuntime"
import type { CudaStream as Stream } from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const ordered = { ordered: true } as const

/** Keeps a stream busy with work that uses memory. */
const busyWith = (stream: Stream, millis: number, uses: CudaMemory.AccessOptions) =>
  Effect.flatMap(Busy, (busy) => CudaMemory.access(busy.enqueue(stream, millis), { ...uses, stream }))

const streams = (count: number) => Effect.replicateEffect(CudaStream.make(), count)

/** Asserts that every byte equals the given one. */
const assertBytes = (bytes: Uint8Array, value: number) =>
  assert.strictEqual(bytes.findIndex((byte) => byte !== value), -1)

const isBusy = (stream: Stream) => Effect.map(CudaStream.query(stream), (isDone) => !isDone)

export const orderingContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("ordered buffers", (it) => {
    it.effect("a write waits for every read on every stream", () =>
      leavesNothing(Effect.gen(function*() {
        const [one, two, three, writer] = yield* streams(4)
        const buffer = yield* CudaMemory.allocate(64, ordered)
        yield* busyWith(one!, 30, { reads: [buffer] })
        yield* busyWith(two!, 60, { reads: [buffer] })
        yield* busyWith(three!, 1, { reads: [buffer] })
        yield* CudaMemory.fill(buffer, 1, writer!)
        yield* CudaStream.synchronize(one!)
        assert.isTrue(yield* isBusy(writer!))
        yield* CudaStream.synchronize(writer!)
        assert.isFalse(yield* isBusy(two!))
      })))

    it.effect("reads wait for a write, but not for each other", () =>
      leavesNothing(Effect.gen(function*() {
        const [writer, slow, quick] = yield* streams(3)
        const buffer = yield* CudaMemory.allocate(64, ordered)
        const host = yield* CudaMemory.allocateHost(64)
        host.bytes.fill(0)
        yield* busyWith(writer!, 20, { writes: [buffer] })
        yield* CudaMemory.fill(buffer, 7, writer!)
        yield* busyWith(slow!, 100, { reads: [buffer] })
        yield* CudaMemory.copy(host, buffer, quick!)
        yield* CudaStream.synchronize(quick!)
        assertBytes(host.bytes, 7)
        assert.isTrue(yield* isBusy(slow!))
      })))

    it.effect("disjoint ranges do not wait for each other", () =>
      leavesNothing(Effect.gen(function*() {
        const [slow, quick] = yield* streams(2)
        const buffer = yield* CudaMemory.allocate(64, ordered)
        yield* busyWith(slow!, 100, { writes: [CudaMemory.slice(buffer, 0, 32)] })
        yield* CudaMemory.fill(CudaMemory.slice(buffer, 32), 1, quick!)
        yield* CudaStream.synchronize(quick!)
        assert.isTrue(yield* isBusy(slow!))
      })))

    it.effect("unordered buffers are unaffected", () =>
      leavesNothing(Effect.gen(function*() {
        const [slow, quick] = yield* streams(2)
        const buffer = yield* CudaMemory.allocate(64)
        yield* busyWith(slow!, 100, { writes: [buffer] })
        yield* unchecked(CudaMemory.fill(buffer, 1, quick!))
        yield* CudaStream.synchronize(quick!)
        assert.isTrue(yield* isBusy(slow!))
      })))

    it.effect("copies and fills on many streams match sequential execution", () =>
      leavesNothing(
        Effect.gen(function*() {
          const busy = yield* Busy
          const all = [...yield* streams(3), yield* CudaStream.defaultStream()]
          const [first, second] = [yield* CudaMemory.allocate(256), yield* CudaMemory.allocate(256)]
          const host = yield* CudaMemory.allocateHost(32 * 256)
          for (const stream of all) yield* busy.enqueue(stream, 50)
          for (let round = 0; round < 32; round++) {
            const on = (shift: number): Stream => all[(round * 3 + shift) % 4]!
            yield* CudaMemory.fill(first, round, on(0))
            yield* CudaMemory.copy(second, first, on(1))
            yield* CudaMemory.copy(CudaMemory.slice(host, round * 256, 256), second, on(2))
          }
          yield* CudaMemory.synchronize(host)
          for (let round = 0; round < 32; round++) {
            assertBytes(host.bytes.subarray(round * 256, round * 256 + 256), round)
          }
        }).pipe(CudaMemory.withOrdering())
      ))

    it.effect("a write to pinned memory waits for the copies that read it", () =>
      leavesNothing(
        Effect.gen(function*() {
          const busy = yield* Busy
          const [up, down] = yield* streams(2)
          const host = yield* CudaMemory.allocateHost(64)
          const [from, to] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocate(64)]
          host.bytes.fill(1)
          yield* CudaMemory.fill(from, 2, down!)
          yield* busy.enqueue(up!, 20)
          yield* CudaMemory.copy(to, host, up!)
          yield* CudaMemory.copy(host, from, down!)
          const target = new Uint8Array(64)
          yield* CudaMemory.download(target, to, down!)
          assertBytes(target, 1)
          assertBytes(host.bytes, 2)
        }).pipe(CudaMemory.withOrdering())
      ))

    it.effect("uploads and downloads are ordered with the rest", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [one, two, three] = yield* streams(3)
        const buffer = yield* CudaMemory.allocate(64, ordered)
        const target = new Uint8Array(64)
        yield* busy.enqueue(one!, 20)
        yield* CudaMemory.upload(buffer, new Uint8Array(64).fill(3), one!)
        yield* CudaMemory.download(target, buffer, two!)
        assertBytes(target, 3)
        yield* busyWith(two!, 20, { reads: [buffer] })
        yield* CudaMemory.upload(buffer, new Uint8Array(64).fill(4), three!)
        yield* CudaMemory.download(target, buffer, three!)
        assert.isFalse(yield* isBusy(two!))
        assertBytes(target, 4)
      })))

    it.effect("an access is one use however much it enqueues, and lets others in between", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [one, two] = yield* streams(2)
        const buffer = yield* CudaMemory.allocate(64, ordered)
        const host = yield* CudaMemory.allocateHost(64)
        const work = Effect.gen(function*() {
          yield* busy.enqueue(one!, 20)
          yield* CudaMemory.fill(buffer, 5, one!)
          yield* CudaMemory.copy(host, buffer, two!)
          yield* CudaMemory.fill(buffer, 6, one!)
        })
        yield* CudaMemory.access(work, { writes: [buffer], stream: one! })
        yield* CudaStream.synchronize(two!)
        assertBytes(host.bytes, 5)
      })))

    it.effect("conflicting accesses of different fibers take turns", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const all = yield* streams(3)
        const buffer = yield* CudaMemory.allocate(64, ordered)
        let inside = 0
        const work = (stream: Stream) =>
          Effect.gen(function*() {
            assert.strictEqual(++inside, 1)
            yield* busy.enqueue(stream, 1)
            yield* Effect.yieldNow
            inside--
          })
        const use = (stream: Stream) => CudaMemory.access(work(stream), { writes: [buffer], stream })
        yield* Effect.forEach([...all, ...all], use, { concurrency: 3, discard: true })
        yield* CudaMemory.synchronize(buffer)
        for (const stream of all) assert.isFalse(yield* isBusy(stream))
      })))

    it.effect("synchronize waits for the uses alone, not for other work on their streams", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [one, two] = yield* streams(2)
        const buffer = yield* CudaMemory.allocate(64, ordered)
        yield* CudaMemory.synchronize(buffer)
        yield* busyWith(one!, 20, { reads: [buffer] })
        yield* busyWith(two!, 30, { reads: [buffer] })
        yield* busy.enqueue(one!, 200)
        yield* CudaMemory.synchronize(CudaMemory.slice(buffer, 8, 8))
        assert.isFalse(yield* isBusy(two!))
        assert.isTrue(yield* isBusy(one!))
        const waiting = yield* Effect.forkChild(
          Effect.andThen(busyWith(two!, 100, { writes: [buffer] }), CudaMemory.synchronize(buffer)),
          { startImmediately: true }
        )
        yield* Fiber.interrupt(waiting)
        yield* refuses(CudaMemory.synchronize(yield* CudaMemory.allocate(8)), "buffer")
      })))

    it.effect("buffers and streams may be released while uses wait for each other", () =>
      leavesNothing(Effect.gen(function*() {
        const [one, two] = yield* streams(2)
        const target = yield* CudaMemory.allocateHost(64, ordered)
        yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(64, ordered)
          yield* busyWith(one!, 30, { writes: [buffer] })
          yield* CudaMemory.fill(buffer, 8, one!)
          yield* CudaMemory.copy(target, buffer, two!)
        }))
        assert.isTrue(yield* isBusy(two!))
        yield* Effect.scoped(Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          yield* busyWith(stream, 20, { reads: [target] })
        }))
        const other = yield* CudaMemory.allocate(64, ordered)
        yield* CudaMemory.copy(other, target, two!)
        const array = new Uint8Array(64)
        yield* CudaMemory.download(array, other, one!)
        assertBytes(array, 8)
      })))

    it.effect("a released buffer is rejected", () =>
      leavesNothing(Effect.gen(function*() {
        const scope = yield* Scope.make()
        const buffer = yield* Scope.provide(CudaMemory.allocate(64, ordered), scope)
        const stream = yield* CudaStream.make()
        yield* CudaMemory.fill(buffer, 1, stream)
        yield* Scope.close(scope, Exit.void)
        yield* failsWith(CudaMemory.synchronize(buffer), "ResourceReleased")
        yield* failsWith(CudaMemory.access(Effect.void, { reads: [buffer], stream }), "ResourceReleased")
        yield* failsWith(CudaMemory.fill(buffer, 1, stream), "ResourceReleased")
      })))

    it.effect("foreign and default streams take part", () =>
      leavesNothing(Effect.gen(function*() {
        const made = yield* CudaStream.make()
        const wrapped = yield* CudaStream.fromHandle(made.handle)
        const perThread = yield* CudaStream.defaultStream({ mode: "perThread" })
        const buffer = yield* CudaMemory.allocate(64, ordered)
        const host = yield* CudaMemory.allocateHost(64, ordered)
        for (const [value, [one, two]] of [[wrapped, made], [made, perThread], [perThread, wrapped]].entries()) {
          yield* busyWith(one!, 10, { writes: [buffer] })
          yield* CudaMemory.fill(buffer, value, one!)
          yield* CudaMemory.copy(host, buffer, two!)
          yield* CudaMemory.synchronize(host)
          assertBytes(host.bytes, value)
        }
      })))

    it.effect("interruption at any point leaves nothing behind", () =>
      leavesNothing(Effect.gen(function*() {
        for (let millis = 0; millis < 10; millis++) {
          const work = Effect.gen(function*() {
            const [one, two] = yield* streams(2)
            const buffer = yield* CudaMemory.allocate(64, ordered)
            const slow = CudaMemory.access(Effect.sleep(3), { writes: [buffer], stream: one! })
            yield* Effect.all([slow, busyWith(two!, 2, { writes: [buffer] })], { concurrency: 2 })
            yield* CudaMemory.synchronize(buffer)
            yield* CudaMemory.download(new Uint8Array(64), buffer, one!)
          })
          yield* leavesNothing(Effect.ignore(Effect.timeout(Effect.scoped(work), millis)))
        }
      })))

    it.effect.skipIf(rig.deviceCount < 2)(
      "uses on streams of different devices wait for each other",
      () =>
        leavesNothing(
          Effect.gen(function*() {
            const near = yield* CudaStream.make({ device: 0 })
            const far = yield* CudaStream.make({ device: 1 })
            const buffer = yield* CudaMemory.allocate(64, { device: 0 })
            const there = yield* CudaMemory.allocate(64, { device: 1 })
            const host = yield* CudaMemory.allocateHost(64)
            yield* busyWith(near, 20, { writes: [buffer] })
            yield* CudaMemory.fill(buffer, 1, near)
            yield* CudaMemory.copy(there, buffer, far)
            yield* busyWith(far, 20, { reads: [buffer] })
            yield* CudaMemory.fill(buffer, 2, near)
            yield* CudaMemory.copy(host, there, far)
            yield* CudaMemory.synchronize(buffer)
            assert.isFalse(yield* isBusy(near))
            yield* CudaMemory.synchronize(host)
            assertBytes(host.bytes, 1)
            yield* CudaMemory.copy(there, buffer, near)
            yield* CudaMemory.copy(host, there, far)
            yield* CudaMemory.synchronize(host)
            assertBytes(host.bytes, 2)
          }).pipe(CudaMemory.withOrdering())
        )
    )
  })
