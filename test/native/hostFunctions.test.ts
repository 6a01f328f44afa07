/**
 * Host functions on the driver: an event behind the enqueued work, and a fiber that starts when it is reached.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaMemory from "effect-cuda/CudaMemory"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { failsWith } from "../support/assertions.ts"
import { logged, openStub, pause, until } from "../support/stubDriver.ts"
import { tracing, within } from "../support/tracing.ts"
import { begin, failureOf, isPending, succeeds } from "../support/waits.ts"

const stub = openStub()
const { callsOf, opened } = tracing(stub)

const live = Effect.flatMap(CudaRuntime, ({ liveResources }) => liveResources)

/** A stream with pending work. */
const busyStream = Effect.tap(CudaStream.make(), (stream) => Effect.sync(() => stub.work(stream)))

/** An effect that records its start, and ends on demand. */
const noting = () => {
  const state = { began: 0, ended: 0, interrupted: 0, mayEnd: false }
  const effect = Effect.gen(function*() {
    state.began++
    while (!state.mayEnd) yield* pause(1)
    state.ended++
  }).pipe(Effect.onInterrupt(() => Effect.sync(() => void state.interrupted++)))
  return { state, effect }
}

describe("a host function", () => {
  it.live("is an event behind the enqueued work, released when the effect is done", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const { lines, result } = yield* callsOf(
          Effect.flatMap(CudaStream.launchHostFunction(stream, Effect.succeed(42)), Fiber.join)
        )
        const event = Number(lines[1]![1])
        assert.strictEqual(result, 42)
        assert.deepStrictEqual(lines.slice(0, 5), [
          ...within(context, ["cuEventCreate", event, 2]),
          ["cuEventRecord", event, stream.handle],
          ["cuEventQuery", event]
        ])
        assert.strictEqual((yield* live).events, 0)
      })
    ))

  it.live("starts after the work enqueued before it, not earlier", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* busyStream
        stub.work(stream)
        const seen: Array<string> = []
        const fiber = yield* CudaStream.launchHostFunction(stream, Effect.sync(() => seen.push("ran")))
        yield* pause(5)
        assert.deepStrictEqual(seen, [])
        stub.finish(stream, 1)
        yield* pause(5)
        assert.deepStrictEqual(seen, [])
        stub.finish(stream)
        yield* succeeds(fiber)
        assert.deepStrictEqual(seen, ["ran"])
      })
    ))

  it.live("does not wait for later work, which does not wait for it", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* busyStream
        const { effect, state } = noting()
        const fiber = yield* CudaStream.launchHostFunction(stream, effect)
        stub.work(stream)
        stub.finish(stream, 1)
        yield* until("it begins beside the later work", () => state.began === 1)
        assert.isFalse(yield* CudaStream.query(stream))
        stub.finish(stream)
        assert.isTrue(yield* CudaStream.query(stream))
        assert.isTrue(isPending(fiber))
        state.mayEnd = true
        yield* succeeds(fiber)
      })
    ))

  it.live("may enqueue work on its stream, and wait for it", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* busyStream
        const host = yield* CudaMemory.allocateHost(64)
        const device = yield* CudaMemory.allocate(64)
        const effect = Effect.gen(function*() {
          yield* CudaMemory.fill(device, 5, stream)
          yield* CudaMemory.copy(host, device, stream)
          stub.work(stream)
          const finishing = yield* Effect.forkChild(Effect.andThen(pause(2), Effect.sync(() => stub.finish(stream))))
          yield* CudaStream.synchronize(stream)
          yield* Fiber.join(finishing)
          return host.bytes[63]
        })
        const fiber = yield* CudaStream.launchHostFunction(stream, effect)
        stub.finish(stream)
        assert.strictEqual(yield* Fiber.join(fiber), 5)
      })
    ))

  it.live("on a default stream is recorded in its context", () =>
    opened(({ context }) =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.defaultStream()
        const { calls } = yield* callsOf(Effect.flatMap(CudaStream.launchHostFunction(stream, Effect.void), Fiber.join))
        const record = calls.find(({ name }) => name === "cuEventRecord")!
        assert.deepStrictEqual([record.args[1], record.context], [1, context])
      })
    ))

  it.live("on a released stream fails, and leaves nothing behind", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* Effect.scoped(CudaStream.make())
        const { state, effect } = noting()
        const before = yield* live
        const reason = yield* failsWith(CudaStream.launchHostFunction(stream, effect), "ResourceReleased")
        assert.match(reason.resource, /stream \d+/)
        assert.deepStrictEqual([state.began, yield* live], [0, before])
      })
    ))

  it.live("on a faulting device does not run, and its fiber fails with the reason", () =>
    logged(opened(() =>
      Effect.gen(function*() {
        const stream = yield* busyStream
        const { effect, state } = noting()
        const fiber = yield* CudaStream.launchHostFunction(stream, effect)
        assert.isTrue(isPending(fiber))
        stub.fault = 700
        const error = yield* failureOf(fiber)
        assert.strictEqual(error.operation, "CudaStream.launchHostFunction")
        assert.strictEqual(error.reason._tag, "IllegalAddress")
        assert.strictEqual(state.began, 0)
        assert.strictEqual((yield* live).events, 0)
        stub.finishAll()
      })
    )))

  it.live("is released even by a runtime with slow releases", () =>
    opened(() =>
      Effect.gen(function*() {
        const runtime = yield* CudaRuntime
        const slow = CudaRuntime.of({
          ...runtime,
          eventDestroy: (event) => Effect.andThen(pause(1), runtime.eventDestroy(event))
        })
        const program = Effect.gen(function*() {
          const stream = yield* busyStream
          const fiber = yield* CudaStream.launchHostFunction(stream, Effect.succeed(42))
          stub.finish(stream)
          assert.strictEqual(yield* Fiber.join(fiber), 42)
          const next = yield* CudaStream.launchHostFunction(stream, Effect.succeed(43))
          assert.strictEqual(yield* Fiber.join(next), 43)
        })
        yield* Effect.provideService(program, CudaRuntime, slow)
        yield* pause(5)
        assert.strictEqual((yield* live).events, 0)
      })
    ))

  it.live("behind one whose wait failed still runs", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* busyStream
        stub.fail("cuEventQuery", 999)
        const first = yield* CudaStream.launchHostFunction(stream, Effect.void)
        const second = yield* CudaStream.launchHostFunction(stream, Effect.succeed("ran"))
        assert.strictEqual((yield* failureOf(first)).reason._tag, "Unknown")
        stub.finish(stream)
        assert.strictEqual(yield* Fiber.join(second), "ran")
      })
    ))
})

describe("the scope of a host function", () => {
  it.live("that succeeds waits for it before releasing earlier resources", () =>
    opened(() =>
      Effect.gen(function*() {
        const { effect, state } = noting()
        const closing = yield* begin(Effect.scoped(Effect.gen(function*() {
          const stream = yield* busyStream
          yield* CudaStream.launchHostFunction(stream, effect)
        })))
        assert.isTrue(isPending(closing))
        stub.finishAll()
        yield* until("it begins", () => state.began === 1)
        yield* pause(5)
        assert.isTrue(isPending(closing))
        assert.lengthOf(stub.calls("cuStreamDestroy_v2"), 0)
        state.mayEnd = true
        yield* succeeds(closing)
        assert.deepStrictEqual([state.ended, state.interrupted], [1, 0])
      })
    ))

  const exits: ReadonlyArray<readonly [string, Exit.Exit<never, string>]> = [
    ["fails", Exit.fail("no")],
    ["is interrupted", Exit.interrupt(1)],
    ["dies", Exit.die("no")]
  ]
  for (const [what, exit] of exits) {
    it.live(`that ${what} interrupts it while it runs`, () =>
      opened(() =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const scope = yield* Scope.make()
          const { effect, state } = noting()
          const fiber = yield* Scope.provide(CudaStream.launchHostFunction(stream, effect), scope)
          yield* until("it begins", () => state.began === 1)
          yield* Scope.close(scope, exit)
          assert.deepStrictEqual([state.ended, state.interrupted], [0, 1])
          assert.isTrue(Cause.hasInterrupts(yield* Effect.flip(Effect.sandbox(Fiber.join(fiber)))))
          assert.strictEqual((yield* live).events, 0)
        })
      ))

    it.live(`that ${what} interrupts it before it starts, and later ones on the stream still run`, () =>
      opened(() =>
        Effect.gen(function*() {
          const stream = yield* busyStream
          const scope = yield* Scope.make()
          const { effect, state } = noting()
          yield* Scope.provide(CudaStream.launchHostFunction(stream, effect), scope)
          const next = yield* CudaStream.launchHostFunction(stream, Effect.succeed("ran"))
          yield* Scope.close(scope, exit)
          assert.deepStrictEqual([state.began, state.interrupted], [0, 0])
          assert.deepInclude(yield* live, { events: 1, waits: 1 })
          stub.finish(stream)
          assert.strictEqual(yield* Fiber.join(next), "ran")
        })
      ))
  }

  it.live("holds nothing once it is done", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const before = yield* live
        const scope = yield* Scope.make()
        let ran = 0
        for (let round = 0; round < 1000; round++) {
          const launched = CudaStream.launchHostFunction(stream, Effect.sync(() => ran++))
          yield* Effect.flatMap(Scope.provide(launched, scope), Fiber.join)
        }
        assert.strictEqual(ran, 1000)
        assert.deepStrictEqual(yield* live, before)
        assert.isAtMost(stub.live.events, 1)
        assert.strictEqual(finalizersOf(scope), 0)
        yield* Scope.close(scope, Exit.void)
      })
    ))

  it.live("holds nothing of a thousand that waited at once", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* busyStream
        const before = yield* live
        const scope = yield* Scope.make()
        const ran: Array<number> = []
        const fibers = yield* Effect.forEach(
          Array.from({ length: 1000 }, (_, index) => index),
          (index) =>
            Scope.provide(CudaStream.launchHostFunction(stream, Effect.sync(() => void ran.push(index))), scope)
        )
        assert.deepStrictEqual([finalizersOf(scope), (yield* live).waits], [1000, 1000])
        stub.finish(stream)
        yield* Effect.forEach(fibers, Fiber.join, { discard: true })
        assert.deepStrictEqual(ran, Array.from({ length: 1000 }, (_, index) => index))
        assert.deepStrictEqual(yield* live, before)
        assert.strictEqual(finalizersOf(scope), 0)
        yield* Scope.close(scope, Exit.void)
      })
    ))

  it.live("that is already closed makes it fail without running", () =>
    opened(() =>
      Effect.gen(function*() {
        const stream = yield* busyStream
        const scope = yield* Scope.make()
        yield* Scope.close(scope, Exit.void)
        const { effect, state } = noting()
        const exit = yield* Effect.exit(Scope.provide(CudaStream.launchHostFunction(stream, effect), scope))
        assert.isTrue(Exit.isFailure(exit))
        stub.finish(stream)
        yield* pause(5)
        assert.deepStrictEqual([state.began, (yield* live).events], [0, 0])
      })
    ))
})

const finalizersOf = ({ state }: Scope.Scope): number => state._tag === "Open" ? state.finalizers?.size ?? 0 : 0
