/**
 * Copies and fills: the shared operations, and the backend functions they use.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, MemoryRange, MemoryRows, MemoryTransfer, StreamRef } from "../CudaRuntime.ts"
import type { CopyOperations } from "../runtime/copies.ts"
import { counted, inBytes } from "../runtime/words.ts"
import { enqueueOrdered, enqueueUsing } from "./accesses.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseReach, refuseResource } from "./failures.ts"
import { operation } from "./operation.ts"
import { nameAt, refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { refuseElsewhere, refusePeer } from "./recordings.ts"
import { ownMemory, ownStream, unusable, unusableMemory } from "./resources.ts"
import type { AnyMemoryResource, DeviceMemoryResource, StreamResource } from "./resources.ts"
import { refuseDependence, refuseRows, rowsSpan } from "./rows.ts"

/** The source and the destination of a copy. */
export interface Transfer {
  readonly to: AnyMemoryResource
  readonly toOffset: number
  readonly from: AnyMemoryResource
  readonly fromOffset: number
  readonly byteLength: number
}

/** A pitched 2D copy. */
export interface RowsTransfer extends Omit<Transfer, "byteLength"> {
  readonly toPitch: number
  readonly fromPitch: number
  /** Bytes per row. */
  readonly width: number
  /** Number of rows. */
  readonly height: number
}

export interface CopyBackend {
  /** True if a call failed after enqueuing part of its work. */
  enqueuedPart: boolean
  readonly copy: (transfer: Transfer, stream: StreamResource) => number
  readonly copyRows: (transfer: RowsTransfer, stream: StreamResource) => number
  /** Copies with no order among them. */
  readonly copyBatch: (transfers: ReadonlyArray<Transfer>, stream: StreamResource) => number
  readonly fill: (
    memory: DeviceMemoryResource,
    offset: number,
    value: number,
    bits: 8 | 16 | 32,
    count: number,
    stream: StreamResource
  ) => number
}

/** Bytes per row, and number of rows. */
type Size = Parameters<CudaRuntimeService["memoryCopy2D"]>[2]

export const copyOperations = (core: Core): CopyOperations => ({
  memoryCopy: operation((to: MemoryRange, from: MemoryRange, stream: StreamRef) =>
    copy(core, to, from, ownStream(stream))
  ),
  memoryCopy2D: operation((to: MemoryRows, from: MemoryRows, size: Size, stream: StreamRef) =>
    copyRows(core, to, from, size, ownStream(stream))
  ),
  memoryCopyBatch: operation((transfers: ReadonlyArray<MemoryTransfer>, stream: StreamRef) =>
    copyBatch(core, transfers, ownStream(stream))
  ),
  memoryFill: operation((to: MemoryRange, value: number, bits: 8 | 16 | 32, stream: StreamRef) =>
    fill(core, to, value, bits, ownStream(stream))
  )
})

const copy = (
  core: Core,
  toRange: MemoryRange,
  fromRange: MemoryRange,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.copy"
  const to = ownMemory(toRange.memory)
  const from = ownMemory(fromRange.memory)
  const { backend } = core
  if (unusableMemory(backend, to) || unusableMemory(backend, from) || unusable(backend, stream)) {
    return refuseResource(operation, backend, to, from, stream)
  }
  const refused = refuseCopy(operation, to, from, toRange, fromRange, stream) ??
    (core.recordings === 0
      ? undefined
      : refuseElsewhere(operation, stream) ?? refusePeer(core, operation, to, from, stream))
  if (refused !== undefined) return refused
  const transfer = transferOf(to, from, toRange, fromRange)
  if (transfer.byteLength === 0) return Effect.void
  const { copies } = stream.recording ?? backend
  const used = to.usedOn(stream) || from.usedOn(stream)
  const status = used !== success
    ? used
    : to.ordering === undefined && from.ordering === undefined
    ? copies.copy(transfer, stream)
    : enqueueOrdered(core, stream, [fromRange], [toRange], () => copies.copy(transfer, stream))
  if (status === success) return Effect.void
  return core.failOn(
    operation,
    status,
    stream.deviceIndex,
    `${inBytes(transfer.byteLength)} from ${from} to ${to} on ${stream}`
  )
}

const transferOf = (
  to: AnyMemoryResource,
  from: AnyMemoryResource,
  toRange: MemoryRange,
  fromRange: MemoryRange
): Transfer => ({
  to,
  toOffset: toRange.offset,
  from,
  fromOffset: fromRange.offset,
  byteLength: toRange.byteLength
})

const copyRows = (
  core: Core,
  to: MemoryRows,
  from: MemoryRows,
  { height, width }: Size,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.copy2D"
  const { backend } = core
  const [toMemory, fromMemory] = [ownMemory(to.memory), ownMemory(from.memory)]
  if (unusableMemory(backend, toMemory) || unusableMemory(backend, fromMemory) || unusable(backend, stream)) {
    return refuseResource(operation, backend, toMemory, fromMemory, stream)
  }
  const refused = refuseHosts(operation, toMemory, fromMemory) ??
    refuseRows(operation, to, from, width, height) ?? refusePlacement(operation, toMemory, fromMemory, stream) ??
    (core.recordings === 0
      ? undefined
      : refuseElsewhere(operation, stream) ?? refusePeer(core, operation, toMemory, fromMemory, stream))
  if (refused !== undefined) return refused
  if (width === 0 || height === 0) return Effect.void
  const transfer = {
    to: toMemory,
    toOffset: to.offset,
    toPitch: to.pitch,
    from: fromMemory,
    fromOffset: from.offset,
    fromPitch: from.pitch,
    width,
    height
  }
  const status = enqueueUsing(
    core,
    stream,
    [rowsSpan(from, width, height)],
    [rowsSpan(to, width, height)],
    () => (stream.recording ?? backend).copies.copyRows(transfer, stream)
  )
  if (status === success) return Effect.void
  const what = `${counted(height, "row")} of ${inBytes(width)} from ${fromMemory} to ${toMemory} on ${stream}`
  return core.failOn(operation, status, stream.deviceIndex, what)
}

const copyBatch = (
  core: Core,
  transfers: ReadonlyArray<MemoryTransfer>,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.copyBatch"
  const { backend } = core
  if (unusable(backend, stream)) return refuseResource(operation, backend, stream)
  const copies: Array<Transfer> = []
  for (const [index, { from, to }] of transfers.entries()) {
    const [toMemory, fromMemory] = [ownMemory(to.memory), ownMemory(from.memory)]
    if (unusableMemory(backend, toMemory) || unusableMemory(backend, fromMemory)) {
      return refuseResource(operation, backend, toMemory, fromMemory)
    }
    const refused = refuseCopy(operation, toMemory, fromMemory, to, from, stream, index) ??
      (core.recordings === 0 ? undefined : refusePeer(core, operation, toMemory, fromMemory, stream))
    if (refused !== undefined) return refused
    if (to.byteLength > 0) copies.push(transferOf(toMemory, fromMemory, to, from))
  }
  const refused = refuseDependence(operation, transfers) ??
    (core.recordings === 0 ? undefined : refuseElsewhere(operation, stream))
  if (refused !== undefined) return refused
  if (copies.length === 0) return Effect.void
  const used = transfers.filter(({ to }) => to.byteLength > 0)
  const status = enqueueUsing(
    core,
    stream,
    used.map(({ from }) => from),
    used.map(({ to }) => to),
    () => (stream.recording ?? backend).copies.copyBatch(copies, stream)
  )
  if (status === success) return Effect.void
  const what = `${copies.length === 1 ? "1 copy" : `${copies.length} copies`} on ${stream}`
  return core.failOn(operation, status, stream.deviceIndex, what)
}

const fill = (
  core: Core,
  range: MemoryRange,
  value: number,
  bits: 8 | 16 | 32,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const operation = widths[bits]?.operation ?? "CudaMemory.fill"
  const memory = ownMemory(range.memory)
  if (unusableMemory(core.backend, memory) || unusable(core.backend, stream)) {
    return refuseResource(operation, core.backend, memory, stream)
  }
  if (memory.kind === "host") return refuseArgument(operation, "destination", memory, "a device buffer")
  const refused = refuseRange(operation, "destination", range) ?? refuseFill(operation, range, value, bits)
  if (refused !== undefined) return refused
  if (!isOn(memory, stream)) return refuseReach(operation, memory, stream)
  const elsewhere = core.recordings === 0 ? undefined : refuseElsewhere(operation, stream)
  if (elsewhere !== undefined) return elsewhere
  const count = range.byteLength / widths[bits].bytes
  if (count === 0) return Effect.void
  const { copies } = stream.recording ?? core.backend
  const used = memory.usedOn(stream)
  const status = used !== success
    ? used
    : memory.ordering === undefined
    ? copies.fill(memory, range.offset, value, bits, count, stream)
    : enqueueOrdered(
      core,
      stream,
      [],
      [range],
      () => copies.fill(memory, range.offset, value, bits, count, stream)
    )
  return status === success ? Effect.void : core.fail(operation, status, memory)
}

/** Checks a copy between live buffers; `index` is its position in a batch. */
const refuseCopy = (
  operation: string,
  to: AnyMemoryResource,
  from: AnyMemoryResource,
  toRange: MemoryRange,
  fromRange: MemoryRange,
  stream: StreamResource,
  index?: number
): Refusal =>
  refuseRange(operation, "destination", toRange, index) ??
    refuseRange(operation, "source", fromRange, index) ?? refuseLengths(operation, toRange, fromRange, index) ??
    refuseHosts(operation, to, from, index) ?? refuseOverlap(operation, toRange, fromRange, index) ??
    refusePlacement(operation, to, from, stream)

const refuseLengths = (operation: string, to: MemoryRange, from: MemoryRange, index?: number): Refusal => {
  if (to.byteLength === from.byteLength) return undefined
  const name = nameAt("source.byteLength", index)
  const expected = `${to.byteLength}, the size of the destination: use CudaMemory.slice to copy part of a buffer`
  return refuseArgument(operation, name, from.byteLength, expected)
}

const refuseOverlap = (operation: string, to: MemoryRange, from: MemoryRange, index?: number): Refusal => {
  if (to.memory !== from.memory || Math.abs(to.offset - from.offset) >= to.byteLength) return undefined
  const name = nameAt("source.offset", index)
  return refuseArgument(operation, name, from.offset, "a source that does not overlap the destination")
}

const refuseHosts = (operation: string, to: AnyMemoryResource, from: AnyMemoryResource, index?: number): Refusal => {
  if (to.kind !== "host" || from.kind !== "host") return undefined
  const expected = "device memory at either end of a copy"
  return refuseArgument(operation, nameAt("destination", index), to, expected)
}

/** The stream must be on the device of the source or of the destination. */
const refusePlacement = (
  operation: string,
  to: AnyMemoryResource,
  from: AnyMemoryResource,
  stream: StreamResource
): Refusal => {
  if (from.kind === "device" && isOn(from, stream)) return undefined
  if (to.kind === "device") return isOn(to, stream) ? undefined : refuseReach(operation, to, stream)
  return from.kind === "device" ? refuseReach(operation, from, stream) : undefined
}

/** True if work on a stream may use the memory, on its own device or as a peer. */
export const isOn = (memory: DeviceMemoryResource, stream: StreamResource): boolean =>
  memory.isWithinReachOf(stream.deviceIndex)

/** Exclusive upper limit and size of a fill value, by its width in bits. */
const widths = {
  8: { limit: 2 ** 8, bytes: 1, operation: "CudaMemory.fill" },
  16: { limit: 2 ** 16, bytes: 2, operation: "CudaMemory.fill16" },
  32: { limit: 2 ** 32, bytes: 4, operation: "CudaMemory.fill32" }
} as const

const refuseFill = (operation: string, range: MemoryRange, value: number, bits: 8 | 16 | 32): Refusal => {
  const width = widths[bits]
  if (width === undefined) return refuseArgument(operation, "bits", bits, "8, 16 or 32")
  const { bytes, limit } = width
  if (!Number.isInteger(value) || value < 0 || value >= limit) {
    return refuseArgument(operation, "value", value, `an integer from 0 to ${limit - 1}`)
  }
  if (range.offset % bytes !== 0) {
    return refuseArgument(operation, "destination.offset", range.offset, `a multiple of ${bytes}`)
  }
  // Memory of other code can begin anywhere.
  if (range.memory.address % bytes !== 0) {
    return refuseArgument(operation, "destination", range.memory, `memory whose address is a multiple of ${bytes}`)
  }
  if (range.byteLength % bytes !== 0) {
    return refuseArgument(operation, "destination.byteLength", range.byteLength, `a multiple of ${bytes}`)
  }
  return undefined
}
