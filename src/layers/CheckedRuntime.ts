/**
 * A layer around any runtime that finds races: uses of the same memory on different streams, or by the host, without an order between
 * them; and deadlocks of accesses.
 *
 * It watches every operation with vector clocks, and decides from the order that the program expresses, not from what happened to run
 * first. A race is therefore found on the first run, on a simulated device as well as on a GPU. It costs nothing where it is not provided.
 * Depends on the runtime's interface and on its shared foundation.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { CudaError } from "../CudaError.ts"
import { IgnoreList } from "./checked/ignore.ts"
import type { AccessMatch, Ignore, IgnoreCount, IgnoreRule, TextMatch } from "./checked/ignore.ts"
import type {
  AccessKind,
  AccessOfFiber,
  CheckedAccess,
  CheckedBytes,
  Deadlock,
  InvertedOrder,
  Leftover,
  MisusedEvent,
  Race,
  Report,
  UsedAfterRelease
} from "./checked/reports.ts"
import { unchecked as uncheckedRegion, Watcher } from "./checked/Watcher.ts"
import { wrap } from "./checked/wrap.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import type { CudaRuntimeService } from "./CudaRuntime.ts"

export type {
  /**
   * How an operation uses bytes.
   *
   * @category models
   * @since 0.1.0
   */
  AccessKind,
  /**
   * What one of the accesses of a report must match, or as a pair, what its two accesses must match.
   *
   * @category models
   * @since 0.1.0
   */
  AccessMatch,
  /**
   * An access that a fiber has begun, or waits to begin.
   *
   * @category models
   * @since 0.1.0
   */
  AccessOfFiber,
  /**
   * A use of memory by an operation.
   *
   * @category models
   * @since 0.1.0
   */
  CheckedAccess,
  /**
   * Bytes of a buffer.
   *
   * @category models
   * @since 0.1.0
   */
  CheckedBytes,
  /**
   * Fibers that wait for each other's accesses to end.
   *
   * @category models
   * @since 0.1.0
   */
  Deadlock,
  /**
   * Reports to ignore: a rule, or a function that returns true for them.
   *
   * @category models
   * @since 0.1.0
   */
  Ignore,
  /**
   * A rule or function, and how many reports it has ignored.
   *
   * @category models
   * @since 0.1.0
   */
  IgnoreCount,
  /**
   * Reports to ignore: those that match everything that the rule names.
   *
   * @category models
   * @since 0.1.0
   */
  IgnoreRule,
  /**
   * Accesses that fibers begin inside each other in orders that can end in a deadlock.
   *
   * @category models
   * @since 0.1.0
   */
  InvertedOrder,
  /**
   * A resource that is left when the runtime ends.
   *
   * @category models
   * @since 0.1.0
   */
  Leftover,
  /**
   * A wait for an event that orders nothing the program meant.
   *
   * @category models
   * @since 0.1.0
   */
  MisusedEvent,
  /**
   * Two uses of the same bytes, of which one writes, without an order between them.
   *
   * @category models
   * @since 0.1.0
   */
  Race,
  /**
   * A report of a checker.
   *
   * @category models
   * @since 0.1.0
   */
  Report,
  /**
   * What a text of a report must be: the text, or a pattern in it.
   *
   * @category models
   * @since 0.1.0
   */
  TextMatch,
  /**
   * Use of memory that its owner has released, through another buffer over it.
   *
   * @category models
   * @since 0.1.0
   */
  UsedAfterRelease
}

/**
 * Options for checking.
 *
 * @category models
 * @since 0.1.0
 */
export interface CheckOptions {
  /**
   * What happens besides collecting reports. `"fail"`: an operation that races fails with `RaceDetected`, and enqueues nothing; an
   * operation that sees a write by the host fails after it has run; an access that completes a deadlock fails with `NeverFinishes`; other
   * reports are logged. `"log"`: reports are logged as warnings. `"collect"`: nothing. Default: `"log"`.
   */
  readonly mode?: "fail" | "log" | "collect" | undefined
  /** Reports to ignore: rules with their reasons, functions that return true for them, or both. */
  readonly ignore?: Ignore | ReadonlyArray<Ignore> | undefined
  /** Called with every report, also with those made when the runtime ends. */
  readonly onReport?: ((report: Report) => void) | undefined
  /**
   * Whether reports name the line of each call. That takes microseconds per operation. Otherwise they name the innermost span or named
   * function. Default: false.
   */
  readonly stacks?: boolean | undefined
  /** Whether to report misused events. Default: true. */
  readonly events?: boolean | undefined
  /** Whether to report accesses that fibers begin inside each other in inverted orders, which can end in a deadlock. Default: true. */
  readonly accessOrder?: boolean | undefined
  /** Whether to report that the host takes bytes that work may still write. Default: true. */
  readonly hostAccess?: boolean | undefined
  /**
   * Whether to report that the host writes to pinned or managed memory that work may still read, and to arrays that `CudaMemory.upload` and
   * `download` copy. Their bytes are copied when work is enqueued and compared when the host has waited for it, which takes about 0.2 ms per
   * MiB. Of more than 1 MiB, or another size given as `wholeUpTo`, samples are compared: 64 of 4 KiB. Default: false.
   */
  readonly hostWrites?: boolean | { readonly wholeUpTo: number } | undefined
}

/**
 * What was seen so far.
 *
 * @category models
 * @since 0.1.0
 */
export interface CheckSummary {
  /** The number of reports, including those that were not kept: the first 1000 are. */
  readonly reports: number
  /** The rules and functions of `ignore`, and those added with `Checker.ignore`, with the number of reports that each has ignored. */
  readonly ignored: ReadonlyArray<IgnoreCount>
  /** Those that have ignored nothing so far. At the end, they are out of date or wrong. */
  readonly unused: ReadonlyArray<Ignore>
  /** The number of uses of memory that were checked. */
  readonly accesses: number
  /** What could not be known, and counted as ordered. */
  readonly unknown: {
    /** Raw addresses among arguments. */
    readonly rawAddresses: number
    /** Waits for events that other code may have recorded. */
    readonly foreignEvents: number
    /** Times when the host took bytes of which work may still write some. */
    readonly hostLooks: number
    /** Graphs of more than 10,000 nodes. */
    readonly largeGraphs: number
    /**
     * With `hostWrites`, reads of host memory that were not looked at: of bytes that other work may still write, or whose address the
     * program has read, or beyond 256 MiB of copies at a time.
     */
    readonly hostReads: number
  }
}

/**
 * Reads the reports of a checked runtime.
 *
 * @category models
 * @since 0.1.0
 */
export interface CheckerService {
  /** The reports so far, in order. */
  readonly reports: Effect.Effect<ReadonlyArray<Report>>
  /** What was seen so far. */
  readonly summary: Effect.Effect<CheckSummary>
  /** Drops the reports so far. */
  readonly clear: Effect.Effect<void>
  /** Ignores more until the scope closes, for example races on a buffer that the program has just made. */
  readonly ignore: (ignore: Ignore) => Effect.Effect<void, never, Scope.Scope>
  /** Fails with `RaceDetected` if there is a report of any kind, for the end of tests. */
  readonly expectNone: Effect.Effect<void, CudaError>
}

/**
 * The service that reads the reports of a checked runtime.
 *
 * **Example** (A test that finds a missing wait)
 *
 * ```ts
 * import { CheckedRuntime, CudaMemory, CudaStream, SimulatedRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const test = Effect.gen(function*() {
 *   const copy = yield* CudaStream.make()
 *   const compute = yield* CudaStream.make()
 *   const input = yield* CudaMemory.allocate(1024)
 *   const output = yield* CudaMemory.allocate(1024)
 *   yield* CudaMemory.fill(input, 1, copy)
 *   yield* CudaMemory.copy(output, input, compute) // nothing makes compute wait for copy
 *   const checker = yield* CheckedRuntime.Checker
 *   return yield* checker.reports // one Race, whose fix is CudaStream.waitStream
 * }).pipe(
 *   Effect.scoped,
 *   Effect.provide(CheckedRuntime.layer({ mode: "collect" }).pipe(Layer.provide(SimulatedRuntime.layer())))
 * )
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class Checker extends Context.Service<Checker, CheckerService>()("effect-cuda/layers/CheckedRuntime") {}

/**
 * Leaves the operations of a region unchecked: their uses of memory are not compared with others. The order that they make still counts.
 *
 * **Example** (A race on purpose)
 *
 * ```ts
 * import { CheckedRuntime, CudaMemory } from "effect-cuda"
 *
 * declare const progress: CudaMemory.HostBuffer
 * declare const counter: CudaMemory.DeviceBuffer
 *
 * // Reads a counter while kernels increment it: any value is good.
 * const peek = CheckedRuntime.unchecked(CudaMemory.copy(progress, counter))
 * ```
 *
 * @category regions
 * @since 0.1.0
 */
export const unchecked = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => uncheckedRegion(self)

/**
 * Wraps a runtime so that it is checked. The result has the identity of the inner runtime. Only operations of programs that use the result
 * are seen. When the scope closes, reports the resources that are left.
 *
 * **Example** (A GPU that is checked)
 *
 * ```ts
 * import { CheckedRuntime, NativeRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const checked = Effect.gen(function*() {
 *   const { checker, runtime } = yield* CheckedRuntime.make(yield* NativeRuntime.make(), { mode: "fail" })
 *   return { checker, runtime }
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  runtime: CudaRuntimeService,
  options: CheckOptions = {}
): Effect.Effect<
  { readonly runtime: CudaRuntimeService; readonly checker: CheckerService },
  never,
  Scope.Scope
> => Effect.map(start(runtime, options), ({ checker, runtime }) => ({ checker, runtime }))

const start = (runtime: CudaRuntimeService, options: CheckOptions) =>
  Effect.gen(function*() {
    const ignoring = new IgnoreList(options.ignore)
    const watcher = new Watcher({
      mode: options.mode ?? "log",
      stacks: options.stacks ?? false,
      events: options.events ?? true,
      hostAccess: options.hostAccess ?? true,
      accessOrder: options.accessOrder ?? true,
      hostWrites: wholeUpTo(options.hostWrites),
      ignore: ignoring.ignores,
      onReport: options.onReport
    })
    yield* Effect.addFinalizer(() => reportLeftovers(watcher))
    return { watcher, runtime: wrap(runtime, watcher), checker: checkerOf(watcher, ignoring) }
  })

const wholeUpTo = (hostWrites: CheckOptions["hostWrites"]): number | undefined => {
  if (hostWrites === undefined || hostWrites === false) return undefined
  return hostWrites === true ? 2 ** 20 : hostWrites.wholeUpTo
}

const reportLeftovers = (watcher: Watcher): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { ignore, mode } = watcher.options
    const left = watcher.leftovers.filter((report) => ignore?.(report) !== true)
    for (const report of left) watcher.keep(report)
    return mode === "collect"
      ? Effect.void
      : Effect.forEach(left, ({ message }) => Effect.logWarning(message), { discard: true })
  })

const checkerOf = (watcher: Watcher, ignoring: IgnoreList): CheckerService => ({
  reports: Effect.sync(() => [...watcher.reports]),
  summary: Effect.sync(() => ({
    reports: watcher.reports.length + watcher.dropped,
    ignored: ignoring.counts,
    unused: ignoring.counts.filter(({ ignored }) => ignored === 0).map(({ ignore }) => ignore),
    accesses: watcher.checks.accesses,
    unknown: { ...watcher.unknown }
  })),
  clear: Effect.sync(() => {
    watcher.reports.length = 0
    watcher.dropped = 0
  }),
  ignore: (ignore) =>
    Effect.asVoid(
      Effect.acquireRelease(Effect.sync(() => ignoring.add(ignore)), (remove) => Effect.sync(remove))
    ),
  expectNone: Effect.suspend(() => failWith("CheckedRuntime.expectNone", watcher))
})

/** Fails with all reports, if there are any. */
const failWith = (operation: string, { dropped, reports }: Watcher): Effect.Effect<void, CudaError> => {
  if (reports.length === 0) return Effect.void
  const more = dropped === 0 ? [] : [`and ${dropped} more`]
  const report = [...reports.map(({ message }) => message), ...more].join("\n\n")
  return Effect.fail(
    new CudaError({ operation, reason: { _tag: "RaceDetected", accesses: [], fix: undefined, report } })
  )
}

/**
 * Runs a program with its runtime checked, and fails with `RaceDetected` at its end if there is a report of any kind: with all of them,
 * including what the program has left. For tests.
 *
 * **Details**
 *
 * The program goes on after a race, so that one run finds all. It has a scope of its own, which closes before resources that are left are
 * reported. If the program fails as well, the failure comes first, and the reports come with it.
 *
 * **Gotchas**
 *
 * Only what uses the runtime of the program is checked: provide the layers of the program inside, and the runtime outside.
 *
 * **Example** (A test of a service)
 *
 * ```ts
 * import { CheckedRuntime, CudaMemory, SimulatedRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const buffer = yield* CudaMemory.allocate(1024)
 *   yield* CudaMemory.upload(buffer, new Uint8Array(1024))
 * })
 *
 * const test = CheckedRuntime.check(program).pipe(Effect.provide(SimulatedRuntime.layer()))
 * ```
 *
 * **Example** (`it.checked`, with `@effect/vitest`)
 *
 * ```ts
 * import { it as effectIt } from "@effect/vitest"
 * import { CheckedRuntime, CudaMemory, SimulatedRuntime } from "effect-cuda"
 * import type { CudaRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import type * as Scope from "effect/Scope"
 *
 * type Needs = CudaRuntime.CudaRuntime | CheckedRuntime.Checker | Scope.Scope
 *
 * const checked = <A, E>(name: string, program: () => Effect.Effect<A, E, Needs>) =>
 *   effectIt.live(name, () => CheckedRuntime.check(program()).pipe(Effect.provide(SimulatedRuntime.layer())))
 *
 * const it = Object.assign(effectIt, { checked })
 *
 * it.checked("fills a buffer", () =>
 *   Effect.gen(function*() {
 *     const buffer = yield* CudaMemory.allocate(1024)
 *     yield* CudaMemory.fill(buffer, 1)
 *   }))
 * ```
 *
 * @category testing
 * @since 0.1.0
 */
export const check = <A, E, R>(
  program: Effect.Effect<A, E, R>,
  options: Omit<CheckOptions, "mode"> = {}
): Effect.Effect<A, E | CudaError, CudaRuntime | Exclude<Exclude<R, Scope.Scope>, Checker | CudaRuntime>> =>
  Effect.flatMap(CudaRuntime, (inner) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const { checker, runtime, watcher } = yield* Scope.provide(start(inner, { ...options, mode: "collect" }), scope)
        const services = Context.make(CudaRuntime, runtime).pipe(Context.add(Checker, checker))
        const exit = yield* Effect.exit(restore(Effect.provideContext(Effect.scoped(program), services)))
        // What is left is reported when this scope closes.
        yield* Scope.close(scope, exit)
        return yield* withReports(exit, yield* Effect.exit(failWith("CheckedRuntime.check", watcher)))
      })
    ))

/** How a program ended, and what was found besides. */
const withReports = <A, E>(
  exit: Exit.Exit<A, E>,
  found: Exit.Exit<void, CudaError>
): Exit.Exit<A, E | CudaError> => {
  if (Exit.isSuccess(found)) return exit
  if (Exit.isSuccess(exit)) return Exit.failCause(found.cause)
  return Exit.failCause(Cause.combine<E | CudaError, CudaError>(exit.cause, found.cause))
}

/**
 * Checks the runtime of a layer, and provides `Checker` to read the reports.
 *
 * **Details**
 *
 * Finds, for all memory that operations name as buffers, by address and byte range:
 *
 * - reads and writes of the same bytes without an order between them: copies, fills, launches by the kinds of their parameters, calls of
 *   libraries and other native code by what they are told to read and write, and launches of graphs;
 * - the same inside a graph, when its recording ends;
 * - the host taking bytes of pinned or managed memory, with `bytes` or `CudaMemory.view`, all of which work may still write;
 * - with `hostWrites`, the host writing to pinned or managed memory that work may still read, and to arrays while they are uploaded or
 *   downloaded;
 * - use of memory after its owner released it, through a buffer made with `CudaMemory.fromAddress`, or by its raw address;
 * - fibers that wait for each other's `CudaMemory.access`, and accesses that are begun inside each other in inverted orders;
 * - waits for events that were never recorded, and records that replace one on another stream that nobody waited for;
 * - resources that are left when the runtime ends.
 *
 * Order comes from streams, events, waits, forks and joins, ordered buffers, allocation in stream order, the legacy default stream,
 * launches of one instance of a graph, and from everything that the host waited for or saw finished.
 *
 * **Gotchas**
 *
 * What cannot be known counts as ordered, and `Checker.summary` counts it. Not seen: memory behind raw addresses, what kernels do beyond
 * their declared parameters, and what the host reads through a view that it took earlier. Taking bytes counts as reading them, so take a
 * view after waiting.
 *
 * A kernel parameter of the kind `pointer` counts as written. Declare parameters that are only read with `CudaParameter.input`.
 *
 * **Example** (Tests that fail at a race)
 *
 * ```ts
 * import { CheckedRuntime, SimulatedRuntime } from "effect-cuda"
 * import * as Layer from "effect/Layer"
 *
 * const testRuntime = CheckedRuntime.layer({ mode: "fail" }).pipe(Layer.provide(SimulatedRuntime.layer()))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: CheckOptions = {}): Layer.Layer<CudaRuntime | Checker, never, CudaRuntime> =>
  Layer.effectContext(
    Effect.map(
      Effect.flatMap(CudaRuntime, (runtime) => make(runtime, options)),
      ({ checker, runtime }) => Context.make(CudaRuntime, runtime).pipe(Context.add(Checker, checker))
    )
  )
