/**
 * Dependencies: points in any number of streams as one value, which streams and fibers can wait for.
 *
 * Depends on the `CudaRuntime` interface and on what the modules share.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { CudaError } from "./CudaError.ts"
import { isCudaEvent, query as queryEvent, synchronize as synchronizeEvent } from "./CudaEvent.ts"
import type { CudaEvent } from "./CudaEvent.ts"
import { isCudaStream, recordEvent } from "./CudaStream.ts"
import type { CudaStream } from "./CudaStream.ts"
import { countOf, Handle, named, oneLine } from "./internal/handles.ts"
import { onStream } from "./internal/place.ts"

const TypeId = "~effect-cuda/CudaDependency"

/**
 * A set of points in streams. It is reached when all of them are.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaDependency extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaDependency": "~effect-cuda/CudaDependency"
  /** The events that stand for the points, each once. */
  readonly events: ReadonlyArray<CudaEvent>
}

/**
 * A value that a dependency can be made from.
 *
 * @category models
 * @since 0.1.0
 */
export type Source = CudaEvent | CudaStream | CudaDependency

/**
 * True for dependencies.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaDependency = (u: unknown): u is CudaDependency => Predicate.hasProperty(u, TypeId)

/**
 * Makes one dependency of streams, events and other dependencies. A stream stands for what it holds now: an event is recorded
 * there that lives as long as the scope (`cuEventRecord`).
 *
 * **Gotchas**
 *
 * An event stands for the record that is current when the dependency is waited for, as everywhere in CUDA: do not record it
 * again before.
 *
 * **Example** (What two streams hold, waited for in two ways)
 *
 * ```ts
 * import { CudaDependency, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const [left, right, next] = [yield* CudaStream.make(), yield* CudaStream.make(), yield* CudaStream.make()]
 *   const both = yield* CudaDependency.make([left, right])
 *   yield* CudaDependency.wait(both, next) // what follows on `next` starts after both
 *   yield* Effect.timeout(CudaDependency.synchronize(both), "1 second") // on the host
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (sources: Iterable<Source>): Effect.Effect<CudaDependency, CudaError, Scope.Scope> => {
  const once = new Set(sources)
  return Effect.gen(function*() {
    const events = new Set<CudaEvent>()
    for (const source of once) {
      if (isCudaStream(source)) events.add(yield* recordEvent(source))
      else if (isCudaEvent(source)) events.add(source)
      else for (const event of source.events) events.add(event)
    }
    return new DependencyImpl(Array.from(events))
  }).pipe(named("CudaDependency.make"))
}

/**
 * Makes work enqueued from now on, on a stream (by default the current one), start after every point of the dependency (a
 * `cuStreamWaitEvent` for each).
 *
 * @category ordering
 * @since 0.1.0
 */
export const wait: {
  (self: CudaDependency, stream?: CudaStream): Effect.Effect<void, CudaError>
  (stream?: CudaStream): (self: CudaDependency) => Effect.Effect<void, CudaError>
} = waitOperation()

function waitOperation() {
  function operation(self: CudaDependency, stream?: CudaStream): Effect.Effect<void, CudaError>
  function operation(stream?: CudaStream): (self: CudaDependency) => Effect.Effect<void, CudaError>
  function operation(first?: CudaDependency | CudaStream, second?: CudaStream) {
    if (isCudaDependency(first)) return waitOn(first, second)
    return (self: CudaDependency) => waitOn(self, first)
  }
  return operation
}

const waitOn = ({ events }: CudaDependency, stream: CudaStream | undefined): Effect.Effect<void, CudaError> => {
  const [first] = events
  if (first === undefined) return Effect.void
  const { runtime } = first
  return onStream(
    "CudaDependency.wait",
    runtime,
    undefined,
    stream,
    (ref) => Effect.forEach(events, (event) => runtime.streamWaitEvent(ref, event.ref), { discard: true })
  ).pipe(named("CudaDependency.wait"))
}

/**
 * Waits until every point of the dependency is reached. Suspends the fiber, not the thread; fails with the reason of a fault
 * as soon as the driver reports it.
 *
 * @category waiting
 * @since 0.1.0
 */
export const synchronize = (self: CudaDependency): Effect.Effect<void, CudaError> =>
  Effect.forEach(self.events, synchronizeEvent, { discard: true, concurrency: "unbounded" }).pipe(
    named("CudaDependency.synchronize")
  )

/**
 * Asks whether every point of the dependency is reached. Does not wait.
 *
 * @category waiting
 * @since 0.1.0
 */
export const query = (self: CudaDependency): Effect.Effect<boolean, CudaError> =>
  Effect.suspend(() => {
    let index = 0
    let isReached = true
    return Effect.map(
      Effect.whileLoop({
        while: () => isReached && index < self.events.length,
        body: () => queryEvent(self.events[index++]!),
        step: (answer) => {
          isReached = answer
        }
      }),
      () => isReached
    ).pipe(named("CudaDependency.query"))
  })

class DependencyImpl extends Handle implements CudaDependency {
  readonly [TypeId] = TypeId
  readonly events: ReadonlyArray<CudaEvent>
  constructor(events: ReadonlyArray<CudaEvent>) {
    super()
    this.events = events
  }
  toString(): string {
    return oneLine("CudaDependency", countOf(this.events.length, "event"))
  }
  toJSON() {
    return { _id: "CudaDependency", events: this.events }
  }
}
