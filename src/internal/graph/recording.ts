/**
 * Running a program as a recording: its streams record, and its memory belongs to the graph.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { CudaError } from "../../CudaError.ts"
import { StreamImpl } from "../../CudaStream.ts"
import { CudaRuntime, CurrentRecording } from "../../layers/CudaRuntime.ts"
import type {
  CudaRuntimeService,
  GraphPlaceholder,
  GraphRef,
  RecordingRef,
  RecordOptions,
  StreamRef
} from "../../layers/CudaRuntime.ts"
import { CurrentPlace, onStreamOf } from "../place.ts"
import type { Place } from "../place.ts"

/** The runtime that a recorded program sees. Its streams and its device memory are those of the recording. */
const recordingRuntime = (runtime: CudaRuntimeService, recording: RecordingRef): CudaRuntimeService => ({
  ...runtime,
  recording,
  streamCreate: (options) => runtime.graphStream(recording, options),
  memoryAllocate: (device, byteLength, options) => runtime.graphAllocate(recording, device, byteLength, options)
})

/** What a recorded program gets: the placeholders of its parameters, and the runtime of the recording. */
export type Body<A, E, R> = (
  placeholders: ReadonlyArray<GraphPlaceholder>,
  runtime: CudaRuntimeService
) => Effect.Effect<A, E, R>

/**
 * Records effects as the bodies of a condition, one after the other, on a stream of a recording. The scope of each closes when its body
 * is recorded.
 */
export const recordingBodies = <E, R>(
  runtime: CudaRuntimeService,
  place: Place,
  stream: StreamRef,
  bodies: ReadonlyArray<Effect.Effect<unknown, E, R>>,
  add: (refs: ReadonlyArray<RecordingRef>) => Effect.Effect<void, CudaError>
): Effect.Effect<void, E | CudaError, Exclude<R, Scope.Scope>> =>
  Effect.uninterruptibleMask((restore) => {
    const refs: Array<RecordingRef> = []
    const record = (body: Effect.Effect<unknown, E, R>) =>
      Effect.flatMap(runtime.graphBody(stream), (ref) => {
        refs.push(ref)
        return restore(within(runtime, place, ref, body))
      })
    const abandon = Effect.suspend(() =>
      Effect.forEach(refs, (ref) => Effect.ignore(runtime.graphAbandon(ref)), { discard: true })
    )
    const recorded = Effect.andThen(
      restore(runtime.graphPrepareConditions(stream.deviceIndex)),
      Effect.forEach(bodies, record, { discard: true })
    )
    return Effect.onError(Effect.andThen(recorded, Effect.suspend(() => add(refs))), () => abandon)
  })

/** Runs a program on the streams and with the memory of a recording. */
const within = <A, E, R>(
  runtime: CudaRuntimeService,
  place: Place,
  ref: RecordingRef,
  program: Effect.Effect<A, E, R>
): Effect.Effect<A, E, Exclude<R, Scope.Scope>> => {
  const inside = recordingRuntime(runtime, ref)
  return Effect.scoped(program).pipe(
    Effect.provideService(CudaRuntime, inside),
    Effect.provideService(CurrentPlace, onStreamOf(new StreamImpl(inside, ref.stream), place)),
    Effect.provideService(CurrentRecording, ref)
  )
}

/** Records a program. Its scope closes before the graph is made. */
export const recording = <A, E, R>(
  runtime: CudaRuntimeService,
  place: Place,
  options: RecordOptions,
  body: Body<A, E, R>
): Effect.Effect<{ readonly graph: GraphRef; readonly value: A }, E | CudaError, Exclude<R, Scope.Scope>> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(runtime.graphRecord(options), (ref) => {
      const inside = recordingRuntime(runtime, ref)
      const program = within(runtime, place, ref, Effect.suspend(() => body(ref.placeholders, inside)))
      const recorded = Effect.flatMap(
        restore(program),
        (value) => Effect.map(runtime.graphEnd(ref), (graph) => ({ graph, value }))
      )
      return Effect.onError(recorded, () => Effect.ignore(runtime.graphAbandon(ref)))
    })
  )
