/**
 * The contract of timing: measures the GPU's work on its stream, and leaves nothing behind.
 */
import { assert, layer } from "@effect/vitest"
import * as CudaBranch from "effect-cuda/CudaBranch"
import * as CudaDevice from "effect-cuda/CudaDevice"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaStream from "effect-cuda/CudaStream"
import * as CudaTiming from "effect-cuda/CudaTiming"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Tracer from "effect/Tracer"
import { leavesNothing } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

/** Keeps the current stream busy. */
const busyHere = (millis: number) =>
  Effect.gen(function*() {
    const busy = yield* Busy
    yield* busy.enqueue(yield* CudaStream.current(), millis)
  })

const { toMillis } = Duration

const startOf = ({ start }: CudaTiming.Region) => toMillis(start)

const endOf = ({ duration, start }: CudaTiming.Region) => toMillis(start) + toMillis(duration)

/** Asserts that the measurement covers the work and nothing enqueued before or after it. */
const isAbout = (duration: Duration.Duration, millis: number) => {
  assert.isAtLeast(toMillis(duration), millis - 1)
  assert.isBelow(toMillis(duration), millis + 100)
}

const byName = ({ regions }: CudaTiming.Timeline, name: string) => {
  const found = regions.find((region) => region.name === name)
  return found ?? assert.fail(`no region ${name}`)
}

/** Runs a test on its own stream and asserts that its scope leaves nothing behind. The pooled streams already exist. */
const onStream = <A, E, R>(body: (stream: CudaStream.CudaStream) => Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    yield* CudaBranch.all(Array.from({ length: 32 }, () => Effect.void), { device: 0, priority: "low" })
    return yield* leavesNothing(
      Effect.flatMap(CudaStream.make(), (stream) => CudaStream.withStream(body(stream), stream))
    )
  })

export const timingContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("timing", (it) => {
    it.effect("measures an effect's work on the current stream, and nothing before it", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          yield* busyHere(150)
          const [duration, result] = yield* CudaTiming.timed(Effect.as(busyHere(20), "done"))
          assert.strictEqual(result, "done")
          isAbout(duration, 20)
          assert.isTrue(yield* CudaStream.query(stream))
        })
      ))

    it.effect("measures on the given stream", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const busy = yield* Busy
          const other = yield* CudaStream.make()
          const work = busy.enqueue(other, 20)
          isAbout((yield* CudaTiming.timed(work, { stream: other }))[0], 20)
          isAbout((yield* work.pipe(CudaTiming.timed({ stream: other })))[0], 20)
          isAbout((yield* work.pipe(CudaTiming.timed({ stream })))[0], 0)
        })
      ))

    it.effect("fails with the effect's failure, without waiting", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const failing = Effect.andThen(busyHere(200), Effect.fail("no"))
          assert.strictEqual(yield* Effect.flip(CudaTiming.timed(failing)), "no")
          assert.isFalse(yield* CudaStream.query(stream))
          assert.strictEqual(yield* Effect.flip(CudaTiming.timeline(CudaTiming.region(failing, "failing"))), "no")
          assert.isFalse(yield* CudaStream.query(stream))
        })
      ))

    it.effect("is interruptible while it waits", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const work = busyHere(300)
          const measuring = [
            CudaTiming.timed(work),
            CudaTiming.timeline(CudaTiming.region(work, "work")),
            CudaTiming.withSpan(work, "work")
          ]
          for (const measure of measuring) {
            const exit = yield* Effect.exit(Effect.timeout(measure, "20 millis"))
            assert.isTrue(Exit.isFailure(exit))
          }
          assert.isFalse(yield* CudaStream.query(stream))
        })
      ))

    it.effect("a timeline has the regions in order, with their stream, device and attributes", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const program = Effect.gen(function*() {
            yield* CudaTiming.region(busyHere(80), "first", { attributes: { bytes: 4, last: false } })
            yield* busyHere(10)
            yield* busyHere(5).pipe(CudaTiming.region("inner"), CudaTiming.region("outer"))
            assert.isFalse(yield* CudaStream.query(stream))
            return "done"
          })
          const [timeline, result] = yield* CudaTiming.timeline(program)
          assert.strictEqual(result, "done")
          assert.strictEqual(timeline.dropped, 0)
          const [first, outer, inner] = [
            byName(timeline, "first"),
            byName(timeline, "outer"),
            byName(timeline, "inner")
          ]
          assert.strictEqual(timeline.regions.length, 3)
          assert.deepStrictEqual(first.attributes, { bytes: 4, last: false })
          isAbout(first.duration, 80)
          isAbout(inner.duration, 5)
          assert.isAtLeast(startOf(outer) - endOf(first), 9)
          assert.isAtLeast(startOf(inner), startOf(outer) - 0.01)
          assert.isAtMost(endOf(inner), endOf(outer) + 0.01)
          for (const region of timeline.regions) {
            assert.deepStrictEqual([region.deviceIndex, region.streamId], [0, stream.id])
          }
          const [device] = timeline.devices
          assert.deepStrictEqual([device?.index, device?.name], [0, (yield* CudaDevice.get(0)).name])
          assert.isBelow(toMillis(device!.uncertainty), 5)
        })
      ))

    it.effect("a region stays on the stream it began on, and branch regions on theirs", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const other = yield* CudaStream.make()
          const branch = Effect.tap(CudaStream.current(), () => CudaTiming.region(busyHere(60), "branch"))
          const [timeline, streams] = yield* CudaTiming.timeline(Effect.gen(function*() {
            yield* CudaTiming.region(CudaStream.withStream(busyHere(5), other), "began here")
            yield* CudaTiming.region(busyHere(5), "on another", { stream: other })
            return yield* CudaBranch.all([branch, branch])
          }))
          assert.strictEqual(byName(timeline, "began here").streamId, stream.id)
          assert.strictEqual(byName(timeline, "on another").streamId, other.id)
          const branches = timeline.regions.filter(({ name }) => name === "branch")
          assert.sameMembers(branches.map(({ streamId }) => streamId), streams.map(({ id }) => id))
          const [left, right] = branches
          assert.isBelow(startOf(right!), endOf(left!))
          assert.isBelow(startOf(left!), endOf(right!))
        })
      ))

    it.effect("regions of forked fibers count; regions still running at the end are dropped", () =>
      onStream(() =>
        Effect.gen(function*() {
          const never = yield* Deferred.make<void>()
          const [timeline, fiber] = yield* CudaTiming.timeline(Effect.gen(function*() {
            const joined = yield* Effect.forkChild(CudaTiming.region(busyHere(5), "joined"))
            yield* Fiber.join(joined)
            const late = CudaTiming.region(Deferred.await(never), "late")
            return yield* Effect.forkScoped(late, { startImmediately: true })
          }))
          assert.deepStrictEqual(timeline.regions.map(({ name }) => name), ["joined"])
          assert.strictEqual(timeline.dropped, 1)
          yield* Deferred.succeed(never, undefined)
          yield* Fiber.join(fiber)
          yield* CudaTiming.region(busyHere(1), "outside")
          assert.strictEqual(timeline.regions.length, 1)
        })
      ))

    it.effect("a timeline maps GPU times to host times", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [timeline, millis] = yield* CudaTiming.timeline(Effect.gen(function*() {
            yield* Effect.sleep("50 millis")
            yield* CudaTiming.region(busyHere(10), "work")
            const [passed] = yield* Effect.timed(CudaStream.synchronize(yield* CudaStream.current()))
            return toMillis(passed)
          }))
          const work = byName(timeline, "work")
          assert.isAtLeast(startOf(work), 49)
          assert.isBelow(startOf(work), 150)
          assert.isBelow(millis, 150)
        })
      ))

    it.effect.skipIf(rig.deviceCount < 2)("a timeline covers several devices", () =>
      onStream(() =>
        Effect.gen(function*() {
          const work = CudaTiming.region(busyHere(60), "work")
          const far = Effect.scoped(Effect.flatMap(CudaStream.make({ device: 1 }), (stream) =>
            Effect.andThen(CudaStream.withStream(work, stream), CudaStream.synchronize(stream))))
          // Per-device setup runs before the measured work.
          yield* far
          const [timeline] = yield* CudaTiming.timeline(Effect.andThen(work, far))
          assert.strictEqual(timeline.dropped, 0)
          assert.deepStrictEqual(
            timeline.devices.map(({ index }) =>
              index
            ),
            [0, 1]
          )
          const [near, away] = [0, 1].map((index) =>
            timeline.regions.find(({ deviceIndex }) => deviceIndex === index)!
          )
          isAbout(near!.duration, 60)
          isAbout(away!.duration, 60)
          assert.isBelow(startOf(away!), endOf(near!))
          assert.isBelow(startOf(near!), endOf(away!))
        })
      ))

    it.effect("a program that waits reuses few events", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const buffer = yield* CudaMemory.allocate(1024)
          const { events: before } = yield* buffer.runtime.liveResources
          let most = 0
          const step = Effect.gen(function*() {
            yield* CudaTiming.region(CudaMemory.fill(buffer, 0), "fill")
            yield* CudaStream.synchronize(stream)
            most = Math.max(most, (yield* buffer.runtime.liveResources).events - before)
          })
          const [timeline] = yield* CudaTiming.timeline(Effect.repeat(step, { times: 199 }))
          assert.deepStrictEqual([timeline.regions.length, timeline.dropped], [200, 0])
          assert.isAtMost(most, 10)
        })
      ))

    it.effect("a span reports what its effect did on the GPU", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const spans: Array<Tracer.Span> = []
          const tracer = Tracer.make({
            span(options) {
              const span = new Tracer.NativeSpan(options)
              spans.push(span)
              return span
            }
          })
          yield* busyHere(30)
          const work = CudaTiming.withSpan(busyHere(20), "work", { attributes: { bytes: 4 } })
          yield* Effect.provideService(work, Tracer.Tracer, tracer)
          const { attributes, status } = spans[0]!
          assert.strictEqual(attributes.get("bytes"), 4)
          assert.strictEqual(attributes.get("cuda.device"), 0)
          assert.strictEqual(attributes.get("cuda.stream"), stream.id)
          const [start, length] = [Number(attributes.get("cuda.start_ms")), Number(attributes.get("cuda.duration_ms"))]
          isAbout(Duration.millis(length), 20)
          assert.isAtLeast(start, 20)
          assert.isTrue(status._tag === "Ended")
          if (status._tag === "Ended") {
            assert.isAtMost(start + length, Number(status.endTime - status.startTime) / 1e6 + 0.5)
          }
        })
      ))
  })
