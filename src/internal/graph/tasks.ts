/**
 * Recording a task graph: each task has a stream of its own, which comes after those of the tasks it depends on.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import { StreamImpl } from "../../CudaStream.ts"
import type { CudaTaskGraph } from "../../CudaTaskGraph.ts"
import { CurrentNodeName } from "../../layers/CudaRuntime.ts"
import type { CudaRuntimeService, StreamRef } from "../../layers/CudaRuntime.ts"
import { atOrigin, CurrentPlace, onStreamOf } from "../place.ts"
import type { Origin } from "../place.ts"

/** Runs the tasks inside a recording, in order. Returns their results by name. */
export const recordTasks = <Results, E, R>(
  runtime: CudaRuntimeService,
  { tasks }: CudaTaskGraph<Results, E, R>
) =>
  atOrigin("CudaGraph.fromTasks", (at) =>
    Effect.gen(function*() {
      const streams = new Map<string, StreamRef>()
      const results = new Map<string, unknown>()
      for (const task of tasks) {
        const { after = [], name } = task
        const stream = yield* streamAfter(runtime, at, after.map((other) => streams.get(other)!))
        const given = Object.fromEntries(after.map((other) => [other, results.get(other)]))
        const result = yield* Effect.suspend(() => task.run(given)).pipe(
          Effect.provideService(CurrentPlace, onStreamOf(new StreamImpl(runtime, stream), at.place)),
          Effect.provideService(CurrentNodeName, name)
        )
        streams.set(name, stream)
        results.set(name, result)
      }
      yield* runtime.streamJoin(at.origin, [...streams.values()])
      return Object.fromEntries(results) as Results
    }))

/** A stream of the recording after the current work of others, or after that of the origin if there are none. */
const streamAfter = (
  runtime: CudaRuntimeService,
  { origin }: Origin,
  others: ReadonlyArray<StreamRef>
): Effect.Effect<StreamRef, CudaError> => {
  const { deviceIndex, priority } = origin
  return Effect.tap(
    runtime.streamCreate({ deviceIndex, priority, nonBlocking: true }),
    (stream) => runtime.streamJoin(stream, others.length === 0 ? [origin] : others)
  )
}
