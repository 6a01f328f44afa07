/**
 * The parts of a pipeline: its streams, memory for each element in progress, and the turnstiles that keep elements in order.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { DeviceInput } from "../../CudaDevice.ts"
import type { CudaError } from "../../CudaError.ts"
import { make as makeEvent } from "../../CudaEvent.ts"
import type { CudaEvent } from "../../CudaEvent.ts"
import { allocate, allocateHost } from "../../CudaMemory.ts"
import type { DeviceBuffer, HostBuffer } from "../../CudaMemory.ts"
import { current, make as makeStream, waitStream } from "../../CudaStream.ts"
import type { CudaStream, PriorityOptions } from "../../CudaStream.ts"
import { region } from "../../CudaTiming.ts"
import { CurrentWaitOptions } from "../../layers/CudaRuntime.ts"
import type { CudaRuntime, CudaRuntimeService, MemoryRange } from "../../layers/CudaRuntime.ts"
import { named } from "../handles.ts"

/** The operation named in failures. */
export const operation = "CudaPipeline.through"

export interface SlotOptions extends Omit<PriorityOptions, "device"> {
  /** The devices that the slots are on, in turn. Undefined for the current one. */
  readonly devices: ReadonlyArray<DeviceInput | undefined>
  readonly slots: number
  readonly inputBytes: number
  readonly outputBytes: number
  readonly pollFor: Duration.Input
}

/** Three streams, so that copies in both directions and work overlap. */
interface Streams {
  readonly uploads: CudaStream
  readonly work: CudaStream
  readonly downloads: CudaStream
}

/** Memory for one element in progress. */
interface Memory {
  /** Pinned: the bytes to upload. */
  readonly outgoing: HostBuffer
  readonly input: DeviceBuffer
  readonly output: DeviceBuffer
  /** Pinned: the downloaded bytes. Separate from `outgoing`, so that leftover input cannot be mistaken for output. */
  readonly returned: HostBuffer
  /** The end of the download, the last operation on this memory. */
  readonly downloaded: CudaEvent
}

/**
 * Makes slots. Memory is allocated before the streams are made, so the streams are released, and thereby drained, first. They
 * start after the work that the current stream holds now.
 */
export const makeSlots = (
  options: SlotOptions
): Effect.Effect<ReadonlyArray<Slot>, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const origins = yield* Effect.forEach(options.devices, (device) => current(device))
    const ofSlots = Array.from({ length: options.slots }, (_, slot) => slot % origins.length)
    const memory = yield* Effect.forEach(ofSlots, (place) => makeMemory(options, origins[place]!.deviceIndex))
    const starts = options.devices.length > 1 ? [...origins, yield* current()] : origins
    const streams = yield* Effect.forEach(origins, (origin) => makeStreams(options, origin, starts))
    return memory.map((one, slot) => {
      const place = ofSlots[slot]!
      return new Slot(origins[place]!.runtime, streams[place]!, one, options.pollFor)
    })
  }).pipe(named(operation))

/** Makes the streams of a device, which start after the work that some streams hold now. */
const makeStreams = (
  { outOfRange, ...options }: SlotOptions,
  { deviceIndex, priority: ownPriority }: CudaStream,
  starts: ReadonlyArray<CudaStream>
): Effect.Effect<Streams, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    const { priority = ownPriority } = options
    const stream = (name: string) => makeStream({ device: deviceIndex, priority, outOfRange, name })
    const streams: Streams = {
      uploads: yield* stream("uploads"),
      work: yield* stream("work"),
      downloads: yield* stream("downloads")
    }
    // Work waits for uploads, and downloads for work.
    for (const start of starts) yield* waitStream(streams.uploads, start)
    return streams
  })

const makeMemory = (
  { inputBytes, outputBytes }: SlotOptions,
  deviceIndex: number
): Effect.Effect<Memory, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.gen(function*() {
    return {
      outgoing: yield* allocateHost(inputBytes),
      input: yield* allocate(inputBytes, { device: deviceIndex }),
      output: yield* allocate(outputBytes, { device: deviceIndex }),
      returned: yield* allocateHost(outputBytes),
      downloaded: yield* makeEvent({ device: deviceIndex })
    }
  })

/** The streams and the memory for one element at a time. */
export class Slot {
  readonly memory: Memory
  readonly streams: Streams
  readonly #runtime: CudaRuntimeService
  readonly #orderWork: Effect.Effect<void, CudaError>
  readonly #orderDownload: Effect.Effect<void, CudaError>
  readonly #record: Effect.Effect<void, CudaError>
  /** Waits for the end of the download. */
  readonly whenDownloaded: Effect.Effect<void, CudaError>

  // Effects that are the same for every element are made once.
  constructor(runtime: CudaRuntimeService, streams: Streams, memory: Memory, pollFor: Duration.Input) {
    const { downloads, uploads, work } = streams
    this.memory = memory
    this.streams = streams
    this.#runtime = runtime
    this.#orderWork = runtime.streamWaitStream(work.ref, uploads.ref)
    this.#orderDownload = runtime.streamWaitStream(downloads.ref, work.ref)
    this.#record = runtime.eventRecord(memory.downloaded.ref, downloads.ref)
    this.whenDownloaded = runtime.eventSynchronize(memory.downloaded.ref).pipe(
      Effect.updateService(CurrentWaitOptions, (region) => ({ pollFor, ...region })),
      named(operation)
    )
  }

  /** Uploads bytes. Work enqueued from now on finds them on the device. */
  upload(byteLength: number, index: number): Effect.Effect<void, CudaError> {
    const { streams: { uploads }, memory: { input, outgoing } } = this
    const copy = this.#runtime.memoryCopy(startOf(input, byteLength), startOf(outgoing, byteLength), uploads.ref)
    const copied = region(copy, "upload", { stream: uploads, attributes: { index } })
    return Effect.andThen(copied, this.#orderWork).pipe(named(operation))
  }

  /** Downloads bytes after the work enqueued so far. */
  download(byteLength: number, index: number): Effect.Effect<void, CudaError> {
    const { streams: { downloads }, memory: { output, returned } } = this
    const copy = this.#runtime.memoryCopy(startOf(returned, byteLength), startOf(output, byteLength), downloads.ref)
    const copied = region(copy, "download", { stream: downloads, attributes: { index } })
    return this.#orderDownload.pipe(Effect.andThen(copied), Effect.andThen(this.#record), named(operation))
  }
}

const startOf = ({ ref }: DeviceBuffer | HostBuffer, byteLength: number): MemoryRange => ({
  memory: ref,
  offset: 0,
  byteLength
})

/** Lets elements pass one at a time, in the order of their numbers. At most as many elements are in progress as there are places. */
export class Turnstile {
  #next = 0
  readonly #waiting: Array<(() => void) | undefined>

  constructor(places: number) {
    this.#waiting = Array.from({ length: places }, () => undefined)
  }

  /** Waits until all earlier elements have left. */
  enter(index: number): Effect.Effect<void> {
    return Effect.callback((resume) => {
      // Checked in the step that registers the callback: the fiber may yield before it, and the earlier element may leave meanwhile.
      if (index === this.#next) return resume(Effect.void)
      this.#waiting[index % this.#waiting.length] = () => resume(Effect.void)
    })
  }

  /** Lets the next element in. */
  leave(): void {
    const place = ++this.#next % this.#waiting.length
    const enter = this.#waiting[place]
    this.#waiting[place] = undefined
    enter?.()
  }
}
