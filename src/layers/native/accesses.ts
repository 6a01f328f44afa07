/**
 * Markers on the driver: events, recycled per device, that order the uses of buffers.
 */
import type { CUevent } from "../../cuda/handles.ts"
import { success } from "../../cuda/status.ts"
import type { WaitOptions } from "../CudaRuntime.ts"
import type { Marker, MarkerBackend } from "../shared/accesses.ts"
import type { StreamResource } from "../shared/resources.ts"
import type { Cancel, OnDone } from "../shared/waits.ts"
import type { Completion } from "./Completion.ts"
import type { NativeStream } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import { Point } from "./Lane.ts"
import { laneOf, nativeStream, policyOf } from "./streams.ts"

/** A recycled event, recorded on a stream. */
class NativeMarker implements Marker {
  readonly deviceIndex: number
  readonly stream: NativeStream
  readonly event: CUevent
  /** The position of the record among the records of the stream. */
  readonly order: number
  constructor(stream: NativeStream, event: CUevent) {
    this.deviceIndex = stream.deviceIndex
    this.stream = stream
    this.event = event
    this.order = stream.records
  }
}

/** Narrows a marker. All markers of the native runtime are native. */
const nativeMarker = (marker: Marker): NativeMarker => marker as NativeMarker

export class NativeMarkers implements MarkerBackend {
  made: NativeMarker | undefined
  readonly #driver: Driver
  readonly #completion: Completion

  constructor(driver: Driver, completion: Completion) {
    this.#driver = driver
    this.#completion = completion
  }

  record(resource: StreamResource): number {
    const stream = nativeStream(resource)
    const device = this.#driver.device(stream.deviceIndex)
    const event = device.takeMarker()
    if (event === undefined) return this.#driver.madeBy(device)
    const status = this.#driver.record(event, stream)
    if (status === success) this.made = new NativeMarker(stream, event)
    else device.giveMarker(event)
    return status
  }

  wait(stream: StreamResource, marker: Marker): number {
    return this.#driver.wait(nativeStream(stream), nativeMarker(marker).event)
  }

  query(marker: Marker): number {
    return this.#driver.answer("cuEventQuery", this.#driver.calls.cuEventQuery(nativeMarker(marker).event))
  }

  release(marker: Marker): void {
    this.#driver.device(marker.deviceIndex).giveMarker(nativeMarker(marker).event)
  }

  watch(resource: Marker, onDone: OnDone, options: WaitOptions = {}): Cancel {
    const { event, order, stream } = nativeMarker(resource)
    return this.#completion.watch(new Point(laneOf(stream), order, event, () => {}), policyOf(options, false), onDone)
  }
}
