/**
 * Fibers that wait on the stub driver: starting them, ending them, and their metrics.
 */
import { assert } from "@effect/vitest"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaMetrics from "effect-cuda/CudaMetrics"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import { settled } from "./fibers.ts"
import { pause, until } from "./stubDriver.ts"
import type { StubDriver } from "./stubDriver.ts"

/** Forks an effect and runs the event loop until it waits or is done. */
export const begin = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Fiber.Fiber<A, E>, never, R> =>
  Effect.tap(Effect.forkChild(effect), () => Effect.andThen(settled, pause(2)))

export const isPending = <A, E>(fiber: Fiber.Fiber<A, E>): boolean => fiber.pollUnsafe() === undefined

/** The exit of a fiber, which must come within two seconds. */
export const ended = <A, E>(fiber: Fiber.Fiber<A, E>): Effect.Effect<Exit.Exit<A, E>> =>
  Effect.andThen(until("the fiber ends", () => !isPending(fiber)), Fiber.await(fiber))

/** Asserts that a fiber succeeds within two seconds. */
export const succeeds = <A, E>(fiber: Fiber.Fiber<A, E>): Effect.Effect<void> =>
  Effect.map(ended(fiber), (exit) => assert.isTrue(Exit.isSuccess(exit), String(exit)))

/** The failure of a fiber, which must fail within two seconds. */
export const failureOf = <A>(fiber: Fiber.Fiber<A, CudaError>): Effect.Effect<CudaError> =>
  Effect.andThen(ended(fiber), Effect.flip(Effect.andThen(Fiber.join(fiber), Effect.die("expected a failure"))))

/** How many event queries a stub received since its log was cleared. */
export const questions = (stub: StubDriver): number =>
  stub.calls("cuEventQuery").reduce((sum, { times }) => sum + times, 0)

/** A native runtime on a stub, released by the test. */
export const openRuntime = (stub: StubDriver, options: NativeRuntime.NativeOptions = {}) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const runtime = yield* Scope.provide(NativeRuntime.make({ libraryPath: stub.path, ...options }), scope)
    return {
      runtime,
      close: Scope.close(scope, Exit.void),
      use: <A, E>(effect: Effect.Effect<A, E, CudaRuntime | Scope.Scope>) =>
        Effect.provideService(Scope.provide(effect, scope), CudaRuntime, runtime)
    }
  })

/** Runs an effect with its own metrics. */
export const counted = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.suspend(() => Effect.provideService(effect, Metric.MetricRegistry, new Map()))

const countOf = (stage: keyof typeof CudaMetrics.waitTimes): Effect.Effect<number> =>
  Effect.map(Metric.value(CudaMetrics.waitTimes[stage]), ({ count }) => count)

/** The current wait metrics: `outstanding`, `wakeUps`, and the number of waits by stage. */
export const figures = Effect.all({
  outstanding: Effect.map(Metric.value(CudaMetrics.outstandingWaits), ({ value }) => value),
  wakeUps: Effect.map(Metric.value(CudaMetrics.wakeUps), ({ count }) => count),
  poll: countOf("poll"),
  wake: countOf("wake"),
  timer: countOf("timer"),
  clock: countOf("clock"),
  interrupted: countOf("interrupted")
})

/** The figures when nothing has waited. */
export const noFigures = { outstanding: 0, wakeUps: 0, poll: 0, wake: 0, timer: 0, clock: 0, interrupted: 0 }
