/**
 * Device memory: the operations of every runtime that allocate and release it, and the part of the backend that they use.
 */
import * as Effect from "effect/Effect"
import { notReady, success } from "../../cuda/status.ts"
import { CudaError } from "../../CudaError.ts"
import type { DeviceMemoryOptions, MemoryOptions } from "../CudaRuntime.ts"
import type { MemoryOperations } from "../runtime/memory.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import { operation } from "./operation.ts"
import { Ordering } from "./ordering.ts"
import type { Refusal } from "./ranges.ts"
import { ownMemory, ownPool, ownStream, unusable } from "./resources.ts"
import type { AnyMemoryResource, DeviceMemoryResource, MemoryPoolResource, StreamResource } from "./resources.ts"
import type { Cancel, OnDone } from "./waits.ts"

export interface MemoryBackend {
  /** The memory that `allocate` made. */
  readonly allocated: DeviceMemoryResource | undefined
  /** Allocates from a pool or the device's own; in stream order, or for all streams once `watchAllocation` ends. */
  readonly allocate: (
    device: number,
    byteLength: number,
    pool: MemoryPoolResource | undefined,
    stream: StreamResource | undefined
  ) => number
  /** Enqueues the release behind the work of the streams that used the memory. */
  readonly free: (memory: DeviceMemoryResource) => number
  /** Whether the allocations that a device made last can be used on every stream. */
  readonly allocationQuery: (device: number) => number
  /** Reports when the allocations that a device made last can be used on every stream. */
  readonly watchAllocation: (device: number, onDone: OnDone) => Cancel
  /** Reports when every release enqueued so far on a device has happened. */
  readonly watchReleases: (device: number, onDone: OnDone) => Cancel
}

export const memoryOperations = (core: Core): MemoryOperations => ({
  memoryAllocate: operation((device: number, byteLength: number, options: DeviceMemoryOptions = {}) =>
    core.whenOpen("CudaMemory.allocate", device, () => allocate(core, device, byteLength, options))
  ),
  memoryReclaim: (device) =>
    core.onDevice(
      "CudaMemory.reclaim",
      device,
      () => reclaim(core, "CudaMemory.reclaim", device, () => poolsOf(core, device))
    ),
  memoryFree: (ref) =>
    Effect.suspend(() => {
      const memory = ownMemory(ref)
      if (memory.owner !== core.backend) return refuseResource("CudaMemory.release", core.backend, memory)
      return memory.state === "live" ? free(core, memory) : Effect.void
    })
})

export const withOptions = <Memory extends AnyMemoryResource>(memory: Memory, { ordered }: MemoryOptions): Memory => {
  if (ordered === true) memory.ordering = new Ordering()
  return memory
}

const allocate = (
  core: Core,
  device: number,
  byteLength: number,
  options: DeviceMemoryOptions
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const operation = "CudaMemory.allocate"
  const pool = options.pool === undefined ? undefined : ownPool(options.pool)
  const stream = options.stream === undefined ? undefined : ownStream(options.stream)
  const refused = refuseByteLength(operation, byteLength) ?? refusePlace(core, operation, device, pool, stream)
  if (refused !== undefined) return refused
  const status = core.backend.memory.allocate(device, byteLength, pool, stream)
  if (status !== success) {
    const subject = `${byteLength} bytes ${pool === undefined ? `on device ${device}` : `of ${pool}`}`
    return Effect.fail(allocationError(core, operation, status, device, subject, byteLength))
  }
  const memory = withOptions(core.backend.memory.allocated!, options)
  core.deviceMemory.add(memory)
  return stream === undefined
    ? whenReady(core, operation, memory)
    : amongWorkOf(core, operation, memory, stream)
}

/** The failure of an allocation; says how much memory there is when there is too little. */
export const allocationError = (
  core: Core,
  operation: string,
  status: number,
  device: number,
  subject: string,
  requested: number
): CudaError => {
  const error = core.error(operation, status, device, subject)
  if (error.reason._tag !== "OutOfMemory" || core.backend.devices.memoryInfo(device) !== success) return error
  return new CudaError({ ...error, memory: { requested, ...core.backend.devices.memoryInfoResult } })
}

/** The pool and the stream of an allocation are there, and on its device. */
const refusePlace = (
  core: Core,
  operation: string,
  device: number,
  pool: MemoryPoolResource | undefined,
  stream: StreamResource | undefined
): Refusal => {
  for (const part of [pool, stream]) {
    if (part === undefined) continue
    if (unusable(core.backend, part)) return refuseResource(operation, core.backend, part)
    if (part.device === device) continue
    const resources = [String(part), `memory of device ${device}`] as const
    return refuse(operation, { _tag: "DeviceMismatch", resources, devices: [part.device, device] })
  }
  return undefined
}

/** Waits until memory can be used on every stream. */
const whenReady = (
  core: Core,
  operation: string,
  memory: DeviceMemoryResource
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const { device } = memory
  const status = core.backend.memory.allocationQuery(device)
  if (status === success) return Effect.succeed(memory)
  if (status !== notReady) return Effect.andThen(undo(core, memory), core.fail(operation, status, memory))
  const ready = core.wait(
    operation,
    device,
    String(memory),
    (onDone) => core.backend.memory.watchAllocation(device, onDone)
  )
  return Effect.uninterruptible(Effect.as(Effect.onError(ready, () => undo(core, memory)), memory))
}

const undo = (core: Core, memory: DeviceMemoryResource): Effect.Effect<void> =>
  Effect.suspend(() => memory.state === "live" ? Effect.ignore(free(core, memory)) : Effect.void)

/** Marks the allocation on its stream, so that the first use on any other one waits for it. */
const amongWorkOf = (
  core: Core,
  operation: string,
  memory: DeviceMemoryResource,
  stream: StreamResource
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const { backend } = core
  memory.allocatedOn = stream
  memory.usedOn(stream)
  const status = backend.markers.record(stream)
  if (status !== success) return Effect.andThen(undo(core, memory), core.fail(operation, status, memory))
  const marker = backend.markers.made!
  memory.beforeFirstUse = (other) => backend.markers.wait(other, marker)
  memory.onRelease = () => backend.markers.release(marker)
  return Effect.succeed(memory)
}

const free = (core: Core, memory: AnyMemoryResource): Effect.Effect<void, CudaError> => {
  memory.state = "released"
  memory.ordering?.close()
  if (memory.kind === "host") {
    core.hostMemory.delete(memory)
    const status = core.backend.pinned.free(memory)
    return status === success ? Effect.void : core.failOn("CudaMemory.release", status, 0, String(memory))
  }
  core.deviceMemory.delete(memory)
  const status = core.backend.memory.free(memory)
  memory.onRelease?.()
  return status === success ? Effect.void : core.fail("CudaMemory.release", status, memory)
}

/** Waits for the releases enqueued so far, and has the device take back what its pools do not use, beyond some bytes of each. */
export const reclaim = (
  core: Core,
  operation: string,
  device: number,
  pools: () => ReadonlyArray<MemoryPoolResource>,
  keepBytes = 0
): Effect.Effect<void, CudaError> =>
  Effect.flatMap(
    core.wait(operation, device, `device ${device}`, (onDone) => core.backend.memory.watchReleases(device, onDone)),
    () => {
      for (const pool of pools()) {
        if (unusable(core.backend, pool)) return refuseResource(operation, core.backend, pool)
        const status = core.backend.pools.trim(pool, keepBytes)
        if (status !== success) return core.fail(operation, status, pool)
      }
      return Effect.void
    }
  )

/** All pools of a device that are there. */
const poolsOf = (core: Core, device: number): ReadonlyArray<MemoryPoolResource> => [
  core.backend.pools.ofDevice(device),
  ...Array.from(core.pools).filter((pool) => pool.device === device)
]

export const refuseByteLength = (operation: string, byteLength: number): Refusal =>
  Number.isSafeInteger(byteLength) && byteLength > 0
    ? undefined
    : refuseArgument(operation, "byteLength", byteLength, "a positive whole number of bytes below 2^53")
