/**
 * Copies and fills on the driver. Pinned memory is registered in segments, so a copy that crosses a segment boundary is
 * enqueued in pieces.
 */
import { copyInStreamOrder, defaultStreamHandles, memoryTypes } from "../../cuda/flags.ts"
import { offsetBy } from "../../cuda/handles.ts"
import type { CUdeviceptr } from "../../cuda/handles.ts"
import { statuses, success } from "../../cuda/status.ts"
import type { CopyBackend, RowsTransfer, Transfer } from "../shared/copies.ts"
import type { AnyMemoryResource, DeviceMemoryResource, StreamResource } from "../shared/resources.ts"
import type { NativeStream } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import type { NativePeers } from "./peers.ts"
import { arePeers, isInOneSegment, pieceOf, rowOf, rowsOf } from "./pieces.ts"
import { nativeStream } from "./streams.ts"

export class NativeCopies implements CopyBackend {
  enqueuedPart = false
  readonly #driver: Driver
  readonly #peers: NativePeers
  /** `CUDA_MEMCPY2D`. */
  readonly #rows = new BigUint64Array(16)
  readonly #rowTypes = new Int32Array(this.#rows.buffer)

  constructor(driver: Driver, peers: NativePeers) {
    this.#driver = driver
    this.#peers = peers
  }

  copy(transfer: Transfer, resource: StreamResource): number {
    const joined = this.#join(transfer)
    if (joined !== success) return joined
    const stream = nativeStream(resource)
    if (!stream.needsContext) return this.#copy(transfer, stream)
    return this.#driver.inContextOf(stream.deviceIndex, "", () => this.#copy(transfer, stream))
  }

  copyRows(transfer: RowsTransfer, resource: StreamResource): number {
    const joined = this.#join(transfer)
    if (joined !== success) return joined
    const stream = nativeStream(resource)
    if (!stream.needsContext) return this.#copyRows(transfer, stream)
    return this.#driver.inContextOf(stream.deviceIndex, "", () => this.#copyRows(transfer, stream))
  }

  /** Batches need a current context on every stream; other copies only on default streams. */
  copyBatch(transfers: ReadonlyArray<Transfer>, resource: StreamResource): number {
    for (const transfer of transfers) {
      const joined = this.#join(transfer)
      if (joined !== success) return joined
    }
    const stream = nativeStream(resource)
    return this.#driver.inContextOf(stream.deviceIndex, "", () => this.#copyBatch(transfers, stream))
  }

  fill(
    memory: DeviceMemoryResource,
    offset: number,
    value: number,
    bits: 8 | 16 | 32,
    count: number,
    resource: StreamResource
  ): number {
    const stream = nativeStream(resource)
    const to = offsetBy(memory.address, offset)
    if (!stream.needsContext) return this.#fill(to, value, bits, count, stream)
    return this.#driver.inContextOf(stream.deviceIndex, "", () => this.#fill(to, value, bits, count, stream))
  }

  /** Gives devices the access that a copy between them needs to go straight over their link. */
  #join({ from, to }: Ends): number {
    if (to.kind === "host" || from.kind === "host" || !arePeers(to, from)) return success
    return this.#peers.join(to, from)
  }

  /** Whether the driver has to stage a copy, which it does in fewer calls than other copies. */
  #isStaged({ from, to }: Ends): boolean {
    if (to.kind === "host" || from.kind === "host" || !arePeers(to, from)) return false
    return this.#peers.join(to, from) !== success || !this.#peers.isDirect
  }

  #fill(to: CUdeviceptr, value: number, bits: 8 | 16 | 32, count: number, { handle }: NativeStream): number {
    const { calls } = this.#driver
    if (bits === 8) return this.#driver.answer("cuMemsetD8Async", calls.cuMemsetD8Async(to, value, count, handle))
    if (bits === 16) return this.#driver.answer("cuMemsetD16Async", calls.cuMemsetD16Async(to, value, count, handle))
    return this.#driver.answer("cuMemsetD32Async", calls.cuMemsetD32Async(to, value, count, handle))
  }

  #copy(transfer: Transfer, stream: NativeStream): number {
    const { byteLength, from, fromOffset, to, toOffset } = transfer
    if (isInOneSegment(to, toOffset, byteLength) && isInOneSegment(from, fromOffset, byteLength)) {
      return this.#piece(transfer, 0, byteLength, stream)
    }
    let done = 0
    while (done < byteLength) {
      const bytes = pieceOf(transfer, done)
      const status = this.#piece(transfer, done, bytes, stream)
      if (status !== success) {
        this.enqueuedPart = done > 0
        return status
      }
      done += bytes
    }
    return success
  }

  /** Copies `bytes` bytes of a transfer, after the first `done`. */
  #piece({ from, fromOffset, to, toOffset }: Transfer, done: number, bytes: number, { handle }: NativeStream): number {
    const { calls } = this.#driver
    if (from.kind === "host") {
      if (to.kind === "host") return this.#driver.answer("cuMemcpyAsync", statuses.NotSupported.code)
      const target = offsetBy(to.address, toOffset + done)
      const source = offsetBy(from.address, fromOffset + done)
      return this.#driver.answer("cuMemcpyHtoDAsync", calls.cuMemcpyHtoDAsync_v2(target, source, bytes, handle))
    }
    const source = offsetBy(from.address, fromOffset + done)
    if (to.kind === "host") {
      const target = offsetBy(to.address, toOffset + done)
      return this.#driver.answer("cuMemcpyDtoHAsync", calls.cuMemcpyDtoHAsync_v2(target, source, bytes, handle))
    }
    const target = offsetBy(to.address, toOffset + done)
    if (!arePeers(to, from)) {
      return this.#driver.answer("cuMemcpyDtoDAsync", calls.cuMemcpyDtoDAsync_v2(target, source, bytes, handle))
    }
    const toContext = this.#driver.device(to.deviceIndex).context
    const fromContext = this.#driver.device(from.deviceIndex).context
    return this.#driver.answer(
      "cuMemcpyPeerAsync",
      calls.cuMemcpyPeerAsync(target, toContext, source, fromContext, bytes, handle)
    )
  }

  /** Enqueues runs of rows in one call each. A row across segments, or one that the driver stages, is copied separately. */
  #copyRows(transfer: RowsTransfer, stream: NativeStream): number {
    const { from, fromOffset, fromPitch, height, to, toOffset, toPitch, width } = transfer
    if (toPitch === width && fromPitch === width) {
      return this.#copy({ to, toOffset, from, fromOffset, byteLength: width * height }, stream)
    }
    const isStaged = this.#isStaged(transfer)
    let row = 0
    while (row < height) {
      const rows = isStaged ? 0 : Math.min(height - row, rowsOf(transfer, row))
      const status = rows === 0
        ? this.#copy(rowOf(transfer, row), stream)
        : this.#driver.answer(
          "cuMemcpy2DAsync",
          this.#driver.calls.cuMemcpy2DAsync_v2(this.#write(transfer, row, rows), stream.handle)
        )
      if (status !== success) {
        this.enqueuedPart ||= row > 0
        return status
      }
      row += Math.max(1, rows)
    }
    return success
  }

  #write({ from, fromOffset, fromPitch, to, toOffset, toPitch, width }: RowsTransfer, row: number, rows: number) {
    const words = this.#rows
    this.#writeEnd(0, from, fromOffset + row * fromPitch, fromPitch)
    this.#writeEnd(7, to, toOffset + row * toPitch, toPitch)
    words[14] = BigInt(width)
    words[15] = BigInt(rows)
    return words
  }

  /**
   * Writes source or destination, starting at a word: two offsets (0), memory type, address by type, no array, pitch.
   */
  #writeEnd(word: number, memory: AnyMemoryResource, offset: number, pitch: number): void {
    const address = BigInt(memory.address + offset)
    this.#rowTypes[2 * (word + 2)] = memoryTypes[memory.kind]
    this.#rows[word + 3] = memory.kind === "host" ? address : 0n
    this.#rows[word + 4] = memory.kind === "host" ? 0n : address
    this.#rows[word + 6] = BigInt(pitch)
  }

  /** The driver supports no batches on the legacy default stream, and of copies that it stages. Older drivers support none. */
  #copyBatch(transfers: ReadonlyArray<Transfer>, stream: NativeStream): number {
    const { cuMemcpyBatchAsync: batch } = this.#driver.calls
    const takesBatch = stream.handle !== defaultStreamHandles.legacy && transfers.length > 1
    if (batch === undefined || !takesBatch || transfers.some((transfer) => this.#isStaged(transfer))) {
      return this.#copyEach(transfers, stream)
    }
    const [to, from, sizes] = piecesOf(transfers)
    const status = batch(to, from, sizes, sizes.length, inStreamOrder, fromTheFirst, 1, failedAt, stream.handle)
    this.enqueuedPart = status !== success
    return this.#driver.answer("cuMemcpyBatchAsync", status)
  }

  #copyEach(transfers: ReadonlyArray<Transfer>, stream: NativeStream): number {
    for (const [index, transfer] of transfers.entries()) {
      const status = this.#copy(transfer, stream)
      if (status === success) continue
      this.enqueuedPart ||= index > 0
      return status
    }
    return success
  }
}

type Ends = Pick<Transfer, "to" | "from">

/** The `CUmemcpyAttributes` of all copies of a batch. */
const inStreamOrder = new Int32Array(6)
inStreamOrder[0] = copyInStreamOrder
const fromTheFirst = new BigUint64Array(1)
const failedAt = new BigUint64Array(1)

/** The pieces of all copies: destinations, sources and sizes. */
const piecesOf = (transfers: ReadonlyArray<Transfer>): readonly [BigUint64Array, BigUint64Array, BigUint64Array] => {
  const [to, from, sizes]: [Array<bigint>, Array<bigint>, Array<bigint>] = [[], [], []]
  for (const transfer of transfers) {
    for (let done = 0; done < transfer.byteLength;) {
      const bytes = pieceOf(transfer, done)
      to.push(BigInt(transfer.to.address + transfer.toOffset + done))
      from.push(BigInt(transfer.from.address + transfer.fromOffset + done))
      sizes.push(BigInt(bytes))
      done += bytes
    }
  }
  return [BigUint64Array.from(to), BigUint64Array.from(from), BigUint64Array.from(sizes)]
}
