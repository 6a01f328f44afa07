/**
 * The contract of branches and dependencies: concurrency, ordering, and joining all enqueued work however the branch ended.
 */
import { assert, layer } from "@effect/vitest"
import * as CudaBranch from "effect-cuda/CudaBranch"
import * as CudaDependency from "effect-cuda/CudaDependency"
import * as CudaDevice from "effect-cuda/CudaDevice"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

/** Keeps the current stream busy. */
const busyHere = (millis: number) =>
  Effect.gen(function*() {
    const busy = yield* Busy
    yield* busy.enqueue(yield* CudaStream.current(), millis)
  })

/** Runs a test on its own stream and asserts that its scope leaves nothing behind. The pooled streams already exist. */
const onStream = <A, E, R>(body: (stream: CudaStream.CudaStream) => Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    for (const { index: device } of yield* CudaDevice.all) {
      for (const priority of ["low", "high"] as const) {
        yield* CudaBranch.all(Array.from({ length: 32 }, () => Effect.void), { device, priority })
      }
    }
    return yield* leavesNothing(
      Effect.flatMap(CudaStream.make(), (stream) => CudaStream.withStream(body(stream), stream))
    )
  })

/** A zeroed device buffer and a host buffer to read it back. */
const makeBuffer = Effect.gen(function*() {
  const device = yield* CudaMemory.allocate(4096)
  const host = yield* CudaMemory.allocateHost(4096)
  host.bytes.fill(0)
  yield* CudaMemory.fill(device, 0)
  return { device, host }
})

/** Copies the buffer to the host on the current stream, waits, and asserts its fill value. */
const holds = ({ device, host }: Effect.Success<typeof makeBuffer>, value: number) =>
  Effect.gen(function*() {
    yield* CudaMemory.copy(host, device)
    yield* CudaStream.synchronize(yield* CudaStream.current())
    assert.isTrue(host.bytes.every((byte) => byte === value), `${host.bytes[0]} instead of ${value}`)
  })

export const branchContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("branches", (it) => {
    it.effect("start after the current stream's work, and the current stream continues after all of them", () =>
      onStream(() =>
        Effect.gen(function*() {
          const source = yield* makeBuffer
          const targets = yield* Effect.replicateEffect(makeBuffer, 3)
          yield* busyHere(20)
          yield* CudaMemory.fill(source.device, 7)
          yield* CudaBranch.forEach(
            targets,
            ({ device }) => Effect.andThen(busyHere(10), CudaMemory.copy(device, source.device))
          )
          yield* Effect.forEach(targets, (target) => holds(target, 7))
        })
      ))

    it.effect("run concurrently, each on its own stream", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const streams = yield* CudaBranch.all([
            Effect.andThen(busyHere(60), CudaStream.current()),
            Effect.andThen(busyHere(1), CudaStream.current())
          ])
          const [slow, quick] = streams
          yield* CudaStream.synchronize(quick)
          assert.isFalse(yield* CudaStream.query(slow))
          assert.isFalse(yield* CudaStream.query(stream))
          yield* CudaStream.synchronize(stream)
          assert.isTrue(yield* CudaStream.query(slow))
          assert.strictEqual(new Set([stream, ...streams].map(({ id }) => id)).size, 3)
          for (const { deviceIndex, priority } of streams) {
            assert.deepStrictEqual([deviceIndex, priority], [stream.deviceIndex, stream.priority])
          }
        })
      ))

    it.effect("return results in the shape of the input: tuple, record, iterable, or none", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [number, text] = yield* CudaBranch.all([Effect.succeed(1), Effect.succeed("two")])
          assert.deepStrictEqual([number, text], [1, "two"])
          assert.deepStrictEqual(yield* CudaBranch.all({ a: Effect.succeed(1), b: Effect.succeed("two") }), {
            a: 1,
            b: "two"
          })
          const many = new Set([Effect.succeed(1), Effect.succeed(2)])
          for (const concurrency of [undefined, 2, "unbounded"] as const) {
            assert.deepStrictEqual(yield* CudaBranch.all(many, { concurrency }), [1, 2])
            const doubled = CudaBranch.forEach([1, 2, 3], (n, index) => Effect.succeed([n * 2, index]), { concurrency })
            assert.deepStrictEqual(yield* doubled, [[2, 0], [4, 1], [6, 2]])
            assert.isUndefined(yield* CudaBranch.all(many, { concurrency, discard: true }))
          }
          assert.deepStrictEqual(yield* CudaBranch.all([]), [])
          assert.deepStrictEqual(yield* CudaBranch.all({}), {})
          assert.isUndefined(yield* CudaBranch.all([], { discard: true }))
        })
      ))

    it.effect("share a limited number of streams, in order on each", () =>
      onStream(() =>
        Effect.gen(function*() {
          const { device, host } = yield* makeBuffer
          const used = yield* CudaBranch.forEach([1, 2, 3, 4, 5], (value) =>
            Effect.gen(function*() {
              yield* busyHere(value === 1 ? 20 : 1)
              if (value % 2 === 1) yield* CudaMemory.fill(device, value)
              return (yield* CudaStream.current()).id
            }), { streams: 2 })
          assert.strictEqual(new Set(used).size, 2)
          assert.strictEqual(used[0], used[2])
          assert.strictEqual(used[1], used[3])
          yield* holds({ device, host }, 5)
        })
      ))

    it.effect("nest: a branch forks from its own stream", () =>
      onStream(() =>
        Effect.gen(function*() {
          const { device, host } = yield* makeBuffer
          yield* CudaBranch.all([
            Effect.gen(function*() {
              yield* busyHere(20)
              yield* CudaMemory.fill(device, 3)
              yield* CudaBranch.all([
                CudaMemory.fill(CudaMemory.slice(device, 0, 2048), 4),
                CudaMemory.fill(CudaMemory.slice(device, 2048), 4)
              ])
              yield* CudaMemory.copy(CudaMemory.slice(host, 0, 1), CudaMemory.slice(device, 0, 1))
            }),
            busyHere(1)
          ])
          yield* holds({ device, host }, 4)
        })
      ))

    it.effect("restore the current stream on success, failure and interruption", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const id = Effect.map(CudaStream.current(), (current) => current.id)
          for (const concurrency of [1, "unbounded"] as const) {
            yield* CudaBranch.all([Effect.void, Effect.void], { concurrency })
            assert.strictEqual(yield* id, stream.id)
            yield* Effect.exit(CudaBranch.all([Effect.void, Effect.fail("no")], { concurrency }))
            assert.strictEqual(yield* id, stream.id)
            yield* Effect.exit(CudaBranch.all([Effect.die("no")], { concurrency }))
            assert.strictEqual(yield* id, stream.id)
            yield* Effect.timeoutOption(CudaBranch.all([Effect.never], { concurrency }), 5)
            assert.strictEqual(yield* id, stream.id)
          }
        })
      ))

    it.effect("are joined when one fails, and fail with its failure", () =>
      onStream(() =>
        Effect.gen(function*() {
          for (const concurrency of [1, "unbounded"] as const) {
            const { device, host } = yield* makeBuffer
            const enqueued = yield* Latch.make()
            const all = CudaBranch.all([
              Effect.andThen(Effect.andThen(busyHere(20), CudaMemory.fill(device, 5)), enqueued.open),
              Effect.andThen(enqueued.await, Effect.fail("no" as const)),
              CudaMemory.fill(device, 6).pipe(Effect.delay(1000))
            ], { concurrency })
            assert.strictEqual(yield* Effect.flip(all), "no")
            yield* holds({ device, host }, 5)
          }
        })
      ))

    it.effect("are joined when they are interrupted", () =>
      onStream(() =>
        Effect.gen(function*() {
          for (const concurrency of [1, "unbounded"] as const) {
            const { device, host } = yield* makeBuffer
            const enqueued = yield* Latch.make()
            const first = Effect.andThen(busyHere(40), CudaMemory.fill(device, 5))
            const all = CudaBranch.all([
              Effect.andThen(Effect.andThen(first, enqueued.open), Effect.never),
              Effect.never
            ], { concurrency })
            const running = yield* Effect.forkChild(all)
            yield* enqueued.await
            yield* Fiber.interrupt(running)
            yield* holds({ device, host }, 5)
          }
        })
      ))

    it.effect("reject numbers that do not count streams or branches", () =>
      onStream(() =>
        Effect.gen(function*() {
          for (const number of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 1e300]) {
            for (
              const [argument, options] of Object.entries({
                streams: { streams: number },
                concurrency: { concurrency: number }
              })
            ) {
              yield* refuses(CudaBranch.all([Effect.void], options), argument)
              yield* refuses(CudaBranch.forEach([1], () => Effect.void, options), argument)
            }
          }
          const most = Number.MAX_SAFE_INTEGER
          yield* CudaBranch.all([Effect.void, Effect.void], { streams: most, concurrency: most })
          yield* refuses(CudaBranch.all([Effect.void], { device: 99 }), "device")
          yield* refuses(Effect.scoped(CudaBranch.fork(Effect.void, { device: -1 })), "device")
        })
      ))

    it.effect("cannot fork from a released stream", () =>
      Effect.gen(function*() {
        const gone = yield* Effect.scoped(CudaStream.make())
        const all = CudaBranch.all([Effect.void]).pipe(CudaStream.withStream(gone))
        assert.strictEqual((yield* failsWith(all, "ResourceReleased")).resource, `stream ${gone.id} of device 0`)
        const fork = Effect.scoped(CudaBranch.fork(Effect.void)).pipe(CudaStream.withStream(gone))
        yield* failsWith(fork, "ResourceReleased")
      }))

    it.effect.skipIf(rig.deviceCount < 2)("run on another device", () =>
      onStream(() =>
        Effect.gen(function*() {
          const { device, host } = yield* makeBuffer
          yield* busyHere(20)
          yield* CudaMemory.fill(device, 9)
          const [far] = yield* CudaBranch.all([
            Effect.gen(function*() {
              const buffer = yield* CudaMemory.allocate(4096)
              assert.strictEqual((yield* CudaDevice.current).index, 1)
              yield* CudaMemory.copy(buffer, device)
              yield* CudaMemory.fill(CudaMemory.slice(buffer, 0, 4095), 9)
              return buffer
            })
          ], { device: 1 })
          yield* CudaMemory.copy(device, far)
          yield* holds({ device, host }, 9)
        })
      ))
  })

export const forkContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("forked branches", (it) => {
    it.effect("run concurrently with the current stream until joined", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const { device, host } = yield* makeBuffer
          const branch = yield* CudaBranch.fork(
            Effect.andThen(Effect.andThen(busyHere(60), CudaMemory.fill(device, 8)), Effect.succeed("done"))
          )
          assert.isTrue(CudaBranch.isCudaBranch(branch))
          assert.notStrictEqual(branch.stream.id, stream.id)
          yield* busyHere(1)
          yield* CudaStream.synchronize(stream)
          assert.isFalse(yield* CudaStream.query(branch.stream))
          assert.strictEqual(yield* CudaBranch.join(branch), "done")
          assert.isFalse(yield* CudaStream.query(stream))
          yield* holds({ device, host }, 8)
        })
      ))

    it.effect("start after the work the current stream held at the fork", () =>
      onStream(() =>
        Effect.gen(function*() {
          const { device, host } = yield* makeBuffer
          yield* busyHere(20)
          yield* CudaMemory.fill(device, 1)
          const branch = yield* CudaBranch.fork(CudaMemory.fill(device, 2))
          yield* CudaStream.synchronize(branch.stream)
          yield* CudaBranch.join(branch)
          yield* holds({ device, host }, 2)
        })
      ))

    it.effect("join on any stream, any number of times", () =>
      onStream(() =>
        Effect.gen(function*() {
          const [first, second] = [yield* CudaStream.make(), yield* CudaStream.make()]
          const branch = yield* CudaBranch.fork(busyHere(40))
          yield* CudaBranch.join(branch, first)
          yield* CudaBranch.join(branch, second)
          assert.deepStrictEqual([yield* CudaStream.query(first), yield* CudaStream.query(second)], [false, false])
          yield* CudaStream.synchronize(second)
          assert.isTrue(yield* CudaStream.query(branch.stream))
        })
      ))

    it.effect("return their stream to the pool when joined, so a scope can have any number of them", () =>
      onStream(() =>
        Effect.gen(function*() {
          const first = yield* CudaBranch.fork(Effect.void)
          yield* CudaBranch.join(first)
          const streams = new Set<number>()
          for (let index = 0; index < 32; index++) {
            const branch = yield* CudaBranch.fork(busyHere(0.01))
            streams.add(branch.stream.id)
            yield* CudaBranch.join(branch)
          }
          assert.isTrue(streams.has(first.stream.id))
          yield* CudaBranch.join(first)
        })
      ))

    it.effect("that failed still join, and the join fails with their failure", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const { device, host } = yield* makeBuffer
          const branch = yield* CudaBranch.fork(
            Effect.andThen(Effect.andThen(busyHere(100), CudaMemory.fill(device, 4)), Effect.fail("no" as const))
          )
          assert.strictEqual(yield* Effect.flip(CudaBranch.join(branch)), "no")
          assert.isFalse(yield* CudaStream.query(stream))
          yield* holds({ device, host }, 4)
        })
      ))

    it.effect("make join wait on the host for their effect, interruptibly", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const { device, host } = yield* makeBuffer
          const gate = yield* Deferred.make<void>()
          const branch = yield* CudaBranch.fork(Effect.andThen(Deferred.await(gate), CudaMemory.fill(device, 6)))
          yield* Effect.timeoutOption(CudaBranch.join(branch), 5)
          const joining = yield* Effect.forkChild(CudaBranch.join(branch), { startImmediately: true })
          yield* Deferred.succeed(gate, undefined)
          yield* Fiber.join(joining)
          yield* CudaStream.synchronize(stream)
          yield* holds({ device, host }, 6)
        })
      ))

    it.effect("never joined are interrupted with their scope, and their parent stream waits for them", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const { device, host } = yield* makeBuffer
          const scope = yield* Scope.make()
          const enqueued = yield* Latch.make()
          let interrupted = false
          const branch = yield* CudaBranch.fork(
            busyHere(40).pipe(
              Effect.andThen(CudaMemory.fill(device, 2)),
              Effect.andThen(enqueued.open),
              Effect.andThen(Effect.never),
              Effect.onInterrupt(() => Effect.sync(() => interrupted = true))
            )
          ).pipe(Scope.provide(scope))
          yield* enqueued.await
          yield* CudaStream.synchronize(stream)
          yield* Scope.close(scope, Exit.void)
          assert.isTrue(interrupted)
          assert.isFalse(yield* CudaStream.query(stream))
          yield* holds({ device, host }, 2)
          assert.isTrue(yield* CudaStream.query(branch.stream))
        })
      ))

    it.effect("forked from a finished branch are joined by the enclosing region", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          const [inner] = yield* CudaBranch.all([CudaBranch.fork(busyHere(60))]).pipe(Scope.provide(scope))
          yield* CudaStream.synchronize(stream)
          assert.isFalse(yield* CudaStream.query(inner.stream))
          yield* Scope.close(scope, Exit.void)
          assert.isFalse(yield* CudaStream.query(stream))
          yield* CudaStream.synchronize(stream)
          assert.isTrue(yield* CudaStream.query(inner.stream))
        })
      ))

    it.effect("use streams that no other branch holds", () =>
      onStream(() =>
        Effect.gen(function*() {
          const forked = yield* Effect.replicateEffect(CudaBranch.fork(Effect.void), 16)
          const others = yield* CudaBranch.all(Array.from({ length: 16 }, () => CudaStream.current()))
          const more = yield* CudaStream.withPooledStream(CudaBranch.all([CudaStream.current()]))
          const ids = [...forked.map(({ stream }) => stream), ...others].map(({ id }) => id)
          assert.strictEqual(new Set(ids).size, 32)
          assert.isFalse(forked.some(({ stream }) => stream.id === more[0].id))
        })
      ))

    it.effect("pooled stream regions set and restore the current stream, without ordering against it", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          yield* busyHere(40)
          const pooled = yield* CudaStream.withPooledStream(CudaStream.current(), { priority: "high" })
          assert.strictEqual(pooled.priority, (yield* CudaDevice.priorityRange()).greatest)
          yield* Effect.gen(function*() {
            yield* busyHere(1)
            yield* CudaStream.synchronize(yield* CudaStream.current())
            assert.isFalse(yield* CudaStream.query(stream))
          }).pipe(CudaStream.withPooledStream())
          assert.strictEqual((yield* CudaStream.current()).id, stream.id)
          yield* Effect.exit(CudaStream.withPooledStream(Effect.die("no")))
          assert.strictEqual((yield* CudaStream.current()).id, stream.id)
          yield* refuses(CudaStream.withPooledStream(Effect.void, { device: 99 }), "device")
        })
      ))
  })

export const dependencyContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("dependencies", (it) => {
    it.effect("capture the work of streams, events, and other dependencies", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [left, right, next] = yield* Effect.all([CudaStream.make(), CudaStream.make(), CudaStream.make()])
        const event = yield* CudaEvent.make()
        yield* busy.enqueue(left, 20)
        yield* busy.enqueue(right, 40)
        yield* CudaEvent.record(event, right)
        const both = yield* CudaDependency.make([left, event, left])
        assert.strictEqual(both.events.length, 2)
        const again = yield* CudaDependency.make([both, event])
        assert.deepStrictEqual(again.events, both.events)
        yield* busy.enqueue(left, 400)
        yield* CudaDependency.wait(again, next)
        assert.isFalse(yield* CudaStream.query(next))
        assert.isFalse(yield* CudaDependency.query(again))
        yield* CudaStream.synchronize(next)
        assert.isTrue(yield* CudaStream.query(right))
        assert.isTrue(yield* CudaDependency.query(again))
        assert.isFalse(yield* CudaStream.query(left))
      })))

    it.effect("complete on the host once every point is reached, not earlier", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [left, right] = [yield* CudaStream.make(), yield* CudaStream.make()]
        yield* busy.enqueue(left, 10)
        yield* busy.enqueue(right, 60)
        const both = yield* CudaDependency.make([left, right])
        yield* busy.enqueue(left, 300)
        yield* CudaDependency.synchronize(both)
        assert.isTrue(yield* CudaStream.query(right))
        assert.isFalse(yield* CudaStream.query(left))
      })))

    it.effect("race and time out like any other effect", () =>
      leavesNothing(Effect.gen(function*() {
        const busy = yield* Busy
        const [slow, quick] = [yield* CudaStream.make(), yield* CudaStream.make()]
        yield* busy.enqueue(slow, 200)
        yield* busy.enqueue(quick, 20)
        const [late, early] = [yield* CudaDependency.make([slow]), yield* CudaDependency.make([quick])]
        const winner = yield* Effect.raceFirst(
          Effect.as(CudaDependency.synchronize(late), "slow"),
          Effect.as(CudaDependency.synchronize(early), "quick")
        )
        assert.strictEqual(winner, "quick")
        const [took, timed] = yield* Effect.timed(Effect.exit(Effect.timeout(CudaDependency.synchronize(late), 10)))
        assert.isTrue(Exit.isFailure(timed))
        assert.isBelow(Duration.toMillis(took), 150)
      })))

    it.effect("with no sources are always reached", () =>
      leavesNothing(Effect.gen(function*() {
        const none = yield* CudaDependency.make([])
        assert.isTrue(yield* CudaDependency.query(none))
        yield* CudaDependency.synchronize(none)
        yield* none.pipe(CudaDependency.wait())
      })))

    it.effect("work on the current stream, data first and data last", () =>
      onStream((stream) =>
        Effect.gen(function*() {
          const busy = yield* Busy
          const other = yield* CudaStream.make()
          yield* busy.enqueue(other, 40)
          const dependency = yield* CudaDependency.make([other])
          yield* CudaDependency.wait(dependency)
          assert.isFalse(yield* CudaStream.query(stream))
          yield* CudaStream.synchronize(stream)
          assert.isTrue(yield* CudaStream.query(other))
          yield* busy.enqueue(other, 40)
          const later = yield* CudaDependency.make([other])
          yield* later.pipe(CudaDependency.wait())
          yield* later.pipe(CudaDependency.wait(stream))
          assert.isFalse(yield* CudaStream.query(stream))
        })
      ))

    it.effect("with a released event fail with ResourceReleased", () =>
      Effect.scoped(Effect.gen(function*() {
        const gone = yield* Effect.scoped(CudaEvent.make())
        const stream = yield* CudaStream.make()
        const dependency = yield* CudaDependency.make([gone])
        yield* failsWith(CudaDependency.wait(dependency, stream), "ResourceReleased")
        yield* failsWith(CudaDependency.synchronize(dependency), "ResourceReleased")
        yield* failsWith(CudaDependency.query(dependency), "ResourceReleased")
        const closed = yield* Effect.scoped(CudaStream.make())
        yield* failsWith(CudaDependency.make([closed]), "ResourceReleased")
      })))
  })
