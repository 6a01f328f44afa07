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
    const refused = this.refuseRows(transfer, stream.deviceIndex)
    if (refused === success) this.#driver.model.copyRows(part, to, from, transfer)
    return refused
  }

  /** The status of a 2D copy whose rows are too far apart; 0 for a valid one. */
  refuseRows({ fromPitch, toPitch }: RowsTransfer, deviceIndex: number): number {
    const { maxPitch } = this.#driver.options.devices[deviceIndex]!.attributes
    return Math.max(toPitch, fromPitch) > maxPitch ? statuses.InvalidValue.code : success
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
    return this.#driver.begin(call, device) || touchBoth(to, from)
  }
}

/** Allocates the memory of the process behind a copy. */
export const touchBoth = (to: Storage, from: Storage): number => {
  const lost = to.lost || from.lost
  if (lost !== success) return lost
  return to.tryTouch() && from.tryTouch() ? success : statuses.OutOfMemory.code
}
