/**
 * How long allocations and releases block the event loop while the GPU works: the longest time between two turns of the
 * loop while buffers of 256 MiB, pinned and on the device, are allocated and released during kernels of a second.
 *
 * Phases of one buffer each on a new runtime (the first allocation, its release, and the next allocation, which the
 * pools serve), then of 20 buffers of each kind in turn on warm pools, each used by a copy of 4 KiB on an otherwise
 * idle stream. A release is observed for another 50 ms, because it continues after its call. "Given back" is the
 * release of pinned memory to the system, by a runtime that keeps none: it waits until the GPU is idle. The results
 * include the tight chain of immediates that measures, and the turn in which the program itself runs; the first row is
 * this baseline.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { CudaError } from "../../src/CudaError.ts"
import * as CudaMemory from "../../src/CudaMemory.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import { CudaRuntime } from "../../src/layers/CudaRuntime.ts"
import * as NativeRuntime from "../../src/layers/NativeRuntime.ts"
import type { Driver } from "../support/driver.ts"
import { longestTurn, pause } from "../support/loop.ts"
import { printTable } from "../support/report.ts"
import { makeFigure } from "../support/results.ts"
import { runOnGpu } from "../support/run.ts"
import { fixed, median } from "../support/statistics.ts"

const size = 256 * 1024 * 1024
const repeats = 3
const comings = 20
const workMillis = 1000

/** The measurements of each phase: the longest turn and the duration, in milliseconds. */
type Results = Map<string, Array<{ readonly longest: number; readonly elapsed: number }>>

interface Bench {
  readonly driver: Driver
  readonly results: Results
  /** The stream of the kernels. */
  readonly busy: CudaStream.CudaStream
  /** The stream of the copies. */
  readonly copying: CudaStream.CudaStream
}

/** Measures a phase while the GPU works. */
const phase = <A, E, R>({ busy, driver, results }: Bench, name: string, effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    if (yield* CudaStream.query(busy)) driver.spin(busy.handle, workMillis)
    const { elapsed, longest, result } = yield* longestTurn(effect)
    const kept = results.get(name)
    if (kept === undefined) results.set(name, [{ longest, elapsed }])
    else kept.push({ longest, elapsed })
    return result
  })

/** A buffer, with the scope that releases it. */
const scoped = <A>(make: Effect.Effect<A, CudaError, CudaRuntime | Scope.Scope>) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const made = yield* Scope.provide(make, scope)
    return { made, release: Effect.andThen(Scope.close(scope, Exit.void), pause(50)) }
  })

const kinds = [["pinned", CudaMemory.allocateHost(size)], ["device", CudaMemory.allocate(size)]] as const

/** The phases of one buffer of each kind. */
const phases = (bench: Bench) =>
  Effect.gen(function*() {
    yield* phase(bench, "nothing, for 200 ms", pause(200))
    for (const [kind, make] of kinds) {
      const first = yield* phase(bench, `${kind}, first allocation`, scoped<unknown>(make))
      yield* phase(bench, `${kind}, release`, first.release)
      const next = yield* phase(bench, `${kind}, reuse`, scoped<unknown>(make))
      yield* phase(bench, `${kind}, release after reuse`, next.release)
    }
    yield* phase(bench, `both, ${comings} times on warm pools`, comeAndGo(bench))
  })

const comeAndGo = ({ copying }: Bench) =>
  Effect.gen(function*() {
    for (let index = 0; index < comings; index++) {
      yield* Effect.scoped(Effect.gen(function*() {
        const host = yield* CudaMemory.allocateHost(size)
        const device = yield* CudaMemory.allocate(size)
        yield* CudaMemory.copy(CudaMemory.slice(device, 0, 4096), CudaMemory.slice(host, 0, 4096), copying)
      }))
      // The pools get the memory back when the copy has finished.
      yield* CudaStream.synchronize(copying)
      yield* pause(1)
    }
  })

/** Runs phases on a new runtime, whose end is a phase too. */
const onFreshRuntime = (
  driver: Driver,
  results: Results,
  options: NativeRuntime.NativeOptions,
  body: (bench: Bench) => Effect.Effect<void, CudaError, CudaRuntime>,
  end: string
) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const runtime = yield* Scope.provide(NativeRuntime.make(options), scope)
    const streams = Effect.all([CudaStream.make(), CudaStream.make()]).pipe(
      Effect.provideService(CudaRuntime, runtime),
      Scope.provide(scope)
    )
    const [busy, copying] = yield* streams
    yield* Effect.provideService(body({ driver, results, busy, copying }), CudaRuntime, runtime)
    yield* CudaStream.synchronize(busy)
    const { elapsed, longest } = yield* longestTurn(Scope.close(scope, Exit.void))
    results.set(end, [...results.get(end) ?? [], { elapsed, longest }])
  })

/** Pinned memory that is returned to the system once the kernels have ended. */
const giveBack = (bench: Bench) =>
  Effect.gen(function*() {
    const { release } = yield* scoped<unknown>(CudaMemory.allocateHost(size))
    yield* phase(
      bench,
      "pinned, given back",
      Effect.andThen(release, Effect.andThen(CudaStream.synchronize(bench.busy), pause(1000)))
    )
  })

await runOnGpu("waiting/eventLoop", ({ driver }) =>
  Effect.gen(function*() {
    const results: Results = new Map()
    for (let repeat = 0; repeat < repeats; repeat++) {
      yield* onFreshRuntime(driver, results, {}, phases, "the runtime's end, warm pools")
    }
    yield* onFreshRuntime(driver, results, { pinned: { keepBytes: 0 } }, giveBack, "the runtime's end, nothing kept")
    printTable(
      "Longest turn of the event loop while 256 MiB buffers come and go beside kernels of 1 s, ms",
      ["phase", "p50", "max", "the phase took: p50"],
      [...results].map(([name, values]) => [
        name,
        fixed(median(values.map(({ longest }) => longest)), 2),
        fixed(Math.max(...values.map(({ longest }) => longest)), 2),
        fixed(median(values.map(({ elapsed }) => elapsed)))
      ])
    )
    const group = "Longest turn of the event loop while 256 MiB buffers come and go"
    return [...results].map(([name, values]) =>
      makeFigure({ group, name, unit: "ms" }, values.map(({ longest }) => longest))
    )
  }))
