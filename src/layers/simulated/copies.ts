/**
 * Copies and fills of simulated devices.
 */
import { statuses, success } from "../../cuda/status.ts"
import type { CopyBackend, RowsTransfer, Transfer } from "../shared/copies.ts"
import type { DeviceMemoryResource, StreamResource } from "../shared/resources.ts"
import type { SimulatedDriver } from "./Driver.ts"
import type { Device } from "./model/parts.ts"
import type { Storage } from "./model/Storage.ts"
import { memoryPart, streamPart } from "./resources.ts"

export class SimulatedCopies implements CopyBackend {
  enqueuedPart = false
  readonly #driver: SimulatedDriver

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  copy(transfer: Transfer, stream: StreamResource): number {
    const part = streamPart(stream)
    const to = memoryPart(transfer.to)
    const from = memoryPart(transfer.from)
    const status = this.#begin("cuMemcpyAsync", part.device, to, from)
    if (status !== success) return status
    this.#driver.model.copy(part, to, transfer.toOffset, from, transfer.fromOffset, transfer.byteLength)
    return success
  }

  copyRows(transfer: RowsTransfer, stream: StreamResource): number {
    const part = streamPart(stream)
    const to = memoryPart(transfer.to)
    const from = memoryPart(transfer.from)
    const status = this.#begin("cuMemcpy2DAsync", part.device, to, from)
    if (status !== success) return status
    const { maxPitch } = this.#driver.options.devices[stream.deviceIndex]!.attributes
    if (Math.max(transfer.toPitch, transfer.fromPitch) > maxPitch) return statuses.InvalidValue.code
    this.#driver.model.copyRows(part, to, from, transfer)
    return success
  }

  /** Copies one after another, one of the orders that the driver may choose. */
  copyBatch(transfers: ReadonlyArray<Transfer>, stream: StreamResource): number {
    for (const transfer of transfers) {
      const status = this.copy(transfer, stream)
      if (status !== success) return status
      this.enqueuedPart = true
    }
    return success
  }

  fill(
    memory: DeviceMemoryResource,
    offset: number,
    value: number,
    bits: 8 | 16 | 32,
    count: number,
    stream: StreamResource
  ): number {
    const part = streamPart(stream)
    const to = memoryPart(memory)
    const status = this.#begin(`cuMemsetD${bits}Async`, part.device, to, to)
    if (status === success) this.#driver.model.fill(part, to, offset, value, bits, count)
    return status
  }

  /** Begins a call that uses memory, and allocates the memory of the process behind it. */
  #begin(call: string, device: Device, to: Storage, from: Storage): number {
    const status = this.#driver.begin(call, device) || to.lost || from.lost
    if (status !== success) return status
    return to.tryTouch() && from.tryTouch() ? success : statuses.OutOfMemory.code
  }
}
