/**
 * Markers on simulated streams.
 */
import { success } from "../../cuda/status.ts"
import type { Marker, MarkerBackend } from "../shared/accesses.ts"
import type { StreamResource } from "../shared/resources.ts"
import type { Cancel, OnDone } from "../shared/waits.ts"
import type { SimulatedDriver } from "./Driver.ts"
import type { EventRecord } from "./model/parts.ts"
import { streamPart } from "./resources.ts"

class SimulatedMarker implements Marker {
  readonly deviceIndex: number
  readonly record: EventRecord
  constructor(record: EventRecord) {
    this.deviceIndex = record.device.ordinal
    this.record = record
  }
}

export class SimulatedMarkers implements MarkerBackend {
  made: Marker | undefined
  readonly #driver: SimulatedDriver

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  record(stream: StreamResource): number {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuEventRecord", part.device)
    if (status === success) this.made = new SimulatedMarker(this.#driver.model.world.record(part, false))
    return status
  }

  wait(stream: StreamResource, marker: Marker): number {
    const part = streamPart(stream)
    const record = recordOf(marker)
    const status = this.#driver.begin("cuStreamWaitEvent", part.device) || record.device.lost
    if (status === success) this.#driver.model.world.wait(part, record, false)
    return status
  }

  query(marker: Marker): number {
    const record = recordOf(marker)
    const status = this.#driver.begin("cuEventQuery", record.device)
    if (status !== success) return status
    return record.done ? success : this.#driver.notReady()
  }

  /** Records need no release. */
  release(): void {}

  watch(marker: Marker, onDone: OnDone): Cancel {
    const record = recordOf(marker)
    return this.#driver.watchAfter("cuEventQuery", record.device, onDone, () => record)
  }
}

/** Narrows a marker. All markers of a simulated runtime are simulated. */
const recordOf = (marker: Marker): EventRecord => (marker as SimulatedMarker).record
