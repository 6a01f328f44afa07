/**
 * Events of simulated devices.
 */
import { eventFlags } from "../../cuda/flags.ts"
import { notReady, statuses, success } from "../../cuda/status.ts"
import type { EventBackend } from "../shared/events.ts"
import type { EventResource, StreamResource } from "../shared/resources.ts"
import type { Cancel, OnDone } from "../shared/waits.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { EventState } from "./model/parts.ts"
import { exportEvent, openEvent, withdrawEvent } from "./model/sharedEvents.ts"
import { SimulatedEvent, simulatedEvent, streamPart } from "./resources.ts"

const invalidHandle = statuses.InvalidHandle.code

export class SimulatedEvents implements EventBackend {
  created: EventResource | undefined
  milliseconds = 0
  readonly #driver: SimulatedDriver
  /** The keys of the exported interprocess handles. */
  readonly #exported = new Set<string>()
  /** The live events, to find one that a program wraps. */
  readonly #byHandle = new Map<number, SimulatedEvent>()

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  create(deviceIndex: number, flags: number): number {
    const { model, owner } = this.#driver
    const status = this.#driver.begin("cuEventCreate", this.#driver.device(deviceIndex))
    if (status !== success) return status
    const event = new SimulatedEvent(owner, new EventState(), model.makeHandle(), deviceIndex, flags)
    this.#byHandle.set(event.own, event)
    this.created = event
    return success
  }

  destroy(event: EventResource): number {
    this.#byHandle.delete(event.own)
    const { sharedAs } = simulatedEvent(event)
    if (sharedAs !== undefined) this.#withdraw(sharedAs.key)
    return this.#driver.begin("cuEventDestroy", this.#driver.device(event.deviceIndex))
  }

  record(event: EventResource, stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuEventRecord", part.device)
    if (status === success) this.#driver.model.record(simulatedEvent(event).part, part, event.hasTiming)
    return status
  }

  query(event: EventResource): number {
    const status = this.#driver.begin("cuEventQuery", this.#driver.device(event.deviceIndex))
    if (status !== success) return status
    const record = simulatedEvent(event).part.current
    if (record === undefined || record.done) return success
    return record.device.lost === 0 ? this.#driver.notReady() : record.device.lost
  }

  elapsedTime(start: EventResource, end: EventResource): number {
    const status = this.#driver.begin("cuEventElapsedTime", this.#driver.device(end.deviceIndex)) ||
      this.#driver.device(start.deviceIndex).lost
    if (status !== success) return status
    const [first, last] = [simulatedEvent(start).part.current, simulatedEvent(end).part.current]
    if (first === undefined || last === undefined || !isTimed(start) || !isTimed(end)) return invalidHandle
    if (!first.done || !last.done) return notReady
    this.milliseconds = (last.time - first.time) / 1e6
    return success
  }

  ipcHandle(event: EventResource, into: Uint8Array): number {
    const status = this.#driver.begin("cuIpcGetEventHandle", this.#driver.device(event.deviceIndex))
    if (status !== success) return status
    if ((event.flags & eventFlags.interprocess) === 0) return invalidHandle
    const own = simulatedEvent(event)
    if (own.sharedAs === undefined) {
      const handle = new Uint8Array(into.length)
      const { model: { world }, owner } = this.#driver
      own.sharedAs = { key: exportEvent({ event: own.part, world, owner }, handle), handle }
      this.#exported.add(own.sharedAs.key)
    }
    into.set(own.sharedAs.handle)
    return success
  }

  /** Opens the handle of any other simulated runtime in this process with the same clock. */
  fromIpcHandle(deviceIndex: number, handle: Uint8Array): number {
    const { model, owner } = this.#driver
    const status = this.#driver.begin("cuIpcOpenEventHandle", this.#driver.device(deviceIndex))
    if (status !== success) return status
    const shared = openEvent(handle)
    if (shared === undefined) return invalidHandle
    // A process cannot open its own event. Here, each runtime stands for a process.
    if (shared.owner === owner) return statuses.InvalidContext.code
    if (shared.world !== model.world) return statuses.NotSupported.code
    const flags = eventFlags.disableTiming | eventFlags.interprocess
    const event = new SimulatedEvent(owner, shared.event, model.makeHandle(), deviceIndex, flags)
    event.recorded = true
    this.created = event
    return success
  }

  /** Other code is the program itself here, so only events of this runtime can be wrapped. */
  fromHandle(deviceIndex: number, handle: number, flags: number): number {
    const status = this.#driver.begin("cuEventQuery", this.#driver.device(deviceIndex))
    if (status !== success) return status
    const wraps = this.#byHandle.get(handle)
    if (wraps === undefined || wraps.deviceIndex !== deviceIndex) return invalidHandle
    const event = new SimulatedEvent(this.#driver.owner, wraps.part, handle, deviceIndex, flags)
    event.wraps = wraps
    this.created = event
    return success
  }

  watch(event: EventResource, onDone: OnDone): Cancel {
    const device = this.#driver.device(event.deviceIndex)
    return this.#driver.watchAfter("cuEventQuery", device, onDone, () => simulatedEvent(event).part.current)
  }

  /** Invalidates all exported handles. */
  close(): void {
    for (const key of this.#exported) withdrawEvent(key)
    this.#exported.clear()
  }

  #withdraw(key: string): void {
    withdrawEvent(key)
    this.#exported.delete(key)
  }
}

const isTimed = (event: EventResource): boolean => event.hasTiming && simulatedEvent(event).wraps?.hasTiming !== false
