/**
 * Streams on the driver.
 */
import * as Duration from "effect/Duration"
import { defaultStreamHandles, streamFlags } from "../../cuda/flags.ts"
import type { CUevent, CUstream } from "../../cuda/handles.ts"
import { notReady, statuses, success } from "../../cuda/status.ts"
import { isListening, load, loaded } from "../Annotations.ts"
import type { Loaded } from "../Annotations.ts"
import type { StreamRef, WaitOptions } from "../CudaRuntime.ts"
import type { EventResource, PartitionResource, StreamResource } from "../shared/resources.ts"
import type { StreamBackend } from "../shared/streams.ts"
import type { Cancel, OnDone, Watch } from "../shared/waits.ts"
import type { Completion, WaitPolicy } from "./Completion.ts"
import { NativeStream, Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import { Lane, Point } from "./Lane.ts"
import { greenOf } from "./partitions.ts"

/** Narrows a stream. All streams of the native runtime are native. */
export const nativeStream = (stream: StreamResource): NativeStream => stream as NativeStream

/**
 * The lane of a foreign stream keeps nothing between waits, because the runtime does not know when the stream is
 * destroyed.
 */
export const laneOf = (stream: NativeStream): Lane =>
  stream.lane ??= new Lane(stream.deviceIndex, stream.origin !== "foreign")

/** NVTX keeps the name for the handle, which the driver gives to another stream once this one is destroyed. */
const nameStream = (found: Loaded, stream: StreamResource, name: string): void => {
  if ("annotator" in found && stream.state === "live") found.annotator.nameStream(stream.handle, name)
}

/** The parts of a wait's policy that override the runtime's. */
export const policyOf = (options: WaitOptions, blocking: boolean): Partial<WaitPolicy> => ({
  ...(options.pollFor === undefined ? undefined : { pollFor: Duration.toMillis(options.pollFor) }),
  ...(blocking ? { pollFor: 0 } : undefined),
  ...(options.wakeUp === undefined ? undefined : { wakeUp: options.wakeUp })
})

export class NativeStreams implements StreamBackend {
  created: NativeStream | undefined
  readonly #driver: Driver
  readonly #completion: Completion
  /** Owned and default streams. */
  readonly #streams = new Set<NativeStream>()
  readonly #handle = new Out<CUstream>()
  readonly #word = new Out()
  readonly #integer = new Int32Array(1)
  readonly #flags = new Uint32Array(1)

  constructor(driver: Driver, completion: Completion) {
    this.#driver = driver
    this.#completion = completion
  }

  create(
    deviceIndex: number,
    priority: number,
    nonBlocking: boolean,
    partition: PartitionResource | undefined
  ): number {
    const { calls } = this.#driver
    const flags = nonBlocking ? streamFlags.nonBlocking : streamFlags.default
    const status = partition === undefined
      ? this.#driver.inContextOf(
        deviceIndex,
        "cuStreamCreateWithPriority",
        () => calls.cuStreamCreateWithPriority(this.#handle.words, flags, priority)
      )
      : this.#driver.answer(
        "cuGreenCtxStreamCreate",
        calls.cuGreenCtxStreamCreate!(this.#handle.words, greenOf(partition), flags, priority)
      )
    if (status !== success) return status
    const handle = this.#handle.value
    const identified = calls.cuStreamGetId(handle, this.#word.words)
    if (identified !== success) {
      this.#driver.warn("cuStreamDestroy", calls.cuStreamDestroy_v2(handle), handle)
      return this.#driver.answer("cuStreamGetId", identified)
    }
    this.#keep({ handle, id: this.#word.value, deviceIndex, priority, nonBlocking, origin: "owned" }, partition)
    return success
  }

  announce(stream: StreamResource, name: string): void {
    if (!isListening()) return
    const known = loaded()
    if (known !== undefined) return nameStream(known, stream, name)
    void load().then((found) => nameStream(found, stream, name))
  }

  defaultOf(deviceIndex: number, mode: "legacy" | "perThread"): number {
    const handle = defaultStreamHandles[mode]
    const status = this.#driver.inContextOf(
      deviceIndex,
      "cuStreamGetId",
      () => this.#driver.calls.cuStreamGetId(handle, this.#word.words)
    )
    if (status !== success) return status
    const id = mode === "legacy" ? 0 : this.#word.value
    this.#keep({ handle, id, deviceIndex, priority: 0, nonBlocking: false, origin: "default" })
    return success
  }

  #keep(fields: Omit<StreamRef, "isRecording" | "name" | "partition" | "state">, partition?: PartitionResource): void {
    this.created = new NativeStream(this.#driver.owner, fields, partition)
    this.#streams.add(this.created)
  }

  fromHandle(deviceIndex: number, number: number): number {
    const { calls } = this.#driver
    const handle = number as CUstream
    const status = calls.cuStreamGetCtx(handle, this.#word.words)
    if (status !== success) return this.#driver.answer("cuStreamGetCtx", status)
    const { context, partitions } = this.#driver.device(deviceIndex)
    const partition = partitions.get(this.#word.value)
    if (this.#word.value !== context && partition === undefined) {
      return this.#driver.answer("cuStreamGetCtx", statuses.InvalidContext.code)
    }
    const id = calls.cuStreamGetId(handle, this.#word.words)
    const priority = calls.cuStreamGetPriority(handle, this.#integer)
    const flags = calls.cuStreamGetFlags(handle, this.#flags)
    if (id !== success) return this.#driver.answer("cuStreamGetId", id)
    if (priority !== success) return this.#driver.answer("cuStreamGetPriority", priority)
    if (flags !== success) return this.#driver.answer("cuStreamGetFlags", flags)
    this.created = new NativeStream(this.#driver.owner, {
      handle,
      id: this.#word.value,
      deviceIndex,
      priority: this.#integer[0]!,
      nonBlocking: (this.#flags[0]! & streamFlags.nonBlocking) !== 0,
      origin: "foreign"
    }, partition)
    return success
  }

  destroy(resource: StreamResource): number {
    const stream = nativeStream(resource)
    this.#streams.delete(stream)
    this.#driver.device(stream.deviceIndex).freedOn.delete(stream)
    if (stream.lane !== undefined) this.#completion.forget(stream.lane)
    return this.#driver.answer("cuStreamDestroy", this.#driver.calls.cuStreamDestroy_v2(stream.handle))
  }

  query(resource: StreamResource): number {
    const stream = nativeStream(resource)
    const { calls } = this.#driver
    if (!stream.needsContext) return this.#driver.answer("cuStreamQuery", calls.cuStreamQuery(stream.handle))
    return this.#driver.inContextOf(stream.deviceIndex, "cuStreamQuery", () => calls.cuStreamQuery(stream.handle))
  }

  waitEvent(stream: StreamResource, event: EventResource): number {
    return this.#driver.wait(nativeStream(stream), event.own)
  }

  fork(from: StreamResource, branches: ReadonlyArray<StreamResource>): number {
    const device = this.#driver.device(from.deviceIndex)
    const marker = device.takeMarker()
    if (marker === undefined) return this.#driver.madeBy(device)
    let status = this.#driver.record(marker, nativeStream(from))
    for (let index = 0; index < branches.length && status === success; index++) {
      status = this.#driver.wait(nativeStream(branches[index]!), marker)
    }
    device.giveMarker(marker)
    return status
  }

  /** Watches for the streams of a device with pending work. */
  busyOn(deviceIndex: number): Array<Watch> {
    const busy: Array<Watch> = []
    for (const stream of this.#streams) {
      if (stream.deviceIndex !== deviceIndex || this.query(stream) !== notReady) continue
      busy.push((onDone, options) => this.watch(stream, onDone, options))
    }
    return busy
  }

  watch(resource: StreamResource, onDone: OnDone, options: WaitOptions = {}): Cancel {
    const stream = nativeStream(resource)
    const device = this.#driver.device(stream.deviceIndex)
    const marker = device.takeMarker()
    const status = marker === undefined ? this.#driver.madeBy(device) : this.#driver.record(marker, stream)
    if (marker !== undefined && status === success) {
      return this.watchMarker(laneOf(stream), stream.records, marker, policyOf(options, false), onDone)
    }
    if (marker !== undefined) device.giveMarker(marker)
    onDone(status)
    return () => {}
  }

  /** Watches a recycled marker, and returns it when the watch ends. */
  watchMarker(lane: Lane, order: number, marker: CUevent, policy: Partial<WaitPolicy>, onDone: OnDone): Cancel {
    const point = new Point(lane, order, marker, () => this.#driver.device(lane.deviceIndex).giveMarker(marker))
    return this.#completion.watch(point, policy, onDone)
  }
}
