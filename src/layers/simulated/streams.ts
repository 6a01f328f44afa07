/**
 * Streams of simulated devices.
 */
import { statuses, success } from "../../cuda/status.ts"
import type { EventResource, PartitionResource, StreamResource } from "../shared/resources.ts"
import type { StreamBackend } from "../shared/streams.ts"
import type { Cancel, OnDone } from "../shared/waits.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { engineOf } from "./partitions.ts"
import { simulatedEvent, SimulatedStream, streamPart } from "./resources.ts"

export class SimulatedStreams implements StreamBackend {
  created: StreamResource | undefined
  readonly #driver: SimulatedDriver

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  create(
    deviceIndex: number,
    priority: number,
    nonBlocking: boolean,
    partition: PartitionResource | undefined
  ): number {
    const { model, owner } = this.#driver
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuStreamCreateWithPriority", part)
    if (status !== success) return status
    const stream = model.createStream(part, priority, nonBlocking, engineOf(partition))
    this.created = new SimulatedStream(owner, stream, "owned", partition)
    return success
  }

  announce(): void {}

  defaultOf(deviceIndex: number, mode: "legacy" | "perThread"): number {
    const part = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuStreamGetId", part)
    if (status === success) this.created = new SimulatedStream(this.#driver.owner, part[mode], "default")
    return status
  }

  fromHandle(deviceIndex: number, handle: number): number {
    const own = this.#driver.device(deviceIndex)
    const status = this.#driver.begin("cuStreamGetCtx", own)
    if (status !== success) return status
    const part = this.#driver.model.findStream(own, handle)
    if (part === undefined) return statuses.InvalidHandle.code
    if (part.device !== own) return statuses.InvalidContext.code
    this.created = new SimulatedStream(this.#driver.owner, part, "foreign")
    return success
  }

  destroy(stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuStreamDestroy", part.device)
    this.#driver.model.destroyStream(part)
    return status
  }

  query(stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuStreamQuery", part.device)
    if (status !== success) return status
    return part.busy ? this.#driver.notReady() : success
  }

  waitEvent(stream: StreamResource, event: EventResource): number {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuStreamWaitEvent", part.device) || this.#driver.device(event.deviceIndex).lost
    if (status === success) this.#driver.model.waitEvent(part, simulatedEvent(event).part)
    return status
  }

  fork(from: StreamResource, branches: ReadonlyArray<StreamResource>): number {
    const part = streamPart(from)
    let status = this.#driver.begin("cuStreamWaitEvent", part.device)
    for (const branch of branches) status ||= streamPart(branch).device.lost
    if (status === success) this.#driver.model.fork(part, branches.map(streamPart))
    return status
  }

  watch(stream: StreamResource, onDone: OnDone): Cancel {
    const part = streamPart(stream)
    return this.#driver.watchAfter(
      "cuStreamQuery",
      part.device,
      onDone,
      () => this.#driver.model.world.record(part, true)
    )
  }
}
