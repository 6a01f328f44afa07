/**
 * Accesses that wait for each other: deadlocks are reported when they happen, and orders that can end in one as soon as both were seen.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaMemory from "effect-cuda/CudaMemory"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { failsWith } from "../support/assertions.ts"
import { onStub, openStub } from "../support/stubDriver.ts"
import { simulated } from "./support.ts"

type Needs = CudaRuntime | CheckedRuntime.Checker | Scope.Scope
type Program<A = unknown> = Effect.Effect<A, CudaError, Needs>

const stub = openStub()

const runtimes = {
  simulated: <A>(program: Program<A>, mode: "collect" | "fail" = "collect") =>
    Effect.scoped(program).pipe(Effect.provide(CheckedRuntime.layer({ mode }).pipe(Layer.provide(simulated)))),
  native: <A>(program: Program<A>, mode: "collect" | "fail" = "collect") =>
    onStub(stub, Effect.provide(Effect.scoped(program), CheckedRuntime.layer({ mode })))
}

const reports = Effect.flatMap(CheckedRuntime.Checker, (checker) => checker.reports)

const tags = Effect.map(reports, (all) => all.map(({ _tag }) => _tag))

const make = Effect.gen(function*() {
  const [one, two] = [yield* CudaStream.make(), yield* CudaStream.make()]
  const allocate = CudaMemory.allocate(64, { ordered: true })
  const [a, b, c] = [yield* allocate, yield* allocate, yield* allocate]
  return { one, two, a, b, c }
})

const writing = (buffer: CudaMemory.Slice, stream: CudaStream.CudaStream) =>
  CudaMemory.access({ writes: [buffer], stream })

/** An access inside another one. */
const nested = (outer: DeviceBuffer, inner: DeviceBuffer, stream: CudaStream.CudaStream, held = Effect.void) =>
  held.pipe(Effect.andThen(Effect.void.pipe(writing(inner, stream))), writing(outer, stream))

/** Two fibers that hold a buffer each, and begin an access of the other's. */
const embrace = Effect.gen(function*() {
  const { a, b, one, two } = yield* make
  const [first, second] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
  const both = (mine: Deferred.Deferred<void>, theirs: Deferred.Deferred<void>) =>
    Effect.andThen(Deferred.succeed(mine, undefined), Deferred.await(theirs))
  const left = nested(a, b, one, both(first, second)).pipe(Effect.withSpan("left"))
  const right = nested(b, a, two, both(second, first)).pipe(Effect.withSpan("right"))
  return { left, right }
})

const settled = Effect.forEach(Array.from({ length: 20 }), () => Effect.yieldNow, { discard: true })

for (const [name, run] of Object.entries(runtimes)) {
  describe(`on a ${name} runtime`, () => {
    it.live("reports a deadlock: who holds what, and waits for what", () =>
      run(Effect.gen(function*() {
        const { left, right } = yield* embrace
        const fibers = [yield* Effect.forkChild(left), yield* Effect.forkChild(right)]
        yield* settled
        const [report] = yield* reports
        assert(report?._tag === "Deadlock", report?.message)
        assert.lengthOf(report.waits, 2)
        const [waiting, other] = report.waits
        assert.match(waiting!.waiting.access.frame ?? "", /^(left|right)/)
        assert.strictEqual(waiting!.blocker.fiber, other!.waiting.fiber)
        assert.strictEqual(other!.blocker.fiber, waiting!.waiting.fiber)
        assert.match(
          report.message,
          /^Deadlock of 2 fibers:\n {2}1\. fiber \d+ waits to begin an access that writes bytes 0 to 63 of/
        )
        yield* Fiber.interruptAll(fibers)
        assert.lengthOf(yield* reports, 1)
      })))

    it.live("fails the access that completes a deadlock, and the others go on", () =>
      run(
        Effect.gen(function*() {
          const { left, right } = yield* embrace
          const exits = yield* Effect.all([Effect.exit(left), failsWith(right, "NeverFinishes")], { concurrency: 2 })
          assert.strictEqual(exits[0]._tag, "Success")
          assert.match(exits[1].because, /Deadlock of 2 fibers/)
        }),
        "fail"
      ))

    it.live("reports inverted orders of fibers that never met", () =>
      run(Effect.gen(function*() {
        const { a, b, one, two } = yield* make
        yield* Fiber.join(yield* Effect.forkChild(nested(a, b, one).pipe(Effect.withSpan("left"))))
        assert.deepStrictEqual(yield* tags, [])
        yield* Fiber.join(yield* Effect.forkChild(nested(b, a, two).pipe(Effect.withSpan("right"))))
        const [report] = yield* reports
        assert(report?._tag === "InvertedOrder", report?.message)
        assert.lengthOf(report.orders, 2)
        assert.match(report.message, /left[^]*right|right[^]*left/)
        // Once is enough.
        yield* Fiber.join(yield* Effect.forkChild(nested(a, b, one)))
        yield* Fiber.join(yield* Effect.forkChild(nested(b, a, two)))
        assert.lengthOf(yield* reports, 1)
      })))

    it.live("reports inverted orders of three fibers", () =>
      run(Effect.gen(function*() {
        const { a, b, c, one, two } = yield* make
        const three = yield* CudaStream.make()
        yield* Fiber.join(yield* Effect.forkChild(nested(a, b, one)))
        yield* Fiber.join(yield* Effect.forkChild(nested(b, c, two)))
        assert.deepStrictEqual(yield* tags, [])
        yield* Fiber.join(yield* Effect.forkChild(nested(c, a, three)))
        assert.deepStrictEqual(yield* tags, ["InvertedOrder"])
      })))

    it.live("reports no inverted orders that cannot meet", () =>
      run(Effect.gen(function*() {
        const { a, b, c, one, two } = yield* make
        // Of one fiber.
        yield* nested(a, b, one)
        yield* nested(b, a, two)
        // On one stream.
        yield* Fiber.join(yield* Effect.forkChild(nested(b, c, one)))
        yield* Fiber.join(yield* Effect.forkChild(nested(c, b, one)))
        // Of other bytes.
        const half = (buffer: DeviceBuffer, at: number) => CudaMemory.slice(buffer, at, 32)
        const part = Effect.void.pipe(writing(half(c, 0), one), writing(half(a, 0), one))
        const rest = Effect.void.pipe(writing(half(a, 32), two), writing(half(c, 32), two))
        yield* Fiber.join(yield* Effect.forkChild(part))
        yield* Fiber.join(yield* Effect.forkChild(rest))
        // That only read.
        const reading = (buffer: DeviceBuffer, stream: CudaStream.CudaStream) =>
          CudaMemory.access({ reads: [buffer], stream })
        const [x, y, gate] = [yield* ordered, yield* ordered, yield* ordered]
        yield* Fiber.join(yield* Effect.forkChild(Effect.void.pipe(reading(x, one), reading(y, one))))
        yield* Fiber.join(yield* Effect.forkChild(Effect.void.pipe(reading(y, two), reading(x, two))))
        // Behind one gate.
        yield* Fiber.join(yield* Effect.forkChild(nested(x, y, one).pipe(writing(gate, one))))
        yield* Fiber.join(yield* Effect.forkChild(nested(y, x, two).pipe(writing(gate, two))))
        assert.deepStrictEqual(yield* reports, [])
      })))

    it.live("reports nothing for accesses that wait and go on", () =>
      run(Effect.gen(function*() {
        const { a, b, one, two } = yield* make
        const busy = Effect.andThen(settled, nested(a, b, one))
        yield* Effect.all(Array.from({ length: 8 }, (_, index) => index % 2 === 0 ? busy : nested(a, b, two)), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(yield* reports, [])
      })))
  })
}

const ordered = CudaMemory.allocate(64, { ordered: true })
