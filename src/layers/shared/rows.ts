/**
 * Checks of 2D and batched copies.
 */
import type { MemoryRange, MemoryRows, MemoryTransfer } from "../CudaRuntime.ts"
import { inBytes } from "../runtime/words.ts"
import { refuseArgument, refuseDescribed } from "./failures.ts"
import { nameAt, refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"

/** The bytes from the start of the first row to the end of the last. */
export const rowsSpan = ({ memory, offset, pitch }: MemoryRows, width: number, height: number): MemoryRange => ({
  memory,
  offset,
  byteLength: height === 0 ? 0 : (height - 1) * pitch + width
})

/** The largest pitch that the driver accepts (`CU_DEVICE_ATTRIBUTE_MAX_PITCH`), the same on every device. */
const mostPitch = 2 ** 31 - 1

/** Refuses rows that do not fit in their buffer, or that overlap each other. */
export const refuseRows = (
  operation: string,
  to: MemoryRows,
  from: MemoryRows,
  width: number,
  height: number
): Refusal => {
  if (!isCount(width)) return refuseArgument(operation, "size.width", width, "a non-negative integer")
  if (!isCount(height)) return refuseArgument(operation, "size.height", height, "a non-negative integer")
  return refuseEnd(operation, "destination", to, width, height) ??
    refuseEnd(operation, "source", from, width, height) ?? refuseOverlap(operation, to, from, width, height)
}

const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0

const refuseEnd = (operation: string, name: string, rows: MemoryRows, width: number, height: number): Refusal => {
  const { byteLength, pitch } = rows
  if (!Number.isSafeInteger(pitch) || pitch < width || pitch > mostPitch) {
    const expected = `an integer from ${width}, the width, to ${mostPitch}`
    return refuseArgument(operation, `${name}.pitch`, pitch, expected)
  }
  const refused = refuseRange(operation, name, rows)
  if (refused !== undefined || width === 0) return refused
  const span = rowsSpan(rows, width, height).byteLength
  return span <= byteLength
    ? undefined
    : refuseArgument(operation, `${name}.byteLength`, byteLength, `at least ${span}, the bytes that the rows span`)
}

/** Rows of equal pitch may interleave, each in the other's gaps. Rows of different pitch must not overlap at all. */
const refuseOverlap = (
  operation: string,
  to: MemoryRows,
  from: MemoryRows,
  width: number,
  height: number
): Refusal => {
  if (to.memory !== from.memory || width === 0 || height === 0) return undefined
  const meet = to.pitch === from.pitch
    ? rowsMeet(Math.abs(to.offset - from.offset), to.pitch, width, height)
    : rangesMeet(rowsSpan(to, width, height), rowsSpan(from, width, height))
  return meet
    ? refuseArgument(operation, "source.offset", from.offset, "rows that do not overlap those of the destination")
    : undefined
}

/** Whether two sets of rows whose starts are `distance` bytes apart share a byte. */
const rowsMeet = (distance: number, pitch: number, width: number, height: number): boolean => {
  const rows = Math.floor(distance / pitch)
  const column = distance % pitch
  return (rows < height && column < width) || (rows + 1 < height && pitch - column < width)
}

const rangesMeet = (one: MemoryRange, other: MemoryRange): boolean =>
  one.offset < other.offset + other.byteLength && other.offset < one.offset + one.byteLength

/** The addresses that a copy of a batch reads or writes. */
interface Span {
  readonly index: number
  readonly start: number
  readonly end: number
  readonly writes: boolean
}

/**
 * Refuses a batch in which one copy writes bytes that another reads or writes, because copies of a batch have no order.
 */
export const refuseDependence = (operation: string, transfers: ReadonlyArray<MemoryTransfer>): Refusal => {
  const spans = transfers.flatMap(({ from, to }, index) => [spanOf(to, index, true), spanOf(from, index, false)])
  spans.sort((one, other) => one.start - other.start)
  let furthest: Span | undefined
  let furthestWrite: Span | undefined
  for (const span of spans) {
    if (span.start === span.end) continue
    const before = span.writes ? furthest : furthestWrite
    if (before !== undefined && before.end > span.start) {
      const [first, second] = before.index < span.index ? [before, span] : [span, before]
      const expected = `a copy that does not depend on copies[${first.index}]: copies of a batch run in any order`
      const bytes = inBytes(transfers[second.index]!.to.byteLength)
      return refuseDescribed(operation, nameAt("destination", second.index), bytes, expected)
    }
    if (span.end > (furthest?.end ?? 0)) furthest = span
    if (span.writes && span.end > (furthestWrite?.end ?? 0)) furthestWrite = span
  }
  return undefined
}

const spanOf = ({ byteLength, memory, offset }: MemoryRange, index: number, writes: boolean): Span => ({
  index,
  start: memory.address + offset,
  end: memory.address + offset + byteLength,
  writes
})
