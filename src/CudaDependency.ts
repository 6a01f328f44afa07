/**
 * Dependencies: points in any number of streams as a single value that streams and fibers can wait for.
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
import { eitherForm, refuseForced } from "./internal/given.ts"
import { countOf, Handle, named, oneLine, refuseArgument } from "./internal/handles.ts"
import { onStream } from "./internal/place.ts"

const TypeId = "~effect-cuda/CudaDependency"

/**
 * A set of points in streams. A dependency is reached when all of its points are.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaDependency extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaDependency": "~effect-cuda/CudaDependency"
  /** The events that mark the points, without duplicates. */
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
 * Returns `true` if a value is a dependency.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaDependency = (u: unknown): u is CudaDependency => Predicate.hasProperty(u, TypeId)

/**
 * Makes a dependency from streams, events and other dependencies. A stream stands for the work that it holds now: an event that lives
 * as long as the scope is recorded on it (`cuEventRecord`).
 *
 * **Gotchas**
 *
 * As everywhere in CUDA, an event stands for its latest record at the time of the wait. Do not record it again before waiting for the
 * dependency.
 *
 * **Example** (Waiting for the work of two streams, on the GPU and on the host)
 *
 * ```ts
 * import { CudaDependency, CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const [left, right, next] = [yield* CudaStream.make(), yield* CudaStream.make(), yield* CudaStream.make()]
 *   const both = yield* CudaDependency.make([left, right])
 *   yield* CudaDependency.wait(both, next) // later work on `next` starts after both
 *   yield* Effect.timeout(CudaDependency.synchronize(both), "1 second") // on the host
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (sources: Iterable<Source>): Effect.Effect<CudaDependency, CudaError, Scope.Scope> => {
  const list = Predicate.isIterable(sources) ? Array.from(sources) : undefined
  if (list === undefined) {
    return refuseArgument("CudaDependency.make", "sources", sources, `an iterable of ${sourceKinds}`)
  }
  const wrong = list.findIndex((source) => !isSource(source))
  if (wrong >= 0) {
    return refuseArgument("CudaDependency.make", `sources[${wrong}]`, list[wrong], `one of ${sourceKinds}`)
  }
  return Effect.gen(function*() {
    const events = new Set<CudaEvent>()
    for (const source of new Set(list)) {
      if (isCudaStream(source)) events.add(yield* recordEvent(source))
      else if (isCudaEvent(source)) events.add(source)
      else for (const event of source.events) events.add(event)
    }
    return new DependencyImpl(Array.from(events))
  }).pipe(named("CudaDependency.make"))
}

const sourceKinds = "streams, events and dependencies"

const isSource = (u: unknown): u is Source => isCudaStream(u) || isCudaEvent(u) || isCudaDependency(u)

/**
 * Makes later work on a stream, by default the current one, start after every point of the dependency (one `cuStreamWaitEvent` per
 * point).
 *
 * **Example** (A stream after two others)
 *
 * ```ts
 * import { CudaDependency } from "effect-cuda"
 * import type { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const uploads: ReadonlyArray<CudaStream.CudaStream>
 * declare const compute: CudaStream.CudaStream
 *
 * const ordered = Effect.gen(function*() {
 *   const uploaded = yield* CudaDependency.make(uploads)
 *   yield* CudaDependency.wait(uploaded, compute)
 * }).pipe(Effect.scoped)
 * ```
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
    if (second === undefined && (first === undefined || isCudaStream(first))) {
      return (self: CudaDependency) => waitOn(self, first)
    }
    return eitherForm(refuseArgument("CudaDependency.wait", "dependency", first, "a dependency, or only a stream"))
  }
  return operation
}

const waitOn = (self: CudaDependency, stream: CudaStream | undefined): Effect.Effect<void, CudaError> => {
  if (!isCudaDependency(self)) return refuseForced("CudaDependency.wait", "dependency", self, "a dependency")
  const { events } = self
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
 * Waits until every point of the dependency is reached. Suspends the fiber, not the thread. Fails with the reason of a fault as soon
 * as the driver reports it.
 *
 * **Example** (Waiting for several streams, but not forever)
 *
 * ```ts
 * import { CudaDependency } from "effect-cuda"
 * import type { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const streams: ReadonlyArray<CudaStream.CudaStream>
 *
 * const finished = Effect.gen(function*() {
 *   const done = yield* CudaDependency.make(streams)
 *   yield* Effect.timeout(CudaDependency.synchronize(done), "1 second")
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category waiting
 * @since 0.1.0
 */
export const synchronize = (self: CudaDependency): Effect.Effect<void, CudaError> =>
  isCudaDependency(self)
    ? Effect.forEach(self.events, synchronizeEvent, { discard: true, concurrency: "unbounded" }).pipe(
      named("CudaDependency.synchronize")
    )
    : refuseForced("CudaDependency.synchronize", "dependency", self, "a dependency")

/**
 * Returns whether every point of the dependency is reached. Does not wait.
 *
 * **Example** (Whether all streams have finished)
 *
 * ```ts
 * import { CudaDependency } from "effect-cuda"
 * import type { CudaStream } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const streams: ReadonlyArray<CudaStream.CudaStream>
 *
 * const isDone = Effect.flatMap(CudaDependency.make(streams), CudaDependency.query).pipe(Effect.scoped)
 * ```
 *
 * @category waiting
 * @since 0.1.0
 */
export const query = (self: CudaDependency): Effect.Effect<boolean, CudaError> =>
  Effect.suspend(() => {
    if (!isCudaDependency(self)) return refuseForced("CudaDependency.query", "dependency", self, "a dependency")
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
