/**
 * How copies are split. Pinned memory is registered in segments, so one call cannot copy across a segment boundary. Growable memory is
 * mapped in pieces; across the end of one, kernels and fills work, but the driver refuses a copy if no context is current.
 */
import type { RowsTransfer, Transfer } from "../shared/copies.ts"
import { GrowableMemoryResource } from "../shared/resources.ts"
import type { AnyMemoryResource } from "../shared/resources.ts"
import { segmentSize } from "./PinnedMemory.ts"

/** Whether the buffers are on different devices. Managed memory is on every device. */
export const arePeers = (to: AnyMemoryResource, from: AnyMemoryResource): boolean =>
  to.kind === "device" && from.kind === "device" && to.deviceIndex !== from.deviceIndex && !to.isManaged &&
  !from.isManaged

/** Whether the bytes lie within one segment, so that the copy need not be split. */
export const isInOneSegment = (memory: AnyMemoryResource, offset: number, byteLength: number): boolean =>
  byteLength <= roomAt(memory, offset)

/** How many bytes a copy may access from an offset on. */
const roomAt = (memory: AnyMemoryResource, offset: number): number => {
  if (memory.kind === "host") return segmentSize - (memory.pinOffset + offset) % segmentSize
  return memory.isGrowable ? roomInPiece(memory, offset) : Number.POSITIVE_INFINITY
}

const roomInPiece = (memory: AnyMemoryResource, offset: number): number => {
  if (!(memory instanceof GrowableMemoryResource)) return Number.POSITIVE_INFINITY
  let end = 0
  for (const piece of memory.pieces) {
    end += piece
    if (offset < end) return end - offset
  }
  return Number.POSITIVE_INFINITY
}

/** How many bytes, after the first `done`, one call can copy. */
export const pieceOf = ({ byteLength, from, fromOffset, to, toOffset }: Transfer, done: number): number =>
  Math.min(byteLength - done, roomAt(to, toOffset + done), roomAt(from, fromOffset + done))

/** How many rows, starting with `row`, one call can copy; 0 if the row itself must be split. */
export const rowsOf = (
  { from, fromOffset, fromPitch, to, toOffset, toPitch, width }: RowsTransfer,
  row: number
): number =>
  Math.min(
    rowsIn(roomAt(to, toOffset + row * toPitch), toPitch, width),
    rowsIn(roomAt(from, fromOffset + row * fromPitch), fromPitch, width)
  )

const rowsIn = (room: number, pitch: number, width: number): number =>
  room < width ? 0 : Math.floor((room - width) / pitch) + 1

/** The copy of one row. */
export const rowOf = (
  { from, fromOffset, fromPitch, to, toOffset, toPitch, width }: RowsTransfer,
  row: number
): Transfer => ({
  to,
  toOffset: toOffset + row * toPitch,
  from,
  fromOffset: fromOffset + row * fromPitch,
  byteLength: width
})

/** All pieces of a copy, as copies of one row. */
export const copyPieces = (transfer: Transfer): Array<RowsTransfer> => {
  const { byteLength, from, fromOffset, to, toOffset } = transfer
  const pieces: Array<RowsTransfer> = []
  for (let done = 0; done < byteLength;) {
    const width = pieceOf(transfer, done)
    pieces.push({
      to,
      toOffset: toOffset + done,
      toPitch: 0,
      from,
      fromOffset: fromOffset + done,
      fromPitch: 0,
      width,
      height: 1
    })
    done += width
  }
  return pieces
}

/** All pieces of a 2D copy: runs of rows, and parts of rows. */
export const rowPieces = (transfer: RowsTransfer): Array<RowsTransfer> => {
  const { from, fromOffset, fromPitch, height, to, toOffset, toPitch, width } = transfer
  if (toPitch === width && fromPitch === width) {
    return copyPieces({ to, toOffset, from, fromOffset, byteLength: width * height })
  }
  const pieces: Array<RowsTransfer> = []
  for (let row = 0; row < height;) {
    const rows = arePeers(transfer.to, transfer.from) ? 0 : Math.min(height - row, rowsOf(transfer, row))
    if (rows <= 1) pieces.push(...copyPieces(rowOf(transfer, row)))
    else {
      const [toRow, fromRow] = [toOffset + row * toPitch, fromOffset + row * fromPitch]
      pieces.push({ ...transfer, toOffset: toRow, fromOffset: fromRow, height: rows })
    }
    row += Math.max(1, rows)
  }
  return pieces
}
