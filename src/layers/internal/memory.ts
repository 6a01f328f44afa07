/**
 * The memory operations of every runtime.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, MemoryOptions, MemoryRange } from "../CudaRuntime.ts"
import { accessOperations, enqueueOrdered } from "./accesses.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseDevices, refuseResource } from "./failures.ts"
import { Ordering } from "./ordering.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { ownMemory, ownStream, unusable } from "./resources.ts"
import type { AnyMemoryResource, DeviceMemoryResource, StreamResource } from "./resources.ts"

type MemoryOperations = Pick<
  CudaRuntimeService,
  | "memoryAllocate"
  | "memoryReclaim"
  | "hostAllocate"
  | "memoryFree"
  | "memoryCopy"
  | "memoryFill"
  | "memoryBegin"
  | "memoryEnd"
  | "memorySettled"
>

export const memoryOperations = (core: Core): MemoryOperations => ({
  ...accessOperations(core),
  memoryAllocate: (device, byteLength, options = {}) =>
    Effect.uninterruptible(
      core.onDevice("CudaMemory.allocate", device, () => allocate(core, device, byteLength, options))
    ),
  memoryReclaim: (device) =>
    core.onDevice("CudaMemory.reclaim", device, () =>
      Effect.flatMap(
        core.wait(
          "CudaMemory.reclaim",
          device,
          `device ${device}`,
          (onDone) => core.backend.watchReleases(device, onDone)
        ),
        () => {
          const status = core.backend.memoryTrim(device)
          if (status === success) return Effect.void
          return core.failOn("CudaMemory.reclaim", status, device, `device ${device}`)
        }
      )),
  hostAllocate: (byteLength, options = {}) =>
    Effect.uninterruptible(
      core.onDevice("CudaMemory.allocateHost", 0, () =>
        refuseByteLength("CudaMemory.allocateHost", byteLength) ??
          Effect.mapBoth(core.pinning.withPermit(core.backend.hostAllocate(byteLength)), {
            onSuccess: (memory) => {
              core.hostMemory.add(memory)
              return withOptions(memory, options)
            },
            onFailure: ({ call, status }) =>
              core.error("CudaMemory.allocateHost", status, 0, `${byteLength} bytes of pinned memory`, call)
          }))
    ),
  memoryFree: (ref) =>
    Effect.suspend(() => {
      const memory = ownMemory(ref)
      if (memory.owner !== core.backend) return refuseResource("CudaMemory.release", core.backend, memory)
      return memory.state === "live" ? free(core, memory) : Effect.void
    }),
  memoryCopy: (to, from, stream) => Effect.suspend(() => copy(core, to, from, ownStream(stream))),
  memoryFill: (to, value, bits, stream) => Effect.suspend(() => fill(core, to, value, bits, ownStream(stream)))
})

const withOptions = <Memory extends AnyMemoryResource>(memory: Memory, { ordered }: MemoryOptions): Memory => {
  if (ordered === true) memory.ordering = new Ordering()
  return memory
}

const allocate = (core: Core, device: number, byteLength: number, options: MemoryOptions) => {
  const operation = "CudaMemory.allocate"
  const refused = refuseByteLength(operation, byteLength)
  if (refused !== undefined) return refused
  const status = core.backend.memoryAllocate(device, byteLength)
  if (status !== success) return core.failOn(operation, status, device, `${byteLength} bytes on device ${device}`)
  const memory = withOptions(core.backend.memory!, options)
  core.deviceMemory.add(memory)
  const ready = core.wait(operation, device, String(memory), (onDone) => core.backend.watchAllocation(device, onDone))
  const undo = Effect.suspend(() => memory.state === "live" ? Effect.ignore(free(core, memory)) : Effect.void)
  return Effect.as(Effect.onError(ready, () => undo), memory)
}

const free = (core: Core, memory: AnyMemoryResource): Effect.Effect<void, CudaError> => {
  memory.state = "released"
  memory.ordering?.close()
  if (memory.kind === "host") {
    core.hostMemory.delete(memory)
    const status = core.backend.hostFree(memory)
    return status === success ? Effect.void : core.failOn("CudaMemory.release", status, 0, String(memory))
  }
  core.deviceMemory.delete(memory)
  const status = core.backend.memoryFree(memory)
  return status === success ? Effect.void : core.fail("CudaMemory.release", status, memory)
}

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
  if (unusable(backend, to) || unusable(backend, from) || unusable(backend, stream)) {
    return refuseResource(operation, backend, to, from, stream)
  }
  const refused = refuseRange(operation, "destination", toRange) ?? refuseRange(operation, "source", fromRange) ??
    refusePair(operation, toRange, fromRange) ?? refusePlacement(operation, to, from, stream)
  if (refused !== undefined) return refused
  to.usedOn(stream)
  from.usedOn(stream)
  const transfer = {
    to,
    toOffset: toRange.offset,
    from,
    fromOffset: fromRange.offset,
    byteLength: toRange.byteLength
  }
  if (transfer.byteLength === 0) return Effect.void
  const status = to.ordering === undefined && from.ordering === undefined
    ? backend.memoryCopy(transfer, stream)
    : enqueueOrdered(core, stream, [fromRange], [toRange], () => backend.memoryCopy(transfer, stream))
  if (status === success) return Effect.void
  return core.failOn(
    operation,
    status,
    stream.device,
    `${transfer.byteLength} bytes from ${from} to ${to} on ${stream}`
  )
}

const fill = (
  core: Core,
  range: MemoryRange,
  value: number,
  bits: 8 | 16 | 32,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const operation = "CudaMemory.fill"
  const memory = ownMemory(range.memory)
  if (unusable(core.backend, memory) || unusable(core.backend, stream)) {
    return refuseResource(operation, core.backend, memory, stream)
  }
  if (memory.kind === "host") return refuseArgument(operation, "destination", memory, "a device buffer")
  const refused = refuseRange(operation, "destination", range) ?? refuseFill(operation, range, value, bits)
  if (refused !== undefined) return refused
  if (memory.device !== stream.device) return refuseDevices(operation, memory, stream)
  memory.usedOn(stream)
  const count = range.byteLength / (bits / 8)
  if (count === 0) return Effect.void
  const { backend } = core
  const status = memory.ordering === undefined
    ? backend.memoryFill(memory, range.offset, value, bits, count, stream)
    : enqueueOrdered(
      core,
      stream,
      [],
      [range],
      () => backend.memoryFill(memory, range.offset, value, bits, count, stream)
    )
  return status === success ? Effect.void : core.fail(operation, status, memory)
}

const refuseByteLength = (operation: string, byteLength: number): Refusal =>
  Number.isSafeInteger(byteLength) && byteLength > 0
    ? undefined
    : refuseArgument(operation, "byteLength", byteLength, "a positive whole number of bytes below 2^53")

/** The two ends of a copy: of one length, not both on the host, and apart. */
const refusePair = (operation: string, to: MemoryRange, from: MemoryRange): Refusal => {
  if (to.byteLength !== from.byteLength) {
    return refuseArgument(operation, "source.byteLength", from.byteLength, `the destination's ${to.byteLength}`)
  }
  if (to.memory.kind === "host" && from.memory.kind === "host") {
    return refuseArgument(operation, "destination", to.memory, "a device buffer at one end of the copy at least")
  }
  const distance = Math.abs(to.offset - from.offset)
  if (to.memory === from.memory && distance < to.byteLength) {
    return refuseArgument(operation, "source.offset", from.offset, "a range that does not overlap the destination")
  }
  return undefined
}

/** A copy's stream is on the device of one of its ends. */
const refusePlacement = (
  operation: string,
  to: AnyMemoryResource,
  from: AnyMemoryResource,
  stream: StreamResource
): Refusal => {
  const ends = [to, from].filter((memory): memory is DeviceMemoryResource => memory.kind === "device")
  return ends.some((memory) => memory.device === stream.device) ? undefined : refuseDevices(operation, ends[0]!, stream)
}

const refuseFill = (operation: string, range: MemoryRange, value: number, bits: 8 | 16 | 32): Refusal => {
  if (bits !== 8 && bits !== 16 && bits !== 32) return refuseArgument(operation, "bits", bits, "8, 16 or 32")
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** bits) {
    return refuseArgument(operation, "value", value, `a whole number from 0 to ${2 ** bits - 1}`)
  }
  const width = bits / 8
  if (range.offset % width !== 0) {
    return refuseArgument(operation, "destination.offset", range.offset, `a multiple of ${width}`)
  }
  if (range.byteLength % width !== 0) {
    return refuseArgument(operation, "destination.byteLength", range.byteLength, `a multiple of ${width}`)
  }
  return undefined
}
