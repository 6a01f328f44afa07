/**
 * Pipelines: send the elements of a stream through a device, several at a time, so that uploads, work and downloads of
 * different elements overlap.
 *
 * Depends on the modules for streams, events and memory, and on what the modules share.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Channel from "effect/Channel"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import { slice } from "./CudaMemory.ts"
import type { DeviceBuffer, HostArray, Slice } from "./CudaMemory.ts"
import { withStream } from "./CudaStream.ts"
import type { PriorityOptions } from "./CudaStream.ts"
import { region } from "./CudaTiming.ts"
import { bytesOf } from "./internal/bytes.ts"
import { countOf, refuseArgument } from "./internal/handles.ts"
import { isWhole } from "./internal/numbers.ts"
import { makeSlots, operation, Turnstile } from "./internal/pipeline/slots.ts"
import type { Slot, SlotOptions } from "./internal/pipeline/slots.ts"
import type { CudaRuntime } from "./layers/CudaRuntime.ts"

/**
 * An element whose input is on the device by the time work enqueued on the current stream starts.
 *
 * @category models
 * @since 0.1.0
 */
export interface UploadedElement<out In> {
  readonly element: In
  /** Counts elements, from 0. */
  readonly index: number
  /** As many bytes as `fill` returned. */
  readonly input: Slice<DeviceBuffer>
  /** Uninitialized memory of `outputBytes` bytes, or as many bytes as the input if that option is not set. */
  readonly output: Slice<DeviceBuffer>
}

/**
 * How many bytes of an element's output to download. `work` returns it to download fewer than all: see `outputBytes`.
 *
 * @category models
 * @since 0.1.0
 */
export interface OutputBytes {
  readonly _tag: "OutputBytes"
  readonly byteLength: number
}

/**
 * Options for the size of a pipeline, and for its device and the priority of its streams. Defaults: the current device, and the
 * priority of the current stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface SizeOptions extends PriorityOptions {
  /**
   * The devices that elements take turns on: slot `index` is on `devices[index % devices.length]`. Cannot be given together with
   * `device`.
   */
  readonly devices?: ReadonlyArray<DeviceInput> | undefined
  /**
   * The most elements in progress at the same time, from 1 to 1,024, and at least one per entry of `devices`. Each slot has its own
   * memory. Default: 3 per device.
   */
  readonly slots?: number | undefined
  /** The largest input of an element, in bytes, at least 1. */
  readonly inputBytes: number
  /** The largest output of an element, in bytes, at least 1. Default: `inputBytes`. */
  readonly outputBytes?: number | undefined
  /**
   * How long to poll for the end of an element on every turn of the event loop before relying on the GPU to wake it. Default
   * 1 ms, because a late wake-up on each element costs bandwidth. `CurrentWaitOptions` of the surrounding region take
   * precedence.
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
   * Writes an element into pinned memory and returns how many bytes it wrote. Several run at the same time, each with memory
   * that no other element uses.
   */
  readonly fill: (element: In, into: Uint8Array<ArrayBuffer>) => Effect.Effect<number, E1, R1>
  /**
   * Enqueues an element's work on the current stream. Runs for one element at a time, in order. The whole output is
   * downloaded, unless this returns `CudaPipeline.outputBytes(byteLength)`.
   */
  readonly work: (uploaded: UploadedElement<In>) => Effect.Effect<void | OutputBytes, E2, R2>
  /** Makes the result of an element from its output. The bytes are pinned memory that is reused once this effect has ended. */
  readonly take: (bytes: Uint8Array<ArrayBuffer>, element: In) => Effect.Effect<Out, E3, R3>
}

/**
 * Sends the elements of a stream through a device and back: each element is written to pinned memory, uploaded, worked on,
 * downloaded, and read from pinned memory again. Results come in the order of the elements.
 *
 * **Details**
 *
 * Uploads, work and downloads each have their own stream, so that copies in both directions and work overlap for different
 * elements. These streams start after the work that the current stream holds when the first element arrives. The GPU orders
 * the steps of an element; the host waits once per element, for the end of its download.
 *
 * With `devices`, each of them has such streams and its share of the slots, and elements go to the devices in turn. `work` finds its element's
 * device as the current one (`input.buffer.deviceIndex`), and still runs for one element at a time. Results stay in order, so the slowest
 * device sets the pace of all.
 *
 * At most `slots` elements have been pulled from the source but not delivered. (A source that produces arrays of elements
 * produces the next array only when all elements of the previous one are pulled.) It takes three slots to keep all three streams
 * busy and to hide the time that the host needs between two elements. With one slot, the steps of an element run one after the
 * other, followed by the next element.
 *
 * The first failure of the source, of `fill`, `work` or `take`, or of the device ends the stream after the results of the
 * elements before it. However the stream ends, running `fill`, `work` and `take` effects are interrupted and awaited, then the GPU
 * finishes the work it was given, and then the memory is released. A source without elements allocates nothing.
 *
 * Fails with `InvalidArgument` if `slots` is not an integer from 1 to 1,024, if a size is not a positive integer, or if
 * `fill` or `work` returns a number of bytes that does not fit. Inside `CudaTiming.timeline`, the three steps of every element are
 * the regions `upload`, `work` and `download`, with the attribute `index`.
 *
 * **Gotchas**
 *
 * Make `fill` uninterruptible if it passes the memory to something that cannot be cancelled, such as reading a file: the memory is
 * released once `fill` has ended.
 *
 * `work` should enqueue and return: while it waits for something, later elements are not enqueued.
 *
 * While elements finish more often than once per `pollFor`, the event loop does not sleep.
 *
 * Copies by the CPU, such as `copyIn` and `copyOut`, occupy the JS thread for about a millisecond per 10 MB.
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
        // Without capacity, an element has been delivered when its offer ends.
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
 * Sends all elements through. Fails with the first failure in the order of the elements; the end of the source counts as one.
 *
 * Each slot has its own fiber. `Stream.mapEffect` uses one per element and does not wait for a fiber that starts while the stream
 * is being closed, so its `fill` would keep writing to released memory.
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
        // A failure waits for its turn, like every other result.
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

/** Takes an element through its slot. */
const pass = Effect.fnUntraced(function*<In, Out, E1, R1, E2, R2, E3, R3>(
  { fill, inputBytes, outputBytes, take, work }: ThroughOptions<In, Out, E1, R1, E2, R2, E3, R3>,
  slot: Slot,
  works: Turnstile,
  element: In,
  index: number
) {
  const { memory, streams } = slot
  const filled = yield* fill(element, memory.outgoing.bytes)
  if (!isWhole(filled, 0, inputBytes)) return yield* refuseResult("fill", filled, inputBytes)
  const input = slice(memory.input, 0, filled)
  const output = slice(memory.output, 0, outputBytes ?? filled)

  yield* works.enter(index)
  yield* slot.upload(filled, index)
  const worked = region(work({ element, index, input, output }), "work", { attributes: { index } })
  const result = yield* withStream(worked, streams.work)
  const back = Predicate.isTagged(result, "OutputBytes") ? result.byteLength : output.byteLength
  if (!isWhole(back, 0, output.byteLength)) return yield* refuseResult("work", back, output.byteLength)
  yield* slot.download(back, index)
  works.leave()

  yield* slot.whenDownloaded
  return yield* take(memory.returned.bytes.subarray(0, back), element)
})

/** Each slot has two pinned and two device buffers, and a fiber. */
const mostSlots = 1024

const resolve = (
  { device, devices, inputBytes, outOfRange, outputBytes = inputBytes, pollFor = "1 millis", priority, ...size }:
    SizeOptions
): Effect.Effect<SlotOptions, CudaError> => {
  if (devices !== undefined && (!Array.isArray(devices) || devices.length === 0 || device !== undefined)) {
    return refuseArgument(operation, "devices", devices, "at least one device, and no option device")
  }
  const { slots = 3 * (devices?.length ?? 1) } = size
  if (!isWhole(slots, 1, mostSlots)) {
    return refuseArgument(operation, "slots", slots, `an integer from 1 to ${mostSlots}`)
  }
  if (devices !== undefined && slots < devices.length) {
    return refuseArgument(operation, "slots", slots, `at least ${devices.length}, one per device`)
  }
  for (const [argument, value] of Object.entries({ inputBytes, outputBytes })) {
    if (!isWhole(value, 1)) return refuseArgument(operation, argument, value, "a positive integer")
  }
  if (Option.isNone(Duration.fromInput(pollFor))) return refuseArgument(operation, "pollFor", pollFor, "a duration")
  const on = devices ?? [device]
  return Effect.succeed({ slots, inputBytes, outputBytes, devices: on, pollFor, priority, outOfRange })
}

const refuseResult = (callback: "fill" | "work", byteLength: number, room: number) =>
  refuseArgument(operation, `the result of ${callback}`, byteLength, `an integer from 0 to ${room}`)

/**
 * Says how many bytes of an element's output to download, as the result of `work`. Without it, the whole output is downloaded.
 *
 * **Example** (Download only the first bytes of the output)
 *
 * ```ts
 * import { CudaMemory, CudaPipeline } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const work = ({ input, output }: CudaPipeline.UploadedElement<Uint8Array>) =>
 *   Effect.as(CudaMemory.copy(output, input), CudaPipeline.outputBytes(Math.min(16, output.byteLength)))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const outputBytes = (byteLength: number): OutputBytes => ({ _tag: "OutputBytes", byteLength })

/**
 * Copies an array into pinned memory: a `fill` for elements that are arrays. Fails with `InvalidArgument` if the array does not
 * fit, or if the memory of either array is gone: detached, or cut off by resizing its buffer.
 *
 * **Example** (Arrays through a device)
 *
 * ```ts
 * import { CudaMemory, CudaPipeline } from "effect-cuda"
 *
 * const through = CudaPipeline.through({
 *   inputBytes: 4096,
 *   fill: CudaPipeline.copyIn,
 *   work: ({ input, output }) => CudaMemory.copy(output, input),
 *   take: CudaPipeline.copyOut
 * })
 * ```
 *
 * @category transfers
 * @since 0.1.0
 */
export const copyIn = (element: HostArray, into: Uint8Array): Effect.Effect<number, CudaError> =>
  Effect.suspend(() => {
    const name = "CudaPipeline.copyIn"
    const source = bytesOf(element)
    if (source === undefined) return refuseArgument(name, "element", element, arrayWithMemory)
    if (bytesOf(into) === undefined) return refuseArgument(name, "into", into, arrayWithMemory)
    if (source.byteLength > into.byteLength) {
      return refuseArgument(name, "element", element, `an array of at most ${countOf(into.byteLength, "byte")}`)
    }
    into.set(source)
    return Effect.succeed(source.byteLength)
  })

/**
 * Copies the downloaded bytes into a new array: a `take`. Fails with `InvalidArgument` if their memory is gone.
 *
 * **Example** (Arrays through a device)
 *
 * ```ts
 * import { CudaMemory, CudaPipeline } from "effect-cuda"
 *
 * const through = CudaPipeline.through({
 *   inputBytes: 4096,
 *   fill: CudaPipeline.copyIn,
 *   work: ({ input, output }) => CudaMemory.copy(output, input),
 *   take: CudaPipeline.copyOut
 * })
 * ```
 *
 * @category transfers
 * @since 0.1.0
 */
export const copyOut = (bytes: Uint8Array): Effect.Effect<Uint8Array<ArrayBuffer>, CudaError> =>
  Effect.suspend(() => {
    const source = bytesOf(bytes)
    return source === undefined
      ? refuseArgument("CudaPipeline.copyOut", "bytes", bytes, arrayWithMemory)
      : Effect.succeed(source.slice())
  })

const arrayWithMemory = "an array whose memory is neither detached nor out of bounds"
