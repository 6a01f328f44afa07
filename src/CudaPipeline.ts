/**
 * Pipelines: streams of elements that go through a device, several at a time, so that uploads, work and downloads of
 * different elements overlap.
 *
 * Depends on the modules of streams, events and memory, and on what the modules share.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Channel from "effect/Channel"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { CudaError } from "./CudaError.ts"
import { slice } from "./CudaMemory.ts"
import type { DeviceBuffer, HostArray, Slice } from "./CudaMemory.ts"
import { withStream } from "./CudaStream.ts"
import type { PriorityOptions } from "./CudaStream.ts"
import { region } from "./CudaTiming.ts"
import { refuseArgument } from "./internal/handles.ts"
import { makeSlots, operation, Turnstile } from "./internal/pipeline/slots.ts"
import type { Slot, SlotOptions } from "./internal/pipeline/slots.ts"
import type { CudaRuntime } from "./layers/CudaRuntime.ts"

/**
 * An element whose input is on the device when the work of the current stream starts.
 *
 * @category models
 * @since 0.1.0
 */
export interface UploadedElement<out In> {
  readonly element: In
  /** Counts elements, from 0. */
  readonly index: number
  /** As long as `fill` said. */
  readonly input: Slice<DeviceBuffer>
  /** `outputBytes` long where that was given, else as long as the input. Its contents are undefined. */
  readonly output: Slice<DeviceBuffer>
}

/**
 * Options for the size of a pipeline, and for its device, by default the current one. Its streams have the priority of the
 * current stream, unless another one is given.
 *
 * @category models
 * @since 0.1.0
 */
export interface SizeOptions extends PriorityOptions {
  /** Elements under way at the same time, at most; each has memory of its own. Default 3. */
  readonly slots?: number | undefined
  /** The most bytes of an element on its way to the device. */
  readonly inputBytes: number
  /** The most bytes of an element on its way back. Default: `inputBytes`. */
  readonly outputBytes?: number | undefined
  /**
   * How long the end of an element is asked about on every turn of the event loop, before the GPU wakes it: 1 ms by default,
   * since what comes late at each element costs bandwidth. A region's `CurrentWaitOptions` go before it.
   */
  readonly pollFor?: Duration.Input | undefined
}

/**
 * Options for sending elements through a device.
 *
 * @category models
 * @since 0.1.0
 */
export interface ThroughOptions<In, Out, E1, R1, E2, R2, E3, R3> extends SizeOptions {
  /**
   * Puts an element into pinned memory and answers how many bytes it has there. Several run at the same time, each with
   * memory that is its element's alone.
   */
  readonly fill: (element: In, into: Uint8Array<ArrayBuffer>) => Effect.Effect<number, E1, R1>
  /**
   * Enqueues an element's work on the current stream. Runs for one element after the other, in their order. A number that it
   * answers is how many bytes of the output to bring back; without one, all come back.
   */
  readonly work: (uploaded: UploadedElement<In>) => Effect.Effect<unknown, E2, R2>
  /** Makes an element's result of what came back. The bytes are pinned memory that is used again when this has ended. */
  readonly take: (bytes: Uint8Array<ArrayBuffer>, element: In) => Effect.Effect<Out, E3, R3>
}

/**
 * Sends the elements of a stream through a device and back: each is put into pinned memory, uploaded, worked on, downloaded,
 * and taken out of pinned memory again. The results come in the order of the elements.
 *
 * **Details**
 *
 * Uploads, work and downloads have a stream each, so that copies both ways and work overlap for different elements. The
 * streams start after what the current stream holds when the first element comes. What orders the steps of an element is on
 * the GPU; the host waits once for each element, for the end of its download.
 *
 * At most `slots` elements have been pulled from the source and not been delivered. (A source that produces arrays of elements
 * produces the next array once all of the one before are pulled.) Three slots are needed to keep all three streams busy, and
 * hide the time that the host takes between two elements. With one, each step of an element follows the one before, and the
 * next element follows.
 *
 * The first failure, of the source, of `fill`, `work` or `take`, or of the device, ends the stream after the results of the
 * elements before it. However the stream ends: what runs of `fill`, `work` and `take` is interrupted and awaited, then the GPU
 * finishes what it was given, then the memory is released. Nothing is allocated for a source without elements.
 *
 * Fails with `InvalidArgument` for sizes that are no positive whole numbers, and for answers of `fill` and `work` that are no
 * number of bytes there is room for. Inside `CudaTiming.timeline` the three steps of every element are regions, `upload`,
 * `work` and `download`, with the attribute `index`.
 *
 * **Gotchas**
 *
 * A `fill` that hands the memory to something that cannot be called back, such as the read of a file, has to be
 * uninterruptible: the memory is released when it has ended.
 *
 * While `work` waits for something, later elements are not enqueued: it is meant to enqueue work and end.
 *
 * While elements end more often than `pollFor`, the event loop does not sleep.
 *
 * Copies by the CPU, as of `copyIn` and `copyOut`, take the JS thread about a millisecond for 10 MB each.
 *
 * **Example** (Chunks through a device)
 *
 * ```ts
 * import { CudaMemory, CudaPipeline } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as Stream from "effect/Stream"
 *
 * const chunks = Stream.range(1, 100).pipe(Stream.map((byte) => new Uint8Array(1 << 20).fill(byte)))
 *
 * const returned = chunks.pipe(
 *   CudaPipeline.through({
 *     slots: 4,
 *     inputBytes: 1 << 20,
 *     fill: CudaPipeline.copyIn,
 *     work: ({ input, output }) => CudaMemory.copy(output, input),
 *     take: CudaPipeline.copyOut
 *   }),
 *   Stream.runForEach((chunk) => Effect.log(chunk.byteLength))
 * )
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const through: {
  <In, Out, E1, R1, E2, R2, E3, R3>(
    options: ThroughOptions<In, Out, E1, R1, E2, R2, E3, R3>
  ): <E, R>(
    source: Stream.Stream<In, E, R>
  ) => Stream.Stream<Out, E | E1 | E2 | E3 | CudaError, R | R1 | R2 | R3 | CudaRuntime>
  <In, E, R, Out, E1, R1, E2, R2, E3, R3>(
    source: Stream.Stream<In, E, R>,
    options: ThroughOptions<In, Out, E1, R1, E2, R2, E3, R3>
  ): Stream.Stream<Out, E | E1 | E2 | E3 | CudaError, R | R1 | R2 | R3 | CudaRuntime>
} = dual(
  2,
  <In, E, R, Out, E1, R1, E2, R2, E3, R3>(
    source: Stream.Stream<In, E, R>,
    options: ThroughOptions<In, Out, E1, R1, E2, R2, E3, R3>
  ): Stream.Stream<Out, E | E1 | E2 | E3 | CudaError, R | R1 | R2 | R3 | CudaRuntime> =>
    Stream.fromChannel(Channel.fromTransform((_, scope) =>
      Effect.gen(function*() {
        // Without room: what is offered is delivered when the offer ends.
        const results = yield* Queue.bounded<Out, E | E1 | E2 | E3 | CudaError | Cause.Done>(0)
        yield* Scope.addFinalizer(scope, Queue.shutdown(results))
        yield* Effect.forkIn(
          Effect.catchCause(run(source, options, results), (cause) => Queue.failCause(results, cause)),
          scope
        )
        return Queue.takeAll(results)
      })
    ))
)

/**
 * Sends all elements through, and fails with the first failure in their order, that of the source included: its end is one.
 *
 * Each slot has a fiber of its own. `Stream.mapEffect` has one for each element, and does not wait for one that begins while
 * the stream is being closed: its `fill` would go on writing to memory that is released.
 */
const run = <In, E, R, Out, E1, R1, E2, R2, E3, R3, EOut>(
  source: Stream.Stream<In, E, R>,
  options: ThroughOptions<In, Out, E1, R1, E2, R2, E3, R3>,
  results: Queue.Enqueue<Out, EOut>
) =>
  Effect.scopedWith(Effect.fnUntraced(function*(scope) {
    const resolved = yield* resolve(options)
    const pull = yield* Channel.toPullScoped(Channel.flattenArray(source.channel), scope)
    const pulls = new Turnstile(resolved.slots)
    const works = new Turnstile(resolved.slots)
    const deliveries = new Turnstile(resolved.slots)
    let slots: ReadonlyArray<Slot> | undefined

    const send = Effect.fnUntraced(function*(lane: number, index: number) {
      yield* pulls.enter(index)
      const element = yield* pull
      slots ??= yield* Scope.provide(makeSlots(resolved), scope)
      pulls.leave()
      return yield* pass(options, slots[lane]!, works, element, index)
    })

    const serve = Effect.fnUntraced(function*(lane: number) {
      for (let index = lane;; index += resolved.slots) {
        // A failure has its turn like every other result.
        const result = yield* Effect.exit(send(lane, index))
        yield* deliveries.enter(index)
        yield* Queue.offer(results, yield* result)
        deliveries.leave()
      }
    })

    yield* Effect.forEach(Array.from({ length: resolved.slots }, (_, lane) => lane), serve, {
      concurrency: "unbounded",
      discard: true
    })
  }))

/** An element's way through its slot. */
const pass = Effect.fnUntraced(function*<In, Out, E1, R1, E2, R2, E3, R3>(
  { fill, inputBytes, outputBytes, take, work }: ThroughOptions<In, Out, E1, R1, E2, R2, E3, R3>,
  slot: Slot,
  works: Turnstile,
  element: In,
  index: number
) {
  const { memory, streams } = slot
  const filled = yield* fill(element, memory.outgoing.bytes)
  if (!isSize(filled, 0, inputBytes)) return yield* refuseAnswer("fill", filled, inputBytes)
  const input = slice(memory.input, 0, filled)
  const output = slice(memory.output, 0, outputBytes ?? filled)

  yield* works.enter(index)
  yield* slot.upload(filled, index)
  const worked = region(work({ element, index, input, output }), "work", { attributes: { index } })
  const answer = yield* withStream(worked, streams.work)
  const back = typeof answer === "number" ? answer : output.byteLength
  if (!isSize(back, 0, output.byteLength)) return yield* refuseAnswer("work", back, output.byteLength)
  yield* slot.download(back, index)
  works.leave()

  yield* slot.whenDownloaded
  return yield* take(memory.returned.bytes.subarray(0, back), element)
})

const resolve = (
  { device, inputBytes, outOfRange, outputBytes = inputBytes, pollFor = "1 millis", priority, slots = 3 }: SizeOptions
): Effect.Effect<SlotOptions, CudaError> => {
  for (const [argument, value] of Object.entries({ slots, inputBytes, outputBytes })) {
    if (!isSize(value, 1)) return refuseArgument(operation, argument, value, "a positive whole number")
  }
  if (Option.isNone(Duration.fromInput(pollFor))) return refuseArgument(operation, "pollFor", pollFor, "a duration")
  return Effect.succeed({ slots, inputBytes, outputBytes, device, pollFor, priority, outOfRange })
}

const isSize = (value: number, least: number, most = Number.MAX_SAFE_INTEGER): boolean =>
  Number.isInteger(value) && value >= least && value <= most

const refuseAnswer = (callback: "fill" | "work", answer: number, room: number) =>
  refuseArgument(operation, `the answer of ${callback}`, answer, `a whole number of bytes from 0 to ${room}`)

/**
 * Copies an array into pinned memory: a `fill` for elements that are arrays. Fails with `InvalidArgument` when it does not
 * fit.
 *
 * @category transfers
 * @since 0.1.0
 */
export const copyIn = (element: HostArray, into: Uint8Array): Effect.Effect<number, CudaError> =>
  Effect.suspend(() => {
    const { byteLength } = element
    if (byteLength > into.byteLength) {
      const expected = `an array of ${into.byteLength} bytes at most`
      return refuseArgument("CudaPipeline.copyIn", "element", element, expected)
    }
    into.set(new Uint8Array(element.buffer, element.byteOffset, byteLength))
    return Effect.succeed(byteLength)
  })

/**
 * Copies what came back into an array of its own: a `take`.
 *
 * @category transfers
 * @since 0.1.0
 */
export const copyOut = (bytes: Uint8Array): Effect.Effect<Uint8Array<ArrayBuffer>> => Effect.sync(() => bytes.slice())
