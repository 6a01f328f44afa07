/**
 * Runs a program on a fresh runtime, in a time of its own, and notices if it hangs.
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import { CudaRuntime } from "../CudaRuntime.ts"
import type { CudaRuntimeService } from "../CudaRuntime.ts"
import type { RunTime } from "./VirtualTime.ts"

/** What all runs of an exploration have in common. */
export interface Fresh<A, E, R, ROut, ELayer, RIn> {
  readonly program: Effect.Effect<A, E, R>
  readonly runtime: Layer.Layer<CudaRuntime | ROut, ELayer, RIn>
  readonly deadline: Duration.Duration
}

/** What a program still needs on a runtime, with a scope of its own. */
export type Provided<R, ROut> = Exclude<Exclude<R, Scope.Scope>, CudaRuntime | ROut>

/** What did not end in time. */
export type Phase = "program" | "interruption" | "runtime"

/** What is done around a program. */
export interface Around<A, E> {
  /** Makes the runtime that the program gets, before it starts. */
  readonly before: (runtime: CudaRuntimeService) => Effect.Effect<CudaRuntimeService>
  /** Called when the program has started. */
  readonly started: (interrupt: () => void) => void
  /** Called when the program has ended, while its runtime lives. */
  readonly after: (runtime: CudaRuntimeService, exit: Exit.Exit<A, E> | undefined) => Effect.Effect<void>
}

/** How a program ended. */
export interface Ended<A, E> {
  /** Undefined if it did not end. */
  readonly exit: Exit.Exit<A, E> | undefined
  readonly hung: ReadonlyArray<Phase>
  readonly log: ReadonlyArray<string>
}

/** Runs a program once. Fails if there is no runtime. */
export const runFresh = <A, E, R, ROut, ELayer, RIn>(
  { deadline, program, runtime: layer }: Fresh<A, E, R, ROut, ELayer, RIn>,
  time: RunTime,
  around: Around<A, E>
): Effect.Effect<Ended<A, E>, ELayer, RIn | Provided<R, ROut>> =>
  Effect.uninterruptible(Effect.gen(function*() {
    const log: Array<string> = []
    const hung: Array<Phase> = []
    const fork = forkIn(time, log)

    /** Waits for a fiber. If it does not end in time, its phase has hung. */
    const ended = Effect.fnUntraced(function*<A, E>(fiber: Fiber.Fiber<A, E>, phase: Phase) {
      yield* time.drive(() => fiber.pollUnsafe() !== undefined, deadline)
      const exit = fiber.pollUnsafe()
      if (exit === undefined) hung.push(phase)
      return exit
    })

    const scope = yield* Scope.make()
    const close = Effect.flatMap(fork(Scope.close(scope, Exit.void)), (fiber) => ended(fiber, "runtime"))
    const build = Layer.buildWithMemoMap(layer, Layer.makeMemoMapUnsafe(), scope)
    const built = yield* ended(yield* fork(build), "runtime")
    if (built === undefined) return { exit: undefined, hung, log }
    if (Exit.isFailure(built)) return yield* Effect.andThen(close, Effect.failCause(built.cause))

    const runtime = Context.get(built.value, CudaRuntime)
    const services = Context.add(built.value, CudaRuntime, yield* around.before(runtime))
    const fiber = yield* fork(Effect.provideContext(Effect.scoped(program), services))
    around.started(() => fiber.interruptUnsafe())
    const exit = (yield* ended(fiber, "program")) ?? (yield* ended(interrupted(fiber), "interruption"))
    yield* around.after(runtime, exit)
    yield* close
    return { exit, hung, log }
  }))

const interrupted = <A, E>(fiber: Fiber.Fiber<A, E>): Fiber.Fiber<A, E> => {
  fiber.interruptUnsafe()
  return fiber
}

/** Starts fibers in the time of a run. Its log is kept instead of printed. */
const forkIn = (time: RunTime, log: Array<string>) => {
  const logger = Logger.make(({ logLevel, message }) => {
    log.push(`${logLevel} ${[message].flat().map(String).join(" ")}`)
  })
  const context = Context.add(time.context, Logger.CurrentLoggers, new Set([logger]))
  return <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Fiber.Fiber<A, E>, never, R> =>
    // A run does not share the layers of its surroundings, nor those of other runs.
    effect.pipe(
      Effect.provideService(Layer.CurrentMemoMap, Layer.makeMemoMapUnsafe()),
      Effect.provideContext(context),
      Effect.forkDetach
    )
}
